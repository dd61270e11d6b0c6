/*
 * Directories named as tables' logs are, merged: names and bytes of the files are the input's. What
 * is said to be merged is a log without gaps, in which every file is one of either side's. The
 * input is a byte that chooses the format, then files: u8 which of base, source and target have it,
 * u8 length of the name, u16 length of the content, name, content.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "fs/publish/table_delta.h"
#include "fs/publish/tables.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FILES_MAX 40

struct world {
	struct object_store *store;
	struct odb *odb;
	struct packer *packer;
};

static void check(bool holds)
{
	if (!holds)
		abort();
}

static void put(struct world *world, struct pointer *root, const char *name, const uint8_t *bytes,
                size_t length, uint8_t kind)
{
	struct tree_entry entry = {.attributes = {.mode = S_IFREG | 0644, .mtime_ns = kind}};
	if (kind & 8)
		entry.attributes.mode = S_IFDIR | 0755;
	if (length > 0 && !(kind & 8)) {
		entry.content.kind = CONTENT_CHUNK;
		entry.content.size = length;
		check(packer_add_chunk(world->packer, bytes, length, &entry.content.pointer, NULL,
		                       NULL) == 0);
	}
	(void)tree_set_path(world->odb, world->packer, root, name, &entry, root, NULL);
}

/* A file's name in the terms of the format, so that not every input has to find 20 digits. */
static void name_of(bool delta, const uint8_t *bytes, size_t length, char ret_name[300])
{
	bool number = length >= 2 && bytes[0] == '#';
	size_t at = 0;
	if (number && delta)
		at = (size_t)sprintf(ret_name, "%020u", bytes[1] % 16u);
	else if (number)
		at = (size_t)sprintf(ret_name, "v%u", bytes[1] % 16u);
	memcpy(ret_name + at, bytes + (number ? 2 : 0), length - (number ? 2 : 0));
	ret_name[at + length - (number ? 2 : 0)] = '\0';
}

static void read_files(struct world *world, const uint8_t *data, size_t size,
                       struct pointer ret_roots[3])
{
	bool delta = data[0] % 2 == 0;
	size_t at = 1;
	for (unsigned files = 0; files < FILES_MAX && at + 4 <= size; files++) {
		uint8_t kind = data[at];
		size_t name_length = data[at + 1], length = load_u32(data + at) >> 16;
		char name[300];
		at += 4;
		if (name_length > size - at)
			return;
		name_of(delta, data + at, name_length, name);
		at += name_length;
		length = length > size - at ? size - at : length;
		for (unsigned side = 0; side < 3; side++)
			if (kind & 1 << side)
				put(world, &ret_roots[side], name, data + at, length, kind);
		at += length;
	}
}

static void check_merged(struct world *world, bool delta, const struct pointer *tree,
                         const struct pointer roots[3])
{
	CLEANUP(delta_versions_release) struct delta_versions versions = {0};
	uint64_t count, source, target;
	check(delta); /* Iceberg's are never */
	check(delta_versions_read(world->odb, tree, 0, &versions, NULL) <= 0);
	check(tree_count(world->odb, tree, &count, NULL) == 0 &&
	      tree_count(world->odb, &roots[1], &source, NULL) == 0 &&
	      tree_count(world->odb, &roots[2], &target, NULL) == 0);
	check(count <= source + target);
}

static void merge(struct world *world, bool delta, const struct pointer roots[3])
{
	const struct directory_merge directory = {
	        .path = delta ? "t/_delta_log" : "t/metadata",
	        .base = roots[0],
	        .source = roots[1],
	        .target = roots[2],
	};
	struct directory_result result = {0};
	struct message message = {{0}};
	int error = merge_table(NULL, world->odb, world->packer, &directory, &result, &message);
	check(error == 0 || message.text[0]);
	if (error == 0 && result.verdict == DIRECTORY_MERGED)
		check_merged(world, delta, &result.tree, roots);
	if (error == 0 && result.verdict == DIRECTORY_CONFLICT)
		check(result.table && strcmp(result.table, "t") == 0 && result.sentence &&
		      result.sentence[0]);
	free(result.table);
	free(result.sentence);
	for (size_t i = 0; i < result.name_count; i++)
		free(result.names[i]);
	free(result.names);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct odb_options options = {.cache_bytes_max = 1 << 20};
	struct pointer roots[3] = {{{{0}}, {{0}}}};
	struct world world;
	if (size < 1)
		return 0;
	check(object_memory_open(&world.store) == 0 &&
	      odb_new(world.store, &options, &world.odb) == 0 &&
	      packer_new(world.odb, &world.packer) == 0);
	read_files(&world, data, size, roots);
	merge(&world, data[0] % 2 == 0, roots);
	packer_free(world.packer);
	odb_free(world.odb);
	object_store_free(world.store);
	return 0;
}
