/*
 * internal — what the files of cache/ share. Included only by its .c files.
 *
 *   cache.c    opening, the table of blobs in use, adopting, statistics
 *   blob.c     one blob: its local file, from partial to complete
 *   fetch.c    what of it is present, fetching what is not: jobs
 *   pool.c     the threads that run jobs, in which order, in how much memory
 *   cursors.c  how far ahead of its readers to fetch
 *   replay.c   reads that come again elsewhere in a file
 *   columns.c  the columns that are read of a file
 *   footer.c   where a file says that its columns are (parquet.c: in Parquet's words)
 *   evict.c    recency, the bound, making room
 *   durable.c  recent/ -> blobs/ once synced, and what may be trusted on opening
 *   verify.c   checking local files against their ids
 *
 * A blob's life:
 *
 *   cache_get, nothing local --> partial --(last range present)--> recent --(synced)--> durable
 *                                   |  partial/<id>.<n>              |  recent/<id>        |
 * blobs/xx/<id> cache_get, local file    -------|------------------------------> |
 * <------------------+ cache_adopt              -------|------------------------------> | last
 * reference gone: kept idle         struct blob is freed, the file (map and file, no descriptor)
 * stays
 *
 *
 * Whose a struct blob is: cache_get gives out a handle (`users`), and each handle and each job
 * holds a reference. With the last handle jobs that have not begun are given up; those that have
 * finish what they fetch. With the last reference (and under table_lock) it becomes idle or is
 * freed. So a job may use its blob, descriptors included, until it gives its reference back,
 * without having to know whether anybody still reads the file.
 *
 * Locks, in order; none but the first two is held across the disk, none across the store:
 *   maintenance  one scan, sync or eviction at a time. Taken by readers only when there is no room.
 *   scan_lock    what the struct says.
 *   blob->lock   what the struct says.
 *   table_lock   what the struct says.
 *   pool->lock   the queues and the budget; a leaf.
 */
#ifndef CACHE_INTERNAL_H
#define CACHE_INTERNAL_H

#include "cache/cache.h"
#include "cache/cursors.h"
#include "cache/extents.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include <uthash.h>
#include <utlist.h>

#define FETCH_BYTES_MAX_DEFAULT ((uint64_t)128 << 20)
#define FETCH_BYTES_MAX_MIN ((uint64_t)2 << 20)
#define EVICT_BYTES_MIN ((uint64_t)8 << 20) /* by one pass when the disk is full */
#define WHOLE_FILE_BYTES_DEFAULT ((size_t)8 << 20)
#define VERIFY_BYTES_DEFAULT ((uint64_t)8 << 20)
#define TOUCH_INTERVAL_MS 60000
#define IDLE_BLOBS_MAX 1024
#define SHARDS 256
#define CHECK_QUEUE_MAX 256             /* large files that wait to be checked */
#define SHARD_PATH_MAX (3 + ID_HEX + 1) /* "xx/<id>" and NUL */
#define PARTIAL_NAME_MAX (ID_HEX + 1 + 20 + 1)

struct pool;

/* Something to fetch by one request: pieces of a blob, claimed by nobody else. Or (only a
 * range) a plan: to find out what must be fetched ahead there, and claim that; or lists; or a
 * footer. */
enum job_kind {
	JOB_DEMAND, /* somebody waits for it */
	JOB_PLAN,
	JOB_LISTS,  /* to read where a range's chunks are, before anybody comes there */
	JOB_FOOTER, /* to read where the file's columns are, once somebody has read its end */
	JOB_AHEAD,  /* a reader may come there */
	JOB_BULK,   /* for somebody who wants all of the file */
};
struct job {
	struct blob *blob; /* with a reference */
	enum job_kind kind;
	uint64_t start, end; /* of the file: all pieces lie in it, maybe others, too */
	size_t count;        /* pieces */
	uint64_t cost;       /* memory it takes while it is fetched */
	bool reserved;       /* and has been given */
	const void *owner;   /* the reader on whose behalf: reports its failure if it runs it */
	struct job *previous, *following; /* in blob->jobs; blob->lock */
	/* The pool's lock: */
	bool queued;
	struct job *prev, *next;
	struct piece pieces[]; /* ascending */
};

struct blob {
	struct cache *cache;
	struct id id;          /* of the content; constant */
	uint64_t size;         /* constant */
	_Atomic bool complete; /* every byte is in the file, which has its final name */
	_Atomic bool fetched;  /* ... which it had not when it was opened */

	/* table_lock */
	UT_hash_handle hh;
	struct blob *prev, *next; /* in idle: partial, no references */
	bool superseded;          /* not in the table any more: a complete file came beside it */
	unsigned references;
	_Atomic unsigned
	        users; /* of these, handles given out; also read without the lock, as a hint */
	int64_t idle_since_ms; /* wall clock, as files' mtimes are */

