/*
 * snapshot — hides how a commit is one atomic snapshot: the order of storing, recording, moving
 * the branch and letting go of what was uncommitted.
 *
 *   ahead        content of staging files is stored while mutations go on       (gate open)
 *   build        what changed since is stored, then the trees, from a still overlay  (gate closed)
 *   parent       the head moved meanwhile: the new tree is merged onto it; conflicts end it here
 *   left         what stays uncommitted is written as a new overlay
 *   flush        content packs, then trees and the commit: durable
 *   intend       the commit and that overlay are noted in the branch's record: durable; side by
 *                side with flush, and both before
 *   move         the ref, by compare-and-swap; lost: back to parent
 *   swap         the branch's record: new base, new overlay
 *   let go       staging files become cached blobs, the old overlay goes        (gate open)
 *
 * A crash up to "intend" leaves unreferenced packs and nothing else. A crash after it is settled by
 * whether the branch's history has the commit: then the swap is finished, else the intent dropped;
 * the old overlay with all its staging files is there in both cases, and no mutation can have come
 * between. When the outcome of "move" cannot be known the intent is dropped at once, because
 * mutations will follow: the next commit finds the same changes on both sides.
 */
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "fs/snapshot.h"

#define AHEAD_ROUNDS_MAX 3
#define AHEAD_FILES_FEW 32
#define AHEAD_AGAIN_MS 100 /* what changes in less is stored with the gate closed */
/* A lost race repeats the merge, the commit's record and the move, no content; others were served
 * meanwhile. So who loses all the time is given up by the clock, not by a count. */
#define MOVE_MS_MAX 60000
#define CLAIM_AFTER 3    /* lost attempts */
#define CLAIM_ATTEMPTS 4 /* for so many times as one takes */
#define CLAIM_MS_MAX 5000
#define CLAIM_LOOKS 16 /* meanwhile, by each who waits */
#define POLL_MS_MIN 5
#define POLL_MS_MAX 100
#define ADOPT_NOW_FILES 64 /* the rest when the commit has returned */
#define ROOM_WAIT_MS 250
#define UNINTEND_TRIES_MAX 20
#define UNINTEND_PAUSE_MS 50

struct committing {
	struct worktree *worktree;
	struct worktrees *trees;
	const struct commit_options *options;
	struct path_set paths;
	struct packer *packer;
	struct stored stored;
	struct message *message;

	/* from here on with the gate closed */
	struct worktree_view view;
	struct ground ground;
	struct merge_side built; /* the working tree (or the paths) over the view's base */
	struct ref head;         /* empty: to be read */
	struct contender contender;
	int64_t attempt_started_ms;
	uint64_t left, left_root;  /* overlay of what stays uncommitted */
	struct discarded *retired; /* what was uncommitted */
	struct commit *made;
	struct merge_side shown; /* made's tree */
	struct counts {
		uint64_t files, bytes, files_max;
		bool more;
	} counts; /* of `built` */
	bool counted;
	bool rebased;
	bool guessing; /* the head is where this host saw it last: only a move can tell */
	uint8_t claim_seen[REF_NONCE_BYTES]; /* ours, or one that was waited for */
};

static void committing_release(struct committing *committing)
{
	path_set_release(&committing->paths);
	packer_free(committing->packer);
	stored_release(&committing->stored);
	ref_release(&committing->head);
	free(committing->made);
}

static void pause_ms(int ms)
{
	struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};
	while (nanosleep(&time, &time) && errno == EINTR)
		;
}

/* -- files open for writing -- */

struct numbers {
	uint64_t *items;
	size_t count;
};

static void numbers_release(struct numbers *numbers)
{
	free(numbers->items);
}

