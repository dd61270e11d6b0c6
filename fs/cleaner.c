/*
 * cleaner.c — hides how overlays that nobody owns are deleted: in the background, a batch at a
 * time, their staging files after the records that named them. What a commit of many files left to
 * adopt becomes cached blobs before that: of each commit the first few thousand before anything
 * else, since readers wait for them.
 *
 * The file system below makes an unlink durable when it likes, also before the journal that says
 * why: so staging files wait for that, many for one sync.
 */
#include "fs/snapshot.h"
#include "store/thread.h"

#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#define CLEAN_RETRY_MS 1000
#define ADOPT_SOON_FILES 4096
#define ADOPT_WAIT_MS 200 /* then it is fetched */
#define REMOVE_DELAY_MS 200
#define REMOVE_STEP 1024 /* then others have their turn */

struct discarded {
	struct discarded *next;
	uint64_t overlay, successor;
	struct stored stored; /* to adopt before the staging files go; may be empty */
	bool awaited;         /* counts in `adopting` */
	bool held;            /* not to be touched yet, nor what is behind it */
};

void cleaner_init(struct worktrees *trees)
{
	pthread_mutex_init(&trees->cleaner_lock, NULL);
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&trees->cleaner_wake, &monotonic);
	pthread_cond_init(&trees->adopted, &monotonic);
	pthread_condattr_destroy(&monotonic);
}

static void discarded_free(struct discarded *item)
{
	stored_release(&item->stored);
	free(item);
}

struct discarded *overlay_retire(struct worktrees *trees, uint64_t overlay, uint64_t successor)
{
	if (overlay == 0 || overlay == successor)
		return NULL;
	struct discarded *item = calloc(1, sizeof(*item));
	if (item == NULL)
		return NULL; /* found and deleted at the next opening */
	item->overlay = overlay;
	item->successor = successor;
	item->held = true;
	pthread_mutex_lock(&trees->cleaner_lock);
	/* In this order: a successor that was itself discarded since still has its records, and its
	 * own successor keeps what it kept. */
	struct discarded **end = &trees->discarded;
	while (*end != NULL)
		end = &(*end)->next;
	*end = item;
	pthread_mutex_unlock(&trees->cleaner_lock);
	return item;
}

void overlay_let_go(struct worktrees *trees, struct discarded *retired, struct stored *stored,
                    bool keep_staging)
{
	if (retired == NULL)
		return;
	pthread_mutex_lock(&trees->cleaner_lock);
	if (stored != NULL) {
		retired->stored = *stored;
		*stored = (struct stored){0};
	}
	if (keep_staging)
		retired->successor = KEEP_STAGING;
	retired->awaited = retired->stored.count > 0;
	trees->adopting += retired->awaited;
	retired->held = false;
	pthread_cond_signal(&trees->cleaner_wake);
	pthread_mutex_unlock(&trees->cleaner_lock);
}

void overlay_discard(struct worktrees *trees, uint64_t overlay, uint64_t successor)
{
	overlay_let_go(trees, overlay_retire(trees, overlay, successor), NULL, false);
}

/* -- staging files that no record names any more -- */

/* Would it matter if `bytes` in `files` became free only later? */
static bool room_is_short(struct worktrees *trees, uint64_t bytes, uint64_t files)
{
	struct statvfs room;
	if (fstatvfs(trees->staging_fd, &room) != 0)
		return true;
	return bytes > (uint64_t)room.f_bavail * room.f_frsize / 2 ||
	       (room.f_files != 0 && files > (uint64_t)room.f_favail / 2);
}

/* Unlink at most `limit` of them. */
static void unlink_removed(struct worktrees *trees, size_t limit)
{
	CLEANUP(buffer_release) struct buffer numbers = {0};
	pthread_mutex_lock(&trees->cleaner_lock);
	struct buffer *removed = &trees->removed;
	size_t count = removed->length / sizeof(uint64_t);
	size_t take = count < limit ? count : limit;
	size_t left = (count - take) * sizeof(uint64_t);
	if (take > 0)
		buffer_append(&numbers, removed->data + left, take * sizeof(uint64_t));
	if (numbers.failed == 0) {
		removed->length = left;
		if (left == 0)
			trees->removed_bytes = 0;
	} else {
		trees->removed_due_ms = clock_monotonic_ms() + CLEAN_RETRY_MS;
	}
	pthread_mutex_unlock(&trees->cleaner_lock);
	/* Should the sync fail they stay until the next opening: it knows which ones count. */
	if (numbers.length == 0 || numbers.failed != 0 || state_sync(trees->state) != 0)
		return;
	struct reader reader = reader_of(numbers.data, numbers.length);
	while (reader_left(&reader) > 0)
		staging_unlink(trees, read_u64(&reader));
}

