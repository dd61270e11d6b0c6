/*
 * pack — private to the object database: the pack format, packs still in memory, the record codec.
 *
 * Included only by odb.c, odb_index.c, pack.c, pack_window.c, packer.c and codec.c.
 * Format: store/README.md, "Packs".
 */
#ifndef STORE_PACK_H
#define STORE_PACK_H

#include <pthread.h>
#include <stdatomic.h>

/* A hash that cannot grow leaves the element out; whoever adds one checks hh.tbl. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>
#include <utlist.h>

#include "store/odb.h"

#define PACK_VERSION 1
#define PACK_HEADER_BYTES 32
#define PACK_ENTRY_BYTES 60
#define PACK_TRAILER_BYTES 56
/* What a packer remembers of a record while its pack is in memory is more than a tiny record. */
#define PACK_RECORDS_MAX (128u << 10)
#define PACK_KEY_BYTES (6 + 2 * PACK_ID_BYTES) /* "packs/" and hex digits */
#define CHECK_BYTES 8
#define SEAL_BYTES 16
/* u32 length before the logical part, seal after the places */
#define RECORD_FRAME_BYTES (4 + SEAL_BYTES)

/* -- codec.c: records to stored bytes and back; one set of contexts per thread -- */

/* A record as it will lie in a pack. */
struct encoded {
	const uint8_t *bytes; /* borrowed: the raw bytes or this thread's scratch memory */
	uint32_t stored;
	uint32_t raw;
	enum codec codec;
	uint8_t check[CHECK_BYTES]; /* over the stored bytes when compressed, else zero */
};
/* `bytes` of the result is valid until the next codec call of this thread. -ERR_NO_MEMORY. */
int codec_encode(const void *raw, size_t length, int level, struct encoded *ret_encoded);
/* Writes exactly place->raw bytes to `out`. The caller has checked the place (place_check).
 * -ERR_CORRUPT, -ERR_VERSION (a codec or key slot this version does not know). */
int codec_decode(const void *stored, const struct place *place, void *out);
void codec_check(const void *stored, size_t length, uint8_t ret_check[CHECK_BYTES]);
/* 0, or -ERR_CORRUPT: lengths and offset that no pack can have. */
int place_check(const struct place *place);

/* id = SHA-256(tag of the kind || logical) */
int record_id(enum record_kind kind, const void *logical, size_t length, struct id *ret_id);
/* Write RECORD_FRAME_BYTES + logical + places bytes to `out`; the seal is its tail. */
void record_frame(const void *logical, size_t logical_length, const void *places,
                  size_t places_length, uint8_t *out);
/* Take a raw record apart; the results point into `raw`. -ERR_CORRUPT. */
int record_parts(const uint8_t *raw, size_t length, struct record *ret_record);
/* Check a raw record of any kind against its id, and its seal. -ERR_CORRUPT. */
int record_verify(enum record_kind kind, const struct id *id, const uint8_t *raw, size_t length);

/* -- a pack in memory: filled by a packer, readable through the odb until it is durable -- */

struct packed {
	struct pack_entry entry;
	uint8_t check[CHECK_BYTES];
	uint8_t seal[CHECK_BYTES]; /* first bytes of a record's seal; zero for chunks */
};
enum pack_state { PACK_OPEN, PACK_SEALED, PACK_PUTTING };
struct pack {
	uint8_t id[PACK_ID_BYTES];
	atomic_uint references;
	uint8_t *data;            /* PACK_TARGET_BYTES of address space, paged in as filled */
	_Atomic(uint32_t) length; /* bytes below are final: readers need no lock */
	/* The rest belongs to the packer, under its lock. */
	uint32_t content_bytes; /* of chunks and lists among them */
	bool tree;              /* holds nodes or commits: put after all content */
	bool finished;          /* by pack_finish */
	enum pack_state state;
	struct packed *entries;
	size_t count, capacity;
	struct pack *prev, *next; /* the packer's queue */
	UT_hash_handle hh;        /* the odb's packs in memory, under the odb's lock */
};
int pack_new(struct pack **ret_pack);
void pack_unref(struct pack *pack); /* accepts NULL */
void pack_trim_spares(void);        /* give back the memory kept for the next packs */
bool pack_fits(const struct pack *pack, size_t stored);
/* The pack must have room (pack_fits). -ERR_NO_MEMORY changes nothing. */
int pack_append(struct pack *pack, const struct id *id, enum record_kind kind,
                const struct encoded *encoded, const uint8_t seal[CHECK_BYTES],
                struct place *ret_place);
/* Append table of contents and trailer, unless they are there. -ERR_NO_MEMORY changes nothing. */
int pack_finish(struct pack *pack);

/* Check the 32 bytes of header. -ERR_CORRUPT, -ERR_VERSION. */
int pack_header_check(const uint8_t header[PACK_HEADER_BYTES], const uint8_t pack[PACK_ID_BYTES],
                      struct message *message);
void pack_key(const uint8_t pack[PACK_ID_BYTES], char ret_key[PACK_KEY_BYTES + 1]);
void pack_hex(const uint8_t pack[PACK_ID_BYTES], char ret_hex[2 * PACK_ID_BYTES + 1]);

/* -- odb.c -- */

/* In memory, readable by place until odb_pack_durable. Takes its own reference. */
int odb_pack_register(struct odb *odb, struct pack *pack);
void odb_pack_unregister(struct odb *odb, struct pack *pack); /* forget it unstored */
void odb_pack_durable(struct odb *odb, struct pack *pack);    /* it is in the store now */
void odb_pack_forget(struct odb *odb, const uint8_t pack[PACK_ID_BYTES]);
int odb_level(const struct odb *odb);
struct index;
struct index *odb_index(const struct odb *odb); /* or NULL; odb_index.h */
/* Read the list of packs that gc means to remove, when that was last done a while ago. */
void odb_refresh_condemned(struct odb *odb);

#endif
