/* Windows of packs: how many requests small records cost, and that nothing wrong is served. */
#include "tests/unit/odb_fixture.h"

#include "store/pack_window.h"

#define RECORD_BYTES 10000

static const struct object_ops distant_ops = {
        .get = wrapper_get,
        .put = wrapper_put,
        .list = wrapper_list,
        .remove = wrapper_remove,
        .free = wrapper_free,
        .distant = true,
};

struct many {
	struct fixture *fixture;
	size_t count, length;
	struct pointer *pointers;
};

static void record_fill(uint8_t *bytes, size_t length, size_t number)
{
	fill_random(bytes, length, number + 1);
}

/* A fresh odb over the distant store, without a packer: its one request would be counted. */
static void open_cold(struct many *many, size_t window_bytes_max)
{
	struct fixture *fixture = many->fixture;
	struct odb_options options = {.window_bytes_max = window_bytes_max};

	packer_free(fixture->packer);
	fixture->packer = NULL;
	odb_free(fixture->odb);
	assert_int_equal(odb_new(&fixture->wrapper->store, &options, &fixture->odb), 0);
	fixture->wrapper->gets = 0;
}

static void write_many(struct many *many, struct fixture *fixture, size_t count, size_t length)
{
	CLEANUP(free_pointer) uint8_t *bytes = malloc(length);

	*many = (struct many){fixture, count, length, calloc(count, sizeof(struct pointer))};
	fixture->wrapper->store.ops = &distant_ops;
	for (size_t i = 0; i < count; i++) {
		record_fill(bytes, length, i);
		add_chunk(fixture, bytes, length, &many->pointers[i], NULL);
	}
	flush(fixture);
	open_cold(many, 0);
}

static void many_release(struct many *many)
{
	free(many->pointers);
}

static int read_number(const struct many *many, size_t number, struct message *message)
{
	CLEANUP(free_pointer) uint8_t *out = malloc(many->length);
	CLEANUP(free_pointer) uint8_t *expected = malloc(many->length);
	int error = odb_read_chunks(many->fixture->odb, &many->pointers[number], 1, &out, message);

	if (error)
		return error;
	record_fill(expected, many->length, number);
	assert_memory_equal(out, expected, many->length);
	return 0;
}

static void expect_number(const struct many *many, size_t number)
{
	struct message message = {0};

	if (read_number(many, number, &message))
		fail_msg("%s", message.text);
}

static size_t *shuffled(size_t count, uint64_t seed)
{
	size_t *order = calloc(count, sizeof(*order));

	for (size_t i = 0; i < count; i++) {
		size_t j = next_random(&seed) % (i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	return order;
}

static unsigned gets(const struct many *many)
{
	return __atomic_load_n(&many->fixture->wrapper->gets, __ATOMIC_RELAXED);
}

static struct odb_stats stats_of(const struct many *many)
{
	struct odb_stats stats;

	odb_stats(many->fixture->odb, &stats);
	return stats;
}

/* -- how many requests -- */

/* 20 MB in 2,000 records and three packs: whole windows would be 6 requests. */
static void test_in_order(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 2000, RECORD_BYTES);
	for (size_t i = 0; i < many.count; i++)
		expect_number(&many, i);
	assert_in_range(gets(&many), 6, 16);
	assert_true(stats_of(&many).window_fetched_bytes < 2000 * RECORD_BYTES * 5 / 4);
	assert_in_range(stats_of(&many).window_hits, 2000 - 16, 2000);
}

static void test_in_reverse(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 2000, RECORD_BYTES);
	for (size_t i = many.count; i-- > 0;)
		expect_number(&many, i);
	assert_in_range(gets(&many), 6, 18);
}

static void test_in_no_order(void **state)
{
	CLEANUP(many_release) struct many many;
	CLEANUP(free_pointer) size_t *order = shuffled(2000, 7);

	write_many(&many, *state, 2000, RECORD_BYTES);
	for (size_t i = 0; i < many.count; i++)
		expect_number(&many, order[i]);
	assert_in_range(gets(&many), 6, 70);
	assert_true(stats_of(&many).window_fetched_bytes < 2000 * RECORD_BYTES * 5 / 4);
}

