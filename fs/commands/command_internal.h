/*
 * command_internal — what the files of fs/command*.c share: arguments, replies, long lists.
 */
#ifndef FS_COMMAND_INTERNAL_H
#define FS_COMMAND_INTERNAL_H

#include "fs/commands/command.h"
#include "fs/publish/hooks.h"
#include "fs/publish/webhook.h"

struct command {
	struct lake *lake;
	const struct caller *caller;
	const cJSON *request;
	const struct command_output *output; /* never NULL */
	cJSON *reply;
	struct message *message;
};
typedef int command_fn(struct command *command);

/* -- arguments: absent is NULL / false / fallback; the wrong type is -ERR_INVALID -- */
int argument_string(const struct command *command, const char *name, const char **ret_value);
int argument_required(const struct command *command, const char *name, const char **ret_value);
bool argument_flag(const struct command *command, const char *name);
double argument_number(const struct command *command, const char *name, double fallback);
/* Normalised, in one allocation that free_pointer frees; NULL when absent or empty. */
struct paths {
	const char **items;
	size_t count;
};
int argument_paths(const struct command *command, const char *name, struct paths *ret_paths);
void paths_release(struct paths *paths);

/* -- replies -- */
void reply_id(cJSON *object, const char *name, const struct id *id);
/* "path", and "path_hex" when the bytes are not UTF-8. */
void reply_path(cJSON *object, const char *name, const char *path, size_t length);
/* A path alone, as an item of a list; what is not UTF-8 is replaced. */
cJSON *reply_path_item(const char *path, size_t length);
cJSON *reply_commit(const struct commit *commit);
cJSON *reply_change(const struct change *change);
cJSON *reply_entry(const char *path, const struct tree_entry *entry);

/* A long array of the reply: handed out in pieces when the output takes them. */
struct list {
	struct command *command;
	const char *name;
	cJSON *pending;
	size_t count;
	size_t total;
};
void list_begin(struct list *list, struct command *command, const char *name);
int list_add(struct list *list, cJSON *item); /* takes it; -ERR_INTERRUPTED: cancelled */
void list_end(struct list *list);

/* -- shared steps -- */
void commit_pointer_free(struct commit **commit); /* CLEANUP */
void worktree_cleanup(struct worktree **worktree);
/* A revision expression; what is to be said about the answer is a warning of the reply. `known`: a
 * branch may be where this host saw it a moment ago. */
int command_resolve(struct command *command, const char *expression, bool known,
                    struct commit **ret_commit);
int command_commit(struct command *command, const char *argument, struct commit **ret_commit);
int command_worktree(struct command *command, const char *argument, struct worktree **ret_worktree);
/* "behind" and "collisions", or "gone", where they are the case. */
int reply_standing(struct command *command, struct worktree *worktree);
/* What speaks for whatever this caller does: the groups he is in. */
struct ref_rights command_rights(const struct command *command);
/* -ERR_REFUSED unless the caller is root or owns the lake's directory here. `what` he may not do to
 * branches: "protect". */
int command_administrator(struct command *command, const char *what);
/* "protection" of `object`, unless there is none. */
void reply_protection(cJSON *object, const struct protection *protection);
struct merge_side side_of(const struct commit *commit);
/* "audits" of the reply: what audits found of the commit, when there is something. That it cannot
 * be known now is a warning. */
void reply_audits(struct command *command, const struct id *commit);
/* An item of the reply's "warnings". */
void reply_warning(struct command *command, const char *format, ...)
        __attribute__((format(printf, 2, 3)));
/* pre-*: -ERR_REFUSED when the hook says no. post-*: whatever goes wrong is a warning. */
int command_hook_before(struct command *command, const struct hook_event *event);
void command_hook_after(struct command *command, const struct hook_event *event);
/* For hook_event.changed: what differs between two trees; the context is a struct changed_trees. */
struct changed_trees {
	struct odb *odb;
	const struct pointer *before, *after;
};
int changed_between(void *context, struct buffer *ret_paths, struct message *message);
/* Hooks and events of a commit. */
int command_before_commit(struct command *command, struct worktree *worktree,
                          const struct paths *paths, const char *text);
void command_after_commit(struct command *command, struct worktree *worktree,
                          const struct pointer *commit, const char *text);
/* Tell the receivers that the branch's rules (`rules`: their id; zero: none, no cost) name for this
 * event. `who` is the caller's, when NULL. What goes wrong is a warning. */
void command_event(struct command *command, const struct id *rules,
                   const struct webhook_event *event);

/* -- the commands -- */
command_fn command_branch, command_tag, command_reflog, command_undo;
command_fn command_log, command_show, command_annotate, command_diff;
command_fn command_commit_run, command_status, command_restore, command_reset;
command_fn command_refresh, command_protect, command_unprotect, command_webhook;
command_fn command_merge, command_revert, command_cherry_pick;
command_fn command_publish, command_audit_run, command_audit;
command_fn command_ls, command_du, command_cat, command_warm;
command_fn command_gc, command_fsck, command_doctor, command_stats;

#endif
