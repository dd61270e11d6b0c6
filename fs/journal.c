/*
 * journal.c — hides the bytes of a segment: how a batch is framed and checked, which damage is
 * the expected end of an interrupted write and which is not.
 */
#include "fs/journal.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

static const uint8_t magic[8] = {'L', 'a', 'k', 'e', 'J', 'r', 'n', 'l'};
#define JOURNAL_VERSION 1
#define SUM_BYTES 8
#define BATCH_LENGTH_AT 8
#define BATCH_COUNT_AT 12
#define BATCH_SYNCED_AT 16
#define CHANGE_HEADER 7 /* u8 table and kind, u16 key length, u32 value length */
#define CHANGE_DELETE 0x80
#define SEGMENT_BYTES_MAX ((size_t)1 << 30)
/* Bytes hashed at most in looking for whole batches behind a bad one. */
#define SEARCH_BYTES_MAX ((uint64_t)64 << 20)
#define ALLOCATE_BYTES (256u << 10)
#define KEPT_BACK_BYTES (64u << 10) /* some hundred removals */

static void name_of(uint64_t sequence, char ret_name[JOURNAL_NAME_MAX])
{
	snprintf(ret_name, JOURNAL_NAME_MAX, "%016" PRIx64, sequence);
}

/* -- batches -- */

static void put_change(struct state_batch *batch, uint8_t kind, const void *key, size_t key_length,
                       const void *value, size_t value_length)
{
	struct buffer *bytes = &batch->bytes;
	if (key_length == 0 || key_length > KV_KEY_MAX || value_length > UINT32_MAX) {
		bytes->failed = -ERR_TOO_LARGE;
		return;
	}
	if (bytes->length == 0) {
		static const uint8_t room[JOURNAL_BATCH_HEADER];
		bytes->limit = JOURNAL_BATCH_MAX;
		buffer_append(bytes, room, sizeof(room));
	}
	buffer_u8(bytes, kind);
	buffer_u16(bytes, (uint16_t)key_length);
	buffer_u32(bytes, (uint32_t)value_length);
	buffer_append(bytes, key, key_length);
	buffer_append(bytes, value, value_length);
	batch->count++;
}

void state_put(struct state_batch *batch, enum state_table table, const void *key,
               size_t key_length, const void *value, size_t value_length)
{
	assert(table < STATE_TABLE_COUNT);
	put_change(batch, (uint8_t)table, key, key_length, value, value_length);
}

void state_delete(struct state_batch *batch, enum state_table table, const void *key,
                  size_t key_length)
{
	assert(table < STATE_TABLE_COUNT);
	put_change(batch, (uint8_t)table | CHANGE_DELETE, key, key_length, NULL, 0);
}

void state_batch_release(struct state_batch *batch)
{
	buffer_release(&batch->bytes);
	*batch = (struct state_batch){0};
}

static void checksum(uint64_t sequence, const uint8_t *batch, size_t length,
                     uint8_t ret_sum[SUM_BYTES])
{
	struct id hash;
	sha256_of(batch + SUM_BYTES, length - SUM_BYTES, &hash);
	/* Mixed with the sequence number, so that a batch is valid in its own segment only. */
	store_u64(ret_sum, load_u64(hash.bytes) ^ sequence);
}

void journal_seal(uint64_t sequence, uint64_t synced, uint32_t count, uint8_t *batch, size_t length)
{
	store_u32(batch + BATCH_LENGTH_AT, (uint32_t)(length - JOURNAL_BATCH_HEADER));
	store_u32(batch + BATCH_COUNT_AT, count);
	store_u64(batch + BATCH_SYNCED_AT, synced);
	checksum(sequence, batch, length, batch);
}

int journal_each_change(const void *body, size_t length, uint32_t count,
                        journal_change_fn *callback, void *context)
{
	struct reader reader = reader_of(body, length);
	for (uint32_t i = 0; i < count; i++) {
		uint8_t kind = read_u8(&reader);
		size_t key_length = read_u16(&reader);
		size_t value_length = read_u32(&reader);
		struct journal_change change = {
		        .table = kind & ~CHANGE_DELETE,
		        .key = {read_bytes(&reader, key_length), key_length},
		        .value = {read_bytes(&reader, value_length), value_length},
		};
		if (reader.failed || change.table >= STATE_TABLE_COUNT || key_length == 0 ||
		    key_length > KV_KEY_MAX)
			return -ERR_CORRUPT;
		if (kind & CHANGE_DELETE) {
			if (value_length != 0)
				return -ERR_CORRUPT;
			change.value.data = NULL;
		}
		int r = callback ? callback(context, &change) : 0;
		if (r != 0)
			return r;
	}
	return reader_finish(&reader);
}

