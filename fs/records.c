/*
 * records.c — hides the bytes of the working trees' records in the state tables, and how a range
 * of them is read without holding a lock while the caller looks at it.
 */
#include "fs/worktree_internal.h"

#include <assert.h>

#define RECORD_VERSION 1
#define OVERLAY_KEY_BYTES 16 /* overlay, number */
#define ENTRY_KEY_MAX (OVERLAY_KEY_BYTES + NAME_BYTES_MAX)
#define ENTRY_VALUE_BYTES 13

enum {
	INODE_TREE = 1,
	INODE_CONTENT = 2,
	INODE_STAGING = 4,
	INODE_PIECEWISE = 8,
	INODE_TARGET = 16,
	INODE_XATTRS = 32,
	INODE_ATIME = 64,
	INODE_FLAGS = 127,
};
enum { ENTRY_WHITEOUT = 0, ENTRY_INODE = 1 };
enum { BRANCH_INTENT = 1, BRANCH_RENAMING = 2 };

/* -- inodes -- */

void inode_release(struct inode *inode)
{
	free(inode->target);
	free(inode->xattrs);
	*inode = (struct inode){0};
}

int inode_copy(const struct inode *inode, struct inode *ret_copy)
{
	struct inode copy = *inode;
	copy.target = NULL;
	copy.xattrs = NULL;
	if (inode->target != NULL) {
		copy.target = malloc(inode->target_length + 1);
		if (copy.target == NULL)
			return -ERR_NO_MEMORY;
		memcpy(copy.target, inode->target, inode->target_length);
		copy.target[inode->target_length] = '\0';
	}
	if (inode->xattrs_length > 0) {
		copy.xattrs = malloc(inode->xattrs_length);
		if (copy.xattrs == NULL) {
			free(copy.target);
			return -ERR_NO_MEMORY;
		}
		memcpy(copy.xattrs, inode->xattrs, inode->xattrs_length);
	}
	*ret_copy = copy;
	return 0;
}

static void put_pointer(struct buffer *buffer, const struct pointer *pointer)
{
	buffer_id(buffer, &pointer->id);
	place_encode(buffer, &pointer->place);
}

static void get_pointer(struct reader *reader, struct pointer *ret_pointer)
{
	read_id(reader, &ret_pointer->id);
	place_decode(reader, &ret_pointer->place);
}

static void put_attributes(struct buffer *buffer, const struct attributes *attributes)
{
	buffer_u32(buffer, attributes->mode);
	buffer_u32(buffer, attributes->uid);
	buffer_u32(buffer, attributes->gid);
	buffer_u64(buffer, attributes->rdev);
	buffer_u64(buffer, (uint64_t)attributes->mtime_ns);
}

static struct attributes get_attributes(struct reader *reader)
{
	struct attributes attributes = {.mode = read_u32(reader)};
	attributes.uid = read_u32(reader);
	attributes.gid = read_u32(reader);
	attributes.rdev = read_u64(reader);
	attributes.mtime_ns = (int64_t)read_u64(reader);
	return attributes;
}

void inode_encode(struct buffer *buffer, const struct inode *inode)
{
	bool content = inode->content.kind != CONTENT_EMPTY;
	unsigned flags =
	        (pointer_is_none(&inode->tree) ? 0 : INODE_TREE) | (content ? INODE_CONTENT : 0) |
	        (inode->staging ? INODE_STAGING : 0) | (inode->piecewise ? INODE_PIECEWISE : 0) |
	        (inode->target ? INODE_TARGET : 0) | (inode->xattrs_length ? INODE_XATTRS : 0) |
	        (inode->atime_set ? INODE_ATIME : 0);
	buffer_u8(buffer, RECORD_VERSION);
	buffer_u8(buffer, (uint8_t)flags);
	put_attributes(buffer, &inode->attributes);
	buffer_u64(buffer, (uint64_t)inode->ctime_ns);
	buffer_u32(buffer, inode->nlink);
	buffer_u64(buffer, inode->shown);
	if (flags & INODE_TREE)
		put_pointer(buffer, &inode->tree);
	if (content) {
		buffer_u8(buffer, (uint8_t)inode->content.kind);
		buffer_u64(buffer, inode->content.size);
		put_pointer(buffer, &inode->content.pointer);
	}
	if (flags & INODE_STAGING)
		buffer_u64(buffer, inode->staging);
	if (flags & INODE_PIECEWISE)
		buffer_u64(buffer, inode->base_bytes);
	if (flags & INODE_ATIME)
		buffer_u64(buffer, (uint64_t)inode->atime_ns);
	if (flags & INODE_TARGET)
		buffer_string(buffer, inode->target, inode->target_length);
	if (flags & INODE_XATTRS)
		buffer_string(buffer, inode->xattrs, inode->xattrs_length);
}

