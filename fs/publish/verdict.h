/*
 * verdict — what the audits of a commit found, and the log of who did what: both in the store.
 *
 * Objects "audits/<commit id>/<ms, 13 digits>-<nonce>" and "log/<YYYY-MM-DD>/<ms>-<nonce>": JSON,
 * written once under a name nobody else makes, never replaced or deleted by us. Formats: README.md,
 * "Verdicts", "Audit log".
 * Times are those of the host that wrote the object, which it names: hosts' clocks differ, and the
 * order of entries from several hosts is only as good as these.
 * Threads: any. Holds no state. No cJSON in this header.
 */
#ifndef FS_VERDICT_H
#define FS_VERDICT_H

#include "store/object.h"

struct cJSON;

enum verdict_kind {
	VERDICT_PASSED,
	VERDICT_FAILED,
	VERDICT_ERROR,   /* it could not be found out: not run, killed, out of time */
	VERDICT_SKIPPED, /* of one check: no changed path concerns it */
};
const char *verdict_name(enum verdict_kind kind); /* "passed", ... */

#define VERDICT_CHECKS_MAX 64
#define VERDICT_OUTPUT_MAX (64u << 10) /* of one check */

struct verdict_check {
	char *name;
	enum verdict_kind verdict;
	int exit_code; /* -1: none */
	int signal;    /* 0: none */
	bool timed_out;
	bool output_cut;
	int64_t took_ms;
	uint64_t path_count; /* changed paths it was given, removed ones included */
	char *output;        /* UTF-8; why, when it could not be run. Never NULL */
};
struct verdict {
	enum verdict_kind verdict; /* passed, failed or error: the worst of the checks */
	struct id candidate;
	struct id source_id, target_id;
	struct id base_id; /* zero: none */
	struct id rules_id;
	char *source, *target; /* as named */
	char *who;             /* user@host */
	char *host;
	int64_t started_ms, took_ms;
	struct verdict_check *checks;
	size_t check_count;
};
void verdict_release(struct verdict *verdict); /* frees what it points to; accepts zeroed */

int verdict_encode(const struct verdict *verdict, struct buffer *ret_bytes);
/* -ERR_CORRUPT, -ERR_VERSION. */
int verdict_decode(const void *bytes, size_t length, struct verdict *ret_verdict);
/* As an object for replies; NULL: no memory. The caller deletes it. */
struct cJSON *verdict_json(const struct verdict *verdict);
/* For people: which checks, their verdicts, the output of those that did not pass, indented.
 * Control characters of the output are replaced. */
int verdict_text(const struct verdict *verdict, struct buffer *ret_text);
/* Why it forbids publishing, in one line: fills `message`; `error` is returned. */
int verdict_fail(const struct verdict *verdict, int error, struct message *message);

int verdict_store(struct object_store *store, const struct verdict *verdict,
                  struct message *message);
/* Oldest first, of the newest VERDICT_LIST_MAX. One that cannot be read or understood is given as
 * NULL with the reason, and the rest follows. Non-zero stops and is returned. None: 0, no call. */
#define VERDICT_LIST_MAX 100
typedef int verdict_fn(void *context, const char *key, const struct verdict *verdict,
                       const struct message *why);
int verdict_list(struct object_store *store, const struct id *commit, verdict_fn *callback,
                 void *context, struct message *message);

/* -- the log -- */

/* Adds "version", "time" and "host" to a copy of `entry` (an object; "who", "what", "branch" and
 * whatever else tells the story) and stores it. -ERR_TOO_LARGE above LOG_ENTRY_MAX. */
#define LOG_ENTRY_MAX (64u << 10)
int audit_log_append(struct object_store *store, const struct cJSON *entry,
                     struct message *message);
/* The newest `limit` entries not older than `since_ms`, newest last. `branch`: only its entries;
 * NULL: all. The entry is borrowed; one that cannot be read is {"key", "damaged": why}. One listing
 * and a get for each entry looked at. Memory: `limit` entries, and the names of those looked at. */
#define LOG_LIST_MAX 100000
typedef int audit_log_fn(void *context, const struct cJSON *entry);
int audit_log_list(struct object_store *store, int64_t since_ms, const char *branch, size_t limit,
                   audit_log_fn *callback, void *context, struct message *message);

/* -- fsck: every verdict and log entry is read; non-zero from the callback stops -- */
typedef int record_damage_fn(void *context, const char *key, const char *why);
int records_verify(struct object_store *store, record_damage_fn *callback, void *context,
                   struct message *message);

#endif
