/*
 * What is known of refs without asking: what it is good for, who may replace it, how many requests
 * it saves.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

#include "refs/known.h"
#include "refs/ref.h"

#include <cmocka.h> /* last: its macro fail() hides the function of that name */

#define GOOD_MS 60000

/* -- a store that is slow, away, and used by others at the worst moment -- */

static struct {
	struct object_ops real, spied;
	bool away;
	void (*after_get)(void); /* between the store's answer and its arrival; once */
	void (*before_put)(void);
} spy;
static struct object_store *mine;  /* noted */
static struct object_store *other; /* another host's view of the same objects */
static struct ref_author me = {.who = "me@here", .command = "test"};
static unsigned serial;

static void once(void (**hook)(void))
{
	void (*run)(void) = *hook;

	if (!run)
		return; /* and nothing is written while threads race */
	*hook = NULL;
	run();
}

static int spy_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                   struct buffer *bytes, struct etag *etag, struct message *message)
{
	if (spy.away)
		return (fail)(message, -ERR_STORE_AWAY, "away");
	int error = object_get(other, key, offset, length, bytes, etag, message);
	once(&spy.after_get);
	return error;
}

static int spy_put_if_match(struct object_store *store, const char *key, const void *bytes,
                            size_t length, const struct etag *expected, struct etag *etag,
                            struct message *message)
{
	once(&spy.before_put);
	return object_put_if_match(other, key, bytes, length, expected, etag, message);
}

static int spy_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                             size_t length, struct etag *etag, struct message *message)
{
	return object_put_if_absent(other, key, bytes, length, etag, message);
}

static int spy_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                    void *context, struct message *message)
{
	return object_list(other, prefix, callback, context, message);
}

static int spy_remove(struct object_store *store, const char *key, struct message *message)
{
	return object_remove(other, key, message);
}

static struct pointer somewhere(void)
{
	struct pointer pointer = {0};

	serial++;
	sha256_of(&serial, sizeof(serial), &pointer.id);
	pointer.place = (struct place){.offset = 4096, .stored = 64, .raw = 64};
	random_bytes(pointer.place.pack, PACK_ID_BYTES);
	return pointer;
}

static int setup_with(int64_t good_ms)
{
	struct pointer start = somewhere();

	memset(&spy, 0, sizeof(spy));
	assert_int_equal(object_memory_open(&other), 0);
	assert_int_equal(object_memory_open(&mine), 0);
	spy.real = *mine->ops;
	spy.spied = spy.real;
	spy.spied.get = spy_get;
	spy.spied.put_if_match = spy_put_if_match;
	spy.spied.put_if_absent = spy_put_if_absent;
	spy.spied.list = spy_list;
	spy.spied.remove = spy_remove;
	spy.spied.get_if_changed = NULL;
	mine->ops = &spy.spied;
	assert_int_equal(ref_create(other, REF_BRANCH, "main", &start, &me, NULL), 0);
	return known_refs_attach(mine, good_ms);
}

static int setup(void **state)
{
	return setup_with(GOOD_MS);
}

static int setup_short(void **state)
{
	return setup_with(50);
}

static int teardown(void **state)
{
	object_store_free(mine);
	object_store_free(other);
	return 0;
}

static uint64_t requests(struct object_store *store)
{
	struct object_stats stats;

	object_stats(store, &stats);
	return object_stats_requests(&stats);
}

static void look(struct ref *ret_ref)
{
	assert_int_equal(ref_read_known(mine, REF_BRANCH, "main", ret_ref, NULL), 0);
}

static void move(struct object_store *store, const char *name)
{
	struct ref ref = {0};
	struct pointer to = somewhere();

	assert_int_equal(ref_read(store, REF_BRANCH, name, &ref, NULL), 0);
	assert_int_equal(ref_move(store, &ref, &to, &me, NULL), 0);
	ref_release(&ref);
}

static void move_other(void)
{
	move(other, "main");
}

static void move_mine(void)
{
	move(mine, "main");
}

/* What guessing says, and how many requests it took. */
static unsigned guess(struct id *ret_id)
{
	CLEANUP(ref_release) struct ref ref = {0};
	uint64_t before = requests(mine);

	look(&ref);
	*ret_id = ref.commit.id;
	return (unsigned)(requests(mine) - before);
}

static struct id truth(const char *name)
{
	CLEANUP(ref_release) struct ref ref = {0};

	assert_int_equal(ref_read(other, REF_BRANCH, name, &ref, NULL), 0);
	return ref.commit.id;
}

static void same(const struct id *a, const struct id *b)
{
	assert_memory_equal(a, b, sizeof(*a));
}

/* -- what it is good for -- */

static void reading_once_is_enough(void **state)
{
	struct id id, is = truth("main");

	assert_int_equal(guess(&id), 1);
	assert_int_equal(guess(&id), 0);
	same(&id, &is);
}