void staging_remove(struct worktrees *trees, uint64_t staging)
{
	struct stat status;
	if (staging == 0 || staging_stat(trees, staging, &status) != 0)
		return;
	pthread_mutex_lock(&trees->cleaner_lock);
	bool first = trees->removed.length == 0;
	buffer_u64(&trees->removed, staging);
	if (trees->removed.failed != 0) /* no memory: it goes at the next opening */
		trees->removed.failed = 0;
	uint64_t bytes = trees->removed_bytes += (uint64_t)status.st_blocks * 512;
	uint64_t files = trees->removed.length / sizeof(uint64_t);
	if (first) {
		trees->removed_due_ms = clock_monotonic_ms() + REMOVE_DELAY_MS;
		pthread_cond_signal(&trees->cleaner_wake);
	}
	pthread_mutex_unlock(&trees->cleaner_lock);
	if (room_is_short(trees, bytes, files)) {
		thread_about_to_block();
		unlink_removed(trees, SIZE_MAX);
	}
}

void staging_remove_now(struct worktrees *trees)
{
	unlink_removed(trees, SIZE_MAX);
}

/* Under cleaner_lock. */
static bool removed_due(const struct worktrees *trees)
{
	return trees->removed.length > 0 && clock_monotonic_ms() >= trees->removed_due_ms;
}

struct clean {
	struct worktrees *trees;
	const struct discarded *item;
	enum state_table table;
	struct state_batch batch;
	struct buffer staging; /* u64 number, u64 staging: candidates for removal */
};

static int collect_record(void *context, const struct span *key, const struct span *value)
{
	struct clean *clean = context;
	state_delete(&clean->batch, clean->table, key->data, key->length);
	struct inode inode;
	if (clean->table != STATE_INODES || clean->item->successor == KEEP_STAGING ||
	    key->length != 16 || inode_decode(value->data, value->length, &inode) != 0)
		return buffer_check(&clean->batch.bytes);
	if (inode.staging != 0) {
		buffer_u64(&clean->staging, load_u64_be((const uint8_t *)key->data + 8));
		buffer_u64(&clean->staging, inode.staging);
	}
	inode_release(&inode);
	return buffer_check(&clean->batch.bytes);
}

/* Unlinked only once the records that name them are gone. */
static void remove_collected_staging(struct clean *clean)
{
	struct reader reader = reader_of(clean->staging.data, clean->staging.length);
	while (reader_left(&reader) > 0) {
		uint64_t number = read_u64(&reader), staging = read_u64(&reader);
		struct inode inode = {0};
		int r = clean->item->successor == 0
		                ? -ERR_NOT_FOUND
		                : overlay_read_inode(clean->trees, clean->item->successor, number,
		                                     &inode);
		/* What cannot be read may name it: left to the next opening. */
		bool kept = r == 0 ? inode.staging == staging : r != -ERR_NOT_FOUND;
		inode_release(&inode);
		/* One whose last name went since is its opener's (worktree_forget), and of what
		 * else is open the next opening of the lake removes what is left. */
		if (!kept && !file_data_in_use(clean->trees, staging))
			staging_remove(clean->trees, staging);
	}
}

/* One batch of one table. *ret_more: there may be more. */
static int clean_batch(struct worktrees *trees, const struct discarded *item,
                       enum state_table table, bool *ret_more)
{
	struct clean clean = {.trees = trees, .item = item, .table = table};
	uint8_t prefix[8];
	store_u64_be(prefix, item->overlay);
	int r = state_scan(trees->state, table, prefix, sizeof(prefix), NULL, 0,
	                   OVERLAY_CLEAN_BATCH, collect_record, &clean);
	*ret_more = clean.batch.count > 0;
	if (r == 0)
		r = state_commit(trees->state, &clean.batch, NULL);
	if (r == 0)
		remove_collected_staging(&clean);
	state_batch_release(&clean.batch);
	buffer_release(&clean.staging);
	return r;
}

/* Under cleaner_lock, given up meanwhile; items leave the list in this thread alone. */
static void adopt_awaited(struct worktrees *trees)
{
	for (struct discarded *item = trees->discarded; item != NULL; item = item->next) {
		if (!item->awaited)
			continue;
		pthread_mutex_unlock(&trees->cleaner_lock);
		stored_adopt(&item->stored, trees, ADOPT_SOON_FILES);
		pthread_mutex_lock(&trees->cleaner_lock);
		item->awaited = false;
		trees->adopting--;
		pthread_cond_broadcast(&trees->adopted);
	}
}

