/*
 * commit.c — hides the encoding of commits.
 *
 * One canonical form: every length and order is checked on decoding, so that a commit has one id.
 * What may be wrong with a commit is decided in one place (check_*), for writing and for reading.
 */
#include "refs/commit.h"
#include "refs/commit_copies.h"

#include <stdio.h>
#include <sys/stat.h>

#define COMMIT_VERSION 1
#define PLACES_VERSION 1
#define PLACES_VERSION_COPY 2 /* where it was copied from comes last */
#define MODE_MAX 0xffffu

static bool author_is_valid(const uint8_t *author, size_t length)
{
	if (length == 0 || length > COMMIT_AUTHOR_MAX)
		return false;
	for (size_t i = 0; i < length; i++) {
		if (author[i] < 0x20 || author[i] == 0x7f)
			return false;
	}
	return true;
}

static bool meta_key_is_valid(const uint8_t *key, size_t length)
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	                              "0123456789_.-";

	if (length == 0 || length > META_KEY_MAX)
		return false;
	for (size_t i = 0; i < length; i++) {
		if (!memchr(allowed, key[i], sizeof(allowed) - 1))
			return false;
	}
	return true;
}

static bool mode_is_valid(uint32_t mode)
{
	return mode <= MODE_MAX && S_ISDIR(mode);
}

/* -- encoding -- */

static void encode_pointer_place(struct buffer *places, const struct pointer *pointer)
{
	if (!pointer_is_none(pointer))
		place_encode(places, &pointer->place);
}

int commit_encode(const struct commit *commit, struct buffer *logical, struct buffer *places)
{
	const char *text = commit->message ? commit->message : "";

	buffer_u8(logical, COMMIT_VERSION);
	buffer_id(logical, &commit->tree.id);
	buffer_u32(logical, commit->root.mode);
	buffer_u32(logical, commit->root.uid);
	buffer_u32(logical, commit->root.gid);
	buffer_u64(logical, (uint64_t)commit->root.mtime_ns);
	buffer_u8(logical, (uint8_t)commit->parent_count);
	for (size_t i = 0; i < commit->parent_count; i++)
		buffer_id(logical, &commit->parents[i].id);
	buffer_u64(logical, commit->generation);
	buffer_u64(logical, (uint64_t)commit->time_ms);
	buffer_string(logical, commit->author, strlen(commit->author));
	buffer_string(logical, text, strlen(text));
	buffer_u16(logical, (uint16_t)commit->meta_count);
	for (size_t i = 0; i < commit->meta_count; i++) {
		buffer_string(logical, commit->meta[i].key, strlen(commit->meta[i].key));
		buffer_string(logical, commit->meta[i].value, strlen(commit->meta[i].value));
	}

	bool copy = commit->copied_from.raw > 0;
	buffer_u8(places, copy ? PLACES_VERSION_COPY : PLACES_VERSION);
	encode_pointer_place(places, &commit->tree);
	for (size_t i = 0; i < commit->parent_count; i++)
		encode_pointer_place(places, &commit->parents[i]);
	if (copy)
		place_encode(places, &commit->copied_from);

	int rc = buffer_check(logical);
	return rc < 0 ? rc : buffer_check(places);
}

/* -- decoding -- */

/* What lies between the fixed fields and the end, borrowed from the record. */
struct raw_commit {
	struct commit fixed; /* its pointers are unset */
	struct reader parents;
	const uint8_t *author, *message;
	size_t author_length, message_length;
	struct reader meta;
};

