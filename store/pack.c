/*
 * pack — hides the layout of pack objects: building one in memory, and checking, listing and
 * removing the stored ones.
 */
#include <assert.h>
#include <stdio.h>
#include <sys/mman.h>

#include "store/odb_index.h"
#include "store/pack.h"

static const char header_magic[8] = "LAKEPACK";
static const char trailer_magic[8] = "LAKEPEND";

/* -- building -- */

/* The memory of a few packs is kept for the next while a packer lives: new pages cost about as much
 * as hashing them. The kernel may take its pages back while it waits (MADV_FREE). */
#define SPARES_MAX 3
#define SPARE_FREE_BYTES (1u << 20) /* fewer are not worth the call */
/* A pack of more than this has large pages from there on, where the kernel has them. */
#define HUGE_FROM_BYTES (1u << 20)
static _Atomic(uint8_t *) spares[SPARES_MAX];

/* Address space only: pages come as they are filled, so a tiny pack stays tiny, and the bytes
 * never move under a reader. */
static uint8_t *data_new(void)
{
	void *mapped;

	for (size_t i = 0; i < SPARES_MAX; i++) {
		uint8_t *data = atomic_exchange(&spares[i], NULL);

		if (data)
			return data;
	}
	mapped = mmap(NULL, PACK_TARGET_BYTES, PROT_READ | PROT_WRITE,
	              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return mapped == MAP_FAILED ? NULL : mapped;
}

static void data_free(uint8_t *data, size_t used)
{
	if (!data)
		return;
	if (used > SPARE_FREE_BYTES)
		madvise(data, used, MADV_FREE);
	for (size_t i = 0; data && i < SPARES_MAX; i++)
		data = atomic_exchange(&spares[i], data);
	if (data)
		munmap(data, PACK_TARGET_BYTES);
}

void pack_trim_spares(void)
{
	for (size_t i = 0; i < SPARES_MAX; i++) {
		uint8_t *data = atomic_exchange(&spares[i], NULL);

		if (data)
			munmap(data, PACK_TARGET_BYTES);
	}
}

int pack_new(struct pack **ret_pack)
{
	struct pack *pack = calloc(1, sizeof(*pack));

	if (!pack)
		return -ERR_NO_MEMORY;
	pack->data = data_new();
	if (!pack->data) {
		free(pack);
		return -ERR_NO_MEMORY;
	}
	atomic_init(&pack->references, 1);
	random_bytes(pack->id, sizeof(pack->id));
	memset(pack->data, 0, PACK_HEADER_BYTES);
	memcpy(pack->data, header_magic, 8);
	pack->data[8] = PACK_VERSION;
	memcpy(pack->data + 16, pack->id, PACK_ID_BYTES);
	atomic_init(&pack->length, PACK_HEADER_BYTES);
	*ret_pack = pack;
	return 0;
}

void pack_unref(struct pack *pack)
{
	if (!pack || atomic_fetch_sub(&pack->references, 1) != 1)
		return;
	data_free(pack->data, pack->length);
	free(pack->entries);
	free(pack);
}

bool pack_fits(const struct pack *pack, size_t stored)
{
	return pack->count < PACK_RECORDS_MAX &&
	       pack->length + stored + (pack->count + 1) * PACK_ENTRY_BYTES + PACK_TRAILER_BYTES <=
	               PACK_TARGET_BYTES;
}

int pack_append(struct pack *pack, const struct id *id, enum record_kind kind,
                const struct encoded *encoded, const uint8_t seal[CHECK_BYTES],
                struct place *ret_place)
{
	uint32_t offset = pack->length;
	struct packed *packed;

	assert(pack_fits(pack, encoded->stored));
	if (pack->count == pack->capacity) {
		size_t capacity = pack->capacity ? pack->capacity * 2 : 64;

		packed = realloc(pack->entries, capacity * sizeof(*packed));
		if (!packed)
			return -ERR_NO_MEMORY;
		pack->entries = packed;
		pack->capacity = capacity;
	}
	packed = &pack->entries[pack->count++];
	memset(packed, 0, sizeof(*packed));
	packed->entry.id = *id;
	packed->entry.kind = kind;
	memcpy(packed->entry.place.pack, pack->id, PACK_ID_BYTES);
	packed->entry.place.offset = offset;
	packed->entry.place.stored = encoded->stored;
	packed->entry.place.raw = encoded->raw;
	packed->entry.place.codec = (uint8_t)encoded->codec;
	memcpy(packed->check, encoded->check, CHECK_BYTES);
	memcpy(packed->seal, seal, CHECK_BYTES);
	if (offset < HUGE_FROM_BYTES && offset + encoded->stored >= HUGE_FROM_BYTES)
		madvise(pack->data, PACK_TARGET_BYTES, MADV_HUGEPAGE);
	memcpy(pack->data + offset, encoded->bytes, encoded->stored);
	atomic_store_explicit(&pack->length, offset + encoded->stored, memory_order_release);
	*ret_place = packed->entry.place;
	return 0;
}

static void entry_encode(uint8_t *at, const struct packed *packed)
{
	const struct place *place = &packed->entry.place;

	memcpy(at, packed->entry.id.bytes, ID_BYTES);
	at[32] = (uint8_t)packed->entry.kind;
	at[33] = place->codec;
	at[34] = place->key;
	at[35] = 0;
	store_u64(at + 36, place->offset);
	store_u32(at + 44, place->stored);
	store_u32(at + 48, place->raw);
	memcpy(at + 52, packed->check, CHECK_BYTES);
}

/* Over header, table of contents, and the trailer before its hash. */
static int footer_hash(const uint8_t *header, const uint8_t *footer, size_t table_bytes,
                       struct id *ret_id)
{
	struct sha256 *hash;
	int error = sha256_new(&hash);

	if (error)
		return error;
	sha256_update(hash, header, PACK_HEADER_BYTES);
	sha256_update(hash, footer, table_bytes + 16);
	sha256_final(hash, ret_id);
	sha256_free(hash);
	return 0;
}

int pack_finish(struct pack *pack)
{
	uint32_t table = pack->length;
	size_t table_bytes = pack->count * PACK_ENTRY_BYTES;
	uint8_t *trailer = pack->data + table + table_bytes;
	struct id id;
	int error;

	if (pack->finished)
		return 0;
	for (size_t i = 0; i < pack->count; i++)
		entry_encode(pack->data + table + i * PACK_ENTRY_BYTES, &pack->entries[i]);
	store_u64(trailer, table);
	store_u32(trailer + 8, (uint32_t)pack->count);
	store_u32(trailer + 12, 0);
	error = footer_hash(pack->data, pack->data + table, table_bytes, &id);
	if (error)
		return error;
	memcpy(trailer + 16, id.bytes, ID_BYTES);
	memcpy(trailer + 48, trailer_magic, 8);
	pack->length = table + (uint32_t)(table_bytes + PACK_TRAILER_BYTES);
	pack->finished = true;
	return 0;
}

/* -- names -- */

void pack_hex(const uint8_t pack[PACK_ID_BYTES], char ret_hex[2 * PACK_ID_BYTES + 1])
{
	hex_encode(pack, PACK_ID_BYTES, ret_hex);
}

void pack_key(const uint8_t pack[PACK_ID_BYTES], char ret_key[PACK_KEY_BYTES + 1])
{
	memcpy(ret_key, "packs/", 6);
	pack_hex(pack, ret_key + 6);
}

/* -- checking -- */

static int damaged(struct message *message, const uint8_t pack[PACK_ID_BYTES], const char *what,
                   uint64_t offset)
{
	char hex[2 * PACK_ID_BYTES + 1];

	pack_hex(pack, hex);
	return fail(message, -ERR_CORRUPT, "pack %s is damaged at offset %llu: %s", hex,
	            (unsigned long long)offset, what);
}

int pack_header_check(const uint8_t header[PACK_HEADER_BYTES], const uint8_t pack[PACK_ID_BYTES],
                      struct message *message)
{
	char hex[2 * PACK_ID_BYTES + 1];
	unsigned version = header[8] | (unsigned)header[9] << 8;
	unsigned flags = header[10] | (unsigned)header[11] << 8;

	pack_hex(pack, hex);
	if (memcmp(header, header_magic, 8) != 0)
		return damaged(message, pack, "it does not start like a pack", 0);
	if (version != PACK_VERSION || flags != 0)
		return fail(message, -ERR_VERSION,
		            "pack %s has format version %u, flags %#x; this program knows version "
		            "%d: use a newer one",
		            hex, version, flags, PACK_VERSION);
	if (load_u32(header + 12) != 0)
		return damaged(message, pack, "reserved bytes are not zero", 12);
	if (memcmp(header + 16, pack, PACK_ID_BYTES) != 0)
		return damaged(message, pack, "it is another pack", 16);
	return 0;
}

static int entry_decode(struct reader *reader, const uint8_t pack[PACK_ID_BYTES],
                        struct packed *ret_packed)
{
	struct pack_entry *entry = &ret_packed->entry;
	const uint8_t *check;
	uint8_t reserved;

	memset(ret_packed, 0, sizeof(*ret_packed));
	read_id(reader, &entry->id);
	entry->kind = read_u8(reader);
	entry->place.codec = read_u8(reader);
	entry->place.key = read_u8(reader);
	reserved = read_u8(reader);
	entry->place.offset = read_u64(reader);
	entry->place.stored = read_u32(reader);
	entry->place.raw = read_u32(reader);
	check = read_bytes(reader, CHECK_BYTES);
	if (!check || reserved != 0 || entry->kind < RECORD_CHUNK || entry->kind > RECORD_COMMIT)
		return -ERR_CORRUPT;
	memcpy(entry->place.pack, pack, PACK_ID_BYTES);
	memcpy(ret_packed->check, check, CHECK_BYTES);
	return place_check(&entry->place);
}

/* What the end of a pack says; the table is not looked at yet. */
struct footer {
	uint64_t table; /* offset in the pack */
	uint32_t count;
};

static int trailer_decode(const uint8_t trailer[PACK_TRAILER_BYTES], uint64_t size,
                          const uint8_t pack[PACK_ID_BYTES], struct footer *ret_footer,
                          struct message *message)
{
	uint64_t table = load_u64(trailer);
	uint64_t count = load_u32(trailer + 8);

	if (memcmp(trailer + 48, trailer_magic, 8) != 0 || load_u32(trailer + 12) != 0)
		return damaged(message, pack, "it does not end like a pack",
		               size - PACK_TRAILER_BYTES);
	if (table < PACK_HEADER_BYTES || table > size ||
	    size - table != count * PACK_ENTRY_BYTES + PACK_TRAILER_BYTES)
		return damaged(message, pack, "its table of contents lies elsewhere",
		               size - PACK_TRAILER_BYTES);
	ret_footer->table = table;
	ret_footer->count = (uint32_t)count;
	return 0;
}

/* Decode and check the table: the records must fill the pack without gaps, and the hash agree. */
static int table_decode(const uint8_t header[PACK_HEADER_BYTES], const uint8_t *table,
                        const struct footer *footer, const uint8_t pack[PACK_ID_BYTES],
                        struct packed **ret_entries, struct message *message)
{
	CLEANUP(free_pointer) struct packed *entries = NULL;
	size_t table_bytes = (size_t)footer->count * PACK_ENTRY_BYTES;
	struct reader reader = reader_of(table, table_bytes);
	uint64_t offset = PACK_HEADER_BYTES;
	struct id id;
	int error = pack_header_check(header, pack, message);

	if (error)
		return error;
	error = footer_hash(header, table, table_bytes, &id);
	if (error)
		return fail(message, error, "hashing a table of contents");
	if (memcmp(id.bytes, table + table_bytes + 16, ID_BYTES) != 0)
		return damaged(message, pack, "its table of contents has another hash",
		               footer->table);
	entries = calloc((size_t)footer->count + 1, sizeof(*entries));
	if (!entries)
		return fail(message, -ERR_NO_MEMORY, "a table of %u records", footer->count);
	for (uint32_t i = 0; i < footer->count; i++) {
		if (entry_decode(&reader, pack, &entries[i]) ||
		    entries[i].entry.place.offset != offset)
			return damaged(message, pack, "its table of contents makes no sense",
			               footer->table + (uint64_t)i * PACK_ENTRY_BYTES);
		offset += entries[i].entry.place.stored;
	}
	if (offset != footer->table)
		return damaged(message, pack, "bytes that belong to no record", offset);
	*ret_entries = steal(&entries);
	return 0;
}

static int record_check(const struct packed *packed, const uint8_t *stored, uint8_t *raw)
{
	static const uint8_t zero[CHECK_BYTES];
	const struct pack_entry *entry = &packed->entry;
	uint8_t check[CHECK_BYTES] = {0};
	int error;

	/* Decoding may ignore bits that a compressor never sets: hash the stored bytes too. */
	if (entry->place.codec != CODEC_RAW)
		codec_check(stored, entry->place.stored, check);
	if (memcmp(entry->place.codec == CODEC_RAW ? zero : check, packed->check, CHECK_BYTES) != 0)
		return -ERR_CORRUPT;
	error = codec_decode(stored, &entry->place, raw);
	if (error)
		return error;
	return record_verify(entry->kind, &entry->id, raw, entry->place.raw);
}

static int get_pack(struct odb *odb, const uint8_t pack[PACK_ID_BYTES], uint64_t offset,
                    uint64_t length, struct buffer *ret_bytes, struct message *message)
{
	char key[PACK_KEY_BYTES + 1];

	pack_key(pack, key);
	buffer_clear(ret_bytes);
	return object_get(odb_store(odb), key, offset, length, ret_bytes, NULL, message);
}

static int verify_records(const struct buffer *bytes, const struct packed *entries, uint32_t count,
                          const uint8_t pack[PACK_ID_BYTES], struct message *message)
{
	CLEANUP(free_pointer) uint8_t *raw = NULL;
	uint32_t longest = 1;

	for (uint32_t i = 0; i < count; i++)
		if (entries[i].entry.place.raw > longest)
			longest = entries[i].entry.place.raw;
	raw = malloc(longest);
	if (!raw)
		return fail(message, -ERR_NO_MEMORY, "a record's memory");
	for (uint32_t i = 0; i < count; i++) {
		const struct place *place = &entries[i].entry.place;
		int error = record_check(&entries[i], bytes->data + place->offset, raw);

		if (error == -ERR_CORRUPT)
			return damaged(message, pack, "a record does not match its id",
			               place->offset);
		if (error)
			return fail(message, error, "verifying a record with codec %u, key slot %u",
			            place->codec, place->key);
	}
	return 0;
}

int odb_pack_verify(struct odb *odb, const uint8_t pack[PACK_ID_BYTES], pack_entry_fn *callback,
                    void *context, uint64_t *ret_records, struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = PACK_TARGET_BYTES + 1};
	CLEANUP(free_pointer) struct packed *entries = NULL;
	struct footer footer;
	int error = get_pack(odb, pack, 0, PACK_TARGET_BYTES + 1, &bytes, message);

	if (error)
		return error;
	if (bytes.length < PACK_HEADER_BYTES + PACK_TRAILER_BYTES)
		return damaged(message, pack, "it is cut short", bytes.length);
	if (bytes.length > PACK_TARGET_BYTES)
		return damaged(message, pack, "it is longer than any pack", PACK_TARGET_BYTES);
	error = pack_header_check(bytes.data, pack, message);
	if (!error)
		error = trailer_decode(bytes.data + bytes.length - PACK_TRAILER_BYTES, bytes.length,
		                       pack, &footer, message);
	if (!error)
		error = table_decode(bytes.data, bytes.data + footer.table, &footer, pack, &entries,
		                     message);
	if (!error)
		error = verify_records(&bytes, entries, footer.count, pack, message);
	if (!error && ret_records)
		*ret_records = footer.count;
	for (uint32_t i = 0; !error && callback && i < footer.count; i++)
		error = callback(context, &entries[i].entry);
	return error;
}

