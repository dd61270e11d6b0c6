/*
 * Hides what lies above working trees: the root with its branches, @REV views, and the reports in
 * .lake. None of these names but branches is ever listed.
 */
#include "fs/mount/vfs_internal.h"

#define CONTROL_NAME ".lake"
static const char *const report_names[] = {"status", "metrics"};

void fixed_stat(struct vfs *vfs, const struct node *node, struct stat *ret_stat)
{
	struct timespec started = {vfs->started_ns / 1000000000, vfs->started_ns % 1000000000};
	*ret_stat = (struct stat){.st_ino = node->shown,
	                          .st_mode = node->kind == NODE_REPORT ? S_IFREG | 0444
	                                                               : S_IFDIR | 0755,
	                          .st_nlink = 1,
	                          .st_uid = vfs->uid,
	                          .st_gid = vfs->gid,
	                          .st_blksize = 4096,
	                          .st_atim = started,
	                          .st_mtim = started,
	                          .st_ctim = started};
}

/* A node of the fixed part of the tree, for good. */
static int fixed_entry(struct vfs *vfs, struct node *parent, enum node_kind kind, const char *name,
                       struct vfs_entry *ret_entry)
{
	nodes_lock(vfs->nodes);
	struct node *node = nodes_by_name(vfs->nodes, parent, name);
	if (!node)
		node = nodes_add(vfs->nodes, kind, parent, name, NULL,
		                 entry_shown(parent->shown, name));
	if (node) {
		nodes_looked_up(node);
		if (kind == NODE_CONTROL)
			nodes_directory(node);
		ret_entry->node = node->id;
		ret_entry->lasting = true;
		fixed_stat(vfs, node, &ret_entry->stat);
	}
	nodes_unlock(vfs->nodes);
	return node ? 0 : -ERR_NO_MEMORY;
}

int control_lookup(struct vfs *vfs, struct node *control, const char *name,
                   struct vfs_entry *ret_entry)
{
	for (size_t i = 0; i < ARRAY_SIZE(report_names); i++)
		if (strcmp(name, report_names[i]) == 0)
			return fixed_entry(vfs, control, NODE_REPORT, name, ret_entry);
	return -ERR_NOT_FOUND;
}

int report_text(struct vfs *vfs, const struct node *node, struct buffer *ret_text)
{
	int result = 0;
	if (vfs->kernel.report)
		result = vfs->kernel.report(vfs->kernel.context, node->name, ret_text);
	return result < 0 ? result : buffer_check(ret_text);
}

/* -- branches and views -- */

static int scope_open(struct vfs *vfs, const char *name, struct scope **ret_scope,
                      struct message *message)
{
	struct scope *scope = calloc(1, sizeof(*scope));
	if (!scope)
		return -ERR_NO_MEMORY;
	scope->references = 1;
	int result;
	if (name[0] == '@') {
		result = revision_resolve(vfs->lake->history, name + 1, &scope->commit, message);
		/* Whatever is wrong with the expression: no such file. */
		if (result == -ERR_AMBIGUOUS || result == -ERR_BAD_NAME || result == -ERR_INVALID)
			result = -ERR_NO_REVISION;
	} else if (ref_name_check(name, NULL) < 0) {
		result = -ERR_NOT_FOUND;
	} else {
		result = worktree_get(vfs->lake->worktrees, name, &scope->worktree, message);
	}
	if (result < 0) {
		scope_unref(scope);
		return result;
	}
	*ret_scope = scope;
	return 0;
}

static bool scope_same(const struct scope *a, const struct scope *b)
{
	if (a->worktree || b->worktree)
		return a->worktree == b->worktree;
	return id_equal(&a->commit->self.id, &b->commit->self.id);
}

/* Views of one commit show the same numbers, whatever they are called. */
static uint64_t scope_shown(const struct scope *scope, const char *name)
{
	char hex[ID_HEX + 1];
	if (scope->worktree)
		return entry_shown(NODE_ROOT_ID, name);
	id_to_hex(&scope->commit->self.id, hex);
	return entry_shown(0, hex);
}

static bool is_commit_id(const char *name)
{
	struct id id;
	return name[0] == '@' && id_from_hex(name + 1, &id) == 0;
}

static int top_intern(struct vfs *vfs, struct node *root, const char *name, struct scope *scope,
                      struct node **ret_node)
{
	nodes_lock(vfs->nodes);
	struct node *node = nodes_by_name(vfs->nodes, root, name);
	if (node && !scope_same(node->scope, scope)) { /* the name leads elsewhere by now */
		nodes_detach(vfs->nodes, node);
		node = NULL;
	}
	if (!node) {
		node = nodes_add(vfs->nodes, NODE_TOP, root, name, scope, scope_shown(scope, name));
		if (node)
			nodes_directory(node);
	}
	if (node) {
		nodes_looked_up(node);
		nodes_pin(node);
	}
	nodes_unlock(vfs->nodes);
	*ret_node = node;
	return node ? 0 : -ERR_NO_MEMORY;
}

int top_lookup(struct vfs *vfs, struct node *root, const char *name, struct vfs_entry *ret_entry,
               struct message *message)
{
	struct scope *scope;
	struct node *node;
	if (strcmp(name, CONTROL_NAME) == 0)
		return fixed_entry(vfs, root, NODE_CONTROL, name, ret_entry);
	int result = scope_open(vfs, name, &scope, message);
	if (result < 0)
		return result;
	result = top_intern(vfs, root, name, scope, &node);
	scope_unref(scope);
	if (result < 0)
		return result;
	CLEANUP(inode_release) struct inode inode = {0};
	result = node_inode(vfs, node, &inode, message);
	if (result >= 0)
		result = node_stat(vfs, node, &inode, &ret_entry->stat);
	ret_entry->node = node->id;
	ret_entry->lasting = name[0] != '@' || is_commit_id(name);
	if (result < 0)
		node_forget(vfs, node, 1);
	node_put(vfs, node);
	return result;
}
