/*
 * rules — hides the JSON of the objects "rules/...", and which of them this process knows.
 *
 * Edits go through that JSON: what they make is checked like what was read.
 */
#include "fs/publish/rules.h"

#include <pthread.h>
#include <stdio.h>
#include <uthash.h>

#include "fs/json.h"
#include "refs/path.h"

#define RULES_PREFIX "rules/"
#define RULES_VERSION 1
#define LOADED_MAX 64 /* rules kept in memory */

/* -- memory -- */

static void free_list(char **list)
{
	for (size_t i = 0; list && list[i]; i++)
		free(list[i]);
	free(list);
}

void rules_free(struct rules *rules)
{
	for (size_t i = 0; rules && i < rules->audit_count; i++) {
		free(rules->audits[i].name);
		free_list(rules->audits[i].paths);
		free_list(rules->audits[i].argv);
	}
	for (size_t i = 0; rules && i < rules->webhook_count; i++) {
		free(rules->webhooks[i].name);
		free(rules->webhooks[i].url);
		free_list(rules->webhooks[i].events);
		free(rules->webhooks[i].secret_file);
	}
	if (rules) {
		free(rules->audits);
		free(rules->webhooks);
	}
	free(rules);
}

void rules_cleanup(struct rules **rules)
{
	rules_free(*rules);
}

/* -- reading -- */

static bool name_valid(const char *name)
{
	size_t length = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	                             "0123456789_.-");
	return length > 0 && length <= RULE_NAME_MAX && !name[length] && name[0] != '.' &&
	       name[0] != '-';
}

static int copy_text(const char *text, char **ret_copy)
{
	*ret_copy = text ? strdup(text) : NULL;
	return text && !*ret_copy ? -ERR_NO_MEMORY : 0;
}

/* *ret_name is the rule's from then on; `where` names it. */
static int read_name(const cJSON *object, char *where, size_t where_size, char **ret_name,
                     struct message *message)
{
	const char *name;
	int error = json_text_required(object, where, "name", RULES_BYTES_MAX, &name, message);
	if (error < 0)
		return error;
	if (!name_valid(name))
		return fail(message, -ERR_INVALID,
		            "%s: '%.80s' is no name; names are up to %d letters, digits, '_', '.' "
		            "and '-', starting with none of the last two",
		            where, name, RULE_NAME_MAX);
	snprintf(where, where_size, "%.7s '%s'",
	         strcmp(where, "an audit") == 0 ? "audit" : "webhook", name);
	return copy_text(name, ret_name);
}

/* A list of strings, NULL at its end; absent: empty. */
static int read_list(const cJSON *object, const char *where, const char *key, char ***ret_list,
                     size_t *ret_count, struct message *message)
{
	const cJSON *array, *item;
	int error = json_array(object, where, key, RULE_LIST_MAX, &array, message);
	if (error < 0)
		return error;
	*ret_list = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof **ret_list);
	if (!*ret_list)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, array) {
		if (!cJSON_IsString(item))
			return fail(message, -ERR_INVALID, "%s: '%s' has an item that is no string",
			            where, key);
		error = copy_text(item->valuestring, &(*ret_list)[*ret_count]);
		if (error < 0)
			return error;
		(*ret_count)++;
	}
	return 0;
}

static int check_patterns(const struct audit_rule *audit, const char *where,
                          struct message *message)
{
	for (size_t i = 0; i < audit->path_count; i++) {
		if (!audit->paths[i][0])
			return fail(message, -ERR_INVALID, "%s has an empty pattern", where);
		int error = path_glob_check(audit->paths[i], message);
		if (error < 0)
			return fail_context(message, error, "%s", where);
	}
	return 0;
}

/* A relative path would be looked for in the candidate: the branch's content would decide. */
static int check_program(const struct audit_rule *audit, const char *where, struct message *message)
{
	const char *program = audit->argv[0];
	if (!audit->argument_count || !program[0])
		return fail(message, -ERR_INVALID, "%s has no program to run", where);
	if ((program[0] != '/' && strchr(program, '/')) || strcmp(program, ".") == 0 ||
	    strcmp(program, "..") == 0)
		return fail(message, -ERR_INVALID,
		            "%s: '%.200s' is neither an absolute path nor the name of an installed "
		            "audit",
		            where, program);
	return 0;
}

