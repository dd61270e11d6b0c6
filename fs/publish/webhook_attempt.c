/*
 * webhook_attempt — hides the request: its headers and signature, where the secret comes from, and
 * which answers are worth another try.
 */
#include "fs/publish/webhook_attempt.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/publish/webhook.h"

#define SECRET_BYTES_MAX 4096
#define ANSWER_BYTES_MAX (64u << 10) /* nobody reads it */
#define WAIT_S_MAX 86400

int webhook_sign(const void *secret, size_t secret_length, const char *timestamp, const char *body,
                 char ret_signature[WEBHOOK_SIGNATURE_LENGTH + 1])
{
	CLEANUP(buffer_release) struct buffer text = {0};
	struct id mac;
	buffer_append(&text, timestamp, strlen(timestamp));
	buffer_append(&text, ".", 1);
	buffer_append(&text, body, strlen(body));
	int error = buffer_check(&text);
	if (error < 0)
		return error;
	hmac_sha256(secret, secret_length, text.data, text.length, &mac);
	memcpy(ret_signature, "sha256=", 7);
	id_to_hex(&mac, ret_signature + 7);
	return 0;
}

int secret_read(const char *path, struct buffer *ret_secret, struct message *message)
{
	struct stat status;
	CLEANUP(close_descriptor) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &status) < 0)
		return fail(message, error_system(errno), "cannot read the secret file %s: %s",
		            path, strerror(errno));
	if (!S_ISREG(status.st_mode))
		return fail(message, -ERR_REFUSED, "the secret file %s is not a regular file",
		            path);
	if (status.st_uid != 0 && status.st_uid != geteuid())
		return fail(message, -ERR_REFUSED,
		            "the secret file %s belongs to user %u: chown it to %u", path,
		            status.st_uid, geteuid());
	if (status.st_mode & (S_IWGRP | S_IRWXO))
		return fail(message, -ERR_REFUSED,
		            "the secret file %s is open to others: chmod 600 it", path);
	if (status.st_size > SECRET_BYTES_MAX)
		return fail(message, -ERR_TOO_LARGE, "the secret file %s has more than %d bytes",
		            path, SECRET_BYTES_MAX);
	int error = buffer_reserve(ret_secret, SECRET_BYTES_MAX);
	if (error < 0)
		return error;
	ssize_t got = read_full(fd, ret_secret->data, SECRET_BYTES_MAX, 0);
	if (got < 0)
		return fail(message, (int)got, "cannot read the secret file %s: %s", path,
		            error_text((int)got));
	while (got && strchr("\r\n", ret_secret->data[got - 1]))
		got--;
	ret_secret->length = (size_t)got;
	return got ? 0 : fail(message, -ERR_INVALID, "the secret file %s is empty", path);
}

int webhook_check(const struct webhook_rule *rule, struct message *message)
{
	CLEANUP(buffer_release) struct buffer secret = {0};
	if (!rule->secret_file)
		return 0;
	int error = secret_read(rule->secret_file, &secret, message);
	if (secret.data)
		explicit_bzero(secret.data, secret.capacity);
	return error;
}

/* Scheme, host and port: the rest of a URL may be as good as a password. */
static void receiver_of(const char *url, char *ret_text, size_t size)
{
	const char *host = strstr(url, "://");
	host = host ? host + 3 : url;
	int scheme_length = (int)(host - url);
	size_t length = strcspn(host, "/?#");
	for (const char *at; (at = memchr(host, '@', length)) != NULL; host = at + 1)
		length -= (size_t)(at + 1 - host);
	snprintf(ret_text, size, "%.*s%.*s", scheme_length < 16 ? scheme_length : 16, url,
	         (int)(length < 128 ? length : 128), host);
}

static const char *const outcomes[] = {
        [HTTP_ANSWERED] = "answered",        [HTTP_NOT_SENT] = "cannot be reached",
        [HTTP_BROKEN] = "broke off",         [HTTP_STALLED] = "does not answer in time",
        [HTTP_UNTRUSTED] = "is not trusted", [HTTP_FAILED] = "cannot be asked",
};

