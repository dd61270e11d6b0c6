/*
 * Hides the FUSE protocol: each handler turns a request into one call of fs/mount/vfs.h and its
 * result into a reply. This is the only place where errors become errnos.
 */
#include "fs/mount/fuse_internal.h"

#include <errno.h>
#include <pthread.h>
#include <fcntl.h>
#include <stdio.h>

#define FOR_EVER 1e8 /* seconds: every change comes through us, or is notified */
#define READ_BYTES_MAX (1u << 20)
#define LOG_LINES_PER_SECOND 10

static struct mount *begin(fuse_req_t request)
{
	struct mount *mount = fuse_req_userdata(request);
	mount->operations++;
	vfs_request_begin(passthrough_request());
	return mount;
}

/* For what must not be done twice: did a process before this one do it, and die before it answered?
 */
static bool done_before(struct mount *mount)
{
	return passthrough_again() && vfs_request_again(mount->vfs, passthrough_request());
}

static struct vfs_caller caller_of(fuse_req_t request)
{
	const struct fuse_ctx *context = fuse_req_ctx(request);
	return (struct vfs_caller){context->uid, context->gid, context->pid};
}

/* Damage and an unreachable store are the operator's business; everything else the caller's. */
static void log_failure(struct mount *mount, uint64_t node, const char *name, int error,
                        const struct message *message)
{
	char path[1024];
	if (error != -ERR_CORRUPT && error != -ERR_STORE_AWAY && error != -ERR_VERSION)
		return;
	int64_t now = clock_monotonic_ms();
	if (now - mount->log_window_ms >= 1000) {
		mount->log_window_ms = now;
		mount->log_lines = 0;
	}
	if (mount->log_lines++ >= LOG_LINES_PER_SECOND)
		return;
	vfs_path(mount->vfs, node, path, sizeof(path));
	fprintf(stderr, "laked: %s%s%s: %s%s%s\n", path, name ? "/" : "", name ? name : "",
	        error_text(error), message->text[0] ? ": " : "", message->text);
}

static void reply_error(fuse_req_t request, uint64_t node, const char *name, int error,
                        const struct message *message)
{
	struct mount *mount = fuse_req_userdata(request);
	mount->failures++;
	log_failure(mount, node, name, error, message);
	fuse_reply_err(request, error_errno(error));
}

static void reply_result(fuse_req_t request, uint64_t node, const char *name, int result,
                         const struct message *message)
{
	if (result < 0)
		reply_error(request, node, name, result, message);
	else
		fuse_reply_err(request, 0);
}

/* A commit makes a file of its own of every hard link: their names and attributes do not last. */
static double stat_timeout(const struct stat *stat)
{
	return stat->st_nlink > 1 ? 0 : FOR_EVER;
}

static struct fuse_entry_param entry_param(const struct vfs_entry *entry)
{
	double timeout = stat_timeout(&entry->stat);
	return (struct fuse_entry_param){.ino = entry->node,
	                                 .generation = 1,
	                                 .attr = entry->stat,
	                                 .attr_timeout = timeout,
	                                 .entry_timeout = entry->lasting ? timeout : 0};
}

static void reply_entry(fuse_req_t request, uint64_t parent, const char *name, int result,
                        const struct vfs_entry *entry, const struct message *message)
{
	struct mount *mount = fuse_req_userdata(request);
	if (result < 0) {
		reply_error(request, parent, name, result, message);
		return;
	}
	struct fuse_entry_param param = entry_param(entry);
	if (fuse_reply_entry(request, &param) < 0) /* the caller was interrupted */
		vfs_forget(mount->vfs, entry->node, 1);
}

/* -- session -- */

