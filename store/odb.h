/*
 * odb — the object database: verified records in packs, over an object store.
 *
 * A record is one chunk of file content, one list of chunks, one tree node or one commit. Its id
 * is the SHA-256 of its logical content and never covers where bytes lie; beside each id rides
 * its place, so reading needs no index. Records are appended to packs (about 64 MiB), objects
 * "packs/<32 hex digits>"; a pack's id is random, so a place is final before the pack is stored.
 *
 * Holds:      the cache of decoded small records, windows of packs (store/pack_window.h), the packs
 *             being filled, the local index (id -> place: a cache for deduplication; may be lost,
 *             may be absent).
 * Never:      returns bytes that do not hash to the id asked for (-ERR_CORRUPT after one re-read).
 * Invariants: (1) a record is in the index only when its pack is durable;
 *             (2) a record added to a packer can be read through the odb at once, by place.
 * Threads:    any. Locks: packer, then odb (list of packers, cache); none is held across store I/O.
 * Format:     store/README.md, "Packs".
 */
#ifndef STORE_ODB_H
#define STORE_ODB_H

#include "store/kv.h"
#include "store/object.h"

#define PACK_ID_BYTES 16
#define PACK_TARGET_BYTES (64u << 20)
#define RECORD_RAW_MAX (16u << 20) /* no record is larger, raw or stored */

enum record_kind {
	RECORD_CHUNK = 1, /* raw file bytes; id = SHA-256(bytes) */
	RECORD_LIST = 2,  /* node of a file's list of chunks */
	RECORD_NODE = 3,  /* node of a directory's tree */
	RECORD_COMMIT = 4,
};
enum codec { CODEC_RAW = 0, CODEC_ZSTD = 1 };

struct place {
	uint8_t pack[PACK_ID_BYTES];
	uint64_t offset; /* of the stored bytes in the pack */
	uint32_t stored; /* bytes */
	uint32_t raw;    /* bytes once decoded */
	uint8_t codec;
	uint8_t key; /* 0: not encrypted; room for a key slot */
};
#define PLACE_ENCODED_BYTES 36
struct pointer {
	struct id id;
	struct place place;
};
extern const struct pointer pointer_none; /* zero id: "nothing", e.g. an empty directory */
static inline bool pointer_is_none(const struct pointer *pointer)
{
	return id_is_zero(&pointer->id);
}
void place_encode(struct buffer *buffer, const struct place *place);
void place_decode(struct reader *reader,
                  struct place *ret_place); /* checks ranges: reader.failed */

struct odb;
struct odb_options {
	struct kv *index;       /* NULL: no deduplication across packers. Table 0 is the odb's */
	size_t cache_bytes_max; /* decoded LIST, NODE and COMMIT records; 0: 64 MiB */
	int compression_level;  /* zstd; 0: default (1) */
	/* Raw ranges of packs around small records, where a request is a round trip (object.h,
	 * `distant`); 0: 64 MiB */
	size_t window_bytes_max;
};
/* Borrows the store and the index: both must outlive the odb. Without a store (NULL) its packers
 * compute ids and keep nothing: places are void, nothing can be read. */
int odb_new(struct object_store *store, const struct odb_options *options, struct odb **ret_odb);
void odb_free(struct odb *odb); /* accepts NULL */
struct object_store *odb_store(struct odb *odb);

/*
 * A decoded LIST, NODE or COMMIT record: `logical` is what the id covers, `places` what it does
 * not. Reference-counted and immutable: shared with the cache.
 */
struct record {
	const uint8_t *logical;
	size_t logical_length;
	const uint8_t *places;
	size_t places_length;
	/* For the owner of the record's kind: non-zero once it has checked these bytes, so that a
	 * cached record is validated once. Zero in a fresh record. */
	_Atomic(int) checked;
};
/* Read and verify. The caller owns one reference. -ERR_CORRUPT, -ERR_NOT_FOUND (pack missing),
 * -ERR_STORE_AWAY; the message names pack and offset. */
int odb_read_record(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                    struct record **ret_record, struct message *message);
/* The same without the store: only what is cached, in a pack not yet put, in a window, or kept in
 * the index (commits that this host wrote). -ERR_NOT_FOUND: not at hand; there is no message. */
int odb_read_at_hand(struct odb *odb, enum record_kind kind, const struct pointer *pointer,
                     struct record **ret_record);
void record_unref(struct record *record); /* accepts NULL */
struct record *record_ref(struct record *record);

/* Read chunks. Ranges that lie together in a pack are fetched by one request. Each `out[i]`
 * receives exactly pointers[i].place.raw verified bytes. Blocks on the store. */
int odb_read_chunks(struct odb *odb, const struct pointer *pointers, size_t count,
                    uint8_t *const *out, struct message *message);

/* How requests are made of chunks: neighbours in a pack, at most so far apart, are one request of
 * at most so many bytes. */
#define ODB_GAP_BYTES_MAX (128u << 10)
#define ODB_RUN_BYTES_MAX (16u << 20)
/* The same without copying what is stored as it is: `visit` is called for each chunk, in the order
 * in which they lie in packs, with pointers[i].place.raw verified bytes. They stay where they are
 * until it has returned for the `last` chunk of the request that brought them. Non-zero from it
 * stops and is returned. `scratch` is memory to use, whatever it holds; it grows to one request and
 * what of that is compressed, decoded. */
