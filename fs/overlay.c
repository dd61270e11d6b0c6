/*
 * overlay.c — hides how names over a base tree are kept: which records a look-up, a list and each
 * mutation read and write, so that every mutation is one batch.
 *
 * Rules of an overlay directory D with base tree B:
 *   - an entry record overrides B's entry of that name; a whiteout hides it;
 *   - whiteouts exist only for names that B has, so D is empty when it has no entries and as many
 *     whiteouts as B has names;
 *   - D's base tree never changes while D's number is valid: it may be read before taking the
 *     table lock.
 * The whiteouts of a removed directory stay, under a number that is never used again, until the
 * overlay goes.
 */
#include "fs/worktree_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>

static void inode_cleanup(struct inode *inode)
{
	inode_release(inode);
}

/* -- reading -- */

/* A directory's record; a number that has no record is of another time. */
static int read_directory(struct worktree *worktree, uint64_t overlay, uint64_t number,
                          struct inode *ret_inode)
{
	struct inode inode;
	int r = overlay_read_inode(worktree->trees, overlay, number, &inode);
	if (r != 0)
		return r == -ERR_NOT_FOUND ? -ERR_STALE : r;
	if (!S_ISDIR(inode.attributes.mode)) {
		inode_release(&inode);
		return -ERR_NOT_DIRECTORY;
	}
	*ret_inode = inode;
	return 0;
}

static int find_committed(struct worktree *worktree, const struct pointer *tree, const char *name,
                          size_t name_length, struct found *ret_found, struct message *message)
{
	if (pointer_is_none(tree))
		return -ERR_NOT_FOUND;
	struct tree_entry *entry;
	int r = tree_lookup(worktree->trees->odb, tree, name, name_length, &entry, message);
	if (r == 0)
		*ret_found = (struct found){.mode = entry->attributes.mode, .entry = entry};
	return r;
}

int worktree_lookup(struct worktree *worktree, const struct directory *directory, const char *name,
                    size_t name_length, struct found *ret_found, struct message *message)
{
	if (name_length > NAME_BYTES_MAX)
		return fail(message, -ERR_NOT_FOUND, "name too long");
	if (directory->number == 0)
		return find_committed(worktree, &directory->tree, name, name_length, ret_found,
		                      message);
	uint64_t overlay = worktree->overlay;
	struct overlay_entry entry;
	int r = overlay_read_entry(worktree->trees, overlay, directory->number, name, name_length,
	                           &entry);
	if (r == 0 && entry.whiteout)
		return -ERR_NOT_FOUND;
	if (r == 0) {
		*ret_found = (struct found){.number = entry.number, .mode = entry.mode};
		return 0;
	}
	if (r != -ERR_NOT_FOUND)
		return fail(message, r, "cannot read the uncommitted state: %s", error_text(r));
	/* After the entry: were it the other way round, the directory could lose its last name in
	 * between, and its base would show. */
	CLEANUP(inode_cleanup) struct inode inode = {0};
	r = read_directory(worktree, overlay, directory->number, &inode);
	return r != 0 ? r
	              : find_committed(worktree, &inode.tree, name, name_length, ret_found,
	                               message);
}

int worktree_inode(struct worktree *worktree, uint64_t number, struct inode *ret_inode)
{
	int r = overlay_read_inode(worktree->trees, worktree->overlay, number, ret_inode);
	return r == -ERR_NOT_FOUND ? -ERR_STALE : r;
}

/* -- listing: two sorted streams merged -- */

struct merge {
	struct overlay_cursor *cursor;
	struct tree_iterator *iterator;
	const struct overlay_entry *over; /* NULL: ended */
	const struct tree_entry *base;    /* NULL: ended */
};

static void merge_release(struct merge *merge)
{
	overlay_cursor_free(merge->cursor);
	tree_iterator_free(merge->iterator);
}

static int advance_over(struct merge *merge)
{
	merge->over = NULL;
	int r = merge->cursor != NULL ? overlay_cursor_next(merge->cursor, &merge->over) : 0;
	return r == -ERR_NOT_FOUND ? 0 : r;
}

