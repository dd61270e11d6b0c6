/*
 * command_conflicts — hides how conflicts are told and how a side is chosen for them.
 */
#include "fs/conflicts.h"
#include "fs/tables.h"

#include <stdio.h>

#define CONFLICTS_SHOWN_MAX 10000

/* -- choosing -- */

void take_list_release(struct take_list *takes)
{
	for (size_t i = 0; i < takes->count; i++)
		free((char *)takes->items[i].path);
	free(takes->items);
}

static int parse_take(struct command *command, const char *text, struct take *ret_take)
{
	char path[PATH_BYTES_MAX];
	const char *colon = strchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : 0;
	if (length == 6 && strncmp(text, "source", 6) == 0)
		ret_take->side = SIDE_SOURCE;
	else if (length == 6 && strncmp(text, "target", 6) == 0)
		ret_take->side = SIDE_TARGET;
	else
		return fail(command->message, -ERR_INVALID,
		            "--take needs source:PATH or target:PATH, not '%s'", text);
	if (colon[1] == '\0')
		return fail(command->message, -ERR_INVALID,
		            "--take '%s' names no path; '%s.' is everything", text, text);
	int error = path_glob_check(colon + 1, command->message);
	if (!error)
		error = path_normalise(colon + 1, path, command->message);
	if (error < 0)
		return error;
	ret_take->path = strdup(path);
	return ret_take->path ? 0 : -ERR_NO_MEMORY;
}

int argument_takes(struct command *command, struct take_list *ret_takes)
{
	const cJSON *array = cJSON_GetObjectItemCaseSensitive(command->request, "take"), *item;
	if (!array)
		return 0;
	ret_takes->items = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof *ret_takes->items);
	if (!ret_takes->items)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, array) {
		int error = cJSON_IsString(item)
		                    ? parse_take(command, item->valuestring,
		                                 &ret_takes->items[ret_takes->count])
		                    : fail(command->message, -ERR_INVALID, "take is not a string");
		if (error < 0)
			return error;
		ret_takes->count++;
	}
	return 0;
}

struct merge_options conflict_options(const struct take_list *takes)
{
	return (struct merge_options){
	        .takes = takes->items,
	        .take_count = takes->count,
	        .conflicts_max = CONFLICTS_SHOWN_MAX,
	        .directory = merge_table,
	};
}

/* -- telling -- */

/* Where it can be read now: on the mount, or as what `lakectl cat` and `ls` take. */
static void reply_at(struct command *command, cJSON *side, const struct id *revision,
                     const char *path)
{
	CLEANUP(free_pointer) char *at = NULL;
	const char *mountpoint = command->lake->mountpoint;
	char hex[ID_HEX + 1];
	if (id_is_zero(revision))
		return;
	id_to_hex(revision, hex);
	int length = mountpoint
	                     ? asprintf(&at, "%s/@%s%s%s", mountpoint, hex, *path ? "/" : "", path)
	                     : asprintf(&at, "%s:%s", hex, path);
	if (length >= 0)
		reply_path(side, "at", at, (size_t)length);
	else
		at = NULL;
}

static void reply_side(struct command *command, cJSON *object, const char *name,
                       const struct tree_entry *entry, const struct id *revision, const char *path)
{
	if (!entry)
		return;
	cJSON *side = cJSON_AddObjectToObject(object, name);
	bool link = S_ISLNK(entry->attributes.mode);
	char mode[16];
	snprintf(mode, sizeof mode, "%06o", entry->attributes.mode);
	cJSON_AddStringToObject(side, "mode", mode);
	cJSON_AddNumberToObject(side, "size",
	                        (double)(link ? entry->target_length : entry->content.size));
	reply_id(side, "content", &entry->content.pointer.id);
	reply_at(command, side, revision, path);
}

static void reply_table(cJSON *object, const struct conflict *conflict)
{
	reply_path(object, "table", conflict->path, strlen(conflict->path));
	cJSON_AddStringToObject(object, "format", conflict->format);
	cJSON_AddNumberToObject(object, "version", (double)conflict->version);
	reply_path(object, "sentence", conflict->sentence, strlen(conflict->sentence));
	cJSON *paths = cJSON_AddArrayToObject(object, "paths");
	for (size_t i = 0; i < conflict->path_count; i++)
		cJSON_AddItemToArray(
		        paths, reply_path_item(conflict->paths[i], strlen(conflict->paths[i])));
}

static cJSON *conflict_item(struct command *command, const struct conflict *conflict,
                            const struct merge_result *result)
{
	cJSON *object = cJSON_CreateObject();
	const char *path = conflict->path;
	char words[CONFLICT_WORDS_MAX];
	conflict_words(conflict, words);
	reply_path(object, "path", path, strlen(path));
	cJSON_AddStringToObject(object, "kind", words);
	if (conflict->format)
		reply_table(object, conflict);
	reply_side(command, object, "base", conflict->base, &result->base, path);
	reply_side(command, object, "source", conflict->source, &result->source, path);
	reply_side(command, object, "target", conflict->target, &result->target, path);
	return object;
}

int reply_conflicts(struct command *command, const struct merge_result *result)
{
	const struct conflict *first = result->conflicts;
	cJSON *array = cJSON_AddArrayToObject(command->reply, "conflicts");
	for (size_t i = 0; i < result->conflict_count; i++)
		cJSON_AddItemToArray(array, conflict_item(command, &result->conflicts[i], result));
	if (!result->conflict_count)
		return 0;
	return fail(command->message, -ERR_CONFLICT,
	            "%zu conflict%s, first '%s'%s%s; nothing was changed. Read each side where the "
	            "list says; choose with --take source:PATH or --take target:PATH, as often as "
	            "needed; PATH may be a directory or a pattern",
	            result->conflict_count, result->conflict_count > 1 ? "s" : "", first->path,
	            first->format ? ": " : "", first->format ? first->sentence : "");
}
