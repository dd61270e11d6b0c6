/* object_s3 against a server that says what the script says: every kind of answer that a store, a
 * gateway or a network can give. What a real engine does is tested by test_object.c on one. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/s3.h"
#include "tests/unit/http_server.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static struct server server;
static struct object_store *store;
static struct message message;
static char url[256];

static int setup(void **state)
{
	static const char *const unset[] = {
	        "AWS_PROFILE",       "AWS_ENDPOINT_URL",   "AWS_REGION",   "AWS_ENDPOINT_URL_S3",
	        "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"};
	for (size_t i = 0; i < ARRAY_SIZE(unset); i++)
		unsetenv(unset[i]);
	setenv("AWS_CONFIG_FILE", "/nonexistent", 1);
	setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent", 1);
	setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
	setenv("AWS_ACCESS_KEY_ID", "AKID", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "HUSH", 1);
	message.text[0] = '\0';
	return 0;
}

static void play(const char *const *script, int length, const char *parameters)
{
	server_start(&server, script, length);
	snprintf(url, sizeof(url), "s3://lake/pre?endpoint=http://127.0.0.1:%d%s", server.port,
	         parameters);
	if (object_store_open(url, false, &store, &message) < 0)
		fail_msg("%s", message.text);
}
#define PLAY(script) play(script, (int)ARRAY_SIZE(script), "&timeout=20")

static void stop(void)
{
	object_store_free(store);
	store = NULL;
	server_stop(&server);
}

static void expect_asked(int number, const char *words)
{
	assert_true(server.request_count > number);
	if (strstr(server.requests[number], words) == NULL)
		fail_msg("'%s' is not in: %.600s", words, server.requests[number]);
}

static void expect_words(const char *words)
{
	if (strstr(message.text, words) == NULL)
		fail_msg("'%s' is not in: %s", words, message.text);
	assert_null(strstr(message.text, "HUSH"));
}

#define GOOD(body, length) ANSWER("200 OK", "ETag: \"e1\"\r\n", body, length)
#define ERROR(status, code) ERROR_WITH(status, code, "")
#define ERROR_WITH(status, code, headers) \
	"HTTP/1.1 " status "\r\n" headers "Connection: close\r\n\r\n<Error><Code>" code \
	"</Code><Message>words</Message></Error>"
#define NO_KEY ERROR("404 Not Found", "NoSuchKey")

static int get(struct buffer *got, struct etag *ret_etag)
{
	buffer_clear(got);
	buffer_append(got, "before", 6);
	return object_get(store, "a", 0, UINT64_MAX, got, ret_etag, &message);
}

static void expect_good(const struct buffer *got, int r, const char *body)
{
	if (r < 0)
		fail_msg("%s", message.text);
	assert_int_equal(got->length, 6 + strlen(body));
	assert_memory_equal(got->data + 6, body, strlen(body));
}

/* -- reading through trouble -- */

