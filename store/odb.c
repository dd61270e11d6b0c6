/*
 * odb — hides where a record's bytes come from: the cache of decoded records, a pack still in
 * memory, or a range of a stored object; and the index that deduplication asks.
 */
#include <assert.h>
#include <stdio.h>

#include "store/condemned.h"
#include "store/pack.h"

#define LOOK_AGAIN_MS (10 * 60 * 1000) /* well below any grace period of gc */
#define CACHE_BYTES_DEFAULT (64u << 20)
#define LEVEL_DEFAULT 1
/* kv promises room for transactions of a quarter of its map; every random key may cost a page. */
#define INDEX_BATCH 2000
#define INDEX_TABLE 0

const struct pointer pointer_none;

/* By place too: another copy of a record may know better where its children lie now. */
struct cached_key {
	struct id id;
	uint8_t pack[PACK_ID_BYTES];
	uint64_t offset;
	uint64_t kind;
};

struct cached {
	struct record record; /* first: what callers hold */
	atomic_uint references;
	struct cached_key key;
	size_t bytes; /* of memory, for the limit */
	struct cached *prev, *next;
	UT_hash_handle hh;
	uint8_t raw[];
};

struct present {
	uint8_t pack[PACK_ID_BYTES];
	UT_hash_handle hh;
	int64_t due_ms; /* monotonic: when to look again */
};

struct odb {
	struct object_store *store;
	struct kv *index; /* or NULL */
	int level;
	size_t cache_bytes_max;
	/* Guards all below: short, never held across I/O. After a packer's lock. */
	pthread_mutex_t lock;
	struct cached *cache;  /* by id and place */
	struct cached *recent; /* least recently used first */
	size_t cache_bytes;
	struct pack *packs;              /* in memory, by pack id */
	struct present *present;         /* packs known to have been in the store a while ago */
	struct condemned_list condemned; /* packs not to rely on any more */
	bool condemned_known;            /* and whether that list could be read */
	int64_t condemned_due_ms;        /* monotonic: when to read it again; 0: now */
	uint64_t reads, read_bytes, cache_hits, cache_misses;
};

int odb_new(struct object_store *store, const struct odb_options *options, struct odb **ret_odb)
{
	struct odb *odb = calloc(1, sizeof(*odb));

	if (!odb)
		return -ERR_NO_MEMORY;
	odb->store = store;
	odb->index = options ? options->index : NULL;
	odb->cache_bytes_max = options && options->cache_bytes_max ? options->cache_bytes_max
	                                                           : CACHE_BYTES_DEFAULT;
	odb->level =
	        options && options->compression_level ? options->compression_level : LEVEL_DEFAULT;
	pthread_mutex_init(&odb->lock, NULL);
	*ret_odb = odb;
	return 0;
}

void odb_free(struct odb *odb)
{
	struct cached *cached, *next_cached;
	struct present *present, *next_present;

	if (!odb)
		return;
	assert(!odb->packs); /* every packer must be gone */
	HASH_ITER (hh, odb->cache, cached, next_cached) {
		HASH_DEL(odb->cache, cached);
		record_unref(&cached->record);
	}
	HASH_ITER (hh, odb->present, present, next_present) {
		HASH_DEL(odb->present, present);
		free(present);
	}
	condemned_release(&odb->condemned);
	pthread_mutex_destroy(&odb->lock);
	free(odb);
}

struct object_store *odb_store(struct odb *odb)
{
	return odb->store;
}

int odb_level(const struct odb *odb)
{
	return odb->level;
}

struct kv *odb_index(const struct odb *odb)
{
	return odb->index;
}

void odb_stats(struct odb *odb, struct odb_stats *ret_stats)
{
	pthread_mutex_lock(&odb->lock);
	*ret_stats = (struct odb_stats){
	        .reads = odb->reads,
	        .read_bytes = odb->read_bytes,
	        .cache_hits = odb->cache_hits,
	        .cache_misses = odb->cache_misses,
	        .cache_bytes = odb->cache_bytes,
	};
	pthread_mutex_unlock(&odb->lock);
}

/* -- places -- */

void place_encode(struct buffer *buffer, const struct place *place)
{
	buffer_append(buffer, place->pack, PACK_ID_BYTES);
	buffer_u64(buffer, place->offset);
	buffer_u32(buffer, place->stored);
	buffer_u32(buffer, place->raw);
	buffer_u8(buffer, place->codec);
	buffer_u8(buffer, place->key);
	buffer_u16(buffer, 0);
}