static void what_was_made_here_is_known_at_once(void **state)
{
	struct id id, is;

	for (int i = 0; i < 100; i++) {
		move_mine();
		is = truth("main");
		assert_int_equal(guess(&id), 0);
		same(&id, &is);
	}
}

static void moving_costs_one_put(void **state)
{
	CLEANUP(ref_release) struct ref ref = {0};
	struct pointer to = somewhere();
	struct id id, is;

	guess(&id);
	uint64_t before = requests(mine);
	look(&ref);
	assert_int_equal(ref_move(mine, &ref, &to, &me, NULL), 0);
	assert_int_equal(ref_create(mine, REF_BRANCH, "new", &ref.commit, &me, NULL), 0);
	assert_int_equal(ref_delete(mine, REF_BRANCH, "new", &me, NULL), 0);
	assert_int_equal(requests(mine) - before, 3);
	is = truth("main");
	same(&to.id, &is);
}

static void reading_always_asks(void **state)
{
	CLEANUP(ref_release) struct ref ref = {0};
	struct id id, is;

	guess(&id);
	move_other();
	is = truth("main");
	assert_int_equal(ref_read(mine, REF_BRANCH, "main", &ref, NULL), 0);
	same(&ref.commit.id, &is);
}

static void a_wrong_guess_costs_a_put_and_a_get(void **state)
{
	CLEANUP(ref_release) struct ref ref = {0};
	struct pointer to = somewhere();
	struct id id, is;

	guess(&id);
	move_other();
	uint64_t before = requests(mine);
	look(&ref);
	assert_int_equal(ref_move(mine, &ref, &to, &me, NULL), -ERR_MOVED);
	assert_int_equal(requests(mine) - before, 2);
	is = truth("main");
	ref_release(&ref);
	assert_int_equal(ref_read(mine, REF_BRANCH, "main", &ref, NULL), 0);
	same(&ref.commit.id, &is);
}

static void who_is_contended_is_not_guessed(void **state)
{
	struct id id, is;

	guess(&id);
	move_other();
	move_mine(); /* which reads it, and sees that others move it */
	assert_int_equal(guess(&id), 1);
	assert_int_equal(guess(&id), 1);
	is = truth("main");
	same(&id, &is);
}

static void gets_old(void **state)
{
	struct id id;

	assert_int_equal(guess(&id), 1);
	assert_int_equal(guess(&id), 0);
	usleep(60000);
	assert_int_equal(guess(&id), 1);
}

static void looking_keeps_it_good(void **state)
{
	CLEANUP(ref_release) struct ref first = {0};
	struct ref again = {0};
	struct id id;

	look(&first);
	for (int i = 0; i < 8; i++) {
		usleep(20000);
		assert_int_equal(
		        ref_read_if_changed(mine, REF_BRANCH, "main", &first.etag, &again, NULL),
		        0);
	}
	assert_int_equal(guess(&id), 0);
}

static void a_store_that_is_away_makes_all_unknown(void **state)
{
	struct ref ref = {0};
	struct id id;

	guess(&id);
	spy.away = true;
	assert_int_equal(ref_read(mine, REF_BRANCH, "other", &ref, NULL), -ERR_STORE_AWAY);
	assert_int_equal(ref_read_known(mine, REF_BRANCH, "main", &ref, NULL), -ERR_STORE_AWAY);
	spy.away = false;
	assert_int_equal(guess(&id), 1);
}

static void what_is_not_there_is_asked_for(void **state)
{
	struct ref ref = {0};
	struct pointer to = somewhere();

	assert_int_equal(ref_create(mine, REF_BRANCH, "x", &to, &me, NULL), 0);
	assert_int_equal(ref_delete(mine, REF_BRANCH, "x", &me, NULL), 0);
	assert_int_equal(ref_read_known(mine, REF_BRANCH, "x", &ref, NULL), -ERR_NOT_FOUND);
	assert_int_equal(ref_restore(other, REF_BRANCH, "x", &me, NULL), 0);
	assert_int_equal(ref_read_known(mine, REF_BRANCH, "x", &ref, NULL), 0);
	same(&ref.commit.id, &to.id);
	ref_release(&ref);
	assert_int_equal(ref_read_known(mine, REF_TAG, "x", &ref, NULL), -ERR_NOT_FOUND);
	assert_int_equal(ref_read_known(mine, REF_BRANCH, "..", &ref, NULL), -ERR_BAD_NAME);
}

/* -- answers that overtake each other -- */

static void an_old_answer_does_not_replace_what_was_made_here(void **state)
{
	CLEANUP(ref_release) struct ref old = {0};
	struct id id, is;

	guess(&id);
	spy.after_get = move_mine;
	assert_int_equal(ref_read(mine, REF_BRANCH, "main", &old, NULL), 0);
	is = truth("main");
	assert_memory_not_equal(&old.commit.id, &is, sizeof(is));
	assert_int_equal(guess(&id), 0);
	same(&id, &is);
}

