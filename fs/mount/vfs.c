/*
 * Hides the life of nodes: how one comes to stand for a name, and what goes with it; and the
 * operations that only look.
 */
#include "fs/mount/vfs_internal.h"
#include "store/thread.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

int vfs_new(struct lake *lake, const struct vfs_kernel *kernel, struct keep *keep,
            struct vfs **ret_vfs)
{
	struct vfs *vfs = calloc(1, sizeof(*vfs));
	if (!vfs)
		return -ERR_NO_MEMORY;
	int result = nodes_new(&vfs->nodes);
	if (result < 0) {
		free(vfs);
		return result;
	}
	vfs->lake = lake;
	if (kernel)
		vfs->kernel = *kernel;
	vfs->uid = geteuid();
	vfs->gid = getegid();
	vfs->started_ns = clock_wall_ns();
	pthread_mutex_init(&vfs->files_lock, NULL);
	for (size_t i = 0; i < OPEN_STRIPES; i++) {
		pthread_mutex_init(&vfs->stripes[i].lock, NULL);
		pthread_cond_init(&vfs->stripes[i].changed, NULL);
	}
	vfs->keep = keep;
	vfs->next_handle = 1;
	result = keep ? vfs_restore(vfs) : 0;
	if (result >= 0 && lake->cache)
		result = ahead_new(vfs, &vfs->ahead);
	if (result < 0) {
		vfs_free(vfs);
		return result;
	}
	vfs_observe(vfs, true);
	*ret_vfs = vfs;
	return 0;
}

void vfs_free(struct vfs *vfs)
{
	if (!vfs)
		return;
	vfs_observe(vfs, false);
	ahead_free(vfs->ahead);
	open_let_go(vfs);
	while (vfs->directories)
		vfs_releasedir(vfs, vfs->directories);
	free(vfs->done);
	nodes_dispose(vfs, nodes_empty(vfs->nodes));
	nodes_free(vfs->nodes);
	for (size_t i = 0; i < OPEN_STRIPES; i++) {
		pthread_mutex_destroy(&vfs->stripes[i].lock);
		pthread_cond_destroy(&vfs->stripes[i].changed);
	}
	pthread_mutex_destroy(&vfs->files_lock);
	free(vfs);
}

/* -- references -- */

int node_get(struct vfs *vfs, uint64_t id, struct node **ret_node)
{
	nodes_lock(vfs->nodes);
	struct node *node = nodes_by_id(vfs->nodes, id);
	if (node)
		nodes_pin(node);
	nodes_unlock(vfs->nodes);
	if (!node)
		return -ERR_STALE;
	*ret_node = node;
	return 0;
}

void nodes_dispose(struct vfs *vfs, struct node *dead)
{
	for (struct node *next; dead; dead = next) {
		next = dead->id_next;
		if (dead->orphan && dead->orphan->number)
			worktree_forget(vfs->lake->worktrees, dead->orphan);
		node_free(dead);
	}
}

void node_put(struct vfs *vfs, struct node *node)
{
	struct node *dead = NULL;
	if (!node)
		return;
	nodes_lock(vfs->nodes);
	nodes_unpin(vfs->nodes, node, &dead);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
}

void node_forget(struct vfs *vfs, struct node *node, uint64_t count)
{
	struct node *dead = NULL;
	nodes_lock(vfs->nodes);
	nodes_forget(vfs->nodes, node, count, &dead);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
}

void vfs_forget(struct vfs *vfs, uint64_t id, uint64_t count)
{
	struct node *dead = NULL;
	nodes_lock(vfs->nodes);
	struct node *node = nodes_by_id(vfs->nodes, id);
	if (node)
		nodes_forget(vfs->nodes, node, count, &dead);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
}

void node_detach(struct vfs *vfs, struct node *node)
{
	nodes_lock(vfs->nodes);
	if (!(node->flags & NODE_DETACHED))
		nodes_detach(vfs->nodes, node);
	nodes_unlock(vfs->nodes);
	vfs->stale++;
}

bool node_detached(struct vfs *vfs, const struct node *node)
{
	nodes_lock(vfs->nodes);
	bool detached = node->flags & NODE_DETACHED;
	nodes_unlock(vfs->nodes);
	return detached;
}

/* -- nodes for names -- */

