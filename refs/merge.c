/*
 * merge.c — hides how three trees become one: two walks along what each side changed since the
 * base, joined by name, directory by directory.
 *
 * Each directory is gone through twice. First every path that both sides touched is resolved,
 * directories by recursion; then the edits to the target's directory are streamed into
 * tree_apply, which walks the same join again and takes the resolutions from the list. So memory
 * is what both sides touched, not what one side changed, and recursion holds no half-built tree.
 *
 * "Gone" is the side that does not have this directory, though the base has: everything that the
 * other side did in there is a conflict, unless it only removed things.
 *
 * A `take` decides about its path and all below it, conflict or not: what is taken is one side's
 * state, whole, since the files of a table belong together (merge_take.c).
 *
 * A directory that the hook merges is not gone through at all.
 */
#include "refs/entry.h"
#include "refs/merge_internal.h"

#include <stdio.h>

#define CONFLICTS_MAX_DEFAULT 10000
#define DEPTH_MAX 4096
#define STOP 1 /* conflicts_max was reached; not an error */

enum { SIDE_NONE = 0 };

struct merge {
	struct odb *odb;
	struct packer *packer;
	struct takes takes;
	merge_directory_fn *hook; /* may be NULL */
	void *context;
	bool virtual; /* leave unresolved entries instead of listing conflicts */
	struct message *message;
	struct buffer path; /* NUL-terminated; length counts the NUL */
	unsigned depth;
	struct conflicts conflicts;
	size_t conflicts_max;
};

static void merge_release(struct merge *merge)
{
	takes_release(&merge->takes);
	conflicts_release(&merge->conflicts);
	buffer_release(&merge->path);
}

static int no_memory(struct merge *merge)
{
	return fail(merge->message, -ERR_NO_MEMORY, "out of memory while merging");
}

/* -- the current path -- */

static const char *path_of(const struct merge *merge)
{
	return (const char *)merge->path.data;
}

static int enter(struct merge *merge, const struct tree_entry *entry, size_t *ret_before)
{
	*ret_before = merge->path.length;
	if (merge->depth >= DEPTH_MAX)
		return fail(merge->message, -ERR_TOO_LARGE, "'%.100s...' is too deep",
		            path_of(merge));
	merge->depth++;
	merge->path.length--;
	if (merge->path.length > 0)
		buffer_u8(&merge->path, '/');
	buffer_append(&merge->path, entry->name, entry->name_length);
	buffer_u8(&merge->path, '\0');
	return buffer_check(&merge->path) ? no_memory(merge) : 0;
}

static void leave(struct merge *merge, size_t before)
{
	merge->depth--;
	merge->path.length = before;
	merge->path.data[before - 1] = '\0';
}

/* What the current path is taken from. */
static int side_taken(struct merge *merge)
{
	return takes_side(&merge->takes, path_of(merge));
}

/* Whether takes may decide about something below the current path. */
static bool decided_below(const struct merge *merge)
{
	return takes_below(&merge->takes, path_of(merge));
}

/* -- what both sides changed in one directory, by name -- */

struct join {
	struct tree_diff *source_diff, *target_diff;
	struct tree_change source, target;
	bool source_ended, target_ended;
	bool source_ready, target_ready; /* a change waits to be used */
};

struct joined {
	const struct tree_entry *base, *source, *target; /* NULL: not there */
	bool source_changed, target_changed;
};

static const struct tree_entry *either(const struct tree_entry *a, const struct tree_entry *b,
                                       const struct tree_entry *c)
{
	return a ? a : b ? b : c;
}

static void join_release(struct join *join)
{
	tree_diff_free(join->source_diff);
	tree_diff_free(join->target_diff);
}

/* The roots of one directory in the three trees. */
struct roots {
	struct pointer base, source, target;
	int gone; /* the side that does not have this directory at all */
};

static int join_open(struct merge *merge, const struct roots *roots, struct join *join)
{
	if (tree_diff_new(merge->odb, &roots->base, &roots->source, &join->source_diff) < 0 ||
	    tree_diff_new(merge->odb, &roots->base, &roots->target, &join->target_diff) < 0)
		return no_memory(merge);
	return 0;
}

static int advance(struct merge *merge, struct tree_diff *diff, struct tree_change *change,
                   bool *ready, bool *ended)
{
	if (*ready || *ended)
		return 0;
	int error = tree_diff_next(diff, change, merge->message);
	if (error == -ERR_NOT_FOUND)
		*ended = true;
	else if (!error)
		*ready = true;
	return error == -ERR_NOT_FOUND ? 0 : error;
}

