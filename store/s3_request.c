/*
 * s3_request — hides how a request is put together and signed, what an answer is worth, how long to
 * wait and when to try again.
 */
#include <stdio.h>
#include <strings.h>
#include <time.h>

#include "store/s3.h"
#include "store/s3_sign.h"

#define HEADERS_MAX 10
#define AWAY_TIMEOUT_MS 5000 /* patience while the store was away the last time */
#define NEW_TIMEOUT_MS 10000 /* ... and until it has answered once: its address may be wrong */
#define PAUSE_MS_BASE 50
#define PAUSE_MS_SLOW_BASE 500
#define PAUSE_MS_MAX 5000
#define READ_FIRST_BYTE_MS_MIN 2000
#define WRITE_FIRST_BYTE_MS_MIN 10000
#define FIRST_BYTE_MS_MAX 30000
#define FIRST_BYTE_MS_UNKNOWN 10000
#define CONNECT_MS_MAX 5000
#define WAIT_MS_MIN 1000
#define STALL_MS_MAX 10000
#define READ_STALL_MS_MIN 1500
#define LATENCY_BODY_BYTES_MAX (64u << 10)
#define RATE_BODY_BYTES_MIN (4u << 20)

void s3_answer_release(struct s3_answer *answer)
{
	http_response_release(&answer->http);
	memset(answer, 0, sizeof(*answer));
}

/* -- patience -- */

void s3_patience_begin(struct s3 *s3, struct s3_patience *ret_patience)
{
	pthread_mutex_lock(&s3->lock);
	bool away = s3->learned.away, answered = s3->learned.answered;
	pthread_mutex_unlock(&s3->lock);
	int64_t timeout_ms = s3->settings.timeout_ms;
	if (!answered && timeout_ms > NEW_TIMEOUT_MS)
		timeout_ms = NEW_TIMEOUT_MS;
	if (away && timeout_ms > AWAY_TIMEOUT_MS)
		timeout_ms = AWAY_TIMEOUT_MS;
	ret_patience->deadline_ms = clock_monotonic_ms() + timeout_ms;
	ret_patience->tries = 0;
}

static int64_t retry_after_ms(const struct s3_answer *answer)
{
	const char *text = answer->http.retry_after;
	size_t digits = strspn(text, "0123456789");
	return digits > 0 && digits < 5 && text[digits] == '\0' ? strtoll(text, NULL, 10) * 1000
	                                                        : 0;
}

/* Full jitter: anything from nothing to an exponentially growing bound, so that clients that failed
 * together do not come back together. */
bool s3_pause(struct s3 *s3, struct s3_patience *patience, enum s3_verdict verdict,
              const struct s3_answer *answer)
{
	unsigned doublings = patience->tries < 10 ? patience->tries : 10;
	int64_t base_ms = verdict == S3_SLOW ? PAUSE_MS_SLOW_BASE : PAUSE_MS_BASE;
	int64_t bound_ms = base_ms << doublings;
	if (bound_ms > PAUSE_MS_MAX)
		bound_ms = PAUSE_MS_MAX;
	int64_t pause_ms = (int64_t)(random_u64() % (uint64_t)(bound_ms + 1));
	pause_ms += retry_after_ms(answer);
	int64_t left_ms = patience->deadline_ms - clock_monotonic_ms();
	patience->tries++;
	if (pause_ms >= left_ms) {
		pthread_mutex_lock(&s3->lock);
		s3->learned.away = true;
		pthread_mutex_unlock(&s3->lock);
		return false;
	}
	struct timespec pause = {.tv_sec = pause_ms / 1000, .tv_nsec = (pause_ms % 1000) * 1000000};
	nanosleep(&pause, NULL);
	return true;
}

/* -- adaptive time-outs: as TCP estimates round trips (RFC 6298) -- */