static int writers_list(struct worktrees *trees, struct numbers *ret_numbers)
{
	int error = 0;
	pthread_mutex_lock(&trees->table_lock);
	size_t count = HASH_COUNT(trees->writers);
	ret_numbers->items = count ? calloc(count, sizeof(*ret_numbers->items)) : NULL;
	if (count && !ret_numbers->items) {
		error = -ERR_NO_MEMORY;
	} else {
		struct writer *writer, *next;
		HASH_ITER (hh, trees->writers, writer, next)
			ret_numbers->items[ret_numbers->count++] = writer->number;
	}
	pthread_mutex_unlock(&trees->table_lock);
	return error;
}

int overlay_writers(struct worktrees *trees, uint64_t overlay, size_t *ret_count)
{
	CLEANUP(numbers_release) struct numbers numbers = {0};
	*ret_count = 0;
	if (!overlay)
		return 0;
	worktrees_settle_writers(trees);
	int error = writers_list(trees, &numbers);
	if (error)
		return error;
	for (size_t i = 0; i < numbers.count; i++) {
		CLEANUP(inode_release) struct inode inode = {0};
		error = overlay_read_inode(trees, overlay, numbers.items[i], &inode);
		if (error && error != -ERR_NOT_FOUND)
			return error;
		*ret_count += !error;
	}
	return 0;
}

static int add_open_file(void *argument, const char *branch, const char *path, int pid)
{
	names_add(argument, path);
	return 0;
}

int fail_busy(struct worktree *worktree, struct names *known, size_t count, const char *advice,
              struct message *message)
{
	const char *branch = worktree_branch(worktree);
	struct names names = {0};
	(void)worktrees_open_files(worktree->trees, branch, add_open_file, &names);
	if (names.count == 0 && known && known->count)
		names = *known;
	if (names.count == 0)
		return fail(message, -ERR_BUSY, "%s: %zu files are open for writing; %s", branch,
		            count, advice);
	return fail(message, -ERR_BUSY, "%s: open for writing: %s; %s", branch, names_text(&names),
	            advice);
}

void snapshot_unintend(struct worktree *worktree)
{
	for (int try = 0; try < UNINTEND_TRIES_MAX; try++) {
		if (!worktree_intend(worktree, NULL, NULL, 0, 0, NULL))
			return;
		pause_ms(UNINTEND_PAUSE_MS);
	}
	worktree_depart(worktree);
}

/* -- ahead and build -- */

/* Several rounds: a long one gives others time to change more. */
static int store_ahead(struct committing *committing)
{
	for (int round = 0; round < AHEAD_ROUNDS_MAX; round++) {
		struct worktree_view view;
		uint64_t files = 0;
		int64_t started_ms = clock_monotonic_ms();
		worktree_view(committing->worktree, &view);
		struct ground ground = ground_of(committing->trees, &view);
		int error = stored_ahead(&committing->stored, &ground, &committing->paths,
		                         committing->packer, committing->options->progress, &files,
		                         committing->message);
		if (error || files < AHEAD_FILES_FEW ||
		    clock_monotonic_ms() - started_ms < AHEAD_AGAIN_MS)
			return error;
	}
	return 0;
}

/* Gate closed. */
static int build(struct committing *committing, struct names *ret_busy, size_t *ret_writers)
{
	worktree_view(committing->worktree, &committing->view);
	committing->ground = ground_of(committing->trees, &committing->view);
	const struct commit_options *options = committing->options;
	int error = overlay_writers(committing->trees, committing->ground.overlay, ret_writers);
	if (error)
		return error;
	if (*ret_writers && !options->allow_open && committing->paths.count == 0)
		return -ERR_BUSY;
	struct snapshot snapshot = {
	        .ground = committing->ground,
	        .packer = committing->packer,
	        .stored = &committing->stored,
	        .progress = options->progress,
	        .allow_open = options->allow_open,
	};
	error = snapshot_build(&snapshot, &committing->paths, &committing->built,
	                       committing->message);
	*ret_busy = snapshot.busy;
	return error;
}

/* Nobody can have let go yet: look without closing the gate. */
static bool surely_busy(struct committing *committing)
{
	struct worktree_view view;
	size_t writers = 0;
	if (committing->options->allow_open || committing->paths.count)
		return false;
	worktree_view(committing->worktree, &view);
	return !overlay_writers(committing->trees, view.overlay, &writers) && writers;
}

