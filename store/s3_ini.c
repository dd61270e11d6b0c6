/* s3_ini — hides how the shared configuration files are read, line by line. */
#include "store/s3_ini.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>

#include "store/secret.h"

struct span {
	const char *at;
	size_t length;
};

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

static struct span trim(struct span span)
{
	while (span.length > 0 && is_blank(span.at[0])) {
		span.at++;
		span.length--;
	}
	while (span.length > 0 && is_blank(span.at[span.length - 1]))
		span.length--;
	return span;
}

static struct span until_comment(struct span value)
{
	for (size_t i = 1; i < value.length; i++)
		if ((value.at[i] == '#' || value.at[i] == ';') && is_blank(value.at[i - 1]))
			return (struct span){value.at, i};
	return value;
}

void ini_release(struct ini *ini)
{
	for (size_t i = 0; i < ini->count; i++) {
		struct ini_entry *entry = &ini->entries[i];
		if (entry->value != NULL)
			explicit_bzero(entry->value, strlen(entry->value));
		free(entry->section);
		free(entry->key);
		free(entry->value);
	}
	free(ini->entries);
	memset(ini, 0, sizeof(*ini));
}

/* The words of a section's name, one blank between them. */
static char *section_name(struct span inside)
{
	char *name = calloc(1, inside.length + 1), *to = name;
	inside = trim(inside);
	for (size_t i = 0; name != NULL && i < inside.length; i++)
		if (!is_blank(inside.at[i]) || !is_blank(inside.at[i - 1]))
			*to++ = is_blank(inside.at[i]) ? ' ' : inside.at[i];
	return name;
}

static int add(struct ini *ini, const char *section, const char *outer, struct span key,
               struct span value)
{
	if (ini->count == INI_ENTRIES_MAX)
		return -ERR_TOO_LARGE;
	if ((ini->count & (ini->count - 1)) == 0) { /* grown at powers of two */
		size_t capacity = ini->count > 0 ? ini->count * 2 : 1;
		struct ini_entry *grown = realloc(ini->entries, capacity * sizeof(*grown));
		if (grown == NULL)
			return -ERR_NO_MEMORY;
		ini->entries = grown;
	}
	struct ini_entry *entry = &ini->entries[ini->count++];
	size_t outer_length = outer != NULL ? strlen(outer) + 1 : 0;
	entry->section = strdup(section);
	entry->key = calloc(1, outer_length + key.length + 1);
	entry->value = strndup(value.length > 0 ? value.at : "", value.length);
	if (entry->section == NULL || entry->key == NULL || entry->value == NULL)
		return -ERR_NO_MEMORY;
	if (outer != NULL) {
		memcpy(entry->key, outer, outer_length - 1);
		entry->key[outer_length - 1] = '.';
	}
	for (size_t i = 0; i < key.length; i++)
		entry->key[outer_length + i] = (char)tolower((unsigned char)key.at[i]);
	return 0;
}

struct ini_state {
	struct ini ini;
	char *section; /* NULL before the first */
	size_t outer;  /* 1 + index of the entry that indented lines belong to; 0: none */
};

static int take_line(struct ini_state *state, struct span raw)
{
	bool indented = raw.length > 0 && is_blank(raw.at[0]);
	struct span line = trim(raw);
	if (line.length == 0 || line.at[0] == '#' || line.at[0] == ';')
		return 0;
	const char *bracket = memchr(line.at, ']', line.length);
	if (!indented && line.at[0] == '[' && bracket != NULL) {
		free(state->section);
		state->outer = 0;
		state->section =
		        section_name((struct span){line.at + 1, (size_t)(bracket - line.at) - 1});
		return state->section != NULL ? 0 : -ERR_NO_MEMORY;
	}
	const char *equals = memchr(line.at, '=', line.length);
	if (equals == NULL || state->section == NULL)
		return 0;
	struct span key = trim((struct span){line.at, (size_t)(equals - line.at)});
	struct span value = {equals + 1, line.length - (size_t)(equals - line.at) - 1};
	value = trim(until_comment(value));
	if (indented && state->outer == 0)
		return 0; /* a continued value; no key of ours has one */
	const char *outer = indented ? state->ini.entries[state->outer - 1].key : NULL;
	int error = add(&state->ini, state->section, outer, key, value);
	if (!indented)
		state->outer = value.length == 0 ? state->ini.count : 0;
	return error;
}

int ini_parse(const void *bytes, size_t length, struct ini *ret_ini)
{
	struct ini_state state = {0};
	const char *at = bytes, *end = at + length;
	int error = length > INI_BYTES_MAX ? -ERR_TOO_LARGE : 0;
	while (error == 0 && at < end) {
		const char *newline = memchr(at, '\n', (size_t)(end - at));
		const char *stop = newline != NULL ? newline : end;
		/* A NUL would hide the rest of the line from string functions. */
		if (memchr(at, '\0', (size_t)(stop - at)) == NULL)
			error = take_line(&state, (struct span){at, (size_t)(stop - at)});
		at = newline != NULL ? newline + 1 : end;
	}
	free(state.section);
	if (error < 0) {
		ini_release(&state.ini);
		return error;
	}
	*ret_ini = state.ini;
	return 0;
}

