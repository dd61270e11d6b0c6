/*
 * fault_injection — each allocation, system call and store call of a test's process, counted, and
 * any one of them failing.
 *
 * The program's own definitions of the C library's functions come before the library's for every
 * object that is loaded; what they forward to is the next definition (a sanitizer's, if there is
 * one). Counted is what our code, cJSON and LMDB call; the tests' own calls are made with faults
 * off for the thread. Included by one .c of a program.
 *
 * A plan fails call number `nth` of a class, counted over all threads since fault_arm, or with
 * `lasting` that and every later one, as a full disk does.
 */
#ifndef TESTS_LIB_FAULT_INJECTION_H
#define TESTS_LIB_FAULT_INJECTION_H

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <lmdb.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "store/object.h"

/* clang-format off */
#define FAULT_CLASSES(X) \
	X(ALLOCATE, "allocation", ENOMEM) \
	X(READ, "read", EIO) \
	X(WRITE, "write", ENOSPC) \
	X(SHORT, "short write", ENOSPC) /* writes half, then fails */ \
	X(SYNC, "sync", EIO) \
	X(OPEN, "open", EMFILE) \
	X(NAME, "rename, link, unlink, mkdir", EIO) \
	X(SIZE, "truncate, allocate", ENOSPC) \
	X(STAT, "stat, seek", EIO) \
	X(MAP, "mmap", ENOMEM) \
	X(THREAD, "thread, process, pipe", EAGAIN) \
	X(STORE, "store call", -ERR_STORE_AWAY) \
	X(STORE_AFTER, "store call that acted", -ERR_STORE_AWAY) \
	X(TABLE, "LMDB's map full", MDB_MAP_FULL)
enum fault_class {
#define X(name, text, error) FAULT_##name,
	FAULT_CLASSES(X)
#undef X
	FAULT_COUNT
};
static const struct {
	const char *text;
	int error;
} fault_classes[] = {
#define X(name, text, error) {text, error},
	FAULT_CLASSES(X)
#undef X
};
/* clang-format on */

/* The first calls come before a sanitizer is ready. */
#define FAULT_EARLY __attribute__((no_sanitize("address", "undefined")))
#define FAULT_CALLS_MAX 65536
#define FAULT_FRAMES 10

/* What was called: shared with the child that counts. */
struct fault_record {
	_Atomic(unsigned) calls[FAULT_COUNT];
	uint64_t sites[FAULT_COUNT][FAULT_CALLS_MAX]; /* a hash of the callers */
};
struct fault_plan {
	enum fault_class class;
	unsigned nth; /* from 0 */
	int error;    /* 0: the class's own */
	bool lasting;
};

static struct {
	atomic_bool counting, armed;
	struct fault_plan plan;
	_Atomic(unsigned) calls; /* of the plan's class */
	_Atomic(unsigned) hits;
	struct fault_record *record;
	void *frames[FAULT_FRAMES]; /* of the first hit */
	int frame_count;
} fault_state;
static _Thread_local int fault_off;
static struct {
	uintptr_t from, to;
} fault_objects[4];
static unsigned fault_object_count;

static int fault_note_object(struct dl_phdr_info *info, size_t size, void *context)
{
	const char *slash = strrchr(info->dlpi_name, '/');
	const char *name = slash ? slash + 1 : info->dlpi_name;
	bool ours = info->dlpi_name[0] == '\0' && fault_object_count == 0;
	if (!ours && strncmp(name, "libcjson", 8) != 0 && strncmp(name, "liblmdb", 7) != 0)
		return 0;
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *header = &info->dlpi_phdr[i];
		if (header->p_type != PT_LOAD || !(header->p_flags & PF_X) ||
		    fault_object_count == ARRAY_SIZE(fault_objects))
			continue;
		uintptr_t from = info->dlpi_addr + header->p_vaddr;
		fault_objects[fault_object_count].from = from;
		fault_objects[fault_object_count++].to = from + header->p_memsz;
	}
	return 0;
}

/* LMDB's own allocations are left alone: what it does about them is not ours. */
static bool fault_caller_counts(void *caller, enum fault_class class)
{
	uintptr_t at = (uintptr_t)caller;
	for (unsigned i = 0; i < fault_object_count; i++)
		if (at >= fault_objects[i].from && at < fault_objects[i].to)
			return true;
	return false;
}

