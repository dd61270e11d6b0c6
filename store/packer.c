/*
 * packer — hides which pack a new record goes to, and when packs are put.
 *
 * Chunks go to content packs, lists, nodes and commits to tree packs: walking trees reads trees
 * only, and all lists of a file lie together, so that finding the chunk for a place in it is not a
 * request for each place. A small commit is one pack: while a packer holds less than JOINT_BYTES
 * of content, its tree pack takes the content too.
 *
 * A pack that fills is put by a thread of the packer's own while others go on adding. What it
 * cannot put it leaves: the failure is told to whoever tries next, an add that needs room or the
 * flush. The index is a cache, so nobody waits until a flush's last pack is in it but who frees the
 * packer: that thread enters it while the caller goes on.
 *
 * Invariants: (1) a tree pack is put only when every pack sealed before it is durable, and sealing
 *             a tree pack seals the content pack first: whoever sees a tree can read all below
 *             (fsck lists commits that no ref leads to, and they must be whole);
 *             (2) at most PACKS_QUEUED_MAX sealed packs are in memory: an add that would make one
 *             more puts one first, and fails when that fails;
 *             (3) a pack that could not be put stays queued, for the next flush.
 */
#include <assert.h>

#include "store/odb_index.h"
#include "store/pack.h"
#include "store/thread.h"

#define JOINT_BYTES (4u << 20)
/* The first content pack is put early, while what follows is still being read and hashed; each
 * one after it may have twice as much, so that much content does not come to many objects. */
#define FIRST_PACK_BYTES (6u << 20)
#define PACKS_PUTTING_MAX 2
#define PACKS_QUEUED_MAX 3
#define KNOWN_SLOTS_MIN 64

/*
 * The records this packer has added, by id and kind (a file may well hold the bytes that a list's
 * id is made of): open addressing over the packs' own entries, so that a record costs a slot. With
 * an index only those whose pack is not yet durable.
 */
struct known_slot {
	struct pack *pack; /* NULL: free */
	uint32_t index;    /* of its entries */
};
struct known {
	struct known_slot *slots;
	size_t capacity; /* a power of two, at least twice the count; or 0 */
	size_t count;
};

struct packer {
	struct odb *odb;
	/* Guards all below. Taken before the odb's lock; never held across store or index I/O. */
	pthread_mutex_t lock;
	pthread_cond_t put_ended;
	pthread_cond_t put_wanted;
	struct known known;
	struct pack *content; /* being filled; NULL: none yet */
	struct pack *tree;
	struct pack *queue;    /* sealed, oldest first */
	struct pack *remember; /* durable, without an index: for their entries alone */
	unsigned queued;
	unsigned putting;
	size_t content_bytes_max; /* of the content pack being filled, or the next */
	bool content_apart;       /* since the last flush content has had a pack of its own */
	struct packer_stats stats;

	bool long_file; /* somebody stores one */
	pthread_cond_t long_file_ended;

	pthread_t putter; /* puts packs that filled; started with the first of them */
	bool putter_runs;
	bool putter_due;        /* a pack was sealed since it last looked */
	struct pack *unentered; /* a durable tree pack that the putter is to enter into the index */
	bool closing;
};

