/*
 * table_delta — a Delta table's log: which versions a directory holds, what a side changed in it,
 * and what one entry of it does, as far as merging asks.
 *
 * Source: Delta Transaction Log Protocol, "Actions"; when an append needs nothing of what others
 * wrote before it: its reference implementation's "isBlindAppend", and delta-rs' conflict checker.
 * Private to fs/table_delta*.c and their tests.
 */
#ifndef FS_TABLE_DELTA_H
#define FS_TABLE_DELTA_H

#include "store/tree.h"

#define DELTA_ENTRY_BYTES_MAX ((size_t)64 << 20)
#define DELTA_LINE_BYTES_MAX ((size_t)4 << 20)
#define DELTA_OPERATION_MAX 64

struct string_list {
	char **items;
	size_t count, capacity;
};
int string_list_add(struct string_list *list, const char *item); /* copies */
void string_list_release(struct string_list *list);
/* The first that both have, or NULL; sorts both. */
const char *string_list_common(struct string_list *a, struct string_list *b);

/* Of several entries, added up. */
struct delta_writes {
	struct string_list applications; /* ids of `txn` actions */
	struct string_list added, removed;
};
void delta_writes_release(struct delta_writes *writes);

struct delta_entry {
	char operation[DELTA_OPERATION_MAX]; /* for people: "WRITE (Append)"; printable ASCII */
	bool changes_table;                  /* schema, properties, protocol */
	bool restores;                       /* brings files back that were removed */
	/* NULL: appends files, needs and changes nothing else. Otherwise why not, for people:
	 * "source's WRITE (Overwrite) ..." */
	const char *not_blind;
};
/* Adds to `writes`. -ERR_INVALID + message ("line 3 ..."): no entry of a Delta log. */
int delta_entry_parse(const char *bytes, size_t length, struct delta_entry *ret_entry,
                      struct delta_writes *writes, struct message *message);

/* -- the directory (table_delta_log.c) -- */

#define DELTA_VERSIONS_MAX 10000
#define DELTA_NAME_MAX 32
void delta_entry_name(uint64_t version, char ret_name[DELTA_NAME_MAX]);

struct delta_version {
	uint64_t number;
	struct tree_entry *entry; /* owned */
	bool in_base, in_other;   /* for whoever compares logs */
};
/* Versions of one log, from some number on: ascending, without gaps. */
struct delta_versions {
	struct delta_version *items;
	size_t count, capacity;
};
void delta_versions_release(struct delta_versions *versions);
/* -ERR_INVALID + message: there are gaps, or files derived from versions that are not there, or
 * more than DELTA_VERSIONS_MAX. An empty directory has no versions. */
int delta_versions_read(struct odb *odb, const struct pointer *root, uint64_t first,
                        struct delta_versions *ret_versions, struct message *message);

/* What one side changed since the base. */
struct delta_changes {
	uint64_t first; /* the first version that was written, or taken back; UINT64_MAX: none */
	bool catalog;   /* commits that only a catalog can put in order */
	/* Names that the log's writers do not use, as they are now; entry NULL: removed. Ascending.
	 */
	struct delta_other {
		char *name;
		struct tree_entry *entry;
	} * others;
	size_t other_count, other_capacity;
};
void delta_changes_release(struct delta_changes *changes);
/* Removed versions count only when nothing newer is left: else a checkpoint made them superfluous.
 * -ERR_INVALID + message: too many changes. */
int delta_changes_read(struct odb *odb, const struct pointer *base, const struct pointer *side,
                       struct delta_changes *ret_changes, struct message *message);

#endif
