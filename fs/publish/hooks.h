/*
 * hooks — programs of a host's own that commands run before and after they change a branch, as git
 * has them: executables DIR/hooks/{pre-commit,post-commit,pre-merge,post-merge} of the lake's
 * directory. They bind this host alone; what binds every host are the rules of a branch
 * (fs/publish/rules.h).
 *
 * A hook runs as the calling user (fs/publish/program.h), in the candidate's directory when there
 * is one, with standard input closed and its output kept, at most HOOK_TIMEOUT_MS. It sees
 *   LAKE_HOOK       its name                      LAKE_MOUNT      the mount point, empty without
 *   LAKE_BRANCH     the branch that changes       LAKE_SOURCE, LAKE_TARGET   of a merge, as named
 *   LAKE_CANDIDATE  a directory: pre-commit: the branch's working tree; pre-merge: the merged tree;
 *                   post-*: the new commit. Empty without a mount
 *   LAKE_COMMIT     the new commit's id (post-*; pre-merge: the candidate's)
 *   LAKE_MESSAGE    the commit's message
 *   LAKE_CHANGED    a file with the changed paths, each ended by NUL
 * and PATH, HOME, USER, LANG.
 *
 * Invariants: (1) a program that another user could have written does not run: not a regular file,
 * not of root or the lake's owner, writable by group or others, and for root whatever is not
 * root's: -ERR_REFUSED. (2) No lock is held while a hook runs, so it may call lakectl. (3) Without
 * a hook a call is one look at the disk.
 * Threads: any. Blocks: as long as the hook.
 */
#ifndef FS_HOOKS_H
#define FS_HOOKS_H

#include "fs/commands/command.h"

#define HOOK_TIMEOUT_MS 600000
#define HOOK_OUTPUT_MAX (64u << 10)

struct hook_event {
	const char *name; /* "pre-commit", ... */
	const char *branch;
	const char *source, *target; /* a merge's; NULL otherwise */
	const struct id *commit;     /* NULL: none yet */
	/* A revision, e.g. the id of the prepared merge: LAKE_CANDIDATE is MOUNT/@REVISION. NULL:
	 * that of `commit`, and without one the branch's working tree. */
	const char *candidate;
	const char *message;
	/* Appends the changed paths, each ended by NUL. Asked only when there is a hook; may be
	 * NULL. */
	int (*changed)(void *context, struct buffer *ret_paths, struct message *message);
	/* Looked at some times a second while it runs; true: it is killed. May be NULL. */
	bool (*cancelled)(void *context);
	void *context;
};
/* 0: there is no such hook, or it was content. *ret_output (may be NULL) gets what it printed.
 * 1: there is one that cannot run (it is not executable): `message` says so, a warning.
 * -ERR_REFUSED: it said no, ran too long, could or must not run; the message has its last lines.
 * -ERR_INTERRUPTED: cancelled; and what `changed` said. */
int hook_run(struct lake *lake, const struct caller *caller, const struct hook_event *event,
             struct buffer *ret_output, struct message *message);

#endif
