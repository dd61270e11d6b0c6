/*
 * places — from what people call something in a lake to a revision and a path: a path inside a
 * mount, REV:PATH, or a revision.
 */
#ifndef TOOLS_PLACES_H
#define TOOLS_PLACES_H

#include <cjson/cJSON.h>

#include "tools/arguments.h"

/* Replaces the strings in `places` by {"revision", "path"}. *ret_lake (allocated, or NULL) is the
 * lake whose mount the paths lie in. -ERR_INVALID. */
int places_resolve(cJSON *places, char **ret_lake, struct message *message);

#endif
