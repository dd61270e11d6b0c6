/*
 * merge_take.c — hides which side a path is taken from: what a take names, which of several counts,
 * and how one that names nothing is found out.
 */
#include "refs/entry.h"
#include "refs/merge_internal.h"

#include <stdio.h>

#define ENTRIES_SEARCHED_MAX 100000
#define FOUND 1     /* stops a walk; not an error */
#define EXHAUSTED 2 /* so does this */

int takes_init(struct takes *takes, const struct take *items, size_t count)
{
	*takes = (struct takes){.items = items, .count = count};
	takes->used = calloc(count ? count : 1, sizeof(*takes->used));
	return takes->used ? 0 : -ERR_NO_MEMORY;
}

void takes_release(struct takes *takes)
{
	free(takes->used);
	*takes = (struct takes){0};
}

static unsigned depth_of(const char *path)
{
	unsigned depth = *path != '\0';
	for (; *path; path++)
		depth += *path == '/';
	return depth;
}

/* How closely the take names `path`: twice the depth of what it names, one more for a name; -1: not
 * at all. */
static int closeness(const struct take *take, const char *path)
{
	unsigned depth;
	if (path_within(path, take->path))
		return (int)depth_of(take->path) * 2 + 1;
	if (!path_glob_is_plain(take->path) && path_glob_find(take->path, path, &depth))
		return (int)depth * 2;
	return -1;
}

int takes_side(struct takes *takes, const char *path)
{
	int side = 0, closest = -1;
	for (size_t i = 0; i < takes->count; i++) {
		int close = closeness(&takes->items[i], path);
		if (close < 0)
			continue;
		takes->used[i] = true;
		if (close >= closest) {
			closest = close;
			side = takes->items[i].side;
		}
	}
	return side;
}

static bool names_below(const struct take *take, const char *path)
{
	unsigned depth;
	if (path_within(take->path, path) && strcmp(take->path, path) != 0)
		return true;
	return !path_glob_is_plain(take->path) && path_glob_reaches(take->path, path) &&
	       !path_glob_find(take->path, path, &depth);
}

bool takes_below(const struct takes *takes, const char *path)
{
	for (size_t i = 0; i < takes->count; i++)
		if (names_below(&takes->items[i], path))
			return true;
	return false;
}

/* -- a take that no changed path was named by -- */

struct search {
	struct odb *odb;
	const struct take *take;
	struct message *message;
	struct buffer path; /* NUL-terminated; length counts the NUL */
	unsigned searched;
};

static void search_release(struct search *search)
{
	buffer_release(&search->path);
}

static void iterator_release(struct tree_iterator **iterator)
{
	tree_iterator_free(*iterator);
}

static int search_directory(struct search *search, const struct pointer *root);

static int search_entry(struct search *search, const struct tree_entry *entry)
{
	size_t before = search->path.length;
	search->path.length--;
	if (before > 1)
		buffer_u8(&search->path, '/');
	buffer_append(&search->path, entry->name, entry->name_length);
	buffer_u8(&search->path, '\0');
	int error = buffer_check(&search->path);
	const char *path = (const char *)search->path.data;
	if (!error && closeness(search->take, path) >= 0)
		error = FOUND;
	else if (!error && ++search->searched > ENTRIES_SEARCHED_MAX)
		error = EXHAUSTED;
	else if (!error && entry_is_directory(entry) && names_below(search->take, path))
		error = search_directory(search, &entry->content.pointer);
	search->path.length = before;
	search->path.data[before - 1] = '\0';
	return error;
}

/* Depth is bounded by what is searched. */
static int search_directory(struct search *search, const struct pointer *root)
{
	CLEANUP(iterator_release) struct tree_iterator *iterator = NULL;
	if (pointer_is_none(root) || search->path.length > PATH_BYTES_MAX)
		return 0;
	int error = tree_iterate(search->odb, root, NULL, 0, &iterator, search->message);
	while (!error) {
		const struct tree_entry *entry;
		error = tree_next(iterator, &entry, search->message);
		if (error == -ERR_NOT_FOUND)
			return 0;
		if (!error)
			error = search_entry(search, entry);
	}
	return error;
}

/* FOUND, EXHAUSTED, 0 when the tree has nothing of that name, or an error. A name costs its depth;
 * a pattern a walk of where it can match. */
static int search_tree(struct odb *odb, const struct take *take, const struct pointer *root,
                       struct message *message)
{
	CLEANUP(free_pointer) struct tree_entry *entry = NULL;
	struct message ignored;
	if (pointer_is_none(root))
		return 0;
	int error = tree_find(odb, root, take->path, &entry, &ignored);
	if (!error)
		return FOUND;
	if (error != -ERR_NOT_FOUND && error != -ERR_NOT_DIRECTORY)
		return fail(message, error, "%s", ignored.text);
	if (path_glob_is_plain(take->path))
		return 0;
	CLEANUP(search_release)
	struct search search = {.odb = odb, .take = take, .message = message};
	buffer_u8(&search.path, '\0');
	error = buffer_check(&search.path);
	return error ? error : search_directory(&search, root);
}

int takes_check(const struct takes *takes, struct odb *odb, const struct pointer *source,
                const struct pointer *target, struct message *message)
{
	for (size_t i = 0; i < takes->count; i++) {
		const struct take *take = &takes->items[i];
		if (takes->used[i])
			continue;
		int found = search_tree(odb, take, source, message);
		if (found == 0 && !id_equal(&source->id, &target->id))
			found = search_tree(odb, take, target, message);
		if (found < 0)
			return found;
		if (found != FOUND)
			return fail(message, -ERR_NOT_FOUND,
			            "--take %s:%s names nothing: no path that differs%s; nothing "
			            "was changed",
			            take->side == SIDE_SOURCE ? "source" : "target", take->path,
			            found == EXHAUSTED ? ", and no other that was looked at"
			                               : ", and no other in source or target");
	}
	return 0;
}
