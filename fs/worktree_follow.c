/*
 * worktree_follow — hides how a working tree comes along when others move its branch.
 *
 * The view of the working tree is taken before the ref is read, and nothing is done unless its
 * epoch still is the same with the gate closed: what was read may otherwise be older than a commit
 * made here meanwhile, and would take the working tree back.
 *
 * Uncommitted changes are re-based as worktree_move does it, but the ref is where it is to be
 * already, so there is no intent: a crash before the swap leaves the old base with the old overlay,
 * after it the new one. The swap is synced before old staging files go, for one whose bytes equal
 * what the new base has is named by the old overlay alone. All that may have to wait for the store
 * is done once before with the gate open ("rehearsal"): collisions are found there, and what the
 * closed gate waits for is then local.
 */
#include <stdio.h>

#include "fs/snapshot.h"

#define GATE_WAIT_MS 50
#define RETRY_FACTOR 10 /* looking for collisions takes at most a tenth of the time */
#define RETRY_MS_MAX 30000
#define BEHIND_MAX 1000
#define FOLLOWED_INTERVALS 2

void standing_release(struct standing *standing)
{
	free(standing->collisions);
	*standing = (struct standing){0};
}

/* -- what is known -- */

/* Takes what it points to. */
static void set_standing(struct worktree *worktree, struct standing *standing)
{
	pthread_mutex_lock(&worktree->trees->table_lock);
	struct standing before = worktree->standing;
	worktree->standing = *standing;
	pthread_mutex_unlock(&worktree->trees->table_lock);
	*standing = (struct standing){0};
	standing_release(&before);
}

static void clear_standing(struct worktree *worktree)
{
	struct standing fine = {0};
	set_standing(worktree, &fine);
	worktree->tried_head = id_zero;
	worktree->retry_ms = 0;
}

static size_t collisions_bytes(const struct standing *standing)
{
	size_t length = 0;
	for (size_t i = 0; i < standing->collision_count; i++)
		length += strlen(standing->collisions + length) + 1;
	return length;
}

int worktree_standing(struct worktree *worktree, struct standing *ret_standing)
{
	int error = 0;
	pthread_mutex_lock(&worktree->trees->table_lock);
	struct standing copy = worktree->standing;
	size_t length = collisions_bytes(&copy);
	copy.collisions = NULL;
	if (copy.behind && length) {
		copy.collisions = malloc(length);
		if (copy.collisions)
			memcpy(copy.collisions, worktree->standing.collisions, length);
		else
			error = -ERR_NO_MEMORY;
	}
	pthread_mutex_unlock(&worktree->trees->table_lock);
	if (!error)
		*ret_standing = copy;
	return error;
}

static bool known_gone(struct worktree *worktree)
{
	pthread_mutex_lock(&worktree->trees->table_lock);
	bool gone = worktree->standing.gone;
	pthread_mutex_unlock(&worktree->trees->table_lock);
	return gone;
}

static void retry_after(struct worktree *worktree, int64_t took_ms)
{
	int64_t pause_ms = took_ms * RETRY_FACTOR;
	worktree->retry_ms =
	        clock_monotonic_ms() + (pause_ms < RETRY_MS_MAX ? pause_ms : RETRY_MS_MAX);
}

/* -- protection -- */

void worktree_note_protection(struct worktree *worktree, const struct protection *protection,
                              bool first)
{
	pthread_mutex_lock(&worktree->trees->table_lock);
	if (!first || !worktree->protection_seen) {
		worktree->protection = *protection;
		worktree->read_only = protection_read_only(protection);
		worktree->protection_seen = true;
	}
	pthread_mutex_unlock(&worktree->trees->table_lock);
}

void worktree_protection(struct worktree *worktree, struct protection *ret_protection)
{
	pthread_mutex_lock(&worktree->trees->table_lock);
	*ret_protection = worktree->protection;
	pthread_mutex_unlock(&worktree->trees->table_lock);
}