typedef int chunk_fn(void *context, size_t i, const uint8_t *bytes, bool last);
int odb_visit_chunks(struct odb *odb, const struct pointer *pointers, size_t count,
                     struct buffer *scratch, chunk_fn *visit, void *context,
                     struct message *message);

/*
 * packer — collects new records into packs. Several threads may add to one packer.
 * Full packs are put as they fill; packer_flush puts the rest, content before trees. A pack's
 * records are entered in the index once it is durable (without an index the packer itself
 * remembers all it added, and its memory grows with that). Freeing a packer without flushing
 * forgets what was not yet put: pointers to it are then void.
 */
struct packer;
/* Blocks on the store at times: reads which packs not to rely on (store/condemned.h). */
int packer_new(struct odb *odb, struct packer **ret_packer);
void packer_free(struct packer *packer); /* accepts NULL */
/* Hash, look up (this packer, then the index), compress when it pays, append. Always yields the
 * pointer; *ret_new (may be NULL) says whether bytes were added. */
int packer_add_chunk(struct packer *packer, const void *bytes, size_t length,
                     struct pointer *ret_pointer, bool *ret_new, struct message *message);
/* The same by one of several threads that store the chunks of one file: `wait` returns when the
 * chunks before it are in, so that they lie in a pack as in the file. Called without locks, at most
 * once. */
struct packer_turn {
	void (*wait)(void *context);
	void *context;
};
int packer_add_chunk_in_turn(struct packer *packer, const void *bytes, size_t length,
                             const struct packer_turn *turn, struct pointer *ret_pointer,
                             bool *ret_new, struct message *message);
/* Chunks of a long file are added between these, by one thread at a time: the second file waits for
 * the first, for what is stored in turns lies in pieces and takes a request for each when it is
 * read. Small files go on beside it. */
void packer_long_file_begin(struct packer *packer);
void packer_long_file_end(struct packer *packer);
/* As a chunk, for a record with places. id = SHA-256(tag(kind) || logical). */
int packer_add_record(struct packer *packer, enum record_kind kind, const void *logical,
                      size_t logical_length, const void *places, size_t places_length,
                      struct pointer *ret_pointer, struct message *message);
/* The same for a record that is stored elsewhere already: it is not looked up but added once more,
 * and found here from now on. */
int packer_add_copy(struct packer *packer, enum record_kind kind, const void *logical,
                    size_t logical_length, const void *places, size_t places_length,
                    struct pointer *ret_pointer, struct message *message);
/* When this returns 0, everything added before is durable. A failure loses nothing: packs that
 * could not be put stay in memory (at most three, then adding fails too); call it again. */
int packer_flush(struct packer *packer, struct message *message);
/* Begin what packer_flush, which is still to be called, will wait for. */
void packer_flush_begin(struct packer *packer);
struct packer_stats {
	uint64_t packs_put;
	uint64_t bytes_stored; /* put so far, pack framing included */
	uint64_t bytes_new;    /* raw bytes of records that were new */
	uint64_t content_new;  /* of these, chunks of files */
	uint64_t bytes_known;  /* raw bytes of records that were there already */
};
void packer_stats(struct packer *packer, struct packer_stats *ret_stats);

/* Reads which packs not to rely on when that is soon due. For a thread that waits for nothing: then
 * packer_new finds it read. */
void odb_look_ahead(struct odb *odb);

/* -- whole packs, for fsck, gc and rebuilding the index -- */
struct pack_entry {
	struct id id;
	enum record_kind kind;
	struct place place;
};
typedef int pack_entry_fn(void *context, const struct pack_entry *entry);
/* Read a pack's own table of contents (checked). */
int odb_pack_entries(struct odb *odb, const uint8_t pack[PACK_ID_BYTES], pack_entry_fn *callback,
                     void *context, struct message *message);
/* Read the whole pack and verify every byte of it: header, records against ids, footer, padding.
 * Then `callback` (may be NULL) is called for each record. */
int odb_pack_verify(struct odb *odb, const uint8_t pack[PACK_ID_BYTES], pack_entry_fn *callback,
                    void *context, uint64_t *ret_records, struct message *message);
typedef int pack_list_fn(void *context, const uint8_t pack[PACK_ID_BYTES], uint64_t bytes,
                         int64_t modified_ms);
int odb_pack_list(struct odb *odb, pack_list_fn *callback, void *context, struct message *message);
/* Remove a pack and every index entry that points into it. */
int odb_pack_remove(struct odb *odb, const uint8_t pack[PACK_ID_BYTES], struct message *message);
/* The same for many: removed in few requests. On an error some may be gone. */
int odb_packs_remove(struct odb *odb, const uint8_t (*packs)[PACK_ID_BYTES], size_t count,
                     struct message *message);

struct odb_stats {
	uint64_t reads, read_bytes; /* requests for records, and what they brought */
	uint64_t cache_hits, cache_misses, cache_bytes;
	/* Of windows: small records that cost no request, requests and bytes fetched for the
	 * others, bytes of these that were used, bytes held. */
	uint64_t window_hits, window_requests, window_fetched_bytes, window_used_bytes,
	        window_bytes;
};
void odb_stats(struct odb *odb, struct odb_stats *ret_stats);

#endif
