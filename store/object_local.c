/*
 * object_local — objects as files below a root directory; a key is a path.
 *
 * Hides: how a file becomes visible whole and durable; how conditional puts are atomic between
 * processes; how a store that went away is told from an object that is not there.
 *
 *   <root>/~store        marker: "lake object store 1\n" and a random id. '~' is in no key.
 *   <root>/~tmp/         files being written; those an hour old at opening are nobody's
 *   <root>/~locks/00..3f flock(2): who compares and replaces, replaces or removes a key holds the
 *                        exclusive lock of the key's hash. Creation needs none: link(2) is atomic.
 *   <root>/<key>         an object
 *
 * A put writes and syncs a file in ~tmp, then renames or links it, then syncs the directory, so a
 * crash leaves the old object or the new. Directories are synced into their parents before the
 * first object in them is reported, also when another process made them.
 *
 * The store is away when the marker cannot be read or carries another id: an unmounted disk leaves
 * an empty mount point, in which "not found" would be a lie and a new file a loss.
 *
 * Locks: `known.lock`, a leaf; the flock is held over reading and renaming
 * one small object, never over fsync or the writing of content.
 */
#include "store/object.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "store/open_files.h"

#define MARKER_NAME "~store"
#define MARKER_TEXT "lake object store 1\n"
#define MARKER_BYTES (sizeof(MARKER_TEXT) - 1 + 2 * MARKER_ID_BYTES + 1)
#define MARKER_ID_BYTES 16
#define LOCK_COUNT 64
#define TEMPORARY_AGE_MS_MAX ((int64_t)3600 * 1000)
#define KNOWN_DIRECTORIES_MAX 256
#define ETAG_LISTED_BYTES_MAX (64 << 10)
/* From so many bytes on the page cache is passed by: copying into it costs more than writing, and
 * what it holds of a pack pushes out what is read. */
#define DIRECT_BYTES_MIN ((size_t)8 << 20)
#define DIRECT_STEP ((size_t)16 << 20)
#define DIRECT_ALIGNMENT 4096
#define PACKS "packs/" /* immutable objects, read again and again in parts */
#define REFS "refs/"   /* small objects; a listing gives their etags */

struct local_store {
	struct object_store base;
	char *root;
	char marker[MARKER_BYTES];

	struct open_files packs;

	struct {
		pthread_mutex_t lock;
		dev_t device; /* of the root when the marker was last read */
		ino_t inode;
		char *directories[KNOWN_DIRECTORIES_MAX]; /* durable in their parents */
		size_t count;
	} known;
};

static struct local_store *local_of(struct object_store *store)
{
	return (struct local_store *)store;
}

/* -- directories known to be durable in their parents -- */

static bool directory_known(struct local_store *local, const char *directory)
{
	bool found = false;
	pthread_mutex_lock(&local->known.lock);
	for (size_t i = 0; i < local->known.count && !found; i++)
		found = strcmp(local->known.directories[i], directory) == 0;
	pthread_mutex_unlock(&local->known.lock);
	return found;
}

/* A full table or no memory only costs another fsync next time. */
static void directory_learn(struct local_store *local, const char *directory)
{
	pthread_mutex_lock(&local->known.lock);
	char *copy = local->known.count < KNOWN_DIRECTORIES_MAX ? strdup(directory) : NULL;
	if (copy != NULL)
		local->known.directories[local->known.count++] = copy;
	pthread_mutex_unlock(&local->known.lock);
}

static void directories_forget(struct local_store *local)
{
	pthread_mutex_lock(&local->known.lock);
	for (size_t i = 0; i < local->known.count; i++)
		free(local->known.directories[i]);
	local->known.count = 0;
	pthread_mutex_unlock(&local->known.lock);
}

/* -- paths and failures -- */

struct path {
	char text[PATH_MAX];
};

/* Always fits: opening refuses a root that leaves too little room. */
static void path_of(const struct local_store *local, const char *key, struct path *ret_path)
{
	int n = snprintf(ret_path->text, sizeof(ret_path->text), "%s/%s", local->root, key);
	assert(n > 0 && (size_t)n < sizeof(ret_path->text));
}

