/*
 * file_data.c — hides where a file's bytes are: a blob of the cache, the object database, a staging
 * file, or a staging file over one of those, piece by piece.
 *
 * A piecewise file's staging file is sparse and has the file's size. Only whole granules are ever
 * written to it (the last one up to the end of the file): the rest of the first and last granule of
 * a write is taken from what shows there, in the same pwritev. So its data extents are the exact
 * map of what was written, and need no journal: that map survives kill -9 by itself.
 *
 *   written granule               -> the staging file
 *   else below base_bytes         -> the committed content
 *   else                          -> zeros
 *
 * base_bytes only shrinks, by truncation, and never exceeds the size. A truncation cuts the staging
 * file alone: after a crash the smaller size says what the record does not yet. The record follows
 * before the file grows again, when the size would no longer say it.
 */
#include "cache/extents.h"
#include "fs/worktree_internal.h"
#include "store/thread.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/uio.h>
#include <unistd.h>

#define ZEROS_STEP ((size_t)1 << 20)

enum kind { DATA_CONTENT, DATA_WHOLE, DATA_PIECEWISE };

struct file_data {
	struct worktrees *trees;
	enum kind kind;
	struct content content;
	struct blob *blob; /* of the content; NULL: read it through the odb */
	int fd;            /* the staging file */

	/* Staging files are shared by everybody who has them open; files_lock: */
	uint64_t staging;
	unsigned references;
	UT_hash_handle hh;

	/* DATA_PIECEWISE: */
	uint64_t number;
	pthread_mutex_t lock;   /* guards the rest; also held while the staging file is written */
	struct extents written; /* in granules */
	uint64_t size;
	uint64_t base_bytes;
	uint64_t base_recorded; /* what the record says */
	uint64_t version;       /* counts changes: what was read without the lock may be old */
};

static uint64_t round_down(const struct file_data *data, uint64_t at)
{
	return at / data->trees->granule * data->trees->granule;
}

