/*
 * command_audit — audit: which audits a branch has, what they have found, and the audit log.
 */
#include "fs/publish/audit.h"
#include "fs/commands/command_rules.h"
#include "fs/json.h"

#include <stdio.h>

#define LOG_LIMIT_DEFAULT 50
#define LOG_LIMIT_MAX 10000

/* -- configuring -- */

static cJSON *texts_json(char *const *texts, size_t count)
{
	cJSON *array = cJSON_CreateArray();
	for (size_t i = 0; i < count; i++)
		json_append(array, cJSON_CreateString(texts[i]));
	return array;
}

static int list_audits(struct command *command)
{
	CLEANUP(rules_cleanup) struct rules *rules = NULL;
	const char *branch;
	struct list list;
	int error = argument_required(command, "branch", &branch);
	if (!error)
		error = command_load_rules(command, branch, &rules);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", branch);
	list_begin(&list, command, "audits");
	for (size_t i = 0; !error && i < rules->audit_count; i++) {
		const struct audit_rule *audit = &rules->audits[i];
		cJSON *object = cJSON_CreateObject();
		cJSON_AddStringToObject(object, "name", audit->name);
		json_put(object, "paths", texts_json(audit->paths, audit->path_count));
		json_put(object, "command", texts_json(audit->argv, audit->argument_count));
		cJSON_AddNumberToObject(object, "timeout_s", audit->timeout_s);
		error = list_add(&list, object);
	}
	list_end(&list);
	return error;
}

/* The strings stay the request's. */
static int argument_texts(struct command *command, const char *name, char ***ret_texts,
                          size_t *ret_count)
{
	const cJSON *array = cJSON_GetObjectItemCaseSensitive(command->request, name), *item;
	if (array && !cJSON_IsArray(array))
		return fail(command->message, -ERR_INVALID, "argument '%s' is not a list", name);
	*ret_texts = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof **ret_texts);
	if (!*ret_texts)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, array) {
		if (!cJSON_IsString(item))
			return fail(command->message, -ERR_INVALID,
			            "argument '%s' has an item that is no string", name);
		(*ret_texts)[(*ret_count)++] = item->valuestring;
	}
	return 0;
}

static int with_audit(void *context, const struct rules *rules, struct rules **ret_rules,
                      struct message *message)
{
	return rules_with_audit(rules, context, ret_rules, message);
}

static int without_audit(void *context, const struct rules *rules, struct rules **ret_rules,
                         struct message *message)
{
	return rules_without_audit(rules, context, ret_rules, message);
}

/* It may be meant for other hosts; on this one nothing could be published. */
static void warn_of_program(struct command *command, const char *name)
{
	CLEANUP(free_pointer) char *path = NULL;
	struct message why = {{0}};
	const struct lake *lake = command->lake;
	if (audit_program(lake->directory, lake->mountpoint, name, &path, &why) < 0)
		reply_warning(command, "%s; until it is there, nothing can be published from here",
		              why.text[0] ? why.text : "the audit's program was not found");
}

static int add_audit(struct command *command)
{
	const char *branch, *name;
	CLEANUP(free_pointer) char **paths = NULL;
	CLEANUP(free_pointer) char **argv = NULL;
	struct audit_rule audit = {0};
	double timeout_s = argument_number(command, "timeout_s", AUDIT_TIMEOUT_S_DEFAULT);
	int error = argument_required(command, "branch", &branch);
	if (!error)
		error = argument_required(command, "name", &name);
	if (!error)
		error = argument_texts(command, "patterns", &paths, &audit.path_count);
	if (!error)
		error = argument_texts(command, "program", &argv, &audit.argument_count);
	if (error < 0)
		return error;
	if (!audit.argument_count)
		return fail(command->message, -ERR_INVALID,
		            "which program? lakectl audit add %s %s -- PROGRAM [ARGUMENT]...",
		            branch, name);
	if (!(timeout_s >= 1 && timeout_s <= AUDIT_TIMEOUT_S_MAX))
		return fail(command->message, -ERR_INVALID, "--timeout takes 1 to %d seconds",
		            AUDIT_TIMEOUT_S_MAX);
	audit.name = (char *)name;
	audit.paths = paths;
	audit.argv = argv;
	audit.timeout_s = (int)timeout_s;
	error = command_edit_rules(command, branch, "audit add", name, with_audit, &audit);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "added", name);
	warn_of_program(command, argv[0]);
	return 0;
}

