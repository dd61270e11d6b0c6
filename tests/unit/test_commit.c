/*
 * Commits: what is written is read back, one form only, every limit, every damaged byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include "refs/commit.h"

#include <cmocka.h> /* last: its macro fail() hides the function of that name */

static struct object_store *store;
static struct odb *odb;
static struct packer *packer;

static int setup(void **state)
{
	struct odb_options options = {0};

	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(odb_new(store, &options, &odb), 0);
	assert_int_equal(packer_new(odb, &packer), 0);
	return 0;
}

static int teardown(void **state)
{
	packer_free(packer);
	odb_free(odb);
	object_store_free(store);
	return 0;
}

static struct commit simple(void)
{
	return (struct commit){
	        .root = {.mode = S_IFDIR | 0755, .uid = 1, .gid = 2, .mtime_ns = -3},
	        .author = "ann@host",
	        .time_ms = 1234567,
	        .message = "first\n\nwith a body",
	};
}

static struct pointer write_ok(const struct commit *commit)
{
	struct message message = {0};
	struct pointer pointer;
	int rc = commit_write(odb, packer, commit, &pointer, &message);

	if (rc < 0)
		fail_msg("commit_write: %s: %s", error_text(rc), message.text);
	return pointer;
}

static void assert_refused(const struct commit *commit, int error, const char *text)
{
	struct message message = {0};
	struct pointer pointer;

	assert_int_equal(commit_write(odb, packer, commit, &pointer, &message), error);
	if (!strstr(message.text, text))
		fail_msg("'%s' does not say '%s'", message.text, text);
}

static void assert_same(const struct commit *a, const struct commit *b)
{
	assert_memory_equal(&a->tree.id, &b->tree.id, sizeof(struct id));
	assert_int_equal(a->root.mode, b->root.mode);
	assert_int_equal(a->root.uid, b->root.uid);
	assert_int_equal(a->root.gid, b->root.gid);
	assert_int_equal(a->root.mtime_ns, b->root.mtime_ns);
	assert_int_equal(a->parent_count, b->parent_count);
	for (size_t i = 0; i < a->parent_count; i++)
		assert_memory_equal(&a->parents[i].id, &b->parents[i].id, sizeof(struct id));
	assert_string_equal(a->author, b->author);
	assert_int_equal(a->time_ms, b->time_ms);
	assert_string_equal(a->message, b->message);
	assert_int_equal(a->meta_count, b->meta_count);
	for (size_t i = 0; i < a->meta_count; i++) {
		assert_string_equal(a->meta[i].key, b->meta[i].key);
		assert_string_equal(a->meta[i].value, b->meta[i].value);
	}
}

static void writes_and_reads(void **state)
{
	struct commit first = simple();
	struct commit *read;
	struct pointer a = write_ok(&first);

	assert_int_equal(packer_flush(packer, NULL), 0);
	assert_int_equal(commit_read(odb, &a, &read, NULL), 0);
	assert_same(&first, read);
	assert_memory_equal(&read->self.id, &a.id, sizeof(struct id));
	assert_int_equal(read->generation, 1);
	free(read);

	struct meta_pair meta[] = {{"z", ""}, {"a.b-c_D", "\xff not utf-8"}, {"k", "v"}};
	struct meta_pair sorted[] = {meta[1], meta[2], meta[0]};
	struct pointer parents[2] = {a};
	first.message = NULL;
	parents[1] = write_ok(&first);
	struct commit second = simple();
	second.parents = parents;
	second.parent_count = 1;
	parents[0] = write_ok(&second);
	second.parents = parents;
	second.parent_count = 2;
	second.meta = meta;
	second.meta_count = 3;
	second.message = "\xfe\xff";
	struct pointer b = write_ok(&second);
	assert_int_equal(commit_read(odb, &b, &read, NULL), 0);
	second.meta = sorted;
	assert_same(&second, read);
	assert_int_equal(read->generation, 3);
	for (int i = 0; i < 2; i++) {
		struct commit *parent;

		assert_int_equal(commit_read(odb, &read->parents[i], &parent, NULL), 0);
		assert_int_equal(parent->generation, 2 - i);
		free(parent);
	}
	/* The order in which meta was given does not matter. */
	struct pointer c = write_ok(&second);
	assert_memory_equal(&b.id, &c.id, sizeof(struct id));
	free(read);
}