static void test_read_is_repeated(void **state)
{
	static const char *const script[] = {
	        ERROR("500 Oops", "InternalError"),
	        ERROR("503 Slow", "SlowDown"),
	        ANSWER("502 Bad Gateway", "", "<html>", "6"),
	        ERROR("400 Bad", "RequestTimeout"),
	        "CLOSE",
	        "CUT\nHTTP/1.1 200 OK\r\nETag: \"e1\"\r\nContent-Length: 100\r\n\r\nhalf",
	        "CUT\nHTTP/1.1 200 OK\r\nETag: \"e",
	        GOOD("hello", "5"),
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag;
	PLAY(script);
	expect_good(&got, get(&got, &etag), "hello");
	assert_string_equal(etag.text, "e1");
	assert_int_equal(server.request_count, ARRAY_SIZE(script));
	expect_asked(7, "GET /lake/pre/a HTTP/1.1\r\n");
	expect_asked(7, "Authorization: AWS4-HMAC-SHA256 Credential=AKID/");
	stop();
}

static void test_requests_are_counted(void **state)
{
	static const char *const script[] = {
	        ERROR("500 Oops", "InternalError"),
	        GOOD("hello", "5"),
	        ANSWER("304 Not Modified", "ETag: \"e1\"\r\n", "", "0"),
	        GOOD("", "0"),
	        ERROR("412 No", "PreconditionFailed"),
	        ANSWER("204 No Content", "", "", "0"),
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag = {"e1"};
	struct object_stats stats;
	PLAY(script);
	expect_good(&got, get(&got, NULL), "hello");
	assert_int_equal(object_get_if_changed(store, "a", &etag, &got, &etag, &message), 0);
	assert_int_equal(object_put(store, "a", "four", 4, &message), 0);
	assert_int_equal(object_put_if_absent(store, "a", "x", 1, &etag, &message), -ERR_EXISTS);
	assert_int_equal(object_remove(store, "a", &message), 0);
	object_stats(store, &stats);
	assert_int_equal(stats.requests[OBJECT_GET], 2);
	assert_int_equal(stats.requests[OBJECT_GET_IF_CHANGED], 1);
	assert_int_equal(stats.requests[OBJECT_PUT], 1);
	assert_int_equal(stats.requests[OBJECT_PUT_IF], 1);
	assert_int_equal(stats.requests[OBJECT_REMOVE], 1);
	assert_int_equal(object_stats_requests(&stats), server.request_count);
	assert_int_equal(stats.unchanged, 1);
	assert_int_equal(stats.retries, 1);
	assert_int_equal(stats.timeouts, 0);
	assert_int_equal(stats.sent_bytes, 5);
	assert_true(stats.received_bytes >= 5);
	stop();
}

static void test_stalls_are_restarted(void **state)
{
	static const char *const script[] = {GOOD("hello", "5"), "STALL", GOOD("hello", "5")};
	CLEANUP(buffer_release) struct buffer got = {0};
	PLAY(script);
	expect_good(&got, get(&got, NULL), "hello");
	/* It is known by now how fast the store is, so silence is noticed soon. */
	int64_t start_ms = clock_monotonic_ms();
	expect_good(&got, get(&got, NULL), "hello");
	int64_t took_ms = clock_monotonic_ms() - start_ms;
	assert_true(took_ms >= 1500 && took_ms < 8000);
	struct object_stats stats;
	object_stats(store, &stats);
	assert_int_equal(stats.timeouts, 1);
	assert_int_equal(stats.retries, 1);
	stop();
}

/* -- bodies that break off -- */

#define LONG_BYTES 200000

static char long_body[LONG_BYTES + 1];

/* An answer with bytes [from, to) of long_body that names [from, LONG_BYTES), offset by `base`. */
static char *part(const char *how, int status, const char *etag, int base, int from, int to)
{
	char *text = NULL, span[96] = "";
	for (int i = 0; i < LONG_BYTES; i++)
		long_body[i] = (char)('a' + i * 7 / 5 % 26);
	if (status == 206)
		snprintf(span, sizeof(span), "Content-Range: bytes %d-%d/900000\r\n", base + from,
		         base + LONG_BYTES - 1);
	if (asprintf(&text,
	             "%sHTTP/1.1 %d Some\r\nETag: \"%s\"\r\n%sContent-Length: %d\r\n\r\n%.*s", how,
	             status, etag, span, LONG_BYTES - from, to - from, long_body + from) < 0)
		abort();
	return text;
}

static void play_parts(char **script, int count)
{
	play((const char *const *)script, count, "&timeout=20");
}

static void stop_parts(char **script, int count)
{
	stop();
	for (int i = 0; i < count; i++)
		free(script[i]);
}

static void expect_long(const struct buffer *got, int r)
{
	if (r < 0)
		fail_msg("%s", message.text);
	assert_int_equal(got->length, 3 + LONG_BYTES);
	assert_memory_equal(got->data, "pre", 3);
	assert_memory_equal(got->data + 3, long_body, LONG_BYTES);
}

static void test_cut_read_goes_on(void **state)
{
	char *script[] = {
	        part("CUT\n", 206, "e1", 1000, 0, 100000),
	        part("CUT\n", 206, "e1", 1000, 100000, 100010), /* too little to keep */
	        part("CUT\n", 206, "e1", 1000, 100000, 170000),
	        part("", 206, "e1", 1000, 170000, LONG_BYTES),
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag;
	buffer_append(&got, "pre", 3);
	play_parts(script, 4);
	expect_long(&got, object_get(store, "a", 1000, LONG_BYTES, &got, &etag, &message));
	assert_string_equal(etag.text, "e1");
	assert_int_equal(server.request_count, 4);
	expect_asked(0, "range: bytes=1000-200999\r\n");
	expect_asked(1, "range: bytes=101000-200999\r\n");
	expect_asked(2, "range: bytes=101000-200999\r\n");
	expect_asked(3, "range: bytes=171000-200999\r\n");
	stop_parts(script, 4);
}

static void test_whole_read_goes_on(void **state)
{
	char *script[] = {
	        part("CUT\n", 200, "e1", 0, 0, 100000),
	        part("", 200, "e1", 0, 0, LONG_BYTES), /* knows no ranges */
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	buffer_append(&got, "pre", 3);
	play_parts(script, 2);
	expect_long(&got, object_get(store, "a", 0, UINT64_MAX, &got, NULL, &message));
	expect_asked(1, "range: bytes=100000-\r\n");
	stop_parts(script, 2);
}

static void test_replaced_read_starts_over(void **state)
{
	char *script[] = {
	        part("CUT\n", 206, "e1", 0, 0, 100000),
	        part("", 206, "e2", 0, 100000, LONG_BYTES),
	        part("", 206, "e2", 0, 0, LONG_BYTES),
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag;
	buffer_append(&got, "pre", 3);
	play_parts(script, 3);
	expect_long(&got, object_get(store, "a", 0, LONG_BYTES, &got, &etag, &message));
	assert_string_equal(etag.text, "e2");
	expect_asked(2, "range: bytes=0-199999\r\n");
	stop_parts(script, 3);
}

static void test_cut_read_that_ends_badly(void **state)
{
	char *script[] = {
	        part("CUT\n", 206, "e1", 0, 0, 100000),
	        strdup(ERROR("404 Not Found", "NoSuchKey")),
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	buffer_append(&got, "pre", 3);
	play_parts(script, 2);
	int r = object_get(store, "a", 0, LONG_BYTES, &got, NULL, &message);
	assert_int_equal(r, -ERR_NOT_FOUND);
	assert_int_equal(got.length, 3);
	stop_parts(script, 2);
}

/* Once it is known how fast the store is, a body that stands still is noticed soon. */
static void test_stalled_body_goes_on(void **state)
{
	char *script[] = {
	        part("", 206, "e1", 0, 0, LONG_BYTES),
	        part("HANG\n", 206, "e1", 0, 0, 150000),
	        part("", 206, "e1", 0, 150000, LONG_BYTES),
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	struct object_stats stats;
	buffer_append(&got, "pre", 3);
	play_parts(script, 3);
	expect_long(&got, object_get(store, "a", 0, LONG_BYTES, &got, NULL, &message));
	got.length = 3;
	int64_t start_ms = clock_monotonic_ms();
	expect_long(&got, object_get(store, "a", 0, LONG_BYTES, &got, NULL, &message));
	int64_t took_ms = clock_monotonic_ms() - start_ms;
	assert_true(took_ms >= 1400 && took_ms < 6000);
	expect_asked(2, "range: bytes=150000-199999\r\n");
	object_stats(store, &stats);
	assert_int_equal(stats.timeouts, 1);
	stop_parts(script, 3);
}

static void test_time_is_bounded(void **state)
{
	static const char *const script[] = {ERROR("500 Oops", "InternalError")};
	CLEANUP(buffer_release) struct buffer got = {0};
	play(script, 1, "&timeout=1");
	int64_t start_ms = clock_monotonic_ms();
	assert_int_equal(get(&got, NULL), -ERR_STORE_AWAY);
	assert_true(clock_monotonic_ms() - start_ms < 4000);
	assert_true(server.request_count > 1);
	assert_int_equal(got.length, 6);
	expect_words("500 InternalError");
	stop();
	play(script, 1, "&timeout=1");
	server_stop(&server); /* nobody listens */
	assert_int_equal(get(&got, NULL), -ERR_STORE_AWAY);
	expect_words("cannot be reached");
	object_store_free(store);
}

static void test_retry_after_is_kept(void **state)
{
	static const char *const script[] = {
	        ERROR_WITH("503 Slow", "SlowDown", "Retry-After: 1\r\n"), GOOD("hello", "5")};
	CLEANUP(buffer_release) struct buffer got = {0};
	PLAY(script);
	int64_t start_ms = clock_monotonic_ms();
	expect_good(&got, get(&got, NULL), "hello");
	assert_true(clock_monotonic_ms() - start_ms >= 1000);
	stop();
}

static void test_answers_to_other_questions(void **state)
{
	static const char *const scripts[] = {
	        "HTTP/1.1 200 OK\r\nETag: \"e\"\r\nConnection: close\r\n\r\nno length",
	        ANSWER("200 OK", "", "no etag", "7"),
	        ANSWER("204 No Content", "ETag: \"e\"\r\n", "", "0"),
	        ANSWER("206 Partial", "ETag: \"e\"\r\nContent-Range: bytes 5-8/9\r\n", "rest", "4"),
	        ANSWER("200 OK", "ETag: \"two words\"\r\n", "x", "1"),
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
		struct etag etag = {"untouched"};
		play(&scripts[i], 1, "&timeout=2");
		int r = get(&got, &etag);
		if (r != -ERR_STORE_AWAY)
			fail_msg("%d for %s", r, scripts[i]);
		assert_int_equal(got.length, 6);
		assert_string_equal(etag.text, "untouched");
		stop();
	}
}

static void test_ranges(void **state)
{
	static const char *const script[] = {
	        ANSWER("206 Partial", "ETag: \"e\"\r\nContent-Range: bytes 2-4/9\r\n", "cde", "3"),
	        ANSWER("206 Partial", "ETag: \"e\"\r\nContent-Range: bytes 7-8/9\r\n", "hi", "2"),
	        ANSWER("200 OK", "ETag: \"e\"\r\n", "abcdefghi", "9"),
	        ANSWER("206 Partial", "ETag: \"e\"\r\nContent-Range: bytes 3-5/9\r\n", "def", "3"),
	        ANSWER("206 Partial", "ETag: \"e\"\r\nContent-Range: bytes 2-3/9\r\n", "cd", "2"),
	        ANSWER("206 Partial", "ETag: \"e\"\r\n", "cde", "3"),
	        ERROR("416 Range", "InvalidRange"),
	};
	static const struct {
		uint64_t offset, length;
		const char *bytes; /* NULL: an error */
	} reads[] = {{2, 3, "cde"}, {7, 100, "hi"}, {2, 3, "cde"}, {2, 3, NULL},
	             {2, 3, NULL},  {2, 3, NULL},   {20, 3, ""}};
	PLAY(script);
	for (size_t i = 0; i < ARRAY_SIZE(reads); i++) {
		CLEANUP(buffer_release) struct buffer got = {0};
		int r = object_get(store, "a", reads[i].offset, reads[i].length, &got, NULL,
		                   &message);
		assert_int_equal(r, reads[i].bytes != NULL ? 0 : -ERR_STORE_AWAY);
		assert_int_equal(got.length, reads[i].bytes != NULL ? strlen(reads[i].bytes) : 0);
		if (got.length > 0)
			assert_memory_equal(got.data, reads[i].bytes, got.length);
	}
	expect_asked(0, "range: bytes=2-4\r\n");
	stop();
}

/* -- what is said -- */

static void test_refusals_in_words(void **state)
{
	static const struct {
		const char *answer;
		int error;
		const char *words;
	} cases[] = {
	        {NO_KEY, -ERR_NOT_FOUND, "no object 'a'"},
	        {ERROR("404 No", "NoSuchBucket"), -ERR_STORE_AWAY, "no such bucket"},
	        {ANSWER("404 No", "", "<html>", "6"), -ERR_STORE_AWAY, "not as S3 does"},
	        {ERROR("403 No", "SignatureDoesNotMatch"), -ERR_STORE_AWAY, "secret key is wrong"},
	        {ERROR("403 No", "InvalidAccessKeyId"), -ERR_STORE_AWAY,
	         "not know this access key"},
	        {ERROR("403 No", "AccessDenied"), -ERR_STORE_AWAY,
	         "access denied by the store's policy"},
	        {ANSWER("403 No", "", "", "0"), -ERR_STORE_AWAY, "no permission"},
	        {ERROR_WITH("403 No", "RequestTimeTooSkewed",
	                    "Date: Mon, 05 Jan 2015 10:00:00 GMT\r\n"),
	         -ERR_STORE_AWAY, "s ahead); set it"},
	        {ERROR_WITH("301 Moved", "PermanentRedirect", "x-amz-bucket-region: eu-west-1\r\n"),
	         -ERR_STORE_AWAY, "the bucket is in 'eu-west-1', not in 'us-east-1'"},
	        {"HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n<Error><Code>"
	         "AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>",
	         -ERR_STORE_AWAY, "the bucket is in 'eu-west-3'"},
	        {ERROR("501 No", "NotImplemented"), -ERR_UNSUPPORTED, "does not know"},
	        {ANSWER("302 Found", "Location: http://127.0.0.1:9/\r\n", "", "0"), -ERR_STORE_AWAY,
	         "not as S3 does"},
	};
	CLEANUP(buffer_release) struct buffer got = {0};
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		play(&cases[i].answer, 1, "&timeout=2");
		int r = get(&got, NULL);
		if (r != cases[i].error)
			fail_msg("%d (%s) for %s", r, message.text, cases[i].answer);
		expect_words(cases[i].words);
		assert_int_equal(got.length, 6);
		assert_true(server.request_count <= 2); /* none gets better by asking again */
		stop();
	}
}

static void test_expired_token_is_renewed(void **state)
{
	static const char *const script[] = {ERROR("400 Bad", "ExpiredToken"), GOOD("hello", "5")};
	CLEANUP(buffer_release) struct buffer got = {0};
	setenv("AWS_SESSION_TOKEN", "old-token", 1);
	PLAY(script);
	struct s3_key key = {0};
	assert_int_equal(s3_credentials_get(((struct s3 *)store)->credentials, &key, &message), 0);
	s3_key_release(&key);
	setenv("AWS_SESSION_TOKEN", "new-token", 1);
	expect_good(&got, get(&got, NULL), "hello");
	expect_asked(0, "x-amz-security-token: old-token\r\n");
	expect_asked(1, "x-amz-security-token: new-token\r\n");
	stop();
}

static void test_get_if_changed(void **state)
{
	static const char *const script[] = {"HTTP/1.1 304 Not Modified\r\nETag: \"e1\"\r\n\r\n",
	                                     GOOD("hello", "5"), GOOD("hello", "5"), NO_KEY};
	static const struct etag same = {"e1"}, old = {"e0"};
	CLEANUP(buffer_release) struct buffer got = {0};
	struct etag etag = {"untouched"};
	PLAY(script);
	assert_int_equal(object_get_if_changed(store, "a", &same, &got, &etag, &message), 0);
	assert_int_equal(object_get_if_changed(store, "a", &same, &got, &etag, &message), 0);
	assert_int_equal(got.length, 0);
	assert_string_equal(etag.text, "untouched");
	assert_int_equal(object_get_if_changed(store, "a", &old, &got, &etag, &message), 1);
	assert_int_equal(got.length, 5);
	assert_string_equal(etag.text, "e1");
	assert_int_equal(object_get_if_changed(store, "a", &old, &got, &etag, &message),
	                 -ERR_NOT_FOUND);
	expect_asked(0, "if-none-match: \"e1\"\r\n");
	stop();
}

/* -- conditional writes: never blindly again -- */

static const struct etag known = {"e0"};

static int put_if(const struct etag *expected, struct etag *ret_etag)
{
	return expected != NULL
	               ? object_put_if_match(store, "r", "body", 4, expected, ret_etag, &message)
	               : object_put_if_absent(store, "r", "body", 4, ret_etag, &message);
}

static void test_conditions_that_fail(void **state)
{
	static const char *const script[] = {ERROR("412 No", "PreconditionFailed"),
	                                     ERROR("409 No", "ConditionalRequestConflict"),
	                                     ERROR("412 No", "PreconditionFailed"),
	                                     ERROR("409 No", "ConditionalRequestConflict"),
	                                     NO_KEY,
	                                     GOOD("", "0")};
	struct etag etag;
	PLAY(script);
	assert_int_equal(put_if(NULL, NULL), -ERR_EXISTS);
	assert_int_equal(put_if(NULL, NULL), -ERR_EXISTS);
	assert_int_equal(put_if(&known, NULL), -ERR_MOVED);
	assert_int_equal(put_if(&known, NULL), -ERR_MOVED);
	assert_int_equal(put_if(&known, NULL), -ERR_NOT_FOUND);
	assert_int_equal(put_if(&known, &etag), 0);
	assert_string_equal(etag.text, "e1");
	assert_int_equal(server.request_count, 6); /* one each */
	expect_asked(0, "if-none-match: *\r\n");
	expect_asked(2, "if-match: \"e0\"\r\n");
	stop();
	play(script, 3, "&if-match=unquoted");
	assert_int_equal(put_if(&known, NULL), -ERR_MOVED);
	expect_asked(0, "if-match: e0\r\n");
	stop();
}

/* A policy guards one object: the store itself is well, and trying again is no use. */
static void test_conditions_that_are_denied(void **state)
{
	static const char *const script[] = {
	        ERROR("403 No", "AccessDenied"), ERROR("403 No", "AccessDenied"),
	        ERROR("403 No", "RequestTimeTooSkewed"), ANSWER("403 No", "", "", "0")};
	PLAY(script);
	assert_int_equal(put_if(NULL, NULL), -ERR_REFUSED);
	expect_words("access denied by the store's policy");
	assert_int_equal(put_if(&known, NULL), -ERR_REFUSED);
	assert_int_equal(put_if(&known, NULL), -ERR_STORE_AWAY);
	assert_int_equal(put_if(&known, NULL), -ERR_STORE_AWAY);
	assert_int_equal(server.request_count, 4);
	stop();
}

/* Nothing has happened as far as can be seen: again, on the same condition. */
static void test_doubt_and_unchanged(void **state)
{
	static const char *const absent[] = {"CLOSE", NO_KEY, GOOD("", "0")};
	static const char *const match[] = {ERROR("500 Oops", "InternalError"),
	                                    ANSWER("200 OK", "ETag: \"e0\"\r\n", "old", "3"),
	                                    GOOD("", "0")};
	PLAY(absent);
	assert_int_equal(put_if(NULL, NULL), 0);
	assert_int_equal(server.request_count, 3);
	expect_asked(1, "GET /lake/pre/r ");
	stop();
	PLAY(match);
	assert_int_equal(put_if(&known, NULL), 0);
	assert_int_equal(server.request_count, 3);
	stop();
}

/* Something has: not known whether it was ours; not sent again, and not called a loss. */
static void test_doubt_and_changed(void **state)
{
	static const char *const scripts[][3] = {
	        {"CLOSE", GOOD("body", "4"), "CLOSE"},
	        {ERROR("500 Oops", "InternalError"), GOOD("other", "5"), "CLOSE"},
	        {ERROR("503 Slow", "SlowDown"), GOOD("other", "5"), "CLOSE"},
	        {"CUT\nHTTP/1.1 200 OK\r\nETag", GOOD("body", "4"), "CLOSE"},
	};
	for (size_t i = 0; i < ARRAY_SIZE(scripts); i++)
		for (int match = 0; match < 2; match++) {
			PLAY(scripts[i]);
			assert_int_equal(put_if(match ? &known : NULL, NULL), -ERR_STORE_AWAY);
			expect_words("not known");
			assert_int_equal(server.request_count, 2);
			expect_asked(0, "PUT /lake/pre/r ");
			expect_asked(1, "GET /lake/pre/r ");
			stop();
		}
}

/* The first attempt arrived after we looked: the second one's refusal is due to it. */
static void test_doubt_then_refused(void **state)
{
	static const char *const script[] = {"CLOSE", NO_KEY,
	                                     ERROR("412 No", "PreconditionFailed")};
	PLAY(script);
	assert_int_equal(put_if(NULL, NULL), -ERR_STORE_AWAY);
	expect_words("not known");
	assert_int_equal(server.request_count, 3);
	stop();
}

/* libcurl repeats a request whose kept connection turns out dead. Not this one: the server may have
 * acted before it died. */
static void test_kept_connection_dies(void **state)
{
	static const char *const script[] = {GOOD("hello", "5"), "CLOSE", GOOD("body", "4")};
	CLEANUP(buffer_release) struct buffer got = {0};
	PLAY(script);
	expect_good(&got, get(&got, NULL), "hello");
	assert_int_equal(put_if(NULL, NULL), -ERR_STORE_AWAY);
	assert_int_equal(server.request_count, 3);
	expect_asked(1, "PUT /lake/pre/r ");
	expect_asked(2, "GET /lake/pre/r ");
	stop();
	PLAY(script);
	expect_good(&got, get(&got, NULL), "hello");
	assert_int_equal(object_put_if_absent(store, "r", "", 0, NULL, &message), -ERR_STORE_AWAY);
	expect_asked(2, "GET /lake/pre/r ");
	stop();
}

static void test_never_connected_is_no_doubt(void **state)
{
	static const char *const script[] = {GOOD("", "0")};
	play(script, 1, "&timeout=1");
	server_stop(&server);
	assert_int_equal(put_if(NULL, NULL), -ERR_STORE_AWAY);
	expect_words("cannot be reached");
	object_store_free(store);
}

/* -- other writes -- */

/* HTTPS asked of a server that waits for something else. */
static void test_no_handshake(void **state)
{
	static const char *const script[] = {GOOD("", "0")};
	server_start(&server, script, 1);
	snprintf(url, sizeof(url), "s3://lake?endpoint=https://127.0.0.1:%d&timeout=1",
	         server.port);
	assert_int_equal(object_store_open(url, false, &store, &message), 0);
	int64_t start_ms = clock_monotonic_ms();
	assert_int_equal(put_if(NULL, NULL), -ERR_STORE_AWAY);
	expect_words("cannot be reached");
	assert_true(clock_monotonic_ms() - start_ms < 4000);
	assert_int_equal(server.request_count, 0);
	stop();
}

static void test_put_is_repeated(void **state)
{
	static const char *const script[] = {"CLOSE", ERROR("409 No", "OperationAborted"),
	                                     GOOD("", "0"), ANSWER("200 OK", "", "", "0")};
	PLAY(script);
	assert_int_equal(object_put(store, "a", "body", 4, &message), 0);
	assert_int_equal(server.request_count, 3);
	expect_asked(2, "\r\n\r\nbody");
	expect_asked(2, "x-amz-content-sha256: "
	                "230d8358dc8e8890b4c58deeb62912ee2f20357ae92a5cc861b98e68fe31acb5\r\n");
	assert_int_equal(object_put(store, "a", "body", 4, &message), -ERR_STORE_AWAY);
	expect_words("without an ETag");
	stop();
}

#define BEGUN \
	ANSWER("200 OK", "", \
	       "<InitiateMultipartUploadResult><UploadId>i/d</UploadId>" \
	       "</InitiateMultipartUploadResult>", \
	       "87")

/* Index of the request with these words; they may come in any order. */
static int asked_at(const char *words)
{
	for (int i = 0; i < server.request_count; i++)
		if (strstr(server.requests[i], words) != NULL)
			return i;
	fail_msg("nobody asked '%s'", words);
	return -1;
}

#define PART(etag) ANSWER("200 OK", "ETag: \"" etag "\"\r\n", "", "0")

/* Parts are sent beside each other; what puts them together names them in their order. */
static void test_parts_keep_their_order(void **state)
{
	static const char *const script[] = {
	        BEGUN,
	        PART("t1"),
	        PART("t2"),
	        PART("t3"),
	        PART("t4"),
	        PART("t5"),
	        ANSWER("200 OK", "",
	               "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>", "63"),
	        ANSWER("200 OK", "", "", "67108865")};
	size_t length = S3_SINGLE_PUT_BYTES_MAX + 1;
	char words[96];
	void *bytes = calloc(1, length);
	PLAY(script);
	if (object_put(store, "a", bytes, length, &message) < 0)
		fail_msg("%s", message.text);
	assert_int_equal(server.request_count, 8); /* the last looks whether it is all there */
	for (int i = 1; i <= 5; i++) {
		snprintf(words, sizeof(words), "PUT /lake/pre/a?partNumber=%d&", i);
		int at = asked_at(words);
		snprintf(words, sizeof(words),
		         "<Part><PartNumber>%d</PartNumber><ETag>\"t%d\"</ETag></Part>%s", i, at,
		         i == 5 ? "</CompleteMultipartUpload>" : "<Part>");
		expect_asked(6, words);
	}
	expect_asked(asked_at("partNumber=5&"), "Content-Length: 1\r\n");
	stop();
	free(bytes);
}

static void test_parts_are_aborted(void **state)
{
	static const char *const script[] = {BEGUN,
	                                     PART("t1"),
	                                     ERROR("403 No", "AccessDenied"),
	                                     ERROR("403 No", "AccessDenied"),
	                                     ERROR("403 No", "AccessDenied"),
	                                     ERROR("403 No", "AccessDenied"),
	                                     ERROR("403 No", "AccessDenied")};
	size_t length = S3_SINGLE_PUT_BYTES_MAX + 1;
	void *bytes = calloc(1, length);
	PLAY(script);
	assert_int_equal(object_put(store, "a", bytes, length, &message), -ERR_STORE_AWAY);
	expect_words("access denied");
	expect_asked(0, "POST /lake/pre/a?uploads= ");
	asked_at("PUT /lake/pre/a?partNumber=1&uploadId=i%2Fd ");
	/* Last, when nothing is under way that could add to it. */
	expect_asked(server.request_count - 1, "DELETE /lake/pre/a?uploadId=i%2Fd ");
	for (int i = 0; i < server.request_count; i++)
		assert_null(strstr(server.requests[i], "POST /lake/pre/a?uploadId="));
	stop();
	free(bytes);
}

/* Status 200 is sent before the parts are put together. */
static void test_completion_may_fail_late(void **state)
{
	static const char *const script[] = {
	        BEGUN,
	        PART("e1"),
	        PART("e1"),
	        PART("e1"),
	        PART("e1"),
	        PART("e1"),
	        ANSWER("200 OK", "", "  <Error><Code>InternalError</Code></Error>", "43"),
	        "HTTP/1.1 204 No Content\r\n\r\n"};
	size_t length = S3_SINGLE_PUT_BYTES_MAX + 1;
	void *bytes = calloc(1, length);
	PLAY(script);
	assert_int_equal(object_put(store, "a", bytes, length, &message), -ERR_STORE_AWAY);
	expect_words("InternalError");
	expect_asked(7, "DELETE ");
	stop();
	free(bytes);
}

/* A pack goes whole where a single stream is quick, and in parts where it is not. */
static void test_slow_puts_go_in_parts(void **state)
{
	static const char *const script[] = {
	        PART("e1"),
	        BEGUN,
	        PART("e1"),
	        PART("e1"),
	        ANSWER("200 OK", "",
	               "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>", "63"),
	        ANSWER("200 OK", "", "", "33554432")};
	size_t length = 2 * S3_PART_BYTES;
	struct object_stats stats;
	void *bytes = calloc(1, length);
	PLAY(script);
	assert_int_equal(object_put(store, "a", bytes, length, &message), 0);
	assert_int_equal(server.request_count, 1);
	struct s3 *s3 = (struct s3 *)store;
	assert_true(s3->learned.write_bytes_per_ms > 0);
	s3->learned.write_bytes_per_ms = 10 << 10;
	assert_int_equal(object_put(store, "a", bytes, length, &message), 0);
	object_stats(store, &stats);
	assert_int_equal(stats.requests[OBJECT_PUT], 1);
	assert_int_equal(stats.requests[OBJECT_MULTIPART], 5);
	stop();
	free(bytes);
}

static void test_remove_many(void **state)
{
	static const char *const script[] = {
	        ANSWER("200 OK", "", "<DeleteResult></DeleteResult>", "29"),
	        ANSWER("200 OK", "",
	               "<DeleteResult><Error><Code>AccessDenied</Code></Error></DeleteResult>",
	               "69")};
	static const char *const keys[] = {"packs/1", "packs/2"};
	PLAY(script);
	assert_int_equal(object_remove_many(store, keys, 2, &message), 0);
	expect_asked(0, "POST /lake?delete= ");
	expect_asked(0, "<Object><Key>pre/packs/1</Key></Object><Object><Key>pre/packs/2</Key>");
	expect_asked(0, "content-md5: ");
	assert_int_equal(object_remove_many(store, keys, 2, &message), -ERR_STORE_AWAY);
	expect_words("AccessDenied");
	stop();
}

/* -- listing -- */

static int count_keys(void *context, const struct object_info *info)
{
	strcat(strcat(context, info->key), " ");
	return 0;
}

#define PAGE(rest) \
	"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/xml\r\n\r\n" \
	"<ListBucketResult>" rest "</ListBucketResult>"
#define KEY(name) "<Contents><Key>" name "</Key><Size>1</Size></Contents>"
#define MORE(token) \
	"<IsTruncated>true</IsTruncated><NextContinuationToken>" token "</NextContinuationToken>"
#define LAST "<IsTruncated>false</IsTruncated>"

static void test_list_pages(void **state)
{
	static const char *const script[] = {PAGE(KEY("pre/a") KEY("pre/b%20") MORE("t+1")),
	                                     "CUT\nHTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n",
	                                     PAGE(KEY("pre/b/c") KEY("pre/d~") KEY("other") LAST)};
	char keys[64] = "";
	PLAY(script);
	assert_int_equal(object_list(store, "", count_keys, keys, &message), 0);
	assert_string_equal(keys, "a b/c ");
	expect_asked(0, "GET /lake?list-type=2&encoding-type=url&max-keys=1000&prefix=pre%2F ");
	expect_asked(2, "&continuation-token=t%2B1 ");
	stop();
}

static void test_lists_that_are_none(void **state)
{
	static const char *const scripts[][2] = {
	        {PAGE(KEY("pre/a") MORE("t")), PAGE(KEY("pre/b") MORE("t"))},
	        {PAGE(KEY("pre/a") MORE("t")), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
	        {PAGE(KEY("pre/a") MORE("t")), ERROR("403 No", "AccessDenied")},
	        {PAGE(KEY("pre/b") MORE("t")), PAGE(KEY("pre/a") LAST)},
	};
	for (size_t i = 0; i < ARRAY_SIZE(scripts); i++) {
		char keys[64] = "";
		PLAY(scripts[i]);
		int r = object_list(store, "", count_keys, keys, &message);
		assert_int_equal(r, i == 3 ? -ERR_UNSUPPORTED : -ERR_STORE_AWAY);
		stop();
	}
}

/* -- where things are -- */

static void test_virtual_host(void **state)
{
	static const char *const script[] = {GOOD("hello", "5")};
	CLEANUP(buffer_release) struct buffer got = {0};
	char words[64];
	server_start(&server, script, 1);
	snprintf(url, sizeof(url), "s3://lake?endpoint=http://localhost:%d&path-style=no",
	         server.port);
	assert_int_equal(object_store_open(url, false, &store, &message), 0);
	expect_good(&got, get(&got, NULL), "hello");
	expect_asked(0, "GET /a HTTP/1.1\r\n");
	snprintf(words, sizeof(words), "Host: lake.localhost:%d\r\n", server.port);
	expect_asked(0, words);
	stop();
}

static void expect_url(const char *given, const char *kept)
{
	CLEANUP(s3_settings_release) struct s3_settings settings = {0};
	CLEANUP(free_pointer) char *text = NULL, *again = NULL;
	if (s3_settings_parse(given, &settings, &message) < 0)
		fail_msg("%s: %s", given, message.text);
	assert_int_equal(s3_settings_url(&settings, &text), 0);
	assert_string_equal(text, kept);
	s3_settings_release(&settings);
	assert_int_equal(s3_settings_parse(text, &settings, &message), 0);
	assert_int_equal(s3_settings_url(&settings, &again), 0);
	assert_string_equal(again, kept);
}

static void test_urls(void **state)
{
	static const char *const bad[] = {"s3:/x",
	                                  "s3://",
	                                  "s3:///x",
	                                  "s3://b/a//b",
	                                  "s3://b/..",
	                                  "s3://b/a%20b",
	                                  "s3://b?endpoint=ftp://x",
	                                  "s3://b?endpoint=http://",
	                                  "s3://b?endpoint=http://u:p@h",
	                                  "s3://b?endpoint=http://h%0d%0aX:1",
	                                  "s3://b?endpoint=http://h%",
	                                  "s3://b?region=a%2Fb",
	                                  "s3://b?region=a&region=b",
	                                  "s3://b?path-style=maybe",
	                                  "s3://b?timeout=0",
	                                  "s3://b?timeout=1h",
	                                  "s3://b?nothing=1",
	                                  "s3://b?profile=none"};
	struct s3_settings settings = {0};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (s3_settings_parse(bad[i], &settings, &message) != -ERR_INVALID)
			fail_msg("%s", bad[i]);
	expect_url("s3://b", "s3://b?region=us-east-1");
	expect_url("s3://b/", "s3://b?region=us-east-1");
	expect_url("s3://b/p/q//?region=eu-west-1", "s3://b/p/q?region=eu-west-1");
	expect_url("s3://b?endpoint=http%3A%2F%2Fh:1/base/&ca-file=/a%20b&if-match=unquoted"
	           "&path-style=yes&timeout=5&connections=8",
	           "s3://b?endpoint=http://h:1/base&region=us-east-1&ca-file=/a%20b"
	           "&path-style=yes&if-match=unquoted&timeout=5&connections=8");
	setenv("AWS_ENDPOINT_URL", "http://all", 1);
	setenv("AWS_DEFAULT_REGION", "r2", 1);
	expect_url("s3://b", "s3://b?endpoint=http://all&region=r2");
	setenv("AWS_ENDPOINT_URL_S3", "http://s3only", 1);
	setenv("AWS_REGION", "r1", 1);
	expect_url("s3://b?region=r0", "s3://b?endpoint=http://s3only&region=r0");
	expect_url("s3://b", "s3://b?endpoint=http://s3only&region=r1");
	CLEANUP(free_pointer) char *added = NULL, *more = NULL, *none = NULL;
	assert_int_equal(object_store_url_add("s3://b/p", "ca-file", "/a b&c", &added, &message),
	                 0);
	assert_string_equal(added, "s3://b/p?ca-file=/a%20b%26c");
	assert_int_equal(object_store_url_add(added, "region", "r", &more, &message), 0);
	assert_string_equal(more, "s3://b/p?ca-file=/a%20b%26c&region=r");
	assert_int_equal(object_store_url_add("/dir", "region", "r", &none, &message),
	                 -ERR_INVALID);
}

static void test_shared_config(void **state)
{
	static const char config[] = "[default]\nregion = r1\nservices = mine\n"
	                             "s3 =\n  addressing_style = virtual\n"
	                             "[services mine]\ns3 =\n  endpoint_url = http://svc:9000\n"
	                             "[profile p]\nregion = r2\nendpoint_url = http://p\n"
	                             "ca_bundle = /ca.pem\n";
	char path[] = "/tmp/test_s3_store.XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, config, sizeof(config) - 1, 0), 0);
	close(fd);
	setenv("AWS_CONFIG_FILE", path, 1);
	expect_url("s3://b", "s3://b?endpoint=http://svc:9000&region=r1&path-style=no");
	expect_url("s3://b?profile=p",
	           "s3://b?endpoint=http://p&region=r2&ca-file=/ca.pem&profile=p");
	setenv("AWS_PROFILE", "p", 1);
	expect_url("s3://b", "s3://b?endpoint=http://p&region=r2&ca-file=/ca.pem&profile=p");
	unlink(path);
}

/* -- many threads -- */

static void *get_often(void *argument)
{
	for (int i = 0; i < 5; i++) {
		CLEANUP(buffer_release) struct buffer got = {0};
		if (object_get(store, "a", 0, UINT64_MAX, &got, NULL, NULL) < 0 || got.length != 5)
			return (void *)1;
	}
	return NULL;
}

static void test_threads_share_connections(void **state)
{
	static const char *const script[] = {GOOD("hello", "5")};
	pthread_t threads[12];
	play(script, 1, "&connections=4");
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, get_often, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		void *result;
		pthread_join(threads[i], &result);
		assert_null(result);
	}
	assert_int_equal(server.request_count, 60);
	assert_true(server.connection_count >= 1 && server.connection_count <= 4);
	stop();
}

#define ONE(test) cmocka_unit_test_setup(test, setup)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        ONE(test_read_is_repeated),
	        ONE(test_requests_are_counted),
	        ONE(test_stalls_are_restarted),
	        ONE(test_cut_read_goes_on),
	        ONE(test_whole_read_goes_on),
	        ONE(test_replaced_read_starts_over),
	        ONE(test_cut_read_that_ends_badly),
	        ONE(test_stalled_body_goes_on),
	        ONE(test_time_is_bounded),
	        ONE(test_retry_after_is_kept),
	        ONE(test_answers_to_other_questions),
	        ONE(test_ranges),
	        ONE(test_refusals_in_words),
	        ONE(test_expired_token_is_renewed),
	        ONE(test_get_if_changed),
	        ONE(test_conditions_that_fail),
	        ONE(test_conditions_that_are_denied),
	        ONE(test_doubt_and_unchanged),
	        ONE(test_doubt_and_changed),
	        ONE(test_doubt_then_refused),
	        ONE(test_kept_connection_dies),
	        ONE(test_never_connected_is_no_doubt),
	        ONE(test_no_handshake),
	        ONE(test_put_is_repeated),
	        ONE(test_parts_keep_their_order),
	        ONE(test_parts_are_aborted),
	        ONE(test_slow_puts_go_in_parts),
	        ONE(test_completion_may_fail_late),
	        ONE(test_remove_many),
	        ONE(test_list_pages),
	        ONE(test_lists_that_are_none),
	        ONE(test_virtual_host),
	        ONE(test_urls),
	        ONE(test_shared_config),
	        ONE(test_threads_share_connections),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
