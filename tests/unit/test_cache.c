/* Tests of cache/: what is fetched when, by whom, what survives what, and what is let go. */
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
};

static int probe_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                     struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	struct probe *probe = (struct probe *)store;
	probe->gets++;
	if (probe->delay_ms)
		usleep(probe->delay_ms * 1000);
	if (probe->away)
		return fail(message, -ERR_STORE_AWAY, "away");
	size_t before = ret_bytes->length;
	int error = object_get(probe->inner, key, offset, length, ret_bytes, ret_etag, message);
	if (!error && probe->damage)
		for (size_t i = before; i < ret_bytes->length; i += 100)
			ret_bytes->data[i] ^= 0x40;
	return error;
}

static int probe_put(struct object_store *store, const char *key, const void *bytes, size_t length,
                     struct message *message)
{
	return object_put(((struct probe *)store)->inner, key, bytes, length, message);
}

static int probe_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                               size_t length, struct etag *ret_etag, struct message *message)
{
	return object_put_if_absent(((struct probe *)store)->inner, key, bytes, length, ret_etag,
	                            message);
}

static int probe_put_if_match(struct object_store *store, const char *key, const void *bytes,
                              size_t length, const struct etag *expected, struct etag *ret_etag,
                              struct message *message)
{
	return object_put_if_match(((struct probe *)store)->inner, key, bytes, length, expected,
	                           ret_etag, message);
}

static int probe_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                      void *context, struct message *message)
{
	return object_list(((struct probe *)store)->inner, prefix, callback, context, message);
}

static int probe_remove(struct object_store *store, const char *key, struct message *message)
{
	return object_remove(((struct probe *)store)->inner, key, message);
}

static void probe_free(struct object_store *store)
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

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk)
{
	return remove(path);
}

static void open_cache(struct world *world)
{
	assert_int_equal(cache_open(world->cache_path, world->odb, &world->options, &world->cache,
	                            &world->message),
	                 0);
}

static int set_up(void **state)
{
	struct world *world = calloc(1, sizeof(*world));
	strcpy(world->directory, "/tmp/test_cache.XXXXXX");
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

static int tear_down(void **state)
{
	struct world *world = *state;
	cache_close(world->cache);
	odb_free(world->odb);
	object_store_free(world->probe.inner);
	nftw(world->directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(world);
	return 0;
}

static void reopen(struct world *world)
{
	cache_close(world->cache);
	open_cache(world);
}

/* What is on disk is counted in the background. */
static void wait_for_count(struct world *world, uint64_t blobs)
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
static uint8_t *make_bytes(size_t length, uint64_t seed)
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

static void write_local(const char *path, const void *bytes, size_t length)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, bytes, length, 0), 0);
	close(fd);
}

/* Store a file's content and flush it, so that reads go to the object store. */
static struct content store_file(struct world *world, const char *path)
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

static struct content store_bytes(struct world *world, const void *bytes, size_t length)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/input", world->directory);
	write_local(path, bytes, length);
	struct content content = store_file(world, path);
	unlink(path);
	return content;
}

static void assert_blob_bytes(const struct blob *blob, const uint8_t *bytes, size_t length,
                              off_t offset)
{
	uint8_t *found = malloc(length + 1);
	assert_int_equal(read_full(blob_descriptor(blob), found, length, offset), length);
	assert_memory_equal(found, bytes, length);
	free(found);
}

static void path_of(const struct world *world, const char *where, const struct content *content,
                    char *ret_path, size_t size)
{
	char hex[ID_HEX + 1];
	id_to_hex(&content->pointer.id, hex);
	if (strcmp(where, "blobs") == 0)
		snprintf(ret_path, size, "%s/blobs/%.2s/%s", world->cache_path, hex, hex);
	else
		snprintf(ret_path, size, "%s/%s/%s", world->cache_path, where, hex);
}

static bool is_in(const struct world *world, const char *where, const struct content *content)
{
	char path[256];
	path_of(world, where, content, path, sizeof(path));
	return access(path, F_OK) == 0;
}

static struct cache_stats stats_of(struct world *world)
{
	struct cache_stats stats;
	cache_stats(world->cache, &stats);
	return stats;
}

/* -- the set of ranges, against a bitmap -- */

