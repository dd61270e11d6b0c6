/*
 * Refs: every change and every race, behind a store whose puts lose their answers.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include "refs/ref.h"

#include <cmocka.h> /* last: its macro fail() hides the function of that name */

/* -- a store that fails on demand -- */

enum mishap {
	NO_MISHAP,
	FAIL_BEFORE, /* the put is not done, and fails */
	FAIL_AFTER,  /* it is done, and fails */
};
struct wrapper {
	struct object_store store;
	struct object_store *inner;
	enum mishap mishap; /* of the next put; then over */
	int error;          /* what it fails with */
	bool reads_fail;
	int fail_one_in;          /* > 0: conditional puts fail at random */
	void (*before_put)(void); /* somebody else is faster; then over */
	void (*after_put)(void);  /* somebody else comes at once; then over */
	unsigned gets, puts, lists, removes;
};
static struct wrapper wrapper;
static struct object_store *store = &wrapper.store;

static int wrapper_get(struct object_store *self, const char *key, uint64_t offset, uint64_t length,
                       struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	__atomic_fetch_add(&wrapper.gets, 1, __ATOMIC_RELAXED);
	if (wrapper.reads_fail)
		return (fail)(message, -ERR_STORE_AWAY, "reads fail");
	return object_get(wrapper.inner, key, offset, length, ret_bytes, ret_etag, message);
}

static int wrapper_put(struct object_store *self, const char *key, const void *bytes, size_t length,
                       struct message *message)
{
	return object_put(wrapper.inner, key, bytes, length, message);
}

static int put_either(const char *key, const void *bytes, size_t length,
                      const struct etag *expected, struct etag *ret_etag, struct message *message)
{
	return expected
	               ? object_put_if_match(wrapper.inner, key, bytes, length, expected, ret_etag,
	                                     message)
	               : object_put_if_absent(wrapper.inner, key, bytes, length, ret_etag, message);
}

static int mishap_put(const char *key, const void *bytes, size_t length,
                      const struct etag *expected, struct etag *ret_etag, struct message *message)
{
	enum mishap mishap = wrapper.mishap;
	void (*before)(void) = wrapper.before_put;
	void (*after)(void) = wrapper.after_put;
	struct etag unseen;
	int rc = 0;

	__atomic_fetch_add(&wrapper.puts, 1, __ATOMIC_RELAXED);
	if (wrapper.fail_one_in > 0) {
		if (random_u64() % (unsigned)wrapper.fail_one_in == 0)
			mishap = random_u64() % 2 ? FAIL_BEFORE : FAIL_AFTER;
		if (mishap == FAIL_AFTER)
			put_either(key, bytes, length, expected, &unseen, NULL);
		return mishap != NO_MISHAP
		               ? (fail)(message, -ERR_STORE_AWAY, "lost")
		               : put_either(key, bytes, length, expected, ret_etag, message);
	}
	wrapper.mishap = NO_MISHAP;
	wrapper.before_put = NULL;
	if (before)
		before();
	if (mishap != FAIL_BEFORE)
		rc = put_either(key, bytes, length, expected,
		                mishap == FAIL_AFTER ? &unseen : ret_etag, message);
	wrapper.after_put = NULL;
	if (after)
		after();
	return mishap != NO_MISHAP ? (fail)(message, wrapper.error, "the put's answer was lost")
	                           : rc;
}

static int wrapper_put_if_absent(struct object_store *self, const char *key, const void *bytes,
                                 size_t length, struct etag *ret_etag, struct message *message)
{
	return mishap_put(key, bytes, length, NULL, ret_etag, message);
}

static int wrapper_put_if_match(struct object_store *self, const char *key, const void *bytes,
                                size_t length, const struct etag *expected, struct etag *ret_etag,
                                struct message *message)
{
	return mishap_put(key, bytes, length, expected, ret_etag, message);
}

static int wrapper_list(struct object_store *self, const char *prefix, object_list_fn *callback,
                        void *context, struct message *message)
{
	wrapper.lists++;
	return object_list(wrapper.inner, prefix, callback, context, message);
}

static int wrapper_remove(struct object_store *self, const char *key, struct message *message)
{
	wrapper.removes++;
	return object_remove(wrapper.inner, key, message);
}

static void wrapper_free(struct object_store *self)
{
}

static const struct object_ops wrapper_ops = {
        .get = wrapper_get,
        .put = wrapper_put,
        .put_if_absent = wrapper_put_if_absent,
        .put_if_match = wrapper_put_if_match,
        .list = wrapper_list,
        .remove = wrapper_remove,
        .free = wrapper_free,
};

static int setup(void **state)
{
	memset(&wrapper, 0, sizeof(wrapper));
	wrapper.store.ops = &wrapper_ops;
	assert_int_equal(object_memory_open(&wrapper.inner), 0);
	return 0;
}

static int teardown(void **state)
{
	object_store_free(wrapper.inner);
	return 0;
}

/* -- helpers -- */

static const struct ref_author ann = {.who = "ann@host", .command = "commit"};
static const struct ref_author bob = {.who = "bob@host", .command = "merge dev"};

static struct pointer commit_number(uint32_t number)
{
	struct pointer pointer = {.place = {.offset = 64, .stored = 100, .raw = 100}};

