/*
 * control — hides the socket, its frames, who may connect, and one thread per running command.
 */
#include "fs/commands/control.h"
#include "fs/json.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <utlist.h>

#define FRAME_BYTES_MAX (64u << 20)
#define SOCKET_NAME "control.sock"
#define PROGRESS_INTERVAL_MS 100
#define REQUEST_BYTES_MAX (16u << 20)
#define REQUEST_TIMEOUT_MS 10000 /* for the whole of it */
#define REPLY_TIMEOUT_MS 60000   /* without taking a byte: whoever asked is gone, or stuck */
/* Each connection is a thread and a descriptor. lakectl sends its request at once; of clients that
 * do not, the oldest has to go when there are so many. */
#define UNHEARD_MAX 64
#define STOP_MS 2000 /* for replies to be taken, when the daemon ends */
/* Needs none. */
#define OUT_OF_MEMORY \
	"{\"reply\":{\"error\":{\"code\":\"no_memory\",\"message\":\"out of " \
	"memory\",\"exit\":1}}}"

struct control {
	struct lake *lake;
	control_fn *extra;
	void *context;
	int listener;
	int wake[2]; /* a byte here ends the accepting thread */
	char *path;
	pthread_t thread;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t idle;  /* one ended */
	unsigned running;
	struct connection *connections; /* oldest first */
};

/* -- frames -- */

static int send_all(int fd, const void *bytes, size_t length)
{
	const char *at = bytes;
	while (length) {
		ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return error_system(sent < 0 ? errno : EPIPE);
		at += sent;
		length -= (size_t)sent;
	}
	return 0;
}