static int read_audit(const cJSON *object, struct audit_rule *audit, struct message *message)
{
	static const char *const keys[] = {"name", "paths", "command", "timeout_s", NULL};
	char where[RULE_NAME_MAX + 32] = "an audit";
	int64_t timeout_s = AUDIT_TIMEOUT_S_DEFAULT;
	int error = json_keys(object, where, keys, message);
	if (!error)
		error = read_name(object, where, sizeof where, &audit->name, message);
	if (!error)
		error = read_list(object, where, "paths", &audit->paths, &audit->path_count,
		                  message);
	if (!error)
		error = check_patterns(audit, where, message);
	if (!error)
		error = read_list(object, where, "command", &audit->argv, &audit->argument_count,
		                  message);
	if (!error)
		error = check_program(audit, where, message);
	if (!error)
		error = json_number(object, where, "timeout_s", 1, AUDIT_TIMEOUT_S_MAX, &timeout_s,
		                    message);
	audit->timeout_s = (int)timeout_s;
	return error;
}

static int check_url(const char *url, const char *where, struct message *message)
{
	size_t scheme = strncmp(url, "https://", 8) == 0  ? 8
	                : strncmp(url, "http://", 7) == 0 ? 7
	                                                  : 0;
	if (!scheme || !url[scheme] || strchr("/?#:", url[scheme]))
		return fail(
		        message, -ERR_INVALID,
		        "%s: '%.200s' is no URL of the form https://HOST/... or http://HOST/...",
		        where, url);
	for (const char *at = url; *at; at++)
		if ((unsigned char)*at <= ' ' || *at == 0x7f)
			return fail(message, -ERR_INVALID,
			            "%s: its URL has a blank or control character", where);
	return 0;
}

static int check_events(const struct webhook_rule *webhook, const char *where,
                        struct message *message)
{
	if (!webhook->event_count)
		return fail(message, -ERR_INVALID, "%s has no 'events'", where);
	for (size_t i = 0; i < webhook->event_count; i++) {
		const char *event = webhook->events[i];
		size_t length = strspn(event, "abcdefghijklmnopqrstuvwxyz-");
		if (!length || length > 32 || event[length])
			return fail(message, -ERR_INVALID, "%s: '%.64s' is no event", where, event);
	}
	return 0;
}

static int read_webhook(const cJSON *object, struct webhook_rule *webhook, struct message *message)
{
	static const char *const keys[] = {"name", "url", "events", "secret_file", NULL};
	char where[RULE_NAME_MAX + 32] = "a webhook";
	const char *url, *secret_file;
	int error = json_keys(object, where, keys, message);
	if (!error)
		error = read_name(object, where, sizeof where, &webhook->name, message);
	if (!error)
		error = json_text_required(object, where, "url", RULE_URL_MAX, &url, message);
	if (!error)
		error = check_url(url, where, message);
	if (!error)
		error = copy_text(url, &webhook->url);
	if (!error)
		error = read_list(object, where, "events", &webhook->events, &webhook->event_count,
		                  message);
	if (!error)
		error = check_events(webhook, where, message);
	if (!error)
		error = json_text(object, where, "secret_file", PATH_BYTES_MAX - 1, &secret_file,
		                  message);
	if (!error && secret_file && secret_file[0] != '/')
		error = fail(message, -ERR_INVALID, "%s: 'secret_file' is not an absolute path",
		             where);
	return error ? error : copy_text(secret_file, &webhook->secret_file);
}

static int read_audits(const cJSON *array, struct rules *rules, struct message *message)
{
	const cJSON *item;
	rules->audits = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof *rules->audits);
	if (!rules->audits)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, array) {
		struct audit_rule *audit = &rules->audits[rules->audit_count++];
		int error = read_audit(item, audit, message);
		if (error < 0)
			return error;
		for (size_t i = 0; i + 1 < rules->audit_count; i++)
			if (strcmp(rules->audits[i].name, audit->name) == 0)
				return fail(message, -ERR_INVALID, "there are two audits '%s'",
				            audit->name);
	}
	return 0;
}

static int read_webhooks(const cJSON *array, struct rules *rules, struct message *message)
{
	const cJSON *item;
	rules->webhooks = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof *rules->webhooks);
	if (!rules->webhooks)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, array) {
		struct webhook_rule *webhook = &rules->webhooks[rules->webhook_count++];
		int error = read_webhook(item, webhook, message);
		if (error < 0)
			return error;
		for (size_t i = 0; i + 1 < rules->webhook_count; i++)
			if (strcmp(rules->webhooks[i].name, webhook->name) == 0)
				return fail(message, -ERR_INVALID, "there are two webhooks '%s'",
				            webhook->name);
	}
	return 0;
}

