/* error — the table of failures, and how a message is composed. Hides the mapping from errno. */
#include "store/error.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

struct row {
	const char *code;
	int system_errno;
	int exit_code;
	const char *text;
};

/* clang-format off */
static const struct row rows[ERR_COUNT] = {
	[ERR_NONE] = {"none", 0, 0, "success"},
#define X(name, errno_, exit_, text_) [ERR_##name] = {#name, errno_, exit_, text_},
	ERRORS(X)
#undef X
};
/* clang-format on */

/* Only the errnos that mean exactly what a row says. EINVAL, EACCES and ESTALE of a system call
 * are not a user's bad argument, our refusal or a replaced version: they stay system errors. */
static const struct {
	int system_errno;
	enum error error;
} system_names[] = {
        {ENOSPC, ERR_NO_SPACE},     {EDQUOT, ERR_NO_SPACE},        {ENOMEM, ERR_NO_MEMORY},
        {ENOENT, ERR_NOT_FOUND},    {EEXIST, ERR_EXISTS},          {ENOTDIR, ERR_NOT_DIRECTORY},
        {EISDIR, ERR_IS_DIRECTORY}, {ENOTEMPTY, ERR_NOT_EMPTY},    {EROFS, ERR_READ_ONLY},
        {EPERM, ERR_NOT_PERMITTED}, {EFBIG, ERR_TOO_LARGE},        {EBUSY, ERR_BUSY},
        {EINTR, ERR_INTERRUPTED},   {EOPNOTSUPP, ERR_UNSUPPORTED},
};

int error_system(int system_errno)
{
	if (system_errno <= 0)
		system_errno = EIO; /* a failure without an errno is still a failure */
	for (size_t i = 0; i < sizeof(system_names) / sizeof(system_names[0]); i++)
		if (system_names[i].system_errno == system_errno)
			return -(int)system_names[i].error;
	return -(ERR_SYSTEM + system_errno);
}

static const struct row *row_of(int error)
{
	return error <= 0 && error > -ERR_COUNT ? &rows[-error] : NULL;
}

int error_errno(int error)
{
	const struct row *row = row_of(error);
	if (row != NULL)
		return row->system_errno;
	return error < -ERR_SYSTEM ? -error - ERR_SYSTEM : EIO;
}

int error_exit(int error)
{
	const struct row *row = row_of(error);
	return row != NULL ? row->exit_code : 1;
}

const char *error_text(int error)
{
	const struct row *row = row_of(error);
	if (row != NULL)
		return row->text;
	const char *text = error < -ERR_SYSTEM ? strerrordesc_np(-error - ERR_SYSTEM) : NULL;
	return text != NULL ? text : "unknown error";
}

/* The table spells names in capitals; the machine-readable codes are made from it once. */
static char codes[ERR_COUNT][24];
static pthread_once_t codes_once = PTHREAD_ONCE_INIT;

static void make_codes(void)
{
	for (size_t i = 0; i < ERR_COUNT; i++) {
		assert(strlen(rows[i].code) < sizeof(codes[i]));
		for (size_t j = 0; rows[i].code[j] != '\0'; j++)
			codes[i][j] = (char)tolower((unsigned char)rows[i].code[j]);
	}
}

const char *error_code(int error)
{
	if (row_of(error) == NULL)
		return "system";
	pthread_once(&codes_once, make_codes);
	return codes[-error];
}

int fail(struct message *message, int error, const char *format, ...)
{
	if (message == NULL)
		return error;
	va_list arguments;
	va_start(arguments, format);
	/* An argument may be the message itself: compose beside it. */
	struct message composed;
	vsnprintf(composed.text, sizeof(composed.text), format, arguments);
	va_end(arguments);
	*message = composed;
	return error;
}

int fail_context(struct message *message, int error, const char *format, ...)
{
	if (message == NULL)
		return error;
	struct message composed;
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(composed.text, sizeof(composed.text), format, arguments);
	va_end(arguments);
	if (length >= 0 && (size_t)length < sizeof(composed.text) - 3) {
		memcpy(composed.text + length, ": ", 2);
		size_t room = sizeof(composed.text) - (size_t)length - 3;
		size_t rest = strnlen(message->text, room);
		memcpy(composed.text + length + 2, message->text, rest);
		composed.text[(size_t)length + 2 + rest] = '\0';
	}
	*message = composed;
	return error;
}