void adopted_wait(struct worktrees *trees, const struct content *content)
{
	if (trees->adopting == 0 || cache_has(trees->cache, content))
		return;
	thread_about_to_block();
	int64_t until_ms = clock_monotonic_ms() + ADOPT_WAIT_MS;
	struct timespec until = {.tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000};
	pthread_mutex_lock(&trees->cleaner_lock);
	while (trees->adopting > 0 &&
	       pthread_cond_timedwait(&trees->adopted, &trees->cleaner_lock, &until) == 0)
		continue;
	pthread_mutex_unlock(&trees->cleaner_lock);
}

static bool is_closing(struct worktrees *trees)
{
	pthread_mutex_lock(&trees->cleaner_lock);
	bool closing = trees->closing;
	pthread_mutex_unlock(&trees->cleaner_lock);
	return closing;
}

/* Between two batches. True: no more. */
static bool pause_cleaning(struct worktrees *trees)
{
	pthread_mutex_lock(&trees->cleaner_lock);
	adopt_awaited(trees);
	bool closing = trees->closing, due = removed_due(trees);
	pthread_mutex_unlock(&trees->cleaner_lock);
	if (due)
		unlink_removed(trees, REMOVE_STEP);
	return closing;
}

static int clean_overlay(struct worktrees *trees, const struct discarded *item)
{
	static const enum state_table tables[] = {STATE_INODES, STATE_ENTRIES};
	for (size_t i = 0; i < ARRAY_SIZE(tables); i++) {
		bool more = true;
		while (more) {
			if (pause_cleaning(trees))
				return 0; /* the next opening goes on */
			int r = clean_batch(trees, item, tables[i], &more);
			if (r != 0)
				return r;
		}
	}
	return 0;
}

/* Under cleaner_lock. */
static void wait_until(struct worktrees *trees, int64_t until_ms)
{
	struct timespec until = {.tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000};
	pthread_cond_timedwait(&trees->cleaner_wake, &trees->cleaner_lock, &until);
}

static void *cleaner_main(void *context)
{
	struct worktrees *trees = context;
	pthread_mutex_lock(&trees->cleaner_lock);
	while (!trees->closing) {
		adopt_awaited(trees);
		struct discarded *item = trees->discarded;
		if (item != NULL && item->held)
			item = NULL; /* its owner tells when */
		if (removed_due(trees)) {
			pthread_mutex_unlock(&trees->cleaner_lock);
			unlink_removed(trees, REMOVE_STEP);
			pthread_mutex_lock(&trees->cleaner_lock);
			continue;
		}
		if (item == NULL) {
			if (trees->removed.length > 0)
				wait_until(trees, trees->removed_due_ms);
			else
				pthread_cond_wait(&trees->cleaner_wake, &trees->cleaner_lock);
			continue;
		}
		trees->discarded = item->next;
		pthread_mutex_unlock(&trees->cleaner_lock);
		stored_adopt_rest(&item->stored, trees, is_closing);
		stored_release(&item->stored);
		int r = clean_overlay(trees, item);
		pthread_mutex_lock(&trees->cleaner_lock);
		if (r == 0) {
			discarded_free(item);
			continue;
		}
		item->next = trees->discarded; /* a full disk: try again later */
		trees->discarded = item;
		if (!trees->closing)
			wait_until(trees, clock_monotonic_ms() + CLEAN_RETRY_MS);
	}
	adopt_awaited(trees); /* what a commit without laked has just made is not to be lost */
	pthread_mutex_unlock(&trees->cleaner_lock);
	return NULL;
}

int cleaner_start(struct worktrees *trees, struct message *message)
{
	int r = thread_start(&trees->cleaner, cleaner_main, trees);
	trees->cleaner_running = r == 0;
	return r == 0 ? 0 : fail(message, r, "cannot start a thread: %s", error_text(r));
}

void cleaner_release(struct worktrees *trees)
{
	if (trees->cleaner_running) {
		pthread_mutex_lock(&trees->cleaner_lock);
		trees->closing = true;
		pthread_cond_signal(&trees->cleaner_wake);
		pthread_mutex_unlock(&trees->cleaner_lock);
		pthread_join(trees->cleaner, NULL);
		unlink_removed(trees, SIZE_MAX);
	}
	buffer_release(&trees->removed);
	while (trees->discarded != NULL) {
		struct discarded *item = trees->discarded;
		trees->discarded = item->next;
		discarded_free(item);
	}
	pthread_cond_destroy(&trees->adopted);
	pthread_cond_destroy(&trees->cleaner_wake);
	pthread_mutex_destroy(&trees->cleaner_lock);
}
