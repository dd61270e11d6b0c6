/*
 * worktree.c — hides the life of working trees: which branches have one open, what a crash left and
 * how it is settled.
 */
#include "fs/worktree_internal.h"
#include "store/thread.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define TIMES_PROBED 8
#define CLOCK_STEP_NS_MIN 1000000 /* with CONFIG_HZ=1000 */

struct name_kept {
	struct name_kept *next;
	char name[REF_NAME_MAX + 1];
};

/* -- one working tree -- */

static void worktree_free(struct worktree *worktree)
{
	if (worktree == NULL)
		return;
	while (worktree->names != NULL) {
		struct name_kept *name = worktree->names;
		worktree->names = name->next;
		free(name);
	}
	standing_release(&worktree->standing);
	pthread_mutex_destroy(&worktree->refresh_lock);
	pthread_rwlock_destroy(&worktree->gate);
	free(worktree);
}

static void worktree_cleanup(struct worktree **worktree)
{
	worktree_free(*worktree);
}

/* Names are kept, for whoever still looks at what worktree_branch returned. */
static int set_name(struct worktree *worktree, const char *branch)
{
	struct name_kept *name = calloc(1, sizeof(*name));
	if (name == NULL)
		return -ERR_NO_MEMORY;
	assert(strlen(branch) <= REF_NAME_MAX);
	strcpy(name->name, branch);
	name->next = worktree->names;
	worktree->names = name;
	worktree->branch = name->name;
	return 0;
}

static int worktree_new(struct worktrees *trees, const char *branch, struct worktree **ret_worktree)
{
	struct worktree *worktree = calloc(1, sizeof(*worktree));
	if (worktree == NULL)
		return -ERR_NO_MEMORY;
	worktree->trees = trees;
	pthread_rwlockattr_t writers_first;
	pthread_rwlockattr_init(&writers_first);
	pthread_rwlockattr_setkind_np(&writers_first, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&worktree->gate, &writers_first);
	pthread_rwlockattr_destroy(&writers_first);
	pthread_mutex_init(&worktree->refresh_lock, NULL);
	worktree->epoch = ++trees->epochs;
	int r = set_name(worktree, branch);
	if (r != 0) {
		worktree_free(worktree);
		return r;
	}
	*ret_worktree = worktree;
	return 0;
}

void worktree_set_base(struct worktree *worktree, const struct commit *commit)
{
	worktree->base = commit->self;
	worktree->base_tree = commit->tree;
	worktree->base_root = commit->root;
	if (!S_ISDIR(worktree->base_root.mode))
		worktree->base_root.mode = S_IFDIR | 0755;
}

int worktrees_read_commit(struct worktrees *trees, const struct pointer *pointer,
                          struct commit **ret_commit, struct message *message)
{
	int r = commit_read(trees->odb, pointer, ret_commit, message);
	if (r == -ERR_NOT_FOUND) /* its branch is there, and must not read as if it were not */
		return fail_context(message, -ERR_CORRUPT, "missing commit");
	if (r == 0 && trees->history != NULL)
		history_note(trees->history, *ret_commit);
	return r;
}

static void ref_cleanup(struct ref *ref)
{
	ref_release(ref);
}

const char *worktree_branch(const struct worktree *worktree)
{
	return worktree->branch;
}

uint64_t worktree_epoch(const struct worktree *worktree)
{
	return worktree->epoch;
}

void worktree_view(struct worktree *worktree, struct worktree_view *ret_view)
{
	pthread_mutex_lock(&worktree->trees->table_lock);
	*ret_view = (struct worktree_view){
	        .overlay = worktree->overlay,
	        .root = worktree->root,
	        .epoch = worktree->epoch,
	        .base = worktree->base,
	        .base_tree = worktree->base_tree,
	        .base_root = worktree->base_root,
	};
	pthread_mutex_unlock(&worktree->trees->table_lock);
}

int worktree_base(struct worktree *worktree, struct commit **ret_commit)
{
	struct worktree_view view;
	worktree_view(worktree, &view);
	return commit_read(worktree->trees->odb, &view.base, ret_commit, NULL);
}

int worktree_root(struct worktree *worktree, struct directory *ret_directory)
{
	struct worktree_view view;
	worktree_view(worktree, &view);
	*ret_directory = (struct directory){
	        .number = view.root,
	        .tree = view.overlay != 0 ? pointer_none : view.base_tree,
	};
	return 0;
}

