/*
 * local — hides how laked is started, waited for and ended.
 */
#include "tools/local.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/commands/control.h"

#define MOUNT_DEFAULT "/lake"
#define START_TIMEOUT_MS 60000
#define END_TIMEOUT_MS 60000

static const char *string_of(const cJSON *request, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(request, name);
	return cJSON_IsString(item) ? item->valuestring : NULL;
}

static bool flag_of(const cJSON *request, const char *name)
{
	return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(request, name));
}

static cJSON *reply_lake(const char *directory)
{
	cJSON *reply = cJSON_CreateObject();
	cJSON_AddStringToObject(reply, "lake", directory);
	return reply;
}

/* -- init and clone -- */

/* The store's URL with what options add to it; *ret_url is NULL when `url` is. */
static int complete_url(const cJSON *request, const char *url, char **ret_url,
                        struct message *message)
{
	static const char *const parts[] = {"endpoint", "region", "ca-file", "profile"};
	CLEANUP(free_pointer) char *whole = url ? strdup(url) : NULL;
	if (url && !whole)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		const char *value = string_of(request, parts[i]);
		char *longer = NULL;
		if (!value)
			continue;
		if (!url)
			return fail(message, -ERR_INVALID, "--%s needs --store s3://BUCKET/PREFIX",
			            i ? parts[i] : "endpoint-url");
		int error = object_store_url_add(whole, parts[i], value, &longer, message);
		if (error < 0)
			return error;
		free(whole);
		whole = longer;
	}
	*ret_url = steal(&whole);
	return 0;
}

int local_init(const cJSON *request, const char *lake, cJSON **ret_reply, struct message *message)
{
	const char *directory = string_of(request, "directory");
	struct caller caller;
	caller_self(&caller);
	if (!directory)
		directory = lake;
	CLEANUP(free_pointer) char *url = NULL;
	int error = complete_url(request, string_of(request, "store"), &url, message);
	if (!error)
		error = lake_init(directory, url, caller.name, message);
	if (!error)
		*ret_reply = reply_lake(directory);
	return error;
}

int local_clone(const cJSON *request, const char *lake, cJSON **ret_reply, struct message *message)
{
	const char *directory = string_of(request, "directory");
	if (!directory)
		directory = lake;
	CLEANUP(free_pointer) char *url = NULL;
	int error = complete_url(request, string_of(request, "url"), &url, message);
	if (!error)
		error = lake_clone(url, directory, message);
	if (!error)
		*ret_reply = reply_lake(directory);
	return error;
}

/* -- mount -- */

static const char *mountpoint_of(const cJSON *request)
{
	const char *given = string_of(request, "mountpoint");
	const char *set = getenv("LAKE_MOUNT");
	return given ? given : set && set[0] ? set : MOUNT_DEFAULT;
}

/* laked beside this program, else from PATH. */
static void exec_laked(const char *const *arguments)
{
	char self[PATH_BYTES_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof self - 16);
	if (length > 0) {
		self[length] = '\0';
		char *slash = strrchr(self, '/');
		if (slash) {
			strcpy(slash + 1, "laked");
			execv(self, (char *const *)arguments);
		}
	}
	execvp("laked", (char *const *)arguments);
}

struct laked_arguments {
	const char *items[16];
	size_t count;
};

static void add(struct laked_arguments *arguments, const char *item)
{
	arguments->items[arguments->count++] = item;
}

static struct laked_arguments laked_arguments(const cJSON *request, const char *lake,
                                              const char *mountpoint, const char *ready)
{
	struct laked_arguments arguments = {0};
	add(&arguments, "laked");
	add(&arguments, "--lake");
	add(&arguments, lake);
	if (ready) {
		add(&arguments, "--ready-fd");
		add(&arguments, ready);
	}
	if (flag_of(request, "no_passthrough"))
		add(&arguments, "--no-passthrough");
	if (flag_of(request, "debug"))
		add(&arguments, "--debug");
	if (flag_of(request, "no_supervisor"))
		add(&arguments, "--no-supervisor");
	if (string_of(request, "restarts")) {
		add(&arguments, "--restarts");
		add(&arguments, string_of(request, "restarts"));
	}
	add(&arguments, "--");
	add(&arguments, mountpoint);
	return arguments;
}

