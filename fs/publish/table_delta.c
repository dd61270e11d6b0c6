/*
 * table_delta.c — hides how two branches' logs of one Delta table become one.
 *
 * A log is a sequence of entries, one file each, named by its version; an entry says what it adds
 * to the table and removes from it, as the entry before left it. Which entries two logs share is
 * told by their bytes, wherever they stand: a merge gives entries new numbers, and the branch they
 * came from keeps the old ones.
 *
 * One side's log is the result, whole; the other side's own entries may follow it, renumbered, if
 * all they need of the table is its schema: if they only append files. The target's log comes
 * first, so that its versions keep their numbers for whoever reads it. What else the source wrote
 * into the directory (checkpoints, checksums) tells of its own numbers and is left out; readers do
 * without.
 *
 * Sources: Delta Transaction Log Protocol, "Delta Log Entries", "Checkpoints", "Action
 * Reconciliation", "Row Tracking", "In-Commit Timestamps"; the conflict checks of delta-rs.
 */
#include "fs/publish/table_delta.h"
#include "fs/publish/tables.h"

#include <stdarg.h>
#include <stdio.h>

#define LOG_BYTES_MAX ((uint64_t)256 << 20) /* of one side's own entries */
#define BATCH_BYTES_MAX ((uint64_t)4 << 20) /* loaded at once, or a single larger entry */
#define NOWHERE UINT64_MAX

struct log_side {
	const char *name; /* "source" */
	const struct pointer *root;
	struct delta_changes changes;
	struct delta_versions log; /* from the first version that either side changed */
	/* Its own entries, which the other side does not have: */
	size_t own_count;
	struct delta_writes writes;
	struct delta_entry not_blind; /* the first that is not; else .not_blind is NULL */
	bool changes_table, restores;
	char summary[200]; /* "WRITE (Append) x3, DELETE" */
};

struct merger {
	struct odb *odb;
	struct packer *packer;
	const struct directory_merge *directory;
	struct directory_result *result;
	struct message *message;
	char *table;
	struct delta_versions base;
	struct log_side source, target;
	uint64_t first; /* version from which the logs are compared */
	uint64_t fork;  /* the first in which the sides differ; NOWHERE: not known */
};

static void side_release(struct log_side *side)
{
	delta_changes_release(&side->changes);
	delta_versions_release(&side->log);
	delta_writes_release(&side->writes);
}

static void merger_release(struct merger *merger)
{
	delta_versions_release(&merger->base);
	side_release(&merger->source);
	side_release(&merger->target);
	free(merger->table);
}

static int no_memory(struct merger *merger)
{
	return fail(merger->message, -ERR_NO_MEMORY, "out of memory while merging");
}

/* -- saying no -- */

/* The names under which either side wrote entries of its own. */
static int name_own(struct merger *merger)
{
	const struct delta_versions *source = &merger->source.log, *target = &merger->target.log;
	int error = 0;
	for (size_t i = 0; !error && (i < source->count || i < target->count); i++) {
		char name[DELTA_NAME_MAX];
		if ((i >= source->count || source->items[i].in_other) &&
		    (i >= target->count || target->items[i].in_other))
			continue;
		delta_entry_name(merger->first + i, name);
		error = table_conflict_name(merger->result, name);
	}
	return error;
}

/* The first version that both sides wrote, as far as names tell; NOWHERE: one side wrote none. */
static uint64_t latest_first(const struct merger *merger)
{
	uint64_t source = merger->source.changes.first, target = merger->target.changes.first;
	return source > target ? source : target;
}

