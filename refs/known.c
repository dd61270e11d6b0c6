/*
 * known.c — hides how what passes through a store is noted: its calls are replaced by ones that
 * call the backend's and look at the answer.
 *
 * Requests overlap, and an answer may be older than it seems. Every request has a number, given
 * when it begins; every entry the number from which on answers may replace it. A put gives the
 * number of its end: requests that began before that may have missed it. What is not kept as an
 * entry any more (dropped for space) counts in `floor`, for all refs.
 */
#include "refs/known.h"

#include <assert.h>
#include <pthread.h>
#include <uthash.h>
#include <utlist.h>

#define REFS_PREFIX "refs/"

struct known_ref {
	struct known_ref *prev, *next; /* the least recently used first */
	UT_hash_handle hh;
	uint64_t number;      /* answers to requests of lower ones are out of date */
	int64_t seen_ms;      /* when the request that told it began; monotonic */
	int64_t contended_ms; /* until when it is no good for guessing; monotonic */
	struct etag etag;     /* empty: nothing is known but number and contended_ms */
	size_t length;
	uint8_t *body;
	char key[];
};
struct known_refs {
	struct object_ops ops;            /* the store's from now on */
	const struct object_ops *backend; /* what they were */
	int64_t good_ms;
	pthread_mutex_t lock; /* guards the rest */
	struct known_ref *refs;
	struct known_ref *recent;
	size_t bytes;
	uint64_t number, floor;
};
struct asking { /* one request */
	uint64_t number;
	int64_t began_ms;
};

static void known_free(struct object_store *store);

/* NULL: nothing is noted for this store. */
static struct known_refs *known_of(struct object_store *store)
{
	return store->ops->free == known_free
	               ? (struct known_refs *)((char *)(uintptr_t)store->ops -
	                                       offsetof(struct known_refs, ops))
	               : NULL;
}

static bool is_ref(const char *key)
{
	return strncmp(key, REFS_PREFIX, strlen(REFS_PREFIX)) == 0;
}

/* -- entries; under the lock -- */

static size_t cost_of(const struct known_ref *ref)
{
	return sizeof(*ref) + strlen(ref->key) + 1 + ref->length;
}

static void drop(struct known_refs *known, struct known_ref *ref)
{
	if (ref->number > known->floor)
		known->floor = ref->number;
	known->bytes -= cost_of(ref);
	HASH_DEL(known->refs, ref);
	DL_DELETE(known->recent, ref);
	free(ref->body);
	free(ref);
}

static struct known_ref *find(struct known_refs *known, const char *key)
{
	struct known_ref *ref = NULL;

	HASH_FIND_STR(known->refs, key, ref);
	return ref;
}

static struct known_ref *find_or_make(struct known_refs *known, const char *key)
{
	struct known_ref *ref = find(known, key);
	size_t length = strlen(key);

	if (ref)
		return ref;
	ref = calloc(1, sizeof(*ref) + length + 1);
	if (!ref)
		return NULL;
	memcpy(ref->key, key, length + 1);
	HASH_ADD_KEYPTR(hh, known->refs, ref->key, length, ref);
	if (!ref->hh.tbl) {
		free(ref);
		return NULL;
	}
	DL_APPEND(known->recent, ref);
	known->bytes += cost_of(ref);
	return ref;
}

static void touch(struct known_refs *known, struct known_ref *ref)
{
	DL_DELETE(known->recent, ref);
	DL_APPEND(known->recent, ref);
}

static void set_body(struct known_refs *known, struct known_ref *ref, const void *body,
                     size_t length, const struct etag *etag)
{
	uint8_t *copy = length > 0 ? malloc(length) : NULL;

	known->bytes -= cost_of(ref);
	free(ref->body);
	ref->body = copy;
	ref->length = copy ? length : 0;
	ref->etag = copy ? *etag : (struct etag){{0}};
	if (copy)
		memcpy(copy, body, length);
	known->bytes += cost_of(ref);
	touch(known, ref);
	while (known->bytes > KNOWN_BYTES_MAX)
		drop(known, known->recent);
}

static void drop_all(struct known_refs *known)
{
	struct known_ref *ref, *next;

	HASH_ITER (hh, known->refs, ref, next)
		drop(known, ref);
	known->floor = ++known->number;
}

/* -- what answers tell -- */

static struct asking begin(struct known_refs *known)
{
	struct asking asking = {.began_ms = clock_monotonic_ms()};

	pthread_mutex_lock(&known->lock);
	asking.number = ++known->number;
	pthread_mutex_unlock(&known->lock);
	return asking;
}

