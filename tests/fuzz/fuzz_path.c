/*
 * Arbitrary bytes as a pattern, and after a NUL, a path: what matches reaches into every directory
 * above it, and matches everything below.
 */
#include "refs/path.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char pattern[PATH_BYTES_MAX], text[PATH_BYTES_MAX], path[PATH_BYTES_MAX + 2];
	size_t length = strnlen((const char *)data, size);
	unsigned depth = 0, deeper = 0;

	if (size >= PATH_BYTES_MAX || length == size)
		return 0;
	memcpy(pattern, data, length + 1);
	memcpy(text, data + length + 1, size - length - 1);
	text[size - length - 1] = '\0';
	path_glob_check(pattern, NULL);
	if (path_normalise(text, path, NULL) < 0)
		return 0;
	if (!path_glob_find(pattern, path, &depth))
		return 0;
	if (!path_glob_match(pattern, path) || !path_glob_reaches(pattern, path))
		abort();
	strcat(path, "/x");
	if (!path_glob_find(pattern, path, &deeper) || deeper != depth)
		abort();
	for (char *slash; (slash = strrchr(path, '/'));) {
		*slash = '\0';
		if (!path_glob_reaches(pattern, path))
			abort();
	}
	return 0;
}
