/*
 * cache_world — what the tests of cache/ share: a store whose reads can be counted, delayed,
 * refused and damaged, and a cache over it in a directory of its own.
 */
#ifndef TESTS_CACHE_WORLD_H
#define TESTS_CACHE_WORLD_H

#include "cache/cache.h"
#include "cache/extents.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>
#undef fail /* cmocka's macro hides the function of store/error.h */

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* -- a store whose reads can be counted, delayed, refused and damaged -- */

struct probe {
	struct object_store base;
	struct object_store *inner;
	_Atomic unsigned gets;
	_Atomic bool away;
	_Atomic bool damage;
	_Atomic unsigned delay_ms;
	_Atomic uint64_t bytes_under_way, bytes_under_way_most;
};

static inline int probe_get(struct object_store *store, const char *key, uint64_t offset,
                            uint64_t length, struct buffer *ret_bytes, struct etag *ret_etag,
                            struct message *message)
{
	struct probe *probe = (struct probe *)store;
	probe->gets++;
	uint64_t now = atomic_fetch_add(&probe->bytes_under_way, length) + length;
	uint64_t most = probe->bytes_under_way_most;
	while (now > most &&
	       !atomic_compare_exchange_weak(&probe->bytes_under_way_most, &most, now))
		;
	if (probe->delay_ms)
		usleep(probe->delay_ms * 1000);
	atomic_fetch_sub(&probe->bytes_under_way, length);
	if (probe->away)
		return fail(message, -ERR_STORE_AWAY, "away");
	size_t before = ret_bytes->length;
	int error = object_get(probe->inner, key, offset, length, ret_bytes, ret_etag, message);
	if (!error && probe->damage)
		for (size_t i = before; i < ret_bytes->length; i += 100)
			ret_bytes->data[i] ^= 0x40;
	return error;
}

static inline int probe_put(struct object_store *store, const char *key, const void *bytes,
                            size_t length, struct message *message)
{
	return object_put(((struct probe *)store)->inner, key, bytes, length, message);
}

static inline int probe_put_if_absent(struct object_store *store, const char *key,
                                      const void *bytes, size_t length, struct etag *ret_etag,
                                      struct message *message)
{
	return object_put_if_absent(((struct probe *)store)->inner, key, bytes, length, ret_etag,
	                            message);
}

static inline int probe_put_if_match(struct object_store *store, const char *key, const void *bytes,
                                     size_t length, const struct etag *expected,
                                     struct etag *ret_etag, struct message *message)
{
	return object_put_if_match(((struct probe *)store)->inner, key, bytes, length, expected,
	                           ret_etag, message);
}

static inline int probe_list(struct object_store *store, const char *prefix,
                             object_list_fn *callback, void *context, struct message *message)
{
	return object_list(((struct probe *)store)->inner, prefix, callback, context, message);
}

static inline int probe_remove(struct object_store *store, const char *key, struct message *message)
{
	return object_remove(((struct probe *)store)->inner, key, message);
}

static inline void probe_free(struct object_store *store)
{
}

static const struct object_ops probe_ops = {
        .get = probe_get,
        .put = probe_put,
        .put_if_absent = probe_put_if_absent,
        .put_if_match = probe_put_if_match,
        .list = probe_list,
        .remove = probe_remove,
        .free = probe_free,
};

/* -- a world of a store, an odb and a directory -- */

struct world {
	char directory[64];
	char cache_path[96];
	struct probe probe;
	struct odb *odb;
	struct cache *cache;
	struct cache_options options;
	struct message message;
};

static inline int remove_one(const char *path, const struct stat *status, int type,
                             struct FTW *walk)
{
	return remove(path);
}

static inline void open_cache(struct world *world)
{
	assert_int_equal(cache_open(world->cache_path, world->odb, &world->options, &world->cache,
	                            &world->message),
	                 0);
}

static inline int set_up_below(void **state, const char *parent)
{
	struct world *world = calloc(1, sizeof(*world));
	snprintf(world->directory, sizeof(world->directory), "%s/test_cache.XXXXXX", parent);
	assert_non_null(mkdtemp(world->directory));
	snprintf(world->cache_path, sizeof(world->cache_path), "%s/cache", world->directory);
	world->probe.base.ops = &probe_ops;
	assert_int_equal(object_memory_open(&world->probe.inner), 0);
	assert_int_equal(odb_new(&world->probe.base, &(struct odb_options){0}, &world->odb), 0);
	world->options.whole_file_bytes = MIB;
	open_cache(world);
	*state = world;
	return 0;
}

static inline int set_up(void **state)
{
	return set_up_below(state, "/tmp");
}

static inline int tear_down(void **state)
{
	struct world *world = *state;
	cache_close(world->cache);
	odb_free(world->odb);
	object_store_free(world->probe.inner);
	nftw(world->directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(world);
	return 0;
}

static inline void reopen(struct world *world)
{
	cache_close(world->cache);
	open_cache(world);
}

/* What is on disk is counted in the background. */
static inline void wait_for_count(struct world *world, uint64_t blobs)
{
	struct cache_stats stats;
	cache_stats(world->cache, &stats);
	for (int i = 0; i < 500 && stats.blobs != blobs; i++) {
		usleep(10000);
		cache_stats(world->cache, &stats);
	}
	assert_int_equal(stats.blobs, blobs);
}

/* Random bytes that depend on the seed alone. */
static inline uint8_t *make_bytes(size_t length, uint64_t seed)
{
	uint8_t *bytes = malloc(length + 8);
	assert_non_null(bytes);
	for (size_t i = 0; i < length; i += 8) {
		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		store_u64(bytes + i, seed);
	}
	return bytes;
}

static inline void write_local(const char *path, const void *bytes, size_t length)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, bytes, length, 0), 0);
	close(fd);
}

/* Store a file's content and flush it, so that reads go to the object store. */
static inline struct content store_file(struct world *world, const char *path)
{
	struct packer *packer;
	struct content content;
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(packer_new(world->odb, &packer), 0);
	assert_int_equal(content_store(packer, fd, (uint64_t)status.st_size, NULL, &content,
	                               &world->message),
	                 0);
	assert_int_equal(packer_flush(packer, &world->message), 0);
	packer_free(packer);
	close(fd);
	world->probe.gets = 0;
	return content;
}

static inline struct content store_bytes(struct world *world, const void *bytes, size_t length)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/input", world->directory);
	write_local(path, bytes, length);
	struct content content = store_file(world, path);
	unlink(path);
	return content;
}

static inline void assert_blob_bytes(const struct blob *blob, const uint8_t *bytes, size_t length,
                                     off_t offset)
{
	uint8_t *found = malloc(length + 1);
	assert_int_equal(read_full(blob_descriptor(blob), found, length, offset), length);
	assert_memory_equal(found, bytes, length);
	free(found);
}

static inline void path_of(const struct world *world, const char *where,
                           const struct content *content, char *ret_path, size_t size)
{
	char hex[ID_HEX + 1];
	id_to_hex(&content->pointer.id, hex);
	if (strcmp(where, "blobs") == 0)
		snprintf(ret_path, size, "%s/blobs/%.2s/%s", world->cache_path, hex, hex);
	else
		snprintf(ret_path, size, "%s/%s/%s", world->cache_path, where, hex);
}

static inline bool is_in(const struct world *world, const char *where,
                         const struct content *content)
{
	char path[256];
	path_of(world, where, content, path, sizeof(path));
	return access(path, F_OK) == 0;
}

static inline struct cache_stats stats_of(struct world *world)
{
	struct cache_stats stats;
	cache_stats(world->cache, &stats);
	return stats;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
