/*
 * service — tells the service manager that started this process (systemd) how it is doing.
 *
 * Threads: service_begin in main before any; then any.
 */
#ifndef TOOLS_SERVICE_H
#define TOOLS_SERVICE_H

/* Takes $NOTIFY_SOCKET out of the environment, so that no program run from here speaks for us. */
void service_begin(void);

/* Lines of NAME=value, as sd_notify(3) has them. Nothing without a manager; what cannot be told is
 * lost: a manager that is gone does not matter to who is served. */
void service_tell(const char *lines);

#endif
