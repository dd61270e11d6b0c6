/*
 * places — hides how a name is told from a path: what exists inside a mount is a path there, the
 * rest is REV:PATH or a revision.
 */
#include "tools/places.h"

#include <stdio.h>
#include <unistd.h>

#include "fs/lake.h"

static int add_place(cJSON *place, const char *revision, size_t length, const char *path,
                     struct message *message)
{
	CLEANUP(free_pointer) char *name = strndup(revision, length);
	if (!name)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	cJSON_AddStringToObject(place, "revision", name);
	cJSON_AddStringToObject(place, "path", path);
	return 0;
}

/* Absolute, or as seen from the current directory. 1: it lies inside a mount. */
static int from_mount(cJSON *place, const char *text, char **ret_lake, struct message *message)
{
	CLEANUP(free_pointer) char *path = realpath(text, NULL);
	CLEANUP(free_pointer) char *mountpoint = NULL;
	CLEANUP(free_pointer) char *directory = NULL;
	if (!path || lake_mount_of(path, &mountpoint, &directory) < 0)
		return 0;
	const char *below = path + strlen(mountpoint);
	below += strspn(below, "/");
	size_t length = strcspn(below, "/");
	if (!length)
		return fail(message, -ERR_INVALID,
		            "'%s' is a whole lake: name a branch or a path in one", text);
	if (*ret_lake && strcmp(*ret_lake, directory) != 0)
		return fail(message, -ERR_INVALID, "'%s' is in another lake than the ones before",
		            text);
	if (!*ret_lake)
		*ret_lake = steal(&directory);
	const char *inside = below + length + strspn(below + length, "/");
	size_t at = below[0] == '@'; /* /lake/@REV */
	int error = add_place(place, below + at, length - at, inside, message);
	return error < 0 ? error : 1;
}

static int resolve(cJSON *place, const char *text, char **ret_lake, struct message *message)
{
	int found = from_mount(place, text, ret_lake, message);
	if (found)
		return found < 0 ? found : 0;
	const char *colon = revision_end(text);
	if (memchr(text, '/', colon ? (size_t)(colon - text) : strlen(text))) { /* in no revision */
		if (access(text, F_OK) == 0)
			return fail(message, -ERR_INVALID, "'%s' is in no mounted lake", text);
		return fail(message, -ERR_NOT_FOUND, "'%s' is not there", text);
	}
	return colon ? add_place(place, text, (size_t)(colon - text), colon + 1, message)
	             : add_place(place, text, strlen(text), "", message);
}

int places_resolve(cJSON *places, char **ret_lake, struct message *message)
{
	int count = cJSON_GetArraySize(places);
	*ret_lake = NULL;
	for (int i = 0; i < count; i++) {
		const char *text = cJSON_GetArrayItem(places, i)->valuestring;
		cJSON *place = cJSON_CreateObject();
		int error = resolve(place, text, ret_lake, message);
		if (error < 0) {
			cJSON_Delete(place);
			return error;
		}
		cJSON_ReplaceItemInArray(places, i, place);
	}
	return 0;
}
