/*
 * state.c — hides how LMDB and the journal together keep every change at the price of one write(2).
 *
 * One LMDB write transaction is always open; every thread uses it under `lock`.
 *
 *   journal append -> apply to the transaction          state_commit
 *   new segment -> commit -> old segment unlinked       fold
 *   abort -> begin -> replay the segment                rebuild, when LMDB could not commit or
 *                                                       could not apply (a full disk, a full map)
 *
 * The number of the last folded segment is committed with what was folded, so a crash at any point
 * replays exactly the segments that LMDB does not have.
 */
#include "fs/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "store/thread.h"

#define FOLD_BYTES ((uint64_t)4 << 20)
#define FOLD_CHANGES 16384
/* Beyond this commits wait for the folder, unless folding fails (a full disk). */
#define FOLD_BYTES_WAIT (FOLD_BYTES * 4)
#define FOLD_IDLE_MS 2000
#define FOLD_AGE_MS 30000
#define RETRY_MS 5000
/* Address space, not disk: large enough that the pages one fold touches are a small part of it. */
#define MAP_BYTES ((uint64_t)1 << 30)
#define MAP_TRIES 8 /* a map that turned out too small is twice as large the next time */
#define STATE_VERSION 1
#define NUMBERS_FIRST 1024
#define NUMBERS_BLOCK 1024

static const char key_version[] = "version";
static const char key_folded[] = "folded";
static const char key_numbers[] = "numbers";

struct state {
	struct kv *kv;
	int journal_fd; /* the directory */

	/* Order: number_lock, sync_lock, lock. */
	pthread_mutex_t
	        sync_lock;       /* one fdatasync at a time; also excludes replacing the segment */
	_Atomic uint64_t synced; /* value of `appended` that is durable; written under sync_lock */
	bool sync_failed; /* guarded by sync_lock: the segment's pages cannot be trusted any more */

	pthread_mutex_t lock; /* guards everything below but the numbers */
	struct kv_txn *txn;   /* NULL while it could not be rebuilt; `broken` says why */
	int broken;
	struct journal journal;
	_Atomic uint64_t appended; /* counts batches; written under lock */
	uint64_t changes, folds;   /* changes: since the last fold */
	int64_t first_ms, last_ms; /* times of the oldest and newest unfolded batch */
	int64_t retry_ms;          /* no fold in the background before: the last one failed */
	bool closing;
	pthread_cond_t wake; /* for the folder: look again */
	pthread_t folder;    /* folds in the background */
	bool folder_runs;

	pthread_mutex_t number_lock;
	uint64_t number_next, number_end;

	uint64_t opened_sequence, opened_end; /* of the journal, as it was found */
};

static _Thread_local struct state_mark *watched;

/* -- applying -- */

static int apply_change(void *context, const struct journal_change *change)
{
	struct kv_txn *txn = context;
	if (change->value.data == NULL) {
		int r = kv_delete(txn, change->table, change->key.data, change->key.length);
		return r == -ERR_NOT_FOUND ? 0 : r;
	}
	return kv_put(txn, change->table, change->key.data, change->key.length, change->value.data,
	              change->value.length);
}

static int put_meta(struct kv_txn *txn, const char *key, uint64_t value)
{
	uint8_t bytes[8];
	store_u64(bytes, value);
	return kv_put(txn, STATE_META, key, strlen(key), bytes, sizeof(bytes));
}

/* A missing number is 0. */
static int get_meta(struct kv_txn *txn, const char *key, uint64_t *ret_value)
{
	struct span span;
	int r = kv_get(txn, STATE_META, key, strlen(key), &span);
	if (r == -ERR_NOT_FOUND) {
		*ret_value = 0;
		return 0;
	}
	if (r == 0 && span.length != 8)
		r = -ERR_CORRUPT;
	if (r == 0)
		*ret_value = load_u64(span.data);
	return r;
}

/* -- folding -- */

static bool unfolded(const struct state *state)
{
	return state->journal.end > JOURNAL_HEADER;
}

static int rebuild_once(struct state *state)
{
	kv_abort(steal(&state->txn));
	struct kv_txn *txn = NULL;
	int r = kv_begin(state->kv, true, &txn);
	if (r == 0) {
		struct journal journal;
		uint64_t batches;
		r = journal_replay(state->journal_fd, state->journal.sequence, true, apply_change,
		                   txn, &journal, &batches, NULL);
		if (r == 0)
			journal_close(&journal); /* the one in use knows what is synced */
		else
			kv_abort(steal(&txn));
	}
	state->txn = txn;
	return r;
}