static uint64_t round_up(const struct file_data *data, uint64_t at)
{
	return round_down(data, at + data->trees->granule - 1);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* -- opening and closing -- */

static void data_free(struct file_data *data)
{
	if (data == NULL)
		return;
	blob_unref(data->blob);
	close_descriptor(&data->fd);
	extents_release(&data->written);
	pthread_mutex_destroy(&data->lock);
	free(data);
}

static void data_cleanup(struct file_data **data)
{
	data_free(*data);
}

static struct file_data *data_new(struct worktrees *trees, enum kind kind)
{
	struct file_data *data = calloc(1, sizeof(*data));
	if (data == NULL)
		return NULL;
	data->trees = trees;
	data->kind = kind;
	data->fd = -1;
	data->references = 1;
	pthread_mutex_init(&data->lock, NULL);
	return data;
}

int file_data_open_content(struct worktrees *trees, const struct content *content,
                           struct file_data **ret_data, struct message *message)
{
	CLEANUP(data_cleanup) struct file_data *data = data_new(trees, DATA_CONTENT);
	if (data == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	data->content = *content;
	data->size = content->size;
	if (trees->cache != NULL) {
		adopted_wait(trees, content);
		int r = cache_get(trees->cache, content, &data->blob, message);
		/* Without room for a local copy it is read as it comes. */
		if (r != 0 && r != -ERR_NO_SPACE)
			return r;
	}
	*ret_data = steal(&data);
	return 0;
}

/* The map of what was written, as the file system knows it. */
static int load_written(struct file_data *data)
{
	for (uint64_t at = 0; at < data->size;) {
		off_t start = lseek(data->fd, (off_t)at, SEEK_DATA);
		if (start < 0 && errno == ENXIO)
			return 0;
		off_t end = start < 0 ? -1 : lseek(data->fd, start, SEEK_HOLE);
		if (end < 0)
			return error_system(errno);
		at = round_up(data, (uint64_t)end);
		int r = extents_reserve(&data->written, 1);
		if (r != 0)
			return r;
		extents_add(&data->written, round_down(data, (uint64_t)start), at);
	}
	return 0;
}

static int load_piecewise(struct file_data *data, const struct inode *inode)
{
	struct stat status;
	if (fstat(data->fd, &status) != 0)
		return error_system(errno);
	data->number = inode->number;
	data->content = inode->content;
	data->size = (uint64_t)status.st_size;
	/* The caller's copy of the record may be old. */
	uint64_t recorded = inode->base_bytes;
	int r = overlay_get_base_bytes(data->trees, inode->number, inode->staging, &recorded);
	if (r != 0 && r != -ERR_NOT_FOUND)
		return r;
	data->base_recorded = recorded;
	data->base_bytes = smaller(recorded, data->size);
	if (data->trees->cache != NULL) {
		adopted_wait(data->trees, &data->content);
		if (cache_get(data->trees->cache, &data->content, &data->blob, NULL) != 0)
			data->blob = NULL;
	}
	return load_written(data);
}

/* Under files_lock. */
static struct file_data *find_shared(struct worktrees *trees, uint64_t staging)
{
	struct file_data *data = NULL;
	HASH_FIND(hh, trees->files, &staging, sizeof(staging), data);
	if (data != NULL)
		data->references++;
	return data;
}

bool file_data_in_use(struct worktrees *trees, uint64_t staging)
{
	struct file_data *data = NULL;
	pthread_mutex_lock(&trees->files_lock);
	HASH_FIND(hh, trees->files, &staging, sizeof(staging), data);
	pthread_mutex_unlock(&trees->files_lock);
	return data != NULL;
}

static int open_staged(struct worktrees *trees, const struct inode *inode,
                       struct file_data **ret_data)
{
	CLEANUP(data_cleanup)
	struct file_data *data = data_new(trees, inode->piecewise ? DATA_PIECEWISE : DATA_WHOLE);
	if (data == NULL)
		return -ERR_NO_MEMORY;
	data->staging = inode->staging;
	int r = staging_open(trees, inode->staging, O_RDWR, &data->fd);
	if (r == -ERR_NOT_FOUND) /* a commit took it since the inode was read */
		r = -ERR_STALE;
	if (r == 0 && inode->piecewise)
		r = load_piecewise(data, inode);
	if (r != 0)
		return r;
	pthread_mutex_lock(&trees->files_lock);
	struct file_data *first = find_shared(trees, inode->staging);
	if (first == NULL) {
		HASH_ADD(hh, trees->files, staging, sizeof(data->staging), data);
		if (data->hh.tbl != NULL)
			first = steal(&data);
	}
	pthread_mutex_unlock(&trees->files_lock);
	if (first == NULL)
		return -ERR_NO_MEMORY;
	*ret_data = first;
	return 0;
}

int file_data_open(struct worktrees *trees, const struct inode *inode, bool write,
                   struct file_data **ret_data, struct message *message)
{
	if (!S_ISREG(inode->attributes.mode) || (write && inode->staging == 0))
		return fail(message, -ERR_INVALID, "not a file that can be opened so");
	if (inode->staging == 0)
		return file_data_open_content(trees, &inode->content, ret_data, message);
	pthread_mutex_lock(&trees->files_lock);
	struct file_data *data = find_shared(trees, inode->staging);
	pthread_mutex_unlock(&trees->files_lock);
	int r = data == NULL ? open_staged(trees, inode, &data) : 0;
	if (r != 0)
		return fail(message, r, "cannot open staging file %llx: %s",
		            (unsigned long long)inode->staging, error_text(r));
	*ret_data = data;
	return 0;
}

void file_data_close(struct file_data *data)
{
	if (data == NULL)
		return;
	bool last = true;
	if (data->kind != DATA_CONTENT) {
		pthread_mutex_lock(&data->trees->files_lock);
		last = --data->references == 0;
		if (last)
			HASH_DEL(data->trees->files, data);
		pthread_mutex_unlock(&data->trees->files_lock);
	}
	if (last)
		data_free(data);
}

void file_data_table_release(struct worktrees *trees)
{
	assert(trees->files == NULL);
}

int file_data_local(const struct file_data *data)
{
	if (data->kind == DATA_WHOLE)
		return data->fd;
	if (data->kind == DATA_CONTENT && data->blob != NULL && blob_complete(data->blob))
		return blob_descriptor(data->blob);
	return -1;
}

bool file_data_fetched(const struct file_data *data)
{
	return data->kind == DATA_CONTENT && data->blob != NULL && blob_fetched(data->blob);
}

/* -- reading -- */

static int out_of_place(struct message *message, int error, const char *what)
{
	return fail(message, error, "%s: %s", what, error_text(error));
}

/* Committed bytes; the range lies within the content. */
static int read_content(struct file_data *data, void *out, size_t length, uint64_t offset,
                        struct message *message)
{
	if (data->blob == NULL || !blob_complete(data->blob))
		thread_about_to_block();
	if (data->blob != NULL) {
		int r = blob_ensure(data->blob, offset, length, message);
		ssize_t got = 0;
		if (r == 0) {
			got = read_full(blob_descriptor(data->blob), out, length, (off_t)offset);
			if (got == (ssize_t)length)
				return 0;
			r = got < 0 ? (int)got : -ERR_CORRUPT;
			return out_of_place(message, r, "cannot read a local copy");
		}
		if (r != -ERR_NO_SPACE)
			return r;
	}
	return content_read(data->trees->odb, &data->content, offset, length, out, message);
}

/* A run of bytes that come from one place. */
enum source { SOURCE_END, SOURCE_STAGING, SOURCE_CONTENT, SOURCE_ZEROS };
struct run {
	enum source source;
	uint64_t length;
};

/* Under lock. The first written range that ends after `at`. */
static const struct extent *written_from(const struct file_data *data, uint64_t at)
{
	const struct extents *written = &data->written;
	size_t low = 0, high = written->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (written->items[middle].end <= at)
			low = middle + 1;
		else
			high = middle;
	}
	return low < written->count ? &written->items[low] : NULL;
}

/* Under lock. What [at, end) begins with. */
static struct run run_at(const struct file_data *data, uint64_t at, uint64_t end)
{
	end = smaller(end, data->size);
	if (at >= end)
		return (struct run){SOURCE_END, 0};
	const struct extent *written = written_from(data, at);
	if (written != NULL && written->start <= at)
		return (struct run){SOURCE_STAGING, smaller(end, written->end) - at};
	if (written != NULL)
		end = smaller(end, written->start);
	if (at < data->base_bytes)
		return (struct run){SOURCE_CONTENT, smaller(end, data->base_bytes) - at};
	return (struct run){SOURCE_ZEROS, end - at};
}

static int read_run(struct file_data *data, const struct run *run, void *out, uint64_t offset,
                    struct message *message)
{
	size_t length = (size_t)run->length;
	if (run->source == SOURCE_CONTENT)
		return read_content(data, out, length, offset, message);
	ssize_t got = 0;
	if (run->source == SOURCE_STAGING)
		got = read_full(data->fd, out, length, (off_t)offset);
	if (got < 0)
		return out_of_place(message, (int)got, "cannot read a staging file");
	/* Short only when it was truncated since. */
	memset((uint8_t *)out + got, 0, length - (size_t)got);
	return 0;
}

/* Each run is found under the lock and read without it: a concurrent write may or may not show,
 * like in any file. */
static ssize_t read_piecewise(struct file_data *data, uint8_t *out, size_t length, uint64_t offset,
                              struct message *message)
{
	size_t done = 0;
	while (done < length) {
		pthread_mutex_lock(&data->lock);
		struct run run = run_at(data, offset + done, offset + length);
		pthread_mutex_unlock(&data->lock);
		if (run.source == SOURCE_END)
			break;
		int r = read_run(data, &run, out + done, offset + done, message);
		if (r != 0)
			return r;
		done += (size_t)run.length;
	}
	return (ssize_t)done;
}

ssize_t file_data_read(struct file_data *data, void *out, size_t length, uint64_t offset,
                       struct message *message)
{
	if (offset >= FILE_BYTES_MAX)
		return 0;
	length = (size_t)smaller(length, FILE_BYTES_MAX - offset);
	if (data->kind == DATA_PIECEWISE)
		return read_piecewise(data, out, length, offset, message);
	if (data->kind == DATA_WHOLE) {
		ssize_t got = read_full(data->fd, out, length, (off_t)offset);
		return got >= 0 ? got
		                : out_of_place(message, (int)got, "cannot read a staging file");
	}
	if (offset >= data->content.size)
		return 0;
	length = (size_t)smaller(length, data->content.size - offset);
	int r = length > 0 ? read_content(data, out, length, offset, message) : 0;
	return r == 0 ? (ssize_t)length : r;
}

/* -- writing piecewise -- */

/* One write and what it needs around it. */
struct edges {
	uint64_t version;
	uint64_t start, end;  /* with the edges */
	uint8_t *head, *tail; /* in `memory` */
	uint8_t *memory;
};

/* Under lock: how far must a write of [offset, end) be widened? */
static void find_edges(const struct file_data *data, uint64_t offset, uint64_t end,
                       struct edges *edges)
{
	edges->version = data->version;
	edges->start = offset;
	edges->end = end;
	uint64_t first = round_down(data, offset), last = round_down(data, end);
	if (!extents_cover(&data->written, first, first + 1))
		edges->start = first;
	if (last < end && end < data->size && !extents_cover(&data->written, last, last + 1))
		edges->end = smaller(round_up(data, end), data->size);
}

static int read_edges(struct file_data *data, uint64_t offset, uint64_t end, struct edges *edges,
                      struct message *message)
{
	size_t head = (size_t)(offset - edges->start), tail = (size_t)(edges->end - end);
	if (edges->memory == NULL && head + tail > 0) {
		edges->memory = malloc(2 * data->trees->granule);
		if (edges->memory == NULL)
			return fail(message, -ERR_NO_MEMORY, "out of memory");
	}
	edges->head = edges->memory;
	edges->tail = edges->memory != NULL ? edges->memory + data->trees->granule : NULL;
	ssize_t got = 0;
	if (head > 0) {
		got = read_piecewise(data, edges->head, head, edges->start, message);
		if (got >= 0)
			memset(edges->head + got, 0, head - (size_t)got); /* beyond the end */
	}
	if (got >= 0 && tail > 0) {
		got = read_piecewise(data, edges->tail, tail, end, message);
		if (got >= 0)
			memset(edges->tail + got, 0, tail - (size_t)got);
	}
	return got < 0 ? (int)got : 0;
}

/* Under lock. Before the file grows: the record must say what the size will not any more. */
static int record_base(struct file_data *data)
{
	if (data->base_recorded == data->base_bytes)
		return 0;
	/* After a power cut the record must not hide bytes that the file still has. */
	if (fdatasync(data->fd) != 0)
		return error_system(errno);
	int r = overlay_set_base_bytes(data->trees, data->number, data->staging, data->base_bytes);
	/* The file below may be longer on disk before the journal says what no longer shows. */
	if (r == 0)
		r = state_sync(data->trees->state);
	if (r != 0 && r != -ERR_NOT_FOUND) /* without a name it needs no record */
		return r;
	data->base_recorded = data->base_bytes;
	return 0;
}

/* All of the vector at `offset`; returns how much was written, and why not more. */
static uint64_t write_vector(int fd, struct iovec *vector, int count, uint64_t offset,
                             int *ret_error)
{
	uint64_t done = 0;
	*ret_error = 0;
	while (count > 0) {
		if (vector->iov_len == 0) {
			vector++;
			count--;
			continue;
		}
		ssize_t put = pwritev(fd, vector, count, (off_t)(offset + done));
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0) {
			*ret_error = error_system(put < 0 ? errno : ENOSPC);
			break;
		}
		done += (uint64_t)put;
		for (size_t left = (size_t)put; left > 0;) {
			size_t step = left < vector->iov_len ? left : vector->iov_len;
			vector->iov_base = (uint8_t *)vector->iov_base + step;
			vector->iov_len -= step;
			left -= step;
			if (vector->iov_len == 0 && left > 0) {
				vector++;
				count--;
			}
		}
	}
	return done;
}

