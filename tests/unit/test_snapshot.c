/* Commits of working trees: what they hold, what stays, what races and crashes leave. */
#include "tests/unit/working_tree.h"

#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>

static void test_commit__everything(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	assert_int_equal(commit(main), -ERR_INVALID); /* nothing */
	check(put(main, "a", "alpha"));
	check(make(main, "t", S_IFDIR | 0755, NULL));
	check(put(main, "t/one", "1"));
	check(put(main, "t/two", "2"));
	check(make(main, "t/link", S_IFLNK | 0777, "one"));
	check(link_path(main, "t/one", "t/uno"));
	assert_changes(main, "added a\nadded t/link\nadded t/one\nadded t/two\nadded t/uno\n");
	struct buffer before = dump_worktree(&fixture, main);

	struct commit_options options = commit_all();
	const struct meta_pair meta[] = {{"b", "2"}, {"a", "1"}};
	options.meta = meta;
	options.meta_count = 2;
	struct commit_result result;
	check(worktree_commit(main, &options, &result, message));
	assert_int_equal(result.files, 5);
	assert_false(result.rebased);
	assert_true(result.packs >= 1 && result.packs <= 3);
	struct pointer head = head_of(&fixture, "main");
	assert_true(id_equal(&result.commit.id, &head.id));
	assert_changes(main, "");
	assert_int_equal(main->overlay, 0);

	struct merge_side side = side_of(&fixture, &result.commit);
	struct buffer committed = dump_tree(&fixture, &side.tree);
	struct buffer after = dump_worktree(&fixture, main);
	assert_string_equal((char *)before.data, (char *)committed.data);
	assert_string_equal((char *)before.data, (char *)after.data);
	assert_int_equal(commit(main), -ERR_INVALID);
	worktree_unref(main);

	/* once more after opening again, and by another host without this one's cache */
	fixture_close(&fixture);
	fixture_open(&fixture, NULL);
	main = get(&fixture, "main");
	assert_changes(main, "");
	assert_file(&fixture, main, "t/uno", "1");
	buffer_release(&after);
	after = dump_worktree(&fixture, main);
	assert_string_equal((char *)before.data, (char *)after.data);
	struct commit *read;
	check(commit_read(fixture.odb, &result.commit, &read, message));
	assert_int_equal(read->meta_count, 2);
	assert_string_equal(read->meta[0].key, "a");
	assert_int_equal(read->parent_count, 1);
	free(read);
	worktree_unref(main);
	buffer_release(&before);
	buffer_release(&committed);
	buffer_release(&after);
	fixture_end(&fixture);
}

static void test_commit__staging_becomes_cached(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	check(put(main, "a", "alpha"));
	usleep(120000); /* at rest: stored ahead, and still valid with the gate closed */
	check(put(main, "b", "beta"));
	check(commit(main));
	struct cache_stats stats;
	cache_stats(fixture.cache, &stats);
	assert_int_equal(stats.fetched_bytes, 0);
	assert_file(&fixture, main, "a", "alpha");
	assert_file(&fixture, main, "b", "beta");
	cache_stats(fixture.cache, &stats);
	assert_int_equal(stats.fetched_bytes, 0);
	worktree_unref(main);
	fixture_end(&fixture);
}

static void test_commit__rename_and_remove(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	check(make(main, "d", S_IFDIR | 0755, NULL));
	check(put(main, "d/x", "x"));
	check(put(main, "d/y", "y"));
	check(put(main, "gone", "gone"));
	check(commit(main));
	check(move(main, "d", "e"));
	check(del(main, "gone"));
	check(put(main, "e/y", "y2"));
	check(make(main, "empty", S_IFDIR | 0700, NULL));
	assert_changes(main, "removed d/x\nremoved d/y\nadded e/x\nadded e/y\nadded empty\n"
	                     "removed gone\n");
	check(commit(main));
	assert_file(&fixture, main, "e/x", "x");
	assert_file(&fixture, main, "e/y", "y2");
	assert_file(&fixture, main, "d/x", NULL);
	assert_file(&fixture, main, "gone", NULL);
	check(change_mode(main, "e/x", 0600));
	assert_changes(main, "mode e/x\n");
	check(put(main, "e/y", "y2")); /* the same bytes again */
	assert_changes(main, "mode e/x\n");
	check(put(main, "e/y", "y3"));
	assert_changes(main, "mode e/x\nmodified e/y\n");
	check(commit(main));
	assert_changes(main, "");
	worktree_unref(main);
	fixture_end(&fixture);
}

