/*
 * Object database and packs, over the memory store behind a wrapper that counts requests, fails
 * puts and damages what is read.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "store/odb.h"

#include <cmocka.h> /* last: its macro fail() hides the function of that name */

/* -- the wrapper -- */

struct wrapper {
	struct object_store store;
	struct object_store *inner;
	unsigned gets, puts;
	unsigned fail_puts; /* fail so many puts */
	int damage_gets;    /* damage so many gets: flip a bit of the first byte */
	unsigned puts_seen; /* order of keys put */
	char put_keys[64][OBJECT_KEY_MAX + 1];
};

static struct wrapper *wrapper_of(struct object_store *store)
{
	return (struct wrapper *)(void *)store;
}

static int wrapper_get(struct object_store *store, const char *key, uint64_t offset,
                       uint64_t length, struct buffer *ret_bytes, struct etag *ret_etag,
                       struct message *message)
{
	struct wrapper *wrapper = wrapper_of(store);
	size_t before = ret_bytes->length;
	int error = object_get(wrapper->inner, key, offset, length, ret_bytes, ret_etag, message);

	__atomic_fetch_add(&wrapper->gets, 1, __ATOMIC_RELAXED);
	if (!error && wrapper->damage_gets > 0 && ret_bytes->length > before) {
		wrapper->damage_gets--;
		ret_bytes->data[before] ^= 0x10;
	}
	return error;
}

static int wrapper_put(struct object_store *store, const char *key, const void *bytes,
                       size_t length, struct message *message)
{
	struct wrapper *wrapper = wrapper_of(store);
	unsigned put;

	if (wrapper->fail_puts > 0) {
		wrapper->fail_puts--;
		return (fail)(message, -ERR_STORE_AWAY, "the store is away");
	}
	put = __atomic_fetch_add(&wrapper->puts, 1, __ATOMIC_RELAXED);
	if (put < 64)
		snprintf(wrapper->put_keys[put], sizeof(wrapper->put_keys[put]), "%s", key);
	return object_put(wrapper->inner, key, bytes, length, message);
}

static int wrapper_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                        void *context, struct message *message)
{
	return object_list(wrapper_of(store)->inner, prefix, callback, context, message);
}

static int wrapper_remove(struct object_store *store, const char *key, struct message *message)
{
	return object_remove(wrapper_of(store)->inner, key, message);
}

static void wrapper_free(struct object_store *store)
{
	object_store_free(wrapper_of(store)->inner);
	free(store);
}

static const struct object_ops wrapper_ops = {
        .get = wrapper_get,
        .put = wrapper_put,
        .list = wrapper_list,
        .remove = wrapper_remove,
        .free = wrapper_free,
};

/* -- fixture -- */

struct fixture {
	struct wrapper *wrapper;
	struct odb *odb;
	struct packer *packer;
	struct kv *index;
	char directory[64];
};

static int setup_with(void **state, bool with_index)
{
	static const char *const tables[] = {"chunks"};
	struct fixture *fixture = calloc(1, sizeof(*fixture));
	struct odb_options options = {0};

	fixture->wrapper = calloc(1, sizeof(*fixture->wrapper));
	fixture->wrapper->store.ops = &wrapper_ops;
	assert_int_equal(object_memory_open(&fixture->wrapper->inner), 0);
	if (with_index) {
		struct kv_options kv_options = {.tables = tables, .table_count = 1};

		strcpy(fixture->directory, "/tmp/test_odb.XXXXXX");
		assert_non_null(mkdtemp(fixture->directory));
		kv_options.loseable = true;
		assert_int_equal(kv_open(fixture->directory, &kv_options, &fixture->index, NULL),
		                 0);
	}
	options.index = fixture->index;
	assert_int_equal(odb_new(&fixture->wrapper->store, &options, &fixture->odb), 0);
	assert_int_equal(packer_new(fixture->odb, &fixture->packer), 0);
	*state = fixture;
	return 0;
}

