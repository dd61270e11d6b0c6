/* Programs run as a user: what they get, what ends them, and what they cannot leave behind. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <pwd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/publish/program.h"

#include <cmocka.h>

#define NOBODY 65534

static char directory[] = "/tmp/test-program-XXXXXX";
static const char *const no_variables[] = {"PATH=" PROGRAM_PATH, NULL};

static int set_up(void **state)
{
	umask(0022);
	return mkdtemp(directory) && chmod(directory, 0755) == 0 ? 0 : -1;
}

static int tear_down(void **state)
{
	char command[128];
	snprintf(command, sizeof command, "rm -rf %s", directory);
	return system(command);
}

/* A file in the directory; valid until the next call. */
static const char *script(const char *name, const char *text, mode_t mode)
{
	static _Thread_local char path[128];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	FILE *file = fopen(path, "we");
	assert_non_null(file);
	fputs(text, file);
	fclose(file);
	assert_int_equal(chmod(path, mode), 0);
	return path;
}

static struct program program_of(const char *const *argv)
{
	return (struct program){.argv = argv,
	                        .environment = no_variables,
	                        .directory = "/",
	                        .uid = geteuid(),
	                        .gid = getegid(),
	                        .timeout_ms = 20000,
	                        .output_max = 4096};
}

/* Runs `text` in a shell. */
static int run_shell(const char *text, struct program_result *ret_result, struct message *message)
{
	const char *const argv[] = {"/bin/sh", "-c", text, NULL};
	struct program program = program_of(argv);
	return program_run(&program, ret_result, message);
}

static void expect_output(const struct program_result *result, const char *text)
{
	assert_string_equal(result->output.data ? (char *)result->output.data : "", text);
	assert_int_equal(result->output.length, strlen(text));
}

static void test_its_end_and_output_are_told(void **state)
{
	struct program_result result = {0};
	assert_int_equal(run_shell("echo out; echo err >&2; exit 7", &result, NULL), 0);
	expect_output(&result, "out\nerr\n");
	assert_int_equal(result.exit_code, 7);
	assert_int_equal(result.signal, 0);
	assert_false(result.timed_out || result.output_cut);
	program_result_release(&result);
	assert_int_equal(run_shell("true", &result, NULL), 0);
	expect_output(&result, "");
	assert_int_equal(result.exit_code, 0);
	program_result_release(&result);
	assert_int_equal(run_shell("kill -11 $$", &result, NULL), 0);
	assert_int_equal(result.exit_code, -1);
	assert_int_equal(result.signal, 11);
	program_result_release(&result);
}

static void test_what_it_starts_with(void **state)
{
	struct program_result result = {0};
	/* What we have open, ignore, block and are in is nothing to it. */
	CLEANUP(close_descriptor) int fd = open("/dev/null", O_RDONLY);
	sigset_t blocked, before;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &blocked, &before);
	void (*old)(int) = signal(SIGPIPE, SIG_IGN);
	mode_t mask = umask(0077);
	assert_int_equal(
	        run_shell("ls /proc/$$/fd; readlink /proc/$$/fd/0; umask; pwd;"
	                  "grep -E 'Sig(Blk|Ign)' /proc/$$/status | cut -f2;"
	                  "test $(cut -d' ' -f6 /proc/$$/stat) = $$ && echo session; env | sort",
	                  &result, NULL),
	        0);
	umask(mask);
	signal(SIGPIPE, old);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	expect_output(&result, "0\n1\n2\n/dev/null\n0022\n/\n0000000000000000\n0000000000000000\n"
	                       "session\nPATH=" PROGRAM_PATH "\nPWD=/\n");
	program_result_release(&result);
}

static void test_background_children_are_not_waited_for(void **state)
{
	struct program_result result = {0};
	char text[256], path[128];
	snprintf(path, sizeof path, "%s/pid", directory);
	snprintf(text, sizeof text, "sleep 1000 & echo $! >%s; echo done", path);
	assert_int_equal(run_shell(text, &result, NULL), 0);
	expect_output(&result, "done\n");
	assert_true(result.took_ms < 15000);
	program_result_release(&result);
	FILE *file = fopen(path, "re");
	int pid = 0;
	assert_int_equal(fscanf(file, "%d", &pid), 1);
	fclose(file);
	for (int i = 0; i < 500 && kill(pid, 0) == 0; i++) { /* init has to reap it */
		char state_path[64], line[256] = "";
		snprintf(state_path, sizeof state_path, "/proc/%d/stat", pid);
		FILE *status = fopen(state_path, "re");
		if (status && fgets(line, sizeof line, status) && strstr(line, ") Z "))
			pid = -1;
		if (status)
			fclose(status);
		if (pid < 0)
			return;
		usleep(10000);
	}
	assert_int_not_equal(kill(pid, 0), 0);
}