static void test_commit__piecewise(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	fixture.trees->copy_up_bytes_max = 256 << 10;
	struct worktree *main = get(&fixture, "main");
	size_t size = (3 << 20) + 777;
	uint8_t *bytes = malloc(size + (1 << 20));
	for (size_t i = 0; i < size; i += 8)
		store_u64(bytes + i, i * 0x9E3779B97F4A7C15u ^ i >> 3);
	check(put_bytes(main, "big", bytes, size, 0, true));
	check(commit(main));
	struct commit_options options = commit_all();
	struct commit_result result;
	memset(bytes + 1000000, 7, 5000);
	check(put_bytes(main, "big", bytes + 1000000, 5000, 1000000, false));
	memset(bytes + size, 9, 100000);
	check(put_bytes(main, "big", bytes + size, 100000, size, false));
	check(worktree_commit(main, &options, &result, message));
	assert_true(result.bytes_new < 2 << 20);
	struct merge_side side = side_of(&fixture, &result.commit);
	struct buffer text = dump_tree(&fixture, &side.tree);
	struct id id;
	char hex[ID_HEX + 1];
	sha256_of(bytes, size + 100000, &id);
	id_to_hex(&id, hex);
	hex[16] = '\0';
	assert_non_null(strstr((char *)text.data, hex));
	buffer_release(&text);

	/* cut, then grown again: what was cut off does not come back */
	CLEANUP(place_release) struct place_found place = {0};
	check(enter(main));
	check(find(main, "big", true, &place));
	check(adopt(main, &place));
	check(worktree_truncate(main, place.found.number, 1 << 20, message));
	check(worktree_truncate(main, place.found.number, 2 << 20, message));
	worktree_leave(main);
	check(worktree_commit(main, &options, &result, message));
	memset(bytes + (1 << 20), 0, 1 << 20);
	sha256_of(bytes, 2 << 20, &id);
	id_to_hex(&id, hex);
	hex[16] = '\0';
	side = side_of(&fixture, &result.commit);
	text = dump_tree(&fixture, &side.tree);
	assert_non_null(strstr((char *)text.data, hex));
	buffer_release(&text);
	free(bytes);
	worktree_unref(main);
	fixture_end(&fixture);
}

/* -- open for writing -- */

static void test_commit__waits_then_names(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	struct message said = {{0}};
	struct commit_options options = commit_all();
	struct commit_result result;
	CLEANUP(place_release) struct place_found place = {0};
	check(put(main, "a", "alpha"));
	check(put(main, "b", "beta"));
	check(find(main, "a", true, &place));
	worktree_writer(fixture.trees, place.found.number, 1);
	options.wait_ms = 30;
	int64_t start = clock_monotonic_ms();
	assert_int_equal(worktree_commit(main, &options, &result, &said), -ERR_BUSY);
	assert_true(clock_monotonic_ms() - start >= 30);
	assert_non_null(strstr(said.text, "--allow-open"));
	/* a commit of another path does not mind, one of this path does */
	const char *const other[] = {"b"}, *const same[] = {"a"};
	options.paths = same;
	options.path_count = 1;
	assert_int_equal(worktree_commit(main, &options, &result, &said), -ERR_BUSY);
	assert_non_null(strstr(said.text, "for writing: a;"));
	options.paths = other;
	check(worktree_commit(main, &options, &result, message));
	assert_changes(main, "added a\n");

	options.paths = NULL;
	options.path_count = 0;
	options.allow_open = true;
	check(worktree_commit(main, &options, &result, message));
	assert_changes(main, "");
	assert_int_not_equal(main->overlay, 0); /* the open file is still here */
	struct inode inode;
	check(worktree_inode(main, place.found.number, &inode));
	check(write_inode(main, &inode, "ALPHA!", 6, 0));
	inode_release(&inode);
	worktree_writer(fixture.trees, place.found.number, -1);
	assert_changes(main, "modified a\n");
	assert_file(&fixture, main, "a", "ALPHA!");
	check(commit(main));
	assert_int_equal(main->overlay, 0);
	assert_file(&fixture, main, "a", "ALPHA!");
	worktree_unref(main);
	fixture_end(&fixture);
}

