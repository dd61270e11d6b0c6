/*
 * Hides how a change reaches a working tree: enter its gate, bring what is touched into the
 * overlay, do it, and make the node table say the same before anybody can move the tree.
 */
#include "fs/mount/vfs_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>

static struct worktree *worktree_of(const struct node *node)
{
	return node->scope->worktree;
}

int parent_adopt(struct vfs *vfs, struct node *parent, uint64_t *ret_number,
                 struct inode *ret_inode, struct message *message)
{
	struct binding binding;
	if (!parent->directory)
		return -ERR_NOT_DIRECTORY;
	nodes_lock(vfs->nodes);
	bool detached = parent->flags & NODE_DETACHED, removed = parent->orphan;
	nodes_unlock(vfs->nodes);
	if (detached) /* when it was removed, nothing can be made in it */
		return removed ? -ERR_NOT_FOUND : -ERR_STALE;
	int result = node_bind(vfs, parent, true, &binding, message);
	if (result < 0)
		return result;
	*ret_number = binding.directory.number;
	return ret_inode ? worktree_inode(worktree_of(parent), *ret_number, ret_inode) : 0;
}

struct attributes new_attributes(const struct inode *parent, mode_t mode, dev_t rdev,
                                 const struct vfs_caller *caller)
{
	struct attributes attributes = {
	        .mode = mode,
	        .uid = caller->uid,
	        .gid = caller->gid,
	        .rdev = S_ISCHR(mode) || S_ISBLK(mode) ? rdev : 0,
	};
	if (parent->attributes.mode & S_ISGID) {
		attributes.gid = parent->attributes.gid;
		if (S_ISDIR(mode))
			attributes.mode |= S_ISGID;
	}
	return attributes;
}

static int make(struct vfs *vfs, struct node *parent, const char *name, const struct vfs_make *make,
                const struct vfs_caller *caller, struct vfs_entry *ret_entry,
                struct message *message)
{
	CLEANUP(known_release) struct known known = {0};
	CLEANUP(inode_release) struct inode above = {0};
	struct node *node;
	uint64_t number;
	int result = parent_adopt(vfs, parent, &number, &above, message);
	if (result < 0)
		return result;
	struct attributes attributes = new_attributes(&above, make->mode, make->rdev, caller);
	known.epoch = scope_epoch(parent->scope);
	result = worktree_make(worktree_of(parent), number, name, strlen(name), &attributes,
	                       make->target, &known.inode, message);
	if (result < 0)
		return result;
	known.directory.number = known.inode.number;
	result = node_intern(vfs, parent, name, &known, &node);
	if (result < 0)
		return result;
	result = node_describe(vfs, node, &known.inode, ret_entry);
	if (result < 0)
		node_forget(vfs, node, 1);
	node_put(vfs, node);
	return result;
}

/* A node below which names can change: not the root. */
static int parent_get(struct vfs *vfs, uint64_t id, struct node **ret_node)
{
	int result = node_get(vfs, id, ret_node);
	if (result < 0 || (*ret_node)->scope)
		return result;
	node_put(vfs, *ret_node);
	return -ERR_NOT_PERMITTED;
}

int vfs_make(struct vfs *vfs, uint64_t parent_id, const char *name, const struct vfs_make *what,
             const struct vfs_caller *caller, struct vfs_entry *ret_entry, struct message *message)
{
	struct node *parent;
	int result = parent_get(vfs, parent_id, &parent);
	if (result < 0)
		return result;
	request_intends(vfs, INTENT_OTHER, 0, parent_id, name, 0, NULL);
	result = gate_enter(parent);
	if (result >= 0) {
		result = make(vfs, parent, name, what, caller, ret_entry, message);
		gate_leave(parent);
	}
	node_put(vfs, parent);
	return result;
}

/* -- names that go away -- */

/* The table's side of removing (parent, name), which led to `known`. *last: what the working tree
 * said; taken over when a node keeps it. *spare: memory for the record. Table locked. */
