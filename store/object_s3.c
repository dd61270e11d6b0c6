/*
 * object_s3 — the object-store contract on S3: hides which requests a call becomes, and checks that
 * an answer is the one to the question.
 *
 * An object `key` is the S3 object `<prefix>/<key>`. Other objects in the bucket are not looked at.
 * Opening sends nothing: the first call shows whether the store is there.
 */
#include <stdio.h>

#include "store/s3.h"
#include "store/s3_sign.h"

#define LIST_BYTES_MAX ((size_t)16 << 20) /* a page is well below 2 MiB */
#define REMOVE_BATCH_MAX 1000             /* S3's limit */

static struct s3 *s3_of(struct object_store *store)
{
	return (struct s3 *)store;
}

static int not_found(struct s3 *s3, const char *key, struct message *message)
{
	return fail(message, -ERR_NOT_FOUND, "s3://%s: no object '%s'", s3->settings.bucket, key);
}

/* -- reading -- */

static bool is_to_end(const struct s3_range *range)
{
	return range->length == UINT64_MAX;
}

static int wrong_bytes(const char *key, const char *why, struct message *message)
{
	return fail(message, -ERR_STORE_AWAY, "the store's answer for '%s' cannot be used: %s", key,
	            why);
}

/* Of a whole object, as a server may answer a range request, keep the range. */
static void cut(struct buffer *bytes, size_t before, const struct s3_range *range)
{
	uint64_t size = bytes->length - before;
	uint64_t left = range->offset < size ? size - range->offset : 0;
	size_t take = (size_t)(range->length < left ? range->length : left);
	if (take > 0)
		memmove(bytes->data + before, bytes->data + before + range->offset, take);
	bytes->length = before + take;
}

/* The last check before bytes count as read. */
static int accept(const char *key, const struct s3_range *asked, struct s3_answer *answer,
                  struct buffer *bytes, size_t before, struct message *message)
{
	const struct http_response *http = &answer->http;
	/* Of a read that was resumed this answer is only the end. */
	size_t start = before + (size_t)answer->resumed;
	struct s3_range range = {asked->offset + answer->resumed,
	                         asked->length - (is_to_end(asked) ? 0 : answer->resumed)};
	uint64_t got = bytes->length - start;
	int error = 0;
	if (http->content_length < 0 || (uint64_t)http->content_length != got)
		error = wrong_bytes(key, "its length is not the one it names", message);
	else if (http->status == 206 && !s3_range_matches(&range, http->content_range, got))
		error = wrong_bytes(key, "it is another range than the one asked for", message);
	else if (http->status != 200 && http->status != 206)
		error = wrong_bytes(key, "an unexpected status", message);
	else if (http->status == 200 && (range.offset > 0 || !is_to_end(&range)))
		cut(bytes, start, &range);
	if (error < 0)
		bytes->length = before;
	return error;
}

/* The object is there, and its etag: when no byte of it is wanted. */
static int look(struct s3 *s3, const char *key, struct etag *ret_etag, struct message *message)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	/* Not HEAD: an error needs a body to be told from others. */
	struct s3_request request = {.method = "GET",
	                             .key = key,
	                             .headers = {{"range", "bytes=0-0"}},
	                             .header_count = 1};
	int error = s3_perform(s3, &request, &answer, message);
	if (error < 0)
		return error;
	if (answer.http.status == 404)
		return not_found(s3, key, message);
	if (answer.http.status == 416) { /* empty */
		request.method = "HEAD";
		request.header_count = 0;
		error = s3_perform(s3, &request, &answer, message);
		if (error < 0)
			return error;
	}
	if (!s3_is_good(&answer))
		return s3_explain(s3, key, &answer, message);
	if (ret_etag != NULL && s3_etag_take(answer.http.etag, ret_etag) < 0)
		return wrong_bytes(key, "it has no ETag", message);
	return 0;
}

/* `known` not NULL (nor ret_etag then): 0 when that is still its etag, 1 when not, and then it was
 * read. */