static int parse_fixed(struct reader *reader, struct raw_commit *raw)
{
	struct commit *fixed = &raw->fixed;
	uint8_t version = read_u8(reader);

	if (!reader->failed && version != COMMIT_VERSION)
		return version > COMMIT_VERSION ? -ERR_VERSION : -ERR_CORRUPT;
	read_id(reader, &fixed->tree.id);
	fixed->root.mode = read_u32(reader);
	fixed->root.uid = read_u32(reader);
	fixed->root.gid = read_u32(reader);
	fixed->root.mtime_ns = (int64_t)read_u64(reader);
	fixed->parent_count = read_u8(reader);
	if (fixed->parent_count > COMMIT_PARENTS_MAX)
		return -ERR_CORRUPT;
	raw->parents = *reader;
	read_bytes(reader, fixed->parent_count * sizeof(struct id));
	fixed->generation = read_u64(reader);
	fixed->time_ms = (int64_t)read_u64(reader);
	raw->author = read_string(reader, COMMIT_AUTHOR_MAX, &raw->author_length);
	raw->message = read_string(reader, COMMIT_MESSAGE_MAX, &raw->message_length);
	fixed->meta_count = read_u16(reader);
	raw->meta = *reader;
	if (reader->failed || fixed->meta_count > COMMIT_META_MAX)
		return -ERR_CORRUPT;
	if (!mode_is_valid(fixed->root.mode) || fixed->generation == UINT64_MAX)
		return -ERR_CORRUPT;
	if (fixed->parent_count == 0 ? fixed->generation != 1 : fixed->generation < 2)
		return -ERR_CORRUPT;
	if (!author_is_valid(raw->author, raw->author_length) ||
	    memchr(raw->message, 0, raw->message_length))
		return -ERR_CORRUPT;
	return 0;
}

static int decode_parents(struct reader *ids, struct commit *commit)
{
	for (size_t i = 0; i < commit->parent_count; i++) {
		read_id(ids, &commit->parents[i].id);
		if (id_is_zero(&commit->parents[i].id))
			return -ERR_CORRUPT;
		for (size_t k = 0; k < i; k++) {
			if (id_equal(&commit->parents[k].id, &commit->parents[i].id))
				return -ERR_CORRUPT;
		}
	}
	return 0;
}

static int decode_places(const void *places, size_t length, struct commit *commit)
{
	struct reader reader = reader_of(places, length);
	uint8_t version = read_u8(&reader);

	if (!reader.failed && version != PLACES_VERSION && version != PLACES_VERSION_COPY)
		return version > PLACES_VERSION_COPY ? -ERR_VERSION : -ERR_CORRUPT;
	if (!pointer_is_none(&commit->tree))
		place_decode(&reader, &commit->tree.place);
	for (size_t i = 0; i < commit->parent_count; i++)
		place_decode(&reader, &commit->parents[i].place);
	if (version == PLACES_VERSION_COPY) {
		place_decode(&reader, &commit->copied_from);
		if (commit->copied_from.raw == 0)
			return -ERR_CORRUPT;
	}
	return reader_finish(&reader);
}

static const char *keep_string(char **at, const uint8_t *bytes, size_t length)
{
	char *kept = *at;

	memcpy(kept, bytes, length);
	kept[length] = '\0';
	*at += length + 1;
	return kept;
}

static int decode_meta(struct reader *reader, struct commit *commit, char **strings)
{
	for (size_t i = 0; i < commit->meta_count; i++) {
		size_t key_length, value_length;
		const uint8_t *key = read_string(reader, META_KEY_MAX, &key_length);
		const uint8_t *value = read_string(reader, META_VALUE_MAX, &value_length);

		if (reader->failed || !meta_key_is_valid(key, key_length) ||
		    memchr(value, 0, value_length))
			return -ERR_CORRUPT;
		commit->meta[i].key = keep_string(strings, key, key_length);
		commit->meta[i].value = keep_string(strings, value, value_length);
		if (i > 0 && strcmp(commit->meta[i - 1].key, commit->meta[i].key) >= 0)
			return -ERR_CORRUPT;
	}
	return reader_finish(reader);
}

