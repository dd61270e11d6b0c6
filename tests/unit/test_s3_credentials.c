/* s3_credentials: every source, their order, renewal; metadata services and STS by a server on
 * loopback. Also s3_ini, which they are read with. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/s3_credentials.h"
#include "store/s3_ini.h"
#include "tests/unit/http_server.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static char root[64];
static struct http *http;
static struct server server;
static struct message message;

static const char *const variables[] = {"AWS_ACCESS_KEY_ID",
                                        "AWS_SECRET_ACCESS_KEY",
                                        "AWS_SESSION_TOKEN",
                                        "AWS_PROFILE",
                                        "AWS_WEB_IDENTITY_TOKEN_FILE",
                                        "AWS_ROLE_ARN",
                                        "AWS_ROLE_SESSION_NAME",
                                        "AWS_ENDPOINT_URL",
                                        "AWS_ENDPOINT_URL_STS",
                                        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                                        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                                        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
                                        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                                        "AWS_EC2_METADATA_SERVICE_ENDPOINT"};

static void write_text(const char *name, const char *text)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s", root, name);
	assert_int_equal(write_file_durably(AT_FDCWD, path, text, strlen(text)), 0);
}

static void set_path(const char *variable, const char *name)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s", root, name);
	setenv(variable, path, 1);
}

/* Nothing of whoever runs the test gets in. */
static int setup(void **state)
{
	strcpy(root, "/tmp/test_s3_credentials.XXXXXX");
	if (mkdtemp(root) == NULL)
		return -1;
	for (size_t i = 0; i < ARRAY_SIZE(variables); i++)
		unsetenv(variables[i]);
	setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
	set_path("AWS_CONFIG_FILE", "config");
	set_path("AWS_SHARED_CREDENTIALS_FILE", "credentials");
	return http_new(&(struct http_options){.connections_max = 4}, &http, &message);
}

static int teardown(void **state)
{
	char command[128];
	http_free(http);
	snprintf(command, sizeof(command), "rm -rf '%s'", root);
	return system(command);
}

static struct s3_credentials *open_credentials(const char *profile)
{
	struct s3_credentials *credentials = NULL;
	struct s3_credentials_options options = {
	        .profile = profile, .region = "us-east-1", .http = http};
	assert_int_equal(s3_credentials_new(&options, &credentials), 0);
	return credentials;
}

static void expect_from(struct s3_credentials *credentials, const char *access_key,
                        const char *secret_key, const char *token)
{
	CLEANUP(s3_key_release) struct s3_key key = {0};
	if (s3_credentials_get(credentials, &key, &message) < 0)
		fail_msg("%s", message.text);
	assert_string_equal(key.access_key, access_key);
	assert_string_equal(key.secret_key, secret_key);
	if (token == NULL)
		assert_null(key.session_token);
	else
		assert_string_equal(key.session_token, token);
}

static void expect_key(const char *profile, const char *access_key, const char *secret_key,
                       const char *token)
{
	struct s3_credentials *credentials = open_credentials(profile);
	expect_from(credentials, access_key, secret_key, token);
	s3_credentials_free(credentials);
}

/* The message says what is missing, and no secret. */
static void expect_none(const char *profile, const char *words)
{
	CLEANUP(s3_key_release) struct s3_key key = {0};
	struct s3_credentials *credentials = open_credentials(profile);
	message.text[0] = '\0';
	assert_int_equal(s3_credentials_get(credentials, &key, &message), -ERR_STORE_AWAY);
	if (strstr(message.text, words) == NULL)
		fail_msg("'%s' is not in: %s", words, message.text);
	assert_null(strstr(message.text, "HUSH"));
	s3_credentials_free(credentials);
}

static void test_environment(void **state)
{
	expect_none(NULL, "AWS_ACCESS_KEY_ID");
	setenv("AWS_ACCESS_KEY_ID", "AKID", 1);
	expect_none(NULL, "no secret key");
	setenv("AWS_SECRET_ACCESS_KEY", "HUSH", 1);
	expect_key(NULL, "AKID", "HUSH", NULL);
	setenv("AWS_SESSION_TOKEN", "token", 1);
	expect_key(NULL, "AKID", "HUSH", "token");
	setenv("AWS_SECRET_ACCESS_KEY", "HUSH\r\nX-Evil: 1", 1);
	expect_none(NULL, "control characters");
}