static void handle_init(void *context, struct fuse_conn_info *connection)
{
	struct mount *mount = context;
	const unsigned unwanted = FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
	                          FUSE_CAP_SPLICE_MOVE | FUSE_CAP_AUTO_INVAL_DATA |
	                          FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_HANDLE_KILLPRIV;
	const unsigned wanted = FUSE_CAP_ASYNC_READ | FUSE_CAP_ATOMIC_O_TRUNC |
	                        FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS |
	                        FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_CACHE_SYMLINKS |
	                        FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_ASYNC_DIO;
	connection->want &= ~unwanted;
	connection->want |= wanted & connection->capable;
	connection->max_read = READ_BYTES_MAX;
	/* The kernel takes the least of this and the device's own (raise_read_ahead). */
	connection->max_readahead = READ_BYTES_MAX;
	connection->max_background = 64;
	connection->congestion_threshold = 48;
	passthrough_negotiate(&mount->passthrough, connection);
}

/* -- names -- */

static void handle_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_entry entry;
	int result = vfs_lookup(mount->vfs, parent, name, &entry, &message);
	reply_entry(request, parent, name, result, &entry, &message);
}

static void handle_forget(fuse_req_t request, fuse_ino_t node, uint64_t count)
{
	struct mount *mount = begin(request);
	vfs_forget(mount->vfs, node, count);
	fuse_reply_none(request);
}

static void handle_forget_multi(fuse_req_t request, size_t count, struct fuse_forget_data *forgets)
{
	struct mount *mount = begin(request);
	for (size_t i = 0; i < count; i++)
		vfs_forget(mount->vfs, forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(request);
}

static void make(fuse_req_t request, fuse_ino_t parent, const char *name,
                 const struct vfs_make *what)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_caller caller = caller_of(request);
	struct vfs_entry entry;
	int result = done_before(mount)
	                     ? vfs_lookup(mount->vfs, parent, name, &entry, &message)
	                     : vfs_make(mount->vfs, parent, name, what, &caller, &entry, &message);
	reply_entry(request, parent, name, result, &entry, &message);
	vfs_request_end(mount->vfs);
}

static void handle_mknod(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode,
                         dev_t rdev)
{
	make(request, parent, name, &(struct vfs_make){.mode = mode, .rdev = rdev});
}

static void handle_mkdir(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode)
{
	make(request, parent, name, &(struct vfs_make){.mode = S_IFDIR | (mode & 07777)});
}

static void handle_symlink(fuse_req_t request, const char *target, fuse_ino_t parent,
                           const char *name)
{
	make(request, parent, name, &(struct vfs_make){.mode = S_IFLNK | 0777, .target = target});
}

static void handle_link(fuse_req_t request, fuse_ino_t node, fuse_ino_t parent, const char *name)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_entry entry;
	int result = done_before(mount)
	                     ? vfs_lookup(mount->vfs, parent, name, &entry, &message)
	                     : vfs_link(mount->vfs, node, parent, name, &entry, &message);
	reply_entry(request, parent, name, result, &entry, &message);
	vfs_request_end(mount->vfs);
}

static void remove_name(fuse_req_t request, fuse_ino_t parent, const char *name, bool directory)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	int result =
	        done_before(mount) ? 0 : vfs_remove(mount->vfs, parent, name, directory, &message);
	reply_result(request, parent, name, result, &message);
	vfs_request_end(mount->vfs);
}

static void handle_unlink(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	remove_name(request, parent, name, false);
}

static void handle_rmdir(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	remove_name(request, parent, name, true);
}

static void handle_rename(fuse_req_t request, fuse_ino_t from_parent, const char *from,
                          fuse_ino_t to_parent, const char *to, unsigned flags)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	int result = done_before(mount) ? 0
	                                : vfs_rename(mount->vfs, from_parent, from, to_parent, to,
	                                             flags, &message);
	reply_result(request, from_parent, from, result, &message);
	vfs_request_end(mount->vfs);
}

static void handle_readlink(fuse_req_t request, fuse_ino_t node)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	CLEANUP(buffer_release) struct buffer target = {0};
	int result = vfs_readlink(mount->vfs, node, &target, &message);
	buffer_u8(&target, 0);
	if (result >= 0)
		result = buffer_check(&target);
	if (result < 0)
		reply_error(request, node, NULL, result, &message);
	else
		fuse_reply_readlink(request, (const char *)target.data);
}

/* -- attributes -- */

