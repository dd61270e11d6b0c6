/* object: one suite for every backend, then what only a directory can do wrong. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/object.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static char root[64];
static char store_path[96];
static const char *s3_url; /* of a store to test, from LAKE_TEST_S3_URL */
static struct object_store *store;
static struct message message;

static struct object_store *open_local(bool create)
{
	struct object_store *opened = NULL;
	int r = object_store_open(store_path, create, &opened, &message);
	if (r < 0)
		fail_msg("%s: %s", store_path, message.text);
	return opened;
}

/* Everything of the test before is removed, so that one bucket serves all. */
static int gather(void *context, const struct object_info *info)
{
	struct buffer *keys = context;
	buffer_append(keys, info->key, strlen(info->key) + 1);
	return 0;
}

static int open_s3(void)
{
	CLEANUP(buffer_release) struct buffer names = {0};
	CLEANUP(free_pointer) char *url = NULL;
	CLEANUP(free_pointer) const char **keys = NULL;
	int r = object_store_open(s3_url, true, &store, &message);
	if (r == 0)
		r = object_store_probe(store, s3_url, &url, &message);
	if (r == 0)
		r = object_list(store, "", gather, &names, &message);
	size_t count = 0;
	keys = calloc(names.length + 1, sizeof(*keys));
	for (size_t at = 0; at < names.length; at += strlen(keys[count++]) + 1)
		keys[count] = (const char *)names.data + at;
	if (r == 0)
		r = object_remove_many(store, keys, count, &message);
	if (r < 0)
		print_error("%s: %s\n", s3_url, message.text);
	return r;
}

static bool is_s3(void **state)
{
	return strcmp(*state, "s3") == 0;
}

static int setup(void **state)
{
	if (is_s3(state)) {
		strcpy(root, "/tmp/test_object.none");
		return open_s3();
	}
	bool local = strcmp(*state, "local") == 0;
	strcpy(root, "/tmp/test_object.XXXXXX");
	if (mkdtemp(root) == NULL)
		return -1;
	snprintf(store_path, sizeof(store_path), "%s/deep/store", root);
	return object_store_open(local ? store_path : "memory:", true, &store, &message);
}

static int teardown(void **state)
{
	object_store_free(store);
	store = NULL;
	char command[128];
	snprintf(command, sizeof(command), "rm -rf '%s'", root);
	return system(command) == 0 ? 0 : -1;
}

static void put(const char *key, const char *text)
{
	int r = object_put(store, key, text, strlen(text), &message);
	if (r < 0)
		fail_msg("put %s: %s", key, message.text);
}

static void expect(const char *key, const char *text)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	int r = object_get(store, key, 0, UINT64_MAX, &got, NULL, &message);
	if (text == NULL) {
		assert_int_equal(r, -ERR_NOT_FOUND);
		assert_int_equal(got.length, 0);
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(got.length, strlen(text));
	if (got.length > 0)
		assert_memory_equal(got.data, text, got.length);
}

static struct etag etag_now(const char *key)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag;
	assert_int_equal(object_get(store, key, 0, UINT64_MAX, &got, &etag, &message), 0);
	assert_true(strlen(etag.text) > 0);
	return etag;
}

/* -- for every backend -- */

static void test_put_get(void **state)
{
	expect("a", NULL);
	put("a", "one");
	put("deep/er/b", "two");
	put("empty", "");
	expect("a", "one");
	expect("deep/er/b", "two");
	expect("empty", "");
	put("a", "replaced");
	expect("a", "replaced");
	expect("deep", NULL);
	expect("deep/er", NULL);
	expect("a/below", NULL);
	assert_int_equal(object_remove(store, "a", &message), 0);
	assert_int_equal(object_remove(store, "a", &message), 0);
	assert_int_equal(object_remove(store, "no/such", &message), 0);
	assert_int_equal(object_remove(store, "deep/er", &message), 0);
	expect("a", NULL);
	expect("deep/er/b", "two");
}

static void expect_range(const char *key, uint64_t offset, uint64_t length, const char *text)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag;
	for (int with_etag = 0; with_etag < 2; with_etag++) {
		buffer_clear(&got);
		buffer_append(&got, "before", 6);
		assert_int_equal(object_get(store, key, offset, length, &got,
		                            with_etag ? &etag : NULL, &message),
		                 0);
		assert_int_equal(got.length, 6 + strlen(text));
		assert_memory_equal(got.data, "before", 6);
		assert_memory_equal(got.data + 6, text, strlen(text));
	}
}

