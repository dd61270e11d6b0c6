/*
 * entry — comparing entries of trees by what they are, for diff and merge. Private to refs/.
 */
#ifndef REFS_ENTRY_H
#define REFS_ENTRY_H

#include "store/tree.h"

#include <sys/stat.h>

static inline bool entry_is_directory(const struct tree_entry *entry)
{
	return entry && S_ISDIR(entry->attributes.mode);
}

static inline bool entry_same_kind(const struct tree_entry *a, const struct tree_entry *b)
{
	return (a->attributes.mode & S_IFMT) == (b->attributes.mode & S_IFMT);
}

/* Bytes of a file, target of a link, number of a device; of directories: their trees. The two
 * are of the same kind. */
static inline bool entry_same_content(const struct tree_entry *a, const struct tree_entry *b)
{
	return content_equal(&a->content, &b->content) &&
	       a->attributes.rdev == b->attributes.rdev && a->target_length == b->target_length &&
	       (a->target_length == 0 || memcmp(a->target, b->target, a->target_length) == 0);
}

static inline bool entry_same_xattrs(const struct tree_entry *a, const struct tree_entry *b)
{
	return a->xattrs_length == b->xattrs_length &&
	       (a->xattrs_length == 0 || memcmp(a->xattrs, b->xattrs, a->xattrs_length) == 0);
}

/* Mode, owner and extended attributes: not time. */
static inline bool entry_same_attributes(const struct tree_entry *a, const struct tree_entry *b)
{
	return a->attributes.mode == b->attributes.mode && a->attributes.uid == b->attributes.uid &&
	       a->attributes.gid == b->attributes.gid && entry_same_xattrs(a, b);
}

#endif