void place_decode(struct reader *reader, struct place *ret_place)
{
	static const uint8_t none[PLACE_ENCODED_BYTES];
	struct place place = {0};
	const uint8_t *bytes = read_bytes(reader, PLACE_ENCODED_BYTES);

	memset(ret_place, 0, sizeof(*ret_place));
	/* All zero is the place of nothing. */
	if (!bytes || memcmp(bytes, none, PLACE_ENCODED_BYTES) == 0)
		return;
	memcpy(place.pack, bytes, PACK_ID_BYTES);
	place.offset = load_u64(bytes + 16);
	place.stored = load_u32(bytes + 24);
	place.raw = load_u32(bytes + 28);
	place.codec = bytes[32];
	place.key = bytes[33];
	if (bytes[34] || bytes[35] || place_check(&place))
		reader->failed = true;
	else
		*ret_place = place;
}

/* -- packs in memory, packs known to be there -- */

int odb_pack_register(struct odb *odb, struct pack *pack)
{
	bool added;

	pthread_mutex_lock(&odb->lock);
	HASH_ADD(hh, odb->packs, id, PACK_ID_BYTES, pack);
	added = pack->hh.tbl != NULL;
	if (added)
		atomic_fetch_add(&pack->references, 1);
	pthread_mutex_unlock(&odb->lock);
	return added ? 0 : -ERR_NO_MEMORY;
}

void odb_pack_unregister(struct odb *odb, struct pack *pack)
{
	pthread_mutex_lock(&odb->lock);
	HASH_DEL(odb->packs, pack);
	pthread_mutex_unlock(&odb->lock);
	pack_unref(pack);
}

static void present_add(struct odb *odb, const uint8_t pack[PACK_ID_BYTES])
{
	struct present *present = calloc(1, sizeof(*present));
	struct present *there;

	if (!present)
		return; /* it will be looked for again */
	memcpy(present->pack, pack, PACK_ID_BYTES);
	present->due_ms = clock_monotonic_ms() + LOOK_AGAIN_MS;
	pthread_mutex_lock(&odb->lock);
	HASH_FIND(hh, odb->present, pack, PACK_ID_BYTES, there);
	if (there)
		there->due_ms = present->due_ms;
	if (!there)
		HASH_ADD(hh, odb->present, pack, PACK_ID_BYTES, present);
	if (there || !present->hh.tbl)
		free(present);
	pthread_mutex_unlock(&odb->lock);
}

void odb_pack_durable(struct odb *odb, struct pack *pack)
{
	if (odb->index)
		present_add(odb, pack->id);
	odb_pack_unregister(odb, pack);
}

void odb_pack_forget(struct odb *odb, const uint8_t pack[PACK_ID_BYTES])
{
	struct present *present;

	pthread_mutex_lock(&odb->lock);
	HASH_FIND(hh, odb->present, pack, PACK_ID_BYTES, present);
	if (present)
		HASH_DEL(odb->present, present);
	pthread_mutex_unlock(&odb->lock);
	free(present);
}

/* 0, -ERR_NOT_FOUND, or an error that says nothing about the pack. */
static int pack_is_present(struct odb *odb, const uint8_t pack[PACK_ID_BYTES])
{
	CLEANUP(buffer_release) struct buffer header = {0};
	char key[PACK_KEY_BYTES + 1];
	struct present *present;
	bool known, doomed;
	int error;

	pthread_mutex_lock(&odb->lock);
	doomed = !odb->condemned_known || condemned_find(&odb->condemned, pack);
	HASH_FIND(hh, odb->present, pack, PACK_ID_BYTES, present);
	known = present && clock_monotonic_ms() < present->due_ms;
	pthread_mutex_unlock(&odb->lock);
	if (doomed)
		return -ERR_REFUSED;
	if (known)
		return 0;
	pack_key(pack, key);
	error = object_get(odb->store, key, 0, PACK_HEADER_BYTES, &header, NULL, NULL);
	if (error)
		return error;
	if (header.length != PACK_HEADER_BYTES || pack_header_check(header.data, pack, NULL))
		return -ERR_NOT_FOUND;
	present_add(odb, pack);
	return 0;
}

/* gc lists packs a grace period before it removes them. Whoever reads the list more often than
 * that, and forgets within it what was seen in the store, never relies on a pack that is going.
 * A list that cannot be read vouches for nothing: no deduplication until it can. */
