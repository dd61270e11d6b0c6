/*
 * command_rules — hides how the rules of a branch are edited: the new ones are stored first, then
 * the branch's ref is moved to them by compare-and-swap, and again if somebody else was first.
 *
 * A crash in between leaves rules that nobody names, which costs their bytes.
 */
#include "fs/commands/command_rules.h"

#include <stdio.h>

#include "fs/publish/verdict.h"

#define EDIT_TRIES_MAX 16

/* One attempt; *ret_before: the rules that held until now. */
static int attempt(struct command *command, const char *branch, rules_edit_fn *edit, void *context,
                   struct id *ret_before, struct id *ret_after)
{
	struct object_store *store = command->lake->store;
	CLEANUP(ref_release) struct ref ref = {0};
	CLEANUP(rules_cleanup) struct rules *before = NULL;
	CLEANUP(rules_cleanup) struct rules *after = NULL;
	int error = ref_read(store, REF_BRANCH, branch, &ref, command->message);
	if (error == -ERR_NOT_FOUND)
		return fail(command->message, error, "no branch '%s'; `lakectl branch` lists them",
		            branch);
	struct protection wanted = ref.protection;
	if (!error && edit)
		error = rules_load(store, &ref.protection.rules, &before, command->message);
	if (!error && edit)
		error = edit(context, before, &after, command->message);
	if (!error)
		error = rules_store(store, after, &wanted.rules, command->message);
	*ret_before = ref.protection.rules;
	*ret_after = wanted.rules;
	if (error || id_equal(ret_before, ret_after))
		return error;
	return ref_protect(store, &ref, &wanted, command->message);
}

static void tell_log(struct command *command, const char *branch, const char *what,
                     const char *name, const struct id *rules)
{
	struct message why = {{0}};
	cJSON *entry = cJSON_CreateObject();
	cJSON_AddStringToObject(entry, "who", command->caller->name);
	cJSON_AddStringToObject(entry, "what", what);
	cJSON_AddStringToObject(entry, "branch", branch);
	cJSON_AddStringToObject(entry, "rule", name);
	if (!id_is_zero(rules))
		reply_id(entry, "rules", rules);
	int error = audit_log_append(command->lake->store, entry, &why);
	cJSON_Delete(entry);
	if (error)
		reply_warning(command, "the audit log has no entry of this: %s",
		              why.text[0] ? why.text : error_text(error));
}

int command_edit_rules(struct command *command, const char *branch, const char *what,
                       const char *name, rules_edit_fn *edit, void *context)
{
	struct id before = id_zero, after = id_zero;
	char text[RULE_NAME_MAX + 64];
	int error = ref_name_check(branch, command->message);
	if (!error)
		error = command_administrator(command, "change the rules of");
	for (int i = 0; !error && i < EDIT_TRIES_MAX; i++) {
		error = attempt(command, branch, edit, context, &before, &after);
		if (error != -ERR_MOVED)
			break;
		error = i + 1 < EDIT_TRIES_MAX ? 0 : error;
	}
	if (error < 0)
		return error;
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	if (worktree_get(command->lake->worktrees, branch, &worktree, NULL) == 0)
		(void)worktree_refresh(worktree, NULL);
	cJSON_AddStringToObject(command->reply, "branch", branch);
	if (!id_is_zero(&after))
		reply_id(command->reply, "rules", &after);
	if (id_equal(&before, &after))
		return 0;
	tell_log(command, branch, what, name, &after);
	snprintf(text, sizeof text, "%s %s", what, name);
	/* Also to who is told no more. */
	const struct webhook_event event = {
	        .event = "protection-changed", .branch = branch, .message = text, .changed = -1};
	command_event(command, id_is_zero(&before) ? &after : &before, &event);
	return 0;
}

int command_load_rules(struct command *command, const char *branch, struct rules **ret_rules)
{
	CLEANUP(ref_release) struct ref ref = {0};
	int error = ref_name_check(branch, command->message);
	if (!error)
		error = ref_read(command->lake->store, REF_BRANCH, branch, &ref, command->message);
	if (error == -ERR_NOT_FOUND)
		return fail(command->message, error, "no branch '%s'; `lakectl branch` lists them",
		            branch);
	return error ? error
	             : rules_load(command->lake->store, &ref.protection.rules, ret_rules,
	                          command->message);
}
