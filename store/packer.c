/*
 * packer — hides which pack a new record goes to, and when packs are put.
 *
 * Chunks and lists go to content packs, nodes and commits to tree packs, so that walking trees
 * reads trees only. A small commit is one pack: while a packer holds less than JOINT_BYTES of
 * content, its tree pack takes the content too.
 *
 * Invariants: (1) a tree pack is put only when every pack sealed before it is durable, and sealing
 *             a tree pack seals the content pack first: whoever sees a tree can read all below;
 *             (2) at most PACKS_QUEUED_MAX sealed packs are in memory: an add that would make one
 *             more puts one first, and fails when that fails;
 *             (3) a pack that could not be put stays queued, for the next flush.
 */
#include <assert.h>

#include "store/pack.h"

#define JOINT_BYTES (1u << 20)
#define PACKS_PUTTING_MAX 2
#define PACKS_QUEUED_MAX 3

/* A record this packer has added. With an index only while its pack is not yet durable.
 * The kind is part of the key: a file may well hold the bytes that a list's id is made of. */
struct known_key {
	struct id id;
	uint8_t kind;
};
struct known {
	struct known_key key;
	struct place place;
	UT_hash_handle hh;
};

struct packer {
	struct odb *odb;
	/* Guards all below. Taken before the odb's lock; never held across store or index I/O. */
	pthread_mutex_t lock;
	pthread_cond_t put_ended;
	struct known *known;
	struct pack *content; /* being filled; NULL: none yet */
	struct pack *tree;
	struct pack *queue; /* sealed, oldest first */
	unsigned queued;
	unsigned putting;
	bool content_apart; /* since the last flush content has had a pack of its own */
	struct packer_stats stats;
};

int packer_new(struct odb *odb, struct packer **ret_packer)
{
	struct packer *packer = calloc(1, sizeof(*packer));

	if (!packer)
		return -ERR_NO_MEMORY;
	packer->odb = odb;
	odb_refresh_condemned(odb);
	pthread_mutex_init(&packer->lock, NULL);
	pthread_cond_init(&packer->put_ended, NULL);
	*ret_packer = packer;
	return 0;
}

static void forget_pack(struct packer *packer, struct pack *pack)
{
	if (!pack)
		return;
	odb_pack_unregister(packer->odb, pack);
	pack_unref(pack);
}

void packer_free(struct packer *packer)
{
	struct known *known, *next_known;
	struct pack *pack, *next_pack;

	if (!packer)
		return;
	DL_FOREACH_SAFE(packer->queue, pack, next_pack)
	{
		DL_DELETE(packer->queue, pack);
		forget_pack(packer, pack);
	}
	forget_pack(packer, packer->content);
	forget_pack(packer, packer->tree);
	HASH_ITER (hh, packer->known, known, next_known) {
		HASH_DEL(packer->known, known);
		free(known);
	}
	pthread_cond_destroy(&packer->put_ended);
	pthread_mutex_destroy(&packer->lock);
	free(packer);
}

static struct known *known_of(struct packer *packer, const struct id *id, enum record_kind kind)
{
	struct known_key key = {.id = *id, .kind = (uint8_t)kind};
	struct known *known;

	HASH_FIND(hh, packer->known, &key, sizeof(key), known);
	return known;
}

/* -- putting packs -- */

static void known_drop(struct packer *packer, const struct pack *pack)
{
	struct known *known;

	for (size_t i = 0; i < pack->count; i++) {
		known = known_of(packer, &pack->entries[i].entry.id, pack->entries[i].entry.kind);
		if (!known || memcmp(known->place.pack, pack->id, PACK_ID_BYTES) != 0)
			continue;
		HASH_DEL(packer->known, known);
		free(known);
	}
}

static struct pack *next_to_put(struct packer *packer)
{
	struct pack *pack;

	if (packer->putting >= PACKS_PUTTING_MAX)
		return NULL;
	DL_FOREACH (packer->queue, pack) {
		if (pack->state == PACK_SEALED && (!pack->tree || pack == packer->queue))
			return pack;
	}
	return NULL;
}

/* Put one queued pack, waiting for the puts of others where it must; 0 too when none is left.
 * The lock is held on entry and exit, and given up meanwhile. */
