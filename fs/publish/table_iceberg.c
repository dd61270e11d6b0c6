/*
 * table_iceberg.c — hides how an Iceberg table's metadata files are named.
 *
 * Each state of the table is one metadata file that names its snapshots; a catalog, or
 * version-hint.text, says which one counts. Their names may differ on two branches that began from
 * the same state, so path by path nothing collides and one branch's snapshots would be lost without
 * a word. Whose state is to count only people can say.
 *
 * Source: Iceberg Table Spec, "File System Tables", "Metastore Tables".
 */
#include "fs/publish/tables.h"

#include <stdio.h>

static void diff_release(struct tree_diff **diff)
{
	tree_diff_free(*diff);
}

/* "v3.metadata.json", "00003-<uuid>.metadata.json", either with ".gz" before ".metadata" or at the
 * end. */
static bool is_metadata(const char *name, uint64_t *ret_version)
{
	bool hadoop = name[0] == 'v';
	const char *digits = name + hadoop;
	size_t count = strspn(digits, "0123456789");
	if (count == 0 || count > 18 || (!hadoop && digits[count] != '-'))
		return false;
	const char *rest = strstr(digits + count, ".metadata.json");
	if (!rest ||
	    (strcmp(rest, ".metadata.json") != 0 && strcmp(rest, ".metadata.json.gz") != 0))
		return false;
	if (hadoop && rest != digits + count && strncmp(digits + count, ".gz.", 4) != 0)
		return false;
	*ret_version = strtoull(digits, NULL, 10);
	return true;
}

bool iceberg_is_state(const char *name)
{
	uint64_t version;
	return is_metadata(name, &version);
}

/* States of the table that a side wrote, or took back: those newer than what it kept. */
struct states {
	uint64_t lowest, highest, removed_highest;
	unsigned written, removed;
};

/* The other side has the very same file. */
static int is_shared(struct odb *odb, const struct pointer *other, const struct tree_entry *entry,
                     bool *ret_shared, struct message *message)
{
	CLEANUP(free_pointer) struct tree_entry *found = NULL;
	struct message ignored;
	int error = pointer_is_none(other) ? -ERR_NOT_FOUND
	                                   : tree_lookup(odb, other, entry->name,
	                                                 entry->name_length, &found, &ignored);
	if (error && error != -ERR_NOT_FOUND)
		return fail(message, error, "%s", ignored.text);
	*ret_shared = found && content_equal(&found->content, &entry->content);
	return 0;
}

static int read_states(struct odb *odb, const struct pointer *base, const struct pointer *side,
                       const struct pointer *other, struct directory_result *result,
                       struct states *ret_states, struct message *message)
{
	CLEANUP(diff_release) struct tree_diff *diff = NULL;
	struct states states = {.lowest = UINT64_MAX};
	int error = tree_diff_new(odb, base, side, &diff);
	while (!error) {
		struct tree_change change;
		uint64_t version;
		error = tree_diff_next(diff, &change, message);
		const char *name = error ? "" : (change.after ? change.after : change.before)->name;
		if (error || !is_metadata(name, &version) ||
		    (change.before && change.after &&
		     tree_entry_same_but_time(change.before, change.after)))
			continue;
		bool shared = false;
		if (change.after)
			error = is_shared(odb, other, change.after, &shared, message);
		if (error || shared)
			continue;
		if (change.after) {
			states.written++;
			states.lowest = version < states.lowest ? version : states.lowest;
			states.highest = version > states.highest ? version : states.highest;
			error = table_conflict_name(result, name);
		} else {
			states.removed++;
			if (version > states.removed_highest)
				states.removed_highest = version;
		}
	}
	*ret_states = states;
	return error == -ERR_NOT_FOUND ? 0 : error;
}

static void drop_names(struct directory_result *result)
{
	for (size_t i = 0; i < result->name_count; i++)
		free(result->names[i]);
	free(result->names);
	result->names = NULL;
	result->name_count = 0;
}

/* Names of both sides: what both wrote alike is there twice. */
static void drop_doubles(struct directory_result *result)
{
	size_t kept = 0;
	for (size_t i = 0; i < result->name_count; i++) {
		bool seen = false;
		for (size_t j = 0; j < kept && !seen; j++)
			seen = strcmp(result->names[i], result->names[j]) == 0;
		if (seen)
			free(result->names[i]);
		else
			result->names[kept++] = result->names[i];
	}
	result->name_count = kept;
}

int merge_iceberg_metadata(void *context, struct odb *odb, struct packer *packer,
                           const struct directory_merge *directory,
                           struct directory_result *ret_result, struct message *message)
{
	struct states source, target, apart;
	int error = read_states(odb, &directory->base, &directory->source, &directory->target,
	                        ret_result, &source, message);
	if (!error)
		error = read_states(odb, &directory->base, &directory->target, &directory->source,
		                    ret_result, &target, message);
	CLEANUP(free_pointer) char *table = table_name(directory->path);
	if (error || !table)
		return error ? error : fail(message, -ERR_NO_MEMORY, "out of memory while merging");
	drop_doubles(ret_result);
	if (source.written && target.written) {
		uint64_t version = target.lowest > source.lowest ? target.lowest : source.lowest;
		return table_conflict(directory, "iceberg", version, ret_result,
		                      "both sides wrote version %llu of table %s, and each "
		                      "knows only its own snapshots",
		                      (unsigned long long)version, table);
	}
	bool source_back = source.removed && !source.written;
	bool target_back = target.removed && !target.written;
	if ((source_back && target.written) || (target_back && source.written)) {
		apart = source_back ? source : target;
		return table_conflict(directory, "iceberg", apart.removed_highest, ret_result,
		                      "%s took version %llu of table %s back, and %s wrote version "
		                      "%llu",
		                      source_back ? "source" : "target",
		                      (unsigned long long)apart.removed_highest, table,
		                      source_back ? "target" : "source",
		                      (unsigned long long)(source_back ? target : source).lowest);
	}
	drop_names(ret_result);
	ret_result->verdict = DIRECTORY_NOT_MINE;
	return 0;
}
