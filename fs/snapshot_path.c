/*
 * snapshot_path — hides how the commands handle paths: sets of them, the one a walk is at, the ones
 * a message names, and finding what one is in an overlay over its base.
 */
#include <stdio.h>

#include "fs/snapshot.h"

/* -- the path of a walk -- */

int path_push(struct path *path, const char *name, size_t name_length, struct message *message)
{
	size_t slash = path->length ? 1 : 0;
	if (path->length + slash + name_length >= sizeof(path->text))
		return fail(message, -ERR_TOO_LARGE,
		            "a path below '%.200s...' is longer than %d bytes; move it up",
		            path->text, PATH_BYTES_MAX - 1);
	if (slash)
		path->text[path->length++] = '/';
	memcpy(path->text + path->length, name, name_length);
	path->length += name_length;
	path->text[path->length] = '\0';
	return 0;
}

void path_pop(struct path *path, size_t length)
{
	path->length = length;
	path->text[length] = '\0';
}

/* -- names in messages -- */

void names_add(struct names *names, const char *path)
{
	names->count++;
	size_t room = sizeof(names->text) - names->length;
	/* room for the " and N more" that names_text may add */
	if (names->named == NAMES_MAX || strlen(path) + 40 > room)
		return;
	int n = snprintf(names->text + names->length, room, "%s%s", names->named ? ", " : "", path);
	names->length += (size_t)n;
	names->named++;
}

const char *names_text(struct names *names)
{
	if (names->named < names->count)
		snprintf(names->text + names->length, sizeof(names->text) - names->length,
		         "%s%zu more", names->named ? " and " : "", names->count - names->named);
	return names->text;
}

/* -- sets of paths -- */

/* Order of a walk: a directory, then what is in it, then its next sibling. */
static int path_rank(char c)
{
	return c == '\0' ? 0 : c == '/' ? 1 : 2 + (unsigned char)c;
}

static int path_compare(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return path_rank(*a) - path_rank(*b);
}

static int path_compare_items(const void *a, const void *b)
{
	return path_compare(*(char *const *)a, *(char *const *)b);
}

int path_set_init(struct path_set *set, const char *const *paths, size_t count,
                  struct message *message)
{
	*set = (struct path_set){0};
	if (count == 0)
		return 0;
	CLEANUP(path_set_release) struct path_set made = {0};
	made.paths = calloc(count, sizeof(*made.paths));
	if (!made.paths)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < count; i++) {
		char normal[PATH_BYTES_MAX];
		if (strcmp(paths[i], "") == 0 || strcmp(paths[i], ".") == 0)
			return 0;
		int error = path_normalise(paths[i], normal, message);
		if (error)
			return error;
		if (normal[0] == '\0')
			return 0;
		made.paths[made.count] = strdup(normal);
		if (!made.paths[made.count])
			return -ERR_NO_MEMORY;
		made.count++;
	}
	qsort(made.paths, made.count, sizeof(*made.paths), path_compare_items);
	size_t kept = 1;
	for (size_t i = 1; i < made.count; i++) {
		if (path_within(made.paths[i], made.paths[kept - 1]))
			free(made.paths[i]);
		else
			made.paths[kept++] = made.paths[i];
	}
	made.count = kept;
	*set = made;
	made = (struct path_set){0};
	return 0;
}

void path_set_release(struct path_set *set)
{
	for (size_t i = 0; i < set->count; i++)
		free(set->paths[i]);
	free(set->paths);
	*set = (struct path_set){0};
}

/* How many of the set are <= path. */
static size_t path_set_rank(const struct path_set *set, const char *path)
{
	size_t low = 0, high = set->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (path_compare(set->paths[middle], path) <= 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

bool path_set_has(const struct path_set *set, const char *path)
{
	if (set->count == 0)
		return true;
	size_t rank = path_set_rank(set, path);
	return rank > 0 && path_within(path, set->paths[rank - 1]);
}

bool path_set_above(const struct path_set *set, const char *path)
{
	size_t rank = path_set_rank(set, path);
	return rank < set->count && path_within(set->paths[rank], path);
}

/* -- what a path is -- */

void located_release(struct located *located)
{
	inode_release(&located->inode);
	free(located->entry);
	*located = (struct located){0};
}

struct ground ground_of(struct worktrees *trees, const struct worktree_view *view)
{
	return (struct ground){
	        .trees = trees,
	        .overlay = view->overlay,
	        .root = view->root,
	        .tree = view->base_tree,
	        .attributes = view->base_root,
	};
}

/* One name below an overlay directory or a committed one. */
static int locate_child(const struct ground *ground, const struct located *parent, const char *name,
                        size_t length, struct located *ret_child, struct message *message)
{
	struct pointer tree = parent->entry ? parent->entry->content.pointer : ground->tree;
	if (parent->inode.number) {
		struct overlay_entry entry;
		int error = overlay_read_entry(ground->trees, ground->overlay, parent->inode.number,
		                               name, length, &entry);
		if (error && error != -ERR_NOT_FOUND)
			return error;
		if (!error && entry.whiteout)
			return -ERR_NOT_FOUND;
		if (!error) {
			error = overlay_read_inode(ground->trees, ground->overlay, entry.number,
			                           &ret_child->inode);
			ret_child->exists = !error;
			return error;
		}
		tree = parent->inode.tree;
	}
	int error =
	        tree_lookup(ground->trees->odb, &tree, name, length, &ret_child->entry, message);
	ret_child->exists = !error;
	return error;
}

int ground_locate(const struct ground *ground, const char *path, struct located *ret_located,
                  struct message *message)
{
	CLEANUP(located_release) struct located at = {.exists = true};
	if (ground->overlay) {
		int error =
		        overlay_read_inode(ground->trees, ground->overlay, ground->root, &at.inode);
		if (error)
			return error;
	}
	bool root = true;
	while (*path) {
		size_t length = strcspn(path, "/");
		uint32_t mode = at.inode.number ? at.inode.attributes.mode
		                : at.entry      ? at.entry->attributes.mode
		                                : S_IFDIR;
		struct located child = {0};
		int error = -ERR_NOT_FOUND;
		if (S_ISDIR(mode) && (root || at.inode.number || at.entry))
			error = locate_child(ground, &at, path, length, &child, message);
		if (error == -ERR_NOT_FOUND) {
			located_release(&child);
			*ret_located = child;
			return 0;
		}
		if (error)
			return error;
		located_release(&at);
		at = child;
		root = false;
		path += length + (path[length] == '/');
	}
	*ret_located = at;
	at = (struct located){0};
	return 0;
}