static void test_profiles(void **state)
{
	write_text("credentials", "# comment\n"
	                          "[default]\n"
	                          "aws_access_key_id = AKDEF\n"
	                          "aws_secret_access_key=SDEF\n"
	                          "[one]\r\n"
	                          "aws_access_key_id = AKONE   ; a comment\r\n"
	                          "AWS_SECRET_ACCESS_KEY = S=ONE\r\n"
	                          "aws_session_token = TONE\r\n"
	                          "[half]\n"
	                          "aws_access_key_id = AKHALF\n");
	write_text("config", "[profile  two]\n"
	                     "aws_access_key_id = AKTWO\n"
	                     "aws_secret_access_key = STWO\n"
	                     "[profile sso]\n"
	                     "sso_session = corp\n"
	                     "[two]\n"
	                     "aws_access_key_id = WRONG\n");
	expect_key(NULL, "AKDEF", "SDEF", NULL);
	expect_key("one", "AKONE", "S=ONE", "TONE");
	expect_key("two", "AKTWO", "STWO", NULL);
	setenv("AWS_PROFILE", "one", 1);
	expect_key(NULL, "AKONE", "S=ONE", "TONE");
	expect_key("two", "AKTWO", "STWO", NULL);
	/* The environment's keys go before a profile, unless the store's URL names it. */
	setenv("AWS_ACCESS_KEY_ID", "AKENV", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "SENV", 1);
	expect_key(NULL, "AKENV", "SENV", NULL);
	expect_key("two", "AKTWO", "STWO", NULL);
	expect_none("half", "no secret key");
	expect_none("none", "no profile 'none'");
	expect_none("sso", "credential_process");
}

static void test_process(void **state)
{
	write_text("answer", "{\"Version\":1,\"AccessKeyId\":\"AKP\",\"SecretAccessKey\":\"SP\","
	                     "\"SessionToken\":\"TP\",\"Expiration\":\"2099-01-01T00:00:00Z\"}");
	char config[512];
	snprintf(config, sizeof(config),
	         "[profile good]\ncredential_process = cat '%s/answer'\n"
	         "[profile fails]\ncredential_process = echo HUSH; exit 3\n"
	         "[profile talks]\ncredential_process = echo HUSH\n"
	         "[profile missing]\ncredential_process = /no/such/program\n",
	         root);
	write_text("config", config);
	expect_key("good", "AKP", "SP", "TP");
	expect_none("fails", "status 3");
	expect_none("talks", "printed no credentials");
	expect_none("missing", "status 127");
}

#define KEYS(name, expiration) \
	"{\"AccessKeyId\":\"AK" name "\",\"SecretAccessKey\":\"S" name "\",\"Token\":\"T" name \
	"\",\"Expiration\":\"" expiration "\"}"

static char *answer_with(const char *body)
{
	char *text = NULL;
	assert_true(asprintf(&text, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s",
	                     strlen(body), body) > 0);
	return text;
}

static void url_of(char *ret_url, size_t size, const char *path)
{
	snprintf(ret_url, size, "http://127.0.0.1:%d%s", server.port, path);
}

static void expect_asked(int number, const char *words)
{
	assert_true(server.request_count > number);
	if (strstr(server.requests[number], words) == NULL)
		fail_msg("'%s' is not in: %s", words, server.requests[number]);
}

static void test_container(void **state)
{
	char url[128];
	CLEANUP(free_pointer) char *answer = answer_with(KEYS("C", "2099-01-01T00:00:00Z"));
	const char *const script[] = {ANSWER("500 Oops", "", "", "0"), answer};
	server_start(&server, script, 2);
	url_of(url, sizeof(url), "/creds?x=1");
	setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url, 1);
	write_text("token", "Bearer-one\n");
	set_path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "token");
	setenv("http_proxy", "http://127.0.0.1:9", 1); /* must not be asked */
	expect_key(NULL, "AKC", "SC", "TC");
	unsetenv("http_proxy");
	assert_int_equal(server.request_count, 2);
	expect_asked(1, "GET /creds?x=1 HTTP/1.1\r\n");
	expect_asked(1, "authorization: Bearer-one\r\n");
	/* Secrets are not fetched in the clear from elsewhere. */
	setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1.example.com/", 1);
	expect_none(NULL, "must be https");
	set_path("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "nothing");
	setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url, 1);
	expect_none(NULL, "token file");
	server_stop(&server);
}