static int fail_away(const struct local_store *local, const char *why, struct message *message)
{
	return fail(message, -ERR_STORE_AWAY,
	            "object store '%s' cannot be reached: %s; mount or restore that directory, "
	            "then try again",
	            local->root, why);
}

/* Errors that speak of the whole medium, not of one file. */
static bool medium_failed(int system_errno)
{
	switch (system_errno) {
	case EIO:
	case ESTALE:
	case ENOTCONN:
	case ENODEV:
	case ENXIO:
	case ESHUTDOWN:
	case ETIMEDOUT:
	case EHOSTDOWN:
	case EHOSTUNREACH:
		return true;
	default:
		return false;
	}
}

/* No such file; the store itself may be gone, see check_marker. */
static bool is_absent(int system_errno)
{
	return system_errno == ENOENT || system_errno == ENOTDIR;
}

static int read_marker(const char *root, struct buffer *ret_marker)
{
	char path[PATH_MAX];
	int n = snprintf(path, sizeof(path), "%s/%s", root, MARKER_NAME);
	if (n < 0 || (size_t)n >= sizeof(path))
		return error_system(ENAMETOOLONG);
	return read_file(AT_FDCWD, path, MARKER_BYTES, ret_marker);
}

static int check_marker(struct local_store *local, struct message *message)
{
	CLEANUP(buffer_release) struct buffer marker = {0};
	int r = read_marker(local->root, &marker);
	if (r == -ERR_NOT_FOUND || r == -ERR_NOT_DIRECTORY)
		return fail_away(local, "its marker file '" MARKER_NAME "' is not there", message);
	if (r < 0 && r != -ERR_TOO_LARGE)
		return fail_away(local, error_text(r), message);
	if (r < 0 || marker.length != MARKER_BYTES ||
	    memcmp(marker.data, local->marker, MARKER_BYTES) != 0)
		return fail_away(local, "another store is in its place", message);
	return 0;
}

/* 0 when the root is the one that was opened: one stat(2), and the marker when that changed. */
static int check_present(struct local_store *local, struct message *message)
{
	struct stat status;
	if (stat(local->root, &status) < 0)
		return fail_away(local, error_text(error_system(errno)), message);
	pthread_mutex_lock(&local->known.lock);
	bool same = status.st_dev == local->known.device && status.st_ino == local->known.inode;
	pthread_mutex_unlock(&local->known.lock);
	if (same)
		return 0;
	int r = check_marker(local, message);
	if (r < 0)
		return r;
	/* Perhaps restored from a copy: what was durable there need not be here. */
	directories_forget(local);
	pthread_mutex_lock(&local->known.lock);
	local->known.device = status.st_dev;
	local->known.inode = status.st_ino;
	pthread_mutex_unlock(&local->known.lock);
	return 0;
}

/* Why a call on `key` failed, with `system_errno`: the store's fault or the object's. */
static int fail_call(struct local_store *local, const char *what, const char *key, int system_errno,
                     struct message *message)
{
	int r = error_system(system_errno);
	if (medium_failed(system_errno))
		return fail_away(local, error_text(r), message);
	if (is_absent(system_errno)) {
		/* The directory is the same one, but may have been emptied. */
		int away = check_marker(local, message);
		return away < 0 ? away
		                : fail(message, -ERR_NOT_FOUND, "object store '%s': no object '%s'",
		                       local->root, key);
	}
	if (r == -ERR_NO_SPACE)
		return fail(message, r,
		            "object store '%s' is full: cannot %s '%s'; make room, then try again",
		            local->root, what, key);
	return fail(message, r, "object store '%s': cannot %s '%s': %s", local->root, what, key,
	            error_text(r));
}

/* The same for a failure that already is an error of ours. */
static int fail_known(struct local_store *local, const char *what, const char *key, int error,
                      struct message *message)
{
	return fail_call(local, what, key, error_errno(error), message);
}

/* -- reading -- */

static int append_range(int fd, uint64_t size, uint64_t offset, uint64_t length,
                        struct buffer *ret_bytes)
{
	uint64_t left = offset < size ? size - offset : 0;
	size_t take = (size_t)(length < left ? length : left);
	int r = buffer_reserve(ret_bytes, take);
	if (r < 0 || take == 0)
		return r;
	ssize_t got = read_full(fd, ret_bytes->data + ret_bytes->length, take, (off_t)offset);
	if (got < 0)
		return (int)got;
	ret_bytes->length += (size_t)got;
	return 0;
}