static void reply_stat(fuse_req_t request, uint64_t node, int result, const struct stat *stat,
                       const struct message *message)
{
	if (result < 0)
		reply_error(request, node, NULL, result, message);
	else
		fuse_reply_attr(request, stat, stat_timeout(stat));
}

static void handle_getattr(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct stat stat;
	int result = vfs_getattr(mount->vfs, node, &stat, &message);
	reply_stat(request, node, result, &stat, &message);
}

static int64_t ns_of(struct timespec time)
{
	return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static struct vfs_change change_of(const struct stat *attributes, int set)
{
	struct vfs_change change = {.mode = attributes->st_mode,
	                            .uid = attributes->st_uid,
	                            .gid = attributes->st_gid,
	                            .size = (uint64_t)attributes->st_size,
	                            .mtime_ns = ns_of(attributes->st_mtim),
	                            .atime_ns = ns_of(attributes->st_atim)};
	change.which = (set & FUSE_SET_ATTR_MODE ? VFS_MODE : 0) |
	               (set & FUSE_SET_ATTR_UID ? VFS_UID : 0) |
	               (set & FUSE_SET_ATTR_GID ? VFS_GID : 0) |
	               (set & FUSE_SET_ATTR_SIZE ? VFS_SIZE : 0) |
	               (set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW) ? VFS_MTIME : 0) |
	               (set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW) ? VFS_ATIME : 0);
	int64_t now = clock_wall_ns();
	if (set & FUSE_SET_ATTR_MTIME_NOW)
		change.mtime_ns = now;
	if (set & FUSE_SET_ATTR_ATIME_NOW)
		change.atime_ns = now;
	/* "Set nothing" is how the kernel asks for it before it writes to a backing file. */
	if (set == 0)
		change.which = VFS_DROP_PRIVILEGES;
	return change;
}

static void handle_setattr(fuse_req_t request, fuse_ino_t node, struct stat *attributes, int set,
                           struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_caller caller = caller_of(request);
	struct vfs_change change = change_of(attributes, set);
	struct vfs_file *file = info ? vfs_file_find(mount->vfs, info->fh) : NULL;
	struct stat stat;
	int result = vfs_setattr(mount->vfs, node, file, &change, &caller, &stat, &message);
	reply_stat(request, node, result, &stat, &message);
}

static void reply_bytes(fuse_req_t request, uint64_t node, int result, size_t size,
                        const struct buffer *bytes, const struct message *message)
{
	if (result < 0)
		reply_error(request, node, NULL, result, message);
	else if (size == 0)
		fuse_reply_xattr(request, bytes->length);
	else if (bytes->length > size)
		fuse_reply_err(request, ERANGE);
	else
		fuse_reply_buf(request, (const char *)bytes->data, bytes->length);
}

static void handle_getxattr(fuse_req_t request, fuse_ino_t node, const char *name, size_t size)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	CLEANUP(buffer_release) struct buffer value = {0};
	int result = vfs_xattr_get(mount->vfs, node, name, &value, &message);
	reply_bytes(request, node, result, size, &value, &message);
}

static void handle_listxattr(fuse_req_t request, fuse_ino_t node, size_t size)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	CLEANUP(buffer_release) struct buffer names = {0};
	int result = vfs_xattr_list(mount->vfs, node, &names, &message);
	reply_bytes(request, node, result, size, &names, &message);
}

static void handle_setxattr(fuse_req_t request, fuse_ino_t node, const char *name,
                            const char *bytes, size_t size, int flags)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct span value = {bytes, size};
	int result = done_before(mount)
	                     ? 0
	                     : vfs_xattr_set(mount->vfs, node, name, value, flags, &message);
	reply_result(request, node, NULL, result, &message);
	vfs_request_end(mount->vfs);
}

static void handle_removexattr(fuse_req_t request, fuse_ino_t node, const char *name)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	int result = done_before(mount)
	                     ? 0
	                     : vfs_xattr_set(mount->vfs, node, name, (struct span){0}, 0, &message);
	reply_result(request, node, NULL, result, &message);
	vfs_request_end(mount->vfs);
}

