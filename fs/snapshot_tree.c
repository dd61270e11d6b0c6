/*
 * snapshot_tree — hides how an overlay becomes trees.
 *
 * A directory's edits are its overlay entries in order, streamed into tree_apply; whoever is below
 * comes first, so that applies never nest. A commit limited to paths sets those paths in the base
 * tree instead, each as it is in the working tree: what a renamed directory above them would bring
 * along stays uncommitted.
 */
#include "fs/snapshot.h"

/* -- one directory -- */

/* Roots of the sub-directories that are in the overlay, in order of their names. */
struct children {
	struct pointer *trees;
	size_t count, capacity;
};

static void children_release(struct children *children)
{
	free(children->trees);
}

static int children_add(struct children *children, const struct pointer *tree)
{
	if (children->count == children->capacity) {
		size_t capacity = children->capacity ? children->capacity * 2 : 16;
		struct pointer *trees =
		        reallocarray(children->trees, capacity, sizeof(*children->trees));
		if (!trees)
			return -ERR_NO_MEMORY;
		children->trees = trees;
		children->capacity = capacity;
	}
	children->trees[children->count++] = *tree;
	return 0;
}

static int build_directory(struct snapshot *snapshot, const struct inode *directory,
                           struct pointer *ret_tree, struct message *message);

static int read_inode(struct snapshot *snapshot, uint64_t number, struct inode *ret_inode,
                      struct message *message)
{
	int error = overlay_read_inode(snapshot->ground.trees, snapshot->ground.overlay, number,
	                               ret_inode);
	if (error == -ERR_NOT_FOUND) /* the gate is closed: nobody can have removed it */
		return fail(message, -ERR_CORRUPT, "'%s' has an entry without an inode record",
		            snapshot->path.text);
	return error;
}

/* The entry of an inode that is not a directory, its content in the store. Borrows from both. */
static int file_entry(struct snapshot *snapshot, const struct inode *inode, const char *name,
                      size_t name_length, struct tree_entry *ret_entry, struct message *message)
{
	struct worktrees *trees = snapshot->ground.trees;
	if (!inode->staging || !S_ISREG(inode->attributes.mode))
		return entry_of_inode(trees, inode, name, name_length, ret_entry);
	struct stat status;
	int error = staging_stat(trees, inode->staging, &status);
	if (error)
		return fail(message, error, "'%s': its staging file is gone (%s)",
		            snapshot->path.text, error_text(error));
	*ret_entry = entry_of_status(inode, &status, name, name_length);
	if (!snapshot->allow_open && worktree_writers(trees, inode->number)) {
		names_add(&snapshot->busy, snapshot->path.text);
		return -ERR_BUSY;
	}
	error = stored_content(snapshot->stored, trees, snapshot->packer, inode, &status,
	                       snapshot->progress, &ret_entry->content, message);
	if (error)
		return fail_context(message, error, "'%s'", snapshot->path.text);
	return 0;
}

static int build_children(struct snapshot *snapshot, const struct inode *directory,
                          struct overlay_cursor *cursor, struct children *children,
                          struct message *message)
{
	const struct overlay_entry *entry;
	int error;
	while (!(error = overlay_cursor_next(cursor, &entry))) {
		if (entry->whiteout || !S_ISDIR(entry->mode))
			continue;
		CLEANUP(inode_release) struct inode inode = {0};
		struct pointer tree;
		size_t length = snapshot->path.length;
		error = path_push(&snapshot->path, entry->name, entry->name_length, message);
		if (!error)
			error = read_inode(snapshot, entry->number, &inode, message);
		if (!error)
			error = build_directory(snapshot, &inode, &tree, message);
		if (!error)
			error = children_add(children, &tree);
		if (error)
			return error;
		path_pop(&snapshot->path, length);
	}
	return error == -ERR_NOT_FOUND ? 0 : error;
}

struct edits {
	struct snapshot *snapshot;
	struct overlay_cursor *cursor;
	const struct children *children;
	size_t next_child;
	struct inode inode; /* of the edit given last */
	struct tree_entry entry;
	struct message *message;
};

static int edits_next(void *context, struct tree_edit *ret_edit)
{
	struct edits *edits = context;
	struct snapshot *snapshot = edits->snapshot;
	const struct overlay_entry *entry;
	int error = overlay_cursor_next(edits->cursor, &entry);
	if (error)
		return error;
	inode_release(&edits->inode);
	edits->inode = (struct inode){0};
	*ret_edit = (struct tree_edit){.name = entry->name, .name_length = entry->name_length};
	if (entry->whiteout)
		return 0;
	size_t length = snapshot->path.length;
	error = path_push(&snapshot->path, entry->name, entry->name_length, edits->message);
	if (!error)
		error = read_inode(snapshot, entry->number, &edits->inode, edits->message);
	if (!error)
		error = file_entry(snapshot, &edits->inode, entry->name, entry->name_length,
		                   &edits->entry, edits->message);
	/* end of the edits is what -ERR_NOT_FOUND would mean */
	if (error)
		return error == -ERR_NOT_FOUND ? -ERR_CORRUPT : error;
	path_pop(&snapshot->path, length);
	if (S_ISDIR(edits->inode.attributes.mode)) {
		if (edits->next_child == edits->children->count)
			return fail(edits->message, -ERR_CORRUPT,
			            "the records of '%s' changed while it was committed",
			            snapshot->path.text);
		edits->entry.content.pointer = edits->children->trees[edits->next_child++];
	}
	ret_edit->entry = &edits->entry;
	return 0;
}

static void overlay_cursor_cleanup(struct overlay_cursor **cursor)
{
	overlay_cursor_free(*cursor);
}