static int advance_base(struct merge *merge, struct message *message)
{
	merge->base = NULL;
	int r = merge->iterator != NULL ? tree_next(merge->iterator, &merge->base, message) : 0;
	return r == -ERR_NOT_FOUND ? 0 : r;
}

static int compare_heads(const struct merge *merge)
{
	if (merge->over == NULL)
		return 1;
	if (merge->base == NULL)
		return -1;
	size_t a = merge->over->name_length, b = merge->base->name_length;
	int order = memcmp(merge->over->name, merge->base->name, a < b ? a : b);
	return order != 0 ? order : a < b ? -1 : a > b;
}

static int run_merge(struct merge *merge, list_fn *callback, void *context, struct message *message)
{
	int r = advance_over(merge);
	if (r == 0)
		r = advance_base(merge, message);
	while (r == 0 && (merge->over != NULL || merge->base != NULL)) {
		int order = compare_heads(merge);
		if (order <= 0 && merge->over != NULL && !merge->over->whiteout) {
			struct found found = {.number = merge->over->number,
			                      .mode = merge->over->mode};
			r = callback(context, merge->over->name, merge->over->name_length, &found);
		} else if (order > 0 && merge->base != NULL) {
			struct found found = {.mode = merge->base->attributes.mode,
			                      .entry = (struct tree_entry *)merge->base};
			r = callback(context, merge->base->name, merge->base->name_length, &found);
		}
		if (r == 0 && order <= 0)
			r = advance_over(merge);
		if (r == 0 && order >= 0)
			r = advance_base(merge, message);
	}
	return r;
}

int worktree_list(struct worktree *worktree, const struct directory *directory, const char *after,
                  size_t after_length, list_fn *callback, void *context, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	CLEANUP(merge_release) struct merge merge = {0};
	struct pointer tree = directory->tree;
	if (directory->number != 0) {
		uint64_t overlay = worktree->overlay;
		CLEANUP(inode_cleanup) struct inode inode = {0};
		int r = read_directory(worktree, overlay, directory->number, &inode);
		if (r == 0)
			r = overlay_cursor_new(trees, overlay, directory->number, after,
			                       after_length, &merge.cursor);
		if (r != 0)
			return r;
		tree = inode.tree;
	}
	if (!pointer_is_none(&tree)) {
		int r = tree_iterate(trees->odb, &tree, after, after_length, &merge.iterator,
		                     message);
		if (r != 0)
			return r;
	}
	return run_merge(&merge, callback, context, message);
}

/* -- mutations: what they share -- */

/*
 * One name of an overlay directory, and what it is. `in_base` is found out before the table lock
 * is taken, the rest under it.
 */
struct slot {
	uint64_t parent;
	const char *name;
	size_t name_length;
	bool in_base;
	struct tree_entry *committed; /* when in_base */
	struct inode directory;       /* the parent's record */
	bool overlaid;                /* there is an entry or a whiteout */
	struct overlay_entry entry;
};

static void slot_release(struct slot *slot)
{
	free(slot->committed);
	inode_release(&slot->directory);
}

static int slot_prepare(struct worktree *worktree, uint64_t parent, const char *name,
                        size_t name_length, struct slot *slot, struct message *message)
{
	*slot = (struct slot){.parent = parent, .name = name, .name_length = name_length};
	int r = name_check(name, name_length);
	if (r != 0)
		return fail(message, r, "%s", error_text(r));
	CLEANUP(inode_cleanup) struct inode directory = {0};
	r = read_directory(worktree, worktree->overlay, parent, &directory);
	if (r != 0 || pointer_is_none(&directory.tree))
		return r;
	r = tree_lookup(worktree->trees->odb, &directory.tree, name, name_length, &slot->committed,
	                message);
	slot->in_base = r == 0;
	return r == -ERR_NOT_FOUND ? 0 : r;
}

/* Under table_lock. */
static int slot_read(struct worktree *worktree, struct slot *slot)
{
	uint64_t overlay = worktree->overlay;
	int r = read_directory(worktree, overlay, slot->parent, &slot->directory);
	if (r != 0)
		return r;
	r = overlay_read_entry(worktree->trees, overlay, slot->parent, slot->name,
	                       slot->name_length, &slot->entry);
	slot->overlaid = r == 0;
	return r == -ERR_NOT_FOUND ? 0 : r;
}

