/*
 * json — JSON that comes from the store or from people, read strictly; text that goes into it.
 *
 * What is not known, of the wrong type or out of bounds is an error that names the place: a
 * misspelled demand must not pass for none. `where` starts the message ("audit 'nulls'").
 * Threads: any. Blocks never.
 */
#ifndef FS_JSON_H
#define FS_JSON_H

#include <cjson/cJSON.h>

#include "store/base.h"

void json_cleanup(cJSON **object); /* CLEANUP */

/* -- building: cJSON says only where it happens that there was no memory, and goes on without --
 * How many of its allocations have failed in this thread: when that has grown, something is missing
 * in what was built or read meanwhile. */
unsigned json_failures(void);
/* Counts one more: what was to be added could not be made. */
void json_failed(void);
/* Take `item` (which may be NULL) also when it cannot be added: it is then deleted. */
void json_append(cJSON *array, cJSON *item);
void json_put(cJSON *object, const char *key, cJSON *item);

/* One object and nothing after it: UTF-8, no NUL, not even written as one. -ERR_INVALID. */
int json_parse(const void *bytes, size_t length, cJSON **ret_object, struct message *message);
/* An object with no other keys than these (`known` ends with NULL), each at most once. */
int json_keys(const cJSON *object, const char *where, const char *const *known,
              struct message *message);
/* Absent: *ret_text is NULL. Borrowed from `object`. */
int json_text(const cJSON *object, const char *where, const char *key, size_t max,
              const char **ret_text, struct message *message);
int json_text_required(const cJSON *object, const char *where, const char *key, size_t max,
                       const char **ret_text, struct message *message);
/* Whole numbers only. Absent: *ret_value stays as it is. */
int json_number(const cJSON *object, const char *where, const char *key, int64_t min, int64_t max,
                int64_t *ret_value, struct message *message);
/* Absent: *ret_array is NULL. */
int json_array(const cJSON *object, const char *where, const char *key, int max,
               const cJSON **ret_array, struct message *message);
/* The text of an object on one line; -ERR_NO_MEMORY, also when there were failures since
 * `failures` = json_failures(). */
int json_print(const cJSON *object, unsigned failures, struct buffer *ret_bytes);

/* Length of the valid UTF-8 sequence at `at` (RFC 3629), 0 when there is none. */
size_t utf8_length(const unsigned char *at, size_t left);
/* A copy fit for JSON and terminals: what is not UTF-8, and control characters but newline and
 * tab, become U+FFFD. Allocated; NULL: no memory. */
char *utf8_clean(const void *bytes, size_t length);

#endif
