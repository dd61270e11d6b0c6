/*
 * command_conflicts — hides how conflicts are told and how a side is chosen for them.
 */
#include "fs/commands/conflicts.h"
#include "fs/publish/tables.h"
#include "fs/json.h"

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

/* What paths of each side begin with, where they can be read now: on the mount, or as what
 * `lakectl cat` and `ls` take. NULL: nowhere. */
struct places {
	char *base, *source, *target;
};

static void places_release(struct places *places)
{
	free(places->base);
	free(places->source);
	free(places->target);
}

static char *place_of(const struct command *command, const struct id *revision)
{
	const char *mountpoint = command->lake->mountpoint;
	char hex[ID_HEX + 1], *place = NULL;
	if (id_is_zero(revision))
		return NULL;
	id_to_hex(revision, hex);
	int length = mountpoint ? asprintf(&place, "%s/@%s/", mountpoint, hex)
	                        : asprintf(&place, "%s:", hex);
	return length < 0 ? NULL : place;
}

static char *place_of_branch(const struct command *command, const char *branch)
{
	char *place;
	if (!command->lake->mountpoint ||
	    asprintf(&place, "%s/%s/", command->lake->mountpoint, branch) < 0)
		return NULL;
	return place;
}

static void reply_side(cJSON *object, const char *name, const struct tree_entry *entry,
                       const char *place, const char *path)
{
	CLEANUP(free_pointer) char *at = NULL;
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
	int length = place ? asprintf(&at, "%s%s", place, path) : -1;
	if (length < 0)
		at = NULL;
	else
		reply_path(side, "at", at, (size_t)length);
}

static void reply_table(cJSON *object, const struct conflict *conflict)
{
	reply_path(object, "table", conflict->path, strlen(conflict->path));
	cJSON_AddStringToObject(object, "format", conflict->format);
	cJSON_AddNumberToObject(object, "version", (double)conflict->version);
	reply_path(object, "sentence", conflict->sentence, strlen(conflict->sentence));
	cJSON *paths = cJSON_AddArrayToObject(object, "paths");
	for (size_t i = 0; i < conflict->path_count; i++)
		json_append(paths, reply_path_item(conflict->paths[i], strlen(conflict->paths[i])));
}

static cJSON *conflict_item(const struct conflict *conflict, const struct places *places)
{
	cJSON *object = cJSON_CreateObject();
	const char *path = conflict->path;
	char words[CONFLICT_WORDS_MAX];
	conflict_words(conflict, words);
	reply_path(object, "path", path, strlen(path));
	cJSON_AddStringToObject(object, "kind", words);
	if (conflict->format)
		reply_table(object, conflict);
	reply_side(object, "base", conflict->base, places->base, path);
	reply_side(object, "source", conflict->source, places->source, path);
	reply_side(object, "target", conflict->target, places->target, path);
	return object;
}

void reply_unmerged(struct command *command, const struct merge_result *result, const char *branch)
{
	CLEANUP(places_release)
	struct places places = {
	        .base = place_of(command, &result->base),
	        .source = branch ? place_of_branch(command, branch)
	                         : place_of(command, &result->source),
	        .target = place_of(command, &result->target),
	};
	cJSON *array = cJSON_AddArrayToObject(command->reply, "conflicts");
	for (size_t i = 0; i < result->conflict_count; i++)
		json_append(array, conflict_item(&result->conflicts[i], &places));
}

int reply_conflicts(struct command *command, const struct merge_result *result)
{
	const struct conflict *first = result->conflicts;
	reply_unmerged(command, result, NULL);
	if (!result->conflict_count)
		return 0;
	return fail(command->message, -ERR_CONFLICT,
	            "%zu conflict%s, first '%s'%s%s; nothing was changed. Read each side where the "
	            "list says; choose with --take source:PATH or --take target:PATH, as often as "
	            "needed; PATH may be a directory or a pattern",
	            result->conflict_count, result->conflict_count > 1 ? "s" : "", first->path,
	            first->format ? ": " : "", first->format ? first->sentence : "");
}