static int open_object(struct local_store *local, const char *key, int *ret_fd, uint64_t *ret_size,
                       struct message *message)
{
	struct path path;
	path_of(local, key, &path);
	CLEANUP(close_descriptor) int fd = open(path.text, O_RDONLY | O_CLOEXEC);
	struct stat status;
	if (fd < 0 || fstat(fd, &status) < 0)
		return fail_call(local, "read", key, errno, message);
	if (!S_ISREG(status.st_mode)) /* a directory of keys, not a key */
		return fail_call(local, "read", key, ENOENT, message);
	*ret_size = (uint64_t)status.st_size;
	*ret_fd = fd;
	fd = -1;
	return 0;
}

static int get_pack(struct local_store *local, const char *key, uint64_t offset, uint64_t length,
                    struct buffer *ret_bytes, struct message *message)
{
	uint64_t moment;
	struct open_file *file = open_files_find(&local->packs, key, &moment);
	if (file == NULL) {
		CLEANUP(close_descriptor) int fd = -1;
		uint64_t size;
		int r = check_present(local, message);
		if (r == 0)
			r = open_object(local, key, &fd, &size, message);
		if (r < 0)
			return r;
		file = open_files_keep(&local->packs, key, &fd, size, moment);
		if (file == NULL)
			return fail(message, -ERR_NO_MEMORY, "out of memory");
	}
	int r = append_range(file->fd, file->size, offset, length, ret_bytes);
	open_files_done(&local->packs, file);
	if (r == -ERR_TOO_LARGE || r == -ERR_NO_MEMORY)
		return fail(message, r, "object '%s': %s", key, error_text(r));
	return r < 0 ? fail_known(local, "read", key, r, message) : 0;
}

static int get_with_etag(struct local_store *local, const char *key, uint64_t offset,
                         uint64_t length, struct buffer *ret_bytes, struct etag *ret_etag,
                         struct message *message)
{
	CLEANUP(close_descriptor) int fd = -1;
	CLEANUP(buffer_release) struct buffer whole = {0};
	uint64_t size;
	int r = check_present(local, message);
	if (r == 0)
		r = open_object(local, key, &fd, &size, message);
	if (r < 0)
		return r;
	if (ret_etag == NULL) {
		r = append_range(fd, size, offset, length, ret_bytes);
	} else {
		r = append_range(fd, size, 0, UINT64_MAX, &whole);
		uint64_t left = offset < whole.length ? whole.length - offset : 0;
		size_t take = (size_t)(length < left ? length : left);
		if (r == 0)
			r = buffer_reserve(ret_bytes, take);
		if (r == 0 && take > 0)
			buffer_append(ret_bytes, whole.data + offset, take);
		if (r == 0)
			etag_of(whole.data, whole.length, ret_etag);
	}
	if (r == -ERR_TOO_LARGE || r == -ERR_NO_MEMORY)
		return fail(message, r, "object '%s': %s", key, error_text(r));
	return r < 0 ? fail_known(local, "read", key, r, message) : 0;
}

static int local_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                     struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	struct local_store *local = local_of(store);
	if (ret_etag == NULL && strncmp(key, PACKS, sizeof(PACKS) - 1) == 0)
		return get_pack(local, key, offset, length, ret_bytes, message);
	return get_with_etag(local, key, offset, length, ret_bytes, ret_etag, message);
}

/* -- durable directories -- */