	memset(&pointer.id, 0xc0, sizeof(struct id));
	store_u32(pointer.id.bytes, number);
	return pointer;
}

static uint32_t number_of(const struct pointer *pointer)
{
	return pointer_is_none(pointer) ? 0 : load_u32(pointer->id.bytes);
}

static void create(enum ref_kind kind, const char *name, uint32_t number)
{
	struct message message = {0};
	struct pointer commit = commit_number(number);
	int rc = ref_create(store, kind, name, &commit, &ann, &message);

	if (rc < 0)
		fail_msg("ref_create %s: %s: %s", name, error_text(rc), message.text);
}

static struct ref read_ref(enum ref_kind kind, const char *name)
{
	struct message message = {0};
	struct ref ref = {0};
	int rc = ref_read(store, kind, name, &ref, &message);

	if (rc < 0)
		fail_msg("ref_read %s: %s: %s", name, error_text(rc), message.text);
	return ref;
}

static void assert_stands(const char *name, uint32_t number)
{
	struct ref ref = {0};
	int rc = ref_read(store, REF_BRANCH, name, &ref, NULL);

	assert_int_equal(number == 0 ? -ERR_NOT_FOUND : 0, rc);
	assert_int_equal(number_of(&ref.commit), number);
	ref_release(&ref);
}

/* Somebody else moves it, whatever stands there. */
static void move_by_other(const char *name, uint32_t number)
{
	struct ref ref = read_ref(REF_BRANCH, name);
	struct pointer commit = commit_number(number);

	assert_int_equal(ref_move(wrapper.inner, &ref, &commit, &bob, NULL), 0);
	ref_release(&ref);
}

static void assert_moves(const struct ref *ref, size_t count, const uint32_t *newest_first)
{
	assert_int_equal(ref->move_count, count);
	for (size_t i = 0; i < count; i++)
		assert_int_equal(number_of(&ref->moves[i].after), newest_first[i]);
	for (size_t i = 0; i + 1 < count; i++)
		assert_int_equal(number_of(&ref->moves[i].before), newest_first[i + 1]);
}

struct names {
	char text[4096];
	size_t count;
	size_t with_commit;
};

static int add_name(void *context, const struct ref *ref)
{
	struct names *names = context;

	if (strlen(names->text) < sizeof(names->text) - 150)
		strcat(strcat(names->text, ref->name), " ");
	names->count++;
	names->with_commit += !pointer_is_none(&ref->commit);
	return 0;
}

static void assert_listed(enum ref_kind kind, const char *text)
{
	struct names names = {0}, bodies = {0};
	unsigned gets = wrapper.gets;

	assert_int_equal(ref_list(store, kind, false, add_name, &names, NULL), 0);
	assert_int_equal(wrapper.gets, gets);
	assert_string_equal(names.text, text);
	assert_int_equal(ref_list(store, kind, true, add_name, &bodies, NULL), 0);
	assert_string_equal(bodies.text, text);
	assert_int_equal(bodies.with_commit, bodies.count);
}

/* -- tests -- */

static void checks_names(void **state)
{
	static const char *const good[] = {"a",   "main",     "_x",   "v1.0-rc.1", "9",
	                                   "A.b", "a.lock.b", "lock", "x-",        "deadbeef"};
	static const char *const bad[] = {"",      ".a",       "-a",    "a..b", "a/b", "a b",
	                                  "a@b",   "a~1",      "a^",    "a:b",  "a\n", "a.lock",
	                                  ".lock", "\xc3\xa9", "a\x80", "a*",   "@",   "a\\b"};
	char name[REF_NAME_MAX + 2] = {0};
	struct message message = {0};

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_int_equal(ref_name_check(good[i], &message), 0);
	assert_string_equal(message.text, "");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(ref_name_check(bad[i], &message), -ERR_BAD_NAME);
	memset(name, 'n', REF_NAME_MAX);
	assert_int_equal(ref_name_check(name, NULL), 0);
	name[REF_NAME_MAX] = 'n';
	assert_int_equal(ref_name_check(name, NULL), -ERR_BAD_NAME);

	struct pointer commit = commit_number(1);
	struct ref ref = {0};
	assert_int_equal(ref_create(store, REF_TAG, "a/b", &commit, &ann, NULL), -ERR_BAD_NAME);
	assert_int_equal(ref_read(store, REF_TAG, "../x", &ref, NULL), -ERR_BAD_NAME);
	assert_int_equal(ref_delete(store, REF_TAG, "", &ann, NULL), -ERR_BAD_NAME);
	assert_int_equal(ref_restore(store, REF_TAG, "a b", &ann, NULL), -ERR_BAD_NAME);
	create(REF_BRANCH, "a", 1);
	assert_int_equal(ref_rename(store, REF_BRANCH, "a", "b.lock", &ann, NULL), -ERR_BAD_NAME);
	assert_int_equal(ref_create(store, REF_BRANCH, "n", &pointer_none, &ann, NULL),
	                 -ERR_INVALID);
}

