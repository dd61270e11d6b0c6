/* kv: transactions, cursors, growth, disk full, damage, loseable tables. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/kv.h"
#include "store/kv_check.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static const char *const table_names[] = {"one", "two", "three"};
static const struct kv_options durable = {.tables = table_names, .table_count = 3};
static const struct kv_options loseable = {
        .tables = table_names, .table_count = 3, .loseable = true};

static char root[64];

static void remove_tree(const char *path)
{
	char command[256];
	snprintf(command, sizeof(command), "rm -rf '%s'", path);
	if (system(command) != 0)
		fprintf(stderr, "cannot remove %s\n", path);
}

static int make_root(void **state)
{
	strcpy(root, "/tmp/test_kv.XXXXXX");
	return mkdtemp(root) == NULL ? -1 : 0;
}

static int remove_root(void **state)
{
	remove_tree(root);
	return 0;
}

static const char *path_in(const char *name)
{
	static char path[128];
	snprintf(path, sizeof(path), "%s/%s", root, name);
	return path;
}

static struct kv *open_kv(const struct kv_options *options)
{
	struct kv *kv = NULL;
	struct message message = {""};
	int r = kv_open(path_in("kv"), options, &kv, &message);
	if (r < 0)
		fail_msg("kv_open: %s: %s", error_text(r), message.text);
	return kv;
}

static struct kv_txn *begin(struct kv *kv, bool write)
{
	struct kv_txn *txn = NULL;
	assert_int_equal(kv_begin(kv, write, &txn), 0);
	return txn;
}

static void put_text(struct kv_txn *txn, unsigned table, const char *key, const char *value)
{
	assert_int_equal(kv_put(txn, table, key, strlen(key), value, strlen(value)), 0);
}

static void expect_text(struct kv_txn *txn, unsigned table, const char *key, const char *value)
{
	struct span got;
	int r = kv_get(txn, table, key, strlen(key), &got);
	if (value == NULL) {
		assert_int_equal(r, -ERR_NOT_FOUND);
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(got.length, strlen(value));
	assert_memory_equal(got.data, value, got.length);
}

static void expect_next(struct kv_cursor *cursor, const char *key)
{
	struct span found, value;
	int r = kv_next(cursor, &found, &value);
	if (key == NULL) {
		assert_int_equal(r, -ERR_NOT_FOUND);
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(found.length, strlen(key));
	assert_memory_equal(found.data, key, found.length);
}

static void test_basic(void **state)
{
	struct kv *kv = open_kv(&durable);
	struct kv_txn *txn = begin(kv, true);
	put_text(txn, 0, "a", "1");
	put_text(txn, 1, "a", "2");
	put_text(txn, 0, "b", "");
	expect_text(txn, 0, "a", "1");
	expect_text(txn, 2, "a", NULL);
	assert_int_equal(kv_delete(txn, 0, "zz", 2), -ERR_NOT_FOUND);
	assert_int_equal(kv_put(txn, 0, "", 0, "x", 1), -ERR_INVALID);
	char long_key[KV_KEY_MAX + 1] = {1};
	assert_int_equal(kv_put(txn, 0, long_key, KV_KEY_MAX + 1, "x", 1), -ERR_INVALID);
	assert_int_equal(kv_put(txn, 0, long_key, KV_KEY_MAX, "x", 1), 0);
	assert_int_equal(kv_commit(txn), 0);

	txn = begin(kv, true);
	put_text(txn, 0, "a", "never");
	kv_abort(txn);
	kv_close(kv);

	kv = open_kv(&durable);
	txn = begin(kv, false);
	expect_text(txn, 0, "a", "1");
	expect_text(txn, 0, "b", "");
	expect_text(txn, 1, "a", "2");
	uint64_t count;
	assert_int_equal(kv_count(txn, 0, &count), 0);
	assert_int_equal(count, 3);
	kv_abort(txn);

	txn = begin(kv, true);
	assert_int_equal(kv_clear(txn, 0), 0);
	assert_int_equal(kv_delete(txn, 1, "a", 1), 0);
	assert_int_equal(kv_commit(txn), 0);
	txn = begin(kv, false);
	expect_text(txn, 0, "a", NULL);
	expect_text(txn, 1, "a", NULL);
	assert_int_equal(kv_commit(txn), 0);
	kv_close(kv);
	kv_close(NULL);
	kv_abort(NULL);
	kv_cursor_free(NULL);
}

static void test_cursor(void **state)
{
	struct kv *kv = open_kv(&durable);
	struct kv_txn *txn = begin(kv, true);
	struct kv_cursor *cursor;
	assert_int_equal(kv_seek(txn, 0, NULL, 0, &cursor), 0);
	expect_next(cursor, NULL);
	put_text(txn, 0, "b", "1");
	put_text(txn, 0, "d", "1");
	put_text(txn, 0, "f", "1");
	expect_next(cursor, "b");
	/* What was yielded goes away; what comes next is new. */
	assert_int_equal(kv_delete(txn, 0, "b", 1), 0);
	put_text(txn, 0, "a", "1");
	put_text(txn, 0, "c", "1");
	expect_next(cursor, "c");
	put_text(txn, 0, "c", "other");
	expect_next(cursor, "d");
	assert_int_equal(kv_delete(txn, 0, "f", 1), 0);
	expect_next(cursor, NULL);
	put_text(txn, 0, "g", "1");
	expect_next(cursor, "g");
	expect_next(cursor, NULL);
	assert_int_equal(kv_clear(txn, 0), 0);
	put_text(txn, 0, "h", "1");
	expect_next(cursor, "h");
	kv_cursor_free(cursor);

	assert_int_equal(kv_seek(txn, 0, "c", 1, &cursor), 0);
	expect_next(cursor, "h");
	kv_cursor_free(cursor);
	assert_int_equal(kv_seek(txn, 0, "h", 1, &cursor), 0);
	expect_next(cursor, "h");
	kv_cursor_free(cursor);
	assert_int_equal(kv_seek(txn, 0, "i", 1, &cursor), 0);
	expect_next(cursor, NULL);
	kv_cursor_free(cursor);
	assert_int_equal(kv_commit(txn), 0);
	kv_close(kv);
}