static bool slot_adopted(const struct slot *slot)
{
	return slot->overlaid && !slot->entry.whiteout;
}

static bool slot_taken(const struct slot *slot)
{
	return slot->overlaid ? !slot->entry.whiteout : slot->in_base;
}

static void slot_put(struct state_batch *batch, uint64_t overlay, const struct slot *slot,
                     uint64_t number, uint32_t mode)
{
	overlay_put_entry(batch, overlay, slot->parent, slot->name, slot->name_length, number,
	                  mode);
}

static void slot_clear(struct state_batch *batch, uint64_t overlay, const struct slot *slot)
{
	if (slot->in_base)
		overlay_put_whiteout(batch, overlay, slot->parent, slot->name, slot->name_length);
	else
		overlay_delete_entry(batch, overlay, slot->parent, slot->name, slot->name_length);
}

/* The directory's entries change now. */
static void touch_directory(struct state_batch *batch, uint64_t overlay, struct inode *directory,
                            int64_t now)
{
	directory->attributes.mtime_ns = now;
	directory->ctime_ns = now;
	overlay_put_inode(batch, overlay, directory);
}

/* One name of the inode goes. *ret_last holds it when that was the last one. */
static int drop_name(struct state_batch *batch, uint64_t overlay, struct inode *inode, int64_t now,
                     struct inode *ret_last)
{
	inode->ctime_ns = now;
	if (inode->nlink > 1) {
		inode->nlink--;
		overlay_put_inode(batch, overlay, inode);
		return 0;
	}
	inode->nlink = 0;
	overlay_delete_inode(batch, overlay, inode->number);
	return inode_copy(inode, ret_last);
}

/* Hand out what drop_name found; without a taker its staging file goes, too. */
static void give_last(struct worktree *worktree, struct inode *last, struct inode *ret_last)
{
	if (ret_last == NULL) {
		staging_remove(worktree->trees, last->staging);
		return;
	}
	*ret_last = *last;
	*last = (struct inode){0};
}

/* -- adopting -- */

static int make_root(struct worktree *worktree)
{
	struct worktrees *trees = worktree->trees;
	struct branch_record record = {.base = worktree->base, .renaming = worktree->renaming};
	record.overlay = overlay_new(trees);
	record.root = state_number(trees->state);
	if (record.overlay == 0 || record.root == 0)
		return -ERR_NO_SPACE;
	struct inode root = {
	        .number = record.root,
	        .attributes = worktree->base_root,
	        .ctime_ns = worktree->base_root.mtime_ns,
	        .nlink = 1,
	        .tree = worktree->base_tree,
	};
	CLEANUP(state_batch_release) struct state_batch batch = {0};
	branch_record_put(&batch, worktree->branch, &record);
	overlay_put_inode(&batch, record.overlay, &root);
	int r = overlay_commit(trees, &batch, NULL);
	if (r == 0) {
		worktree->overlay = record.overlay;
		worktree->root = record.root;
		worktree->intent = false;
	}
	return r;
}

int worktree_adopt_root(struct worktree *worktree, uint64_t *ret_number)
{
	struct worktrees *trees = worktree->trees;
	pthread_mutex_lock(&trees->table_lock);
	int r = worktree->overlay != 0 ? 0 : make_root(worktree);
	if (r == 0)
		*ret_number = worktree->root;
	pthread_mutex_unlock(&trees->table_lock);
	return r;
}

static int adopted_inode(struct worktrees *trees, const struct tree_entry *entry, uint64_t shown,
                         struct inode *ret_inode)
{
	struct inode inode = {
	        .number = state_number(trees->state),
	        .shown = shown,
	        .attributes = entry->attributes,
	        .ctime_ns = entry->attributes.mtime_ns,
	        .nlink = 1,
	        .target = (char *)entry->target,
	        .target_length = entry->target_length,
	        .xattrs = (uint8_t *)entry->xattrs,
	        .xattrs_length = entry->xattrs_length,
	};
	if (inode.number == 0)
		return -ERR_NO_SPACE;
	if (S_ISDIR(entry->attributes.mode))
		inode.tree = entry->content.pointer;
	else
		inode.content = entry->content;
	return inode_copy(&inode, ret_inode);
}

