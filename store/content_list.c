/*
 * content_list — hides the format of list nodes and the rule that ends one.
 *
 * A node ends after an entry whose id says so (LIST_BOUNDARY_MASK) once it has LIST_ENTRIES_MIN
 * entries, or at LIST_ENTRIES_MAX: by its own entries alone, so an edit changes the nodes near it
 * and their ancestors.
 */
#include <assert.h>

#include "store/content_list.h"

#define HOLE_FLAG ((uint64_t)1 << 63)

int content_check(const struct content *content, struct message *message)
{
	bool empty = content->kind == CONTENT_EMPTY;

	if (content->kind > CONTENT_LIST || empty != (content->size == 0) ||
	    content->size > FILE_BYTES_MAX)
		return fail(message, -ERR_CORRUPT, "a file of kind %d with %llu bytes",
		            (int)content->kind, (unsigned long long)content->size);
	return 0;
}

/* -- format -- */

static int entry_decode(struct reader *logical, struct reader *places, unsigned level,
                        struct list_entry *ret_entry)
{
	uint64_t word = read_u64(logical);

	memset(ret_entry, 0, sizeof(*ret_entry));
	ret_entry->length = word & ~HOLE_FLAG;
	ret_entry->hole = word & HOLE_FLAG;
	if (logical->failed || ret_entry->length == 0 || ret_entry->length > FILE_BYTES_MAX)
		return -ERR_CORRUPT;
	if (ret_entry->hole)
		return level == 0 ? 0 : -ERR_CORRUPT;
	read_id(logical, &ret_entry->pointer.id);
	place_decode(places, &ret_entry->pointer.place);
	if (logical->failed || places->failed || ret_entry->pointer.place.raw == 0)
		return -ERR_CORRUPT;
	if (level == 0 && (ret_entry->length > CHUNK_BYTES_MAX ||
	                   ret_entry->length != ret_entry->pointer.place.raw))
		return -ERR_CORRUPT;
	return 0;
}

int list_node_decode(const struct record *record, struct list_node **ret_node)
{
	CLEANUP(free_pointer) struct list_node *node = NULL;
	struct reader logical = reader_of(record->logical, record->logical_length);
	struct reader places = reader_of(record->places, record->places_length);
	uint8_t version = read_u8(&logical);
	unsigned level = read_u8(&logical);
	uint32_t count = read_u16(&logical);
	uint32_t reserved = read_u32(&logical);
	uint64_t length = read_u64(&logical), sum = 0;

	if (!logical.failed && version != LIST_VERSION)
		return -ERR_VERSION;
	if (logical.failed || reserved != 0 || level >= LIST_LEVELS_MAX || count == 0 ||
	    count > LIST_ENTRIES_MAX || length > FILE_BYTES_MAX)
		return -ERR_CORRUPT;
	node = calloc(1, sizeof(*node) + count * sizeof(node->entries[0]));
	if (!node)
		return -ERR_NO_MEMORY;
	node->level = level;
	node->count = count;
	node->length = length;
	for (uint32_t i = 0; i < count; i++) {
		int error = entry_decode(&logical, &places, level, &node->entries[i]);

		if (error)
			return error;
		/* A hole is whole units, unless it ends the file. */
		if (node->entries[i].hole && node->entries[i].length % HOLE_UNIT && i + 1 < count)
			return -ERR_CORRUPT;
		sum += node->entries[i].length; /* 512 times 2^43 fits */
	}
	if (sum != length || reader_finish(&logical) || reader_finish(&places))
		return -ERR_CORRUPT;
	*ret_node = steal(&node);
	return 0;
}

static int node_write(struct packer *packer, const struct list_level *from, unsigned level,
                      struct list_entry *ret_entry, struct message *message)
{
	CLEANUP(buffer_release) struct buffer logical = {0};
	CLEANUP(buffer_release) struct buffer places = {0};
	uint64_t length = 0;

	for (uint32_t i = 0; i < from->count; i++)
		length += from->entries[i].length;
	buffer_u8(&logical, LIST_VERSION);
	buffer_u8(&logical, (uint8_t)level);
	buffer_u16(&logical, (uint16_t)from->count);
	buffer_u32(&logical, 0);
	buffer_u64(&logical, length);
	for (uint32_t i = 0; i < from->count; i++) {
		const struct list_entry *entry = &from->entries[i];

		buffer_u64(&logical, entry->length | (entry->hole ? HOLE_FLAG : 0));
		if (entry->hole)
			continue;
		buffer_id(&logical, &entry->pointer.id);
		place_encode(&places, &entry->pointer.place);
	}
	if (buffer_check(&logical) || buffer_check(&places))
		return fail(message, -ERR_NO_MEMORY, "a list of %u chunks", from->count);
	*ret_entry = (struct list_entry){.length = length};
	return packer_add_record(packer, RECORD_LIST, logical.data, logical.length, places.data,
	                         places.length, &ret_entry->pointer, message);
}