static void test_instance(void **state)
{
	char url[128];
	CLEANUP(free_pointer) char *token = answer_with("the-token");
	CLEANUP(free_pointer) char *role = answer_with("my-role\n");
	CLEANUP(free_pointer) char *keys = answer_with(KEYS("I", "2099-01-01T00:00:00Z"));
	const char *const script[] = {token, role, keys};
	server_start(&server, script, 3);
	url_of(url, sizeof(url), "");
	setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url, 1);
	expect_none(NULL, "no S3 credentials"); /* disabled */
	unsetenv("AWS_EC2_METADATA_DISABLED");
	expect_key(NULL, "AKI", "SI", "TI");
	assert_int_equal(server.request_count, 3);
	expect_asked(0, "PUT /latest/api/token HTTP/1.1\r\n");
	expect_asked(0, "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n");
	expect_asked(1, "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\n");
	expect_asked(1, "x-aws-ec2-metadata-token: the-token\r\n");
	expect_asked(2, "GET /latest/meta-data/iam/security-credentials/my-role HTTP/1.1\r\n");
	expect_asked(2, "x-aws-ec2-metadata-token: the-token\r\n");
	server_stop(&server);
	/* No such service, and one that wants no token: version 1 is not asked. */
	expect_none(NULL, "no S3 credentials");
	const char *const old[] = {ANSWER("403 Forbidden", "", "", "0")};
	server_start(&server, old, 1);
	url_of(url, sizeof(url), "");
	setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url, 1);
	expect_none(NULL, "no S3 credentials");
	assert_int_equal(server.request_count, 1);
	server_stop(&server);
}

static void test_web_identity(void **state)
{
	static const char body[] =
	        "<AssumeRoleWithWebIdentityResponse "
	        "xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/"
	        "\"><AssumeRoleWithWebIdentityResult>"
	        "<Credentials><SessionToken>TW</SessionToken><SecretAccessKey>SW</SecretAccessKey>"
	        "<Expiration>2099-01-01T00:00:00Z</Expiration><AccessKeyId>AKW</AccessKeyId>"
	        "</Credentials></AssumeRoleWithWebIdentityResult>"
	        "</AssumeRoleWithWebIdentityResponse>";
	char url[128], config[512];
	CLEANUP(free_pointer) char *answer = answer_with(body);
	const char *const script[] = {
	        answer, answer,
	        ANSWER("400 Bad", "",
	               "<ErrorResponse><Error><Code>ExpiredTokenException</Code></Error>"
	               "</ErrorResponse>",
	               "80")};
	server_start(&server, script, 3);
	url_of(url, sizeof(url), "");
	setenv("AWS_ENDPOINT_URL_STS", url, 1);
	write_text("jwt", "head.body/+=.sig\n");
	set_path("AWS_WEB_IDENTITY_TOKEN_FILE", "jwt");
	setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/x", 1);
	setenv("AWS_ROLE_SESSION_NAME", "me", 1);
	expect_key(NULL, "AKW", "SW", "TW");
	expect_asked(0, "POST / HTTP/1.1\r\n");
	expect_asked(0, "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&"
	                "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fx&RoleSessionName=me&"
	                "WebIdentityToken=head.body%2F%2B%3D.sig");
	unsetenv("AWS_ROLE_ARN");
	snprintf(config, sizeof(config),
	         "[profile w]\nrole_arn = arn:w\nweb_identity_token_file = %s/jwt\n", root);
	write_text("config", config);
	expect_key("w", "AKW", "SW", "TW");
	expect_none("w", "ExpiredTokenException");
	server_stop(&server);
}

/* -- renewal -- */

static char *keys_until(const char *name, int64_t seconds)
{
	char expiration[32], body[256];
	time_t at = time(NULL) + (time_t)seconds;
	struct tm tm;
	strftime(expiration, sizeof(expiration), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&at, &tm));
	snprintf(body, sizeof(body),
	         "{\"AccessKeyId\":\"%s\",\"SecretAccessKey\":\"S\",\"Token\":\"T\","
	         "\"Expiration\":\"%s\"}",
	         name, expiration);
	return answer_with(body);
}

static void test_renewed_in_time(void **state)
{
	char url[128];
	CLEANUP(free_pointer) char *soon = keys_until("AK1", 4);
	CLEANUP(free_pointer) char *later = keys_until("AK2", 36000);
	const char *const script[] = {soon, later, "CLOSE"};
	server_start(&server, script, 3);
	url_of(url, sizeof(url), "/");
	setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url, 1);
	struct s3_credentials *credentials = open_credentials(NULL);
	expect_from(credentials, "AK1", "S", "T");
	expect_from(credentials, "AK1", "S", "T");
	assert_int_equal(server.request_count, 1);
	usleep(1500000); /* a quarter of its life is over, not the whole */
	expect_from(credentials, "AK2", "S", "T");
	assert_int_equal(server.request_count, 2);
	expect_from(credentials, "AK2", "S", "T");
	/* Refused by the store: looked for again, and kept while the source is away. */
	s3_credentials_refused(credentials, "AK1");
	expect_from(credentials, "AK2", "S", "T");
	assert_int_equal(server.request_count, 2);
	s3_credentials_refused(credentials, "AK2");
	expect_from(credentials, "AK2", "S", "T");
	assert_true(server.request_count > 2);
	s3_credentials_free(credentials);
	server_stop(&server);
}

