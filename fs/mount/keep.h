/*
 * keep — memory that outlives the serving process: what its successor must know of the kernel's
 * connection.
 *
 * A memfd that the supervisor holds. It is made of records of fixed size; each says what it is in
 * its first word, which is written last when a record appears and first when it goes. The server
 * may be killed between any two instructions, so a record is either whole or not there, and who
 * changes one in place sees to it that every step on the way makes sense.
 *
 * Holds:      the mapping, and which records are free (not in it: found by looking through it).
 * Never:      knows what records mean; is read by another program than the one that wrote it (the
 *             supervisor's children share its image), so there is no format to agree on.
 * Threads:    any; one lock inside, for the lists of free records.
 */
#ifndef FS_KEEP_H
#define FS_KEEP_H

#include <stdatomic.h>

#include "store/base.h"

#define KEEP_INIT_MAX 256
#define KEEP_TELLING_MAX 64

/* What a record is. */
enum keep_kind {
	KEEP_FREE,
	KEEP_NODE,      /* fs/mount/nodes.c */
	KEEP_SCOPE,     /* fs/mount/nodes.c */
	KEEP_ORPHAN,    /* fs/mount/nodes.c */
	KEEP_OPEN,      /* fs/mount/vfs_state.c */
	KEEP_FILE,      /* fs/mount/vfs_open.c */
	KEEP_DIRECTORY, /* fs/mount/vfs_list.c */
	KEEP_REQUEST,   /* fs/mount/vfs_again.c */
};

/* What there is one of. */
struct keep_root {
	uint32_t formatted;
	_Atomic bool serving; /* INIT was answered: the kernel waits for requests to be served */
	_Atomic bool resends; /* the kernel can repeat requests that were not answered */
	_Atomic bool ended;   /* on purpose: not to be started again */
	_Atomic uint32_t starts;
	_Atomic uint32_t commands; /* under way: they may have changed what they did not tell of */
	_Atomic uint32_t chunks;   /* in use */
	/* Threads (as gettid(2) has them) that tell the kernel to forget something, or 0: it may
	 * hold them until another server serves. */
	_Atomic int32_t telling[KEEP_TELLING_MAX];
	_Atomic uint64_t next_node, next_handle;
	uint32_t init_length;
	uint8_t init[KEEP_INIT_MAX];       /* the INIT request as the kernel sent it */
	char mountpoint[4096], lake[4096]; /* absolute */
};

struct keep;
/* A new, empty one: its descriptor. A negative error. */
int keep_create(int *ret_fd);
/* Map it. The descriptor stays the caller's. */
int keep_open(int fd, struct keep **ret_keep);
void keep_close(struct keep *keep); /* the memory stays; accepts NULL */
struct keep_root *keep_root(struct keep *keep);

/* A zeroed record with room for `size` bytes (at most 256 KiB) that is not there yet; NULL: no
 * memory. Aligned for everything. */
void *keep_new(struct keep *keep, size_t size);
size_t keep_room(const struct keep *keep, const void *record);
/* From now on it is there. */
void keep_publish(void *record, enum keep_kind kind);
/* It is not any more. Accepts NULL. */
void keep_drop(struct keep *keep, void *record);
/* A number for a record, to be kept in other records; 0 for NULL. */
uint64_t keep_place(const struct keep *keep, const void *record);
/* Every record that is there, in no order. The callback may drop it. Non-zero stops and is
 * returned. Not while others make records. */
typedef int keep_fn(void *context, enum keep_kind kind, void *record);
int keep_each(struct keep *keep, keep_fn *callback, void *context);

#endif