static void name_dropped(struct vfs *vfs, struct node *parent, const char *name,
                         struct known *known, struct inode *last, struct inode **spare)
{
	struct node *named = nodes_by_name(vfs->nodes, parent, name), *node = NULL;
	uint64_t number = known->directory.number;
	if (number)
		node = nodes_by_number(vfs->nodes, parent->scope, number);
	if (!node)
		node = named;
	if (!node)
		return;
	if (number && !last->number) { /* other names are left */
		if (node == named)
			nodes_unname(vfs->nodes, node);
		nodes_linked(node);
		return;
	}
	nodes_detach(vfs->nodes, node);
	node->orphan = steal(spare);
	if (last->number) {
		*node->orphan = *last;
		*last = (struct inode){0};
	} else {
		*node->orphan = known->inode;
		known->inode = (struct inode){0};
	}
	node->orphan->nlink = 0;
	nodes_orphan_changed(vfs->nodes, node);
}

/* What nobody holds any more: its staging file goes now. */
static void last_release(struct vfs *vfs, struct inode *last)
{
	if (last->number)
		worktree_forget(vfs->lake->worktrees, last);
	inode_release(last);
}

static int remove_name(struct vfs *vfs, struct node *parent, const char *name, bool directory,
                       struct inode *last, struct message *message)
{
	CLEANUP(known_release) struct known known = {0};
	CLEANUP(free_pointer) struct inode *spare = malloc(sizeof(*spare));
	uint64_t number;
	if (!spare)
		return -ERR_NO_MEMORY;
	int result = parent_adopt(vfs, parent, &number, NULL, message);
	if (result >= 0)
		result = name_know(vfs, parent, name, &known, message);
	if (result >= 0)
		result = worktree_remove(worktree_of(parent), number, name, strlen(name), directory,
		                         last, message);
	if (result < 0)
		return result;
	nodes_lock(vfs->nodes);
	name_dropped(vfs, parent, name, &known, last, &spare);
	nodes_unlock(vfs->nodes);
	return 0;
}

int vfs_remove(struct vfs *vfs, uint64_t parent_id, const char *name, bool directory,
               struct message *message)
{
	struct inode last = {0};
	struct node *parent;
	int result = parent_get(vfs, parent_id, &parent);
	if (result < 0)
		return result;
	request_intends(vfs, INTENT_REMOVE, 0, parent_id, name, 0, NULL);
	result = gate_enter(parent);
	if (result >= 0) {
		result = remove_name(vfs, parent, name, directory, &last, message);
		gate_leave(parent);
	}
	last_release(vfs, &last);
	node_put(vfs, parent);
	return result;
}

/* -- rename -- */

struct rename_side {
	struct node *parent;
	const char *name;
	uint64_t number;    /* of the parent, in the overlay */
	struct node *node;  /* pinned; NULL: no such name */
	struct known known; /* of the name, once adopted */
};

static void side_release(struct vfs *vfs, struct rename_side *side)
{
	node_put(vfs, side->node);
	known_release(&side->known);
}

/* Parent and, when it exists, the name itself: into the overlay. */
static int side_adopt(struct vfs *vfs, struct rename_side *side, struct message *message)
{
	struct binding binding;
	int result = parent_adopt(vfs, side->parent, &side->number, NULL, message);
	for (int i = 0; i < VFS_TRIES && result >= 0; i++) {
		known_release(&side->known);
		side->known = (struct known){0};
		result = name_know(vfs, side->parent, side->name, &side->known, message);
		if (result == -ERR_NOT_FOUND)
			return 0;
		if (result >= 0)
			result = node_intern(vfs, side->parent, side->name, &side->known,
			                     &side->node);
		if (result >= 0) {
			node_forget(vfs, side->node, 1); /* the pin is enough */
			break;
		}
		if (result == -ERR_STALE && !node_detached(vfs, side->parent))
			result = 0;
	}
	if (result >= 0 && side->node)
		result = node_bind(vfs, side->node, true, &binding, message);
	if (result >= 0 && side->node)
		side->known.directory = binding.directory;
	return result;
}

