/* Object database: reading, caching and checking records and packs. */
#include "tests/unit/odb_fixture.h"

/* -- places -- */

static void test_place_round_trip(void **state)
{
	CLEANUP(buffer_release) struct buffer buffer = {0};
	struct place place = {.offset = 0x123456, .stored = 77, .raw = 1000, .codec = CODEC_ZSTD};
	struct place none = {0}, decoded;
	struct reader reader;

	memset(place.pack, 0xab, sizeof(place.pack));
	place_encode(&buffer, &place);
	place_encode(&buffer, &none);
	assert_int_equal(buffer.length, 2 * PLACE_ENCODED_BYTES);
	reader = reader_of(buffer.data, buffer.length);
	place_decode(&reader, &decoded);
	assert_memory_equal(decoded.pack, place.pack, sizeof(place.pack));
	assert_int_equal(decoded.offset, place.offset);
	assert_int_equal(decoded.stored, place.stored);
	assert_int_equal(decoded.raw, place.raw);
	assert_int_equal(decoded.codec, place.codec);
	place_decode(&reader, &decoded);
	assert_int_equal(decoded.raw, 0);
	assert_int_equal(reader_finish(&reader), 0);
}

static void test_place_refuses_nonsense(void **state)
{
	static const struct place bad[] = {
	        {.offset = 0, .stored = 10, .raw = 10},             /* inside the header */
	        {.offset = 32, .stored = 0, .raw = 10, .codec = 1}, /* no bytes */
	        {.offset = 32, .stored = 10, .raw = 0, .codec = 1},
	        {.offset = 32, .stored = 10, .raw = 11}, /* raw of another length */
	        {.offset = 32, .stored = 10, .raw = RECORD_RAW_MAX + 1, .codec = 1},
	        {.offset = UINT64_MAX - 4, .stored = 10, .raw = 10}, /* wraps */
	        {.offset = PACK_TARGET_BYTES - 5, .stored = 10, .raw = 10},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		CLEANUP(buffer_release) struct buffer buffer = {0};
		struct place decoded;
		struct reader reader;

		place_encode(&buffer, &bad[i]);
		reader = reader_of(buffer.data, buffer.length);
		place_decode(&reader, &decoded);
		assert_true(reader.failed);
		assert_int_equal(decoded.raw, 0);
	}
}

/* -- reading and writing -- */

static void test_read_before_and_after_flush(void **state)
{
	struct fixture *fixture = *state;
	static const size_t lengths[] = {1, 100, 4096, 70000, 524288, RECORD_RAW_MAX};
	struct pointer pointers[2 * ARRAY_SIZE(lengths)], list, node, commit;
	uint8_t *bytes[2 * ARRAY_SIZE(lengths)];

	fixture->wrapper->gets = 0; /* the packer asked which packs are condemned */
	for (size_t i = 0; i < ARRAY_SIZE(bytes); i++) {
		size_t length = lengths[i / 2];

		bytes[i] = malloc(length);
		if (i % 2)
			fill_text(bytes[i], length, i);
		else
			fill_random(bytes[i], length, i);
		add_chunk(fixture, bytes[i], length, &pointers[i], NULL);
		expect_chunk(fixture, &pointers[i], bytes[i], length);
		assert_int_equal(pointers[i].place.codec,
		                 i % 2 && length > 1 ? CODEC_ZSTD : CODEC_RAW);
		if (length < RECORD_RAW_MAX) /* which fills a pack, and so begins its put */
			assert_int_equal(fixture->wrapper->puts + fixture->wrapper->gets, 0);
	}
	add_record(fixture, RECORD_LIST, "a list", "its places", &list);
	add_record(fixture, RECORD_NODE, "a list", "its places", &node);
	add_record(fixture, RECORD_COMMIT, "", "", &commit);
	assert_false(id_equal(&list.id, &node.id));
	expect_record(fixture, RECORD_LIST, &list, "a list", "its places");

	flush(fixture);
	new_odb(fixture);
	for (size_t i = 0; i < ARRAY_SIZE(bytes); i++)
		expect_chunk(fixture, &pointers[i], bytes[i], lengths[i / 2]);
	expect_record(fixture, RECORD_LIST, &list, "a list", "its places");
	expect_record(fixture, RECORD_NODE, &node, "a list", "its places");
	expect_record(fixture, RECORD_COMMIT, &commit, "", "");
	for (size_t i = 0; i < ARRAY_SIZE(bytes); i++)
		free(bytes[i]);
}