static void extents_match_a_bitmap(void **state)
{
	uint64_t seed = random_u64();
	print_message("seed %llu\n", (unsigned long long)seed);
	srand48((long)seed);
	for (int round = 0; round < 300; round++) {
		bool bitmap[200] = {false};
		struct extents extents = {0};
		for (int step = 0; step < 40; step++) {
			uint64_t start = (uint64_t)(lrand48() % 200);
			uint64_t end = start + (uint64_t)(lrand48() % 12);
			if (end > 200)
				end = 200;
			assert_int_equal(extents_reserve(&extents, 1), 0);
			extents_add(&extents, start, end);
			for (uint64_t i = start; i < end; i++)
				bitmap[i] = true;
			uint64_t from = (uint64_t)(lrand48() % 200), to = from;
			while (to < 200 && bitmap[to])
				to++;
			assert_int_equal(extents_skip(&extents, from), to);
			assert_int_equal(extents_cover(&extents, from, from + 3), to >= from + 3);
		}
		for (size_t i = 1; i < extents.count; i++)
			assert_true(extents.items[i - 1].end < extents.items[i].start);
		extents_release(&extents);
	}
}

/* -- getting -- */

static void small_file_is_fetched_once_and_whole(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(300 * KIB, 1);
	struct content content = store_bytes(world, bytes, 300 * KIB);
	struct blob *blob, *again;
	assert_false(cache_has(world->cache, &content));
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_true(blob_complete(blob));
	assert_true(cache_has(world->cache, &content));
	assert_blob_bytes(blob, bytes, 300 * KIB, 0);
	assert_int_equal(fcntl(blob_descriptor(blob), F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_true(is_in(world, "recent", &content));
	unsigned gets = world->probe.gets;
	assert_true(gets > 0);
	assert_int_equal(cache_get(world->cache, &content, &again, &world->message), 0);
	assert_ptr_equal(blob, again);
	blob_unref(blob);
	blob_unref(again);
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_blob_bytes(blob, bytes, 300 * KIB, 0);
	blob_unref(blob);
	assert_int_equal(world->probe.gets, gets);
	struct cache_stats stats = stats_of(world);
	assert_int_equal(stats.hits, 2);
	assert_int_equal(stats.misses, 1);
	assert_int_equal(stats.fetched_bytes, 300 * KIB);
	assert_int_equal(stats.blobs, 1);
	assert_true(stats.bytes >= 300 * KIB && stats.bytes < 400 * KIB);
	free(bytes);
}

static void empty_content_is_a_blob_too(void **state)
{
	struct world *world = *state;
	struct content content = store_bytes(world, "", 0);
	struct blob *blob;
	for (int i = 0; i < 2; i++) {
		struct stat status;
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		assert_true(blob_complete(blob));
		assert_int_equal(fstat(blob_descriptor(blob), &status), 0);
		assert_int_equal(status.st_size, 0);
		assert_int_equal(blob_ensure(blob, 0, 100, &world->message), 0);
		blob_unref(blob);
	}
	assert_int_equal(world->probe.gets, 0);
}

static void large_file_is_fetched_by_range(void **state)
{
	struct world *world = *state;
	size_t size = 20 * MIB;
	uint8_t *bytes = make_bytes(size, 2);
	struct content content = store_bytes(world, bytes, size);
	struct blob *blob;
	struct stat status;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_false(blob_complete(blob));
	assert_int_equal(stats_of(world).fetched_bytes, 0);
	assert_int_equal(fstat(blob_descriptor(blob), &status), 0);
	assert_int_equal(status.st_size, size);
	assert_int_equal(blob_ensure(blob, 5 * MIB + 17, 10, &world->message), 0);
	assert_blob_bytes(blob, bytes + 5 * MIB + 17, 10, (off_t)(5 * MIB + 17));
	uint64_t one = stats_of(world).fetched_bytes;
	assert_true(one >= 10 && one <= MIB);
	assert_int_equal(blob_ensure(blob, 5 * MIB + 17, 10, &world->message), 0);
	assert_int_equal(stats_of(world).fetched_bytes, one);
	assert_int_equal(fstat(blob_descriptor(blob), &status), 0);
	assert_true((uint64_t)status.st_blocks * 512 < 2 * MIB);
	/* Past the end is clamped. */
	assert_int_equal(blob_ensure(blob, size - 5, UINT64_MAX, &world->message), 0);
	assert_blob_bytes(blob, bytes + size - 5, 5, (off_t)(size - 5));
	assert_int_equal(blob_ensure(blob, size + 5, 7, &world->message), 0);
	assert_false(cache_has(world->cache, &content));
	assert_int_equal(blob_complete_now(blob, NULL, &world->message), 0);
	assert_true(blob_complete(blob));
	assert_true(is_in(world, "recent", &content));
	assert_blob_bytes(blob, bytes, size, 0);
	assert_int_equal(stats_of(world).fetched_bytes, size);
	blob_unref(blob);
	free(bytes);
}

static void ranges_that_add_up_complete_the_blob(void **state)
{
	struct world *world = *state;
	size_t size = 3 * MIB + 12345;
	uint8_t *bytes = make_bytes(size, 3);
	struct content content = store_bytes(world, bytes, size);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	for (size_t at = size; at > 0;) {
		size_t length = at < 50000 ? at : 50000;
		at -= length;
		assert_int_equal(blob_ensure(blob, at, length, &world->message), 0);
		assert_blob_bytes(blob, bytes + at, length, (off_t)at);
	}
	assert_true(blob_complete(blob));
	assert_int_equal(stats_of(world).fetched_bytes, size);
	blob_unref(blob);
	assert_true(cache_has(world->cache, &content));
	free(bytes);
}

static void part_of_an_idle_blob_is_kept(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(4 * MIB, 4);
	struct content content = store_bytes(world, bytes, 4 * MIB);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_int_equal(blob_ensure(blob, MIB, 1000, &world->message), 0);
	blob_unref(blob);
	uint64_t fetched = stats_of(world).fetched_bytes;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_int_equal(blob_ensure(blob, MIB, 1000, &world->message), 0);
	assert_int_equal(stats_of(world).fetched_bytes, fetched);
	assert_blob_bytes(blob, bytes + MIB, 1000, (off_t)MIB);
	blob_unref(blob);
	/* And is not trusted by another opening, which has no map of it. */
	reopen(world);
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_int_equal(blob_ensure(blob, MIB, 1000, &world->message), 0);
	assert_int_equal(stats_of(world).fetched_bytes, fetched);
	blob_unref(blob);
	free(bytes);
}

static void holes_stay_holes(void **state)
{
	struct world *world = *state;
	char path[128];
	size_t size = 200 * MIB + 5;
	uint8_t *bytes = make_bytes(MIB, 5);
	snprintf(path, sizeof(path), "%s/input", world->directory);
	write_local(path, "", 0);
	assert_int_equal(truncate(path, (off_t)size), 0);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	assert_int_equal(write_full(fd, bytes, MIB, (off_t)(100 * MIB)), 0);
	close(fd);
	struct content content = store_file(world, path);
	struct blob *blob;
	struct stat status;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_int_equal(blob_ensure(blob, 10 * MIB, 10, &world->message), 0);
	assert_int_equal(stats_of(world).fetched_bytes, 0);
	assert_int_equal(blob_complete_now(blob, NULL, &world->message), 0);
	assert_true(blob_complete(blob));
	assert_int_equal(fstat(blob_descriptor(blob), &status), 0);
	assert_int_equal(status.st_size, size);
	assert_true((uint64_t)status.st_blocks * 512 <= 2 * MIB);
	assert_blob_bytes(blob, bytes, MIB, (off_t)(100 * MIB));
	uint8_t zeroes[4096] = {0};
	assert_blob_bytes(blob, zeroes, sizeof(zeroes), (off_t)(50 * MIB));
	assert_blob_bytes(blob, zeroes, 5, (off_t)(200 * MIB));
	blob_unref(blob);
	free(bytes);
}

/* -- several readers -- */

struct reading {
	struct world *world;
	const struct content *content;
	const uint8_t *bytes;
	unsigned number;
	int error;
};

static void *get_small(void *context)
{
	struct reading *reading = context;
	struct blob *blob;
	struct message message;
	reading->error = cache_get(reading->world->cache, reading->content, &blob, &message);
	if (reading->error)
		return NULL;
	if (!blob_complete(blob))
		reading->error = -ERR_INVALID;
	blob_unref(blob);
	return NULL;
}

static void *read_ranges(void *context)
{
	struct reading *reading = context;
	struct blob *blob;
	struct message message;
	unsigned seed = reading->number;
	reading->error = cache_get(reading->world->cache, reading->content, &blob, &message);
	for (int i = 0; i < 60 && !reading->error; i++) {
		uint8_t found[3000];
		uint64_t offset = (uint64_t)rand_r(&seed) % (reading->content->size - 3000);
		reading->error = blob_ensure(blob, offset, 3000, &message);
		if (!reading->error &&
		    (read_full(blob_descriptor(blob), found, 3000, (off_t)offset) != 3000 ||
		     memcmp(found, reading->bytes + offset, 3000) != 0))
			reading->error = -ERR_CORRUPT;
	}
	if (!reading->error)
		reading->error = blob_complete_now(blob, NULL, &message);
	if (!reading->error && !blob_complete(blob))
		reading->error = -ERR_INVALID;
	blob_unref(blob);
	return NULL;
}

static void run_readers(struct world *world, const struct content *content, const uint8_t *bytes,
                        void *(*function)(void *), struct reading *readings, unsigned count)
{
	pthread_t threads[16];
	for (unsigned i = 0; i < count; i++) {
		readings[i] = (struct reading){world, content, bytes, i, 0};
		assert_int_equal(pthread_create(&threads[i], NULL, function, &readings[i]), 0);
	}
	for (unsigned i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

static void readers_of_one_missing_file_share_a_fetch(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(40 * KIB, 6);
	struct reading readings[8];
	for (unsigned round = 0; round < 20; round++) {
		store_u32(bytes, round);
		struct content content = store_bytes(world, bytes, 40 * KIB);
		world->probe.delay_ms = round % 2 ? 5 : 0;
		run_readers(world, &content, bytes, get_small, readings, 8);
		for (unsigned i = 0; i < 8; i++)
			assert_int_equal(readings[i].error, 0);
		assert_int_equal(world->probe.gets, 1);
	}
	assert_int_equal(stats_of(world).fetched_bytes, 20 * 40 * KIB);
	free(bytes);
}

static void readers_of_many_ranges_fetch_each_byte_once(void **state)
{
	struct world *world = *state;
	size_t size = 12 * MIB + 777;
	uint8_t *bytes = make_bytes(size, 7);
	struct content content = store_bytes(world, bytes, size);
	struct reading readings[8];
	run_readers(world, &content, bytes, read_ranges, readings, 8);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(readings[i].error, 0);
	assert_int_equal(stats_of(world).fetched_bytes, size);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_blob_bytes(blob, bytes, size, 0);
	blob_unref(blob);
	free(bytes);
}

static void waiting_readers_share_one_timeout(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(40 * KIB, 8);
	struct content content = store_bytes(world, bytes, 40 * KIB);
	struct reading readings[8];
	world->probe.away = true;
	world->probe.delay_ms = 200;
	int64_t start = clock_monotonic_ms();
	run_readers(world, &content, bytes, get_small, readings, 8);
	int64_t took = clock_monotonic_ms() - start;
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(readings[i].error, -ERR_STORE_AWAY);
	/* One fetch may try twice; eight readers one after the other would take 1.6 s and more. */
	assert_true(took < 1200);
	free(bytes);
}

/* -- failures -- */

static void store_away_leaves_cached_data_readable(void **state)
{
	struct world *world = *state;
	uint8_t *here = make_bytes(50 * KIB, 9), *there = make_bytes(5 * MIB, 10);
	struct content cached = store_bytes(world, here, 50 * KIB);
	struct content large = store_bytes(world, there, 5 * MIB);
	struct blob *blob, *partial;
	assert_int_equal(cache_get(world->cache, &cached, &blob, &world->message), 0);
	blob_unref(blob);
	assert_int_equal(cache_get(world->cache, &large, &partial, &world->message), 0);
	assert_int_equal(blob_ensure(partial, 0, 1, &world->message), 0);
	world->probe.away = true;
	assert_int_equal(cache_get(world->cache, &cached, &blob, &world->message), 0);
	assert_blob_bytes(blob, here, 50 * KIB, 0);
	blob_unref(blob);
	assert_int_equal(blob_ensure(partial, 0, 1, &world->message), 0);
	assert_int_equal(blob_ensure(partial, 2 * MIB, 1, &world->message), -ERR_STORE_AWAY);
	world->probe.away = false;
	assert_int_equal(blob_ensure(partial, 2 * MIB, 1, &world->message), 0);
	assert_int_equal(blob_complete_now(partial, NULL, &world->message), 0);
	assert_blob_bytes(partial, there, 5 * MIB, 0);
	blob_unref(partial);
	free(here);
	free(there);
}

static void damaged_bytes_are_never_kept(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(50 * KIB, 11);
	struct content content = store_bytes(world, bytes, 50 * KIB);
	struct blob *blob;
	world->probe.damage = true;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), -ERR_CORRUPT);
	assert_false(cache_has(world->cache, &content));
	assert_int_equal(stats_of(world).fetched_bytes, 0);
	world->probe.damage = false;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_blob_bytes(blob, bytes, 50 * KIB, 0);
	blob_unref(blob);
	free(bytes);
}

static void content_that_lies_about_its_size_is_refused(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(50 * KIB, 12);
	struct content content = store_bytes(world, bytes, 50 * KIB), lie = content;
	struct blob *blob, *lied;
	lie.size = 51 * KIB;
	assert_int_equal(cache_get(world->cache, &lie, &blob, &world->message), -ERR_CORRUPT);
	lie.size = FILE_BYTES_MAX + 1;
	assert_int_equal(cache_get(world->cache, &lie, &blob, &world->message), -ERR_CORRUPT);
	lie = content;
	lie.pointer.place.raw = 100;
	assert_true(cache_get(world->cache, &lie, &blob, &world->message) < 0);
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	lie.size = 10;
	assert_int_equal(cache_get(world->cache, &lie, &lied, &world->message), -ERR_CORRUPT);
	blob_unref(blob);
	free(bytes);
}

static void short_local_file_is_fetched_again(void **state)
{
	struct world *world = *state;
	char path[256];
	uint8_t *bytes = make_bytes(50 * KIB, 13);
	struct content content = store_bytes(world, bytes, 50 * KIB);
	struct blob *blob;
	for (int i = 0; i < 2; i++) {
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		assert_blob_bytes(blob, bytes, 50 * KIB, 0);
		blob_unref(blob);
		if (i == 0)
			reopen(world);
		path_of(world, i == 0 ? "blobs" : "recent", &content, path, sizeof(path));
		assert_int_equal(truncate(path, 100), 0);
	}
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_blob_bytes(blob, bytes, 50 * KIB, 0);
	blob_unref(blob);
	free(bytes);
}

/* An assertion's longjmp must not leave a child process. */
#define REQUIRE(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
			_exit(1); \
		} \
	} while (0)

