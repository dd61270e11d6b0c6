/*
 * working_tree — for unit tests: a lake in a directory, and working trees changed by path, the way
 * a mount would.
 */
#ifndef TESTS_WORKING_TREE_H
#define TESTS_WORKING_TREE_H

#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "fs/snapshot.h"

#include <cmocka.h>

#define check(call) \
	do { \
		struct message check_message_ = {{0}}; \
		struct message *message = &check_message_; \
		(void)message; \
		int check_result_ = (call); \
		if (check_result_ != 0) \
			fail_msg("%s: %s (%s)", #call, error_code(check_result_), \
			         check_message_.text); \
	} while (0)

struct fixture {
	char directory[128];
	struct object_store *store;
	bool owns_store;
	struct kv *index;
	struct state *state;
	struct odb *odb;
	struct history *history;
	struct cache *cache;
	struct worktrees *trees;
};

static inline void fixture_path(const struct fixture *fixture, const char *name, char path[256])
{
	snprintf(path, 256, "%s/%s", fixture->directory, name);
}

/* Opens what is in fixture->directory; `store` NULL: its own local store. */
static inline void fixture_open(struct fixture *fixture, struct object_store *store)
{
	static const char *const tables[] = {"records", "commits"};
	const struct kv_options kv = {.tables = tables, .table_count = 2, .loseable = true};
	char path[256];
	fixture->store = store;
	fixture->owns_store = !store;
	fixture_path(fixture, "store", path);
	if (!store)
		check(object_local_open(path, true, &fixture->store, message));
	fixture_path(fixture, "index", path);
	check(kv_open(path, &kv, &fixture->index, message));
	fixture_path(fixture, "state", path);
	check(state_open(path, &fixture->state, message));
	check(odb_new(fixture->store, &(struct odb_options){.index = fixture->index},
	              &fixture->odb));
	check(history_new(fixture->odb, fixture->index, &fixture->history));
	fixture_path(fixture, "cache", path);
	check(cache_open(path, fixture->odb, &(struct cache_options){0}, &fixture->cache, message));
	fixture_path(fixture, "staging", path);
	check(worktrees_open(&(struct worktrees_options){.state = fixture->state,
	                                                 .odb = fixture->odb,
	                                                 .history = fixture->history,
	                                                 .cache = fixture->cache,
	                                                 .staging_directory = path},
	                     &fixture->trees, message));
}

static inline void fixture_close(struct fixture *fixture)
{
	worktrees_close(fixture->trees);
	cache_close(fixture->cache);
	history_free(fixture->history);
	odb_free(fixture->odb);
	state_close(fixture->state);
	kv_close(fixture->index);
	if (fixture->owns_store)
		object_store_free(fixture->store);
}

static inline int fixture_remove_one(const char *path, const struct stat *status, int flag,
                                     struct FTW *ftw)
{
	return remove(path);
}

static inline void fixture_remove(const struct fixture *fixture)
{
	nftw(fixture->directory, fixture_remove_one, 32, FTW_DEPTH | FTW_PHYS);
}

static const struct ref_author tester = {.who = "tester@host", .command = "test"};

/* A new lake with an empty first commit on main. */
static inline void fixture_new(struct fixture *fixture)
{
	struct packer *packer;
	struct pointer first;
	struct commit commit = {.root = {.mode = S_IFDIR | 0755},
	                        .author = "tester@host",
	                        .message = "first",
	                        .time_ms = 1};
	*fixture = (struct fixture){0};
	strcpy(fixture->directory, "/tmp/lake-test-XXXXXX");
	assert_non_null(mkdtemp(fixture->directory));
	fixture_open(fixture, NULL);
	check(packer_new(fixture->odb, &packer));
	check(commit_write(fixture->odb, packer, &commit, &first, message));
	check(packer_flush(packer, message));
	packer_free(packer);
	check(ref_create(fixture->store, REF_BRANCH, "main", &first, &tester, message));
}

static inline void fixture_end(struct fixture *fixture)
{
	fixture_close(fixture);
	fixture_remove(fixture);
}

/* -- by path; each function enters and leaves; results are errors, 0 when done -- */

struct place_found {
	struct directory directory; /* where the name is */
	const char *name;
	struct found found; /* valid when `exists` */
	bool exists;
};

static inline void place_release(struct place_found *place)
{
	if (place->exists)
		free(place->found.entry);
}

