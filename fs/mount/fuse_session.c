/*
 * Hides mounting: what is at the mount point before, the session and its threads, and that no
 * mount is left behind.
 */
#include "fs/mount/fuse_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/commands/command.h"
#include "fs/mount/fuse_loop.h"
#include "store/thread.h"

#define THREADS_DEFAULT 128 /* made on demand; any number may wait for the store */
/* A read of 256 KiB, wherever it begins, is one request; with more the kernel reads further beyond
 * what is read in pieces than programs do. */
#define READ_AHEAD_KIB 272

extern char **environ;

/* -- the mount point -- */

struct mounted {
	char type[64];
	char device[32]; /* "major:minor" */
};

/* Octal escapes of mountinfo(5). */
static void unescape(char *text)
{
	char *to = text;
	for (char *from = text; *from; from++) {
		unsigned byte;
		if (*from == '\\' && sscanf(from + 1, "%3o", &byte) == 1) {
			*to++ = (char)byte;
			from += 3;
		} else {
			*to++ = *from;
		}
	}
	*to = '\0';
}

/* The topmost mount exactly at `path`. */
static bool mounted_at(const char *path, struct mounted *ret_mounted)
{
	CLEANUP(free_pointer) char *line = NULL;
	size_t capacity = 0;
	bool found = false;
	FILE *file = fopen("/proc/self/mountinfo", "re");
	while (file && getline(&line, &capacity, file) > 0) {
		struct mounted mounted;
		char point[PATH_MAX + 1];
		const char *rest = strstr(line, " - ");
		if (!rest || sscanf(rest, " - %63s", mounted.type) != 1 ||
		    sscanf(line, "%*s %*s %31s %*s %4096s", mounted.device, point) != 2)
			continue;
		unescape(point);
		if (strcmp(point, path) == 0) {
			*ret_mounted = mounted;
			found = true;
		}
	}
	if (file)
		fclose(file);
	return found;
}

static int path_fail(struct message *message, const char *path, int problem)
{
	if (problem == ENOENT)
		return fail(message, -ERR_NOT_FOUND, "%s does not exist; make it: mkdir -p %s",
		            path, path);
	return fail(message, error_system(problem), "cannot use %s as a mount point: %s", path,
	            strerror(problem));
}

static bool is_dead(int problem)
{
	return problem == ENOTCONN || problem == ECONNABORTED;
}

/* Without touching the last component: it may be a dead mount, where every call fails. */
static int absolute_path(const char *path, char **ret_path, struct message *message)
{
	char real[PATH_MAX];
	CLEANUP(free_pointer) char *copy = strdup(path);
	size_t length = strlen(path);
	if (!copy)
		return -ERR_NO_MEMORY;
	while (length > 1 && copy[length - 1] == '/')
		copy[--length] = '\0';
	if (realpath(copy, real)) {
		*ret_path = strdup(real);
		return *ret_path ? 0 : -ERR_NO_MEMORY;
	}
	if (!is_dead(errno))
		return path_fail(message, path, errno);
	char *slash = strrchr(copy, '/');
	CLEANUP(free_pointer) char *name = strdup(slash ? slash + 1 : copy);
	if (slash && slash != copy)
		*slash = '\0';
	if (!realpath(slash == copy ? "/" : slash ? copy : ".", real))
		return path_fail(message, path, errno);
	if (!name || text_format(ret_path, "%s/%s", strcmp(real, "/") ? real : "", name) < 0)
		return -ERR_NO_MEMORY;
	return 0;
}

static void unmount_lazily(const char *path)
{
	const char *arguments[] = {"fusermount3", "-u", "-q", "-z", "--", path, NULL};
	pid_t child;
	if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		return;
	if (posix_spawnp(&child, arguments[0], NULL, NULL, (char *const *)arguments, environ) == 0)
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			continue;
}

/* The kernel answers stat from its cache long after a daemon has died; statfs never. */
static int reach(const char *path, struct stat *ret_stat)
{
	struct statvfs space;
	return stat(path, ret_stat) < 0 ? -1 : statvfs(path, &space);
}

