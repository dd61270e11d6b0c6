/*
 * fsx — random operations on one file, compared with a copy in memory after each of them.
 *
 *   fsx [--seed N] [--operations N] [--size-max BYTES] [--length-max BYTES] [--no-mmap]
 *       [--every N --closed COMMAND --open COMMAND] FILE
 *
 * Every N operations a shell command runs, in turn with the file closed and open, and must end with
 * 0: what commits the file changes where its bytes lie, and must not change them.
 * The same seed repeats a run. On a difference: where, and the last operations; status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define REMEMBERED 64
#define LINE_BYTES 160

static struct {
	uint64_t seed, dice;
	size_t size_max, length_max;
	long operations, every;
	const char *path, *closed_command, *open_command;
	bool maps;

	char *other_path; /* where renaming moves it */
	int fd;
	uint8_t *model, *scratch;
	size_t size;
	long number;
	char log[REMEMBERED][LINE_BYTES]; /* of operation N at N % REMEMBERED */
} test = {
        .operations = 10000,
        .size_max = 256 << 10,
        .length_max = 64 << 10,
        .maps = true,
        .fd = -1,
};

static uint64_t roll(void)
{
	/* SplitMix64, https://prng.di.unimi.it/splitmix64.c */
	uint64_t z = test.dice += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static size_t below(size_t limit)
{
	return limit ? roll() % limit : 0;
}

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(test.log[test.number % REMEMBERED], LINE_BYTES, format, arguments);
	va_end(arguments);
}

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
	int problem = errno;
	va_list arguments;

	printf("fsx: seed %lu, operation %ld: ", test.seed, test.number);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf(" (errno %d, %s)\nthe last operations:\n", problem, strerror(problem));
	for (long n = test.number < REMEMBERED ? 1 : test.number - REMEMBERED + 1; n <= test.number;
	     n++)
		printf("  %ld %s\n", n, test.log[n % REMEMBERED]);
	exit(1);
}

static void need(bool good, const char *what)
{
	if (!good)
		fail("%s failed", what);
}

/* [offset, offset+length) of the file is in `bytes`. */
static void compare(const uint8_t *bytes, size_t offset, size_t length, const char *what)
{
	size_t first, wrong = 0, last = 0;

	if (!memcmp(bytes, test.model + offset, length))
		return;
	for (first = 0; bytes[first] == test.model[offset + first]; first++)
		;
	for (size_t i = first; i < length; i++) {
		if (bytes[i] != test.model[offset + i]) {
			wrong++;
			last = i;
		}
	}
	errno = 0;
	fail("%s of [%#zx, %#zx), size %#zx: %zu bytes differ in [%#zx, %#zx], the first is %#x "
	     "and "
	     "should be %#x",
	     what, offset, offset + length, test.size, wrong, offset + first, offset + last,
	     bytes[first], test.model[offset + first]);
}

/* The model beyond its size is always zero, so growing it is only this. */
static void grow(size_t size)
{
	if (size > test.size)
		test.size = size;
}

static void shrink(size_t size)
{
	memset(test.model + size, 0, test.size - size);
	test.size = size;
}

static size_t dice_length(void)
{
	/* Small ones hit the edges of pages and granules more often. */
	size_t limit = roll() % 3 ? test.length_max : 5000;

	return 1 + below(limit < test.length_max ? limit : test.length_max);
}

static void dice_range(size_t end, size_t *ret_offset, size_t *ret_length)
{
	size_t length = dice_length();

	if (length > end)
		length = end;
	*ret_offset = below(end - length + 1);
	if (roll() % 4 == 0)
		*ret_offset &= ~(size_t)4095;
	*ret_length = length;
}

static void dice_bytes(uint8_t *bytes, size_t length)
{
	if (roll() % 16 == 0) {
		memset(bytes, 0, length);
		return;
	}
	for (size_t i = 0; i < length; i += 8) {
		uint64_t word = roll();

		memcpy(bytes + i, &word, length - i < 8 ? length - i : 8);
	}
}

