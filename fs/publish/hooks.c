/*
 * hooks — hides where hooks lie, which may run, and what they are told.
 */
#include "fs/publish/hooks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/json.h"
#include "fs/publish/program.h"

#define LAST_BYTES 700 /* of the output, in a message */
#define VARIABLES 9

/* Only who could make us run anything anyway may write it: root, and the owner of the lake. */
static int check_owner(const struct stat *status, uid_t owner, const char *path,
                       struct message *message)
{
	if (status->st_uid != 0 && status->st_uid != owner)
		return fail(message, -ERR_REFUSED,
		            "%s belongs to user %u, who is neither root nor the lake's owner: it "
		            "does not run",
		            path, status->st_uid);
	if (status->st_mode & (S_IWGRP | S_IWOTH))
		return fail(message, -ERR_REFUSED,
		            "%s can be written by others than its owner: `chmod go-w` it, or it "
		            "does not run",
		            path);
	return 0;
}

/* 1: there is none. Links are not followed: what they name may be anybody's. */
static int check_hook(const char *lake_directory, const char *directory, const char *path,
                      uid_t caller, struct message *message)
{
	struct stat status, lake;
	if (lstat(path, &status) < 0)
		return errno == ENOENT || errno == ENOTDIR
		               ? 1
		               : fail(message, error_system(errno), "cannot look at %s: %s", path,
		                      strerror(errno));
	if (!S_ISREG(status.st_mode))
		return fail(message, -ERR_REFUSED, "%s is not a regular file: it does not run",
		            path);
	if (stat(lake_directory, &lake) < 0)
		return fail(message, error_system(errno), "cannot look at %s: %s", lake_directory,
		            strerror(errno));
	int error = check_owner(&status, lake.st_uid, path, message);
	if (!error && caller == 0 && status.st_uid != 0) /* the owner would become root by it */
		error = fail(message, -ERR_REFUSED,
		             "%s belongs to user %u: it does not run as root; `chown root` it",
		             path, status.st_uid);
	if (!error && lstat(directory, &status) < 0)
		error = fail(message, error_system(errno), "cannot look at %s: %s", directory,
		             strerror(errno));
	return error ? error : check_owner(&status, lake.st_uid, directory, message);
}

/* -- the changed paths -- */

struct changed_file {
	char path[256]; /* "": none */
};

static void changed_file_remove(struct changed_file *file)
{
	if (file->path[0])
		unlink(file->path);
}

/* For the user's eyes alone. */
static int changed_file_write(const struct hook_event *event, const struct caller *caller,
                              struct changed_file *file, struct message *message)
{
	CLEANUP(buffer_release) struct buffer paths = {0};
	const char *place = getenv("TMPDIR");
	int error = event->changed ? event->changed(event->context, &paths, message) : 0;
	if (!error)
		error = buffer_check(&paths);
	if (error < 0)
		return error;
	snprintf(file->path, sizeof file->path, "%.200s/lake-hook-XXXXXX",
	         place && place[0] == '/' ? place : "/tmp");
	CLEANUP(close_descriptor) int fd = mkostemp(file->path, O_CLOEXEC);
	if (fd < 0) {
		error = error_system(errno);
		fail(message, error, "the changed paths need %s, which cannot be made: %s",
		     file->path, error_text(error));
		file->path[0] = '\0';
		return error;
	}
	if (paths.length)
		error = write_full(fd, paths.data, paths.length, 0);
	if (!error && geteuid() == 0 && fchown(fd, caller->uid, caller->gid) < 0)
		error = error_system(errno);
	return error ? fail(message, error, "the changed paths cannot be written to %s: %s",
	                    file->path, error_text(error))
	             : 0;
}

/* -- running -- */

struct variables {
	char *items[VARIABLES];
	size_t count;
};

static void variables_release(struct variables *variables)
{
	for (size_t i = 0; i < variables->count; i++)
		free(variables->items[i]);
}

static void set(struct variables *variables, const char *name, const char *value)
{
	if (asprintf(&variables->items[variables->count], "LAKE_%s=%s", name, value ? value : "") <
	    0)
		variables->items[variables->count] = NULL;
	variables->count++;
}

/* The directory that the hook is to look at; "" without a mount. */
static char *candidate_of(const struct lake *lake, const struct hook_event *event)
{
	char *path = NULL, hex[ID_HEX + 1];
	const char *revision = event->candidate;
	if (!lake->mountpoint)
		return strdup("");
	if (!revision && event->commit) {
		id_to_hex(event->commit, hex);
		revision = hex;
	}
	int length = revision ? asprintf(&path, "%s/@%s", lake->mountpoint, revision)
	                      : asprintf(&path, "%s/%s", lake->mountpoint, event->branch);
	return length < 0 ? NULL : path;
}

