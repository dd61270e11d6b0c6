/*
 * tables — formats of tables whose logs are files: what a merge of two branches that both wrote one
 * table means.
 *
 * Such a log is a sequence, so two branches that append to it write files of the same name, or
 * files that know nothing of each other. Path by path that is a conflict of bare names, or worse, a
 * merge that no reader understands. Never: guesses. What is not understood in full is a conflict,
 * which says why. Threads: any.
 */
#ifndef FS_TABLES_H
#define FS_TABLES_H

#include "fs/worktree.h"
#include "refs/merge.h"

/* For merge_options.directory: a Delta table's "_delta_log" is merged where its protocol allows it
 * (table_delta.c), an Iceberg table's "metadata" never (table_iceberg.c). No context. */
merge_directory_fn merge_table;

/* For who goes on over another base with uncommitted changes, or commits onto a head that has
 * moved: nobody asked for a merge there, so logs are not merged; only their conflicts count. */
extern const struct table_formats table_formats;

/* -- between the formats -- */

/* One conflict for the table that directory->path is the log of. `format` must be static. */
int table_conflict(const struct directory_merge *directory, const char *format, uint64_t version,
                   struct directory_result *ret_result, const char *sentence, ...)
        __attribute__((format(printf, 5, 6)));
/* What people call it: the path of the directory that the log lies in. Free it; NULL: no memory. */
char *table_name(const char *log_path);
/* An entry that the table's writers made; its path is in the conflict's list. */
int table_conflict_name(struct directory_result *result, const char *name);

merge_directory_fn merge_delta_log, merge_iceberg_metadata;
/* The name of a file in an Iceberg table's "metadata" that is a state of the table. */
bool iceberg_is_state(const char *name);

#endif
