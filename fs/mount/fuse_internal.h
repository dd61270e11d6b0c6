/*
 * fuse_internal — what the fuse_*.c files share. Include it nowhere else.
 */
#ifndef FS_FUSE_INTERNAL_H
#define FS_FUSE_INTERNAL_H

#include <pthread.h>

#include "fs/mount/fuse_passthrough.h"
#include "fs/mount/mount.h"
#include "fs/mount/vfs.h"

struct notice;
struct mount {
	struct passthrough passthrough; /* first: see passthrough_install */
	struct lake *lake;
	struct vfs *vfs;
	struct keep *keep; /* may be NULL */
	void (*parting)(void *context);
	void *context;
	bool inherited; /* a predecessor mounted */
	bool served;
	pthread_t looker; /* looks again at what a predecessor may not have told of */
	bool looking;
	atomic_bool looker_ends;
	struct fuse_session *session;
	char *mountpoint;
	unsigned threads;
	pthread_t runner; /* while `running` */
	atomic_bool running, stopping;
	/* What serving threads want the kernel to forget; told by a thread of its own. */
	pthread_mutex_t notices_lock; /* guards the queue; innermost */
	pthread_cond_t notices_changed;
	pthread_t notifier;
	bool notifying, notifier_ends;
	struct notice *notices, **notices_end;
	_Atomic(uint64_t) operations, failures;
	_Atomic(int64_t) log_window_ms; /* when the running second of log lines began */
	_Atomic(unsigned) log_lines;    /* in it */
};

/* -- fuse_handlers.c -- */
extern const struct fuse_lowlevel_ops fuse_handlers;

/* -- fuse_notify.c -- */
int notifier_start(struct mount *mount);
void notifier_stop(struct mount *mount);
void notify_entry(void *mount, uint64_t parent, const char *name);
void notify_inode(void *mount, uint64_t node, bool pages);

#endif