static void get_content(struct reader *reader, struct content *ret_content)
{
	ret_content->kind = read_u8(reader);
	ret_content->size = read_u64(reader);
	get_pointer(reader, &ret_content->pointer);
	if ((ret_content->kind != CONTENT_CHUNK && ret_content->kind != CONTENT_LIST) ||
	    ret_content->size > FILE_BYTES_MAX || pointer_is_none(&ret_content->pointer))
		reader->failed = true;
}

static void inode_cleanup(struct inode *inode)
{
	inode_release(inode);
}

/* The variable parts; their lengths have been checked against the input before they are copied. */
static int get_strings(struct reader *reader, unsigned flags, struct inode *inode)
{
	size_t length;
	if (flags & INODE_TARGET) {
		const uint8_t *target = read_string(reader, SYMLINK_BYTES_MAX, &length);
		if (reader->failed || length == 0 || memchr(target, '\0', length) != NULL)
			return -ERR_CORRUPT;
		inode->target = malloc(length + 1);
		if (inode->target == NULL)
			return -ERR_NO_MEMORY;
		memcpy(inode->target, target, length);
		inode->target[length] = '\0';
		inode->target_length = length;
	}
	if (flags & INODE_XATTRS) {
		const uint8_t *xattrs = read_string(reader, XATTRS_BYTES_MAX, &length);
		if (reader->failed || length == 0 || xattrs_check(xattrs, length) != 0)
			return -ERR_CORRUPT;
		inode->xattrs = malloc(length);
		if (inode->xattrs == NULL)
			return -ERR_NO_MEMORY;
		memcpy(inode->xattrs, xattrs, length);
		inode->xattrs_length = length;
	}
	return 0;
}

/* Each kind of inode has its own parts and no others. */
static bool parts_fit(const struct inode *inode, unsigned flags)
{
	unsigned allowed = INODE_XATTRS | INODE_ATIME;
	if (S_ISDIR(inode->attributes.mode))
		allowed |= INODE_TREE;
	else if (S_ISREG(inode->attributes.mode))
		allowed |= INODE_CONTENT | INODE_STAGING | INODE_PIECEWISE;
	else if (S_ISLNK(inode->attributes.mode))
		allowed |= INODE_TARGET;
	if ((flags & ~allowed) != 0 || (S_ISLNK(inode->attributes.mode) && !(flags & INODE_TARGET)))
		return false;
	if ((flags & INODE_STAGING) && inode->staging == 0)
		return false;
	if (flags & INODE_PIECEWISE)
		return (flags & INODE_STAGING) && (flags & INODE_CONTENT) &&
		       inode->base_bytes <= inode->content.size;
	/* Without being piecewise a file is either all staging or all content. */
	return (flags & (INODE_STAGING | INODE_CONTENT)) != (INODE_STAGING | INODE_CONTENT);
}

