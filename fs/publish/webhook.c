/*
 * webhook — hides when which delivery is tried: a queue for each receiver, a few threads for all,
 * and how long is waited after a failure.
 *
 * A thread takes the delivery that is due first among the receivers nobody is busy with, so a
 * receiver that hangs holds up nobody but itself, until WORKERS_MAX of them hang.
 */
#include "fs/publish/webhook.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "fs/publish/webhook_attempt.h"
#include "store/thread.h"

#define BACKOFF_MS_MIN_DEFAULT 1000
#define BACKOFF_MS_MAX_DEFAULT 600000
#define GIVE_UP_MS_DEFAULT 86400000
#define ATTEMPT_MS_DEFAULT 15000
#define SPOOL_MAX_DEFAULT 10000
#define WORKERS_MAX 32

struct delivery {
	char name[SPOOL_NAME_LENGTH + 1];
	int64_t due_ms; /* monotonic */
	unsigned attempts;
	bool taken; /* by a thread, which may look at it without the lock */
	struct delivery *next;
};
struct receiver {
	char *url;
	struct delivery *first; /* in no order */
	size_t waiting;
	bool busy;            /* a thread has one of its deliveries */
	int64_t pause_end_ms; /* monotonic: none before that */
	unsigned pauses;      /* one after the other */
	char trouble[256];
	struct receiver *next;
};

struct webhooks {
	char *directory, *lake_id;
	struct webhooks_options options;
	void (*log)(void *context, const char *line);
	void *log_context;
	pthread_mutex_t lock; /* guards what follows; a leaf */
	pthread_cond_t changed;
	struct http *http; /* NULL until it is needed */
	struct receiver *receivers;
	struct webhook_statistics statistics;
	bool started, stopping;
	pthread_t workers[WORKERS_MAX];
	unsigned worker_count, idle_count;
};

static int64_t or_default(int64_t value, int64_t fallback)
{
	return value > 0 ? value : fallback;
}

