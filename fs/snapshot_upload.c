/*
 * snapshot_upload — hides how staging files become content ahead of a commit, and how the commit
 * then knows which of them have changed since.
 *
 * A file that nobody has open for writing is read while mutations go on. Whether it changed after
 * that is told by its staging number and its ctime, which every write, truncation and change of
 * times moves; but only in steps of the kernel's clock. So a file whose ctime is younger than
 * SETTLE_NS when reading began is not trusted ("racily clean" in git's terms): it is read again
 * under the closed gate, where nothing new is stored when nothing changed. Where times are fine
 * this is so only when a write was under way that had moved the ctime and not yet the bytes:
 * somebody had the file open for writing, or opened any while it was read.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "fs/snapshot.h"
#include "store/thread.h"

#define SETTLE_NS ((int64_t)50 * 1000 * 1000)
#define UPLOAD_THREADS 2
#define UPLOAD_BATCH 256
#define UPLOAD_ALONE_BYTES ((uint64_t)1 << 20) /* less than this in few files: no second thread */
#define UPLOAD_ALONE_FILES 32
#define COUNT_BYTES ((uint64_t)16 << 20)
#define PROGRESS_INTERVAL_MS 200
#define TRIES_MAX 5

static int64_t ctime_of(const struct stat *status)
{
	return (int64_t)status->st_ctim.tv_sec * 1000000000 + status->st_ctim.tv_nsec;
}

static bool stored_valid(const struct stored_file *file, const struct inode *inode,
                         const struct stat *status)
{
	return file && file->settled && file->staging == inode->staging &&
	       file->ctime_ns == ctime_of(status) && file->size == (uint64_t)status->st_size;
}

/* -- one file -- */

static void base_close(struct file_data **data)
{
	file_data_close(*data);
}

static int read_base(void *context, uint64_t offset, size_t length, void *out,
                     struct message *message)
{
	ssize_t got = file_data_read(context, out, length, offset, message);
	if (got >= 0 && (size_t)got < length)
		return fail(message, -ERR_CORRUPT, "a committed file is shorter than it should be");
	return got < 0 ? (int)got : 0;
}

static int store_piecewise(struct worktrees *trees, struct packer *packer,
                           const struct inode *inode, int fd, uint64_t size,
                           const struct progress *progress, struct content *ret_content,
                           struct message *message)
{
	CLEANUP(free_pointer) struct extent *dirty = NULL;
	size_t count = 0;
	int error = staging_dirty(trees, inode, fd, &dirty, &count);
	if (error)
		return error;
	/* a file allowed to be open may have grown since its size was asked for */
	while (count && dirty[count - 1].start >= size)
		count--;
	if (count && dirty[count - 1].end > size)
		dirty[count - 1].end = size;
	/* Often a local copy is there, from which the bytes were edited. */
	CLEANUP(base_close) struct file_data *committed = NULL;
	error = file_data_open_content(trees, &inode->content, &committed, message);
	if (error)
		return error;
	const struct edit_base base = {&inode->content, read_base, committed};
	return content_store_edit(packer, trees->odb, &base, fd, size, dirty, count, progress,
	                          ret_content, message);
}

/* Descriptors of an earlier process are not counted. */
static bool surely_quiet(struct worktrees *trees, const struct inode *inode)
{
	return trees->fine_times && inode->staging >= trees->first_number &&
	       !worktree_writers(trees, inode->number);
}

static int store_file(struct worktrees *trees, struct packer *packer, const struct inode *inode,
                      const struct progress *progress, struct stored_result *ret_file,
                      uint64_t *ret_disk_bytes, struct message *message)
{
	CLEANUP(close_descriptor) int fd = -1;
	int error = staging_open(trees, inode->staging, O_RDONLY | O_NOATIME, &fd);
	if (error)
		return error;
	for (int try = 1;; try++) {
		struct stat before, after;
		int64_t now = clock_wall_ns();
		uint64_t writer_count = trees->writer_count;
		bool quiet = surely_quiet(trees, inode);
		if (fstat(fd, &before))
			return error_system(errno);
		uint64_t size = (uint64_t)before.st_size;
		if (inode->piecewise)
			error = store_piecewise(trees, packer, inode, fd, size, progress,
			                        &ret_file->content, message);
		else
			error = content_store(packer, fd, size, progress, &ret_file->content,
			                      message);
		if (error == -ERR_BUSY && try < TRIES_MAX) /* it became shorter */
			continue;
		if (error)
			return error;
		if (fstat(fd, &after))
			return error_system(errno);
		*ret_disk_bytes = (uint64_t)before.st_blocks * 512;
		ret_file->number = inode->number;
		ret_file->staging = inode->staging;
		ret_file->ctime_ns = ctime_of(&before);
		ret_file->piecewise = inode->piecewise;
		quiet = quiet && trees->writer_count == writer_count;
		ret_file->settled = ctime_of(&after) == ctime_of(&before) &&
		                    (quiet || ctime_of(&before) < now - SETTLE_NS);
		return 0;
	}
}

