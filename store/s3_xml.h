/*
 * s3_xml — the XML documents that S3 and STS answer with; home of <expat.h>.
 *
 * Input is whatever a server sent: any bytes give a result or -ERR_CORRUPT. Documents with a DTD
 * are refused (entities could make a small one huge), and so is an answer of another kind than the
 * one asked for: an error document is never data.
 */
#ifndef STORE_S3_XML_H
#define STORE_S3_XML_H

#include "store/base.h"

struct s3_error {
	char code[64]; /* "NoSuchKey"; "" when the body was no error document */
	char message[256];
	char region[40];      /* of AuthorizationHeaderMalformed and PermanentRedirect */
	char server_time[40]; /* of RequestTimeTooSkewed */
};
/* -ERR_CORRUPT: the bytes are no error document; *ret_error is then all empty. */
int s3_xml_error(const void *bytes, size_t length, struct s3_error *ret_error);

struct s3_listed {
	char *key; /* decoded */
	uint64_t size;
	int64_t modified_ms;
	char etag[96]; /* without quotes; "" when there is none or it is longer */
};
struct s3_page { /* ListBucketResult, with encoding-type=url */
	struct s3_listed *items;
	size_t count;
	char *next_token; /* NULL: the last page */
};
int s3_xml_page(const void *bytes, size_t length, struct s3_page *ret_page);
void s3_page_release(struct s3_page *page); /* accepts zeroed */

/* InitiateMultipartUploadResult. The id is allocated. */
int s3_xml_upload_id(const void *bytes, size_t length, char **ret_upload_id);
/* CompleteMultipartUploadResult. -ERR_CORRUPT for an error document, which comes with status 200
 * too. */
int s3_xml_completed(const void *bytes, size_t length);
/* DeleteResult: 0, or -ERR_NOT_PERMITTED with the first error in *ret_error. */
int s3_xml_deleted(const void *bytes, size_t length, struct s3_error *ret_error);

/* AssumeRoleWithWebIdentityResponse of STS. */
struct sts_credentials {
	char access_key[160];
	char secret_key[160];
	char *session_token; /* allocated */
	int64_t expires_ms;
};
int s3_xml_sts(const void *bytes, size_t length, struct sts_credentials *ret_credentials);
void sts_credentials_release(struct sts_credentials *credentials); /* accepts zeroed; wipes */

/* 2026-01-31T12:00:00[.000]Z or with +hh:mm, to ms since 1970. -ERR_CORRUPT. */
int iso8601_parse(const char *text, int64_t *ret_ms);

#endif
