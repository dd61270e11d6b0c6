/*
 * columns — which columns of a file the readers want, and which chunks of them come next.
 *
 * A file in row groups holds each column in one chunk per row group. Whoever reads some columns
 * reads them in one row group after the other, in several threads perhaps: so once two row groups
 * were read, what is wanted of the next ones is known to the byte, whatever their sizes.
 *
 * Pure: no locks (the owner's), no I/O.
 */
#ifndef CACHE_COLUMNS_H
#define CACHE_COLUMNS_H

#include "cache/extents.h"

#define COLUMN_CHUNKS_MAX ((size_t)1 << 17) /* more: nothing is planned. 64 bytes each */

struct column_chunk {
	uint64_t start, end;
	uint32_t group, column;
};

struct columns;

/* Copies the chunks, which may come in any order. -ERR_UNSUPPORTED: they overlap, or there are
 * too many. */
int columns_new(const struct column_chunk *chunks, size_t count, struct columns **ret_columns);
void columns_free(struct columns *columns); /* accepts NULL */

/* A read. True: it lies in a chunk that is wanted, so columns_next tells what goes on from it; or
 * just behind one, and nothing does. */
bool columns_read(struct columns *columns, uint64_t start, uint64_t end);
/* The next range to fetch ahead, if one is to be: the caller fetches it. At most `bytes_max`: else
 * it is asked for again later. */
bool columns_next(struct columns *columns, uint64_t bytes_max, struct extent *ret_range);
/* What was to be fetched ahead of this will not come. */
void columns_withdraw(struct columns *columns, uint64_t start, uint64_t end);
/* Is what was fetched ahead of use? */
bool columns_proven(const struct columns *columns);

#endif