static int setup(void **state)
{
	return setup_with(state, false);
}

static int setup_indexed(void **state)
{
	return setup_with(state, true);
}

static int teardown(void **state)
{
	struct fixture *fixture = *state;
	char command[128];

	packer_free(fixture->packer);
	odb_free(fixture->odb);
	kv_close(fixture->index);
	object_store_free(&fixture->wrapper->store);
	if (fixture->directory[0]) {
		snprintf(command, sizeof(command), "rm -rf %s", fixture->directory);
		assert_int_equal(system(command), 0);
	}
	free(fixture);
	return 0;
}

static void new_packer(struct fixture *fixture)
{
	packer_free(fixture->packer);
	assert_int_equal(packer_new(fixture->odb, &fixture->packer), 0);
}

/* A fresh odb: nothing cached, nothing remembered. */
static void new_odb(struct fixture *fixture)
{
	struct odb_options options = {.index = fixture->index};

	packer_free(fixture->packer);
	odb_free(fixture->odb);
	assert_int_equal(odb_new(&fixture->wrapper->store, &options, &fixture->odb), 0);
	assert_int_equal(packer_new(fixture->odb, &fixture->packer), 0);
}

static uint64_t next_random(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static void fill_random(uint8_t *bytes, size_t length, uint64_t seed)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)next_random(&seed);
}

static void fill_text(uint8_t *bytes, size_t length, uint64_t seed)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = "0123456789,\n"[next_random(&seed) % 12];
}

static void add_chunk(struct fixture *fixture, const uint8_t *bytes, size_t length,
                      struct pointer *ret_pointer, bool *ret_new)
{
	struct message message = {0};

	if (packer_add_chunk(fixture->packer, bytes, length, ret_pointer, ret_new, &message))
		fail_msg("%s", message.text);
}

static void flush(struct fixture *fixture)
{
	struct message message = {0};

	if (packer_flush(fixture->packer, &message))
		fail_msg("%s", message.text);
}

static void expect_chunk(struct fixture *fixture, const struct pointer *pointer,
                         const uint8_t *bytes, size_t length)
{
	struct message message = {0};
	uint8_t *out = malloc(length);

	assert_int_equal(pointer->place.raw, length);
	if (odb_read_chunks(fixture->odb, pointer, 1, &out, &message))
		fail_msg("%s", message.text);
	assert_memory_equal(out, bytes, length);
	free(out);
}

static void expect_record(struct fixture *fixture, enum record_kind kind,
                          const struct pointer *pointer, const char *logical, const char *places)
{
	struct message message = {0};
	struct record *record;

	if (odb_read_record(fixture->odb, kind, pointer, &record, &message))
		fail_msg("%s", message.text);
	assert_int_equal(record->logical_length, strlen(logical));
	assert_memory_equal(record->logical, logical, strlen(logical));
	assert_int_equal(record->places_length, strlen(places));
	assert_memory_equal(record->places, places, strlen(places));
	record_unref(record);
}

static void add_record(struct fixture *fixture, enum record_kind kind, const char *logical,
                       const char *places, struct pointer *ret_pointer)
{
	struct message message = {0};

	if (packer_add_record(fixture->packer, kind, logical, strlen(logical), places,
	                      strlen(places), ret_pointer, &message))
		fail_msg("%s", message.text);
}

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
	}
	add_record(fixture, RECORD_LIST, "a list", "its places", &list);
	add_record(fixture, RECORD_NODE, "a list", "its places", &node);
	add_record(fixture, RECORD_COMMIT, "", "", &commit);
	assert_false(id_equal(&list.id, &node.id));
	expect_record(fixture, RECORD_LIST, &list, "a list", "its places");
	assert_int_equal(fixture->wrapper->puts + fixture->wrapper->gets, 0);

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