/* -- writing -- */

void list_builder_release(struct list_builder *builder)
{
	for (unsigned level = 0; level <= LIST_LEVELS_MAX; level++)
		free(builder->levels[level].entries);
}

static int level_push(struct list_level *level, const struct list_entry *entry)
{
	if (level->count == level->capacity) {
		uint32_t capacity = level->capacity ? level->capacity * 4 : 8;
		struct list_entry *entries = realloc(level->entries, capacity * sizeof(*entries));

		if (!entries)
			return -ERR_NO_MEMORY;
		level->entries = entries;
		level->capacity = capacity;
	}
	level->entries[level->count++] = *entry;
	return 0;
}

/* Write the node open at `level` and enter it one level up. */
static int level_close(struct list_builder *builder, unsigned level, struct message *message)
{
	struct list_level *from = &builder->levels[level];
	struct list_entry entry;
	int error;

	if (level >= LIST_LEVELS_MAX)
		return fail(message, -ERR_TOO_LARGE, "a file of too many pieces");
	error = node_write(builder->packer, from, level, &entry, message);
	if (error)
		return error;
	from->count = 0;
	from->nodes++;
	if (level_push(from + 1, &entry))
		return fail(message, -ERR_NO_MEMORY, "a list of chunks");
	return 0;
}

static bool ends_node(const struct list_level *level)
{
	const struct list_entry *last = &level->entries[level->count - 1];

	if (level->count >= LIST_ENTRIES_MAX)
		return true;
	return level->count >= LIST_ENTRIES_MIN && !last->hole &&
	       (load_u32(last->pointer.id.bytes) & LIST_BOUNDARY_MASK) == 0;
}

int list_builder_add(struct list_builder *builder, unsigned level, const struct list_entry *entry,
                     struct message *message)
{
	assert(list_builder_empty_below(builder, level));
	if (level_push(&builder->levels[level], entry))
		return fail(message, -ERR_NO_MEMORY, "a list of chunks");
	for (unsigned below = 0; below < level; below++)
		builder->levels[below].nodes += below + 1 == level ? 1 : 2;
	for (; ends_node(&builder->levels[level]); level++) {
		int error = level_close(builder, level, message);

		if (error)
			return error;
	}
	return 0;
}

bool list_builder_empty_below(const struct list_builder *builder, unsigned level)
{
	for (unsigned below = 0; below < level; below++)
		if (builder->levels[below].count)
			return false;
	return true;
}

int list_builder_finish(struct list_builder *builder, struct content *ret_content,
                        struct message *message)
{
	struct list_level *bottom = &builder->levels[0];

	if (bottom->nodes == 0 && bottom->count == 0) {
		ret_content->kind = CONTENT_EMPTY;
		ret_content->pointer = pointer_none;
		return 0;
	}
	if (bottom->nodes == 0 && bottom->count == 1 && !bottom->entries[0].hole) {
		ret_content->kind = CONTENT_CHUNK;
		ret_content->pointer = bottom->entries[0].pointer;
		return 0;
	}
	for (unsigned level = 0;; level++) {
		if (builder->levels[level].count) {
			int error = level_close(builder, level, message);

			if (error)
				return error;
		}
		/* The only node of its level is the root. */
		if (builder->levels[level].nodes == 1) {
			ret_content->kind = CONTENT_LIST;
			ret_content->pointer = builder->levels[level + 1].entries[0].pointer;
			return 0;
		}
	}
}

/* -- reading -- */

void list_cursor_release(struct list_cursor *cursor)
{
	while (cursor->depth)
		free(cursor->frames[--cursor->depth].node);
}

const struct list_entry *list_frame_entry(const struct list_frame *frame)
{
	return &frame->node->entries[frame->index];
}

static int node_fail(const struct pointer *pointer, int error, struct message *message)
{
	char hex[ID_HEX + 1];

	id_to_hex(&pointer->id, hex);
	if (error == -ERR_CORRUPT)
		return fail(message, error, "list %.16s of a file is damaged", hex);
	if (error == -ERR_VERSION)
		return fail(message, error,
		            "list %.16s of a file has a format this program does not know: use a "
		            "newer one",
		            hex);
	return fail(message, error, "reading list %.16s of a file", hex);
}

