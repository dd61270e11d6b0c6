/*
 * merge — three-way merge of trees, per path.
 *
 * Changed on one side only: taken. Changed alike on both: fine. Attributes (mode, owner, xattrs)
 * and content merge separately; times never conflict (the later one is taken). Otherwise a
 * conflict: listed, and then nothing of the result counts. Removed against modified is a
 * conflict, named at the modified paths. Several best bases (criss-cross) are merged into a
 * virtual base first; a path on which that merge itself conflicts has a base equal to neither.
 * Cost: what changed. Threads: any.
 */
#ifndef REFS_MERGE_H
#define REFS_MERGE_H

#include "refs/diff.h"
#include "refs/history.h"

enum side { SIDE_SOURCE = 1, SIDE_TARGET = 2 };
/* Decides about a path whether there is a conflict or not: what lies there is taken from one
 * side, whole (also its absence). Of several matching ones the longest path counts. */
struct take {
	enum side side;
	const char *path; /* this path and all below it */
};
struct merge_options {
	const struct take *takes;
	size_t take_count;
	size_t conflicts_max; /* stop after so many; 0: 10,000 */
};
struct conflict {
	char *path;
	/* each NULL when absent on that side; owned */
	struct tree_entry *base, *source, *target;
};
struct merge_result {
	struct pointer tree; /* valid when conflict_count is 0 */
	struct attributes root;
	struct conflict *conflicts;
	size_t conflict_count;
	uint64_t changed; /* paths that differ from the target's side */
};
void merge_result_release(struct merge_result *result);

/* What to merge: a tree with its root's attributes. */
struct merge_side {
	struct pointer tree;
	struct attributes root;
};
/* Merge `source` into `target` from one given base (used for revert, cherry-pick and re-basing).
 * Writes nodes into the packer (freeing it unflushed leaves no trace). Conflicts are not an
 * error: 0 is returned and they are in the result. */
int merge_trees(struct odb *odb, struct packer *packer, const struct merge_side *base,
                const struct merge_side *source, const struct merge_side *target,
                const struct merge_options *options, struct merge_result *ret_result,
                struct message *message);
/* Merge two commits from their best common ancestor(s). *ret_fast_forward: the source contains
 * the target (the result is the source's tree); *ret_up_to_date: the other way round. */
int merge_commits(struct history *history, struct odb *odb, struct packer *packer,
                  const struct commit *source, const struct commit *target,
                  const struct merge_options *options, struct merge_result *ret_result,
                  bool *ret_fast_forward, bool *ret_up_to_date, struct message *message);

#endif
