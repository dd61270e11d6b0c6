/*
 * s3_parts — hides multipart uploads: several parts are sent beside each other, each from where it
 * lies, so that no bytes are held twice.
 *
 * An upload that is not completed is aborted when the last part that was under way has ended.
 */
#include <stdio.h>

#include "store/s3.h"
#include "store/s3_sign.h"
#include "store/thread.h"

#define PARTS_AT_ONCE 4

struct upload {
	struct s3 *s3;
	const char *key;
	char *id; /* percent-encoded */
	const uint8_t *bytes;
	size_t length;
	unsigned count;
	struct etag *etags; /* of the parts; each is written by the thread that sent it */
	struct message *message;
	pthread_mutex_t lock; /* guards the rest; a leaf */
	unsigned next;        /* part to be sent */
	int error;            /* the first one; then nothing more is sent */
};

static void upload_release(struct upload *upload)
{
	free(upload->id);
	free(upload->etags);
	pthread_mutex_destroy(&upload->lock);
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

static int send_part(struct upload *upload, unsigned index, struct message *message)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	CLEANUP(free_pointer) char *query = NULL;
	size_t at = (size_t)index * S3_PART_BYTES, left = upload->length - at;
	if (asprintf(&query, "partNumber=%u&uploadId=%s", index + 1, upload->id) < 0)
		return -ERR_NO_MEMORY;
	struct s3_request request = {.kind = OBJECT_MULTIPART,
	                             .method = "PUT",
	                             .key = upload->key,
	                             .query = query,
	                             .body = upload->bytes + at,
	                             .body_length = left < S3_PART_BYTES ? left : S3_PART_BYTES};
	int error = s3_perform(upload->s3, &request, &answer, message);
	if (error == 0)
		error = s3_put_result(upload->s3, upload->key, &answer, message);
	return error < 0 ? error : s3_etag_take(answer.http.etag, &upload->etags[index]);
}

static bool take_part(struct upload *upload, unsigned *ret_index)
{
	pthread_mutex_lock(&upload->lock);
	bool taken = upload->error == 0 && upload->next < upload->count;
	if (taken)
		*ret_index = upload->next++;
	pthread_mutex_unlock(&upload->lock);
	return taken;
}

static void *send_parts(void *argument)
{
	struct upload *upload = argument;
	unsigned index;
	while (take_part(upload, &index)) {
		struct message message = {{0}};
		int error = send_part(upload, index, &message);
		pthread_mutex_lock(&upload->lock);
		if (error < 0 && upload->error == 0) {
			upload->error = error;
			if (upload->message != NULL)
				*upload->message = message;
		}
		pthread_mutex_unlock(&upload->lock);
	}
	return NULL;
}

/* Without threads the caller sends all of them. */
static int send_all(struct upload *upload)
{
	unsigned helpers = upload->count > 0 ? upload->count - 1 : 0;
	run_together(helpers < PARTS_AT_ONCE ? helpers : PARTS_AT_ONCE - 1, send_parts, upload);
	return upload->error;
}

static void append_text(struct buffer *buffer, const char *text)
{
	buffer_append(buffer, text, strlen(text));
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

/* The document that puts the parts together, in their order. */
static int compose(const struct upload *upload, struct buffer *ret_document)
{
	char text[64];
	append_text(ret_document, "<CompleteMultipartUpload "
	                          "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
	for (unsigned i = 0; i < upload->count; i++) {
		snprintf(text, sizeof(text), "<Part><PartNumber>%u</PartNumber><ETag>\"", i + 1);
		append_text(ret_document, text);
		append_xml(ret_document, upload->etags[i].text);
		append_text(ret_document, "\"</ETag></Part>");
	}
	append_text(ret_document, "</CompleteMultipartUpload>");
	return buffer_check(ret_document);
}

/* Is the object there in its full length? */
static int check_completed(struct upload *upload)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct s3_request request = {
	        .kind = OBJECT_MULTIPART, .method = "HEAD", .key = upload->key};
	int error = s3_perform(upload->s3, &request, &answer, upload->message);
	if (error < 0)
		return error;
	if (s3_is_good(&answer) && answer.http.content_length == (int64_t)upload->length)
		return 0;
	return fail(upload->message, -ERR_STORE_AWAY, "the store lost the upload of '%s'",
	            upload->key);
}

static int upload_complete(struct upload *upload)
{
	CLEANUP(buffer_release) struct buffer document = {0};
	CLEANUP(buffer_release) struct buffer body = {.limit = HTTP_ERROR_BODY_MAX};
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	CLEANUP(free_pointer) char *query = NULL;
	int error = compose(upload, &document);
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
	                             .body = document.data,
	                             .body_length = document.length,
	                             .into = &body};
	error = s3_perform(upload->s3, &request, &answer, upload->message);
	if (error < 0)
		return error;
	if (answer.http.status == 404) /* completed by a request whose answer was lost? */
		return check_completed(upload);
	if (!s3_is_good(&answer))
		return s3_explain(upload->s3, upload->key, &answer, upload->message);
	/* The status is sent before the work is done: the body says how it went. */
	if (s3_xml_completed(body.data, body.length) == 0)
		return check_completed(upload);
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

int s3_write_parts(struct s3 *s3, const char *key, const void *bytes, size_t length,
                   struct message *message)
{
	CLEANUP(upload_release)
	struct upload upload = {.s3 = s3,
	                        .key = key,
	                        .bytes = bytes,
	                        .length = length,
	                        .count = (unsigned)((length + S3_PART_BYTES - 1) / S3_PART_BYTES),
	                        .message = message};
	pthread_mutex_init(&upload.lock, NULL);
	upload.etags = calloc(upload.count, sizeof(*upload.etags));
	if (upload.etags == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	int error = upload_begin(&upload);
	if (error < 0)
		return error;
	error = send_all(&upload);
	if (error == 0)
		error = upload_complete(&upload);
	if (error < 0)
		upload_abort(&upload);
	return error;
}
