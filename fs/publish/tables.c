/*
 * tables.c — hides by what a table's format is recognised, and the form of a table's conflict.
 */
#include "fs/publish/tables.h"

#include <stdarg.h>
#include <stdio.h>

#define NAMES_MAX 1000

static const char *last_component(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

int merge_table(void *context, struct odb *odb, struct packer *packer,
                const struct directory_merge *directory, struct directory_result *ret_result,
                struct message *message)
{
	const char *name = last_component(directory->path);
	if (strcmp(name, "_delta_log") == 0)
		return merge_delta_log(context, odb, packer, directory, ret_result, message);
	if (strcmp(name, "metadata") == 0)
		return merge_iceberg_metadata(context, odb, packer, directory, ret_result, message);
	ret_result->verdict = DIRECTORY_NOT_MINE;
	return 0;
}

static int conflict_of_states(void *context, struct odb *odb, struct packer *packer,
                              const struct directory_merge *directory,
                              struct directory_result *ret_result, struct message *message)
{
	if (strcmp(last_component(directory->path), "metadata") == 0)
		return merge_iceberg_metadata(context, odb, packer, directory, ret_result, message);
	ret_result->verdict = DIRECTORY_NOT_MINE;
	return 0;
}

/* Those of a Delta table are numbered: two meet in a path. */
static bool is_state(const char *path)
{
	static const char log[] = "metadata/";
	const char *name = last_component(path);
	size_t above = (size_t)(name - path), length = sizeof(log) - 1;
	return above >= length && strncmp(name - length, log, length) == 0 &&
	       (above == length || name[-(ptrdiff_t)length - 1] == '/') && iceberg_is_state(name);
}

const struct table_formats table_formats = {conflict_of_states, is_state};

static char *table_path(const char *log_path)
{
	const char *name = last_component(log_path);
	return strndup(log_path, name == log_path ? 0 : (size_t)(name - log_path) - 1);
}

char *table_name(const char *log_path)
{
	CLEANUP(free_pointer) char *path = table_path(log_path);
	return path && *path == '\0' ? strdup("at the branch's root") : steal(&path);
}

int table_conflict(const struct directory_merge *directory, const char *format, uint64_t version,
                   struct directory_result *ret_result, const char *sentence, ...)
{
	va_list arguments;
	va_start(arguments, sentence);
	int length = vasprintf(&ret_result->sentence, sentence, arguments);
	va_end(arguments);
	if (length < 0)
		ret_result->sentence = NULL;
	ret_result->verdict = DIRECTORY_CONFLICT;
	ret_result->format = format;
	ret_result->version = version;
	ret_result->table = table_path(directory->path);
	return ret_result->sentence && ret_result->table ? 0 : -ERR_NO_MEMORY;
}

int table_conflict_name(struct directory_result *result, const char *name)
{
	if (result->name_count >= NAMES_MAX)
		return 0;
	if (!result->names)
		result->names = calloc(NAMES_MAX, sizeof(*result->names));
	char *copy = strdup(name);
	if (!result->names || !copy) {
		free(copy);
		return -ERR_NO_MEMORY;
	}
	result->names[result->name_count++] = copy;
	return 0;
}
