/*
 * Arbitrary bytes as a journal segment. Checksums would keep a fuzzer out, so the first byte says
 * how far the input is helped: 0: as it is; odd: given a good header; even: and each batch sealed.
 */
#include "fs/journal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int touch(void *context, const struct journal_change *change)
{
	uint8_t *sum = context;
	for (size_t i = 0; i < change->key.length; i++)
		*sum ^= ((const uint8_t *)change->key.data)[i];
	for (size_t i = 0; change->value.data != NULL && i < change->value.length; i++)
		*sum ^= ((const uint8_t *)change->value.data)[i];
	return 0;
}

static void give_header(uint8_t *bytes)
{
	struct id sum;
	memcpy(bytes, "LakeJrnl", 8);
	store_u32(bytes + 8, 1);
	store_u64(bytes + 16, 1);
	sha256_of(bytes, JOURNAL_HEADER - 8, &sum);
	memcpy(bytes + JOURNAL_HEADER - 8, sum.bytes, 8);
}

static void seal_batches(uint8_t *bytes, size_t size)
{
	for (size_t at = JOURNAL_HEADER; size - at >= JOURNAL_BATCH_HEADER;) {
		size_t length = load_u32(bytes + at + 8) & 0xff;
		uint32_t count = load_u32(bytes + at + 12) & 7;
		if (length > size - at - JOURNAL_BATCH_HEADER)
			return;
		journal_seal(1, JOURNAL_HEADER, count, bytes + at, length + JOURNAL_BATCH_HEADER);
		at += length + JOURNAL_BATCH_HEADER;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	uint8_t help = data[0], sum = 0;
	size--;
	CLEANUP(free_pointer) uint8_t *bytes = malloc(size + 1);
	memcpy(bytes, data + 1, size);
	if (help != 0 && size >= JOURNAL_HEADER) {
		give_header(bytes);
		if (help % 2 == 0)
			seal_batches(bytes, size);
	}
	uint64_t batches = 0;
	journal_check(bytes, size, &batches);
	if (size > 4)
		journal_each_change(bytes + 4, size - 4, load_u32(bytes), touch, &sum);
	return 0;
}