/* -- the gate -- */

int worktree_enter(struct worktree *worktree, uint64_t epoch)
{
	if (pthread_rwlock_tryrdlock(&worktree->gate) != 0) {
		thread_about_to_block();
		pthread_rwlock_rdlock(&worktree->gate);
	}
	int r = worktree->gone ? -ERR_NOT_FOUND : worktree->epoch != epoch ? -ERR_STALE : 0;
	if (r != 0)
		pthread_rwlock_unlock(&worktree->gate);
	return r;
}

void worktree_leave(struct worktree *worktree)
{
	pthread_rwlock_unlock(&worktree->gate);
}

static int closed_unless_gone(struct worktree *worktree)
{
	if (!worktree->gone)
		return 0;
	pthread_rwlock_unlock(&worktree->gate);
	return -ERR_NOT_FOUND;
}

int worktree_close_gate(struct worktree *worktree)
{
	pthread_rwlock_wrlock(&worktree->gate);
	return closed_unless_gone(worktree);
}

int worktree_close_gate_within(struct worktree *worktree, int wait_ms)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)(wait_ms % 1000) * 1000000;
	until.tv_sec += wait_ms / 1000 + until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	if (pthread_rwlock_clockwrlock(&worktree->gate, CLOCK_MONOTONIC, &until) != 0)
		return -ERR_BUSY;
	return closed_unless_gone(worktree);
}

void worktree_open_gate(struct worktree *worktree)
{
	pthread_rwlock_unlock(&worktree->gate);
}

/* -- moving: the gate is closed -- */

static struct branch_record record_of(const struct worktree *worktree)
{
	return (struct branch_record){.overlay = worktree->overlay,
	                              .root = worktree->root,
	                              .base = worktree->base,
	                              .renaming = worktree->renaming};
}

static int put_record(struct worktree *worktree, const struct branch_record *record,
                      struct message *message)
{
	/* Without an overlay: its files can go. */
	CLEANUP(state_batch_release)
	struct state_batch batch = {.makes_room = record->overlay == 0};
	branch_record_put(&batch, worktree->branch, record);
	int r = state_commit(worktree->trees->state, &batch, message);
	if (r != 0)
		return r;
	worktree->intent = record->intent;
	worktree->intent_commit = record->intent_commit.id;
	worktree->intent_overlay = record->intent_overlay;
	return 0;
}

int worktree_intend(struct worktree *worktree, const struct pointer *head,
                    const struct pointer *commit, uint64_t overlay, uint64_t root,
                    struct message *message)
{
	struct branch_record record = record_of(worktree);
	if (commit == NULL)
		return put_record(worktree, &record, message);
	record.intent = true;
	record.intent_head = *head;
	record.intent_commit = *commit;
	record.intent_overlay = overlay;
	record.intent_root = root;
	int r = put_record(worktree, &record, message);
	if (r != 0)
		return r;
	r = state_sync(worktree->trees->state);
	if (r == 0)
		return 0;
	record.intent = false;
	put_record(worktree, &record, NULL);
	return fail(message, r, "cannot make the uncommitted state durable: %s", error_text(r));
}

/* Is the very move that is about to be recorded announced already? Then a crash ends in the same
 * place whether or not it is recorded now. The ref has moved: this must not need memory. */
static bool intended(const struct worktree *worktree, const struct commit *base, uint64_t overlay)
{
	return worktree->intent && id_equal(&worktree->intent_commit, &base->self.id) &&
	       worktree->intent_overlay == overlay;
}

int worktree_swap(struct worktree *worktree, const struct commit *base, uint64_t overlay,
                  uint64_t root, struct message *message)
{
	assert((overlay == 0) == (root == 0));
	struct branch_record record = {.overlay = overlay,
	                               .root = root,
	                               .base = base->self,
	                               .renaming = worktree->renaming};
	/* Nothing uncommitted, before and after: there is no record. */
	bool none = overlay == 0 && worktree->overlay == 0 && !worktree->intent;
	int r = none ? 0 : put_record(worktree, &record, message);
	if (r != 0 && !intended(worktree, base, overlay))
		return r;
	pthread_mutex_lock(&worktree->trees->table_lock);
	worktree_set_base(worktree, base);
	worktree->overlay = overlay;
	worktree->root = root;
	standing_release(&worktree->standing);
	worktree->epoch = ++worktree->trees->epochs;
	pthread_mutex_unlock(&worktree->trees->table_lock);
	worktree->refreshed_ms = clock_monotonic_ms();
	return 0;
}