static int sync_path(const char *path)
{
	CLEANUP(close_descriptor) int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

/* Make every directory above `key`, each durable in its parent. A negative errno. */
static int make_parents(struct local_store *local, const char *key)
{
	struct path path, parent;
	path_of(local, key, &path);
	char *start = path.text + strlen(local->root) + 1;
	for (char *at = strchr(start, '/'); at != NULL; at = strchr(at + 1, '/')) {
		*at = '\0';
		if (!directory_known(local, start)) {
			if (mkdir(path.text, 0777) < 0 && errno != EEXIST)
				return -errno;
			/* Also when somebody else made it: he may not have synced it yet. */
			parent = path;
			*strrchr(parent.text, '/') = '\0';
			int r = sync_path(parent.text);
			if (r < 0)
				return r;
			directory_learn(local, start);
		}
		*at = '/';
	}
	return 0;
}

static int sync_parent(struct local_store *local, const char *key)
{
	struct path path;
	path_of(local, key, &path);
	*strrchr(path.text, '/') = '\0';
	return sync_path(path.text);
}

/* -- writing -- */

/* A file in ~tmp, written and synced; unlinked on release unless it was renamed. */
struct temporary {
	struct path path;
	bool present;
};

static void temporary_release(struct temporary *temporary)
{
	if (temporary->present)
		unlink(temporary->path.text);
}

/* Open a file in ~tmp or ~locks; the directory is made again should an operator have tidied up. */
static int open_own(struct local_store *local, const char *directory, const struct path *path,
                    int flags)
{
	int fd = open(path->text, flags | O_CREAT | O_CLOEXEC, 0666);
	if (fd >= 0 || errno != ENOENT || check_marker(local, NULL) < 0)
		return fd;
	struct path parent;
	path_of(local, directory, &parent);
	if (mkdir(parent.text, 0777) < 0 && errno != EEXIST)
		return -1;
	return open(path->text, flags | O_CREAT | O_CLOEXEC, 0666);
}

static int temporary_open(struct local_store *local, struct temporary *temporary)
{
	char name[64];
	snprintf(name, sizeof(name), "~tmp/%d.%016llx", (int)getpid(),
	         (unsigned long long)random_u64());
	path_of(local, name, &temporary->path);
	int fd = open_own(local, "~tmp", &temporary->path, O_WRONLY | O_EXCL);
	temporary->present = fd >= 0;
	return fd;
}

/* A message for a write that failed; one that finds no directory to write in finds no store. */
static int fail_write(struct local_store *local, const char *what, const char *key,
                      int system_errno, struct message *message)
{
	if (!is_absent(system_errno))
		return fail_call(local, what, key, system_errno, message);
	int r = check_marker(local, message);
	return r < 0 ? r : fail_away(local, "its directories vanish while in use", message);
}

/* Write what may be written directly: whole blocks from aligned memory. Where the file system will
 * not (or not with this alignment) nothing more is. *ret_done: how many bytes are in the file. */
static int write_direct(int fd, const uint8_t *bytes, size_t length, size_t *ret_done)
{
	size_t whole = length - length % DIRECT_ALIGNMENT, done = 0;
	int flags = fcntl(fd, F_GETFL), r = 0;
	*ret_done = 0;
	if (length < DIRECT_BYTES_MIN || (uintptr_t)bytes % DIRECT_ALIGNMENT != 0 || flags < 0 ||
	    fcntl(fd, F_SETFL, flags | O_DIRECT) < 0)
		return 0;
	while (r == 0 && done < whole) {
		size_t step = whole - done < DIRECT_STEP ? whole - done : DIRECT_STEP;
		r = write_full(fd, bytes + done, step, (off_t)done);
		done += r == 0 ? step : 0;
	}
	if (r == error_system(EINVAL))
		r = 0;
	if (r == 0 && fcntl(fd, F_SETFL, flags) < 0)
		r = error_system(errno);
	*ret_done = done;
	return r;
}

static int temporary_write(struct local_store *local, const char *key, const void *bytes,
                           size_t length, struct temporary *ret_temporary, struct message *message)
{
	int r = check_present(local, message);
	if (r < 0)
		return r;
	CLEANUP(close_descriptor) int fd = temporary_open(local, ret_temporary);
	if (fd < 0)
		return fail_write(local, "write", key, errno, message);
	size_t done = 0;
	r = write_direct(fd, bytes, length, &done);
	if (r == 0)
		r = write_full(fd, (const uint8_t *)bytes + done, length - done, (off_t)done);
	if (r == 0 && fsync(fd) < 0)
		r = error_system(errno);
	return r < 0 ? fail_write(local, "write", key, error_errno(r), message) : 0;
}

/* Take the lock of `key`; closing the descriptor lets it go. */
static int lock_key(struct local_store *local, const char *key, int *ret_fd,
                    struct message *message)
{
	struct id id;
	sha256_of(key, strlen(key), &id);
	char name[32];
	snprintf(name, sizeof(name), "~locks/%02x", id.bytes[0] % LOCK_COUNT);
	struct path path;
	path_of(local, name, &path);
	CLEANUP(close_descriptor) int fd = open_own(local, "~locks", &path, O_RDWR);
	if (fd < 0)
		return fail_write(local, "lock", key, errno, message);
	while (flock(fd, LOCK_EX) < 0)
		if (errno != EINTR)
			return fail_call(local, "lock", key, errno, message);
	*ret_fd = fd;
	fd = -1;
	return 0;
}

/* Parents may vanish after they were seen (an operator tidies up): then they are made again. */
static int with_parents(struct local_store *local, const char *key,
                        int (*place)(const char *from, const char *to), struct temporary *temporary)
{
	struct path path;
	path_of(local, key, &path);
	int r = make_parents(local, key);
	if (r < 0)
		return r;
	if (place(temporary->path.text, path.text) == 0)
		return 0;
	if (errno != ENOENT)
		return -errno;
	directories_forget(local);
	r = make_parents(local, key);
	if (r < 0)
		return r;
	return place(temporary->path.text, path.text) == 0 ? 0 : -errno;
}

static int rename_over(const char *from, const char *to)
{
	return rename(from, to);
}

/* Some file systems have no hard links; those that also lack RENAME_NOREPLACE cannot hold a store.
 */
static int link_new(const char *from, const char *to)
{
	if (link(from, to) == 0)
		return 0;
	if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOSYS)
		return -1;
	return renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);
}

