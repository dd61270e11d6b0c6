/*
 * laked — the daemon: opens a lake, mounts it, answers lakectl, until it is unmounted. A supervisor
 * (tools/supervisor.h) holds the mount while it is not there.
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

#include "fs/commands/control.h"
#include "fs/follower.h"
#include "fs/mount/mount.h"
#include "fs/mount/vfs.h"
#include "store/secret.h"
#include "tools/service.h"
#include "tools/supervisor.h"

#ifndef LAKE_VERSION
#define LAKE_VERSION "0.1.0"
#endif

#define RESTARTS_DEFAULT 10

extern char **environ;

struct daemon {
	struct lake *lake;
	struct mount *mount;
	struct control *control;
	struct follower *follower;
	const char *mountpoint;
	int supervisor; /* a socket; -1: none */
};

struct daemon_options {
	const char *lake;
	int ready_fd; /* where "ready" or the error goes; -1: nowhere */
	bool supervised;
	unsigned restarts;
	struct mount_options mount;
};

static const char help[] =
        "usage: laked [--lake DIR] [--no-passthrough] [--debug] [--threads N]\n"
        "             [--no-supervisor | --restarts N] MOUNTPOINT\n\n"
        "Serves the lake in DIR at MOUNTPOINT until it is unmounted. `lakectl mount` starts it in\n"
        "the background. Messages go to standard error.\n\n"
        "  --lake DIR          the lake's directory (default: $LAKE_DIR, then the default lake)\n"
        "  --no-passthrough    copy all data through the daemon\n"
        "  --threads N         at most N threads answer the kernel\n"
        "  --no-supervisor     when it dies the mount is dead\n"
        "  --restarts N        give up when it dies more than N times a minute (default: 10)\n"
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

static int open_lake(struct daemon *daemon, const char *given, const struct heritage *heritage,
                     struct message *message)
{
	const struct lake_legacy legacy = {.lock_fd = heritage->lock,
	                                   .state_opened = vfs_state_opened,
	                                   .context = heritage->keep};
	CLEANUP(free_pointer) char *directory = NULL;
	CLEANUP(free_pointer) char *branch = NULL;
	CLEANUP(free_pointer) char *prefix = NULL;
	int error = 0;
	if (heritage->device < 0) {
		error = lake_find(given, &directory, &branch, &prefix, message);
		return error ? error : lake_open(directory, &daemon->lake, message);
	}
	return lake_inherit(keep_root(heritage->keep)->lake, &legacy, &daemon->lake, message);
}

/* From now on this process can be replaced. */
static int hand_over(struct daemon *daemon, const struct heritage *heritage,
                     struct message *message)
{
	if (heritage->supervisor < 0 || heritage->device >= 0)
		return 0;
	struct keep_root *root = keep_root(heritage->keep);
	snprintf(root->lake, sizeof root->lake, "%s", daemon->lake->directory);
	int error = supervisor_hand_over(heritage->supervisor, mount_device(daemon->mount),
	                                 daemon->lake->lock_fd);
	return error ? fail(message, error, "cannot reach the supervisor: %s", error_text(error))
	             : 0;
}

static void part(void *context)
{
	struct daemon *daemon = context;
	if (daemon->supervisor >= 0)
		supervisor_part(daemon->supervisor);
}

static int start(struct daemon *daemon, const struct daemon_options *options,
                 const struct heritage *heritage, struct message *message)
{
	struct mount_options mount = options->mount;
	int error = open_lake(daemon, options->lake, heritage, message);
	if (!error)
		error = webhooks_start(daemon->lake->webhooks, log_line, NULL, message);
	mount.keep = heritage->keep;
	mount.device = heritage->device;
	mount.parting = part;
	mount.context = daemon;
	if (!error && heritage->keep)
		daemon->lake->commands = &keep_root(heritage->keep)->commands;
	if (!error)
		error = mount_new(daemon->lake, &mount, &daemon->mount, message);
	if (!error)
		error = hand_over(daemon, heritage, message);
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
	snprintf(text, sizeof text, error ? "STATUS=%s\n" : "READY=1\n", message->text);
	service_tell(text);
	if (fd < 0)
		return;
	int length = error ? snprintf(text, sizeof text, "%d %s\n", error, message->text)
	                   : snprintf(text, sizeof text, "ready\n");
	if (write(fd, text, (size_t)length) < 0)
		fprintf(stderr, "laked: nobody waits for it to be ready\n");
	close(fd);
}

static int serve(void *context, const struct heritage *heritage)
{
	const struct daemon_options *options = context;
	struct daemon daemon = {.mountpoint = options->mount.mountpoint,
	                        .supervisor = heritage->supervisor};
	struct message message = {{0}};
	if (heritage->device >= 0)
		daemon.mountpoint = keep_root(heritage->keep)->mountpoint;
	int error = start(&daemon, options, heritage, &message);
	bool started = !error;
	if (error < 0 && !message.text[0])
		fail(&message, error, "cannot start: %s", error_text(error));
	if (heritage->device < 0)
		tell_starter(options->ready_fd, error, &message);
	else if (started)
		log_line(NULL, "serving again");
	if (!error)
		error = mount_run(daemon.mount, &message);
	if (error < 0)
		fprintf(stderr, "laked: %s\n", message.text[0] ? message.text : error_text(error));
	if (started)
		service_tell("STOPPING=1\n");
	follower_stop(daemon.follower);
	control_stop(daemon.control);
	mount_free(daemon.mount);
	lake_close(daemon.lake);
	if (heritage->device >= 0 && !started && error == -ERR_STORE_AWAY)
		return SERVE_LATER;
	return error < 0 ? error_exit(error) : 0;
}

static int parse(int argc, char **argv, struct daemon_options *ret_options)
{
	static const struct option longs[] = {{"lake", required_argument, NULL, 'l'},
	                                      {"ready-fd", required_argument, NULL, 'r'},
	                                      {"no-passthrough", no_argument, NULL, 'p'},
	                                      {"no-supervisor", no_argument, NULL, 's'},
	                                      {"restarts", required_argument, NULL, 'n'},
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
		else if (value == 's')
			ret_options->supervised = false;
		else if (value == 'n')
			ret_options->restarts = (unsigned)atoi(optarg);
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
	struct daemon_options options = {.ready_fd = -1,
	                                 .supervised = true,
	                                 .restarts = RESTARTS_DEFAULT,
	                                 .mount = {.passthrough = true, .device = -1}};
	const struct heritage alone = {.device = -1, .lock = -1, .supervisor = -1};
	secrets_adopt_environment();
	service_begin();
	int code = parse(argc, argv, &options);
	if (code >= 0)
		return code;
	signal(SIGPIPE, SIG_IGN);
	umask(0022);
	if (!options.supervised)
		return serve(&options, &alone);
	return supervise(&(struct supervision){.serve = serve,
	                                       .context = &options,
	                                       .starter = options.ready_fd,
	                                       .restarts = options.restarts});
}
