/*
 * ref — branches and tags: one small object each, replaced by compare-and-swap.
 *
 * Objects "refs/branches/<name>", "refs/tags/<name>"; a deleted one's last body is kept as
 * "refs/deleted/<kind>/<name>" for undo. A body names the commit and its place, carries the last
 * REF_MOVES_MAX moves (the reflog) and a fresh nonce: when a conditional put's answer is lost the
 * body is read back and the nonce decides (ours: we won; another: we lost; unreadable: an error).
 * Tags never move. Format: refs/README.md, "Refs".
 * Threads: any. Blocks on the store.
 */
#ifndef REFS_REF_H
#define REFS_REF_H

#include "refs/commit.h"

#define REF_NAME_MAX 128
#define REF_MOVES_MAX 64

enum ref_kind { REF_BRANCH = 1, REF_TAG = 2 };

struct ref_move {
	struct pointer before; /* none: created */
	struct pointer after;  /* none: deleted */
	int64_t time_ms;
	char *who;     /* user@host */
	char *command; /* "commit", "merge dev", "reset", ... */
};
struct ref {
	enum ref_kind kind;
	char name[REF_NAME_MAX + 1];
	struct pointer commit;
	struct etag etag;
	struct ref_move *moves; /* newest first */
	size_t move_count;
};
void ref_release(struct ref *ref); /* frees what it points to; accepts zeroed */

/* Who does it and why, for the reflog. */
struct ref_author {
	const char *who;
	const char *command;
};

/* [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}, no "..", no trailing ".lock". -ERR_BAD_NAME + message. */
int ref_name_check(const char *name, struct message *message);

int ref_read(struct object_store *store, enum ref_kind kind, const char *name,
	     struct ref *ret_ref, struct message *message); /* -ERR_NOT_FOUND */
/* Ascending by name. The ref is borrowed; non-zero stops and is returned. Names alone, without
 * reading bodies, when `bodies` is false (ref->commit is then none). */
typedef int ref_fn(void *context, const struct ref *ref);
int ref_list(struct object_store *store, enum ref_kind kind, bool bodies, ref_fn *callback,
	     void *context, struct message *message);
int ref_create(struct object_store *store, enum ref_kind kind, const char *name,
	       const struct pointer *commit, const struct ref_author *author,
	       struct message *message); /* -ERR_EXISTS */
/* Move from `expected` (as read before, its etag counts) to `commit`. -ERR_MOVED: somebody else
 * moved it first, read again. On success *expected is updated in place. */
int ref_move(struct object_store *store, struct ref *expected, const struct pointer *commit,
	     const struct ref_author *author, struct message *message);
/* Keeps the body aside. -ERR_NOT_FOUND. */
int ref_delete(struct object_store *store, enum ref_kind kind, const char *name,
	       const struct ref_author *author, struct message *message);
int ref_rename(struct object_store *store, enum ref_kind kind, const char *from, const char *to,
	       const struct ref_author *author, struct message *message);
/* Bring back a deleted ref. -ERR_NOT_FOUND, -ERR_EXISTS. */
int ref_restore(struct object_store *store, enum ref_kind kind, const char *name,
		const struct ref_author *author, struct message *message);
/* The deleted refs' last bodies (names end up in ref->name). */
int ref_list_deleted(struct object_store *store, enum ref_kind kind, ref_fn *callback,
		     void *context, struct message *message);
int ref_decode(enum ref_kind kind, const char *name, const void *bytes, size_t length,
	       struct ref *ret_ref); /* for fuzzing and fsck: -ERR_CORRUPT, -ERR_VERSION */

#endif
