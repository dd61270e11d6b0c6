/*
 * mount.lake — what mount(8) runs for `mount -t lake DIR MOUNTPOINT` and for /etc/fstab.
 *
 * mount(8) calls it as: mount.lake SOURCE MOUNTPOINT [-sfnv] [-N namespace] [-o options] [-t type].
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Options that mount(8) itself or systemd means, and that change nothing here. */
static int is_ignored(const char *option)
{
	static const char *const ignored[] = {"rw",      "defaults", "auto",    "noauto", "nofail",
	                                      "_netdev", "user",     "noatime", "nodev",  "nosuid"};
	for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
		if (strcmp(option, ignored[i]) == 0)
			return 1;
	return strncmp(option, "x-", 2) == 0;
}

/* 0, or 1 for an option that is not ours. */
static int parse_options(char *options, int *ret_no_passthrough)
{
	for (char *option; (option = strsep(&options, ","));) {
		if (strcmp(option, "no-passthrough") == 0) {
			*ret_no_passthrough = 1;
		} else if (option[0] && !is_ignored(option)) {
			fprintf(stderr, "mount.lake: no option '%s'\n", option);
			return 1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	int no_passthrough = 0, pretend = 0, option;
	if (argc < 3) {
		fprintf(stderr, "usage: mount.lake LAKE_DIR MOUNTPOINT [-o no-passthrough]\n");
		return 1;
	}
	char *source = argv[1], *mountpoint = argv[2];
	optind = 3;
	while ((option = getopt(argc, argv, "sfnvN:o:t:")) != -1) {
		if (option == '?' || (option == 'o' && parse_options(optarg, &no_passthrough)))
			return 1;
		pretend |= option == 'f';
	}
	if (pretend)
		return 0;
	execlp("lakectl", "lakectl", "-q", "--lake", source, "mount", mountpoint,
	       no_passthrough ? "--no-passthrough" : (char *)NULL, (char *)NULL);
	perror("mount.lake: cannot run lakectl");
	return 1;
}
