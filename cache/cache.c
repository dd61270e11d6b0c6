/*
 * cache.c — hides how a content id becomes a struct blob: the table of blobs in use, the names
 * of local files, and the moment a file that exists already (adopted, or found on disk) counts.
 *
 * A blob is in the table while it is referenced, and, when it is partial, until it is dropped:
 * the map of what is present exists nowhere else. A complete blob without references is only a
 * file, found again by one open().
 */
#include "cache/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

void shard_path(const struct id *id, char ret_path[SHARD_PATH_MAX])
{
	id_to_hex(id, ret_path + 3);
	ret_path[0] = ret_path[3];
	ret_path[1] = ret_path[4];
	ret_path[2] = '/';
}

/* Recency is a hint: a file that cannot be touched is evicted a little early. */
static const struct timespec used_now[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};

static bool used_lately(const struct stat *status)
{
	int64_t used_ms = (int64_t)status->st_mtim.tv_sec * 1000;
	int64_t now_ms = clock_wall_ms();
	return now_ms - used_ms < TOUCH_INTERVAL_MS && used_ms <= now_ms;
}

static void touch_file(int descriptor, const struct stat *status)
{
	if (!used_lately(status))
		(void)futimens(descriptor, used_now);
}

/* -- recent -- */

int recent_add(struct cache *cache, const struct id *id, uint64_t bytes)
{
	struct recent *recent = malloc(sizeof(*recent));
	if (!recent)
		return -ERR_NO_MEMORY;
	*recent = (struct recent){.id = *id, .bytes = bytes};
	struct recent *before;
	pthread_mutex_lock(&cache->table_lock);
	HASH_FIND(hh, cache->recent, id, sizeof(*id), before);
	if (before) {
		pthread_mutex_unlock(&cache->table_lock);
		free(recent);
		return 0;
	}
	if (!cache->recent)
		cache->recent_since_ms = clock_monotonic_ms();
	HASH_ADD(hh, cache->recent, id, sizeof(recent->id), recent);
	bool added = recent->hh.tbl != NULL;
	if (added)
		cache->recent_bytes += bytes;
	pthread_mutex_unlock(&cache->table_lock);
	if (!added)
		free(recent);
	return added ? 0 : -ERR_NO_MEMORY;
}

bool recent_remove(struct cache *cache, const struct id *id, uint64_t *ret_bytes)
{
	struct recent *recent;
	pthread_mutex_lock(&cache->table_lock);
	HASH_FIND(hh, cache->recent, id, sizeof(*id), recent);
	if (recent) {
		HASH_DELETE(hh, cache->recent, recent);
		cache->recent_bytes -= recent->bytes;
		*ret_bytes = recent->bytes;
	}
	pthread_mutex_unlock(&cache->table_lock);
	free(recent);
	return recent != NULL;
}

static bool recent_has(struct cache *cache, const struct id *id)
{
	struct recent *recent;
	pthread_mutex_lock(&cache->table_lock);
	HASH_FIND(hh, cache->recent, id, sizeof(*id), recent);
	pthread_mutex_unlock(&cache->table_lock);
	return recent != NULL;
}

/* -- complete local files -- */

void discard_file(struct cache *cache, const struct id *id)
{
	char path[SHARD_PATH_MAX];
	uint64_t bytes;
	shard_path(id, path);
	if (recent_remove(cache, id, &bytes))
		unlinkat(cache->recents, path + 3, 0);
	unlinkat(cache->blobs, path, 0);
}

int open_copy(int directory, const char *name)
{
	const int flags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC;
	int descriptor = openat(directory, name, flags | O_NONBLOCK);
	/* Whoever made it as his own file may ask for a lease, which he gives back at once. */
	if (descriptor < 0 && errno == EWOULDBLOCK)
		descriptor = openat(directory, name, flags);
	return descriptor;
}

