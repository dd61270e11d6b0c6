/*
 * supervisor — hides when a server that died is started again, and when that is given up.
 */
#include "tools/supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define RESTARTS_WITHIN_MS 60000
#define DEATHS_MAX 4096
#define SOON_MS 200 /* who dies so soon after its start makes the next one wait: */
#define PAUSE_MS_MIN 10
#define PAUSE_MS_MAX 1000
#define LATER_MS 1000          /* when the server says so */
#define STUCK_MS 50            /* for the rest of a killed server, before it is looked at */
#define PIDFD_OF_THREAD O_EXCL /* PIDFD_THREAD, Linux 6.9 */

extern char **environ;

struct supervisor {
	const struct supervision *supervision;
	struct keep *keep;
	int keep_fd;
	int device, lock;        /* -1: not handed over */
	int signals, sockets[2]; /* ours, the servers' */
	sigset_t before;
	pid_t server;    /* 0: none */
	int witness;     /* readable once its threads are being killed; -1: not known */
	int64_t gone_ms; /* when that was seen; 0: it was not */
	int status;      /* of the last one */
	bool told_to_end;
	int64_t started_ms, pause_ms;
	int64_t deaths[DEATHS_MAX]; /* a ring: when */
	uint64_t death_count;
};

/* -- what servers say -- */

enum word { WORD_HAND_OVER = 'h', WORD_WITNESS = 'w', WORD_PART = 'p' };

static int send_descriptors(int supervisor, char word, const int fds[2])
{
	char room[CMSG_SPACE(2 * sizeof(int))] = {0};
	struct iovec part = {.iov_base = &word, .iov_len = 1};
	struct msghdr message = {.msg_iov = &part,
	                         .msg_iovlen = 1,
	                         .msg_control = room,
	                         .msg_controllen = sizeof(room)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(2 * sizeof(int));
	memcpy(CMSG_DATA(header), fds, 2 * sizeof(int));
	return sendmsg(supervisor, &message, MSG_NOSIGNAL) == 1 ? 0 : error_system(errno);
}

int supervisor_hand_over(int supervisor, int device, int lock)
{
	return send_descriptors(supervisor, WORD_HAND_OVER, (const int[]){device, lock});
}

void supervisor_part(int supervisor)
{
	const char word = WORD_PART;
	if (send(supervisor, &word, 1, MSG_NOSIGNAL) < 0)
		errno = 0; /* it is gone, and holds nothing any more */
}

static int steal_descriptor(int *fd)
{
	int stolen = *fd;
	*fd = -1;
	return stolen;
}

static void listen_to_server(struct supervisor *self)
{
	char word = 0, room[CMSG_SPACE(2 * sizeof(int))];
	struct iovec part = {.iov_base = &word, .iov_len = 1};
	struct msghdr message = {.msg_iov = &part,
	                         .msg_iovlen = 1,
	                         .msg_control = room,
	                         .msg_controllen = sizeof(room)};
	if (recvmsg(self->sockets[0], &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) != 1)
		return;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	int fds[2] = {-1, -1};
	if (header && header->cmsg_type == SCM_RIGHTS &&
	    header->cmsg_len == CMSG_LEN(2 * sizeof(int)))
		memcpy(fds, CMSG_DATA(header), sizeof(fds));
	if (word == WORD_HAND_OVER && self->device < 0) {
		self->device = steal_descriptor(&fds[0]);
		self->lock = steal_descriptor(&fds[1]);
	} else if (word == WORD_WITNESS) {
		close_descriptor(&self->witness);
		self->witness = steal_descriptor(&fds[0]);
	} else if (word == WORD_PART) {
		close_descriptor(&self->device);
	}
	close_descriptor(&fds[0]);
	close_descriptor(&fds[1]);
}

/* -- the server's life -- */

static void release(struct supervisor *self)
{
	close_descriptor(&self->device);
	close_descriptor(&self->lock);
	close_descriptor(&self->witness);
	close_descriptor(&self->signals);
	close_descriptor(&self->sockets[0]);
	close_descriptor(&self->sockets[1]);
	keep_close(steal(&self->keep));
	close_descriptor(&self->keep_fd);
}

/*
 * The last thread of a killed server may be stuck: telling the kernel to forget a name waits for a
 * directory's lock, which a client holds that waits for the server. So waiting for the process to
 * be gone could last for ever, and a thread that does nothing tells of its death instead.
 */
static void *witness_run(void *context)
{
	int *pipe_fd = context;
	int pidfd = (int)syscall(SYS_pidfd_open, gettid(), PIDFD_OF_THREAD);
	if (write(*pipe_fd, &pidfd, sizeof(pidfd)) < 0)
		return NULL;
	for (;;)
		pause();
	return NULL;
}

static void witness_start(int supervisor)
{
	int fds[2], pidfd = -1;
	pthread_t thread;
	sigset_t all, before;
	if (pipe2(fds, O_CLOEXEC) < 0)
		return;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, witness_run, &fds[1]) == 0) {
		pthread_detach(thread);
		if (read(fds[0], &pidfd, sizeof(pidfd)) == sizeof(pidfd) && pidfd >= 0)
			send_descriptors(supervisor, WORD_WITNESS, (const int[]){pidfd, pidfd});
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	close_descriptor(&pidfd);
	close(fds[0]);
	close(fds[1]);
}