/* A conflict of the whole table. Returns 0: that is an answer. */
__attribute__((format(printf, 2, 3))) static int refuse(struct merger *merger, const char *reason,
                                                        ...)
{
	CLEANUP(free_pointer) char *why = NULL;
	char did[2 * sizeof(merger->source.summary) + 32] = "";
	const char *source = merger->source.summary, *target = merger->target.summary;
	va_list arguments;
	va_start(arguments, reason);
	int length = vasprintf(&why, reason, arguments), error;
	va_end(arguments);
	if (length < 0) {
		why = NULL;
		return no_memory(merger);
	}
	if (*source && *target)
		snprintf(did, sizeof(did), " (source: %s; target: %s)", source, target);
	uint64_t version = merger->fork;
	if (version == NOWHERE)
		version = latest_first(merger);
	bool both = merger->fork == NOWHERE ? version != NOWHERE
	                                    : merger->source.own_count && merger->target.own_count;
	if (!both)
		error = table_conflict(merger->directory, "delta", version == NOWHERE ? 0 : version,
		                       merger->result,
		                       "both branches changed the log of table %s: %s",
		                       merger->table, why);
	else
		error = table_conflict(merger->directory, "delta", version, merger->result,
		                       "both sides wrote version %llu of table %s%s: %s",
		                       (unsigned long long)version, merger->table, did, why);
	if (!error)
		error = name_own(merger);
	return error ? no_memory(merger) : 0;
}

/* A log that is no log: `error` says so, and merger->message why. Anything else is an error. */
static int refuse_or_fail(struct merger *merger, const char *side, int error,
                          const struct message *why)
{
	if (error != -ERR_INVALID)
		return fail(merger->message, error, "reading the log of table %s: %s",
		            merger->table, why->text);
	return refuse(merger, "%s's log is not understood: %s", side, why->text);
}

/* -- comparing the logs -- */

static int by_content(const void *a, const void *b)
{
	const struct content *left = &(*(struct delta_version *const *)a)->entry->content;
	const struct content *right = &(*(struct delta_version *const *)b)->entry->content;
	int order = memcmp(left->pointer.id.bytes, right->pointer.id.bytes, ID_BYTES);
	return order ? order : (left->size > right->size) - (left->size < right->size);
}

/* Which entries of `log` are in `other`, too, wherever. */
static int find_shared(const struct delta_versions *log, const struct delta_versions *other,
                       bool base)
{
	CLEANUP(free_pointer)
	const struct delta_version **sorted = calloc(other->count + 1, sizeof(*sorted));
	if (!sorted)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < other->count; i++)
		sorted[i] = &other->items[i];
	qsort(sorted, other->count, sizeof(*sorted), by_content);
	for (size_t i = 0; i < log->count; i++) {
		struct delta_version *version = &log->items[i];
		bool found = bsearch(&version, sorted, other->count, sizeof(*sorted), by_content);
		if (base)
			version->in_base = found;
		else
			version->in_other = found;
	}
	return 0;
}

static int compare_logs(struct merger *merger)
{
	struct delta_versions *source = &merger->source.log, *target = &merger->target.log;
	int error = find_shared(source, target, false);
	if (!error)
		error = find_shared(target, source, false);
	if (!error)
		error = find_shared(source, &merger->base, true);
	if (!error)
		error = find_shared(target, &merger->base, true);
	if (error)
		return no_memory(merger);
	for (size_t i = 0; i < source->count; i++)
		merger->source.own_count += !source->items[i].in_other;
	for (size_t i = 0; i < target->count; i++)
		merger->target.own_count += !target->items[i].in_other;
	size_t same = 0;
	while (same < source->count && same < target->count &&
	       content_equal(&source->items[same].entry->content,
	                     &target->items[same].entry->content))
		same++;
	merger->fork = merger->first + same;
	return 0;
}

static bool same_log(const struct delta_versions *a, const struct delta_versions *b)
{
	if (a->count != b->count)
		return false;
	for (size_t i = 0; i < a->count; i++)
		if (!content_equal(&a->items[i].entry->content, &b->items[i].entry->content))
			return false;
	return true;
}

/* The base's entries are the first of this log. */
static bool continues_base(const struct merger *merger, const struct delta_versions *log)
{
	if (log->count < merger->base.count)
		return false;
	struct delta_versions beginning = {.items = log->items, .count = merger->base.count};
	return same_log(&beginning, &merger->base);
}

