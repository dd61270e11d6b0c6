/*
 * ref.c — hides how a ref is moved: what the next body says, and how a put whose outcome is
 * doubtful is settled.
 *
 * Every change of a ref, deletion included, is one conditional put of a body that holds one more
 * move (ref_publish). A crash before the put leaves the old state, after it the new one.
 */
#include "refs/ref_internal.h"

#include <ctype.h>
#include <stdio.h>

#include "refs/known.h"

/* A change that must win against others (delete, rename, create over a tombstone) gives up after
 * this many lost races. */
#define ATTEMPTS_MAX 32

const char *ref_kind_word(enum ref_kind kind)
{
	return kind == REF_TAG ? "tag" : "branch";
}

const char *ref_kind_prefix(enum ref_kind kind)
{
	return kind == REF_TAG ? "refs/tags/" : "refs/branches/";
}

void ref_key(enum ref_kind kind, const char *name, char ret_key[REF_KEY_BYTES])
{
	snprintf(ret_key, REF_KEY_BYTES, "%s%s", ref_kind_prefix(kind), name);
}

bool ref_name_is_valid(const char *name)
{
	size_t length = strnlen(name, REF_NAME_MAX + 1);

	if (length == 0 || length > REF_NAME_MAX || name[0] == '.' || name[0] == '-')
		return false;
	for (size_t i = 0; i < length; i++) {
		unsigned char c = (unsigned char)name[i];

		if (c >= 0x80 || !(isalnum(c) || c == '_' || c == '.' || c == '-'))
			return false;
	}
	if (strstr(name, ".."))
		return false;
	return length < 5 || strcmp(name + length - 5, ".lock") != 0;
}

int ref_name_check(const char *name, struct message *message)
{
	if (ref_name_is_valid(name))
		return 0;
	return fail(message, -ERR_BAD_NAME,
	            "'%.*s' cannot name a branch or tag: use 1 to %d of A-Z a-z 0-9 _ . -, not "
	            "starting with . or -, without '..', not ending in '.lock'",
	            REF_NAME_MAX, name, REF_NAME_MAX);
}

static int no_such_ref(enum ref_kind kind, const char *name, struct message *message)
{
	return fail(message, -ERR_NOT_FOUND, "no %s '%s'; `lakectl %s list` lists them",
	            ref_kind_word(kind), name, ref_kind_word(kind));
}

static int exists_already(enum ref_kind kind, const char *name, struct message *message)
{
	return fail(message, -ERR_EXISTS, "%s '%s' exists already", ref_kind_word(kind), name);
}

int ref_body_decode(enum ref_kind kind, const char *name, const struct buffer *body,
                    const struct etag *etag, struct ref *ret_ref, struct message *message)
{
	int rc = ref_decode(kind, name, body->data, body->length, ret_ref);
	if (rc == -ERR_VERSION)
		return fail(message, rc,
		            "%s '%s' was written by a newer version; update this program",
		            ref_kind_word(kind), name);
	if (rc == -ERR_CORRUPT)
		return fail(message, rc,
		            "%s '%s' is damaged: object %s%s (%zu bytes) does not match its seal; "
		            "put it back from a backup of the store",
		            ref_kind_word(kind), name, ref_kind_prefix(kind), name, body->length);
	if (rc < 0)
		return fail(message, rc, "%s '%s': %s", ref_kind_word(kind), name, error_text(rc));
	ret_ref->etag = *etag;
	return 0;
}

/* The body as it is, tombstones too. */
int ref_load(struct object_store *store, enum ref_kind kind, const char *name, struct ref *ret_ref,
             struct message *message)
{
	CLEANUP(buffer_release) struct buffer body = {0};
	char key[REF_KEY_BYTES];
	struct etag etag = {0};

	ref_key(kind, name, key);
	int rc = object_get(store, key, 0, REF_BODY_MAX + 1, &body, &etag, message);
	if (rc == -ERR_NOT_FOUND)
		return no_such_ref(kind, name, message);
	if (rc < 0)
		return fail_context(message, rc, "%s '%s'", ref_kind_word(kind), name);
	return ref_body_decode(kind, name, &body, &etag, ret_ref, message);
}

/* For who returns it: the cleanup of where it was finds nothing. */
static struct ref ref_steal(struct ref *ref)
{
	struct ref stolen = *ref;

