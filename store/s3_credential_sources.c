/*
 * s3_credential_sources — hides how each source outside this process is asked: a command, STS, the
 * container's and the instance's metadata services.
 */
#include "store/s3_credential_sources.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/s3_sign.h"
#include "store/s3_xml.h"
#include "store/secret.h"

#define ANSWER_BYTES_MAX (64u << 10)
#define TOKEN_BYTES_MAX (20u << 10)
#define PROCESS_MS_MAX 60000
#define TRIES_MAX 3
#define TRY_PAUSE_US 200000
#define METADATA_CONNECT_MS 1000
#define METADATA_ANSWER_MS 2000
#define INSTANCE_TOKEN_SECONDS "21600"

/* -- a command -- */

/* Output until its end, or an error. */
static int read_output(int fd, int64_t deadline_ms, struct buffer *ret_output)
{
	for (;;) {
		struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
		int64_t left_ms = deadline_ms - clock_monotonic_ms();
		if (left_ms <= 0 || poll(&poll_fd, 1, (int)left_ms) == 0)
			return error_system(ETIMEDOUT);
		char bytes[4096];
		ssize_t got = read(fd, bytes, sizeof(bytes));
		if (got < 0 && errno != EINTR)
			return error_system(errno);
		if (got == 0)
			return buffer_check(ret_output);
		if (got > 0)
			buffer_append(ret_output, bytes, (size_t)got);
		explicit_bzero(bytes, sizeof(bytes));
		if (buffer_check(ret_output) < 0)
			return buffer_check(ret_output);
	}
}

static int spawn_shell(const char *command, pid_t *ret_pid, int *ret_output)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC) < 0)
		return error_system(errno);
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	sigemptyset(&none);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	/* A group of its own, so that all of it can be ended. */
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
	char *const arguments[] = {"sh", "-c", (char *)command, NULL};
	int error = posix_spawn(ret_pid, "/bin/sh", &actions, &attributes, arguments, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	close(ends[1]);
	if (error != 0) {
		close(ends[0]);
		return error_system(error);
	}
	*ret_output = ends[0];
	return 0;
}