/* deadline_ms: on the monotonic clock; 0: none. */
static int receive_all(int fd, void *bytes, size_t length, int64_t deadline_ms)
{
	char *at = bytes;
	while (length) {
		struct pollfd waiting = {.fd = fd, .events = POLLIN};
		int64_t left = deadline_ms - clock_monotonic_ms();
		if (deadline_ms && (left <= 0 || poll(&waiting, 1, (int)left) == 0))
			return -ERR_BUSY;
		ssize_t got = recv(fd, at, length, deadline_ms ? MSG_DONTWAIT : 0);
		if (got < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (got <= 0)
			return error_system(got < 0 ? errno : ECONNRESET);
		at += got;
		length -= (size_t)got;
	}
	return 0;
}

static int send_text(int fd, const char *text)
{
	size_t length = strlen(text);
	if (length > FRAME_BYTES_MAX)
		return -ERR_TOO_LARGE;
	uint8_t header[4];
	store_u32(header, (uint32_t)length);
	int error = send_all(fd, header, sizeof header);
	return error ? error : send_all(fd, text, length);
}

/* Takes `json`, which may be NULL: no memory. */
static int send_frame(int fd, cJSON *json)
{
	CLEANUP(free_pointer) char *text = cJSON_PrintUnformatted(json);
	cJSON_Delete(json);
	return text ? send_text(fd, text) : -ERR_NO_MEMORY;
}

static int receive_frame(int fd, size_t bytes_max, int64_t deadline_ms, cJSON **ret_json)
{
	uint8_t header[4];
	int error = receive_all(fd, header, sizeof header, deadline_ms);
	if (error < 0)
		return error;
	uint32_t length = load_u32(header);
	if (length > bytes_max)
		return -ERR_TOO_LARGE;
	CLEANUP(free_pointer) char *text = malloc((size_t)length + 1);
	if (!text)
		return -ERR_NO_MEMORY;
	error = receive_all(fd, text, length, deadline_ms);
	if (error < 0)
		return error;
	*ret_json = cJSON_ParseWithLength(text, length);
	return *ret_json ? 0 : -ERR_INVALID;
}

/* Takes `value`; NULL: no memory. */
static cJSON *wrap(const char *name, cJSON *value)
{
	unsigned failures = json_failures();
	CLEANUP(json_cleanup) cJSON *frame = cJSON_CreateObject();
	json_put(frame, name, value);
	return value && json_failures() == failures ? steal(&frame) : NULL;
}

/* An address for DIR/control.sock even when the path is longer than sun_path: through the
 * directory's descriptor. The caller closes *ret_directory_fd when the address has been used. */
static int socket_address(const char *directory, struct sockaddr_un *ret_address,
                          int *ret_directory_fd)
{
	int fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return error_system(errno);
	memset(ret_address, 0, sizeof *ret_address);
	ret_address->sun_family = AF_UNIX;
	snprintf(ret_address->sun_path, sizeof ret_address->sun_path, "/proc/self/fd/%d/%s", fd,
	         SOCKET_NAME);
	*ret_directory_fd = fd;
	return 0;
}

/* -- server -- */

static int check_peer(struct control *control, int fd, struct caller *ret_caller,
                      struct message *message)
{
	struct ucred peer;
	socklen_t length = sizeof peer;
	struct stat owner;
	char host[128] = "localhost", text[16384];
	struct passwd entry, *found = NULL;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
		return fail(message, error_system(errno), "cannot tell who asks: %s",
		            strerror(errno));
	ret_caller->uid = peer.uid;
	ret_caller->gid = peer.gid;
	ret_caller->pid = peer.pid;
	gethostname(host, sizeof host - 1);
	getpwuid_r(peer.uid, &entry, text, sizeof text, &found);
	if (found)
		snprintf(ret_caller->name, sizeof ret_caller->name, "%.100s@%s", found->pw_name,
		         host);
	else
		snprintf(ret_caller->name, sizeof ret_caller->name, "%u@%s", peer.uid, host);
	if (peer.uid == 0 || peer.uid == geteuid())
		return 0;
	if (stat(control->lake->directory, &owner) == 0 && owner.st_uid == peer.uid)
		return 0;
	if (caller_in_group(ret_caller, control->lake->config.control_group))
		return 0;
	return fail(message, -ERR_REFUSED,
	            "%s may not control this lake; its owner can set control_group in lake.json",
	            ret_caller->name);
}

struct connection {
	struct control *control;
	struct connection *previous, *next; /* control->connections; its lock */
	int fd;
	bool heard; /* its request has come */
	int64_t progress_due_ms;
	bool gone;
};

static int forward_progress(void *context, const char *what, uint64_t done, uint64_t total,
                            const char *unit)
{
	struct connection *connection = context;
	int64_t now = clock_monotonic_ms();
	if (connection->gone)
		return 1;
	if (now < connection->progress_due_ms)
		return 0;
	connection->progress_due_ms = now + PROGRESS_INTERVAL_MS;
	cJSON *progress = cJSON_CreateObject();
	cJSON_AddStringToObject(progress, "what", what);
	cJSON_AddNumberToObject(progress, "done", (double)done);
	cJSON_AddNumberToObject(progress, "total", (double)total);
	cJSON_AddStringToObject(progress, "unit", unit);
	connection->gone = send_frame(connection->fd, wrap("progress", progress)) < 0;
	return connection->gone;
}

static int forward_items(void *context, const char *list, cJSON *items)
{
	struct connection *connection = context;
	cJSON *piece = cJSON_CreateObject();
	cJSON_AddStringToObject(piece, "list", list);
	json_put(piece, "items", items);
	if (!connection->gone)
		connection->gone = send_frame(connection->fd, wrap("items", piece)) < 0;
	else
		cJSON_Delete(piece);
	return connection->gone;
}

static cJSON *answer(struct connection *connection)
{
	struct control *control = connection->control;
	struct message message = {{0}};
	struct caller caller = {0};
	cJSON *request = NULL, *reply = NULL;
	struct command_output output = {
	        .progress = {.report = forward_progress, .context = connection},
	        .items = forward_items,
	        .context = connection,
	};

	int error = check_peer(control, connection->fd, &caller, &message);
	if (!error) {
		error = receive_frame(connection->fd, REQUEST_BYTES_MAX,
		                      clock_monotonic_ms() + REQUEST_TIMEOUT_MS, &request);
		if (error)
			fail(&message, error, "the request could not be read: %s",
			     error_text(error));
		pthread_mutex_lock(&control->lock);
		connection->heard = true;
		pthread_mutex_unlock(&control->lock);
	}
	if (error < 0)
		return command_error(error, &message);
	_Atomic uint32_t *commands = control->lake->commands;
	if (commands)
		(*commands)++;
	error = control->extra ? control->extra(control->context, &caller, request, &reply)
	                       : -ERR_UNSUPPORTED;
	if (error == -ERR_UNSUPPORTED && !reply)
		command_run(control->lake, &caller, request, &output, &reply);
	if (commands)
		(*commands)--;
	cJSON_Delete(request);
	return reply;
}

static void *serve_connection(void *argument)
{
	struct connection *connection = argument;
	struct control *control = connection->control;
	struct timeval timeout = {.tv_sec = REPLY_TIMEOUT_MS / 1000};

	setsockopt(connection->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
	cJSON *reply = answer(connection);
	int error = send_frame(connection->fd, wrap("reply", reply));
	if (error == -ERR_TOO_LARGE)
		error = send_frame(connection->fd,
		                   wrap("reply", command_error(-ERR_TOO_LARGE, NULL)));
	if (error == -ERR_NO_MEMORY)
		send_text(connection->fd, OUT_OF_MEMORY);
	pthread_mutex_lock(&control->lock);
	DL_DELETE2(control->connections, connection, previous, next);
	control->running--;
	pthread_cond_broadcast(&control->idle);
	pthread_mutex_unlock(&control->lock);
	close(connection->fd);
	free(connection);
	return NULL;
}

/* Locked. What its thread receives then is an end. */
static void drop_oldest_unheard(struct control *control)
{
	struct connection *connection, *oldest = NULL;
	unsigned unheard = 0;
	DL_FOREACH2(control->connections, connection, next)
	{
		if (connection->heard)
			continue;
		oldest = oldest ? oldest : connection;
		unheard++;
	}
	if (unheard < UNHEARD_MAX)
		return;
	oldest->heard = true;
	shutdown(oldest->fd, SHUT_RDWR);
}

/* Its thread, or no answer: the one that accepts must not wait for a client. */
static void start_connection(struct control *control, int fd)
{
	pthread_t thread;
	pthread_attr_t attributes;
	struct connection *connection = calloc(1, sizeof *connection);
	if (!connection) {
		close(fd);
		return;
	}
	connection->control = control;
	connection->fd = fd;
	pthread_mutex_lock(&control->lock);
	drop_oldest_unheard(control);
	control->running++;
	DL_APPEND2(control->connections, connection, previous, next);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attributes, serve_connection, connection) != 0) {
		DL_DELETE2(control->connections, connection, previous, next);
		control->running--;
		close(fd);
		free(connection);
	}
	pthread_attr_destroy(&attributes);
	pthread_mutex_unlock(&control->lock);
}

