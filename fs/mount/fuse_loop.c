/*
 * Hides which thread serves a request, and when another one has to.
 *
 * A worker is seated (reads, or is in a handler and reads again afterwards), at work without a
 * seat (its handler took long), or idle. A seat that becomes free goes to the idle worker that
 * was active last, or to a new one; when all are at work it stays free, and whoever is done first
 * takes it.
 *
 * The watcher finds seated workers whose handler takes long. It sleeps while nothing is served; the
 * first request after that sets its timer, which wakes nobody then and there.
 */
#include "fs/mount/fuse_loop.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "fs/mount/fuse_internal.h"
#include "fs/mount/fuse_pace.h"
#include "store/thread.h"

#define TICK_NS 500000    /* a handler seen at two ticks in a row takes long */
#define IDLE_END_S 10     /* idle workers end after it, but for the first */
#define SAMPLE_REQUESTS 8 /* after so many: does the next one wait already? */
#define WINDOW_SAMPLES 8  /* samples to decide by */
#define WINDOW_CROWDED 7  /* so many of them found one, in two windows in a row: a seat more */
#define WINDOW_QUIET 3    /* at most so many: a seat less */

#define FOLLOW_MS_MIN 10   /* how often a worker looks where its client runs ... */
#define FOLLOW_MS_MAX 1000 /* ... when it cannot stay there */

#define LINGER_NS 25000 /* a reader stays awake for the next request so long ... */
#define LINGER_TRIES 8  /* ... but not after so many times in vain, */
#define LINGER_PAUSE 64 /* save for one in so many requests */

/* libfuse's own: FUSE_MAX_MAX_PAGES, FUSE_BUFFER_HEADER_SIZE. */
#define REQUEST_PAGES_MAX 256
#define REQUEST_HEADER_MAX 0x1000

#define STOP_READING SIGUSR1
#define STOP_AGAIN_NS 20000000

struct worker {
	struct loop *loop;
	pthread_t thread;
	struct fuse_buf buffer;
	atomic_bool seated;       /* written under the loop's lock */
	_Atomic(uint64_t) serial; /* odd: in a handler */
	uint64_t serial_watched;  /* the watcher's */
	bool ended;               /* guarded by the loop's lock, as what follows */
	pthread_cond_t wake;
	struct worker *next, *next_idle;
	/* its own: */
	unsigned requests, samples, waiting;
	unsigned lingered_in_vain, not_lingered;
	bool crowded;        /* the last window */
	bool moved;          /* to the client's processor, at the last look */
	int64_t answered_ns; /* 0: not the sole reader since */
	struct pace_window window;
	unsigned followed; /* the pace's serial then */
	int64_t follow_at_ms, follow_ms;
};
struct loop {
	struct fuse_session *session;
	unsigned threads_max, seats_max;
	pthread_mutex_t lock; /* guards the workers' lists and states; innermost */
	struct worker *workers, *idle;
	struct pace pace;
	unsigned threads;
	atomic_uint seats; /* written under the lock */
	bool ending;
	int problem; /* a negative errno of reading */
	int exit_fd; /* an eventfd: the session exited */
	/* The watcher is awake or its timer is set; else a worker has to set it. */
	atomic_bool watched;
	atomic_bool watcher_ends;
	int timer_fd;
	pthread_t watcher;
};

/* -- seats; all under the lock -- */

static void *work(void *context);

static void worker_free(struct worker *worker)
{
	free(worker->buffer.mem);
	pthread_cond_destroy(&worker->wake);
	free(worker);
}

/* Those that ended have only to leave: joining them takes no time. */
static void free_ended(struct loop *loop)
{
	for (struct worker **at = &loop->workers, *worker; (worker = *at);) {
		if (!worker->ended) {
			at = &worker->next;
			continue;
		}
		*at = worker->next;
		pthread_join(worker->thread, NULL);
		worker_free(worker);
	}
}

/* Other signals are the main thread's business. */
static int start_thread(pthread_t *ret_thread, void *(*run)(void *), void *context)
{
	sigset_t all, before;
	sigfillset(&all);
	sigdelset(&all, STOP_READING);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int problem = pthread_create(ret_thread, NULL, run, context);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -problem;
}