	memset(ref, 0, sizeof(*ref));
	return stolen;
}

int ref_read(struct object_store *store, enum ref_kind kind, const char *name, struct ref *ret_ref,
             struct message *message)
{
	CLEANUP(ref_release) struct ref ref = {0};
	int rc = ref_name_check(name, message);

	if (rc == 0)
		rc = ref_load(store, kind, name, &ref, message);
	if (rc < 0)
		return rc;
	if (pointer_is_none(&ref.commit))
		return no_such_ref(kind, name, message);
	*ret_ref = ref_steal(&ref);
	return 0;
}

/* The same as it is known; -ERR_NOT_FOUND when that is not. */
static int ref_guess(struct object_store *store, enum ref_kind kind, const char *name,
                     struct ref *ret_ref)
{
	CLEANUP(buffer_release) struct buffer body = {.limit = REF_BODY_MAX + 1};
	char key[REF_KEY_BYTES];
	struct etag etag = {0};

	ref_key(kind, name, key);
	int rc = known_ref_guess(store, key, &body, &etag);
	return rc < 0 ? rc : ref_body_decode(kind, name, &body, &etag, ret_ref, NULL);
}

int ref_read_known(struct object_store *store, enum ref_kind kind, const char *name,
                   struct ref *ret_ref, struct message *message)
{
	CLEANUP(ref_release) struct ref ref = {0};
	int rc = ref_name_check(name, message);

	if (rc < 0)
		return rc;
	if (ref_guess(store, kind, name, &ref) < 0 || pointer_is_none(&ref.commit))
		return ref_read(store, kind, name, ret_ref, message);
	*ret_ref = ref_steal(&ref);
	return 0;
}

int ref_read_if_changed(struct object_store *store, enum ref_kind kind, const char *name,
                        const struct etag *known, struct ref *ret_ref, struct message *message)
{
	CLEANUP(ref_release) struct ref ref = {0};
	CLEANUP(buffer_release) struct buffer body = {.limit = REF_BODY_MAX + 1};
	char key[REF_KEY_BYTES];
	struct etag etag = {0};
	int rc = ref_name_check(name, message);

	if (rc < 0)
		return rc;
	if (!known->text[0]) {
		rc = ref_read(store, kind, name, ret_ref, message);
		return rc < 0 ? rc : 1;
	}
	ref_key(kind, name, key);
	rc = object_get_if_changed(store, key, known, &body, &etag, message);
	if (rc == -ERR_NOT_FOUND)
		return no_such_ref(kind, name, message);
	if (rc < 0)
		return fail_context(message, rc, "%s '%s'", ref_kind_word(kind), name);
	if (rc == 0)
		return 0;
	rc = ref_body_decode(kind, name, &body, &etag, &ref, message);
	if (rc < 0)
		return rc;
	if (pointer_is_none(&ref.commit))
		return no_such_ref(kind, name, message);
	*ret_ref = ref_steal(&ref);
	return 1;
}

int ref_read_deleted(struct object_store *store, enum ref_kind kind, const char *name,
                     struct ref *ret_ref, struct message *message)
{
	CLEANUP(ref_release) struct ref ref = {0};
	int rc = ref_name_check(name, message);

	if (rc == 0)
		rc = ref_load(store, kind, name, &ref, message);
	if (rc < 0)
		return rc;
	if (!pointer_is_none(&ref.commit))
		return fail(message, -ERR_NOT_FOUND, "%s '%s' is not deleted", ref_kind_word(kind),
		            name);
	ref.commit = ref.moves[0].before;
	*ret_ref = ref_steal(&ref);
	return 0;
}

/* -- the next body -- */

/* One line of at most REF_TEXT_MAX bytes, never cut inside a UTF-8 sequence. */
static char *one_line(const char *text)
{
	size_t length = text ? strnlen(text, REF_TEXT_MAX + 1) : 0;

	if (length > REF_TEXT_MAX) {
		length = REF_TEXT_MAX;
		while (length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80)
			length--;
	}
	char *line = calloc(1, length + 1);
	for (size_t i = 0; line && i < length; i++)
		line[i] = (unsigned char)text[i] < 0x20 || text[i] == 0x7f ? ' ' : text[i];
	return line;
}