static void creates_moves_and_remembers(void **state)
{
	struct message message = {0};
	struct pointer commit = commit_number(1);

	create(REF_BRANCH, "main", 1);
	assert_int_equal(wrapper.puts, 1);
	assert_int_equal(wrapper.gets, 0);
	assert_int_equal(ref_create(store, REF_BRANCH, "main", &commit, &ann, &message),
	                 -ERR_EXISTS);
	assert_string_equal(message.text, "branch 'main' exists already");
	struct ref ref = read_ref(REF_BRANCH, "main");
	assert_moves(&ref, 1, (uint32_t[]){1});
	assert_true(pointer_is_none(&ref.moves[0].before));
	assert_string_equal(ref.moves[0].who, "ann@host");
	assert_true(ref.etag.text[0] != '\0');

	for (uint32_t i = 2; i <= 80; i++) {
		commit = commit_number(i);
		assert_int_equal(ref_move(store, &ref, &commit, &bob, NULL), 0);
		assert_int_equal(number_of(&ref.commit), i);
		struct ref read = read_ref(REF_BRANCH, "main");
		assert_string_equal(read.etag.text, ref.etag.text);
		assert_int_equal(read.move_count, i < REF_MOVES_MAX ? i : REF_MOVES_MAX);
		for (uint32_t k = 0; k < read.move_count; k++) {
			assert_int_equal(number_of(&read.moves[k].after), i - k);
			assert_int_equal(number_of(&read.moves[k].before), i - k - 1);
		}
		assert_string_equal(read.moves[0].command, "merge dev");
		ref_release(&read);
	}
	assert_int_equal(ref_move(store, &ref, &pointer_none, &ann, NULL), -ERR_INVALID);
	ref_release(&ref);
	assert_stands("main", 80);
}

static void bounds_what_is_told(void **state)
{
	char text[600];
	struct ref_author author = {.who = text, .command = "two\nlines\t"};
	struct pointer commit = commit_number(1);

	/* 254 bytes, then a character of two: cut before it, not within. */
	memset(text, 'w', sizeof(text));
	memcpy(text + 254, "\xc3\xa9", 2);
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(ref_create(store, REF_BRANCH, "a", &commit, &author, NULL), 0);
	struct ref ref = read_ref(REF_BRANCH, "a");
	assert_int_equal(strlen(ref.moves[0].who), 254);
	assert_string_equal(ref.moves[0].command, "two lines ");
	for (int i = 0; i < 70; i++) {
		memset(text, 'w', 255);
		author.command = text;
		assert_int_equal(ref_move(store, &ref, &commit, &author, NULL), 0);
	}
	ref_release(&ref);
	ref = read_ref(REF_BRANCH, "a"); /* the largest body there can be */
	ref_release(&ref);
	assert_int_equal(ref_create(store, REF_BRANCH, "b", &commit, NULL, NULL), 0);
}

static void notices_who_was_faster(void **state)
{
	struct message message = {0};
	struct pointer commit = commit_number(3);

	create(REF_BRANCH, "main", 1);
	struct ref mine = read_ref(REF_BRANCH, "main");
	struct etag etag = mine.etag;
	move_by_other("main", 2);
	assert_int_equal(ref_move(store, &mine, &commit, &ann, &message), -ERR_MOVED);
	assert_string_equal(message.text, "branch 'main' was moved by somebody else meanwhile");
	assert_int_equal(number_of(&mine.commit), 1);
	assert_string_equal(mine.etag.text, etag.text);
	/* Back to the same commit is still a move: the etag tells. */
	move_by_other("main", 1);
	assert_int_equal(ref_move(store, &mine, &commit, &ann, NULL), -ERR_MOVED);
	assert_int_equal(object_remove(wrapper.inner, "refs/branches/main", NULL), 0);
	assert_int_equal(ref_move(store, &mine, &commit, &ann, NULL), -ERR_NOT_FOUND);
	ref_release(&mine);
}

static void tags_never_move(void **state)
{
	struct message message = {0};
	struct pointer commit = commit_number(2);

	create(REF_TAG, "v1", 1);
	create(REF_BRANCH, "v1", 7); /* its own name space */
	struct ref tag = read_ref(REF_TAG, "v1");
	assert_int_equal(ref_move(store, &tag, &commit, &ann, &message), -ERR_REFUSED);
	assert_non_null(strstr(message.text, "tags never move"));
	assert_int_equal(number_of(&tag.commit), 1);
	ref_release(&tag);
	assert_listed(REF_TAG, "v1 ");
	assert_int_equal(ref_delete(store, REF_TAG, "v1", &ann, NULL), 0);
	assert_listed(REF_TAG, "");
	assert_listed(REF_BRANCH, "v1 ");
	create(REF_TAG, "v1", 2);
	tag = read_ref(REF_TAG, "v1");
	assert_int_equal(number_of(&tag.commit), 2);
	ref_release(&tag);
}

