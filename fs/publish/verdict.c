/*
 * verdict — hides the JSON of the objects "audits/..." and "log/...", and how the newest of many
 * are found.
 */
#include "fs/publish/verdict.h"

#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "fs/json.h"
#include "refs/history.h"
#include "store/thread.h"

#define LINE_SHOWN_MAX 512
#define AUDITS_PREFIX "audits/"
#define LOG_PREFIX "log/"
#define VERSION 2
#define VERSION_UNCHECKED 1 /* had a random number for a checksum in its name */
#define VERDICT_BYTES_MAX ((size_t)16 << 20)
#define TEXT_MAX 4096             /* a name, a host, a revision */
#define TIME_MAX_MS 9999999999999 /* 13 digits: until 2286 */
#define NUMBER_MAX ((int64_t)1 << 53)
#define KEY_MAX 128
#define READ_AT_ONCE 16
#define DAY_MS ((int64_t)24 * 60 * 60 * 1000)

static const char *const verdict_names[] = {
        [VERDICT_PASSED] = "passed",
        [VERDICT_FAILED] = "failed",
        [VERDICT_ERROR] = "error",
        [VERDICT_SKIPPED] = "skipped",
};

const char *verdict_name(enum verdict_kind kind)
{
	return verdict_names[kind];
}

static void free_checks(struct verdict *verdict)
{
	for (size_t i = 0; i < verdict->check_count; i++) {
		free(verdict->checks[i].name);
		free(verdict->checks[i].output);
	}
	free(verdict->checks);
}

void verdict_release(struct verdict *verdict)
{
	free_checks(verdict);
	free(verdict->source);
	free(verdict->target);
	free(verdict->who);
	free(verdict->host);
	*verdict = (struct verdict){0};
}

/* -- writing -- */

static void add_id(cJSON *object, const char *key, const struct id *id)
{
	char hex[ID_HEX + 1];
	id_to_hex(id, hex);
	if (!id_is_zero(id))
		cJSON_AddStringToObject(object, key, hex);
}

static void add_time(cJSON *object, const char *key, int64_t ms)
{
	char text[32];
	time_format(ms, text);
	cJSON_AddStringToObject(object, key, text);
}

static cJSON *check_json(const struct verdict_check *check)
{
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "name", check->name);
	cJSON_AddStringToObject(object, "verdict", verdict_name(check->verdict));
	if (check->exit_code >= 0)
		cJSON_AddNumberToObject(object, "exit_code", check->exit_code);
	if (check->signal)
		cJSON_AddNumberToObject(object, "signal", check->signal);
	if (check->timed_out)
		cJSON_AddTrueToObject(object, "timed_out");
	if (check->output_cut)
		cJSON_AddTrueToObject(object, "output_cut");
	cJSON_AddNumberToObject(object, "took_ms", (double)check->took_ms);
	cJSON_AddNumberToObject(object, "paths", (double)check->path_count);
	cJSON_AddStringToObject(object, "output", check->output);
	return object;
}

cJSON *verdict_json(const struct verdict *verdict)
{
	cJSON *object = cJSON_CreateObject();
	cJSON_AddNumberToObject(object, "version", VERSION);
	cJSON_AddStringToObject(object, "verdict", verdict_name(verdict->verdict));
	add_id(object, "candidate", &verdict->candidate);
	cJSON_AddStringToObject(object, "source", verdict->source);
	add_id(object, "source_id", &verdict->source_id);
	cJSON_AddStringToObject(object, "target", verdict->target);
	add_id(object, "target_id", &verdict->target_id);
	add_id(object, "base_id", &verdict->base_id);
	add_id(object, "rules_id", &verdict->rules_id);
	cJSON_AddStringToObject(object, "who", verdict->who);
	cJSON_AddStringToObject(object, "host", verdict->host);
	add_time(object, "started", verdict->started_ms);
	cJSON_AddNumberToObject(object, "took_ms", (double)verdict->took_ms);
	cJSON *checks = cJSON_AddArrayToObject(object, "checks");
	for (size_t i = 0; i < verdict->check_count; i++)
		json_append(checks, check_json(&verdict->checks[i]));
	return object;
}

