/*
 * command_undo — hides how each kind of move is taken back, and that taking back is a move, too.
 *
 * What a move was is told by the command in the reflog. "undo X" takes X back, "redo X" takes that
 * back; so undoing goes to and fro between two states, and no further into the past.
 */
#include "fs/commands/command_internal.h"

#include <stdio.h>

#define NOTE_MAX 255 /* what a reflog keeps of a command */

/* The command of the move that takes back the one by `command`. */
static void note_of(const char *command, char ret_note[NOTE_MAX + 1])
{
	bool undone = strncmp(command, "undo ", 5) == 0;
	bool redone = strncmp(command, "redo ", 5) == 0;
	snprintf(ret_note, NOTE_MAX + 1, "%s %s", undone ? "redo" : "undo",
	         command + (undone || redone ? 5 : 0));
}

static const char *without_prefix(const char *command)
{
	bool prefixed = strncmp(command, "undo ", 5) == 0 || strncmp(command, "redo ", 5) == 0;
	return command + (prefixed ? 5 : 0);
}

/* Was it a renaming of or to `name`? Then to or from which name? */
static bool renamed(const char *command, const char *name, char ret_other[REF_NAME_MAX + 1])
{
	char from[REF_NAME_MAX + 2], to[REF_NAME_MAX + 2];
	if (sscanf(without_prefix(command), "branch rename %129s %129s", from, to) != 2 ||
	    strlen(from) > REF_NAME_MAX || strlen(to) > REF_NAME_MAX)
		return false;
	const char *other = strcmp(name, from) == 0 ? to : strcmp(name, to) == 0 ? from : NULL;
	if (!other)
		return false;
	strcpy(ret_other, other);
	return true;
}

static void reply_undone(struct command *command, const char *branch, const struct ref_move *move)
{
	char time[32];
	time_format(move->time_ms, time);
	cJSON_AddStringToObject(command->reply, "branch", branch);
	reply_path(command->reply, "undone", move->command, strlen(move->command));
	reply_path(command->reply, "by", move->who, strlen(move->who));
	cJSON_AddStringToObject(command->reply, "time", time);
}

/* -- a renaming -- */

static int undo_rename(struct command *command, const struct ref *ref, const char *former)
{
	const struct ref_move *last = &ref->moves[0];
	const struct ref_rights rights = command_rights(command);
	char note[NOTE_MAX + 1];
	note_of(last->command, note);
	struct ref_author author = {
	        .who = command->caller->name, .command = note, .rights = &rights};
	int error = worktree_rename_branch(command->lake->worktrees, ref->name, former, &author,
	                                   command->message);
	if (error == -ERR_EXISTS)
		return fail(command->message, error,
		            "'%s' was renamed from '%s', and there is another '%s' by now",
		            ref->name, former, former);
	if (error < 0)
		return error;
	reply_undone(command, former, last);
	cJSON_AddStringToObject(command->reply, "renamed_from", ref->name);
	reply_id(command->reply, "commit", &ref->commit.id);
	return 0;
}

/* -- a deletion, and the undoing of one -- */

static int restore_deleted(struct command *command, const struct ref *deleted)
{
	const struct ref_rights rights = command_rights(command);
	char note[NOTE_MAX + 1];
	note_of(deleted->moves[0].command, note);
	struct ref_author author = {
	        .who = command->caller->name, .command = note, .rights = &rights};
	int error = ref_restore(command->lake->store, REF_BRANCH, deleted->name, &author,
	                        command->message);
	if (error < 0)
		return error;
	reply_undone(command, deleted->name, &deleted->moves[0]);
	reply_id(command->reply, "commit", &deleted->commit.id);
	return 0;
}

