/*
 * Arbitrary bytes as a self-contained directory entry, and as a list of extended attributes. What
 * is accepted must encode to the very same bytes.
 */
#include "store/tree_internal.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int remember_last(void *context, const char *name, size_t name_length, struct span value)
{
	char *last = context;

	memcpy(last, name, name_length);
	last[name_length] = '\0';
	return 0;
}

static void try_xattrs(const uint8_t *data, size_t size)
{
	CLEANUP(buffer_release) struct buffer list = {0};
	char last[256] = "";
	struct span value;

	if (xattrs_check(data, size)) {
		/* Unordered lists are tolerated here, unsound ones are not; neither may crash. */
		xattrs_each(data, size, remember_last, last);
		xattrs_get(data, size, "user.name", &value);
		return;
	}
	assert(xattrs_each(data, size, remember_last, last) == 0);
	buffer_append(&list, data, size);
	assert(buffer_check(&list) == 0);
	if (size == 0)
		return;
	assert(xattrs_get(data, size, last, &value) == 0);
	assert(xattrs_set(&list, last, value) == 0);
	assert(list.length == size && memcmp(list.data, data, size) == 0);
	assert(xattrs_set(&list, last, (struct span){0}) == 0);
	assert(xattrs_check(list.data, list.length) == 0);
	assert(xattrs_get(list.data, list.length, last, &value) == -ERR_NOT_FOUND);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CLEANUP(free_pointer) struct tree_entry *entry = NULL;
	CLEANUP(buffer_release) struct buffer again = {0};
	struct reader reader = reader_of(data, size);
	int error = tree_entry_decode(&reader, &entry);

	try_xattrs(data, size);
	if (error) {
		assert(!entry && reader.failed);
		return 0;
	}
	assert(entry_check(entry) == 0 && name_check(entry->name, entry->name_length) == 0);
	assert(entry->name[entry->name_length] == '\0');
	tree_entry_encode(&again, entry);
	assert(buffer_check(&again) == 0);
	assert(again.length == size - reader_left(&reader));
	assert(memcmp(again.data, data, again.length) == 0);
	return 0;
}