static int fail_place(struct local_store *local, const char *key, int system_errno,
                      struct message *message)
{
	struct path path;
	struct stat status;
	path_of(local, key, &path);
	bool directory = stat(path.text, &status) == 0 && S_ISDIR(status.st_mode);
	if (system_errno == EISDIR || system_errno == ENOTDIR ||
	    (system_errno == EEXIST && directory))
		return fail(message, -ERR_BAD_NAME,
		            "object store '%s': '%s' is a directory of other keys, or lies below "
		            "another key",
		            local->root, key);
	if (system_errno == EEXIST)
		return fail(message, -ERR_EXISTS, "object store '%s': '%s' exists already",
		            local->root, key);
	return fail_write(local, "write", key, system_errno, message);
}

static int local_put(struct object_store *store, const char *key, const void *bytes, size_t length,
                     struct message *message)
{
	struct local_store *local = local_of(store);
	CLEANUP(temporary_release) struct temporary temporary = {.present = false};
	CLEANUP(close_descriptor) int lock = -1;
	int r = temporary_write(local, key, bytes, length, &temporary, message);
	if (r == 0)
		r = lock_key(local, key, &lock, message);
	if (r < 0)
		return r;
	r = with_parents(local, key, rename_over, &temporary);
	if (r < 0)
		return fail_place(local, key, -r, message);
	temporary.present = false;
	close_descriptor(&lock);
	open_files_forget(&local->packs, key);
	r = sync_parent(local, key);
	return r < 0 ? fail_write(local, "write", key, -r, message) : 0;
}

static int local_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                               size_t length, struct etag *ret_etag, struct message *message)
{
	struct local_store *local = local_of(store);
	CLEANUP(temporary_release) struct temporary temporary = {.present = false};
	int r = temporary_write(local, key, bytes, length, &temporary, message);
	if (r < 0)
		return r;
	r = with_parents(local, key, link_new, &temporary);
	if (r < 0)
		return fail_place(local, key, -r, message);
	r = sync_parent(local, key);
	if (r < 0)
		return fail_write(local, "write", key, -r, message);
	if (ret_etag != NULL)
		etag_of(bytes, length, ret_etag);
	return 0;
}