/* Under table_lock. */
static void leave_table(struct worktree *worktree)
{
	HASH_DEL(worktree->trees->by_branch, worktree);
	worktree->trees->departures++;
}

void worktree_depart(struct worktree *worktree)
{
	pthread_mutex_lock(&worktree->trees->table_lock);
	worktree->gone = true;
	worktree->epoch = ++worktree->trees->epochs;
	leave_table(worktree);
	pthread_mutex_unlock(&worktree->trees->table_lock);
}

int worktree_drop(struct worktree *worktree, struct message *message)
{
	int r = put_record(worktree, &(struct branch_record){0}, message);
	if (r == 0)
		worktree_depart(worktree);
	return r;
}

int worktree_announce(struct worktree *worktree, const struct branch_renaming *renaming,
                      struct message *message)
{
	struct worktrees *trees = worktree->trees;
	pthread_mutex_lock(&trees->table_lock);
	worktree->renaming = renaming != NULL ? *renaming : (struct branch_renaming){0};
	if (renaming != NULL) {
		trees->renames_open = true;
		trees->departures++; /* who began to make a tree of that name begins again */
	}
	pthread_mutex_unlock(&trees->table_lock);
	const struct branch_record record = record_of(worktree);
	int r = record.overlay != 0 ? put_record(worktree, &record, message) : 0;
	if (r == 0 && renaming != NULL && record.overlay != 0)
		r = state_sync(trees->state);
	if (r == 0 || renaming == NULL)
		return r;
	worktree_announce(worktree, NULL, NULL);
	return fail(message, r, "cannot make the uncommitted state durable: %s", error_text(r));
}

int worktree_rekey(struct worktree *worktree, const char *branch, struct message *message)
{
	struct worktrees *trees = worktree->trees;
	struct branch_record record = record_of(worktree);
	record.renaming = (struct branch_renaming){0};
	/* The ref has moved already: this must not be what a full disk refuses. */
	CLEANUP(state_batch_release) struct state_batch batch = {.makes_room = true};
	branch_record_put(&batch, worktree->branch, &(struct branch_record){0});
	branch_record_put(&batch, branch, &record);
	int r = state_commit(trees->state, &batch, message);
	if (r != 0)
		return r;
	worktree->intent = false;
	pthread_mutex_lock(&trees->table_lock);
	/* One that somebody opened under the new name before it was ours shows a branch that is
	 * gone; it must not be found any more. */
	struct worktree *other = NULL;
	HASH_FIND_STR(trees->by_branch, branch, other);
	if (other != NULL && other != worktree) {
		other->gone = true;
		leave_table(other);
		if (other->references == 0)
			worktree_free(other);
	}
	leave_table(worktree);
	worktree->renaming = record.renaming;
	r = set_name(worktree, branch);
	const char *name = worktree->branch;
	if (r == 0)
		HASH_ADD_KEYPTR(hh, trees->by_branch, name, strlen(name), worktree);
	/* It was renamed; what cannot be found under its new name must be loaded again. */
	worktree->gone = r != 0 || worktree->hh.tbl == NULL;
	pthread_mutex_unlock(&trees->table_lock);
	return 0;
}

void worktrees_observe(struct worktrees *trees, const struct worktree_observer *observer)
{
	pthread_mutex_lock(&trees->table_lock);
	trees->observer = observer != NULL ? *observer : (struct worktree_observer){0};
	pthread_mutex_unlock(&trees->table_lock);
}

void worktrees_observer(struct worktrees *trees, struct worktree_observer *ret_observer)
{
	pthread_mutex_lock(&trees->table_lock);
	*ret_observer = trees->observer;
	pthread_mutex_unlock(&trees->table_lock);
}

int worktrees_open_files(struct worktrees *trees, const char *branch,
                         int (*callback)(void *argument, const char *branch, const char *path,
                                         int pid),
                         void *argument)
{
	struct worktree_observer observer;
	worktrees_observer(trees, &observer);
	return observer.open_files == NULL
	               ? 0
	               : observer.open_files(observer.context, branch, callback, argument);
}

