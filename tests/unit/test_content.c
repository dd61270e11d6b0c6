/*
 * File content: what is stored can be read, and an edit gives what storing the result from
 * scratch gives. LAKE_TEST_SEED repeats a run, LAKE_TEST_CASES makes it longer.
 */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/content_list.h"

#include <cmocka.h>

static uint64_t seed_of_run;

static uint64_t next_random(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static void fill_random(uint8_t *bytes, size_t length, uint64_t *seed)
{
	for (size_t i = 0; i < length; i += 8) {
		uint64_t value = next_random(seed);

		memcpy(bytes + i, &value, length - i < 8 ? length - i : 8);
	}
}

/* -- fixture -- */

struct fixture {
	struct object_store *store;
	struct odb *odb;
	struct packer *packer;
	struct message message;
	int fd; /* the file to store */
};

static int setup(void **state)
{
	struct fixture *fixture = calloc(1, sizeof(*fixture));

	assert_int_equal(object_memory_open(&fixture->store), 0);
	assert_int_equal(odb_new(fixture->store, NULL, &fixture->odb), 0);
	assert_int_equal(packer_new(fixture->odb, &fixture->packer), 0);
	fixture->fd = memfd_create("content", MFD_CLOEXEC);
	assert_true(fixture->fd >= 0);
	*state = fixture;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *fixture = *state;

	close(fixture->fd);
	packer_free(fixture->packer);
	odb_free(fixture->odb);
	object_store_free(fixture->store);
	free(fixture);
	return 0;
}

static void write_at(struct fixture *fixture, uint64_t offset, const void *bytes, size_t length)
{
	assert_int_equal(write_full(fixture->fd, bytes, length, (off_t)offset), 0);
}

static void write_random(struct fixture *fixture, uint64_t offset, uint64_t length, uint64_t *seed)
{
	size_t step = 1u << 20;
	uint8_t *bytes = malloc(step);

	for (uint64_t at = 0; at < length; at += step) {
		size_t part = length - at < step ? (size_t)(length - at) : step;

		fill_random(bytes, part, seed);
		write_at(fixture, offset + at, bytes, part);
	}
	free(bytes);
}

static struct content store_file(struct fixture *fixture, uint64_t size)
{
	struct content content;

	if (content_store(fixture->packer, fixture->fd, size, NULL, &content, &fixture->message))
		fail_msg("%s", fixture->message.text);
	assert_int_equal(content.size, size);
	return content;
}

static void flush(struct fixture *fixture)
{
	if (packer_flush(fixture->packer, &fixture->message))
		fail_msg("%s", fixture->message.text);
}

/* A new odb and packer: nothing cached, nothing known. */
static void start_anew(struct fixture *fixture)
{
	packer_free(fixture->packer);
	odb_free(fixture->odb);
	assert_int_equal(odb_new(fixture->store, NULL, &fixture->odb), 0);
	assert_int_equal(packer_new(fixture->odb, &fixture->packer), 0);
}

static void expect_bytes(struct fixture *fixture, const struct content *content, uint64_t offset,
                         size_t length)
{
	uint8_t *expected = malloc(length + 1), *found = malloc(length + 1);

	assert_int_equal(read_full(fixture->fd, expected, length, (off_t)offset), length);
	memset(found, 0xee, length + 1);
	if (content_read(fixture->odb, content, offset, length, found, &fixture->message))
		fail_msg("%s", fixture->message.text);
	assert_memory_equal(found, expected, length);
	assert_int_equal(found[length], 0xee);
	free(expected);
	free(found);
}

struct coverage {
	uint64_t at;
	unsigned chunks, holes;
	bool was_hole;
};

static int cover(void *context, const struct piece *piece)
{
	struct coverage *coverage = context;

	if (coverage->chunks + coverage->holes)
		assert_int_equal(piece->offset, coverage->at);
	assert_false(piece->hole && coverage->was_hole);
	coverage->at = piece->offset + piece->length;
	coverage->was_hole = piece->hole;
	coverage->holes += piece->hole;
	coverage->chunks += !piece->hole;
	return 0;
}

static struct coverage pieces_of(struct fixture *fixture, const struct content *content)
{
	struct coverage coverage = {0};

	assert_int_equal(content_pieces(fixture->odb, content, 0, content->size, cover, &coverage,
	                                &fixture->message),
	                 0);
	assert_int_equal(coverage.at, content->size);
	return coverage;
}

/* -- where chunks lie -- */

struct storing {
	struct fixture *fixture;
	int fd;
	uint64_t size;
	struct content content;
	pthread_t thread;
	int error;
};

static void *store_one(void *argument)
{
	struct storing *storing = argument;

	storing->error = content_store(storing->fixture->packer, storing->fd, storing->size, NULL,
	                               &storing->content, NULL);
	return NULL;
}

struct layout {
	struct place last;
	unsigned chunks, breaks;
	unsigned first; /* chunks that begin in the file's first 2 MiB */
};

static int lie(void *context, const struct piece *piece)
{
	struct layout *layout = context;
	const struct place *place = &piece->pointer.place, *last = &layout->last;

	if (layout->chunks)
		layout->breaks += memcmp(place->pack, last->pack, sizeof(last->pack)) != 0 ||
		                  place->offset != last->offset + last->stored;
	layout->first += piece->offset <= 2u << 20;
	layout->chunks++;
	layout->last = *place;
	return 0;
}

/* Two long files that are stored at once do not come to lie in turns. */
static void test_long_files_lie_apart(void **state)
{
	struct fixture *fixture = *state;
	enum { SIZE = 24 << 20, PACKS = 8 };
	struct storing files[2] = {0};
	struct layout layouts[2] = {0};
	uint8_t *bytes = malloc(SIZE);
	uint64_t seed = seed_of_run;

	for (unsigned i = 0; i < 2; i++) {
		fill_random(bytes, SIZE, &seed);
		files[i] = (struct storing){
		        .fixture = fixture, .size = SIZE, .fd = memfd_create("long", MFD_CLOEXEC)};
		assert_int_equal(write_full(files[i].fd, bytes, SIZE, 0), 0);
	}
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&files[i].thread, NULL, store_one, &files[i]), 0);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(files[i].thread, NULL);
		assert_int_equal(files[i].error, 0);
	}
	flush(fixture);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(content_pieces(fixture->odb, &files[i].content, 0, SIZE, lie,
		                                &layouts[i], &fixture->message),
		                 0);
		close(files[i].fd);
	}
	/* Beginnings may be in each other's way, and a file goes on in the next pack. */
	for (unsigned i = 0; i < 2; i++)
		assert_true(layouts[i].breaks <= layouts[0].first + layouts[1].first + PACKS);
	print_message("%u and %u breaks among %u chunks\n", layouts[0].breaks, layouts[1].breaks,
	              layouts[0].chunks);
	free(bytes);
}

