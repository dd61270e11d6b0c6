/*
 * snapshot — what the commands on whole working trees share. Included only by the files below.
 *
 *   snapshot.c          worktree_commit: the order of things, waiting for writers, retries
 *   snapshot_path.c     paths: sets of them, where a walk is, what one is in an overlay
 *   stored_files.c      the table of what was stored; making blobs of it
 *   snapshot_upload.c   staging files to content: who has been stored, and is it still true
 *   snapshot_tree.c     overlay to trees, whole or limited to paths
 *   worktree_changes.c  what an overlay changes; comparing files
 *   rebase.c            what is left of an overlay when its base becomes another tree
 *   worktree_move.c     worktree_move, deleting and renaming branches, roots
 *   worktree_restore.c  worktree_restore
 *
 * Everything here that takes an overlay expects it to hold still: the gate is closed, or (changes)
 * held by the caller against swaps. Recursion follows directories and is bounded by paths of
 * PATH_BYTES_MAX (-ERR_TOO_LARGE beyond).
 */
#ifndef FS_SNAPSHOT_H
#define FS_SNAPSHOT_H

#include "fs/worktree_internal.h"

/* -- the path of where a walk is -- */
struct path {
	char text[PATH_BYTES_MAX];
	size_t length;
};
int path_push(struct path *path, const char *name, size_t name_length, struct message *message);
void path_pop(struct path *path, size_t length); /* back to an earlier length */

/* Up to NAMES_MAX paths for a message, and how many there were. */
#define NAMES_MAX 10
struct names {
	char text[700];
	size_t length;
	size_t named, count;
};
void names_add(struct names *names, const char *path);
const char *names_text(struct names *names); /* "a, b and 3 more" */

/* Paths as commands take them: normalised, sorted, none inside another. Empty when everything is
 * meant (count 0, or one of them is the root). */
struct path_set {
	char **paths;
	size_t count;
};
int path_set_init(struct path_set *set, const char *const *paths, size_t count,
                  struct message *message);
void path_set_release(struct path_set *set);
bool path_set_has(const struct path_set *set, const char *path);   /* it or a parent is named */
bool path_set_above(const struct path_set *set, const char *path); /* something below is named */

/* -- what a path is in an overlay over its base -- */
struct located {
	bool exists;
	struct inode inode;       /* number 0: not in the overlay */
	struct tree_entry *entry; /* committed, when number is 0; NULL for the root; owned */
};
void located_release(struct located *located);
/* Where a walk starts: the overlay's root, or (overlay 0) the base tree alone. */
struct ground {
	struct worktrees *trees;
	uint64_t overlay, root;
	struct pointer tree;
	struct attributes attributes;
};
struct ground ground_of(struct worktrees *trees, const struct worktree_view *view);
/* exists is false when a component is missing or not a directory. `path` is normalised, not "". */
int ground_locate(const struct ground *ground, const char *path, struct located *ret_located,
                  struct message *message);

/* -- stored content of staging files -- */
struct stored_pack;
struct stored_file { /* there may be millions */
	uint64_t number, staging;
	int64_t ctime_ns;
	uint64_t size;
	struct id id;
	const struct stored_pack *pack;
	uint32_t offset, stored, raw; /* of its place */
	uint8_t codec, key, kind;
	bool settled : 1; /* the staging file was at rest when it was read: its ctime tells changes
	                   */
	bool used : 1;    /* the trees being committed have it: checked with the gate closed */
	bool piecewise : 1;
	bool open : 1; /* had writers when it was taken: it may have other bytes since, even if
	                  not now */
};
struct stored { /* zero: none */
	struct stored_file **blocks;
	size_t count;
	uint32_t *slots; /* by inode number */
	size_t slot_count;
	struct stored_pack *packs;
	bool open; /* any of those used was */
};
/* What storing a staging file gave. */
struct stored_result {
	uint64_t number, staging;
	int64_t ctime_ns;
	struct content content;
	bool settled, piecewise;
};
void stored_release(struct stored *stored);
struct stored_file *stored_find(const struct stored *stored, uint64_t number);
int stored_enter(struct stored *stored, const struct stored_result *found);
struct content stored_file_content(const struct stored_file *file);
/* The gate was opened again: what was checked may have changed. */
void stored_unuse(struct stored *stored);
/* The commit made, gate still closed: what overlay `left` (0: none) names is no longer `used`. As
 * soon as the gate opens it may be written to, and removed from there. */
void stored_leave(struct stored *stored, struct worktrees *trees, uint64_t left);
/* Gate open again: staging files that are whole and used become cached blobs. Failing costs a
 * fetch later, nothing else. Does it for the large ones and the first `small_max` others, and
 * returns how many are left. */
size_t stored_adopt(struct stored *stored, struct worktrees *trees, size_t small_max);
/* Store every staged file of the overlay (below `paths`, unless that is empty) that is not open
 * for writing and not stored yet, with a few threads, while mutations go on. *ret_files: how many
 * were stored by this call. */
