/* object — checks keys before any backend sees them, finds the backend for a URL, and dispatches.
 * Hides what a well-formed key is: backends may build paths from keys without looking again. */
#include "store/object.h"

#include <assert.h>
#include <stdio.h>

static const char s3_scheme[] = "s3://";

static bool key_character(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c == '_' || c == '.' || c == '-';
}

/* One component, [start, end): not empty, not "." or "..", short enough to be a file name. */
static bool component_valid(const char *start, const char *end)
{
	size_t length = (size_t)(end - start);
	if (length == 0 || length > OBJECT_COMPONENT_MAX)
		return false;
	return !(start[0] == '.' && (length == 1 || (length == 2 && start[1] == '.')));
}

/* A prefix's last component may be anything, even empty: it is only the beginning of one. */
static bool path_valid(const char *path, bool prefix)
{
	const char *start = path, *at = path;
	for (; *at != '\0'; at++) {
		if (at - path >= OBJECT_KEY_MAX)
			return false;
		if (*at == '/') {
			if (!component_valid(start, at))
				return false;
			start = at + 1;
		} else if (!key_character(*at)) {
			return false;
		}
	}
	return prefix || component_valid(start, at);
}

bool object_key_valid(const char *key)
{
	return path_valid(key, false);
}

static int bad_key(const char *key, struct message *message)
{
	return fail(message, -ERR_BAD_NAME, "'%.200s' is not a valid object key", key);
}

void etag_of(const void *bytes, size_t length, struct etag *ret_etag)
{
	struct id id;
	sha256_of(bytes, length, &id);
	hex_encode(id.bytes, ETAG_CONTENT_BYTES, ret_etag->text);
}

int object_store_open(const char *url, bool create, struct object_store **ret_store,
                      struct message *message)
{
	static const char file_scheme[] = "file://";
	if (url[0] == '/')
		return object_local_open(url, create, ret_store, message);
	if (strncmp(url, file_scheme, sizeof(file_scheme) - 1) == 0) {
		const char *path = url + sizeof(file_scheme) - 1;
		if (path[0] != '/')
			return fail(
			        message, -ERR_INVALID,
			        "'%s': a file URL needs an absolute path, as in file:///srv/lake",
			        url);
		return object_local_open(path, create, ret_store, message);
	}
	if (strcmp(url, "memory:") == 0) {
		int r = object_memory_open(ret_store);
		return r < 0 ? fail(message, r, "memory store: %s", error_text(r)) : 0;
	}
	if (strncmp(url, s3_scheme, sizeof(s3_scheme) - 1) == 0)
		return object_s3_open(url, ret_store, message);
	return fail(message, -ERR_UNSUPPORTED,
	            "'%s' names no known kind of object store; use file:///path, /path or "
	            "s3://bucket/prefix",
	            url);
}

int object_store_probe(struct object_store *store, const char *url, char **ret_url,
                       struct message *message)
{
	if (store->ops->probe != NULL)
		return store->ops->probe(store, ret_url, message);
	*ret_url = strdup(url);
	return *ret_url != NULL ? 0 : fail(message, -ERR_NO_MEMORY, "out of memory");
}

int object_store_url_add(const char *url, const char *name, const char *value, char **ret_url,
                         struct message *message)
{
	CLEANUP(buffer_release) struct buffer added = {0};
	if (strncmp(url, s3_scheme, sizeof(s3_scheme) - 1) != 0)
		return fail(message, -ERR_INVALID, "'%s' takes no %s; only s3:// URLs do", url,
		            name);
	buffer_append(&added, url, strlen(url));
	buffer_u8(&added, strchr(url, '?') != NULL ? '&' : '?');
	buffer_append(&added, name, strlen(name));
	buffer_u8(&added, '=');
	for (; *value != '\0'; value++) {
		char escape[4];
		bool plain = key_character(*value) || *value == '/' || *value == ':';
		snprintf(escape, sizeof(escape), plain ? "%c" : "%%%02X", (unsigned char)*value);
		buffer_append(&added, escape, strlen(escape));
	}
	buffer_u8(&added, 0);
	if (buffer_check(&added) < 0)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	*ret_url = (char *)steal(&added.data);
	return 0;
}

/* For backends that do not count what they send. */
static void count_call(struct object_store *store, enum object_request request, size_t sent_bytes,
                       size_t received_bytes)
{
	if (store->ops->counts)
		return;
	store->counters.requests[request]++;
	store->counters.sent_bytes += sent_bytes;
	store->counters.received_bytes += received_bytes;
}

