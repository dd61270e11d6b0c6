/*
 * publish — moving a branch to a commit prepared for it: merged onto the branch's head, looked at,
 * published by one compare-and-swap; or all of it again when the branch moved first.
 *
 * What merge, publish, revert and cherry-pick have in common. The commit is written, and can be
 * read at MOUNTPOINT/@<id>/, before hooks and audits look at it, and what they looked at is what
 * is published. Nothing moves when one of them says no; its verdict is stored then, too.
 * Private to fs/command*.c. Blocks: on the store, and on audits for as long as they may take.
 */
#ifndef FS_PUBLISH_H
#define FS_PUBLISH_H

#include "fs/commands/command_internal.h"

struct proposal;
/* Merge into `head`: 0 and the result, which may have conflicts; *ret_nothing: nothing would
 * change. */
typedef int proposal_merge_fn(struct command *command, const struct proposal *proposal,
                              const struct commit *head, struct packer *packer,
                              struct merge_result *ret_result, bool *ret_nothing);

struct proposal {
	struct worktree *target;
	const char *source_name;     /* as the caller named it: for audits, the log, webhooks */
	const struct commit *source; /* where what is brought in comes from */
	bool second_parent;          /* the source becomes one */
	const char *text;            /* of the commit */
	const char *note;            /* for the reflog */
	const char *event;           /* "published", "merged", ...: for the log and webhooks */
	struct meta_pair *meta;
	size_t meta_count;
	bool merged;     /* no direct write: allowed on branches that forbid these */
	bool dry_run;    /* only list what would change, and what would look at it */
	bool audit_only; /* prepare and audit, do not publish */
	proposal_merge_fn *merge;
	const void *context; /* for `merge` */
};
/* The reply gets "commit", "changed", "up_to_date", "conflicts", "changes", "checks", "verdict",
 * "candidate", "at". -ERR_CONFLICT: nothing was changed; -ERR_REFUSED: by the branch's protection,
 * a hook or an audit; -ERR_MOVED: the branch kept moving. */
int publish(struct command *command, const struct proposal *proposal);

#endif