/* Leaves the gate closed when it returns 0. Between two attempts the gate is open, so that whoever
 * writes can finish. */
static int build_at_rest(struct committing *committing)
{
	int64_t deadline = clock_monotonic_ms() + committing->options->wait_ms;
	for (int pause = POLL_MS_MIN;; pause = pause * 2 > POLL_MS_MAX ? POLL_MS_MAX : pause * 2) {
		struct names busy = {0};
		size_t writers = 0;
		int error = store_ahead(committing);
		if (!error)
			error = worktree_close_gate(committing->worktree);
		if (error)
			return error;
		error = build(committing, &busy, &writers);
		if (!error)
			return 0;
		worktree_open_gate(committing->worktree);
		stored_unuse(&committing->stored);
		bool waiting = error == -ERR_BUSY && writers;
		if (!waiting)
			return error;
		do {
			int64_t left_ms = deadline - clock_monotonic_ms();
			if (left_ms <= 0)
				return fail_busy(committing->worktree, &busy, writers,
				                 "close them, or commit with --allow-open to take "
				                 "them as they are",
				                 committing->message);
			pause_ms(pause < left_ms ? pause : (int)left_ms);
			if (progress_report(committing->options->progress,
			                    "waiting for files open for writing", 0, 0, "files"))
				return -ERR_INTERRUPTED;
		} while (surely_busy(committing));
	}
}

static int stop_at_change(void *context, const struct change *change)
{
	return 1;
}

static bool root_same(const struct attributes *a, const struct attributes *b)
{
	return a->mode == b->mode && a->uid == b->uid && a->gid == b->gid;
}

static int sides_differ(struct odb *odb, const struct merge_side *a, const struct merge_side *b,
                        bool *ret_differ, struct message *message)
{
	const struct diff_options options = {.shallow = true};
	*ret_differ = !root_same(&a->root, &b->root);
	if (*ret_differ || id_equal(&a->tree.id, &b->tree.id))
		return 0;
	int result = diff_trees(odb, &a->tree, &b->tree, &options, stop_at_change, NULL, message);
	*ret_differ = result > 0;
	return result < 0 ? result : 0;
}

static bool empty_allowed(const struct committing *committing)
{
	return committing->options->allow_empty || committing->options->second_parent;
}

static int check_changed(struct committing *committing)
{
	struct merge_side base = {committing->view.base_tree, committing->view.base_root};
	bool differ = false;
	int error = sides_differ(committing->trees->odb, &base, &committing->built, &differ,
	                         committing->message);
	if (error || differ || empty_allowed(committing))
		return error;
	return fail(committing->message, -ERR_INVALID, "%s: nothing to commit",
	            worktree_branch(committing->worktree));
}

/* -- parent -- */

static int fail_conflicts(struct committing *committing, const struct merge_result *merged)
{
	const struct commit_options *options = committing->options;
	struct names names = {0};
	for (size_t i = 0; i < merged->conflict_count; i++) {
		names_add(&names, merged->conflicts[i].path);
		if (options->conflicted && !options->unmerged && !committing->guessing)
			options->conflicted(options->context, merged->conflicts[i].path);
	}
	if (options->unmerged && !committing->guessing)
		options->unmerged(options->context, merged);
	return fail(committing->message, -ERR_CONFLICT,
	            "%s has moved meanwhile, and these were changed there too: %s; nothing was "
	            "committed. Keep a copy of yours, `lakectl restore` them, and commit again",
	            worktree_branch(committing->worktree), names_text(&names));
}

