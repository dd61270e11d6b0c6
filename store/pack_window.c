/*
 * pack_window — hides how far around a small record to fetch, and when to fetch the next range
 * before it is asked for.
 *
 * A pack is a row of blocks; a window is a run of blocks fetched by one request, and a block is in
 * one window at most. A view is what is remembered of a pack while any of its blocks are here, so
 * evidence goes with the windows it came from: in a lake much larger than the memory, whose packs
 * are seldom met again, every read costs one block and no more.
 *
 * Locks: windows.lock guards everything but a ready window's bytes, which never change; those are
 * copied under a reference.
 */
#include <assert.h>
#include <pthread.h>

#include "store/pack.h"
#include "store/pack_window.h"
#include "store/thread.h"

#define BLOCK_BYTES WINDOW_BLOCK_BYTES
#define BLOCKS_PER_PACK (PACK_TARGET_BYTES / BLOCK_BYTES)
#define RUN_MAX (WINDOW_BYTES_MAX / BLOCK_BYTES)
#define SHARE_MAX 8            /* one window is at most this part of the memory */
#define RUN_BEFORE 3           /* blocks, where only what lies before is of use */
#define GROWTH 4               /* of runs that served well */
#define MISSES_A_BLOCK 4       /* misses in one view that make a run one block longer */
#define FRESH_BYTES (8u << 20) /* evidence older than so many fetched bytes counts half */
#define THREADS_MAX 4

enum window_state { WINDOW_QUEUED, WINDOW_FETCHING, WINDOW_READY, WINDOW_FAILED };

struct window {
	struct view *view;     /* NULL: dropped, only its references keep it */
	unsigned first, count; /* blocks */
	unsigned references;   /* the view's, the fetcher's, readers' */
	enum window_state state;
	bool needed;                  /* a reader asked for it, it was not fetched ahead */
	bool went_after, went_before; /* its neighbour was asked for ahead already */
	unsigned reads;
	uint64_t read_last; /* offset in the pack */
	uint32_t used;      /* bytes */
	size_t held;        /* bytes of memory, for the limit */
	struct buffer bytes;
	int error; /* of a failed one */
	struct message message;
	struct window *prev, *next; /* in `recent` when ready, in `queue` when queued */
};

struct view {
	uint8_t pack[PACK_ID_BYTES];
	struct window *blocks[BLOCKS_PER_PACK];
	unsigned windows;       /* that have this view */
	unsigned end;           /* no blocks from here on */
	unsigned run;           /* blocks to fetch at once, by how well the last ones served */
	unsigned misses;        /* since a window went unused */
	uint64_t fetched, used; /* bytes, lately */
	UT_hash_handle hh;
};

struct windows {
	struct object_store *store;
	size_t bytes_max;
	unsigned run_max;
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a window became ready or failed */
	pthread_cond_t wanted;  /* the queue is not empty, or closing */
	struct view *views;
	struct window *recent; /* ready, least recently used first */
	struct window *queue;  /* to be fetched ahead */
	size_t held;           /* bytes of all windows with a view */
	pthread_t threads[THREADS_MAX];
	unsigned threads_running, threads_idle;
	bool closing;
	struct windows_stats stats;
};

int windows_new(struct object_store *store, size_t bytes_max, struct windows **ret_windows)
{
	struct windows *windows = calloc(1, sizeof(*windows));

	if (!windows)
		return -ERR_NO_MEMORY;
	windows->store = store;
	windows->bytes_max = bytes_max;
	windows->run_max = (unsigned)(bytes_max / BLOCK_BYTES / SHARE_MAX);
	if (windows->run_max > RUN_MAX)
		windows->run_max = RUN_MAX;
	if (windows->run_max == 0)
		windows->run_max = 1;
	pthread_mutex_init(&windows->lock, NULL);
	pthread_cond_init(&windows->changed, NULL);
	pthread_cond_init(&windows->wanted, NULL);
	*ret_windows = windows;
	return 0;
}

/* -- windows and views; all of this under the lock -- */

static void window_unref(struct window *window)
{
	if (--window->references)
		return;
	assert(!window->view);
	buffer_release(&window->bytes);
	free(window);
}

/* Take it out of its view; a view without windows is forgotten. */
static void window_detach(struct windows *windows, struct window *window)
{
	struct view *view = window->view;

	if (!view)
		return;
	for (unsigned i = 0; i < window->count; i++)
		view->blocks[window->first + i] = NULL;
	if (window->state == WINDOW_READY)
		DL_DELETE(windows->recent, window);
	if (window->state == WINDOW_QUEUED)
		DL_DELETE(windows->queue, window);
	windows->held -= window->held;
	window->view = NULL;
	window_unref(window);
	if (--view->windows == 0) {
		HASH_DEL(windows->views, view);
		free(view);
	}
}

