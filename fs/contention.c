/*
 * contention — hides how attempts to move one branch are spread out.
 *
 * Of the attempts under way at once only the first to arrive counts; it takes as long as reading
 * the head, merging, storing and moving do. So pauses are in units of that. Too short, and losers
 * keep the store busy with what is lost already; too long, and nobody is on his way. Plain
 * exponential back-off gives the branch to whoever has just won, for as long as he likes (the
 * "capture effect" of Ethernet): at 15 ms a request one of 8 hosts waited 20 s. Simulated with 2, 8
 * and 32 hosts, the numbers below give the same throughput and a fifth of the longest wait.
 */
#include "fs/contention.h"

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "store/base.h"

#define ATTEMPT_MS_MIN 4
#define LIMIT_ATTEMPTS_MAX 24 /* pauses are up to so many attempts */
#define LIMIT_MS_MAX 5000
#define PATIENCE 5       /* after so many lost attempts pauses become shorter */
#define LASTING_LIMITS 4 /* what was known so many pauses ago is forgotten */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards every struct contention; leaf */

static void pause_up_to(int64_t limit_ms)
{
	int64_t ms = (int64_t)(random_u64() % (uint64_t)(limit_ms + 1));
	struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
	while (nanosleep(&time, &time) && errno == EINTR)
		;
}

/* Under the lock. */
static int64_t known_limit(const struct contention *contention)
{
	int64_t age_ms = clock_monotonic_ms() - contention->last_ms;
	return age_ms > contention->limit_ms * LASTING_LIMITS ? 0 : contention->limit_ms;
}

bool contention_enter(struct contention *contention)
{
	pthread_mutex_lock(&lock);
	int64_t limit_ms = known_limit(contention);
	pthread_mutex_unlock(&lock);
	if (limit_ms > 0)
		pause_up_to(limit_ms);
	return limit_ms > 0;
}

void contention_lost(struct contender *contender, int64_t took_ms)
{
	if (took_ms < ATTEMPT_MS_MIN)
		took_ms = ATTEMPT_MS_MIN;
	if (contender->lost == 0 || took_ms < contender->attempt_ms)
		contender->attempt_ms = took_ms;
	int64_t most_ms = contender->attempt_ms * LIMIT_ATTEMPTS_MAX;
	if (most_ms > LIMIT_MS_MAX)
		most_ms = LIMIT_MS_MAX;
	pthread_mutex_lock(&lock);
	int64_t limit_ms = known_limit(contender->contention) * 2;
	if (limit_ms < contender->attempt_ms)
		limit_ms = contender->attempt_ms;
	if (limit_ms > most_ms)
		limit_ms = most_ms;
	contender->contention->limit_ms = limit_ms;
	contender->contention->last_ms = clock_monotonic_ms();
	pthread_mutex_unlock(&lock);
	contender->lost++;
	unsigned impatience = contender->lost > PATIENCE ? contender->lost - PATIENCE : 0;
	pause_up_to(limit_ms >> (impatience < 16 ? impatience : 16));
}

void contention_won(struct contender *contender)
{
	pthread_mutex_lock(&lock);
	contender->contention->limit_ms =
	        known_limit(contender->contention) / (contender->lost ? 2 : 4);
	contender->contention->last_ms = clock_monotonic_ms();
	pthread_mutex_unlock(&lock);
}
