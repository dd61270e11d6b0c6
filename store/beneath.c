/* beneath — hides how links are kept from being followed: names are walked one by one. (openat2
 * would do it in one call; sandboxes still forbid it here and there.) */
#include "store/beneath.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/base.h"

#define NAME_BYTES_MAX 255

int beneath_open_at(int directory_fd, const char *name, int flags, mode_t mode)
{
	int fd = openat(directory_fd, name, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, mode);
	if (fd >= 0)
		return fd;
	/* A link in a directory's place is just "not a directory". */
	int error = errno;
	struct stat status;
	if (error == ENOTDIR && fstatat(directory_fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
	    S_ISLNK(status.st_mode))
		error = ELOOP;
	return -error;
}

/* Down to the directory of the last name, which is copied; empty when `path` is. */
static int walk(const char *directory, const char *path, char ret_name[NAME_BYTES_MAX + 1])
{
	CLEANUP(close_descriptor) int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	ret_name[0] = '\0';
	if (fd < 0)
		return -errno;
	for (;;) {
		size_t length = strcspn(path, "/");
		if (length > NAME_BYTES_MAX)
			return -ENAMETOOLONG;
		memcpy(ret_name, path, length);
		ret_name[length] = '\0';
		path += length + strspn(path + length, "/");
		if (*path == '\0')
			break;
		int below = beneath_open_at(fd, ret_name, O_PATH | O_DIRECTORY, 0);
		if (below < 0)
			return below;
		close_descriptor(&fd);
		fd = below;
	}
	int found = fd;
	fd = -1;
	return found;
}

int beneath_open(const char *directory, const char *path, int flags, mode_t mode)
{
	char name[NAME_BYTES_MAX + 1];
	CLEANUP(close_descriptor) int parent = walk(directory, path, name);
	return parent < 0 ? parent : beneath_open_at(parent, name[0] ? name : ".", flags, mode);
}

int beneath_open_parent(const char *directory, const char *path, int flags)
{
	char name[NAME_BYTES_MAX + 1];
	CLEANUP(close_descriptor) int parent = walk(directory, path, name);
	return parent < 0 ? parent : beneath_open_at(parent, ".", flags | O_DIRECTORY, 0);
}