/* The same on every host and in every mount, for as long as the path exists; the top bit keeps
 * these apart from the numbers of overlay inodes. */
uint64_t entry_shown(uint64_t parent_shown, const char *name)
{
	uint64_t hash = parent_shown ^ 0xCBF29CE484222325ull;
	for (const unsigned char *at = (const unsigned char *)name; *at; at++) {
		hash = (hash ^ *at) * 0x9E3779B97F4A7C15ull;
		hash ^= hash >> 29;
	}
	return hash | 1ull << 63;
}

void known_release(struct known *known)
{
	inode_release(&known->inode);
}

static uint64_t known_tag(const struct known *known)
{
	const struct inode *inode = &known->inode;
	return known->directory.number || !S_ISREG(inode->attributes.mode)
	               ? 0
	               : load_u64(inode->content.pointer.id.bytes);
}

/* Can the node that has this name stand for what is `known`? Table locked. */
enum fit { FIT_YES, FIT_NO, FIT_OUTDATED };
static enum fit node_fits(const struct node *node, const struct known *known)
{
	uint64_t number = known->directory.number;
	bool bound = node->flags & NODE_BOUND;
	if (S_ISDIR(known->inode.attributes.mode) != node->directory)
		return FIT_NO;
	if (bound && node->epoch == known->epoch && node->number) {
		if (!number)
			return FIT_OUTDATED; /* adopted since `known` was read */
		return node->number == number ? FIT_YES : FIT_NO;
	}
	if (bound && node->flags & NODE_LINKED && node->number != number)
		return FIT_NO;
	if (bound && !node->number && !number && node->tag != known_tag(known))
		return FIT_NO;
	return FIT_YES;
}

/* The node to use, or NULL when there is to be a new one. Table locked. */
static int node_find(struct vfs *vfs, struct node *parent, const char *name,
                     const struct known *known, struct node **ret_node, struct node **ret_dead)
{
	uint64_t number = known->directory.number;
	struct node *node = NULL, *named;
	named = nodes_by_name(vfs->nodes, parent, name);
	if (number)
		node = nodes_by_number(vfs->nodes, parent->scope, number);
	if (node && node != named) { /* another name of the same inode */
		if (named)
			nodes_detach(vfs->nodes, named);
		bool nameless = node->flags & NODE_NAMELESS;
		/* In another epoch the name that we know may have become a file of its own. */
		bool unsure = !(node->flags & NODE_BOUND) || node->epoch != known->epoch;
		if ((nameless || unsure) &&
		    nodes_rename(vfs->nodes, node, parent, name, ret_dead) < 0)
			return -ERR_NO_MEMORY;
		if (!nameless)
			nodes_linked(node);
		*ret_node = node;
		return 0;
	}
	*ret_node = NULL;
	if (!named)
		return 0;
	switch (node_fits(named, known)) {
	case FIT_OUTDATED:
		return -ERR_STALE;
	case FIT_NO:
		nodes_detach(vfs->nodes, named);
		vfs->stale++;
		return 0;
	case FIT_YES:
		*ret_node = named;
	}
	return 0;
}

static int intern_locked(struct vfs *vfs, struct node *parent, const char *name,
                         const struct known *known, struct pointer **tree, struct node **ret_node,
                         struct node **ret_dead)
{
	struct node *node;
	if (parent->flags & NODE_DETACHED)
		return -ERR_STALE;
	int result = node_find(vfs, parent, name, known, &node, ret_dead);
	if (result < 0)
		return result;
	if (!node) {
		node = nodes_add(vfs->nodes, NODE_ENTRY, parent, name, parent->scope,
		                 known->inode.shown);
		if (!node)
			return -ERR_NO_MEMORY;
		if (S_ISDIR(known->inode.attributes.mode))
			nodes_directory(node);
		if (known->inode.nlink > 1 && !node->directory)
			nodes_linked(node);
	}
	nodes_bind(vfs->nodes, node, known->epoch, known->directory.number, known_tag(known));
	if (node->directory) {
		free(node->tree);
		node->tree = steal(tree);
	}
	nodes_looked_up(node);
	nodes_pin(node);
	*ret_node = node;
	return 0;
}

