/*
 * worktree — a branch's working tree on this host: its base commit plus an overlay of
 * uncommitted changes.
 *
 * The overlay is keyed by numbers, not paths: a changed directory is an overlay inode that has a
 * base tree (the committed directory it came from) and entries that override it; a changed file
 * is an overlay inode with attributes and either committed content or a staging file. A renamed
 * committed directory is one entry naming an inode whose base tree is the old one: O(1), and
 * untouched directories cost nothing. Hard links are entries with one number (until commit).
 *
 * Holds:      STATE_BRANCHES, STATE_ENTRIES, STATE_INODES; the staging files
 *             STAGING/xx/<staging number in hex>; who writes to what (in memory).
 * Never:      contains a FUSE type; knows which paths the kernel holds (fs/mount/vfs.h does).
 * Invariants: (1) each call is one state batch: after a crash it happened or it did not;
 *             (2) a staging file is named by at most one inode; unnamed ones are removed at
 *             opening; (3) swapping a working tree's overlay is one batch, whatever its size; the
 *             old overlay's records are removed later, in the background;
 *             (4) adopting (copying up metadata) changes nothing anybody can see.
 * Threads:    any. Lock order: a worktree's gate (shared by mutations, exclusive for commit and
 *             moves), then the table lock (read-modify-write of state), then state's own. Base
 *             trees are read without the table lock.
 */
#ifndef FS_WORKTREE_H
#define FS_WORKTREE_H

#include <sys/stat.h>

#include "cache/cache.h"
#include "fs/state.h"
#include "refs/diff.h"
#include "refs/history.h"
#include "refs/merge.h"

struct worktrees;
struct worktree;

/* What the mount tells the working trees, and hears from them. All may be NULL (no mount). Called
 * without locks held. */
struct worktree_observer {
	void *context;
	/* The branch shows another tree than before at the paths where these differ. */
	void (*moved)(void *context, const char *branch, const struct pointer *before,
	              const struct pointer *after);
	/* These paths (and below) of the branch's working tree were changed by a command. */
	void (*paths_changed)(void *context, const char *branch, const char *const *paths,
	                      size_t count);
	void (*branch_gone)(void *context, const char *branch);
	void (*branch_renamed)(void *context, const char *from, const char *to);
	/* Every file of `branch` (NULL: of all) open for writing. */
	int (*open_files)(void *context, const char *branch,
	                  int (*callback)(void *argument, const char *branch, const char *path,
	                                  int pid),
	                  void *argument);
	/* Count no more (worktree_writer) who does not write any more: decisions are about to be
	 * made. */
	void (*settle_writers)(void *context);
};

/* What is known of tables whose logs are files (fs/publish/tables.h): changes of two sides that
 * meet in no path may still not go together. */
struct table_formats {
	/* When a commit meets a head that has moved; it makes conflicts only. */
	merge_directory_fn *conflict;
	/* Is it the file of a state of a table, which knows the one before and no other? */
	bool (*is_state)(const char *path);
};
struct worktrees_options {
	struct state *state;
	struct odb *odb;
	struct history *history;
	struct cache *cache;
	const char *staging_directory;
	/* The process before this one was killed, and what it had open is still in use: unnamed
	 * staging files stay (until the next opening without it). */
	bool inherited;
	uint64_t copy_up_bytes_max; /* larger files are overlaid piecewise; 0: 16 MiB */
	int refresh_ms; /* how old what is known of a head may be; 0: 1,000; negative: any age */
	const struct table_formats *tables; /* NULL: there are none */
};
/* Borrows everything. Finishes or drops commits that a crash interrupted; removes unnamed staging
 * files and overlays nobody owns. */
int worktrees_open(const struct worktrees_options *options, struct worktrees **ret_trees,
                   struct message *message);
void worktrees_close(struct worktrees *trees);
void worktrees_observe(struct worktrees *trees, const struct worktree_observer *observer);
/* Asks the observer's open_files; nothing is open when nobody observes. */
int worktrees_open_files(struct worktrees *trees, const char *branch,
                         int (*callback)(void *argument, const char *branch, const char *path,
                                         int pid),
                         void *argument);

