/*
 * fuse_passthrough — what of the FUSE protocol libfuse 3.14 does not know: passing files through
 * to the kernel, O_TMPFILE, killing set-id bits (version 2), and taking a connection over from a
 * process that died.
 *
 * The kernel's part is in Documentation/filesystems/fuse/fuse-passthrough.rst and
 * include/uapi/linux/fuse.h (7.40). libfuse lets us see its reads and writes
 * (fuse_session_custom_io): the INIT reply is given the flags on its way out, and a TMPFILE request
 * is turned into a CREATE whose name is "/", which no real one can have.
 *
 * Holds:   whether the kernel offered and we use it.
 * Threads: any; INIT is the session's first request and alone.
 */
#ifndef FS_FUSE_PASSTHROUGH_H
#define FS_FUSE_PASSTHROUGH_H

#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "fs/mount/keep.h"

#ifndef FOPEN_PASSTHROUGH
#define FOPEN_PASSTHROUGH (1u << 7)
#endif
#define TMPFILE_NAME "/"

struct passthrough {
	struct fuse_session *session;
	bool wanted;
	atomic_bool active;    /* the kernel passes files through */
	atomic_bool kill_priv; /* we clear set-id bits (FUSE_HANDLE_KILLPRIV_V2) */
	atomic_bool offered, offered_kill_priv, initialised;
	struct keep_root *keep; /* where INIT is kept; may be NULL */
	bool replaying;
};
/* After fuse_session_mount, before the first request is read; or instead of it, with the device of
 * a connection that another process began (the session closes it). 0, or -1. libfuse hands the
 * session's user data to the hooks: it must start with this struct. */
int passthrough_install(struct passthrough *passthrough, struct fuse_session *session, int device);
/* Tell libfuse what INIT agreed on when the connection began; nothing reaches the kernel. */
void passthrough_replay(struct passthrough *passthrough);
/* Ask for the requests that were read and never answered. False: the kernel cannot (before 6.9). */
bool passthrough_resend(struct passthrough *passthrough);
/* The number of the request that this thread works on, and whether it was sent before. */
uint64_t passthrough_request(void);
bool passthrough_again(void);
/* From the init handler. */
void passthrough_negotiate(struct passthrough *passthrough, struct fuse_conn_info *connection);
/* A backing id > 0, or a negative errno. */
int passthrough_open(struct passthrough *passthrough, int fd);
void passthrough_close(struct passthrough *passthrough, int backing);
/* Does this thread serve requests? Such a thread must not wait for the kernel's locks. */
bool passthrough_serving(void);

#endif