static void fault_record_call(enum fault_class class)
{
	void *frames[FAULT_FRAMES];
	unsigned call = fault_state.record->calls[class]++;
	if (call >= FAULT_CALLS_MAX)
		return;
	fault_off++;
	int count = backtrace(frames, FAULT_FRAMES);
	fault_off--;
	uint64_t hash = 14695981039346656037u;
	for (int i = 2; i < count; i++)
		hash = (hash ^ (uintptr_t)frames[i]) * 1099511628211u;
	fault_state.record->sites[class][call] = hash;
}

/* The error this call is to fail with, or 0. */
FAULT_EARLY static int fault_due(enum fault_class class, void *caller)
{
	if (fault_off || !(fault_state.counting || fault_state.armed) ||
	    !fault_caller_counts(caller, class))
		return 0;
	if (fault_state.counting) {
		fault_record_call(class);
		return 0;
	}
	if (class != fault_state.plan.class)
		return 0;
	unsigned call = fault_state.calls++;
	if (call < fault_state.plan.nth ||
	    (call > fault_state.plan.nth && !fault_state.plan.lasting))
		return 0;
	if (fault_state.hits++ == 0) {
		fault_off++;
		fault_state.frame_count = backtrace(fault_state.frames, FAULT_FRAMES);
		fault_off--;
	}
	return fault_state.plan.error ? fault_state.plan.error : fault_classes[class].error;
}

static void fault_prepare(void)
{
	void *frames[2];
	fault_off++;
	backtrace(frames, 2); /* loads what it needs */
	fault_off--;
	dl_iterate_phdr(fault_note_object, NULL);
}

static void fault_count_into(struct fault_record *record)
{
	fault_state.record = record;
	fault_state.counting = true;
}

static void fault_arm(const struct fault_plan *plan)
{
	fault_state.plan = *plan;
	fault_state.calls = fault_state.hits = 0;
	fault_state.armed = true;
}

/* Has it failed? */
static bool fault_disarm(void)
{
	fault_state.armed = fault_state.counting = false;
	return fault_state.hits > 0;
}

void __sanitizer_symbolize_pc(void *pc, const char *format, char *out, size_t size)
        __attribute__((weak));

/* Where the first hit was, for people. */
static void fault_describe(char *ret_text, size_t size)
{
	size_t used = 0;
	ret_text[0] = '\0';
	for (int i = 2; i < fault_state.frame_count && used + 2 < size; i++) {
		char *at = (char *)fault_state.frames[i] - 1;
		if (!__sanitizer_symbolize_pc)
			used += (size_t)snprintf(ret_text + used, size - used, " %p", (void *)at);
		else {
			ret_text[used++] = ' ';
			__sanitizer_symbolize_pc(at, "%f:%l", ret_text + used, size - used);
			used += strlen(ret_text + used);
		}
		used = used < size ? used : size - 1;
	}
}

/* -- the C library's functions; `symbol` twice where there is a name for large files -- */

#define FAULT_CALLER __builtin_return_address(0)
#define FAULT_NEXT(result, arguments, symbol) \
	static result(*next) arguments; \
	if (!next) \
	next = (result(*) arguments)(uintptr_t)dlsym(RTLD_NEXT, symbol)
/* `failed` is returned when the call is to fail. */
#define FAULT_WRAP(id, symbol, result, class, failed, parameters, arguments) \
	result fault_##id parameters __asm__(symbol) __attribute__((used)); \
	result fault_##id parameters \
	{ \
		FAULT_NEXT(result, parameters, symbol); \
		int error = fault_due(class, FAULT_CALLER); \
		if (error) { \
			errno = error; \
			return failed; \
		} \
		return next arguments; \
	}
/* Those that return the error itself. */
#define FAULT_WRAP_RETURNS(id, symbol, class, parameters, arguments) \
	int fault_##id parameters __asm__(symbol) __attribute__((used)); \
	int fault_##id parameters \
	{ \
		FAULT_NEXT(int, parameters, symbol); \
		int error = fault_due(class, FAULT_CALLER); \
		return error ? error : next arguments; \
	}
