/*
 * worktree_changes — hides how what is uncommitted is found: an overlay's names joined with the
 * difference between the tree each directory came from and the tree it is compared with.
 *
 * Both are in order of names, so the walk streams in path order and costs what changed: a
 * directory that is not in the overlay and came along unchanged is never read.
 *
 * When a staged file says nothing new is a decision of cost: other size or other attributes than
 * committed is a change at once; the same size means its bytes are hashed, piece by piece until
 * one differs, if the file is not larger than the caller's limit; beyond that it counts as
 * modified.
 */
#include <unistd.h>

#include "fs/snapshot.h"
#include "store/chunker.h"

/* -- inodes as entries -- */

static bool is_staged(const struct inode *inode)
{
	return S_ISREG(inode->attributes.mode) && inode->staging;
}

struct tree_entry entry_of_status(const struct inode *inode, const struct stat *status,
                                  const char *name, size_t name_length)
{
	struct tree_entry entry = {
	        .name = name,
	        .name_length = name_length,
	        .attributes = inode->attributes,
	        .xattrs = inode->xattrs_length ? inode->xattrs : NULL,
	        .xattrs_length = inode->xattrs_length,
	};
	if (S_ISDIR(inode->attributes.mode)) {
		entry.content.pointer = inode->tree;
	} else if (S_ISLNK(inode->attributes.mode)) {
		entry.target = inode->target;
		entry.target_length = inode->target_length;
	} else if (is_staged(inode)) {
		entry.content.size = (uint64_t)status->st_size;
		entry.attributes.mtime_ns =
		        (int64_t)status->st_mtim.tv_sec * 1000000000 + status->st_mtim.tv_nsec;
	} else if (S_ISREG(inode->attributes.mode)) {
		entry.content = inode->content;
	}
	return entry;
}

int entry_of_inode(struct worktrees *trees, const struct inode *inode, const char *name,
                   size_t name_length, struct tree_entry *ret_entry)
{
	struct stat status;
	int error = is_staged(inode) ? staging_stat(trees, inode->staging, &status) : 0;
	if (!error)
		*ret_entry = entry_of_status(inode, &status, name, name_length);
	return error;
}

bool attributes_match(const struct tree_entry *a, const struct tree_entry *b)
{
	return a->attributes.mode == b->attributes.mode && a->attributes.uid == b->attributes.uid &&
	       a->attributes.gid == b->attributes.gid && a->attributes.rdev == b->attributes.rdev &&
	       a->xattrs_length == b->xattrs_length &&
	       (a->xattrs_length == 0 || memcmp(a->xattrs, b->xattrs, a->xattrs_length) == 0);
}

struct compare {
	struct file_data *data;
	uint8_t *bytes; /* CHUNK_BYTES_MAX */
	struct message *message;
};

/* 1: differs. A chunk's id is the hash of its bytes, so nothing is fetched to compare. */
static int compare_piece(void *context, const struct piece *piece)
{
	struct compare *compare = context;
	for (uint64_t done = 0; done < piece->length;) {
		uint64_t left = piece->length - done;
		size_t length = left < CHUNK_BYTES_MAX ? (size_t)left : CHUNK_BYTES_MAX;
		ssize_t got = file_data_read(compare->data, compare->bytes, length,
		                             piece->offset + done, compare->message);
		if (got < 0)
			return (int)got;
		if ((size_t)got != length)
			return 1;
		if (piece->hole) {
			if (!is_zero(compare->bytes, length))
				return 1;
		} else {
			struct id id;
			if (length != piece->length) /* no chunk is that long */
				return -ERR_CORRUPT;
			sha256_of(compare->bytes, length, &id);
			if (!id_equal(&id, &piece->pointer.id))
				return 1;
		}
		done += length;
	}
	return 0;
}

static void file_data_cleanup(struct file_data **data)
{
	if (*data)
		file_data_close(*data);
}

