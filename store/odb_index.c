/*
 * odb_index — hides what deduplication knows: the table of ids and places, and when a place may be
 * trusted to be there still.
 *
 * gc lists a pack a grace period (an hour at least) before it removes it. So a pack that was in the
 * store when the list, without it, had just been read, stays there as long as the list goes on
 * being read within that time and does not name it: its header need not be read again. A longer
 * silence ends what is known of all packs.
 */
#include "store/condemned.h"
#include "store/odb_index.h"

#define LIST_AGE_MS (10 * 60 * 1000)         /* then it is read again, when a packer is made */
#define LIST_AHEAD_MS (LIST_AGE_MS / 2)      /* so much earlier by whoever has the time */
#define LIST_SILENCE_MS_MAX (20 * 60 * 1000) /* well below any grace period */
#define LOOK_AGAIN_MS (10 * 60 * 1000)       /* at a pack's header, while the list is not read */
/* kv promises room for transactions of a quarter of its map; every random key may cost a page. */
#define INDEX_BATCH 2000
#define INDEX_SCAN 100000 /* entries looked at in one transaction: others write in between */
#define INDEX_TABLE 0
#define KEPT_BYTES_MAX 2048 /* stored; of one commit */

struct present {
	uint8_t pack[PACK_ID_BYTES];
	UT_hash_handle hh;
	int64_t due_ms; /* monotonic: until then the sighting is enough by itself */
};

struct index {
	struct object_store *store;
	struct kv *kv;
	index_clock *clock_ms;
	pthread_mutex_t lock;    /* guards all below */
	struct present *present; /* packs seen in the store since the list has been read */
	struct condemned_list condemned;
	bool condemned_known; /* the last attempt to read the list succeeded */
	int64_t condemned_ms; /* monotonic: when that was; of use when it is known */
};

int index_new(struct object_store *store, struct kv *kv, index_clock *clock_ms,
              struct index **ret_index)
{
	struct index *index = calloc(1, sizeof(*index));

	if (!index)
		return -ERR_NO_MEMORY;
	index->store = store;
	index->kv = kv;
	index->clock_ms = clock_ms;
	pthread_mutex_init(&index->lock, NULL);
	*ret_index = index;
	return 0;
}

/* Under the lock, or alone. */
static void forget_all(struct index *index)
{
	struct present *present, *next;

	HASH_ITER (hh, index->present, present, next) {
		HASH_DEL(index->present, present);
		free(present);
	}
}

void index_free(struct index *index)
{
	if (!index)
		return;
	forget_all(index);
	condemned_release(&index->condemned);
	pthread_mutex_destroy(&index->lock);
	free(index);
}

/* -- packs known to be there -- */

/* Under the lock. */
static struct present *present_find(struct index *index, const uint8_t pack[PACK_ID_BYTES])
{
	struct present *present;

	HASH_FIND(hh, index->present, pack, PACK_ID_BYTES, present);
	return present;
}

/* Under the lock. Without memory it will be looked for again. */
static void present_add(struct index *index, const uint8_t pack[PACK_ID_BYTES], int64_t due_ms)
{
	struct present *present = calloc(1, sizeof(*present));

	if (!present)
		return;
	memcpy(present->pack, pack, PACK_ID_BYTES);
	present->due_ms = due_ms;
	HASH_ADD(hh, index->present, pack, PACK_ID_BYTES, present);
	if (!present->hh.tbl)
		free(present);
}

/* Under the lock. */
static void present_drop(struct index *index, const uint8_t pack[PACK_ID_BYTES])
{
	struct present *present = present_find(index, pack);

	if (!present)
		return;
	HASH_DEL(index->present, present);
	free(present);
}

void index_pack_seen(struct index *index, const uint8_t pack[PACK_ID_BYTES])
{
	struct present *present;
	int64_t due_ms;

	if (!index)
		return;
	due_ms = index->clock_ms() + LOOK_AGAIN_MS;
	pthread_mutex_lock(&index->lock);
	present = present_find(index, pack);
	if (present)
		present->due_ms = due_ms;
	else if (!condemned_find(&index->condemned, pack)) /* that one may go any time */
		present_add(index, pack, due_ms);
	pthread_mutex_unlock(&index->lock);
}

void index_pack_forget(struct index *index, const uint8_t pack[PACK_ID_BYTES])
{
	if (!index)
		return;
	pthread_mutex_lock(&index->lock);
	present_drop(index, pack);
	pthread_mutex_unlock(&index->lock);
}