/* Deleting while iterating, over many pages: every key is met once. */
static void test_cursor_deletes(void **state)
{
	struct kv *kv = open_kv(&loseable);
	struct kv_txn *txn = begin(kv, true);
	enum { COUNT = 20000 };
	for (uint64_t i = 0; i < COUNT; i++) {
		uint8_t key[8];
		store_u64_be(key, i);
		assert_int_equal(kv_put(txn, 1, key, 8, key, 8), 0);
	}
	struct kv_cursor *cursor;
	assert_int_equal(kv_seek(txn, 1, NULL, 0, &cursor), 0);
	struct span key, value;
	uint64_t met = 0;
	while (kv_next(cursor, &key, &value) == 0) {
		uint8_t copy[8];
		assert_int_equal(load_u64_be(key.data), met);
		memcpy(copy, key.data, 8);
		met++;
		if (met % 3 != 0)
			assert_int_equal(kv_delete(txn, 1, copy, 8), 0);
	}
	kv_cursor_free(cursor);
	assert_int_equal(met, COUNT);
	uint64_t count;
	assert_int_equal(kv_count(txn, 1, &count), 0);
	assert_int_equal(count, COUNT / 3);
	assert_int_equal(kv_commit(txn), 0);
	kv_close(kv);
}

/* -- threads -- */

static void *commit_elsewhere(void *argument)
{
	struct kv_txn *txn = argument;
	put_text(txn, 0, "elsewhere", "2");
	return (void *)(intptr_t)kv_commit(txn);
}