void odb_refresh_condemned(struct odb *odb)
{
	struct condemned_list list = {0};
	int64_t now_ms = clock_monotonic_ms();
	bool due;

	pthread_mutex_lock(&odb->lock);
	due = now_ms >= odb->condemned_due_ms;
	pthread_mutex_unlock(&odb->lock);
	if (!due || !odb->index)
		return;
	bool known = condemned_read(odb->store, &list, NULL) == 0;
	pthread_mutex_lock(&odb->lock);
	struct condemned_list old = odb->condemned;
	odb->condemned = list;
	odb->condemned_known = known;
	odb->condemned_due_ms = known ? now_ms + LOOK_AGAIN_MS : 0;
	pthread_mutex_unlock(&odb->lock);
	condemned_release(&old);
}

/* -- the index: id -> kind u8, place, for all but chunks the first bytes of the seal, check -- */

/* A bit that falls over in the index must not send a commit to a place where its bytes are not. */
static int index_check(const struct id *id, const void *value, size_t length,
                       uint8_t ret_check[CHECK_BYTES])
{
	uint8_t bytes[ID_BYTES + 1 + PLACE_ENCODED_BYTES + CHECK_BYTES];

	if (length > sizeof(bytes) - ID_BYTES)
		return -ERR_CORRUPT;
	memcpy(bytes, id->bytes, ID_BYTES);
	memcpy(bytes + ID_BYTES, value, length);
	codec_check(bytes, ID_BYTES + length, ret_check);
	return 0;
}

static int index_value_decode(const struct id *id, struct span value, enum record_kind kind,
                              const uint8_t seal[CHECK_BYTES], struct place *ret_place)
{
	struct reader reader;
	const uint8_t *found_seal;
	uint8_t check[CHECK_BYTES];
	size_t length;

	if (value.length < CHECK_BYTES)
		return -ERR_NOT_FOUND;
	length = value.length - CHECK_BYTES;
	reader = reader_of(value.data, length);
	if (index_check(id, value.data, length, check) ||
	    memcmp(check, (const uint8_t *)value.data + length, CHECK_BYTES) != 0 ||
	    read_u8(&reader) != (uint8_t)kind)
		return -ERR_NOT_FOUND;
	place_decode(&reader, ret_place);
	found_seal = kind == RECORD_CHUNK ? seal : read_bytes(&reader, CHECK_BYTES);
	if (reader_finish(&reader) || memcmp(found_seal, seal, CHECK_BYTES) != 0)
		return -ERR_NOT_FOUND;
	return ret_place->raw ? 0 : -ERR_NOT_FOUND;
}

bool odb_index_find(struct odb *odb, const struct id *id, enum record_kind kind,
                    const uint8_t seal[CHECK_BYTES], struct place *ret_place)
{
	struct kv_txn *txn;
	struct place place;
	struct span value;
	int error;

	if (!odb->index || kv_begin(odb->index, false, &txn))
		return false;
	error = kv_get(txn, INDEX_TABLE, id->bytes, ID_BYTES, &value);
	if (!error)
		error = index_value_decode(id, value, kind, seal, &place);
	kv_abort(txn);
	if (error)
		return false;
	error = pack_is_present(odb, place.pack);
	if (error == -ERR_NOT_FOUND) {
		struct packed packed = {.entry.id = *id};

		odb_index_drop(odb, place.pack, &packed, 1);
	}
	if (error)
		return false;
	*ret_place = place;
	return true;
}

static int index_put(struct kv_txn *txn, const struct packed *packed)
{
	CLEANUP(buffer_release) struct buffer value = {0};
	uint8_t check[CHECK_BYTES];

	buffer_u8(&value, (uint8_t)packed->entry.kind);
	place_encode(&value, &packed->entry.place);
	if (packed->entry.kind != RECORD_CHUNK)
		buffer_append(&value, packed->seal, CHECK_BYTES);
	if (buffer_check(&value) || index_check(&packed->entry.id, value.data, value.length, check))
		return -ERR_NO_MEMORY;
	buffer_append(&value, check, CHECK_BYTES);
	if (buffer_check(&value))
		return -ERR_NO_MEMORY;
	return kv_put(txn, INDEX_TABLE, packed->entry.id.bytes, ID_BYTES, value.data, value.length);
}