static int copy_move(const struct ref_move *from, struct ref_move *ret_move)
{
	struct ref_move copy = *from;

	copy.who = strdup(from->who);
	copy.command = strdup(from->command);
	*ret_move = copy;
	return copy.who && copy.command ? 0 : -ERR_NO_MEMORY;
}

/* What `name` says after a move from where `base` (NULL: nothing) stands to `after`. */
static int next_ref(enum ref_kind kind, const char *name, const struct ref *base,
                    const struct pointer *after, const struct ref_author *author,
                    struct ref *ret_next)
{
	CLEANUP(ref_release) struct ref next = {.kind = kind, .commit = *after};
	const struct protection none = {0};
	size_t kept = base ? base->move_count : 0;

	if (kept > REF_MOVES_MAX - 1)
		kept = REF_MOVES_MAX - 1;
	snprintf(next.name, sizeof(next.name), "%s", name);
	next.protection = base ? base->protection : none;
	next.moves = calloc(1 + kept, sizeof(*next.moves));
	if (!next.moves)
		return -ERR_NO_MEMORY;
	next.move_count = 1 + kept;
	struct ref_move *move = &next.moves[0];
	move->before = base ? base->commit : pointer_none;
	move->after = *after;
	move->time_ms = clock_wall_ms();
	move->who = one_line(author ? author->who : NULL);
	move->command = one_line(author ? author->command : NULL);
	if (author && author->nonce)
		memcpy(move->nonce, author->nonce, REF_NONCE_BYTES);
	else
		random_bytes(move->nonce, REF_NONCE_BYTES);
	if (!move->who || !move->command)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < kept; i++) {
		int rc = copy_move(&base->moves[i], &next.moves[1 + i]);

		if (rc < 0)
			return rc;
	}
	*ret_next = ref_steal(&next);
	return 0;
}

/* -- publishing it -- */

static bool has_nonce(const struct ref *ref, const uint8_t nonce[REF_NONCE_BYTES])
{
	for (size_t i = 0; i < ref->move_count; i++) {
		if (memcmp(ref->moves[i].nonce, nonce, REF_NONCE_BYTES) == 0)
			return true;
	}
	return false;
}

/* -- one put, and how it went -- */

enum change { CHANGE_MOVE, CHANGE_CLAIM, CHANGE_PROTECTION };

struct attempt {
	struct object_store *store;
	enum change change;
	struct ref *next;
	const struct etag *expected; /* NULL: there is to be none */
	struct ref_contended *contended;
};

static int settle_claim(struct ref *next, const struct ref *now, const struct etag *expected,
                        int failure)
{
	if (now->claim.who && memcmp(now->claim.nonce, next->claim.nonce, REF_NONCE_BYTES) == 0) {
		next->etag = now->etag;
		return 0;
	}
	return strcmp(now->etag.text, expected->text) == 0 ? failure : -ERR_MOVED;
}

/* A protection has no nonce: the same one by somebody else is as good. */
static int settle_protection(struct ref *next, const struct ref *now, const struct etag *expected,
                             int failure)
{
	if (strcmp(now->etag.text, expected->text) == 0 &&
	    !protection_equal(&now->protection, &next->protection))
		return failure;
	if (!protection_equal(&now->protection, &next->protection) ||
	    memcmp(now->moves[0].nonce, next->moves[0].nonce, REF_NONCE_BYTES) != 0)
		return -ERR_MOVED;
	next->etag = now->etag;
	return 0;
}

/*
 * The put failed with `failure`, but the store may have acted, now or in an attempt that the
 * backend repeated. Read back: nonces tell. 0: it did. `message` holds the put's own text.
 * contended->now: what was read back, empty when nothing could be.
 */