/* A staged file against committed content of the same size. */
static int bytes_match(struct worktrees *trees, const struct inode *inode,
                       const struct content *content, bool *ret_match, struct message *message)
{
	CLEANUP(file_data_cleanup) struct file_data *data = NULL;
	CLEANUP(free_pointer) uint8_t *bytes = malloc(CHUNK_BYTES_MAX);
	if (!bytes)
		return -ERR_NO_MEMORY;
	int error = file_data_open(trees, inode, false, &data, message);
	if (error)
		return error;
	struct compare compare = {data, bytes, message};
	int result = content_pieces(trees->odb, content, 0, content->size, compare_piece, &compare,
	                            message);
	if (result < 0)
		return result;
	*ret_match = result == 0;
	return 0;
}

int inode_matches(struct worktrees *trees, const struct inode *inode,
                  const struct tree_entry *entry, const struct stored *stored,
                  uint64_t compare_bytes_max, bool *ret_matches, struct message *message)
{
	struct tree_entry mine;
	int error = entry_of_inode(trees, inode, entry->name, entry->name_length, &mine);
	if (error)
		return error;
	if (!S_ISREG(mine.attributes.mode) || !inode->staging || !S_ISREG(entry->attributes.mode)) {
		*ret_matches = tree_entry_same_but_time(&mine, entry);
		return 0;
	}
	bool matches = attributes_match(&mine, entry) && mine.content.size == entry->content.size;
	if (!matches || mine.content.size == 0) {
		*ret_matches = matches;
		return 0;
	}
	if (stored) {
		const struct stored_file *file = stored_find(stored, inode->number);
		*ret_matches = file && file->used && !file->open &&
		               file->size == entry->content.size &&
		               id_equal(&file->id, &entry->content.pointer.id);
		return 0;
	}
	*ret_matches = false;
	if (mine.content.size > compare_bytes_max)
		return 0;
	return bytes_match(trees, inode, &entry->content, ret_matches, message);
}

/* -- the walk -- */

struct walk {
	struct worktrees *trees;
	uint64_t overlay;
	const struct changes_options *options;
	struct path *path;
	change_fn *callback;
	void *context;
	struct message *message;
};

static int walk_directory(struct walk *walk, const struct inode *directory,
                          const struct pointer *before);

static bool walk_wants(const struct walk *walk)
{
	return !walk->options->paths || path_set_has(walk->options->paths, walk->path->text);
}

/* The path, or anything that can be below it. */
static bool walk_enters(const struct walk *walk)
{
	return walk_wants(walk) || path_set_above(walk->options->paths, walk->path->text);
}

static int walk_report(struct walk *walk, enum change_kind kind, const struct tree_entry *before,
                       const struct tree_entry *after)
{
	if (!walk_wants(walk))
		return 0;
	struct change change = {
	        .kind = kind,
	        .path = walk->path->text,
	        .path_length = walk->path->length,
	        .before = before,
	        .after = after,
	};
	return walk->callback(walk->context, &change);
}

/* A change between two committed trees, seen from the walk's path. */
static int walk_committed_change(void *context, const struct change *change)
{
	struct walk *walk = context;
	size_t length = walk->path->length;
	int result = path_push(walk->path, change->path, change->path_length, walk->message);
	if (!result)
		result = walk_report(walk, change->kind, change->before, change->after);
	path_pop(walk->path, length);
	return result;
}

static int walk_trees(struct walk *walk, const struct pointer *before, const struct pointer *after)
{
	const struct diff_options options = {0};
	return diff_trees(walk->trees->odb, before, after, &options, walk_committed_change, walk,
	                  walk->message);
}

/* Everything a committed entry stands for came or went. */
static int walk_one_sided(struct walk *walk, enum change_kind kind, const struct tree_entry *entry)
{
	const struct tree_entry *before = kind == CHANGE_REMOVED ? entry : NULL;
	const struct tree_entry *after = kind == CHANGE_ADDED ? entry : NULL;
	const struct pointer *tree = &entry->content.pointer;
	if (!S_ISDIR(entry->attributes.mode) || pointer_is_none(tree))
		return walk_report(walk, kind, before, after);
	return kind == CHANGE_REMOVED ? walk_trees(walk, tree, &pointer_none)
	                              : walk_trees(walk, &pointer_none, tree);
}

