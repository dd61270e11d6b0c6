/*
 * fuse_loop — the threads that serve the kernel's requests.
 *
 * A wake-up of another thread costs more than most requests, so one thread reads a request, answers
 * it and reads the next: it holds the *seat*. Nobody may wait behind a request that takes long: its
 * thread gives the seat away, by itself where it knows (thread_about_to_block), else it is taken
 * from it within about a millisecond. When requests queue up all the same there are more seats, at
 * most one for each processor.
 *
 * Holds:      the threads and who of them has a seat.
 * Invariants: (1) somebody with a seat reads, or will within about a millisecond, unless all
 *             threads allowed are at work; (2) an idle mount wakes no thread.
 * Threads:    loop_run from one.
 */
#ifndef FS_FUSE_LOOP_H
#define FS_FUSE_LOOP_H

struct fuse_session;

/* Serve until the session exits: unmounted, or a signal. threads_max: at least 1. 0, or a negative
 * errno. */
int loop_run(struct fuse_session *session, unsigned threads_max);

#endif