/* 0, -ERR_NOT_FOUND, or an error that says nothing about the pack. */
static int pack_is_present(struct index *index, const uint8_t pack[PACK_ID_BYTES])
{
	CLEANUP(buffer_release) struct buffer header = {0};
	int64_t now_ms = index->clock_ms();
	char key[PACK_KEY_BYTES + 1];
	struct present *present;
	bool known, doomed;
	int error;

	pthread_mutex_lock(&index->lock);
	doomed = !index->condemned_known || condemned_find(&index->condemned, pack);
	present = present_find(index, pack);
	known = present &&
	        (now_ms < present->due_ms || now_ms < index->condemned_ms + LIST_SILENCE_MS_MAX);
	pthread_mutex_unlock(&index->lock);
	if (doomed)
		return -ERR_REFUSED;
	if (known)
		return 0;
	pack_key(pack, key);
	error = object_get(index->store, key, 0, PACK_HEADER_BYTES, &header, NULL, NULL);
	if (error)
		return error;
	if (header.length != PACK_HEADER_BYTES || pack_header_check(header.data, pack, NULL))
		return -ERR_NOT_FOUND;
	index_pack_seen(index, pack);
	return 0;
}

/* A list that cannot be read vouches for nothing: no deduplication until it can. */
void index_refresh_condemned(struct index *index, bool ahead)
{
	int64_t age_ms = ahead ? LIST_AGE_MS - LIST_AHEAD_MS : LIST_AGE_MS;
	struct condemned_list list = {0};
	bool due, known;
	int64_t now_ms;

	if (!index)
		return;
	now_ms = index->clock_ms();
	pthread_mutex_lock(&index->lock);
	due = !index->condemned_known || now_ms >= index->condemned_ms + age_ms;
	pthread_mutex_unlock(&index->lock);
	if (!due)
		return;
	known = condemned_read(index->store, &list, NULL) == 0;
	pthread_mutex_lock(&index->lock);
	struct condemned_list old = index->condemned;

	/* Packs seen before a silence may have been listed and removed in it. */
	if (!index->condemned_known || now_ms > index->condemned_ms + LIST_SILENCE_MS_MAX)
		forget_all(index);
	index->condemned = list;
	/* Nor will a later list that does not name them mean that they are there. */
	for (size_t i = 0; i < list.count; i++)
		present_drop(index, list.items[i].pack);
	index->condemned_known = known;
	index->condemned_ms = now_ms;
	pthread_mutex_unlock(&index->lock);
	condemned_release(&old);
}

/* -- the index: id -> kind u8, place, for all but chunks the first bytes of the seal, of small
 * commits the stored bytes, check -- */

/* A bit that falls over in the index must not send a commit to a place where its bytes are not. */
static int index_check(const struct id *id, const void *value, size_t length,
                       uint8_t ret_check[CHECK_BYTES])
{
	uint8_t bytes[ID_BYTES + 1 + PLACE_ENCODED_BYTES + CHECK_BYTES + KEPT_BYTES_MAX];

	if (length > sizeof(bytes) - ID_BYTES)
		return -ERR_CORRUPT;
	memcpy(bytes, id->bytes, ID_BYTES);
	memcpy(bytes + ID_BYTES, value, length);
	codec_check(bytes, ID_BYTES + length, ret_check);
	return 0;
}

struct index_value {
	struct place place;
	const uint8_t *seal; /* NULL for chunks */
	const uint8_t *kept; /* place.stored bytes, or NULL */
};

static int index_value_decode(const struct id *id, struct span value, enum record_kind kind,
                              struct index_value *ret_value)
{
	struct reader reader;
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
	place_decode(&reader, &ret_value->place);
	ret_value->seal = kind == RECORD_CHUNK ? NULL : read_bytes(&reader, CHECK_BYTES);
	ret_value->kept = NULL;
	if (kind == RECORD_COMMIT && reader_left(&reader) > 0)
		ret_value->kept = read_bytes(&reader, ret_value->place.stored);
	if (reader_finish(&reader))
		return -ERR_NOT_FOUND;
	return ret_value->place.raw ? 0 : -ERR_NOT_FOUND;
}

bool index_find(struct index *index, const struct id *id, enum record_kind kind,
                const uint8_t seal[CHECK_BYTES], struct place *ret_place)
{
	struct index_value found;
	struct kv_txn *txn;
	struct place place;
	struct span value;
	int error;

	if (!index || kv_begin(index->kv, false, &txn))
		return false;
	error = kv_get(txn, INDEX_TABLE, id->bytes, ID_BYTES, &value);
	if (!error)
		error = index_value_decode(id, value, kind, &found);
	if (!error && found.seal && memcmp(found.seal, seal, CHECK_BYTES) != 0)
		error = -ERR_NOT_FOUND;
	if (!error)
		place = found.place;
	kv_abort(txn);
	if (error)
		return false;
	error = pack_is_present(index, place.pack);
	if (error == -ERR_NOT_FOUND) {
		struct packed packed = {.entry.id = *id};

		index_drop(index, place.pack, &packed, 1);
	}
	if (error)
		return false;
	*ret_place = place;
	return true;
}

static bool place_same(const struct place *a, const struct place *b)
{
	return memcmp(a->pack, b->pack, PACK_ID_BYTES) == 0 && a->offset == b->offset &&
	       a->stored == b->stored && a->raw == b->raw && a->codec == b->codec &&
	       a->key == b->key;
}