/* With `adopt` the directories above come into the overlay. */
static inline int find(struct worktree *worktree, const char *path, bool adopt,
                       struct place_found *ret_place)
{
	struct place_found place = {0};
	uint64_t root;
	int error = adopt ? worktree_adopt_root(worktree, &root) : 0;
	if (!error)
		error = worktree_root(worktree, &place.directory);
	const char *slash;
	while (!error && (slash = strchr(path, '/'))) {
		struct found found;
		error = worktree_lookup(worktree, &place.directory, path, (size_t)(slash - path),
		                        &found, NULL);
		if (error)
			break;
		if (!S_ISDIR(found.mode)) {
			free(found.entry);
			return -ERR_NOT_DIRECTORY;
		}
		if (found.number)
			place.directory = (struct directory){.number = found.number};
		else if (adopt)
			error = worktree_adopt(worktree, place.directory.number, found.entry,
			                       random_u64() | 1, &place.directory.number, NULL);
		else
			place.directory = (struct directory){.tree = found.entry->content.pointer};
		free(found.entry);
		path = slash + 1;
	}
	if (error)
		return error;
	place.name = path;
	error = worktree_lookup(worktree, &place.directory, path, strlen(path), &place.found, NULL);
	place.exists = !error;
	if (error && error != -ERR_NOT_FOUND)
		return error;
	*ret_place = place;
	return 0;
}

/* The existing path's overlay number. */
static inline int adopt(struct worktree *worktree, struct place_found *place)
{
	if (!place->exists)
		return -ERR_NOT_FOUND;
	if (place->found.number)
		return 0;
	return worktree_adopt(worktree, place->directory.number, place->found.entry,
	                      random_u64() | 1, &place->found.number, NULL);
}

static inline int enter(struct worktree *worktree)
{
	return worktree_enter(worktree, worktree_epoch(worktree));
}

static inline int make_at(struct worktree *worktree, struct place_found *place, mode_t mode,
                          const char *target, struct inode *ret_inode)
{
	const struct attributes attributes = {.mode = mode, .mtime_ns = clock_wall_ns()};
	return worktree_make(worktree, place->directory.number, place->name, strlen(place->name),
	                     &attributes, target, ret_inode, NULL);
}

static inline int write_inode(struct worktree *worktree, const struct inode *inode,
                              const void *bytes, size_t length, uint64_t offset)
{
	struct file_data *data;
	int error = file_data_open(worktree->trees, inode, true, &data, NULL);
	if (error)
		return error;
	ssize_t n = file_data_write(data, bytes, length, offset, NULL);
	file_data_close(data);
	return n < 0 ? (int)n : (size_t)n == length ? 0 : -ERR_CORRUPT;
}

/* Write `bytes` at `offset` (truncate: the file then is nothing but that). Makes the file. */
static inline int put_bytes(struct worktree *worktree, const char *path, const void *bytes,
                            size_t length, uint64_t offset, bool truncate)
{
	CLEANUP(place_release) struct place_found place = {0};
	CLEANUP(inode_release) struct inode inode = {0};
	int error = enter(worktree);
	if (error)
		return error;
	error = find(worktree, path, true, &place);
	if (!error && !place.exists)
		error = make_at(worktree, &place, S_IFREG | 0644, NULL, &inode);
	else if (!error && !S_ISREG(place.found.mode))
		error = -ERR_IS_DIRECTORY;
	else if (!error)
		error = adopt(worktree, &place);
	if (!error && place.exists)
		error = worktree_writable(worktree, place.found.number, truncate, &inode, NULL);
	if (!error) {
		worktree_writer(worktree->trees, inode.number, 1);
		error = write_inode(worktree, &inode, bytes, length, offset);
		worktree_writer(worktree->trees, inode.number, -1);
	}
	worktree_leave(worktree);
	return error;
}

static inline int put(struct worktree *worktree, const char *path, const char *text)
{
	return put_bytes(worktree, path, text, strlen(text), 0, true);
}

static inline int make(struct worktree *worktree, const char *path, mode_t mode, const char *target)
{
	CLEANUP(place_release) struct place_found place = {0};
	CLEANUP(inode_release) struct inode inode = {0};
	int error = enter(worktree);
	if (error)
		return error;
	error = find(worktree, path, true, &place);
	if (!error)
		error = make_at(worktree, &place, mode, target, &inode);
	worktree_leave(worktree);
	return error;
}

static inline int del(struct worktree *worktree, const char *path)
{
	CLEANUP(place_release) struct place_found place = {0};
	CLEANUP(inode_release) struct inode last = {0};
	int error = enter(worktree);
	if (error)
		return error;
	error = find(worktree, path, true, &place);
	if (!error && !place.exists)
		error = -ERR_NOT_FOUND;
	if (!error)
		error = worktree_remove(worktree, place.directory.number, place.name,
		                        strlen(place.name), S_ISDIR(place.found.mode), &last, NULL);
	if (!error && last.number)
		worktree_forget(worktree->trees, &last);
	worktree_leave(worktree);
	return error;
}

