/*
 * evict.c — hides which local bytes go when there are too many.
 *
 * Recency is a file's mtime: set when its content was fetched or adopted, and again on use (at
 * most once a minute). Nothing is kept in memory for a file that is not in use, so a cache of
 * millions costs no memory; a pass reads the directories, keeps the CANDIDATES_MAX oldest in a
 * heap, and unlinks from the oldest on. It frees down to a lower mark, so that passes are rare.
 *
 * Candidates are durable files, recent ones, and partial blobs nobody has open. Files that are
 * referenced stay, even when the bound is passed by them alone.
 */
#include "cache/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define CANDIDATES_MAX 65536
#define FUTILE_PAUSE_MS 2000
/* Percent of bytes_max; or, without one, of the file system that must stay free. */
#define UPPER_PERCENT 95
#define LOWER_PERCENT 90
#define FREE_PERCENT 10
#define FREE_PERCENT_AFTER 11

enum home { HOME_DURABLE, HOME_RECENT, HOME_PARTIAL };

struct candidate {
	int64_t used_ms;
	uint64_t bytes;
	struct id id;
	enum home home;
};

/* A heap with the most recently used on top: the next to be pushed out. */
struct candidates {
	struct candidate *items;
	size_t count;
	size_t capacity;
};

static void sift_down(struct candidates *heap, size_t at)
{
	for (;;) {
		size_t largest = at;
		for (size_t child = 2 * at + 1; child <= 2 * at + 2 && child < heap->count; child++)
			if (heap->items[child].used_ms > heap->items[largest].used_ms)
				largest = child;
		if (largest == at)
			return;
		struct candidate moved = heap->items[at];
		heap->items[at] = heap->items[largest];
		heap->items[largest] = moved;
		at = largest;
	}
}

static void sift_up(struct candidates *heap, size_t at)
{
	while (at && heap->items[at].used_ms > heap->items[(at - 1) / 2].used_ms) {
		struct candidate moved = heap->items[at];
		heap->items[at] = heap->items[(at - 1) / 2];
		heap->items[(at - 1) / 2] = moved;
		at = (at - 1) / 2;
	}
}

static void consider(struct candidates *heap, const struct candidate *candidate)
{
	if (heap->count == CANDIDATES_MAX) {
		if (candidate->used_ms >= heap->items[0].used_ms)
			return;
		heap->items[0] = *candidate;
		sift_down(heap, 0);
		return;
	}
	if (heap->count == heap->capacity) {
		size_t capacity = heap->capacity ? heap->capacity * 2 : 256;
		struct candidate *items = reallocarray(heap->items, capacity, sizeof(*items));
		if (!items)
			return; /* evicts among fewer */
		heap->items = items;
		heap->capacity = capacity;
	}
	heap->items[heap->count] = *candidate;
	sift_up(heap, heap->count++);
}

static int64_t used_ms_of(const struct stat *status)
{
	return (int64_t)status->st_mtim.tv_sec * 1000 + status->st_mtim.tv_nsec / 1000000;
}

/* -- looking around -- */