int verdict_encode(const struct verdict *verdict, struct buffer *ret_bytes)
{
	unsigned failures = json_failures();
	CLEANUP(json_cleanup) cJSON *object = verdict_json(verdict);
	return json_print(object, failures, ret_bytes);
}

/* -- reading: whoever wrote it, what is wrong is damage -- */

static int read_text(const cJSON *object, const char *where, const char *key, size_t max,
                     char **ret_copy, struct message *message)
{
	const char *text;
	int error = json_text_required(object, where, key, max, &text, message);
	if (error < 0)
		return error;
	*ret_copy = strdup(text);
	return *ret_copy ? 0 : -ERR_NO_MEMORY;
}

/* Absent: zero. */
static int read_hex(const cJSON *object, const char *key, struct id *ret_id,
                    struct message *message)
{
	const char *text;
	int error = json_text(object, "verdict", key, ID_HEX, &text, message);
	if (!error && text && id_from_hex(text, ret_id) < 0)
		error = fail(message, -ERR_INVALID, "verdict: '%s' is no id", key);
	return error;
}

static int read_kind(const cJSON *object, const char *where, bool skipped,
                     enum verdict_kind *ret_kind, struct message *message)
{
	const char *text;
	int error = json_text_required(object, where, "verdict", TEXT_MAX, &text, message);
	for (size_t i = 0; !error && i < ARRAY_SIZE(verdict_names); i++)
		if (strcmp(text, verdict_names[i]) == 0 && (skipped || i != VERDICT_SKIPPED)) {
			*ret_kind = (enum verdict_kind)i;
			return 0;
		}
	return error ? error
	             : fail(message, -ERR_INVALID, "%s: '%.64s' is no verdict", where, text);
}

static int read_flag(const cJSON *object, const char *where, const char *key, bool *ret_flag,
                     struct message *message)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
	if (item && !cJSON_IsBool(item))
		return fail(message, -ERR_INVALID, "%s: '%s' is neither true nor false", where,
		            key);
	*ret_flag = cJSON_IsTrue(item);
	return 0;
}

static int read_check(const cJSON *object, struct verdict_check *check, struct message *message)
{
	static const char *const keys[] = {"name",      "verdict",    "exit_code", "signal",
	                                   "timed_out", "output_cut", "took_ms",   "paths",
	                                   "output",    NULL};
	static const char where[] = "a check";
	int64_t exit_code = -1, signal_number = 0, paths = 0;
	int error = json_keys(object, where, keys, message);
	if (!error)
		error = read_text(object, where, "name", TEXT_MAX, &check->name, message);
	if (!error)
		error = read_kind(object, where, true, &check->verdict, message);
	if (!error)
		error = json_number(object, where, "exit_code", 0, 255, &exit_code, message);
	if (!error)
		error = json_number(object, where, "signal", 1, 127, &signal_number, message);
	if (!error)
		error = read_flag(object, where, "timed_out", &check->timed_out, message);
	if (!error)
		error = read_flag(object, where, "output_cut", &check->output_cut, message);
	if (!error)
		error = json_number(object, where, "took_ms", 0, NUMBER_MAX, &check->took_ms,
		                    message);
	if (!error)
		error = json_number(object, where, "paths", 0, NUMBER_MAX, &paths, message);
	if (!error)
		error = read_text(object, where, "output", VERDICT_OUTPUT_MAX, &check->output,
		                  message);
	check->exit_code = (int)exit_code;
	check->signal = (int)signal_number;
	check->path_count = (uint64_t)paths;
	return error;
}

static int read_checks(const cJSON *object, struct verdict *verdict, struct message *message)
{
	const cJSON *array, *item;
	int error = json_array(object, "verdict", "checks", VERDICT_CHECKS_MAX, &array, message);
	if (error < 0)
		return error;
	verdict->checks = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof *verdict->checks);
	if (!verdict->checks)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, array) {
		error = read_check(item, &verdict->checks[verdict->check_count++], message);
		if (error < 0)
			return error;
	}
	return 0;
}

static int read_ids(const cJSON *object, struct verdict *verdict, struct message *message)
{
	int error = read_hex(object, "candidate", &verdict->candidate, message);
	if (!error)
		error = read_hex(object, "source_id", &verdict->source_id, message);
	if (!error)
		error = read_hex(object, "target_id", &verdict->target_id, message);
	if (!error)
		error = read_hex(object, "base_id", &verdict->base_id, message);
	if (!error)
		error = read_hex(object, "rules_id", &verdict->rules_id, message);
	return error;
}