#define FAULT_WRAP_BOTH(id, symbol, result, class, failed, parameters, arguments) \
	FAULT_WRAP(id, symbol, result, class, failed, parameters, arguments) \
	FAULT_WRAP(id##_large, symbol "64", result, class, failed, parameters, arguments)

/* dlsym may allocate: these are found without it. */
void *__interceptor_malloc(size_t size) __attribute__((weak));
void *__interceptor_calloc(size_t count, size_t size) __attribute__((weak));
void *__interceptor_realloc(void *at, size_t size) __attribute__((weak));
void *__interceptor_aligned_alloc(size_t alignment, size_t size) __attribute__((weak));
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *at, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

FAULT_EARLY static void *fault_malloc_next(size_t size)
{
	return __interceptor_malloc ? __interceptor_malloc(size) : __libc_malloc(size);
}

FAULT_EARLY static void *fault_no_memory(void)
{
	errno = ENOMEM;
	return NULL;
}

void *fault_malloc(size_t size) __asm__("malloc") __attribute__((used));
FAULT_EARLY void *fault_malloc(size_t size)
{
	return fault_due(FAULT_ALLOCATE, FAULT_CALLER) ? fault_no_memory()
	                                               : fault_malloc_next(size);
}

void *fault_calloc(size_t count, size_t size) __asm__("calloc") __attribute__((used));
FAULT_EARLY void *fault_calloc(size_t count, size_t size)
{
	if (fault_due(FAULT_ALLOCATE, FAULT_CALLER))
		return fault_no_memory();
	return __interceptor_calloc ? __interceptor_calloc(count, size)
	                            : __libc_calloc(count, size);
}

FAULT_EARLY static void *fault_realloc_next(void *at, size_t size)
{
	return __interceptor_realloc ? __interceptor_realloc(at, size) : __libc_realloc(at, size);
}

void *fault_realloc(void *at, size_t size) __asm__("realloc") __attribute__((used));
FAULT_EARLY void *fault_realloc(void *at, size_t size)
{
	return fault_due(FAULT_ALLOCATE, FAULT_CALLER) ? fault_no_memory()
	                                               : fault_realloc_next(at, size);
}

void *fault_reallocarray(void *at, size_t count, size_t size) __asm__("reallocarray")
        __attribute__((used));
FAULT_EARLY void *fault_reallocarray(void *at, size_t count, size_t size)
{
	size_t bytes;
	if (fault_due(FAULT_ALLOCATE, FAULT_CALLER) || __builtin_mul_overflow(count, size, &bytes))
		return fault_no_memory();
	return fault_realloc_next(at, bytes);
}

void *fault_aligned_alloc(size_t alignment, size_t size) __asm__("aligned_alloc")
        __attribute__((used));
FAULT_EARLY void *fault_aligned_alloc(size_t alignment, size_t size)
{
	if (fault_due(FAULT_ALLOCATE, FAULT_CALLER))
		return fault_no_memory();
	return __interceptor_aligned_alloc ? __interceptor_aligned_alloc(alignment, size)
	                                   : __libc_memalign(alignment, size);
}

FAULT_EARLY static char *fault_copy(const char *text, size_t length)
{
	char *copy = fault_malloc_next(length + 1);
	if (copy) {
		memcpy(copy, text, length);
		copy[length] = '\0';
	}
	return copy;
}

char *fault_strdup(const char *text) __asm__("strdup") __attribute__((used));
FAULT_EARLY char *fault_strdup(const char *text)
{
	return fault_due(FAULT_ALLOCATE, FAULT_CALLER) ? fault_no_memory()
	                                               : fault_copy(text, strlen(text));
}

char *fault_strndup(const char *text, size_t max) __asm__("strndup") __attribute__((used));
FAULT_EARLY char *fault_strndup(const char *text, size_t max)
{
	return fault_due(FAULT_ALLOCATE, FAULT_CALLER) ? fault_no_memory()
	                                               : fault_copy(text, strnlen(text, max));
}

int fault_vasprintf(char **ret_text, const char *format, va_list arguments) __asm__("vasprintf")
        __attribute__((used, format(printf, 2, 0)));
int fault_vasprintf(char **ret_text, const char *format, va_list arguments)
{
	FAULT_NEXT(int, (char **, const char *, va_list), "vasprintf");
	if (fault_due(FAULT_ALLOCATE, FAULT_CALLER)) {
		errno = ENOMEM;
		*ret_text = (char *)1; /* undefined then, says the manual */
		return -1;
	}
	return next(ret_text, format, arguments);
}

int fault_asprintf(char **ret_text, const char *format, ...) __asm__("asprintf")
        __attribute__((used, format(printf, 2, 3)));
int fault_asprintf(char **ret_text, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int length = vasprintf(ret_text, format, arguments);
	va_end(arguments);
	return length;
}

#define FAULT_OPEN_WRAP(id, symbol) \
	int fault_##id(const char *path, int flags, ...) __asm__(symbol) __attribute__((used)); \
	int fault_##id(const char *path, int flags, ...) \
	{ \
		FAULT_NEXT(int, (const char *, int, ...), symbol); \
		int error = fault_due(FAULT_OPEN, FAULT_CALLER); \
		va_list rest; \
		va_start(rest, flags); \
		mode_t mode = __OPEN_NEEDS_MODE(flags) ? va_arg(rest, mode_t) : 0; \
		va_end(rest); \
		errno = error ? error : errno; \
		return error ? -1 : next(path, flags, mode); \
	}
#define FAULT_OPENAT_WRAP(id, symbol) \
	int fault_##id(int at, const char *path, int flags, ...) __asm__(symbol) \
	        __attribute__((used)); \
	int fault_##id(int at, const char *path, int flags, ...) \
	{ \
		FAULT_NEXT(int, (int, const char *, int, ...), symbol); \
		int error = fault_due(FAULT_OPEN, FAULT_CALLER); \
		va_list rest; \
		va_start(rest, flags); \
		mode_t mode = __OPEN_NEEDS_MODE(flags) ? va_arg(rest, mode_t) : 0; \
		va_end(rest); \
		errno = error ? error : errno; \
		return error ? -1 : next(at, path, flags, mode); \
	}
FAULT_OPEN_WRAP(open, "open")
FAULT_OPEN_WRAP(open_large, "open64")
FAULT_OPENAT_WRAP(openat, "openat")
FAULT_OPENAT_WRAP(openat_large, "openat64")
FAULT_WRAP(opendir, "opendir", DIR *, FAULT_OPEN, NULL, (const char *path), (path))
FAULT_WRAP(fdopendir, "fdopendir", DIR *, FAULT_OPEN, NULL, (int fd), (fd))
FAULT_WRAP_BOTH(fopen, "fopen", FILE *, FAULT_OPEN, NULL, (const char *path, const char *mode),
                (path, mode))
FAULT_WRAP(realpath, "realpath", char *, FAULT_OPEN, NULL, (const char *path, char *out),
           (path, out))

FAULT_WRAP(read, "read", ssize_t, FAULT_READ, -1, (int fd, void *to, size_t length),
           (fd, to, length))
FAULT_WRAP_BOTH(pread, "pread", ssize_t, FAULT_READ, -1,
                (int fd, void *to, size_t length, off_t offset), (fd, to, length, offset))
FAULT_WRAP_BOTH(readdir, "readdir", struct dirent *, FAULT_READ, NULL, (DIR * directory),
                (directory))
FAULT_WRAP(copy_file_range, "copy_file_range", ssize_t, FAULT_WRITE, -1,
           (int from, off_t *from_at, int to, off_t *to_at, size_t length, unsigned flags),
           (from, from_at, to, to_at, length, flags))

/* Half of what is to be written is, then the rest is refused: also by the call after this one. */
#define FAULT_WRITE_WRAP(id, symbol, parameters, arguments, half) \
	ssize_t fault_##id parameters __asm__(symbol) __attribute__((used)); \
	ssize_t fault_##id parameters \
	{ \
		FAULT_NEXT(ssize_t, parameters, symbol); \
		int error = fault_due(FAULT_WRITE, FAULT_CALLER); \
		if (error) { \
			errno = error; \
			return -1; \
		} \
		static _Thread_local bool rest; \
		bool refused = rest; \
		rest = false; \
		error = fault_due(FAULT_SHORT, FAULT_CALLER); \
		if (refused && fault_state.armed && !fault_off) { \
			errno = ENOSPC; \
			return -1; \
		} \
		if (error) { \
			rest = true; \
			return next half; \
		} \
		return next arguments; \
	}
FAULT_WRITE_WRAP(write, "write", (int fd, const void *from, size_t length), (fd, from, length),
                 (fd, from, (length + 1) / 2))
FAULT_WRITE_WRAP(pwrite, "pwrite", (int fd, const void *from, size_t length, off_t offset),
                 (fd, from, length, offset), (fd, from, (length + 1) / 2, offset))
FAULT_WRITE_WRAP(pwrite_large, "pwrite64", (int fd, const void *from, size_t length, off_t offset),
                 (fd, from, length, offset), (fd, from, (length + 1) / 2, offset))
FAULT_WRITE_WRAP(writev, "writev", (int fd, const struct iovec *parts, int count),
                 (fd, parts, count), (fd, parts, 1))
FAULT_WRITE_WRAP(pwritev, "pwritev", (int fd, const struct iovec *parts, int count, off_t offset),
                 (fd, parts, count, offset), (fd, parts, 1, offset))
FAULT_WRITE_WRAP(pwritev_large, "pwritev64",
                 (int fd, const struct iovec *parts, int count, off_t offset),
                 (fd, parts, count, offset), (fd, parts, 1, offset))

FAULT_WRAP(fsync, "fsync", int, FAULT_SYNC, -1, (int fd), (fd))
FAULT_WRAP(fdatasync, "fdatasync", int, FAULT_SYNC, -1, (int fd), (fd))
FAULT_WRAP(syncfs, "syncfs", int, FAULT_SYNC, -1, (int fd), (fd))
FAULT_WRAP(msync, "msync", int, FAULT_SYNC, -1, (void *at, size_t length, int flags),
           (at, length, flags))

FAULT_WRAP(rename, "rename", int, FAULT_NAME, -1, (const char *from, const char *to), (from, to))
FAULT_WRAP(renameat, "renameat", int, FAULT_NAME, -1,
           (int from_at, const char *from, int to_at, const char *to), (from_at, from, to_at, to))
FAULT_WRAP(renameat2, "renameat2", int, FAULT_NAME, -1,
           (int from_at, const char *from, int to_at, const char *to, unsigned flags),
           (from_at, from, to_at, to, flags))
FAULT_WRAP(link, "link", int, FAULT_NAME, -1, (const char *from, const char *to), (from, to))
FAULT_WRAP(linkat, "linkat", int, FAULT_NAME, -1,
           (int from_at, const char *from, int to_at, const char *to, int flags),
           (from_at, from, to_at, to, flags))
FAULT_WRAP(unlink, "unlink", int, FAULT_NAME, -1, (const char *path), (path))
FAULT_WRAP(unlinkat, "unlinkat", int, FAULT_NAME, -1, (int at, const char *path, int flags),
           (at, path, flags))
FAULT_WRAP(mkdir, "mkdir", int, FAULT_NAME, -1, (const char *path, mode_t mode), (path, mode))
FAULT_WRAP(mkdirat, "mkdirat", int, FAULT_NAME, -1, (int at, const char *path, mode_t mode),
           (at, path, mode))

FAULT_WRAP_BOTH(ftruncate, "ftruncate", int, FAULT_SIZE, -1, (int fd, off_t size), (fd, size))
FAULT_WRAP_BOTH(fallocate, "fallocate", int, FAULT_SIZE, -1,
                (int fd, int mode, off_t offset, off_t length), (fd, mode, offset, length))
FAULT_WRAP_RETURNS(posix_fallocate, "posix_fallocate", FAULT_SIZE,
                   (int fd, off_t offset, off_t length), (fd, offset, length))
FAULT_WRAP_RETURNS(posix_fallocate_large, "posix_fallocate64", FAULT_SIZE,
                   (int fd, off_t offset, off_t length), (fd, offset, length))

FAULT_WRAP_BOTH(fstat, "fstat", int, FAULT_STAT, -1, (int fd, struct stat *to), (fd, to))
FAULT_WRAP_BOTH(stat, "stat", int, FAULT_STAT, -1, (const char *path, struct stat *to), (path, to))
FAULT_WRAP_BOTH(fstatat, "fstatat", int, FAULT_STAT, -1,
                (int at, const char *path, struct stat *to, int flags), (at, path, to, flags))
FAULT_WRAP_BOTH(lseek, "lseek", off_t, FAULT_STAT, -1, (int fd, off_t offset, int whence),
                (fd, offset, whence))
FAULT_WRAP(futimens, "futimens", int, FAULT_STAT, -1, (int fd, const struct timespec *times),
           (fd, times))
FAULT_WRAP(utimensat, "utimensat", int, FAULT_STAT, -1,
           (int at, const char *path, const struct timespec *times, int flags),
           (at, path, times, flags))
FAULT_WRAP(flock, "flock", int, FAULT_STAT, -1, (int fd, int operation), (fd, operation))

FAULT_WRAP_BOTH(mmap, "mmap", void *, FAULT_MAP, MAP_FAILED,
                (void *at, size_t length, int protection, int flags, int fd, off_t offset),
                (at, length, protection, flags, fd, offset))

FAULT_WRAP_RETURNS(pthread_create, "pthread_create", FAULT_THREAD,
                   (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *),
                    void *context),
                   (thread, attributes, run, context))
