/*
 * parquet.c — hides Thrift's compact protocol and which fields of it tell where columns lie.
 *
 * Every value is bounded by what is left of the footer before it is believed: a list cannot have
 * more elements than there are bytes. After the first thing that is not understood the reader
 * stands still and gives zeros.
 */
#include "cache/parquet.h"

#define MAGIC "PAR1"
#define DEPTH_MAX 32

/* Types of the compact protocol. */
enum {
	STOP = 0,
	TRUE = 1,
	FALSE = 2,
	I8 = 3,
	I16 = 4,
	I32 = 5,
	I64 = 6,
	DOUBLE = 7,
	BINARY = 8,
	LIST = 9,
	SET = 10,
	MAP = 11,
	STRUCT = 12,
	UUID = 13
};

/* Of parquet.thrift. */
enum { FILE_ROW_GROUPS = 4, GROUP_COLUMNS = 1, COLUMN_FILE_PATH = 1, COLUMN_META_DATA = 3 };
enum { META_COMPRESSED_SIZE = 7, META_DATA_PAGE = 9, META_DICTIONARY_PAGE = 11 };

struct thrift {
	const uint8_t *at, *end;
	bool bad;
};

struct field {
	uint8_t type;
	int id;
};

static void give_up(struct thrift *thrift)
{
	thrift->bad = true;
	thrift->at = thrift->end;
}

static uint8_t byte(struct thrift *thrift)
{
	if (thrift->at == thrift->end) {
		give_up(thrift);
		return 0;
	}
	return *thrift->at++;
}

static uint64_t varint(struct thrift *thrift)
{
	uint64_t value = 0;
	for (unsigned shift = 0; shift < 64; shift += 7) {
		uint8_t next = byte(thrift);
		value |= (uint64_t)(next & 0x7f) << shift;
		if (!(next & 0x80))
			return value;
	}
	give_up(thrift);
	return 0;
}

static int64_t zigzag(struct thrift *thrift)
{
	uint64_t value = varint(thrift);
	return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
}

static void skip_bytes(struct thrift *thrift, uint64_t count)
{
	if (count > (uint64_t)(thrift->end - thrift->at))
		give_up(thrift);
	else
		thrift->at += count;
}

/* False: the struct ends here. */
static bool next_field(struct thrift *thrift, struct field *field)
{
	uint8_t head = byte(thrift);
	field->type = head & 0x0f;
	if (field->type == STOP)
		return false;
	int64_t id = head >> 4 ? field->id + (head >> 4) : zigzag(thrift);
	if (id < 0 || id > INT16_MAX)
		give_up(thrift);
	field->id = (int)id;
	return !thrift->bad;
}

/* How many elements; each takes a byte at least. */
static uint64_t list_begin(struct thrift *thrift, uint8_t *ret_type)
{
	uint8_t head = byte(thrift);
	uint64_t count = head >> 4 == 15 ? varint(thrift) : head >> 4;
	*ret_type = head & 0x0f;
	if (count > (uint64_t)(thrift->end - thrift->at))
		give_up(thrift);
	return thrift->bad ? 0 : count;
}

static void skip(struct thrift *thrift, uint8_t type, bool element, unsigned depth);

static void skip_map(struct thrift *thrift, unsigned depth)
{
	uint64_t count = varint(thrift);
	uint8_t types = count ? byte(thrift) : 0;
	if (count > (uint64_t)(thrift->end - thrift->at))
		give_up(thrift);
	for (uint64_t i = 0; i < count && !thrift->bad; i++) {
		skip(thrift, types >> 4, true, depth);
		skip(thrift, types & 0x0f, true, depth);
	}
}

/* Of a field its type is the value of a bool; an element has a byte for it. */
static void skip(struct thrift *thrift, uint8_t type, bool element, unsigned depth)
{
	struct field field = {0};
	uint8_t inner;
	if (depth == 0) {
		give_up(thrift);
		return;
	}
	switch (type) {
	case TRUE:
	case FALSE:
		skip_bytes(thrift, element);
		return;
	case I8:
		skip_bytes(thrift, 1);
		return;
	case I16:
	case I32:
	case I64:
		varint(thrift);
		return;
	case DOUBLE:
		skip_bytes(thrift, 8);
		return;
	case UUID:
		skip_bytes(thrift, 16);
		return;
	case BINARY:
		skip_bytes(thrift, varint(thrift));
		return;
	case LIST:
	case SET:
		for (uint64_t count = list_begin(thrift, &inner); count && !thrift->bad; count--)
			skip(thrift, inner, true, depth - 1);
		return;
	case MAP:
		skip_map(thrift, depth - 1);
		return;
	case STRUCT:
		while (next_field(thrift, &field))
			skip(thrift, field.type, false, depth - 1);
		return;
	default:
		give_up(thrift);
	}
}

