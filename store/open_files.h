/*
 * open_files — descriptors of files that are read again and again, found by key.
 *
 * Holds:   at most OPEN_FILES_MAX descriptors beyond those in use; the least recently used goes.
 * Never:   opens a file itself; does I/O under its lock.
 * Threads: any; one lock, a leaf.
 */
#ifndef STORE_OPEN_FILES_H
#define STORE_OPEN_FILES_H

#include <pthread.h>

#include "store/base.h"

#define OPEN_FILES_MAX 64

struct open_file {
	int fd;
	uint64_t size; /* when it was opened */
};

struct open_files {
	pthread_mutex_t lock; /* guards the rest */
	struct slot *slots[OPEN_FILES_MAX];
	uint64_t clock;
	uint64_t forgotten; /* how often a key was: what was opened before may be an old file */
};

void open_files_init(struct open_files *files);
void open_files_release(struct open_files *files); /* nothing may be in use */

/* The file of `key`, in use until open_files_done; NULL when none is held. Then open it and hand it
 * to open_files_keep with `*ret_moment`, taken before opening. */
struct open_file *open_files_find(struct open_files *files, const char *key, uint64_t *ret_moment);
/* Takes `*fd` over (sets it to -1) and yields it in use. NULL: out of memory, `*fd` stays. */
struct open_file *open_files_keep(struct open_files *files, const char *key, int *fd, uint64_t size,
                                  uint64_t moment);
void open_files_done(struct open_files *files, struct open_file *file);
/* The file of `key` was replaced or removed. Those who read it go on with the old one. */
void open_files_forget(struct open_files *files, const char *key);

#endif