/* -- limited to paths -- */

static void test_commit__paths(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	struct commit_options options = commit_all();
	struct commit_result result;
	check(make(main, "d", S_IFDIR | 0755, NULL));
	check(put(main, "d/x", "x"));
	check(put(main, "d/y", "y"));
	check(put(main, "top", "top"));
	const char *const first[] = {"d/x", "./d//x"};
	options.paths = first;
	options.path_count = 2;
	check(worktree_commit(main, &options, &result, message));
	assert_int_equal(result.files, 1);
	assert_changes(main, "added d/y\nadded top\n");
	check(commit(main));

	/* of a renamed directory one file only: the rest of the renaming stays uncommitted */
	check(move(main, "d", "e"));
	check(put(main, "e/x", "x2"));
	const char *const second[] = {"e/x"};
	options.paths = second;
	options.path_count = 1;
	struct buffer before = dump_worktree(&fixture, main);
	check(worktree_commit(main, &options, &result, message));
	struct buffer after = dump_worktree(&fixture, main);
	assert_string_equal((char *)before.data, (char *)after.data);
	assert_changes(main, "removed d/x\nremoved d/y\nadded e/y\n");
	const char *const third[] = {"d", "e"};
	options.paths = third;
	options.path_count = 2;
	check(worktree_commit(main, &options, &result, message));
	assert_changes(main, "");
	assert_int_equal(main->overlay, 0);
	const char *const missing[] = {"nothing"};
	options.paths = missing;
	options.path_count = 1;
	assert_int_equal(worktree_commit(main, &options, &result, NULL), -ERR_NOT_FOUND);
	buffer_release(&before);
	buffer_release(&after);
	worktree_unref(main);
	fixture_end(&fixture);
}

/* Of two names of one file one is committed: the other stays, with its staging file. */
static void test_commit__one_of_two_links(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	struct commit_options options = commit_all();
	struct commit_result result;
	const char *const one[] = {"one"};
	options.paths = one;
	options.path_count = 1;
	check(put(main, "one", "text"));
	check(link_path(main, "one", "two"));
	check(worktree_commit(main, &options, &result, message));
	assert_changes(main, "added two\n");
	usleep(100000); /* let the cleaner run */
	assert_file(&fixture, main, "two", "text");
	check(del(main, "two"));
	assert_file(&fixture, main, "one", "text");
	assert_changes(main, "");
	worktree_unref(main);
	fixture_end(&fixture);
}

/* -- two lakes on one store -- */

static void second_lake(struct fixture *first, struct fixture *ret_second)
{
	*ret_second = (struct fixture){0};
	strcpy(ret_second->directory, "/tmp/lake-test-XXXXXX");
	assert_non_null(mkdtemp(ret_second->directory));
	fixture_open(ret_second, first->store);
}

struct moved {
	size_t count;
	struct pointer after;
};

static void note_moved(void *context, const char *branch, const struct pointer *before,
                       const struct pointer *after)
{
	struct moved *moved = context;
	moved->count++;
	moved->after = *after;
}

/* Until the cleaner has nothing to do, or is kept from it. */
static void await_cleaner(struct worktrees *trees)
{
	bool idle = false;
	for (int i = 0; i < 300 && !idle; i++) {
		usleep(1000);
		pthread_mutex_lock(&trees->cleaner_lock);
		idle = trees->discarded == NULL;
		pthread_mutex_unlock(&trees->cleaner_lock);
	}
	usleep(20000); /* the last one is off the list while it is cleaned */
	staging_remove_now(trees);
}

