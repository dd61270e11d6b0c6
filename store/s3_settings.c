/*
 * s3_settings — hides the grammar of s3:// URLs and where what they leave out comes from:
 * s3://bucket/prefix?endpoint=URL&region=NAME&ca-file=PATH&profile=NAME&path-style=yes|no
 *                   &if-match=quoted|unquoted&timeout=SECONDS&connections=N
 */
#include <ctype.h>
#include <stdio.h>

#include "store/s3.h"
#include "store/s3_ini.h"
#include "store/s3_sign.h"

#define SCHEME "s3://"
#define TIMEOUT_S_MAX 86400
#define CONNECTIONS_MAX 1024

void s3_settings_release(struct s3_settings *settings)
{
	free(settings->bucket);
	free(settings->prefix);
	free(settings->endpoint);
	free(settings->region);
	free(settings->ca_file);
	free(settings->profile);
	memset(settings, 0, sizeof(*settings));
}

/* -- the URL's parts -- */

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* NULL: no memory, or a malformed escape. */
static char *percent_decode(const char *text, size_t length)
{
	char *decoded = calloc(1, length + 1), *to = decoded;
	for (size_t i = 0; to != NULL && i < length; i++) {
		if (text[i] != '%') {
			*to++ = text[i];
			continue;
		}
		bool whole = length - i > 2;
		int high = whole ? hex_value(text[i + 1]) : -1;
		int low = whole ? hex_value(text[i + 2]) : -1;
		if (high < 0 || low < 0 || high + low == 0) {
			free(decoded);
			return NULL;
		}
		*to++ = (char)(high * 16 + low);
		i += 2;
	}
	return decoded;
}

static int parse_number(const char *text, unsigned max, unsigned *ret_number)
{
	size_t digits = strspn(text, "0123456789");
	if (digits == 0 || digits > 6 || text[digits] != '\0')
		return -ERR_INVALID;
	unsigned long number = strtoul(text, NULL, 10);
	if (number == 0 || number > max)
		return -ERR_INVALID;
	*ret_number = (unsigned)number;
	return 0;
}

static int set_parameter(struct s3_settings *settings, const char *name, char **value)
{
	static const char *const words[][2] = {{"yes", "no"}, {"unquoted", "quoted"}};
	char **text = strcmp(name, "endpoint") == 0  ? &settings->endpoint
	              : strcmp(name, "region") == 0  ? &settings->region
	              : strcmp(name, "ca-file") == 0 ? &settings->ca_file
	              : strcmp(name, "profile") == 0 ? &settings->profile
	                                             : NULL;
	if (text != NULL) {
		if (*text != NULL || (*value)[0] == '\0')
			return -ERR_INVALID;
		*text = steal(value);
		return 0;
	}
	int word = strcmp(name, "path-style") == 0 ? 0 : strcmp(name, "if-match") == 0 ? 1 : -1;
	if (word >= 0) {
		bool first = strcmp(*value, words[word][0]) == 0;
		if (!first && strcmp(*value, words[word][1]) != 0)
			return -ERR_INVALID;
		if (word == 1)
			settings->unquoted = first;
		else
			settings->path_style = first;
		settings->path_style_given |= word == 0;
		return 0;
	}
	unsigned number = 0;
	if (strcmp(name, "timeout") == 0) {
		int error = parse_number(*value, TIMEOUT_S_MAX, &number);
		settings->timeout_ms = (int64_t)number * 1000;
		return error;
	}
	if (strcmp(name, "connections") == 0)
		return parse_number(*value, CONNECTIONS_MAX, &settings->connections_max);
	return -ERR_UNSUPPORTED;
}

static int parse_query(const char *query, struct s3_settings *settings, struct message *message)
{
	while (*query != '\0') {
		size_t length = strcspn(query, "&");
		const char *equals = memchr(query, '=', length);
		size_t name_length = equals != NULL ? (size_t)(equals - query) : length;
		CLEANUP(free_pointer) char *name = strndup(query, name_length);
		CLEANUP(free_pointer)
		char *value = equals != NULL ? percent_decode(equals + 1, length - name_length - 1)
		                             : strdup("");
		int error = name != NULL && value != NULL ? set_parameter(settings, name, &value)
		                                          : -ERR_INVALID;
		if (error == -ERR_UNSUPPORTED)
			return fail(message, -ERR_INVALID,
			            "an s3:// URL has no parameter '%s'; there are endpoint, "
			            "region, ca-file, profile, path-style, if-match, timeout and "
			            "connections",
			            name);
		if (error < 0)
			return fail(message, -ERR_INVALID,
			            "parameter '%s' of the s3:// URL has no value that it can have",
			            name != NULL ? name : "");
		query += length + (query[length] == '&');
	}
	return 0;
}

/* Lower-case letters, digits, '.', '-'; also the older '_' and capitals that other engines allow.
 */