static int rules_read(const cJSON *object, struct rules **ret_rules, struct message *message)
{
	static const char *const keys[] = {"version", "audits", "webhooks", NULL};
	CLEANUP(rules_cleanup) struct rules *rules = calloc(1, sizeof *rules);
	const cJSON *audits, *webhooks;
	int64_t version = 0;
	if (!rules)
		return -ERR_NO_MEMORY;
	int error = json_number(object, "rules", "version", 1, INT32_MAX, &version, message);
	if (!error && version > RULES_VERSION)
		error = fail(message, -ERR_VERSION,
		             "the rules have version %lld: upgrade this program",
		             (long long)version);
	if (!error && !version)
		error = fail(message, -ERR_INVALID, "the rules have no 'version'");
	if (!error)
		error = json_keys(object, "rules", keys, message);
	if (!error)
		error = json_array(object, "rules", "audits", RULES_AUDITS_MAX, &audits, message);
	if (!error)
		error = json_array(object, "rules", "webhooks", RULES_WEBHOOKS_MAX, &webhooks,
		                   message);
	if (!error)
		error = read_audits(audits, rules, message);
	if (!error)
		error = read_webhooks(webhooks, rules, message);
	if (!error)
		*ret_rules = steal(&rules);
	return error;
}

int rules_parse(const void *bytes, size_t length, struct rules **ret_rules, struct message *message)
{
	CLEANUP(json_cleanup) cJSON *object = NULL;
	if (length > RULES_BYTES_MAX)
		return fail(message, -ERR_INVALID, "the rules have more than %u bytes",
		            RULES_BYTES_MAX);
	int error = json_parse(bytes, length, &object, message);
	return error ? error : rules_read(object, ret_rules, message);
}

/* -- writing -- */

static cJSON *list_json(char *const *list, size_t count)
{
	cJSON *array = cJSON_CreateArray();
	for (size_t i = 0; i < count; i++)
		json_append(array, cJSON_CreateString(list[i]));
	return array;
}

static cJSON *audit_json(const struct audit_rule *audit)
{
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "name", audit->name);
	json_put(object, "paths", list_json(audit->paths, audit->path_count));
	json_put(object, "command", list_json(audit->argv, audit->argument_count));
	cJSON_AddNumberToObject(object, "timeout_s", audit->timeout_s);
	return object;
}

static cJSON *webhook_json(const struct webhook_rule *webhook)
{
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "name", webhook->name);
	cJSON_AddStringToObject(object, "url", webhook->url);
	json_put(object, "events", list_json(webhook->events, webhook->event_count));
	if (webhook->secret_file)
		cJSON_AddStringToObject(object, "secret_file", webhook->secret_file);
	return object;
}

/* NULL rules: none. Keys always in this order, all but secret_file always there. */
static cJSON *rules_json(const struct rules *rules)
{
	cJSON *object = cJSON_CreateObject();
	cJSON_AddNumberToObject(object, "version", RULES_VERSION);
	cJSON *audits = cJSON_AddArrayToObject(object, "audits");
	cJSON *webhooks = cJSON_AddArrayToObject(object, "webhooks");
	for (size_t i = 0; rules && i < rules->audit_count; i++)
		json_append(audits, audit_json(&rules->audits[i]));
	for (size_t i = 0; rules && i < rules->webhook_count; i++)
		json_append(webhooks, webhook_json(&rules->webhooks[i]));
	return object;
}

/* Whatever was made of values or by an edit is read again, so that nothing is written which
 * nobody could read, such as text that is not UTF-8. */
static int encode_checked(const cJSON *object, unsigned failures, struct buffer *ret_bytes,
                          struct rules **ret_rules, struct message *message)
{
	int error = json_print(object, failures, ret_bytes);
	return error ? error : rules_parse(ret_bytes->data, ret_bytes->length, ret_rules, message);
}

int rules_encode(const struct rules *rules, struct buffer *ret_bytes)
{
	unsigned failures = json_failures();
	CLEANUP(json_cleanup) cJSON *object = rules_json(rules);
	CLEANUP(rules_cleanup) struct rules *read = NULL;
	return encode_checked(object, failures, ret_bytes, &read, NULL);
}

