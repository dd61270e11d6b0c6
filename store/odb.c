/*
 * odb — hides where a record's bytes come from: the cache of decoded records, a pack still in
 * memory, a window of a stored pack, or a range of its own.
 */
#include <assert.h>
#include <stdio.h>

#include "store/chunker.h"
#include "store/odb_index.h"
#include "store/pack.h"
#include "store/pack_window.h"

#define CACHE_BYTES_DEFAULT (64u << 20)
#define WINDOW_BYTES_DEFAULT (64u << 20)
#define LEVEL_DEFAULT 1
/* What a small commit stored is what the next one begins from: its trees, and of a file that grows
 * the list and the last chunk. */
#define KEPT_PACKS 4
#define KEPT_BYTES_MAX (2u << 20)

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

struct odb {
	struct object_store *store;
	struct index *index;     /* or NULL */
	struct windows *windows; /* or NULL: reading exactly what is asked for is as quick */
	int level;
	size_t cache_bytes_max;
	/* Guards all below: short, never held across I/O. After a packer's lock. */
	pthread_mutex_t lock;
	struct cached *cache;  /* by id and place */
	struct cached *recent; /* least recently used first */
	size_t cache_bytes;
	struct pack *packs;            /* in memory, by pack id */
	struct pack *kept[KEPT_PACKS]; /* of these, in the store already: the latest small ones */
	unsigned kept_next;
	uint64_t reads, read_bytes, cache_hits, cache_misses;
};

/* Keep a pack that is in the store, or none, in this slot. */
static void keep_instead(struct odb *odb, unsigned slot, struct pack *pack)
{
	pthread_mutex_lock(&odb->lock);
	struct pack *before = odb->kept[slot];

	odb->kept[slot] = pack;
	if (before)
		HASH_DEL(odb->packs, before);
	pthread_mutex_unlock(&odb->lock);
	pack_unref(before);
}

static void odb_release(struct odb **odb)
{
	odb_free(*odb);
}

int odb_new(struct object_store *store, const struct odb_options *given, struct odb **ret_odb)
{
	struct odb_options options = given ? *given : (struct odb_options){0};
	CLEANUP(odb_release) struct odb *odb = calloc(1, sizeof(*odb));
	int error = 0;

	if (!odb)
		return -ERR_NO_MEMORY;
	pthread_mutex_init(&odb->lock, NULL);
	odb->store = store;
	odb->cache_bytes_max =
	        options.cache_bytes_max ? options.cache_bytes_max : CACHE_BYTES_DEFAULT;
	odb->level = options.compression_level ? options.compression_level : LEVEL_DEFAULT;
	if (!options.window_bytes_max)
		options.window_bytes_max = WINDOW_BYTES_DEFAULT;
	if (options.index)
		error = index_new(store, options.index, clock_monotonic_ms, &odb->index);
	if (!error && store && store->ops->distant)
		error = windows_new(store, options.window_bytes_max, &odb->windows);
	if (error)
		return error;
	*ret_odb = steal(&odb);
	return 0;
}