/* In the new process. */
static int serve(struct supervisor *self)
{
	struct supervision supervision = *self->supervision;
	struct heritage heritage = {
	        .device = self->device, .lock = self->lock, .supervisor = self->sockets[1]};
	CLEANUP(close_descriptor) int keep_fd = self->keep_fd;
	CLEANUP(close_descriptor) int socket = self->sockets[1];
	CLEANUP(close_descriptor) int lock = self->lock;
	sigset_t before = self->before;
	self->device = self->lock = self->keep_fd = self->sockets[1] = -1;
	release(self); /* the mapping is not inherited, only what describes it */
	free(self);
	prctl(PR_SET_NAME, "laked");
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (keep_open(keep_fd, &heritage.keep) < 0)
		return SERVE_LATER;
	struct keep_root *root = keep_root(heritage.keep);
	for (size_t i = 0; i < KEEP_TELLING_MAX; i++)
		root->telling[i] = 0; /* of the one before */
	root->starts++;
	witness_start(socket);
	int code = supervision.serve(supervision.context, &heritage);
	keep_close(heritage.keep);
	return code;
}

/* Has the connection ended: unmounted? */
static bool device_gone(const struct supervisor *self)
{
	struct pollfd device = {.fd = self->device};
	return poll(&device, 1, 0) > 0;
}

static void say(const char *text)
{
	fprintf(stderr, "laked: %s\n", text);
}

static void say_death(const struct supervisor *self)
{
	char text[128];
	if (WIFSIGNALED(self->status))
		snprintf(text, sizeof(text), "the server was ended by signal %d (%s)",
		         WTERMSIG(self->status), strsignal(WTERMSIG(self->status)));
	else
		snprintf(text, sizeof(text), "the server ended with code %d",
		         WEXITSTATUS(self->status));
	say(text);
}

static int exit_code(const struct supervisor *self)
{
	return WIFEXITED(self->status) ? WEXITSTATUS(self->status) : 128 + WTERMSIG(self->status);
}

static void unmount(const struct supervisor *self)
{
	const char *path = keep_root(self->keep)->mountpoint;
	const char *arguments[] = {"fusermount3", "-u", "-q", "-z", "--", path, NULL};
	pid_t child;
	if (!path[0] || umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		return;
	if (posix_spawnp(&child, arguments[0], NULL, NULL, (char *const *)arguments, environ) == 0)
		while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
			continue;
}

static void reap(struct supervisor *self)
{
	int status;
	pid_t child;
	while ((child = waitpid(-1, &status, WNOHANG)) > 0) {
		if (child != self->server)
			continue; /* one that could not end before */
		self->status = status;
		self->server = 0;
	}
}

/* Signals, words of the server, its death. Returns when something happened, or after the time
 * (negative: none). */
static void watch(struct supervisor *self, int timeout_ms)
{
	struct signalfd_siginfo signal;
	struct pollfd fds[3] = {{.fd = self->signals, .events = POLLIN},
	                        {.fd = self->sockets[0], .events = POLLIN},
	                        {.fd = self->gone_ms ? -1 : self->witness, .events = POLLIN}};
	if (poll(fds, 3, timeout_ms) <= 0)
		return;
	if (fds[1].revents)
		listen_to_server(self);
	if (fds[2].revents)
		self->gone_ms = clock_monotonic_ms();
	if (!fds[0].revents || read(self->signals, &signal, sizeof(signal)) != sizeof(signal))
		return;
	if (signal.ssi_signo != SIGCHLD) {
		self->told_to_end = true;
		if (self->server)
			kill(self->server, (int)signal.ssi_signo);
	} else {
		reap(self);
	}
}

/*
 * A thread that is dead, or told the kernel something when it was killed. What it calls now
 * (/proc/PID/syscall) would say the same, but is shown to root alone when the server has secrets.
 */
static bool thread_tells(const struct supervisor *self, const char *id)
{
	const struct keep_root *root = keep_root(self->keep);
	char path[320], text[256] = "";
	char state = 0;
	for (size_t i = 0; i < KEEP_TELLING_MAX; i++)
		if (root->telling[i] == atoi(id))
			return true;
	snprintf(path, sizeof(path), "/proc/%d/task/%s/stat", (int)self->server, id);
	FILE *file = fopen(path, "re");
	if (!file)
		return errno == ENOENT || errno == ESRCH;
	const char *name_end = fgets(text, sizeof(text), file) ? strrchr(text, ')') : NULL;
	fclose(file);
	return name_end && sscanf(name_end, ") %c", &state) == 1 && (state == 'Z' || state == 'X');
}

/* Whatever is left of the server only tells the kernel something: it writes to no file any more. */
static bool only_tells(const struct supervisor *self)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/task", (int)self->server);
	DIR *directory = opendir(path);
	bool tells = directory != NULL;
	struct dirent *entry;
	while (tells && (entry = readdir(directory)) != NULL)
		tells = entry->d_name[0] == '.' || thread_tells(self, entry->d_name);
	if (directory)
		closedir(directory);
	return tells;
}