static int settle(const struct attempt *attempt, int failure, struct message *message)
{
	const struct etag *expected = attempt->expected;
	struct ref_contended *contended = attempt->contended;
	struct ref *next = attempt->next;
	const struct ref *now = &contended->now;
	struct message why = {0};
	if (failure == -ERR_MOVED && contended->wait)
		contended->wait(contended->context);
	int rc = ref_load(attempt->store, next->kind, next->name, &contended->now, &why);

	if (rc == -ERR_NOT_FOUND && failure == -ERR_MOVED)
		return -ERR_NOT_FOUND;
	if (rc == -ERR_NOT_FOUND)
		return failure == -ERR_EXISTS ? -ERR_MOVED : failure;
	if (rc < 0)
		return fail(message, rc,
		            "whether %s '%s' was moved is not known, because it could not be read "
		            "back (%s); look at `lakectl reflog` once the store answers",
		            ref_kind_word(next->kind), next->name, why.text);
	if (attempt->change == CHANGE_CLAIM)
		return settle_claim(next, now, expected, failure);
	if (attempt->change == CHANGE_PROTECTION)
		return settle_protection(next, now, expected, failure);
	if (has_nonce(now, next->moves[0].nonce)) {
		/* When somebody moved on already, the old etag makes the next move notice. */
		if (memcmp(now->moves[0].nonce, next->moves[0].nonce, REF_NONCE_BYTES) == 0)
			next->etag = now->etag;
		else if (expected)
			next->etag = *expected;
		return 0;
	}
	if (failure == -ERR_MOVED || failure == -ERR_EXISTS)
		return failure;
	if (!expected)
		return -ERR_EXISTS;
	if (strcmp(now->etag.text, expected->text) == 0)
		return failure; /* nothing happened to it, not even a claim */
	if (next->move_count > 1 && has_nonce(now, next->moves[1].nonce))
		return -ERR_MOVED; /* every move since ours began is there, and ours is not */
	return failure;
}

/* Put `next` in place of the body with etag `expected` (NULL: where there is none), and set its
 * etag. -ERR_MOVED, -ERR_EXISTS, -ERR_NOT_FOUND: certainly not done. Any other: not known.
 * contended->now is left empty but for -ERR_MOVED. */
static int ref_publish(const struct attempt *attempt, struct message *message)
{
	const struct etag *expected = attempt->expected;
	struct ref *next = attempt->next;
	CLEANUP(buffer_release) struct buffer body = {.limit = REF_BODY_MAX};
	struct message put_message = {0};
	char key[REF_KEY_BYTES];
	int rc = ref_encode(next, &body);

	if (rc < 0)
		return fail(message, rc, "cannot encode %s '%s': %s", ref_kind_word(next->kind),
		            next->name, error_text(rc));
	ref_key(next->kind, next->name, key);
	if (expected)
		rc = object_put_if_match(attempt->store, key, body.data, body.length, expected,
		                         &next->etag, &put_message);
	else
		rc = object_put_if_absent(attempt->store, key, body.data, body.length, &next->etag,
		                          &put_message);
	if (rc == 0)
		return 0;
	rc = settle(attempt, rc, &put_message);
	if (rc != -ERR_MOVED)
		ref_release(&attempt->contended->now);
	if (rc == 0)
		return 0;
	if (rc == -ERR_MOVED)
		return fail(message, rc, "%s '%s' was moved by somebody else meanwhile",
		            ref_kind_word(next->kind), next->name);
	if (rc == -ERR_EXISTS)
		return exists_already(next->kind, next->name, message);
	if (rc == -ERR_NOT_FOUND)
		return no_such_ref(next->kind, next->name, message);
	return fail(message, rc, "%s '%s': %s", ref_kind_word(next->kind), next->name,
	            put_message.text[0] ? put_message.text : error_text(rc));
}

/* Move `base`, as loaded, to `after`. */
static int advance_contended(struct object_store *store, const struct ref *base,
                             const struct pointer *after, const struct ref_author *author,
                             struct ref *ret_next, struct ref_contended *contended,
                             struct message *message)
{
	CLEANUP(ref_release) struct ref next = {0};
	int rc = next_ref(base->kind, base->name, base, after, author, &next);

	if (rc < 0)
		return fail(message, rc, "%s", error_text(rc));
	const struct attempt attempt = {store, CHANGE_MOVE, &next, &base->etag, contended};
	rc = ref_publish(&attempt, message);
	if (rc < 0)
		return rc;
	*ret_next = ref_steal(&next);
	return 0;
}

static int advance(struct object_store *store, const struct ref *base, const struct pointer *after,
                   const struct ref_author *author, struct ref *ret_next, struct message *message)
{
	struct ref_contended contended = {0};
	int rc = advance_contended(store, base, after, author, ret_next, &contended, message);

	ref_release(&contended.now);
	return rc;
}

/* -- what protection says -- */

static const struct ref_rights *rights_of(const struct ref_author *author)
{
	return author ? author->rights : NULL;
}