FAULT_WRAP_RETURNS(posix_spawn, "posix_spawn", FAULT_THREAD,
                   (pid_t * pid, const char *path, const posix_spawn_file_actions_t *actions,
                    const posix_spawnattr_t *attributes, char *const *argv, char *const *envp),
                   (pid, path, actions, attributes, argv, envp))
FAULT_WRAP(pipe2, "pipe2", int, FAULT_THREAD, -1, (int *fds, int flags), (fds, flags))
FAULT_WRAP(eventfd, "eventfd", int, FAULT_THREAD, -1, (unsigned value, int flags), (value, flags))

/* LMDB's map: what met its end can only be aborted, and ending it at commit is LMDB's. */
FAULT_WRAP_RETURNS(mdb_put, "mdb_put", FAULT_TABLE,
                   (MDB_txn * txn, MDB_dbi table, MDB_val *key, MDB_val *value, unsigned flags),
                   (txn, table, key, value, flags))
FAULT_WRAP_RETURNS(mdb_del, "mdb_del", FAULT_TABLE,
                   (MDB_txn * txn, MDB_dbi table, MDB_val *key, MDB_val *value),
                   (txn, table, key, value))
FAULT_WRAP_RETURNS(mdb_drop, "mdb_drop", FAULT_TABLE, (MDB_txn * txn, MDB_dbi table, int delete),
                   (txn, table, delete))

