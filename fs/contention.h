/*
 * contention — how long who lost a race for a branch waits before the next attempt.
 *
 * What is known is kept from one change of the branch to the next: a loser doubles it, a winner
 * halves it and waits, too. So who has just won does not go first again while those who lost still
 * wait. Who keeps losing waits less and less in the end, so that nobody loses for ever.
 *
 * Threads: any for a contention, one at a time for a contender.
 */
#ifndef FS_CONTENTION_H
#define FS_CONTENTION_H

#include <stdbool.h>
#include <stdint.h>

struct contention { /* for a branch; zero: nobody else */
	int64_t limit_ms;
	int64_t last_ms; /* monotonic */
};
/* Wait before the first attempt to change it, when there was contention just now: returns whether
 * there was. Blocks. */
bool contention_enter(struct contention *contention);

/* One change of the branch. */
struct contender {
	struct contention *contention;
	int64_t attempt_ms; /* the quickest attempt so far */
	unsigned lost;      /* so many attempts */
};
/* Wait after losing an attempt that took `took_ms`. Blocks, at most a few seconds. */
void contention_lost(struct contender *contender, int64_t took_ms);
void contention_won(struct contender *contender);

#endif
