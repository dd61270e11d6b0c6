/* state: batches, scans, kill -9, torn and damaged segments, full disks, numbers, threads. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/journal.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static char root[64];

static int make_root(void **unused)
{
	strcpy(root, "/tmp/test_state.XXXXXX");
	return mkdtemp(root) == NULL ? -1 : 0;
}

static int remove_root(void **unused)
{
	char command[96];
	snprintf(command, sizeof(command), "rm -rf '%s'", root);
	return system(command) == 0 ? 0 : -1;
}

static struct state *open_state(void)
{
	struct state *state = NULL;
	struct message message = {0};
	int r = state_open(root, &state, &message);
	if (r != 0)
		print_error("%s\n", message.text);
	assert_int_equal(r, 0);
	return state;
}

static int put(struct state *state, const char *key, const char *value)
{
	CLEANUP(state_batch_release) struct state_batch batch = {0};
	if (value != NULL)
		state_put(&batch, STATE_ENTRIES, key, strlen(key), value, strlen(value));
	else
		state_delete(&batch, STATE_ENTRIES, key, strlen(key));
	return state_commit(state, &batch, NULL);
}

static void expect(struct state *state, const char *key, const char *value)
{
	CLEANUP(buffer_release) struct buffer found = {0};
	int r = state_get(state, STATE_ENTRIES, key, strlen(key), &found);
	if (value == NULL) {
		assert_int_equal(r, -ERR_NOT_FOUND);
		return;
	}
	assert_int_equal(r, 0);
	assert_int_equal(found.length, strlen(value));
	assert_memory_equal(found.data, value, found.length);
}

/* The only segment's path. */
static void segment_path(char ret_path[128])
{
	char directory[96];
	snprintf(directory, sizeof(directory), "%s/journal", root);
	int fd = open(directory, O_RDONLY | O_DIRECTORY);
	uint64_t *sequences;
	size_t count;
	assert_int_equal(journal_list(fd, &sequences, &count), 0);
	assert_int_equal(count, 1);
	snprintf(ret_path, 128, "%s/%016llx", directory, (unsigned long long)sequences[0]);
	free(sequences);
	close(fd);
}

/* Run `body` in a process that dies by SIGKILL right after. */
static void killed(void (*body)(struct state *state, void *context), void *context)
{
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct state *state;
		if (state_open(root, &state, NULL) != 0)
			_exit(1);
		body(state, context);
		kill(getpid(), SIGKILL);
	}
	int status;
	waitpid(pid, &status, 0);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static int join_keys(void *context, const struct span *key, const struct span *value)
{
	char *text = context;
	strncat(text, key->data, key->length);
	strcat(text, " ");
	return strlen(text) > 200 ? 7 : 0;
}

static void scans_find_prefixes_and_go_on(void **unused)
{
	struct state *state = open_state();
	static const char *const keys[] = {"a", "ab", "abc", "abd", "b", "ba", "c"};
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
		assert_int_equal(put(state, keys[i], "v"), 0);
	struct {
		const char *prefix, *after;
		size_t limit;
		const char *expected;
	} cases[] = {
	        {"", "", 0, "a ab abc abd b ba c "},
	        {"ab", "", 0, "ab abc abd "},
	        {"ab", "ab", 0, "abc abd "},
	        {"ab", "abd", 0, ""},
	        {"ab", "a", 0, "ab abc abd "},
	        {"ab", "", 2, "ab abc "},
	        {"", "abc", 2, "abd b "},
	        {"x", "", 0, ""},
	        {"b", "bz", 0, ""},
	        {"ab", "abb", 1, "abc "},
	};
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char text[256] = "";
		assert_int_equal(state_scan(state, STATE_ENTRIES, cases[i].prefix,
		                            strlen(cases[i].prefix), cases[i].after,
		                            strlen(cases[i].after), cases[i].limit, join_keys,
		                            text),
		                 0);
		assert_string_equal(text, cases[i].expected);
	}
	state_close(state);
}

