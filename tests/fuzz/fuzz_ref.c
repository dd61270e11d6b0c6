/*
 * Arbitrary bytes as a ref's body: as they are, and sealed, which is the only way past the seal.
 * What is accepted is the one canonical form.
 */
#include "refs/ref.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode(enum ref_kind kind, const uint8_t *bytes, size_t size)
{
	CLEANUP(buffer_release) struct buffer again = {0};
	struct ref ref;

	if (ref_decode(kind, "main", bytes, size, &ref) < 0)
		return;
	if (ref.protection.flags & ~PROTECT_ALL ||
	    (kind == REF_TAG && protection_any(&ref.protection)))
		abort();
	if (ref_encode(&ref, &again) < 0 || again.length != size ||
	    memcmp(again.data, bytes, size) != 0)
		abort();
	ref_release(&ref);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CLEANUP(buffer_release) struct buffer sealed = {0};
	struct id seal;

	decode(REF_BRANCH, data, size);
	buffer_append(&sealed, data, size);
	sha256_of(data, size, &seal);
	buffer_id(&sealed, &seal);
	if (buffer_check(&sealed) == 0) {
		decode(REF_BRANCH, sealed.data, sealed.length);
		decode(REF_TAG, sealed.data, sealed.length);
	}
	return 0;
}