static void handle_statfs(fuse_req_t request, fuse_ino_t node)
{
	struct mount *mount = begin(request);
	struct statvfs statvfs;
	int result = vfs_statfs(mount->vfs, &statvfs);
	if (result < 0)
		fuse_reply_err(request, error_errno(result));
	else
		fuse_reply_statfs(request, &statvfs);
}

/* -- open files: replies are written here, libfuse 3.14 knows no backing id -- */

static struct fuse_open_out open_out(const struct vfs_opened *opened)
{
	struct fuse_open_out out = {.fh = vfs_file_handle(opened->file)};
	int32_t backing = opened->backing;
	/* Pages that were written through a mapping reach us when it ends, or at close, which is
	 * where the kernel says that a disk was full. (It asks us about the flush itself once.) */
	if (backing > 0 || !vfs_file_writes(opened->file))
		out.open_flags |= FOPEN_NOFLUSH;
	if (backing > 0) {
		out.open_flags |= FOPEN_PASSTHROUGH;
		/* The field is called padding before 7.40. */
		memcpy((char *)&out + sizeof(out) - sizeof(backing), &backing, sizeof(backing));
	} else if (opened->direct) {
		out.open_flags |= FOPEN_DIRECT_IO;
	} else if (opened->keep_pages) {
		out.open_flags |= FOPEN_KEEP_CACHE;
	}
	return out;
}

static void handle_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_caller caller = caller_of(request);
	struct vfs_opened opened;
	done_before(mount); /* what it opened is closed */
	int result = vfs_open(mount->vfs, node, info->flags, &caller, &opened, &message);
	if (result < 0) {
		reply_error(request, node, NULL, result, &message);
		return;
	}
	struct fuse_open_out out = open_out(&opened);
	if (fuse_reply_buf(request, (const char *)&out, sizeof(out)) < 0)
		vfs_release(mount->vfs, opened.file);
}

static struct fuse_entry_out entry_out(const struct vfs_entry *entry)
{
	const struct stat *stat = &entry->stat;
	return (struct fuse_entry_out){
	        .nodeid = entry->node,
	        .generation = 1,
	        .entry_valid = (uint64_t)FOR_EVER,
	        .attr_valid = (uint64_t)FOR_EVER,
	        .attr = {.ino = stat->st_ino,
	                 .size = (uint64_t)stat->st_size,
	                 .blocks = (uint64_t)stat->st_blocks,
	                 .atime = (uint64_t)stat->st_atim.tv_sec,
	                 .mtime = (uint64_t)stat->st_mtim.tv_sec,
	                 .ctime = (uint64_t)stat->st_ctim.tv_sec,
	                 .atimensec = (uint32_t)stat->st_atim.tv_nsec,
	                 .mtimensec = (uint32_t)stat->st_mtim.tv_nsec,
	                 .ctimensec = (uint32_t)stat->st_ctim.tv_nsec,
	                 .mode = stat->st_mode,
	                 .nlink = (uint32_t)stat->st_nlink,
	                 .uid = stat->st_uid,
	                 .gid = stat->st_gid,
	                 .rdev = (uint32_t)stat->st_rdev,
	                 .blksize = (uint32_t)stat->st_blksize},
	};
}

static void handle_create(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode,
                          struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_caller caller = caller_of(request);
	struct vfs_entry entry;
	struct vfs_opened opened;
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out;
	const char *real = strcmp(name, TMPFILE_NAME) == 0 ? NULL : name;
	int flags = info->flags;
	if (done_before(mount) && real)
		flags &= ~(O_EXCL | O_TRUNC);
	int result = vfs_create(mount->vfs, parent, real, mode, flags, &caller, &entry, &opened,
	                        &message);
	if (result < 0) {
		reply_error(request, parent, name, result, &message);
		vfs_request_end(mount->vfs);
		return;
	}
	out.entry = entry_out(&entry);
	out.open = open_out(&opened);
	if (fuse_reply_buf(request, (const char *)&out, sizeof(out)) < 0) {
		vfs_release(mount->vfs, opened.file);
		vfs_forget(mount->vfs, entry.node, 1);
	}
	vfs_request_end(mount->vfs);
}

