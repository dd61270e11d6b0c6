/*
 * worktree_move — hides how a branch changes under its working tree: moved, deleted, renamed.
 *
 * The order is that of a commit (fs/snapshot.c): what stays uncommitted is written as a new
 * overlay, the intent is made durable, the ref moves, the record swaps.
 *
 * Deleting removes the ref first: a crash before the record goes leaves uncommitted changes of a
 * branch that is not there; bringing the branch back brings them back too. Renaming first records
 * that it is about to begin, with a nonce (struct branch_renaming); what a crash or a failure
 * leaves is ended, as the refs tell that it went, at opening or before a working tree of either
 * name is made.
 */
#include "fs/snapshot.h"

#include <stdio.h>

#define MOVE_TRIES_MAX 16
#define TOP_NAMES_MAX 256

static void worktree_cleanup(struct worktree **worktree)
{
	worktree_unref(*worktree);
}

/* -- moving -- */

struct moving {
	struct worktree *worktree;
	struct worktrees *trees;
	const struct move_options *options;
	struct message *message;
	struct worktree_view view;
	struct ground ground;
	struct commit *target;
	uint64_t left, left_root;
	struct buffer top_names; /* discarded: NUL-terminated names in the root */
	size_t top_count;
};

static void moving_release(struct moving *moving)
{
	free(moving->target);
	buffer_release(&moving->top_names);
}

static int note_top_name(void *context, const struct overlay_entry *entry)
{
	struct moving *moving = context;
	buffer_append(&moving->top_names, entry->name, entry->name_length + 1);
	return ++moving->top_count > TOP_NAMES_MAX;
}

/* Nothing stays. */
static int discard_all(struct moving *moving)
{
	size_t writers = 0;
	int error = overlay_writers(moving->trees, moving->view.overlay, &writers);
	if (error)
		return error;
	if (writers)
		return fail_busy(moving->worktree, NULL, writers,
		                 "close them, or what is written there would be lost",
		                 moving->message);
	if (moving->view.overlay)
		error = overlay_entries(moving->trees, moving->view.overlay, moving->view.root,
		                        NULL, 0, note_top_name, moving);
	return error < 0 ? error : buffer_check(&moving->top_names);
}

static int keep_changes(struct moving *moving)
{
	struct names collisions = {0};
	const struct rebase_options options = {
	        .ground = &moving->ground,
	        .after = {moving->target->tree, moving->target->root},
	};
	int error = rebase_overlay(&options, &moving->left, &moving->left_root, &collisions,
	                           moving->message);
	if (error != -ERR_CONFLICT)
		return error;
	return fail(moving->message, error,
	            "uncommitted changes in %s collide with what it is to become: %s; nothing was "
	            "moved. %s them first",
	            worktree_branch(moving->worktree), names_text(&collisions),
	            moving->worktree->read_only ? "Keep a copy and `lakectl restore`"
	                                        : "Commit or restore");
}

/* The head to move from. What is known without asking will do when there is something to put: then
 * the put tells whether it was right. */
static int read_head(struct moving *moving, bool guess, struct ref *ret_head)
{
	struct object_store *store = odb_store(moving->trees->odb);
	const struct pointer *target = &moving->target->self, *expected = moving->options->expected;
	const char *branch = worktree_branch(moving->worktree);
	if (guess) {
		CLEANUP(ref_release) struct ref head = {0};
		int error = ref_read_known(store, REF_BRANCH, branch, &head, moving->message);
		if (error)
			return error;
		if (!id_equal(&head.commit.id, &target->id) &&
		    (!expected || id_equal(&head.commit.id, &expected->id))) {
			*ret_head = head;
			head = (struct ref){0};
			return 0;
		}
	}
	return ref_read(store, REF_BRANCH, branch, ret_head, moving->message);
}

static int move_ref_once(struct moving *moving, bool intend, bool guess)
{
	struct object_store *store = odb_store(moving->trees->odb);
	const struct pointer *target = &moving->target->self, *expected = moving->options->expected;
	const char *branch = worktree_branch(moving->worktree);
	CLEANUP(ref_release) struct ref head = {0};
	struct ref_author author = {.who = moving->options->who,
	                            .command = moving->options->command,
	                            .rights = moving->options->rights};
	int error = read_head(moving, guess, &head);
	if (error || id_equal(&head.commit.id, &target->id))
		return error;
	if (expected && !id_equal(&head.commit.id, &expected->id))
		return fail(moving->message, -ERR_MOVED, "%s has moved meanwhile", branch);
	if (intend)
		error = worktree_intend(moving->worktree, &head.commit, target, moving->left,
		                        moving->left_root, moving->message);
	if (error)
		return error;
	error = ref_move(store, &head, target, &author, moving->message);
	if (!error)
		worktree_note_protection(moving->worktree, &head.protection, true);
	if (error && intend)
		snapshot_unintend(moving->worktree);
	return error;
}