static void test_hand_over(void **state)
{
	struct kv *kv = open_kv(&durable);
	for (int round = 0; round < 20; round++) {
		struct kv_txn *txn = begin(kv, true);
		put_text(txn, 0, "here", "1");
		pthread_t thread;
		assert_int_equal(pthread_create(&thread, NULL, commit_elsewhere, txn), 0);
		void *result;
		pthread_join(thread, &result);
		assert_int_equal((intptr_t)result, 0);
		txn = begin(kv, false);
		expect_text(txn, 0, "here", "1");
		expect_text(txn, 0, "elsewhere", "2");
		kv_abort(txn);
		txn = begin(kv, true);
		assert_int_equal(kv_delete(txn, 0, "elsewhere", 9), 0);
		assert_int_equal(kv_commit(txn), 0);
	}
	kv_close(kv);
}

struct crowd {
	struct kv *kv;
	_Atomic bool stop;
	_Atomic int failures;
	_Atomic unsigned reads;
};

/* Table 0 always holds 64 equal numbers; a reader must never see two different ones. */
static void *read_crowd(void *argument)
{
	struct crowd *crowd = argument;
	while (!crowd->stop) {
		struct kv_txn *txn;
		if (kv_begin(crowd->kv, false, &txn) < 0) {
			crowd->failures++;
			break;
		}
		uint64_t first = 0;
		for (uint8_t i = 0; i < 64; i++) {
			struct span value;
			int r = kv_get(txn, 0, &i, 1, &value);
			uint64_t number = r == 0 ? load_u64(value.data) : 0;
			if (r != 0 || value.length != 3000 || (i > 0 && number != first))
				crowd->failures++;
			first = number;
			if (i % 16 == 0)
				sched_yield();
		}
		kv_abort(txn);
		crowd->reads++;
	}
	return NULL;
}

static void write_crowd(struct kv *kv, uint64_t number)
{
	uint8_t value[3000] = {0};
	store_u64(value, number);
	struct kv_txn *txn = begin(kv, true);
	for (uint8_t i = 0; i < 64; i++)
		assert_int_equal(kv_put(txn, 0, &i, 1, value, sizeof(value)), 0);
	/* Growth too: the map starts at 1 MiB. */
	uint8_t key[8];
	store_u64_be(key, number);
	assert_int_equal(kv_put(txn, 1, key, 8, value, sizeof(value)), 0);
	assert_int_equal(kv_commit(txn), 0);
}

static void test_readers_and_growth(void **state)
{
	struct kv_options options = loseable;
	options.map_bytes_initial = 1 << 20;
	struct crowd crowd = {.kv = open_kv(&options)};
	write_crowd(crowd.kv, 1);
	pthread_t threads[3];
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_crowd, &crowd), 0);
	for (uint64_t i = 2; i < 1500; i++)
		write_crowd(crowd.kv, i);
	crowd.stop = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(crowd.failures, 0);
	assert_true(crowd.reads > 10);
	struct kv_stats stats;
	assert_int_equal(kv_stats(crowd.kv, &stats), 0);
	assert_true(stats.map_bytes >= 8 << 20);
	assert_true(stats.used_bytes < stats.map_bytes);
	kv_close(crowd.kv);
}

/* A transaction larger than the map fails whole; the next one finds room. */
static void test_too_large(void **state)
{
	struct kv_options options = loseable;
	options.map_bytes_initial = 1 << 20;
	struct kv *kv = open_kv(&options);
	CLEANUP(free_pointer) char *big = calloc(1, 3 << 20);
	struct kv_txn *txn = begin(kv, true);
	put_text(txn, 0, "small", "1");
	assert_int_equal(kv_put(txn, 0, "big", 3, big, 3 << 20), -ERR_TOO_LARGE);
	assert_int_equal(kv_commit(txn), -ERR_TOO_LARGE);
	int r = -1;
	for (int tries = 0; tries < 4 && r != 0; tries++) {
		txn = begin(kv, true);
		expect_text(txn, 0, "small", NULL);
		kv_put(txn, 0, "big", 3, big, 3 << 20);
		r = kv_commit(txn);
	}
	assert_int_equal(r, 0);
	txn = begin(kv, false);
	struct span value;
	assert_int_equal(kv_get(txn, 0, "big", 3, &value), 0);
	assert_int_equal(value.length, 3 << 20);
	kv_abort(txn);
	kv_close(kv);
}

