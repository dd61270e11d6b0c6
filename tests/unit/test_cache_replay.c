/* Tests of cache/replay and of what cursors do with it: which reads come again, and at what cost.
 */
#include "cache/cursors.h"
#include "tests/unit/cache_world.h"

#define FILE_BYTES ((uint64_t)512 * MIB)
#define PLACES 4

/* A reader, and what is fetched for it. */
struct scan {
	struct cursors *cursors;
	struct extents here;
	uint64_t read_bytes, ahead_bytes;
	unsigned cold, partly, guesses; /* reads that found nothing, or not all */
};

static struct scan begin(void)
{
	struct scan reader = {0};
	assert_int_equal(cursors_new(&reader.cursors), 0);
	return reader;
}

static void end(struct scan *reader)
{
	cursors_free(reader->cursors);
	extents_release(&reader->here);
}

static void fetched(struct scan *reader, uint64_t start, uint64_t end)
{
	assert_int_equal(extents_reserve(&reader->here, 1), 0);
	extents_add(&reader->here, start, end);
}

static void read_at(struct scan *reader, uint64_t start, uint64_t length)
{
	struct cursors *cursors = reader->cursors;
	uint64_t here = extents_count(&reader->here, start, start + length);
	struct cursors_read read = {.start = start,
	                            .end = start + length,
	                            .missing = length - here,
	                            .size = FILE_BYTES,
	                            .window_max = WINDOW_BYTES_MAX};
	struct extent ahead;
	cursors_read(cursors, &read, &ahead);
	cursors_fetching(cursors, ahead.start, ahead.end);
	fetched(reader, start, start + length);
	fetched(reader, ahead.start, ahead.end);
	reader->cold += here == 0;
	reader->partly += here > 0 && here < length;
	reader->read_bytes += length;
	reader->ahead_bytes += ahead.end - ahead.start;
	while (cursors_replay(cursors, &read, &ahead)) {
		assert_true(ahead.start < ahead.end && ahead.end <= FILE_BYTES);
		uint64_t known = extents_count(&reader->here, ahead.start, ahead.end);
		cursors_refund(cursors, known);
		cursors_fetching(cursors, ahead.start, ahead.end);
		fetched(reader, ahead.start, ahead.end);
		reader->ahead_bytes += ahead.end - ahead.start - known;
		reader->guesses++;
	}
}

static uint64_t random_below(uint64_t bound)
{
	return ((uint64_t)lrand48() << 31 | (uint64_t)lrand48()) % bound;
}

static uint64_t random_length(void)
{
	return 64 * KIB + random_below(192 * KIB);
}

/* Row groups with columns; each has a piece in each. */
struct layout {
	uint64_t group_bytes, starts[PLACES], lengths[PLACES], jitter;
};

static struct layout lay_out(uint64_t jitter)
{
	struct layout layout = {.group_bytes = FILE_BYTES / 50, .jitter = jitter};
	for (unsigned i = 0; i < PLACES; i++) {
		layout.starts[i] = (i * 2 + 1) * MIB + random_below(MIB) + jitter;
		layout.lengths[i] = random_length();
	}
	return layout;
}

static void read_piece(struct scan *reader, const struct layout *layout, unsigned group,
                       unsigned place)
{
	read_at(reader,
	        group * layout->group_bytes + layout->starts[place] +
	                random_below(2 * layout->jitter + 1) - layout->jitter,
	        layout->lengths[place]);
}

static void seed(void)
{
	uint64_t value = random_u64() % 1000000;
	print_message("seed %llu\n", (unsigned long long)value);
	srand48((long)value);
}

static void the_second_period_tells_of_all_others(void **state)
{
	for (unsigned backward = 0; backward < 2; backward++) {
		seed();
		struct scan reader = begin();
		struct layout layout = lay_out(0);
		read_at(&reader, FILE_BYTES - 64 * KIB, 64 * KIB);
		for (unsigned group = 0; group < 50; group++)
			for (unsigned i = 0; i < PLACES; i++)
				read_piece(&reader, &layout, backward ? 49 - group : group, i);
		/* Now and then columns are as far from each other as from the next row group's. */
		assert_in_range(reader.cold, 1, 1 + PLACES + 2 + 4);
		assert_true(reader.ahead_bytes <= reader.read_bytes * 5 / 4);
		end(&reader);
	}
}

static void jitter_is_allowed_for(void **state)
{
	seed();
	unsigned cold = 0, partly = 0;
	uint64_t ahead = 0, bytes = 0;
	for (unsigned round = 0; round < 50; round++) {
		struct scan reader = begin();
		struct layout layout = lay_out(16 * KIB);
		for (unsigned group = 0; group < 50; group++)
			for (unsigned i = 0; i < PLACES; i++)
				read_piece(&reader, &layout, group, i);
		cold += reader.cold;
		partly += reader.partly;
		ahead += reader.ahead_bytes;
		bytes += reader.read_bytes;
		end(&reader);
	}
	print_message(
	        "%.1f of 200 reads found nothing, %.1f not all; ahead %.2f times what was read\n",
	        cold / 50.0, partly / 50.0, (double)ahead / (double)bytes);
	assert_true(cold < 50 * 12);
	assert_true(partly < 50 * 12); /* the first guesses are corrected as more is known */
	assert_true(ahead < bytes * 3 / 2);
}

