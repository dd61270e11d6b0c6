/*
 * verify.c — hides how a local file is checked against its id: it is stored again, into an
 * object store that keeps nothing, and the ids are compared.
 */
#include "cache/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

/* -- a store that keeps nothing -- */

static int nothing_get(struct object_store *store, const char *key, uint64_t offset,
                       uint64_t length, struct buffer *ret_bytes, struct etag *ret_etag,
                       struct message *message)
{
	return -ERR_NOT_FOUND;
}

static int nothing_put(struct object_store *store, const char *key, const void *bytes,
                       size_t length, struct message *message)
{
	return 0;
}

static int nothing_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                                 size_t length, struct etag *ret_etag, struct message *message)
{
	return 0;
}

static int nothing_put_if_match(struct object_store *store, const char *key, const void *bytes,
                                size_t length, const struct etag *expected, struct etag *ret_etag,
                                struct message *message)
{
	return -ERR_NOT_FOUND;
}

static int nothing_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                        void *context, struct message *message)
{
	return 0;
}

static int nothing_remove(struct object_store *store, const char *key, struct message *message)
{
	return 0;
}

static void nothing_free(struct object_store *store)
{
}

static const struct object_ops nothing_ops = {
        .get = nothing_get,
        .put = nothing_put,
        .put_if_absent = nothing_put_if_absent,
        .put_if_match = nothing_put_if_match,
        .list = nothing_list,
        .remove = nothing_remove,
        .free = nothing_free,
};

/* -- the check -- */

struct verification {
	struct odb *odb; /* over the store that keeps nothing */
	cache_damage_fn *callback;
	void *context;
	const struct progress *progress;
	struct message *message;
	const char *directory; /* below the cache's path */
	uint64_t done, total;
	int result;
};

static void packer_release(struct packer **packer)
{
	packer_free(*packer);
}

static void odb_release(struct odb **odb)
{
	odb_free(*odb);
}

/* One packer for each file: it remembers every chunk it has seen. */
static int id_of_file(struct verification *verification, int descriptor, struct id *ret_id)
{
	struct stat status;
	if (fstat(descriptor, &status) < 0)
		return error_system(errno);
	CLEANUP(packer_release) struct packer *packer = NULL;
	struct content content;
	int error = packer_new(verification->odb, &packer);
	if (!error)
		error = content_store(packer, descriptor, (uint64_t)status.st_size, NULL, &content,
		                      verification->message);
	if (!error)
		*ret_id = content.pointer.id;
	return error;
}

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
	CLEANUP(close_descriptor) int descriptor = openat(directory, name, O_RDONLY | O_CLOEXEC);
	if (descriptor < 0)
		return; /* evicted, or synced and moved, meanwhile */
	struct id found = id_zero;
	int error = id_of_file(verification, descriptor, &found);
	/* A file that cannot be read is damaged too. */
	if (error == -ERR_NO_MEMORY) {
		verification->result = error;
		return;
	}
	if (!error && id_equal(&found, id))
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
	struct object_store nothing = {.ops = &nothing_ops};
	CLEANUP(odb_release) struct odb *odb = NULL;
	int error = odb_new(&nothing, &(struct odb_options){0}, &odb);
	if (error)
		return fail(message, error, "cannot check local copies: %s", error_text(error));
	struct cache_stats stats;
	cache_stats(cache, &stats);
	struct verification verification = {
	        .odb = odb,
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
