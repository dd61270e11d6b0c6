/*
 * worktree_restore — hides how paths are made as they are in a commit.
 *
 * A path whose committed state is the base's only loses its overlay records. Otherwise it gets one
 * record that stands for the committed entry, whole: a whiteout, a file inode with committed
 * content, or a directory inode whose base tree is the committed directory, whatever its size.
 *
 * Everything is one batch. Directories above a path that have no records yet are adopted before
 * it, which nobody can see; those that are missing are made in it.
 */
#include "fs/snapshot.h"

#define COUNTED_ENOUGH 1 /* a callback's end of a walk */

/* A directory above a path, in the overlay (or, in this batch, about to be). */
struct parent {
	char *path;
	uint64_t number;
	struct pointer tree; /* its base tree */
	bool made;           /* in this batch: it has no records that could be read */
	UT_hash_handle hh;
};

/* An inode of which names go in this batch. */
struct dropped {
	uint64_t number;
	struct inode inode;
	uint32_t names;
	UT_hash_handle hh;
};

struct restoring {
	struct worktree *worktree;
	struct worktrees *trees;
	struct message *message;
	struct ground ground;
	struct pointer from_tree;
	struct attributes from_root;
	struct state_batch batch;
	struct parent *parents;
	struct dropped *dropped;
	struct path path;
	struct names busy;
	size_t busy_count;
	uint64_t changed;
};

static void restoring_release(struct restoring *restoring)
{
	struct parent *parent, *next_parent;
	HASH_ITER (hh, restoring->parents, parent, next_parent) {
		HASH_DEL(restoring->parents, parent);
		free(parent->path);
		free(parent);
	}
	struct dropped *dropped, *next;
	HASH_ITER (hh, restoring->dropped, dropped, next) {
		HASH_DEL(restoring->dropped, dropped);
		inode_release(&dropped->inode);
		free(dropped);
	}
	state_batch_release(&restoring->batch);
}

/* -- dropping what is there -- */

static int drop_name(struct restoring *restoring, const struct inode *inode)
{
	struct dropped *dropped;
	HASH_FIND(hh, restoring->dropped, &inode->number, sizeof(inode->number), dropped);
	if (!dropped) {
		dropped = calloc(1, sizeof(*dropped));
		if (!dropped)
			return -ERR_NO_MEMORY;
		int error = inode_copy(inode, &dropped->inode);
		if (error) {
			free(dropped);
			return error;
		}
		dropped->number = inode->number;
		HASH_ADD(hh, restoring->dropped, number, sizeof(dropped->number), dropped);
		if (!dropped->hh.tbl) {
			inode_release(&dropped->inode);
			free(dropped);
			return -ERR_NO_MEMORY;
		}
	}
	dropped->names++;
	if (worktree_writers(restoring->trees, inode->number)) {
		restoring->busy_count++;
		names_add(&restoring->busy, restoring->path.text);
	}
	return 0;
}

static int drop_below(struct restoring *restoring, const struct inode *inode);

struct drop_level {
	struct restoring *restoring;
	uint64_t directory;
};

static int drop_entry(void *context, const struct overlay_entry *entry)
{
	struct drop_level *level = context;
	struct restoring *restoring = level->restoring;
	overlay_delete_entry(&restoring->batch, restoring->ground.overlay, level->directory,
	                     entry->name, entry->name_length);
	if (entry->whiteout)
		return 0;
	CLEANUP(inode_release) struct inode inode = {0};
	size_t length = restoring->path.length;
	int error = overlay_read_inode(restoring->trees, restoring->ground.overlay, entry->number,
	                               &inode);
	if (!error)
		error = path_push(&restoring->path, entry->name, entry->name_length,
		                  restoring->message);
	if (!error)
		error = drop_below(restoring, &inode);
	path_pop(&restoring->path, length);
	return error;
}

/* One name of the inode and, of a directory, everything in it. */
static int drop_below(struct restoring *restoring, const struct inode *inode)
{
	int error = drop_name(restoring, inode);
	if (error || !S_ISDIR(inode->attributes.mode))
		return error;
	struct drop_level level = {restoring, inode->number};
	return overlay_entries(restoring->trees, restoring->ground.overlay, inode->number, NULL, 0,
	                       drop_entry, &level);
}

/* Inodes whose last name went go, the others count what is left. */
static void put_dropped(struct restoring *restoring)
{
	struct dropped *dropped, *next;
	HASH_ITER (hh, restoring->dropped, dropped, next) {
		struct inode *inode = &dropped->inode;
		if (!S_ISDIR(inode->attributes.mode) && inode->nlink > dropped->names) {
			inode->nlink -= dropped->names;
			overlay_put_inode(&restoring->batch, restoring->ground.overlay, inode);
			inode->staging = 0; /* still in use */
			continue;
		}
		overlay_delete_inode(&restoring->batch, restoring->ground.overlay, inode->number);
	}
}