static bool blob_has(const struct blob *blob, const uint8_t *bytes, size_t length)
{
	uint8_t *found = malloc(length);
	bool same = read_full(blob_descriptor(blob), found, length, 0) == (ssize_t)length &&
	            memcmp(found, bytes, length) == 0;
	free(found);
	return same;
}

/* In a child with a 1 MiB tmpfs of its own; exit 77: not permitted here. */
static void fill_a_disk(struct world *world, const struct content contents[4],
                        const struct content *too_large, const uint8_t *bytes)
{
	char place[128];
	struct blob *blob, *large;
	struct message *message = &world->message;
	snprintf(place, sizeof(place), "%s/full", world->directory);
	if (mkdir(place, 0700) < 0 || unshare(CLONE_NEWNS) < 0 ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("tmpfs", place, "tmpfs", 0, "size=1m") < 0)
		_exit(77);
	struct cache *cache;
	/* A bound beyond the disk: nothing is evicted until the disk itself is full. */
	struct cache_options options = {.bytes_max = 1 << 30, .whole_file_bytes = MIB};
	REQUIRE(cache_open(place, world->odb, &options, &cache, message) == 0);
	for (unsigned i = 0; i < 4; i++) {
		REQUIRE(cache_get(cache, &contents[i], &blob, message) == 0);
		REQUIRE(blob_has(blob, bytes + i * 10, 400 * KIB));
		blob_unref(blob);
	}
	struct cache_stats stats;
	cache_stats(cache, &stats);
	REQUIRE(stats.evicted > 0);
	REQUIRE(cache_get(cache, too_large, &large, message) == 0);
	REQUIRE(blob_ensure(large, 0, 1000, message) == 0);
	REQUIRE(blob_complete_now(large, NULL, message) == -ERR_NO_SPACE);
	REQUIRE(!blob_complete(large));
	REQUIRE(blob_has(large, bytes, 1000));
	blob_unref(large);
	/* What did not fit is gone, and the disk usable again. */
	REQUIRE(cache_get(cache, &contents[0], &blob, message) == 0);
	REQUIRE(blob_has(blob, bytes, 400 * KIB));
	blob_unref(blob);
	cache_close(cache);
	_exit(0);
}

