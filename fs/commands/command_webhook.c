/*
 * command_webhook — webhook list, add, remove, test: hides which events there are, and how what is
 * in the rules and what this host knows of a receiver come together.
 */
#include "fs/commands/command_rules.h"
#include "fs/json.h"

#include <errno.h>

static const char *const events_known[] = {
        "published", "merged", "committed", "audit-failed", "protection-changed",
};
/* Without --event: what people want to hear of a branch that others rely on. */
static const char *const events_default[] = {
        "published",
        "merged",
        "audit-failed",
        "protection-changed",
};

/* -- list -- */

static void reply_webhook(struct command *command, cJSON *list, const struct webhook_rule *rule)
{
	struct webhook_standing standing;
	struct message why = {{0}};
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "name", rule->name);
	cJSON_AddStringToObject(object, "url", rule->url);
	cJSON *events = cJSON_AddArrayToObject(object, "events");
	for (size_t i = 0; i < rule->event_count; i++)
		json_append(events, cJSON_CreateString(rule->events[i]));
	if (rule->secret_file)
		cJSON_AddStringToObject(object, "secret_file", rule->secret_file);
	webhook_standing(command->lake->webhooks, rule->url, &standing);
	cJSON_AddNumberToObject(object, "waiting", (double)standing.waiting);
	if (standing.trouble[0] || webhook_check(rule, &why) < 0)
		cJSON_AddStringToObject(object, "trouble",
		                        standing.trouble[0] ? standing.trouble : why.text);
	json_append(list, object);
}

static int list_webhooks(struct command *command, const char *branch)
{
	CLEANUP(rules_cleanup) struct rules *rules = NULL;
	int error = command_load_rules(command, branch, &rules);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", branch);
	cJSON *list = cJSON_AddArrayToObject(command->reply, "webhooks");
	for (size_t i = 0; i < rules->webhook_count; i++)
		reply_webhook(command, list, &rules->webhooks[i]);
	return 0;
}

/* -- add and remove -- */

static int check_event(const char *event, struct message *message)
{
	for (size_t i = 0; i < ARRAY_SIZE(events_known); i++)
		if (strcmp(events_known[i], event) == 0)
			return 0;
	return fail(message, -ERR_INVALID,
	            "no event '%.64s'; there are published, merged, committed, audit-failed and "
	            "protection-changed",
	            event);
}

/* Borrowed from the request, or from us; the caller frees the array. */
static int argument_events(const struct command *command, struct webhook_rule *rule)
{
	const cJSON *list = cJSON_GetObjectItemCaseSensitive(command->request, "events"), *item;
	int given = cJSON_GetArraySize(list);
	if (given > RULE_LIST_MAX)
		return fail(command->message, -ERR_INVALID, "too many events");
	rule->events = calloc((size_t)given + ARRAY_SIZE(events_default) + 1, sizeof *rule->events);
	if (!rule->events)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, list) {
		if (!cJSON_IsString(item))
			return fail(command->message, -ERR_INVALID, "an event is not a string");
		int error = check_event(item->valuestring, command->message);
		if (error < 0)
			return error;
		rule->events[rule->event_count++] = item->valuestring;
	}
	for (size_t i = 0; !given && i < ARRAY_SIZE(events_default); i++)
		rule->events[rule->event_count++] = (char *)events_default[i];
	return 0;
}

static int edit_add(void *context, const struct rules *rules, struct rules **ret_rules,
                    struct message *message)
{
	return rules_with_webhook(rules, context, ret_rules, message);
}

static int add_webhook(struct command *command, const char *branch)
{
	const char *name, *url, *secret_file;
	struct webhook_rule rule = {0};
	struct message why = {{0}};
	int error = argument_required(command, "name", &name);
	if (!error)
		error = argument_required(command, "url", &url);
	if (!error)
		error = argument_string(command, "secret_file", &secret_file);
	if (!error)
		error = argument_events(command, &rule);
	if (!error) {
		rule.name = (char *)name;
		rule.url = (char *)url;
		rule.secret_file = (char *)secret_file;
		error = command_edit_rules(command, branch, "webhook add", name, edit_add, &rule);
	}
	free(rule.events);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "webhook", name);
	if (webhook_check(&rule, &why) < 0)
		reply_warning(command, "%s; until that is mended this host sends nothing to %s",
		              why.text, name);
	return 0;
}

static int edit_remove(void *context, const struct rules *rules, struct rules **ret_rules,
                       struct message *message)
{
	return rules_without_webhook(rules, context, ret_rules, message);
}

static int remove_webhook(struct command *command, const char *branch)
{
	const char *name;
	int error = argument_required(command, "name", &name);
	if (!error)
		error = command_edit_rules(command, branch, "webhook remove", name, edit_remove,
		                           (void *)name);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "webhook", name);
	cJSON_AddBoolToObject(command->reply, "removed", true);
	return 0;
}

/* -- test -- */

/* True: it was taken. */
static bool try_webhook(struct command *command, const char *branch,
                        const struct webhook_rule *rule, cJSON *list)
{
	struct message why = {{0}};
	const struct webhook_event event = {.event = "test",
	                                    .branch = branch,
	                                    .who = command->caller->name,
	                                    .message = "is anybody there?",
	                                    .changed = -1};
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "webhook", rule->name);
	int status = webhook_try(command->lake->webhooks, rule, &event, &why);
	if (status > 0)
		cJSON_AddNumberToObject(object, "status", status);
	if (why.text[0])
		cJSON_AddStringToObject(object, "trouble", why.text);
	json_append(list, object);
	return status >= 200 && status < 300;
}

static int test_webhooks(struct command *command, const char *branch)
{
	CLEANUP(rules_cleanup) struct rules *rules = NULL;
	const char *name;
	size_t tried = 0, failed = 0;
	int error = argument_string(command, "name", &name);
	if (!error)
		error = command_load_rules(command, branch, &rules);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "branch", branch);
	cJSON *list = cJSON_AddArrayToObject(command->reply, "deliveries");
	for (size_t i = 0; i < rules->webhook_count; i++) {
		if (name && strcmp(name, rules->webhooks[i].name) != 0)
			continue;
		error = progress_report(&command->output->progress, "webhooks", tried++,
		                        rules->webhook_count, "receivers");
		if (error)
			return -ERR_INTERRUPTED;
		failed += !try_webhook(command, branch, &rules->webhooks[i], list);
	}
	if (!tried)
		return fail(command->message, -ERR_NOT_FOUND, "%s has no webhook%s%s", branch,
		            name ? " " : "", name ? name : "");
	return failed ? fail(command->message, error_system(EREMOTEIO),
	                     "%zu of %zu receivers did not take it", failed, tried)
	              : 0;
}

int command_webhook(struct command *command)
{
	static const struct {
		const char *action;
		int (*run)(struct command *command, const char *branch);
	} actions[] = {
	        {"list", list_webhooks},
	        {"add", add_webhook},
	        {"remove", remove_webhook},
	        {"test", test_webhooks},
	};
	const char *action, *branch;
	int error = argument_required(command, "action", &action);
	if (!error)
		error = argument_required(command, "branch", &branch);
	if (error < 0)
		return error;
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		if (strcmp(actions[i].action, action) == 0)
			return actions[i].run(command, branch);
	return fail(command->message, -ERR_INVALID, "webhook has no action '%.64s'", action);
}
