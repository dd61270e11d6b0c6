/*
 * object_s3_http — hides libcurl: its multi handle, the thread that drives it, and the pool of easy
 * handles; and how a transfer that moves nothing is noticed.
 *
 * Life of a call: queued (queue, under `lock`) -> active (I/O thread alone) -> finished (under
 * `lock`; its condition is signalled, and from then on the call belongs to its caller again).
 */
#include "store/s3_http.h"
#include "store/thread.h"

#include <assert.h>
#include <curl/curl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>

#define CONNECTIONS_MAX_DEFAULT 64
#define CONNECT_MS_DEFAULT 5000
#define FIRST_BYTE_MS_DEFAULT 10000
#define STALL_MS_DEFAULT 10000
#define TRICKLE_MS 10000 /* less than TRICKLE_BYTES_MIN in such a time is a stall as well */
#define TRICKLE_BYTES_MIN (16u << 10)
#define UPLOAD_BYTES_PER_MS_MIN 256 /* what the kernel may still hold when we sent all */
#define UPLOAD_DRAIN_MS_MAX 30000
#define POLL_BUSY_MS 250
#define POLL_IDLE_MS 60000
#define RECEIVE_BUFFER_BYTES (256 << 10)
#define RESERVE_BYTES_MAX (64 << 20)
#define PREPARE_BYTES_MIN (256 << 10)
#define SEND_BUFFER_BYTES (256 << 10)
#define HEAD_BYTES_MAX (64u << 10) /* of a request; what follows it in a buffer is content */

struct call {
	const struct http_request *request;
	struct http_response *response;
	CURL *easy;
	struct curl_slist *headers;
	char curl_text[CURL_ERROR_SIZE];
	size_t into_length; /* of request->into, before */
	size_t sent;
	uint64_t moved; /* bytes in either direction */
	uint64_t seen;  /* of `moved`, when last looked at, and since when it is so */
	int64_t seen_ms;
	uint64_t checkpoint_moved; /* the same for a trickle */
	int64_t checkpoint_ms;
	bool answering; /* the first byte came */
	bool headed;    /* the headers came whole */
	bool repeated;  /* curl wanted to send the body again */
	bool stalled;
	int error; /* why a callback stopped the transfer */
	bool finished;
	pthread_cond_t done;
	struct call *previous, *next;
};

struct calls {
	struct call *first, *last;
};

struct http {
	CURLM *multi;
	char *ca_file;
	unsigned connections_max;
	pthread_t thread;
	pthread_mutex_t
	        lock; /* guards queue, stopping, abandoned, and every call's `finished`; a leaf */
	struct calls queue;
	bool stopping;
	bool abandoned; /* see http_abandon */
	/* Of the I/O thread alone: */
	bool ending_all;
	struct calls active;
	unsigned active_count;
	CURL **idle;
	unsigned idle_count;
	bool reuse;
};

static void calls_add(struct calls *calls, struct call *call)
{
	call->next = NULL;
	call->previous = calls->last;
	if (calls->last != NULL)
		calls->last->next = call;
	else
		calls->first = call;
	calls->last = call;
}

static void calls_remove(struct calls *calls, struct call *call)
{
	if (call->previous != NULL)
		call->previous->next = call->next;
	else
		calls->first = call->next;
	if (call->next != NULL)
		call->next->previous = call->previous;
	else
		calls->last = call->previous;
}

void http_response_release(struct http_response *response)
{
	buffer_release(&response->error_body);
	memset(response, 0, sizeof(*response));
}

/* -- curl's callbacks; all in the I/O thread -- */

static bool is_good(const struct call *call)
{
	return call->response->status >= 200 && call->response->status < 300;
}

static size_t send_some(char *bytes, size_t size, size_t count, void *context)
{
	struct call *call = context;
	size_t left = call->request->body_length - call->sent;
	size_t take = size * count < left ? size * count : left;
	if (take > 0)
		memcpy(bytes, (const char *)call->request->body + call->sent, take);
	call->sent += take;
	call->moved += take;
	call->response->sent_bytes += take;
	return take;
}