static int put_one(struct packer *packer, struct message *message)
{
	char key[PACK_KEY_BYTES + 1];
	struct pack *pack;
	int error;

	while (!(pack = next_to_put(packer))) {
		if (!packer->queue)
			return 0;
		pthread_cond_wait(&packer->put_ended, &packer->lock);
	}
	pack->state = PACK_PUTTING;
	packer->putting++;
	pthread_mutex_unlock(&packer->lock);

	pack_key(pack->id, key);
	error = pack_finish(pack);
	if (error)
		fail(message, error, "finishing a pack");
	else
		error = object_put(odb_store(packer->odb), key, pack->data, pack->length, message);
	if (!error) {
		odb_pack_durable(packer->odb, pack);
		odb_index_enter(packer->odb, pack->entries, pack->count);
	}

	pthread_mutex_lock(&packer->lock);
	packer->putting--;
	pthread_cond_broadcast(&packer->put_ended);
	if (error) {
		pack->state = PACK_SEALED;
		return fail_context(message, error, "putting %s", key);
	}
	packer->stats.packs_put++;
	packer->stats.bytes_stored += pack->length;
	if (odb_index(packer->odb))
		known_drop(packer, pack);
	DL_DELETE(packer->queue, pack);
	packer->queued--;
	pack_unref(pack);
	return 0;
}

static void seal_one(struct packer *packer, struct pack **slot)
{
	struct pack *pack = steal(slot);

	if (!pack)
		return;
	pack->state = PACK_SEALED;
	DL_APPEND(packer->queue, pack);
	packer->queued++;
}

int packer_flush(struct packer *packer, struct message *message)
{
	int error = 0;

	pthread_mutex_lock(&packer->lock);
	seal_one(packer, &packer->content);
	seal_one(packer, &packer->tree);
	packer->content_apart = false;
	while (!error && packer->queue)
		error = put_one(packer, message);
	pthread_mutex_unlock(&packer->lock);
	return error;
}

/* -- adding records -- */

/* The slot of the pack that takes a record; empty when a new pack is due. */
static struct pack **slot_for(struct packer *packer, enum record_kind kind, size_t stored)
{
	struct pack **slot = &packer->content;

	if (kind == RECORD_NODE || kind == RECORD_COMMIT) {
		if (!packer->tree && packer->content && !packer->content_apart &&
		    packer->content->content_bytes <= JOINT_BYTES) {
			packer->tree = steal(&packer->content);
			packer->tree->tree = true;
		}
		slot = &packer->tree;
	} else if (packer->tree && !packer->content && !packer->content_apart &&
	           packer->tree->content_bytes + stored <= JOINT_BYTES) {
		slot = &packer->tree;
	} else if (packer->tree) {
		packer->content_apart = true;
	}
	if (*slot && !pack_fits(*slot, stored)) {
		packer->content_apart |= packer->content != NULL;
		seal_one(packer, &packer->content);
		if (slot == &packer->tree)
			seal_one(packer, &packer->tree);
	}
	return slot;
}

static int slot_fill(struct packer *packer, struct pack **slot)
{
	struct pack *pack = NULL;
	int error = pack_new(&pack);

	if (error)
		return error;
	error = odb_pack_register(packer->odb, pack);
	if (error) {
		pack_unref(pack);
		return error;
	}
	pack->tree = slot == &packer->tree;
	*slot = pack;
	return 0;
}

/* Append under the lock; the record is in `known` or nowhere. */
static int append(struct packer *packer, const struct id *id, enum record_kind kind,
                  const struct encoded *encoded, const uint8_t seal[CHECK_BYTES],
                  struct place *ret_place)
{
	struct pack **slot = slot_for(packer, kind, encoded->stored);
	struct known *known;
	int error;

	if (!*slot) {
		error = slot_fill(packer, slot);
		if (error)
			return error;
	}
	known = calloc(1, sizeof(*known));
	if (!known)
		return -ERR_NO_MEMORY;
	known->key = (struct known_key){.id = *id, .kind = (uint8_t)kind};
	HASH_ADD(hh, packer->known, key, sizeof(known->key), known);
	if (!known->hh.tbl) {
		free(known);
		return -ERR_NO_MEMORY;
	}
	error = pack_append(*slot, id, kind, encoded, seal, &known->place);
	if (error) {
		HASH_DEL(packer->known, known);
		free(known);
		return error;
	}
	if (kind == RECORD_CHUNK || kind == RECORD_LIST)
		(*slot)->content_bytes += encoded->stored;
	*ret_place = known->place;
	return 0;
}

static bool known_find(struct packer *packer, const struct id *id, enum record_kind kind,
                       size_t raw, struct place *ret_place)
{
	struct known *known = known_of(packer, id, kind);

	if (!known)
		return false;
	packer->stats.bytes_known += raw;
	*ret_place = known->place;
	return true;
}

