/*
 * cursors — where the readers of one blob are, and how far ahead of each to fetch.
 *
 * Several programs, or one that goes through several columns, read one file at several places at
 * once. Each place that reads go on from is a cursor; a read that goes on nowhere is a new cursor
 * and fetches nothing ahead. What may be fetched ahead in vain is bounded for the whole blob,
 * whatever its readers do: by credit, which reading earns and fetching ahead spends. Reads that
 * come again elsewhere in the file (cache/replay.h), and the columns that are read of one whose
 * layout is known (cache/columns.h), are fetched ahead on the same credit.
 *
 * Pure: no locks (the owner's), no I/O, no blob.
 */
#ifndef CACHE_CURSORS_H
#define CACHE_CURSORS_H

#include "cache/columns.h"
#include "cache/extents.h"
#include "cache/replay.h"

#define CURSORS_MAX 32
#define WINDOW_BYTES_MIN ((uint64_t)256 << 10)
#define WINDOW_BYTES_MAX ((uint64_t)64 << 20)

struct cursor {
	uint64_t start; /* of the first read */
	uint64_t at;    /* behind the furthest byte read */
	uint64_t ahead; /* up to here it was asked to fetch; may be below `at` */
	uint64_t run;   /* bytes read on from `start` */
	uint64_t used;  /* clock of the last read */
	bool continued; /* a second read went on from the first */
	bool at_start;  /* it began with the file's first byte */
};

struct cursors {
	struct cursor items[CURSORS_MAX];
	size_t count;
	uint64_t clock;
	uint64_t credit; /* bytes that may be fetched ahead */
	bool started;    /* the credit for reading a file from its start was given */
	bool replayed;   /* and that for the first reads that came again */
	struct replay replay;
	struct columns *columns; /* or NULL: not known. in place of windows and replay */
	bool asked_columns;      /* somebody finds out, or did */
	struct extents unread;   /* asked to be fetched ahead, not read since */
};

int cursors_new(struct cursors **ret_cursors);
void cursors_free(struct cursors *cursors); /* accepts NULL */

struct cursors_read {
	uint64_t start, end;
	uint64_t missing; /* bytes of it that must be fetched now: neither here nor on their way */
	uint64_t size;    /* of the file */
	uint64_t window_max; /* for one cursor */
};
/* A read. Returns how many bytes of it had been fetched ahead; *ret_ahead is what to fetch ahead
 * now (empty: nothing), already paid for. */
uint64_t cursors_read(struct cursors *cursors, const struct cursors_read *read,
                      struct extent *ret_ahead);
/* Where the file's column chunks lie, from now on; taken, NULL too. */
void cursors_know_columns(struct cursors *cursors, struct columns *columns);
/* After a read, until it is false: one more range to fetch ahead, because reads come again or it is
 * of a column that is wanted. */
bool cursors_replay(struct cursors *cursors, const struct cursors_read *read,
                    struct extent *ret_ahead);
/* `bytes` of what was to be fetched ahead were here already: give them back. */
void cursors_refund(struct cursors *cursors, uint64_t bytes);
/* These bytes are being fetched ahead. */
void cursors_fetching(struct cursors *cursors, uint64_t start, uint64_t end);
/* They will not come after all, paid or not: cursors that count on them ask again. */
void cursors_withdraw(struct cursors *cursors, uint64_t start, uint64_t end);

#endif
