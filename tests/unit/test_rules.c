/* Rules of branches: strict to read, the same bytes for the same rules, one request each. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include "fs/publish/rules.h"

#include <cmocka.h>

#define AUDIT(fields) "{\"version\":1,\"audits\":[{" fields "}]}"
#define GOOD_AUDIT "{\"name\":\"a\",\"command\":[\"not-null\"]}"
#define WEBHOOK(fields) "{\"version\":1,\"webhooks\":[{" fields "}]}"

static struct rules *parse(const char *text)
{
	struct rules *rules = NULL;
	struct message message = {{0}};
	int error = rules_parse(text, strlen(text), &rules, &message);
	if (error)
		print_error("%s: %s\n", text, message.text);
	assert_int_equal(error, 0);
	return rules;
}

static void test_what_is_left_out(void **state)
{
	CLEANUP(rules_cleanup) struct rules *none = parse("{\"version\":1}");
	assert_int_equal(none->audit_count + none->webhook_count, 0);
	CLEANUP(rules_cleanup)
	struct rules *rules = parse("{\"version\":1,\"audits\":[" GOOD_AUDIT "]}");
	assert_int_equal(rules->audit_count, 1);
	assert_int_equal(rules->audits[0].path_count, 0);
	assert_null(rules->audits[0].paths[0]);
	assert_int_equal(rules->audits[0].timeout_s, AUDIT_TIMEOUT_S_DEFAULT);
	assert_string_equal(rules->audits[0].argv[0], "not-null");
	assert_null(rules->audits[0].argv[1]);
}

static void test_everything_is_read(void **state)
{
	CLEANUP(rules_cleanup)
	struct rules *rules =
	        parse(" {\"webhooks\":[{\"name\":\"chat\",\"url\":\"https://chat.example/"
	              "x?y#z\",\"events\":"
	              "[\"publish\",\"audit-failed\"],\"secret_file\":\"/etc/lake/"
	              "secret\"}],\"version\":1,"
	              "\"audits\":[{\"timeout_s\":5,\"name\":\"n.1-b_\",\"paths\":[\"flights/"
	              "**\",\"*.csv\"],"
	              "\"command\":[\"/opt/check\",\"\",\"d\\u00e9lay\",\"--x\"]}]}\n");
	const struct audit_rule *audit = &rules->audits[0];
	assert_int_equal(audit->timeout_s, 5);
	assert_string_equal(audit->paths[1], "*.csv");
	assert_int_equal(audit->argument_count, 4);
	assert_string_equal(audit->argv[1], "");
	assert_string_equal(audit->argv[2], "d\xc3\xa9lay");
	const struct webhook_rule *webhook = &rules->webhooks[0];
	assert_string_equal(webhook->events[1], "audit-failed");
	assert_string_equal(webhook->secret_file, "/etc/lake/secret");
	assert_string_equal(webhook->url, "https://chat.example/x?y#z");
}

/* Each of these is refused, and the message says what is wrong. */
static const struct {
	const char *text, *says;
} wrong[] = {
        {"", "no JSON"},
        {"[]", "no object"},
        {"{\"version\":1", "no JSON"},
        {"{\"version\":1} x", "no JSON"},
        {"{\"version\":1}{}", "no JSON"},
        {"{}", "version"},
        {"{\"version\":0}", "version"},
        {"{\"version\":1.5}", "version"},
        {"{\"version\":\"1\"}", "version"},
        {"{\"version\":1,\"version\":1}", "twice"},
        {"{\"version\":1,\"audit\":[]}", "unknown key 'audit'"},
        {"{\"version\":1,\"Audits\":[]}", "unknown key 'Audits'"},
        {"{\"version\":1,\"audits\":{}}", "not a list"},
        {"{\"version\":1,\"audits\":null}", "not a list"},
        {"{\"version\":1,\"audits\":[1]}", "not an object"},
        {"{\"version\":1,\"audits\":[[]]}", "not an object"},
        {AUDIT("\"command\":[\"x\"]"), "no 'name'"},
        {AUDIT("\"name\":\"\",\"command\":[\"x\"]"), "no name"},
        {AUDIT("\"name\":\"-a\",\"command\":[\"x\"]"), "no name"},
        {AUDIT("\"name\":\".a\",\"command\":[\"x\"]"), "no name"},
        {AUDIT("\"name\":\"a/b\",\"command\":[\"x\"]"), "no name"},
        {AUDIT("\"name\":\"a\\n\",\"command\":[\"x\"]"), "no name"},
        {AUDIT("\"name\":7,\"command\":[\"x\"]"), "not a string"},
        {AUDIT("\"name\":\"a\""), "audit 'a' has no program"},
        {AUDIT("\"name\":\"a\",\"command\":[]"), "no program"},
        {AUDIT("\"name\":\"a\",\"command\":[\"\"]"), "no program"},
        {AUDIT("\"name\":\"a\",\"command\":\"x\""), "not a list"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\",1]"), "no string"},
        {AUDIT("\"name\":\"a\",\"command\":[\"./x\"]"), "absolute"},
        {AUDIT("\"name\":\"a\",\"command\":[\"../x\"]"), "absolute"},
        {AUDIT("\"name\":\"a\",\"command\":[\"..\"]"), "absolute"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\\u0000y\"]"), "NUL"},
        {AUDIT("\"name\":\"a\",\"command\":[\"\xff\"]"), "UTF-8"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"path\":[]"), "unknown key 'path'"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"paths\":[\"\"]"), "empty pattern"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"paths\":[\"/x\"]"), "audit 'a'"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"paths\":[\"x/../y\"]"), "audit 'a'"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"paths\":[\"[a\"]"), "audit 'a'"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"timeout_s\":0"), "timeout_s"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"timeout_s\":86401"), "timeout_s"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"timeout_s\":1e999"), "timeout_s"},
        {AUDIT("\"name\":\"a\",\"command\":[\"x\"],\"timeout_s\":\"9\""), "timeout_s"},
        {"{\"version\":1,\"audits\":[" GOOD_AUDIT "," GOOD_AUDIT "]}", "two audits 'a'"},
        {WEBHOOK("\"name\":\"w\",\"events\":[\"publish\"]"), "no 'url'"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"ftp://h/\",\"events\":[\"publish\"]"), "URL"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"file:///etc/passwd\",\"events\":[\"publish\"]"), "URL"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"https://\",\"events\":[\"publish\"]"), "URL"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"http:///x\",\"events\":[\"publish\"]"), "URL"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"http://h/\\r\\nX: y\",\"events\":[\"publish\"]"),
         "control"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"http://h/\""), "no 'events'"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"http://h/\",\"events\":[\"Publish!\"]"), "no event"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"http://h/"
                 "\",\"events\":[\"publish\"],\"secret_file\":\"s\""),
         "absolute"},
        {WEBHOOK("\"name\":\"w\",\"url\":\"http://h/\",\"events\":[\"publish\"],\"secret\":\"s\""),
         "unknown key 'secret'"},
};

