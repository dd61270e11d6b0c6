/*
 * object — the object-store contract: named, immutable-or-replaced-whole byte strings.
 *
 * Everything durable and shared goes through these calls and no other. A backend promises:
 *   (1) an object is seen whole or not at all, by every host;
 *   (2) when a put returns 0 its bytes survive a power cut;
 *   (3) put_if_absent and put_if_match are atomic against every other writer on every host;
 *   (4) a get that started before a replacement returns the old bytes or the new, never a mix.
 * Keys are relative, '/'-separated, 1..900 bytes of [A-Za-z0-9_.-/], components of 1..255 bytes,
 * none "." or ".."; no key may be a directory of another ("a" and "a/b": -ERR_BAD_NAME). An etag is
 * a short opaque string that changes whenever the content does; the backends here make it from the
 * content's hash, so that content which returns has its old etag again (callers that mind add a
 * nonce). Backends: object_local.c (a directory), object_memory.c (tests), object_s3.c (S3).
 * S3 cannot tell of a key that is a directory of another, nor how much room is left.
 * Threads: any, concurrently. All calls may block on disk or network.
 */
#ifndef STORE_OBJECT_H
#define STORE_OBJECT_H

#include "store/base.h"

#define OBJECT_KEY_MAX 900
#define OBJECT_COMPONENT_MAX 255
bool object_key_valid(const char *key);

#define ETAG_MAX 95 /* without the NUL */
struct etag {
	char text[ETAG_MAX + 1];
};
/* The etag of content in the backends here: the first bytes of its SHA-256, in hexadecimal. */
#define ETAG_CONTENT_BYTES 16
void etag_of(const void *bytes, size_t length, struct etag *ret_etag);

struct object_info {
	const char *key; /* borrowed for the duration of the list callback */
	uint64_t size;
	int64_t modified_ms; /* wall clock of the store */
	struct etag etag;    /* empty where the backend would have to read the object to know */
};
/* Return non-zero to stop; list then returns that value. */
typedef int object_list_fn(void *context, const struct object_info *info);

/* What was asked of a store since it was opened. A request is one try: on S3 those that the network
 * saw, in other stores calls. */
enum object_request {
	OBJECT_GET,
	OBJECT_GET_IF_CHANGED,
	OBJECT_PUT,
	OBJECT_PUT_IF, /* on a condition */
	OBJECT_LIST,   /* a page of keys */
	OBJECT_REMOVE, /* of one object or many */
	OBJECT_MULTIPART,
	OBJECT_REQUESTS
};
struct object_stats {
	uint64_t requests[OBJECT_REQUESTS];
	uint64_t unchanged;                  /* of those that asked for what changed: nothing had */
	uint64_t received_bytes, sent_bytes; /* bodies */
	uint64_t retries;                    /* requests that repeat one that failed */
	uint64_t timeouts;                   /* requests given up because nothing moved */
};
struct object_counters { /* the same, counted by many threads */
	_Atomic(uint64_t) requests[OBJECT_REQUESTS];
	_Atomic(uint64_t) unchanged, received_bytes, sent_bytes, retries, timeouts;
};