/* -- damage -- */

/* Reads of a damaged pack give the right bytes or an error; returns whether all were right. */
static bool reads_are_right_or_fail(struct fixture *fixture, const struct small_pack *small)
{
	uint8_t random[300], text[3000];
	struct pointer pointers[] = {small->chunk, small->packed};
	uint8_t *out[] = {random, text};
	struct message message = {0};
	struct record *record;
	bool right = true;
	int error = odb_read_chunks(fixture->odb, pointers, 2, out, &message);

	if (error) {
		assert_int_equal(error, -ERR_CORRUPT);
		assert_non_null(strstr(message.text, small->key + 6));
		right = false;
	} else {
		assert_memory_equal(random, small->random, sizeof(random));
		assert_memory_equal(text, small->text, sizeof(text));
	}
	error = odb_read_record(fixture->odb, RECORD_LIST, &small->list, &record, &message);
	if (error) {
		assert_int_equal(error, -ERR_CORRUPT);
		right = false;
	} else {
		assert_memory_equal(record->logical, "list", 4);
		assert_int_equal(record->places_length, 1999);
		for (size_t i = 0; i < 1999; i++)
			assert_int_equal(record->places[i], 'p');
		record_unref(record);
	}
	return right;
}

static void test_every_damaged_bit_is_found(void **state)
{
	struct fixture *fixture = *state;
	struct small_pack small;
	uint64_t records = 0;

	make_small_pack(fixture, &small);
	assert_int_equal(odb_pack_verify(fixture->odb, small.id, NULL, NULL, &records, NULL), 0);
	assert_int_equal(records, 4);
	for (size_t bit = 0; bit < 8 * small.bytes.length; bit++) {
		size_t i = bit / 8;
		struct message message = {0};
		int error;

		small.bytes.data[i] ^= (uint8_t)(1u << bit % 8);
		put_back(fixture, &small, small.bytes.length);
		error = odb_pack_verify(fixture->odb, small.id, NULL, NULL, &records, &message);
		if (error != -ERR_CORRUPT && error != -ERR_VERSION)
			fail_msg("flipped bit %zu of byte %zu of %zu: %d", bit % 8, i,
			         small.bytes.length, error);
		assert_non_null(strstr(message.text, small.key + 6));
		if (bit % 5 == 0) {
			new_odb(fixture);
			reads_are_right_or_fail(fixture, &small);
		}
		small.bytes.data[i] ^= (uint8_t)(1u << bit % 8);
	}
	for (size_t length = 0; length < small.bytes.length; length += 7) {
		put_back(fixture, &small, length);
		assert_int_equal(
		        odb_pack_verify(fixture->odb, small.id, NULL, NULL, &records, NULL),
		        -ERR_CORRUPT);
		new_odb(fixture);
		reads_are_right_or_fail(fixture, &small);
	}
	put_back(fixture, &small, small.bytes.length);
	assert_true(reads_are_right_or_fail(fixture, &small));
	assert_int_equal(odb_pack_verify(fixture->odb, small.id, NULL, NULL, &records, NULL), 0);
	buffer_release(&small.bytes);
}

static void test_unknown_versions_are_refused(void **state)
{
	struct fixture *fixture = *state;
	struct message message = {0};
	struct small_pack small;
	struct record *record;
	struct pointer pointer;

	make_small_pack(fixture, &small);
	small.bytes.data[8] = 2;
	put_back(fixture, &small, small.bytes.length);
	assert_int_equal(odb_pack_verify(fixture->odb, small.id, NULL, NULL, NULL, &message),
	                 -ERR_VERSION);
	assert_non_null(strstr(message.text, "version 2"));
	new_odb(fixture);
	pointer = small.commit;
	pointer.place.codec = 9;
	assert_int_equal(odb_read_record(fixture->odb, RECORD_COMMIT, &pointer, &record, &message),
	                 -ERR_VERSION);
	assert_non_null(strstr(message.text, "codec 9"));
	pointer = small.commit;
	pointer.place.key = 1;
	assert_int_equal(odb_read_record(fixture->odb, RECORD_COMMIT, &pointer, &record, &message),
	                 -ERR_VERSION);
	buffer_release(&small.bytes);
}

