/* s3_credentials — hides the order of the sources, and when a key is renewed. */
#include "store/s3_credentials.h"

#include <cjson/cJSON.h>
#include <pthread.h>
#include <stdio.h>

#include "store/s3_credential_sources.h"
#include "store/s3_xml.h"
#include "store/secret.h"

#define RENEW_BEFORE_MS ((int64_t)5 * 60 * 1000)
#define RENEW_AGAIN_MS ((int64_t)60 * 1000) /* a source may give the same key for a while */

struct s3_credentials {
	char *profile;
	char *region;
	struct http *http;
	pthread_mutex_t lock; /* guards all below; a leaf */
	pthread_cond_t renewed;
	bool renewing;
	struct s3_key key;   /* access_key NULL: none yet */
	int64_t renew_ms;    /* wall clock; 0: never */
	unsigned generation; /* of renewals, failed ones too */
	int error;           /* of the last one */
	struct message why;
};

void s3_key_release(struct s3_key *key)
{
	secret_free(key->access_key);
	memset(key, 0, sizeof(*key));
}

/* One after the other, in one piece of memory that the access key begins. */
int s3_key_make(const char *access_key, const char *secret_key, const char *session_token,
                int64_t expires_ms, struct s3_key *ret_key)
{
	const char *const texts[] = {access_key, secret_key,
	                             session_token != NULL ? session_token : ""};
	size_t sizes[ARRAY_SIZE(texts)], total = 0;
	char *places[ARRAY_SIZE(texts)];
	secrets_guard();
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		total += sizes[i] = strlen(texts[i]) + 1;
	char *at = secret_new(total);
	if (at == NULL)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < ARRAY_SIZE(texts); at += sizes[i++])
		places[i] = memcpy(at, texts[i], sizes[i]);
	*ret_key = (struct s3_key){.access_key = places[0],
	                           .secret_key = places[1],
	                           .session_token = places[2][0] != '\0' ? places[2] : NULL,
	                           .expires_ms = expires_ms};
	return 0;
}

/* -- JSON -- */

static const char *string_of(const cJSON *json, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, name);
	return cJSON_IsString(item) && item->valuestring[0] != '\0' ? item->valuestring : NULL;
}

/* These go into headers: nothing there may end one. */
static bool is_plain(const char *text)
{
	for (; *text != '\0'; text++)
		if ((unsigned char)*text <= 0x20 || (unsigned char)*text >= 0x7f)
			return false;
	return true;
}

static void wipe_json(cJSON *json)
{
	for (cJSON *item = json != NULL ? json->child : NULL; item != NULL; item = item->next)
		if (cJSON_IsString(item))
			explicit_bzero(item->valuestring, strlen(item->valuestring));
}

int s3_key_from_json(const void *bytes, size_t length, struct s3_key *ret_key)
{
	cJSON *json = cJSON_ParseWithLength(bytes, length);
	const char *access_key = string_of(json, "AccessKeyId");
	const char *secret_key = string_of(json, "SecretAccessKey");
	const char *token = string_of(json, "SessionToken"); /* credential_process */
	const char *expiration = string_of(json, "Expiration");
	int64_t expires_ms = 0;
	if (token == NULL)
		token = string_of(json, "Token"); /* metadata services */
	int error = access_key != NULL && secret_key != NULL && is_plain(access_key) &&
	                            is_plain(secret_key) && (token == NULL || is_plain(token))
	                    ? 0
	                    : -ERR_CORRUPT;
	if (error == 0 && expiration != NULL)
		error = iso8601_parse(expiration, &expires_ms);
	if (error == 0)
		error = s3_key_make(access_key, secret_key, token, expires_ms, ret_key);
	wipe_json(json);
	cJSON_Delete(json);
	return error;
}

/* -- sources in order -- */

