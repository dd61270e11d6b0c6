/*
 * fetch.c — hides how one blob fills up: which chunks a range needs, who fetches which of them when
 * several ask, and what a failure means to whom.
 *
 * What is being fetched is a job: consecutive pieces, claimed by being in blob->jobs. A reader
 * claims what it needs and nobody has claimed, runs one job itself and leaves the rest to the pool,
 * takes over jobs it needs that have not begun, and waits for the others. Pieces are fetched
 * without a lock, written, and only then marked present: a range marked present is on the file and
 * was verified by the odb.
 *
 * If the store cannot be reached, every reader that waits for the job's bytes fails with it: N
 * readers wait for one timeout and not for N. Any other failure may be due to a piece that a reader
 * did not ask for, so it tries its own. What was fetched ahead and failed is nobody's failure: it
 * is as if it had not been tried.
 */
#include "cache/internal.h"
#include "store/chunker.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define PIECES_MAX 1024 /* in one batch */
#define BATCH_BYTES_MAX ((uint64_t)32 << 20)
/* A reader's share of one request: larger ones are split, for connections have their own limits. */
#define DEMAND_BYTES_MAX ((uint64_t)2 << 20)
/* Requests of what is fetched ahead: large ones cost the store less, several arrive sooner. */
#define AHEAD_BYTES_MIN ((uint64_t)2 << 20)
#define AHEAD_BYTES_MAX ((uint64_t)8 << 20)
#define AHEAD_PARTS 2 /* of what is asked for at once */
#define AHEAD_PAUSE_MS 1000
#define WRITE_BYTES \
	((uint64_t)256 << 10) /* at once: half of a processor's second-level cache at most */
#define ALLOCATE_BYTES_MIN ((uint64_t)1 << 20)
#define CACHE_PARTS 16 /* a window is at most one of them */
#define WINDOW_BYTES_LEAST ((uint64_t)1 << 20)
#define BULK_BYTES ((uint64_t)64 << 20)
#define BULK_STEP_BYTES ((uint64_t)8 << 20)
/* Of a file, whose lists are read at the first read: 2 MiB of them. */
#define LISTED_BYTES_MAX ((uint64_t)4 << 30)
#define LISTED_PARTS 4 /* at once */

/* A reader, on its stack: linked into the blob while it waits. */
struct waiter {
	uint64_t start, end;
	int error; /* of a job it waits for */
	struct message *message;
	struct waiter *prev, *next;
};

/* -- what a range needs -- */

struct batch {
	struct piece *pieces;
	size_t count;
	size_t capacity;
	uint64_t data_bytes;
	uint64_t next; /* in the file: after the last piece */
	int error;
};

static void batch_release(struct batch *batch)
{
	free(batch->pieces);
	*batch = (struct batch){0};
}

static int collect_piece(void *context, const struct piece *piece)
{
	struct batch *batch = context;
	/* Places are not hashed: a length that disagrees must not size a buffer. */
	bool sound = piece->length > 0 && piece->offset + piece->length > piece->offset &&
	             (batch->count == 0 || piece->offset == batch->next) &&
	             (piece->hole || (piece->length <= RECORD_RAW_MAX &&
	                              piece->pointer.place.raw == piece->length));
	if (!sound) {
		batch->error = -ERR_CORRUPT;
		return 1;
	}
	if (batch->count == batch->capacity) {
		size_t capacity = batch->capacity ? batch->capacity * 2 : 8;
		struct piece *pieces = reallocarray(batch->pieces, capacity, sizeof(*pieces));
		if (!pieces) {
			batch->error = -ERR_NO_MEMORY;
			return 1;
		}
		batch->pieces = pieces;
		batch->capacity = capacity;
	}
	batch->pieces[batch->count++] = *piece;
	batch->next = piece->offset + piece->length;
	if (!piece->hole)
		batch->data_bytes += piece->length;
	/* Full when the next chunk might not fit. */
	return batch->data_bytes + CHUNK_BYTES_MAX > BATCH_BYTES_MAX || batch->count == PIECES_MAX;
}