/* -- reading a segment -- */

struct segment {
	const uint8_t *bytes;
	size_t length;
	uint64_t sequence;
	struct id boot;
};

/* 0; -ERR_NOT_FOUND: made, but never written (no batch can be in it); -ERR_VERSION, -ERR_CORRUPT.
 */
static int read_header(struct segment *segment)
{
	if (segment->length < JOURNAL_HEADER)
		return -ERR_NOT_FOUND;
	struct reader reader = reader_of(segment->bytes, JOURNAL_HEADER);
	const uint8_t *found = read_bytes(&reader, sizeof(magic));
	uint32_t version = read_u32(&reader);
	read_u32(&reader); /* reserved */
	segment->sequence = read_u64(&reader);
	read_id(&reader, &segment->boot);
	struct id hash;
	sha256_of(segment->bytes, JOURNAL_HEADER - SUM_BYTES, &hash);
	if (memcmp(found, magic, sizeof(magic)) == 0 && version > JOURNAL_VERSION)
		return -ERR_VERSION;
	if (memcmp(found, magic, sizeof(magic)) != 0 || version != JOURNAL_VERSION ||
	    memcmp(hash.bytes, segment->bytes + JOURNAL_HEADER - SUM_BYTES, SUM_BYTES) != 0)
		return segment->length == JOURNAL_HEADER ? -ERR_NOT_FOUND : -ERR_CORRUPT;
	return 0;
}

struct batch_at {
	uint32_t count;
	uint64_t synced;
	const uint8_t *body;
	size_t body_length;
	size_t end;
};

/* What is plain from a batch's header alone; the checksum is not looked at. */
static bool plausible_batch(const struct segment *segment, size_t at, struct batch_at *ret_batch)
{
	if (segment->length - at < JOURNAL_BATCH_HEADER)
		return false;
	const uint8_t *batch = segment->bytes + at;
	*ret_batch = (struct batch_at){
	        .count = load_u32(batch + BATCH_COUNT_AT),
	        .synced = load_u64(batch + BATCH_SYNCED_AT),
	        .body = batch + JOURNAL_BATCH_HEADER,
	        .body_length = load_u32(batch + BATCH_LENGTH_AT),
	};
	ret_batch->end = at + JOURNAL_BATCH_HEADER + ret_batch->body_length;
	return ret_batch->count > 0 && ret_batch->synced <= at &&
	       ret_batch->synced >= JOURNAL_HEADER &&
	       ret_batch->body_length <= segment->length - at - JOURNAL_BATCH_HEADER &&
	       ret_batch->body_length / CHANGE_HEADER >= ret_batch->count;
}

static bool valid_batch(const struct segment *segment, size_t at, struct batch_at *ret_batch)
{
	if (!plausible_batch(segment, at, ret_batch))
		return false;
	uint8_t sum[SUM_BYTES];
	checksum(segment->sequence, segment->bytes + at, ret_batch->end - at, sum);
	return memcmp(sum, segment->bytes + at, SUM_BYTES) == 0;
}

/*
 * There is no valid batch at `at`: is it the end that an interrupted write leaves? Without a whole
 * batch behind it, yes. With one, the write was finished: in a boot that still lasts that is
 * damage; after another boot it is what a power cut may do to bytes nobody had synced. The batch
 * behind says how far they had. *ret_more: there was a whole batch behind.
 */
static int judge_tail(const struct segment *segment, size_t at, bool *ret_more)
{
	*ret_more = false;
	struct id boot;
	if (boot_id(&boot) != 0)
		boot = id_zero;
	uint64_t hashed = 0;
	for (size_t next = at + 1; next < segment->length; next++) {
		struct batch_at batch;
		if (!plausible_batch(segment, next, &batch))
			continue;
		hashed += batch.end - next;
		if (hashed > SEARCH_BYTES_MAX)
			return -ERR_CORRUPT;
		if (!valid_batch(segment, next, &batch))
			continue;
		if (batch.synced > at || id_equal(&boot, &segment->boot))
			return -ERR_CORRUPT;
		*ret_more = true;
		next = batch.end - 1; /* go on: a later one may say that more was synced */
	}
	return 0;
}

