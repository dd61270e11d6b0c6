/*
 * render — replies as text for people. Rows of long lists are printed as they arrive.
 */
#ifndef TOOLS_RENDER_H
#define TOOLS_RENDER_H

#include <cjson/cJSON.h>

#include "store/base.h"

struct renderer;
/* `request` is borrowed and tells which command's rows these are. */
int renderer_new(const cJSON *request, bool quiet, struct renderer **ret_renderer);
void renderer_free(struct renderer *renderer);
/* One item of the reply's list `list`. Control characters in its strings are replaced, in paths
 * (quoted) escaped: branches' names and messages are written by others. */
void render_item(struct renderer *renderer, const char *list, cJSON *item);
/* The rest: what is left in the reply's lists, and its summary. */
void render_reply(struct renderer *renderer, cJSON *reply);

#endif