static int commit_path(struct worktree *worktree, const char *path)
{
	struct commit_options options = commit_all();
	struct commit_result result;
	options.paths = &path;
	options.path_count = 1;
	return worktree_commit(worktree, &options, &result, NULL);
}

static void commit_again(void *context, const char *branch, const struct pointer *before,
                         const struct pointer *after)
{
	struct worktree *worktree = context;
	check(put(worktree, "again", "again"));
	check(commit_path(worktree, "again"));
	await_cleaner(worktree->trees);
}

/* A second commit comes before the first one has given up what it replaced. */
static void test_commit__what_stays_uncommitted_outlives_the_next_commit(void **state)
{
	struct fixture a, b;
	fixture_new(&a);
	second_lake(&a, &b);
	struct worktree *here = get(&a, "main"), *there = get(&b, "main");
	check(put(there, "stays", "uncommitted"));
	check(put(there, "goes", "committed"));
	check(put(here, "other", "a"));
	check(commit(here)); /* so that the commit below is told of as a move */
	worktrees_observe(b.trees,
	                  &(struct worktree_observer){.context = there, .moved = commit_again});
	check(commit_path(there, "goes"));
	worktrees_observe(b.trees, &(struct worktree_observer){0});
	await_cleaner(b.trees);
	assert_changes(there, "added stays\n");
	assert_file(&b, there, "stays", "uncommitted");
	assert_file(&b, there, "again", "again");
	check(commit(there));
	assert_file(&b, there, "stays", "uncommitted");
	worktree_unref(here);
	worktree_unref(there);
	fixture_end(&b);
	fixture_end(&a);
}

static void note_conflicted(void *context, const char *path)
{
	names_add(context, path);
}

static void test_commit__rebased(void **state)
{
	struct fixture a, b;
	struct moved moved = {0};
	struct commit_options options = commit_all();
	struct commit_result result;
	fixture_new(&a);
	second_lake(&a, &b);
	struct worktree *here = get(&a, "main"), *there = get(&b, "main");
	check(put(here, "shared", "0"));
	check(commit(here));
	check(worktree_refresh(there, message));
	assert_file(&b, there, "shared", "0");
	check(put(there, "by_b", "b"));
	check(put(here, "by_a", "a"));
	check(commit(here));
	worktrees_observe(b.trees,
	                  &(struct worktree_observer){.context = &moved, .moved = note_moved});
	check(worktree_commit(there, &options, &result, message));
	assert_true(result.rebased);
	assert_int_equal(moved.count, 1);
	assert_file(&b, there, "by_a", "a");
	assert_file(&b, there, "by_b", "b");
	struct commit *made;
	check(commit_read(b.odb, &result.commit, &made, message));
	assert_true(id_equal(&made->tree.id, &moved.after.id));
	free(made);

	/* the same path changed differently: nothing happens, nothing is lost */
	struct message said = {{0}};
	check(worktree_refresh(here, message));
	check(put(here, "shared", "a"));
	check(put(there, "shared", "b"));
	check(put(there, "other", "b"));
	check(commit(here));
	struct names conflicts = {0};
	options.conflicted = note_conflicted;
	options.context = &conflicts;
	assert_int_equal(worktree_commit(there, &options, &result, &said), -ERR_CONFLICT);
	assert_non_null(strstr(said.text, "shared"));
	assert_string_equal(names_text(&conflicts), "shared");
	assert_file(&b, there, "shared", "b");
	assert_changes(there, "added other\nmodified shared\n");
	/* the same change on both sides is none */
	check(put(there, "shared", "a"));
	check(worktree_commit(there, &options, &result, message));
	assert_int_equal(there->overlay, 0);
	check(worktree_refresh(here, message));
	assert_file(&a, here, "other", "b");
	worktree_unref(here);
	worktree_unref(there);
	fixture_end(&b);
	fixture_end(&a);
}