static int change_order(const struct tree_change *a, const struct tree_change *b)
{
	const struct tree_entry *left = either(a->before, a->after, NULL);
	const struct tree_entry *right = either(b->before, b->after, NULL);
	size_t common =
	        left->name_length < right->name_length ? left->name_length : right->name_length;
	int order = memcmp(left->name, right->name, common);
	return order ? order
	             : (left->name_length > right->name_length) -
	                       (left->name_length < right->name_length);
}

/* The next name; borrowed until the next call. -ERR_NOT_FOUND at the end. */
static int join_next(struct merge *merge, struct join *join, struct joined *ret_joined)
{
	int error = advance(merge, join->source_diff, &join->source, &join->source_ready,
	                    &join->source_ended);
	if (!error)
		error = advance(merge, join->target_diff, &join->target, &join->target_ready,
		                &join->target_ended);
	if (error)
		return error;
	if (!join->source_ready && !join->target_ready)
		return -ERR_NOT_FOUND;
	int order = !join->source_ready   ? 1
	            : !join->target_ready ? -1
	                                  : change_order(&join->source, &join->target);
	bool source = order <= 0, target = order >= 0;
	const struct tree_entry *base = source ? join->source.before : join->target.before;
	*ret_joined = (struct joined){
	        .base = base,
	        .source = source ? join->source.after : base,
	        .target = target ? join->target.after : base,
	        .source_changed = source,
	        .target_changed = target,
	};
	if (source)
		join->source_ready = false;
	if (target)
		join->target_ready = false;
	return 0;
}

/* -- what to do about one name -- */

enum decision { KEEP_TARGET, TAKE_SOURCE, RESOLVE };

/* Deterministic: both goes through a directory decide alike. */
static int decide(struct merge *merge, const struct roots *roots, const struct joined *joined,
                  enum decision *ret_decision)
{
	if (merge->takes.count > 0) {
		size_t before;
		int error =
		        enter(merge, either(joined->base, joined->source, joined->target), &before);
		if (error)
			return error;
		int side = side_taken(merge);
		bool below = decided_below(merge);
		leave(merge, before);
		if (side || below) {
			*ret_decision = below                 ? RESOLVE
			                : side == SIDE_SOURCE ? TAKE_SOURCE
			                                      : KEEP_TARGET;
			return 0;
		}
	}
	if (joined->source_changed && joined->target_changed)
		*ret_decision = RESOLVE;
	else if (joined->source_changed)
		*ret_decision = roots->gone == SIDE_TARGET ? RESOLVE : TAKE_SOURCE;
	else
		*ret_decision = roots->gone == SIDE_SOURCE ? RESOLVE : KEEP_TARGET;
	return 0;
}

enum action { ACTION_KEEP, ACTION_REPLACE, ACTION_REMOVE };

struct resolution {
	enum action action;
	struct tree_entry *entry; /* to replace by; owned */
};

static int replace_by(struct merge *merge, const struct tree_entry *entry,
                      struct resolution *ret_resolution)
{
	if (!entry) {
		*ret_resolution = (struct resolution){ACTION_REMOVE, NULL};
		return 0;
	}
	struct tree_entry *copy = tree_entry_copy(entry);
	if (!copy)
		return no_memory(merge);
	*ret_resolution = (struct resolution){ACTION_REPLACE, copy};
	return 0;
}

static int listed(struct merge *merge, int error)
{
	if (error)
		return no_memory(merge);
	return merge->conflicts.count >= merge->conflicts_max ? STOP : 0;
}

static int list_conflict(struct merge *merge, const struct joined *joined)
{
	return listed(merge, conflicts_add(&merge->conflicts, path_of(merge), joined->base,
	                                   joined->source, joined->target));
}

static int conflict_here(struct merge *merge, const struct joined *joined,
                         struct resolution *ret_resolution)
{
	*ret_resolution = (struct resolution){ACTION_KEEP, NULL};
	if (!merge->virtual)
		return list_conflict(merge, joined);
	struct tree_entry *entry = unresolved_entry(joined->source, joined->target);
	if (!entry)
		return no_memory(merge);
	*ret_resolution = (struct resolution){ACTION_REPLACE, entry};
	return 0;
}

/* -- directories -- */

static int merge_directory(struct merge *merge, const struct roots *roots,
                           struct pointer *ret_root);