static bool same_type(const struct tree_entry *a, const struct tree_entry *b)
{
	return (a->attributes.mode & S_IFMT) == (b->attributes.mode & S_IFMT);
}

/* Both committed, from a directory that came from elsewhere. */
static int walk_committed(struct walk *walk, const struct tree_entry *before,
                          const struct tree_entry *after)
{
	int result = 0;
	if (before && (!after || !same_type(before, after)))
		result = walk_one_sided(walk, CHANGE_REMOVED, before);
	if (!result && after && (!before || !same_type(before, after)))
		return walk_one_sided(walk, CHANGE_ADDED, after);
	if (result || !before || !after)
		return result;
	if (S_ISDIR(after->attributes.mode)) {
		if (!attributes_match(before, after))
			result = walk_report(walk, CHANGE_MODE, before, after);
		return result ? result
		              : walk_trees(walk, &before->content.pointer, &after->content.pointer);
	}
	if (tree_entry_same_but_time(before, after))
		return 0;
	bool content = !content_equal(&before->content, &after->content) ||
	               before->target_length != after->target_length ||
	               (before->target &&
	                memcmp(before->target, after->target, before->target_length) != 0);
	return walk_report(walk, content ? CHANGE_MODIFIED : CHANGE_MODE, before, after);
}

static int count_entry(void *context, const struct overlay_entry *entry)
{
	uint64_t *hidden = context;
	if (!entry->whiteout)
		return 1;
	++*hidden;
	return 0;
}

/* Nothing is in an overlay directory: all its names are whiteouts and hide all of its tree. */
static int directory_empty(struct walk *walk, const struct inode *directory, bool *ret_empty)
{
	uint64_t hidden = 0, below = 0;
	*ret_empty = false;
	int result = overlay_entries(walk->trees, walk->overlay, directory->number, NULL, 0,
	                             count_entry, &hidden);
	if (result)
		return result < 0 ? result : 0;
	result = tree_count(walk->trees->odb, &directory->tree, &below, walk->message);
	*ret_empty = hidden == below;
	return result;
}

static int walk_overlay_directory(struct walk *walk, const struct inode *inode,
                                  const struct tree_entry *before, const struct tree_entry *after)
{
	if (before && S_ISDIR(before->attributes.mode)) {
		int result = 0;
		if (!attributes_match(before, after))
			result = walk_report(walk, CHANGE_MODE, before, after);
		return result ? result : walk_directory(walk, inode, &before->content.pointer);
	}
	bool empty;
	int result = before ? walk_one_sided(walk, CHANGE_REMOVED, before) : 0;
	if (!result)
		result = directory_empty(walk, inode, &empty);
	if (!result && empty)
		return walk_report(walk, CHANGE_ADDED, NULL, after);
	return result ? result : walk_directory(walk, inode, &pointer_none);
}

static int walk_overlay_file(struct walk *walk, const struct inode *inode,
                             const struct tree_entry *before, const struct tree_entry *after)
{
	if (!before)
		return walk_report(walk, CHANGE_ADDED, NULL, after);
	if (!same_type(before, after)) {
		int result = walk_one_sided(walk, CHANGE_REMOVED, before);
		return result ? result : walk_report(walk, CHANGE_ADDED, NULL, after);
	}
	if (!inode->staging)
		return walk_committed(walk, before, after);
	/* the bytes alone: the attributes as they were before */
	bool matches = after->content.size == before->content.size;
	if (matches) {
		struct inode bare = *inode;
		struct tree_entry plain = *before;
		bare.attributes = before->attributes;
		bare.xattrs_length = plain.xattrs_length = 0;
		int error =
		        inode_matches(walk->trees, &bare, &plain, walk->options->stored,
		                      walk->options->compare_bytes_max, &matches, walk->message);
		if (error) /* removed meanwhile: its bytes are not there to compare */
			return error == -ERR_STALE || error == -ERR_NOT_FOUND ? 0 : error;
	}
	if (!matches)
		return walk_report(walk, CHANGE_MODIFIED, before, after);
	return attributes_match(before, after) ? 0 : walk_report(walk, CHANGE_MODE, before, after);
}

