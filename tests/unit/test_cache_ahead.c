/* Tests of cache/: what is fetched ahead of readers, at whose cost, and who waits for what. */
#include "cache/cursors.h"
#include "tests/unit/cache_world.h"

/* -- cursors by themselves -- */

static struct extent read_at(struct cursors *cursors, uint64_t start, uint64_t length)
{
	struct cursors_read read = {
	        .start = start,
	        .end = start + length,
	        .missing = length - extents_count(&cursors->unread, start, start + length),
	        .size = (uint64_t)1 << 40,
	        .window_max = WINDOW_BYTES_MAX};
	struct extent ahead;
	assert_int_equal(cursors_read(cursors, &read, &ahead), length - read.missing);
	cursors_fetching(cursors, ahead.start, ahead.end);
	return ahead;
}

static void each_cursor_grows_by_itself(void **state)
{
	struct cursors *cursors;
	assert_int_equal(cursors_new(&cursors), 0);
	uint64_t at[4], most[4] = {0};
	for (unsigned c = 0; c < 4; c++)
		at[c] = (c + 1) * ((uint64_t)1 << 30);
	for (unsigned round = 0; round < 200; round++)
		for (unsigned c = 0; c < 4; c++) {
			struct extent ahead = read_at(cursors, at[c], 128 * KIB);
			at[c] += 128 * KIB;
			if (ahead.start == ahead.end)
				continue;
			assert_true(ahead.start >= at[c]);
			assert_true(ahead.end <= at[c] + WINDOW_BYTES_MAX);
			if (ahead.end - at[c] > most[c])
				most[c] = ahead.end - at[c];
		}
	assert_int_equal(cursors->count, 4);
	for (unsigned c = 0; c < 4; c++)
		assert_true(most[c] >= 4 * MIB);
	cursors_free(cursors);
}

/* A run of reads of 128 KiB. What was fetched ahead of its second read, and how far beyond its end.
 */
struct ran {
	uint64_t first, beyond;
};
static struct ran run_on(struct cursors *cursors, uint64_t start, unsigned reads)
{
	struct ran ran = {0};
	uint64_t end = start + reads * 128 * KIB, furthest = end;
	for (unsigned i = 0; i < reads; i++) {
		struct extent ahead = read_at(cursors, start + i * 128 * KIB, 128 * KIB);
		if (i == 0)
			ran.first = ahead.end - ahead.start;
		if (ahead.end > furthest)
			furthest = ahead.end;
	}
	ran.beyond = furthest - end;
	return ran;
}

static void runs_are_expected_to_be_as_long_as_the_last(void **state)
{
	struct cursors *cursors;
	assert_int_equal(cursors_new(&cursors), 0);
	uint64_t at = (uint64_t)1 << 30, beyond = 0, seed = random_u64();
	print_message("seed %llu\n", (unsigned long long)seed);
	srand48((long)seed);
	/* In no order that would be recognized. */
	for (unsigned i = 0; i < 20; i++, at += 64 * MIB + (uint64_t)lrand48() % (1024 * MIB)) {
		struct ran ran = run_on(cursors, at, 12);
		if (i < 3)
			assert_int_equal(ran.first, 0);
		if (i < 8)
			continue;
		assert_in_range(ran.first, 1 * MIB, 12 * 128 * KIB);
		beyond += ran.beyond;
	}
	assert_true(beyond <= 12 * 512 * KIB);
	/* One that is longer is not held back for long. */
	struct ran ran = run_on(cursors, at, 512);
	assert_true(ran.first > 0);
	assert_true(cursors->items[20].ahead - cursors->items[20].at >= 8 * MIB);
	/* Single reads go on nowhere. */
	for (unsigned i = 0; i < 20; i++, at += 64 * MIB + (uint64_t)lrand48() % (1024 * MIB))
		ran = run_on(cursors, at + ((uint64_t)1 << 30), 1);
	assert_int_equal(ran.first, 0);
	cursors_free(cursors);
}