static struct pointer root_of(const struct tree_entry *entry)
{
	return entry_is_directory(entry) ? entry->content.pointer : pointer_none;
}

static int attributes_of(struct merge *merge, const struct tree_entry *entry,
                         struct merged_attributes *ret_merged)
{
	*ret_merged = (struct merged_attributes){.attributes = entry->attributes};
	buffer_append(&ret_merged->xattrs, entry->xattrs, entry->xattrs_length);
	return buffer_check(&ret_merged->xattrs) ? no_memory(merge) : 0;
}

/* A directory's attributes, before anything inside is looked at. `only`: the one side that has
 * it, NULL when both have. Then the base's attributes must be as they were, or this is a change
 * against the removal too. */
static int merge_directory_attributes(struct merge *merge, const struct joined *joined,
                                      const struct tree_entry *only,
                                      struct merged_attributes *ret_merged)
{
	const struct tree_entry *base = entry_is_directory(joined->base) ? joined->base : NULL;
	int side = side_taken(merge), error;
	if (side && !only)
		only = side == SIDE_SOURCE ? joined->source : joined->target;
	if (side || (only && (!base || entry_same_attributes(base, only))))
		return attributes_of(merge, only, ret_merged);
	error = only ? -ERR_CONFLICT
	             : merge_attributes(base, joined->source, joined->target, ret_merged);
	if (error && error != -ERR_CONFLICT)
		return fail(merge->message, error, "merging the attributes of '%s': %s",
		            path_of(merge), error_text(error));
	if (!error)
		return 0;
	if (!merge->virtual)
		error = list_conflict(merge, joined);
	else
		error = 0;
	if (!error)
		error = attributes_of(merge, only ? only : joined->target, ret_merged);
	if (merge->virtual)
		unresolve_attributes(&ret_merged->attributes);
	return error;
}

static void merged_release(struct merged_attributes *merged)
{
	buffer_release(&merged->xattrs);
}

/* -- a directory that somebody knows how to merge -- */

/* Takes are for single paths in there, so whoever gave them looks after the rest, too. */
static int taken_apart(struct merge *merge, const struct roots *roots, bool *ret_apart)
{
	CLEANUP(join_release) struct join join = {0};
	*ret_apart = false;
	if (!decided_below(merge))
		return 0;
	int error = join_open(merge, roots, &join);
	while (!error && !*ret_apart) {
		struct joined joined;
		size_t before;
		error = join_next(merge, &join, &joined);
		if (!error)
			error = enter(merge, either(joined.base, joined.source, joined.target),
			              &before);
		if (error)
			break;
		*ret_apart = side_taken(merge) != SIDE_NONE;
		leave(merge, before);
	}
	return error == -ERR_NOT_FOUND ? 0 : error;
}

/* Both sides have the directory. *ret_root only when *ret_done. */
static int merge_by_hook(struct merge *merge, const struct roots *roots, struct pointer *ret_root,
                         bool *ret_done)
{
	CLEANUP(directory_result_release) struct directory_result result = {0};
	struct directory_merge directory = {path_of(merge), roots->base, roots->source,
	                                    roots->target};
	bool apart;
	*ret_done = false;
	if (!merge->hook || merge->virtual || side_taken(merge) ||
	    id_equal(&roots->base.id, &roots->source.id) ||
	    id_equal(&roots->base.id, &roots->target.id) ||
	    id_equal(&roots->source.id, &roots->target.id))
		return 0;
	int error = taken_apart(merge, roots, &apart);
	if (error || apart)
		return error;
	error = merge->hook(merge->context, merge->odb, merge->packer, &directory, &result,
	                    merge->message);
	if (error == -ERR_NO_MEMORY)
		return no_memory(merge);
	if (error || result.verdict == DIRECTORY_NOT_MINE)
		return error;
	*ret_done = true;
	*ret_root = result.verdict == DIRECTORY_MERGED ? result.tree : roots->target;
	if (result.verdict == DIRECTORY_MERGED)
		return 0;
	return listed(merge, conflicts_add_table(&merge->conflicts, directory.path, &result));
}

