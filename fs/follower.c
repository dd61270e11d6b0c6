/*
 * follower — hides when which branch is looked at, and what happens while the store is away.
 */
#include <stdio.h>
#include <time.h>

#include "fs/follower.h"
#include "fs/worktree_internal.h"
#include "store/thread.h"

#define LISTING_MIN 8           /* branches in use; fewer are asked for one by one */
#define LISTING_COST 64         /* a listing of so many times what is in use is not worth it */
#define LISTING_AGAIN_ROUNDS 60 /* then, or without etags: try again after so many rounds */

struct follower {
	struct worktrees *trees;
	struct follower_options options;
	pthread_t thread;
	pthread_mutex_t lock; /* guards `ending`; leaf */
	pthread_cond_t wake;
	bool ending;
	/* the thread's own: */
	unsigned rounds_without_listing;
	int64_t away_pause_ms; /* 0: it answers */
};

static void log_line(struct follower *follower, const char *format, const char *detail)
{
	char line[1536];
	if (!follower->options.log)
		return;
	snprintf(line, sizeof(line), "%s%s%s", format, detail[0] ? ": " : "", detail);
	follower->options.log(follower->options.context, line);
}

/* -- one round -- */

struct used {
	struct worktree *worktree; /* one reference */
	uint64_t epoch;            /* before anything was asked */
	struct etag etag;          /* of the listing */
};

struct round {
	struct follower *follower;
	struct used *used; /* by name */
	size_t count;
	uint64_t listed;
	bool etags; /* the listing has them */
};

static int compare_used(const void *a, const void *b)
{
	const struct used *x = a, *y = b;
	return strcmp(worktree_branch(x->worktree), worktree_branch(y->worktree));
}

static void round_release(struct round *round)
{
	for (size_t i = 0; i < round->count; i++)
		worktree_unref(round->used[i].worktree);
	free(round->used);
}

static int round_begin(struct follower *follower, struct round *ret_round)
{
	CLEANUP(free_pointer) struct worktree **trees = NULL;
	struct round round = {.follower = follower};
	int error = worktrees_used(follower->trees, &trees, &round.count);
	if (error)
		return error;
	round.used = calloc(round.count + 1, sizeof(*round.used));
	for (size_t i = 0; i < round.count; i++) {
		if (!round.used) {
			worktree_unref(trees[i]);
			continue;
		}
		round.used[i].worktree = trees[i];
		round.used[i].epoch = worktree_epoch(trees[i]);
	}
	if (!round.used)
		return -ERR_NO_MEMORY;
	qsort(round.used, round.count, sizeof(*round.used), compare_used);
	*ret_round = round;
	return 0;
}

static int note_listed(void *context, const struct ref *ref)
{
	struct round *round = context;
	size_t low = 0, high = round->count;
	round->listed++;
	round->etags = round->etags || ref->etag.text[0];
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = strcmp(worktree_branch(round->used[middle].worktree), ref->name);
		if (order == 0) {
			round->used[middle].etag = ref->etag;
			return 0;
		}
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return 0;
}

/* Ask for all at once, where that is cheaper. */
static int round_list(struct round *round, struct message *message)
{
	struct follower *follower = round->follower;
	if (round->count < LISTING_MIN || follower->away_pause_ms)
		return 0;
	if (follower->rounds_without_listing > 0) {
		follower->rounds_without_listing--;
		return 0;
	}
	int error = ref_list(odb_store(follower->trees->odb), REF_BRANCH, false, note_listed, round,
	                     message);
	if (!error && (!round->etags || round->listed / LISTING_COST > round->count))
		follower->rounds_without_listing = LISTING_AGAIN_ROUNDS;
	return error;
}

/* A branch that is damaged, say: once, until something else is the matter. */
static void complain(struct follower *follower, struct worktree *worktree, int error,
                     const struct message *message)
{
	char about[REF_NAME_MAX + 64];
	if (worktree->look_error == error)
		return;
	worktree->look_error = error;
	if (!error)
		return;
	snprintf(about, sizeof(about), "cannot follow branch '%s'", worktree_branch(worktree));
	log_line(follower, about, message->text[0] ? message->text : error_text(error));
}

/* Nothing is in use: does the store answer again? Any answer is one. */
static int probe(struct follower *follower, struct message *message)
{
	struct ref ref = {0};
	if (!follower->away_pause_ms)
		return 0;
	int error = ref_read(odb_store(follower->trees->odb), REF_BRANCH, "main", &ref, message);
	ref_release(&ref);
	return error;
}

