/*
 * s3_write — hides how objects are put: whole, in parts, or on a condition whose answer may be
 * lost.
 *
 * A conditional put is sent again only when its outcome so far is certain. After an answer that
 * leaves it open (500, 503, a broken or silent connection) the object is read: as long as it is
 * what the condition asks for nothing has happened, and the put may be repeated, because both
 * attempts carry the same condition and at most one can take effect. Everything else after such an
 * answer is "not known": a refusal of the repetition may be due to the first attempt. The caller,
 * who put a nonce into the content, reads back and knows.
 */
#include <stdio.h>

#include "store/s3.h"
#include "store/s3_sign.h"

int s3_etag_take(const char *header, struct etag *ret_etag)
{
	size_t length = strlen(header);
	if (length >= 2 && header[0] == '"' && header[length - 1] == '"') {
		header++;
		length -= 2;
	}
	if (length == 0 || length > ETAG_MAX)
		return -ERR_CORRUPT;
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)header[i] <= 0x20 || (unsigned char)header[i] >= 0x7f ||
		    header[i] == '"')
			return -ERR_CORRUPT;
	memcpy(ret_etag->text, header, length);
	ret_etag->text[length] = '\0';
	return 0;
}

static int fail_etag(const char *key, struct message *message)
{
	return fail(message, -ERR_STORE_AWAY, "the store answered for '%s' without an ETag", key);
}

/* 2xx, or an error for statuses that a put without a condition cannot have. */
static int put_result(struct s3 *s3, const char *key, const struct s3_answer *answer,
                      struct message *message)
{
	struct etag etag;
	if (!s3_is_good(answer))
		return s3_explain(s3, key, answer, message);
	return s3_etag_take(answer->http.etag, &etag) < 0 ? fail_etag(key, message) : 0;
}

/* -- in parts -- */

struct upload {
	struct s3 *s3;
	const char *key;
	char *id;            /* percent-encoded */
	struct buffer parts; /* of the document that completes it */
	struct message *message;
};

static void upload_release(struct upload *upload)
{
	free(upload->id);
	buffer_release(&upload->parts);
}

static int upload_begin(struct upload *upload)
{
	CLEANUP(buffer_release) struct buffer body = {.limit = HTTP_ERROR_BODY_MAX};
	CLEANUP(buffer_release) struct buffer encoded = {0};
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	CLEANUP(free_pointer) char *id = NULL;
	struct s3_request request = {.kind = OBJECT_MULTIPART,
	                             .method = "POST",
	                             .key = upload->key,
	                             .query = "uploads=",
	                             .body = "",
	                             .into = &body};
	int error = s3_perform(upload->s3, &request, &answer, upload->message);
	if (error < 0)
		return error;
	if (!s3_is_good(&answer))
		return s3_explain(upload->s3, upload->key, &answer, upload->message);
	error = s3_xml_upload_id(body.data, body.length, &id);
	if (error < 0)
		return fail(upload->message, -ERR_STORE_AWAY,
		            "the store began an upload of '%s' without naming it", upload->key);
	percent_encode(&encoded, id, false);
	buffer_u8(&encoded, 0);
	error = buffer_check(&encoded);
	if (error == 0)
		upload->id = (char *)steal(&encoded.data);
	return error;
}

static void append_xml(struct buffer *buffer, const char *text)
{
	for (; *text != '\0'; text++) {
		const char *entity = *text == '&'   ? "&amp;"
		                     : *text == '<' ? "&lt;"
		                     : *text == '>' ? "&gt;"
		                                    : NULL;
		buffer_append(buffer, entity != NULL ? entity : text,
		              entity != NULL ? strlen(entity) : 1);
	}
}

static void append_text(struct buffer *buffer, const char *text)
{
	buffer_append(buffer, text, strlen(text));
}

static int upload_part(struct upload *upload, unsigned number, const void *bytes, size_t length)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	CLEANUP(free_pointer) char *query = NULL;
	struct etag etag;
	char text[64];
	if (asprintf(&query, "partNumber=%u&uploadId=%s", number, upload->id) < 0)
		return -ERR_NO_MEMORY;
	struct s3_request request = {.kind = OBJECT_MULTIPART,
	                             .method = "PUT",
	                             .key = upload->key,
	                             .query = query,
	                             .body = bytes,
	                             .body_length = length};
	int error = s3_perform(upload->s3, &request, &answer, upload->message);
	if (error == 0)
		error = put_result(upload->s3, upload->key, &answer, upload->message);
	if (error < 0)
		return error;
	s3_etag_take(answer.http.etag, &etag);
	snprintf(text, sizeof(text), "<Part><PartNumber>%u</PartNumber><ETag>\"", number);
	append_text(&upload->parts, text);
	append_xml(&upload->parts, etag.text);
	append_text(&upload->parts, "\"</ETag></Part>");
	return buffer_check(&upload->parts);
}