int object_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
               struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	if (!object_key_valid(key))
		return bad_key(key, message);
	size_t before = ret_bytes->length;
	int error = store->ops->get(store, key, offset, length, ret_bytes, ret_etag, message);
	count_call(store, OBJECT_GET, 0, ret_bytes->length - before);
	return error;
}

int object_put(struct object_store *store, const char *key, const void *bytes, size_t length,
               struct message *message)
{
	if (!object_key_valid(key))
		return bad_key(key, message);
	count_call(store, OBJECT_PUT, length, 0);
	return store->ops->put(store, key, bytes, length, message);
}

int object_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                         size_t length, struct etag *ret_etag, struct message *message)
{
	if (!object_key_valid(key))
		return bad_key(key, message);
	count_call(store, OBJECT_PUT_IF, length, 0);
	return store->ops->put_if_absent(store, key, bytes, length, ret_etag, message);
}

int object_put_if_match(struct object_store *store, const char *key, const void *bytes,
                        size_t length, const struct etag *expected, struct etag *ret_etag,
                        struct message *message)
{
	if (!object_key_valid(key))
		return bad_key(key, message);
	/* An empty etag (a listing's "unknown") matches nothing; passing it on would be a bug. */
	assert(expected != NULL && expected->text[0] != '\0');
	count_call(store, OBJECT_PUT_IF, length, 0);
	return store->ops->put_if_match(store, key, bytes, length, expected, ret_etag, message);
}

int object_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                void *context, struct message *message)
{
	if (!path_valid(prefix, true))
		return bad_key(prefix, message);
	count_call(store, OBJECT_LIST, 0, 0);
	return store->ops->list(store, prefix, callback, context, message);
}

int object_remove(struct object_store *store, const char *key, struct message *message)
{
	if (!object_key_valid(key))
		return bad_key(key, message);
	count_call(store, OBJECT_REMOVE, 0, 0);
	return store->ops->remove(store, key, message);
}

/* For backends that can only read. */
static int get_and_compare(struct object_store *store, const char *key, const struct etag *known,
                           struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	size_t before = ret_bytes->length;
	struct etag etag;
	int error = store->ops->get(store, key, 0, UINT64_MAX, ret_bytes, &etag, message);
	if (error < 0)
		return error;
	if (strcmp(etag.text, known->text) == 0) {
		ret_bytes->length = before;
		return 0;
	}
	*ret_etag = etag;
	return 1;
}

int object_get_if_changed(struct object_store *store, const char *key, const struct etag *known,
                          struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	if (!object_key_valid(key))
		return bad_key(key, message);
	assert(known->text[0] != '\0');
	size_t before = ret_bytes->length;
	int changed = store->ops->get_if_changed != NULL
	                      ? store->ops->get_if_changed(store, key, known, ret_bytes, ret_etag,
	                                                   message)
	                      : get_and_compare(store, key, known, ret_bytes, ret_etag, message);
	count_call(store, OBJECT_GET_IF_CHANGED, 0, ret_bytes->length - before);
	if (changed == 0)
		store->counters.unchanged++;
	return changed;
}

int object_remove_many(struct object_store *store, const char *const *keys, size_t count,
                       struct message *message)
{
	for (size_t i = 0; i < count; i++)
		if (!object_key_valid(keys[i]))
			return bad_key(keys[i], message);
	if (store->ops->remove_many != NULL)
		return store->ops->remove_many(store, keys, count, message);
	int error = 0;
	for (size_t i = 0; i < count && error == 0; i++)
		error = object_remove(store, keys[i], message);
	return error;
}

void object_stats(struct object_store *store, struct object_stats *ret_stats)
{
	const struct object_counters *counters = &store->counters;
	for (int i = 0; i < OBJECT_REQUESTS; i++)
		ret_stats->requests[i] = counters->requests[i];
	ret_stats->unchanged = counters->unchanged;
	ret_stats->received_bytes = counters->received_bytes;
	ret_stats->sent_bytes = counters->sent_bytes;
	ret_stats->retries = counters->retries;
	ret_stats->timeouts = counters->timeouts;
}

uint64_t object_stats_requests(const struct object_stats *stats)
{
	uint64_t sum = 0;
	for (int i = 0; i < OBJECT_REQUESTS; i++)
		sum += stats->requests[i];
	return sum;
}

int object_space(struct object_store *store, uint64_t *ret_free, uint64_t *ret_total)
{
	if (store->ops->space == NULL)
		return -ERR_UNSUPPORTED;
	return store->ops->space(store, ret_free, ret_total);
}

void object_store_free(struct object_store *store)
{
	if (store != NULL)
		store->ops->free(store);
}