static void reads_that_overtake_each_other_are_one_cursor(void **state)
{
	struct cursors *cursors;
	assert_int_equal(cursors_new(&cursors), 0);
	uint64_t start = (uint64_t)1 << 30;
	for (unsigned i = 0; i < 64; i++) /* 1 0 3 2 5 4 ... */
		read_at(cursors, start + (i ^ 1) * 256 * KIB, 256 * KIB);
	assert_int_equal(cursors->count, 1);
	assert_int_equal(cursors->items[0].at, start + 64 * 256 * KIB);
	cursors_free(cursors);
}

/* Whatever readers do: what is fetched in vain is bounded by what they read; what is read on from
 * the first byte counts twice, and begins with 4 MiB. */
static void waste_is_bounded_for_any_reader(void **state)
{
	uint64_t seed = random_u64();
	print_message("seed %llu\n", (unsigned long long)seed);
	srand48((long)seed);
	for (unsigned round = 0; round < 50; round++) {
		struct cursors *cursors;
		assert_int_equal(cursors_new(&cursors), 0);
		uint64_t ahead_bytes = 0, read_bytes = 0, from_start = 0, at = 0,
		         most = 1 + (uint64_t)lrand48() % 60;
		for (unsigned i = 0; i < 2000; i++) {
			if (lrand48() % (long)most == 0)
				at = ((uint64_t)lrand48() << 5) + MIB;
			bool started = at == from_start;
			uint64_t length = 4 * KIB + (uint64_t)lrand48() % (256 * KIB);
			struct extent ahead = read_at(cursors, at, length);
			ahead_bytes += ahead.end - ahead.start;
			read_bytes += length;
			at += length;
			if (started)
				from_start = at;
		}
		uint64_t slack = 5 * MIB + from_start;
		uint64_t unread = 0;
		for (size_t i = 0; i < cursors->unread.count; i++)
			unread += cursors->unread.items[i].end - cursors->unread.items[i].start;
		assert_true(ahead_bytes <= 2 * read_bytes + slack);
		assert_true(unread <= read_bytes + slack);
		cursors_free(cursors);
	}
}

/* -- with a store -- */

#define BIG (48 * MIB)

struct big {
	struct world *world;
	uint8_t *bytes;
	struct content content;
	struct blob *blob;
};

static struct big open_big(void **state, uint64_t seed)
{
	struct big big = {.world = *state, .bytes = make_bytes(BIG, seed)};
	big.content = store_bytes(big.world, big.bytes, BIG);
	assert_int_equal(cache_get(big.world->cache, &big.content, &big.blob, &big.world->message),
	                 0);
	return big;
}

static void close_big(struct big *big)
{
	blob_unref(big->blob);
	free(big->bytes);
}

static void assert_read(const struct big *big, uint64_t offset, size_t length)
{
	assert_int_equal(blob_ensure(big->blob, offset, length, &big->world->message), 0);
	assert_blob_bytes(big->blob, big->bytes + offset, length, (off_t)offset);
}

static void with_options(struct world *world, uint64_t fetch_bytes_max, uint64_t bytes_max)
{
	cache_close(world->cache);
	world->options.fetch_bytes_max = fetch_bytes_max;
	world->options.bytes_max = bytes_max;
	open_cache(world);
}

static void wait_until_quiet(struct world *world)
{
	for (int same = 0; same < 10;) {
		unsigned gets = world->probe.gets;
		usleep(20000 + world->probe.delay_ms * 1000);
		same = gets == world->probe.gets && !world->probe.bytes_under_way ? same + 1 : 0;
	}
}

static void reading_on_is_fetched_ahead(void **state)
{
	struct big big = open_big(state, 1);
	big.world->probe.delay_ms = 2;
	for (uint64_t at = 0; at < BIG; at += 128 * KIB)
		assert_read(&big, at, 128 * KIB);
	assert_true(blob_complete(big.blob));
	struct cache_stats stats = stats_of(big.world);
	assert_int_equal(stats.fetched_bytes, BIG);
	assert_true(stats.ahead_bytes > BIG / 2);
	print_message("%llu of %llu bytes used\n", (unsigned long long)stats.ahead_used_bytes,
	              (unsigned long long)stats.ahead_bytes);
	assert_true(stats.ahead_used_bytes > stats.ahead_bytes * 9 / 10);
	assert_true(stats.ahead_used_bytes <= stats.ahead_bytes);
	assert_int_equal(stats.reads, BIG / (128 * KIB));
	assert_true(stats.reads_present + stats.reads_joined > stats.reads / 2);
	assert_true(big.world->probe.gets < 100);
	close_big(&big);
}