static void deletes_and_restores(void **state)
{
	struct message message = {0};
	struct names deleted = {0};

	create(REF_BRANCH, "a", 1);
	create(REF_BRANCH, "b", 2);
	move_by_other("b", 3);
	unsigned puts = wrapper.puts;
	assert_int_equal(ref_delete(store, REF_BRANCH, "b", &bob, NULL), 0);
	assert_int_equal(wrapper.puts, puts + 1);
	assert_stands("b", 0);
	assert_listed(REF_BRANCH, "a ");
	assert_int_equal(ref_delete(store, REF_BRANCH, "b", &bob, &message), -ERR_NOT_FOUND);
	assert_string_equal(message.text, "no branch 'b'; `lakectl branch list` lists them");
	assert_int_equal(ref_delete(store, REF_BRANCH, "never", &bob, NULL), -ERR_NOT_FOUND);
	assert_int_equal(ref_list_deleted(store, REF_BRANCH, add_name, &deleted, NULL), 0);
	assert_string_equal(deleted.text, "b ");
	assert_int_equal(deleted.with_commit, 1);

	assert_int_equal(ref_restore(store, REF_BRANCH, "a", &ann, NULL), -ERR_EXISTS);
	assert_int_equal(ref_restore(store, REF_BRANCH, "never", &ann, NULL), -ERR_NOT_FOUND);
	assert_int_equal(ref_restore(store, REF_BRANCH, "b", &ann, NULL), 0);
	struct ref ref = read_ref(REF_BRANCH, "b");
	assert_moves(&ref, 4, (uint32_t[]){3, 0, 3, 2});
	ref_release(&ref);
	assert_listed(REF_BRANCH, "a b ");
	assert_int_equal(ref_restore(store, REF_BRANCH, "b", &ann, NULL), -ERR_EXISTS);

	/* Created anew over the tombstone, and deleted again: the later life comes back. */
	assert_int_equal(ref_delete(store, REF_BRANCH, "b", &bob, NULL), 0);
	create(REF_BRANCH, "b", 9);
	ref = read_ref(REF_BRANCH, "b");
	assert_moves(&ref, 6, (uint32_t[]){9, 0, 3, 0, 3, 2});
	ref_release(&ref);
	assert_int_equal(ref_delete(store, REF_BRANCH, "b", &bob, NULL), 0);
	assert_int_equal(ref_restore(store, REF_BRANCH, "b", &ann, NULL), 0);
	assert_stands("b", 9);
	assert_int_equal(wrapper.removes, 0);
}

static void commit_b(void)
{
	move_by_other("b", 5);
}

static void delete_b(void)
{
	assert_int_equal(ref_delete(wrapper.inner, REF_BRANCH, "b", &bob, NULL), 0);
}

static void create_b(void)
{
	struct pointer commit = commit_number(8);

	assert_int_equal(ref_create(wrapper.inner, REF_BRANCH, "b", &commit, &bob, NULL), 0);
}

static void restore_b(void)
{
	assert_int_equal(ref_restore(wrapper.inner, REF_BRANCH, "b", &bob, NULL), 0);
}

static void recreate_b(void)
{
	delete_b();
	create_b();
}

static void purge_b(void)
{
	assert_int_equal(ref_purge(wrapper.inner, REF_BRANCH, INT64_MAX, NULL, NULL), 0);
}

static void deletion_races(void **state)
{
	struct pointer commit = commit_number(6);

	/* A commit in between is in what is kept. */
	create(REF_BRANCH, "b", 1);
	wrapper.before_put = commit_b;
	assert_int_equal(ref_delete(store, REF_BRANCH, "b", &ann, NULL), 0);
	assert_stands("b", 0);
	restore_b();
	assert_stands("b", 5);

	/* A commit that comes after a deletion does not bring the branch back. */
	struct ref mine = read_ref(REF_BRANCH, "b");
	wrapper.before_put = delete_b;
	assert_int_equal(ref_move(store, &mine, &commit, &ann, NULL), -ERR_MOVED);
	assert_stands("b", 0);
	wrapper.before_put = create_b;
	assert_int_equal(ref_create(store, REF_BRANCH, "b", &commit, &ann, NULL), -ERR_EXISTS);
	assert_stands("b", 8);

	/* Nor does the deletion of an earlier life hit the later one unseen. */
	ref_release(&mine);
	mine = read_ref(REF_BRANCH, "b");
	wrapper.before_put = recreate_b;
	assert_int_equal(ref_move(store, &mine, &commit, &ann, NULL), -ERR_MOVED);
	ref_release(&mine);

	wrapper.before_put = delete_b;
	assert_int_equal(ref_delete(store, REF_BRANCH, "b", &ann, NULL), -ERR_NOT_FOUND);
	wrapper.before_put = restore_b;
	assert_int_equal(ref_restore(store, REF_BRANCH, "b", &ann, NULL), -ERR_EXISTS);
	delete_b();
	/* The tombstone is purged while it is being replaced. */
	wrapper.after_put = purge_b;
	create(REF_BRANCH, "b", 6);
	assert_stands("b", 6);
}