static void test_small_commit_is_one_object(void **state)
{
	struct fixture *fixture = *state;
	uint8_t bytes[10000];
	struct packer_stats stats;
	struct pointer pointer, commit;

	for (int round = 1; round <= 3; round++) {
		fill_random(bytes, sizeof(bytes), (uint64_t)round);
		add_record(fixture, RECORD_NODE, "before", round % 2 ? "odd" : "even", &commit);
		add_chunk(fixture, bytes, sizeof(bytes), &pointer, NULL);
		add_record(fixture, RECORD_COMMIT, round % 2 ? "odd" : "even", "", &commit);
		flush(fixture);
		assert_true(fixture->wrapper->puts <= (unsigned)round);
		expect_chunk(fixture, &pointer, bytes, sizeof(bytes));
	}
	packer_stats(fixture->packer, &stats);
	assert_int_equal(stats.packs_put, 3);
	flush(fixture); /* nothing new: nothing put */
	assert_int_equal(fixture->wrapper->puts, 3);
}

/* Content first, and the tree pack last, however much there is. */
static void test_content_is_put_before_trees(void **state)
{
	struct fixture *fixture = *state;
	size_t length = 500000;
	uint8_t *bytes = malloc(length);
	struct pointer chunk, node, commit;
	char hex[2 * PACK_ID_BYTES + 1];

	for (unsigned i = 0; i < 300; i++) { /* 150 MB: three content packs */
		char name[32];

		fill_random(bytes, length, i);
		add_chunk(fixture, bytes, length, &chunk, NULL);
		snprintf(name, sizeof(name), "node %u", i);
		add_record(fixture, RECORD_NODE, name, "", &node);
	}
	add_record(fixture, RECORD_COMMIT, "commit", "", &commit);
	flush(fixture);
	assert_int_equal(fixture->wrapper->puts, 4);
	hex_encode(commit.place.pack, PACK_ID_BYTES, hex);
	assert_string_equal(fixture->wrapper->put_keys[3] + 6, hex);
	expect_chunk(fixture, &chunk, bytes, length);
	free(bytes);
}

static void test_same_packer_stores_once(void **state)
{
	struct fixture *fixture = *state;
	uint8_t bytes[5000];
	struct pointer first, second;
	struct packer_stats stats;
	bool new;

	fill_random(bytes, sizeof(bytes), 1);
	add_chunk(fixture, bytes, sizeof(bytes), &first, &new);
	assert_true(new);
	add_chunk(fixture, bytes, sizeof(bytes), &second, &new);
	assert_false(new);
	assert_int_equal(first.place.offset, second.place.offset);
	packer_stats(fixture->packer, &stats);
	assert_int_equal(stats.bytes_new, 5000);
	assert_int_equal(stats.bytes_known, 5000);
}

/* A file whose bytes are what a list's id is made of must not be taken for that list. */
static void test_chunk_is_never_taken_for_a_list(void **state)
{
	struct fixture *fixture = *state;
	struct pointer chunk, list;

	add_chunk(fixture, (const uint8_t *)"lakelistlogical", 15, &chunk, NULL);
	add_record(fixture, RECORD_LIST, "logical", "", &list);
	assert_true(id_equal(&chunk.id, &list.id));
	expect_record(fixture, RECORD_LIST, &list, "logical", "");
	flush(fixture);
	new_odb(fixture);
	add_record(fixture, RECORD_LIST, "logical", "", &list);
	expect_record(fixture, RECORD_LIST, &list, "logical", "");
	expect_chunk(fixture, &chunk, (const uint8_t *)"lakelistlogical", 15);
}

static void test_failed_put_can_be_repeated(void **state)
{
	struct fixture *fixture = *state;
	struct message message = {0};
	struct pointer chunk, node;
	uint8_t bytes[3000];

	fill_random(bytes, sizeof(bytes), 7);
	add_chunk(fixture, bytes, sizeof(bytes), &chunk, NULL);
	add_record(fixture, RECORD_NODE, "node", "", &node);
	fixture->wrapper->fail_puts = 2;
	assert_int_equal(packer_flush(fixture->packer, &message), -ERR_STORE_AWAY);
	assert_non_null(strstr(message.text, "packs/"));
	expect_chunk(fixture, &chunk, bytes, sizeof(bytes)); /* from memory */
	assert_int_equal(packer_flush(fixture->packer, &message), -ERR_STORE_AWAY);
	flush(fixture);
	new_odb(fixture);
	expect_chunk(fixture, &chunk, bytes, sizeof(bytes));
	expect_record(fixture, RECORD_NODE, &node, "node", "");
}

