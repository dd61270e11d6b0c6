/* s3_sign — hides how a request becomes the one string that is signed. */
#include "store/s3_sign.h"

#include <ctype.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <strings.h>
#include <time.h>

#include "store/secret.h"

#define HEADERS_MAX 32
#define PARAMETERS_MAX 32
#define REQUEST_BYTES_ENOUGH (16u << 10) /* none grows, so that no copies are left */
#define ALGORITHM "AWS4-HMAC-SHA256"

static void append(struct buffer *buffer, const char *text)
{
	buffer_append(buffer, text, strlen(text));
}

void amz_date(int64_t wall_ms, char ret_date[AMZ_DATE_LENGTH + 1])
{
	time_t seconds = (time_t)(wall_ms / 1000);
	struct tm tm;
	gmtime_r(&seconds, &tm);
	strftime(ret_date, AMZ_DATE_LENGTH + 1, "%Y%m%dT%H%M%SZ", &tm);
}

void payload_hash(const void *bytes, size_t length, char ret_hex[SHA256_HEX + 1])
{
	struct id id;
	sha256_of(bytes, length, &id);
	id_to_hex(&id, ret_hex);
}

void percent_encode(struct buffer *buffer, const char *text, bool keep_slash)
{
	static const char digits[] = "0123456789ABCDEF";
	for (; *text != '\0'; text++) {
		unsigned char c = (unsigned char)*text;
		if ((c < 0x80 && isalnum(c)) || strchr("-._~", c) != NULL ||
		    (c == '/' && keep_slash)) {
			buffer_u8(buffer, c);
		} else {
			buffer_u8(buffer, '%');
			buffer_u8(buffer, (uint8_t)digits[c >> 4]);
			buffer_u8(buffer, (uint8_t)digits[c & 15]);
		}
	}
}

int md5_base64(const void *bytes, size_t length, char ret_text[MD5_BASE64 + 1])
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int size = 0;
	if (EVP_Digest(bytes, length, digest, &size, EVP_md5(), NULL) != 1 || size != 16)
		return -ERR_UNSUPPORTED; /* a FIPS build of OpenSSL has no MD5 */
	EVP_EncodeBlock((unsigned char *)ret_text, digest, (int)size);
	return 0;
}

/* -- canonical query: parameters in order of names, then values, each with its '=' -- */

struct parameter {
	const char *name, *value;
	size_t name_length, value_length;
};

static int compare_bytes(const char *a, size_t a_length, const char *b, size_t b_length)
{
	int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
	return order != 0 ? order : (a_length > b_length) - (a_length < b_length);
}

static int compare_parameters(const void *left, const void *right)
{
	const struct parameter *a = left, *b = right;
	int order = compare_bytes(a->name, a->name_length, b->name, b->name_length);
	return order != 0 ? order
	                  : compare_bytes(a->value, a->value_length, b->value, b->value_length);
}

static int canonical_query(struct buffer *buffer, const char *query)
{
	struct parameter parameters[PARAMETERS_MAX];
	size_t count = 0;
	for (const char *at = query; *at != '\0';) {
		size_t length = strcspn(at, "&");
		const char *equals = memchr(at, '=', length);
		if (count == PARAMETERS_MAX)
			return -ERR_TOO_LARGE;
		struct parameter *parameter = &parameters[count++];
		parameter->name = at;
		parameter->name_length = equals != NULL ? (size_t)(equals - at) : length;
		parameter->value = equals != NULL ? equals + 1 : "";
		parameter->value_length = equals != NULL ? length - parameter->name_length - 1 : 0;
		at += length + (at[length] == '&');
	}
	qsort(parameters, count, sizeof(parameters[0]), compare_parameters);
	for (size_t i = 0; i < count; i++) {
		if (i > 0)
			buffer_u8(buffer, '&');
		buffer_append(buffer, parameters[i].name, parameters[i].name_length);
		buffer_u8(buffer, '=');
		buffer_append(buffer, parameters[i].value, parameters[i].value_length);
	}
	return 0;
}

/* -- canonical headers -- */

/* Trimmed, inner runs of blanks as one. */
static void canonical_value(struct buffer *buffer, const char *value)
{
	bool blank = false, begun = false;
	for (; *value != '\0'; value++) {
		if (*value == ' ' || *value == '\t') {
			blank = true;
			continue;
		}
		if (blank && begun)
			buffer_u8(buffer, ' ');
		buffer_u8(buffer, (uint8_t)*value);
		blank = false;
		begun = true;
	}
}