static void settles_moves(void **state)
{
	static const int errors[] = {-ERR_STORE_AWAY, -(ERR_SYSTEM + EIO), -ERR_NO_SPACE,
	                             -ERR_MOVED,      -ERR_NOT_FOUND,      -ERR_INTERRUPTED};

	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		struct message message = {0};
		char name[16];
		struct pointer one = commit_number(11), two = commit_number(12);

		snprintf(name, sizeof(name), "b%zu", i);
		create(REF_BRANCH, name, 10);
		struct ref ref = read_ref(REF_BRANCH, name);
		wrapper.error = errors[i];

		/* Done, the answer lost: won, and the etag is right for the next move. */
		wrapper.mishap = FAIL_AFTER;
		assert_int_equal(ref_move(store, &ref, &one, &ann, &message), 0);
		assert_string_equal(message.text, "");
		assert_int_equal(number_of(&ref.commit), 11);
		assert_int_equal(ref_move(store, &ref, &two, &ann, NULL), 0);
		assert_stands(name, 12);

		/* Not done: the put's own error, and nothing has changed. */
		wrapper.mishap = FAIL_BEFORE;
		assert_int_equal(ref_move(store, &ref, &one, &ann, &message), errors[i]);
		assert_true(message.text[0]);
		assert_int_equal(number_of(&ref.commit), 12);
		assert_int_equal(ref_move(store, &ref, &one, &ann, NULL), 0);

		/* Neither the answer nor the body to be had: an error that says so. */
		for (enum mishap mishap = FAIL_BEFORE; mishap <= FAIL_AFTER; mishap++) {
			wrapper.mishap = mishap;
			wrapper.reads_fail = true;
			assert_int_equal(ref_move(store, &ref, &two, &ann, &message),
			                 -ERR_STORE_AWAY);
			assert_non_null(strstr(message.text, "is not known"));
			assert_int_equal(number_of(&ref.commit), 11);
			wrapper.reads_fail = false;
		}
		ref_release(&ref);
		assert_stands(name, 12);
	}
}

static void claim_c(void)
{
	struct ref ref = read_ref(REF_BRANCH, "c");
	struct ref_contended contended = {0};

	assert_int_equal(ref_claim(store, &ref, 700, &bob, &contended, NULL), 0);
	assert_int_equal(ref.claim_ms, 700);
	ref_release(&ref);
}

static void claims_are_no_moves(void **state)
{
	struct pointer commit = commit_number(2), three = commit_number(3);
	struct ref_contended contended = {0};

	create(REF_BRANCH, "c", 1);
	for (uint32_t i = 0; i < REF_MOVES_MAX + 1; i++)
		move_by_other("c", 100 + i);
	struct ref ref = read_ref(REF_BRANCH, "c"), stale = read_ref(REF_BRANCH, "c");
	uint32_t stands = number_of(&ref.commit);
	claim_c();
	struct ref seen = read_ref(REF_BRANCH, "c");
	assert_string_equal(seen.claim.who, bob.who);
	assert_int_equal(seen.claim_ms, 700);
	assert_int_equal(seen.move_count, REF_MOVES_MAX);
	assert_memory_equal(seen.moves[0].nonce, ref.moves[0].nonce, REF_NONCE_BYTES);
	assert_int_equal(number_of(&seen.commit), stands);

	/* it binds nobody, but it is noticed, also where the answer was lost */
	assert_int_equal(ref_move_contended(store, &ref, &commit, &ann, &contended, NULL),
	                 -ERR_MOVED);
	assert_int_equal(contended.now.claim_ms, 700);
	ref_release(&contended.now);
	wrapper.error = -ERR_STORE_AWAY;
	wrapper.mishap = FAIL_BEFORE;
	assert_int_equal(ref_move(store, &stale, &commit, &ann, NULL), -ERR_MOVED);
	assert_int_equal(ref_claim(store, &stale, 1, &ann, &contended, NULL), -ERR_MOVED);
	assert_int_equal(contended.now.claim_ms, 700);
	ref_release(&contended.now);

	/* a claim that was made though its answer was lost; one that was not */
	wrapper.mishap = FAIL_AFTER;
	assert_int_equal(ref_claim(store, &seen, 60000, &ann, &contended, NULL), 0);
	wrapper.mishap = FAIL_BEFORE;
	assert_int_equal(ref_claim(store, &seen, 1, &ann, &contended, NULL), -ERR_STORE_AWAY);
	assert_int_equal(ref_claim(store, &seen, 60001, &ann, &contended, NULL), -ERR_INVALID);
	/* moving ends it */
	assert_int_equal(ref_move(store, &seen, &three, &ann, NULL), 0);
	ref_release(&ref);
	ref = read_ref(REF_BRANCH, "c");
	assert_null(ref.claim.who);
	assert_int_equal(number_of(&ref.commit), 3);
	assert_int_equal(number_of(&ref.moves[1].after), stands);
	ref_release(&ref);
	ref_release(&seen);
	ref_release(&stale);
}

