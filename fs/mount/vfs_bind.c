/*
 * Hides how a node finds itself again in a working tree that moved: bindings hold for one epoch;
 * after that they are made anew by walking down from the nearest ancestor that is bound.
 *
 * The walk works on copies of names and checks, under the table's lock, that they still are the
 * nodes' names before it binds anything: a concurrent rename makes it start again.
 */
#include "fs/mount/vfs_internal.h"

#include <errno.h>
#include <unistd.h>

#define DIRECTORY_BYTES 4096 /* what most file systems say of a small one */

uint64_t scope_epoch(const struct scope *scope)
{
	return scope->worktree ? worktree_epoch(scope->worktree) : 0;
}

int scope_lookup(struct vfs *vfs, const struct scope *scope, const struct directory *directory,
                 const char *name, struct found *ret_found, struct message *message)
{
	size_t length = strlen(name);
	if (length > NAME_BYTES_MAX)
		return error_system(ENAMETOOLONG);
	if (scope->worktree)
		return worktree_lookup(scope->worktree, directory, name, length, ret_found,
		                       message);
	struct tree_entry *entry;
	int result = tree_lookup(vfs->lake->odb, &directory->tree, name, length, &entry, message);
	if (result < 0)
		return result;
	*ret_found = (struct found){.mode = entry->attributes.mode, .entry = entry};
	return 0;
}

static void found_release(struct found *found)
{
	free(found->entry);
}

static int scope_top(const struct scope *scope, bool adopt, struct directory *ret_directory)
{
	*ret_directory = (struct directory){0};
	if (!scope->worktree) {
		ret_directory->tree = scope->commit->tree;
		return 0;
	}
	if (adopt)
		return worktree_adopt_root(scope->worktree, &ret_directory->number);
	return worktree_root(scope->worktree, ret_directory);
}

/* -- the chain of nodes to bind, the lowest first -- */

struct link {
	struct node *node; /* pinned */
	struct node *parent;
	char *name;
};
struct chain {
	struct link *links;
	size_t count, capacity;
	struct directory start; /* what the last link's parent is; nothing for a top */
};

static void chain_release(struct vfs *vfs, struct chain *chain)
{
	struct node *dead = NULL;
	nodes_lock(vfs->nodes);
	for (size_t i = 0; i < chain->count; i++)
		nodes_unpin(vfs->nodes, chain->links[i].node, &dead);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
	for (size_t i = 0; i < chain->count; i++)
		free(chain->links[i].name);
	free(chain->links);
}

static int chain_push(struct chain *chain, struct node *node)
{
	if (chain->count == chain->capacity) {
		size_t capacity = chain->capacity ? chain->capacity * 2 : 4;
		struct link *links = realloc(chain->links, capacity * sizeof(*links));
		if (!links)
			return -ERR_NO_MEMORY;
		chain->links = links;
		chain->capacity = capacity;
	}
	char *name = strdup(node->name);
	if (!name)
		return -ERR_NO_MEMORY;
	nodes_pin(node);
	chain->links[chain->count++] = (struct link){node, node->parent, name};
	return 0;
}

static bool is_bound(const struct node *node, uint64_t epoch, bool adopt)
{
	return (node->flags & NODE_BOUND) && node->epoch == epoch && (node->number || !adopt);
}

static void bound_directory(const struct node *node, struct directory *ret_directory)
{
	*ret_directory = (struct directory){.number = node->number};
	if (!node->number && node->tree)
		ret_directory->tree = *node->tree;
}

static int chain_collect(struct vfs *vfs, struct node *node, uint64_t epoch, bool adopt,
                         struct chain *ret_chain)
{
	int result = 0;
	nodes_lock(vfs->nodes);
	for (struct node *at = node;; at = at->parent) {
		if (at->flags & NODE_DETACHED) {
			if (at != node) /* what was in a directory that is gone is gone too */
				nodes_detach(vfs->nodes, node);
			result = -ERR_STALE;
			break;
		}
		if (is_bound(at, epoch, adopt)) {
			bound_directory(at, &ret_chain->start);
			break;
		}
		if (at->flags & NODE_NAMELESS) {
			result = -ERR_STALE;
			break;
		}
		result = chain_push(ret_chain, at);
		if (result < 0 || at->kind == NODE_TOP)
			break;
	}
	nodes_unlock(vfs->nodes);
	return result;
}

static uint64_t content_tag(const struct tree_entry *entry)
{
	return S_ISREG(entry->attributes.mode) ? load_u64(entry->content.pointer.id.bytes) : 0;
}

/* Whether what the name leads to now can be this node at all. `seen`: its number before it was
 * adopted just now. */