bool index_kept(struct index *index, const struct pointer *pointer, struct buffer *ret_bytes)
{
	struct index_value found;
	struct kv_txn *txn;
	struct span value;
	bool kept;

	if (!index || kv_begin(index->kv, false, &txn))
		return false;
	kept = kv_get(txn, INDEX_TABLE, pointer->id.bytes, ID_BYTES, &value) == 0 &&
	       index_value_decode(&pointer->id, value, RECORD_COMMIT, &found) == 0 && found.kept &&
	       place_same(&found.place, &pointer->place);
	if (kept)
		buffer_append(ret_bytes, found.kept, found.place.stored);
	kv_abort(txn);
	return kept && buffer_check(ret_bytes) == 0;
}

static int index_put(struct kv_txn *txn, const struct packed *packed, const uint8_t *bytes)
{
	const struct place *place = &packed->entry.place;
	CLEANUP(buffer_release) struct buffer value = {0};
	uint8_t check[CHECK_BYTES];

	buffer_u8(&value, (uint8_t)packed->entry.kind);
	place_encode(&value, place);
	if (packed->entry.kind != RECORD_CHUNK)
		buffer_append(&value, packed->seal, CHECK_BYTES);
	if (packed->entry.kind == RECORD_COMMIT && place->stored <= KEPT_BYTES_MAX)
		buffer_append(&value, bytes + place->offset, place->stored);
	if (buffer_check(&value) || index_check(&packed->entry.id, value.data, value.length, check))
		return -ERR_NO_MEMORY;
	buffer_append(&value, check, CHECK_BYTES);
	if (buffer_check(&value))
		return -ERR_NO_MEMORY;
	return kv_put(txn, INDEX_TABLE, packed->entry.id.bytes, ID_BYTES, value.data, value.length);
}

void index_enter(struct index *index, const struct packed *entries, size_t count,
                 const uint8_t *bytes)
{
	for (size_t start = 0; index && start < count; start += INDEX_BATCH) {
		struct kv_txn *txn;
		int error = kv_begin(index->kv, true, &txn);

		if (error)
			return;
		for (size_t i = start; !error && i < count && i < start + INDEX_BATCH; i++)
			error = index_put(txn, &entries[i], bytes);
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

static void index_drop_batch(struct index *index, const uint8_t pack[PACK_ID_BYTES],
                             const struct packed *entries, size_t count)
{
	struct kv_txn *txn;
	int error = kv_begin(index->kv, true, &txn);

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

static int compare_packs(const void *a, const void *b)
{
	return memcmp(a, b, PACK_ID_BYTES);
}

/* Where a walk over the whole index is. */
struct index_walk {
	uint8_t key[KV_KEY_MAX]; /* the last one looked at */
	size_t key_length;       /* 0: none yet */
};

/* Look at INDEX_SCAN entries and drop those (at most INDEX_BATCH) that point into one of the packs.
 * Returns whether there may be more. */
static bool index_drop_some(struct index *index, const uint8_t (*packs)[PACK_ID_BYTES],
                            size_t count, struct index_walk *walk)
{
	struct kv_cursor *cursor = NULL;
	struct span key, value;
	struct kv_txn *txn;
	size_t looked = 0, dropped = 0;
	int error;

	if (kv_begin(index->kv, true, &txn))
		return false;
	error = kv_seek(txn, INDEX_TABLE, walk->key, walk->key_length, &cursor);
	while (!error && looked < INDEX_SCAN && dropped < INDEX_BATCH) {
		error = kv_next(cursor, &key, &value);
		if (error || key.length > sizeof(walk->key))
			continue;
		looked++;
		memcpy(walk->key, key.data, key.length);
		walk->key_length = key.length;
		if (value.length <= PACK_ID_BYTES ||
		    !bsearch((const uint8_t *)value.data + 1, packs, count, PACK_ID_BYTES,
		             compare_packs))
			continue;
		error = kv_delete(txn, INDEX_TABLE, walk->key, walk->key_length);
		dropped++;
	}
	kv_cursor_free(cursor);
	if (error && error != -ERR_NOT_FOUND) {
		kv_abort(txn);
		return false;
	}
	return kv_commit(txn) == 0 && !error;
}

void index_drop_packs(struct index *index, const uint8_t (*packs)[PACK_ID_BYTES], size_t count)
{
	struct index_walk walk = {.key_length = 0};

	if (!index)
		return;
	while (index_drop_some(index, packs, count, &walk))
		;
}

void index_drop(struct index *index, const uint8_t pack[PACK_ID_BYTES],
                const struct packed *entries, size_t count)
{
	for (size_t start = 0; index && start < count; start += INDEX_BATCH)
		index_drop_batch(index, pack, entries + start,
		                 count - start < INDEX_BATCH ? count - start : INDEX_BATCH);
}