int worktree_adopt(struct worktree *worktree, uint64_t parent, const struct tree_entry *entry,
                   uint64_t shown, uint64_t *ret_number, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	CLEANUP(inode_cleanup) struct inode inode = {0};
	CLEANUP(slot_release)
	struct slot slot = {
	        .parent = parent, .name = entry->name, .name_length = entry->name_length};
	pthread_mutex_lock(&trees->table_lock);
	uint64_t overlay = worktree->overlay;
	int r = slot_read(worktree, &slot);
	if (r == 0 && slot.overlaid && slot.entry.whiteout)
		r = -ERR_STALE; /* removed since the caller saw it */
	if (r == 0 && !slot.overlaid)
		r = adopted_inode(trees, entry, shown, &inode);
	if (r == 0 && !slot.overlaid) {
		CLEANUP(state_batch_release) struct state_batch batch = {0};
		slot_put(&batch, overlay, &slot, inode.number, inode.attributes.mode);
		overlay_put_inode(&batch, overlay, &inode);
		r = overlay_commit(trees, &batch, message);
		slot.entry.number = inode.number;
	}
	pthread_mutex_unlock(&trees->table_lock);
	if (r == 0)
		*ret_number = slot.entry.number;
	return r;
}

/* -- making and linking -- */

static int new_inode(struct worktrees *trees, const struct attributes *attributes,
                     const char *target, struct inode *ret_inode, struct message *message)
{
	int64_t now = clock_wall_ns();
	struct inode inode = {
	        .number = state_number(trees->state),
	        .attributes = *attributes,
	        .ctime_ns = now,
	};
	inode.shown = inode.number;
	if (inode.number == 0)
		return fail(message, -ERR_NO_SPACE, "%s", error_text(-ERR_NO_SPACE));
	if (S_ISLNK(attributes->mode)) {
		inode.target_length = target != NULL ? strlen(target) : 0;
		if (inode.target_length == 0 || inode.target_length > SYMLINK_BYTES_MAX)
			return fail(message, -ERR_INVALID, "not a target for a symbolic link");
		inode.target = strdup(target);
		if (inode.target == NULL)
			return fail(message, -ERR_NO_MEMORY, "out of memory");
	}
	int r = 0;
	if (S_ISREG(attributes->mode)) {
		r = staging_create(trees, &inode.staging, NULL, message);
		if (r == 0 && attributes->mtime_ns != 0)
			r = staging_set_mtime(trees, inode.staging, attributes->mtime_ns);
	}
	if (attributes->mtime_ns == 0)
		inode.attributes.mtime_ns = now;
	if (r != 0) {
		staging_unlink(trees, inode.staging);
		inode_release(&inode);
		return r;
	}
	*ret_inode = inode;
	return 0;
}

/* Under table_lock: the slot becomes a name of the inode. */
static int fill_slot(struct worktree *worktree, struct slot *slot, const struct inode *inode,
                     int64_t now, struct message *message)
{
	uint64_t overlay = worktree->overlay;
	CLEANUP(state_batch_release) struct state_batch batch = {.decides = true};
	slot_put(&batch, overlay, slot, inode->number, inode->attributes.mode);
	overlay_put_inode(&batch, overlay, inode);
	touch_directory(&batch, overlay, &slot->directory, now);
	return overlay_commit(worktree->trees, &batch, message);
}

static int read_free_slot(struct worktree *worktree, struct slot *slot)
{
	int r = slot_read(worktree, slot);
	return r == 0 && slot_taken(slot) ? -ERR_EXISTS : r;
}