static int read_verdict(const cJSON *object, struct verdict *verdict, struct message *message)
{
	static const char *const keys[] = {"version",   "verdict", "candidate", "source",
	                                   "source_id", "target",  "target_id", "base_id",
	                                   "rules_id",  "who",     "host",      "started",
	                                   "took_ms",   "checks",  NULL};
	static const char where[] = "verdict";
	const char *started = NULL;
	int error = json_keys(object, where, keys, message);
	if (!error)
		error = read_kind(object, where, false, &verdict->verdict, message);
	if (!error)
		error = read_ids(object, verdict, message);
	if (!error)
		error = read_text(object, where, "source", TEXT_MAX, &verdict->source, message);
	if (!error)
		error = read_text(object, where, "target", TEXT_MAX, &verdict->target, message);
	if (!error)
		error = read_text(object, where, "who", TEXT_MAX, &verdict->who, message);
	if (!error)
		error = read_text(object, where, "host", TEXT_MAX, &verdict->host, message);
	if (!error)
		error = json_text_required(object, where, "started", TEXT_MAX, &started, message);
	if (!error && time_parse(started, &verdict->started_ms) < 0)
		error = fail(message, -ERR_INVALID, "verdict: '%.64s' is no time", started);
	if (!error)
		error = json_number(object, where, "took_ms", 0, NUMBER_MAX, &verdict->took_ms,
		                    message);
	return error ? error : read_checks(object, verdict, message);
}

/* A newer version may have what this one calls damage. */
static int read_version(const cJSON *object, int64_t *ret_version, struct message *message)
{
	int64_t version = 0;
	int error = json_number(object, "object", "version", 1, INT32_MAX, &version, message);
	if (!error && !version)
		error = fail(message, -ERR_INVALID, "it has no 'version'");
	if (!error && version > VERSION)
		error = fail(message, -ERR_VERSION, "it has version %lld: upgrade this program",
		             (long long)version);
	*ret_version = version;
	return error;
}

static int decode(const void *bytes, size_t length, struct verdict *ret_verdict,
                  int64_t *ret_version, struct message *message)
{
	CLEANUP(json_cleanup) cJSON *object = NULL;
	CLEANUP(verdict_release) struct verdict verdict = {0};
	int error = json_parse(bytes, length, &object, message);
	if (!error)
		error = read_version(object, ret_version, message);
	if (!error)
		error = read_verdict(object, &verdict, message);
	if (error < 0)
		return error == -ERR_INVALID ? -ERR_CORRUPT : error;
	*ret_verdict = verdict;
	verdict = (struct verdict){0};
	return 0;
}

int verdict_decode(const void *bytes, size_t length, struct verdict *ret_verdict)
{
	int64_t version;
	return decode(bytes, length, ret_verdict, &version, NULL);
}

/* -- for people -- */

static void append_text(struct buffer *text, const char *more)
{
	buffer_append(text, more, strlen(more));
}

static void append_output(struct buffer *text, const char *output)
{
	while (*output) {
		size_t length = strcspn(output, "\n");
		append_text(text, "      ");
		buffer_append(text, output, length);
		append_text(text, "\n");
		output += length + (output[length] != '\0');
	}
}

/* How it ended, where that says more than the verdict. */
static void describe_end(const struct verdict_check *check, char *ret_text, size_t size)
{
	double took_s = (double)check->took_ms / 1000;
	if (check->verdict == VERDICT_SKIPPED)
		snprintf(ret_text, size, "no changed path concerns it");
	else if (check->timed_out)
		snprintf(ret_text, size, "out of time after %.1f s", took_s);
	else if (check->signal)
		snprintf(ret_text, size, "ended by signal %d after %.1f s", check->signal, took_s);
	else if (check->exit_code < 0)
		snprintf(ret_text, size, "could not be run");
	else if (check->exit_code > 0)
		snprintf(ret_text, size, "exit code %d, %.1f s", check->exit_code, took_s);
	else
		snprintf(ret_text, size, "%.1f s", took_s);
}

