/*
 * odb_index — private to the object database: where records were stored before (deduplication),
 * and which packs may be relied on for that.
 *
 * Holds:      table 0 of the index (a cache, may be lost), packs seen in the store, the list of
 *             packs that gc means to remove. Of commits the bytes, too: each is a pack of its own,
 *             so reading one again would be a request.
 * Invariants: a place is found only when its pack was seen in the store and cannot have been
 *             removed since (store/README.md, "Condemned packs").
 * Threads:    any. One lock, a leaf; never held across the store or LMDB.
 */
#ifndef STORE_ODB_INDEX_H
#define STORE_ODB_INDEX_H

#include "store/pack.h"

struct index;
typedef int64_t index_clock(void); /* clock_monotonic_ms, but in tests */
/* Borrows the store and the table's kv. */
int index_new(struct object_store *store, struct kv *kv, index_clock *clock_ms,
              struct index **ret_index);
/* All calls accept NULL: an odb without an index remembers nothing. */
void index_free(struct index *index);

/* Look an id up: true when it is there, of the kind, with the same seal (so with the very places
 * the caller holds), and its pack is in the store. */
bool index_find(struct index *index, const struct id *id, enum record_kind kind,
                const uint8_t seal[CHECK_BYTES], struct place *ret_place);
/* Failing to enter something costs deduplication later, nothing else: no result. `bytes` is the
 * pack's; small commits are kept whole. */
void index_enter(struct index *index, const struct packed *entries, size_t count,
                 const uint8_t *bytes);
/* Append the stored bytes of a commit that was entered with this very place; false when there are
 * none. They are the caller's to verify. */
bool index_kept(struct index *index, const struct pointer *pointer, struct buffer *ret_bytes);
/* Drop the ids listed where they point into the pack. */
void index_drop(struct index *index, const uint8_t pack[PACK_ID_BYTES],
                const struct packed *entries, size_t count);
/* Drop whatever points into one of the packs, ascending. Looks at the whole index, once. */
void index_drop_packs(struct index *index, const uint8_t (*packs)[PACK_ID_BYTES], size_t count);

/* The store has just answered for the pack, or confirmed its put. */
void index_pack_seen(struct index *index, const uint8_t pack[PACK_ID_BYTES]);
void index_pack_forget(struct index *index, const uint8_t pack[PACK_ID_BYTES]);
/* Read the list of packs that gc means to remove, when that was last done a while ago; with `ahead`
 * half as long, so that who comes without finds it read. */
void index_refresh_condemned(struct index *index, bool ahead);

#endif