static void checks_limits(void **state)
{
	struct commit commit = simple();
	char *long_text = calloc(1, COMMIT_MESSAGE_MAX + 2);
	struct meta_pair *meta = calloc(COMMIT_META_MAX + 1, sizeof(*meta));
	struct pointer parents[COMMIT_PARENTS_MAX + 1];
	char keys[COMMIT_META_MAX + 1][8];

	memset(long_text, 'x', COMMIT_MESSAGE_MAX + 1);
	commit.message = long_text;
	assert_refused(&commit, -ERR_TOO_LARGE, "commit message has 65537 bytes");
	commit.message = long_text + 1;
	write_ok(&commit);
	commit.message = "m";

	commit.author = NULL;
	assert_refused(&commit, -ERR_INVALID, "author is empty");
	commit.author = "two\nlines";
	assert_refused(&commit, -ERR_INVALID, "one line");
	commit.author = long_text + COMMIT_MESSAGE_MAX + 1 - COMMIT_AUTHOR_MAX;
	write_ok(&commit);
	commit.author--;
	assert_refused(&commit, -ERR_TOO_LARGE, "author has 256 bytes");
	commit.author = "a";

	commit.root.mode = S_IFREG | 0644;
	assert_refused(&commit, -ERR_INVALID, "not a directory");
	commit.root.mode = S_IFDIR | 0755;

	commit.meta = meta;
	for (size_t i = 0; i <= COMMIT_META_MAX; i++) {
		snprintf(keys[i], sizeof(keys[i]), "k%zu", i);
		meta[i] = (struct meta_pair){keys[i], "v"};
	}
	commit.meta_count = COMMIT_META_MAX + 1;
	assert_refused(&commit, -ERR_TOO_LARGE, "256 meta entries, not 257");
	commit.meta_count = COMMIT_META_MAX;
	write_ok(&commit);
	meta[7].key = "k9";
	assert_refused(&commit, -ERR_INVALID, "'k9' is given twice");
	meta[7].key = "";
	assert_refused(&commit, -ERR_INVALID, "meta key ''");
	meta[7].key = "a b";
	assert_refused(&commit, -ERR_INVALID, "meta key 'a b'");
	meta[7].key = "ok";
	meta[7].value = long_text + COMMIT_MESSAGE_MAX + 1 - META_VALUE_MAX;
	write_ok(&commit);
	meta[7].value--;
	assert_refused(&commit, -ERR_TOO_LARGE, "meta value of 'ok' has 4097 bytes");
	commit.meta_count = 0;

	for (size_t i = 0; i <= COMMIT_PARENTS_MAX; i++) {
		commit.time_ms = (int64_t)i;
		parents[i] = write_ok(&commit);
	}
	commit.parents = parents;
	commit.parent_count = COMMIT_PARENTS_MAX + 1;
	assert_refused(&commit, -ERR_TOO_LARGE, "16 parents, not 17");
	commit.parent_count = COMMIT_PARENTS_MAX;
	write_ok(&commit);
	parents[3] = parents[1];
	assert_refused(&commit, -ERR_INVALID, "parents 2 and 4 of the commit are the same");
	parents[3] = pointer_none;
	assert_refused(&commit, -ERR_INVALID, "parent 4 of the commit is none");
	free(meta);
	free(long_text);
}

static void needs_its_parents(void **state)
{
	struct commit commit = simple();
	struct pointer parent = write_ok(&commit);

	parent.id.bytes[0] ^= 1;
	commit.parents = &parent;
	commit.parent_count = 1;
	assert_refused(&commit, -ERR_CORRUPT, "commit ");
	packer_free(packer);
	assert_int_equal(packer_new(odb, &packer), 0);
	parent.id.bytes[0] ^= 1;
	assert_refused(&commit, -ERR_NOT_FOUND, "commit "); /* its pack was never put */
}

