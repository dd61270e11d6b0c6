/* Coming along when others move the branch: re-basing, collisions, branches that go, the follower
 * and what it asks of the store, races between looking and committing. */
#include "working_tree.h"

#include <pthread.h>

#include "fs/follower.h"

/* -- a store that counts, that is away, and in which others act at the worst moment -- */

static struct {
	struct object_ops real;
	_Atomic bool away;
	_Atomic unsigned gets, conditional_gets, bodies, lists, ref_puts;
	_Atomic size_t pack_bytes;
	/* Between the store's answer and its arrival; once. */
	void (*after_get)(void), (*after_list)(void), (*before_move)(void);
} spy;

static void once(void (**hook)(void))
{
	void (*run)(void) = *hook;
	*hook = NULL;
	if (run)
		run();
}

static int spy_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                   struct buffer *bytes, struct etag *etag, struct message *message)
{
	if (spy.away)
		return (fail)(message, -ERR_STORE_AWAY, "gone fishing");
	spy.gets += strncmp(key, "refs/", 5) == 0;
	return spy.real.get(store, key, offset, length, bytes, etag, message);
}

static int spy_get_if_changed(struct object_store *store, const char *key, const struct etag *known,
                              struct buffer *bytes, struct etag *etag, struct message *message)
{
	size_t before = bytes->length;
	struct etag now;
	if (spy.away)
		return (fail)(message, -ERR_STORE_AWAY, "gone fishing");
	spy.conditional_gets++;
	int error = spy.real.get(store, key, 0, UINT64_MAX, bytes, &now, message);
	if (error)
		return error;
	once(&spy.after_get);
	if (strcmp(now.text, known->text) == 0) {
		bytes->length = before;
		return 0;
	}
	spy.bodies++;
	*etag = now;
	return 1;
}

static int spy_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                    void *context, struct message *message)
{
	if (spy.away)
		return (fail)(message, -ERR_STORE_AWAY, "gone fishing");
	spy.lists++;
	int error = spy.real.list(store, prefix, callback, context, message);
	once(&spy.after_list);
	return error;
}

static int spy_put(struct object_store *store, const char *key, const void *bytes, size_t length,
                   struct message *message)
{
	spy.pack_bytes += length;
	return spy.real.put(store, key, bytes, length, message);
}

static int spy_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                             size_t length, struct etag *etag, struct message *message)
{
	spy.pack_bytes += strncmp(key, "packs/", 6) == 0 ? length : 0;
	return spy.real.put_if_absent(store, key, bytes, length, etag, message);
}

static int spy_put_if_match(struct object_store *store, const char *key, const void *bytes,
                            size_t length, const struct etag *expected, struct etag *etag,
                            struct message *message)
{
	spy.ref_puts++;
	once(&spy.before_move);
	return spy.real.put_if_match(store, key, bytes, length, expected, etag, message);
}

static struct object_ops spied;

/* Two hosts on one store that is spied on. */
static struct fixture a, b;
static struct worktree *here, *there;

static int setup(void **state)
{
	fixture_new(&a);
	memset(&spy, 0, sizeof(spy));
	spy.real = *a.store->ops;
	spied = spy.real;
	spied.get = spy_get;
	spied.get_if_changed = spy_get_if_changed;
	spied.list = spy_list;
	spied.put = spy_put;
	spied.put_if_absent = spy_put_if_absent;
	spied.put_if_match = spy_put_if_match;
	a.store->ops = &spied;
	b = (struct fixture){0};
	strcpy(b.directory, "/tmp/lake-test-XXXXXX");
	assert_non_null(mkdtemp(b.directory));
	fixture_open(&b, a.store);
	here = get(&a, "main");
	there = get(&b, "main");
	return 0;
}

static int teardown(void **state)
{
	worktree_unref(here);
	worktree_unref(there);
	fixture_end(&b);
	fixture_end(&a);
	return 0;
}

/* `here` commits a file. */
static struct pointer commits(const char *path, const char *text)
{
	check(put(here, path, text));
	check(commit(here));
	return head_of(&a, "main");
}

static void assert_base(struct worktree *worktree, const struct pointer *expected)
{
	struct worktree_view view;
	worktree_view(worktree, &view);
	assert_true(id_equal(&view.base.id, &expected->id));
}

