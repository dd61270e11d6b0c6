/*
 * fs/mount/vfs.h without a mount: a small "kernel" walks paths, holds references, looks up again on
 * -ERR_STALE. A real directory is the model that random operations must agree with.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fs/mount/nodes.h"
#include "fs/mount/vfs.h"

#include <cmocka.h>

static const struct vfs_caller caller = {.uid = 0, .gid = 0, .pid = 4711};
#define PATH_MAX_ 512

struct world {
	char root[64];
	struct lake *lake;
	struct vfs *vfs;
	/* What the kernel was told. */
	atomic_int backings_open, backings_made;
	char forgotten[16][NAME_BYTES_MAX + 1];
	unsigned forgotten_count;
	uint64_t made_privileged; /* this node, while a file is being opened */
};

static int backing_open(void *context, int fd)
{
	struct world *world = context;
	const struct vfs_change change = {.which = VFS_MODE, .mode = 04755};
	struct stat stat;
	assert_true(fcntl(fd, F_GETFD) >= 0);
	if (world->made_privileged)
		assert_int_equal(vfs_setattr(world->vfs, world->made_privileged, NULL, &change,
		                             &caller, &stat, NULL),
		                 0);
	world->backings_open++;
	return ++world->backings_made;
}

static void backing_close(void *context, int backing)
{
	struct world *world = context;
	assert_true(backing > 0);
	world->backings_open--;
}

static void forget_entry(void *context, uint64_t parent, const char *name)
{
	struct world *world = context;
	snprintf(world->forgotten[world->forgotten_count++ % 16], NAME_BYTES_MAX + 1, "%s", name);
}

static void check(int result, const char *what, const struct message *message)
{
	if (result < 0)
		fail_msg("%s: %s (%s)", what, error_text(result), message ? message->text : "");
}

static void world_mount(struct world *world, bool passthrough)
{
	struct message message = {{0}};
	char path[80];
	snprintf(path, sizeof(path), "%s/lake", world->root);
	check(lake_open(path, &world->lake, &message), "lake_open", &message);
	struct vfs_kernel kernel = {.context = world, .forget_entry = forget_entry};
	if (passthrough) {
		kernel.backing_open = backing_open;
		kernel.backing_close = backing_close;
	}
	check(vfs_new(world->lake, &kernel, NULL, &world->vfs), "vfs_new", NULL);
}

static void world_unmount(struct world *world)
{
	vfs_free(world->vfs);
	lake_close(world->lake);
	assert_int_equal(world->backings_open, 0);
}

static int setup(void **state)
{
	struct world *world = calloc(1, sizeof(*world));
	struct message message = {{0}};
	char path[80];
	strcpy(world->root, "/tmp/test_vfs.XXXXXX");
	assert_non_null(mkdtemp(world->root));
	snprintf(path, sizeof(path), "%s/lake", world->root);
	check(lake_init(path, NULL, "test@host", &message), "lake_init", &message);
	world_mount(world, true);
	*state = world;
	return 0;
}

static int remove_one(const char *path, const struct stat *stat, int kind, struct FTW *ftw)
{
	return remove(path);
}

