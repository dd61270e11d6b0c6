/*
 * cursors.c — hides which read goes on from which, and how fast windows grow.
 *
 * A window is a multiple of what its cursor has read so far, so it doubles with each window read.
 * It is asked for when less than half of it is left, or ASK_BYTES of it were read. Credit bounds
 * what all cursors together may have fetched in vain to EARN of what was read, plus a first
 * allowance: a reader that jumps finds its windows small, one that goes on gets all it can use.
 */
#include "cache/cursors.h"

#define CREDIT_FIRST ((uint64_t)512 << 10)
#define CREDIT_START ((uint64_t)8 << 20)      /* for a file read from its first byte */
#define START_READ_BYTES ((uint64_t)64 << 10) /* by a read that does not just look at a header */
/* Less is not worth a request: it waits for more credit. */
#define AHEAD_BYTES_MIN ((uint64_t)64 << 10)
#define AHEAD_BYTES_ENOUGH ((uint64_t)1 << 20)
#define AHEAD_BYTES_LARGE ((uint64_t)16 << 20) /* two requests */
#define ASK_BYTES ((uint64_t)16 << 20)         /* read of a large window: time to ask for more */
#define GAP_BYTES_MAX ((uint64_t)1 << 20)
#define BACK_BYTES_MAX ((uint64_t)2 << 20) /* the kernel's reads overtake each other by so much */
#define STEADY_BYTES ((uint64_t)16 << 20)  /* a cursor that went on for so long will go on */
#define USUAL_RUNS 8
#define USUAL_RUNS_MIN 3
#define RUN_OVER_READS 8                  /* elsewhere since then */
#define CREDIT_REPLAY ((uint64_t)1 << 20) /* when reads come again for the first time */
#define REPLAY_PROVEN 4                   /* guesses: then they earn as steady reading does */

int cursors_new(struct cursors **ret_cursors)
{
	struct cursors *cursors = calloc(1, sizeof(*cursors));
	if (!cursors)
		return -ERR_NO_MEMORY;
	cursors->credit = CREDIT_FIRST;
	*ret_cursors = cursors;
	return 0;
}