static void *accept_loop(void *argument)
{
	struct control *control = argument;
	struct pollfd fds[2] = {{.fd = control->listener, .events = POLLIN},
	                        {.fd = control->wake[0], .events = POLLIN}};
	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return NULL;
		if (fds[1].revents)
			return NULL;
		if (!(fds[0].revents & POLLIN))
			continue;
		int fd = accept4(control->listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			start_connection(control, fd);
		else if (errno == EMFILE || errno == ENFILE)
			poll(NULL, 0, 100); /* until a descriptor is free again */
	}
}

static int listen_at(struct control *control, struct message *message)
{
	struct sockaddr_un address;
	CLEANUP(close_descriptor) int directory = -1;
	int error = socket_address(control->lake->directory, &address, &directory);
	if (error < 0)
		return fail(message, error, "cannot open %s", control->lake->directory);
	/* We hold the lake's lock, so a socket that is there belongs to a dead daemon. */
	unlink(control->path);
	control->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (control->listener < 0 ||
	    bind(control->listener, (struct sockaddr *)&address, sizeof address) < 0 ||
	    chmod(control->path, 0666) < 0 || /* peers are checked one by one */
	    listen(control->listener, SOMAXCONN) < 0 || pipe2(control->wake, O_CLOEXEC) < 0)
		return fail(message, error_system(errno), "cannot listen on %s: %s", control->path,
		            strerror(errno));
	return 0;
}

