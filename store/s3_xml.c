/*
 * s3_xml — hides expat. A document is walked once; each leaf element is handed on as its path below
 * the root ("Contents/Key") and its text, and each closing of an inner element as its path alone.
 */
#include "store/s3_xml.h"

#include <expat.h>
#include <stdio.h>
#include <time.h>

#include "store/secret.h"

#define DEPTH_MAX 12
#define PATH_BYTES_MAX 512
#define TEXT_BYTES_MAX (32u << 10) /* of one element: session tokens are the longest */
#define ITEMS_MAX 10000            /* a page has 1,000 */

struct document;
typedef void element_fn(struct document *document, const char *path, const char *text);

struct document {
	const char *root;
	element_fn *element;
	void *context;
	int error;
	XML_Parser parser;
	int depth;
	bool right_root;
	char path[PATH_BYTES_MAX];
	size_t path_lengths[DEPTH_MAX]; /* of the path at each depth */
	struct buffer text;
};

static void stop(struct document *document, int error)
{
	if (document->error == 0)
		document->error = error;
	XML_StopParser(document->parser, XML_FALSE);
}

/* Names may carry a prefix ("ns:Key"), which says nothing here. */
static const char *local_name(const char *name)
{
	const char *colon = strrchr(name, ':');
	return colon != NULL ? colon + 1 : name;
}

static void element_begins(void *context, const char *qualified, const char **attributes)
{
	struct document *document = context;
	const char *name = local_name(qualified);
	if (document->depth == 0)
		document->right_root = strcmp(name, document->root) == 0;
	if (!document->right_root || document->depth == DEPTH_MAX) {
		stop(document, -ERR_CORRUPT);
		return;
	}
	buffer_clear(&document->text);
	if (document->depth > 0) {
		size_t length = document->path_lengths[document->depth - 1];
		int n = snprintf(document->path + length, sizeof(document->path) - length, "%s%s",
		                 length > 0 ? "/" : "", name);
		if (n < 0 || (size_t)n >= sizeof(document->path) - length) {
			stop(document, -ERR_CORRUPT);
			return;
		}
	}
	document->path_lengths[document->depth++] = strlen(document->path);
}

static void element_ends(void *context, const char *name)
{
	struct document *document = context;
	if (document->error != 0)
		return;
	document->depth--;
	buffer_u8(&document->text, 0);
	if (buffer_check(&document->text) < 0) {
		stop(document, -ERR_CORRUPT);
		return;
	}
	if (document->depth > 0) {
		document->element(document, document->path, (const char *)document->text.data);
		document->path[document->path_lengths[document->depth - 1]] = '\0';
	}
	buffer_clear(&document->text);
}

static void text_comes(void *context, const char *text, int length)
{
	struct document *document = context;
	if (document->error == 0)
		buffer_append(&document->text, text, (size_t)length);
}

static void doctype_begins(void *context, const char *name, const char *system_id,
                           const char *public_id, int has_subset)
{
	stop(context, -ERR_CORRUPT);
}

static int walk(const void *bytes, size_t length, const char *root, element_fn *element,
                void *context)
{
	struct document document = {.root = root,
	                            .element = element,
	                            .context = context,
	                            .text = {.limit = TEXT_BYTES_MAX}};
	/* Long work is answered with blanks first, to keep the connection; XML allows none there.
	 */
	while (length > 0 && strchr(" \t\r\n", *(const char *)bytes) != NULL &&
	       *(const char *)bytes != '\0') {
		bytes = (const char *)bytes + 1;
		length--;
	}
	if (length > INT32_MAX)
		return -ERR_CORRUPT;
	document.parser = XML_ParserCreate(NULL);
	if (document.parser == NULL)
		return -ERR_NO_MEMORY;
	XML_SetUserData(document.parser, &document);
	XML_SetElementHandler(document.parser, element_begins, element_ends);
	XML_SetCharacterDataHandler(document.parser, text_comes);
	XML_SetStartDoctypeDeclHandler(document.parser, doctype_begins);
	enum XML_Status status =
	        XML_Parse(document.parser, length > 0 ? bytes : "", (int)length, XML_TRUE);
	int error = document.error;
	if (error == 0 && status != XML_STATUS_OK)
		error = XML_GetErrorCode(document.parser) == XML_ERROR_NO_MEMORY ? -ERR_NO_MEMORY
		                                                                 : -ERR_CORRUPT;
	XML_ParserFree(document.parser);
	buffer_release_secret(&document.text); /* STS answers with keys */
	return error;
}

