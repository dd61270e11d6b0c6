/*
 * chunk_queue — hides that the chunks of a file are stored by several threads.
 *
 * A ring of jobs: whoever owns the queue adds at its end, threads take the oldest that waits, and
 * the owner passes what is done on from its beginning. When the ring is full the owner does a job
 * itself instead of waiting, so that no processor is idle whichever side is slower.
 */
#include <assert.h>
#include <pthread.h>
#include <unistd.h>

#include "store/chunk_queue.h"
#include "store/chunker.h"
#include "store/thread.h"

#define QUEUE_JOBS_MAX 16
#define QUEUE_THREADS_MAX 7
#define QUEUE_ALONE_BYTES (2u << 20)

struct job {
	uint8_t *bytes; /* CHUNK_BYTES_MAX of memory, or NULL: not used yet */
	struct list_entry entry;
	bool done;
	int error;
	struct message message;
};

struct chunk_queue {
	struct packer *packer;
	struct list_builder *builder;
	uint64_t alone; /* bytes stored without threads */
	bool is_long;   /* others with a long file wait for this one */
	pthread_t threads[QUEUE_THREADS_MAX];
	size_t thread_count;

	/* Guards what follows; a job itself belongs to who takes it until it is done. */
	pthread_mutex_t lock;
	pthread_cond_t added, ended;
	bool closing;
	/* Counted for ever; job n is jobs[n % QUEUE_JOBS_MAX]. first <= next <= end */
	size_t first, next, end;
	struct job *jobs; /* QUEUE_JOBS_MAX of them once there are threads */
};

static struct job *job_of(struct chunk_queue *queue, size_t number)
{
	return &queue->jobs[number % QUEUE_JOBS_MAX];
}

struct turn {
	struct chunk_queue *queue;
	size_t number;
};

/* Jobs are begun in order, so whoever waits here waits for somebody who does not. */
static void wait_for_turn(void *context)
{
	const struct turn *turn = context;
	struct chunk_queue *queue = turn->queue;

	pthread_mutex_lock(&queue->lock);
	for (size_t before = queue->first; before < turn->number;) {
		if (before < queue->first || job_of(queue, before)->done)
			before++;
		else
			pthread_cond_wait(&queue->ended, &queue->lock);
	}
	pthread_mutex_unlock(&queue->lock);
}

/* Do the oldest job that waits; there is one. The lock is given up meanwhile. */
static void run_next(struct chunk_queue *queue)
{
	struct turn turn = {queue, queue->next++};
	struct packer_turn in_turn = {wait_for_turn, &turn};
	struct job *job = job_of(queue, turn.number);

	if (job->done)
		return; /* a hole */
	pthread_mutex_unlock(&queue->lock);
	job->error = packer_add_chunk_in_turn(queue->packer, job->bytes, (size_t)job->entry.length,
	                                      &in_turn, &job->entry.pointer, NULL, &job->message);
	pthread_mutex_lock(&queue->lock);
	job->done = true;
	pthread_cond_broadcast(&queue->ended);
}

static void *thread_run(void *argument)
{
	struct chunk_queue *queue = argument;

	pthread_mutex_lock(&queue->lock);
	while (!queue->closing) {
		if (queue->next < queue->end)
			run_next(queue);
		else
			pthread_cond_wait(&queue->added, &queue->lock);
	}
	pthread_mutex_unlock(&queue->lock);
	return NULL;
}

/* One for each processor but the owner's; at least one, for the owner waits for the file. */
static void start_threads(struct chunk_queue *queue)
{
	long count = sysconf(_SC_NPROCESSORS_ONLN) - 1;

	if (!queue->jobs)
		queue->jobs = calloc(QUEUE_JOBS_MAX, sizeof(*queue->jobs));
	if (!queue->jobs)
		return; /* the owner does it all */
	if (count > QUEUE_THREADS_MAX)
		count = QUEUE_THREADS_MAX;
	do {
		if (thread_start(&queue->threads[queue->thread_count], thread_run, queue))
			return;
		queue->thread_count++;
	} while ((long)queue->thread_count < count);
}

int chunk_queue_new(struct packer *packer, struct list_builder *builder,
                    struct chunk_queue **ret_queue)
{
	struct chunk_queue *queue = calloc(1, sizeof(*queue));