/* curl sends a request again by itself when a kept connection turns out to be dead. The server may
 * have acted on the first one: not for a request that counts how often it arrives. */
static int send_again(void *context, curl_off_t offset, int origin)
{
	struct call *call = context;
	if (call->request->once && call->sent > 0) {
		call->repeated = true;
		return CURL_SEEKFUNC_FAIL;
	}
	if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > call->request->body_length)
		return CURL_SEEKFUNC_FAIL;
	call->sent = (size_t)offset;
	return CURL_SEEKFUNC_OK;
}

static size_t receive_some(char *bytes, size_t size, size_t count, void *context)
{
	struct call *call = context;
	size_t length = size * count;
	call->moved += length;
	call->response->received_bytes += length;
	if (!is_good(call)) {
		struct buffer *body = &call->response->error_body;
		size_t room = HTTP_ERROR_BODY_MAX - body->length;
		buffer_append(body, bytes, length < room ? length : room);
		return length;
	}
	if (call->request->into == NULL)
		return length;
	int error = buffer_reserve(call->request->into, length);
	if (error < 0) {
		call->error = error;
		return 0;
	}
	buffer_append(call->request->into, bytes, length);
	return length;
}

static void keep_header(const char *line, size_t length, const char *name, char *ret_value,
                        size_t value_size)
{
	size_t name_length = strlen(name);
	if (length <= name_length || line[name_length] != ':' ||
	    strncasecmp(line, name, name_length) != 0)
		return;
	const char *from = line + name_length + 1, *end = line + length;
	while (from < end && (*from == ' ' || *from == '\t'))
		from++;
	while (end > from && strchr(" \t\r\n", end[-1]) != NULL)
		end--;
	size_t take = (size_t)(end - from);
	if (take >= value_size) /* longer than any that means something to us */
		return;
	memcpy(ret_value, from, take);
	ret_value[take] = '\0';
}

/* Growing by and by would copy what is there and touch twice the memory. What a server says is
 * believed as far as a pack goes. */
static void make_room(struct call *call)
{
	curl_off_t length = 0;
	curl_easy_getinfo(call->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
	if (call->request->into == NULL || !is_good(call) || length <= 0)
		return;
	/* Without memory it fails when the bytes come. */
	(void)buffer_reserve(call->request->into,
	                     length < RESERVE_BYTES_MAX ? (size_t)length : RESERVE_BYTES_MAX);
}

static size_t receive_header(char *line, size_t size, size_t count, void *context)
{
	struct call *call = context;
	struct http_response *response = call->response;
	size_t length = size * count;
	call->moved += length;
	call->answering = true;
	if (length >= 5 && strncmp(line, "HTTP/", 5) == 0) {
		long status = 0; /* this line's: also after an interim 100 */
		curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
		response->status = (int)status;
		response->etag[0] = response->content_range[0] = '\0';
		call->headed = false;
		return length;
	}
	if (length <= 2 && (line[0] == '\r' || line[0] == '\n')) {
		call->headed = true;
		make_room(call);
	}
	keep_header(line, length, "etag", response->etag, sizeof(response->etag));
	keep_header(line, length, "content-range", response->content_range,
	            sizeof(response->content_range));
	keep_header(line, length, "date", response->date, sizeof(response->date));
	keep_header(line, length, "retry-after", response->retry_after,
	            sizeof(response->retry_after));
	keep_header(line, length, "x-amz-bucket-region", response->region,
	            sizeof(response->region));
	return length;
}

/* -- setting up -- */

static bool add_header(struct call *call, const char *name, const char *value)
{
	char *line = NULL;
	/* curl drops "name:" but sends "name;" as a header without value */
	if (asprintf(&line, value[0] != '\0' ? "%s: %s" : "%s;", name, value) < 0)
		return false;
	struct curl_slist *grown = curl_slist_append(call->headers, line);
	explicit_bzero(line, strlen(line));
	free(line);
	if (grown == NULL)
		return false;
	call->headers = grown;
	return true;
}

static bool add_headers(struct call *call)
{
	const struct http_request *request = call->request;
	bool good = true;
	for (size_t i = 0; i < request->header_count && good; i++)
		good = add_header(call, request->headers[i].name, request->headers[i].value);
	/* Waiting for "100 Continue" would cost every upload a round trip. */
	struct curl_slist *grown = good ? curl_slist_append(call->headers, "Expect:") : NULL;
	if (grown != NULL)
		call->headers = grown;
	return grown != NULL;
}

static void set_callbacks(struct call *call)
{
	CURL *easy = call->easy;
	curl_easy_setopt(easy, CURLOPT_PRIVATE, call);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, receive_some);
	curl_easy_setopt(easy, CURLOPT_WRITEDATA, call);
	curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, receive_header);
	curl_easy_setopt(easy, CURLOPT_HEADERDATA, call);
	curl_easy_setopt(easy, CURLOPT_READFUNCTION, send_some);
	curl_easy_setopt(easy, CURLOPT_READDATA, call);
	curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, send_again);
	curl_easy_setopt(easy, CURLOPT_SEEKDATA, call);
	curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, call->curl_text);
}