static void full_disk_is_an_error_and_evicts_first(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(4 * MIB, 14);
	struct content contents[4];
	for (unsigned i = 0; i < 4; i++)
		contents[i] = store_bytes(world, bytes + i * 10, 400 * KIB);
	struct content too_large = store_bytes(world, bytes, 4 * MIB);
	cache_close(world->cache);
	pid_t child = fork();
	if (child == 0)
		fill_a_disk(world, contents, &too_large, bytes);
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	open_cache(world);
	free(bytes);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void unusable_directory_is_an_error(void **state)
{
	struct world *world = *state;
	struct cache *cache;
	char path[128];
	snprintf(path, sizeof(path), "%s/file", world->directory);
	write_local(path, "x", 1);
	world->message.text[0] = 0;
	assert_true(cache_open(path, world->odb, NULL, &cache, &world->message) < 0);
	assert_non_null(strstr(world->message.text, path));
}

/* -- what survives what -- */

static void kill_in_the_middle(struct world *world, const struct content *small,
                               const struct content *large)
{
	pid_t child = fork();
	if (child == 0) {
		struct blob *blob;
		open_cache(world);
		if (cache_get(world->cache, small, &blob, NULL) ||
		    cache_get(world->cache, large, &blob, NULL) || blob_ensure(blob, 0, 10, NULL))
			_exit(1);
		_exit(0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void forget_the_boot(struct world *world)
{
	char path[128], other[ID_HEX + 1];
	memset(other, 'a', ID_HEX);
	snprintf(path, sizeof(path), "%s/boot", world->cache_path);
	write_local(path, other, ID_HEX);
}

static unsigned names_in(const char *directory, const char *below)
{
	char command[256], line[32] = "";
	snprintf(command, sizeof(command), "ls %s/%s | wc -l", directory, below);
	FILE *stream = popen(command, "r");
	assert_non_null(fgets(line, sizeof(line), stream));
	pclose(stream);
	return (unsigned)atoi(line);
}

static void kill_keeps_whole_files_and_power_cut_only_synced_ones(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(3 * MIB, 15);
	struct content synced = store_bytes(world, bytes, 60 * KIB);
	struct content small = store_bytes(world, bytes, 50 * KIB);
	struct content large = store_bytes(world, bytes, 3 * MIB);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &synced, &blob, &world->message), 0);
	blob_unref(blob);
	cache_close(world->cache);
	assert_true(is_in(world, "blobs", &synced));
	assert_false(is_in(world, "recent", &synced));
	kill_in_the_middle(world, &small, &large);
	assert_true(is_in(world, "recent", &small));
	assert_int_equal(names_in(world->cache_path, "partial"), 1);
	open_cache(world);
	assert_int_equal(names_in(world->cache_path, "partial"), 0);
	assert_true(cache_has(world->cache, &small));
	assert_false(cache_has(world->cache, &large));
	assert_int_equal(cache_get(world->cache, &small, &blob, &world->message), 0);
	assert_blob_bytes(blob, bytes, 50 * KIB, 0);
	blob_unref(blob);
	cache_close(world->cache);
	/* Now it is synced; another one is not. */
	struct content other = store_bytes(world, bytes + 1, 50 * KIB);
	kill_in_the_middle(world, &other, &large);
	forget_the_boot(world);
	open_cache(world);
	assert_true(cache_has(world->cache, &synced));
	assert_true(cache_has(world->cache, &small));
	assert_false(cache_has(world->cache, &other));
	assert_int_equal(names_in(world->cache_path, "recent"), 0);
	free(bytes);
}

/* -- adopting -- */

static void adopted_file_keeps_its_inode(void **state)
{
	struct world *world = *state;
	char path[128];
	struct stat before, after;
	uint8_t *bytes = make_bytes(70 * KIB, 16);
	struct content content = store_bytes(world, bytes, 70 * KIB);
	snprintf(path, sizeof(path), "%s/staged", world->directory);
	write_local(path, bytes, 70 * KIB);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(fstat(fd, &before), 0);
	assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), 0);
	assert_int_equal(access(path, F_OK), -1);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_true(blob_complete(blob));
	assert_int_equal(fstat(blob_descriptor(blob), &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	assert_int_equal(world->probe.gets, 0);
	assert_blob_bytes(blob, bytes, 70 * KIB, 0);
	blob_unref(blob);
	close(fd);
	/* A second one is only removed: in recent/, and once synced. */
	for (int i = 0; i < 2; i++) {
		write_local(path, bytes, 70 * KIB);
		assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), 0);
		assert_int_equal(access(path, F_OK), -1);
		wait_for_count(world, 1);
		reopen(world);
	}
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_int_equal(fstat(blob_descriptor(blob), &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	blob_unref(blob);
	write_local(path, bytes, 10);
	assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), -ERR_INVALID);
	assert_int_equal(access(path, F_OK), 0);
	unlink(path);
	assert_int_equal(cache_adopt(world->cache, &content, path, &world->message),
	                 -ERR_NOT_FOUND);
	free(bytes);
}

