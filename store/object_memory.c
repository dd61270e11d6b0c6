/*
 * object_memory — objects in a sorted array, for tests.
 * Threads: `lock` guards everything; it is never held across a callback, so a list callback may
 * call the store again (it sees a snapshot of the keys).
 */
#include "store/object.h"

#include <pthread.h>

struct item {
	char *key;
	uint8_t *bytes;
	size_t length;
	int64_t modified_ms;
	struct etag etag;
};

struct memory_store {
	struct object_store base;
	pthread_rwlock_t lock;
	struct item **items; /* ascending by key */
	size_t count;
	size_t capacity;
};

static struct memory_store *memory_of(struct object_store *store)
{
	return (struct memory_store *)store;
}

static void item_free(struct item *item)
{
	if (item == NULL)
		return;
	free(item->key);
	free(item->bytes);
	free(item);
}

static void item_release(struct item **item)
{
	item_free(*item);
	*item = NULL;
}

static int item_new(const char *key, const void *bytes, size_t length, struct item **ret_item)
{
	CLEANUP(item_release) struct item *item = calloc(1, sizeof(*item));
	if (item == NULL)
		return -ERR_NO_MEMORY;
	item->key = strdup(key);
	item->bytes = malloc(length > 0 ? length : 1);
	if (item->key == NULL || item->bytes == NULL)
		return -ERR_NO_MEMORY;
	if (length > 0)
		memcpy(item->bytes, bytes, length);
	item->length = length;
	item->modified_ms = clock_wall_ms();
	etag_of(bytes, length, &item->etag);
	*ret_item = steal(&item);
	return 0;
}

/* Index of the first item with key >= `key`. */
static size_t lower_bound(const struct memory_store *memory, const char *key)
{
	size_t low = 0, high = memory->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (strcmp(memory->items[middle]->key, key) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool present_at(const struct memory_store *memory, size_t index, const char *key)
{
	return index < memory->count && strcmp(memory->items[index]->key, key) == 0;
}

/* No key may be a directory of another (see object.h): a directory backend cannot hold both. */
static bool clashes(const struct memory_store *memory, const char *key)
{
	char path[OBJECT_KEY_MAX + 2];
	size_t length = strlen(key);
	memcpy(path, key, length);
	memcpy(path + length, "/", 2);
	size_t below = lower_bound(memory, path);
	if (below < memory->count && strncmp(memory->items[below]->key, path, length + 1) == 0)
		return true;
	for (size_t i = length; i-- > 0;) {
		if (path[i] != '/')
			continue;
		path[i] = '\0';
		if (present_at(memory, lower_bound(memory, path), path))
			return true;
	}
	return false;
}

static int make_room(struct memory_store *memory)
{
	if (memory->count < memory->capacity)
		return 0;
	size_t capacity = memory->capacity > 0 ? memory->capacity * 2 : 16;
	struct item **items = realloc(memory->items, capacity * sizeof(*items));
	if (items == NULL)
		return -ERR_NO_MEMORY;
	memory->items = items;
	memory->capacity = capacity;
	return 0;
}

enum condition { ALWAYS, IF_ABSENT, IF_MATCH };

/* Takes `*item` over when it succeeds. The lock is held. */
static int place_item(struct memory_store *memory, struct item **item, enum condition condition,
                      const struct etag *expected)
{
	size_t index = lower_bound(memory, (*item)->key);
	if (present_at(memory, index, (*item)->key)) {
		struct item *old = memory->items[index];
		if (condition == IF_ABSENT)
			return -ERR_EXISTS;
		if (condition == IF_MATCH && strcmp(old->etag.text, expected->text) != 0)
			return -ERR_MOVED;
		memory->items[index] = steal(item);
		item_free(old);
		return 0;
	}
	if (condition == IF_MATCH)
		return -ERR_NOT_FOUND;
	if (clashes(memory, (*item)->key))
		return -ERR_BAD_NAME;
	int r = make_room(memory);
	if (r < 0)
		return r;
	memmove(memory->items + index + 1, memory->items + index,
	        (memory->count - index) * sizeof(*memory->items));
	memory->items[index] = steal(item);
	memory->count++;
	return 0;
}

static int put_under(struct object_store *store, const char *key, const void *bytes, size_t length,
                     enum condition condition, const struct etag *expected, struct etag *ret_etag,
                     struct message *message)
{
	struct memory_store *memory = memory_of(store);
	CLEANUP(item_release) struct item *item = NULL;
	int r = item_new(key, bytes, length, &item);
	if (r < 0)
		return fail(message, r, "memory store: cannot keep '%s': %s", key, error_text(r));
	struct etag etag = item->etag;
	pthread_rwlock_wrlock(&memory->lock);
	r = place_item(memory, &item, condition, expected);
	pthread_rwlock_unlock(&memory->lock);
	if (r < 0)
		return fail(message, r, "memory store: object '%s': %s", key, error_text(r));
	if (ret_etag != NULL)
		*ret_etag = etag;
	return 0;
}

static int memory_put(struct object_store *store, const char *key, const void *bytes, size_t length,
                      struct message *message)
{
	return put_under(store, key, bytes, length, ALWAYS, NULL, NULL, message);
}

static int memory_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                                size_t length, struct etag *ret_etag, struct message *message)
{
	return put_under(store, key, bytes, length, IF_ABSENT, NULL, ret_etag, message);
}

static int memory_put_if_match(struct object_store *store, const char *key, const void *bytes,
                               size_t length, const struct etag *expected, struct etag *ret_etag,
                               struct message *message)
{
	return put_under(store, key, bytes, length, IF_MATCH, expected, ret_etag, message);
}

static int memory_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                      struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	struct memory_store *memory = memory_of(store);
	int r = -ERR_NOT_FOUND;
	pthread_rwlock_rdlock(&memory->lock);
	size_t index = lower_bound(memory, key);
	if (present_at(memory, index, key)) {
		const struct item *item = memory->items[index];
		uint64_t left = offset < item->length ? item->length - offset : 0;
		size_t take = (size_t)(length < left ? length : left);
		r = buffer_reserve(ret_bytes, take);
		if (r == 0 && take > 0)
			buffer_append(ret_bytes, item->bytes + offset, take);
		if (r == 0 && ret_etag != NULL)
			*ret_etag = item->etag;
	}
	pthread_rwlock_unlock(&memory->lock);
	return r < 0 ? fail(message, r, "memory store: object '%s': %s", key, error_text(r)) : 0;
}