/* One that made a session of its own is left alone, and its hold on the pipe is not waited for. */
static void test_a_session_of_its_own_lives_on(void **state)
{
	struct program_result result = {0};
	assert_int_equal(
	        run_shell("setsid sh -c 'echo $$; exec sleep 300' & sleep 0.5", &result, NULL), 0);
	assert_true(result.took_ms < 15000);
	int pid = atoi((const char *)result.output.data);
	assert_true(pid > 1);
	assert_int_equal(kill(pid, 0), 0);
	kill(pid, SIGKILL);
	program_result_release(&result);
}

static void test_the_time_limit_ends_it(void **state)
{
	struct program_result result = {0};
	const char *const argv[] = {"/bin/sh", "-c", "echo begun; sleep 1000; echo never", NULL};
	struct program program = program_of(argv);
	program.timeout_ms = 300;
	assert_int_equal(program_run(&program, &result, NULL), 0);
	assert_true(result.timed_out);
	assert_int_equal(result.exit_code, -1);
	assert_int_equal(result.signal, SIGTERM);
	expect_output(&result, "begun\n");
	assert_true(result.took_ms >= 300 && result.took_ms < 15000);
	program_result_release(&result);
}

static void test_the_time_limit_ends_who_ignores_it(void **state)
{
	struct program_result result = {0};
	const char *const argv[] = {
	        "/bin/sh", "-c", "trap 'echo no' TERM; trap '' PIPE; while :; do sleep 0.1; done",
	        NULL};
	struct program program = program_of(argv);
	program.timeout_ms = 200;
	assert_int_equal(program_run(&program, &result, NULL), 0);
	assert_true(result.timed_out);
	assert_int_equal(result.signal, SIGKILL);
	assert_non_null(strstr((char *)result.output.data, "no\n"));
	assert_true(result.took_ms >= 2000);
	program_result_release(&result);
}

static bool after_a_while(void *context)
{
	int *looks = context;
	return ++*looks > 3;
}

static void test_it_can_be_cancelled(void **state)
{
	struct program_result result = {0};
	struct message message = {{0}};
	const char *const argv[] = {"/bin/sh", "-c", "while :; do echo flood; done", NULL};
	struct program program = program_of(argv);
	int looks = 0;
	program.cancelled = after_a_while;
	program.context = &looks;
	assert_int_equal(program_run(&program, &result, &message), -ERR_INTERRUPTED);
	assert_int_equal(looks, 4); /* some times a second, however much it says */
	assert_null(result.output.data);
}

static void test_floods_keep_the_beginning_and_the_end(void **state)
{
	struct program_result result = {0};
	const char *const argv[] = {"/bin/sh", "-c", "echo first; seq 1 200000; echo last", NULL};
	struct program program = program_of(argv);
	program.output_max = 1000;
	assert_int_equal(program_run(&program, &result, NULL), 0);
	const char *text = (const char *)result.output.data, *mark = strstr(text, "\n[... ");
	assert_true(result.output_cut);
	assert_non_null(mark);
	assert_int_equal(mark - text, 500);
	assert_memory_equal(text, "first\n1\n2\n", 10);
	const char *after = strstr(mark, " ...]\n") + strlen(" ...]\n");
	assert_int_equal(strlen(after), 500);
	assert_string_equal(text + result.output.length - 12, "200000\nlast\n");
	assert_int_equal(strtoll(mark + 6, NULL, 10), 6 + 1288895 + 5 - 1000);
	program_result_release(&result);
}

static void test_output_of_exactly_the_limit_is_whole(void **state)
{
	for (int more = 0; more <= 1; more++) {
		struct program_result result = {0};
		char text[64];
		snprintf(text, sizeof text, "head -c %d /dev/zero | tr '\\0' x", 4096 + more);
		assert_int_equal(run_shell(text, &result, NULL), 0);
		assert_int_equal(result.output_cut, more);
		if (!more)
			assert_int_equal(result.output.length, 4096);
		program_result_release(&result);
	}
	struct program_result result = {0};
	const char *const argv[] = {"/bin/echo", "text", NULL};
	struct program program = program_of(argv);
	program.output_max = 0;
	assert_int_equal(program_run(&program, &result, NULL), 0);
	assert_true(result.output_cut);
	program_result_release(&result);
}

static int run_one(const char *path, struct message *message)
{
	CLEANUP(program_result_release) struct program_result result = {0};
	const char *const argv[] = {path, NULL};
	struct program program = program_of(argv);
	return program_run(&program, &result, message);
}