static void test_expired_is_an_error(void **state)
{
	char url[128];
	CLEANUP(free_pointer) char *past = keys_until("AK1", -10);
	const char *const script[] = {past};
	server_start(&server, script, 1);
	url_of(url, sizeof(url), "/");
	setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url, 1);
	expect_none(NULL, "expired");
	server_stop(&server);
}

static void test_rotated_file(void **state)
{
	write_text("credentials", "[default]\naws_access_key_id=AK1\naws_secret_access_key=S1\n");
	struct s3_credentials *credentials = open_credentials(NULL);
	expect_from(credentials, "AK1", "S1", NULL);
	write_text("credentials", "[default]\naws_access_key_id=AK2\naws_secret_access_key=S2\n");
	expect_from(credentials, "AK1", "S1", NULL);
	s3_credentials_refused(credentials, "AK1");
	expect_from(credentials, "AK2", "S2", NULL);
	s3_credentials_free(credentials);
}

static void *get_once(void *argument)
{
	struct s3_key key = {0};
	int r = s3_credentials_get(argument, &key, NULL);
	s3_key_release(&key);
	return (void *)(intptr_t)r;
}

static void test_many_threads_ask_once(void **state)
{
	char url[128];
	pthread_t threads[8];
	CLEANUP(free_pointer) char *keys = keys_until("AK1", 36000);
	const char *const script[] = {keys};
	server_start(&server, script, 1);
	url_of(url, sizeof(url), "/");
	setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url, 1);
	struct s3_credentials *credentials = open_credentials(NULL);
	for (int i = 0; i < 8; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, get_once, credentials), 0);
	for (int i = 0; i < 8; i++) {
		void *result;
		pthread_join(threads[i], &result);
		assert_null(result);
	}
	assert_int_equal(server.request_count, 1);
	s3_credentials_free(credentials);
	server_stop(&server);
}

/* -- the parsers by themselves -- */

static void test_json(void **state)
{
	static const char *const bad[] = {
	        "",
	        "[]",
	        "null",
	        "{\"AccessKeyId\":\"a\"}",
	        "{\"AccessKeyId\":1,\"SecretAccessKey\":\"s\"}",
	        "{\"AccessKeyId\":\"a\\n\",\"SecretAccessKey\":\"s\"}",
	        "{\"AccessKeyId\":\"a\",\"SecretAccessKey\":\"s\",\"Expiration\":\"soon\"}"};
	struct s3_key key = {0};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(s3_key_from_json(bad[i], strlen(bad[i]), &key), -ERR_CORRUPT);
	assert_null(key.access_key);
}

static void test_ini(void **state)
{
	static const char text[] = "ignored = before\n"
	                           "[profile  dev]\n"
	                           "region = eu-west-1 # near\n"
	                           "empty =\n"
	                           "s3 =\n"
	                           "  addressing_style = path\n"
	                           "\tendpoint_url = http://x:1/#frag\n"
	                           "region=eu-west-2\n"
	                           "  continued = not ours\n"
	                           "no equals here\n"
	                           "[services local]\n"
	                           "s3 =\n"
	                           "  endpoint_url = http://s\n"
	                           "[unclosed\n"
	                           "key = still local\n";
	CLEANUP(ini_release) struct ini ini = {0};
	assert_int_equal(ini_parse(text, sizeof(text) - 1, &ini), 0);
	assert_string_equal(ini_get(&ini, "profile dev", "region"), "eu-west-2");
	assert_string_equal(ini_get(&ini, "profile dev", "empty"), "");
	assert_string_equal(ini_get(&ini, "profile dev", "s3.addressing_style"), "path");
	assert_string_equal(ini_get(&ini, "profile dev", "s3.endpoint_url"), "http://x:1/#frag");
	assert_null(ini_get(&ini, "profile dev", "continued"));
	assert_null(ini_get(&ini, "profile dev", "ignored"));
	assert_string_equal(ini_get(&ini, "services local", "s3.endpoint_url"), "http://s");
	assert_string_equal(ini_get(&ini, "services local", "key"), "still local");
	assert_true(ini_has(&ini, "profile dev"));
	assert_false(ini_has(&ini, "profile"));
}

#define ONE(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        ONE(test_environment),
	        ONE(test_profiles),
	        ONE(test_process),
	        ONE(test_container),
	        ONE(test_instance),
	        ONE(test_web_identity),
	        ONE(test_renewed_in_time),
	        ONE(test_expired_is_an_error),
	        ONE(test_rotated_file),
	        ONE(test_many_threads_ask_once),
	        ONE(test_json),
	        ONE(test_ini),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
