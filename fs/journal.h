/*
 * journal — one segment of the journal: framing, checksums, appending and replay. Included only
 * by state.c and journal.c.
 *
 * Invariants: a batch is valid only whole; a segment's valid part is a prefix of it. Batches say
 *             how much of the segment was durable when they were written, so that a tail lost in
 *             a power cut (allowed) is told from damage to what had been synced (an error).
 * Threads:    the owner locks.
 * Format:     fs/README.md, "Journal".
 */
#ifndef FS_JOURNAL_H
#define FS_JOURNAL_H

#include "fs/state.h"

#define JOURNAL_BATCH_HEADER 24
#define JOURNAL_HEADER 64
#define JOURNAL_BATCH_MAX ((size_t)256 << 20)
#define JOURNAL_NAME_MAX 17

struct journal {
	int directory_fd; /* borrowed */
	int fd;           /* -1: none */
	uint64_t sequence;
	uint64_t end;       /* of the valid batches */
	uint64_t synced;    /* known durable */
	uint64_t allocated; /* up to here the file has its blocks, written or not; 0: unknown */
};

/* Make the segment, durably with its name. */
int journal_create(int directory_fd, uint64_t sequence, struct journal *ret_journal,
                   struct message *message);
void journal_close(struct journal *journal);
int journal_remove(int directory_fd, uint64_t sequence); /* missing is fine */
/* All of the batch or nothing: -ERR_NO_SPACE, also when afterwards there would not be enough left
 * for removals (batch->makes_room): on a full disk these are what helps. */
int journal_append(struct journal *journal, struct state_batch *batch);
/* Take back the batches after `end`. */
void journal_cut(struct journal *journal, uint64_t end);

/* One change of a batch. value.data NULL: a delete. */
struct journal_change {
	enum state_table table;
	struct span key, value;
};
typedef int journal_change_fn(void *context, const struct journal_change *change);
/* Read the segment and call back for each change of each valid batch. *ret_journal is open for
 * appending after them. What follows the valid part is cut off; when there were whole batches in
 * it, a copy of the segment stays beside it as "<name>.damaged". One without a header was never
 * used, and is made anew; `used`: it is known to have had one. */
int journal_replay(int directory_fd, uint64_t sequence, bool used, journal_change_fn *callback,
                   void *context, struct journal *ret_journal, uint64_t *ret_batches,
                   struct message *message);
/* Sequence numbers in the directory, ascending; allocated. */
int journal_list(int directory_fd, uint64_t **ret_sequences, size_t *ret_count);
/* The changes of one batch's body. */
int journal_each_change(const void *body, size_t length, uint32_t count,
                        journal_change_fn *callback, void *context);
/* Fill in the header of a batch of `length` bytes (header included), for the tests too. */
void journal_seal(uint64_t sequence, uint64_t synced, uint32_t count, uint8_t *batch,
                  size_t length);

#endif