/* -- a random history against a model, checked and reopened on the way -- */

#define MODEL_KEYS 400
struct model {
	bool present[MODEL_KEYS];
	uint32_t length[MODEL_KEYS];
	uint8_t fill[MODEL_KEYS];
};

static size_t model_key(unsigned index, char ret_key[KV_KEY_MAX])
{
	/* Lengths from 3 to 511, many with a common beginning. */
	size_t length = 3 + (index * 37u) % 509;
	memset(ret_key, index % 7 == 0 ? 'k' : 'q', length);
	int n = snprintf(ret_key + length - 3, 4, "%03u", index);
	assert_int_equal(n, 3);
	return length;
}

static uint64_t random_state;
static uint32_t next_random(uint32_t below)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(random_state >> 33) % below;
}

static void model_step(struct kv_txn *txn, struct model *model)
{
	static uint8_t value[20000];
	char key[KV_KEY_MAX + 1];
	unsigned index = next_random(MODEL_KEYS);
	size_t key_length = model_key(index, key);
	unsigned choice = next_random(1000);
	if (choice == 0) {
		assert_int_equal(kv_clear(txn, 0), 0);
		memset(model, 0, sizeof(*model));
	} else if (choice < 400) {
		int r = kv_delete(txn, 0, key, key_length);
		assert_int_equal(r, model->present[index] ? 0 : -ERR_NOT_FOUND);
		model->present[index] = false;
	} else {
		uint32_t length = choice < 900 ? next_random(1200) : next_random(20000);
		uint8_t fill = (uint8_t)next_random(256);
		memset(value, fill, length);
		assert_int_equal(kv_put(txn, 0, key, key_length, value, length), 0);
		model->present[index] = true;
		model->length[index] = length;
		model->fill[index] = fill;
	}
}

static void expect_model(struct kv *kv, const struct model *model)
{
	struct kv_txn *txn = begin(kv, false);
	uint64_t count, expected = 0;
	for (unsigned i = 0; i < MODEL_KEYS; i++) {
		char key[KV_KEY_MAX + 1];
		size_t key_length = model_key(i, key);
		struct span value;
		int r = kv_get(txn, 0, key, key_length, &value);
		assert_int_equal(r, model->present[i] ? 0 : -ERR_NOT_FOUND);
		if (r < 0)
			continue;
		expected++;
		assert_int_equal(value.length, model->length[i]);
		for (size_t j = 0; j < value.length; j += 97)
			assert_int_equal(((const uint8_t *)value.data)[j], model->fill[i]);
	}
	assert_int_equal(kv_count(txn, 0, &count), 0);
	assert_int_equal(count, expected);
	kv_abort(txn);
}

static void test_random_history(void **state)
{
	random_state = random_u64();
	print_message("seed %llu\n", (unsigned long long)random_state);
	struct model model = {0}, before;
	struct kv *kv = open_kv(&loseable);
	for (int round = 0; round < 150; round++) {
		struct kv_txn *txn = begin(kv, true);
		before = model;
		unsigned steps = next_random(120);
		for (unsigned i = 0; i < steps; i++)
			model_step(txn, &model);
		if (next_random(8) == 0) {
			kv_abort(txn);
			model = before;
		} else {
			assert_int_equal(kv_commit(txn), 0);
		}
		expect_model(kv, &model);
		/* What LMDB itself wrote must pass the check, always. */
		struct kv_check check;
		struct message message = {""};
		int r = kv_check_file(path_in("kv/data.mdb"), &check, &message);
		if (r < 0)
			fail_msg("round %d: %s", round, message.text);
		if (next_random(10) == 0) {
			kv_close(kv);
			kv = open_kv(&loseable);
			expect_model(kv, &model);
		}
	}
	kv_close(kv);
}

/* -- damage -- */

