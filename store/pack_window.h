/*
 * pack_window — ranges of stored packs kept in memory, so that small records which lie together
 * cost one request together.
 *
 * Holds:      raw bytes of packs (windows), how well earlier ones served, a few threads that
 *             fetch the next one before a reader gets there.
 * Never:      verifies: whoever takes bytes does, and calls windows_drop when they are wrong.
 * Invariants: (1) windows and those being fetched hold at most bytes_max; what does not fit is
 *             fetched by itself and not kept;
 *             (2) bytes are fetched by one thread at a time: others wait and share its failure;
 *             (3) a window larger than a block is fetched only where readers have come before.
 * Threads:    any. One lock, a leaf; never held across a request or a copy.
 * Policy:     store/README.md, "Windows".
 */
#ifndef STORE_PACK_WINDOW_H
#define STORE_PACK_WINDOW_H

#include "store/odb.h"

#define WINDOW_BLOCK_BYTES (128u << 10)
#define WINDOW_BYTES_MAX (4u << 20) /* of one window, and so of one request */

struct windows;
int windows_new(struct object_store *store, size_t bytes_max, struct windows **ret_windows);
/* Accepts NULL. Nobody may be reading; waits for a request that is under way. */
void windows_free(struct windows *windows);

/* Where a record's neighbours that are read next lie, as long as readers have not shown it. */
enum window_side { WINDOW_AFTER, WINDOW_BEFORE };
/* Append bytes [offset, offset+length) of a pack, at most a block; fewer when the pack ends before.
 * Blocks on the store. 1 when that took a request of its own, else 0. Errors are the store's:
 * -ERR_NOT_FOUND, -ERR_STORE_AWAY. */
int windows_read(struct windows *windows, const uint8_t pack[PACK_ID_BYTES], uint64_t offset,
                 uint32_t length, enum window_side side, struct buffer *ret_bytes,
                 struct message *message);
/* The same of what is held already: true when that is all of it. Asks nobody, waits for nobody and
 * leaves no trace in the policy. */
bool windows_peek(struct windows *windows, const uint8_t pack[PACK_ID_BYTES], uint64_t offset,
                  uint32_t length, struct buffer *ret_bytes);
/* Forget what was fetched of a range, because it was wrong. */
void windows_drop(struct windows *windows, const uint8_t pack[PACK_ID_BYTES], uint64_t offset,
                  uint64_t length);

struct windows_stats {
	uint64_t hits;          /* reads served without a request of their own */
	uint64_t requests;      /* sent */
	uint64_t fetched_bytes; /* by them */
	uint64_t used_bytes;    /* of these, served at least once */
	uint64_t held_bytes;    /* now */
};
void windows_stats(struct windows *windows, struct windows_stats *ret_stats);

#endif
