/*
 * record_disk — a disk that remembers in which order it was written.
 *
 *   record_disk MOUNTPOINT IMAGE LOG
 *
 * Serves the file IMAGE as MOUNTPOINT/disk, for a loop device to lie on, and appends each write and
 * each flush to LOG before it is answered: the file system on that device, with its own cache
 * and journal, is the kernel's. A loop device passes a flush on as fsync and has no FUA of its own,
 * so the block layer sends a flush after such a write.
 *
 * The length of LOG is a moment in time: who knows it before and after a call knows which writes
 * the call waited for. A record is a header of 16 bytes (u64 offset, u32 length, u32 kind: 0 write,
 * 1 flush), then the bytes written. There is one thread, so the order is that of the answers: what
 * stands before a flush had been answered when the flush was asked for.
 *
 * IMAGE and LOG must lie in memory: a disk that waits for another one's writeback could wait for
 * itself.
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

enum record_kind { RECORD_WRITE, RECORD_FLUSH };

struct record {
	uint64_t offset;
	uint32_t length;
	uint32_t kind;
};

static int image_fd, log_fd;
static off_t image_bytes;

static int append(enum record_kind kind, const char *bytes, size_t length, off_t offset)
{
	struct record record = {
	        .offset = (uint64_t)offset, .length = (uint32_t)length, .kind = kind};
	struct iovec vector[2] = {{&record, sizeof record}, {(void *)bytes, length}};
	ssize_t wanted = (ssize_t)(sizeof record + length);
	ssize_t done = writev(log_fd, vector, 2);
	if (done == wanted)
		return 0;
	/* A log with a gap would show losses that there were none of. */
	fprintf(stderr, "record_disk: cannot write the log: %s\n",
	        done < 0 ? strerror(errno) : "no space");
	exit(1);
}

static int disk_getattr(const char *path, struct stat *ret_status, struct fuse_file_info *file)
{
	(void)file;
	*ret_status = (struct stat){.st_mode = S_IFDIR | 0700, .st_nlink = 2};
	if (strcmp(path, "/") == 0)
		return 0;
	if (strcmp(path, "/disk") != 0)
		return -ENOENT;
	*ret_status =
	        (struct stat){.st_mode = S_IFREG | 0600, .st_nlink = 1, .st_size = image_bytes};
	return 0;
}

static int disk_open(const char *path, struct fuse_file_info *file)
{
	if (strcmp(path, "/disk") != 0)
		return -ENOENT;
	file->direct_io = 1; /* no page cache between the loop device and here */
	return 0;
}

static int disk_read(const char *path, char *ret_bytes, size_t length, off_t offset,
                     struct fuse_file_info *file)
{
	(void)path, (void)file;
	ssize_t got = pread(image_fd, ret_bytes, length, offset);
	return got < 0 ? -errno : (int)got;
}

static int disk_write(const char *path, const char *bytes, size_t length, off_t offset,
                      struct fuse_file_info *file)
{
	(void)path, (void)file;
	if (offset < 0 || offset > image_bytes || (off_t)length > image_bytes - offset)
		return -ENOSPC;
	if (pwrite(image_fd, bytes, length, offset) != (ssize_t)length)
		return -EIO;
	append(RECORD_WRITE, bytes, length, offset);
	return (int)length;
}

static int disk_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
	(void)path, (void)data_only, (void)file;
	return append(RECORD_FLUSH, NULL, 0, 0);
}

static const struct fuse_operations operations = {
        .getattr = disk_getattr,
        .open = disk_open,
        .read = disk_read,
        .write = disk_write,
        .fsync = disk_fsync,
};

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: record_disk MOUNTPOINT IMAGE LOG\n");
		return 2;
	}
	struct stat status;
	image_fd = open(argv[2], O_RDWR | O_CLOEXEC);
	log_fd = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (image_fd < 0 || log_fd < 0 || fstat(image_fd, &status) < 0) {
		fprintf(stderr, "record_disk: cannot open %s or %s: %s\n", argv[2], argv[3],
		        strerror(errno));
		return 1;
	}
	image_bytes = status.st_size;
	/* The kernel must not wait for a file system's writeback, so for us, to give us memory. */
	prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
	char *arguments[] = {argv[0], "-f", "-s", argv[1], NULL};
	return fuse_main(4, arguments, &operations, NULL);
}
