/* secret: what is freed is wiped, no page of it is dumped, the environment keeps its words. */
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/secret.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

/* The flags that /proc/self/smaps has of the mapping with this address. */
static bool is_left_out_of_dumps(const void *address)
{
	FILE *maps = fopen("/proc/self/smaps", "re");
	char line[512];
	bool inside = false, left_out = false;
	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps)) {
		unsigned long from, to;
		char flags[4];
		if (sscanf(line, "%lx-%lx %3s", &from, &to, flags) == 3)
			inside = (uintptr_t)address >= from && (uintptr_t)address < to;
		else if (inside && strncmp(line, "VmFlags:", 8) == 0)
			left_out = strstr(line, " dd") != NULL;
	}
	fclose(maps);
	return left_out;
}

static void test_pages_are_zeroed_and_not_dumped(void **state)
{
	static const size_t sizes[] = {1, 100, 4000, 4080, 4081, 4096, 20000};
	char *all[40];
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		char *secret = secret_new(sizes[i]);
		assert_non_null(secret);
		for (size_t at = 0; at < sizes[i]; at++)
			assert_int_equal(secret[at], 0);
		assert_true(is_left_out_of_dumps(secret));
		assert_true(is_left_out_of_dumps(secret + sizes[i] - 1));
		memset(secret, 'x', sizes[i]);
		secret_free(secret);
	}
	/* More than are kept for the next one; those are zeroed again. */
	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
			all[i] = secret_new(4000);
			assert_non_null(all[i]);
			assert_int_equal(all[i][0], 0);
			assert_int_equal(all[i][3999], 0);
			memset(all[i], 'y', 4000);
		}
		for (size_t i = 0; i < ARRAY_SIZE(all); i++)
			secret_free(all[i]);
	}
	secret_free(NULL);
	assert_null(secret_new(SIZE_MAX));
}

/* In a process of its own: what it does cannot be undone. */
static int in_child(int (*function)(void))
{
	int status = -1;
	fflush(NULL);
	pid_t child = fork();
	if (child == 0)
		_exit(function());
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int adopt(void)
{
	static char key[] = "AWS_SECRET_ACCESS_KEY=a key", other[] = "AWS_SECRET_ACCESS_KEYS=1";
	static char *words[] = {"HOME=/x", other, key, NULL};
	environ = words;
	secrets_adopt_environment();
	if (prctl(PR_GET_DUMPABLE) != 0 || strcmp(getenv("AWS_SECRET_ACCESS_KEY"), "a key") != 0)
		return 1;
	for (size_t i = 0; i < sizeof(key); i++)
		if (key[i] != '\0')
			return 2;
	if (strcmp(other, "AWS_SECRET_ACCESS_KEYS=1") != 0 || words[1] != other)
		return 3;
	return is_left_out_of_dumps(getenv("AWS_SECRET_ACCESS_KEY")) ? 0 : 4;
}

static int adopt_nothing(void)
{
	static char *words[] = {"HOME=/x", NULL};
	environ = words;
	secrets_adopt_environment();
	return prctl(PR_GET_DUMPABLE) == 1 ? 0 : 1;
}

static int adopt_with_cores_allowed(void)
{
	static char key[] = "AWS_SESSION_TOKEN=t";
	static char *words[] = {"LAKE_ALLOW_CORE=1", key, NULL};
	environ = words;
	secrets_adopt_environment();
	return prctl(PR_GET_DUMPABLE) == 1 && key[0] == '\0' ? 0 : 1;
}

static void test_the_environment_is_moved(void **state)
{
	assert_int_equal(in_child(adopt), 0);
	assert_int_equal(in_child(adopt_nothing), 0);
	assert_int_equal(in_child(adopt_with_cores_allowed), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_pages_are_zeroed_and_not_dumped),
	        cmocka_unit_test(test_the_environment_is_moved),
	};
	return cmocka_run_group_tests_name("secret", tests, NULL, NULL);
}