static bool bucket_valid(const char *bucket)
{
	size_t length = strlen(bucket);
	if (length < 1 || length > 255 || bucket[0] == '.' || bucket[0] == '-')
		return false;
	for (; *bucket != '\0'; bucket++)
		if (!isalnum((unsigned char)*bucket) && strchr("._-", *bucket) == NULL)
			return false;
	return true;
}

static int parse_place(const char *place, size_t length, struct s3_settings *settings,
                       struct message *message)
{
	const char *slash = memchr(place, '/', length);
	size_t bucket_length = slash != NULL ? (size_t)(slash - place) : length;
	const char *prefix = slash != NULL ? slash + 1 : place + length;
	size_t prefix_length = slash != NULL ? length - bucket_length - 1 : 0;
	while (prefix_length > 0 && prefix[prefix_length - 1] == '/')
		prefix_length--;
	settings->bucket = strndup(place, bucket_length);
	settings->prefix = strndup(prefix, prefix_length);
	if (settings->bucket == NULL || settings->prefix == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	if (!bucket_valid(settings->bucket))
		return fail(message, -ERR_INVALID,
		            "'%.255s' cannot name a bucket; use s3://bucket/prefix",
		            settings->bucket);
	if (prefix_length > S3_PREFIX_MAX ||
	    (prefix_length > 0 && !object_key_valid(settings->prefix)))
		return fail(message, -ERR_INVALID,
		            "'%.200s' cannot be a prefix: up to %d of A-Z a-z 0-9 _ . - /",
		            settings->prefix, S3_PREFIX_MAX);
	return 0;
}

/* -- what the URL leaves out -- */

static int fill(char **text, const char *value)
{
	if (*text != NULL || value == NULL)
		return 0;
	*text = strdup(value);
	return *text != NULL ? 0 : -ERR_NO_MEMORY;
}

static int fill_from_environment(struct s3_settings *settings)
{
	const struct {
		char **text;
		const char *name;
	} variables[] = {{&settings->endpoint, "AWS_ENDPOINT_URL_S3"},
	                 {&settings->endpoint, "AWS_ENDPOINT_URL"},
	                 {&settings->region, "AWS_REGION"},
	                 {&settings->region, "AWS_DEFAULT_REGION"},
	                 {&settings->ca_file, "AWS_CA_BUNDLE"}};
	int error = 0;
	for (size_t i = 0; i < ARRAY_SIZE(variables) && error == 0; i++)
		error = fill(variables[i].text, environment(variables[i].name));
	return error;
}

static int fill_from_shared(struct s3_settings *settings, struct message *message)
{
	CLEANUP(shared_config_release) struct shared_config shared = {0};
	int error = shared_config_read(settings->profile, &shared, message);
	if (error == -ERR_NOT_FOUND)
		return -ERR_INVALID;
	if (error < 0)
		return error;
	if (fill(&settings->endpoint, shared_config_service(&shared, "s3.endpoint_url")) < 0 ||
	    fill(&settings->endpoint, shared_config_get(&shared, "endpoint_url")) < 0 ||
	    fill(&settings->region, shared_config_get(&shared, "region")) < 0 ||
	    fill(&settings->ca_file, shared_config_get(&shared, "ca_bundle")) < 0)
		return -ERR_NO_MEMORY;
	const char *style = shared_config_get(&shared, "s3.addressing_style");
	if (style != NULL && !settings->path_style_given && strcmp(style, "auto") != 0) {
		settings->path_style_given = true;
		settings->path_style = strcmp(style, "path") == 0;
	}
	return 0;
}

static bool host_is_aws(const char *endpoint)
{
	const char *host = strstr(endpoint, "://") + 3;
	size_t length = strcspn(host, ":/");
	static const char aws[] = ".amazonaws.com";
	return length > sizeof(aws) - 1 &&
	       strncmp(host + length - (sizeof(aws) - 1), aws, sizeof(aws) - 1) == 0;
}

static int check_endpoint(struct s3_settings *settings, struct message *message)
{
	char *endpoint = settings->endpoint;
	size_t scheme = strncmp(endpoint, "http://", 7) == 0    ? 7
	                : strncmp(endpoint, "https://", 8) == 0 ? 8
	                                                        : 0;
	size_t length = strlen(endpoint);
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)endpoint[i] <= 0x20 || (unsigned char)endpoint[i] >= 0x7f ||
		    strchr("@?#\\\"%", endpoint[i]) != NULL)
			scheme = 0;
	if (scheme == 0 || strcspn(endpoint + scheme, ":/") == 0)
		return fail(message, -ERR_INVALID,
		            "the S3 endpoint must be http://HOST[:PORT] or https://HOST[:PORT]%s",
		            strchr(endpoint, '@') != NULL ? ", without user and password" : "");
	while (endpoint[length - 1] == '/')
		endpoint[--length] = '\0';
	return 0;
}

