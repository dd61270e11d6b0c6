/*
 * tree_entry — hides how one directory entry is laid out in bytes, in a node and by itself.
 *
 * The encoding is canonical: a field that has its default value is absent, and a decoder refuses
 * one that is present nevertheless. Equal entries therefore have equal bytes, and equal ids.
 */
#include "store/tree_internal.h"

#include <assert.h>
#include <sys/stat.h>

enum {
	ENTRY_VERSION = 1, /* of the self-contained form */

	FLAG_OWNER = 1 << 0,  /* uid, gid: not both 0 */
	FLAG_RDEV = 1 << 1,   /* not 0 */
	FLAG_CHUNK = 1 << 2,  /* size and id of a file that is one chunk */
	FLAG_LIST = 1 << 3,   /* size and id of a file that is a tree of lists */
	FLAG_ROOT = 1 << 4,   /* id of a directory's root */
	FLAG_TARGET = 1 << 5, /* of a symlink */
	FLAG_XATTRS = 1 << 6, /* not empty */
	FLAG_UNKNOWN = 1 << 7,
};

int name_compare(const char *a, size_t a_length, const char *b, size_t b_length)
{
	int order = memcmp(a, b, a_length < b_length ? a_length : b_length);

	return order ? order : (a_length > b_length) - (a_length < b_length);
}