static void see_durable(struct cache *cache, int directory, const char *name, const struct id *id,
                        void *context)
{
	struct candidates *heap = context;
	struct stat status;
	if (!id || fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
		return;
	cache->scan_count++;
	cache->scan_bytes += disk_bytes_of(&status);
	struct candidate candidate = {used_ms_of(&status), disk_bytes_of(&status), *id,
	                              HOME_DURABLE};
	consider(heap, &candidate);
}

/* False when it was interrupted by closing. */
static bool see_all_durable(struct cache *cache, struct candidates *heap)
{
	pthread_mutex_lock(&cache->scan_lock);
	cache->scan_count = cache->scan_bytes = 0;
	while (cache->scanned < SHARDS && !cache->closing) {
		char path[3];
		snprintf(path, sizeof(path), "%02x", cache->scanned);
		(void)each_name(cache, cache->blobs, path, see_durable, heap);
		cache->scanned++;
		pthread_mutex_unlock(&cache->scan_lock); /* let adopters in */
		pthread_mutex_lock(&cache->scan_lock);
	}
	bool whole = cache->scanned == SHARDS;
	cache->scanned = 0;
	pthread_mutex_lock(&cache->table_lock);
	if (whole) {
		cache->durable_count = cache->scan_count;
		cache->durable_bytes = cache->scan_bytes;
	}
	pthread_mutex_unlock(&cache->table_lock);
	pthread_mutex_unlock(&cache->scan_lock);
	return whole;
}

void evict_count_adopted(struct cache *cache, const struct id *id, uint64_t bytes)
{
	if (id->bytes[0] < cache->scanned) {
		cache->scan_count++;
		cache->scan_bytes += bytes;
	}
	pthread_mutex_lock(&cache->table_lock);
	cache->durable_count++;
	cache->durable_bytes += bytes;
	pthread_mutex_unlock(&cache->table_lock);
}

static void see_recent(struct cache *cache, struct candidates *heap)
{
	pthread_mutex_lock(&cache->table_lock);
	size_t count = HASH_COUNT(cache->recent), i = 0;
	struct candidate *found = calloc(count + 1, sizeof(*found));
	struct recent *recent, *next;
	if (found) {
		HASH_ITER (hh, cache->recent, recent, next)
			found[i++] = (struct candidate){0, recent->bytes, recent->id, HOME_RECENT};
	}
	pthread_mutex_unlock(&cache->table_lock);
	for (size_t k = 0; k < i; k++) {
		char name[ID_HEX + 1];
		struct stat status;
		id_to_hex(&found[k].id, name);
		if (fstatat(cache->recents, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		found[k].used_ms = used_ms_of(&status);
		consider(heap, &found[k]);
	}
	free(found);
}

static void see_idle(struct cache *cache, struct candidates *heap)
{
	pthread_mutex_lock(&cache->table_lock);
	const struct blob *blob;
	DL_FOREACH (cache->idle, blob) {
		struct candidate candidate = {blob->idle_since_ms, blob->disk_bytes, blob->id,
		                              HOME_PARTIAL};
		consider(heap, &candidate);
	}
	pthread_mutex_unlock(&cache->table_lock);
}

/* -- letting go -- */

static bool referenced(struct cache *cache, const struct id *id)
{
	struct blob *blob;
	pthread_mutex_lock(&cache->table_lock);
	HASH_FIND(hh, cache->table, id, sizeof(*id), blob);
	bool in_use = blob && blob->references;
	pthread_mutex_unlock(&cache->table_lock);
	return in_use;
}

static bool drop_idle(struct cache *cache, const struct id *id)
{
	struct blob *blob;
	pthread_mutex_lock(&cache->table_lock);
	HASH_FIND(hh, cache->table, id, sizeof(*id), blob);
	if (blob && blob->references)
		blob = NULL;
	if (blob) {
		HASH_DELETE(hh, cache->table, blob);
		DL_DELETE(cache->idle, blob);
		cache->idle_count--;
	}
	pthread_mutex_unlock(&cache->table_lock);
	if (blob)
		blob_free(blob);
	return blob != NULL;
}

/* A reader that opened the file just now keeps its bytes: only the name goes. */
static bool drop(struct cache *cache, const struct candidate *candidate)
{
	char path[SHARD_PATH_MAX];
	uint64_t bytes;
	if (candidate->home == HOME_PARTIAL)
		return drop_idle(cache, &candidate->id);
	if (referenced(cache, &candidate->id))
		return false;
	shard_path(&candidate->id, path);
	if (candidate->home == HOME_RECENT)
		return recent_remove(cache, &candidate->id, &bytes) &&
		       unlinkat(cache->recents, path + 3, 0) == 0;
	if (unlinkat(cache->blobs, path, 0) < 0)
		return false;
	pthread_mutex_lock(&cache->table_lock);
	cache->durable_count--;
	cache->durable_bytes -= candidate->bytes;
	pthread_mutex_unlock(&cache->table_lock);
	return true;
}

static int by_use(const void *a, const void *b)
{
	const struct candidate *left = a, *right = b;
	return (left->used_ms > right->used_ms) - (left->used_ms < right->used_ms);
}

/* Under maintenance: one pass; the bytes freed, at least `wanted` if it could. */
static uint64_t evict(struct cache *cache, uint64_t wanted)
{
	struct candidates heap = {0};
	uint64_t freed = 0, count = 0;
	see_idle(cache, &heap);
	see_recent(cache, &heap);
	if (see_all_durable(cache, &heap)) {
		if (heap.count > 0) /* nothing to evict: there is no array */
			qsort(heap.items, heap.count, sizeof(*heap.items), by_use);
		for (size_t i = 0; i < heap.count && freed < wanted; i++) {
			if (!drop(cache, &heap.items[i]))
				continue;
			freed += heap.items[i].bytes;
			count++;
		}
	}
	free(heap.items);
	pthread_mutex_lock(&cache->table_lock);
	cache->counters.evicted += count;
	pthread_mutex_unlock(&cache->table_lock);
	if (count == 0)
		cache->futile_until_ms = clock_monotonic_ms() + FUTILE_PAUSE_MS;
	return freed;
}

/* -- when -- */

static uint64_t percent(uint64_t whole, unsigned part)
{
	return whole / 100 * part + whole % 100 * part / 100;
}

static uint64_t bytes_held(struct cache *cache)
{
	pthread_mutex_lock(&cache->table_lock);
	uint64_t bytes = cache->durable_bytes + cache->recent_bytes + cache->partial_bytes;
	pthread_mutex_unlock(&cache->table_lock);
	return bytes;
}

/* How far `more` bytes would pass a mark: of bytes_max, or of the disk's free space. */
static uint64_t excess(struct cache *cache, uint64_t more, unsigned bound_percent,
                       unsigned free_percent)
{
	uint64_t have, may;
	if (cache->bytes_max) {
		have = bytes_held(cache) + more;
		may = percent(cache->bytes_max, bound_percent);
	} else {
		struct statvfs space;
		if (fstatvfs(cache->directory, &space) < 0)
			return 0;
		may = (uint64_t)space.f_bavail * space.f_frsize;
		have = percent((uint64_t)space.f_blocks * space.f_frsize, free_percent) + more;
	}
	return have > may ? have - may : 0;
}

uint64_t cache_capacity(struct cache *cache)
{
	struct statvfs space;
	if (cache->bytes_max)
		return percent(cache->bytes_max, LOWER_PERCENT);
	evict_count(cache); /* what the keeper may not have seen yet could go */
	if (fstatvfs(cache->directory, &space) < 0)
		return 0;
	uint64_t may = bytes_held(cache) + (uint64_t)space.f_bavail * space.f_frsize;
	uint64_t free = percent((uint64_t)space.f_blocks * space.f_frsize, FREE_PERCENT_AFTER);
	return may > free ? may - free : 0;
}

static bool pausing(struct cache *cache)
{
	return clock_monotonic_ms() < cache->futile_until_ms;
}

void evict_before(struct cache *cache, uint64_t bytes)
{
	if (pausing(cache))
		return;
	/* With a bound it is kept now; the file system's share is approached in the background. */
	if (cache->bytes_max && excess(cache, bytes, 100, 0)) {
		pthread_mutex_lock(&cache->maintenance);
		/* Whoever had the lock may have made the room. */
		if (excess(cache, bytes, 100, 0))
			evict(cache, excess(cache, bytes, LOWER_PERCENT, 0));
		pthread_mutex_unlock(&cache->maintenance);
	} else if (excess(cache, bytes, UPPER_PERCENT, FREE_PERCENT)) {
		keeper_wake(cache);
	}
}

bool evict_for_ahead(struct cache *cache, uint64_t bytes)
{
	if (!cache->bytes_max) {
		if (!excess(cache, bytes, 0, FREE_PERCENT))
			return true;
		keeper_wake(cache);
		return false;
	}
	evict_before(cache, bytes);
	return !excess(cache, bytes, 100, 0);
}

bool evict_now(struct cache *cache, uint64_t bytes)
{
	if (pausing(cache))
		return false;
	pthread_mutex_lock(&cache->maintenance);
	uint64_t freed = evict(cache, bytes + EVICT_BYTES_MIN);
	pthread_mutex_unlock(&cache->maintenance);
	return freed > 0;
}

void evict_count(struct cache *cache)
{
	struct candidates heap = {0};
	pthread_mutex_lock(&cache->maintenance);
	see_all_durable(cache, &heap);
	pthread_mutex_unlock(&cache->maintenance);
	free(heap.items);
}

void evict_in_background(struct cache *cache)
{
	if (pausing(cache) || !excess(cache, 0, UPPER_PERCENT, FREE_PERCENT))
		return;
	pthread_mutex_lock(&cache->maintenance);
	uint64_t wanted = excess(cache, 0, LOWER_PERCENT, FREE_PERCENT_AFTER);
	if (wanted)
		evict(cache, wanted);
	pthread_mutex_unlock(&cache->maintenance);
}
