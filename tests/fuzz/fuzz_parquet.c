/* What stands at the end of a file that may be Parquet. The first two bytes choose the file's size.
 */
#include "cache/parquet.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct column_chunk *chunks = NULL;
	struct columns *columns = NULL;
	struct extent range;
	if (size < 2)
		return 0;
	uint64_t file_size = ((uint64_t)data[0] << 8 | data[1]) << 12;
	size_t count = parquet_column_chunks(data + 2, size - 2, file_size, &chunks);
	for (size_t i = 0; i < count; i++)
		if (chunks[i].start >= chunks[i].end || chunks[i].end > file_size)
			abort();
	if (columns_new(chunks, count, &columns) == 0) {
		for (size_t i = 0; i < count && i < 100; i++) {
			columns_read(columns, chunks[i].start, chunks[i].end);
			for (unsigned more = 0;
			     more < 1000 && columns_next(columns, 1 << 20, &range); more++)
				if (range.start >= range.end || range.end > file_size ||
				    range.end - range.start > 1 << 20)
					abort();
		}
		columns_free(columns);
	}
	free(chunks);
	if (size >= 2 + PARQUET_TAIL_BYTES && parquet_footer_bytes(data + 2, file_size) > file_size)
		abort();
	return 0;
}
