/*
 * audit — hides what an audit gets to see: its environment, the lists of changed paths, and where
 * its program lies.
 */
#include "fs/publish/audit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/commands/command.h"
#include "fs/json.h"
#include "fs/publish/program.h"
#include "refs/path.h"

#ifndef LAKE_AUDITS_PATH
#define LAKE_AUDITS_PATH "/usr/local/share/lake/audits"
#endif
#define AUDITS_VARIABLE "LAKE_AUDITS"
#define VALUE_MAX (PATH_MAX + 64) /* of a variable: a path or a revision */

/* -- changed paths -- */

void audit_changes_release(struct audit_changes *changes)
{
	buffer_release(&changes->paths);
	*changes = (struct audit_changes){0};
}

int audit_changes_add(struct audit_changes *changes, enum change_kind kind, const char *path)
{
	buffer_u8(&changes->paths, (uint8_t)kind);
	buffer_append(&changes->paths, path, strlen(path) + 1);
	changes->count++;
	return buffer_check(&changes->paths);
}

static int add_change(void *context, const struct change *change)
{
	return audit_changes_add(context, change->kind, change->path);
}

int audit_changes_read(struct odb *odb, const struct pointer *before, const struct pointer *after,
                       struct audit_changes *ret_changes, struct message *message)
{
	CLEANUP(audit_changes_release) struct audit_changes changes = {0};
	struct diff_options options = {0};
	int error = diff_trees(odb, before, after, &options, add_change, &changes, message);
	if (error < 0)
		return error;
	*ret_changes = changes;
	changes = (struct audit_changes){0};
	return 0;
}

static bool concerns(const struct audit_rule *rule, const char *path)
{
	for (size_t i = 0; i < rule->path_count; i++)
		if (path_glob_match(rule->paths[i], path))
			return true;
	return rule->path_count == 0;
}

/* The paths that concern `rule`, each with its NUL. Returns how many. */
static uint64_t select_paths(const struct audit_rule *rule, const struct audit_changes *changes,
                             struct buffer *changed, struct buffer *removed)
{
	const char *at = (const char *)changes->paths.data, *end = at + changes->paths.length;
	uint64_t count = 0;
	while (at < end) {
		const char *path = at + 1;
		size_t bytes = strlen(path) + 1;
		if (concerns(rule, path)) {
			buffer_append(*at == CHANGE_REMOVED ? removed : changed, path, bytes);
			count++;
		}
		at = path + bytes;
	}
	return count;
}

/* -- the lists as files -- */

/* A directory that its files are found in but not added to; they are the user's alone. */
struct lists {
	char directory[PATH_MAX];
	int fd;
};
#define CHANGED_FILE "changed"
#define REMOVED_FILE "removed"

static void lists_remove(const struct lists *lists)
{
	unlinkat(lists->fd, CHANGED_FILE, 0);
	unlinkat(lists->fd, REMOVED_FILE, 0);
}

static void lists_close(struct lists *lists)
{
	if (lists->fd < 0)
		return;
	lists_remove(lists);
	close_descriptor(&lists->fd);
	rmdir(lists->directory);
}