static void random_reads_fetch_their_chunks_only(void **state)
{
	struct big big = open_big(state, 2);
	unsigned places[40];
	srand48(5);
	for (unsigned i = 0; i < 40; i++) { /* far from each other, in no order */
		unsigned other = (unsigned)lrand48() % (i + 1);
		places[i] = places[other];
		places[other] = i;
	}
	for (unsigned i = 0; i < 40; i++)
		assert_read(&big, places[i] * MIB + (size_t)lrand48() % MIB, 4000);
	wait_until_quiet(big.world);
	struct cache_stats stats = stats_of(big.world);
	assert_int_equal(stats.ahead_bytes, 0);
	assert_true(stats.fetched_bytes <= (uint64_t)40 * 512 * KIB);
	assert_true(big.world->probe.gets <= 40 + 10); /* and lists */
	close_big(&big);
}

/* As readers of Parquet do: four places, each goes on for a while, sometimes elsewhere. */
static void interleaved_readers_fetch_little_in_vain(void **state)
{
	struct big big = open_big(state, 3);
	uint64_t at[4], read = 0;
	srand48(7);
	for (unsigned c = 0; c < 4; c++)
		at[c] = (uint64_t)lrand48() % (BIG - 12 * MIB);
	for (unsigned i = 0; i < 120; i++) {
		unsigned c = (unsigned)lrand48() % 4;
		size_t length = 64 * KIB + (size_t)lrand48() % (192 * KIB);
		if (lrand48() % 32 == 0 || at[c] + length > BIG)
			at[c] = (uint64_t)lrand48() % (BIG - 12 * MIB);
		assert_read(&big, at[c], length);
		at[c] += length;
		read += length;
	}
	wait_until_quiet(big.world);
	assert_true(stats_of(big.world).fetched_bytes <= read * 5 / 2);
	assert_true(stats_of(big.world).ahead_used_bytes > read / 4);
	close_big(&big);
}

/* As a scan of two columns does: each has a piece in each row group. */
static void columns_of_row_groups_are_fetched_ahead(void **state)
{
	struct big big = open_big(state, 12);
	big.world->probe.delay_ms = 2;
	uint64_t read = 0;
	for (uint64_t group = 0; group < BIG / (2 * MIB); group++)
		for (unsigned column = 0; column < 2; column++) {
			assert_read(&big, group * 2 * MIB + column * 900 * KIB + 100 * KIB,
			            100 * KIB);
			read += 100 * KIB;
		}
	wait_until_quiet(big.world);
	struct cache_stats stats = stats_of(big.world);
	assert_true(stats.reads - stats.reads_present - stats.reads_joined <= 10);
	assert_true(stats.ahead_used_bytes > read * 3 / 4);
	assert_true(stats.fetched_bytes <= read * 7 / 2); /* these are smaller than chunks */
	close_big(&big);
}

static void lists_come_with_the_first_read(void **state)
{
	struct big big = open_big(state, 13);
	assert_read(&big, 24 * MIB, 10);
	wait_until_quiet(big.world);
	const unsigned places[] = {3, 40, 11, 30, 19, 46, 7, 35};
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		unsigned gets = big.world->probe.gets;
		assert_read(&big, places[i] * MIB, 10);
		assert_int_equal(big.world->probe.gets, gets + 1);
	}
	close_big(&big);
}

struct going {
	const struct big *big;
	unsigned number;
	int error;
};

/* Goes on from changing places, and compares. */
static void *go_about(void *context)
{
	struct going *going = context;
	const struct big *big = going->big;
	unsigned seed = going->number;
	uint8_t *found = malloc(300 * KIB);
	uint64_t at = 0;
	for (int i = 0; i < 150 && !going->error; i++) {
		struct message message;
		size_t length = 1 + (size_t)rand_r(&seed) % (300 * KIB - 1);
		if (rand_r(&seed) % 12 == 0 || at + length > BIG)
			at = (uint64_t)rand_r(&seed) % (BIG - 300 * KIB);
		going->error = blob_ensure(big->blob, at, length, &message);
		if (!going->error && (read_full(blob_descriptor(big->blob), found, length,
		                                (off_t)at) != (ssize_t)length ||
		                      memcmp(found, big->bytes + at, length) != 0))
			going->error = -ERR_CORRUPT;
		at += length;
	}
	free(found);
	return NULL;
}

