/*
 * commit — one state of the whole lake with its history: canonical record, immutable.
 *
 * Logical part (hashed): root tree id and root attributes, parents' ids, generation, author,
 * time, message, meta sorted by key. Places part: where the root and the parents lie.
 * Format: refs/README.md, "Commits". Threads: any.
 */
#ifndef REFS_COMMIT_H
#define REFS_COMMIT_H

#include "store/tree.h"

#define COMMIT_PARENTS_MAX 16
#define COMMIT_MESSAGE_MAX (64u << 10)
#define COMMIT_META_MAX 256
#define COMMIT_AUTHOR_MAX 255
#define META_KEY_MAX 128
#define META_VALUE_MAX 4096

struct meta_pair {
	const char *key;   /* [A-Za-z0-9_.-]{1,128} */
	const char *value; /* at most 4096 bytes */
};
struct commit {
	struct pointer self; /* filled by commit_read and commit_write */
	/* This record is a copy of the one there (refs/commit_copies.h); raw 0: it is none. */
	struct place copied_from;
	struct pointer tree;    /* root directory; pointer_none: empty */
	struct attributes root; /* the root directory's own mode, owner, time */
	struct pointer *parents;
	size_t parent_count;
	uint64_t generation; /* 1 + the largest of the parents'; 1 without parents */
	const char *author;
	int64_t time_ms; /* UTC */
	const char *message;
	struct meta_pair *meta; /* sorted by key */
	size_t meta_count;
};

/* Reads and verifies. One allocation, freed with free(). */
int commit_read(struct odb *odb, const struct pointer *pointer, struct commit **ret_commit,
                struct message *message);
/* Checks limits, sorts meta, computes the generation (reads the parents), adds the record to the
 * packer, and copies of ancestors' with it: the places of the parents may not be those given.
 * `self`, `copied_from` and `generation` of the argument are ignored; `message` may be NULL
 * (empty). -ERR_INVALID and -ERR_TOO_LARGE name the field at fault; no string may hold a NUL, no
 * author a control character; the root must be a directory, parents and meta keys unique. */
int commit_write(struct odb *odb, struct packer *packer, const struct commit *commit,
                 struct pointer *ret_pointer, struct message *message);
/* For fuzzing and fsck: decode bytes of a record. Only the canonical encoding is accepted, so
 * encoding the result gives the same bytes. -ERR_CORRUPT, -ERR_VERSION. */
int commit_decode(const void *logical, size_t logical_length, const void *places,
                  size_t places_length, struct commit **ret_commit);
/* The inverse; `commit` must be within the limits and its meta sorted. */
int commit_encode(const struct commit *commit, struct buffer *logical, struct buffer *places);

#endif