void odb_index_enter(struct odb *odb, const struct packed *entries, size_t count)
{
	for (size_t start = 0; odb->index && start < count; start += INDEX_BATCH) {
		struct kv_txn *txn;
		int error = kv_begin(odb->index, true, &txn);

		if (error)
			return;
		for (size_t i = start; !error && i < count && i < start + INDEX_BATCH; i++)
			error = index_put(txn, &entries[i]);
		if (error)
			kv_abort(txn);
		else
			error = kv_commit(txn);
		if (error)
			return;
	}
}

static bool index_points_into(struct span value, const uint8_t pack[PACK_ID_BYTES])
{
	return value.length > PACK_ID_BYTES &&
	       memcmp((const uint8_t *)value.data + 1, pack, PACK_ID_BYTES) == 0;
}

static void index_drop_batch(struct odb *odb, const uint8_t pack[PACK_ID_BYTES],
                             const struct packed *entries, size_t count)
{
	struct kv_txn *txn;
	int error = kv_begin(odb->index, true, &txn);

	if (error)
		return;
	for (size_t i = 0; !error && i < count; i++) {
		const struct id *id = &entries[i].entry.id;
		struct span value;

		error = kv_get(txn, INDEX_TABLE, id->bytes, ID_BYTES, &value);
		if (!error && index_points_into(value, pack))
			error = kv_delete(txn, INDEX_TABLE, id->bytes, ID_BYTES);
		if (error == -ERR_NOT_FOUND)
			error = 0;
	}
	if (error)
		kv_abort(txn);
	else
		kv_commit(txn);
}

/* Drop at most INDEX_BATCH entries that point into the pack. Returns whether there may be more. */
static bool index_drop_some(struct odb *odb, const uint8_t pack[PACK_ID_BYTES])
{
	struct kv_cursor *cursor = NULL;
	struct span key, value;
	struct kv_txn *txn;
	size_t dropped = 0;
	int error;

	if (kv_begin(odb->index, true, &txn))
		return false;
	error = kv_seek(txn, INDEX_TABLE, NULL, 0, &cursor);
	while (!error && dropped < INDEX_BATCH) {
		uint8_t copy[KV_KEY_MAX];

		error = kv_next(cursor, &key, &value);
		if (error || !index_points_into(value, pack) || key.length > sizeof(copy))
			continue;
		memcpy(copy, key.data, key.length);
		error = kv_delete(txn, INDEX_TABLE, copy, key.length);
		dropped++;
	}
	kv_cursor_free(cursor);
	if (error && error != -ERR_NOT_FOUND) {
		kv_abort(txn);
		return false;
	}
	return kv_commit(txn) == 0 && !error;
}

void odb_index_drop(struct odb *odb, const uint8_t pack[PACK_ID_BYTES],
                    const struct packed *entries, size_t count)
{
	if (!odb->index)
		return;
	for (size_t start = 0; entries && start < count; start += INDEX_BATCH)
		index_drop_batch(odb, pack, entries + start,
		                 count - start < INDEX_BATCH ? count - start : INDEX_BATCH);
	while (!entries && index_drop_some(odb, pack))
		;
}

/* -- reading -- */

/* The pack when it is in memory, with a reference; else NULL. */
static struct pack *pack_in_memory(struct odb *odb, const uint8_t id[PACK_ID_BYTES])
{
	struct pack *pack;

	pthread_mutex_lock(&odb->lock);
	HASH_FIND(hh, odb->packs, id, PACK_ID_BYTES, pack);
	if (pack)
		atomic_fetch_add(&pack->references, 1);
	pthread_mutex_unlock(&odb->lock);
	return pack;
}

static int place_fail(struct message *message, const struct place *place, int error)
{
	char hex[2 * PACK_ID_BYTES + 1];
	unsigned long long offset = place->offset;

	pack_hex(place->pack, hex);
	switch (error) {
	case -ERR_CORRUPT:
		return fail(message, error, "pack %s is damaged at offset %llu (%u bytes)", hex,
		            offset, place->stored);
	case -ERR_NOT_FOUND:
		return fail(message, error,
		            "pack %s is missing from the store (needed: offset "
		            "%llu)",
		            hex, offset);
	case -ERR_VERSION:
		return fail(message, error,
		            "pack %s, offset %llu: stored with codec %u, key slot %u, which this "
		            "program does not know: use a newer one",
		            hex, offset, place->codec, place->key);
	case -ERR_NO_MEMORY:
		return fail(message, error, "no memory to read pack %s, offset %llu", hex, offset);
	default:
		return fail_context(message, error, "reading pack %s, offset %llu", hex, offset);
	}
}