/* Under lock. The write ended at `stop`, inside a granule that was not written before: it would
 * hide what shows there. Take the torn granule back. */
static uint64_t untear(struct file_data *data, uint64_t stop)
{
	uint64_t torn = round_down(data, stop);
	if (torn == stop || extents_cover(&data->written, torn, torn + 1))
		return stop;
	if (fallocate(data->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)torn,
	              (off_t)data->trees->granule) != 0)
		return torn; /* nothing more can be done here */
	return torn;
}

/* Under lock. */
static ssize_t put_bytes(struct file_data *data, const void *bytes, size_t length, uint64_t offset,
                         const struct edges *edges)
{
	uint64_t end = offset + length;
	int r = extents_reserve(&data->written, 1);
	if (r == 0 && end > data->size)
		r = record_base(data);
	if (r != 0)
		return r;
	struct iovec vector[3] = {
	        {edges->head, (size_t)(offset - edges->start)},
	        {(void *)bytes, length},
	        {edges->tail, (size_t)(edges->end - end)},
	};
	data->version++;
	uint64_t stop = edges->start + write_vector(data->fd, vector, 3, edges->start, &r);
	if (r != 0)
		stop = untear(data, stop);
	if (stop <= edges->start)
		return r;
	extents_add(&data->written, round_down(data, edges->start), round_up(data, stop));
	if (stop > data->size)
		data->size = stop;
	if (stop >= end)
		return (ssize_t)length;
	return stop > offset ? (ssize_t)(stop - offset) : r;
}