static void fill_some(struct kv *kv, unsigned count)
{
	for (unsigned round = 0; round < 3; round++) {
		struct kv_txn *txn = begin(kv, true);
		for (unsigned i = round; i < count; i++) {
			char key[32], value[600];
			int length = snprintf(key, sizeof(key), "key %06u", i * 7919 % count);
			memset(value, 'v', sizeof(value));
			size_t bytes = i % 50 == 0 ? sizeof(value) : i % 40;
			assert_int_equal(kv_put(txn, i % 3, key, (size_t)length, value, bytes), 0);
		}
		CLEANUP(free_pointer) char *large = calloc(1, 30000);
		put_text(txn, 2, "large", "");
		assert_int_equal(kv_put(txn, 2, "large", 5, large, 30000), 0);
		assert_int_equal(kv_commit(txn), 0);
	}
}

static void use_everything(struct kv *kv)
{
	struct kv_txn *txn = begin(kv, true);
	for (unsigned table = 0; table < 3; table++) {
		struct kv_cursor *cursor;
		assert_int_equal(kv_seek(txn, table, NULL, 0, &cursor), 0);
		struct span key, value;
		uint64_t sum = 0;
		while (kv_next(cursor, &key, &value) == 0)
			for (size_t i = 0; i < value.length; i++)
				sum += ((const uint8_t *)value.data)[i];
		(void)sum;
		kv_cursor_free(cursor);
		char text[] = "a new value";
		kv_put(txn, table, "key 000001", 10, text, sizeof(text));
		kv_delete(txn, table, "key 000002", 10);
	}
	kv_clear(txn, 1);
	kv_commit(txn);
}

static void read_data(struct buffer *ret_bytes)
{
	assert_int_equal(read_file(AT_FDCWD, path_in("kv/data.mdb"), 1 << 30, ret_bytes), 0);
}

static void write_data(const struct buffer *bytes)
{
	int fd = open(path_in("kv/data.mdb"), O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, bytes->data, bytes->length, 0), 0);
	close(fd);
}

/* Flip bytes in copies of a good file: opening says no, or everything works. */
static void test_flipped_bytes(void **state)
{
	random_state = random_u64();
	print_message("seed %llu\n", (unsigned long long)random_state);
	struct kv *kv = open_kv(&durable);
	fill_some(kv, 600);
	kv_close(kv);
	CLEANUP(buffer_release) struct buffer good = {0};
	CLEANUP(buffer_release) struct buffer bad = {0};
	read_data(&good);
	unsigned refused = 0;
	for (unsigned round = 0; round < 400; round++) {
		buffer_clear(&bad);
		buffer_append(&bad, good.data, good.length);
		unsigned flips = 1 + next_random(3);
		for (unsigned i = 0; i < flips; i++) {
			/* Mostly heads of pages, where structure is. */
			size_t page = next_random((uint32_t)(good.length / 4096)) * 4096u;
			size_t at = page + next_random(next_random(3) > 0 ? 160 : 4096);
			bad.data[at] = (uint8_t)next_random(256);
		}
		write_data(&bad);
		struct message message = {""};
		struct kv_options no_sync = durable;
		kv = NULL;
		int r = kv_open(path_in("kv"), &no_sync, &kv, &message);
		if (r < 0) {
			assert_true(r == -ERR_CORRUPT || r == -ERR_VERSION);
			assert_non_null(strstr(message.text, "data.mdb"));
			refused++;
			continue;
		}
		use_everything(kv);
		kv_close(kv);
	}
	print_message("%u of 400 refused\n", refused);
	assert_true(refused > 20 && refused < 400);
}

static void expect_corrupt_head(const void *bytes, size_t length)
{
	struct buffer data = {.data = (uint8_t *)bytes, .length = length};
	write_data(&data);
	struct kv *kv = NULL;
	struct message message = {""};
	assert_int_equal(kv_open(path_in("kv"), &durable, &kv, &message), -ERR_CORRUPT);
	assert_non_null(strstr(message.text, "data.mdb"));
	assert_null(kv);
	kv = open_kv(&loseable);
	fill_some(kv, 10);
	kv_close(kv);
}

