/*
 * pool.c — hides which job runs when, on which thread, and in how much memory.
 *
 * Three queues: what readers wait for, plans (lists and footers, too), and what is fetched ahead.
 * Threads take from them in this order; they are made when there is work and nobody idle. A reader
 * does not depend on them: it takes its own jobs out of the queue and runs them itself while it
 * would else wait. So the store may keep every thread of the pool waiting without making a reader
 * wait longer than its own bytes take.
 *
 * The budget counts the memory of jobs that run, and of jobs queued to fetch ahead, which get
 * theirs when they are made: at most AHEAD_PART of it. A reader's job takes its share when it
 * starts; if there is too little, what is queued to be fetched ahead is given up, latest first;
 * then it waits for running ones, of which there are always some.
 */
#include "cache/internal.h"
#include "store/thread.h"

#include <time.h>

#define THREADS_MAX 32
#define SPARES_MAX 16
#define SPARE_BYTES_MAX ((size_t)64 << 20)
#define IDLE_MS 2000 /* then spare memory is given back */

enum { QUEUE_DEMAND, QUEUE_PLAN, QUEUE_AHEAD, QUEUES };

struct pool {
	uint64_t bytes_max;
	pthread_mutex_t lock; /* guards all below, and each job's place in a queue; a leaf */
	pthread_cond_t work;  /* a job was queued, or it is time to stop */
	pthread_cond_t room;  /* bytes were released */
	struct job *queues[QUEUES];
	size_t queued;
	uint64_t bytes, bytes_peak;
	unsigned idle;
	bool stopping;
	pthread_t threads[THREADS_MAX];
	unsigned thread_count;
	struct buffer spares[SPARES_MAX]; /* last in, first out */
	unsigned spare_count;
	size_t spare_bytes;
};

static int queue_of(const struct job *job)
{
	if (job->kind == JOB_DEMAND)
		return QUEUE_DEMAND;
	return job->kind == JOB_AHEAD || job->kind == JOB_BULK ? QUEUE_AHEAD : QUEUE_PLAN;
}

/* Locked. */
static void take_out(struct pool *pool, struct job *job)
{
	DL_DELETE(pool->queues[queue_of(job)], job);
	job->queued = false;
	pool->queued--;
}

/* Locked. */
static struct job *next_job(struct pool *pool)
{
	for (int i = 0; i < QUEUES; i++) {
		struct job *job = pool->queues[i];
		if (job) {
			take_out(pool, job);
			return job;
		}
	}
	return NULL;
}

/* -- memory to fetch into: kept warm while there is work -- */

struct buffer pool_buffer_take(struct pool *pool, uint64_t bytes)
{
	struct buffer buffer = {0};
	pthread_mutex_lock(&pool->lock);
	/* The smallest that need not grow: growing would lose its large pages. Of equals the
	 * latest, for the processor's cache. */
	unsigned best = pool->spare_count;
	for (unsigned i = pool->spare_count; i-- > 0;)
		if (pool->spares[i].capacity >= bytes &&
		    (best == pool->spare_count ||
		     pool->spares[i].capacity < pool->spares[best].capacity))
			best = i;
	if (best < pool->spare_count) {
		buffer = pool->spares[best];
		pool->spare_bytes -= buffer.capacity;
		pool->spare_count--;
		memmove(&pool->spares[best], &pool->spares[best + 1],
		        (pool->spare_count - best) * sizeof(*pool->spares));
	}
	pthread_mutex_unlock(&pool->lock);
	return buffer;
}

void pool_buffer_give(struct pool *pool, struct buffer *buffer)
{
	pthread_mutex_lock(&pool->lock);
	if (pool->spare_count < SPARES_MAX &&
	    pool->spare_bytes + buffer->capacity <= SPARE_BYTES_MAX) {
		pool->spare_bytes += buffer->capacity;
		pool->spares[pool->spare_count++] = *buffer;
		*buffer = (struct buffer){0};
	}
	pthread_mutex_unlock(&pool->lock);
	buffer_release(buffer);
}

/* Locked. */
static void drop_spares(struct pool *pool)
{
	while (pool->spare_count)
		buffer_release(&pool->spares[--pool->spare_count]);
	pool->spare_bytes = 0;
}

/* -- threads -- */

/* Locked. */
static void wait_for_work(struct pool *pool)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_MS / 1000;
	pool->idle++;
	if (pool->spare_count == 0)
		pthread_cond_wait(&pool->work, &pool->lock);
	else if (pthread_cond_timedwait(&pool->work, &pool->lock, &until) != 0)
		drop_spares(pool);
	pool->idle--;
}

