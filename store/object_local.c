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
 * Others may write to the directory, too: what they put there is never followed out of it
 * (beneath.h).
 *
 * Locks: `known.lock`, a leaf; the flock is held over reading and renaming
 * one small object, never over fsync or the writing of content.
 */
#include "store/object_local.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "store/beneath.h"

#define MARKER_NAME "~store"
#define MARKER_TEXT LOCAL_MARKER_TEXT
#define MARKER_BYTES LOCAL_MARKER_BYTES
#define MARKER_ID_BYTES LOCAL_MARKER_ID_BYTES
#define LOCK_COUNT 64
#define TEMPORARY_AGE_MS_MAX ((int64_t)3600 * 1000)
/* From so many bytes on the page cache is passed by: copying into it costs more than writing, and
 * what it holds of a pack pushes out what is read. */
#define DIRECT_BYTES_MIN ((size_t)8 << 20)
#define DIRECT_STEP ((size_t)16 << 20)
#define DIRECT_ALIGNMENT 4096
#define PACKS "packs/" /* immutable objects, read again and again in parts */

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
	char *copy = local->known.count < LOCAL_DIRECTORIES_MAX ? strdup(directory) : NULL;
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

/* -- failures -- */

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
	CLEANUP(close_descriptor) int fd = beneath_open(root, MARKER_NAME, O_RDONLY, 0);
	return fd < 0 ? error_system(-fd) : read_descriptor(fd, MARKER_BYTES, ret_marker);
}