static int add_worker(struct loop *loop)
{
	struct worker *worker = calloc(1, sizeof(*worker));
	if (!worker)
		return -ENOMEM;
	worker->loop = loop;
	worker->seated = true;
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&worker->wake, &monotonic);
	pthread_condattr_destroy(&monotonic);
	int result = start_thread(&worker->thread, work, worker);
	if (result < 0) {
		pthread_cond_destroy(&worker->wake);
		free(worker);
		return result;
	}
	worker->next = loop->workers;
	loop->workers = worker;
	loop->threads++;
	loop->seats++;
	return 0;
}

/* Should no thread be had, the seat goes to whoever is done first. */
static void fill_seat(struct loop *loop)
{
	struct worker *worker = loop->idle;
	if (loop->ending)
		return;
	if (worker) {
		loop->idle = worker->next_idle;
		loop->seats++;
		worker->seated = true;
		pthread_cond_signal(&worker->wake);
	} else if (loop->threads < loop->threads_max) {
		add_worker(loop);
	}
}

static void leave_seat(struct worker *worker)
{
	worker->seated = false;
	worker->loop->seats--;
}

static void idle_remove(struct loop *loop, struct worker *worker)
{
	struct worker **at = &loop->idle;
	while (*at != worker)
		at = &(*at)->next_idle;
	*at = worker->next_idle;
}

/* Until there is a seat: true; or nothing to do for long: false. The lowest of the stack stays for
 * ever, so that a seat given away seldom has to wait for a new thread. */
static bool wait_for_seat(struct worker *worker)
{
	struct loop *loop = worker->loop;
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_END_S;
	if (!loop->ending)
		free_ended(loop);
	worker->next_idle = loop->idle;
	loop->idle = worker;
	bool last = !worker->next_idle, late = false;
	while (!worker->seated && !loop->ending && !late) {
		if (last)
			pthread_cond_wait(&worker->wake, &loop->lock);
		else
			late = pthread_cond_timedwait(&worker->wake, &loop->lock, &until) ==
			       ETIMEDOUT;
	}
	if (worker->seated)
		return true;
	idle_remove(loop, worker);
	return false;
}

/* -- workers -- */

/* Back from a handler that took long. */
static bool sit_down(struct worker *worker)
{
	struct loop *loop = worker->loop;
	pthread_mutex_lock(&loop->lock);
	if (!worker->seated && !loop->ending && loop->seats == 0) {
		worker->seated = true;
		loop->seats++;
	}
	bool seated = worker->seated || wait_for_seat(worker);
	if (!seated) {
		worker->ended = true;
		loop->threads--;
	}
	pthread_mutex_unlock(&loop->lock);
	worker->samples = worker->waiting = 0;
	worker->crowded = false;
	return seated;
}

static int64_t monotonic_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The processor that a thread ran on last (proc_pid_stat(5), field 39), or -1. */
static int processor_of(uint32_t thread)
{
	char path[32], text[1024];
	snprintf(path, sizeof(path), "/proc/%u/stat", thread);
	CLEANUP(close_descriptor) int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (length < 0)
		return -1;
	text[length] = '\0';
	const char *at = strrchr(text, ')'); /* ends field 2 */
	for (int field = 2; at && field < 39; field++)
		at = strchr(at + 1, ' ');
	return at ? atoi(at) : -1;
}

static bool move_to(int processor)
{
	cpu_set_t allowed, one;
	if (processor < 0 || processor >= CPU_SETSIZE ||
	    sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || !CPU_ISSET(processor, &allowed))
		return false;
	CPU_ZERO(&one);
	CPU_SET(processor, &one);
	if (sched_setaffinity(0, sizeof(one), &one) != 0)
		return false;
	sched_setaffinity(0, sizeof(allowed), &allowed);
	return true;
}