static void set_method(struct call *call)
{
	const struct http_request *request = call->request;
	CURL *easy = call->easy;
	if (strcmp(request->method, "HEAD") == 0) {
		curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
	} else if (request->body != NULL) {
		curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
		curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)request->body_length);
		curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method);
	} else {
		curl_easy_setopt(easy, CURLOPT_HTTPGET, 1L);
		curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, request->method);
	}
	/* Without a body there is nothing to rewind by which a repetition would be noticed. */
	if (request->once && request->body_length == 0)
		curl_easy_setopt(easy, CURLOPT_FRESH_CONNECT, 1L);
}

static void set_connection(const struct http *http, struct call *call)
{
	const struct http_request *request = call->request;
	CURL *easy = call->easy;
	curl_easy_setopt(easy, CURLOPT_URL, request->url);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, call->headers);
	curl_easy_setopt(
	        easy, CURLOPT_CONNECTTIMEOUT_MS,
	        (long)(request->connect_ms > 0 ? request->connect_ms : CONNECT_MS_DEFAULT));
	curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)request->total_ms);
	curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_PATH_AS_IS, 1L); /* the path is signed */
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, (long)RECEIVE_BUFFER_BYTES);
	curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, (long)SEND_BUFFER_BYTES);
	curl_easy_setopt(easy, CURLOPT_USERAGENT, "lake");
	if (http->ca_file != NULL)
		curl_easy_setopt(easy, CURLOPT_CAINFO, http->ca_file);
	if (request->direct)
		curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
}

/* -- the I/O thread -- */

static void finish(struct http *http, struct call *call)
{
	curl_slist_free_all(call->headers);
	if (call->easy != NULL) {
		if (http->reuse) {
			curl_easy_reset(call->easy);
			http->idle[http->idle_count++] = call->easy; /* room for connections_max */
		} else {
			curl_easy_cleanup(call->easy);
		}
		call->easy = NULL;
	}
	pthread_mutex_lock(&http->lock);
	call->finished = true;
	pthread_cond_signal(&call->done);
	pthread_mutex_unlock(&http->lock);
}

static void fail_call(struct call *call, enum http_outcome outcome, int error, const char *text)
{
	struct http_response *response = call->response;
	response->outcome = outcome;
	response->error = error;
	snprintf(response->text, sizeof(response->text), "%s", text);
}

