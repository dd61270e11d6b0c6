/*
 * path.c — hides the language of path patterns and how a match is found without searching
 * exponentially.
 */
#include "refs/path.h"
#include "store/tree.h"

#include <stdio.h>

/* -- paths as text -- */

bool path_within(const char *path, const char *prefix)
{
	size_t length = strlen(prefix);
	if (length == 0)
		return true;
	return strncmp(path, prefix, length) == 0 && (path[length] == '\0' || path[length] == '/');
}

int path_normalise(const char *path, char ret_path[PATH_BYTES_MAX], struct message *message)
{
	char made[PATH_BYTES_MAX];
	size_t used = 0;
	if (*path == '/')
		return fail(message, -ERR_INVALID,
		            "'%s' is absolute; give it relative to the branch", path);
	while (*path) {
		size_t length = strcspn(path, "/");
		const char *name = path;
		path += length + (path[length] == '/');
		if (length == 0 || (length == 1 && name[0] == '.'))
			continue;
		if (length == 2 && name[0] == '.' && name[1] == '.')
			return fail(message, -ERR_INVALID, "a path must not contain '..'");
		if (length > NAME_BYTES_MAX || used + 1 + length >= sizeof(made))
			return fail(message, -ERR_INVALID, "the path '%.60s...' is too long", name);
		if (used > 0)
			made[used++] = '/';
		memcpy(made + used, name, length);
		used += length;
	}
	made[used] = '\0';
	memcpy(ret_path, made, used + 1);
	return 0;
}

/* -- patterns -- */

/* The next component of a path or pattern that is not empty or "."; NULL at the end. */
static const char *component_next(const char **at, size_t *ret_length)
{
	for (;;) {
		*at += strspn(*at, "/");
		const char *component = *at;
		*ret_length = strcspn(component, "/");
		*at += *ret_length;
		if (*ret_length == 0)
			return NULL;
		if (*ret_length != 1 || component[0] != '.')
			return component;
	}
}

static bool glob_literal(const char **at, const char *end, unsigned char *ret_byte)
{
	if (**at == '\\' && ++*at == end)
		return false;
	*ret_byte = (unsigned char)*(*at)++;
	return true;
}

static bool glob_set(const char **at, const char *end, unsigned char byte, bool *ret_matches)
{
	bool negated = *at < end && (**at == '!' || **at == '^'), found = false;
	*at += negated;
	for (bool first = true; *at < end && (first || **at != ']'); first = false) {
		unsigned char low, high;
		if (!glob_literal(at, end, &low))
			return false;
		high = low;
		if (end - *at >= 2 && (*at)[0] == '-' && (*at)[1] != ']') {
			++*at;
			if (!glob_literal(at, end, &high) || high < low)
				return false;
		}
		found = found || (low <= byte && byte <= high);
	}
	if (*at == end)
		return false;
	++*at;
	*ret_matches = found != negated;
	return true;
}

/* One byte's worth of a pattern: a byte, "?", an escaped byte, or a set. Advances; `*ret_matches`
 * says whether it takes `byte`. False: malformed. */
static bool glob_one(const char **at, const char *end, unsigned char byte, bool *ret_matches)
{
	unsigned char literal;
	if (**at == '[') {
		++*at;
		return glob_set(at, end, byte, ret_matches);
	}
	*ret_matches = true;
	if (**at == '?') {
		++*at;
		return true;
	}
	if (!glob_literal(at, end, &literal))
		return false;
	*ret_matches = literal == byte;
	return true;
}

/* When the rest does not match, only the last star need take more: what the earlier ones took is
 * the shortest that works, and any more leaves less for the rest. Thus no exponential search. */
static bool component_matches(const char *pattern, size_t pattern_length, const char *name,
                              size_t name_length)
{
	const char *pattern_end = pattern + pattern_length, *name_end = name + name_length;
	const char *star = NULL, *star_name = NULL;
	while (name < name_end) {
		bool matches = false;
		const char *after = pattern;
		if (pattern < pattern_end && *pattern == '*') {
			star = ++pattern;
			star_name = name;
			continue;
		}
		if (pattern < pattern_end &&
		    !glob_one(&after, pattern_end, (unsigned char)*name, &matches))
			return false;
		if (matches) {
			pattern = after;
			name++;
		} else if (star) {
			pattern = star;
			name = ++star_name;
		} else {
			return false;
		}
	}
	while (pattern < pattern_end && *pattern == '*')
		pattern++;
	return pattern == pattern_end;
}

static bool is_any_depth(const char *component, size_t length)
{
	return length == 2 && component[0] == '*' && component[1] == '*';
}

/* The same search as within a component, with "**" for the star. The end of the pattern is a match,
 * whatever is left of the path. */
bool path_glob_find(const char *pattern, const char *path, unsigned *ret_depth)
{
	const char *star = NULL, *star_path = NULL;
	unsigned depth = 0, star_depth = 0;
	for (;;) {
		const char *pattern_after = pattern, *path_after = path;
		size_t wanted_length, length;
		const char *wanted = component_next(&pattern_after, &wanted_length);
		if (!wanted) {
			*ret_depth = depth;
			return true;
		}
		if (is_any_depth(wanted, wanted_length)) {
			star = pattern = pattern_after;
			star_path = path;
			star_depth = depth;
			continue;
		}
		const char *name = component_next(&path_after, &length);
		if (!name)
			return false; /* any other way would have even less of the path left */
		if (component_matches(wanted, wanted_length, name, length)) {
			pattern = pattern_after;
			path = path_after;
			depth++;
		} else if (star) {
			component_next(&star_path, &length);
			pattern = star;
			path = star_path;
			depth = ++star_depth;
		} else {
			return false;
		}
	}
}

bool path_glob_match(const char *pattern, const char *path)
{
	unsigned depth;
	return path_glob_find(pattern, path, &depth);
}

bool path_glob_reaches(const char *pattern, const char *directory)
{
	for (;;) {
		size_t wanted_length, length;
		const char *wanted = component_next(&pattern, &wanted_length);
		const char *name = component_next(&directory, &length);
		if (!wanted || !name || is_any_depth(wanted, wanted_length))
			return true;
		if (!component_matches(wanted, wanted_length, name, length))
			return false;
	}
}

bool path_glob_is_plain(const char *pattern)
{
	return pattern[strcspn(pattern, "*?[\\")] == '\0';
}

int path_glob_check(const char *pattern, struct message *message)
{
	const char *at = pattern, *component;
	size_t length;
	if (*pattern == '/')
		return fail(message, -ERR_INVALID,
		            "the pattern '%s' is absolute; give it relative to the branch",
		            pattern);
	if (strlen(pattern) >= PATH_BYTES_MAX)
		return fail(message, -ERR_INVALID, "the pattern '%.60s...' is too long", pattern);
	while ((component = component_next(&at, &length))) {
		const char *byte = component, *end = component + length;
		bool ignored;
		if (length == 2 && component[0] == '.' && component[1] == '.')
			return fail(message, -ERR_INVALID, "a pattern must not contain '..'");
		while (byte < end) {
			const char *from = byte;
			if (*byte == '*')
				byte++;
			else if (!glob_one(&byte, end, 0, &ignored))
				return fail(message, -ERR_INVALID,
				            "the pattern '%s' is malformed at '%.*s': %s", pattern,
				            (int)(end - from), from,
				            *from == '['
				                    ? "a set needs its ']' and ranges that ascend"
				                    : "nothing follows the backslash");
		}
	}
	return 0;
}
