/*
 * xattrs — hides how the canonical list of extended attributes is laid out: (u8 name length,
 * name, u32 value length, value)*, names strictly ascending.
 */
#include "store/tree_internal.h"

#define XATTR_NAME_BYTES_MAX 255

struct xattr {
	const char *name;
	size_t name_length;
	struct span value;
};

/* Sets reader->failed when the next attribute is not well-formed. */
static void read_xattr(struct reader *reader, struct xattr *ret_xattr)
{
	ret_xattr->name_length = read_u8(reader);
	ret_xattr->name = (const char *)read_bytes(reader, ret_xattr->name_length);
	ret_xattr->value.data = read_string(reader, XATTRS_BYTES_MAX, &ret_xattr->value.length);
	if (!reader->failed &&
	    (ret_xattr->name_length == 0 || memchr(ret_xattr->name, '\0', ret_xattr->name_length)))
		reader->failed = true;
}

int xattrs_each(const uint8_t *xattrs, size_t length, xattr_fn *callback, void *context)
{
	struct reader reader = reader_of(xattrs, length);
	struct xattr xattr;
	int error;

	while (reader_left(&reader) > 0) {
		read_xattr(&reader, &xattr);
		if (reader.failed)
			return -ERR_CORRUPT;
		error = callback(context, xattr.name, xattr.name_length, xattr.value);
		if (error)
			return error;
	}
	return 0;
}

int xattrs_check(const uint8_t *xattrs, size_t length)
{
	struct reader reader = reader_of(xattrs, length);
	struct xattr previous = {0}, xattr;

	if (length > XATTRS_BYTES_MAX)
		return -ERR_CORRUPT;
	while (reader_left(&reader) > 0) {
		read_xattr(&reader, &xattr);
		if (reader.failed)
			return -ERR_CORRUPT;
		if (previous.name && name_compare(previous.name, previous.name_length, xattr.name,
		                                  xattr.name_length) >= 0)
			return -ERR_CORRUPT;
		previous = xattr;
	}
	return 0;
}

/* Where in the list `name` is or would be: bytes [*ret_start, *ret_end), empty when missing. */
static int locate(const uint8_t *xattrs, size_t length, const char *name, size_t name_length,
                  size_t *ret_start, size_t *ret_end, struct span *ret_value)
{
	struct reader reader = reader_of(xattrs, length);
	struct xattr xattr;
	int order;

	for (;;) {
		*ret_start = *ret_end = length - reader_left(&reader);
		if (reader_left(&reader) == 0)
			return -ERR_NOT_FOUND;
		read_xattr(&reader, &xattr);
		if (reader.failed)
			return -ERR_CORRUPT;
		order = name_compare(xattr.name, xattr.name_length, name, name_length);
		if (order > 0)
			return -ERR_NOT_FOUND;
		if (order == 0) {
			*ret_end = length - reader_left(&reader);
			*ret_value = xattr.value;
			return 0;
		}
	}
}

int xattrs_get(const uint8_t *xattrs, size_t length, const char *name, struct span *ret_value)
{
	size_t start, end;

	return locate(xattrs, length, name, strlen(name), &start, &end, ret_value);
}

int xattrs_set(struct buffer *xattrs, const char *name, struct span value)
{
	CLEANUP(buffer_release) struct buffer result = {0};
	size_t name_length = strlen(name), start, end, added = 0;
	struct span ignored;
	int error;

	if (name_length == 0 || name_length > XATTR_NAME_BYTES_MAX)
		return -ERR_BAD_NAME;
	error = locate(xattrs->data, xattrs->length, name, name_length, &start, &end, &ignored);
	if (error && (error != -ERR_NOT_FOUND || !value.data))
		return error;
	if (value.data) {
		if (value.length > XATTRS_BYTES_MAX)
			return -ERR_TOO_LARGE;
		added = 1 + name_length + 4 + value.length;
	}
	if (xattrs->length - (end - start) + added > XATTRS_BYTES_MAX)
		return -ERR_TOO_LARGE;
	if (start > 0)
		buffer_append(&result, xattrs->data, start);
	if (value.data) {
		buffer_u8(&result, (uint8_t)name_length);
		buffer_append(&result, name, name_length);
		buffer_string(&result, value.data, value.length);
	}
	if (end < xattrs->length)
		buffer_append(&result, xattrs->data + end, xattrs->length - end);
	error = buffer_check(&result);
	if (error)
		return error;
	/* The caller's limit stays: what was built is far below any sensible one. */
	result.limit = xattrs->limit;
	struct buffer old = *xattrs;
	*xattrs = result;
	result = old;
	return 0;
}