int control_start(struct lake *lake, control_fn *extra, void *context, struct control **ret_control,
                  struct message *message)
{
	struct control *control = calloc(1, sizeof *control);
	if (!control)
		return -ERR_NO_MEMORY;
	control->lake = lake;
	control->extra = extra;
	control->context = context;
	control->listener = control->wake[0] = control->wake[1] = -1;
	pthread_mutex_init(&control->lock, NULL);
	pthread_cond_init(&control->idle, NULL);
	int error = text_format(&control->path, "%s/%s", lake->directory, SOCKET_NAME) < 0
	                    ? -ERR_NO_MEMORY
	                    : listen_at(control, message);
	if (!error && pthread_create(&control->thread, NULL, accept_loop, control) != 0)
		error = fail(message, -ERR_NO_MEMORY, "cannot start a thread");
	if (error < 0) {
		close_descriptor(&control->listener);
		close_descriptor(&control->wake[0]);
		close_descriptor(&control->wake[1]);
		free(control->path);
		free(control);
		return error;
	}
	*ret_control = control;
	return 0;
}

/* Commands that run are waited for. Who does not take his reply in time is not. */
static void wait_for_connections(struct control *control)
{
	struct connection *connection;
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += STOP_MS / 1000;
	pthread_mutex_lock(&control->lock);
	while (control->running &&
	       pthread_cond_timedwait(&control->idle, &control->lock, &until) != ETIMEDOUT)
		continue;
	DL_FOREACH2(control->connections, connection, next)
	shutdown(connection->fd, SHUT_RDWR);
	while (control->running)
		pthread_cond_wait(&control->idle, &control->lock);
	pthread_mutex_unlock(&control->lock);
}

void control_stop(struct control *control)
{
	if (!control)
		return;
	while (write(control->wake[1], "", 1) < 0 && errno == EINTR)
		continue;
	pthread_join(control->thread, NULL);
	unlink(control->path);
	wait_for_connections(control);
	close(control->listener);
	close(control->wake[0]);
	close(control->wake[1]);
	pthread_mutex_destroy(&control->lock);
	pthread_cond_destroy(&control->idle);
	free(control->path);
	free(control);
}

/* -- client -- */

static int connect_to(const char *directory, int *ret_fd, struct message *message)
{
	struct sockaddr_un address;
	CLEANUP(close_descriptor) int directory_fd = -1;
	CLEANUP(close_descriptor) int fd = -1;
	int error = socket_address(directory, &address, &directory_fd);
	if (error < 0)
		return error == error_system(ENOENT) ? -ERR_NOT_FOUND : error;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail(message, error_system(errno), "cannot make a socket: %s",
		            strerror(errno));
	if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
		if (errno == ENOENT || errno == ECONNREFUSED)
			return -ERR_NOT_FOUND;
		return fail(message, error_system(errno), "cannot reach laked at %s/%s: %s",
		            directory, SOCKET_NAME, strerror(errno));
	}
	*ret_fd = fd;
	fd = -1;
	return 0;
}

