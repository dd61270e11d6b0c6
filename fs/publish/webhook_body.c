/*
 * webhook_body — hides what is said to receivers: the JSON of an event and its sentence for people.
 */
#include "fs/commands/command_internal.h"
#include "fs/json.h"

#include <stdio.h>

#define BODY_BYTES_MAX (256u << 10)
#define MESSAGE_BYTES_MAX (16u << 10)

static size_t at_most(const char *text, size_t limit)
{
	size_t length = strnlen(text, limit + 1);
	if (length <= limit)
		return length;
	length = limit;
	while (length && ((unsigned char)text[length] & 0xc0) == 0x80)
		length--;
	return length;
}

static void add_text(cJSON *object, const char *name, const char *text)
{
	if (text)
		reply_path(object, name, text, at_most(text, MESSAGE_BYTES_MAX));
}

static void add_id(cJSON *object, const char *name, const struct id *id)
{
	if (id)
		reply_id(object, name, id);
}

/* What people read, without the message. */
static int sentence(const struct webhook_event *event, char *ret_text, size_t size)
{
	const char *who = event->who ? event->who : "somebody";
	const char *source = event->source ? event->source : "changes";
	char hex[ID_HEX + 1] = "";
	if (event->commit)
		id_to_hex(event->commit, hex);
	if (strcmp(event->event, "committed") == 0)
		return snprintf(ret_text, size, "%s committed %.12s to %s", who, hex,
		                event->branch);
	if (strcmp(event->event, "published") == 0)
		return snprintf(ret_text, size, "%s published %s to %s as %.12s", who, source,
		                event->branch, hex);
	if (strcmp(event->event, "merged") == 0)
		return snprintf(ret_text, size, "%s merged %s into %s as %.12s", who, source,
		                event->branch, hex);
	if (strcmp(event->event, "audit-failed") == 0)
		return snprintf(ret_text, size,
		                "audits refused %s, which %s wanted to publish to "
		                "%s",
		                source, who, event->branch);
	if (strcmp(event->event, "protection-changed") == 0)
		return snprintf(ret_text, size, "%s changed the protection of %s", who,
		                event->branch);
	return snprintf(ret_text, size, "%s: %s on %s", event->event, who, event->branch);
}

static void add_sentence(cJSON *object, const struct webhook_event *event)
{
	CLEANUP(buffer_release) struct buffer text = {0};
	char beginning[1024];
	if (event->text) {
		add_text(object, "text", event->text);
		return;
	}
	sentence(event, beginning, sizeof beginning);
	buffer_append(&text, beginning, strlen(beginning));
	size_t line = event->message ? strcspn(event->message, "\n") : 0;
	if (line) {
		size_t length = at_most(event->message, 300);
		buffer_append(&text, ": ", 2);
		buffer_append(&text, event->message, line < length ? line : length);
	}
	if (!buffer_check(&text))
		reply_path(object, "text", (const char *)text.data, text.length);
}

char *webhook_body(const char *lake_id, const char *delivery, const struct webhook_event *event)
{
	unsigned failures = json_failures();
	cJSON *object = cJSON_CreateObject();
	char time[32];
	time_format(clock_wall_ms(), time);
	cJSON_AddStringToObject(object, "event", event->event);
	cJSON_AddStringToObject(object, "delivery", delivery);
	cJSON_AddStringToObject(object, "lake", lake_id);
	add_text(object, "branch", event->branch);
	add_text(object, "source", event->source);
	add_id(object, "commit", event->commit);
	add_id(object, "before", event->before);
	add_text(object, "who", event->who);
	cJSON_AddStringToObject(object, "time", time);
	add_text(object, "message", event->message);
	if (event->changed >= 0)
		cJSON_AddNumberToObject(object, "changed", (double)event->changed);
	add_text(object, "verdict", event->verdict);
	add_sentence(object, event);
	if (event->audits)
		json_put(object, "audits", cJSON_Duplicate(event->audits, true));
	char *text = cJSON_PrintUnformatted(object);
	if (text && strlen(text) > BODY_BYTES_MAX) { /* what audits printed may be long */
		cJSON_DeleteItemFromObjectCaseSensitive(object, "audits");
		cJSON_AddBoolToObject(object, "audits_omitted", true);
		free(text);
		text = cJSON_PrintUnformatted(object);
	}
	cJSON_Delete(object);
	if (json_failures() != failures) {
		free(text);
		return NULL;
	}
	return text;
}