int fault_mdb_txn_commit(MDB_txn *txn) __asm__("mdb_txn_commit") __attribute__((used));
int fault_mdb_txn_commit(MDB_txn *txn)
{
	FAULT_NEXT(int, (MDB_txn *), "mdb_txn_commit");
	int error = fault_due(FAULT_TABLE, FAULT_CALLER);
	if (error)
		mdb_txn_abort(txn);
	return error ? error : next(txn);
}

/* -- the store's calls: the operations of any backend, replaced in place -- */

static struct object_ops fault_store_ops;
#define FAULT_STORE_BEFORE \
	int error_ = fault_due(FAULT_STORE, (void *)(uintptr_t)fault_store_wrap); \
	if (error_) \
	return fail(message, error_, "the store cannot be reached (injected)")
#define FAULT_STORE_DONE(result) \
	int result_ = (result); \
	error_ = fault_due(FAULT_STORE_AFTER, (void *)(uintptr_t)fault_store_wrap); \
	if (error_) \
		return fail(message, error_, "the store went away meanwhile (injected)"); \
	return result_
static void fault_store_wrap(struct object_store *store);

static int fault_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                     struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	FAULT_STORE_BEFORE;
	return fault_store_ops.get(store, key, offset, length, ret_bytes, ret_etag, message);
}

