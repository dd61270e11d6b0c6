/* Tests of cache/parquet and cache/columns: what a footer says, which columns count as wanted, and
 * what is fetched ahead for that. */
#include "cache/cursors.h"
#include "cache/parquet.h"
#include "tests/unit/cache_world.h"

#define GROUPS_MAX 128
#define COLUMNS_MAX 12

static void seed(void)
{
	uint64_t value = random_u64() % 1000000;
	print_message("seed %llu\n", (unsigned long long)value);
	srand48((long)value);
}

static uint64_t random_below(uint64_t bound)
{
	return ((uint64_t)lrand48() << 31 | (uint64_t)lrand48()) % bound;
}

/* -- a file -- */

/* Row groups of columns, each of its own size. */
struct file {
	unsigned groups, columns;
	uint64_t size; /* with a footer of 64 KiB */
	struct column_chunk chunks[GROUPS_MAX * COLUMNS_MAX];
};

static struct column_chunk *chunk_of(struct file *file, unsigned group, unsigned column)
{
	return &file->chunks[group * file->columns + column];
}

/* The columns' usual sizes are given; a chunk's is up to a third less or more. */
static void lay_out(struct file *file, unsigned groups, unsigned columns, const uint64_t *sizes)
{
	uint64_t at = 4;
	*file = (struct file){.groups = groups, .columns = columns};
	for (unsigned group = 0; group < groups; group++)
		for (unsigned column = 0; column < columns; column++) {
			uint64_t size = sizes[column] * 2 / 3 + random_below(sizes[column] * 2 / 3);
			*chunk_of(file, group, column) =
			        (struct column_chunk){at, at + size, group, column};
			at += size;
		}
	file->size = at + 64 * KIB;
}

/* -- its footer -- */

struct footer {
	uint8_t bytes[1 << 20];
	size_t length;
};

static void put(struct footer *footer, uint8_t byte)
{
	assert_true(footer->length < sizeof footer->bytes);
	footer->bytes[footer->length++] = byte;
}

static void put_varint(struct footer *footer, uint64_t value)
{
	for (; value >= 0x80; value >>= 7)
		put(footer, (uint8_t)(value | 0x80));
	put(footer, (uint8_t)value);
}

static void put_i64(struct footer *footer, uint8_t delta, uint64_t value)
{
	put(footer, (uint8_t)(delta << 4 | 6));
	put_varint(footer, value << 1);
}

static void put_list(struct footer *footer, uint8_t type, unsigned count)
{
	if (count < 15) {
		put(footer, (uint8_t)(count << 4 | type));
		return;
	}
	put(footer, 0xf0 | type);
	put_varint(footer, count);
}

static void put_text(struct footer *footer, const char *text)
{
	put_varint(footer, strlen(text));
	for (; *text; text++)
		put(footer, (uint8_t)*text);
}

/* Fields that are skipped, of all types there are. Ends with field 13 of the struct. */
static void put_strange_fields(struct footer *footer)
{
	put(footer, 0x11); /* 1: true */
	put(footer, 0x12); /* 2: false */
	put(footer, 0x13); /* 3: a byte */
	put(footer, 0xff);
	put(footer, 0x27); /* 5: a double */
	for (unsigned i = 0; i < 8; i++)
		put(footer, 0x80);
	put(footer, 0x1d); /* 6: a uuid */
	for (unsigned i = 0; i < 16; i++)
		put(footer, 0x0c);
	put(footer, 0x1b); /* 7: a map of text to lists of bool */
	put_varint(footer, 2);
	put(footer, 0x89);
	for (unsigned i = 0; i < 2; i++) {
		put_text(footer, "key");
		put_list(footer, 1, 3);
		put(footer, 1), put(footer, 2), put(footer, 1);
	}
	put(footer, 0x1b); /* 8: an empty map */
	put(footer, 0);
	put(footer, 0x1a); /* 9: a set of i32 */
	put_list(footer, 5, 20);
	for (unsigned i = 0; i < 20; i++)
		put_varint(footer, i * 1000);
	put(footer, 0x0c), put_varint(footer, 13 << 1); /* 13, in the long form: a struct */
	put(footer, 0x14), put_varint(footer, 300);     /* of an i16 */
	put(footer, 0);
}

