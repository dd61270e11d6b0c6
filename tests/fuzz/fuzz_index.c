/*
 * Arbitrary bytes as values of the local index, which is a cache: what is found is a place that can
 * be encoded, a commit's bytes as long as its place says, a node of the history; or nothing is
 * found. The first byte chooses the table, the second the kind of record.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "refs/graph.h"
#include "store/odb_index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char directory[64];
static struct object_store *store;
static struct kv *kv;
static struct index *records;
static struct odb *odb;

static void check(bool holds)
{
	if (!holds)
		abort();
}

static void end(void)
{
	static const char *const names[] = {"data.mdb", "lock.mdb", "stamp"};
	char path[128];
	kv_close(kv);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof path, "%s/%s", directory, names[i]);
		unlink(path);
	}
	rmdir(directory);
}

static void begin(void)
{
	static const char *const tables[] = {"records", "commits"};
	const struct kv_options options = {.tables = tables, .table_count = 2, .loseable = true};
	snprintf(directory, sizeof directory, "/dev/shm/fuzz_index.%d", (int)getpid());
	check(object_memory_open(&store) == 0 && kv_open(directory, &options, &kv, NULL) == 0);
	check(index_new(store, kv, clock_monotonic_ms, &records) == 0);
	check(odb_new(store, &(struct odb_options){0}, &odb) == 0);
	atexit(end);
}

static void put(unsigned table, const struct id *id, const struct buffer *value)
{
	struct kv_txn *txn;
	check(kv_begin(kv, true, &txn) == 0);
	check(kv_put(txn, table, id->bytes, ID_BYTES, value->data, value->length) == 0);
	check(kv_commit(txn) == 0);
}

/* The check covers the id, so the input cannot know it. */
static void try_record(const struct id *id, enum record_kind kind, const uint8_t *data, size_t size)
{
	CLEANUP(buffer_release) struct buffer value = {0};
	CLEANUP(buffer_release) struct buffer covered = {0};
	CLEANUP(buffer_release) struct buffer kept = {0};
	CLEANUP(buffer_release) struct buffer again = {0};
	uint8_t sum[CHECK_BYTES], seal[CHECK_BYTES] = {0};
	struct pointer pointer = {.id = *id};
	buffer_append(&covered, id->bytes, ID_BYTES);
	buffer_append(&covered, data, size);
	codec_check(covered.data, covered.length, sum);
	buffer_append(&value, data, size);
	buffer_append(&value, sum, sizeof sum);
	put(0, id, &value);
	struct reader reader = reader_of(data, size);
	(void)read_u8(&reader);
	place_decode(&reader, &pointer.place);
	index_pack_seen(records, pointer.place.pack);
	if (index_find(records, id, kind, seal, &pointer.place)) {
		place_encode(&again, &pointer.place);
		check(again.length == PLACE_ENCODED_BYTES && pointer.place.raw > 0);
	}
	if (index_kept(records, &pointer, &kept))
		check(kept.length == pointer.place.stored);
	index_pack_forget(records, pointer.place.pack);
}

static void try_commit(const struct id *id, const uint8_t *data, size_t size)
{
	CLEANUP(buffer_release) struct buffer value = {0};
	struct history *history;
	struct pointer found[4];
	size_t count = 0;
	buffer_append(&value, data, size);
	put(1, id, &value);
	check(history_new(odb, kv, &history) == 0);
	check(history_prefix(history, "0101010101", found, 4, &count) == 0 && count <= 1);
	if (count == 1) {
		CLEANUP(free_pointer) struct graph_node *node = NULL;
		check(node_read(history, &found[0], &node, NULL) == 0);
		check(node->parent_count <= COMMIT_PARENTS_MAX);
	}
	history_free(history);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct id id;
	if (!records)
		begin();
	if (size < 3)
		return 0;
	memset(id.bytes, 1, sizeof id.bytes);
	if (data[0] % 2 == 0)
		try_record(&id, RECORD_CHUNK + data[1] % 4, data + 2, size - 2);
	else
		try_commit(&id, data + 2, size - 2);
	return 0;
}
