/* Hooks of a lake's directory: which run, as whom, what they see, and what their answers mean. */
#include "fs/publish/hooks.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define NOBODY 65534

struct world {
	char directory[64], hooks[80], hook[112];
	struct lake lake;
	struct caller caller;
	struct message message;
	struct buffer output;
	int asked; /* for the changed paths */
};

static void world_begin(struct world *world)
{
	memset(world, 0, sizeof(*world));
	strcpy(world->directory, "/tmp/test-hooks.XXXXXX");
	assert_non_null(mkdtemp(world->directory));
	assert_int_equal(chmod(world->directory, 0755), 0);
	snprintf(world->hooks, sizeof(world->hooks), "%s/hooks", world->directory);
	snprintf(world->hook, sizeof(world->hook), "%s/pre-commit", world->hooks);
	assert_int_equal(mkdir(world->hooks, 0755), 0);
	world->lake.directory = world->directory;
	caller_self(&world->caller);
}

static void world_end(struct world *world)
{
	char command[128];
	buffer_release(&world->output);
	snprintf(command, sizeof(command), "rm -rf %s", world->directory);
	assert_int_equal(system(command), 0);
}

static void write_hook(const struct world *world, const char *script, mode_t mode)
{
	int fd = open(world->hook, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0700);
	assert_true(fd >= 0);
	assert_true(write(fd, "#!/bin/sh\n", 10) == 10);
	assert_int_equal(write(fd, script, strlen(script)), strlen(script));
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static int two_paths(void *context, struct buffer *ret_paths, struct message *message)
{
	((struct world *)context)->asked++;
	(void)message;
	buffer_append(ret_paths, "a/b\0c d", 8);
	return 0;
}

static int run(struct world *world)
{
	const struct hook_event event = {.name = "pre-commit",
	                                 .branch = "main",
	                                 .message = "two words",
	                                 .changed = two_paths,
	                                 .context = world};
	buffer_clear(&world->output);
	world->message.text[0] = '\0';
	int result =
	        hook_run(&world->lake, &world->caller, &event, &world->output, &world->message);
	buffer_u8(&world->output, 0);
	return result;
}

static bool says(const struct world *world, const char *text)
{
	return strstr(world->message.text, text) != NULL;
}

static bool prints(const struct world *world, const char *text)
{
	return strstr((const char *)world->output.data, text) != NULL;
}

static void no_hook_costs_nothing(void **state)
{
	(void)state;
	struct world world;
	world_begin(&world);
	assert_int_equal(run(&world), 0);
	assert_int_equal(rmdir(world.hooks), 0);
	assert_int_equal(run(&world), 0);
	assert_int_equal(world.asked, 0);
	assert_string_equal(world.message.text, "");
	world_end(&world);
}

static void a_hook_sees_what_is_to_happen(void **state)
{
	(void)state;
	struct world world;
	world_begin(&world);
	write_hook(&world,
	           "env | grep ^LAKE_ | sort; pwd; tr '\\0' '|' <$LAKE_CHANGED; id -u; "
	           "stat -c %a $LAKE_CHANGED; read x || echo no input; echo e >&2",
	           0755);
	assert_int_equal(run(&world), 0);
	assert_true(prints(&world, "LAKE_BRANCH=main\nLAKE_CANDIDATE=\nLAKE_CHANGED=/"));
	assert_true(prints(&world, "LAKE_COMMIT=\nLAKE_HOOK=pre-commit\nLAKE_MESSAGE=two words\n"
	                           "LAKE_MOUNT=\nLAKE_SOURCE=\nLAKE_TARGET=\n/\na/b|c d|"));
	assert_true(prints(&world, "\n600\nno input\ne\n"));
	assert_int_equal(world.asked, 1);

	/* with a mount the candidate is a directory, and where it runs */
	char place[128], expected[256];
	snprintf(place, sizeof(place), "%s/main", world.directory);
	assert_int_equal(mkdir(place, 0755), 0);
	world.lake.mountpoint = world.directory;
	assert_int_equal(run(&world), 0);
	snprintf(expected, sizeof(expected), "\nLAKE_CANDIDATE=%s\n", place);
	assert_true(prints(&world, expected));
	snprintf(expected, sizeof(expected), "LAKE_TARGET=\n%s\n", place);
	assert_true(prints(&world, expected));
	world_end(&world);
}

static void the_list_of_paths_is_removed(void **state)
{
	(void)state;
	struct world world;
	world_begin(&world);
	write_hook(&world, "printf %s $LAKE_CHANGED", 0755);
	assert_int_equal(run(&world), 0);
	assert_int_not_equal(access((const char *)world.output.data, F_OK), 0);
	write_hook(&world, "printf %s $LAKE_CHANGED; exit 1", 0755);
	assert_int_equal(run(&world), -ERR_REFUSED);
	const char *path = strstr(world.message.text, ": /");
	assert_non_null(path);
	assert_int_not_equal(access(path + 2, F_OK), 0);
	world_end(&world);
}

static void whatever_is_no_yes_is_a_no(void **state)
{
	(void)state;
	struct world world;
	world_begin(&world);
	write_hook(&world, "echo 12 rows are NULL; printf '\\377\\033'; exit 7", 0755);
	assert_int_equal(run(&world), -ERR_REFUSED);
	assert_true(says(&world, "pre-commit said no (exit 7): 12 rows are NULL\n\xef\xbf\xbd"));
	assert_null(strchr(world.message.text, 033));
	write_hook(&world, "kill -9 $$", 0755);
	assert_int_equal(run(&world), -ERR_REFUSED);
	assert_true(says(&world, "ended by signal 9"));
	/* of much it is the end that is told, from the start of a line, and all of it kept */
	write_hook(&world, "seq 1 1000; echo the reason; exit 1", 0755);
	assert_int_equal(run(&world), -ERR_REFUSED);
	assert_true(says(&world, "\n999\n1000\nthe reason"));
	assert_true(says(&world, "(exit 1): 8"));
	assert_true(prints(&world, "1\n2\n3\n"));
	/* an interpreter that is not there */
	int fd = open(world.hook, O_WRONLY | O_TRUNC);
	assert_true(write(fd, "#!/nowhere/sh\n", 14) == 14);
	close(fd);
	assert_int_equal(run(&world), -ERR_REFUSED);
	assert_true(says(&world, "hook pre-commit"));
	world_end(&world);
}

static void what_is_not_executable_is_a_warning(void **state)
{
	(void)state;
	struct world world;
	world_begin(&world);
	write_hook(&world, "exit 1", 0644);
	assert_int_equal(run(&world), 1);
	assert_true(says(&world, "chmod +x"));
	assert_int_equal(world.asked, 0);
	world_end(&world);
}

static void what_others_could_have_written_does_not_run(void **state)
{
	(void)state;
	struct world world;
	char other[112], ran[112], script[160];
	world_begin(&world);
	snprintf(ran, sizeof(ran), "%s/ran", world.directory);
	snprintf(script, sizeof(script), "touch %s", ran);
	write_hook(&world, script, 0757);
	assert_int_equal(run(&world), -ERR_REFUSED);
	assert_true(says(&world, "can be written by others"));
	write_hook(&world, script, 0775);
	assert_int_equal(run(&world), -ERR_REFUSED);
	write_hook(&world, script, 0755);
	assert_int_equal(chmod(world.hooks, 0777), 0);
	assert_int_equal(run(&world), -ERR_REFUSED);
	assert_int_equal(chmod(world.hooks, 0755), 0);
	snprintf(other, sizeof(other), "%s/elsewhere", world.directory);
	assert_int_equal(rename(world.hook, other), 0);
	assert_int_equal(symlink(other, world.hook), 0);
	assert_int_equal(run(&world), -ERR_REFUSED);
	assert_int_equal(unlink(world.hook), 0);
	assert_int_equal(mkdir(world.hook, 0755), 0);
	assert_int_equal(run(&world), -ERR_REFUSED);
	assert_int_equal(rmdir(world.hook), 0);
	assert_int_not_equal(access(ran, F_OK), 0);
	if (geteuid() == 0) {
		write_hook(&world, script, 0755);
		assert_int_equal(chown(world.hook, NOBODY, 0), 0);
		assert_int_equal(run(&world), -ERR_REFUSED);
		assert_true(says(&world, "neither root nor the lake's owner"));
		assert_int_not_equal(access(ran, F_OK), 0);
		/* but his own lake's hooks he may write, which is no way to become root */
		assert_int_equal(chown(world.directory, NOBODY, 0), 0);
		assert_int_equal(chown(world.hooks, NOBODY, 0), 0);
		assert_int_equal(run(&world), -ERR_REFUSED);
		assert_true(says(&world, "does not run as root"));
		assert_int_not_equal(access(ran, F_OK), 0);
		world.caller.uid = world.caller.gid = NOBODY;
		assert_int_equal(run(&world), 0);
		assert_int_equal(access(ran, F_OK), 0);
	}
	world_end(&world);
}

static void it_runs_as_who_asked(void **state)
{
	(void)state;
	struct world world;
	if (geteuid() != 0)
		skip();
	world_begin(&world);
	world.caller.uid = NOBODY;
	world.caller.gid = NOBODY;
	write_hook(&world, "id -u; id -g; tr '\\0' '|' <$LAKE_CHANGED; touch $0.x", 0755);
	assert_int_equal(run(&world), -ERR_REFUSED); /* touch */
	assert_true(says(&world, "65534\n65534\na/b|c d|"));
	/* one that he may not even read has not said yes */
	write_hook(&world, "exit 0", 0700);
	assert_int_equal(run(&world), -ERR_REFUSED);
	world_end(&world);
}

static int store_is_away(void *context, struct buffer *ret_paths, struct message *message)
{
	(void)context;
	(void)ret_paths;
	return (fail)(message, -ERR_STORE_AWAY, "away");
}

static bool at_once(void *context)
{
	(void)context;
	return true;
}

static void what_hinders_it_is_told(void **state)
{
	(void)state;
	struct world world;
	struct hook_event event = {
	        .name = "pre-commit", .branch = "main", .changed = store_is_away};
	world_begin(&world);
	write_hook(&world, "exec sleep 30", 0755);
	assert_int_equal(hook_run(&world.lake, &world.caller, &event, NULL, &world.message),
	                 -ERR_STORE_AWAY);
	assert_string_equal(world.message.text, "away");
	event.changed = NULL;
	event.cancelled = at_once;
	int64_t begin = clock_monotonic_ms();
	assert_int_equal(hook_run(&world.lake, &world.caller, &event, NULL, &world.message),
	                 -ERR_INTERRUPTED);
	assert_true(clock_monotonic_ms() - begin < 5000);
	world_end(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(no_hook_costs_nothing),
	        cmocka_unit_test(a_hook_sees_what_is_to_happen),
	        cmocka_unit_test(the_list_of_paths_is_removed),
	        cmocka_unit_test(whatever_is_no_yes_is_a_no),
	        cmocka_unit_test(what_is_not_executable_is_a_warning),
	        cmocka_unit_test(what_others_could_have_written_does_not_run),
	        cmocka_unit_test(it_runs_as_who_asked),
	        cmocka_unit_test(what_hinders_it_is_told),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