int inode_decode(const void *bytes, size_t length, struct inode *ret_inode)
{
	CLEANUP(inode_cleanup) struct inode inode = {0};
	struct reader reader = reader_of(bytes, length);
	uint8_t version = read_u8(&reader);
	unsigned flags = read_u8(&reader);
	if (!reader.failed && version > RECORD_VERSION)
		return -ERR_VERSION;
	inode.attributes = get_attributes(&reader);
	inode.ctime_ns = (int64_t)read_u64(&reader);
	inode.nlink = read_u32(&reader);
	inode.shown = read_u64(&reader);
	if (flags & INODE_TREE)
		get_pointer(&reader, &inode.tree);
	if (flags & INODE_CONTENT)
		get_content(&reader, &inode.content);
	if (flags & INODE_STAGING)
		inode.staging = read_u64(&reader);
	if (flags & INODE_PIECEWISE)
		inode.base_bytes = read_u64(&reader);
	if (flags & INODE_ATIME)
		inode.atime_ns = (int64_t)read_u64(&reader);
	inode.piecewise = (flags & INODE_PIECEWISE) != 0;
	inode.atime_set = (flags & INODE_ATIME) != 0;
	if (reader.failed || version != RECORD_VERSION || (flags & ~INODE_FLAGS) != 0 ||
	    !parts_fit(&inode, flags))
		return -ERR_CORRUPT;
	int r = get_strings(&reader, flags, &inode);
	if (r == 0)
		r = reader_finish(&reader);
	if (r != 0)
		return r;
	*ret_inode = inode;
	inode = (struct inode){0};
	return 0;
}

static void make_key(uint8_t ret_key[OVERLAY_KEY_BYTES], uint64_t overlay, uint64_t number)
{
	store_u64_be(ret_key, overlay);
	store_u64_be(ret_key + 8, number);
}

void overlay_put_inode(struct state_batch *batch, uint64_t overlay, const struct inode *inode)
{
	assert(overlay != 0 && inode->number != 0);
	uint8_t key[OVERLAY_KEY_BYTES];
	make_key(key, overlay, inode->number);
	CLEANUP(buffer_release) struct buffer value = {0};
	inode_encode(&value, inode);
	state_put(batch, STATE_INODES, key, sizeof(key), value.data, value.length);
	if (value.failed != 0)
		batch->bytes.failed = value.failed;
}

void overlay_delete_inode(struct state_batch *batch, uint64_t overlay, uint64_t number)
{
	uint8_t key[OVERLAY_KEY_BYTES];
	make_key(key, overlay, number);
	state_delete(batch, STATE_INODES, key, sizeof(key));
}

int overlay_read_inode(struct worktrees *trees, uint64_t overlay, uint64_t number,
                       struct inode *ret_inode)
{
	uint8_t key[OVERLAY_KEY_BYTES];
	make_key(key, overlay, number);
	CLEANUP(buffer_release) struct buffer value = {0};
	int r = state_get(trees->state, STATE_INODES, key, sizeof(key), &value);
	if (r == 0)
		r = inode_decode(value.data, value.length, ret_inode);
	if (r == 0)
		ret_inode->number = number;
	return r;
}

/* Collected as: u64 number, u32 length, record. */
static int collect_inode(void *context, const struct span *key, const struct span *value)
{
	struct buffer *records = context;
	if (key->length != OVERLAY_KEY_BYTES)
		return -ERR_CORRUPT;
	buffer_u64(records, load_u64_be((const uint8_t *)key->data + 8));
	buffer_string(records, value->data, value->length);
	return buffer_check(records);
}

static int each_collected(const struct buffer *records, uint64_t *ret_last,
                          overlay_inode_fn *callback, void *context)
{
	struct reader reader = reader_of(records->data, records->length);
	while (reader_left(&reader) > 0) {
		size_t length;
		*ret_last = read_u64(&reader);
		const uint8_t *bytes = read_string(&reader, SIZE_MAX, &length);
		struct inode inode;
		int r = inode_decode(bytes, length, &inode);
		if (r != 0)
			return r;
		inode.number = *ret_last;
		r = callback(context, &inode);
		inode_release(&inode);
		if (r != 0)
			return r;
	}
	return 0;
}

int overlay_inodes(struct worktrees *trees, uint64_t overlay, overlay_inode_fn *callback,
                   void *context)
{
	uint8_t prefix[8], after[OVERLAY_KEY_BYTES];
	store_u64_be(prefix, overlay);
	CLEANUP(buffer_release) struct buffer records = {0};
	uint64_t last = 0;
	do {
		buffer_clear(&records);
		make_key(after, overlay, last);
		int r = state_scan(trees->state, STATE_INODES, prefix, sizeof(prefix), after,
		                   sizeof(after), OVERLAY_SCAN_BATCH, collect_inode, &records);
		if (r == 0)
			r = each_collected(&records, &last, callback, context);
		if (r != 0)
			return r;
	} while (records.length > 0);
	return 0;
}