/* -- the branch is gone -- */

static void tell_gone(struct worktree *worktree)
{
	struct worktree_observer observer;
	worktrees_observer(worktree->trees, &observer);
	if (observer.branch_gone != NULL)
		observer.branch_gone(observer.context, worktree->branch);
}

/* What is uncommitted stays; say so. */
static void keep_orphan(struct worktree *worktree)
{
	CLEANUP(ref_release) struct ref ref = {0};
	struct standing standing = {.gone = true};
	char time[32];
	int error = ref_read_deleted(odb_store(worktree->trees->odb), REF_BRANCH, worktree->branch,
	                             &ref, NULL);
	if (!error) {
		time_format(ref.moves[0].time_ms, time);
		snprintf(standing.why, sizeof(standing.why), "by %.120s at %s (%.200s)",
		         ref.moves[0].who, time, ref.moves[0].command);
	}
	set_standing(worktree, &standing);
}

/* The ref was not there: unless that is out of date, the working tree goes. With an overlay, when
 * it changes nothing. */
static int vanish(struct worktree *worktree, const struct worktree_view *view,
                  struct message *message)
{
	struct worktrees *trees = worktree->trees;
	struct worktree_view now;
	size_t writers = 0;
	bool changed = false, vanished = false;
	int r = worktree_close_gate(worktree);
	if (r == 0) {
		worktree_view(worktree, &now);
		struct ground ground = ground_of(trees, &now);
		r = overlay_writers(trees, now.overlay, &writers);
		if (r == 0 && now.overlay != 0 && writers == 0)
			r = ground_changed(&ground, &changed, message);
		vanished = r == 0 && now.epoch == view->epoch && writers == 0 && !changed;
		if (vanished && now.overlay != 0)
			r = worktree_drop(worktree, message);
		else if (vanished)
			worktree_depart(worktree);
		worktree_open_gate(worktree);
	}
	if (r != 0 && r != -ERR_NOT_FOUND)
		return r;
	if (r == 0 && !vanished)
		return 0;
	if (vanished) {
		bool synced = now.overlay != 0 && state_sync(trees->state) == 0;
		overlay_discard(trees, now.overlay, synced ? 0 : KEEP_STAGING);
		tell_gone(worktree);
	}
	return fail(message, -ERR_NOT_FOUND, "no branch '%s'", worktree->branch);
}

static int lose_branch(struct worktree *worktree, const struct worktree_view *view, bool haste,
                       struct message *message)
{
	int64_t started_ms = clock_monotonic_ms();
	worktree->seen_etag = (struct etag){0};
	if (view->overlay == 0)
		return vanish(worktree, view, message);
	if (!haste && known_gone(worktree) && started_ms < worktree->retry_ms)
		return 0;
	bool dirty = worktree_dirty(worktree);
	retry_after(worktree, clock_monotonic_ms() - started_ms);
	int r = dirty ? 0 : vanish(worktree, view, message);
	if (r == 0 && !worktree->gone)
		keep_orphan(worktree);
	return r;
}

/* -- the branch has moved -- */

static void tell_moved(struct worktree *worktree, const struct pointer *before,
                       const struct commit *commit)
{
	struct worktree_observer observer;
	worktrees_observer(worktree->trees, &observer);
	if (observer.moved != NULL && !id_equal(&before->id, &commit->tree.id))
		observer.moved(observer.context, worktree->branch, before, &commit->tree);
}

/* Nothing is uncommitted: show `commit`, unless something else happened since `epoch`. */
static int advance(struct worktree *worktree, uint64_t epoch, const struct commit *commit,
                   bool haste)
{
	int r = haste ? worktree_close_gate(worktree)
	              : worktree_close_gate_within(worktree, GATE_WAIT_MS);
	if (r != 0)
		return r == -ERR_BUSY ? 0 : r;
	bool moves = worktree->epoch == epoch && worktree->overlay == 0;
	struct pointer before = worktree->base_tree;
	if (moves) {
		pthread_mutex_lock(&worktree->trees->table_lock);
		worktree_set_base(worktree, commit);
		worktree->epoch = ++worktree->trees->epochs;
		pthread_mutex_unlock(&worktree->trees->table_lock);
	}
	worktree_open_gate(worktree);
	if (moves) {
		clear_standing(worktree);
		tell_moved(worktree, &before, commit);
	}
	return 0;
}