/* Append stored bytes [offset, offset+length) of a pack; fewer when it ends before. */
static int fetch(struct odb *odb, const uint8_t id[PACK_ID_BYTES], uint64_t offset, uint64_t length,
                 struct buffer *ret_bytes, struct message *message)
{
	struct pack *pack = pack_in_memory(odb, id);
	char key[PACK_KEY_BYTES + 1];
	size_t before = ret_bytes->length;
	int error;

	if (pack) {
		uint64_t end = atomic_load_explicit(&pack->length, memory_order_acquire);

		end = offset + length < end ? offset + length : end;
		if (offset < end)
			buffer_append(ret_bytes, pack->data + offset, end - offset);
		pack_unref(pack);
		return buffer_check(ret_bytes);
	}
	pack_key(id, key);
	error = object_get(odb->store, key, offset, length, ret_bytes, NULL, message);
	pthread_mutex_lock(&odb->lock);
	odb->reads++;
	odb->read_bytes += ret_bytes->length - before;
	pthread_mutex_unlock(&odb->lock);
	return error;
}

/* Read one record, decode it to `out` (place.raw bytes) and verify it; once more when damaged. */
static int read_one(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                    uint8_t *out, struct message *message)
{
	CLEANUP(buffer_release) struct buffer stored = {.limit = RECORD_RAW_MAX};
	const struct place *place = &pointer->place;
	int error = -ERR_CORRUPT;

	for (int attempt = 0; attempt < 2 && error == -ERR_CORRUPT; attempt++) {
		buffer_clear(&stored);
		error = fetch(odb, place->pack, place->offset, place->stored, &stored, message);
		if (!error && stored.length != place->stored)
			error = -ERR_CORRUPT;
		if (!error)
			error = codec_decode(stored.data, place, out);
		if (!error)
			error = record_verify(kind, &pointer->id, out, place->raw);
	}
	return error ? place_fail(message, place, error) : 0;
}

/* -- the cache of records -- */

static struct cached *cached_of(struct record *record)
{
	return (struct cached *)(void *)record;
}

struct record *record_ref(struct record *record)
{
	atomic_fetch_add(&cached_of(record)->references, 1);
	return record;
}

void record_unref(struct record *record)
{
	if (record && atomic_fetch_sub(&cached_of(record)->references, 1) == 1)
		free(cached_of(record));
}

static struct cached_key cache_key(enum record_kind kind, const struct pointer *pointer)
{
	struct cached_key key = {.id = pointer->id, .offset = pointer->place.offset, .kind = kind};

	memcpy(key.pack, pointer->place.pack, PACK_ID_BYTES);
	return key;
}

static struct cached *cache_find(struct odb *odb, enum record_kind kind,
                                 const struct pointer *pointer)
{
	struct cached_key key = cache_key(kind, pointer);
	struct cached *cached;

	pthread_mutex_lock(&odb->lock);
	HASH_FIND(hh, odb->cache, &key, sizeof(key), cached);
	if (cached) {
		DL_DELETE(odb->recent, cached);
		DL_APPEND(odb->recent, cached);
		record_ref(&cached->record);
		odb->cache_hits++;
	} else {
		odb->cache_misses++;
	}
	pthread_mutex_unlock(&odb->lock);
	return cached;
}

/* Under the lock. */
static void cache_drop(struct odb *odb, struct cached *cached)
{
	HASH_DEL(odb->cache, cached);
	DL_DELETE(odb->recent, cached);
	odb->cache_bytes -= cached->bytes;
	record_unref(&cached->record);
}

static void cache_add(struct odb *odb, struct cached *cached)
{
	struct cached *there;

	if (cached->bytes > odb->cache_bytes_max / 4)
		return;
	pthread_mutex_lock(&odb->lock);
	HASH_FIND(hh, odb->cache, &cached->key, sizeof(cached->key), there);
	if (!there) {
		HASH_ADD(hh, odb->cache, key, sizeof(cached->key), cached);
		if (cached->hh.tbl) {
			record_ref(&cached->record);
			DL_APPEND(odb->recent, cached);
			odb->cache_bytes += cached->bytes;
		}
		while (odb->cache_bytes > odb->cache_bytes_max)
			cache_drop(odb, odb->recent);
	}
	pthread_mutex_unlock(&odb->lock);
}

