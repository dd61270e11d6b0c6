/*
 * Reads of packs in any order, lengths and sides, with windows dropped in between, over a store
 * that is distant: what is given is always what the pack has. Each read is 6 bytes of the input.
 */
#include "store/pack_window.h"

#include "store/pack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint32_t load_u16(const uint8_t *at)
{
	return (uint32_t)(at[0] | at[1] << 8);
}

#define PACKS 3
#define PACK_BYTES (3u << 20)
#define READS_MAX 400

static uint8_t *content;
static struct object_store *store;

static void pack_id_of(unsigned number, uint8_t ret_id[PACK_ID_BYTES])
{
	memset(ret_id, 0, PACK_ID_BYTES);
	ret_id[0] = (uint8_t)(number + 1);
}

/* Packs of different lengths, the last one shorter than a block. */
static uint32_t length_of(unsigned number)
{
	return number == 0 ? PACK_BYTES : number == 1 ? PACK_BYTES / 2 + 7 : 1000;
}

static void prepare(void)
{
	char key[PACK_KEY_BYTES + 1];
	uint8_t id[PACK_ID_BYTES];
	uint32_t state = 1;
	content = malloc(PACK_BYTES);
	if (!content || object_memory_open(&store) < 0)
		abort();
	for (size_t i = 0; i < PACK_BYTES; i++) {
		state = state * 1664525 + 1013904223;
		content[i] = (uint8_t)(state >> 24);
	}
	for (unsigned i = 0; i < PACKS; i++) {
		pack_id_of(i, id);
		pack_key(id, key);
		if (object_put(store, key, content, length_of(i), NULL) < 0)
			abort();
	}
}

static void check(const struct buffer *got, uint32_t offset, uint32_t length, uint32_t pack_length)
{
	uint32_t there = offset >= pack_length ? 0 : pack_length - offset;
	if (got->length > length || got->length > there ||
	    memcmp(got->data ? got->data : content, content + offset, got->length) != 0)
		abort();
}

static void read_once(struct windows *windows, const uint8_t *choice)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	uint8_t id[PACK_ID_BYTES];
	unsigned number = choice[0] % (PACKS + 1); /* the last one is not there */
	uint32_t pack_length = number < PACKS ? length_of(number) : 0;
	uint32_t offset = load_u16(choice + 1) * 48u % (pack_length + 1);
	uint32_t length = load_u16(choice + 3) * 2u + 1;
	pack_id_of(number, id);
	if (choice[5] % 16 == 0) {
		windows_drop(windows, id, offset, length);
	} else if (choice[5] % 16 == 1) {
		if (windows_peek(windows, id, offset, length, &bytes))
			check(&bytes, offset, length, pack_length);
	} else {
		int error =
		        windows_read(windows, id, offset, length,
		                     choice[5] & 1 ? WINDOW_AFTER : WINDOW_BEFORE, &bytes, NULL);
		if (error >= 0)
			check(&bytes, offset, length, pack_length);
		if (error >= 0 && offset + length <= pack_length && bytes.length != length)
			abort();
		if (error < 0 && number < PACKS && offset < pack_length)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct windows *windows;
	if (!content)
		prepare();
	if (size < 1 || windows_new(store, (size_t)(data[0] % 40 + 1) << 16, &windows) < 0)
		return 0;
	for (size_t at = 1, reads = 0; at + 6 <= size && reads < READS_MAX; at += 6, reads++)
		read_once(windows, data + at);
	windows_free(windows);
	return 0;
}
