/*
 * merge_conflict.c — hides how conflicts are collected, gathered by table and put into words.
 */
#include "refs/entry.h"
#include "refs/merge_internal.h"

#include <stdio.h>

static void conflict_release(struct conflict *conflict)
{
	free(conflict->path);
	free(conflict->base);
	free(conflict->source);
	free(conflict->target);
	free(conflict->sentence);
	for (size_t i = 0; i < conflict->path_count; i++)
		free(conflict->paths[i]);
	free(conflict->paths);
}

static void conflicts_free(struct conflict *items, size_t count)
{
	for (size_t i = 0; i < count; i++)
		conflict_release(&items[i]);
	free(items);
}

void merge_result_release(struct merge_result *result)
{
	conflicts_free(result->conflicts, result->conflict_count);
	*result = (struct merge_result){0};
}

void conflicts_release(struct conflicts *conflicts)
{
	conflicts_free(conflicts->items, conflicts->count);
	*conflicts = (struct conflicts){0};
}

/* An entry for the report; what a virtual base left unresolved is no base to show. */
static int copy_entry(const struct tree_entry *entry, struct tree_entry **ret_copy)
{
	*ret_copy = NULL;
	if (!entry || entry_is_unresolved(entry))
		return 0;
	*ret_copy = tree_entry_copy(entry);
	return *ret_copy ? 0 : -ERR_NO_MEMORY;
}

static int add(struct conflicts *conflicts, const char *path, struct conflict **ret_conflict)
{
	if (conflicts->count == conflicts->capacity) {
		size_t capacity = conflicts->capacity ? conflicts->capacity * 2 : 16;
		struct conflict *grown = reallocarray(conflicts->items, capacity, sizeof(*grown));
		if (!grown)
			return -ERR_NO_MEMORY;
		conflicts->items = grown;
		conflicts->capacity = capacity;
	}
	struct conflict *conflict = &conflicts->items[conflicts->count++];
	*conflict = (struct conflict){.path = strdup(path)};
	*ret_conflict = conflict;
	return conflict->path ? 0 : -ERR_NO_MEMORY;
}

int conflicts_add(struct conflicts *conflicts, const char *path, const struct tree_entry *base,
                  const struct tree_entry *source, const struct tree_entry *target)
{
	struct conflict *conflict;
	int error = add(conflicts, path, &conflict);
	if (!error)
		error = copy_entry(base, &conflict->base);
	if (!error)
		error = copy_entry(source, &conflict->source);
	if (!error)
		error = copy_entry(target, &conflict->target);
	if (!error)
		conflict->bases_differ = entry_is_unresolved(base);
	return error;
}

int conflicts_add_table(struct conflicts *conflicts, const char *directory,
                        struct directory_result *result)
{
	struct conflict *conflict;
	int error = add(conflicts, result->table, &conflict);
	if (error)
		return error;
	conflict->format = result->format;
	conflict->version = result->version;
	conflict->sentence = steal(&result->sentence);
	conflict->paths = steal(&result->names);
	conflict->path_count = result->name_count;
	result->name_count = 0;
	for (size_t i = 0; i < conflict->path_count; i++) {
		char *path, *name = conflict->paths[i];
		if (asprintf(&path, "%s%s%s", directory, *directory ? "/" : "", name) < 0)
			return -ERR_NO_MEMORY;
		free(name);
		conflict->paths[i] = path;
	}
	return 0;
}

void directory_result_release(struct directory_result *result)
{
	free(result->table);
	free(result->sentence);
	for (size_t i = 0; i < result->name_count; i++)
		free(result->names[i]);
	free(result->names);
	*result = (struct directory_result){0};
}

/* -- one conflict for each table -- */