static void reopen_b(void)
{
	struct object_store *store = b.store;
	worktree_unref(there);
	fixture_close(&b);
	fixture_open(&b, store);
	there = get(&b, "main");
}

/* -- re-basing -- */

static void test_changes_go_on_over_the_head(void **state)
{
	check(make(here, "t", S_IFDIR | 0755, NULL));
	commits("t/mine", "0");
	commits("t/theirs", "0");
	check(worktree_refresh(there, message));
	check(put(there, "t/mine", "b"));
	check(put(there, "new", "b"));
	check(make(there, "directory", S_IFDIR | 0755, NULL));
	check(move(there, "new", "directory/new"));
	struct pointer head = commits("t/theirs", "a");
	check(worktree_refresh(there, message));
	assert_base(there, &head);
	assert_file(&b, there, "t/theirs", "a");
	assert_changes(there, "added directory/new\nmodified t/mine\n");
	reopen_b();
	assert_base(there, &head);
	assert_file(&b, there, "t/mine", "b");
	assert_file(&b, there, "directory/new", "b");
	assert_changes(there, "added directory/new\nmodified t/mine\n");
	/* the same was done here: nothing is left of it, and after a restart neither */
	check(put(here, "t/mine", "b"));
	head = commits("other", "a");
	check(worktree_refresh(there, message));
	assert_changes(there, "added directory/new\n");
	usleep(50000); /* the cleaner */
	reopen_b();
	assert_base(there, &head);
	assert_file(&b, there, "t/mine", "b");
	check(commit(there));
	check(worktree_refresh(here, message));
	assert_file(&a, here, "directory/new", "b");
}

static void test_collisions_are_told(void **state)
{
	CLEANUP(standing_release) struct standing standing = {0};
	commits("both", "0");
	struct pointer base = commits("removed", "0");
	check(worktree_refresh(there, message));
	check(put(there, "both", "b"));
	check(del(there, "removed"));
	check(put(there, "own", "b"));
	commits("both", "a");
	struct pointer head = commits("removed", "a");
	check(worktree_refresh(there, message));
	assert_base(there, &base);
	assert_file(&b, there, "both", "b");
	check(worktree_standing(there, &standing));
	assert_true(standing.behind && !standing.gone);
	assert_int_equal(standing.behind_commits, 2);
	assert_true(id_equal(&standing.head.id, &head.id));
	assert_int_equal(standing.collision_count, 2);
	assert_string_equal(standing.collisions, "both");
	assert_string_equal(standing.collisions + 5, "removed");
	standing_release(&standing);
	/* nothing changed: not looked for again by a look in no haste, and still known */
	check(worktree_look(there, NULL, 0, message));
	check(worktree_standing(there, &standing));
	assert_true(standing.behind);
	standing_release(&standing);

	const char *const paths[] = {"both", "removed"};
	check(worktree_restore(there, NULL, paths, 2, NULL, message));
	check(worktree_refresh(there, message));
	check(worktree_standing(there, &standing));
	assert_false(standing.behind);
	assert_int_equal(standing.collision_count, 0);
	assert_base(there, &head);
	assert_file(&b, there, "both", "a");
	assert_changes(there, "added own\n");
}

static uint64_t number_of(struct worktree *worktree, const char *path)
{
	struct place_found place = {0};
	check(find(worktree, path, true, &place));
	uint64_t number = place.found.number;
	place_release(&place);
	worktree_leave(worktree);
	return number;
}

static void test_open_for_writing(void **state)
{
	CLEANUP(standing_release) struct standing standing = {0};
	check(make(here, "d", S_IFDIR | 0755, NULL));
	commits("d/file", "0");
	struct pointer head = commits("theirs", "0");
	check(worktree_refresh(there, message));
	check(put(there, "d/file", "0")); /* as it was: no change, yet */
	check(enter(there));
	uint64_t number = number_of(there, "d/file");
	worktree_writer(b.trees, number, 1);
	check(del(here, "d/file"));
	check(del(here, "d"));
	check(commit(here));
	check(worktree_refresh(there, message));
	assert_base(there, &head);
	check(worktree_standing(there, &standing));
	assert_int_equal(standing.collision_count, 1);
	assert_string_equal(standing.collisions, "d");
	check(put(there, "d/file", "kept"));
	worktree_writer(b.trees, number, -1);
	check(worktree_refresh(there, message));
	assert_file(&b, there, "d/file", "kept");
	assert_base(there, &head);
	check(put(there, "d/file", "0"));
	check(worktree_refresh(there, message));
	head = head_of(&a, "main");
	assert_base(there, &head);
	assert_changes(there, "");
}

