/*
 * mount — a lake as a directory tree: the FUSE session over fs/vfs.h.
 *
 * <fuse_lowlevel.h> is included only by fs/fuse_*.c. See fs/README.md for node ids, passthrough
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
};
/* Mounts and observes the lake's working trees. Root: allow_other + default_permissions. Others:
 * through fusermount3. -ERR_BUSY when the mount point is in use (a dead mount of ours is
 * replaced), -ERR_NOT_FOUND, -ERR_NOT_DIRECTORY. */
int mount_new(struct lake *lake, const struct mount_options *options, struct mount **ret_mount,
              struct message *message);
/* Serves until unmounted or mount_stop; installs SIGINT/SIGTERM/SIGHUP handlers. */
int mount_run(struct mount *mount, struct message *message);
void mount_stop(struct mount *mount);              /* from any thread */
void mount_free(struct mount *mount);              /* unmounts when still mounted */
bool mount_passthrough(const struct mount *mount); /* in use? known after INIT */
/* Append counters in Prometheus text format: operations, nodes, handles, passthrough opens. */
void mount_metrics(struct mount *mount, struct buffer *buffer);

#endif
