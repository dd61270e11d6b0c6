/*
 * history — walking commits, naming them, and finding common ancestors.
 *
 * Holds: the commit index (kv table 1: commit id -> place, generation, time, parents; a cache, fed
 *        by walking from refs), which finds a commit by id or prefix and answers questions about
 *        ancestors without reading history again.
 * Revision expressions: BASE('~'[N] | '^'[N])*, BASE = branch | tag | commit id or unique prefix
 * of at least 6 hex digits | branch@<ISO time>. A full id of 64 digits wins over everything; else
 * a branch wins over a tag, both over an id prefix. N is 1 when left out, ^0 and ~0 are the commit
 * itself. branch@time: where the branch stood then, from its reflog, deleted ones' too; before the
 * reflog reaches, from the first-parent history's commit times; before it was made: nowhere. ISO
 * times: 2026-11-21, 2026-11-21T10:00, ...:30,
 * ...:30.123, each with Z, +hh:mm or -hh:mm; without a zone: UTC.
 * Threads: any. One lock, a leaf: it guards what is held in memory and is never held across the
 * store or the kv. No kv transaction is open across the store; write transactions are short.
 */
#ifndef REFS_HISTORY_H
#define REFS_HISTORY_H

#include "refs/ref.h"

struct history;
/* Borrows both. `index` may be NULL (then the index is in memory); its table 1 is ours. */
int history_new(struct odb *odb, struct kv *index, struct history **ret_history);
void history_free(struct history *history);

/* The commit is one allocation: free(). An id prefix asks for a walk over what refs gained since
 * the last time. -ERR_NO_REVISION, -ERR_AMBIGUOUS (the message lists candidates), -ERR_BAD_NAME. */
int revision_resolve(struct history *history, const char *expression, struct commit **ret_commit,
                     struct message *message);
struct revision_options {
	bool known; /* a branch may be where this host saw it a moment ago (ref_read_known) */
	struct message *note; /* may be NULL. Written when the answer needs a word: BRANCH@TIME lies
	                         before the oldest move that is known */
};
int revision_resolve_with(struct history *history, const char *expression,
                          const struct revision_options *options, struct commit **ret_commit,
                          struct message *message);
/* UTC milliseconds; -ERR_INVALID. A date, minute or second alone means its last millisecond. */
int time_parse(const char *iso, int64_t *ret_ms);
void time_format(int64_t ms, char ret_text[32]); /* 2026-11-21T10:00:00.123Z */
/* Remember a commit (after creating or reading one) so that its id can be found, by prefix too,
 * even when no ref leads to it. Failing to is no error: the index is a cache. */
void history_note(struct history *history, const struct commit *commit);

/* Walk the starts and their ancestors: children always before parents, else newest first. Reads
 * ahead only as far as that needs; memory is O(width of the history), not its length. */
struct history_walk;
struct walk_options {
	bool first_parent;
	const char *const *paths; /* only commits that changed one of these (or something below)
	                             against the first parent (merges: against every parent; with
	                             first_parent: against that one); a time alone is no change.
	                             Normalised; borrowed until the walk is freed. NULL: all */
	size_t path_count;
};
int history_walk_new(struct history *history, const struct pointer *starts, size_t count,
                     const struct walk_options *options, struct history_walk **ret_walk);
int history_walk_next(struct history_walk *walk, struct commit **ret_commit,
                      struct message *message); /* -ERR_NOT_FOUND at the end; caller frees */
void history_walk_free(struct history_walk *walk);

/* Every best common ancestor (none is an ancestor of another), newest first. Allocated array:
 * free(); none found: 0, NULL. */
int merge_bases(struct history *history, const struct pointer *a, const struct pointer *b,
                struct pointer **ret_bases, size_t *ret_count, struct message *message);
int is_ancestor(struct history *history, const struct pointer *ancestor,
                const struct pointer *descendant, bool *ret_is, struct message *message);

#endif