/* -ERR_STORE_AWAY, or 0. */
static int round_run(struct follower *follower, struct message *message)
{
	CLEANUP(round_release) struct round round = {0};
	int error = round_begin(follower, &round);
	if (error)
		return 0; /* no memory: the next round */
	error = round.count ? round_list(&round, message) : probe(follower, message);
	for (size_t i = 0; i < round.count && error != -ERR_STORE_AWAY; i++) {
		struct used *used = &round.used[i];
		struct message said = {{0}};
		error = worktree_look(used->worktree, &used->etag, used->epoch, &said);
		if (error == -ERR_STORE_AWAY)
			*message = said;
		else
			complain(follower, used->worktree, error, &said);
		pthread_mutex_lock(&follower->lock);
		bool ending = follower->ending;
		pthread_mutex_unlock(&follower->lock);
		if (ending)
			break;
	}
	return error == -ERR_STORE_AWAY ? error : 0;
}

/* -- the store away, and back -- */

static void note_away(struct follower *follower, const struct message *message)
{
	int64_t pause_ms = follower->away_pause_ms * 2;
	if (!follower->away_pause_ms) {
		follower->trees->away = true;
		pause_ms = follower->options.interval_ms;
		log_line(follower,
		         "the store does not answer; what others commit is not seen until it does",
		         message->text);
	}
	follower->away_pause_ms = pause_ms < FOLLOWER_AWAY_MS_MAX ? pause_ms : FOLLOWER_AWAY_MS_MAX;
}

static void note_back(struct follower *follower)
{
	if (!follower->away_pause_ms)
		return;
	follower->away_pause_ms = 0;
	follower->trees->away = false;
	log_line(follower, "the store answers again", "");
}

/* How long until the next round. After an outage not all hosts at once. */
static int64_t pause_of(const struct follower *follower)
{
	int64_t pause_ms = follower->away_pause_ms;
	if (!pause_ms)
		return follower->options.interval_ms;
	return pause_ms / 2 + (int64_t)(random_u64() % (uint64_t)(pause_ms / 2 + 1));
}

static bool wait_for_next(struct follower *follower)
{
	struct timespec until;
	int64_t pause_ms = pause_of(follower);
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)(pause_ms % 1000) * 1000000;
	until.tv_sec += pause_ms / 1000 + until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&follower->lock);
	int result = 0;
	while (!follower->ending && result == 0)
		result = pthread_cond_timedwait(&follower->wake, &follower->lock, &until);
	bool goes_on = !follower->ending;
	pthread_mutex_unlock(&follower->lock);
	return goes_on;
}

static void *follower_run(void *context)
{
	struct follower *follower = context;
	odb_look_ahead(follower->trees->odb);
	while (wait_for_next(follower)) {
		struct message message = {{0}};
		/* What was closed and perhaps mapped: a deleted file's room comes back then. */
		worktrees_settle_writers(follower->trees);
		if (!follower->away_pause_ms)
			odb_look_ahead(follower->trees->odb);
		if (round_run(follower, &message) == -ERR_STORE_AWAY)
			note_away(follower, &message);
		else
			note_back(follower);
	}
	return NULL;
}

/* -- starting and ending -- */

int follower_start(const struct follower_options *options, struct follower **ret_follower,
                   struct message *message)
{
	struct follower *follower = calloc(1, sizeof(*follower));
	if (!follower)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	follower->trees = options->trees;
	follower->options = *options;
	pthread_mutex_init(&follower->lock, NULL);
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&follower->wake, &monotonic);
	pthread_condattr_destroy(&monotonic);
	if (thread_start(&follower->thread, follower_run, follower) != 0) {
		pthread_mutex_destroy(&follower->lock);
		pthread_cond_destroy(&follower->wake);
		free(follower);
		return fail(message, -ERR_NO_MEMORY, "cannot start a thread");
	}
	follower->trees->followed = true;
	*ret_follower = follower;
	return 0;
}

void follower_stop(struct follower *follower)
{
	if (!follower)
		return;
	pthread_mutex_lock(&follower->lock);
	follower->ending = true;
	pthread_cond_signal(&follower->wake);
	pthread_mutex_unlock(&follower->lock);
	pthread_join(follower->thread, NULL);
	follower->trees->followed = follower->trees->away = false;
	pthread_mutex_destroy(&follower->lock);
	pthread_cond_destroy(&follower->wake);
	free(follower);
}
