/*
 * content — what is in a file: nothing, one chunk, or a tree of lists of chunks and holes.
 *
 * Invariant: equal bytes have equal ids, whoever stored them, by whatever edits, sparse or not.
 * Long lists are trees with content-defined node boundaries, so an edit rewrites O(log n) of
 * them. Format: store/README.md, "File content".
 * Threads: any; the structs are plain values.
 */
#ifndef STORE_CONTENT_H
#define STORE_CONTENT_H

#include "store/odb.h"

#define FILE_BYTES_MAX ((uint64_t)8 << 40)

enum content_kind {
	CONTENT_EMPTY = 0, /* size 0, pointer none */
	CONTENT_CHUNK = 1, /* pointer is the file's only chunk */
	CONTENT_LIST = 2,  /* pointer is the root of its lists */
};
struct content {
	enum content_kind kind;
	uint64_t size; /* bytes of the file */
	struct pointer pointer;
};
static inline bool content_equal(const struct content *a, const struct content *b)
{
	return a->size == b->size && id_equal(&a->pointer.id, &b->pointer.id);
}

/* Store the first `size` bytes of `fd` (holes are found with SEEK_HOLE and skipped cheaply).
 * A file that becomes shorter meanwhile is -ERR_BUSY. Moves the descriptor's file position.
 * Blocks on disk and store. */
int content_store(struct packer *packer, int fd, uint64_t size, const struct progress *progress,
                  struct content *ret_content, struct message *message);

/* Half-open byte range. */
struct extent {
	uint64_t start;
	uint64_t end;
};
/* The same result as content_store, reading only what changed: `fd` holds valid bytes in the
 * `dirty` extents (ascending, disjoint, not touching); everything else below min(base->size,
 * size) is as in `base`; what lies beyond base->size and is not dirty is zero. (A file that was
 * cut and grew again: what was cut is dirty.) Bytes next to a dirty extent are re-read from the
 * base, by `read` for whoever has a copy at hand, through the odb when it is NULL. Cost: what
 * changed, plus O(log n). */
typedef int base_read_fn(void *context, uint64_t offset, size_t length, void *out,
                         struct message *message);
struct edit_base {
	const struct content *content;
	base_read_fn *read;
	void *context;
};
int content_store_edit(struct packer *packer, struct odb *odb, const struct edit_base *base, int fd,
                       uint64_t size, const struct extent *dirty, size_t dirty_count,
                       const struct progress *progress, struct content *ret_content,
                       struct message *message);

/* Copy verified bytes [offset, offset+length) to `out`, zeroes for holes. The range must lie
 * inside the file. -ERR_CORRUPT, -ERR_STORE_AWAY. */
int content_read(struct odb *odb, const struct content *content, uint64_t offset, size_t length,
                 void *out, struct message *message);

/* One chunk or hole of a file. */
struct piece {
	uint64_t offset; /* in the file */
	uint64_t length;
	bool hole;
	struct pointer pointer; /* of the chunk, when not a hole */
};
/* Every piece that touches [offset, offset+length), in order. Non-zero from the callback stops
 * and is returned. Reads list nodes, no content. */
typedef int piece_fn(void *context, const struct piece *piece);
int content_pieces(struct odb *odb, const struct content *content, uint64_t offset, uint64_t length,
                   piece_fn *callback, void *context, struct message *message);

/* Every list node of the content, for fsck and gc (chunks come through content_pieces). */
typedef int pointer_fn(void *context, enum record_kind kind, const struct pointer *pointer);
int content_walk(struct odb *odb, const struct content *content, pointer_fn *callback,
                 void *context, struct message *message);

#endif