/* Under lock. The transaction anew, as LMDB's last commit and the segment say. */
static int rebuild(struct state *state)
{
	int r = -ERR_TOO_LARGE;
	for (int i = 0; r == -ERR_TOO_LARGE && i < MAP_TRIES; i++)
		r = rebuild_once(state);
	state->broken = r;
	return r;
}

/* Under lock: 0 when the transaction can be used. */
static int usable(struct state *state)
{
	return state->txn != NULL ? 0 : rebuild(state);
}

static int commit_folded(struct state *state)
{
	int r = put_meta(state->txn, key_folded, state->journal.sequence);
	return r == 0 ? kv_commit(steal(&state->txn)) : r;
}

/* Under sync_lock and lock. */
static int fold(struct state *state, struct message *message)
{
	if (!unfolded(state))
		return 0;
	int r = usable(state);
	if (r != 0)
		return fail(message, r, "the local state cannot be written: %s", error_text(r));
	uint64_t sequence = state->journal.sequence;
	struct journal next;
	r = journal_create(state->journal_fd, sequence + 1, &next, message);
	if (r != 0)
		return r;
	r = commit_folded(state);
	if (r == -ERR_TOO_LARGE && rebuild(state) == 0)
		r = commit_folded(state);
	if (r != 0) {
		/* Nothing is lost: the segment still has it all. */
		journal_close(&next);
		journal_remove(state->journal_fd, sequence + 1);
		rebuild(state);
		return fail(message, r, "cannot write the local state: %s", error_text(r));
	}
	journal_close(&state->journal);
	state->journal = next;
	journal_remove(state->journal_fd, sequence);
	state->synced = state->appended;
	state->sync_failed = false;
	state->changes = 0;
	state->folds++;
	state->broken = kv_begin(state->kv, true, &state->txn);
	return 0;
}

int state_fold(struct state *state, struct message *message)
{
	pthread_mutex_lock(&state->sync_lock);
	pthread_mutex_lock(&state->lock);
	int r = fold(state, message);
	state->retry_ms = r != 0 ? clock_monotonic_ms() + RETRY_MS : 0;
	pthread_mutex_unlock(&state->lock);
	pthread_mutex_unlock(&state->sync_lock);
	return r;
}

/* Under lock. When is the next fold in the background due? INT64_MAX: nothing to fold. */
static int64_t fold_due_ms(const struct state *state)
{
	if (!unfolded(state))
		return INT64_MAX;
	int64_t due = state->last_ms + FOLD_IDLE_MS;
	if (due > state->first_ms + FOLD_AGE_MS)
		due = state->first_ms + FOLD_AGE_MS;
	if (state->journal.end >= FOLD_BYTES || state->changes >= FOLD_CHANGES)
		due = 0;
	return due > state->retry_ms ? due : state->retry_ms;
}

static void *folder_main(void *context)
{
	struct state *state = context;
	pthread_mutex_lock(&state->lock);
	while (!state->closing) {
		int64_t due_ms = fold_due_ms(state);
		if (due_ms == INT64_MAX) {
			pthread_cond_wait(&state->wake, &state->lock);
		} else if (due_ms > clock_monotonic_ms()) {
			struct timespec at = {.tv_sec = due_ms / 1000,
			                      .tv_nsec = due_ms % 1000 * 1000000};
			pthread_cond_timedwait(&state->wake, &state->lock, &at);
		} else {
			pthread_mutex_unlock(&state->lock);
			state_fold(state, NULL);
			pthread_mutex_lock(&state->lock);
		}
	}
	pthread_mutex_unlock(&state->lock);
	return NULL;
}

/* -- changes -- */

/* Under lock. The batch is in the segment; LMDB did not take it. Try with a new transaction; when
 * that fails too, the batch did not happen. */
static int apply_again(struct state *state, uint64_t end_before)
{
	int r = rebuild(state);
	if (r != 0) {
		journal_cut(&state->journal, end_before);
		rebuild(state);
	}
	return r;
}

static int append_and_apply(struct state *state, struct state_batch *batch)
{
	uint64_t end_before = state->journal.end;
	int r = journal_append(&state->journal, batch);
	if (r != 0)
		return r;
	r = journal_each_change(batch->bytes.data + JOURNAL_BATCH_HEADER,
	                        batch->bytes.length - JOURNAL_BATCH_HEADER, batch->count,
	                        apply_change, state->txn);
	if (r != 0)
		r = apply_again(state, end_before);
	if (r != 0)
		return r;
	state->last_ms = clock_monotonic_ms();
	if (end_before == JOURNAL_HEADER)
		state->first_ms = state->last_ms;
	state->appended++;
	state->changes += batch->count;
	return 0;
}