	pthread_mutex_t lock; /* guards all below */
	pthread_cond_t changed;
	struct content content; /* where to fetch from: the places of the latest cache_get */
	int descriptor; /* read-only; -1 while idle or not opened; constant while referenced */
	int writer;     /* of the partial file; -1 when complete or not opened */
	bool opening;
	bool created;   /* the partial file exists */
	bool finishing; /* everything is present, the rename is under way */
	bool unwanted;  /* the disk was full: dropped with its last reference */
	struct extents present;
	struct job *jobs;        /* what is claimed: queued or being fetched */
	struct waiter *waiters;  /* readers that wait (fetch.c) */
	_Atomic bool observed;   /* has cursors */
	bool listed;             /* its lists of chunks are being read ahead, or were */
	struct cursors *cursors; /* or NULL: not read yet */
	uint64_t disk_bytes;     /* of the partial file, as counted in cache->partial_bytes */
	char partial_name[PARTIAL_NAME_MAX];
};

/* A complete file in recent/. */
struct recent {
	struct id id;
	uint64_t bytes;
	UT_hash_handle hh;
};

struct cache {
	char *path;
	int directory;
	int blobs;
	int recents;
	int partials;
	struct odb *odb;
	uint64_t bytes_max;
	size_t whole_file_bytes;
	_Atomic uint64_t partial_serial;
	struct pool *pool;
	uint64_t fetch_bytes_max;
	_Atomic int64_t ahead_pause_until_ms; /* fetching ahead failed: not before */

	pthread_cond_t released;    /* with table_lock: a blob has a reference less */
	pthread_mutex_t table_lock; /* guards until the next lock */
	struct blob *table;
	struct blob *idle; /* least recently used first */
	size_t idle_count;
	struct recent *recent;
	uint64_t recent_bytes;
	uint64_t partial_bytes;
	uint64_t durable_count, durable_bytes; /* of blobs/: as scanned, then kept up to date */
	int64_t recent_since_ms;               /* when the oldest of `recent` came */
	struct cache_stats counters;           /* but blobs and bytes */

	pthread_mutex_t maintenance;     /* see above; guards nothing but its own passes */
	_Atomic int64_t futile_until_ms; /* an eviction found nothing: do not scan again before */

	pthread_mutex_t scan_lock; /* guards what follows; held while a file gets into blobs/ by
	                            * adoption, or a scan sees one of its directories */
	unsigned scanned;          /* by the scan under way: directories below this */
	uint64_t scan_count, scan_bytes; /* what it saw there, and what came there since */

	struct odb *checker; /* computes ids, keeps nothing */
	uint64_t verify_bytes_max;
	_Atomic uint64_t *trusted;  /* fingerprints of files that were written or checked here */
	pthread_mutex_t check_lock; /* guards the rest of these; leaf */
	struct id check_queue[CHECK_QUEUE_MAX]; /* the first one is being checked */
	size_t check_count;
	bool check_running, check_joinable;
	pthread_t check_thread;

	pthread_t keeper;            /* scans, syncs and evicts in the background */
	pthread_mutex_t keeper_lock; /* guards keeper_wanted; leaf */
	pthread_cond_t keeper_wake;
	bool keeper_wanted;
	_Atomic bool closing;
};

/* A local copy for reading; as open(2). What has its name and is none is neither followed nor
 * waited for. */
int open_copy(int directory, const char *name);

/* -- cache.c -- */
void shard_path(const struct id *id, char ret_path[SHARD_PATH_MAX]);
static inline uint64_t disk_bytes_of(const struct stat *status)
{
	return (uint64_t)status->st_blocks * 512;
}
/* Enter a file that lies in recent/ already. */
int recent_add(struct cache *cache, const struct id *id, uint64_t bytes);
/* Forget it (the file is the caller's to move or unlink). False when it was not there. */
bool recent_remove(struct cache *cache, const struct id *id, uint64_t *ret_bytes);
/* Remove a complete file that is not what its name says. Who has it open keeps it. */
void discard_file(struct cache *cache, const struct id *id);
/* A complete local file of this size, marked as used; its bytes are believed (verify.c).
 * -ERR_NOT_FOUND: none, or it was damaged and is gone. */
int open_complete(struct cache *cache, const struct id *id, uint64_t size, int *ret_descriptor);

/* One more reference for somebody who has one, or holds the blob's lock with one in blob->jobs. */
void blob_hold(struct blob *blob);
void blob_release(struct blob *blob);

/* A complete file of this content was put into place by somebody else than its blob: whoever asks
 * from now on gets that. */
void supersede(struct cache *cache, const struct id *id);

