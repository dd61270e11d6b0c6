/*
 * tree_node — hides how a node is laid out in bytes, and which name ends one.
 *
 * A node is read in place: names are found by binary search through its offset table. That is
 * safe because node_open validates every byte the first time a cached record is seen.
 */
#include "store/tree_internal.h"

#include <assert.h>
#include <stdatomic.h>

/* -- boundaries -- */

static uint64_t fnv1a(const char *bytes, size_t length)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (uint8_t)bytes[i]) * UINT64_C(0x100000001b3);
	return hash;
}

/*
 * Each level must draw anew, or a name that ends a node on one level would on all. So: output
 * number `level` of the generator SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
 * Number Generators", OOPSLA 2014) seeded with the name's FNV-1a hash, whose own bits are too
 * regular for short similar names.
 */
bool name_is_boundary(const char *name, size_t length, unsigned level)
{
	uint64_t mixed = fnv1a(name, length) + (level + 1) * UINT64_C(0x9e3779b97f4a7c15);

	mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
	mixed ^= mixed >> 31;
	return mixed >> (64 - NODE_BOUNDARY_BITS) == 0;
}

/* -- access: the bytes are known to be valid -- */

static uint32_t entry_offset(const struct node *node, uint32_t index)
{
	const struct record *record = node->record;

	if (index == node->count)
		return (uint32_t)record->logical_length;
	return load_u32(record->logical + NODE_HEADER_BYTES + 4 * (size_t)index);
}

/* Where an inner entry's total and then its id follow the name. */
static const uint8_t *after_name(const uint8_t *bytes)
{
	return bytes + 1 + bytes[0] + 1;
}

void node_item(const struct node *node, uint32_t index, struct item *ret_item)
{
	uint32_t start = entry_offset(node, index);

	ret_item->bytes = node->record->logical + start;
	ret_item->length = entry_offset(node, index + 1) - start;
	ret_item->place = node->record->places + (size_t)index * PLACE_ENCODED_BYTES;
	ret_item->total = node->level > 0 ? load_u64(after_name(ret_item->bytes)) : 1;
}

static void decode_place(const uint8_t *bytes, struct place *ret_place)
{
	struct reader reader = reader_of(bytes, PLACE_ENCODED_BYTES);

	place_decode(&reader, ret_place);
}

void node_entry(const struct node *node, uint32_t index, struct tree_entry *ret_entry)
{
	struct item item;
	struct reader reader;

	assert(node->level == 0);
	node_item(node, index, &item);
	reader = reader_of(item.bytes, item.length);
	entry_decode_body(&reader, ret_entry);
	if (entry_has_id(ret_entry))
		decode_place(item.place, &ret_entry->content.pointer.place);
}

void node_child(const struct node *node, uint32_t index, struct pointer *ret_pointer)
{
	struct item item;

	assert(node->level > 0);
	node_item(node, index, &item);
	memcpy(ret_pointer->id.bytes, after_name(item.bytes) + 8, ID_BYTES);
	decode_place(item.place, &ret_pointer->place);
}

