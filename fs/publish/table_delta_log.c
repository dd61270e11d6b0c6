/*
 * table_delta_log.c — hides how the files of a Delta log are named, and what about a directory of
 * them is a log that can be understood.
 */
#include "fs/publish/table_delta.h"

#include <stdio.h>
#include <sys/stat.h>

#define NAMES_MAX 100000 /* looked at in one directory: versions, checkpoints, checksums */
#define OTHERS_MAX 10000
#define VERSION_DIGITS 20

/* -- names -- */

enum name_kind {
	NAME_ENTRY,   /* a version */
	NAME_DERIVED, /* says again what entries say: checkpoints, checksums; or a temporary file */
	NAME_CATALOG,
	NAME_OTHER,
};

static bool has_prefix(const char *name, const char *prefix)
{
	return strncmp(name, prefix, strlen(prefix)) == 0;
}

static bool has_suffix(const char *name, const char *suffix)
{
	size_t length = strlen(name), wanted = strlen(suffix);
	return length >= wanted && strcmp(name + length - wanted, suffix) == 0;
}

static bool parse_version(const char *name, uint64_t *ret_version)
{
	uint64_t version = 0;
	for (unsigned i = 0; i < VERSION_DIGITS; i++) {
		if (name[i] < '0' || name[i] > '9' || version > INT64_MAX / 10)
			return false;
		version = version * 10 + (uint64_t)(name[i] - '0');
	}
	*ret_version = version;
	return version < INT64_MAX;
}

/* *ret_version: of an entry, or what something is derived from; else UINT64_MAX. */
static enum name_kind kind_of(const char *name, uint64_t *ret_version)
{
	uint64_t version, last;
	*ret_version = UINT64_MAX;
	if (parse_version(name, &version)) {
		const char *rest = name + VERSION_DIGITS;
		*ret_version = version;
		if (strcmp(rest, ".json") == 0)
			return NAME_ENTRY;
		if (strcmp(rest, ".crc") == 0 || has_prefix(rest, ".checkpoint."))
			return NAME_DERIVED;
		if (rest[0] == '.' && parse_version(rest + 1, &last) &&
		    strcmp(rest + 1 + VERSION_DIGITS, ".compacted.json") == 0) {
			*ret_version = last;
			return NAME_DERIVED;
		}
		*ret_version = UINT64_MAX;
		return NAME_OTHER;
	}
	if (strcmp(name, "_staged_commits") == 0 || strcmp(name, "_commits") == 0)
		return NAME_CATALOG;
	if (strcmp(name, "_last_checkpoint") == 0 || strcmp(name, "_sidecars") == 0 ||
	    (has_prefix(name, "_commit_") && has_suffix(name, ".tmp")) ||
	    (name[0] == '.' && (has_suffix(name, ".crc") || has_suffix(name, ".tmp"))))
		return NAME_DERIVED;
	return NAME_OTHER;
}

void delta_entry_name(uint64_t version, char ret_name[DELTA_NAME_MAX])
{
	snprintf(ret_name, DELTA_NAME_MAX, "%0*llu.json", VERSION_DIGITS,
	         (unsigned long long)version);
}

/* -- versions -- */

static void iterator_release(struct tree_iterator **iterator)
{
	tree_iterator_free(*iterator);
}

void delta_versions_release(struct delta_versions *versions)
{
	for (size_t i = 0; i < versions->count; i++)
		free(versions->items[i].entry);
	free(versions->items);
	*versions = (struct delta_versions){0};
}

/* Names that begin with a number >= `first`, which come before all others that matter. */
static int iterate_from(struct odb *odb, const struct pointer *root, uint64_t first,
                        struct tree_iterator **ret_iterator, struct message *message)
{
	char after[DELTA_NAME_MAX];
	int length =
	        snprintf(after, sizeof(after), "%0*llu", VERSION_DIGITS, (unsigned long long)first);
	return tree_iterate(odb, root, after, (size_t)length, ret_iterator, message);
}

static int add_version(struct delta_versions *versions, uint64_t number, uint64_t expected,
                       const struct tree_entry *entry, struct message *message)
{
	if (number != expected)
		return fail(message, -ERR_INVALID, "version %llu is missing",
		            (unsigned long long)expected);
	if (!S_ISREG(entry->attributes.mode))
		return fail(message, -ERR_INVALID, "version %llu is no file",
		            (unsigned long long)number);
	if (versions->count == DELTA_VERSIONS_MAX)
		return fail(message, -ERR_INVALID, "there are more than %u versions to compare",
		            DELTA_VERSIONS_MAX);
	if (versions->count == versions->capacity) {
		size_t capacity = versions->capacity ? versions->capacity * 2 : 16;
		struct delta_version *grown =
		        reallocarray(versions->items, capacity, sizeof(*grown));
		if (!grown)
			return fail(message, -ERR_NO_MEMORY, "out of memory while merging");
		versions->items = grown;
		versions->capacity = capacity;
	}
	struct tree_entry *copy = tree_entry_copy(entry);
	if (!copy)
		return fail(message, -ERR_NO_MEMORY, "out of memory while merging");
	versions->items[versions->count++] =
	        (struct delta_version){.number = number, .entry = copy};
	return 0;
}