/* -- blob.c -- */
/* A blob without references, not opened, not in the table. */
int blob_new(struct cache *cache, const struct content *content, struct blob **ret_blob);
/* Close, remove the partial file if there is one, free. No references, not in the table. */
void blob_free(struct blob *blob);
/* Make the descriptor usable: of the complete local file, else of the partial one, made when
 * there is none. The blob is in the table and referenced. */
int blob_open(struct blob *blob, struct message *message);
/* Take the places of a newer reference to the same content. */
void blob_refresh(struct blob *blob, const struct content *content);

/* Everything is present: give the file its final name. By one thread (blob->finishing), unlocked.
 */
void blob_finish(struct blob *blob);

/* -- fetch.c -- */
/* Make a range present, for somebody who waits, without supposing that reading goes on. */
int fetch_range(struct blob *blob, uint64_t start, uint64_t end, struct message *message);
/* Run a job that was taken out of the queue, and free it. By a thread that holds no lock. */
int job_run(struct job *job, struct message *message);
/* Give up one that was taken out of the queue: nobody has it claimed any more. */
void job_abandon(struct job *job);

/* Fetching ahead failed: not again at once. */
void ahead_pause(struct cache *cache);
bool ahead_pauses(const struct cache *cache);

/* -- footer.c -- */
/* Have the cursors know the file's columns, if its end tells of any. By a thread of the pool. */
void footer_read(struct blob *blob);

/* -- pool.c -- */
int pool_new(uint64_t bytes_max, struct pool **ret_pool);
/* Gives up what is queued, waits for what is being fetched. */
void pool_free(struct pool *pool); /* accepts NULL */
void pool_add(struct pool *pool, struct job *job);
/* Take this job out of the queue: true when it was still there, and is the caller's now. */
bool pool_take(struct pool *pool, struct job *job);
/* Give up all queued jobs of a blob, or (NULL) of all. */
void pool_cancel(struct pool *pool, const struct blob *blob);
/* The memory of a job. For fetching ahead: false when there is no room now. */
bool pool_reserve_ahead(struct pool *pool, uint64_t bytes);
void pool_reserve(struct pool *pool, uint64_t bytes); /* may wait for other jobs */
void pool_release(struct pool *pool, uint64_t bytes);
/* What is reserved now, and the most it ever was. */
uint64_t pool_bytes(struct pool *pool, uint64_t *ret_peak);
/* Memory to fetch `bytes` into, to be given back: used before and large enough, or none yet. */
struct buffer pool_buffer_take(struct pool *pool, uint64_t bytes);
void pool_buffer_give(struct pool *pool, struct buffer *buffer);

/* -- evict.c -- */
/* Is there room for this much to be fetched ahead? Evicts for it, but files in use must not pass
 * the bound for its sake. */
bool evict_for_ahead(struct cache *cache, uint64_t bytes);
/* Called before `bytes` more are written. Evicts at once when the bound would be passed, in the
 * background when it is near. Never fails: referenced blobs may have to pass the bound. */
void evict_before(struct cache *cache, uint64_t bytes);
/* The disk is full: free at least `bytes` if possible. True when something was freed. */
bool evict_now(struct cache *cache, uint64_t bytes);
/* A file has come into blobs/ under scan_lock: count it, once, though a scan may be under way. */
void evict_count_adopted(struct cache *cache, const struct id *id, uint64_t bytes);
/* Count what is in blobs/ (once, by the keeper). */
void evict_count(struct cache *cache);
/* Evict down to the lower mark when above the upper one. */
void evict_in_background(struct cache *cache);

/* -- verify.c -- */
int verify_start(struct cache *cache);
void verify_stop(struct cache *cache); /* of one that is closing, or was never started */
/* May this file be served? -ERR_CORRUPT. Up to verify_bytes_max that is known on return; larger
 * ones are checked in the background, and discarded when they are damaged. */
int verify_opened(struct cache *cache, const struct id *id, int descriptor,
                  const struct stat *status);
/* Its bytes were checked as they were written. */
void verify_trust(struct cache *cache, const struct id *id, ino_t inode);

/* -- durable.c -- */
/* Drop what may not be trusted, list what may. */
int durable_open(struct cache *cache, struct message *message);
/* Sync everything in recent/ and move it to blobs/. */
void durable_sync(struct cache *cache);
bool durable_due(struct cache *cache);
/* Rename a synced file to blobs/`path` ("xx/<id>"); `flags` as of renameat2(2). */
int durable_place(struct cache *cache, int directory, const char *name, const char *path,
                  unsigned flags);
int keeper_start(struct cache *cache);
void keeper_stop(struct cache *cache);
void keeper_wake(struct cache *cache);

/* Call back for each file name of the directory that is an id; other names are passed as NULL id.
 */
typedef void name_fn(struct cache *cache, int directory, const char *name, const struct id *id,
                     void *context);
int each_name(struct cache *cache, int parent, const char *path, name_fn *callback, void *context);

#endif