/* -- edits -- */

static cJSON *find_named(const cJSON *array, const char *name)
{
	cJSON *item;
	cJSON_ArrayForEach (item, array) {
		const cJSON *found = cJSON_GetObjectItemCaseSensitive(item, "name");
		if (cJSON_IsString(found) && strcmp(found->valuestring, name) == 0)
			return item;
	}
	return NULL;
}

/* `failures` from before `rule` was made. */
static int rules_with(const struct rules *rules, const char *list, unsigned failures, cJSON *rule,
                      const char *name, struct rules **ret_rules, struct message *message)
{
	CLEANUP(json_cleanup) cJSON *object = rules_json(rules);
	CLEANUP(buffer_release) struct buffer bytes = {0};
	cJSON *array = cJSON_GetObjectItemCaseSensitive(object, list);
	cJSON *old = find_named(array, name);
	bool done = old ? cJSON_ReplaceItemViaPointer(array, old, rule)
	                : cJSON_AddItemToArray(array, rule);
	if (!done) {
		cJSON_Delete(rule);
		return -ERR_NO_MEMORY;
	}
	return encode_checked(object, failures, &bytes, ret_rules, message);
}

static int rules_without(const struct rules *rules, const char *list, const char *name,
                         struct rules **ret_rules, struct message *message)
{
	unsigned failures = json_failures();
	CLEANUP(json_cleanup) cJSON *object = rules_json(rules);
	CLEANUP(buffer_release) struct buffer bytes = {0};
	cJSON *array = cJSON_GetObjectItemCaseSensitive(object, list);
	cJSON *old = find_named(array, name);
	if (!old)
		return fail(message, -ERR_NOT_FOUND, "there is no %.*s '%s'", (int)strlen(list) - 1,
		            list, name);
	cJSON_Delete(cJSON_DetachItemViaPointer(array, old));
	return encode_checked(object, failures, &bytes, ret_rules, message);
}

int rules_with_audit(const struct rules *rules, const struct audit_rule *audit,
                     struct rules **ret_rules, struct message *message)
{
	unsigned failures = json_failures();
	return rules_with(rules, "audits", failures, audit_json(audit), audit->name, ret_rules,
	                  message);
}

int rules_with_webhook(const struct rules *rules, const struct webhook_rule *webhook,
                       struct rules **ret_rules, struct message *message)
{
	unsigned failures = json_failures();
	return rules_with(rules, "webhooks", failures, webhook_json(webhook), webhook->name,
	                  ret_rules, message);
}

int rules_without_audit(const struct rules *rules, const char *name, struct rules **ret_rules,
                        struct message *message)
{
	return rules_without(rules, "audits", name, ret_rules, message);
}

int rules_without_webhook(const struct rules *rules, const char *name, struct rules **ret_rules,
                          struct message *message)
{
	return rules_without(rules, "webhooks", name, ret_rules, message);
}

/* -- the store -- */

/* Bytes with their own hash as the key are the same in every store. */
struct loaded {
	UT_hash_handle hh; /* in the order they were loaded */
	struct id id;
	size_t length;
	uint8_t bytes[];
};
static pthread_mutex_t loaded_lock = PTHREAD_MUTEX_INITIALIZER; /* guards loaded_rules */
static struct loaded *loaded_rules;

/* A cache: no memory is no error. */
static void remember(const struct id *id, const struct buffer *bytes)
{
	struct loaded *made = malloc(sizeof *made + bytes->length), *old;
	if (!made)
		return;
	*made = (struct loaded){.id = *id, .length = bytes->length};
	memcpy(made->bytes, bytes->data, bytes->length);
	pthread_mutex_lock(&loaded_lock);
	HASH_FIND(hh, loaded_rules, id, sizeof *id, old);
	if (!old && HASH_COUNT(loaded_rules) >= LOADED_MAX)
		old = loaded_rules; /* the first to come */
	if (old)
		HASH_DEL(loaded_rules, old);
	free(old);
	HASH_ADD(hh, loaded_rules, id, sizeof made->id, made);
	if (!made->hh.tbl)
		free(made);
	pthread_mutex_unlock(&loaded_lock);
}