/* A sole reader measures how long its client takes to ask again, its own waking included. */
static void note_gap(struct worker *worker)
{
	struct loop *loop = worker->loop;
	int64_t mean_ns;
	if (!worker->answered_ns ||
	    !pace_gap(&worker->window, &loop->pace, monotonic_ns() - worker->answered_ns, &mean_ns))
		return;
	pthread_mutex_lock(&loop->lock);
	pace_measured(&loop->pace, mean_ns);
	pthread_mutex_unlock(&loop->lock);
}

static bool is_sole_reader(const struct worker *worker)
{
	return worker->seated &&
	       atomic_load_explicit(&worker->loop->seats, memory_order_relaxed) == 1;
}

/* Does it pay to stay awake for a moment? */
static bool lingers(const struct worker *worker)
{
	return pace_awake(&worker->loop->pace) && worker->lingered_in_vain < LINGER_TRIES;
}

/*
 * A sole reader that does not linger goes where its client runs. The kernel wakes a thread where it
 * ran last, when that processor is idle; so two that once ended up apart stay apart, and each
 * request wakes two idle processors: up to ten times slower in a virtual machine. Where the
 * scheduler parts them on purpose (a shared cache), or with several clients, it is tried ever more
 * seldom.
 */
static void follow_client(struct worker *worker)
{
	const struct fuse_in_header *header = worker->buffer.mem;
	int64_t now_ms = clock_monotonic_ms();
	unsigned serial = pace_serial(&worker->loop->pace);
	if ((now_ms < worker->follow_at_ms && serial == worker->followed) || header->pid == 0)
		return;
	worker->followed = serial;
	int processor = processor_of(header->pid);
	bool apart = processor >= 0 && processor != sched_getcpu();
	if (!apart || !worker->moved)
		worker->follow_ms = FOLLOW_MS_MIN;
	else if (worker->follow_ms < FOLLOW_MS_MAX)
		worker->follow_ms *= 2;
	worker->moved = apart && move_to(processor);
	worker->follow_at_ms = now_ms + worker->follow_ms;
}

/* Adapt the number of seats to how often a request has to wait for a thread. */
static void sample(struct worker *worker)
{
	struct loop *loop = worker->loop;
	struct pollfd device = {.fd = fuse_session_fd(loop->session), .events = POLLIN};
	worker->requests = 0;
	worker->waiting += poll(&device, 1, 0) > 0;
	if (is_sole_reader(worker) && !lingers(worker))
		follow_client(worker);
	if (++worker->samples < WINDOW_SAMPLES)
		return;
	bool crowded = worker->waiting >= WINDOW_CROWDED, quiet = worker->waiting <= WINDOW_QUIET;
	bool more = crowded && worker->crowded;
	worker->crowded = crowded && !more;
	worker->samples = worker->waiting = 0;
	if (!more && !quiet)
		return;
	pthread_mutex_lock(&loop->lock);
	if (more && loop->seats < loop->seats_max)
		fill_seat(loop);
	else if (quiet && loop->seats > 1 && worker->seated)
		leave_seat(worker);
	pthread_mutex_unlock(&loop->lock);
}

static void start_watcher(struct loop *loop)
{
	const struct itimerspec soon = {.it_value.tv_nsec = TICK_NS};
	if (!atomic_exchange(&loop->watched, true))
		timerfd_settime(loop->timer_fd, 0, &soon, NULL);
}

static void serve(struct worker *worker)
{
	struct loop *loop = worker->loop;
	/* In this order, and the watcher the other way round: one of us sees the other. */
	atomic_fetch_add(&worker->serial, 1);
	if (!atomic_load(&loop->watched))
		start_watcher(loop);
	fuse_session_process_buf(loop->session, &worker->buffer);
	atomic_fetch_add_explicit(&worker->serial, 1, memory_order_release);
	if (worker->seated && ++worker->requests >= SAMPLE_REQUESTS)
		sample(worker);
}

static void session_ended(struct loop *loop, int problem)
{
	const uint64_t one = 1;
	fuse_session_exit(loop->session);
	pthread_mutex_lock(&loop->lock);
	if (loop->problem == 0)
		loop->problem = problem;
	pthread_mutex_unlock(&loop->lock);
	if (write(loop->exit_fd, &one, sizeof(one)) < 0)
		abort(); /* an eventfd takes 2^64 - 2 of them */
}

