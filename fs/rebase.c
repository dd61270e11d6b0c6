/*
 * rebase — hides what remains of an overlay when the tree below it becomes another one.
 *
 * Two uses. After a commit of some of the changes, those equal what the new tree says and go; the
 * others stay, and nothing can collide. When the branch moves, each name that others changed and
 * this overlay has too is either the same change (goes), no change (goes, so that the new content
 * shows), or a collision. States of a table (struct table_formats) collide without the same name.
 *
 * The result is always a new overlay, which no branch record names yet: the swap that follows is
 * one small batch whatever the size, and a crash before it leaves garbage that opening removes. A
 * directory is written after what is in it, and only when something stays, so memory is bounded by
 * the batch and the inodes with several names.
 *
 * "In place": an overlay directory whose base tree is the tree that its path has in `before`; only
 * such a directory can go on over another tree. One that was made here or came from elsewhere by
 * renaming keeps its own tree (when `before` has nothing there, it is in place over the empty one).
 */
#include <limits.h>

#include "fs/snapshot.h"

#define BATCH_BYTES ((size_t)256 << 10)

/* An inode with several names: how many of them stay. */
struct linked {
	uint64_t number;
	struct inode inode;
	uint32_t names;
	UT_hash_handle hh;
};

struct rebase {
	struct worktrees *trees;
	uint64_t from, to;
	const struct stored *stored;
	bool whole, rehearse;
	uint64_t compare_bytes_max;
	size_t writers; /* inodes of the overlay that are open for writing */
	struct state_batch batch;
	struct linked *linked;
	struct path path;
	struct names *collisions;
	void (*collided)(void *context, const char *path);
	void *context;
	struct message *message;
};

/* A directory's place in the two trees. */
struct sides {
	struct pointer before, after;
};

/* -- writing -- */

static int flush(struct rebase *rebase, size_t above)
{
	/* Not even the first of it may have found memory. */
	if (rebase->batch.bytes.length <= above)
		return buffer_check(&rebase->batch.bytes);
	int error = rebase->rehearse
	                    ? 0
	                    : overlay_commit(rebase->trees, &rebase->batch, rebase->message);
	state_batch_release(&rebase->batch);
	rebase->batch = (struct state_batch){0};
	return error;
}

static int keep_inode(struct rebase *rebase, const struct inode *inode)
{
	if (S_ISDIR(inode->attributes.mode) || inode->nlink <= 1) {
		overlay_put_inode(&rebase->batch, rebase->to, inode);
		return 0;
	}
	struct linked *linked;
	HASH_FIND(hh, rebase->linked, &inode->number, sizeof(inode->number), linked);
	if (!linked) {
		linked = calloc(1, sizeof(*linked));
		if (!linked)
			return -ERR_NO_MEMORY;
		int error = inode_copy(inode, &linked->inode);
		if (error) {
			free(linked);
			return error;
		}
		linked->number = inode->number;
		HASH_ADD(hh, rebase->linked, number, sizeof(linked->number), linked);
		if (!linked->hh.tbl) {
			inode_release(&linked->inode);
			free(linked);
			return -ERR_NO_MEMORY;
		}
	}
	linked->names++;
	return 0;
}

static int write_linked(struct rebase *rebase)
{
	struct linked *linked, *next;
	HASH_ITER (hh, rebase->linked, linked, next) {
		linked->inode.nlink = linked->names;
		overlay_put_inode(&rebase->batch, rebase->to, &linked->inode);
		int error = flush(rebase, BATCH_BYTES);
		if (error)
			return error;
	}
	return 0;
}

static int keep_entry(struct rebase *rebase, uint64_t directory, const struct overlay_entry *entry)
{
	if (entry->whiteout)
		overlay_put_whiteout(&rebase->batch, rebase->to, directory, entry->name,
		                     entry->name_length);
	else
		overlay_put_entry(&rebase->batch, rebase->to, directory, entry->name,
		                  entry->name_length, entry->number, entry->mode);
	return flush(rebase, BATCH_BYTES);
}

static int collide(struct rebase *rebase)
{
	names_add(rebase->collisions, rebase->path.text);
	if (rebase->collided)
		rebase->collided(rebase->context, rebase->path.text);
	return 0;
}

/* -- keeping all of something -- */

static int keep_all_below(struct rebase *rebase, const struct inode *directory, unsigned depth);