/* `expected` may be out of date, and its protection lifted since. So before anybody is refused it
 * is looked at again, and -ERR_MOVED when it is another that would allow it. */
static int confirm_refusal(struct object_store *store, const struct ref *expected,
                           const struct ref_rights *rights, struct ref *ret_now,
                           const struct message *said, struct message *message)
{
	CLEANUP(ref_release) struct ref now = {0};
	int rc = ref_read_if_changed(store, expected->kind, expected->name, &expected->etag, &now,
	                             message);

	if (rc < 0)
		return rc;
	if (rc == 0)
		return fail(message, -ERR_REFUSED, "%s", said->text);
	rc = protection_check(&now.protection, now.name, rights, message);
	if (rc < 0)
		return rc;
	*ret_now = ref_steal(&now);
	return fail(message, -ERR_MOVED, "branch '%s' was unprotected meanwhile", expected->name);
}

/* contended->now: as for ref_publish. */
static int check_move(struct object_store *store, const struct ref *expected,
                      const struct ref_author *author, struct ref_contended *contended,
                      struct message *message)
{
	struct message said = {0};
	const struct ref_rights *rights = rights_of(author);
	int rc = protection_check(&expected->protection, expected->name, rights, &said);

	return rc == 0 ? 0
	               : confirm_refusal(store, expected, rights, &contended->now, &said, message);
}

/* Read for its deletion, or for another name. */
static int read_to_remove(struct object_store *store, enum ref_kind kind, const char *name,
                          bool guess, const struct ref_author *author, struct ref *ret_ref,
                          struct message *message)
{
	CLEANUP(ref_release) struct ref now = {0};
	int rc = 0;

	if (guess) {
		rc = ref_read_known(store, kind, name, &now, message);
		if (rc < 0)
			return rc;
		guess = protection_check_name(&now.protection, name, rights_of(author), NULL) == 0;
		if (!guess)
			ref_release(&now);
	}
	if (!now.name[0])
		rc = ref_read(store, kind, name, &now, message);
	if (rc == 0)
		rc = protection_check_name(&now.protection, name, rights_of(author), message);
	if (rc == 0)
		*ret_ref = ref_steal(&now);
	return rc;
}

static int gave_up(enum ref_kind kind, const char *name, struct message *message)
{
	return fail(message, -ERR_MOVED, "%s '%s' is being changed by others all the time",
	            ref_kind_word(kind), name);
}

/* May the tombstone `now` be replaced? A renamed branch brings a protection of its own (or none),
 * which must not take the place of one that somebody put on the name. */
static int check_replaceable(const struct ref *now, const struct ref *source,
                             const struct ref_author *author, struct message *message)
{
	int rc = protection_check_name(&now->protection, now->name, rights_of(author), message);

	if (rc < 0 || !source || !protection_any(&now->protection))
		return rc;
	return fail(message, -ERR_REFUSED,
	            "a deleted branch '%s' was protected, so nothing can be renamed to that; "
	            "`lakectl unprotect %s` lifts it",
	            now->name, now->name);
}

/* Make `name` exist at `commit`, with the moves of `source`, or of the tombstone in its place when
 * `source` is NULL. The common case, no tombstone, costs one put. */
static int create_at(struct object_store *store, enum ref_kind kind, const char *name,
                     const struct ref *source, const struct pointer *commit,
                     const struct ref_author *author, struct ref *ret_created,
                     struct message *message)
{
	for (int tries = 0; tries < ATTEMPTS_MAX; tries++) {
		struct ref_contended contended = {0};
		CLEANUP(ref_release) struct ref next = {0};
		CLEANUP(ref_release) struct ref now = {0};
		const struct etag *expected = NULL;
		const struct ref *base = source;
		int rc;

		if (tries > 0) {
			/* Settling has just read it. */
			rc = ref_guess(store, kind, name, &now);
			if (rc < 0)
				rc = ref_load(store, kind, name, &now, message);
			if (rc == 0 && !pointer_is_none(&now.commit))
				return exists_already(kind, name, message);
			if (rc == 0)
				rc = check_replaceable(&now, source, author, message);
			if (rc < 0 && rc != -ERR_NOT_FOUND)
				return rc;
			expected = rc == 0 ? &now.etag : NULL;
			if (rc == 0 && !source)
				base = &now;
		}
		rc = next_ref(kind, name, base, commit, author, &next);
		if (rc < 0)
			return fail(message, rc, "%s", error_text(rc));
		const struct attempt attempt = {store, CHANGE_MOVE, &next, expected, &contended};
		rc = ref_publish(&attempt, message);
		ref_release(&contended.now);
		if (rc == 0) {
			*ret_created = ref_steal(&next);
			return 0;
		}
		if (rc != -ERR_EXISTS && rc != -ERR_MOVED && (rc != -ERR_NOT_FOUND || !expected))
			return rc;
	}
	return gave_up(kind, name, message);
}