static void settles_against_others(void **state)
{
	struct pointer commit = commit_number(2);

	wrapper.error = -ERR_STORE_AWAY;
	create(REF_BRANCH, "b", 1);
	struct ref ref = read_ref(REF_BRANCH, "b");

	/* Done, then moved on by somebody: ours all the same, but no longer the newest. */
	wrapper.mishap = FAIL_AFTER;
	wrapper.after_put = commit_b;
	assert_int_equal(ref_move(store, &ref, &commit, &ann, NULL), 0);
	assert_int_equal(number_of(&ref.commit), 2);
	assert_stands("b", 5);
	assert_int_equal(ref_move(store, &ref, &commit, &ann, NULL), -ERR_MOVED);
	ref_release(&ref);

	/* Done, then deleted by somebody: the commit was there. */
	ref = read_ref(REF_BRANCH, "b");
	wrapper.mishap = FAIL_AFTER;
	wrapper.after_put = delete_b;
	assert_int_equal(ref_move(store, &ref, &commit, &ann, NULL), 0);
	ref_release(&ref);
	restore_b();

	/* Not done, and somebody moved: lost. */
	ref = read_ref(REF_BRANCH, "b");
	wrapper.mishap = FAIL_BEFORE;
	wrapper.before_put = commit_b;
	assert_int_equal(ref_move(store, &ref, &commit, &ann, NULL), -ERR_MOVED);

	/* Not done as far as can be seen, and more happened since than a body tells. */
	struct message message = {0};
	for (uint32_t i = 0; i < REF_MOVES_MAX + 1; i++)
		move_by_other("b", 100 + i);
	wrapper.mishap = FAIL_BEFORE;
	assert_int_equal(ref_move(store, &ref, &commit, &ann, &message), -ERR_STORE_AWAY);
	ref_release(&ref);
}

static void settles_creations(void **state)
{
	static const int errors[] = {-ERR_STORE_AWAY, -(ERR_SYSTEM + EIO), -ERR_EXISTS};
	struct pointer commit = commit_number(2);
	struct message message;

	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		wrapper.error = errors[i];
		wrapper.mishap = FAIL_AFTER;
		create(REF_BRANCH, "b", 1);
		/* Over the tombstone. */
		delete_b();
		wrapper.mishap = NO_MISHAP;
		create(REF_BRANCH, "b", 1);
		/* It exists, fails, and is deleted meanwhile: the tombstone is taken over. */
		wrapper.mishap = FAIL_BEFORE;
		wrapper.before_put = delete_b;
		assert_int_equal(ref_create(store, REF_BRANCH, "b", &commit, &ann, NULL), 0);
		assert_stands("b", 2);
		assert_int_equal(object_remove(wrapper.inner, "refs/branches/b", NULL), 0);
	}
	wrapper.error = -ERR_STORE_AWAY;
	wrapper.mishap = FAIL_BEFORE;
	assert_int_equal(ref_create(store, REF_BRANCH, "b", &commit, &ann, &message),
	                 -ERR_STORE_AWAY);
	assert_stands("b", 0);
	wrapper.mishap = FAIL_BEFORE;
	wrapper.before_put = create_b;
	assert_int_equal(ref_create(store, REF_BRANCH, "b", &commit, &ann, &message), -ERR_EXISTS);
	delete_b();
	purge_b();
	for (enum mishap mishap = FAIL_BEFORE; mishap <= FAIL_AFTER; mishap++) {
		wrapper.mishap = mishap;
		wrapper.reads_fail = true;
		assert_int_equal(ref_create(store, REF_BRANCH, "b", &commit, &ann, &message),
		                 -ERR_STORE_AWAY);
		assert_non_null(strstr(message.text, "is not known"));
		wrapper.reads_fail = false;
	}
	assert_stands("b", 2);
	wrapper.mishap = FAIL_AFTER;
	assert_int_equal(ref_delete(store, REF_BRANCH, "b", &ann, NULL), 0);
	assert_stands("b", 0);
	wrapper.mishap = FAIL_AFTER;
	assert_int_equal(ref_restore(store, REF_BRANCH, "b", &ann, NULL), 0);
	wrapper.mishap = FAIL_BEFORE;
	assert_int_equal(ref_delete(store, REF_BRANCH, "b", &ann, NULL), -ERR_STORE_AWAY);
	assert_stands("b", 2);
}

static void move_both(void)
{
	move_by_other("b", 21);
	move_by_other("c", 22);
}

static void renames(void **state)
{
	struct message message = {0};

	create(REF_BRANCH, "a", 1);
	move_by_other("a", 2);
	create(REF_BRANCH, "taken", 3);
	assert_int_equal(ref_rename(store, REF_BRANCH, "a", "taken", &bob, &message), -ERR_EXISTS);
	assert_int_equal(ref_rename(store, REF_BRANCH, "a", "a", &bob, NULL), -ERR_EXISTS);
	assert_int_equal(ref_rename(store, REF_BRANCH, "no", "b", &bob, NULL), -ERR_NOT_FOUND);
	assert_stands("a", 2);
	assert_int_equal(ref_rename(store, REF_BRANCH, "a", "b", &bob, NULL), 0);
	assert_stands("a", 0);
	struct ref ref = read_ref(REF_BRANCH, "b");
	assert_moves(&ref, 3, (uint32_t[]){2, 2, 1});
	ref_release(&ref);
	assert_int_equal(ref_rename(store, REF_BRANCH, "b", "a", &bob, NULL), 0); /* a tombstone */
	assert_stands("a", 2);
	assert_listed(REF_BRANCH, "a taken ");
	assert_int_equal(ref_rename(store, REF_BRANCH, "a", "b", &bob, NULL), 0);

	/* Somebody commits to the old name after the new one was made: it is brought along. */
	wrapper.after_put = commit_b;
	assert_int_equal(ref_rename(store, REF_BRANCH, "b", "c", &bob, NULL), 0);
	assert_stands("b", 0);
	assert_stands("c", 5);

	assert_int_equal(ref_rename(store, REF_BRANCH, "c", "b", &bob, NULL), 0);
	purge_b();
	wrapper.after_put = move_both;
	assert_int_equal(ref_rename(store, REF_BRANCH, "b", "c", &bob, &message), -ERR_MOVED);
	assert_non_null(strstr(message.text, "both"));
	assert_stands("b", 21);
	assert_stands("c", 22);
	assert_int_equal(ref_delete(store, REF_BRANCH, "c", &ann, NULL), 0);
	purge_b();
	wrapper.after_put = delete_b;
	assert_int_equal(ref_rename(store, REF_BRANCH, "b", "c", &bob, &message), 0);
	assert_stands("c", 21);
}