static ssize_t write_piecewise(struct file_data *data, const void *bytes, size_t length,
                               uint64_t offset, struct message *message)
{
	struct edges edges = {0};
	ssize_t result;
	pthread_mutex_lock(&data->lock);
	for (;;) {
		find_edges(data, offset, offset + length, &edges);
		pthread_mutex_unlock(&data->lock);
		/* May wait on the store, so without the lock; when somebody changed the file
		 * meanwhile it is done again, with the content at hand by then. */
		result = read_edges(data, offset, offset + length, &edges, message);
		if (result != 0)
			break;
		pthread_mutex_lock(&data->lock);
		if (edges.version != data->version)
			continue;
		result = put_bytes(data, bytes, length, offset, &edges);
		pthread_mutex_unlock(&data->lock);
		if (result < 0)
			out_of_place(message, (int)result, "cannot write a staging file");
		break;
	}
	free(edges.memory);
	return result;
}

ssize_t file_data_write(struct file_data *data, const void *bytes, size_t length, uint64_t offset,
                        struct message *message)
{
	assert(data->kind != DATA_CONTENT);
	if (offset > FILE_BYTES_MAX || length > FILE_BYTES_MAX - offset)
		return fail(message, -ERR_TOO_LARGE, "files end at 8 TiB");
	if (length == 0)
		return 0;
	if (data->kind == DATA_PIECEWISE)
		return write_piecewise(data, bytes, length, offset, message);
	struct iovec vector = {(void *)bytes, length};
	int r;
	uint64_t done = write_vector(data->fd, &vector, 1, offset, &r);
	return done > 0 ? (ssize_t)done : out_of_place(message, r, "cannot write a staging file");
}

