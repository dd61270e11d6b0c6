/*
 * merge_entry.c — hides how one path merges: content, mode, owner, each extended attribute and
 * the time go their own ways. Knows nothing of trees.
 */
#include "refs/entry.h"
#include "refs/merge_internal.h"

/* No process can have this owner: chown(2) takes it for "leave it as it is". */
#define OWNER_UNRESOLVED UINT32_MAX

/* -- unresolved entries -- */

bool entry_is_unresolved(const struct tree_entry *entry)
{
	return entry && entry->attributes.uid == OWNER_UNRESOLVED &&
	       entry->attributes.gid == OWNER_UNRESOLVED;
}

void unresolve_attributes(struct attributes *attributes)
{
	attributes->uid = attributes->gid = OWNER_UNRESOLVED;
}

static void hash_entry(struct sha256 *hash, const struct tree_entry *entry)
{
	static const struct tree_entry none;
	if (!entry)
		entry = &none;
	uint32_t mode = entry->attributes.mode;
	sha256_update(hash, &mode, sizeof(mode));
	sha256_update(hash, entry->content.pointer.id.bytes, ID_BYTES);
	sha256_update(hash, entry->target, entry->target_length);
}

struct tree_entry *unresolved_entry(const struct tree_entry *source,
                                    const struct tree_entry *target)
{
	static const char domain[] = "unresolved";
	struct tree_entry entry = {0};
	struct sha256 *hash;
	const struct tree_entry *either = source ? source : target;
	if (sha256_new(&hash) < 0)
		return NULL;
	sha256_update(hash, domain, sizeof(domain));
	hash_entry(hash, source);
	hash_entry(hash, target);
	sha256_final(hash, &entry.content.pointer.id);
	sha256_free(hash);
	entry.name = either->name;
	entry.name_length = either->name_length;
	entry.attributes.mode = S_IFREG;
	unresolve_attributes(&entry.attributes);
	/* A well-formed file without a place: it is compared, never read. */
	entry.content.kind = CONTENT_CHUNK;
	entry.content.size = 1;
	return tree_entry_copy(&entry);
}

/* -- extended attributes -- */

static bool span_equal(const struct span *a, const struct span *b)
{
	if (!a->data || !b->data)
		return !a->data && !b->data;
	return a->length == b->length && memcmp(a->data, b->data, a->length) == 0;
}

/* data NULL: not there. */
static struct span xattr_of(const struct tree_entry *entry, const char *name)
{
	struct span value = {0};
	if (!entry || !entry->xattrs_length ||
	    xattrs_get(entry->xattrs, entry->xattrs_length, name, &value) < 0)
		return (struct span){0};
	if (!value.data)
		value.data = "";
	return value;
}

struct xattrs_merge {
	const struct tree_entry *base, *source, *target;
	struct buffer *result; /* starts as the target's */
	int error;
};

/* For each name that the source or the target has; twice is no harm. */
static int merge_xattr(void *context, const char *bytes, size_t length, struct span ignored)
{
	struct xattrs_merge *merge = context;
	char name[NAME_BYTES_MAX + 1];
	if (length > NAME_BYTES_MAX)
		return merge->error = -ERR_CORRUPT;
	memcpy(name, bytes, length);
	name[length] = '\0';
	struct span base = xattr_of(merge->base, name);
	struct span source = xattr_of(merge->source, name);
	struct span target = xattr_of(merge->target, name);
	if (span_equal(&source, &target) || (merge->base && span_equal(&base, &source)))
		return 0;
	if (!merge->base || !span_equal(&base, &target))
		return merge->error = -ERR_CONFLICT;
	int error = xattrs_set(merge->result, name, source);
	/* Both sides' together are beyond the limit: only somebody can choose. */
	if (error == -ERR_TOO_LARGE)
		error = -ERR_CONFLICT;
	merge->error = error == -ERR_NOT_FOUND ? 0 : error;
	return merge->error;
}

