/*
 * webhook_spool — hides the spool's files: their names, how they are written whole, what is in
 * them.
 */
#include "fs/publish/webhook_spool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/json.h"

#define SPOOL_VERSION 1
#define SPOOL_FILE_MAX (1u << 20)
#define TIME_DIGITS 13
#define FRESH_PREFIX ".new-"

void spooled_release(struct spooled *spooled)
{
	free(spooled->event);
	free(spooled->url);
	free(spooled->body);
	free(spooled->secret_file);
	memset(spooled, 0, sizeof *spooled);
}

void spool_name(char ret_name[SPOOL_NAME_LENGTH + 1])
{
	snprintf(ret_name, SPOOL_NAME_LENGTH + 1, "%013llu-%016llx",
	         (unsigned long long)clock_wall_ms() % 10000000000000ull,
	         (unsigned long long)random_u64());
}

int64_t spool_name_ms(const char *name)
{
	return strtoll(name, NULL, 10);
}

static char *join(const char *directory, const char *name)
{
	char *path = NULL;
	return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

static bool is_name(const char *name)
{
	return strlen(name) == SPOOL_NAME_LENGTH && name[TIME_DIGITS] == '-' &&
	       strspn(name, "0123456789") == TIME_DIGITS &&
	       strspn(name + TIME_DIGITS + 1, "0123456789abcdef") ==
	               SPOOL_NAME_LENGTH - TIME_DIGITS - 1;
}

static int make_private(const char *path)
{
	return mkdir(path, 0700) < 0 && errno != EEXIST ? error_system(errno) : 0;
}

static char *spooled_text(const struct spooled *spooled)
{
	unsigned failures = json_failures();
	cJSON *json = cJSON_CreateObject();
	cJSON_AddNumberToObject(json, "version", SPOOL_VERSION);
	cJSON_AddStringToObject(json, "event", spooled->event);
	cJSON_AddStringToObject(json, "url", spooled->url);
	if (spooled->secret_file)
		cJSON_AddStringToObject(json, "secret_file", spooled->secret_file);
	cJSON_AddStringToObject(json, "body", spooled->body);
	char *text = cJSON_PrintUnformatted(json);
	cJSON_Delete(json);
	if (json_failures() != failures) {
		free(text);
		return NULL;
	}
	return text;
}

int spool_write(const char *directory, const struct spooled *spooled)
{
	char fresh[sizeof FRESH_PREFIX + SPOOL_NAME_LENGTH];
	CLEANUP(free_pointer) char *text = spooled_text(spooled);
	CLEANUP(close_descriptor) int at = -1;
	CLEANUP(close_descriptor) int fd = -1;
	if (!text)
		return -ERR_NO_MEMORY;
	int error = make_private(directory);
	if (error < 0)
		return error;
	at = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (at < 0)
		return error_system(errno);
	snprintf(fresh, sizeof fresh, FRESH_PREFIX "%s", spooled->name);
	fd = openat(at, fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_system(errno);
	error = write_full(fd, text, strlen(text), 0);
	if (!error && renameat(at, fresh, at, spooled->name) < 0)
		error = error_system(errno);
	if (error < 0)
		unlinkat(at, fresh, 0);
	return error;
}

/* A copy of a string; NULL when it is missing, or no string. */
static char *text_of(const cJSON *json, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
	return cJSON_IsString(item) ? strdup(item->valuestring) : NULL;
}

int spool_read(const char *directory, const char *name, struct spooled *ret_spooled)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	CLEANUP(free_pointer) char *path = join(directory, name);
	CLEANUP(spooled_release) struct spooled spooled = {0};
	if (!path)
		return -ERR_NO_MEMORY;
	int error = read_file(AT_FDCWD, path, SPOOL_FILE_MAX, &bytes);
	if (error < 0)
		return error;
	cJSON *json = cJSON_ParseWithLength((const char *)bytes.data, bytes.length);
	const cJSON *version = cJSON_GetObjectItemCaseSensitive(json, "version");
	bool known = cJSON_IsNumber(version) && version->valuedouble == SPOOL_VERSION;
	/* What was to be signed must not go out unsigned because its file is damaged. */
	const cJSON *secret = cJSON_GetObjectItemCaseSensitive(json, "secret_file");
	known = known && (!secret || cJSON_IsString(secret));
	spooled.event = text_of(json, "event");
	spooled.url = text_of(json, "url");
	spooled.body = text_of(json, "body");
	spooled.secret_file = text_of(json, "secret_file");
	cJSON_Delete(json);
	if (!known || !spooled.event || !spooled.url || !spooled.body)
		return -ERR_CORRUPT;
	snprintf(spooled.name, sizeof spooled.name, "%s", name);
	*ret_spooled = spooled;
	memset(&spooled, 0, sizeof spooled);
	return 0;
}

int spool_remove(const char *directory, const char *name)
{
	CLEANUP(free_pointer) char *path = join(directory, name);
	if (!path)
		return -ERR_NO_MEMORY;
	return unlink(path) < 0 ? error_system(errno) : 0;
}

static int by_name(const void *a, const void *b)
{
	return memcmp(a, b, SPOOL_NAME_LENGTH);
}

int spool_list(const char *directory, struct buffer *ret_names)
{
	DIR *listing = opendir(directory);
	if (!listing)
		return errno == ENOENT ? 0 : error_system(errno);
	struct dirent *entry;
	while ((entry = readdir(listing)) != NULL)
		if (is_name(entry->d_name))
			buffer_append(ret_names, entry->d_name, SPOOL_NAME_LENGTH + 1);
		else if (strncmp(entry->d_name, FRESH_PREFIX, strlen(FRESH_PREFIX)) == 0)
			unlinkat(dirfd(listing), entry->d_name, 0);
	closedir(listing);
	int error = buffer_check(ret_names);
	if (!error && ret_names->length)
		qsort(ret_names->data, ret_names->length / (SPOOL_NAME_LENGTH + 1),
		      SPOOL_NAME_LENGTH + 1, by_name);
	return error;
}

int spool_fail(const char *directory, const char *name)
{
	CLEANUP(buffer_release) struct buffer names = {0};
	CLEANUP(free_pointer) char *failed = join(directory, "failed");
	CLEANUP(free_pointer) char *from = join(directory, name);
	CLEANUP(free_pointer) char *to = failed ? join(failed, name) : NULL;
	if (!from || !to)
		return -ERR_NO_MEMORY;
	int error = make_private(failed);
	if (!error && rename(from, to) < 0)
		error = error_system(errno);
	if (!error)
		error = spool_list(failed, &names);
	size_t step = SPOOL_NAME_LENGTH + 1;
	for (size_t at = 0; !error && names.length - at > SPOOL_FAILED_MAX * step; at += step)
		error = spool_remove(failed, (const char *)names.data + at);
	return error;
}
