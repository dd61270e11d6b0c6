/*
 * cache — whole-file local copies of content: one plain file per content id, sparse until
 * complete, so that a complete one can be handed to the kernel for passthrough.
 *
 * Holds:      the blob directory, the map of present ranges of incomplete blobs, recency, size.
 * Never:      decides what a path means; talks to FUSE; lets anybody write into a blob.
 * Layout:     DIR/blobs/xx/<id>    complete and durable;
 *             DIR/recent/<id>      complete, not yet fsynced: trusted only in the boot that made
 *                                  them (boot id stamp), else dropped on opening;
 *             DIR/partial/<id>.<n> incomplete; dropped on opening.
 * Invariants: (1) a present range was verified against its hashes; (2) a blob in blobs/ or
 *             recent/ is complete; (3) a blob's bytes never change; (4) bytes on disk stay
 *             within the configured bound (least recently used first; referenced blobs stay;
 *             what was there before opening counts once a background scan has seen it).
 * Threads:    any, one of its own that syncs and evicts, and up to 32 that fetch. Locks:
 * internal.h; none is held across the store or the disk (but the one that keeps evictions apart).
 *             Duplicate fetches of one range are joined.
 */
#ifndef CACHE_CACHE_H
#define CACHE_CACHE_H

#include <stdatomic.h>

#include "store/content.h"

struct cache;
struct blob;
struct cache_options {
	uint64_t bytes_max; /* 0: 10 % of the file system it lies on stays free, no other bound */
	size_t whole_file_bytes;   /* files up to this are fetched whole at open; 0: 8 MiB */
	uint64_t verify_bytes_max; /* larger local copies are served while a thread checks them; 0:
	                              8 MiB */
	uint64_t fetch_bytes_max;  /* memory for what is being fetched; 0: 128 MiB */
};
int cache_open(const char *directory, struct odb *odb, const struct cache_options *options,
               struct cache **ret_cache, struct message *message);
void cache_close(struct cache *cache); /* syncs recent/ into blobs/; no blob may be referenced */

/* One reference to the blob of `content` (kind CHUNK or LIST; an EMPTY one works too). Small
 * files are fetched whole: 0 and complete. Large ones may be incomplete: use blob_ensure.
 * Blocks on the store for small files. -ERR_STORE_AWAY, -ERR_CORRUPT, -ERR_NO_SPACE. */
int cache_get(struct cache *cache, const struct content *content, struct blob **ret_blob,
              struct message *message);
void blob_unref(struct blob *blob); /* accepts NULL */
/* Read-only descriptor of the local file; the blob's, valid until blob_unref. */
int blob_descriptor(const struct blob *blob);
bool blob_complete(const struct blob *blob);
/* Was there no complete local copy when it was opened? */
bool blob_fetched(const struct blob *blob);
/* A read: make [offset, offset+length) present (verified). Ranges are rounded to chunks; where
 * reading goes on, what comes next is fetched ahead in the background. Blocks on the store only for
 * what was asked for. -ERR_STORE_AWAY, -ERR_CORRUPT, -ERR_NO_SPACE. */
int blob_ensure(struct blob *blob, uint64_t offset, uint64_t length, struct message *message);
/* Fetch all of it, many ranges at a time, with progress. */
int blob_complete_now(struct blob *blob, const struct progress *progress, struct message *message);
/* True when a complete local copy exists (no fetch is started). */
bool cache_has(struct cache *cache, const struct content *content);
/* Local copies of those of many contents that are one chunk each and not here; neighbours in packs
 * are one request. The others are left to cache_get; so is everything when it fails. */
int cache_fetch_many(struct cache *cache, const struct content *contents, size_t count,
                     struct message *message);
/* The same, one after the other and each by the window it lies in, for somebody who may open them
 * soon, until `stop`, or there is no room, or the store is away. Of what fails nobody hears. */
void cache_fetch_ahead(struct cache *cache, const struct content *contents, size_t count,
                       const atomic_bool *stop);
/* How many bytes it may hold before something is evicted. Reads the blobs' directories. */
uint64_t cache_capacity(struct cache *cache);
/* Make the finished local file `path` the blob of `content` by renaming it (same file system).
 * When a blob exists already `path` is unlinked. The caller vouches that the bytes are these and
 * that nobody can write to the file any more. */
int cache_adopt(struct cache *cache, const struct content *content, const char *path,
                struct message *message);
/* For many files at once: what is on the cache's file system is durable when it returns 0. */
int cache_sync(struct cache *cache);
/* The same for a file whose bytes have been synced: it is trusted at once. */
int cache_adopt_synced(struct cache *cache, const struct content *content, const char *path,
                       struct message *message);

struct cache_stats {
	uint64_t blobs, bytes;
	uint64_t hits, misses;     /* opens that found a complete local copy, or did not */
	uint64_t fetched_bytes;    /* of content, from the store */
	uint64_t ahead_bytes;      /* of these, fetched before anybody asked */
	uint64_t ahead_used_bytes; /* of these, read since */
	uint64_t reads;            /* of files that were not complete when they were opened */
	uint64_t reads_present;    /* of these, found all their bytes here */
	uint64_t reads_joined;     /* or waited for what was being fetched already */
	uint64_t evicted;
	uint64_t damaged; /* local copies that were not what they should be, and are gone */
};
void cache_stats(struct cache *cache, struct cache_stats *ret_stats);
/* Check every complete blob against its id by re-chunking (fsck). */
typedef int cache_damage_fn(void *context, const struct id *id, const char *path);
int cache_verify(struct cache *cache, cache_damage_fn *callback, void *context,
                 const struct progress *progress, struct message *message);

#endif