/* Under lock. */
static int append_marked(struct state *state, struct state_batch *batch)
{
	struct state_mark *mark = batch->decides ? watched : NULL;
	if (mark != NULL) {
		mark->offset = state->journal.end;
		mark->sequence = state->journal.sequence;
	}
	int r = append_and_apply(state, batch);
	if (r != 0 && mark != NULL)
		mark->sequence = 0;
	return r;
}

int state_commit(struct state *state, struct state_batch *batch, struct message *message)
{
	int r = buffer_check(&batch->bytes);
	if (r == 0 && batch->count == 0)
		return 0;
	if (r != 0)
		return fail(message, r, "%s", error_text(r));
	pthread_mutex_lock(&state->lock);
	uint64_t before = state->journal.end;
	r = usable(state);
	if (r == 0)
		r = append_marked(state, batch);
	bool first = before == JOURNAL_HEADER;
	bool large = state->journal.end >= FOLD_BYTES || state->changes >= FOLD_CHANGES;
	/* When the folder does not keep up this thread folds, unless folding fails. */
	bool late = state->journal.end >= FOLD_BYTES_WAIT && state->retry_ms == 0;
	if (first || large)
		pthread_cond_signal(&state->wake);
	pthread_mutex_unlock(&state->lock);
	if (r == 0 && late)
		state_fold(state, NULL); /* this batch is safe in any case */
	return r == 0 ? 0
	              : fail(message, r, "cannot write to the journal of uncommitted changes: %s",
	                     error_text(r));
}

void state_watch(struct state_mark *mark)
{
	watched = mark;
}

bool state_landed(const struct state *state, const struct state_mark *mark)
{
	uint64_t sequence = mark->sequence;
	if (sequence == 0 || sequence > state->opened_sequence)
		return false;
	/* An earlier segment is folded, and was not before the write had ended. */
	return sequence < state->opened_sequence || mark->offset < state->opened_end;
}

int state_sync(struct state *state)
{
	uint64_t wanted = state->appended;
	if (state->synced >= wanted)
		return 0;
	pthread_mutex_lock(&state->sync_lock);
	if (state->synced >= wanted) { /* somebody else's did it for us */
		pthread_mutex_unlock(&state->sync_lock);
		return 0;
	}
	pthread_mutex_lock(&state->lock);
	uint64_t appended = state->appended, end = state->journal.end;
	int fd = state->journal.fd; /* stays open while we hold sync_lock */
	pthread_mutex_unlock(&state->lock);
	int r = 0;
	if (!state->sync_failed)
		state->sync_failed = fdatasync(fd) != 0;
	pthread_mutex_lock(&state->lock);
	if (state->sync_failed) {
		/* The kernel may have dropped those pages and calls them clean: only LMDB's own
		 * sync can make the changes durable now. */
		r = fold(state, NULL);
	} else {
		state->journal.synced = end;
		state->synced = appended;
	}
	pthread_mutex_unlock(&state->lock);
	pthread_mutex_unlock(&state->sync_lock);
	return r;
}

/* Under number_lock. */
static int reserve_numbers(struct state *state)
{
	uint64_t end = state->number_end + NUMBERS_BLOCK;
	uint8_t value[8];
	store_u64(value, end);
	CLEANUP(state_batch_release) struct state_batch batch = {0};
	state_put(&batch, STATE_META, key_numbers, strlen(key_numbers), value, sizeof(value));
	int r = state_commit(state, &batch, NULL);
	if (r == 0)
		state->number_end = end;
	return r;
}

uint64_t state_number(struct state *state)
{
	uint64_t number = 0;
	pthread_mutex_lock(&state->number_lock);
	if (state->number_next < state->number_end || reserve_numbers(state) == 0)
		number = state->number_next++;
	pthread_mutex_unlock(&state->number_lock);
	return number;
}

uint64_t state_number_next(struct state *state)
{
	pthread_mutex_lock(&state->number_lock);
	uint64_t number = state->number_next;
	pthread_mutex_unlock(&state->number_lock);
	return number;
}

/* -- reading -- */

int state_get(struct state *state, enum state_table table, const void *key, size_t key_length,
              struct buffer *ret_value)
{
	pthread_mutex_lock(&state->lock);
	int r = usable(state);
	struct span value;
	if (r == 0)
		r = kv_get(state->txn, table, key, key_length, &value);
	if (r == 0) {
		buffer_append(ret_value, value.data, value.length);
		r = buffer_check(ret_value);
	}
	pthread_mutex_unlock(&state->lock);
	return r;
}

static bool starts_with(const struct span *key, const void *prefix, size_t length)
{
	return key->length >= length && (length == 0 || memcmp(key->data, prefix, length) == 0);
}