static int fault_put(struct object_store *store, const char *key, const void *bytes, size_t length,
                     struct message *message)
{
	FAULT_STORE_BEFORE;
	FAULT_STORE_DONE(fault_store_ops.put(store, key, bytes, length, message));
}

static int fault_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                               size_t length, struct etag *ret_etag, struct message *message)
{
	FAULT_STORE_BEFORE;
	FAULT_STORE_DONE(
	        fault_store_ops.put_if_absent(store, key, bytes, length, ret_etag, message));
}

static int fault_put_if_match(struct object_store *store, const char *key, const void *bytes,
                              size_t length, const struct etag *expected, struct etag *ret_etag,
                              struct message *message)
{
	FAULT_STORE_BEFORE;
	FAULT_STORE_DONE(fault_store_ops.put_if_match(store, key, bytes, length, expected, ret_etag,
	                                              message));
}

static int fault_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                      void *context, struct message *message)
{
	FAULT_STORE_BEFORE;
	FAULT_STORE_DONE(fault_store_ops.list(store, prefix, callback, context, message));
}

static int fault_remove(struct object_store *store, const char *key, struct message *message)
{
	FAULT_STORE_BEFORE;
	FAULT_STORE_DONE(fault_store_ops.remove(store, key, message));
}

/* From now on the store's calls are counted. The table of a store that known_refs are attached to
 * is that store's own, so it can be written to. */
static void fault_store_wrap(struct object_store *store)
{
	struct object_ops *ops = (struct object_ops *)(uintptr_t)store->ops;
	fault_store_ops = *ops;
	ops->get = fault_get;
	ops->put = fault_put;
	ops->put_if_absent = fault_put_if_absent;
	ops->put_if_match = fault_put_if_match;
	ops->list = fault_list;
	ops->remove = fault_remove;
}

#endif
