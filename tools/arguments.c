/*
 * arguments — hides getopt, what may be left out, and how paths typed in a branch's directory
 * become paths below the branch's root.
 */
#include "tools/subcommands.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>

#include "refs/history.h"

#define JSON_OPTION 255
#define TIME_LENGTH_MAX 64
#define LONG_OPTION 256 /* first value for options without a letter */

/* -- finding the command -- */

const struct subcommand *subcommand_find(int argc, char **argv, int *ret_used)
{
	const struct subcommand *first = NULL;
	for (size_t i = 0; i < subcommand_count; i++) {
		const struct subcommand *candidate = &subcommands[i];
		if (strcmp(candidate->name, argv[0]) != 0)
			continue;
		if (!candidate->action) {
			*ret_used = 1;
			return candidate;
		}
		if (!first)
			first = candidate;
		if (argc > 1 && strcmp(candidate->action, argv[1]) == 0) {
			*ret_used = 2;
			return candidate;
		}
	}
	/* `branch` alone lists; `branch nonsense` is an error of its own. */
	if (first && (argc == 1 || argv[1][0] == '-')) {
		*ret_used = 1;
		return first;
	}
	return NULL;
}

/* -- options -- */

static int add_pair(cJSON *request, const char *key, const char *text, struct message *message)
{
	const char *equals = strchr(text, '=');
	if (!equals || equals == text)
		return fail(message, -ERR_INVALID, "--%s needs K=V, not '%s'", key, text);
	cJSON *object = cJSON_GetObjectItemCaseSensitive(request, key);
	if (!object)
		object = cJSON_AddObjectToObject(request, key);
	CLEANUP(free_pointer) char *name = strndup(text, (size_t)(equals - text));
	if (!name)
		return -ERR_NO_MEMORY;
	cJSON_DeleteItemFromObjectCaseSensitive(object, name);
	cJSON_AddStringToObject(object, name, equals + 1);
	return 0;
}

static int add_number(cJSON *request, const struct option_spec *spec, const char *text,
                      struct message *message)
{
	char *end;
	errno = 0;
	long value = strtol(text, &end, 10);
	if (errno || end == text || *end || value < 0)
		return fail(message, -ERR_INVALID, "--%s needs a number from 0, not '%s'",
		            spec->name, text);
	cJSON_AddNumberToObject(request, spec->key, (double)value);
	return 0;
}

static int add_option(cJSON *request, const struct option_spec *spec, const char *text,
                      struct message *message)
{
	cJSON *list;
	switch (spec->type) {
	case OPTION_FLAG:
		cJSON_DeleteItemFromObjectCaseSensitive(request, spec->key);
		cJSON_AddTrueToObject(request, spec->key);
		return 0;
	case OPTION_STRING:
		cJSON_DeleteItemFromObjectCaseSensitive(request, spec->key);
		cJSON_AddStringToObject(request, spec->key, text);
		return 0;
	case OPTION_NUMBER:
		cJSON_DeleteItemFromObjectCaseSensitive(request, spec->key);
		return add_number(request, spec, text, message);
	case OPTION_LIST:
		list = cJSON_GetObjectItemCaseSensitive(request, spec->key);
		if (!list)
			list = cJSON_AddArrayToObject(request, spec->key);
		cJSON_AddItemToArray(list, cJSON_CreateString(text));
		return 0;
	case OPTION_PAIR:
		return add_pair(request, spec->key, text, message);
	}
	return -ERR_INVALID;
}

struct option_table {
	struct option longs[OPTIONS_MAX + 4];
	char shorts[2 * OPTIONS_MAX + 5];
};