/* The branch's working tree, one reference. When nothing is uncommitted it follows the branch's
 * head; reads the ref at most once per `refresh` (1 s) unless asked to. -ERR_NOT_FOUND. */
int worktree_get(struct worktrees *trees, const char *branch, struct worktree **ret_worktree,
                 struct message *message);
/* Look where the branch stands now, and come along: without uncommitted changes always, with them
 * when none collides (they are then re-based; files open for writing stay what they are). Else the
 * working tree stays on its base; that is no error, worktree_standing tells. -ERR_NOT_FOUND: the
 * branch is gone and nothing was uncommitted; -ERR_STORE_AWAY. */
int worktree_refresh(struct worktree *worktree, struct message *message);
/* As worktree_get does: only without uncommitted changes, at most once per `refresh`, and a store
 * that is away is no error. None of these may be called between enter and leave. */
int worktree_follow(struct worktree *worktree, struct message *message);
/* For who tells how it stands: look, unless the follower does. It leaves out what no client refers
 * to (the kernel forgets what it has no memory for), and with uncommitted changes worktree_get does
 * not look either. At most once per `refresh` with a daemon. -ERR_NOT_FOUND: gone. */
int worktree_catch_up(struct worktree *worktree, struct message *message);

/* How a working tree stands to its branch, as far as was seen. */
#define COLLISIONS_MAX 1000
struct standing {
	bool behind; /* the branch has moved, and what is uncommitted here collides with that */
	struct pointer head;     /* where to */
	uint64_t behind_commits; /* first parents of `head` down to the base; 0: not known */
	char *collisions;        /* NUL-terminated paths, at most COLLISIONS_MAX */
	size_t collision_count;
	bool gone;     /* deleted or renamed elsewhere; what is uncommitted is kept */
	char why[400]; /* who did that, and when */
};
void standing_release(struct standing *standing);
int worktree_standing(struct worktree *worktree, struct standing *ret_standing);
/* How the branch is protected, as last seen. */
void worktree_protection(struct worktree *worktree, struct protection *ret_protection);
/* Nobody can commit what is written here (protection_read_only), so nobody may write it. Cheap, but
 * for the first time for a working tree with uncommitted changes, which asks the store; while that
 * is away, nothing is forbidden that is not known to be. Not between enter and leave. */
bool worktree_read_only(struct worktree *worktree);
void worktree_unref(struct worktree *worktree);
const char *worktree_branch(const struct worktree *worktree);
/* The commit it is based on; the caller frees. */
int worktree_base(struct worktree *worktree, struct commit **ret_commit);
/* Changes whenever numbers of this working tree may have become invalid (commit, move, reset):
 * callers that cached a number look it up again by path. */
uint64_t worktree_epoch(const struct worktree *worktree);
bool worktree_dirty(struct worktree *worktree);

/* -- inodes -- */
struct inode {
	uint64_t number; /* unique in the lake, for ever */
	uint64_t shown;  /* st_ino */
	struct attributes attributes;
	int64_t ctime_ns;
	int64_t atime_ns; /* when atime_set: somebody set it; else it is the modification time */
	bool atime_set;
	uint32_t nlink;
	struct pointer tree;    /* directories: base tree, pointer_none when new */
	struct content content; /* files without staging: all of it; piecewise: what lies below */
	uint64_t staging;       /* 0: none */
	bool piecewise;         /* staging holds only what was written; 4 KiB-aligned data extents
	                           of the (sparse) staging file override the content */
	uint64_t base_bytes;    /* piecewise: how much of content still shows */
	char *target;           /* owned */
	size_t target_length;
	uint8_t *xattrs; /* owned */
	size_t xattrs_length;
};
void inode_release(struct inode *inode);
int inode_copy(const struct inode *inode, struct inode *ret_copy);
/* The record, all but the number. */
void inode_encode(struct buffer *buffer, const struct inode *inode);
int inode_decode(const void *bytes, size_t length, struct inode *ret_inode);

