/*
 * fuse_pace — how the thread that serves a sole client waits for its next request.
 *
 * Awake, on another processor than the client's: nobody has to be woken to read the request. Or
 * asleep beside it: the client gives its processor to the thread, and gets it back. On a quiet
 * machine the first is up to 1.8 times as fast for a client that works through many files, for
 * waking a halted processor takes longer than most requests. Where others want the processors the
 * second is 1.5 to 4 times as fast: who has to be woken on another processor waits until somebody
 * there gives way. Which it is cannot be asked, so it is measured: one way is in use, the other is
 * tried once in a while.
 *
 * Threads: the caller locks; pace_awake and pace_serial may be called without.
 */
#ifndef FS_MOUNT_FUSE_PACE_H
#define FS_MOUNT_FUSE_PACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* A measurement: the mean time from an answer to the next request, over so many requests. */
#define PACE_WINDOW 64
/* Longer ones are cut, so that a single one does not decide, ... */
#define PACE_GAP_NS_MAX 1000000
/* ... or not counted at all: the client did not ask. */
#define PACE_IDLE_NS 20000000

enum pace_way { PACE_AWAKE, PACE_BESIDE };
struct pace {               /* zero: begins awake */
	atomic_uint serial; /* its lowest bit: the way; changes with every change of it */
	bool trying;
	int64_t cost_ns[2]; /* of each way, smoothed; 0: not known */
	unsigned windows;   /* since the other way was tried */
	unsigned every;     /* so many windows it is tried; 0: the least */
};

unsigned pace_serial(const struct pace *pace);
bool pace_awake(const struct pace *pace);
/* A window was measured, of the way in use. */
void pace_measured(struct pace *pace, int64_t mean_ns);

/* One thread's window. Its own, without lock. */
struct pace_window {
	unsigned serial, count;
	int64_t sum_ns;
};
/* Another gap: true and the mean when the window is full, which begins anew then, and when the way
 * has changed. */
bool pace_gap(struct pace_window *window, const struct pace *pace, int64_t gap_ns,
              int64_t *ret_mean_ns);

#endif