static void build_table(const struct subcommand *subcommand, struct option_table *ret_table)
{
	size_t count = 0, letters = 0;
	memset(ret_table, 0, sizeof *ret_table);
	ret_table->shorts[letters++] = ':';
	ret_table->shorts[letters++] = 'h';
	ret_table->shorts[letters++] = 'q';
	for (size_t i = 0; i < OPTIONS_MAX && subcommand->options[i].name; i++) {
		const struct option_spec *spec = &subcommand->options[i];
		int argument = spec->type == OPTION_FLAG ? no_argument : required_argument;
		ret_table->longs[count++] = (struct option){
		        .name = spec->name, .has_arg = argument, .val = LONG_OPTION + (int)i};
		if (spec->letter) {
			ret_table->shorts[letters++] = spec->letter;
			if (argument)
				ret_table->shorts[letters++] = ':';
		}
	}
	ret_table->longs[count++] = (struct option){.name = "json", .val = JSON_OPTION};
	ret_table->longs[count++] = (struct option){.name = "quiet", .val = 'q'};
	ret_table->longs[count] = (struct option){.name = "help", .val = 'h'};
}

static const struct option_spec *spec_of(const struct subcommand *subcommand, int value)
{
	if (value >= LONG_OPTION)
		return &subcommand->options[value - LONG_OPTION];
	for (size_t i = 0; i < OPTIONS_MAX && subcommand->options[i].name; i++)
		if (subcommand->options[i].letter == value)
			return &subcommand->options[i];
	return NULL;
}

/* Leaves the words at argv[optind...]. */
static int parse_options(const struct subcommand *subcommand, int argc, char **argv,
                         struct globals *globals, cJSON *request, bool *ret_help,
                         struct message *message)
{
	struct option_table table;
	int value;
	build_table(subcommand, &table);
	optind = 0; /* GNU: start over */
	opterr = 0;
	while ((value = getopt_long(argc, argv, table.shorts, table.longs, NULL)) != -1) {
		if (value == 'h') {
			*ret_help = true;
			return 0;
		}
		if (value == JSON_OPTION || value == 'q') {
			globals->json |= value == JSON_OPTION;
			globals->quiet |= value == 'q';
			continue;
		}
		if (value == ':')
			return fail(message, -ERR_INVALID, "%s needs a value", argv[optind - 1]);
		const struct option_spec *spec = spec_of(subcommand, value);
		if (!spec || value == '?')
			return fail(message, -ERR_INVALID,
			            "%s has no option %s; see `lakectl %s --help`",
			            subcommand->name, argv[optind - 1], subcommand->name);
		int error = add_option(request, spec, optarg, message);
		if (error < 0)
			return error;
	}
	return 0;
}

/* -- words -- */

static bool is_time(const char *text, size_t length)
{
	char time[TIME_LENGTH_MAX + 1];
	int64_t ms;
	if (length > TIME_LENGTH_MAX)
		return false;
	memcpy(time, text, length);
	time[length] = '\0';
	return time_parse(time, &ms) == 0;
}

/* End of the revision in REV[:PATH]: at the first ':' that is not within the time of BRANCH@TIME,
 * which is taken as long as it can be. */
const char *revision_end(const char *text)
{
	const char *colon = strchr(text, ':'), *at = strchr(text, '@');
	if (!colon || !at || at > colon)
		return colon;
	const char *time = at + 1, *found = colon, *end = text;
	do {
		end = strchrnul(end, ':');
		size_t length = strcspn(time, "~^");
		bool steps = length < (size_t)(end - time);
		if (is_time(time, steps ? length : (size_t)(end - time)))
			found = end;
		if (steps)
			break;
	} while (*end++);
	return *found ? found : NULL;
}

static int add_named(cJSON *request, const char *text, bool path_required, struct message *message)
{
	const char *colon = revision_end(text);
	if (!colon) {
		if (path_required)
			return fail(message, -ERR_INVALID, "'%s' names no path; write REV:PATH",
			            text);
		cJSON_AddStringToObject(request, "revision", text);
		return 0;
	}
	CLEANUP(free_pointer) char *revision = strndup(text, (size_t)(colon - text));
	if (!revision)
		return -ERR_NO_MEMORY;
	cJSON_AddStringToObject(request, "revision", revision);
	cJSON_AddStringToObject(request, "path", colon + 1);
	return 0;
}

