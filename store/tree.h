/*
 * tree — a directory: an ordered map from name to entry, stored as a prolly tree.
 *
 * One tree per directory. Node boundaries depend on the names (and on limits counted from the
 * node's own start), so equal directories have equal nodes whatever their history, diff skips
 * equal subtrees, and a change rewrites O(log n) nodes. A directory's root is a `struct pointer`;
 * pointer_none is the empty directory.
 * Sources: Dolt's "Prolly Trees"; Noms' docs/intro.md. Format: store/README.md, "Tree nodes".
 * Never: reads damage as absence: -ERR_NOT_FOUND always means "no such name" or "the end"; a
 *   node missing from the store is -ERR_CORRUPT.
 * Threads: any; roots are immutable, an iterator or diff belongs to one thread at a time. Nodes
 *   come through the odb's record cache. Everything but the plain-value functions may block.
 */
#ifndef STORE_TREE_H
#define STORE_TREE_H

#include "store/content.h"

#define NAME_BYTES_MAX 255
#define XATTRS_BYTES_MAX (64u << 10)
#define SYMLINK_BYTES_MAX 4095

/* What a path is, apart from its name. Fixed-size part; see struct tree_entry. */
struct attributes {
	uint32_t mode; /* S_IFMT and permission bits */
	uint32_t uid;
	uint32_t gid;
	uint64_t rdev; /* devices only, else 0 */
	int64_t mtime_ns;
};

/*
 * One entry. When yielded by this module it is borrowed as documented; when owned it is a single
 * allocation (tree_entry_copy) to be freed with free().
 *   regular file: content;  directory: content.kind EMPTY, content.size 0, content.pointer is its
 *   root;  symlink: target;  others: none of these.
 */
struct tree_entry {
	const char *name; /* NUL-terminated; any bytes but '/' and NUL; not "." or ".." */
	size_t name_length;
	struct attributes attributes;
	struct content content;
	const char *target; /* symlink's, NUL-terminated; else NULL */
	size_t target_length;
	const uint8_t *xattrs; /* canonical list, see xattrs_set; or NULL */
	size_t xattrs_length;
};
/* One allocation holding the entry and everything it points to. NULL: out of memory. */
struct tree_entry *tree_entry_copy(const struct tree_entry *entry);
/* Encode with name and places, e.g. for state tables; decode checks everything and yields one
 * allocation. Self-contained: not the node format. */
void tree_entry_encode(struct buffer *buffer, const struct tree_entry *entry);
int tree_entry_decode(struct reader *reader, struct tree_entry **ret_entry);
/* Same in everything, name included, but mtime / in everything. Places are never compared. */
bool tree_entry_same_but_time(const struct tree_entry *a, const struct tree_entry *b);
bool tree_entry_equal(const struct tree_entry *a, const struct tree_entry *b);
/* 0, -ERR_BAD_NAME or -ERR_TOO_LARGE. */
int name_check(const char *name, size_t length);

/* -ERR_NOT_FOUND, -ERR_CORRUPT. The entry is one allocation owned by the caller: free(). */
int tree_lookup(struct odb *odb, const struct pointer *root, const char *name, size_t name_length,
                struct tree_entry **ret_entry, struct message *message);
/* Number of entries of this directory (from the root node, O(1)). */
int tree_count(struct odb *odb, const struct pointer *root, uint64_t *ret_count,
               struct message *message);

/* Iterate names > `after` (all when after_length is 0), ascending byte order. */
struct tree_iterator;
int tree_iterate(struct odb *odb, const struct pointer *root, const char *after,
                 size_t after_length, struct tree_iterator **ret_iterator, struct message *message);
/* 0: the entry is borrowed until the next call; -ERR_NOT_FOUND: the end. */
int tree_next(struct tree_iterator *iterator, const struct tree_entry **ret_entry,
              struct message *message);
void tree_iterator_free(struct tree_iterator *iterator); /* accepts NULL */

/* A change to apply: names strictly ascending; entry NULL removes (a missing name is fine). The
 * entry is stored under `name`; its own name is not looked at. */
struct tree_edit {
	const char *name;
	size_t name_length;
	const struct tree_entry *entry;
};
/* Yields the next edit, borrowed until the next call: 0, -ERR_NOT_FOUND at the end, or an error. */
typedef int tree_edit_fn(void *context, struct tree_edit *ret_edit);
/* Apply edits to `root`, giving the same nodes a build from scratch would. New nodes go to the
 * packer (readable at once); a change of places alone is no change, and what changes nothing
 * writes nothing. Streams: memory is O(nodes replaced). `ret_root` may be `root`.
 * -ERR_BAD_NAME, -ERR_INVALID (order, or an entry that cannot be stored), -ERR_CORRUPT. */
int tree_apply(struct odb *odb, struct packer *packer, const struct pointer *root,
               tree_edit_fn *next_edit, void *context, struct pointer *ret_root,
               struct message *message);

/* Difference of two directories' own entries (no recursion), ascending; equal subtrees of nodes
 * are skipped unread. A time alone is a change here, a place is not. */
struct tree_diff;
struct tree_change {
	const struct tree_entry *before; /* NULL: added. Borrowed until the next call */
	const struct tree_entry *after;  /* NULL: removed */
};
int tree_diff_new(struct odb *odb, const struct pointer *before, const struct pointer *after,
                  struct tree_diff **ret_diff);
int tree_diff_next(struct tree_diff *diff, struct tree_change *ret_change,
                   struct message *message); /* -ERR_NOT_FOUND at the end */
void tree_diff_free(struct tree_diff *diff);

/* Every node of this directory's own tree, for fsck and gc. Leaves are not read for this. */
int tree_walk(struct odb *odb, const struct pointer *root, pointer_fn *callback, void *context,
              struct message *message);

/* -- extended attributes: canonical list, names ascending: (u8 name length, name, u32 value
 *    length, value)*; total at most XATTRS_BYTES_MAX -- */
int xattrs_get(const uint8_t *xattrs, size_t length, const char *name, struct span *ret_value);
/* Replaces `xattrs` by a list with `name` set (value.data NULL: removed; -ERR_NOT_FOUND if it
 * was not there). -ERR_TOO_LARGE. */
int xattrs_set(struct buffer *xattrs, const char *name, struct span value);
typedef int xattr_fn(void *context, const char *name, size_t name_length, struct span value);
int xattrs_each(const uint8_t *xattrs, size_t length, xattr_fn *callback, void *context);
int xattrs_check(const uint8_t *xattrs, size_t length); /* -ERR_CORRUPT */

#endif