static bool is_below(struct vfs *vfs, const struct node *node, const struct node *above)
{
	nodes_lock(vfs->nodes);
	while (node && node != above)
		node = node->parent;
	nodes_unlock(vfs->nodes);
	return node != NULL;
}

static bool has_name(const struct node *node, const struct rename_side *side)
{
	return node && !(node->flags & (NODE_DETACHED | NODE_NAMELESS)) &&
	       node->parent == side->parent && strcmp(node->name, side->name) == 0;
}

/* The table's side of a rename. Table locked. */
static int renamed(struct vfs *vfs, struct rename_side *from, struct rename_side *to, bool exchange,
                   struct inode *last, struct inode **spare, struct node **dead)
{
	if (exchange) {
		bool a = has_name(from->node, from), b = has_name(to->node, to);
		if (a && b)
			return nodes_exchange(vfs->nodes, from->node, to->node);
		else if (a)
			return nodes_rename(vfs->nodes, from->node, to->parent, to->name, dead);
		else if (b)
			return nodes_rename(vfs->nodes, to->node, from->parent, from->name, dead);
		return 0;
	}
	if (to->node)
		name_dropped(vfs, to->parent, to->name, &to->known, last, spare);
	if (has_name(from->node, from) || from->node->flags & NODE_NAMELESS)
		return nodes_rename(vfs->nodes, from->node, to->parent, to->name, dead);
	return 0;
}

static int rename_sides(struct vfs *vfs, struct rename_side *from, struct rename_side *to,
                        unsigned flags, struct inode *last, struct message *message)
{
	CLEANUP(free_pointer) struct inode *spare = malloc(sizeof(*spare));
	int result = spare ? side_adopt(vfs, from, message) : -ERR_NO_MEMORY;
	if (result >= 0)
		result = side_adopt(vfs, to, message);
	if (result < 0)
		return result;
	if (!from->node || (!to->node && flags & RENAME_EXCHANGE))
		return -ERR_NOT_FOUND;
	if (to->node && flags & RENAME_NOREPLACE)
		return -ERR_EXISTS;
	if (from->node == to->node) /* two names of one file: nothing happens */
		return 0;
	if (is_below(vfs, to->parent, from->node) ||
	    (flags & RENAME_EXCHANGE && is_below(vfs, from->parent, to->node)))
		return -ERR_INVALID;
	if (to->node && is_below(vfs, from->parent, to->node))
		return -ERR_NOT_EMPTY;
	result = worktree_rename(worktree_of(from->parent), from->number, from->name,
	                         strlen(from->name), to->number, to->name, strlen(to->name), flags,
	                         last, message);
	if (result < 0)
		return result;
	struct node *dead = NULL;
	nodes_lock(vfs->nodes);
	result = renamed(vfs, from, to, flags & RENAME_EXCHANGE, last, &spare, &dead);
	if (result < 0) /* out of memory: the node is found again by a lookup */
		nodes_detach(vfs->nodes, from->node);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
	return 0;
}

static int rename_nodes(struct vfs *vfs, struct node *from_parent, const char *from,
                        struct node *to_parent, const char *to, unsigned flags,
                        struct message *message)
{
	struct rename_side source = {.parent = from_parent, .name = from};
	struct rename_side target = {.parent = to_parent, .name = to};
	struct inode last = {0};
	if (from_parent->scope != to_parent->scope)
		return error_system(EXDEV);
	if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
		return -ERR_INVALID;
	int result = gate_enter(from_parent);
	if (result < 0)
		return result;
	result = rename_sides(vfs, &source, &target, flags, &last, message);
	gate_leave(from_parent);
	last_release(vfs, &last);
	side_release(vfs, &source);
	side_release(vfs, &target);
	return result;
}

