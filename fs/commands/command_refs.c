/*
 * command_refs — branch, tag, reflog.
 */
#include "fs/commands/command_internal.h"

#include <stdio.h>

static const char *verb_of(enum ref_kind kind)
{
	return kind == REF_BRANCH ? "branch" : "tag";
}

/* -- listing -- */

static int list_ref(void *context, const struct ref *ref)
{
	struct list *list = context;
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "name", ref->name);
	reply_id(object, "commit", &ref->commit.id);
	if (ref->move_count) {
		char time[32];
		time_format(ref->moves[0].time_ms, time);
		cJSON_AddStringToObject(object, "moved", time);
	}
	if (protection_binds(&ref->protection))
		cJSON_AddBoolToObject(object, "protected", true);
	reply_protection(object, &ref->protection);
	return list_add(list, object);
}

static int list_refs(struct command *command, enum ref_kind kind)
{
	struct list list;
	list_begin(&list, command, kind == REF_BRANCH ? "branches" : "tags");
	int error = ref_list(command->lake->store, kind, true, list_ref, &list, command->message);
	list_end(&list);
	return error;
}

/* -- creating, deleting, renaming -- */

static int create_ref(struct command *command, enum ref_kind kind)
{
	const char *name, *revision;
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	char note[160];

	int error = argument_required(command, "name", &name);
	if (!error)
		error = argument_string(command, "revision", &revision);
	if (!error)
		error = ref_name_check(name, command->message);
	if (!error)
		error = command_resolve(command, revision ? revision : "main", true, &commit);
	if (error < 0)
		return error;
	snprintf(note, sizeof note, "%s create", verb_of(kind));
	const struct ref_rights rights = command_rights(command);
	struct ref_author author = {
	        .who = command->caller->name, .command = note, .rights = &rights};
	error = ref_create(command->lake->store, kind, name, &commit->self, &author,
	                   command->message);
	if (error == -ERR_EXISTS)
		return fail(command->message, error, "there is a %s '%s' already", verb_of(kind),
		            name);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, verb_of(kind), name);
	reply_id(command->reply, "commit", &commit->self.id);
	return 0;
}

static int delete_ref(struct command *command, enum ref_kind kind)
{
	const char *name;
	CLEANUP(ref_release) struct ref ref = {0};
	const struct ref_rights rights = command_rights(command);
	struct ref_author author = {.who = command->caller->name,
	                            .command = kind == REF_BRANCH ? "branch delete" : "tag delete",
	                            .rights = &rights};
	int error = argument_required(command, "name", &name);
	if (!error)
		error = ref_name_check(name, command->message);
	if (!error)
		error = ref_read(command->lake->store, kind, name, &ref, command->message);
	/* Deleted elsewhere, but what was uncommitted is still here? */
	bool force = argument_flag(command, "force");
	if (error == -ERR_NOT_FOUND && kind == REF_BRANCH && force)
		error = ref_read_deleted(command->lake->store, kind, name, &ref, command->message);
	if (!error && kind == REF_BRANCH)
		error = worktree_delete_branch(command->lake->worktrees, name, force, &author,
		                               command->message);
	else if (!error)
		error = ref_delete(command->lake->store, kind, name, &author, command->message);
	if (error == -ERR_NOT_FOUND)
		return fail(command->message, error, "no %s '%s'; `lakectl %s` lists them",
		            verb_of(kind), name, verb_of(kind));
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, verb_of(kind), name);
	cJSON_AddBoolToObject(command->reply, "deleted", true);
	reply_id(command->reply, "commit", &ref.commit.id);
	return 0;
}

static int rename_branch(struct command *command)
{
	const char *from, *to;
	char note[2 * REF_NAME_MAX + 32];
	int error = argument_required(command, "name", &from);
	if (!error)
		error = argument_required(command, "to", &to);
	if (!error)
		error = ref_name_check(from, command->message);
	if (!error)
		error = ref_name_check(to, command->message);
	if (error < 0)
		return error;
	snprintf(note, sizeof note, "branch rename %s %s", from, to);
	const struct ref_rights rights = command_rights(command);
	struct ref_author author = {
	        .who = command->caller->name, .command = note, .rights = &rights};
	error = worktree_rename_branch(command->lake->worktrees, from, to, &author,
	                               command->message);
	if (error == -ERR_NOT_FOUND)
		return fail(command->message, error, "no branch '%s'; `lakectl branch` lists them",
		            from);
	if (error == -ERR_EXISTS)
		return fail(command->message, error, "there is a branch '%s' already", to);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", to);
	cJSON_AddStringToObject(command->reply, "renamed_from", from);
	return 0;
}

static int run_on_refs(struct command *command, enum ref_kind kind)
{
	const char *action;
	int error = argument_string(command, "action", &action);
	if (error < 0)
		return error;
	if (!action || strcmp(action, "list") == 0)
		return list_refs(command, kind);
	if (strcmp(action, "create") == 0)
		return create_ref(command, kind);
	if (strcmp(action, "delete") == 0)
		return delete_ref(command, kind);
	if (kind == REF_BRANCH && strcmp(action, "rename") == 0)
		return rename_branch(command);
	return fail(command->message, -ERR_INVALID, "%s cannot '%s'", verb_of(kind), action);
}

int command_branch(struct command *command)
{
	return run_on_refs(command, REF_BRANCH);
}

int command_tag(struct command *command)
{
	return run_on_refs(command, REF_TAG);
}

/* -- the reflog -- */

static int read_branch(struct command *command, const char *name, struct ref *ret_ref)
{
	int error = ref_name_check(name, command->message);
	if (!error)
		error = ref_read(command->lake->store, REF_BRANCH, name, ret_ref, command->message);
	if (error == -ERR_NOT_FOUND)
		fail(command->message, error, "no branch '%s'; `lakectl branch` lists them", name);
	return error;
}

int command_reflog(struct command *command)
{
	const char *name;
	CLEANUP(ref_release) struct ref ref = {0};
	struct list list;
	int error = argument_required(command, "branch", &name);
	if (!error)
		error = read_branch(command, name, &ref);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", name);
	list_begin(&list, command, "moves");
	for (size_t i = 0; !error && i < ref.move_count; i++) {
		const struct ref_move *move = &ref.moves[i];
		char time[32];
		cJSON *object = cJSON_CreateObject();
		if (!pointer_is_none(&move->before))
			reply_id(object, "before", &move->before.id);
		if (!pointer_is_none(&move->after))
			reply_id(object, "after", &move->after.id);
		time_format(move->time_ms, time);
		cJSON_AddStringToObject(object, "time", time);
		reply_path(object, "who", move->who, strlen(move->who));
		reply_path(object, "command", move->command, strlen(move->command));
		error = list_add(&list, object);
	}
	list_end(&list);
	return error;
}