/* With the store away for good, memory stays bounded: adding fails; nothing is lost. */
static void test_store_away_bounds_memory(void **state)
{
	struct fixture *fixture = *state;
	size_t length = 4u << 20;
	uint8_t *bytes = malloc(length);
	struct message message = {0};
	struct pointer pointers[100];
	unsigned added = 0;
	int error = 0;

	fill_random(bytes, length, 1);
	fixture->wrapper->fail_puts = UINT32_MAX;
	for (; added < 100 && !error; added += !error) {
		bytes[added]++;
		error = packer_add_chunk(fixture->packer, bytes, length, &pointers[added], NULL,
		                         &message);
	}
	fixture->wrapper->fail_puts = 0;
	assert_int_equal(error, -ERR_STORE_AWAY);
	assert_true(added >= 30 && added <= 48); /* two or three packs of 16 */
	flush(fixture);
	new_odb(fixture);
	for (unsigned i = 0; i < added; i++) {
		uint8_t *out = malloc(length);

		assert_int_equal(odb_read_chunks(fixture->odb, &pointers[i], 1, &out, NULL), 0);
		free(out);
	}
	free(bytes);
}

/* -- damage -- */

static int first_pack(void *context, const uint8_t pack[PACK_ID_BYTES], uint64_t bytes,
                      int64_t modified_ms)
{
	memcpy(context, pack, PACK_ID_BYTES);
	return 0;
}

struct small_pack {
	uint8_t id[PACK_ID_BYTES];
	char key[64];
	struct buffer bytes;
	uint8_t random[300], text[3000];
	struct pointer chunk, packed, list, commit;
};

static void make_small_pack(struct fixture *fixture, struct small_pack *small)
{
	char places[2000];

	memset(places, 'p', sizeof(places) - 1);
	places[sizeof(places) - 1] = 0;
	fill_random(small->random, sizeof(small->random), 3);
	fill_text(small->text, sizeof(small->text), 4);
	add_chunk(fixture, small->random, sizeof(small->random), &small->chunk, NULL);
	add_chunk(fixture, small->text, sizeof(small->text), &small->packed, NULL);
	add_record(fixture, RECORD_LIST, "list", places, &small->list);
	add_record(fixture, RECORD_COMMIT, "commit", "x", &small->commit);
	assert_int_equal(small->packed.place.codec, CODEC_ZSTD);
	assert_int_equal(small->list.place.codec, CODEC_ZSTD);
	flush(fixture);
	assert_int_equal(odb_pack_list(fixture->odb, first_pack, small->id, NULL), 0);
	memcpy(small->key, "packs/", 6);
	hex_encode(small->id, PACK_ID_BYTES, small->key + 6);
	small->bytes = (struct buffer){0};
	assert_int_equal(object_get(fixture->wrapper->inner, small->key, 0, UINT64_MAX,
	                            &small->bytes, NULL, NULL),
	                 0);
}

static void put_back(struct fixture *fixture, const struct small_pack *small, size_t length)
{
	assert_int_equal(
	        object_put(fixture->wrapper->inner, small->key, small->bytes.data, length, NULL),
	        0);
}

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

