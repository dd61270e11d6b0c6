/*
 * blob.c — hides the local file of one blob: a partial one that fills up, or the complete one, and
 * how the first becomes the second.
 *
 * The partial file's name is unique to the struct, so that dropping an old one can never remove
 * the file of a newer blob of the same content.
 */
#include "cache/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int blob_new(struct cache *cache, const struct content *content, struct blob **ret_blob)
{
	struct blob *blob = calloc(1, sizeof(*blob));
	if (!blob)
		return -ERR_NO_MEMORY;
	blob->cache = cache;
	blob->id = content->pointer.id;
	blob->size = content->size;
	blob->content = *content;
	blob->descriptor = blob->writer = -1;
	pthread_mutex_init(&blob->lock, NULL);
	pthread_cond_init(&blob->changed, NULL);
	*ret_blob = blob;
	return 0;
}

void blob_free(struct blob *blob)
{
	struct cache *cache = blob->cache;
	close_descriptor(&blob->descriptor);
	close_descriptor(&blob->writer);
	if (blob->created) {
		unlinkat(cache->partials, blob->partial_name, 0);
		pthread_mutex_lock(&cache->table_lock);
		cache->partial_bytes -= blob->disk_bytes;
		pthread_mutex_unlock(&cache->table_lock);
	}
	extents_release(&blob->present);
	cursors_free(blob->cursors);
	pthread_cond_destroy(&blob->changed);
	pthread_mutex_destroy(&blob->lock);
	free(blob);
}

void blob_refresh(struct blob *blob, const struct content *content)
{
	pthread_mutex_lock(&blob->lock);
	blob->content = *content;
	pthread_mutex_unlock(&blob->lock);
}

/* -- the partial file -- */

static int open_partial(struct blob *blob, int *ret_descriptor, int *ret_writer)
{
	struct cache *cache = blob->cache;
	CLEANUP(close_descriptor) int writer = -1;
	CLEANUP(close_descriptor) int descriptor = -1;
	writer = openat(cache->partials, blob->partial_name, O_RDWR | O_CLOEXEC);
	if (writer < 0)
		return error_system(errno);
	descriptor = openat(cache->partials, blob->partial_name, O_RDONLY | O_CLOEXEC);
	if (descriptor < 0)
		return error_system(errno);
	*ret_descriptor = descriptor;
	*ret_writer = writer;
	descriptor = writer = -1;
	return 0;
}

static int create_partial(struct blob *blob)
{
	char hex[ID_HEX + 1];
	id_to_hex(&blob->id, hex);
	snprintf(blob->partial_name, sizeof(blob->partial_name), "%s.%llu", hex,
	         (unsigned long long)atomic_fetch_add(&blob->cache->partial_serial, 1));
	int partials = blob->cache->partials;
	CLEANUP(close_descriptor)
	int descriptor =
	        openat(partials, blob->partial_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (descriptor < 0)
		return error_system(errno);
	/* The whole size from the start: what is not there yet is a hole. */
	if (ftruncate(descriptor, (off_t)blob->size) < 0) {
		int error = error_system(errno);
		unlinkat(partials, blob->partial_name, 0);
		return error;
	}
	return 0;
}

struct opened {
	int descriptor;
	int writer;   /* -1: the file is complete */
	bool created; /* a new partial file: it holds nothing yet */
};

/* Unlocked, by the one thread that set blob->opening. The blob is in the table, so whoever
 * completed this content before has given the file its name: it is looked for here and not
 * fetched twice. */
static int open_file(struct blob *blob, bool has_partial, struct opened *ret_opened)
{
	*ret_opened = (struct opened){-1, -1, false};
	int error = open_complete(blob->cache, &blob->id, blob->size, &ret_opened->descriptor);
	if (error != -ERR_NOT_FOUND)
		return error;
	if (has_partial) {
		error = open_partial(blob, &ret_opened->descriptor, &ret_opened->writer);
		if (error != -ERR_NOT_FOUND)
			return error;
	}
	error = create_partial(blob);
	if (error == -ERR_NO_SPACE && evict_now(blob->cache, EVICT_BYTES_MIN))
		error = create_partial(blob);
	if (error)
		return error;
	ret_opened->created = true;
	return open_partial(blob, &ret_opened->descriptor, &ret_opened->writer);
}

int blob_open(struct blob *blob, struct message *message)
{
	if (blob->complete)
		return 0;
	pthread_mutex_lock(&blob->lock);
	while (blob->opening)
		pthread_cond_wait(&blob->changed, &blob->lock);
	if (blob->descriptor >= 0) {
		pthread_mutex_unlock(&blob->lock);
		return 0;
	}
	blob->opening = true;
	bool has_partial = blob->created;
	pthread_mutex_unlock(&blob->lock);

	struct opened opened;
	int error = open_file(blob, has_partial, &opened);

	pthread_mutex_lock(&blob->lock);
	blob->opening = false;
	blob->descriptor = opened.descriptor;
	blob->writer = opened.writer;
	if (opened.created) {
		/* What an older file held is gone with it. */
		blob->created = true;
		extents_release(&blob->present);
	}
	blob->complete = !error && opened.writer < 0;
	pthread_cond_broadcast(&blob->changed);
	pthread_mutex_unlock(&blob->lock);
	if (error)
		return fail(message, error, "cannot open a local copy in %s: %s", blob->cache->path,
		            error_text(error));
	return 0;
}

/* True when the file is in recent/ now. When it is not needed there, or cannot be renamed, the
 * struct's descriptor still serves its readers; the name in partial/ is of no more use. */
static bool place_complete(struct blob *blob)
{
	struct cache *cache = blob->cache;
	char hex[ID_HEX + 1];
	id_to_hex(&blob->id, hex);
	pthread_mutex_lock(&cache->table_lock);
	bool needed = !blob->superseded;
	pthread_mutex_unlock(&cache->table_lock);
	struct stat status;
	if (needed && fstat(blob->descriptor, &status) == 0)
		verify_trust(cache, &blob->id, status.st_ino);
	if (needed && renameat2(cache->partials, blob->partial_name, cache->recents, hex,
	                        RENAME_NOREPLACE) == 0)
		return true;
	bool there = needed && errno == EEXIST;
	unlinkat(cache->partials, blob->partial_name, 0);
	return there;
}

void blob_finish(struct blob *blob)
{
	struct cache *cache = blob->cache;
	bool placed = place_complete(blob);

	pthread_mutex_lock(&blob->lock);
	uint64_t bytes = blob->disk_bytes;
	blob->disk_bytes = 0;
	blob->created = false;
	close_descriptor(&blob->writer);
	pthread_mutex_unlock(&blob->lock);

	pthread_mutex_lock(&cache->table_lock);
	cache->partial_bytes -= bytes;
	pthread_mutex_unlock(&cache->table_lock);
	if (placed)
		(void)recent_add(cache, &blob->id, bytes);

	pthread_mutex_lock(&blob->lock);
	blob->complete = true;
	extents_release(&blob->present);
	pthread_cond_broadcast(&blob->changed);
	pthread_mutex_unlock(&blob->lock);
	if (durable_due(cache))
		keeper_wake(cache);
}

int blob_descriptor(const struct blob *blob)
{
	return blob->descriptor;
}

bool blob_complete(const struct blob *blob)
{
	return blob->complete;
}

bool blob_fetched(const struct blob *blob)
{
	return blob->fetched;
}
