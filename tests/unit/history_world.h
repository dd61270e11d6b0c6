/*
 * history_world — what the tests of history and of revisions share: an odb in memory, an index on
 * disk or none, and commits and refs made by hand.
 */
#ifndef TESTS_HISTORY_WORLD_H
#define TESTS_HISTORY_WORLD_H

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "refs/history.h"

#include <cmocka.h> /* last: its macro fail() hides the function of that name */

static struct object_store *store;
static struct odb *odb;
static struct packer *packer;
static struct kv *kv;
static struct history *history;
static char directory[] = "/tmp/test-history-XXXXXX";

static const struct ref_author ann = {.who = "ann@host", .command = "commit"};

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static inline void open_index(void)
{
	static const char *const tables[] = {"places", "commits"};
	const struct kv_options options = {.tables = tables, .table_count = 2, .loseable = true};

	assert_int_equal(kv_open(directory, &options, &kv, NULL), 0);
	assert_int_equal(history_new(odb, kv, &history), 0);
}

static inline void open_history(bool with_index)
{
	struct odb_options options = {0};

	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(odb_new(store, &options, &odb), 0);
	assert_int_equal(packer_new(odb, &packer), 0);
	if (with_index) {
		memcpy(directory, "/tmp/test-history-XXXXXX", sizeof(directory));
		assert_non_null(mkdtemp(directory));
		open_index();
	} else {
		assert_int_equal(history_new(odb, NULL, &history), 0);
	}
}

static inline int setup(void **state)
{
	open_history(false);
	return 0;
}

static inline int setup_with_index(void **state)
{
	open_history(true);
	return 0;
}

static inline int teardown(void **state)
{
	history_free(history);
	history = NULL;
	if (kv) {
		kv_close(kv);
		kv = NULL;
		nftw(directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	}
	packer_free(packer);
	odb_free(odb);
	object_store_free(store);
	return 0;
}

/* -- making history -- */

static inline struct pointer commit_of(const struct pointer *tree, const struct pointer *parents,
                                       size_t count, int64_t time_ms, const char *text)
{
	struct message message = {0};
	struct pointer pointer;
	struct commit commit = {
	        .tree = *tree,
	        .root = {.mode = S_IFDIR | 0755},
	        .parents = (struct pointer *)parents,
	        .parent_count = count,
	        .author = "ann@host",
	        .time_ms = time_ms,
	        .message = text,
	};
	int rc = commit_write(odb, packer, &commit, &pointer, &message);

	if (rc < 0)
		fail_msg("commit_write: %s", message.text);
	return pointer;
}

static inline struct pointer commit(const struct pointer *parents, size_t count, int64_t time_ms,
                                    const char *text)
{
	return commit_of(&pointer_none, parents, count, time_ms, text);
}

static inline void branch(const char *name, const struct pointer *at)
{
	assert_int_equal(ref_create(store, REF_BRANCH, name, at, &ann, NULL), 0);
}

static inline void tag(const char *name, const struct pointer *at)
{
	assert_int_equal(ref_create(store, REF_TAG, name, at, &ann, NULL), 0);
}

static inline void hex_of(const struct pointer *pointer, char *ret_hex, size_t digits)
{
	char hex[ID_HEX + 1];

	id_to_hex(&pointer->id, hex);
	memcpy(ret_hex, hex, digits);
	ret_hex[digits] = '\0';
}

static inline void assert_resolves(const char *expression, const struct pointer *expected)
{
	struct message message = {0};
	struct commit *found = NULL;
	int rc = revision_resolve(history, expression, &found, &message);

	if (rc < 0)
		fail_msg("'%s': %s: %s", expression, error_text(rc), message.text);
	if (!id_equal(&found->self.id, &expected->id))
		fail_msg("'%s' is the commit '%s'", expression, found->message);
	free(found);
}

static inline void assert_unresolved(const char *expression, int error, const char *text)
{
	struct message message = {0};
	struct commit *found = NULL;

	assert_int_equal(revision_resolve(history, expression, &found, &message), error);
	assert_null(found);
	if (!strstr(message.text, text))
		fail_msg("'%s' does not say '%s'", message.text, text);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TEST_WITH_INDEX(name) \
	{ \
#name "_with_index", name, setup_with_index, teardown, NULL \
	}
#define TEST_BOTH(name) TEST(name), TEST_WITH_INDEX(name)

#endif
