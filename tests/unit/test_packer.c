/* Packer: which packs are put, when, in which order; failures; deduplication and its index. */
#include "tests/unit/odb_fixture.h"

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

	for (unsigned i = 0; i < 300; i++) { /* 143 MiB: 6, 12, 24, 48 and the rest */
		char name[32];

		fill_random(bytes, length, i);
		add_chunk(fixture, bytes, length, &chunk, NULL);
		snprintf(name, sizeof(name), "node %u", i);
		add_record(fixture, RECORD_NODE, name, "", &node);
	}
	add_record(fixture, RECORD_COMMIT, "commit", "", &commit);
	flush(fixture);
	assert_int_equal(fixture->wrapper->puts, 6);
	hex_encode(commit.place.pack, PACK_ID_BYTES, hex);
	assert_string_equal(fixture->wrapper->put_keys[5] + 6, hex);
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
	assert_int_equal(added, 1 + 2 + 5); /* packs of 6, 12 and 24 MiB */
	flush(fixture);
	new_odb(fixture);
	for (unsigned i = 0; i < added; i++) {
		uint8_t *out = malloc(length);

		assert_int_equal(odb_read_chunks(fixture->odb, &pointers[i], 1, &out, NULL), 0);
		free(out);
	}
	free(bytes);
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

static void *flush_packer(void *context)
{
	return packer_flush(context, NULL) ? context : NULL;
}

/* Two threads put packs; the content is held back on its way: the tree must wait for it. */
static void test_tree_waits_for_content_on_its_way(void **state)
{
	struct fixture *fixture = *state;
	size_t length = 5u << 20; /* too much to lie beside the commit */
	uint8_t *bytes = malloc(length);
	struct pointer chunk, commit;
	pthread_t threads[2];
	char hex[2 * PACK_ID_BYTES + 1];
	unsigned puts_meanwhile;
	void *result;
	sem_t hold;

	fill_random(bytes, length, 1);
	sem_init(&hold, 0, 0);
	fixture->wrapper->hold = &hold;
	add_chunk(fixture, bytes, length, &chunk, NULL);
	add_record(fixture, RECORD_COMMIT, "commit", "", &commit);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, flush_packer, fixture->packer),
		                 0);
	usleep(50000);
	puts_meanwhile = fixture->wrapper->puts;
	sem_post(&hold);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(pthread_join(threads[i], &result), 0);
		assert_null(result);
	}
	assert_int_equal(puts_meanwhile, 0);
	assert_int_equal(fixture->wrapper->puts, 2);
	hex_encode(commit.place.pack, PACK_ID_BYTES, hex);
	assert_string_equal(fixture->wrapper->put_keys[1] + 6, hex);
	sem_destroy(&hold);
	free(bytes);
}

/* Lists lie with the tree, and not among the chunks they describe. */
static void test_lists_lie_together(void **state)
{
	struct fixture *fixture = *state;
	static const size_t lengths[2] = {9u << 19, 1u << 20}; /* one pack, apart from the tree */
	uint8_t *bytes = malloc(lengths[0]);
	struct pointer chunks[2], lists[2], node;
	char name[] = "list 0";

	for (unsigned i = 0; i < 2; i++) {
		fill_random(bytes, lengths[i], i + 1);
		add_chunk(fixture, bytes, lengths[i], &chunks[i], NULL);
		name[5] = (char)('0' + i);
		add_record(fixture, RECORD_LIST, name, "", &lists[i]);
	}
	add_record(fixture, RECORD_NODE, "node", "", &node);
	assert_memory_equal(chunks[0].place.pack, chunks[1].place.pack, PACK_ID_BYTES);
	for (unsigned i = 0; i < 2; i++) {
		assert_memory_not_equal(lists[i].place.pack, chunks[0].place.pack, PACK_ID_BYTES);
		assert_memory_equal(lists[i].place.pack, node.place.pack, PACK_ID_BYTES);
	}
	assert_int_equal(packer_flush(fixture->packer, NULL), 0);
	assert_int_equal(fixture->wrapper->puts, 2);
	free(bytes);
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
	assert_int_equal(odb_pack_verify(fixture->odb, small.id, NULL, NULL, NULL, NULL),
	                 -ERR_NOT_FOUND);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
	        BOTH(test_small_commit_is_one_object),
	        BOTH(test_content_is_put_before_trees),
	        BOTH(test_same_packer_stores_once),
	        BOTH(test_chunk_is_never_taken_for_a_list),
	        BOTH(test_failed_put_can_be_repeated),
	        BOTH(test_store_away_bounds_memory),
	        BOTH(test_threads_share_a_packer),
	        BOTH(test_tree_waits_for_content_on_its_way),
	        BOTH(test_lists_lie_together),
	        INDEXED(test_index_deduplicates_across_packers),
	        INDEXED(test_missing_pack_is_not_used),
	        INDEXED(test_damaged_index_is_not_believed),
	        INDEXED(test_index_waits_for_durability),
	        INDEXED(test_removed_pack_leaves_the_index),
	        INDEXED(test_removed_damaged_pack_leaves_the_index),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