static bool is_same(const struct node *node, uint64_t epoch, uint64_t number, uint64_t seen,
                    uint64_t tag)
{
	if (!(node->flags & NODE_BOUND) || node->directory || node->epoch == epoch)
		return true;
	if (node->flags & NODE_LINKED && node->number != number)
		return false; /* a commit split the links: each name gets a node of its own */
	if (node->epoch == EPOCH_RESTORED && node->number && seen && node->number != seen)
		return false; /* a change that the process before this one did not tell of */
	return node->number || number || node->tag == tag;
}

/* Bind under the table's lock, unless the link is outdated. */
static int link_bind(struct vfs *vfs, const struct link *link, uint64_t epoch,
                     const struct directory *directory, uint64_t seen, uint64_t tag)
{
	struct pointer *tree = NULL;
	struct node *node = link->node;
	bool detached = false;
	int result = 0;
	if (node->directory && !directory->number) {
		tree = malloc(sizeof(*tree));
		if (!tree)
			return -ERR_NO_MEMORY;
		*tree = directory->tree;
	}
	nodes_lock(vfs->nodes);
	if (node->flags & (NODE_DETACHED | NODE_NAMELESS) || node->parent != link->parent ||
	    strcmp(node->name, link->name) != 0) {
		result = -ERR_STALE;
	} else if (is_bound(node, epoch, true)) {
		; /* somebody adopted it meanwhile: newer than what we saw */
	} else if (!is_same(node, epoch, directory->number, seen, tag)) {
		nodes_detach(vfs->nodes, node);
		detached = true;
		result = -ERR_STALE;
	} else {
		nodes_bind(vfs->nodes, node, epoch, directory->number, tag);
		free(node->tree);
		node->tree = steal(&tree);
	}
	nodes_unlock(vfs->nodes);
	free(tree);
	if (detached)
		vfs->stale++;
	return result;
}

static int link_walk(struct vfs *vfs, const struct link *link, uint64_t epoch, bool adopt,
                     struct directory *directory, struct message *message)
{
	struct node *node = link->node;
	if (node->kind == NODE_TOP) {
		int result = scope_top(node->scope, adopt, directory);
		return result < 0 ? result : link_bind(vfs, link, epoch, directory, 0, 0);
	}
	CLEANUP(found_release) struct found found = {0};
	int result = scope_lookup(vfs, node->scope, directory, link->name, &found, message);
	if (result < 0)
		return result;
	if (S_ISDIR(found.mode) != node->directory)
		return -ERR_NOT_FOUND; /* something else took the name */
	uint64_t parent = directory->number, tag = found.entry ? content_tag(found.entry) : 0;
	*directory = (struct directory){.number = found.number};
	if (!found.number && adopt) {
		result = worktree_adopt(node->scope->worktree, parent, found.entry, node->shown,
		                        &directory->number, message);
		if (result < 0)
			return result;
		tag = 0;
	} else if (!found.number && S_ISDIR(found.mode)) {
		directory->tree = found.entry->content.pointer;
	}
	return link_bind(vfs, link, epoch, directory, found.number, tag);
}

static int bind_once(struct vfs *vfs, struct node *node, uint64_t epoch, bool adopt,
                     struct directory *ret_directory, struct message *message)
{
	struct chain chain = {0};
	int result = chain_collect(vfs, node, epoch, adopt, &chain);
	struct directory directory = chain.start;
	for (size_t i = chain.count; result >= 0 && i-- > 0;)
		result = link_walk(vfs, &chain.links[i], epoch, adopt, &directory, message);
	if (result >= 0)
		*ret_directory = directory;
	if (chain.links)
		chain_release(vfs, &chain);
	return result;
}

int node_bind(struct vfs *vfs, struct node *node, bool adopt, struct binding *ret_binding,
              struct message *message)
{
	int result = -ERR_STALE;
	for (int i = 0; i < VFS_TRIES; i++) {
		uint64_t epoch = scope_epoch(node->scope);
		result = bind_once(vfs, node, epoch, adopt, &ret_binding->directory, message);
		if (result >= 0 && !adopt && scope_epoch(node->scope) != epoch)
			continue;
		ret_binding->epoch = epoch;
		if (result != -ERR_STALE && result != -ERR_NOT_FOUND &&
		    result != -ERR_NOT_DIRECTORY)
			return result;
		if ((result == -ERR_NOT_FOUND && i >= 4) || node_detached(vfs, node))
			break;
		if (i >= 4)
			usleep(1000); /* a move in progress */
	}
	if (result == -ERR_NOT_FOUND)
		node_detach(vfs, node);
	return -ERR_STALE;
}

void node_unbind(struct vfs *vfs, struct node *node)
{
	nodes_lock(vfs->nodes);
	node->flags &= (uint8_t)~NODE_BOUND;
	nodes_unlock(vfs->nodes);
}

/* -- records -- */

