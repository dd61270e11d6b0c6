/*
 * worktree_move — hides how a branch changes under its working tree: moved, deleted, renamed.
 *
 * The order is that of a commit (fs/snapshot.c): what stays uncommitted is written as a new
 * overlay, the intent is made durable, the ref moves, the record swaps.
 *
 * Deleting removes the ref first: a crash before the record goes leaves uncommitted changes of a
 * branch that is not there; bringing the branch back brings them back too. Renaming records the
 * overlay under both names first; when a crash or a failure leaves both, the one whose branch
 * exists is kept, at opening or before either is next used. Deleting the other leaves the overlay
 * alone.
 */
#include "fs/snapshot.h"

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
	int error = worktree_check_move(worktree, options->rights, &said);
	if (!error)
		error = commit_read(moving.trees->odb, commit, &moving.target, &said);
	if (!error)
		error = worktree_close_gate(worktree);
	if (!error) {
		error = move_closed(&moving);
		worktree_open_gate(worktree);
	}
	if (!error) {
		tell_moved(&moving);
		overlay_discard(moving.trees, moving.view.overlay, moving.left);
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
		error = worktree_close_gate(worktree);
	if (error)
		return error;
	worktree_view(worktree, &view);
	error = delete_closed(worktree, &view, force, author, message);
	worktree_open_gate(worktree);
	if (error)
		return error;
	overlay_leave(trees, view.overlay, 0);
	worktrees_observer(trees, &observer);
	if (observer.branch_gone)
		observer.branch_gone(observer.context, branch);
	return 0;
}

/* -- renaming -- */

static int put_branch(struct worktrees *trees, const char *branch,
                      const struct branch_record *record, struct message *message)
{
	/* A record that goes must not be what a full disk refuses. */
	CLEANUP(state_batch_release)
	struct state_batch batch = {.makes_room = record->overlay == 0};
	branch_record_put(&batch, branch, record);
	return state_commit(trees->state, &batch, message);
}

/* Gate closed. The overlay is the new name's too, should the ref get there and we not. */
static int share_record(struct worktree *worktree, const struct worktree_view *view, const char *to,
                        struct message *message)
{
	struct branch_record record;
	int error = branch_record_read(worktree->trees, to, &record);
	if (!error)
		return fail(message, -ERR_EXISTS,
		            "uncommitted changes of a former branch '%s' are still here; choose "
		            "another name, or `lakectl branch delete --force %s`",
		            to, to);
	if (error != -ERR_NOT_FOUND)
		return error;
	record = (struct branch_record){
	        .overlay = view->overlay,
	        .root = view->root,
	        .base = view->base,
	};
	worktree->trees->renames_open = true;
	error = put_branch(worktree->trees, to, &record, message);
	return error ? error : state_sync(worktree->trees->state);
}

/* When did the branch last move? -ERR_NOT_FOUND: there is none. */
static int moved_when(struct worktrees *trees, const char *branch, int64_t *ret_ms)
{
	CLEANUP(ref_release) struct ref ref = {0};
	int error = ref_read(odb_store(trees->odb), REF_BRANCH, branch, &ref, NULL);
	if (!error)
		*ret_ms = ref.move_count ? ref.moves[0].time_ms : 0;
	return error;
}

/* It is known that the old name is still the branch's; the new one may be another branch's. */
static bool surely_not_renamed(int error)
{
	return error == -ERR_EXISTS || error == -ERR_NOT_FOUND || error == -ERR_MOVED ||
	       error == -ERR_REFUSED;
}

/* The ref's renaming failed with `error`. 0: but it was done. */
static int check_renamed(struct worktree *worktree, const char *to, int error)
{
	int64_t ms;
	if (surely_not_renamed(error))
		return error;
	bool done = moved_when(worktree->trees, worktree_branch(worktree), &ms) == -ERR_NOT_FOUND &&
	            moved_when(worktree->trees, to, &ms) == 0;
	return done ? 0 : error;
}

static int settle_locked(struct worktrees *trees);

/* Gate closed, under renames_lock. */
static int rename_locked(struct worktree *worktree, const char *to, const struct ref_author *author,
                         struct message *message)
{
	struct worktrees *trees = worktree->trees;
	const char *from = worktree_branch(worktree);
	struct worktree_view view;
	struct message said = {{0}};
	const struct branch_record none = {0};
	int error = 0;
	worktree_view(worktree, &view);
	if (view.overlay)
		error = share_record(worktree, &view, to, message);
	if (!error) {
		error = ref_rename(odb_store(trees->odb), REF_BRANCH, from, to, author, message);
		error = error ? check_renamed(worktree, to, error) : 0;
		if (surely_not_renamed(error) && view.overlay &&
		    put_branch(trees, to, &none, NULL) == 0)
			trees->renames_open = false;
		if (!error) {
			error = worktree_rekey(worktree, to, &said);
			if (error) { /* whoever asks for the new name finds its record */
				worktree_depart(worktree);
				fail(message, error,
				     "'%s' is '%s' now, but that could not be recorded here: %s",
				     from, to, said.text);
			}
		}
	}
	if (error && trees->renames_open)
		(void)settle_locked(trees);
	else
		trees->renames_open = false;
	return error;
}

/* Gate closed. */
static int rename_closed(struct worktree *worktree, const char *to, const struct ref_author *author,
                         struct message *message)
{
	struct worktrees *trees = worktree->trees;
	pthread_mutex_lock(&trees->renames_lock);
	/* What an earlier one left open is not forgotten with this one's end. */
	int error = trees->renames_open ? settle_locked(trees) : 0;
	if (error)
		fail(message, error, "an earlier renaming was interrupted: %s", error_text(error));
	else if (trees->renames_open)
		error = fail(
		        message, -ERR_STORE_AWAY,
		        "an earlier renaming was interrupted, and whether it was done cannot be "
		        "told yet; once the store can be read, try again");
	if (!error)
		error = rename_locked(worktree, to, author, message);
	pthread_mutex_unlock(&trees->renames_lock);
	return error;
}