static void test_every_damaged_byte_is_found(void **state)
{
	struct fixture *fixture = *state;
	struct small_pack small;
	uint64_t records = 0;

	make_small_pack(fixture, &small);
	assert_int_equal(odb_pack_verify(fixture->odb, small.id, &records, NULL), 0);
	assert_int_equal(records, 4);
	for (size_t i = 0; i < small.bytes.length; i++) {
		struct message message = {0};
		int error;

		small.bytes.data[i] ^= (uint8_t)(1u << (i % 8));
		put_back(fixture, &small, small.bytes.length);
		error = odb_pack_verify(fixture->odb, small.id, &records, &message);
		if (error != -ERR_CORRUPT && error != -ERR_VERSION)
			fail_msg("flipped byte %zu of %zu: %d", i, small.bytes.length, error);
		assert_non_null(strstr(message.text, small.key + 6));
		new_odb(fixture);
		reads_are_right_or_fail(fixture, &small);
		small.bytes.data[i] ^= (uint8_t)(1u << (i % 8));
	}
	for (size_t length = 0; length < small.bytes.length; length += 7) {
		put_back(fixture, &small, length);
		assert_int_equal(odb_pack_verify(fixture->odb, small.id, &records, NULL),
		                 -ERR_CORRUPT);
		new_odb(fixture);
		reads_are_right_or_fail(fixture, &small);
	}
	put_back(fixture, &small, small.bytes.length);
	assert_true(reads_are_right_or_fail(fixture, &small));
	assert_int_equal(odb_pack_verify(fixture->odb, small.id, &records, NULL), 0);
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
	assert_int_equal(odb_pack_verify(fixture->odb, small.id, NULL, &message), -ERR_VERSION);
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
	enum { COUNT = 200, LENGTH = 65536 };
	static uint8_t bytes[COUNT][LENGTH], read[COUNT][LENGTH];
	struct pointer pointers[COUNT];
	uint8_t *out[COUNT];

	for (unsigned i = 0; i < COUNT; i++) { /* 12.5 MiB: two runs */
		fill_random(bytes[i], LENGTH, i);
		add_chunk(fixture, bytes[i], LENGTH, &pointers[i], NULL);
	}
	flush(fixture);
	for (unsigned i = 0; i < COUNT; i++)
		out[i] = read[i];
	assert_int_equal(odb_read_chunks(fixture->odb, pointers, COUNT, out, NULL), 0);
	assert_memory_equal(read, bytes, sizeof(read));
	assert_int_equal(fixture->wrapper->gets, 2);

	/* Backwards, every second one (small gaps), one of them twice. */
	memset(read, 0, sizeof(read));
	for (unsigned i = 0; i < 50; i++) {
		pointers[i] = pointers[100 - 2 * (i / 2 + 1)];
		out[i] = read[i];
	}
	assert_int_equal(odb_read_chunks(fixture->odb, pointers, 50, out, NULL), 0);
	assert_int_equal(fixture->wrapper->gets, 3);
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

/* -- threads -- */

struct adder {
	struct fixture *fixture;
	unsigned number;
	struct pointer pointers[200];
};

static void *add_many(void *context)
{
	struct adder *adder = context;
	uint8_t *bytes = malloc(300000), *out = malloc(300000);

	for (unsigned i = 0; i < 200; i++) {
		/* Half of the chunks are everybody's. */
		fill_random(bytes, 300000, i % 2 ? i : i + 1000 * (adder->number + 1));
		if (packer_add_chunk(adder->fixture->packer, bytes, 300000, &adder->pointers[i],
		                     NULL, NULL) ||
		    odb_read_chunks(adder->fixture->odb, &adder->pointers[i], 1, &out, NULL) ||
		    memcmp(bytes, out, 300000) != 0)
			break;
		adder->number += (i == 199) << 16;
	}
	free(bytes);
	free(out);
	return NULL;
}

static void test_threads_share_a_packer(void **state)
{
	struct fixture *fixture = *state;
	static struct adder adders[3];
	pthread_t threads[3];
	struct packer_stats stats;

	for (unsigned i = 0; i < 3; i++) {
		adders[i] = (struct adder){.fixture = fixture, .number = i};
		assert_int_equal(pthread_create(&threads[i], NULL, add_many, &adders[i]), 0);
	}
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(pthread_join(threads[i], NULL), 0);
		assert_int_equal(adders[i].number >> 16, 1); /* it came to its end */
	}
	flush(fixture);
	packer_stats(fixture->packer, &stats);
	assert_int_equal(stats.bytes_new, 400 * 300000);
	assert_int_equal(stats.bytes_known, 200 * 300000);
	new_odb(fixture);
	for (unsigned i = 0; i < 3; i++) {
		uint8_t *out = malloc(300000);

		for (unsigned j = 0; j < 200; j++)
			assert_int_equal(odb_read_chunks(fixture->odb, &adders[i].pointers[j], 1,
			                                 &out, NULL),
			                 0);
		free(out);
	}
}

