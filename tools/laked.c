/*
 * laked — the daemon: opens a lake, mounts it, answers lakectl, until it is unmounted.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/control.h"
#include "fs/follower.h"
#include "fs/mount.h"

#ifndef LAKE_VERSION
#define LAKE_VERSION "0.1.0"
#endif

extern char **environ;

struct daemon {
	struct lake *lake;
	struct mount *mount;
	struct control *control;
	struct follower *follower;
	const char *mountpoint;
};

struct daemon_options {
	const char *lake;
	int ready_fd; /* where "ready" or the error goes; -1: nowhere */
	struct mount_options mount;
};

static const char help[] =
        "usage: laked [--lake DIR] [--no-passthrough] [--debug] [--threads N] MOUNTPOINT\n\n"
        "Serves the lake in DIR at MOUNTPOINT until it is unmounted. `lakectl mount` starts it in\n"
        "the background. Messages go to standard error.\n\n"
        "  --lake DIR          the lake's directory (default: $LAKE_DIR, then the default lake)\n"
        "  --no-passthrough    copy all data through the daemon\n"
        "  --threads N         at most N threads answer the kernel\n"
        "  --debug             log every request\n"
        "  --ready-fd N        write \"ready\" to descriptor N when mounted\n"
        "  --version, --help\n";

/* -- unmounting on request -- */

static int unmount_as_user(const char *mountpoint, bool force)
{
	const char *arguments[] = {"fusermount3", "-u",       force ? "-z" : "-q",
	                           "--",          mountpoint, NULL};
	pid_t child;
	int status;
	if (posix_spawnp(&child, arguments[0], NULL, NULL, (char *const *)arguments, environ) != 0)
		return -ERR_UNSUPPORTED;
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		continue;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -ERR_BUSY;
}

static int unmount(const char *mountpoint, bool force, struct message *message)
{
	int error;
	if (geteuid() != 0)
		error = unmount_as_user(mountpoint, force);
	else if (umount2(mountpoint, force ? MNT_DETACH : 0) < 0)
		error = errno == EBUSY ? -ERR_BUSY : error_system(errno);
	else
		error = 0;
	if (error == -ERR_BUSY)
		return fail(
		        message, error,
		        "%s is in use by some process (a file or a current directory); `lsof %s` "
		        "names it, --force unmounts all the same",
		        mountpoint, mountpoint);
	return error ? fail(message, error, "cannot unmount %s: %s", mountpoint, error_text(error))
	             : 0;
}

static int answer_daemon(void *context, const struct caller *caller, const cJSON *request,
                         cJSON **ret_reply)
{
	struct daemon *daemon = context;
	struct message message = {{0}};
	const cJSON *name = cJSON_GetObjectItemCaseSensitive(request, "command");
	(void)caller;
	if (!cJSON_IsString(name) || strcmp(name->valuestring, "umount") != 0)
		return -ERR_UNSUPPORTED;
	bool force = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(request, "force"));
	int error = unmount(daemon->mountpoint, force, &message);
	if (error < 0) {
		*ret_reply = command_error(error, &message);
		return error;
	}
	if (force)
		mount_stop(daemon->mount);
	*ret_reply = cJSON_CreateObject();
	cJSON_AddStringToObject(*ret_reply, "unmounted", daemon->mountpoint);
	return 0;
}

/* -- starting and ending -- */

static void log_line(void *context, const char *line)
{
	(void)context;
	fprintf(stderr, "laked: %s\n", line);
}

static int start_follower(struct daemon *daemon, struct message *message)
{
	const struct follower_options options = {.trees = daemon->lake->worktrees,
	                                         .interval_ms = daemon->lake->config.refresh_ms,
	                                         .log = log_line};
	if (options.interval_ms < 0)
		return 0;
	return follower_start(&options, &daemon->follower, message);
}

static int start(struct daemon *daemon, const struct daemon_options *options,
                 struct message *message)
{
	CLEANUP(free_pointer) char *directory = NULL;
	CLEANUP(free_pointer) char *branch = NULL;
	CLEANUP(free_pointer) char *prefix = NULL;
	int error = lake_find(options->lake, &directory, &branch, &prefix, message);
	if (!error)
		error = lake_open(directory, &daemon->lake, message);
	if (!error)
		error = webhooks_start(daemon->lake->webhooks, log_line, NULL, message);
	if (!error)
		error = mount_new(daemon->lake, &options->mount, &daemon->mount, message);
	if (!error)
		error = control_start(daemon->lake, answer_daemon, daemon, &daemon->control,
		                      message);
	if (!error)
		error = start_follower(daemon, message);
	return error;
}

static void tell_starter(int fd, int error, const struct message *message)
{
	char text[sizeof message->text + 32];
	if (fd < 0)
		return;
	int length = error ? snprintf(text, sizeof text, "%d %s\n", error, message->text)
	                   : snprintf(text, sizeof text, "ready\n");
	if (write(fd, text, (size_t)length) < 0)
		fprintf(stderr, "laked: nobody waits for it to be ready\n");
	close(fd);
}

static int serve(const struct daemon_options *options)
{
	struct daemon daemon = {.mountpoint = options->mount.mountpoint};
	struct message message = {{0}};
	int error = start(&daemon, options, &message);
	if (error < 0 && !message.text[0])
		fail(&message, error, "cannot start: %s", error_text(error));
	tell_starter(options->ready_fd, error, &message);
	if (!error)
		error = mount_run(daemon.mount, &message);
	if (error < 0)
		fprintf(stderr, "laked: %s\n", message.text[0] ? message.text : error_text(error));
	follower_stop(daemon.follower);
	control_stop(daemon.control);
	mount_free(daemon.mount);
	lake_close(daemon.lake);
	return error < 0 ? error_exit(error) : 0;
}

static int parse(int argc, char **argv, struct daemon_options *ret_options)
{
	static const struct option longs[] = {{"lake", required_argument, NULL, 'l'},
	                                      {"ready-fd", required_argument, NULL, 'r'},
	                                      {"no-passthrough", no_argument, NULL, 'p'},
	                                      {"debug", no_argument, NULL, 'd'},
	                                      {"threads", required_argument, NULL, 't'},
	                                      {"version", no_argument, NULL, 'v'},
	                                      {"help", no_argument, NULL, 'h'},
	                                      {0}};
	int value;
	while ((value = getopt_long(argc, argv, "hl:", longs, NULL)) != -1) {
		if (value == 'l')
			ret_options->lake = optarg;
		else if (value == 'r')
			ret_options->ready_fd = atoi(optarg);
		else if (value == 'p')
			ret_options->mount.passthrough = false;
		else if (value == 'd')
			ret_options->mount.debug = true;
		else if (value == 't')
			ret_options->mount.threads = (unsigned)atoi(optarg);
		else if (value == 'v')
			return puts("laked " LAKE_VERSION) < 0;
		else if (value == 'h')
			return fputs(help, stdout) < 0;
		else
			return 2;
	}
	if (optind + 1 != argc) {
		fputs(help, stderr);
		return 2;
	}
	ret_options->mount.mountpoint = argv[optind];
	return -1;
}

int main(int argc, char **argv)
{
	struct daemon_options options = {.ready_fd = -1, .mount = {.passthrough = true}};
	int code = parse(argc, argv, &options);
	if (code >= 0)
		return code;
	signal(SIGPIPE, SIG_IGN);
	umask(0022);
	return serve(&options);
}