/* The lock is held. The content's hash decides: inode and time may both come back. */
static int check_etag(struct local_store *local, const char *key, const struct etag *expected,
                      struct message *message)
{
	CLEANUP(buffer_release) struct buffer current = {0};
	struct etag etag;
	int r = get_with_etag(local, key, 0, UINT64_MAX, &current, &etag, message);
	if (r < 0)
		return r;
	if (strcmp(etag.text, expected->text) != 0)
		return fail(message, -ERR_MOVED, "object store '%s': '%s' was replaced meanwhile",
		            local->root, key);
	return 0;
}

static int local_put_if_match(struct object_store *store, const char *key, const void *bytes,
                              size_t length, const struct etag *expected, struct etag *ret_etag,
                              struct message *message)
{
	struct local_store *local = local_of(store);
	CLEANUP(temporary_release) struct temporary temporary = {.present = false};
	CLEANUP(close_descriptor) int lock = -1;
	int r = temporary_write(local, key, bytes, length, &temporary, message);
	if (r == 0)
		r = lock_key(local, key, &lock, message);
	if (r == 0)
		r = check_etag(local, key, expected, message);
	if (r < 0)
		return r;
	r = with_parents(local, key, rename_over, &temporary);
	if (r < 0)
		return fail_place(local, key, -r, message);
	temporary.present = false;
	close_descriptor(&lock);
	open_files_forget(&local->packs, key);
	r = sync_parent(local, key);
	if (r < 0)
		return fail_write(local, "write", key, -r, message);
	if (ret_etag != NULL)
		etag_of(bytes, length, ret_etag);
	return 0;
}

static int local_remove(struct object_store *store, const char *key, struct message *message)
{
	struct local_store *local = local_of(store);
	CLEANUP(close_descriptor) int lock = -1;
	int r = check_present(local, message);
	if (r == 0)
		r = lock_key(local, key, &lock, message);
	if (r < 0)
		return r;
	struct path path;
	path_of(local, key, &path);
	int error = unlink(path.text) < 0 ? errno : 0;
	close_descriptor(&lock);
	open_files_forget(&local->packs, key);
	if (error == EISDIR)
		return 0; /* a directory of keys: no such object */
	if (is_absent(error))
		return check_marker(local, message);
	if (error != 0)
		return fail_call(local, "remove", key, error, message);
	r = sync_parent(local, key);
	return r < 0 ? fail_write(local, "remove", key, -r, message) : 0;
}

/* -- listing -- */

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

static bool is_directory(DIR *directory, const struct dirent *entry)
{
	if (entry->d_type != DT_UNKNOWN && entry->d_type != DT_LNK)
		return entry->d_type == DT_DIR;
	struct stat status;
	return fstatat(dirfd(directory), entry->d_name, &status, 0) == 0 && S_ISDIR(status.st_mode);
}

static void directory_close(DIR **directory)
{
	if (*directory != NULL)
		closedir(*directory);
}

