/*
 * Text that comes from others and goes to people, to JSON and to the terminal: cleaned text is
 * UTF-8 without control characters and cleaning it again changes nothing; JSON that is taken can be
 * printed and read again; times and headers are told or refused.
 */
#include <stdlib.h>

#include "fs/json.h"
#include "refs/history.h"
#include "store/s3.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
	if (!holds)
		abort();
}

static void try_clean(const uint8_t *data, size_t size)
{
	CLEANUP(free_pointer) char *clean = utf8_clean(data, size);
	check(clean != NULL);
	for (const unsigned char *at = (unsigned char *)clean; *at;) {
		size_t length = utf8_length(at, strlen((const char *)at));
		check(length > 0 && *at != 0x7f && (*at >= ' ' || *at == '\n' || *at == '\t'));
		at += length;
	}
	CLEANUP(free_pointer) char *again = utf8_clean(clean, strlen(clean));
	check(again && strcmp(again, clean) == 0);
}

static void try_json(const uint8_t *data, size_t size)
{
	static const char *const keys[] = {"a", "b", NULL};
	CLEANUP(json_cleanup) cJSON *object = NULL;
	CLEANUP(json_cleanup) cJSON *again = NULL;
	CLEANUP(buffer_release) struct buffer text = {0};
	const cJSON *array;
	const char *word = NULL;
	int64_t number = 0;
	struct message message = {{0}};
	if (json_parse(data, size, &object, &message) < 0) {
		check(message.text[0] != '\0');
		return;
	}
	check(cJSON_IsObject(object));
	(void)json_keys(object, "it", keys, &message);
	(void)json_array(object, "it", "a", 3, &array, &message);
	if (json_text(object, "it", "a", 9, &word, &message) == 0)
		check(!word || strlen(word) <= 9);
	if (json_number(object, "it", "a", -5, INT64_MAX, &number, &message) == 0)
		check(number >= -5);
	if (json_print(object, json_failures(), &text) == 0)
		check(json_parse(text.data, text.length, &again, NULL) == 0);
}

static void try_header(const char *text)
{
	const struct s3_range range = {100, 50};
	struct etag etag;
	int64_t ms;
	(void)s3_range_matches(&range, text, 50);
	if (s3_etag_take(text, &etag) == 0)
		check(etag.text[0] && strlen(etag.text) <= ETAG_MAX && !strchr(etag.text, '"'));
	(void)iso8601_parse(text, &ms);
	(void)time_parse(text, &ms);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CLEANUP(free_pointer) char *text = strndup(size ? (const char *)data : "", size);
	try_clean(data, size);
	try_json(data, size);
	try_header(text);
	return 0;
}
