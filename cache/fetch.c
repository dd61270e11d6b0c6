/*
 * fetch.c — hides how one blob fills up: which chunks a range needs, who fetches which of them
 * when several ask, where the bytes are until all of them are there.
 *
 * Readers claim the pieces nobody has claimed (in_flight), fetch them in batches without a lock,
 * write them, and only then mark them present: a range marked present is on the file and was
 * verified by the odb. Whoever needs a piece that is in flight waits for its fetcher and shares
 * its failure, so N readers of an unreachable store wait for one timeout and not for N.
 *
 * The partial file's name is unique to the struct, so that dropping an old one can never remove
 * the file of a newer blob of the same content.
 */
#include "cache/internal.h"
#include "store/chunker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define PIECES_MAX 1024 /* in one batch */

int blob_new(struct cache *cache, const struct content *content, struct blob **ret_blob)
{
	struct blob *blob = calloc(1, sizeof(*blob));
	if (!blob)
		return -ERR_NO_MEMORY;
	blob->cache = cache;
	blob->id = content->pointer.id;
	blob->size = content->size;
	blob->content = *content;
	blob->descriptor = blob->writer = -1;
	pthread_mutex_init(&blob->lock, NULL);
	pthread_cond_init(&blob->changed, NULL);
	*ret_blob = blob;
	return 0;
}

void blob_free(struct blob *blob)
{
	struct cache *cache = blob->cache;
	close_descriptor(&blob->descriptor);
	close_descriptor(&blob->writer);
	if (blob->created) {
		unlinkat(cache->partials, blob->partial_name, 0);
		pthread_mutex_lock(&cache->table_lock);
		cache->partial_bytes -= blob->disk_bytes;
		pthread_mutex_unlock(&cache->table_lock);
	}
	extents_release(&blob->present);
	pthread_cond_destroy(&blob->changed);
	pthread_mutex_destroy(&blob->lock);
	free(blob);
}

void blob_refresh(struct blob *blob, const struct content *content)
{
	pthread_mutex_lock(&blob->lock);
	blob->content = *content;
	pthread_mutex_unlock(&blob->lock);
}

/* -- the partial file -- */

static int open_partial(struct blob *blob, int *ret_descriptor, int *ret_writer)
{
	struct cache *cache = blob->cache;
	CLEANUP(close_descriptor) int writer = -1;
	CLEANUP(close_descriptor) int descriptor = -1;
	writer = openat(cache->partials, blob->partial_name, O_RDWR | O_CLOEXEC);
	if (writer < 0)
		return error_system(errno);
	descriptor = openat(cache->partials, blob->partial_name, O_RDONLY | O_CLOEXEC);
	if (descriptor < 0)
		return error_system(errno);
	*ret_descriptor = descriptor;
	*ret_writer = writer;
	descriptor = writer = -1;
	return 0;
}