static int copy_bytes(const void *bytes, size_t length, void *ret_pointer)
{
	char *copy = malloc(length + 1);
	if (!copy)
		return -ERR_NO_MEMORY;
	memcpy(copy, bytes, length);
	copy[length] = '\0';
	memcpy(ret_pointer, &copy, sizeof(copy));
	return 0;
}

static int entry_inode(const struct tree_entry *entry, uint64_t shown, struct inode *ret_inode)
{
	struct inode inode = {.shown = shown,
	                      .attributes = entry->attributes,
	                      .ctime_ns = entry->attributes.mtime_ns,
	                      .nlink = 1,
	                      .target_length = entry->target_length,
	                      .xattrs_length = entry->xattrs_length};
	if (S_ISDIR(entry->attributes.mode))
		inode.tree = entry->content.pointer;
	else
		inode.content = entry->content;
	int result = 0;
	if (entry->target)
		result = copy_bytes(entry->target, entry->target_length, &inode.target);
	if (result == 0 && entry->xattrs)
		result = copy_bytes(entry->xattrs, entry->xattrs_length, &inode.xattrs);
	if (result < 0)
		inode_release(&inode);
	else
		*ret_inode = inode;
	return result;
}

int found_inode(const struct scope *scope, const struct found *found, uint64_t shown,
                struct inode *ret_inode)
{
	if (!found->number)
		return entry_inode(found->entry, shown, ret_inode);
	int result = worktree_inode(scope->worktree, found->number, ret_inode);
	return result == -ERR_NOT_FOUND ? -ERR_STALE : result;
}

/* The root directory of a scope that has no overlay record. */
static int top_inode(struct node *node, const struct directory *directory, struct inode *ret_inode)
{
	struct scope *scope = node->scope;
	CLEANUP(free_pointer) struct commit *base = NULL;
	const struct commit *commit = scope->commit;
	if (scope->worktree) {
		int result = worktree_base(scope->worktree, &base);
		if (result < 0)
			return result;
		commit = base;
	}
	*ret_inode = (struct inode){.shown = node->shown,
	                            .attributes = commit->root,
	                            .ctime_ns = commit->root.mtime_ns,
	                            .nlink = 1,
	                            .tree = directory->tree};
	if (!S_ISDIR(ret_inode->attributes.mode))
		ret_inode->attributes.mode = S_IFDIR | (commit->root.mode & 07777);
	return 0;
}

static int committed_inode(struct vfs *vfs, struct node *node, const struct binding *binding,
                           struct inode *ret_inode, struct message *message)
{
	if (node->kind == NODE_TOP)
		return top_inode(node, &binding->directory, ret_inode);
	CLEANUP(free_pointer) char *name = NULL;
	nodes_lock(vfs->nodes);
	struct node *parent = node->flags & (NODE_DETACHED | NODE_NAMELESS) ? NULL : node->parent;
	if (parent) {
		name = strdup(node->name);
		nodes_pin(parent);
	}
	nodes_unlock(vfs->nodes);
	if (!parent)
		return -ERR_STALE;
	struct binding above;
	CLEANUP(found_release) struct found found = {0};
	int result = name ? node_bind(vfs, parent, false, &above, message) : -ERR_NO_MEMORY;
	if (result >= 0)
		result = scope_lookup(vfs, node->scope, &above.directory, name, &found, message);
	if (result == -ERR_NOT_FOUND)
		result = -ERR_STALE;
	if (result >= 0)
		result = found_inode(node->scope, &found, node->shown, ret_inode);
	node_put(vfs, parent);
	return result;
}

/* Gone with a directory above it: looking the path up again leads nowhere. */
static bool node_is_lost(struct vfs *vfs, const struct node *node)
{
	bool lost = false;
	nodes_lock(vfs->nodes);
	for (const struct node *at = node->parent; at && !lost; at = at->parent)
		lost = at->flags & NODE_DETACHED;
	nodes_unlock(vfs->nodes);
	return lost;
}

/* What is known of a node to which no path leads, if it is such a node. `walked`: in vain. */
static bool node_off_paths(struct vfs *vfs, struct node *node, bool walked, struct inode *ret_inode,
                           int *ret_result)
{
	nodes_lock(vfs->nodes);
	bool orphan = node->orphan != NULL, detached = node->flags & NODE_DETACHED;
	if (orphan)
		*ret_result = inode_copy(node->orphan, ret_inode);
	nodes_unlock(vfs->nodes);
	if (orphan)
		return true;
	if (!detached && (!walked || !node_is_lost(vfs, node)))
		return false;
	*ret_result = open_frozen(vfs, node, ret_inode, NULL);
	return true;
}

