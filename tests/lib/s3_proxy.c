/*
 * s3_proxy — stands between S3 clients and their gateways: counts, delays and breaks single
 * requests.
 *
 *   s3_proxy [--port N] [--latency-ms N] [--seed N] [--log FILE] HOST:PORT...
 *
 * Listens on 127.0.0.1 and prints "PORT CONTROL_PORT". Several upstreams: connections take turns,
 * and go to the next one when theirs refuses, as behind a load balancer; 503 when all do.
 * tests/README.md has the control requests and the language of faults.
 *
 * A thread for each connection, which has one connection upstream. Bodies go from socket to socket
 * by splice(2), so that a benchmark through it measures the client and the store.
 * Lock: `lock` guards the counters, the rules and the list of connections; never held across I/O.
 */
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "s3_proxy_faults.h"
#include "s3_proxy_http.h"

#define SPLICE_BYTES_MIN (96 << 10)
#define PIPE_BYTES (1 << 20)
#define SLICE_BYTES (4 << 20) /* an outage is noticed in between */
#define RULES_MAX 32
#define KINDS_MAX 64
#define UPSTREAMS_MAX 8
#define WATCH_MS 20

enum outage { OUTAGE_NONE, OUTAGE_HANG, OUTAGE_REFUSE };

struct kind {
	char name[32];
	uint64_t requests, up_bytes, down_bytes;
};

struct connection {
	struct connection *next, *previous;
	struct reader client, upstream;
	int pipe[2];
	bool control;
};

static struct {
	pthread_mutex_t lock;
	int listener, control;
	int port, control_port;
	struct sockaddr_in upstreams[UPSTREAMS_MAX];
	unsigned upstream_count;
	_Atomic unsigned turn;
	_Atomic int64_t latency_us;
	_Atomic int outage;
	_Atomic unsigned outages; /* how many began */
	struct rule rules[RULES_MAX];
	unsigned rule_count;
	struct kind kinds[KINDS_MAX];
	unsigned kind_count;
	uint64_t statuses[600];
	uint64_t accepted, faults;
	unsigned open, busy, busy_max;
	struct connection *connections;
	uint64_t random;
	FILE *log;
	int64_t started_us;
} proxy = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int64_t now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void die(const char *text)
{
	fprintf(stderr, "s3_proxy: %s: %s\n", text, strerror(errno));
	exit(1);
}

static uint64_t random_locked(void) /* xorshift64* */
{
	proxy.random ^= proxy.random >> 12;
	proxy.random ^= proxy.random << 25;
	proxy.random ^= proxy.random >> 27;
	return proxy.random * 0x2545f4914f6cdd1dull;
}

/* -- sockets -- */

static void no_delay(int fd)
{
	int on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* The peer sees a reset, not an end. */
static void reset_on_close(int fd)
{
	struct linger linger = {.l_onoff = 1, .l_linger = 0};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

static int listen_on(int port, int *ret_port)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_port = htons((uint16_t)port),
	                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t length = sizeof(address);
	int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) < 0 || listen(fd, 512) < 0 ||
	    getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		die("cannot listen");
	*ret_port = ntohs(address.sin_port);
	return fd;
}

/* Let time pass while the client waits. False: it went away, or an outage began. */
static bool wait_with(const struct connection *connection, int64_t us)
{
	unsigned outages = proxy.outages;
	int64_t end_us = now_us() + us;
	for (int64_t left_us; (left_us = end_us - now_us()) > 0;) {
		struct pollfd poll_fd = {.fd = connection->client.fd, .events = POLLRDHUP};
		struct timespec slice = {
		        .tv_nsec = 1000 * (left_us < 1000 * WATCH_MS ? left_us : 1000 * WATCH_MS)};
		if (ppoll(&poll_fd, 1, &slice, NULL) > 0 || proxy.outages != outages)
			return false;
	}
	return true;
}

/* -- moving bytes -- */

static bool open_pipe(struct connection *connection)
{
	if (connection->pipe[0] >= 0)
		return true;
	if (pipe2(connection->pipe, O_CLOEXEC) < 0)
		return false;
	fcntl(connection->pipe[1], F_SETPIPE_SZ, PIPE_BYTES);
	return true;
}

