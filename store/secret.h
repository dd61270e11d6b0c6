/*
 * secret — memory for credentials: left out of every dump of the process, wiped when it is freed.
 *
 * Three walls, as each has a gap: the process leaves no core file and its user's other processes
 * cannot look into it (secrets_guard); dumps that root makes nevertheless (gcore) leave these pages
 * out; what was copied into other memory for a moment is wiped after its use.
 *
 * Holds:      the pages, some of them for the next secret.
 * Never:      promises that root cannot read them: root can.
 * Threads:    any, but for secrets_adopt_environment; one lock inside, a leaf.
 */
#ifndef STORE_SECRET_H
#define STORE_SECRET_H

#include "store/base.h"

/* `size` zeroed bytes; NULL: no memory. At least a page each. */
void *secret_new(size_t size);
void secret_free(void *secret); /* wipes; accepts NULL */

/* Wipes what buffer_release() would leave. A buffer that grew has left copies behind: reserve
 * first. */
void buffer_release_secret(struct buffer *buffer);

/*
 * From now on the process leaves no core file, and only root's debugger may attach: PR_SET_DUMPABLE
 * (prctl(2)), which a child inherits until it runs another program. /proc/PID of an ordinary user's
 * process is root's from then on, /proc/self works. $LAKE_ALLOW_CORE, when set, forbids it.
 */
void secrets_guard(void);

/* First thing in main: moves secrets out of the initial stack, which dumps have and
 * /proc/PID/environ shows, so that getenv(3) and programs that are run see them still. Guards when
 * there were any. */
void secrets_adopt_environment(void);

#endif
