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
/* One item of the reply's list `list`. */
void render_item(struct renderer *renderer, const char *list, const cJSON *item);
/* The rest: what is left in the reply's lists, and its summary. */
void render_reply(struct renderer *renderer, const cJSON *reply);

#endif
