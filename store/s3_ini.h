/*
 * s3_ini — the format of AWS's shared config and credentials files.
 *
 * Sections in brackets, "key = value" lines, comments from '#' or ';' at the start of a line (or
 * after a blank), and one level of nesting: indented lines below "s3 =" are read as keys "s3.name".
 * https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html
 */
#ifndef STORE_S3_INI_H
#define STORE_S3_INI_H

#include "store/base.h"

struct ini_entry {
	char *section; /* as written, blanks collapsed: "profile one" */
	char *key;     /* lower case */
	char *value;
};
struct ini {
	struct ini_entry *entries;
	size_t count;
};
#define INI_BYTES_MAX (1u << 20)
#define INI_ENTRIES_MAX 10000
/* Lines that are neither are skipped, as AWS's tools do. -ERR_NO_MEMORY, -ERR_TOO_LARGE. */
int ini_parse(const void *bytes, size_t length, struct ini *ret_ini);
/* The file at `path`; one that is not there is empty. */
int ini_read(const char *path, struct ini *ret_ini, struct message *message);
void ini_release(struct ini *ini); /* accepts zeroed; wipes the values */
/* The last one wins. NULL when there is none; borrowed. */
const char *ini_get(const struct ini *ini, const char *section, const char *key);
bool ini_has(const struct ini *ini, const char *section);

/* Both shared files and the profile in use. */
struct shared_config {
	struct ini config;
	struct ini credentials;
	char *profile;
};
/* AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE, else ~/.aws/config and ~/.aws/credentials.
 * `profile` NULL: AWS_PROFILE, else "default". -ERR_NOT_FOUND: a profile was named and neither file
 * has it. */
int shared_config_read(const char *profile, struct shared_config *ret_shared,
                       struct message *message);
void shared_config_release(struct shared_config *shared); /* accepts zeroed */
/* Of the profile; the credentials file goes before the config file. NULL; borrowed. */
const char *shared_config_get(const struct shared_config *shared, const char *key);
/* What the section [services NAME] says that the profile points to, "s3.endpoint_url" say. */
const char *shared_config_service(const struct shared_config *shared, const char *key);
/* An environment variable; NULL when it is empty, too. */
const char *environment(const char *name);

#endif