static int read_object(struct s3 *s3, const char *key, const struct s3_range *range,
                       const struct etag *known, struct buffer *ret_bytes, struct etag *ret_etag,
                       struct message *message)
{
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	char match[ETAG_MAX + 3];
	size_t before = ret_bytes->length;
	struct etag etag;
	struct s3_request request = {
	        .method = "GET", .key = key, .into = ret_bytes, .range = range};
	if (known != NULL) {
		request.kind = OBJECT_GET_IF_CHANGED;
		snprintf(match, sizeof(match), "\"%s\"", known->text);
		request.headers[request.header_count++] =
		        (struct http_header){"if-none-match", match};
	}
	int error = s3_perform(s3, &request, &answer, message);
	if (error < 0)
		return error;
	if (answer.http.status == 304 && known != NULL)
		return 0;
	if (answer.http.status == 404)
		return not_found(s3, key, message);
	if (answer.http.status == 416)
		return ret_etag != NULL ? look(s3, key, ret_etag, message) : 0;
	if (!s3_is_good(&answer))
		return s3_explain(s3, key, &answer, message);
	error = accept(key, range, &answer, ret_bytes, before, message);
	if (error == 0 && ret_etag != NULL && s3_etag_take(answer.http.etag, &etag) < 0) {
		ret_bytes->length = before;
		error = wrong_bytes(key, "it has no ETag", message);
	}
	if (error < 0)
		return error;
	if (known != NULL && strcmp(etag.text, known->text) == 0) {
		ret_bytes->length = before; /* a store that does not know the condition */
		return 0;
	}
	if (ret_etag != NULL)
		*ret_etag = etag;
	return known != NULL ? 1 : 0;
}

static int s3_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                  struct buffer *ret_bytes, struct etag *ret_etag, struct message *message)
{
	struct s3_range range = {offset, length};
	if (length == 0 || offset >= S3_RANGE_END_MAX)
		return look(s3_of(store), key, ret_etag, message);
	return read_object(s3_of(store), key, &range, NULL, ret_bytes, ret_etag, message);
}

static int s3_get_if_changed(struct object_store *store, const char *key, const struct etag *known,
                             struct buffer *ret_bytes, struct etag *ret_etag,
                             struct message *message)
{
	struct s3_range whole = {0, UINT64_MAX};
	return read_object(s3_of(store), key, &whole, known, ret_bytes, ret_etag, message);
}

/* -- writing -- */

static int s3_put(struct object_store *store, const char *key, const void *bytes, size_t length,
                  struct message *message)
{
	return s3_write(s3_of(store), key, bytes, length, message);
}

static int s3_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                            size_t length, struct etag *ret_etag, struct message *message)
{
	return s3_write_if(s3_of(store), key, bytes, length, NULL, ret_etag, message);
}

static int s3_put_if_match(struct object_store *store, const char *key, const void *bytes,
                           size_t length, const struct etag *expected, struct etag *ret_etag,
                           struct message *message)
{
	return s3_write_if(s3_of(store), key, bytes, length, expected, ret_etag, message);
}

static int s3_remove(struct object_store *store, const char *key, struct message *message)
{
	struct s3 *s3 = s3_of(store);
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct s3_request request = {.kind = OBJECT_REMOVE, .method = "DELETE", .key = key};
	int error = s3_perform(s3, &request, &answer, message);
	if (error < 0)
		return error;
	return s3_is_good(&answer) || answer.http.status == 404
	               ? 0
	               : s3_explain(s3, key, &answer, message);
}

static int remove_batch(struct s3 *s3, const char *const *keys, size_t count,
                        struct message *message)
{
	CLEANUP(buffer_release) struct buffer document = {0};
	CLEANUP(buffer_release) struct buffer body = {.limit = LIST_BYTES_MAX};
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	struct s3_error said = {0};
	char md5[MD5_BASE64 + 1];
	const char *prefix = s3->settings.prefix;
	static const char head[] = "<Delete><Quiet>true</Quiet>", tail[] = "</Delete>";
	buffer_append(&document, head, sizeof(head) - 1);
	for (size_t i = 0; i < count; i++) { /* keys hold nothing that XML would mistake */
		const char *const parts[] = {"<Object><Key>", prefix, prefix[0] ? "/" : "", keys[i],
		                             "</Key></Object>"};
		for (size_t j = 0; j < ARRAY_SIZE(parts); j++)
			buffer_append(&document, parts[j], strlen(parts[j]));
	}
	buffer_append(&document, tail, sizeof(tail) - 1);
	int error = buffer_check(&document);
	if (error == 0)
		error = md5_base64(document.data, document.length, md5);
	if (error < 0)
		return fail(message, error, "cannot compose a removal: %s", error_text(error));
	struct s3_request request = {
	        .kind = OBJECT_REMOVE,
	        .method = "POST",
	        .query = "delete=",
	        .headers = {{"content-md5", md5}, {"content-type", "application/xml"}},
	        .header_count = 2,
	        .body = document.data,
	        .body_length = document.length,
	        .into = &body};
	error = s3_perform(s3, &request, &answer, message);
	if (error < 0)
		return error;
	if (!s3_is_good(&answer))
		return s3_explain(s3, "removal", &answer, message);
	error = s3_xml_deleted(body.data, body.length, &said);
	if (error < 0)
		return fail(message, -ERR_STORE_AWAY, "s3://%s: not everything was removed: %s %s",
		            s3->settings.bucket, said.code, said.message);
	return 0;
}