static int create_partial(struct blob *blob)
{
	char hex[ID_HEX + 1];
	id_to_hex(&blob->id, hex);
	snprintf(blob->partial_name, sizeof(blob->partial_name), "%s.%llu", hex,
	         (unsigned long long)atomic_fetch_add(&blob->cache->partial_serial, 1));
	int partials = blob->cache->partials;
	CLEANUP(close_descriptor)
	int descriptor =
	        openat(partials, blob->partial_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (descriptor < 0)
		return error_system(errno);
	/* The whole size from the start: what is not there yet is a hole. */
	if (ftruncate(descriptor, (off_t)blob->size) < 0) {
		int error = error_system(errno);
		unlinkat(partials, blob->partial_name, 0);
		return error;
	}
	return 0;
}

struct opened {
	int descriptor;
	int writer;   /* -1: the file is complete */
	bool created; /* a new partial file: it holds nothing yet */
};

/* Unlocked, by the one thread that set blob->opening. The blob is in the table, so whoever
 * completed this content before has given the file its name: it is looked for here and not
 * fetched twice. */
static int open_file(struct blob *blob, bool has_partial, struct opened *ret_opened)
{
	*ret_opened = (struct opened){-1, -1, false};
	int error = open_complete(blob->cache, &blob->id, blob->size, &ret_opened->descriptor);
	if (error != -ERR_NOT_FOUND)
		return error;
	if (has_partial) {
		error = open_partial(blob, &ret_opened->descriptor, &ret_opened->writer);
		if (error != -ERR_NOT_FOUND)
			return error;
	}
	error = create_partial(blob);
	if (error == -ERR_NO_SPACE && evict_now(blob->cache, FETCH_BATCH_BYTES))
		error = create_partial(blob);
	if (error)
		return error;
	ret_opened->created = true;
	return open_partial(blob, &ret_opened->descriptor, &ret_opened->writer);
}

int blob_open(struct blob *blob, struct message *message)
{
	if (blob->complete)
		return 0;
	pthread_mutex_lock(&blob->lock);
	while (blob->opening)
		pthread_cond_wait(&blob->changed, &blob->lock);
	if (blob->descriptor >= 0) {
		pthread_mutex_unlock(&blob->lock);
		return 0;
	}
	blob->opening = true;
	bool has_partial = blob->created;
	pthread_mutex_unlock(&blob->lock);

	struct opened opened;
	int error = open_file(blob, has_partial, &opened);

	pthread_mutex_lock(&blob->lock);
	blob->opening = false;
	blob->descriptor = opened.descriptor;
	blob->writer = opened.writer;
	if (opened.created) {
		/* What an older file held is gone with it. */
		blob->created = true;
		extents_release(&blob->present);
	}
	blob->complete = !error && opened.writer < 0;
	pthread_cond_broadcast(&blob->changed);
	pthread_mutex_unlock(&blob->lock);
	if (error)
		return fail(message, error, "cannot open a local copy in %s: %s", blob->cache->path,
		            error_text(error));
	return 0;
}

/* Everything is present: give the file its final name. By one thread, unlocked. */
static void finish(struct blob *blob)
{
	struct cache *cache = blob->cache;
	char hex[ID_HEX + 1];
	id_to_hex(&blob->id, hex);
	int renamed = renameat2(cache->partials, blob->partial_name, cache->recents, hex,
	                        RENAME_NOREPLACE);
	/* When it was adopted meanwhile, or cannot be renamed, this struct's descriptor still
	 * serves its readers; the name in partial/ is of no more use. */
	bool placed = renamed == 0 || errno == EEXIST;
	if (renamed < 0)
		unlinkat(cache->partials, blob->partial_name, 0);

	pthread_mutex_lock(&blob->lock);
	uint64_t bytes = blob->disk_bytes;
	blob->disk_bytes = 0;
	blob->created = false;
	close_descriptor(&blob->writer);
	pthread_mutex_unlock(&blob->lock);

	pthread_mutex_lock(&cache->table_lock);
	cache->partial_bytes -= bytes;
	pthread_mutex_unlock(&cache->table_lock);
	if (placed)
		(void)recent_add(cache, &blob->id, bytes);

	pthread_mutex_lock(&blob->lock);
	blob->complete = true;
	extents_release(&blob->present);
	pthread_cond_broadcast(&blob->changed);
	pthread_mutex_unlock(&blob->lock);
	if (durable_due(cache))
		keeper_wake(cache);
}

/* -- what a range needs -- */

struct batch {
	struct piece *pieces;
	size_t count;
	size_t capacity;
	uint64_t data_bytes;
	uint64_t next; /* in the file: after the last piece */
	int error;
};

static void batch_release(struct batch *batch)
{
	free(batch->pieces);
	*batch = (struct batch){0};
}

static int collect_piece(void *context, const struct piece *piece)
{
	struct batch *batch = context;
	/* Places are not hashed: a length that disagrees must not size a buffer. */
	bool sound = piece->length > 0 && piece->offset + piece->length > piece->offset &&
	             (batch->count == 0 || piece->offset == batch->next) &&
	             (piece->hole || (piece->length <= RECORD_RAW_MAX &&
	                              piece->pointer.place.raw == piece->length));
	if (!sound) {
		batch->error = -ERR_CORRUPT;
		return 1;
	}
	if (batch->count == batch->capacity) {
		size_t capacity = batch->capacity ? batch->capacity * 2 : 8;
		struct piece *pieces = reallocarray(batch->pieces, capacity, sizeof(*pieces));
		if (!pieces) {
			batch->error = -ERR_NO_MEMORY;
			return 1;
		}
		batch->pieces = pieces;
		batch->capacity = capacity;
	}
	batch->pieces[batch->count++] = *piece;
	batch->next = piece->offset + piece->length;
	if (!piece->hole)
		batch->data_bytes += piece->length;
	/* Full when the next chunk might not fit. */
	return batch->data_bytes + CHUNK_BYTES_MAX > FETCH_BATCH_BYTES ||
	       batch->count == PIECES_MAX;
}

/* The pieces of at most one batch, from the one that holds `start` on. */
static int collect(struct blob *blob, const struct content *content, uint64_t start, uint64_t end,
                   struct batch *ret_batch, struct message *message)
{
	ret_batch->count = 0;
	ret_batch->data_bytes = 0;
	ret_batch->error = 0;
	ret_batch->next = start;
	int error = content_pieces(blob->cache->odb, content, start, end - start, collect_piece,
	                           ret_batch, message);
	if (error < 0)
		return error;
	if (ret_batch->error)
		return fail(message, ret_batch->error, "%s list of a file's chunks",
		            error_text(ret_batch->error));
	bool sound = ret_batch->count > 0 && ret_batch->pieces[0].offset <= start &&
	             ret_batch->next > start && ret_batch->next <= blob->size;
	if (!sound)
		return fail(message, -ERR_CORRUPT, "a file's chunks do not add up to its size");
	return 0;
}

/* -- who fetches what -- */

/* Pieces one thread is fetching; linked into the blob from its stack, so that giving them up
 * cannot fail. */
struct claim {
	struct piece *pieces; /* ascending */
	size_t count;
	struct claim *prev, *next;
};

static bool claim_has(const struct claim *claim, uint64_t offset)
{
	size_t low = 0, high = claim->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (claim->pieces[middle].offset < offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low < claim->count && claim->pieces[low].offset == offset;
}

/* Locked. Pieces are the same for everybody: they come from the content's own list. */
static bool in_flight(const struct blob *blob, const struct piece *piece)
{
	const struct claim *claim;
	DL_FOREACH (blob->claims, claim) {
		if (claim_has(claim, piece->offset))
			return true;
	}
	return false;
}

static bool present(const struct blob *blob, const struct piece *piece)
{
	return blob->complete ||
	       extents_cover(&blob->present, piece->offset, piece->offset + piece->length);
}

/* Locked. Claims every piece of the batch that is neither present nor in flight. True: others
 * are fetching some of the rest. */
static bool claim_pieces(struct blob *blob, const struct batch *batch, struct claim *claim)
{
	bool waiting = false;
	claim->count = 0;
	for (size_t i = 0; i < batch->count; i++) {
		if (present(blob, &batch->pieces[i]))
			continue;
		if (in_flight(blob, &batch->pieces[i]))
			waiting = true;
		else
			claim->pieces[claim->count++] = batch->pieces[i];
	}
	if (claim->count)
		DL_APPEND(blob->claims, claim);
	return waiting;
}

/* Locked. True when the blob has just become whole: the caller must finish() it. */
static bool just_whole(struct blob *blob)
{
	if (blob->finishing || !extents_cover(&blob->present, 0, blob->size))
		return false;
	blob->finishing = true;
	return true;
}

/* Locked. Gives up the claim; when it was fetched its pieces are present now. */
static int settle(struct blob *blob, struct claim *claim, int error)
{
	DL_DELETE(blob->claims, claim);
	if (!error)
		error = extents_reserve(&blob->present, claim->count);
	for (size_t i = 0; !error && i < claim->count; i++)
		extents_add(&blob->present, claim->pieces[i].offset,
		            claim->pieces[i].offset + claim->pieces[i].length);
	if (error == -ERR_STORE_AWAY)
		blob->store_away_serial++;
	if (error == -ERR_NO_SPACE)
		blob->unwanted = true;
	pthread_cond_broadcast(&blob->changed);
	return error;
}

/* Locked, but for the wait. Other failures than an unreachable store may be due to a piece that
 * this reader did not ask for: then it tries itself. */
static int wait_for_others(struct blob *blob, const struct batch *batch, struct message *message)
{
	uint64_t serial = blob->store_away_serial;
	pthread_cond_wait(&blob->changed, &blob->lock);
	if (blob->store_away_serial == serial)
		return 0;
	for (size_t i = 0; i < batch->count; i++) {
		if (!present(blob, &batch->pieces[i]))
			return fail(message, -ERR_STORE_AWAY,
			            "the object store cannot be reached (fetching for another "
			            "reader of the same file)");
	}
	return 0;
}

/* -- fetching -- */

/* Bytes of neighbouring pieces lie together in memory as in the file: one write for each run. */
static int write_pieces(int writer, const struct piece *pieces, size_t count, const uint8_t *bytes)
{
	for (size_t i = 0; i < count;) {
		uint64_t start = pieces[i].offset, length = pieces[i].length;
		for (i++; i < count && pieces[i].offset == start + length; i++)
			length += pieces[i].length;
		int error = write_full(writer, bytes, length, (off_t)start);
		if (error)
			return error;
		bytes += length;
	}
	return 0;
}

static int read_and_write(struct blob *blob, const struct piece *pieces, size_t count,
                          uint64_t length, struct message *message)
{
	CLEANUP(free_pointer) uint8_t *bytes = malloc(length);
	CLEANUP(free_pointer) uint8_t **out = malloc(count * sizeof(*out));
	CLEANUP(free_pointer) struct pointer *pointers = malloc(count * sizeof(*pointers));
	if (!bytes || !out || !pointers)
		return fail(message, -ERR_NO_MEMORY, "out of memory for %llu bytes of a file",
		            (unsigned long long)length);
	uint8_t *at = bytes;
	for (size_t i = 0; i < count; i++) {
		pointers[i] = pieces[i].pointer;
		out[i] = at;
		at += pieces[i].length;
	}
	struct cache *cache = blob->cache;
	int error = odb_read_chunks(cache->odb, pointers, count, out, message);
	if (error)
		return error;
	evict_before(cache, length);
	error = write_pieces(blob->writer, pieces, count, bytes);
	if (error == -ERR_NO_SPACE && evict_now(cache, length))
		error = write_pieces(blob->writer, pieces, count, bytes);
	if (error)
		return fail(message, error,
		            "cannot keep %llu bytes in %s: %s; free some space on that disk",
		            (unsigned long long)length, cache->path, error_text(error));
	return 0;
}

static void account(struct blob *blob, uint64_t fetched)
{
	struct stat status;
	struct cache *cache = blob->cache;
	if (fstat(blob->writer, &status) < 0)
		return;
	pthread_mutex_lock(&blob->lock);
	uint64_t before = blob->disk_bytes;
	blob->disk_bytes = disk_bytes_of(&status);
	pthread_mutex_lock(&cache->table_lock);
	cache->partial_bytes += blob->disk_bytes - before;
	cache->counters.fetched_bytes += fetched;
	pthread_mutex_unlock(&cache->table_lock);
	pthread_mutex_unlock(&blob->lock);
}

/* Unlocked. Holes are there already: the file was created with its size. */
static int fetch(struct blob *blob, const struct claim *claim, struct message *message)
{
	CLEANUP(free_pointer) struct piece *data = malloc(claim->count * sizeof(*data));
	if (!data)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	size_t count = 0;
	uint64_t length = 0;
	for (size_t i = 0; i < claim->count; i++) {
		if (claim->pieces[i].hole)
			continue;
		data[count++] = claim->pieces[i];
		length += claim->pieces[i].length;
	}
	if (count == 0)
		return 0;
	int error = read_and_write(blob, data, count, length, message);
	account(blob, error ? 0 : length);
	return error;
}

/* Make the pieces of one batch present. */
static int ensure_batch(struct blob *blob, const struct batch *batch, struct message *message)
{
	CLEANUP(free_pointer)
	struct piece *pieces = malloc(batch->count * sizeof(*pieces));
	if (!pieces)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	for (;;) {
		struct claim claim = {.pieces = pieces};
		int error = 0;
		bool whole = false;
		pthread_mutex_lock(&blob->lock);
		bool waiting = claim_pieces(blob, batch, &claim);
		if (!claim.count && waiting)
			error = wait_for_others(blob, batch, message);
		pthread_mutex_unlock(&blob->lock);
		if (claim.count) {
			error = fetch(blob, &claim, message);
			pthread_mutex_lock(&blob->lock);
			error = settle(blob, &claim, error);
			whole = just_whole(blob);
			pthread_mutex_unlock(&blob->lock);
		}
		if (whole)
			finish(blob);
		if (error)
			return error;
		if (!waiting)
			return 0;
	}
}

/* Nobody may find a file without bytes unfinished for want of a fetch; and who needed the last
 * missing piece sees the blob complete. */
static void wait_until_finished(struct blob *blob)
{
	pthread_mutex_lock(&blob->lock);
	bool whole = !blob->complete && just_whole(blob);
	while (!whole && blob->finishing && !blob->complete)
		pthread_cond_wait(&blob->changed, &blob->lock);
	pthread_mutex_unlock(&blob->lock);
	if (whole)
		finish(blob);
}

int blob_ensure(struct blob *blob, uint64_t offset, uint64_t length, struct message *message)
{
	if (blob->complete)
		return 0;
	uint64_t end = blob->size;
	if (offset < end && length < end - offset)
		end = offset + length;
	CLEANUP(batch_release) struct batch batch = {0};
	for (uint64_t at = offset; at < end; at = batch.next) {
		pthread_mutex_lock(&blob->lock);
		at = blob->complete ? end : extents_skip(&blob->present, at);
		struct content content = blob->content;
		pthread_mutex_unlock(&blob->lock);
		if (at >= end)
			break;
		int error = collect(blob, &content, at, end, &batch, message);
		if (!error)
			error = ensure_batch(blob, &batch, message);
		if (error)
			return error;
	}
	wait_until_finished(blob);
	return 0;
}

int blob_complete_now(struct blob *blob, const struct progress *progress, struct message *message)
{
	for (uint64_t at = 0; !blob->complete;) {
		if (progress_report(progress, "fetching", at, blob->size, "bytes"))
			return fail(message, -ERR_INTERRUPTED, "fetching was interrupted");
		int error = blob_ensure(blob, at, FETCH_BATCH_BYTES, message);
		if (error)
			return error;
		pthread_mutex_lock(&blob->lock);
		at = blob->complete ? blob->size : extents_skip(&blob->present, at);
		pthread_mutex_unlock(&blob->lock);
	}
	if (progress_report(progress, "fetching", blob->size, blob->size, "bytes"))
		return fail(message, -ERR_INTERRUPTED, "fetching was interrupted");
	return 0;
}

int blob_descriptor(const struct blob *blob)
{
	return blob->descriptor;
}

bool blob_complete(const struct blob *blob)
{
	return blob->complete;
}
