/* s3_credential_sources — where keys come from; for s3_credentials.c alone. Each returns 1 with a
 * key, 0 when this source is not set up here, or an error when it is and does not work. */
#ifndef STORE_S3_CREDENTIAL_SOURCES_H
#define STORE_S3_CREDENTIAL_SOURCES_H

#include "store/s3_credentials.h"
#include "store/s3_ini.h"

int s3_key_from_process(const char *command, struct s3_key *ret_key, struct message *message);
struct web_identity {
	const char *token_file;
	const char *role;
	const char *session_name; /* NULL: made up */
	const char *region;
	const struct shared_config *shared; /* for the endpoint of STS */
};
int s3_key_from_web_identity(struct http *http, const struct web_identity *identity,
                             struct s3_key *ret_key, struct message *message);
int s3_key_from_container(struct http *http, struct s3_key *ret_key, struct message *message);
int s3_key_from_instance(struct http *http, struct s3_key *ret_key, struct message *message);

#endif