static void test_what_is_wrong_is_refused_and_named(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		struct rules *rules = NULL;
		struct message message = {{0}};
		int error = rules_parse(wrong[i].text, strlen(wrong[i].text), &rules, &message);
		if (error != -ERR_INVALID || !strstr(message.text, wrong[i].says))
			print_error("%s: %d %s\n", wrong[i].text, error, message.text);
		assert_int_equal(error, -ERR_INVALID);
		assert_null(rules);
		assert_non_null(strstr(message.text, wrong[i].says));
	}
}

static void test_a_newer_version_is_told_apart(void **state)
{
	struct rules *rules = NULL;
	struct message message = {{0}};
	const char *text = "{\"version\":2,\"audits\":[],\"quorum\":2}";
	assert_int_equal(rules_parse(text, strlen(text), &rules, &message), -ERR_VERSION);
	assert_non_null(strstr(message.text, "upgrade"));
}

static void test_there_are_limits(void **state)
{
	struct rules *rules = NULL, *more;
	struct message message = {{0}};
	for (int i = 0; i <= RULES_AUDITS_MAX; i++) {
		char name[16];
		char *argv[] = {"x", NULL};
		snprintf(name, sizeof name, "a%d", i);
		struct audit_rule audit = {.name = name,
		                           .argv = argv,
		                           .argument_count = 1,
		                           .timeout_s = AUDIT_TIMEOUT_S_MAX};
		int error = rules_with_audit(rules, &audit, &more, &message);
		assert_int_equal(error, i < RULES_AUDITS_MAX ? 0 : -ERR_INVALID);
		if (error)
			break;
		rules_free(rules);
		rules = more;
	}
	assert_non_null(strstr(message.text, "more than 64 items"));
	assert_int_equal(rules->audit_count, RULES_AUDITS_MAX);
	rules_free(rules);
	CLEANUP(free_pointer) char *large = malloc(RULES_BYTES_MAX + 1);
	memset(large, ' ', RULES_BYTES_MAX + 1);
	memcpy(large, "{\"version\":1}", 13);
	assert_int_equal(rules_parse(large, RULES_BYTES_MAX, &rules, NULL), 0);
	rules_free(rules);
	assert_int_equal(rules_parse(large, RULES_BYTES_MAX + 1, &rules, NULL), -ERR_INVALID);
	/* Deep nesting ends somewhere. */
	memset(large, '[', RULES_BYTES_MAX);
	assert_int_equal(rules_parse(large, RULES_BYTES_MAX, &rules, NULL), -ERR_INVALID);
}