struct keep_level {
	struct rebase *rebase;
	uint64_t directory;
	unsigned depth;
};

static int keep_one(void *context, const struct overlay_entry *entry)
{
	struct keep_level *level = context;
	struct rebase *rebase = level->rebase;
	int error = keep_entry(rebase, level->directory, entry);
	if (error || entry->whiteout)
		return error;
	CLEANUP(inode_release) struct inode inode = {0};
	error = overlay_read_inode(rebase->trees, rebase->from, entry->number, &inode);
	if (!error && S_ISDIR(inode.attributes.mode))
		error = keep_all_below(rebase, &inode, level->depth + 1);
	else if (!error)
		error = keep_inode(rebase, &inode);
	return error;
}

/* The directory, its entries and all below, as they are. */
static int keep_all_below(struct rebase *rebase, const struct inode *directory, unsigned depth)
{
	struct keep_level level = {rebase, directory->number, depth};
	if (depth > PATH_BYTES_MAX / 2)
		return fail(rebase->message, -ERR_TOO_LARGE,
		            "directories below '%.200s' are too deep", rebase->path.text);
	int error = overlay_entries(rebase->trees, rebase->from, directory->number, NULL, 0,
	                            keep_one, &level);
	return error ? error : keep_inode(rebase, directory);
}

static int keep_whole(struct rebase *rebase, uint64_t directory, const struct overlay_entry *entry,
                      const struct inode *inode)
{
	int error = keep_entry(rebase, directory, entry);
	if (error)
		return error;
	return S_ISDIR(inode->attributes.mode) ? keep_all_below(rebase, inode, 0)
	                                       : keep_inode(rebase, inode);
}

/* -- names -- */

/* One name of an overlay directory with what the two trees have there (NULL: nothing). */
struct name {
	uint64_t directory;
	const struct overlay_entry *entry;
	struct inode inode;
	struct tree_entry *before, *after;
	bool same_entries; /* before and after are the same, times aside */
};

static void name_release(struct name *name)
{
	inode_release(&name->inode);
	free(name->before);
	free(name->after);
}

static int name_read(struct rebase *rebase, const struct sides *sides, struct name *name)
{
	const struct overlay_entry *entry = name->entry;
	struct odb *odb = rebase->trees->odb;
	int error = 0;
	if (!entry->whiteout)
		error = overlay_read_inode(rebase->trees, rebase->from, entry->number,
		                           &name->inode);
	if (error)
		return error == -ERR_NOT_FOUND ? -ERR_CORRUPT : error;
	error = tree_lookup(odb, &sides->before, entry->name, entry->name_length, &name->before,
	                    rebase->message);
	if (error && error != -ERR_NOT_FOUND)
		return error;
	error = tree_lookup(odb, &sides->after, entry->name, entry->name_length, &name->after,
	                    rebase->message);
	if (error && error != -ERR_NOT_FOUND)
		return error;
	name->same_entries = (!name->before && !name->after) ||
	                     (name->before && name->after &&
	                      tree_entry_same_but_time(name->before, name->after));
	return 0;
}

static int rebase_whiteout(struct rebase *rebase, const struct name *name, bool *kept)
{
	if (!name->after || !name->before)
		return 0; /* gone on both sides, or it hid nothing */
	if (!rebase->stored && !name->same_entries)
		return collide(rebase);
	*kept = true;
	return keep_entry(rebase, name->directory, name->entry);
}

static int rebase_file(struct rebase *rebase, const struct name *name, bool *kept)
{
	const struct inode *inode = &name->inode;
	struct worktrees *trees = rebase->trees;
	bool matches = false;
	int error = 0;
	bool open = inode->staging && worktree_writers(trees, inode->number);
	if (!open && !(name->same_entries && !rebase->stored)) {
		/* nobody's change: what is in the new tree shows */
		if (name->before && !(inode->staging && rebase->stored))
			error = inode_matches(trees, inode, name->before, NULL,
			                      rebase->compare_bytes_max, &matches, rebase->message);
		if (!error && !matches && name->after)
			error = inode_matches(trees, inode, name->after, rebase->stored,
			                      rebase->compare_bytes_max, &matches, rebase->message);
		if (error || matches)
			return error;
		if (!rebase->stored)
			return collide(rebase);
	}
	if (open && !rebase->stored && !name->same_entries)
		return collide(rebase);
	*kept = true;
	return keep_whole(rebase, name->directory, name->entry, inode);
}