/* A directory as reads see it: an overlay inode, or (number 0) a committed directory. */
struct directory {
	uint64_t number;
	struct pointer tree; /* used when number is 0 */
};
/* What a name is: an overlay inode (number != 0), or a committed entry (owned: free()). */
struct found {
	uint64_t number;
	uint32_t mode; /* S_IFMT bits at least */
	struct tree_entry *entry;
};
/* -ERR_NOT_FOUND; -ERR_STALE when the number is no longer valid (look up again by path). */
int worktree_lookup(struct worktree *worktree, const struct directory *directory, const char *name,
                    size_t name_length, struct found *ret_found, struct message *message);
int worktree_inode(struct worktree *worktree, uint64_t number, struct inode *ret_inode);
/* The root's directory: number when the overlay has it, else the base tree. */
int worktree_root(struct worktree *worktree, struct directory *ret_directory);
/* List names > `after` in byte order, overlay and base merged, until the callback returns
 * non-zero (then returned) or the end (0). `found->entry` is borrowed during the callback. */
typedef int list_fn(void *context, const char *name, size_t name_length, const struct found *found);
int worktree_list(struct worktree *worktree, const struct directory *directory, const char *after,
                  size_t after_length, list_fn *callback, void *context, struct message *message);

/* -- mutations: between enter and leave, so that a commit sees all of one or nothing -- */
/* Waits while a commit or move swaps the overlay. -ERR_STALE when `epoch` has passed,
 * -ERR_NOT_FOUND when the branch was deleted. Nesting is not allowed. */
int worktree_enter(struct worktree *worktree, uint64_t epoch);
void worktree_leave(struct worktree *worktree);

/* Number of the root in the overlay, made when missing. */
int worktree_adopt_root(struct worktree *worktree, uint64_t *ret_number);
/* Bring the committed entry `name` of overlay directory `parent` into the overlay. When it is
 * there already its number is returned. `shown`: the st_ino callers have seen. */
int worktree_adopt(struct worktree *worktree, uint64_t parent, const struct tree_entry *entry,
                   uint64_t shown, uint64_t *ret_number, struct message *message);
/* A new inode under a free name (-ERR_EXISTS). A regular file gets an empty staging file; a
 * symlink its target. attributes->mtime_ns 0: now. parent 0: a nameless file (O_TMPFILE):
 * *ret_inode is its only record until worktree_link gives it a name. */
int worktree_make(struct worktree *worktree, uint64_t parent, const char *name, size_t name_length,
                  const struct attributes *attributes, const char *target, struct inode *ret_inode,
                  struct message *message);
/* Another name for an overlay inode; `orphan` (may be NULL) is the caller's copy of one whose
 * last name is gone. */
int worktree_link(struct worktree *worktree, uint64_t number, struct inode *orphan, uint64_t parent,
                  const char *name, size_t name_length, struct message *message);
/* Remove a name. When it was the last one of an overlay inode, *ret_last holds it (number != 0)
 * and its staging file stays until worktree_forget (ret_last NULL: it goes at once). A committed
 * entry need not be adopted first. -ERR_NOT_EMPTY, -ERR_IS_DIRECTORY,
 * -ERR_NOT_DIRECTORY. */
int worktree_remove(struct worktree *worktree, uint64_t parent, const char *name,
                    size_t name_length, bool directory, struct inode *ret_last,
                    struct message *message);
/* Both names' parents are in the overlay; the source has been adopted, and so has the target
 * when it exists (else -ERR_STALE). flags: RENAME_NOREPLACE, RENAME_EXCHANGE. *ret_last as above
 * for a replaced target. The caller has excluded moving a directory below itself. */
int worktree_rename(struct worktree *worktree, uint64_t from_parent, const char *from,
                    size_t from_length, uint64_t to_parent, const char *to, size_t to_length,
                    unsigned flags, struct inode *ret_last, struct message *message);