int vfs_rename(struct vfs *vfs, uint64_t from_parent_id, const char *from, uint64_t to_parent_id,
               const char *to, unsigned flags, struct message *message)
{
	struct node *from_parent, *to_parent;
	int result = parent_get(vfs, from_parent_id, &from_parent);
	if (result < 0)
		return result;
	result = parent_get(vfs, to_parent_id, &to_parent);
	if (result >= 0) {
		request_intends(vfs, flags & RENAME_EXCHANGE ? INTENT_EXCHANGE : INTENT_RENAME, 0,
		                from_parent_id, from, to_parent_id, to);
		result = rename_nodes(vfs, from_parent, from, to_parent, to, flags, message);
		node_put(vfs, to_parent);
	}
	node_put(vfs, from_parent);
	return result;
}

/* -- links -- */

/* The table's side of giving an orphan a name. */
static void orphan_named(struct vfs *vfs, struct node *node, struct node *parent, uint64_t number,
                         const char *name)
{
	struct node *dead = NULL;
	nodes_lock(vfs->nodes);
	struct inode *old = steal(&node->orphan);
	node->flags &= (uint8_t)~NODE_DETACHED;
	node->flags |= NODE_NAMELESS;
	node->number = 0; /* was in no index while detached */
	nodes_bind(vfs->nodes, node, scope_epoch(parent->scope), number, 0);
	if (nodes_rename(vfs->nodes, node, parent, name, &dead) < 0)
		nodes_detach(vfs->nodes, node); /* found again by a look-up, as another */
	nodes_orphan_changed(vfs->nodes, node);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
	inode_release(old);
	free(old);
}

/* Give an orphan (O_TMPFILE) its first name. */
static int link_orphan(struct vfs *vfs, struct node *node, struct node *parent, uint64_t number,
                       const char *name, struct message *message)
{
	CLEANUP(inode_release) struct inode orphan = {0};
	nodes_lock(vfs->nodes);
	int result = node->orphan ? inode_copy(node->orphan, &orphan) : -ERR_STALE;
	nodes_unlock(vfs->nodes);
	if (result >= 0 && !orphan.number)
		result = -ERR_NOT_FOUND; /* was committed, and removed */
	if (result >= 0)
		result = worktree_link(worktree_of(parent), orphan.number, &orphan, number, name,
		                       strlen(name), message);
	if (result < 0)
		return result;
	orphan_named(vfs, node, parent, orphan.number, name);
	return 0;
}

static int link_named(struct vfs *vfs, struct node *node, struct node *parent, uint64_t number,
                      const char *name, struct message *message)
{
	struct binding binding;
	int result = node_bind(vfs, node, true, &binding, message);
	if (result >= 0)
		result = worktree_link(worktree_of(parent), binding.directory.number, NULL, number,
		                       name, strlen(name), message);
	if (result < 0)
		return result;
	struct node *dead = NULL;
	nodes_lock(vfs->nodes);
	if (node->flags & NODE_NAMELESS)
		nodes_rename(vfs->nodes, node, parent, name, &dead);
	nodes_linked(node);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
	return 0;
}

static bool node_is_orphan(struct vfs *vfs, const struct node *node)
{
	nodes_lock(vfs->nodes);
	bool orphan = node->orphan != NULL;
	nodes_unlock(vfs->nodes);
	return orphan;
}

static int link_node(struct vfs *vfs, struct node *node, struct node *parent, const char *name,
                     struct vfs_entry *ret_entry, struct message *message)
{
	CLEANUP(inode_release) struct inode inode = {0};
	uint64_t number;
	if (node->directory || !node->scope)
		return -ERR_NOT_PERMITTED;
	if (node->scope != parent->scope)
		return error_system(EXDEV);
	int result = gate_enter(parent);
	if (result < 0)
		return result;
	result = parent_adopt(vfs, parent, &number, NULL, message);
	if (result >= 0)
		result = node_is_orphan(vfs, node)
		                 ? link_orphan(vfs, node, parent, number, name, message)
		                 : link_named(vfs, node, parent, number, name, message);
	if (result >= 0)
		result = node_inode(vfs, node, &inode, message);
	if (result >= 0)
		result = node_describe(vfs, node, &inode, ret_entry);
	gate_leave(parent);
	if (result < 0)
		return result;
	nodes_lock(vfs->nodes);
	nodes_looked_up(node);
	nodes_unlock(vfs->nodes);
	return 0;
}