/* -- kinds and holes -- */

static void test_kinds(void **state)
{
	struct fixture *fixture = *state;
	uint64_t seed = 1;
	struct content content = store_file(fixture, 0);

	assert_int_equal(content.kind, CONTENT_EMPTY);
	assert_true(pointer_is_none(&content.pointer));
	expect_bytes(fixture, &content, 0, 0);

	write_random(fixture, 0, 1, &seed);
	content = store_file(fixture, 1);
	assert_int_equal(content.kind, CONTENT_CHUNK);
	expect_bytes(fixture, &content, 0, 1);

	write_random(fixture, 0, 1000000, &seed);
	content = store_file(fixture, 1000000);
	assert_int_equal(content.kind, CONTENT_LIST);
	expect_bytes(fixture, &content, 0, 1000000);
	expect_bytes(fixture, &content, 12345, 700000);
	expect_bytes(fixture, &content, 999999, 1);
	flush(fixture);
	start_anew(fixture);
	expect_bytes(fixture, &content, 0, 1000000);
}

static void test_zeroes_are_holes_sparse_or_not(void **state)
{
	struct fixture *fixture = *state;
	static const uint64_t sizes[] = {1, HOLE_UNIT - 1, HOLE_UNIT, HOLE_UNIT + 1, 5000000};
	uint8_t *zeroes = calloc(1, 5000000);

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct content sparse, written;
		struct coverage coverage;

		assert_int_equal(ftruncate(fixture->fd, 0), 0);
		assert_int_equal(ftruncate(fixture->fd, (off_t)sizes[i]), 0);
		sparse = store_file(fixture, sizes[i]);
		write_at(fixture, 0, zeroes, sizes[i]);
		written = store_file(fixture, sizes[i]);
		assert_true(content_equal(&sparse, &written));
		assert_int_equal(sparse.kind, CONTENT_LIST);
		coverage = pieces_of(fixture, &sparse);
		assert_int_equal(coverage.holes, 1);
		assert_int_equal(coverage.chunks, 0);
		expect_bytes(fixture, &sparse, 0, sizes[i]);
	}
	free(zeroes);
}