static int merge_xattrs(const struct tree_entry *base, const struct tree_entry *source,
                        const struct tree_entry *target, struct buffer *result)
{
	struct xattrs_merge merge = {base, source, target, result, 0};
	buffer_append(result, target->xattrs, target->xattrs_length);
	int error = buffer_check(result);
	if (error || entry_same_xattrs(source, target))
		return error;
	/* The callbacks stop at `error`; anything else is a malformed list. */
	error = xattrs_each(source->xattrs, source->xattrs_length, merge_xattr, &merge);
	if (!error)
		error = xattrs_each(target->xattrs, target->xattrs_length, merge_xattr, &merge);
	return merge.error ? merge.error : error;
}

/* -- the rest -- */

static int merge_number(const uint32_t *base, uint32_t source, uint32_t target,
                        uint32_t *ret_number)
{
	if (source == target || (base && *base == source))
		*ret_number = target;
	else if (base && *base == target)
		*ret_number = source;
	else
		return -ERR_CONFLICT;
	return 0;
}

int64_t merge_times(const struct tree_entry *base, const struct tree_entry *source,
                    const struct tree_entry *target)
{
	int64_t ours = target->attributes.mtime_ns, theirs = source->attributes.mtime_ns;
	if (base && base->attributes.mtime_ns == theirs)
		return ours;
	if (base && base->attributes.mtime_ns == ours)
		return theirs;
	return ours > theirs ? ours : theirs;
}

int merge_attributes(const struct tree_entry *base, const struct tree_entry *source,
                     const struct tree_entry *target, struct merged_attributes *ret_merged)
{
	const struct attributes *from =
	        entry_is_unresolved(base) || !base ? NULL : &base->attributes;
	const struct attributes *theirs = &source->attributes, *ours = &target->attributes;
	CLEANUP(buffer_release) struct buffer xattrs = {.limit = XATTRS_BYTES_MAX};
	struct attributes merged = *ours;
	int error = merge_number(from ? &from->mode : NULL, theirs->mode, ours->mode, &merged.mode);
	if (!error)
		error = merge_number(from ? &from->uid : NULL, theirs->uid, ours->uid, &merged.uid);
	if (!error)
		error = merge_number(from ? &from->gid : NULL, theirs->gid, ours->gid, &merged.gid);
	if (!error)
		error = merge_xattrs(from ? base : NULL, source, target, &xattrs);
	if (error)
		return error;
	merged.mtime_ns = merge_times(from ? base : NULL, source, target);
	*ret_merged = (struct merged_attributes){merged, xattrs};
	xattrs = (struct buffer){0};
	return 0;
}

static void merged_attributes_release(struct merged_attributes *merged)
{
	buffer_release(&merged->xattrs);
}

int merge_files(const struct tree_entry *base, const struct tree_entry *source,
                const struct tree_entry *target, struct tree_entry **ret_entry)
{
	if (base && (entry_is_unresolved(base) || !entry_same_kind(base, source)))
		base = NULL;
	const struct tree_entry *content;
	if (entry_same_content(source, target) || (base && entry_same_content(base, source)))
		content = target;
	else if (base && entry_same_content(base, target))
		content = source;
	else
		return -ERR_CONFLICT;
	CLEANUP(merged_attributes_release) struct merged_attributes merged = {0};
	int error = merge_attributes(base, source, target, &merged);
	if (error)
		return error;
	struct tree_entry entry = *content;
	uint64_t rdev = entry.attributes.rdev;
	entry.attributes = merged.attributes;
	entry.attributes.rdev = rdev;
	entry.xattrs = merged.xattrs.length ? merged.xattrs.data : NULL;
	entry.xattrs_length = merged.xattrs.length;
	*ret_entry = tree_entry_copy(&entry);
	return *ret_entry ? 0 : -ERR_NO_MEMORY;
}