/* Is the object there in its full length? */
static int check_completed(struct upload *upload, size_t length)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct s3_request request = {
	        .kind = OBJECT_MULTIPART, .method = "HEAD", .key = upload->key};
	int error = s3_perform(upload->s3, &request, &answer, upload->message);
	if (error < 0)
		return error;
	if (s3_is_good(&answer) && answer.http.content_length == (int64_t)length)
		return 0;
	return fail(upload->message, -ERR_STORE_AWAY, "the store lost the upload of '%s'",
	            upload->key);
}

static int upload_complete(struct upload *upload, size_t length)
{
	CLEANUP(buffer_release) struct buffer body = {.limit = HTTP_ERROR_BODY_MAX};
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	CLEANUP(free_pointer) char *query = NULL;
	append_text(&upload->parts, "</CompleteMultipartUpload>");
	int error = buffer_check(&upload->parts);
	if (error == 0 && asprintf(&query, "uploadId=%s", upload->id) < 0)
		error = -ERR_NO_MEMORY;
	if (error < 0)
		return error;
	struct s3_request request = {.kind = OBJECT_MULTIPART,
	                             .method = "POST",
	                             .key = upload->key,
	                             .query = query,
	                             .headers = {{"content-type", "application/xml"}},
	                             .header_count = 1,
	                             .body = upload->parts.data,
	                             .body_length = upload->parts.length,
	                             .into = &body};
	error = s3_perform(upload->s3, &request, &answer, upload->message);
	if (error < 0)
		return error;
	if (answer.http.status == 404) /* completed by a request whose answer was lost? */
		return check_completed(upload, length);
	if (!s3_is_good(&answer))
		return s3_explain(upload->s3, upload->key, &answer, upload->message);
	/* The status is sent before the work is done: the body says how it went. */
	if (s3_xml_completed(body.data, body.length) == 0)
		return check_completed(upload, length);
	struct s3_error said = {0};
	s3_xml_error(body.data, body.length, &said);
	return fail(upload->message, -ERR_STORE_AWAY, "the store did not complete '%s' %s%s%s",
	            upload->key, said.code, said.message[0] != '\0' ? ": " : "", said.message);
}

/* Parts of an upload that is never completed are paid for until somebody aborts it. */
static void upload_abort(struct upload *upload)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	CLEANUP(free_pointer) char *query = NULL;
	if (asprintf(&query, "uploadId=%s", upload->id) < 0)
		return;
	struct s3_request request = {
	        .kind = OBJECT_MULTIPART, .method = "DELETE", .key = upload->key, .query = query};
	s3_perform(upload->s3, &request, &answer, NULL);
}