static void put_column(struct footer *footer, const struct column_chunk *chunk, bool strange)
{
	uint64_t dictionary = strange ? (chunk->end - chunk->start) / 3 : 0;
	put_i64(footer, 2, 0); /* ColumnChunk 2: file_offset */
	put(footer, 0x1c);     /* 3: meta_data */
	put(footer, 0x15), put_varint(footer, 2 << 1);
	put(footer, 0x19), put_list(footer, 5, 2); /* 2: encodings */
	put_varint(footer, 0), put_varint(footer, 6);
	put(footer, 0x19), put_list(footer, 8, 1); /* 3: path_in_schema */
	put_text(footer, "a column");
	put_i64(footer, 3, 3 * (chunk->end - chunk->start)); /* 6: total_uncompressed_size */
	put_i64(footer, 1, chunk->end - chunk->start);
	put_i64(footer, 2, chunk->start + dictionary); /* 9: data_page_offset */
	if (dictionary)
		put_i64(footer, 2, chunk->start); /* 11: dictionary_page_offset */
	put(footer, 0);
	put(footer, 0);
}

static void make_footer(struct footer *footer, struct file *file, bool strange)
{
	footer->length = 0;
	put(footer, 0x15), put_varint(footer, 2 << 1); /* FileMetaData 1: version */
	put(footer, 0x19), put_list(footer, 12, 1);    /* 2: schema */
	put(footer, 0x48), put_text(footer, "schema");
	put(footer, 0);
	put_i64(footer, 1, 1000000); /* 3: num_rows */
	put(footer, 0x19), put_list(footer, 12, file->groups);
	for (unsigned group = 0; group < file->groups; group++) {
		put(footer, 0x19), put_list(footer, 12, file->columns);
		for (unsigned column = 0; column < file->columns; column++)
			put_column(footer, chunk_of(file, group, column), strange);
		put_i64(footer, 1, 12345);
		put(footer, 0);
	}
	if (strange) {
		put(footer, 0x1c); /* 5 */
		put_strange_fields(footer);
		put(footer, 0);
	}
	put(footer, 0);
}

static const uint64_t some_sizes[COLUMNS_MAX] = {20 * KIB,  900 * KIB, 900 * KIB, 300 * KIB,
                                                 700 * KIB, 20 * KIB,  1 * MIB,   3 * MIB,
                                                 100 * KIB, 500 * KIB, 2 * MIB,   60 * KIB};

static void a_footer_tells_where_columns_lie(void **state)
{
	static struct file file;
	static struct footer footer;
	seed();
	for (unsigned round = 0; round < 20; round++) {
		lay_out(&file, 1 + (unsigned)random_below(40),
		        1 + (unsigned)random_below(COLUMNS_MAX), some_sizes);
		make_footer(&footer, &file, round % 2);
		struct column_chunk *chunks = NULL;
		size_t count =
		        parquet_column_chunks(footer.bytes, footer.length, file.size, &chunks);
		assert_int_equal(count, file.groups * file.columns);
		assert_memory_equal(chunks, file.chunks, count * sizeof(*chunks));
		free(chunks);
	}
	/* Cut short, or with any byte changed: something else or nothing, and no crash. */
	lay_out(&file, 3, 4, some_sizes);
	make_footer(&footer, &file, true);
	for (size_t length = 0; length < footer.length; length++) {
		struct column_chunk *chunks = NULL;
		uint8_t *copy = malloc(length + 1);
		memcpy(copy, footer.bytes, length);
		assert_int_equal(parquet_column_chunks(copy, length, file.size, &chunks), 0);
		assert_null(chunks);
		free(copy);
	}
	for (size_t i = 0; i < footer.length * 8; i++) {
		struct column_chunk *chunks = NULL;
		struct columns *columns = NULL;
		footer.bytes[i / 8] ^= (uint8_t)(1 << i % 8);
		size_t count =
		        parquet_column_chunks(footer.bytes, footer.length, file.size, &chunks);
		for (size_t k = 0; k < count; k++)
			assert_true(chunks[k].start < chunks[k].end && chunks[k].end <= file.size);
		(void)columns_new(chunks, count, &columns);
		columns_free(columns);
		free(chunks);
		footer.bytes[i / 8] ^= (uint8_t)(1 << i % 8);
	}
}

