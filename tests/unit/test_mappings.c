/*
 * Who has a file open or mapped, and that asking harms nobody.
 */
#include "fs/mount/mappings.h"

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define ASKED 20000

static char path[] = "/var/tmp/lake-mappings.XXXXXX";

static int set_up(void **state)
{
	int fd = mkstemp(path);
	(void)state;
	return fd < 0 || ftruncate(fd, 4096) < 0 || close(fd) < 0;
}

static int tear_down(void **state)
{
	(void)state;
	return unlink(path);
}

static int open_as(int flags)
{
	int fd = open(path, flags | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static void test_others_are_seen(void **state)
{
	int ours = open_as(O_RDWR);
	(void)state;
	assert_false(mappings_possible(ours));
	int other = open_as(O_RDONLY);
	assert_true(mappings_possible(ours));
	close(other);
	assert_false(mappings_possible(ours));
	close(ours);
}

static void test_a_mapping_outlives_its_descriptor(void **state)
{
	int fd = open_as(O_RDWR);
	(void)state;
	void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(mapped, MAP_FAILED);
	close(fd);
	fd = open_as(O_RDONLY);
	assert_true(mappings_exist(fd, 0, false));
	munmap(mapped, 4096);
	assert_false(mappings_exist(fd, 0, false));
	close(fd);
}

static void *open_often(void *context)
{
	atomic_bool *ends = context;
	while (!atomic_load(ends)) {
		int fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0)
			close(fd);
	}
	return NULL;
}

/* Each open that meets the lease sends us a signal. */
static void test_opening_while_it_is_asked_ends_nobody(void **state)
{
	pthread_t thread;
	atomic_bool ends = false;
	unsigned given = 0;
	int fd = open_as(O_RDWR);
	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, open_often, &ends), 0);
	for (unsigned i = 0; i < ASKED; i++)
		given += !mappings_possible(fd);
	atomic_store(&ends, true);
	pthread_join(thread, NULL);
	assert_true(given > 0);
	assert_false(mappings_possible(fd));
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_others_are_seen),
	        cmocka_unit_test(test_a_mapping_outlives_its_descriptor),
	        cmocka_unit_test(test_opening_while_it_is_asked_ends_nobody),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