/* Room for one more sealed pack, or the error of the store that does not take them. */
static int queue_make_room(struct packer *packer, struct message *message)
{
	int error = 0;

	while (!error && packer->queued >= PACKS_QUEUED_MAX - 1u)
		error = put_one(packer, message);
	return error;
}

static bool find(struct packer *packer, const struct id *id, enum record_kind kind, size_t length,
                 const uint8_t seal[CHECK_BYTES], struct place *ret_place)
{
	bool found;

	pthread_mutex_lock(&packer->lock);
	found = known_find(packer, id, kind, length, ret_place);
	pthread_mutex_unlock(&packer->lock);
	if (found)
		return true;
	if (!odb_index_find(packer->odb, id, kind, seal, ret_place))
		return false;
	pthread_mutex_lock(&packer->lock);
	packer->stats.bytes_known += length;
	pthread_mutex_unlock(&packer->lock);
	return true;
}

static int add(struct packer *packer, const struct id *id, enum record_kind kind, const void *raw,
               size_t length, const uint8_t seal[CHECK_BYTES], struct place *ret_place,
               bool *ret_new, struct message *message)
{
	struct encoded encoded;
	int error;

	if (find(packer, id, kind, length, seal, ret_place)) {
		*ret_new = false;
		return 0;
	}
	error = codec_encode(raw, length, odb_level(packer->odb), &encoded);
	if (error)
		return fail(message, error, "encoding a record of %zu bytes", length);

	pthread_mutex_lock(&packer->lock);
	error = queue_make_room(packer, message);
	if (!error && known_find(packer, id, kind, length, ret_place)) {
		*ret_new = false; /* another thread was quicker */
	} else if (!error) {
		unsigned queued = packer->queued;

		error = append(packer, id, kind, &encoded, seal, ret_place);
		if (error) {
			fail(message, error, "no memory for a pack");
		} else {
			*ret_new = true;
			packer->stats.bytes_new += length;
			packer->stats.content_new += kind == RECORD_CHUNK ? length : 0;
		}
		/* A failed put is tried again when the next pack fills, and by the flush. */
		if (packer->queued > queued)
			put_one(packer, NULL);
	}
	pthread_mutex_unlock(&packer->lock);
	return error;
}

int packer_add_chunk(struct packer *packer, const void *bytes, size_t length,
                     struct pointer *ret_pointer, bool *ret_new, struct message *message)
{
	static const uint8_t no_seal[CHECK_BYTES];
	struct pointer pointer;
	bool new;
	int error;

	assert(length > 0 && length <= RECORD_RAW_MAX);
	sha256_of(bytes, length, &pointer.id);
	error = add(packer, &pointer.id, RECORD_CHUNK, bytes, length, no_seal, &pointer.place, &new,
	            message);
	if (error)
		return error;
	*ret_pointer = pointer;
	if (ret_new)
		*ret_new = new;
	return 0;
}

int packer_add_record(struct packer *packer, enum record_kind kind, const void *logical,
                      size_t logical_length, const void *places, size_t places_length,
                      struct pointer *ret_pointer, struct message *message)
{
	CLEANUP(free_pointer) uint8_t *raw = NULL;
	size_t length = RECORD_FRAME_BYTES + logical_length + places_length;
	struct pointer pointer;
	bool new;
	int error;

	if (logical_length > RECORD_RAW_MAX || places_length > RECORD_RAW_MAX ||
	    length > RECORD_RAW_MAX)
		return fail(message, -ERR_TOO_LARGE, "a record of %zu bytes; the limit is %u",
		            length, RECORD_RAW_MAX);
	raw = malloc(length);
	if (!raw)
		return fail(message, -ERR_NO_MEMORY, "a record of %zu bytes", length);
	record_frame(logical, logical_length, places, places_length, raw);
	error = record_id(kind, logical, logical_length, &pointer.id);
	if (error)
		return fail(message, error, "hashing a record");
	error = add(packer, &pointer.id, kind, raw, length, raw + length - SEAL_BYTES,
	            &pointer.place, &new, message);
	if (error)
		return error;
	*ret_pointer = pointer;
	return 0;
}

void packer_stats(struct packer *packer, struct packer_stats *ret_stats)
{
	pthread_mutex_lock(&packer->lock);
	*ret_stats = packer->stats;
	pthread_mutex_unlock(&packer->lock);
}