int webhooks_open(const struct webhooks_options *options, struct webhooks **ret_webhooks)
{
	pthread_condattr_t attributes;
	struct webhooks *webhooks = calloc(1, sizeof *webhooks);
	if (!webhooks)
		return -ERR_NO_MEMORY;
	webhooks->options = *options;
	struct webhooks_options *set = &webhooks->options;
	set->directory = set->lake_id = NULL; /* borrowed until we return */
	set->backoff_ms_min = or_default(set->backoff_ms_min, BACKOFF_MS_MIN_DEFAULT);
	set->backoff_ms_max = or_default(set->backoff_ms_max, BACKOFF_MS_MAX_DEFAULT);
	set->give_up_ms = or_default(set->give_up_ms, GIVE_UP_MS_DEFAULT);
	set->attempt_ms = or_default(set->attempt_ms, ATTEMPT_MS_DEFAULT);
	set->spool_max = set->spool_max ? set->spool_max : SPOOL_MAX_DEFAULT;
	pthread_mutex_init(&webhooks->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&webhooks->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	webhooks->directory = strdup(options->directory);
	webhooks->lake_id = strdup(options->lake_id);
	if (!webhooks->directory || !webhooks->lake_id) {
		webhooks_close(webhooks);
		return -ERR_NO_MEMORY;
	}
	*ret_webhooks = webhooks;
	return 0;
}

static void receiver_free(struct receiver *receiver)
{
	for (struct delivery *delivery = receiver->first, *next; delivery; delivery = next) {
		next = delivery->next;
		free(delivery);
	}
	free(receiver->url);
	free(receiver);
}

void webhooks_close(struct webhooks *webhooks)
{
	if (!webhooks)
		return;
	pthread_mutex_lock(&webhooks->lock);
	webhooks->stopping = true;
	pthread_cond_broadcast(&webhooks->changed);
	pthread_mutex_unlock(&webhooks->lock);
	if (webhooks->http)
		http_abandon(webhooks->http);
	for (unsigned i = 0; i < webhooks->worker_count; i++) /* none is added any more */
		pthread_join(webhooks->workers[i], NULL);
	http_free(webhooks->http);
	for (struct receiver *receiver = webhooks->receivers, *next; receiver; receiver = next) {
		next = receiver->next;
		receiver_free(receiver);
	}
	pthread_cond_destroy(&webhooks->changed);
	pthread_mutex_destroy(&webhooks->lock);
	free(webhooks->directory);
	free(webhooks->lake_id);
	free(webhooks);
}

/* Under the lock. */
static int need_http(struct webhooks *webhooks, struct message *message)
{
	const struct http_options options = {.connections_max = WORKERS_MAX};
	return webhooks->http ? 0 : http_new(&options, &webhooks->http, message);
}

__attribute__((format(printf, 2, 3))) static void log_line(struct webhooks *webhooks,
                                                           const char *format, ...)
{
	char line[512];
	va_list arguments;
	if (!webhooks->log)
		return;
	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	webhooks->log(webhooks->log_context, line);
}

/* -- the queues; all under the lock -- */

static struct receiver *receiver_of(struct webhooks *webhooks, const char *url, bool make)
{
	struct receiver *receiver = webhooks->receivers;
	while (receiver && strcmp(receiver->url, url) != 0)
		receiver = receiver->next;
	if (receiver || !make)
		return receiver;
	receiver = calloc(1, sizeof *receiver);
	if (!receiver)
		return NULL;
	receiver->url = strdup(url);
	if (!receiver->url) {
		free(receiver);
		return NULL;
	}
	receiver->next = webhooks->receivers;
	webhooks->receivers = receiver;
	return receiver;
}

static int delivery_add(struct webhooks *webhooks, const char *url, const char *name)
{
	struct receiver *receiver = receiver_of(webhooks, url, true);
	struct delivery *delivery = receiver ? calloc(1, sizeof *delivery) : NULL;
	if (!delivery)
		return -ERR_NO_MEMORY;
	memcpy(delivery->name, name, sizeof delivery->name);
	delivery->next = receiver->first;
	receiver->first = delivery;
	receiver->waiting++;
	webhooks->statistics.waiting++;
	return 0;
}

static void delivery_drop(struct webhooks *webhooks, struct receiver *receiver,
                          struct delivery *delivery)
{
	struct delivery **link = &receiver->first;
	while (*link != delivery)
		link = &(*link)->next;
	*link = delivery->next;
	free(delivery);
	receiver->waiting--;
	webhooks->statistics.waiting--;
}

static int64_t due_at(const struct receiver *receiver, const struct delivery *delivery)
{
	return delivery->due_ms > receiver->pause_end_ms ? delivery->due_ms
	                                                 : receiver->pause_end_ms;
}

/* Due first; of those due at once the oldest. */
static bool is_sooner(const struct receiver *receiver, const struct delivery *delivery,
                      const struct receiver *than_receiver, const struct delivery *than)
{
	int64_t at = due_at(receiver, delivery), than_at = due_at(than_receiver, than);
	return at != than_at ? at < than_at : strcmp(delivery->name, than->name) < 0;
}

static struct delivery *next_due(const struct webhooks *webhooks, struct receiver **ret_receiver)
{
	struct delivery *best = NULL;
	for (struct receiver *receiver = webhooks->receivers; receiver; receiver = receiver->next)
		for (struct delivery *delivery = receiver->busy ? NULL : receiver->first; delivery;
		     delivery = delivery->next)
			if (!best || is_sooner(receiver, delivery, *ret_receiver, best)) {
				best = delivery;
				*ret_receiver = receiver;
			}
	return best;
}

/* Between half and all of it, doubled with each attempt. */
static int64_t backoff_ms(const struct webhooks *webhooks, unsigned attempts)
{
	int64_t wait = webhooks->options.backoff_ms_min;
	while (attempts-- && wait < webhooks->options.backoff_ms_max)
		wait *= 2;
	if (wait > webhooks->options.backoff_ms_max)
		wait = webhooks->options.backoff_ms_max;
	return wait / 2 + (int64_t)(random_u64() % (uint64_t)(wait / 2 + 1));
}

/* -- delivering -- */

/* Reads it, tries it, and brings the spool up to date; the file tells what is left to do. */
static void attempt_spooled(struct webhooks *webhooks, const char *name, int64_t total_ms,
                            struct attempt *ret_attempt)
{
	CLEANUP(spooled_release) struct spooled spooled = {0};
	*ret_attempt = (struct attempt){0};
	int error = spool_read(webhooks->directory, name, &spooled);
	if (error == -ERR_NOT_FOUND) /* somebody took it out */
		return;
	if (!error) {
		attempt_make(webhooks->http, &spooled, total_ms, ret_attempt);
	} else {
		ret_attempt->outcome = error == -ERR_CORRUPT ? ATTEMPT_REFUSED : ATTEMPT_AGAIN;
		snprintf(ret_attempt->trouble, sizeof ret_attempt->trouble, "%s: %s", name,
		         error_text(error));
	}
	bool old = clock_wall_ms() - spool_name_ms(name) > webhooks->options.give_up_ms;
	if (ret_attempt->outcome != ATTEMPT_TAKEN && old)
		ret_attempt->outcome = ATTEMPT_REFUSED;
	if (ret_attempt->outcome == ATTEMPT_TAKEN)
		spool_remove(webhooks->directory, name);
	else if (ret_attempt->outcome == ATTEMPT_REFUSED)
		spool_fail(webhooks->directory, name);
}

/* Under the lock. */
static void put_off(struct webhooks *webhooks, struct receiver *receiver, struct delivery *delivery,
                    const struct attempt *attempt)
{
	int64_t now = clock_monotonic_ms();
	int64_t wait = backoff_ms(webhooks, delivery->attempts++);
	delivery->due_ms = now + (wait > attempt->wait_ms ? wait : attempt->wait_ms);
	webhooks->statistics.retried++;
	if (attempt->outcome != ATTEMPT_PAUSE)
		return;
	wait = backoff_ms(webhooks, receiver->pauses++);
	receiver->pause_end_ms = now + (wait > attempt->wait_ms ? wait : attempt->wait_ms);
}

/* Under the lock. */
static void settle(struct webhooks *webhooks, struct receiver *receiver, struct delivery *delivery,
                   const struct attempt *attempt)
{
	receiver->busy = delivery->taken = false;
	if (attempt->outcome != ATTEMPT_PAUSE)
		receiver->pauses = 0;
	memcpy(receiver->trouble, attempt->trouble, sizeof receiver->trouble);
	if (attempt->outcome == ATTEMPT_TAKEN || attempt->outcome == ATTEMPT_REFUSED) {
		webhooks->statistics.delivered += attempt->outcome == ATTEMPT_TAKEN;
		webhooks->statistics.failed += attempt->outcome == ATTEMPT_REFUSED;
		delivery_drop(webhooks, receiver, delivery);
	} else {
		put_off(webhooks, receiver, delivery, attempt);
	}
}

/* Takes one that is due and comes back with the lock held. */
static void deliver(struct webhooks *webhooks, struct receiver *receiver, struct delivery *delivery)
{
	struct attempt attempt;
	char name[SPOOL_NAME_LENGTH + 1];
	bool troubled = receiver->trouble[0] != '\0';
	receiver->busy = delivery->taken = true;
	pthread_mutex_unlock(&webhooks->lock);
	attempt_spooled(webhooks, delivery->name, webhooks->options.attempt_ms, &attempt);
	pthread_mutex_lock(&webhooks->lock);
	if (webhooks->stopping && attempt.outcome == ATTEMPT_PAUSE) {
		receiver->busy = false; /* we gave up, not the receiver */
		return;
	}
	memcpy(name, delivery->name, sizeof name);
	settle(webhooks, receiver, delivery, &attempt);
	pthread_cond_broadcast(&webhooks->changed);
	pthread_mutex_unlock(&webhooks->lock);
	if (attempt.outcome == ATTEMPT_REFUSED)
		log_line(webhooks, "webhook given up, kept in %s/failed/%s: %s",
		         webhooks->directory, name, attempt.trouble);
	else if (attempt.outcome != ATTEMPT_TAKEN && !troubled)
		log_line(webhooks, "webhook: %s; it is tried again", attempt.trouble);
	pthread_mutex_lock(&webhooks->lock);
}

static void wait_until(struct webhooks *webhooks, int64_t due_ms)
{
	struct timespec until = {.tv_sec = due_ms / 1000, .tv_nsec = due_ms % 1000 * 1000000};
	webhooks->idle_count++;
	if (due_ms < 0)
		pthread_cond_wait(&webhooks->changed, &webhooks->lock);
	else
		pthread_cond_timedwait(&webhooks->changed, &webhooks->lock, &until);
	webhooks->idle_count--;
}

static void *work(void *argument);

/* Under the lock. Failing is no harm while there is another thread; the first one's failure is
 * told. */
static int need_worker(struct webhooks *webhooks)
{
	if (webhooks->idle_count || webhooks->worker_count == WORKERS_MAX || webhooks->stopping)
		return 0;
	int error = thread_start(&webhooks->workers[webhooks->worker_count], work, webhooks);
	if (!error)
		webhooks->worker_count++;
	return webhooks->worker_count ? 0 : error;
}

static void *work(void *argument)
{
	struct webhooks *webhooks = argument;
	struct receiver *receiver = NULL;
	pthread_mutex_lock(&webhooks->lock);
	while (!webhooks->stopping) {
		struct delivery *delivery = next_due(webhooks, &receiver);
		int64_t due_ms = delivery ? due_at(receiver, delivery) : -1;
		if (!delivery || due_ms > clock_monotonic_ms()) {
			wait_until(webhooks, due_ms);
			continue;
		}
		struct receiver *other = NULL;
		receiver->busy = true;
		if (next_due(webhooks, &other))
			need_worker(webhooks);
		deliver(webhooks, receiver, delivery);
	}
	pthread_mutex_unlock(&webhooks->lock);
	return NULL;
}

/* What an earlier process left. */
static int take_up(struct webhooks *webhooks)
{
	CLEANUP(buffer_release) struct buffer names = {0};
	int error = spool_list(webhooks->directory, &names);
	for (size_t at = 0; !error && at < names.length; at += SPOOL_NAME_LENGTH + 1) {
		CLEANUP(spooled_release) struct spooled spooled = {0};
		const char *name = (const char *)names.data + at;
		error = spool_read(webhooks->directory, name, &spooled);
		if (!error) {
			pthread_mutex_lock(&webhooks->lock);
			error = delivery_add(webhooks, spooled.url, name);
			pthread_mutex_unlock(&webhooks->lock);
		} else if (error == -ERR_CORRUPT || error == -ERR_NOT_FOUND) {
			log_line(webhooks, "webhook given up, kept in %s/failed/%s: %s",
			         webhooks->directory, name, error_text(error));
			spool_fail(webhooks->directory, name);
			error = 0;
		}
	}
	return error;
}

int webhooks_start(struct webhooks *webhooks, void (*log)(void *context, const char *line),
                   void *context, struct message *message)
{
	webhooks->log = log;
	webhooks->log_context = context;
	int error = take_up(webhooks);
	pthread_mutex_lock(&webhooks->lock);
	webhooks->started = true;
	if (!error && webhooks->receivers) {
		error = need_http(webhooks, message);
		if (!error)
			error = need_worker(webhooks);
	}
	pthread_mutex_unlock(&webhooks->lock);
	return error < 0 ? fail(message, error, "cannot take up the webhooks in %s: %s",
	                        webhooks->directory, error_text(error))
	                 : 0;
}

/* -- sending -- */

/* Under the lock: the oldest that can be dropped. */
static struct delivery *oldest(const struct webhooks *webhooks, struct receiver **ret_receiver)
{
	struct delivery *best = NULL;
	for (struct receiver *receiver = webhooks->receivers; receiver; receiver = receiver->next)
		for (struct delivery *delivery = receiver->first; delivery;
		     delivery = delivery->next)
			if (!delivery->taken && (!best || strcmp(delivery->name, best->name) < 0)) {
				best = delivery;
				*ret_receiver = receiver;
			}
	return best;
}

/* The spool is bounded: the oldest go first, they have waited in vain for longest. */
static void make_room(struct webhooks *webhooks)
{
	char name[SPOOL_NAME_LENGTH + 1] = "";
	struct receiver *receiver = NULL;
	pthread_mutex_lock(&webhooks->lock);
	struct delivery *delivery = webhooks->statistics.waiting >= webhooks->options.spool_max
	                                    ? oldest(webhooks, &receiver)
	                                    : NULL;
	if (delivery) {
		memcpy(name, delivery->name, sizeof name);
		delivery_drop(webhooks, receiver, delivery);
		webhooks->statistics.failed++;
	}
	pthread_mutex_unlock(&webhooks->lock);
	if (!name[0])
		return;
	spool_fail(webhooks->directory, name);
	log_line(webhooks, "webhook given up, kept in %s/failed/%s: too many wait",
	         webhooks->directory, name);
}

static void make_room_on_disk(struct webhooks *webhooks)
{
	CLEANUP(buffer_release) struct buffer names = {0};
	size_t step = SPOOL_NAME_LENGTH + 1;
	if (spool_list(webhooks->directory, &names) < 0)
		return;
	for (size_t at = 0; names.length - at >= webhooks->options.spool_max * step; at += step)
		spool_fail(webhooks->directory, (const char *)names.data + at);
}

static int prepare(struct webhooks *webhooks, const struct webhook_rule *rule,
                   const struct webhook_event *event, struct spooled *ret_spooled)
{
	spool_name(ret_spooled->name);
	ret_spooled->event = strdup(event->event);
	ret_spooled->url = strdup(rule->url);
	ret_spooled->secret_file = rule->secret_file ? strdup(rule->secret_file) : NULL;
	ret_spooled->body = webhook_body(webhooks->lake_id, ret_spooled->name, event);
	bool good = ret_spooled->event && ret_spooled->url && ret_spooled->body &&
	            !ret_spooled->secret_file == !rule->secret_file;
	return good ? 0 : -ERR_NO_MEMORY;
}

/* Without a daemon. */
static int send_now(struct webhooks *webhooks, const struct webhook_rule *rule, const char *name,
                    int64_t deadline_ms, struct message *message)
{
	struct attempt attempt = {.outcome = ATTEMPT_AGAIN,
	                          .trouble = "others did not answer in time"};
	int64_t left = deadline_ms - clock_monotonic_ms();
	if (left > 0)
		attempt_spooled(webhooks, name, left, &attempt);
	pthread_mutex_lock(&webhooks->lock);
	webhooks->statistics.delivered += attempt.outcome == ATTEMPT_TAKEN;
	webhooks->statistics.failed += attempt.outcome == ATTEMPT_REFUSED;
	pthread_mutex_unlock(&webhooks->lock);
	if (attempt.outcome == ATTEMPT_TAKEN)
		return 0;
	if (attempt.outcome == ATTEMPT_REFUSED)
		return fail(message, error_system(EREMOTEIO),
		            "webhook %s: %s; it is kept in %s/failed", rule->name, attempt.trouble,
		            webhooks->directory);
	fail(message, 0, "webhook %s: %s; the lake's next daemon tries again", rule->name,
	     attempt.trouble);
	return 1;
}

int webhook_send(struct webhooks *webhooks, const struct webhook_rule *rule,
                 const struct webhook_event *event, int64_t deadline_ms, struct message *message)
{
	CLEANUP(spooled_release) struct spooled spooled = {0};
	int error = prepare(webhooks, rule, event, &spooled);
	if (error < 0)
		return error;
	pthread_mutex_lock(&webhooks->lock);
	bool started = webhooks->started;
	error = need_http(webhooks, message);
	pthread_mutex_unlock(&webhooks->lock);
	if (error < 0)
		return error;
	if (started)
		make_room(webhooks);
	else
		make_room_on_disk(webhooks);
	error = spool_write(webhooks->directory, &spooled);
	if (error < 0)
		return fail(message, error, "webhook %s: cannot write into %s: %s", rule->name,
		            webhooks->directory, error_text(error));
	if (!started)
		return send_now(webhooks, rule, spooled.name, deadline_ms, message);
	pthread_mutex_lock(&webhooks->lock);
	error = delivery_add(webhooks, spooled.url, spooled.name);
	if (!error)
		error = need_worker(webhooks);
	pthread_cond_broadcast(&webhooks->changed);
	pthread_mutex_unlock(&webhooks->lock);
	return error < 0 ? fail(message, error, "webhook %s: %s; it waits for the next daemon",
	                        rule->name, error_text(error))
	                 : 0;
}

int webhook_try(struct webhooks *webhooks, const struct webhook_rule *rule,
                const struct webhook_event *event, struct message *message)
{
	CLEANUP(spooled_release) struct spooled spooled = {0};
	struct attempt attempt;
	int error = prepare(webhooks, rule, event, &spooled);
	if (error < 0)
		return error;
	pthread_mutex_lock(&webhooks->lock);
	error = need_http(webhooks, message);
	pthread_mutex_unlock(&webhooks->lock);
	if (error < 0)
		return error;
	attempt_make(webhooks->http, &spooled, webhooks->options.attempt_ms, &attempt);
	if (attempt.status) /* the message only if it was not taken */
		return attempt.outcome == ATTEMPT_TAKEN
		               ? attempt.status
		               : fail(message, attempt.status, "webhook %s: %s", rule->name,
		                      attempt.trouble);
	return fail(message, error_system(EREMOTEIO), "webhook %s: %s", rule->name,
	            attempt.trouble);
}

void webhook_standing(struct webhooks *webhooks, const char *url,
                      struct webhook_standing *ret_standing)
{
	*ret_standing = (struct webhook_standing){0};
	pthread_mutex_lock(&webhooks->lock);
	const struct receiver *receiver = receiver_of(webhooks, url, false);
	if (receiver) {
		ret_standing->waiting = receiver->waiting;
		memcpy(ret_standing->trouble, receiver->trouble, sizeof ret_standing->trouble);
	}
	pthread_mutex_unlock(&webhooks->lock);
}

void webhooks_statistics(struct webhooks *webhooks, struct webhook_statistics *ret_statistics)
{
	pthread_mutex_lock(&webhooks->lock);
	*ret_statistics = webhooks->statistics;
	pthread_mutex_unlock(&webhooks->lock);
}