static int show_progress(const cJSON *frame, const struct command_output *output)
{
	const cJSON *what = cJSON_GetObjectItemCaseSensitive(frame, "what");
	const cJSON *unit = cJSON_GetObjectItemCaseSensitive(frame, "unit");
	const cJSON *done = cJSON_GetObjectItemCaseSensitive(frame, "done");
	const cJSON *total = cJSON_GetObjectItemCaseSensitive(frame, "total");
	if (!output || !cJSON_IsString(what) || !cJSON_IsString(unit) || !cJSON_IsNumber(done) ||
	    !cJSON_IsNumber(total))
		return 0;
	return progress_report(&output->progress, what->valuestring, (uint64_t)done->valuedouble,
	                       (uint64_t)total->valuedouble, unit->valuestring);
}

/* Hands a piece of a list on, or keeps it in `kept` when nobody wants pieces. */
static int take_items(cJSON *frame, const struct command_output *output, cJSON *kept)
{
	const cJSON *list = cJSON_GetObjectItemCaseSensitive(frame, "list");
	cJSON *items = cJSON_DetachItemFromObjectCaseSensitive(frame, "items");
	if (!cJSON_IsString(list) || !cJSON_IsArray(items)) {
		cJSON_Delete(items);
		return -ERR_INVALID;
	}
	if (output && output->items)
		return output->items(output->context, list->valuestring, items) ? -ERR_INTERRUPTED
		                                                                : 0;
	cJSON *whole = cJSON_GetObjectItemCaseSensitive(kept, list->valuestring);
	if (!whole)
		whole = cJSON_AddArrayToObject(kept, list->valuestring);
	for (cJSON *item; (item = cJSON_DetachItemFromArray(items, 0));)
		json_append(whole, item);
	cJSON_Delete(items);
	return 0;
}

/* Lists kept from pieces come before what the reply itself has under that name. */
static void merge_kept(cJSON *reply, cJSON *kept)
{
	for (cJSON *list; (list = cJSON_DetachItemFromArray(kept, 0));) {
		cJSON *rest = cJSON_DetachItemFromObjectCaseSensitive(reply, list->string);
		for (cJSON *item; rest && (item = cJSON_DetachItemFromArray(rest, 0));)
			json_append(list, item);
		cJSON_Delete(rest);
		CLEANUP(free_pointer) char *name = strdup(list->string);
		json_put(reply, name ? name : "", list);
	}
}

static int receive_reply(int fd, const struct command_output *output, cJSON *kept,
                         cJSON **ret_reply)
{
	for (;;) {
		cJSON *frame = NULL, *part;
		int error = receive_frame(fd, FRAME_BYTES_MAX, 0, &frame);
		if (error < 0)
			return error;
		if ((part = cJSON_DetachItemFromObjectCaseSensitive(frame, "reply"))) {
			cJSON_Delete(frame);
			*ret_reply = part;
			return 0;
		}
		if ((part = cJSON_GetObjectItemCaseSensitive(frame, "progress")))
			error = show_progress(part, output) ? -ERR_INTERRUPTED : 0;
		else if ((part = cJSON_GetObjectItemCaseSensitive(frame, "items")))
			error = take_items(part, output, kept);
		cJSON_Delete(frame);
		if (error < 0)
			return error;
	}
}

int control_call(const char *lake_directory, const cJSON *request,
                 const struct command_output *output, cJSON **ret_reply, struct message *message)
{
	CLEANUP(close_descriptor) int fd = -1;
	int error = connect_to(lake_directory, &fd, message);
	if (error < 0)
		return error;
	unsigned failures = json_failures();
	error = send_frame(fd, cJSON_Duplicate(request, true));
	cJSON *kept = cJSON_CreateObject();
	/* A refused peer gets its answer although the request may not have been taken. */
	int received = receive_reply(fd, output, kept, ret_reply);
	if (!received)
		merge_kept(*ret_reply, kept);
	cJSON_Delete(kept);
	if (received < 0)
		return fail(message, received,
		            "laked ended the connection before it answered (%s): look whether it "
		            "was done before you repeat it; its log says why",
		            error_text(error < 0 ? error : received));
	if (json_failures() != failures)
		return fail(message, -ERR_NO_MEMORY,
		            "out of memory for the reply; look whether it was done before you "
		            "repeat it");
	return 0;
}