static void *work(void *context)
{
	struct pool *pool = context;
	pthread_mutex_lock(&pool->lock);
	while (!pool->stopping) {
		struct job *job = next_job(pool);
		if (!job) {
			wait_for_work(pool);
			continue;
		}
		pthread_mutex_unlock(&pool->lock);
		job_run(job, NULL);
		pthread_mutex_lock(&pool->lock);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

int pool_new(uint64_t bytes_max, struct pool **ret_pool)
{
	struct pool *pool = calloc(1, sizeof(*pool));
	if (!pool)
		return -ERR_NO_MEMORY;
	pool->bytes_max = bytes_max;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&pool->work, &attributes);
	pthread_cond_init(&pool->room, &attributes);
	pthread_condattr_destroy(&attributes);
	*ret_pool = pool;
	return 0;
}

void pool_free(struct pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stopping = true;
	pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->lock);
	pool_cancel(pool, NULL);
	for (unsigned i = 0; i < pool->thread_count; i++)
		pthread_join(pool->threads[i], NULL);
	pool_cancel(pool, NULL); /* what a running plan added */
	drop_spares(pool);
	pthread_cond_destroy(&pool->work);
	pthread_cond_destroy(&pool->room);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

/* -- queues -- */

void pool_add(struct pool *pool, struct job *job)
{
	pthread_mutex_lock(&pool->lock);
	DL_APPEND(pool->queues[queue_of(job)], job);
	job->queued = true;
	pool->queued++;
	/* Without a thread readers run their own jobs. */
	if (pool->idle < pool->queued && pool->thread_count < THREADS_MAX && !pool->stopping &&
	    thread_start(&pool->threads[pool->thread_count], work, pool) == 0)
		pool->thread_count++;
	pthread_cond_signal(&pool->work);
	if (queue_of(job) == QUEUE_AHEAD)
		pthread_cond_broadcast(&pool->room); /* it can be given up now */
	pthread_mutex_unlock(&pool->lock);
}

bool pool_take(struct pool *pool, struct job *job)
{
	pthread_mutex_lock(&pool->lock);
	bool queued = job->queued;
	if (queued)
		take_out(pool, job);
	pthread_mutex_unlock(&pool->lock);
	return queued;
}

void pool_cancel(struct pool *pool, const struct blob *blob)
{
	struct job *cancelled = NULL, *job, *next;
	pthread_mutex_lock(&pool->lock);
	for (int i = 0; i < QUEUES; i++) {
		DL_FOREACH_SAFE(pool->queues[i], job, next)
		{
			if (blob && job->blob != blob)
				continue;
			take_out(pool, job);
			DL_APPEND(cancelled, job);
		}
	}
	pthread_mutex_unlock(&pool->lock);
	DL_FOREACH_SAFE(cancelled, job, next)
	job_abandon(job);
}

/* -- the budget -- */

/* Locked. */
static void reserve(struct pool *pool, uint64_t bytes)
{
	pool->bytes += bytes;
	if (pool->bytes > pool->bytes_peak)
		pool->bytes_peak = pool->bytes;
}

bool pool_reserve_ahead(struct pool *pool, uint64_t bytes)
{
	pthread_mutex_lock(&pool->lock);
	/* A quarter is left for readers. */
	bool fits = pool->bytes + bytes <= pool->bytes_max - pool->bytes_max / 4 && !pool->stopping;
	if (fits)
		reserve(pool, bytes);
	pthread_mutex_unlock(&pool->lock);
	return fits;
}

void pool_reserve(struct pool *pool, uint64_t bytes)
{
	pthread_mutex_lock(&pool->lock);
	/* One job always runs, however large. */
	while (pool->bytes && pool->bytes + bytes > pool->bytes_max) {
		struct job *last =
		        pool->queues[QUEUE_AHEAD] ? pool->queues[QUEUE_AHEAD]->prev : NULL;
		if (!last) {
			pthread_cond_wait(&pool->room, &pool->lock);
			continue;
		}
		take_out(pool, last);
		pthread_mutex_unlock(&pool->lock);
		job_abandon(last);
		pthread_mutex_lock(&pool->lock);
	}
	reserve(pool, bytes);
	pthread_mutex_unlock(&pool->lock);
}

void pool_release(struct pool *pool, uint64_t bytes)
{
	pthread_mutex_lock(&pool->lock);
	pool->bytes -= bytes;
	pthread_cond_broadcast(&pool->room);
	pthread_mutex_unlock(&pool->lock);
}

uint64_t pool_bytes(struct pool *pool, uint64_t *ret_peak)
{
	pthread_mutex_lock(&pool->lock);
	uint64_t bytes = pool->bytes;
	*ret_peak = pool->bytes_peak;
	pthread_mutex_unlock(&pool->lock);
	return bytes;
}