static void only_whole_parquet_files_have_a_footer(void **state)
{
	static const uint8_t plain[] = {100, 0, 0, 0, 'P', 'A', 'R', '1'},
	                     encrypted[] = {100, 0, 0, 0, 'P', 'A', 'R', 'E'},
	                     large[] = {1, 0, 0, 1, 'P', 'A', 'R', '1'};
	assert_int_equal(parquet_footer_bytes(plain, 112), 100);
	assert_int_equal(parquet_footer_bytes(plain, 111), 0);
	assert_int_equal(parquet_footer_bytes(plain, 8), 0);
	assert_int_equal(parquet_footer_bytes(encrypted, 1000), 0);
	assert_int_equal(parquet_footer_bytes(large, (uint64_t)1 << 40), 0);
}

static void chunks_that_overlap_are_not_planned_with(void **state)
{
	struct column_chunk chunks[] = {{4, 100, 0, 0}, {100, 200, 0, 1}, {200, 300, 1, 0}};
	struct columns *columns = NULL;
	assert_int_equal(columns_new(chunks, 3, &columns), 0);
	columns_free(columns);
	chunks[1].end = 201;
	assert_int_equal(columns_new(chunks, 3, &columns), -ERR_UNSUPPORTED);
	chunks[1].end = 200;
	chunks[1].group = 2;
	assert_int_equal(columns_new(chunks, 3, &columns), -ERR_UNSUPPORTED);
	assert_int_equal(columns_new(chunks, 0, &columns), -ERR_UNSUPPORTED);
}

/* -- a reader, and what is fetched for it -- */

struct scan {
	struct file *file;
	struct cursors *cursors;
	struct extents here;
	uint64_t read_bytes, ahead_bytes;
	unsigned chunks, cold, partly; /* read; of them such of which nothing or not all was here */
};

static struct scan begin(struct file *file)
{
	struct scan scan = {.file = file};
	struct columns *columns = NULL;
	assert_int_equal(cursors_new(&scan.cursors), 0);
	assert_int_equal(columns_new(file->chunks, file->groups * file->columns, &columns), 0);
	cursors_know_columns(scan.cursors, columns);
	return scan;
}

static void end(struct scan *scan)
{
	cursors_free(scan->cursors);
	extents_release(&scan->here);
}

static void fetched(struct scan *scan, const struct extent *range)
{
	assert_int_equal(extents_reserve(&scan->here, 1), 0);
	extents_add(&scan->here, range->start, range->end);
}

static void read_piece(struct scan *scan, uint64_t start, uint64_t stop)
{
	uint64_t here = extents_count(&scan->here, start, stop);
	struct cursors_read read = {.start = start,
	                            .end = stop,
	                            .missing = stop - start - here,
	                            .size = scan->file->size,
	                            .window_max = WINDOW_BYTES_MAX};
	struct extent ahead;
	cursors_read(scan->cursors, &read, &ahead);
	fetched(scan, &(struct extent){start, stop});
	scan->read_bytes += stop - start;
	do {
		assert_true(ahead.end <= scan->file->size);
		uint64_t known = extents_count(&scan->here, ahead.start, ahead.end);
		cursors_refund(scan->cursors, known);
		cursors_fetching(scan->cursors, ahead.start, ahead.end);
		fetched(scan, &ahead);
		scan->ahead_bytes += ahead.end - ahead.start - known;
	} while (cursors_replay(scan->cursors, &read, &ahead));
}