static int mountpoint_check(const char *path, struct message *message)
{
	struct mounted mounted;
	struct stat stat_;
	for (int i = 0; i < 8 && reach(path, &stat_) < 0; i++) {
		int problem = errno;
		if (!is_dead(problem) || !mounted_at(path, &mounted) ||
		    strcmp(mounted.type, "fuse.lake") != 0)
			return path_fail(message, path, problem);
		unmount_lazily(path); /* what a killed daemon left */
	}
	if (mounted_at(path, &mounted))
		return fail(message, -ERR_BUSY,
		            "%s is in use: a file system of type %s is mounted there; unmount it "
		            "or choose another directory",
		            path, mounted.type);
	if (!S_ISDIR(stat_.st_mode))
		return fail(message, -ERR_NOT_DIRECTORY, "%s is not a directory", path);
	return 0;
}

/* -- the session -- */

static bool others_allowed(void)
{
	CLEANUP(free_pointer) char *line = NULL;
	size_t capacity = 0;
	bool allowed = geteuid() == 0;
	FILE *file = allowed ? NULL : fopen("/etc/fuse.conf", "re");
	while (file && !allowed && getline(&line, &capacity, file) > 0)
		allowed = strncmp(line, "user_allow_other", 16) == 0;
	if (file)
		fclose(file);
	return allowed;
}

/* Commas and backslashes would end the option. */
static void append_escaped(struct buffer *options, const char *text)
{
	for (; *text; text++) {
		if (*text == ',' || *text == '\\')
			buffer_u8(options, '\\');
		buffer_u8(options, (uint8_t)*text);
	}
}

static int session_make(struct mount *mount, const struct mount_options *options,
                        struct message *message)
{
	CLEANUP(buffer_release) struct buffer text = {0};
	const char *start = "-odefault_permissions,subtype=lake,max_read=1048576,fsname=";
	buffer_append(&text, start, strlen(start));
	append_escaped(&text, mount->lake->directory);
	if (others_allowed())
		buffer_append(&text, ",allow_other", 12);
	buffer_u8(&text, 0);
	if (buffer_check(&text) < 0)
		return -ERR_NO_MEMORY;
	char *arguments[] = {"lake", (char *)text.data, "-d"};
	struct fuse_args args = FUSE_ARGS_INIT(options->debug ? 3 : 2, arguments);
	mount->session = fuse_session_new(&args, &fuse_handlers, sizeof(fuse_handlers), mount);
	fuse_opt_free_args(&args);
	return mount->session ? 0
	                      : fail(message, -ERR_INVALID, "libfuse refused to make a session");
}

static int session_new(struct mount *mount, const struct mount_options *options,
                       struct message *message)
{
	int result = session_make(mount, options, message);
	if (result < 0)
		return result;
	if (fuse_session_mount(mount->session, mount->mountpoint) != 0)
		return fail(message, -ERR_NOT_PERMITTED,
		            "cannot mount on %s: is /dev/fuse there, is the directory yours, and "
		            "(for ordinary users) is fusermount3 installed?",
		            mount->mountpoint);
	if (passthrough_install(&mount->passthrough, mount->session,
	                        fuse_session_fd(mount->session)) < 0)
		return fail(message, -ERR_UNSUPPORTED, "libfuse refused our reads and writes");
	return 0;
}

/* A connection that is there: the kernel says nothing that it has said to a predecessor. */
static int session_inherit(struct mount *mount, const struct mount_options *options,
                           struct message *message)
{
	int result = session_make(mount, options, message);
	if (result < 0)
		return result;
	if (passthrough_install(&mount->passthrough, mount->session, options->device) < 0)
		return fail(message, -ERR_UNSUPPORTED, "libfuse refused the device");
	if (mount->passthrough.keep->serving)
		passthrough_replay(&mount->passthrough);
	return 0;
}

