/* Arbitrary bytes as a file in a lake's webhooks/: not one of ours, or a delivery that is written
 * again as something that says the same. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/publish/webhook_spool.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char directory[64], path[128];
static const char name[] = "1700000000000-0123456789abcdef";

static void remove_directory(void)
{
	unlink(path);
	rmdir(directory);
}

static void check(bool holds)
{
	if (!holds)
		abort();
}

static bool same(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CLEANUP(spooled_release) struct spooled first = {0};
	CLEANUP(spooled_release) struct spooled second = {0};
	if (!directory[0]) {
		snprintf(directory, sizeof directory, "/dev/shm/fuzz_spool.%d", (int)getpid());
		snprintf(path, sizeof path, "%s/%s", directory, name);
		check(mkdir(directory, 0700) == 0);
		atexit(remove_directory);
	}
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	check(fd >= 0 && write_full(fd, data, size, 0) == 0);
	close(fd);
	if (spool_read(directory, name, &first) < 0) {
		check(!first.url && !first.body);
		return 0;
	}
	check(first.url && first.event && first.body && same(first.name, name));
	check(spool_remove(directory, name) == 0 && spool_write(directory, &first) == 0);
	check(spool_read(directory, name, &second) == 0);
	check(same(first.url, second.url) && same(first.body, second.body) &&
	      same(first.event, second.event) && same(first.secret_file, second.secret_file));
	return 0;
}