void worktrees_settle_writers(struct worktrees *trees)
{
	struct worktree_observer observer;
	worktrees_observer(trees, &observer);
	if (observer.settle_writers != NULL)
		observer.settle_writers(observer.context);
}

/* -- what an interrupted commit left -- */

/* Did the ref get from the intent's head to its commit? Moves are newest first: what comes before
 * the head in them happened since. */
static int ref_had(struct worktrees *trees, const struct ref *ref,
                   const struct branch_record *record, bool *ret_had)
{
	const struct pointer *head = &record->intent_head, *commit = &record->intent_commit;
	*ret_had = id_equal(&ref->commit.id, &commit->id);
	if (*ret_had || id_equal(&ref->commit.id, &head->id))
		return 0;
	for (size_t i = 0; i < ref->move_count; i++) {
		*ret_had = id_equal(&ref->moves[i].after.id, &commit->id);
		if (*ret_had || id_equal(&ref->moves[i].after.id, &head->id))
			return 0;
	}
	if (ref->move_count < REF_MOVES_MAX || trees->history == NULL)
		return 0;
	/* The moves do not reach back far enough. A commit that cannot be read never got there. */
	bool before = false;
	int r = is_ancestor(trees->history, commit, &ref->commit, ret_had, NULL);
	if (r == 0 && *ret_had)
		r = is_ancestor(trees->history, commit, head, &before, NULL);
	if (r == 0 && before)
		*ret_had = false;
	return r == -ERR_NOT_FOUND ? 0 : r;
}

/* Decide what the record means, and write that. *record is the result. */
static int settle(struct worktrees *trees, const char *branch, struct branch_record *record,
                  struct message *message)
{
	CLEANUP(ref_cleanup) struct ref ref = {0};
	bool had = false;
	int r = ref_read(odb_store(trees->odb), REF_BRANCH, branch, &ref, NULL);
	if (r == 0)
		r = ref_had(trees, &ref, record, &had);
	if (r != 0 && r != -ERR_NOT_FOUND)
		return fail(message, r,
		            "a commit to '%s' was interrupted, and whether it was done cannot be "
		            "told while the store cannot be read: %s",
		            branch, error_text(r));
	struct branch_record settled = {
	        .overlay = had ? record->intent_overlay : record->overlay,
	        .root = had ? record->intent_root : record->root,
	        .base = had ? record->intent_commit : record->base,
	        .renaming = record->renaming,
	};
	CLEANUP(state_batch_release) struct state_batch batch = {0};
	branch_record_put(&batch, branch, &settled);
	r = state_commit(trees->state, &batch, message);
	if (r == 0)
		*record = settled;
	return r;
}

/* When a working tree is opened; worktrees_open could not, because the store was away. */
static int settle_late(struct worktrees *trees, const char *branch, struct branch_record *record,
                       struct message *message)
{
	struct branch_record before = *record;
	int r = settle(trees, branch, record, message);
	if (r != 0)
		return r;
	bool done = record->overlay == before.intent_overlay;
	overlay_discard(trees, done ? before.overlay : before.intent_overlay, record->overlay);
	return 0;
}

/* -- the table -- */

static int load_worktree(struct worktrees *trees, const char *branch,
                         struct worktree **ret_worktree, struct message *message)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	int r = worktree_new(trees, branch, &worktree);
	if (r != 0)
		return fail(message, r, "%s", error_text(r));
	struct branch_record record;
	if (trees->renames_open)
		r = worktree_settle_renamed(trees, branch, message);
	if (r != 0)
		return r;
	r = branch_record_read(trees, branch, &record);
	if (r == 0 && record.intent)
		r = settle_late(trees, branch, &record, message);
	else if (r != 0 && r != -ERR_NOT_FOUND)
		fail(message, r, "cannot read the uncommitted state of '%s': %s", branch,
		     error_text(r));
	struct pointer head;
	if (r == 0 && record.overlay != 0) {
		head = record.base;
		worktree->overlay = record.overlay;
		worktree->root = record.root;
	} else if (r == 0 || r == -ERR_NOT_FOUND) {
		CLEANUP(ref_cleanup) struct ref ref = {0};
		r = ref_read_known(odb_store(trees->odb), REF_BRANCH, branch, &ref, message);
		head = ref.commit;
		worktree->seen_etag = ref.etag;
		worktree->seen_head = ref.commit;
		if (r == 0)
			worktree_note_protection(worktree, &ref.protection, true);
	}
	if (r != 0)
		return r;
	CLEANUP(free_pointer) struct commit *commit = NULL;
	r = worktrees_read_commit(trees, &head, &commit, message);
	if (r != 0)
		return r;
	worktree_set_base(worktree, commit);
	if (worktree->overlay == 0) /* else the ref has not been looked at */
		worktree->refreshed_ms = clock_monotonic_ms();
	*ret_worktree = steal(&worktree);
	return 0;
}

