/*
 * audit — run a branch's audits against the tree that would be published.
 *
 * What an audit sees is README.md, "Audits". Rights: it runs as the caller, who may therefore do
 * to it what he may do to any process of his own; audits keep mistakes out, not their own users.
 * Never: decides whether anything moves; stores anything.
 * Threads: any. The caller holds no lock that the mount needs.
 */
#ifndef FS_AUDIT_H
#define FS_AUDIT_H

#include "fs/publish/rules.h"
#include "fs/publish/verdict.h"
#include "refs/diff.h"

struct caller;

/* Changed paths of files and empty directories. */
struct audit_changes {
	struct buffer paths; /* for each: u8 enum change_kind, the path, a NUL */
	size_t count;
};
void audit_changes_release(struct audit_changes *changes); /* accepts zeroed */
/* What differs from `before` (what consumers see today) to `after`. */
int audit_changes_read(struct odb *odb, const struct pointer *before, const struct pointer *after,
                       struct audit_changes *ret_changes, struct message *message);
int audit_changes_add(struct audit_changes *changes, enum change_kind kind, const char *path);

struct audit_subject {
	const struct caller *caller;
	const char *mountpoint;
	const char *source, *target;
	struct id candidate, source_id, target_id;
	struct id base_id; /* zero: none */
	struct id rules_id;
	const struct audit_changes *changes;
};
/* Every audit in order, also after one failed. 0 whatever they say: *ret_verdict tells, and is the
 * caller's to release. Errors: -ERR_INTERRUPTED (progress), -ERR_NO_MEMORY, or the list of changed
 * paths could not be written. */
int audits_run(const char *lake_directory, const struct rules *rules,
               const struct audit_subject *subject, const struct progress *progress,
               struct verdict *ret_verdict, struct message *message);

/* Where a program named without '/' lies: DIR/audits, then $LAKE_AUDITS or the installed
 * directory. An absolute path is returned as it is. Allocated. -ERR_NOT_FOUND names both places;
 * -ERR_REFUSED: it lies in the mounted lake, where branches' content would decide, or others than
 * root and the lake's owner may write it. */
int audit_program(const char *lake_directory, const char *mountpoint, const char *name,
                  char **ret_path, struct message *message);

#endif
