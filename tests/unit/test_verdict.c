/* Verdicts beside their commits, and the audit log: written once, read whatever is damaged. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "fs/json.h"
#include "fs/publish/verdict.h"
#include "refs/history.h"

#include <cjson/cJSON.h>
#include <cmocka.h>

static struct id id_of(uint8_t byte)
{
	struct id id;
	memset(id.bytes, byte, sizeof id.bytes);
	return id;
}

static struct verdict_check checks[] = {
        {.name = "nulls",
         .verdict = VERDICT_FAILED,
         .exit_code = 1,
         .took_ms = 1234,
         .path_count = 3,
         .output =
                 "t/a.parquet: column delay: 12 of 502222 rows are NULL\nand \x1b[31mred\x1b[0m\n"},
        {.name = "slow",
         .verdict = VERDICT_ERROR,
         .exit_code = -1,
         .signal = 15,
         .timed_out = true,
         .output_cut = true,
         .took_ms = 600000,
         .path_count = 1,
         .output = "\"quoted\" \\ d\xc3\xa9lay"},
        {.name = "other", .verdict = VERDICT_SKIPPED, .exit_code = -1, .output = ""},
        {.name = "good",
         .verdict = VERDICT_PASSED,
         .took_ms = 5,
         .path_count = 1,
         .output = "well"},
};

static struct verdict sample(void)
{
	return (struct verdict){.verdict = VERDICT_ERROR,
	                        .candidate = id_of(1),
	                        .source_id = id_of(2),
	                        .target_id = id_of(3),
	                        .rules_id = id_of(5),
	                        .source = "dev~1",
	                        .target = "main",
	                        .who = "me@here",
	                        .host = "here",
	                        .started_ms = 1795280000123,
	                        .took_ms = 601239,
	                        .checks = checks,
	                        .check_count = ARRAY_SIZE(checks)};
}

static void expect_same(const struct verdict *a, const struct verdict *b)
{
	assert_int_equal(a->verdict, b->verdict);
	assert_true(id_equal(&a->candidate, &b->candidate));
	assert_true(id_equal(&a->source_id, &b->source_id));
	assert_true(id_equal(&a->target_id, &b->target_id));
	assert_true(id_equal(&a->base_id, &b->base_id));
	assert_true(id_equal(&a->rules_id, &b->rules_id));
	assert_string_equal(a->source, b->source);
	assert_string_equal(a->target, b->target);
	assert_string_equal(a->who, b->who);
	assert_string_equal(a->host, b->host);
	assert_int_equal(a->started_ms, b->started_ms);
	assert_int_equal(a->took_ms, b->took_ms);
	assert_int_equal(a->check_count, b->check_count);
	for (size_t i = 0; i < a->check_count; i++) {
		const struct verdict_check *left = &a->checks[i], *right = &b->checks[i];
		assert_string_equal(left->name, right->name);
		assert_int_equal(left->verdict, right->verdict);
		assert_int_equal(left->exit_code, right->exit_code);
		assert_int_equal(left->signal, right->signal);
		assert_int_equal(left->timed_out, right->timed_out);
		assert_int_equal(left->output_cut, right->output_cut);
		assert_int_equal(left->took_ms, right->took_ms);
		assert_int_equal(left->path_count, right->path_count);
		assert_string_equal(left->output, right->output);
	}
}

static void test_round_trip(void **state)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	CLEANUP(verdict_release) struct verdict read = {0};
	struct verdict verdict = sample();
	assert_int_equal(verdict_encode(&verdict, &bytes), 0);
	assert_int_equal(verdict_decode(bytes.data, bytes.length, &read), 0);
	expect_same(&verdict, &read);
}

/* `from` in the encoded sample becomes `to`. */
static int decode_changed(const char *from, const char *to)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	CLEANUP(verdict_release) struct verdict read = {0};
	struct verdict verdict = sample();
	char changed[4096];
	assert_int_equal(verdict_encode(&verdict, &bytes), 0);
	buffer_u8(&bytes, 0);
	const char *text = (const char *)bytes.data, *at = strstr(text, from);
	assert_non_null(at);
	int length = snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, to,
	                      at + strlen(from));
	assert_true(length > 0 && length < (int)sizeof changed);
	return verdict_decode(changed, (size_t)length, &read);
}

