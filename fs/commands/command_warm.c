/*
 * command_warm — hides how much of a tree is brought into the cache, in which order, and by whom.
 *
 * First the directories are walked by several threads at once, and files counted; when they fit,
 * they are fetched in the order in which they lie in packs, neighbours by one thread. Of a tree of
 * more than FILES_KEPT_MAX files, which are too many to remember, some are fetched, then it is
 * walked again.
 */
#include "fs/commands/command_internal.h"
#include "store/thread.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>

#define THREADS_DEFAULT 12
#define THREADS_MAX 64
#define FILES_KEPT_MAX (1u << 20) /* some 100 bytes each */
#define SLICE_FILES_MAX 64
#define SLICE_BYTES_MAX (8u << 20)
#define BATCH_FILES 256
#define REPORT_EVERY_MS 200
#define BLOCK_BYTES 4096

struct files {
	struct content *items;
	size_t count, capacity;
};
struct warm {
	struct command *command;
	unsigned threads;
	_Atomic bool stop;
	_Atomic uint64_t done_bytes, fetched_bytes;

	pthread_mutex_t lock; /* guards the rest; a leaf */
	pthread_cond_t changed;
	unsigned running; /* threads */
	int error;        /* the first one, and its message */
	struct message message;
	/* walking */
	struct pointer *directories;
	size_t directory_count, directory_capacity;
	unsigned walking; /* threads that may still add directories */
	struct files files;
	uint64_t files_seen, bytes_seen, disk_bytes_seen, missing_bytes;
	bool counted; /* by an earlier walk */
	bool more;    /* than there was room for in `files` */
	/* fetching */
	size_t next;
};

static void warm_release(struct warm *warm)
{
	free(warm->directories);
	free(warm->files.items);
	pthread_mutex_destroy(&warm->lock);
	pthread_cond_destroy(&warm->changed);
}

static void give_up(struct warm *warm, int error, const struct message *message)
{
	pthread_mutex_lock(&warm->lock);
	if (!warm->error) {
		warm->error = error;
		warm->message = *message;
	}
	warm->stop = true;
	pthread_cond_broadcast(&warm->changed);
	pthread_mutex_unlock(&warm->lock);
}

/* Makes room for one more. False: no memory. */
static bool grow(void **items, size_t count, size_t *capacity, size_t size)
{
	if (count < *capacity)
		return true;
	size_t wanted = *capacity ? *capacity * 2 : 64;
	void *grown = reallocarray(*items, wanted, size);
	if (!grown)
		return false;
	*items = grown;
	*capacity = wanted;
	return true;
}

/* -- walking -- */

/* Under the lock. */
static int add_directory(struct warm *warm, const struct pointer *directory)
{
	if (pointer_is_none(directory))
		return 0;
	if (!grow((void **)&warm->directories, warm->directory_count, &warm->directory_capacity,
	          sizeof *warm->directories))
		return -ERR_NO_MEMORY;
	warm->directories[warm->directory_count++] = *directory;
	pthread_cond_signal(&warm->changed);
	return 0;
}