static inline int move(struct worktree *worktree, const char *from, const char *to)
{
	CLEANUP(place_release) struct place_found source = {0}, target = {0};
	CLEANUP(inode_release) struct inode last = {0};
	int error = path_within(to, from) ? -ERR_INVALID : enter(worktree);
	if (error)
		return error;
	error = find(worktree, from, true, &source);
	if (!error)
		error = adopt(worktree, &source);
	if (!error)
		error = find(worktree, to, true, &target);
	if (!error && target.exists)
		error = adopt(worktree, &target);
	if (!error)
		error = worktree_rename(worktree, source.directory.number, source.name,
		                        strlen(source.name), target.directory.number, target.name,
		                        strlen(target.name), 0, &last, NULL);
	if (!error && last.number)
		worktree_forget(worktree->trees, &last);
	worktree_leave(worktree);
	return error;
}

static inline int change_mode(struct worktree *worktree, const char *path, mode_t permissions)
{
	CLEANUP(place_release) struct place_found place = {0};
	int error = enter(worktree);
	if (error)
		return error;
	error = find(worktree, path, true, &place);
	if (!error)
		error = adopt(worktree, &place);
	if (!error) {
		const struct attributes attributes = {.mode = permissions};
		error = worktree_set_attributes(worktree, place.found.number, SET_MODE, &attributes,
		                                0);
	}
	worktree_leave(worktree);
	return error;
}

static inline int link_path(struct worktree *worktree, const char *from, const char *to)
{
	CLEANUP(place_release) struct place_found source = {0}, target = {0};
	int error = enter(worktree);
	if (error)
		return error;
	error = find(worktree, from, true, &source);
	if (!error)
		error = adopt(worktree, &source);
	if (!error)
		error = find(worktree, to, true, &target);
	if (!error)
		error = worktree_link(worktree, source.found.number, NULL, target.directory.number,
		                      target.name, strlen(target.name), NULL);
	worktree_leave(worktree);
	return error;
}

/* -- what is there, as text: a line for each path, in order -- */

static inline void dump_line(struct buffer *text, const char *path, const struct attributes *at,
                             const void *bytes, size_t length)
{
	char line[PATH_BYTES_MAX + 128], hash[ID_HEX + 1] = "-";
	struct id id;
	if (bytes || length == 0) {
		sha256_of(bytes ? bytes : "", length, &id);
		id_to_hex(&id, hash);
	}
	int n = snprintf(line, sizeof(line), "%s %o %zu %.16s\n", path, at->mode, length,
	                 S_ISDIR(at->mode) ? "-" : hash);
	buffer_append(text, line, (size_t)n);
}

struct dump {
	struct fixture *fixture;
	struct worktree *worktree;
	struct buffer *text;
	char path[PATH_BYTES_MAX];
};

static inline void dump_content(struct dump *dump, const char *path, const struct attributes *at,
                                const struct content *content)
{
	uint8_t *bytes = malloc(content->size + 1);
	if (content->size)
		check(content_read(dump->fixture->odb, content, 0, content->size, bytes, message));
	dump_line(dump->text, path, at, bytes, content->size);
	free(bytes);
}

static inline int dump_visit(void *context, const char *path, const struct tree_entry *entry)
{
	struct dump *dump = context;
	if (S_ISREG(entry->attributes.mode))
		dump_content(dump, path, &entry->attributes, &entry->content);
	else
		dump_line(dump->text, path, &entry->attributes, entry->target,
		          entry->target_length);
	return 0;
}

/* The caller releases. NUL-terminated. */
static inline struct buffer dump_tree(struct fixture *fixture, const struct pointer *tree)
{
	struct buffer text = {0};
	struct dump dump = {.fixture = fixture, .text = &text};
	check(tree_visit(fixture->odb, tree, dump_visit, &dump, message));
	buffer_u8(&text, 0);
	return text;
}

static inline void dump_directory(struct dump *dump, const struct directory *directory);

static inline void dump_file(struct dump *dump, const struct inode *inode)
{
	struct file_data *data;
	struct stat status;
	check(worktree_stat(dump->worktree, inode, &status));
	check(file_data_open(dump->worktree->trees, inode, false, &data, message));
	uint8_t *bytes = malloc((size_t)status.st_size + 1);
	ssize_t n = file_data_read(data, bytes, (size_t)status.st_size, 0, NULL);
	assert_int_equal(n, status.st_size);
	dump_line(dump->text, dump->path, &inode->attributes, bytes, (size_t)n);
	free(bytes);
	file_data_close(data);
}