static void test_damage_is_told(void **state)
{
	static const char *const changes[][2] = {
	        {"\"version\":2", "\"version\":0"},
	        {"\"version\":2,", ""},
	        {"\"verdict\":\"error\"", "\"verdict\":\"fine\""},
	        {"\"verdict\":\"error\"", "\"verdict\":\"skipped\""},
	        {"\"verdict\":\"error\"", "\"verdict\":\"error\",\"extra\":1"},
	        {"\"candidate\":\"0101", "\"candidate\":\"01"},
	        {"\"candidate\":\"0101", "\"candidate\":\"01AF"},
	        {"\"source\":\"dev~1\",", ""},
	        {"\"started\":\"2026", "\"started\":\"x2026"},
	        {"\"exit_code\":1", "\"exit_code\":256"},
	        {"\"exit_code\":1", "\"exit_code\":-1"},
	        {"\"signal\":15", "\"signal\":\"TERM\""},
	        {"\"timed_out\":true", "\"timed_out\":1"},
	        {"\"paths\":3", "\"paths\":3.5"},
	        {"\"checks\":[", "\"checks\":[[],"},
	        {"\"name\":\"nulls\"", "\"name\":\"nulls\",\"name\":\"x\""},
	        {"12 of", "12\\u0000of"},
	        {"{", ""},
	};
	for (size_t i = 0; i < ARRAY_SIZE(changes); i++)
		assert_int_equal(decode_changed(changes[i][0], changes[i][1]), -ERR_CORRUPT);
	assert_int_equal(decode_changed("\"version\":2,", "\"version\":3,\"new\":[],"),
	                 -ERR_VERSION);
	assert_int_equal(decode_changed("version", "version"), 0);
}

static void test_every_cut_is_damage(void **state)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	struct verdict verdict = sample();
	assert_int_equal(verdict_encode(&verdict, &bytes), 0);
	for (size_t length = 0; length < bytes.length; length++) {
		struct verdict read = {0};
		assert_int_equal(verdict_decode(bytes.data, length, &read), -ERR_CORRUPT);
		assert_null(read.checks);
	}
}

static void test_for_people(void **state)
{
	CLEANUP(buffer_release) struct buffer text = {0};
	struct message message = {{0}};
	struct verdict verdict = sample();
	assert_int_equal(verdict_text(&verdict, &text), 0);
	buffer_u8(&text, 0);
	const char *all = (const char *)text.data;
	assert_non_null(strstr(all, "failed   nulls"));
	assert_non_null(strstr(all, "exit code 1, 1.2 s"));
	assert_non_null(
	        strstr(all, "      t/a.parquet: column delay: 12 of 502222 rows are NULL\n"));
	assert_non_null(strstr(all, "out of time after 600.0 s"));
	assert_non_null(strstr(all, "no changed path concerns it"));
	assert_null(strchr(all, '\x1b'));
	assert_null(strstr(all, "well")); /* it passed: nothing to read */
	assert_int_equal(verdict_fail(&verdict, -ERR_REFUSED, &message), -ERR_REFUSED);
	assert_string_equal(
	        message.text,
	        "audit 'nulls' failed (exit code 1, 1.2 s): t/a.parquet: column delay: 12 "
	        "of 502222 rows are NULL, and 1 more did not pass; 'main' did not move");
}

struct seen {
	size_t verdicts, damaged;
	int64_t last_ms;
	char why[1024];
};

static int note_verdict(void *context, const char *key, const struct verdict *verdict,
                        const struct message *why)
{
	struct seen *seen = context;
	assert_int_equal(strncmp(key, "audits/", 7), 0);
	assert_true(!verdict == (why != NULL));
	if (!verdict) {
		seen->damaged++;
		strcpy(seen->why, why->text);
		return 0;
	}
	assert_true(verdict->took_ms > seen->last_ms);
	seen->last_ms = verdict->took_ms;
	seen->verdicts++;
	return 0;
}

static void key_of(const struct id *commit, const char *name, char ret_key[128])
{
	char hex[ID_HEX + 1];
	id_to_hex(commit, hex);
	snprintf(ret_key, 128, "audits/%s/%s", hex, name);
}

