/*
 * base — the small types everything else is written in.
 * Hides OpenSSL's EVP (one fetched SHA-256, one context per thread), and what it takes to make a
 * file's bytes and its name durable.
 */
#include "store/base.h"

#include <stdarg.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

const struct id id_zero;

void free_pointer(void *pointer_to_pointer)
{
	void *pointer;
	memcpy(&pointer, pointer_to_pointer, sizeof(pointer));
	free(pointer);
}

int text_format(char **ret_text, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int length = vasprintf(ret_text, format, arguments);
	va_end(arguments);
	if (length < 0)
		*ret_text = NULL;
	return length;
}

void close_descriptor(int *descriptor)
{
	if (*descriptor >= 0)
		close(*descriptor);
	*descriptor = -1;
}

/* -- hexadecimal -- */

void hex_encode(const void *bytes, size_t length, char *ret_hex)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *from = bytes;
	for (size_t i = 0; i < length; i++) {
		ret_hex[2 * i] = digits[from[i] >> 4];
		ret_hex[2 * i + 1] = digits[from[i] & 15];
	}
	ret_hex[2 * length] = '\0';
}

static int hex_value(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	if (digit >= 'a' && digit <= 'f')
		return digit - 'a' + 10;
	return -1;
}

int hex_decode(const char *hex, size_t digits, void *ret_bytes)
{
	uint8_t *to = ret_bytes;
	if (digits % 2 != 0)
		return -ERR_INVALID;
	for (size_t i = 0; i < digits; i++)
		if (hex_value(hex[i]) < 0)
			return -ERR_INVALID;
	for (size_t i = 0; i < digits / 2; i++)
		to[i] = (uint8_t)(hex_value(hex[2 * i]) << 4 | hex_value(hex[2 * i + 1]));
	return 0;
}

void id_to_hex(const struct id *id, char ret_hex[ID_HEX + 1])
{
	hex_encode(id->bytes, ID_BYTES, ret_hex);
}

int id_from_hex(const char *hex, struct id *ret_id)
{
	if (strnlen(hex, ID_HEX + 1) != ID_HEX)
		return -ERR_INVALID;
	return hex_decode(hex, ID_HEX, ret_id->bytes);
}

/* -- numbers -- */

uint32_t load_u32(const void *at)
{
	uint32_t value;
	memcpy(&value, at, sizeof(value));
	return le32toh(value);
}

uint64_t load_u64(const void *at)
{
	uint64_t value;
	memcpy(&value, at, sizeof(value));
	return le64toh(value);
}

void store_u32(void *at, uint32_t value)
{
	value = htole32(value);
	memcpy(at, &value, sizeof(value));
}

void store_u64(void *at, uint64_t value)
{
	value = htole64(value);
	memcpy(at, &value, sizeof(value));
}

uint64_t load_u64_be(const void *at)
{
	uint64_t value;
	memcpy(&value, at, sizeof(value));
	return be64toh(value);
}

void store_u64_be(void *at, uint64_t value)
{
	value = htobe64(value);
	memcpy(at, &value, sizeof(value));
}

/* -- buffers -- */

#define HUGE_PAGE_BYTES (2u << 20)
#define LARGE_BYTES_MIN (HUGE_PAGE_BYTES / 2)
#define BUFFER_CAPACITY_FIRST 64

void buffer_release(struct buffer *buffer)
{
	free(buffer->data);
	*buffer = (struct buffer){.limit = buffer->limit};
}

void buffer_clear(struct buffer *buffer)
{
	buffer->length = 0;
	buffer->failed = 0;
}

/* What is filled once and let go: in 4 KiB pages the faults would cost more than the copying. */
static uint8_t *allocate_large(size_t *capacity)
{
	size_t rounded = (*capacity + HUGE_PAGE_BYTES - 1) & ~(size_t)(HUGE_PAGE_BYTES - 1);
	uint8_t *data = aligned_alloc(HUGE_PAGE_BYTES, rounded);
	if (data == NULL)
		return NULL;
	(void)madvise(data, rounded, MADV_HUGEPAGE); /* a wish */
	*capacity = rounded;
	return data;
}