static void order_within_a_period_may_change(void **state)
{
	seed();
	struct scan reader = begin();
	struct layout layout = lay_out(0);
	for (unsigned group = 0; group < 50; group++)
		for (unsigned i = 0; i < PLACES; i++)
			read_piece(&reader, &layout, group, group > 4 && group % 2 ? i ^ 1 : i);
	assert_true(reader.cold < 16);
	end(&reader);
}

static void a_read_in_between_does_not_end_it(void **state)
{
	seed();
	struct scan reader = begin();
	struct layout layout = lay_out(0);
	for (unsigned group = 0; group < 50; group++) {
		for (unsigned i = 0; i < PLACES; i++)
			read_piece(&reader, &layout, group, i);
		if (group % 10 == 9)
			read_at(&reader, FILE_BYTES - MIB - group * 8 * KIB, 4 * KIB);
	}
	assert_true(reader.cold < 20);
	end(&reader);
}

static void no_order_is_not_replayed(void **state)
{
	seed();
	unsigned fooled = 0;
	uint64_t bytes = 0, guesses = 0;
	for (unsigned round = 0; round < 500; round++) {
		struct scan reader = begin();
		for (unsigned i = 0; i < 200; i++)
			read_at(&reader, random_below(FILE_BYTES - MIB), random_length());
		fooled += reader.guesses > 0;
		guesses += reader.guesses;
		bytes += reader.read_bytes;
		end(&reader);
	}
	print_message("%u of 500 readers fooled us, %llu guesses for 100,000 reads\n", fooled,
	              (unsigned long long)guesses);
	assert_true(fooled <= 20);
	assert_true(guesses <= 200);
}

static void reading_on_is_not_replayed(void **state)
{
	struct scan reader = begin();
	for (uint64_t at = 0; at < 64 * MIB; at += 128 * KIB)
		read_at(&reader, at, 128 * KIB);
	assert_int_equal(reader.guesses, 0);
	end(&reader);
	reader = begin(); /* four side by side */
	const uint64_t starts[] = {0, 100 * MIB, 170 * MIB, 330 * MIB};
	for (uint64_t at = 0; at < 64 * MIB; at += 128 * KIB)
		for (unsigned i = 0; i < 4; i++)
			read_at(&reader, starts[i] + at, 128 * KIB);
	assert_int_equal(reader.guesses, 0);
	end(&reader);
}

static void who_goes_elsewhere_ends_it(void **state)
{
	seed();
	struct scan reader = begin();
	struct layout layout = lay_out(0);
	for (unsigned group = 0; group < 6; group++)
		for (unsigned i = 0; i < PLACES; i++)
			read_piece(&reader, &layout, group, i);
	assert_true(reader.guesses > 0);
	unsigned guesses = reader.guesses;
	for (unsigned i = 0; i < 10; i++)
		read_at(&reader, 300 * MIB + (i * 7 % 10) * 20 * MIB + i * i * MIB / 3, 64 * KIB);
	assert_int_equal(reader.guesses, guesses);
	assert_int_equal(reader.cursors->replay.place_count, 0);
	end(&reader);
}

/* Periods that break off again and again cost no more than other reads. */
static void what_is_in_vain_is_bounded(void **state)
{
	seed();
	for (unsigned round = 0; round < 30; round++) {
		struct scan reader = begin();
		unsigned most = 3 + (unsigned)random_below(20);
		for (unsigned i = 0; i < 40; i++) {
			struct layout layout = lay_out(8 * KIB);
			unsigned first = (unsigned)random_below(25);
			for (unsigned group = 0; group < random_below(most); group++)
				for (unsigned place = 0; place < PLACES; place++)
					read_piece(&reader, &layout, first + group, place);
			read_at(&reader, random_below(FILE_BYTES - MIB), random_length());
		}
		assert_true(reader.ahead_bytes <= 3 * reader.read_bytes + 2 * MIB);
		end(&reader);
	}
}

/* Whatever is read, of a file however small: nothing outside of it is asked for. */
static void any_reads_are_survived(void **state)
{
	seed();
	for (unsigned round = 0; round < 200; round++) {
		struct replay *replay = calloc(1, sizeof(*replay));
		uint64_t size = 1 + random_below(round % 2 ? 8 * MIB : (uint64_t)8 << 40);
		uint64_t step = 1 + random_below(size / 4 + 1), at = random_below(size);
		for (unsigned i = 0; i < 300; i++) {
			uint64_t end = at + 1 + random_below(size - at);
			if (end - at > 256 * KIB)
				end = at + 256 * KIB;
			replay_read(replay, at, end);
			struct extent range;
			while (replay_next(replay, size, UINT64_MAX, &range))
				assert_true(range.start < range.end && range.end <= size);
			(void)replay_expects(replay, end);
			assert_true(replay->guess_count <= REPLAY_GUESSES_MAX);
			at = random_below(8) ? (at + step) % size : random_below(size);
		}
		free(replay);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(the_second_period_tells_of_all_others),
	        cmocka_unit_test(jitter_is_allowed_for),
	        cmocka_unit_test(order_within_a_period_may_change),
	        cmocka_unit_test(a_read_in_between_does_not_end_it),
	        cmocka_unit_test(no_order_is_not_replayed),
	        cmocka_unit_test(reading_on_is_not_replayed),
	        cmocka_unit_test(who_goes_elsewhere_ends_it),
	        cmocka_unit_test(what_is_in_vain_is_bounded),
	        cmocka_unit_test(any_reads_are_survived),
	};
	return cmocka_run_group_tests_name("cache replay", tests, NULL, NULL);
}