static void write_at(int fd, size_t offset, size_t length)
{
	dice_bytes(test.model + offset, length);
	grow(offset + length);
	for (size_t done = 0; done < length;) {
		ssize_t wrote = pwrite(fd, test.model + offset + done, length - done,
		                       (off_t)(offset + done));

		need(wrote > 0, "pwrite");
		done += (size_t)wrote;
	}
}

static void check_size(int fd, const char *what)
{
	struct stat found;

	need(!fstat(fd, &found), "fstat");
	if ((size_t)found.st_size != test.size)
		fail("%s: size is %#zx and should be %#zx", what, (size_t)found.st_size, test.size);
}

/* All of it, through a descriptor of its own. */
static void check_all(const char *what)
{
	int fd = open(test.path, O_RDONLY | O_CLOEXEC);

	need(fd >= 0, "open for reading");
	check_size(fd, what);
	for (size_t done = 0; done < test.size;) {
		ssize_t got = pread(fd, test.scratch, test.length_max, (off_t)done);

		need(got > 0, "pread");
		compare(test.scratch, done, (size_t)got, what);
		done += (size_t)got;
	}
	close(fd);
}

static void open_file(void)
{
	test.fd = open(test.path, O_RDWR | O_CLOEXEC);
	need(test.fd >= 0, "open");
}

/* -- operations -- */

static void do_read(void)
{
	size_t offset, length, wanted;
	ssize_t got;

	dice_range(test.size_max, &offset, &length);
	note("read [%#zx, %#zx)", offset, offset + length);
	wanted = offset >= test.size           ? 0
	         : test.size - offset < length ? test.size - offset
	                                       : length;
	got = pread(test.fd, test.scratch, length, (off_t)offset);
	if (got < 0 || (size_t)got != wanted)
		fail("read gave %zd bytes and should have given %zu", got, wanted);
	compare(test.scratch, offset, wanted, "read");
}

static void do_write(void)
{
	size_t offset, length;

	dice_range(test.size_max, &offset, &length);
	note("write [%#zx, %#zx), size %#zx", offset, offset + length, test.size);
	write_at(test.fd, offset, length);
}

static void do_append(void)
{
	size_t length = dice_length(), done;
	int fd;

	if (length > test.size_max - test.size)
		length = test.size_max - test.size;
	note("append [%#zx, %#zx)", test.size, test.size + length);
	fd = open(test.path, O_WRONLY | O_APPEND | O_CLOEXEC);
	need(fd >= 0, "open to append");
	dice_bytes(test.model + test.size, length);
	for (done = 0; done < length;) {
		ssize_t wrote = write(fd, test.model + test.size + done, length - done);

		need(wrote > 0, "write");
		done += (size_t)wrote;
	}
	grow(test.size + length);
	close(fd);
}

static void do_map_read(void)
{
	size_t offset, length, page, end;
	uint8_t *map;

	if (!test.size)
		return;
	dice_range(test.size, &offset, &length);
	note("map to read [%#zx, %#zx)", offset, offset + length);
	page = offset & ~(size_t)4095;
	end = (offset + length + 4095) & ~(size_t)4095;
	map = mmap(NULL, end - page, PROT_READ, roll() % 4 ? MAP_SHARED : MAP_PRIVATE, test.fd,
	           (off_t)page);
	need(map != MAP_FAILED, "mmap");
	/* What lies beyond the file's end in its last page is zero, as in the model. */
	compare(map, page, end - page, "mapped read");
	munmap(map, end - page);
}

static void do_map_write(void)
{
	size_t offset, length, page, end;
	uint8_t *map;
	bool sync = roll() % 2;

	dice_range(test.size_max, &offset, &length);
	note("map to write [%#zx, %#zx)%s, size %#zx", offset, offset + length,
	     sync ? " and msync" : "", test.size);
	if (offset + length > test.size) {
		need(!ftruncate(test.fd, (off_t)(offset + length)), "ftruncate");
		grow(offset + length);
	}
	page = offset & ~(size_t)4095;
	end = offset + length;
	map = mmap(NULL, end - page, PROT_READ | PROT_WRITE, MAP_SHARED, test.fd, (off_t)page);
	need(map != MAP_FAILED, "mmap");
	dice_bytes(test.model + offset, length);
	memcpy(map + (offset - page), test.model + offset, length);
	if (sync)
		need(!msync(map, end - page, MS_SYNC), "msync");
	munmap(map, end - page);
}