static void evict(struct windows *windows, struct window *window)
{
	/* Not worth its bytes: the next ones here are small again. */
	if (window->reads <= window->needed) {
		window->view->run = 1;
		window->view->misses = 0;
	}
	window_detach(windows, window);
}

static bool make_room(struct windows *windows, size_t bytes)
{
	while (windows->held + bytes > windows->bytes_max && windows->recent)
		evict(windows, windows->recent);
	return windows->held + bytes <= windows->bytes_max;
}

static struct view *view_find(struct windows *windows, const uint8_t pack[PACK_ID_BYTES])
{
	struct view *view;

	HASH_FIND(hh, windows->views, pack, PACK_ID_BYTES, view);
	return view;
}

/* The view, made when there is none; NULL without memory. One without windows is the caller's to
 * give a window, before the lock is given up. */
static struct view *view_of(struct windows *windows, const uint8_t pack[PACK_ID_BYTES])
{
	struct view *view = view_find(windows, pack);

	if (view)
		return view;
	view = calloc(1, sizeof(*view));
	if (!view)
		return NULL;
	memcpy(view->pack, pack, PACK_ID_BYTES);
	view->end = BLOCKS_PER_PACK;
	view->run = 1;
	HASH_ADD(hh, windows->views, pack, PACK_ID_BYTES, view);
	if (!view->hh.tbl) {
		free(view);
		return NULL;
	}
	return view;
}

/* Queue a window of blocks that are in none. NULL: no memory, or no room. */
static struct window *window_add(struct windows *windows, const uint8_t pack[PACK_ID_BYTES],
                                 unsigned first, unsigned count)
{
	struct window *window;
	struct view *view;

	if (!make_room(windows, (size_t)count * BLOCK_BYTES))
		return NULL;
	view = view_of(windows, pack); /* not before: making room may have ended it */
	window = view ? calloc(1, sizeof(*window)) : NULL;
	if (!window) {
		if (view && !view->windows) {
			HASH_DEL(windows->views, view);
			free(view);
		}
		return NULL;
	}
	*window = (struct window){.view = view,
	                          .first = first,
	                          .count = count,
	                          .references = 1,
	                          .held = (size_t)count * BLOCK_BYTES};
	for (unsigned i = 0; i < count; i++)
		view->blocks[first + i] = window;
	view->windows++;
	windows->held += window->held;
	DL_APPEND(windows->queue, window);
	return window;
}

/* -- how much to fetch, and on which side -- */

/* Before the next request of a view: what have the last ones been good for? */
static unsigned run_next(const struct windows *windows, struct view *view)
{
	unsigned run;

	if (view->fetched && view->used * 4 >= view->fetched)
		view->run *= GROWTH;
	else if (view->used * 16 < view->fetched && view->run > 1)
		view->run /= 2;
	if (view->run > windows->run_max)
		view->run = windows->run_max;
	/* Readers in no order: who has sent many requests here will send many more. Fetching in
	 * proportion to them costs a bounded part more than knowing it from the start. */
	run = 1 + view->misses / MISSES_A_BLOCK;
	if (run < view->run)
		run = view->run;
	return run < windows->run_max ? run : windows->run_max;
}

struct blocks {
	unsigned first, count;
};

/* Up to `run` blocks around the needed ones, none of which is in a window. */
static struct blocks blocks_around(const struct view *view, struct blocks needed, unsigned run,
                                   enum window_side side)
{
	unsigned low = needed.first, high = needed.first + needed.count;
	unsigned extra = run > needed.count ? run - needed.count : 0;
	bool before = low > 0 && view->blocks[low - 1];
	bool after = high < view->end && view->blocks[high];

	/* A reader that comes from a neighbour goes on in that direction. */
	if (before != after)
		side = before ? WINDOW_AFTER : WINDOW_BEFORE;
	for (int turn = 0; turn < 2; turn++) {
		while (side == WINDOW_AFTER && extra && high < view->end && !view->blocks[high]) {
			high++;
			extra--;
		}
		while (side == WINDOW_BEFORE && extra && low > 0 && !view->blocks[low - 1]) {
			low--;
			extra--;
		}
		side = side == WINDOW_AFTER ? WINDOW_BEFORE : WINDOW_AFTER;
	}
	return (struct blocks){low, high - low};
}