/* Every record here and there costs a block and no more, whatever came before. */
static void test_few_of_many_are_not_amplified(void **state)
{
	CLEANUP(many_release) struct many many;
	CLEANUP(free_pointer) size_t *order = shuffled(6000, 7);

	write_many(&many, *state, 6000, RECORD_BYTES);
	open_cold(&many, 1 << 20);
	for (size_t i = 0; i < 500; i++)
		expect_number(&many, order[i]);
	assert_true(stats_of(&many).window_fetched_bytes <
	            500ull * (WINDOW_BLOCK_BYTES + WINDOW_BLOCK_BYTES / 4));
	assert_true(stats_of(&many).window_bytes <= 1 << 20);
}

static void test_memory_is_bounded(void **state)
{
	CLEANUP(many_release) struct many many;
	size_t memory = 3 * WINDOW_BLOCK_BYTES;

	write_many(&many, *state, 1000, RECORD_BYTES);
	open_cold(&many, memory);
	for (size_t i = 0; i < many.count; i++) {
		expect_number(&many, i);
		assert_true(stats_of(&many).window_bytes <= memory);
	}
	assert_in_range(gets(&many), 1, 1000 * RECORD_BYTES / WINDOW_BLOCK_BYTES * 2);

	/* With room for no window at all every record is fetched by itself. */
	open_cold(&many, 1);
	for (size_t i = 0; i < 50; i++)
		expect_number(&many, i);
	assert_int_equal(gets(&many), 50);
	assert_int_equal(stats_of(&many).window_bytes, 0);
	assert_int_equal(stats_of(&many).window_fetched_bytes, 50 * RECORD_BYTES);
}

static void test_large_chunks_pass_by(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 20, 70000);
	for (size_t i = 0; i < many.count; i++)
		expect_number(&many, i);
	assert_int_equal(gets(&many), 20);
	assert_int_equal(stats_of(&many).window_requests, 0);
	assert_int_equal(stats_of(&many).read_bytes, 20 * 70000);
}

/* A store in a directory: exactly what was asked for. */
static void test_near_stores_have_none(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 20, RECORD_BYTES);
	many.fixture->wrapper->store.ops = &wrapper_ops;
	open_cold(&many, 0);
	for (size_t i = 0; i < many.count; i++)
		expect_number(&many, i);
	assert_int_equal(gets(&many), 20);
	assert_int_equal(stats_of(&many).read_bytes, 20 * RECORD_BYTES);
}

/* In one tree pack, the root last, and nothing at hand. */
static void write_nodes(struct many *many, struct fixture *fixture, struct pointer *pointers,
                        size_t count)
{
	char logical[64], places[3000];

	*many = (struct many){.fixture = fixture};
	fixture->wrapper->store.ops = &distant_ops;
	for (size_t i = 0; i < count; i++) {
		snprintf(logical, sizeof(logical), "node %zu", i);
		for (size_t j = 0; j < sizeof(places); j++)
			places[j] = (char)('!' + random_u64() % 90);
		places[sizeof(places) - 1] = 0;
		add_record(fixture, RECORD_NODE, logical, places, &pointers[i]);
	}
	flush(fixture);
	open_cold(many, 0);
}

static void expect_node(struct fixture *fixture, const struct pointer *pointers, size_t i)
{
	char logical[64];
	struct record *record;

	assert_int_equal(odb_read_record(fixture->odb, RECORD_NODE, &pointers[i], &record, NULL),
	                 0);
	snprintf(logical, sizeof(logical), "node %zu", i);
	assert_memory_equal(record->logical, logical, strlen(logical));
	record_unref(record);
}

/* Trees are written from their leaves up and read from their root down. */
static void test_nodes_from_the_last(void **state)
{
	struct many many;
	struct pointer pointers[600];

	write_nodes(&many, *state, pointers, ARRAY_SIZE(pointers));
	expect_node(*state, pointers, ARRAY_SIZE(pointers) - 1);
	for (size_t i = 0; i + 1 < ARRAY_SIZE(pointers); i++)
		expect_node(*state, pointers, i);
	assert_in_range(gets(&many), 1, 7);
}