int commit_decode(const void *logical, size_t logical_length, const void *places,
                  size_t places_length, struct commit **ret_commit)
{
	struct reader reader = reader_of(logical, logical_length);
	struct raw_commit raw = {0};
	int rc = parse_fixed(&reader, &raw);

	if (rc < 0)
		return rc;
	/* Every string lies in the record once and gains a NUL. */
	size_t parents_bytes = raw.fixed.parent_count * sizeof(struct pointer);
	size_t meta_bytes = raw.fixed.meta_count * sizeof(struct meta_pair);
	size_t strings_bytes = logical_length + 2 + 2 * raw.fixed.meta_count;
	CLEANUP(free_pointer)
	struct commit *commit =
	        calloc(1, sizeof(*commit) + parents_bytes + meta_bytes + strings_bytes);
	if (!commit)
		return -ERR_NO_MEMORY;
	*commit = raw.fixed;
	commit->parents = (struct pointer *)(commit + 1);
	commit->meta = (struct meta_pair *)((char *)commit->parents + parents_bytes);
	char *strings = (char *)commit->meta + meta_bytes;
	commit->author = keep_string(&strings, raw.author, raw.author_length);
	commit->message = keep_string(&strings, raw.message, raw.message_length);

	rc = decode_parents(&raw.parents, commit);
	if (rc == 0)
		rc = decode_meta(&raw.meta, commit, &strings);
	if (rc == 0)
		rc = decode_places(places, places_length, commit);
	if (rc < 0)
		return rc;
	*ret_commit = steal(&commit);
	return 0;
}

int commit_read(struct odb *odb, const struct pointer *pointer, struct commit **ret_commit,
                struct message *message)
{
	struct record *record = NULL;
	char hex[ID_HEX + 1];
	int rc = odb_read_record(odb, RECORD_COMMIT, pointer, &record, message);

	id_to_hex(&pointer->id, hex);
	if (rc < 0)
		return fail_context(message, rc, "commit %.12s", hex);
	rc = commit_decode(record->logical, record->logical_length, record->places,
	                   record->places_length, ret_commit);
	record_unref(record);
	if (rc == -ERR_VERSION)
		return fail(message, rc,
		            "commit %.12s was written by a newer version; update this program",
		            hex);
	if (rc < 0)
		return fail(message, rc, "commit %.12s: %s", hex, error_text(rc));
	(*ret_commit)->self = *pointer;
	return 0;
}

/* -- writing -- */

static int check_meta(const struct commit *commit, struct message *message)
{
	if (commit->meta_count > COMMIT_META_MAX)
		return fail(message, -ERR_TOO_LARGE, "a commit can have %d meta entries, not %zu",
		            COMMIT_META_MAX, commit->meta_count);
	for (size_t i = 0; i < commit->meta_count; i++) {
		const struct meta_pair *pair = &commit->meta[i];

		if (!pair->key || !pair->value)
			return fail(message, -ERR_INVALID, "a meta entry lacks its key or value");
		if (!meta_key_is_valid((const uint8_t *)pair->key, strlen(pair->key)))
			return fail(message, -ERR_INVALID,
			            "meta key '%.*s': a key is 1 to %d of A-Z a-z 0-9 _ . -",
			            META_KEY_MAX, pair->key, META_KEY_MAX);
		if (strlen(pair->value) > META_VALUE_MAX)
			return fail(message, -ERR_TOO_LARGE,
			            "meta value of '%s' has %zu bytes; the limit is %d", pair->key,
			            strlen(pair->value), META_VALUE_MAX);
	}
	return 0;
}

static int check_parents(const struct commit *commit, struct message *message)
{
	if (commit->parent_count > COMMIT_PARENTS_MAX)
		return fail(message, -ERR_TOO_LARGE, "a commit can have %d parents, not %zu",
		            COMMIT_PARENTS_MAX, commit->parent_count);
	for (size_t i = 0; i < commit->parent_count; i++) {
		if (pointer_is_none(&commit->parents[i]))
			return fail(message, -ERR_INVALID, "parent %zu of the commit is none",
			            i + 1);
		for (size_t k = 0; k < i; k++) {
			if (id_equal(&commit->parents[k].id, &commit->parents[i].id))
				return fail(message, -ERR_INVALID,
				            "parents %zu and %zu of the commit are the same", k + 1,
				            i + 1);
		}
	}
	return 0;
}