static void test_one_bad_read_is_repeated(void **state)
{
	struct fixture *fixture = *state;
	struct small_pack small;
	uint8_t out[300], *outs = out;
	struct record *record;

	make_small_pack(fixture, &small);
	fixture->wrapper->damage_gets = 1;
	assert_int_equal(odb_read_chunks(fixture->odb, &small.chunk, 1, &outs, NULL), 0);
	assert_memory_equal(out, small.random, sizeof(out));
	fixture->wrapper->damage_gets = 1;
	assert_int_equal(odb_read_record(fixture->odb, RECORD_LIST, &small.list, &record, NULL), 0);
	record_unref(record);
	new_odb(fixture);
	fixture->wrapper->damage_gets = 2;
	assert_int_equal(odb_read_record(fixture->odb, RECORD_LIST, &small.list, &record, NULL),
	                 -ERR_CORRUPT);
	assert_int_equal(fixture->wrapper->damage_gets, 0);
	buffer_release(&small.bytes);
}

static void test_wrong_kind_or_id_is_refused(void **state)
{
	struct fixture *fixture = *state;
	struct small_pack small;
	struct record *record;
	struct pointer pointer;

	make_small_pack(fixture, &small);
	assert_int_equal(odb_read_record(fixture->odb, RECORD_NODE, &small.list, &record, NULL),
	                 -ERR_CORRUPT);
	pointer = small.list;
	pointer.place = small.commit.place;
	assert_int_equal(odb_read_record(fixture->odb, RECORD_LIST, &pointer, &record, NULL),
	                 -ERR_CORRUPT);
	pointer.place.pack[0] ^= 1;
	assert_int_equal(odb_read_record(fixture->odb, RECORD_LIST, &pointer, &record, NULL),
	                 -ERR_NOT_FOUND);
	buffer_release(&small.bytes);
}

/* -- requests and the cache -- */

static void test_neighbours_are_one_request(void **state)
{
	struct fixture *fixture = *state;
	enum { COUNT = 300, LENGTH = 65536 };
	static uint8_t bytes[COUNT][LENGTH], read[COUNT][LENGTH];
	struct pointer pointers[COUNT];
	uint8_t *out[COUNT];

	for (unsigned i = 0; i < COUNT; i++) { /* 18.75 MiB: three packs */
		fill_random(bytes[i], LENGTH, i);
		add_chunk(fixture, bytes[i], LENGTH, &pointers[i], NULL);
	}
	flush(fixture);
	for (unsigned i = 0; i < COUNT; i++)
		out[i] = read[i];
	assert_int_equal(odb_read_chunks(fixture->odb, pointers, COUNT, out, NULL), 0);
	assert_memory_equal(read, bytes, sizeof(read));
	assert_int_equal(fixture->wrapper->gets, 3);

	/* Backwards, every second one (small gaps), one of them twice. */
	memset(read, 0, sizeof(read));
	for (unsigned i = 0; i < 50; i++) {
		pointers[i] = pointers[90 - 2 * (i / 2 + 1)]; /* of the first pack */
		out[i] = read[i];
	}
	assert_int_equal(odb_read_chunks(fixture->odb, pointers, 50, out, NULL), 0);
	assert_int_equal(fixture->wrapper->gets, 4);
	for (unsigned i = 0; i < 50; i++) {
		struct id id;

		sha256_of(read[i], LENGTH, &id);
		assert_true(id_equal(&id, &pointers[i].id));
	}
	assert_int_equal(odb_read_chunks(fixture->odb, pointers, 0, out, NULL), 0);
}

