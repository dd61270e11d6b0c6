/*
 * command — what lakectl's commands do, the same in laked (through the control socket) and in
 * lakectl's own process when no daemon runs.
 *
 * A request is one JSON object: {"command": "commit", ...arguments}; a reply is the object that
 * `--json` prints, or {"error": {"code", "message", "exit"}}. Bytes that are not valid UTF-8 in
 * paths travel as they are when they can, else with the key "path_hex" beside "path".
 * <cjson/cJSON.h> is used by command*.c, control.c, tools/, and fs/json.h for what includes that.
 */
#ifndef FS_COMMAND_H
#define FS_COMMAND_H

#include <cjson/cJSON.h>

#include "fs/lake.h"

/* Who asks: from the socket's peer credentials, or the process itself. */
struct caller {
	uid_t uid;
	gid_t gid;
	pid_t pid;
	char name[COMMIT_AUTHOR_MAX + 1]; /* user@host */
};
void caller_self(struct caller *ret_caller);
/* By the host's databases; false for a group that is NULL or unknown. */
bool caller_in_group(const struct caller *caller, const char *group);
bool group_known(const char *group);

/* Where a running command reports to. */
struct command_output {
	struct progress progress; /* report may be NULL */
	/* A piece of the reply's array `list`, in order, so that a million changes need no memory
	 * at once. Takes `items` (an array); non-zero cancels. NULL: lists stay in the reply. */
	int (*items)(void *context, const char *list, cJSON *items);
	void *context;
};
/* Runs it. *ret_reply is always a complete object the caller deletes, or NULL when there was not
 * even memory for the error. Returns 0 or the negative error that is also in the reply. Conflicts
 * are -ERR_CONFLICT with the reply listing them. */
int command_run(struct lake *lake, const struct caller *caller, const cJSON *request,
                const struct command_output *output, cJSON **ret_reply);
/* The reply that says `error`; the text is `message`'s, or the error's own. */
cJSON *command_error(int error, const struct message *message);

/* For /lake/.lake/: `which` is "status" (JSON) or "metrics" (Prometheus text). */
int lake_report(struct lake *lake, const char *which, struct buffer *ret_text);

#endif
