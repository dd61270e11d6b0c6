/*
 * Arbitrary bytes as a commit's record: refused, or the one canonical form. The input is u16 length
 * of the logical part, logical part, places.
 */
#include "refs/commit.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CLEANUP(free_pointer) struct commit *commit = NULL;
	CLEANUP(buffer_release) struct buffer logical = {0};
	CLEANUP(buffer_release) struct buffer places = {0};

	if (size < 2)
		return 0;
	size_t length = (size_t)(data[0] | data[1] << 8);
	data += 2;
	size -= 2;
	if (length > size)
		length = size;
	if (commit_decode(data, length, data + length, size - length, &commit) < 0)
		return 0;
	if (commit_encode(commit, &logical, &places) < 0 || logical.length != length ||
	    places.length != size - length || memcmp(logical.data, data, length) != 0 ||
	    memcmp(places.data, data + length, size - length) != 0)
		abort();
	return 0;
}
