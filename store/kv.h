/*
 * kv — the owner of LMDB: ordered tables of byte strings in one directory.
 *
 * Holds:      the environment, its map size (grown between transactions), the table handles.
 * Never:      lets an LMDB pointer or error code out; <lmdb.h> is included only by kv.c.
 * Invariants: a committed durable transaction survives a power cut; a file damaged by arbitrary
 *             bytes is an error (-ERR_CORRUPT), never a crash (kv_check.c walks the whole file on
 *             opening: metas, page links of every table, the free list).
 * Threads:    one write transaction at a time (kv_begin blocks); any number of read transactions
 *             beside it, each seeing the last commit before its begin. A transaction belongs to one
 *             thread at a time, but may be handed over under the caller's lock.
 *             LMDB ties its writer mutex (robust, hence owned) to a thread, so each kv has a
 *             thread of its own that begins and ends write transactions, and nothing else; reads
 *             and writes inside one run in the caller's. (MDB_NOLOCK was the alternative: it has no
 *             table of readers, so commits would have to wait for long reads.)
 *             Lock: kv->lock, a leaf, never held across the disk.
 * Processes:  one at a time per directory (the caller holds the lake's lock); not across fork().
 */
#ifndef STORE_KV_H
#define STORE_KV_H

#include "store/base.h"

#define KV_KEY_MAX 511 /* LMDB's compiled-in limit */
#define KV_VALUE_MAX ((size_t)1 << 30)
#define KV_TABLES_MAX 16
#define KV_READERS_MAX 510

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
	/* For caches: commits are not synced (MDB_NOSYNC). Survives kill -9; wiped on opening after
	 * another boot, unless it was closed properly (file "stamp"); remade when damaged. */
	bool loseable;
	/* Each value carries a checksum over table, key and value. All are checked on opening, and
	 * each when it is read: -ERR_CORRUPT. Values without (of an older version) get theirs then.
	 */
	bool sealed;
	uint64_t map_bytes_initial; /* 0: 64 MiB; doubled when more than half is used */
};

/* Opens or makes the directory. -ERR_CORRUPT names the file; a loseable one is remade instead. */
int kv_open(const char *directory, const struct kv_options *options, struct kv **ret_kv,
            struct message *message);
void kv_close(struct kv *kv); /* accepts NULL; no transaction may be open */

/* The map must not grow under an open transaction. So begin grows it when it is more than half used
 * and nothing is open; a writer that finds it three quarters used waits for open transactions (at
 * most 5 s: then it goes on with the map as it is). A transaction which writes less than
 * map_bytes_initial / 4 therefore never meets a full map; a larger one may get -ERR_TOO_LARGE
 * from kv_put or kv_commit, and finds a larger map when it is tried again.
 * -ERR_BUSY: too many read transactions (KV_READERS_MAX). */
int kv_begin(struct kv *kv, bool write, struct kv_txn **ret_txn);
/* Ends it either way. -ERR_NO_SPACE, or the first error a write in it met: nothing was changed, and
 * the next transaction starts from the last commit. */
int kv_commit(struct kv_txn *txn);
void kv_abort(struct kv_txn *txn); /* accepts NULL */

/* Borrowed until the next write in this transaction or its end; any alignment. -ERR_NOT_FOUND. */
int kv_get(struct kv_txn *txn, unsigned table, const void *key, size_t key_length,
           struct span *ret_value);
int kv_put(struct kv_txn *txn, unsigned table, const void *key, size_t key_length,
           const void *value, size_t value_length);
int kv_delete(struct kv_txn *txn, unsigned table, const void *key, size_t key_length);
/* kv_delete: -ERR_NOT_FOUND. Keys are 1..KV_KEY_MAX bytes (-ERR_INVALID). A value put must not be
 * one borrowed from the same transaction. */
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
	uint64_t used_bytes; /* of the file, free pages inside it counted */
};
int kv_stats(struct kv *kv, struct kv_stats *ret_stats);

#endif