int buffer_reserve(struct buffer *buffer, size_t more)
{
	size_t limit = buffer->limit != 0 ? buffer->limit : BUFFER_LIMIT_DEFAULT;
	if (buffer->length > limit || more > limit - buffer->length)
		return -ERR_TOO_LARGE;
	size_t need = buffer->length + more;
	if (need <= buffer->capacity)
		return 0;
	size_t capacity = buffer->capacity <= limit / 2 ? buffer->capacity * 2 : limit;
	if (capacity < BUFFER_CAPACITY_FIRST)
		capacity = BUFFER_CAPACITY_FIRST;
	if (capacity < need)
		capacity = need;
	bool large = buffer->data == NULL && capacity >= LARGE_BYTES_MIN;
	uint8_t *data = large ? allocate_large(&capacity) : realloc(buffer->data, capacity);
	if (data == NULL)
		return -ERR_NO_MEMORY;
	buffer->data = data;
	buffer->capacity = capacity;
	return 0;
}

void buffer_append(struct buffer *buffer, const void *bytes, size_t length)
{
	if (buffer->failed != 0 || length == 0)
		return;
	buffer->failed = buffer_reserve(buffer, length);
	if (buffer->failed != 0)
		return;
	memcpy(buffer->data + buffer->length, bytes, length);
	buffer->length += length;
}

void buffer_u8(struct buffer *buffer, uint8_t value)
{
	buffer_append(buffer, &value, 1);
}

void buffer_u16(struct buffer *buffer, uint16_t value)
{
	value = htole16(value);
	buffer_append(buffer, &value, sizeof(value));
}

void buffer_u32(struct buffer *buffer, uint32_t value)
{
	value = htole32(value);
	buffer_append(buffer, &value, sizeof(value));
}

void buffer_u64(struct buffer *buffer, uint64_t value)
{
	value = htole64(value);
	buffer_append(buffer, &value, sizeof(value));
}

void buffer_id(struct buffer *buffer, const struct id *id)
{
	buffer_append(buffer, id->bytes, ID_BYTES);
}

void buffer_string(struct buffer *buffer, const void *bytes, size_t length)
{
	if (length > UINT32_MAX) {
		buffer->failed = -ERR_TOO_LARGE;
		return;
	}
	buffer_u32(buffer, (uint32_t)length);
	buffer_append(buffer, bytes, length);
}

int buffer_check(const struct buffer *buffer)
{
	return buffer->failed;
}

/* -- bounded decoding -- */

struct reader reader_of(const void *bytes, size_t length)
{
	static const uint8_t nothing[1];
	const uint8_t *at = bytes != NULL ? bytes : nothing;
	return (struct reader){.at = at, .end = at + (bytes != NULL ? length : 0)};
}

const uint8_t *read_bytes(struct reader *reader, size_t length)
{
	if (reader->failed || reader_left(reader) < length) {
		reader->failed = true;
		return NULL;
	}
	const uint8_t *at = reader->at;
	reader->at += length;
	return at;
}

uint8_t read_u8(struct reader *reader)
{
	const uint8_t *at = read_bytes(reader, 1);
	return at != NULL ? *at : 0;
}

uint16_t read_u16(struct reader *reader)
{
	const uint8_t *at = read_bytes(reader, 2);
	return at != NULL ? (uint16_t)(at[0] | at[1] << 8) : 0;
}

uint32_t read_u32(struct reader *reader)
{
	const uint8_t *at = read_bytes(reader, 4);
	return at != NULL ? load_u32(at) : 0;
}

uint64_t read_u64(struct reader *reader)
{
	const uint8_t *at = read_bytes(reader, 8);
	return at != NULL ? load_u64(at) : 0;
}

void read_id(struct reader *reader, struct id *ret_id)
{
	const uint8_t *at = read_bytes(reader, ID_BYTES);
	if (at != NULL)
		memcpy(ret_id->bytes, at, ID_BYTES);
	else
		*ret_id = id_zero;
}

const uint8_t *read_string(struct reader *reader, size_t max, size_t *ret_length)
{
	size_t length = read_u32(reader);
	if (length > max)
		reader->failed = true;
	const uint8_t *at = read_bytes(reader, length);
	*ret_length = at != NULL ? length : 0;
	return at;
}

int reader_finish(const struct reader *reader)
{
	return reader->failed || reader->at != reader->end ? -ERR_CORRUPT : 0;
}

/* -- SHA-256 -- */

struct sha256 {
	EVP_MD_CTX *context;
};

static EVP_MD *sha256_method;    /* fetched once: a fetch per hash costs more than a small hash */
static pthread_key_t sha256_key; /* frees a thread's context when the thread ends */
static pthread_once_t sha256_once = PTHREAD_ONCE_INIT;
static _Thread_local EVP_MD_CTX *sha256_context;

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "fatal: %s\n", what);
	abort();
}

static void sha256_context_free(void *context)
{
	EVP_MD_CTX_free(context);
}