/* Which attributes to set. Size is worktree_truncate's. Each call sets ctime to now; SET_CTIME
 * alone does nothing else. The kind of inode in attributes->mode is ignored. */
enum { SET_MODE = 1, SET_UID = 2, SET_GID = 4, SET_MTIME = 8, SET_CTIME = 16, SET_ATIME = 32 };
int worktree_set_attributes(struct worktree *worktree, uint64_t number, unsigned which,
                            const struct attributes *attributes, int64_t atime_ns);
/* flags: XATTR_CREATE (-ERR_EXISTS), XATTR_REPLACE; a missing one is ENODATA's system error. */
int worktree_set_xattr(struct worktree *worktree, uint64_t number, const char *name,
                       struct span value /* data NULL: remove */, int flags);
/* An orphan (last name gone) is not needed any more: remove its staging file. */
void worktree_forget(struct worktrees *trees, const struct inode *last);
/* A staged file has its staging file's modification time; for orphans, whose record is the
 * caller's. */
int staging_set_mtime(struct worktrees *trees, uint64_t staging, int64_t mtime_ns);

/* -- content of overlay files -- */
/* Make the file writable: give it a staging file holding its content (copied when small,
 * piecewise when large, empty when `truncate`). The inode is read back into *ret_inode. */
int worktree_writable(struct worktree *worktree, uint64_t number, bool truncate,
                      struct inode *ret_inode, struct message *message);
/* Open the staging file itself; O_RDONLY or O_RDWR. */
int staging_open(struct worktrees *trees, uint64_t staging, int flags, int *ret_fd);
/* A regular file's bytes as readers see them, local when possible. One per open file or shared
 * per inode; the caller keeps it while anything is open. */
struct file_data;
int file_data_open(struct worktrees *trees, const struct inode *inode, bool write,
                   struct file_data **ret_data, struct message *message);
int file_data_open_content(struct worktrees *trees, const struct content *content,
                           struct file_data **ret_data, struct message *message);
void file_data_close(struct file_data *data);
/* A descriptor that holds every byte of the file, for passthrough: -1 when not wholly local.
 * Valid until close. Writable when opened for writing. */
int file_data_local(const struct file_data *data);
/* Was it opened on committed content that was not wholly local before? */
bool file_data_fetched(const struct file_data *data);
ssize_t file_data_read(struct file_data *data, void *out, size_t length, uint64_t offset,
                       struct message *message);
ssize_t file_data_write(struct file_data *data, const void *bytes, size_t length, uint64_t offset,
                        struct message *message);
int file_data_truncate(struct file_data *data, uint64_t size, struct message *message);
int file_data_allocate(struct file_data *data, int mode, uint64_t offset, uint64_t length,
                       struct message *message);            /* fallocate(2) */
int file_data_sync(struct file_data *data, bool data_only); /* the bytes; names: state_sync */
int file_data_stat(struct file_data *data, struct stat *ret_stat); /* size, times, blocks */
int file_data_seek(struct file_data *data, uint64_t offset, int whence, uint64_t *ret_offset);
/* Truncate by number, without an open file (SETATTR by path). */
int worktree_truncate(struct worktree *worktree, uint64_t number, uint64_t size,
                      struct message *message);
/* stat(2) of an overlay inode: record and staging file together. st_ino of a root is its number
 * (its `shown` is 0): callers show their own. */
int worktree_stat(struct worktree *worktree, const struct inode *inode, struct stat *ret_stat);
/* A descriptor of a staging file, for reading. -ERR_NOT_FOUND: it has become something else, or
 * nothing. */
int worktree_open_staging(struct worktrees *trees, uint64_t staging, int *ret_fd);
/* Count writers, so that commit knows: +1 before an open for writing succeeds, -1 at release. */
int worktree_writer(struct worktrees *trees, uint64_t number, int change);

