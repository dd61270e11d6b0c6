/*
 * replay — reads that come again, shifted: what follows the last time follows this time.
 *
 * A reader of a few columns of a Parquet file reads a piece of each in every row group: places far
 * from each other, that go on from nowhere, but the same in each period up to a little jitter. Two
 * periods' beginnings tell where the others are.
 *
 * A run is a read and what went on from it at once. Pure: no locks (the owner's), no I/O, no blob.
 */
#ifndef CACHE_REPLAY_H
#define CACHE_REPLAY_H

#include "cache/extents.h"

#define REPLAY_RUNS_MAX 64
#define REPLAY_PLACES_MAX 31 /* two periods are remembered */
#define REPLAY_GUESSES_MAX 64

struct replay_run {
	uint64_t start, end;
};

/* One of those that every period has. Periods count from when they were recognized. */
struct replay_place {
	int64_t first, first_period; /* where it was once: the shift is measured from there */
	int64_t seen, period;        /* and last */
	int64_t anchor;              /* where it would have been expected then, jitter left out */
	uint64_t length;
	uint64_t run; /* number of the last one */
};

/* Asked for, not read yet. */
struct replay_guess {
	int64_t start;    /* where it is expected by now */
	uint64_t length;  /* both without margin */
	int64_t from, to; /* what was asked for */
	uint64_t number;  /* they count on over places, then periods */
};

struct replay {
	struct replay_run runs[REPLAY_RUNS_MAX]; /* a ring */
	uint64_t run_count;
	struct replay_place places[REPLAY_PLACES_MAX];
	size_t place_count; /* 0: nothing is recognized */
	int64_t shift;
	uint64_t spread; /* how far places are from where they are expected, on average */
	uint64_t proven; /* guesses that were right, less the wrong ones' toll */
	unsigned strays; /* runs since that were not expected */
	uint64_t next;   /* number of the next guess */
	struct replay_guess guesses[REPLAY_GUESSES_MAX];
	size_t guess_count;
};

/* A read. True when it is the first of a run that was expected. */
bool replay_read(struct replay *replay, uint64_t start, uint64_t end);
/* The next range to fetch ahead, in a file of `size`, if one is to be: the caller fetches it. At
 * most `bytes_max`: else it is asked for again later. */
bool replay_next(struct replay *replay, uint64_t size, uint64_t bytes_max,
                 struct extent *ret_range);
/* Is `at` within a run whose length is known? Then nobody has to guess how far it goes on. */
bool replay_expects(const struct replay *replay, uint64_t at);

#endif