static void sha256_prepare(void)
{
	sha256_method = EVP_MD_fetch(NULL, "SHA256", NULL);
	if (sha256_method == NULL || pthread_key_create(&sha256_key, sha256_context_free) != 0)
		die("OpenSSL offers no SHA-256");
}

static void sha256_start(EVP_MD_CTX *context)
{
	if (EVP_DigestInit_ex2(context, sha256_method, NULL) != 1)
		die("SHA-256 cannot start: out of memory");
}

int sha256_new(struct sha256 **ret_hash)
{
	pthread_once(&sha256_once, sha256_prepare);
	struct sha256 *hash = malloc(sizeof(*hash));
	if (hash == NULL)
		return -ERR_NO_MEMORY;
	hash->context = EVP_MD_CTX_new();
	if (hash->context == NULL) {
		free(hash);
		return -ERR_NO_MEMORY;
	}
	sha256_start(hash->context);
	*ret_hash = hash;
	return 0;
}

void sha256_free(struct sha256 *hash)
{
	if (hash == NULL)
		return;
	EVP_MD_CTX_free(hash->context);
	free(hash);
}

void sha256_update(struct sha256 *hash, const void *bytes, size_t length)
{
	if (EVP_DigestUpdate(hash->context, bytes, length) != 1)
		die("SHA-256 failed");
}

void sha256_final(struct sha256 *hash, struct id *ret_id)
{
	if (EVP_DigestFinal_ex(hash->context, ret_id->bytes, NULL) != 1)
		die("SHA-256 failed");
	sha256_start(hash->context);
}

void sha256_of(const void *bytes, size_t length, struct id *ret_id)
{
	if (sha256_context == NULL) {
		pthread_once(&sha256_once, sha256_prepare);
		sha256_context = EVP_MD_CTX_new();
		if (sha256_context == NULL)
			die("SHA-256 cannot start: out of memory");
		pthread_setspecific(sha256_key, sha256_context);
	}
	sha256_start(sha256_context);
	if (EVP_DigestUpdate(sha256_context, bytes, length) != 1 ||
	    EVP_DigestFinal_ex(sha256_context, ret_id->bytes, NULL) != 1)
		die("SHA-256 failed");
}

void hmac_sha256(const void *key, size_t key_length, const void *bytes, size_t length,
                 struct id *ret_mac)
{
	unsigned int size = ID_BYTES;
	if (HMAC(EVP_sha256(), key, (int)key_length, bytes, length, ret_mac->bytes, &size) == NULL)
		die("SHA-256 failed");
}

/* -- clocks and random numbers -- */

