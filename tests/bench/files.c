/*
 * files — what the benchmark does to files, without an interpreter's cost. Each command prints the
 * seconds it took (or the figure it names) and nothing else.
 *
 *   make ROOT DIRECTORIES FILES BYTES THREADS SEED
 *                               ROOT/dNNNN/fNNNNNN, incompressible, each unique
 *   stat ROOT DIRECTORIES FILES stat(2) each
 *   fill FILE BYTES SEED        one incompressible file
 *   append FILE BYTES SEED
 *   read FILE BLOCK             from start to end
 *   readback ROOT DIRECTORIES FILES BYTES SEED
 *                               what `make` made; compared after the clock is stopped
 *   parquet FILE READS SEED     the footer, then READS column chunks: some columns of each row
 *                               group; seconds and bytes read
 *   pieces FILE READS SEED      large column chunks in pieces, at several places in turn; the same
 *   scatter FILE READS SEED     reads of such lengths anywhere; the same
 *   ranges FILE READS SEED      the ranges that `parquet` reads, and nothing is read
 *   list DIRECTORY              what `ls -l` asks the kernel for
 *   resident FILE               bytes of it in the page cache
 *   replace DIRECTORY COUNT     median of: write, fsync, rename, fsync directory
 */
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* SplitMix64: every seed gives other bytes. */
static void random_fill(uint8_t *out, size_t length, uint64_t seed)
{
	for (size_t i = 0; i < length; i += 8) {
		uint64_t z = seed += 0x9e3779b97f4a7c15;
		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
		z = (z ^ z >> 27) * 0x94d049bb133111eb;
		z ^= z >> 31;
		memcpy(out + i, &z, length - i < 8 ? length - i : 8);
	}
}

static void write_whole(int fd, const uint8_t *bytes, size_t length, const char *path)
{
	while (length) {
		ssize_t wrote = write(fd, bytes, length);
		if (wrote <= 0)
			err(1, "write %s", path);
		bytes += wrote;
		length -= (size_t)wrote;
	}
}

/* -- many files -- */

struct job {
	const char *root;
	unsigned first, step, directories, files;
	size_t bytes;
	uint64_t seed;
};

static uint64_t file_seed(uint64_t seed, unsigned directory, unsigned file)
{
	return seed * 0x2545f4914f6cdd1d + ((uint64_t)directory << 32 | file) * 0x10001;
}

static void *make_some(void *argument)
{
	const struct job *job = argument;
	uint8_t *bytes = malloc(job->bytes + 8);
	char path[4096];
	for (unsigned d = job->first; bytes && d < job->directories; d += job->step) {
		snprintf(path, sizeof path, "%s/d%04u", job->root, d);
		if (mkdir(path, 0755) < 0)
			err(1, "mkdir %s", path);
		for (unsigned f = 0; f < job->files; f++) {
			snprintf(path, sizeof path, "%s/d%04u/f%06u", job->root, d, f);
			random_fill(bytes, job->bytes, file_seed(job->seed, d, f));
			int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
			if (fd < 0)
				err(1, "create %s", path);
			write_whole(fd, bytes, job->bytes, path);
			if (close(fd) < 0)
				err(1, "close %s", path);
		}
	}
	free(bytes);
	return NULL;
}

static void make_all(char **arguments)
{
	unsigned threads = (unsigned)atoi(arguments[4]);
	pthread_t ids[64];
	struct job jobs[64];
	for (unsigned i = 0; i < threads && i < 64; i++) {
		jobs[i] = (struct job){.root = arguments[0],
		                       .first = i,
		                       .step = threads,
		                       .directories = (unsigned)atoi(arguments[1]),
		                       .files = (unsigned)atoi(arguments[2]),
		                       .bytes = (size_t)atol(arguments[3]),
		                       .seed = strtoull(arguments[5], NULL, 10)};
		pthread_create(&ids[i], NULL, make_some, &jobs[i]);
	}
	for (unsigned i = 0; i < threads && i < 64; i++)
		pthread_join(ids[i], NULL);
}

static void stat_all(char **arguments)
{
	unsigned directories = (unsigned)atoi(arguments[1]), files = (unsigned)atoi(arguments[2]);
	char path[4096];
	struct stat status;
	for (unsigned d = 0; d < directories; d++)
		for (unsigned f = 0; f < files; f++) {
			snprintf(path, sizeof path, "%s/d%04u/f%06u", arguments[0], d, f);
			if (stat(path, &status) < 0)
				err(1, "stat %s", path);
		}
}

