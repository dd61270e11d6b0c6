/*
 * worktree_internal — what the files that implement fs/worktree.h share. Included only by them.
 *
 *   worktree.c    opening, the table of working trees, branch records, clean-up
 *   worktree_follow.c  coming along when others move the branch
 *   overlay.c     names and attributes: look-ups, lists, mutations
 *   records.c     the records: bytes of keys and values (format: fs/README.md, "State tables")
 *   staging.c     staging files by number
 *   cleaner.c     deleting overlays that nobody owns
 *   file_data.c   a file's bytes as readers see them
 *   the commands (commit, move, restore, branches) build on all of these
 *
 * An overlay is the set of STATE_ENTRIES and STATE_INODES records whose keys start with its
 * number. It belongs to at most one branch record. Overlay 0 is "nothing uncommitted": it has no
 * records and a branch with it has no record either. Every other overlay owned by a branch has a
 * root inode. Records in an overlay that no branch record names are garbage: an interrupted
 * command's, or what a swap left behind.
 *
 * Locks, in order:
 *   gate          per working tree. Shared: mutations (worktree_enter). Exclusive: whoever swaps
 *                 the overlay or moves the base. Nobody enters twice.
 *   table_lock    one per struct worktrees: read-modify-write of state, and the fields marked so.
 *                 Never held across the store, a base tree or a staging file's bytes.
 *   files_lock    the table of open staging files (file_data.c); leaf.
 *   state's own   leaf.
 * A working tree's `overlay`, `root` and base change only with the gate held exclusively, except
 * that the first mutation makes overlay and root (0 -> n) under table_lock with the gate shared.
 * So: whoever holds the gate in either way may read the base without table_lock; whoever holds it
 * exclusively may read all of them. Others take copies with worktree_view.
 */
#ifndef FS_WORKTREE_INTERNAL_H
#define FS_WORKTREE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include <uthash.h>

#include "fs/contention.h"
#include "fs/worktree.h"

#define COPY_UP_BYTES_DEFAULT ((uint64_t)16 << 20)
#define REFRESH_INTERVAL_MS 1000
#define WORKTREES_IDLE_MAX 1024
#define STAGING_PATH_MAX 24 /* "xx/<16 hex digits>" and NUL */
#define OVERLAY_SCAN_BATCH 256
#define OVERLAY_CLEAN_BATCH 512

/* Count of opens for writing of one inode; present only while it is not 0. */
struct writer {
	uint64_t number;
	unsigned count;
	UT_hash_handle hh;
};

struct worktrees {
	struct state *state;
	struct odb *odb;
	struct history *history;
	struct cache *cache; /* may be NULL: content is then read through the odb */
	char *staging_directory;
	int staging_fd; /* of that directory */
	uint64_t copy_up_bytes_max;
	int refresh_ms; /* how often heads are looked at; negative: never by themselves */
	const struct table_formats *tables; /* may be NULL */
	/* The store did not answer the follower: nobody else waits for it just to see whether a
	 * head has moved. */
	_Atomic bool away;
	_Atomic bool followed; /* a follower runs */
	uint64_t granule; /* unit of a piecewise file: max(4096, block size of the staging disk) */
	_Atomic uint64_t epochs; /* the last epoch given out, to any working tree */
	/* Staging files with lower numbers are from before this process: descriptors that were
	 * passed through then may write to them for ever, so they never become cached blobs. */
	uint64_t first_number;

	/* A file's ctime that was looked at is another one after the next change, however soon
	 * (Linux 6.13, "multigrain timestamps"), not only after the clock's next step. */
	bool fine_times;
	_Atomic uint64_t writer_count; /* counts every file opened for writing, for ever */

	pthread_mutex_t renames_lock; /* one renaming or settling at a time; after gates */
	_Atomic bool renames_open;    /* some branch may have a `renaming` */

	pthread_mutex_t table_lock;
	/* guarded by table_lock: */
	struct worktree *by_branch;
	uint64_t departures; /* counts working trees that left the table */
	struct writer *writers;
	struct worktree_observer observer;

	pthread_mutex_t files_lock;
	struct file_data *files; /* shared ones, by staging number; guarded by files_lock */