static void batches_are_whole_and_survive_closing(void **unused)
{
	struct state *state = open_state();
	CLEANUP(state_batch_release) struct state_batch batch = {0};
	assert_int_equal(state_commit(state, &batch, NULL), 0);
	state_put(&batch, STATE_ENTRIES, "k", 1, "1", 1);
	state_put(&batch, STATE_ENTRIES, "k", 1, "2", 1);
	state_put(&batch, STATE_INODES, "k", 1, "", 0);
	state_delete(&batch, STATE_ENTRIES, "missing", 7);
	assert_int_equal(state_commit(state, &batch, NULL), 0);
	CLEANUP(state_batch_release) struct state_batch bad = {0};
	char key[KV_KEY_MAX + 1] = "x";
	state_put(&bad, STATE_ENTRIES, "other", 5, "v", 1);
	state_put(&bad, STATE_ENTRIES, key, sizeof(key), "v", 1);
	assert_int_equal(state_commit(state, &bad, NULL), -ERR_TOO_LARGE);
	for (int i = 0; i < 2; i++) {
		expect(state, "k", "2");
		expect(state, "other", NULL);
		CLEANUP(buffer_release) struct buffer empty = {0};
		assert_int_equal(state_get(state, STATE_INODES, "k", 1, &empty), 0);
		assert_int_equal(empty.length, 0);
		state_close(state);
		state = open_state();
	}
	state_close(state);
}

/* -- kill -9 at any moment, against a model -- */

#define MODEL_KEYS 64

struct shared {
	_Atomic unsigned long acked; /* operations that returned */
	_Atomic unsigned long number;
};

static uint64_t next_random(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return *seed >> 33;
}

/* Operation n of the run: a batch of up to 4 changes. NULL state: only the model. */
static int operation(struct state *state, uint64_t *seed, unsigned model[MODEL_KEYS],
                     unsigned long n)
{
	CLEANUP(state_batch_release) struct state_batch batch = {0};
	unsigned count = 1 + (unsigned)(next_random(seed) % 4);
	for (unsigned i = 0; i < count; i++) {
		unsigned key = (unsigned)(next_random(seed) % MODEL_KEYS);
		bool put_it = next_random(seed) % 4 != 0;
		char name[16], value[32];
		snprintf(name, sizeof(name), "key%u", key);
		snprintf(value, sizeof(value), "%lu", n);
		model[key] = put_it ? (unsigned)n : 0;
		if (put_it)
			state_put(&batch, STATE_ENTRIES, name, strlen(name), value, strlen(value));
		else
			state_delete(&batch, STATE_ENTRIES, name, strlen(name));
	}
	bool fold = next_random(seed) % 200 == 0, sync = next_random(seed) % 50 == 0;
	int r = state != NULL ? state_commit(state, &batch, NULL) : 0;
	if (state != NULL && fold)
		state_fold(state, NULL);
	if (state != NULL && sync)
		state_sync(state);
	return r;
}

static bool matches(struct state *state, const unsigned model[MODEL_KEYS])
{
	for (unsigned key = 0; key < MODEL_KEYS; key++) {
		char name[16], value[32];
		snprintf(name, sizeof(name), "key%u", key);
		int length = snprintf(value, sizeof(value), "%u", model[key]);
		CLEANUP(buffer_release) struct buffer found = {0};
		int r = state_get(state, STATE_ENTRIES, name, strlen(name), &found);
		if (model[key] == 0 ? r != -ERR_NOT_FOUND
		                    : r != 0 || found.length != (size_t)length ||
		                              memcmp(found.data, value, found.length) != 0)
			return false;
	}
	return true;
}

static void child_of_killing(struct shared *shared, uint64_t seed, unsigned long from)
{
	struct state *state;
	if (state_open(root, &state, NULL) != 0)
		_exit(1);
	unsigned model[MODEL_KEYS];
	for (unsigned long n = from + 1;; n++) {
		uint64_t own = seed + n;
		if (operation(state, &own, model, n) != 0)
			_exit(2);
		shared->acked = n;
		if (n % 7 == 0) {
			unsigned long number = state_number(state);
			if (number <= shared->number)
				_exit(3);
			shared->number = number;
		}
	}
}