/* The store had this body at some time after the request began. */
static void note_read(struct known_refs *known, const struct asking *asking, const char *key,
                      const struct buffer *bytes, size_t start, const struct etag *etag)
{
	if (!etag->text[0])
		return;
	pthread_mutex_lock(&known->lock);
	struct known_ref *ref = asking->number < known->floor ? NULL : find_or_make(known, key);
	if (ref && ref->number <= asking->number) {
		ref->number = asking->number;
		ref->seen_ms = asking->began_ms;
		if (ref->etag.text[0] && strcmp(ref->etag.text, etag->text) != 0)
			ref->contended_ms = asking->began_ms + CONTENDED_FACTOR * known->good_ms;
		set_body(known, ref, bytes->data + start, bytes->length - start, etag);
	}
	pthread_mutex_unlock(&known->lock);
}

/* It had this etag; "" or another than is known: what is known is out of date. */
static void note_etag(struct known_refs *known, const struct asking *asking, const char *key,
                      const struct etag *etag)
{
	pthread_mutex_lock(&known->lock);
	struct known_ref *ref = find(known, key);
	if (ref && ref->number <= asking->number && ref->etag.text[0]) {
		if (strcmp(ref->etag.text, etag->text) == 0) {
			ref->number = asking->number;
			ref->seen_ms = asking->began_ms;
			touch(known, ref);
		} else if (etag->text[0]) {
			ref->contended_ms = asking->began_ms + CONTENDED_FACTOR * known->good_ms;
			ref->seen_ms = INT64_MIN / 2;
		} else {
			drop(known, ref);
		}
	}
	pthread_mutex_unlock(&known->lock);
}

/* We made it this. */
static void note_written(struct known_refs *known, const char *key, const void *bytes,
                         size_t length, const struct etag *etag, int64_t began_ms)
{
	pthread_mutex_lock(&known->lock);
	struct known_ref *ref = find_or_make(known, key);
	if (ref) {
		ref->number = ++known->number;
		ref->seen_ms = began_ms;
		set_body(known, ref, bytes, length, etag);
	} else {
		known->floor = ++known->number;
	}
	pthread_mutex_unlock(&known->lock);
}

/* Whatever is known of it is out of date, or may be. */
static void note_lost(struct known_refs *known, const char *key, bool contended)
{
	static const struct etag none;

	pthread_mutex_lock(&known->lock);
	struct known_ref *ref = find_or_make(known, key);
	if (ref) {
		ref->number = ++known->number;
		if (contended)
			ref->contended_ms =
			        clock_monotonic_ms() + CONTENDED_FACTOR * known->good_ms;
		set_body(known, ref, NULL, 0, &none);
	} else {
		known->floor = ++known->number;
	}
	pthread_mutex_unlock(&known->lock);
}

static int note_error(struct known_refs *known, int error)
{
	if (error == -ERR_STORE_AWAY) {
		pthread_mutex_lock(&known->lock);
		drop_all(known);
		pthread_mutex_unlock(&known->lock);
	}
	return error;
}

/* -- the calls -- */

static int known_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                     struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	struct known_refs *known = known_of(store);
	size_t start = ret_bytes->length;

	if (!is_ref(key) || offset > 0 || !ret_etag)
		return known->backend->get(store, key, offset, length, ret_bytes, ret_etag,
		                           message);
	struct asking asking = begin(known);
	int error = known->backend->get(store, key, 0, length, ret_bytes, ret_etag, message);
	if (error == 0 && ret_bytes->length - start < length)
		note_read(known, &asking, key, ret_bytes, start, ret_etag);
	else if (error == -ERR_NOT_FOUND)
		note_etag(known, &asking, key, &(struct etag){{0}});
	return note_error(known, error);
}

static int known_get_if_changed(struct object_store *store, const char *key,
                                const struct etag *etag, struct buffer *ret_bytes,
                                struct etag *ret_etag, struct message *message)
{
	struct known_refs *known = known_of(store);
	size_t start = ret_bytes->length;
	struct asking asking = begin(known);
	int changed =
	        known->backend->get_if_changed(store, key, etag, ret_bytes, ret_etag, message);

	if (!is_ref(key))
		return changed;
	if (changed == 0)
		note_etag(known, &asking, key, etag);
	else if (changed > 0)
		note_read(known, &asking, key, ret_bytes, start, ret_etag);
	else if (changed == -ERR_NOT_FOUND)
		note_etag(known, &asking, key, &(struct etag){{0}});
	return note_error(known, changed);
}

static int known_put(struct object_store *store, const char *key, const void *bytes, size_t length,
                     struct message *message)
{
	struct known_refs *known = known_of(store);
	int error = known->backend->put(store, key, bytes, length, message);

	if (is_ref(key))
		note_lost(known, key, false);
	return error;
}

static int put_done(struct known_refs *known, const char *key, const void *bytes, size_t length,
                    const struct etag *etag, int64_t began_ms, int error)
{
	if (!is_ref(key))
		return error;
	if (error == 0 && etag && etag->text[0])
		note_written(known, key, bytes, length, etag, began_ms);
	else
		note_lost(known, key, error == -ERR_MOVED);
	return note_error(known, error);
}