/* As the kernel reads it: 256 KiB at a time, and a little further than the end. */
static void read_chunk(struct scan *scan, unsigned group, unsigned column, uint64_t beyond)
{
	const struct column_chunk *chunk = chunk_of(scan->file, group, column);
	uint64_t here = extents_count(&scan->here, chunk->start, chunk->end);
	scan->chunks++;
	scan->cold += here == 0;
	scan->partly += here > 0 && here < chunk->end - chunk->start;
	for (uint64_t at = chunk->start, next; at < chunk->end; at = next) {
		next = at + 256 * KIB;
		if (next > chunk->end)
			next = chunk->end + beyond;
		read_piece(scan, at, next < scan->file->size ? next : scan->file->size);
	}
}

static void tell(const struct scan *scan)
{
	print_message("%u chunks of %u not here, %u not whole; ahead %.2f times what was read\n",
	              scan->cold, scan->chunks, scan->partly,
	              (double)scan->ahead_bytes / (double)scan->read_bytes);
}

static void wanted_columns_are_fetched_ahead(void **state)
{
	static struct file file;
	static const unsigned wanted[] = {1, 2, 8, 9};
	seed();
	lay_out(&file, 100, COLUMNS_MAX, some_sizes);
	struct scan scan = begin(&file);
	for (unsigned group = 0; group < file.groups; group++)
		for (unsigned i = 0; i < 4; i++)
			read_chunk(&scan, group, wanted[i], 128 * KIB);
	tell(&scan);
	assert_in_range(scan.cold, 1, 20); /* small neighbours may look as if they were wanted */
	assert_in_range(scan.partly, 0, 20);
	assert_true(scan.ahead_bytes < scan.read_bytes);
	end(&scan);
}

/* Several threads, each with a row group of its own, in no order. */
static void threads_may_overtake_each_other(void **state)
{
	enum { THREADS = 8 };
	static struct file file;
	static const unsigned wanted[] = {1, 3, 5, 6};
	seed();
	lay_out(&file, 100, COLUMNS_MAX, some_sizes);
	struct scan scan = begin(&file);
	unsigned groups[THREADS], steps[THREADS] = {0}, next = 0;
	for (unsigned i = 0; i < THREADS; i++)
		groups[i] = next++;
	for (unsigned left = file.groups * 4; left;) {
		unsigned i = (unsigned)random_below(THREADS);
		if (groups[i] >= file.groups)
			continue;
		read_chunk(&scan, groups[i], wanted[steps[i]++], 128 * KIB);
		left--;
		if (steps[i] == 4) {
			steps[i] = 0;
			groups[i] = next++;
		}
	}
	tell(&scan);
	assert_in_range(scan.cold, 1, 40);
	assert_true(scan.ahead_bytes < scan.read_bytes);
	end(&scan);
}

static void another_query_wants_other_columns(void **state)
{
	static struct file file;
	seed();
	lay_out(&file, 100, COLUMNS_MAX, some_sizes);
	struct scan scan = begin(&file);
	/* One that ends early leaves guesses behind. */
	for (unsigned group = 0; group < 40; group++)
		for (unsigned column = 1; column < 4; column++)
			read_chunk(&scan, group, column, 0);
	uint64_t ahead = scan.ahead_bytes, read = scan.read_bytes;
	scan.cold = scan.partly = scan.chunks = 0;
	for (unsigned group = 0; group < file.groups; group++) {
		read_chunk(&scan, group, 4, 0);
		read_chunk(&scan, group, 9, 0);
	}
	print_message("%u chunks of %u not here, %u not whole\n", scan.cold, scan.chunks,
	              scan.partly);
	assert_in_range(scan.cold, 1, 40);
	assert_true(scan.ahead_bytes - ahead < 2 * (scan.read_bytes - read));
	end(&scan);
}