/* -- entries -- */

static size_t entry_key(uint8_t ret_key[ENTRY_KEY_MAX], uint64_t overlay, uint64_t directory,
                        const char *name, size_t name_length)
{
	assert(name_length <= NAME_BYTES_MAX);
	make_key(ret_key, overlay, directory);
	if (name_length > 0)
		memcpy(ret_key + OVERLAY_KEY_BYTES, name, name_length);
	return OVERLAY_KEY_BYTES + name_length;
}

static void put_entry(struct state_batch *batch, uint64_t overlay, uint64_t directory,
                      const char *name, size_t name_length, uint8_t kind, uint64_t number,
                      uint32_t mode)
{
	assert(overlay != 0 && directory != 0);
	uint8_t key[ENTRY_KEY_MAX], value[ENTRY_VALUE_BYTES] = {kind};
	size_t length = entry_key(key, overlay, directory, name, name_length);
	store_u64(value + 1, number);
	store_u32(value + 9, mode & S_IFMT);
	state_put(batch, STATE_ENTRIES, key, length, value, sizeof(value));
}

void overlay_put_entry(struct state_batch *batch, uint64_t overlay, uint64_t directory,
                       const char *name, size_t name_length, uint64_t number, uint32_t mode)
{
	assert(number != 0);
	put_entry(batch, overlay, directory, name, name_length, ENTRY_INODE, number, mode);
}

void overlay_put_whiteout(struct state_batch *batch, uint64_t overlay, uint64_t directory,
                          const char *name, size_t name_length)
{
	put_entry(batch, overlay, directory, name, name_length, ENTRY_WHITEOUT, 0, 0);
}

void overlay_delete_entry(struct state_batch *batch, uint64_t overlay, uint64_t directory,
                          const char *name, size_t name_length)
{
	uint8_t key[ENTRY_KEY_MAX];
	size_t length = entry_key(key, overlay, directory, name, name_length);
	state_delete(batch, STATE_ENTRIES, key, length);
}

static int entry_decode(const void *bytes, size_t length, struct overlay_entry *entry)
{
	struct reader reader = reader_of(bytes, length);
	uint8_t kind = read_u8(&reader);
	entry->whiteout = kind == ENTRY_WHITEOUT;
	entry->number = read_u64(&reader);
	entry->mode = read_u32(&reader);
	if (kind > ENTRY_INODE || entry->whiteout != (entry->number == 0))
		return -ERR_CORRUPT;
	return reader_finish(&reader);
}

int overlay_read_entry(struct worktrees *trees, uint64_t overlay, uint64_t directory,
                       const char *name, size_t name_length, struct overlay_entry *ret_entry)
{
	uint8_t key[ENTRY_KEY_MAX];
	size_t length = entry_key(key, overlay, directory, name, name_length);
	CLEANUP(buffer_release) struct buffer value = {0};
	int r = state_get(trees->state, STATE_ENTRIES, key, length, &value);
	struct overlay_entry entry = {.name = name, .name_length = name_length};
	if (r == 0)
		r = entry_decode(value.data, value.length, &entry);
	if (r == 0)
		*ret_entry = entry;
	return r;
}

struct overlay_cursor {
	struct worktrees *trees;
	uint8_t key[ENTRY_KEY_MAX]; /* of the last entry read; its first bytes are the prefix */
	size_t key_length;
	bool ended;
	struct buffer batch; /* u16 name length, name, NUL, value: what was read, not yet yielded */
	struct reader left;
	struct overlay_entry entry;
};

int overlay_cursor_new(struct worktrees *trees, uint64_t overlay, uint64_t directory,
                       const char *after, size_t after_length, struct overlay_cursor **ret_cursor)
{
	struct overlay_cursor *cursor = calloc(1, sizeof(*cursor));
	if (cursor == NULL)
		return -ERR_NO_MEMORY;
	cursor->trees = trees;
	if (after_length > NAME_BYTES_MAX)
		after_length = NAME_BYTES_MAX;
	cursor->key_length = entry_key(cursor->key, overlay, directory, after, after_length);
	*ret_cursor = cursor;
	return 0;
}