static int build_directory(struct snapshot *snapshot, const struct inode *directory,
                           struct pointer *ret_tree, struct message *message)
{
	struct worktrees *trees = snapshot->ground.trees;
	CLEANUP(children_release) struct children children = {0};
	CLEANUP(overlay_cursor_cleanup) struct overlay_cursor *first = NULL;
	CLEANUP(overlay_cursor_cleanup) struct overlay_cursor *second = NULL;
	int error = overlay_cursor_new(trees, snapshot->ground.overlay, directory->number, NULL, 0,
	                               &first);
	if (!error)
		error = build_children(snapshot, directory, first, &children, message);
	if (!error)
		error = overlay_cursor_new(trees, snapshot->ground.overlay, directory->number, NULL,
		                           0, &second);
	if (error)
		return error;
	struct edits edits = {
	        .snapshot = snapshot,
	        .cursor = second,
	        .children = &children,
	        .message = message,
	};
	error = tree_apply(trees->odb, snapshot->packer, &directory->tree, edits_next, &edits,
	                   ret_tree, message);
	inode_release(&edits.inode);
	return error;
}

/* -- limited to paths -- */

/* The entry at `path` of the working tree, whole. -ERR_NOT_FOUND; borrows from *located. */
static int working_entry(struct snapshot *snapshot, const char *path, struct located *located,
                         struct tree_entry *ret_entry, struct message *message)
{
	int error = ground_locate(&snapshot->ground, path, located, message);
	if (error)
		return error;
	if (!located->exists)
		return -ERR_NOT_FOUND;
	if (!located->inode.number) {
		*ret_entry = *located->entry;
		return 0;
	}
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	snapshot->path.length = 0;
	error = path_push(&snapshot->path, path, strlen(path), message);
	if (!error)
		error = file_entry(snapshot, &located->inode, name, strlen(name), ret_entry,
		                   message);
	if (!error && S_ISDIR(located->inode.attributes.mode))
		error = build_directory(snapshot, &located->inode, &ret_entry->content.pointer,
		                        message);
	return error == -ERR_NOT_FOUND ? -ERR_CORRUPT : error;
}

/* Directories above `path` that the tree lacks, with the attributes they have in the working tree
 * and nothing in them. */
static int set_parents(struct snapshot *snapshot, const char *path, struct pointer *tree,
                       struct message *message)
{
	char parent[PATH_BYTES_MAX];
	for (const char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
		memcpy(parent, path, (size_t)(slash - path));
		parent[slash - path] = '\0';
		CLEANUP(free_pointer) struct tree_entry *there = NULL;
		int error = tree_find(snapshot->ground.trees->odb, tree, parent, &there, message);
		if (!error && S_ISDIR(there->attributes.mode))
			continue;
		if (error && error != -ERR_NOT_FOUND)
			return error;
		CLEANUP(located_release) struct located located = {0};
		error = ground_locate(&snapshot->ground, parent, &located, message);
		if (error)
			return error;
		struct tree_entry entry = {0};
		if (located.inode.number)
			error = entry_of_inode(snapshot->ground.trees, &located.inode, "", 0,
			                       &entry);
		else if (located.entry)
			entry = *located.entry;
		if (error)
			return error;
		const char *name = strrchr(parent, '/');
		entry.name = name ? name + 1 : parent;
		entry.name_length = strlen(entry.name);
		entry.content = (struct content){.kind = CONTENT_EMPTY};
		struct pointer before = *tree;
		error = tree_set_path(snapshot->ground.trees->odb, snapshot->packer, &before,
		                      parent, &entry, tree, message);
		if (error)
			return error;
	}
	return 0;
}

static int set_path(struct snapshot *snapshot, const char *path, struct pointer *tree,
                    struct message *message)
{
	struct odb *odb = snapshot->ground.trees->odb;
	CLEANUP(located_release) struct located located = {0};
	CLEANUP(free_pointer) struct tree_entry *base = NULL;
	struct tree_entry entry;
	int error = tree_find(odb, tree, path, &base, NULL);
	bool in_base = !error;
	if (error && error != -ERR_NOT_FOUND && error != -ERR_NOT_DIRECTORY)
		return fail(message, error, "'%s': %s", path, error_text(error));
	error = working_entry(snapshot, path, &located, &entry, message);
	bool exists = !error;
	if (error && error != -ERR_NOT_FOUND)
		return error;
	if (!exists && !in_base)
		return fail(message, -ERR_NOT_FOUND,
		            "no '%s', neither committed nor in the working tree", path);
	if (exists) {
		error = set_parents(snapshot, path, tree, message);
		if (error)
			return error;
	}
	struct pointer before = *tree;
	return tree_set_path(odb, snapshot->packer, &before, path, exists ? &entry : NULL, tree,
	                     message);
}

/* -- both -- */

int snapshot_build(struct snapshot *snapshot, const struct path_set *paths,
                   struct merge_side *ret_side, struct message *message)
{
	const struct ground *ground = &snapshot->ground;
	struct merge_side side = {.tree = ground->tree, .root = ground->attributes};
	int error = 0;
	snapshot->path.length = 0;
	snapshot->path.text[0] = '\0';
	if (paths->count == 0 && ground->overlay) {
		CLEANUP(inode_release) struct inode root = {0};
		error = read_inode(snapshot, ground->root, &root, message);
		if (!error)
			error = build_directory(snapshot, &root, &side.tree, message);
		side.root = root.attributes;
	}
	for (size_t i = 0; !error && i < paths->count; i++)
		error = set_path(snapshot, paths->paths[i], &side.tree, message);
	if (!error)
		*ret_side = side;
	return error;
}