/* A filter on one column that leaves out nine of ten row groups for the other. */
static void what_is_seldom_wanted_is_not_fetched(void **state)
{
	static struct file file;
	seed();
	lay_out(&file, 100, COLUMNS_MAX, some_sizes);
	struct scan scan = begin(&file);
	uint64_t wanted = 0;
	for (unsigned group = 0; group < file.groups; group++) {
		read_chunk(&scan, group, 8, 64 * KIB);
		if (group % 10 == 5)
			read_chunk(&scan, group, 7, 64 * KIB);
	}
	for (unsigned group = 0; group < file.groups; group++) {
		const struct column_chunk *chunk = chunk_of(&file, group, 7);
		if (group % 10 != 5)
			wanted += extents_count(&scan.here, chunk->start, chunk->end);
	}
	print_message("%llu MiB of what was left out\n", (unsigned long long)(wanted / MIB));
	assert_true(wanted < 30 * MIB); /* of 270 */
	end(&scan);
}

/* What a read costs must not grow with the number of columns. */
static void wide_tables_cost_little(void **state)
{
	enum { WIDE = 6000, GROUPS = 20 };
	struct column_chunk *chunks = calloc(WIDE * GROUPS, sizeof(*chunks));
	struct columns *columns = NULL;
	struct extent range;
	for (uint32_t i = 0; i < WIDE * GROUPS; i++)
		chunks[i] = (struct column_chunk){4 + i * 100 * KIB, 4 + (i + 1) * 100 * KIB,
		                                  i / WIDE, i % WIDE};
	assert_int_equal(columns_new(chunks, WIDE * GROUPS, &columns), 0);
	int64_t before = clock_monotonic_ms();
	for (unsigned i = 0; i < WIDE * GROUPS; i++) {
		columns_read(columns, chunks[i].start, chunks[i].end);
		while (columns_next(columns, 16 * MIB, &range))
			;
	}
	int64_t took = clock_monotonic_ms() - before;
	print_message("%u chunks of %u columns: %lld ms\n", WIDE * GROUPS, WIDE, (long long)took);
	assert_true(took < 5000);
	columns_free(columns);
	free(chunks);
}

static void what_will_not_come_is_asked_for_again(void **state)
{
	static struct file file;
	lay_out(&file, 10, 2, some_sizes + 1);
	struct columns *columns = NULL;
	struct extent first, again;
	assert_int_equal(columns_new(file.chunks, 20, &columns), 0);
	for (unsigned group = 0; group < 2; group++) {
		const struct column_chunk *chunk = chunk_of(&file, group, 0);
		columns_read(columns, chunk->start, chunk->end);
	}
	assert_true(columns_next(columns, 16 * MIB, &first));
	assert_int_equal(first.start, chunk_of(&file, 2, 0)->start);
	assert_int_equal(first.end, chunk_of(&file, 2, 0)->end);
	columns_withdraw(columns, first.start, first.end);
	assert_true(columns_next(columns, 16 * MIB, &again));
	assert_memory_equal(&first, &again, sizeof(first));
	/* Too little room: later. */
	assert_false(columns_next(columns, 1, &again));
	assert_true(columns_next(columns, 16 * MIB, &again));
	assert_int_equal(again.start, chunk_of(&file, 3, 0)->start);
	columns_free(columns);
}

/* -- with a store -- */

static void settle(struct world *world)
{
	for (int same = 0; same < 10;) {
		unsigned gets = world->probe.gets;
		usleep(20000);
		same = gets == world->probe.gets && !world->probe.bytes_under_way ? same + 1 : 0;
	}
}

static void assert_local(struct blob *blob, const uint8_t *bytes, uint64_t offset, uint64_t length)
{
	struct message message;
	assert_int_equal(blob_ensure(blob, offset, length, &message), 0);
	assert_blob_bytes(blob, bytes + offset, length, (off_t)offset);
}