/* Some bytes from socket to socket without a look at them; 0 or less at the end. */
static ssize_t splice_some(const struct connection *connection, int from, int to, size_t length)
{
	ssize_t got = splice(from, NULL, connection->pipe[1], NULL, length, SPLICE_F_MOVE);
	for (ssize_t left = got; left > 0;) {
		ssize_t put =
		        splice(connection->pipe[0], NULL, to, NULL, (size_t)left, SPLICE_F_MOVE);
		if (put <= 0)
			return -1;
		left -= put;
	}
	return got;
}

static ssize_t copy_some(struct reader *from, int to, size_t length)
{
	if (from->begin == from->end && !read_more(from))
		return -1;
	size_t here = from->end - from->begin, take = here < length ? here : length;
	if (!send_all(to, from->bytes + from->begin, take))
		return -1;
	from->begin += take;
	return (ssize_t)take;
}

/* Move `length` bytes; less when an end breaks or an outage begins. */
static int64_t pump(struct connection *connection, struct reader *from, int to, int64_t length)
{
	unsigned outages = proxy.outages;
	int64_t done = 0;
	while (done < length && proxy.outages == outages) {
		size_t left = length - done < SLICE_BYTES ? (size_t)(length - done) : SLICE_BYTES;
		ssize_t moved = from->begin == from->end && left >= SPLICE_BYTES_MIN &&
		                                open_pipe(connection)
		                        ? splice_some(connection, from->fd, to, left)
		                        : copy_some(from, to, left);
		if (moved <= 0)
			break;
		done += moved;
	}
	return done;
}

static int64_t pump_limited(struct connection *connection, struct reader *from, int to,
                            int64_t length, double bytes_per_s)
{
	int64_t slice = (int64_t)(bytes_per_s / 50) + 1, done = 0, start_us = now_us();
	while (done < length) {
		int64_t left = length - done < slice ? length - done : slice;
		int64_t moved = pump(connection, from, to, left);
		done += moved;
		int64_t due_us = start_us + (int64_t)((double)done * 1e6 / bytes_per_s);
		if (moved < left || !wait_with(connection, due_us - now_us()))
			break;
	}
	return done;
}

static int64_t pump_flipped(struct connection *connection, struct reader *from, int to)
{
	if (from->begin == from->end && !read_more(from))
		return 0;
	from->bytes[from->begin] ^= 4;
	return pump(connection, from, to, 1);
}

static int64_t place_of(const struct where *where, size_t head, int64_t body)
{
	int64_t at = 0;
	switch (where->kind) {
	case AT_HEAD:
		return (int64_t)head / 2;
	case AT_SHARE:
		at = (int64_t)((double)body * where->value);
		break;
	case AT_BYTE:
		at = (int64_t)where->value;
		break;
	case AT_RANDOM:
		pthread_mutex_lock(&proxy.lock);
		at = body > 0 ? (int64_t)(random_locked() % (uint64_t)body) : 0;
		pthread_mutex_unlock(&proxy.lock);
		break;
	}
	return (int64_t)head + (at < body ? at : body);
}

/* The answer, as the fault wants it. Returns how many bytes the client got. */
static int64_t pass_answer(struct connection *connection, const struct http_message *answer,
                           const struct fault *fault)
{
	struct reader *from = &connection->upstream;
	int to = connection->client.fd;
	int64_t all = (int64_t)answer->head + answer->body, done = 0;
	if (fault->action == ACT_LIMIT)
		return pump_limited(connection, from, to, all, fault->seconds);
	if (fault->action == ACT_CUT || fault->action == ACT_FLIP || fault->action == ACT_STALL) {
		int64_t at = place_of(&fault->where, answer->head, answer->body);
		done = pump(connection, from, to, at);
		if (done < at || fault->action == ACT_CUT)
			return done;
		if (fault->action == ACT_FLIP && at < all)
			done += pump_flipped(connection, from, to);
		if (fault->action == ACT_STALL &&
		    !wait_with(connection, (int64_t)(fault->seconds * 1e6)))
			return done;
	}
	return done + pump(connection, from, to, all - done);
}