int odb_read_record(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                    struct record **ret_record, struct message *message)
{
	struct cached *cached = cache_find(odb, kind, pointer);
	size_t raw = pointer->place.raw;
	int error;

	assert(kind >= RECORD_LIST && kind <= RECORD_COMMIT);
	if (cached) {
		*ret_record = &cached->record;
		return 0;
	}
	if (place_check(&pointer->place))
		return place_fail(message, &pointer->place, -ERR_CORRUPT);
	cached = calloc(1, sizeof(*cached) + raw);
	if (!cached)
		return place_fail(message, &pointer->place, -ERR_NO_MEMORY);
	atomic_init(&cached->references, 1);
	cached->key = cache_key(kind, pointer);
	cached->bytes = sizeof(*cached) + raw;
	error = read_one(odb, kind, pointer, cached->raw, message);
	if (error) {
		free(cached);
		return error;
	}
	record_parts(cached->raw, raw, &cached->record);
	cache_add(odb, cached);
	*ret_record = &cached->record;
	return 0;
}

/* -- chunks -- */

struct chunk_read {
	const struct pointer *pointer;
	uint8_t *out;
	size_t at, index; /* where it lies in what is borrowed; in the caller's array */
};

static int chunk_read_compare(const void *a, const void *b)
{
	const struct place *left = &((const struct chunk_read *)a)->pointer->place;
	const struct place *right = &((const struct chunk_read *)b)->pointer->place;
	int order = memcmp(left->pack, right->pack, PACK_ID_BYTES);

	if (order)
		return order;
	return (left->offset > right->offset) - (left->offset < right->offset);
}

/* How many of the sorted reads one request serves. */
static size_t run_length(const struct chunk_read *reads, size_t count, uint64_t *ret_end)
{
	const struct place *first = &reads[0].pointer->place;
	uint64_t end = first->offset + first->stored;
	size_t length = 1;

	for (; length < count; length++) {
		const struct place *place = &reads[length].pointer->place;
		uint64_t place_end = place->offset + place->stored;

		if (memcmp(place->pack, first->pack, PACK_ID_BYTES) != 0 ||
		    place->offset > end + ODB_GAP_BYTES_MAX ||
		    place_end > first->offset + ODB_RUN_BYTES_MAX)
			break;
		if (place_end > end)
			end = place_end;
	}
	*ret_end = end;
	return length;
}

static int read_run(struct odb *odb, const struct chunk_read *reads, size_t count, uint64_t end,
                    struct buffer *stored, struct message *message)
{
	const struct place *first = &reads[0].pointer->place;
	int error;

	buffer_clear(stored);
	error = buffer_reserve(stored, end - first->offset);
	if (!error)
		error = fetch(odb, first->pack, first->offset, end - first->offset, stored,
		              message);
	if (error)
		return place_fail(message, first, error);
	for (size_t i = 0; i < count; i++) {
		const struct pointer *pointer = reads[i].pointer;
		const struct place *place = &pointer->place;
		size_t at = place->offset - first->offset;

		error = -ERR_CORRUPT;
		if (at + place->stored <= stored->length)
			error = codec_decode(stored->data + at, place, reads[i].out);
		if (!error)
			error = record_verify(RECORD_CHUNK, &pointer->id, reads[i].out, place->raw);
		if (error == -ERR_CORRUPT)
			error = read_one(odb, RECORD_CHUNK, pointer, reads[i].out, message);
		else if (error)
			place_fail(message, place, error);
		if (error)
			return error;
	}
	return 0;
}

int odb_read_chunks(struct odb *odb, const struct pointer *pointers, size_t count,
                    uint8_t *const *out, struct message *message)
{
	CLEANUP(buffer_release)
	struct buffer stored = {.limit = ODB_RUN_BYTES_MAX + RECORD_RAW_MAX};
	CLEANUP(free_pointer) struct chunk_read *reads = calloc(count + 1, sizeof(*reads));
	int error = 0;

	if (!reads)
		return fail(message, -ERR_NO_MEMORY, "reading %zu chunks", count);
	for (size_t i = 0; i < count; i++) {
		if (place_check(&pointers[i].place))
			return place_fail(message, &pointers[i].place, -ERR_CORRUPT);
		reads[i] = (struct chunk_read){.pointer = &pointers[i], .out = out[i]};
	}
	qsort(reads, count, sizeof(*reads), chunk_read_compare);
	for (size_t start = 0, length; !error && start < count; start += length) {
		uint64_t end;

		length = run_length(reads + start, count - start, &end);
		error = read_run(odb, reads + start, length, end, &stored, message);
	}
	return error;
}