/* With changes that stay, when the head has moved too. */
static void test_commit__paths_rebased(void **state)
{
	struct fixture a, b;
	struct commit_options options = commit_all();
	struct commit_result result;
	fixture_new(&a);
	second_lake(&a, &b);
	struct worktree *here = get(&a, "main"), *there = get(&b, "main");
	check(put(there, "now", "1"));
	check(put(there, "later", "2"));
	check(put(here, "theirs", "3"));
	check(commit(here));
	const char *const paths[] = {"now"};
	options.paths = paths;
	options.path_count = 1;
	check(worktree_commit(there, &options, &result, message));
	assert_true(result.rebased);
	assert_changes(there, "added later\n");
	assert_file(&b, there, "theirs", "3");
	usleep(100000);
	assert_file(&b, there, "later", "2");
	/* what stays collides */
	check(worktree_refresh(here, message));
	check(put(here, "later", "other"));
	check(commit(here));
	check(put(there, "now", "11"));
	struct names conflicts = {0};
	options.conflicted = note_conflicted;
	options.context = &conflicts;
	assert_int_equal(worktree_commit(there, &options, &result, NULL), -ERR_CONFLICT);
	assert_string_equal(names_text(&conflicts), "later");
	assert_changes(there, "added later\nmodified now\n");
	worktree_unref(here);
	worktree_unref(there);
	fixture_end(&b);
	fixture_end(&a);
}

struct racer {
	struct fixture *fixture;
	const char *name;
	int commits, failed;
};

static void *race(void *argument)
{
	struct racer *racer = argument;
	struct worktree *main = NULL;
	if (worktree_get(racer->fixture->trees, "main", &main, NULL))
		racer->failed = -1;
	for (int i = 0; !racer->failed && i < racer->commits; i++) {
		char path[32];
		snprintf(path, sizeof(path), "%s%d", racer->name, i);
		racer->failed = put(main, path, path);
		if (!racer->failed)
			racer->failed = commit(main);
	}
	worktree_unref(main);
	return NULL;
}

static void test_commit__race(void **state)
{
	struct fixture a, b;
	pthread_t threads[2];
	fixture_new(&a);
	second_lake(&a, &b);
	struct racer racers[2] = {{&a, "a", 15, 0}, {&b, "b", 15, 0}};
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(racers[0].failed, 0);
	assert_int_equal(racers[1].failed, 0);
	struct worktree *main = get(&a, "main");
	check(worktree_refresh(main, message));
	for (int i = 0; i < 30; i++) {
		char path[32];
		snprintf(path, sizeof(path), "%c%d", 'a' + i % 2, i / 2);
		assert_file(&a, main, path, path);
	}
	worktree_unref(main);
	fixture_end(&b);
	fixture_end(&a);
}

/* -- while others write -- */

struct scribbler {
	struct fixture *fixture;
	_Atomic bool stop;
	_Atomic int failed;
	unsigned written; /* the last number in both files */
};

/* The same number goes into one file, then the other, always of one length. */
static void *scribble(void *argument)
{
	struct scribbler *scribbler = argument;
	struct worktree *main = NULL;
	int error = worktree_get(scribbler->fixture->trees, "main", &main, NULL);
	while (!error && !scribbler->stop) {
		char text[16];
		snprintf(text, sizeof(text), "%08u", scribbler->written + 1);
		for (int i = 0; !error && i < 2; i++) {
			do
				error = put(main, i ? "second" : "first", text);
			while (error == -ERR_STALE);
		}
		if (!error)
			scribbler->written++;
	}
	scribbler->failed = error;
	worktree_unref(main);
	return NULL;
}

static unsigned committed_number(struct fixture *fixture, const struct pointer *tree,
                                 const char *path)
{
	struct tree_entry *entry;
	char text[16] = "";
	check(tree_find(fixture->odb, tree, path, &entry, message));
	assert_int_equal(entry->content.size, 8);
	check(content_read(fixture->odb, &entry->content, 0, 8, text, message));
	free(entry);
	return (unsigned)atoi(text);
}