	/* The cleaner deletes records of discarded overlays, in small batches, and staging files
	 * that no record names any more, once that is durable. */
	pthread_t cleaner;
	pthread_mutex_t cleaner_lock; /* guards what follows; leaf */
	pthread_cond_t cleaner_wake;
	struct discarded *discarded;
	bool cleaner_running, closing;
	pthread_cond_t adopted;
	_Atomic unsigned adopting; /* items of `discarded` with files that readers wait for */
	struct buffer removed;     /* u64 each: staging files to unlink; cleaner_lock */
	uint64_t removed_bytes;    /* at least what these take on the disk */
	int64_t removed_due_ms;
};

/*
 * A branch that is about to have another name. If a crash comes before that is recorded, or the
 * store's answer does not, the nonce tells whether it was done (ref_was_renamed); then the
 * working tree is the new name's. Until that is settled nobody makes one of either name.
 */
struct branch_renaming {
	char to[REF_NAME_MAX + 1]; /* "": none */
	uint8_t nonce[REF_NONCE_BYTES];
};

struct worktree {
	struct worktrees *trees;
	UT_hash_handle hh;   /* by_branch; table_lock */
	unsigned references; /* table_lock */
	_Atomic(char *)
	        branch; /* replaced by worktree_rekey; old names live as long as this does */
	struct name_kept *names; /* owned: every name it ever had; table_lock */

	pthread_rwlock_t gate; /* prefers writers */
	_Atomic uint64_t epoch;
	_Atomic bool gone; /* the branch was deleted; set with the gate held exclusively */

	struct contention contention; /* its own lock */

	pthread_mutex_t refresh_lock; /* one reader of the ref at a time; before the gate */
	_Atomic int64_t refreshed_ms; /* monotonic */
	int look_error;               /* the follower's own: what it complained of last */
	/* guarded by refresh_lock: */
	struct etag seen_etag; /* the ref as last seen; empty: never */
	struct pointer seen_head;
	struct id tried_head;         /* collisions were found with this one, */
	uint64_t tried_commits;       /* which is so many commits ahead, */
	bool tried_counted;           /* unless one of them could not be read, */
	int64_t retry_ms;             /* and are not looked for again before (monotonic) */
	struct standing standing;     /* table_lock */
	struct protection protection; /* as last seen; table_lock */
	/* Without a lock, as mutations ask: what `protection` comes to; has the ref been seen? */
	_Atomic bool read_only, protection_seen;
	_Atomic int64_t protection_asked_ms; /* by who wanted to write; monotonic */

	/* See "Locks" for who may read and write these. */
	_Atomic uint64_t overlay; /* look-ups read it without a lock: stale is as good as early */
	_Atomic uint64_t root;    /* the overlay's root inode; 0 with overlay 0 */
	struct branch_renaming renaming; /* changes under table_lock, too */
	struct pointer base;             /* commit */
	struct pointer base_tree;
	struct attributes base_root;
	bool intent; /* the branch's record announces a move: to this commit with this overlay */
	struct id intent_commit;
	uint64_t intent_overlay;
};

/* -- branch records: STATE_BRANCHES, branch name -> this. Absent: nothing uncommitted -- */
struct branch_record {
	uint64_t overlay;
	uint64_t root;
	struct pointer base;
	/* The ref is about to be moved from `intent_head`: when since it stood there it has stood
	 * on `intent_commit`, the branch is to have that base with `intent_overlay` (0: nothing
	 * uncommitted is left); else nothing happened. worktrees_open settles it (or the first
	 * worktree_get, when the store was away). The commit alone would not tell: a branch that is
	 * reset stood on it before. */
	bool intent;
	struct pointer intent_head, intent_commit;
	uint64_t intent_overlay;
	uint64_t intent_root;
	struct branch_renaming renaming;
};
int branch_record_read(struct worktrees *trees, const char *branch,
                       struct branch_record *ret_record); /* -ERR_NOT_FOUND, -ERR_CORRUPT */
/* overlay 0 without intent: deletes it. */
void branch_record_put(struct state_batch *batch, const char *branch,
                       const struct branch_record *record);
int branch_record_decode(const void *bytes, size_t length, struct branch_record *ret_record);
typedef int branch_record_fn(void *context, const char *branch, const struct branch_record *record);
/* The callback runs without locks. */
int branch_records_each(struct worktrees *trees, branch_record_fn *callback, void *context);

