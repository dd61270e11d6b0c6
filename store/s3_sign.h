/*
 * s3_sign — AWS Signature Version 4 for requests signed in headers.
 *
 * https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html; for S3 the path is
 * signed as it is sent: encoded once and not normalized. Pure functions, no state.
 */
#ifndef STORE_S3_SIGN_H
#define STORE_S3_SIGN_H

#include "store/s3_http.h"

#define AMZ_DATE_LENGTH 16 /* 20150830T123600Z */
#define SHA256_HEX 64

struct s3_signing {
	const char *method;
	const char *path;  /* as sent */
	const char *query; /* as sent, without the '?'; "" for none */
	/* All of these are signed. Names in any case; x-amz-date must be among them. */
	const struct http_header *headers;
	size_t header_count;
	const char *payload_sha256; /* hexadecimal */
	const char *access_key;
	const char *secret_key;
	const char *region;
	const char *service;
	const char *amz_date;
};
/* Append the value of the Authorization header. -ERR_NO_MEMORY. */
int s3_sign(const struct s3_signing *signing, struct buffer *ret_authorization);

void amz_date(int64_t wall_ms, char ret_date[AMZ_DATE_LENGTH + 1]);
void payload_hash(const void *bytes, size_t length, char ret_hex[SHA256_HEX + 1]);
/* Append `text` with all but A-Z a-z 0-9 - . _ ~ percent-encoded (and '/', when kept). */
void percent_encode(struct buffer *buffer, const char *text, bool keep_slash);
/* The value of a Content-MD5 header (RFC 1864). */
#define MD5_BASE64 24
int md5_base64(const void *bytes, size_t length, char ret_text[MD5_BASE64 + 1]);

#endif