/* Rules that are lost would otherwise keep everybody from publishing for good. */
static int remove_all(struct command *command, const char *branch, const char *name)
{
	if (name)
		return fail(command->message, -ERR_INVALID, "NAME and --all do not go together");
	int error = command_edit_rules(command, branch, "audit remove", "--all", NULL, NULL);
	if (!error)
		cJSON_AddStringToObject(command->reply, "removed", "--all");
	return error;
}

static int remove_audit(struct command *command)
{
	const char *branch, *name;
	int error = argument_required(command, "branch", &branch);
	if (!error)
		error = argument_string(command, "name", &name);
	if (!error && argument_flag(command, "all"))
		return remove_all(command, branch, name);
	if (!error)
		error = argument_required(command, "name", &name);
	if (!error)
		error = command_edit_rules(command, branch, "audit remove", name, without_audit,
		                           (void *)name);
	if (!error)
		cJSON_AddStringToObject(command->reply, "removed", name);
	return error;
}

/* -- what was found and done -- */

static int list_entry(void *context, const cJSON *entry)
{
	cJSON *copy = cJSON_Duplicate(entry, true);
	cJSON_DeleteItemFromObjectCaseSensitive(copy, "version");
	return list_add(context, copy);
}

static int list_log(struct command *command)
{
	const char *branch;
	struct list list;
	double limit = argument_number(command, "limit", LOG_LIMIT_DEFAULT);
	int error = argument_string(command, "branch", &branch);
	if (!error && branch)
		error = ref_name_check(branch, command->message);
	if (error < 0)
		return error;
	if (!(limit >= 1 && limit <= LOG_LIMIT_MAX))
		return fail(command->message, -ERR_INVALID, "-n takes a number from 1 to %d",
		            LOG_LIMIT_MAX);
	list_begin(&list, command, "entries");
	error = audit_log_list(command->lake->store, 0, branch, (size_t)limit, list_entry, &list,
	                       command->message);
	list_end(&list);
	return error;
}

static int add_verdict(void *context, const char *key, const struct verdict *verdict,
                       const struct message *why)
{
	cJSON *array = context;
	cJSON *object = verdict ? verdict_json(verdict) : cJSON_CreateObject();
	if (verdict) {
		cJSON_DeleteItemFromObjectCaseSensitive(object, "version");
	} else {
		cJSON_AddStringToObject(object, "key", key);
		reply_path(object, "damaged", why->text, strlen(why->text));
	}
	json_append(array, object);
	return 0;
}

void reply_audits(struct command *command, const struct id *commit)
{
	struct message why = {{0}};
	cJSON *array = cJSON_CreateArray();
	int error = verdict_list(command->lake->store, commit, add_verdict, array, &why);
	if (error < 0)
		reply_warning(command, "what audits found of it is not known now: %s",
		              why.text[0] ? why.text : error_text(error));
	if (cJSON_GetArraySize(array))
		json_put(command->reply, "audits", array);
	else
		cJSON_Delete(array);
}

int command_audit(struct command *command)
{
	static const struct {
		const char *action;
		command_fn *run;
	} actions[] = {
	        {"list", list_audits}, {"add", add_audit},         {"remove", remove_audit},
	        {"log", list_log},     {"run", command_audit_run},
	};
	const char *action;
	int error = argument_string(command, "action", &action);
	if (error < 0)
		return error;
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		if (strcmp(actions[i].action, action ? action : "list") == 0)
			return actions[i].run(command);
	return fail(command->message, -ERR_INVALID, "audit cannot '%s'", action);
}
