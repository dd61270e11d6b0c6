/*
 * Hides how two ways of waiting are compared while only one of them can be in use.
 *
 * A way that is given up has to be a tenth slower. A trial takes one window, and comes the more
 * seldom the more often it was in vain: at most one window in TRY_EVERY_MAX is spent on the slower
 * way then, and what changes on the machine is noticed within as many.
 */
#include "fs/mount/fuse_pace.h"

#define TRY_EVERY_MIN 2
#define TRY_EVERY_MAX 64
#define SMOOTHING 4 /* a measurement counts for so much of what is known of a way */
#define BETTER_PARTS 10
#define SETTLE 8 /* the first gaps of a way in which threads still find their places */

unsigned pace_serial(const struct pace *pace)
{
	return atomic_load_explicit(&pace->serial, memory_order_relaxed);
}

bool pace_awake(const struct pace *pace)
{
	return (pace_serial(pace) & 1) == PACE_AWAKE;
}

static void turn(struct pace *pace)
{
	atomic_fetch_add_explicit(&pace->serial, 1, memory_order_relaxed);
}

/* After a trial: stay with it, or go back. */
static void decide(struct pace *pace, enum pace_way tried)
{
	int64_t now = pace->cost_ns[tried], before = pace->cost_ns[!tried];
	pace->trying = false;
	pace->windows = 0;
	if (now < before - before / BETTER_PARTS) {
		pace->every = TRY_EVERY_MIN;
		return;
	}
	if (pace->every < TRY_EVERY_MAX)
		pace->every *= 2;
	turn(pace);
}

void pace_measured(struct pace *pace, int64_t mean_ns)
{
	enum pace_way way = pace_serial(pace) & 1;
	int64_t *cost = &pace->cost_ns[way];
	if (pace->every == 0)
		pace->every = TRY_EVERY_MIN;
	if (pace->trying) {
		*cost = mean_ns; /* what was measured long ago was perhaps another work */
		decide(pace, way);
		return;
	}
	*cost = *cost == 0 ? mean_ns : *cost + (mean_ns - *cost) / SMOOTHING;
	if (++pace->windows < pace->every)
		return;
	pace->trying = true;
	turn(pace);
}

bool pace_gap(struct pace_window *window, const struct pace *pace, int64_t gap_ns,
              int64_t *ret_mean_ns)
{
	unsigned serial = pace_serial(pace);
	if (window->serial != serial)
		*window = (struct pace_window){.serial = serial};
	if (gap_ns > PACE_IDLE_NS)
		return false;
	if (++window->count > SETTLE)
		window->sum_ns += gap_ns < PACE_GAP_NS_MAX ? gap_ns : PACE_GAP_NS_MAX;
	if (window->count < SETTLE + PACE_WINDOW)
		return false;
	*ret_mean_ns = window->sum_ns / PACE_WINDOW;
	*window = (struct pace_window){.serial = serial};
	return true;
}