/* -- the index -- */

static void test_index_deduplicates_across_packers(void **state)
{
	struct fixture *fixture = *state;
	uint8_t bytes[5000];
	struct pointer first, second, list, same_list, other_list;
	bool new;

	fill_random(bytes, sizeof(bytes), 1);
	add_chunk(fixture, bytes, sizeof(bytes), &first, &new);
	add_record(fixture, RECORD_LIST, "list", "places", &list);
	flush(fixture);
	new_odb(fixture);
	add_chunk(fixture, bytes, sizeof(bytes), &second, &new);
	assert_false(new);
	assert_memory_equal(&first.place.pack, &second.place.pack, PACK_ID_BYTES);
	add_record(fixture, RECORD_LIST, "list", "places", &same_list);
	assert_memory_equal(&list.place.pack, &same_list.place.pack, PACK_ID_BYTES);
	/* Same id, but its children lie elsewhere: the old record may name packs that are gone. */
	add_record(fixture, RECORD_LIST, "list", "others", &other_list);
	assert_memory_not_equal(&list.place.pack, &other_list.place.pack, PACK_ID_BYTES);
	expect_record(fixture, RECORD_LIST, &other_list, "list", "others");
}

static void test_missing_pack_is_not_used(void **state)
{
	struct fixture *fixture = *state;
	uint8_t bytes[5000];
	struct pointer first, second;
	char key[64] = "packs/";
	bool new;

	fill_random(bytes, sizeof(bytes), 1);
	add_chunk(fixture, bytes, sizeof(bytes), &first, NULL);
	flush(fixture);
	hex_encode(first.place.pack, PACK_ID_BYTES, key + 6);
	assert_int_equal(object_remove(fixture->wrapper->inner, key, NULL), 0);
	new_odb(fixture);
	add_chunk(fixture, bytes, sizeof(bytes), &second, &new);
	assert_true(new);
	flush(fixture);
	expect_chunk(fixture, &second, bytes, sizeof(bytes));
}

/* Whatever the index says, a pointer that the packer yields can be read. */
static void test_damaged_index_is_not_believed(void **state)
{
	struct fixture *fixture = *state;
	uint8_t bytes[5000], copy[100];
	struct pointer pointer;
	struct kv_txn *txn;
	struct span value;

	fill_random(bytes, sizeof(bytes), 1);
	add_chunk(fixture, bytes, sizeof(bytes), &pointer, NULL);
	flush(fixture);
	assert_int_equal(kv_begin(fixture->index, false, &txn), 0);
	assert_int_equal(kv_get(txn, 0, &pointer.id, ID_BYTES, &value), 0);
	assert_int_equal(value.length, 1 + PLACE_ENCODED_BYTES + 8);
	memcpy(copy, value.data, value.length);
	kv_abort(txn);
	for (size_t i = 0; i < 2 * value.length; i++) {
		size_t length = i < value.length ? value.length : i - value.length;
		bool new;

		copy[i % value.length] ^= (uint8_t)(i < value.length ? 1 : 0);
		assert_int_equal(kv_begin(fixture->index, true, &txn), 0);
		assert_int_equal(kv_put(txn, 0, &pointer.id, ID_BYTES, copy, length), 0);
		assert_int_equal(kv_commit(txn), 0);
		copy[i % value.length] ^= (uint8_t)(i < value.length ? 1 : 0);
		new_packer(fixture);
		add_chunk(fixture, bytes, sizeof(bytes), &pointer, &new);
		assert_true(new);
		expect_chunk(fixture, &pointer, bytes, sizeof(bytes));
	}
}

