/*
 * conflicts — what commands that merge share: the sides that were chosen beforehand (--take), how
 * conflicts are told, and which tables are merged as tables.
 */
#ifndef FS_CONFLICTS_H
#define FS_CONFLICTS_H

#include "fs/commands/command_internal.h"
#include "refs/merge.h"

struct take_list {
	struct take *items;
	size_t count;
};
void take_list_release(struct take_list *takes);
/* Argument "take": "source:PATH" or "target:PATH", PATH may be a pattern (refs/path.h). */
int argument_takes(struct command *command, struct take_list *ret_takes);
/* For merge_trees and merge_commits: those takes, tables as tables, as many conflicts as are told.
 */
struct merge_options conflict_options(const struct take_list *takes);

/* Reply's "conflicts", each side with where it can be read now. -ERR_CONFLICT + message when there
 * are any, else 0. */
int reply_conflicts(struct command *command, const struct merge_result *result);
/* The list alone. `branch`: the source is what is not committed there; NULL: a commit. */
void reply_unmerged(struct command *command, const struct merge_result *result, const char *branch);

#endif
