/*
 * What a server of ours answers, or one that only says so, as text for people: no control character
 * gets to the terminal. The first byte chooses the command, the rest is the reply.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fs/json.h"
#include "tools/render.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const commands[] = {
        "branch",  "tag",     "log",     "diff",   "status",   "show", "merge", "commit",
        "restore", "undo",    "refresh", "du",     "fsck",     "gc",   "stats", "warm",
        "protect", "webhook", "audit",   "reflog", "annotate", "ls",   "hook",  "doctor",
};

static void check(bool holds)
{
	if (!holds)
		abort();
}

/* Colours are not used: this is no terminal. */
static void check_text(FILE *file)
{
	int byte;
	rewind(file);
	while ((byte = fgetc(file)) != EOF)
		check((byte >= ' ' && byte != 0x7f) || byte == '\n' || byte == '\t');
}

static void render(cJSON *request, cJSON *reply)
{
	struct renderer *renderer;
	check(renderer_new(request, false, &renderer) == 0);
	render_reply(renderer, reply);
	renderer_free(renderer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CLEANUP(json_cleanup) cJSON *request = cJSON_CreateObject();
	CLEANUP(json_cleanup) cJSON *reply = NULL;
	if (size < 1)
		return 0;
	reply = cJSON_ParseWithLength((const char *)data + 1, size - 1);
	if (!cJSON_IsObject(reply))
		return 0;
	cJSON_AddStringToObject(request, "command", commands[data[0] % ARRAY_SIZE(commands)]);
	cJSON_AddBoolToObject(request, "graph", data[0] & 0x80);
	FILE *kept = stdout, *written = tmpfile();
	check(written != NULL);
	stdout = written;
	render(request, reply);
	fflush(written);
	stdout = kept;
	check_text(written);
	fclose(written);
	return 0;
}