/* A name of the overlay; `before` is what it is compared with, NULL when there is nothing. */
static int walk_overlay_entry(struct walk *walk, const struct overlay_entry *entry,
                              const struct tree_entry *before)
{
	if (entry->whiteout)
		return before ? walk_one_sided(walk, CHANGE_REMOVED, before) : 0;
	CLEANUP(inode_release) struct inode inode = {0};
	struct tree_entry after;
	int error = overlay_read_inode(walk->trees, walk->overlay, entry->number, &inode);
	if (!error)
		error = entry_of_inode(walk->trees, &inode, entry->name, entry->name_length,
		                       &after);
	if (error == -ERR_NOT_FOUND) /* removed, or another staging file, since the name was read */
		return 0;
	if (error)
		return error;
	return S_ISDIR(inode.attributes.mode) ? walk_overlay_directory(walk, &inode, before, &after)
	                                      : walk_overlay_file(walk, &inode, before, &after);
}

/* The two streams of one directory. */
struct join {
	struct overlay_cursor *cursor;
	struct tree_diff *diff;            /* NULL: the directory's tree is the one compared with */
	const struct overlay_entry *entry; /* NULL: at its end */
	struct tree_change change;         /* both NULL: at its end */
};

static void join_release(struct join *join)
{
	overlay_cursor_free(join->cursor);
	if (join->diff)
		tree_diff_free(join->diff);
}

static int join_next_entry(struct join *join)
{
	int error = overlay_cursor_next(join->cursor, &join->entry);
	if (error)
		join->entry = NULL;
	return error == -ERR_NOT_FOUND ? 0 : error;
}

static int join_next_change(struct join *join, struct message *message)
{
	join->change = (struct tree_change){0};
	if (!join->diff)
		return 0;
	int error = tree_diff_next(join->diff, &join->change, message);
	if (error)
		join->change = (struct tree_change){0};
	return error == -ERR_NOT_FOUND ? 0 : error;
}

/* < 0: the overlay's name comes first, 0: the same name, > 0: the diff's. */
static int join_order(const struct join *join)
{
	const struct tree_entry *other =
	        join->change.before ? join->change.before : join->change.after;
	if (!join->entry || !other)
		return join->entry ? -1 : 1;
	size_t a = join->entry->name_length, b = other->name_length;
	int order = memcmp(join->entry->name, other->name, a < b ? a : b);
	return order ? order : (a > b) - (a < b);
}

/* One name: what comes first in the streams. */
static int walk_name(struct walk *walk, struct join *join, const struct pointer *before)
{
	int order = join_order(join), result = 0;
	const struct tree_entry *other =
	        join->change.before ? join->change.before : join->change.after;
	const char *name = order <= 0 ? join->entry->name : other->name;
	size_t name_length = order <= 0 ? join->entry->name_length : other->name_length;
	size_t length = walk->path->length;
	result = path_push(walk->path, name, name_length, walk->message);
	if (result)
		return result;
	if (walk_enters(walk) && order > 0) {
		result = walk_committed(walk, join->change.before, join->change.after);
	} else if (walk_enters(walk) && order == 0) {
		result = walk_overlay_entry(walk, join->entry, join->change.before);
	} else if (walk_enters(walk)) {
		CLEANUP(free_pointer) struct tree_entry *committed = NULL;
		result = tree_lookup(walk->trees->odb, before, name, name_length, &committed,
		                     walk->message);
		if (!result || result == -ERR_NOT_FOUND)
			result = walk_overlay_entry(walk, join->entry, committed);
	}
	path_pop(walk->path, length);
	if (!result && order <= 0)
		result = join_next_entry(join);
	if (!result && order >= 0)
		result = join_next_change(join, walk->message);
	return result;
}