int verdict_text(const struct verdict *verdict, struct buffer *ret_text)
{
	for (size_t i = 0; i < verdict->check_count; i++) {
		const struct verdict_check *check = &verdict->checks[i];
		CLEANUP(free_pointer)
		char *output = utf8_clean(check->output, strlen(check->output));
		char line[TEXT_MAX], end[64];
		if (!output)
			return -ERR_NO_MEMORY;
		describe_end(check, end, sizeof end);
		snprintf(line, sizeof line, "  %-8s %-24.64s %s\n", verdict_name(check->verdict),
		         check->name, end);
		append_text(ret_text, line);
		if (check->verdict != VERDICT_PASSED && check->verdict != VERDICT_SKIPPED)
			append_output(ret_text, output);
	}
	return buffer_check(ret_text);
}

int verdict_fail(const struct verdict *verdict, int error, struct message *message)
{
	const struct verdict_check *first = NULL;
	size_t bad = 0;
	char end[64], more[48] = "";
	for (size_t i = 0; i < verdict->check_count; i++) {
		const struct verdict_check *check = &verdict->checks[i];
		if (check->verdict != VERDICT_FAILED && check->verdict != VERDICT_ERROR)
			continue;
		if (!bad++)
			first = check;
	}
	if (!first)
		return fail(message, error, "the audits did not pass");
	describe_end(first, end, sizeof end);
	if (bad > 1)
		snprintf(more, sizeof more, ", and %zu more did not pass", bad - 1);
	int line = (int)strcspn(first->output, "\n");
	if (line > LINE_SHOWN_MAX) /* not within a character */
		for (line = LINE_SHOWN_MAX; line && (first->output[line] & 0xc0) == 0x80;)
			line--;
	return fail(message, error, "audit '%.64s' %s (%s)%s%.*s%s; '%.128s' did not move",
	            first->name,
	            first->verdict == VERDICT_FAILED ? "failed" : "could not be completed", end,
	            line ? ": " : "", line, first->output, more, verdict->target);
}

/* -- the store -- */

/* "<prefix><ms>-<checksum>": JSON has no room of its own for one, and of what was audited by whom
 * nothing must change unnoticed, nor two objects their places. */
static void make_key(const char *prefix, int64_t time_ms, const struct buffer *bytes,
                     char ret_key[KEY_MAX])
{
	struct id id;
	char hex[ID_HEX + 1];
	sha256_of(bytes->data, bytes->length, &id);
	id_to_hex(&id, hex);
	snprintf(ret_key, KEY_MAX, "%.90s%013lld-%.16s", prefix, (long long)time_ms, hex);
}

static int check_key(const char *key, int64_t version, const struct buffer *bytes,
                     struct message *message)
{
	struct id id;
	char hex[ID_HEX + 1];
	if (version <= VERSION_UNCHECKED)
		return 0;
	sha256_of(bytes->data, bytes->length, &id);
	id_to_hex(&id, hex);
	const char *dash = strrchr(key, '-');
	if (dash && strlen(dash + 1) == 16 && strncmp(dash + 1, hex, 16) == 0)
		return 0;
	return fail(message, -ERR_CORRUPT, "its bytes are not those it was written with");
}

static int64_t now_ms(void)
{
	int64_t time_ms = clock_wall_ms();
	return time_ms < 0 ? 0 : time_ms > TIME_MAX_MS ? TIME_MAX_MS : time_ms;
}

/* Nobody else makes this name: where it exists after all, a repeated request found its first. */
static int put_new(struct object_store *store, const char *key, const struct buffer *bytes,
                   struct message *message)
{
	struct etag etag;
	int error = object_put_if_absent(store, key, bytes->data, bytes->length, &etag, message);
	if (error != -ERR_EXISTS)
		return error;
	CLEANUP(buffer_release) struct buffer there = {.limit = VERDICT_BYTES_MAX};
	int read = object_get(store, key, 0, UINT64_MAX, &there, &etag, message);
	if (read < 0)
		return read;
	return there.length == bytes->length && memcmp(there.data, bytes->data, there.length) == 0
	               ? 0
	               : fail(message, error, "there is another object '%s'", key);
}

