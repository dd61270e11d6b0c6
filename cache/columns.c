/*
 * columns.c — hides when a column counts as wanted, and how much is staked on it.
 *
 * Chunks are in the order of the file, so those of a row group lie together, and one index, `next`,
 * goes over what may come: wanted chunks from it on are asked for, the others passed over. Once two
 * row groups were read, a column is wanted that was read in a quarter as many of the last ones as
 * the one read in most of them (what a filter leaves out is seldom wanted). A chunk counts as read
 * when a good part of it was: the kernel reads a little beyond an end, into the neighbour.
 *
 * What was asked for and is not read yet is a guess. At most twice as many are outstanding as were
 * right. They are wrong when they lie BEHIND_GROUPS back (threads overtake each other), and all of
 * them when VAIN_MAX chunks were read that nobody had guessed.
 */
#include "cache/columns.h"

#define READ_BYTES ((uint64_t)1 << 20) /* of a chunk, or half of it: it is read */
#define BEYOND_BYTES_MAX ((uint64_t)512 << 10)
#define GAP_BYTES_MAX ((uint64_t)64 << 10) /* between chunks that one request fetches */
#define AHEAD_BYTES_MIN ((uint64_t)64 << 10)
#define AHEAD_BYTES_MAX ((uint64_t)8 << 20) /* of a chunk before anybody comes there */
#define REST_BYTES_MAX ((uint64_t)16 << 20) /* of the chunk that is being read, at once */
#define BEHIND_GROUPS 32
#define VAIN_MAX 8
#define WANTED_PARTS 4
#define GROUPS_KEPT 16
#define PROVEN_FIRST 2
#define PROVEN 4
#define OUTSTANDING_MAX 64

struct chunk {
	struct column_chunk at;
	uint64_t asked; /* up to here it was asked for; its start: not at all */
	uint64_t bytes_read;
	uint32_t group_start; /* index of its row group's first chunk */
	bool read;
	bool guessed;    /* and not read yet */
	bool group_read; /* of a first chunk: some of its row group was */
};

struct columns {
	struct chunk *chunks; /* ascending, disjoint */
	size_t count;
	uint32_t *groups_read; /* for each column: in how many row groups; halved now and then */
	uint32_t column_count;
	uint32_t most;        /* the most of groups_read */
	uint32_t group_count; /* row groups of which anything was read */
	size_t next;
	size_t current; /* the chunk that is being read; count: none */
	uint64_t current_end;
	uint64_t proven, outstanding;
	unsigned vain; /* chunks read since a guess was right */
};

static int by_start(const void *a, const void *b)
{
	const struct column_chunk *left = a, *right = b;
	return (left->start > right->start) - (left->start < right->start);
}

/* Row groups one after the other, chunks that do not overlap. */
static bool is_plain(const struct column_chunk *chunks, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (chunks[i].start >= chunks[i].end || chunks[i].column >= COLUMN_CHUNKS_MAX)
			return false;
		if (i > 0 &&
		    (chunks[i].start < chunks[i - 1].end || chunks[i].group < chunks[i - 1].group))
			return false;
	}
	return true;
}

int columns_new(const struct column_chunk *chunks, size_t count, struct columns **ret_columns)
{
	if (count == 0 || count > COLUMN_CHUNKS_MAX)
		return -ERR_UNSUPPORTED;
	CLEANUP(free_pointer) struct column_chunk *sorted = malloc(count * sizeof(*sorted));
	if (!sorted)
		return -ERR_NO_MEMORY;
	memcpy(sorted, chunks, count * sizeof(*sorted));
	qsort(sorted, count, sizeof(*sorted), by_start);
	if (!is_plain(sorted, count))
		return -ERR_UNSUPPORTED;
	struct columns *columns = calloc(1, sizeof(*columns));
	if (!columns)
		return -ERR_NO_MEMORY;
	columns->count = columns->current = count;
	columns->proven = PROVEN_FIRST;
	columns->chunks = calloc(count, sizeof(*columns->chunks));
	for (size_t i = 0, start = 0; columns->chunks && i < count; i++) {
		start = sorted[i].group == sorted[start].group ? start : i;
		columns->chunks[i] = (struct chunk){
		        .at = sorted[i], .asked = sorted[i].start, .group_start = (uint32_t)start};
		if (sorted[i].column >= columns->column_count)
			columns->column_count = sorted[i].column + 1;
	}
	columns->groups_read = calloc(columns->column_count, sizeof(*columns->groups_read));
	if (!columns->chunks || !columns->groups_read) {
		columns_free(columns);
		return -ERR_NO_MEMORY;
	}
	*ret_columns = columns;
	return 0;
}