static void test_ranges(void **state)
{
	static const char *const keys[] = {"packs/x", "other"};
	for (int i = 0; i < 2; i++) {
		put(keys[i], "0123456789");
		expect_range(keys[i], 0, 10, "0123456789");
		expect_range(keys[i], 3, 4, "3456");
		expect_range(keys[i], 8, 100, "89");
		expect_range(keys[i], 10, 1, "");
		expect_range(keys[i], 11, UINT64_MAX, "");
		expect_range(keys[i], UINT64_MAX, UINT64_MAX, "");
		expect_range(keys[i], 4, 0, "");
		CLEANUP(buffer_release) struct buffer small = {.limit = 5};
		assert_int_equal(object_get(store, keys[i], 0, 10, &small, NULL, &message),
		                 -ERR_TOO_LARGE);
		assert_int_equal(small.length, 0);
	}
}

static void test_packs_replaced(void **state)
{
	put("packs/p", "old");
	expect("packs/p", "old");
	put("packs/p", "newer");
	expect("packs/p", "newer");
	struct etag etag = etag_now("packs/p");
	assert_int_equal(object_put_if_match(store, "packs/p", "x", 1, &etag, NULL, &message), 0);
	expect("packs/p", "x");
	assert_int_equal(object_remove(store, "packs/p", &message), 0);
	expect("packs/p", NULL);
	/* More than the open files kept. */
	char key[32];
	for (int round = 0; round < 2; round++)
		for (int i = 0; i < 200; i++) {
			snprintf(key, sizeof(key), "packs/%d", i);
			if (round == 0)
				put(key, key);
			expect(key, key);
		}
}

static void test_conditions(void **state)
{
	struct etag etag, other, fresh;
	assert_int_equal(object_put_if_absent(store, "refs/a", "1", 1, &etag, &message), 0);
	assert_int_equal(object_put_if_absent(store, "refs/a", "2", 1, &other, &message),
	                 -ERR_EXISTS);
	expect("refs/a", "1");
	fresh = etag_now("refs/a");
	assert_string_equal(fresh.text, etag.text);

	assert_int_equal(object_put_if_match(store, "refs/a", "2", 1, &etag, &other, &message), 0);
	assert_string_not_equal(etag.text, other.text);
	assert_int_equal(object_put_if_match(store, "refs/a", "3", 1, &etag, NULL, &message),
	                 -ERR_MOVED);
	expect("refs/a", "2");
	fresh = etag_now("refs/a");
	assert_string_equal(fresh.text, other.text);

	int gone = object_put_if_match(store, "refs/gone", "3", 1, &etag, NULL, &message);
	assert_true(gone == -ERR_NOT_FOUND || (is_s3(state) && gone == -ERR_MOVED));
	expect("refs/gone", NULL);
	assert_int_equal(object_remove(store, "refs/a", &message), 0);
	gone = object_put_if_match(store, "refs/a", "3", 1, &other, NULL, &message);
	assert_true(gone == -ERR_NOT_FOUND || (is_s3(state) && gone == -ERR_MOVED));
	assert_int_equal(object_put_if_absent(store, "refs/a", "4", 1, NULL, &message), 0);
	expect("refs/a", "4");
}

static void test_get_if_changed(void **state)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag, fresh = {"untouched"};
	buffer_append(&got, "before", 6);
	assert_int_equal(object_put_if_absent(store, "refs/a", "one", 3, &etag, &message), 0);
	assert_int_equal(object_get_if_changed(store, "refs/a", &etag, &got, &fresh, &message), 0);
	assert_int_equal(got.length, 6);
	assert_string_equal(fresh.text, "untouched");
	put("refs/a", "other");
	assert_int_equal(object_get_if_changed(store, "refs/a", &etag, &got, &fresh, &message), 1);
	assert_int_equal(got.length, 11);
	assert_memory_equal(got.data, "beforeother", 11);
	etag = etag_now("refs/a");
	assert_string_equal(fresh.text, etag.text);
	assert_int_equal(object_get_if_changed(store, "refs/b", &etag, &got, &fresh, &message),
	                 -ERR_NOT_FOUND);
	assert_int_equal(got.length, 11);
}

static void test_remove_many(void **state)
{
	static char names[1100][24];
	const char *keys[1100];
	for (int i = 0; i < 1100; i++) {
		snprintf(names[i], sizeof(names[i]), "packs/%d", i);
		keys[i] = names[i];
		if (i % 10 == 0)
			put(keys[i], "x");
	}
	put("packs/stays", "x");
	assert_int_equal(object_remove_many(store, keys, 1100, &message), 0);
	assert_int_equal(object_remove_many(store, keys, 0, &message), 0);
	expect("packs/0", NULL);
	expect("packs/1090", NULL);
	expect("packs/stays", "x");
	keys[1] = "../bad";
	assert_int_equal(object_remove_many(store, keys, 2, &message), -ERR_BAD_NAME);
}