static int complete(struct s3_settings *settings, struct message *message)
{
	int error = fill(&settings->region, "us-east-1");
	if (error < 0)
		return error;
	for (const char *c = settings->region; *c != '\0'; c++)
		if (!isalnum((unsigned char)*c) && strchr("-_.", *c) == NULL)
			return fail(message, -ERR_INVALID, "'%.80s' cannot be a region",
			            settings->region);
	settings->endpoint_default = settings->endpoint == NULL;
	if (settings->endpoint_default &&
	    asprintf(&settings->endpoint, "https://s3.%s.amazonaws.com%s", settings->region,
	             strncmp(settings->region, "cn-", 3) == 0 ? ".cn" : "") < 0) {
		settings->endpoint = NULL;
		return -ERR_NO_MEMORY;
	}
	error = check_endpoint(settings, message);
	if (error < 0)
		return error;
	/* A bucket with dots matches no wildcard certificate; one with capitals is no host name. */
	if (!settings->path_style_given)
		settings->path_style =
		        (!settings->endpoint_default && !host_is_aws(settings->endpoint)) ||
		        strchr(settings->bucket, '.') != NULL ||
		        strpbrk(settings->bucket, "_ABCDEFGHIJKLMNOPQRSTUVWXYZ") != NULL;
	if (settings->timeout_ms == 0)
		settings->timeout_ms = S3_TIMEOUT_MS_DEFAULT;
	return 0;
}

int s3_settings_parse(const char *url, struct s3_settings *ret_settings, struct message *message)
{
	CLEANUP(s3_settings_release) struct s3_settings settings = {0};
	if (strncmp(url, SCHEME, sizeof(SCHEME) - 1) != 0)
		return fail(message, -ERR_INVALID, "'%.200s' is no s3:// URL", url);
	const char *place = url + sizeof(SCHEME) - 1;
	size_t length = strcspn(place, "?");
	int error = parse_place(place, length, &settings, message);
	if (error == 0 && place[length] == '?')
		error = parse_query(place + length + 1, &settings, message);
	if (error == 0)
		error = fill_from_environment(&settings);
	if (error == 0)
		error = fill_from_shared(&settings, message);
	if (error == 0)
		error = complete(&settings, message);
	if (error == -ERR_NO_MEMORY)
		return fail(message, error, "out of memory");
	if (error < 0)
		return error;
	*ret_settings = settings;
	memset(&settings, 0, sizeof(settings));
	return 0;
}

/* -- and back -- */

static void add_parameter(struct buffer *url, char *separator, const char *name, const char *value)
{
	buffer_u8(url, (uint8_t)*separator);
	*separator = '&';
	buffer_append(url, name, strlen(name));
	for (; *value != '\0'; value++) { /* ':' and '/' stay as they are: readable */
		char one[2] = {*value, '\0'};
		if (*value == ':' || *value == '/')
			buffer_u8(url, (uint8_t)*value);
		else
			percent_encode(url, one, true);
	}
}

int s3_settings_url(const struct s3_settings *settings, char **ret_url)
{
	CLEANUP(buffer_release) struct buffer url = {0};
	char separator = '?', number[32];
	const char *profile = settings->profile;
	if (profile == NULL)
		profile = environment("AWS_PROFILE");
	buffer_append(&url, SCHEME, sizeof(SCHEME) - 1);
	buffer_append(&url, settings->bucket, strlen(settings->bucket));
	if (settings->prefix[0] != '\0') {
		buffer_u8(&url, '/');
		buffer_append(&url, settings->prefix, strlen(settings->prefix));
	}
	if (!settings->endpoint_default)
		add_parameter(&url, &separator, "endpoint=", settings->endpoint);
	add_parameter(&url, &separator, "region=", settings->region);
	if (settings->ca_file != NULL)
		add_parameter(&url, &separator, "ca-file=", settings->ca_file);
	if (profile != NULL)
		add_parameter(&url, &separator, "profile=", profile);
	if (settings->path_style_given)
		add_parameter(&url, &separator, "path-style=", settings->path_style ? "yes" : "no");
	if (settings->unquoted)
		add_parameter(&url, &separator, "if-match=", "unquoted");
	if (settings->timeout_ms != S3_TIMEOUT_MS_DEFAULT) {
		snprintf(number, sizeof(number), "%lld", (long long)settings->timeout_ms / 1000);
		add_parameter(&url, &separator, "timeout=", number);
	}
	if (settings->connections_max != 0) {
		snprintf(number, sizeof(number), "%u", settings->connections_max);
		add_parameter(&url, &separator, "connections=", number);
	}
	buffer_u8(&url, 0);
	int error = buffer_check(&url);
	if (error < 0)
		return error;
	*ret_url = (char *)steal(&url.data);
	return 0;
}