/* From the head as it is: when somebody else moves it at the same time, from where they put it,
 * unless the caller said what it must be. */
static int move_ref(struct moving *moving)
{
	int error = -ERR_MOVED;
	for (int try = 0; error == -ERR_MOVED && try < MOVE_TRIES_MAX; try++) {
		error = move_ref_once(moving, moving->view.overlay != 0, try == 0);
		if (error == -ERR_MOVED && moving->options->expected)
			break;
	}
	return error;
}

/* Gate closed. */
static int move_closed(struct moving *moving)
{
	worktree_view(moving->worktree, &moving->view);
	moving->ground = ground_of(moving->trees, &moving->view);
	int error = moving->options->discard ? discard_all(moving) : keep_changes(moving);
	if (error)
		return error;
	error = move_ref(moving);
	if (!error) {
		error = worktree_swap(moving->worktree, moving->target, moving->left,
		                      moving->left_root, moving->message);
		/* as for a commit: with an intent it does not fail, without changes the next look
		 * at the head makes up for it */
		if (!moving->view.overlay)
			error = 0;
	}
	if (error)
		overlay_discard(moving->trees, moving->left, moving->view.overlay);
	return error;
}

static void tell_moved(struct moving *moving)
{
	const char *branch = worktree_branch(moving->worktree);
	struct worktree_observer observer;
	worktrees_observer(moving->trees, &observer);
	if (observer.moved && !id_equal(&moving->view.base_tree.id, &moving->target->tree.id))
		observer.moved(observer.context, branch, &moving->view.base_tree,
		               &moving->target->tree);
	if (!observer.paths_changed || moving->top_count == 0)
		return;
	const char *paths[TOP_NAMES_MAX] = {""};
	size_t count = moving->top_count > TOP_NAMES_MAX ? 1 : moving->top_count;
	const char *name = (const char *)moving->top_names.data;
	for (size_t i = 0; moving->top_count <= TOP_NAMES_MAX && i < count; i++) {
		paths[i] = name;
		name += strlen(name) + 1;
	}
	observer.paths_changed(observer.context, branch, paths, count);
}

int worktree_move(struct worktree *worktree, const struct pointer *commit,
                  const struct move_options *options, struct message *message)
{
	struct message said = {{0}};
	CLEANUP(moving_release)
	struct moving moving = {
	        .worktree = worktree,
	        .trees = worktree->trees,
	        .options = options,
	        .message = &said,
	};
	struct discarded *retired = NULL;
	int error = worktree_check_move(worktree, options->rights, &said);
	if (!error)
		error = commit_read(moving.trees->odb, commit, &moving.target, &said);
	if (!error)
		error = worktree_close_gate(worktree);
	if (!error) {
		error = move_closed(&moving);
		if (!error)
			retired = overlay_retire(moving.trees, moving.view.overlay, moving.left);
		worktree_open_gate(worktree);
	}
	if (!error) {
		tell_moved(&moving);
		overlay_let_go(moving.trees, retired, NULL, false);
	} else if (!said.text[0]) {
		fail(message, error, "cannot move %s: %s", worktree_branch(worktree),
		     error_text(error));
	} else if (message) {
		*message = said;
	}
	return worktree_refused(worktree, error);
}

/* -- deleting -- */

/* Gate closed: may it go? */
static int check_deletable(struct worktree *worktree, const struct worktree_view *view, bool force,
                           struct message *message)
{
	struct ground ground = ground_of(worktree->trees, view);
	size_t writers = 0;
	bool changed = false;
	int error = overlay_writers(worktree->trees, view->overlay, &writers);
	if (error)
		return error;
	if (writers)
		return fail_busy(worktree, NULL, writers, "close them first", message);
	if (force)
		return 0;
	error = ground_changed(&ground, &changed, message);
	if (!error && changed)
		return fail(message, -ERR_REFUSED,
		            "%s has uncommitted changes, which would be lost; commit or restore "
		            "them, or delete it with --force",
		            worktree_branch(worktree));
	return error;
}