int ref_create(struct object_store *store, enum ref_kind kind, const char *name,
               const struct pointer *commit, const struct ref_author *author,
               struct message *message)
{
	CLEANUP(ref_release) struct ref created = {0};
	int rc = ref_name_check(name, message);

	if (rc < 0)
		return rc;
	if (pointer_is_none(commit))
		return fail(message, -ERR_INVALID, "%s '%s' needs a commit to point to",
		            ref_kind_word(kind), name);
	return create_at(store, kind, name, NULL, commit, author, &created, message);
}

int ref_move_contended(struct object_store *store, struct ref *expected,
                       const struct pointer *commit, const struct ref_author *author,
                       struct ref_contended *contended, struct message *message)
{
	struct ref next = {0};

	if (expected->kind == REF_TAG)
		return fail(message, -ERR_REFUSED,
		            "tag '%s' cannot be moved: tags never move; delete it and create "
		            "another",
		            expected->name);
	if (pointer_is_none(commit))
		return fail(message, -ERR_INVALID, "branch '%s' cannot be moved to nothing",
		            expected->name);
	int rc = check_move(store, expected, author, contended, message);
	if (rc == 0)
		rc = advance_contended(store, expected, commit, author, &next, contended, message);
	if (pointer_is_none(&contended->now.commit))
		ref_release(&contended->now);
	if (rc < 0)
		return rc;
	ref_release(expected);
	*expected = next;
	return 0;
}

int ref_move(struct object_store *store, struct ref *expected, const struct pointer *commit,
             const struct ref_author *author, struct message *message)
{
	struct ref_contended contended = {0};
	int rc = ref_move_contended(store, expected, commit, author, &contended, message);

	ref_release(&contended.now);
	return rc;
}

/* As it is, but for a claim. */
static int copy_ref(const struct ref *ref, struct ref *ret_copy)
{
	CLEANUP(ref_release)
	struct ref copy = {.kind = ref->kind, .protection = ref->protection};

	snprintf(copy.name, sizeof(copy.name), "%s", ref->name);
	copy.moves = calloc(ref->move_count, sizeof(*copy.moves));
	if (!copy.moves)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < ref->move_count; i++) {
		int rc = copy_move(&ref->moves[i], &copy.moves[i]);

		copy.move_count = i + 1;
		if (rc < 0)
			return rc;
	}
	copy.commit = copy.moves[0].after;
	*ret_copy = ref_steal(&copy);
	return 0;
}

static int put_claim(struct ref *next, unsigned for_ms, const struct ref_author *author)
{
	next->claim_ms = for_ms;
	next->claim.before = next->claim.after = next->commit;
	next->claim.time_ms = clock_wall_ms();
	random_bytes(next->claim.nonce, REF_NONCE_BYTES);
	next->claim.who = one_line(author->who);
	if (!next->claim.who || asprintf(&next->claim.command, "claim %u", for_ms) < 0) {
		next->claim.command = NULL;
		return -ERR_NO_MEMORY;
	}
	return 0;
}

/* `next` in place of *expected, which it becomes; no move. Takes *next. */
static int replace(const struct attempt *attempt, struct ref *expected, struct message *message)
{
	int rc = ref_publish(attempt, message);

	if (pointer_is_none(&attempt->contended->now.commit))
		ref_release(&attempt->contended->now);
	if (rc < 0)
		return rc;
	ref_release(expected);
	*expected = ref_steal(attempt->next);
	return 0;
}

int ref_claim(struct object_store *store, struct ref *expected, unsigned for_ms,
              const struct ref_author *author, struct ref_contended *contended,
              struct message *message)
{
	CLEANUP(ref_release) struct ref next = {0};
	const struct etag etag = expected->etag;
	const struct attempt attempt = {store, CHANGE_CLAIM, &next, &etag, contended};
	int rc = check_move(store, expected, author, contended, message);

