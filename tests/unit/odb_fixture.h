/*
 * For the tests of odb and packer: a memory store behind a wrapper that counts, fails and delays
 * requests, and damages what is read.
 */
#ifndef TESTS_ODB_FIXTURE_H
#define TESTS_ODB_FIXTURE_H

#include <pthread.h>
#include <semaphore.h>
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
	unsigned fail_puts;     /* fail so many puts */
	unsigned fail_gets;     /* fail so many gets */
	unsigned get_us;        /* how long one takes */
	int damage_gets;        /* damage so many gets: flip a bit of the first byte */
	uint64_t damage_offset; /* or of this byte of the object, if the range has it */
	sem_t *hold;            /* the next put waits for it */
	char put_keys[64][OBJECT_KEY_MAX + 1];
};

static inline struct wrapper *wrapper_of(struct object_store *store)
{
	return (struct wrapper *)(void *)store;
}

static inline int wrapper_get(struct object_store *store, const char *key, uint64_t offset,
                              uint64_t length, struct buffer *ret_bytes, struct etag *ret_etag,
                              struct message *message)
{
	struct wrapper *wrapper = wrapper_of(store);
	size_t before = ret_bytes->length;
	size_t at = wrapper->damage_offset ? wrapper->damage_offset - offset : 0;
	int error = 0;

	__atomic_fetch_add(&wrapper->gets, 1, __ATOMIC_RELAXED);
	if (wrapper->get_us)
		usleep(wrapper->get_us);
	if (wrapper->fail_gets > 0) {
		wrapper->fail_gets--;
		return (fail)(message, -ERR_STORE_AWAY, "the store is away");
	}
	error = object_get(wrapper->inner, key, offset, length, ret_bytes, ret_etag, message);
	if (!error && wrapper->damage_gets > 0 && ret_bytes->length - before > at) {
		wrapper->damage_gets--;
		ret_bytes->data[before + at] ^= 0x10;
	}
	return error;
}

static inline int wrapper_put(struct object_store *store, const char *key, const void *bytes,
                              size_t length, struct message *message)
{
	struct wrapper *wrapper = wrapper_of(store);
	unsigned put;
	sem_t *hold;

	if (wrapper->fail_puts > 0) {
		wrapper->fail_puts--;
		return (fail)(message, -ERR_STORE_AWAY, "the store is away");
	}
	hold = __atomic_exchange_n(&wrapper->hold, NULL, __ATOMIC_SEQ_CST);
	if (hold)
		sem_wait(hold);
	put = __atomic_fetch_add(&wrapper->puts, 1, __ATOMIC_RELAXED);
	if (put < 64)
		snprintf(wrapper->put_keys[put], sizeof(wrapper->put_keys[put]), "%s", key);
	return object_put(wrapper->inner, key, bytes, length, message);
}

static inline int wrapper_list(struct object_store *store, const char *prefix,
                               object_list_fn *callback, void *context, struct message *message)
{
	return object_list(wrapper_of(store)->inner, prefix, callback, context, message);
}

static inline int wrapper_remove(struct object_store *store, const char *key,
                                 struct message *message)
{
	return object_remove(wrapper_of(store)->inner, key, message);
}

static inline void wrapper_free(struct object_store *store)
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

static inline int setup_with(void **state, bool with_index)
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

static inline int setup(void **state)
{
	return setup_with(state, false);
}

static inline int setup_indexed(void **state)
{
	return setup_with(state, true);
}

static inline int teardown(void **state)
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

static inline void new_packer(struct fixture *fixture)
{
	packer_free(fixture->packer);
	assert_int_equal(packer_new(fixture->odb, &fixture->packer), 0);
}

/* A fresh odb: nothing cached, nothing remembered. */
static inline void new_odb(struct fixture *fixture)
{
	struct odb_options options = {.index = fixture->index};

	packer_free(fixture->packer);
	odb_free(fixture->odb);
	assert_int_equal(odb_new(&fixture->wrapper->store, &options, &fixture->odb), 0);
	assert_int_equal(packer_new(fixture->odb, &fixture->packer), 0);
}

static inline uint64_t next_random(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static inline void fill_random(uint8_t *bytes, size_t length, uint64_t seed)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)next_random(&seed);
}

static inline void fill_text(uint8_t *bytes, size_t length, uint64_t seed)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = "0123456789,\n"[next_random(&seed) % 12];
}

static inline void add_chunk(struct fixture *fixture, const uint8_t *bytes, size_t length,
                             struct pointer *ret_pointer, bool *ret_new)
{
	struct message message = {0};

	if (packer_add_chunk(fixture->packer, bytes, length, ret_pointer, ret_new, &message))
		fail_msg("%s", message.text);
}

static inline void flush(struct fixture *fixture)
{
	struct message message = {0};

	if (packer_flush(fixture->packer, &message))
		fail_msg("%s", message.text);
}

static inline void expect_chunk(struct fixture *fixture, const struct pointer *pointer,
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

static inline void expect_record(struct fixture *fixture, enum record_kind kind,
                                 const struct pointer *pointer, const char *logical,
                                 const char *places)
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

static inline void add_record(struct fixture *fixture, enum record_kind kind, const char *logical,
                              const char *places, struct pointer *ret_pointer)
{
	struct message message = {0};

	if (packer_add_record(fixture->packer, kind, logical, strlen(logical), places,
	                      strlen(places), ret_pointer, &message))
		fail_msg("%s", message.text);
}

/* -- a pack with a record of every sort -- */

static inline int first_pack(void *context, const uint8_t pack[PACK_ID_BYTES], uint64_t bytes,
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

static inline void make_small_pack(struct fixture *fixture, struct small_pack *small)
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

static inline void put_back(struct fixture *fixture, const struct small_pack *small, size_t length)
{
	assert_int_equal(
	        object_put(fixture->wrapper->inner, small->key, small->bytes.data, length, NULL),
	        0);
}

#define PLAIN(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define INDEXED(test) cmocka_unit_test_setup_teardown(test, setup_indexed, teardown)
#define BOTH(test) PLAIN(test), INDEXED(test)

#endif