/* A commit with some of everything, encoded. */
static void encode_sample(struct buffer *logical, struct buffer *places)
{
	struct meta_pair meta[] = {{"code", "abc"}, {"who", "ann"}};
	struct pointer parents[2] = {{.place = {.offset = 64, .stored = 10, .raw = 10}},
	                             {.place = {.offset = 80, .stored = 10, .raw = 10}}};
	struct commit commit = simple();

	random_bytes(&parents[0].id, sizeof(struct id));
	random_bytes(&parents[1].id, sizeof(struct id));
	commit.tree = parents[0];
	commit.parents = parents;
	commit.parent_count = 2;
	commit.generation = 7;
	commit.meta = meta;
	commit.meta_count = 2;
	assert_int_equal(commit_encode(&commit, logical, places), 0);
}

/* What is accepted is canonical: it encodes to the same bytes. */
static bool decodes(const struct buffer *logical, const struct buffer *places)
{
	CLEANUP(buffer_release) struct buffer logical_again = {0};
	CLEANUP(buffer_release) struct buffer places_again = {0};
	struct commit *commit;
	int rc = commit_decode(logical->data, logical->length, places->data, places->length,
	                       &commit);

	if (rc < 0) {
		assert_true(rc == -ERR_CORRUPT || rc == -ERR_VERSION);
		return false;
	}
	assert_int_equal(commit_encode(commit, &logical_again, &places_again), 0);
	assert_int_equal(logical_again.length, logical->length);
	assert_memory_equal(logical_again.data, logical->data, logical->length);
	assert_int_equal(places_again.length, places->length);
	assert_memory_equal(places_again.data, places->data, places->length);
	free(commit);
	return true;
}

static void survives_damage(void **state)
{
	CLEANUP(buffer_release) struct buffer logical = {0};
	CLEANUP(buffer_release) struct buffer places = {0};
	struct buffer *parts[] = {&logical, &places};

	encode_sample(&logical, &places);
	assert_true(decodes(&logical, &places));
	for (size_t p = 0; p < 2; p++) {
		struct buffer *part = parts[p];
		size_t whole = part->length;

		for (part->length = 0; part->length < whole; part->length++)
			assert_false(decodes(&logical, &places));
		buffer_u8(part, 0);
		assert_false(decodes(&logical, &places));
		part->length = whole;
		for (size_t i = 0; i < whole; i++) {
			for (int bit = 0; bit < 8; bit++) {
				part->data[i] ^= (uint8_t)(1 << bit);
				decodes(&logical, &places);
				part->data[i] ^= (uint8_t)(1 << bit);
			}
		}
	}
	struct commit *commit;
	logical.data[0] = 2;
	assert_int_equal(
	        commit_decode(logical.data, logical.length, places.data, places.length, &commit),
	        -ERR_VERSION);
	logical.data[0] = 0;
	assert_int_equal(
	        commit_decode(logical.data, logical.length, places.data, places.length, &commit),
	        -ERR_CORRUPT);
}

/* Replace the first `from` in the record by `to`, of the same length. */
static bool decodes_with(const char *from, const char *to)
{
	CLEANUP(buffer_release) struct buffer logical = {0};
	CLEANUP(buffer_release) struct buffer places = {0};
	size_t length = strlen(from);

	encode_sample(&logical, &places);
	uint8_t *at = memmem(logical.data, logical.length, from, length);
	assert_non_null(at);
	memcpy(at, to, length);
	return decodes(&logical, &places);
}

static void accepts_one_form_only(void **state)
{
	assert_true(decodes_with("code", "mode"));
	assert_false(decodes_with("code", "zode")); /* not sorted */
	assert_false(decodes_with("code", "co e"));
	assert_false(decodes_with("who", "w\0o"));
	assert_false(decodes_with("ann@host", "ann\nhost"));
	assert_true(decodes_with("ann@host", "bob@host"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(writes_and_reads, setup, teardown),
	        cmocka_unit_test_setup_teardown(checks_limits, setup, teardown),
	        cmocka_unit_test_setup_teardown(needs_its_parents, setup, teardown),
	        cmocka_unit_test(survives_damage),
	        cmocka_unit_test(accepts_one_form_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
