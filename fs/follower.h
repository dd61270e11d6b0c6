/*
 * follower — keeps the branches in use up to date with their refs, in the background.
 *
 * "In use": somebody refers to the working tree, as the kernel does while it knows the branch's
 * directory. Each is asked for with a conditional get, or all with one listing when they are many
 * and the listing tells etags.
 *
 * Holds:   one thread.
 * Never:   keeps anybody waiting: a working tree whose gate is taken is left for the next round.
 * The store away: only one branch is asked for, ever more seldom (up to FOLLOWER_AWAY_MS_MAX), and
 *          nobody else asks (struct worktrees, `away`). One line is logged when it goes, one when
 *          it is back.
 */
#ifndef FS_FOLLOWER_H
#define FS_FOLLOWER_H

#include "fs/worktree.h"

#define FOLLOWER_AWAY_MS_MAX 5000

struct follower;
struct follower_options {
	struct worktrees *trees;                      /* borrowed */
	int interval_ms;                              /* > 0 */
	void (*log)(void *context, const char *line); /* from the follower's thread; may be NULL */
	void *context;
};
int follower_start(const struct follower_options *options, struct follower **ret_follower,
                   struct message *message);
void follower_stop(struct follower *follower); /* waits for a round under way; accepts NULL */

#endif
