/*
 * lake — one lake on this host: its directory, its lock, and every module opened over it.
 *
 *   DIR/lake.json    configuration: lake id, store URL, cache bounds (version checked)
 *   DIR/lock         flock(2)ed by whoever has it open; holds the pid
 *   DIR/control.sock laked's control socket (fs/commands/control.h)
 *   DIR/state/       uncommitted state   DIR/staging/  its files
 *   DIR/cache/       local blobs         DIR/index/    loseable LMDB: odb and commit index
 *   DIR/hooks/       programs that commands run (fs/publish/hooks.h)
 *   DIR/webhooks/    events that receivers have not taken yet (fs/publish/webhook.h)
 *   DIR/store/       the object store, when it is the embedded one
 * In the store: object "lake" (format version, lake id), packs/, refs/.
 */
#ifndef FS_LAKE_H
#define FS_LAKE_H

#include "fs/publish/webhook.h"
#include "fs/worktree.h"

struct lake_config {
	char *store_url;
	char lake_id[33];
	uint64_t cache_bytes_max;   /* 0: keep 10 % of the disk free */
	uint64_t copy_up_bytes_max; /* 0: default */
	uint64_t verify_bytes_max;  /* 0: default (cache/cache.h) */
	int refresh_ms;             /* how often heads are looked at; -1: never by themselves */
	char *control_group;        /* who may use the control socket besides owner and root */
};
/* Any bytes as lake.json; `path` is for messages. -ERR_VERSION, -ERR_CORRUPT, -ERR_INVALID. */
int lake_config_parse(const char *path, const void *bytes, size_t length,
                      struct lake_config *ret_config, struct message *message);
void lake_config_release(struct lake_config *config);

struct lake {
	char *directory; /* absolute, real path */
	struct lake_config config;
	int lock_fd;
	struct object_store *store;
	struct kv *index;
	struct state *state;
	struct odb *odb;
	struct history *history;
	struct cache *cache;
	struct worktrees *worktrees;
	struct webhooks *webhooks;
	_Atomic uint32_t *commands; /* counts those under way, for a successor; NULL: nobody */
	const char *mountpoint; /* absolute, while this process has it mounted (fs/mount/mount.h);
	                           else NULL */
};

/* Make a new lake: branch main with an empty first commit. url NULL: file://DIR/store. The
 * directory may exist when empty. -ERR_EXISTS. */
int lake_init(const char *directory, const char *url, const char *author, struct message *message);
/* Join the existing lake in the store at `url`. -ERR_NO_LAKE when there is none. */
int lake_clone(const char *url, const char *directory, struct message *message);
/* -ERR_NO_LAKE; -ERR_BUSY when another process has it (the message names its pid). */
int lake_open(const char *directory, struct lake **ret_lake, struct message *message);
/* The same after a process that was killed while others went on using what it had given them. */
struct lake_legacy {
	int lock_fd; /* locked already; -1: there was none */
	/* The journal was read, and nothing written to it. May be NULL. */
	void (*state_opened)(void *context, const struct state *state);
	void *context;
};
int lake_inherit(const char *directory, const struct lake_legacy *legacy, struct lake **ret_lake,
                 struct message *message);
void lake_close(struct lake *lake); /* accepts NULL */

/* Where is the lake? `given` (--lake) else $LAKE_DIR, else the mount the current directory is in,
 * else the default. *ret_branch: the branch the current directory is in, "@REV" in a view of a
 * revision, or NULL; and the directory's path below its root ("" at the root) in *ret_prefix. All
 * allocated. */
int lake_find(const char *given, char **ret_directory, char **ret_branch, char **ret_prefix,
              struct message *message);
/* Is a mount of ours at or above `path`? Its mount point and lake directory (allocated). */
int lake_mount_of(const char *path, char **ret_mountpoint, char **ret_directory);

#endif