int ini_read(const char *path, struct ini *ret_ini, struct message *message)
{
	CLEANUP(buffer_release_secret) struct buffer bytes = {0};
	int error = read_file(AT_FDCWD, path, INI_BYTES_MAX, &bytes);
	if (error == -ERR_NOT_FOUND || error == -ERR_NOT_DIRECTORY) {
		*ret_ini = (struct ini){0};
		return 0;
	}
	if (error == 0)
		error = ini_parse(bytes.data, bytes.length, ret_ini);
	return error < 0 ? fail(message, error, "cannot read %s: %s", path, error_text(error)) : 0;
}

const char *ini_get(const struct ini *ini, const char *section, const char *key)
{
	for (size_t i = ini->count; i > 0; i--)
		if (strcmp(ini->entries[i - 1].section, section) == 0 &&
		    strcmp(ini->entries[i - 1].key, key) == 0)
			return ini->entries[i - 1].value;
	return NULL;
}

bool ini_has(const struct ini *ini, const char *section)
{
	for (size_t i = 0; i < ini->count; i++)
		if (strcmp(ini->entries[i].section, section) == 0)
			return true;
	return false;
}

/* -- the two shared files -- */

const char *environment(const char *name)
{
	const char *value = getenv(name);
	return value != NULL && value[0] != '\0' ? value : NULL;
}

static int read_shared(const char *variable, const char *name, struct ini *ret_ini,
                       struct message *message)
{
	CLEANUP(free_pointer) char *path = NULL;
	const char *given = environment(variable), *home = environment("HOME");
	if (given == NULL && home == NULL)
		return 0;
	path = given != NULL ? strdup(given) : NULL;
	if (given == NULL && asprintf(&path, "%s/.aws/%s", home, name) < 0)
		path = NULL;
	return path != NULL ? ini_read(path, ret_ini, message) : -ERR_NO_MEMORY;
}

void shared_config_release(struct shared_config *shared)
{
	ini_release(&shared->config);
	ini_release(&shared->credentials);
	free(shared->profile);
	memset(shared, 0, sizeof(*shared));
}

/* [profile one] in the config file; there, and there alone, [default] needs no "profile". */
static const char *config_get(const struct shared_config *shared, const char *key)
{
	char section[256];
	snprintf(section, sizeof(section), "profile %s", shared->profile);
	const char *value = ini_get(&shared->config, section, key);
	if (value == NULL && strcmp(shared->profile, "default") == 0)
		value = ini_get(&shared->config, "default", key);
	return value;
}

const char *shared_config_get(const struct shared_config *shared, const char *key)
{
	const char *value = ini_get(&shared->credentials, shared->profile, key);
	if (value == NULL)
		value = config_get(shared, key);
	return value != NULL && value[0] != '\0' ? value : NULL;
}

const char *shared_config_service(const struct shared_config *shared, const char *key)
{
	char section[256];
	const char *services = shared_config_get(shared, "services");
	if (services == NULL)
		return NULL;
	snprintf(section, sizeof(section), "services %s", services);
	return ini_get(&shared->config, section, key);
}

int shared_config_read(const char *profile, struct shared_config *ret_shared,
                       struct message *message)
{
	CLEANUP(shared_config_release) struct shared_config shared = {0};
	bool named = true;
	if (profile == NULL)
		profile = environment("AWS_PROFILE");
	if (profile == NULL) {
		named = false;
		profile = "default";
	}
	shared.profile = strdup(profile);
	if (shared.profile == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	int error = read_shared("AWS_CONFIG_FILE", "config", &shared.config, message);
	if (error == 0)
		error = read_shared("AWS_SHARED_CREDENTIALS_FILE", "credentials",
		                    &shared.credentials, message);
	if (error < 0)
		return error;
	char section[256];
	snprintf(section, sizeof(section), "profile %s", profile);
	if (named && strcmp(profile, "default") != 0 && !ini_has(&shared.config, section) &&
	    !ini_has(&shared.credentials, profile))
		return fail(message, -ERR_NOT_FOUND,
		            "no profile '%s' in the shared AWS config and credentials files "
		            "(~/.aws/config and ~/.aws/credentials, unless AWS_CONFIG_FILE and "
		            "AWS_SHARED_CREDENTIALS_FILE name others)",
		            profile);
	*ret_shared = shared;
	memset(&shared, 0, sizeof(shared));
	return 0;
}