static int s3_remove_many(struct object_store *store, const char *const *keys, size_t count,
                          struct message *message)
{
	int error = 0;
	for (size_t at = 0; at < count && error == 0; at += REMOVE_BATCH_MAX) {
		size_t left = count - at;
		error = remove_batch(s3_of(store), keys + at,
		                     left < REMOVE_BATCH_MAX ? left : REMOVE_BATCH_MAX, message);
	}
	return error;
}

/* -- listing -- */

struct listing {
	struct s3 *s3;
	const char *prefix;
	object_list_fn *callback;
	void *context;
	struct message *message;
	char last[OBJECT_KEY_MAX + 1]; /* told so far */
};

static int fetch_page(struct listing *listing, const char *token, struct s3_page *ret_page)
{
	CLEANUP(buffer_release) struct buffer query = {0};
	CLEANUP(buffer_release) struct buffer body = {.limit = LIST_BYTES_MAX};
	CLEANUP(s3_answer_release) struct s3_answer answer = {0};
	static const char fixed[] = "list-type=2&encoding-type=url&max-keys=1000&prefix=";
	static const char more[] = "&continuation-token=";
	const char *own = listing->s3->settings.prefix;
	buffer_append(&query, fixed, sizeof(fixed) - 1);
	percent_encode(&query, own, false);
	percent_encode(&query, own[0] != '\0' ? "/" : "", false);
	percent_encode(&query, listing->prefix, false);
	if (token != NULL) {
		buffer_append(&query, more, sizeof(more) - 1);
		percent_encode(&query, token, false);
	}
	buffer_u8(&query, 0);
	int error = buffer_check(&query);
	if (error < 0)
		return error;
	struct s3_request request = {.kind = OBJECT_LIST,
	                             .method = "GET",
	                             .query = (const char *)query.data,
	                             .into = &body};
	error = s3_perform(listing->s3, &request, &answer, listing->message);
	if (error < 0)
		return error;
	if (!s3_is_good(&answer))
		return s3_explain(listing->s3, "listing", &answer, listing->message);
	error = s3_xml_page(body.data, body.length, ret_page);
	if (error == -ERR_CORRUPT)
		return fail(listing->message, -ERR_STORE_AWAY,
		            "the listing of s3://%s that the store sent cannot be read",
		            listing->s3->settings.bucket);
	return error;
}

static int tell_page(struct listing *listing, const struct s3_page *page)
{
	size_t own = strlen(listing->s3->settings.prefix);
	size_t skip = own > 0 ? own + 1 : 0;
	for (size_t i = 0; i < page->count; i++) {
		const struct s3_listed *listed = &page->items[i];
		const char *key = listed->key;
		if (strlen(key) <= skip || strncmp(key, listing->s3->settings.prefix, own) != 0)
			continue;
		key += skip;
		if (!object_key_valid(key) ||
		    strncmp(key, listing->prefix, strlen(listing->prefix)) != 0)
			continue; /* somebody else's */
		if (strcmp(key, listing->last) <= 0)
			return fail(listing->message, -ERR_UNSUPPORTED,
			            "s3://%s is not listed in the order of keys ('%s' after '%s'); "
			            "a lake cannot use such a store",
			            listing->s3->settings.bucket, key, listing->last);
		snprintf(listing->last, sizeof(listing->last), "%s", key);
		struct object_info info = {
		        .key = key, .size = listed->size, .modified_ms = listed->modified_ms};
		snprintf(info.etag.text, sizeof(info.etag.text), "%s", listed->etag);
		int stop = listing->callback(listing->context, &info);
		if (stop != 0)
			return stop;
	}
	return 0;
}

