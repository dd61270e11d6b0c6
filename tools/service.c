/*
 * service — hides systemd's protocol: one datagram to the socket that $NOTIFY_SOCKET names
 * (sd_notify(3), "Standalone implementations").
 */
#include "tools/service.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_un manager;
static socklen_t manager_length; /* 0: none */

void service_begin(void)
{
	const char *path = getenv("NOTIFY_SOCKET");
	size_t length = path ? strlen(path) : 0;
	if (length > 1 && length < sizeof(manager.sun_path) && (path[0] == '/' || path[0] == '@')) {
		manager.sun_family = AF_UNIX;
		memcpy(manager.sun_path, path, length);
		if (path[0] == '@')
			manager.sun_path[0] = '\0'; /* an abstract one: its name has no end */
		manager_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
	}
	unsetenv("NOTIFY_SOCKET");
}

void service_tell(const char *lines)
{
	if (manager_length == 0)
		return;
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	(void)!sendto(fd, lines, strlen(lines), MSG_NOSIGNAL | MSG_DONTWAIT,
	              (const struct sockaddr *)&manager, manager_length);
	close(fd);
}