int stored_content(struct stored *stored, struct worktrees *trees, struct packer *packer,
                   const struct inode *inode, const struct stat *status,
                   const struct progress *progress, struct content *ret_content,
                   struct message *message)
{
	struct stored_file *file = stored_find(stored, inode->number);
	if (file && file->used && file->staging == inode->staging) {
		*ret_content =
		        stored_file_content(file); /* another name of it; the gate is closed */
		return 0;
	}
	int error = 0;
	bool open = worktree_writers(trees, inode->number);
	if (!stored_valid(file, inode, status) || open) {
		struct stored_result found = {0};
		uint64_t disk_bytes;
		error = store_file(trees, packer, inode, progress, &found, &disk_bytes, message);
		if (!error)
			error = stored_enter(stored, &found);
		if (error)
			return error;
		file = stored_find(stored, inode->number);
	}
	file->used = true;
	file->open = open;
	stored->open |= open;
	*ret_content = stored_file_content(file);
	return 0;
}

/* -- many files, by threads -- */

struct job {
	struct inode inode;
	struct stored_result result;
	bool done;
};

struct upload {
	struct stored *stored;
	const struct ground *ground;
	struct packer *packer;
	const struct progress *progress;
	struct message *message;
	uint64_t batches, stored_files, stored_bytes;
	bool counted; /* total_bytes, which may be 0 */
	uint64_t total_bytes;
	int64_t started_ms, reported_ms;
	bool whole; /* not limited to paths */

	struct job *jobs;
	size_t job_count;
	uint64_t job_bytes;
	_Atomic size_t next;

	pthread_mutex_t lock; /* guards error, *message and the counts while threads run; leaf */
	int error;
};

/* Called by content_store in any of the threads, about one file. */
static int upload_tick(void *context, const char *what, uint64_t done, uint64_t total,
                       const char *unit)
{
	struct upload *upload = context;
	pthread_mutex_lock(&upload->lock);
	int64_t now = clock_monotonic_ms();
	int result = upload->error;
	if (!result && now - upload->reported_ms >= PROGRESS_INTERVAL_MS) {
		upload->reported_ms = now;
		uint64_t shown = upload->stored_bytes + done;
		result = progress_report(upload->progress, "storing files", shown,
		                         shown > upload->total_bytes ? shown : upload->total_bytes,
		                         "bytes");
	}
	pthread_mutex_unlock(&upload->lock);
	return result;
}

/* A file that vanished, was replaced or was cut short while it was read is the commit's to look at
 * again, with the gate closed. */
static bool upload_may_skip(int error)
{
	return error == -ERR_NOT_FOUND || error == -ERR_STALE || error == -ERR_BUSY;
}

static void *upload_run(void *argument)
{
	struct upload *upload = argument;
	struct progress tick = {.report = upload_tick, .context = upload};
	for (;;) {
		size_t index = atomic_fetch_add(&upload->next, 1);
		if (index >= upload->job_count)
			return NULL;
		struct job *job = &upload->jobs[index];
		struct message message = {{0}};
		uint64_t bytes = 0;
		int error = store_file(upload->ground->trees, upload->packer, &job->inode, &tick,
		                       &job->result, &bytes, &message);
		job->done = !error;
		pthread_mutex_lock(&upload->lock);
		if (error && !upload_may_skip(error) && !upload->error) {
			upload->error = error;
			if (upload->message)
				*upload->message = message;
		}
		upload->stored_bytes += bytes;
		bool stop = upload->error != 0;
		pthread_mutex_unlock(&upload->lock);
		if (!stop && upload_tick(upload, NULL, 0, 0, NULL)) {
			pthread_mutex_lock(&upload->lock);
			if (!upload->error)
				upload->error = -ERR_INTERRUPTED;
			pthread_mutex_unlock(&upload->lock);
			stop = true;
		}
		if (stop)
			return NULL;
	}
}

static int count_bytes(void *context, const struct inode *inode)
{
	struct upload *upload = context;
	struct stat status;
	if (inode->staging && !staging_stat(upload->ground->trees, inode->staging, &status))
		upload->total_bytes += (uint64_t)status.st_blocks * 512;
	return 0;
}

/* The total is for whoever watches. What is soon done needs none. */
static int count_when_long(struct upload *upload)
{
	const struct ground *ground = upload->ground;
	if (!upload->whole || !upload->progress || upload->counted ||
	    (clock_monotonic_ms() - upload->started_ms < PROGRESS_INTERVAL_MS &&
	     upload->job_bytes < COUNT_BYTES))
		return 0;
	upload->counted = true;
	return overlay_inodes(ground->trees, ground->overlay, count_bytes, upload);
}