static void test_cache_hits_and_stays_bounded(void **state)
{
	struct fixture *fixture = *state;
	struct odb_options options = {.cache_bytes_max = 100000};
	struct pointer pointers[100];
	struct odb_stats stats;
	struct record *record, *held;
	uint8_t logical[5000];

	for (unsigned i = 0; i < 100; i++) {
		fill_random(logical, sizeof(logical), i);
		assert_int_equal(packer_add_record(fixture->packer, RECORD_NODE, logical,
		                                   sizeof(logical), NULL, 0, &pointers[i], NULL),
		                 0);
	}
	flush(fixture);
	packer_free(steal(&fixture->packer));
	odb_free(fixture->odb);
	assert_int_equal(odb_new(&fixture->wrapper->store, &options, &fixture->odb), 0);
	assert_int_equal(odb_read_record(fixture->odb, RECORD_NODE, &pointers[0], &held, NULL), 0);
	for (unsigned i = 0; i < 100; i++) {
		for (unsigned again = 0; again < 2; again++) {
			assert_int_equal(odb_read_record(fixture->odb, RECORD_NODE, &pointers[i],
			                                 &record, NULL),
			                 0);
			record_unref(record);
		}
		odb_stats(fixture->odb, &stats);
		assert_true(stats.cache_bytes <= 100000);
	}
	assert_int_equal(stats.cache_misses, 100);
	assert_int_equal(stats.cache_hits, 101);
	assert_int_equal(stats.reads, 100);
	fill_random(logical, sizeof(logical), 0);
	assert_memory_equal(held->logical, logical, sizeof(logical)); /* evicted, still ours */
	record_unref(held);
	assert_int_equal(packer_new(fixture->odb, &fixture->packer), 0);
}

/* -- tables of contents -- */

struct entry_check {
	const struct small_pack *small;
	unsigned seen;
};

static int check_entry(void *context, const struct pack_entry *entry)
{
	struct entry_check *check = context;
	const struct pointer *pointers[] = {&check->small->chunk, &check->small->packed,
	                                    &check->small->list, &check->small->commit};
	static const enum record_kind kinds[] = {RECORD_CHUNK, RECORD_CHUNK, RECORD_LIST,
	                                         RECORD_COMMIT};

	assert_true(check->seen < 4);
	assert_true(id_equal(&entry->id, &pointers[check->seen]->id));
	assert_int_equal(entry->kind, kinds[check->seen]);
	assert_int_equal(entry->place.offset, pointers[check->seen]->place.offset);
	check->seen++;
	return 0;
}

static void test_table_of_contents(void **state)
{
	struct fixture *fixture = *state;
	struct small_pack small;
	struct entry_check check = {.small = &small};
	uint8_t logical[16];
	struct pointer pointer;
	uint64_t records;

	make_small_pack(fixture, &small);
	assert_int_equal(odb_pack_entries(fixture->odb, small.id, check_entry, &check, NULL), 0);
	assert_int_equal(check.seen, 4);
	/* A table longer than what is first fetched from the end. */
	for (unsigned i = 0; i < 5000; i++) {
		fill_random(logical, sizeof(logical), i);
		assert_int_equal(packer_add_record(fixture->packer, RECORD_NODE, logical,
		                                   sizeof(logical), NULL, 0, &pointer, NULL),
		                 0);
	}
	flush(fixture);
	assert_int_equal(
	        odb_pack_verify(fixture->odb, pointer.place.pack, NULL, NULL, &records, NULL), 0);
	assert_int_equal(records, 5000);
	assert_int_equal(odb_pack_remove(fixture->odb, pointer.place.pack, NULL), 0);
	buffer_release(&small.bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_place_round_trip),
	        cmocka_unit_test(test_place_refuses_nonsense),
	        BOTH(test_read_before_and_after_flush),
	        PLAIN(test_every_damaged_bit_is_found),
	        PLAIN(test_unknown_versions_are_refused),
	        PLAIN(test_one_bad_read_is_repeated),
	        PLAIN(test_wrong_kind_or_id_is_refused),
	        PLAIN(test_neighbours_are_one_request),
	        PLAIN(test_cache_hits_and_stays_bounded),
	        INDEXED(test_table_of_contents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