int local_check_marker(struct local_store *local, struct message *message)
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
	int r = local_check_marker(local, message);
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
int local_fail(struct local_store *local, const char *what, const char *key, int system_errno,
               struct message *message)
{
	int r = error_system(system_errno);
	if (system_errno == ELOOP)
		return fail(message, -ERR_CORRUPT,
		            "object store '%s': '%s' is a symbolic link or lies below one, and a "
		            "store's are not followed; put what it leads to in its place",
		            local->root, key);
	if (medium_failed(system_errno))
		return fail_away(local, error_text(r), message);
	if (is_absent(system_errno)) {
		/* The directory is the same one, but may have been emptied. */
		int away = local_check_marker(local, message);
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
	return local_fail(local, what, key, error_errno(error), message);
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
	CLEANUP(close_descriptor) int fd = beneath_open(local->root, key, O_RDONLY, 0);
	struct stat status = {0};
	bool socket = fd == -ENXIO; /* a marker that can be read tells it from a lost disk */
	if (socket && local_check_marker(local, message) < 0)
		return -ERR_STORE_AWAY;
	if (!socket && (fd < 0 || fstat(fd, &status) < 0))
		return local_fail(local, "read", key, fd < 0 ? -fd : errno, message);
	if (S_ISDIR(status.st_mode)) /* a directory of keys, not a key */
		return local_fail(local, "read", key, ENOENT, message);
	if (!S_ISREG(status.st_mode))
		return fail(message, -ERR_CORRUPT, "object store '%s': '%s' is no file",
		            local->root, key);
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

static int open_directory(int parent_fd, const char *name)
{
	return beneath_open_at(parent_fd, name, O_RDONLY | O_DIRECTORY, 0);
}

static int make_directory(struct local_store *local, int parent_fd, const char *name,
                          const char *path)
{
	if (directory_known(local, path))
		return 0;
	if (mkdirat(parent_fd, name, 0777) < 0 && errno != EEXIST)
		return -errno;
	/* Also when somebody else made it: he may not have synced it yet. */
	if (fsync(parent_fd) < 0)
		return -errno;
	directory_learn(local, path);
	return 0;
}

/* Make every directory above `key`, each durable in its parent. The last one's descriptor, or a
 * negative errno. */
static int make_parents(struct local_store *local, const char *key)
{
	char path[OBJECT_KEY_MAX + 1];
	snprintf(path, sizeof(path), "%s", key);
	CLEANUP(close_descriptor) int fd = beneath_open(local->root, "", O_RDONLY | O_DIRECTORY, 0);
	char *name = path;
	for (char *at = strchr(path, '/'); fd >= 0 && at != NULL; at = strchr(at + 1, '/')) {
		*at = '\0';
		int r = make_directory(local, fd, name, path);
		int below = r == 0 ? open_directory(fd, name) : r;
		close_descriptor(&fd);
		fd = below;
		*at = '/';
		name = at + 1;
	}
	int parent_fd = fd;
	fd = -1;
	return parent_fd;
}

static const char *last_of(const char *key)
{
	const char *slash = strrchr(key, '/');
	return slash != NULL ? slash + 1 : key;
}

/* -- writing -- */

/* A file in ~tmp, written and synced; unlinked on release unless it was renamed. */
struct temporary {
	int directory_fd;
	char name[48];
	bool present;
};

static void temporary_release(struct temporary *temporary)
{
	if (temporary->present)
		unlinkat(temporary->directory_fd, temporary->name, 0);
	close_descriptor(&temporary->directory_fd);
}

/* ~tmp or ~locks; made again should an operator have tidied up. A negative errno. */
static int open_own(struct local_store *local, const char *directory)
{
	CLEANUP(close_descriptor)
	int root = beneath_open(local->root, "", O_RDONLY | O_DIRECTORY, 0);
	if (root < 0)
		return root;
	int fd = open_directory(root, directory);
	if (fd != -ENOENT || local_check_marker(local, NULL) < 0)
		return fd;
	if (mkdirat(root, directory, 0777) < 0 && errno != EEXIST)
		return -errno;
	return open_directory(root, directory);
}

/* A negative errno. */
static int temporary_open(struct local_store *local, struct temporary *temporary)
{
	temporary->directory_fd = open_own(local, "~tmp");
	if (temporary->directory_fd < 0)
		return temporary->directory_fd;
	snprintf(temporary->name, sizeof(temporary->name), "%d.%016llx", (int)getpid(),
	         (unsigned long long)random_u64());
	int fd = beneath_open_at(temporary->directory_fd, temporary->name,
	                         O_WRONLY | O_CREAT | O_EXCL, 0666);
	temporary->present = fd >= 0;
	return fd;
}

/* A message for a write that failed; one that finds no directory to write in finds no store. */
static int fail_write(struct local_store *local, const char *what, const char *key,
                      int system_errno, struct message *message)
{
	if (!is_absent(system_errno))
		return local_fail(local, what, key, system_errno, message);
	int r = local_check_marker(local, message);
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
		return fail_write(local, "write", key, -fd, message);
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
	char name[8];
	snprintf(name, sizeof(name), "%02x", id.bytes[0] % LOCK_COUNT);
	CLEANUP(close_descriptor) int locks = open_own(local, "~locks");
	if (locks < 0)
		return fail_write(local, "lock", key, -locks, message);
	CLEANUP(close_descriptor) int fd = beneath_open_at(locks, name, O_RDWR | O_CREAT, 0666);
	if (fd < 0)
		return fail_write(local, "lock", key, -fd, message);
	while (flock(fd, LOCK_EX) < 0)
		if (errno != EINTR)
			return local_fail(local, "lock", key, errno, message);
	*ret_fd = fd;
	fd = -1;
	return 0;
}

/* How a written file gets its name. */
typedef int place_fn(const struct temporary *temporary, int parent_fd, const char *name);

static int place_in(struct local_store *local, const char *key, place_fn *place,
                    const struct temporary *temporary, int *ret_parent_fd)
{
	CLEANUP(close_descriptor) int parent = make_parents(local, key);
	if (parent < 0)
		return parent;
	if (place(temporary, parent, last_of(key)) < 0)
		return -errno;
	*ret_parent_fd = parent;
	parent = -1;
	return 0;
}

/* Parents may vanish after they were seen (an operator tidies up): then they are made again. A
 * negative errno, or the directory, which is still to be synced. */
static int place_file(struct local_store *local, const char *key, place_fn *place,
                      struct temporary *temporary, int *ret_parent_fd)
{
	int r = place_in(local, key, place, temporary, ret_parent_fd);
	if (r == -ENOENT) {
		directories_forget(local);
		r = place_in(local, key, place, temporary, ret_parent_fd);
	}
	temporary->present = temporary->present && r != 0;
	return r;
}

static int rename_over(const struct temporary *temporary, int parent_fd, const char *name)
{
	return renameat(temporary->directory_fd, temporary->name, parent_fd, name);
}

/* Some file systems have no hard links; those that also lack RENAME_NOREPLACE cannot hold a store.
 */
static int link_new(const struct temporary *temporary, int parent_fd, const char *name)
{
	if (linkat(temporary->directory_fd, temporary->name, parent_fd, name, 0) == 0)
		return 0;
	if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOSYS)
		return -1;
	return renameat2(temporary->directory_fd, temporary->name, parent_fd, name,
	                 RENAME_NOREPLACE);
}

static int fail_place(struct local_store *local, const char *key, int system_errno,
                      struct message *message)
{
	CLEANUP(close_descriptor)
	int fd = beneath_open(local->root, key, O_PATH | O_DIRECTORY, 0);
	bool directory = fd >= 0;
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
	CLEANUP(temporary_release) struct temporary temporary = {.directory_fd = -1};
	CLEANUP(close_descriptor) int lock = -1;
	CLEANUP(close_descriptor) int parent = -1;
	int r = temporary_write(local, key, bytes, length, &temporary, message);
	if (r == 0)
		r = lock_key(local, key, &lock, message);
	if (r < 0)
		return r;
	r = place_file(local, key, rename_over, &temporary, &parent);
	if (r < 0)
		return fail_place(local, key, -r, message);
	close_descriptor(&lock);
	open_files_forget(&local->packs, key);
	return fsync(parent) < 0 ? fail_write(local, "write", key, errno, message) : 0;
}

static int local_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                               size_t length, struct etag *ret_etag, struct message *message)
{
	struct local_store *local = local_of(store);
	CLEANUP(temporary_release) struct temporary temporary = {.directory_fd = -1};
	CLEANUP(close_descriptor) int parent = -1;
	int r = temporary_write(local, key, bytes, length, &temporary, message);
	if (r < 0)
		return r;
	r = place_file(local, key, link_new, &temporary, &parent);
	temporary.present = true; /* a link leaves the other name; after a renaming it is gone */
	if (r < 0)
		return fail_place(local, key, -r, message);
	if (fsync(parent) < 0)
		return fail_write(local, "write", key, errno, message);
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
	CLEANUP(temporary_release) struct temporary temporary = {.directory_fd = -1};
	CLEANUP(close_descriptor) int lock = -1;
	CLEANUP(close_descriptor) int parent = -1;
	int r = temporary_write(local, key, bytes, length, &temporary, message);
	if (r == 0)
		r = lock_key(local, key, &lock, message);
	if (r == 0)
		r = check_etag(local, key, expected, message);
	if (r < 0)
		return r;
	r = place_file(local, key, rename_over, &temporary, &parent);
	if (r < 0)
		return fail_place(local, key, -r, message);
	close_descriptor(&lock);
	open_files_forget(&local->packs, key);
	if (fsync(parent) < 0)
		return fail_write(local, "write", key, errno, message);
	if (ret_etag != NULL)
		etag_of(bytes, length, ret_etag);
	return 0;
}