static int take(const char *access_key, const char *secret_key, const char *token,
                const char *where, struct s3_key *ret_key, struct message *message)
{
	if (access_key == NULL && secret_key == NULL)
		return 0;
	if (access_key == NULL || secret_key == NULL)
		return fail(message, -ERR_STORE_AWAY,
		            "%s has %s; an access key id and a secret key are needed together",
		            where, access_key != NULL ? "no secret key" : "no access key id");
	if (!is_plain(access_key) || !is_plain(secret_key) || (token != NULL && !is_plain(token)))
		return fail(message, -ERR_STORE_AWAY,
		            "%s: a key has blanks or control characters in it", where);
	int error = s3_key_make(access_key, secret_key, token, 0, ret_key);
	return error < 0 ? error : 1;
}

static int from_profile(struct s3_credentials *credentials, const struct shared_config *shared,
                        struct s3_key *ret_key, struct message *message)
{
	char where[256];
	snprintf(where, sizeof(where), "profile '%.200s'", shared->profile);
	struct web_identity identity = {
	        .token_file = shared_config_get(shared, "web_identity_token_file"),
	        .role = shared_config_get(shared, "role_arn"),
	        .session_name = shared_config_get(shared, "role_session_name"),
	        .region = credentials->region,
	        .shared = shared};
	if (identity.token_file != NULL && identity.role != NULL)
		return s3_key_from_web_identity(credentials->http, &identity, ret_key, message);
	int r = take(shared_config_get(shared, "aws_access_key_id"),
	             shared_config_get(shared, "aws_secret_access_key"),
	             shared_config_get(shared, "aws_session_token"), where, ret_key, message);
	const char *command = shared_config_get(shared, "credential_process");
	if (r == 0 && command != NULL)
		return s3_key_from_process(command, ret_key, message);
	if (r == 0 && (shared_config_get(shared, "sso_session") != NULL ||
	               shared_config_get(shared, "sso_start_url") != NULL || identity.role != NULL))
		return fail(
		        message, -ERR_STORE_AWAY,
		        "%s signs in by SSO or by assuming a role, which is not done here; give "
		        "it a line: credential_process = aws configure export-credentials "
		        "--profile NAME",
		        where);
	return r;
}

static int from_environment(struct s3_credentials *credentials, const struct shared_config *shared,
                            struct s3_key *ret_key, struct message *message)
{
	int r = take(environment("AWS_ACCESS_KEY_ID"), environment("AWS_SECRET_ACCESS_KEY"),
	             environment("AWS_SESSION_TOKEN"), "the environment", ret_key, message);
	struct web_identity identity = {.token_file = environment("AWS_WEB_IDENTITY_TOKEN_FILE"),
	                                .role = environment("AWS_ROLE_ARN"),
	                                .session_name = environment("AWS_ROLE_SESSION_NAME"),
	                                .region = credentials->region,
	                                .shared = shared};
	if (r == 0 && identity.token_file != NULL && identity.role != NULL)
		return s3_key_from_web_identity(credentials->http, &identity, ret_key, message);
	return r;
}

static int find_key(struct s3_credentials *credentials, struct s3_key *ret_key,
                    struct message *message)
{
	CLEANUP(shared_config_release) struct shared_config shared = {0};
	int r = shared_config_read(credentials->profile, &shared, message);
	if (r == -ERR_NOT_FOUND)
		r = -ERR_STORE_AWAY; /* "not found" would speak of an object */
	/* A profile named on purpose goes before whatever the environment holds. */
	if (r == 0 && credentials->profile == NULL)
		r = from_environment(credentials, &shared, ret_key, message);
	if (r == 0)
		r = from_profile(credentials, &shared, ret_key, message);
	if (r == 0)
		r = s3_key_from_container(credentials->http, ret_key, message);
	if (r == 0)
		r = s3_key_from_instance(credentials->http, ret_key, message);
	if (r == 0)
		return fail(
		        message, -ERR_STORE_AWAY,
		        "no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
		        "put them into ~/.aws/credentials (profile '%s'); no container or "
		        "instance metadata service offers any either",
		        shared.profile);
	return r < 0 ? r : 0;
}

/* -- keeping and renewing -- */