static void test_probe(void **state)
{
	static const char url[] = "/some/where";
	CLEANUP(free_pointer) char *kept = NULL;
	assert_int_equal(object_store_probe(store, is_s3(state) ? s3_url : url, &kept, &message),
	                 0);
	if (!is_s3(state)) {
		assert_string_equal(kept, url);
		return;
	}
	/* What is kept opens the same store, whatever the environment says by then. */
	struct object_store *other = NULL;
	put("a", "here");
	const char *region = getenv("AWS_REGION");
	setenv("AWS_REGION", "elsewhere", 1);
	assert_int_equal(object_store_open(kept, false, &other, &message), 0);
	CLEANUP(buffer_release) struct buffer got = {0};
	assert_int_equal(object_get(other, "a", 0, UINT64_MAX, &got, NULL, &message), 0);
	assert_memory_equal(got.data, "here", 4);
	object_store_free(other);
	if (region != NULL)
		setenv("AWS_REGION", region, 1);
	else
		unsetenv("AWS_REGION");
}

/* Larger than a single put takes, and not a multiple of anything. */
static void test_large(void **state)
{
	size_t length = ((size_t)70 << 20) + 12345;
	uint8_t *bytes = malloc(length);
	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)(i * 2654435761u >> 13);
	if (object_put(store, "packs/large", bytes, length, &message) < 0)
		fail_msg("%s", message.text);
	CLEANUP(buffer_release) struct buffer got = {0};
	assert_int_equal(object_get(store, "packs/large", 0, UINT64_MAX, &got, NULL, &message), 0);
	assert_int_equal(got.length, length);
	assert_memory_equal(got.data, bytes, length);
	buffer_clear(&got);
	size_t offset = ((size_t)32 << 20) - 100;
	assert_int_equal(object_get(store, "packs/large", offset, 300, &got, NULL, &message), 0);
	assert_int_equal(got.length, 300);
	assert_memory_equal(got.data, bytes + offset, 300);
	free(bytes);
	assert_int_equal(object_remove(store, "packs/large", &message), 0);
}

static void test_bad_keys(void **state)
{
	char long_key[OBJECT_KEY_MAX + 2], long_name[OBJECT_COMPONENT_MAX + 2];
	memset(long_name, 'n', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = '\0';
	for (size_t i = 0; i < sizeof(long_key) - 1; i++)
		long_key[i] = i % 100 == 99 ? '/' : 'k';
	long_key[sizeof(long_key) - 1] = '\0';
	const char *const bad[] = {"",     "/",   "/a",     "a/",     "a//b", ".",
	                           "..",   "a/.", "../a",   "a/../b", "a b",  "caf\xc3\xa9",
	                           "a\nb", "a~",  long_key, long_name};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		CLEANUP(buffer_release) struct buffer got = {0};
		struct etag etag = {"x"};
		assert_int_equal(object_put(store, bad[i], "x", 1, &message), -ERR_BAD_NAME);
		assert_int_equal(object_get(store, bad[i], 0, 1, &got, NULL, NULL), -ERR_BAD_NAME);
		assert_int_equal(object_put_if_absent(store, bad[i], "x", 1, NULL, NULL),
		                 -ERR_BAD_NAME);
		assert_int_equal(object_put_if_match(store, bad[i], "x", 1, &etag, NULL, NULL),
		                 -ERR_BAD_NAME);
		assert_int_equal(object_remove(store, bad[i], NULL), -ERR_BAD_NAME);
	}
	long_key[OBJECT_KEY_MAX] = '\0';
	long_key[OBJECT_KEY_MAX - 1] = 'e';
	long_name[OBJECT_COMPONENT_MAX] = '\0';
	put(long_key, "long");
	put(long_name, "long");
	put("..a/.b/c..", "dots");
	expect(long_key, "long");
	expect("..a/.b/c..", "dots");
	if (is_s3(state))
		return;
	/* A key that is a directory of another. */
	put("d/e", "x");
	assert_int_equal(object_put(store, "d", "x", 1, &message), -ERR_BAD_NAME);
	assert_int_equal(object_put_if_absent(store, "d", "x", 1, NULL, &message), -ERR_BAD_NAME);
	assert_int_equal(object_put(store, "d/e/f", "x", 1, &message), -ERR_BAD_NAME);
	assert_int_equal(object_put_if_absent(store, "d/e/f/g", "x", 1, NULL, &message),
	                 -ERR_BAD_NAME);
	expect("d/e", "x");
}

struct keys {
	char text[4096];
	unsigned count;
	unsigned stop_at;
	bool remove;
};