/* -- following (worktree_follow.c, fs/follower.c) -- */
/* Every working tree that somebody refers to, one more reference each; the caller frees the
 * array. */
int worktrees_used(struct worktrees *trees, struct worktree ***ret_used, size_t *ret_count);
/* Like worktree_refresh, but in no haste: what was found to collide is tried again seldom, and who
 * has the gate is left in peace (the next look makes up for it). `listed` (may be NULL): the etag
 * that a listing begun at `epoch` had. */
int worktree_look(struct worktree *worktree, const struct etag *listed, uint64_t epoch,
                  struct message *message);
/* The branch's ref was seen to be so protected, by who holds refresh_lock: what is seen elsewhere
 * may be older, and counts (`first`) only while nothing was seen. */
void worktree_note_protection(struct worktree *worktree, const struct protection *protection,
                              bool first);
/* -ERR_REFUSED when what was seen of the branch forbids a move with `rights`, and looking again
 * says the same; before work is done for a move that the ref will refuse. */
int worktree_check_move(struct worktree *worktree, const struct ref_rights *rights,
                        struct message *message);
/* A move ended with `error`, which is returned: when the ref refused it, what protects the branch
 * is news here. The gate is open. */
int worktree_refused(struct worktree *worktree, int error);

/* -- a working tree, for whoever moves it -- */
int worktrees_read_commit(struct worktrees *trees, const struct pointer *pointer,
                          struct commit **ret_commit, struct message *message);
/* Gate closed, table_lock held (or nobody else knows the working tree). */
void worktree_set_base(struct worktree *worktree, const struct commit *commit);
/* Consistent copies of the four. Any of ret_ may be NULL. */
struct worktree_view {
	uint64_t overlay, root, epoch;
	struct pointer base, base_tree;
	struct attributes base_root;
};
void worktree_view(struct worktree *worktree, struct worktree_view *ret_view);

/* Close and open the gate. Closing waits for mutations under way and keeps new ones out.
 * -ERR_NOT_FOUND (and not closed) when the branch is gone. */
int worktree_close_gate(struct worktree *worktree);
int worktree_close_gate_within(struct worktree *worktree, int wait_ms); /* -ERR_BUSY: not */
void worktree_open_gate(struct worktree *worktree);

/* Gate closed. Record (or, commit NULL, drop) that the ref is to move from `head`, and make it and
 * every batch before it durable. Must return 0 before the ref is moved. */
int worktree_intend(struct worktree *worktree, const struct pointer *head,
                    const struct pointer *commit, uint64_t overlay, uint64_t root,
                    struct message *message);
/* Gate closed. The branch now shows `base` with `overlay` (0: nothing uncommitted; else root is
 * its root inode): one batch, which also ends an intent, and a new epoch. The old overlay's
 * records stay: pass it to overlay_discard when its staging files have been dealt with. The
 * caller tells the observer once the gate is open. */
int worktree_swap(struct worktree *worktree, const struct commit *base, uint64_t overlay,
                  uint64_t root, struct message *message);
/* Gate closed. The branch no longer exists: its record goes, the working tree is `gone` and leaves
 * the table. The overlay's records stay (overlay_discard). */
int worktree_drop(struct worktree *worktree, struct message *message);
/* Gate closed. The working tree is `gone` and leaves the table, its record stays: whoever gets it
 * again loads it anew, and settles its intent. */
void worktree_depart(struct worktree *worktree);
/* Gate closed, under renames_lock. The branch is about to be renamed (NULL: is not any more): its
 * record says so, durably, if it has one. From here to worktree_rekey no working tree of the new
 * name is made. */
int worktree_announce(struct worktree *worktree, const struct branch_renaming *renaming,
                      struct message *message);
/* Gate closed. The branch has another name now: its record moves, in one batch. */
int worktree_rekey(struct worktree *worktree, const char *branch, struct message *message);
/* At opening, before anything looks at the records, and while renames_open: every renaming of a
 * branch without a working tree ends, as it went. renames_open stays while that cannot be told. */
int worktrees_settle_renames(struct worktrees *trees);
/* Before a working tree of `branch` is made: no renaming from it or to it may be open. May close
 * the other branch's gate. -ERR_STORE_AWAY: cannot be told. */