/* -- reading only the table of contents -- */

struct size_query {
	const char *key;
	uint64_t size;
	bool found;
};

static int size_found(void *context, const struct object_info *info)
{
	struct size_query *query = context;

	if (strcmp(info->key, query->key) != 0)
		return 0;
	query->size = info->size;
	query->found = true;
	return 1;
}

/* Read header and table (two or three small requests; the records stay unread). */
static int read_table(struct odb *odb, const uint8_t pack[PACK_ID_BYTES],
                      struct packed **ret_entries, uint32_t *ret_count, struct message *message)
{
	CLEANUP(buffer_release) struct buffer header = {0};
	CLEANUP(buffer_release) struct buffer end = {.limit = PACK_TARGET_BYTES};
	char key[PACK_KEY_BYTES + 1];
	struct size_query query = {.key = key};
	struct footer footer;
	uint64_t from;
	int error;

	pack_key(pack, key);
	error = object_list(odb_store(odb), key, size_found, &query, message);
	if (error < 0)
		return error;
	if (!query.found)
		return fail(message, -ERR_NOT_FOUND, "%s is not in the store", key);
	if (query.size < PACK_HEADER_BYTES + PACK_TRAILER_BYTES || query.size > PACK_TARGET_BYTES)
		return damaged(message, pack, "no pack has this size", query.size);
	error = get_pack(odb, pack, 0, PACK_HEADER_BYTES, &header, message);
	from = query.size > (64u << 10) ? query.size - (64u << 10) : 0;
	if (!error)
		error = get_pack(odb, pack, from, query.size - from, &end, message);
	if (!error && (header.length != PACK_HEADER_BYTES || end.length != query.size - from))
		error = damaged(message, pack, "it is cut short", from + end.length);
	if (!error)
		error = pack_header_check(header.data, pack, message);
	if (!error)
		error = trailer_decode(end.data + end.length - PACK_TRAILER_BYTES, query.size, pack,
		                       &footer, message);
	if (!error && footer.table < from) {
		from = footer.table;
		error = get_pack(odb, pack, from, query.size - from, &end, message);
		if (!error && end.length != query.size - from)
			error = damaged(message, pack, "it is cut short", from + end.length);
	}
	if (error)
		return error;
	*ret_count = footer.count;
	return table_decode(header.data, end.data + (footer.table - from), &footer, pack,
	                    ret_entries, message);
}