static void remove_staging(struct restoring *restoring)
{
	struct dropped *dropped, *next;
	HASH_ITER (hh, restoring->dropped, dropped, next)
		staging_remove(restoring->trees, dropped->inode.staging);
}

/* -- directories above -- */

static int add_parent(struct restoring *restoring, const char *path, size_t length,
                      const struct parent *found, struct parent **ret_parent)
{
	struct parent *parent = calloc(1, sizeof(*parent));
	if (!parent)
		return -ERR_NO_MEMORY;
	*parent = *found;
	parent->path = strndup(path, length);
	if (!parent->path) {
		free(parent);
		return -ERR_NO_MEMORY;
	}
	HASH_ADD_KEYPTR(hh, restoring->parents, parent->path, length, parent);
	if (!parent->hh.tbl) {
		free(parent->path);
		free(parent);
		return -ERR_NO_MEMORY;
	}
	*ret_parent = parent;
	return 0;
}

/* A record for a committed entry. *ret_number is its inode's. */
static int put_committed(struct restoring *restoring, uint64_t directory,
                         const struct tree_entry *entry, const struct pointer *tree,
                         uint64_t *ret_number)
{
	uint64_t overlay = restoring->ground.overlay;
	struct inode inode = {
	        .number = state_number(restoring->trees->state),
	        .attributes = entry->attributes,
	        .ctime_ns = clock_wall_ns(),
	        .nlink = 1,
	        .target = (char *)(uintptr_t)entry->target,
	        .target_length = entry->target_length,
	        .xattrs = (uint8_t *)(uintptr_t)entry->xattrs,
	        .xattrs_length = entry->xattrs_length,
	};
	if (!inode.number)
		return -ERR_NO_SPACE;
	inode.shown = inode.number;
	if (S_ISDIR(entry->attributes.mode))
		inode.tree = *tree;
	else
		inode.content = entry->content;
	overlay_put_inode(&restoring->batch, overlay, &inode);
	overlay_put_entry(&restoring->batch, overlay, directory, entry->name, entry->name_length,
	                  inode.number, inode.attributes.mode);
	*ret_number = inode.number;
	return 0;
}

/* The directory at `path` (a prefix of `length` bytes) is gone: make it, as `from` has it, with
 * nothing in it. */
static int make_parent(struct restoring *restoring, const char *path, size_t length,
                       const struct parent *above, struct parent *ret_parent)
{
	char text[PATH_BYTES_MAX];
	CLEANUP(free_pointer) struct tree_entry *entry = NULL;
	memcpy(text, path, length);
	text[length] = '\0';
	int error = tree_find(restoring->trees->odb, &restoring->from_tree, text, &entry,
	                      restoring->message);
	if (error)
		return error;
	error = put_committed(restoring, above->number, entry, &pointer_none, &ret_parent->number);
	ret_parent->tree = pointer_none;
	ret_parent->made = true;
	return error;
}

static int find_parent_entry(struct restoring *restoring, const struct parent *above,
                             const char *path, size_t start, size_t end, struct parent *ret_parent)
{
	struct overlay_entry entry;
	const char *name = path + start;
	size_t length = end - start;
	int error = -ERR_NOT_FOUND;
	if (!above->made)
		error = overlay_read_entry(restoring->trees, restoring->worktree->overlay,
		                           above->number, name, length, &entry);
	if (!error && entry.whiteout)
		return make_parent(restoring, path, end, above, ret_parent);
	if (!error) {
		CLEANUP(inode_release) struct inode inode = {0};
		error = overlay_read_inode(restoring->trees, restoring->worktree->overlay,
		                           entry.number, &inode);
		ret_parent->number = inode.number;
		ret_parent->tree = inode.tree;
		return error ? error : S_ISDIR(inode.attributes.mode) ? 0 : -ERR_NOT_DIRECTORY;
	}
	if (error != -ERR_NOT_FOUND)
		return error;
	CLEANUP(free_pointer) struct tree_entry *committed = NULL;
	error = tree_lookup(restoring->trees->odb, &above->tree, name, length, &committed,
	                    restoring->message);
	if (error == -ERR_NOT_FOUND)
		return make_parent(restoring, path, end, above, ret_parent);
	if (error)
		return error;
	if (!S_ISDIR(committed->attributes.mode))
		return -ERR_NOT_DIRECTORY;
	ret_parent->tree = committed->content.pointer;
	return worktree_adopt(restoring->worktree, above->number, committed,
	                      state_number(restoring->trees->state), &ret_parent->number,
	                      restoring->message);
}