static int teardown(void **state)
{
	struct world *world = *state;
	world_unmount(world);
	nftw(world->root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(world);
	return 0;
}

/* -- the small kernel -- */

static uint64_t node_count(struct world *world)
{
	struct vfs_stats stats;
	vfs_stats(world->vfs, &stats);
	return stats.nodes;
}

/* Walk to the path; one reference on what is found, none left on the way. */
static int walk(struct world *world, const char *path, struct vfs_entry *ret_entry)
{
	char copy[PATH_MAX_];
	uint64_t parent = VFS_ROOT;
	int result = 0;
	snprintf(copy, sizeof(copy), "%s", path);
	char *rest = copy;
	for (char *name; result >= 0 && (name = strsep(&rest, "/"));) {
		result = vfs_lookup(world->vfs, parent, name, ret_entry, NULL);
		if (parent != VFS_ROOT)
			vfs_forget(world->vfs, parent, 1);
		parent = ret_entry->node;
	}
	return result;
}

/* The parent of the path, referenced, and the last name. */
static int walk_parent(struct world *world, const char *path, uint64_t *ret_parent,
                       const char **ret_name)
{
	char copy[PATH_MAX_];
	struct vfs_entry entry;
	const char *slash = strrchr(path, '/');
	snprintf(copy, sizeof(copy), "%.*s", (int)(slash - path), path);
	int result = walk(world, copy, &entry);
	*ret_parent = entry.node;
	*ret_name = slash + 1;
	if (result >= 0 && !S_ISDIR(entry.stat.st_mode)) {
		vfs_forget(world->vfs, entry.node, 1);
		return -ERR_NOT_DIRECTORY;
	}
	return result;
}

static int lake_create(struct world *world, const char *path, struct vfs_entry *ret_entry,
                       struct vfs_opened *ret_opened)
{
	uint64_t parent;
	const char *name;
	int result = walk_parent(world, path, &parent, &name);
	if (result < 0)
		return result;
	result = vfs_create(world->vfs, parent, name, 0644, O_CREAT | O_EXCL | O_RDWR, &caller,
	                    ret_entry, ret_opened, NULL);
	vfs_forget(world->vfs, parent, 1);
	return result;
}

/* Open by path; looks up again once, as the kernel does. */
static int lake_open_path(struct world *world, const char *path, int flags,
                          struct vfs_opened *ret_opened)
{
	int result = -ERR_STALE;
	for (int i = 0; i < 2 && result == -ERR_STALE; i++) {
		struct vfs_entry entry;
		result = walk(world, path, &entry);
		if (result < 0)
			return result;
		result = vfs_open(world->vfs, entry.node, flags, &caller, ret_opened, NULL);
		vfs_forget(world->vfs, entry.node, 1);
	}
	return result;
}

static int lake_write(struct world *world, const char *path, const char *text)
{
	struct vfs_entry entry;
	struct vfs_opened opened;
	int result = lake_create(world, path, &entry, &opened);
	if (result >= 0)
		vfs_forget(world->vfs, entry.node, 1);
	else if (result == -ERR_EXISTS)
		result = lake_open_path(world, path, O_WRONLY | O_TRUNC, &opened);
	if (result < 0)
		return result;
	ssize_t put = vfs_write(world->vfs, opened.file, text, strlen(text), 0, &caller, NULL);
	vfs_release(world->vfs, opened.file);
	return put < 0 ? (int)put : 0;
}

static void file_is(struct world *world, struct vfs_file *file, const char *wanted)
{
	char bytes[256];
	ssize_t got = vfs_read(world->vfs, file, bytes, sizeof(bytes) - 1, 0, NULL);
	assert_true(got >= 0);
	bytes[got] = '\0';
	assert_string_equal(bytes, wanted);
}

static void path_is(struct world *world, const char *path, const char *wanted)
{
	struct vfs_opened opened;
	check(lake_open_path(world, path, O_RDONLY, &opened), path, NULL);
	file_is(world, opened.file, wanted);
	vfs_release(world->vfs, opened.file);
}

static int lake_make(struct world *world, const char *path, mode_t mode)
{
	struct vfs_entry entry;
	uint64_t parent;
	const char *name;
	int result = walk_parent(world, path, &parent, &name);
	if (result < 0)
		return result;
	result = vfs_make(world->vfs, parent, name, &(struct vfs_make){.mode = mode}, &caller,
	                  &entry, NULL);
	if (result >= 0)
		vfs_forget(world->vfs, entry.node, 1);
	vfs_forget(world->vfs, parent, 1);
	return result;
}

static int lake_remove(struct world *world, const char *path, bool directory)
{
	uint64_t parent;
	const char *name;
	int result = walk_parent(world, path, &parent, &name);
	if (result < 0)
		return result;
	result = vfs_remove(world->vfs, parent, name, directory, NULL);
	vfs_forget(world->vfs, parent, 1);
	return result;
}

static int lake_rename(struct world *world, const char *from, const char *to, unsigned flags)
{
	uint64_t from_parent, to_parent;
	const char *from_name, *to_name;
	int result = walk_parent(world, from, &from_parent, &from_name);
	if (result < 0)
		return result;
	result = walk_parent(world, to, &to_parent, &to_name);
	if (result >= 0) {
		result = vfs_rename(world->vfs, from_parent, from_name, to_parent, to_name, flags,
		                    NULL);
		vfs_forget(world->vfs, to_parent, 1);
	}
	vfs_forget(world->vfs, from_parent, 1);
	return result;
}

static int lake_link(struct world *world, const char *from, const char *to)
{
	struct vfs_entry entry, linked;
	uint64_t parent;
	const char *name;
	int result = walk(world, from, &entry);
	if (result < 0)
		return result;
	result = walk_parent(world, to, &parent, &name);
	if (result >= 0) {
		result = vfs_link(world->vfs, entry.node, parent, name, &linked, NULL);
		if (result >= 0) {
			assert_int_equal(linked.node, entry.node);
			vfs_forget(world->vfs, linked.node, 1);
		}
		vfs_forget(world->vfs, parent, 1);
	}
	vfs_forget(world->vfs, entry.node, 1);
	return result;
}

static int lake_truncate(struct world *world, const char *path, uint64_t size)
{
	int result = -ERR_STALE;
	for (int i = 0; i < 2 && result == -ERR_STALE; i++) {
		struct vfs_entry entry;
		struct stat stat;
		struct vfs_change change = {.which = VFS_SIZE, .size = size};
		result = walk(world, path, &entry);
		if (result < 0)
			return result;
		result = vfs_setattr(world->vfs, entry.node, NULL, &change, &caller, &stat, NULL);
		vfs_forget(world->vfs, entry.node, 1);
	}
	return result;
}

static void commit(struct world *world, const char *branch)
{
	struct message message = {{0}};
	struct worktree *worktree;
	struct commit_result result;
	const struct commit_options options = {.author = "test@host",
	                                       .message = "test",
	                                       .command = "commit",
	                                       .allow_empty = true,
	                                       .allow_open = true};
	check(worktree_get(world->lake->worktrees, branch, &worktree, &message), "get", &message);
	check(worktree_commit(worktree, &options, &result, &message), "commit", &message);
	worktree_unref(worktree);
}

static void move_branch(struct world *world, const char *branch, const char *revision)
{
	struct message message = {{0}};
	struct worktree *worktree;
	struct commit *target;
	const struct move_options options = {
	        .who = "test@host", .command = "reset", .discard = true};
	check(worktree_get(world->lake->worktrees, branch, &worktree, &message), "get", &message);
	check(revision_resolve(world->lake->history, revision, &target, &message), revision,
	      &message);
	check(worktree_move(worktree, &target->self, &options, &message), "move", &message);
	free(target);
	worktree_unref(worktree);
}

/* -- nodes -- */

static void test_nodes__references(void **state)
{
	struct nodes *nodes;
	struct node *dead = NULL;
	check(nodes_new(&nodes), "nodes_new", NULL);
	nodes_lock(nodes);
	struct node *root = nodes_by_id(nodes, NODE_ROOT_ID);
	struct node *parent = nodes_add(nodes, NODE_ENTRY, root, "a", NULL, 5);
	parent->lookups = 2;
	for (int i = 0; i < 5000; i++) { /* the tables grow meanwhile */
		char name[16];
		snprintf(name, sizeof(name), "%d", i);
		struct node *child = nodes_add(nodes, NODE_ENTRY, parent, name, NULL, 9);
		child->lookups = 1;
		nodes_bind(nodes, child, 1, 1000 + (uint64_t)i, 0);
	}
	assert_int_equal(nodes_count(nodes), 5002);
	nodes_forget(nodes, parent, 2, &dead);
	assert_null(dead); /* its children hold it */
	for (int i = 0; i < 5000; i++) {
		char name[16];
		snprintf(name, sizeof(name), "%d", i);
		struct node *child = nodes_by_name(nodes, parent, name);
		assert_non_null(child);
		assert_ptr_equal(child, nodes_by_number(nodes, NULL, 1000 + (uint64_t)i));
		assert_ptr_equal(child, nodes_by_id(nodes, child->id));
		uint64_t id = child->id;
		nodes_forget(nodes, child, 1, &dead);
		assert_null(nodes_by_id(nodes, id));
		assert_null(nodes_by_number(nodes, NULL, 1000 + (uint64_t)i));
		for (struct node *next; dead && i < 4999; dead = next) {
			next = dead->id_next;
			node_free(dead);
		}
	}
	/* The last child took the parent along. */
	assert_int_equal(nodes_count(nodes), 1);
	for (struct node *next; dead; dead = next) {
		next = dead->id_next;
		node_free(dead);
	}
	for (struct node *all = nodes_empty(nodes), *next; all; all = next) {
		next = all->id_next;
		node_free(all);
	}
	nodes_unlock(nodes);
	nodes_free(nodes);
}

/* -- operations -- */

static void test_vfs__forgets_everything(void **state)
{
	struct world *world = *state;
	check(lake_make(world, "main/d", S_IFDIR | 0755), "mkdir", NULL);
	check(lake_write(world, "main/d/f", "text"), "write", NULL);
	path_is(world, "main/d/f", "text");
	check(lake_rename(world, "main/d/f", "main/g", 0), "rename", NULL);
	path_is(world, "main/g", "text");
	assert_int_equal(lake_remove(world, "main/g", true), -ERR_NOT_DIRECTORY);
	check(lake_remove(world, "main/g", false), "unlink", NULL);
	check(lake_remove(world, "main/d", true), "rmdir", NULL);
	assert_int_equal(node_count(world), 1);
}

static void test_vfs__ids_and_numbers_last(void **state)
{
	struct world *world = *state;
	struct vfs_entry before, after;
	check(lake_write(world, "main/f", "text"), "write", NULL);
	commit(world, "main");
	check(walk(world, "main/f", &before), "walk", NULL);
	check(lake_rename(world, "main/f", "main/g", 0), "rename", NULL);
	check(walk(world, "main/g", &after), "walk", NULL);
	assert_int_equal(before.node, after.node);
	assert_int_equal(before.stat.st_ino, after.stat.st_ino);
	commit(world, "main");
	vfs_forget(world->vfs, after.node, 1);
	check(walk(world, "main/g", &after), "walk", NULL);
	assert_int_equal(before.node, after.node);
	assert_int_equal(before.stat.st_ino, after.stat.st_ino);
	vfs_forget(world->vfs, after.node, 2);
	struct stat stat;
	assert_int_equal(vfs_getattr(world->vfs, after.node, &stat, NULL), -ERR_STALE);
	check(walk(world, "main/g", &after), "walk", NULL);
	assert_int_not_equal(before.node, after.node);
	vfs_forget(world->vfs, after.node, 1);
}

static void test_vfs__one_backing_for_all_opens(void **state)
{
	struct world *world = *state;
	struct vfs_opened opened[3];
	check(lake_write(world, "main/f", "text"), "write", NULL);
	for (int i = 0; i < 3; i++)
		check(lake_open_path(world, "main/f", i ? O_RDWR : O_RDONLY, &opened[i]), "open",
		      NULL);
	assert_true(opened[0].backing > 0);
	assert_int_equal(opened[0].backing, opened[1].backing);
	assert_int_equal(opened[0].backing, opened[2].backing);
	assert_int_equal(world->backings_open, 1);
	for (int i = 0; i < 3; i++)
		vfs_release(world->vfs, opened[i].file);
	assert_int_equal(world->backings_open, 0);
}

static void test_vfs__a_mode_that_comes_while_opening_counts(void **state)
{
	struct world *world = *state;
	struct vfs_entry entry;
	struct vfs_opened opened, writer;
	check(lake_write(world, "main/f", "text"), "write", NULL);
	check(walk(world, "main/f", &entry), "walk", NULL);
	world->made_privileged = entry.node;
	check(lake_open_path(world, "main/f", O_RDONLY, &opened), "open", NULL);
	world->made_privileged = 0;
	assert_int_equal(opened.backing, 0); /* so that the write below comes to us */
	assert_int_equal(world->backings_open, 0);
	check(lake_open_path(world, "main/f", O_WRONLY, &writer), "open", NULL);
	assert_int_equal(writer.backing, 0);
	const struct vfs_caller other = {.uid = 1000, .gid = 1000, .pid = 4712};
	assert_int_equal(vfs_write(world->vfs, writer.file, "more", 4, 0, &other, NULL), 4);
	vfs_release(world->vfs, writer.file);
	vfs_release(world->vfs, opened.file);
	vfs_forget(world->vfs, entry.node, 1);
	check(walk(world, "main/f", &entry), "walk", NULL);
	assert_int_equal(entry.stat.st_mode & 07777, 0755);
	vfs_forget(world->vfs, entry.node, 1);
}

static void test_vfs__first_write_splits(void **state)
{
	struct world *world = *state;
	struct vfs_opened old, new;
	struct vfs_entry entry;
	check(lake_write(world, "main/f", "committed"), "write", NULL);
	commit(world, "main");
	check(lake_open_path(world, "main/f", O_RDONLY, &old), "open", NULL);
	check(walk(world, "main/f", &entry), "walk", NULL);
	assert_int_equal(vfs_open(world->vfs, entry.node, O_WRONLY, &caller, &new, NULL),
	                 -ERR_STALE);
	check(lake_open_path(world, "main/f", O_RDWR, &new), "open", NULL);
	assert_int_not_equal(vfs_file_node(new.file), entry.node);
	assert_int_equal(vfs_write(world->vfs, new.file, "C", 1, 0, &caller, NULL), 1);
	file_is(world, old.file, "committed");
	file_is(world, new.file, "Committed");
	path_is(world, "main/f", "Committed");
	struct stat stat;
	check(vfs_getattr(world->vfs, entry.node, &stat, NULL), "getattr", NULL);
	assert_int_equal(stat.st_size, 9);
	/* Not this version's attributes to change. */
	struct vfs_change change = {.which = VFS_MODE, .mode = 0600};
	assert_int_equal(vfs_setattr(world->vfs, entry.node, NULL, &change, &caller, &stat, NULL),
	                 -ERR_STALE);
	vfs_release(world->vfs, old.file);
	vfs_release(world->vfs, new.file);
	vfs_forget(world->vfs, entry.node, 1);
	assert_int_equal(node_count(world), 1);
}

/* The kernel looks a path up once more after -ERR_STALE, not twice. */
static void test_vfs__who_reads_the_new_node_first_is_in_nobodys_way(void **state)
{
	static const int ways[] = {O_WRONLY, O_RDWR | O_TRUNC};
	struct world *world = *state;
	for (unsigned i = 0; i < 2; i++) {
		struct vfs_opened old, reader, writer;
		struct vfs_entry entry, again;
		check(lake_write(world, "main/f", i ? "truncated" : "written to"), "write", NULL);
		commit(world, "main");
		check(lake_open_path(world, "main/f", O_RDONLY, &old), "open", NULL);
		check(walk(world, "main/f", &entry), "walk", NULL);
		assert_int_equal(vfs_open(world->vfs, entry.node, ways[i], &caller, &writer, NULL),
		                 -ERR_STALE);
		check(walk(world, "main/f", &again), "walk", NULL);
		check(vfs_open(world->vfs, again.node, O_RDONLY, &caller, &reader, NULL), "open",
		      NULL);
		check(vfs_open(world->vfs, again.node, ways[i], &caller, &writer, NULL), "open",
		      NULL);
		assert_int_equal(vfs_write(world->vfs, writer.file, "W", 1, 0, &caller, NULL), 1);
		file_is(world, reader.file, i ? "W" : "Written to");
		file_is(world, old.file, i ? "truncated" : "written to");
		vfs_release(world->vfs, old.file);
		vfs_release(world->vfs, reader.file);
		vfs_release(world->vfs, writer.file);
		vfs_forget(world->vfs, entry.node, 1);
		vfs_forget(world->vfs, again.node, 1);
	}
}

static void test_vfs__descriptors_of_split_links_have_attributes(void **state)
{
	struct world *world = *state;
	struct vfs_opened opened;
	struct vfs_entry entry, linked, top;
	struct stat stat;
	check(lake_write(world, "main/f", "two names"), "write", NULL);
	check(walk(world, "main", &top), "walk", NULL);
	check(walk(world, "main/f", &entry), "walk", NULL);
	check(vfs_link(world->vfs, entry.node, top.node, "g", &linked, NULL), "link", NULL);
	check(vfs_open(world->vfs, entry.node, O_RDONLY, &caller, &opened, NULL), "open", NULL);
	commit(world, "main");
	check(vfs_getattr(world->vfs, entry.node, &stat, NULL), "getattr", NULL);
	assert_int_equal(stat.st_size, 9);
	file_is(world, opened.file, "two names");
	vfs_release(world->vfs, opened.file);
	vfs_forget(world->vfs, entry.node, 1);
	vfs_forget(world->vfs, linked.node, 1);
	vfs_forget(world->vfs, top.node, 1);
}

/* As on a disk: a path was walked to its end, then the name was taken away. */
static void test_vfs__what_was_just_removed_can_be_truncated(void **state)
{
	struct world *world = *state;
	struct vfs_entry entry, top;
	struct stat stat;
	struct vfs_change change = {.which = VFS_SIZE, .size = 3};
	check(lake_write(world, "main/f", "removed"), "write", NULL);
	check(walk(world, "main", &top), "walk", NULL);
	check(walk(world, "main/f", &entry), "walk", NULL);
	check(vfs_remove(world->vfs, top.node, "f", false, NULL), "remove", NULL);
	check(vfs_setattr(world->vfs, entry.node, NULL, &change, &caller, &stat, NULL), "truncate",
	      NULL);
	assert_int_equal(stat.st_size, 3);
	vfs_forget(world->vfs, entry.node, 1);
	vfs_forget(world->vfs, top.node, 1);
	assert_int_equal(node_count(world), 1);
}

static void test_vfs__without_others_no_split(void **state)
{
	struct world *world = *state;
	struct vfs_opened opened;
	struct vfs_entry entry;
	check(lake_write(world, "main/f", "committed"), "write", NULL);
	commit(world, "main");
	check(walk(world, "main/f", &entry), "walk", NULL);
	check(vfs_open(world->vfs, entry.node, O_RDWR, &caller, &opened, NULL), "open", NULL);
	assert_int_equal(vfs_file_node(opened.file), entry.node);
	vfs_release(world->vfs, opened.file);
	vfs_forget(world->vfs, entry.node, 1);
}

static void test_vfs__moves_are_told(void **state)
{
	struct world *world = *state;
	struct vfs_entry same, other, directory, now;
	struct vfs_opened old;
	check(lake_make(world, "main/d", S_IFDIR | 0755), "mkdir", NULL);
	check(lake_write(world, "main/d/same", "same"), "write", NULL);
	check(lake_write(world, "main/d/other", "one"), "write", NULL);
	commit(world, "main");
	check(lake_write(world, "main/d/other", "second"), "write", NULL);
	commit(world, "main");
	check(walk(world, "main/d/same", &same), "walk", NULL);
	check(walk(world, "main/d/other", &other), "walk", NULL);
	check(walk(world, "main/d", &directory), "walk", NULL);
	check(lake_open_path(world, "main/d/other", O_RDONLY, &old), "open", NULL);
	world->forgotten_count = 0;
	move_branch(world, "main", "main~1");
	assert_int_equal(world->forgotten_count, 1);
	assert_string_equal(world->forgotten[0], "other");
	path_is(world, "main/d/other", "one");
	file_is(world, old.file, "second");
	check(walk(world, "main/d/same", &now), "walk", NULL);
	assert_int_equal(now.node, same.node);
	vfs_forget(world->vfs, now.node, 1);
	check(walk(world, "main/d", &now), "walk", NULL);
	assert_int_equal(now.node, directory.node);
	vfs_forget(world->vfs, now.node, 1);
	check(walk(world, "main/d/other", &now), "walk", NULL);
	assert_int_not_equal(now.node, other.node);
	vfs_forget(world->vfs, now.node, 1);
	vfs_release(world->vfs, old.file);
	vfs_forget(world->vfs, same.node, 1);
	vfs_forget(world->vfs, other.node, 1);
	vfs_forget(world->vfs, directory.node, 1);
	assert_int_equal(node_count(world), 1);
}

static void test_vfs__views_and_root(void **state)
{
	struct world *world = *state;
	struct vfs_entry entry;
	struct vfs_opened opened;
	check(lake_write(world, "main/f", "one"), "write", NULL);
	commit(world, "main");
	check(lake_write(world, "main/f", "two"), "write", NULL);
	path_is(world, "@main/f", "one");
	check(walk(world, "@main/f", &entry), "walk", NULL);
	assert_int_equal(vfs_open(world->vfs, entry.node, O_RDWR, &caller, &opened, NULL),
	                 -ERR_READ_ONLY);
	vfs_forget(world->vfs, entry.node, 1);
	check(walk(world, "@main", &entry), "walk", NULL);
	assert_false(entry.lasting);
	vfs_forget(world->vfs, entry.node, 1);
	assert_int_equal(lake_write(world, "@main/g", ""), -ERR_READ_ONLY);
	assert_int_equal(lake_remove(world, "@main/f", false), -ERR_READ_ONLY);
	assert_int_equal(walk(world, "@nothing", &entry), -ERR_NO_REVISION);
	assert_int_equal(walk(world, "nothing", &entry), -ERR_NOT_FOUND);
	assert_int_equal(walk(world, "bad..name", &entry), -ERR_NOT_FOUND);
	assert_int_equal(vfs_make(world->vfs, VFS_ROOT, "new",
	                          &(struct vfs_make){.mode = S_IFDIR | 0755}, &caller, &entry,
	                          NULL),
	                 -ERR_NOT_PERMITTED);
	assert_int_equal(vfs_remove(world->vfs, VFS_ROOT, "main", true, NULL), -ERR_NOT_PERMITTED);
	assert_int_equal(node_count(world), 1);
}

/* -- directories -- */

struct names {
	char names[64][16];
	uint64_t next[64];
	size_t count, limit;
};

static bool name_taken(void *context, const char *name, const struct vfs_entry *entry,
                       uint64_t next)
{
	struct names *names = context;
	if (names->count == names->limit)
		return false;
	snprintf(names->names[names->count], 16, "%s", name);
	names->next[names->count++] = next;
	return true;
}

static void read_some(struct world *world, struct vfs_directory *directory, uint64_t offset,
                      size_t limit, struct names *names)
{
	*names = (struct names){.limit = limit};
	struct vfs_list list = {.offset = offset,
	                        .room = limit * 20,
	                        .overhead = 16,
	                        .entry = name_taken,
	                        .context = names};
	check(vfs_readdir(world->vfs, directory, &list, NULL), "readdir", NULL);
}

static void test_vfs__offsets_are_exact(void **state)
{
	struct world *world = *state;
	struct vfs_directory *directory, *second;
	struct vfs_entry entry;
	struct names names, again;
	bool lasting;
	for (int i = 0; i < 40; i++) {
		char path[32];
		snprintf(path, sizeof(path), "main/f%02d", i);
		check(lake_write(world, path, ""), "write", NULL);
	}
	check(walk(world, "main", &entry), "walk", NULL);
	check(vfs_opendir(world->vfs, entry.node, &directory, &lasting, NULL), "opendir", NULL);
	read_some(world, directory, 0, 10, &names);
	assert_true(names.count > 2 && names.count <= 10);
	assert_string_equal(names.names[0], ".");
	assert_string_equal(names.names[2], "f00");
	/* Going back gives the same; what was removed meanwhile is left out. */
	check(lake_remove(world, "main/f01", false), "unlink", NULL);
	read_some(world, directory, names.next[1], 4, &again);
	assert_string_equal(again.names[0], "f00");
	assert_string_equal(again.names[1], "f02");
	assert_int_equal(again.next[1], names.next[4]);
	/* A handle that starts in the middle, as after a listing served from the kernel's cache. */
	check(vfs_opendir(world->vfs, entry.node, &second, &lasting, NULL), "opendir", NULL);
	read_some(world, second, 12, 3, &again);
	assert_string_equal(again.names[0], "f11"); /* "." ".." and ten of what is there now */
	uint64_t offset = again.next[again.count - 1];
	size_t total = 10 + again.count;
	for (read_some(world, second, offset, 7, &again); again.count;
	     read_some(world, second, offset, 7, &again)) {
		offset = again.next[again.count - 1];
		total += again.count;
	}
	assert_int_equal(total, 39);
	vfs_releasedir(world->vfs, directory);
	vfs_releasedir(world->vfs, second);
	vfs_forget(world->vfs, entry.node, 1);
	assert_int_equal(node_count(world), 1);
}

/* -- random operations against a real directory -- */

#define NAMES 6
#define HELD 24

struct model {
	struct world *world;
	char directory[96];
	uint64_t dice;
	struct vfs_entry held[HELD]; /* references the kernel keeps for a while */
	size_t held_count;
};

static unsigned roll(struct model *model, unsigned sides)
{
	model->dice = model->dice * 6364136223846793005ull + 1442695040888963407ull;
	return (unsigned)(model->dice >> 33) % sides;
}

/* One to three components out of few names, so that paths collide. */
static void random_path(struct model *model, char *ret_path)
{
	size_t length = 0;
	unsigned depth = 1 + roll(model, 3);
	for (unsigned i = 0; i < depth; i++)
		length += (size_t)snprintf(ret_path + length, 64 - length, "%s%c", i ? "/" : "",
		                           'a' + (char)roll(model, NAMES));
}

/* Unix and we name some refusals differently; these are alike. */
static int alike(int problem)
{
	return problem == EEXIST ? ENOTEMPTY : problem;
}

static void agree(struct model *model, const char *what, const char *a, const char *b, int ours,
                  int theirs)
{
	int problem = ours < 0 ? error_errno(ours) : 0;
	if (alike(problem) != alike(theirs))
		fail_msg("%s %s %s: %s, the model: %s", what, a, b, strerror(problem),
		         strerror(theirs));
}

static int model_write(const char *path, const char *text)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0644);
	if (fd < 0)
		return errno;
	int problem = write(fd, text, strlen(text)) < 0 ? errno : 0;
	close(fd);
	return problem;
}

