/*
 * staging.c — hides where the content of uncommitted files lies (one plain file per staging number,
 * spread over 256 directories), and how a committed file gets one.
 */
#include "cache/extents.h"
#include "fs/worktree_internal.h"
#include "store/thread.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define CREATE_ATTEMPTS 8
#define COPY_STEP ((size_t)256 << 10)

void staging_path(uint64_t staging, char ret_path[STAGING_PATH_MAX])
{
	static const char digits[] = "0123456789abcdef";
	char *at = ret_path;
	*at++ = digits[staging >> 4 & 15]; /* the low byte: consecutive numbers spread evenly */
	*at++ = digits[staging & 15];
	*at++ = '/';
	for (int shift = 60; shift >= 0; shift -= 4)
		*at++ = digits[staging >> shift & 15];
	*at = '\0';
}

char *staging_absolute(const struct worktrees *trees, uint64_t staging)
{
	char path[STAGING_PATH_MAX];
	staging_path(staging, path);
	char *absolute = NULL;
	return asprintf(&absolute, "%s/%s", trees->staging_directory, path) < 0 ? NULL : absolute;
}

int staging_create(struct worktrees *trees, uint64_t *ret_staging, int *ret_fd,
                   struct message *message)
{
	for (int i = 0; i < CREATE_ATTEMPTS; i++) {
		uint64_t staging = state_number(trees->state);
		if (staging == 0)
			return fail(message, -ERR_NO_SPACE,
			            "cannot write to the journal of uncommitted changes: %s",
			            error_text(-ERR_NO_SPACE));
		char path[STAGING_PATH_MAX];
		staging_path(staging, path);
		int fd = -1, r = 0;
		if (ret_fd != NULL)
			r = fd = openat(trees->staging_fd, path,
			                O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		else
			r = mknodat(trees->staging_fd, path, S_IFREG | 0600, 0);
		if (r >= 0) {
			if (ret_fd != NULL)
				*ret_fd = fd;
			*ret_staging = staging;
			return 0;
		}
		/* A power cut may have taken the number's reservation but not the file. */
		if (errno != EEXIST)
			break;
	}
	return fail(message, error_system(errno), "cannot make a staging file in %s: %s",
	            trees->staging_directory, strerror(errno));
}

int staging_open(struct worktrees *trees, uint64_t staging, int flags, int *ret_fd)
{
	char path[STAGING_PATH_MAX];
	staging_path(staging, path);
	/* What is no file of ours is neither followed nor waited for. */
	flags = (flags & (O_ACCMODE | O_NOATIME)) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
	int fd = openat(trees->staging_fd, path, flags);
	if (fd < 0 && errno == EPERM) { /* another user's: a lake that changed hands */
		flags &= ~O_NOATIME;
		fd = openat(trees->staging_fd, path, flags);
	}
	if (fd < 0 && errno == EWOULDBLOCK) /* a lease that is asked for is given back at once */
		fd = openat(trees->staging_fd, path, flags & ~O_NONBLOCK);
	if (fd < 0)
		return error_system(errno);
	*ret_fd = fd;
	return 0;
}

int worktree_open_staging(struct worktrees *trees, uint64_t staging, int *ret_fd)
{
	return staging_open(trees, staging, O_RDONLY, ret_fd);
}

void staging_unlink(struct worktrees *trees, uint64_t staging)
{
	if (staging == 0)
		return;
	char path[STAGING_PATH_MAX];
	staging_path(staging, path);
	/* Should it fail the file is unnamed, and goes at the next opening. */
	unlinkat(trees->staging_fd, path, 0);
}

void worktree_forget(struct worktrees *trees, const struct inode *last)
{
	staging_remove(trees, last->staging);
}

struct timespec timespec_of(int64_t ns)
{
	int64_t seconds = ns / 1000000000, rest = ns % 1000000000;
	if (rest < 0) { /* before 1970: the fraction still counts forward */
		seconds--;
		rest += 1000000000;
	}
	return (struct timespec){.tv_sec = seconds, .tv_nsec = rest};
}

int staging_set_mtime(struct worktrees *trees, uint64_t staging, int64_t mtime_ns)
{
	char path[STAGING_PATH_MAX];
	staging_path(staging, path);
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, timespec_of(mtime_ns)};
	return utimensat(trees->staging_fd, path, times, 0) == 0 ? 0 : error_system(errno);
}

int staging_stat(struct worktrees *trees, uint64_t staging, struct stat *ret_stat)
{
	char path[STAGING_PATH_MAX];
	staging_path(staging, path);
	return fstatat(trees->staging_fd, path, ret_stat, 0) == 0 ? 0 : error_system(errno);
}

