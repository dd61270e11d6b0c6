/*
 * beneath — opening what lies below a directory that others can write to, too.
 *
 * No symbolic link is followed on the way down from the directory (its own path may have some), so
 * nothing outside is read or written whatever they put there; and opening waits for nobody, also
 * not for the other end of a named pipe. Never: keeps a descriptor, so that the directory can be
 * unmounted. Threads: any.
 */
#ifndef STORE_BENEATH_H
#define STORE_BENEATH_H

#include <sys/types.h>

/* `path` is relative, "" the directory itself; slashes at its end do not count. `flags` and `mode`
 * are open(2)'s. A descriptor, or a negative errno: -ELOOP for a link. */
int beneath_open(const char *directory, const char *path, int flags, mode_t mode);
/* The directory that `path` lies in. */
int beneath_open_parent(const char *directory, const char *path, int flags);
/* One name in a directory that is open. */
int beneath_open_at(int directory_fd, const char *name, int flags, mode_t mode);

#endif