static int known_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                               size_t length, struct etag *ret_etag, struct message *message)
{
	struct known_refs *known = known_of(store);
	int64_t began_ms = clock_monotonic_ms();
	int error = known->backend->put_if_absent(store, key, bytes, length, ret_etag, message);

	return put_done(known, key, bytes, length, ret_etag, began_ms, error);
}

static int known_put_if_match(struct object_store *store, const char *key, const void *bytes,
                              size_t length, const struct etag *expected, struct etag *ret_etag,
                              struct message *message)
{
	struct known_refs *known = known_of(store);
	int64_t began_ms = clock_monotonic_ms();
	int error = known->backend->put_if_match(store, key, bytes, length, expected, ret_etag,
	                                         message);

	return put_done(known, key, bytes, length, ret_etag, began_ms, error);
}

static int known_remove(struct object_store *store, const char *key, struct message *message)
{
	struct known_refs *known = known_of(store);
	int error = known->backend->remove(store, key, message);

	if (is_ref(key))
		note_lost(known, key, false);
	return error;
}

static int known_remove_many(struct object_store *store, const char *const *keys, size_t count,
                             struct message *message)
{
	struct known_refs *known = known_of(store);
	int error = known->backend->remove_many(store, keys, count, message);

	for (size_t i = 0; i < count; i++)
		if (is_ref(keys[i]))
			note_lost(known, keys[i], false);
	return error;
}

struct listing {
	struct known_refs *known;
	struct asking asking;
	object_list_fn *callback;
	void *context;
};

static int note_listed(void *context, const struct object_info *info)
{
	struct listing *listing = context;

	if (is_ref(info->key) && info->etag.text[0])
		note_etag(listing->known, &listing->asking, info->key, &info->etag);
	return listing->callback(listing->context, info);
}

static int known_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                      void *context, struct message *message)
{
	struct known_refs *known = known_of(store);

	if (!is_ref(prefix))
		return known->backend->list(store, prefix, callback, context, message);
	struct listing listing = {known, begin(known), callback, context};
	return note_error(known,
	                  known->backend->list(store, prefix, note_listed, &listing, message));
}

static void known_free(struct object_store *store)
{
	struct known_refs *known = known_of(store);

	pthread_mutex_lock(&known->lock);
	drop_all(known);
	pthread_mutex_unlock(&known->lock);
	pthread_mutex_destroy(&known->lock);
	store->ops = known->backend;
	free(known);
	store->ops->free(store);
}

/* -- for others -- */

int known_refs_attach(struct object_store *store, int64_t good_ms)
{
	struct known_refs *known = calloc(1, sizeof(*known));

	assert(!known_of(store));
	if (!known)
		return -ERR_NO_MEMORY;
	known->backend = store->ops;
	known->ops = *store->ops;
	known->ops.get = known_get;
	known->ops.put = known_put;
	known->ops.put_if_absent = known_put_if_absent;
	known->ops.put_if_match = known_put_if_match;
	known->ops.list = known_list;
	known->ops.remove = known_remove;
	known->ops.free = known_free;
	if (known->ops.get_if_changed)
		known->ops.get_if_changed = known_get_if_changed;
	if (known->ops.remove_many)
		known->ops.remove_many = known_remove_many;
	known->good_ms = good_ms;
	pthread_mutex_init(&known->lock, NULL);
	store->ops = &known->ops;
	return 0;
}

static int copy_body(struct known_refs *known, struct known_ref *ref, struct buffer *ret_body,
                     struct etag *ret_etag)
{
	touch(known, ref);
	buffer_append(ret_body, ref->body, ref->length);
	*ret_etag = ref->etag;
	return buffer_check(ret_body);
}

int known_ref_guess(struct object_store *store, const char *key, struct buffer *ret_body,
                    struct etag *ret_etag)
{
	struct known_refs *known = known_of(store);
	int64_t now_ms = clock_monotonic_ms();
	int error = -ERR_NOT_FOUND;

	if (!known)
		return error;
	pthread_mutex_lock(&known->lock);
	struct known_ref *ref = find(known, key);
	if (ref && ref->etag.text[0] && now_ms - ref->seen_ms <= known->good_ms &&
	    now_ms >= ref->contended_ms)
		error = copy_body(known, ref, ret_body, ret_etag);
	pthread_mutex_unlock(&known->lock);
	return error;
}

int known_ref_exact(struct object_store *store, const char *key, const struct etag *etag,
                    struct buffer *ret_body)
{
	struct known_refs *known = known_of(store);
	struct etag same;
	int error = -ERR_NOT_FOUND;

	if (!known || !etag->text[0])
		return error;
	pthread_mutex_lock(&known->lock);
	struct known_ref *ref = find(known, key);
	if (ref && strcmp(ref->etag.text, etag->text) == 0)
		error = copy_body(known, ref, ret_body, &same);
	pthread_mutex_unlock(&known->lock);
	return error;
}