/* -- fetching -- */

/* Under the lock: the pack has ended before the window has. At least a block stays, so that whoever
 * waits for it finds it. */
static void window_trim(struct windows *windows, struct window *window)
{
	struct view *view = window->view;
	size_t length = window->bytes.length;
	unsigned count = (unsigned)((length + BLOCK_BYTES - 1) / BLOCK_BYTES);
	uint8_t *data = length ? realloc(window->bytes.data, length) : NULL;

	view->end = window->first + count < view->end ? window->first + count : view->end;
	count = count ? count : 1;
	for (unsigned i = count; i < window->count; i++)
		view->blocks[window->first + i] = NULL;
	window->count = count;
	if (data) {
		window->bytes.data = data;
		window->bytes.capacity = length;
		windows->held -= window->held - length;
		window->held = length;
	}
}

/* Fetch a window in state FETCHING, to which the caller holds a reference. Takes the lock. */
static void window_fetch(struct windows *windows, struct window *window,
                         const uint8_t pack[PACK_ID_BYTES])
{
	char key[PACK_KEY_BYTES + 1];
	uint64_t offset = (uint64_t)window->first * BLOCK_BYTES;
	size_t length = (size_t)window->count * BLOCK_BYTES;
	struct buffer bytes = {.limit = WINDOW_BYTES_MAX};
	struct message message = {0};
	int error = buffer_reserve(&bytes, length);

	pack_key(pack, key);
	if (!error)
		error = object_get(windows->store, key, offset, length, &bytes, NULL, &message);

	pthread_mutex_lock(&windows->lock);
	windows->stats.requests++;
	windows->stats.fetched_bytes += bytes.length;
	window->bytes = bytes;
	window->error = error;
	window->message = message;
	window->state = error ? WINDOW_FAILED : WINDOW_READY;
	if (error) {
		window_detach(windows, window);
	} else if (window->view) {
		struct view *view = window->view;

		DL_APPEND(windows->recent, window);
		view->fetched += bytes.length;
		if (view->fetched > FRESH_BYTES) {
			view->fetched /= 2;
			view->used /= 2;
		}
		if (bytes.length < length)
			window_trim(windows, window);
	}
	pthread_cond_broadcast(&windows->changed);
	pthread_mutex_unlock(&windows->lock);
}

static void *prefetch_run(void *argument)
{
	struct windows *windows = argument;
	uint8_t pack[PACK_ID_BYTES];

	pthread_mutex_lock(&windows->lock);
	while (!windows->closing) {
		struct window *window = windows->queue;

		if (!window) {
			windows->threads_idle++;
			pthread_cond_wait(&windows->wanted, &windows->lock);
			windows->threads_idle--;
			continue;
		}
		DL_DELETE(windows->queue, window);
		window->state = WINDOW_FETCHING;
		window->references++;
		memcpy(pack, window->view->pack, PACK_ID_BYTES);
		pthread_mutex_unlock(&windows->lock);
		window_fetch(windows, window, pack);
		pthread_mutex_lock(&windows->lock);
		window_unref(window);
	}
	pthread_mutex_unlock(&windows->lock);
	return NULL;
}

/* Under the lock. Without a thread nothing is fetched ahead. */
static bool prefetcher_ready(struct windows *windows)
{
	unsigned queued = 0;
	const struct window *window;

	DL_FOREACH (windows->queue, window)
		queued++;
	if (queued < windows->threads_idle)
		return true;
	if (windows->threads_running < THREADS_MAX &&
	    thread_start(&windows->threads[windows->threads_running], prefetch_run, windows) == 0)
		windows->threads_running++;
	return windows->threads_running > 0 && queued < THREADS_MAX;
}

/* Under the lock, about a window that has just been read: when its reader is well into it, and what
 * is fetched here is used, the next one is fetched while this one is read. */