int stored_ahead(struct stored *stored, const struct ground *ground, const struct path_set *paths,
                 struct packer *packer, const struct progress *progress, uint64_t *ret_files,
                 struct message *message);
/* Gate closed: the file's content, stored now unless it was and has not changed since, by `status`
 * of its staging file. */
int stored_content(struct stored *stored, struct worktrees *trees, struct packer *packer,
                   const struct inode *inode, const struct stat *status,
                   const struct progress *progress, struct content *ret_content,
                   struct message *message);

/* -- inodes as entries -- */
/* Borrows from the inode and `name`. A staged file has its staging file's size and time, and a
 * zero content id unless it is empty; a directory has its base tree. */
int entry_of_inode(struct worktrees *trees, const struct inode *inode, const char *name,
                   size_t name_length, struct tree_entry *ret_entry);
/* The same for who has looked at the staging file, if it is a staged file. */
struct tree_entry entry_of_status(const struct inode *inode, const struct stat *status,
                                  const char *name, size_t name_length);
/* Is the overlay file as the committed entry says (times aside)? A staged file is compared by its
 * stored content when `stored` is given (unknown or taken while open for writing: different), else
 * by its bytes when it has at most `compare_bytes_max` (larger: different). */
int inode_matches(struct worktrees *trees, const struct inode *inode,
                  const struct tree_entry *entry, const struct stored *stored,
                  uint64_t compare_bytes_max, bool *ret_matches, struct message *message);
/* The attributes and extended ones are equal, times aside. */
bool attributes_match(const struct tree_entry *a, const struct tree_entry *b);

/* -- trees out of an overlay -- */
struct snapshot {
	struct ground ground;
	struct packer *packer;
	struct stored *stored;
	const struct progress *progress;
	bool allow_open;
	struct names busy; /* files open for writing that were met (and not allowed) */
	struct path path;
};
/* The whole, or the base with the paths of the set as they are in the working tree. Names files
 * open for writing in snapshot->busy and then returns -ERR_BUSY without a message.
 * -ERR_NOT_FOUND: a path that is neither in the base nor in the working tree. */
int snapshot_build(struct snapshot *snapshot, const struct path_set *paths,
                   struct merge_side *ret_side, struct message *message);

/* -- what an overlay changes -- */
#define COMPARE_BYTES_MAX ((uint64_t)64 << 20)
struct changes_options {
	const struct path_set *paths; /* NULL or empty: everything */
	uint64_t compare_bytes_max;
	const struct stored *stored; /* see inode_matches; may be NULL */
};
/* Differences between the overlay directory (and all below) and the tree `before`, in path order.
 * `at` is where it lies; it is changed during the walk. */
int changes_walk(struct worktrees *trees, uint64_t overlay, const struct inode *directory,
                 const struct pointer *before, struct path *at,
                 const struct changes_options *options, change_fn *callback, void *context,
                 struct message *message);
/* Any difference at all, the root's attributes included? */
int ground_changed(const struct ground *ground, bool *ret_changed, struct message *message);

/* -- another base below the same changes -- */
struct rebase_options {
	const struct ground *ground; /* the overlay, and the tree it was based on */
	struct merge_side after;     /* the tree it is to be based on */
	/* Given: `after` is the base with some of the overlay's own changes, whose contents are
	 * here; nothing collides, and files open for writing stay. NULL: `after` has changes by
	 * others; uncommitted ones that are not the same are collisions. */
	const struct stored *stored;
	bool whole; /* with `stored`: `after` has all of the overlay's changes */
	/* Without `stored`: larger staged files are not read, a change on both sides is then a
	 * collision. 0: all are read. */
	uint64_t compare_bytes_max;
	/* Write nothing, only say what it would come to. The gate may be open then: what the
	 * answer is worth shows the working tree's epoch afterwards. */
	bool rehearse;
	void (*collided)(void *context, const char *path); /* every one; may be NULL */
	void *context;
};
/* Write what is left into a new overlay (0 when nothing is) that no branch has yet, with the same
 * inode numbers. *ret_collisions names the paths when -ERR_CONFLICT is returned (no message). */
int rebase_overlay(const struct rebase_options *options, uint64_t *ret_overlay, uint64_t *ret_root,
                   struct names *ret_collisions, struct message *message);

/* -- files open for writing -- */
/* How many inodes of the overlay have writers. */
int overlay_writers(struct worktrees *trees, uint64_t overlay, size_t *ret_count);
/* -ERR_BUSY, saying which they are: as the mount knows, else `known` (may be NULL), else how many.
 * `advice` follows. */
int fail_busy(struct worktree *worktree, struct names *known, size_t count, const char *advice,
              struct message *message);

/* -- moving a branch under its working tree -- */
/* Gate closed; the ref has not moved, or nobody knows: drop the intent. What did get through shows
 * later as changes that the head has too. When it cannot be dropped (not a few bytes of space for
 * the journal) nobody may change anything on top of it: the working tree leaves the table, and the
 * next worktree_get settles the intent first. */
void snapshot_unintend(struct worktree *worktree);

#endif