struct snapshot {
	struct object_info *infos; /* keys owned */
	size_t count;
};

static void snapshot_release(struct snapshot *snapshot)
{
	for (size_t i = 0; i < snapshot->count; i++)
		free((char *)snapshot->infos[i].key);
	free(snapshot->infos);
}

static int snapshot_take(struct memory_store *memory, const char *prefix,
                         struct snapshot *ret_snapshot)
{
	size_t length = strlen(prefix), first = lower_bound(memory, prefix), last = first;
	while (last < memory->count && strncmp(memory->items[last]->key, prefix, length) == 0)
		last++;
	ret_snapshot->infos = calloc(last - first + 1, sizeof(*ret_snapshot->infos));
	if (ret_snapshot->infos == NULL)
		return -ERR_NO_MEMORY;
	for (size_t i = first; i < last; i++) {
		const struct item *item = memory->items[i];
		char *key = strdup(item->key);
		if (key == NULL)
			return -ERR_NO_MEMORY;
		ret_snapshot->infos[ret_snapshot->count++] = (struct object_info){
		        .key = key,
		        .size = item->length,
		        .modified_ms = item->modified_ms,
		        .etag = item->etag,
		};
	}
	return 0;
}

static int memory_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                       void *context, struct message *message)
{
	struct memory_store *memory = memory_of(store);
	CLEANUP(snapshot_release) struct snapshot snapshot = {0};
	pthread_rwlock_rdlock(&memory->lock);
	int r = snapshot_take(memory, prefix, &snapshot);
	pthread_rwlock_unlock(&memory->lock);
	if (r < 0)
		return fail(message, r, "memory store: cannot list '%s': %s", prefix,
		            error_text(r));
	for (size_t i = 0; r == 0 && i < snapshot.count; i++)
		r = callback(context, &snapshot.infos[i]);
	return r;
}

static int memory_remove(struct object_store *store, const char *key, struct message *message)
{
	struct memory_store *memory = memory_of(store);
	pthread_rwlock_wrlock(&memory->lock);
	size_t index = lower_bound(memory, key);
	if (present_at(memory, index, key)) {
		item_free(memory->items[index]);
		memory->count--;
		memmove(memory->items + index, memory->items + index + 1,
		        (memory->count - index) * sizeof(*memory->items));
	}
	pthread_rwlock_unlock(&memory->lock);
	return 0;
}

static void memory_free(struct object_store *store)
{
	struct memory_store *memory = memory_of(store);
	for (size_t i = 0; i < memory->count; i++)
		item_free(memory->items[i]);
	free(memory->items);
	pthread_rwlock_destroy(&memory->lock);
	free(memory);
}

static const struct object_ops memory_ops = {
        .get = memory_get,
        .put = memory_put,
        .put_if_absent = memory_put_if_absent,
        .put_if_match = memory_put_if_match,
        .list = memory_list,
        .remove = memory_remove,
        .free = memory_free,
};

int object_memory_open(struct object_store **ret_store)
{
	struct memory_store *memory = calloc(1, sizeof(*memory));
	if (memory == NULL)
		return -ERR_NO_MEMORY;
	memory->base.ops = &memory_ops;
	pthread_rwlock_init(&memory->lock, NULL);
	*ret_store = &memory->base;
	return 0;
}