/* Units, not bytes, make holes: zeroes across a unit's edge belong to chunks. */
static void test_hole_edges(void **state)
{
	struct fixture *fixture = *state;
	uint64_t seed = 2, size = 10 * HOLE_UNIT + 100;
	struct content content;
	struct coverage coverage;

	write_random(fixture, 0, HOLE_UNIT + 1, &seed);
	write_random(fixture, 4 * HOLE_UNIT - 1, 1, &seed);
	write_at(fixture, 4 * HOLE_UNIT - 1, "x", 1);
	write_at(fixture, 6 * HOLE_UNIT, "x", 1);
	assert_int_equal(ftruncate(fixture->fd, (off_t)size), 0);
	/* data 0-1 (two units), hole 2, data 3, holes 4-5, data 6, holes 7-10 */
	content = store_file(fixture, size);
	coverage = pieces_of(fixture, &content);
	assert_int_equal(coverage.holes, 3);
	assert_in_range(coverage.chunks, 3, 4);
	expect_bytes(fixture, &content, 0, size);
}

static void test_huge_sparse_file_is_quick(void **state)
{
	struct fixture *fixture = *state;
	uint64_t size = FILE_BYTES_MAX, seed = 3;
	struct content content, edited;
	struct extent dirty = {.start = size / 2, .end = size / 2 + 1};
	int64_t start_ms = clock_monotonic_ms();

	assert_int_equal(ftruncate(fixture->fd, (off_t)size), 0);
	write_random(fixture, 1u << 30, 100000, &seed);
	write_at(fixture, size - 1, "x", 1);
	content = store_file(fixture, size);
	assert_int_equal(pieces_of(fixture, &content).holes, 2);
	expect_bytes(fixture, &content, (1u << 30) - 1000, 200000);
	write_at(fixture, size / 2, "x", 1);
	assert_int_equal(content_store_edit(fixture->packer, fixture->odb,
	                                    &(struct edit_base){.content = &content}, fixture->fd,
	                                    size, &dirty, 1, NULL, &edited, NULL),
	                 0);
	content = store_file(fixture, size);
	assert_true(content_equal(&content, &edited));
	assert_true(clock_monotonic_ms() - start_ms < 1000);
	assert_int_equal(content_store(fixture->packer, fixture->fd, size + 1, NULL, &content,
	                               &fixture->message),
	                 -ERR_TOO_LARGE);
}

static void test_file_that_became_shorter(void **state)
{
	struct fixture *fixture = *state;
	struct content content;
	uint64_t seed = 4;

	write_random(fixture, 0, 100000, &seed);
	assert_int_equal(content_store(fixture->packer, fixture->fd, 100001, NULL, &content,
	                               &fixture->message),
	                 -ERR_BUSY);
	assert_int_equal(content_store(fixture->packer, fixture->fd, 10000000, NULL, &content,
	                               &fixture->message),
	                 -ERR_BUSY);
	assert_int_equal(ftruncate(fixture->fd, 0), 0);
	assert_int_equal(content_store(fixture->packer, fixture->fd, 10000000, NULL, &content,
	                               &fixture->message),
	                 -ERR_BUSY);
}

static int cancel(void *context, const char *what, uint64_t done, uint64_t total, const char *unit)
{
	assert_true(done <= total);
	return 1;
}

static void test_progress_can_cancel(void **state)
{
	struct fixture *fixture = *state;
	struct progress progress = {.report = cancel};
	struct content content;
	uint64_t seed = 5;

	write_random(fixture, 0, 300000, &seed);
	assert_int_equal(content_store(fixture->packer, fixture->fd, 300000, &progress, &content,
	                               &fixture->message),
	                 -ERR_INTERRUPTED);
}

/* -- edits -- */

#define DIRTY_MAX 64

/* The dirty ranges of a file since its base was stored: kept like a staging file keeps them. */
struct dirty {
	struct extent extents[DIRTY_MAX];
	size_t count;
};

