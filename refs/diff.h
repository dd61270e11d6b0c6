/*
 * diff — what differs between two trees, recursively, in path order; paths in trees.
 *
 * A time alone is not a change. Cost: what differs, not what exists. Threads: any.
 */
#ifndef REFS_DIFF_H
#define REFS_DIFF_H

#include "refs/commit.h"
#include "refs/path.h"

enum change_kind { CHANGE_ADDED, CHANGE_REMOVED, CHANGE_MODIFIED, CHANGE_MODE };
const char *change_name(enum change_kind kind); /* "added", "removed", "modified", "mode" */

/* CHANGE_MODE: attributes or xattrs differ, content does not. A file that became a directory (or
 * the like) is one removal and one addition of the same path. */
struct change {
	enum change_kind kind;
	const char *path; /* relative, no leading '/', any bytes; borrowed */
	size_t path_length;
	const struct tree_entry *before; /* NULL when added */
	const struct tree_entry *after;  /* NULL when removed */
};
/* Non-zero stops and is returned. */
typedef int change_fn(void *context, const struct change *change);

struct diff_options {
	const char *const *paths; /* only these and what lies below them; NULL: everything */
	size_t path_count;
	bool directories; /* report added and removed directories themselves, besides what is in
	                     them (an empty one is always reported) */
	bool times;       /* report changes of time alone too, as CHANGE_MODE */
	bool shallow;     /* an added or removed directory is one change; do not descend into it */
};
int diff_trees(struct odb *odb, const struct pointer *before, const struct pointer *after,
               const struct diff_options *options, change_fn *callback, void *context,
               struct message *message);

/* Entry at `path` below `root` ("" is not allowed). One allocation; free(). -ERR_NOT_FOUND,
 * -ERR_NOT_DIRECTORY. */
int tree_find(struct odb *odb, const struct pointer *root, const char *path,
              struct tree_entry **ret_entry, struct message *message);
/* Every entry below `root`, parents before children, in path order. */
typedef int tree_visit_fn(void *context, const char *path, const struct tree_entry *entry);
int tree_visit(struct odb *odb, const struct pointer *root, tree_visit_fn *callback, void *context,
               struct message *message);
/* Set or remove (entry NULL) one path; the entry's own name does not count. Missing parents are
 * made, mode 0755, with the entry's owner and time; parents left empty by a removal stay.
 * -ERR_NOT_DIRECTORY when something else is in the way. */
int tree_set_path(struct odb *odb, struct packer *packer, const struct pointer *root,
                  const char *path, const struct tree_entry *entry, struct pointer *ret_root,
                  struct message *message);

#endif