/* What the commit's tree is: what was built, or that merged onto a head that has moved. */
static int merge_onto_head(struct committing *committing, const struct merge_side *head)
{
	struct merge_side base = {committing->view.base_tree, committing->view.base_root};
	CLEANUP(merge_result_release) struct merge_result merged = {0};
	const struct table_formats *tables = committing->trees->tables;
	const struct merge_options options = {.directory = tables ? tables->conflict : NULL};
	int error = merge_trees(committing->trees->odb, committing->packer, &base,
	                        &committing->built, head, &options, &merged, committing->message);
	if (error)
		return error;
	merged.base = committing->view.base.id;
	merged.target = committing->head.commit.id;
	if (merged.conflict_count)
		return fail_conflicts(committing, &merged);
	committing->shown = (struct merge_side){merged.tree, merged.root};
	return 0;
}

static int write_commit(struct committing *committing)
{
	const struct commit_options *options = committing->options;
	struct pointer parents[2] = {committing->head.commit}, self;
	CLEANUP(free_pointer) struct meta_pair *meta = NULL;
	if (options->second_parent)
		parents[1] = *options->second_parent;
	if (options->meta_count) {
		meta = calloc(options->meta_count, sizeof(*meta));
		if (!meta)
			return -ERR_NO_MEMORY;
		memcpy(meta, options->meta, options->meta_count * sizeof(*meta));
	}
	struct commit commit = {
	        .tree = committing->shown.tree,
	        .root = committing->shown.root,
	        .parents = parents,
	        .parent_count = options->second_parent ? 2 : 1,
	        .author = options->author,
	        .time_ms = clock_wall_ms(),
	        .message = options->message,
	        .meta = meta,
	        .meta_count = options->meta_count,
	};
	int error = commit_write(committing->trees->odb, committing->packer, &commit, &self,
	                         committing->message);
	if (error)
		return error;
	return commit_read(committing->trees->odb, &self, &committing->made, committing->message);
}

/* What was guessed leads to an end that no move will confirm. */
static int ask(struct committing *committing)
{
	committing->guessing = false;
	ref_release(&committing->head);
	return -ERR_MOVED;
}

/* Yields `made`: a new commit on the head as it is now, or the head itself when it has these very
 * changes already (an earlier attempt whose outcome was lost). -ERR_MOVED: what was guessed must be
 * asked for. */
static int make_commit(struct committing *committing)
{
	struct odb *odb = committing->trees->odb;
	free(steal(&committing->made));
	committing->shown = committing->built;
	committing->rebased = !id_equal(&committing->head.commit.id, &committing->view.base.id);
	if (!committing->rebased)
		return write_commit(committing);

	CLEANUP(free_pointer) struct commit *head = NULL;
	bool differ = false;
	int error = commit_read(odb, &committing->head.commit, &head, committing->message);
	if (error)
		return error;
	struct merge_side side = {head->tree, head->root};
	error = merge_onto_head(committing, &side);
	if (error == -ERR_CONFLICT && committing->guessing)
		return ask(committing);
	if (!error)
		error = sides_differ(odb, &side, &committing->shown, &differ, committing->message);
	if (error)
		return error;
	if (differ || empty_allowed(committing))
		return write_commit(committing);
	if (committing->guessing)
		return ask(committing);
	committing->made = steal(&head);
	committing->shown = side;
	return 0;
}

/* -- left -- */

static int fail_left(struct committing *committing, struct names *collisions)
{
	return fail(committing->message, -ERR_CONFLICT,
	            "%s has moved meanwhile, and changes that would stay uncommitted collide with "
	            "it: %s; nothing was committed. Commit or restore those too",
	            worktree_branch(committing->worktree), names_text(collisions));
}

/* The uncommitted rest over the new commit's tree: first over what was built, where nothing can
 * collide, then over what others did meanwhile. */