static void look_ahead(struct windows *windows, struct window *window,
                       const uint8_t pack[PACK_ID_BYTES], uint64_t offset, bool rising)
{
	struct view *view = window->view;
	unsigned end = window->first + window->count;
	uint64_t base = (uint64_t)window->first * BLOCK_BYTES;
	bool second_half = offset >= base + window->bytes.length / 2;
	bool *went = rising ? &window->went_after : &window->went_before;
	struct blocks next = {.first = rising ? end : window->first - 1, .count = 1};
	unsigned run;

	/* A reader in order has used twice as much when it gets to the middle. */
	if (*went || window->reads < 2 || rising != second_half ||
	    window->used < window->bytes.length / 4)
		return;
	if (rising ? end >= view->end || view->blocks[end]
	           : !window->first || view->blocks[next.first])
		return;
	*went = true;
	if (!prefetcher_ready(windows))
		return;
	run = run_next(windows, view);
	next = blocks_around(view, next, run, rising ? WINDOW_AFTER : WINDOW_BEFORE);
	/* From here on the view may be gone: making room ends what was used least. */
	if (window_add(windows, pack, next.first, next.count))
		pthread_cond_signal(&windows->wanted);
}

/* -- reading -- */

/* Under the lock. Returns the window of a block, ready, with a reference; fetches it or waits for
 * whoever does. NULL with *ret_error 0: there is no room, or the pack has no such block. The lock
 * is given up meanwhile. */
static struct window *window_get(struct windows *windows, const uint8_t pack[PACK_ID_BYTES],
                                 struct blocks needed, enum window_side side, bool *ret_fetched,
                                 int *ret_error, struct message *message)
{
	struct view *view = view_find(windows, pack);
	struct window *window = view ? view->blocks[needed.first] : NULL;

	*ret_error = 0;
	if (!window) {
		struct blocks around = {needed.first, 1};

		if (view && needed.first >= view->end)
			return NULL;
		if (needed.count > 1 && (!view || !view->blocks[needed.first + 1]))
			around.count = 2;
		if (view) {
			view->misses++;
			around = blocks_around(view, around, run_next(windows, view), side);
		} else if (side == WINDOW_BEFORE && around.count == 1) {
			/* A commit or a directory's root: what it leads to lies before it. */
			unsigned before = windows->run_max - 1 < RUN_BEFORE ? windows->run_max - 1
			                                                    : RUN_BEFORE;
			before = around.first < before ? around.first : before;
			around = (struct blocks){around.first - before, before + 1};
		}
		window = window_add(windows, pack, around.first, around.count);
		if (!window)
			return NULL;
		*ret_fetched = true;
	}
	window->references++;
	if (window->state == WINDOW_QUEUED) { /* nobody has begun: quicker than waiting for that */
		DL_DELETE(windows->queue, window);
		window->state = WINDOW_FETCHING;
		window->needed = true;
		pthread_mutex_unlock(&windows->lock);
		window_fetch(windows, window, pack);
		pthread_mutex_lock(&windows->lock);
	}
	while (window->state < WINDOW_READY)
		pthread_cond_wait(&windows->changed, &windows->lock);
	if (window->state == WINDOW_READY)
		return window;
	*ret_error = window->error;
	if (message && window->message.text[0])
		*message = window->message;
	window_unref(window);
	return NULL;
}

/* Append what of the range lies in the window. */
static void window_copy(const struct window *window, uint64_t offset, uint64_t end,
                        struct buffer *ret_bytes)
{
	uint64_t base = (uint64_t)window->first * BLOCK_BYTES;
	uint64_t limit = base + window->bytes.length;

	end = end < limit ? end : limit;
	if (offset < end)
		buffer_append(ret_bytes, window->bytes.data + (offset - base), end - offset);
}

/* Under the lock: what a read tells of a window and its pack. */
static void note_use(struct windows *windows, struct window *window,
                     const uint8_t pack[PACK_ID_BYTES], uint64_t offset, uint32_t length)
{
	size_t left = window->bytes.length - window->used;
	bool rising = offset >= window->read_last;

	length = length < left ? length : (uint32_t)left;
	window->used += length;
	window->reads++;
	window->read_last = offset;
	windows->stats.used_bytes += length;
	if (!window->view)
		return;
	window->view->used += length;
	DL_DELETE(windows->recent, window);
	DL_APPEND(windows->recent, window);
	look_ahead(windows, window, pack, offset, rising);
}

static int read_alone(struct windows *windows, const uint8_t pack[PACK_ID_BYTES], uint64_t offset,
                      uint64_t length, struct buffer *ret_bytes, struct message *message)
{
	char key[PACK_KEY_BYTES + 1];
	size_t before = ret_bytes->length;
	int error;

	pack_key(pack, key);
	error = object_get(windows->store, key, offset, length, ret_bytes, NULL, message);
	pthread_mutex_lock(&windows->lock);
	windows->stats.requests++;
	windows->stats.fetched_bytes += ret_bytes->length - before;
	windows->stats.used_bytes += ret_bytes->length - before;
	pthread_mutex_unlock(&windows->lock);
	return error;
}