int open_complete(struct cache *cache, const struct id *id, uint64_t size, int *ret_descriptor)
{
	char path[SHARD_PATH_MAX];
	shard_path(id, path);
	CLEANUP(close_descriptor) int descriptor = -1;
	/* A sync may move the file from recent/ to blobs/ at any moment, but never back: looking
	 * in this order cannot miss it. */
	if (recent_has(cache, id))
		descriptor = open_copy(cache->recents, path + 3);
	if (descriptor < 0)
		descriptor = open_copy(cache->blobs, path);
	if (descriptor < 0 && (errno == ELOOP || errno == ENXIO)) { /* a link, a socket */
		discard_file(cache, id);
		return -ERR_NOT_FOUND;
	}
	if (descriptor < 0)
		return error_system(errno);
	struct stat status;
	if (fstat(descriptor, &status) < 0)
		return error_system(errno);
	int error = (uint64_t)status.st_size != size || !S_ISREG(status.st_mode)
	                    ? -ERR_CORRUPT
	                    : verify_opened(cache, id, descriptor, &status);
	if (error == -ERR_CORRUPT) { /* not this content, whatever its name says: fetched anew */
		discard_file(cache, id);
		return -ERR_NOT_FOUND;
	}
	if (error)
		return error;
	touch_file(descriptor, &status);
	*ret_descriptor = descriptor;
	descriptor = -1;
	return 0;
}

/* -- the table -- */

/* Locked. */
static struct blob *find_blob(struct cache *cache, const struct id *id)
{
	struct blob *blob;
	HASH_FIND(hh, cache->table, id, sizeof(*id), blob);
	return blob;
}

/* Locked. */
static void leave_idle(struct cache *cache, struct blob *blob)
{
	DL_DELETE(cache->idle, blob);
	cache->idle_count--;
}

/* The blob in the table, or a new one entered into it; with a reference. */
static int acquire(struct cache *cache, const struct content *content, struct blob **ret_blob)
{
	struct blob *fresh, *stale = NULL;
	int error = blob_new(cache, content, &fresh);
	if (error)
		return error;
	pthread_mutex_lock(&cache->table_lock);
	struct blob *blob = find_blob(cache, &content->pointer.id);
	if (blob && blob->references == 0) {
		leave_idle(cache, blob);
		if (blob->size != content->size) {
			/* One of the two sizes is a lie; fetching will tell about this one. */
			HASH_DELETE(hh, cache->table, blob);
			stale = steal(&blob);
		}
	}
	if (!blob) {
		HASH_ADD(hh, cache->table, id, sizeof(fresh->id), fresh);
		if (fresh->hh.tbl)
			blob = steal(&fresh);
	}
	if (blob) {
		blob->references++;
		blob->users++;
	}
	pthread_mutex_unlock(&cache->table_lock);
	if (fresh)
		blob_free(fresh);
	if (stale)
		blob_free(stale);
	if (!blob)
		return -ERR_NO_MEMORY;
	*ret_blob = blob;
	return 0;
}

static void count_use(struct cache *cache, bool hit)
{
	pthread_mutex_lock(&cache->table_lock);
	if (hit)
		cache->counters.hits++;
	else
		cache->counters.misses++;
	pthread_mutex_unlock(&cache->table_lock);
}

static int prepare(struct blob *blob, const struct content *content, struct message *message)
{
	if (blob->size != content->size)
		return fail(message, -ERR_CORRUPT, "two sizes for one content: %llu and %llu bytes",
		            (unsigned long long)blob->size, (unsigned long long)content->size);
	if (!blob->complete)
		blob_refresh(blob, content);
	int error = blob_open(blob, message);
	if (error)
		return error;
	bool complete = blob->complete;
	if (!complete)
		blob->fetched = true;
	count_use(blob->cache, complete);
	if (!complete && content->size <= blob->cache->whole_file_bytes)
		error = fetch_range(blob, 0, content->size, message);
	return error;
}

int cache_get(struct cache *cache, const struct content *content, struct blob **ret_blob,
              struct message *message)
{
	if (content->size > FILE_BYTES_MAX)
		return fail(message, -ERR_CORRUPT, "a file of %llu bytes is beyond the limit",
		            (unsigned long long)content->size);
	struct blob *blob;
	int error = acquire(cache, content, &blob);
	if (error)
		return fail(message, error, "out of memory");
	error = prepare(blob, content, message);
	if (error) {
		blob_unref(blob);
		return error;
	}
	*ret_blob = blob;
	return 0;
}