static int make_left(struct committing *committing)
{
	struct names collisions = {0};
	size_t writers = 0;
	bool whole = committing->paths.count == 0;
	committing->left = committing->left_root = 0;
	int error = overlay_writers(committing->trees, committing->ground.overlay, &writers);
	if (error || (whole && !writers && !committing->stored.open))
		return error;
	const struct rebase_options built = {
	        .ground = &committing->ground,
	        .after = committing->built,
	        .stored = &committing->stored,
	        .whole = whole,
	};
	uint64_t overlay, root;
	error = rebase_overlay(&built, &overlay, &root, &collisions, committing->message);
	if (error || !overlay || id_equal(&committing->shown.tree.id, &committing->built.tree.id)) {
		committing->left = overlay;
		committing->left_root = root;
		return error;
	}
	const struct ground ground = {
	        .trees = committing->trees,
	        .overlay = overlay,
	        .root = root,
	        .tree = committing->built.tree,
	        .attributes = committing->built.root,
	};
	const struct rebase_options moved = {
	        .ground = &ground,
	        .after = committing->shown,
	        .collided = committing->guessing ? NULL : committing->options->conflicted,
	        .context = committing->options->context,
	};
	error = rebase_overlay(&moved, &committing->left, &committing->left_root, &collisions,
	                       committing->message);
	overlay_discard(committing->trees, overlay, committing->ground.overlay);
	if (error == -ERR_CONFLICT && committing->guessing)
		return ask(committing);
	return error == -ERR_CONFLICT ? fail_left(committing, &collisions) : error;
}

static void drop_left(struct committing *committing)
{
	overlay_discard(committing->trees, committing->left, committing->ground.overlay);
	committing->left = committing->left_root = 0;
}

/* -- move and swap -- */

static int count_file(void *context, const struct change *change)
{
	struct counts *counts = context;
	const struct tree_entry *entry = change->after ? change->after : change->before;
	if (counts->files == counts->files_max) {
		counts->more = true;
		return 1; /* the end */
	}
	if (!S_ISDIR(entry->attributes.mode))
		counts->files++;
	if (change->after && change->kind != CHANGE_MODE)
		counts->bytes += change->after->content.size;
	return 0;
}

/* What was stored is counted whole, but a directory that came back or went is one change whatever
 * is in it, and its nodes are not all read for a number. */
static void count_changes(struct committing *committing)
{
	const struct diff_options options = {0};
	committing->counts.files_max = COUNTED_FILES_MAX + 2 * committing->stored.count;
	if (!committing->counted)
		(void)diff_trees(committing->trees->odb, &committing->view.base_tree,
		                 &committing->built.tree, &options, count_file, &committing->counts,
		                 NULL);
	committing->counted = true;
}

/* While the store takes the packs: the trees' nodes are in memory, and the intent, which nobody
 * believes before the branch's history has its commit, gets to the disk. */
static int flush_and_intend(struct committing *committing, bool intend)
{
	struct worktree *worktree = committing->worktree;
	packer_flush_begin(committing->packer);
	int error = 0;
	if (intend)
		error = worktree_intend(worktree, &committing->head.commit, &committing->made->self,
		                        committing->left, committing->left_root,
		                        committing->message);
	if (error)
		return error;
	count_changes(committing);
	error = packer_flush(committing->packer, committing->message);
	if (error && intend)
		snapshot_unintend(worktree);
	return error;
}

static void lost_race(void *context)
{
	struct committing *committing = context;
	if (committing->guessing) /* no race, as far as anybody knows */
		return;
	contention_lost(&committing->contender,
	                clock_monotonic_ms() - committing->attempt_started_ms);
}

static int move_ref(struct committing *committing)
{
	struct worktree *worktree = committing->worktree;
	const struct commit_options *options = committing->options;
	struct pointer *self = &committing->made->self;
	struct ref_author author = {
	        .who = options->author, .command = options->command, .rights = options->rights};
	if (id_equal(&self->id, &committing->head.commit.id))
		return 0;
	bool intend = committing->view.overlay != 0;
	int error = flush_and_intend(committing, intend);
	if (error)
		return error;
	struct ref_contended contended = {.wait = lost_race, .context = committing};
	error = ref_move_contended(odb_store(committing->trees->odb), &committing->head, self,
	                           &author, &contended, committing->message);
	if (!error)
		worktree_note_protection(worktree, &committing->head.protection, true);
	if (error && intend)
		snapshot_unintend(worktree);
	if (error == -ERR_MOVED) {
		ref_release(&committing->head);
		committing->head = contended.now;
	}
	return error;
}