static void run_many(const struct big *big, void *(*function)(void *), unsigned count)
{
	pthread_t threads[8];
	struct going goings[8];
	for (unsigned i = 0; i < count; i++) {
		goings[i] = (struct going){big, i, 0};
		assert_int_equal(pthread_create(&threads[i], NULL, function, &goings[i]), 0);
	}
	for (unsigned i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	for (unsigned i = 0; i < count; i++)
		assert_int_equal(goings[i].error, 0);
}

static void many_readers_see_the_right_bytes_once_fetched(void **state)
{
	struct big big = open_big(state, 4);
	run_many(&big, go_about, 6);
	wait_until_quiet(big.world);
	assert_true(stats_of(big.world).fetched_bytes <= BIG);
	assert_int_equal(blob_complete_now(big.blob, NULL, &big.world->message), 0);
	assert_int_equal(stats_of(big.world).fetched_bytes, BIG);
	assert_blob_bytes(big.blob, big.bytes, BIG, 0);
	close_big(&big);
}

static void *read_all(void *context)
{
	struct going *going = context;
	for (uint64_t at = 0; at < BIG && !going->error; at += 512 * KIB)
		going->error = blob_ensure(going->big->blob, at, 512 * KIB, NULL);
	return NULL;
}

static void readers_side_by_side_share_what_comes(void **state)
{
	struct big big = open_big(state, 5);
	big.world->probe.delay_ms = 5;
	run_many(&big, read_all, 4);
	assert_int_equal(stats_of(big.world).fetched_bytes, BIG);
	assert_true(stats_of(big.world).reads_joined > 0);
	close_big(&big);
}

static void memory_is_bounded(void **state)
{
	with_options(*state, 4 * MIB, 0);
	struct big big = open_big(state, 6);
	big.world->probe.delay_ms = 3;
	run_many(&big, read_all, 8);
	run_many(&big, go_about, 8);
	uint64_t most = big.world->probe.bytes_under_way_most;
	/* Beside it, lists of chunks. */
	assert_true(most <= 4 * MIB + 512 * KIB);
	assert_int_equal(stats_of(big.world).fetched_bytes, BIG);
	close_big(&big);
}

/* Much is queued to be fetched ahead, every request takes 100 ms: a reader elsewhere waits for its
 * own alone. */
static void readers_go_before_what_is_ahead(void **state)
{
	with_options(*state, 24 * MIB, 0);
	struct big big = open_big(state, 7);
	uint64_t at = 0;
	for (; at < 6 * MIB; at += 512 * KIB)
		assert_read(&big, at, 512 * KIB);
	wait_until_quiet(big.world);
	assert_read(&big, 40 * MIB, 10); /* the lists are here */
	big.world->probe.delay_ms = 100;
	for (; at < 10 * MIB; at += 512 * KIB)
		assert_read(&big, at, 512 * KIB);
	int64_t start = clock_monotonic_ms();
	assert_read(&big, 44 * MIB, 10);
	int64_t took = clock_monotonic_ms() - start;
	print_message("a read beside what is fetched ahead: %lld ms\n", (long long)took);
	assert_true(took < 1000);
	close_big(&big);
}

static void what_failed_ahead_is_tried_again(void **state)
{
	struct big big = open_big(state, 8);
	assert_read(&big, 0, 128 * KIB);
	wait_until_quiet(big.world);
	for (unsigned round = 0; round < 2; round++) {
		uint64_t before = stats_of(big.world).fetched_bytes;
		big.world->probe.damage = round == 0;
		big.world->probe.away = round == 1;
		/* These bytes are here; what they make it fetch ahead fails. */
		assert_read(&big, 128 * KIB, 128 * KIB);
		assert_read(&big, 256 * KIB, 128 * KIB);
		wait_until_quiet(big.world);
		assert_true(stats_of(big.world).fetched_bytes <= before + BIG / 2);
		big.world->probe.damage = false;
		big.world->probe.away = false;
		for (uint64_t at = round * 20 * MIB; at < (round + 1) * 20 * MIB; at += 256 * KIB)
			assert_read(&big, at, 256 * KIB);
	}
	close_big(&big);
}

static void *read_far(void *context)
{
	struct going *going = context;
	struct message message = {.text[0] = '\0'};
	int error = blob_ensure(going->big->blob, 20 * MIB, 6 * MIB, &message);
	if (error != -ERR_STORE_AWAY || message.text[0] == '\0')
		going->error = error ? error : -ERR_INVALID;
	return NULL;
}

static void many_ranges_share_one_timeout(void **state)
{
	struct big big = open_big(state, 9);
	assert_read(&big, 20 * MIB - 10, 10); /* the lists are here */
	assert_read(&big, 27 * MIB, 10);
	big.world->probe.away = true;
	big.world->probe.delay_ms = 300;
	int64_t start = clock_monotonic_ms();
	run_many(&big, read_far, 8);
	assert_true(clock_monotonic_ms() - start < 1500);
	wait_until_quiet(big.world); /* who joins a request that failed fails with it */
	big.world->probe.away = false;
	big.world->probe.delay_ms = 0;
	assert_read(&big, 20 * MIB, 6 * MIB);
	close_big(&big);
}

static void letting_go_ends_what_is_ahead(void **state)
{
	with_options(*state, 8 * MIB, 0);
	struct big big = open_big(state, 10);
	for (uint64_t at = 0; at < 4 * MIB; at += 512 * KIB)
		assert_read(&big, at, 512 * KIB);
	wait_until_quiet(big.world);
	big.world->probe.delay_ms = 100;
	for (uint64_t at = 4 * MIB; at < 8 * MIB; at += 512 * KIB)
		assert_read(&big, at, 512 * KIB);
	blob_unref(big.blob);
	usleep(1000);
	unsigned gets = big.world->probe.gets;
	int64_t start = clock_monotonic_ms();
	reopen(big.world);
	assert_true(clock_monotonic_ms() - start < 2000);
	assert_true(big.world->probe.gets <= gets + 16);
	/* And with the file read from all sides. */
	big.world->probe.delay_ms = 1;
	assert_int_equal(cache_get(big.world->cache, &big.content, &big.blob, &big.world->message),
	                 0);
	run_many(&big, go_about, 8);
	blob_unref(big.blob);
	reopen(big.world);
	free(big.bytes);
}

static void what_is_ahead_keeps_the_bound(void **state)
{
	with_options(*state, 0, 40 * MIB);
	struct big big = open_big(state, 11);
	for (uint64_t at = 0; at < 36 * MIB; at += 256 * KIB) {
		assert_read(&big, at, 256 * KIB);
		assert_true(stats_of(big.world).bytes <= 40 * MIB);
	}
	wait_until_quiet(big.world);
	assert_true(stats_of(big.world).bytes <= 40 * MIB);
	assert_true(stats_of(big.world).ahead_bytes > 0);
	/* Who asks gets his bytes nevertheless. */
	assert_read(&big, 40 * MIB, 8 * MIB);
	close_big(&big);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(each_cursor_grows_by_itself),
	        cmocka_unit_test(runs_are_expected_to_be_as_long_as_the_last),
	        cmocka_unit_test(reads_that_overtake_each_other_are_one_cursor),
	        cmocka_unit_test(waste_is_bounded_for_any_reader),
	        TEST(reading_on_is_fetched_ahead),
	        TEST(random_reads_fetch_their_chunks_only),
	        TEST(interleaved_readers_fetch_little_in_vain),
	        TEST(columns_of_row_groups_are_fetched_ahead),
	        TEST(lists_come_with_the_first_read),
	        TEST(many_readers_see_the_right_bytes_once_fetched),
	        TEST(readers_side_by_side_share_what_comes),
	        TEST(memory_is_bounded),
	        TEST(readers_go_before_what_is_ahead),
	        TEST(what_failed_ahead_is_tried_again),
	        TEST(many_ranges_share_one_timeout),
	        TEST(letting_go_ends_what_is_ahead),
	        TEST(what_is_ahead_keeps_the_bound),
	};
	return cmocka_run_group_tests_name("cache ahead", tests, NULL, NULL);
}
