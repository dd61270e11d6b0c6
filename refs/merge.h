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
/*
 * Decides about what it names, whether there is a conflict or not: what lies there is taken from
 * one side, whole (also its absence). It names a path, or what a pattern (refs/path.h) matches, and
 * all below; where a path has the pattern's very text, that is its name. Of several the one
 * counts that names a path most closely: the path itself before a directory above it, at the same
 * place a name before a pattern, then the last.
 */
struct take {
	enum side side;
	const char *path;
};

/*
 * Whoever knows what a directory holds may merge it as a whole, or say why nobody can. Asked about
 * each directory that both sides have and changed differently, but not about virtual bases and
 * not where a take decides about it or something changed in it.
 */
struct directory_merge {
	const char *path;
	struct pointer base, source, target; /* base: none when it had no directory there */
};
enum directory_verdict { DIRECTORY_NOT_MINE, DIRECTORY_MERGED, DIRECTORY_CONFLICT };
struct directory_result {
	enum directory_verdict verdict;
	struct pointer tree; /* DIRECTORY_MERGED */
	/* DIRECTORY_CONFLICT: one conflict for all of `table`, a path that `path` lies within.
	 * Owned by whoever asked, set or not; names are of entries of the directory. */
	char *table;
	const char *format; /* static */
	uint64_t version;   /* that both wrote */
	char *sentence;     /* for people; no full stop */
	char **names;
	size_t name_count;
};
typedef int merge_directory_fn(void *context, struct odb *odb, struct packer *packer,
                               const struct directory_merge *directory,
                               struct directory_result *ret_result, struct message *message);

struct merge_options {
	const struct take *takes;
	size_t take_count;
	size_t conflicts_max;          /* stop after so many; 0: 10,000 */
	merge_directory_fn *directory; /* may be NULL */
	void *context;
};
struct conflict {
	char *path;
	/* each NULL when absent on that side; owned */
	struct tree_entry *base, *source, *target;
	bool bases_differ; /* several bases disagree about this path: `base` is NULL */
	/* A whole table (struct directory_result); else format is NULL. `paths`: what in it
	 * conflicts or was written by both. */
	const char *format;
	uint64_t version;
	char *sentence;
	char **paths;
	size_t path_count;
};
/* What kind of conflict, in words: "both changed", "deleted in source, changed in target". */
#define CONFLICT_WORDS_MAX 80
void conflict_words(const struct conflict *conflict, char ret_words[CONFLICT_WORDS_MAX]);
struct merge_result {
	struct pointer tree; /* valid when conflict_count is 0 */
	struct attributes root;
	struct conflict *conflicts;
	size_t conflict_count;
	uint64_t changed; /* paths that differ from the target's side */
	/* The commits that were merged; zero where there is none, or several bases, or trees were
	 * merged. */
	struct id base, source, target;
};
void merge_result_release(struct merge_result *result);

/* What to merge: a tree with its root's attributes. */
struct merge_side {
	struct pointer tree;
	struct attributes root;
};
/* Merge `source` into `target` from one given base (used for revert, cherry-pick and re-basing).
 * Writes nodes into the packer (freeing it unflushed leaves no trace). Conflicts are not an
 * error: 0 is returned and they are in the result. -ERR_NOT_FOUND: a take names nothing. */
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