/* Under table_lock: with one more reference, or NULL. */
static struct worktree *find_worktree(struct worktrees *trees, const char *branch)
{
	struct worktree *found = NULL;
	HASH_FIND_STR(trees->by_branch, branch, found);
	if (found != NULL)
		found->references++;
	return found;
}

/* *ret_found stays NULL when it must be loaded again: a tree that left the table meanwhile may have
 * been this branch's, changed. */
static int publish(struct worktrees *trees, uint64_t departures, struct worktree **worktree,
                   struct worktree **ret_found)
{
	int r = 0;
	pthread_mutex_lock(&trees->table_lock);
	struct worktree *found = find_worktree(trees, (*worktree)->branch);
	if (found == NULL && trees->departures == departures) {
		const char *name = (*worktree)->branch;
		HASH_ADD_KEYPTR(hh, trees->by_branch, name, strlen(name), *worktree);
		r = (*worktree)->hh.tbl != NULL ? 0 : -ERR_NO_MEMORY;
		if (r == 0) {
			found = steal(worktree);
			found->references = 1;
		}
	}
	pthread_mutex_unlock(&trees->table_lock);
	*ret_found = found;
	return r;
}

int worktree_get(struct worktrees *trees, const char *branch, struct worktree **ret_worktree,
                 struct message *message)
{
	int r = ref_name_check(branch, message);
	struct worktree *found = NULL;
	while (r == 0 && found == NULL) {
		pthread_mutex_lock(&trees->table_lock);
		found = find_worktree(trees, branch);
		uint64_t departures = trees->departures;
		pthread_mutex_unlock(&trees->table_lock);
		if (found != NULL) {
			r = worktree_follow(found, message);
		} else {
			CLEANUP(worktree_cleanup) struct worktree *loaded = NULL;
			r = load_worktree(trees, branch, &loaded, message);
			if (r == 0)
				r = publish(trees, departures, &loaded, &found);
		}
	}
	if (r != 0) {
		worktree_unref(found);
		return r;
	}
	*ret_worktree = found;
	return 0;
}

int worktrees_used(struct worktrees *trees, struct worktree ***ret_used, size_t *ret_count)
{
	size_t count = 0;
	pthread_mutex_lock(&trees->table_lock);
	struct worktree **used = calloc(HASH_COUNT(trees->by_branch) + 1, sizeof(*used));
	struct worktree *worktree, *next;
	HASH_ITER (hh, trees->by_branch, worktree, next) {
		if (used == NULL || worktree->references == 0)
			continue;
		worktree->references++;
		used[count++] = worktree;
	}
	pthread_mutex_unlock(&trees->table_lock);
	if (used == NULL)
		return -ERR_NO_MEMORY;
	*ret_used = used;
	*ret_count = count;
	return 0;
}

void worktree_unref(struct worktree *worktree)
{
	if (worktree == NULL)
		return;
	struct worktrees *trees = worktree->trees;
	pthread_mutex_lock(&trees->table_lock);
	assert(worktree->references > 0);
	bool last = --worktree->references == 0;
	if (last && !worktree->gone) {
		last = HASH_COUNT(trees->by_branch) > WORKTREES_IDLE_MAX;
		if (last)
			leave_table(worktree);
	}
	pthread_mutex_unlock(&trees->table_lock);
	if (last)
		worktree_free(worktree);
}

/* -- writers -- */

