/*
 * command_protect — protect, unprotect: hides who may, what an option replaces, and how what was
 * changed is seen on this host at once.
 *
 * What a protection forbids is held in refs/ref.h, on every host. Who may change it is asked here:
 * whoever owns a lake's directory on some host, or is root there. Whoever can write to the store
 * without these programs is the store's to stop (packaging/README.md).
 */
#include "fs/commands/command_internal.h"
#include "fs/publish/verdict.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

#define PROTECT_TRIES_MAX 16

void reply_protection(cJSON *object, const struct protection *protection)
{
	if (!protection_any(protection))
		return;
	cJSON *reply = cJSON_AddObjectToObject(object, "protection");
	if (protection->flags & PROTECT_DIRECT_WRITES)
		cJSON_AddBoolToObject(reply, "no_direct_writes", true);
	if (protection->flags & PROTECT_AUDITS)
		cJSON_AddBoolToObject(reply, "require_audits", true);
	if (protection->publishers[0])
		cJSON_AddStringToObject(reply, "publishers", protection->publishers);
	if (!id_is_zero(&protection->rules))
		reply_id(reply, "rules", &protection->rules);
	cJSON_AddBoolToObject(reply, "read_only", protection_read_only(protection));
}

int command_administrator(struct command *command, const char *what)
{
	const struct caller *caller = command->caller;
	struct stat owner;
	if (caller->uid == 0)
		return 0;
	if (stat(command->lake->directory, &owner) < 0)
		return fail(command->message, error_system(errno), "cannot look at %s",
		            command->lake->directory);
	if (owner.st_uid == caller->uid)
		return 0;
	return fail(command->message, -ERR_REFUSED,
	            "%s may not %s branches: only root and the owner of %s may", caller->name, what,
	            command->lake->directory);
}

static int arguments_protection(struct command *command, struct protection *ret_protection)
{
	struct protection protection = {0};
	const char *group;
	int error = argument_string(command, "publishers", &group);
	if (error < 0)
		return error;
	if (group && (!group[0] || strlen(group) > PUBLISHERS_MAX || !group_known(group)))
		return fail(command->message, -ERR_INVALID,
		            "this host knows no group '%.*s'; `getent group` lists those it knows",
		            PUBLISHERS_MAX, group);
	if (group)
		strcpy(protection.publishers, group);
	if (argument_flag(command, "require_audits"))
		protection.flags |= PROTECT_AUDITS;
	if (argument_flag(command, "no_direct_writes") || (!group && !protection.flags))
		protection.flags |= PROTECT_DIRECT_WRITES;
	*ret_protection = protection;
	return 0;
}

static int read_either(struct command *command, const char *name, bool lift, struct ref *ret_ref)
{
	struct object_store *store = command->lake->store;
	int error = ref_read(store, REF_BRANCH, name, ret_ref, command->message);
	if (error == -ERR_NOT_FOUND && lift)
		error = ref_read_deleted(store, REF_BRANCH, name, ret_ref, NULL);
	return error;
}

/* `wanted` takes over the rules, unless a deleted branch is to be free of everything. */
static int protect(struct command *command, const char *name, struct protection *wanted, bool lift,
                   bool *ret_changed)
{
	int error = -ERR_MOVED;
	for (int i = 0; error == -ERR_MOVED && i < PROTECT_TRIES_MAX; i++) {
		CLEANUP(ref_release) struct ref ref = {0};
		error = read_either(command, name, lift, &ref);
		if (error < 0)
			return error;
		bool deleted = pointer_is_none(&ref.moves[0].after);
		wanted->rules = deleted ? id_zero : ref.protection.rules;
		*ret_changed = !protection_equal(wanted, &ref.protection);
		if (!*ret_changed)
			return 0;
		error = ref_protect(command->lake->store, &ref, wanted, command->message);
	}
	return error;
}

/* Working trees here know as soon as the command has returned. Where the store goes away right
 * now the follower makes up for it. */
static void tell_worktree(struct command *command, const char *name)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	if (worktree_get(command->lake->worktrees, name, &worktree, NULL) == 0)
		(void)worktree_refresh(worktree, NULL);
}

/* The append-only log, and the receivers that the branch's rules name. It is done whatever becomes
 * of these. */
static void tell_people(struct command *command, const char *name, const char *what,
                        const struct protection *protection)
{
	struct message why = {0};
	cJSON *entry = cJSON_CreateObject();
	const struct webhook_event event = {
	        .event = "protection-changed", .branch = name, .changed = -1};
	cJSON_AddStringToObject(entry, "who", command->caller->name);
	cJSON_AddStringToObject(entry, "what", what);
	cJSON_AddStringToObject(entry, "branch", name);
	reply_protection(entry, protection);
	int error = audit_log_append(command->lake->store, entry, &why);
	cJSON_Delete(entry);
	if (error)
		reply_warning(command, "the audit log has no entry of this: %s",
		              why.text[0] ? why.text : error_text(error));
	command_event(command, &protection->rules, &event);
}

static int run(struct command *command, bool lift)
{
	const char *name, *what = lift ? "unprotect" : "protect";
	struct protection wanted = {0};
	bool changed = false;
	int error = argument_required(command, "branch", &name);
	if (!error)
		error = ref_name_check(name, command->message);
	if (!error)
		error = command_administrator(command, what);
	if (!error && !lift)
		error = arguments_protection(command, &wanted);
	if (!error)
		error = protect(command, name, &wanted, lift, &changed);
	if (error < 0)
		return error;
	tell_worktree(command, name);
	cJSON_AddStringToObject(command->reply, "branch", name);
	cJSON_AddBoolToObject(command->reply, "protected", protection_binds(&wanted));
	reply_protection(command->reply, &wanted);
	if ((wanted.flags & PROTECT_AUDITS) && id_is_zero(&wanted.rules))
		reply_warning(command,
		              "no audits are configured for %s yet, so nothing can be published to "
		              "it until they are",
		              name);
	if (changed)
		tell_people(command, name, what, &wanted);
	return 0;
}

int command_protect(struct command *command)
{
	return run(command, false);
}

int command_unprotect(struct command *command)
{
	return run(command, true);
}
