/* A web server on loopback that answers from a script, and keeps what it was asked. Each entry of
 * the script answers one request, in order; the last one answers all that follow. An entry is the
 * raw answer; a first line "CLOSE" ends the connection without one, "STALL" says nothing until the
 * client goes; "CUT" sends the rest of the entry and then ends the connection, "HANG" sends it and
 * then says nothing more. */
#ifndef TESTS_HTTP_SERVER_H
#define TESTS_HTTP_SERVER_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SERVER_REQUESTS_MAX 64
#define SERVER_CONNECTIONS_MAX 64
#define SERVER_REQUEST_BYTES_MAX (40 << 20)

struct server {
	int fd;
	int port;
	pthread_t thread;
	pthread_t connections[SERVER_CONNECTIONS_MAX];
	int connection_count;
	pthread_mutex_t lock; /* guards the rest */
	const char *const *script;
	int script_length;
	int answered;
	char *requests[SERVER_REQUESTS_MAX];
	_Atomic int request_count; /* read by the test, too */
	_Atomic int stopping;
};

#define ANSWER(status, headers, body, length) \
	"HTTP/1.1 " status "\r\nContent-Length: " length "\r\n" headers "\r\n" body

struct server_connection {
	struct server *server;
	int fd;
};

/* Waits for bytes, or for the end of the test. */
static inline ssize_t server_read(struct server *server, int fd, char *bytes, size_t room)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
	while (!server->stopping)
		if (poll(&poll_fd, 1, 20) > 0)
			return read(fd, bytes, room);
	return -1;
}

/* A whole request, headers and body; NULL at the end. */
static inline char *server_request(struct server *server, int fd)
{
	char *text = calloc(1, SERVER_REQUEST_BYTES_MAX + 1);
	size_t length = 0, wanted = 0;
	while (wanted == 0 || length < wanted) {
		ssize_t got =
		        server_read(server, fd, text + length, SERVER_REQUEST_BYTES_MAX - length);
		if (got <= 0) {
			free(text);
			return NULL;
		}
		length += (size_t)got;
		const char *end = strstr(text, "\r\n\r\n");
		const char *size = strcasestr(text, "\r\nContent-Length:");
		if (end != NULL)
			wanted = (size_t)(end + 4 - text) +
			         (size != NULL && size < end ? strtoul(size + 17, NULL, 10) : 0);
	}
	return text;
}

static inline const char *server_keep(struct server *server, char *request)
{
	pthread_mutex_lock(&server->lock);
	int at = server->answered++;
	if (at >= server->script_length)
		at = server->script_length - 1;
	const char *answer = server->script[at];
	if (server->request_count < SERVER_REQUESTS_MAX) {
		server->requests[server->request_count] = request;
		server->request_count++;
	} else {
		free(request);
	}
	pthread_mutex_unlock(&server->lock);
	return answer;
}

static inline void *server_serve(void *argument)
{
	struct server_connection connection = *(struct server_connection *)argument;
	struct server *server = connection.server;
	char *request, ignored[64];
	free(argument);
	while ((request = server_request(server, connection.fd)) != NULL) {
		const char *answer = server_keep(server, request);
		int cut = strncmp(answer, "CUT\n", 4) == 0;
		int hang = strncmp(answer, "HANG\n", 5) == 0;
		int last = cut || hang || strstr(answer, "Connection: close") != NULL;
		if (strcmp(answer, "CLOSE") == 0)
			break;
		if (strcmp(answer, "STALL") == 0) {
			server_read(server, connection.fd, ignored, sizeof(ignored));
			break;
		}
		answer += cut ? 4 : hang ? 5 : 0;
		size_t length = strlen(answer);
		ssize_t sent = send(connection.fd, answer, length, MSG_NOSIGNAL);
		if (hang)
			server_read(server, connection.fd, ignored, sizeof(ignored));
		if (sent < 0 || last)
			break;
	}
	close(connection.fd);
	return NULL;
}

static inline void *server_accept(void *argument)
{
	struct server *server = argument;
	while (!server->stopping) {
		struct pollfd poll_fd = {.fd = server->fd, .events = POLLIN};
		if (poll(&poll_fd, 1, 20) <= 0)
			continue;
		int fd = accept(server->fd, NULL, NULL);
		if (fd < 0 || server->connection_count == SERVER_CONNECTIONS_MAX)
			continue;
		struct server_connection *connection = malloc(sizeof(*connection));
		*connection = (struct server_connection){server, fd};
		pthread_create(&server->connections[server->connection_count++], NULL, server_serve,
		               connection);
	}
	return NULL;
}

/* It has its port from now on, and refuses connections. */
static inline void server_reserve(struct server *server, const char *const *script, int length)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t size = sizeof(address);
	memset(server, 0, sizeof(*server));
	server->script = script;
	server->script_length = length;
	pthread_mutex_init(&server->lock, NULL);
	server->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(server->fd, (struct sockaddr *)&address, size) < 0 ||
	    getsockname(server->fd, (struct sockaddr *)&address, &size) < 0)
		abort();
	server->port = ntohs(address.sin_port);
}

static inline void server_listen(struct server *server)
{
	if (listen(server->fd, 64) < 0)
		abort();
	pthread_create(&server->thread, NULL, server_accept, server);
}

static inline void server_start(struct server *server, const char *const *script, int length)
{
	server_reserve(server, script, length);
	server_listen(server);
}

static inline void server_stop(struct server *server)
{
	server->stopping = 1;
	pthread_join(server->thread, NULL);
	for (int i = 0; i < server->connection_count; i++)
		pthread_join(server->connections[i], NULL);
	close(server->fd);
	for (int i = 0; i < server->request_count; i++)
		free(server->requests[i]);
	pthread_mutex_destroy(&server->lock);
}

#endif
