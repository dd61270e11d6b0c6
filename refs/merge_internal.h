/*
 * merge_internal — what merge.c (trees) and merge_base.c (commits) share. Private to refs/.
 */
#ifndef REFS_MERGE_INTERNAL_H
#define REFS_MERGE_INTERNAL_H

#include "refs/merge.h"

/*
 * The merge of two bases into a virtual one. It has no conflicts: where the two disagree it holds
 * an unresolved entry, which equals neither side and nothing that any tree can hold. Merging from
 * such a base, sides that agree about the path are fine and sides that differ conflict.
 */
int merge_virtually(struct odb *odb, struct packer *packer, const struct merge_side *base,
                    const struct merge_side *source, const struct merge_side *target,
                    struct merge_side *ret_merged, struct message *message);

/* -- which side a path is taken from (merge_take.c) -- */

struct takes {
	const struct take *items;
	size_t count;
	bool *used; /* of each: it named a path that was looked at */
};
int takes_init(struct takes *takes, const struct take *items, size_t count); /* borrows */
void takes_release(struct takes *takes);
/* enum side, or 0: not decided by a take. */
int takes_side(struct takes *takes, const char *path);
/* Some take may name something below `path` that it does not name by `path` itself. */
bool takes_below(const struct takes *takes, const char *path);
/* -ERR_NOT_FOUND + message when one was not used and names nothing on either side. */
int takes_check(const struct takes *takes, struct odb *odb, const struct pointer *source,
                const struct pointer *target, struct message *message);

/* -- conflicts (merge_conflict.c) -- */

struct conflicts {
	struct conflict *items;
	size_t count, capacity;
};
void conflicts_release(struct conflicts *conflicts);
/* Entries are copied; NULL: absent. */
int conflicts_add(struct conflicts *conflicts, const char *path, const struct tree_entry *base,
                  const struct tree_entry *source, const struct tree_entry *target);
/* Takes what it needs out of `result`, which is about `directory`. */
int conflicts_add_table(struct conflicts *conflicts, const char *directory,
                        struct directory_result *result);
void directory_result_release(struct directory_result *result);
/* At the end: what lies within a table that conflicts becomes part of the table's conflict. The
 * entries are the roots of the sides. */
int conflicts_gather(struct conflicts *conflicts, struct odb *odb, const struct tree_entry *base,
                     const struct tree_entry *source, const struct tree_entry *target,
                     struct message *message);

/* -- one entry (merge_entry.c) -- */

/* True for an entry that merge_virtually left: of a kind no tree of a commit can hold. */
bool entry_is_unresolved(const struct tree_entry *entry); /* accepts NULL */
/* One that stands for `source` and `target` (each may be NULL), under their name. One allocation;
 * NULL: out of memory. */
struct tree_entry *unresolved_entry(const struct tree_entry *source,
                                    const struct tree_entry *target);
/* Mark a directory's attributes alone as unresolved. */
void unresolve_attributes(struct attributes *attributes);

/* What the attributes of a path become; release `xattrs`. */
struct merged_attributes {
	struct attributes attributes;
	struct buffer xattrs;
};
/* 0, or -ERR_CONFLICT: mode, owner or an extended attribute was changed differently. `base` may
 * be NULL: then the two must agree. Times never conflict. */
int merge_attributes(const struct tree_entry *base, const struct tree_entry *source,
                     const struct tree_entry *target, struct merged_attributes *ret_merged);
/* Two entries of one kind, not directories: the merged one, in one allocation. -ERR_CONFLICT. */
int merge_files(const struct tree_entry *base, const struct tree_entry *source,
                const struct tree_entry *target, struct tree_entry **ret_entry);
/* Changed on one side, the later one, changed on neither, the same. `base` may be NULL. */
int64_t merge_times(const struct tree_entry *base, const struct tree_entry *source,
                    const struct tree_entry *target);

/* Paths on which the trees differ. */
int count_changes(struct odb *odb, const struct pointer *before, const struct pointer *after,
                  uint64_t *ret_count, struct message *message);

#endif
