/*
 * condemned — hides the bytes of the object "gc/condemned".
 */
#include "store/condemned.h"

#define CONDEMNED_KEY "gc/condemned"
#define CLOCK_KEY "gc/clock"
#define CONDEMNED_MAGIC "LAKEGC\r\n"
#define CONDEMNED_VERSION 1
#define CONDEMNED_HEADER_BYTES 16
#define CONDEMNED_ITEM_BYTES (PACK_ID_BYTES + 8)
#define CONDEMNED_BYTES_MAX ((size_t)256 << 20)

void condemned_release(struct condemned_list *list)
{
	free(list->items);
	*list = (struct condemned_list){0};
}

static int by_pack(const void *a, const void *b)
{
	const struct condemned *left = a, *right = b;
	return memcmp(left->pack, right->pack, PACK_ID_BYTES);
}

int condemned_decode(const void *bytes, size_t length, struct condemned_list *ret_list)
{
	struct reader reader = reader_of(bytes, length);
	const uint8_t *magic = read_bytes(&reader, 8);
	uint32_t version = read_u32(&reader), count = read_u32(&reader);
	struct id seal;
	if (!magic || memcmp(magic, CONDEMNED_MAGIC, 8) != 0)
		return -ERR_CORRUPT;
	if (version != CONDEMNED_VERSION)
		return -ERR_VERSION;
	if (length != CONDEMNED_HEADER_BYTES + (uint64_t)count * CONDEMNED_ITEM_BYTES + ID_BYTES)
		return -ERR_CORRUPT;
	sha256_of(bytes, length - ID_BYTES, &seal);
	if (memcmp(seal.bytes, (const uint8_t *)bytes + length - ID_BYTES, ID_BYTES) != 0)
		return -ERR_CORRUPT;
	struct condemned *items = calloc((size_t)count + 1, sizeof(*items));
	if (!items)
		return -ERR_NO_MEMORY;
	for (uint32_t i = 0; i < count; i++) {
		memcpy(items[i].pack, read_bytes(&reader, PACK_ID_BYTES), PACK_ID_BYTES);
		items[i].since_ms = (int64_t)read_u64(&reader);
		if (i && by_pack(&items[i - 1], &items[i]) >= 0) {
			free(items);
			return -ERR_CORRUPT;
		}
	}
	ret_list->items = items;
	ret_list->count = count;
	return 0;
}

int condemned_read(struct object_store *store, struct condemned_list *ret_list,
                   struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = CONDEMNED_BYTES_MAX};
	struct condemned_list list = {0};
	int error = object_get(store, CONDEMNED_KEY, 0, UINT64_MAX, &bytes, &list.etag, message);
	if (error == -ERR_NOT_FOUND) {
		*ret_list = (struct condemned_list){0};
		return 0;
	}
	if (!error)
		error = condemned_decode(bytes.data, bytes.length, &list);
	if (error == -ERR_CORRUPT)
		fail(message, error,
		     "object '%s' is damaged; removing it is safe and lets "
		     "`lakectl gc` start over",
		     CONDEMNED_KEY);
	if (error == -ERR_VERSION)
		fail(message, error, "object '%s' was written by a newer version: upgrade this one",
		     CONDEMNED_KEY);
	if (error < 0)
		return error;
	*ret_list = list;
	return 0;
}

int condemned_write(struct object_store *store, struct condemned_list *list,
                    struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = CONDEMNED_BYTES_MAX};
	struct id seal;
	if (list->count)
		qsort(list->items, list->count, sizeof(*list->items), by_pack);
	buffer_append(&bytes, CONDEMNED_MAGIC, 8);
	buffer_u32(&bytes, CONDEMNED_VERSION);
	buffer_u32(&bytes, (uint32_t)list->count);
	for (size_t i = 0; i < list->count; i++) {
		buffer_append(&bytes, list->items[i].pack, PACK_ID_BYTES);
		buffer_u64(&bytes, (uint64_t)list->items[i].since_ms);
	}
	int error = buffer_check(&bytes);
	if (error < 0)
		return error;
	sha256_of(bytes.data, bytes.length, &seal);
	buffer_id(&bytes, &seal);
	error = buffer_check(&bytes);
	if (error < 0)
		return error;
	if (list->etag.text[0])
		error = object_put_if_match(store, CONDEMNED_KEY, bytes.data, bytes.length,
		                            &list->etag, &list->etag, message);
	else
		error = object_put_if_absent(store, CONDEMNED_KEY, bytes.data, bytes.length,
		                             &list->etag, message);
	return error == -ERR_EXISTS || error == -ERR_NOT_FOUND ? -ERR_MOVED : error;
}

static int note_time(void *context, const struct object_info *info)
{
	int64_t *now_ms = context;
	if (strcmp(info->key, CLOCK_KEY) == 0)
		*now_ms = info->modified_ms;
	return 0;
}

int condemned_clock(struct object_store *store, int64_t *ret_now_ms, struct message *message)
{
	int64_t now_ms = 0;
	int error = object_put(store, CLOCK_KEY, "", 0, message);
	if (!error)
		error = object_list(store, CLOCK_KEY, note_time, &now_ms, message);
	if (!error && now_ms == 0)
		error = fail(message, -ERR_STORE_AWAY,
		             "the store does not list what was just written to it");
	if (!error)
		*ret_now_ms = now_ms;
	return error;
}

const struct condemned *condemned_find(const struct condemned_list *list,
                                       const uint8_t pack[PACK_ID_BYTES])
{
	struct condemned key = {.since_ms = 0};
	memcpy(key.pack, pack, PACK_ID_BYTES);
	return list->count ? bsearch(&key, list->items, list->count, sizeof(key), by_pack) : NULL;
}