static void killing_loses_nothing_that_returned(void **unused)
{
	uint64_t seed = random_u64();
	print_message("seed %llu\n", (unsigned long long)seed);
	struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
	                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(shared, MAP_FAILED);
	unsigned model[MODEL_KEYS] = {0};
	unsigned long applied = 0;
	for (int round = 0; round < 25; round++) {
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			child_of_killing(shared, seed, applied);
		usleep(10000 + (useconds_t)(random_u64() % 30000));
		kill(pid, SIGKILL);
		int status;
		waitpid(pid, &status, 0);
		assert_true(WIFSIGNALED(status));
		for (unsigned long n = applied + 1; n <= shared->acked; n++) {
			uint64_t own = seed + n;
			operation(NULL, &own, model, n);
		}
		applied = shared->acked;
		struct state *state = open_state();
		if (!matches(state, model)) {
			/* The one under way may have happened. */
			uint64_t own = seed + ++applied;
			operation(NULL, &own, model, applied);
			assert_true(matches(state, model));
			shared->acked = applied;
		}
		assert_true(state_number(state) > shared->number);
		state_close(state);
	}
	print_message("%lu operations\n", applied);
	assert_true(applied > 100);
	munmap(shared, sizeof(*shared));
}

/* -- torn and damaged segments -- */

static void three_batches(struct state *state, void *context)
{
	put(state, "one", "1");
	if (context != NULL)
		state_sync(state);
	put(state, "two", "22");
	put(state, "three", "333");
}

static void read_segment(struct buffer *bytes)
{
	char path[128];
	segment_path(path);
	assert_int_equal(read_file(AT_FDCWD, path, 1 << 20, bytes), 0);
}

static void write_segment(const void *bytes, size_t length)
{
	char path[128];
	segment_path(path);
	int fd = open(path, O_WRONLY | O_TRUNC);
	assert_int_equal(write_full(fd, bytes, length, 0), 0);
	close(fd);
}

/* Lengths of the segment after its header and after each batch. */
static size_t batch_ends(const struct buffer *bytes, size_t ends[8])
{
	size_t count = 0;
	ends[count++] = JOURNAL_HEADER;
	for (size_t at = JOURNAL_HEADER; at < bytes->length; ends[count++] = at)
		at += JOURNAL_BATCH_HEADER + load_u32(bytes->data + at + 8);
	return count;
}

static void torn_tails_are_dropped_at_every_byte(void **unused)
{
	killed(three_batches, NULL);
	CLEANUP(buffer_release) struct buffer bytes = {0};
	read_segment(&bytes);
	size_t ends[8], count = batch_ends(&bytes, ends);
	assert_int_equal(count, 4);
	assert_int_equal(ends[3], bytes.length);
	for (size_t length = JOURNAL_HEADER; length <= bytes.length; length++) {
		write_segment(bytes.data, length);
		uint64_t batches = 99, expected = 0;
		while (expected < 3 && ends[expected + 1] <= length)
			expected++;
		assert_int_equal(journal_check(bytes.data, length, &batches), 0);
		assert_int_equal(batches, expected);
		char path[128];
		segment_path(path);
		struct journal journal;
		int directory = open(root, O_RDONLY | O_DIRECTORY);
		int journals = openat(directory, "journal", O_RDONLY | O_DIRECTORY);
		assert_int_equal(
		        journal_replay(journals, 1, false, NULL, NULL, &journal, &batches, NULL),
		        0);
		assert_int_equal(batches, expected);
		assert_int_equal(journal.end, ends[expected]);
		journal_close(&journal);
		struct stat status;
		assert_int_equal(stat(path, &status), 0);
		assert_int_equal(status.st_size, ends[expected]);
		close(journals);
		close(directory);
	}
	/* And through the front door, in the middle of the last batch. */
	write_segment(bytes.data, ends[3] - 1);
	struct state *state = open_state();
	expect(state, "one", "1");
	expect(state, "two", "22");
	expect(state, "three", NULL);
	assert_int_equal(put(state, "four", "4"), 0);
	state_close(state);
	state = open_state();
	expect(state, "four", "4");
	state_close(state);
}

static void expect_corrupt(void)
{
	struct state *state;
	struct message message = {0};
	assert_int_equal(state_open(root, &state, &message), -ERR_CORRUPT);
	assert_non_null(strstr(message.text, "journal/"));
}