static int local_remove(struct object_store *store, const char *key, struct message *message)
{
	struct local_store *local = local_of(store);
	CLEANUP(close_descriptor) int lock = -1;
	CLEANUP(close_descriptor) int parent = -1;
	int r = check_present(local, message);
	if (r == 0)
		r = lock_key(local, key, &lock, message);
	if (r < 0)
		return r;
	parent = beneath_open_parent(local->root, key, O_RDONLY);
	int error = parent < 0 ? -parent : unlinkat(parent, last_of(key), 0) < 0 ? errno : 0;
	close_descriptor(&lock);
	open_files_forget(&local->packs, key);
	if (error == EISDIR)
		return 0; /* a directory of keys: no such object */
	if (is_absent(error))
		return local_check_marker(local, message);
	if (error == 0 && fsync(parent) < 0)
		return fail_write(local, "remove", key, errno, message);
	return error ? local_fail(local, "remove", key, error, message) : 0;
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
        .list = local_store_list,
        .remove = local_remove,
        .free = local_free,
        .space = local_space,
};

static void directory_close(DIR **directory)
{
	if (*directory != NULL)
		closedir(*directory);
}

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
static int create_marker(struct local_store *local, int root)
{
	uint8_t id[MARKER_ID_BYTES];
	char hex[2 * MARKER_ID_BYTES + 1], text[MARKER_BYTES + 1];
	random_bytes(id, sizeof(id));
	hex_encode(id, sizeof(id), hex);
	snprintf(text, sizeof(text), MARKER_TEXT "%s\n", hex);
	CLEANUP(temporary_release) struct temporary temporary = {.directory_fd = -1};
	CLEANUP(close_descriptor) int fd = temporary_open(local, &temporary);
	if (fd < 0)
		return error_system(-fd);
	int r = write_full(fd, text, MARKER_BYTES, 0);
	if (r == 0 && fsync(fd) < 0)
		r = error_system(errno);
	if (r == 0 && linkat(temporary.directory_fd, temporary.name, root, MARKER_NAME, 0) < 0 &&
	    errno != EEXIST)
		r = error_system(errno);
	if (r == 0 && fsync(root) < 0)
		r = error_system(errno);
	return r;
}

static int create_store(struct local_store *local)
{
	int r = make_directories(local->root, 0777);
	if (r == 0)
		r = check_empty(local->root);
	if (r < 0)
		return r;
	CLEANUP(close_descriptor)
	int root = beneath_open(local->root, "", O_RDONLY | O_DIRECTORY, 0);
	if (root < 0)
		return error_system(-root);
	static const char *const own[] = {"~tmp", "~locks"};
	for (size_t i = 0; i < ARRAY_SIZE(own); i++)
		if (mkdirat(root, own[i], 0777) < 0 && errno != EEXIST)
			return error_system(errno);
	return create_marker(local, root);
}

static void clean_temporaries(struct local_store *local)
{
	int fd = beneath_open(local->root, "~tmp", O_RDONLY | O_DIRECTORY, 0);
	CLEANUP(directory_close) DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
	if (directory == NULL) {
		close_descriptor(&fd);
		return;
	}
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