static void dirty_add(struct dirty *dirty, uint64_t start, uint64_t end)
{
	struct extent merged = {.start = start, .end = end};
	struct dirty out = {0};
	bool placed = false;

	if (start == end)
		return;
	for (size_t i = 0; i < dirty->count; i++) {
		const struct extent *extent = &dirty->extents[i];

		if (extent->end < merged.start) {
			out.extents[out.count++] = *extent;
		} else if (extent->start > merged.end) {
			if (!placed)
				out.extents[out.count++] = merged;
			placed = true;
			out.extents[out.count++] = *extent;
		} else {
			merged.start = extent->start < merged.start ? extent->start : merged.start;
			merged.end = extent->end > merged.end ? extent->end : merged.end;
		}
	}
	if (!placed)
		out.extents[out.count++] = merged;
	*dirty = out;
}

static void dirty_cut(struct dirty *dirty, uint64_t size)
{
	while (dirty->count && dirty->extents[dirty->count - 1].start >= size)
		dirty->count--;
	if (dirty->count && dirty->extents[dirty->count - 1].end > size)
		dirty->extents[dirty->count - 1].end = size;
}

struct edited_file {
	struct fixture *fixture;
	struct content base;
	uint64_t size, size_max;
	struct dirty dirty;
	uint64_t *seed;
};

static uint64_t random_below(uint64_t *seed, uint64_t limit)
{
	return limit ? next_random(seed) % limit : 0;
}

/* Lengths from bytes to the whole, offsets often on or next to unit edges. */
static uint64_t random_length(struct edited_file *file)
{
	unsigned bits = (unsigned)random_below(file->seed,
	                                       64 - (unsigned)__builtin_clzll(file->size_max | 1));

	return random_below(file->seed, (uint64_t)2 << bits);
}

static uint64_t random_offset(struct edited_file *file, uint64_t limit)
{
	uint64_t offset = random_below(file->seed, limit + 1);

	switch (random_below(file->seed, 4)) {
	case 0:
		return offset - offset % HOLE_UNIT;
	case 1:
		offset -= offset % HOLE_UNIT;
		offset += random_below(file->seed, 3);
		return offset > limit ? limit : offset ? offset - 1 : 0;
	default:
		return offset;
	}
}

static void set_size(struct edited_file *file, uint64_t size)
{
	if (size < file->size)
		dirty_cut(&file->dirty, size);
	else if (file->size < file->base.size) /* was cut before: what comes back is zero */
		dirty_add(&file->dirty, file->size,
		          size < file->base.size ? size : file->base.size);
	assert_int_equal(ftruncate(file->fixture->fd, (off_t)size), 0);
	file->size = size;
}

static void edit_once(struct edited_file *file)
{
	uint64_t offset = random_offset(file, file->size), length = random_length(file);
	uint64_t kind = random_below(file->seed, 10);

	if (kind == 0) { /* truncate or extend */
		set_size(file, random_below(file->seed, 3) ? offset
		                                           : random_offset(file, file->size_max));
		return;
	}
	if (kind == 1)
		offset = file->size; /* append */
	if (offset + length > file->size_max)
		length = file->size_max - offset;
	if (offset + length > file->size)
		set_size(file, offset + length);
	if (length == 0)
		return;
	if (kind <= 3) { /* punch */
		assert_int_equal(fallocate(file->fixture->fd,
		                           FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		                           (off_t)offset, (off_t)length),
		                 0);
	} else if (kind == 4) { /* write zeroes, or one byte over and over */
		uint8_t *bytes = malloc(length);

		memset(bytes, random_below(file->seed, 2) ? 0 : 'x', length);
		write_at(file->fixture, offset, bytes, length);
		free(bytes);
	} else {
		write_random(file->fixture, offset, length, file->seed);
	}
	dirty_add(&file->dirty, offset, offset + length);
}

/* The file as an edit sees it: bytes outside the dirty extents are not to be read, so they are
 * something else. */
static int masked_copy(const struct edited_file *file)
{
	int fd = memfd_create("masked", MFD_CLOEXEC);
	uint8_t *bytes = malloc(file->size + 1);

	memset(bytes, 0xdd, file->size);
	assert_int_equal(ftruncate(fd, (off_t)file->size), 0);
	for (size_t i = 0; i < file->dirty.count; i++) {
		const struct extent *extent = &file->dirty.extents[i];
		size_t length = (size_t)(extent->end - extent->start);

		assert_int_equal(read_full(file->fixture->fd, bytes + extent->start, length,
		                           (off_t)extent->start),
		                 length);
	}
	assert_int_equal(write_full(fd, bytes, file->size, 0), 0);
	free(bytes);
	return fd;
}