static int make_environment(const struct lake *lake, const struct caller *caller,
                            const struct hook_event *event, const char *candidate,
                            const char *changed, char ***ret_environment)
{
	CLEANUP(variables_release) struct variables variables = {0};
	char hex[ID_HEX + 1] = "";
	if (event->commit)
		id_to_hex(event->commit, hex);
	set(&variables, "HOOK", event->name);
	set(&variables, "MOUNT", lake->mountpoint);
	set(&variables, "BRANCH", event->branch);
	set(&variables, "SOURCE", event->source);
	set(&variables, "TARGET", event->target);
	set(&variables, "CANDIDATE", candidate);
	set(&variables, "COMMIT", hex);
	set(&variables, "MESSAGE", event->message);
	set(&variables, "CHANGED", changed);
	for (size_t i = 0; i < variables.count; i++)
		if (!variables.items[i])
			return -ERR_NO_MEMORY;
	return program_environment(caller->uid, (const char *const *)variables.items,
	                           variables.count, ret_environment);
}

/* What it said last, on as many lines as fit. */
static int refusal(const char *name, const struct program_result *result, struct message *message)
{
	const char *text = (const char *)result->output.data;
	size_t length = result->output.length, from = 0;
	while (length && text[length - 1] == '\n')
		length--;
	if (length > LAST_BYTES) {
		from = length - LAST_BYTES;
		const char *line = memchr(text + from, '\n', length - from);
		from = line ? (size_t)(line + 1 - text) : from;
	}
	CLEANUP(free_pointer) char *said = utf8_clean(text ? text + from : "", length - from);
	char how[64];
	if (result->timed_out)
		snprintf(how, sizeof how, "took more than %d s", HOOK_TIMEOUT_MS / 1000);
	else if (result->exit_code < 0)
		snprintf(how, sizeof how, "was ended by signal %d", result->signal);
	else
		snprintf(how, sizeof how, "said no (exit %d)", result->exit_code);
	return fail(message, -ERR_REFUSED, "hook %s %s%s%s", name, how, said && said[0] ? ": " : "",
	            said ? said : "");
}

static int run_hook(struct lake *lake, const struct caller *caller, const struct hook_event *event,
                    const char *path, struct program_result *ret_result, struct message *message)
{
	CLEANUP(changed_file_remove) struct changed_file changed = {{0}};
	CLEANUP(free_pointer) char *candidate = candidate_of(lake, event);
	CLEANUP(free_pointer) char **environment = NULL;
	if (!candidate)
		return -ERR_NO_MEMORY;
	int error = changed_file_write(event, caller, &changed, message);
	if (!error)
		error = make_environment(lake, caller, event, candidate, changed.path,
		                         &environment);
	if (error < 0)
		return error;
	const char *argv[] = {path, NULL};
	const struct program program = {
	        .argv = argv,
	        .environment = (const char *const *)environment,
	        .directory = candidate[0] ? candidate : "/",
	        .uid = caller->uid,
	        .gid = caller->gid,
	        .timeout_ms = HOOK_TIMEOUT_MS,
	        .output_max = HOOK_OUTPUT_MAX,
	        .cancelled = event->cancelled,
	        .context = event->context,
	};
	error = program_run(&program, ret_result, message);
	if (error == -ERR_NO_MEMORY || error == -ERR_INTERRUPTED || error >= 0)
		return error;
	/* A hook that cannot run has not said yes. */
	return fail_context(message, -ERR_REFUSED, "hook %s", event->name);
}

int hook_run(struct lake *lake, const struct caller *caller, const struct hook_event *event,
             struct buffer *ret_output, struct message *message)
{
	CLEANUP(program_result_release) struct program_result result = {0};
	CLEANUP(free_pointer) char *path = NULL;
	char directory[PATH_BYTES_MAX];
	if (snprintf(directory, sizeof directory, "%s/hooks", lake->directory) >=
	            (int)sizeof directory ||
	    asprintf(&path, "%s/%s", directory, event->name) < 0) {
		path = NULL;
		return -ERR_NO_MEMORY;
	}
	int error = check_hook(lake->directory, directory, path, caller->uid, message);
	if (error)
		return error < 0 ? error : 0;
	struct stat status;
	if (stat(path, &status) == 0 && !(status.st_mode & 0111)) {
		fail(message, 0, "%s is not executable and was left out: chmod +x it", path);
		return 1;
	}
	error = run_hook(lake, caller, event, path, &result, message);
	if (error < 0)
		return error;
	bool good = result.exit_code == 0 && !result.timed_out;
	if (ret_output && (good || result.output.length > LAST_BYTES)) /* else the message has it */
		buffer_append(ret_output, result.output.data, result.output.length);
	if (good)
		return 0;
	return refusal(event->name, &result, message);
}