static void adopting_what_is_being_read_in_parts(void **state)
{
	struct world *world = *state;
	char path[128];
	uint8_t *bytes = make_bytes(3 * MIB, 17);
	struct content content = store_bytes(world, bytes, 3 * MIB);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_int_equal(blob_ensure(blob, 0, 10, &world->message), 0);
	snprintf(path, sizeof(path), "%s/staged", world->directory);
	write_local(path, bytes, 3 * MIB);
	assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), 0);
	assert_int_equal(blob_complete_now(blob, NULL, &world->message), 0);
	assert_blob_bytes(blob, bytes, 3 * MIB, 0);
	blob_unref(blob);
	assert_int_equal(stats_of(world).blobs, 1);
	assert_int_equal(names_in(world->cache_path, "partial"), 0);
	/* Idle parts give way to the whole. */
	struct content second = store_bytes(world, bytes + 1, 2 * MIB);
	assert_int_equal(cache_get(world->cache, &second, &blob, &world->message), 0);
	assert_int_equal(blob_ensure(blob, 0, 10, &world->message), 0);
	blob_unref(blob);
	write_local(path, bytes + 1, 2 * MIB);
	assert_int_equal(cache_adopt(world->cache, &second, path, &world->message), 0);
	assert_int_equal(cache_get(world->cache, &second, &blob, &world->message), 0);
	assert_true(blob_complete(blob));
	assert_blob_bytes(blob, bytes + 1, 2 * MIB, 0);
	blob_unref(blob);
	assert_int_equal(names_in(world->cache_path, "partial"), 0);
	free(bytes);
}