/* -- branches that go -- */

static void test_deleted_elsewhere(void **state)
{
	CLEANUP(standing_release) struct standing standing = {0};
	struct commit_options options = commit_all();
	struct commit_result result;
	struct message said = {{0}};
	check(put(there, "kept", "b"));
	check(ref_delete(a.store, REF_BRANCH, "main", &tester, message));
	check(worktree_refresh(there, message));
	check(worktree_standing(there, &standing));
	assert_true(standing.gone);
	assert_non_null(strstr(standing.why, tester.who));
	assert_file(&b, there, "kept", "b");
	assert_int_equal(worktree_commit(there, &options, &result, &said), -ERR_NOT_FOUND);
	assert_non_null(strstr(said.text, "lakectl undo main"));
	assert_changes(there, "added kept\n");
	reopen_b();
	assert_file(&b, there, "kept", "b");

	check(ref_restore(a.store, REF_BRANCH, "main", &tester, message));
	check(worktree_refresh(there, message));
	check(worktree_standing(there, &standing));
	assert_false(standing.gone);
	check(commit(there));

	/* looked at, but unchanged: it goes */
	check(change_mode(there, "kept", 0600));
	check(change_mode(there, "kept", 0644));
	assert_int_not_equal(there->overlay, 0);
	check(ref_delete(a.store, REF_BRANCH, "main", &tester, message));
	assert_int_equal(worktree_refresh(there, NULL), -ERR_NOT_FOUND);
	struct branch_record record;
	assert_int_equal(branch_record_read(b.trees, "main", &record), -ERR_NOT_FOUND);
}

/* -- races: what was seen before a commit made here must not take the working tree back -- */

static void commit_there(void)
{
	check(put(there, "raced", "b"));
	check(commit(there));
}

static void test_an_old_answer_is_not_believed(void **state)
{
	commits("x", "1");
	check(worktree_refresh(there, message));
	commits("x", "2");
	spy.after_get = commit_there; /* on top of x = 2 */
	check(worktree_refresh(there, message));
	struct pointer head = head_of(&a, "main");
	assert_base(there, &head);
	assert_file(&b, there, "raced", "b");
	/* the same for an etag of a listing */
	check(worktree_refresh(there, message));
	struct etag listed = there->seen_etag;
	uint64_t epoch = worktree_epoch(there);
	check(put(there, "raced", "c"));
	check(commit(there));
	head = head_of(&a, "main");
	check(worktree_look(there, &listed, epoch, message));
	assert_base(there, &head);
	assert_file(&b, there, "raced", "c");
}

static void test_changes_made_while_it_looks(void **state)
{
	check(put(there, "first", "b"));
	commits("x", "1");
	spy.after_get = commit_there;
	check(worktree_refresh(there, message));
	check(worktree_refresh(there, message));
	assert_file(&b, there, "first", "b");
	assert_file(&b, there, "raced", "b");
	assert_file(&b, there, "x", "1");
	struct pointer head = head_of(&a, "main");
	assert_base(there, &head);
}

/* -- losing races for the branch -- */

static unsigned races;

static void win_the_race(void)
{
	char name[16];
	snprintf(name, sizeof(name), "race%u", races);
	if (races-- == 0)
		return;
	commits(name, "a");
	spy.before_move = win_the_race;
}

static void test_a_loser_stores_content_once(void **state)
{
	size_t size = 4 << 20;
	CLEANUP(free_pointer) uint8_t *bytes = malloc(size);
	random_bytes(bytes, size);
	check(put_bytes(there, "large", bytes, size, 0, true));
	races = 20; /* more than any count of tries would stand */
	size_t before = spy.pack_bytes;
	unsigned gets = spy.gets;
	spy.before_move = win_the_race;
	check(commit(there));
	size_t stored = spy.pack_bytes - before;
	/* what was won by others, what was lost to them, a claim and the move */
	assert_int_equal(spy.ref_puts, 20 + 20 + 2);
	/* To know that one is lost is to know the new head: one for each attempt on both hosts,
	 * at most, and one of the test's own for each of the other's commits. */
	assert_true(spy.gets - gets <= 41 + 20);
	print_message("20 lost races: %zu bytes stored for %zu\n", stored, size);
	assert_true(stored < size + (512 << 10));
	check(worktree_refresh(here, message));
	assert_file(&a, here, "race20", "a");
	assert_file(&a, here, "race1", "a");
}

