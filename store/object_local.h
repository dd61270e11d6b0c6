/*
 * object_local — private to the store in a directory: what its two files share.
 *
 * object_local.c reads and writes objects, object_local_list.c lists them.
 */
#ifndef STORE_OBJECT_LOCAL_H
#define STORE_OBJECT_LOCAL_H

#include <pthread.h>
#include <sys/types.h>

#include "store/object.h"
#include "store/open_files.h"

#define LOCAL_MARKER_TEXT "lake object store 1\n"
#define LOCAL_MARKER_ID_BYTES 16
#define LOCAL_MARKER_BYTES (sizeof(LOCAL_MARKER_TEXT) - 1 + 2 * LOCAL_MARKER_ID_BYTES + 1)
#define LOCAL_DIRECTORIES_MAX 256

struct local_store {
	struct object_store base;
	char *root;
	char marker[LOCAL_MARKER_BYTES];

	struct open_files packs;

	struct {
		pthread_mutex_t lock;
		dev_t device; /* of the root when the marker was last read */
		ino_t inode;
		char *directories[LOCAL_DIRECTORIES_MAX]; /* durable in their parents */
		size_t count;
	} known;
};

static inline struct local_store *local_of(struct object_store *store)
{
	return (struct local_store *)store;
}

/* 0 when the store that was opened is there, by its marker; -ERR_STORE_AWAY. */
int local_check_marker(struct local_store *local, struct message *message);
/* Why a call on `key` failed, with `system_errno`: the store's fault or the object's. */
int local_fail(struct local_store *local, const char *what, const char *key, int system_errno,
               struct message *message);
int local_store_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                     void *context, struct message *message);

#endif