static void skip_field(struct thrift *thrift, const struct field *field)
{
	skip(thrift, field->type, false, DEPTH_MAX);
}

/* -- what is of interest -- */

struct found {
	struct column_chunk *chunks;
	size_t count, capacity;
	uint64_t file_size;
};

static void add(struct thrift *thrift, struct found *found, const struct column_chunk *chunk)
{
	if (found->count == found->capacity) {
		size_t capacity = found->capacity ? found->capacity * 2 : 64;
		struct column_chunk *chunks =
		        found->count < COLUMN_CHUNKS_MAX
		                ? reallocarray(found->chunks, capacity, sizeof(*chunks))
		                : NULL;
		if (!chunks) {
			give_up(thrift);
			return;
		}
		found->chunks = chunks;
		found->capacity = capacity;
	}
	found->chunks[found->count++] = *chunk;
}

/* ColumnMetaData. A chunk begins with its dictionary, if it has one; some writers say 0 for none.
 */
static void read_meta_data(struct thrift *thrift, const struct found *found,
                           struct column_chunk *chunk)
{
	struct field field = {0};
	int64_t size = 0, data = 0, dictionary = 0;
	while (next_field(thrift, &field)) {
		if (field.type == I64 && field.id == META_COMPRESSED_SIZE)
			size = zigzag(thrift);
		else if (field.type == I64 && field.id == META_DATA_PAGE)
			data = zigzag(thrift);
		else if (field.type == I64 && field.id == META_DICTIONARY_PAGE)
			dictionary = zigzag(thrift);
		else
			skip_field(thrift, &field);
	}
	int64_t start = dictionary > 0 && dictionary < data ? dictionary : data;
	if (start <= 0 || size <= 0 || (uint64_t)start >= found->file_size ||
	    (uint64_t)size > found->file_size - (uint64_t)start)
		return;
	chunk->start = (uint64_t)start;
	chunk->end = (uint64_t)(start + size);
}

static void read_column(struct thrift *thrift, struct found *found, uint32_t group, uint32_t column)
{
	struct field field = {0};
	struct column_chunk chunk = {.group = group, .column = column};
	bool elsewhere = false;
	while (next_field(thrift, &field)) {
		if (field.type == STRUCT && field.id == COLUMN_META_DATA) {
			read_meta_data(thrift, found, &chunk);
			continue;
		}
		elsewhere |= field.id == COLUMN_FILE_PATH;
		skip_field(thrift, &field);
	}
	if (!thrift->bad && !elsewhere && chunk.end)
		add(thrift, found, &chunk);
}

static void read_group(struct thrift *thrift, struct found *found, uint32_t group)
{
	struct field field = {0};
	uint8_t type;
	while (next_field(thrift, &field)) {
		if (field.type != LIST || field.id != GROUP_COLUMNS) {
			skip_field(thrift, &field);
			continue;
		}
		uint64_t count = list_begin(thrift, &type);
		if (type != STRUCT)
			give_up(thrift);
		for (uint32_t column = 0; column < count && !thrift->bad; column++)
			read_column(thrift, found, group, column);
	}
}

uint64_t parquet_footer_bytes(const uint8_t tail[PARQUET_TAIL_BYTES], uint64_t file_size)
{
	uint64_t length = load_u32(tail);
	if (memcmp(tail + 4, MAGIC, strlen(MAGIC)) != 0 || length > PARQUET_FOOTER_BYTES_MAX ||
	    file_size < strlen(MAGIC) + PARQUET_TAIL_BYTES ||
	    length > file_size - strlen(MAGIC) - PARQUET_TAIL_BYTES)
		return 0;
	return length;
}

size_t parquet_column_chunks(const uint8_t *footer, size_t length, uint64_t file_size,
                             struct column_chunk **ret_chunks)
{
	struct thrift thrift = {.at = footer, .end = footer + length};
	struct found found = {.file_size = file_size};
	struct field field = {0};
	uint8_t type;
	while (next_field(&thrift, &field)) {
		if (field.type != LIST || field.id != FILE_ROW_GROUPS) {
			skip_field(&thrift, &field);
			continue;
		}
		uint64_t count = list_begin(&thrift, &type);
		if (type != STRUCT)
			give_up(&thrift);
		for (uint32_t group = 0; group < count && !thrift.bad; group++)
			read_group(&thrift, &found, group);
	}
	if (thrift.bad || !found.count) {
		free(found.chunks);
		found = (struct found){0};
	}
	*ret_chunks = found.chunks;
	return found.count;
}