/* There is no such branch. One that goes by another name since is not made twice. */
static int undo_deleted(struct command *command, const char *name)
{
	CLEANUP(ref_release) struct ref deleted = {0};
	CLEANUP(ref_release) struct ref now = {0};
	struct object_store *store = command->lake->store;
	char other[REF_NAME_MAX + 1];
	int error = ref_read_deleted(store, REF_BRANCH, name, &deleted, command->message);
	if (error == -ERR_NOT_FOUND)
		return fail(command->message, error,
		            "no branch '%s', and none of that name was deleted", name);
	if (error < 0)
		return error;
	if (!renamed(deleted.moves[0].command, name, other))
		return restore_deleted(command, &deleted);
	error = ref_read(store, REF_BRANCH, other, &now, command->message);
	if (error == -ERR_NOT_FOUND)
		return restore_deleted(command, &deleted);
	if (error < 0)
		return error;
	if (strcmp(now.moves[0].command, deleted.moves[0].command) == 0)
		return undo_rename(command, &now, name);
	return fail(command->message, -ERR_NOT_FOUND,
	            "'%s' was renamed to '%s', which has moved since; `lakectl branch rename %s "
	            "%s` gives it its name back",
	            name, other, other, name);
}

static int delete_again(struct command *command, const struct ref *ref)
{
	const struct ref_rights rights = command_rights(command);
	char note[NOTE_MAX + 1];
	note_of(ref->moves[0].command, note);
	struct ref_author author = {
	        .who = command->caller->name, .command = note, .rights = &rights};
	int error = worktree_delete_branch(command->lake->worktrees, ref->name, false, &author,
	                                   command->message);
	if (error < 0)
		return error;
	reply_undone(command, ref->name, &ref->moves[0]);
	cJSON_AddBoolToObject(command->reply, "deleted", true);
	reply_id(command->reply, "commit", &ref->commit.id);
	return 0;
}

/* -- any other move -- */

static int move_back(struct command *command, const struct ref *ref)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	const struct ref_move *last = &ref->moves[0];
	const struct ref_rights rights = command_rights(command);
	char note[NOTE_MAX + 1];
	int error = worktree_get(command->lake->worktrees, ref->name, &worktree, command->message);
	if (error < 0)
		return error;
	note_of(last->command, note);
	struct move_options options = {.expected = &ref->commit,
	                               .who = command->caller->name,
	                               .command = note,
	                               .discard = argument_flag(command, "discard"),
	                               .rights = &rights};
	error = worktree_move(worktree, &last->before, &options, command->message);
	if (error < 0)
		return error;
	reply_undone(command, ref->name, last);
	reply_id(command->reply, "commit", &last->before.id);
	reply_id(command->reply, "was", &ref->commit.id);
	return 0;
}

static int undo_move(struct command *command, const struct ref *ref)
{
	const struct ref_move *last = &ref->moves[0];
	char former[REF_NAME_MAX + 1];
	if (renamed(last->command, ref->name, former))
		return undo_rename(command, ref, former);
	/* Two long names are more than a reflog keeps. */
	if (id_equal(&last->before.id, &last->after.id))
		return fail(command->message, -ERR_INVALID,
		            "the last move of '%s' gave it its name; `lakectl branch rename` gives "
		            "it the former one",
		            ref->name);
	if (!pointer_is_none(&last->before))
		return move_back(command, ref);
	if (strncmp(last->command, "undo ", 5) == 0)
		return delete_again(command, ref);
	return fail(command->message, -ERR_INVALID,
	            "branch '%s' has not moved since it was created; `lakectl branch delete %s` "
	            "removes it",
	            ref->name, ref->name);
}

int command_undo(struct command *command)
{
	const char *name;
	CLEANUP(ref_release) struct ref ref = {0};
	int error = argument_required(command, "branch", &name);
	if (!error)
		error = ref_name_check(name, command->message);
	if (!error)
		error = ref_read(command->lake->store, REF_BRANCH, name, &ref, command->message);
	if (error == -ERR_NOT_FOUND)
		return undo_deleted(command, name);
	return error ? error : undo_move(command, &ref);
}