/* Who opens the file reads its end and closes it; who reads the columns opens it anew. */
static void a_file_with_a_footer_is_read_by_columns(void **state)
{
	static struct file file;
	static struct footer footer;
	struct world *world = *state;
	lay_out(&file, 6, COLUMNS_MAX, some_sizes);
	make_footer(&footer, &file, true);
	file.size += footer.length + PARQUET_TAIL_BYTES - 64 * KIB;
	uint8_t *bytes = make_bytes(file.size, 1), *tail = bytes + file.size - PARQUET_TAIL_BYTES;
	memcpy(tail - footer.length, footer.bytes, footer.length);
	store_u32(tail, (uint32_t)footer.length);
	memcpy(tail + 4, "PAR1", 4);
	struct content content = store_bytes(world, bytes, file.size);
	struct blob *blob = NULL;
	uint64_t read = 0;
	for (unsigned open = 0; open < 2; open++) {
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		assert_local(blob, bytes, file.size - PARQUET_TAIL_BYTES, PARQUET_TAIL_BYTES);
		settle(world);
		if (open == 0)
			blob_unref(blob);
	}
	world->probe.delay_ms = 1;
	for (unsigned group = 0; group < file.groups; group++)
		for (unsigned column = 1; column < 3; column++) {
			const struct column_chunk *chunk = chunk_of(&file, group, column);
			for (uint64_t at = chunk->start; at < chunk->end; at += 64 * KIB) {
				uint64_t length = chunk->end - at;
				length = length < 64 * KIB ? length : 64 * KIB;
				assert_local(blob, bytes, at, length);
				read += length;
			}
		}
	settle(world);
	struct cache_stats stats = stats_of(world);
	print_message("read %llu KiB, fetched %llu KiB, ahead %llu KiB of which used %llu\n",
	              (unsigned long long)(read / KIB),
	              (unsigned long long)(stats.fetched_bytes / KIB),
	              (unsigned long long)(stats.ahead_bytes / KIB),
	              (unsigned long long)(stats.ahead_used_bytes / KIB));
	assert_true(stats.ahead_used_bytes > read / 2);
	assert_true(stats.fetched_bytes < read * 7 / 4); /* chunks of the store reach beyond */
	blob_unref(blob);
	free(bytes);
}

static void any_reads_are_survived(void **state)
{
	static struct file file;
	seed();
	for (unsigned round = 0; round < 30; round++) {
		lay_out(&file, 1 + (unsigned)random_below(60),
		        1 + (unsigned)random_below(COLUMNS_MAX), some_sizes);
		struct scan scan = begin(&file);
		for (unsigned i = 0; i < 2000; i++) {
			uint64_t start = random_below(file.size - 1);
			uint64_t length = 1 + random_below(random_below(4) ? 300 * KIB : 8 * MIB);
			read_piece(&scan, start,
			           length < file.size - start ? start + length : file.size);
			if (random_below(50) == 0)
				cursors_withdraw(scan.cursors, start, start + length);
		}
		assert_true(scan.ahead_bytes <= 2 * scan.read_bytes + 16 * MIB);
		end(&scan);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(a_footer_tells_where_columns_lie),
	        cmocka_unit_test(only_whole_parquet_files_have_a_footer),
	        cmocka_unit_test(chunks_that_overlap_are_not_planned_with),
	        cmocka_unit_test(wanted_columns_are_fetched_ahead),
	        cmocka_unit_test(threads_may_overtake_each_other),
	        cmocka_unit_test(another_query_wants_other_columns),
	        cmocka_unit_test(what_is_seldom_wanted_is_not_fetched),
	        cmocka_unit_test(wide_tables_cost_little),
	        cmocka_unit_test(what_will_not_come_is_asked_for_again),
	        cmocka_unit_test(any_reads_are_survived),
	        cmocka_unit_test_setup_teardown(a_file_with_a_footer_is_read_by_columns, set_up,
	                                        tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