/* Something of the base that `side` has and the other has no longer; NOWHERE: nothing. */
static uint64_t taken_back(const struct log_side *side)
{
	for (size_t i = 0; i < side->log.count; i++)
		if (side->log.items[i].in_base && !side->log.items[i].in_other)
			return side->log.items[i].number;
	return NOWHERE;
}

/* -- what the sides did -- */

/* "WRITE (Append) x3, DELETE": what follows one another alike is counted. */
struct summary {
	char *text;
	char last[DELTA_OPERATION_MAX];
	unsigned times;
	bool full;
};

static void summary_flush(struct summary *summary)
{
	size_t used = strlen(summary->text), room = sizeof(((struct log_side *)0)->summary) - used;
	char times[16] = "";
	if (summary->times == 0 || summary->full)
		return;
	if (summary->times > 1)
		snprintf(times, sizeof(times), " x%u", summary->times);
	summary->full = room < DELTA_OPERATION_MAX + 32;
	if (summary->full)
		snprintf(summary->text + used, room, ", and more");
	else
		snprintf(summary->text + used, room, "%s%s%s", used ? ", " : "", summary->last,
		         times);
}

static void summary_add(struct summary *summary, const char *operation)
{
	if (summary->times > 0 && strcmp(summary->last, operation) == 0) {
		summary->times++;
		return;
	}
	summary_flush(summary);
	snprintf(summary->last, sizeof(summary->last), "%s", operation);
	summary->times = 1;
}

/* Bytes of `count` entries, one after another. What lies together in a pack is one request. */
static int load(struct merger *merger, const struct delta_version *const *wanted, size_t count,
                char *bytes, struct message *why)
{
	CLEANUP(free_pointer) struct pointer *pointers = calloc(count, sizeof(*pointers));
	CLEANUP(free_pointer) uint8_t **out = calloc(count, sizeof(*out));
	size_t chunks = 0;
	if (!pointers || !out)
		return fail(why, -ERR_NO_MEMORY, "out of memory");
	for (size_t i = 0; i < count; i++) {
		const struct content *content = &wanted[i]->entry->content;
		if (content->kind == CONTENT_CHUNK && content->size == content->pointer.place.raw) {
			pointers[chunks] = content->pointer;
			out[chunks++] = (uint8_t *)bytes;
		} else {
			int error =
			        content_read(merger->odb, content, 0, content->size, bytes, why);
			if (error)
				return error;
		}
		bytes += content->size;
	}
	return odb_read_chunks(merger->odb, pointers, chunks, out, why);
}

/* How many entries are loaded at once: at least one. */
static int batch_of(const struct delta_version *const *wanted, size_t count, size_t *ret_count,
                    uint64_t *ret_bytes, struct message *why)
{
	uint64_t bytes = 0;
	size_t taken = 0;
	for (; taken < count; taken++) {
		uint64_t size = wanted[taken]->entry->content.size;
		if (size > DELTA_ENTRY_BYTES_MAX)
			return fail(why, -ERR_INVALID, "version %llu is too large",
			            (unsigned long long)wanted[taken]->number);
		if (taken > 0 && bytes + size > BATCH_BYTES_MAX)
			break;
		bytes += size;
	}
	*ret_count = taken;
	*ret_bytes = bytes;
	return 0;
}

typedef void entry_fn(void *context, const struct delta_entry *entry);

static int visit_entries(struct merger *merger, const struct delta_version *const *wanted,
                         size_t count, struct delta_writes *writes, entry_fn *visit, void *context,
                         struct message *why)
{
	uint64_t total = 0, length = 0;
	for (size_t done = 0, batch = 0; done < count; done += batch) {
		int error = batch_of(wanted + done, count - done, &batch, &length, why);
		if (error)
			return error;
		total += length;
		if (total > LOG_BYTES_MAX)
			return fail(why, -ERR_INVALID, "its new versions are too large");
		CLEANUP(free_pointer) char *bytes = malloc(length + 1);
		if (!bytes)
			return fail(why, -ERR_NO_MEMORY, "out of memory");
		error = load(merger, wanted + done, batch, bytes, why);
		const char *at = bytes;
		for (size_t i = done; !error && i < done + batch; i++) {
			struct message detail = {0};
			struct delta_entry entry;
			uint64_t size = wanted[i]->entry->content.size;
			error = delta_entry_parse(at, size, &entry, writes, &detail);
			if (error)
				return fail(why, error, "version %llu: %s",
				            (unsigned long long)wanted[i]->number, detail.text);
			visit(context, &entry);
			at += size;
		}
		if (error)
			return error;
	}
	return 0;
}