static int read_versions(struct tree_iterator *iterator, uint64_t first,
                         struct delta_versions *versions, struct message *message)
{
	uint64_t derived = 0;
	bool any_derived = false;
	for (unsigned seen = 0;; seen++) {
		const struct tree_entry *entry;
		uint64_t number;
		int error = tree_next(iterator, &entry, message);
		if (error && error != -ERR_NOT_FOUND)
			return error;
		if (error || entry->name[0] > '9')
			break;
		if (seen == NAMES_MAX)
			return fail(message, -ERR_INVALID, "it has more than %u files", NAMES_MAX);
		enum name_kind kind = kind_of(entry->name, &number);
		if (kind == NAME_ENTRY)
			error = add_version(versions, number, first + versions->count, entry,
			                    message);
		if (kind == NAME_DERIVED && number != UINT64_MAX) {
			derived = any_derived && derived > number ? derived : number;
			any_derived = true;
		}
		if (error)
			return error;
	}
	if (any_derived && derived >= first + versions->count)
		return fail(message, -ERR_INVALID, "version %llu is missing",
		            (unsigned long long)derived);
	return 0;
}

int delta_versions_read(struct odb *odb, const struct pointer *root, uint64_t first,
                        struct delta_versions *ret_versions, struct message *message)
{
	CLEANUP(iterator_release) struct tree_iterator *iterator = NULL;
	CLEANUP(delta_versions_release) struct delta_versions versions = {0};
	int error = 0;
	if (!pointer_is_none(root)) {
		error = iterate_from(odb, root, first, &iterator, message);
		if (!error)
			error = read_versions(iterator, first, &versions, message);
	}
	if (error)
		return error;
	*ret_versions = versions;
	versions = (struct delta_versions){0};
	return 0;
}

/* -- changes -- */

static void diff_release(struct tree_diff **diff)
{
	tree_diff_free(*diff);
}

void delta_changes_release(struct delta_changes *changes)
{
	for (size_t i = 0; i < changes->other_count; i++) {
		free(changes->others[i].name);
		free(changes->others[i].entry);
	}
	free(changes->others);
	*changes = (struct delta_changes){0};
}

static int add_other(struct delta_changes *changes, const char *name,
                     const struct tree_entry *after, struct message *message)
{
	if (changes->other_count == OTHERS_MAX)
		return fail(message, -ERR_INVALID, "it has too many files of other names");
	if (changes->other_count == changes->other_capacity) {
		size_t capacity = changes->other_capacity ? changes->other_capacity * 2 : 16;
		struct delta_other *grown = reallocarray(changes->others, capacity, sizeof(*grown));
		if (!grown)
			return fail(message, -ERR_NO_MEMORY, "out of memory while merging");
		changes->others = grown;
		changes->other_capacity = capacity;
	}
	struct delta_other other = {strdup(name), after ? tree_entry_copy(after) : NULL};
	changes->others[changes->other_count++] = other;
	if (!other.name || (after && !other.entry))
		return fail(message, -ERR_NO_MEMORY, "out of memory while merging");
	return 0;
}

/* Removed versions, the last that follow one another. */
struct run {
	uint64_t first, last;
	bool any;
};

static int note_change(struct delta_changes *changes, struct run *run,
                       const struct tree_change *change, struct message *message)
{
	const struct tree_entry *before = change->before, *after = change->after;
	const char *name = before ? before->name : after->name;
	uint64_t number;
	if (before && after && tree_entry_same_but_time(before, after))
		return 0;
	switch (kind_of(name, &number)) {
	case NAME_ENTRY:
		if (after && number < changes->first)
			changes->first = number;
		if (!after)
			*run = (struct run){run->any && run->last + 1 == number ? run->first
			                                                        : number,
			                    number, true};
		return 0;
	case NAME_CATALOG:
		changes->catalog = true;
		return 0;
	case NAME_DERIVED:
		return 0;
	default:
		return add_other(changes, name, after, message);
	}
}

/* Whether some version >= `first` is there. */
static int any_version(struct odb *odb, const struct pointer *root, uint64_t first, bool *ret_any,
                       struct message *message)
{
	CLEANUP(iterator_release) struct tree_iterator *iterator = NULL;
	*ret_any = false;
	if (pointer_is_none(root))
		return 0;
	int error = iterate_from(odb, root, first, &iterator, message);
	while (!error && !*ret_any) {
		const struct tree_entry *entry;
		uint64_t number;
		error = tree_next(iterator, &entry, message);
		if (error == -ERR_NOT_FOUND || (!error && entry->name[0] > '9'))
			return 0;
		*ret_any = !error && kind_of(entry->name, &number) == NAME_ENTRY;
	}
	return error;
}

int delta_changes_read(struct odb *odb, const struct pointer *base, const struct pointer *side,
                       struct delta_changes *ret_changes, struct message *message)
{
	CLEANUP(diff_release) struct tree_diff *diff = NULL;
	CLEANUP(delta_changes_release) struct delta_changes changes = {.first = UINT64_MAX};
	struct run run = {0};
	int error = tree_diff_new(odb, base, side, &diff);
	while (!error) {
		struct tree_change change;
		error = tree_diff_next(diff, &change, message);
		if (!error)
			error = note_change(&changes, &run, &change, message);
	}
	bool newer = true;
	if (error == -ERR_NOT_FOUND)
		error = run.any ? any_version(odb, side, run.last, &newer, message) : 0;
	if (error)
		return error;
	if (!newer && run.first < changes.first)
		changes.first = run.first;
	*ret_changes = changes;
	changes = (struct delta_changes){0};
	return 0;
}
