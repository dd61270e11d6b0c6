/*
 * object_local_list.c — hides in which order directories are read so that keys come sorted, and
 * what in them is no object of ours.
 */
#include "store/object_local.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/beneath.h"

#define ETAG_LISTED_BYTES_MAX (64 << 10)
#define REFS "refs/" /* small objects; a listing gives their etags */

struct listing {
	struct local_store *local;
	const char *prefix;
	size_t prefix_length;
	object_list_fn *callback;
	void *context;
	struct message *message;
	char key[OBJECT_KEY_MAX + 2]; /* of the entry at hand */
};

/* Names of one directory; those of directories end in '/'. So sorted, they give the order of
 * whole keys: "a.b" comes before "a/b". */
struct names {
	char **items;
	size_t count;
	size_t capacity;
};

static void names_release(struct names *names)
{
	for (size_t i = 0; i < names->count; i++)
		free(names->items[i]);
	free(names->items);
}

static int names_add(struct names *names, const char *name, bool directory)
{
	if (names->count == names->capacity) {
		size_t capacity = names->capacity > 0 ? names->capacity * 2 : 64;
		char **items = realloc(names->items, capacity * sizeof(*items));
		if (items == NULL)
			return -ERR_NO_MEMORY;
		names->items = items;
		names->capacity = capacity;
	}
	size_t length = strlen(name);
	char *copy = malloc(length + 2);
	if (copy == NULL)
		return -ERR_NO_MEMORY;
	memcpy(copy, name, length);
	memcpy(copy + length, directory ? "/" : "", directory ? 2 : 1);
	names->items[names->count++] = copy;
	return 0;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Could a key that begins with key[0..base) + name match the prefix? */
static bool prefix_allows(const struct listing *listing, size_t base, const char *name)
{
	if (base >= listing->prefix_length)
		return true;
	size_t rest = listing->prefix_length - base, length = strlen(name);
	return strncmp(name, listing->prefix + base, length < rest ? length : rest) == 0;
}

/* A link is none: it is not followed, so it counts as an object, and who reads that is told. */
static bool is_directory(DIR *directory, const struct dirent *entry)
{
	struct stat status;
	if (entry->d_type != DT_UNKNOWN)
		return entry->d_type == DT_DIR;
	return fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
	       S_ISDIR(status.st_mode);
}

static void directory_close(DIR **directory)
{
	if (*directory != NULL)
		closedir(*directory);
}

/* Read the directory key[0..base) (empty or ending in '/'), keeping what could match. */
static int read_names(struct listing *listing, size_t base, struct names *ret_names, int *ret_fd)
{
	listing->key[base] = '\0';
	int fd = beneath_open(listing->local->root, listing->key, O_RDONLY | O_DIRECTORY, 0);
	if (fd < 0) /* one that is not there (any more) holds no objects */
		return fd == -ENOENT || fd == -ENOTDIR
		               ? local_check_marker(listing->local, listing->message)
		               : local_fail(listing->local, "list", listing->key, -fd,
		                            listing->message);
	CLEANUP(directory_close) DIR *directory = fdopendir(fd);
	if (directory == NULL) {
		close_descriptor(&fd);
		return fail(listing->message, -ERR_NO_MEMORY, "out of memory");
	}
	for (;;) {
		errno = 0;
		const struct dirent *entry = readdir(directory);
		if (entry == NULL && errno != 0)
			return local_fail(listing->local, "list", listing->key, errno,
			                  listing->message);
		if (entry == NULL)
			break;
		/* Whatever cannot be part of a key is none of ours: ~tmp, ".", an editor's copy. */
		if (!object_key_valid(entry->d_name) ||
		    base + strlen(entry->d_name) > OBJECT_KEY_MAX ||
		    !prefix_allows(listing, base, entry->d_name))
			continue;
		int r = names_add(ret_names, entry->d_name, is_directory(directory, entry));
		if (r < 0)
			return fail(listing->message, r, "out of memory");
	}
	if (ret_names->count > 0)
		qsort(ret_names->items, ret_names->count, sizeof(char *), compare_names);
	*ret_fd = fcntl(dirfd(directory), F_DUPFD_CLOEXEC, 0);
	return *ret_fd < 0
	               ? local_fail(listing->local, "list", listing->key, errno, listing->message)
	               : 0;
}

/* Refs are read for their etags: size and etag are then of the same moment. */
static int read_etag(struct listing *listing, int parent, const char *name,
                     struct object_info *info)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	CLEANUP(close_descriptor) int fd = beneath_open_at(parent, name, O_RDONLY, 0);
	int r = fd < 0 ? error_system(-fd) : read_descriptor(fd, ETAG_LISTED_BYTES_MAX, &bytes);
	if (r < 0)
		return r;
	etag_of(bytes.data, bytes.length, &info->etag);
	info->size = bytes.length;
	return 0;
}

static int list_object(struct listing *listing, int parent, const char *name)
{
	struct stat status;
	if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0) /* removed since */
		return errno == ENOENT ? 0
		                       : local_fail(listing->local, "list", listing->key, errno,
		                                    listing->message);
	struct object_info info = {
	        .key = listing->key,
	        .size = S_ISREG(status.st_mode) ? (uint64_t)status.st_size : 0,
	        .modified_ms =
	                (int64_t)status.st_mtim.tv_sec * 1000 + status.st_mtim.tv_nsec / 1000000,
	};
	if (S_ISREG(status.st_mode) && strncmp(listing->key, REFS, sizeof(REFS) - 1) == 0 &&
	    status.st_size <= ETAG_LISTED_BYTES_MAX) {
		int r = read_etag(listing, parent, name, &info);
		if (r == -ERR_NOT_FOUND)
			return 0;
		if (r < 0 && r != -ERR_TOO_LARGE)
			return local_fail(listing->local, "list", listing->key, error_errno(r),
			                  listing->message);
	}
	return listing->callback(listing->context, &info);
}

static int list_directory(struct listing *listing, size_t base)
{
	CLEANUP(names_release) struct names names = {0};
	CLEANUP(close_descriptor) int parent = -1;
	int r = read_names(listing, base, &names, &parent);
	for (size_t i = 0; r == 0 && i < names.count; i++) {
		size_t length = strlen(names.items[i]);
		memcpy(listing->key + base, names.items[i], length + 1);
		if (!prefix_allows(listing, base, names.items[i]))
			continue;
		if (names.items[i][length - 1] == '/')
			r = list_directory(listing, base + length);
		else if (base + length >= listing->prefix_length)
			r = list_object(listing, parent, names.items[i]);
		listing->key[base] = '\0';
	}
	return r;
}

int local_store_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                     void *context, struct message *message)
{
	struct listing listing = {
	        .local = local_of(store),
	        .prefix = prefix,
	        .prefix_length = strlen(prefix),
	        .callback = callback,
	        .context = context,
	        .message = message,
	};
	/* Always the marker itself: an emptied directory must not pass for an empty store. */
	int r = local_check_marker(listing.local, message);
	if (r < 0)
		return r;
	/* Begin in the deepest directory that the prefix names. */
	const char *slash = strrchr(prefix, '/');
	size_t base = slash != NULL ? (size_t)(slash - prefix) + 1 : 0;
	memcpy(listing.key, prefix, base);
	return list_directory(&listing, base);
}
