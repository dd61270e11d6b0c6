/*
 * chunker — content-defined chunk boundaries.
 *
 * FastCDC with normalized chunking (Xia et al., "FastCDC: a Fast and Efficient Content-Defined
 * Chunking Approach for Data Deduplication", USENIX ATC 2016, section 4). A boundary depends only
 * on the bytes since the chunk's start, so a file re-chunked from any old boundary gives the same
 * chunks as the whole file would. Sizes and the gear table are part of the stored format.
 * Pure: no state, no I/O, no allocation.
 */
#ifndef STORE_CHUNKER_H
#define STORE_CHUNKER_H

#include "store/base.h"

#define CHUNK_BYTES_MIN (64u << 10)
#define CHUNK_BYTES_TARGET (128u << 10)
#define CHUNK_BYTES_MAX (512u << 10)

/* Length of the first chunk of `bytes`. Give at least CHUNK_BYTES_MAX bytes unless the content
 * ends before that. Returns 1..CHUNK_BYTES_MAX for length >= 1. */
size_t chunk_length(const uint8_t *bytes, size_t length);

/* Aligned units of HOLE_UNIT zero bytes are never chunked: they are holes, whether the file was
 * sparse there or not, so that equal content has equal ids. */
#define HOLE_UNIT (64u << 10)
bool is_zero(const void *bytes, size_t length);

#endif