int vfs_link(struct vfs *vfs, uint64_t id, uint64_t parent_id, const char *name,
             struct vfs_entry *ret_entry, struct message *message)
{
	struct node *node, *parent;
	int result = parent_get(vfs, parent_id, &parent);
	if (result < 0)
		return result;
	result = node_get(vfs, id, &node);
	if (result >= 0) {
		request_intends(vfs, INTENT_LINK, id, parent_id, name, 0, NULL);
		result = link_node(vfs, node, parent, name, ret_entry, message);
		node_put(vfs, node);
	}
	node_put(vfs, parent);
	return result;
}

/* -- attributes -- */

static mode_t unprivileged(mode_t mode)
{
	if (S_ISDIR(mode))
		return mode;
	if (mode & S_IXGRP)
		mode &= ~(mode_t)S_ISGID;
	return mode & ~(mode_t)S_ISUID;
}

/* What the change makes of these attributes; which of them it sets. */
static unsigned attributes_change(const struct vfs_change *change, struct inode *inode)
{
	struct attributes *attributes = &inode->attributes;
	unsigned which = 0;
	if (change->which & VFS_UID)
		attributes->uid = change->uid;
	if (change->which & VFS_GID)
		attributes->gid = change->gid;
	if (change->which & VFS_MTIME)
		attributes->mtime_ns = change->mtime_ns;
	if (change->which & VFS_ATIME) {
		inode->atime_set = true;
		inode->atime_ns = change->atime_ns;
	}
	mode_t mode = attributes->mode;
	if (change->which & (VFS_UID | VFS_GID | VFS_DROP_PRIVILEGES))
		mode = unprivileged(mode);
	if (change->which & VFS_MODE)
		mode = (mode & S_IFMT) | (change->mode & 07777);
	which |= change->which & VFS_UID ? SET_UID : 0;
	which |= change->which & VFS_GID ? SET_GID : 0;
	which |= change->which & VFS_MTIME ? SET_MTIME : 0;
	which |= change->which & VFS_ATIME ? SET_ATIME : 0;
	which |= change->which & VFS_MODE || mode != attributes->mode ? SET_MODE : 0;
	attributes->mode = mode;
	return which;
}

/* A file without a name: the record is the node's own. *ret_orphan is false when it has one. */
static int orphan_change(struct vfs *vfs, struct node *node, const struct vfs_change *change,
                         bool *ret_orphan)
{
	uint64_t staging = 0;
	nodes_lock(vfs->nodes);
	*ret_orphan = node->orphan != NULL;
	if (*ret_orphan) {
		attributes_change(change, node->orphan);
		node->orphan->ctime_ns = clock_wall_ns();
		nodes_orphan_changed(vfs->nodes, node);
		staging = node->orphan->staging;
	}
	nodes_unlock(vfs->nodes);
	if (staging == 0 || !(change->which & VFS_MTIME))
		return 0;
	return staging_set_mtime(vfs->lake->worktrees, staging, change->mtime_ns);
}

static int attributes_change_inside(struct vfs *vfs, struct node *node,
                                    const struct vfs_change *change, struct message *message)
{
	CLEANUP(inode_release) struct inode inode = {0};
	struct binding binding;
	int result = node_bind(vfs, node, true, &binding, message);
	uint64_t number = result < 0 ? 0 : binding.directory.number;
	if (result >= 0)
		result = worktree_inode(worktree_of(node), number, &inode);
	if (result < 0)
		return result;
	unsigned which = attributes_change(change, &inode);
	result = worktree_set_attributes(worktree_of(node), number, which | SET_CTIME,
	                                 &inode.attributes, inode.atime_ns);
	if (result >= 0 && which & SET_MODE)
		open_mode_changed(vfs, node, inode.attributes.mode);
	return result;
}