/* Each commit is one moment: the first file is never behind the second, nor more than one ahead. */
static void test_commit__while_others_write(void **state)
{
	struct fixture fixture;
	pthread_t thread;
	fixture_new(&fixture);
	struct scribbler scribbler = {.fixture = &fixture};
	struct worktree *main = get(&fixture, "main");
	check(put(main, "first", "00000000"));
	check(put(main, "second", "00000000"));
	assert_int_equal(pthread_create(&thread, NULL, scribble, &scribbler), 0);
	struct commit_options options = commit_all();
	struct commit_result result;
	struct merge_side side;
	unsigned last = 0, commits = 0;
	options.wait_ms = 5000;
	int64_t until = clock_monotonic_ms() + 20000;
	while (commits < 15 && clock_monotonic_ms() < until) {
		int error = worktree_commit(main, &options, &result, NULL);
		if (error == -ERR_INVALID)
			continue;
		assert_int_equal(error, 0);
		side = side_of(&fixture, &result.commit);
		unsigned first = committed_number(&fixture, &side.tree, "first");
		unsigned second = committed_number(&fixture, &side.tree, "second");
		assert_true(first == second || first == second + 1);
		assert_true(first >= last);
		last = first;
		commits++;
	}
	scribbler.stop = true;
	pthread_join(thread, NULL);
	assert_int_equal(scribbler.failed, 0);
	assert_int_equal(commits, 15);
	int error = commit(main);
	assert_true(error == 0 || error == -ERR_INVALID);
	struct pointer head = head_of(&fixture, "main");
	side = side_of(&fixture, &head);
	assert_int_equal(committed_number(&fixture, &side.tree, "first"), scribbler.written);
	assert_int_equal(committed_number(&fixture, &side.tree, "second"), scribbler.written);
	worktree_unref(main);
	fixture_end(&fixture);
}

/* -- a process that dies at any call to the store -- */

struct dying_store {
	struct object_store store;
	struct object_store *inner;
	int calls_left;
	bool after; /* die after the call was done, else before */
};

static struct object_store *dying(struct object_store *store, bool after)
{
	struct dying_store *self = (struct dying_store *)store;
	if (self->after == after && --self->calls_left == 0)
		kill(getpid(), SIGKILL);
	return self->inner;
}

#define DYING(call) \
	({ \
		struct object_store *inner = dying(store, false); \
		int result = call; \
		dying(store, true); \
		result; \
	})

static int dying_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                     struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	return DYING(object_get(inner, key, offset, length, ret_bytes, ret_etag, message));
}

static int dying_put(struct object_store *store, const char *key, const void *bytes, size_t length,
                     struct message *message)
{
	return DYING(object_put(inner, key, bytes, length, message));
}

static int dying_absent(struct object_store *store, const char *key, const void *bytes,
                        size_t length, struct etag *ret_etag, struct message *message)
{
	return DYING(object_put_if_absent(inner, key, bytes, length, ret_etag, message));
}

static int dying_match(struct object_store *store, const char *key, const void *bytes,
                       size_t length, const struct etag *expected, struct etag *ret_etag,
                       struct message *message)
{
	return DYING(object_put_if_match(inner, key, bytes, length, expected, ret_etag, message));
}

static int dying_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                      void *context, struct message *message)
{
	return DYING(object_list(inner, prefix, callback, context, message));
}

static int dying_remove(struct object_store *store, const char *key, struct message *message)
{
	return DYING(object_remove(inner, key, message));
}

static void dying_free(struct object_store *store)
{
	object_store_free(((struct dying_store *)store)->inner);
}

static const struct object_ops dying_ops = {
        .get = dying_get,
        .put = dying_put,
        .put_if_absent = dying_absent,
        .put_if_match = dying_match,
        .list = dying_list,
        .remove = dying_remove,
        .free = dying_free,
};

/* What the dying process does; true: it came to its end. */
typedef int crash_fn(struct worktree *main);

static int crash_commit(struct worktree *main)
{
	return commit(main);
}

static int crash_commit_paths(struct worktree *main)
{
	struct commit_options options = commit_all();
	struct commit_result result;
	const char *const paths[] = {"new", "d"};
	options.paths = paths;
	options.path_count = 2;
	return worktree_commit(main, &options, &result, NULL);
}

static int crash_move(struct worktree *main)
{
	struct commit *base;
	const struct move_options options = {.who = "tester@host", .command = "reset"};
	check(worktree_base(main, &base));
	int error = worktree_move(main, &base->parents[0], &options, NULL);
	free(base);
	return error;
}