/* Gate closed. */
static int delete_closed(struct worktree *worktree, const struct worktree_view *view, bool force,
                         const struct ref_author *author, struct message *message)
{
	const char *branch = worktree_branch(worktree);
	int error = check_deletable(worktree, view, force, message);
	if (error)
		return error;
	error = ref_delete(odb_store(worktree->trees->odb), REF_BRANCH, branch, author, message);
	/* what a crash (or another host's deletion) left of one that is gone already */
	if (error == -ERR_NOT_FOUND && force && view->overlay)
		error = 0;
	if (error)
		return error;
	error = worktree_drop(worktree, message);
	if (error)
		worktree_depart(worktree);
	return view->overlay ? error : 0;
}

int worktree_delete_branch(struct worktrees *trees, const char *branch, bool force,
                           const struct ref_author *author, struct message *message)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	struct worktree_view view;
	struct worktree_observer observer;
	int error = worktree_get(trees, branch, &worktree, message);
	if (!error)
		error = worktree_settle_own(worktree, message);
	if (!error)
		error = worktree_close_gate(worktree);
	if (error)
		return error;
	worktree_view(worktree, &view);
	error = delete_closed(worktree, &view, force, author, message);
	worktree_open_gate(worktree);
	if (error)
		return error;
	overlay_discard(trees, view.overlay, 0);
	worktrees_observer(trees, &observer);
	if (observer.branch_gone)
		observer.branch_gone(observer.context, branch);
	return 0;
}

/* -- renaming -- */

/* Uncommitted changes that are kept under the new name would be lost. */
static int check_free(struct worktrees *trees, const char *to, struct message *message)
{
	struct branch_record record;
	int error = branch_record_read(trees, to, &record);
	if (error == -ERR_NOT_FOUND)
		return 0;
	if (error)
		return error;
	return fail(message, -ERR_EXISTS,
	            "uncommitted changes of a former branch '%s' are still here; choose another "
	            "name, or `lakectl branch delete --force %s`",
	            to, to);
}

/* It is known that the old name is still the branch's, and will be. After other errors the store
 * may yet act. */
static bool surely_not_renamed(int error)
{
	return error == -ERR_EXISTS || error == -ERR_NOT_FOUND || error == -ERR_MOVED ||
	       error == -ERR_REFUSED;
}

/* Gate closed, under renames_lock: the refs tell that the announced renaming was done. */
static int finish_renaming(struct worktree *worktree, struct message *message)
{
	const struct branch_renaming renaming = worktree->renaming;
	const char *from = worktree_branch(worktree);
	struct message said = {{0}};
	int error = check_free(worktree->trees, renaming.to, &said);
	if (error == -ERR_EXISTS) { /* then these are uncommitted changes of a former branch, too */
		(void)worktree_announce(worktree, NULL, NULL);
	} else if (!error) {
		error = worktree_rekey(worktree, renaming.to, &said);
		if (error) /* whoever asks for either name finds the record */
			worktree_depart(worktree);
	}
	if (!error)
		return 0;
	return fail(message, error, "'%s' is '%s' now, but that could not be recorded here: %s",
	            from, renaming.to, said.text);
}

/* Gate closed, under renames_lock. */
static int rename_locked(struct worktree *worktree, const char *to, const struct ref_author *author,
                         struct message *message)
{
	struct object_store *store = odb_store(worktree->trees->odb);
	const char *from = worktree_branch(worktree);
	struct branch_renaming renaming = {0};
	struct ref_author renamer = *author;
	bool done = false;
	snprintf(renaming.to, sizeof(renaming.to), "%s", to);
	random_bytes(renaming.nonce, sizeof(renaming.nonce));
	renamer.nonce = renaming.nonce;
	int error = check_free(worktree->trees, to, message);
	if (!error)
		error = worktree_announce(worktree, &renaming, message);
	if (error)
		return error;
	error = ref_rename(store, REF_BRANCH, from, to, &renamer, message);
	if (error && !surely_not_renamed(error) &&
	    ref_was_renamed(store, REF_BRANCH, from, to, renaming.nonce, &done, NULL) == 0 && done)
		error = 0;
	if (!error)
		return finish_renaming(worktree, message);
	if (surely_not_renamed(error)) /* if this fails it is found out at the next opening */
		(void)worktree_announce(worktree, NULL, NULL);
	return error;
}

static void tell_renamed(struct worktrees *trees, const char *from, const char *to)
{
	struct worktree_observer observer;
	worktrees_observer(trees, &observer);
	if (observer.branch_renamed)
		observer.branch_renamed(observer.context, from, to);
}

