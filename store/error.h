/*
 * error — one table of everything that can go wrong, and messages for people.
 *
 * Every function that can fail returns int: 0 (or a count) on success, a negative error on
 * failure. A failure that only this project can name is -ERR_x from the table below; any other
 * failed system call is error_system(errno), which keeps the errno and maps the few that have a
 * name of their own (ENOSPC -> ERR_NO_SPACE and so on).
 *
 * Calls whose failure an operator reads also take a `struct message *`, last. It is written only
 * on failure, says what failed and what to do about it, and may be NULL. Library code never logs.
 */
#ifndef STORE_ERROR_H
#define STORE_ERROR_H

#include <stdarg.h>

/* name, errno a file-system caller sees, exit code of lakectl (design: 1 failed, 2 usage,
 * 3 conflict, 4 refused, 5 no such ref, path or lake), default text */
#define ERRORS(X) \
	X(INVALID, EINVAL, 2, "invalid argument") \
	X(BAD_NAME, EINVAL, 2, "not a valid name") \
	X(NO_MEMORY, ENOMEM, 1, "out of memory") \
	X(NO_SPACE, ENOSPC, 1, "no space left on the device") \
	X(TOO_LARGE, EFBIG, 1, "larger than the limit") \
	X(NOT_FOUND, ENOENT, 5, "not found") \
	X(EXISTS, EEXIST, 1, "exists already") \
	X(NOT_DIRECTORY, ENOTDIR, 5, "not a directory") \
	X(IS_DIRECTORY, EISDIR, 1, "is a directory") \
	X(NOT_EMPTY, ENOTEMPTY, 1, "directory not empty") \
	X(READ_ONLY, EROFS, 4, "read-only") \
	X(NOT_PERMITTED, EPERM, 4, "not permitted") \
	X(NO_REVISION, ENOENT, 5, "no such revision") \
	X(AMBIGUOUS, EINVAL, 5, "ambiguous revision") \
	X(NO_LAKE, ENOENT, 5, "no lake here") \
	X(CONFLICT, EBUSY, 3, "conflict") \
	X(MOVED, EBUSY, 3, "moved by somebody else meanwhile") \
	X(BUSY, EBUSY, 1, "in use") \
	X(REFUSED, EACCES, 4, "refused") \
	X(STALE, ESTALE, 1, "replaced by a newer version") \
	X(CORRUPT, EIO, 1, "damaged data") \
	X(VERSION, EIO, 1, "written by a newer version") \
	X(STORE_AWAY, EIO, 1, "the object store cannot be reached") \
	X(UNSUPPORTED, EOPNOTSUPP, 1, "not supported") \
	X(INTERRUPTED, EINTR, 1, "interrupted")

/* clang-format off */
enum error {
	ERR_NONE = 0,
#define X(name, errno_, exit_, text) ERR_##name,
	ERRORS(X)
#undef X
	ERR_COUNT,
	ERR_SYSTEM = 1000, /* ERR_SYSTEM + errno: a system call's own failure */
};
/* clang-format on */

struct message {
	char text[1024];
};

/* The negative error for a failed system call; `system_errno` > 0. */
int error_system(int system_errno);
/* The positive errno, exit code, and text for a negative error. Never fail; text is static. */
int error_errno(int error);
int error_exit(int error);
const char *error_text(int error);
/* The stable machine-readable name, e.g. "not_found", or "system". */
const char *error_code(int error);

/* Fill `message` (which may be NULL) and return `error`. The usual last line of a failing path:
 * return fail(message, -ERR_NOT_FOUND, "no branch '%s'; `lakectl branch` lists them", name); */
int fail(struct message *message, int error, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
/* Put "prefix: " before what `message` says already. Returns `error`. */
int fail_context(struct message *message, int error, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

#endif
