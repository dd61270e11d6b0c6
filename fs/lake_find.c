/*
 * lake_find — hides how the lake a command means is found: options, environment, the mount the
 * current directory lies in, the default.
 */
#include "fs/lake.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* mountinfo writes space, tab, newline and backslash as \ooo (proc(5)). */
static void unescape(char *text)
{
	char *out = text;
	for (const char *in = text; *in; out++) {
		if (in[0] == '\\' && in[1] >= '0' && in[1] <= '3' && in[2] && in[3]) {
			*out = (char)((in[1] - '0') << 6 | (in[2] - '0') << 3 | (in[3] - '0'));
			in += 4;
		} else {
			*out = *in++;
		}
	}
	*out = '\0';
}

static bool lies_in(const char *path, const char *directory)
{
	size_t length = strlen(directory);
	if (length == 1)
		return true;
	return strncmp(path, directory, length) == 0 && (path[length] == '/' || !path[length]);
}

/* One line: id parent maj:min root mountpoint options [fields] - type source options */
static bool parse_mount(char *line, char **ret_mountpoint, char **ret_source)
{
	char *fields[5];
	char *rest = line;
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		if (!(fields[i] = strsep(&rest, " ")))
			return false;
	char *separator = rest ? strstr(rest, " - ") : NULL;
	if (!separator)
		return false;
	separator += 3;
	char *type = strsep(&separator, " ");
	char *source = separator ? strsep(&separator, " \n") : NULL;
	if (!source || strcmp(type, "fuse.lake") != 0)
		return false;
	unescape(fields[4]);
	unescape(source);
	*ret_mountpoint = fields[4];
	*ret_source = source;
	return true;
}

int lake_mount_of(const char *path, char **ret_mountpoint, char **ret_directory)
{
	CLEANUP(free_pointer) char *line = NULL;
	CLEANUP(free_pointer) char *best = NULL;
	CLEANUP(free_pointer) char *best_source = NULL;
	size_t capacity = 0;
	FILE *file = fopen("/proc/self/mountinfo", "re");
	if (!file)
		return error_system(errno);
	while (getline(&line, &capacity, file) > 0) {
		char *mountpoint, *source;
		if (!parse_mount(line, &mountpoint, &source) || !lies_in(path, mountpoint))
			continue;
		if (best && strlen(best) > strlen(mountpoint))
			continue;
		free(best);
		free(best_source);
		best = strdup(mountpoint);
		best_source = strdup(source);
	}
	fclose(file);
	if (!best || !best_source)
		return -ERR_NOT_FOUND;
	*ret_mountpoint = steal(&best);
	*ret_directory = steal(&best_source);
	return 0;
}

/* "main/orders/x" below the mount point -> branch "main", prefix "orders/x"; so "@v1/orders". */
static int split_branch(const char *below, char **ret_branch, char **ret_prefix)
{
	while (*below == '/')
		below++;
	size_t length = strcspn(below, "/");
	if (!length || below[0] == '.')
		return 0;
	const char *prefix = below + length;
	while (*prefix == '/')
		prefix++;
	*ret_branch = strndup(below, length);
	*ret_prefix = strdup(prefix);
	return *ret_branch && *ret_prefix ? 0 : -ERR_NO_MEMORY;
}

static char *default_directory(void)
{
	char *path = NULL;
	const char *data = getenv("XDG_DATA_HOME");
	const char *home = getenv("HOME");
	if (geteuid() == 0)
		return strdup("/var/lib/lake");
	if (data && data[0] == '/')
		return text_format(&path, "%s/lake", data) < 0 ? NULL : path;
	return text_format(&path, "%s/.local/share/lake", home ? home : "") < 0 ? NULL : path;
}

/* --lake may name a lake's directory or a place inside its mount. */
static char *named_directory(const char *given)
{
	CLEANUP(free_pointer) char *real = realpath(given, NULL);
	CLEANUP(free_pointer) char *config = NULL;
	char *mountpoint = NULL, *directory = NULL;
	if (!real || text_format(&config, "%s/lake.json", real) < 0)
		return strdup(given);
	if (access(config, F_OK) < 0 && lake_mount_of(real, &mountpoint, &directory) == 0) {
		free(mountpoint);
		return directory;
	}
	return steal(&real);
}

int lake_find(const char *given, char **ret_directory, char **ret_branch, char **ret_prefix,
              struct message *message)
{
	CLEANUP(free_pointer) char *here = getcwd(NULL, 0);
	CLEANUP(free_pointer) char *mountpoint = NULL;
	CLEANUP(free_pointer) char *mounted = NULL;
	CLEANUP(free_pointer) char *directory = NULL;
	CLEANUP(free_pointer) char *branch = NULL;
	CLEANUP(free_pointer) char *prefix = NULL;

	if (!given || !given[0])
		given = getenv("LAKE_DIR");
	if (given && given[0])
		directory = named_directory(given);
	if (here && lake_mount_of(here, &mountpoint, &mounted) == 0) {
		if (!directory)
			directory = strdup(mounted);
		if (directory && strcmp(directory, mounted) == 0 &&
		    split_branch(here + (strlen(mountpoint) > 1 ? strlen(mountpoint) : 0), &branch,
		                 &prefix) < 0)
			return -ERR_NO_MEMORY;
	}
	if (!directory)
		directory = default_directory();
	if (!directory)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	*ret_directory = steal(&directory);
	*ret_branch = steal(&branch);
	*ret_prefix = steal(&prefix);
	return 0;
}