static void do_truncate(void)
{
	size_t size = roll() % 8 ? below(test.size_max + 1) : 0;
	bool by_path = roll() % 2;

	note("%s from %#zx to %#zx", by_path ? "truncate" : "ftruncate", test.size, size);
	need(!(by_path ? truncate(test.path, (off_t)size) : ftruncate(test.fd, (off_t)size)),
	     "truncate");
	if (size < test.size)
		shrink(size);
	grow(size);
}

static void do_fallocate(void)
{
	static const struct {
		int mode;
		const char *name;
		bool zeros, grows;
	} modes[] = {
	        {0, "allocate", false, true},
	        {FALLOC_FL_KEEP_SIZE, "allocate, keep size", false, false},
	        {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, "punch hole", true, false},
	        {FALLOC_FL_ZERO_RANGE, "zero range", true, true},
	        {FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, "zero range, keep size", true, false},
	};
	size_t kind = below(sizeof(modes) / sizeof(*modes)), offset, length;

	dice_range(test.size_max, &offset, &length);
	note("%s [%#zx, %#zx), size %#zx", modes[kind].name, offset, offset + length, test.size);
	need(!fallocate(test.fd, modes[kind].mode, (off_t)offset, (off_t)length), "fallocate");
	if (modes[kind].zeros)
		memset(test.model + offset, 0, length);
	if (modes[kind].grows)
		grow(offset + length);
}

static void do_copy_range(void)
{
	size_t from, to, length;

	if (test.size < 2)
		return;
	dice_range(test.size / 2, &from, &length);
	to = from + length + below(test.size_max - from - 2 * length + 1);
	if (to + length <= test.size && roll() % 2) {
		size_t swap = from;

		from = to;
		to = swap;
	}
	note("copy range [%#zx, %#zx) to %#zx, size %#zx", from, from + length, to, test.size);
	memmove(test.model + to, test.model + from, length);
	grow(to + length);
	for (size_t done = 0; done < length;) {
		off_t in = (off_t)(from + done), out = (off_t)(to + done);
		ssize_t copied = copy_file_range(test.fd, &in, test.fd, &out, length - done, 0);

		need(copied > 0, "copy_file_range");
		done += (size_t)copied;
	}
}

/* What is called a hole must read as zeros. */
static void do_holes(void)
{
	off_t end = (off_t)test.size, data, hole = 0;

	note("look for holes, size %#zx", test.size);
	while (hole < end) {
		data = lseek(test.fd, hole, SEEK_DATA);
		need(data >= 0 || errno == ENXIO, "lseek");
		if (data < 0)
			data = end;
		for (off_t i = hole; i < data; i++) {
			if (test.model[i])
				fail("a hole at %#lx where %#lx has data", hole, i);
		}
		if (data == end)
			break;
		hole = lseek(test.fd, data, SEEK_HOLE);
		need(hole > data && hole <= end, "lseek to a hole");
	}
}

static void do_sync(void)
{
	switch (roll() % 3) {
	case 0:
		note("fsync");
		need(!fsync(test.fd), "fsync");
		break;
	case 1:
		note("fdatasync");
		need(!fdatasync(test.fd), "fdatasync");
		break;
	default:
		note("advise that nothing is needed");
		need(!posix_fadvise(test.fd, 0, 0, POSIX_FADV_DONTNEED), "fadvise");
	}
}

static void do_reopen(void)
{
	note("reopen");
	need(!close(test.fd), "close");
	open_file();
}

static void do_rename(void)
{
	char *swap = test.other_path;

	note("rename");
	need(!rename(test.path, test.other_path), "rename");
	test.other_path = (char *)test.path;
	test.path = swap;
}

