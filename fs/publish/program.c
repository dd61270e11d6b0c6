/*
 * program — hides how a threaded process starts another one safely, and how its end, its output
 * and its time limit are waited for together.
 *
 * fork, not vfork or posix_spawn: a child that shares our memory while it changes its user would
 * make the daemon as killable and readable as that user's processes. Between fork and exec only
 * system calls are made: another thread may have held any lock. The user is changed by raw system
 * calls, since the C library's would try to change all threads, which the child does not have.
 */
#include "fs/publish/program.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE_MS 2000        /* from SIGTERM to SIGKILL */
#define TICK_MS 100          /* how often `cancelled` is asked */
#define DRAIN_MAX (1u << 20) /* read of what is in the pipe when the program has ended */
#define DESCRIPTOR_FIRST 10  /* ours stay clear of those the program gets */
#define DESCRIPTOR_STATUS 3  /* in the child, until exec closes it */
#define LEFT_OUT_TEXT_BYTES 64

void program_result_release(struct program_result *result)
{
	buffer_release(&result->output);
	*result = (struct program_result){0};
}

/* -- the child -- */

enum step { STEP_SESSION = 1, STEP_DESCRIPTORS, STEP_USER, STEP_DIRECTORY, STEP_EXEC };
struct failure {
	int step;
	int system_errno;
};
struct launch {
	const struct program *program;
	bool change_user;
	gid_t *groups;
	int group_count;
	int input, output, status; /* from DESCRIPTOR_FIRST on */
};

static int set_user(const struct launch *launch)
{
	uid_t uid = launch->program->uid, uids[3];
	gid_t gid = launch->program->gid, gids[3];
	if (launch->change_user &&
	    (syscall(SYS_setgroups, (size_t)launch->group_count, launch->groups) < 0 ||
	     syscall(SYS_setresgid, gid, gid, gid) < 0 ||
	     syscall(SYS_setresuid, uid, uid, uid) < 0))
		return errno;
	/* A set-user-ID daemon, a system call with 16-bit ids: whatever the reason, not with these.
	 */
	if (getresuid(&uids[0], &uids[1], &uids[2]) < 0 ||
	    getresgid(&gids[0], &gids[1], &gids[2]) < 0)
		return errno;
	for (int i = 0; i < 3; i++)
		if (uids[i] != uid || (launch->change_user && gids[i] != gid))
			return EPERM;
	if (uid != 0 && syscall(SYS_setresuid, 0, 0, 0) == 0)
		return EPERM;
	/* Changing the user has cleared what was set before. Whoever kills the daemon ends what
	 * it runs; so nothing outlives the time limit that nobody watches any more. */
	return prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 ? errno : 0;
}