int windows_read(struct windows *windows, const uint8_t pack[PACK_ID_BYTES], uint64_t offset,
                 uint32_t length, enum window_side side, struct buffer *ret_bytes,
                 struct message *message)
{
	uint64_t end = offset + length, at = offset;
	size_t before = ret_bytes->length;
	bool fetched = false;
	int error = 0;

	assert(length <= BLOCK_BYTES && end <= PACK_TARGET_BYTES);
	pthread_mutex_lock(&windows->lock);
	while (!error && at < end) {
		struct blocks needed = {.first = (unsigned)(at / BLOCK_BYTES)};
		struct window *window;

		needed.count = (unsigned)((end - 1) / BLOCK_BYTES) - needed.first + 1;
		window = window_get(windows, pack, needed, side, &fetched, &error, message);
		if (!window)
			break;
		pthread_mutex_unlock(&windows->lock);
		window_copy(window, at, end, ret_bytes);
		at = (uint64_t)(window->first + window->count) * BLOCK_BYTES;
		pthread_mutex_lock(&windows->lock);
		note_use(windows, window, pack, offset, length);
		window_unref(window);
	}
	windows->stats.hits += !error && !fetched;
	pthread_mutex_unlock(&windows->lock);
	if (!error)
		error = buffer_check(ret_bytes);
	if (!error && at < end) {
		ret_bytes->length = before;
		fetched = true;
		error = read_alone(windows, pack, offset, length, ret_bytes, message);
	}
	return error ? error : fetched;
}

bool windows_peek(struct windows *windows, const uint8_t pack[PACK_ID_BYTES], uint64_t offset,
                  uint32_t length, struct buffer *ret_bytes)
{
	uint64_t end = offset + length, at = offset;
	size_t before = ret_bytes->length;

	assert(length <= BLOCK_BYTES && end <= PACK_TARGET_BYTES);
	pthread_mutex_lock(&windows->lock);
	while (at < end) {
		struct view *view = view_find(windows, pack);
		struct window *window = view ? view->blocks[at / BLOCK_BYTES] : NULL;

		if (!window || window->state != WINDOW_READY)
			break;
		window->references++;
		pthread_mutex_unlock(&windows->lock);
		window_copy(window, at, end, ret_bytes);
		at = (uint64_t)(window->first + window->count) * BLOCK_BYTES;
		pthread_mutex_lock(&windows->lock);
		window_unref(window);
	}
	pthread_mutex_unlock(&windows->lock);
	return !buffer_check(ret_bytes) && ret_bytes->length == before + length;
}

/* -- dropping, counting, the end -- */

void windows_drop(struct windows *windows, const uint8_t pack[PACK_ID_BYTES], uint64_t offset,
                  uint64_t length)
{
	unsigned first = (unsigned)(offset / BLOCK_BYTES);
	unsigned last = (unsigned)((offset + length - 1) / BLOCK_BYTES);

	pthread_mutex_lock(&windows->lock);
	for (unsigned block = first; block <= last && block < BLOCKS_PER_PACK; block++) {
		struct view *view = view_find(windows, pack);

		if (!view)
			break;
		/* One being fetched is newer than what was wrong. */
		if (view->blocks[block] && view->blocks[block]->state == WINDOW_READY)
			window_detach(windows, view->blocks[block]);
	}
	pthread_mutex_unlock(&windows->lock);
}

void windows_stats(struct windows *windows, struct windows_stats *ret_stats)
{
	pthread_mutex_lock(&windows->lock);
	*ret_stats = windows->stats;
	ret_stats->held_bytes = windows->held;
	pthread_mutex_unlock(&windows->lock);
}

void windows_free(struct windows *windows)
{
	if (!windows)
		return;
	pthread_mutex_lock(&windows->lock);
	windows->closing = true;
	pthread_cond_broadcast(&windows->wanted);
	pthread_mutex_unlock(&windows->lock);
	for (unsigned i = 0; i < windows->threads_running; i++)
		pthread_join(windows->threads[i], NULL);
	pthread_mutex_lock(&windows->lock);
	while (windows->queue)
		window_detach(windows, windows->queue);
	while (windows->recent)
		window_detach(windows, windows->recent);
	assert(!windows->views);
	pthread_mutex_unlock(&windows->lock);
	pthread_cond_destroy(&windows->wanted);
	pthread_cond_destroy(&windows->changed);
	pthread_mutex_destroy(&windows->lock);
	free(windows);
}
