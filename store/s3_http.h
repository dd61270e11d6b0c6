/*
 * s3_http — HTTP requests over kept-alive connections, from many threads at once.
 *
 * One I/O thread owns libcurl's multi handle and every connection; callers queue a request and wait
 * for their own answer, so requests of different threads run in parallel, at most
 * `connections_max` at a time (the rest wait in order).
 *
 * Never: retries, follows redirects, or reports part of a body as an answer. A request marked
 * `once` is sent at most once, whatever happens to its connection.
 * Threads: any. Lock: `http.lock` guards the queue and is never held across the network.
 */
#ifndef STORE_S3_HTTP_H
#define STORE_S3_HTTP_H

#include "store/base.h"

struct http;
struct http_options {
	const char *ca_file;      /* PEM; NULL: the system's certificates */
	unsigned connections_max; /* 0: 64 */
};
int http_new(const struct http_options *options, struct http **ret_http, struct message *message);
void http_free(struct http *http); /* accepts NULL; no request may be under way */
/* Requests under way, and all later ones, end at once as HTTP_STALLED: for who is about to go. */
void http_abandon(struct http *http);

struct http_header {
	const char *name;
	const char *value;
};
struct http_request {
	const char *method;
	const char *url;
	const struct http_header *headers;
	size_t header_count;
	const void *body; /* sent when not NULL */
	size_t body_length;
	struct buffer *into;   /* the body of a 2xx answer is appended here; NULL: dropped */
	size_t into_bytes;     /* its expected length; 0: unknown */
	int64_t connect_ms;    /* 0: 5,000 */
	int64_t first_byte_ms; /* from the last byte sent to the first one back; 0: 10,000 */
	int64_t stall_ms; /* a body of which nothing moves for so long is given up; 0: 10,000 */
	int64_t total_ms; /* for everything, from connecting to the last byte; 0: without limit */
	bool once;        /* see above */
	bool keep_cut;    /* keep what came of the body of a 2xx answer that was cut */
	bool direct;      /* no proxy */
};

enum http_outcome {
	HTTP_ANSWERED,  /* status, headers and the whole body are here */
	HTTP_NOT_SENT,  /* no connection: the server has not seen it */
	HTTP_BROKEN,    /* the connection ended before the answer did */
	HTTP_STALLED,   /* nothing moved for too long */
	HTTP_UNTRUSTED, /* the server's certificate */
	HTTP_FAILED,    /* here: no memory, a bad URL, a body larger than `into` may hold */
};
#define HTTP_ERROR_BODY_MAX (64u << 10)
struct http_response {
	enum http_outcome outcome;
	int error;      /* HTTP_FAILED: which */
	char text[256]; /* unless HTTP_ANSWERED: in words */
	int status;
	int64_t content_length; /* -1: not told */
	char etag[128];         /* headers as they came; "" when there is none */
	char content_range[64];
	char date[40];
	char retry_after[16];
	char region[40];          /* x-amz-bucket-region */
	struct buffer error_body; /* of an answer that is not 2xx; at most HTTP_ERROR_BODY_MAX */
	uint64_t received_bytes;  /* of bodies, also of one that was cut; likewise sent */
	uint64_t sent_bytes;
	int64_t first_byte_us; /* how long the server took to begin its answer */
};
void http_response_release(struct http_response *response); /* accepts zeroed */

/* Blocks until there is an answer or none can be had. Whatever `ret_response` held is released.
 * After anything but a 2xx answer *request->into is as it was (but for keep_cut). */
void http_perform(struct http *http, const struct http_request *request,
                  struct http_response *ret_response);

#endif