int node_intern(struct vfs *vfs, struct node *parent, const char *name, const struct known *known,
                struct node **ret_node)
{
	CLEANUP(free_pointer) struct pointer *tree = NULL;
	if (S_ISDIR(known->inode.attributes.mode) && !known->directory.number) {
		tree = malloc(sizeof(*tree));
		if (!tree)
			return -ERR_NO_MEMORY;
		*tree = known->directory.tree;
	}
	struct node *dead = NULL;
	nodes_lock(vfs->nodes);
	int result = intern_locked(vfs, parent, name, known, &tree, ret_node, &dead);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
	return result;
}

int node_describe(struct vfs *vfs, struct node *node, const struct inode *inode,
                  struct vfs_entry *ret_entry)
{
	int result = node_stat(vfs, node, inode, &ret_entry->stat);
	ret_entry->node = node->id;
	ret_entry->lasting = true;
	return result;
}

/* Invariant (4) of vfs.h: a move that ends after `known` was read either finds the node in the
 * table, or has changed the epoch before we look here. */
int known_entry(struct vfs *vfs, struct node *parent, const char *name, const struct known *known,
                struct vfs_entry *ret_entry)
{
	struct node *node;
	int result = node_intern(vfs, parent, name, known, &node);
	if (result < 0)
		return result;
	result = scope_epoch(parent->scope) != known->epoch
	                 ? -ERR_STALE
	                 : node_describe(vfs, node, &known->inode, ret_entry);
	if (result < 0)
		node_forget(vfs, node, 1);
	node_put(vfs, node);
	return result;
}

int name_entry(struct vfs *vfs, struct node *parent, const char *name, struct vfs_entry *ret_entry,
               struct message *message)
{
	int result = -ERR_STALE;
	for (int i = 0; i < VFS_TRIES && result == -ERR_STALE; i++) {
		CLEANUP(known_release) struct known known = {0};
		result = name_know(vfs, parent, name, &known, message);
		if (result < 0)
			return result;
		result = known_entry(vfs, parent, name, &known, ret_entry);
		if (result == -ERR_STALE && node_detached(vfs, parent))
			break;
	}
	return result;
}

int vfs_lookup(struct vfs *vfs, uint64_t parent_id, const char *name, struct vfs_entry *ret_entry,
               struct message *message)
{
	struct node *parent;
	int result = node_get(vfs, parent_id, &parent);
	if (result < 0)
		return result;
	switch (parent->kind) {
	case NODE_ROOT:
		result = top_lookup(vfs, parent, name, ret_entry, message);
		break;
	case NODE_CONTROL:
		result = control_lookup(vfs, parent, name, ret_entry);
		break;
	case NODE_REPORT:
		result = -ERR_NOT_DIRECTORY;
		break;
	default:
		result = parent->directory ? name_entry(vfs, parent, name, ret_entry, message)
		                           : -ERR_NOT_DIRECTORY;
	}
	node_put(vfs, parent);
	return result;
}

/* -- what only looks -- */

/* An old version: no path leads to it any more, who has it open keeps it. */
static bool node_frozen(struct vfs *vfs, struct node *node)
{
	nodes_lock(vfs->nodes);
	bool frozen = (node->flags & NODE_DETACHED) && !node->orphan;
	nodes_unlock(vfs->nodes);
	return frozen;
}

static int getattr(struct vfs *vfs, struct node *node, struct stat *ret_stat,
                   struct message *message)
{
	struct inode inode;
	int result = -ERR_STALE;
	if (!node->scope) {
		fixed_stat(vfs, node, ret_stat);
		return 0;
	}
	for (int i = 0; i < VFS_TRIES; i++) {
		if (node_frozen(vfs, node)) {
			result = open_frozen(vfs, node, NULL, ret_stat);
			ret_stat->st_ino = node->shown;
			return result;
		}
		result = node_inode(vfs, node, &inode, message);
		if (result < 0)
			return result;
		if (node_frozen(vfs, node)) { /* that very call found out */
			inode_release(&inode);
			continue;
		}
		result = node_stat(vfs, node, &inode, ret_stat);
		inode_release(&inode);
		/* Its staging file became a cached blob between the two. */
		if (result != -ERR_STALE && result != -ERR_NOT_FOUND)
			return result;
		node_unbind(vfs, node);
	}
	return result;
}