static void lists_in_order(void **state)
{
	struct names names = {0};
	struct message message = {0};

	for (int i = 299; i >= 0; i--) {
		char name[16];

		snprintf(name, sizeof(name), "n%d", i * 7 % 300);
		create(REF_BRANCH, name, 1);
	}
	for (int i = 0; i < 300; i += 2) {
		char name[16];

		snprintf(name, sizeof(name), "n%d", i);
		assert_int_equal(ref_delete(store, REF_BRANCH, name, &ann, NULL), 0);
	}
	/* What is not a ref's name is not ours. */
	assert_int_equal(object_put(store, "refs/branches/x/y", "xx", 2, NULL), 0);
	assert_int_equal(object_put(store, "refs/branches/n1.lock", "xx", 2, NULL), 0);
	assert_int_equal(object_put(store, "refs/branches2", "xx", 2, NULL), 0);
	assert_int_equal(ref_list(store, REF_BRANCH, false, add_name, &names, NULL), 0);
	assert_int_equal(names.count, 150);
	assert_memory_equal(names.text, "n1 n101 n103 ", 13);
	assert_int_equal(wrapper.lists, 1);
	names = (struct names){0};
	assert_int_equal(ref_list(store, REF_BRANCH, true, add_name, &names, NULL), 0);
	assert_int_equal(names.count, 150);
	names = (struct names){0};
	assert_int_equal(ref_list_deleted(store, REF_BRANCH, add_name, &names, NULL), 0);
	assert_int_equal(names.count, 150);
	assert_memory_equal(names.text, "n0 n10 n100 ", 12);

	/* One damaged body hides no other. */
	names = (struct names){0};
	assert_int_equal(object_put(store, "refs/branches/n103", "damage", 6, NULL), 0);
	assert_int_equal(ref_list(store, REF_BRANCH, true, add_name, &names, &message),
	                 -ERR_CORRUPT);
	assert_non_null(strstr(message.text, "branch 'n103' is damaged"));
	assert_int_equal(names.count, 149);
	assert_int_equal(ref_list(store, REF_BRANCH, false, add_name, &names, NULL), 0);
}

static int stop_at_second(void *context, const struct ref *ref)
{
	return ++*(int *)context == 2 ? 42 : 0;
}

static void list_stops_and_purges(void **state)
{
	int seen = 0;
	uint64_t purged;

	create(REF_BRANCH, "a", 1);
	create(REF_BRANCH, "b", 1);
	create(REF_BRANCH, "c", 1);
	assert_int_equal(ref_list(store, REF_BRANCH, true, stop_at_second, &seen, NULL), 42);
	assert_int_equal(seen, 2);
	delete_b();
	assert_int_equal(ref_purge(store, REF_BRANCH, clock_wall_ms() - 60000, &purged, NULL), 0);
	assert_int_equal(purged, 0);
	assert_int_equal(ref_purge(store, REF_BRANCH, clock_wall_ms() + 60000, &purged, NULL), 0);
	assert_int_equal(purged, 1);
	assert_int_equal(ref_restore(store, REF_BRANCH, "b", &ann, NULL), -ERR_NOT_FOUND);
	assert_listed(REF_BRANCH, "a c ");
}

/* -- damage -- */

static void get_body(const char *key, struct buffer *ret_body)
{
	assert_int_equal(object_get(store, key, 0, UINT64_MAX, ret_body, NULL, NULL), 0);
}

static void reseal(struct buffer *body)
{
	struct id seal;

	sha256_of(body->data, body->length - ID_BYTES, &seal);
	memcpy(body->data + body->length - ID_BYTES, &seal, ID_BYTES);
}