static void expect_bytes(const struct rules *rules, const char *text)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	assert_int_equal(rules_encode(rules, &bytes), 0);
	buffer_u8(&bytes, 0);
	assert_string_equal((char *)bytes.data, text);
}

/* The bytes are a format: the object's name is their hash. */
static void test_equal_rules_have_equal_bytes(void **state)
{
	CLEANUP(rules_cleanup)
	struct rules *rules =
	        parse("{ \"audits\": [ {\"command\": [\"x\", \"y z\\/\"], \"name\": \"a\"} ],\n"
	              "\"version\": 1.0 }");
	const char *text =
	        "{\"version\":1,\"audits\":[{\"name\":\"a\",\"paths\":[],\"command\":[\"x\",\"y "
	        "z/\"],\"timeout_s\":600}],\"webhooks\":[]}";
	expect_bytes(rules, text);
	CLEANUP(rules_cleanup) struct rules *again = parse(text);
	expect_bytes(again, text);
}

static void test_edits_make_new_rules(void **state)
{
	struct message message = {{0}};
	CLEANUP(rules_cleanup)
	struct rules *first =
	        parse("{\"version\":1,\"audits\":[" GOOD_AUDIT
	              ",{\"name\":\"b\",\"command\":[\"y\"]}],\"webhooks\":[{\"name\":\"w\","
	              "\"url\":\"http://h/\",\"events\":[\"publish\"]}]}");
	CLEANUP(rules_cleanup) struct rules *second = NULL;
	CLEANUP(rules_cleanup) struct rules *third = NULL;
	char *argv[] = {"/new", "--arg", NULL}, *paths[] = {"t/**", NULL};
	struct audit_rule audit = {.name = "a",
	                           .paths = paths,
	                           .path_count = 1,
	                           .argv = argv,
	                           .argument_count = 2,
	                           .timeout_s = 9};
	assert_int_equal(rules_with_audit(first, &audit, &second, &message), 0);
	assert_int_equal(second->audit_count, 2);
	assert_string_equal(second->audits[0].argv[1], "--arg"); /* where it stood */
	assert_string_equal(second->audits[1].name, "b");
	assert_string_equal(first->audits[0].argv[0], "not-null");
	assert_int_equal(second->webhook_count, 1);
	assert_int_equal(rules_without_audit(second, "b", &third, &message), 0);
	assert_int_equal(third->audit_count, 1);
	struct rules *none = NULL;
	assert_int_equal(rules_without_audit(third, "b", &none, &message), -ERR_NOT_FOUND);
	assert_string_equal(message.text, "there is no audit 'b'");
	assert_int_equal(rules_without_webhook(third, "x", &none, &message), -ERR_NOT_FOUND);
	assert_string_equal(message.text, "there is no webhook 'x'");
	argv[0] = "relative/program";
	assert_int_equal(rules_with_audit(third, &audit, &none, &message), -ERR_INVALID);
	assert_null(none);
	char *events[] = {"commit", NULL};
	struct webhook_rule webhook = {
	        .name = "v", .url = "http://v/", .events = events, .event_count = 1};
	assert_int_equal(rules_with_webhook(NULL, &webhook, &none, &message), 0);
	assert_int_equal(none->webhook_count, 1);
	rules_free(none);
}