static int collect(void *context, const struct object_info *info)
{
	struct keys *keys = context;
	assert_true(info->modified_ms > 1600000000000);
	strcat(strcat(keys->text, info->key), " ");
	if (strncmp(info->key, "refs/", 5) == 0) {
		struct etag etag = etag_now(info->key);
		assert_string_equal(info->etag.text, etag.text);
		assert_int_equal(info->size, strlen(info->key));
	}
	if (keys->remove)
		assert_int_equal(object_remove(store, info->key, NULL), 0);
	return ++keys->count == keys->stop_at ? 77 : 0;
}

static void expect_list(const char *prefix, const char *expected)
{
	struct keys keys = {0};
	assert_int_equal(object_list(store, prefix, collect, &keys, &message), 0);
	assert_string_equal(keys.text, expected);
}

static void test_list(void **state)
{
	expect_list("", "");
	expect_list("no/such", "");
	/* '-' and '.' sort before '/', digits and letters after it. */
	static const char *const names[] = {"a/b",      "a.b",     "a-b",      "a0",
	                                    "a/b.c",    "a/c/d",   "refs/h/x", "refs/h/y",
	                                    "refs/t/x", "refs/ha", "B",        "z"};
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		put(names[i], names[i]);
	expect_list("", "B a-b a.b a/b a/b.c a/c/d a0 refs/h/x refs/h/y refs/ha refs/t/x z ");
	expect_list("a", "a-b a.b a/b a/b.c a/c/d a0 ");
	expect_list("a/", "a/b a/b.c a/c/d ");
	expect_list("a/b", "a/b a/b.c ");
	expect_list("a/b/", "");
	expect_list("a/c/d", "a/c/d ");
	expect_list("refs/h", "refs/h/x refs/h/y refs/ha ");
	expect_list("refs/h/", "refs/h/x refs/h/y ");
	expect_list("refs/h/y", "refs/h/y ");
	expect_list("q", "");
	assert_int_equal(object_list(store, "a//", collect, NULL, &message), -ERR_BAD_NAME);
	assert_int_equal(object_list(store, "../", collect, NULL, &message), -ERR_BAD_NAME);
	struct keys some = {.stop_at = 3};
	assert_int_equal(object_list(store, "", collect, &some, &message), 77);
	assert_int_equal(some.count, 3);
	struct keys removing = {.remove = true};
	assert_int_equal(object_list(store, "a", collect, &removing, &message), 0);
	assert_int_equal(removing.count, 6);
	expect_list("a", "");
	expect_list("refs/t", "refs/t/x ");
}

static int count_key(void *context, const struct object_info *info)
{
	struct keys *keys = context;
	assert_true(strcmp(keys->text, info->key) < 0);
	strcpy(keys->text, info->key);
	keys->count++;
	return 0;
}

static void test_list_many(void **state)
{
	char key[64];
	for (unsigned i = 0; i < 3000; i++) {
		snprintf(key, sizeof(key), "packs/%08x", i * 2654435761u);
		put(key, "x");
	}
	struct keys keys = {0};
	assert_int_equal(object_list(store, "packs/", count_key, &keys, &message), 0);
	assert_int_equal(keys.count, 3000);
}

/* Threads add up one number by compare-and-swap, and create keys once only. Each body holds the
 * nonces of all moves so far: an answer that leaves it open is settled by reading back, as refs do.
 */
struct racer {
	unsigned wins;
	unsigned created;
	unsigned number;
	unsigned doubts;
	struct object_store *store;
};
#define RACERS 4
#define RACE_ROUNDS 60
#define NONCE_MAX 24

static bool body_has(struct object_store *raced, const char *key, const char *nonce)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	if (object_get(raced, key, 0, UINT64_MAX, &got, NULL, NULL) < 0)
		return false;
	buffer_u8(&got, 0);
	return strstr((const char *)got.data, nonce) != NULL;
}

/* One move: 1 done, 0 lost, negative: failed. */
static int race_move(struct racer *racer, unsigned round)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag;
	char nonce[NONCE_MAX], number[16];
	int r = object_get(racer->store, "refs/n", 0, UINT64_MAX, &got, &etag, NULL);
	if (r < 0)
		return r;
	buffer_u8(&got, 0);
	snprintf(nonce, sizeof(nonce), "<%u.%u>", racer->number, round);
	int length = snprintf(number, sizeof(number), "%5d", atoi((const char *)got.data) + 1);
	memcpy(got.data, number, (size_t)length);
	got.length--;
	buffer_append(&got, nonce, strlen(nonce));
	r = object_put_if_match(racer->store, "refs/n", got.data, got.length, &etag, NULL, NULL);
	if (r == -ERR_STORE_AWAY) {
		racer->doubts++;
		return body_has(racer->store, "refs/n", nonce);
	}
	return r == 0 ? 1 : r == -ERR_MOVED ? 0 : r;
}