/* Every file is opened, read and closed; that the bytes are those of `make` is looked at
 * afterwards. */
static void read_back(char **arguments)
{
	unsigned directories = (unsigned)atoi(arguments[1]), files = (unsigned)atoi(arguments[2]);
	size_t bytes = (size_t)atol(arguments[3]);
	uint64_t seed = strtoull(arguments[4], NULL, 10);
	uint8_t *all = malloc((size_t)directories * files * bytes), *right = malloc(bytes + 8),
	        *at = all;
	char path[4096];
	if (!all || !right)
		err(1, "memory");
	memset(all, 0, (size_t)directories * files * bytes); /* page faults are not part of it */
	double start = now();
	for (unsigned d = 0; d < directories; d++)
		for (unsigned f = 0; f < files; f++, at += bytes) {
			snprintf(path, sizeof path, "%s/d%04u/f%06u", arguments[0], d, f);
			int fd = open(path, O_RDONLY);
			if (fd < 0 || read(fd, at, bytes) != (ssize_t)bytes)
				err(1, "read %s", path);
			close(fd);
		}
	printf("%.9f\n", now() - start);
	at = all;
	for (unsigned d = 0; d < directories; d++)
		for (unsigned f = 0; f < files; f++, at += bytes) {
			random_fill(right, bytes, file_seed(seed, d, f));
			if (memcmp(at, right, bytes) != 0)
				errx(1, "%s/d%04u/f%06u: other bytes", arguments[0], d, f);
		}
	exit(0);
}

static void list(char **arguments)
{
	DIR *directory = opendir(arguments[0]);
	struct dirent *entry;
	struct stat status;
	if (!directory)
		err(1, "open %s", arguments[0]);
	while ((entry = readdir(directory)))
		if (fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0)
			err(1, "stat %s", entry->d_name);
	closedir(directory);
}

/* -- one file -- */

static void add_bytes(const char *path, int flags, uint64_t bytes, uint64_t seed)
{
	size_t block = 1 << 20;
	uint8_t *buffer = malloc(block);
	int fd = open(path, O_WRONLY | flags, 0644);
	if (fd < 0 || !buffer)
		err(1, "open %s", path);
	for (uint64_t at = 0; at < bytes; at += block) {
		size_t length = bytes - at < block ? (size_t)(bytes - at) : block;
		random_fill(buffer, length, seed * 0x2545f4914f6cdd1d + (at + 1) * 0x10001);
		write_whole(fd, buffer, length, path);
	}
	if (close(fd) < 0)
		err(1, "close %s", path);
	free(buffer);
}

static void read_all(char **arguments)
{
	size_t block = (size_t)atol(arguments[1]);
	char *buffer = malloc(block);
	int fd = open(arguments[0], O_RDONLY);
	ssize_t got;
	if (fd < 0 || !buffer)
		err(1, "open %s", arguments[0]);
	while ((got = read(fd, buffer, block)) > 0)
		continue;
	if (got < 0)
		err(1, "read %s", arguments[0]);
	close(fd);
	free(buffer);
}

/* -- reads in one file that are not in order -- */

enum { LEAST = 64 << 10, MOST = 256 << 10 };
/* Of a file with large row groups, and of one with small ones, of which some columns are read. */
enum { ROW_GROUPS = 16, COLUMNS = 16, CURSORS = 4 };
enum { SMALL_ROW_GROUPS = 50, WANTED_COLUMNS = 4, JITTER = 16 << 10 };

static uint64_t draw(uint64_t *state, uint64_t below)
{
	uint8_t bytes[8];
	uint64_t value;
	random_fill(bytes, sizeof bytes, (*state)++ * 0x2545f4914f6cdd1d);
	memcpy(&value, bytes, sizeof value);
	return value % below;
}

/* A file of ROW_GROUPS equal row groups, in each the same COLUMNS column chunks one after the
 * other, the widest up to three times the narrowest. */
struct parquet {
	uint64_t group_bytes;
	uint64_t starts[COLUMNS + 1]; /* of each column's chunk, from the start of its row group */
	struct cursor {
		unsigned group, column;
		uint64_t at; /* in its column chunk */
	} cursors[CURSORS];
};