/* Its map and file are kept, its descriptors are not. */
static void make_idle(struct blob *blob)
{
	close_descriptor(&blob->descriptor);
	close_descriptor(&blob->writer);
}

/* Locked. The last reference is gone: true when nothing of it is worth keeping in memory. */
static struct blob *retire(struct cache *cache, struct blob *blob)
{
	struct blob *dropped = NULL;
	if (blob->superseded)
		return blob;
	if (blob->complete || blob->unwanted || !blob->present.count) {
		dropped = blob;
	} else {
		make_idle(blob);
		blob->idle_since_ms = clock_wall_ms();
		DL_APPEND(cache->idle, blob);
		if (++cache->idle_count > IDLE_BLOBS_MAX) {
			dropped = cache->idle;
			leave_idle(cache, dropped);
		}
	}
	if (dropped)
		HASH_DELETE(hh, cache->table, dropped);
	return dropped;
}

/* Readers of the partial one go on with it; jobs alone would keep it in the table for as long as
 * they run, and others that read it for as long as they like. */
void supersede(struct cache *cache, const struct id *id)
{
	struct blob *dropped = NULL;
	pthread_mutex_lock(&cache->table_lock);
	struct blob *blob = find_blob(cache, id);
	if (blob && !blob->complete) {
		HASH_DELETE(hh, cache->table, blob);
		blob->superseded = true;
		if (blob->references == 0) {
			leave_idle(cache, blob);
			dropped = blob;
		}
	}
	pthread_mutex_unlock(&cache->table_lock);
	if (dropped)
		blob_free(dropped);
}

void blob_hold(struct blob *blob)
{
	pthread_mutex_lock(&blob->cache->table_lock);
	blob->references++;
	pthread_mutex_unlock(&blob->cache->table_lock);
}

void blob_release(struct blob *blob)
{
	struct cache *cache = blob->cache;
	struct blob *dropped = NULL;
	pthread_mutex_lock(&cache->table_lock);
	if (--blob->references == 0)
		dropped = retire(cache, blob);
	pthread_cond_broadcast(&cache->released);
	pthread_mutex_unlock(&cache->table_lock);
	struct stat status;
	if (dropped && dropped->complete && fstat(dropped->descriptor, &status) == 0)
		touch_file(dropped->descriptor, &status);
	if (dropped)
		blob_free(dropped);
}

void blob_unref(struct blob *blob)
{
	if (!blob)
		return;
	struct cache *cache = blob->cache;
	pthread_mutex_lock(&cache->table_lock);
	bool last = --blob->users == 0;
	pthread_mutex_unlock(&cache->table_lock);
	if (last) {
		/* Whoever opens it next begins anew. */
		pthread_mutex_lock(&blob->lock);
		struct cursors *cursors = steal(&blob->cursors);
		blob->observed = false;
		pthread_mutex_unlock(&blob->lock);
		cursors_free(cursors);
		pool_cancel(cache->pool, blob);
	}
	blob_release(blob);
}

/* -- questions and adoption -- */

static bool has_file(struct cache *cache, const struct id *id)
{
	char path[SHARD_PATH_MAX];
	shard_path(id, path);
	return recent_has(cache, id) || faccessat(cache->blobs, path, F_OK, 0) == 0;
}

bool cache_has(struct cache *cache, const struct content *content)
{
	pthread_mutex_lock(&cache->table_lock);
	struct blob *blob = find_blob(cache, &content->pointer.id);
	bool complete = blob && blob->complete;
	pthread_mutex_unlock(&cache->table_lock);
	return complete || has_file(cache, &content->pointer.id);
}

static int check_adopted(const struct content *content, const char *path, struct stat *ret_status,
                         struct message *message)
{
	if (lstat(path, ret_status) < 0)
		return fail(message, error_system(errno), "cannot adopt '%s': %s", path,
		            strerror(errno));
	if (!S_ISREG(ret_status->st_mode) || (uint64_t)ret_status->st_size != content->size)
		return fail(message, -ERR_INVALID, "'%s' has %lld bytes, its content %llu", path,
		            (long long)ret_status->st_size, (unsigned long long)content->size);
	return 0;
}

