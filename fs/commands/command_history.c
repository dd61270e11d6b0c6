/*
 * command_history — log, show, diff, annotate.
 */
#include "fs/commands/command_internal.h"
#include "fs/json.h"

#include <stdio.h>
#include <uthash.h>

#define LOG_MAX_DEFAULT 1000000

/* -- log -- */

static int log_walk(struct command *command, struct history_walk *walk, uint64_t limit)
{
	struct list list;
	int error = 0;
	list_begin(&list, command, "commits");
	while (!error && list.total < limit) {
		CLEANUP(commit_pointer_free) struct commit *commit = NULL;
		error = history_walk_next(walk, &commit, command->message);
		if (!error)
			error = list_add(&list, reply_commit(commit));
	}
	list_end(&list);
	return error == -ERR_NOT_FOUND ? 0 : error;
}

int command_log(struct command *command)
{
	CLEANUP(commit_pointer_free) struct commit *start = NULL;
	CLEANUP(paths_release) struct paths paths = {0};
	struct history_walk *walk = NULL;
	double limit = argument_number(command, "limit", LOG_MAX_DEFAULT);

	int error = command_commit(command, "revision", &start);
	if (!error)
		error = argument_paths(command, "paths", &paths);
	if (error < 0)
		return error;
	if (limit < 0)
		return fail(command->message, -ERR_INVALID, "-n takes a number from 0");
	struct walk_options options = {.first_parent = argument_flag(command, "first_parent"),
	                               .paths = paths.items,
	                               .path_count = paths.count};
	error = history_walk_new(command->lake->history, &start->self, 1, &options, &walk);
	if (!error)
		error = log_walk(command, walk, (uint64_t)limit);
	history_walk_free(walk);
	return error;
}

/* -- diff -- */

static int list_change(void *context, const struct change *change)
{
	struct list *list = context;
	return list_add(list, reply_change(change));
}

static int list_difference(struct command *command, const struct pointer *before,
                           const struct pointer *after, const struct paths *paths)
{
	struct list list;
	struct diff_options options = {.paths = paths->items, .path_count = paths->count};
	list_begin(&list, command, "changes");
	int error = diff_trees(command->lake->odb, before, after, &options, list_change, &list,
	                       command->message);
	list_end(&list);
	return error;
}

int command_show(struct command *command)
{
	static const struct paths everything;
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	CLEANUP(commit_pointer_free) struct commit *parent = NULL;
	int error = command_commit(command, "revision", &commit);
	if (!error && commit->parent_count)
		error = commit_read(command->lake->odb, &commit->parents[0], &parent,
		                    command->message);
	if (error < 0)
		return error;
	cJSON *warnings = cJSON_DetachItemFromObjectCaseSensitive(command->reply, "warnings");
	cJSON_Delete(command->reply);
	command->reply = reply_commit(commit);
	if (warnings)
		json_put(command->reply, "warnings", warnings);
	error = list_difference(command, parent ? &parent->tree : &pointer_none, &commit->tree,
	                        &everything);
	if (!error)
		reply_audits(command, &commit->self.id);
	return error;
}

/* A change of a path since a revision is the composition of what was committed since and what is
 * uncommitted; a path that the working tree changed is reported by that side alone. */
struct seen_path {
	UT_hash_handle hh;
	char path[];
};
struct composition {
	struct list list;
	struct command *command;
	const struct pointer *from;
	struct seen_path *uncommitted;
};

static int remember(struct composition *composition, const char *path, size_t length)
{
	struct seen_path *seen = calloc(1, sizeof *seen + length + 1);
	if (!seen)
		return -ERR_NO_MEMORY;
	memcpy(seen->path, path, length);
	HASH_ADD_STR(composition->uncommitted, path, seen);
	if (!seen->hh.tbl) {
		free(seen);
		return -ERR_NO_MEMORY;
	}
	return 0;
}

static void forget_all(struct composition *composition)
{
	struct seen_path *seen, *next;
	HASH_ITER (hh, composition->uncommitted, seen, next) {
		HASH_DEL(composition->uncommitted, seen);
		free(seen);
	}
}

/* The state at `from` of a path that the working tree changed. NULL when it was not there. */
static int entry_at(struct composition *composition, const char *path,
                    struct tree_entry **ret_entry)
{
	int error = tree_find(composition->command->lake->odb, composition->from, path, ret_entry,
	                      composition->command->message);
	if (error == -ERR_NOT_FOUND || error == -ERR_NOT_DIRECTORY) {
		*ret_entry = NULL;
		return 0;
	}
	return error;
}

static int add_uncommitted(void *context, const struct change *change)
{
	struct composition *composition = context;
	CLEANUP(free_pointer) struct tree_entry *before = NULL;
	int error = entry_at(composition, change->path, &before);
	if (!error)
		error = remember(composition, change->path, change->path_length);
	if (error < 0)
		return error;
	struct change composed = *change;
	composed.before = before;
	if (!before && !composed.after)
		return 0;
	if (!before)
		composed.kind = CHANGE_ADDED;
	else if (!composed.after)
		composed.kind = CHANGE_REMOVED;
	else if (tree_entry_same_but_time(before, composed.after))
		return 0;
	else
		composed.kind = content_equal(&before->content, &composed.after->content)
		                        ? CHANGE_MODE
		                        : CHANGE_MODIFIED;
	return list_add(&composition->list, reply_change(&composed));
}