/* Under the lock. */
static int add_file(struct warm *warm, const struct content *content, bool missing)
{
	struct files *files = &warm->files;
	if (!warm->counted) {
		warm->files_seen++;
		warm->bytes_seen += content->size;
		warm->disk_bytes_seen +=
		        (content->size + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
		warm->missing_bytes += missing ? content->size : 0;
	}
	/* What is here already is opened, too: so it counts as used, and stays. */
	if (warm->counted && !missing)
		return 0;
	if (files->count == FILES_KEPT_MAX) {
		warm->more = true;
		return 0;
	}
	if (!grow((void **)&files->items, files->count, &files->capacity, sizeof *files->items))
		return -ERR_NO_MEMORY;
	files->items[files->count++] = *content;
	return 0;
}

struct batch {
	struct pointer directories[BATCH_FILES];
	struct content files[BATCH_FILES];
	bool missing[BATCH_FILES];
	size_t directory_count, file_count;
};

static int hand_over(struct warm *warm, struct batch *batch)
{
	int error = 0;
	pthread_mutex_lock(&warm->lock);
	for (size_t i = 0; !error && i < batch->directory_count; i++)
		error = add_directory(warm, &batch->directories[i]);
	for (size_t i = 0; !error && i < batch->file_count; i++)
		error = add_file(warm, &batch->files[i], batch->missing[i]);
	pthread_mutex_unlock(&warm->lock);
	batch->directory_count = batch->file_count = 0;
	return error;
}

static int walk_directory(struct warm *warm, const struct pointer *root, struct batch *batch,
                          struct message *message)
{
	struct lake *lake = warm->command->lake;
	struct tree_iterator *iterator = NULL;
	const struct tree_entry *entry;
	int error = tree_iterate(lake->odb, root, NULL, 0, &iterator, message);
	while (!error && !warm->stop) {
		error = tree_next(iterator, &entry, message);
		if (error)
			break;
		const struct content *content = &entry->content;
		if (S_ISDIR(entry->attributes.mode)) {
			batch->directories[batch->directory_count++] = content->pointer;
		} else if (S_ISREG(entry->attributes.mode) && content->kind != CONTENT_EMPTY) {
			batch->missing[batch->file_count] = !cache_has(lake->cache, content);
			batch->files[batch->file_count++] = *content;
		}
		if (batch->directory_count == BATCH_FILES || batch->file_count == BATCH_FILES)
			error = hand_over(warm, batch);
	}
	tree_iterator_free(iterator);
	if (error && error != -ERR_NOT_FOUND)
		return error;
	return hand_over(warm, batch);
}

/* Under the lock; waits for directories while others may find some. */
static bool take_directory(struct warm *warm, struct pointer *ret_directory)
{
	while (!warm->stop && !warm->directory_count && warm->walking)
		pthread_cond_wait(&warm->changed, &warm->lock);
	if (warm->stop || !warm->directory_count)
		return false;
	*ret_directory = warm->directories[--warm->directory_count];
	warm->walking++;
	return true;
}

static void walk(struct warm *warm)
{
	CLEANUP(free_pointer) struct batch *batch = calloc(1, sizeof *batch);
	struct message message = {{0}};
	struct pointer directory;
	if (!batch) {
		give_up(warm, -ERR_NO_MEMORY, &message);
		return;
	}
	pthread_mutex_lock(&warm->lock);
	while (take_directory(warm, &directory)) {
		pthread_mutex_unlock(&warm->lock);
		int error = walk_directory(warm, &directory, batch, &message);
		if (error)
			give_up(warm, error, &message);
		pthread_mutex_lock(&warm->lock);
		warm->walking--;
		pthread_cond_broadcast(&warm->changed);
	}
	pthread_mutex_unlock(&warm->lock);
}

/* -- fetching -- */

static int by_place(const void *a, const void *b)
{
	const struct place *left = &((const struct content *)a)->pointer.place;
	const struct place *right = &((const struct content *)b)->pointer.place;
	int order = memcmp(left->pack, right->pack, PACK_ID_BYTES);
	return order ? order : (left->offset > right->offset) - (left->offset < right->offset);
}

struct fetching {
	struct warm *warm;
	uint64_t told; /* bytes of this file */
};

static int note_progress(void *context, const char *what, uint64_t done, uint64_t total,
                         const char *unit)
{
	struct fetching *fetching = context;
	if (done > fetching->told) {
		fetching->warm->done_bytes += done - fetching->told;
		fetching->told = done;
	}
	return fetching->warm->stop;
}

static int fetch_file(struct warm *warm, const struct content *content, struct message *message)
{
	struct fetching fetching = {.warm = warm};
	struct progress progress = {.report = note_progress, .context = &fetching};
	struct cache *cache = warm->command->lake->cache;
	struct blob *blob = NULL;
	bool missing = !cache_has(cache, content);
	int error = cache_get(cache, content, &blob, message);
	if (!error)
		error = blob_complete_now(blob, &progress, message);
	blob_unref(blob);
	if (error || !missing)
		return error;
	warm->done_bytes += content->size - fetching.told;
	warm->fetched_bytes += content->size;
	return 0;
}

static uint64_t missing_in(const struct warm *warm, const struct content *contents, size_t count)
{
	uint64_t bytes = 0;
	for (size_t i = 0; i < count; i++)
		if ((i == 0 || !content_equal(&contents[i], &contents[i - 1])) &&
		    !cache_has(warm->command->lake->cache, &contents[i]))
			bytes += contents[i].size;
	return bytes;
}

static bool take_slice(struct warm *warm, size_t *ret_start, size_t *ret_end)
{
	uint64_t bytes = 0;
	pthread_mutex_lock(&warm->lock);
	size_t start = warm->next, end = start;
	while (end < warm->files.count && end - start < SLICE_FILES_MAX && bytes < SLICE_BYTES_MAX)
		bytes += warm->files.items[end++].size;
	warm->next = end;
	pthread_mutex_unlock(&warm->lock);
	*ret_start = start;
	*ret_end = end;
	return end > start;
}

static void fetch(struct warm *warm)
{
	struct message message = {{0}};
	size_t start, end;
	while (!warm->stop && take_slice(warm, &start, &end)) {
		const struct content *slice = &warm->files.items[start];
		uint64_t missing = missing_in(warm, slice, end - start);
		int many =
		        cache_fetch_many(warm->command->lake->cache, slice, end - start, &message);
		if (many)
			give_up(warm, many, &message);
		uint64_t left = missing_in(warm, slice, end - start);
		if (left < missing) { /* what was evicted meanwhile is not subtracted */
			warm->fetched_bytes += missing - left;
			warm->done_bytes += missing - left;
		}
		for (size_t i = start; !warm->stop && i < end; i++) {
			const struct content *content = &warm->files.items[i];
			if (i > 0 && content_equal(content, content - 1))
				continue; /* the same content, so the same place, once more */
			int error = fetch_file(warm, content, &message);
			if (error)
				give_up(warm, error, &message);
		}
	}
}

/* -- several threads, and progress meanwhile -- */

struct crew {
	struct warm *warm;
	void (*work)(struct warm *warm);
};

static void *crew_thread(void *argument)
{
	struct crew *crew = argument;
	struct warm *warm = crew->warm;
	crew->work(warm);
	pthread_mutex_lock(&warm->lock);
	warm->running--;
	pthread_cond_broadcast(&warm->changed);
	pthread_mutex_unlock(&warm->lock);
	return NULL;
}

static void report(struct warm *warm, bool fetching)
{
	const struct progress *progress = &warm->command->output->progress;
	uint64_t files = warm->files_seen, missing = warm->missing_bytes;
	pthread_mutex_unlock(&warm->lock);
	int cancelled =
	        fetching ? progress_report(progress, "Fetching", warm->done_bytes, missing, "bytes")
	                 : progress_report(progress, "Looking", files, 0, "files");
	if (cancelled)
		give_up(warm, -ERR_INTERRUPTED, &(struct message){"cancelled"});
	pthread_mutex_lock(&warm->lock);
}

static void wait_for_threads(struct warm *warm, bool fetching)
{
	int64_t due_ms = 0;
	pthread_mutex_lock(&warm->lock);
	while (warm->running) {
		struct timespec until;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += REPORT_EVERY_MS * 1000000L;
		until.tv_sec += until.tv_nsec / 1000000000L;
		until.tv_nsec %= 1000000000L;
		pthread_cond_timedwait(&warm->changed, &warm->lock, &until);
		int64_t now_ms = clock_monotonic_ms();
		if (now_ms < due_ms)
			continue;
		due_ms = now_ms + REPORT_EVERY_MS;
		report(warm, fetching);
	}
	pthread_mutex_unlock(&warm->lock);
}

static int run(struct warm *warm, void (*work)(struct warm *warm))
{
	pthread_t threads[THREADS_MAX];
	struct crew crew = {warm, work};
	unsigned count = 0;
	warm->running = warm->threads;
	while (count < warm->threads && thread_start(&threads[count], crew_thread, &crew) == 0)
		count++;
	pthread_mutex_lock(&warm->lock);
	warm->running -= warm->threads - count;
	pthread_mutex_unlock(&warm->lock);
	if (!count)
		return fail(warm->command->message, -ERR_NO_MEMORY, "cannot start threads");
	wait_for_threads(warm, work == fetch);
	for (unsigned i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	if (!warm->error)
		return 0;
	return fail(warm->command->message, warm->error, "%s",
	            warm->message.text[0] ? warm->message.text : error_text(warm->error));
}

/* -- the command -- */

static int add_place(struct warm *warm, const cJSON *place)
{
	struct command named = *warm->command;
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	CLEANUP(free_pointer) struct tree_entry *entry = NULL;
	char path[PATH_BYTES_MAX];
	const char *given;
	named.request = place;
	int error = command_commit(&named, "revision", &commit);
	if (!error)
		error = argument_string(&named, "path", &given);
	if (!error)
		error = path_normalise(given ? given : "", path, named.message);
	if (!error && !path[0])
		return add_directory(warm, &commit->tree);
	if (!error)
		error = tree_find(named.lake->odb, &commit->tree, path, &entry, named.message);
	if (error == -ERR_NOT_FOUND || error == -ERR_NOT_DIRECTORY)
		return fail(named.message, -ERR_NOT_FOUND,
		            "no '%s' in that revision; only what is committed can be fetched",
		            path);
	if (error)
		return error;
	if (S_ISDIR(entry->attributes.mode))
		return add_directory(warm, &entry->content.pointer);
	if (!S_ISREG(entry->attributes.mode) || entry->content.kind == CONTENT_EMPTY)
		return 0;
	return add_file(warm, &entry->content, !cache_has(named.lake->cache, &entry->content));
}

static int add_places(struct warm *warm)
{
	const cJSON *places = cJSON_GetObjectItemCaseSensitive(warm->command->request, "places");
	const cJSON *place;
	int error = 0;
	if (!cJSON_IsArray(places) || !cJSON_GetArraySize(places))
		return fail(warm->command->message, -ERR_INVALID, "what is to be fetched?");
	warm->files.count = warm->next = 0;
	warm->more = false;
	cJSON_ArrayForEach (place, places) {
		if (!error)
			error = add_place(warm, place);
	}
	return error;
}

static int check_room(const struct warm *warm)
{
	const struct lake *lake = warm->command->lake;
	uint64_t room = warm->missing_bytes ? cache_capacity(lake->cache) : UINT64_MAX;
	if (warm->disk_bytes_seen <= room)
		return 0;
	double mib = 1 << 20;
	const char *what = lake->config.cache_bytes_max
	                           ? "raise cache_bytes_max in lake.json and mount anew"
	                           : "a tenth of its disk stays free: make room there";
	return fail(warm->command->message, -ERR_NO_SPACE,
	            "%.1f MiB do not fit in the cache %s/cache: %.1f MiB are missing; %s",
	            (double)warm->disk_bytes_seen / mib, lake->directory,
	            (double)(warm->disk_bytes_seen - room) / mib, what);
}

static int run_warm(struct warm *warm)
{
	/* Each round fetches FILES_KEPT_MAX files or is the last. */
	for (uint64_t round = 0;; round++) {
		int error = add_places(warm);
		if (!error)
			error = run(warm, walk);
		if (!error && !warm->counted)
			error = check_room(warm);
		warm->counted = true;
		if (error)
			return error;
		if (!warm->files.count)
			return 0;
		qsort(warm->files.items, warm->files.count, sizeof *warm->files.items, by_place);
		error = run(warm, fetch);
		if (error || !warm->more || round > warm->files_seen / FILES_KEPT_MAX)
			return error;
	}
}

int command_warm(struct command *command)
{
	double threads = argument_number(command, "threads", THREADS_DEFAULT);
	if (!(threads >= 1 && threads <= THREADS_MAX))
		return fail(command->message, -ERR_INVALID, "threads: 1 to %d", THREADS_MAX);
	CLEANUP(warm_release)
	struct warm warm = {.command = command, .threads = (unsigned)threads};
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_mutex_init(&warm.lock, NULL);
	pthread_cond_init(&warm.changed, &attributes);
	pthread_condattr_destroy(&attributes);
	int error = run_warm(&warm);
	cJSON_AddNumberToObject(command->reply, "files", (double)warm.files_seen);
	cJSON_AddNumberToObject(command->reply, "bytes", (double)warm.bytes_seen);
	cJSON_AddNumberToObject(command->reply, "fetched_bytes", (double)warm.fetched_bytes);
	return error;
}