/* -- faults -- */

/* The first rule that fires. */
static void choose_fault(const struct http_message *request, struct fault *ret_fault)
{
	ret_fault->action = ACT_NONE;
	pthread_mutex_lock(&proxy.lock);
	for (unsigned i = 0; i < proxy.rule_count; i++) {
		struct rule *rule = &proxy.rules[i];
		if ((strcmp(rule->method, "*") != 0 &&
		     strcmp(rule->method, request->method) != 0) ||
		    fnmatch(rule->glob, request->target, 0) != 0 || rule->left == 0)
			continue;
		if (rule->skip > 0) {
			rule->skip--;
			continue;
		}
		if (rule->share < 1 && (double)(random_locked() >> 11) * 0x1p-53 >= rule->share)
			continue;
		rule->left -= rule->left != UINT64_MAX;
		rule->hits++;
		proxy.faults++;
		*ret_fault = rule->fault;
		break;
	}
	pthread_mutex_unlock(&proxy.lock);
}

/* -- counting -- */

static const char *kind_of(const struct http_message *request)
{
	const char *query = strchr(request->target, '?');
	if (query != NULL &&
	    (strstr(query, "uploads") != NULL || strstr(query, "uploadId=") != NULL))
		return "multipart";
	if (query != NULL &&
	    (strstr(query, "list-type=") != NULL || strstr(query, "prefix=") != NULL))
		return "list";
	if (query != NULL && strstr(query, "delete") != NULL)
		return "delete-many";
	static const char *const folders[] = {"packs", "refs", "gc"};
	for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++) {
		char part[16];
		snprintf(part, sizeof(part), "/%s/", folders[i]);
		if (strstr(request->target, part) != NULL)
			return folders[i];
	}
	return "other";
}

static void begin_request(void)
{
	pthread_mutex_lock(&proxy.lock);
	proxy.busy++;
	if (proxy.busy > proxy.busy_max)
		proxy.busy_max = proxy.busy;
	pthread_mutex_unlock(&proxy.lock);
}

struct account {
	int64_t start_us, up, down;
	int status; /* that the client saw; 0: none */
};

static void end_request(const struct http_message *request, const struct account *account,
                        const struct fault *fault)
{
	char name[32];
	snprintf(name, sizeof(name), "%s %s", request->method, kind_of(request));
	pthread_mutex_lock(&proxy.lock);
	unsigned i = 0;
	while (i < proxy.kind_count && strcmp(proxy.kinds[i].name, name) != 0)
		i++;
	if (i == proxy.kind_count && i < KINDS_MAX) {
		memset(&proxy.kinds[i], 0, sizeof(proxy.kinds[i]));
		snprintf(proxy.kinds[i].name, sizeof(name), "%s", name);
		proxy.kind_count++;
	}
	if (i < KINDS_MAX) {
		proxy.kinds[i].requests++;
		proxy.kinds[i].up_bytes += (uint64_t)account->up;
		proxy.kinds[i].down_bytes += (uint64_t)account->down;
	}
	proxy.statuses[account->status >= 0 && account->status < 600 ? account->status : 0]++;
	proxy.busy--;
	if (proxy.log != NULL) {
		int64_t now = now_us();
		fprintf(proxy.log, "%.6f %.6f %s %s %s %d up %lld down %lld fault %d\n",
		        (double)(account->start_us - proxy.started_us) / 1e6,
		        (double)(now - account->start_us) / 1e6, request->method, request->target,
		        request->range[0] != '\0' ? request->range : "-", account->status,
		        (long long)account->up, (long long)account->down, fault->action);
		fflush(proxy.log);
	}
	pthread_mutex_unlock(&proxy.lock);
}

/* -- one request -- */