struct own {
	struct log_side *side;
	struct summary summary;
};

static void note_own(void *context, const struct delta_entry *entry)
{
	struct own *own = context;
	own->side->changes_table |= entry->changes_table;
	own->side->restores |= entry->restores;
	if (entry->not_blind && !own->side->not_blind.not_blind)
		own->side->not_blind = *entry;
	summary_add(&own->summary, entry->operation);
}

static int read_own(struct merger *merger, struct log_side *side, struct message *why)
{
	struct own own = {.side = side, .summary = {.text = side->summary}};
	size_t count = 0;
	CLEANUP(free_pointer)
	const struct delta_version **wanted = calloc(side->log.count + 1, sizeof(*wanted));
	if (!wanted)
		return fail(why, -ERR_NO_MEMORY, "out of memory");
	for (size_t i = 0; i < side->log.count; i++)
		if (!side->log.items[i].in_other)
			wanted[count++] = &side->log.items[i];
	int error = visit_entries(merger, wanted, count, &side->writes, note_own, &own, why);
	summary_flush(&own.summary);
	return error;
}

static void note_shared(void *context, const struct delta_entry *entry)
{
	*(bool *)context |= entry->changes_table;
}

/* The source's own entries were written before some that both have, or may have been, and are to
 * follow them now. *ret_reason: why they cannot; NULL: they can. */
static int check_shared(struct merger *merger, const char **ret_reason, struct message *why)
{
	CLEANUP(delta_writes_release) struct delta_writes writes = {0};
	const struct delta_versions *target = &merger->target.log;
	bool after = continues_base(merger, &merger->source.log), changes_table = false;
	size_t count = 0;
	CLEANUP(free_pointer)
	const struct delta_version **wanted = calloc(target->count + 1, sizeof(*wanted));
	if (!wanted)
		return fail(why, -ERR_NO_MEMORY, "out of memory");
	for (size_t i = merger->fork - merger->first; i < target->count; i++) {
		const struct delta_version *version = &target->items[i];
		if (version->in_other && !(version->in_base && after))
			wanted[count++] = version;
	}
	int error = visit_entries(merger, wanted, count, &writes, note_shared, &changes_table, why);
	if (error)
		return error;
	if (changes_table)
		*ret_reason =
		        "they do not agree on when its schema, properties or protocol changed";
	else if (string_list_common(&merger->source.writes.added, &writes.removed))
		*ret_reason = "they do not agree on when files were removed";
	else
		*ret_reason = NULL;
	return 0;
}

/* -- may the source's entries follow the target's? -- */

/* *ret_may; when not, the conflict is told. */
static int may_follow(struct merger *merger, bool *ret_may)
{
	struct log_side *source = &merger->source, *target = &merger->target;
	const struct delta_entry *first = &source->not_blind;
	const char *file;
	*ret_may = false;
	if (merger->fork == 0)
		return refuse(merger, "both created it");
	if (target->changes_table)
		return refuse(merger, "target changed its schema, properties or protocol");
	if (target->restores)
		return refuse(merger, "target restored an older version of it");
	if (first->not_blind && !target->not_blind.not_blind)
		return refuse(merger,
		              "source's %s %s, and did not see what target appended meanwhile",
		              first->operation, first->not_blind);
	if (first->not_blind)
		return refuse(merger, "source's %s %s, so it is no mere append", first->operation,
		              first->not_blind);
	if (string_list_common(&source->writes.applications, &target->writes.applications))
		return refuse(merger, "both record the progress of one application (txn)");
	file = string_list_common(&source->writes.added, &target->writes.added);
	if (!file)
		file = string_list_common(&source->writes.added, &target->writes.removed);
	if (file)
		return refuse(merger, "both name the file '%s'", file);
	*ret_may = true;
	return 0;
}