static int write_in_parts(struct s3 *s3, const char *key, const uint8_t *bytes, size_t length,
                          struct message *message)
{
	CLEANUP(upload_release) struct upload upload = {.s3 = s3, .key = key, .message = message};
	append_text(&upload.parts, "<CompleteMultipartUpload "
	                           "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
	int error = upload_begin(&upload);
	if (error < 0)
		return error;
	unsigned number = 1;
	for (size_t at = 0; at < length && error == 0; at += S3_PART_BYTES, number++) {
		size_t left = length - at;
		error = upload_part(&upload, number, bytes + at,
		                    left < S3_PART_BYTES ? left : S3_PART_BYTES);
	}
	if (error == 0)
		error = upload_complete(&upload, length);
	if (error < 0)
		upload_abort(&upload);
	return error;
}

int s3_write(struct s3 *s3, const char *key, const void *bytes, size_t length,
             struct message *message)
{
	if (length > S3_SINGLE_PUT_BYTES_MAX)
		return write_in_parts(s3, key, bytes, length, message);
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct s3_request request = {.kind = OBJECT_PUT,
	                             .method = "PUT",
	                             .key = key,
	                             .body = length > 0 ? bytes : "",
	                             .body_length = length};
	int error = s3_perform(s3, &request, &answer, message);
	return error < 0 ? error : put_result(s3, key, &answer, message);
}

/* -- on a condition -- */

struct conditional {
	struct s3 *s3;
	const char *key;
	const struct etag *expected; /* NULL: that there is none */
	struct s3_request request;
	bool doubt; /* an attempt may have taken effect, or may do so yet */
	struct message *message;
};

static int not_known(const struct conditional *put)
{
	return fail(put->message, -ERR_STORE_AWAY,
	            "whether '%s' was written is not known: an answer of the store was lost",
	            put->key);
}

static int refused(const struct conditional *put, const struct s3_answer *answer)
{
	int status = answer->http.status;
	const char *key = put->key;
	if (put->doubt)
		return not_known(put);
	if (status == 404 && put->expected != NULL)
		return fail(put->message, -ERR_NOT_FOUND, "there is no object '%s'", key);
	if (status == 409 || status == 412)
		return put->expected != NULL
		               ? fail(put->message, -ERR_MOVED, "'%s' was replaced meanwhile", key)
		               : fail(put->message, -ERR_EXISTS, "'%s' exists already", key);
	return s3_explain(put->s3, key, answer, put->message);
}

/* 1: the object is still as the condition asks; 0: not, or it cannot be read. */
static int nothing_happened(const struct conditional *put)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct etag etag;
	/* Not HEAD: only a body tells a missing object from a missing bucket. */
	struct s3_request request = {.method = "GET", .key = put->key};
	if (s3_perform(put->s3, &request, &answer, NULL) < 0)
		return 0;
	if (put->expected == NULL || !s3_is_good(&answer))
		return put->expected == NULL && answer.http.status == 404;
	return s3_etag_take(answer.http.etag, &etag) == 0 &&
	       strcmp(etag.text, put->expected->text) == 0;
}

static int conditional_run(struct conditional *put, struct etag *ret_etag)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct s3_patience patience;
	bool renewed = false;
	s3_patience_begin(put->s3, &patience);
	for (;;) {
		int error = s3_send(put->s3, &put->request, patience.tries, &answer, put->message);
		if (error < 0)
			return error;
		enum s3_verdict verdict = s3_judge(&answer);
		s3_learn(put->s3, &put->request, &answer, verdict);
		if (s3_is_good(&answer)) {
			struct etag etag;
			if (s3_etag_take(answer.http.etag, &etag) < 0)
				return fail_etag(put->key, put->message);
			if (ret_etag != NULL)
				*ret_etag = etag;
			return 0;
		}
		if (verdict == S3_RENEW && !renewed) {
			renewed = true;
			s3_credentials_refused(put->s3->credentials, answer.access_key);
			continue;
		}
		if (verdict != S3_AGAIN && verdict != S3_SLOW)
			return refused(put, &answer);
		put->doubt |= answer.http.outcome != HTTP_NOT_SENT;
		if (put->doubt && !nothing_happened(put))
			return not_known(put);
		if (!s3_pause(put->s3, &patience, verdict, &answer))
			return s3_explain(put->s3, put->key, &answer, put->message);
	}
}

int s3_write_if(struct s3 *s3, const char *key, const void *bytes, size_t length,
                const struct etag *expected, struct etag *ret_etag, struct message *message)
{
	char match[ETAG_MAX + 3];
	const char *quote = s3->settings.unquoted ? "" : "\"";
	struct conditional put = {.s3 = s3,
	                          .key = key,
	                          .expected = expected,
	                          .request = {.kind = OBJECT_PUT_IF,
	                                      .method = "PUT",
	                                      .key = key,
	                                      .headers = {{"if-none-match", "*"}},
	                                      .header_count = 1,
	                                      .body = length > 0 ? bytes : "",
	                                      .body_length = length,
	                                      .once = true},
	                          .message = message};
	if (length > S3_SINGLE_PUT_BYTES_MAX)
		return fail(message, -ERR_TOO_LARGE,
		            "'%s': %zu bytes are too many for a conditional write", key, length);
	if (expected != NULL) {
		snprintf(match, sizeof(match), "%s%s%s", quote, expected->text, quote);
		put.request.headers[0] = (struct http_header){"if-match", match};
	}
	return conditional_run(&put, ret_etag);
}
