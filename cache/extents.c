/*
 * extents.c — hides how the set is kept: a sorted array, searched by bisection. Neighbours are
 * joined, so a file read from front to back is one range.
 */
#include "cache/extents.h"

#include <assert.h>

void extents_release(struct extents *extents)
{
	free(extents->items);
	*extents = (struct extents){0};
}

int extents_reserve(struct extents *extents, size_t more)
{
	if (extents->capacity - extents->count >= more)
		return 0;
	size_t capacity = extents->capacity * 2;
	if (capacity < extents->count + more)
		capacity = extents->count + more;
	struct extent *items = reallocarray(extents->items, capacity, sizeof(*items));
	if (!items)
		return -ERR_NO_MEMORY;
	extents->items = items;
	extents->capacity = capacity;
	return 0;
}

/* Index of the first range that ends at or after `at` (after it, when `beyond`). */
static size_t find(const struct extents *extents, uint64_t at, bool beyond)
{
	size_t low = 0, high = extents->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		uint64_t end = extents->items[middle].end;
		if (end < at || (beyond && end == at))
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

void extents_add(struct extents *extents, uint64_t start, uint64_t end)
{
	if (start >= end)
		return;
	struct extent joined = {start, end};
	size_t first = find(extents, start, false), last = first;
	while (last < extents->count && extents->items[last].start <= end) {
		if (extents->items[last].start < joined.start)
			joined.start = extents->items[last].start;
		if (extents->items[last].end > joined.end)
			joined.end = extents->items[last].end;
		last++;
	}
	size_t count = extents->count - (last - first) + 1;
	assert(count <= extents->capacity);
	if (extents->count > last)
		memmove(extents->items + first + 1, extents->items + last,
		        (extents->count - last) * sizeof(*extents->items));
	extents->items[first] = joined;
	extents->count = count;
}

static uint64_t overlap(const struct extent *item, uint64_t start, uint64_t end)
{
	uint64_t from = item->start > start ? item->start : start;
	uint64_t to = item->end < end ? item->end : end;
	return from < to ? to - from : 0;
}

uint64_t extents_count(const struct extents *extents, uint64_t start, uint64_t end)
{
	uint64_t count = 0;
	for (size_t i = find(extents, start, true);
	     i < extents->count && extents->items[i].start < end; i++)
		count += overlap(&extents->items[i], start, end);
	return count;
}

uint64_t extents_remove(struct extents *extents, uint64_t start, uint64_t end)
{
	uint64_t count = extents_count(extents, start, end);
	if (count == 0)
		return 0;
	size_t first = find(extents, start, true), last = first;
	struct extent left = extents->items[first], right = left;
	for (; last < extents->count && extents->items[last].start < end; last++)
		right = extents->items[last];
	struct extent rest[2];
	size_t kept = 0;
	if (left.start < start)
		rest[kept++] = (struct extent){left.start, start};
	if (right.end > end)
		rest[kept++] = (struct extent){end, right.end};
	assert(extents->count - (last - first) + kept <= extents->capacity);
	if (last < extents->count)
		memmove(extents->items + first + kept, extents->items + last,
		        (extents->count - last) * sizeof(*extents->items));
	if (kept)
		memcpy(extents->items + first, rest, kept * sizeof(*rest));
	extents->count = extents->count - (last - first) + kept;
	return count;
}

bool extents_cover(const struct extents *extents, uint64_t start, uint64_t end)
{
	return start >= end || extents_skip(extents, start) >= end;
}

uint64_t extents_skip(const struct extents *extents, uint64_t at)
{
	size_t i = find(extents, at, true);
	if (i < extents->count && extents->items[i].start <= at)
		return extents->items[i].end;
	return at;
}