/* Nobody re-creates by accident what somebody deleted on purpose. */
static int fail_gone(struct committing *committing, int error)
{
	const char *branch = worktree_branch(committing->worktree);
	return fail(committing->message, error,
	            "branch '%s' was deleted or renamed elsewhere; your changes are kept. `lakectl "
	            "undo %s` or `lakectl branch create %s REV` brings it back, then commit again",
	            branch, branch, branch);
}

/* The head as it is when whoever claimed it has moved it, or his time is over. */
static int wait_for_claim(struct committing *committing)
{
	struct object_store *store = odb_store(committing->trees->odb);
	struct ref *head = &committing->head;
	int error = 0;
	while (!error && head->claim.who &&
	       memcmp(head->claim.nonce, committing->claim_seen, REF_NONCE_BYTES) != 0) {
		unsigned pause = head->claim_ms / CLAIM_LOOKS + 1;
		int64_t deadline_ms = clock_monotonic_ms() + head->claim_ms;
		int changed = 0;
		memcpy(committing->claim_seen, head->claim.nonce, REF_NONCE_BYTES);
		while (changed == 0 && clock_monotonic_ms() < deadline_ms) {
			struct ref now = {0};
			pause_ms((int)(pause / 2 + random_u64() % pause));
			changed = ref_read_if_changed(store, REF_BRANCH, head->name, &head->etag,
			                              &now, committing->message);
			if (changed <= 0)
				continue;
			ref_release(head);
			*head = now;
		}
		error = changed < 0 ? changed : 0;
	}
	return error;
}

/* Who has lost often lost to attempts that are shorter than his, by what he has to read and merge
 * first. Without merging he is as quick as anybody. */
static int claim(struct committing *committing)
{
	struct ref_contended contended = {0};
	struct ref_author author = {.who = committing->options->author,
	                            .rights = committing->options->rights};
	int64_t for_ms = committing->contender.attempt_ms * CLAIM_ATTEMPTS;
	if (committing->contender.lost < CLAIM_AFTER)
		return 0;
	if (for_ms > CLAIM_MS_MAX)
		for_ms = CLAIM_MS_MAX;
	int error = ref_claim(odb_store(committing->trees->odb), &committing->head,
	                      (unsigned)for_ms, &author, &contended, committing->message);
	if (!error)
		memcpy(committing->claim_seen, committing->head.claim.nonce, REF_NONCE_BYTES);
	if (error != -ERR_MOVED)
		return 0; /* the rest goes without it, or fails likewise */
	ref_release(&committing->head);
	committing->head = contended.now;
	return error;
}

/* One attempt on the head as it is, or seems. -ERR_MOVED: it was moved first. */
static int commit_once(struct committing *committing)
{
	struct object_store *store = odb_store(committing->trees->odb);
	const char *branch = worktree_branch(committing->worktree);
	int error = 0;
	if (committing->head.move_count > 0)
		committing->guessing = false; /* where the loser of a race saw it */
	else if (committing->guessing)
		error = ref_read_known(store, REF_BRANCH, branch, &committing->head,
		                       committing->message);
	else
		error = ref_read(store, REF_BRANCH, branch, &committing->head, committing->message);
	if (!error)
		error = wait_for_claim(committing);
	if (error == -ERR_NOT_FOUND)
		return fail_gone(committing, error);
	committing->attempt_started_ms = clock_monotonic_ms();
	if (!error)
		error = claim(committing);
	if (!error)
		error = make_commit(committing);
	if (!error)
		error = make_left(committing);
	if (!error)
		error = move_ref(committing);
	if (error) {
		drop_left(committing);
		return error;
	}
	if (committing->trees->history)
		history_note(committing->trees->history, committing->made);
	error = worktree_swap(committing->worktree, committing->made, committing->left,
	                      committing->left_root, committing->message);
	/* Nothing was uncommitted and nothing is: what could not be noted, the next look at the
	 * head finds. With an intent swapping does not fail. */
	return committing->view.overlay ? error : 0;
}