static void hold_some(struct model *model, const char *path)
{
	struct vfs_entry entry;
	if (roll(model, 3) == 0 && model->held_count) {
		size_t i = roll(model, (unsigned)model->held_count);
		vfs_forget(model->world->vfs, model->held[i].node, 1);
		model->held[i] = model->held[--model->held_count];
	}
	if (model->held_count < HELD && walk(model->world, path, &entry) >= 0)
		model->held[model->held_count++] = entry;
}

static void random_step(struct model *model)
{
	struct world *world = model->world;
	char a[64], b[64], ours_a[80], ours_b[80], theirs_a[192], theirs_b[192], text[32];
	random_path(model, a);
	random_path(model, b);
	snprintf(ours_a, sizeof(ours_a), "main/%s", a);
	snprintf(ours_b, sizeof(ours_b), "main/%s", b);
	snprintf(theirs_a, sizeof(theirs_a), "%s/%s", model->directory, a);
	snprintf(theirs_b, sizeof(theirs_b), "%s/%s", model->directory, b);
	snprintf(text, sizeof(text), "%u", roll(model, 1000000));
	struct stat from, to;
	switch (roll(model, 12)) {
	case 0:
	case 1:
		agree(model, "mkdir", a, "", lake_make(world, ours_a, S_IFDIR | 0755),
		      mkdir(theirs_a, 0755) < 0 ? errno : 0);
		break;
	case 2:
	case 3:
		agree(model, "write", a, "", lake_write(world, ours_a, text),
		      model_write(theirs_a, text));
		break;
	case 4:
		agree(model, "unlink", a, "", lake_remove(world, ours_a, false),
		      unlink(theirs_a) < 0 ? errno : 0);
		break;
	case 5:
		agree(model, "rmdir", a, "", lake_remove(world, ours_a, true),
		      rmdir(theirs_a) < 0 ? errno : 0);
		break;
	case 6:
	case 7:
	case 8: {
		/* The kernel settles these before we are asked. */
		bool both = lstat(theirs_a, &from) == 0 && lstat(theirs_b, &to) == 0;
		if (!both || from.st_ino == to.st_ino ||
		    S_ISDIR(from.st_mode) != S_ISDIR(to.st_mode))
			if (both || strncmp(a, b, strlen(a)) == 0)
				break;
		unsigned flags = roll(model, 3);
		int theirs =
		        renameat2(AT_FDCWD, theirs_a, AT_FDCWD, theirs_b, flags) < 0 ? errno : 0;
		agree(model, "rename", a, b, lake_rename(world, ours_a, ours_b, flags), theirs);
		break;
	}
	case 9:
		if (lstat(theirs_a, &from) == 0 && S_ISDIR(from.st_mode))
			break; /* refused by the kernel, before or after a look at the target */
		agree(model, "link", a, b, lake_link(world, ours_a, ours_b),
		      link(theirs_a, theirs_b) < 0 ? errno : 0);
		break;
	case 10:
		if (lstat(theirs_a, &from) == 0 && S_ISREG(from.st_mode))
			agree(model, "truncate", a, "", lake_truncate(world, ours_a, 3),
			      truncate(theirs_a, 3) < 0 ? errno : 0);
		break;
	case 11:
		hold_some(model, ours_a);
		break;
	}
}