/* -- what a piecewise file overrides -- */

static int add_range(struct extents *ranges, uint64_t start, uint64_t end)
{
	int r = extents_reserve(ranges, 1);
	if (r == 0 && start < end)
		extents_add(ranges, start, end);
	return r;
}

int staging_dirty(struct worktrees *trees, const struct inode *inode, int fd,
                  struct extent **ret_extents, size_t *ret_count)
{
	struct stat status;
	if (fstat(fd, &status) != 0)
		return error_system(errno);
	uint64_t size = (uint64_t)status.st_size, granule = trees->granule;
	CLEANUP(extents_release) struct extents ranges = {0};
	int r = 0;
	for (uint64_t at = 0; r == 0 && at < size;) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			break;
		off_t hole = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return error_system(errno);
		uint64_t start = (uint64_t)data / granule * granule;
		at = ((uint64_t)hole + granule - 1) / granule * granule;
		r = add_range(&ranges, start, at < size ? at : size);
	}
	uint64_t end = inode->content.size < size ? inode->content.size : size;
	if (r == 0 && inode->piecewise)
		r = add_range(&ranges, inode->base_bytes, end);
	if (r != 0)
		return r;
	*ret_count = ranges.count;
	*ret_extents = steal(&ranges.items);
	return 0;
}

/* -- a file gets its staging file, or changes it -- */

static void inode_cleanup(struct inode *inode)
{
	inode_release(inode);
}

static void data_cleanup(struct file_data **data)
{
	file_data_close(*data);
}

static int copy_bytes(struct file_data *data, int fd, uint64_t size, struct message *message)
{
	int from = file_data_local(data);
	uint64_t done = 0;
	while (from >= 0 && done < size) {
		off_t in = (off_t)done, out = (off_t)done;
		ssize_t copied = copy_file_range(from, &in, fd, &out, size - done, 0);
		if (copied <= 0)
			break; /* not between these file systems: by hand */
		done += (uint64_t)copied;
	}
	CLEANUP(free_pointer) uint8_t *bytes = NULL;
	if (done < size && (bytes = malloc(COPY_STEP)) == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	while (done < size) {
		uint64_t left = size - done;
		size_t step = left < COPY_STEP ? (size_t)left : COPY_STEP;
		ssize_t got = file_data_read(data, bytes, step, done, message);
		if (got < 0)
			return (int)got;
		if ((size_t)got < step)
			return fail(message, -ERR_CORRUPT, "content ended early");
		int r = write_full(fd, bytes, step, (off_t)done);
		if (r != 0)
			return fail(message, r, "cannot write a staging file: %s", error_text(r));
		done += step;
	}
	return 0;
}

/*
 * Make what is committed writable in `fd`. The committed bytes were durable, and a power cut must
 * not make them less so: a copy is synced before any record names it. Of a piecewise file only the
 * size could be lost, and opening gives it back (restore_size).
 */
static int fill_staging(struct worktrees *trees, const struct inode *inode, int fd,
                        bool *ret_piecewise, struct message *message)
{
	uint64_t size = inode->content.size;
	*ret_piecewise = size > trees->copy_up_bytes_max;
	int r = 0;
	if (*ret_piecewise) {
		if (ftruncate(fd, (off_t)size) != 0)
			r = fail(message, error_system(errno), "cannot size a staging file: %s",
			         strerror(errno));
	} else {
		CLEANUP(data_cleanup) struct file_data *data = NULL;
		r = file_data_open_content(trees, &inode->content, &data, message);
		if (r == 0)
			r = copy_bytes(data, fd, size, message);
	}
	if (r != 0)
		return r;
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
	                            timespec_of(inode->attributes.mtime_ns)};
	thread_about_to_block();
	if (futimens(fd, times) != 0 || (!*ret_piecewise && fsync(fd) != 0))
		return fail(message, error_system(errno), "cannot write a staging file: %s",
		            strerror(errno));
	return 0;
}

/* Under table_lock: the record now names the staging file, unless somebody was first. */
static int name_staging(struct worktree *worktree, struct inode *inode, uint64_t staging,
                        bool piecewise, bool truncated, struct message *message)
{
	CLEANUP(inode_cleanup) struct inode now = {0};
	int r = worktree_inode(worktree, inode->number, &now);
	if (r == 0 && now.staging == 0) {
		CLEANUP(state_batch_release) struct state_batch batch = {0};
		now.staging = staging;
		now.piecewise = piecewise;
		now.base_bytes = piecewise ? now.content.size : 0;
		if (!piecewise)
			now.content = (struct content){0};
		if (truncated)
			now.ctime_ns = now.attributes.mtime_ns = clock_wall_ns();
		overlay_put_inode(&batch, worktree->overlay, &now);
		r = overlay_commit(worktree->trees, &batch, message);
	}
	if (r != 0)
		return r;
	inode_release(inode);
	*inode = now;
	now = (struct inode){0};
	return 0;
}