void s3_learn(struct s3 *s3, const struct s3_request *request, const struct s3_answer *answer,
              enum s3_verdict verdict)
{
	if (verdict == S3_AGAIN || verdict == S3_SLOW)
		return;
	pthread_mutex_lock(&s3->lock);
	s3->learned.away = false;
	if (request->body_length >= RATE_BODY_BYTES_MIN && answer->took_ms > 0) {
		int64_t rate = (int64_t)request->body_length / answer->took_ms + 1;
		int64_t *smoothed = &s3->learned.write_bytes_per_ms;
		*smoothed = *smoothed == 0 ? rate : *smoothed + (rate - *smoothed) / 4;
	}
	int64_t us = answer->http.first_byte_us;
	if (us > 0 && request->body_length <= LATENCY_BODY_BYTES_MAX) {
		int64_t smoothed = s3->learned.first_byte_us;
		int64_t off = us > smoothed ? us - smoothed : smoothed - us;
		if (smoothed == 0) {
			s3->learned.first_byte_us = us;
			s3->learned.deviation_us = us / 2;
		} else {
			s3->learned.first_byte_us += (us - smoothed) / 8;
			s3->learned.deviation_us += (off - s3->learned.deviation_us) / 4;
		}
	}
	pthread_mutex_unlock(&s3->lock);
}

/* No single wait goes on when all of them together must be over; the last one has a chance, too. */
static int64_t at_most(const struct s3_patience *patience, int64_t ms)
{
	int64_t left_ms = patience->deadline_ms - clock_monotonic_ms();
	if (left_ms < WAIT_MS_MIN)
		left_ms = WAIT_MS_MIN;
	return ms < left_ms ? ms : left_ms;
}

static bool is_write(const struct s3_request *request)
{
	return strcmp(request->method, "GET") != 0 && strcmp(request->method, "HEAD") != 0;
}

/* A multiple of what is usual, doubled with each try. */
static int64_t wait_ms(struct s3 *s3, const struct s3_patience *patience, int64_t least_ms,
                       int64_t most_ms)
{
	pthread_mutex_lock(&s3->lock);
	int64_t us = s3->learned.first_byte_us == 0
	                     ? (int64_t)FIRST_BYTE_MS_UNKNOWN * 1000
	                     : s3->learned.first_byte_us + 8 * s3->learned.deviation_us;
	pthread_mutex_unlock(&s3->lock);
	int64_t ms = us / 1000 * 4;
	if (ms < least_ms)
		ms = least_ms;
	ms <<= patience->tries < 4 ? patience->tries : 4;
	return at_most(patience, ms < most_ms ? ms : most_ms);
}

static int64_t first_byte_ms(struct s3 *s3, const struct s3_request *request,
                             const struct s3_patience *patience)
{
	return wait_ms(s3, patience,
	               is_write(request) ? WRITE_FIRST_BYTE_MS_MIN : READ_FIRST_BYTE_MS_MIN,
	               FIRST_BYTE_MS_MAX);
}

/* Starting a read anew costs a request, and what came is kept; a write would be sent again. */
static int64_t stall_ms(struct s3 *s3, const struct s3_request *request,
                        const struct s3_patience *patience)
{
	return wait_ms(s3, patience, is_write(request) ? STALL_MS_MAX : READ_STALL_MS_MIN,
	               STALL_MS_MAX);
}

/* -- one request -- */

/* The path as it is sent and signed. */
static int compose_path(const struct s3 *s3, const struct s3_request *request,
                        struct buffer *ret_path)
{
	buffer_append(ret_path, s3->path_base, strlen(s3->path_base));
	if (request->key != NULL || ret_path->length == 0)
		buffer_u8(ret_path, '/');
	if (request->key != NULL) {
		if (s3->settings.prefix[0] != '\0') {
			percent_encode(ret_path, s3->settings.prefix, true);
			buffer_u8(ret_path, '/');
		}
		percent_encode(ret_path, request->key, true);
	}
	buffer_u8(ret_path, 0);
	return buffer_check(ret_path);
}

struct envelope {
	struct http_header headers[HEADERS_MAX];
	size_t count;
	char date[AMZ_DATE_LENGTH + 1];
	char hash[SHA256_HEX + 1];
	char range[S3_RANGE_TEXT];
	struct buffer path, url, authorization;
};

static void envelope_release(struct envelope *envelope)
{
	buffer_release(&envelope->path);
	buffer_release(&envelope->url);
	buffer_release(&envelope->authorization);
}