static void check_edit(struct edited_file *file, const char *what, unsigned number)
{
	struct fixture *fixture = file->fixture;
	struct content edited, stored;
	int fd = random_below(file->seed, 2) ? masked_copy(file) : dup(fixture->fd);

	if (content_store_edit(fixture->packer, fixture->odb,
	                       &(struct edit_base){.content = &file->base}, fd, file->size,
	                       file->dirty.extents, file->dirty.count, NULL, &edited,
	                       &fixture->message))
		fail_msg("%s: seed %llu, case %u: %s", what, (unsigned long long)seed_of_run,
		         number, fixture->message.text);
	close(fd);
	stored = store_file(fixture, file->size);
	if (!content_equal(&edited, &stored) || edited.kind != stored.kind)
		fail_msg("%s: seed %llu, case %u: another id than from scratch", what,
		         (unsigned long long)seed_of_run, number);
	file->base = edited;
	file->dirty = (struct dirty){0};
}

static unsigned cases(unsigned usual)
{
	const char *factor = getenv("LAKE_TEST_CASES");

	return factor ? usual * (unsigned)atoi(factor) : usual;
}

static void run_edits(struct fixture *fixture, uint64_t size_max, unsigned count, unsigned files,
                      const char *what)
{
	uint64_t seed = seed_of_run;

	for (unsigned i = 0; i < count; i++) {
		static struct edited_file file;

		if (i % (count / files) == 0) { /* a new file */
			file = (struct edited_file){
			        .fixture = fixture, .size_max = size_max, .seed = &seed};
			start_anew(fixture);
			assert_int_equal(ftruncate(fixture->fd, 0), 0);
			file.size = random_below(&seed, size_max + 1);
			write_random(fixture, 0, file.size, &seed);
			file.base = store_file(fixture, file.size);
		}
		for (uint64_t edits = 1 + random_below(&seed, 5); edits; edits--)
			edit_once(&file);
		check_edit(&file, what, i);
		if (random_below(&seed, 10) == 0 && file.size)
			expect_bytes(fixture, &file.base, 0, file.size);
		if (random_below(&seed, 50) == 0) {
			flush(fixture);
			start_anew(fixture);
		}
	}
}

static void test_edits_of_small_files(void **state)
{
	run_edits(*state, 400000, cases(3000), 60, "small files");
}

static void test_edits_of_medium_files(void **state)
{
	run_edits(*state, 6u << 20, cases(600), 20, "medium files");
}

/* Several list nodes, two levels. */
static void test_edits_of_large_files(void **state)
{
	run_edits(*state, 80u << 20, cases(30), 3, "large files");
}

/* Three levels of lists: a byte in every second unit of 2 GiB. */
static void test_edits_of_deep_lists(void **state)
{
	struct fixture *fixture = *state;
	uint64_t seed = seed_of_run, size = (uint64_t)2 << 30;
	struct edited_file file = {
	        .fixture = fixture, .size = size, .size_max = size + 1000000, .seed = &seed};
	struct record *record;
	struct odb_stats before, after;

	assert_int_equal(ftruncate(fixture->fd, (off_t)size), 0);
	for (uint64_t at = 0; at < size; at += 2 * HOLE_UNIT) {
		uint64_t value = next_random(&seed);

		write_at(fixture, at + value % (HOLE_UNIT - 8), &value, 8);
	}
	file.base = store_file(fixture, size);
	flush(fixture);
	assert_int_equal(
	        odb_read_record(fixture->odb, RECORD_LIST, &file.base.pointer, &record, NULL), 0);
	assert_true(record->logical[1] >= 1); /* level of the root */
	record_unref(record);
	for (unsigned i = 0; i < 4; i++) {
		struct content edited, stored;
		uint64_t value = next_random(&seed), at = value % (size - 8);

		write_at(fixture, at, &value, 8);
		dirty_add(&file.dirty, at, at + 8);
		start_anew(fixture);
		odb_stats(fixture->odb, &before);
		assert_int_equal(content_store_edit(fixture->packer, fixture->odb,
		                                    &(struct edit_base){.content = &file.base},
		                                    fixture->fd, size, file.dirty.extents, 1, NULL,
		                                    &edited, NULL),
		                 0);
		odb_stats(fixture->odb, &after);
		/* Two paths through the lists, and the chunks around. */
		assert_true(after.reads - before.reads < 30);
		assert_true(after.read_bytes - before.read_bytes < 1u << 20);
		stored = store_file(fixture, size);
		assert_true(content_equal(&edited, &stored));
		flush(fixture);
		file.base = edited;
		file.dirty.count = 0;
	}
}

