/*
 * s3 — the S3 backend from inside: its settings, one signed request, retries, the probe.
 *
 * Only for store/s3_*.c and store/object_s3*.c; everybody else uses store/object.h.
 * Threads: any. Lock: `s3.lock` guards what was learned about the store (latency, away); a leaf.
 */
#ifndef STORE_S3_H
#define STORE_S3_H

#include <pthread.h>

#include "store/object.h"
#include "store/s3_credentials.h"
#include "store/s3_http.h"
#include "store/s3_xml.h"

/* -- settings: what a URL, the environment and the shared config file say; no secrets -- */
#define S3_PREFIX_MAX 100 /* with a '/' and a key it stays below S3's limit of 1,024 */

struct s3_settings {
	char *bucket;
	char *prefix;   /* "" or "a/b" */
	char *endpoint; /* http[s]://host[:port][/path], no '/' at the end */
	char *region;
	char *ca_file;         /* NULL: the system's */
	char *profile;         /* as named by the URL; NULL: environment or "default" */
	bool endpoint_default; /* AWS's own, made from the region */
	bool path_style;
	bool path_style_given;
	bool unquoted; /* dialect: If-Match wants the etag without quotes */
	int64_t timeout_ms;
	unsigned connections_max;
};
#define S3_TIMEOUT_MS_DEFAULT 60000
/* -ERR_INVALID. */
int s3_settings_parse(const char *url, struct s3_settings *ret_settings, struct message *message);
void s3_settings_release(struct s3_settings *settings); /* accepts zeroed */
/* The URL that gives these settings whatever the environment says. Allocated. */
int s3_settings_url(const struct s3_settings *settings, char **ret_url);

/* -- the store -- */
struct s3 {
	struct object_store base;
	struct s3_settings settings;
	char *url_base;  /* scheme://host, virtual-host style with the bucket */
	char *host;      /* of the Host header */
	char *path_base; /* what comes before "/key": "" or "/bucket" */
	struct http *http;
	struct s3_credentials *credentials;
	pthread_mutex_t lock;
	struct {
		int64_t first_byte_us; /* smoothed, and its mean deviation; 0: none yet */
		int64_t deviation_us;
		int64_t write_bytes_per_ms; /* of one large put, smoothed; 0: none yet */
		bool away;                  /* the last call ran out of time */
		bool answered;              /* it was reached before */
	} learned;
};

/* -- one request -- */
struct s3_range {
	uint64_t offset, length; /* length UINT64_MAX: to the end */
};
struct s3_request {
	enum object_request kind; /* as it is counted */
	const char *method;
	const char *key;   /* below the prefix; NULL: the bucket itself */
	const char *query; /* percent-encoded; NULL: none */
	struct http_header headers[3];
	size_t header_count;
	const void *body;
	size_t body_length;
	struct buffer *into;          /* body of a 2xx answer */
	const struct s3_range *range; /* bytes of an object to read; NULL: no such request */
	bool once;                    /* reaches the store at most once for each s3_send */
	bool keep_cut;                /* as http_request's */
};
struct s3_answer {
	struct http_response http;
	struct s3_error error; /* what an error body says */
	char access_key[160];  /* that signed it */
	int64_t took_ms;
	uint64_t resumed; /* bytes of `into` that earlier, cut answers brought; this one goes on */
};
void s3_answer_release(struct s3_answer *answer); /* accepts zeroed */

enum s3_verdict {
	S3_DONE,  /* 2xx, or a status that speaks of the object: 304, 404, 409, 412, 416 */
	S3_AGAIN, /* may go better next time; a write may or may not have been done */
	S3_SLOW,  /* the same, and the store asks to be left alone for a while */
	S3_RENEW, /* the credentials have expired; nothing was done */
	S3_WRONG, /* will not get better; nothing was done */
};

