/*
 * many.c — hides how many small files become blobs at once: their chunks are visited in the order
 * of packs, so that neighbours are one request, and each is written and named when it was verified.
 */
#include "cache/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

struct filling {
	struct cache *cache;
	const struct content *const *contents;
	struct message *message;
};

static int write_blob(struct cache *cache, const struct content *content, const uint8_t *bytes,
                      const char *name)
{
	CLEANUP(close_descriptor)
	int descriptor =
	        openat(cache->partials, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	char final_name[ID_HEX + 1];
	struct stat status;
	if (descriptor < 0)
		return error_system(errno);
	int error = write_full(descriptor, bytes, content->size, 0);
	if (error)
		return error;
	if (fstat(descriptor, &status) < 0)
		return error_system(errno);
	id_to_hex(&content->pointer.id, final_name);
	if (renameat2(cache->partials, name, cache->recents, final_name, RENAME_NOREPLACE) < 0)
		return error_system(errno);
	supersede(cache, &content->pointer.id);
	/* Without memory for the entry the file waits in recent/ for the next opening. */
	verify_trust(cache, &content->pointer.id, status.st_ino);
	(void)recent_add(cache, &content->pointer.id, disk_bytes_of(&status));
	/* Last: whoever sees the count finds the file. */
	pthread_mutex_lock(&cache->table_lock);
	cache->counters.fetched_bytes += content->size;
	pthread_mutex_unlock(&cache->table_lock);
	return 0;
}

static int fill(void *context, size_t i, const uint8_t *bytes, bool last)
{
	struct filling *filling = context;
	struct cache *cache = filling->cache;
	const struct content *content = filling->contents[i];
	char name[PARTIAL_NAME_MAX], hex[ID_HEX + 1];
	id_to_hex(&content->pointer.id, hex);
	snprintf(name, sizeof(name), "%s.%llu", hex,
	         (unsigned long long)atomic_fetch_add(&cache->partial_serial, 1));
	evict_before(cache, content->size);
	int error = write_blob(cache, content, bytes, name);
	if (error == -ERR_NO_SPACE) {
		unlinkat(cache->partials, name, 0);
		if (evict_now(cache, content->size))
			error = write_blob(cache, content, bytes, name);
	}
	if (error)
		unlinkat(cache->partials, name, 0);
	if (error && error != -ERR_EXISTS) /* somebody else was quicker */
		return fail(filling->message, error, "cannot keep %llu bytes in %s: %s",
		            (unsigned long long)content->size, cache->path, error_text(error));
	return 0;
}

/* One whole chunk, of a length that can be believed. */
static bool is_one_chunk(const struct content *content)
{
	return content->kind == CONTENT_CHUNK && content->size == content->pointer.place.raw &&
	       content->size <= RECORD_RAW_MAX;
}

int cache_fetch_many(struct cache *cache, const struct content *contents, size_t count,
                     struct message *message)
{
	CLEANUP(free_pointer) struct pointer *pointers = calloc(count + 1, sizeof(*pointers));
	CLEANUP(free_pointer) const struct content **wanted = calloc(count + 1, sizeof(*wanted));
	CLEANUP(buffer_release) struct buffer scratch = {0};
	struct filling filling = {.cache = cache, .message = message};
	size_t missing = 0;
	if (!pointers || !wanted)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	for (size_t i = 0; i < count; i++) {
		if (!is_one_chunk(&contents[i]) || cache_has(cache, &contents[i]))
			continue;
		wanted[missing] = &contents[i];
		pointers[missing++] = contents[i].pointer;
	}
	filling.contents = wanted;
	if (missing < 2)
		return 0;
	int error =
	        odb_visit_chunks(cache->odb, pointers, missing, &scratch, fill, &filling, message);
	evict_before(cache, 0);
	if (durable_due(cache))
		keeper_wake(cache);
	return error;
}

void cache_fetch_ahead(struct cache *cache, const struct content *contents, size_t count,
                       const atomic_bool *stop)
{
	CLEANUP(buffer_release) struct buffer scratch = {0};
	struct filling filling = {.cache = cache};
	int error = 0;
	for (size_t i = 0; i < count && !*stop && !cache->closing; i++) {
		const struct content *content = &contents[i];
		if (!is_one_chunk(content) || cache_has(cache, content))
			continue;
		if (ahead_pauses(cache) || !evict_for_ahead(cache, content->size))
			break;
		filling.contents = &content;
		error = odb_visit_chunks(cache->odb, &content->pointer, 1, &scratch, fill, &filling,
		                         NULL);
		if (error == -ERR_STORE_AWAY || error == -ERR_NO_SPACE)
			ahead_pause(cache);
	}
	if (durable_due(cache))
		keeper_wake(cache);
}
