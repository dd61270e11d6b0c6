/*
 * stored_files — hides how what a commit knows of a million stored files stays small: records in
 * blocks that never move, found by inode number through a table of indices, with the ids of packs
 * kept once; and how the staging files become cached blobs.
 */
#include <pthread.h>

#include "fs/snapshot.h"

#define BLOCK_FILES 4096
#define SLOTS_MIN 256
#define ADOPT_LARGE_BYTES ((uint64_t)256 << 10)

struct stored_pack {
	uint8_t id[PACK_ID_BYTES];
	UT_hash_handle hh;
};

void stored_release(struct stored *stored)
{
	struct stored_pack *pack, *next;
	HASH_ITER (hh, stored->packs, pack, next) {
		HASH_DEL(stored->packs, pack);
		free(pack);
	}
	for (size_t i = 0; i * BLOCK_FILES < stored->count; i++)
		free(stored->blocks[i]);
	free(stored->blocks);
	free(stored->slots);
	*stored = (struct stored){0};
}

static struct stored_file *file_at(const struct stored *stored, size_t index)
{
	return &stored->blocks[index / BLOCK_FILES][index % BLOCK_FILES];
}

/* The slot of a number, or the free one where it would be; slots hold index + 1. */
static uint32_t *slot_of(const struct stored *stored, uint64_t number)
{
	size_t mask = stored->slot_count - 1;
	for (size_t at = number * 0x9E3779B97F4A7C15ull >> 20 & mask;; at = (at + 1) & mask) {
		uint32_t *slot = &stored->slots[at];
		if (!*slot || file_at(stored, *slot - 1)->number == number)
			return slot;
	}
}

struct stored_file *stored_find(const struct stored *stored, uint64_t number)
{
	uint32_t slot = stored->slot_count ? *slot_of(stored, number) : 0;
	return slot ? file_at(stored, slot - 1) : NULL;
}

static int slots_reserve(struct stored *stored)
{
	if (stored->count * 2 < stored->slot_count)
		return 0;
	size_t count = stored->slot_count ? stored->slot_count * 2 : SLOTS_MIN;
	uint32_t *slots = calloc(count, sizeof(*slots));
	if (!slots || stored->count >= UINT32_MAX / 4) {
		free(slots);
		return -ERR_NO_MEMORY;
	}
	free(stored->slots);
	stored->slots = slots;
	stored->slot_count = count;
	for (size_t i = 0; i < stored->count; i++)
		*slot_of(stored, file_at(stored, i)->number) = (uint32_t)(i + 1);
	return 0;
}

static int file_add(struct stored *stored, uint64_t number, struct stored_file **ret_file)
{
	int error = slots_reserve(stored);
	if (error)
		return error;
	if (stored->count % BLOCK_FILES == 0) {
		size_t blocks = stored->count / BLOCK_FILES;
		struct stored_file **grown =
		        reallocarray(stored->blocks, blocks + 1, sizeof(*grown));
		if (!grown)
			return -ERR_NO_MEMORY;
		stored->blocks = grown;
		grown[blocks] = calloc(BLOCK_FILES, sizeof(**grown));
		if (!grown[blocks])
			return -ERR_NO_MEMORY;
	}
	*slot_of(stored, number) = (uint32_t)(stored->count + 1);
	*ret_file = file_at(stored, stored->count++);
	(*ret_file)->number = number;
	return 0;
}

static const struct stored_pack *pack_of(struct stored *stored, const uint8_t id[PACK_ID_BYTES])
{
	struct stored_pack *pack;
	HASH_FIND(hh, stored->packs, id, PACK_ID_BYTES, pack);
	if (pack)
		return pack;
	pack = calloc(1, sizeof(*pack));
	if (!pack)
		return NULL;
	memcpy(pack->id, id, PACK_ID_BYTES);
	HASH_ADD(hh, stored->packs, id, PACK_ID_BYTES, pack);
	if (!pack->hh.tbl) {
		free(pack);
		return NULL;
	}
	return pack;
}