/* -- the merged directory -- */

struct edits {
	struct tree_edit *items;
	size_t count, next;
	char (*names)[DELTA_NAME_MAX]; /* of renumbered entries */
	struct tree_entry *entries;
};

static void edits_release(struct edits *edits)
{
	free(edits->items);
	free(edits->names);
	free(edits->entries);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct tree_edit *)a)->name, ((const struct tree_edit *)b)->name);
}

static int next_edit(void *context, struct tree_edit *ret_edit)
{
	struct edits *edits = context;
	if (edits->next == edits->count)
		return -ERR_NOT_FOUND;
	*ret_edit = edits->items[edits->next++];
	return 0;
}

/* The source's own entries, numbered on from the target's last. Their times go on from there, too:
 * readers that travel in time find versions by them. */
static void renumber(const struct merger *merger, struct edits *edits)
{
	const struct delta_versions *source = &merger->source.log, *target = &merger->target.log;
	uint64_t number = merger->first + target->count;
	int64_t time_ns =
	        target->count ? target->items[target->count - 1].entry->attributes.mtime_ns : 0;
	size_t made = 0;
	for (size_t i = 0; i < source->count; i++) {
		if (source->items[i].in_other)
			continue;
		struct tree_entry *entry = &edits->entries[made];
		*entry = *source->items[i].entry;
		if (made + target->count > 0 && entry->attributes.mtime_ns <= time_ns)
			entry->attributes.mtime_ns = time_ns + 1000000;
		time_ns = entry->attributes.mtime_ns;
		delta_entry_name(number++, edits->names[made]);
		edits->items[edits->count++] =
		        (struct tree_edit){edits->names[made], strlen(edits->names[made]), entry};
		made++;
	}
}

/* Names that are no business of the log: each side's changes to them are taken. *ret_name: one that
 * both changed differently. */
static void add_others(const struct log_side *winner, const struct log_side *loser,
                       struct edits *edits, const char **ret_name)
{
	size_t at = 0;
	for (size_t i = 0; i < loser->changes.other_count && !*ret_name; i++) {
		const struct delta_other *mine, *other = &loser->changes.others[i];
		while (at < winner->changes.other_count &&
		       strcmp(winner->changes.others[at].name, other->name) < 0)
			at++;
		mine = at < winner->changes.other_count ? &winner->changes.others[at] : NULL;
		if (!mine || strcmp(mine->name, other->name) != 0)
			edits->items[edits->count++] =
			        (struct tree_edit){other->name, strlen(other->name), other->entry};
		else if (mine->entry && other->entry
		                 ? !tree_entry_same_but_time(mine->entry, other->entry)
		                 : mine->entry != other->entry)
			*ret_name = other->name;
	}
}

/* `winner`'s log as it is, the other side's own entries after it if `follow`. */
static int build(struct merger *merger, const struct log_side *winner, bool follow)
{
	const struct log_side *loser =
	        winner == &merger->target ? &merger->source : &merger->target;
	size_t followers = follow ? loser->own_count : 0;
	CLEANUP(edits_release) struct edits edits = {0};
	const char *name = NULL;
	edits.items = calloc(followers + loser->changes.other_count + 1, sizeof(*edits.items));
	edits.names = calloc(followers + 1, sizeof(*edits.names));
	edits.entries = calloc(followers + 1, sizeof(*edits.entries));
	if (!edits.items || !edits.names || !edits.entries)
		return no_memory(merger);
	if (follow)
		renumber(merger, &edits);
	add_others(winner, loser, &edits, &name);
	if (name)
		return refuse(merger, "both changed '%s'", name);
	qsort(edits.items, edits.count, sizeof(*edits.items), by_name);
	int error = tree_apply(merger->odb, merger->packer, winner->root, next_edit, &edits,
	                       &merger->result->tree, merger->message);
	if (!error)
		merger->result->verdict = DIRECTORY_MERGED;
	return error;
}