static int node_read(struct odb *odb, const struct pointer *pointer, struct list_node **ret_node,
                     struct message *message)
{
	struct record *record;
	int error = odb_read_record(odb, RECORD_LIST, pointer, &record, message);

	/* The file is there, and must not read as if it were not. */
	if (error == -ERR_NOT_FOUND)
		return fail_context(message, -ERR_CORRUPT, "missing list of a file");
	if (error)
		return error;
	error = list_node_decode(record, ret_node);
	record_unref(record);
	return error ? node_fail(pointer, error, message) : 0;
}

/* A file that is one chunk reads as a list of one. */
static int chunk_node(const struct content *content, struct list_node **ret_node,
                      struct message *message)
{
	struct list_node *node;

	if (content->pointer.place.raw != content->size)
		return fail(message, -ERR_CORRUPT, "a file of %llu bytes in a chunk of %u",
		            (unsigned long long)content->size, content->pointer.place.raw);
	node = calloc(1, sizeof(*node) + sizeof(node->entries[0]));
	if (!node)
		return fail(message, -ERR_NO_MEMORY, "a list of one chunk");
	node->count = 1;
	node->length = content->size;
	node->entries[0].length = content->size;
	node->entries[0].pointer = content->pointer;
	*ret_node = node;
	return 0;
}

/* Load the node that the last frame's current entry names (or the root), and check it against
 * what was said of it. */
static int cursor_load(struct list_cursor *cursor, struct message *message)
{
	struct list_frame *parent = cursor->depth ? &cursor->frames[cursor->depth - 1] : NULL;
	const struct content *content = cursor->content;
	const struct pointer *pointer = &content->pointer;
	uint64_t length = content->size, start = 0;
	struct list_node *node = NULL;
	int error;

	if (parent) {
		pointer = &list_frame_entry(parent)->pointer;
		length = list_frame_entry(parent)->length;
		start = parent->index_start;
	}
	if (content->kind == CONTENT_CHUNK)
		error = chunk_node(content, &node, message);
	else
		error = node_read(cursor->odb, pointer, &node, message);
	if (error)
		return error;
	if (node->length != length || (parent && node->level + 1 != parent->node->level)) {
		free(node);
		return node_fail(pointer, -ERR_CORRUPT, message);
	}
	/* Levels fall by one from at most LIST_LEVELS_MAX - 1: the frames suffice. */
	cursor->frames[cursor->depth++] =
	        (struct list_frame){.node = node, .start = start, .index_start = start};
	return 0;
}

/* Make the entry that holds `offset`, which the node does, the current one. */
static void frame_move(struct list_frame *frame, uint64_t offset)
{
	if (offset < frame->index_start) {
		frame->index = 0;
		frame->index_start = frame->start;
	}
	while (offset - frame->index_start >= list_frame_entry(frame)->length)
		frame->index_start += frame->node->entries[frame->index++].length;
}

struct list_frame *list_cursor_frame(struct list_cursor *cursor)
{
	return &cursor->frames[cursor->depth - 1];
}

int list_cursor_approach(struct list_cursor *cursor, uint64_t offset, struct message *message)
{
	assert(offset < cursor->content->size && cursor->content->kind != CONTENT_EMPTY);
	while (cursor->depth) {
		const struct list_frame *frame = list_cursor_frame(cursor);

		if (offset >= frame->start && offset - frame->start < frame->node->length)
			break;
		free(cursor->frames[--cursor->depth].node);
	}
	if (!cursor->depth) {
		int error = cursor_load(cursor, message);

		if (error)
			return error;
	}
	frame_move(list_cursor_frame(cursor), offset);
	return 0;
}

int list_cursor_descend(struct list_cursor *cursor, uint64_t offset, struct message *message)
{
	int error = cursor_load(cursor, message);

	if (error)
		return error;
	frame_move(list_cursor_frame(cursor), offset);
	return 0;
}

int list_cursor_seek(struct list_cursor *cursor, uint64_t offset, struct message *message)
{
	int error = list_cursor_approach(cursor, offset, message);

	while (!error && list_cursor_frame(cursor)->node->level > 0)
		error = list_cursor_descend(cursor, offset, message);
	return error;
}

struct piece list_cursor_piece(const struct list_cursor *cursor)
{
	const struct list_frame *frame = &cursor->frames[cursor->depth - 1];
	const struct list_entry *entry = list_frame_entry(frame);

	return (struct piece){.offset = frame->index_start,
	                      .length = entry->length,
	                      .hole = entry->hole,
	                      .pointer = entry->pointer};
}
