/*
 * webhook_spool — DIR/webhooks/: one file for each delivery that no receiver has taken yet, and
 * failed/ with those given up. For webhook.c alone.
 *
 * A file is written beside and renamed, so it is whole or not there; what a crash left beside is
 * removed by spool_list. Names are `<time in ms, 13 digits>-<16 hex digits>`, the delivery's id,
 * and so sort by time. Files are for their owner alone: URLs may hold a key. Threads: any; files of
 * different names do not know each other.
 */
#ifndef FS_WEBHOOK_SPOOL_H
#define FS_WEBHOOK_SPOOL_H

#include "store/base.h"

#define SPOOL_NAME_LENGTH 30
#define SPOOL_FAILED_MAX 10000 /* the oldest of failed/ go */

struct spooled {
	char name[SPOOL_NAME_LENGTH + 1];
	char *event, *url, *body;
	char *secret_file; /* NULL: not signed */
};
void spooled_release(struct spooled *spooled); /* accepts zeroed */

void spool_name(char ret_name[SPOOL_NAME_LENGTH + 1]);
int64_t spool_name_ms(const char *name); /* when it was made, by the wall clock */
/* Makes the directory when it is missing. */
int spool_write(const char *directory, const struct spooled *spooled);
/* -ERR_NOT_FOUND; -ERR_CORRUPT: not one of ours. */
int spool_read(const char *directory, const char *name, struct spooled *ret_spooled);
int spool_remove(const char *directory, const char *name);
/* To failed/. */
int spool_fail(const char *directory, const char *name);
/* All names, oldest first, each SPOOL_NAME_LENGTH + 1 bytes. Empty without the directory. */
int spool_list(const char *directory, struct buffer *ret_names);

#endif
