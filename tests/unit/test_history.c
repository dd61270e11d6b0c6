/*
 * History: expressions, ids, times, the order of walks, ancestors against brute force.
 */
#include <ftw.h>
#include <pthread.h>
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

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static void open_index(void)
{
	static const char *const tables[] = {"places", "commits"};
	const struct kv_options options = {.tables = tables, .table_count = 2, .loseable = true};

	assert_int_equal(kv_open(directory, &options, &kv, NULL), 0);
	assert_int_equal(history_new(odb, kv, &history), 0);
}

static void open_history(bool with_index)
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

static int setup(void **state)
{
	open_history(false);
	return 0;
}

static int setup_with_index(void **state)
{
	open_history(true);
	return 0;
}

static int teardown(void **state)
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

static struct pointer commit_of(const struct pointer *tree, const struct pointer *parents,
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

static struct pointer commit(const struct pointer *parents, size_t count, int64_t time_ms,
                             const char *text)
{
	return commit_of(&pointer_none, parents, count, time_ms, text);
}

static void branch(const char *name, const struct pointer *at)
{
	assert_int_equal(ref_create(store, REF_BRANCH, name, at, &ann, NULL), 0);
}

static void tag(const char *name, const struct pointer *at)
{
	assert_int_equal(ref_create(store, REF_TAG, name, at, &ann, NULL), 0);
}

static void hex_of(const struct pointer *pointer, char *ret_hex, size_t digits)
{
	char hex[ID_HEX + 1];

	id_to_hex(&pointer->id, hex);
	memcpy(ret_hex, hex, digits);
	ret_hex[digits] = '\0';
}

static void assert_resolves(const char *expression, const struct pointer *expected)
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

static void assert_unresolved(const char *expression, int error, const char *text)
{
	struct message message = {0};
	struct commit *found = NULL;

	assert_int_equal(revision_resolve(history, expression, &found, &message), error);
	assert_null(found);
	if (!strstr(message.text, text))
		fail_msg("'%s' does not say '%s'", message.text, text);
}

/* -- times -- */

static void assert_time(const char *iso, const char *meant)
{
	char text[32];
	int64_t ms;

	assert_int_equal(time_parse(iso, &ms), 0);
	time_format(ms, text);
	assert_string_equal(text, meant);
}

static void parses_times(void **state)
{
	static const char *const bad[] = {
	        "",
	        "2026",
	        "2026-11",
	        "2026-13-01",
	        "2026-00-01",
	        "2026-02-29",
	        "1900-02-29",
	        "2026-11-31",
	        "2026-11-2",
	        "2026-11-21T",
	        "2026-11-21T10",
	        "2026-11-21T24:00",
	        "2026-11-21T10:60",
	        "2026-11-21T10:00:60",
	        "2026-11-21T10:00:00.",
	        "2026-11-21T10:00:00.1234567890",
	        "2026-11-21 10:00",
	        "2026-11-21T10:00+2",
	        "2026-11-21T10:00+02",
	        "2026-11-21T10:00+0200",
	        "2026-11-21T10:00+24:00",
	        "2026-11-21T10:00Zx",
	        "-2026-11-21",
	        "yesterday",
	        "0000-01-01",
	};
	int64_t ms;

	assert_time("2026-11-21", "2026-11-21T23:59:59.999Z");
	assert_time("2026-11-21T10:00", "2026-11-21T10:00:59.999Z");
	assert_time("2026-11-21T10:00:30", "2026-11-21T10:00:30.999Z");
	assert_time("2026-11-21T10:00:30Z", "2026-11-21T10:00:30.999Z");
	assert_time("2026-11-21T10:00:30.5Z", "2026-11-21T10:00:30.500Z");
	assert_time("2026-11-21T10:00:30.123456789", "2026-11-21T10:00:30.123Z");
	assert_time("2026-11-21T01:00+02:30", "2026-11-20T22:30:59.999Z");
	assert_time("2026-12-31T23:30-01:00", "2027-01-01T00:30:59.999Z");
	assert_time("2024-02-29", "2024-02-29T23:59:59.999Z");
	assert_time("2000-02-29T00:00:00.000Z", "2000-02-29T00:00:00.000Z");
	assert_time("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z");
	assert_time("0001-01-01T00:00:00.000Z", "0001-01-01T00:00:00.000Z");
	assert_int_equal(time_parse("1970-01-01T00:00:00.000Z", &ms), 0);
	assert_int_equal(ms, 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(time_parse(bad[i], &ms), -ERR_INVALID);
	for (int i = 0; i < 20000; i++) {
		/* Years 1 to 9999. */
		int64_t again, at = (int64_t)(random_u64() % 315537897600000) - 62135596800000;
		char text[32];

		time_format(at, text);
		assert_int_equal(time_parse(text, &again), 0);
		assert_int_equal(again, at);
	}
	char text[32];
	time_format(INT64_MAX, text);
	time_format(INT64_MIN, text);
	assert_string_equal(text, "-292275055-05-16T16:47:04.192Z");
}

/* -- expressions -- */

static void resolves_expressions(void **state)
{
	struct pointer root = commit(NULL, 0, 1000, "root");
	struct pointer a = commit(&root, 1, 2000, "a");
	struct pointer b = commit(&root, 1, 3000, "b");
	struct pointer c = commit(&root, 1, 3500, "c");
	struct pointer three[] = {a, b, c};
	struct pointer merge = commit(three, 3, 4000, "merge");
	struct pointer head = commit(&merge, 1, 5000, "head");

	branch("main", &head);
	branch("v1.0-rc.1", &a);
	tag("v1", &b);
	tag("main", &root); /* the branch wins */
	assert_resolves("main", &head);
	assert_resolves("v1", &b);
	assert_resolves("v1.0-rc.1~1", &root);
	assert_resolves("main~0", &head);
	assert_resolves("main^0", &head);
	assert_resolves("main~", &merge);
	assert_resolves("main^", &merge);
	assert_resolves("main~1", &merge);
	assert_resolves("main~2", &a);
	assert_resolves("main~3", &root);
	assert_resolves("main^^", &a);
	assert_resolves("main~1^2", &b);
	assert_resolves("main^1^3~1", &root);
	assert_resolves("main~1^2~0^1", &root);
	assert_resolves("main~~^0~", &root);
	assert_resolves("main~0000000001", &merge);

	assert_unresolved("main~4", -ERR_NO_REVISION, "~4 leads beyond the first commit");
	assert_unresolved("main~4294967295", -ERR_NO_REVISION, "which is 3 back");
	assert_unresolved("main^2", -ERR_NO_REVISION, "has 1 parent");
	assert_unresolved("main~1^4", -ERR_NO_REVISION, "has 3 parents");
	assert_unresolved("main~99999999999", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("main~1x", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("main~-1", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("~1", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("^", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("@", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("@2026-11-21", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("a b", -ERR_BAD_NAME, "not a revision");
	assert_unresolved("../main", -ERR_BAD_NAME, "not a revision");
	char long_text[3000];
	memset(long_text, 'm', sizeof(long_text));
	long_text[sizeof(long_text) - 1] = '\0';
	assert_unresolved(long_text, -ERR_BAD_NAME, "not a revision");

	assert_unresolved("mian", -ERR_NO_REVISION,
	                  "no branch, tag or commit 'mian'; did you mean 'main'?");
	assert_unresolved("v2", -ERR_NO_REVISION, "did you mean 'v1'?");
	assert_unresolved("entirely-else", -ERR_NO_REVISION, "'entirely-else'");
	assert_unresolved("abc", -ERR_NO_REVISION, "'abc' is shorter than 6 digits");
	assert_unresolved("mian~3", -ERR_NO_REVISION, "did you mean 'main'?");
}

static void resolves_ids(void **state)
{
	struct pointer root = commit(NULL, 0, 1000, "root");
	struct pointer side = commit(&root, 1, 1500, "side");
	struct pointer head = commit(&root, 1, 2000, "head");
	struct pointer loose = commit(&side, 1, 3000, "loose");
	struct message message = {0};
	char hex[ID_HEX + 1];

	/* Reached by the reflog of a branch, by a tag, by neither. */
	branch("main", &side);
	struct ref ref = {0};
	assert_int_equal(ref_read(store, REF_BRANCH, "main", &ref, NULL), 0);
	assert_int_equal(ref_move(store, &ref, &head, &ann, NULL), 0);
	ref_release(&ref);
	const struct pointer *reached[] = {&root, &side, &head};
	for (size_t i = 0; i < ARRAY_SIZE(reached); i++) {
		for (size_t digits = 6; digits <= ID_HEX; digits++) {
			hex_of(reached[i], hex, digits);
			assert_resolves(hex, reached[i]);
		}
	}
	hex_of(&head, hex, 10);
	for (char *c = hex; *c; c++)
		*c = (char)(*c >= 'a' ? *c - 32 : *c);
	strcat(hex, "~1");
	assert_resolves(hex, &root);

	hex_of(&loose, hex, 8);
	assert_unresolved(hex, -ERR_NO_REVISION, "no branch, tag or commit");
	struct commit *read;
	assert_int_equal(commit_read(odb, &loose, &read, &message), 0);
	history_note(history, read);
	history_note(history, read);
	free(read);
	assert_resolves(hex, &loose);
	tag("later", &loose);
	assert_resolves(hex, &loose);

	/* A ref named like an id wins over its prefix, not over the whole. */
	hex_of(&head, hex, 12);
	tag(hex, &side);
	assert_resolves(hex, &side);
	branch(hex, &root);
	assert_resolves(hex, &root);
	hex_of(&head, hex, ID_HEX);
	branch(hex, &root);
	assert_resolves(hex, &head);
	hex[0] = hex[0] == '0' ? '1' : '0';
	assert_unresolved(hex, -ERR_NO_REVISION, "no branch, tag or commit");
	strcpy(hex, "abc");
	branch(hex, &side);
	assert_resolves(hex, &side);
}

static void new_commits_are_found(void **state)
{
	struct pointer at = commit(NULL, 0, 1, "first");
	struct ref ref = {0};
	char hex[ID_HEX + 1];

	branch("main", &at);
	assert_int_equal(ref_read(store, REF_BRANCH, "main", &ref, NULL), 0);
	for (int i = 0; i < 200; i++) {
		at = commit(&at, 1, i, "next");
		assert_int_equal(ref_move(store, &ref, &at, &ann, NULL), 0);
		if (i % 20 == 0) {
			hex_of(&at, hex, 9);
			assert_resolves(hex, &at);
		}
	}
	ref_release(&ref);
}

struct short_id {
	char hex[7];
	struct pointer pointer;
};

static int compare_short(const void *a, const void *b)
{
	return strcmp(((const struct short_id *)a)->hex, ((const struct short_id *)b)->hex);
}

#define MANY 12000

static void tells_what_is_ambiguous(void **state)
{
	struct short_id *ids = calloc(MANY, sizeof(*ids));
	struct pointer parents[2] = {0};
	char hex[ID_HEX + 1], text[16];
	size_t pairs = 0;

	/* 12,000 ids: some 4 pairs share 6 digits. */
	for (int i = 0; i < MANY; i++) {
		snprintf(text, sizeof(text), "number %d", i);
		ids[i].pointer = commit(parents, i > 0, i, text);
		parents[0] = ids[i].pointer;
		hex_of(&ids[i].pointer, ids[i].hex, 6);
	}
	branch("main", &parents[0]);
	qsort(ids, MANY, sizeof(*ids), compare_short);
	for (int i = 1; i < MANY; i++) {
		if (strcmp(ids[i - 1].hex, ids[i].hex) != 0)
			continue;
		pairs++;
		assert_unresolved(ids[i].hex, -ERR_AMBIGUOUS, "is ambiguous");
		hex_of(&ids[i].pointer, hex, 16);
		assert_unresolved(ids[i].hex, -ERR_AMBIGUOUS, hex);
		assert_resolves(hex, &ids[i].pointer);
		hex_of(&ids[i - 1].pointer, hex, 16);
		assert_unresolved(ids[i].hex, -ERR_AMBIGUOUS, hex);
	}
	print_message("%zu pairs\n", pairs);
	free(ids);
	if (pairs == 0)
		skip();
}

static void survives_a_lost_index(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct pointer head = commit(&root, 1, 2, "head");
	struct pointer orphan = commit(NULL, 0, 3, "orphan");
	struct kv_txn *txn;
	char hex[ID_HEX + 1], orphan_hex[ID_HEX + 1];

	branch("main", &head);
	hex_of(&root, hex, 12);
	assert_resolves(hex, &root);

	/* Reopened: known without a look at the records. */
	history_free(history);
	kv_close(kv);
	open_index();
	assert_resolves(hex, &root);
	struct commit *read;
	assert_int_equal(commit_read(odb, &orphan, &read, NULL), 0);
	read->self.place.pack[0] ^= 1; /* as if its pack had gone */
	history_note(history, read);
	free(read);
	hex_of(&orphan, orphan_hex, 12);
	assert_unresolved(orphan_hex, -ERR_NO_REVISION, "no branch, tag or commit");
	assert_unresolved(orphan_hex, -ERR_NO_REVISION, "no branch, tag or commit");

	/* Nonsense in it is as good as nothing. */
	assert_int_equal(kv_begin(kv, true, &txn), 0);
	assert_int_equal(kv_put(txn, 1, root.id.bytes, ID_BYTES, "nonsense", 8), 0);
	assert_int_equal(kv_put(txn, 1, head.id.bytes, ID_BYTES, "", 0), 0);
	assert_int_equal(kv_put(txn, 1, "short", 5, "x", 1), 0);
	assert_int_equal(kv_commit(txn), 0);
	history_free(history);
	assert_int_equal(history_new(odb, kv, &history), 0);
	assert_resolves(hex, &root);
	bool is;
	assert_int_equal(is_ancestor(history, &root, &head, &is, NULL), 0);
	assert_true(is);
	hex_of(&head, hex, 12);
	assert_resolves(hex, &head);
}

/* A commit noted by itself does not vouch for its ancestors. */
static void noted_commits_hide_no_ancestors(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct pointer middle = commit(&root, 1, 2, "middle");
	struct pointer head = commit(&middle, 1, 3, "head");
	struct commit *read;
	char hex[ID_HEX + 1];

	assert_int_equal(commit_read(odb, &head, &read, NULL), 0);
	history_note(history, read);
	free(read);
	hex_of(&head, hex, 12);
	assert_resolves(hex, &head);
	branch("main", &head);
	hex_of(&root, hex, 12);
	assert_resolves(hex, &root);
	hex_of(&middle, hex, 12);
	assert_resolves(hex, &middle);
}

/* Packs may be rewritten: what the index says of an old place is not believed of a new one. */
static void old_places_are_forgotten(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct pointer middle = commit(&root, 1, 2, "middle");
	struct pointer head = commit(&middle, 1, 3, "head");
	const struct pointer *all[] = {&root, &middle, &head};
	char hex[ID_HEX + 1];
	bool is;

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		struct commit *read;

		assert_int_equal(commit_read(odb, all[i], &read, NULL), 0);
		read->self.place.pack[0] ^= 1;
		for (size_t p = 0; p < read->parent_count; p++)
			read->parents[p].place.pack[0] ^= 1;
		history_note(history, read);
		free(read);
	}
	branch("main", &head);
	assert_resolves("main~1", &middle);
	assert_resolves("main~2", &root);
	assert_int_equal(is_ancestor(history, &root, &head, &is, NULL), 0);
	assert_true(is);
	hex_of(&root, hex, 12);
	assert_resolves(hex, &root);
}

static void damaged_refs_hide_nothing(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	char hex[ID_HEX + 1];

	branch("good", &root);
	assert_int_equal(object_put(store, "refs/branches/bad", "damaged!", 8, NULL), 0);
	hex_of(&root, hex, 8);
	assert_resolves(hex, &root);
	assert_unresolved("0123456789", -ERR_CORRUPT, "branch 'bad' is damaged");
	assert_unresolved("bad", -ERR_CORRUPT, "branch 'bad' is damaged");
	assert_resolves("good", &root);
}

/* -- branch@time -- */

static void put_reflog(const char *name, const struct pointer *after, const int64_t *times,
                       size_t count, const struct pointer *before)
{
	CLEANUP(buffer_release) struct buffer body = {0};
	struct ref_move moves[8] = {0};
	struct ref ref = {
	        .kind = REF_BRANCH, .commit = after[0], .moves = moves, .move_count = count};
	char key[64], who[] = "ann", command[] = "commit";

	snprintf(ref.name, sizeof(ref.name), "%s", name);
	for (size_t i = 0; i < count; i++) {
		moves[i] = (struct ref_move){.after = after[i],
		                             .before = i + 1 < count ? after[i + 1] : *before,
		                             .time_ms = times[i],
		                             .who = who,
		                             .command = command};
	}
	assert_int_equal(ref_encode(&ref, &body), 0);
	snprintf(key, sizeof(key), "refs/branches/%s", name);
	assert_int_equal(object_put(store, key, body.data, body.length, NULL), 0);
}

static int64_t ms(const char *iso)
{
	int64_t at;

	assert_int_equal(time_parse(iso, &at), 0);
	return at;
}

/* What is said about the answer, NULL: nothing. Valid until the next call. */
static const char *noted(const char *expression, bool known)
{
	static struct message note;
	struct message message = {{0}};
	CLEANUP(free_pointer) struct commit *found = NULL;
	const struct revision_options options = {.known = known, .note = &note};

	note.text[0] = '\0';
	assert_int_equal(revision_resolve_with(history, expression, &options, &found, &message), 0);
	return note.text[0] ? note.text : NULL;
}

static void travels_in_time(void **state)
{
	struct pointer one = commit(NULL, 0, ms("2026-01-01T00:00:00.000Z"), "one");
	struct pointer two = commit(&one, 1, ms("2026-02-01T00:00:00.000Z"), "two");
	struct pointer three = commit(&two, 1, ms("2026-03-01T00:00:00.000Z"), "three");
	struct pointer four = commit(&three, 1, ms("2026-04-01T00:00:00.000Z"), "four");
	/* Moved to four in April, reset to two in May, to three again in June; older moves are
	 * forgotten: before April it stood at three. */
	const struct pointer after[] = {three, two, four};
	const int64_t times[] = {ms("2026-06-01T10:00:00.000Z"), ms("2026-05-01T10:00:00.000Z"),
	                         ms("2026-04-01T10:00:00.000Z")};

	put_reflog("main", after, times, 3, &three);
	assert_resolves("main@2027-01-01", &three);
	assert_resolves("main@2026-06-01", &three);
	assert_resolves("main@2026-06-01T10:00", &three);
	assert_resolves("main@2026-06-01T12:00+02:00", &three);
	assert_resolves("main@2026-06-01T11:59+02:00", &two);
	assert_resolves("main@2026-06-01T09:59", &two);
	assert_resolves("main@2026-05-01T10:00:00.000Z", &two);
	assert_resolves("main@2026-05-01T09:59:59.999Z", &four);
	assert_resolves("main@2026-04-01T10:00~", &three);
	assert_resolves("main@2026-04-01T10:00^0~2", &two);
	assert_resolves("main@2026-04-01T09:00", &three);
	assert_resolves("main@2026-02-28", &two);
	assert_resolves("main@2026-01-01", &one);
	assert_unresolved("main@2025-12-31", -ERR_NO_REVISION, "2026-01-01T00:00:00.000Z");
	assert_unresolved("main@", -ERR_BAD_NAME, "not a time");
	assert_unresolved("main@noon", -ERR_BAD_NAME, "not a time");
	assert_unresolved("main@2026-01-01@2", -ERR_BAD_NAME, "not a time");
	assert_unresolved("mian@2026-01-01", -ERR_NO_REVISION, "did you mean 'main'?");
	assert_unresolved("ma in@2026-01-01", -ERR_BAD_NAME, "cannot name");

	/* Created in June at three: before that it stood nowhere. */
	put_reflog("young", &three, times, 1, &pointer_none);
	assert_unresolved("young@2026-02-15", -ERR_NO_REVISION, "no branch 'young' at 2026-02-15");
	assert_resolves("young@2026-06-01T10:00:00.000Z", &three);
	/* Deleted in May, made again in June. */
	const struct pointer lives[] = {three, pointer_none, two};
	put_reflog("twice", lives, times, 3, &pointer_none);
	assert_unresolved("twice@2026-05-15", -ERR_NO_REVISION, "was deleted");
	assert_resolves("twice@2026-04-15", &two);
	/* Made in April, deleted in June for good: it still knows where it stood. */
	const struct pointer gone[] = {pointer_none, three, two};
	put_reflog("gone", gone, times, 3, &pointer_none);
	assert_resolves("gone@2026-05-15", &three);
	assert_resolves("gone@2026-04-15~1", &one);
	assert_unresolved("gone@2026-07-01", -ERR_NO_REVISION, "no branch 'gone' at 2026-07-01");
	assert_unresolved("gone@2026-03-01", -ERR_NO_REVISION, "no branch 'gone' at 2026-03-01");
	assert_unresolved("gone", -ERR_NO_REVISION, "no branch, tag or commit 'gone'");
}

/* What commit times answer for forgotten moves may be wrong, so it is said; nothing else is. */
static void notes_what_is_not_sure(void **state)
{
	struct pointer one = commit(NULL, 0, ms("2026-01-01T00:00:00.000Z"), "one");
	struct pointer two = commit(&one, 1, ms("2026-02-01T00:00:00.000Z"), "two");
	const int64_t times[] = {ms("2026-04-01T10:00:00.000Z")};
	static const char *const sure[] = {"main", "main@2026-04-01", "main~1",
	                                   "main@2026-05-01~1"};

	put_reflog("main", &two, times, 1, &one);
	for (size_t i = 0; i < ARRAY_SIZE(sure); i++) {
		assert_null(noted(sure[i], i % 2 == 1));
	}
	assert_non_null(noted("main@2026-03-31", false));
	assert_non_null(noted("main@2026-01-01", true));
	assert_non_null(strstr(noted("main@2026-03-31~0", false),
	                       "the reflog of 'main' reaches back to 2026-04-01T10:00:00.000Z"));
}

/* Long walks are kept for the next time, more of them than there is room for. */
static void long_walks_end_where_they_did(void **state)
{
	enum { LENGTH = 700 };
	static struct pointer line[LENGTH];
	char expression[64], when[32];
	const struct pointer *head = &line[LENGTH - 1];
	int64_t later = ms("2026-06-01T10:00:00.000Z");

	for (size_t i = 0; i < LENGTH; i++)
		line[i] = commit(i > 0 ? &line[i - 1] : NULL, i > 0, (int64_t)i * 1000, "step");
	/* Where the oldest known move started is where the walk does. */
	put_reflog("main", &line[0], &later, 1, head);
	branch("tip", head);
	for (size_t round = 0; round < 2; round++) {
		for (size_t steps = 255; steps < LENGTH; steps += steps < 258 ? 1 : 5) {
			snprintf(expression, sizeof(expression), "tip~%zu", steps);
			assert_resolves(expression, &line[LENGTH - 1 - steps]);
			time_format((int64_t)(LENGTH - 1 - steps) * 1000 + 500, when);
			snprintf(expression, sizeof(expression), "main@%s", when);
			assert_resolves(expression, &line[LENGTH - 1 - steps]);
			snprintf(expression, sizeof(expression), "tip~1~%zu", steps - 1);
			assert_resolves(expression, &line[LENGTH - 1 - steps]);
		}
		assert_unresolved("tip~700", -ERR_NO_REVISION, "beyond the first commit");
		assert_unresolved("main@1969-12-31", -ERR_NO_REVISION, "nothing as old");
	}
}

/* -- random histories -- */

#define NODES_MAX 48

struct dag {
	size_t count;
	struct pointer nodes[NODES_MAX];
	int64_t times[NODES_MAX];
	size_t parents[NODES_MAX][3];
	size_t parent_count[NODES_MAX];
	uint64_t ancestors[NODES_MAX]; /* bits, itself included */
	uint64_t generation[NODES_MAX];
};

static uint64_t random_state;

static uint64_t random_below(uint64_t limit)
{
	/* xorshift64*: seeded, so that a failure can be repeated. */
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (random_state * 2685821657736338717u >> 20) % limit;
}

/* `reach` bounds how far back parents lie: small ones make criss-cross histories. */
static void make_dag(struct dag *dag, size_t count, size_t reach)
{
	memset(dag, 0, sizeof(*dag));
	dag->count = count;
	for (size_t i = 0; i < count; i++) {
		struct pointer parents[3];
		size_t wanted = i == 0 || random_below(12) == 0 ? 0 : 1 + random_below(3);

		dag->generation[i] = 1;
		for (size_t p = 0; p < wanted; p++) {
			size_t back = 1 + random_below(i < reach ? i : reach);
			size_t parent = i - back;
			bool twice = false;

			for (size_t k = 0; k < dag->parent_count[i]; k++)
				twice |= dag->parents[i][k] == parent;
			if (twice)
				continue;
			parents[dag->parent_count[i]] = dag->nodes[parent];
			dag->parents[i][dag->parent_count[i]++] = parent;
			dag->ancestors[i] |= dag->ancestors[parent];
			if (dag->generation[parent] >= dag->generation[i])
				dag->generation[i] = dag->generation[parent] + 1;
		}
		dag->ancestors[i] |= (uint64_t)1 << i;
		dag->times[i] = (int64_t)random_below(20);
		char text[40];
		snprintf(text, sizeof(text), "%zu %llu", i, (unsigned long long)random_state);
		dag->nodes[i] = commit(parents, dag->parent_count[i], dag->times[i], text);
	}
}

static uint64_t bases_by_force(const struct dag *dag, size_t a, size_t b)
{
	uint64_t common = dag->ancestors[a] & dag->ancestors[b], best = common;

	for (size_t i = 0; i < dag->count; i++) {
		if (common >> i & 1)
			best &= ~(dag->ancestors[i] & ~((uint64_t)1 << i));
	}
	return best;
}

static uint64_t bit_of(const struct dag *dag, const struct id *id)
{
	for (size_t i = 0; i < dag->count; i++) {
		if (id_equal(&dag->nodes[i].id, id))
			return (uint64_t)1 << i;
	}
	fail_msg("a commit that is not in the history");
	return 0;
}

static void compare_pair(const struct dag *dag, size_t a, size_t b, size_t *several)
{
	CLEANUP(free_pointer) struct pointer *bases = NULL;
	uint64_t found = 0;
	size_t count;
	bool is;

	assert_int_equal(merge_bases(history, &dag->nodes[a], &dag->nodes[b], &bases, &count, NULL),
	                 0);
	for (size_t i = 0; i < count; i++) {
		uint64_t bit = bit_of(dag, &bases[i].id);

		assert_false(found & bit);
		found |= bit;
	}
	assert_int_equal(found, bases_by_force(dag, a, b));
	*several += count > 1;
	assert_int_equal(is_ancestor(history, &dag->nodes[a], &dag->nodes[b], &is, NULL), 0);
	assert_int_equal(is, dag->ancestors[b] >> a & 1);
}

static void compare_with_force(int dags)
{
	struct dag dag;
	size_t pairs = 0, several = 0;

	random_bytes(&random_state, sizeof(random_state));
	print_message("seed %llu\n", (unsigned long long)random_state);
	for (int i = 0; i < dags; i++) {
		make_dag(&dag, 2 + random_below(NODES_MAX - 1), 2 + random_below(10));
		if (i % 3 == 0 && ref_create(store, REF_BRANCH, "all", &dag.nodes[dag.count - 1],
		                             &ann, NULL) == 0) {
			struct commit *none;

			revision_resolve(history, "ffffffffff", &none, NULL); /* feeds */
			assert_int_equal(ref_delete(store, REF_BRANCH, "all", &ann, NULL), 0);
		}
		for (int k = 0; k < 150; k++, pairs++)
			compare_pair(&dag, random_below(dag.count), random_below(dag.count),
			             &several);
	}
	print_message("%zu pairs, %zu with several bases\n", pairs, several);
	assert_true(several > pairs / 100);
}

static void ancestors_as_by_force(void **state)
{
	compare_with_force(100);
}

static void criss_cross_has_two_bases(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct pointer a = commit(&root, 1, 2, "a"), b = commit(&root, 1, 3, "b");
	struct pointer ab[] = {a, b}, ba[] = {b, a};
	struct pointer left = commit(ab, 2, 4, "left"), right = commit(ba, 2, 5, "right");
	struct pointer other = commit(NULL, 0, 6, "other");
	struct pointer *bases;
	size_t count;

	assert_int_equal(merge_bases(history, &left, &right, &bases, &count, NULL), 0);
	assert_int_equal(count, 2);
	assert_true(id_equal(&bases[0].id, &b.id)); /* the newer one */
	assert_true(id_equal(&bases[1].id, &a.id));
	free(bases);
	assert_int_equal(merge_bases(history, &left, &left, &bases, &count, NULL), 0);
	assert_int_equal(count, 1);
	assert_true(id_equal(&bases[0].id, &left.id));
	/* Bases come with their places. */
	struct commit *read;
	assert_int_equal(commit_read(odb, &bases[0], &read, NULL), 0);
	free(read);
	free(bases);
	assert_int_equal(merge_bases(history, &left, &other, &bases, &count, NULL), 0);
	assert_int_equal(count, 0);
	assert_null(bases);
}

static struct pointer forge(const struct pointer *parents, size_t count, uint64_t generation)
{
	CLEANUP(buffer_release) struct buffer logical = {0};
	CLEANUP(buffer_release) struct buffer places = {0};
	struct commit forged = {.root = {.mode = S_IFDIR | 0755},
	                        .parents = (struct pointer *)parents,
	                        .parent_count = count,
	                        .generation = generation,
	                        .author = "mallory",
	                        .message = "forged"};
	struct pointer pointer;

	assert_int_equal(commit_encode(&forged, &logical, &places), 0);
	assert_int_equal(packer_add_record(packer, RECORD_COMMIT, logical.data, logical.length,
	                                   places.data, places.length, &pointer, NULL),
	                 0);
	return pointer;
}

static void wrong_generations_are_damage(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct pointer a = commit(&root, 1, 2, "a"), b = commit(&a, 1, 3, "b");
	struct pointer both[] = {b, a};
	struct pointer forged = forge(both, 2, 2);
	struct message message = {0};
	struct history_walk *walk;
	struct pointer *bases;
	struct commit *read;
	size_t count;
	bool is;

	assert_int_equal(merge_bases(history, &forged, &b, &bases, &count, &message), -ERR_CORRUPT);
	assert_non_null(strstr(message.text, "generation"));
	assert_int_equal(is_ancestor(history, &root, &forged, &is, &message), -ERR_CORRUPT);
	assert_int_equal(history_walk_new(history, &forged, 1, NULL, &walk), 0);
	int rc;
	while ((rc = history_walk_next(walk, &read, &message)) == 0)
		free(read);
	assert_int_equal(rc, -ERR_CORRUPT);
	assert_int_equal(history_walk_next(walk, &read, &message), -ERR_CORRUPT);
	history_walk_free(walk);
}

/* -- walks -- */

/* What the walk promises, done plainly: among those without an untold child the newest first. */
static size_t order_by_force(const struct dag *dag, uint64_t reached, bool first_parent,
                             size_t order[NODES_MAX])
{
	size_t count = 0;
	uint64_t left = reached;

	while (left) {
		size_t best = SIZE_MAX;
		uint64_t blocked = 0;

		for (size_t i = 0; i < dag->count; i++) {
			if (!(left >> i & 1))
				continue;
			for (size_t p = 0; p < dag->parent_count[i] && (p == 0 || !first_parent);
			     p++)
				blocked |= (uint64_t)1 << dag->parents[i][p];
		}
		for (size_t i = 0; i < dag->count; i++) {
			if (!(left >> i & 1) || blocked >> i & 1)
				continue;
			if (best == SIZE_MAX || dag->times[i] > dag->times[best] ||
			    (dag->times[i] == dag->times[best] &&
			     (dag->generation[i] > dag->generation[best] ||
			      (dag->generation[i] == dag->generation[best] &&
			       memcmp(&dag->nodes[i].id, &dag->nodes[best].id, ID_BYTES) < 0))))
				best = i;
		}
		order[count++] = best;
		left &= ~((uint64_t)1 << best);
	}
	return count;
}

static uint64_t reached_by_force(const struct dag *dag, size_t start, bool first_parent)
{
	uint64_t reached = 0;

	if (!first_parent)
		return dag->ancestors[start];
	for (;;) {
		reached |= (uint64_t)1 << start;
		if (dag->parent_count[start] == 0)
			return reached;
		start = dag->parents[start][0];
	}
}

static void compare_walk(const struct dag *dag, bool first_parent)
{
	struct walk_options options = {.first_parent = first_parent};
	struct pointer starts[4];
	size_t start_count = 1 + random_below(4), order[NODES_MAX];
	struct history_walk *walk;
	struct commit *read;
	uint64_t reached = 0;

	for (size_t i = 0; i < start_count; i++) {
		size_t start = random_below(dag->count);

		starts[i] = dag->nodes[start];
		reached |= reached_by_force(dag, start, first_parent);
	}
	size_t count = order_by_force(dag, reached, first_parent, order);
	assert_int_equal(history_walk_new(history, starts, start_count, &options, &walk), 0);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(history_walk_next(walk, &read, NULL), 0);
		assert_int_equal(bit_of(dag, &read->self.id), (uint64_t)1 << order[i]);
		free(read);
	}
	assert_int_equal(history_walk_next(walk, &read, NULL), -ERR_NOT_FOUND);
	assert_int_equal(history_walk_next(walk, &read, NULL), -ERR_NOT_FOUND);
	history_walk_free(walk);
}

static void walks_in_order(void **state)
{
	struct dag dag;

	random_bytes(&random_state, sizeof(random_state));
	print_message("seed %llu\n", (unsigned long long)random_state);
	for (int i = 0; i < 60; i++) {
		make_dag(&dag, 1 + random_below(NODES_MAX), 2 + random_below(10));
		for (int k = 0; k < 20; k++)
			compare_walk(&dag, k % 2);
	}
	struct history_walk *walk;
	struct commit *read;
	assert_int_equal(history_walk_new(history, NULL, 0, NULL, &walk), 0);
	assert_int_equal(history_walk_next(walk, &read, NULL), -ERR_NOT_FOUND);
	history_walk_free(walk);
}

static void a_missing_pack_is_not_the_end(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct history_walk *walk;
	struct message message = {0};
	struct commit *read;

	root.place.pack[3] ^= 1;
	struct pointer head = forge(&root, 1, 2);
	assert_int_equal(history_walk_new(history, &head, 1, NULL, &walk), 0);
	assert_int_equal(history_walk_next(walk, &read, &message), -ERR_CORRUPT);
	assert_true(message.text[0] != '\0');
	history_walk_free(walk);
}

/* -- walks by path -- */

struct entries {
	const struct tree_entry *entries;
	size_t count, at;
};

static int next_entry(void *context, struct tree_edit *ret_edit)
{
	struct entries *entries = context;

	if (entries->at == entries->count)
		return -ERR_NOT_FOUND;
	const struct tree_entry *entry = &entries->entries[entries->at++];
	*ret_edit = (struct tree_edit){entry->name, entry->name_length, entry};
	return 0;
}

static struct pointer tree_of(const struct tree_entry *list, size_t count)
{
	struct entries entries = {list, count, 0};
	struct pointer root;

	assert_int_equal(tree_apply(odb, packer, &pointer_none, next_entry, &entries, &root, NULL),
	                 0);
	return root;
}

static struct tree_entry file(const char *name, uint8_t content, int64_t mtime)
{
	struct tree_entry entry = {.name = name, .name_length = strlen(name)};

	entry.attributes.mode = S_IFREG | 0644;
	entry.attributes.mtime_ns = mtime;
	entry.content.kind = CONTENT_CHUNK;
	entry.content.size = 5;
	entry.content.pointer.place = (struct place){.offset = 64, .stored = 5, .raw = 5};
	memset(&entry.content.pointer.id, content, ID_BYTES);
	return entry;
}

static struct tree_entry subdirectory(const char *name, struct pointer root, uint32_t mode)
{
	struct tree_entry entry = {.name = name, .name_length = strlen(name)};

	entry.attributes.mode = S_IFDIR | mode;
	entry.content.pointer = root;
	return entry;
}

/* a/b/x, a/y, z */
static struct pointer sample(uint8_t x, int64_t x_time, uint8_t y, uint8_t z, uint32_t a_mode)
{
	struct tree_entry in_b[] = {file("x", x, x_time)};
	struct tree_entry in_a[] = {subdirectory("b", tree_of(in_b, x != 0), 0755),
	                            file("y", y, 0)};
	struct tree_entry in_root[] = {subdirectory("a", tree_of(in_a, y ? 2 : 1), a_mode),
	                               file("z", z, 0)};

	return tree_of(in_root, z ? 2 : 1);
}

static void assert_log(const struct pointer *head, bool first_parent, const char *path,
                       const char *expected)
{
	const char *paths[] = {path};
	struct walk_options options = {
	        .first_parent = first_parent, .paths = paths, .path_count = 1};
	struct history_walk *walk;
	struct commit *read;
	char text[100] = "";
	int rc;

	assert_int_equal(history_walk_new(history, head, 1, &options, &walk), 0);
	while ((rc = history_walk_next(walk, &read, NULL)) == 0) {
		strcat(text, read->message);
		free(read);
	}
	assert_int_equal(rc, -ERR_NOT_FOUND);
	history_walk_free(walk);
	if (strcmp(text, expected) != 0)
		fail_msg("%s: %s, not %s", path, text, expected);
}

static void walks_by_path(void **state)
{
	struct pointer trees[] = {
	        sample(1, 0, 1, 1, 0755), /* 0: all of them */
	        sample(1, 0, 1, 2, 0755), /* 1: z */
	        sample(2, 0, 1, 2, 0755), /* 2: a/b/x */
	        sample(2, 9, 1, 2, 0755), /* 3: a time alone */
	        sample(2, 9, 1, 2, 0700), /* 4: mode of a */
	        sample(2, 9, 0, 2, 0700), /* 5: a/y removed */
	        sample(0, 0, 0, 2, 0700), /* 6: a/b/x removed */
	};
	struct pointer at = pointer_none;

	for (size_t i = 0; i < ARRAY_SIZE(trees); i++) {
		char text[2] = {(char)('0' + i), '\0'};

		at = commit_of(&trees[i], &at, i > 0, (int64_t)i, text);
	}
	assert_log(&at, false, "z", "10");
	assert_log(&at, false, "a", "65420");
	assert_log(&at, false, "a/b", "620");
	assert_log(&at, false, "a/b/x", "620");
	assert_log(&at, false, "a/b/x/below", "");
	assert_log(&at, false, "a/y", "50");
	assert_log(&at, false, "nothing", "");
	assert_log(&at, false, "z/below", "");
	assert_log(&at, false, "",
	           "6542"
	           "10");
	const char *both[] = {"z", "a/y"};
	struct walk_options options = {.paths = both, .path_count = 2};
	struct history_walk *walk;
	struct commit *read;
	assert_int_equal(history_walk_new(history, &at, 1, &options, &walk), 0);
	for (const char *c = "510"; *c; c++) {
		assert_int_equal(history_walk_next(walk, &read, NULL), 0);
		assert_int_equal(read->message[0], *c);
		free(read);
	}
	assert_int_equal(history_walk_next(walk, &read, NULL), -ERR_NOT_FOUND);
	history_walk_free(walk);

	/* A merge counts when it differs from every parent. */
	struct pointer base = commit_of(&trees[0], NULL, 0, 1, "r");
	struct pointer sides[] = {commit_of(&trees[0], &base, 1, 2, "s"),
	                          commit_of(&trees[1], &base, 1, 3, "t")};
	struct pointer taken = commit_of(&trees[1], sides, 2, 4, "m");
	struct pointer evil = commit_of(&trees[2], sides, 2, 5, "n");
	assert_log(&taken, false, "z", "tr");
	assert_log(&taken, true, "z", "mr");
	assert_log(&evil, false, "a/b/x", "nr");
}

/* -- many threads -- */

static struct pointer shared_nodes[60];

static void *ask_often(void *context)
{
	for (size_t i = 0; i < 200; i++) {
		const struct pointer *a = &shared_nodes[i * 7 % 60];
		struct pointer *bases = NULL;
		struct commit *read = NULL;
		char hex[ID_HEX + 1];
		size_t count;

		hex_of(a, hex, 14);
		if (revision_resolve(history, hex, &read, NULL) < 0)
			abort();
		history_note(history, read);
		if (merge_bases(history, a, &shared_nodes[i % 60], &bases, &count, NULL) < 0)
			abort();
		free(bases);
		free(read);
	}
	return NULL;
}

static void many_threads_may_ask(void **state)
{
	pthread_t threads[3];

	for (size_t i = 0; i < 60; i++)
		shared_nodes[i] = commit(&shared_nodes[i > 0 ? i - 1 : 0], i > 0, (int64_t)i, "n");
	branch("main", &shared_nodes[59]);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_often, NULL), 0);
	for (size_t i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TEST_WITH_INDEX(name) \
	{ \
#name "_with_index", name, setup_with_index, teardown, NULL \
	}
#define TEST_BOTH(name) TEST(name), TEST_WITH_INDEX(name)
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(parses_times),
	        TEST_BOTH(resolves_expressions),
	        TEST_BOTH(resolves_ids),
	        TEST_BOTH(new_commits_are_found),
	        TEST_BOTH(tells_what_is_ambiguous),
	        TEST_WITH_INDEX(survives_a_lost_index),
	        TEST_BOTH(noted_commits_hide_no_ancestors),
	        TEST_BOTH(old_places_are_forgotten),
	        TEST_BOTH(damaged_refs_hide_nothing),
	        TEST_BOTH(travels_in_time),
	        TEST_BOTH(notes_what_is_not_sure),
	        TEST_BOTH(long_walks_end_where_they_did),
	        TEST_BOTH(ancestors_as_by_force),
	        TEST(criss_cross_has_two_bases),
	        TEST_BOTH(wrong_generations_are_damage),
	        TEST_BOTH(walks_in_order),
	        TEST(a_missing_pack_is_not_the_end),
	        TEST(walks_by_path),
	        TEST_BOTH(many_threads_may_ask),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