static void any_flipped_bit_is_damage(void **state)
{
	CLEANUP(buffer_release) struct buffer body = {0};
	CLEANUP(buffer_release) struct buffer again = {0};
	struct ref ref;

	create(REF_BRANCH, "b", 1);
	commit_b();
	delete_b();
	restore_b();
	get_body("refs/branches/b", &body);
	assert_int_equal(ref_decode(REF_BRANCH, "b", body.data, body.length, &ref), 0);
	assert_int_equal(ref_encode(&ref, &again), 0);
	assert_int_equal(again.length, body.length);
	assert_memory_equal(again.data, body.data, body.length);
	ref_release(&ref);
	for (size_t i = 0; i < body.length; i++) {
		for (int bit = 0; bit < 8; bit++) {
			body.data[i] ^= (uint8_t)(1 << bit);
			assert_int_equal(ref_decode(REF_BRANCH, "b", body.data, body.length, &ref),
			                 -ERR_CORRUPT);
			body.data[i] ^= (uint8_t)(1 << bit);
		}
		assert_int_equal(ref_decode(REF_BRANCH, "b", body.data, i, &ref), -ERR_CORRUPT);
	}
	assert_int_equal(ref_decode(REF_BRANCH, "c", body.data, body.length, &ref), -ERR_CORRUPT);
	assert_int_equal(ref_decode(REF_TAG, "b", body.data, body.length, &ref), -ERR_CORRUPT);
	body.data[4] = 3;
	reseal(&body);
	assert_int_equal(ref_decode(REF_BRANCH, "b", body.data, body.length, &ref), -ERR_VERSION);
}

/* Sealed nonsense: every byte but the seal changed in turn is refused or canonical. */
static void sealed_nonsense_is_survived(void **state)
{
	CLEANUP(buffer_release) struct buffer body = {0};
	unsigned refused = 0, taken = 0;

	create(REF_BRANCH, "b", 1);
	commit_b();
	get_body("refs/branches/b", &body);
	for (size_t i = 0; i < body.length - ID_BYTES; i++) {
		for (int value = 0; value < 256; value += 5) {
			CLEANUP(buffer_release) struct buffer again = {0};
			uint8_t kept = body.data[i];
			struct ref ref;

			body.data[i] = (uint8_t)value;
			reseal(&body);
			int rc = ref_decode(REF_BRANCH, "b", body.data, body.length, &ref);
			if (rc == 0) {
				assert_int_equal(ref_encode(&ref, &again), 0);
				assert_int_equal(again.length, body.length);
				assert_memory_equal(again.data, body.data, body.length);
				ref_release(&ref);
			}
			*(rc == 0 ? &taken : &refused) += 1;
			body.data[i] = kept;
		}
	}
	assert_true(refused > 300 && taken > 300);
}

/* -- many at once, with answers lost at random -- */

#define THREADS 4
#define MOVES_EACH 15 /* together fewer than a body remembers */

struct mover {
	pthread_t thread;
	uint32_t number;
	int results[MOVES_EACH];
};

static void *move_often(void *context)
{
	struct mover *mover = context;

	for (uint32_t i = 0; i < MOVES_EACH; i++) {
		struct pointer commit = commit_number(1000 * mover->number + i);
		struct ref ref = {0};

		if (ref_read(store, REF_BRANCH, "b", &ref, NULL) < 0)
			abort();
		mover->results[i] = ref_move(store, &ref, &commit, &ann, NULL);
		ref_release(&ref);
	}
	return NULL;
}

static void no_move_is_lost_or_made_up(void **state)
{
	unsigned won = 0, lost = 0, unknown = 0;

	for (int round = 0; round < 100; round++) {
		struct mover movers[THREADS] = {0};
		char name[] = "b";

		create(REF_BRANCH, name, 1);
		wrapper.fail_one_in = 3;
		for (uint32_t t = 0; t < THREADS; t++) {
			movers[t].number = t + 1;
			assert_int_equal(
			        pthread_create(&movers[t].thread, NULL, move_often, &movers[t]), 0);
		}
		for (int t = 0; t < THREADS; t++)
			pthread_join(movers[t].thread, NULL);
		wrapper.fail_one_in = 0;
		struct ref ref = read_ref(REF_BRANCH, name);
		for (uint32_t t = 0; t < THREADS; t++) {
			for (uint32_t i = 0; i < MOVES_EACH; i++) {
				bool there = false;

				for (size_t m = 0; m < ref.move_count; m++)
					there |= number_of(&ref.moves[m].after) ==
					         1000 * (t + 1) + i;
				if (movers[t].results[i] == 0)
					assert_true(there);
				else
					assert_false(there);
				won += movers[t].results[i] == 0;
				lost += movers[t].results[i] == -ERR_MOVED;
				unknown += movers[t].results[i] == -ERR_STORE_AWAY;
			}
		}
		ref_release(&ref);
		assert_int_equal(object_remove(wrapper.inner, "refs/branches/b", NULL), 0);
	}
	assert_int_equal(won + lost + unknown, 100 * THREADS * MOVES_EACH);
	print_message("%u won, %u lost, %u not done\n", won, lost, unknown);
	assert_true(won > 0 && unknown > 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	        TEST(checks_names),
	        TEST(creates_moves_and_remembers),
	        TEST(bounds_what_is_told),
	        TEST(notices_who_was_faster),
	        TEST(tags_never_move),
	        TEST(deletes_and_restores),
	        TEST(deletion_races),
	        TEST(settles_moves),
	        TEST(settles_against_others),
	        TEST(claims_are_no_moves),
	        TEST(settles_creations),
	        TEST(renames),
	        TEST(lists_in_order),
	        TEST(list_stops_and_purges),
	        TEST(any_flipped_bit_is_damage),
	        TEST(sealed_nonsense_is_survived),
	        TEST(no_move_is_lost_or_made_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