int worktree_settle_renamed(struct worktrees *trees, const char *branch, struct message *message);
/* Ends the renaming of a working tree that is left from one that failed, if there is any: closes
 * its gate, and it may have another name afterwards. */
int worktree_settle_own(struct worktree *worktree, struct message *message);
void worktrees_observer(struct worktrees *trees, struct worktree_observer *ret_observer);

/* A fresh overlay number; its records may be written in any number of batches before a branch
 * record names it (a crash before that makes them garbage). */
static inline uint64_t overlay_new(struct worktrees *trees)
{
	return state_number(trees->state);
}
#define KEEP_STAGING UINT64_MAX
/* Nobody's any more: delete its records in the background, and unlink the staging files its
 * inodes name, except those that inodes of the same number in overlay `successor` (0: none) name
 * too. KEEP_STAGING: unlink none. Accepts overlay 0. */
void overlay_discard(struct worktrees *trees, uint64_t overlay, uint64_t successor);
/* The same in two steps, for who has something to do first. Its place is behind what was discarded
 * before: the successor's records are there until its turn comes, also when the successor is
 * discarded before the second step. So who goes on with a successor calls overlay_discard or this
 * with the gate closed. NULL: nothing to discard, or no memory. */
struct discarded *overlay_retire(struct worktrees *trees, uint64_t overlay, uint64_t successor);
/* Goes on with it, before anything that was discarded since. After a commit of it first what is
 * left to adopt of `stored` (may be NULL; it is taken) becomes cached blobs, in the background.
 * Until then it is read from the store like any committed file, but for the first few thousand,
 * which adopted_wait waits for. keep_staging: as KEEP_STAGING. Accepts NULL. */
struct stored;
void overlay_let_go(struct worktrees *trees, struct discarded *retired, struct stored *stored,
                    bool keep_staging);
/* stored_files.c; stops when is_closing says so. */
void stored_adopt_rest(struct stored *stored, struct worktrees *trees,
                       bool (*is_closing)(struct worktrees *trees));

/* Before content that was committed here just now is read: what the commit has at hand is not to be
 * fetched. Returns at once when it is cached, or nothing is to be expected. */
void adopted_wait(struct worktrees *trees, const struct content *content);

/* cleaner.c. init before anything else; release stops the thread. */
void cleaner_init(struct worktrees *trees);
int cleaner_start(struct worktrees *trees, struct message *message);
void cleaner_release(struct worktrees *trees);
/*
 * No record names this staging file any more (0: none). It goes when that is durable: after a power
 * cut the record may be back, and what had been fsynced must be there again with it. So space comes
 * back a moment later, except when that is half as much as there is: then this waits for the disk.
 */
void staging_remove(struct worktrees *trees, uint64_t staging);
void staging_remove_now(struct worktrees *trees); /* all that wait for it */

/* -- records of an overlay -- */
void overlay_put_inode(struct state_batch *batch, uint64_t overlay, const struct inode *inode);
void overlay_delete_inode(struct state_batch *batch, uint64_t overlay, uint64_t number);
/* -ERR_NOT_FOUND. The caller releases. */
int overlay_read_inode(struct worktrees *trees, uint64_t overlay, uint64_t number,
                       struct inode *ret_inode);

struct overlay_entry {
	const char *name; /* NUL-terminated */
	size_t name_length;
	bool whiteout;   /* the base tree's entry of this name is not there any more */
	uint64_t number; /* 0 for a whiteout */
	uint32_t mode;   /* S_IFMT bits */
};
void overlay_put_entry(struct state_batch *batch, uint64_t overlay, uint64_t directory,
                       const char *name, size_t name_length, uint64_t number, uint32_t mode);
void overlay_put_whiteout(struct state_batch *batch, uint64_t overlay, uint64_t directory,
                          const char *name, size_t name_length);
void overlay_delete_entry(struct state_batch *batch, uint64_t overlay, uint64_t directory,
                          const char *name, size_t name_length);
/* name and name_length of the result are the arguments. -ERR_NOT_FOUND. */
int overlay_read_entry(struct worktrees *trees, uint64_t overlay, uint64_t directory,
                       const char *name, size_t name_length, struct overlay_entry *ret_entry);
/* Every entry and whiteout of a directory with name > `after` (after_length 0: all), ascending.
 * The callback runs without locks (records are read OVERLAY_SCAN_BATCH at a time) and may mutate;
 * the entry is borrowed. Non-zero stops and is returned. */
