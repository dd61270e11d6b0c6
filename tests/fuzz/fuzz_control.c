/*
 * The control socket, over a lake in memory's file system. The first byte chooses: bytes as they
 * are or framed, by a peer who may, or by one who may not, and how much of the end is withheld. Who
 * may not gets one refusal whatever he sends; the lake answers afterwards in any case.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "fs/commands/control.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define NOBODY 65534
#define ROUNDS_MAX 3000 /* then a new lake: this one has grown */

static char directory[64];
static struct lake *lake;
static struct control *control;
static unsigned rounds;

static void check_at(bool holds, int line)
{
	if (holds)
		return;
	fprintf(stderr, "line %d: %s\n", line, strerror(errno));
	abort();
}
#define check(holds) check_at(holds, __LINE__)

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	(void)status, (void)kind, (void)walk;
	return remove(path);
}

static void end(void)
{
	control_stop(control);
	lake_close(lake);
	control = NULL;
	lake = NULL;
	nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Commands that run programs or call receivers of the input's choosing. */
static int deny(void *context, const struct caller *caller, const cJSON *request, cJSON **ret_reply)
{
	const cJSON *name = cJSON_GetObjectItemCaseSensitive(request, "command");
	(void)context, (void)caller;
	if (!cJSON_IsString(name) ||
	    (!strstr(name->valuestring, "audit") && !strstr(name->valuestring, "webhook")))
		return -ERR_UNSUPPORTED;
	*ret_reply = cJSON_CreateObject();
	return 0;
}

static void begin(void)
{
	struct message message = {{0}};
	snprintf(directory, sizeof directory, "/dev/shm/fuzz_control.%d", (int)getpid());
	check(lake_init(directory, NULL, "fuzz", &message) == 0);
	check(lake_open(directory, &lake, &message) == 0);
	check(control_start(lake, deny, NULL, &control, &message) == 0);
}

/* Credentials are a thread's own where only the kernel is asked. */
static int connect_as(uid_t uid)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	snprintf(address.sun_path, sizeof address.sun_path, "%s/control.sock", directory);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(fd >= 0);
	if (uid)
		check(syscall(SYS_setresuid, -1, uid, -1) == 0);
	int failed = connect(fd, (struct sockaddr *)&address, sizeof address);
	if (uid)
		check(syscall(SYS_setresuid, -1, 0, -1) == 0);
	if (failed == 0)
		return fd;
	close(fd);
	return -1;
}

static void send_bytes(int fd, const uint8_t *bytes, size_t size, bool framed)
{
	uint8_t header[4];
	store_u32(header, (uint32_t)size);
	if (framed)
		(void)send(fd, header, sizeof header, MSG_NOSIGNAL);
	while (size) {
		ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			break;
		bytes += sent;
		size -= (size_t)sent;
	}
	shutdown(fd, SHUT_WR);
}

/* All that is answered, whose frames must be whole and JSON. */
static void receive(int fd, bool refused)
{
	CLEANUP(buffer_release) struct buffer answer = {0};
	uint8_t piece[65536];
	ssize_t got;
	unsigned frames = 0;
	/* The fuzzer's own timer interrupts. */
	while ((got = recv(fd, piece, sizeof piece, 0)) > 0 || (got < 0 && errno == EINTR))
		if (got > 0)
			buffer_append(&answer, piece, (size_t)got);
	if (got < 0 && errno == ECONNRESET)
		return; /* it was answered before all was read */
	for (size_t at = 0; at < answer.length; frames++) {
		check(answer.length - at >= 4);
		size_t length = load_u32(answer.data + at);
		check(length <= answer.length - at - 4);
		cJSON *json = cJSON_ParseWithLength((char *)answer.data + at + 4, length);
		check(json != NULL);
		cJSON_Delete(json);
		at += 4 + length;
	}
	if (refused)
		check(frames == 1 && memmem(answer.data, answer.length, "may not control", 15));
	else
		check(frames > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (geteuid() != 0 || size < 1)
		return 0;
	if (!lake) {
		begin();
		if (!rounds)
			atexit(end);
	}
	bool stranger = data[0] % 8 == 7;
	int fd = connect_as(stranger ? NOBODY : 0);
	check(fd >= 0);
	send_bytes(fd, data + 1, size - 1, data[0] % 4 != 0);
	receive(fd, stranger);
	close(fd);
	if (++rounds % ROUNDS_MAX == 0)
		end();
	return 0;
}