/* -- sizes -- */

static void forget_from(struct extents *extents, uint64_t start)
{
	while (extents->count > 0 && extents->items[extents->count - 1].start >= start)
		extents->count--;
	if (extents->count > 0 && extents->items[extents->count - 1].end > start)
		extents->items[extents->count - 1].end = start;
}

/* Under lock. */
static int resize_piecewise(struct file_data *data, uint64_t size)
{
	int r = 0;
	if (size > data->size)
		r = record_base(data);
	/* Without bytes it looks like one that a power cut left (staging_clean), but for this.
	 * (Another user's file cannot be marked.) */
	if (r == 0 && size == 0)
		(void)!fchmod(data->fd, STAGING_EMPTIED);
	if (r == 0 && ftruncate(data->fd, (off_t)size) != 0)
		r = error_system(errno);
	if (r != 0)
		return r;
	data->version++;
	if (size < data->size)
		forget_from(&data->written, round_up(data, size));
	data->size = size;
	data->base_bytes = smaller(data->base_bytes, size);
	return size == 0 ? record_base(data) : 0;
}

int file_data_truncate(struct file_data *data, uint64_t size, struct message *message)
{
	assert(data->kind != DATA_CONTENT);
	if (size > FILE_BYTES_MAX)
		return fail(message, -ERR_TOO_LARGE, "files end at 8 TiB");
	int r = 0;
	if (data->kind == DATA_PIECEWISE) {
		pthread_mutex_lock(&data->lock);
		r = resize_piecewise(data, size);
		pthread_mutex_unlock(&data->lock);
	} else if (ftruncate(data->fd, (off_t)size) != 0) {
		r = error_system(errno);
	}
	return r == 0 ? 0 : out_of_place(message, r, "cannot truncate a staging file");
}

