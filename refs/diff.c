/*
 * diff.c — hides how two trees are walked side by side: only into directories whose ids differ,
 * and with path filters only along those paths.
 */
#include "refs/diff.h"
#include "refs/entry.h"

#include <stdio.h>

/* Deeper than any path within PATH_BYTES_MAX, and shallow enough for a thread's stack. */
#define DEPTH_MAX 4096

struct walk {
	struct odb *odb;
	const struct diff_options *options;
	change_fn *callback;
	void *context;
	struct message *message;
	struct message lookup_message;
	struct buffer path; /* NUL-terminated; length counts the NUL */
	unsigned depth;
};

const char *change_name(enum change_kind kind)
{
	static const char *const names[] = {
	        [CHANGE_ADDED] = "added",
	        [CHANGE_REMOVED] = "removed",
	        [CHANGE_MODIFIED] = "modified",
	        [CHANGE_MODE] = "mode",
	};
	return names[kind];
}

static void walk_release(struct walk *walk)
{
	buffer_release(&walk->path);
}

static void diff_release(struct tree_diff **diff)
{
	tree_diff_free(*diff);
}

static const char *path_of(const struct walk *walk)
{
	return (const char *)walk->path.data;
}

/* Go down to `name`; *ret_before is for leave(). */
static int enter(struct walk *walk, const char *name, size_t length, size_t *ret_before)
{
	*ret_before = walk->path.length;
	if (walk->depth >= DEPTH_MAX)
		return fail(walk->message, -ERR_TOO_LARGE, "'%.100s...' is too deep",
		            path_of(walk));
	walk->depth++;
	walk->path.length--; /* the NUL */
	if (walk->path.length > 0)
		buffer_u8(&walk->path, '/');
	buffer_append(&walk->path, name, length);
	buffer_u8(&walk->path, '\0');
	return buffer_check(&walk->path);
}

static void leave(struct walk *walk, size_t before)
{
	walk->depth--;
	walk->path.length = before;
	walk->path.data[before - 1] = '\0';
}

static int emit(struct walk *walk, enum change_kind kind, const struct tree_entry *before,
                const struct tree_entry *after)
{
	struct change change = {
	        .kind = kind,
	        .path = path_of(walk),
	        .path_length = walk->path.length - 1,
	        .before = before,
	        .after = after,
	};
	return walk->callback(walk->context, &change);
}

/* -- path filters -- */

/* Whether everything below the current path is asked for. */
static bool inside(const struct walk *walk)
{
	const struct diff_options *options = walk->options;
	if (!options->paths)
		return true;
	for (size_t i = 0; i < options->path_count; i++)
		if (path_within(path_of(walk), options->paths[i]))
			return true;
	return false;
}

struct name {
	const char *bytes; /* in a filter */
	size_t length;
};

static int by_name(const void *a, const void *b)
{
	const struct name *left = a, *right = b;
	size_t common = left->length < right->length ? left->length : right->length;
	int order = memcmp(left->bytes, right->bytes, common);
	return order ? order : (left->length > right->length) - (left->length < right->length);
}

/* The names in the current directory that filters lead through: sorted, each once. */
static size_t wanted_names(const struct walk *walk, struct name *ret_names)
{
	size_t count = 0, kept = 0;
	const char *path = path_of(walk);
	for (size_t i = 0; i < walk->options->path_count; i++) {
		const char *rest = walk->options->paths[i];
		if (*path != '\0') {
			if (!path_within(rest, path))
				continue;
			rest += walk->path.length; /* with the '/' */
		}
		ret_names[count++] = (struct name){rest, strcspn(rest, "/")};
	}
	qsort(ret_names, count, sizeof(*ret_names), by_name);
	for (size_t i = 0; i < count; i++)
		if (kept == 0 || by_name(&ret_names[kept - 1], &ret_names[i]) != 0)
			ret_names[kept++] = ret_names[i];
	return kept;
}

/* -- the walk -- */

static int diff_directories(struct walk *walk, const struct pointer *before,
                            const struct pointer *after);

/* An entry that is only on one side. */
static int whole(struct walk *walk, enum change_kind kind, const struct tree_entry *entry)
{
	bool asked = inside(walk);
	const struct pointer *root = &entry->content.pointer;
	bool directory = entry_is_directory(entry);
	bool itself = !directory || pointer_is_none(root) || walk->options->directories ||
	              walk->options->shallow;
	bool added = kind == CHANGE_ADDED;
	if (asked && itself) {
		int error = emit(walk, kind, added ? NULL : entry, added ? entry : NULL);
		if (error)
			return error;
	}
	if (!directory || (asked && walk->options->shallow))
		return 0;
	return diff_directories(walk, added ? &pointer_none : root, added ? root : &pointer_none);
}