/* Read the directory key[0..base) (empty or ending in '/'), keeping what could match. */
static int read_names(struct listing *listing, size_t base, struct names *ret_names)
{
	struct path path;
	listing->key[base] = '\0';
	path_of(listing->local, listing->key, &path);
	CLEANUP(directory_close) DIR *directory = opendir(path.text);
	if (directory == NULL) /* one that is not there (any more) holds no objects */
		return is_absent(errno) ? check_marker(listing->local, listing->message)
		                        : fail_call(listing->local, "list", listing->key, errno,
		                                    listing->message);
	for (;;) {
		errno = 0;
		const struct dirent *entry = readdir(directory);
		if (entry == NULL && errno != 0)
			return fail_call(listing->local, "list", listing->key, errno,
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
	return 0;
}

static int list_object(struct listing *listing)
{
	struct path path;
	struct stat status;
	path_of(listing->local, listing->key, &path);
	if (stat(path.text, &status) < 0) /* removed since its name was read */
		return is_absent(errno) ? 0
		                        : fail_call(listing->local, "list", listing->key, errno,
		                                    listing->message);
	if (!S_ISREG(status.st_mode))
		return 0;
	struct object_info info = {
	        .key = listing->key,
	        .size = (uint64_t)status.st_size,
	        .modified_ms =
	                (int64_t)status.st_mtim.tv_sec * 1000 + status.st_mtim.tv_nsec / 1000000,
	};
	if (strncmp(listing->key, REFS, sizeof(REFS) - 1) == 0 &&
	    status.st_size <= ETAG_LISTED_BYTES_MAX) {
		CLEANUP(buffer_release) struct buffer bytes = {0};
		int r = read_file(AT_FDCWD, path.text, ETAG_LISTED_BYTES_MAX, &bytes);
		if (r == -ERR_NOT_FOUND)
			return 0;
		if (r < 0 && r != -ERR_TOO_LARGE)
			return fail_known(listing->local, "list", listing->key, r,
			                  listing->message);
		if (r == 0) {
			etag_of(bytes.data, bytes.length, &info.etag);
			info.size = bytes.length; /* of the same moment as the etag */
		}
	}
	return listing->callback(listing->context, &info);
}

static int list_directory(struct listing *listing, size_t base)
{
	CLEANUP(names_release) struct names names = {0};
	int r = read_names(listing, base, &names);
	for (size_t i = 0; r == 0 && i < names.count; i++) {
		size_t length = strlen(names.items[i]);
		memcpy(listing->key + base, names.items[i], length + 1);
		if (!prefix_allows(listing, base, names.items[i]))
			continue;
		if (names.items[i][length - 1] == '/')
			r = list_directory(listing, base + length);
		else if (base + length >= listing->prefix_length)
			r = list_object(listing);
		listing->key[base] = '\0';
	}
	return r;
}

static int local_list(struct object_store *store, const char *prefix, object_list_fn *callback,
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
	int r = check_marker(listing.local, message);
	if (r < 0)
		return r;
	/* Begin in the deepest directory that the prefix names. */
	const char *slash = strrchr(prefix, '/');
	size_t base = slash != NULL ? (size_t)(slash - prefix) + 1 : 0;
	memcpy(listing.key, prefix, base);
	return list_directory(&listing, base);
}

static int local_space(struct object_store *store, uint64_t *ret_free, uint64_t *ret_total)
{
	struct local_store *local = local_of(store);
	struct statvfs status;
	int r = check_present(local, NULL);
	if (r < 0)
		return r;
	if (statvfs(local->root, &status) < 0)
		return error_system(errno);
	*ret_free = (uint64_t)status.f_bavail * status.f_frsize;
	*ret_total = (uint64_t)status.f_blocks * status.f_frsize;
	return 0;
}

/* -- opening -- */

static void local_free(struct object_store *store)
{
	struct local_store *local = local_of(store);
	open_files_release(&local->packs);
	directories_forget(local);
	pthread_mutex_destroy(&local->known.lock);
	free(local->root);
	free(local);
}

static const struct object_ops local_ops = {
        .get = local_get,
        .put = local_put,
        .put_if_absent = local_put_if_absent,
        .put_if_match = local_put_if_match,
        .list = local_list,
        .remove = local_remove,
        .free = local_free,
        .space = local_space,
};

/* Nothing but what a new file system brings, or an interrupted creation of ours left. */
static int check_empty(const char *root)
{
	CLEANUP(directory_close) DIR *directory = opendir(root);
	if (directory == NULL)
		return error_system(errno);
	const struct dirent *entry;
	while ((entry = readdir(directory)) != NULL)
		if (entry->d_name[0] != '~' && strcmp(entry->d_name, ".") != 0 &&
		    strcmp(entry->d_name, "..") != 0 && strcmp(entry->d_name, "lost+found") != 0)
			return -ERR_NOT_EMPTY;
	return 0;
}

/* The marker comes last and by link(2): whoever sees it sees a whole store, and of two who create
 * at once the second finds the first one's. */
static int create_store(struct local_store *local)
{
	struct path path;
	int r = make_directories(local->root, 0777);
	if (r == 0)
		r = check_empty(local->root);
	if (r < 0)
		return r;
	static const char *const own[] = {"~tmp", "~locks"};
	for (size_t i = 0; i < ARRAY_SIZE(own); i++) {
		path_of(local, own[i], &path);
		r = make_directories(path.text, 0777);
		if (r < 0)
			return r;
	}
	uint8_t id[MARKER_ID_BYTES];
	char hex[2 * MARKER_ID_BYTES + 1], text[MARKER_BYTES + 1];
	random_bytes(id, sizeof(id));
	hex_encode(id, sizeof(id), hex);
	snprintf(text, sizeof(text), MARKER_TEXT "%s\n", hex);
	CLEANUP(temporary_release) struct temporary temporary = {.present = false};
	CLEANUP(close_descriptor) int fd = temporary_open(local, &temporary);
	if (fd < 0)
		return error_system(errno);
	r = write_full(fd, text, MARKER_BYTES, 0);
	if (r == 0 && fsync(fd) < 0)
		r = error_system(errno);
	path_of(local, MARKER_NAME, &path);
	if (r == 0 && link(temporary.path.text, path.text) < 0 && errno != EEXIST)
		r = error_system(errno);
	if (r == 0)
		r = sync_path(local->root) < 0 ? error_system(errno) : 0;
	return r;
}

static void clean_temporaries(struct local_store *local)
{
	struct path path;
	path_of(local, "~tmp", &path);
	CLEANUP(directory_close) DIR *directory = opendir(path.text);
	if (directory == NULL)
		return;
	const struct dirent *entry;
	while ((entry = readdir(directory)) != NULL) {
		struct stat status;
		if (fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0 ||
		    !S_ISREG(status.st_mode))
			continue;
		int64_t age_ms = clock_wall_ms() - (int64_t)status.st_mtim.tv_sec * 1000;
		if (age_ms > TEMPORARY_AGE_MS_MAX)
			unlinkat(dirfd(directory), entry->d_name, 0);
	}
}

static int adopt_marker(struct local_store *local, bool create, struct message *message)
{
	CLEANUP(buffer_release) struct buffer marker = {0};
	int r = read_marker(local->root, &marker);
	if (r == -ERR_NOT_FOUND && create) {
		r = create_store(local);
		if (r == -ERR_NOT_EMPTY)
			return fail(message, r,
			            "'%s' holds other files and is no object store; name an empty "
			            "or new directory",
			            local->root);
		if (r < 0)
			return fail(message, r, "object store '%s' cannot be made: %s", local->root,
			            error_text(r));
		r = read_marker(local->root, &marker);
	}
	if (r == -ERR_NOT_DIRECTORY)
		return fail(message, r, "'%s' is not a directory", local->root);
	if (r == -ERR_NOT_FOUND)
		return fail(message, r,
		            "no object store at '%s' (there is no '%s/" MARKER_NAME
		            "'); is its disk mounted?",
		            local->root, local->root);
	if (r < 0 && r != -ERR_TOO_LARGE)
		return fail(message, r, "object store '%s': %s", local->root, error_text(r));
	if (r == -ERR_TOO_LARGE || marker.length != MARKER_BYTES ||
	    memcmp(marker.data, MARKER_TEXT, sizeof(MARKER_TEXT) - 1) != 0)
		return fail(message, -ERR_VERSION,
		            "'%s/" MARKER_NAME "' is damaged or of a newer version", local->root);
	memcpy(local->marker, marker.data, MARKER_BYTES);
	return 0;
}

static void local_release(struct local_store **local)
{
	if (*local != NULL)
		local_free(&(*local)->base);
}

int object_local_open(const char *directory, bool create, struct object_store **ret_store,
                      struct message *message)
{
	size_t length = strlen(directory);
	while (length > 1 && directory[length - 1] == '/')
		length--;
	if (directory[0] != '/')
		return fail(message, -ERR_INVALID, "'%s' is not an absolute path", directory);
	if (length + 1 + OBJECT_KEY_MAX + 1 > PATH_MAX)
		return fail(message, -ERR_TOO_LARGE, "the object store's path is too long");
	CLEANUP(local_release) struct local_store *local = calloc(1, sizeof(*local));
	if (local == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	local->base.ops = &local_ops;
	open_files_init(&local->packs);
	pthread_mutex_init(&local->known.lock, NULL);
	local->root = strndup(directory, length);
	if (local->root == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	int r = adopt_marker(local, create, message);
	if (r == 0)
		r = check_present(local, message);
	if (r < 0)
		return r;
	clean_temporaries(local);
	*ret_store = &steal(&local)->base;
	return 0;
}
