/*
 * ref — branches and tags: one small object each, replaced by compare-and-swap.
 *
 * Objects "refs/branches/<name>" and "refs/tags/<name>". A body names the commit and its place and
 * carries the last REF_MOVES_MAX moves (the reflog), each with a nonce of its own. When the answer
 * to a conditional put is lost or doubtful the body is read back and the nonces decide: ours among
 * the moves, we won (even if somebody moved on since); not there, we lost; unreadable, an error.
 * Deleting is a move too, to nothing: the body stays where it is as a tombstone, which readers
 * treat as absent, creating replaces and restoring moves back. So no ref is ever removed
 * unconditionally and a deletion cannot race a commit. ref_purge removes old tombstones.
 * Tags never move. A branch may be protected (refs/protection.h): whatever would change it is held
 * against that here, in one place. Format: refs/README.md, "Refs" and "Protection".
 * Threads: any. Blocks on the store; holds no lock and no state.
 */
#ifndef REFS_REF_H
#define REFS_REF_H

#include "refs/commit.h"
#include "refs/protection.h"

#define REF_NAME_MAX 128
#define REF_MOVES_MAX 64
#define REF_TEXT_MAX 255 /* bytes of `who` and `command`; longer ones are cut */
#define REF_NONCE_BYTES 16
#define REF_BODY_MAX (64u << 10)

enum ref_kind { REF_BRANCH = 1, REF_TAG = 2 };

struct ref_move {
	struct pointer before; /* none: created */
	struct pointer after;  /* none: deleted */
	int64_t time_ms;
	char *who;     /* user@host */
	char *command; /* "commit", "merge dev", "reset", ... */
	uint8_t nonce[REF_NONCE_BYTES];
};
/* Moves form a chain: the `before` of each is the `after` of the next older one. They tell of
 * earlier lives of the name too, and a renamed ref brings its own along. */
struct ref {
	enum ref_kind kind;
	char name[REF_NAME_MAX + 1];
	struct pointer commit; /* none: deleted (only ref_decode and ref_list_deleted tell) */
	struct etag etag;
	struct ref_move *moves; /* newest first, at least one */
	size_t move_count;
	struct ref_move claim; /* after the newest; `who` NULL: none */
	unsigned claim_ms;
	struct protection protection; /* of branches; tombstones keep it */
};
void ref_release(struct ref *ref); /* frees what it points to; accepts zeroed */

/* Who does it and why, for the reflog; and what speaks for it where the branch is protected: what
 * that does not suffice for is -ERR_REFUSED, in all of the below, and changes nothing. */
struct ref_author {
	const char *who;
	const char *command;
	const struct ref_rights *rights; /* NULL: none. Borrowed */
	const uint8_t *nonce; /* for ref_rename alone: what ref_was_renamed tells it by. Borrowed */
};

/* [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}, no "..", no trailing ".lock". -ERR_BAD_NAME + message. */
int ref_name_check(const char *name, struct message *message);

int ref_read(struct object_store *store, enum ref_kind kind, const char *name, struct ref *ret_ref,
             struct message *message); /* -ERR_NOT_FOUND */
/* As this host saw it a moment ago or made it itself (refs/known.h), where that is known; else as
 * ref_read. For what ends in ref_move: when that says -ERR_MOVED, ref_read. */
int ref_read_known(struct object_store *store, enum ref_kind kind, const char *name,
                   struct ref *ret_ref, struct message *message); /* -ERR_NOT_FOUND */
/* 0: the ref is what it was when it had the etag `known`; 1: it is not (or `known` is empty), and
 * *ret_ref says what it is. -ERR_NOT_FOUND. On S3 the first costs no body. */
int ref_read_if_changed(struct object_store *store, enum ref_kind kind, const char *name,
                        const struct etag *known, struct ref *ret_ref, struct message *message);
/* One that was deleted: `commit` is where it stood last, moves[0] the deletion. -ERR_NOT_FOUND: it
 * is there, or never was. */
int ref_read_deleted(struct object_store *store, enum ref_kind kind, const char *name,
                     struct ref *ret_ref, struct message *message);
/* Ascending by name. The ref is borrowed; non-zero stops and is returned. The callback may use the
 * store. Bodies are read beside each other, and not again where the listing tells that they are
 * known (refs/known.h). Without `bodies` one listing is all that is asked of the store: the name is
 * filled in, and the etag where the store tells it. A damaged body hides no other: the error that
 * names the first of them comes after the rest. */
typedef int ref_fn(void *context, const struct ref *ref);
int ref_list(struct object_store *store, enum ref_kind kind, bool bodies, ref_fn *callback,
             void *context, struct message *message);
