/*
 * state — this host's uncommitted state: ordered tables that survive kill -9 on every change and
 * power cuts on request.
 *
 * LMDB alone would need an fsync per operation. So one LMDB write transaction stays open and is
 * what every read goes through; each change is first appended to a journal (one write(2), which
 * survives kill -9), then applied to that transaction. Folding commits the transaction durably
 * and starts a new journal segment; opening replays the segments that were not folded. A change
 * is a batch of puts and deletes, so replay is idempotent and cannot disagree with the first run.
 *
 * Holds:      the LMDB environment DIR/tables, the journal segments DIR/journal/<sequence>.
 * Never:      knows what the keys mean.
 * Invariants: (1) when state_commit returned 0 the batch is in the journal file;
 *             (2) when state_sync returned 0 every batch before it survives a power cut;
 *             (3) a torn last batch is dropped whole; damage before it is -ERR_CORRUPT.
 * Threads:    any; one mutex inside, held for the B-tree work and a journal write, and for the
 *             fsync of a fold (bounded by FOLD_BYTES of journal).
 * Format:     fs/README.md, "Journal" and "State tables".
 */
#ifndef FS_STATE_H
#define FS_STATE_H

#include <stdatomic.h>

#include "store/kv.h"

enum state_table {
	STATE_META,     /* counters, format version */
	STATE_BRANCHES, /* branch name -> working tree record */
	STATE_ENTRIES, /* overlay u64be, directory number u64be, name -> whiteout or inode number */
	STATE_INODES,  /* overlay u64be, inode number u64be -> inode record */
	STATE_TABLE_COUNT,
};

struct state;
int state_open(const char *directory, struct state **ret_state, struct message *message);
void state_close(struct state *state); /* folds; accepts NULL */

/* A batch is applied whole or not at all. Zero it first; release it after. */
struct state_batch {
	struct buffer bytes;
	uint32_t count;
	bool makes_room; /* a removal: may use what the journal keeps back for a full disk */
	bool decides;    /* state_watch wants to know of it */
};
void state_put(struct state_batch *batch, enum state_table table, const void *key,
               size_t key_length, const void *value, size_t value_length);
void state_delete(struct state_batch *batch, enum state_table table, const void *key,
                  size_t key_length);
void state_batch_release(struct state_batch *batch);

/* The batch is sealed in place: commit it once. An empty one is 0 at once.
 * -ERR_NO_SPACE, -ERR_NO_MEMORY, -ERR_TOO_LARGE: nothing happened. */
int state_commit(struct state *state, struct state_batch *batch, struct message *message);
/* Where in the journal a batch lies. In memory that outlives this process it tells whether the
 * batch was written, however the process ended: `sequence` is set before the write, and 0 again
 * after a failed one. */
struct state_mark {
	_Atomic uint64_t sequence, offset;
};
/* This thread's next batches that decide something are marked there. NULL: none are. */
void state_watch(struct state_mark *mark);
/* Was the batch marked by a process before this one in the journal when it was opened? Until a mark
 * is known to be of no batch, nothing may be committed: the place would be another batch's. */
bool state_landed(const struct state *state, const struct state_mark *mark);
int state_sync(struct state *state); /* concurrent callers share one fdatasync */
int state_fold(struct state *state, struct message *message);

/* Appends a copy of the value to `ret_value`. -ERR_NOT_FOUND. */
int state_get(struct state *state, enum state_table table, const void *key, size_t key_length,
              struct buffer *ret_value);
/* Calls back for keys that start with `prefix` and are > `after` (after_length 0: from the
 * start), at most `limit` (0: all). The spans are borrowed during the callback, which runs under
 * the state's lock: no state call from inside. Non-zero stops and is returned. */
typedef int state_scan_fn(void *context, const struct span *key, const struct span *value);
int state_scan(struct state *state, enum state_table table, const void *prefix,
               size_t prefix_length, const void *after, size_t after_length, size_t limit,
               state_scan_fn *callback, void *context);
/* Ever-growing numbers for overlays, inodes and staging files; never given twice, even after a
 * crash (blocks of them are reserved through the journal). 0: the journal cannot be written now
 * (-ERR_NO_SPACE). */
uint64_t state_number(struct state *state);
/* Every number given out so far is lower, every later one is not. */
uint64_t state_number_next(struct state *state);

struct state_stats {
	uint64_t journal_bytes, folds, map_bytes, used_bytes;
};
void state_stats(struct state *state, struct state_stats *ret_stats);
/* For fuzzing and fsck: check one journal segment's bytes. */
int journal_check(const void *bytes, size_t length, uint64_t *ret_batches);

#endif