int packer_new(struct odb *odb, struct packer **ret_packer)
{
	struct packer *packer = calloc(1, sizeof(*packer));

	if (!packer)
		return -ERR_NO_MEMORY;
	packer->odb = odb;
	packer->content_bytes_max = FIRST_PACK_BYTES;
	odb_refresh_condemned(odb);
	pthread_mutex_init(&packer->lock, NULL);
	pthread_cond_init(&packer->put_ended, NULL);
	pthread_cond_init(&packer->put_wanted, NULL);
	pthread_cond_init(&packer->long_file_ended, NULL);
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

static void putter_stop(struct packer *packer)
{
	if (!packer->putter_runs)
		return;
	pthread_mutex_lock(&packer->lock);
	packer->closing = true;
	pthread_cond_signal(&packer->put_wanted);
	pthread_mutex_unlock(&packer->lock);
	pthread_join(packer->putter, NULL);
}

void packer_free(struct packer *packer)
{
	struct pack *pack, *next_pack;

	if (!packer)
		return;
	putter_stop(packer);
	DL_FOREACH_SAFE(packer->queue, pack, next_pack)
	{
		DL_DELETE(packer->queue, pack);
		forget_pack(packer, pack);
	}
	DL_FOREACH_SAFE(packer->remember, pack, next_pack)
	{
		DL_DELETE(packer->remember, pack);
		pack_unref(pack);
	}
	forget_pack(packer, packer->content);
	forget_pack(packer, packer->tree);
	pack_trim_spares();
	free(packer->known.slots);
	pthread_cond_destroy(&packer->put_wanted);
	pthread_cond_destroy(&packer->long_file_ended);
	pthread_cond_destroy(&packer->put_ended);
	pthread_mutex_destroy(&packer->lock);
	free(packer);
}

/* -- known records -- */

static const struct pack_entry *known_entry(const struct known_slot *slot)
{
	return &slot->pack->entries[slot->index].entry;
}

/* Where the search for a record begins: ids are random numbers. */
static size_t known_home(const struct known *known, const struct id *id)
{
	return load_u64(id->bytes) & (known->capacity - 1);
}

/* The record's slot, or the free one where it would be. There is always a free one. */
static struct known_slot *known_slot(const struct known *known, const struct id *id,
                                     enum record_kind kind)
{
	size_t at = known_home(known, id);

	for (;; at = (at + 1) & (known->capacity - 1)) {
		struct known_slot *slot = &known->slots[at];

		if (!slot->pack)
			return slot;
		if (known_entry(slot)->kind == kind && id_equal(&known_entry(slot)->id, id))
			return slot;
	}
}

static int known_reserve(struct known *known)
{
	struct known larger = {.capacity = known->capacity * 2};

	if (known->count * 2 < known->capacity)
		return 0;
	if (!larger.capacity)
		larger.capacity = KNOWN_SLOTS_MIN;
	larger.slots = calloc(larger.capacity, sizeof(*larger.slots));
	if (!larger.slots)
		return -ERR_NO_MEMORY;
	larger.count = known->count;
	for (size_t i = 0; i < known->capacity; i++) {
		const struct known_slot *slot = &known->slots[i];
		const struct pack_entry *entry = slot->pack ? known_entry(slot) : NULL;

		if (entry)
			*known_slot(&larger, &entry->id, entry->kind) = *slot;
	}
	free(known->slots);
	*known = larger;
	return 0;
}

/* Free a slot, moving back what had to pass it. */
static void known_remove(struct known *known, struct known_slot *slot)
{
	size_t mask = known->capacity - 1, hole = (size_t)(slot - known->slots);

	for (size_t at = (hole + 1) & mask; known->slots[at].pack; at = (at + 1) & mask) {
		size_t home = known_home(known, &known_entry(&known->slots[at])->id);

		if (((at - home) & mask) >= ((at - hole) & mask)) {
			known->slots[hole] = known->slots[at];
			hole = at;
		}
	}
	known->slots[hole].pack = NULL;
	known->count--;
}

static void known_drop(struct known *known, const struct pack *pack)
{
	for (size_t i = 0; i < pack->count; i++) {
		const struct pack_entry *entry = &pack->entries[i].entry;
		struct known_slot *slot = known_slot(known, &entry->id, entry->kind);

		if (slot->pack == pack)
			known_remove(known, slot);
	}
}

/* -- putting packs -- */

/* Part with a durable pack. Without an index its records stay known: another pack without data
 * takes over its entries (readers may hold the pack, but know nothing of those). */
static void known_keep(struct packer *packer, struct pack *pack)
{
	struct known *known = &packer->known;
	struct pack *entries = calloc(1, sizeof(*entries));

	if (!entries) { /* then with the data */
		DL_APPEND(packer->remember, pack);
		return;
	}
	atomic_init(&entries->references, 1);
	entries->entries = pack->entries;
	entries->count = pack->count;
	for (size_t i = 0; i < pack->count; i++) {
		const struct pack_entry *entry = &pack->entries[i].entry;
		struct known_slot *slot = known_slot(known, &entry->id, entry->kind);

		if (slot->pack == pack)
			slot->pack = entries;
	}
	pack->entries = NULL;
	pack->count = 0;
	DL_APPEND(packer->remember, entries);
	pack_unref(pack);
}

static void enter(struct packer *packer, struct pack *pack)
{
	index_enter(odb_index(packer->odb), pack->entries, pack->count, pack->data);
}

/* Under the lock: it is in the store, and in the index if there is one. */
static void part(struct packer *packer, struct pack *pack)
{
	if (odb_index(packer->odb)) {
		known_drop(&packer->known, pack);
		pack_unref(pack);
	} else {
		known_keep(packer, pack);
	}
}

/* May the putter enter it? It is one pack more in memory, so one at most, and of those that come
 * last. */
static bool enter_later(struct packer *packer, const struct pack *pack)
{
	bool later;

	pthread_mutex_lock(&packer->lock);
	later = pack->tree && pack == packer->queue && !pack->next && packer->putter_runs &&
	        !packer->closing && !packer->unentered && odb_index(packer->odb);
	pthread_mutex_unlock(&packer->lock);
	return later;
}

/* Under the lock, which is given up meanwhile. */
static void enter_left(struct packer *packer)
{
	struct pack *pack = packer->unentered;

	pthread_mutex_unlock(&packer->lock);
	enter(packer, pack);
	pthread_mutex_lock(&packer->lock);
	packer->unentered = NULL;
	part(packer, pack);
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
	bool later = false;
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
		later = enter_later(packer, pack);
		if (!later)
			enter(packer, pack);
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
	DL_DELETE(packer->queue, pack);
	packer->queued--;
	if (later) {
		packer->unentered = pack;
		pthread_cond_signal(&packer->put_wanted);
	} else {
		part(packer, pack);
	}
	return 0;
}

/* Puts what fills. After a failure it waits for the next pack to fill. */
static void *putter_run(void *argument)
{
	struct packer *packer = argument;

	pthread_mutex_lock(&packer->lock);
	while (!packer->closing || packer->unentered) {
		if (packer->unentered) {
			enter_left(packer);
			continue;
		}
		if (!packer->putter_due) {
			pthread_cond_wait(&packer->put_wanted, &packer->lock);
			continue;
		}
		packer->putter_due = false;
		while (!packer->closing && next_to_put(packer) && !put_one(packer, NULL))
			;
	}
	pthread_mutex_unlock(&packer->lock);
	return NULL;
}

static void seal_one(struct packer *packer, struct pack **slot)
{
	struct pack *pack = steal(slot);

	if (!pack)
		return;
	pack->state = PACK_SEALED;
	DL_APPEND(packer->queue, pack);
	packer->queued++;
	packer->putter_due = true;
	pthread_cond_signal(&packer->put_wanted);
}

/* Without a thread the packs are put when room is needed, and by the flush. */
static void putter_start(struct packer *packer)
{
	if (!packer->putter_runs)
		packer->putter_runs = thread_start(&packer->putter, putter_run, packer) == 0;
}

static void seal_all(struct packer *packer)
{
	seal_one(packer, &packer->content);
	seal_one(packer, &packer->tree);
	packer->content_apart = false;
}

void packer_flush_begin(struct packer *packer)
{
	pthread_mutex_lock(&packer->lock);
	seal_all(packer);
	if (packer->queue)
		putter_start(packer);
	pthread_mutex_unlock(&packer->lock);
}

int packer_flush(struct packer *packer, struct message *message)
{
	int error = 0;

	pthread_mutex_lock(&packer->lock);
	seal_all(packer);
	while (!error && packer->queue)
		error = put_one(packer, message);
	pthread_mutex_unlock(&packer->lock);
	return error;
}

/* -- adding records -- */

/* The slot of the pack that takes a record. */
static struct pack **slot_choose(struct packer *packer, enum record_kind kind, size_t stored)
{
	if (kind != RECORD_CHUNK) {
		if (!packer->tree && packer->content && !packer->content_apart &&
		    packer->content->content_bytes <= JOINT_BYTES) {
			packer->tree = steal(&packer->content);
			packer->tree->tree = true;
		}
		return &packer->tree;
	}
	if (packer->tree && !packer->content && !packer->content_apart &&
	    packer->tree->content_bytes + stored <= JOINT_BYTES)
		return &packer->tree;
	if (packer->tree)
		packer->content_apart = true;
	return &packer->content;
}

static bool has_room(const struct packer *packer, const struct pack *pack, size_t stored)
{
	if (!pack_fits(pack, stored))
		return false;
	return pack->tree || pack->count == 0 || pack->length + stored <= packer->content_bytes_max;
}

/* The slot for a record, with a pack that has room or empty; full packs are sealed. Gives up the
 * lock to put one where the queue is full, and fails with what the store says. */
static int slot_for(struct packer *packer, enum record_kind kind, size_t stored,
                    struct pack ***ret_slot, struct message *message)
{
	struct pack **slot = slot_choose(packer, kind, stored);

	while (*slot && !has_room(packer, *slot, stored)) {
		if (packer->queued > PACKS_QUEUED_MAX - 2u) { /* sealing may add two */
			int error = put_one(packer, message);

			if (error)
				return error;
			slot = slot_choose(packer, kind, stored);
			continue;
		}
		packer->content_apart |= packer->content != NULL;
		if (packer->content && packer->content_bytes_max < PACK_TARGET_BYTES)
			packer->content_bytes_max *= 2;
		seal_one(packer, &packer->content);
		if (slot == &packer->tree)
			seal_one(packer, &packer->tree);
		putter_start(packer);
	}
	*ret_slot = slot;
	return 0;
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

/* Append under the lock; the record is known then, or nowhere. */
static int append(struct packer *packer, struct pack **slot, const struct id *id,
                  enum record_kind kind, const struct encoded *encoded,
                  const uint8_t seal[CHECK_BYTES], struct place *ret_place)
{
	int error = *slot ? 0 : slot_fill(packer, slot);

	if (!error)
		error = known_reserve(&packer->known);
	if (!error)
		error = pack_append(*slot, id, kind, encoded, seal, ret_place);
	if (error)
		return error;
	struct known_slot *known = known_slot(&packer->known, id, kind);
	packer->known.count += !known->pack; /* a copy takes the place of what was known */
	*known = (struct known_slot){*slot, (uint32_t)((*slot)->count - 1)};
	if (kind == RECORD_CHUNK)
		(*slot)->content_bytes += encoded->stored;
	return 0;
}

static bool known_find(struct packer *packer, const struct id *id, enum record_kind kind,
                       size_t raw, struct place *ret_place)
{
	const struct known_slot *slot;

	if (!packer->known.count)
		return false;
	slot = known_slot(&packer->known, id, kind);
	if (!slot->pack)
		return false;
	packer->stats.bytes_known += raw;
	*ret_place = known_entry(slot)->place;
	return true;
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
	if (!index_find(odb_index(packer->odb), id, kind, seal, ret_place))
		return false;
	pthread_mutex_lock(&packer->lock);
	packer->stats.bytes_known += length;
	pthread_mutex_unlock(&packer->lock);
	return true;
}

static int add(struct packer *packer, const struct id *id, enum record_kind kind, const void *raw,
               size_t length, const uint8_t seal[CHECK_BYTES], const struct packer_turn *turn,
               struct place *ret_place, bool *ret_new, struct message *message)
{
	struct encoded encoded;
	struct pack **slot;
	int error;

	if (!odb_store(packer->odb)) {
		*ret_place = (struct place){.raw = (uint32_t)length};
		*ret_new = true;
		return 0;
	}
	if (find(packer, id, kind, length, seal, ret_place)) {
		*ret_new = false;
		return 0;
	}
	error = codec_encode(raw, length, odb_level(packer->odb), &encoded);
	if (error)
		return fail(message, error, "encoding a record of %zu bytes", length);
	if (turn)
		turn->wait(turn->context);

	pthread_mutex_lock(&packer->lock);
	error = slot_for(packer, kind, encoded.stored, &slot, message);
	if (!error && known_find(packer, id, kind, length, ret_place)) {
		*ret_new = false; /* another thread was quicker */
	} else if (!error) {
		error = append(packer, slot, id, kind, &encoded, seal, ret_place);
		if (error) {
			fail(message, error, "no memory for a pack");
		} else {
			*ret_new = true;
			packer->stats.bytes_new += length;
			packer->stats.content_new += kind == RECORD_CHUNK ? length : 0;
		}
	}
	pthread_mutex_unlock(&packer->lock);
	return error;
}

int packer_add_chunk_in_turn(struct packer *packer, const void *bytes, size_t length,
                             const struct packer_turn *turn, struct pointer *ret_pointer,
                             bool *ret_new, struct message *message)
{
	static const uint8_t no_seal[CHECK_BYTES];
	struct pointer pointer;
	bool new;
	int error;

	assert(length > 0 && length <= RECORD_RAW_MAX);
	sha256_of(bytes, length, &pointer.id);
	error = add(packer, &pointer.id, RECORD_CHUNK, bytes, length, no_seal, turn, &pointer.place,
	            &new, message);
	if (error)
		return error;
	*ret_pointer = pointer;
	if (ret_new)
		*ret_new = new;
	return 0;
}

int packer_add_chunk(struct packer *packer, const void *bytes, size_t length,
                     struct pointer *ret_pointer, bool *ret_new, struct message *message)
{
	return packer_add_chunk_in_turn(packer, bytes, length, NULL, ret_pointer, ret_new, message);
}

void packer_long_file_begin(struct packer *packer)
{
	pthread_mutex_lock(&packer->lock);
	while (packer->long_file)
		pthread_cond_wait(&packer->long_file_ended, &packer->lock);
	packer->long_file = true;
	pthread_mutex_unlock(&packer->lock);
}

void packer_long_file_end(struct packer *packer)
{
	pthread_mutex_lock(&packer->lock);
	packer->long_file = false;
	pthread_cond_signal(&packer->long_file_ended);
	pthread_mutex_unlock(&packer->lock);
}

/* A record with places as it is stored: one allocation, the caller's; its seal is the tail. */
static int frame(enum record_kind kind, const void *logical, size_t logical_length,
                 const void *places, size_t places_length, struct span *ret_raw, struct id *ret_id,
                 struct message *message)
{
	size_t length = RECORD_FRAME_BYTES + logical_length + places_length;
	CLEANUP(free_pointer) uint8_t *raw = NULL;

	if (logical_length > RECORD_RAW_MAX || places_length > RECORD_RAW_MAX ||
	    length > RECORD_RAW_MAX)
		return fail(message, -ERR_TOO_LARGE, "a record of %zu bytes; the limit is %u",
		            length, RECORD_RAW_MAX);
	raw = malloc(length);
	if (!raw)
		return fail(message, -ERR_NO_MEMORY, "a record of %zu bytes", length);
	record_frame(logical, logical_length, places, places_length, raw);
	if (record_id(kind, logical, logical_length, ret_id))
		return fail(message, -ERR_NO_MEMORY, "hashing a record");
	*ret_raw = (struct span){steal(&raw), length};
	return 0;
}

int packer_add_record(struct packer *packer, enum record_kind kind, const void *logical,
                      size_t logical_length, const void *places, size_t places_length,
                      struct pointer *ret_pointer, struct message *message)
{
	struct pointer pointer;
	struct span raw;
	bool new;
	int error = frame(kind, logical, logical_length, places, places_length, &raw, &pointer.id,
	                  message);

	if (error)
		return error;
	error = add(packer, &pointer.id, kind, raw.data, raw.length,
	            (const uint8_t *)raw.data + raw.length - SEAL_BYTES, NULL, &pointer.place, &new,
	            message);
	free((void *)raw.data);
	if (error)
		return error;
	*ret_pointer = pointer;
	return 0;
}

int packer_add_copy(struct packer *packer, enum record_kind kind, const void *logical,
                    size_t logical_length, const void *places, size_t places_length,
                    struct pointer *ret_pointer, struct message *message)
{
	struct encoded encoded;
	struct pointer pointer;
	struct pack **slot;
	struct span raw;
	int error = frame(kind, logical, logical_length, places, places_length, &raw, &pointer.id,
	                  message);

	if (error)
		return error;
	error = codec_encode(raw.data, raw.length, odb_level(packer->odb), &encoded);
	if (error) {
		fail(message, error, "encoding a record of %zu bytes", raw.length);
	} else {
		pthread_mutex_lock(&packer->lock);
		error = slot_for(packer, kind, encoded.stored, &slot, message);
		if (!error &&
		    append(packer, slot, &pointer.id, kind, &encoded,
		           (const uint8_t *)raw.data + raw.length - SEAL_BYTES, &pointer.place))
			error = fail(message, -ERR_NO_MEMORY, "no memory for a pack");
		pthread_mutex_unlock(&packer->lock);
	}
	free((void *)raw.data);
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
