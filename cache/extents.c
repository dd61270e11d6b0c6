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
