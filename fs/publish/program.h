/*
 * program — run a program as a user, with a time limit, its output caught.
 *
 * Holds:      nothing between calls: no descriptor, no zombie, no thread.
 * Never:      runs anything with more rights than `uid` has; passes a descriptor of ours on.
 * The program: a session of its own, no terminal, standard input /dev/null, standard output and
 * error one pipe, umask 022, all signals at their defaults, no other descriptor. It enters
 *             `directory` with the user's rights. What it leaves running in its session's group is
 *             killed when it ends; what made a session of its own lives on and is not waited for.
 * Threads:    any, several at once. The caller holds no lock that the mount needs: the program
 *             may read the mount. SIGCHLD must not be ignored: where it was inherited as ignored,
 *             the first call makes it default.
 * Not PR_SET_NO_NEW_PRIVS: the program may do what its user may do from a shell, sudo included; it
 *             gets nothing from us that such a program could turn into rights.
 */
#ifndef FS_PROGRAM_H
#define FS_PROGRAM_H

#include "store/base.h"

#define PROGRAM_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct program {
	const char *const *argv;        /* argv[0]: its path; NULL at the end */
	const char *const *environment; /* "K=V", complete; NULL at the end */
	const char *directory;
	uid_t uid;
	gid_t gid;         /* and every group the user is in */
	int timeout_ms;    /* from 1; then its group gets SIGTERM, 2 s later SIGKILL */
	size_t output_max; /* more than that: the beginning and the end are kept */
	/* Looked at some times a second; true: killed like at the time limit. May be NULL. */
	bool (*cancelled)(void *context);
	void *context;
};
struct program_result {
	int exit_code; /* -1: a signal ended it */
	int signal;    /* 0: it ended by itself */
	bool timed_out;
	bool output_cut;      /* the place is marked in the output */
	struct buffer output; /* any bytes; a NUL that is not counted follows */
	int64_t took_ms;
};
void program_result_release(struct program_result *result); /* accepts zeroed */

/* Blocks until it ended. 0 whatever came of it. When it could not be run at all: -ERR_REFUSED (only
 * root can run as others), -ERR_NOT_FOUND, or what execve or entering the directory said, with a
 * message that names the program. -ERR_INTERRUPTED: cancelled. */
int program_run(const struct program *program, struct program_result *ret_result,
                struct message *message);

/* The user's variables for `environment`: PATH, HOME, USER, LANG, and then `count` more of the
 * form K=V (copied). Allocated in one piece: free(). */
int program_environment(uid_t uid, const char *const *more, size_t count, char ***ret_environment);

#endif