static void test_the_rest_of_damaged_ones_is_read(void **state)
{
	struct object_store *store;
	struct verdict verdict = sample();
	struct seen seen = {0}, none = {0};
	struct id other = id_of(9);
	char key[128];
	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(verdict_list(store, &verdict.candidate, note_verdict, &none, NULL), 0);
	assert_int_equal(none.verdicts + none.damaged, 0);
	for (int i = 0; i < 3; i++) {
		verdict.took_ms = 10 + i;
		assert_int_equal(verdict_store(store, &verdict, NULL), 0);
		struct timespec pause = {.tv_nsec = 2000000};
		nanosleep(&pause, NULL);
	}
	key_of(&verdict.candidate, "0000000000001-00", key);
	assert_int_equal(object_put(store, key, "{\"version\":2", 12, NULL), 0);
	key_of(&verdict.candidate, "9999999999998-00", key);
	assert_int_equal(object_put(store, key, "{\"version\":7}", 13, NULL), 0);
	key_of(&verdict.candidate, "somebody-elses-note", key);
	assert_int_equal(object_put(store, key, "hello", 5, NULL), 0);
	key_of(&other, "0000000000001-00", key);
	assert_int_equal(object_put(store, key, "", 0, NULL), 0);
	assert_int_equal(verdict_list(store, &verdict.candidate, note_verdict, &seen, NULL), 0);
	assert_int_equal(seen.verdicts, 3);
	assert_int_equal(seen.damaged, 2);
	assert_non_null(strstr(seen.why, "version 7"));
	object_store_free(store);
}

static int note_bad(void *context, const char *key, const char *why)
{
	unsigned *bad = context;
	assert_true(key[0] && why[0]);
	++*bad;
	return 0;
}

static int keep_key(void *context, const struct object_info *info)
{
	snprintf(context, 128, "%s", info->key);
	return 0;
}