static void await_death(struct supervisor *self)
{
	while (self->server) {
		watch(self, self->gone_ms ? STUCK_MS : -1);
		if (self->server && self->gone_ms &&
		    clock_monotonic_ms() - self->gone_ms >= STUCK_MS && only_tells(self)) {
			say("the server that was killed cannot end before another one serves");
			self->status = SIGKILL;
			self->server = 0;
		}
	}
	self->gone_ms = 0;
	listen_to_server(self); /* its last words */
	close_descriptor(&self->witness);
}

/* Too many deaths in too short a time? And how long to wait before the next start. */
static bool worth_another(struct supervisor *self)
{
	int64_t now_ms = clock_monotonic_ms();
	unsigned restarts = self->supervision->restarts;
	bool later = WIFEXITED(self->status) && WEXITSTATUS(self->status) == SERVE_LATER;
	if (later) {
		self->pause_ms = LATER_MS;
		return true;
	}
	say_death(self);
	if (now_ms - self->started_ms >= SOON_MS)
		self->pause_ms = 0;
	else if (self->pause_ms < PAUSE_MS_MIN)
		self->pause_ms = PAUSE_MS_MIN;
	else if (self->pause_ms < PAUSE_MS_MAX)
		self->pause_ms *= 2;
	if (restarts >= DEATHS_MAX)
		restarts = DEATHS_MAX - 1;
	uint64_t first = self->death_count - restarts; /* so many deaths ago */
	self->deaths[self->death_count % DEATHS_MAX] = now_ms;
	self->death_count++;
	return self->death_count <= restarts ||
	       now_ms - self->deaths[first % DEATHS_MAX] > RESTARTS_WITHIN_MS;
}

/* The server is gone. True: start another. */
static bool decide(struct supervisor *self, int *ret_code)
{
	struct keep_root *root = keep_root(self->keep);
	*ret_code = exit_code(self);
	if (root->ended || self->device < 0 || device_gone(self))
		return false;
	if (!self->told_to_end && !root->resends) {
		say_death(self);
		say("not started again: this kernel (before 6.9) cannot repeat what it asked; "
		    "`lakectl mount` replaces the mount");
		return false; /* dead, as without a supervisor */
	}
	if (!self->told_to_end && worth_another(self))
		return true;
	if (!self->told_to_end)
		say("died too often, unmounting");
	unmount(self);
	return false;
}

static int start(struct supervisor *self)
{
	self->started_ms = clock_monotonic_ms();
	fflush(NULL);
	pid_t server = fork();
	if (server < 0)
		return error_system(errno);
	self->server = server;
	return 0;
}

static struct supervisor *supervisor_new(const struct supervision *supervision)
{
	struct supervisor *self = calloc(1, sizeof(*self));
	sigset_t signals;
	if (!self)
		return NULL;
	self->supervision = supervision;
	self->keep_fd = self->device = self->lock = self->sockets[0] = self->sockets[1] = -1;
	self->witness = -1;
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGHUP);
	sigprocmask(SIG_BLOCK, &signals, &self->before);
	self->signals = signalfd(-1, &signals, SFD_CLOEXEC);
	if (self->signals >= 0 &&
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, self->sockets) == 0 &&
	    keep_create(&self->keep_fd) >= 0 && keep_open(self->keep_fd, &self->keep) >= 0)
		return self;
	release(self);
	free(self);
	return NULL;
}

int supervise(const struct supervision *supervision)
{
	struct supervisor *self = supervisor_new(supervision);
	int starter = supervision->starter, code = 1;
	bool again = true;
	if (!self) {
		say("no supervisor can be had: out of memory or descriptors");
		return 1;
	}
	while (again) {
		for (int64_t until_ms = clock_monotonic_ms() + self->pause_ms, left_ms;
		     !self->told_to_end && (left_ms = until_ms - clock_monotonic_ms()) > 0;)
			watch(self, (int)left_ms);
		if (start(self) < 0) {
			self->pause_ms = LATER_MS;
			continue;
		}
		if (self->server == 0)
			return serve(self);
		prctl(PR_SET_NAME, "laked-keep");
		close_descriptor(&starter);
		await_death(self);
		again = decide(self, &code);
	}
	release(self);
	free(self);
	return code;
}
