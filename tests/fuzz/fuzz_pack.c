/*
 * Packs of arbitrary bytes: checking, listing, reading by what the table of contents says, and
 * removing. The first byte chooses: the bytes as they are, or with header, hashes and magic set
 * right, which a fuzzer cannot guess.
 */
#include "store/pack.h"

static const uint8_t pack_id[PACK_ID_BYTES] = "0123456789abcde";

static int read_entry(void *context, const struct pack_entry *entry)
{
	struct odb *odb = context;
	struct pointer pointer = {.id = entry->id, .place = entry->place};
	struct record *record;
	uint8_t *out;

	if (entry->kind != RECORD_CHUNK) {
		if (odb_read_record(odb, entry->kind, &pointer, &record, NULL) == 0)
			record_unref(record);
		return 0;
	}
	out = malloc(entry->place.raw);
	if (out)
		odb_read_chunks(odb, &pointer, 1, &out, NULL);
	free(out);
	return 0;
}

/* `pack` has room for trailer; the last `table_bytes` of `length` are the table of contents. */
static size_t make_right(uint8_t *pack, size_t length, size_t table_bytes)
{
	CLEANUP(buffer_release) struct buffer hashed = {0};
	uint8_t *trailer = pack + length;
	struct id id;

	memcpy(pack, "LAKEPACK\1\0\0\0\0\0\0\0", 16);
	memcpy(pack + 16, pack_id, PACK_ID_BYTES);
	store_u64(trailer, length - table_bytes);
	store_u32(trailer + 8, (uint32_t)(table_bytes / PACK_ENTRY_BYTES));
	store_u32(trailer + 12, 0);
	buffer_append(&hashed, pack, PACK_HEADER_BYTES);
	buffer_append(&hashed, trailer - table_bytes, table_bytes + 16);
	sha256_of(hashed.data, hashed.length, &id);
	memcpy(trailer + 16, id.bytes, ID_BYTES);
	memcpy(trailer + 48, "LAKEPEND", 8);
	return length + PACK_TRAILER_BYTES;
}

static void try_pack(const uint8_t *bytes, size_t length)
{
	char key[PACK_KEY_BYTES + 1];
	struct object_store *store;
	struct odb *odb;
	struct message message;
	uint64_t records;

	if (object_memory_open(&store))
		return;
	pack_key(pack_id, key);
	if (odb_new(store, NULL, &odb) == 0) {
		object_put(store, key, bytes, length, NULL);
		odb_pack_verify(odb, pack_id, NULL, NULL, &records, &message);
		odb_pack_entries(odb, pack_id, read_entry, odb, &message);
		odb_pack_remove(odb, pack_id, &message);
		odb_free(odb);
	}
	object_store_free(store);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *pack;
	size_t entries;

	if (size < 1)
		return 0;
	pack = malloc(PACK_HEADER_BYTES + size + PACK_TRAILER_BYTES);
	if (!pack)
		return 0;
	if (data[0] == 0) {
		try_pack(data + 1, size - 1);
	} else {
		memcpy(pack + PACK_HEADER_BYTES, data + 1, size - 1);
		entries = (size - 1) / PACK_ENTRY_BYTES;
		entries = entries < data[0] ? entries : data[0];
		try_pack(pack, make_right(pack, PACK_HEADER_BYTES + size - 1,
		                          entries * PACK_ENTRY_BYTES));
	}
	free(pack);
	return 0;
}