static void test_append_to_a_gigabyte(void **state)
{
	struct fixture *fixture = *state;
	uint64_t seed = 6, size = (uint64_t)1 << 30, more = 1u << 20;
	struct content base, edited, stored;
	struct extent dirty = {.start = size, .end = size + more};
	struct packer_stats stats;
	struct odb_stats reads;

	write_random(fixture, 0, size, &seed);
	base = store_file(fixture, size);
	flush(fixture);
	write_random(fixture, size, more, &seed);
	start_anew(fixture);
	assert_int_equal(content_store_edit(fixture->packer, fixture->odb,
	                                    &(struct edit_base){.content = &base}, fixture->fd,
	                                    size + more, &dirty, 1, NULL, &edited, NULL),
	                 0);
	flush(fixture);
	packer_stats(fixture->packer, &stats);
	odb_stats(fixture->odb, &reads);
	print_message("append of 1 MiB to 1 GiB: %llu bytes put, %llu bytes read in %llu reads\n",
	              (unsigned long long)stats.bytes_stored, (unsigned long long)reads.read_bytes,
	              (unsigned long long)reads.reads);
	assert_true(stats.bytes_stored < 2u << 20);
	assert_true(reads.read_bytes < 2u << 20);
	assert_int_equal(stats.packs_put, 1);
	stored = store_file(fixture, size + more);
	assert_true(content_equal(&edited, &stored));
	expect_bytes(fixture, &edited, size - 1000000, 1000000 + more);
}

/* -- lists -- */

static int count_list(void *context, enum record_kind kind, const struct pointer *pointer)
{
	assert_int_equal(kind, RECORD_LIST);
	++*(unsigned *)context;
	return 0;
}

/* Many equal chunks, whose id ends a node or does not: levels must come to an end. */
static void test_lists_of_equal_chunks_end(void **state)
{
	struct fixture *fixture = *state;

	for (unsigned ends = 0; ends < 2; ends++) {
		struct list_builder builder = {.packer = fixture->packer};
		struct list_entry entry = {.length = 100000};
		struct content content = {.kind = CONTENT_LIST};
		struct coverage coverage;
		unsigned lists = 0;

		entry.pointer.place =
		        (struct place){.offset = 100, .stored = 100000, .raw = 100000};
		memset(entry.pointer.id.bytes, ends ? 0 : 0xff, ID_BYTES);
		entry.pointer.id.bytes[31] = 1;
		for (unsigned i = 0; i < 100000; i++)
			assert_int_equal(list_builder_add(&builder, 0, &entry, NULL), 0);
		assert_int_equal(list_builder_finish(&builder, &content, NULL), 0);
		list_builder_release(&builder);
		content.size = (uint64_t)100000 * 100000;
		coverage = pieces_of(fixture, &content);
		assert_int_equal(coverage.chunks, 100000);
		assert_int_equal(content_walk(fixture->odb, &content, count_list, &lists, NULL), 0);
		assert_in_range(lists, 100000 / LIST_ENTRIES_MAX, 100000 / LIST_ENTRIES_MIN * 2);
	}
}

static void test_walk_meets_every_list_once(void **state)
{
	struct fixture *fixture = *state;
	struct list_builder builder = {.packer = fixture->packer};
	struct content content = {0};
	uint64_t seed = 7, size = 0;
	unsigned lists = 0;
	struct packer_stats stats;

	for (unsigned i = 0; i < 200000; i++) {
		struct list_entry entry = {.length = 1000 + i % 7};

		fill_random(entry.pointer.id.bytes, ID_BYTES, &seed);
		entry.pointer.place = (struct place){.offset = 100,
		                                     .stored = (uint32_t)entry.length,
		                                     .raw = (uint32_t)entry.length};
		size += entry.length;
		assert_int_equal(list_builder_add(&builder, 0, &entry, NULL), 0);
	}
	assert_int_equal(list_builder_finish(&builder, &content, NULL), 0);
	list_builder_release(&builder);
	content.size = size;
	assert_int_equal(content_walk(fixture->odb, &content, count_list, &lists, NULL), 0);
	packer_stats(fixture->packer, &stats);
	assert_int_equal(stats.bytes_known, 0);
	/* As many as were written: of 160 entries on average, at three levels. */
	assert_in_range(lists, 200000 / 200, 200000 / 130);
	assert_int_equal(pieces_of(fixture, &content).chunks, 200000);
}