static void test_index_waits_for_durability(void **state)
{
	struct fixture *fixture = *state;
	struct pointer pointer;
	uint8_t bytes[5000];
	bool new;

	fill_random(bytes, sizeof(bytes), 1);
	add_chunk(fixture, bytes, sizeof(bytes), &pointer, &new);
	fixture->wrapper->fail_puts = 1;
	assert_int_equal(packer_flush(fixture->packer, NULL), -ERR_STORE_AWAY);
	new_packer(fixture); /* forgets it */
	add_chunk(fixture, bytes, sizeof(bytes), &pointer, &new);
	assert_true(new);
}

static void remove_pack_and_check(struct fixture *fixture, bool damaged)
{
	struct small_pack small;
	struct pointer pointer;
	uint64_t count;
	struct kv_txn *txn;
	bool new;

	make_small_pack(fixture, &small);
	if (damaged)
		put_back(fixture, &small, small.bytes.length - 10);
	assert_int_equal(odb_pack_remove(fixture->odb, small.id, NULL), 0);
	assert_int_equal(odb_pack_remove(fixture->odb, small.id, NULL), 0);
	assert_int_equal(kv_begin(fixture->index, false, &txn), 0);
	assert_int_equal(kv_count(txn, 0, &count), 0);
	kv_abort(txn);
	assert_int_equal(odb_pack_verify(fixture->odb, small.id, NULL, NULL), -ERR_NOT_FOUND);
	new_packer(fixture);
	add_chunk(fixture, small.random, sizeof(small.random), &pointer, &new);
	assert_true(new);
	buffer_release(&small.bytes);
}

static void test_removed_pack_leaves_the_index(void **state)
{
	remove_pack_and_check(*state, false);
}

static void test_removed_damaged_pack_leaves_the_index(void **state)
{
	remove_pack_and_check(*state, true);
}

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
	assert_int_equal(odb_pack_verify(fixture->odb, pointer.place.pack, &records, NULL), 0);
	assert_int_equal(records, 5000);
	assert_int_equal(odb_pack_remove(fixture->odb, pointer.place.pack, NULL), 0);
	buffer_release(&small.bytes);
}

int main(void)
{
#define PLAIN(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define INDEXED(test) cmocka_unit_test_setup_teardown(test, setup_indexed, teardown)
#define BOTH(test) PLAIN(test), INDEXED(test)
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_place_round_trip),
	        cmocka_unit_test(test_place_refuses_nonsense),
	        BOTH(test_read_before_and_after_flush),
	        BOTH(test_small_commit_is_one_object),
	        BOTH(test_content_is_put_before_trees),
	        BOTH(test_same_packer_stores_once),
	        BOTH(test_chunk_is_never_taken_for_a_list),
	        BOTH(test_failed_put_can_be_repeated),
	        BOTH(test_store_away_bounds_memory),
	        PLAIN(test_every_damaged_byte_is_found),
	        PLAIN(test_unknown_versions_are_refused),
	        PLAIN(test_one_bad_read_is_repeated),
	        PLAIN(test_wrong_kind_or_id_is_refused),
	        PLAIN(test_neighbours_are_one_request),
	        PLAIN(test_cache_hits_and_stays_bounded),
	        BOTH(test_threads_share_a_packer),
	        INDEXED(test_index_deduplicates_across_packers),
	        INDEXED(test_missing_pack_is_not_used),
	        INDEXED(test_damaged_index_is_not_believed),
	        INDEXED(test_index_waits_for_durability),
	        INDEXED(test_removed_pack_leaves_the_index),
	        INDEXED(test_removed_damaged_pack_leaves_the_index),
	        INDEXED(test_table_of_contents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