static void nor_does_it_confirm_what_a_put_replaced(void **state)
{
	CLEANUP(ref_release) struct ref first = {0};
	struct ref ref = {0};
	struct id id, is;

	look(&first);
	spy.after_get = move_mine;
	ref_read_if_changed(mine, REF_BRANCH, "main", &first.etag, &ref, NULL);
	ref_release(&ref);
	is = truth("main");
	guess(&id);
	same(&id, &is);
}

struct racing {
	atomic_bool *ending;
	atomic_uint wrong;
};

static void *read_on(void *context)
{
	struct racing *racing = context;

	while (!*racing->ending) {
		CLEANUP(ref_release) struct ref ref = {0};

		if (ref_read(mine, REF_BRANCH, "main", &ref, NULL) < 0)
			racing->wrong++;
	}
	return NULL;
}

static void a_command_sees_what_earlier_ones_did_under_load(void **state)
{
	atomic_bool ending = false;
	struct racing racing = {.ending = &ending};
	pthread_t threads[4];
	struct id id, is;

	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_on, &racing), 0);
	for (int i = 0; i < 500; i++) {
		CLEANUP(ref_release) struct ref ref = {0};
		struct pointer to = somewhere();

		look(&ref);
		assert_int_equal(ref_move(mine, &ref, &to, &me, NULL), 0);
		guess(&id);
		is = truth("main");
		same(&id, &is);
	}
	ending = true;
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(racing.wrong, 0);
}

/* -- listings -- */

struct seen {
	unsigned count;
	bool ascending;
	char last[REF_NAME_MAX + 1];
};

static int note(void *context, const struct ref *ref)
{
	struct seen *seen = context;

	assert_int_equal(ref->move_count > 0, true);
	seen->ascending = seen->ascending && strcmp(seen->last, ref->name) < 0;
	strcpy(seen->last, ref->name);
	seen->count++;
	return 0;
}

static void a_listing_reads_what_changed(void **state)
{
	struct seen seen = {.ascending = true};
	char name[16];

	for (int i = 0; i < 1000; i++) {
		struct pointer to = somewhere();

		snprintf(name, sizeof(name), "b%03d", i);
		assert_int_equal(ref_create(other, REF_BRANCH, name, &to, &me, NULL), 0);
	}
	uint64_t before = requests(mine);
	assert_int_equal(ref_list(mine, REF_BRANCH, true, note, &seen, NULL), 0);
	assert_int_equal(seen.count, 1001);
	assert_true(seen.ascending);
	assert_int_equal(requests(mine) - before, 1002);
	for (int i = 0; i < 7; i++) {
		snprintf(name, sizeof(name), "b%03d", i * 100);
		move(other, name);
	}
	seen = (struct seen){.ascending = true};
	before = requests(mine);
	assert_int_equal(ref_list(mine, REF_BRANCH, true, note, &seen, NULL), 0);
	assert_int_equal(seen.count, 1001);
	assert_int_equal(requests(mine) - before, 8);
}

static void space_is_bounded(void **state)
{
	struct etag etag;
	CLEANUP(free_pointer) char *large = calloc(1, 1 << 20);
	CLEANUP(buffer_release) struct buffer body = {0};
	char key[64];

	for (int i = 0; i < 40; i++) {
		snprintf(key, sizeof(key), "refs/branches/large%d", i);
		large[0] = (char)i;
		assert_int_equal(object_put_if_absent(mine, key, large, 1 << 20, &etag, NULL), 0);
	}
	assert_int_equal(known_ref_guess(mine, key, &body, &etag), 0);
	assert_int_equal(known_ref_guess(mine, "refs/branches/large0", &body, &etag),
	                 -ERR_NOT_FOUND);
	assert_int_equal(known_ref_exact(mine, key, &etag, &body), 0);
}

static void a_store_that_is_not_noted_is_asked(void **state)
{
	CLEANUP(ref_release) struct ref ref = {0};
	uint64_t before = requests(other);

	assert_int_equal(ref_read_known(other, REF_BRANCH, "main", &ref, NULL), 0);
	assert_int_equal(requests(other) - before, 1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	        TEST(reading_once_is_enough),
	        TEST(what_was_made_here_is_known_at_once),
	        TEST(moving_costs_one_put),
	        TEST(reading_always_asks),
	        TEST(a_wrong_guess_costs_a_put_and_a_get),
	        TEST(who_is_contended_is_not_guessed),
	        cmocka_unit_test_setup_teardown(gets_old, setup_short, teardown),
	        cmocka_unit_test_setup_teardown(looking_keeps_it_good, setup_short, teardown),
	        TEST(a_store_that_is_away_makes_all_unknown),
	        TEST(what_is_not_there_is_asked_for),
	        TEST(an_old_answer_does_not_replace_what_was_made_here),
	        TEST(nor_does_it_confirm_what_a_put_replaced),
	        TEST(a_command_sees_what_earlier_ones_did_under_load),
	        TEST(a_listing_reads_what_changed),
	        TEST(space_is_bounded),
	        TEST(a_store_that_is_not_noted_is_asked),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