/* -- all of it -- */

static int read_side(struct merger *merger, struct log_side *side, struct message *why)
{
	return delta_versions_read(merger->odb, side->root, merger->first, &side->log, why);
}

/* Both sides have entries that the other has not. */
static int merge_entries(struct merger *merger)
{
	struct message why = {0};
	const char *reason;
	bool may;
	int error = read_own(merger, &merger->source, &why);
	if (error)
		return refuse_or_fail(merger, "source", error, &why);
	error = read_own(merger, &merger->target, &why);
	if (error)
		return refuse_or_fail(merger, "target", error, &why);
	error = may_follow(merger, &may);
	if (error || !may)
		return error;
	error = check_shared(merger, &reason, &why);
	if (error)
		return refuse_or_fail(merger, "target", error, &why);
	return reason ? refuse(merger, "%s", reason) : build(merger, &merger->target, true);
}

static int merge_logs(struct merger *merger)
{
	struct log_side *source = &merger->source, *target = &merger->target;
	uint64_t version;
	if (same_log(&source->log, &target->log) || same_log(&source->log, &merger->base))
		return build(merger, target, false);
	if (same_log(&target->log, &merger->base))
		return build(merger, source, false);
	if ((version = taken_back(source)) != NOWHERE)
		return refuse(merger, "target took version %llu back, which source builds on",
		              (unsigned long long)version);
	if ((version = taken_back(target)) != NOWHERE)
		return refuse(merger, "source takes version %llu back, which target builds on",
		              (unsigned long long)version);
	if (source->own_count == 0)
		return build(merger, target, false);
	if (target->own_count == 0)
		return build(merger, source, false);
	return merge_entries(merger);
}

static int read_logs(struct merger *merger, bool *ret_read)
{
	struct log_side *source = &merger->source, *target = &merger->target;
	const struct pointer *base = &merger->directory->base;
	struct message why = {0};
	const char *which = source->name;
	int error = delta_changes_read(merger->odb, base, source->root, &source->changes, &why);
	if (!error) {
		which = target->name;
		error = delta_changes_read(merger->odb, base, target->root, &target->changes, &why);
	}
	if (error)
		return refuse_or_fail(merger, which, error, &why);
	merger->first = source->changes.first < target->changes.first ? source->changes.first
	                                                              : target->changes.first;
	if (source->changes.catalog || target->changes.catalog)
		return refuse(merger, "a catalog has the order of its commits");
	if (merger->first != NOWHERE) {
		which = source->name;
		error = read_side(merger, source, &why);
		if (!error) {
			which = target->name;
			error = read_side(merger, target, &why);
		}
		if (!error) {
			which = "the common ancestor";
			error = delta_versions_read(merger->odb, base, merger->first, &merger->base,
			                            &why);
		}
	}
	if (error)
		return refuse_or_fail(merger, which, error, &why);
	*ret_read = true;
	return merger->first == NOWHERE ? 0 : compare_logs(merger);
}

int merge_delta_log(void *context, struct odb *odb, struct packer *packer,
                    const struct directory_merge *directory, struct directory_result *ret_result,
                    struct message *message)
{
	CLEANUP(merger_release)
	struct merger merger = {
	        .odb = odb,
	        .packer = packer,
	        .directory = directory,
	        .result = ret_result,
	        .message = message,
	        .table = table_name(directory->path),
	        .source = {.name = "source", .root = &directory->source},
	        .target = {.name = "target", .root = &directory->target},
	        .fork = NOWHERE,
	};
	bool read = false;
	if (!merger.table)
		return no_memory(&merger);
	int error = read_logs(&merger, &read);
	return error || !read ? error : merge_logs(&merger);
}