static void start(struct http *http, struct call *call)
{
	call->easy = http->idle_count > 0 ? http->idle[--http->idle_count] : curl_easy_init();
	if (call->easy == NULL || !add_headers(call)) {
		fail_call(call, HTTP_FAILED, -ERR_NO_MEMORY, "out of memory");
		finish(http, call);
		return;
	}
	set_callbacks(call);
	set_method(call);
	set_connection(http, call);
	call->seen_ms = call->checkpoint_ms = clock_monotonic_ms();
	CURLMcode code = curl_multi_add_handle(http->multi, call->easy);
	if (code != CURLM_OK) {
		fail_call(call, HTTP_FAILED, -ERR_NO_MEMORY, curl_multi_strerror(code));
		finish(http, call);
		return;
	}
	calls_add(&http->active, call);
	http->active_count++;
}

/* What a failed transfer means for whoever sent it: could the server have seen the request? */
static enum http_outcome outcome_of(CURLcode code)
{
	switch (code) {
	case CURLE_COULDNT_CONNECT:
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
	case CURLE_SSL_CONNECT_ERROR: /* a handshake that broke: a gateway may be starting */
		return HTTP_NOT_SENT;
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_SSL_ISSUER_ERROR:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CIPHER:
		return HTTP_UNTRUSTED;
	case CURLE_URL_MALFORMAT:
	case CURLE_UNSUPPORTED_PROTOCOL:
	case CURLE_OUT_OF_MEMORY:
	case CURLE_WRITE_ERROR: /* by receive_some alone */
		return HTTP_FAILED;
	default:
		return HTTP_BROKEN;
	}
}