/* At least one side has a directory here, and the other one nothing or one too. */
static int resolve_directory(struct merge *merge, const struct roots *roots,
                             const struct joined *joined, struct resolution *ret_resolution)
{
	const struct tree_entry *only = !joined->source   ? joined->target
	                                : !joined->target ? joined->source
	                                                  : NULL;
	bool removed = entry_is_directory(joined->base);
	struct roots below = {root_of(joined->base), root_of(joined->source),
	                      root_of(joined->target), SIDE_NONE};
	int side = side_taken(merge);
	if (!joined->source && (removed || roots->gone == SIDE_SOURCE || side == SIDE_SOURCE))
		below.gone = SIDE_SOURCE;
	if (!joined->target && (removed || roots->gone == SIDE_TARGET || side == SIDE_TARGET))
		below.gone = SIDE_TARGET;
	CLEANUP(merged_release) struct merged_attributes merged = {0};
	struct pointer root;
	bool done = false;
	int error = merge_directory_attributes(merge, joined, only, &merged);
	if (!error && !only)
		error = merge_by_hook(merge, &below, &root, &done);
	if (!error && !done)
		error = merge_directory(merge, &below, &root);
	if (error)
		return error;
	bool unresolved = merge->virtual && merged.attributes.uid == UINT32_MAX;
	if (below.gone && pointer_is_none(&root) && !unresolved)
		return replace_by(merge, NULL, ret_resolution);
	struct tree_entry entry = only ? *only : *joined->target;
	entry.attributes = merged.attributes;
	entry.xattrs = merged.xattrs.length ? merged.xattrs.data : NULL;
	entry.xattrs_length = merged.xattrs.length;
	entry.content.pointer = root;
	return replace_by(merge, &entry, ret_resolution);
}

/* -- one path that both sides touched -- */

/* More than the time. */
static bool differs(const struct tree_entry *a, const struct tree_entry *b)
{
	return a && b ? !tree_entry_same_but_time(a, b) : a != b;
}

static int take(struct merge *merge, const struct joined *joined, const struct tree_entry *entry,
                struct resolution *ret_resolution)
{
	if (!entry)
		return replace_by(merge, NULL, ret_resolution);
	struct tree_entry timed = *entry;
	if (joined->source && joined->target)
		timed.attributes.mtime_ns =
		        merge_times(joined->base, joined->source, joined->target);
	return replace_by(merge, &timed, ret_resolution);
}

static int resolve_files(struct merge *merge, const struct joined *joined,
                         struct resolution *ret_resolution)
{
	struct tree_entry *entry;
	int error = merge_files(joined->base, joined->source, joined->target, &entry);
	if (error == -ERR_CONFLICT)
		return conflict_here(merge, joined, ret_resolution);
	if (error)
		return fail(merge->message, error, "merging '%s': %s", path_of(merge),
		            error_text(error));
	*ret_resolution = (struct resolution){ACTION_REPLACE, entry};
	return 0;
}

static int stop_at_change(void *context, const struct change *change)
{
	return STOP;
}

/* A directory on one side, something else on the other. If in the directory nothing but times
 * changed since the base, the other side wins. */
static int resolve_kinds(struct merge *merge, const struct joined *joined,
                         struct resolution *ret_resolution)
{
	const struct tree_entry *base = joined->base, *source = joined->source;
	const struct tree_entry *target = joined->target;
	const struct tree_entry *directory = entry_is_directory(source) ? source : target;
	if (!entry_is_directory(base) || !entry_is_directory(directory) ||
	    !entry_same_attributes(base, directory))
		return conflict_here(merge, joined, ret_resolution);
	int error = diff_trees(merge->odb, &base->content.pointer, &directory->content.pointer,
	                       NULL, stop_at_change, NULL, merge->message);
	if (error == STOP)
		return conflict_here(merge, joined, ret_resolution);
	if (error)
		return error;
	return replace_by(merge, directory == source ? target : source, ret_resolution);
}

static int resolve(struct merge *merge, const struct roots *roots, const struct joined *joined,
                   struct resolution *ret_resolution)
{
	const struct tree_entry *base = joined->base, *source = joined->source;
	const struct tree_entry *target = joined->target;
	bool directories = (entry_is_directory(source) || entry_is_directory(target)) &&
	                   (!source || entry_is_directory(source)) &&
	                   (!target || entry_is_directory(target));
	int side = side_taken(merge);
	if (directories && decided_below(merge))
		return resolve_directory(merge, roots, joined, ret_resolution);
	if (side)
		return replace_by(merge, side == SIDE_SOURCE ? source : target, ret_resolution);
	/* New in a directory that the other side removed: differs from a base that is not there. */
	if (!base && roots->gone)
		return conflict_here(merge, joined, ret_resolution);
	if (!differs(base, target))
		return take(merge, joined, source, ret_resolution);
	if (!differs(base, source) || !differs(source, target))
		return take(merge, joined, target, ret_resolution);
	bool removed = !source || !target;
	if (directories && (!removed || entry_is_directory(base)))
		return resolve_directory(merge, roots, joined, ret_resolution);
	if (removed)
		return conflict_here(merge, joined, ret_resolution);
	if (!entry_same_kind(source, target))
		return resolve_kinds(merge, joined, ret_resolution);
	return resolve_files(merge, joined, ret_resolution);
}

