/* s3_proxy_http — heads and framing of HTTP/1.1 messages, for s3_proxy. A chunked body is collected
 * and becomes one with a Content-Length, so that every fault can name a place in it. */
#ifndef TESTS_S3_PROXY_HTTP_H
#define TESTS_S3_PROXY_HTTP_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define HEAD_BYTES_MAX (64u << 10)
#define BODY_BYTES_MAX (256u << 20) /* of a chunked body */

struct reader {
	int fd;
	char *bytes;
	size_t begin, end, capacity;
};

struct http_message {
	size_t head; /* bytes of the reader that are the head */
	int64_t body;
	bool close, expects;
	int status;
	char method[16], target[2048], range[64];
};

static inline bool send_all(int fd, const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false;
		bytes += sent;
		length -= (size_t)sent;
	}
	return true;
}

static inline bool read_more(struct reader *reader)
{
	if (reader->begin > 0 && reader->begin == reader->end)
		reader->begin = reader->end = 0;
	if (reader->end == reader->capacity) {
		size_t capacity = reader->capacity * 2;
		char *grown =
		        capacity <= 2 * BODY_BYTES_MAX ? realloc(reader->bytes, capacity) : NULL;
		if (grown == NULL)
			return false;
		reader->bytes = grown;
		reader->capacity = capacity;
	}
	ssize_t got =
	        recv(reader->fd, reader->bytes + reader->end, reader->capacity - reader->end, 0);
	if (got <= 0)
		return got < 0 && errno == EINTR;
	reader->end += (size_t)got;
	return true;
}

static inline size_t read_head(struct reader *reader)
{
	if (reader->begin > 0) {
		memmove(reader->bytes, reader->bytes + reader->begin, reader->end - reader->begin);
		reader->end -= reader->begin;
		reader->begin = 0;
	}
	for (;;) {
		const char *end = memmem(reader->bytes, reader->end, "\r\n\r\n", 4);
		if (end != NULL)
			return (size_t)(end - reader->bytes) + 4;
		if (reader->end > HEAD_BYTES_MAX || !read_more(reader))
			return 0;
	}
}

/* The value of a header within a head; false when there is none. */
static inline bool header(const struct reader *reader, size_t head, const char *name,
                          char *ret_value, size_t size)
{
	const char *line = reader->bytes + reader->begin, *end = line + head;
	size_t name_length = strlen(name);
	while (line < end) {
		const char *stop = memmem(line, (size_t)(end - line), "\r\n", 2);
		if (stop == NULL)
			return false;
		if ((size_t)(stop - line) > name_length && line[name_length] == ':' &&
		    strncasecmp(line, name, name_length) == 0) {
			line += name_length + 1;
			line += strspn(line, " \t");
			snprintf(ret_value, size, "%.*s", (int)(stop - line), line);
			return true;
		}
		line = stop + 2;
	}
	return false;
}

static inline bool need(struct reader *reader, size_t at)
{
	while (reader->end < at)
		if (!read_more(reader))
			return false;
	return true;
}

/* Collects a chunked body and makes it one with a Content-Length. */
static inline bool unchunk(struct reader *reader, struct http_message *message)
{
	size_t at = message->head, total = 0, size;
	char *body = NULL, *text = NULL, *bytes = NULL;
	size_t text_size = 0;
	FILE *head = NULL;
	do {
		char *stop;
		while ((stop = memmem(reader->bytes + at, reader->end - at, "\r\n", 2)) == NULL)
			if (!read_more(reader))
				goto out;
		size = strtoull(reader->bytes + at, NULL, 16);
		at = (size_t)(stop - reader->bytes) + 2;
		if (size > BODY_BYTES_MAX - total || !need(reader, at + size + 2))
			goto out;
		char *grown = realloc(body, total + size + 1);
		if (grown == NULL)
			goto out;
		body = grown;
		memcpy(body + total, reader->bytes + at, size);
		total += size;
		at += size + 2;
	} while (size > 0);
	head = open_memstream(&text, &text_size);
	for (const char *line = reader->bytes, *stop; line < reader->bytes + message->head - 2;
	     line = stop + 2) {
		stop = strstr(line, "\r\n");
		if (strncasecmp(line, "transfer-encoding:", 18) != 0)
			fprintf(head, "%.*s\r\n", (int)(stop - line), line);
	}
	fprintf(head, "Content-Length: %zu\r\n\r\n", total);
	fclose(head);
	bytes = malloc(text_size + total + HEAD_BYTES_MAX);
	if (bytes != NULL) {
		memcpy(bytes, text, text_size);
		memcpy(bytes + text_size, body, total);
		free(reader->bytes);
		*reader = (struct reader){.fd = reader->fd,
		                          .bytes = bytes,
		                          .end = text_size + total,
		                          .capacity = text_size + total + HEAD_BYTES_MAX};
		message->head = text_size;
		message->body = (int64_t)total;
	}
out:
	free(body);
	free(text);
	return bytes != NULL;
}

static inline bool read_framing(struct reader *reader, struct http_message *message)
{
	char value[64];
	message->body = 0;
	message->close = header(reader, message->head, "connection", value, sizeof(value)) &&
	                 strcasecmp(value, "close") == 0;
	if (header(reader, message->head, "transfer-encoding", value, sizeof(value)))
		return unchunk(reader, message);
	if (header(reader, message->head, "content-length", value, sizeof(value)))
		message->body = strtoll(value, NULL, 10);
	return message->body >= 0;
}

static inline bool read_request(struct reader *reader, struct http_message *ret_message)
{
	char value[64];
	memset(ret_message, 0, sizeof(*ret_message));
	ret_message->head = read_head(reader);
	if (ret_message->head == 0 ||
	    sscanf(reader->bytes, "%15s %2047s", ret_message->method, ret_message->target) != 2)
		return false;
	header(reader, ret_message->head, "range", ret_message->range, sizeof(ret_message->range));
	ret_message->expects = header(reader, ret_message->head, "expect", value, sizeof(value));
	/* The upstream's own "100 Continue" is dropped below. */
	if (ret_message->expects && !send_all(reader->fd, "HTTP/1.1 100 Continue\r\n\r\n", 25))
		return false;
	return read_framing(reader, ret_message);
}

static inline bool read_answer(struct reader *reader, const struct http_message *request,
                               struct http_message *ret_message)
{
	memset(ret_message, 0, sizeof(*ret_message));
	for (;;) {
		ret_message->head = read_head(reader);
		if (ret_message->head == 0 ||
		    sscanf(reader->bytes, "HTTP/%*s %d", &ret_message->status) != 1)
			return false;
		if (ret_message->status >= 200)
			break;
		reader->begin += ret_message->head;
	}
	if (strcmp(request->method, "HEAD") == 0 || ret_message->status == 204 ||
	    ret_message->status == 304) {
		char value[16];
		ret_message->close =
		        header(reader, ret_message->head, "connection", value, sizeof(value)) &&
		        strcasecmp(value, "close") == 0;
		return true;
	}
	return read_framing(reader, ret_message);
}

#endif