/* -- letting go -- */

static void age(const struct world *world, const struct content *content, unsigned minutes)
{
	char path[256];
	path_of(world, "blobs", content, path, sizeof(path));
	if (access(path, F_OK) != 0)
		path_of(world, "recent", content, path, sizeof(path));
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = time(NULL) - minutes * 60}};
	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void least_recently_used_go_first(void **state)
{
	struct world *world = *state;
	enum { FILES = 16 };
	uint8_t *bytes = make_bytes(200 * KIB, 18);
	struct content contents[2 * FILES];
	struct blob *blob, *held;
	cache_close(world->cache);
	world->options.bytes_max = 2 * MIB; /* sixteen files of 100 KiB fit, twenty-one do not */
	open_cache(world);
	for (unsigned i = 0; i < 2 * FILES; i++)
		contents[i] = store_bytes(world, bytes + i * 8, 100 * KIB);
	for (unsigned i = 0; i < FILES; i++) {
		assert_int_equal(cache_get(world->cache, &contents[i], &blob, &world->message), 0);
		blob_unref(blob);
		age(world, &contents[i], 100 + i); /* the last is the oldest */
	}
	reopen(world); /* into blobs/ */
	wait_for_count(world, FILES);
	assert_int_equal(cache_get(world->cache, &contents[FILES - 1], &held, &world->message), 0);
	age(world, &contents[FILES - 1], 1000); /* the oldest of all, but in use */
	/* Used again: recent from now on, whatever it was. */
	assert_int_equal(cache_get(world->cache, &contents[FILES - 2], &blob, &world->message), 0);
	blob_unref(blob);
	for (unsigned i = FILES; i < FILES + 6; i++) {
		assert_int_equal(cache_get(world->cache, &contents[i], &blob, &world->message), 0);
		blob_unref(blob);
		assert_true(stats_of(world).bytes <= 2 * MIB);
	}
	assert_true(stats_of(world).evicted >= 2);
	assert_true(cache_has(world->cache, &contents[FILES - 1]));
	assert_true(is_in(world, "blobs", &contents[FILES - 1]));
	assert_true(cache_has(world->cache, &contents[FILES - 2]));
	assert_false(cache_has(world->cache, &contents[FILES - 3]));
	assert_false(cache_has(world->cache, &contents[FILES - 4]));
	assert_true(cache_has(world->cache, &contents[0]));
	assert_true(cache_has(world->cache, &contents[FILES + 5]));
	assert_blob_bytes(held, bytes + (FILES - 1) * 8, 100 * KIB, 0);
	blob_unref(held);
	/* What was evicted is fetched again. */
	assert_int_equal(cache_get(world->cache, &contents[FILES - 3], &blob, &world->message), 0);
	assert_blob_bytes(blob, bytes + (FILES - 3) * 8, 100 * KIB, 0);
	blob_unref(blob);
	free(bytes);
}

