/*
 * verify.c — hides how a local file is checked against its id (it is stored again, by an object
 * database that keeps nothing), and which ones need not be checked: a disk may change bytes while
 * nobody looks, so a file that this process has neither written nor checked is not believed.
 */
#include "cache/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "store/chunker.h"

#define BACKGROUND_NICE 19
#define TRUSTED_SLOTS ((size_t)1 << 20) /* 8 MiB, of which what is used costs memory */

static void packer_release(struct packer **packer)
{
	packer_free(*packer);
}

static int read_id_of_chunk(int descriptor, size_t size, struct id *ret_id)
{
	CLEANUP(free_pointer) uint8_t *bytes = malloc(size);
	if (!bytes)
		return -ERR_NO_MEMORY;
	ssize_t got = read_full(descriptor, bytes, size, 0);
	if (got < 0)
		return (int)got;
	sha256_of(bytes, (size_t)got, ret_id);
	return 0;
}

/* 0 and whether the bytes are those of `id`. One packer for each file: it remembers chunks. */
static int check_file(struct cache *cache, const struct id *id, int descriptor, uint64_t size,
                      const struct progress *progress, bool *ret_good)
{
	struct id found = id_zero;
	int error = 0;
	if (size > 0 && size <= CHUNK_BYTES_MAX)
		error = read_id_of_chunk(descriptor, (size_t)size, &found);
	if (!error && !id_equal(&found, id)) { /* more than one chunk, or damaged */
		CLEANUP(packer_release) struct packer *packer = NULL;
		struct content content = {0};
		error = packer_new(cache->checker, &packer);
		if (!error)
			error = content_store(packer, descriptor, size, progress, &content, NULL);
		found = content.pointer.id;
	}
	if (!error)
		*ret_good = id_equal(&found, id);
	return error;
}

/* -- what is believed --
 * A table of fingerprints without locks: whoever loses his slot is checked once more. */

static _Atomic uint64_t *trusted_slot(struct cache *cache, const struct id *id, ino_t inode,
                                      uint64_t *ret_fingerprint)
{
	*ret_fingerprint = load_u64(id->bytes + 8) ^ (uint64_t)inode * 0x9e3779b97f4a7c15;
	return &cache->trusted[load_u64(id->bytes) % TRUSTED_SLOTS];
}

static bool is_trusted(struct cache *cache, const struct id *id, ino_t inode)
{
	uint64_t fingerprint;
	_Atomic uint64_t *slot = trusted_slot(cache, id, inode, &fingerprint);
	return atomic_load_explicit(slot, memory_order_relaxed) == fingerprint;
}

void verify_trust(struct cache *cache, const struct id *id, ino_t inode)
{
	uint64_t fingerprint;
	_Atomic uint64_t *slot = trusted_slot(cache, id, inode, &fingerprint);
	atomic_store_explicit(slot, fingerprint, memory_order_relaxed);
}

static void count_damaged(struct cache *cache)
{
	pthread_mutex_lock(&cache->table_lock);
	cache->counters.damaged++;
	pthread_mutex_unlock(&cache->table_lock);
}

/* -- large files, in the background -- */

static int stop_when_closing(void *context, const char *what, uint64_t done, uint64_t total,
                             const char *unit)
{
	const struct cache *cache = context;
	return cache->closing;
}

static void check_in_background(struct cache *cache, const struct id *id)
{
	const struct progress progress = {.report = stop_when_closing, .context = cache};
	char path[SHARD_PATH_MAX];
	struct stat status;
	bool good;
	shard_path(id, path);
	CLEANUP(close_descriptor)
	int descriptor = open_copy(cache->recents, path + 3);
	if (descriptor < 0)
		descriptor = open_copy(cache->blobs, path);
	if (descriptor < 0 || fstat(descriptor, &status) < 0 ||
	    is_trusted(cache, id, status.st_ino))
		return;
	int error = check_file(cache, id, descriptor, (uint64_t)status.st_size, &progress, &good);
	if (error == -ERR_INTERRUPTED || error == -ERR_NO_MEMORY)
		return;
	if (!error && good) {
		verify_trust(cache, id, status.st_ino);
		return;
	}
	count_damaged(cache);
	discard_file(cache, id);
}

static void *check_queued(void *context)
{
	struct cache *cache = context;
	/* Of this thread alone, as the kernel sees it. */
	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), BACKGROUND_NICE);
	pthread_mutex_lock(&cache->check_lock);
	while (!cache->closing && cache->check_count) {
		struct id id = cache->check_queue[0];
		pthread_mutex_unlock(&cache->check_lock);
		check_in_background(cache, &id);
		pthread_mutex_lock(&cache->check_lock);
		memmove(cache->check_queue, cache->check_queue + 1,
		        --cache->check_count * sizeof(id));
	}
	cache->check_running = false;
	pthread_mutex_unlock(&cache->check_lock);
	return NULL;
}