/* The child: a session of its own, its log in the lake's directory. */
static void become_daemon(const char *lake, const struct laked_arguments *arguments)
{
	CLEANUP(free_pointer) char *log = NULL;
	setsid();
	int null = open("/dev/null", O_RDWR);
	int out = asprintf(&log, "%s/laked.log", lake) < 0
	                  ? -1
	                  : open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (null < 0 || out < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(127);
	exec_laked(arguments->items);
	_exit(127);
}

/* Until laked writes "ready" or what went wrong, or ends. */
static int await_ready(int fd, pid_t child, struct message *message)
{
	char text[sizeof message->text] = {0};
	size_t length = 0;
	struct pollfd poller = {.fd = fd, .events = POLLIN};
	int64_t deadline_ms = clock_monotonic_ms() + START_TIMEOUT_MS;
	while (length < sizeof text - 1) {
		int64_t left_ms = deadline_ms - clock_monotonic_ms();
		if (left_ms <= 0 || poll(&poller, 1, (int)left_ms) == 0) {
			kill(child, SIGTERM);
			return fail(message, -ERR_BUSY,
			            "laked did not answer within %d s; see laked.log",
			            START_TIMEOUT_MS / 1000);
		}
		ssize_t got = read(fd, text + length, sizeof text - 1 - length);
		if (got <= 0)
			break;
		length += (size_t)got;
		if (text[length - 1] == '\n')
			break;
	}
	if (strcmp(text, "ready\n") == 0)
		return 0;
	/* "<error number> text" */
	char *rest = text;
	long error = strtol(text, &rest, 10);
	rest[strcspn(rest, "\n")] = '\0';
	return fail(message, error < 0 ? (int)error : -ERR_BUSY, "%s",
	            *rest ? rest + (*rest == ' ')
	                  : "laked could not be started (is it installed?)");
}

static int start_laked(const cJSON *request, const char *lake, const char *mountpoint,
                       pid_t *ret_pid, struct message *message)
{
	int pipe_fds[2];
	char ready[16];
	if (pipe(pipe_fds) < 0)
		return fail(message, error_system(errno), "cannot make a pipe: %s",
		            strerror(errno));
	fcntl(pipe_fds[0], F_SETFD, FD_CLOEXEC);
	snprintf(ready, sizeof ready, "%d", pipe_fds[1]);
	struct laked_arguments arguments = laked_arguments(request, lake, mountpoint, ready);
	pid_t child = fork();
	if (child == 0)
		become_daemon(lake, &arguments);
	close(pipe_fds[1]);
	int error = child < 0
	                    ? fail(message, error_system(errno), "cannot fork: %s", strerror(errno))
	                    : await_ready(pipe_fds[0], child, message);
	close(pipe_fds[0]);
	if (child > 0 && error < 0)
		waitpid(child, NULL, 0);
	*ret_pid = child;
	return error;
}

int local_mount(const cJSON *request, const char *lake, cJSON **ret_reply, struct message *message)
{
	struct statvfs answer;
	pid_t pid = -1;
	CLEANUP(free_pointer) char *mountpoint = realpath(mountpoint_of(request), NULL);
	CLEANUP(free_pointer) char *real = realpath(lake, NULL);
	if (!real)
		return fail(message, -ERR_NO_LAKE,
		            "no lake in %s; `lakectl init DIR` makes one, --lake DIR names another",
		            lake);
	if (!mountpoint && errno == ENOTCONN)
		mountpoint = strdup(mountpoint_of(request)); /* a dead mount: laked replaces it */
	if (!mountpoint)
		return fail(message, -ERR_NOT_FOUND,
		            "there is no directory %s; make it first: mkdir %s",
		            mountpoint_of(request), mountpoint_of(request));
	if (flag_of(request, "foreground")) {
		struct laked_arguments arguments = laked_arguments(request, real, mountpoint, NULL);
		exec_laked(arguments.items);
		return fail(message, error_system(errno), "cannot run laked: %s", strerror(errno));
	}
	int error = start_laked(request, real, mountpoint, &pid, message);
	if (error < 0)
		return error;
	if (statvfs(mountpoint, &answer) < 0)
		return fail(message, error_system(errno),
		            "%s does not answer: %s; see %s/laked.log", mountpoint, strerror(errno),
		            real);
	*ret_reply = reply_lake(real);
	cJSON_AddStringToObject(*ret_reply, "mountpoint", mountpoint);
	cJSON_AddNumberToObject(*ret_reply, "pid", pid);
	return 0;
}

/* -- umount -- */

static int await_end(const char *lake, struct message *message)
{
	CLEANUP(free_pointer) char *path = NULL;
	if (asprintf(&path, "%s/lock", lake) < 0)
		return -ERR_NO_MEMORY;
	int64_t deadline_ms = clock_monotonic_ms() + END_TIMEOUT_MS;
	while (clock_monotonic_ms() < deadline_ms) {
		CLEANUP(close_descriptor) int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || flock(fd, LOCK_SH | LOCK_NB) == 0)
			return 0;
		usleep(5000);
	}
	return fail(message, -ERR_BUSY,
	            "laked has unmounted but is still at work; see %s/laked.log", lake);
}

