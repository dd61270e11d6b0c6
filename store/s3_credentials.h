/*
 * s3_credentials — who we are to the store: found, kept in memory, renewed before they expire.
 *
 * Sources, the first that has any: environment (unless the store's URL names a profile); web
 * identity token by environment; the profile in the shared files (keys, web identity, or
 * credential_process); the container's endpoint; the instance's metadata (IMDSv2).
 * Never: writes a secret to disk, into a message or a log; secrets are wiped when released.
 * Threads: any. Lock: `credentials.lock` guards the kept key; it is not held across the network, a
 * file or a process: one thread renews while others go on with what is still valid.
 */
#ifndef STORE_S3_CREDENTIALS_H
#define STORE_S3_CREDENTIALS_H

#include "store/s3_http.h"

struct s3_key {
	char *access_key;
	char *secret_key;
	char *session_token; /* NULL: none */
	int64_t expires_ms;  /* wall clock; 0: never */
};
/* Copies, into memory for secrets (store/secret.h); a session token of NULL or "" is none. */
int s3_key_make(const char *access_key, const char *secret_key, const char *session_token,
                int64_t expires_ms, struct s3_key *ret_key);
void s3_key_release(struct s3_key *key); /* accepts zeroed; wipes */

struct s3_credentials;
struct s3_credentials_options {
	const char *profile; /* named by the store's URL; NULL: AWS_PROFILE or "default" */
	const char *region;  /* of STS */
	struct http *http;   /* borrowed; must outlive the credentials */
};
int s3_credentials_new(const struct s3_credentials_options *options,
                       struct s3_credentials **ret_credentials);
void s3_credentials_free(struct s3_credentials *credentials); /* accepts NULL */
/* A copy of the key to sign with; may wait for a source to answer. -ERR_STORE_AWAY with a message
 * that names what was tried. */
int s3_credentials_get(struct s3_credentials *credentials, struct s3_key *ret_key,
                       struct message *message);
/* The store did not accept this access key: look again before the next use. */
void s3_credentials_refused(struct s3_credentials *credentials, const char *access_key);

/* The JSON that credential_process and the metadata services answer with. -ERR_CORRUPT. */
int s3_key_from_json(const void *bytes, size_t length, struct s3_key *ret_key);

#endif