static void test_what_cannot_be_run_is_named(void **state)
{
	struct message message = {{0}};
	struct program_result result = {0};
	assert_int_equal(run_one("/nowhere/audit", &message), -ERR_NOT_FOUND);
	assert_non_null(strstr(message.text, "/nowhere/audit"));
	assert_int_equal(run_one(script("plain", "#!/bin/sh\n", 0644), &message),
	                 error_system(EACCES));
	assert_non_null(strstr(message.text, "/plain"));
	assert_int_equal(run_one(script("lost", "#!/nowhere/python\n", 0755), &message),
	                 -ERR_NOT_FOUND);
	assert_non_null(strstr(message.text, "interpreter"));
	assert_int_equal(run_one(script("text", "just text\n", 0755), &message),
	                 error_system(ENOEXEC));
	assert_non_null(strstr(message.text, "#!"));
	assert_int_equal(run_one(directory, &message), error_system(EACCES));
	const char *const argv[] = {"/bin/true", NULL};
	struct program program = program_of(argv);
	program.directory = "/nowhere";
	assert_int_equal(program_run(&program, &result, &message), -ERR_NOT_FOUND);
	assert_non_null(strstr(message.text, "/nowhere"));
}

static void test_it_has_its_users_rights_and_no_others(void **state)
{
	struct program_result result = {0};
	struct message message = {{0}};
	char secret[128];
	if (geteuid() != 0)
		skip();
	snprintf(secret, sizeof secret, "%s", script("secret", "root's\n", 0600));
	const char *const argv[] = {
	        "/bin/sh",
	        "-c",
	        "id -u; id -ru; id -g; id -G; grep -E 'Cap(Prm|Eff|Amb)' /proc/$$/status | cut -f2;"
	        "cat \"$1\" 2>/dev/null || echo refused; touch $2/made 2>/dev/null || echo refused",
	        "sh",
	        secret,
	        directory,
	        NULL};
	struct program program = program_of(argv);
	program.uid = NOBODY;
	program.gid = NOBODY;
	assert_int_equal(program_run(&program, &result, &message), 0);
	expect_output(&result, "65534\n65534\n65534\n65534\n0000000000000000\n0000000000000000\n"
	                       "0000000000000000\nrefused\nrefused\n");
	program_result_release(&result);
	/* It enters its directory as that user, too. */
	char closed[128];
	snprintf(closed, sizeof closed, "%s/closed", directory);
	assert_int_equal(mkdir(closed, 0700), 0);
	program.directory = closed;
	assert_int_equal(program_run(&program, &result, &message), error_system(EACCES));
	assert_non_null(strstr(message.text, "/closed"));
}

static void test_it_has_its_users_groups(void **state)
{
	const struct passwd *user = NULL;
	gid_t groups[256];
	int count;
	if (geteuid() != 0)
		skip();
	setpwent();
	do { /* somebody in more than one group, for whom we are not */
		count = ARRAY_SIZE(groups);
		user = getpwent();
	} while (user && (user->pw_uid == 0 ||
	                  getgrouplist(user->pw_name, user->pw_gid, groups, &count) < 2));
	if (!user) {
		endpwent();
		skip();
	}
	struct program_result result = {0};
	const char *const argv[] = {"/usr/bin/id", "-G", NULL};
	struct program program = program_of(argv);
	program.uid = user->pw_uid;
	program.gid = user->pw_gid;
	endpwent();
	assert_int_equal(program_run(&program, &result, NULL), 0);
	for (int i = 0; i < count; i++) {
		char number[16];
		snprintf(number, sizeof number, "%u", groups[i]);
		assert_non_null(strstr((char *)result.output.data, number));
	}
	program_result_release(&result);
}

/* In a process of its own, since it gives its rights up. */
static int refused_without_root(void)
{
	CLEANUP(program_result_release) struct program_result result = {0};
	const char *const argv[] = {"/usr/bin/id", "-u", NULL};
	struct program program = program_of(argv);
	if (geteuid() == 0 && (setgroups(0, NULL) < 0 || setgid(NOBODY) < 0 || setuid(NOBODY) < 0))
		return 1;
	program.uid = 0;
	if (program_run(&program, &result, NULL) != -ERR_REFUSED)
		return 2;
	program.uid = geteuid();
	if (program_run(&program, &result, NULL) != 0 || result.exit_code != 0)
		return 3;
	return atoi((const char *)result.output.data) == (int)geteuid() ? 0 : 4;
}

static void test_without_root_only_as_oneself(void **state)
{
	int status;
	pid_t pid = fork();
	if (pid == 0)
		_exit(refused_without_root());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_an_ignored_sigchld_does_not_hide_ends(void **state)
{
	struct program_result result = {0};
	void (*old)(int) = signal(SIGCHLD, SIG_IGN);
	assert_int_equal(run_shell("exit 9", &result, NULL), 0);
	assert_int_equal(result.exit_code, 9);
	program_result_release(&result);
	struct sigaction action = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT};
	sigaction(SIGCHLD, &action, NULL);
	assert_int_equal(run_shell("exit 8", &result, NULL), 0);
	assert_int_equal(result.exit_code, 8);
	program_result_release(&result);
	signal(SIGCHLD, old);
}

