/*
 * json — hides what cJSON lets pass: keys given twice, bytes after the end, numbers with
 * fractions, NULs that cut strings short, bytes that are not UTF-8; and how allocations of its that
 * failed are counted.
 */
#include "fs/json.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

static _Thread_local unsigned failures_count;

static void *allocate(size_t size)
{
	void *bytes = malloc(size);
	failures_count += bytes == NULL;
	return bytes;
}

/* Before threads: cJSON's hooks are the process's. */
__attribute__((constructor)) static void watch_allocations(void)
{
	cJSON_InitHooks(&(cJSON_Hooks){.malloc_fn = allocate, .free_fn = free});
}

void json_failed(void)
{
	failures_count++;
}

unsigned json_failures(void)
{
	return failures_count;
}

void json_append(cJSON *array, cJSON *item)
{
	if (!cJSON_AddItemToArray(array, item))
		cJSON_Delete(item);
}

void json_put(cJSON *object, const char *key, cJSON *item)
{
	if (!cJSON_AddItemToObject(object, key, item))
		cJSON_Delete(item);
}

void json_cleanup(cJSON **object)
{
	cJSON_Delete(*object);
}

size_t utf8_length(const unsigned char *at, size_t left)
{
	unsigned char first = at[0];
	size_t length = first < 0x80   ? 1
	                : first < 0xc2 ? 0
	                : first < 0xe0 ? 2
	                : first < 0xf0 ? 3
	                               : 4;
	if (!length || first > 0xf4 || length > left)
		return 0;
	for (size_t i = 1; i < length; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, beyond U+10FFFF. */
	if ((first == 0xe0 && at[1] < 0xa0) || (first == 0xed && at[1] > 0x9f) ||
	    (first == 0xf0 && at[1] < 0x90) || (first == 0xf4 && at[1] > 0x8f))
		return 0;
	return length;
}

char *utf8_clean(const void *bytes, size_t length)
{
	const unsigned char *at = length ? bytes : (const void *)"", *end = at + length;
	char *text = malloc(length * strlen(REPLACEMENT) + 1), *to = text;
	while (text && at < end) {
		size_t known = utf8_length(at, (size_t)(end - at));
		bool control = *at == 0x7f || (*at < 0x20 && *at != '\n' && *at != '\t') ||
		               (known == 2 && at[0] == 0xc2 && at[1] < 0xa0);
		if (known && !control)
			to = mempcpy(to, at, known);
		else
			to = stpcpy(to, REPLACEMENT);
		at += known ? known : 1;
	}
	if (text)
		*to = '\0';
	return text;
}

/* Every escape is looked at, so that "\\u0000", a backslash and text, is not taken for one. */
static const char *flaw_of(const char *text, size_t length)
{
	for (size_t i = 0; i < length;) {
		size_t known = utf8_length((const unsigned char *)text + i, length - i);
		if (!known)
			return "it is not UTF-8";
		if (!text[i] || (length - i >= 6 && memcmp(text + i, "\\u0000", 6) == 0))
			return "there is a NUL in it";
		i += text[i] == '\\' && i + 1 < length && (text[i + 1] & 0x80) == 0 ? 2 : known;
	}
	return NULL;
}

int json_parse(const void *bytes, size_t length, cJSON **ret_object, struct message *message)
{
	CLEANUP(free_pointer) char *text = length ? strndup(bytes, length) : strdup("");
	const char *end = NULL, *flaw = flaw_of(bytes, length);
	if (!text)
		return -ERR_NO_MEMORY;
	if (flaw)
		return fail(message, -ERR_INVALID, "this is no JSON to use: %s", flaw);
	unsigned failures = json_failures();
	CLEANUP(json_cleanup) cJSON *object = cJSON_ParseWithOpts(text, &end, true);
	if (json_failures() != failures)
		return -ERR_NO_MEMORY;
	if (!object)
		return fail(message, -ERR_INVALID, "this is no JSON, from byte %zu on",
		            end ? (size_t)(end - text) : 0);
	if (!cJSON_IsObject(object))
		return fail(message, -ERR_INVALID, "this is JSON, but no object");
	*ret_object = steal(&object);
	return 0;
}

int json_keys(const cJSON *object, const char *where, const char *const *known,
              struct message *message)
{
	if (!cJSON_IsObject(object))
		return fail(message, -ERR_INVALID, "%s is not an object", where);
	for (const cJSON *item = object->child; item; item = item->next) {
		size_t i = 0;
		while (known[i] && strcmp(known[i], item->string) != 0)
			i++;
		if (!known[i])
			return fail(message, -ERR_INVALID, "%s has an unknown key '%.64s'", where,
			            item->string);
		for (const cJSON *other = item->next; other; other = other->next)
			if (strcmp(other->string, item->string) == 0)
				return fail(message, -ERR_INVALID, "%s has the key '%s' twice",
				            where, item->string);
	}
	return 0;
}

int json_text(const cJSON *object, const char *where, const char *key, size_t max,
              const char **ret_text, struct message *message)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
	if (item && !cJSON_IsString(item))
		return fail(message, -ERR_INVALID, "%s: '%s' is not a string", where, key);
	if (item && strlen(item->valuestring) > max)
		return fail(message, -ERR_INVALID, "%s: '%s' has more than %zu bytes", where, key,
		            max);
	*ret_text = item ? item->valuestring : NULL;
	return 0;
}

int json_text_required(const cJSON *object, const char *where, const char *key, size_t max,
                       const char **ret_text, struct message *message)
{
	const char *text = NULL;
	int error = json_text(object, where, key, max, &text, message);
	if (!error && !text)
		error = fail(message, -ERR_INVALID, "%s has no '%s'", where, key);
	if (!error)
		*ret_text = text;
	return error;
}

int json_number(const cJSON *object, const char *where, const char *key, int64_t min, int64_t max,
                int64_t *ret_value, struct message *message)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
	if (!item)
		return 0;
	double value = item->valuedouble;
	if (!cJSON_IsNumber(item) || !(value >= (double)min && value <= (double)max) ||
	    value != (double)(int64_t)value)
		return fail(message, -ERR_INVALID,
		            "%s: '%s' is not a whole number from %lld to %lld", where, key,
		            (long long)min, (long long)max);
	*ret_value = (int64_t)value;
	return 0;
}

int json_array(const cJSON *object, const char *where, const char *key, int max,
               const cJSON **ret_array, struct message *message)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
	if (item && !cJSON_IsArray(item))
		return fail(message, -ERR_INVALID, "%s: '%s' is not a list", where, key);
	if (item && cJSON_GetArraySize(item) > max)
		return fail(message, -ERR_INVALID, "%s: '%s' has more than %d items", where, key,
		            max);
	*ret_array = item;
	return 0;
}

int json_print(const cJSON *object, unsigned failures, struct buffer *ret_bytes)
{
	CLEANUP(free_pointer) char *text = object ? cJSON_PrintUnformatted(object) : NULL;
	if (!text || json_failures() != failures)
		return -ERR_NO_MEMORY;
	buffer_append(ret_bytes, text, strlen(text));
	return buffer_check(ret_bytes);
}