static void verdict_prefix(const struct id *commit, char ret_prefix[KEY_MAX])
{
	char hex[ID_HEX + 1];
	id_to_hex(commit, hex);
	snprintf(ret_prefix, KEY_MAX, AUDITS_PREFIX "%s/", hex);
}

int verdict_store(struct object_store *store, const struct verdict *verdict,
                  struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = VERDICT_BYTES_MAX};
	char prefix[KEY_MAX], key[KEY_MAX];
	CLEANUP(verdict_release) struct verdict read = {0};
	int64_t version;
	int error = verdict_encode(verdict, &bytes);
	/* Nothing is written that nobody could read: an over-long name, what an allocation left
	 * out. */
	if (!error)
		error = decode(bytes.data, bytes.length, &read, &version, message);
	if (error < 0)
		return error;
	verdict_prefix(&verdict->candidate, prefix);
	make_key(prefix, now_ms(), &bytes, key);
	return put_new(store, key, &bytes, message);
}

/* The newest `max` names of a listing, in a ring. */
struct names {
	char (*keys)[KEY_MAX];
	size_t count, max, next;
	int64_t since_ms;
};

static void names_release(struct names *names)
{
	free(names->keys);
}

static int names_grow(struct names *names)
{
	size_t capacity = names->count ? 2 * names->count : 64;
	if (capacity > names->max)
		capacity = names->max;
	void *keys = realloc(names->keys, capacity * sizeof *names->keys);
	if (!keys)
		return -ERR_NO_MEMORY;
	names->keys = keys;
	return 0;
}

/* What is not a name of ours is not looked at: others may keep things beside. */
static int names_add(void *context, const struct object_info *info)
{
	struct names *names = context;
	const char *last = strrchr(info->key, '/') + 1;
	if (strlen(info->key) >= KEY_MAX || strspn(last, "0123456789") != 13 || last[13] != '-' ||
	    strtoll(last, NULL, 10) < names->since_ms)
		return 0;
	bool full = names->count == names->max;
	bool grows =
	        names->count == 0 || (names->count >= 64 && !(names->count & (names->count - 1)));
	int error = !full && grows ? names_grow(names) : 0;
	if (error < 0)
		return error;
	strcpy(names->keys[names->next], info->key);
	names->next = (names->next + 1) % names->max;
	names->count += !full;
	return 0;
}

/* 0 is the oldest. */
static const char *names_at(const struct names *names, size_t index)
{
	size_t first = names->count == names->max ? names->next : 0;
	return names->keys[(first + index) % names->max];
}

static int read_verdict_object(struct object_store *store, const char *key, const struct id *commit,
                               struct verdict *ret_verdict, struct message *ret_why)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = VERDICT_BYTES_MAX};
	struct etag etag;
	int64_t version;
	int error = object_get(store, key, 0, UINT64_MAX, &bytes, &etag, ret_why);
	if (!error)
		error = decode(bytes.data, bytes.length, ret_verdict, &version, ret_why);
	if (!error)
		error = check_key(key, version, &bytes, ret_why);
	if (!error && commit && !id_equal(&ret_verdict->candidate, commit))
		error = fail(ret_why, -ERR_CORRUPT, "it is about another commit");
	if (error < 0 && !ret_why->text[0])
		fail(ret_why, error, "%s", error_text(error));
	return error;
}

int verdict_list(struct object_store *store, const struct id *commit, verdict_fn *callback,
                 void *context, struct message *message)
{
	CLEANUP(names_release) struct names names = {.max = VERDICT_LIST_MAX};
	char prefix[KEY_MAX];
	verdict_prefix(commit, prefix);
	int error = object_list(store, prefix, names_add, &names, message);
	for (size_t i = 0; !error && i < names.count; i++) {
		CLEANUP(verdict_release) struct verdict verdict = {0};
		struct message why = {{0}};
		const char *key = names_at(&names, i);
		int bad = read_verdict_object(store, key, commit, &verdict, &why);
		error = callback(context, key, bad ? NULL : &verdict, bad ? &why : NULL);
	}
	return error;
}

/* -- the log -- */

static void log_prefix(int64_t time_ms, char ret_prefix[KEY_MAX])
{
	char text[32];
	time_format(time_ms, text);
	snprintf(ret_prefix, KEY_MAX, LOG_PREFIX "%.10s/", text);
}