int worktree_make(struct worktree *worktree, uint64_t parent, const char *name, size_t name_length,
                  const struct attributes *attributes, const char *target, struct inode *ret_inode,
                  struct message *message)
{
	struct worktrees *trees = worktree->trees;
	if (parent == 0)
		return new_inode(trees, attributes, target, ret_inode, message);
	CLEANUP(slot_release) struct slot slot = {0};
	int r = slot_prepare(worktree, parent, name, name_length, &slot, message);
	struct inode inode = {0};
	if (r == 0)
		r = new_inode(trees, attributes, target, &inode, message);
	if (r != 0)
		return r;
	inode.nlink = 1;
	pthread_mutex_lock(&trees->table_lock);
	r = read_free_slot(worktree, &slot);
	if (r == 0)
		r = fill_slot(worktree, &slot, &inode, inode.ctime_ns, message);
	pthread_mutex_unlock(&trees->table_lock);
	if (r != 0) {
		staging_unlink(trees, inode.staging);
		inode_release(&inode);
		return r;
	}
	*ret_inode = inode;
	return 0;
}

int worktree_link(struct worktree *worktree, uint64_t number, struct inode *orphan, uint64_t parent,
                  const char *name, size_t name_length, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	CLEANUP(slot_release) struct slot slot = {0};
	int r = slot_prepare(worktree, parent, name, name_length, &slot, message);
	if (r != 0)
		return r;
	CLEANUP(inode_cleanup) struct inode inode = {0};
	pthread_mutex_lock(&trees->table_lock);
	r = read_free_slot(worktree, &slot);
	if (r == 0)
		r = overlay_read_inode(trees, worktree->overlay, number, &inode);
	if (r == -ERR_NOT_FOUND)
		r = orphan != NULL ? inode_copy(orphan, &inode) : -ERR_STALE;
	if (r == 0 && S_ISDIR(inode.attributes.mode))
		r = -ERR_NOT_PERMITTED;
	if (r == 0) {
		inode.nlink++;
		inode.ctime_ns = clock_wall_ns();
		r = fill_slot(worktree, &slot, &inode, inode.ctime_ns, message);
	}
	pthread_mutex_unlock(&trees->table_lock);
	if (r == 0 && orphan != NULL)
		orphan->nlink = inode.nlink;
	return r;
}

/* -- removing -- */

/* How many names the base tree of the overlay inode in the slot (or the committed entry) has; 0
 * unless it is a directory. Read before the lock. */
static int count_base(struct worktree *worktree, const struct slot *slot, uint64_t *ret_number,
                      uint64_t *ret_count, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	struct overlay_entry entry;
	struct pointer tree = pointer_none;
	*ret_number = 0;
	*ret_count = 0;
	int r = overlay_read_entry(trees, worktree->overlay, slot->parent, slot->name,
	                           slot->name_length, &entry);
	if (r == 0 && S_ISDIR(entry.mode)) {
		CLEANUP(inode_cleanup) struct inode inode = {0};
		*ret_number = entry.number;
		r = overlay_read_inode(trees, worktree->overlay, entry.number, &inode);
		tree = inode.tree;
	} else if (r == -ERR_NOT_FOUND && slot->in_base &&
	           S_ISDIR(slot->committed->attributes.mode)) {
		tree = slot->committed->content.pointer;
	}
	if (r != 0 && r != -ERR_NOT_FOUND)
		return r;
	return pointer_is_none(&tree) ? 0 : tree_count(trees->odb, &tree, ret_count, message);
}

static int count_whiteout(void *context, const struct overlay_entry *entry)
{
	uint64_t *whiteouts = context;
	if (!entry->whiteout)
		return -ERR_NOT_EMPTY;
	(*whiteouts)++;
	return 0;
}

/* Under table_lock. */
static int check_empty(struct worktree *worktree, uint64_t directory, uint64_t base_count)
{
	uint64_t whiteouts = 0;
	int r = overlay_entries(worktree->trees, worktree->overlay, directory, NULL, 0,
	                        count_whiteout, &whiteouts);
	return r == 0 && whiteouts < base_count ? -ERR_NOT_EMPTY : r;
}

/* What the slot holds, to be removed or replaced; under table_lock. `counted`: the directory whose
 * base has base_count names. */
struct victim {
	bool directory;
	uint64_t counted;
	uint64_t base_count;
	struct inode inode; /* number 0: a committed entry */
};

