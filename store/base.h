/*
 * base — the small types everything else is written in: ids, growing buffers, bounded decoding,
 * ownership helpers, clocks and random numbers.
 *
 * Never: allocates without a limit; asserts on data that came from a disk, a network or a user.
 * Threads: every function is reentrant; objects belong to one thread at a time.
 */
#ifndef STORE_BASE_H
#define STORE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include "store/error.h"

/* -- ownership: CLEANUP(buffer_release) struct buffer b = {0};  *ret = steal(&pointer); -- */
#define CLEANUP(function) __attribute__((cleanup(function)))
#define steal(pointer) \
	({ \
		__typeof__(pointer) steal_from_ = (pointer); \
		__typeof__(*steal_from_) steal_value_ = *steal_from_; \
		*steal_from_ = NULL; \
		steal_value_; \
	})
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

void free_pointer(void *pointer_to_pointer); /* CLEANUP(free_pointer) char *p = NULL; */
/* asprintf, but for what it leaves when it fails, which is undefined: NULL, so that it can be
 * freed. */
int text_format(char **ret_text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void close_descriptor(int *descriptor); /* CLEANUP(close_descriptor) int fd = -1; */

/* -- ids: SHA-256 of logical content -- */
#define ID_BYTES 32
#define ID_HEX 64 /* digits, without the terminating NUL */
struct id {
	uint8_t bytes[ID_BYTES];
};
extern const struct id id_zero;
static inline bool id_equal(const struct id *a, const struct id *b)
{
	return memcmp(a->bytes, b->bytes, ID_BYTES) == 0;
}
static inline bool id_is_zero(const struct id *id)
{
	return id_equal(id, &id_zero);
}
void id_to_hex(const struct id *id, char ret_hex[ID_HEX + 1]);
/* -ERR_INVALID unless `hex` is exactly 64 lower-case hexadecimal digits. */
int id_from_hex(const char *hex, struct id *ret_id);
void hex_encode(const void *bytes, size_t length, char *ret_hex); /* writes 2*length+1 */
int hex_decode(const char *hex, size_t digits, void *ret_bytes);  /* -ERR_INVALID */

/* -- a growing byte buffer with a limit -- */
struct buffer {
	uint8_t *data;
	size_t length;
	size_t capacity;
	size_t limit; /* 0: BUFFER_LIMIT_DEFAULT */
	int failed;   /* 0, or why an append was refused: sticky, checked once at the end */
};
#define BUFFER_LIMIT_DEFAULT ((size_t)1 << 30)
void buffer_release(struct buffer *buffer);             /* accepts zeroed */
void buffer_clear(struct buffer *buffer);               /* keeps the memory */
int buffer_reserve(struct buffer *buffer, size_t more); /* -ERR_NO_MEMORY, -ERR_TOO_LARGE */
/* Appends set `failed` instead of returning; buffer_check says how it went. Little-endian. */
void buffer_append(struct buffer *buffer, const void *bytes, size_t length);
void buffer_u8(struct buffer *buffer, uint8_t value);
void buffer_u16(struct buffer *buffer, uint16_t value);
void buffer_u32(struct buffer *buffer, uint32_t value);
void buffer_u64(struct buffer *buffer, uint64_t value);
void buffer_id(struct buffer *buffer, const struct id *id);
/* u32 length + bytes */
void buffer_string(struct buffer *buffer, const void *bytes, size_t length);
int buffer_check(const struct buffer *buffer); /* 0, -ERR_NO_MEMORY or -ERR_TOO_LARGE */

/* -- bounded decoding: a failed read sets `failed` and yields zeroes from then on -- */
struct reader {
	const uint8_t *at;
	const uint8_t *end;
	bool failed;
};
struct reader reader_of(const void *bytes, size_t length);
uint8_t read_u8(struct reader *reader);
uint16_t read_u16(struct reader *reader);
uint32_t read_u32(struct reader *reader);
uint64_t read_u64(struct reader *reader);
void read_id(struct reader *reader, struct id *ret_id);
/* Borrowed from the input; NULL when fewer bytes are left (and `failed` is set). */
const uint8_t *read_bytes(struct reader *reader, size_t length);
/* u32 length + bytes, length at most `max`; borrowed. */
const uint8_t *read_string(struct reader *reader, size_t max, size_t *ret_length);
static inline size_t reader_left(const struct reader *reader)
{
	return (size_t)(reader->end - reader->at);
}
/* 0 when nothing failed and all was read, else -ERR_CORRUPT. */
int reader_finish(const struct reader *reader);

uint32_t load_u32(const void *at); /* little-endian, any alignment */
uint64_t load_u64(const void *at);
void store_u32(void *at, uint32_t value);
void store_u64(void *at, uint64_t value);
uint64_t load_u64_be(const void *at); /* big-endian: keys that sort by number */
void store_u64_be(void *at, uint64_t value);

/* -- SHA-256 through OpenSSL EVP (which uses SHA-NI); home of <openssl/evp.h> -- */
struct sha256; /* a running hash */
int sha256_new(struct sha256 **ret_hash);
void sha256_free(struct sha256 *hash);
void sha256_update(struct sha256 *hash, const void *bytes, size_t length);
void sha256_final(struct sha256 *hash, struct id *ret_id); /* and starts anew */
void sha256_of(const void *bytes, size_t length, struct id *ret_id);
struct sha256_input {
	const void *bytes;
	size_t length;
	struct id id; /* the result */
};
/* Several at once, of which two run side by side where the processor has SHA instructions: half as
 * fast again. Without EVP, which cannot do it (sha256_many.c). */
void sha256_of_many(struct sha256_input *inputs, size_t count);

/* RFC 2104 with SHA-256. */
void hmac_sha256(const void *key, size_t key_length, const void *bytes, size_t length,
                 struct id *ret_mac);

/* -- clocks, random numbers, files -- */
int64_t clock_wall_ms(void);
int64_t clock_wall_ns(void);
int64_t clock_monotonic_ms(void);
void random_bytes(void *ret_bytes, size_t length); /* getrandom(2); aborts if it cannot */
uint64_t random_u64(void);
/* The kernel's boot id (/proc/sys/kernel/random/boot_id): equal means page cache survived. */
int boot_id(struct id *ret_id);
/* Whole-buffer I/O; short transfers are continued, EINTR repeated. read_full returns bytes read
 * (short only at end of file). */
ssize_t read_full(int fd, void *bytes, size_t length, off_t offset);
int write_full(int fd, const void *bytes, size_t length, off_t offset);
/* Read a small file whole; -ERR_NOT_FOUND, -ERR_TOO_LARGE. */
int read_file(int directory_fd, const char *path, size_t limit, struct buffer *ret_buffer);
int read_descriptor(int fd, size_t limit, struct buffer *ret_buffer); /* from its start */
/* Replace a file atomically: temporary file beside it, fsync, rename, fsync of the directory. */
int write_file_durably(int directory_fd, const char *path, const void *bytes, size_t length);
int make_directories(const char *path, mode_t mode); /* mkdir -p */

/* -- progress of long work: called at most some times a second, may be NULL -- */
struct progress {
	/* Must be quick; returns non-zero to cancel (the caller then gets -ERR_INTERRUPTED).
	 * `total` is 0 while unknown. `unit` is "bytes", "files", ... */
	int (*report)(void *context, const char *what, uint64_t done, uint64_t total,
	              const char *unit);
	void *context;
};
int progress_report(const struct progress *progress, const char *what, uint64_t done,
                    uint64_t total, const char *unit); /* accepts NULL */

#endif
