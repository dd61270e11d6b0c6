/*
 * webhook_attempt — one POST to one receiver, and what its answer means. For webhook.c alone.
 * Threads: any. Blocks at most `total_ms`.
 */
#ifndef FS_WEBHOOK_ATTEMPT_H
#define FS_WEBHOOK_ATTEMPT_H

#include "fs/publish/webhook_spool.h"
#include "store/s3_http.h"

enum attempt_outcome {
	ATTEMPT_TAKEN,
	ATTEMPT_AGAIN,  /* later; others for this receiver may do better */
	ATTEMPT_PAUSE,  /* later, and so do all others for this receiver */
	ATTEMPT_REFUSED /* for good */
};
struct attempt {
	enum attempt_outcome outcome;
	int status;        /* 0: no answer */
	int64_t wait_ms;   /* the receiver asked for so long */
	char trouble[256]; /* unless taken: in words; names the receiver without its path */
};
void attempt_make(struct http *http, const struct spooled *spooled, int64_t total_ms,
                  struct attempt *ret_attempt);
/* The secret in `path`, without line ends. Its file must be regular, of root or our user, not
 * empty, and closed to others. */
int secret_read(const char *path, struct buffer *ret_secret, struct message *message);

#endif
