/* Memory that outlives a process, and how a successor finds out what became of a batch. */
#include "fs/mount/keep.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/state.h"
#undef fail
#include <cmocka.h>

struct item {
	uint64_t number;
	char text[];
};

struct seen {
	uint64_t sum;
	unsigned count;
	size_t longest;
};

static int see(void *context, enum keep_kind kind, void *record)
{
	struct seen *seen = context;
	const struct item *item = record;
	assert_int_equal(kind, KEEP_NODE);
	seen->sum += item->number;
	seen->count++;
	if (strlen(item->text) > seen->longest)
		seen->longest = strlen(item->text);
	return 0;
}

static struct item *make(struct keep *keep, uint64_t number, size_t length)
{
	struct item *item = keep_new(keep, sizeof(*item) + length + 1);
	assert_non_null(item);
	assert_true(keep_room(keep, item) >= sizeof(*item) + length + 1);
	item->number = number;
	memset(item->text, 'x', length);
	return item;
}

static void records_outlive_who_made_them(void **state)
{
	int fd = -1;
	assert_int_equal(keep_create(&fd), 0);
	pid_t child = fork();
	if (child == 0) {
		struct keep *keep;
		struct item *items[3000];
		assert_int_equal(keep_open(fd, &keep), 0);
		for (unsigned i = 0; i < 3000; i++) {
			items[i] = make(keep, i, i % 700);
			keep_publish(items[i], KEEP_NODE);
		}
		for (unsigned i = 0; i < 3000; i += 2)
			keep_drop(keep, items[i]);
		make(keep, 1u << 30, 10); /* never published */
		keep_root(keep)->next_node = 77;
		kill(getpid(), SIGKILL);
	}
	assert_int_equal(waitpid(child, NULL, 0), child);
	struct keep *keep;
	struct seen seen = {0};
	assert_int_equal(keep_open(fd, &keep), 0);
	assert_int_equal(keep_root(keep)->next_node, 77);
	assert_int_equal(keep_each(keep, see, &seen), 0);
	assert_int_equal(seen.count, 1500);
	assert_int_equal(seen.sum, 1500 * 1500);
	assert_int_equal(seen.longest, 699);
	/* What was free, or never there, is given out again: no growth. */
	unsigned chunks = keep_root(keep)->chunks;
	for (unsigned i = 0; i < 3000; i += 2)
		keep_publish(make(keep, i, i % 700), KEEP_NODE);
	assert_int_equal(keep_root(keep)->chunks, chunks);
	keep_close(keep);
	close(fd);
}

static void too_large_a_record_is_refused(void **state)
{
	struct keep *keep;
	int fd = -1;
	assert_int_equal(keep_create(&fd), 0);
	assert_int_equal(keep_open(fd, &keep), 0);
	assert_null(keep_new(keep, 1 << 20));
	assert_non_null(keep_new(keep, 200000));
	keep_close(keep);
	close(fd);
}

/* A forked child lacks the mapping, and may have something else there by the time it closes. */
static void closing_in_a_child_takes_nothing_else_away(void **state)
{
	struct keep *keep;
	int fd = -1, status;
	assert_int_equal(keep_create(&fd), 0);
	assert_int_equal(keep_open(fd, &keep), 0);
	pid_t child = fork();
	if (child == 0) {
		char *place = (char *)keep_root(keep) + (1 << 20);
		char *there = mmap(place, 4096, PROT_READ | PROT_WRITE,
		                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		if (there != place)
			_exit(2);
		keep_close(keep);
		*there = 1;
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	keep_root(keep)->next_node = 1;
	keep_close(keep);
	close(fd);
}

static int commit(struct state *state, bool decides, const char *key)
{
	struct state_batch batch = {.decides = decides};
	state_put(&batch, STATE_ENTRIES, key, strlen(key), "v", 1);
	int result = state_commit(state, &batch, NULL);
	state_batch_release(&batch);
	return result;
}

/* A process is killed after each of its steps; its successor says what landed. */
static void a_successor_knows_what_landed(void **unused)
{
	char directory[] = "/tmp/lake-keep.XXXXXX", command[64];
	assert_non_null(mkdtemp(directory));
	struct state_mark *marks =
	        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child = fork();
	if (child == 0) {
		struct state *state;
		if (state_open(directory, &state, NULL) != 0)
			_exit(1);
		state_watch(&marks[0]);
		commit(state, true, "a");
		state_fold(state, NULL);
		state_watch(&marks[1]);
		commit(state, true, "b");
		state_watch(&marks[2]);
		commit(state, false, "not decisive");
		state_watch(&marks[3]);
		commit(state, true, "c");
		/* As if it had been killed before the write. */
		marks[4].offset = marks[3].offset + 1000;
		marks[4].sequence = (uint64_t)marks[3].sequence;
		kill(getpid(), SIGKILL);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	struct state *state;
	assert_int_equal(state_open(directory, &state, NULL), 0);
	commit(state, true, "later");
	assert_true(state_landed(state, &marks[0]));
	assert_true(state_landed(state, &marks[1]));
	assert_false(state_landed(state, &marks[2]));
	assert_true(state_landed(state, &marks[3]));
	assert_false(state_landed(state, &marks[4]));
	state_close(state);
	munmap(marks, 4096);
	snprintf(command, sizeof(command), "rm -r %s", directory);
	assert_int_equal(system(command), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(records_outlive_who_made_them),
	        cmocka_unit_test(too_large_a_record_is_refused),
	        cmocka_unit_test(closing_in_a_child_takes_nothing_else_away),
	        cmocka_unit_test(a_successor_knows_what_landed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
