/*
 * Hides what the kernel must forget when a working tree changes without it: commands move
 * branches, restore paths, delete and rename branches.
 *
 * For every path that shows something else now and has a node: the node is detached (descriptors
 * keep it, with what it was) and the kernel forgets the name; the next lookup gives the path a
 * new node. Directories above only lose their listings and attributes. First the table changes,
 * then the kernel is told, with no lock held: it takes locks of its own, which may be held by
 * requests waiting for ours.
 */
#include "fs/mount/vfs_internal.h"

#define CHANGES_MAX 20000 /* above that, forget everything below the branch's root at once */

static void forget_entry(struct vfs *vfs, uint64_t parent, const char *name)
{
	if (vfs->kernel.forget_entry)
		vfs->kernel.forget_entry(vfs->kernel.context, parent, name);
}

static void forget_inode(struct vfs *vfs, uint64_t node, bool pages)
{
	if (vfs->kernel.forget_inode)
		vfs->kernel.forget_inode(vfs->kernel.context, node, pages);
}

/* The branch's top node, pinned; NULL: the kernel knows nothing of it. */
static struct node *branch_node(struct vfs *vfs, const char *branch)
{
	nodes_lock(vfs->nodes);
	struct node *root = nodes_by_id(vfs->nodes, NODE_ROOT_ID);
	struct node *top = nodes_by_name(vfs->nodes, root, branch);
	if (top && top->kind != NODE_TOP)
		top = NULL;
	if (top)
		nodes_pin(top);
	nodes_unlock(vfs->nodes);
	return top;
}

/* The node for the path's directory and, when there is one, for the path itself; the last name
 * starts at *ret_name. Table locked. */
static struct node *path_nodes(struct vfs *vfs, struct node *top, const char *path, char *name,
                               const char **ret_name, struct node **ret_node)
{
	struct node *at = top;
	for (;;) {
		const char *slash = strchr(path, '/');
		size_t length = slash ? (size_t)(slash - path) : strlen(path);
		if (length > NAME_BYTES_MAX)
			return NULL;
		memcpy(name, path, length);
		name[length] = '\0';
		struct node *child = nodes_by_name(vfs->nodes, at, name);
		if (!slash) {
			*ret_name = path;
			*ret_node = child;
			return at;
		}
		if (!child)
			return NULL;
		at = child;
		path = slash + 1;
	}
}

/* The last directory on the way to `path` that the kernel knows: a missing one may have come. */
static uint64_t nearest_known(struct vfs *vfs, struct node *top, const char *path)
{
	char name[NAME_BYTES_MAX + 1];
	struct node *at = top, *child = top;
	nodes_lock(vfs->nodes);
	while (child) {
		size_t length = strcspn(path, "/");
		at = child;
		if (length > NAME_BYTES_MAX || !path[length])
			break;
		memcpy(name, path, length);
		name[length] = '\0';
		child = nodes_by_name(vfs->nodes, at, name);
		path += length + 1;
	}
	uint64_t id = at->id;
	nodes_unlock(vfs->nodes);
	return id;
}

/* Other bytes, or nothing, at the path. */
static void path_forget(struct vfs *vfs, struct node *top, const char *path)
{
	char component[NAME_BYTES_MAX + 1];
	const char *name;
	struct node *node;
	uint64_t parent_id = 0;
	nodes_lock(vfs->nodes);
	struct node *parent = path_nodes(vfs, top, path, component, &name, &node);
	if (parent)
		parent_id = parent->id;
	if (parent && node)
		nodes_detach(vfs->nodes, node);
	nodes_unlock(vfs->nodes);
	if (!parent_id) {
		forget_inode(vfs, nearest_known(vfs, top, path), true);
		return;
	}
	/* Even without a node: a name of an inode with several may lead here. */
	forget_entry(vfs, parent_id, name);
	forget_inode(vfs, parent_id, true);
}

/* Other attributes, same bytes. */
static void attributes_forget(struct vfs *vfs, struct node *top, const char *path)
{
	char component[NAME_BYTES_MAX + 1];
	const char *name;
	struct node *node = NULL;
	uint64_t id = 0;
	nodes_lock(vfs->nodes);
	if (path_nodes(vfs, top, path, component, &name, &node) && node)
		id = node->id;
	nodes_unlock(vfs->nodes);
	if (id)
		forget_inode(vfs, id, false);
}