static int64_t clock_ns(clockid_t clock)
{
	struct timespec now;
	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t clock_wall_ns(void)
{
	return clock_ns(CLOCK_REALTIME);
}

int64_t clock_wall_ms(void)
{
	return clock_wall_ns() / 1000000;
}

int64_t clock_monotonic_ms(void)
{
	return clock_ns(CLOCK_MONOTONIC) / 1000000;
}

void random_bytes(void *ret_bytes, size_t length)
{
	uint8_t *to = ret_bytes;
	while (length > 0) {
		ssize_t got = getrandom(to, length < 256 ? length : 256, 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			die("getrandom: the kernel gives no random numbers");
		to += got;
		length -= (size_t)got;
	}
}

uint64_t random_u64(void)
{
	uint64_t value;
	random_bytes(&value, sizeof(value));
	return value;
}

int boot_id(struct id *ret_id)
{
	CLEANUP(buffer_release) struct buffer text = {0};
	int r = read_file(AT_FDCWD, "/proc/sys/kernel/random/boot_id", 128, &text);
	if (r < 0)
		return r;
	sha256_of(text.data, text.length, ret_id);
	return 0;
}

/* -- files -- */

ssize_t read_full(int fd, void *bytes, size_t length, off_t offset)
{
	size_t done = 0;
	while (done < length) {
		ssize_t got = pread(fd, (char *)bytes + done, length - done, offset + (off_t)done);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_system(errno);
		if (got == 0)
			break;
		done += (size_t)got;
	}
	return (ssize_t)done;
}

int write_full(int fd, const void *bytes, size_t length, off_t offset)
{
	size_t done = 0;
	while (done < length) {
		ssize_t put =
		        pwrite(fd, (const char *)bytes + done, length - done, offset + (off_t)done);
		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return error_system(errno);
		if (put == 0) /* no progress and no reason given: the device takes no more */
			return -ERR_NO_SPACE;
		done += (size_t)put;
	}
	return 0;
}

#define READ_FILE_STEP 4096

int read_file(int directory_fd, const char *path, size_t limit, struct buffer *ret_buffer)
{
	/* Not waiting for the other end, should it be a named pipe, which cannot be read here. */
	CLEANUP(close_descriptor)
	int fd = openat(directory_fd, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 ? error_system(errno) : read_descriptor(fd, limit, ret_buffer);
}

int read_descriptor(int fd, size_t limit, struct buffer *ret_buffer)
{
	/* The size is only a hint: /proc has none, and the file may grow while it is read. */
	struct stat status;
	if (fstat(fd, &status) < 0)
		return error_system(errno);
	if (status.st_size > 0 && (uint64_t)status.st_size > limit)
		return -ERR_TOO_LARGE;
	size_t step = status.st_size > 0 ? (size_t)status.st_size + 1 : READ_FILE_STEP;
	size_t before = ret_buffer->length, total = 0;
	int r = 0;
	for (;;) {
		r = buffer_reserve(ret_buffer, step);
		if (r < 0)
			break;
		ssize_t got =
		        read_full(fd, ret_buffer->data + ret_buffer->length, step, (off_t)total);
		if (got < 0) {
			r = (int)got;
			break;
		}
		total += (size_t)got;
		ret_buffer->length += (size_t)got;
		if (total > limit)
			r = -ERR_TOO_LARGE;
		if (r < 0 || (size_t)got < step)
			break;
		step = READ_FILE_STEP;
	}
	if (r < 0)
		ret_buffer->length = before;
	return r;
}

/* fsync the directory that holds `path`: a new name is durable only then. */
static int sync_parent(int directory_fd, const char *path)
{
	char parent[PATH_MAX];
	const char *slash = strrchr(path, '/');
	size_t length = slash == NULL ? 0 : slash == path ? 1 : (size_t)(slash - path);
	if (length >= sizeof(parent))
		return error_system(ENAMETOOLONG);
	memcpy(parent, path, length);
	parent[length] = '\0';
	CLEANUP(close_descriptor)
	int fd = openat(directory_fd, length == 0 ? "." : parent,
	                O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0)
		return error_system(errno);
	return 0;
}

static int write_and_sync(int fd, const void *bytes, size_t length)
{
	int r = write_full(fd, bytes, length, 0);
	if (r == 0 && fsync(fd) < 0)
		r = error_system(errno);
	return r;
}

int write_file_durably(int directory_fd, const char *path, const void *bytes, size_t length)
{
	char temporary[PATH_MAX];
	int n = snprintf(temporary, sizeof(temporary), "%s.%016llx.tmp", path,
	                 (unsigned long long)random_u64());
	if (n < 0 || (size_t)n >= sizeof(temporary))
		return error_system(ENAMETOOLONG);
	CLEANUP(close_descriptor)
	int fd = openat(directory_fd, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0)
		return error_system(errno);
	int r = write_and_sync(fd, bytes, length);
	if (r == 0 && renameat(directory_fd, temporary, directory_fd, path) < 0)
		r = error_system(errno);
	if (r < 0) {
		unlinkat(directory_fd, temporary, 0);
		return r;
	}
	return sync_parent(directory_fd, path);
}

static int make_directory(const char *path, mode_t mode)
{
	if (mkdir(path, mode) == 0)
		return sync_parent(AT_FDCWD, path);
	int error = errno;
	struct stat status;
	if (stat(path, &status) == 0)
		return S_ISDIR(status.st_mode) ? 0 : -ERR_NOT_DIRECTORY;
	return error_system(error);
}

int make_directories(const char *path, mode_t mode)
{
	char part[PATH_MAX];
	size_t length = strnlen(path, sizeof(part));
	if (length == 0 || length >= sizeof(part))
		return length == 0 ? -ERR_INVALID : error_system(ENAMETOOLONG);
	memcpy(part, path, length + 1);
	while (length > 1 && part[length - 1] == '/')
		part[--length] = '\0';
	for (char *at = part + 1; *at != '\0'; at++) {
		if (*at != '/' || at[-1] == '/')
			continue;
		*at = '\0';
		int r = make_directory(part, mode | S_IWUSR | S_IXUSR);
		*at = '/';
		if (r < 0)
			return r;
	}
	return make_directory(part, mode);
}

/* -- progress -- */

int progress_report(const struct progress *progress, const char *what, uint64_t done,
                    uint64_t total, const char *unit)
{
	if (progress == NULL || progress->report == NULL)
		return 0;
	return progress->report(progress->context, what, done, total, unit) != 0 ? -ERR_INTERRUPTED
	                                                                         : 0;
}