static int64_t waited(void (*wait)(void *), void *argument)
{
	int64_t before = clock_monotonic_ms();
	wait(argument);
	return clock_monotonic_ms() - before;
}

static void enter_contention(void *contention)
{
	contention_enter(contention);
}

static void lose_quickly(void *contender)
{
	contention_lost(contender, 1);
}

static void test_winners_wait_for_losers(void **state)
{
	struct contention contention = {0};
	assert_true(waited(enter_contention, &contention) < 100);
	struct contender loser = {.contention = &contention};
	int64_t limit_ms = 0;
	for (int i = 0; i < 10; i++) {
		waited(lose_quickly, &loser);
		assert_true(contention.limit_ms >= limit_ms);
		limit_ms = contention.limit_ms;
	}
	/* in units of an attempt, which the store's speed and not the number of rounds decides */
	assert_true(limit_ms >= 50 && limit_ms <= 200);
	contention_won(&loser);
	assert_true(contention.limit_ms > 0 && contention.limit_ms <= limit_ms / 2);
	struct contender next = {.contention = &contention};
	limit_ms = contention.limit_ms;
	contention_won(&next); /* nobody was there: less */
	assert_true(contention.limit_ms <= limit_ms / 4);
	/* who loses all the time is let through: he waits, but hardly */
	struct contender unlucky = {.contention = &contention, .lost = 100, .attempt_ms = 5};
	int64_t total_ms = 0;
	for (int i = 0; i < 10; i++)
		total_ms += waited(lose_quickly, &unlucky);
	assert_true(total_ms < 200);
	/* what was is forgotten */
	contention =
	        (struct contention){.limit_ms = 1000000, .last_ms = clock_monotonic_ms() - 5000000};
	assert_true(waited(enter_contention, &contention) < 100);
}

/* -- the follower -- */

static struct {
	pthread_mutex_t lock;
	unsigned lines;
	char last[256];
} logged = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void note_line(void *context, const char *line)
{
	pthread_mutex_lock(&logged.lock);
	logged.lines++;
	snprintf(logged.last, sizeof(logged.last), "%s", line);
	pthread_mutex_unlock(&logged.lock);
}

static struct follower *follow(void)
{
	struct follower *follower = NULL;
	logged.lines = 0;
	const struct follower_options options = {
	        .trees = b.trees, .interval_ms = 10, .log = note_line};
	check(follower_start(&options, &follower, message));
	return follower;
}

static bool based_on(struct worktree *worktree, const struct pointer *commit)
{
	struct worktree_view view;
	worktree_view(worktree, &view);
	return id_equal(&view.base.id, &commit->id);
}

#define assert_soon(condition) \
	do { \
		int64_t until_ = clock_monotonic_ms() + 20000; \
		while (!(condition) && clock_monotonic_ms() < until_) \
			usleep(2000); \
		assert_true(condition); \
	} while (0)

static void test_follower_asks_cheaply(void **state)
{
	struct follower *follower = follow();
	struct pointer head = commits("x", "1");
	assert_soon(based_on(there, &head));
	check(put(there, "mine", "b"));
	head = commits("x", "2");
	assert_soon(based_on(there, &head));
	usleep(50000);
	unsigned gets = spy.gets, bodies = spy.bodies, asked = spy.conditional_gets;
	usleep(200000);
	assert_int_equal(spy.gets, gets);
	assert_int_equal(spy.bodies, bodies);
	assert_true(spy.conditional_gets > asked);
	assert_int_equal(spy.lists, 0);
	assert_int_equal(logged.lines, 0);
	follower_stop(follower);
	asked = spy.conditional_gets;
	usleep(50000);
	assert_int_equal(spy.conditional_gets, asked);
	assert_changes(there, "added mine\n");
}

#define MANY 12