int worktree_rename_branch(struct worktrees *trees, const char *from, const char *to,
                           const struct ref_author *author, struct message *message)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	int error = ref_name_check(to, message);
	if (!error && strcmp(from, to) == 0)
		return fail(message, -ERR_EXISTS, "'%s' has that name already", from);
	if (!error)
		error = worktree_get(trees, from, &worktree, message);
	if (!error)
		error = worktree_settle_own(worktree, message);
	if (!error)
		error = worktree_close_gate(worktree);
	if (error)
		return error;
	pthread_mutex_lock(&trees->renames_lock);
	bool others_open = trees->renames_open;
	bool is_ours = strcmp(worktree_branch(worktree), from) == 0;
	if (is_ours)
		error = rename_locked(worktree, to, author, message);
	else if (strcmp(worktree_branch(worktree), to) != 0) /* else an earlier attempt did it */
		error = fail(message, -ERR_NOT_FOUND, "no branch '%s'", from);
	trees->renames_open = others_open || worktree->renaming.to[0];
	pthread_mutex_unlock(&trees->renames_lock);
	worktree_open_gate(worktree);
	if (others_open)
		(void)worktrees_settle_renames(trees);
	if (!error && is_ours)
		tell_renamed(trees, from, to);
	return error;
}

/* -- renamings that a crash or a failure interrupted -- */

static int was_renamed(struct worktrees *trees, const char *from,
                       const struct branch_renaming *renaming, bool *ret_renamed,
                       struct message *message)
{
	int error = ref_was_renamed(odb_store(trees->odb), REF_BRANCH, from, renaming->to,
	                            renaming->nonce, ret_renamed, NULL);
	if (!error)
		return 0;
	return fail(message, error,
	            "renaming '%s' to '%s' was interrupted, and whether it was done cannot be told "
	            "while the store cannot be read: %s",
	            from, renaming->to, error_text(error));
}

/* Under renames_lock: no working tree of that branch exists, and none can be made. */
static int settle_record(struct worktrees *trees, const char *from, struct branch_record *record,
                         struct message *message)
{
	const struct branch_renaming renaming = record->renaming;
	bool renamed = false;
	int error = was_renamed(trees, from, &renaming, &renamed, message);
	if (error)
		return error;
	if (renamed && check_free(trees, renaming.to, NULL) == -ERR_EXISTS)
		renamed = false; /* as in finish_renaming */
	CLEANUP(state_batch_release) struct state_batch batch = {.makes_room = true};
	record->renaming = (struct branch_renaming){0};
	if (renamed)
		branch_record_put(&batch, from, &(struct branch_record){0});
	branch_record_put(&batch, renamed ? renaming.to : from, record);
	return state_commit(trees->state, &batch, message);
}

/* Gate closed, under renames_lock. */
static int settle_closed(struct worktree *worktree, bool *ret_renamed, struct message *message)
{
	if (!worktree->renaming.to[0])
		return 0;
	int error = was_renamed(worktree->trees, worktree_branch(worktree), &worktree->renaming,
	                        ret_renamed, message);
	if (error)
		return error;
	if (*ret_renamed)
		return finish_renaming(worktree, message);
	(void)worktree_announce(worktree, NULL, NULL);
	return 0;
}

int worktree_settle_own(struct worktree *worktree, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	bool renamed = false;
	pthread_mutex_lock(&trees->table_lock);
	bool open = worktree->renaming.to[0] != '\0';
	pthread_mutex_unlock(&trees->table_lock);
	if (!open)
		return 0;
	int error = worktree_close_gate(worktree);
	if (error)
		return error == -ERR_NOT_FOUND ? 0 : error;
	const char *from = worktree_branch(worktree);
	pthread_mutex_lock(&trees->renames_lock);
	error = settle_closed(worktree, &renamed, message);
	pthread_mutex_unlock(&trees->renames_lock);
	const char *to = worktree_branch(worktree);
	worktree_open_gate(worktree);
	if (!error && renamed)
		tell_renamed(trees, from, to);
	return error;
}

struct search {
	struct worktrees *trees;
	const char *name;            /* of either side */
	char from[REF_NAME_MAX + 1]; /* found, without a working tree */
	struct branch_record record;
};