static void keep(char *ret_text, size_t size, const char *text)
{
	snprintf(ret_text, size, "%s", text);
}

/* -- errors -- */

static void error_element(struct document *document, const char *path, const char *text)
{
	struct s3_error *error = document->context;
	if (strcmp(path, "Code") == 0)
		keep(error->code, sizeof(error->code), text);
	else if (strcmp(path, "Message") == 0)
		keep(error->message, sizeof(error->message), text);
	else if (strcmp(path, "Region") == 0)
		keep(error->region, sizeof(error->region), text);
	else if (strcmp(path, "ServerTime") == 0)
		keep(error->server_time, sizeof(error->server_time), text);
}

/* STS wraps its error: ErrorResponse/Error/Code. */
static void wrapped_error_element(struct document *document, const char *path, const char *text)
{
	if (strncmp(path, "Error/", 6) == 0)
		error_element(document, path + 6, text);
}

/* They end up in messages for people. */
static void printable(char *text)
{
	for (; *text != '\0'; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = ' ';
}

int s3_xml_error(const void *bytes, size_t length, struct s3_error *ret_error)
{
	struct s3_error error = {0};
	int r = walk(bytes, length, "Error", error_element, &error);
	if (r == -ERR_CORRUPT) {
		memset(&error, 0, sizeof(error));
		r = walk(bytes, length, "ErrorResponse", wrapped_error_element, &error);
	}
	if (r == 0 && error.code[0] == '\0')
		r = -ERR_CORRUPT;
	if (r < 0)
		memset(&error, 0, sizeof(error));
	printable(error.code);
	printable(error.message);
	printable(error.region);
	printable(error.server_time);
	*ret_error = error;
	return r;
}

/* -- times and numbers -- */

int iso8601_parse(const char *text, int64_t *ret_ms)
{
	struct tm tm = {0};
	const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
	int64_t offset_s = 0;
	int hours, minutes;
	char sign;
	if (rest == NULL)
		return -ERR_CORRUPT;
	if (*rest == '.')
		rest += 1 + strspn(rest + 1, "0123456789");
	if (sscanf(rest, "%c%2d:%2d", &sign, &hours, &minutes) == 3 && (sign == '+' || sign == '-'))
		offset_s = (sign == '+' ? 1 : -1) * (hours * 3600 + minutes * 60);
	else if (strcmp(rest, "Z") != 0)
		return -ERR_CORRUPT;
	*ret_ms = ((int64_t)timegm(&tm) - offset_s) * 1000;
	return 0;
}

static int parse_size(const char *text, uint64_t *ret_size)
{
	size_t digits = strspn(text, "0123456789");
	if (digits == 0 || digits > 18 || text[digits] != '\0')
		return -ERR_CORRUPT;
	*ret_size = strtoull(text, NULL, 10);
	return 0;
}

/* -- listings -- */

static void listed_release(struct s3_listed *listed)
{
	free(listed->key);
	memset(listed, 0, sizeof(*listed));
}

void s3_page_release(struct s3_page *page)
{
	for (size_t i = 0; i < page->count; i++)
		listed_release(&page->items[i]);
	free(page->items);
	free(page->next_token);
	memset(page, 0, sizeof(*page));
}

struct page_walk {
	struct s3_page page;
	struct s3_listed listed; /* the one whose elements are coming */
	size_t capacity;
	bool sized;
	bool truncated;
	bool told; /* IsTruncated came */
};

/* encoding-type=url: as in a form, so '+' is a blank. */
static char *url_decode(const char *text)
{
	char *decoded = malloc(strlen(text) + 1), *to = decoded;
	for (; to != NULL && *text != '\0'; text++) {
		uint8_t byte;
		if (*text == '%' && text[1] != '\0' && text[2] != '\0') {
			char digits[2] = {text[1], text[2]};
			for (int i = 0; i < 2; i++)
				if (digits[i] >= 'A' && digits[i] <= 'F')
					digits[i] = (char)(digits[i] - 'A' + 'a');
			if (hex_decode(digits, 2, &byte) < 0 || byte == 0) {
				free(decoded);
				return NULL;
			}
			*to++ = (char)byte;
			text += 2;
		} else {
			*to++ = *text == '+' ? ' ' : *text;
		}
	}
	if (to != NULL)
		*to = '\0';
	return decoded;
}

static void copy_etag(char *ret_etag, size_t size, const char *text)
{
	size_t length = strlen(text);
	if (length >= 2 && text[0] == '"' && text[length - 1] == '"') {
		text++;
		length -= 2;
	}
	if (length >= size)
		length = 0;
	memcpy(ret_etag, text, length);
	ret_etag[length] = '\0';
}

static int add_listed(struct page_walk *page_walk)
{
	struct s3_page *page = &page_walk->page;
	if (page_walk->listed.key == NULL || !page_walk->sized || page->count == ITEMS_MAX)
		return -ERR_CORRUPT;
	if (page->count == page_walk->capacity) {
		size_t capacity = page_walk->capacity > 0 ? page_walk->capacity * 2 : 64;
		struct s3_listed *items = realloc(page->items, capacity * sizeof(*items));
		if (items == NULL)
			return -ERR_NO_MEMORY;
		page->items = items;
		page_walk->capacity = capacity;
	}
	page->items[page->count++] = page_walk->listed;
	memset(&page_walk->listed, 0, sizeof(page_walk->listed));
	page_walk->sized = false;
	return 0;
}

static int contents_element(struct page_walk *page_walk, const char *name, const char *text)
{
	struct s3_listed *listed = &page_walk->listed;
	if (strcmp(name, "Key") == 0) {
		free(listed->key);
		listed->key = url_decode(text);
		return listed->key != NULL ? 0 : -ERR_CORRUPT;
	}
	if (strcmp(name, "Size") == 0) {
		page_walk->sized = true;
		return parse_size(text, &listed->size);
	}
	if (strcmp(name, "LastModified") == 0)
		return iso8601_parse(text, &listed->modified_ms);
	if (strcmp(name, "ETag") == 0)
		copy_etag(listed->etag, sizeof(listed->etag), text);
	return 0;
}

static void page_element(struct document *document, const char *path, const char *text)
{
	struct page_walk *page_walk = document->context;
	int error = 0;
	if (strcmp(path, "Contents") == 0) {
		error = add_listed(page_walk);
	} else if (strncmp(path, "Contents/", 9) == 0) {
		error = contents_element(page_walk, path + 9, text);
	} else if (strcmp(path, "IsTruncated") == 0) {
		page_walk->told = true;
		page_walk->truncated = strcmp(text, "true") == 0;
	} else if (strcmp(path, "NextContinuationToken") == 0) {
		free(page_walk->page.next_token);
		page_walk->page.next_token = strdup(text);
		error = page_walk->page.next_token != NULL ? 0 : -ERR_NO_MEMORY;
	}
	if (error < 0)
		stop(document, error);
}

int s3_xml_page(const void *bytes, size_t length, struct s3_page *ret_page)
{
	struct page_walk page_walk = {0};
	int error = walk(bytes, length, "ListBucketResult", page_element, &page_walk);
	struct s3_page *page = &page_walk.page;
	listed_release(&page_walk.listed);
	/* A page that says there is more and not how to get it would silently end the listing. */
	if (error == 0 &&
	    (!page_walk.told ||
	     (page_walk.truncated && (page->next_token == NULL || page->next_token[0] == '\0'))))
		error = -ERR_CORRUPT;
	if (error < 0) {
		s3_page_release(page);
		return error;
	}
	if (!page_walk.truncated) {
		free(page->next_token);
		page->next_token = NULL;
	}
	*ret_page = *page;
	return 0;
}

/* -- multipart uploads and deletions -- */

static void upload_element(struct document *document, const char *path, const char *text)
{
	char **upload_id = document->context;
	if (strcmp(path, "UploadId") != 0 || text[0] == '\0')
		return;
	free(*upload_id);
	*upload_id = strdup(text);
	if (*upload_id == NULL)
		stop(document, -ERR_NO_MEMORY);
}

int s3_xml_upload_id(const void *bytes, size_t length, char **ret_upload_id)
{
	CLEANUP(free_pointer) char *upload_id = NULL;
	int error =
	        walk(bytes, length, "InitiateMultipartUploadResult", upload_element, &upload_id);
	if (error == 0 && upload_id == NULL)
		error = -ERR_CORRUPT;
	if (error == 0)
		*ret_upload_id = steal(&upload_id);
	return error;
}

static void ignore_element(struct document *document, const char *path, const char *text)
{
}

/* Some engines leave its ETag empty: that it is this document must do. */
int s3_xml_completed(const void *bytes, size_t length)
{
	return walk(bytes, length, "CompleteMultipartUploadResult", ignore_element, NULL);
}

static void deleted_element(struct document *document, const char *path, const char *text)
{
	struct s3_error *error = document->context;
	if (strncmp(path, "Error/", 6) == 0 &&
	    (error->code[0] == '\0' || strcmp(path + 6, "Message") == 0))
		error_element(document, path + 6, text);
}

int s3_xml_deleted(const void *bytes, size_t length, struct s3_error *ret_error)
{
	struct s3_error error = {0};
	int r = walk(bytes, length, "DeleteResult", deleted_element, &error);
	if (r < 0 || error.code[0] == '\0')
		return r;
	printable(error.code);
	printable(error.message);
	*ret_error = error;
	return -ERR_NOT_PERMITTED;
}

/* -- STS -- */

#define STS_CREDENTIALS "AssumeRoleWithWebIdentityResult/Credentials/"

static void sts_element(struct document *document, const char *path, const char *text)
{
	struct sts_credentials *credentials = document->context;
	if (strncmp(path, STS_CREDENTIALS, sizeof(STS_CREDENTIALS) - 1) != 0)
		return;
	const char *name = path + sizeof(STS_CREDENTIALS) - 1;
	int error = 0;
	if (strcmp(name, "AccessKeyId") == 0) {
		keep(credentials->access_key, sizeof(credentials->access_key), text);
	} else if (strcmp(name, "SecretAccessKey") == 0) {
		keep(credentials->secret_key, sizeof(credentials->secret_key), text);
	} else if (strcmp(name, "SessionToken") == 0) {
		free(credentials->session_token);
		credentials->session_token = strdup(text);
		error = credentials->session_token != NULL ? 0 : -ERR_NO_MEMORY;
	} else if (strcmp(name, "Expiration") == 0) {
		error = iso8601_parse(text, &credentials->expires_ms);
	}
	if (error < 0)
		stop(document, error);
}

void sts_credentials_release(struct sts_credentials *credentials)
{
	if (credentials->session_token != NULL)
		explicit_bzero(credentials->session_token, strlen(credentials->session_token));
	free(credentials->session_token);
	explicit_bzero(credentials, sizeof(*credentials));
}

int s3_xml_sts(const void *bytes, size_t length, struct sts_credentials *ret_credentials)
{
	struct sts_credentials credentials = {0};
	int error =
	        walk(bytes, length, "AssumeRoleWithWebIdentityResponse", sts_element, &credentials);
	if (error == 0 && (credentials.access_key[0] == '\0' || credentials.secret_key[0] == '\0' ||
	                   credentials.session_token == NULL || credentials.expires_ms == 0))
		error = -ERR_CORRUPT;
	if (error < 0) {
		sts_credentials_release(&credentials);
		return error;
	}
	*ret_credentials = credentials;
	explicit_bzero(&credentials, sizeof(credentials));
	return 0;
}