static uint64_t gets_of(struct object_store *store)
{
	struct object_stats stats;
	object_stats(store, &stats);
	return stats.requests[OBJECT_GET];
}

static void key_of(const struct id *id, char ret_key[ID_HEX + 8])
{
	strcpy(ret_key, "rules/");
	id_to_hex(id, ret_key + 6);
}

static void test_stored_once_and_fetched_once(void **state)
{
	struct object_store *store;
	struct id id, again;
	char key[ID_HEX + 8];
	assert_int_equal(object_memory_open(&store), 0);
	CLEANUP(rules_cleanup)
	struct rules *rules = parse(AUDIT("\"name\":\"stored-once\",\"command\":[\"x\"]"));
	assert_int_equal(rules_store(store, rules, &id, NULL), 0);
	assert_int_equal(rules_store(store, rules, &again, NULL), 0);
	assert_true(id_equal(&id, &again));
	/* Known from storing; from another store by the same id, too: its bytes must be the same.
	 */
	uint64_t before = gets_of(store);
	for (int i = 0; i < 3; i++) {
		CLEANUP(rules_cleanup) struct rules *loaded = NULL;
		assert_int_equal(rules_load(store, &id, &loaded, NULL), 0);
		assert_string_equal(loaded->audits[0].name, "stored-once");
	}
	assert_int_equal(gets_of(store), before);
	assert_int_equal(rules_verify(store, &id, NULL), 0);
	assert_int_equal(gets_of(store), before + 1);
	/* Written by somebody else: one request. */
	const char *text = AUDIT("\"name\":\"fetched\",\"command\":[\"x\"]");
	sha256_of(text, strlen(text), &id);
	key_of(&id, key);
	assert_int_equal(object_put(store, key, text, strlen(text), NULL), 0);
	before = gets_of(store);
	for (int i = 0; i < 3; i++) {
		CLEANUP(rules_cleanup) struct rules *loaded = NULL;
		assert_int_equal(rules_load(store, &id, &loaded, NULL), 0);
		assert_string_equal(loaded->audits[0].name, "fetched");
	}
	assert_int_equal(gets_of(store), before + 1);
	object_store_free(store);
}

static void test_no_rules_are_no_object(void **state)
{
	struct object_store *store;
	struct id id;
	CLEANUP(rules_cleanup) struct rules *empty = parse("{\"version\":1}");
	CLEANUP(rules_cleanup) struct rules *loaded = NULL;
	assert_int_equal(object_memory_open(&store), 0);
	assert_int_equal(rules_store(store, empty, &id, NULL), 0);
	assert_true(id_is_zero(&id));
	assert_int_equal(rules_load(store, &id, &loaded, NULL), 0);
	assert_int_equal(loaded->audit_count, 0);
	assert_int_equal(gets_of(store), 0);
	assert_int_equal(rules_verify(store, &id, NULL), 0);
	object_store_free(store);
}