static int open_descriptors(void)
{
	DIR *open_ones = opendir("/proc/self/fd");
	int count = 0;
	while (readdir(open_ones))
		count++;
	closedir(open_ones);
	return count;
}

static void test_nothing_is_left_of_two_hundred(void **state)
{
	int before = open_descriptors();
	for (int i = 0; i < 200; i++) {
		CLEANUP(program_result_release) struct program_result result = {0};
		const char *const good[] = {"/bin/echo", "x", NULL}, *const bad[] = {"/nowhere",
		                                                                     NULL};
		struct program program = program_of(i % 4 ? good : bad);
		assert_int_equal(program_run(&program, &result, NULL), i % 4 ? 0 : -ERR_NOT_FOUND);
	}
	assert_int_equal(open_descriptors(), before);
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
}

/* A daemon may have been started with its standard descriptors closed. */
static int runs_without_standard_descriptors(void)
{
	CLEANUP(program_result_release) struct program_result result = {0};
	const char *const argv[] = {"/bin/sh", "-c", "cat; echo out; echo err >&2", NULL};
	struct program program = program_of(argv);
	close_range(0, 9, 0);
	if (program_run(&program, &result, NULL) != 0 || result.exit_code != 0)
		return 1;
	return strcmp((char *)result.output.data, "out\nerr\n") == 0 ? 0 : 2;
}

static void test_closed_standard_descriptors_do_no_harm(void **state)
{
	int status;
	pid_t pid = fork();
	if (pid == 0)
		_exit(runs_without_standard_descriptors());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void *run_some(void *context)
{
	size_t bad = 0;
	for (int i = 0; i < 25; i++) {
		CLEANUP(program_result_release) struct program_result result = {0};
		char text[32], wanted[32];
		snprintf(text, sizeof text, "echo %d-%zu; exit %d", i, (size_t)context, i);
		snprintf(wanted, sizeof wanted, "%d-%zu\n", i, (size_t)context);
		if (run_shell(text, &result, NULL) != 0 || result.exit_code != i ||
		    strcmp((char *)result.output.data, wanted) != 0)
			bad++;
	}
	return (void *)bad;
}

static void test_several_at_once(void **state)
{
	pthread_t threads[4];
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, run_some, (void *)i), 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		void *bad;
		pthread_join(threads[i], &bad);
		assert_null(bad);
	}
}

static void test_the_environment(void **state)
{
	CLEANUP(free_pointer) char **environment = NULL;
	const char *const more[] = {"LAKE_A=1", "LAKE_B="};
	assert_int_equal(program_environment(0, more, 2, &environment), 0);
	assert_string_equal(environment[0], "PATH=" PROGRAM_PATH);
	assert_string_equal(environment[1], "HOME=/root");
	assert_string_equal(environment[2], "USER=root");
	assert_string_equal(environment[3], "LANG=C.UTF-8");
	assert_string_equal(environment[4], "LAKE_A=1");
	assert_string_equal(environment[5], "LAKE_B=");
	assert_null(environment[6]);
	free_pointer(&environment);
	assert_int_equal(program_environment(4000123, NULL, 0, &environment), 0);
	assert_string_equal(environment[1], "HOME=/");
	assert_string_equal(environment[2], "USER=4000123");
	assert_null(environment[4]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_its_end_and_output_are_told),
	        cmocka_unit_test(test_what_it_starts_with),
	        cmocka_unit_test(test_background_children_are_not_waited_for),
	        cmocka_unit_test(test_a_session_of_its_own_lives_on),
	        cmocka_unit_test(test_the_time_limit_ends_it),
	        cmocka_unit_test(test_the_time_limit_ends_who_ignores_it),
	        cmocka_unit_test(test_it_can_be_cancelled),
	        cmocka_unit_test(test_floods_keep_the_beginning_and_the_end),
	        cmocka_unit_test(test_output_of_exactly_the_limit_is_whole),
	        cmocka_unit_test(test_what_cannot_be_run_is_named),
	        cmocka_unit_test(test_it_has_its_users_rights_and_no_others),
	        cmocka_unit_test(test_it_has_its_users_groups),
	        cmocka_unit_test(test_without_root_only_as_oneself),
	        cmocka_unit_test(test_an_ignored_sigchld_does_not_hide_ends),
	        cmocka_unit_test(test_nothing_is_left_of_two_hundred),
	        cmocka_unit_test(test_closed_standard_descriptors_do_no_harm),
	        cmocka_unit_test(test_several_at_once),
	        cmocka_unit_test(test_the_environment),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