int audit_log_append(struct object_store *store, const struct cJSON *entry, struct message *message)
{
	unsigned failures = json_failures();
	CLEANUP(json_cleanup) cJSON *object = cJSON_Duplicate(entry, true);
	CLEANUP(buffer_release) struct buffer bytes = {.limit = LOG_ENTRY_MAX};
	char prefix[KEY_MAX], key[KEY_MAX], host[256] = "localhost";
	int64_t time_ms = now_ms();
	gethostname(host, sizeof host - 1);
	cJSON_DeleteItemFromObjectCaseSensitive(object, "version");
	cJSON_DeleteItemFromObjectCaseSensitive(object, "time");
	cJSON_DeleteItemFromObjectCaseSensitive(object, "host");
	cJSON_AddNumberToObject(object, "version", VERSION);
	add_time(object, "time", time_ms);
	cJSON_AddStringToObject(object, "host", host);
	int error = json_print(object, failures, &bytes);
	if (error < 0)
		return error;
	log_prefix(time_ms, prefix);
	make_key(prefix, time_ms, &bytes, key);
	return put_new(store, key, &bytes, message);
}

/* NULL: no memory. */
static cJSON *read_entry(struct object_store *store, const char *key)
{
	unsigned failures = json_failures();
	CLEANUP(buffer_release) struct buffer bytes = {.limit = LOG_ENTRY_MAX};
	CLEANUP(json_cleanup) cJSON *entry = NULL;
	struct message why = {{0}};
	struct etag etag;
	int64_t version;
	int error = object_get(store, key, 0, UINT64_MAX, &bytes, &etag, &why);
	if (!error)
		error = json_parse(bytes.data, bytes.length, &entry, &why);
	if (!error)
		error = read_version(entry, &version, &why);
	if (!error)
		error = check_key(key, version, &bytes, &why);
	if (!error)
		return steal(&entry);
	CLEANUP(json_cleanup) cJSON *damaged = cJSON_CreateObject();
	CLEANUP(free_pointer) char *text = utf8_clean(why.text, strlen(why.text));
	cJSON_AddStringToObject(damaged, "key", key);
	cJSON_AddStringToObject(damaged, "damaged", text && *text ? text : error_text(error));
	return json_failures() == failures ? steal(&damaged) : NULL;
}

/* Damaged ones are anybody's. */
static bool entry_is_of(const cJSON *entry, const char *branch)
{
	const cJSON *named = cJSON_GetObjectItemCaseSensitive(entry, "branch");
	return !branch || cJSON_GetObjectItemCaseSensitive(entry, "damaged") ||
	       (cJSON_IsString(named) && strcmp(named->valuestring, branch) == 0);
}

struct entries {
	cJSON **items; /* newest first */
	size_t count, limit;
};

static void entries_clear(struct entries *entries)
{
	for (size_t i = 0; i < entries->count; i++)
		cJSON_Delete(entries->items[i]);
	entries->count = 0;
}

static void entries_release(struct entries *entries)
{
	entries_clear(entries);
	free(entries->items);
}

/* Some entries that are read at once: each is a round trip. */
struct batch {
	struct object_store *store;
	const struct names *names;
	size_t newest; /* the first one's place among the names; the others come before it */
	size_t count;
	atomic_size_t next;
	cJSON *items[READ_AT_ONCE];
};

static void *read_some(void *context)
{
	struct batch *batch = context;
	size_t at;
	while ((at = atomic_fetch_add(&batch->next, 1)) < batch->count)
		batch->items[at] =
		        read_entry(batch->store, names_at(batch->names, batch->newest - at));
	return NULL;
}

static void batch_release(struct batch *batch)
{
	for (size_t i = 0; i < batch->count; i++)
		cJSON_Delete(batch->items[i]);
}

static int entries_add(struct entries *entries, cJSON **entry)
{
	if (!(entries->count & (entries->count + 1))) { /* 0, 1, 3, 7, ... are full */
		size_t capacity = 2 * entries->count + 1;
		void *items = realloc(entries->items, capacity * sizeof *entries->items);
		if (!items)
			return -ERR_NO_MEMORY;
		entries->items = items;
	}
	entries->items[entries->count++] = steal(entry);
	return 0;
}