/* Locked. The thread before, if any, has ended or is about to. */
static void start_checking(struct cache *cache)
{
	if (cache->check_joinable)
		pthread_join(cache->check_thread, NULL);
	cache->check_running = cache->check_joinable =
	        pthread_create(&cache->check_thread, NULL, check_queued, cache) == 0;
}

/* What does not fit is checked after a later opening. */
static void check_later(struct cache *cache, const struct id *id)
{
	pthread_mutex_lock(&cache->check_lock);
	bool queued = cache->check_count == CHECK_QUEUE_MAX || cache->closing;
	for (size_t i = 0; !queued && i < cache->check_count; i++)
		queued = id_equal(&cache->check_queue[i], id);
	if (!queued)
		cache->check_queue[cache->check_count++] = *id;
	if (!queued && !cache->check_running)
		start_checking(cache);
	pthread_mutex_unlock(&cache->check_lock);
}

int verify_start(struct cache *cache)
{
	cache->trusted = calloc(TRUSTED_SLOTS, sizeof(*cache->trusted));
	if (!cache->trusted)
		return -ERR_NO_MEMORY;
	return odb_new(NULL, NULL, &cache->checker);
}

void verify_stop(struct cache *cache)
{
	pthread_mutex_lock(&cache->check_lock);
	bool joinable = cache->check_joinable;
	pthread_mutex_unlock(&cache->check_lock);
	if (joinable)
		pthread_join(cache->check_thread, NULL);
	odb_free(cache->checker);
	free(cache->trusted);
}

int verify_opened(struct cache *cache, const struct id *id, int descriptor,
                  const struct stat *status)
{
	bool good = false;
	if (is_trusted(cache, id, status->st_ino))
		return 0;
	if ((uint64_t)status->st_size > cache->verify_bytes_max) {
		check_later(cache, id);
		return 0;
	}
	int error = check_file(cache, id, descriptor, (uint64_t)status->st_size, NULL, &good);
	if (error == -ERR_NO_MEMORY)
		return error;
	if (error || !good) { /* a file that cannot be read is damaged too */
		count_damaged(cache);
		return -ERR_CORRUPT;
	}
	verify_trust(cache, id, status->st_ino);
	return 0;
}

/* -- all of them -- */

struct verification {
	cache_damage_fn *callback;
	void *context;
	const struct progress *progress;
	struct message *message;
	const char *directory; /* below the cache's path */
	uint64_t done, total;
	int result;
};

static void verify_name(struct cache *cache, int directory, const char *name, const struct id *id,
                        void *context)
{
	struct verification *verification = context;
	if (!id || verification->result)
		return;
	if (progress_report(verification->progress, "checking local copies", verification->done++,
	                    verification->total, "files")) {
		verification->result = fail(verification->message, -ERR_INTERRUPTED,
		                            "checking local copies was interrupted");
		return;
	}
	CLEANUP(close_descriptor) int descriptor = open_copy(directory, name);
	if (descriptor < 0)
		return; /* evicted, or synced and moved, meanwhile */
	struct stat status;
	bool good = false;
	int error =
	        fstat(descriptor, &status) < 0
	                ? error_system(errno)
	                : check_file(cache, id, descriptor, (uint64_t)status.st_size, NULL, &good);
	if (error == -ERR_NO_MEMORY) {
		verification->result = error;
		return;
	}
	if (!error && good)
		return;
	CLEANUP(free_pointer) char *path = NULL;
	if (asprintf(&path, "%s/%s/%s", cache->path, verification->directory, name) < 0) {
		path = NULL;
		verification->result = -ERR_NO_MEMORY;
		return;
	}
	verification->result = verification->callback(verification->context, id, path);
}

int cache_verify(struct cache *cache, cache_damage_fn *callback, void *context,
                 const struct progress *progress, struct message *message)
{
	struct cache_stats stats;
	cache_stats(cache, &stats);
	struct verification verification = {
	        .callback = callback,
	        .context = context,
	        .progress = progress,
	        .message = message,
	        .directory = "recent",
	        .total = stats.blobs,
	};
	(void)each_name(cache, cache->recents, ".", verify_name, &verification);
	for (unsigned shard = 0; shard < SHARDS && !verification.result; shard++) {
		char directory[16];
		snprintf(directory, sizeof(directory), "blobs/%02x", shard);
		verification.directory = directory;
		/* A shard that was never needed is not there. */
		(void)each_name(cache, cache->directory, directory, verify_name, &verification);
	}
	return verification.result;
}