void cursors_free(struct cursors *cursors)
{
	if (!cursors)
		return;
	columns_free(cursors->columns);
	extents_release(&cursors->unread);
	free(cursors);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* How far the read is from going on where the cursor stands; UINT64_MAX: it does not. */
static uint64_t distance(const struct cursor *cursor, const struct cursors_read *read)
{
	uint64_t length = read->end - read->start;
	if (read->start >= cursor->at) {
		uint64_t gap = read->start - cursor->at;
		/* One read alone proves little: only what follows at once goes on from it. */
		uint64_t allowed =
		        cursor->continued ? GAP_BYTES_MAX : smaller(length, GAP_BYTES_MAX);
		return gap <= allowed || read->start < cursor->ahead ? gap : UINT64_MAX;
	}
	uint64_t back = cursor->at - read->start;
	bool near = cursor->continued
	                    ? back <= BACK_BYTES_MAX && read->end + BACK_BYTES_MAX > cursor->start
	                    : read->end == cursor->start || read->start >= cursor->start;
	return near ? back : UINT64_MAX;
}

static struct cursor *find(struct cursors *cursors, const struct cursors_read *read)
{
	struct cursor *found = NULL;
	uint64_t least = UINT64_MAX;
	for (size_t i = 0; i < cursors->count; i++) {
		uint64_t far = distance(&cursors->items[i], read);
		if (far < least) {
			least = far;
			found = &cursors->items[i];
		}
	}
	return found;
}

static struct cursor *begin(struct cursors *cursors, const struct cursors_read *read)
{
	struct cursor *cursor = &cursors->items[0];
	if (cursors->count < CURSORS_MAX) {
		cursor = &cursors->items[cursors->count++];
	} else {
		for (size_t i = 1; i < CURSORS_MAX; i++)
			if (cursors->items[i].used < cursor->used)
				cursor = &cursors->items[i];
	}
	*cursor = (struct cursor){.start = read->start,
	                          .at = read->end,
	                          .ahead = read->end,
	                          .run = read->end - read->start,
	                          .at_start = read->start == 0};
	return cursor;
}

static void go_on(struct cursor *cursor, const struct cursors_read *read)
{
	uint64_t length = read->end - read->start;
	/* Reading the same again is not going on. */
	if (read->end > cursor->at) {
		cursor->run += smaller(length, read->end - cursor->at);
		cursor->at = read->end;
		cursor->continued = true;
	} else if (read->start < cursor->start) {
		cursor->run += smaller(length, cursor->start - read->start);
		cursor->start = read->start;
		cursor->at_start = read->start == 0;
		cursor->continued = true;
	}
}

/* How far the last runs went on, on average, if most were of several reads: the next will be like
 * them, as the column chunks of a row group are. 0: nobody knows. */
static uint64_t usual_run(const struct cursors *cursors)
{
	uint64_t before = UINT64_MAX, sum = 0;
	unsigned runs = 0, continued = 0;
	while (runs < USUAL_RUNS) {
		const struct cursor *last = NULL;
		for (size_t i = 0; i < cursors->count; i++) {
			const struct cursor *item = &cursors->items[i];
			if (item->used < before && (!last || item->used > last->used))
				last = item;
		}
		if (!last)
			break;
		before = last->used;
		if (cursors->clock - last->used < RUN_OVER_READS)
			continue;
		runs++;
		continued += last->continued;
		sum += last->continued ? last->run : 0;
	}
	return continued >= USUAL_RUNS_MIN && continued * 4 >= runs * 3 ? sum / continued : 0;
}

/* How much is to be ahead of the cursor; 0: nothing. */
static uint64_t window_of(const struct cursors *cursors, const struct cursor *cursor)
{
	if (cursor->at_start && cursor->run >= START_READ_BYTES)
		return larger(cursor->run * 16, WINDOW_BYTES_MIN);
	uint64_t usual = usual_run(cursors);
	uint64_t left = usual - smaller(usual, cursor->run);
	if (!cursor->continued)
		return left < AHEAD_BYTES_MIN ? 0 : left;
	uint64_t window = cursor->run * 2;
	if (cursor->run < usual * 2)
		window = smaller(window, larger(left, usual / 4));
	return larger(window, WINDOW_BYTES_MIN);
}

/* Tells columns of the read, or replay while none are known. True: that says what goes on from it,
 * and no window has to. */
static bool foresee(struct cursors *cursors, const struct cursors_read *read)
{
	if (cursors->columns)
		return columns_read(cursors->columns, read->start, read->end);
	replay_read(&cursors->replay, read->start, read->end);
	return replay_expects(&cursors->replay, read->end);
}

/* What may be fetched in vain for these bytes read: three quarters of them; all, for who goes on
 * steadily; the double, for a file that is read from its beginning, or as it was before. */
static uint64_t earn(const struct cursors *cursors, const struct cursor *cursor, uint64_t bytes)
{
	bool foreseen = cursors->columns ? columns_proven(cursors->columns)
	                                 : cursors->replay.place_count &&
	                                           cursors->replay.proven >= REPLAY_PROVEN;
	if ((cursor->at_start && cursor->continued) || foreseen)
		return 2 * bytes;
	return cursor->run >= STEADY_BYTES ? bytes : bytes - bytes / 4;
}

uint64_t cursors_read(struct cursors *cursors, const struct cursors_read *read,
                      struct extent *ret_ahead)
{
	*ret_ahead = (struct extent){0, 0};
	uint64_t used = 0;
	if (extents_reserve(&cursors->unread, 1) == 0)
		used = extents_remove(&cursors->unread, read->start, read->end);
	struct cursor *cursor = find(cursors, read);
	if (cursor)
		go_on(cursor, read);
	else
		cursor = begin(cursors, read);
	cursor->used = ++cursors->clock;
	bool large_start = cursor->at_start && cursor->run >= START_READ_BYTES;
	if (large_start && !cursors->started) {
		cursors->started = true;
		cursors->credit += CREDIT_START;
	}
	bool foreseen = foresee(cursors, read);
	cursors->credit += used + earn(cursors, cursor, used + read->missing);
	if (cursors->replay.place_count && !cursors->replayed) {
		cursors->replayed = true;
		cursors->credit += CREDIT_REPLAY;
	}
	cursors->credit = smaller(cursors->credit, larger(read->window_max, CREDIT_FIRST));
	uint64_t window = smaller(window_of(cursors, cursor), read->window_max);
	if (!window || foreseen)
		return used;

	uint64_t from = larger(cursor->ahead, cursor->at);
	uint64_t enough = larger(window / 2, window - smaller(window, ASK_BYTES));
	if (from - cursor->at > enough || from >= read->size)
		return used;
	uint64_t length = smaller(cursor->at + window - from, read->size - from);
	length = smaller(length, cursors->credit);
	/* The more is ahead already, the longer it can wait for enough for large requests. */
	uint64_t least = smaller(larger(window / 4, AHEAD_BYTES_MIN), AHEAD_BYTES_ENOUGH);
	least = smaller(larger(least, (from - cursor->at) / 4), AHEAD_BYTES_LARGE);
	if (length < least && length < read->size - from)
		return used;
	cursors->credit -= length;
	cursor->ahead = from + length;
	*ret_ahead = (struct extent){from, from + length};
	return used;
}

bool cursors_replay(struct cursors *cursors, const struct cursors_read *read,
                    struct extent *ret_ahead)
{
	uint64_t most = smaller(cursors->credit, read->window_max);
	bool more = cursors->columns ? columns_next(cursors->columns, most, ret_ahead)
	                             : replay_next(&cursors->replay, read->size, most, ret_ahead);
	if (!more)
		return false;
	cursors->credit -= ret_ahead->end - ret_ahead->start;
	return true;
}

void cursors_know_columns(struct cursors *cursors, struct columns *columns)
{
	columns_free(cursors->columns);
	cursors->columns = columns;
}

void cursors_refund(struct cursors *cursors, uint64_t bytes)
{
	cursors->credit += bytes;
}

void cursors_fetching(struct cursors *cursors, uint64_t start, uint64_t end)
{
	if (extents_reserve(&cursors->unread, 1) == 0)
		extents_add(&cursors->unread, start, end);
}

void cursors_withdraw(struct cursors *cursors, uint64_t start, uint64_t end)
{
	if (extents_reserve(&cursors->unread, 1) == 0)
		cursors->credit += extents_remove(&cursors->unread, start, end);
	if (cursors->columns)
		columns_withdraw(cursors->columns, start, end);
	for (size_t i = 0; i < cursors->count; i++) {
		struct cursor *cursor = &cursors->items[i];
		if (cursor->ahead > start && cursor->at < end)
			cursor->ahead = larger(start, cursor->at);
	}
}