static void damage_before_the_tail_is_refused(void **unused)
{
	killed(three_batches, NULL);
	CLEANUP(buffer_release) struct buffer bytes = {0};
	read_segment(&bytes);
	size_t ends[8];
	batch_ends(&bytes, ends);
	for (size_t at = 0; at < ends[2]; at++) {
		bytes.data[at] ^= 0x40;
		uint64_t batches;
		int r = journal_check(bytes.data, bytes.length, &batches);
		assert_true(r == -ERR_CORRUPT || (r == -ERR_VERSION && at >= 8 && at < 12));
		if (at % 16 == 0 && r == -ERR_CORRUPT) {
			write_segment(bytes.data, bytes.length);
			expect_corrupt();
		}
		bytes.data[at] ^= 0x40;
	}
	/* In the last batch it cannot be told from a torn write. */
	for (size_t at = ends[2]; at < ends[3]; at++) {
		uint64_t batches = 0;
		bytes.data[at] ^= 0x40;
		assert_int_equal(journal_check(bytes.data, bytes.length, &batches), 0);
		assert_int_equal(batches, 2);
		bytes.data[at] ^= 0x40;
	}
	write_segment(bytes.data, bytes.length);
	struct state *state = open_state();
	expect(state, "three", "333");
	state_close(state);
}

/* As if the machine had been booted again since the segment was made. */
static void change_boot(struct buffer *bytes)
{
	struct id sum;
	memset(bytes->data + 24, 7, ID_BYTES);
	sha256_of(bytes->data, JOURNAL_HEADER - 8, &sum);
	memcpy(bytes->data + JOURNAL_HEADER - 8, sum.bytes, 8);
}

static void a_power_cut_may_lose_what_was_not_synced(void **unused)
{
	killed(three_batches, NULL);
	CLEANUP(buffer_release) struct buffer bytes = {0};
	read_segment(&bytes);
	size_t ends[8];
	batch_ends(&bytes, ends);
	change_boot(&bytes);
	bytes.data[ends[1] + 30] ^= 1; /* "two" */
	char path[128], copy[160];
	segment_path(path);
	write_segment(bytes.data, bytes.length);
	struct state *state = open_state();
	expect(state, "one", "1");
	expect(state, "two", NULL);
	expect(state, "three", NULL);
	state_close(state);
	snprintf(copy, sizeof(copy), "%s.damaged", path);
	CLEANUP(buffer_release) struct buffer kept = {0};
	assert_int_equal(read_file(AT_FDCWD, copy, 1 << 20, &kept), 0);
	assert_int_equal(kept.length, bytes.length);
	assert_memory_equal(kept.data, bytes.data, kept.length);
}

static void a_power_cut_does_not_explain_damage_to_what_was_synced(void **unused)
{
	killed(three_batches, root /* sync after the first */);
	CLEANUP(buffer_release) struct buffer bytes = {0};
	read_segment(&bytes);
	size_t ends[8];
	batch_ends(&bytes, ends);
	change_boot(&bytes);
	bytes.data[ends[0] + 30] ^= 1; /* "one" */
	write_segment(bytes.data, bytes.length);
	expect_corrupt();
	bytes.data[ends[0] + 30] ^= 1;
	bytes.data[ends[1] + 30] ^= 1; /* "two" was not synced */
	write_segment(bytes.data, bytes.length);
	struct state *state = open_state();
	expect(state, "one", "1");
	expect(state, "two", NULL);
	state_close(state);
}

static void a_crash_between_fold_and_unlink_is_harmless(void **unused)
{
	killed(three_batches, NULL);
	CLEANUP(buffer_release) struct buffer bytes = {0};
	read_segment(&bytes);
	struct state *state = open_state();
	assert_int_equal(put(state, "two", NULL), 0);
	state_close(state);
	/* The folded segment is there again, with an older "two"; and one that was made ahead. */
	char path[128];
	snprintf(path, sizeof(path), "%s/journal/%016x", root, 1);
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, bytes.data, bytes.length, 0), 0);
	close(fd);
	snprintf(path, sizeof(path), "%s/journal/%016x", root, 9);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	close(fd);
	state = open_state();
	expect(state, "one", "1");
	expect(state, "two", NULL);
	assert_int_equal(put(state, "five", "5"), 0);
	state_close(state);
	segment_path(path); /* asserts that one is left */
	state = open_state();
	expect(state, "five", "5");
	state_close(state);
}

/* -- a full disk -- */

static bool mounted;

static void fill_disk(void)
{
	char path[96];
	snprintf(path, sizeof(path), "%s/filler", root);
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	static char block[4096];
	while (write(fd, block, sizeof(block)) > 0)
		;
	close(fd);
}

