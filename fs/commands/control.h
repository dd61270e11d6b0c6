/*
 * control — the socket between lakectl and laked: DIR/control.sock, one request per connection.
 *
 * Frames are u32 little-endian length (at most 64 MiB) + JSON. The client sends one request; the
 * server answers any number of {"progress": {...}} and {"items": {"list", "items"}} frames and
 * then {"reply": {...}}. Peers are checked by
 * SO_PEERCRED: root, the lake's owner, or a member of the configured group; others get a refusal.
 * A client that goes away cancels its command (progress then returns non-zero).
 */
#ifndef FS_CONTROL_H
#define FS_CONTROL_H

#include "fs/commands/command.h"

struct control;
/* Listens and serves in threads of its own. `extra` handles requests that the lake alone cannot
 * (e.g. "unmount", "daemon"): returns -ERR_UNSUPPORTED to pass. May be NULL. */
typedef int control_fn(void *context, const struct caller *caller, const cJSON *request,
                       cJSON **ret_reply);
int control_start(struct lake *lake, control_fn *extra, void *context, struct control **ret_control,
                  struct message *message);
void control_stop(struct control *control); /* waits for running commands; accepts NULL */

/* Client. -ERR_NOT_FOUND: no daemon listens (run the command in-process). */
int control_call(const char *lake_directory, const cJSON *request,
                 const struct command_output *output, cJSON **ret_reply, struct message *message);

#endif
