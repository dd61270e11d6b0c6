/* The list of packs that gc means to remove, and that packers keep away from them. */
#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>

#include "store/condemned.h"

#include <cmocka.h>

static void test_absent_is_empty(void **state)
{
	struct object_store *store;
	struct condemned_list list = {0};
	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(condemned_read(store, &list, NULL), 0);
	assert_int_equal(list.count, 0);
	assert_int_equal(list.etag.text[0], 0);
	object_store_free(store);
}

static void write_three(struct object_store *store)
{
	struct condemned_list list = {.items = calloc(3, sizeof(*list.items)), .count = 3};
	for (size_t i = 0; i < 3; i++) {
		memset(list.items[i].pack, (int)(0xc0 - 0x40 * i), PACK_ID_BYTES);
		list.items[i].since_ms = (int64_t)(1000 + i);
	}
	assert_int_equal(condemned_write(store, &list, NULL), 0);
	condemned_release(&list);
}

static void test_round_trip_and_find(void **state)
{
	struct object_store *store;
	struct condemned_list list = {0};
	uint8_t pack[PACK_ID_BYTES];
	assert_int_equal(object_memory_open(&store), 0);
	write_three(store);
	assert_int_equal(condemned_read(store, &list, NULL), 0);
	assert_int_equal(list.count, 3);
	memset(pack, 0x80, sizeof pack);
	assert_int_equal(condemned_find(&list, pack)->since_ms, 1001);
	memset(pack, 0x81, sizeof pack);
	assert_null(condemned_find(&list, pack));
	condemned_release(&list);
	object_store_free(store);
}

static void test_only_one_of_two_collectors_wins(void **state)
{
	struct object_store *store;
	struct condemned_list first = {0}, second = {0}, fresh = {0};
	assert_int_equal(object_memory_open(&store), 0);
	write_three(store);
	assert_int_equal(condemned_write(store, &fresh, NULL), -ERR_MOVED);
	assert_int_equal(condemned_read(store, &first, NULL), 0);
	assert_int_equal(condemned_read(store, &second, NULL), 0);
	first.items[0].since_ms = 7;
	assert_int_equal(condemned_write(store, &first, NULL), 0);
	assert_int_equal(condemned_write(store, &second, NULL), -ERR_MOVED);
	condemned_release(&first);
	condemned_release(&second);
	object_store_free(store);
}

static void test_every_flipped_bit_is_found(void **state)
{
	struct object_store *store;
	CLEANUP(buffer_release) struct buffer bytes = {0};
	assert_int_equal(object_memory_open(&store), 0);
	write_three(store);
	assert_int_equal(object_get(store, "gc/condemned", 0, UINT64_MAX, &bytes, NULL, NULL), 0);
	for (size_t bit = 0; bit < bytes.length * 8; bit++) {
		struct condemned_list list = {0};
		bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_true(condemned_decode(bytes.data, bytes.length, &list) < 0);
		bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t length = 0; length < bytes.length; length++) {
		struct condemned_list list = {0};
		assert_true(condemned_decode(bytes.data, length, &list) < 0);
	}
	object_store_free(store);
}

/* Adds one chunk through a packer of its own; true when its bytes had to be stored. */
static bool stores_again(struct odb *odb, const char *text, struct pointer *ret_pointer)
{
	struct packer *packer;
	bool fresh = false;
	assert_int_equal(packer_new(odb, &packer), 0);
	assert_int_equal(packer_add_chunk(packer, text, strlen(text), ret_pointer, &fresh, NULL),
	                 0);
	assert_int_equal(packer_flush(packer, NULL), 0);
	packer_free(packer);
	return fresh;
}

static void test_nobody_relies_on_a_condemned_pack(void **state)
{
	static const char *const tables[] = {"records", "commits"};
	char directory[] = "/tmp/lake-condemned.XXXXXX", command[64];
	struct object_store *store;
	struct kv *index;
	struct odb *odb;
	struct pointer pointer, again;
	struct condemned item = {.since_ms = 1};
	struct condemned_list list = {.items = &item, .count = 1};

	assert_non_null(mkdtemp(directory));
	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(
	        kv_open(directory,
	                &(struct kv_options){.tables = tables, .table_count = 2, .loseable = true},
	                &index, NULL),
	        0);
	struct odb_options options = {.index = index};
	assert_int_equal(odb_new(store, &options, &odb), 0);
	assert_true(stores_again(odb, "some bytes", &pointer));
	assert_false(stores_again(odb, "some bytes", &again));
	memcpy(item.pack, pointer.place.pack, PACK_ID_BYTES);
	assert_int_equal(condemned_write(store, &list, NULL), 0);
	odb_free(odb);
	assert_int_equal(odb_new(store, &options, &odb), 0);
	assert_true(stores_again(odb, "some bytes", &again));
	assert_memory_not_equal(again.place.pack, pointer.place.pack, PACK_ID_BYTES);
	assert_false(stores_again(odb, "some bytes", &again));
	odb_free(odb);
	kv_close(index);
	object_store_free(store);
	snprintf(command, sizeof command, "rm -r %s", directory);
	assert_int_equal(system(command), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_absent_is_empty),
	        cmocka_unit_test(test_round_trip_and_find),
	        cmocka_unit_test(test_only_one_of_two_collectors_wins),
	        cmocka_unit_test(test_every_flipped_bit_is_found),
	        cmocka_unit_test(test_nobody_relies_on_a_condemned_pack),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