static void expect_damaged(struct fixture *fixture, const struct buffer *logical,
                           const struct buffer *places, uint64_t size, int expected)
{
	struct content content = {.kind = CONTENT_LIST, .size = size};
	uint8_t *out = malloc(size + 1);
	struct coverage coverage = {0};
	struct message message = {0};

	assert_int_equal(packer_add_record(fixture->packer, RECORD_LIST, logical->data,
	                                   logical->length, places->data, places->length,
	                                   &content.pointer, NULL),
	                 0);
	assert_int_equal(
	        content_pieces(fixture->odb, &content, 0, size, cover, &coverage, &message),
	        expected);
	assert_int_equal(content_read(fixture->odb, &content, 0, size, out, NULL), expected);
	if (expected)
		assert_true(message.text[0] != 0);
	free(out);
}

static void test_damaged_lists_are_refused(void **state)
{
	struct fixture *fixture = *state;
	struct buffer logical = {0}, places = {0};
	uint8_t bytes[1000] = {1};
	struct pointer chunk;

	assert_int_equal(packer_add_chunk(fixture->packer, bytes, 1000, &chunk, NULL, NULL), 0);
	buffer_u8(&logical, LIST_VERSION);
	buffer_u8(&logical, 0);
	buffer_u16(&logical, 2);
	buffer_u32(&logical, 0);
	buffer_u64(&logical, 5000);
	buffer_u64(&logical, 1000);
	buffer_id(&logical, &chunk.id);
	buffer_u64(&logical, 4000 | (uint64_t)1 << 63);
	place_encode(&places, &chunk.place);
	expect_damaged(fixture, &logical, &places, 5000, 0);
	expect_damaged(fixture, &logical, &places, 5001, -ERR_CORRUPT);
	for (size_t i = 0; i < logical.length; i++) {
		if (i >= 24 && i < 56)
			continue; /* the chunk's id */
		logical.data[i] ^= 0x40;
		expect_damaged(fixture, &logical, &places, 5000,
		               i == 0 ? -ERR_VERSION : -ERR_CORRUPT);
		logical.data[i] ^= 0x40;
	}
	for (size_t length = 0; length < logical.length; length++) {
		struct buffer cut = {.data = logical.data, .length = length};

		expect_damaged(fixture, &cut, &places, 5000, -ERR_CORRUPT);
	}
	places.length--; /* the id is the same: a new packer, which does not know it */
	start_anew(fixture);
	expect_damaged(fixture, &logical, &places, 5000, -ERR_CORRUPT);
	places.length = 0;
	start_anew(fixture);
	expect_damaged(fixture, &logical, &places, 5000, -ERR_CORRUPT);
	buffer_release(&logical);
	buffer_release(&places);
}

int main(void)
{
	const char *seed = getenv("LAKE_TEST_SEED");
#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	const struct CMUnitTest tests[] = {
	        TEST(test_long_files_lie_apart),
	        TEST(test_kinds),
	        TEST(test_zeroes_are_holes_sparse_or_not),
	        TEST(test_hole_edges),
	        TEST(test_huge_sparse_file_is_quick),
	        TEST(test_file_that_became_shorter),
	        TEST(test_progress_can_cancel),
	        TEST(test_edits_of_small_files),
	        TEST(test_edits_of_medium_files),
	        TEST(test_edits_of_large_files),
	        TEST(test_edits_of_deep_lists),
	        TEST(test_append_to_a_gigabyte),
	        TEST(test_lists_of_equal_chunks_end),
	        TEST(test_walk_meets_every_list_once),
	        TEST(test_damaged_lists_are_refused),
	};

	seed_of_run = seed ? strtoull(seed, NULL, 0) : random_u64();
	print_message("LAKE_TEST_SEED=%llu\n", (unsigned long long)seed_of_run);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