static int lists_open(struct lists *lists, struct message *message)
{
	const char *place = getenv("TMPDIR");
	snprintf(lists->directory, sizeof lists->directory, "%.4000s/lake-audit-XXXXXX",
	         place && place[0] == '/' ? place : "/tmp");
	if (!mkdtemp(lists->directory))
		return fail(message, error_system(errno),
		            "the changed paths need %s, which cannot "
		            "be made: %s",
		            lists->directory, error_text(error_system(errno)));
	lists->fd = open(lists->directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (lists->fd < 0 || fchmod(lists->fd, 0711) < 0)
		return fail(message, error_system(errno), "directory %s: %s", lists->directory,
		            error_text(error_system(errno)));
	return 0;
}

static int write_list(const struct lists *lists, const char *name, const struct buffer *paths,
                      const struct caller *caller, struct message *message)
{
	CLEANUP(close_descriptor)
	int fd =
	        openat(lists->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0400);
	int error = buffer_check(paths);
	if (!error && fd < 0)
		error = error_system(errno);
	if (!error && paths->length)
		error = write_full(fd, paths->data, paths->length, 0);
	if (!error && geteuid() == 0 && fchown(fd, caller->uid, caller->gid) < 0)
		error = error_system(errno);
	return error ? fail(message, error, "the changed paths cannot be written to %s: %s",
	                    lists->directory, error_text(error))
	             : 0;
}

/* -- the program -- */

/* A link out of the lake into it would be the branch's content again. */
static int refuse_content(const char *path, const char *mountpoint, struct message *message)
{
	CLEANUP(free_pointer) char *real = realpath(path, NULL);
	if (mountpoint &&
	    (path_within(path, mountpoint) || (real && path_within(real, mountpoint))))
		return fail(message, -ERR_REFUSED,
		            "audit program %s lies in the lake: what is audited would decide",
		            path);
	return 0;
}

/* Nor may who is audited write it. What is not there, program_run tells. */
static int refuse_writable(const char *lake_directory, const char *path, struct message *message)
{
	struct stat lake, status;
	if (stat(path, &status) < 0)
		return 0;
	if (stat(lake_directory, &lake) < 0)
		return fail(message, error_system(errno), "cannot look at %s", lake_directory);
	if (status.st_uid != 0 && status.st_uid != lake.st_uid)
		return fail(
		        message, -ERR_REFUSED,
		        "audit program %s belongs to user %u, who is neither root nor the lake's "
		        "owner: it does not run",
		        path, status.st_uid);
	if (status.st_mode & (S_IWGRP | S_IWOTH))
		return fail(
		        message, -ERR_REFUSED,
		        "audit program %s can be written by others than its owner: `chmod go-w` "
		        "it, or it does not run",
		        path);
	return 0;
}

static int find_named(const char *lake_directory, const char *name, char **ret_path,
                      struct message *message)
{
	const char *installed = getenv(AUDITS_VARIABLE);
	if (!installed || !installed[0])
		installed = LAKE_AUDITS_PATH;
	CLEANUP(free_pointer) char *path = NULL;
	if (text_format(&path, "%s/audits/%s", lake_directory, name) < 0)
		return -ERR_NO_MEMORY;
	if (access(path, F_OK) < 0) {
		free_pointer(&path);
		if (text_format(&path, "%s/%s", installed, name) < 0)
			return -ERR_NO_MEMORY;
	}
	if (access(path, F_OK) < 0)
		return fail(message, -ERR_NOT_FOUND,
		            "no audit '%s' on this host, neither in %s/audits nor in %s", name,
		            lake_directory, installed);
	*ret_path = steal(&path);
	return 0;
}

int audit_program(const char *lake_directory, const char *mountpoint, const char *name,
                  char **ret_path, struct message *message)
{
	CLEANUP(free_pointer) char *path = NULL;
	int error = 0;
	if (strchr(name, '/')) {
		path = strdup(name);
		error = path ? 0 : -ERR_NO_MEMORY;
	} else {
		error = find_named(lake_directory, name, &path, message);
	}
	if (!error)
		error = refuse_content(path, mountpoint, message);
	if (!error)
		error = refuse_writable(lake_directory, path, message);
	if (!error)
		*ret_path = steal(&path);
	return error;
}

/* -- one audit -- */

struct audit {
	const char *lake_directory;
	const struct audit_subject *subject;
	const struct progress *progress;
	size_t index, count; /* of this one, of all */
	const struct audit_rule *rule;
	struct lists lists;
};

static bool ask_progress(void *context)
{
	const struct audit *audit = context;
	char what[RULE_NAME_MAX + 16];
	snprintf(what, sizeof what, "audit %s", audit->rule->name);
	return progress_report(audit->progress, what, audit->index, audit->count, "audits") < 0;
}

enum variable {
	CANDIDATE,
	SOURCE,
	TARGET,
	SOURCE_ID,
	TARGET_ID,
	BASE,
	TARGET_PATH,
	MOUNT,
	CHANGED,
	REMOVED,
	AUDIT,
	VARIABLES
};

static int make_environment(const struct audit *audit, char ***ret_environment)
{
	const struct audit_subject *subject = audit->subject;
	char text[VARIABLES][VALUE_MAX], candidate[ID_HEX + 1], source[ID_HEX + 1],
	        target[ID_HEX + 1], base[ID_HEX + 1] = "";
	const char *more[VARIABLES];
	id_to_hex(&subject->candidate, candidate);
	id_to_hex(&subject->source_id, source);
	id_to_hex(&subject->target_id, target);
	if (!id_is_zero(&subject->base_id))
		id_to_hex(&subject->base_id, base);
#define SET(variable, ...) snprintf(text[variable], VALUE_MAX, "LAKE_" #variable "=" __VA_ARGS__)
	int longest[] = {
	        SET(CANDIDATE, "%s/@%s", subject->mountpoint, candidate),
	        SET(SOURCE, "%s", subject->source),
	        SET(TARGET, "%s", subject->target),
	        SET(SOURCE_ID, "%s", source),
	        SET(TARGET_ID, "%s", target),
	        SET(BASE, "%s", base),
	        SET(TARGET_PATH, "%s/@%s", subject->mountpoint, target),
	        SET(MOUNT, "%s", subject->mountpoint),
	        SET(CHANGED, "%s/" CHANGED_FILE, audit->lists.directory),
	        SET(REMOVED, "%s/" REMOVED_FILE, audit->lists.directory),
	        SET(AUDIT, "%s", audit->rule->name),
	};
#undef SET
	for (size_t i = 0; i < VARIABLES; i++) {
		if (longest[i] >= VALUE_MAX)
			return -ERR_TOO_LARGE;
		more[i] = text[i];
	}
	return program_environment(subject->caller->uid, more, VARIABLES, ret_environment);
}

static int run_program(const struct audit *audit, struct program_result *ret_result,
                       struct message *message)
{
	const struct audit_subject *subject = audit->subject;
	CLEANUP(free_pointer) char *path = NULL;
	CLEANUP(free_pointer) char **environment = NULL;
	CLEANUP(free_pointer)
	const char **argv = calloc(audit->rule->argument_count + 1, sizeof *argv);
	char directory[VALUE_MAX], hex[ID_HEX + 1];
	int error = audit_program(audit->lake_directory, subject->mountpoint, audit->rule->argv[0],
	                          &path, message);
	if (!error)
		error = argv ? make_environment(audit, &environment) : -ERR_NO_MEMORY;
	if (error < 0)
		return error;
	memcpy(argv, audit->rule->argv, audit->rule->argument_count * sizeof *argv);
	argv[0] = path;
	id_to_hex(&subject->candidate, hex);
	snprintf(directory, sizeof directory, "%s/@%s", subject->mountpoint, hex);
	const struct program program = {
	        .argv = argv,
	        .environment = (const char *const *)environment,
	        .directory = directory,
	        .uid = subject->caller->uid,
	        .gid = subject->caller->gid,
	        .timeout_ms = audit->rule->timeout_s * 1000,
	        .output_max = VERDICT_OUTPUT_MAX / 4, /* bytes that are not UTF-8 take three each */
	        .cancelled = ask_progress,
	        .context = (void *)audit,
	};
	return program_run(&program, ret_result, message);
}

/* Everything but -ERR_INTERRUPTED and no memory is a verdict. */
static int judge(const struct audit *audit, struct verdict_check *check, struct message *message)
{
	CLEANUP(program_result_release) struct program_result result = {0};
	struct message why = {{0}};
	int error = run_program(audit, &result, &why);
	if (error == -ERR_INTERRUPTED || error == -ERR_NO_MEMORY)
		return fail(message, error, "audit '%s': %s", audit->rule->name,
		            why.text[0] ? why.text : error_text(error));
	check->exit_code = -1;
	check->verdict = VERDICT_ERROR;
	if (error < 0) {
		const char *text = why.text[0] ? why.text : error_text(error);
		check->output = utf8_clean(text, strlen(text));
		return check->output ? 0 : -ERR_NO_MEMORY;
	}
	check->exit_code = result.exit_code;
	check->signal = result.signal;
	check->timed_out = result.timed_out;
	check->output_cut = result.output_cut;
	check->took_ms = result.took_ms;
	if (!result.timed_out && result.exit_code >= 0)
		check->verdict = result.exit_code ? VERDICT_FAILED : VERDICT_PASSED;
	check->output = utf8_clean(result.output.data, result.output.length);
	return check->output ? 0 : -ERR_NO_MEMORY;
}

static int run_audit(struct audit *audit, struct verdict_check *check, struct message *message)
{
	CLEANUP(buffer_release) struct buffer changed = {0};
	CLEANUP(buffer_release) struct buffer removed = {0};
	const struct audit_subject *subject = audit->subject;
	*check = (struct verdict_check){
	        .name = strdup(audit->rule->name), .verdict = VERDICT_SKIPPED, .exit_code = -1};
	if (!check->name)
		return -ERR_NO_MEMORY;
	check->path_count = select_paths(audit->rule, subject->changes, &changed, &removed);
	if (!check->path_count) {
		check->output = strdup("");
		return check->output ? 0 : -ERR_NO_MEMORY;
	}
	if (!subject->mountpoint)
		return fail(message, -ERR_REFUSED,
		            "audit '%s' reads the tree through the mount, and the lake is not "
		            "mounted: `lakectl mount` first",
		            audit->rule->name);
	int error = audit->lists.fd < 0 ? lists_open(&audit->lists, message) : 0;
	if (!error)
		error = write_list(&audit->lists, CHANGED_FILE, &changed, subject->caller, message);
	if (!error)
		error = write_list(&audit->lists, REMOVED_FILE, &removed, subject->caller, message);
	if (!error)
		error = judge(audit, check, message);
	if (audit->lists.fd >= 0)
		lists_remove(&audit->lists);
	return error;
}

/* -- all of them -- */

static int describe(const struct audit_subject *subject, size_t checks, struct verdict *verdict)
{
	char host[256] = "localhost";
	gethostname(host, sizeof host - 1);
	*verdict = (struct verdict){
	        .candidate = subject->candidate,
	        .source_id = subject->source_id,
	        .target_id = subject->target_id,
	        .base_id = subject->base_id,
	        .rules_id = subject->rules_id,
	        .source = utf8_clean(subject->source, strlen(subject->source)),
	        .target = utf8_clean(subject->target, strlen(subject->target)),
	        .who = utf8_clean(subject->caller->name, strlen(subject->caller->name)),
	        .host = utf8_clean(host, strlen(host)),
	        .started_ms = clock_wall_ms(),
	        .checks = calloc(checks + 1, sizeof *verdict->checks),
	};
	return verdict->source && verdict->target && verdict->who && verdict->host &&
	                       verdict->checks
	               ? 0
	               : -ERR_NO_MEMORY;
}

int audits_run(const char *lake_directory, const struct rules *rules,
               const struct audit_subject *subject, const struct progress *progress,
               struct verdict *ret_verdict, struct message *message)
{
	CLEANUP(verdict_release) struct verdict verdict = {0};
	struct audit audit = {.lake_directory = lake_directory,
	                      .subject = subject,
	                      .progress = progress,
	                      .count = rules->audit_count,
	                      .lists.fd = -1};
	int64_t began_ms = clock_monotonic_ms();
	int error = describe(subject, rules->audit_count, &verdict);
	for (size_t i = 0; !error && i < rules->audit_count; i++) {
		struct verdict_check *check = &verdict.checks[verdict.check_count++];
		audit.rule = &rules->audits[i];
		audit.index = i;
		error = run_audit(&audit, check, message);
		if (check->verdict == VERDICT_ERROR ||
		    (check->verdict == VERDICT_FAILED && verdict.verdict == VERDICT_PASSED))
			verdict.verdict = check->verdict;
	}
	lists_close(&audit.lists);
	if (error < 0)
		return error;
	verdict.took_ms = clock_monotonic_ms() - began_ms;
	*ret_verdict = verdict;
	verdict = (struct verdict){0};
	return 0;
}