static void reset_signals(void)
{
	/* The kernel's own call, with what it takes for "default": the C library keeps two numbers
	 * to itself, which may have been inherited ignored all the same. */
	static const uint64_t by_default[8];
	sigset_t none;
	for (int number = 1; number < NSIG; number++)
		syscall(SYS_rt_sigaction, number, by_default, NULL,
		        sizeof(uint64_t)); /* but for two */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static int set_descriptors(const struct launch *launch)
{
	if (dup2(launch->input, STDIN_FILENO) < 0 || dup2(launch->output, STDOUT_FILENO) < 0 ||
	    dup2(launch->output, STDERR_FILENO) < 0 ||
	    dup3(launch->status, DESCRIPTOR_STATUS, O_CLOEXEC) < 0 ||
	    close_range(DESCRIPTOR_STATUS + 1, ~0U, 0) < 0)
		return errno;
	return 0;
}

static void __attribute__((noreturn)) run_child(const struct launch *launch)
{
	struct failure failure = {.step = STEP_SESSION};
	int status = launch->status;
	if (setsid() < 0)
		failure.system_errno = errno;
	if (!failure.system_errno) {
		reset_signals();
		umask(0022);
		failure.step = STEP_DESCRIPTORS;
		failure.system_errno = set_descriptors(launch);
	}
	if (!failure.system_errno) {
		status = DESCRIPTOR_STATUS;
		failure.step = STEP_USER;
		failure.system_errno = set_user(launch);
	}
	if (!failure.system_errno) {
		failure.step = STEP_DIRECTORY;
		failure.system_errno = chdir(launch->program->directory) < 0 ? errno : 0;
	}
	if (!failure.system_errno) {
		failure.step = STEP_EXEC;
		execve(launch->program->argv[0], (char *const *)launch->program->argv,
		       (char *const *)launch->program->environment);
		failure.system_errno = errno;
	}
	/* Into an empty pipe this neither blocks nor is it short. */
	if (write(status, &failure, sizeof failure) < 0)
		_exit(126);
	_exit(127);
}

/* -- the parent: starting -- */

struct output {
	uint8_t *bytes; /* the first `head` ones, and at least the last `tail` ones */
	size_t head, tail, used;
	uint64_t total;
};
struct run {
	const struct program *program;
	pid_t pid;
	int process, output_fd, status_fd;
	struct output output;
	int64_t started_ms;
	int64_t look_ms; /* when `cancelled` is asked next */
	int64_t stop_ms; /* when the next signal is due */
	bool terminated, cancelled, timed_out;
};

static void run_cleanup(struct run *run)
{
	close_descriptor(&run->process);
	close_descriptor(&run->output_fd);
	close_descriptor(&run->status_fd);
	free(run->output.bytes);
}

static void launch_cleanup(struct launch *launch)
{
	close_descriptor(&launch->input);
	close_descriptor(&launch->output);
	close_descriptor(&launch->status);
	free(launch->groups);
}

/* Moves a descriptor out of the way of those that the child gets. */
static int move_up(int *descriptor)
{
	int moved = *descriptor < DESCRIPTOR_FIRST
	                    ? fcntl(*descriptor, F_DUPFD_CLOEXEC, DESCRIPTOR_FIRST)
	                    : *descriptor;
	if (moved < 0)
		return error_system(errno);
	if (moved != *descriptor)
		close_descriptor(descriptor);
	*descriptor = moved;
	return 0;
}

static int open_pipe(int *ret_read, int *ret_write)
{
	int ends[2];
	if (pipe2(ends, O_CLOEXEC) < 0)
		return error_system(errno);
	*ret_read = ends[0];
	*ret_write = ends[1];
	if (fcntl(ends[0], F_SETFL, O_NONBLOCK) < 0)
		return error_system(errno);
	return move_up(ret_write);
}

static int open_descriptors(struct launch *launch, struct run *run)
{
	int error = open_pipe(&run->output_fd, &launch->output);
	if (!error)
		error = open_pipe(&run->status_fd, &launch->status);
	if (error < 0)
		return error;
	launch->input = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return launch->input < 0 ? error_system(errno) : move_up(&launch->input);
}

/* The user's entry; NULL when he has none, which is no error. `text` is where it lies. */
static struct passwd *find_user(uid_t uid, struct passwd *entry, char *text, size_t size)
{
	struct passwd *found = NULL;
	return getpwuid_r(uid, entry, text, size, &found) == 0 ? found : NULL;
}

static int find_groups(struct launch *launch)
{
	struct passwd entry;
	char text[16384];
	const struct passwd *user = find_user(launch->program->uid, &entry, text, sizeof text);
	int count = 64, result = -1;
	for (int tries = 0; result < 0 && tries < 8; tries++) {
		gid_t *groups = realloc(launch->groups, (size_t)count * sizeof *groups);
		if (!groups)
			return -ERR_NO_MEMORY;
		launch->groups = groups;
		launch->group_count = count;
		groups[0] = launch->program->gid;
		if (!user) {
			launch->group_count = 1;
			return 0;
		}
		result = getgrouplist(user->pw_name, launch->program->gid, groups,
		                      &launch->group_count);
		count = launch->group_count > count ? launch->group_count : 2 * count;
	}
	return result < 0 ? -ERR_TOO_LARGE : 0;
}

/* An ignored SIGCHLD, inherited from whoever started us, would take away how programs end. */
static void keep_ends_of_children(void)
{
	struct sigaction now;
	if (sigaction(SIGCHLD, NULL, &now) < 0 ||
	    (now.sa_handler != SIG_IGN && !(now.sa_flags & SA_NOCLDWAIT)))
		return;
	if (now.sa_handler == SIG_IGN)
		now.sa_handler = SIG_DFL;
	now.sa_flags &= ~SA_NOCLDWAIT;
	sigaction(SIGCHLD, &now, NULL);
}

static int start(const struct launch *launch, struct run *run)
{
	sigset_t all, before;
	keep_ends_of_children();
	/* No handler of ours may run in the child. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	run->started_ms = clock_monotonic_ms();
	run->pid = fork();
	int fork_errno = errno;
	if (run->pid == 0)
		run_child(launch);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (run->pid < 0)
		return error_system(fork_errno);
	run->stop_ms = run->started_ms + run->program->timeout_ms;
	return 0;
}

/* -- the parent: until it ends -- */

static int output_init(struct output *output, size_t max)
{
	output->head = max / 2;
	output->tail = max - output->head;
	output->bytes = malloc(output->head + 2 * output->tail + 1);
	return output->bytes ? 0 : -ERR_NO_MEMORY;
}

/* Reads what is there. False: no more will come. */
static bool output_read(struct output *output, int fd)
{
	size_t capacity = output->head + 2 * output->tail;
	uint8_t piece[16384];
	ssize_t got = read(fd, piece, sizeof piece);
	if (got <= 0)
		return got < 0 && (errno == EAGAIN || errno == EINTR);
	const uint8_t *from = piece;
	size_t left = (size_t)got;
	output->total += left;
	while (left && output->tail) {
		if (output->used == capacity) {
			memmove(output->bytes + output->head,
			        output->bytes + capacity - output->tail, output->tail);
			output->used = output->head + output->tail;
		}
		size_t part = capacity - output->used < left ? capacity - output->used : left;
		memcpy(output->bytes + output->used, from, part);
		output->used += part;
		from += part;
		left -= part;
	}
	return true;
}

static int output_finish(const struct output *output, struct program_result *result)
{
	size_t max = output->head + output->tail;
	char text[LEFT_OUT_TEXT_BYTES];
	struct buffer *out = &result->output;
	result->output_cut = output->total > max;
	if (!result->output_cut) {
		buffer_append(out, output->bytes, output->used);
	} else {
		snprintf(text, sizeof text, "\n[... %llu bytes left out ...]\n",
		         (unsigned long long)(output->total - max));
		buffer_append(out, output->bytes, output->head);
		buffer_append(out, text, strlen(text));
		buffer_append(out, output->bytes + output->used - output->tail, output->tail);
	}
	buffer_u8(out, 0);
	if (!out->failed)
		out->length--;
	return buffer_check(out);
}

/* The process has not been reaped, so neither its number nor its group's is anybody else's. The
 * group is not there before setsid. */
static void signal_all(const struct run *run, int number)
{
	kill(run->pid, number);
	kill(-run->pid, number);
}

static void watch_time(struct run *run)
{
	const struct program *program = run->program;
	int64_t now_ms = clock_monotonic_ms();
	if (!run->terminated) {
		if (program->cancelled && now_ms >= run->look_ms) {
			run->cancelled = program->cancelled(program->context);
			run->look_ms = now_ms + TICK_MS;
		}
		run->timed_out = !run->cancelled && now_ms >= run->stop_ms;
		if (!run->cancelled && !run->timed_out)
			return;
		signal_all(run, SIGTERM);
		run->terminated = true;
		run->stop_ms = now_ms + GRACE_MS;
	} else if (now_ms >= run->stop_ms) {
		signal_all(run, SIGKILL);
		run->stop_ms = now_ms + GRACE_MS;
	}
}

static void wait_for_end(struct run *run)
{
	struct pollfd waits[2] = {{.fd = run->process, .events = POLLIN},
	                          {.fd = run->output_fd, .events = POLLIN}};
	for (;;) {
		int64_t left_ms = run->stop_ms - clock_monotonic_ms();
		int wait_ms = left_ms < 0 ? 0 : left_ms > TICK_MS ? TICK_MS : (int)left_ms;
		int ready = poll(waits, ARRAY_SIZE(waits), wait_ms);
		if (ready > 0 && waits[1].revents && !output_read(&run->output, run->output_fd))
			waits[1].fd = -1;
		if (ready > 0 && waits[0].revents)
			return;
		watch_time(run);
	}
}

static int reap(const struct run *run, struct program_result *result)
{
	siginfo_t info = {0};
	int r;
	do
		r = waitid(P_PID, (id_t)run->pid, &info, WEXITED);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return error_system(errno);
	bool exited = info.si_code == CLD_EXITED;
	result->exit_code = exited ? info.si_status : -1;
	result->signal = exited ? 0 : info.si_status;
	return 0;
}

/* Ends the rest of its group, takes what it had said by then, and reaps it. */
static int finish(struct run *run, struct program_result *result)
{
	uint64_t until = run->output.total + DRAIN_MAX, before;
	signal_all(run, SIGKILL);
	int error = reap(run, result);
	result->took_ms = clock_monotonic_ms() - run->started_ms;
	result->timed_out = run->timed_out;
	do
		before = run->output.total;
	while (output_read(&run->output, run->output_fd) && run->output.total > before &&
	       run->output.total < until);
	return error ? error : output_finish(&run->output, result);
}

static int fail_launch(const struct program *program, const struct failure *failure,
                       struct message *message)
{
	static const char *const steps[] = {
	        [STEP_SESSION] = "a session of its own",
	        [STEP_DESCRIPTORS] = "its descriptors",
	        [STEP_USER] = "the rights of its user",
	};
	const char *path = program->argv[0];
	int error = error_system(failure->system_errno);
	const char *why = error_text(error);
	switch (failure->step) {
	case STEP_DIRECTORY:
		return fail(message, error, "user %u cannot enter %s to run %s: %s", program->uid,
		            program->directory, path, why);
	case STEP_EXEC:
		if (failure->system_errno == ENOEXEC)
			why = "no program; a script needs #! and its interpreter in the first line";
		if (failure->system_errno == ENOENT && access(path, F_OK) == 0)
			why = "the interpreter in its first line is not there";
		return fail(message, error, "user %u cannot run %s: %s", program->uid, path, why);
	default:
		return fail(message, error, "%s did not get %s: %s", path, steps[failure->step],
		            why);
	}
}

int program_run(const struct program *program, struct program_result *ret_result,
                struct message *message)
{
	CLEANUP(run_cleanup)
	struct run run = {.program = program, .process = -1, .output_fd = -1, .status_fd = -1};
	CLEANUP(launch_cleanup)
	struct launch launch = {.program = program, .input = -1, .output = -1, .status = -1};
	CLEANUP(program_result_release) struct program_result result = {0};
	struct failure failure;

	launch.change_user = geteuid() == 0;
	if (!launch.change_user && (program->uid != geteuid() || program->uid != getuid()))
		return fail(message, -ERR_REFUSED,
		            "%s would have to run as user %u, which only root can make it do",
		            program->argv[0], program->uid);
	int error = launch.change_user ? find_groups(&launch) : 0;
	if (!error)
		error = output_init(&run.output, program->output_max);
	if (!error)
		error = open_descriptors(&launch, &run);
	if (!error)
		error = start(&launch, &run);
	if (error < 0)
		return fail(message, error, "%s cannot be started: %s", program->argv[0],
		            error_text(error));
	close_descriptor(&launch.output);
	close_descriptor(&launch.status);
	run.process = (int)syscall(SYS_pidfd_open, run.pid, 0);
	if (run.process < 0)
		error = error_system(errno);
	else
		wait_for_end(&run);
	int ended = finish(&run, &result);
	if (!error)
		error = ended;
	if (error < 0)
		return fail(message, error, "how %s ended is not known: %s", program->argv[0],
		            error_text(error));
	if (read(run.status_fd, &failure, sizeof failure) == sizeof failure)
		return fail_launch(program, &failure, message);
	if (run.cancelled)
		return fail(message, -ERR_INTERRUPTED, "%s was cancelled", program->argv[0]);
	*ret_result = result;
	result = (struct program_result){0};
	return 0;
}

/* -- the environment -- */

int program_environment(uid_t uid, const char *const *more, size_t count, char ***ret_environment)
{
	struct passwd entry;
	char text[16384], home[4200], name[300];
	const struct passwd *user = find_user(uid, &entry, text, sizeof text);
	snprintf(home, sizeof home, "HOME=%.4095s", user && user->pw_dir[0] ? user->pw_dir : "/");
	if (user)
		snprintf(name, sizeof name, "USER=%.255s", user->pw_name);
	else
		snprintf(name, sizeof name, "USER=%u", uid);
	const char *const first[] = {"PATH=" PROGRAM_PATH, home, name, "LANG=C.UTF-8"};
	size_t total = ARRAY_SIZE(first) + count, bytes = (total + 1) * sizeof(char *);
	for (size_t i = 0; i < total; i++)
		bytes += strlen(i < ARRAY_SIZE(first) ? first[i] : more[i - ARRAY_SIZE(first)]) + 1;
	char **environment = malloc(bytes);
	if (!environment)
		return -ERR_NO_MEMORY;
	char *at = (char *)(environment + total + 1);
	for (size_t i = 0; i < total; i++) {
		const char *from = i < ARRAY_SIZE(first) ? first[i] : more[i - ARRAY_SIZE(first)];
		environment[i] = at;
		at = stpcpy(at, from) + 1;
	}
	environment[total] = NULL;
	*ret_environment = environment;
	return 0;
}