static void test_not_an_environment(void **state)
{
	struct kv *kv = open_kv(&durable);
	kv_close(kv);
	static uint8_t zeroes[20000];
	expect_corrupt_head("x", 1);
	expect_corrupt_head(zeroes, sizeof(zeroes));
	memset(zeroes, 0xff, sizeof(zeroes));
	expect_corrupt_head(zeroes, sizeof(zeroes));

	/* A truncated file, at every page. */
	remove_tree(path_in("kv"));
	kv = open_kv(&durable);
	fill_some(kv, 300);
	kv_close(kv);
	CLEANUP(buffer_release) struct buffer good = {0};
	read_data(&good);
	for (size_t length = 4096; length < good.length; length += 4096) {
		struct buffer part = {.data = good.data, .length = length};
		write_data(&part);
		struct kv_check check;
		int r = kv_check_file(path_in("kv/data.mdb"), &check, NULL);
		assert_true(r == -ERR_CORRUPT || r == 0);
		if (length < good.length / 2)
			assert_int_equal(r, -ERR_CORRUPT);
	}
	/* An empty one is as none: LMDB's own reading of it, and what a power cut may leave. */
	assert_int_equal(truncate(path_in("kv/data.mdb"), 0), 0);
	kv = open_kv(&durable);
	struct kv_txn *txn = begin(kv, false);
	expect_text(txn, 2, "large", NULL);
	kv_abort(txn);
	kv_close(kv);
}

/* A table of another name would be a new, empty one. */
static void test_damaged_names(void **state)
{
	static const char *const names[] = {"branches", "entries", "meta"};
	const struct kv_options sealed = {.tables = names, .table_count = 3, .sealed = true};
	struct kv *kv = open_kv(&sealed);
	struct kv_txn *txn = begin(kv, true);
	for (unsigned i = 0; i < 3; i++)
		put_text(txn, i, "key", "value");
	assert_int_equal(kv_commit(txn), 0);
	kv_close(kv);
	static const char *const all[] = {"branches", "entries", "meta", "~sealed"};
	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		CLEANUP(buffer_release) struct buffer bytes = {0};
		CLEANUP(buffer_release) struct buffer good = {0};
		size_t length = strlen(all[i]), changed = 0;
		read_data(&good);
		buffer_append(&bytes, good.data, good.length);
		for (uint8_t *at = bytes.data;
		     (at = memmem(at, bytes.length - (size_t)(at - bytes.data), all[i], length));
		     at += length, changed++)
			at[length - 1] ^= 1;
		assert_true(changed > 0);
		write_data(&bytes);
		struct message message = {""};
		assert_int_equal(kv_open(path_in("kv"), &sealed, &kv, &message), -ERR_CORRUPT);
		assert_non_null(strstr(message.text, "data.mdb"));
		write_data(&good);
		kv = open_kv(&sealed);
		txn = begin(kv, false);
		expect_text(txn, 0, "key", "value");
		kv_abort(txn);
		kv_close(kv);
	}
}

/* -- loseable environments -- */