/* The overlay directory that `path` lies in. */
static int parent_of(struct restoring *restoring, const char *path, struct parent **ret_parent)
{
	struct parent *parent = NULL;
	HASH_FIND(hh, restoring->parents, "", 0, parent);
	int error = 0;
	if (!parent) {
		struct parent root = {.tree = restoring->ground.tree};
		error = worktree_adopt_root(restoring->worktree, &root.number);
		if (!error)
			error = add_parent(restoring, "", 0, &root, &parent);
		restoring->ground.overlay = restoring->worktree->overlay;
		restoring->ground.root = restoring->worktree->root;
	}
	size_t start = 0;
	for (const char *slash = strchr(path, '/'); !error && slash;
	     slash = strchr(slash + 1, '/')) {
		size_t end = (size_t)(slash - path);
		struct parent *next, found = {0};
		HASH_FIND(hh, restoring->parents, path, end, next);
		if (!next) {
			error = find_parent_entry(restoring, parent, path, start, end, &found);
			if (!error)
				error = add_parent(restoring, path, end, &found, &next);
		}
		parent = next;
		start = end + 1;
	}
	if (error == -ERR_NOT_DIRECTORY)
		return fail(restoring->message, error,
		            "something above '%s' is not a directory now; restore that first",
		            path);
	if (!error)
		*ret_parent = parent;
	return error;
}

/* -- one path -- */

/* A table comes back at once, whatever its size: the count is only for people, and ends there. */
static int count_change(void *context, const struct change *change)
{
	return ++*(uint64_t *)context > RESTORED_COUNT_MAX ? COUNTED_ENOUGH : 0;
}

/* How many paths at and below `path` differ from the committed entry (NULL: from nothing)? */
static int count_all_difference(struct restoring *restoring, const char *path,
                                const struct located *now, const struct tree_entry *wanted)
{
	struct odb *odb = restoring->trees->odb;
	bool was_directory =
	        now->exists && S_ISDIR(now->inode.number ? now->inode.attributes.mode
	                                                 : now->entry->attributes.mode);
	bool is_directory = wanted && S_ISDIR(wanted->attributes.mode);
	struct pointer before = is_directory ? wanted->content.pointer : pointer_none;
	if (!was_directory || !is_directory)
		++restoring->changed;
	if (!was_directory && !is_directory)
		return 0;
	if (was_directory && now->inode.number) {
		const struct changes_options options = {.compare_bytes_max = COMPARE_BYTES_MAX};
		restoring->path.length = 0;
		int error = path_push(&restoring->path, path, strlen(path), restoring->message);
		return error ? error
		             : changes_walk(restoring->trees, restoring->ground.overlay,
		                            &now->inode, &before, &restoring->path, &options,
		                            count_change, &restoring->changed, restoring->message);
	}
	const struct diff_options options = {0};
	struct pointer after = was_directory ? now->entry->content.pointer : pointer_none;
	return diff_trees(odb, &before, &after, &options, count_change, &restoring->changed,
	                  restoring->message);
}

static int count_difference(struct restoring *restoring, const char *path,
                            const struct located *now, const struct tree_entry *wanted)
{
	if (restoring->changed > RESTORED_COUNT_MAX)
		return 0;
	int error = count_all_difference(restoring, path, now, wanted);
	return error == COUNTED_ENOUGH ? 0 : error;
}

/* The path shows exactly the wanted entry, and no record of it is needed for that. */
static bool untouched(const struct located *now, const struct tree_entry *wanted)
{
	if (!now->exists)
		return !wanted;
	return !now->inode.number && wanted && tree_entry_equal(now->entry, wanted);
}

static int put_wanted(struct restoring *restoring, const struct parent *parent, const char *name,
                      const struct tree_entry *wanted)
{
	uint64_t overlay = restoring->ground.overlay, number;
	CLEANUP(free_pointer) struct tree_entry *below = NULL;
	int error = tree_lookup(restoring->trees->odb, &parent->tree, name, strlen(name), &below,
	                        restoring->message);
	if (error && error != -ERR_NOT_FOUND)
		return error;
	if (wanted && (!below || !tree_entry_equal(below, wanted)))
		return put_committed(restoring, parent->number, wanted, &wanted->content.pointer,
		                     &number);
	if (!wanted && below)
		overlay_put_whiteout(&restoring->batch, overlay, parent->number, name,
		                     strlen(name));
	else
		overlay_delete_entry(&restoring->batch, overlay, parent->number, name,
		                     strlen(name));
	return 0;
}