int node_inode(struct vfs *vfs, struct node *node, struct inode *ret_inode, struct message *message)
{
	int result = -ERR_STALE;
	for (int i = 0; i < VFS_TRIES; i++) {
		struct binding binding;
		int off;
		if (node_off_paths(vfs, node, false, ret_inode, &off))
			return off;
		result = node_bind(vfs, node, false, &binding, message);
		if (result == -ERR_STALE && node_off_paths(vfs, node, true, ret_inode, &off))
			return off; /* that very call, or another's, took it from its path */
		if (result < 0)
			return result;
		if (binding.directory.number) {
			result = worktree_inode(node->scope->worktree, binding.directory.number,
			                        ret_inode);
			if (result == -ERR_NOT_FOUND)
				result = -ERR_STALE;
		} else {
			result = committed_inode(vfs, node, &binding, ret_inode, message);
		}
		if (result != -ERR_STALE)
			return result;
		node_unbind(vfs, node);
	}
	return result;
}

static void committed_stat(const struct inode *inode, struct stat *ret_stat)
{
	int64_t mtime = inode->attributes.mtime_ns, ctime = inode->ctime_ns;
	uint64_t size = S_ISDIR(inode->attributes.mode)   ? DIRECTORY_BYTES
	                : S_ISLNK(inode->attributes.mode) ? inode->target_length
	                                                  : inode->content.size;
	*ret_stat = (struct stat){
	        .st_mode = inode->attributes.mode,
	        .st_uid = inode->attributes.uid,
	        .st_gid = inode->attributes.gid,
	        .st_rdev = inode->attributes.rdev,
	        .st_nlink = inode->nlink,
	        .st_size = (off_t)size,
	        .st_blocks = S_ISREG(inode->attributes.mode) ? (blkcnt_t)((size + 511) / 512) : 0,
	        .st_blksize = 4096};
	struct timespec modified = {mtime / 1000000000, mtime % 1000000000};
	struct timespec changed = {ctime / 1000000000, ctime % 1000000000};
	if (modified.tv_nsec < 0) {
		modified.tv_sec--;
		modified.tv_nsec += 1000000000;
	}
	if (changed.tv_nsec < 0) {
		changed.tv_sec--;
		changed.tv_nsec += 1000000000;
	}
	ret_stat->st_mtim = ret_stat->st_atim = modified;
	ret_stat->st_ctim = changed;
}

int node_stat(struct vfs *vfs, struct node *node, const struct inode *inode, struct stat *ret_stat)
{
	int result = 0;
	if (inode->number && node->scope->worktree)
		result = worktree_stat(node->scope->worktree, inode, ret_stat);
	else
		committed_stat(inode, ret_stat);
	if (result < 0)
		return result;
	ret_stat->st_ino = node->shown;
	if (!S_ISDIR(ret_stat->st_mode))
		return 0;
	/* Alike whether in the overlay or committed. 1 link, as on btrfs: "not counted", so that
	 * nobody (find) derives from it how many subdirectories there are. */
	ret_stat->st_size = DIRECTORY_BYTES;
	ret_stat->st_blocks = 0;
	if (ret_stat->st_nlink)
		ret_stat->st_nlink = 1;
	return 0;
}

int name_know(struct vfs *vfs, struct node *parent, const char *name, struct known *ret_known,
              struct message *message)
{
	int result = -ERR_STALE;
	for (int i = 0; i < VFS_TRIES && result == -ERR_STALE; i++) {
		struct binding binding;
		result = node_bind(vfs, parent, false, &binding, message);
		if (result < 0)
			return result;
		CLEANUP(found_release) struct found found = {0};
		result =
		        scope_lookup(vfs, parent->scope, &binding.directory, name, &found, message);
		if (result >= 0)
			result = found_inode(parent->scope, &found,
			                     entry_shown(parent->shown, name), &ret_known->inode);
		if (result == -ERR_STALE) {
			node_unbind(vfs, parent);
			continue;
		}
		if (result < 0)
			return result;
		ret_known->epoch = binding.epoch;
		ret_known->directory = (struct directory){.number = found.number};
		if (!found.number)
			ret_known->directory.tree = ret_known->inode.tree;
	}
	return result;
}

/* -- the gate -- */

int node_writable(const struct node *node)
{
	struct worktree *worktree = node->scope->worktree;
	return !worktree || worktree_read_only(worktree) ? -ERR_READ_ONLY : 0;
}

int gate_enter(const struct node *node)
{
	struct worktree *worktree = node->scope->worktree;
	int result = node_writable(node);
	if (result < 0)
		return result;
	result = -ERR_STALE;
	for (int i = 0; i < VFS_TRIES && result == -ERR_STALE; i++)
		result = worktree_enter(worktree, worktree_epoch(worktree));
	return result == -ERR_NOT_FOUND ? -ERR_STALE : result;
}

void gate_leave(const struct node *node)
{
	worktree_leave(node->scope->worktree);
}