int worktree_writer(struct worktrees *trees, uint64_t number, int change)
{
	pthread_mutex_lock(&trees->table_lock);
	struct writer *writer = NULL;
	HASH_FIND(hh, trees->writers, &number, sizeof(number), writer);
	if (writer == NULL) {
		assert(change > 0);
		writer = calloc(1, sizeof(*writer));
		if (writer != NULL) {
			writer->number = number;
			HASH_ADD(hh, trees->writers, number, sizeof(writer->number), writer);
		}
		if (writer == NULL || writer->hh.tbl == NULL) {
			pthread_mutex_unlock(&trees->table_lock);
			free(writer);
			return -ERR_NO_MEMORY;
		}
	}
	assert(change > 0 || writer->count >= (unsigned)-change);
	writer->count += (unsigned)change;
	if (change > 0)
		trees->writer_count++;
	if (writer->count == 0) {
		HASH_DEL(trees->writers, writer);
		free(writer);
	}
	pthread_mutex_unlock(&trees->table_lock);
	return 0;
}

unsigned worktree_writers(struct worktrees *trees, uint64_t number)
{
	pthread_mutex_lock(&trees->table_lock);
	struct writer *writer = NULL;
	HASH_FIND(hh, trees->writers, &number, sizeof(number), writer);
	unsigned count = writer != NULL ? writer->count : 0;
	pthread_mutex_unlock(&trees->table_lock);
	return count;
}

/* -- what is kept -- */

struct kept {
	int (*callback)(void *context, const char *branch);
	void *context;
};

static int kept_branch(void *context, const char *branch, const struct branch_record *record)
{
	struct kept *kept = context;
	return record->overlay != 0 ? kept->callback(kept->context, branch) : 0;
}

int worktrees_kept(struct worktrees *trees, int (*callback)(void *context, const char *branch),
                   void *context)
{
	struct kept kept = {callback, context};
	if (trees->renames_open)
		(void)worktrees_settle_renames(trees);
	return branch_records_each(trees, kept_branch, &kept);
}

/* -- opening and closing -- */

/* The overlays that branch records name, as a growing array. */
struct live {
	struct worktrees *trees;
	struct buffer numbers;
};

static int settle_branch(void *context, const char *branch, const struct branch_record *record)
{
	struct live *live = context;
	struct branch_record settled = *record;
	if (settled.intent)
		settle(live->trees, branch, &settled, NULL); /* else when it is first used */
	buffer_append(&live->numbers, &settled.overlay, sizeof(settled.overlay));
	buffer_append(&live->numbers, &settled.intent_overlay, sizeof(settled.intent_overlay));
	return buffer_check(&live->numbers);
}

static bool is_live(const struct live *live, uint64_t overlay)
{
	const uint64_t *numbers = (const uint64_t *)(const void *)live->numbers.data;
	for (size_t i = 0; i < live->numbers.length / sizeof(uint64_t); i++)
		if (numbers[i] == overlay)
			return true;
	return false;
}

static int note_overlay(void *context, const struct span *key, const struct span *value)
{
	uint64_t *overlay = context;
	if (key->length < 8)
		return -ERR_CORRUPT;
	*overlay = load_u64_be(key->data);
	return 1;
}

/* Every overlay that has records in `table`, by jumping from one to the next. */
static int discard_unowned(const struct live *live, enum state_table table)
{
	uint64_t overlay = 0;
	for (;;) {
		uint8_t after[KV_KEY_MAX];
		memset(after, 0xff, sizeof(after));
		store_u64_be(after, overlay);
		int r = state_scan(live->trees->state, table, NULL, 0, after, sizeof(after), 1,
		                   note_overlay, &overlay);
		if (r != 1)
			return r;
		/* Their staging files are dealt with by staging_clean, which knows all names. */
		if (!is_live(live, overlay))
			overlay_discard(live->trees, overlay, KEEP_STAGING);
	}
}

static int settle_all(struct worktrees *trees, const struct worktrees_options *options,
                      struct message *message)
{
	struct live live = {.trees = trees};
	int r = worktrees_settle_renames(trees);
	if (r == 0)
		r = branch_records_each(trees, settle_branch, &live);
	if (r == 0)
		r = discard_unowned(&live, STATE_INODES);
	if (r == 0)
		r = discard_unowned(&live, STATE_ENTRIES);
	if (r != 0)
		fail(message, r, "cannot read the uncommitted state: %s", error_text(r));
	else if (!options->inherited)
		r = staging_clean(trees, (const uint64_t *)(const void *)live.numbers.data,
		                  live.numbers.length / sizeof(uint64_t), message);
	buffer_release(&live.numbers);
	return r;
}

