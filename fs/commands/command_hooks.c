/*
 * command_hooks — hides at which points of a command hooks run and receivers are told, and what of
 * that costs anything: nothing, unless there is a hook, or the branch has rules.
 */
#include "fs/commands/command_internal.h"
#include "fs/json.h"
#include "fs/publish/rules.h"

#include <stdio.h>

#define SEND_MS 5000 /* without a daemon: for all receivers of an event together */

/* -- hooks -- */

struct hook_call {
	struct command *command;
	const struct hook_event *event;
};

static int ask_changed(void *context, struct buffer *ret_paths, struct message *message)
{
	const struct hook_event *event = ((struct hook_call *)context)->event;
	return event->changed(event->context, ret_paths, message);
}

static bool ask_progress(void *context)
{
	const struct hook_call *call = context;
	char what[64];
	snprintf(what, sizeof what, "hook %s", call->event->name);
	return progress_report(&call->command->output->progress, what, 0, 1, "hooks") < 0;
}

static void reply_hook(struct command *command, const char *name, const struct buffer *output)
{
	cJSON *array = cJSON_GetObjectItemCaseSensitive(command->reply, "hooks");
	CLEANUP(free_pointer) char *text = utf8_clean(output->data, output->length);
	if (!output->length || !text)
		return;
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "hook", name);
	cJSON_AddStringToObject(object, "output", text);
	json_append(array ? array : cJSON_AddArrayToObject(command->reply, "hooks"), object);
}

static int run_hook(struct command *command, const struct hook_event *event, bool cancellable)
{
	CLEANUP(buffer_release) struct buffer output = {0};
	struct message message = {{0}};
	struct hook_call call = {command, event};
	struct hook_event wrapped = *event;
	wrapped.changed = event->changed ? ask_changed : NULL;
	wrapped.cancelled = cancellable ? ask_progress : NULL;
	wrapped.context = &call;
	int error = hook_run(command->lake, command->caller, &wrapped, &output, &message);
	reply_hook(command, event->name, &output);
	if (error > 0)
		reply_warning(command, "%s", message.text);
	return error < 0 ? fail(command->message, error, "%s",
	                        message.text[0] ? message.text : error_text(error))
	                 : 0;
}

int command_hook_before(struct command *command, const struct hook_event *event)
{
	return run_hook(command, event, true);
}

void command_hook_after(struct command *command, const struct hook_event *event)
{
	struct message *own = command->message, message = {{0}};
	command->message = &message;
	if (run_hook(command, event, false) < 0)
		reply_warning(command, "%s", message.text);
	command->message = own;
}

static int append_path(void *context, const struct change *change)
{
	struct buffer *paths = context;
	buffer_append(paths, change->path, change->path_length);
	buffer_u8(paths, 0);
	return buffer_check(paths);
}

int changed_between(void *context, struct buffer *ret_paths, struct message *message)
{
	const struct changed_trees *trees = context;
	return diff_trees(trees->odb, trees->before, trees->after, &(struct diff_options){0},
	                  append_path, ret_paths, message);
}

/* -- receivers -- */

static bool wants(const struct webhook_rule *webhook, const char *event)
{
	for (size_t i = 0; i < webhook->event_count; i++)
		if (strcmp(webhook->events[i], event) == 0)
			return true;
	return false;
}

static void send_all(struct command *command, const struct rules *rules,
                     const struct webhook_event *event)
{
	int64_t deadline_ms = clock_monotonic_ms() + SEND_MS;
	for (size_t i = 0; i < rules->webhook_count; i++) {
		const struct webhook_rule *webhook = &rules->webhooks[i];
		struct message message = {{0}};
		if (wants(webhook, event->event) &&
		    webhook_send(command->lake->webhooks, webhook, event, deadline_ms, &message))
			reply_warning(command, "%s", message.text);
	}
}