static void *race(void *argument)
{
	struct racer *racer = argument;
	for (unsigned i = 0; i < RACE_ROUNDS; i++) {
		char key[32], nonce[NONCE_MAX];
		int r;
		while ((r = race_move(racer, i)) == 0)
			;
		racer->wins += r > 0;
		snprintf(key, sizeof(key), "once/%u", i);
		snprintf(nonce, sizeof(nonce), "<%u>", racer->number);
		r = object_put_if_absent(racer->store, key, nonce, strlen(nonce), NULL, NULL);
		if (r == 0 || (r == -ERR_STORE_AWAY && body_has(racer->store, key, nonce)))
			racer->created++;
	}
	return NULL;
}

static void expect_number(int wanted)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	assert_int_equal(object_get(store, "refs/n", 0, UINT64_MAX, &got, NULL, &message), 0);
	buffer_u8(&got, 0);
	assert_int_equal(atoi((const char *)got.data), wanted);
}

static void test_races(void **state)
{
	put("refs/n", "    0");
	struct racer racers[RACERS] = {0};
	pthread_t threads[RACERS];
	for (int i = 0; i < RACERS; i++) {
		racers[i].store = store;
		racers[i].number = (unsigned)i;
		assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
	}
	unsigned created = 0;
	for (int i = 0; i < RACERS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(racers[i].wins, RACE_ROUNDS);
		created += racers[i].created;
	}
	assert_int_equal(created, RACE_ROUNDS);
	expect_number(RACERS * RACE_ROUNDS);
}

/* A reader beside a writer sees one content whole or the other. */
static void *replace_often(void *argument)
{
	static uint8_t bytes[100000];
	for (int i = 0; i < 150; i++) {
		memset(bytes, 'a' + i % 26, sizeof(bytes));
		if (object_put(store, argument, bytes, sizeof(bytes) - (size_t)i, NULL) < 0)
			return (void *)1;
	}
	return NULL;
}

static void test_whole(void **state)
{
	static const char *const keys[] = {"refs/whole", "packs/whole"};
	for (int k = 0; k < 2; k++) {
		put(keys[k], "a");
		pthread_t thread;
		assert_int_equal(pthread_create(&thread, NULL, replace_often, (void *)keys[k]), 0);
		size_t length = 0;
		while (length != 100000 - 149) {
			CLEANUP(buffer_release) struct buffer got = {0};
			assert_int_equal(
			        object_get(store, keys[k], 0, UINT64_MAX, &got, NULL, &message), 0);
			length = got.length;
			for (size_t i = 1; i < length; i++)
				if (got.data[i] != got.data[0])
					fail_msg("mixed at %zu", i);
		}
		void *result;
		pthread_join(thread, &result);
		assert_null(result);
	}
}

static void test_open_urls(void **state)
{
	struct object_store *other = NULL;
	assert_int_equal(object_store_open("gopher://x", true, &other, &message), -ERR_UNSUPPORTED);
	assert_int_equal(object_store_open("s3://", true, &other, &message), -ERR_INVALID);
	assert_int_equal(object_store_open("s3://b/x?colour=red", true, &other, &message),
	                 -ERR_INVALID);
	assert_int_equal(object_store_open("relative", true, &other, &message), -ERR_UNSUPPORTED);
	assert_int_equal(object_store_open("file://host/x", true, &other, &message), -ERR_INVALID);
	assert_null(other);
	object_store_free(NULL);
}

/* -- a directory -- */

static unsigned files_in(const char *name)
{
	char command[256];
	snprintf(command, sizeof(command), "find '%s/%s' -type f | wc -l", store_path, name);
	FILE *pipe = popen(command, "r");
	unsigned count = 999;
	assert_int_equal(fscanf(pipe, "%u", &count), 1);
	pclose(pipe);
	return count;
}

static void test_local_opening(void **state)
{
	struct object_store *other = NULL;
	char path[128], url[160];
	snprintf(path, sizeof(path), "%s/none", root);
	assert_int_equal(object_local_open(path, false, &other, &message), -ERR_NOT_FOUND);
	assert_non_null(strstr(message.text, path));
	assert_int_equal(access(path, F_OK), -1);
	/* An existing directory that is no store, then one with other things in it. */
	assert_int_equal(mkdir(path, 0777), 0);
	assert_int_equal(object_local_open(path, false, &other, &message), -ERR_NOT_FOUND);
	strcat(path, "/file");
	assert_int_equal(write_file_durably(AT_FDCWD, path, "x", 1), 0);
	assert_int_equal(object_local_open(path, true, &other, &message), -ERR_NOT_DIRECTORY);
	assert_int_equal(object_local_open(path, false, &other, &message), -ERR_NOT_DIRECTORY);
	*strrchr(path, '/') = '\0';
	assert_int_equal(object_local_open(path, true, &other, &message), -ERR_NOT_EMPTY);
	/* A second opening, creating or not, finds the same store. */
	put("a", "1");
	snprintf(url, sizeof(url), "file://%s//", store_path);
	for (int create = 0; create < 2; create++) {
		assert_int_equal(object_store_open(url, create, &other, &message), 0);
		CLEANUP(buffer_release) struct buffer got = {0};
		assert_int_equal(object_get(other, "a", 0, 1, &got, NULL, &message), 0);
		uint64_t free_bytes = 0, total_bytes = 0;
		assert_int_equal(object_space(other, &free_bytes, &total_bytes), 0);
		assert_true(total_bytes > 0 && free_bytes <= total_bytes);
		object_store_free(other);
	}
	snprintf(path, sizeof(path), "%s/~store", store_path);
	assert_int_equal(write_file_durably(AT_FDCWD, path, "lake object store 9\n", 20), 0);
	other = NULL;
	assert_int_equal(object_local_open(store_path, true, &other, &message), -ERR_VERSION);
	assert_null(other);
}