/* Runs `body` in a child that dies at store call `n`. False: it lived. */
static bool crash_at(const struct fixture *fixture, int n, bool after, crash_fn *body)
{
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		struct fixture mine = *fixture;
		char path[256];
		struct dying_store store = {.store = {&dying_ops}, .calls_left = -1};
		fixture_path(&mine, "store", path);
		if (object_local_open(path, false, &store.inner, NULL))
			_exit(3);
		fixture_open(&mine, &store.store);
		struct worktree *main = get(&mine, "main");
		store.calls_left = n;
		store.after = after;
		_exit(body(main) ? 2 : 0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	if (WIFSIGNALED(status)) {
		assert_int_equal(WTERMSIG(status), SIGKILL);
		return true;
	}
	assert_int_equal(WEXITSTATUS(status), 0);
	return false;
}

/* Two commits, then changes. Returns the working tree as text. */
static struct buffer crash_prepare(struct fixture *fixture)
{
	fixture_new(fixture);
	struct worktree *main = get(fixture, "main");
	check(make(main, "d", S_IFDIR | 0755, NULL));
	check(put(main, "d/x", "x"));
	check(put(main, "old", "old"));
	check(commit(main));
	check(put(main, "extra", "extra"));
	check(put(main, "d/kept", "kept"));
	check(commit(main));
	check(put(main, "new", "new"));
	check(put(main, "old", "old2"));
	check(del(main, "d/x"));
	check(put(main, "d/z", "z"));
	struct buffer before = dump_worktree(fixture, main);
	worktree_unref(main);
	return before;
}

/* True when the branch had moved; then the working tree is `done`, else as it was. */
static bool crash_check(struct fixture *fixture, const struct pointer *head,
                        const struct buffer *before, const struct buffer *done,
                        const char *changes_after)
{
	fixture_open(fixture, NULL);
	struct worktree *main = get(fixture, "main");
	struct buffer now = dump_worktree(fixture, main);
	struct pointer moved = head_of(fixture, "main");
	bool committed = !id_equal(&head->id, &moved.id);
	assert_string_equal((char *)(committed ? done : before)->data, (char *)now.data);
	assert_changes(main, committed ? changes_after
	                               : "removed d/x\nadded d/z\nadded new\nmodified old\n");
	/* and work goes on */
	check(put(main, "again", "again"));
	check(commit(main));
	assert_file(fixture, main, "new", "new");
	assert_changes(main, "");
	buffer_release(&now);
	worktree_unref(main);
	return committed;
}

static void crash_everywhere(crash_fn *body, const char *changes_after)
{
	int finished = 0, undone = 0;
	struct fixture fixture;
	struct buffer before = crash_prepare(&fixture);
	struct worktree *main = get(&fixture, "main");
	assert_int_equal(body(main), 0);
	struct buffer done = dump_worktree(&fixture, main);
	worktree_unref(main);
	fixture_end(&fixture);
	for (int round = 0; round < 2; round++) {
		bool after = round == 1, died = true;
		for (int n = 1; died; n++) {
			buffer_release(&before);
			before = crash_prepare(&fixture);
			struct pointer head = head_of(&fixture, "main");
			fixture_close(&fixture);
			died = crash_at(&fixture, n, after, body);
			bool committed =
			        crash_check(&fixture, &head, &before, &done, changes_after);
			assert_true(died || committed);
			committed ? finished++ : undone++;
			fixture_end(&fixture);
		}
	}
	print_message("crashes: %d before the branch moved, %d after\n", undone, finished - 2);
	assert_true(undone >= 4 && finished >= 3);
	buffer_release(&before);
	buffer_release(&done);
}

static void test_commit__killed_at_every_store_call(void **state)
{
	crash_everywhere(crash_commit, "");
}

static void test_commit__killed_with_changes_left(void **state)
{
	crash_everywhere(crash_commit_paths, "modified old\n");
}

static void test_move__killed_at_every_store_call(void **state)
{
	crash_everywhere(crash_move, "removed d/x\nadded d/z\nadded new\nmodified old\n");
}

/* -- many files -- */

static size_t count_staging(struct fixture *fixture)
{
	char root[256], path[300];
	size_t count = 0;
	fixture_path(fixture, "staging", root);
	for (unsigned shard = 0; shard < 256; shard++) {
		snprintf(path, sizeof(path), "%s/%02x", root, shard);
		DIR *directory = opendir(path);
		const struct dirent *entry;
		assert_non_null(directory);
		while ((entry = readdir(directory)))
			count += entry->d_name[0] != '.';
		closedir(directory);
	}
	return count;
}

/* The first thousands become blobs at once, the others soon: no staging file stays. */
static void test_commit__adopts_many_in_the_background(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	enum { FILES = 6000 };
	check(make(main, "t", S_IFDIR | 0755, NULL));
	for (int i = 0; i < FILES; i++) {
		char path[32];
		snprintf(path, sizeof(path), "t/%06d", i);
		check(put(main, path, path));
	}
	struct commit_options options = commit_all();
	struct commit_result result;
	struct cache_stats stats;
	check(worktree_commit(main, &options, &result, message));
	int64_t until = clock_monotonic_ms() + 60000;
	do {
		usleep(10000);
		cache_stats(fixture.cache, &stats);
	} while ((stats.blobs < FILES || count_staging(&fixture)) && clock_monotonic_ms() < until);
	assert_int_equal(stats.blobs, FILES);
	assert_int_equal(count_staging(&fixture), 0);
	worktree_unref(main);
	fixture_end(&fixture);
}

/* -- how much it costs -- */

static void test_commit__many_small_files(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	enum { FILES = 2000, BYTES = 10 << 10 };
	uint8_t bytes[BYTES];
	size_t before = count_store(fixture.store, "");
	check(make(main, "t", S_IFDIR | 0755, NULL));
	for (int i = 0; i < FILES; i++) {
		char path[32];
		random_bytes(bytes, sizeof(bytes));
		snprintf(path, sizeof(path), "t/%06d", i);
		check(put_bytes(main, path, bytes, sizeof(bytes), 0, true));
	}
	struct commit_options options = commit_all();
	struct commit_result result;
	int64_t start = clock_monotonic_ms();
	check(worktree_commit(main, &options, &result, message));
	int64_t took = clock_monotonic_ms() - start;
	assert_int_equal(result.files, FILES);
	assert_true(count_store(fixture.store, "") - before <= 5);
	print_message("%d files of 10 KiB in %lld ms\n", FILES, (long long)took);
	start = clock_monotonic_ms();
	check(put(main, "t/000500", "changed"));
	check(worktree_commit(main, &options, &result, message));
	print_message("one of them in %lld ms\n", (long long)(clock_monotonic_ms() - start));
	assert_int_equal(result.files, 1);
	worktree_unref(main);
	fixture_end(&fixture);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_commit__everything),
	        cmocka_unit_test(test_commit__staging_becomes_cached),
	        cmocka_unit_test(test_commit__rename_and_remove),
	        cmocka_unit_test(test_commit__piecewise),
	        cmocka_unit_test(test_commit__waits_then_names),
	        cmocka_unit_test(test_commit__paths),
	        cmocka_unit_test(test_commit__one_of_two_links),
	        cmocka_unit_test(test_commit__rebased),
	        cmocka_unit_test(test_commit__what_stays_uncommitted_outlives_the_next_commit),
	        cmocka_unit_test(test_commit__paths_rebased),
	        cmocka_unit_test(test_commit__race),
	        cmocka_unit_test(test_commit__while_others_write),
	        cmocka_unit_test(test_commit__killed_at_every_store_call),
	        cmocka_unit_test(test_commit__killed_with_changes_left),
	        cmocka_unit_test(test_move__killed_at_every_store_call),
	        cmocka_unit_test(test_commit__adopts_many_in_the_background),
	        cmocka_unit_test(test_commit__many_small_files),
	};
	return cmocka_run_group_tests_name("snapshot", tests, NULL, NULL);
}