static void free_disk(void)
{
	char path[96];
	snprintf(path, sizeof(path), "%s/filler", root);
	unlink(path);
}

static int make_small_disk(void **state)
{
	if (make_root(state) != 0)
		return -1;
	mounted = mount("tmpfs", root, "tmpfs", 0, "size=6m") == 0;
	return 0;
}

static int remove_small_disk(void **state)
{
	if (mounted)
		umount2(root, MNT_DETACH);
	return remove_root(state);
}

static void a_full_disk_refuses_and_loses_nothing(void **unused)
{
	if (!mounted)
		skip();
	struct state *state = open_state();
	char key[16], value[200];
	memset(value, 'v', sizeof(value));
	value[sizeof(value) - 1] = '\0';
	for (int i = 0; i < 2000; i++) {
		snprintf(key, sizeof(key), "before%d", i);
		assert_int_equal(put(state, key, value), 0);
	}
	fill_disk();
	/* The journal's last page has room for a few more. */
	int more = 0, r = 0;
	for (; more < 1000 && r == 0; more++) {
		snprintf(key, sizeof(key), "after%d", more);
		r = put(state, key, value);
	}
	assert_int_equal(r, -ERR_NO_SPACE);
	expect(state, key, NULL);
	for (int i = 0; i < 50; i++)
		assert_int_equal(put(state, key, value), -ERR_NO_SPACE);
	struct message message = {0};
	assert_true(state_fold(state, &message) < 0);
	assert_true(strlen(message.text) > 0);
	expect(state, "before0", value);
	expect(state, "before1999", value);
	expect(state, key, NULL);
	/* Closing and opening on the full disk: everything is still there. */
	state_close(state);
	state = open_state();
	expect(state, "before1999", value);
	expect(state, "after0", more > 1 ? value : NULL);
	expect(state, key, NULL);
	free_disk();
	assert_int_equal(put(state, key, value), 0);
	assert_int_equal(state_fold(state, NULL), 0);
	state_close(state);
	state = open_state();
	expect(state, "before1999", value);
	expect(state, key, value);
	state_close(state);
}

static void a_fold_without_room_is_tried_again(void **unused)
{
	if (!mounted)
		skip();
	struct state *state = open_state();
	char key[16], value[1000];
	memset(value, 'w', sizeof(value));
	value[sizeof(value) - 1] = '\0';
	/* More than half of the disk in the journal: LMDB has no room for the same. */
	int count = 3600;
	for (int i = 0; i < count; i++) {
		snprintf(key, sizeof(key), "key%d", i);
		assert_int_equal(put(state, key, value), 0);
	}
	assert_true(state_fold(state, NULL) < 0);
	for (int i = 0; i < count; i += 7) {
		snprintf(key, sizeof(key), "key%d", i);
		expect(state, key, value);
	}
	assert_int_equal(put(state, "key0", "small"), 0);
	assert_int_equal(mount(NULL, root, NULL, MS_REMOUNT, "size=32m"), 0);
	assert_int_equal(state_fold(state, NULL), 0);
	expect(state, "key0", "small");
	expect(state, "key3599", value);
	state_close(state);
}

/* -- LMDB's map meets its end -- */

static atomic_int full_puts; /* so many are refused; each time the map is as large as it is */

int mdb_put(MDB_txn *txn, MDB_dbi table, MDB_val *key, MDB_val *value, unsigned flags)
{
	static int (*next)(MDB_txn *, MDB_dbi, MDB_val *, MDB_val *, unsigned);
	if (next == NULL)
		next = (int (*)(MDB_txn *, MDB_dbi, MDB_val *, MDB_val *, unsigned))(
		        uintptr_t)dlsym(RTLD_NEXT, "mdb_put");
	if (full_puts > 0) {
		full_puts--;
		return MDB_MAP_FULL;
	}
	return next(txn, table, key, value, flags);
}

static void a_map_that_is_too_small_grows(void **unused)
{
	killed(three_batches, NULL);
	full_puts = 3; /* a segment for which the map must grow three times */
	struct state *state = open_state();
	assert_int_equal(full_puts, 0);
	expect(state, "one", "1");
	expect(state, "three", "333");
	full_puts = 3;
	assert_int_equal(put(state, "four", "4444"), 0);
	assert_int_equal(full_puts, 0);
	full_puts = 1;
	assert_int_equal(state_fold(state, NULL), 0);
	assert_int_equal(full_puts, 0);
	state_close(state);
	state = open_state();
	expect(state, "two", "22");
	expect(state, "four", "4444");
	state_close(state);
}