static int restore_path(struct restoring *restoring, const char *path)
{
	CLEANUP(free_pointer) struct tree_entry *wanted = NULL, *base = NULL;
	CLEANUP(located_release) struct located now = {0};
	struct odb *odb = restoring->trees->odb;
	struct parent *parent = NULL;
	int error = tree_find(odb, &restoring->from_tree, path, &wanted, NULL);
	if (error && error != -ERR_NOT_FOUND && error != -ERR_NOT_DIRECTORY)
		return fail(restoring->message, error, "'%s': %s", path, error_text(error));
	error = tree_find(odb, &restoring->ground.tree, path, &base, NULL);
	if (error && error != -ERR_NOT_FOUND && error != -ERR_NOT_DIRECTORY)
		return fail(restoring->message, error, "'%s': %s", path, error_text(error));
	error = ground_locate(&restoring->ground, path, &now, restoring->message);
	if (error)
		return error;
	if (!now.exists && !wanted && !base)
		return fail(restoring->message, -ERR_NOT_FOUND,
		            "no '%s', neither committed nor in the working tree", path);
	if (untouched(&now, wanted))
		return 0;
	error = count_difference(restoring, path, &now, wanted);
	if (!error)
		error = parent_of(restoring, path, &parent);
	restoring->path.length = 0;
	if (!error)
		error = path_push(&restoring->path, path, strlen(path), restoring->message);
	if (!error && now.inode.number)
		error = drop_below(restoring, &now.inode);
	if (error)
		return error;
	const char *slash = strrchr(path, '/');
	return put_wanted(restoring, parent, slash ? slash + 1 : path, wanted);
}

/* -- everything -- */

/* The root is no name: every name in it that the overlay has or in which `from` differs from the
 * base is restored. */
struct top_names {
	char **names;
	size_t count, capacity;
};

static void top_names_release(struct top_names *top)
{
	for (size_t i = 0; i < top->count; i++)
		free(top->names[i]);
	free(top->names);
}

static int top_names_add(struct top_names *top, const char *name)
{
	if (top->count == top->capacity) {
		size_t capacity = top->capacity ? top->capacity * 2 : 64;
		char **names = reallocarray(top->names, capacity, sizeof(*names));
		if (!names)
			return -ERR_NO_MEMORY;
		top->names = names;
		top->capacity = capacity;
	}
	top->names[top->count] = strdup(name);
	if (!top->names[top->count])
		return -ERR_NO_MEMORY;
	top->count++;
	return 0;
}

static int add_overlay_name(void *context, const struct overlay_entry *entry)
{
	return top_names_add(context, entry->name);
}