/* Any flipped bit, another's place, and another's bytes. */
static void test_no_bit_flips_unnoticed(void **state)
{
	struct object_store *store;
	CLEANUP(buffer_release) struct buffer bytes = {0};
	CLEANUP(json_cleanup) cJSON *entry = cJSON_CreateObject();
	struct verdict verdict = sample();
	char keys[2][128];
	unsigned bad = 0, expected = 0;
	cJSON_AddStringToObject(entry, "what", "published");
	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(verdict_store(store, &verdict, NULL), 0);
	assert_int_equal(audit_log_append(store, entry, NULL), 0);
	assert_int_equal(object_list(store, "audits/", keep_key, keys[0], NULL), 0);
	assert_int_equal(object_list(store, "log/", keep_key, keys[1], NULL), 0);
	assert_int_equal(records_verify(store, note_bad, &bad, NULL), 0);
	assert_int_equal(bad, 0);
	for (int i = 0; i < 2; i++) {
		struct etag etag;
		buffer_clear(&bytes);
		assert_int_equal(object_get(store, keys[i], 0, UINT64_MAX, &bytes, &etag, NULL), 0);
		for (size_t bit = 0; bit < bytes.length * 8; bit++) {
			bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
			object_put(store, keys[i], bytes.data, bytes.length, NULL);
			assert_int_equal(records_verify(store, note_bad, &bad, NULL), 0);
			assert_int_equal(bad, ++expected);
			bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
		object_put(store, keys[i], bytes.data, bytes.length, NULL);
	}
	/* A verdict about one commit in the place of another's. */
	buffer_clear(&bytes);
	struct etag etag;
	assert_int_equal(object_get(store, keys[0], 0, UINT64_MAX, &bytes, &etag, NULL), 0);
	char *digit = keys[0] + strlen("audits/");
	*digit = *digit == '0' ? '1' : '0';
	object_put(store, keys[0], bytes.data, bytes.length, NULL);
	assert_int_equal(records_verify(store, note_bad, &bad, NULL), 0);
	assert_int_equal(bad, expected + 1);
	object_store_free(store);
}

static void test_of_many_the_newest(void **state)
{
	struct object_store *store;
	CLEANUP(buffer_release) struct buffer bytes = {0};
	struct verdict verdict = sample();
	struct seen seen = {0};
	assert_int_equal(object_memory_open(&store), 0);
	for (int i = 1; i <= VERDICT_LIST_MAX + 50; i++) {
		char key[128], name[32];
		verdict.took_ms = i;
		buffer_clear(&bytes);
		assert_int_equal(verdict_encode(&verdict, &bytes), 0);
		struct id sum;
		char hex[ID_HEX + 1];
		sha256_of(bytes.data, bytes.length, &sum);
		id_to_hex(&sum, hex);
		snprintf(name, sizeof name, "%013d-%.16s", i, hex);
		key_of(&verdict.candidate, name, key);
		assert_int_equal(object_put(store, key, bytes.data, bytes.length, NULL), 0);
	}
	seen.last_ms = 50;
	assert_int_equal(verdict_list(store, &verdict.candidate, note_verdict, &seen, NULL), 0);
	assert_int_equal(seen.verdicts, VERDICT_LIST_MAX);
	assert_int_equal(seen.last_ms, VERDICT_LIST_MAX + 50);
	object_store_free(store);
}

static void test_what_nobody_could_read_is_not_stored(void **state)
{
	struct object_store *store;
	struct verdict verdict = sample();
	struct seen seen = {0};
	CLEANUP(free_pointer) char *long_name = malloc(10001);
	memset(long_name, 'x', 10000);
	long_name[10000] = '\0';
	verdict.source = long_name;
	assert_int_equal(object_memory_open(&store), 0);
	assert_true(verdict_store(store, &verdict, NULL) < 0);
	assert_int_equal(verdict_list(store, &verdict.candidate, note_verdict, &seen, NULL), 0);
	assert_int_equal(seen.verdicts + seen.damaged, 0);
	object_store_free(store);
}

/* -- the log -- */

static int append(struct object_store *store, const char *branch, int number)
{
	cJSON *entry = cJSON_CreateObject();
	cJSON_AddStringToObject(entry, "branch", branch);
	cJSON_AddNumberToObject(entry, "number", number);
	cJSON_AddStringToObject(entry, "time", "not this");
	int error = audit_log_append(store, entry, NULL);
	cJSON_Delete(entry);
	return error;
}

static int append_at(struct object_store *store, int64_t time_ms, const char *text)
{
	char day[32], key[128];
	time_format(time_ms, day);
	snprintf(key, sizeof key, "log/%.10s/%013lld-%016d", day, (long long)time_ms, 0);
	return object_put(store, key, text, strlen(text), NULL);
}

struct entries {
	int numbers[32];
	size_t count, damaged;
};

static int note_entry(void *context, const struct cJSON *entry)
{
	struct entries *entries = context;
	const cJSON *time = cJSON_GetObjectItem(entry, "time");
	int64_t time_ms;
	if (cJSON_HasObjectItem(entry, "damaged")) {
		assert_true(cJSON_HasObjectItem(entry, "key"));
		entries->damaged++;
		return 0;
	}
	if (cJSON_HasObjectItem(entry, "host")) /* one that was appended */
		assert_int_equal(time_parse(time->valuestring, &time_ms), 0);
	entries->numbers[entries->count++] = cJSON_GetObjectItem(entry, "number")->valueint;
	return 0;
}

static void expect_entries(struct object_store *store, int64_t since_ms, const char *branch,
                           size_t limit, const char *numbers)
{
	struct entries entries = {0};
	char text[128] = "";
	assert_int_equal(audit_log_list(store, since_ms, branch, limit, note_entry, &entries, NULL),
	                 0);
	for (size_t i = 0; i < entries.count; i++)
		snprintf(text + strlen(text), sizeof text - strlen(text), "%d ",
		         entries.numbers[i]);
	assert_string_equal(text, numbers);
}

static void test_the_log_newest_last(void **state)
{
	struct object_store *store;
	assert_int_equal(object_memory_open(&store), 0);
	expect_entries(store, 0, NULL, 10, "");
	for (int i = 0; i < 6; i++) {
		assert_int_equal(append(store, i % 2 ? "dev" : "main", i), 0);
		struct timespec pause = {.tv_nsec = 2000000};
		nanosleep(&pause, NULL);
	}
	expect_entries(store, 0, NULL, 10, "0 1 2 3 4 5 ");
	expect_entries(store, 0, NULL, 2, "4 5 ");
	expect_entries(store, 0, NULL, 0, "");
	expect_entries(store, 0, "dev", 10, "1 3 5 ");
	expect_entries(store, 0, "dev", 2, "3 5 ");
	expect_entries(store, 0, "none", 10, "");
	expect_entries(store, clock_wall_ms() + 1000, NULL, 10, "");
	/* Years ago, and from a host whose clock is fast. */
	int64_t now_ms = clock_wall_ms();
	assert_int_equal(
	        append_at(store, 1000000000000, "{\"version\":1,\"number\":-1,\"branch\":\"dev\"}"),
	        0);
	assert_int_equal(append_at(store, now_ms + 3600000,
	                           "{\"version\":1,\"number\":99,\"branch\":\"dev\"}"),
	                 0);
	expect_entries(store, 0, NULL, 10, "-1 0 1 2 3 4 5 99 ");
	expect_entries(store, 0, NULL, 3, "4 5 99 ");
	expect_entries(store, 0, "dev", 4, "1 3 5 99 ");
	expect_entries(store, 0, "dev", 5, "-1 1 3 5 99 ");
	expect_entries(store, 1000000000001, NULL, 10, "0 1 2 3 4 5 99 ");
	expect_entries(store, now_ms + 1000, NULL, 10, "99 ");
	object_store_free(store);
}

static uint64_t requests_of(struct object_store *store, enum object_request kind)
{
	struct object_stats stats;
	object_stats(store, &stats);
	return stats.requests[kind];
}

/* The newest few cost neither a listing of years nor a get of the others. */
static void test_what_looking_at_the_log_costs(void **state)
{
	struct object_store *store;
	int64_t now_ms = clock_wall_ms();
	assert_int_equal(object_memory_open(&store), 0);
	for (int i = 0; i < 200; i++)
		assert_int_equal(append_at(store, now_ms - i * (int64_t)60000,
		                           "{\"version\":1,\"number\":7,\"branch\":\"main\"}"),
		                 0);
	uint64_t gets = requests_of(store, OBJECT_GET), lists = requests_of(store, OBJECT_LIST);
	expect_entries(store, 0, "main", 5, "7 7 7 7 7 ");
	assert_int_equal(requests_of(store, OBJECT_GET) - gets, 5);
	assert_int_equal(requests_of(store, OBJECT_LIST) - lists, 3);
	/* Those of another branch are found among them by at most twice as many gets. */
	for (int i = 0; i < 3; i++)
		assert_int_equal(append_at(store, now_ms - 30 * 60000 - 7 - i,
		                           "{\"version\":1,\"number\":8,\"branch\":\"dev\"}"),
		                 0);
	gets = requests_of(store, OBJECT_GET);
	expect_entries(store, 0, "dev", 3, "8 8 8 ");
	assert_in_range(requests_of(store, OBJECT_GET) - gets, 33, 64);
	object_store_free(store);
}

static void test_damaged_entries_are_named(void **state)
{
	struct object_store *store;
	struct entries entries = {0};
	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(append(store, "main", 1), 0);
	assert_int_equal(append_at(store, 5000, "{\"version\":1,"), 0);
	assert_int_equal(append_at(store, 6000, "\xff\xfe"), 0);
	assert_int_equal(append_at(store, 7000, "{\"version\":3}"), 0);
	assert_int_equal(append_at(store, 8000, ""), 0);
	assert_int_equal(audit_log_list(store, 0, "main", 10, note_entry, &entries, NULL), 0);
	assert_int_equal(entries.damaged, 4);
	assert_int_equal(entries.count, 1);
	object_store_free(store);
}

static void test_an_entry_has_a_limit(void **state)
{
	struct object_store *store;
	cJSON *entry = cJSON_CreateObject();
	CLEANUP(free_pointer) char *large = malloc(LOG_ENTRY_MAX + 1);
	memset(large, 'x', LOG_ENTRY_MAX);
	large[LOG_ENTRY_MAX] = '\0';
	cJSON_AddStringToObject(entry, "what", large);
	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(audit_log_append(store, entry, NULL), -ERR_TOO_LARGE);
	expect_entries(store, 0, NULL, 10, "");
	cJSON_Delete(entry);
	object_store_free(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_round_trip),
	        cmocka_unit_test(test_damage_is_told),
	        cmocka_unit_test(test_every_cut_is_damage),
	        cmocka_unit_test(test_for_people),
	        cmocka_unit_test(test_the_rest_of_damaged_ones_is_read),
	        cmocka_unit_test(test_no_bit_flips_unnoticed),
	        cmocka_unit_test(test_of_many_the_newest),
	        cmocka_unit_test(test_what_nobody_could_read_is_not_stored),
	        cmocka_unit_test(test_the_log_newest_last),
	        cmocka_unit_test(test_what_looking_at_the_log_costs),
	        cmocka_unit_test(test_damaged_entries_are_named),
	        cmocka_unit_test(test_an_entry_has_a_limit),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