int worktree_rename_branch(struct worktrees *trees, const char *from, const char *to,
                           const struct ref_author *author, struct message *message)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	struct worktree_observer observer;
	int error = ref_name_check(to, message);
	if (!error && strcmp(from, to) == 0)
		return fail(message, -ERR_EXISTS, "'%s' has that name already", from);
	if (!error)
		error = worktree_get(trees, from, &worktree, message);
	if (!error)
		error = worktree_close_gate(worktree);
	if (error)
		return error;
	error = rename_closed(worktree, to, author, message);
	worktree_open_gate(worktree);
	if (error)
		return error;
	worktrees_observer(trees, &observer);
	if (observer.branch_renamed)
		observer.branch_renamed(observer.context, from, to);
	return 0;
}

/* -- renames that a crash or a failure interrupted -- */

struct owner {
	uint64_t overlay;
	char branch[REF_NAME_MAX + 1];
};

static int note_owner(void *context, const char *branch, const struct branch_record *record)
{
	struct buffer *owners = context;
	struct owner owner = {.overlay = record->overlay};
	if (!record->overlay || strlen(branch) > REF_NAME_MAX)
		return 0;
	strcpy(owner.branch, branch);
	buffer_append(owners, &owner, sizeof(owner));
	return buffer_check(owners);
}

static int compare_owners(const void *a, const void *b)
{
	const struct owner *x = a, *y = b;
	return x->overlay < y->overlay ? -1 : x->overlay > y->overlay;
}

/* Is it being written to under that name? */
static bool is_used(struct worktrees *trees, const struct owner *owner)
{
	struct worktree *found = NULL;
	pthread_mutex_lock(&trees->table_lock);
	HASH_FIND_STR(trees->by_branch, owner->branch, found);
	bool used = found && found->overlay == owner->overlay;
	pthread_mutex_unlock(&trees->table_lock);
	return used;
}

/* Two names of one overlay. The branch that exists has it; when both do the renaming came half
 * way, and it is still the older one's. */
static int settle_pair(struct worktrees *trees, const struct owner *x, const struct owner *y,
                       bool *left)
{
	const char *a = x->branch, *b = y->branch;
	const struct branch_record none = {0};
	int64_t a_ms = 0, b_ms = 0;
	int a_error = moved_when(trees, a, &a_ms), b_error = moved_when(trees, b, &b_ms);
	if ((a_error && a_error != -ERR_NOT_FOUND) || (b_error && b_error != -ERR_NOT_FOUND)) {
		*left = true; /* the store is away: when it is back */
		return 0;
	}
	if (a_error && b_error)
		return 0;
	bool keep_a = b_error || (!a_error && a_ms <= b_ms);
	if (is_used(trees, keep_a ? y : x)) {
		*left = true; /* when it is deleted, or at the next opening */
		return 0;
	}
	return put_branch(trees, keep_a ? b : a, &none, NULL);
}

/* Under renames_lock. */
static int settle_locked(struct worktrees *trees)
{
	bool left = false;
	CLEANUP(buffer_release) struct buffer owners = {0};
	int error = branch_records_each(trees, note_owner, &owners);
	struct owner *list = (struct owner *)(void *)owners.data;
	size_t count = owners.length / sizeof(*list);
	if (count)
		qsort(list, count, sizeof(*list), compare_owners);
	for (size_t i = 1; !error && i < count; i++)
		if (list[i - 1].overlay == list[i].overlay)
			error = settle_pair(trees, &list[i - 1], &list[i], &left);
	trees->renames_open = error || left;
	return error;
}

int worktrees_settle_renames(struct worktrees *trees)
{
	pthread_mutex_lock(&trees->renames_lock);
	int error = settle_locked(trees);
	pthread_mutex_unlock(&trees->renames_lock);
	return error;
}

struct search {
	uint64_t overlay;
	const char *but;
};

static int note_other(void *context, const char *branch, const struct branch_record *record)
{
	const struct search *search = context;
	bool other = !search->but || strcmp(branch, search->but) != 0;
	return other && record->overlay == search->overlay;
}

/* Does a branch other than `but` (NULL: any) have it? Yes, when that cannot be read. */
static bool is_named(struct worktrees *trees, uint64_t overlay, const char *but)
{
	struct search search = {overlay, but};
	return branch_records_each(trees, note_other, &search) != 0;
}

int worktree_settle_renamed(struct worktrees *trees, const char *branch,
                            struct branch_record *record, struct message *message)
{
	if (!is_named(trees, record->overlay, branch))
		return 0;
	int error = worktrees_settle_renames(trees);
	if (error)
		return fail(message, error, "a renaming of '%s' was interrupted: %s", branch,
		            error_text(error));
	error = branch_record_read(trees, branch, record);
	if (error || !trees->renames_open || !is_named(trees, record->overlay, branch))
		return error;
	return fail(message, -ERR_STORE_AWAY,
	            "a renaming of '%s' was interrupted, and whether it was done cannot be told "
	            "while the store cannot be read",
	            branch);
}

/* When the records cannot be read it is left: what nobody names goes at the next opening. */
void overlay_leave(struct worktrees *trees, uint64_t overlay, uint64_t successor)
{
	if (overlay && !is_named(trees, overlay, NULL))
		overlay_discard(trees, overlay, successor);
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
