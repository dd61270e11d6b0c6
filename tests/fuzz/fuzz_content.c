/*
 * Files whose lists say arbitrary things, with right ids: reading, walking and editing them. The
 * input is a series of lists; entries point to what came before, so that lists nest.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "store/content_list.h"

#define READ_BYTES_MAX (256u << 10)
#define POINTERS_MAX 16

struct made {
	struct pointer pointers[POINTERS_MAX];
	size_t count;
};

static int stop_after_many(void *context, const struct piece *piece)
{
	return ++*(unsigned *)context > 2000;
}

static int ignore_list(void *context, enum record_kind kind, const struct pointer *pointer)
{
	return ++*(unsigned *)context > 2000;
}

/* Bytes given as they are: u16 length of the logical part, the rest is places. */
static void make_raw(struct packer *packer, struct reader *reader, struct made *made)
{
	size_t left = reader_left(reader);
	size_t logical = read_u16(reader), total = read_u16(reader);
	const uint8_t *bytes;

	total = total < left ? total : left;
	logical = logical < total ? logical : total;
	bytes = read_bytes(reader, total);
	if (bytes)
		packer_add_record(packer, RECORD_LIST, bytes, logical, bytes + logical,
		                  total - logical, &made->pointers[made->count++], NULL);
}

/* A list with a right header, unless its input says otherwise. */
static void make_list(struct packer *packer, struct reader *reader, struct made *made)
{
	CLEANUP(buffer_release) struct buffer logical = {0};
	CLEANUP(buffer_release) struct buffer places = {0};
	uint8_t level = read_u8(reader), count = read_u8(reader);
	uint64_t sum = 0;

	buffer_u8(&logical, LIST_VERSION);
	buffer_u8(&logical, level);
	buffer_u16(&logical, count);
	buffer_u32(&logical, 0);
	buffer_u64(&logical, 0);
	for (unsigned i = 0; i < count; i++) {
		uint64_t length = read_u32(reader);
		uint8_t what = read_u8(reader);

		if (what & 0x40)
			length <<= 16;
		sum += length;
		buffer_u64(&logical, length | (uint64_t)(what >> 7) << 63);
		if (!(what & 0x80)) {
			buffer_id(&logical, &made->pointers[what % made->count].id);
			place_encode(&places, &made->pointers[what % made->count].place);
		}
	}
	if (buffer_check(&logical) || buffer_check(&places))
		return;
	store_u64(logical.data + 8, sum + read_u8(reader));
	packer_add_record(packer, RECORD_LIST, logical.data, logical.length, places.data,
	                  places.length, &made->pointers[made->count++], NULL);
}

static void use(struct odb *odb, struct packer *packer, const struct content *content, int fd)
{
	struct extent dirty = {.start = 70000, .end = 70001};
	size_t length = content->size < READ_BYTES_MAX ? content->size : READ_BYTES_MAX;
	uint8_t *out = malloc(length + 1);
	struct content edited;
	struct message message;
	unsigned count = 0;

	if (!out)
		return;
	content_read(odb, content, 0, length, out, &message);
	if (content->size > length)
		content_read(odb, content, content->size - length, length, out, &message);
	content_pieces(odb, content, 0, content->size, stop_after_many, &count, &message);
	count = 0;
	content_walk(odb, content, ignore_list, &count, &message);
	if (content->size > dirty.end && content->size < 4 * READ_BYTES_MAX)
		content_store_edit(packer, odb, &(struct edit_base){.content = content}, fd,
		                   content->size, &dirty, 1, NULL, &edited, &message);
	free(out);
}

static void run(struct odb *odb, struct packer *packer, int fd, struct reader *reader)
{
	static const uint8_t chunk[70000] = "a chunk";
	struct made made = {.count = 2};
	struct content content = {0};

	packer_add_chunk(packer, chunk, 1000, &made.pointers[0], NULL, NULL);
	packer_add_chunk(packer, chunk, sizeof(chunk), &made.pointers[1], NULL, NULL);
	content.kind = read_u8(reader);
	content.size = read_u64(reader);
	while (reader_left(reader) > 2 && made.count < POINTERS_MAX) {
		if (read_u8(reader) & 1)
			make_raw(packer, reader, &made);
		else
			make_list(packer, reader, &made);
	}
	content.pointer = made.pointers[made.count - 1];
	use(odb, packer, &content, fd);
	/* The size that the last list itself says leads further. */
	if (content.kind == CONTENT_LIST) {
		struct record *record;

		if (odb_read_record(odb, RECORD_LIST, &content.pointer, &record, NULL))
			return;
		if (record->logical_length >= LIST_HEADER_BYTES)
			content.size = load_u64(record->logical + 8);
		record_unref(record);
		use(odb, packer, &content, fd);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	struct reader reader = reader_of(data, size);
	struct object_store *store;
	struct packer *packer;
	struct odb *odb;

	if (fd < 0) {
		fd = memfd_create("edit", MFD_CLOEXEC);
		if (fd < 0 || ftruncate(fd, 4 * READ_BYTES_MAX) < 0)
			abort();
	}
	if (object_memory_open(&store))
		return 0;
	if (odb_new(store, NULL, &odb) == 0) {
		if (packer_new(odb, &packer) == 0) {
			run(odb, packer, fd, &reader);
			packer_free(packer);
		}
		odb_free(odb);
	}
	object_store_free(store);
	return 0;
}