	if (rc < 0)
		return rc;
	rc = copy_ref(expected, &next);
	if (rc == 0)
		rc = put_claim(&next, for_ms, author);
	if (rc < 0)
		return fail(message, rc, "%s", error_text(rc));
	return replace(&attempt, expected, message);
}

int ref_protect(struct object_store *store, struct ref *expected,
                const struct protection *protection, struct message *message)
{
	CLEANUP(ref_release) struct ref next = {0};
	const struct etag etag = expected->etag;
	struct ref_contended contended = {0};
	const struct attempt attempt = {store, CHANGE_PROTECTION, &next, &etag, &contended};

	if (expected->kind == REF_TAG)
		return fail(message, -ERR_REFUSED, "tag '%s' needs no protection: tags never move",
		            expected->name);
	if (pointer_is_none(&expected->moves[0].after) && protection_any(protection))
		return fail(message, -ERR_REFUSED,
		            "branch '%s' is deleted: its protection can only be lifted",
		            expected->name);
	int rc = copy_ref(expected, &next);
	if (rc < 0)
		return fail(message, rc, "%s", error_text(rc));
	next.protection = *protection;
	rc = replace(&attempt, expected, message);
	ref_release(&contended.now);
	return rc;
}

int ref_delete(struct object_store *store, enum ref_kind kind, const char *name,
               const struct ref_author *author, struct message *message)
{
	for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
		CLEANUP(ref_release) struct ref now = {0};
		CLEANUP(ref_release) struct ref tombstone = {0};
		int rc = read_to_remove(store, kind, name, attempt == 0, author, &now, message);

		if (rc < 0)
			return rc;
		rc = advance(store, &now, &pointer_none, author, &tombstone, message);
		if (rc != -ERR_MOVED)
			return rc;
	}
	return gave_up(kind, name, message);
}

int ref_restore(struct object_store *store, enum ref_kind kind, const char *name,
                const struct ref_author *author, struct message *message)
{
	CLEANUP(ref_release) struct ref now = {0};
	CLEANUP(ref_release) struct ref restored = {0};
	int rc = ref_name_check(name, message);

	if (rc == 0)
		rc = ref_load(store, kind, name, &now, message);
	if (rc == -ERR_NOT_FOUND)
		return fail(message, rc, "no deleted %s '%s' is kept", ref_kind_word(kind), name);
	if (rc < 0)
		return rc;
	if (!pointer_is_none(&now.commit))
		return exists_already(kind, name, message);
	if (pointer_is_none(&now.moves[0].before))
		return fail(message, -ERR_NOT_FOUND, "the deleted %s '%s' stood nowhere",
		            ref_kind_word(kind), name);
	rc = protection_check_name(&now.protection, name, rights_of(author), message);
	if (rc < 0)
		return rc;
	rc = advance(store, &now, &now.moves[0].before, author, &restored, message);
	return rc == -ERR_MOVED ? exists_already(kind, name, message) : rc;
}

/* -- renaming -- */

/* Who renames, at each step: the move that makes the new name has the nonce he brought, the one
 * that ends the old name its complement, others have their own. */
struct renamer {
	struct ref_author makes, ends, author;
	uint8_t complement[REF_NONCE_BYTES];
};

static void nonce_complement(const uint8_t nonce[REF_NONCE_BYTES],
                             uint8_t ret_complement[REF_NONCE_BYTES])
{
	for (size_t i = 0; i < REF_NONCE_BYTES; i++)
		ret_complement[i] = (uint8_t)~nonce[i];
}

static void renamer_init(struct renamer *renamer, const struct ref_author *author)
{
	const struct ref_author nobody = {0};

	renamer->author = renamer->makes = renamer->ends = author ? *author : nobody;
	renamer->author.nonce = NULL;
	if (renamer->makes.nonce) {
		nonce_complement(renamer->makes.nonce, renamer->complement);
		renamer->ends.nonce = renamer->complement;
	}
}