int attributes_set(struct vfs *vfs, struct node *node, const struct vfs_change *change,
                   struct message *message)
{
	if (!node->scope)
		return -ERR_NOT_PERMITTED;
	bool orphan;
	int result = orphan_change(vfs, node, change, &orphan);
	if (orphan)
		return result;
	if (node_detached(vfs, node))
		return -ERR_STALE; /* an old version: its attributes are not the path's */
	if (change->which == VFS_DROP_PRIVILEGES) {
		CLEANUP(inode_release) struct inode inode = {0};
		result = node_inode(vfs, node, &inode, message);
		if (result < 0 ||
		    unprivileged(inode.attributes.mode) == (mode_t)inode.attributes.mode)
			return result < 0 ? result : 0;
	}
	result = gate_enter(node);
	if (result < 0)
		return result;
	result = attributes_change_inside(vfs, node, change, message);
	gate_leave(node);
	return result;
}

static int setattr(struct vfs *vfs, struct node *node, struct vfs_file *file,
                   const struct vfs_change *change, const struct vfs_caller *caller,
                   struct message *message)
{
	struct vfs_change rest = *change;
	rest.which &= ~(unsigned)VFS_SIZE;
	if (!node->scope)
		return -ERR_NOT_PERMITTED;
	int result = node_writable(node);
	if (result < 0)
		return result;
	if (change->which & VFS_SIZE) {
		result = open_truncate(vfs, node, file, change->size, message);
		if (result < 0)
			return result;
		if (caller->uid != 0)
			rest.which |= VFS_DROP_PRIVILEGES;
	}
	return rest.which ? attributes_set(vfs, node, &rest, message) : 0;
}

int vfs_setattr(struct vfs *vfs, uint64_t id, struct vfs_file *file,
                const struct vfs_change *change, const struct vfs_caller *caller,
                struct stat *ret_stat, struct message *message)
{
	struct node *node;
	int result = node_get(vfs, id, &node);
	if (result < 0)
		return result;
	result = setattr(vfs, node, file, change, caller, message);
	node_put(vfs, node);
	return result < 0 ? result : vfs_getattr(vfs, id, ret_stat, message);
}

/* -- extended attributes -- */

static int orphan_xattr(struct vfs *vfs, struct node *node, const char *name, struct span value,
                        int flags)
{
	CLEANUP(buffer_release) struct buffer xattrs = {0};
	struct inode *orphan = node->orphan;
	struct span old;
	bool there = orphan->xattrs &&
	             xattrs_get(orphan->xattrs, orphan->xattrs_length, name, &old) >= 0;
	if (there && flags & XATTR_CREATE)
		return -ERR_EXISTS;
	if (!there && (!value.data || flags & XATTR_REPLACE))
		return error_system(ENODATA);
	if (orphan->xattrs)
		buffer_append(&xattrs, orphan->xattrs, orphan->xattrs_length);
	int result = buffer_check(&xattrs);
	if (result >= 0)
		result = xattrs_set(&xattrs, name, value);
	if (result < 0)
		return result;
	free(orphan->xattrs);
	orphan->xattrs = steal(&xattrs.data);
	orphan->xattrs_length = xattrs.length;
	xattrs = (struct buffer){0};
	nodes_orphan_changed(vfs->nodes, node);
	return 0;
}

static int xattr_change(struct vfs *vfs, struct node *node, const char *name, struct span value,
                        int flags, struct message *message)
{
	struct binding binding;
	if (!node->scope)
		return -ERR_NOT_PERMITTED;
	int result = node_writable(node);
	if (result < 0)
		return result;
	nodes_lock(vfs->nodes);
	bool orphan = node->orphan != NULL;
	if (orphan)
		result = orphan_xattr(vfs, node, name, value, flags);
	nodes_unlock(vfs->nodes);
	if (orphan)
		return result;
	result = gate_enter(node);
	if (result < 0)
		return result;
	result = node_bind(vfs, node, true, &binding, message);
	if (result >= 0)
		result = worktree_set_xattr(worktree_of(node), binding.directory.number, name,
		                            value, flags);
	gate_leave(node);
	if (result == -ERR_NOT_FOUND)
		result = error_system(ENODATA);
	return result;
}