static void do_check(void)
{
	note("read everything");
	check_all("reading everything");
}

static const struct {
	void (*run)(void);
	unsigned weight;
	bool maps;
} OPERATIONS[] = {
        {do_read, 20, false},      {do_write, 20, false},     {do_append, 4, false},
        {do_map_read, 12, true},   {do_map_write, 12, true},  {do_truncate, 8, false},
        {do_fallocate, 10, false}, {do_copy_range, 6, false}, {do_holes, 2, false},
        {do_sync, 1, false},       {do_reopen, 2, false},     {do_rename, 1, false},
        {do_check, 2, false},
};

static void operate(void)
{
	size_t count = sizeof(OPERATIONS) / sizeof(*OPERATIONS), sum = 0, dice, i;

	for (i = 0; i < count; i++)
		sum += OPERATIONS[i].maps && !test.maps ? 0 : OPERATIONS[i].weight;
	dice = below(sum);
	for (i = 0;; i++) {
		size_t weight = OPERATIONS[i].maps && !test.maps ? 0 : OPERATIONS[i].weight;

		if (dice < weight)
			break;
		dice -= weight;
	}
	note("nothing");
	OPERATIONS[i].run();
}

static void run_command(bool closed)
{
	const char *command = closed ? test.closed_command : test.open_command;
	int status;

	note("%s: %s", closed ? "closed" : "open", command);
	if (closed)
		need(!close(test.fd), "close");
	status = system(command);
	if (status)
		fail("'%s' ended with status %d", command, status);
	if (closed)
		open_file();
	check_all("after the command");
}

static void read_options(int argc, char **argv)
{
	static const struct option options[] = {
	        {"seed", required_argument, NULL, 's'},
	        {"operations", required_argument, NULL, 'n'},
	        {"size-max", required_argument, NULL, 'm'},
	        {"length-max", required_argument, NULL, 'l'},
	        {"every", required_argument, NULL, 'e'},
	        {"closed", required_argument, NULL, 'c'},
	        {"open", required_argument, NULL, 'o'},
	        {"no-mmap", no_argument, NULL, 'M'},
	        {NULL, 0, NULL, 0},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 's':
			test.seed = strtoull(optarg, NULL, 0);
			break;
		case 'n':
			test.operations = atol(optarg);
			break;
		case 'm':
			test.size_max = strtoul(optarg, NULL, 0);
			break;
		case 'l':
			test.length_max = strtoul(optarg, NULL, 0);
			break;
		case 'e':
			test.every = atol(optarg);
			break;
		case 'c':
			test.closed_command = optarg;
			break;
		case 'o':
			test.open_command = optarg;
			break;
		case 'M':
			test.maps = false;
			break;
		default:
			exit(2);
		}
	}
	if (optind != argc - 1 || !test.length_max || test.length_max > test.size_max ||
	    (test.every && !(test.closed_command && test.open_command))) {
		fprintf(stderr, "usage: fsx [OPTION]... FILE\n");
		exit(2);
	}
	test.path = argv[optind];
}

int main(int argc, char **argv)
{
	struct timespec now;
	bool closed = true;

	clock_gettime(CLOCK_REALTIME, &now);
	test.seed = (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 32;
	read_options(argc, argv);
	test.dice = test.seed;
	/* A page more: mapped reads look at the whole last page. */
	test.model = calloc(1, test.size_max + 4096);
	test.scratch = malloc(test.length_max);
	need(test.model && test.scratch && asprintf(&test.other_path, "%s.moved", test.path) > 0,
	     "malloc");
	test.fd = open(test.path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	need(test.fd >= 0, "open");
	for (test.number = 1; test.number <= test.operations; test.number++) {
		if (test.every && test.number % test.every == 0) {
			run_command(closed);
			closed = !closed;
		} else {
			operate();
		}
		check_size(test.fd, "after the operation");
	}
	check_all("at the end");
	printf("seed %lu: %ld operations, size %zu\n", test.seed, test.operations, test.size);
	return 0;
}