static void expect_away(void)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag = {"x"};
	struct keys keys = {0};
	uint64_t bytes;
	message.text[0] = '\0';
	assert_int_equal(object_get(store, "refs/a", 0, 1, &got, NULL, &message), -ERR_STORE_AWAY);
	assert_non_null(strstr(message.text, store_path));
	assert_int_equal(object_get(store, "packs/new", 0, 1, &got, NULL, NULL), -ERR_STORE_AWAY);
	assert_int_equal(object_get(store, "none", 0, 1, &got, &etag, NULL), -ERR_STORE_AWAY);
	assert_int_equal(object_put(store, "refs/a", "x", 1, NULL), -ERR_STORE_AWAY);
	assert_int_equal(object_put_if_absent(store, "b/c", "x", 1, NULL, NULL), -ERR_STORE_AWAY);
	assert_int_equal(object_put_if_match(store, "refs/a", "x", 1, &etag, NULL, NULL),
	                 -ERR_STORE_AWAY);
	assert_int_equal(object_list(store, "refs/", collect, &keys, NULL), -ERR_STORE_AWAY);
	assert_int_equal(object_list(store, "", collect, &keys, NULL), -ERR_STORE_AWAY);
	assert_int_equal(object_remove(store, "refs/a", NULL), -ERR_STORE_AWAY);
	int space = object_space(store, &bytes, &bytes);
	assert_true(space == -ERR_STORE_AWAY || space == 0);
	assert_int_equal(keys.count, 0);
}

static void run(const char *format, ...)
{
	char command[512];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	assert_int_equal(system(command), 0);
}

static void test_local_away(void **state)
{
	put("refs/a", "refs/a");
	put("packs/p", "pack");
	/* Moved away, and back. */
	run("mv '%s' '%s/aside'", store_path, root);
	expect_away();
	assert_int_equal(access(store_path, F_OK), -1);
	/* An empty directory in its place: an unmounted disk. Nothing may be written there. */
	assert_int_equal(mkdir(store_path, 0777), 0);
	expect_away();
	assert_int_equal(files_in(""), 0);
	/* Another store in its place. */
	run("rmdir '%s'", store_path);
	struct object_store *other = open_local(true);
	expect_away();
	object_store_free(other);
	run("rm -r '%s' && mv '%s/aside' '%s'", store_path, root, store_path);
	expect("refs/a", "refs/a");
	expect_list("refs/", "refs/a ");
	put("refs/b", "refs/b");
	/* Emptied in place: the same inode. */
	run("mkdir '%s/aside' && mv '%s'/* '%s/aside/'", root, store_path, root);
	expect_away();
	assert_int_equal(files_in(""), 0);
	run("mv '%s/aside'/* '%s/'", root, store_path);
	expect_list("refs/", "refs/a refs/b ");
	expect("packs/p", "pack");
}

static void test_local_tidied(void **state)
{
	put("a/b/c", "1");
	run("cd '%s' && rm -r ./~tmp ./~locks a", store_path);
	put("a/b/c", "2");
	expect("a/b/c", "2");
	struct etag etag = etag_now("a/b/c");
	run("cd '%s' && rm -r ./~tmp ./~locks", store_path);
	assert_int_equal(object_put_if_match(store, "a/b/c", "3", 1, &etag, NULL, &message), 0);
	expect("a/b/c", "3");
	run("cd '%s' && echo foreign > 'a/b/not~ours' && mkdir 'a/x y' && ln -s /none a/dangling",
	    store_path);
	/* A link is not followed, but not passed over either: whoever reads it is told. */
	expect_list("a", "a/b/c a/dangling ");
	struct buffer bytes = {0};
	assert_int_equal(object_get(store, "a/dangling", 0, UINT64_MAX, &bytes, NULL, &message),
	                 -ERR_CORRUPT);
	assert_non_null(strstr(message.text, "symbolic link"));
}