static int check_commit(const struct commit *commit, struct message *message)
{
	const char *author = commit->author ? commit->author : "";
	size_t message_length = commit->message ? strlen(commit->message) : 0;
	int rc = check_parents(commit, message);

	if (rc < 0)
		return rc;
	if (strlen(author) > COMMIT_AUTHOR_MAX)
		return fail(message, -ERR_TOO_LARGE, "the author has %zu bytes; the limit is %d",
		            strlen(author), COMMIT_AUTHOR_MAX);
	if (!author_is_valid((const uint8_t *)author, strlen(author)))
		return fail(message, -ERR_INVALID, "the author is %s",
		            author[0] ? "not one line of text" : "empty");
	if (message_length > COMMIT_MESSAGE_MAX)
		return fail(message, -ERR_TOO_LARGE,
		            "the commit message has %zu bytes; the limit is %u", message_length,
		            COMMIT_MESSAGE_MAX);
	if (!mode_is_valid(commit->root.mode))
		return fail(message, -ERR_INVALID, "the root's mode %o is not a directory's",
		            commit->root.mode);
	return check_meta(commit, message);
}

static int compute_generation(struct odb *odb, struct commit *commit, struct message *message)
{
	uint64_t largest = 0;

	for (size_t i = 0; i < commit->parent_count; i++) {
		CLEANUP(free_pointer) struct commit *parent = NULL;
		int rc = commit_read(odb, &commit->parents[i], &parent, message);

		if (rc < 0)
			return rc;
		if (parent->generation > largest)
			largest = parent->generation;
	}
	if (largest >= UINT64_MAX - 1)
		return fail(message, -ERR_CORRUPT, "a parent's generation is out of range");
	commit->generation = largest + 1;
	return 0;
}

static int compare_meta(const void *a, const void *b)
{
	return strcmp(((const struct meta_pair *)a)->key, ((const struct meta_pair *)b)->key);
}

int commit_write(struct odb *odb, struct packer *packer, const struct commit *commit,
                 struct pointer *ret_pointer, struct message *message)
{
	struct commit canonical = *commit;
	struct pointer parents[COMMIT_PARENTS_MAX];
	struct meta_pair meta[COMMIT_META_MAX];
	int rc = check_commit(commit, message);

	if (rc < 0)
		return rc;
	if (commit->meta_count > 0)
		memcpy(meta, commit->meta, commit->meta_count * sizeof(meta[0]));
	qsort(meta, commit->meta_count, sizeof(meta[0]), compare_meta);
	for (size_t i = 1; i < commit->meta_count; i++) {
		if (compare_meta(&meta[i - 1], &meta[i]) == 0)
			return fail(message, -ERR_INVALID, "meta key '%s' is given twice",
			            meta[i].key);
	}
	canonical.meta = meta;
	canonical.copied_from = (struct place){0};
	rc = compute_generation(odb, &canonical, message);
	if (rc < 0)
		return rc;
	if (commit->parent_count > 0)
		memcpy(parents, commit->parents, commit->parent_count * sizeof(parents[0]));
	canonical.parents = parents;
	rc = copies_carry(odb, packer, parents, commit->parent_count, message);
	if (rc < 0)
		return rc;

	CLEANUP(buffer_release) struct buffer logical = {.limit = RECORD_RAW_MAX};
	CLEANUP(buffer_release) struct buffer places = {.limit = RECORD_RAW_MAX};
	rc = commit_encode(&canonical, &logical, &places);
	if (rc < 0)
		return fail(message, rc, "cannot encode the commit: %s", error_text(rc));
	return packer_add_record(packer, RECORD_COMMIT, logical.data, logical.length, places.data,
	                         places.length, ret_pointer, message);
}