/* For what is not passed through. Root's privilege; nothing is lost without it. */
static void raise_read_ahead(const struct mount *mount)
{
	struct mounted mounted;
	char path[128], value[32];
	if (!mounted_at(mount->mountpoint, &mounted))
		return;
	snprintf(path, sizeof(path), "/sys/class/bdi/%s/read_ahead_kb", mounted.device);
	int length = snprintf(value, sizeof(value), "%d\n", READ_AHEAD_KIB);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, value, (size_t)length) < 0)
		errno = 0; /* the default stays */
	close(fd);
}

static int backing_open(void *context, int fd)
{
	struct mount *mount = context;
	return passthrough_open(&mount->passthrough, fd);
}

static void backing_close(void *context, int backing)
{
	struct mount *mount = context;
	passthrough_close(&mount->passthrough, backing);
}

static int report(void *context, const char *which, struct buffer *ret_text)
{
	struct mount *mount = context;
	int result = lake_report(mount->lake, which, ret_text);
	if (result >= 0 && strcmp(which, "metrics") == 0)
		mount_metrics(mount, ret_text);
	return result;
}

static int mount_begin(struct mount *mount, const struct mount_options *options,
                       const struct vfs_kernel *kernel, struct message *message)
{
	int result = absolute_path(options->mountpoint, &mount->mountpoint, message);
	if (result >= 0)
		result = mountpoint_check(mount->mountpoint, message);
	if (result >= 0)
		result = notifier_start(mount);
	if (result >= 0)
		result = vfs_new(mount->lake, kernel, mount->keep, &mount->vfs);
	if (result >= 0)
		result = session_new(mount, options, message);
	if (result < 0)
		return result;
	raise_read_ahead(mount);
	if (mount->keep)
		snprintf(keep_root(mount->keep)->mountpoint,
		         sizeof(keep_root(mount->keep)->mountpoint), "%s", mount->mountpoint);
	return 0;
}

/* Nothing here may look at the mount point: nobody would answer. */
static int mount_inherit(struct mount *mount, const struct mount_options *options,
                         const struct vfs_kernel *kernel, struct message *message)
{
	mount->inherited = true;
	mount->mountpoint = strdup(keep_root(mount->keep)->mountpoint);
	int result = mount->mountpoint ? notifier_start(mount) : -ERR_NO_MEMORY;
	if (result >= 0)
		result = session_inherit(mount, options, message);
	if (result >= 0)
		result = vfs_new(mount->lake, kernel, mount->keep, &mount->vfs);
	return result;
}

int mount_new(struct lake *lake, const struct mount_options *options, struct mount **ret_mount,
              struct message *message)
{
	struct mount *mount = calloc(1, sizeof(*mount));
	if (!mount)
		return -ERR_NO_MEMORY;
	mount->lake = lake;
	mount->threads = options->threads ? options->threads : THREADS_DEFAULT;
	mount->keep = options->keep;
	mount->parting = options->parting;
	mount->context = options->context;
	/* CAP_SYS_ADMIN in the initial namespace is tried with the first file. */
	mount->passthrough.wanted = options->passthrough;
	mount->passthrough.keep = mount->keep ? keep_root(mount->keep) : NULL;
	const struct vfs_kernel kernel = {.context = mount,
	                                  .backing_open = backing_open,
	                                  .backing_close = backing_close,
	                                  .forget_entry = notify_entry,
	                                  .forget_inode = notify_inode,
	                                  .report = report};
	int result = mount->keep && options->device >= 0
	                     ? mount_inherit(mount, options, &kernel, message)
	                     : mount_begin(mount, options, &kernel, message);
	if (result < 0) {
		mount_free(mount);
		return result;
	}
	lake->mountpoint = mount->mountpoint;
	*ret_mount = mount;
	return 0;
}

static void *look_again(void *context)
{
	struct mount *mount = context;
	vfs_look_again(mount->vfs, &mount->looker_ends);
	return NULL;
}

static void inherited_serve(struct mount *mount)
{
	passthrough_resend(&mount->passthrough);
	mount->looking = thread_start(&mount->looker, look_again, mount) == 0;
}