/* Without looking at the last component where that fails: the mount may be dead. */
static char *absolute(const char *path)
{
	char *result = realpath(path, NULL);
	if (result || path[0] == '/')
		return result ? result : strdup(path);
	CLEANUP(free_pointer) char *here = getcwd(NULL, 0);
	if (!here || asprintf(&result, "%s/%s", here, path) < 0)
		return NULL;
	return result;
}

int local_umount(const cJSON *request, const char *lake, cJSON **ret_reply, struct message *message)
{
	CLEANUP(free_pointer) char *mountpoint = NULL;
	CLEANUP(free_pointer) char *mounted = NULL;
	const char *given = string_of(request, "mountpoint");
	if (given) {
		CLEANUP(free_pointer) char *path = absolute(given);
		if (!path || lake_mount_of(path, &mountpoint, &mounted) < 0)
			return fail(message, -ERR_NOT_FOUND, "no lake is mounted at %s", given);
		lake = mounted;
	}
	int error = control_call(lake, request, NULL, ret_reply, message);
	if (error == -ERR_NOT_FOUND && mountpoint)
		return fail(
		        message, error,
		        "no laked serves the lake %s any more; `umount -l %s` removes its mount, "
		        "`lakectl --lake %s mount %s` replaces it",
		        lake, mountpoint, lake, mountpoint);
	if (error == -ERR_NOT_FOUND)
		return fail(message, error, "no laked serves the lake %s", lake);
	if (error < 0 || cJSON_GetObjectItemCaseSensitive(*ret_reply, "error"))
		return error;
	return await_end(lake, message);
}

/* -- the code's version -- */

/* First line of what a command prints; false when it fails or prints nothing. */
static bool first_line(const char *command, char *ret_line, size_t capacity)
{
	FILE *output = popen(command, "re");
	if (!output)
		return false;
	bool any = fgets(ret_line, (int)capacity, output) != NULL;
	char rest[256];
	while (fgets(rest, sizeof rest, output))
		continue;
	if (pclose(output) != 0 || !any)
		return false;
	ret_line[strcspn(ret_line, "\n")] = '\0';
	return ret_line[0] != '\0';
}

/* "https://user:secret@host/x" -> "https://host/x" */
static void strip_credentials(char *url)
{
	char *host = strstr(url, "://");
	if (!host)
		return;
	host += 3;
	char *at = memchr(host, '@', strcspn(host, "/"));
	if (at)
		memmove(host, at + 1, strlen(at + 1) + 1);
}

static void add_meta(cJSON *meta, const char *key, const char *value)
{
	if (!cJSON_GetObjectItemCaseSensitive(meta, key))
		cJSON_AddStringToObject(meta, key, value);
}

void add_code_version(cJSON *request)
{
	char line[2048];
	if (!first_line("git rev-parse HEAD 2>/dev/null", line, sizeof line))
		return;
	cJSON *meta = cJSON_GetObjectItemCaseSensitive(request, "meta");
	if (!meta)
		meta = cJSON_AddObjectToObject(request, "meta");
	add_meta(meta, "code.commit", line);
	bool dirty = first_line(
	        "git --no-optional-locks status --porcelain --untracked-files=no 2>/dev/null", line,
	        sizeof line);
	add_meta(meta, "code.dirty", dirty ? "true" : "false");
	if (first_line("git config --get remote.origin.url 2>/dev/null", line, sizeof line)) {
		strip_credentials(line);
		add_meta(meta, "code.remote", line);
	}
}