int vfs_xattr_set(struct vfs *vfs, uint64_t id, const char *name, struct span value, int flags,
                  struct message *message)
{
	struct node *node;
	if (strncmp(name, "system.", 7) == 0)
		return -ERR_UNSUPPORTED;
	int result = node_get(vfs, id, &node);
	if (result < 0)
		return result;
	request_intends(vfs, INTENT_OTHER, 0, 0, NULL, 0, NULL);
	result = xattr_change(vfs, node, name, value, flags, message);
	node_put(vfs, node);
	return result;
}

/* -- after a start that follows a crash -- */

/* A name that led to the node is gone. Who has the file open keeps it. */
static void name_lost(struct vfs *vfs, struct node *node)
{
	CLEANUP(inode_release) struct inode left = {0};
	struct inode *record = NULL;
	bool named = node->number && worktree_inode(worktree_of(node), node->number, &left) == 0;
	if (!named && node->open && (record = malloc(sizeof(*record))) &&
	    inode_copy(&node->open->inode, record) < 0) {
		free(record);
		record = NULL;
	}
	nodes_lock(vfs->nodes);
	if (named) {
		nodes_unname(vfs->nodes, node);
		nodes_linked(node);
	} else {
		nodes_detach(vfs->nodes, node);
	}
	if (record && !node->orphan) {
		record->nlink = 0;
		node->orphan = record;
		nodes_orphan_changed(vfs->nodes, node);
	}
	nodes_unlock(vfs->nodes);
}

static struct node *named_node(struct vfs *vfs, struct node *parent, const char *name)
{
	nodes_lock(vfs->nodes);
	struct node *node = nodes_by_name(vfs->nodes, parent, name);
	nodes_unlock(vfs->nodes);
	return node;
}

/* What the name is in the overlay. 0: nothing, or committed. */
static uint64_t number_now(struct vfs *vfs, struct node *parent, const char *name)
{
	struct known known = {0};
	uint64_t number = 0;
	if (name_know(vfs, parent, name, &known, NULL) >= 0)
		number = known.directory.number;
	known_release(&known);
	return number;
}

void settle_removed(struct vfs *vfs, struct node *parent, const char *name)
{
	struct known known = {0};
	struct node *node = named_node(vfs, parent, name);
	int result = node ? name_know(vfs, parent, name, &known, NULL) : 0;
	known_release(&known);
	if (result == -ERR_NOT_FOUND && worktree_of(parent))
		name_lost(vfs, node);
}

void settle_renamed(struct vfs *vfs, struct node *from_parent, const char *from,
                    struct node *to_parent, const char *to, bool exchange)
{
	uint64_t number = number_now(vfs, to_parent, to);
	struct node *moved = named_node(vfs, from_parent, from), *dead = NULL;
	struct node *target = named_node(vfs, to_parent, to);
	if (!number || !moved || moved->number != number || moved == target)
		return; /* the table says so already, or others changed it since */
	int result = 0;
	if (exchange) {
		nodes_lock(vfs->nodes);
		result = target ? nodes_exchange(vfs->nodes, moved, target)
		                : nodes_rename(vfs->nodes, moved, to_parent, to, &dead);
	} else {
		if (target)
			name_lost(vfs, target);
		nodes_lock(vfs->nodes);
		result = nodes_rename(vfs->nodes, moved, to_parent, to, &dead);
	}
	if (result < 0)
		nodes_detach(vfs->nodes, moved);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
}

void settle_linked(struct vfs *vfs, struct node *node, struct node *parent, const char *name)
{
	uint64_t number = number_now(vfs, parent, name);
	if (number && node->orphan && node->orphan->number == number)
		orphan_named(vfs, node, parent, number, name);
}