static void test_local_temporaries(void **state)
{
	put("a", "1");
	assert_int_equal(object_put_if_absent(store, "a", "2", 1, NULL, NULL), -ERR_EXISTS);
	struct etag etag = {"00"};
	assert_int_equal(object_put_if_match(store, "a", "2", 1, &etag, NULL, NULL), -ERR_MOVED);
	assert_int_equal(object_put(store, "a/b", "2", 1, NULL), -ERR_BAD_NAME);
	assert_int_equal(files_in("~tmp"), 0);
	run("touch '%s/~tmp/young' && touch -d '3 hours ago' '%s/~tmp/old'", store_path,
	    store_path);
	object_store_free(store);
	store = open_local(false);
	assert_int_equal(files_in("~tmp"), 1);
}

/* Processes, not threads: the lock and link must hold between them. */
static void test_local_processes(void **state)
{
	put("refs/n", "    0");
	pid_t children[3];
	for (int i = 0; i < 3; i++) {
		children[i] = fork();
		if (children[i] == 0) {
			struct racer racer = {.store = open_local(false), .number = (unsigned)i};
			race(&racer);
			object_store_free(racer.store);
			_exit(racer.wins == RACE_ROUNDS ? (int)racer.created : 255);
		}
	}
	int created = 0;
	for (int i = 0; i < 3; i++) {
		int status;
		waitpid(children[i], &status, 0);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 255);
		created += WEXITSTATUS(status);
	}
	assert_int_equal(created, RACE_ROUNDS);
	expect_number(3 * RACE_ROUNDS);
	assert_int_equal(files_in("~tmp"), 0);
}

/* kill -9 in the midst of puts: every object is old or new, and whole. */
static void test_local_killed(void **state)
{
	static char bytes[50000];
	for (int round = 0; round < 5; round++) {
		pid_t child = fork();
		if (child == 0)
			for (unsigned i = 0;; i++) {
				memset(bytes, 'a' + (int)(i % 26), sizeof(bytes));
				if (object_put(store, "refs/x", bytes, sizeof(bytes), NULL) < 0)
					_exit(1);
			}
		usleep(20000);
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		CLEANUP(buffer_release) struct buffer got = {0};
		int r = object_get(store, "refs/x", 0, UINT64_MAX, &got, NULL, &message);
		assert_true(r == 0 || (round == 0 && r == -ERR_NOT_FOUND));
		assert_int_equal(got.length, r == 0 ? sizeof(bytes) : 0);
		for (size_t i = 1; i < got.length; i++)
			assert_int_equal(got.data[i], got.data[0]);
		put("refs/x", "free again"); /* the dead one's lock is gone */
		memset(bytes, 'z', sizeof(bytes));
		assert_int_equal(object_put(store, "refs/x", bytes, sizeof(bytes), NULL), 0);
	}
}

static int fill_the_disk(void)
{
	if (unshare(CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER)) < 0 ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", root, "tmpfs", 0, "size=1m") < 0)
		return 2;
	store = open_local(true);
	static char big[700000], small[100000];
	struct etag etag;
	put("refs/a", "kept");
	if (object_put(store, "packs/1", big, sizeof(big), NULL) != 0)
		return 3;
	if (object_put(store, "packs/2", big, sizeof(big), &message) != -ERR_NO_SPACE ||
	    strstr(message.text, "full") == NULL)
		return 4;
	etag = etag_now("refs/a");
	if (object_put_if_match(store, "refs/a", big, sizeof(big), &etag, NULL, NULL) !=
	    -ERR_NO_SPACE)
		return 5;
	if (object_put_if_absent(store, "refs/b", big, sizeof(big), NULL, NULL) != -ERR_NO_SPACE)
		return 6;
	if (files_in("~tmp") != 0)
		return 7;
	expect("refs/a", "kept");
	expect("refs/b", NULL);
	expect("packs/2", NULL);
	/* What a failure took was given back. */
	return object_put(store, "packs/3", small, sizeof(small), NULL) == 0 ? 0 : 8;
}