static void add_header(struct envelope *envelope, const char *name, const char *value)
{
	envelope->headers[envelope->count++] = (struct http_header){name, value};
}

static const char no_body_sha256[] =
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

static int sign(struct s3 *s3, const struct s3_request *request, const struct s3_key *key,
                struct envelope *envelope)
{
	const char *query = request->query != NULL ? request->query : "";
	amz_date(clock_wall_ms(), envelope->date);
	if (request->body_length > 0)
		payload_hash(request->body, request->body_length, envelope->hash);
	else
		memcpy(envelope->hash, no_body_sha256, sizeof(no_body_sha256));
	add_header(envelope, "Host", s3->host);
	add_header(envelope, "x-amz-content-sha256", envelope->hash);
	add_header(envelope, "x-amz-date", envelope->date);
	if (key->session_token != NULL)
		add_header(envelope, "x-amz-security-token", key->session_token);
	if (request->range != NULL && s3_range_text(request->range, envelope->range))
		add_header(envelope, "range", envelope->range);
	for (size_t i = 0; i < request->header_count; i++)
		add_header(envelope, request->headers[i].name, request->headers[i].value);
	int error = compose_path(s3, request, &envelope->path);
	if (error < 0)
		return error;
	const char *path = (const char *)envelope->path.data;
	struct s3_signing signing = {.method = request->method,
	                             .path = path,
	                             .query = query,
	                             .headers = envelope->headers,
	                             .header_count = envelope->count,
	                             .payload_sha256 = envelope->hash,
	                             .access_key = key->access_key,
	                             .secret_key = key->secret_key,
	                             .region = s3->settings.region,
	                             .service = "s3",
	                             .amz_date = envelope->date};
	error = s3_sign(&signing, &envelope->authorization);
	buffer_u8(&envelope->authorization, 0);
	const char *const parts[] = {s3->url_base, path, query[0] != '\0' ? "?" : "", query};
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		buffer_append(&envelope->url, parts[i], strlen(parts[i]));
	buffer_u8(&envelope->url, 0);
	if (error == 0)
		error = buffer_check(&envelope->authorization);
	return error == 0 ? buffer_check(&envelope->url) : error;
}

static void count_request(struct s3 *s3, const struct s3_request *request, unsigned tries,
                          const struct http_response *http)
{
	struct object_counters *counters = &s3->base.counters;
	counters->requests[request->kind]++;
	counters->sent_bytes += http->sent_bytes;
	counters->received_bytes += http->received_bytes;
	if (tries > 0)
		counters->retries++;
	if (http->outcome == HTTP_STALLED)
		counters->timeouts++;
}

static size_t into_bytes(const struct s3_request *request)
{
	bool known = request->range != NULL && request->range->length != UINT64_MAX;
	return known ? request->range->length : 0;
}

int s3_send(struct s3 *s3, const struct s3_request *request, const struct s3_patience *patience,
            struct s3_answer *ret_answer, struct message *message)
{
	CLEANUP(s3_key_release) struct s3_key key = {0};
	CLEANUP(envelope_release) struct envelope envelope = {.count = 0};
	s3_answer_release(ret_answer);
	int error = s3_credentials_get(s3->credentials, &key, message);
	if (error < 0)
		return error;
	error = sign(s3, request, &key, &envelope);
	if (error < 0)
		return fail(message, error, "cannot sign a request: %s", error_text(error));
	add_header(&envelope, "Authorization", (const char *)envelope.authorization.data);
	snprintf(ret_answer->access_key, sizeof(ret_answer->access_key), "%s", key.access_key);
	struct http_request http_request = {.method = request->method,
	                                    .url = (const char *)envelope.url.data,
	                                    .headers = envelope.headers,
	                                    .header_count = envelope.count,
	                                    .body = request->body,
	                                    .body_length = request->body_length,
	                                    .into = request->into,
	                                    .into_bytes = into_bytes(request),
	                                    .connect_ms = at_most(patience, CONNECT_MS_MAX),
	                                    .first_byte_ms = first_byte_ms(s3, request, patience),
	                                    .stall_ms = stall_ms(s3, request, patience),
	                                    .once = request->once,
	                                    .keep_cut = request->keep_cut};
	int64_t start_ms = clock_monotonic_ms();
	http_perform(s3->http, &http_request, &ret_answer->http);
	ret_answer->took_ms = clock_monotonic_ms() - start_ms;
	count_request(s3, request, patience->tries, &ret_answer->http);
	if (ret_answer->http.outcome == HTTP_ANSWERED && !s3_is_good(ret_answer))
		s3_xml_error(ret_answer->http.error_body.data, ret_answer->http.error_body.length,
		             &ret_answer->error);
	return 0;
}

