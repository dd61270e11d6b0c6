/*
 * fuzz_kv — any bytes as LMDB's file: opening refuses them, or everything works.
 * The first byte chooses: a loseable environment (which must always open), how it is used.
 * Seeds: FUZZ_KV_SEEDS=directory makes the target write some good files there and exit.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/kv.h"

static const char *const table_names[] = {"one", "two"};
static char directory[64];

static void remove_directory(void)
{
	static const char *const names[] = {"data.mdb", "lock.mdb", "stamp"};
	char path[128];
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
		unlink(path);
	}
	rmdir(directory);
}

static void write_data(const void *bytes, size_t length)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/data.mdb", directory);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write_full(fd, bytes, length, 0) < 0)
		abort();
	close(fd);
}

static void iterate(struct kv_txn *txn, unsigned table)
{
	struct kv_cursor *cursor;
	if (kv_seek(txn, table, NULL, 0, &cursor) < 0)
		abort();
	struct span key, value;
	struct id id;
	while (kv_next(cursor, &key, &value) == 0) {
		sha256_of(key.data, key.length, &id);
		sha256_of(value.data, value.length, &id);
	}
	kv_cursor_free(cursor);
}

/* Sizes and places vary with `choice`, so that pages split, merge, and overflow. */
static void change(struct kv *kv, uint8_t choice, unsigned round)
{
	static uint8_t value[9000];
	struct kv_txn *txn;
	if (kv_begin(kv, true, &txn) < 0)
		return;
	for (unsigned i = 0; i < 40; i++) {
		char key[64];
		int length = snprintf(key, sizeof(key), "%c%0*u", 'a' + (int)(i * 7 % 26),
		                      1 + choice % 40, i * 31 + round);
		size_t bytes = i % 9 == 0 ? sizeof(value) : (size_t)i * choice % 1900;
		kv_put(txn, i % 2, key, (size_t)length, value, bytes);
		if (i % 3 == 0)
			kv_delete(txn, i % 2, key, (size_t)length);
	}
	for (unsigned table = 0; table < 2; table++) {
		struct kv_cursor *cursor;
		struct span key, old;
		if (kv_seek(txn, table, NULL, 0, &cursor) < 0)
			abort();
		for (unsigned i = 0; kv_next(cursor, &key, &old) == 0; i++) {
			uint8_t copy[KV_KEY_MAX];
			memcpy(copy, key.data, key.length);
			if ((i + choice) % 3 != 0)
				kv_delete(txn, table, copy, key.length);
			else
				kv_put(txn, table, copy, key.length, value, old.length / 2);
		}
		kv_cursor_free(cursor);
	}
	if (choice % 5 == 0)
		kv_clear(txn, round % 2);
	kv_commit(txn);
}

static void use(struct kv *kv, uint8_t choice)
{
	for (unsigned round = 0; round < 4; round++) {
		struct kv_txn *txn;
		if (kv_begin(kv, false, &txn) == 0) {
			iterate(txn, 0);
			iterate(txn, 1);
			kv_abort(txn);
		}
		change(kv, (uint8_t)(choice + round), round);
	}
}

static int try_bytes(const uint8_t *data, size_t size, uint8_t choice)
{
	struct kv_options options = {.tables = table_names,
	                             .table_count = ARRAY_SIZE(table_names),
	                             .map_bytes_initial = 1 << 20,
	                             .loseable = choice % 2 != 0};
	write_data(data, size);
	if (options.loseable) { /* not the stamp, the bytes are what is tried */
		char path[128];
		snprintf(path, sizeof(path), "%s/stamp", directory);
		if (write_file_durably(AT_FDCWD, path, "clean\n", 6) < 0)
			abort();
	}
	struct kv *kv;
	int r = kv_open(directory, &options, &kv, NULL);
	if (r == 0) {
		use(kv, choice);
		kv_close(kv);
		/* What LMDB made of it passes the check again. */
		options.loseable = false;
		if (kv_open(directory, &options, &kv, NULL) < 0)
			abort();
		kv_close(kv);
	} else if (options.loseable) {
		abort();
	}
	return r;
}

static void write_seed(const char *where, unsigned number)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	char path[256];
	snprintf(path, sizeof(path), "%s/data.mdb", directory);
	buffer_u8(&bytes, (uint8_t)number);
	if (read_file(AT_FDCWD, path, 1 << 24, &bytes) < 0)
		abort();
	snprintf(path, sizeof(path), "%s/seed-%u", where, number);
	if (write_file_durably(AT_FDCWD, path, bytes.data, bytes.length) < 0)
		abort();
}

static void seed_small(struct kv *kv, unsigned number)
{
	struct kv_txn *txn;
	if (kv_begin(kv, true, &txn) < 0)
		abort();
	static const uint8_t value[6000];
	for (unsigned i = 0; i < 4 * number; i++) {
		char key[100] = {0};
		store_u64_be(key, i * 7919 % 101);
		kv_put(txn, i % 2, key, i % 4 == 3 ? 8 : sizeof(key), value,
		       i % 7 == 1 ? sizeof(value) : i * 13);
	}
	if (kv_commit(txn) < 0)
		abort();
}

static void write_seeds(const char *where)
{
	struct kv_options options = {.tables = table_names, .table_count = 2};
	struct kv *kv;
	if (kv_open(directory, &options, &kv, NULL) < 0)
		abort();
	for (unsigned i = 0; i < 12; i++) {
		write_seed(where, i);
		if (i < 8)
			seed_small(kv, i + 1);
		else
			change(kv, (uint8_t)(i * 3 + 1), i);
	}
	kv_close(kv);
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t size_max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed);

/* Mostly: change a field in the head or the node list of some page, or swap in another page's
 * head. Blind mutation of large files rarely hits what is in use. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned seed)
{
	unsigned state = seed;
	size_t pages = size > 0 ? (size - 1) / 4096 : 0;
	if (pages < 3 || rand_r(&state) % 8 == 0)
		return LLVMFuzzerMutate(data, size, size_max);
	for (int times = 1 + rand_r(&state) % 3; times > 0; times--) {
		uint8_t *page = data + 1 + (size_t)rand_r(&state) % pages * 4096;
		uint8_t *other = data + 1 + (size_t)rand_r(&state) % pages * 4096;
		size_t field = (size_t)rand_r(&state) % 80 * 2;
		/* The first node's offset leads to a node's head. */
		size_t node = (size_t)(page[16] | page[17] << 8) + (size_t)rand_r(&state) % 64;
		size_t at = rand_r(&state) % 2 == 0 || node > 4080 ? field : node;
		int kind = rand_r(&state) % 4;
		if (kind == 0)
			page[at] = (uint8_t)rand_r(&state);
		else if (kind == 1)
			page[at] = (uint8_t)(page[at] + rand_r(&state) % 9 - 4);
		else if (kind == 2)
			store_u64(page + at, (uint64_t)(rand_r(&state) % (int)(pages + 2)));
		else if (page != other)
			memcpy(page + 8, other + 8, 100);
	}
	return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (directory[0] == '\0') {
		snprintf(directory, sizeof(directory), "/dev/shm/fuzz_kv.%d", (int)getpid());
		if (mkdir(directory, 0700) < 0)
			abort();
		atexit(remove_directory);
		const char *seeds = getenv("FUZZ_KV_SEEDS");
		if (seeds != NULL) {
			write_seeds(seeds);
			remove_directory();
			_exit(0);
		}
	}
	if (size > 0)
		try_bytes(data + 1, size - 1, data[0]);
	return 0;
}