static void idle_parts_are_let_go_too(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(8 * MIB, 19);
	cache_close(world->cache);
	world->options.bytes_max = 2 * MIB;
	open_cache(world);
	struct blob *blob;
	for (unsigned i = 0; i < 6; i++) {
		struct content content = store_bytes(world, bytes + i * 8, 6 * MIB);
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		assert_int_equal(blob_ensure(blob, 0, 600 * KIB, &world->message), 0);
		assert_blob_bytes(blob, bytes + i * 8, 600 * KIB, 0);
		blob_unref(blob);
		assert_true(stats_of(world).bytes <= 2 * MIB + 512 * KIB);
	}
	assert_true(stats_of(world).evicted >= 2);
	assert_true(names_in(world->cache_path, "partial") <= 4);
	free(bytes);
}

static void blobs_are_counted_after_opening(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(100 * KIB, 20);
	for (unsigned i = 0; i < 5; i++) {
		struct blob *blob;
		struct content content = store_bytes(world, bytes + i, 10 * KIB);
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		blob_unref(blob);
	}
	struct cache_stats before = stats_of(world);
	reopen(world);
	wait_for_count(world, 5);
	struct cache_stats after = stats_of(world);
	assert_int_equal(after.bytes, before.bytes);
	free(bytes);
}