int s3_credentials_new(const struct s3_credentials_options *options,
                       struct s3_credentials **ret_credentials)
{
	struct s3_credentials *credentials = calloc(1, sizeof(*credentials));
	if (credentials == NULL)
		return -ERR_NO_MEMORY;
	pthread_mutex_init(&credentials->lock, NULL);
	pthread_cond_init(&credentials->renewed, NULL);
	credentials->http = options->http;
	credentials->profile = options->profile != NULL ? strdup(options->profile) : NULL;
	credentials->region = strdup(options->region);
	if (credentials->region == NULL ||
	    (options->profile != NULL && credentials->profile == NULL)) {
		s3_credentials_free(credentials);
		return -ERR_NO_MEMORY;
	}
	*ret_credentials = credentials;
	return 0;
}

void s3_credentials_free(struct s3_credentials *credentials)
{
	if (credentials == NULL)
		return;
	s3_key_release(&credentials->key);
	pthread_cond_destroy(&credentials->renewed);
	pthread_mutex_destroy(&credentials->lock);
	free(credentials->profile);
	free(credentials->region);
	free(credentials);
}

static bool is_usable(const struct s3_credentials *credentials, int64_t now_ms)
{
	return credentials->key.access_key != NULL &&
	       (credentials->key.expires_ms == 0 || now_ms < credentials->key.expires_ms);
}

/* When to look for the next one: well before the end, but not all the time. */
static int64_t renewal_of(const struct s3_key *key, int64_t now_ms)
{
	if (key->expires_ms == 0)
		return 0;
	int64_t left_ms = key->expires_ms - now_ms;
	int64_t soonest_ms = now_ms + (left_ms / 4 < RENEW_AGAIN_MS ? left_ms / 4 : RENEW_AGAIN_MS);
	int64_t planned_ms = key->expires_ms - RENEW_BEFORE_MS;
	return planned_ms > soonest_ms ? planned_ms : soonest_ms;
}

/* The lock is held, and let go while the sources are asked. */
static void renew(struct s3_credentials *credentials)
{
	struct s3_key key = {0};
	struct message why = {{0}};
	credentials->renewing = true;
	pthread_mutex_unlock(&credentials->lock);
	int error = find_key(credentials, &key, &why);
	pthread_mutex_lock(&credentials->lock);
	int64_t now_ms = clock_wall_ms();
	credentials->renewing = false;
	credentials->generation++;
	credentials->error = error;
	credentials->why = why;
	if (error == 0) {
		s3_key_release(&credentials->key);
		credentials->key = key;
		credentials->renew_ms = renewal_of(&key, now_ms);
	} else {
		credentials->renew_ms = now_ms + RENEW_AGAIN_MS / 4;
	}
	pthread_cond_broadcast(&credentials->renewed);
}

int s3_credentials_get(struct s3_credentials *credentials, struct s3_key *ret_key,
                       struct message *message)
{
	pthread_mutex_lock(&credentials->lock);
	int64_t now_ms = clock_wall_ms();
	bool due = !is_usable(credentials, now_ms) ||
	           (credentials->renew_ms != 0 && now_ms >= credentials->renew_ms);
	if (due && !credentials->renewing) {
		renew(credentials);
	} else if (due && !is_usable(credentials, now_ms)) {
		unsigned generation = credentials->generation;
		while (credentials->generation == generation)
			pthread_cond_wait(&credentials->renewed, &credentials->lock);
	}
	int error;
	if (is_usable(credentials, clock_wall_ms()))
		error = s3_key_make(credentials->key.access_key, credentials->key.secret_key,
		                    credentials->key.session_token, credentials->key.expires_ms,
		                    ret_key);
	else if (credentials->error < 0)
		error = fail(message, credentials->error, "%s", credentials->why.text);
	else
		error = fail(message, -ERR_STORE_AWAY,
		             "the S3 credentials have expired, and their source gives no new ones");
	pthread_mutex_unlock(&credentials->lock);
	return error;
}

void s3_credentials_refused(struct s3_credentials *credentials, const char *access_key)
{
	pthread_mutex_lock(&credentials->lock);
	if (credentials->key.access_key != NULL &&
	    strcmp(credentials->key.access_key, access_key) == 0)
		credentials->renew_ms = clock_wall_ms();
	pthread_mutex_unlock(&credentials->lock);
}