/* Connected already, and the upstream has not hung up meanwhile; else anew. */
static bool connect_upstream(struct connection *connection)
{
	char byte;
	int fd = connection->upstream.fd;
	if (fd >= 0 && recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 &&
	    (errno == EAGAIN || errno == EWOULDBLOCK))
		return true;
	if (fd >= 0)
		close(fd);
	connection->upstream.begin = connection->upstream.end = 0;
	connection->upstream.fd = -1;
	unsigned turn = proxy.turn++;
	for (unsigned i = 0; i < proxy.upstream_count; i++) {
		const struct sockaddr_in *address =
		        &proxy.upstreams[(turn + i) % proxy.upstream_count];
		fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0) {
			no_delay(fd);
			connection->upstream.fd = fd;
			return true;
		}
		close(fd);
	}
	return false;
}

static bool drop_body(struct reader *reader, int64_t length)
{
	while (length > 0) {
		if (reader->begin == reader->end && !read_more(reader))
			return false;
		int64_t here = (int64_t)(reader->end - reader->begin);
		int64_t take = here < length ? here : length;
		reader->begin += (size_t)take;
		length -= take;
	}
	return true;
}

static bool answer_error(int fd, const struct http_message *request, int status, const char *code)
{
	char body[256], text[512];
	int length = snprintf(body, sizeof(body),
	                      "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>%s</Code>"
	                      "<Message>made by the proxy</Message></Error>",
	                      code);
	if (status == 204 || status == 304)
		length = 0;
	int head = snprintf(text, sizeof(text),
	                    "HTTP/1.1 %d %s\r\nContent-Type: application/xml\r\n"
	                    "Content-Length: %d\r\n\r\n",
	                    status, code, length);
	if (strcmp(request->method, "HEAD") == 0)
		length = 0;
	memcpy(text + head, body, (size_t)length);
	return send_all(fd, text, (size_t)(head + length));
}

/* While the store hangs, whoever waits for it does so too, until it has had enough. */
static void hang(const struct connection *connection)
{
	while (proxy.outage == OUTAGE_HANG && wait_with(connection, 1000 * WATCH_MS))
		continue;
}

static bool abandon(struct connection *connection)
{
	hang(connection);
	reset_on_close(connection->client.fd);
	return false;
}

/* Instead of the store: errors of the proxy's own. True: the connection goes on. */
static bool refuse_request(struct connection *connection, const struct http_message *request,
                           int status, const char *code, struct account *account)
{
	connection->client.begin += request->head;
	if (!drop_body(&connection->client, request->body))
		return false;
	account->up = request->body;
	account->status = status;
	return wait_with(connection, proxy.latency_us) &&
	       answer_error(connection->client.fd, request, status, code);
}

/* Sends the request on and reads the head of its answer. */
static bool forward(struct connection *connection, const struct http_message *request,
                    const struct fault *fault, struct http_message *ret_answer,
                    struct account *account)
{
	int64_t all = (int64_t)request->head + request->body;
	if (fault->action == ACT_CUT_UPLOAD) {
		pump(connection, &connection->client, connection->upstream.fd,
		     place_of(&fault->where, request->head, request->body));
		reset_on_close(connection->upstream.fd);
		return false;
	}
	int64_t sent = pump(connection, &connection->client, connection->upstream.fd, all);
	account->up = sent > (int64_t)request->head ? sent - (int64_t)request->head : 0;
	/* An upstream may answer early and hang up, so the answer is read in any case. */
	if (!read_answer(&connection->upstream, request, ret_answer))
		return false;
	ret_answer->close |= sent < all;
	return true;
}

/* True: the connection goes on. */
static bool handle_request(struct connection *connection, const struct http_message *request,
                           const struct fault *fault, struct account *account)
{
	struct http_message answer;
	if (fault->action == ACT_RESET)
		return abandon(connection);
	if (fault->action == ACT_ANSWER)
		return refuse_request(connection, request, fault->status, fault->code, account);
	if (!connect_upstream(connection))
		return refuse_request(connection, request, 503, "NoServerIsAvailable", account);
	if (!forward(connection, request, fault, &answer, account))
		return abandon(connection);
	if (!wait_with(connection, proxy.latency_us))
		return abandon(connection);
	if (fault->action == ACT_LOSE)
		return abandon(connection);
	if (fault->action == ACT_DELAY && !wait_with(connection, (int64_t)(fault->seconds * 1e6)))
		return abandon(connection);
	if (fault->action == ACT_ANSWER_AFTER) {
		account->status = fault->status;
		connection->upstream.begin += answer.head;
		return drop_body(&connection->upstream, answer.body) &&
		       answer_error(connection->client.fd, request, fault->status, fault->code);
	}
	int64_t got = pass_answer(connection, &answer, fault);
	account->down = got > (int64_t)answer.head ? got - (int64_t)answer.head : 0;
	account->status = got >= (int64_t)answer.head ? answer.status : 0;
	if (got < (int64_t)answer.head + answer.body)
		return fault->action == ACT_CUT ? false : abandon(connection);
	return !answer.close && !request->close;
}