static void test_stamp(void **state)
{
	struct kv *kv = open_kv(&loseable);
	struct kv_txn *txn = begin(kv, true);
	put_text(txn, 0, "kept", "1");
	assert_int_equal(kv_commit(txn), 0);
	kv_close(kv);

	/* Closed properly: kept, whatever the boot. */
	CLEANUP(buffer_release) struct buffer stamp = {0};
	assert_int_equal(read_file(AT_FDCWD, path_in("kv/stamp"), 100, &stamp), 0);
	assert_int_equal(stamp.length, 6);
	assert_memory_equal(stamp.data, "clean\n", 6);
	kv = open_kv(&loseable);
	txn = begin(kv, false);
	expect_text(txn, 0, "kept", "1");
	kv_abort(txn);

	/* While open the stamp is this boot's; as after kill -9, so kept. */
	CLEANUP(buffer_release) struct buffer open_stamp = {0};
	assert_int_equal(read_file(AT_FDCWD, path_in("kv/stamp"), 100, &open_stamp), 0);
	assert_int_equal(open_stamp.length, ID_HEX + 1);
	kv_close(kv);
	assert_int_equal(write_file_durably(AT_FDCWD, path_in("kv/stamp"), open_stamp.data,
	                                    open_stamp.length),
	                 0);
	kv = open_kv(&loseable);
	txn = begin(kv, false);
	expect_text(txn, 0, "kept", "1");
	kv_abort(txn);
	kv_close(kv);

	/* Another boot's, or none: wiped. */
	open_stamp.data[0] = open_stamp.data[0] == 'a' ? 'b' : 'a';
	assert_int_equal(write_file_durably(AT_FDCWD, path_in("kv/stamp"), open_stamp.data,
	                                    open_stamp.length),
	                 0);
	kv = open_kv(&loseable);
	txn = begin(kv, true);
	expect_text(txn, 0, "kept", NULL);
	put_text(txn, 0, "kept", "2");
	assert_int_equal(kv_commit(txn), 0);
	kv_close(kv);
	assert_int_equal(unlink(path_in("kv/stamp")), 0);
	kv = open_kv(&loseable);
	txn = begin(kv, false);
	expect_text(txn, 0, "kept", NULL);
	kv_abort(txn);
	kv_close(kv);
}

/* -- a process that dies; a disk that is full -- */

static void test_killed(void **state)
{
	for (int variant = 0; variant < 2; variant++) {
		const struct kv_options *options = variant == 0 ? &durable : &loseable;
		remove_tree(path_in("kv"));
		int pipes[2];
		assert_int_equal(pipe(pipes), 0);
		pid_t child = fork();
		if (child == 0) {
			struct kv *kv = open_kv(options);
			for (unsigned i = 0;; i++) {
				struct kv_txn *txn = begin(kv, true);
				put_text(txn, 0, "counter", "");
				uint8_t value[8];
				store_u64(value, i);
				kv_put(txn, 0, "counter", 7, value, 8);
				if (kv_commit(txn) < 0 || write(pipes[1], &i, sizeof(i)) < 0)
					_exit(1);
			}
		}
		close(pipes[1]);
		unsigned last = 0, seen;
		while (last < 50 && read(pipes[0], &seen, sizeof(seen)) == sizeof(seen))
			last = seen;
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		while (read(pipes[0], &seen, sizeof(seen)) == sizeof(seen))
			last = seen;
		close(pipes[0]);
		struct kv *kv = open_kv(options);
		struct kv_txn *txn = begin(kv, false);
		struct span value;
		assert_int_equal(kv_get(txn, 0, "counter", 7, &value), 0);
		assert_true(load_u64(value.data) >= last);
		kv_abort(txn);
		fill_some(kv, 10);
		kv_close(kv);
	}
}