/*
 * Wait for the next request awake, for a moment: a client that works through many files asks again
 * at once, and to wake a halted processor takes longer than most requests. Only while that pays:
 * after a few moments in vain it is tried once in a while.
 */
static void linger(struct worker *worker)
{
	struct pollfd device = {.fd = fuse_session_fd(worker->loop->session), .events = POLLIN};
	if (!pace_awake(&worker->loop->pace) ||
	    (!lingers(worker) && ++worker->not_lingered < LINGER_PAUSE))
		return;
	worker->not_lingered = 0;
	int64_t until_ns = monotonic_ns() + LINGER_NS;
	bool asked;
	do
		asked = poll(&device, 1, 0) != 0;
	while (!asked && monotonic_ns() < until_ns);
	if (asked)
		worker->lingered_in_vain = 0;
	else if (worker->lingered_in_vain < LINGER_TRIES)
		worker->lingered_in_vain++;
}

/*
 * What libfuse would allocate, with every page there: a process that is being killed gets no more
 * pages, and a request on its way to such a place fails instead of being kept for a successor. NULL
 * is as good but for that.
 */
static void *ready_memory(void)
{
	size_t size = REQUEST_PAGES_MAX * (size_t)getpagesize() + REQUEST_HEADER_MAX;
	volatile char *bytes = malloc(size);
	/* Not memset: with malloc before it compilers make it calloc, which touches nothing. */
	for (size_t at = 0; bytes && at < size; at += (size_t)getpagesize())
		bytes[at] = 0;
	if (bytes)
		bytes[size - 1] = 0;
	return (void *)(uintptr_t)bytes;
}

static void about_to_block(void *context)
{
	struct worker *worker = context;
	if (!worker->seated)
		return;
	pthread_mutex_lock(&worker->loop->lock);
	if (worker->seated) {
		leave_seat(worker);
		fill_seat(worker->loop);
	}
	pthread_mutex_unlock(&worker->loop->lock);
}

static void *work(void *context)
{
	struct worker *worker = context;
	struct loop *loop = worker->loop;
	thread_when_blocking(about_to_block, worker);
	worker->buffer.mem = ready_memory();
	while (!fuse_session_exited(loop->session)) {
		worker->answered_ns = is_sole_reader(worker) ? monotonic_ns() : 0;
		if (worker->answered_ns)
			linger(worker);
		int got = fuse_session_receive_buf(loop->session, &worker->buffer);
		if (got == -EINTR || got == -EAGAIN)
			continue;
		note_gap(worker);
		if (got <= 0) {
			session_ended(loop, got);
			break;
		}
		serve(worker);
		if (!worker->seated && !sit_down(worker))
			break;
	}
	thread_when_blocking(NULL, NULL);
	return NULL;
}

/* -- the watcher -- */

/* Take the seats of those who are slow. Is anybody at work? */
static bool watch_seats(struct loop *loop)
{
	bool active = false;
	pthread_mutex_lock(&loop->lock);
	for (struct worker *worker = loop->workers; worker; worker = worker->next) {
		uint64_t serial = worker->serial;
		bool moved = serial != worker->serial_watched;
		worker->serial_watched = serial;
		if (!worker->seated || (!moved && !(serial & 1)))
			continue;
		active = true;
		if (!moved) {
			leave_seat(worker);
			fill_seat(loop);
		}
	}
	pthread_mutex_unlock(&loop->lock);
	return active;
}

static void *watch(void *context)
{
	struct loop *loop = context;
	const struct timespec tick = {.tv_nsec = TICK_NS};
	uint64_t expired;
	while (!loop->watcher_ends) {
		if (watch_seats(loop)) {
			atomic_store(&loop->watched, true);
			nanosleep(&tick, NULL);
			continue;
		}
		if (atomic_exchange(&loop->watched, false))
			continue; /* look once more: somebody may have relied on us */
		if (read(loop->timer_fd, &expired, sizeof(expired)) < 0 && errno != EINTR)
			break;
	}
	return NULL;
}

/* -- the loop -- */

