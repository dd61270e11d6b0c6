/*
 * supervisor — a small process that outlives the one that serves: it holds the kernel's connection,
 * the lake's lock and the keep (fs/mount/keep.h), and starts another server when one dies.
 *
 * It does nothing else, so that nothing of what can go wrong goes wrong in it. Servers are forked
 * from it and never run another program, so all of them agree on what the keep's bytes mean.
 *
 * Holds:      descriptors of the device, the lock and the keep; the server's process id.
 * Never:      looks at the mount or the lake; starts a thread.
 * Invariants: (1) one server at a time: the next begins when the last thread of the one before is
 *             gone, or only waits to tell the kernel something, and then dies; (2) a server
 *             that ended on purpose is not started again, and the supervisor ends with its code.
 */
#ifndef TOOLS_SUPERVISOR_H
#define TOOLS_SUPERVISOR_H

#include "fs/mount/keep.h"

/* What a server works with. */
struct heritage {
	struct keep *keep; /* NULL: no supervisor */
	int device, lock;  /* the predecessor's; -1: it is the first */
	int supervisor;    /* a socket; -1: none */
};
typedef int serve_fn(void *context, const struct heritage *heritage);

struct supervision {
	serve_fn *serve; /* returns the exit code; SERVE_LATER: nothing could be begun yet */
	void *context;
	int starter;       /* a descriptor that only the first server has; -1: none */
	unsigned restarts; /* so many within a minute are too many */
};
#define SERVE_LATER 75
/* Returns in the supervisor with the exit code, and in every server with what serve() returned. */
int supervise(const struct supervision *supervision);

/* The server has mounted: from now on it can be replaced. */
int supervisor_hand_over(int supervisor, int device, int lock);
/* The server ends on purpose: let go of the connection. */
void supervisor_part(int supervisor);

#endif
