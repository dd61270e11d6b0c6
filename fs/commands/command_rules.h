/*
 * command_rules — reading and editing the rules of a branch, for the commands that do.
 */
#ifndef FS_COMMAND_RULES_H
#define FS_COMMAND_RULES_H

#include "fs/commands/command_internal.h"
#include "fs/publish/rules.h"

/* One of rules_with_... and rules_without_...; called again when somebody else was first. */
typedef int rules_edit_fn(void *context, const struct rules *rules, struct rules **ret_rules,
                          struct message *message);
/* For administrators alone (-ERR_REFUSED). `what` ("webhook add") and the rule's `name` go to the
 * audit log; receivers of "protection-changed" are told. Adds "branch" and "rules" to the reply.
 * `edit` NULL: no rules at all any more, also when those there are cannot be read. */
int command_edit_rules(struct command *command, const char *branch, const char *what,
                       const char *name, rules_edit_fn *edit, void *context);
/* As the store has them now; empty when there are none. */
int command_load_rules(struct command *command, const char *branch, struct rules **ret_rules);

#endif