/* The rules when somebody is to be told of `event`, else NULL. */
static struct rules *rules_wanting(struct command *command, const struct id *id, const char *event)
{
	CLEANUP(rules_cleanup) struct rules *rules = NULL;
	struct message message = {{0}};
	if (id_is_zero(id))
		return NULL;
	int error = rules_load(command->lake->store, id, &rules, &message);
	if (error < 0) {
		reply_warning(command, "nobody was told (%s): %s", event,
		              message.text[0] ? message.text : error_text(error));
		return NULL;
	}
	for (size_t i = 0; i < rules->webhook_count; i++)
		if (wants(&rules->webhooks[i], event))
			return steal(&rules);
	return NULL;
}

void command_event(struct command *command, const struct id *rules_id,
                   const struct webhook_event *event)
{
	CLEANUP(rules_cleanup)
	struct rules *rules = rules_wanting(command, rules_id, event->event);
	struct webhook_event complete = *event;
	if (!rules)
		return;
	complete.who = event->who ? event->who : command->caller->name;
	send_all(command, rules, &complete);
}

/* -- commits -- */

struct uncommitted {
	struct worktree *worktree;
	const struct paths *paths;
};

static int changed_uncommitted(void *context, struct buffer *ret_paths, struct message *message)
{
	const struct uncommitted *of = context;
	return worktree_changes(of->worktree, of->paths->items, of->paths->count, append_path,
	                        ret_paths, message);
}

int command_before_commit(struct command *command, struct worktree *worktree,
                          const struct paths *paths, const char *text)
{
	struct uncommitted of = {worktree, paths};
	return command_hook_before(command, &(struct hook_event){
	                                            .name = "pre-commit",
	                                            .branch = worktree_branch(worktree),
	                                            .message = text,
	                                            .changed = changed_uncommitted,
	                                            .context = &of,
	                                    });
}

struct committed {
	struct odb *odb;
	const struct pointer *commit;
};

static int changed_committed(void *context, struct buffer *ret_paths, struct message *message)
{
	const struct committed *committed = context;
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	CLEANUP(commit_pointer_free) struct commit *parent = NULL;
	int error = commit_read(committed->odb, committed->commit, &commit, message);
	if (!error && commit->parent_count)
		error = commit_read(committed->odb, &commit->parents[0], &parent, message);
	if (error < 0)
		return error;
	struct changed_trees trees = {.odb = committed->odb,
	                              .before = parent ? &parent->tree : &pointer_none,
	                              .after = &commit->tree};
	return changed_between(&trees, ret_paths, message);
}

static void tell_committed(struct command *command, const struct id *rules_id, const char *branch,
                           const struct pointer *pointer, const char *text)
{
	CLEANUP(rules_cleanup)
	struct rules *rules = rules_wanting(command, rules_id, "committed");
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	CLEANUP(buffer_release) struct buffer paths = {0};
	struct committed of = {command->lake->odb, pointer};
	struct webhook_event event = {.event = "committed",
	                              .branch = branch,
	                              .commit = &pointer->id,
	                              .who = command->caller->name,
	                              .message = text,
	                              .changed = -1};
	if (!rules)
		return;
	/* What is missing then is left out; it has been committed whatever happens here. */
	if (commit_read(command->lake->odb, pointer, &commit, NULL) == 0 && commit->parent_count)
		event.before = &commit->parents[0].id;
	if (changed_committed(&of, &paths, NULL) == 0) {
		event.changed = 0;
		for (size_t i = 0; i < paths.length; i++)
			event.changed += !paths.data[i];
	}
	send_all(command, rules, &event);
}

void command_after_commit(struct command *command, struct worktree *worktree,
                          const struct pointer *commit, const char *text)
{
	struct committed of = {command->lake->odb, commit};
	struct protection protection;
	command_hook_after(command, &(struct hook_event){
	                                    .name = "post-commit",
	                                    .branch = worktree_branch(worktree),
	                                    .commit = &commit->id,
	                                    .message = text,
	                                    .changed = changed_committed,
	                                    .context = &of,
	                            });
	worktree_protection(worktree, &protection);
	tell_committed(command, &protection.rules, worktree_branch(worktree), commit, text);
}
