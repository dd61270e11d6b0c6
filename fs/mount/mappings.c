/*
 * mappings — hides how one learns that a file is mapped.
 *
 * The kernel counts who has a file open for writing, mappings included, and tells by giving leases
 * (fcntl(2), F_SETLEASE): a write lease to the sole opener alone, a read lease when there is none
 * for writing. A lease refused may be for our own descriptor's sake; then only the lists of
 * mappings can tell. A process that has just closed the file may still be counted for some
 * microseconds.
 */
#include "fs/mount/mappings.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "store/base.h"

/* Somebody may open the file in the very moment that the lease is held: then its owner gets a
 * signal. By default that is SIGIO, which ends a process; SIGURG does nothing. */
static bool lease_given(int fd, int kind)
{
	fcntl(fd, F_SETSIG, SIGURG);
	if (fcntl(fd, F_SETLEASE, kind) < 0)
		return false;
	fcntl(fd, F_SETLEASE, F_UNLCK);
	return true;
}

bool mappings_possible(int fd)
{
	return !lease_given(fd, F_WRLCK);
}

/* Mappings show the file of the mount, which has no device of its own (major 0). */
static bool process_maps(int processes, const char *name, uint64_t shown)
{
	char path[64];
	snprintf(path, sizeof(path), "%.32s/maps", name);
	int fd = openat(processes, path, O_RDONLY | O_CLOEXEC);
	FILE *maps = fd < 0 ? NULL : fdopen(fd, "r");
	if (!maps) {
		if (fd >= 0)
			close(fd);
		return false; /* it has ended */
	}
	CLEANUP(free_pointer) char *line = NULL;
	size_t size = 0;
	bool found = false;
	while (!found && getline(&line, &size, maps) > 0) {
		char rights[5];
		unsigned major;
		unsigned long long inode;
		found = sscanf(line, "%*x-%*x %4s %*x %x:%*x %llu", rights, &major, &inode) == 3 &&
		        rights[1] == 'w' && rights[3] == 's' && major == 0 && inode == shown;
	}
	fclose(maps);
	return found;
}

static bool any_process_maps(uint64_t shown)
{
	DIR *processes = opendir("/proc");
	const struct dirent *entry;
	bool found = false;
	if (!processes)
		return true; /* not known */
	while (!found && (entry = readdir(processes)))
		found = isdigit((unsigned char)entry->d_name[0]) &&
		        process_maps(dirfd(processes), entry->d_name, shown);
	closedir(processes);
	return found;
}

bool mappings_exist(int fd, uint64_t shown, bool ours)
{
	if (lease_given(fd, F_RDLCK))
		return false;
	return !ours || any_process_maps(shown);
}