/* Explicit zeros where the content would show through a hole. */
static int write_zeros(struct file_data *data, uint64_t offset, uint64_t end,
                       struct message *message)
{
	if (offset >= end)
		return 0;
	size_t step = (size_t)smaller(end - offset, ZEROS_STEP);
	CLEANUP(free_pointer) void *zeros = calloc(1, step);
	if (zeros == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	while (offset < end) {
		size_t length = (size_t)smaller(step, end - offset);
		ssize_t put = write_piecewise(data, zeros, length, offset, message);
		if (put < 0)
			return (int)put;
		offset += (uint64_t)put;
	}
	return 0;
}

static int zero_piecewise(struct file_data *data, uint64_t offset, uint64_t end,
                          struct message *message)
{
	pthread_mutex_lock(&data->lock);
	end = smaller(end, data->size);
	uint64_t based = smaller(round_up(data, data->base_bytes), end);
	pthread_mutex_unlock(&data->lock);
	int r = write_zeros(data, offset, based, message);
	if (r != 0)
		return r;
	if (offset < based)
		offset = based;
	if (offset < end && fallocate(data->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	                              (off_t)offset, (off_t)(end - offset)) != 0)
		return error_system(errno);
	return 0;
}

static int allocate_piecewise(struct file_data *data, int mode, uint64_t offset, uint64_t end,
                              struct message *message)
{
	int kind = mode & ~FALLOC_FL_KEEP_SIZE;
	int r = 0;
	if (kind != 0 && kind != FALLOC_FL_PUNCH_HOLE && kind != FALLOC_FL_ZERO_RANGE)
		return -ERR_UNSUPPORTED;
	if (kind != 0)
		r = zero_piecewise(data, offset, end, message);
	pthread_mutex_lock(&data->lock);
	if (r == 0 && !(mode & FALLOC_FL_KEEP_SIZE) && end > data->size)
		r = resize_piecewise(data, end);
	/* Below, an allocated but unwritten granule could come to look like a written one. */
	uint64_t start = round_up(data, data->base_bytes);
	pthread_mutex_unlock(&data->lock);
	if (start < offset)
		start = offset;
	if (r == 0 && kind == 0 && start < end &&
	    fallocate(data->fd, FALLOC_FL_KEEP_SIZE, (off_t)start, (off_t)(end - start)) != 0)
		r = error_system(errno);
	return r;
}

int file_data_allocate(struct file_data *data, int mode, uint64_t offset, uint64_t length,
                       struct message *message)
{
	assert(data->kind != DATA_CONTENT);
	if (length == 0 || offset > FILE_BYTES_MAX || length > FILE_BYTES_MAX - offset)
		return fail(message, length == 0 ? -ERR_INVALID : -ERR_TOO_LARGE,
		            "not a range of a file");
	int r = 0;
	if (data->kind == DATA_PIECEWISE)
		r = allocate_piecewise(data, mode, offset, offset + length, message);
	else if (fallocate(data->fd, mode, (off_t)offset, (off_t)length) != 0)
		r = error_system(errno);
	return r == 0 ? 0 : out_of_place(message, r, "cannot allocate in a staging file");
}

int file_data_sync(struct file_data *data, bool data_only)
{
	if (data->kind == DATA_CONTENT)
		return 0;
	thread_about_to_block();
	int r = data_only ? fdatasync(data->fd) : fsync(data->fd);
	return r == 0 ? 0 : error_system(errno);
}

int file_data_stat(struct file_data *data, struct stat *ret_stat)
{
	if (data->kind == DATA_CONTENT) {
		*ret_stat = (struct stat){
		        .st_mode = S_IFREG,
		        .st_size = (off_t)data->content.size,
		        .st_blocks = (blkcnt_t)((data->content.size + 511) / 512),
		};
		return 0;
	}
	struct stat status;
	if (fstat(data->fd, &status) != 0)
		return error_system(errno);
	if (data->kind == DATA_PIECEWISE) {
		pthread_mutex_lock(&data->lock);
		status.st_blocks = piecewise_blocks(&status, data->base_bytes);
		pthread_mutex_unlock(&data->lock);
	}
	*ret_stat = status;
	return 0;
}

int file_data_seek(struct file_data *data, uint64_t offset, int whence, uint64_t *ret_offset)
{
	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return -ERR_INVALID;
	int fd = file_data_local(data);
	if (fd >= 0) {
		off_t found = lseek(fd, (off_t)offset, whence);
		if (found < 0)
			return error_system(errno);
		*ret_offset = (uint64_t)found;
		return 0;
	}
	/* What is not local has no holes that anybody looked for. */
	pthread_mutex_lock(&data->lock);
	uint64_t size = data->size;
	pthread_mutex_unlock(&data->lock);
	if (offset >= size)
		return error_system(ENXIO);
	*ret_offset = whence == SEEK_DATA ? offset : size;
	return 0;
}
