/*
 * Small files are local before they are opened by whoever reads a directory in order, and nobody
 * else's reading costs much more than what it reads. Without a mount.
 */
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "cache/cache.h"
#include "fs/mount/vfs.h"

#include <cmocka.h>

#define DIRECTORIES 3
#define FILES 60
#define FILE_BYTES 8192
#define FIRST_BYTES (256 << 10) /* what readers in no order may cost */
#define WAIT_MS 60000

static const struct vfs_caller caller = {.uid = 0, .gid = 0, .pid = 4711};

struct world {
	char root[64];
	struct lake *lake;
	struct vfs *vfs;
};

static void check(int result, const char *what, const struct message *message)
{
	if (result < 0)
		fail_msg("%s: %s (%s)", what, error_text(result), message ? message->text : "");
}

static void world_open(struct world *world)
{
	struct message message = {{0}};
	char path[80];
	const struct vfs_kernel kernel = {.context = world};
	snprintf(path, sizeof(path), "%s/lake", world->root);
	check(lake_open(path, &world->lake, &message), "lake_open", &message);
	check(vfs_new(world->lake, &kernel, NULL, &world->vfs), "vfs_new", NULL);
}

static void world_close(struct world *world)
{
	vfs_free(world->vfs);
	lake_close(world->lake);
}

static int remove_one(const char *path, const struct stat *stat, int kind, struct FTW *ftw)
{
	return remove(path);
}

static uint64_t look_up(struct world *world, uint64_t parent, const char *name)
{
	struct vfs_entry entry;
	check(vfs_lookup(world->vfs, parent, name, &entry, NULL), name, NULL);
	return entry.node;
}

static uint64_t directory(struct world *world, int number)
{
	char name[16];
	uint64_t branch = look_up(world, VFS_ROOT, "main");
	snprintf(name, sizeof(name), "d%d", number);
	uint64_t found = look_up(world, branch, name);
	vfs_forget(world->vfs, branch, 1);
	return found;
}

static void fill(uint8_t bytes[FILE_BYTES], int number, int file)
{
	uint64_t state = (uint64_t)number << 32 | (uint64_t)file << 8 | 1;
	for (size_t i = 0; i < FILE_BYTES; i++) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		bytes[i] = (uint8_t)(state >> 56);
	}
}

static void make_file(struct world *world, uint64_t parent, int number, int file)
{
	struct vfs_entry entry;
	struct vfs_opened opened;
	uint8_t bytes[FILE_BYTES];
	char name[16];
	snprintf(name, sizeof(name), "f%04d", file);
	fill(bytes, number, file);
	check(vfs_create(world->vfs, parent, name, 0644, O_CREAT | O_WRONLY, &caller, &entry,
	                 &opened, NULL),
	      name, NULL);
	assert_int_equal(vfs_write(world->vfs, opened.file, bytes, FILE_BYTES, 0, &caller, NULL),
	                 FILE_BYTES);
	vfs_release(world->vfs, opened.file);
	vfs_forget(world->vfs, entry.node, 1);
}

static void commit(struct world *world)
{
	struct message message = {{0}};
	struct worktree *worktree;
	struct commit_result result;
	const struct commit_options options = {
	        .author = "test@host", .message = "files", .command = "commit"};
	check(worktree_get(world->lake->worktrees, "main", &worktree, &message), "main", &message);
	check(worktree_commit(worktree, &options, &result, &message), "commit", &message);
	worktree_unref(worktree);
}