struct object_store;
struct object_ops {
	/* Must. Append bytes [offset, offset+length) of the object to `ret_bytes`; length
	 * UINT64_MAX means to the end. Bytes past the end are simply not there. ret_etag may be
	 * NULL; asking for it may cost reading the whole object. On failure nothing is appended.
	 * -ERR_NOT_FOUND, -ERR_STORE_AWAY. */
	int (*get)(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
	           struct buffer *ret_bytes, struct etag *ret_etag, struct message *message);
	/* Must. Write or replace. */
	int (*put)(struct object_store *store, const char *key, const void *bytes, size_t length,
	           struct message *message);
	/* Must. -ERR_EXISTS when the key exists.
	 * This and the next: these errors say that it was certainly not done. After any other,
	 * -ERR_STORE_AWAY above all, it may have been done, or be done yet: read back and look for
	 * a nonce of your own. */
	int (*put_if_absent)(struct object_store *store, const char *key, const void *bytes,
	                     size_t length, struct etag *ret_etag, struct message *message);
	/* Must. -ERR_MOVED when the current etag is another; -ERR_NOT_FOUND when the key is gone
	 * (some S3 engines say -ERR_MOVED for that too). */
	int (*put_if_match)(struct object_store *store, const char *key, const void *bytes,
	                    size_t length, const struct etag *expected, struct etag *ret_etag,
	                    struct message *message);
	/* Must. Every key that starts with `prefix` (plain string prefix), in ascending byte order.
	 */
	int (*list)(struct object_store *store, const char *prefix, object_list_fn *callback,
	            void *context, struct message *message);
	/* Must. Deleting a missing key is 0. */
	int (*remove)(struct object_store *store, const char *key, struct message *message);
	/* Must. */
	void (*free)(struct object_store *store);
	/* May (else NULL): free and total bytes of the place objects lie in. */
	int (*space)(struct object_store *store, uint64_t *ret_free, uint64_t *ret_total);
	/* May (else done with the others): see the calls below. */
	int (*get_if_changed)(struct object_store *store, const char *key, const struct etag *known,
	                      struct buffer *ret_bytes, struct etag *ret_etag,
	                      struct message *message);
	int (*remove_many)(struct object_store *store, const char *const *keys, size_t count,
	                   struct message *message);
	int (*probe)(struct object_store *store, char **ret_url, struct message *message);
	/* Set by a backend that fills object_store.counters itself; calls are counted otherwise. */
	bool counts;
	/* A request is a round trip: fetching more than was asked for, to save one, pays. */
	bool distant;
};
struct object_store {
	const struct object_ops *ops;
	struct object_counters counters;
};

/* Opens file:///path, a plain absolute path, s3://bucket/prefix?NAME=VALUE... (parameters and
 * environment: README.md, "S3"; the bucket must exist, `create` means nothing, and nothing is sent
 * yet), or memory: (tests; every call a new, empty one).
 * `create` makes the directory and its marker; an existing store is opened, a directory with
 * other things in it refused (-ERR_NOT_EMPTY). Without `create`: -ERR_NOT_FOUND when no store is
 * there. -ERR_UNSUPPORTED for an unknown scheme. */
int object_store_open(const char *url, bool create, struct object_store **ret_store,
                      struct message *message);
int object_local_open(const char *directory, bool create, struct object_store **ret_store,
                      struct message *message);
int object_memory_open(struct object_store **ret_store);
int object_s3_open(const char *url, struct object_store **ret_store, struct message *message);

/* To be called once before a lake is made or joined: does the store keep the promises above? Tries
 * them on objects of its own. -ERR_UNSUPPORTED with a message that names what the store lacks.
 * *ret_url (allocated) opens this store again from any environment: with what was found out about
 * it and all that `url` left to the environment, but for secrets. */
int object_store_probe(struct object_store *store, const char *url, char **ret_url,
                       struct message *message);
/* `url` with &NAME=VALUE added, the value percent-encoded; for options like --endpoint-url.
 * -ERR_INVALID for a URL whose kind takes none. Allocated. */
int object_store_url_add(const char *url, const char *name, const char *value, char **ret_url,
                         struct message *message);

/* The contract's calls; they check the key and then dispatch. */
int object_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
               struct buffer *ret_bytes, struct etag *ret_etag, struct message *message);
int object_put(struct object_store *store, const char *key, const void *bytes, size_t length,
               struct message *message);
int object_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                         size_t length, struct etag *ret_etag, struct message *message);
int object_put_if_match(struct object_store *store, const char *key, const void *bytes,
                        size_t length, const struct etag *expected, struct etag *ret_etag,
                        struct message *message);
int object_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                void *context, struct message *message);
int object_remove(struct object_store *store, const char *key, struct message *message);
/* 0: it still has the etag `known`; 1: it has not, its bytes were appended and *ret_etag is set. On
 * S3 the first costs no body. -ERR_NOT_FOUND. */
int object_get_if_changed(struct object_store *store, const char *key, const struct etag *known,
                          struct buffer *ret_bytes, struct etag *ret_etag, struct message *message);
/* Up to 1,000 in one request on S3. On an error some may be removed. */
int object_remove_many(struct object_store *store, const char *const *keys, size_t count,
                       struct message *message);
int object_space(struct object_store *store, uint64_t *ret_free, uint64_t *ret_total);
void object_stats(struct object_store *store, struct object_stats *ret_stats);
uint64_t object_stats_requests(const struct object_stats *stats); /* of all kinds */
void object_store_free(struct object_store *store);               /* accepts NULL */

#endif