static int remove_known(const char *path, struct message *message)
{
	if (unlink(path) < 0)
		return fail(message, error_system(errno), "cannot remove '%s': %s", path,
		            strerror(errno));
	return 0;
}

int cache_adopt(struct cache *cache, const struct content *content, const char *path,
                struct message *message)
{
	struct stat status;
	const struct id *id = &content->pointer.id;
	int error = check_adopted(content, path, &status, message);
	if (error)
		return error;
	char name[ID_HEX + 1];
	id_to_hex(id, name);
	if (has_file(cache, id))
		return remove_known(path, message);
	if (renameat2(AT_FDCWD, path, cache->recents, name, RENAME_NOREPLACE) < 0) {
		if (errno == EEXIST)
			return remove_known(path, message);
		return fail(message, error_system(errno), "cannot move '%s' to %s/recent: %s", path,
		            cache->path, strerror(errno));
	}
	verify_trust(cache, id, status.st_ino);
	supersede(cache, id);
	if (!used_lately(&status))
		(void)utimensat(cache->recents, name, used_now, 0);
	/* Without memory for the entry the file waits in recent/ for the next opening. */
	(void)recent_add(cache, id, disk_bytes_of(&status));
	evict_before(cache, 0);
	if (durable_due(cache))
		keeper_wake(cache);
	return 0;
}

int cache_sync(struct cache *cache)
{
	return syncfs(cache->directory) < 0 ? error_system(errno) : 0;
}

int cache_adopt_synced(struct cache *cache, const struct content *content, const char *path,
                       struct message *message)
{
	struct stat status;
	char blob_path[SHARD_PATH_MAX];
	int error = check_adopted(content, path, &status, message);
	if (error)
		return error;
	if (recent_has(cache, &content->pointer.id))
		return remove_known(path, message);
	shard_path(&content->pointer.id, blob_path);
	pthread_mutex_lock(&cache->scan_lock);
	error = durable_place(cache, AT_FDCWD, path, blob_path, RENAME_NOREPLACE);
	if (!error)
		evict_count_adopted(cache, &content->pointer.id, disk_bytes_of(&status));
	pthread_mutex_unlock(&cache->scan_lock);
	if (error == -ERR_EXISTS)
		return remove_known(path, message);
	if (error)
		return fail(message, error, "cannot move '%s' to %s/blobs: %s", path, cache->path,
		            error_text(error));
	verify_trust(cache, &content->pointer.id, status.st_ino);
	supersede(cache, &content->pointer.id);
	if (!used_lately(&status))
		(void)utimensat(cache->blobs, blob_path, used_now, 0);
	evict_before(cache, 0);
	return 0;
}

void cache_stats(struct cache *cache, struct cache_stats *ret_stats)
{
	pthread_mutex_lock(&cache->table_lock);
	*ret_stats = cache->counters;
	ret_stats->bytes = cache->durable_bytes + cache->recent_bytes + cache->partial_bytes;
	ret_stats->blobs = cache->durable_count + HASH_COUNT(cache->recent);
	pthread_mutex_unlock(&cache->table_lock);
}

/* -- opening and closing -- */

static void cache_free(struct cache *cache)
{
	struct recent *recent, *next;
	HASH_ITER (hh, cache->recent, recent, next) {
		HASH_DELETE(hh, cache->recent, recent);
		free(recent);
	}
	close_descriptor(&cache->directory);
	close_descriptor(&cache->blobs);
	close_descriptor(&cache->recents);
	close_descriptor(&cache->partials);
	pthread_mutex_destroy(&cache->table_lock);
	pthread_cond_destroy(&cache->released);
	pthread_mutex_destroy(&cache->maintenance);
	pthread_mutex_destroy(&cache->scan_lock);
	pthread_mutex_destroy(&cache->keeper_lock);
	pthread_cond_destroy(&cache->keeper_wake);
	pool_free(cache->pool);
	verify_stop(cache);
	pthread_mutex_destroy(&cache->check_lock);
	free(cache->path);
	free(cache);
}