/* NULL, and answered: what a process before this one opened could not be had again. */
static struct vfs_file *file_of(fuse_req_t request, const struct fuse_file_info *info)
{
	struct mount *mount = fuse_req_userdata(request);
	struct vfs_file *file = vfs_file_find(mount->vfs, info->fh);
	if (!file)
		fuse_reply_err(request, EIO);
	return file;
}

static void handle_release(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct vfs_file *file = vfs_file_find(mount->vfs, info->fh); /* NULL: closed before */
	bool mapped = (!file || vfs_file_maps(file)) && mount->passthrough.active;
	if (file)
		vfs_release(mount->vfs, file);
	/* Writes through mmap changed the backing file's times, unseen by the kernel's FUSE side.
	 */
	if (mapped)
		notify_inode(mount, node, false);
	fuse_reply_err(request, 0);
}

/* This thread's buffer for replies. libfuse ends idle threads, so it must go with its thread. */
static pthread_key_t read_buffer_key;

static void make_read_buffer_key(void)
{
	pthread_key_create(&read_buffer_key, free);
}

static char *read_buffer(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, make_read_buffer_key);
	char *bytes = pthread_getspecific(read_buffer_key);
	if (!bytes && (bytes = aligned_alloc(4096, READ_BYTES_MAX)))
		pthread_setspecific(read_buffer_key, bytes);
	return bytes;
}

static void handle_read(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                        struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	char *bytes = read_buffer();
	struct vfs_file *file = file_of(request, info);
	if (!file)
		return;
	if (!bytes) {
		fuse_reply_err(request, ENOMEM);
		return;
	}
	if (size > READ_BYTES_MAX)
		size = READ_BYTES_MAX;
	ssize_t got = vfs_read(mount->vfs, file, bytes, size, (uint64_t)offset, &message);
	if (got < 0)
		reply_error(request, node, NULL, (int)got, &message);
	else
		fuse_reply_buf(request, bytes, (size_t)got);
}

static void handle_write(fuse_req_t request, fuse_ino_t node, const char *bytes, size_t size,
                         off_t offset, struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_caller caller = caller_of(request);
	struct vfs_file *file = file_of(request, info);
	if (!file)
		return;
	ssize_t put = vfs_write(mount->vfs, file, bytes, size, (uint64_t)offset, &caller, &message);
	if (put < 0)
		reply_error(request, node, NULL, (int)put, &message);
	else
		fuse_reply_write(request, (size_t)put);
}

static void handle_fsync(fuse_req_t request, fuse_ino_t node, int data_only,
                         struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_file *file = file_of(request, info);
	if (!file)
		return;
	int result = vfs_sync(mount->vfs, file, data_only);
	reply_result(request, node, NULL, result, &message);
}

static void handle_fallocate(fuse_req_t request, fuse_ino_t node, int mode, off_t offset,
                             off_t length, struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_file *file = file_of(request, info);
	if (!file)
		return;
	int result =
	        vfs_allocate(mount->vfs, file, mode, (uint64_t)offset, (uint64_t)length, &message);
	reply_result(request, node, NULL, result, &message);
}

static void handle_lseek(fuse_req_t request, fuse_ino_t node, off_t offset, int whence,
                         struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	uint64_t found;
	struct vfs_file *file = file_of(request, info);
	if (!file)
		return;
	int result = vfs_seek(mount->vfs, file, (uint64_t)offset, whence, &found);
	if (result < 0)
		fuse_reply_err(request, error_errno(result));
	else
		fuse_reply_lseek(request, (off_t)found);
}

/* -- directories -- */

static void handle_opendir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	struct vfs_directory *directory;
	bool lasting;
	done_before(mount);
	int result = vfs_opendir(mount->vfs, node, &directory, &lasting, &message);
	if (result < 0) {
		reply_error(request, node, NULL, result, &message);
		return;
	}
	info->fh = vfs_directory_handle(directory);
	info->cache_readdir = lasting;
	info->keep_cache = lasting;
	if (fuse_reply_open(request, info) < 0)
		vfs_releasedir(mount->vfs, directory);
}