static void test_local_full(void **state)
{
	pid_t child = fork();
	if (child == 0)
		_exit(fill_the_disk());
	int status;
	waitpid(child, &status, 0);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 2) {
		print_message("no private mount here\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* -- every system call that writes fails once, in turn -- */

static _Atomic int fault_countdown = -1; /* 0: the next one fails; below: none does */
static int fault_errno;

/* These take the place of libc's, for our code and for libraries. */
static bool fault_now(void)
{
	if (fault_countdown < 0 || fault_countdown-- > 0)
		return false;
	errno = fault_errno;
	return true;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset)
{
	if (!fault_now())
		return syscall(SYS_pwrite64, fd, bytes, length > 3 ? 3 : length, offset);
	return -1;
}

int fsync(int fd)
{
	return fault_now() ? -1 : (int)syscall(SYS_fsync, fd);
}

int rename(const char *from, const char *to)
{
	return fault_now() ? -1 : (int)syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
}

int link(const char *from, const char *to)
{
	return fault_now() ? -1 : (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int mkdir(const char *path, mode_t mode)
{
	return fault_now() ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

int flock(int fd, int operation)
{
	return fault_now() ? -1 : (int)syscall(SYS_flock, fd, operation);
}

enum { CALL_PUT, CALL_ABSENT, CALL_MATCH, CALL_COUNT };

static int call(int kind, const char *key, const char *text, const struct etag *etag)
{
	size_t length = strlen(text);
	if (kind == CALL_PUT)
		return object_put(store, key, text, length, &message);
	if (kind == CALL_ABSENT)
		return object_put_if_absent(store, key, text, length, NULL, &message);
	return object_put_if_match(store, key, text, length, etag, NULL, &message);
}

/* The key is in a new directory each time, but for CALL_MATCH, which needs an object. */
static bool fail_call_number(int kind, int which)
{
	char key[64];
	struct etag etag = {""};
	snprintf(key, sizeof(key), "k%d/%d-%d/x", kind, fault_errno, which);
	if (kind == CALL_MATCH) {
		put(key, "old text");
		etag = etag_now(key);
	}
	fault_countdown = which;
	int r = call(kind, key, "new text", &etag);
	bool fired = fault_countdown < 0;
	fault_countdown = -1;
	assert_true(fired ? r < 0 : r == 0);
	if (fired)
		assert_true(fault_errno == ENOSPC ? r == -ERR_NO_SPACE : r == -ERR_STORE_AWAY);
	CLEANUP(buffer_release) struct buffer got = {0};
	int found = object_get(store, key, 0, UINT64_MAX, &got, NULL, &message);
	/* Old or new, and whole; a failed fsync leaves it open which. */
	if (found == -ERR_NOT_FOUND)
		assert_true(fired && kind != CALL_MATCH);
	else
		assert_true(found == 0 && got.length == 8 &&
		            (memcmp(got.data, "new text", 8) == 0 ||
		             (fired && memcmp(got.data, "old text", 8) == 0)));
	assert_int_equal(files_in("~tmp"), 0);
	put(key, "again");
	expect(key, "again");
	return fired;
}

static void test_local_every_call_fails(void **state)
{
	for (int kind = 0; kind < CALL_COUNT; kind++)
		for (int e = 0; e < 2; e++) {
			fault_errno = e == 0 ? EIO : ENOSPC;
			int which = 0;
			while (fail_call_number(kind, which))
				which++;
			assert_true(which >= 5);
		}
}

#define ON(test, backend) \
	{ \
#test "[" backend "]", test, setup, teardown, (void *)backend \
	}
#define BOTH(test) ON(test, "memory"), ON(test, "local")

/* The contract's suite alone, on the store that LAKE_TEST_S3_URL names: all below its prefix is
 * removed. */
static int run_s3(void)
{
	const struct CMUnitTest tests[] = {
	        ON(test_put_get, "s3"),        ON(test_ranges, "s3"),
	        ON(test_packs_replaced, "s3"), ON(test_conditions, "s3"),
	        ON(test_bad_keys, "s3"),       ON(test_list, "s3"),
	        ON(test_list_many, "s3"),      ON(test_races, "s3"),
	        ON(test_whole, "s3"),          ON(test_get_if_changed, "s3"),
	        ON(test_remove_many, "s3"),    ON(test_probe, "s3"),
	        ON(test_large, "s3"),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(void)
{
	s3_url = getenv("LAKE_TEST_S3_URL");
	if (s3_url != NULL)
		return run_s3();
	const struct CMUnitTest tests[] = {
	        BOTH(test_put_get),
	        BOTH(test_ranges),
	        BOTH(test_packs_replaced),
	        BOTH(test_conditions),
	        BOTH(test_bad_keys),
	        BOTH(test_list),
	        BOTH(test_list_many),
	        BOTH(test_races),
	        BOTH(test_whole),
	        BOTH(test_get_if_changed),
	        BOTH(test_remove_many),
	        BOTH(test_probe),
	        BOTH(test_open_urls),
	        ON(test_local_opening, "local"),
	        ON(test_local_away, "local"),
	        ON(test_local_tidied, "local"),
	        ON(test_local_temporaries, "local"),
	        ON(test_local_processes, "local"),
	        ON(test_local_killed, "local"),
	        ON(test_local_full, "local"),
	        ON(test_local_every_call_fails, "local"),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