static void cache_release(struct cache **cache)
{
	if (*cache)
		cache_free(*cache);
}

static int open_directory(int parent, const char *path, int *ret_descriptor)
{
	if (parent != AT_FDCWD && mkdirat(parent, path, 0700) < 0 && errno != EEXIST)
		return error_system(errno);
	int descriptor = openat(parent, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (descriptor < 0)
		return error_system(errno);
	*ret_descriptor = descriptor;
	return 0;
}

static int open_directories(struct cache *cache)
{
	int error = make_directories(cache->path, 0700);
	if (!error)
		error = open_directory(AT_FDCWD, cache->path, &cache->directory);
	if (!error)
		error = open_directory(cache->directory, "blobs", &cache->blobs);
	if (!error)
		error = open_directory(cache->directory, "recent", &cache->recents);
	if (!error)
		error = open_directory(cache->directory, "partial", &cache->partials);
	return error;
}

static int cache_new(const char *directory, struct odb *odb, const struct cache_options *options,
                     struct cache **ret_cache)
{
	struct cache *cache = calloc(1, sizeof(*cache));
	if (!cache)
		return -ERR_NO_MEMORY;
	cache->directory = cache->blobs = cache->recents = cache->partials = -1;
	cache->odb = odb;
	cache->bytes_max = options ? options->bytes_max : 0;
	cache->whole_file_bytes = options ? options->whole_file_bytes : 0;
	if (!cache->whole_file_bytes)
		cache->whole_file_bytes = WHOLE_FILE_BYTES_DEFAULT;
	cache->verify_bytes_max = options ? options->verify_bytes_max : 0;
	if (!cache->verify_bytes_max)
		cache->verify_bytes_max = VERIFY_BYTES_DEFAULT;
	cache->fetch_bytes_max = options ? options->fetch_bytes_max : 0;
	if (!cache->fetch_bytes_max)
		cache->fetch_bytes_max = FETCH_BYTES_MAX_DEFAULT;
	if (cache->fetch_bytes_max < FETCH_BYTES_MAX_MIN)
		cache->fetch_bytes_max = FETCH_BYTES_MAX_MIN;
	pthread_mutex_init(&cache->table_lock, NULL);
	pthread_cond_init(&cache->released, NULL);
	pthread_mutex_init(&cache->maintenance, NULL);
	pthread_mutex_init(&cache->scan_lock, NULL);
	pthread_mutex_init(&cache->keeper_lock, NULL);
	pthread_mutex_init(&cache->check_lock, NULL);
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&cache->keeper_wake, &attributes);
	pthread_condattr_destroy(&attributes);
	cache->path = strdup(directory);
	*ret_cache = cache;
	return cache->path ? pool_new(cache->fetch_bytes_max, &cache->pool) : -ERR_NO_MEMORY;
}

int cache_open(const char *directory, struct odb *odb, const struct cache_options *options,
               struct cache **ret_cache, struct message *message)
{
	CLEANUP(cache_release) struct cache *cache = NULL;
	int error = cache_new(directory, odb, options, &cache);
	if (!error)
		error = open_directories(cache);
	if (error)
		return fail(message, error, "cannot open the cache %s: %s", directory,
		            error_text(error));
	error = verify_start(cache);
	if (!error)
		error = durable_open(cache, message);
	if (!error)
		error = keeper_start(cache);
	if (error)
		return fail_context(message, error, "cache %s", directory);
	*ret_cache = steal(&cache);
	return 0;
}

void cache_close(struct cache *cache)
{
	if (!cache)
		return;
	cache->closing = true;
	pool_free(cache->pool);
	cache->pool = NULL;
	keeper_stop(cache);
	durable_sync(cache);
	struct blob *blob, *next;
	HASH_ITER (hh, cache->table, blob, next) {
		HASH_DELETE(hh, cache->table, blob);
		blob_free(blob);
	}
	cache_free(cache);
}