/* -- what an answer is worth -- */

static bool code_is(const struct s3_answer *answer, const char *const *codes, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(answer->error.code, codes[i]) == 0)
			return true;
	return false;
}

static enum s3_verdict judge_status(const struct s3_answer *answer)
{
	static const char *const slow[] = {"SlowDown", "TooManyRequests", "RequestLimitExceeded",
	                                   "BandwidthLimitExceeded"};
	static const char *const again[] = {"RequestTimeout", "InternalError", "OperationAborted"};
	static const char *const expired[] = {"ExpiredToken", "TokenRefreshRequired",
	                                      "InvalidToken"};
	/* Keys may be exchanged in the shared files while we run. */
	static const char *const unknown[] = {"InvalidAccessKeyId", "SignatureDoesNotMatch"};
	int status = answer->http.status;
	if (code_is(answer, slow, ARRAY_SIZE(slow)) || status == 429 || status == 503)
		return S3_SLOW;
	if (code_is(answer, expired, ARRAY_SIZE(expired)) ||
	    code_is(answer, unknown, ARRAY_SIZE(unknown)))
		return S3_RENEW;
	if ((status >= 500 && status != 501) || status == 408)
		return S3_AGAIN;
	if (status == 304 || status == 409 || status == 412 || status == 416)
		return S3_DONE;
	if (code_is(answer, again, ARRAY_SIZE(again)))
		return S3_AGAIN;
	if (status == 404)
		return strcmp(answer->error.code, "NoSuchKey") == 0 ||
		                       strcmp(answer->error.code, "NoSuchUpload") == 0
		               ? S3_DONE
		               : S3_WRONG;
	return S3_WRONG;
}

enum s3_verdict s3_judge(const struct s3_answer *answer)
{
	switch (answer->http.outcome) {
	case HTTP_ANSWERED:
		return s3_is_good(answer) ? S3_DONE : judge_status(answer);
	case HTTP_NOT_SENT:
	case HTTP_BROKEN:
	case HTTP_STALLED:
		return S3_AGAIN;
	case HTTP_UNTRUSTED:
	case HTTP_FAILED:
		break;
	}
	return S3_WRONG;
}

static const char *what_of(const struct s3_request *request)
{
	return request->key != NULL ? request->key : "the bucket";
}

int s3_perform(struct s3 *s3, const struct s3_request *request, struct s3_answer *ret_answer,
               struct message *message)
{
	struct s3_patience patience;
	struct s3_resume resume;
	bool renewed = false;
	int error;
	s3_patience_begin(s3, &patience);
	s3_resume_begin(&resume, request);
	for (;;) {
		error = s3_send(s3, &resume.request, &patience, ret_answer, message);
		if (error < 0)
			break;
		enum s3_verdict verdict = s3_judge(ret_answer);
		s3_learn(s3, request, ret_answer, verdict);
		/* Without a condition of ours it is another operation that is in the way. */
		if (verdict == S3_DONE && ret_answer->http.status == 409)
			verdict = S3_AGAIN;
		verdict = s3_resume_after(&resume, ret_answer, verdict, &patience);
		if (verdict == S3_DONE)
			return 0;
		if (verdict == S3_RENEW && !renewed) {
			renewed = true;
			s3_credentials_refused(s3->credentials, ret_answer->access_key);
			continue;
		}
		if (verdict == S3_WRONG || verdict == S3_RENEW ||
		    !s3_pause(s3, &patience, verdict, ret_answer)) {
			error = s3_explain(s3, what_of(request), ret_answer, message);
			break;
		}
	}
	s3_resume_fail(&resume);
	return error;
}
