/*
 * command_work — commit, status, refresh, restore, reset: what touches one working tree.
 */
#include "fs/commands/conflicts.h"
#include "fs/json.h"

#include <stdio.h>

#define OPEN_WAIT_MS_DEFAULT 5000

/* -- commit -- */

struct meta_list {
	struct meta_pair *items;
	size_t count;
};

static void meta_release(struct meta_list *meta)
{
	free(meta->items);
}

/* Borrows from the request. */
static int argument_meta(const struct command *command, struct meta_list *ret_meta)
{
	const cJSON *object = cJSON_GetObjectItemCaseSensitive(command->request, "meta"), *item;
	if (!object)
		return 0;
	if (!cJSON_IsObject(object))
		return fail(command->message, -ERR_INVALID, "argument 'meta' is not an object");
	ret_meta->items = calloc((size_t)cJSON_GetArraySize(object) + 1, sizeof *ret_meta->items);
	if (!ret_meta->items)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, object) {
		if (!cJSON_IsString(item))
			return fail(command->message, -ERR_INVALID, "meta '%s' is not a string",
			            item->string);
		ret_meta->items[ret_meta->count++] =
		        (struct meta_pair){.key = item->string, .value = item->valuestring};
	}
	return 0;
}

static void reply_commit_result(cJSON *reply, const struct worktree *worktree,
                                const struct commit_result *result)
{
	reply_id(reply, "commit", &result->commit.id);
	cJSON_AddStringToObject(reply, "branch", worktree_branch(worktree));
	cJSON_AddNumberToObject(reply, "files", (double)result->files);
	if (result->more)
		cJSON_AddBoolToObject(reply, "more", true);
	cJSON_AddNumberToObject(reply, "bytes_new", (double)result->bytes_new);
	cJSON_AddNumberToObject(reply, "bytes_known", (double)result->bytes_known);
	cJSON_AddNumberToObject(reply, "bytes_stored", (double)result->bytes_stored);
	cJSON_AddNumberToObject(reply, "packs", (double)result->packs);
	cJSON_AddBoolToObject(reply, "rebased", result->rebased);
}

/* Whoever reads that the store is away, or refuses, wonders about the work. */
static int kept(struct message *message, int error)
{
	if (error != -ERR_STORE_AWAY && error != -ERR_REFUSED)
		return error;
	struct message why = *message;
	return fail(message, error, "%s; your changes are kept%s",
	            why.text[0] ? why.text : error_text(error),
	            error == -ERR_STORE_AWAY ? ": commit again later" : "");
}

struct committing_here {
	struct command *command;
	const struct worktree *worktree;
};

static void reply_conflicted(void *context, const char *path)
{
	cJSON *reply = ((struct committing_here *)context)->command->reply;
	cJSON *array = cJSON_GetObjectItemCaseSensitive(reply, "conflicts");
	cJSON *object = cJSON_CreateObject();
	reply_path(object, "path", path, strlen(path));
	json_append(array ? array : cJSON_AddArrayToObject(reply, "conflicts"), object);
}

static void reply_not_merged(void *context, const struct merge_result *merged)
{
	struct committing_here *here = context;
	reply_unmerged(here->command, merged, worktree_branch(here->worktree));
}

int command_commit_run(struct command *command)
{
	const char *text;
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(paths_release) struct paths paths = {0};
	CLEANUP(meta_release) struct meta_list meta = {0};
	struct commit_result result = {0};

	int error = command_worktree(command, "branch", &worktree);
	if (!error)
		error = argument_string(command, "message", &text);
	if (!error && (!text || !*text))
		error = fail(command->message, -ERR_INVALID,
		             "commit needs a message: lakectl commit [BRANCH] -m MESSAGE");
	if (!error)
		error = argument_paths(command, "paths", &paths);
	if (!error)
		error = argument_meta(command, &meta);
	if (!error)
		error = command_before_commit(command, worktree, &paths, text);
	if (error < 0)
		return error;
	const struct ref_rights rights = command_rights(command);
	struct committing_here here = {command, worktree};
	struct commit_options options = {
	        .author = command->caller->name,
	        .message = text,
	        .command = "commit",
	        .rights = &rights,
	        .meta = meta.items,
	        .meta_count = meta.count,
	        .paths = paths.items,
	        .path_count = paths.count,
	        .allow_open = argument_flag(command, "allow_open"),
	        .allow_empty = argument_flag(command, "allow_empty"),
	        .wait_ms = (int)argument_number(command, "wait_ms", OPEN_WAIT_MS_DEFAULT),
	        .progress = &command->output->progress,
	        .conflicted = reply_conflicted,
	        .unmerged = reply_not_merged,
	        .context = &here,
	};
	error = worktree_commit(worktree, &options, &result, command->message);
	if (!error) {
		reply_commit_result(command->reply, worktree, &result);
		command_after_commit(command, worktree, &result.commit, text);
	}
	return kept(command->message, error);
}