int odb_pack_entries(struct odb *odb, const uint8_t pack[PACK_ID_BYTES], pack_entry_fn *callback,
                     void *context, struct message *message)
{
	CLEANUP(free_pointer) struct packed *entries = NULL;
	uint32_t count = 0;
	int result = read_table(odb, pack, &entries, &count, message);

	for (uint32_t i = 0; !result && i < count; i++)
		result = callback(context, &entries[i].entry);
	return result;
}

/* -- listing and removing -- */

struct list_query {
	pack_list_fn *callback;
	void *context;
};

static int list_found(void *context, const struct object_info *info)
{
	const struct list_query *query = context;
	uint8_t pack[PACK_ID_BYTES];

	if (strlen(info->key) != PACK_KEY_BYTES ||
	    hex_decode(info->key + 6, sizeof(pack) * 2, pack))
		return 0;
	return query->callback(query->context, pack, info->size, info->modified_ms);
}

int odb_pack_list(struct odb *odb, pack_list_fn *callback, void *context, struct message *message)
{
	struct list_query query = {.callback = callback, .context = context};

	return object_list(odb_store(odb), "packs/", list_found, &query, message);
}

static int compare_packs(const void *a, const void *b)
{
	return memcmp(a, b, PACK_ID_BYTES);
}

int odb_packs_remove(struct odb *odb, const uint8_t (*packs)[PACK_ID_BYTES], size_t count,
                     struct message *message)
{
	CLEANUP(free_pointer) char(*names)[PACK_KEY_BYTES + 1] = calloc(count + 1, sizeof(*names));
	CLEANUP(free_pointer) const char **keys = calloc(count + 1, sizeof(*keys));
	CLEANUP(free_pointer) uint8_t(*sorted)[PACK_ID_BYTES] = calloc(count + 1, sizeof(*sorted));

	if (!names || !keys || !sorted)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	if (count > 0)
		memcpy(sorted, packs, count * sizeof(*sorted));
	qsort(sorted, count, PACK_ID_BYTES, compare_packs);
	for (size_t i = 0; i < count; i++) {
		odb_pack_forget(odb, sorted[i]);
		pack_key(sorted[i], names[i]);
		keys[i] = names[i];
	}
	/* The index first: an entry must never outlive its pack. It is searched rather than the
	 * packs asked what they hold, which would be some requests for each. */
	index_drop_packs(odb_index(odb), (const uint8_t(*)[PACK_ID_BYTES])sorted, count);
	return object_remove_many(odb_store(odb), keys, count, message);
}

int odb_pack_remove(struct odb *odb, const uint8_t pack[PACK_ID_BYTES], struct message *message)
{
	return odb_packs_remove(odb, (const uint8_t(*)[PACK_ID_BYTES])pack, 1, message);
}