/* `from` moved after `created` was made of it: bring `created` along. */
static int catch_up(struct object_store *store, struct ref *created, const struct ref *from,
                    const struct ref_author *author, struct message *message)
{
	struct ref next = {0};
	int rc = advance(store, created, &from->commit, author, &next, message);

	if (rc == -ERR_MOVED)
		return fail(message, rc,
		            "%s '%s' and '%s' were both moved by others during the rename; both "
		            "are left as they are",
		            ref_kind_word(from->kind), from->name, created->name);
	if (rc < 0)
		return rc;
	ref_release(created);
	*created = next;
	return 0;
}

/* Nothing that was sent to delete it, and may still be on its way, can find it any more. */
static int fence(struct object_store *store, struct ref *old, const struct ref_author *author)
{
	struct ref_contended contended = {0};
	int rc = ref_claim(store, old, 1, author, &contended, NULL);

	ref_release(&contended.now);
	return rc;
}

/* The old name stays: then the new one goes again, once nothing can take the old one as well.
 * Deleted by somebody else is fine. */
static int rename_end(struct object_store *store, struct ref *old, const struct ref *created,
                      const struct ref_author *author, int error, struct message *message)
{
	struct ref next = {0};

	if (error == 0 || error == -ERR_NOT_FOUND)
		return 0;
	int rc = error == -ERR_REFUSED ? 0 : fence(store, old, author);
	if (rc == 0)
		rc = advance(store, created, &pointer_none, author, &next, NULL);
	ref_release(&next);
	if (rc == 0 || !message)
		return error;
	const struct message said = *message;
	return fail(message, error, "%s; %s '%s' has been made already and is left, delete either",
	            said.text, ref_kind_word(created->kind), created->name);
}

int ref_rename(struct object_store *store, enum ref_kind kind, const char *from, const char *to,
               const struct ref_author *author, struct message *message)
{
	CLEANUP(ref_release) struct ref old = {0};
	CLEANUP(ref_release) struct ref created = {0};
	struct renamer by;
	int rc = ref_name_check(to, message);

	renamer_init(&by, author);
	if (rc == 0)
		rc = read_to_remove(store, kind, from, true, author, &old, message);
	if (rc < 0)
		return rc;
	if (strcmp(from, to) == 0)
		return exists_already(kind, to, message);
	rc = create_at(store, kind, to, &old, &old.commit, &by.makes, &created, message);
	if (rc < 0)
		return rc;
	/* A crash here leaves both names, which loses nothing. */
	for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
		struct ref next = {0};

		rc = advance(store, &old, &pointer_none, &by.ends, &next, message);
		ref_release(&next);
		if (rc != -ERR_MOVED)
			return rename_end(store, &old, &created, &by.author, rc, message);
		/* What was known of it was out of date; it may just have been protected. */
		rc = read_to_remove(store, kind, from, false, &by.author, &next, message);
		if (rc < 0)
			return rename_end(store, &old, &created, &by.author, rc, message);
		ref_release(&old);
		old = next;
		rc = catch_up(store, &created, &old, &by.author, message);
		if (rc < 0)
			return rc;
	}
	return gave_up(kind, from, message);
}

/* Tombstones, too; with no moves when there is nothing. */
static int load_any(struct object_store *store, enum ref_kind kind, const char *name,
                    struct ref *ret_ref, struct message *message)
{
	struct message said = {0};
	int rc = ref_load(store, kind, name, ret_ref, &said);

	if (rc == 0 || rc == -ERR_NOT_FOUND)
		return 0;
	return fail(message, rc, "%s", said.text);
}

int ref_was_renamed(struct object_store *store, enum ref_kind kind, const char *from,
                    const char *to, const uint8_t nonce[REF_NONCE_BYTES], bool *ret_renamed,
                    struct message *message)
{
	CLEANUP(ref_release) struct ref old = {0};
	CLEANUP(ref_release) struct ref new = {0};
	uint8_t complement[REF_NONCE_BYTES];
	int rc = load_any(store, kind, from, &old, message);

	if (rc < 0)
		return rc;
	nonce_complement(nonce, complement);
	bool ended = has_nonce(&old, complement);
	if (!ended && pointer_is_none(&old.commit)) {
		/* Somebody else ended it, or it is no longer known who did. */
		rc = load_any(store, kind, to, &new, message);
		if (rc < 0)
			return rc;
		ended = has_nonce(&new, nonce);
	}
	*ret_renamed = ended;
	return 0;
}