/* How far along first parents `base` lies below `head`; 0: farther, or elsewhere. */
static int commits_between(struct worktrees *trees, const struct pointer *base,
                           const struct pointer *head, uint64_t *ret_count)
{
	struct pointer at = *head;
	*ret_count = 0;
	for (uint64_t count = 1; count <= BEHIND_MAX; count++) {
		CLEANUP(free_pointer) struct commit *commit = NULL;
		int error = worktrees_read_commit(trees, &at, &commit, NULL);
		if (error)
			return error;
		if (commit->parent_count == 0)
			return 0;
		if (id_equal(&commit->parents[0].id, &base->id)) {
			*ret_count = count;
			return 0;
		}
		at = commit->parents[0];
	}
	return 0;
}

struct collecting {
	struct buffer paths;
	size_t count;
};

static void note_collision(void *context, const char *path)
{
	struct collecting *collecting = context;
	if (collecting->count == COLLISIONS_MAX)
		return;
	collecting->count++;
	buffer_append(&collecting->paths, path, strlen(path) + 1);
}

static int stay_behind(struct worktree *worktree, const struct worktree_view *view,
                       const struct commit *commit, struct collecting *collecting)
{
	struct standing standing = {.behind = true, .head = commit->self};
	int error = buffer_check(&collecting->paths);
	if (error)
		return error;
	if (!id_equal(&worktree->tried_head, &commit->self.id) || !worktree->tried_counted)
		worktree->tried_counted =
		        commits_between(worktree->trees, &view->base, &commit->self,
		                        &worktree->tried_commits) == 0;
	standing.behind_commits = worktree->tried_commits;
	standing.collisions = (char *)steal(&collecting->paths.data);
	standing.collision_count = collecting->count;
	worktree->tried_head = commit->self.id;
	set_standing(worktree, &standing);
	return 0;
}

static int try_rebase(struct worktree *worktree, const struct worktree_view *view,
                      const struct commit *commit, bool rehearse, uint64_t *ret_left,
                      uint64_t *ret_root, struct message *message)
{
	struct collecting collecting = {0};
	struct names names = {0};
	struct ground ground = ground_of(worktree->trees, view);
	const struct rebase_options options = {
	        .ground = &ground,
	        .after = {commit->tree, commit->root},
	        .compare_bytes_max = COMPARE_BYTES_MAX,
	        .rehearse = rehearse,
	        .collided = note_collision,
	        .context = &collecting,
	};
	int error = rebase_overlay(&options, ret_left, ret_root, &names, message);
	/* Not when the overlay was swapped under the rehearsal. */
	if (error == -ERR_CONFLICT && worktree->epoch == view->epoch) {
		int failure = stay_behind(worktree, view, commit, &collecting);
		error = failure ? failure : error;
	}
	buffer_release(&collecting.paths);
	return error;
}

static int rebase_closed(struct worktree *worktree, const struct worktree_view *view,
                         const struct commit *commit, uint64_t *ret_left, struct message *message)
{
	uint64_t root = 0;
	if (worktree->epoch != view->epoch)
		return -ERR_STALE;
	int error = try_rebase(worktree, view, commit, false, ret_left, &root, message);
	if (error)
		return error;
	error = worktree_swap(worktree, commit, *ret_left, root, message);
	if (error)
		overlay_discard(worktree->trees, *ret_left, view->overlay);
	return error;
}