/* Where the batches end. *ret_end is set on failure too: the place of the damage. */
static int each_batch(const struct segment *segment, journal_change_fn *callback, void *context,
                      size_t *ret_end, uint64_t *ret_batches, bool *ret_more)
{
	*ret_end = JOURNAL_HEADER;
	*ret_batches = 0;
	struct batch_at batch;
	while (valid_batch(segment, *ret_end, &batch)) {
		int r = journal_each_change(batch.body, batch.body_length, batch.count, callback,
		                            context);
		if (r != 0)
			return r;
		*ret_end = batch.end;
		(*ret_batches)++;
	}
	return judge_tail(segment, *ret_end, ret_more);
}

int journal_check(const void *bytes, size_t length, uint64_t *ret_batches)
{
	struct segment segment = {.bytes = bytes, .length = length};
	uint64_t batches = 0;
	int r = read_header(&segment);
	if (r == 0) {
		size_t end;
		bool more;
		r = each_batch(&segment, NULL, NULL, &end, &batches, &more);
	}
	if (r == -ERR_NOT_FOUND)
		r = 0;
	if (r == 0)
		*ret_batches = batches;
	return r;
}

/* -- files -- */

int journal_create(int directory_fd, uint64_t sequence, struct journal *ret_journal,
                   struct message *message)
{
	char name[JOURNAL_NAME_MAX];
	name_of(sequence, name);
	CLEANUP(close_descriptor)
	int fd = openat(directory_fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail(message, error_system(errno), "cannot make the journal segment %s: %s",
		            name, strerror(errno));
	CLEANUP(buffer_release) struct buffer header = {0};
	struct id boot, hash;
	if (boot_id(&boot) != 0)
		random_bytes(&boot, sizeof(boot)); /* unknown: as if each segment had its own */
	buffer_append(&header, magic, sizeof(magic));
	buffer_u32(&header, JOURNAL_VERSION);
	buffer_u32(&header, 0);
	buffer_u64(&header, sequence);
	buffer_id(&header, &boot);
	int r = buffer_check(&header);
	if (r == 0) {
		sha256_of(header.data, header.length, &hash);
		buffer_append(&header, hash.bytes, SUM_BYTES);
		r = buffer_check(&header);
	}
	if (r == 0) {
		assert(header.length == JOURNAL_HEADER);
		r = write_full(fd, header.data, header.length, 0);
	}
	if (r == 0 && (fsync(fd) != 0 || fsync(directory_fd) != 0))
		r = error_system(errno);
	if (r != 0) {
		unlinkat(directory_fd, name, 0);
		return fail(message, r, "cannot write the journal segment %s: %s", name,
		            error_text(r));
	}
	*ret_journal = (struct journal){.directory_fd = directory_fd,
	                                .fd = fd,
	                                .sequence = sequence,
	                                .end = JOURNAL_HEADER,
	                                .synced = JOURNAL_HEADER};
	fd = -1;
	return 0;
}

void journal_close(struct journal *journal)
{
	if (journal->fd >= 0)
		close(journal->fd);
	journal->fd = -1;
}

int journal_remove(int directory_fd, uint64_t sequence)
{
	char name[JOURNAL_NAME_MAX];
	name_of(sequence, name);
	return unlinkat(directory_fd, name, 0) == 0 || errno == ENOENT ? 0 : error_system(errno);
}

/* That blocks are there up to `end`, and some beyond for removals; those may use the latter. */
static int reserve(struct journal *journal, uint64_t end, bool makes_room)
{
	uint64_t wanted = end + KEPT_BACK_BYTES;
	for (uint64_t ahead = ALLOCATE_BYTES; wanted > journal->allocated; ahead = 0) {
		if (fallocate(journal->fd, FALLOC_FL_KEEP_SIZE, (off_t)journal->end,
		              (off_t)(wanted + ahead - journal->end)) == 0)
			journal->allocated = wanted + ahead;
		else if (errno != ENOSPC && errno != EDQUOT)
			return 0; /* a file system without it: writing will tell */
		else if (ahead == 0)
			return makes_room ? 0 : -ERR_NO_SPACE;
	}
	return 0;
}

int journal_append(struct journal *journal, struct state_batch *batch)
{
	int r = buffer_check(&batch->bytes);
	if (r != 0)
		return r;
	if (batch->bytes.length + journal->end > SEGMENT_BYTES_MAX)
		return -ERR_NO_SPACE;
	r = reserve(journal, journal->end + batch->bytes.length, batch->makes_room);
	if (r != 0)
		return r;
	journal_seal(journal->sequence, journal->synced, batch->count, batch->bytes.data,
	             batch->bytes.length);
	r = write_full(journal->fd, batch->bytes.data, batch->bytes.length, (off_t)journal->end);
	if (r != 0) {
		journal_cut(journal, journal->end);
		return r;
	}
	journal->end += batch->bytes.length;
	return 0;
}

void journal_cut(struct journal *journal, uint64_t end)
{
	journal->end = end;
	journal->allocated = 0; /* what is cut off goes */
	/* Should this fail, the rest of the file is a torn batch until the next one covers it. */
	if (ftruncate(journal->fd, (off_t)end) != 0)
		return;
}

/* Keep what is about to be cut off, for a person to look at. */
static int keep_copy(int directory_fd, const char *name, const struct segment *segment)
{
	char path[JOURNAL_NAME_MAX + 16];
	snprintf(path, sizeof(path), "%s.damaged", name);
	return write_file_durably(directory_fd, path, segment->bytes, segment->length);
}

static int corrupt_segment(const char *name, size_t at, struct message *message)
{
	return fail(
	        message, -ERR_CORRUPT,
	        "the journal of uncommitted changes is damaged: segment journal/%s at byte %zu. "
	        "Nothing was changed; restore the file from a backup, or move it away to go on "
	        "without the uncommitted changes in it",
	        name, at);
}

int journal_replay(int directory_fd, uint64_t sequence, bool used, journal_change_fn *callback,
                   void *context, struct journal *ret_journal, uint64_t *ret_batches,
                   struct message *message)
{
	char name[JOURNAL_NAME_MAX];
	name_of(sequence, name);
	CLEANUP(buffer_release) struct buffer bytes = {.limit = SEGMENT_BYTES_MAX};
	int r = read_file(directory_fd, name, SEGMENT_BYTES_MAX, &bytes);
	if (r != 0)
		return fail(message, r, "cannot read the journal segment %s: %s", name,
		            error_text(r));
	struct segment segment = {.bytes = bytes.data, .length = bytes.length};
	*ret_batches = 0;
	r = read_header(&segment);
	if (r == -ERR_NOT_FOUND && used)
		return corrupt_segment(name, 0, message);
	if (r == -ERR_NOT_FOUND)
		return journal_create(directory_fd, sequence, ret_journal, message);
	if (r == -ERR_VERSION)
		return fail(message, r, "journal segment %s was written by a newer version", name);
	if (r == 0 && segment.sequence != sequence)
		r = -ERR_CORRUPT;
	if (r != 0)
		return corrupt_segment(name, 0, message);
	size_t end;
	bool more;
	r = each_batch(&segment, callback, context, &end, ret_batches, &more);
	if (r == -ERR_CORRUPT)
		return corrupt_segment(name, end, message);
	if (r == 0 && more)
		r = keep_copy(directory_fd, name, &segment);
	if (r != 0)
		return fail(message, r, "cannot replay the journal segment %s: %s", name,
		            error_text(r));
	int fd = openat(directory_fd, name, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return fail(message, error_system(errno), "cannot open the journal segment %s: %s",
		            name, strerror(errno));
	*ret_journal = (struct journal){.directory_fd = directory_fd,
	                                .fd = fd,
	                                .sequence = sequence,
	                                .end = end,
	                                .synced = JOURNAL_HEADER};
	if (end < bytes.length)
		journal_cut(ret_journal, end);
	return 0;
}

static int by_number(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

int journal_list(int directory_fd, uint64_t **ret_sequences, size_t *ret_count)
{
	int fd = openat(directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
	if (!directory) {
		int error = error_system(errno);
		close_descriptor(&fd);
		return error;
	}
	CLEANUP(buffer_release) struct buffer numbers = {0};
	struct dirent *entry;
	while ((entry = readdir(directory)) != NULL) {
		uint8_t sequence[8];
		if (strlen(entry->d_name) == 16 && hex_decode(entry->d_name, 16, sequence) == 0)
			buffer_u64(&numbers, load_u64_be(sequence));
	}
	closedir(directory);
	int r = buffer_check(&numbers);
	if (r != 0)
		return r;
	*ret_count = numbers.length / 8;
	for (size_t i = 0; i < *ret_count; i++) { /* from the encoded form to numbers, in place */
		uint64_t number = load_u64(numbers.data + i * 8);
		memcpy(numbers.data + i * 8, &number, 8);
	}
	if (*ret_count > 0)
		qsort(numbers.data, *ret_count, 8, by_number);
	*ret_sequences = (uint64_t *)(void *)numbers.data;
	numbers = (struct buffer){0};
	return 0;
}