static void lay_out(struct parquet *parquet, uint64_t size, uint64_t *random)
{
	uint64_t weights[COLUMNS], sum = 0, before = 0;
	for (int i = 0; i < COLUMNS; i++)
		sum += weights[i] = 1000 + draw(random, 2001);
	parquet->group_bytes = size / ROW_GROUPS;
	for (int i = 0; i < COLUMNS; i++) {
		parquet->starts[i] = parquet->group_bytes * before / sum;
		before += weights[i];
	}
	parquet->starts[COLUMNS] = parquet->group_bytes;
	/* Each of the four threads of a scan has a column of its own and a quarter of the row
	 * groups. */
	for (unsigned i = 0; i < CURSORS; i++)
		parquet->cursors[i] =
		        (struct cursor){.group = i * (ROW_GROUPS / CURSORS),
		                        .column = i * (COLUMNS / CURSORS) +
		                                  (unsigned)draw(random, COLUMNS / CURSORS)};
}

/* The next piece of one cursor's column chunk; one time in sixteen the rest of the chunk is not
 * wanted. */
static uint64_t next_piece(struct parquet *parquet, uint64_t *random, size_t *ret_length)
{
	struct cursor *cursor = &parquet->cursors[draw(random, CURSORS)];
	uint64_t chunk = parquet->starts[cursor->column + 1] - parquet->starts[cursor->column];
	size_t length = LEAST + (size_t)draw(random, MOST - LEAST + 1);
	if (chunk - cursor->at < LEAST || draw(random, 16) == 0) {
		cursor->group = (cursor->group + 1) % ROW_GROUPS;
		cursor->at = 0;
	}
	if (length > chunk - cursor->at)
		length = (size_t)(chunk - cursor->at);
	uint64_t offset =
	        cursor->group * parquet->group_bytes + parquet->starts[cursor->column] + cursor->at;
	cursor->at += length;
	*ret_length = length;
	return offset;
}

/* Row groups of equal size; each wanted column has a chunk in each, at the same place and of the
 * same size but for a jitter, for no two row groups compress alike. */
struct scan {
	uint64_t group_bytes;
	uint64_t starts[WANTED_COLUMNS]; /* from the start of a row group */
	uint64_t lengths[WANTED_COLUMNS];
};

static void lay_out_scan(struct scan *scan, uint64_t size, uint64_t *random)
{
	scan->group_bytes = size / SMALL_ROW_GROUPS;
	uint64_t part = scan->group_bytes / WANTED_COLUMNS;
	if (part <= MOST + 2 * JITTER)
		errx(1, "the file is too small");
	/* Spread evenly from LEAST to MOST, in any order. */
	unsigned turn = (unsigned)draw(random, WANTED_COLUMNS);
	for (unsigned i = 0; i < WANTED_COLUMNS; i++) {
		uint64_t width = (i * 3 + turn) % WANTED_COLUMNS * 2 + 1;
		scan->lengths[i] = LEAST + (MOST - LEAST) * width / (2 * WANTED_COLUMNS);
		scan->starts[i] = part * i + JITTER + draw(random, part - MOST - 2 * JITTER);
	}
}

/* -JITTER to JITTER */
static uint64_t jittered(uint64_t value, uint64_t *random)
{
	return value + draw(random, 2 * JITTER + 1) - JITTER;
}

/* Column chunk `i`, in the order in which they lie in the file. */
static uint64_t next_chunk(const struct scan *scan, unsigned i, uint64_t *random,
                           size_t *ret_length)
{
	unsigned column = i % WANTED_COLUMNS;
	uint64_t length = jittered(scan->lengths[column], random);
	*ret_length = (size_t)(length < LEAST ? LEAST : length > MOST ? MOST : length);
	return i / WANTED_COLUMNS * scan->group_bytes + jittered(scan->starts[column], random);
}

enum order { SCAN, PIECES, SCATTERED };

