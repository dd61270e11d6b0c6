/*
 * parquet — where the column chunks of a Parquet file lie, from its footer.
 *
 * A hint for fetching ahead and nothing else: nobody's bytes depend on it, so whatever is not
 * understood is no error but means that nothing is known. Formats: Apache Parquet's file layout
 * and parquet.thrift (FileMetaData), written in Thrift's compact protocol. Encrypted footers
 * (PARE) tell nothing.
 *
 * Pure: no state, no I/O.
 */
#ifndef CACHE_PARQUET_H
#define CACHE_PARQUET_H

#include "cache/columns.h"

#define PARQUET_TAIL_BYTES 8 /* the last of a file */
#define PARQUET_FOOTER_BYTES_MAX ((uint64_t)16 << 20)

/* How long the metadata before the tail is; 0: this is no Parquet file, or it is more than
 * PARQUET_FOOTER_BYTES_MAX. */
uint64_t parquet_footer_bytes(const uint8_t tail[PARQUET_TAIL_BYTES], uint64_t file_size);

/* Column chunks from the metadata, in the order in which it names them; the caller frees
 * *ret_chunks. Returns how many, or 0 (and NULL): nothing is known, or there is no memory. */
size_t parquet_column_chunks(const uint8_t *footer, size_t length, uint64_t file_size,
                             struct column_chunk **ret_chunks);

#endif
