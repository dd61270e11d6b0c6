/*
 * command_files — ls, du, cat: committed paths without a mount.
 */
#include "fs/commands/command_internal.h"
#include "fs/json.h"

#include <stdio.h>

#define CAT_PIECE_BYTES (256u << 10)

/* What REV[:PATH] names. `entry` is NULL for the root. */
struct named {
	struct commit *commit;
	struct tree_entry *entry;
	char path[PATH_BYTES_MAX];
};

static void named_release(struct named *named)
{
	free(named->commit);
	free(named->entry);
}

static int argument_named(struct command *command, struct named *ret_named)
{
	const char *path;
	int error = command_commit(command, "revision", &ret_named->commit);
	if (!error)
		error = argument_string(command, "path", &path);
	if (!error)
		error = path_normalise(path ? path : "", ret_named->path, command->message);
	if (!error && ret_named->path[0])
		error = tree_find(command->lake->odb, &ret_named->commit->tree, ret_named->path,
		                  &ret_named->entry, command->message);
	if (error == -ERR_NOT_FOUND || error == -ERR_NOT_DIRECTORY)
		return fail(command->message, -ERR_NOT_FOUND, "no '%s' in that revision",
		            ret_named->path);
	return error;
}

static const struct pointer *directory_of(const struct named *named)
{
	if (!named->entry)
		return &named->commit->tree;
	return S_ISDIR(named->entry->attributes.mode) ? &named->entry->content.pointer : NULL;
}

/* -- ls -- */

static int list_directory(struct command *command, struct list *list, const struct pointer *root)
{
	struct tree_iterator *iterator = NULL;
	const struct tree_entry *entry;
	int error = tree_iterate(command->lake->odb, root, NULL, 0, &iterator, command->message);
	while (!error) {
		error = tree_next(iterator, &entry, command->message);
		if (!error)
			error = list_add(list, reply_entry(entry->name, entry));
	}
	tree_iterator_free(iterator);
	return error == -ERR_NOT_FOUND ? 0 : error;
}

static int list_visited(void *context, const char *path, const struct tree_entry *entry)
{
	return list_add(context, reply_entry(path, entry));
}

int command_ls(struct command *command)
{
	CLEANUP(named_release) struct named named = {0};
	struct list list;
	int error = argument_named(command, &named);
	if (error < 0)
		return error;
	reply_id(command->reply, "commit", &named.commit->self.id);
	const struct pointer *root = directory_of(&named);
	list_begin(&list, command, "entries");
	if (!root)
		error = list_add(&list, reply_entry(named.path, named.entry));
	else if (argument_flag(command, "recursive"))
		error = tree_visit(command->lake->odb, root, list_visited, &list, command->message);
	else
		error = list_directory(command, &list, root);
	list_end(&list);
	return error;
}

/* -- du -- */

struct usage {
	struct command *command;
	struct list list;
	char name[NAME_BYTES_MAX + 1]; /* the top-level entry being summed */
	uint64_t files, bytes, total_files, total_bytes;
};

static int finish_usage(struct usage *usage)
{
	if (!usage->name[0])
		return 0;
	cJSON *object = cJSON_CreateObject();
	reply_path(object, "path", usage->name, strlen(usage->name));
	cJSON_AddNumberToObject(object, "files", (double)usage->files);
	cJSON_AddNumberToObject(object, "bytes", (double)usage->bytes);
	usage->total_files += usage->files;
	usage->total_bytes += usage->bytes;
	usage->files = usage->bytes = 0;
	return list_add(&usage->list, object);
}

static int count_entry(void *context, const char *path, const struct tree_entry *entry)
{
	struct usage *usage = context;
	if (!strchr(path, '/')) {
		int error = finish_usage(usage);
		if (error < 0)
			return error;
		snprintf(usage->name, sizeof usage->name, "%s", path);
	}
	if (S_ISDIR(entry->attributes.mode))
		return 0;
	usage->files++;
	usage->bytes += entry->content.size;
	uint64_t files = usage->total_files + usage->files;
	if (files % 1024 == 0 &&
	    progress_report(&usage->command->output->progress, "Counting", files, 0, "files"))
		return -ERR_INTERRUPTED;
	return 0;
}

int command_du(struct command *command)
{
	CLEANUP(named_release) struct named named = {0};
	struct usage usage = {.command = command};
	int error = argument_named(command, &named);
	if (error < 0)
		return error;
	const struct pointer *root = directory_of(&named);
	list_begin(&usage.list, command, "entries");
	if (root)
		error = tree_visit(command->lake->odb, root, count_entry, &usage, command->message);
	else
		error = count_entry(&usage, named.entry->name, named.entry);
	if (!error)
		error = finish_usage(&usage);
	list_end(&usage.list);
	cJSON_AddNumberToObject(command->reply, "files", (double)usage.total_files);
	cJSON_AddNumberToObject(command->reply, "bytes", (double)usage.total_bytes);
	return error;
}

/* -- cat: the list "data" holds the bytes as hexadecimal digits, in pieces -- */

static int add_piece(struct command *command, cJSON *kept, const uint8_t *bytes, size_t length,
                     char *hex)
{
	hex_encode(bytes, length, hex);
	if (!command->output->items) {
		json_append(kept, cJSON_CreateString(hex));
		return 0;
	}
	cJSON *piece = cJSON_CreateArray();
	json_append(piece, cJSON_CreateString(hex));
	return command->output->items(command->output->context, "data", piece) ? -ERR_INTERRUPTED
	                                                                       : 0;
}

int command_cat(struct command *command)
{
	CLEANUP(named_release) struct named named = {0};
	CLEANUP(free_pointer) uint8_t *bytes = malloc(CAT_PIECE_BYTES);
	CLEANUP(free_pointer) char *hex = malloc(2 * (size_t)CAT_PIECE_BYTES + 1);
	int error = argument_named(command, &named);
	if (!error && (!bytes || !hex))
		error = -ERR_NO_MEMORY;
	if (error < 0)
		return error;
	if (directory_of(&named))
		return fail(command->message, -ERR_IS_DIRECTORY,
		            "'%s' is a directory; `lakectl ls` lists it", named.path);
	cJSON_AddNumberToObject(command->reply, "size", (double)named.entry->content.size);
	cJSON *kept = cJSON_AddArrayToObject(command->reply, "data");
	if (named.entry->target)
		return add_piece(command, kept, (const uint8_t *)named.entry->target,
		                 named.entry->target_length, hex);
	uint64_t size = named.entry->content.size;
	for (uint64_t at = 0; !error && at < size; at += CAT_PIECE_BYTES) {
		size_t length = size - at < CAT_PIECE_BYTES ? (size_t)(size - at) : CAT_PIECE_BYTES;
		error = content_read(command->lake->odb, &named.entry->content, at, length, bytes,
		                     command->message);
		if (!error)
			error = add_piece(command, kept, bytes, length, hex);
	}
	return error;
}
