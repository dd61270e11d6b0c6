/* What deduplication may rely on: sightings of packs, and the list of those that are going. */
#include "tests/unit/odb_fixture.h"

#include "store/condemned.h"
#include "store/odb_index.h"

#define MINUTE_MS ((int64_t)60 * 1000)

static int64_t now_ms;

static int64_t test_clock(void)
{
	return now_ms;
}

/* One record in one pack, in the store and in the index; nothing seen yet, no list read. */
struct world {
	struct fixture *fixture;
	struct index *index;
	struct pointer pointer;
	char key[64];
	struct buffer pack;
	struct etag list; /* of the condemned */
};

static int world_setup(void **state)
{
	struct world *world = calloc(1, sizeof(*world));
	void *fixture;

	setup_indexed(&fixture);
	world->fixture = fixture;
	add_chunk(world->fixture, (const uint8_t *)"some bytes", 10, &world->pointer, NULL);
	flush(world->fixture);
	memcpy(world->key, "packs/", 6);
	hex_encode(world->pointer.place.pack, PACK_ID_BYTES, world->key + 6);
	assert_int_equal(object_get(world->fixture->wrapper->inner, world->key, 0, UINT64_MAX,
	                            &world->pack, NULL, NULL),
	                 0);
	now_ms = 1000 * MINUTE_MS;
	assert_int_equal(index_new(&world->fixture->wrapper->store, world->fixture->index,
	                           test_clock, &world->index),
	                 0);
	*state = world;
	return 0;
}

static int world_teardown(void **state)
{
	struct world *world = *state;
	void *fixture = world->fixture;

	index_free(world->index);
	buffer_release(&world->pack);
	free(world);
	return teardown(&fixture);
}

/* How many requests finding the record took; -1: it was not found. */
static int find(struct world *world)
{
	static const uint8_t no_seal[CHECK_BYTES];
	unsigned before = world->fixture->wrapper->gets;
	struct place place;

	if (!index_find(world->index, &world->pointer.id, RECORD_CHUNK, no_seal, &place))
		return -1;
	assert_memory_equal(place.pack, world->pointer.place.pack, PACK_ID_BYTES);
	return (int)(world->fixture->wrapper->gets - before);
}

static void pack_remove(struct world *world)
{
	assert_int_equal(object_remove(world->fixture->wrapper->inner, world->key, NULL), 0);
}

static void condemn(struct world *world, bool listed)
{
	struct condemned item = {.since_ms = 1};
	struct condemned_list list = {.items = &item, .count = listed, .etag = world->list};

	memcpy(item.pack, world->pointer.place.pack, PACK_ID_BYTES);
	assert_int_equal(condemned_write(world->fixture->wrapper->inner, &list, NULL), 0);
	list = (struct condemned_list){0};
	assert_int_equal(condemned_read(world->fixture->wrapper->inner, &list, NULL), 0);
	world->list = list.etag;
	condemned_release(&list);
}

static void test_a_header_is_read_once(void **state)
{
	struct world *world = *state;

	assert_int_equal(find(world), -1); /* the list has not been read */
	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), 1);
	assert_int_equal(find(world), 0);
}

static void test_seen_packs_need_no_header(void **state)
{
	struct world *world = *state;

	index_refresh_condemned(world->index, false);
	index_pack_seen(world->index, world->pointer.place.pack);
	assert_int_equal(find(world), 0);
}

static void test_the_list_keeps_sightings_good(void **state)
{
	struct world *world = *state;

	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), 1);
	for (int i = 0; i < 20; i++) {
		now_ms += 15 * MINUTE_MS;
		assert_int_equal(find(world), 0);
		index_refresh_condemned(world->index, false);
		assert_int_equal(find(world), 0);
	}
	/* One packer that lives for hours: nobody reads the list. */
	now_ms += 25 * MINUTE_MS;
	assert_int_equal(find(world), 1);
	now_ms += 9 * MINUTE_MS;
	assert_int_equal(find(world), 0);
	now_ms += 2 * MINUTE_MS;
	assert_int_equal(find(world), 1);
}

static void test_silence_ends_what_was_seen(void **state)
{
	struct world *world = *state;

	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), 1);
	now_ms += 21 * MINUTE_MS;
	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), 1);
	now_ms += 21 * MINUTE_MS;
	pack_remove(world);
	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), -1);
	/* The entry is gone: a pack that comes back is not found either. */
	assert_int_equal(object_put(world->fixture->wrapper->inner, world->key, world->pack.data,
	                            world->pack.length, NULL),
	                 0);
	assert_int_equal(find(world), -1);
}

/* It may have been listed long before, and removed right after. */
static void test_seen_before_the_first_list(void **state)
{
	struct world *world = *state;

	index_pack_seen(world->index, world->pointer.place.pack);
	pack_remove(world);
	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), -1);
}

static void test_a_list_that_cannot_be_read(void **state)
{
	struct world *world = *state;

	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), 1);
	now_ms += 11 * MINUTE_MS;
	world->fixture->wrapper->fail_gets = 1;
	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), -1);
	index_refresh_condemned(world->index, false); /* at once, not in 10 minutes */
	assert_int_equal(find(world), 1);
}

static void test_listed_packs_are_not_used(void **state)
{
	struct world *world = *state;

	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), 1);
	condemn(world, true);
	now_ms += 11 * MINUTE_MS;
	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), -1);
	index_pack_seen(world->index, world->pointer.place.pack); /* still there, to go soon */
	assert_int_equal(find(world), -1);
	/* No longer listed, for one of two reasons: it must be looked for. */
	condemn(world, false);
	now_ms += 11 * MINUTE_MS;
	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), 1);
	condemn(world, true);
	now_ms += 11 * MINUTE_MS;
	index_refresh_condemned(world->index, false);
	condemn(world, false);
	pack_remove(world);
	now_ms += 11 * MINUTE_MS;
	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), -1);
}

static void test_forgotten_packs_are_looked_for(void **state)
{
	struct world *world = *state;

	index_refresh_condemned(world->index, false);
	assert_int_equal(find(world), 1);
	index_pack_forget(world->index, world->pointer.place.pack);
	assert_int_equal(find(world), 1);
}

static void test_no_index_remembers_nothing(void **state)
{
	static const uint8_t pack[PACK_ID_BYTES], seal[CHECK_BYTES];
	struct packed packed = {0};
	struct place place;

	index_pack_seen(NULL, pack);
	index_pack_forget(NULL, pack);
	index_refresh_condemned(NULL, false);
	index_enter(NULL, &packed, 1, NULL);
	index_drop(NULL, pack, NULL, 0);
	assert_false(index_find(NULL, &packed.entry.id, RECORD_CHUNK, seal, &place));
	index_free(NULL);
}

#define WORLD(test) cmocka_unit_test_setup_teardown(test, world_setup, world_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        WORLD(test_a_header_is_read_once),
	        WORLD(test_seen_packs_need_no_header),
	        WORLD(test_the_list_keeps_sightings_good),
	        WORLD(test_silence_ends_what_was_seen),
	        WORLD(test_seen_before_the_first_list),
	        WORLD(test_a_list_that_cannot_be_read),
	        WORLD(test_listed_packs_are_not_used),
	        WORLD(test_forgotten_packs_are_looked_for),
	        cmocka_unit_test(test_no_index_remembers_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