void overlay_cursor_free(struct overlay_cursor *cursor)
{
	if (cursor == NULL)
		return;
	buffer_release(&cursor->batch);
	free(cursor);
}

static int collect_entry(void *context, const struct span *key, const struct span *value)
{
	struct overlay_cursor *cursor = context;
	if (key->length > ENTRY_KEY_MAX || key->length <= OVERLAY_KEY_BYTES ||
	    value->length != ENTRY_VALUE_BYTES)
		return -ERR_CORRUPT;
	const uint8_t *name = (const uint8_t *)key->data + OVERLAY_KEY_BYTES;
	size_t length = key->length - OVERLAY_KEY_BYTES;
	buffer_u16(&cursor->batch, (uint16_t)length);
	buffer_append(&cursor->batch, name, length);
	buffer_u8(&cursor->batch, 0);
	buffer_append(&cursor->batch, value->data, ENTRY_VALUE_BYTES);
	memcpy(cursor->key, key->data, key->length);
	cursor->key_length = key->length;
	return buffer_check(&cursor->batch);
}

static int refill(struct overlay_cursor *cursor)
{
	buffer_clear(&cursor->batch);
	uint8_t after[ENTRY_KEY_MAX];
	size_t after_length = cursor->key_length;
	memcpy(after, cursor->key, after_length);
	int r = state_scan(cursor->trees->state, STATE_ENTRIES, after, OVERLAY_KEY_BYTES, after,
	                   after_length, OVERLAY_SCAN_BATCH, collect_entry, cursor);
	cursor->left = reader_of(cursor->batch.data, cursor->batch.length);
	cursor->ended = cursor->batch.length == 0;
	return r;
}

int overlay_cursor_next(struct overlay_cursor *cursor, const struct overlay_entry **ret_entry)
{
	if (reader_left(&cursor->left) == 0 && !cursor->ended) {
		int r = refill(cursor);
		if (r != 0)
			return r;
	}
	if (cursor->ended)
		return -ERR_NOT_FOUND;
	struct reader *left = &cursor->left;
	size_t length = read_u16(left);
	const uint8_t *name = read_bytes(left, length + 1);
	const uint8_t *value = read_bytes(left, ENTRY_VALUE_BYTES);
	if (left->failed)
		return -ERR_CORRUPT;
	cursor->entry = (struct overlay_entry){.name = (const char *)name, .name_length = length};
	int r = entry_decode(value, ENTRY_VALUE_BYTES, &cursor->entry);
	if (r == 0)
		*ret_entry = &cursor->entry;
	return r;
}

static void cursor_cleanup(struct overlay_cursor **cursor)
{
	overlay_cursor_free(*cursor);
}

int overlay_entries(struct worktrees *trees, uint64_t overlay, uint64_t directory,
                    const char *after, size_t after_length, overlay_entry_fn *callback,
                    void *context)
{
	CLEANUP(cursor_cleanup) struct overlay_cursor *cursor = NULL;
	int r = overlay_cursor_new(trees, overlay, directory, after, after_length, &cursor);
	while (r == 0) {
		const struct overlay_entry *entry;
		r = overlay_cursor_next(cursor, &entry);
		if (r == -ERR_NOT_FOUND)
			return 0;
		if (r == 0)
			r = callback(context, entry);
	}
	return r;
}

/* -- branches -- */

static void get_renaming(struct reader *reader, struct branch_renaming *ret_renaming)
{
	size_t length = 0;
	const uint8_t *to = read_string(reader, REF_NAME_MAX, &length);
	const uint8_t *nonce = read_bytes(reader, REF_NONCE_BYTES);
	if (to == NULL || nonce == NULL)
		return;
	memcpy(ret_renaming->to, to, length);
	memcpy(ret_renaming->nonce, nonce, REF_NONCE_BYTES);
	if (strlen(ret_renaming->to) != length || ref_name_check(ret_renaming->to, NULL) != 0)
		reader->failed = true;
}

