/*
 * kv — the owner of LMDB: ordered tables of byte strings in one directory.
 *
 * Holds:      the environment, its map size (grown between transactions), the table handles.
 * Never:      lets an LMDB pointer or error code out; <lmdb.h> is included only by kv.c.
 * Invariants: a committed durable transaction survives a power cut; a file damaged by arbitrary
 *             bytes is an error (-ERR_CORRUPT), never a crash (the environment is checked on
 *             opening: sizes, magic, version, page links of every table).
 * Threads:    one write transaction at a time (kv_begin blocks); a transaction belongs to the
 *             thread that uses it, but may be handed over under the caller's lock (MDB_NOTLS).
 *             Growing the map waits until no transaction is open in this process.
 */
#ifndef STORE_KV_H
#define STORE_KV_H

#include "store/base.h"

#define KV_KEY_MAX 511 /* LMDB's compiled-in limit */
#define KV_TABLES_MAX 16

struct kv;
struct kv_txn;
struct kv_cursor;
struct span {
	const void *data;
	size_t length;
};

struct kv_options {
	const char *const *tables; /* names; table i is named by its index in every call below */
	size_t table_count;
	bool loseable; /* MDB_NOSYNC: for caches; wiped on opening after another boot (boot id) */
	uint64_t map_bytes_initial; /* 0: 64 MiB; doubled when more than half is used */
};

/* Opens or makes the directory. -ERR_CORRUPT names the file; a loseable one is remade instead. */
int kv_open(const char *directory, const struct kv_options *options, struct kv **ret_kv,
	    struct message *message);
void kv_close(struct kv *kv); /* accepts NULL; no transaction may be open */

/* Begin grows the map first when it is more than half used, so that a transaction which writes
 * less than map_bytes_initial / 4 never meets a full map. */
int kv_begin(struct kv *kv, bool write, struct kv_txn **ret_txn);
int kv_commit(struct kv_txn *txn); /* ends it either way; -ERR_NO_SPACE: nothing was changed */
void kv_abort(struct kv_txn *txn); /* accepts NULL */

/* Borrowed until the next write in this transaction or its end. -ERR_NOT_FOUND. */
int kv_get(struct kv_txn *txn, unsigned table, const void *key, size_t key_length,
	   struct span *ret_value);
int kv_put(struct kv_txn *txn, unsigned table, const void *key, size_t key_length,
	   const void *value, size_t value_length);
int kv_delete(struct kv_txn *txn, unsigned table, const void *key, size_t key_length);
int kv_count(struct kv_txn *txn, unsigned table, uint64_t *ret_count);
int kv_clear(struct kv_txn *txn, unsigned table);

/* Position at the first key >= `key` (the first of all when key_length is 0).
 * kv_next yields it and moves on: 0, or -ERR_NOT_FOUND at the end. Writes through the same
 * transaction between two calls are allowed: kv_next re-seeks after the key it returned last. */
int kv_seek(struct kv_txn *txn, unsigned table, const void *key, size_t key_length,
	    struct kv_cursor **ret_cursor);
int kv_next(struct kv_cursor *cursor, struct span *ret_key, struct span *ret_value);
void kv_cursor_free(struct kv_cursor *cursor); /* accepts NULL; before its transaction ends */

struct kv_stats {
	uint64_t map_bytes;
	uint64_t used_bytes;
};
int kv_stats(struct kv *kv, struct kv_stats *ret_stats);

#endif