	if (!queue)
		return -ERR_NO_MEMORY;
	queue->packer = packer;
	queue->builder = builder;
	pthread_mutex_init(&queue->lock, NULL);
	pthread_cond_init(&queue->added, NULL);
	pthread_cond_init(&queue->ended, NULL);
	*ret_queue = queue;
	return 0;
}

void chunk_queue_free(struct chunk_queue *queue)
{
	if (!queue)
		return;
	pthread_mutex_lock(&queue->lock);
	queue->closing = true;
	pthread_cond_broadcast(&queue->added);
	pthread_mutex_unlock(&queue->lock);
	for (size_t i = 0; i < queue->thread_count; i++)
		pthread_join(queue->threads[i], NULL);
	if (queue->is_long)
		packer_long_file_end(queue->packer);
	for (size_t i = 0; queue->jobs && i < QUEUE_JOBS_MAX; i++)
		free(queue->jobs[i].bytes);
	free(queue->jobs);
	pthread_cond_destroy(&queue->ended);
	pthread_cond_destroy(&queue->added);
	pthread_mutex_destroy(&queue->lock);
	free(queue);
}

/* Pass on the first job, which is done. */
static int pass_on(struct chunk_queue *queue, struct message *message)
{
	struct job *job = job_of(queue, queue->first);

	if (job->error) {
		if (message)
			*message = job->message;
		return job->error;
	}
	return list_builder_add(queue->builder, 0, &job->entry, message);
}

/* Wait until at most `left_max` jobs are under way, passing on all that are done at the front. */
static int advance(struct chunk_queue *queue, size_t left_max, struct message *message)
{
	int error = 0;

	pthread_mutex_lock(&queue->lock);
	while (!error && queue->end > queue->first) {
		if (job_of(queue, queue->first)->done && queue->first < queue->next) {
			pthread_mutex_unlock(&queue->lock);
			error = pass_on(queue, message);
			pthread_mutex_lock(&queue->lock);
			queue->first += !error;
		} else if (queue->end - queue->first <= left_max) {
			break;
		} else if (queue->next < queue->end) {
			run_next(queue);
		} else {
			pthread_cond_wait(&queue->ended, &queue->lock);
		}
	}
	pthread_mutex_unlock(&queue->lock);
	return error;
}

int chunk_queue_drain(struct chunk_queue *queue, struct message *message)
{
	return advance(queue, 0, message);
}

static int add_alone(struct chunk_queue *queue, const uint8_t *bytes, uint64_t length,
                     struct message *message)
{
	struct list_entry entry = {.length = length, .hole = bytes == NULL};
	int error = 0;

	if (bytes)
		error = packer_add_chunk(queue->packer, bytes, (size_t)length, &entry.pointer, NULL,
		                         message);
	if (error)
		return error;
	queue->alone += bytes ? length : 0;
	if (queue->alone >= QUEUE_ALONE_BYTES) {
		if (!queue->is_long)
			packer_long_file_begin(queue->packer);
		queue->is_long = true;
		start_threads(queue);
	}
	return list_builder_add(queue->builder, 0, &entry, message);
}

int chunk_queue_add(struct chunk_queue *queue, const uint8_t *bytes, uint64_t length,
                    struct message *message)
{
	struct job *job;
	int error;

	assert(length > 0 && (!bytes || length <= CHUNK_BYTES_MAX));
	if (!queue->thread_count)
		return add_alone(queue, bytes, length, message);
	error = advance(queue, QUEUE_JOBS_MAX - 1, message);
	if (error)
		return error;
	job = job_of(queue, queue->end); /* nobody else's: `end` is only moved here */
	job->entry = (struct list_entry){.length = length, .hole = bytes == NULL};
	job->done = bytes == NULL;
	job->error = 0;
	if (bytes && !job->bytes)
		job->bytes = malloc(CHUNK_BYTES_MAX);
	if (bytes && !job->bytes)
		return fail(message, -ERR_NO_MEMORY, "a chunk of %llu bytes",
		            (unsigned long long)length);
	if (bytes)
		memcpy(job->bytes, bytes, (size_t)length);
	pthread_mutex_lock(&queue->lock);
	queue->end++;
	pthread_cond_signal(&queue->added);
	pthread_mutex_unlock(&queue->lock);
	return 0;
}
