/*
 * webhook — tells receivers in the network what happened to a branch: JSON by POST, signed,
 * repeated until it is taken.
 *
 * Which receivers want what is in the rules of the branch (fs/publish/rules.h), so every host
 * notifies. Holds:      DIR/webhooks/, the spool: a file for each delivery, written and renamed
 * before a notifying call returns (so it survives kill -9; it is not synced: a power cut may lose
 * the last seconds'), removed when the receiver took it. DIR/webhooks/failed/ has those given up.
 * With a daemon, a thread for each receiver that something is due for. Never:      makes a command
 * fail or wait for a receiver while a daemon runs; sends unsigned what is to be signed; follows a
 * redirect. Signature:  X-Lake-Signature-256: sha256=<hex HMAC-SHA256(secret, timestamp
 * "." body)> beside X-Lake-Timestamp (Unix seconds, of this attempt). The form is GitHub's
 *             (docs.github.com, "Validating webhook deliveries"), what is signed is Stripe's
 *             (docs.stripe.com/webhooks, "Verify webhook signatures manually"), so that a recorded
 *             request cannot be sent again later.
 * Attempts:   2xx: done. No answer, 408, 429, 5xx, or no secret file here: again after 1 s doubled
 *             up to 10 min, with jitter, not before Retry-After, for 24 h. Any other status: given
 * up. Threads:    any. Lock: `webhooks.lock`, a leaf; never held across the network or the disk.
 */
#ifndef FS_WEBHOOK_H
#define FS_WEBHOOK_H

#include "fs/publish/rules.h"

struct cJSON;

struct webhooks;
struct webhooks_options {
	const char *directory; /* the spool */
	const char *lake_id;
	/* For tests; 0: the defaults above. */
	int64_t backoff_ms_min, backoff_ms_max, give_up_ms, attempt_ms;
	size_t spool_max;
};
/* Costs nothing: the directory and the connection come with the first delivery. */
int webhooks_open(const struct webhooks_options *options, struct webhooks **ret_webhooks);
/* From now on deliveries are made in the background, also those found in the spool. Once, before
 * anything is sent. `log` (may be NULL) gets a line for each delivery given up, and one when a
 * receiver begins to fail. */
int webhooks_start(struct webhooks *webhooks, void (*log)(void *context, const char *line),
                   void *context, struct message *message);
/* What is under way is given up after a moment and stays in the spool. Accepts NULL. */
void webhooks_close(struct webhooks *webhooks);

/* What happened. NULL and -1: left out of the JSON. Borrowed. */
struct webhook_event {
	const char *event; /* "published", "merged", "committed", "audit-failed", ... */
	const char *branch, *source;
	const struct id *commit, *before;
	const char *who, *message, *verdict;
	int64_t changed; /* paths */
	const struct cJSON *audits;
	const char *text; /* for people; NULL: made of the rest */
};
/* Spool it for `rule`. 0: it was taken, or will be in the background. Without webhooks_start it is
 * tried at once, until `deadline_ms` (monotonic clock): 1: it stays in the spool for a daemon, and
 * the message says why. Errors: not spooled, or given up. */
int webhook_send(struct webhooks *webhooks, const struct webhook_rule *rule,
                 const struct webhook_event *event, int64_t deadline_ms, struct message *message);
/* One attempt now, without the spool: the HTTP status (with a message unless it was taken), or an
 * error: no answer. */
int webhook_try(struct webhooks *webhooks, const struct webhook_rule *rule,
                const struct webhook_event *event, struct message *message);
/* Why `rule` cannot be used on this host: its secret file, its URL. 0: it can. */
int webhook_check(const struct webhook_rule *rule, struct message *message);

/* How a receiver stands, as far as this process knows. */
struct webhook_standing {
	uint64_t waiting;
	char trouble[256]; /* of the last attempt; "": none */
};
void webhook_standing(struct webhooks *webhooks, const char *url,
                      struct webhook_standing *ret_standing);

struct webhook_statistics {
	uint64_t delivered, retried, failed;
	uint64_t waiting; /* in the spool, as far as this process knows */
};
void webhooks_statistics(struct webhooks *webhooks, struct webhook_statistics *ret_statistics);

/* "sha256=" and the hexadecimal HMAC of timestamp "." body; for tests. */
#define WEBHOOK_SIGNATURE_LENGTH (7 + ID_HEX)
int webhook_sign(const void *secret, size_t secret_length, const char *timestamp, const char *body,
                 char ret_signature[WEBHOOK_SIGNATURE_LENGTH + 1]);
/* The JSON of an event; allocated. NULL: no memory. */
char *webhook_body(const char *lake_id, const char *delivery, const struct webhook_event *event);

#endif