static int read_victim(struct worktree *worktree, const struct slot *slot, struct victim *victim)
{
	if (!slot_taken(slot))
		return -ERR_NOT_FOUND;
	if (!slot_adopted(slot)) {
		victim->directory = S_ISDIR(slot->committed->attributes.mode);
		return 0;
	}
	victim->directory = S_ISDIR(slot->entry.mode);
	return overlay_read_inode(worktree->trees, worktree->overlay, slot->entry.number,
	                          &victim->inode);
}

static int check_victim(struct worktree *worktree, const struct victim *victim, bool directory)
{
	if (victim->directory != directory)
		return directory ? -ERR_NOT_DIRECTORY : -ERR_IS_DIRECTORY;
	if (!directory)
		return 0;
	if (victim->inode.number == 0)
		return victim->base_count > 0 ? -ERR_NOT_EMPTY : 0;
	if (victim->counted != victim->inode.number)
		return -ERR_STALE; /* became another one since it was counted */
	return check_empty(worktree, victim->inode.number, victim->base_count);
}

/* Under table_lock. */
static int remove_slot(struct worktree *worktree, struct slot *slot, struct victim *victim,
                       bool directory, struct inode *ret_last, struct message *message)
{
	uint64_t overlay = worktree->overlay;
	int r = slot_read(worktree, slot);
	if (r == 0)
		r = read_victim(worktree, slot, victim);
	if (r == 0)
		r = check_victim(worktree, victim, directory);
	if (r != 0)
		return r;
	int64_t now = clock_wall_ns();
	CLEANUP(state_batch_release) struct state_batch batch = {.makes_room = true};
	slot_clear(&batch, overlay, slot);
	touch_directory(&batch, overlay, &slot->directory, now);
	if (victim->inode.number != 0)
		r = drop_name(&batch, overlay, &victim->inode, now, ret_last);
	batch.decides = true;
	return r != 0 ? r : overlay_commit(worktree->trees, &batch, message);
}

int worktree_remove(struct worktree *worktree, uint64_t parent, const char *name,
                    size_t name_length, bool directory, struct inode *ret_last,
                    struct message *message)
{
	CLEANUP(slot_release) struct slot slot = {0};
	struct victim victim = {0};
	int r = slot_prepare(worktree, parent, name, name_length, &slot, message);
	if (r == 0 && directory)
		r = count_base(worktree, &slot, &victim.counted, &victim.base_count, message);
	if (r != 0)
		return r;
	CLEANUP(inode_cleanup) struct inode last = {0};
	pthread_mutex_lock(&worktree->trees->table_lock);
	r = remove_slot(worktree, &slot, &victim, directory, &last, message);
	pthread_mutex_unlock(&worktree->trees->table_lock);
	inode_release(&victim.inode);
	if (r == 0)
		give_last(worktree, &last, ret_last);
	return r;
}

/* -- renaming -- */

struct renaming {
	struct slot from, to;
	unsigned flags;
	struct inode moved;   /* what `from` names */
	struct victim target; /* what `to` names: to be replaced, or exchanged */
	bool replaces;
};

static void renaming_release(struct renaming *renaming)
{
	slot_release(&renaming->from);
	slot_release(&renaming->to);
	inode_release(&renaming->moved);
	inode_release(&renaming->target.inode);
}

/* Under table_lock: read both sides and decide whether it may be done. 1: there is nothing to do.
 */
static int rename_check(struct worktree *worktree, struct renaming *renaming)
{
	struct slot *from = &renaming->from, *to = &renaming->to;
	int r = slot_read(worktree, from);
	if (r == 0)
		r = slot_read(worktree, to);
	if (r != 0)
		return r;
	if (!slot_adopted(from))
		return slot_taken(from) ? -ERR_STALE : -ERR_NOT_FOUND;
	renaming->replaces = slot_taken(to);
	if (renaming->replaces && !slot_adopted(to))
		return -ERR_STALE;
	if (renaming->replaces && (renaming->flags & RENAME_NOREPLACE))
		return -ERR_EXISTS;
	if (!renaming->replaces && (renaming->flags & RENAME_EXCHANGE))
		return -ERR_NOT_FOUND;
	if (renaming->replaces && from->entry.number == to->entry.number)
		return 1;
	r = overlay_read_inode(worktree->trees, worktree->overlay, from->entry.number,
	                       &renaming->moved);
	if (r == 0 && renaming->replaces) {
		if (renaming->flags & RENAME_EXCHANGE)
			return overlay_read_inode(worktree->trees, worktree->overlay,
			                          to->entry.number, &renaming->target.inode);
		r = read_victim(worktree, to, &renaming->target);
		if (r == 0)
			r = check_victim(worktree, &renaming->target,
			                 S_ISDIR(renaming->moved.attributes.mode));
	}
	return r;
}

