/*
 * durable.c — hides what a local file may be trusted for, and the thread that keeps house.
 *
 * A complete file is written, not yet synced: after kill -9 the kernel still has its bytes, after
 * a power cut it may be short or zeroes under the right name. So it lies in recent/ until synced,
 * and recent/ is emptied when the stamp DIR/boot names another boot than this one. Only after a
 * sync that reported no error is a file renamed into blobs/. The rename itself need not be
 * durable: a file that a power cut leaves in recent/ is dropped and fetched again.
 *
 * The keeper syncs when recent/ is old or large enough, and evicts ahead of need. It first counts
 * what is in blobs/, so opening costs the same at ten files and at a million.
 */
#include "cache/internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define BOOT_STAMP "boot"
#define SYNC_AGE_MS 30000
#define SYNC_COUNT 4096
#define SYNC_BYTES ((uint64_t)1 << 30)
#define SYNCFS_COUNT 64 /* from so many files on one syncfs is cheaper than a sync of each */

int each_name(struct cache *cache, int parent, const char *path, name_fn *callback, void *context)
{
	int descriptor = openat(parent, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (descriptor < 0)
		return error_system(errno);
	DIR *directory = fdopendir(descriptor);
	if (!directory) {
		int error = error_system(errno);
		close(descriptor);
		return error;
	}
	const struct dirent *entry;
	while ((entry = readdir(directory))) {
		struct id id;
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		bool is_id = id_from_hex(entry->d_name, &id) == 0;
		callback(cache, dirfd(directory), entry->d_name, is_id ? &id : NULL, context);
	}
	closedir(directory);
	return 0;
}

/* -- opening -- */

static void drop_name(struct cache *cache, int directory, const char *name, const struct id *id,
                      void *context)
{
	int *error = context;
	if (unlinkat(directory, name, 0) < 0 && errno != ENOENT)
		*error = error_system(errno);
}

static void trust_name(struct cache *cache, int directory, const char *name, const struct id *id,
                       void *context)
{
	struct stat status;
	if (!id || fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0 ||
	    !S_ISREG(status.st_mode)) {
		drop_name(cache, directory, name, id, context);
		return;
	}
	if (recent_add(cache, id, disk_bytes_of(&status)) < 0)
		*(int *)context = -ERR_NO_MEMORY;
}

static bool stamp_is_current(struct cache *cache, const char *stamp)
{
	CLEANUP(buffer_release) struct buffer found = {0};
	if (read_file(cache->directory, BOOT_STAMP, ID_HEX, &found) < 0)
		return false;
	return found.length == ID_HEX && memcmp(found.data, stamp, ID_HEX) == 0;
}

int durable_open(struct cache *cache, struct message *message)
{
	int failed = 0;
	int error = each_name(cache, cache->partials, ".", drop_name, &failed);
	if (error || failed)
		return fail(message, error ? error : failed, "cannot empty partial/");
	struct id boot;
	char stamp[ID_HEX + 1];
	error = boot_id(&boot);
	if (error)
		return fail(message, error, "cannot read the kernel's boot id");
	id_to_hex(&boot, stamp);
	bool same_boot = stamp_is_current(cache, stamp);
	error = each_name(cache, cache->recents, ".", same_boot ? trust_name : drop_name, &failed);
	if (error || failed)
		return fail(message, error ? error : failed, "cannot read or empty recent/");
	if (same_boot)
		return 0;
	/* After recent/ was emptied: a stamp never vouches for an earlier boot's files. */
	error = write_file_durably(cache->directory, BOOT_STAMP, stamp, ID_HEX);
	if (error)
		return fail(message, error, "cannot write the boot stamp");
	return 0;
}

/* -- syncing -- */

struct recent_copy {
	struct id id;
	uint64_t bytes;
};

static struct recent_copy *copy_recent(struct cache *cache, size_t *ret_count)
{
	pthread_mutex_lock(&cache->table_lock);
	size_t count = 0;
	struct recent_copy *copies = malloc((HASH_COUNT(cache->recent) + 1) * sizeof(*copies));
	struct recent *recent, *next;
	if (copies) {
		HASH_ITER (hh, cache->recent, recent, next)
			copies[count++] = (struct recent_copy){recent->id, recent->bytes};
	}
	cache->recent_since_ms = clock_monotonic_ms();
	pthread_mutex_unlock(&cache->table_lock);
	*ret_count = count;
	return copies;
}

static int sync_file(struct cache *cache, const char *name)
{
	CLEANUP(close_descriptor)
	int descriptor = open_copy(cache->recents, name);
	if (descriptor < 0)
		return error_system(errno);
	if (fdatasync(descriptor) < 0)
		return error_system(errno);
	return 0;
}

int durable_place(struct cache *cache, int directory, const char *name, const char *path,
                  unsigned flags)
{
	if (renameat2(directory, name, cache->blobs, path, flags) == 0)
		return 0;
	if (errno != ENOENT)
		return error_system(errno);
	char shard[3] = {path[0], path[1], '\0'};
	if (mkdirat(cache->blobs, shard, 0700) < 0 && errno != EEXIST)
		return error_system(errno);
	return renameat2(directory, name, cache->blobs, path, flags) < 0 ? error_system(errno) : 0;
}

static void settle_recent(struct cache *cache, const struct recent_copy *copy, bool synced)
{
	char path[SHARD_PATH_MAX];
	uint64_t bytes;
	shard_path(&copy->id, path);
	if (!synced && sync_file(cache, path + 3) < 0) {
		/* Its bytes did not reach the disk: it must never be trusted later. The store has
		 * them still. */
		recent_remove(cache, &copy->id, &bytes);
		unlinkat(cache->recents, path + 3, 0);
		return;
	}
	bool known = faccessat(cache->blobs, path, F_OK, 0) == 0;
	int error = durable_place(cache, cache->recents, path + 3, path, 0);
	if (error && error != -ERR_NOT_FOUND)
		return; /* it may stay where it is until the next try */
	if (!recent_remove(cache, &copy->id, &bytes) || error || known)
		return;
	pthread_mutex_lock(&cache->table_lock);
	cache->durable_count++;
	cache->durable_bytes += bytes;
	pthread_mutex_unlock(&cache->table_lock);
}

void durable_sync(struct cache *cache)
{
	pthread_mutex_lock(&cache->maintenance);
	size_t count;
	struct recent_copy *copies = copy_recent(cache, &count);
	/* A failed syncfs does not say which file: then each is asked. */
	bool synced = count >= SYNCFS_COUNT && syncfs(cache->directory) == 0;
	for (size_t i = 0; copies && i < count; i++)
		settle_recent(cache, &copies[i], synced);
	free(copies);
	pthread_mutex_unlock(&cache->maintenance);
}

bool durable_due(struct cache *cache)
{
	pthread_mutex_lock(&cache->table_lock);
	size_t count = HASH_COUNT(cache->recent);
	bool due = count >= SYNC_COUNT || cache->recent_bytes >= SYNC_BYTES ||
	           (count && clock_monotonic_ms() - cache->recent_since_ms >= SYNC_AGE_MS);
	pthread_mutex_unlock(&cache->table_lock);
	return due;
}

/* -- the keeper -- */

void keeper_wake(struct cache *cache)
{
	pthread_mutex_lock(&cache->keeper_lock);
	cache->keeper_wanted = true;
	pthread_cond_signal(&cache->keeper_wake);
	pthread_mutex_unlock(&cache->keeper_lock);
}

static void keeper_wait(struct cache *cache)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += SYNC_AGE_MS / 1000;
	pthread_mutex_lock(&cache->keeper_lock);
	int waited = 0;
	while (!cache->keeper_wanted && !cache->closing && waited != ETIMEDOUT)
		waited = pthread_cond_timedwait(&cache->keeper_wake, &cache->keeper_lock, &until);
	cache->keeper_wanted = false;
	pthread_mutex_unlock(&cache->keeper_lock);
}

static void *keep(void *context)
{
	struct cache *cache = context;
	evict_count(cache);
	while (!cache->closing) {
		if (durable_due(cache))
			durable_sync(cache);
		evict_in_background(cache);
		keeper_wait(cache);
	}
	return NULL;
}

int keeper_start(struct cache *cache)
{
	int failed = pthread_create(&cache->keeper, NULL, keep, cache);
	return failed ? error_system(failed) : 0;
}

void keeper_stop(struct cache *cache)
{
	cache->closing = true;
	keeper_wake(cache);
	pthread_join(cache->keeper, NULL);
}
