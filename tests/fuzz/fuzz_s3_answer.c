/*
 * Whatever a server sends as the answer to a request of the S3 backend, headers and all: bytes that
 * are given as an object's were in it, in one piece, and no more than were asked for; a conditional
 * put that was not confirmed does not count. The first byte chooses the call; every later request
 * is answered with "no such key".
 */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "store/object.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BODY "<Error><Code>NoSuchKey</Code></Error>"
#define LAST "HTTP/1.1 404 Not Found\r\nContent-Length: 37\r\nConnection: close\r\n\r\n" BODY

static int listener = -1;
static char url[120];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const uint8_t *answer; /* guarded by the lock, as its length; NULL: given */
static size_t answer_length;

static void check(bool holds)
{
	if (!holds)
		abort();
}

static bool read_request(int fd)
{
	char text[8192] = "";
	size_t length = 0, wanted = 0;
	while (!wanted || length < wanted) {
		ssize_t got = recv(fd, text + length, sizeof text - 1 - length, 0);
		if (got <= 0)
			return false;
		length += (size_t)got;
		text[length] = '\0';
		const char *end = strstr(text, "\r\n\r\n");
		const char *body = strcasestr(text, "\r\ncontent-length:");
		if (end)
			wanted = (size_t)(end + 4 - text) +
			         (body && body < end ? strtoul(body + 17, NULL, 10) : 0);
	}
	return true;
}

static void *serve(void *context)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		if (fd < 0)
			continue;
		if (read_request(fd)) {
			pthread_mutex_lock(&lock);
			if (answer)
				(void)send(fd, answer, answer_length, MSG_NOSIGNAL);
			else
				(void)send(fd, LAST, sizeof LAST - 1, MSG_NOSIGNAL);
			answer = NULL;
			pthread_mutex_unlock(&lock);
		}
		shutdown(fd, SHUT_WR);
		close(fd);
	}
	return context;
}

static void prepare(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof address;
	pthread_t thread;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	check(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
	      listen(listener, 64) == 0 &&
	      getsockname(listener, (struct sockaddr *)&address, &length) == 0);
	snprintf(url, sizeof url,
	         "s3://lake/pre?endpoint=http://127.0.0.1:%d&region=r&path-style=yes&timeout=1",
	         ntohs(address.sin_port));
	setenv("AWS_CONFIG_FILE", "/nonexistent", 1);
	setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent", 1);
	setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
	setenv("AWS_ACCESS_KEY_ID", "AKID", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "HUSH", 1);
	check(pthread_create(&thread, NULL, serve, NULL) == 0);
}

static int see(void *context, const struct object_info *info)
{
	check(object_key_valid(info->key));
	return 0;
}

static void read_part(struct object_store *store, uint64_t offset, uint64_t length,
                      const uint8_t *data, size_t size, bool etag)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = 1 << 20};
	struct etag found = {""};
	struct message message = {{0}};
	int error = object_get(store, "k", offset, length, &bytes, etag ? &found : NULL, &message);
	check(error == 0 ? bytes.length <= length : bytes.length == 0 && message.text[0]);
	check(bytes.length == 0 || memmem(data, size, bytes.data, bytes.length) != NULL);
}

static void call(struct object_store *store, uint8_t which, const uint8_t *data, size_t size)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = 1 << 20};
	const struct etag known = {"abc"};
	const char *const keys[] = {"a", "b"};
	struct etag etag = {""};
	struct message message = {{0}};
	int error = 0;
	switch (which % 8) {
	case 0:
		read_part(store, 0, UINT64_MAX, data, size, true);
		break;
	case 1:
		read_part(store, 10, 20, data, size, false);
		break;
	case 2:
		error = object_list(store, "", see, NULL, &message);
		break;
	case 3:
		error = object_put_if_absent(store, "k", "v", 1, &etag, &message);
		check(error < 0 || etag.text[0]);
		break;
	case 4:
		error = object_put_if_match(store, "k", "v", 1, &known, &etag, &message);
		check(error < 0 || etag.text[0]);
		break;
	case 5:
		error = object_get_if_changed(store, "k", &known, &bytes, &etag, &message);
		break;
	case 6:
		error = object_remove_many(store, keys, 2, &message);
		break;
	default:
		error = object_put(store, "k", "v", 1, &message);
		break;
	}
	check(error >= 0 || message.text[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct object_store *store;
	static unsigned rounds;
	if (size < 1)
		return 0;
	if (listener < 0)
		prepare();
	if (rounds++ % 200 == 0) { /* what was learned of the store is no longer of use */
		object_store_free(store);
		check(object_s3_open(url, &store, NULL) == 0);
	}
	pthread_mutex_lock(&lock);
	answer = data + 1;
	answer_length = size - 1;
	pthread_mutex_unlock(&lock);
	call(store, data[0], data + 1, size - 1);
	pthread_mutex_lock(&lock);
	answer = NULL;
	pthread_mutex_unlock(&lock);
	return 0;
}