static int add_committed(void *context, const struct change *change)
{
	struct composition *composition = context;
	struct seen_path *seen;
	HASH_FIND_STR(composition->uncommitted, change->path, seen);
	if (seen)
		return 0;
	return list_add(&composition->list, reply_change(change));
}

static int diff_worktree(struct command *command, const struct commit *from,
                         const struct paths *paths)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(commit_pointer_free) struct commit *base = NULL;
	const char *branch;
	int error = argument_required(command, "branch", &branch);
	/* lakectl, in no branch's directory, takes the revision itself for one. */
	if (!error && ref_name_check(branch, NULL) < 0)
		return fail(
		        command->message, -ERR_INVALID,
		        "with which revision or branch is '%s' to be compared? Name it, or work "
		        "inside a branch's directory",
		        branch);
	if (!error)
		error = command_worktree(command, "branch", &worktree);
	if (!error)
		error = worktree_base(worktree, &base);
	if (error < 0)
		return error;
	struct composition composition = {.command = command, .from = &from->tree};
	list_begin(&composition.list, command, "changes");
	error = worktree_changes(worktree, paths->items, paths->count, add_uncommitted,
	                         &composition, command->message);
	struct diff_options options = {.paths = paths->items, .path_count = paths->count};
	if (!error)
		error = diff_trees(command->lake->odb, &from->tree, &base->tree, &options,
		                   add_committed, &composition, command->message);
	list_end(&composition.list);
	forget_all(&composition);
	return error;
}

int command_diff(struct command *command)
{
	const char *to;
	CLEANUP(commit_pointer_free) struct commit *before = NULL;
	CLEANUP(commit_pointer_free) struct commit *after = NULL;
	CLEANUP(paths_release) struct paths paths = {0};

	int error = argument_string(command, "to", &to);
	if (!error)
		error = command_commit(command, "from", &before);
	if (!error)
		error = argument_paths(command, "paths", &paths);
	if (error < 0)
		return error;
	reply_id(command->reply, "from", &before->self.id);
	if (!to)
		return diff_worktree(command, before, &paths);
	error = command_commit(command, "to", &after);
	if (error < 0)
		return error;
	reply_id(command->reply, "to", &after->self.id);
	return list_difference(command, &before->tree, &after->tree, &paths);
}

/* -- annotate: which commit last changed each entry -- */

/* The newest commit on the way from `start` that changed `path` against its first parent. */
static int last_change(struct command *command, const struct commit *start, const char *path,
                       struct commit **ret_commit)
{
	struct history_walk *walk = NULL;
	const char *paths[] = {path};
	struct walk_options options = {.paths = path[0] ? paths : NULL, .path_count = path[0] != 0};
	int error = history_walk_new(command->lake->history, &start->self, 1, &options, &walk);
	if (!error)
		error = history_walk_next(walk, ret_commit, command->message);
	history_walk_free(walk);
	return error;
}

static int annotate_one(struct list *list, const struct commit *start, const char *path,
                        const struct tree_entry *entry)
{
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	int error = last_change(list->command, start, path, &commit);
	if (error < 0)
		return error;
	cJSON *object = reply_entry(path, entry);
	json_put(object, "commit", reply_commit(commit));
	return list_add(list, object);
}

static int annotate_directory(struct list *list, const struct commit *start, const char *path,
                              const struct pointer *root)
{
	struct tree_iterator *iterator = NULL;
	const struct tree_entry *entry;
	struct message *message = list->command->message;
	int error = tree_iterate(list->command->lake->odb, root, NULL, 0, &iterator, message);
	while (!error) {
		error = tree_next(iterator, &entry, message);
		if (error < 0)
			break;
		CLEANUP(free_pointer) char *below = NULL;
		if (text_format(&below, "%s%s%s", path, path[0] ? "/" : "", entry->name) < 0)
			error = -ERR_NO_MEMORY;
		else
			error = annotate_one(list, start, below, entry);
	}
	tree_iterator_free(iterator);
	return error == -ERR_NOT_FOUND ? 0 : error;
}

int command_annotate(struct command *command)
{
	const char *given;
	char path[PATH_BYTES_MAX];
	CLEANUP(commit_pointer_free) struct commit *start = NULL;
	CLEANUP(free_pointer) struct tree_entry *entry = NULL;
	struct list list;

	int error = command_commit(command, "revision", &start);
	if (!error)
		error = argument_string(command, "path", &given);
	if (!error)
		error = path_normalise(given ? given : "", path, command->message);
	if (!error && path[0])
		error = tree_find(command->lake->odb, &start->tree, path, &entry, command->message);
	if (error == -ERR_NOT_FOUND || error == -ERR_NOT_DIRECTORY)
		return fail(command->message, -ERR_NOT_FOUND, "no '%s' in that revision", path);
	if (error < 0)
		return error;
	list_begin(&list, command, "entries");
	if (entry && !S_ISDIR(entry->attributes.mode))
		error = annotate_one(&list, start, path, entry);
	else
		error = annotate_directory(&list, start, path,
		                           entry ? &entry->content.pointer : &start->tree);
	list_end(&list);
	return error;
}