static void conclude(struct call *call, CURLcode code)
{
	struct http_response *response = call->response;
	curl_off_t length = -1, first_us = 0, before_us = 0;
	curl_easy_getinfo(call->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
	curl_easy_getinfo(call->easy, CURLINFO_STARTTRANSFER_TIME_T, &first_us);
	curl_easy_getinfo(call->easy, CURLINFO_PRETRANSFER_TIME_T, &before_us);
	response->content_length = length;
	response->first_byte_us = first_us > before_us ? first_us - before_us : 0;
	if (call->stalled) {
		fail_call(call, HTTP_STALLED, 0,
		          call->answering ? "the answer stopped coming" : "no answer in time");
	} else if (code == CURLE_OPERATION_TIMEDOUT) {
		/* The only time-out given to curl is the one for connecting. */
		fail_call(call, HTTP_NOT_SENT, 0, "no connection in time");
	} else if (code != CURLE_OK) {
		const char *text = call->repeated ? "the connection ended without an answer"
		                   : call->curl_text[0] != '\0' ? call->curl_text
		                                                : curl_easy_strerror(code);
		int error = call->error < 0               ? call->error
		            : code == CURLE_OUT_OF_MEMORY ? -ERR_NO_MEMORY
		                                          : -ERR_INVALID;
		fail_call(call, outcome_of(code), error, text);
	} else if (!call->headed) {
		/* curl takes what came before the end of the connection for all of them. */
		fail_call(call, HTTP_BROKEN, 0, "the connection ended within the headers");
	} else {
		response->outcome = HTTP_ANSWERED;
	}
	struct buffer *into = call->request->into;
	bool cut = response->outcome == HTTP_BROKEN || response->outcome == HTTP_STALLED;
	bool kept = is_good(call) && (response->outcome == HTTP_ANSWERED ||
	                              (cut && call->headed && call->request->keep_cut));
	if (into != NULL && !kept)
		into->length = call->into_length;
}

static void end(struct http *http, struct call *call, CURLcode code)
{
	conclude(call, code);
	curl_multi_remove_handle(http->multi, call->easy);
	calls_remove(&http->active, call);
	http->active_count--;
	finish(http, call);
}

static int64_t patience_ms(const struct call *call)
{
	const struct http_request *request = call->request;
	int64_t stall_ms = request->stall_ms > 0 ? request->stall_ms : STALL_MS_DEFAULT;
	if (call->answering || call->sent < request->body_length)
		return stall_ms;
	int64_t drain_ms = (int64_t)(request->body_length / UPLOAD_BYTES_PER_MS_MIN);
	if (drain_ms > UPLOAD_DRAIN_MS_MAX)
		drain_ms = UPLOAD_DRAIN_MS_MAX;
	return (request->first_byte_ms > 0 ? request->first_byte_ms : FIRST_BYTE_MS_DEFAULT) +
	       drain_ms;
}

/* Connecting has a time-out of its own, in curl. */
static bool is_connected(const struct call *call)
{
	curl_off_t us = 0;
	curl_easy_getinfo(call->easy, CURLINFO_PRETRANSFER_TIME_T, &us);
	return us > 0;
}

static bool is_stalled(struct call *call, int64_t now_ms)
{
	if (call->moved != call->seen || !is_connected(call)) {
		call->seen = call->moved;
		call->seen_ms = now_ms;
	}
	if (call->moved - call->checkpoint_moved >= TRICKLE_BYTES_MIN || !is_connected(call)) {
		call->checkpoint_moved = call->moved;
		call->checkpoint_ms = now_ms;
	}
	int64_t patience = patience_ms(call);
	int64_t trickle_ms = patience > TRICKLE_MS ? patience : TRICKLE_MS;
	return now_ms - call->seen_ms > patience || now_ms - call->checkpoint_ms > trickle_ms;
}

static void check_stalls(struct http *http)
{
	int64_t now_ms = clock_monotonic_ms();
	for (struct call *call = http->active.first, *next; call != NULL; call = next) {
		next = call->next;
		if (http->ending_all || is_stalled(call, now_ms)) {
			call->stalled = true;
			end(http, call, CURLE_OPERATION_TIMEDOUT);
		}
	}
}

/* Starts what is queued, as far as there is room. False: time to stop. */
static bool start_queued(struct http *http)
{
	for (;;) {
		pthread_mutex_lock(&http->lock);
		bool stopping = http->stopping;
		http->ending_all = http->abandoned;
		struct call *call =
		        http->active_count < http->connections_max ? http->queue.first : NULL;
		if (call != NULL)
			calls_remove(&http->queue, call);
		pthread_mutex_unlock(&http->lock);
		if (call == NULL)
			return !stopping;
		start(http, call);
	}
}

static void *io_thread(void *argument)
{
	struct http *http = argument;
	while (start_queued(http) || http->active_count > 0) {
		int running = 0, left = 0;
		unsigned before = http->active_count;
		curl_multi_perform(http->multi, &running);
		CURLMsg *done;
		while ((done = curl_multi_info_read(http->multi, &left)) != NULL) {
			struct call *call = NULL;
			CURLcode code = done->data.result;
			curl_easy_getinfo(done->easy_handle, CURLINFO_PRIVATE, &call);
			end(http, call, code);
		}
		check_stalls(http);
		if (http->active_count < before)
			continue; /* room for a queued one */
		curl_multi_poll(http->multi, NULL, 0,
		                http->active_count > 0 ? POLL_BUSY_MS : POLL_IDLE_MS, NULL);
	}
	return NULL;
}

/* -- the calls of other threads -- */

/* Memory that a large answer will be received into. */
struct destination {
	uint8_t *bytes;
	size_t length;
};

static struct destination destination_of(const struct http_request *request)
{
	const struct buffer *into = request->into;
	if (into == NULL || request->into_bytes < PREPARE_BYTES_MIN ||
	    into->capacity - into->length < request->into_bytes)
		return (struct destination){NULL, 0};
	uintptr_t start = (uintptr_t)(into->data + into->length);
	size_t over = start % (size_t)sysconf(_SC_PAGESIZE);
	return (struct destination){into->data + into->length - over, request->into_bytes + over};
}

/* While the store thinks, its pages are made: else the one thread that receives for everybody would
 * make them, one by one. A wish. */
static void prepare(const struct destination *destination)
{
	if (destination->length > 0)
		(void)madvise(destination->bytes, destination->length, MADV_POPULATE_WRITE);
}

void http_perform(struct http *http, const struct http_request *request,
                  struct http_response *ret_response)
{
	http_response_release(ret_response);
	ret_response->content_length = -1;
	struct call call = {.request = request,
	                    .response = ret_response,
	                    .into_length = request->into != NULL ? request->into->length : 0};
	const struct destination destination = destination_of(request);
	pthread_cond_init(&call.done, NULL);
	pthread_mutex_lock(&http->lock);
	assert(!http->stopping);
	calls_add(&http->queue, &call);
	pthread_mutex_unlock(&http->lock);
	curl_multi_wakeup(http->multi);
	prepare(&destination);
	pthread_mutex_lock(&http->lock);
	while (!call.finished)
		pthread_cond_wait(&call.done, &http->lock);
	pthread_mutex_unlock(&http->lock);
	pthread_cond_destroy(&call.done);
}

void http_abandon(struct http *http)
{
	pthread_mutex_lock(&http->lock);
	http->abandoned = true;
	pthread_mutex_unlock(&http->lock);
	curl_multi_wakeup(http->multi);
}

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

/* -- curl's memory: heads of requests are in it, with session tokens -- */

static void memory_free(void *memory)
{
	size_t size = malloc_usable_size(memory); /* 0 for NULL */
	if (size > 0)
		explicit_bzero(memory, size < HEAD_BYTES_MAX ? size : HEAD_BYTES_MAX);
	free(memory);
}

static void *memory_resize(void *memory, size_t size)
{
	size_t before = malloc_usable_size(memory);
	void *resized = malloc(size);
	if (resized == NULL)
		return NULL;
	if (before > 0)
		memcpy(resized, memory, before < size ? before : size);
	memory_free(memory);
	return resized;
}

static void curl_begin(void)
{
	curl_global_init_mem(CURL_GLOBAL_DEFAULT, malloc, memory_free, memory_resize, strdup,
	                     calloc);
}

static void http_release(struct http **http)
{
	if (*http == NULL)
		return;
	for (unsigned i = 0; i < (*http)->idle_count; i++)
		curl_easy_cleanup((*http)->idle[i]);
	curl_multi_cleanup((*http)->multi);
	pthread_mutex_destroy(&(*http)->lock);
	free((*http)->idle);
	free((*http)->ca_file);
	free(*http);
}

int http_new(const struct http_options *options, struct http **ret_http, struct message *message)
{
	pthread_once(&curl_once, curl_begin);
	CLEANUP(http_release) struct http *http = calloc(1, sizeof(*http));
	if (http == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	pthread_mutex_init(&http->lock, NULL);
	http->connections_max =
	        options->connections_max > 0 ? options->connections_max : CONNECTIONS_MAX_DEFAULT;
	/* A handle that is used again remembers a freed header before 8.1.1, and a server can make
	 * it read that (https://github.com/curl/curl/pull/11103). Connections belong to the multi
	 * handle. */
	http->reuse = curl_version_info(CURLVERSION_NOW)->version_num >= 0x080101;
	http->idle = calloc(http->connections_max, sizeof(*http->idle));
	http->multi = curl_multi_init();
	if (options->ca_file != NULL)
		http->ca_file = strdup(options->ca_file);
	if (http->idle == NULL || http->multi == NULL ||
	    (options->ca_file != NULL && http->ca_file == NULL))
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	/* Kept connections: as many as may be in use, not curl's four times the handles. */
	curl_multi_setopt(http->multi, CURLMOPT_MAXCONNECTS, (long)http->connections_max);
	int error = thread_start(&http->thread, io_thread, http);
	if (error < 0)
		return fail(message, error, "cannot start a thread: %s", error_text(error));
	*ret_http = steal(&http);
	return 0;
}

void http_free(struct http *http)
{
	if (http == NULL)
		return;
	pthread_mutex_lock(&http->lock);
	http->stopping = true;
	pthread_mutex_unlock(&http->lock);
	curl_multi_wakeup(http->multi);
	pthread_join(http->thread, NULL);
	http_release(&http);
}