static inline int dump_name(void *context, const char *name, size_t name_length,
                            const struct found *found)
{
	struct dump *dump = context;
	size_t length = strlen(dump->path);
	snprintf(dump->path + length, sizeof(dump->path) - length, "%s%.*s", length ? "/" : "",
	         (int)name_length, name);
	if (!found->number) {
		dump_visit(dump, dump->path, found->entry);
		if (S_ISDIR(found->mode))
			dump_directory(dump,
			               &(struct directory){.tree = found->entry->content.pointer});
	} else {
		struct inode inode;
		check(worktree_inode(dump->worktree, found->number, &inode));
		if (S_ISREG(found->mode))
			dump_file(dump, &inode);
		else
			dump_line(dump->text, dump->path, &inode.attributes, inode.target,
			          inode.target_length);
		inode_release(&inode);
		if (S_ISDIR(found->mode))
			dump_directory(dump, &(struct directory){.number = found->number});
	}
	dump->path[length] = '\0';
	return 0;
}

static inline void dump_directory(struct dump *dump, const struct directory *directory)
{
	check(worktree_list(dump->worktree, directory, NULL, 0, dump_name, dump, message));
}

static inline struct buffer dump_worktree(struct fixture *fixture, struct worktree *worktree)
{
	struct buffer text = {0};
	struct dump dump = {.fixture = fixture, .worktree = worktree, .text = &text};
	struct directory root;
	check(worktree_root(worktree, &root));
	dump_directory(&dump, &root);
	buffer_u8(&text, 0);
	return text;
}

/* -- short ways to look at things -- */

static inline struct worktree *get(struct fixture *fixture, const char *branch)
{
	struct worktree *worktree = NULL;
	check(worktree_get(fixture->trees, branch, &worktree, message));
	return worktree;
}

static inline struct pointer head_of(struct fixture *fixture, const char *branch)
{
	CLEANUP(ref_release) struct ref ref = {0};
	check(ref_read(fixture->store, REF_BRANCH, branch, &ref, message));
	return ref.commit;
}

static inline struct merge_side side_of(struct fixture *fixture, const struct pointer *commit)
{
	struct commit *read;
	check(commit_read(fixture->odb, commit, &read, message));
	struct merge_side side = {read->tree, read->root};
	free(read);
	return side;
}

static inline struct commit_options commit_all(void)
{
	return (struct commit_options){
	        .author = "tester@host", .message = "work", .command = "commit"};
}

static inline int commit(struct worktree *worktree)
{
	const struct commit_options options = commit_all();
	struct commit_result result;
	return worktree_commit(worktree, &options, &result, NULL);
}

/* The content of `path` in the working tree equals `text`; NULL: there is no such path. */
static inline void assert_file(struct fixture *fixture, struct worktree *worktree, const char *path,
                               const char *text)
{
	CLEANUP(place_release) struct place_found place = {0};
	CLEANUP(inode_release) struct inode inode = {0};
	char bytes[4096] = "";
	struct file_data *data;
	int error = find(worktree, path, false, &place);
	if (!text) {
		if (error == -ERR_NOT_FOUND)
			return;
		assert_int_equal(error, 0);
		if (place.exists)
			fail_msg("%s exists", path);
		return;
	}
	assert_int_equal(error, 0);
	if (!place.exists)
		fail_msg("%s does not exist", path);
	if (place.found.number) {
		check(worktree_inode(worktree, place.found.number, &inode));
		check(file_data_open(worktree->trees, &inode, false, &data, message));
	} else {
		check(file_data_open_content(worktree->trees, &place.found.entry->content, &data,
		                             message));
	}
	assert_true(file_data_read(data, bytes, sizeof(bytes) - 1, 0, NULL) >= 0);
	file_data_close(data);
	assert_string_equal(bytes, text);
}

/* Changes as text: "kind path\n". */
static inline int list_change(void *context, const struct change *change)
{
	struct buffer *text = context;
	buffer_append(text, change_name(change->kind), strlen(change_name(change->kind)));
	buffer_u8(text, ' ');
	buffer_append(text, change->path, change->path_length);
	buffer_u8(text, '\n');
	return 0;
}

static inline void assert_changes(struct worktree *worktree, const char *expected)
{
	CLEANUP(buffer_release) struct buffer text = {0};
	check(worktree_changes(worktree, NULL, 0, list_change, &text, message));
	buffer_u8(&text, 0);
	assert_string_equal((char *)text.data, expected);
	assert_int_equal(worktree_dirty(worktree), expected[0] != '\0');
}

static inline size_t count_store(struct object_store *store, const char *prefix);

static inline int count_object(void *context, const struct object_info *info)
{
	++*(size_t *)context;
	return 0;
}

static inline size_t count_store(struct object_store *store, const char *prefix)
{
	size_t count = 0;
	check(object_list(store, prefix, count_object, &count, message));
	return count;
}

#endif