/* -- one directory -- */

struct directory {
	struct merge *merge;
	const struct roots *roots;
	struct join join;
	struct resolution *resolutions;
	size_t count, capacity;
	size_t used; /* by the second go */
};

static void directory_release(struct directory *directory)
{
	join_release(&directory->join);
	for (size_t i = 0; i < directory->count; i++)
		free(directory->resolutions[i].entry);
	free(directory->resolutions);
}

static int add_resolution(struct directory *directory, const struct joined *joined)
{
	struct merge *merge = directory->merge;
	if (directory->count == directory->capacity) {
		size_t capacity = directory->capacity ? directory->capacity * 2 : 16;
		struct resolution *grown =
		        reallocarray(directory->resolutions, capacity, sizeof(*grown));
		if (!grown)
			return no_memory(merge);
		directory->resolutions = grown;
		directory->capacity = capacity;
	}
	size_t before;
	struct resolution resolution;
	int error = enter(merge, either(joined->base, joined->source, joined->target), &before);
	if (error)
		return error;
	error = resolve(merge, directory->roots, joined, &resolution);
	leave(merge, before);
	if (!error)
		directory->resolutions[directory->count++] = resolution;
	return error;
}

static int resolve_all(struct directory *directory)
{
	struct merge *merge = directory->merge;
	for (;;) {
		struct joined joined;
		enum decision decision = KEEP_TARGET;
		int error = join_next(merge, &directory->join, &joined);
		if (error == -ERR_NOT_FOUND)
			return 0;
		if (!error)
			error = decide(merge, directory->roots, &joined, &decision);
		if (!error && decision == RESOLVE)
			error = add_resolution(directory, &joined);
		if (error)
			return error;
	}
}

/* The second go: the next edit of the target's directory. */
static int next_edit(void *context, struct tree_edit *ret_edit)
{
	struct directory *directory = context;
	struct merge *merge = directory->merge;
	for (;;) {
		struct joined joined;
		enum decision decision;
		int error = join_next(merge, &directory->join, &joined);
		if (!error)
			error = decide(merge, directory->roots, &joined, &decision);
		if (error)
			return error;
		const struct tree_entry *named = either(joined.base, joined.source, joined.target);
		*ret_edit = (struct tree_edit){named->name, named->name_length, joined.source};
		if (decision == TAKE_SOURCE)
			return 0;
		if (decision == KEEP_TARGET)
			continue;
		const struct resolution *resolution = &directory->resolutions[directory->used++];
		ret_edit->entry = resolution->entry;
		if (resolution->action != ACTION_KEEP)
			return 0;
	}
}

/* The result without looking at names, where one side did nothing. */
static bool shortcut(const struct merge *merge, const struct roots *roots, struct pointer *ret_root)
{
	bool source_as_base = id_equal(&roots->source.id, &roots->base.id);
	bool target_as_base = id_equal(&roots->target.id, &roots->base.id);
	if (merge->takes.count > 0 && decided_below(merge))
		return false;
	if (target_as_base && roots->gone != SIDE_TARGET)
		*ret_root = roots->source;
	else if (source_as_base && roots->gone != SIDE_SOURCE)
		*ret_root = roots->target;
	else if (!roots->gone && id_equal(&roots->source.id, &roots->target.id))
		*ret_root = roots->target;
	else
		return false;
	return true;
}

static int merge_directory(struct merge *merge, const struct roots *roots, struct pointer *ret_root)
{
	CLEANUP(directory_release)
	struct directory directory = {.merge = merge, .roots = roots};
	if (shortcut(merge, roots, ret_root))
		return 0;
	int error = join_open(merge, roots, &directory.join);
	if (!error)
		error = resolve_all(&directory);
	if (error)
		return error;
	if (merge->conflicts.count > 0) {
		*ret_root = roots->target; /* nothing of the result counts */
		return 0;
	}
	join_release(&directory.join);
	directory.join = (struct join){0};
	error = join_open(merge, roots, &directory.join);
	if (error)
		return error;
	return tree_apply(merge->odb, merge->packer, &roots->target, next_edit, &directory,
	                  ret_root, merge->message);
}

