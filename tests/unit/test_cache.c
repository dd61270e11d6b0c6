/* Tests of cache/: what is fetched when and by whom, and what happens when that fails. */
#include "tests/unit/cache_world.h"

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
			bool add = lrand48() % 3 != 0;
			uint64_t there = 0;
			for (uint64_t i = start; i < end; i++)
				there += bitmap[i];
			assert_int_equal(extents_count(&extents, start, end), there);
			assert_int_equal(extents_reserve(&extents, 1), 0);
			if (add)
				extents_add(&extents, start, end);
			else
				assert_int_equal(extents_remove(&extents, start, end), there);
			for (uint64_t i = start; i < end; i++)
				bitmap[i] = add;
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

/* What is there already, and what is more than a chunk, is left alone. */
static void many_small_files_are_fetched_at_once(void **state)
{
	struct world *world = *state;
	struct content contents[8];
	uint8_t *bytes[8];
	struct blob *blob;
	for (unsigned i = 0; i < 8; i++) {
		size_t length = i == 7 ? 3 * MIB : 10 * KIB + i;
		bytes[i] = make_bytes(length, 100 + i);
		contents[i] = store_bytes(world, bytes[i], length);
	}
	assert_int_equal(cache_get(world->cache, &contents[2], &blob, &world->message), 0);
	blob_unref(blob);
	unsigned gets = world->probe.gets;
	world->probe.damage = true;
	assert_int_equal(cache_fetch_many(world->cache, contents, 8, &world->message),
	                 -ERR_CORRUPT);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(cache_has(world->cache, &contents[i]), i == 2);
	world->probe.damage = false;
	gets = world->probe.gets;
	assert_int_equal(cache_fetch_many(world->cache, contents, 8, &world->message), 0);
	assert_true(world->probe.gets - gets <= 6);
	gets = world->probe.gets;
	assert_false(cache_has(world->cache, &contents[7]));
	for (unsigned i = 0; i < 7; i++) {
		assert_int_equal(cache_get(world->cache, &contents[i], &blob, &world->message), 0);
		assert_blob_bytes(blob, bytes[i], 10 * KIB + i, 0);
		blob_unref(blob);
		free(bytes[i]);
	}
	assert_int_equal(world->probe.gets, gets);
	assert_int_equal(stats_of(world).fetched_bytes, 7 * 10 * KIB + 21);
	free(bytes[7]);
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
	        TEST(many_small_files_are_fetched_at_once),
	        TEST(content_that_lies_about_its_size_is_refused),
	        TEST(short_local_file_is_fetched_again),
	        TEST(full_disk_is_an_error_and_evicts_first),
	        TEST(unusable_directory_is_an_error),
	};
	return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