/* The current path on both sides, of the same kind. */
static int compare(struct walk *walk, const struct tree_entry *before,
                   const struct tree_entry *after)
{
	int error = 0;
	bool directory = entry_is_directory(before);
	if (inside(walk)) {
		bool time = before->attributes.mtime_ns != after->attributes.mtime_ns;
		if (!directory && !entry_same_content(before, after))
			error = emit(walk, CHANGE_MODIFIED, before, after);
		else if (!entry_same_attributes(before, after) || (walk->options->times && time))
			error = emit(walk, CHANGE_MODE, before, after);
	}
	if (error || !directory)
		return error;
	return diff_directories(walk, &before->content.pointer, &after->content.pointer);
}

static int diff_entries(struct walk *walk, const struct tree_entry *before,
                        const struct tree_entry *after)
{
	const struct tree_entry *either = before ? before : after;
	size_t length;
	int error = enter(walk, either->name, either->name_length, &length);
	if (error)
		return error;
	if (before && after && entry_same_kind(before, after)) {
		error = compare(walk, before, after);
	} else {
		if (before)
			error = whole(walk, CHANGE_REMOVED, before);
		if (!error && after)
			error = whole(walk, CHANGE_ADDED, after);
	}
	leave(walk, length);
	return error;
}

static int diff_all(struct walk *walk, const struct pointer *before, const struct pointer *after)
{
	CLEANUP(diff_release) struct tree_diff *diff = NULL;
	int error = tree_diff_new(walk->odb, before, after, &diff);
	if (error)
		return fail(walk->message, error, "%s", error_text(error));
	for (;;) {
		struct tree_change change;
		error = tree_diff_next(diff, &change, walk->message);
		if (error == -ERR_NOT_FOUND)
			return 0;
		if (!error)
			error = diff_entries(walk, change.before, change.after);
		if (error)
			return error;
	}
}

/* *ret_entry is NULL when there is none: which is no failure, and leaves no message. */
static int lookup(struct walk *walk, const struct pointer *root, const struct name *name,
                  struct tree_entry **ret_entry)
{
	*ret_entry = NULL;
	if (pointer_is_none(root))
		return 0;
	int error = tree_lookup(walk->odb, root, name->bytes, name->length, ret_entry,
	                        &walk->lookup_message);
	if (error == -ERR_NOT_FOUND)
		return 0;
	if (error && walk->message)
		*walk->message = walk->lookup_message;
	return error;
}

static int diff_wanted(struct walk *walk, const struct pointer *before, const struct pointer *after)
{
	CLEANUP(free_pointer)
	struct name *names = calloc(walk->options->path_count + 1, sizeof(*names));
	if (!names)
		return fail(walk->message, -ERR_NO_MEMORY, "out of memory");
	size_t count = wanted_names(walk, names);
	for (size_t i = 0; i < count; i++) {
		CLEANUP(free_pointer) struct tree_entry *old = NULL;
		CLEANUP(free_pointer) struct tree_entry *new = NULL;
		int error = lookup(walk, before, &names[i], &old);
		if (!error)
			error = lookup(walk, after, &names[i], &new);
		if (!error && (old || new) && !(old && new &&tree_entry_equal(old, new)))
			error = diff_entries(walk, old, new);
		if (error)
			return error;
	}
	return 0;
}

static int diff_directories(struct walk *walk, const struct pointer *before,
                            const struct pointer *after)
{
	if (id_equal(&before->id, &after->id))
		return 0;
	return inside(walk) ? diff_all(walk, before, after) : diff_wanted(walk, before, after);
}

int diff_trees(struct odb *odb, const struct pointer *before, const struct pointer *after,
               const struct diff_options *options, change_fn *callback, void *context,
               struct message *message)
{
	static const struct diff_options defaults;
	CLEANUP(walk_release)
	struct walk walk = {
	        .odb = odb,
	        .options = options ? options : &defaults,
	        .callback = callback,
	        .context = context,
	        .message = message,
	};
	buffer_u8(&walk.path, '\0');
	int error = buffer_check(&walk.path);
	return error ? error : diff_directories(&walk, before, after);
}