/* Uncommitted changes go on over `commit`, or the working tree stays where it is. */
static int rebase(struct worktree *worktree, const struct worktree_view *view,
                  const struct commit *commit, bool haste, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	int64_t started_ms = clock_monotonic_ms();
	uint64_t left = 0, root = 0;
	struct discarded *retired = NULL;
	int error = try_rebase(worktree, view, commit, true, &left, &root, message);
	retry_after(worktree, clock_monotonic_ms() - started_ms);
	if (error == -ERR_CONFLICT || worktree->epoch != view->epoch)
		return 0;
	/* Any other may come from mutations meanwhile; the store's waits would be with the gate
	 * closed. */
	if (error == -ERR_STORE_AWAY)
		return error;
	error = haste ? worktree_close_gate(worktree)
	              : worktree_close_gate_within(worktree, GATE_WAIT_MS);
	if (!error) {
		error = rebase_closed(worktree, view, commit, &left, message);
		if (!error)
			retired = overlay_retire(trees, view->overlay, left);
		worktree_open_gate(worktree);
	}
	if (error == -ERR_BUSY || error == -ERR_STALE || error == -ERR_CONFLICT)
		return 0;
	if (error)
		return error;
	clear_standing(worktree);
	tell_moved(worktree, &view->base_tree, commit);
	overlay_let_go(trees, retired, NULL, state_sync(trees->state) != 0);
	return 0;
}

static int come_along(struct worktree *worktree, const struct worktree_view *view, bool haste,
                      struct message *message)
{
	const struct pointer *head = &worktree->seen_head;
	if (id_equal(&head->id, &view->base.id)) {
		clear_standing(worktree);
		return 0;
	}
	if (!haste && view->overlay != 0 && id_equal(&head->id, &worktree->tried_head) &&
	    clock_monotonic_ms() < worktree->retry_ms)
		return 0;
	CLEANUP(free_pointer) struct commit *commit = NULL;
	int r = worktrees_read_commit(worktree->trees, head, &commit, message);
	if (r != 0)
		return r;
	return view->overlay == 0 ? advance(worktree, view->epoch, commit, haste)
	                          : rebase(worktree, view, commit, haste, message);
}

/* -- looking; refresh_lock is held -- */

static int look(struct worktree *worktree, const struct worktree_view *view, bool haste,
                struct message *message)
{
	const char *branch = worktree->branch;
	CLEANUP(ref_release) struct ref ref = {0};
	int r = ref_read_if_changed(odb_store(worktree->trees->odb), REF_BRANCH, branch,
	                            &worktree->seen_etag, &ref, message);
	worktree->refreshed_ms = clock_monotonic_ms();
	if (r == -ERR_NOT_FOUND)
		(void)worktree_settle_own(worktree, NULL); /* was it us? */
	if (r == -ERR_NOT_FOUND && worktree->branch == branch)
		return lose_branch(worktree, view, haste, message);
	if (r < 0)
		return r == -ERR_NOT_FOUND ? 0 : r; /* it has another name by now */
	if (r > 0) {
		worktree->seen_etag = ref.etag;
		worktree->seen_head = ref.commit;
		worktree_note_protection(worktree, &ref.protection, false);
	}
	return come_along(worktree, view, haste, message);
}

int worktree_refresh(struct worktree *worktree, struct message *message)
{
	struct worktree_view view;
	if (worktree->gone)
		return fail(message, -ERR_NOT_FOUND, "no branch '%s'", worktree->branch);
	pthread_mutex_lock(&worktree->refresh_lock);
	worktree_view(worktree, &view);
	int r = look(worktree, &view, true, message);
	pthread_mutex_unlock(&worktree->refresh_lock);
	return r;
}