/* Gate closed. */
static int commit_built(struct committing *committing)
{
	int error = check_changed(committing);
	if (error)
		return error;
	int64_t started_ms = clock_monotonic_ms();
	committing->contender.contention = &committing->worktree->contention;
	do {
		error = commit_once(committing);
		if (!error)
			contention_won(&committing->contender);
		if (error != -ERR_MOVED)
			return error;
	} while (clock_monotonic_ms() - started_ms < MOVE_MS_MAX);
	return fail(committing->message, error,
	            "%s is being moved by others all the time; try again",
	            worktree_branch(committing->worktree));
}

/* -- let go, and say what was done -- */

static void finish(struct committing *committing, struct commit_result *ret_result)
{
	struct packer_stats stats;
	struct commit_result result = {
	        .commit = committing->made->self,
	        .rebased = committing->rebased,
	};
	const struct counts *counts = &committing->counts;
	count_changes(committing);
	packer_stats(committing->packer, &stats);
	result.packs = stats.packs_put;
	result.bytes_stored = stats.bytes_stored;
	result.files = counts->files;
	result.more = counts->more;
	/* Of what changed, everything that was not new was known: stored before, here or elsewhere
	 * in these files, or a hole. */
	result.bytes_new = stats.content_new;
	result.bytes_known =
	        counts->bytes > stats.content_new ? counts->bytes - stats.content_new : 0;
	*ret_result = result;

	struct worktree_observer observer;
	worktrees_observer(committing->trees, &observer);
	/* what was visible is what was built; others' changes are new here */
	if (observer.moved && !id_equal(&committing->shown.tree.id, &committing->built.tree.id))
		observer.moved(observer.context, worktree_branch(committing->worktree),
		               &committing->built.tree, &committing->shown.tree);
	bool more = stored_adopt(&committing->stored, committing->trees, ADOPT_NOW_FILES) > 0;
	overlay_let_go(committing->trees, steal(&committing->retired),
	               more ? &committing->stored : NULL, false);
}

static int commit_given_room(struct worktree *worktree, const struct commit_options *options,
                             struct commit_result *ret_result, struct message *message)
{
	struct message said = {{0}}; /* an attempt that lost a race says so, too */
	CLEANUP(committing_release)
	struct committing committing = {
	        .worktree = worktree,
	        .trees = worktree->trees,
	        .options = options,
	        .message = &said,
	};
	committing.guessing = !contention_enter(&worktree->contention);
	int error = worktree_check_move(worktree, options->rights, &said);
	if (!error)
		error = path_set_init(&committing.paths, options->paths, options->path_count,
		                      &said);
	if (!error)
		error = packer_new(committing.trees->odb, &committing.packer);
	if (!error)
		error = build_at_rest(&committing);
	if (!error) {
		error = commit_built(&committing);
		if (!error) {
			stored_leave(&committing.stored, committing.trees, committing.left);
			committing.retired = overlay_retire(
			        committing.trees, committing.view.overlay, committing.left);
		}
		worktree_open_gate(worktree);
	}
	if (!error)
		finish(&committing, ret_result);
	else if (!said.text[0])
		fail(message, error, "cannot commit to %s: %s", worktree_branch(worktree),
		     error_text(error));
	else if (message)
		*message = said;
	return worktree_refused(worktree, error);
}

int worktree_commit(struct worktree *worktree, const struct commit_options *options,
                    struct commit_result *ret_result, struct message *message)
{
	struct message said = {{0}};
	int error = commit_given_room(worktree, options, ret_result, &said);
	if (error == -ERR_NO_SPACE) {
		/* Who has just deleted files to make room: the kernel tells us of the last use of a
		 * file a little later, and only then it goes. */
		usleep(ROOM_WAIT_MS * 1000);
		staging_remove_now(worktree->trees);
		error = commit_given_room(worktree, options, ret_result, &said);
	}
	if (error && message)
		*message = said;
	return error;
}