static void read_pieces(char **arguments, enum order order, bool only_tell)
{
	unsigned reads = (unsigned)atoi(arguments[1]);
	uint64_t random = strtoull(arguments[2], NULL, 10) << 32, bytes = 0;
	static uint8_t buffer[MOST];
	struct parquet parquet = {};
	struct scan scan = {};
	struct stat status;
	double start = now();
	int fd = open(arguments[0], O_RDONLY);
	if (fd < 0 || fstat(fd, &status) < 0)
		err(1, "open %s", arguments[0]);
	if (order == SCAN)
		lay_out_scan(&scan, (uint64_t)status.st_size, &random);
	else
		lay_out(&parquet, (uint64_t)status.st_size, &random);
	/* All chunks of a scan are read, and the footer. */
	for (unsigned i = 0; i < reads + (order == SCAN); i++) {
		size_t length = LEAST;
		uint64_t offset = (uint64_t)status.st_size - LEAST; /* the footer comes first */
		if (order == SCATTERED) {
			length += (size_t)draw(&random, MOST - LEAST + 1);
			offset = draw(&random, (uint64_t)status.st_size - length);
		} else if (i > 0 && order == SCAN) {
			offset = next_chunk(&scan, i - 1, &random, &length);
		} else if (i > 0) {
			offset = next_piece(&parquet, &random, &length);
		}
		if (only_tell)
			printf("%llu %zu\n", (unsigned long long)offset, length);
		else if (pread(fd, buffer, length, (off_t)offset) != (ssize_t)length)
			err(1, "read %s", arguments[0]);
		bytes += length;
	}
	close(fd);
	if (!only_tell)
		printf("%.9f\n%llu\n", now() - start, (unsigned long long)bytes);
	exit(0);
}

static void resident(char **arguments)
{
	struct stat status;
	int fd = open(arguments[0], O_RDONLY);
	if (fd < 0 || fstat(fd, &status) < 0)
		err(1, "open %s", arguments[0]);
	size_t page = (size_t)sysconf(_SC_PAGESIZE), count = 0;
	size_t pages = ((size_t)status.st_size + page - 1) / page;
	void *map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	unsigned char *present = malloc(pages);
	if (map == MAP_FAILED || !present || mincore(map, (size_t)status.st_size, present) < 0)
		err(1, "mincore %s", arguments[0]);
	for (size_t i = 0; i < pages; i++)
		count += present[i] & 1;
	printf("%zu\n", count * page);
	exit(0);
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

/* The least a durable change of one small object costs. */
static void replace(char **arguments)
{
	int count = atoi(arguments[1]);
	static char block[256];
	double *times = calloc((size_t)count, sizeof *times);
	int directory = open(arguments[0], O_RDONLY | O_DIRECTORY);
	if (directory < 0 || !times || count < 1)
		err(1, "open %s", arguments[0]);
	for (int i = 0; i < count; i++) {
		double start = now();
		int fd = openat(directory, "~new", O_WRONLY | O_CREAT | O_TRUNC, 0644);
		if (fd < 0 || write(fd, block, sizeof block) != sizeof block || fsync(fd) < 0)
			err(1, "write in %s", arguments[0]);
		close(fd);
		if (renameat(directory, "~new", directory, "object") < 0 || fsync(directory) < 0)
			err(1, "rename in %s", arguments[0]);
		times[i] = now() - start;
	}
	unlinkat(directory, "object", 0);
	qsort(times, (size_t)count, sizeof *times, by_size);
	printf("%.9f\n", times[count / 2]);
	exit(0);
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	char **arguments = argv + 2;
	int count = argc - 2;
	double start = now();
	if (strcmp(command, "make") == 0 && count == 6)
		make_all(arguments);
	else if (strcmp(command, "stat") == 0 && count == 3)
		stat_all(arguments);
	else if (strcmp(command, "fill") == 0 && count == 3)
		add_bytes(arguments[0], O_CREAT | O_TRUNC, strtoull(arguments[1], NULL, 10),
		          strtoull(arguments[2], NULL, 10));
	else if (strcmp(command, "append") == 0 && count == 3)
		add_bytes(arguments[0], O_APPEND, strtoull(arguments[1], NULL, 10),
		          strtoull(arguments[2], NULL, 10));
	else if (strcmp(command, "read") == 0 && count == 2)
		read_all(arguments);
	else if (strcmp(command, "readback") == 0 && count == 5)
		read_back(arguments);
	else if (strcmp(command, "parquet") == 0 && count == 3)
		read_pieces(arguments, SCAN, false);
	else if (strcmp(command, "ranges") == 0 && count == 3)
		read_pieces(arguments, SCAN, true);
	else if (strcmp(command, "pieces") == 0 && count == 3)
		read_pieces(arguments, PIECES, false);
	else if (strcmp(command, "scatter") == 0 && count == 3)
		read_pieces(arguments, SCATTERED, false);
	else if (strcmp(command, "list") == 0 && count == 1)
		list(arguments);
	else if (strcmp(command, "resident") == 0 && count == 1)
		resident(arguments);
	else if (strcmp(command, "replace") == 0 && count == 2)
		replace(arguments);
	else
		errx(2, "no such command: %s", command);
	printf("%.9f\n", now() - start);
	return 0;
}