struct children {
	struct nodes *nodes;
	struct buffer names; /* each with its NUL */
};

static void child_detach(void *context, struct node *child)
{
	struct children *children = context;
	buffer_append(&children->names, child->name, strlen(child->name) + 1);
	nodes_detach(children->nodes, child);
}

static void all_forget(struct vfs *vfs, struct node *top)
{
	struct children children = {.nodes = vfs->nodes};
	nodes_lock(vfs->nodes);
	nodes_children(vfs->nodes, top, child_detach, &children);
	nodes_unlock(vfs->nodes);
	const char *names = (const char *)children.names.data;
	for (size_t at = 0; at < children.names.length; at += strlen(names + at) + 1)
		forget_entry(vfs, top->id, names + at);
	forget_inode(vfs, top->id, true);
	buffer_release(&children.names);
}

struct move {
	struct vfs *vfs;
	struct node *top;
	unsigned changes;
};

static int change_forget(void *context, const struct change *change)
{
	struct move *move = context;
	if (++move->changes > CHANGES_MAX)
		return 1;
	char *path = strndup(change->path, change->path_length);
	if (!path)
		return -ERR_NO_MEMORY;
	if (change->kind == CHANGE_MODE)
		attributes_forget(move->vfs, move->top, path);
	else
		path_forget(move->vfs, move->top, path);
	free(path);
	return 0;
}

static void on_moved(void *context, const char *branch, const struct pointer *before,
                     const struct pointer *after)
{
	struct vfs *vfs = context;
	struct move move = {.vfs = vfs, .top = branch_node(vfs, branch)};
	const struct diff_options options = {.directories = true, .times = true, .shallow = true};
	vfs->moves++;
	if (!move.top)
		return;
	if (diff_trees(vfs->lake->odb, before, after, &options, change_forget, &move, NULL) != 0)
		all_forget(vfs, move.top);
	forget_inode(vfs, move.top->id, true);
	node_put(vfs, move.top);
}

/* -- a command rewrote what is at and below a path -- */

struct affected {
	struct nodes *nodes;
	struct node **items; /* pinned */
	size_t count, capacity;
	bool overflow; /* too many, or no memory: treat the path as one thing */
};

static void affect(void *context, struct node *node)
{
	struct affected *affected = context;
	if (affected->count == affected->capacity && !affected->overflow) {
		size_t capacity = affected->capacity ? 2 * affected->capacity : 64;
		struct node **items =
		        capacity > 2 * CHANGES_MAX
		                ? NULL
		                : reallocarray(affected->items, capacity, sizeof(*items));
		affected->overflow = items == NULL;
		affected->items = items ? items : affected->items;
		affected->capacity = items ? capacity : affected->capacity;
	}
	if (affected->overflow)
		return;
	nodes_pin(node);
	affected->items[affected->count++] = node;
}

static unsigned depth_of(const struct node *node)
{
	unsigned depth = 0;
	for (; node->parent; node = node->parent)
		depth++;
	return depth;
}

static int by_depth(const void *a, const void *b)
{
	unsigned left = depth_of(*(struct node *const *)a);
	unsigned right = depth_of(*(struct node *const *)b);
	return (left > right) - (left < right);
}

/* Is the name still what the directory node stands for? Then processes whose current directory it
 * is stay where they are. */
static bool still_directory(struct vfs *vfs, struct node *parent, const char *name)
{
	struct known known = {0};
	bool is = name_know(vfs, parent, name, &known, NULL) == 0 &&
	          S_ISDIR(known.inode.attributes.mode);
	known_release(&known);
	return is;
}

static void node_changed(struct vfs *vfs, struct node *node)
{
	nodes_lock(vfs->nodes);
	struct node *parent = node->parent;
	uint64_t id = node->id, parent_id = parent ? parent->id : 0;
	CLEANUP(free_pointer) char *name = node->name ? strdup(node->name) : NULL;
	bool attached = parent && name && !(node->flags & NODE_DETACHED);
	if (attached)
		nodes_pin(parent);
	nodes_unlock(vfs->nodes);
	if (!attached)
		return;
	if (node->directory && still_directory(vfs, parent, name)) {
		node_unbind(vfs, node);
		forget_inode(vfs, id, true);
	} else {
		node_detach(vfs, node);
		forget_entry(vfs, parent_id, name);
	}
	node_put(vfs, parent);
}