struct listing {
	fuse_req_t request;
	char *bytes;
	size_t used, size;
	bool plus;
};

static bool listing_add(void *context, const char *name, const struct vfs_entry *entry,
                        uint64_t next)
{
	struct listing *listing = context;
	char *at = listing->bytes + listing->used;
	size_t rest = listing->size - listing->used, needed;
	if (listing->plus) {
		struct fuse_entry_param param = entry_param(entry);
		needed = fuse_add_direntry_plus(listing->request, at, rest, name, &param,
		                                (off_t)next);
	} else {
		needed = fuse_add_direntry(listing->request, at, rest, name, &entry->stat,
		                           (off_t)next);
	}
	if (needed > rest)
		return false;
	listing->used += needed;
	return true;
}

static void read_directory(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                           struct fuse_file_info *info, bool plus)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	CLEANUP(free_pointer) char *bytes = malloc(size);
	struct vfs_directory *directory = vfs_directory_find(mount->vfs, info->fh);
	struct listing listing = {request, bytes, 0, size, plus};
	/* Sizes of struct fuse_dirent and fuse_direntplus, and half their padding. */
	struct vfs_list list = {.offset = (uint64_t)offset,
	                        .plus = plus,
	                        .room = size,
	                        .overhead = plus ? 156 : 28,
	                        .entry = listing_add,
	                        .context = &listing};
	if (!bytes || !directory) {
		fuse_reply_err(request, directory ? ENOMEM : EIO);
		return;
	}
	int result = vfs_readdir(mount->vfs, directory, &list, &message);
	if (result < 0)
		reply_error(request, node, NULL, result, &message);
	else
		fuse_reply_buf(request, bytes, listing.used);
}

static void handle_readdir(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                           struct fuse_file_info *info)
{
	read_directory(request, node, size, offset, info, false);
}

static void handle_readdirplus(fuse_req_t request, fuse_ino_t node, size_t size, off_t offset,
                               struct fuse_file_info *info)
{
	read_directory(request, node, size, offset, info, true);
}

static void handle_releasedir(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct vfs_directory *directory = vfs_directory_find(mount->vfs, info->fh);
	if (directory)
		vfs_releasedir(mount->vfs, directory);
	fuse_reply_err(request, 0);
}

static void handle_fsyncdir(fuse_req_t request, fuse_ino_t node, int data_only,
                            struct fuse_file_info *info)
{
	struct mount *mount = begin(request);
	struct message message = {.text[0] = '\0'};
	reply_result(request, node, NULL, vfs_sync_names(mount->vfs), &message);
}

/* No flush, no locks: the kernel does both by itself, as on a local file system. */
const struct fuse_lowlevel_ops fuse_handlers = {
        .init = handle_init,
        .lookup = handle_lookup,
        .forget = handle_forget,
        .forget_multi = handle_forget_multi,
        .getattr = handle_getattr,
        .setattr = handle_setattr,
        .readlink = handle_readlink,
        .mknod = handle_mknod,
        .mkdir = handle_mkdir,
        .symlink = handle_symlink,
        .link = handle_link,
        .unlink = handle_unlink,
        .rmdir = handle_rmdir,
        .rename = handle_rename,
        .open = handle_open,
        .create = handle_create,
        .release = handle_release,
        .read = handle_read,
        .write = handle_write,
        .fsync = handle_fsync,
        .fallocate = handle_fallocate,
        .lseek = handle_lseek,
        .opendir = handle_opendir,
        .readdir = handle_readdir,
        .readdirplus = handle_readdirplus,
        .releasedir = handle_releasedir,
        .fsyncdir = handle_fsyncdir,
        .getxattr = handle_getxattr,
        .setxattr = handle_setxattr,
        .listxattr = handle_listxattr,
        .removexattr = handle_removexattr,
        .statfs = handle_statfs,
};