static int rebase_directory(struct rebase *rebase, const struct inode *directory,
                            const struct sides *sides, bool *kept);

static int stop_at_change(void *context, const struct change *change)
{
	return 1;
}

/* -- what is open for writing -- */

struct open_below {
	struct rebase *rebase;
	unsigned depth;
};

/* 1: yes. */
static int is_open_below(void *context, const struct overlay_entry *entry)
{
	struct open_below *level = context, below = {level->rebase, level->depth + 1};
	if (entry->whiteout)
		return 0;
	if (!S_ISDIR(entry->mode))
		return worktree_writers(level->rebase->trees, entry->number) > 0;
	if (below.depth > PATH_BYTES_MAX / 2)
		return -ERR_TOO_LARGE;
	return overlay_entries(level->rebase->trees, level->rebase->from, entry->number, NULL, 0,
	                       is_open_below, &below);
}

static int open_below(struct rebase *rebase, const struct inode *directory)
{
	struct open_below level = {rebase, 0};
	if (!rebase->writers)
		return 0;
	return overlay_entries(rebase->trees, rebase->from, directory->number, NULL, 0,
	                       is_open_below, &level);
}

/* Is an overlay directory, with all below, as the committed one? */
static int directory_matches(struct rebase *rebase, const struct inode *inode,
                             const struct tree_entry *entry, bool *ret_matches)
{
	struct tree_entry mine;
	*ret_matches = false;
	if (!entry || !S_ISDIR(entry->attributes.mode))
		return 0;
	int result = entry_of_inode(rebase->trees, inode, "", 0, &mine);
	if (result || !attributes_match(&mine, entry))
		return result;
	const struct changes_options options = {
	        .compare_bytes_max = rebase->compare_bytes_max,
	        .stored = rebase->stored,
	};
	size_t length = rebase->path.length;
	result = changes_walk(rebase->trees, rebase->from, inode, &entry->content.pointer,
	                      &rebase->path, &options, stop_at_change, NULL, rebase->message);
	path_pop(&rebase->path, length);
	*ret_matches = result == 0;
	return result < 0 ? result : 0;
}

/* The attributes that a directory with a place in the new tree has from now on. *ret_differs: from
 * what that tree says. */
static int merge_attributes(struct rebase *rebase, struct inode *inode,
                            const struct tree_entry *before, const struct tree_entry *after,
                            bool *ret_differs)
{
	struct tree_entry mine;
	*ret_differs = false;
	int error = entry_of_inode(rebase->trees, inode, "", 0, &mine);
	if (error)
		return error;
	if (attributes_match(&mine, after)) {
		*ret_differs = false;
	} else if (before && attributes_match(&mine, before)) {
		inode->attributes = after->attributes;
		if (after->xattrs == inode->xattrs)
			return 0;
		free(inode->xattrs);
		inode->xattrs = NULL;
		inode->xattrs_length = 0;
		if (after->xattrs_length) {
			inode->xattrs = malloc(after->xattrs_length);
			if (!inode->xattrs)
				return -ERR_NO_MEMORY;
			memcpy(inode->xattrs, after->xattrs, after->xattrs_length);
			inode->xattrs_length = after->xattrs_length;
		}
	} else {
		*ret_differs = true;
		if (!rebase->stored && !(before && attributes_match(before, after)))
			return collide(rebase);
	}
	return 0;
}

/* An overlay directory in place goes on over the new tree's directory. */
static int rebase_in_place(struct rebase *rebase, struct name *name, const struct pointer *tree,
                           bool *kept)
{
	bool below = false, differs = false;
	const struct sides sides = {*tree, name->after->content.pointer};
	const struct tree_entry *was =
	        name->before && S_ISDIR(name->before->attributes.mode) ? name->before : NULL;
	int error = merge_attributes(rebase, &name->inode, was, name->after, &differs);
	if (!error)
		error = rebase_directory(rebase, &name->inode, &sides, &below);
	if (error || !(below || differs))
		return error;
	*kept = true;
	name->inode.tree = sides.after;
	error = keep_inode(rebase, &name->inode);
	return error ? error : keep_entry(rebase, name->directory, name->entry);
}