void odb_free(struct odb *odb)
{
	struct cached *cached, *next_cached;

	if (!odb)
		return;
	for (unsigned i = 0; i < KEPT_PACKS; i++)
		keep_instead(odb, i, NULL);
	assert(!odb->packs); /* every packer must be gone */
	windows_free(odb->windows);
	HASH_ITER (hh, odb->cache, cached, next_cached) {
		HASH_DEL(odb->cache, cached);
		record_unref(&cached->record);
	}
	index_free(odb->index);
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

struct index *odb_index(const struct odb *odb)
{
	return odb->index;
}

void odb_refresh_condemned(struct odb *odb)
{
	index_refresh_condemned(odb->index, false);
}

void odb_look_ahead(struct odb *odb)
{
	index_refresh_condemned(odb->index, true);
}

void odb_stats(struct odb *odb, struct odb_stats *ret_stats)
{
	struct windows_stats windows = {0};

	if (odb->windows)
		windows_stats(odb->windows, &windows);
	pthread_mutex_lock(&odb->lock);
	*ret_stats = (struct odb_stats){
	        .reads = odb->reads + windows.requests,
	        .read_bytes = odb->read_bytes + windows.fetched_bytes,
	        .cache_hits = odb->cache_hits,
	        .cache_misses = odb->cache_misses,
	        .cache_bytes = odb->cache_bytes,
	        .window_hits = windows.hits,
	        .window_requests = windows.requests,
	        .window_fetched_bytes = windows.fetched_bytes,
	        .window_used_bytes = windows.used_bytes,
	        .window_bytes = windows.held_bytes,
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

/* -- packs in memory -- */

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

void odb_pack_durable(struct odb *odb, struct pack *pack)
{
	index_pack_seen(odb->index, pack->id);
	if (!odb->windows || pack->length > KEPT_BYTES_MAX) {
		odb_pack_unregister(odb, pack);
		return;
	}
	pthread_mutex_lock(&odb->lock);
	unsigned slot = odb->kept_next++ % KEPT_PACKS;
	pthread_mutex_unlock(&odb->lock);
	keep_instead(odb, slot, pack);
}

void odb_pack_forget(struct odb *odb, const uint8_t pack[PACK_ID_BYTES])
{
	index_pack_forget(odb->index, pack);
	for (unsigned i = 0; i < KEPT_PACKS; i++) {
		pthread_mutex_lock(&odb->lock);
		bool kept = odb->kept[i] && memcmp(odb->kept[i]->id, pack, PACK_ID_BYTES) == 0;
		pthread_mutex_unlock(&odb->lock);
		if (kept)
			keep_instead(odb, i, NULL);
	}
	if (odb->windows)
		windows_drop(odb->windows, pack, 0, PACK_TARGET_BYTES);
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

/* Append stored bytes of a pack that is in memory; false when it is not. */
static bool fetch_from_memory(struct odb *odb, const uint8_t id[PACK_ID_BYTES], uint64_t offset,
                              uint64_t length, struct buffer *ret_bytes)
{
	struct pack *pack = pack_in_memory(odb, id);
	uint64_t end;

	if (!pack)
		return false;
	end = atomic_load_explicit(&pack->length, memory_order_acquire);
	end = offset + length < end ? offset + length : end;
	if (offset < end)
		buffer_append(ret_bytes, pack->data + offset, end - offset);
	pack_unref(pack);
	return true;
}

/* Append stored bytes [offset, offset+length) of a pack; fewer when it ends before. */
static int fetch(struct odb *odb, const uint8_t id[PACK_ID_BYTES], uint64_t offset, uint64_t length,
                 struct buffer *ret_bytes, struct message *message)
{
	char key[PACK_KEY_BYTES + 1];
	size_t before = ret_bytes->length;
	int error;

	if (fetch_from_memory(odb, id, offset, length, ret_bytes))
		return buffer_check(ret_bytes);
	pack_key(id, key);
	error = object_get(odb->store, key, offset, length, ret_bytes, NULL, message);
	if (!error)
		index_pack_seen(odb->index, id);
	pthread_mutex_lock(&odb->lock);
	odb->reads++;
	odb->read_bytes += ret_bytes->length - before;
	pthread_mutex_unlock(&odb->lock);
	return error;
}

/* Does a record go through windows? Chunks of large files do not: they are read in long runs, or
 * here and there, and would only push out what is near each other. */
static bool is_small(const struct odb *odb, enum record_kind kind, const struct place *place)
{
	return odb->windows && place->stored <= WINDOW_BLOCK_BYTES &&
	       (kind != RECORD_CHUNK || place->raw < CHUNK_BYTES_MIN);
}

static int fetch_by_window(struct odb *odb, enum record_kind kind, const struct place *place,
                           struct buffer *ret_bytes, struct message *message)
{
	/* A directory's root is written after its nodes and they after those of the directories in
	 * them; files are written in the order in which they were made. */
	enum window_side side = kind == RECORD_CHUNK ? WINDOW_AFTER : WINDOW_BEFORE;
	int result;

	if (fetch_from_memory(odb, place->pack, place->offset, place->stored, ret_bytes))
		return buffer_check(ret_bytes);
	result = windows_read(odb->windows, place->pack, place->offset, place->stored, side,
	                      ret_bytes, message);
	if (result == 1)
		index_pack_seen(odb->index, place->pack);
	return result < 0 ? result : 0;
}

/* Read one record, decode it to `out` (place.raw bytes) and verify it; once more, and by itself,
 * when damaged. */
static int read_one(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                    uint8_t *out, struct message *message)
{
	CLEANUP(buffer_release) struct buffer stored = {.limit = RECORD_RAW_MAX};
	const struct place *place = &pointer->place;
	bool small = is_small(odb, kind, place);
	int error = -ERR_CORRUPT;

	for (int attempt = 0; attempt < 2 && error == -ERR_CORRUPT; attempt++) {
		buffer_clear(&stored);
		if (small && attempt == 0)
			error = fetch_by_window(odb, kind, place, &stored, message);
		else
			error = fetch(odb, place->pack, place->offset, place->stored, &stored,
			              message);
		if (!error && stored.length != place->stored)
			error = -ERR_CORRUPT;
		if (!error)
			error = codec_decode(stored.data, place, out);
		if (!error)
			error = record_verify(kind, &pointer->id, out, place->raw);
		if (error == -ERR_CORRUPT && small && attempt == 0)
			windows_drop(odb->windows, place->pack, place->offset, place->stored);
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

/* The record's bytes without asking the store, verified. Windows count what they serve to who may
 * ask. */
static bool decode_at_hand(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                           bool may_ask, uint8_t *out)
{
	CLEANUP(buffer_release) struct buffer stored = {.limit = RECORD_RAW_MAX};
	const struct place *place = &pointer->place;
	bool there = fetch_from_memory(odb, place->pack, place->offset, place->stored, &stored);

	if (!there && kind == RECORD_COMMIT)
		there = index_kept(odb->index, pointer, &stored);
	if (!there && !may_ask && is_small(odb, kind, place)) {
		buffer_clear(&stored);
		there = windows_peek(odb->windows, place->pack, place->offset, place->stored,
		                     &stored);
	}
	return there && !buffer_check(&stored) && stored.length == place->stored &&
	       !codec_decode(stored.data, place, out) &&
	       !record_verify(kind, &pointer->id, out, place->raw);
}

/* `may_ask`: the store. */
static int read_record(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                       bool may_ask, struct record **ret_record, struct message *message)
{
	struct cached *cached = cache_find(odb, kind, pointer);
	size_t raw = pointer->place.raw;
	int error = 0;

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
	if (!decode_at_hand(odb, kind, pointer, may_ask, cached->raw))
		error = may_ask ? read_one(odb, kind, pointer, cached->raw, message)
		                : -ERR_NOT_FOUND;
	if (error) {
		free(cached);
		return error;
	}
	record_parts(cached->raw, raw, &cached->record);
	cache_add(odb, cached);
	*ret_record = &cached->record;
	return 0;
}

int odb_read_record(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                    struct record **ret_record, struct message *message)
{
	return read_record(odb, kind, pointer, true, ret_record, message);
}

int odb_read_at_hand(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                     struct record **ret_record)
{
	return read_record(odb, kind, pointer, false, ret_record, NULL);
}

/* -- chunks -- */

struct chunk_read {
	const struct pointer *pointer;
	uint8_t *out;
	size_t index; /* in the caller's array */
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

/* In the order in which they lie in the store; the caller frees. */
static int reads_plan(const struct pointer *pointers, size_t count, struct chunk_read **ret_reads,
                      struct message *message)
{
	CLEANUP(free_pointer) struct chunk_read *reads = calloc(count + 1, sizeof(*reads));

	if (!reads)
		return fail(message, -ERR_NO_MEMORY, "reading %zu chunks", count);
	for (size_t i = 0; i < count; i++) {
		if (place_check(&pointers[i].place))
			return place_fail(message, &pointers[i].place, -ERR_CORRUPT);
		reads[i] = (struct chunk_read){.pointer = &pointers[i], .index = i};
	}
	qsort(reads, count, sizeof(*reads), chunk_read_compare);
	*ret_reads = steal(&reads);
	return 0;
}

int odb_read_chunks(struct odb *odb, const struct pointer *pointers, size_t count,
                    uint8_t *const *out, struct message *message)
{
	CLEANUP(buffer_release)
	struct buffer stored = {.limit = ODB_RUN_BYTES_MAX + RECORD_RAW_MAX};
	CLEANUP(free_pointer) struct chunk_read *reads = NULL;
	int error = reads_plan(pointers, count, &reads, message);

	for (size_t i = 0; !error && i < count; i++)
		reads[i].out = out[reads[i].index];
	for (size_t start = 0, length; !error && start < count; start += length) {
		uint64_t end;

		length = run_length(reads + start, count - start, &end);
		if (length == 1 && is_small(odb, RECORD_CHUNK, &reads[start].pointer->place))
			error = read_one(odb, RECORD_CHUNK, reads[start].pointer, reads[start].out,
			                 message);
		else
			error = read_run(odb, reads + start, length, end, &stored, message);
	}
	return error;
}

/* -- chunks where they were received -- */

static bool is_stored_raw(const struct place *place)
{
	return place->codec == CODEC_RAW && place->key == 0;
}

/* What is verified at once: enough to hash side by side, and little enough to be in the processor's
 * cache still when it is visited. */
#define GROUP_CHUNKS_MAX 16
#define GROUP_BYTES_MAX (2048u << 10)

/* Some chunks of a run of which `got` bytes came, at the beginning of the scratch memory. What did
 * not come, or is damaged, is asked for again by itself. The memory was reserved: it does not move.
 */
struct group {
	const struct chunk_read *reads;
	size_t count;
	uint64_t from; /* where the run begins in its pack */
	size_t got;
	struct buffer *scratch;
	struct sha256_input chunks[GROUP_CHUNKS_MAX];
	bool damaged[GROUP_CHUNKS_MAX];
};

static size_t group_length(const struct chunk_read *reads, size_t count)
{
	size_t length = 0, bytes = 0;

	while (length < count && length < GROUP_CHUNKS_MAX && bytes < GROUP_BYTES_MAX)
		bytes += reads[length++].pointer->place.raw;
	return length;
}

static int group_decode(struct group *group, struct message *message)
{
	struct buffer *scratch = group->scratch;

	for (size_t i = 0; i < group->count; i++) {
		const struct place *place = &group->reads[i].pointer->place;
		size_t at = place->offset - group->from;
		bool here = at + place->stored <= group->got;
		uint8_t *bytes = scratch->data + at;
		int error = here ? 0 : -ERR_CORRUPT;

		if (!is_stored_raw(place)) {
			bytes = scratch->data + scratch->length;
			scratch->length += place->raw;
			if (here)
				error = codec_decode(scratch->data + at, place, bytes);
		}
		if (error && error != -ERR_CORRUPT)
			return place_fail(message, place, error);
		group->damaged[i] = error != 0;
		group->chunks[i] = (struct sha256_input){bytes, error ? 0 : place->raw, {{0}}};
	}
	return 0;
}

static int group_verify(struct odb *odb, struct group *group, struct message *message)
{
	int error = group_decode(group, message);

	if (error)
		return error;
	sha256_of_many(group->chunks, group->count);
	for (size_t i = 0; !error && i < group->count; i++) {
		const struct pointer *pointer = group->reads[i].pointer;

		if (group->damaged[i] || !id_equal(&group->chunks[i].id, &pointer->id))
			error = read_one(odb, RECORD_CHUNK, pointer,
			                 (uint8_t *)group->chunks[i].bytes, message);
	}
	return error;
}

/* As read_one does it, with a window around it. */
static int visit_small(struct odb *odb, const struct chunk_read *read, struct buffer *scratch,
                       chunk_fn *visit, void *context, struct message *message)
{
	const struct place *place = &read->pointer->place;
	int error;

	buffer_clear(scratch);
	error = buffer_reserve(scratch, place->raw);
	if (error)
		return place_fail(message, place, error);
	error = read_one(odb, RECORD_CHUNK, read->pointer, scratch->data, message);
	return error ? error : visit(context, read->index, scratch->data, true);
}

static int fetch_run(struct odb *odb, const struct chunk_read *reads, size_t count, uint64_t end,
                     struct buffer *scratch, size_t *ret_got, struct message *message)
{
	const struct place *first = &reads[0].pointer->place;
	size_t wanted = end - first->offset, memory = wanted;
	int error;

	for (size_t i = 0; i < count; i++)
		if (!is_stored_raw(&reads[i].pointer->place))
			memory += reads[i].pointer->place.raw;
	buffer_clear(scratch);
	error = buffer_reserve(scratch, memory);
	if (!error)
		error = fetch(odb, first->pack, first->offset, wanted, scratch, message);
	if (error)
		return place_fail(message, first, error);
	*ret_got = scratch->length < wanted ? scratch->length : wanted;
	scratch->length = wanted;
	return 0;
}

static int visit_run(struct odb *odb, const struct chunk_read *reads, size_t count, uint64_t end,
                     struct buffer *scratch, chunk_fn *visit, void *context,
                     struct message *message)
{
	const struct place *first = &reads[0].pointer->place;
	struct group group = {.from = first->offset, .scratch = scratch};
	int error;

	if (count == 1 && is_small(odb, RECORD_CHUNK, first))
		return visit_small(odb, &reads[0], scratch, visit, context, message);
	error = fetch_run(odb, reads, count, end, scratch, &group.got, message);
	for (size_t at = 0; !error && at < count; at += group.count) {
		group.reads = reads + at;
		group.count = group_length(group.reads, count - at);
		error = group_verify(odb, &group, message);
		for (size_t i = 0; !error && i < group.count; i++)
			error = visit(context, group.reads[i].index, group.chunks[i].bytes,
			              at + i + 1 == count);
	}
	return error;
}

int odb_visit_chunks(struct odb *odb, const struct pointer *pointers, size_t count,
                     struct buffer *scratch, chunk_fn *visit, void *context,
                     struct message *message)
{
	CLEANUP(free_pointer) struct chunk_read *reads = NULL;
	int error = reads_plan(pointers, count, &reads, message);

	for (size_t start = 0, length; !error && start < count; start += length) {
		uint64_t end;

		length = run_length(reads + start, count - start, &end);
		error = visit_run(odb, reads + start, length, end, scratch, visit, context,
		                  message);
	}
	return error;
}