/* What the side has at the table's path. */
static int look_up(struct odb *odb, const struct tree_entry *root, const char *path,
                   struct tree_entry **ret_entry, struct message *message)
{
	struct message ignored;
	int error = *path ? tree_find(odb, &root->content.pointer, path, ret_entry, &ignored)
	                  : copy_entry(root, ret_entry);
	if (error == -ERR_NOT_FOUND || error == -ERR_NOT_DIRECTORY)
		return 0;
	if (!error && entry_is_unresolved(*ret_entry))
		free(steal(ret_entry));
	return *path && error ? fail(message, error, "%s", ignored.text) : error;
}

static bool has_path(const struct conflict *table, const char *path)
{
	for (size_t i = 0; i < table->path_count; i++)
		if (strcmp(table->paths[i], path) == 0)
			return true;
	return false;
}

/* A path's conflict that is not part of a table's yet. */
static bool is_within(const struct conflict *conflict, const struct conflict *table)
{
	return !conflict->format && conflict->path && path_within(conflict->path, table->path);
}

static int gather(struct conflicts *conflicts, struct conflict *table)
{
	size_t within = 0;
	for (size_t i = 0; i < conflicts->count; i++)
		within += is_within(&conflicts->items[i], table);
	if (within == 0)
		return 0;
	char **paths = reallocarray(table->paths, table->path_count + within, sizeof(*paths));
	if (!paths)
		return -ERR_NO_MEMORY;
	table->paths = paths;
	size_t named = table->path_count;
	for (size_t i = 0; i < conflicts->count; i++) {
		struct conflict *conflict = &conflicts->items[i];
		if (!is_within(conflict, table))
			continue;
		if (table->path_count > named || !has_path(table, conflict->path))
			table->paths[table->path_count++] = steal(&conflict->path);
		conflict_release(conflict);
		*conflict = (struct conflict){0};
	}
	return 0;
}

int conflicts_gather(struct conflicts *conflicts, struct odb *odb, const struct tree_entry *base,
                     const struct tree_entry *source, const struct tree_entry *target,
                     struct message *message)
{
	int error = 0;
	size_t kept = 0;
	for (size_t i = 0; i < conflicts->count && !error; i++) {
		struct conflict *table = &conflicts->items[i];
		if (!table->format)
			continue;
		error = gather(conflicts, table);
		if (!error)
			error = look_up(odb, base, table->path, &table->base, message);
		if (!error)
			error = look_up(odb, source, table->path, &table->source, message);
		if (!error)
			error = look_up(odb, target, table->path, &table->target, message);
	}
	for (size_t i = 0; i < conflicts->count; i++)
		if (conflicts->items[i].path)
			conflicts->items[kept++] = conflicts->items[i];
	conflicts->count = kept;
	return error;
}

/* -- in words -- */

static const char *kind_word(const struct tree_entry *entry)
{
	switch (entry->attributes.mode & S_IFMT) {
	case S_IFREG:
		return "file";
	case S_IFDIR:
		return "directory";
	case S_IFLNK:
		return "link";
	default:
		return "special file";
	}
}

void conflict_words(const struct conflict *conflict, char ret_words[CONFLICT_WORDS_MAX])
{
	const struct tree_entry *base = conflict->base, *source = conflict->source;
	const struct tree_entry *target = conflict->target;
	const char *words = "both changed";
	ret_words[0] = '\0';
	if (source && target && !entry_same_kind(source, target)) {
		snprintf(ret_words, CONFLICT_WORDS_MAX, "%s in source, %s in target",
		         kind_word(source), kind_word(target));
		return;
	}
	if (conflict->format)
		words = base ? "both changed the table" : "both added the table";
	else if (!source && target)
		words = base || conflict->bases_differ
		                ? "deleted in source, changed in target"
		                : "directory deleted in source, added to in target";
	else if (source && !target)
		words = base || conflict->bases_differ
		                ? "changed in source, deleted in target"
		                : "added to in source, directory deleted in target";
	else if (!base && !conflict->bases_differ)
		words = "both added";
	else if (source && (entry_is_directory(source) || entry_same_content(source, target)))
		words = "both changed its mode, owner or attributes";
	snprintf(ret_words, CONFLICT_WORDS_MAX, "%s", words);
}