static int rebase_subdirectory(struct rebase *rebase, struct name *name, bool *kept)
{
	bool was = name->before && S_ISDIR(name->before->attributes.mode);
	bool is = name->after && S_ISDIR(name->after->attributes.mode);
	struct pointer before = was ? name->before->content.pointer : pointer_none;
	bool in_place = id_equal(&name->inode.tree.id, &before.id);
	bool matches = false;
	int error;

	/* When all of the overlay is in the new tree, wherever a directory came from all of it is.
	 */
	if (rebase->whole && is)
		return rebase_in_place(rebase, name, &name->inode.tree, kept);
	if (!rebase->stored && name->same_entries) {
		*kept = true;
		return keep_whole(rebase, name->directory, name->entry, &name->inode);
	}
	if (in_place && is)
		return rebase_in_place(rebase, name, &before, kept);
	if (rebase->stored) { /* not committed, or not from here */
		error = directory_matches(rebase, &name->inode, name->after, &matches);
		if (error || matches)
			return error;
		*kept = true;
		return keep_whole(rebase, name->directory, name->entry, &name->inode);
	}
	/* Others removed or replaced it: fine when nothing was changed in it here, or the same, and
	 * nothing is about to be. */
	error = open_below(rebase, &name->inode);
	if (error < 0)
		return error;
	if (error)
		return collide(rebase);
	error = directory_matches(rebase, &name->inode, in_place ? name->before : name->after,
	                          &matches);
	if (error || matches)
		return error;
	return collide(rebase);
}

/* -- states of a table -- */

/* What a side did to them. One that wrote a state, or took one back, has nothing to do with a state
 * that the other side wrote. */
struct states {
	bool written, removed;
};

static bool states_collide(const struct states *a, const struct states *b)
{
	return (a->written && (b->written || b->removed)) || (a->removed && b->written);
}

static void diff_release(struct tree_diff **diff)
{
	tree_diff_free(*diff);
}

static bool is_state(const struct rebase *rebase)
{
	const struct table_formats *tables = rebase->trees->tables;
	return tables && !rebase->stored && tables->is_state(rebase->path.text);
}

/* By others, below the directory that rebase->path names; those that are here too aside: both sides
 * have them alike, or their path collides. */
static int read_states(struct rebase *rebase, uint64_t directory, const struct sides *sides,
                       struct states *ret_states)
{
	CLEANUP(diff_release) struct tree_diff *diff = NULL;
	struct tree_change change;
	int error = tree_diff_new(rebase->trees->odb, &sides->before, &sides->after, &diff);
	while (!error && (error = tree_diff_next(diff, &change, rebase->message)) == 0) {
		const struct tree_entry *entry = change.after ? change.after : change.before;
		size_t length = rebase->path.length;
		error = path_push(&rebase->path, entry->name, entry->name_length, rebase->message);
		bool state = !error && is_state(rebase);
		path_pop(&rebase->path, length);
		if (!state || (change.before && change.after &&
		               tree_entry_same_but_time(change.before, change.after)))
			continue;
		struct overlay_entry mine;
		error = overlay_read_entry(rebase->trees, rebase->from, directory, entry->name,
		                           entry->name_length, &mine);
		if (error == -ERR_NOT_FOUND) {
			ret_states->written |= change.after != NULL;
			ret_states->removed |= change.after == NULL;
			error = 0;
		}
	}
	return error == -ERR_NOT_FOUND ? 0 : error;
}

struct level {
	struct rebase *rebase;
	uint64_t directory;
	const struct sides *sides;
	bool kept;
	struct states states; /* that stay */
};

/* Two states that each follow the same one meet in no path, and all that the one knows would be
 * lost to whoever reads the other. */
static int check_states(const struct level *level)
{
	struct rebase *rebase = level->rebase;
	const struct sides *sides = level->sides;
	struct states others = {0};
	if (!(level->states.written || level->states.removed) ||
	    id_equal(&sides->before.id, &sides->after.id))
		return 0;
	int error = read_states(rebase, level->directory, sides, &others);
	if (error)
		return error;
	/* A table that writes a state removes old ones. */
	others.removed = others.removed && !others.written;
	struct states mine = level->states;
	mine.removed = mine.removed && !mine.written;
	return states_collide(&mine, &others) ? collide(rebase) : 0;
}

