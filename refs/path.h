/*
 * path — paths and patterns of paths, as text. Relative to a branch's root, "/" between
 * components, any other bytes; "" is the root.
 *
 * Knows nothing of trees (refs/diff.h does). Threads: any.
 */
#ifndef REFS_PATH_H
#define REFS_PATH_H

#include "store/base.h"

#define PATH_BYTES_MAX 4096

/* True when `path` is `prefix` or lies below it; "" contains everything. */
bool path_within(const char *path, const char *prefix);
/* "a/b", "./a//b/" -> "a/b"; refuses "..", absolute, too long. -ERR_INVALID + message. */
int path_normalise(const char *path, char ret_path[PATH_BYTES_MAX], struct message *message);

/*
 * Patterns, by bytes. Within a component: "*" any bytes, "?" one, "[a-z_]" one of a set, "[!...]"
 * or
 * "[^...]" one outside it ("]" comes first to be meant), "\" before a byte takes it as it is. A
 * component
 * "**" is any number of components, also none. What matches a directory matches all below it. A
 * leading dot is nothing special. Empty components and "." do not count.
 */
/* Cost: the length of the pattern times that of the path, at worst. Malformed parts match nothing.
 */
bool path_glob_match(const char *pattern, const char *path);
/* The same; *ret_depth: how many components of the path the match needs, the fewest that do. */
bool path_glob_find(const char *pattern, const char *path, unsigned *ret_depth);
/* Whether the pattern can match `directory`, what is below it, or both. */
bool path_glob_reaches(const char *pattern, const char *directory);
/* No pattern but a path: nothing in it is special. */
bool path_glob_is_plain(const char *pattern);
/* -ERR_INVALID + message: malformed, absolute, "..", too long. */
int path_glob_check(const char *pattern, struct message *message);

#endif