void columns_free(struct columns *columns)
{
	if (!columns)
		return;
	free(columns->groups_read);
	free(columns->chunks);
	free(columns);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Index of the first chunk that ends behind `at`; count: none does. */
static size_t chunk_behind(const struct columns *columns, uint64_t at)
{
	size_t low = 0, high = columns->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (columns->chunks[middle].at.end <= at)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool is_wanted(const struct columns *columns, const struct chunk *chunk)
{
	uint32_t groups = columns->groups_read[chunk->at.column];
	return columns->group_count > 1 && groups && groups * WANTED_PARTS >= columns->most;
}

/* -- what was read -- */

static void drop_guess(struct columns *columns, struct chunk *chunk)
{
	columns->outstanding -= chunk->guessed;
	chunk->guessed = false;
}

static void was_wrong(struct columns *columns)
{
	columns->proven = (columns->proven + 1) / 2;
}

/* Nobody comes to a row group so far back. */
static void drop_passed(struct columns *columns, size_t i)
{
	uint32_t group = columns->chunks[i].at.group;
	while (i-- > 0 && columns->outstanding) {
		struct chunk *chunk = &columns->chunks[i];
		if (chunk->at.group + 2 * BEHIND_GROUPS < group)
			break;
		if (!chunk->guessed || chunk->at.group + BEHIND_GROUPS >= group)
			continue;
		drop_guess(columns, chunk);
		was_wrong(columns);
	}
}

static void drop_all(struct columns *columns)
{
	for (size_t i = 0; i < columns->count && columns->outstanding; i++)
		drop_guess(columns, &columns->chunks[i]);
	was_wrong(columns);
}

/* Of a column that is read over and over, only the last row groups count. */
static void count_group(struct columns *columns, uint32_t column)
{
	if (++columns->groups_read[column] <= columns->most)
		return;
	columns->most = columns->groups_read[column];
	if (columns->most < GROUPS_KEPT)
		return;
	columns->most /= 2;
	for (uint32_t i = 0; i < columns->column_count; i++)
		columns->groups_read[i] /= 2;
}

static void was_read(struct columns *columns, size_t i)
{
	struct chunk *chunk = &columns->chunks[i];
	size_t start = chunk->group_start;
	bool wanted = is_wanted(columns, chunk), first = !columns->chunks[start].group_read;
	chunk->read = columns->chunks[start].group_read = true;
	if (chunk->guessed) {
		drop_guess(columns, chunk);
		columns->proven++;
		columns->vain = 0;
	} else if (++columns->vain > VAIN_MAX && columns->outstanding) {
		drop_all(columns);
		columns->vain = 0;
	}
	count_group(columns, chunk->at.column);
	columns->group_count += first;
	/* Row groups that are left out are not wanted; but what was passed over before its column
	 * was known to be wanted is. */
	if (first ? start > columns->next : !wanted && start < columns->next)
		columns->next = start;
	if (first)
		drop_passed(columns, start);
}

/* The kernel reads on from a column that was wanted into the next one, which perhaps is not. */
static bool is_beyond(const struct columns *columns, size_t i)
{
	const struct chunk *chunk = &columns->chunks[i];
	return i > 0 && columns->chunks[i - 1].read && chunk->bytes_read <= BEYOND_BYTES_MAX;
}

bool columns_read(struct columns *columns, uint64_t start, uint64_t end)
{
	uint64_t most = 0;
	bool known = false;
	columns->current = columns->count;
	for (size_t i = chunk_behind(columns, start); i < columns->count; i++) {
		struct chunk *chunk = &columns->chunks[i];
		if (chunk->at.start >= end)
			break;
		uint64_t from = start > chunk->at.start ? start : chunk->at.start;
		uint64_t to = smaller(end, chunk->at.end), length = chunk->at.end - chunk->at.start;
		chunk->bytes_read += to - from;
		if (!chunk->read && chunk->bytes_read >= smaller(READ_BYTES, (length + 1) / 2))
			was_read(columns, i);
		if (to - from <= most)
			continue;
		bool wanted = chunk->read || is_wanted(columns, chunk);
		most = to - from;
		known = wanted || is_beyond(columns, i);
		columns->current = wanted ? i : columns->count;
		columns->current_end = to;
	}
	return known;
}

/* -- what comes -- */

/* The rest of the chunk that is being read. */
static bool next_of_current(struct columns *columns, uint64_t bytes_max, struct extent *ret_range)
{
	if (columns->current == columns->count)
		return false;
	struct chunk *chunk = &columns->chunks[columns->current];
	uint64_t from = chunk->asked > columns->current_end ? chunk->asked : columns->current_end;
	uint64_t rest = chunk->at.end - from, ahead = from - columns->current_end;
	uint64_t most = columns_proven(columns) ? REST_BYTES_MAX
	                                        : 2 * (columns->current_end - chunk->at.start);
	if (rest == 0 || ahead > most / 2)
		return false;
	most = smaller(most, bytes_max);
	if (most < rest && most < AHEAD_BYTES_MIN)
		return false;
	chunk->asked = from + smaller(rest, most);
	*ret_range = (struct extent){from, chunk->asked};
	return true;
}

static bool may_guess(const struct columns *columns, const struct chunk *chunk)
{
	return !chunk->read && !chunk->guessed && chunk->asked == chunk->at.start &&
	       is_wanted(columns, chunk);
}

static uint64_t guess_end(const struct chunk *chunk)
{
	return chunk->at.start + smaller(chunk->at.end - chunk->at.start, AHEAD_BYTES_MAX);
}

static void guess(struct columns *columns, struct chunk *chunk)
{
	chunk->asked = guess_end(chunk);
	chunk->guessed = true;
	columns->outstanding++;
}

bool columns_next(struct columns *columns, uint64_t bytes_max, struct extent *ret_range)
{
	if (next_of_current(columns, bytes_max, ret_range))
		return true;
	uint64_t most = smaller(columns->proven * 2, OUTSTANDING_MAX);
	if (columns->group_count < 2)
		return false;
	while (columns->next < columns->count &&
	       !may_guess(columns, &columns->chunks[columns->next]))
		columns->next++;
	if (columns->next == columns->count || columns->outstanding >= most)
		return false;
	struct chunk *chunk = &columns->chunks[columns->next];
	uint64_t start = chunk->at.start, end = guess_end(chunk);
	if (end - start > bytes_max)
		return false;
	guess(columns, chunk);
	/* Neighbours that are wanted as well come by the same request. */
	for (size_t i = columns->next + 1; i < columns->count; i++) {
		chunk = &columns->chunks[i];
		if (chunk->at.start > end + GAP_BYTES_MAX ||
		    guess_end(chunk) - start > smaller(bytes_max, AHEAD_BYTES_MAX))
			break;
		if (!may_guess(columns, chunk))
			continue;
		end = guess_end(chunk);
		guess(columns, chunk);
	}
	*ret_range = (struct extent){start, end};
	return true;
}

bool columns_proven(const struct columns *columns)
{
	return columns->proven >= PROVEN;
}

void columns_withdraw(struct columns *columns, uint64_t start, uint64_t end)
{
	for (size_t i = chunk_behind(columns, start); i < columns->count; i++) {
		struct chunk *chunk = &columns->chunks[i];
		if (chunk->at.start >= end)
			break;
		if (chunk->asked <= start)
			continue;
		chunk->asked = start > chunk->at.start ? start : chunk->at.start;
		drop_guess(columns, chunk);
		if (i < columns->next)
			columns->next = i;
	}
}