static void lower_case(struct buffer *buffer, const char *name)
{
	for (; *name != '\0'; name++)
		buffer_u8(buffer, (uint8_t)tolower((unsigned char)*name));
}

/* Insertion keeps headers of one name in the order given, as the canonical form wants it. */
static void sort_headers(const struct http_header *headers, size_t count,
                         const struct http_header *sorted[])
{
	for (size_t i = 0; i < count; i++) {
		size_t at = i;
		for (; at > 0 && strcasecmp(sorted[at - 1]->name, headers[i].name) > 0; at--)
			sorted[at] = sorted[at - 1];
		sorted[at] = &headers[i];
	}
}

static int canonical_headers(struct buffer *lines, struct buffer *names,
                             const struct http_header *headers, size_t count)
{
	const struct http_header *sorted[HEADERS_MAX];
	if (count > HEADERS_MAX)
		return -ERR_TOO_LARGE;
	sort_headers(headers, count, sorted);
	for (size_t i = 0; i < count; i++) {
		bool same = i > 0 && strcasecmp(sorted[i]->name, sorted[i - 1]->name) == 0;
		if (same) {
			buffer_u8(lines, ',');
		} else {
			append(lines, i > 0 ? "\n" : "");
			lower_case(lines, sorted[i]->name);
			buffer_u8(lines, ':');
			append(names, i > 0 ? ";" : "");
			lower_case(names, sorted[i]->name);
		}
		canonical_value(lines, sorted[i]->value);
	}
	append(lines, "\n");
	return 0;
}

/* -- the signature -- */

static int sign_text(const struct s3_signing *signing, const struct buffer *text,
                     char ret_hex[SHA256_HEX + 1])
{
	CLEANUP(buffer_release_secret) struct buffer secret = {0};
	struct id key;
	append(&secret, "AWS4");
	append(&secret, signing->secret_key);
	if (buffer_check(&secret) < 0)
		return -ERR_NO_MEMORY;
	hmac_sha256(secret.data, secret.length, signing->amz_date, 8, &key);
	hmac_sha256(key.bytes, ID_BYTES, signing->region, strlen(signing->region), &key);
	hmac_sha256(key.bytes, ID_BYTES, signing->service, strlen(signing->service), &key);
	hmac_sha256(key.bytes, ID_BYTES, "aws4_request", 12, &key);
	hmac_sha256(key.bytes, ID_BYTES, text->data, text->length, &key);
	hex_encode(key.bytes, ID_BYTES, ret_hex);
	explicit_bzero(&key, sizeof(key));
	return 0;
}

int s3_sign(const struct s3_signing *signing, struct buffer *ret_authorization)
{
	CLEANUP(buffer_release_secret) struct buffer request = {0}; /* has the session token */
	CLEANUP(buffer_release) struct buffer names = {0};
	CLEANUP(buffer_release) struct buffer scope = {0};
	CLEANUP(buffer_release) struct buffer text = {0};
	char hash[SHA256_HEX + 1];

	(void)buffer_reserve(&request, REQUEST_BYTES_ENOUGH); /* without memory appending fails */
	append(&request, signing->method);
	append(&request, "\n");
	append(&request, signing->path);
	append(&request, "\n");
	int error = canonical_query(&request, signing->query);
	append(&request, "\n");
	if (error == 0)
		error = canonical_headers(&request, &names, signing->headers,
		                          signing->header_count);
	append(&request, "\n");
	buffer_append(&request, names.data, names.length);
	append(&request, "\n");
	append(&request, signing->payload_sha256);
	if (error == 0)
		error = buffer_check(&request);
	if (error < 0)
		return error;
	payload_hash(request.data, request.length, hash);

	buffer_append(&scope, signing->amz_date, 8);
	const char *const parts[] = {"/", signing->region, "/", signing->service, "/aws4_request"};
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		append(&scope, parts[i]);
	append(&text, ALGORITHM "\n");
	append(&text, signing->amz_date);
	append(&text, "\n");
	buffer_append(&text, scope.data, scope.length);
	append(&text, "\n");
	append(&text, hash);
	error = buffer_check(&text);
	if (error == 0)
		error = sign_text(signing, &text, hash);
	if (error < 0)
		return error;

	append(ret_authorization, ALGORITHM " Credential=");
	append(ret_authorization, signing->access_key);
	append(ret_authorization, "/");
	buffer_append(ret_authorization, scope.data, scope.length);
	append(ret_authorization, ", SignedHeaders=");
	buffer_append(ret_authorization, names.data, names.length);
	append(ret_authorization, ", Signature=");
	append(ret_authorization, hash);
	return buffer_check(ret_authorization);
}