static int scan(struct kv_cursor *cursor, const struct span *prefix, const struct span *after,
                size_t limit, state_scan_fn *callback, void *context)
{
	struct span key, value;
	for (size_t i = 0; limit == 0 || i < limit;) {
		int r = kv_next(cursor, &key, &value);
		if (r == -ERR_NOT_FOUND)
			return 0;
		if (r != 0)
			return r;
		if (!starts_with(&key, prefix->data, prefix->length))
			return 0;
		if (key.length == after->length && starts_with(&key, after->data, after->length))
			continue; /* the seek finds >=, this is = */
		r = callback(context, &key, &value);
		if (r != 0)
			return r;
		i++;
	}
	return 0;
}

int state_scan(struct state *state, enum state_table table, const void *prefix,
               size_t prefix_length, const void *after, size_t after_length, size_t limit,
               state_scan_fn *callback, void *context)
{
	struct span start = {prefix, prefix_length}, last = {after, after_length};
	/* `after` may lie before everything with the prefix. */
	size_t common = after_length < prefix_length ? after_length : prefix_length;
	int order = common > 0 ? memcmp(after, prefix, common) : 0;
	bool from_prefix = order < 0 || (order == 0 && after_length < prefix_length);
	pthread_mutex_lock(&state->lock);
	struct kv_cursor *cursor = NULL;
	int r = usable(state);
	if (r == 0)
		r = kv_seek(state->txn, table, from_prefix ? prefix : after,
		            from_prefix ? prefix_length : after_length, &cursor);
	if (r == 0)
		r = scan(cursor, &start, &last, limit, callback, context);
	kv_cursor_free(cursor);
	pthread_mutex_unlock(&state->lock);
	return r;
}

void state_stats(struct state *state, struct state_stats *ret_stats)
{
	struct kv_stats stats = {0};
	kv_stats(state->kv, &stats);
	pthread_mutex_lock(&state->lock);
	*ret_stats = (struct state_stats){.journal_bytes = state->journal.end,
	                                  .folds = state->folds,
	                                  .map_bytes = stats.map_bytes,
	                                  .used_bytes = stats.used_bytes};
	pthread_mutex_unlock(&state->lock);
}

/* -- opening and closing -- */

static void state_free(struct state *state)
{
	if (state == NULL)
		return;
	if (state->folder_runs) {
		pthread_mutex_lock(&state->lock);
		state->closing = true;
		pthread_cond_signal(&state->wake);
		pthread_mutex_unlock(&state->lock);
		pthread_join(state->folder, NULL);
	}
	kv_abort(state->txn);
	kv_close(state->kv);
	journal_close(&state->journal);
	close_descriptor(&state->journal_fd);
	pthread_cond_destroy(&state->wake);
	pthread_mutex_destroy(&state->number_lock);
	pthread_mutex_destroy(&state->lock);
	pthread_mutex_destroy(&state->sync_lock);
	free(state);
}

void state_close(struct state *state)
{
	if (state == NULL)
		return;
	state_fold(state, NULL); /* should it fail, the journal has it */
	state_free(state);
}

static void state_release(struct state **state)
{
	state_free(*state);
}

static struct state *state_new(void)
{
	struct state *state = calloc(1, sizeof(*state));
	if (state == NULL)
		return NULL;
	state->journal_fd = -1;
	state->journal.fd = -1;
	pthread_mutex_init(&state->sync_lock, NULL);
	pthread_mutex_init(&state->lock, NULL);
	pthread_mutex_init(&state->number_lock, NULL);
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&state->wake, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return state;
}