/* Store what has been gathered. */
static int upload_batch(struct upload *upload)
{
	int error = count_when_long(upload);
	if (error)
		return error;
	atomic_store(&upload->next, 0);
	bool alone = upload->job_count < UPLOAD_ALONE_FILES &&
	             (upload->job_count < 2 || upload->job_bytes < UPLOAD_ALONE_BYTES);
	run_together(alone ? 0 : UPLOAD_THREADS - 1, upload_run, upload);

	error = upload->error;
	for (size_t i = 0; i < upload->job_count; i++) {
		struct job *job = &upload->jobs[i];
		if (!error && job->done) {
			error = stored_enter(upload->stored, &job->result);
			upload->stored_files++;
		}
		inode_release(&job->inode);
	}
	upload->batches++;
	upload->job_count = 0;
	upload->job_bytes = 0;
	return error;
}

static int upload_gather(void *context, const struct inode *inode)
{
	struct upload *upload = context;
	struct worktrees *trees = upload->ground->trees;
	struct stat status = {0};
	if (!inode->staging || !S_ISREG(inode->attributes.mode) ||
	    worktree_writers(trees, inode->number))
		return 0;
	/* Looking at each of many files takes half as long as reading them: not without need. */
	const struct stored_file *known = stored_find(upload->stored, inode->number);
	bool few = upload->batches == 0 || upload->job_count < UPLOAD_ALONE_FILES;
	if ((known || few) && staging_stat(trees, inode->staging, &status))
		return 0;
	if (stored_valid(known, inode, &status))
		return 0;
	struct job *job = &upload->jobs[upload->job_count];
	*job = (struct job){0};
	int error = inode_copy(inode, &job->inode);
	if (error)
		return error;
	upload->job_count++;
	upload->job_bytes += (uint64_t)status.st_blocks * 512;
	return upload->job_count == UPLOAD_BATCH ? upload_batch(upload) : 0;
}

/* -- which files -- */

static int gather_directory(struct upload *upload, uint64_t number, unsigned depth);

struct gather_level {
	struct upload *upload;
	unsigned depth;
};

static int gather_inode(struct upload *upload, const struct inode *inode, unsigned depth)
{
	if (S_ISDIR(inode->attributes.mode))
		return gather_directory(upload, inode->number, depth + 1);
	return upload_gather(upload, inode);
}

static int gather_entry(void *context, const struct overlay_entry *entry)
{
	struct gather_level *level = context;
	const struct ground *ground = level->upload->ground;
	if (entry->whiteout || !(S_ISDIR(entry->mode) || S_ISREG(entry->mode)))
		return 0;
	CLEANUP(inode_release) struct inode inode = {0};
	int error = overlay_read_inode(ground->trees, ground->overlay, entry->number, &inode);
	if (error)
		return error == -ERR_NOT_FOUND ? 0 : error; /* removed meanwhile */
	return gather_inode(level->upload, &inode, level->depth);
}

static int gather_directory(struct upload *upload, uint64_t number, unsigned depth)
{
	if (depth > PATH_BYTES_MAX / 2) /* the commit itself will say so, with the path */
		return 0;
	struct gather_level level = {upload, depth};
	return overlay_entries(upload->ground->trees, upload->ground->overlay, number, NULL, 0,
	                       gather_entry, &level);
}

static int gather_paths(struct upload *upload, const struct path_set *paths)
{
	int error = 0;
	for (size_t i = 0; !error && i < paths->count; i++) {
		CLEANUP(located_release) struct located at = {0};
		error = ground_locate(upload->ground, paths->paths[i], &at, upload->message);
		if (error == -ERR_NOT_FOUND) {
			error = 0;
			continue;
		}
		if (!error && at.exists && at.inode.number)
			error = gather_inode(upload, &at.inode, 0);
	}
	return error;
}

int stored_ahead(struct stored *stored, const struct ground *ground, const struct path_set *paths,
                 struct packer *packer, const struct progress *progress, uint64_t *ret_files,
                 struct message *message)
{
	struct upload upload = {
	        .stored = stored,
	        .ground = ground,
	        .packer = packer,
	        .progress = progress,
	        .message = message,
	        .started_ms = clock_monotonic_ms(),
	        .whole = paths->count == 0,
	        .lock = PTHREAD_MUTEX_INITIALIZER,
	};
	*ret_files = 0;
	if (!ground->overlay)
		return 0;
	CLEANUP(free_pointer) struct job *jobs = calloc(UPLOAD_BATCH, sizeof(*jobs));
	upload.jobs = jobs;
	upload.reported_ms = upload.started_ms;
	if (!upload.jobs)
		return -ERR_NO_MEMORY;
	int error = 0;
	if (paths->count == 0)
		error = overlay_inodes(ground->trees, ground->overlay, upload_gather, &upload);
	else if (!error)
		error = gather_paths(&upload, paths);
	if (!error && upload.job_count)
		error = upload_batch(&upload);
	for (size_t i = 0; i < upload.job_count; i++)
		inode_release(&upload.jobs[i].inode);
	*ret_files = upload.stored_files;
	return error;
}