/* -- control -- */

static void print_text(FILE *out, const char *text)
{
	fputc('"', out);
	for (; *text != '\0'; text++) {
		if (*text == '"' || *text == '\\')
			fputc('\\', out);
		fputc(*text, out);
	}
	fputc('"', out);
}

static void print_stats(FILE *out)
{
	struct rusage usage;
	uint64_t requests = 0, up = 0, down = 0;
	getrusage(RUSAGE_SELF, &usage);
	fprintf(out, "{\"kinds\":{");
	for (unsigned i = 0; i < proxy.kind_count; i++) {
		const struct kind *kind = &proxy.kinds[i];
		fprintf(out, "%s\"%s\":{\"requests\":%llu,\"up_bytes\":%llu,\"down_bytes\":%llu}",
		        i > 0 ? "," : "", kind->name, (unsigned long long)kind->requests,
		        (unsigned long long)kind->up_bytes, (unsigned long long)kind->down_bytes);
		requests += kind->requests;
		up += kind->up_bytes;
		down += kind->down_bytes;
	}
	fprintf(out, "},\"statuses\":{");
	const char *comma = "";
	for (unsigned i = 0; i < 600; i++) {
		if (proxy.statuses[i] == 0)
			continue;
		fprintf(out, "%s\"%u\":%llu", comma, i, (unsigned long long)proxy.statuses[i]);
		comma = ",";
	}
	fprintf(out, "},\"rules\":[");
	for (unsigned i = 0; i < proxy.rule_count; i++) {
		fprintf(out, "%s{\"rule\":", i > 0 ? "," : "");
		print_text(out, proxy.rules[i].text);
		fprintf(out, ",\"hits\":%llu}", (unsigned long long)proxy.rules[i].hits);
	}
	fprintf(out,
	        "],\"requests\":%llu,\"up_bytes\":%llu,\"down_bytes\":%llu,\"faults\":%llu,"
	        "\"connections\":%llu,\"open\":%u,\"busy\":%u,\"busy_max\":%u,\"cpu_s\":%.3f}\n",
	        (unsigned long long)requests, (unsigned long long)up, (unsigned long long)down,
	        (unsigned long long)proxy.faults, (unsigned long long)proxy.accepted, proxy.open,
	        proxy.busy, proxy.busy_max,
	        (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	                (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
}

static const char *set_faults(char *text)
{
	static struct rule rules[RULES_MAX];
	unsigned count = 0;
	char *rest = text;
	for (char *line; (line = strsep(&rest, "\r\n")) != NULL;) {
		line += strspn(line, " \t");
		if (*line == '\0' || *line == '#')
			continue;
		if (count == RULES_MAX || !parse_rule(line, &rules[count]))
			return "no such fault: METHOD GLOB always|N%|xN[+SKIP] FAULT [ARGUMENT]";
		count++;
	}
	memcpy(proxy.rules, rules, count * sizeof(*rules));
	proxy.rule_count = count;
	return NULL;
}

/* Requests under way end badly when it begins; when it is over all is as before. */
static const char *set_outage(const char *text)
{
	static const char *const names[] = {"none", "hang", "refuse"};
	int outage = 0;
	while (outage < 3 && strcmp(text, names[outage]) != 0)
		outage++;
	if (outage == 3)
		return "outage: none, hang or refuse";
	if (outage == proxy.outage)
		return NULL;
	if (proxy.outage == OUTAGE_REFUSE)
		proxy.listener = listen_on(proxy.port, &proxy.port);
	proxy.outage = outage;
	if (outage == OUTAGE_NONE)
		return NULL;
	proxy.outages++;
	if (outage == OUTAGE_REFUSE) {
		shutdown(proxy.listener, SHUT_RDWR); /* wakes the thread that accepts */
		close(proxy.listener);
		proxy.listener = -1;
		for (struct connection *other = proxy.connections; other; other = other->next)
			if (!other->control)
				shutdown(other->client.fd, SHUT_RDWR);
	}
	return NULL;
}

static void reset_counters(void)
{
	memset(proxy.statuses, 0, sizeof(proxy.statuses));
	proxy.kind_count = 0;
	proxy.faults = proxy.accepted = 0;
	proxy.busy_max = proxy.busy;
	for (unsigned i = 0; i < proxy.rule_count; i++)
		proxy.rules[i].hits = 0;
}

/* GET stats; POST reset, faults, outage, latency (ms). The answer's text, or what was wrong. */
static const char *command(const char *name, char *body, FILE *out)
{
	char *end;
	if (strcmp(name, "stats") == 0)
		print_stats(out);
	else if (strcmp(name, "reset") == 0)
		reset_counters();
	else if (strcmp(name, "faults") == 0)
		return set_faults(body);
	else if (strcmp(name, "outage") == 0)
		return set_outage(body);
	else if (strcmp(name, "latency") == 0) {
		double ms = strtod(body, &end);
		if (end == body || *end != '\0' || ms < 0)
			return "latency: milliseconds";
		proxy.latency_us = (int64_t)(ms * 1000);
	} else
		return "stats, reset, faults, outage, latency";
	return NULL;
}

static bool handle_control(struct connection *connection, const struct http_message *request)
{
	struct reader *client = &connection->client;
	size_t all = request->head + (size_t)request->body, size = 0, head;
	char *text = NULL, line[128];
	if (request->body > (1 << 20) || !need(client, all))
		return false;
	char *body = strndup(client->bytes + request->head, (size_t)request->body);
	client->begin += all;
	FILE *out = open_memstream(&text, &size);
	pthread_mutex_lock(&proxy.lock);
	const char *wrong = command(request->target + strlen("/-proxy/"), body, out);
	pthread_mutex_unlock(&proxy.lock);
	if (wrong != NULL)
		fprintf(out, "%s\n", wrong);
	fclose(out);
	head = (size_t)snprintf(line, sizeof(line), "HTTP/1.1 %s\r\nContent-Length: %zu\r\n\r\n",
	                        wrong != NULL ? "400 Bad Request" : "200 OK", size);
	bool good = send_all(client->fd, line, head) && send_all(client->fd, text, size);
	free(text);
	free(body);
	return good;
}

/* -- connections -- */

static void serve(struct connection *connection)
{
	struct http_message request;
	bool more = true;
	while (more && read_request(&connection->client, &request)) {
		struct account account = {.start_us = now_us()};
		struct fault fault = {.action = ACT_NONE};
		if (strncmp(request.target, "/-proxy/", 8) == 0) {
			more = handle_control(connection, &request);
			continue;
		}
		begin_request();
		unsigned outages = proxy.outages;
		hang(connection);
		if (proxy.outages == outages && proxy.outage == OUTAGE_NONE) {
			choose_fault(&request, &fault);
			more = handle_request(connection, &request, &fault, &account);
		} else {
			more = abandon(connection);
		}
		end_request(&request, &account, &fault);
	}
}

static void *connection_thread(void *argument)
{
	struct connection *connection = argument;
	serve(connection);
	pthread_mutex_lock(&proxy.lock);
	if (connection->next != NULL)
		connection->next->previous = connection->previous;
	if (connection->previous != NULL)
		connection->previous->next = connection->next;
	else
		proxy.connections = connection->next;
	proxy.open--;
	pthread_mutex_unlock(&proxy.lock);
	int fds[] = {connection->client.fd, connection->upstream.fd, connection->pipe[0],
	             connection->pipe[1]};
	for (size_t i = 0; i < sizeof(fds) / sizeof(*fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(connection->client.bytes);
	free(connection->upstream.bytes);
	free(connection);
	return NULL;
}

static struct reader reader_make(int fd)
{
	struct reader reader = {.fd = fd, .bytes = malloc(HEAD_BYTES_MAX)};
	if (reader.bytes == NULL)
		die("no memory");
	reader.capacity = HEAD_BYTES_MAX;
	return reader;
}

static void start_connection(int fd, bool control)
{
	struct connection *connection = calloc(1, sizeof(*connection));
	pthread_attr_t attributes;
	pthread_t thread;
	if (connection == NULL)
		die("no memory");
	no_delay(fd);
	connection->client = reader_make(fd);
	connection->upstream = reader_make(-1);
	connection->pipe[0] = connection->pipe[1] = -1;
	connection->control = control;
	pthread_mutex_lock(&proxy.lock);
	connection->next = proxy.connections;
	if (connection->next != NULL)
		connection->next->previous = connection;
	proxy.connections = connection;
	proxy.accepted += !control;
	proxy.open++;
	pthread_mutex_unlock(&proxy.lock);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attributes, 256 << 10);
	if (pthread_create(&thread, &attributes, connection_thread, connection) != 0)
		die("no thread");
	pthread_attr_destroy(&attributes);
}

static void *control_thread(void *argument)
{
	for (;;) {
		int fd = accept4(proxy.control, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			start_connection(fd, true);
	}
	return NULL;
}

static void accept_all(void)
{
	for (;;) {
		pthread_mutex_lock(&proxy.lock);
		int listener = proxy.listener;
		pthread_mutex_unlock(&proxy.lock);
		struct pollfd poll_fd = {.fd = listener, .events = POLLIN};
		if (listener < 0 || poll(&poll_fd, 1, WATCH_MS) <= 0) {
			if (listener < 0)
				usleep(1000 * WATCH_MS);
			continue;
		}
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0)
			start_connection(fd, false);
	}
}

static void add_upstream(const char *text)
{
	char host[256], port[16];
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
	if (strncmp(text, "http://", 7) == 0)
		text += 7;
	if (proxy.upstream_count == UPSTREAMS_MAX ||
	    sscanf(text, "%255[^:]:%15[0-9]", host, port) != 2 ||
	    getaddrinfo(host, port, &hints, &found) != 0) {
		fprintf(stderr, "s3_proxy: no such upstream: %s\n", text);
		exit(2);
	}
	memcpy(&proxy.upstreams[proxy.upstream_count++], found->ai_addr,
	       sizeof(struct sockaddr_in));
	freeaddrinfo(found);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"port", required_argument, NULL, 'p'},
	                                        {"latency-ms", required_argument, NULL, 'l'},
	                                        {"seed", required_argument, NULL, 's'},
	                                        {"log", required_argument, NULL, 'o'},
	                                        {0}};
	int option, port = 0;
	proxy.random = 0x9e3779b97f4a7c15ull;
	while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (option == 'p')
			port = atoi(optarg);
		else if (option == 'l')
			proxy.latency_us = (int64_t)(strtod(optarg, NULL) * 1000);
		else if (option == 's')
			proxy.random ^= strtoull(optarg, NULL, 10) * 0xbf58476d1ce4e5b9ull;
		else if (option != 'o' || (proxy.log = fopen(optarg, "ae")) == NULL)
			die("usage: s3_proxy [--port N] [--latency-ms N] [--seed N] [--log FILE] "
			    "HOST:PORT...");
	}
	for (int i = optind; i < argc; i++)
		add_upstream(argv[i]);
	if (proxy.upstream_count == 0) {
		fprintf(stderr, "s3_proxy: HOST:PORT of a gateway is missing\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	proxy.started_us = now_us();
	proxy.listener = listen_on(port, &proxy.port);
	proxy.control = listen_on(0, &proxy.control_port);
	pthread_t thread;
	if (pthread_create(&thread, NULL, control_thread, NULL) != 0)
		die("no thread");
	printf("%d %d\n", proxy.port, proxy.control_port);
	fflush(stdout);
	accept_all();
}