static void test_damage_is_told_and_mended_by_storing(void **state)
{
	struct object_store *store;
	struct message message = {{0}};
	struct rules *loaded = NULL;
	struct id id;
	char key[ID_HEX + 8];
	const char *text =
	        "{\"version\":1,\"audits\":[{\"name\":\"damaged\",\"paths\":[],\"command\":[\"x\"],"
	        "\"timeout_s\":600}],\"webhooks\":[]}";
	assert_int_equal(object_memory_open(&store), 0);
	sha256_of(text, strlen(text), &id);
	key_of(&id, key);
	assert_int_equal(rules_load(store, &id, &loaded, &message), -ERR_NOT_FOUND);
	assert_non_null(strstr(message.text, key));
	/* Somebody puts others in their place: a branch without audits. */
	assert_int_equal(object_put(store, key, "{\"version\":1}", 13, NULL), 0);
	assert_int_equal(rules_load(store, &id, &loaded, &message), -ERR_CORRUPT);
	assert_non_null(strstr(message.text, key));
	assert_int_equal(rules_verify(store, &id, &message), -ERR_CORRUPT);
	assert_null(loaded);
	CLEANUP(rules_cleanup) struct rules *rules = parse(text);
	struct id stored;
	assert_int_equal(rules_store(store, rules, &stored, &message), 0);
	assert_true(id_equal(&id, &stored));
	assert_int_equal(rules_verify(store, &id, &message), 0);
	/* The right hash of what is not understood. */
	sha256_of("{}", 2, &id);
	key_of(&id, key);
	assert_int_equal(object_put(store, key, "{}", 2, NULL), 0);
	assert_int_equal(rules_load(store, &id, &loaded, &message), -ERR_CORRUPT);
	object_store_free(store);
}

static void test_more_than_are_kept(void **state)
{
	struct object_store *store;
	assert_int_equal(object_memory_open(&store), 0);
	for (int round = 0; round < 2; round++)
		for (int i = 0; i < 100; i++) {
			char text[128], key[ID_HEX + 8], name[16];
			struct id id;
			CLEANUP(rules_cleanup) struct rules *loaded = NULL;
			snprintf(name, sizeof name, "many%d", i);
			snprintf(text, sizeof text, AUDIT("\"name\":\"%s\",\"command\":[\"x\"]"),
			         name);
			sha256_of(text, strlen(text), &id);
			key_of(&id, key);
			assert_int_equal(object_put(store, key, text, strlen(text), NULL), 0);
			assert_int_equal(rules_load(store, &id, &loaded, NULL), 0);
			assert_string_equal(loaded->audits[0].name, name);
		}
	object_store_free(store);
}

/* Two hundred rules, more than are kept, so that they also push each other out. */
static void *load_many(void *context)
{
	struct object_store *store = context;
	size_t bad = 0;
	for (int i = 0; i < 400; i++) {
		CLEANUP(rules_cleanup) struct rules *rules = NULL;
		CLEANUP(rules_cleanup) struct rules *loaded = NULL;
		char text[128];
		struct id id;
		snprintf(text, sizeof text, AUDIT("\"name\":\"t%d\",\"command\":[\"x\"]"), i % 200);
		rules = parse(text);
		if (rules_store(store, rules, &id, NULL) < 0 ||
		    rules_load(store, &id, &loaded, NULL) < 0 ||
		    strcmp(loaded->audits[0].name, rules->audits[0].name) != 0)
			bad++;
	}
	return (void *)bad;
}

static void test_several_at_once(void **state)
{
	struct object_store *store;
	pthread_t threads[4];
	assert_int_equal(object_memory_open(&store), 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, load_many, store), 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		void *bad;
		pthread_join(threads[i], &bad);
		assert_null(bad);
	}
	object_store_free(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_what_is_left_out),
	        cmocka_unit_test(test_everything_is_read),
	        cmocka_unit_test(test_what_is_wrong_is_refused_and_named),
	        cmocka_unit_test(test_a_newer_version_is_told_apart),
	        cmocka_unit_test(test_there_are_limits),
	        cmocka_unit_test(test_equal_rules_have_equal_bytes),
	        cmocka_unit_test(test_edits_make_new_rules),
	        cmocka_unit_test(test_stored_once_and_fetched_once),
	        cmocka_unit_test(test_no_rules_are_no_object),
	        cmocka_unit_test(test_damage_is_told_and_mended_by_storing),
	        cmocka_unit_test(test_more_than_are_kept),
	        cmocka_unit_test(test_several_at_once),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