static int s3_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                   void *context, struct message *message)
{
	struct listing listing = {.s3 = s3_of(store),
	                          .prefix = prefix,
	                          .callback = callback,
	                          .context = context,
	                          .message = message};
	CLEANUP(free_pointer) char *token = NULL;
	for (;;) {
		CLEANUP(s3_page_release) struct s3_page page = {0};
		int r = fetch_page(&listing, token, &page);
		if (r == 0)
			r = tell_page(&listing, &page);
		if (r != 0 || page.next_token == NULL)
			return r;
		if (token != NULL && strcmp(token, page.next_token) == 0)
			return fail(message, -ERR_STORE_AWAY,
			            "the store's listing of s3://%s goes in circles",
			            listing.s3->settings.bucket);
		free(token);
		token = steal(&page.next_token);
	}
}

/* -- opening -- */

static int s3_probe_store(struct object_store *store, char **ret_url, struct message *message)
{
	struct s3 *s3 = s3_of(store);
	int error = s3_probe(s3, message);
	if (error == 0)
		error = s3_settings_url(&s3->settings, ret_url);
	return error;
}

static void s3_free(struct object_store *store)
{
	struct s3 *s3 = s3_of(store);
	s3_credentials_free(s3->credentials);
	http_free(s3->http);
	s3_settings_release(&s3->settings);
	free(s3->url_base);
	free(s3->host);
	free(s3->path_base);
	pthread_mutex_destroy(&s3->lock);
	free(s3);
}

static const struct object_ops s3_ops = {.get = s3_get,
                                         .put = s3_put,
                                         .put_if_absent = s3_put_if_absent,
                                         .put_if_match = s3_put_if_match,
                                         .list = s3_list,
                                         .remove = s3_remove,
                                         .free = s3_free,
                                         .get_if_changed = s3_get_if_changed,
                                         .remove_many = s3_remove_many,
                                         .probe = s3_probe_store,
                                         .counts = true,
                                         .distant = true};

/* Host and path as they are sent; both are signed, so they must be exactly what curl sends. */
static int compose_base(struct s3 *s3)
{
	const struct s3_settings *settings = &s3->settings;
	const char *host = strstr(settings->endpoint, "://") + 3;
	const char *path = host + strcspn(host, "/");
	int scheme = (int)(host - settings->endpoint), host_length = (int)(path - host);
	bool tls = scheme == 8;
	const char *bucket = settings->path_style ? "" : settings->bucket;
	const char *dot = settings->path_style ? "" : ".";
	if (text_format(&s3->url_base, "%.*s%s%s%.*s", scheme, settings->endpoint, bucket, dot,
	                host_length, host) < 0 ||
	    text_format(&s3->path_base, "%s%s%s", path, settings->path_style ? "/" : "",
	                settings->path_style ? settings->bucket : "") < 0)
		return -ERR_NO_MEMORY;
	/* A default port is not part of what curl, and everybody, sends as Host. */
	const char *port = tls ? ":443" : ":80";
	int port_length = (int)strlen(port);
	if (host_length > port_length &&
	    strncmp(path - port_length, port, (size_t)port_length) == 0)
		host_length -= port_length;
	return text_format(&s3->host, "%s%s%.*s", bucket, dot, host_length, host) < 0
	               ? -ERR_NO_MEMORY
	               : 0;
}

int object_s3_open(const char *url, struct object_store **ret_store, struct message *message)
{
	struct s3 *s3 = calloc(1, sizeof(*s3));
	if (s3 == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	s3->base.ops = &s3_ops;
	pthread_mutex_init(&s3->lock, NULL);
	int error = s3_settings_parse(url, &s3->settings, message);
	if (error == 0)
		error = compose_base(s3);
	if (error == 0)
		error = http_new(
		        &(struct http_options){.ca_file = s3->settings.ca_file,
		                               .connections_max = s3->settings.connections_max},
		        &s3->http, message);
	if (error == 0)
		error = s3_credentials_new(
		        &(struct s3_credentials_options){.profile = s3->settings.profile,
		                                         .region = s3->settings.region,
		                                         .http = s3->http},
		        &s3->credentials);
	if (error < 0) {
		s3_free(&s3->base);
		return error == -ERR_NO_MEMORY ? fail(message, error, "out of memory") : error;
	}
	*ret_store = &s3->base;
	return 0;
}