static int loop_open(struct loop *loop)
{
	cpu_set_t processors;
	loop->seats_max = 1;
	if (sched_getaffinity(0, sizeof(processors), &processors) == 0)
		loop->seats_max = (unsigned)CPU_COUNT(&processors);
	pthread_mutex_init(&loop->lock, NULL);
	loop->exit_fd = eventfd(0, EFD_CLOEXEC);
	loop->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
	return loop->exit_fd < 0 || loop->timer_fd < 0 ? -errno : 0;
}

static void loop_close(struct loop *loop)
{
	close_descriptor(&loop->exit_fd);
	close_descriptor(&loop->timer_fd);
	pthread_mutex_destroy(&loop->lock);
}

/* -- signals that end the session -- */

static const int ending_signals[] = {SIGTERM, SIGINT, SIGHUP};
/* The one loop whose waiting they end. */
static struct fuse_session *ending_session;
static int ending_fd;

/* In whatever thread the kernel chose: that may be one that nobody waits for. */
static void end_session(int signal)
{
	const uint64_t one = 1;
	int error = errno;
	(void)signal;
	fuse_session_exit(ending_session);
	(void)!write(ending_fd, &one, sizeof(one));
	errno = error;
}

static void wait_for_exit(struct loop *loop)
{
	struct sigaction ours = {.sa_handler = end_session}, before[ARRAY_SIZE(ending_signals)];
	struct pollfd ended = {.fd = loop->exit_fd, .events = POLLIN};
	ending_session = loop->session;
	ending_fd = loop->exit_fd;
	for (size_t i = 0; i < ARRAY_SIZE(ending_signals); i++)
		sigaction(ending_signals[i], &ours, &before[i]);
	/* One that came before has set the session's mark. */
	while (!fuse_session_exited(loop->session))
		poll(&ended, 1, -1);
	for (size_t i = 0; i < ARRAY_SIZE(ending_signals); i++)
		sigaction(ending_signals[i], &before[i], NULL);
}

static void stop_reading(int signal)
{
	(void)signal; /* its arrival ends the read */
}

/* It may come just before the read that it is to end, hence again. Not to handlers: what they wait
 * for is to go on. (Cancelling threads would leave AddressSanitizer's marks on their stacks.) */
static void join_worker(struct worker *worker)
{
	struct timespec until;
	do {
		if (!(atomic_load(&worker->serial) & 1))
			pthread_kill(worker->thread, STOP_READING);
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += STOP_AGAIN_NS;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
	} while (pthread_timedjoin_np(worker->thread, NULL, &until) != 0);
}

static void end_workers(struct loop *loop)
{
	const struct sigaction stop = {.sa_handler = stop_reading};
	struct sigaction before;
	sigaction(STOP_READING, &stop, &before);
	pthread_mutex_lock(&loop->lock);
	loop->ending = true;
	for (struct worker *worker = loop->workers; worker; worker = worker->next)
		pthread_cond_signal(&worker->wake);
	pthread_mutex_unlock(&loop->lock);
	for (struct worker *worker = loop->workers, *next; worker; worker = next) {
		next = worker->next;
		join_worker(worker);
		worker_free(worker);
	}
	sigaction(STOP_READING, &before, NULL);
}

static void end_watcher(struct loop *loop)
{
	const struct itimerspec now = {.it_value.tv_nsec = 1};
	loop->watcher_ends = true;
	timerfd_settime(loop->timer_fd, 0, &now, NULL);
	pthread_join(loop->watcher, NULL);
}

int loop_run(struct fuse_session *session, unsigned threads_max)
{
	struct loop loop = {.session = session, .threads_max = threads_max};
	int result = loop_open(&loop);
	if (result == 0)
		result = start_thread(&loop.watcher, watch, &loop);
	if (result == 0) {
		pthread_mutex_lock(&loop.lock);
		result = add_worker(&loop);
		pthread_mutex_unlock(&loop.lock);
		if (result == 0)
			wait_for_exit(&loop);
		fuse_session_exit(session);
		end_watcher(&loop); /* before the workers that it looks at */
		end_workers(&loop);
		result = result < 0 ? result : loop.problem;
	}
	loop_close(&loop);
	return result;
}
