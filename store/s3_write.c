/*
 * s3_write — hides how objects are put: whole or in parts, whatever is quicker, or on a condition
 * whose answer may be lost.
 *
 * A conditional put is sent again only when its outcome so far is certain. After an answer that
 * leaves it open (500, 503, a broken or silent connection) the object is read: as long as it is
 * what the condition asks for nothing has happened, and the put may be repeated, because both
 * attempts carry the same condition and at most one can take effect. Everything else after such an
 * answer is "not known": a refusal of the repetition may be due to the first attempt. The caller,
 * who put a nonce into the content, reads back and knows.
 */
#include <stdio.h>

#include "store/s3.h"

#define SLOW_PUT_MS 1500 /* a longer put is worth the three requests that parts add */

int s3_etag_take(const char *header, struct etag *ret_etag)
{
	size_t length = strlen(header);
	if (length >= 2 && header[0] == '"' && header[length - 1] == '"') {
		header++;
		length -= 2;
	}
	if (length == 0 || length > ETAG_MAX)
		return -ERR_CORRUPT;
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)header[i] <= 0x20 || (unsigned char)header[i] >= 0x7f ||
		    header[i] == '"')
			return -ERR_CORRUPT;
	memcpy(ret_etag->text, header, length);
	ret_etag->text[length] = '\0';
	return 0;
}

static int fail_etag(const char *key, struct message *message)
{
	return fail(message, -ERR_STORE_AWAY, "the store answered for '%s' without an ETag", key);
}

/* Some stores, and links with latency, give one stream a part of what they have. */
static bool is_slow_alone(struct s3 *s3, size_t length)
{
	if (length < 2 * S3_PART_BYTES)
		return false;
	pthread_mutex_lock(&s3->lock);
	int64_t rate = s3->learned.write_bytes_per_ms;
	pthread_mutex_unlock(&s3->lock);
	return rate > 0 && (int64_t)length / rate > SLOW_PUT_MS;
}

/* 2xx, or an error for statuses that a put without a condition cannot have. */
int s3_put_result(struct s3 *s3, const char *key, const struct s3_answer *answer,
                  struct message *message)
{
	struct etag etag;
	if (!s3_is_good(answer))
		return s3_explain(s3, key, answer, message);
	return s3_etag_take(answer->http.etag, &etag) < 0 ? fail_etag(key, message) : 0;
}

int s3_write(struct s3 *s3, const char *key, const void *bytes, size_t length,
             struct message *message)
{
	if (length > S3_SINGLE_PUT_BYTES_MAX || is_slow_alone(s3, length))
		return s3_write_parts(s3, key, bytes, length, message);
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct s3_request request = {.kind = OBJECT_PUT,
	                             .method = "PUT",
	                             .key = key,
	                             .body = length > 0 ? bytes : "",
	                             .body_length = length};
	int error = s3_perform(s3, &request, &answer, message);
	return error < 0 ? error : s3_put_result(s3, key, &answer, message);
}

/* -- on a condition -- */

struct conditional {
	struct s3 *s3;
	const char *key;
	const struct etag *expected; /* NULL: that there is none */
	struct s3_request request;
	bool doubt; /* an attempt may have taken effect, or may do so yet */
	struct message *message;
};

static int not_known(const struct conditional *put)
{
	return fail(put->message, -ERR_STORE_AWAY,
	            "whether '%s' was written is not known: an answer of the store was lost",
	            put->key);
}

static int refused(const struct conditional *put, const struct s3_answer *answer)
{
	int status = answer->http.status;
	const char *key = put->key;
	if (put->doubt)
		return not_known(put);
	if (status == 404 && put->expected != NULL)
		return fail(put->message, -ERR_NOT_FOUND, "there is no object '%s'", key);
	if (status == 409 || status == 412)
		return put->expected != NULL
		               ? fail(put->message, -ERR_MOVED, "'%s' was replaced meanwhile", key)
		               : fail(put->message, -ERR_EXISTS, "'%s' exists already", key);
	int error = s3_explain(put->s3, key, answer, put->message);
	/* Key, clock and bucket are good: rules guard this very object. Trying again is no use. */
	return strcmp(answer->error.code, "AccessDenied") == 0 ? -ERR_REFUSED : error;
}

/* 1: the object is still as the condition asks; 0: not, or it cannot be read. */
static int nothing_happened(const struct conditional *put)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct etag etag;
	/* Not HEAD: only a body tells a missing object from a missing bucket. */
	struct s3_request request = {.method = "GET", .key = put->key};
	if (s3_perform(put->s3, &request, &answer, NULL) < 0)
		return 0;
	if (put->expected == NULL || !s3_is_good(&answer))
		return put->expected == NULL && answer.http.status == 404;
	return s3_etag_take(answer.http.etag, &etag) == 0 &&
	       strcmp(etag.text, put->expected->text) == 0;
}

static int conditional_run(struct conditional *put, struct etag *ret_etag)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct s3_patience patience;
	bool renewed = false;
	s3_patience_begin(put->s3, &patience);
	for (;;) {
		int error = s3_send(put->s3, &put->request, &patience, &answer, put->message);
		if (error < 0)
			return error;
		enum s3_verdict verdict = s3_judge(&answer);
		s3_learn(put->s3, &put->request, &answer, verdict);
		if (s3_is_good(&answer)) {
			struct etag etag;
			if (s3_etag_take(answer.http.etag, &etag) < 0)
				return fail_etag(put->key, put->message);
			if (ret_etag != NULL)
				*ret_etag = etag;
			return 0;
		}
		if (verdict == S3_RENEW && !renewed) {
			renewed = true;
			s3_credentials_refused(put->s3->credentials, answer.access_key);
			continue;
		}
		if (verdict != S3_AGAIN && verdict != S3_SLOW)
			return refused(put, &answer);
		put->doubt |= answer.http.outcome != HTTP_NOT_SENT;
		if (put->doubt && !nothing_happened(put))
			return not_known(put);
		if (!s3_pause(put->s3, &patience, verdict, &answer))
			return s3_explain(put->s3, put->key, &answer, put->message);
	}
}

int s3_write_if(struct s3 *s3, const char *key, const void *bytes, size_t length,
                const struct etag *expected, struct etag *ret_etag, struct message *message)
{
	char match[ETAG_MAX + 3];
	const char *quote = s3->settings.unquoted ? "" : "\"";
	struct conditional put = {.s3 = s3,
	                          .key = key,
	                          .expected = expected,
	                          .request = {.kind = OBJECT_PUT_IF,
	                                      .method = "PUT",
	                                      .key = key,
	                                      .headers = {{"if-none-match", "*"}},
	                                      .header_count = 1,
	                                      .body = length > 0 ? bytes : "",
	                                      .body_length = length,
	                                      .once = true},
	                          .message = message};
	if (length > S3_SINGLE_PUT_BYTES_MAX)
		return fail(message, -ERR_TOO_LARGE,
		            "'%s': %zu bytes are too many for a conditional write", key, length);
	if (expected != NULL) {
		snprintf(match, sizeof(match), "%s%s%s", quote, expected->text, quote);
		put.request.headers[0] = (struct http_header){"if-match", match};
	}
	return conditional_run(&put, ret_etag);
}