/* A working tree that is being renamed (to `to`, unless that is NULL), with one more reference. */
static struct worktree *find_renaming(struct worktrees *trees, const char *to)
{
	struct worktree *worktree, *next, *found = NULL;
	pthread_mutex_lock(&trees->table_lock);
	HASH_ITER (hh, trees->by_branch, worktree, next) {
		const char *becomes = worktree->renaming.to;
		if (!found && becomes[0] && (!to || strcmp(becomes, to) == 0))
			found = worktree;
	}
	if (found)
		found->references++;
	pthread_mutex_unlock(&trees->table_lock);
	return found;
}

static bool has_worktree(struct worktrees *trees, const char *branch)
{
	struct worktree *found = NULL;
	pthread_mutex_lock(&trees->table_lock);
	HASH_FIND_STR(trees->by_branch, branch, found);
	pthread_mutex_unlock(&trees->table_lock);
	return found != NULL;
}

static int note_renaming(void *context, const char *branch, const struct branch_record *record)
{
	struct search *search = context;
	const char *name = search->name;
	if (!record->renaming.to[0] || has_worktree(search->trees, branch) ||
	    (strcmp(name, branch) != 0 && strcmp(name, record->renaming.to) != 0))
		return 0;
	strcpy(search->from, branch);
	search->record = *record;
	return 1;
}

struct settling {
	struct worktrees *trees;
	bool left;
};

static int settle_each(void *context, const char *branch, const struct branch_record *record)
{
	struct settling *settling = context;
	struct branch_record copy = *record;
	if (!record->renaming.to[0])
		return 0;
	if (has_worktree(settling->trees, branch) ||
	    settle_record(settling->trees, branch, &copy, NULL) != 0)
		settling->left = true; /* when a working tree of either name is made */
	return 0;
}

int worktrees_settle_renames(struct worktrees *trees)
{
	struct settling settling = {.trees = trees};
	pthread_mutex_lock(&trees->renames_lock);
	int error = branch_records_each(trees, settle_each, &settling);
	struct worktree *loaded = find_renaming(trees, NULL);
	if (!error)
		trees->renames_open = settling.left || loaded;
	pthread_mutex_unlock(&trees->renames_lock);
	worktree_unref(loaded);
	return error;
}

int worktree_settle_renamed(struct worktrees *trees, const char *branch, struct message *message)
{
	for (;;) {
		CLEANUP(worktree_cleanup) struct worktree *other = find_renaming(trees, branch);
		if (other) {
			int error = worktree_settle_own(other, message);
			if (error)
				return error;
			continue;
		}
		struct search search = {.trees = trees, .name = branch};
		pthread_mutex_lock(&trees->renames_lock);
		int found = branch_records_each(trees, note_renaming, &search);
		int error = found == 1 ? settle_record(trees, search.from, &search.record, message)
		                       : found;
		pthread_mutex_unlock(&trees->renames_lock);
		if (found != 1 || error)
			return error;
	}
}

/* -- roots -- */

struct roots {
	int (*commit_fn)(void *context, const struct pointer *commit);
	int (*tree_fn)(void *context, const struct pointer *tree);
	int (*content_fn)(void *context, const struct content *content);
	void *context;
	struct worktrees *trees;
};

static int root_inode(void *context, const struct inode *inode)
{
	struct roots *roots = context;
	if (S_ISDIR(inode->attributes.mode))
		return pointer_is_none(&inode->tree) || !roots->tree_fn
		               ? 0
		               : roots->tree_fn(roots->context, &inode->tree);
	if (!S_ISREG(inode->attributes.mode) || inode->content.kind == CONTENT_EMPTY ||
	    !roots->content_fn)
		return 0;
	return roots->content_fn(roots->context, &inode->content);
}

static int root_branch(void *context, const char *branch, const struct branch_record *record)
{
	struct roots *roots = context;
	/* An intent's commit is the ref's when it got there, and else dropped, maybe never stored.
	 */
	int result = roots->commit_fn(roots->context, &record->base);
	if (!result && record->overlay)
		result = overlay_inodes(roots->trees, record->overlay, root_inode, roots);
	if (!result && record->intent && record->intent_overlay)
		result = overlay_inodes(roots->trees, record->intent_overlay, root_inode, roots);
	return result;
}

int worktrees_roots(struct worktrees *trees,
                    int (*commit_fn)(void *context, const struct pointer *commit),
                    int (*tree_fn)(void *context, const struct pointer *tree),
                    int (*content_fn)(void *context, const struct content *content), void *context)
{
	struct roots roots = {commit_fn, tree_fn, content_fn, context, trees};
	return branch_records_each(trees, root_branch, &roots);
}
