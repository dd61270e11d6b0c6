/*
 * Revisions: times, expressions, ids and their prefixes, where a branch stood.
 */
#include "tests/unit/history_world.h"

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

int main(void)
{
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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
