/*
 * extents — a set of byte positions as sorted, disjoint, joined half-open ranges.
 *
 * Used for what is present of a blob, and what was fetched ahead. Memory is 16 bytes for each
 * range that does not touch its neighbours. Not locked: the owner does.
 */
#ifndef CACHE_EXTENTS_H
#define CACHE_EXTENTS_H

#include "store/content.h"

struct extents {
	struct extent *items;
	size_t count;
	size_t capacity;
};

void extents_release(struct extents *extents); /* accepts zeroed; leaves it empty and usable */
/* Room for `more` adds, which then cannot fail. -ERR_NO_MEMORY. */
int extents_reserve(struct extents *extents, size_t more);
/* Needs room for one more range (extents_reserve); an empty range changes nothing. */
void extents_add(struct extents *extents, uint64_t start, uint64_t end);
/* Takes positions out; returns how many there were. Needs room for one more range, too: what is
 * left of one may be two. */
uint64_t extents_remove(struct extents *extents, uint64_t start, uint64_t end);
/* How many positions of [start, end) are in the set. */
uint64_t extents_count(const struct extents *extents, uint64_t start, uint64_t end);
/* Every position of [start, end) is in the set; true for an empty range. */
bool extents_cover(const struct extents *extents, uint64_t start, uint64_t end);
/* The first position >= `at` that is not in the set. */
uint64_t extents_skip(const struct extents *extents, uint64_t at);

#endif