/* Under table_lock. */
static int rename_apply(struct worktree *worktree, struct renaming *renaming,
                        struct inode *ret_last, struct message *message)
{
	uint64_t overlay = worktree->overlay;
	int64_t now = clock_wall_ns();
	struct slot *from = &renaming->from, *to = &renaming->to;
	CLEANUP(state_batch_release) struct state_batch batch = {.decides = true};
	int r = 0;
	slot_put(&batch, overlay, to, from->entry.number, from->entry.mode);
	if (renaming->flags & RENAME_EXCHANGE) {
		slot_put(&batch, overlay, from, to->entry.number, to->entry.mode);
		renaming->target.inode.ctime_ns = now;
		overlay_put_inode(&batch, overlay, &renaming->target.inode);
	} else {
		slot_clear(&batch, overlay, from);
		if (renaming->replaces)
			r = drop_name(&batch, overlay, &renaming->target.inode, now, ret_last);
	}
	renaming->moved.ctime_ns = now;
	overlay_put_inode(&batch, overlay, &renaming->moved);
	touch_directory(&batch, overlay, &from->directory, now);
	if (to->parent != from->parent)
		touch_directory(&batch, overlay, &to->directory, now);
	return r != 0 ? r : overlay_commit(worktree->trees, &batch, message);
}