static int add_difference(struct restoring *restoring, struct top_names *top)
{
	struct tree_diff *diff = NULL;
	struct tree_change change;
	int error = tree_diff_new(restoring->trees->odb, &restoring->ground.tree,
	                          &restoring->from_tree, &diff);
	while (!error) {
		error = tree_diff_next(diff, &change, restoring->message);
		if (!error)
			error = top_names_add(top, change.before ? change.before->name
			                                         : change.after->name);
	}
	if (diff)
		tree_diff_free(diff);
	return error == -ERR_NOT_FOUND ? 0 : error;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int restore_root(struct restoring *restoring)
{
	CLEANUP(top_names_release) struct top_names top = {0};
	const struct ground *ground = &restoring->ground;
	int error = 0;
	if (ground->overlay)
		error = overlay_entries(restoring->trees, ground->overlay, ground->root, NULL, 0,
		                        add_overlay_name, &top);
	if (!error)
		error = add_difference(restoring, &top);
	if (error)
		return error;
	if (top.count)
		qsort(top.names, top.count, sizeof(*top.names), compare_names);
	for (size_t i = 0; !error && i < top.count; i++)
		if (i == 0 || strcmp(top.names[i], top.names[i - 1]) != 0)
			error = restore_path(restoring, top.names[i]);
	return error;
}

/* The root directory's own attributes. */
static int restore_root_attributes(struct restoring *restoring)
{
	CLEANUP(inode_release) struct inode root = {0};
	const struct attributes *wanted = &restoring->from_root;
	const struct attributes *base = &restoring->ground.attributes;
	uint64_t number;
	int error = 0;
	bool differs =
	        wanted->mode != base->mode || wanted->uid != base->uid || wanted->gid != base->gid;
	if (!restoring->ground.overlay && !differs)
		return 0;
	error = worktree_adopt_root(restoring->worktree, &number);
	if (error)
		return error;
	restoring->ground.overlay = restoring->worktree->overlay;
	restoring->ground.root = restoring->worktree->root;
	error = overlay_read_inode(restoring->trees, restoring->ground.overlay, number, &root);
	if (error)
		return error;
	if (root.attributes.mode == wanted->mode && root.attributes.uid == wanted->uid &&
	    root.attributes.gid == wanted->gid)
		return 0;
	root.attributes = *wanted;
	root.ctime_ns = clock_wall_ns();
	restoring->changed++;
	overlay_put_inode(&restoring->batch, restoring->ground.overlay, &root);
	return 0;
}

/* Gate closed: numbers changed; and an overlay in which nothing is left goes. */
static void let_go(struct restoring *restoring)
{
	struct worktree *worktree = restoring->worktree;
	struct worktrees *trees = restoring->trees;
	bool changed = true;
	size_t writers = 0;
	struct worktree_view view;
	worktree_view(worktree, &view);
	struct ground ground = ground_of(trees, &view);
	if (!overlay_writers(trees, view.overlay, &writers) && !writers &&
	    !ground_changed(&ground, &changed, NULL) && !changed) {
		CLEANUP(free_pointer) struct commit *base = NULL;
		if (!worktree_base(worktree, &base) && !worktree_swap(worktree, base, 0, 0, NULL)) {
			overlay_discard(trees, view.overlay, 0);
			return;
		}
	}
	pthread_mutex_lock(&trees->table_lock);
	worktree->epoch = ++trees->epochs;
	pthread_mutex_unlock(&trees->table_lock);
}

/* Gate closed. */
static int restore_closed(struct restoring *restoring, const struct path_set *paths,
                          const struct commit *from)
{
	struct worktree_view view;
	worktree_view(restoring->worktree, &view);
	restoring->ground = ground_of(restoring->trees, &view);
	restoring->from_tree = from ? from->tree : view.base_tree;
	restoring->from_root = from ? from->root : view.base_root;
	int error = 0;
	for (size_t i = 0; !error && i < paths->count; i++)
		error = restore_path(restoring, paths->paths[i]);
	if (!error && paths->count == 0)
		error = restore_root(restoring);
	if (!error && paths->count == 0)
		error = restore_root_attributes(restoring);
	if (error)
		return error;
	if (restoring->busy_count)
		return fail_busy(restoring->worktree, &restoring->busy, restoring->busy_count,
		                 "close them, or what is written there would be lost",
		                 restoring->message);
	put_dropped(restoring);
	error = buffer_check(&restoring->batch.bytes);
	if (!error && restoring->batch.count)
		error = overlay_commit(restoring->trees, &restoring->batch, restoring->message);
	if (error)
		return error;
	remove_staging(restoring);
	let_go(restoring);
	return 0;
}

static void tell(const struct restoring *restoring, const struct path_set *paths)
{
	static const char *const everything[] = {""};
	struct worktree_observer observer;
	worktrees_observer(restoring->trees, &observer);
	if (!observer.paths_changed)
		return;
	const char *const *changed = (const char *const *)paths->paths;
	observer.paths_changed(observer.context, worktree_branch(restoring->worktree),
	                       paths->count ? changed : everything,
	                       paths->count ? paths->count : 1);
}

int worktree_restore(struct worktree *worktree, const struct commit *from, const char *const *paths,
                     size_t path_count, uint64_t *ret_changed, struct message *message)
{
	CLEANUP(path_set_release) struct path_set set = {0};
	CLEANUP(restoring_release)
	struct restoring restoring = {
	        .worktree = worktree,
	        .trees = worktree->trees,
	        .message = message,
	};
	int error = path_set_init(&set, paths, path_count, message);
	/* What nobody could commit; throwing changes away is another matter. */
	if (!error && from && worktree_read_only(worktree))
		error = worktree_refresh(worktree, message);
	if (!error && from && worktree_read_only(worktree))
		error = fail(message, -ERR_REFUSED,
		             "%s is protected: no direct writes; make a branch (`lakectl branch "
		             "create NAME %s`), restore there and publish it",
		             worktree_branch(worktree), worktree_branch(worktree));
	if (!error)
		error = worktree_close_gate(worktree);
	if (error)
		return error;
	worktrees_settle_writers(worktree->trees);
	error = restore_closed(&restoring, &set, from);
	worktree_open_gate(worktree);
	if (error)
		return error;
	tell(&restoring, &set);
	if (ret_changed)
		*ret_changed = restoring.changed;
	return 0;
}