static struct model *visiting;
static size_t visited;

static int visit(const char *path, const struct stat *stat, int kind, struct FTW *ftw)
{
	char ours[160], wanted[64] = "";
	struct vfs_entry entry;
	const char *below = path + strlen(visiting->directory);
	snprintf(ours, sizeof(ours), "main%s", below);
	check(walk(visiting->world, ours, &entry), ours, NULL);
	visited++;
	assert_int_equal(entry.stat.st_mode & S_IFMT, stat->st_mode & S_IFMT);
	if (S_ISREG(stat->st_mode)) {
		int fd = open(path, O_RDONLY);
		assert_true(read(fd, wanted, sizeof(wanted) - 1) >= 0);
		close(fd);
		assert_int_equal(entry.stat.st_size, stat->st_size);
		path_is(visiting->world, ours, wanted);
	}
	vfs_forget(visiting->world->vfs, entry.node, 1);
	return 0;
}

/* Links become files of their own with a commit; so they do in the model. */
static int unlink_twins(const char *path, const struct stat *stat, int kind, struct FTW *ftw)
{
	char bytes[64], temporary[300];
	if (!S_ISREG(stat->st_mode) || stat->st_nlink < 2)
		return 0;
	int fd = open(path, O_RDONLY);
	ssize_t got = read(fd, bytes, sizeof(bytes));
	close(fd);
	snprintf(temporary, sizeof(temporary), "%s.new", path);
	fd = open(temporary, O_CREAT | O_WRONLY, 0644);
	assert_int_equal(write(fd, bytes, (size_t)got), got);
	close(fd);
	return rename(temporary, path);
}