static void test_follower_lists_many(void **state)
{
	struct worktree *trees[MANY];
	struct pointer head = commits("x", "1");
	for (int i = 0; i < MANY; i++) {
		char name[16];
		snprintf(name, sizeof(name), "b%02d", i);
		check(ref_create(a.store, REF_BRANCH, name, &head, &tester, message));
		trees[i] = get(&b, name);
	}
	struct follower *follower = follow();
	assert_soon(based_on(there, &head));
	usleep(50000);
	unsigned asked = spy.conditional_gets, lists = spy.lists, gets = spy.gets;
	usleep(200000);
	assert_true(spy.lists > lists);
	assert_int_equal(spy.conditional_gets, asked);
	assert_int_equal(spy.gets, gets);
	struct worktree *work = get(&a, "b07");
	check(put(work, "y", "1"));
	check(commit(work));
	worktree_unref(work);
	struct pointer moved = head_of(&a, "b07");
	assert_soon(based_on(trees[7], &moved));
	assert_true(based_on(trees[6], &head));
	check(ref_delete(a.store, REF_BRANCH, "b03", &tester, message));
	assert_soon(worktree_enter(trees[3], worktree_epoch(trees[3])) == -ERR_NOT_FOUND ||
	            (worktree_leave(trees[3]), false));
	follower_stop(follower);
	for (int i = 0; i < MANY; i++)
		worktree_unref(trees[i]);
}

static void test_follower_while_the_store_is_away(void **state)
{
	struct follower *follower = follow();
	struct pointer head = commits("x", "1");
	assert_soon(based_on(there, &head));
	check(put(there, "mine", "a"));
	spy.away = true;
	assert_soon(b.trees->away);
	int64_t before = clock_monotonic_ms();
	usleep(300000);
	check(worktree_follow(there, message)); /* nobody waits for it */
	assert_true(clock_monotonic_ms() - before < 2000);
	pthread_mutex_lock(&logged.lock);
	assert_int_equal(logged.lines, 1);
	assert_non_null(strstr(logged.last, "gone fishing"));
	pthread_mutex_unlock(&logged.lock);
	assert_int_equal(worktree_refresh(there, NULL), -ERR_STORE_AWAY);
	check(put(there, "mine", "b"));
	spy.away = false;
	head = commits("x", "2");
	assert_soon(based_on(there, &head));
	assert_soon(!b.trees->away);
	follower_stop(follower);
	assert_int_equal(logged.lines, 2);
	assert_file(&b, there, "mine", "b");
}

static void *write_files(void *context)
{
	for (int i = 0; i < 60; i++) {
		char name[32];
		snprintf(name, sizeof(name), "w%d", i % 10);
		while (put(there, name, name) == -ERR_STALE)
			;
	}
	return NULL;
}

static void test_follower_beside_writers(void **state)
{
	struct follower *follower = follow();
	pthread_t writer;
	assert_int_equal(pthread_create(&writer, NULL, write_files, NULL), 0);
	for (int i = 0; i < 10; i++) {
		char name[32];
		snprintf(name, sizeof(name), "x%d", i);
		commits(name, "a");
		if (i % 4 == 3)
			(void)commit(there);
	}
	pthread_join(writer, NULL);
	check(worktree_refresh(there, message));
	follower_stop(follower);
	for (int i = 0; i < 10; i++) {
		char name[32];
		snprintf(name, sizeof(name), "w%d", i);
		assert_file(&b, there, name, name);
		snprintf(name, sizeof(name), "x%d", i);
		assert_file(&b, there, name, "a");
	}
}

#define FOLLOW(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        FOLLOW(test_changes_go_on_over_the_head),
	        FOLLOW(test_collisions_are_told),
	        FOLLOW(test_open_for_writing),
	        FOLLOW(test_deleted_elsewhere),
	        FOLLOW(test_an_old_answer_is_not_believed),
	        FOLLOW(test_changes_made_while_it_looks),
	        FOLLOW(test_a_loser_stores_content_once),
	        cmocka_unit_test(test_winners_wait_for_losers),
	        FOLLOW(test_follower_asks_cheaply),
	        FOLLOW(test_follower_lists_many),
	        FOLLOW(test_follower_while_the_store_is_away),
	        FOLLOW(test_follower_beside_writers),
	};
	return cmocka_run_group_tests_name("follow", tests, NULL, NULL);
}