/* *ret_given is false when another writer's copy came first. */
static int give_staging(struct worktree *worktree, struct inode *inode, bool truncate,
                        bool *ret_given, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	CLEANUP(close_descriptor) int fd = -1;
	uint64_t staging = 0;
	bool piecewise = false, empty = truncate || inode->content.size == 0;
	int r = staging_create(trees, &staging, empty ? NULL : &fd, message);
	if (r != 0)
		return r;
	if (!empty)
		r = fill_staging(trees, inode, fd, &piecewise, message);
	else if (!truncate)
		r = staging_set_mtime(trees, staging, inode->attributes.mtime_ns);
	if (r == 0) {
		pthread_mutex_lock(&trees->table_lock);
		r = name_staging(worktree, inode, staging, piecewise, truncate, message);
		pthread_mutex_unlock(&trees->table_lock);
	}
	*ret_given = r == 0 && inode->staging == staging;
	if (!*ret_given)
		staging_unlink(trees, staging);
	return r;
}

static int truncate_staged(struct worktrees *trees, const struct inode *inode, uint64_t size,
                           struct message *message)
{
	CLEANUP(data_cleanup) struct file_data *data = NULL;
	int r = file_data_open(trees, inode, true, &data, message);
	return r == 0 ? file_data_truncate(data, size, message) : r;
}

int worktree_writable(struct worktree *worktree, uint64_t number, bool truncate,
                      struct inode *ret_inode, struct message *message)
{
	CLEANUP(inode_cleanup) struct inode inode = {0};
	int r = worktree_inode(worktree, number, &inode);
	if (r == 0 && !S_ISREG(inode.attributes.mode))
		r = fail(message, -ERR_INVALID, "not a regular file");
	if (r != 0)
		return r;
	bool given = false;
	if (inode.staging == 0)
		r = give_staging(worktree, &inode, truncate, &given, message);
	if (r == 0 && truncate && !given)
		r = truncate_staged(worktree->trees, &inode, 0, message);
	if (r != 0)
		return r;
	*ret_inode = inode;
	inode = (struct inode){0};
	return 0;
}

int worktree_truncate(struct worktree *worktree, uint64_t number, uint64_t size,
                      struct message *message)
{
	CLEANUP(inode_cleanup) struct inode inode = {0};
	int r = worktree_writable(worktree, number, size == 0, &inode, message);
	return r == 0 && size > 0 ? truncate_staged(worktree->trees, &inode, size, message) : r;
}

static int64_t ns_of(const struct timespec *time)
{
	return (int64_t)time->tv_sec * 1000000000 + time->tv_nsec;
}

int worktree_stat(struct worktree *worktree, const struct inode *inode, struct stat *ret_stat)
{
	struct stat staged = {.st_size = (off_t)inode->content.size,
	                      .st_blocks = (blkcnt_t)((inode->content.size + 511) / 512),
	                      .st_mtim = timespec_of(inode->attributes.mtime_ns)};
	int64_t ctime_ns = inode->ctime_ns;
	if (inode->staging != 0) {
		int r = staging_stat(worktree->trees, inode->staging, &staged);
		if (r != 0) /* gone: a commit took it since the inode was read */
			return r == -ERR_NOT_FOUND ? -ERR_STALE : r;
		if (ns_of(&staged.st_ctim) > ctime_ns)
			ctime_ns = ns_of(&staged.st_ctim);
		if (inode->piecewise)
			staged.st_blocks = piecewise_blocks(&staged, inode->base_bytes);
	} else if (S_ISLNK(inode->attributes.mode)) {
		staged.st_size = (off_t)inode->target_length;
	}
	*ret_stat = (struct stat){
	        .st_ino = inode->shown != 0 ? inode->shown : inode->number,
	        .st_mode = inode->attributes.mode,
	        .st_nlink = inode->nlink,
	        .st_uid = inode->attributes.uid,
	        .st_gid = inode->attributes.gid,
	        .st_rdev = inode->attributes.rdev,
	        .st_size = staged.st_size,
	        .st_blksize = 4096,
	        .st_blocks = staged.st_blocks,
	        .st_atim = inode->atime_set ? timespec_of(inode->atime_ns) : staged.st_mtim,
	        .st_mtim = staged.st_mtim,
	        .st_ctim = timespec_of(ctime_ns),
	};
	return 0;
}