int vfs_getattr(struct vfs *vfs, uint64_t id, struct stat *ret_stat, struct message *message)
{
	struct node *node;
	int result = node_get(vfs, id, &node);
	if (result < 0)
		return result;
	result = getattr(vfs, node, ret_stat, message);
	node_put(vfs, node);
	return result;
}

/* The record of a node in a branch or view. */
static int inode_get(struct vfs *vfs, uint64_t id, struct inode *ret_inode, struct message *message)
{
	struct node *node;
	int result = node_get(vfs, id, &node);
	if (result < 0)
		return result;
	result = node->scope ? node_inode(vfs, node, ret_inode, message) : -ERR_UNSUPPORTED;
	node_put(vfs, node);
	return result;
}

int vfs_readlink(struct vfs *vfs, uint64_t id, struct buffer *ret_target, struct message *message)
{
	CLEANUP(inode_release) struct inode inode = {0};
	int result = inode_get(vfs, id, &inode, message);
	if (result < 0)
		return result;
	if (!S_ISLNK(inode.attributes.mode) || !inode.target)
		return -ERR_INVALID;
	buffer_append(ret_target, inode.target, inode.target_length);
	return buffer_check(ret_target);
}

static bool xattr_is_acl(const char *name)
{
	return strncmp(name, "system.", 7) == 0;
}

int vfs_xattr_get(struct vfs *vfs, uint64_t id, const char *name, struct buffer *ret_value,
                  struct message *message)
{
	if (xattr_is_acl(name))
		return -ERR_UNSUPPORTED;
	CLEANUP(inode_release) struct inode inode = {0};
	int result = inode_get(vfs, id, &inode, message);
	if (result == -ERR_UNSUPPORTED)
		return error_system(ENODATA);
	if (result < 0)
		return result;
	struct span value;
	if (!inode.xattrs || xattrs_get(inode.xattrs, inode.xattrs_length, name, &value) < 0)
		return error_system(ENODATA);
	buffer_append(ret_value, value.data, value.length);
	return buffer_check(ret_value);
}

static int xattr_name_add(void *context, const char *name, size_t length, struct span value)
{
	buffer_append(context, name, length);
	buffer_u8(context, 0);
	return 0;
}

int vfs_xattr_list(struct vfs *vfs, uint64_t id, struct buffer *ret_names, struct message *message)
{
	CLEANUP(inode_release) struct inode inode = {0};
	int result = inode_get(vfs, id, &inode, message);
	if (result == -ERR_UNSUPPORTED)
		return 0;
	if (result >= 0 && inode.xattrs)
		result = xattrs_each(inode.xattrs, inode.xattrs_length, xattr_name_add, ret_names);
	return result < 0 ? result : buffer_check(ret_names);
}

int vfs_statfs(struct vfs *vfs, struct statvfs *ret_statvfs)
{
	if (statvfs(vfs->lake->directory, ret_statvfs) < 0)
		return error_system(errno);
	ret_statvfs->f_namemax = NAME_BYTES_MAX;
	return 0;
}

int vfs_sync_names(struct vfs *vfs)
{
	thread_about_to_block();
	return state_sync(vfs->lake->state);
}

void vfs_path(struct vfs *vfs, uint64_t id, char *ret_path, size_t size)
{
	CLEANUP(free_pointer) char *text = malloc(PATH_BYTES_MAX);
	size_t at = PATH_BYTES_MAX - 1;
	ret_path[0] = '\0';
	if (!text)
		return;
	text[at] = '\0';
	nodes_lock(vfs->nodes);
	for (struct node *node = nodes_by_id(vfs->nodes, id); node && node->parent;
	     node = node->parent) {
		size_t length = strlen(node->name);
		if (length + 1 > at)
			break;
		if (text[at])
			text[--at] = '/';
		at -= length;
		memcpy(text + at, node->name, length);
	}
	nodes_unlock(vfs->nodes);
	snprintf(ret_path, size, "%s", text + at);
}

void vfs_stats(struct vfs *vfs, struct vfs_stats *ret_stats)
{
	*ret_stats = (struct vfs_stats){.nodes = nodes_count(vfs->nodes),
	                                .files = vfs->file_count,
	                                .passthrough_opens = vfs->passthrough_opens,
	                                .daemon_opens = vfs->daemon_opens,
	                                .stale = vfs->stale,
	                                .moves = vfs->moves};
}