/* The pieces of at most one batch, from the one that holds `start` on. */
static int collect(struct blob *blob, const struct content *content, uint64_t start, uint64_t end,
                   struct batch *ret_batch, struct message *message)
{
	ret_batch->count = 0;
	ret_batch->data_bytes = 0;
	ret_batch->error = 0;
	ret_batch->next = start;
	int error = content_pieces(blob->cache->odb, content, start, end - start, collect_piece,
	                           ret_batch, message);
	if (error < 0)
		return error;
	if (ret_batch->error)
		return fail(message, ret_batch->error, "%s list of a file's chunks",
		            error_text(ret_batch->error));
	bool sound = ret_batch->count > 0 && ret_batch->pieces[0].offset <= start &&
	             ret_batch->next > start && ret_batch->next <= blob->size;
	if (!sound)
		return fail(message, -ERR_CORRUPT, "a file's chunks do not add up to its size");
	return 0;
}

/* -- who fetches what -- */

/* Locked. */
static bool is_here(const struct blob *blob, uint64_t start, uint64_t end)
{
	return blob->complete || extents_cover(&blob->present, start, end);
}

/* Index of the job's first piece that ends behind `at`; job->count: none does. */
static size_t piece_behind(const struct job *job, uint64_t at)
{
	size_t low = 0, high = job->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (job->pieces[middle].offset + job->pieces[middle].length <= at)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool touches(const struct job *job, uint64_t start, uint64_t end)
{
	size_t i = piece_behind(job, start);
	return i < job->count && job->pieces[i].offset < end;
}

/* Locked. Pieces are the same for everybody: they come from the content's own list. */
static bool is_claimed(const struct blob *blob, const struct piece *piece)
{
	const struct job *job;
	DL_FOREACH2(blob->jobs, job, following)
	{
		if (touches(job, piece->offset, piece->offset + 1))
			return true;
	}
	return false;
}

/* Locked. Where what is present or claimed from `at` on ends; `at`: neither. */
static uint64_t skip_spoken_for(const struct blob *blob, uint64_t at)
{
	at = extents_skip(&blob->present, at);
	const struct job *job;
	DL_FOREACH2(blob->jobs, job, following)
	{
		size_t i = piece_behind(job, at);
		for (; i < job->count && job->pieces[i].offset <= at; i++)
			at = job->pieces[i].offset + job->pieces[i].length;
	}
	return at;
}

/* Locked. Every byte is present or claimed. */
static bool is_spoken_for(const struct blob *blob, uint64_t start, uint64_t end)
{
	while (!blob->complete && start < end) {
		uint64_t next = skip_spoken_for(blob, start);
		if (next == start)
			return false;
		start = next;
	}
	return true;
}

/* -- making jobs: one is what one request fetches -- */

struct claiming {
	enum job_kind kind;
	uint64_t bytes_max; /* of one job */
	const void *owner;
};

static int by_place(const void *a, const void *b)
{
	const struct piece *left = a, *right = b;
	const struct place *p = &left->pointer.place, *q = &right->pointer.place;
	if (left->hole != right->hole)
		return left->hole ? -1 : 1;
	int order = memcmp(p->pack, q->pack, sizeof(p->pack));
	if (order)
		return order;
	return (p->offset > q->offset) - (p->offset < q->offset);
}

static int by_offset(const void *a, const void *b)
{
	const struct piece *left = a, *right = b;
	return (left->offset > right->offset) - (left->offset < right->offset);
}

/* Bytes between two places; UINT64_MAX when no request would fetch both. */
static uint64_t gap_between(const struct place *first, const struct place *second)
{
	uint64_t end = first->offset + first->stored;
	if (memcmp(first->pack, second->pack, sizeof(first->pack)) != 0)
		return UINT64_MAX;
	if (second->offset < end)
		return 0;
	return second->offset - end <= ODB_GAP_BYTES_MAX ? second->offset - end : UINT64_MAX;
}

/* How many of the pieces, sorted by place, make one job, and the memory that takes. Holes cost
 * nothing. */
static size_t job_length(const struct piece *pieces, size_t count, uint64_t bytes_max,
                         uint64_t *ret_cost)
{
	size_t length = 0;
	uint64_t cost = 0;
	for (; length < count; length++) {
		const struct place *place = &pieces[length].pointer.place;
		bool first = length == 0 || pieces[length - 1].hole;
		if (pieces[length].hole)
			continue;
		if (length > 0 && pieces[length - 1].hole)
			break;
		uint64_t gap = first ? 0 : gap_between(&pieces[length - 1].pointer.place, place);
		uint64_t more = gap + place->stored;
		if (place->codec != CODEC_RAW)
			more += place->raw;
		if (gap == UINT64_MAX || (!first && cost + more > bytes_max))
			break;
		cost += more;
	}
	*ret_cost = cost;
	return length;
}

static struct job *job_new(const struct claiming *claiming, const struct piece *pieces,
                           size_t count, uint64_t cost)
{
	struct job *job = calloc(1, sizeof(*job) + count * sizeof(*pieces));
	if (!job)
		return NULL;
	memcpy(job->pieces, pieces, count * sizeof(*pieces));
	qsort(job->pieces, count, sizeof(*pieces), by_offset);
	job->kind = claiming->kind;
	job->owner = claiming->owner;
	job->count = count;
	job->cost = cost;
	job->start = job->pieces[0].offset;
	job->end = job->pieces[count - 1].offset + job->pieces[count - 1].length;
	return job;
}

/* In the order in which they are needed. */
static int by_start(const struct job *a, const struct job *b)
{
	return (a->start > b->start) - (a->start < b->start);
}

/* Locked. Jobs for all pieces of the batch that nobody has or fetches; not entered yet. The batch
 * is used up by it. */
static struct job *make_jobs(struct blob *blob, struct batch *batch,
                             const struct claiming *claiming)
{
	struct job *jobs = NULL;
	size_t count = 0;
	for (size_t i = 0; i < batch->count; i++) {
		const struct piece *piece = &batch->pieces[i];
		if (!is_here(blob, piece->offset, piece->offset + piece->length) &&
		    !is_claimed(blob, piece))
			batch->pieces[count++] = *piece;
	}
	batch->count = 0;
	if (count > 1)
		qsort(batch->pieces, count, sizeof(*batch->pieces), by_place);
	for (size_t i = 0, length; i < count; i += length) {
		uint64_t cost;
		length = job_length(batch->pieces + i, count - i, claiming->bytes_max, &cost);
		struct job *job = job_new(claiming, batch->pieces + i, length, cost);
		if (!job)
			break; /* somebody will try again */
		DL_APPEND(jobs, job);
	}
	DL_SORT(jobs, by_start);
	return jobs;
}

/* Locked. From now on it is in everybody's sight. */
static void enter(struct blob *blob, struct job *job)
{
	job->blob = blob;
	blob_hold(blob);
	DL_APPEND2(blob->jobs, job, previous, following);
}

/* Locked. A job that has not begun and brings bytes of the range, taken over. */
static struct job *take_over(struct blob *blob, uint64_t start, uint64_t end)
{
	struct job *job;
	DL_FOREACH2(blob->jobs, job, following)
	{
		if (touches(job, start, end) && pool_take(blob->cache->pool, job))
			return job;
	}
	return NULL;
}

/* Locked. Claims what nobody has; the first job is the caller's to run, the others are queued. */
static struct job *claim_missing(struct blob *blob, struct batch *batch,
                                 const struct waiter *waiter)
{
	const struct claiming claiming = {JOB_DEMAND, DEMAND_BYTES_MAX, waiter};
	struct job *jobs = make_jobs(blob, batch, &claiming), *first = jobs, *job, *next;
	DL_FOREACH_SAFE(jobs, job, next)
	{
		DL_DELETE(jobs, job);
		enter(blob, job);
		if (job != first)
			pool_add(blob->cache->pool, job);
	}
	return first;
}

/* -- fetching -- */

/* Verified bytes on their way into the file: collected while they lie together in memory as in the
 * file, and written while they are still in the processor's cache. */
struct writing {
	int writer;
	const struct piece *const *pieces;
	const uint8_t *bytes;
	uint64_t start, length;
	struct cache *cache;
	struct message *message;
};

static int write_collected(struct writing *writing)
{
	int error = 0;
	if (writing->length) {
		error = write_full(writing->writer, writing->bytes, writing->length,
		                   (off_t)writing->start);
		if (error == -ERR_NO_SPACE && evict_now(writing->cache, writing->length))
			error = write_full(writing->writer, writing->bytes, writing->length,
			                   (off_t)writing->start);
	}
	writing->length = 0;
	if (error)
		return fail(writing->message, error,
		            "cannot keep a part of a file in %s: %s; free some space on that disk",
		            writing->cache->path, error_text(error));
	return 0;
}

static int collect_bytes(void *context, size_t i, const uint8_t *bytes, bool last)
{
	struct writing *writing = context;
	const struct piece *piece = writing->pieces[i];
	bool goes_on = writing->length && piece->offset == writing->start + writing->length &&
	               bytes == writing->bytes + writing->length;
	int error = 0;
	if (!goes_on) {
		error = write_collected(writing);
		writing->bytes = bytes;
		writing->start = piece->offset;
	}
	writing->length += piece->length;
	if (!error && (last || writing->length >= WRITE_BYTES))
		error = write_collected(writing);
	return error;
}

static int no_memory(struct message *message)
{
	return fail(message, -ERR_NO_MEMORY, "out of memory for a part of a file");
}

/* The file's blocks for large runs of what is about to be written: one allocation instead of one
 * for each page, which takes half of the time of writing. A wish: writing allocates, too, and
 * reports what stands against it. */
static void allocate_blocks(const struct job *job, const struct piece *const *pieces, size_t count)
{
	for (size_t i = 0, next; i < count; i = next) {
		uint64_t start = pieces[i]->offset, end = start + pieces[i]->length;
		for (next = i + 1; next < count && pieces[next]->offset == end; next++)
			end += pieces[next]->length;
		if (end - start >= ALLOCATE_BYTES_MIN)
			(void)fallocate(job->blob->writer, FALLOC_FL_KEEP_SIZE, (off_t)start,
			                (off_t)(end - start));
	}
}

static int read_and_write(const struct job *job, const struct piece *const *pieces, size_t count,
                          uint64_t length, struct buffer *scratch, struct message *message)
{
	CLEANUP(free_pointer) struct pointer *pointers = malloc(count * sizeof(*pointers));
	if (!pointers)
		return no_memory(message);
	for (size_t i = 0; i < count; i++)
		pointers[i] = pieces[i]->pointer;
	struct cache *cache = job->blob->cache;
	struct writing writing = {
	        .writer = job->blob->writer, .pieces = pieces, .cache = cache, .message = message};
	evict_before(cache, length);
	allocate_blocks(job, pieces, count);
	int error = odb_visit_chunks(cache->odb, pointers, count, scratch, collect_bytes, &writing,
	                             message);
	/* The file is there, and must not read as if it were not. */
	return error == -ERR_NOT_FOUND ? fail_context(message, -ERR_CORRUPT, "missing content")
	                               : error;
}

static void account(struct blob *blob, enum job_kind kind, uint64_t fetched)
{
	struct stat status;
	struct cache *cache = blob->cache;
	if (fstat(blob->writer, &status) < 0)
		return;
	pthread_mutex_lock(&blob->lock);
	uint64_t before = blob->disk_bytes;
	blob->disk_bytes = disk_bytes_of(&status);
	pthread_mutex_lock(&cache->table_lock);
	cache->partial_bytes += blob->disk_bytes - before;
	cache->counters.fetched_bytes += fetched;
	if (kind == JOB_AHEAD)
		cache->counters.ahead_bytes += fetched;
	pthread_mutex_unlock(&cache->table_lock);
	pthread_mutex_unlock(&blob->lock);
}

/* Holes are there already: the file was created with its size. */
static int fetch(const struct job *job, struct message *message)
{
	CLEANUP(free_pointer) const struct piece **data = malloc(job->count * sizeof(*data));
	if (!data)
		return no_memory(message);
	size_t count = 0;
	uint64_t length = 0;
	for (size_t i = 0; i < job->count; i++) {
		if (job->pieces[i].hole)
			continue;
		data[count++] = &job->pieces[i];
		length += job->pieces[i].length;
	}
	if (count == 0)
		return 0;
	struct pool *pool = job->blob->cache->pool;
	struct buffer scratch = pool_buffer_take(pool, job->cost);
	int error = read_and_write(job, data, count, length, &scratch, message);
	pool_buffer_give(pool, &scratch);
	account(job->blob, job->kind, error ? 0 : length);
	/* Before it was written there may just have been room enough. */
	evict_before(job->blob->cache, 0);
	return error;
}

/* Locked. True when the blob has just become whole: the caller must finish it. */
static bool just_whole(struct blob *blob)
{
	if (blob->finishing || !extents_cover(&blob->present, 0, blob->size))
		return false;
	blob->finishing = true;
	return true;
}

/* Locked. What was to be fetched ahead will not come. */
static void withdraw(const struct job *job)
{
	struct cursors *cursors = job->blob->cursors;
	for (size_t i = 0; cursors && job->kind == JOB_AHEAD && i < job->count; i++)
		cursors_withdraw(cursors, job->pieces[i].offset,
		                 job->pieces[i].offset + job->pieces[i].length);
}

/* Locked. What readers and cursors must know of a failure. */
static void tell(struct job *job, int error, const struct message *why)
{
	struct blob *blob = job->blob;
	struct waiter *waiter;
	if (error == -ERR_STORE_AWAY) {
		DL_FOREACH (blob->waiters, waiter) {
			if (!touches(job, waiter->start, waiter->end))
				continue;
			waiter->error = error;
			if (waiter->message)
				*waiter->message = *why;
		}
	}
	if (error == -ERR_NO_SPACE)
		blob->unwanted = true;
	if (job->kind != JOB_DEMAND && (error == -ERR_STORE_AWAY || error == -ERR_NO_SPACE))
		ahead_pause(blob->cache);
	withdraw(job);
}

/* Locked. Gives up the claim; when it was fetched its pieces are present now. */
static int settle(struct job *job, int error, struct message *message)
{
	struct blob *blob = job->blob;
	DL_DELETE2(blob->jobs, job, previous, following);
	if (!error && extents_reserve(&blob->present, job->count))
		error = no_memory(message);
	if (error)
		tell(job, error, message);
	for (size_t i = 0; !error && i < job->count; i++)
		extents_add(&blob->present, job->pieces[i].offset,
		            job->pieces[i].offset + job->pieces[i].length);
	pthread_cond_broadcast(&blob->changed);
	return error;
}

static void job_end(struct job *job)
{
	struct blob *blob = job->blob;
	if (job->reserved)
		pool_release(blob->cache->pool, job->cost);
	free(job);
	blob_release(blob);
}

static void run_plan(struct job *plan);
static void read_lists(const struct job *job);

int job_run(struct job *job, struct message *message)
{
	struct blob *blob = job->blob;
	struct message why = {.text[0] = '\0'};
	if (job->kind == JOB_PLAN || job->kind == JOB_LISTS || job->kind == JOB_FOOTER) {
		if (job->kind == JOB_PLAN)
			run_plan(job);
		else if (job->kind == JOB_LISTS)
			read_lists(job);
		else
			footer_read(blob);
		job_end(job);
		return 0;
	}
	if (!job->reserved)
		pool_reserve(blob->cache->pool, job->cost);
	job->reserved = true;
	int error = fetch(job, &why);
	pthread_mutex_lock(&blob->lock);
	error = settle(job, error, &why);
	bool whole = just_whole(blob);
	pthread_mutex_unlock(&blob->lock);
	if (whole)
		blob_finish(blob);
	job_end(job);
	if (error && message)
		*message = why;
	return error;
}

void job_abandon(struct job *job)
{
	struct blob *blob = job->blob;
	pthread_mutex_lock(&blob->lock);
	if (job->kind == JOB_LISTS) {
		blob->listed = false;
	} else if (job->kind == JOB_FOOTER) {
		if (blob->cursors)
			blob->cursors->asked_columns = false;
	} else if (job->kind != JOB_PLAN) {
		DL_DELETE2(blob->jobs, job, previous, following);
		withdraw(job);
	} else if (blob->cursors) {
		cursors_refund(blob->cursors, job->end - job->start);
		cursors_withdraw(blob->cursors, job->start, job->end);
	}
	pthread_cond_broadcast(&blob->changed);
	pthread_mutex_unlock(&blob->lock);
	job_end(job);
}

/* -- fetching ahead -- */

void ahead_pause(struct cache *cache)
{
	cache->ahead_pause_until_ms = clock_monotonic_ms() + AHEAD_PAUSE_MS;
}

bool ahead_pauses(const struct cache *cache)
{
	return clock_monotonic_ms() < cache->ahead_pause_until_ms;
}

/* Locked. */
static void enter_ahead(struct blob *blob, struct job *job)
{
	job->reserved = true;
	for (size_t i = 0; job->kind == JOB_AHEAD && blob->cursors && i < job->count; i++)
		cursors_fetching(blob->cursors, job->pieces[i].offset,
		                 job->pieces[i].offset + job->pieces[i].length);
	enter(blob, job);
	pool_add(blob->cache->pool, job);
}

/* Locked. Queues what nobody has of the batch while there is room; false when there is none. */
static bool queue_ahead(struct blob *blob, struct batch *batch, const struct claiming *claiming,
                        uint64_t *claimed, uint64_t *stop)
{
	bool room = true;
	struct job *jobs = make_jobs(blob, batch, claiming), *job, *next;
	DL_FOREACH_SAFE(jobs, job, next)
	{
		DL_DELETE(jobs, job);
		room = room && pool_reserve_ahead(blob->cache->pool, job->cost);
		if (room) {
			for (size_t i = 0; i < job->count; i++)
				*claimed += job->pieces[i].length;
			enter_ahead(blob, job);
		} else {
			if (job->start < *stop)
				*stop = job->start;
			free(job);
		}
	}
	return room;
}

/* Queue what nobody has of [start, end), as far as there is room; returns how far. */
static uint64_t fetch_ahead(struct blob *blob, enum job_kind kind, uint64_t start, uint64_t end,
                            uint64_t *ret_claimed)
{
	CLEANUP(batch_release) struct batch batch = {0};
	struct cache *cache = blob->cache;
	struct claiming claiming = {kind, (end - start) / AHEAD_PARTS, NULL};
	if (claiming.bytes_max < AHEAD_BYTES_MIN)
		claiming.bytes_max = AHEAD_BYTES_MIN;
	if (claiming.bytes_max > AHEAD_BYTES_MAX)
		claiming.bytes_max = AHEAD_BYTES_MAX;
	claiming.bytes_max +=
	        CHUNK_BYTES_MAX; /* or the last chunks would be a request of their own */
	if (claiming.bytes_max > cache->fetch_bytes_max / 4)
		claiming.bytes_max = cache->fetch_bytes_max / 4;
	uint64_t peak, under_way = pool_bytes(cache->pool, &peak);
	*ret_claimed = 0;
	if (ahead_pauses(cache) || !evict_for_ahead(cache, under_way + (end - start)))
		return start;
	while (start < end && !cache->closing) {
		pthread_mutex_lock(&blob->lock);
		struct content content = blob->content;
		pthread_mutex_unlock(&blob->lock);
		/* Whoever comes there will see what is wrong with it. */
		if (collect(blob, &content, start, end, &batch, NULL))
			break;
		pthread_mutex_lock(&blob->lock);
		uint64_t stop = batch.next;
		bool room = blob->users && queue_ahead(blob, &batch, &claiming, ret_claimed, &stop);
		pthread_mutex_unlock(&blob->lock);
		start = stop;
		if (!room)
			break;
	}
	return start;
}

static void run_plan(struct job *plan)
{
	struct blob *blob = plan->blob;
	uint64_t claimed, wanted = plan->end - plan->start;
	uint64_t stop = fetch_ahead(blob, JOB_AHEAD, plan->start, plan->end, &claimed);
	pthread_mutex_lock(&blob->lock);
	if (blob->cursors && claimed < wanted)
		cursors_refund(blob->cursors, wanted - claimed);
	if (blob->cursors && stop < plan->end)
		cursors_withdraw(blob->cursors, stop, plan->end);
	pthread_mutex_unlock(&blob->lock);
}

/* Locked. A plan, or lists, held for the blob, goes to the end of the list; without memory it does
 * not. */
static void append_range(struct blob *blob, enum job_kind kind, struct extent range,
                         struct job **jobs)
{
	struct job *job = calloc(1, sizeof(*job));
	if (!job && kind == JOB_PLAN) {
		cursors_refund(blob->cursors, range.end - range.start);
		cursors_withdraw(blob->cursors, range.start, range.end);
	}
	if (!job)
		return;
	*job = (struct job){.kind = kind, .blob = blob, .start = range.start, .end = range.end};
	blob_hold(blob);
	DL_APPEND(*jobs, job);
}

/* -- lists ahead -- */

static int stop_when_closed(void *context, const struct piece *piece)
{
	const struct blob *blob = context;
	return blob->cache->closing || !blob->users;
}

/* They stay in the odb's memory. Whoever comes there will see what is wrong with them. */
static void read_lists(const struct job *job)
{
	struct blob *blob = job->blob;
	pthread_mutex_lock(&blob->lock);
	struct content content = blob->content;
	pthread_mutex_unlock(&blob->lock);
	(void)content_pieces(blob->cache->odb, &content, job->start, job->end - job->start,
	                     stop_when_closed, blob, NULL);
}

/* Locked. At the first read of a large file, so that later ones need no request for a list. */
static void list_ahead(struct blob *blob, struct job **jobs)
{
	uint64_t most = blob->size < LISTED_BYTES_MAX ? blob->size : LISTED_BYTES_MAX;
	uint64_t part = most / LISTED_PARTS + 1;
	if (blob->listed || blob->complete || blob->size <= blob->cache->whole_file_bytes)
		return;
	blob->listed = true;
	for (uint64_t at = 0; at < most; at += part)
		append_range(blob, JOB_LISTS,
		             (struct extent){at, at + part < most ? at + part : most}, jobs);
}

/* Locked. Who reads a file's end is about to read columns, and who opens it next knows that end. */
static void look_for_columns(struct blob *blob, uint64_t end, struct job **jobs)
{
	if (blob->cursors->asked_columns || blob->size <= blob->cache->whole_file_bytes ||
	    (end < blob->size && !is_here(blob, blob->size - 1, blob->size)))
		return;
	blob->cursors->asked_columns = true;
	append_range(blob, JOB_FOOTER, (struct extent){end, end}, jobs);
}

/* -- reading -- */

static void add_all(struct pool *pool, struct job **jobs)
{
	struct job *job, *next;
	DL_FOREACH_SAFE(*jobs, job, next)
	{
		DL_DELETE(*jobs, job);
		pool_add(pool, job);
	}
}

/* Until [start, end) is present; what of it nobody has is in the batch. 1: somebody gave up what
 * this reader counted on, and the batch does not have it. The plans are queued once nothing of the
 * range can be taken by them. */
static int await(struct blob *blob, struct batch *batch, uint64_t start, uint64_t end,
                 struct job **plans, struct message *message)
{
	struct waiter waiter = {.start = start, .end = end, .message = message};
	struct pool *pool = blob->cache->pool;
	int error = 0;
	pthread_mutex_lock(&blob->lock);
	DL_APPEND(blob->waiters, &waiter);
	while (!error && !is_here(blob, start, end)) {
		struct job *job = take_over(blob, start, end);
		bool had = batch->count > 0;
		if (!job)
			job = claim_missing(blob, batch, &waiter);
		add_all(pool, plans);
		if (job) {
			bool own = job->owner == &waiter;
			struct message why; /* others may tell `message`, under the lock */
			pthread_mutex_unlock(&blob->lock);
			int failed = job_run(job, own ? &why : NULL);
			pthread_mutex_lock(&blob->lock);
			error = own ? failed : 0;
			if (error && message)
				*message = why;
		} else if (is_spoken_for(blob, start, end)) {
			pthread_cond_wait(&blob->changed, &blob->lock);
		} else {
			error = had ? no_memory(message) : 1;
		}
		if (waiter.error)
			error = waiter.error;
	}
	DL_DELETE(blob->waiters, &waiter);
	pthread_mutex_unlock(&blob->lock);
	return error;
}

/* Nobody may find a file without bytes unfinished for want of a fetch; and who needed the last
 * missing piece sees the blob complete. */
static void wait_until_finished(struct blob *blob)
{
	pthread_mutex_lock(&blob->lock);
	bool whole = !blob->complete && just_whole(blob);
	while (!whole && blob->finishing && !blob->complete)
		pthread_cond_wait(&blob->changed, &blob->lock);
	pthread_mutex_unlock(&blob->lock);
	if (whole)
		blob_finish(blob);
}

static int fetch_planned(struct blob *blob, uint64_t start, uint64_t end, struct job **plans,
                         struct message *message)
{
	CLEANUP(batch_release) struct batch batch = {0};
	for (uint64_t at = start; at < end;) {
		pthread_mutex_lock(&blob->lock);
		at = blob->complete ? end : extents_skip(&blob->present, at);
		bool join = at < end && is_spoken_for(blob, at, end);
		struct content content = blob->content;
		pthread_mutex_unlock(&blob->lock);
		if (at >= end)
			break;
		int error = 0;
		batch.count = 0;
		batch.next = end;
		if (!join)
			error = collect(blob, &content, at, end, &batch, message);
		uint64_t stop = batch.next < end ? batch.next : end;
		if (!error)
			error = await(blob, &batch, at, stop, plans, message);
		if (error < 0)
			return error;
	}
	wait_until_finished(blob);
	return 0;
}

int fetch_range(struct blob *blob, uint64_t start, uint64_t end, struct message *message)
{
	struct job *plans = NULL;
	return blob->complete ? 0 : fetch_planned(blob, start, end, &plans, message);
}

/* Locked. How much of the range is present or claimed. */
static uint64_t bytes_spoken_for(const struct blob *blob, uint64_t start, uint64_t end)
{
	uint64_t bytes = extents_count(&blob->present, start, end);
	const struct job *job;
	DL_FOREACH2(blob->jobs, job, following)
	{
		for (size_t i = piece_behind(job, start);
		     i < job->count && job->pieces[i].offset < end; i++) {
			struct extent piece = {job->pieces[i].offset,
			                       job->pieces[i].offset + job->pieces[i].length};
			if (piece.start < start)
				piece.start = start;
			bytes += (piece.end < end ? piece.end : end) - piece.start;
		}
	}
	return bytes;
}

/* What is fetched ahead pushes other files out: of a small cache it may take only a small part. */
static uint64_t window_max(const struct cache *cache)
{
	uint64_t bytes = cache->fetch_bytes_max / 2;
	if (bytes > WINDOW_BYTES_MAX)
		bytes = WINDOW_BYTES_MAX;
	uint64_t part = cache->bytes_max / CACHE_PARTS;
	if (cache->bytes_max && bytes > part)
		bytes = part < WINDOW_BYTES_LEAST ? 0 : part;
	return bytes;
}

/* Locked. Moves the cursors; plans, not queued, when more is to be fetched ahead. */
static void note_read(struct blob *blob, uint64_t start, uint64_t end, struct job **plans)
{
	struct cache *cache = blob->cache;
	if (!blob->cursors && cursors_new(&blob->cursors))
		return;
	blob->observed = true;
	bool here = is_here(blob, start, end);
	struct cursors_read read = {.start = start,
	                            .end = end,
	                            .missing = end - start,
	                            .size = blob->size,
	                            .window_max = window_max(cache)};
	read.missing -= here ? end - start : bytes_spoken_for(blob, start, end);
	struct extent ahead;
	uint64_t used = cursors_read(blob->cursors, &read, &ahead);
	pthread_mutex_lock(&cache->table_lock);
	cache->counters.ahead_used_bytes += used;
	cache->counters.reads++;
	cache->counters.reads_present += here;
	cache->counters.reads_joined += !here && read.missing == 0;
	pthread_mutex_unlock(&cache->table_lock);
	if (blob->complete)
		return;
	if (ahead.start < ahead.end)
		append_range(blob, JOB_PLAN, ahead, plans);
	while (cursors_replay(blob->cursors, &read, &ahead))
		append_range(blob, JOB_PLAN, ahead, plans);
	list_ahead(blob, plans);
	look_for_columns(blob, end, plans);
}

int blob_ensure(struct blob *blob, uint64_t offset, uint64_t length, struct message *message)
{
	/* Readers that saw it fill up are still watched: what was fetched ahead of them gets read.
	 */
	if (blob->complete && !blob->observed)
		return 0;
	uint64_t end = blob->size;
	if (offset < end && length < end - offset)
		end = offset + length;
	struct job *plans = NULL;
	if (offset < end) {
		pthread_mutex_lock(&blob->lock);
		note_read(blob, offset, end, &plans);
		pthread_mutex_unlock(&blob->lock);
	}
	int error = blob->complete ? 0 : fetch_planned(blob, offset, end, &plans, message);
	add_all(blob->cache->pool, &plans);
	return error;
}

/* What fills the disk must be gone when the last handle is: no job may be writing to it any more,
 * nor hold the last reference. */
static void give_up(struct blob *blob)
{
	struct cache *cache = blob->cache;
	pool_cancel(cache->pool, blob);
	pthread_mutex_lock(&cache->table_lock);
	while (blob->references > blob->users)
		pthread_cond_wait(&cache->released, &cache->table_lock);
	pthread_mutex_unlock(&cache->table_lock);
}

int blob_complete_now(struct blob *blob, const struct progress *progress, struct message *message)
{
	uint64_t ahead = 0, claimed;
	for (uint64_t at = 0; !blob->complete;) {
		if (progress_report(progress, "fetching", at, blob->size, "bytes"))
			return fail(message, -ERR_INTERRUPTED, "fetching was interrupted");
		uint64_t left = blob->size - at;
		uint64_t end = left > BULK_BYTES ? at + BULK_BYTES : blob->size;
		if (ahead < at)
			ahead = at;
		if (ahead < end && ahead - at <= BULK_BYTES / 2)
			ahead = fetch_ahead(blob, JOB_BULK, ahead, end, &claimed);
		uint64_t step = left > BULK_STEP_BYTES ? BULK_STEP_BYTES : left;
		int error = fetch_range(blob, at, at + step, message);
		if (error == -ERR_NO_SPACE)
			give_up(blob);
		if (error)
			return error;
		pthread_mutex_lock(&blob->lock);
		at = blob->complete ? blob->size : extents_skip(&blob->present, at);
		pthread_mutex_unlock(&blob->lock);
	}
	if (progress_report(progress, "fetching", blob->size, blob->size, "bytes"))
		return fail(message, -ERR_INTERRUPTED, "fetching was interrupted");
	return 0;
}