/* What a root leads to mostly lies right before it. */
static void test_a_root_brings_the_blocks_before(void **state)
{
	struct many many;
	struct pointer pointers[2000];
	size_t last = ARRAY_SIZE(pointers) - 1, i = last;

	write_nodes(&many, *state, pointers, ARRAY_SIZE(pointers));
	uint64_t block = pointers[last].place.offset / WINDOW_BLOCK_BYTES;
	assert_true(block >= 4);
	expect_node(*state, pointers, last);
	while (pointers[i].place.offset / WINDOW_BLOCK_BYTES >= block - 3)
		i--;
	expect_node(*state, pointers, i + 1);
	assert_int_equal(gets(&many), 1);
	assert_true(stats_of(&many).window_fetched_bytes <= 4 * WINDOW_BLOCK_BYTES);
}

/* -- damage -- */

static void test_damage_on_the_way_is_fetched_again(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 12, RECORD_BYTES);
	many.fixture->wrapper->damage_offset = many.pointers[3].place.offset + 5;
	many.fixture->wrapper->damage_gets = 1;
	expect_number(&many, 0); /* brings the window, and is not what is damaged */
	assert_int_equal(gets(&many), 1);
	expect_number(&many, 3); /* by itself */
	assert_int_equal(gets(&many), 2);
	expect_number(&many, 4); /* the window was not to be trusted any more */
	assert_int_equal(gets(&many), 3);
	expect_number(&many, 5);
	assert_int_equal(gets(&many), 3);
}

static void test_damage_in_the_store_is_named(void **state)
{
	CLEANUP(many_release) struct many many;
	struct message message = {0};
	char offset[40];

	write_many(&many, *state, 12, RECORD_BYTES);
	many.fixture->wrapper->damage_offset = many.pointers[3].place.offset + 5;
	many.fixture->wrapper->damage_gets = 1000;
	expect_number(&many, 2);
	assert_int_equal(read_number(&many, 3, &message), -ERR_CORRUPT);
	snprintf(offset, sizeof(offset), "offset %llu ",
	         (unsigned long long)many.pointers[3].place.offset);
	assert_non_null(strstr(message.text, offset));
	assert_int_equal(gets(&many), 2);
	expect_number(&many, 4); /* its neighbours are as good as before */
	many.fixture->wrapper->damage_gets = 0;
	expect_number(&many, 3);
}

static void pack_key_of(const struct pointer *pointer, char key[64])
{
	memcpy(key, "packs/", 6);
	hex_encode(pointer->place.pack, PACK_ID_BYTES, key + 6);
}

static void test_pack_cut_short(void **state)
{
	CLEANUP(many_release) struct many many;
	CLEANUP(buffer_release) struct buffer bytes = {0};
	struct message message = {0};
	char key[64];

	write_many(&many, *state, 100, RECORD_BYTES);
	pack_key_of(&many.pointers[0], key);
	assert_int_equal(
	        object_get(many.fixture->wrapper->inner, key, 0, UINT64_MAX, &bytes, NULL, NULL),
	        0);
	assert_int_equal(object_put(many.fixture->wrapper->inner, key, bytes.data,
	                            many.pointers[50].place.offset + 7, NULL),
	                 0);
	for (size_t i = 0; i < 100; i++) {
		int error = read_number(&many, i, &message);

		assert_int_equal(error, i < 50 ? 0 : -ERR_CORRUPT);
	}
	/* Cut at the end of a block, too: nothing is left of what is asked for. */
	open_cold(&many, 0);
	assert_int_equal(object_put(many.fixture->wrapper->inner, key, bytes.data,
	                            2 * WINDOW_BLOCK_BYTES, NULL),
	                 0);
	assert_int_equal(read_number(&many, 99, &message), -ERR_CORRUPT);
	assert_int_equal(read_number(&many, 98, &message), -ERR_CORRUPT);
	expect_number(&many, 0);
}