static int add_word(cJSON *request, const struct word_spec *word, const char *text,
                    struct message *message)
{
	if (word->type == WORD_NAMED || word->type == WORD_NAMED_OPTIONAL)
		return add_named(request, text, word->type == WORD_NAMED, message);
	cJSON_AddStringToObject(request, word->key, text);
	return 0;
}

static int add_missing(cJSON *request, const struct subcommand *subcommand,
                       const struct word_spec *word, const struct place_here *here,
                       struct message *message)
{
	switch (word->type) {
	case WORD_OPTIONAL:
		return 0;
	case WORD_BRANCH:
	case WORD_REVISION:
	case WORD_NAMED_OPTIONAL:
		if (here->branch)
			cJSON_AddStringToObject(request, word->key, here->branch);
		else if (word->type != WORD_BRANCH && here->revision)
			cJSON_AddStringToObject(request, word->key, here->revision);
		else if (word->type != WORD_BRANCH)
			cJSON_AddStringToObject(request, word->key, "main");
		else
			return fail(message, -ERR_INVALID,
			            "which branch? Name it, or work inside its directory: lakectl "
			            "%s %s",
			            subcommand->name, subcommand->usage);
		return 0;
	case WORD_REQUIRED:
	case WORD_NAMED:
	case WORD_MANY:
		break;
	}
	return fail(message, -ERR_INVALID, "too few words: lakectl %s %s", subcommand->name,
	            subcommand->usage);
}

static void add_many(cJSON *request, const char *key, int count, char **words)
{
	cJSON *array = cJSON_AddArrayToObject(request, key);
	for (int i = 0; i < count; i++)
		cJSON_AddItemToArray(array, cJSON_CreateString(words[i]));
	if (!count)
		cJSON_AddItemToArray(array, cJSON_CreateString("."));
}

static int parse_words(const struct subcommand *subcommand, int count, char **words,
                       const struct place_here *here, cJSON *request, struct message *message)
{
	int wanted = 0, error = 0;
	if (subcommand->words[0].key && subcommand->words[0].type == WORD_MANY) {
		add_many(request, subcommand->words[0].key, count, words);
		return 0;
	}
	while (wanted < WORDS_MAX && subcommand->words[wanted].key)
		wanted++;
	if (count > wanted)
		return fail(message, -ERR_INVALID, "too many words at '%s': lakectl %s %s",
		            words[wanted], subcommand->name, subcommand->usage);
	int skipped = subcommand->optional_first ? wanted - count : 0;
	for (int i = 0; !error && i < wanted; i++) {
		const struct word_spec *word = &subcommand->words[i];
		int given = i - skipped;
		error = given >= 0 && given < count
		                ? add_word(request, word, words[given], message)
		                : add_missing(request, subcommand, word, here, message);
	}
	return error;
}

/* -- paths after "--" -- */

/* Appends `path` to the components in `out`, resolving "." and "..". */
static int resolve_onto(struct buffer *out, const char *path)
{
	while (*path) {
		size_t length = strcspn(path, "/");
		if (length == 2 && memcmp(path, "..", 2) == 0) {
			if (!out->length)
				return -ERR_INVALID;
			while (out->length && out->data[out->length - 1] != '/')
				out->length--;
			if (out->length)
				out->length--;
		} else if (length && !(length == 1 && path[0] == '.')) {
			if (out->length)
				buffer_u8(out, '/');
			buffer_append(out, path, length);
		}
		path += length;
		path += strspn(path, "/");
	}
	return buffer_check(out);
}

/* "/lake/main/orders" with mount point /lake -> "orders". NULL: not below it. */
static const char *below_mount(const char *path, const char *mountpoint)
{
	size_t length = mountpoint ? strlen(mountpoint) : 0;
	if (!length || strncmp(path, mountpoint, length) != 0 || path[length] != '/')
		return NULL;
	path += length + strspn(path + length, "/");
	path += strcspn(path, "/");
	return path + strspn(path, "/");
}