/* -- whole trees -- */

static struct tree_entry root_entry(const struct merge_side *side)
{
	struct tree_entry entry = {
	        .name = "", .attributes = side->root, .content.pointer = side->tree};
	entry.attributes.mode = S_IFDIR | (side->root.mode & ~(uint32_t)S_IFMT);
	return entry;
}

static int merge_sides(struct merge *merge, const struct merge_side *base,
                       const struct merge_side *source, const struct merge_side *target,
                       struct merge_side *ret_merged)
{
	buffer_u8(&merge->path, '\0');
	if (buffer_check(&merge->path))
		return no_memory(merge);
	int side = side_taken(merge);
	if (side && !decided_below(merge)) {
		*ret_merged = side == SIDE_SOURCE ? *source : *target;
		return 0;
	}
	struct tree_entry entries[] = {root_entry(base), root_entry(source), root_entry(target)};
	struct joined joined = {&entries[0], &entries[1], &entries[2], true, true};
	struct roots roots = {base->tree, source->tree, target->tree, SIDE_NONE};
	CLEANUP(merged_release) struct merged_attributes merged = {0};
	struct pointer tree;
	int error = merge_directory_attributes(merge, &joined, NULL, &merged);
	if (!error)
		error = merge_directory(merge, &roots, &tree);
	if (!error)
		*ret_merged = (struct merge_side){tree, merged.attributes};
	return error;
}

int merge_virtually(struct odb *odb, struct packer *packer, const struct merge_side *base,
                    const struct merge_side *source, const struct merge_side *target,
                    struct merge_side *ret_merged, struct message *message)
{
	CLEANUP(merge_release)
	struct merge merge = {.odb = odb, .packer = packer, .virtual = true, .message = message};
	return merge_sides(&merge, base, source, target, ret_merged);
}

static int count_change(void *context, const struct change *change)
{
	++*(uint64_t *)context;
	return 0;
}

int count_changes(struct odb *odb, const struct pointer *before, const struct pointer *after,
                  uint64_t *ret_count, struct message *message)
{
	uint64_t count = 0;
	int error = diff_trees(odb, before, after, NULL, count_change, &count, message);
	if (!error)
		*ret_count = count;
	return error;
}

static int gather_conflicts(struct merge *merge, const struct merge_side *base,
                            const struct merge_side *source, const struct merge_side *target)
{
	struct tree_entry roots[] = {root_entry(base), root_entry(source), root_entry(target)};
	int error = conflicts_gather(&merge->conflicts, merge->odb, &roots[0], &roots[1], &roots[2],
	                             merge->message);
	return error == -ERR_NO_MEMORY ? no_memory(merge) : error;
}

int merge_trees(struct odb *odb, struct packer *packer, const struct merge_side *base,
                const struct merge_side *source, const struct merge_side *target,
                const struct merge_options *options, struct merge_result *ret_result,
                struct message *message)
{
	CLEANUP(merge_release)
	struct merge merge = {
	        .odb = odb,
	        .packer = packer,
	        .hook = options ? options->directory : NULL,
	        .context = options ? options->context : NULL,
	        .message = message,
	        .conflicts_max = options ? options->conflicts_max : 0,
	};
	if (merge.conflicts_max == 0)
		merge.conflicts_max = CONFLICTS_MAX_DEFAULT;
	struct merge_side merged = *target;
	uint64_t changed = 0;
	if (options && takes_init(&merge.takes, options->takes, options->take_count) < 0)
		return no_memory(&merge);
	int error = merge_sides(&merge, base, source, target, &merged);
	if (error == STOP)
		error = 0;
	if (!error)
		error = takes_check(&merge.takes, odb, &source->tree, &target->tree, message);
	if (!error && merge.conflicts.count > 0)
		error = gather_conflicts(&merge, base, source, target);
	else if (!error)
		error = count_changes(odb, &target->tree, &merged.tree, &changed, message);
	if (error)
		return error;
	*ret_result = (struct merge_result){
	        .tree = merged.tree,
	        .root = merged.root,
	        .conflicts = steal(&merge.conflicts.items),
	        .conflict_count = merge.conflicts.count,
	        .changed = changed,
	};
	merge.conflicts.count = 0;
	return 0;
}