static void test_vfs__agrees_with_a_directory(void **state)
{
	struct world *world = *state;
	struct model model = {.world = world, .dice = random_u64()};
	const char *given = getenv("SEED");
	if (given)
		model.dice = strtoull(given, NULL, 0);
	print_message("# seed %llu\n", (unsigned long long)model.dice);
	snprintf(model.directory, sizeof(model.directory), "%s/model", world->root);
	assert_int_equal(mkdir(model.directory, 0755), 0);
	visiting = &model;
	for (int i = 0; i < 6000; i++) {
		random_step(&model);
		if (i % 500 == 499) {
			commit(world, "main");
			nftw(model.directory, unlink_twins, 16, FTW_PHYS);
		}
		if (i % 250 == 249)
			nftw(model.directory, visit, 16, FTW_PHYS);
	}
	assert_true(visited > 24);
	while (model.held_count)
		vfs_forget(world->vfs, model.held[--model.held_count].node, 1);
	assert_int_equal(node_count(world), 1);
	/* And after a restart. */
	world_unmount(world);
	world_mount(world, false);
	nftw(model.directory, visit, 16, FTW_PHYS);
}

/* -- many threads, and commits and moves meanwhile -- */

struct worker {
	struct world *world;
	unsigned number;
	atomic_bool *stop;
	unsigned done;
};

