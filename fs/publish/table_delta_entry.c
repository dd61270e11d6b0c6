/*
 * table_delta_entry.c — hides the actions of a Delta log entry: one JSON object a line, with one
 * member that names the action.
 */
#include "fs/json.h"
#include "fs/publish/table_delta.h"

#include <stdio.h>

/* -- lists -- */

int string_list_add(struct string_list *list, const char *item)
{
	if (list->count == list->capacity) {
		size_t capacity = list->capacity ? list->capacity * 2 : 16;
		char **grown = reallocarray(list->items, capacity, sizeof(*grown));
		if (!grown)
			return -ERR_NO_MEMORY;
		list->items = grown;
		list->capacity = capacity;
	}
	char *copy = strdup(item);
	if (!copy)
		return -ERR_NO_MEMORY;
	list->items[list->count++] = copy;
	return 0;
}

void string_list_release(struct string_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		free(list->items[i]);
	free(list->items);
	*list = (struct string_list){0};
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

const char *string_list_common(struct string_list *a, struct string_list *b)
{
	if (!a->count || !b->count)
		return NULL;
	qsort(a->items, a->count, sizeof(*a->items), by_text);
	qsort(b->items, b->count, sizeof(*b->items), by_text);
	for (size_t i = 0, j = 0; i < a->count && j < b->count;) {
		int order = strcmp(a->items[i], b->items[j]);
		if (order == 0)
			return a->items[i];
		i += order < 0;
		j += order > 0;
	}
	return NULL;
}

void delta_writes_release(struct delta_writes *writes)
{
	string_list_release(&writes->applications);
	string_list_release(&writes->added);
	string_list_release(&writes->removed);
}

/* -- one action -- */

struct parse {
	struct delta_entry *entry;
	struct delta_writes *writes;
	bool described, declared_blind, append, vacuum, files;
	const char *not_blind; /* by what it does */
};

static const cJSON *member(const cJSON *object, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
	return cJSON_IsNull(item) ? NULL : item;
}

static const char *text(const cJSON *object, const char *name)
{
	const cJSON *item = member(object, name);
	return cJSON_IsString(item) ? item->valuestring : "";
}

static void not_blind(struct parse *parse, const char *why)
{
	if (!parse->not_blind)
		parse->not_blind = why;
}

static int parse_commit_info(struct parse *parse, const cJSON *info)
{
	const char *operation = text(info, "operation");
	const char *mode = text(member(info, "operationParameters"), "mode");
	const cJSON *blind = member(info, "isBlindAppend");
	if (parse->described)
		return -ERR_INVALID;
	parse->described = true;
	parse->declared_blind = cJSON_IsTrue(blind);
	parse->append = strcmp(operation, "WRITE") == 0 && strcmp(mode, "Append") == 0;
	parse->vacuum = strncmp(operation, "VACUUM ", 7) == 0;
	parse->entry->restores = strcmp(operation, "RESTORE") == 0;
	if (blind && !parse->declared_blind)
		not_blind(parse, "read the table to append to it");
	if (member(info, "inCommitTimestamp"))
		not_blind(parse, "has a time of its own that must follow the other's");
	char *name = parse->entry->operation;
	snprintf(name, DELTA_OPERATION_MAX, *mode ? "%.40s (%.16s)" : "%.40s", operation, mode);
	for (; *name; name++)
		if (*name < ' ' || *name > '~')
			*name = '?';
	return 0;
}

static int parse_add(struct parse *parse, const cJSON *add)
{
	const char *path = text(add, "path");
	if (*path == '\0')
		return -ERR_INVALID;
	parse->files = true;
	if (!cJSON_IsTrue(member(add, "dataChange")))
		not_blind(parse, "rearranges rows that were there");
	if (member(add, "deletionVector"))
		not_blind(parse, "deletes rows of files");
	if (member(add, "baseRowId") || member(add, "defaultRowCommitVersion"))
		not_blind(parse, "numbers its rows after those before them");
	return string_list_add(&parse->writes->added, path);
}

static int parse_remove(struct parse *parse, const cJSON *action)
{
	const char *path = text(action, "path");
	if (*path == '\0')
		return -ERR_INVALID;
	parse->files = true;
	not_blind(parse, "removes files");
	return string_list_add(&parse->writes->removed, path);
}

static int parse_action(struct parse *parse, const char *name, const cJSON *action)
{
	if (strcmp(name, "commitInfo") == 0)
		return parse_commit_info(parse, action);
	if (strcmp(name, "add") == 0)
		return parse_add(parse, action);
	if (strcmp(name, "remove") == 0)
		return parse_remove(parse, action);
	if (strcmp(name, "txn") == 0) {
		const char *application = text(action, "appId");
		return *application ? string_list_add(&parse->writes->applications, application)
		                    : -ERR_INVALID;
	}
	if (strcmp(name, "metaData") == 0 || strcmp(name, "protocol") == 0) {
		parse->entry->changes_table = true;
		not_blind(parse, "changes the table's schema, properties or protocol");
	} else {
		not_blind(parse, "does more than to append files");
	}
	return 0;
}

/* Writers that know a schema of actions may spell the other members out as null. */
static int parse_line(struct parse *parse, const char *line, size_t length)
{
	CLEANUP(json_cleanup) cJSON *json = NULL;
	if (length > DELTA_LINE_BYTES_MAX)
		return -ERR_TOO_LARGE;
	int error = json_parse(line, length, &json, NULL);
	if (error)
		return error;
	const cJSON *item, *action = NULL;
	cJSON_ArrayForEach (item, json) {
		if (cJSON_IsNull(item))
			continue;
		if (action || !cJSON_IsObject(item))
			return -ERR_INVALID;
		action = item;
	}
	return action ? parse_action(parse, action->string, action) : -ERR_INVALID;
}

/* -- the entry -- */

static bool is_blank(const char *line, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
			return false;
	return true;
}

static const char *why_not_blind(const struct parse *parse)
{
	if (parse->not_blind)
		return parse->not_blind;
	/* What a vacuum removes no version names that it can still be asked for. */
	if (parse->vacuum && !parse->files)
		return NULL;
	if (!parse->files)
		return "does not append any file";
	if (!parse->declared_blind && !parse->append)
		return "does not say that it only appends";
	return NULL;
}

int delta_entry_parse(const char *bytes, size_t length, struct delta_entry *ret_entry,
                      struct delta_writes *writes, struct message *message)
{
	struct delta_entry entry = {.operation = "an unnamed operation"};
	struct parse parse = {.entry = &entry, .writes = writes};
	unsigned number = 0, actions = 0;
	for (const char *end = bytes + length; bytes < end;) {
		const char *newline = memchr(bytes, '\n', (size_t)(end - bytes));
		size_t line_length = (size_t)((newline ? newline : end) - bytes);
		number++;
		if (!is_blank(bytes, line_length)) {
			int error = parse_line(&parse, bytes, line_length);
			if (error == -ERR_NO_MEMORY)
				return fail(message, error, "out of memory");
			if (error)
				return fail(message, -ERR_INVALID, "line %u is not an action",
				            number);
			actions++;
		}
		bytes += line_length + (newline != NULL);
	}
	if (actions == 0)
		return fail(message, -ERR_INVALID, "it is empty");
	entry.not_blind = why_not_blind(&parse);
	*ret_entry = entry;
	return 0;
}