/* -- chunks where they were received -- */

static bool is_stored_raw(const struct place *place)
{
	return place->codec == CODEC_RAW && place->key == 0;
}

/* The memory that what the sorted reads borrow can take. */
static size_t borrow_bytes(const struct chunk_read *reads, size_t count)
{
	size_t bytes = 0;

	for (size_t start = 0, length; start < count; start += length) {
		uint64_t end;

		length = run_length(reads + start, count - start, &end);
		bytes += end - reads[start].pointer->place.offset;
	}
	for (size_t i = 0; i < count; i++)
		if (!is_stored_raw(&reads[i].pointer->place))
			bytes += reads[i].pointer->place.raw;
	return bytes;
}

/* One chunk of a run whose bytes lie in [base, base + got) of the scratch memory. */
static int borrow_one(struct odb *odb, struct chunk_read *read, uint64_t run_offset, size_t base,
                      size_t got, struct buffer *scratch, struct message *message)
{
	const struct pointer *pointer = read->pointer;
	const struct place *place = &pointer->place;
	size_t from = place->offset - run_offset;
	bool here = from + place->stored <= got;
	int error = here ? 0 : -ERR_CORRUPT;

	read->at = base + from;
	if (!is_stored_raw(place)) {
		error = buffer_reserve(scratch, place->raw);
		if (error)
			return place_fail(message, place, error);
		read->at = scratch->length;
		scratch->length += place->raw;
		error = here ? codec_decode(scratch->data + base + from, place,
		                            scratch->data + read->at)
		             : -ERR_CORRUPT;
	}
	if (!error)
		error = record_verify(RECORD_CHUNK, &pointer->id, scratch->data + read->at,
		                      place->raw);
	if (error == -ERR_CORRUPT)
		return read_one(odb, RECORD_CHUNK, pointer, scratch->data + read->at, message);
	return error ? place_fail(message, place, error) : 0;
}

static int borrow_run(struct odb *odb, struct chunk_read *reads, size_t count, uint64_t end,
                      struct buffer *scratch, struct message *message)
{
	const struct place *first = &reads[0].pointer->place;
	size_t base = scratch->length, wanted = end - first->offset;
	int error = fetch(odb, first->pack, first->offset, wanted, scratch, message);

	if (error)
		return place_fail(message, first, error);
	size_t got = scratch->length - base < wanted ? scratch->length - base : wanted;
	/* What did not come is asked for again, one by one, into its place. */
	error = buffer_reserve(scratch, wanted - got);
	if (error)
		return place_fail(message, first, error);
	scratch->length = base + wanted;
	for (size_t i = 0; !error && i < count; i++)
		error = borrow_one(odb, &reads[i], first->offset, base, got, scratch, message);
	return error;
}

int odb_borrow_chunks(struct odb *odb, const struct pointer *pointers, size_t count,
                      struct buffer *scratch, const uint8_t **ret_bytes, struct message *message)
{
	CLEANUP(free_pointer) struct chunk_read *reads = calloc(count + 1, sizeof(*reads));
	int error = 0;

	buffer_clear(scratch);
	if (!reads)
		return fail(message, -ERR_NO_MEMORY, "reading %zu chunks", count);
	for (size_t i = 0; i < count; i++) {
		if (place_check(&pointers[i].place))
			return place_fail(message, &pointers[i].place, -ERR_CORRUPT);
		reads[i] = (struct chunk_read){.pointer = &pointers[i], .index = i};
	}
	qsort(reads, count, sizeof(*reads), chunk_read_compare);
	if (buffer_reserve(scratch, borrow_bytes(reads, count)))
		return fail(message, -ERR_NO_MEMORY, "no memory for %zu chunks", count);
	for (size_t start = 0, length; !error && start < count; start += length) {
		uint64_t end;

		length = run_length(reads + start, count - start, &end);
		error = borrow_run(odb, reads + start, length, end, scratch, message);
	}
	/* Only now: the memory may have moved. */
	for (size_t i = 0; !error && i < count; i++)
		ret_bytes[reads[i].index] = scratch->data + reads[i].at;
	return error;
}