int ref_create(struct object_store *store, enum ref_kind kind, const char *name,
               const struct pointer *commit, const struct ref_author *author,
               struct message *message); /* -ERR_EXISTS. One put. */
/* Move from `expected` (as read before, its etag counts) to `commit`. -ERR_MOVED: somebody else
 * moved or deleted it first, read again; -ERR_NOT_FOUND: it is gone; -ERR_REFUSED: a tag, or
 * protected, and that has been looked at again (should `expected` be out of date). Any other error:
 * not known to have moved, and *expected is as before. On success *expected is updated in place. */
int ref_move(struct object_store *store, struct ref *expected, const struct pointer *commit,
             const struct ref_author *author, struct message *message);
/* The same for who expects to lose and to try again. */
struct ref_contended {
	/* Somebody else was first, most likely: wait here, before it is looked who that was, for
	 * what is seen then is what the next attempt starts from. May be NULL. */
	void (*wait)(void *context);
	void *context;
	struct ref now; /* -ERR_MOVED: what was seen, unless it is deleted (empty). Owned */
};
int ref_move_contended(struct object_store *store, struct ref *expected,
                       const struct pointer *commit, const struct ref_author *author,
                       struct ref_contended *contended, struct message *message);
/* Ask others to leave the branch alone for so long (1 to REF_CLAIM_MS_MAX), for who loses all the
 * time because the others' attempts are shorter than his. It stands in the ref until that moves or
 * somebody else claims it, binds nobody and is no move. As for moving, *expected is updated, and
 * -ERR_MOVED: contended->now. */
#define REF_CLAIM_MS_MAX 60000
int ref_claim(struct object_store *store, struct ref *expected, unsigned for_ms,
              const struct ref_author *author, struct ref_contended *contended,
              struct message *message);
/* Put `protection` on the branch; zero lifts it. No move; a claim goes. It asks for no rights: who
 * may protect is for the caller to know. A deleted one (ref_read_deleted) can only be lifted:
 * -ERR_REFUSED. As for moving, *expected is updated, and -ERR_MOVED, -ERR_NOT_FOUND. */
int ref_protect(struct object_store *store, struct ref *expected,
                const struct protection *protection, struct message *message);
/* Whatever it points to by then. -ERR_NOT_FOUND. One put, and a get unless it is known. */
int ref_delete(struct object_store *store, enum ref_kind kind, const char *name,
               const struct ref_author *author, struct message *message);
/* -ERR_EXISTS, -ERR_NOT_FOUND; -ERR_MOVED: both names are left, because somebody moved both. */
int ref_rename(struct object_store *store, enum ref_kind kind, const char *from, const char *to,
               const struct ref_author *author, struct message *message);
/* Was it done, the ref_rename of these names whose author brought `nonce`, however it ended? It is
 * half done, and so it was not, as long as `from` is there. Whatever became of either since:
 * another `from`, or a `to` that is somebody else's, does not mislead. (64 moves of theirs might.)
 */
int ref_was_renamed(struct object_store *store, enum ref_kind kind, const char *from,
                    const char *to, const uint8_t nonce[REF_NONCE_BYTES], bool *ret_renamed,
                    struct message *message);
/* Bring back a deleted ref. -ERR_NOT_FOUND, -ERR_EXISTS. */
int ref_restore(struct object_store *store, enum ref_kind kind, const char *name,
                const struct ref_author *author, struct message *message);
/* The deleted refs: `commit` is where it stood last, moves[0] the deletion. */
int ref_list_deleted(struct object_store *store, enum ref_kind kind, ref_fn *callback,
                     void *context, struct message *message);
/* Remove for good the refs deleted before `deleted_before_ms` (wall clock), but for protected ones:
 * their reflogs no longer count and undo cannot bring them back. For gc: the store has no
 * conditional removal, so a ref re-created in the instant between the last look and the removal
 * would be lost; give it an age of days. *ret_count may be NULL. */
int ref_purge(struct object_store *store, enum ref_kind kind, int64_t deleted_before_ms,
              uint64_t *ret_count, struct message *message);

/* A body by itself, for fuzzing and fsck. The etag is left empty. -ERR_CORRUPT, -ERR_VERSION. */
int ref_decode(enum ref_kind kind, const char *name, const void *bytes, size_t length,
               struct ref *ret_ref);
/* The inverse. -ERR_INVALID unless the moves are a chain that ends at ref->commit. */
int ref_encode(const struct ref *ref, struct buffer *ret_body);

#endif