int s3_key_from_process(const char *command, struct s3_key *ret_key, struct message *message)
{
	CLEANUP(buffer_release_secret) struct buffer output = {.limit = ANSWER_BYTES_MAX};
	CLEANUP(close_descriptor) int fd = -1;
	pid_t pid;
	int status = 0;
	int error = buffer_reserve(&output, ANSWER_BYTES_MAX);
	if (error == 0)
		error = spawn_shell(command, &pid, &fd);
	if (error < 0)
		return fail(message, -ERR_STORE_AWAY, "credential_process cannot be started: %s",
		            error_text(error));
	error = read_output(fd, clock_monotonic_ms() + PROCESS_MS_MAX, &output);
	if (error < 0)
		kill(-pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (error < 0)
		return fail(message, -ERR_STORE_AWAY, "credential_process gave no answer: %s",
		            error_text(error));
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return fail(message, -ERR_STORE_AWAY,
		            "credential_process failed (%s %d); run it by hand to see why",
		            WIFEXITED(status) ? "status" : "signal",
		            WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	error = s3_key_from_json(output.data, output.length, ret_key);
	if (error == -ERR_CORRUPT)
		return fail(message, -ERR_STORE_AWAY,
		            "credential_process printed no credentials (JSON with AccessKeyId and "
		            "SecretAccessKey)");
	return error < 0 ? error : 1;
}

/* -- HTTP -- */

/* 0 with the body of a 200; -ERR_NOT_FOUND: another status; -ERR_STORE_AWAY: no answer. */
static int fetch(struct http *http, struct http_request *request, struct buffer *ret_body,
                 struct http_response *ret_response)
{
	request->into = ret_body;
	for (int tried = 1;; tried++) {
		http_perform(http, request, ret_response);
		bool answered = ret_response->outcome == HTTP_ANSWERED;
		if (answered && ret_response->status == 200)
			return 0;
		bool again = answered ? ret_response->status >= 500 || ret_response->status == 429
		                      : ret_response->outcome != HTTP_UNTRUSTED &&
		                                ret_response->outcome != HTTP_FAILED;
		if (!again || tried == TRIES_MAX)
			return answered ? -ERR_NOT_FOUND : -ERR_STORE_AWAY;
		usleep(TRY_PAUSE_US);
	}
}

static int fail_fetch(const char *what, const struct http_response *response,
                      struct message *message)
{
	struct s3_error error = {0};
	if (response->outcome != HTTP_ANSWERED)
		return fail(message, -ERR_STORE_AWAY, "%s cannot be reached: %s", what,
		            response->text);
	s3_xml_error(response->error_body.data, response->error_body.length, &error);
	return fail(message, -ERR_STORE_AWAY, "%s answered %d%s%s%s%s", what, response->status,
	            error.code[0] ? " " : "", error.code, error.message[0] ? ": " : "",
	            error.message);
}

/* Cut at the first blank or control character, so that it cannot end the header it goes into. */
static int end_token(struct buffer *token)
{
	size_t length = 0;
	while (length < token->length && token->data[length] > 0x20 && token->data[length] < 0x7f)
		length++;
	token->length = length;
	buffer_u8(token, 0);
	return buffer_check(token);
}

static int read_token(const char *path, struct buffer *ret_token, struct message *message)
{
	int error = read_file(AT_FDCWD, path, TOKEN_BYTES_MAX, ret_token);
	if (error < 0)
		return fail(message, -ERR_STORE_AWAY, "the token file %s cannot be read: %s", path,
		            error_text(error));
	error = end_token(ret_token);
	if (error == 0 && ret_token->length == 1)
		error = fail(message, -ERR_STORE_AWAY, "the token file %s is empty", path);
	return error;
}

static int from_json_answer(const char *what, const struct buffer *body, struct s3_key *ret_key,
                            struct message *message)
{
	int error = s3_key_from_json(body->data, body->length, ret_key);
	if (error == -ERR_CORRUPT)
		return fail(message, -ERR_STORE_AWAY, "%s answered without credentials", what);
	return error < 0 ? error : 1;
}

/* -- STS -- */

static int sts_url(const struct web_identity *identity, char **ret_url)
{
	const char *endpoint = environment("AWS_ENDPOINT_URL_STS");
	if (endpoint == NULL)
		endpoint = shared_config_service(identity->shared, "sts.endpoint_url");
	if (endpoint == NULL)
		endpoint = environment("AWS_ENDPOINT_URL");
	int n = endpoint != NULL
	                ? text_format(ret_url, "%s%s", endpoint,
	                              endpoint[strlen(endpoint) - 1] == '/' ? "" : "/")
	                : text_format(ret_url, "https://sts.%s.amazonaws.com%s/", identity->region,
	                              strncmp(identity->region, "cn-", 3) == 0 ? ".cn" : "");
	return n < 0 ? -ERR_NO_MEMORY : 0;
}

static void form_field(struct buffer *form, const char *name, const char *value)
{
	buffer_append(form, name, strlen(name));
	percent_encode(form, value, false);
}

int s3_key_from_web_identity(struct http *http, const struct web_identity *identity,
                             struct s3_key *ret_key, struct message *message)
{
	CLEANUP(buffer_release_secret) struct buffer token = {0};
	CLEANUP(buffer_release_secret) struct buffer form = {0};
	CLEANUP(buffer_release_secret) struct buffer body = {.limit = ANSWER_BYTES_MAX};
	CLEANUP(http_response_release) struct http_response response = {0};
	CLEANUP(free_pointer) char *url = NULL;
	char session[64];
	int error = read_token(identity->token_file, &token, message);
	if (error == 0)
		error = sts_url(identity, &url);
	if (error < 0)
		return error;
	snprintf(session, sizeof(session), "lake-%lld", (long long)clock_wall_ms());
	form_field(&form,
	           "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=", identity->role);
	form_field(&form, "&RoleSessionName=",
	           identity->session_name != NULL ? identity->session_name : session);
	form_field(&form, "&WebIdentityToken=", (const char *)token.data);
	error = buffer_check(&form);
	if (error < 0)
		return error;
	struct http_header header = {"content-type", "application/x-www-form-urlencoded"};
	struct http_request request = {.method = "POST",
	                               .url = url,
	                               .headers = &header,
	                               .header_count = 1,
	                               .body = form.data,
	                               .body_length = form.length};
	if (fetch(http, &request, &body, &response) < 0)
		return fail_fetch("the token service (STS)", &response, message);
	struct sts_credentials sts = {0};
	error = s3_xml_sts(body.data, body.length, &sts);
	if (error < 0)
		return fail(message, -ERR_STORE_AWAY,
		            "the token service (STS) answered without credentials");
	error = s3_key_make(sts.access_key, sts.secret_key, sts.session_token, sts.expires_ms,
	                    ret_key);
	sts_credentials_release(&sts);
	return error < 0 ? error : 1;
}

/* -- the container's endpoint (ECS, EKS) -- */

/* Plain HTTP only to this host or the platform's own addresses: the answer is a secret. */
static bool is_trusted_url(const char *url)
{
	static const char *const hosts[] = {"127.0.0.1",     "localhost",      "[::1]",
	                                    "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"};
	if (strncmp(url, "https://", 8) == 0)
		return true;
	if (strncmp(url, "http://", 7) != 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
		size_t length = strlen(hosts[i]);
		if (strncmp(url + 7, hosts[i], length) == 0 &&
		    strchr(":/", url[7 + length]) != NULL)
			return true;
	}
	return false;
}

static int container_url(char **ret_url, struct message *message)
{
	const char *relative = environment("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
	const char *full = environment("AWS_CONTAINER_CREDENTIALS_FULL_URI");
	if (relative != NULL)
		return text_format(ret_url, "http://169.254.170.2%s", relative) < 0 ? -ERR_NO_MEMORY
		                                                                    : 1;
	if (full == NULL)
		return 0;
	if (!is_trusted_url(full))
		return fail(
		        message, -ERR_STORE_AWAY,
		        "AWS_CONTAINER_CREDENTIALS_FULL_URI must be https, or http to this host");
	*ret_url = strdup(full);
	return *ret_url != NULL ? 1 : -ERR_NO_MEMORY;
}

int s3_key_from_container(struct http *http, struct s3_key *ret_key, struct message *message)
{
	CLEANUP(buffer_release_secret) struct buffer token = {0};
	CLEANUP(buffer_release_secret) struct buffer body = {.limit = ANSWER_BYTES_MAX};
	CLEANUP(http_response_release) struct http_response response = {0};
	CLEANUP(free_pointer) char *url = NULL;
	int r = container_url(&url, message);
	if (r <= 0)
		return r;
	struct http_header header = {"authorization",
	                             environment("AWS_CONTAINER_AUTHORIZATION_TOKEN")};
	const char *token_file = environment("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
	if (token_file != NULL) {
		r = read_token(token_file, &token, message);
		if (r < 0)
			return r;
		header.value = (const char *)token.data;
	}
	struct http_request request = {.method = "GET",
	                               .url = url,
	                               .headers = &header,
	                               .header_count = header.value != NULL ? 1 : 0,
	                               .connect_ms = METADATA_CONNECT_MS,
	                               .first_byte_ms = METADATA_ANSWER_MS,
	                               .direct = true};
	if (fetch(http, &request, &body, &response) < 0)
		return fail_fetch("the container's credentials endpoint", &response, message);
	return from_json_answer("the container's credentials endpoint", &body, ret_key, message);
}

/* -- the instance's metadata, version 2: a token first, so that a proxy that forwards anything can
 * not be talked into asking (EC2 user guide, "Use IMDSv2") -- */

#define INSTANCE "the instance metadata service"
#define INSTANCE_ROLES "/latest/meta-data/iam/security-credentials/"

struct instance {
	struct http *http;
	const char *endpoint;
	struct buffer token;
};

static int instance_fetch(struct instance *instance, const char *method, const char *path,
                          struct http_header header, struct buffer *ret_body,
                          struct http_response *ret_response)
{
	CLEANUP(free_pointer) char *url = NULL;
	if (text_format(&url, "%s%s", instance->endpoint, path) < 0)
		return -ERR_NO_MEMORY;
	struct http_request request = {.method = method,
	                               .url = url,
	                               .headers = &header,
	                               .header_count = 1,
	                               .body = strcmp(method, "PUT") == 0 ? "" : NULL,
	                               .connect_ms = METADATA_CONNECT_MS,
	                               .first_byte_ms = METADATA_ANSWER_MS,
	                               .direct = true};
	return fetch(instance->http, &request, ret_body, ret_response);
}

static int instance_get(struct instance *instance, const char *path, struct buffer *ret_body,
                        struct http_response *ret_response)
{
	struct http_header header = {"x-aws-ec2-metadata-token",
	                             (const char *)instance->token.data};
	return instance_fetch(instance, "GET", path, header, ret_body, ret_response);
}

/* The name of the instance's role, as a path. 0: it has none. */
static int instance_role(struct instance *instance, struct buffer *ret_path,
                         struct message *message)
{
	CLEANUP(http_response_release) struct http_response response = {0};
	CLEANUP(buffer_release) struct buffer names = {.limit = ANSWER_BYTES_MAX};
	int error = instance_get(instance, INSTANCE_ROLES, &names, &response);
	if (error == -ERR_NOT_FOUND && response.status == 404)
		return 0;
	if (error < 0)
		return fail_fetch(INSTANCE, &response, message);
	buffer_append(ret_path, INSTANCE_ROLES, sizeof(INSTANCE_ROLES) - 1);
	for (size_t i = 0; i < names.length && names.data[i] > 0x20 && names.data[i] < 0x7f; i++)
		buffer_u8(ret_path, names.data[i]);
	buffer_u8(ret_path, 0);
	error = buffer_check(ret_path);
	return error < 0 ? error : names.length > 0;
}

int s3_key_from_instance(struct http *http, struct s3_key *ret_key, struct message *message)
{
	CLEANUP(http_response_release) struct http_response response = {0};
	CLEANUP(buffer_release_secret) struct buffer body = {.limit = ANSWER_BYTES_MAX};
	CLEANUP(buffer_release) struct buffer path = {0};
	CLEANUP(buffer_release_secret) struct buffer token = {.limit = ANSWER_BYTES_MAX};
	const char *disabled = environment("AWS_EC2_METADATA_DISABLED");
	const char *endpoint = environment("AWS_EC2_METADATA_SERVICE_ENDPOINT");
	if (disabled != NULL && strcmp(disabled, "true") == 0)
		return 0;
	struct instance instance = {
	        .http = http, .endpoint = endpoint != NULL ? endpoint : "http://169.254.169.254"};
	struct http_header lifetime = {"x-aws-ec2-metadata-token-ttl-seconds",
	                               INSTANCE_TOKEN_SECONDS};
	if (instance_fetch(&instance, "PUT", "/latest/api/token", lifetime, &token, &response) < 0)
		return 0; /* not on such an instance */
	int r = end_token(&token);
	instance.token = token; /* borrowed */
	if (r == 0)
		r = instance_role(&instance, &path, message);
	if (r <= 0)
		return r;
	if (instance_get(&instance, (const char *)path.data, &body, &response) < 0)
		return fail_fetch(INSTANCE, &response, message);
	return from_json_answer(INSTANCE, &body, ret_key, message);
}