int mount_run(struct mount *mount, struct message *message)
{
	if (fuse_set_signal_handlers(mount->session) != 0)
		return fail(message, -ERR_UNSUPPORTED, "cannot install signal handlers");
	mount->runner = pthread_self();
	mount->running = true;
	mount->served = true;
	if (mount->inherited)
		inherited_serve(mount);
	int result = mount->stopping ? 0 : loop_run(mount->session, mount->threads);
	mount->running = false;
	fuse_remove_signal_handlers(mount->session);
	if (result < 0)
		return fail(message, error_system(-result), "the FUSE session ended: %s",
		            strerror(-result));
	return 0; /* unmounted, or a signal */
}

void mount_stop(struct mount *mount)
{
	mount->stopping = true;
	/* libfuse's handler makes the session exit, and the signal wakes the loop. */
	if (mount->running)
		pthread_kill(mount->runner, SIGTERM);
}

/* As fuse_session_unmount does it for its own mounts: our end of the connection goes first, so that
 * nothing waits for an answer. */
static void unmount_inherited(struct mount *mount)
{
	int device = fuse_session_fd(mount->session);
	struct pollfd gone = {.fd = device};
	bool mounted = poll(&gone, 1, 0) == 0;
	CLEANUP(close_descriptor) int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (nothing >= 0)
		dup3(nothing, device, O_CLOEXEC);
	if (mounted)
		unmount_lazily(mount->mountpoint);
}

/* The mount goes, lazily when it is in use. What is not ours to end stays. */
static void unmount(struct mount *mount)
{
	if (!mount->session || (mount->inherited && !mount->served))
		return;
	if (mount->keep)
		keep_root(mount->keep)->ended = true;
	if (mount->parting)
		mount->parting(mount->context);
	if (mount->inherited)
		unmount_inherited(mount);
	else
		fuse_session_unmount(mount->session);
}

void mount_free(struct mount *mount)
{
	if (!mount)
		return;
	mount->lake->mountpoint = NULL;
	unmount(mount);
	mount->looker_ends = true;
	if (mount->looking)
		pthread_join(mount->looker, NULL);
	notifier_stop(mount);
	vfs_free(mount->vfs);
	if (mount->session)
		fuse_session_destroy(mount->session);
	free(mount->mountpoint);
	free(mount);
}

int mount_device(const struct mount *mount)
{
	return fuse_session_fd(mount->session);
}

bool mount_passthrough(const struct mount *mount)
{
	return mount->passthrough.active;
}

void mount_metrics(struct mount *mount, struct buffer *buffer)
{
	struct vfs_stats stats;
	vfs_stats(mount->vfs, &stats);
	const struct {
		const char *name, *type;
		uint64_t value;
	} metrics[] = {
	        {"lake_mount_operations_total", "counter", mount->operations},
	        {"lake_mount_failures_total", "counter", mount->failures},
	        {"lake_mount_nodes", "gauge", stats.nodes},
	        {"lake_mount_open_files", "gauge", stats.files},
	        {"lake_mount_passthrough_opens_total", "counter", stats.passthrough_opens},
	        {"lake_mount_daemon_opens_total", "counter", stats.daemon_opens},
	        {"lake_mount_stale_nodes_total", "counter", stats.stale},
	        {"lake_mount_moves_total", "counter", stats.moves},
	        {"lake_mount_passthrough", "gauge", mount_passthrough(mount)},
	        {"lake_mount_starts_total", "counter",
	         mount->keep ? keep_root(mount->keep)->starts : 1},
	};
	for (size_t i = 0; i < ARRAY_SIZE(metrics); i++) {
		char line[256];
		int length = snprintf(line, sizeof(line), "# TYPE %s %s\n%s %llu\n",
		                      metrics[i].name, metrics[i].type, metrics[i].name,
		                      (unsigned long long)metrics[i].value);
		buffer_append(buffer, line, (size_t)length);
	}
}