/* Without fine times, so many changes within one step of the clock have two ctimes at most. */
static bool times_are_fine(int directory)
{
	static const char name[] = "times";
	CLEANUP(close_descriptor)
	int fd = openat(directory, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int64_t begun_ns = clock_wall_ns();
	struct timespec last = {0};
	bool fine = fd >= 0;
	for (int i = 0; fine && i < TIMES_PROBED; i++) {
		struct stat status;
		fine = pwrite(fd, "", 1, 0) == 1 && fstat(fd, &status) == 0 &&
		       (status.st_ctim.tv_sec != last.tv_sec ||
		        status.st_ctim.tv_nsec != last.tv_nsec);
		last = status.st_ctim;
	}
	unlinkat(directory, name, 0);
	return fine && clock_wall_ns() - begun_ns < TIMES_PROBED / 2 * CLOCK_STEP_NS_MIN;
}

static int open_staging(struct worktrees *trees, struct message *message)
{
	int r = make_directories(trees->staging_directory, 0700);
	if (r == 0) {
		trees->staging_fd =
		        open(trees->staging_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = trees->staging_fd < 0 ? error_system(errno) : 0;
	}
	for (unsigned shard = 0; r == 0 && shard < 256; shard++) {
		char path[3];
		snprintf(path, sizeof(path), "%02x", shard);
		if (mkdirat(trees->staging_fd, path, 0700) != 0 && errno != EEXIST)
			r = error_system(errno);
	}
	struct stat status;
	if (r == 0 && fstat(trees->staging_fd, &status) != 0)
		r = error_system(errno);
	if (r != 0)
		return fail(message, r, "cannot open the staging directory %s: %s",
		            trees->staging_directory, error_text(r));
	trees->fine_times = times_are_fine(trees->staging_fd);
	/* SEEK_DATA is exact to the file system's blocks, whose size this is. */
	trees->granule = 4096;
	while (trees->granule < (uint64_t)status.st_blksize)
		trees->granule *= 2;
	return 0;
}

int worktrees_open(const struct worktrees_options *options, struct worktrees **ret_trees,
                   struct message *message)
{
	struct worktrees *trees = calloc(1, sizeof(*trees));
	if (trees == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	trees->state = options->state;
	trees->odb = options->odb;
	trees->history = options->history;
	trees->cache = options->cache;
	trees->copy_up_bytes_max =
	        options->copy_up_bytes_max ? options->copy_up_bytes_max : COPY_UP_BYTES_DEFAULT;
	trees->refresh_ms = options->refresh_ms ? options->refresh_ms : REFRESH_INTERVAL_MS;
	trees->tables = options->tables;
	trees->staging_fd = -1;
	trees->first_number = state_number_next(trees->state);
	pthread_mutex_init(&trees->renames_lock, NULL);
	pthread_mutex_init(&trees->table_lock, NULL);
	pthread_mutex_init(&trees->files_lock, NULL);
	cleaner_init(trees);
	trees->staging_directory = strdup(options->staging_directory);
	int r = trees->staging_directory == NULL ? fail(message, -ERR_NO_MEMORY, "out of memory")
	                                         : open_staging(trees, message);
	if (r == 0)
		r = settle_all(trees, options, message);
	if (r == 0)
		r = cleaner_start(trees, message);
	if (r != 0) {
		worktrees_close(trees);
		return r;
	}
	*ret_trees = trees;
	return 0;
}

void worktrees_close(struct worktrees *trees)
{
	if (trees == NULL)
		return;
	cleaner_release(trees);
	struct worktree *worktree, *next;
	HASH_ITER (hh, trees->by_branch, worktree, next) {
		HASH_DEL(trees->by_branch, worktree);
		worktree_free(worktree);
	}
	struct writer *writer, *next_writer;
	HASH_ITER (hh, trees->writers, writer, next_writer) {
		HASH_DEL(trees->writers, writer);
		free(writer);
	}
	file_data_table_release(trees);
	close_descriptor(&trees->staging_fd);
	free(trees->staging_directory);
	pthread_mutex_destroy(&trees->files_lock);
	pthread_mutex_destroy(&trees->table_lock);
	pthread_mutex_destroy(&trees->renames_lock);
	free(trees);
}