int branch_record_decode(const void *bytes, size_t length, struct branch_record *ret_record)
{
	struct reader reader = reader_of(bytes, length);
	struct branch_record record = {0};
	uint8_t version = read_u8(&reader);
	if (!reader.failed && version > RECORD_VERSION)
		return -ERR_VERSION;
	uint8_t flags = read_u8(&reader);
	record.overlay = read_u64(&reader);
	record.root = read_u64(&reader);
	get_pointer(&reader, &record.base);
	record.intent = (flags & BRANCH_INTENT) != 0;
	if (record.intent) {
		get_pointer(&reader, &record.intent_head);
		get_pointer(&reader, &record.intent_commit);
		record.intent_overlay = read_u64(&reader);
		record.intent_root = read_u64(&reader);
	}
	if (flags & BRANCH_RENAMING)
		get_renaming(&reader, &record.renaming);
	int r = reader_finish(&reader);
	if (r == 0 &&
	    (version != RECORD_VERSION || (flags & ~(BRANCH_INTENT | BRANCH_RENAMING)) != 0 ||
	     (record.overlay == 0) != (record.root == 0) ||
	     (record.intent_overlay == 0) != (record.intent_root == 0)))
		r = -ERR_CORRUPT;
	if (r == 0)
		*ret_record = record;
	return r;
}

int branch_record_read(struct worktrees *trees, const char *branch,
                       struct branch_record *ret_record)
{
	CLEANUP(buffer_release) struct buffer value = {0};
	int r = state_get(trees->state, STATE_BRANCHES, branch, strlen(branch), &value);
	return r != 0 ? r : branch_record_decode(value.data, value.length, ret_record);
}

void branch_record_put(struct state_batch *batch, const char *branch,
                       const struct branch_record *record)
{
	if (record->overlay == 0 && !record->intent) {
		state_delete(batch, STATE_BRANCHES, branch, strlen(branch));
		return;
	}
	CLEANUP(buffer_release) struct buffer value = {0};
	const struct branch_renaming *renaming = &record->renaming;
	buffer_u8(&value, RECORD_VERSION);
	buffer_u8(&value, (uint8_t)((record->intent ? BRANCH_INTENT : 0) |
	                            (renaming->to[0] ? BRANCH_RENAMING : 0)));
	buffer_u64(&value, record->overlay);
	buffer_u64(&value, record->root);
	put_pointer(&value, &record->base);
	if (record->intent) {
		put_pointer(&value, &record->intent_head);
		put_pointer(&value, &record->intent_commit);
		buffer_u64(&value, record->intent_overlay);
		buffer_u64(&value, record->intent_root);
	}
	if (renaming->to[0]) {
		buffer_string(&value, renaming->to, strlen(renaming->to));
		buffer_append(&value, renaming->nonce, REF_NONCE_BYTES);
	}
	state_put(batch, STATE_BRANCHES, branch, strlen(branch), value.data, value.length);
	if (value.failed != 0)
		batch->bytes.failed = value.failed;
}

static int collect_branch(void *context, const struct span *key, const struct span *value)
{
	struct buffer *records = context;
	buffer_string(records, key->data, key->length);
	buffer_string(records, value->data, value->length);
	return buffer_check(records);
}

int branch_records_each(struct worktrees *trees, branch_record_fn *callback, void *context)
{
	CLEANUP(buffer_release) struct buffer records = {0};
	int r = state_scan(trees->state, STATE_BRANCHES, NULL, 0, NULL, 0, 0, collect_branch,
	                   &records);
	struct reader reader = reader_of(records.data, records.length);
	while (r == 0 && reader_left(&reader) > 0) {
		size_t name_length, length;
		const uint8_t *name = read_string(&reader, SIZE_MAX, &name_length);
		const uint8_t *bytes = read_string(&reader, SIZE_MAX, &length);
		char branch[REF_NAME_MAX + 1] = {0};
		struct branch_record record;
		if (name == NULL || name_length > REF_NAME_MAX)
			return -ERR_CORRUPT;
		memcpy(branch, name, name_length);
		r = branch_record_decode(bytes, length, &record);
		if (r == 0)
			r = callback(context, branch, &record);
	}
	return r;
}