static int open_files(struct state *state, const char *directory, struct message *message)
{
	static const char *const names[STATE_TABLE_COUNT] = {"meta", "branches", "entries",
	                                                     "inodes"};
	CLEANUP(free_pointer) char *tables = NULL;
	CLEANUP(free_pointer) char *journal = NULL;
	if (asprintf(&tables, "%s/tables", directory) < 0)
		tables = NULL;
	if (asprintf(&journal, "%s/journal", directory) < 0)
		journal = NULL;
	if (tables == NULL || journal == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	int r = make_directories(journal, 0700);
	if (r == 0) {
		state->journal_fd = open(journal, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = state->journal_fd < 0 ? error_system(errno) : 0;
	}
	if (r != 0)
		return fail(message, r, "cannot open %s: %s", journal, error_text(r));
	return kv_open(tables,
	               &(struct kv_options){.tables = names,
	                                    .table_count = STATE_TABLE_COUNT,
	                                    .sealed = true,
	                                    .map_bytes_initial = MAP_BYTES},
	               &state->kv, message);
}

/* Leaves the newest segment open for appending; older ones are folded or empty, and removed. */
static int replay_segments(struct state *state, uint64_t folded, bool begun,
                           struct message *message)
{
	CLEANUP(free_pointer) uint64_t *sequences = NULL;
	size_t count = 0;
	int r = journal_list(state->journal_fd, &sequences, &count);
	if (r != 0)
		return fail(message, r, "cannot list the journal: %s", error_text(r));
	uint64_t batches = 0;
	size_t i = 0;
	while (i < count && sequences[i] <= folded)
		i++;
	/* The next segment is there, durably, before anything is committed. */
	if (i < count ? sequences[i] != folded + 1 : begun)
		return fail(
		        message, -ERR_CORRUPT,
		        "the journal's segment %016llx is missing, or the tables beside it are not "
		        "those it belongs to: local state is damaged",
		        (unsigned long long)folded + 1);
	for (; i < count && batches == 0; i++) {
		if (sequences[i] > folded) {
			journal_close(&state->journal);
			bool used = begun && sequences[i] == folded + 1;
			r = journal_replay(state->journal_fd, sequences[i], used, apply_change,
			                   state->txn, &state->journal, &batches, message);
			if (r != 0)
				return r;
		}
	}
	/* A segment is written to only once every earlier one is folded: what follows the first
	 * with batches in it was made for a fold that did not come about. */
	for (size_t j = 0; j < count; j++)
		if (state->journal.fd < 0 || sequences[j] != state->journal.sequence)
			journal_remove(state->journal_fd, sequences[j]);
	if (state->journal.fd >= 0)
		return 0;
	return journal_create(state->journal_fd, folded + 1, &state->journal, message);
}

/* Committed at once where nothing is to be folded: from then on a journal that is not there is
 * damage, and not the first opening's. */
static int put_version(struct state *state)
{
	int r = put_meta(state->txn, key_version, STATE_VERSION);
	if (r != 0 || unfolded(state))
		return r;
	r = kv_commit(steal(&state->txn));
	return r == 0 ? kv_begin(state->kv, true, &state->txn) : r;
}

static int load_once(struct state *state, const char *directory, struct message *message)
{
	int r = kv_begin(state->kv, true, &state->txn);
	uint64_t version = 0, folded = 0;
	if (r == 0)
		r = get_meta(state->txn, key_version, &version);
	if (r == 0)
		r = get_meta(state->txn, key_folded, &folded);
	if (r == 0 && version > STATE_VERSION)
		return fail(message, -ERR_VERSION,
		            "the uncommitted state in %s was written by a newer version (format "
		            "%llu; this one knows %d)",
		            directory, (unsigned long long)version, STATE_VERSION);
	if (r != 0)
		return fail(message, r, "cannot read the uncommitted state in %s: %s", directory,
		            error_text(r));
	r = replay_segments(state, folded, version > 0 || folded > 0, message);
	if (r != 0)
		return r;
	uint64_t numbers = 0;
	r = get_meta(state->txn, key_numbers, &numbers);
	if (r == 0 && version == 0)
		r = put_version(state);
	if (r != 0)
		return fail(message, r, "cannot prepare the uncommitted state in %s: %s", directory,
		            error_text(r));
	state->number_end = numbers > NUMBERS_FIRST ? numbers : NUMBERS_FIRST;
	state->number_next = state->number_end;
	state->first_ms = state->last_ms = clock_monotonic_ms();
	state->appended = 1; /* what was replayed may be in the page cache only */
	state->opened_sequence = state->journal.sequence;
	state->opened_end = state->journal.end;
	return 0;
}

static int load(struct state *state, const char *directory, struct message *message)
{
	struct message problem;
	int r = -ERR_TOO_LARGE;
	for (int i = 0; r == -ERR_TOO_LARGE && i < MAP_TRIES; i++) {
		kv_abort(steal(&state->txn));
		journal_close(&state->journal);
		r = load_once(state, directory, &problem);
	}
	return r == 0 ? 0 : fail(message, r, "%s", problem.text);
}

int state_open(const char *directory, struct state **ret_state, struct message *message)
{
	CLEANUP(state_release) struct state *state = state_new();
	if (state == NULL)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	int r = open_files(state, directory, message);
	if (r == 0)
		r = load(state, directory, message);
	if (r != 0)
		return r;
	r = thread_start(&state->folder, folder_main, state);
	if (r != 0)
		return fail(message, r, "cannot start a thread: %s", error_text(r));
	state->folder_runs = true;
	*ret_state = steal(&state);
	return 0;
}