int name_check(const char *name, size_t length)
{
	if (length == 0)
		return -ERR_BAD_NAME;
	if (length > NAME_BYTES_MAX)
		return -ERR_TOO_LARGE;
	if (memchr(name, '\0', length) || memchr(name, '/', length))
		return -ERR_BAD_NAME;
	if (name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')))
		return -ERR_BAD_NAME;
	return 0;
}

static bool content_is_sound(const struct tree_entry *entry)
{
	const struct content *content = &entry->content;
	bool none = pointer_is_none(&content->pointer);

	if (S_ISDIR(entry->attributes.mode))
		return content->kind == CONTENT_EMPTY && content->size == 0;
	if (content->kind == CONTENT_EMPTY)
		return content->size == 0 && none;
	return S_ISREG(entry->attributes.mode) && !none && content->size > 0 &&
	       content->size <= FILE_BYTES_MAX &&
	       (content->kind == CONTENT_CHUNK || content->kind == CONTENT_LIST);
}

static bool target_is_sound(const struct tree_entry *entry)
{
	if (!S_ISLNK(entry->attributes.mode))
		return entry->target_length == 0;
	return entry->target && entry->target_length > 0 &&
	       entry->target_length <= SYMLINK_BYTES_MAX &&
	       !memchr(entry->target, '\0', entry->target_length);
}

/* What must hold of an entry, its name apart. */
static bool entry_is_sound(const struct tree_entry *entry)
{
	uint32_t mode = entry->attributes.mode;

	if (mode > UINT16_MAX)
		return false;
	if (!S_ISREG(mode) && !S_ISDIR(mode) && !S_ISLNK(mode) && !S_ISCHR(mode) &&
	    !S_ISBLK(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode))
		return false;
	if (entry->attributes.rdev != 0 && !S_ISCHR(mode) && !S_ISBLK(mode))
		return false;
	if (entry->xattrs_length > 0 && xattrs_check(entry->xattrs, entry->xattrs_length))
		return false;
	return content_is_sound(entry) && target_is_sound(entry);
}

int entry_check(const struct tree_entry *entry)
{
	return entry_is_sound(entry) ? 0 : -ERR_INVALID;
}

static uint8_t entry_flags(const struct tree_entry *entry)
{
	uint8_t flags = 0;

	if (entry->attributes.uid || entry->attributes.gid)
		flags |= FLAG_OWNER;
	if (entry->attributes.rdev)
		flags |= FLAG_RDEV;
	if (entry->content.kind == CONTENT_CHUNK)
		flags |= FLAG_CHUNK;
	else if (entry->content.kind == CONTENT_LIST)
		flags |= FLAG_LIST;
	else if (entry_has_id(entry))
		flags |= FLAG_ROOT;
	if (entry->target_length)
		flags |= FLAG_TARGET;
	if (entry->xattrs_length)
		flags |= FLAG_XATTRS;
	return flags;
}

void entry_encode_body(struct buffer *buffer, const char *name, size_t name_length,
                       const struct tree_entry *entry)
{
	const struct attributes *attributes = &entry->attributes;
	uint8_t flags = entry_flags(entry);

	assert(name_length > 0 && name_length <= NAME_BYTES_MAX);
	assert(attributes->mode <= UINT16_MAX && entry->target_length <= SYMLINK_BYTES_MAX);
	assert(entry->xattrs_length <= XATTRS_BYTES_MAX);
	buffer_u8(buffer, (uint8_t)name_length);
	buffer_append(buffer, name, name_length);
	buffer_u8(buffer, 0);
	buffer_u8(buffer, flags);
	buffer_u16(buffer, (uint16_t)attributes->mode);
	buffer_u64(buffer, (uint64_t)attributes->mtime_ns);
	if (flags & FLAG_OWNER) {
		buffer_u32(buffer, attributes->uid);
		buffer_u32(buffer, attributes->gid);
	}
	if (flags & FLAG_RDEV)
		buffer_u64(buffer, attributes->rdev);
	if (flags & (FLAG_CHUNK | FLAG_LIST))
		buffer_u64(buffer, entry->content.size);
	if (flags & (FLAG_CHUNK | FLAG_LIST | FLAG_ROOT))
		buffer_id(buffer, &entry->content.pointer.id);
	if (flags & FLAG_TARGET) {
		buffer_u16(buffer, (uint16_t)entry->target_length);
		buffer_append(buffer, entry->target, entry->target_length);
		buffer_u8(buffer, 0);
	}
	if (flags & FLAG_XATTRS)
		buffer_string(buffer, entry->xattrs, entry->xattrs_length);
}

static void decode_content(struct reader *reader, uint8_t flags, struct content *ret_content)
{
	uint8_t kinds = flags & (FLAG_CHUNK | FLAG_LIST | FLAG_ROOT);

	if (kinds & (kinds - 1)) /* more than one */
		reader->failed = true;
	if (flags & (FLAG_CHUNK | FLAG_LIST)) {
		ret_content->kind = flags & FLAG_CHUNK ? CONTENT_CHUNK : CONTENT_LIST;
		ret_content->size = read_u64(reader);
	}
	if (kinds) {
		read_id(reader, &ret_content->pointer.id);
		if (pointer_is_none(&ret_content->pointer))
			reader->failed = true;
	}
}

static void decode_tail(struct reader *reader, uint8_t flags, struct tree_entry *ret_entry)
{
	if (flags & FLAG_TARGET) {
		ret_entry->target_length = read_u16(reader);
		ret_entry->target = (const char *)read_bytes(reader, ret_entry->target_length);
		if (read_u8(reader) != 0 || ret_entry->target_length == 0)
			reader->failed = true;
	}
	if (flags & FLAG_XATTRS) {
		ret_entry->xattrs =
		        read_string(reader, XATTRS_BYTES_MAX, &ret_entry->xattrs_length);
		if (ret_entry->xattrs_length == 0)
			reader->failed = true;
	}
}

void entry_decode_body(struct reader *reader, struct tree_entry *ret_entry)
{
	struct attributes *attributes = &ret_entry->attributes;
	uint8_t flags;

	*ret_entry = (struct tree_entry){0};
	ret_entry->name_length = read_u8(reader);
	ret_entry->name = (const char *)read_bytes(reader, ret_entry->name_length);
	if (read_u8(reader) != 0)
		reader->failed = true;
	flags = read_u8(reader);
	if (flags & FLAG_UNKNOWN)
		reader->failed = true;
	attributes->mode = read_u16(reader);
	attributes->mtime_ns = (int64_t)read_u64(reader);
	if (flags & FLAG_OWNER) {
		attributes->uid = read_u32(reader);
		attributes->gid = read_u32(reader);
		if (attributes->uid == 0 && attributes->gid == 0)
			reader->failed = true;
	}
	if (flags & FLAG_RDEV) {
		attributes->rdev = read_u64(reader);
		if (attributes->rdev == 0)
			reader->failed = true;
	}
	decode_content(reader, flags, &ret_entry->content);
	decode_tail(reader, flags, ret_entry);
}

void tree_entry_encode(struct buffer *buffer, const struct tree_entry *entry)
{
	buffer_u8(buffer, ENTRY_VERSION);
	entry_encode_body(buffer, entry->name, entry->name_length, entry);
	if (entry_has_id(entry))
		place_encode(buffer, &entry->content.pointer.place);
}

int tree_entry_decode(struct reader *reader, struct tree_entry **ret_entry)
{
	struct tree_entry entry;
	uint8_t version = read_u8(reader);

	if (!reader->failed && version > ENTRY_VERSION) {
		reader->failed = true;
		return -ERR_VERSION;
	}
	entry_decode_body(reader, &entry);
	if (!reader->failed && entry_has_id(&entry))
		place_decode(reader, &entry.content.pointer.place);
	if (reader->failed || version != ENTRY_VERSION || !entry_is_sound(&entry) ||
	    name_check(entry.name, entry.name_length)) {
		reader->failed = true;
		return -ERR_CORRUPT;
	}
	struct tree_entry *copy = tree_entry_copy(&entry);
	if (!copy)
		return -ERR_NO_MEMORY;
	*ret_entry = copy;
	return 0;
}

/* Append `length` bytes and a NUL at *at, and move on. */
static char *place_string(char **at, const void *bytes, size_t length)
{
	char *start = *at;

	if (length > 0)
		memcpy(start, bytes, length);
	start[length] = '\0';
	*at += length + 1;
	return start;
}

struct tree_entry *tree_entry_copy(const struct tree_entry *entry)
{
	size_t strings =
	        entry->name_length + 1 + entry->target_length + 1 + entry->xattrs_length + 1;
	struct tree_entry *copy = malloc(sizeof(*copy) + strings);
	char *at;

	if (!copy)
		return NULL;
	*copy = *entry;
	at = (char *)(copy + 1);
	copy->name = place_string(&at, entry->name, entry->name_length);
	if (entry->target)
		copy->target = place_string(&at, entry->target, entry->target_length);
	if (entry->xattrs)
		copy->xattrs = (uint8_t *)place_string(&at, entry->xattrs, entry->xattrs_length);
	return copy;
}

static bool bytes_equal(const void *a, size_t a_length, const void *b, size_t b_length)
{
	return a_length == b_length && (a_length == 0 || memcmp(a, b, a_length) == 0);
}

bool tree_entry_same_but_time(const struct tree_entry *a, const struct tree_entry *b)
{
	return a->attributes.mode == b->attributes.mode && a->attributes.uid == b->attributes.uid &&
	       a->attributes.gid == b->attributes.gid && a->attributes.rdev == b->attributes.rdev &&
	       a->content.kind == b->content.kind && content_equal(&a->content, &b->content) &&
	       bytes_equal(a->name, a->name_length, b->name, b->name_length) &&
	       bytes_equal(a->target, a->target_length, b->target, b->target_length) &&
	       bytes_equal(a->xattrs, a->xattrs_length, b->xattrs, b->xattrs_length);
}

bool tree_entry_equal(const struct tree_entry *a, const struct tree_entry *b)
{
	return a->attributes.mtime_ns == b->attributes.mtime_ns && tree_entry_same_but_time(a, b);
}