/* -- whole working trees: commands -- */
struct commit_options {
	const char *author, *message, *command;
	const struct meta_pair *meta;
	size_t meta_count;
	const char *const *paths; /* NULL: everything */
	size_t path_count;
	bool allow_open;
	bool allow_empty;
	int wait_ms; /* for files open for writing; then -ERR_BUSY naming them */
	const struct pointer *second_parent; /* may be NULL */
	const struct progress *progress;
	/* Every path that -ERR_CONFLICT is about; may be NULL. */
	void (*conflicted)(void *context, const char *path);
	/* Where the branch has moved and did not merge: all of it, instead of path by path. May be
	 * NULL. The result's base is the working tree's, its target the branch's head. */
	void (*unmerged)(void *context, const struct merge_result *merged);
	void *context;
	const struct ref_rights *rights; /* see refs/protection.h; NULL: none */
};
/* Files that changed without being stored anew are counted so far. */
#define COUNTED_FILES_MAX 100000
struct commit_result {
	struct pointer commit;
	uint64_t files, bytes_new, bytes_known, packs, bytes_stored;
	bool more;    /* files, and so bytes_known, than were counted */
	bool rebased; /* the head had moved; changes were re-based onto it */
};
/* One atomic snapshot: stores content (ahead, without stopping writers), then with the gate
 * closed the rest, the trees and the commit, then moves the ref, then swaps the overlay; staging
 * files become cached blobs. -ERR_BUSY, -ERR_CONFLICT (paths in the message; nothing lost),
 * -ERR_INVALID when nothing changed and not allow_empty. */
int worktree_commit(struct worktree *worktree, const struct commit_options *options,
                    struct commit_result *ret_result, struct message *message);
/* Uncommitted changes, in path order. change.after of a staged file has content.size set and a
 * zero id. */
int worktree_changes(struct worktree *worktree, const char *const *paths, size_t path_count,
                     change_fn *callback, void *context, struct message *message);
/* Move the branch's ref from its current head to `commit` and the working tree with it.
 * Uncommitted changes are kept when no path collides (-ERR_CONFLICT names those that do; nothing
 * moved), or thrown away with `discard`. `expected` (may be NULL) is the head the caller's work
 * is based on: -ERR_MOVED when it is another by now. */
struct move_options {
	const struct pointer *expected;
	const char *who, *command;
	bool discard;
	const struct ref_rights *rights; /* see refs/protection.h; NULL: none */
};
int worktree_move(struct worktree *worktree, const struct pointer *commit,
                  const struct move_options *options, struct message *message);
/* More than so many restored paths are not counted. */
#define RESTORED_COUNT_MAX 10000
/* Make `paths` (and below) as in `from` (a commit's tree; NULL: the base): uncommitted changes
 * there are gone, differences become uncommitted changes. Unknown paths: -ERR_NOT_FOUND; `from`
 * while the branch is read-only: -ERR_REFUSED. */
int worktree_restore(struct worktree *worktree, const struct commit *from, const char *const *paths,
                     size_t path_count, uint64_t *ret_changed, struct message *message);
/* The branch itself: its working tree goes with it (-ERR_BUSY while files are open for writing;
 * -ERR_REFUSED when uncommitted changes would be lost and not `force`). */
int worktree_delete_branch(struct worktrees *trees, const char *branch, bool force,
                           const struct ref_author *author, struct message *message);
int worktree_rename_branch(struct worktrees *trees, const char *from, const char *to,
                           const struct ref_author *author, struct message *message);
/* The branches with uncommitted state here, whether or not others deleted them. */
int worktrees_kept(struct worktrees *trees, int (*callback)(void *context, const char *branch),
                   void *context);
/* Base commits, and the trees and content that uncommitted changes refer to: roots for gc. */
int worktrees_roots(struct worktrees *trees,
                    int (*commit_fn)(void *context, const struct pointer *commit),
                    int (*tree_fn)(void *context, const struct pointer *tree),
                    int (*content_fn)(void *context, const struct content *content), void *context);

#endif