/* Everything at and below `node`: directories that are directories still lose their listings,
 * the rest is looked up again. */
static void tree_changed(struct vfs *vfs, struct node *node, bool itself, bool *ret_done)
{
	struct affected affected = {.nodes = vfs->nodes};
	nodes_lock(vfs->nodes);
	if (itself)
		affect(&affected, node);
	nodes_below(vfs->nodes, node, affect, &affected);
	if (affected.count)
		qsort(affected.items, affected.count, sizeof(*affected.items), by_depth);
	nodes_unlock(vfs->nodes);
	for (size_t i = 0; i < affected.count; i++) {
		if (!affected.overflow)
			node_changed(vfs, affected.items[i]);
		node_put(vfs, affected.items[i]);
	}
	free(affected.items);
	*ret_done = !affected.overflow;
}

static void path_changed(struct vfs *vfs, struct node *top, const char *path)
{
	char component[NAME_BYTES_MAX + 1];
	const char *name;
	struct node *node = NULL;
	uint64_t parent_id = 0;
	bool done = false;
	nodes_lock(vfs->nodes);
	struct node *parent = path_nodes(vfs, top, path, component, &name, &node);
	if (parent)
		parent_id = parent->id;
	if (parent && node)
		nodes_pin(node);
	else
		node = NULL;
	nodes_unlock(vfs->nodes);
	if (node)
		tree_changed(vfs, node, true, &done);
	node_put(vfs, node);
	if (!done)
		path_forget(vfs, top, path);
	else if (parent_id)
		forget_inode(vfs, parent_id, true);
}

static void on_paths_changed(void *context, const char *branch, const char *const *paths,
                             size_t count)
{
	struct vfs *vfs = context;
	struct node *top = branch_node(vfs, branch);
	if (!top)
		return;
	for (size_t i = 0; i < count; i++) {
		bool done = false;
		if (paths[i][0] && strcmp(paths[i], ".") != 0) {
			path_changed(vfs, top, paths[i]);
			continue;
		}
		tree_changed(vfs, top, false, &done);
		if (!done)
			all_forget(vfs, top);
		forget_inode(vfs, top->id, true);
	}
	node_put(vfs, top);
}

static void on_branch_gone(void *context, const char *branch)
{
	struct vfs *vfs = context;
	struct node *top = branch_node(vfs, branch);
	if (!top)
		return;
	node_detach(vfs, top);
	node_put(vfs, top);
	forget_entry(vfs, NODE_ROOT_ID, branch);
}

static void on_branch_renamed(void *context, const char *from, const char *to)
{
	struct vfs *vfs = context;
	struct node *top = branch_node(vfs, from), *dead = NULL;
	if (!top)
		return;
	nodes_lock(vfs->nodes);
	struct node *root = nodes_by_id(vfs->nodes, NODE_ROOT_ID);
	if (nodes_by_name(vfs->nodes, root, to) ||
	    nodes_rename(vfs->nodes, top, root, to, &dead) < 0)
		nodes_detach(vfs->nodes, top);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
	node_put(vfs, top);
	forget_entry(vfs, NODE_ROOT_ID, from);
}

static int on_open_files(void *context, const char *branch,
                         int (*callback)(void *argument, const char *branch, const char *path,
                                         int pid),
                         void *argument)
{
	return open_writers(context, branch, callback, argument);
}

static void on_settle(void *context)
{
	open_settle(context);
}

void vfs_observe(struct vfs *vfs, bool on)
{
	const struct worktree_observer observer = {
	        .context = vfs,
	        .moved = on_moved,
	        .paths_changed = on_paths_changed,
	        .branch_gone = on_branch_gone,
	        .branch_renamed = on_branch_renamed,
	        .open_files = on_open_files,
	        .settle_writers = on_settle,
	};
	const struct worktree_observer nobody = {0};
	worktrees_observe(vfs->lake->worktrees, on ? &observer : &nobody);
}