static void test_pack_removed_between(void **state)
{
	CLEANUP(many_release) struct many many;
	struct message message = {0};
	char key[64];

	write_many(&many, *state, 2000, RECORD_BYTES);
	expect_number(&many, 0);
	pack_key_of(&many.pointers[0], key);
	assert_int_equal(object_remove(many.fixture->wrapper->inner, key, NULL), 0);
	expect_number(&many, 1); /* verified like any other */
	assert_int_equal(read_number(&many, 500, &message), -ERR_NOT_FOUND);
	assert_non_null(strstr(message.text, key + 6));
	assert_int_equal(read_number(&many, 500, &message), -ERR_NOT_FOUND);
}

static void test_removing_drops_windows(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 20, RECORD_BYTES);
	expect_number(&many, 0);
	assert_true(stats_of(&many).window_bytes > 0);
	assert_int_equal(odb_pack_remove(many.fixture->odb, many.pointers[0].place.pack, NULL), 0);
	assert_int_equal(stats_of(&many).window_bytes, 0);
	assert_int_equal(read_number(&many, 1, NULL), -ERR_NOT_FOUND);
}

/* -- many threads -- */

struct racing {
	const struct many *many;
	size_t start, step;
	int error;
	pthread_barrier_t *barrier;
};

static void *race(void *argument)
{
	struct racing *racing = argument;
	const struct many *many = racing->many;

	pthread_barrier_wait(racing->barrier);
	for (size_t i = 0; i < many->count && !racing->error; i++)
		racing->error =
		        read_number(many, (racing->start + i * racing->step) % many->count, NULL);
	return NULL;
}

#define RACERS 8

static void race_all(const struct many *many, size_t step, int expected)
{
	struct racing racing[RACERS];
	pthread_t threads[RACERS];
	pthread_barrier_t barrier;

	pthread_barrier_init(&barrier, NULL, RACERS);
	for (size_t i = 0; i < RACERS; i++) {
		racing[i] = (struct racing){many, i * step, step, 0, &barrier};
		assert_int_equal(pthread_create(&threads[i], NULL, race, &racing[i]), 0);
	}
	for (size_t i = 0; i < RACERS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(racing[i].error, expected);
	}
	pthread_barrier_destroy(&barrier);
}

/* All ask for the same first record at once, by a store that takes its time. */
static void test_duplicates_are_joined(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 10, RECORD_BYTES);
	many.fixture->wrapper->get_us = 20000;
	race_all(&many, 1, 0);
	assert_int_equal(gets(&many), 1);
}

static void test_failures_are_shared(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 10, RECORD_BYTES);
	many.fixture->wrapper->get_us = 50000;
	many.fixture->wrapper->fail_gets = 1;
	race_all(&many, 0, -ERR_STORE_AWAY);
	assert_int_equal(gets(&many), 1);
	expect_number(&many, 0);
}

static void test_threads_in_every_order(void **state)
{
	CLEANUP(many_release) struct many many;

	write_many(&many, *state, 1009, 4000);
	race_all(&many, 1, 0);
	assert_in_range(gets(&many), 1, 40);
	open_cold(&many, 4 * WINDOW_BLOCK_BYTES); /* evicted all the time */
	race_all(&many, 7, 0);
	open_cold(&many, 0);
	race_all(&many, 617, 0);
	assert_in_range(gets(&many), 1, 40);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        PLAIN(test_in_order),
	        PLAIN(test_in_reverse),
	        PLAIN(test_in_no_order),
	        PLAIN(test_few_of_many_are_not_amplified),
	        PLAIN(test_memory_is_bounded),
	        PLAIN(test_large_chunks_pass_by),
	        PLAIN(test_near_stores_have_none),
	        PLAIN(test_nodes_from_the_last),
	        PLAIN(test_a_root_brings_the_blocks_before),
	        PLAIN(test_damage_on_the_way_is_fetched_again),
	        PLAIN(test_damage_in_the_store_is_named),
	        PLAIN(test_pack_cut_short),
	        PLAIN(test_pack_removed_between),
	        PLAIN(test_removing_drops_windows),
	        PLAIN(test_duplicates_are_joined),
	        PLAIN(test_failures_are_shared),
	        PLAIN(test_threads_in_every_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