static int rebase_entry(void *context, const struct overlay_entry *entry)
{
	struct level *level = context;
	struct rebase *rebase = level->rebase;
	CLEANUP(name_release) struct name name = {.directory = level->directory, .entry = entry};
	size_t length = rebase->path.length;
	int error = path_push(&rebase->path, entry->name, entry->name_length, rebase->message);
	if (!error)
		error = name_read(rebase, level->sides, &name);
	if (error)
		return error;
	bool kept = false;
	if (entry->whiteout)
		error = rebase_whiteout(rebase, &name, &kept);
	else if (S_ISDIR(name.inode.attributes.mode))
		error = rebase_subdirectory(rebase, &name, &kept);
	else
		error = rebase_file(rebase, &name, &kept);
	if (kept && is_state(rebase)) {
		level->states.written |= !entry->whiteout;
		level->states.removed |= entry->whiteout;
	}
	level->kept |= kept;
	path_pop(&rebase->path, length);
	return error;
}

/* What is in an overlay directory that is in place. */
static int rebase_directory(struct rebase *rebase, const struct inode *directory,
                            const struct sides *sides, bool *kept)
{
	struct level level = {rebase, directory->number, sides, false, {0}};
	int error = overlay_entries(rebase->trees, rebase->from, directory->number, NULL, 0,
	                            rebase_entry, &level);
	*kept = level.kept;
	return error ? error : check_states(&level);
}

/* -- all of it -- */

static void rebase_release(struct rebase *rebase)
{
	struct linked *linked, *next;
	HASH_ITER (hh, rebase->linked, linked, next) {
		HASH_DEL(rebase->linked, linked);
		inode_release(&linked->inode);
		free(linked);
	}
	state_batch_release(&rebase->batch);
}

static int rebase_root(struct rebase *rebase, const struct rebase_options *options, bool *ret_kept)
{
	const struct ground *ground = options->ground;
	CLEANUP(inode_release) struct inode root = {0};
	bool differs = false;
	struct tree_entry before = {.name = "", .attributes = ground->attributes};
	struct tree_entry after = {.name = "", .attributes = options->after.root};
	const struct sides sides = {ground->tree, options->after.tree};
	int error = overlay_read_inode(rebase->trees, rebase->from, ground->root, &root);
	if (error)
		return error == -ERR_NOT_FOUND ? -ERR_CORRUPT : error;
	if (root.xattrs_length) { /* a commit has no place for the root's */
		before.xattrs = after.xattrs = root.xattrs;
		before.xattrs_length = after.xattrs_length = root.xattrs_length;
	}
	error = merge_attributes(rebase, &root, &before, &after, &differs);
	if (!error)
		error = rebase_directory(rebase, &root, &sides, ret_kept);
	*ret_kept = *ret_kept || differs;
	if (error || !*ret_kept)
		return error;
	root.tree = sides.after;
	return keep_inode(rebase, &root);
}

int rebase_overlay(const struct rebase_options *options, uint64_t *ret_overlay, uint64_t *ret_root,
                   struct names *ret_collisions, struct message *message)
{
	const struct ground *ground = options->ground;
	*ret_overlay = 0;
	*ret_root = 0;
	if (!ground->overlay)
		return 0;
	CLEANUP(rebase_release)
	struct rebase rebase = {
	        .trees = ground->trees,
	        .from = ground->overlay,
	        .to = options->rehearse ? ground->overlay : overlay_new(ground->trees),
	        .stored = options->stored,
	        .whole = options->whole,
	        .rehearse = options->rehearse,
	        .compare_bytes_max =
	                options->compare_bytes_max ? options->compare_bytes_max : UINT64_MAX,
	        .collisions = ret_collisions,
	        .collided = options->collided,
	        .context = options->context,
	        .message = message,
	};
	bool kept = false;
	if (!rebase.to)
		return fail(message, -ERR_NO_SPACE,
		            "cannot write to the journal of uncommitted changes: %s",
		            error_text(-ERR_NO_SPACE));
	int error = overlay_writers(ground->trees, ground->overlay, &rebase.writers);
	if (!error)
		error = rebase_root(&rebase, options, &kept);
	if (!error)
		error = write_linked(&rebase);
	if (!error && ret_collisions->count)
		error = -ERR_CONFLICT;
	if (!error)
		error = flush(&rebase, 0);
	if (options->rehearse)
		return error;
	if (error || !kept) {
		overlay_discard(ground->trees, rebase.to, ground->overlay);
		return error;
	}
	*ret_overlay = rebase.to;
	*ret_root = ground->root;
	return 0;
}