int worktree_look(struct worktree *worktree, const struct etag *listed, uint64_t epoch,
                  struct message *message)
{
	struct worktree_view view;
	int r;
	if (worktree->gone)
		return 0;
	pthread_mutex_lock(&worktree->refresh_lock);
	worktree_view(worktree, &view);
	bool same = listed != NULL && listed->text[0] && view.epoch == epoch &&
	            strcmp(listed->text, worktree->seen_etag.text) == 0;
	if (same) {
		worktree->refreshed_ms = clock_monotonic_ms();
		r = come_along(worktree, &view, false, message);
	} else {
		r = look(worktree, &view, false, message);
	}
	pthread_mutex_unlock(&worktree->refresh_lock);
	return r == -ERR_NOT_FOUND ? 0 : r;
}

/* Does the follower look at it? At what somebody besides the caller refers to. */
static bool looked_at(struct worktree *worktree)
{
	struct worktrees *trees = worktree->trees;
	pthread_mutex_lock(&trees->table_lock);
	bool used = worktree->references > 1;
	pthread_mutex_unlock(&trees->table_lock);
	return used && trees->followed;
}

/* How long what was seen of the head will do. The follower looks once an interval; who comes just
 * before it need not ask, too. */
static int64_t seen_good_ms(struct worktree *worktree)
{
	int64_t refresh_ms = worktree->trees->refresh_ms;
	return looked_at(worktree) ? FOLLOWED_INTERVALS * refresh_ms : refresh_ms;
}

int worktree_follow(struct worktree *worktree, struct message *message)
{
	struct worktree_view view;
	struct worktrees *trees = worktree->trees;
	if (worktree->gone)
		return fail(message, -ERR_NOT_FOUND, "no branch '%s'", worktree->branch);
	if (worktree->overlay != 0 || trees->refresh_ms < 0 || trees->away ||
	    clock_monotonic_ms() - worktree->refreshed_ms < seen_good_ms(worktree) ||
	    pthread_mutex_trylock(&worktree->refresh_lock) != 0)
		return 0;
	worktree_view(worktree, &view);
	int r = view.overlay == 0 ? look(worktree, &view, true, message) : 0;
	pthread_mutex_unlock(&worktree->refresh_lock);
	/* What is known already stays readable while the store is not. */
	return r == -ERR_NOT_FOUND && worktree->gone ? r : 0;
}

int worktree_catch_up(struct worktree *worktree, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	if (!trees->followed)
		return worktree_refresh(worktree, message);
	if (looked_at(worktree) || trees->refresh_ms < 0 || trees->away ||
	    clock_monotonic_ms() - worktree->refreshed_ms < trees->refresh_ms)
		return 0;
	return worktree_look(worktree, NULL, 0, message);
}

bool worktree_read_only(struct worktree *worktree)
{
	struct worktrees *trees = worktree->trees;
	int64_t asked_ms = worktree->protection_asked_ms;
	bool unknown = !worktree->protection_seen && !worktree->gone && !trees->away &&
	               (!asked_ms || clock_monotonic_ms() - asked_ms >= REFRESH_INTERVAL_MS);
	if (unknown && pthread_mutex_trylock(&worktree->refresh_lock) == 0) {
		CLEANUP(ref_release) struct ref ref = {0};
		if (ref_read_known(odb_store(trees->odb), REF_BRANCH, worktree->branch, &ref,
		                   NULL) == 0)
			worktree_note_protection(worktree, &ref.protection, true);
		worktree->protection_asked_ms = clock_monotonic_ms();
		pthread_mutex_unlock(&worktree->refresh_lock);
	}
	return worktree->read_only;
}

int worktree_check_move(struct worktree *worktree, const struct ref_rights *rights,
                        struct message *message)
{
	struct protection protection;
	const char *branch = worktree_branch(worktree);
	worktree_protection(worktree, &protection);
	if (protection_check(&protection, branch, rights, NULL) == 0)
		return 0;
	int error = worktree_refresh(worktree, message);
	worktree_protection(worktree, &protection);
	return error ? error : protection_check(&protection, branch, rights, message);
}

int worktree_refused(struct worktree *worktree, int error)
{
	if (error == -ERR_REFUSED && !worktree->read_only)
		(void)worktree_refresh(worktree, NULL);
	return error;
}