int stored_enter(struct stored *stored, const struct stored_result *found)
{
	const struct content *content = &found->content;
	const struct place *place = &content->pointer.place;
	const struct stored_pack *pack = pack_of(stored, place->pack);
	struct stored_file *file = stored_find(stored, found->number);
	int error = pack ? 0 : -ERR_NO_MEMORY;
	if (!error && !file)
		error = file_add(stored, found->number, &file);
	if (error)
		return error;
	file->staging = found->staging;
	file->ctime_ns = found->ctime_ns;
	file->size = content->size;
	file->id = content->pointer.id;
	file->pack = pack;
	file->offset = (uint32_t)place->offset; /* packs are smaller */
	file->stored = place->stored;
	file->raw = place->raw;
	file->codec = place->codec;
	file->key = place->key;
	file->kind = content->kind;
	file->settled = found->settled;
	file->piecewise = found->piecewise;
	return 0;
}

struct content stored_file_content(const struct stored_file *file)
{
	struct content content = {
	        .kind = file->kind,
	        .size = file->size,
	        .pointer = {.id = file->id,
	                    .place = {.offset = file->offset,
	                              .stored = file->stored,
	                              .raw = file->raw,
	                              .codec = file->codec,
	                              .key = file->key}},
	};
	memcpy(content.pointer.place.pack, file->pack->id, PACK_ID_BYTES);
	return content;
}

/* -- what was checked under the gate -- */

void stored_unuse(struct stored *stored)
{
	for (size_t i = 0; i < stored->count; i++)
		file_at(stored, i)->used = false;
	stored->open = false;
}

/* The staging file has a use in another overlay. */
static bool is_left(struct worktrees *trees, uint64_t left, const struct stored_file *file)
{
	CLEANUP(inode_release) struct inode inode = {0};
	int error = overlay_read_inode(trees, left, file->number, &inode);
	return error ? error != -ERR_NOT_FOUND : inode.staging == file->staging;
}

void stored_leave(struct stored *stored, struct worktrees *trees, uint64_t left)
{
	for (size_t i = 0; left && i < stored->count; i++) {
		struct stored_file *file = file_at(stored, i);
		if (file->used && is_left(trees, left, file))
			file->used = false;
	}
}

/* -- cached blobs -- */

static bool is_adoptable(const struct worktrees *trees, const struct stored_file *file)
{
	return file->used && !file->piecewise && file->kind != CONTENT_EMPTY &&
	       file->staging >= trees->first_number;
}

static void adopt(struct worktrees *trees, struct stored_file *file, bool synced)
{
	CLEANUP(free_pointer) char *path = staging_absolute(trees, file->staging);
	struct content content = stored_file_content(file);
	file->used = false;
	if (path && synced)
		(void)cache_adopt_synced(trees->cache, &content, path, NULL);
	else if (path)
		(void)cache_adopt(trees->cache, &content, path, NULL);
}

size_t stored_adopt(struct stored *stored, struct worktrees *trees, size_t small_max)
{
	size_t left = 0, done = 0;
	for (size_t i = 0; trees->cache && i < stored->count; i++) {
		struct stored_file *file = file_at(stored, i);
		if (!is_adoptable(trees, file))
			continue;
		if (done < small_max || file->size >= ADOPT_LARGE_BYTES) {
			adopt(trees, file, false);
			done++;
		} else {
			left++;
		}
	}
	return left;
}

void stored_adopt_rest(struct stored *stored, struct worktrees *trees,
                       bool (*is_closing)(struct worktrees *trees))
{
	bool synced = stored->count && !is_closing(trees) && cache_sync(trees->cache) == 0;
	for (size_t i = 0; i < stored->count && !is_closing(trees); i++)
		if (is_adoptable(trees, file_at(stored, i)))
			adopt(trees, file_at(stored, i), synced);
}