/* -- checking -- */

struct damage {
	unsigned count;
	struct id id;
	char path[256];
};

static int note_damage(void *context, const struct id *id, const char *path)
{
	struct damage *damage = context;
	damage->count++;
	damage->id = *id;
	snprintf(damage->path, sizeof(damage->path), "%s", path);
	return 0;
}

static void verify_names_damaged_files(void **state)
{
	struct world *world = *state;
	char path[256];
	uint8_t *bytes = make_bytes(3 * MIB, 21);
	size_t sizes[] = {0, 10, 300 * KIB, 3 * MIB};
	struct content contents[4];
	for (unsigned i = 0; i < 4; i++) {
		struct blob *blob;
		if (i == 2)
			reopen(world); /* some in blobs/, some in recent/ */
		contents[i] = store_bytes(world, bytes, sizes[i]);
		assert_int_equal(cache_get(world->cache, &contents[i], &blob, &world->message), 0);
		assert_int_equal(blob_complete_now(blob, NULL, &world->message), 0);
		blob_unref(blob);
	}
	struct damage damage = {0};
	assert_int_equal(cache_verify(world->cache, note_damage, &damage, NULL, &world->message),
	                 0);
	assert_int_equal(damage.count, 0);
	for (unsigned i = 1; i < 4; i++) {
		path_of(world, i < 2 ? "blobs" : "recent", &contents[i], path, sizeof(path));
		int fd = open(path, O_RDWR | O_CLOEXEC);
		uint8_t byte = (uint8_t)(bytes[5] ^ 1);
		assert_int_equal(pwrite(fd, &byte, 1, 5), 1);
		memset(&damage, 0, sizeof(damage));
		assert_int_equal(
		        cache_verify(world->cache, note_damage, &damage, NULL, &world->message), 0);
		assert_int_equal(damage.count, 1);
		assert_true(id_equal(&damage.id, &contents[i].pointer.id));
		assert_string_equal(damage.path, path);
		assert_int_equal(pwrite(fd, bytes + 5, 1, 5), 1);
		close(fd);
	}
	free(bytes);
}

static void local_file_is_opened_quickly(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(10 * KIB, 22);
	struct content content = store_bytes(world, bytes, 10 * KIB);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	blob_unref(blob);
	reopen(world);
	int64_t start = clock_wall_ns();
	for (int i = 0; i < 10000; i++) {
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		blob_unref(blob);
	}
	int64_t each_ns = (clock_wall_ns() - start) / 10000;
	print_message("get + unref of a local file: %lld ns\n", (long long)each_ns);
	assert_true(each_ns < 500000);
	free(bytes);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(extents_match_a_bitmap),
	        TEST(small_file_is_fetched_once_and_whole),
	        TEST(empty_content_is_a_blob_too),
	        TEST(large_file_is_fetched_by_range),
	        TEST(ranges_that_add_up_complete_the_blob),
	        TEST(part_of_an_idle_blob_is_kept),
	        TEST(holes_stay_holes),
	        TEST(readers_of_one_missing_file_share_a_fetch),
	        TEST(readers_of_many_ranges_fetch_each_byte_once),
	        TEST(waiting_readers_share_one_timeout),
	        TEST(store_away_leaves_cached_data_readable),
	        TEST(damaged_bytes_are_never_kept),
	        TEST(content_that_lies_about_its_size_is_refused),
	        TEST(short_local_file_is_fetched_again),
	        TEST(full_disk_is_an_error_and_evicts_first),
	        TEST(unusable_directory_is_an_error),
	        TEST(kill_keeps_whole_files_and_power_cut_only_synced_ones),
	        TEST(adopted_file_keeps_its_inode),
	        TEST(adopting_what_is_being_read_in_parts),
	        TEST(least_recently_used_go_first),
	        TEST(idle_parts_are_let_go_too),
	        TEST(blobs_are_counted_after_opening),
	        TEST(verify_names_damaged_files),
	        TEST(local_file_is_opened_quickly),
	};
	return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
