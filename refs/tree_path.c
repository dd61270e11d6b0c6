/*
 * tree_path.c — hides how a path finds its way through trees of directories: looking up, listing,
 * and setting one path anew.
 */
#include "refs/diff.h"
#include "refs/entry.h"

#include <stdio.h>

#define DEPTH_MAX 4096

/* -- one path -- */

int tree_find(struct odb *odb, const struct pointer *root, const char *path,
              struct tree_entry **ret_entry, struct message *message)
{
	CLEANUP(free_pointer) struct tree_entry *entry = NULL;
	struct pointer directory = *root;
	const char *at = path;
	if (*path == '\0')
		return fail(message, -ERR_INVALID, "the root directory has no entry");
	for (;;) {
		size_t length = strcspn(at, "/");
		int error = tree_lookup(odb, &directory, at, length, &entry, message);
		if (error == -ERR_NOT_FOUND)
			return fail(message, error, "no such path: '%s'", path);
		if (error)
			return error;
		at += length;
		if (*at == '\0')
			break;
		if (!entry_is_directory(entry))
			return fail(message, -ERR_NOT_DIRECTORY, "'%.*s' is not a directory",
			            (int)(at - path), path);
		at++;
		directory = entry->content.pointer;
		free(steal(&entry));
	}
	*ret_entry = steal(&entry);
	return 0;
}

/* -- every path -- */

struct visit {
	struct odb *odb;
	tree_visit_fn *callback;
	void *context;
	struct message *message;
	struct buffer path; /* NUL-terminated; length counts the NUL */
	unsigned depth;
};

static void visit_release(struct visit *visit)
{
	buffer_release(&visit->path);
}

static void iterator_release(struct tree_iterator **iterator)
{
	tree_iterator_free(*iterator);
}

static int visit_directory(struct visit *visit, const struct pointer *root);

static int visit_entry(struct visit *visit, const struct tree_entry *entry)
{
	size_t before = visit->path.length;
	if (visit->depth >= DEPTH_MAX)
		return fail(visit->message, -ERR_TOO_LARGE, "'%.100s...' is too deep",
		            (const char *)visit->path.data);
	visit->path.length--;
	if (visit->path.length > 0)
		buffer_u8(&visit->path, '/');
	buffer_append(&visit->path, entry->name, entry->name_length);
	buffer_u8(&visit->path, '\0');
	int error = buffer_check(&visit->path);
	if (!error)
		error = visit->callback(visit->context, (const char *)visit->path.data, entry);
	if (!error && entry_is_directory(entry)) {
		visit->depth++;
		error = visit_directory(visit, &entry->content.pointer);
		visit->depth--;
	}
	visit->path.length = before;
	visit->path.data[before - 1] = '\0';
	return error;
}

static int visit_directory(struct visit *visit, const struct pointer *root)
{
	CLEANUP(iterator_release) struct tree_iterator *iterator = NULL;
	if (pointer_is_none(root))
		return 0;
	int error = tree_iterate(visit->odb, root, NULL, 0, &iterator, visit->message);
	while (!error) {
		const struct tree_entry *entry;
		error = tree_next(iterator, &entry, visit->message);
		if (error == -ERR_NOT_FOUND)
			return 0;
		if (!error)
			error = visit_entry(visit, entry);
	}
	return error;
}

int tree_visit(struct odb *odb, const struct pointer *root, tree_visit_fn *callback, void *context,
               struct message *message)
{
	CLEANUP(visit_release)
	struct visit visit = {
	        .odb = odb,
	        .callback = callback,
	        .context = context,
	        .message = message,
	};
	buffer_u8(&visit.path, '\0');
	int error = buffer_check(&visit.path);
	return error ? error : visit_directory(&visit, root);
}

/* -- setting one path -- */

struct one_edit {
	struct tree_edit edit;
	bool given;
};

static int next_one(void *context, struct tree_edit *ret_edit)
{
	struct one_edit *one = context;
	if (one->given)
		return -ERR_NOT_FOUND;
	one->given = true;
	*ret_edit = one->edit;
	return 0;
}

struct setting {
	struct odb *odb;
	struct packer *packer;
	const struct tree_entry *entry; /* NULL: remove */
	struct message *message;
	struct message lookup_message; /* of a lookup that may well find nothing */
};

static int apply_one(struct setting *setting, const struct pointer *root, const char *name,
                     size_t length, const struct tree_entry *entry, struct pointer *ret_root)
{
	struct one_edit one = {.edit = {.name = name, .name_length = length, .entry = entry}};
	return tree_apply(setting->odb, setting->packer, root, next_one, &one, ret_root,
	                  setting->message);
}

/* The entry of a directory on the way; a missing one is made when something is to be put there.
 * *ret_entry is NULL when there is nothing to remove. */
static int parent_entry(struct setting *setting, const struct pointer *root, const char *name,
                        size_t length, struct tree_entry **ret_entry)
{
	struct message *message = setting->message;
	int error = -ERR_NOT_FOUND;
	*ret_entry = NULL;
	if (!pointer_is_none(root))
		error = tree_lookup(setting->odb, root, name, length, ret_entry,
		                    &setting->lookup_message);
	if (!error && !entry_is_directory(*ret_entry)) {
		free(steal(ret_entry));
		if (!setting->entry)
			return 0;
		return fail(message, -ERR_NOT_DIRECTORY, "'%.*s' is not a directory", (int)length,
		            name);
	}
	if (error && error != -ERR_NOT_FOUND && message)
		*message = setting->lookup_message;
	if (error != -ERR_NOT_FOUND || !setting->entry)
		return error == -ERR_NOT_FOUND ? 0 : error;
	struct tree_entry made = {
	        .name = name,
	        .name_length = length,
	        .attributes = setting->entry->attributes,
	};
	made.attributes.mode = S_IFDIR | 0755;
	made.attributes.rdev = 0;
	*ret_entry = tree_entry_copy(&made);
	return *ret_entry ? 0 : fail(message, -ERR_NO_MEMORY, "out of memory");
}

static int set_below(struct setting *setting, const struct pointer *root, const char *path,
                     unsigned depth, struct pointer *ret_root)
{
	size_t length = strcspn(path, "/");
	int error = name_check(path, length);
	if (error || depth >= DEPTH_MAX)
		return fail(setting->message, error ? error : -ERR_TOO_LARGE,
		            "'%.60s' cannot be part of a path", path);
	if (path[length] == '\0')
		return apply_one(setting, root, path, length, setting->entry, ret_root);
	CLEANUP(free_pointer) struct tree_entry *parent = NULL;
	error = parent_entry(setting, root, path, length, &parent);
	if (error)
		return error;
	if (!parent) {
		*ret_root = *root;
		return 0;
	}
	struct pointer below;
	error = set_below(setting, &parent->content.pointer, path + length + 1, depth + 1, &below);
	if (error)
		return error;
	parent->content.pointer = below;
	return apply_one(setting, root, path, length, parent, ret_root);
}

int tree_set_path(struct odb *odb, struct packer *packer, const struct pointer *root,
                  const char *path, const struct tree_entry *entry, struct pointer *ret_root,
                  struct message *message)
{
	struct setting setting = {.odb = odb, .packer = packer, .entry = entry, .message = message};
	return set_below(&setting, root, path, 0, ret_root);
}