static int add_path(cJSON *array, const char *path, const struct place_here *here,
                    struct message *message)
{
	CLEANUP(buffer_release) struct buffer out = {0};
	int error = 0;
	if (path[0] == '/') {
		const char *below = below_mount(path, here->mountpoint);
		if (!below)
			return fail(
			        message, -ERR_INVALID,
			        "'%s' is not in the mounted lake; paths are relative to the branch",
			        path);
		path = below;
	} else if (here->prefix) {
		error = resolve_onto(&out, here->prefix);
	}
	if (!error)
		error = resolve_onto(&out, path);
	buffer_u8(&out, 0);
	if (error < 0 || buffer_check(&out) < 0)
		return fail(message, -ERR_INVALID, "'%s' leads out of the branch", path);
	cJSON_AddItemToArray(array, cJSON_CreateString((const char *)out.data));
	return 0;
}

int arguments_parse(const struct subcommand *subcommand, int argc, char **argv,
                    const struct place_here *here, struct globals *globals, cJSON **ret_request,
                    bool *ret_help, struct message *message)
{
	int before = 0;
	while (before < argc && strcmp(argv[before], "--") != 0)
		before++;
	cJSON *request = cJSON_CreateObject();
	cJSON_AddStringToObject(request, "command", subcommand->name);
	if (subcommand->action)
		cJSON_AddStringToObject(request, "action", subcommand->action);
	*ret_help = false;
	int error = parse_options(subcommand, before, argv, globals, request, ret_help, message);
	if (!error && !*ret_help)
		error = parse_words(subcommand, before - optind, argv + optind, here, request,
		                    message);
	const char *after = subcommand->rest ? subcommand->rest : subcommand->paths;
	if (!error && before + 1 < argc && !after)
		error = fail(message, -ERR_INVALID, "%s takes no paths: lakectl %s %s",
		             subcommand->name, subcommand->name, subcommand->usage);
	cJSON *list = !error && before + 1 < argc ? cJSON_AddArrayToObject(request, after) : NULL;
	for (int i = before + 1; !error && list && i < argc; i++)
		if (subcommand->rest)
			cJSON_AddItemToArray(list, cJSON_CreateString(argv[i]));
		else
			error = add_path(list, argv[i], here, message);
	if (error < 0) {
		cJSON_Delete(request);
		return error;
	}
	*ret_request = request;
	return 0;
}

/* -- help -- */

void subcommand_help(const struct subcommand *subcommand)
{
	printf("usage: lakectl %s %s\n\n%s\n", subcommand->name, subcommand->usage,
	       subcommand->summary);
	if (subcommand->text)
		printf("\n%s\n", subcommand->text);
	printf("\n");
	for (size_t i = 0; i < OPTIONS_MAX && subcommand->options[i].name; i++) {
		const struct option_spec *spec = &subcommand->options[i];
		char name[64], letter[8] = "    ";
		if (spec->letter)
			snprintf(letter, sizeof letter, "-%c, ", spec->letter);
		snprintf(name, sizeof name, "--%s%s%s", spec->name, spec->value ? " " : "",
		         spec->value ? spec->value : "");
		printf("  %s%-22s %s\n", letter, name, spec->help);
	}
	printf("  -h, %-22s %s\n", "--help", "this text");
}

bool subcommands_list(const char *name)
{
	bool any = false;
	for (size_t i = 0; i < subcommand_count; i++) {
		const struct subcommand *subcommand = &subcommands[i];
		char start[64];
		if (name && strcmp(name, subcommand->name) != 0)
			continue;
		any = true;
		snprintf(start, sizeof start, "%s%s%s", subcommand->name,
		         subcommand->action ? " " : "",
		         subcommand->action ? subcommand->action : "");
		printf("  %-15s %s\n", start, subcommand->summary);
	}
	return any;
}