/* How long one call of the store's user may take, and how often it was tried. */
struct s3_patience {
	int64_t deadline_ms;
	unsigned tries;
};
void s3_patience_begin(struct s3 *s3, struct s3_patience *ret_patience);
/* Sleep before the next try, full jitter. False when there is no time for one. */
bool s3_pause(struct s3 *s3, struct s3_patience *patience, enum s3_verdict verdict,
              const struct s3_answer *answer);

/* Sign and send once. 0 with *ret_answer, whatever the outcome; an error when it could not even be
 * composed or signed. */
int s3_send(struct s3 *s3, const struct s3_request *request, const struct s3_patience *patience,
            struct s3_answer *ret_answer, struct message *message);
enum s3_verdict s3_judge(const struct s3_answer *answer);
/* Remember how the store did. */
void s3_learn(struct s3 *s3, const struct s3_request *request, const struct s3_answer *answer,
              enum s3_verdict verdict);
/* Send, and again while there is time: for requests that may be repeated. A read of a range that
 * was cut goes on where it broke. 0: S3_DONE, look at the status; else an error with a message. */
int s3_perform(struct s3 *s3, const struct s3_request *request, struct s3_answer *ret_answer,
               struct message *message);
/* A failed answer in words, with what to do about it. Returns the error. */
int s3_explain(struct s3 *s3, const char *what, const struct s3_answer *answer,
               struct message *message);
static inline bool s3_is_good(const struct s3_answer *answer)
{
	return answer->http.outcome == HTTP_ANSWERED && answer->http.status >= 200 &&
	       answer->http.status < 300;
}

/* -- ranges, and reads that go on where they broke (s3_range.c) -- */
#define S3_RANGE_TEXT 64
#define S3_RANGE_END_MAX ((uint64_t)INT64_MAX / 2)
/* The value of a Range header. False: all of the object, no header. */
bool s3_range_text(const struct s3_range *range, char ret_text[S3_RANGE_TEXT]);
/* Does a Content-Range name this range, and `got` bytes? Fewer than asked for only at the end. */
bool s3_range_matches(const struct s3_range *range, const char *content_range, uint64_t got);
struct s3_resume {
	struct s3_request request; /* for what is left */
	struct s3_range asked, rest;
	size_t before; /* length of request.into when nothing had come */
	uint64_t got;
	char etag[128]; /* of the object they are from */
};
/* Both do nothing for a request without a range. `ret_resume` must stay where it is. */
void s3_resume_begin(struct s3_resume *ret_resume, const struct s3_request *request);
/* After each answer: keeps what can be gone on from. The verdict may become S3_AGAIN. */
enum s3_verdict s3_resume_after(struct s3_resume *resume, struct s3_answer *answer,
                                enum s3_verdict verdict, struct s3_patience *patience);
void s3_resume_fail(struct s3_resume *resume); /* nothing was read */

/* -- writing (s3_write.c) -- */
#define S3_SINGLE_PUT_BYTES_MAX ((size_t)64 << 20)
#define S3_PART_BYTES ((size_t)16 << 20)
int s3_write(struct s3 *s3, const char *key, const void *bytes, size_t length,
             struct message *message);
/* In parts (s3_parts.c), several at a time. */
int s3_write_parts(struct s3 *s3, const char *key, const void *bytes, size_t length,
                   struct message *message);
/* A put's answer: 2xx with an ETag, or an error. */
int s3_put_result(struct s3 *s3, const char *key, const struct s3_answer *answer,
                  struct message *message);
/* `expected` NULL: only if there is none. -ERR_EXISTS, -ERR_MOVED, -ERR_NOT_FOUND: certainly not
 * done. -ERR_UNSUPPORTED: the store knows no such condition. Any other: not known. */
int s3_write_if(struct s3 *s3, const char *key, const void *bytes, size_t length,
                const struct etag *expected, struct etag *ret_etag, struct message *message);
/* From a header: without quotes. -ERR_CORRUPT when there is none or it is too long. */
int s3_etag_take(const char *header, struct etag *ret_etag);

/* -- the probe (s3_probe.c): can this store hold a lake? Sets settings.unquoted. -- */
int s3_probe(struct s3 *s3, struct message *message);

#endif