static void *work(void *context)
{
	struct worker *worker = context;
	for (unsigned i = 0; !*worker->stop; i++) {
		char a[64], b[64], text[32];
		struct vfs_opened opened;
		snprintf(a, sizeof(a), "main/w%u/f%u", worker->number, i % 7);
		snprintf(b, sizeof(b), "main/w%u/g%u", worker->number, i % 5);
		snprintf(text, sizeof(text), "%u-%u", worker->number, i);
		check(lake_write(worker->world, a, text), a, NULL);
		check(lake_open_path(worker->world, a, O_RDONLY, &opened), a, NULL);
		check(lake_rename(worker->world, a, b, 0), b, NULL);
		file_is(worker->world, opened.file, text);
		path_is(worker->world, b, text);
		vfs_release(worker->world->vfs, opened.file);
		path_is(worker->world, "main/shared", "shared");
		worker->done++;
	}
	return NULL;
}

static void test_vfs__threads_and_commits(void **state)
{
	struct world *world = *state;
	struct worker workers[4];
	pthread_t threads[4];
	atomic_bool stop = false;
	check(lake_write(world, "main/shared", "shared"), "write", NULL);
	for (unsigned i = 0; i < 4; i++) {
		char path[32];
		snprintf(path, sizeof(path), "main/w%u", i);
		check(lake_make(world, path, S_IFDIR | 0755), path, NULL);
		workers[i] = (struct worker){world, i, &stop, 0};
		pthread_create(&threads[i], NULL, work, &workers[i]);
	}
	for (int i = 0; i < 30; i++) {
		usleep(20000);
		commit(world, "main");
	}
	stop = true;
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		assert_true(workers[i].done > 0);
	}
	assert_int_equal(node_count(world), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_nodes__references),
#define WITH_WORLD(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	        WITH_WORLD(test_vfs__forgets_everything),
	        WITH_WORLD(test_vfs__ids_and_numbers_last),
	        WITH_WORLD(test_vfs__one_backing_for_all_opens),
	        WITH_WORLD(test_vfs__a_mode_that_comes_while_opening_counts),
	        WITH_WORLD(test_vfs__first_write_splits),
	        WITH_WORLD(test_vfs__who_reads_the_new_node_first_is_in_nobodys_way),
	        WITH_WORLD(test_vfs__descriptors_of_split_links_have_attributes),
	        WITH_WORLD(test_vfs__what_was_just_removed_can_be_truncated),
	        WITH_WORLD(test_vfs__without_others_no_split),
	        WITH_WORLD(test_vfs__moves_are_told),
	        WITH_WORLD(test_vfs__views_and_root),
	        WITH_WORLD(test_vfs__offsets_are_exact),
	        WITH_WORLD(test_vfs__agrees_with_a_directory),
	        WITH_WORLD(test_vfs__threads_and_commits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