static int read_newest(struct object_store *store, const struct names *names, const char *branch,
                       struct entries *entries)
{
	int error = 0;
	size_t others =
	        0; /* that were read and are another branch's: as many may be in vain again */
	for (size_t left = names->count; !error && left && entries->count < entries->limit;) {
		size_t wanted = entries->limit - entries->count;
		CLEANUP(batch_release)
		struct batch batch = {.store = store, .names = names, .newest = left - 1};
		wanted = wanted < others ? others : wanted;
		wanted = wanted < READ_AT_ONCE ? wanted : READ_AT_ONCE;
		batch.count = left < wanted ? left : wanted;
		run_together(batch.count - 1, read_some, &batch);
		for (size_t i = 0; !error && i < batch.count && entries->count < entries->limit;
		     i++) {
			if (!batch.items[i])
				error = -ERR_NO_MEMORY;
			else if (entry_is_of(batch.items[i], branch))
				error = entries_add(entries, &batch.items[i]);
			else
				others++;
		}
		left -= batch.count;
	}
	return error;
}

/* Of yesterday, today, and, for clocks that are fast, tomorrow. */
static int list_recent(struct object_store *store, struct names *names, struct message *message)
{
	char prefix[KEY_MAX];
	int error = 0;
	for (int day = -1; !error && day <= 1; day++) {
		log_prefix(now_ms() + day * DAY_MS, prefix);
		error = object_list(store, prefix, names_add, names, message);
	}
	return error;
}

/* Whoever asks for the newest few should not pay for a listing of years. */
int audit_log_list(struct object_store *store, int64_t since_ms, const char *branch, size_t limit,
                   audit_log_fn *callback, void *context, struct message *message)
{
	CLEANUP(entries_release) struct entries entries = {.limit = limit};
	int error = 0;
	for (int all = 0; !error && all <= 1 && entries.count < limit; all++) {
		CLEANUP(names_release)
		struct names names = {.max = LOG_LIST_MAX, .since_ms = since_ms};
		entries_clear(&entries);
		error = all ? object_list(store, LOG_PREFIX, names_add, &names, message)
		            : list_recent(store, &names, message);
		if (!error)
			error = read_newest(store, &names, branch, &entries);
		if (since_ms >= now_ms() - DAY_MS)
			break;
	}
	for (size_t i = entries.count; !error && i--;)
		error = callback(context, entries.items[i]);
	return error;
}

/* -- all of both -- */

struct verification {
	struct object_store *store;
	record_damage_fn *callback;
	void *context;
};

static int verify_verdict(void *context, const struct object_info *info)
{
	const struct verification *verification = context;
	CLEANUP(verdict_release) struct verdict verdict = {0};
	struct message why = {{0}};
	struct id commit;
	char hex[ID_HEX + 1] = "";
	size_t prefix = strlen(AUDITS_PREFIX);
	if (strlen(info->key) > prefix + ID_HEX)
		snprintf(hex, sizeof hex, "%.64s", info->key + prefix);
	if (id_from_hex(hex, &commit) < 0)
		return 0; /* others may keep things beside */
	int error = read_verdict_object(verification->store, info->key, &commit, &verdict, &why);
	if (error == -ERR_STORE_AWAY || error == -ERR_NO_MEMORY)
		return error;
	return error < 0 ? verification->callback(verification->context, info->key, why.text) : 0;
}

static int verify_entry(void *context, const struct object_info *info)
{
	const struct verification *verification = context;
	const char *last = strrchr(info->key, '/') + 1;
	if (strspn(last, "0123456789") != 13)
		return 0;
	CLEANUP(json_cleanup) cJSON *entry = read_entry(verification->store, info->key);
	if (!entry)
		return -ERR_NO_MEMORY;
	const cJSON *damaged = cJSON_GetObjectItemCaseSensitive(entry, "damaged");
	return damaged ? verification->callback(verification->context, info->key,
	                                        damaged->valuestring)
	               : 0;
}

int records_verify(struct object_store *store, record_damage_fn *callback, void *context,
                   struct message *message)
{
	struct verification verification = {store, callback, context};
	int error = object_list(store, AUDITS_PREFIX, verify_verdict, &verification, message);
	return error ? error : object_list(store, LOG_PREFIX, verify_entry, &verification, message);
}
