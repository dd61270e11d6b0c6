/*
 * Tree nodes from arbitrary bytes: two bytes say how many of the rest are places. What validation
 * lets through must be safe to read in every way, and be the canonical form of what it says.
 */
#include "store/tree_internal.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct node_builder builder;

/* Every entry by index and by name; every byte of it again from the builder. */
static void read_all(const struct node *node)
{
	CLEANUP(buffer_release) struct buffer again = {0};
	bool whole = true;

	node_builder_start(&builder, node->level);
	for (uint32_t i = 0; i < node->count; i++) {
		struct item item;

		node_item(node, i, &item);
		assert(node_find(node, item_name(&item), item_name_length(&item), false) == i);
		assert(node_find(node, item_name(&item), item_name_length(&item), true) == i + 1);
		if (node->level == 0) {
			struct tree_entry entry;

			node_entry(node, i, &entry);
			assert(entry.name[entry.name_length] == '\0');
			assert(entry.target_length == 0 ||
			       entry.target[entry.target_length] == '\0');
			buffer_clear(&again);
			entry_encode_body(&again, entry.name, entry.name_length, &entry);
			assert(again.length == item.length);
			assert(memcmp(again.data, item.bytes, item.length) == 0);
			free(tree_entry_copy(&entry));
		} else {
			struct pointer pointer;

			node_child(node, i, &pointer);
			assert(!pointer_is_none(&pointer));
		}
		whole = whole && !builder.full;
		if (whole)
			assert(node_builder_add(&builder, &item) == 0);
	}
	if (!whole) /* longer than we would make it: readable all the same */
		return;
	assert(node_builder_encode(&builder, &again) == 0);
	assert(again.length == node->record->logical_length);
	assert(memcmp(again.data, node->record->logical, again.length) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct record record = {0};
	struct node node = {.record = &record};
	const char *why = NULL;
	size_t places;

	if (size < 2)
		return 0;
	places = data[0] | (size_t)data[1] << 8;
	data += 2;
	size -= 2;
	if (places > size)
		return 0;
	record.logical = data;
	record.logical_length = size - places;
	record.places = data + record.logical_length;
	record.places_length = places;
	if (node_validate(record.logical, record.logical_length, record.places,
	                  record.places_length, &why)) {
		assert(why);
		return 0;
	}
	node.level = record.logical[1];
	node.count = load_u32(record.logical + 4);
	node.total = load_u64(record.logical + 8);
	read_all(&node);
	node_find(&node, (const char *)data, size < NAME_BYTES_MAX ? size : NAME_BYTES_MAX, false);
	return 0;
}