uint32_t node_find(const struct node *node, const char *name, size_t length, bool after)
{
	uint32_t low = 0, high = node->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const uint8_t *bytes = node->record->logical + entry_offset(node, middle);
		int order = name_compare((const char *)bytes + 1, bytes[0], name, length);

		if (order < 0 || (order == 0 && after))
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* -- validation -- */

static bool place_is_empty(const uint8_t *place)
{
	static const uint8_t empty[PLACE_ENCODED_BYTES];

	return memcmp(place, empty, sizeof(empty)) == 0;
}

/* Yields how many leaf entries the entry stands for. */
static int validate_entry(unsigned level, struct reader reader, const uint8_t *place,
                          uint64_t *ret_total, const char **ret_why)
{
	struct reader place_reader = reader_of(place, PLACE_ENCODED_BYTES);
	struct place ignored;
	struct tree_entry entry = {0};

	if (level == 0) {
		entry_decode_body(&reader, &entry);
		*ret_total = 1;
	} else {
		entry.name_length = read_u8(&reader);
		entry.name = (const char *)read_bytes(&reader, entry.name_length);
		if (read_u8(&reader) != 0)
			reader.failed = true;
		*ret_total = read_u64(&reader);
		read_id(&reader, &entry.content.pointer.id);
	}
	*ret_why = "malformed entry";
	if (reader_finish(&reader))
		return -ERR_CORRUPT;
	if (name_check(entry.name, entry.name_length))
		return -ERR_CORRUPT;
	if (level == 0 ? entry_check(&entry) != 0 : *ret_total == 0 || !entry_has_id(&entry))
		return -ERR_CORRUPT;
	*ret_why = "malformed place";
	if (!entry_has_id(&entry))
		return place_is_empty(place) ? 0 : -ERR_CORRUPT;
	place_decode(&place_reader, &ignored);
	return reader_finish(&place_reader);
}

static int validate_entries(const struct node *node, const char **ret_why)
{
	const uint8_t *previous = NULL;
	uint64_t sum = 0;

	for (uint32_t i = 0; i < node->count; i++) {
		uint32_t start = entry_offset(node, i), end = entry_offset(node, i + 1);
		const uint8_t *bytes = node->record->logical + start;
		uint64_t total;
		int error;

		*ret_why = "bad offset";
		if (start >= end || end > node->record->logical_length)
			return -ERR_CORRUPT;
		error = validate_entry(node->level, reader_of(bytes, end - start),
		                       node->record->places + (size_t)i * PLACE_ENCODED_BYTES,
		                       &total, ret_why);
		if (error)
			return error;
		*ret_why = "names out of order";
		if (previous && name_compare((const char *)previous + 1, previous[0],
		                             (const char *)bytes + 1, bytes[0]) >= 0)
			return -ERR_CORRUPT;
		previous = bytes;
		*ret_why = "wrong number of entries";
		if (__builtin_add_overflow(sum, total, &sum))
			return -ERR_CORRUPT;
	}
	return sum == node->total ? 0 : -ERR_CORRUPT;
}

static void read_header(const uint8_t *logical, struct node *node)
{
	node->level = logical[1];
	node->count = load_u32(logical + 4);
	node->total = load_u64(logical + 8);
}

int node_validate(const uint8_t *logical, size_t logical_length, const uint8_t *places,
                  size_t places_length, const char **ret_why)
{
	struct record record = {.logical = logical,
	                        .logical_length = logical_length,
	                        .places = places,
	                        .places_length = places_length};
	struct node node = {.record = &record};

	*ret_why = "malformed header";
	if (logical_length < NODE_HEADER_BYTES || logical_length > RECORD_RAW_MAX)
		return -ERR_CORRUPT;
	if (logical[0] > NODE_VERSION) {
		*ret_why = "unknown version";
		return -ERR_VERSION;
	}
	read_header(logical, &node);
	if (logical[0] != NODE_VERSION || node.level > NODE_LEVEL_MAX || logical[2] != 0 ||
	    logical[3] != 0 || node.count == 0 || node.count > NODE_ENTRIES_MAX)
		return -ERR_CORRUPT;
	if (logical_length <= NODE_HEADER_BYTES + 4 * (size_t)node.count)
		return -ERR_CORRUPT;
	if (entry_offset(&node, 0) != NODE_HEADER_BYTES + 4 * node.count)
		return -ERR_CORRUPT;
	*ret_why = "wrong number of places";
	if (places_length != (size_t)node.count * PLACE_ENCODED_BYTES)
		return -ERR_CORRUPT;
	return validate_entries(&node, ret_why);
}

int node_open(struct odb *odb, const struct pointer *pointer, struct node *ret_node,
              struct message *message)
{
	struct record *record = NULL;
	char pack[2 * PACK_ID_BYTES + 1];
	const char *why;
	int error;

	error = odb_read_record(odb, RECORD_NODE, pointer, &record, message);
	/* -ERR_NOT_FOUND means "no such name" here: a missing pack must never read as that. */
	if (error == -ERR_NOT_FOUND)
		return fail_context(message, -ERR_CORRUPT, "missing tree node");
	if (error)
		return error;
	/* Threads that race here do the same work twice and come to the same result. */
	if (!atomic_load_explicit(&record->checked, memory_order_acquire)) {
		error = node_validate(record->logical, record->logical_length, record->places,
		                      record->places_length, &why);
		if (error) {
			record_unref(record);
			hex_encode(pointer->place.pack, PACK_ID_BYTES, pack);
			return fail(message, error, "tree node in pack %s at offset %llu: %s", pack,
			            (unsigned long long)pointer->place.offset, why);
		}
		atomic_store_explicit(&record->checked, 1, memory_order_release);
	}
	ret_node->record = record;
	read_header(record->logical, ret_node);
	return 0;
}

void node_close(struct node *node)
{
	record_unref(node->record);
	*node = (struct node){0};
}

/* -- building -- */

void node_builder_release(struct node_builder *builder)
{
	buffer_release(&builder->entries);
	buffer_release(&builder->places);
}

void node_builder_start(struct node_builder *builder, unsigned level)
{
	assert(level <= NODE_LEVEL_MAX);
	builder->level = level;
	builder->count = 0;
	builder->total = 0;
	builder->full = false;
	buffer_clear(&builder->entries);
	buffer_clear(&builder->places);
}

int node_builder_add(struct node_builder *builder, const struct item *item)
{
	size_t bytes;

	assert(!builder->full);
	builder->offsets[builder->count++] = (uint32_t)builder->entries.length;
	builder->total += item->total;
	buffer_append(&builder->entries, item->bytes, item->length);
	buffer_append(&builder->places, item->place, PLACE_ENCODED_BYTES);
	bytes = builder->entries.length + 4 * (size_t)builder->count;
	builder->full = builder->count == NODE_ENTRIES_MAX || bytes >= NODE_BYTES_FULL ||
	                (builder->count >= NODE_ENTRIES_MIN &&
	                 name_is_boundary(item_name(item), item_name_length(item), builder->level));
	return buffer_check(&builder->entries) ? buffer_check(&builder->entries)
	                                       : buffer_check(&builder->places);
}

void node_builder_last(const struct node_builder *builder, struct item *ret_item)
{
	uint32_t last = builder->count - 1;

	assert(builder->count > 0);
	ret_item->bytes = builder->entries.data + builder->offsets[last];
	ret_item->length = builder->entries.length - builder->offsets[last];
	ret_item->place = builder->places.data + (size_t)last * PLACE_ENCODED_BYTES;
	ret_item->total = builder->level > 0 ? load_u64(after_name(ret_item->bytes)) : 1;
}

int node_builder_encode(const struct node_builder *builder, struct buffer *ret_logical)
{
	uint32_t base = NODE_HEADER_BYTES + 4 * builder->count;

	assert(builder->count > 0);
	buffer_clear(ret_logical);
	buffer_u8(ret_logical, NODE_VERSION);
	buffer_u8(ret_logical, (uint8_t)builder->level);
	buffer_u16(ret_logical, 0);
	buffer_u32(ret_logical, builder->count);
	buffer_u64(ret_logical, builder->total);
	for (uint32_t i = 0; i < builder->count; i++)
		buffer_u32(ret_logical, base + builder->offsets[i]);
	buffer_append(ret_logical, builder->entries.data, builder->entries.length);
	return buffer_check(ret_logical);
}

void child_encode(struct buffer *buffer, const char *last_name, size_t length, uint64_t total,
                  const struct id *id)
{
	buffer_u8(buffer, (uint8_t)length);
	buffer_append(buffer, last_name, length);
	buffer_u8(buffer, 0);
	buffer_u64(buffer, total);
	buffer_id(buffer, id);
}