/* 2: cannot be tried here. Runs in a child with a small tmpfs of its own. */
static int fill_the_disk(void)
{
	if (unshare(CLONE_NEWNS | (geteuid() == 0 ? 0 : CLONE_NEWUSER)) < 0 ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", root, "tmpfs", 0, "size=2m") < 0)
		return 2;
	struct kv *kv = open_kv(&durable);
	struct kv_txn *txn = begin(kv, true);
	put_text(txn, 0, "kept", "1");
	if (kv_commit(txn) < 0)
		return 1;
	static uint8_t value[300000];
	int r = 0;
	unsigned full = 0;
	for (uint8_t i = 1; i < 40; i++) {
		txn = begin(kv, true);
		put_text(txn, 0, "kept", "2");
		r = kv_put(txn, 1, &i, 1, value, sizeof(value));
		r = kv_commit(txn);
		if (r == -ERR_NO_SPACE)
			full++;
		else if (r < 0)
			return 3;
	}
	if (full < 10)
		return 4;
	/* Still in order; and room made by deleting can be used. */
	txn = begin(kv, true);
	uint64_t count;
	kv_count(txn, 1, &count);
	if (count < 2 || count > 7 || kv_clear(txn, 1) < 0)
		return 5;
	r = kv_commit(txn);
	if (r < 0)
		return 6;
	for (uint8_t i = 1; i < 20; i++) {
		txn = begin(kv, true);
		kv_put(txn, 1, &i, 1, value, 10000);
		if (kv_commit(txn) < 0)
			return 7;
	}
	kv_close(kv);
	kv = open_kv(&durable);
	txn = begin(kv, false);
	expect_text(txn, 0, "kept", "2");
	kv_abort(txn);
	kv_close(kv);
	return 0;
}

static void test_disk_full(void **state)
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

/* By the name LMDB links against; ours would be pwrite64. */
ssize_t pwrite_for_lmdb(int fd, const void *bytes, size_t length, off_t offset) __asm__("pwrite");

ssize_t pwrite_for_lmdb(int fd, const void *bytes, size_t length, off_t offset)
{
	if (!fault_now())
		return syscall(SYS_pwrite64, fd, bytes, length, offset);
	/* A full disk takes what fits; LMDB makes EIO of that. */
	return fault_errno == ENOSPC && length > 4096
	               ? syscall(SYS_pwrite64, fd, bytes, 4096, offset)
	               : -1;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	return fault_now() ? -1 : syscall(SYS_writev, fd, parts, count);
}

int fdatasync(int fd)
{
	return fault_now() ? -1 : (int)syscall(SYS_fdatasync, fd);
}

/* Values of commit `number`; several pages, and one that overflows. */
static int commit_number(struct kv *kv, unsigned number)
{
	static uint8_t value[9000];
	struct kv_txn *txn;
	int r = kv_begin(kv, true, &txn);
	if (r < 0)
		return r;
	for (uint8_t i = 0; i < 30; i++) {
		store_u32(value, number);
		r = kv_put(txn, i % 3, &i, 1, value, i == 7 ? sizeof(value) : 700);
		if (r < 0)
			break;
	}
	return kv_commit(txn);
}

static void expect_number(struct kv *kv, unsigned number)
{
	struct kv_txn *txn = begin(kv, false);
	for (uint8_t i = 0; i < 30; i++) {
		struct span value;
		assert_int_equal(kv_get(txn, i % 3, &i, 1, &value), 0);
		assert_int_equal(load_u32(value.data), number);
	}
	kv_abort(txn);
}

static void test_every_write_fails(void **state)
{
	struct kv *kv = open_kv(&durable);
	unsigned number = 1, faults = 0;
	assert_int_equal(commit_number(kv, number), 0);
	for (int e = 0; e < 2; e++) {
		fault_errno = e == 0 ? EIO : ENOSPC;
		for (int which = 0;; which++) {
			fault_countdown = which;
			int r = commit_number(kv, number + 1);
			bool fired = fault_countdown < 0;
			fault_countdown = -1;
			if (!fired) {
				assert_int_equal(r, 0);
				expect_number(kv, ++number);
				break;
			}
			/* Nothing changed, here and for who opens the file; and it goes on. */
			assert_true(r < 0);
			faults++;
			expect_number(kv, number);
			assert_int_equal(commit_number(kv, ++number), 0);
			expect_number(kv, number);
			kv_close(kv);
			kv = open_kv(&durable);
			expect_number(kv, number);
		}
	}
	print_message("%u faults\n", faults);
	assert_true(faults >= 6);
	kv_close(kv);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST(test_basic),
	        TEST(test_cursor),
	        TEST(test_cursor_deletes),
	        TEST(test_hand_over),
	        TEST(test_readers_and_growth),
	        TEST(test_too_large),
	        TEST(test_random_history),
	        TEST(test_flipped_bytes),
	        TEST(test_not_an_environment),
	        TEST(test_damaged_names),
	        TEST(test_stamp),
	        TEST(test_killed),
	        TEST(test_disk_full),
	        TEST(test_every_write_fails),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
