/*
 * protection — what a branch asks of those who move it.
 *
 * It lies in the branch's own body (refs/ref.h): every move is a compare-and-swap of that body, so
 * who has not heard of a protection yet loses, reads the body and hears of it. It binds every host.
 * Decides only; reads and writes nothing. Threads: any.
 */
#ifndef REFS_PROTECTION_H
#define REFS_PROTECTION_H

#include "store/base.h"
#include "store/error.h"

#define PUBLISHERS_MAX 64 /* bytes of a group's name */

/* Others in a body are refused (-ERR_VERSION): they may forbid what this version would do. */
enum { PROTECT_DIRECT_WRITES = 1, PROTECT_AUDITS = 2 };
#define PROTECT_ALL (PROTECT_DIRECT_WRITES | PROTECT_AUDITS)

struct protection {
	unsigned flags;
	char publishers[PUBLISHERS_MAX + 1]; /* a group of the host's; empty: anybody */
	struct id rules;                     /* object rules/<hex>; zero: none */
};
bool protection_any(const struct protection *protection);   /* rules alone count, */
bool protection_binds(const struct protection *protection); /* but forbid nothing */
bool protection_equal(const struct protection *a, const struct protection *b);
/* Of working trees: nobody can commit what is written there. */
bool protection_read_only(const struct protection *protection);

/* What is to be said for a move. */
struct ref_rights {
	bool merged;     /* to a prepared merge: no direct write */
	bool audited;    /* exactly this commit passed every audit of `rules` */
	struct id rules; /* zero: none */
	/* Does who asks for it belong to the group? NULL: no. */
	bool (*member)(void *context, const char *group);
	void *context;
};
/* 0, or -ERR_REFUSED and what to do about it. `rights` NULL: none. `rules` without PROTECT_AUDITS
 * do not bind here. */
int protection_check(const struct protection *protection, const char *branch,
                     const struct ref_rights *rights, struct message *message);
/* The same for what ends or begins the life of a name: deleting, renaming, restoring, creating
 * again. These are never a merge, so flags refuse them whatever the rights. */
int protection_check_name(const struct protection *protection, const char *branch,
                          const struct ref_rights *rights, struct message *message);

#endif