typedef int overlay_entry_fn(void *context, const struct overlay_entry *entry);
int overlay_entries(struct worktrees *trees, uint64_t overlay, uint64_t directory,
                    const char *after, size_t after_length, overlay_entry_fn *callback,
                    void *context);
/* Every inode of an overlay, by number; likewise without locks. */
typedef int overlay_inode_fn(void *context, const struct inode *inode);
int overlay_inodes(struct worktrees *trees, uint64_t overlay, overlay_inode_fn *callback,
                   void *context);
/* A pull cursor over the same entries, for merging with a base tree's. */
struct overlay_cursor;
int overlay_cursor_new(struct worktrees *trees, uint64_t overlay, uint64_t directory,
                       const char *after, size_t after_length, struct overlay_cursor **ret_cursor);
/* 0: the entry is borrowed until the next call; -ERR_NOT_FOUND: the end. */
int overlay_cursor_next(struct overlay_cursor *cursor, const struct overlay_entry **ret_entry);
void overlay_cursor_free(struct overlay_cursor *cursor); /* accepts NULL */

/* Commit a batch; the usual last step under table_lock. */
static inline int overlay_commit(struct worktrees *trees, struct state_batch *batch,
                                 struct message *message)
{
	return state_commit(trees->state, batch, message);
}

/* -- staging files -- */
/* The mode of a staging file that is being cut to nothing; else 0600. */
#define STAGING_EMPTIED 0700
struct timespec timespec_of(int64_t ns);
/* Relative to staging_fd / absolute (allocated; NULL: no memory), e.g. for cache_adopt. */
void staging_path(uint64_t staging, char ret_path[STAGING_PATH_MAX]);
char *staging_absolute(const struct worktrees *trees, uint64_t staging);
/* A new empty one, open for reading and writing (ret_fd NULL: not opened). */
int staging_create(struct worktrees *trees, uint64_t *ret_staging, int *ret_fd,
                   struct message *message);
/* At once: for one that no record ever named. Missing is fine; 0, too. */
void staging_unlink(struct worktrees *trees, uint64_t staging);
int staging_stat(struct worktrees *trees, uint64_t staging, struct stat *ret_stat);
/* What of a piecewise file differs from inode->content, as content_store_edit wants it with base =
 * &inode->content: the data extents of the staging file `fd`, and whatever content no longer
 * shows (from base_bytes on); ascending, disjoint, not touching, below the size of `fd`.
 * Allocated (free()); none: NULL. */
int staging_dirty(struct worktrees *trees, const struct inode *inode, int fd,
                  struct extent **ret_extents, size_t *ret_count);
/* At opening: removes every staging file that no inode of these overlays names,
 * and makes an empty one where a power cut took a file that was never synced. */
int staging_clean(struct worktrees *trees, const uint64_t *overlays, size_t count,
                  struct message *message);

/* Write a piecewise file's base_bytes into its record, in whichever working tree's overlay that
 * names this staging file. -ERR_NOT_FOUND: none does (its last name is gone). */
int overlay_set_base_bytes(struct worktrees *trees, uint64_t number, uint64_t staging,
                           uint64_t base_bytes);
int overlay_get_base_bytes(struct worktrees *trees, uint64_t number, uint64_t staging,
                           uint64_t *ret_base_bytes);
/* Asks the observer's settle_writers; before writers decide anything. */
void worktrees_settle_writers(struct worktrees *trees);
/* Opens for writing of an inode that are counted now (worktree_writer). */
unsigned worktree_writers(struct worktrees *trees, uint64_t number);

/* st_blocks of a piecewise file: what is written, and what of the base shows. */
static inline blkcnt_t piecewise_blocks(const struct stat *staging, uint64_t base_bytes)
{
	blkcnt_t all = (staging->st_size + 511) / 512;
	blkcnt_t some = staging->st_blocks + (blkcnt_t)((base_bytes + 511) / 512);
	return some < all ? some : all;
}
/* file_data.c: is the staging file open? */
bool file_data_in_use(struct worktrees *trees, uint64_t staging);
/* file_data.c: no file_data may be open any more. */
void file_data_table_release(struct worktrees *trees);

#endif
