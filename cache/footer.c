/*
 * footer.c — hides which formats say at their end where their columns lie, and how that is got.
 *
 * Who opens such a file reads its end first, so its bytes are here or on their way: they are not
 * asked for twice. Not before: of a file that nobody reads so there is nothing to know.
 */
#include "cache/internal.h"
#include "cache/parquet.h"

#include <unistd.h>

static bool read_local(struct blob *blob, uint64_t offset, size_t length, uint8_t *out)
{
	if (fetch_range(blob, offset, offset + length, NULL))
		return false;
	return pread(blob->descriptor, out, length, (off_t)offset) == (ssize_t)length;
}

static struct columns *read_columns(struct blob *blob)
{
	uint8_t tail[PARQUET_TAIL_BYTES];
	if (blob->size < sizeof(tail) ||
	    !read_local(blob, blob->size - sizeof(tail), sizeof(tail), tail))
		return NULL;
	size_t length = parquet_footer_bytes(tail, blob->size);
	CLEANUP(free_pointer) uint8_t *footer = length ? malloc(length) : NULL;
	if (!footer || !read_local(blob, blob->size - sizeof(tail) - length, length, footer))
		return NULL;
	CLEANUP(free_pointer) struct column_chunk *chunks = NULL;
	size_t count = parquet_column_chunks(footer, length, blob->size, &chunks);
	struct columns *columns = NULL;
	(void)columns_new(chunks, count, &columns);
	return columns;
}

void footer_read(struct blob *blob)
{
	struct columns *columns = blob->users ? read_columns(blob) : NULL;
	if (!columns)
		return;
	pthread_mutex_lock(&blob->lock);
	if (blob->cursors)
		cursors_know_columns(blob->cursors, steal(&columns));
	pthread_mutex_unlock(&blob->lock);
	columns_free(columns);
}
