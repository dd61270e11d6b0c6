/*
 * merge_world — what the tests of merging share: an odb in memory, and trees and commits made
 * of files whose content is named by a number.
 */
#ifndef TESTS_MERGE_WORLD_H
#define TESTS_MERGE_WORLD_H

#include "refs/merge.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include <cmocka.h>
#undef fail /* cmocka's macro hides the function of store/error.h */

struct world {
	struct object_store *store;
	struct odb *odb;
	struct packer *packer;
	struct history *history;
	int64_t clock_ms;
	struct message message;
};

static inline int set_up(void **state)
{
	struct world *world = calloc(1, sizeof(*world));
	assert_int_equal(object_memory_open(&world->store), 0);
	assert_int_equal(odb_new(world->store, &(struct odb_options){0}, &world->odb), 0);
	assert_int_equal(packer_new(world->odb, &world->packer), 0);
	assert_int_equal(history_new(world->odb, NULL, &world->history), 0);
	*state = world;
	return 0;
}

static inline int tear_down(void **state)
{
	struct world *world = *state;
	history_free(world->history);
	packer_free(world->packer);
	odb_free(world->odb);
	object_store_free(world->store);
	free(world);
	return 0;
}

static inline void set(struct world *world, struct pointer *root, const char *path,
                       const struct tree_entry *entry)
{
	assert_int_equal(
	        tree_set_path(world->odb, world->packer, root, path, entry, root, &world->message),
	        0);
}

/* Files whose content is named by a number; never read. */
static inline void put(struct world *world, struct pointer *root, const char *path,
                       unsigned content, uint32_t permissions, int64_t mtime_ns, const char *xattr)
{
	struct tree_entry entry = {
	        .attributes = {.mode = S_IFREG | permissions, .mtime_ns = mtime_ns}};
	struct buffer xattrs = {0};
	if (xattr) {
		assert_int_equal(xattrs_set(&xattrs, "user.x", (struct span){xattr, strlen(xattr)}),
		                 0);
		entry.xattrs = xattrs.data;
		entry.xattrs_length = xattrs.length;
	}
	sha256_of(&content, sizeof(content), &entry.content.pointer.id);
	entry.content.kind = CONTENT_CHUNK;
	entry.content.size = content;
	set(world, root, path, &entry);
	buffer_release(&xattrs);
}

static inline void put_directory(struct world *world, struct pointer *root, const char *path,
                                 uint32_t permissions)
{
	struct tree_entry *found = NULL, made = {.attributes.mode = S_IFDIR | permissions};
	if (tree_find(world->odb, root, path, &found, NULL) == 0)
		made.content.pointer = found->content.pointer;
	free(found);
	set(world, root, path, &made);
}

static inline struct merge_side side_of(struct pointer tree)
{
	return (struct merge_side){tree, {.mode = S_IFDIR | 0755}};
}

static inline struct commit *commit_of(struct world *world, struct pointer tree,
                                       const struct commit *first, const struct commit *second)
{
	struct pointer parents[2], self;
	struct commit commit = {
	        .tree = tree,
	        .root = {.mode = S_IFDIR | 0755},
	        .parents = parents,
	        .author = "test",
	        .message = "m",
	        .time_ms = world->clock_ms += 1000,
	};
	if (first)
		parents[commit.parent_count++] = first->self;
	if (second)
		parents[commit.parent_count++] = second->self;
	struct commit *made;
	assert_int_equal(commit_write(world->odb, world->packer, &commit, &self, &world->message),
	                 0);
	assert_int_equal(commit_read(world->odb, &self, &made, &world->message), 0);
	history_note(world->history, made);
	return made;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