/* Committed files, and no local copy of any. */
static int setup(void **state)
{
	struct world *world = calloc(1, sizeof(*world));
	struct message message = {{0}};
	char path[80];
	strcpy(world->root, "/tmp/test_vfs_ahead.XXXXXX");
	assert_non_null(mkdtemp(world->root));
	snprintf(path, sizeof(path), "%s/lake", world->root);
	check(lake_init(path, NULL, "test@host", &message), "lake_init", &message);
	world_open(world);
	uint64_t branch = look_up(world, VFS_ROOT, "main");
	for (int number = 0; number < DIRECTORIES; number++) {
		struct vfs_entry entry;
		char name[16];
		snprintf(name, sizeof(name), "d%d", number);
		const struct vfs_make make = {.mode = S_IFDIR | 0755};
		check(vfs_make(world->vfs, branch, name, &make, &caller, &entry, NULL), name, NULL);
		for (int file = 0; file < FILES; file++)
			make_file(world, entry.node, number, file);
		vfs_forget(world->vfs, entry.node, 1);
	}
	vfs_forget(world->vfs, branch, 1);
	commit(world);
	world_close(world);
	snprintf(path, sizeof(path), "%s/lake/cache", world->root);
	assert_int_equal(nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
	world_open(world);
	*state = world;
	return 0;
}

static int teardown(void **state)
{
	struct world *world = *state;
	world_close(world);
	nftw(world->root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(world);
	return 0;
}

static void open_and_read(struct world *world, uint64_t parent, int number, int file)
{
	struct vfs_opened opened;
	uint8_t bytes[FILE_BYTES], wanted[FILE_BYTES];
	char name[16];
	snprintf(name, sizeof(name), "f%04d", file);
	uint64_t node = look_up(world, parent, name);
	check(vfs_open(world->vfs, node, O_RDONLY, &caller, &opened, NULL), name, NULL);
	assert_int_equal(vfs_read(world->vfs, opened.file, bytes, FILE_BYTES, 0, NULL), FILE_BYTES);
	fill(wanted, number, file);
	assert_memory_equal(bytes, wanted, FILE_BYTES);
	vfs_release(world->vfs, opened.file);
	vfs_forget(world->vfs, node, 1);
}

static struct cache_stats stats_of(struct world *world)
{
	struct cache_stats stats;
	cache_stats(world->lake->cache, &stats);
	return stats;
}

static void pause_ms(long ms)
{
	const struct timespec time = {.tv_nsec = ms * 1000000};
	nanosleep(&time, NULL);
}

/* Until so many files are local; false: they are not, after a long time. */
static bool come(struct world *world, uint64_t files)
{
	for (int waited = 0; waited < WAIT_MS; waited += 2) {
		if (stats_of(world).fetched_bytes >= files * FILE_BYTES)
			return true;
		pause_ms(2);
	}
	return false;
}

static void test_vfs_ahead__in_order(void **state)
{
	struct world *world = *state;
	for (int number = 0; number < DIRECTORIES; number++) {
		uint64_t parent = directory(world, number);
		for (int file = 0; file < FILES; file++) {
			open_and_read(world, parent, number, file);
			uint64_t next = (uint64_t)(number * FILES + file + 2);
			bool last = file == FILES - 1;
			assert_true(come(world, last ? next - 1 : next));
		}
		vfs_forget(world->vfs, parent, 1);
	}
	struct cache_stats stats = stats_of(world);
	assert_int_equal(stats.fetched_bytes, DIRECTORIES * FILES * FILE_BYTES);
	assert_int_equal(stats.misses, DIRECTORIES);
}

static void test_vfs_ahead__from_the_middle(void **state)
{
	struct world *world = *state;
	uint64_t parent = directory(world, 1);
	open_and_read(world, parent, 1, 30);
	open_and_read(world, parent, 1, 31);
	assert_true(come(world, 10));
	vfs_forget(world->vfs, parent, 1);
}

static void test_vfs_ahead__backwards(void **state)
{
	struct world *world = *state;
	uint64_t parent = directory(world, 0);
	for (int file = FILES - 1; file > 0; file--)
		open_and_read(world, parent, 0, file);
	vfs_forget(world->vfs, parent, 1);
	pause_ms(200); /* whoever fetches in vain would do so soon */
	assert_int_equal(stats_of(world).fetched_bytes, (FILES - 1) * FILE_BYTES);
}

static void test_vfs_ahead__in_no_order(void **state)
{
	struct world *world = *state;
	bool done[DIRECTORIES * FILES] = {false};
	uint64_t parents[DIRECTORIES], read = 0;
	for (int number = 0; number < DIRECTORIES; number++)
		parents[number] = directory(world, number);
	uint64_t random = 1;
	for (int i = 0; i < DIRECTORIES * FILES / 4; i++) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		int at = (int)((random >> 33) % (DIRECTORIES * FILES));
		open_and_read(world, parents[at / FILES], at / FILES, at % FILES);
		read += !done[at];
		done[at] = true;
	}
	for (int number = 0; number < DIRECTORIES; number++)
		vfs_forget(world->vfs, parents[number], 1);
	pause_ms(200);
	/* By chance a few come after each other, and what they bring is read, too. */
	assert_true(stats_of(world).fetched_bytes <= 2 * read * FILE_BYTES + FIRST_BYTES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test_setup_teardown(test_vfs_ahead__in_order, setup, teardown),
	        cmocka_unit_test_setup_teardown(test_vfs_ahead__from_the_middle, setup, teardown),
	        cmocka_unit_test_setup_teardown(test_vfs_ahead__backwards, setup, teardown),
	        cmocka_unit_test_setup_teardown(test_vfs_ahead__in_no_order, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