static void judge(const struct http_response *response, const char *receiver,
                  struct attempt *ret_attempt)
{
	int status = response->status;
	ret_attempt->status = status;
	/* Who says 200 has it, even when the rest of the answer is lost or endless. */
	if (status >= 200 && status < 300) {
		ret_attempt->outcome = ATTEMPT_TAKEN;
		return;
	}
	if (response->outcome != HTTP_ANSWERED) {
		bool never = response->outcome == HTTP_FAILED && response->error != -ERR_NO_MEMORY;
		ret_attempt->status = 0;
		ret_attempt->outcome = never ? ATTEMPT_REFUSED : ATTEMPT_PAUSE;
		snprintf(ret_attempt->trouble, sizeof ret_attempt->trouble, "%s %s (%.90s)",
		         receiver, outcomes[response->outcome], response->text);
		return;
	}
	snprintf(ret_attempt->trouble, sizeof ret_attempt->trouble, "%s answers %d%s", receiver,
	         status,
	         status / 100 == 3 ? ", a redirect, which is not followed: name where it leads"
	                           : "");
	if (status == 429 || status == 503)
		ret_attempt->outcome = ATTEMPT_PAUSE;
	else if (status == 408 || status >= 500)
		ret_attempt->outcome = ATTEMPT_AGAIN;
	else
		ret_attempt->outcome = ATTEMPT_REFUSED;
	long seconds = strtol(response->retry_after, NULL, 10); /* dates are not understood: 0 */
	if (strspn(response->retry_after, "0123456789") != strlen(response->retry_after))
		seconds = 0;
	if (seconds > 0)
		ret_attempt->wait_ms = 1000 * (seconds < WAIT_S_MAX ? seconds : WAIT_S_MAX);
}

static int sign(const struct spooled *spooled, const char *timestamp,
                char ret_signature[WEBHOOK_SIGNATURE_LENGTH + 1], struct message *message)
{
	CLEANUP(buffer_release) struct buffer secret = {0};
	int error = secret_read(spooled->secret_file, &secret, message);
	if (!error)
		error = webhook_sign(secret.data, secret.length, timestamp, spooled->body,
		                     ret_signature);
	if (secret.data)
		explicit_bzero(secret.data, secret.capacity);
	return error;
}

void attempt_make(struct http *http, const struct spooled *spooled, int64_t total_ms,
                  struct attempt *ret_attempt)
{
	CLEANUP(http_response_release) struct http_response response = {0};
	CLEANUP(buffer_release) struct buffer answer = {.limit = ANSWER_BYTES_MAX};
	char receiver[160], timestamp[24], signature[WEBHOOK_SIGNATURE_LENGTH + 1];
	struct message message = {{0}};

	*ret_attempt = (struct attempt){0};
	receiver_of(spooled->url, receiver, sizeof receiver);
	snprintf(timestamp, sizeof timestamp, "%lld", (long long)(clock_wall_ms() / 1000));
	int error = spooled->secret_file ? sign(spooled, timestamp, signature, &message) : 0;
	if (error < 0) { /* never without its signature; the file may come yet */
		ret_attempt->outcome = ATTEMPT_AGAIN;
		snprintf(ret_attempt->trouble, sizeof ret_attempt->trouble, "%.250s",
		         message.text[0] ? message.text : error_text(error));
		return;
	}
	const struct http_header headers[] = {
	        {"Content-Type", "application/json"}, {"X-Lake-Event", spooled->event},
	        {"X-Lake-Delivery", spooled->name},   {"X-Lake-Timestamp", timestamp},
	        {"X-Lake-Signature-256", signature},
	};
	const struct http_request request = {
	        .method = "POST",
	        .url = spooled->url,
	        .headers = headers,
	        .header_count = ARRAY_SIZE(headers) - (spooled->secret_file ? 0 : 1),
	        .body = spooled->body,
	        .body_length = strlen(spooled->body),
	        .into = &answer,
	        .total_ms = total_ms,
	};
	http_perform(http, &request, &response);
	judge(&response, receiver, ret_attempt);
}
