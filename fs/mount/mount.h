/*
 * mount — a lake as a directory tree: the FUSE session over fs/mount/vfs.h.
 *
 * <fuse_lowlevel.h> is included only by fuse_*.c. See README.md for node ids, passthrough
 * and invalidation.
 */
#ifndef FS_MOUNT_H
#define FS_MOUNT_H

#include "fs/lake.h"

struct mount;
struct mount_options {
	const char *mountpoint;
	bool passthrough; /* false: never use kernel passthrough (tests of the fallback) */
	bool debug;       /* log every request to standard error */
	unsigned threads; /* 0: default */
	/* With a supervisor, else NULL: what is kept for a successor of this process (borrowed). */
	struct keep *keep;
	/* >= 0: a predecessor mounted, and this is the connection (taken over); what it had given
	 * out is valid again. `mountpoint` is not looked at. */
	int device;
	/* Before the connection is let go for good: whoever else holds it must do so, too. */
	void (*parting)(void *context);
	void *context;
};
/* Mounts and observes the lake's working trees. Root: allow_other + default_permissions. Others:
 * through fusermount3. -ERR_BUSY when the mount point is in use (a dead mount of ours is
 * replaced), -ERR_NOT_FOUND, -ERR_NOT_DIRECTORY. */
int mount_new(struct lake *lake, const struct mount_options *options, struct mount **ret_mount,
              struct message *message);
/* Serves until unmounted or mount_stop; installs SIGINT/SIGTERM/SIGHUP handlers. */
int mount_run(struct mount *mount, struct message *message);
void mount_stop(struct mount *mount); /* from any thread */
/* Unmounts when still mounted; but not what a predecessor mounted and mount_run has not served. */
void mount_free(struct mount *mount);
int mount_device(const struct mount *mount);       /* the kernel's connection */
bool mount_passthrough(const struct mount *mount); /* in use? known after INIT */
/* Append counters in Prometheus text format: operations, nodes, handles, passthrough opens. */
void mount_metrics(struct mount *mount, struct buffer *buffer);

#endif