static int walk_directory(struct walk *walk, const struct inode *directory,
                          const struct pointer *before)
{
	CLEANUP(join_release) struct join join = {0};
	int result = overlay_cursor_new(walk->trees, walk->overlay, directory->number, NULL, 0,
	                                &join.cursor);
	if (!result && !id_equal(&directory->tree.id, &before->id))
		result = tree_diff_new(walk->trees->odb, before, &directory->tree, &join.diff);
	if (!result)
		result = join_next_entry(&join);
	if (!result)
		result = join_next_change(&join, walk->message);
	while (!result && (join.entry || join.change.before || join.change.after))
		result = walk_name(walk, &join, before);
	return result;
}

int changes_walk(struct worktrees *trees, uint64_t overlay, const struct inode *directory,
                 const struct pointer *before, struct path *at,
                 const struct changes_options *options, change_fn *callback, void *context,
                 struct message *message)
{
	struct walk walk = {
	        .trees = trees,
	        .overlay = overlay,
	        .options = options,
	        .path = at,
	        .callback = callback,
	        .context = context,
	        .message = message,
	};
	return walk_directory(&walk, directory, before);
}

/* -- the whole working tree -- */

/* The root itself is reported as "." when its attributes changed. */
static int ground_changes(const struct ground *ground, const struct changes_options *options,
                          change_fn *callback, void *context, struct message *message)
{
	if (!ground->overlay)
		return 0;
	CLEANUP(inode_release) struct inode root = {0};
	struct path at = {0};
	struct tree_entry after,
	        before = {.name = ".", .name_length = 1, .attributes = ground->attributes};
	int error = overlay_read_inode(ground->trees, ground->overlay, ground->root, &root);
	if (!error)
		error = entry_of_inode(ground->trees, &root, ".", 1, &after);
	if (error)
		return error;
	before.content = after.content;
	bool whole = !options->paths || options->paths->count == 0;
	if (whole && !attributes_match(&before, &after)) {
		struct change change = {CHANGE_MODE, ".", 1, &before, &after};
		error = callback(context, &change);
		if (error)
			return error;
	}
	return changes_walk(ground->trees, ground->overlay, &root, &ground->tree, &at, options,
	                    callback, context, message);
}

static int stop_at_change(void *context, const struct change *change)
{
	return 1;
}

int ground_changed(const struct ground *ground, bool *ret_changed, struct message *message)
{
	const struct changes_options options = {.compare_bytes_max = COMPARE_BYTES_MAX};
	int result = ground_changes(ground, &options, stop_at_change, NULL, message);
	if (result < 0)
		return result;
	*ret_changed = result != 0;
	return 0;
}

/* The gate, shared: names may come and go meanwhile, but nobody swaps the overlay. */
static int enter_now(struct worktree *worktree, struct worktree_view *ret_view)
{
	for (;;) {
		int error = worktree_enter(worktree, worktree_epoch(worktree));
		if (!error) {
			worktree_view(worktree, ret_view);
			return 0;
		}
		if (error != -ERR_STALE)
			return error;
	}
}

int worktree_changes(struct worktree *worktree, const char *const *paths, size_t path_count,
                     change_fn *callback, void *context, struct message *message)
{
	CLEANUP(path_set_release) struct path_set set = {0};
	struct worktree_view view;
	int error = path_set_init(&set, paths, path_count, message);
	if (!error)
		error = enter_now(worktree, &view);
	if (error)
		return error;
	struct ground ground = ground_of(worktree->trees, &view);
	const struct changes_options options = {
	        .paths = &set,
	        .compare_bytes_max = COMPARE_BYTES_MAX,
	};
	int result = ground_changes(&ground, &options, callback, context, message);
	worktree_leave(worktree);
	return result;
}

bool worktree_dirty(struct worktree *worktree)
{
	struct worktree_view view;
	if (enter_now(worktree, &view))
		return false;
	struct ground ground = ground_of(worktree->trees, &view);
	bool changed = true; /* in doubt it is */
	if (ground_changed(&ground, &changed, NULL))
		changed = true;
	worktree_leave(worktree);
	return changed;
}