/* -- threads -- */

struct worker {
	pthread_t thread;
	struct state *state;
	int id, failures;
	uint64_t numbers[200];
};

static void *work(void *context)
{
	struct worker *worker = context;
	for (int i = 0; i < 200; i++) {
		char key[32], value[32];
		snprintf(key, sizeof(key), "w%d-%d", worker->id, i);
		snprintf(value, sizeof(value), "%d", i);
		worker->failures += put(worker->state, key, value) != 0;
		if (i % 10 == 0)
			worker->failures += state_sync(worker->state) != 0;
		if (i % 50 == 0)
			worker->failures += state_fold(worker->state, NULL) != 0;
		CLEANUP(buffer_release) struct buffer found = {0};
		worker->failures +=
		        state_get(worker->state, STATE_ENTRIES, key, strlen(key), &found) != 0;
		worker->numbers[i] = state_number(worker->state);
	}
	return NULL;
}

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

static void threads_share_it(void **unused)
{
	struct state *state = open_state();
	static struct worker workers[4];
	for (int i = 0; i < 4; i++) {
		workers[i] = (struct worker){.state = state, .id = i};
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	}
	static uint64_t numbers[800];
	for (int i = 0; i < 4; i++) {
		pthread_join(workers[i].thread, NULL);
		assert_int_equal(workers[i].failures, 0);
		memcpy(numbers + 200 * i, workers[i].numbers, sizeof(workers[i].numbers));
	}
	qsort(numbers, 800, sizeof(numbers[0]), by_number);
	for (int i = 1; i < 800; i++)
		assert_true(numbers[i] > numbers[i - 1]);
	state_close(state);
	state = open_state();
	for (int i = 0; i < 4; i++) {
		char key[32];
		snprintf(key, sizeof(key), "w%d-199", i);
		expect(state, key, "199");
	}
	state_close(state);
}

static void folding_happens_by_itself(void **unused)
{
	struct state *state = open_state();
	assert_int_equal(put(state, "k", "v"), 0);
	struct state_stats stats = {0};
	for (int i = 0; i < 100 && stats.folds == 0; i++) {
		usleep(100000);
		state_stats(state, &stats);
	}
	assert_int_equal(stats.folds, 1);
	assert_int_equal(stats.journal_bytes, JOURNAL_HEADER);
	state_close(state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(scans_find_prefixes_and_go_on, make_root,
	                                        remove_root),
	        cmocka_unit_test_setup_teardown(batches_are_whole_and_survive_closing, make_root,
	                                        remove_root),
	        cmocka_unit_test_setup_teardown(killing_loses_nothing_that_returned, make_root,
	                                        remove_root),
	        cmocka_unit_test_setup_teardown(torn_tails_are_dropped_at_every_byte, make_root,
	                                        remove_root),
	        cmocka_unit_test_setup_teardown(damage_before_the_tail_is_refused, make_root,
	                                        remove_root),
	        cmocka_unit_test_setup_teardown(a_power_cut_may_lose_what_was_not_synced, make_root,
	                                        remove_root),
	        cmocka_unit_test_setup_teardown(
	                a_power_cut_does_not_explain_damage_to_what_was_synced, make_root,
	                remove_root),
	        cmocka_unit_test_setup_teardown(a_crash_between_fold_and_unlink_is_harmless,
	                                        make_root, remove_root),
	        cmocka_unit_test_setup_teardown(a_full_disk_refuses_and_loses_nothing,
	                                        make_small_disk, remove_small_disk),
	        cmocka_unit_test_setup_teardown(a_fold_without_room_is_tried_again, make_small_disk,
	                                        remove_small_disk),
	        cmocka_unit_test_setup_teardown(a_map_that_is_too_small_grows, make_root,
	                                        remove_root),
	        cmocka_unit_test_setup_teardown(threads_share_it, make_root, remove_root),
	        cmocka_unit_test_setup_teardown(folding_happens_by_itself, make_root, remove_root),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
