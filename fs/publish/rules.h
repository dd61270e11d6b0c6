/*
 * rules — what a branch demands before it moves and who is told after: audits and webhooks.
 *
 * Objects "rules/<SHA-256 of the bytes, hex>": immutable, never deleted; a branch's ref names the
 * one that holds (refs/ref.h, protection). Format: README.md, "Rules". Values are never changed in
 * place: edits make new ones.
 * Holds:   the rules this process has loaded, by id, so that each is fetched once.
 * Threads: any; one lock, a leaf, guards the loaded ones and is not held across the store.
 */
#ifndef FS_RULES_H
#define FS_RULES_H

#include "store/object.h"

#define RULES_BYTES_MAX (64u << 10)
#define RULES_AUDITS_MAX 64
#define RULES_WEBHOOKS_MAX 32
#define RULE_NAME_MAX 64
#define RULE_LIST_MAX 256 /* patterns, arguments or events of one rule */
#define RULE_URL_MAX 2048
#define AUDIT_TIMEOUT_S_DEFAULT 600
#define AUDIT_TIMEOUT_S_MAX 86400

/* Lists end with a NULL that is not counted. */
struct audit_rule {
	char *name;   /* [A-Za-z0-9_][A-Za-z0-9_.-]{0,63}, unique among audits */
	char **paths; /* patterns (path_glob_match); none: every path */
	size_t path_count;
	char **argv; /* argv[0]: absolute, or the name of a file in the audits' directories */
	size_t argument_count;
	int timeout_s;
};
struct webhook_rule {
	char *name;    /* as above, unique among webhooks */
	char *url;     /* http:// or https:// */
	char **events; /* at least one, of [a-z-]{1,32} */
	size_t event_count;
	char *secret_file; /* absolute path on the host that sends; NULL: not signed */
};
struct rules {
	struct audit_rule *audits; /* in the order they run */
	size_t audit_count;
	struct webhook_rule *webhooks;
	size_t webhook_count;
};
void rules_free(struct rules *rules);     /* accepts NULL */
void rules_cleanup(struct rules **rules); /* CLEANUP */

/* -ERR_INVALID with a message that says what is wrong where; -ERR_VERSION. Nothing unknown is
 * accepted: a rule that is misspelled must not pass for one that demands nothing. */
int rules_parse(const void *bytes, size_t length, struct rules **ret_rules,
                struct message *message);
/* The canonical bytes: equal rules have equal ids. */
int rules_encode(const struct rules *rules, struct buffer *ret_bytes);

/* Puts the object unless it is there. Without any rule *ret_id is zero and nothing is stored. */
int rules_store(struct object_store *store, const struct rules *rules, struct id *ret_id,
                struct message *message);
/* One request per id and process. Zero: no rules, no request. The caller frees *ret_rules.
 * -ERR_NOT_FOUND, -ERR_CORRUPT (the bytes are not those of the id), -ERR_VERSION. */
int rules_load(struct object_store *store, const struct id *id, struct rules **ret_rules,
               struct message *message);
/* The same from the store alone, for fsck: is it there, whole and understood? */
int rules_verify(struct object_store *store, const struct id *id, struct message *message);

/* Edits. `rules` may be NULL: none. One of that name is replaced where it stands, else it is added
 * last. -ERR_INVALID as for rules_parse. */
int rules_with_audit(const struct rules *rules, const struct audit_rule *audit,
                     struct rules **ret_rules, struct message *message);
int rules_with_webhook(const struct rules *rules, const struct webhook_rule *webhook,
                       struct rules **ret_rules, struct message *message);
/* -ERR_NOT_FOUND: there is none of that name. */
int rules_without_audit(const struct rules *rules, const char *name, struct rules **ret_rules,
                        struct message *message);
int rules_without_webhook(const struct rules *rules, const char *name, struct rules **ret_rules,
                          struct message *message);

#endif