/* -- status -- */

static int list_uncommitted(void *context, const struct change *change)
{
	return list_add(context, reply_change(change));
}

static int list_open(void *argument, const char *branch, const char *path, int pid)
{
	cJSON *object = cJSON_CreateObject();
	reply_path(object, "path", path, strlen(path));
	cJSON_AddNumberToObject(object, "pid", pid);
	json_append(argument, object);
	return 0;
}

int command_status(struct command *command)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(commit_pointer_free) struct commit *base = NULL;
	CLEANUP(paths_release) struct paths paths = {0};
	struct list list;

	int error = command_worktree(command, "branch", &worktree);
	if (!error)
		error = argument_paths(command, "paths", &paths);
	/* A store that is away is no reason not to tell. */
	if (!error && worktree_catch_up(worktree, NULL) == -ERR_NOT_FOUND)
		error = fail(command->message, -ERR_NOT_FOUND, "no branch '%s'",
		             worktree_branch(worktree));
	if (!error)
		error = worktree_base(worktree, &base);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", worktree_branch(worktree));
	reply_id(command->reply, "base", &base->self.id);
	error = reply_standing(command, worktree);
	if (error < 0)
		return error;
	struct protection protection;
	worktree_protection(worktree, &protection);
	reply_protection(command->reply, &protection);
	error = worktrees_open_files(command->lake->worktrees, worktree_branch(worktree), list_open,
	                             cJSON_AddArrayToObject(command->reply, "open_for_write"));
	if (error < 0)
		return error;
	list_begin(&list, command, "changes");
	error = worktree_changes(worktree, paths.items, paths.count, list_uncommitted, &list,
	                         command->message);
	list_end(&list);
	return error;
}

/* -- refresh -- */

static int count_change(void *context, const struct change *change)
{
	(*(uint64_t *)context)++;
	return 0;
}

/* What came of it, from `before` to `after`. */
static int reply_refreshed(struct command *command, const struct commit *before,
                           const struct commit *after)
{
	uint64_t changed = 0;
	reply_id(command->reply, "commit", &after->self.id);
	if (id_equal(&before->self.id, &after->self.id))
		return 0;
	int error = diff_trees(command->lake->odb, &before->tree, &after->tree,
	                       &(struct diff_options){0}, count_change, &changed, command->message);
	reply_id(command->reply, "was", &before->self.id);
	cJSON_AddNumberToObject(command->reply, "changed", (double)changed);
	return error;
}

int command_refresh(struct command *command)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(commit_pointer_free) struct commit *before = NULL;
	CLEANUP(commit_pointer_free) struct commit *after = NULL;
	int error = command_worktree(command, "branch", &worktree);
	if (!error)
		error = worktree_base(worktree, &before);
	if (!error)
		error = worktree_refresh(worktree, command->message);
	if (!error)
		error = worktree_base(worktree, &after);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", worktree_branch(worktree));
	error = reply_refreshed(command, before, after);
	if (!error)
		error = reply_standing(command, worktree);
	return error;
}

/* -- restore and reset -- */

int command_restore(struct command *command)
{
	const char *from;
	uint64_t changed = 0;
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	CLEANUP(paths_release) struct paths paths = {0};

	int error = command_worktree(command, "branch", &worktree);
	if (!error)
		error = argument_string(command, "from", &from);
	if (!error && from)
		error = command_commit(command, "from", &commit);
	if (!error)
		error = argument_paths(command, "paths", &paths);
	if (error < 0)
		return error;
	if (!paths.count)
		return fail(command->message, -ERR_INVALID,
		            "restore needs paths: lakectl restore [BRANCH] [--from REV] -- PATH... "
		            "('.' is everything)");
	error = worktree_restore(worktree, commit, paths.items, paths.count, &changed,
	                         command->message);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", worktree_branch(worktree));
	bool more = changed > RESTORED_COUNT_MAX;
	cJSON_AddNumberToObject(command->reply, "restored",
	                        (double)(more ? RESTORED_COUNT_MAX : changed));
	if (more)
		cJSON_AddBoolToObject(command->reply, "more", true);
	return 0;
}

int command_reset(struct command *command)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	char note[160], hex[ID_HEX + 1];

	int error = command_worktree(command, "branch", &worktree);
	if (!error)
		error = command_commit(command, "revision", &commit);
	if (error < 0)
		return error;
	id_to_hex(&commit->self.id, hex);
	snprintf(note, sizeof note, "reset %.12s", hex);
	const struct ref_rights rights = command_rights(command);
	struct move_options options = {.who = command->caller->name,
	                               .command = note,
	                               .rights = &rights,
	                               .discard = argument_flag(command, "discard")};
	error = worktree_move(worktree, &commit->self, &options, command->message);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", worktree_branch(worktree));
	reply_id(command->reply, "commit", &commit->self.id);
	return 0;
}