int worktree_rename(struct worktree *worktree, uint64_t from_parent, const char *from,
                    size_t from_length, uint64_t to_parent, const char *to, size_t to_length,
                    unsigned flags, struct inode *ret_last, struct message *message)
{
	if ((flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0 ||
	    flags == (RENAME_NOREPLACE | RENAME_EXCHANGE))
		return fail(message, -ERR_INVALID, "unknown rename flags");
	CLEANUP(renaming_release) struct renaming renaming = {.flags = flags};
	int r = slot_prepare(worktree, from_parent, from, from_length, &renaming.from, message);
	if (r == 0)
		r = slot_prepare(worktree, to_parent, to, to_length, &renaming.to, message);
	if (r == 0 && flags == 0)
		r = count_base(worktree, &renaming.to, &renaming.target.counted,
		               &renaming.target.base_count, message);
	if (r != 0)
		return r;
	renaming.flags = flags;
	CLEANUP(inode_cleanup) struct inode last = {0};
	pthread_mutex_lock(&worktree->trees->table_lock);
	r = rename_check(worktree, &renaming);
	if (r == 0)
		r = rename_apply(worktree, &renaming, &last, message);
	pthread_mutex_unlock(&worktree->trees->table_lock);
	if (r < 0)
		return r;
	give_last(worktree, &last, ret_last);
	return 0;
}

/* -- attributes -- */

/* Under table_lock. */
static int put_inode(struct worktree *worktree, const struct inode *inode, struct message *message)
{
	CLEANUP(state_batch_release) struct state_batch batch = {.decides = true};
	overlay_put_inode(&batch, worktree->overlay, inode);
	return overlay_commit(worktree->trees, &batch, message);
}

int worktree_set_attributes(struct worktree *worktree, uint64_t number, unsigned which,
                            const struct attributes *attributes, int64_t atime_ns)
{
	struct worktrees *trees = worktree->trees;
	CLEANUP(inode_cleanup) struct inode inode = {0};
	pthread_mutex_lock(&trees->table_lock);
	int r = worktree_inode(worktree, number, &inode);
	if (r == 0) {
		struct attributes *now = &inode.attributes;
		if (which & SET_MODE)
			now->mode = (now->mode & S_IFMT) | (attributes->mode & ~(uint32_t)S_IFMT);
		if (which & SET_UID)
			now->uid = attributes->uid;
		if (which & SET_GID)
			now->gid = attributes->gid;
		if (which & SET_MTIME)
			now->mtime_ns = attributes->mtime_ns;
		if (which & SET_ATIME) {
			inode.atime_set = true;
			inode.atime_ns = atime_ns;
		}
		inode.ctime_ns = clock_wall_ns();
		r = put_inode(worktree, &inode, NULL);
	}
	pthread_mutex_unlock(&trees->table_lock);
	/* The staging file's own time is what counts for a file that has one. */
	if (r == 0 && (which & SET_MTIME) && inode.staging != 0)
		r = staging_set_mtime(trees, inode.staging, attributes->mtime_ns);
	return r;
}

static int change_xattrs(struct inode *inode, const char *name, struct span value, int flags)
{
	struct span old;
	bool exists = xattrs_get(inode->xattrs, inode->xattrs_length, name, &old) == 0;
	if (exists && (flags & XATTR_CREATE))
		return -ERR_EXISTS;
	if (!exists && ((flags & XATTR_REPLACE) || value.data == NULL))
		return error_system(ENODATA);
	CLEANUP(buffer_release) struct buffer xattrs = {0};
	buffer_append(&xattrs, inode->xattrs, inode->xattrs_length);
	int r = buffer_check(&xattrs);
	if (r == 0)
		r = xattrs_set(&xattrs, name, value);
	if (r != 0)
		return r;
	free(inode->xattrs);
	inode->xattrs = NULL;
	inode->xattrs_length = xattrs.length;
	if (xattrs.length > 0)
		inode->xattrs = steal(&xattrs.data);
	return 0;
}

int worktree_set_xattr(struct worktree *worktree, uint64_t number, const char *name,
                       struct span value, int flags)
{
	CLEANUP(inode_cleanup) struct inode inode = {0};
	pthread_mutex_lock(&worktree->trees->table_lock);
	int r = worktree_inode(worktree, number, &inode);
	if (r == 0)
		r = change_xattrs(&inode, name, value, flags);
	if (r == 0) {
		inode.ctime_ns = clock_wall_ns();
		r = put_inode(worktree, &inode, NULL);
	}
	pthread_mutex_unlock(&worktree->trees->table_lock);
	return r;
}

/* -- what a piecewise file still shows of its content -- */

/* Under table_lock. An open file does not know whose overlay names it by now; few working trees
 * are open, and this is rare. */
static int find_staged(struct worktrees *trees, uint64_t number, uint64_t staging,
                       struct worktree **ret_worktree, struct inode *ret_inode)
{
	struct worktree *worktree, *next;
	HASH_ITER (hh, trees->by_branch, worktree, next) {
		struct inode inode;
		if (worktree->overlay == 0 ||
		    overlay_read_inode(trees, worktree->overlay, number, &inode) != 0)
			continue;
		if (inode.staging == staging) {
			*ret_worktree = worktree;
			*ret_inode = inode;
			return 0;
		}
		inode_release(&inode);
	}
	return -ERR_NOT_FOUND;
}

int overlay_set_base_bytes(struct worktrees *trees, uint64_t number, uint64_t staging,
                           uint64_t base_bytes)
{
	CLEANUP(inode_cleanup) struct inode inode = {0};
	struct worktree *worktree = NULL;
	pthread_mutex_lock(&trees->table_lock);
	int r = find_staged(trees, number, staging, &worktree, &inode);
	if (r == 0) {
		inode.base_bytes = base_bytes;
		r = put_inode(worktree, &inode, NULL);
	}
	pthread_mutex_unlock(&trees->table_lock);
	return r;
}

int overlay_get_base_bytes(struct worktrees *trees, uint64_t number, uint64_t staging,
                           uint64_t *ret_base_bytes)
{
	CLEANUP(inode_cleanup) struct inode inode = {0};
	struct worktree *worktree = NULL;
	pthread_mutex_lock(&trees->table_lock);
	int r = find_staged(trees, number, staging, &worktree, &inode);
	pthread_mutex_unlock(&trees->table_lock);
	if (r == 0)
		*ret_base_bytes = inode.base_bytes;
	return r;
}