/* -- at opening -- */

/* A staging file that a record names. */
struct named {
	uint64_t staging;    /* first: see by_number */
	uint64_t base_bytes; /* of a piecewise one */
	int64_t mtime_ns;
};

static int note_staging(void *context, const struct inode *inode)
{
	struct buffer *all = context;
	const struct named named = {.staging = inode->staging,
	                            .base_bytes = inode->piecewise ? inode->base_bytes : 0,
	                            .mtime_ns = inode->attributes.mtime_ns};
	if (inode->staging != 0)
		buffer_append(all, &named, sizeof(named));
	return buffer_check(all);
}

/* Of what begins with a number. */
static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

/* Unlink what is not in `named`; mark what is. */
static int clean_shard(struct worktrees *trees, unsigned shard, const struct named *named,
                       size_t count, uint8_t *seen)
{
	char path[3];
	snprintf(path, sizeof(path), "%02x", shard);
	int fd = openat(trees->staging_fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
	if (directory == NULL) {
		int error = error_system(errno);
		close_descriptor(&fd);
		return error;
	}
	struct dirent *entry;
	while ((entry = readdir(directory)) != NULL) {
		uint8_t bytes[8];
		if (strlen(entry->d_name) != 16 || hex_decode(entry->d_name, 16, bytes) != 0)
			continue;
		const struct named wanted = {.staging = load_u64_be(bytes)};
		const struct named *found =
		        count > 0 ? bsearch(&wanted, named, count, sizeof(wanted), by_number)
		                  : NULL;
		if (found != NULL)
			seen[found - named] = 1;
		else
			unlinkat(fd, entry->d_name, 0);
	}
	closedir(directory);
	return 0;
}

/* A piecewise file without bytes whose record says that content shows was made just before a power
 * cut, and its size did not get to the disk: truncation to nothing is recorded, and before that is
 * durable the file's mode tells of it. */
static int restore_size(struct worktrees *trees, const struct named *named)
{
	char path[STAGING_PATH_MAX];
	struct stat status;
	staging_path(named->staging, path);
	CLEANUP(close_descriptor)
	int fd = openat(trees->staging_fd, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || fstat(fd, &status) != 0)
		return error_system(errno);
	const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, timespec_of(named->mtime_ns)};
	if (status.st_size == 0 && (status.st_mode & 07777) != STAGING_EMPTIED &&
	    (ftruncate(fd, (off_t)named->base_bytes) != 0 || futimens(fd, times) != 0))
		return error_system(errno);
	return 0;
}

static int clean_all(struct worktrees *trees, const struct named *named, size_t count)
{
	CLEANUP(free_pointer) uint8_t *seen = calloc(count + 1, 1);
	if (seen == NULL)
		return -ERR_NO_MEMORY;
	for (unsigned shard = 0; shard < 256; shard++) {
		int r = clean_shard(trees, shard, named, count, seen);
		if (r != 0)
			return r;
	}
	for (size_t i = 0; i < count; i++) {
		char path[STAGING_PATH_MAX];
		staging_path(named[i].staging, path);
		int r = named[i].base_bytes > 0 ? restore_size(trees, &named[i]) : 0;
		if (r == 0 && !seen[i] &&
		    mknodat(trees->staging_fd, path, S_IFREG | 0600, 0) != 0 && errno != EEXIST)
			r = error_system(errno);
		if (r != 0)
			return r;
	}
	return 0;
}

int staging_clean(struct worktrees *trees, const uint64_t *overlays, size_t count,
                  struct message *message)
{
	CLEANUP(buffer_release) struct buffer named = {0};
	int r = 0;
	for (size_t i = 0; r == 0 && i < count; i++)
		r = overlay_inodes(trees, overlays[i], note_staging, &named);
	size_t named_count = named.length / sizeof(struct named);
	if (r == 0 && named_count > 0)
		qsort(named.data, named_count, sizeof(struct named), by_number);
	/* What was replayed may be in the page cache only: see staging_remove. */
	if (r == 0)
		r = state_sync(trees->state);
	if (r == 0)
		r = clean_all(trees, (const struct named *)(const void *)named.data, named_count);
	return r == 0 ? 0
	              : fail(message, r, "cannot check the staging files in %s: %s",
	                     trees->staging_directory, error_text(r));
}
