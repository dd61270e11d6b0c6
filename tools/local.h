/*
 * local — the commands that make, mount and unmount a lake: they run in lakectl itself.
 */
#ifndef TOOLS_LOCAL_H
#define TOOLS_LOCAL_H

#include <cjson/cJSON.h>

#include "store/base.h"

/* Each takes the request that arguments.c made, and the lake's directory when one is known;
 * *ret_reply is what `--json` prints. */
int local_init(const cJSON *request, const char *lake, cJSON **ret_reply, struct message *message);
int local_clone(const cJSON *request, const char *lake, cJSON **ret_reply, struct message *message);
int local_mount(const cJSON *request, const char *lake, cJSON **ret_reply, struct message *message);
int local_umount(const cJSON *request, const char *lake, cJSON **ret_reply,
                 struct message *message);

/* Adds code.remote, code.commit and code.dirty to the request's "meta" when the current directory
 * is in a git work tree. Credentials in the remote's URL are left out. */
void add_code_version(cJSON *request);

#endif