static bool recall(const struct id *id, struct buffer *bytes)
{
	struct loaded *found;
	pthread_mutex_lock(&loaded_lock);
	HASH_FIND(hh, loaded_rules, id, sizeof *id, found);
	if (found)
		buffer_append(bytes, found->bytes, found->length);
	pthread_mutex_unlock(&loaded_lock);
	return found && buffer_check(bytes) == 0;
}

static void key_of(const struct id *id, char ret_key[sizeof RULES_PREFIX + ID_HEX])
{
	char hex[ID_HEX + 1];
	id_to_hex(id, hex);
	stpcpy(stpcpy(ret_key, RULES_PREFIX), hex);
}

static int fetch(struct object_store *store, const struct id *id, struct buffer *bytes,
                 struct message *message)
{
	char key[sizeof RULES_PREFIX + ID_HEX];
	struct etag etag;
	struct id found;
	key_of(id, key);
	bytes->limit = RULES_BYTES_MAX;
	int error = object_get(store, key, 0, UINT64_MAX, bytes, &etag, message);
	if (error == -ERR_NOT_FOUND)
		return fail(message, error,
		            "object '%s', the rules of a branch, is missing: put it back, or start "
		            "anew with `lakectl audit remove BRANCH --all`",
		            key);
	if (error < 0 && error != -ERR_TOO_LARGE)
		return error;
	if (!error)
		sha256_of(bytes->data, bytes->length, &found);
	if (error < 0 || !id_equal(&found, id))
		return fail(message, -ERR_CORRUPT,
		            "object '%s', the rules of a branch, is damaged (its bytes are not "
		            "those of its name): put it back, or start anew with `lakectl audit "
		            "remove BRANCH --all`",
		            key);
	return 0;
}

int rules_store(struct object_store *store, const struct rules *rules, struct id *ret_id,
                struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	unsigned failures = json_failures();
	CLEANUP(json_cleanup) cJSON *object = rules_json(rules);
	CLEANUP(rules_cleanup) struct rules *read = NULL;
	char key[sizeof RULES_PREFIX + ID_HEX];
	struct id id;
	struct etag etag;
	if (!rules || (!rules->audit_count && !rules->webhook_count)) {
		*ret_id = id_zero;
		return 0;
	}
	int error = encode_checked(object, failures, &bytes, &read, message);
	if (error < 0)
		return error;
	sha256_of(bytes.data, bytes.length, &id);
	key_of(&id, key);
	error = object_put_if_absent(store, key, bytes.data, bytes.length, &etag, message);
	if (error == -ERR_EXISTS) {
		CLEANUP(buffer_release) struct buffer there = {0};
		error = fetch(store, &id, &there, message);
		/* Its name says what the bytes must be, so putting them mends it. */
		if (error == -ERR_CORRUPT || error == -ERR_NOT_FOUND)
			error = object_put(store, key, bytes.data, bytes.length, message);
	}
	if (error < 0)
		return error;
	remember(&id, &bytes);
	*ret_id = id;
	return 0;
}

/* The bytes are those that somebody wrote: what is wrong is not the user's argument. */
static int parse_stored(const struct buffer *bytes, const struct id *id, struct rules **ret_rules,
                        struct message *message)
{
	char key[sizeof RULES_PREFIX + ID_HEX];
	int error = rules_parse(bytes->data, bytes->length, ret_rules, message);
	key_of(id, key);
	if (error == -ERR_INVALID)
		error = -ERR_CORRUPT;
	return error < 0 ? fail_context(message, error, "object '%s'", key) : 0;
}

int rules_load(struct object_store *store, const struct id *id, struct rules **ret_rules,
               struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	if (id_is_zero(id)) {
		*ret_rules = calloc(1, sizeof **ret_rules);
		return *ret_rules ? 0 : -ERR_NO_MEMORY;
	}
	if (recall(id, &bytes))
		return parse_stored(&bytes, id, ret_rules, message);
	int error = fetch(store, id, &bytes, message);
	if (!error)
		error = parse_stored(&bytes, id, ret_rules, message);
	if (!error)
		remember(id, &bytes);
	return error;
}

int rules_verify(struct object_store *store, const struct id *id, struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	CLEANUP(rules_cleanup) struct rules *rules = NULL;
	if (id_is_zero(id))
		return 0;
	int error = fetch(store, id, &bytes, message);
	return error ? error : parse_stored(&bytes, id, &rules, message);
}
