/* Tests of cache/: what its files survive, how they come and go, and checking them. */
#include "tests/unit/cache_world.h"

/* -- what survives what -- */

static void kill_in_the_middle(struct world *world, const struct content *small,
                               const struct content *large)
{
	pid_t child = fork();
	if (child == 0) {
		struct blob *blob;
		open_cache(world);
		if (cache_get(world->cache, small, &blob, NULL) ||
		    cache_get(world->cache, large, &blob, NULL) || blob_ensure(blob, 0, 10, NULL))
			_exit(1);
		_exit(0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void forget_the_boot(struct world *world)
{
	char path[128], other[ID_HEX + 1];
	memset(other, 'a', ID_HEX);
	snprintf(path, sizeof(path), "%s/boot", world->cache_path);
	write_local(path, other, ID_HEX);
}

static unsigned names_in(const char *directory, const char *below)
{
	char command[256], line[32] = "";
	snprintf(command, sizeof(command), "ls %s/%s | wc -l", directory, below);
	FILE *stream = popen(command, "r");
	assert_non_null(fgets(line, sizeof(line), stream));
	pclose(stream);
	return (unsigned)atoi(line);
}

/* What runs for a blob ends after its last handle. */
static void wait_for_no_parts(struct world *world)
{
	for (int i = 0; i < 1000 && names_in(world->cache_path, "partial") > 0; i++)
		usleep(10000);
	assert_int_equal(names_in(world->cache_path, "partial"), 0);
}

static void kill_keeps_whole_files_and_power_cut_only_synced_ones(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(3 * MIB, 15);
	struct content synced = store_bytes(world, bytes, 60 * KIB);
	struct content small = store_bytes(world, bytes, 50 * KIB);
	struct content large = store_bytes(world, bytes, 3 * MIB);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &synced, &blob, &world->message), 0);
	blob_unref(blob);
	cache_close(world->cache);
	assert_true(is_in(world, "blobs", &synced));
	assert_false(is_in(world, "recent", &synced));
	kill_in_the_middle(world, &small, &large);
	assert_true(is_in(world, "recent", &small));
	assert_int_equal(names_in(world->cache_path, "partial"), 1);
	open_cache(world);
	assert_int_equal(names_in(world->cache_path, "partial"), 0);
	assert_true(cache_has(world->cache, &small));
	assert_false(cache_has(world->cache, &large));
	assert_int_equal(cache_get(world->cache, &small, &blob, &world->message), 0);
	assert_blob_bytes(blob, bytes, 50 * KIB, 0);
	blob_unref(blob);
	cache_close(world->cache);
	/* Now it is synced; another one is not. */
	struct content other = store_bytes(world, bytes + 1, 50 * KIB);
	kill_in_the_middle(world, &other, &large);
	forget_the_boot(world);
	open_cache(world);
	assert_true(cache_has(world->cache, &synced));
	assert_true(cache_has(world->cache, &small));
	assert_false(cache_has(world->cache, &other));
	assert_int_equal(names_in(world->cache_path, "recent"), 0);
	free(bytes);
}

/* -- adopting -- */

static void adopted_file_keeps_its_inode(void **state)
{
	struct world *world = *state;
	char path[128];
	struct stat before, after;
	uint8_t *bytes = make_bytes(70 * KIB, 16);
	struct content content = store_bytes(world, bytes, 70 * KIB);
	snprintf(path, sizeof(path), "%s/staged", world->directory);
	write_local(path, bytes, 70 * KIB);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(fstat(fd, &before), 0);
	assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), 0);
	assert_int_equal(access(path, F_OK), -1);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_true(blob_complete(blob));
	assert_int_equal(fstat(blob_descriptor(blob), &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	assert_int_equal(world->probe.gets, 0);
	assert_blob_bytes(blob, bytes, 70 * KIB, 0);
	blob_unref(blob);
	close(fd);
	/* A second one is only removed: in recent/, and once synced. */
	for (int i = 0; i < 2; i++) {
		write_local(path, bytes, 70 * KIB);
		assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), 0);
		assert_int_equal(access(path, F_OK), -1);
		wait_for_count(world, 1);
		reopen(world);
	}
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_int_equal(fstat(blob_descriptor(blob), &after), 0);
	assert_int_equal(before.st_ino, after.st_ino);
	blob_unref(blob);
	write_local(path, bytes, 10);
	assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), -ERR_INVALID);
	assert_int_equal(access(path, F_OK), 0);
	unlink(path);
	assert_int_equal(cache_adopt(world->cache, &content, path, &world->message),
	                 -ERR_NOT_FOUND);
	free(bytes);
}

/* Synced files are trusted without a stay in recent/. */
static void a_synced_file_is_a_blob_at_once(void **state)
{
	struct world *world = *state;
	char path[128];
	uint8_t *bytes = make_bytes(70 * KIB, 18);
	struct content content = store_bytes(world, bytes, 70 * KIB);
	snprintf(path, sizeof(path), "%s/staged", world->directory);
	for (int i = 0; i < 2; i++) { /* the second is only removed */
		write_local(path, bytes, 70 * KIB);
		assert_int_equal(cache_sync(world->cache), 0);
		assert_int_equal(cache_adopt_synced(world->cache, &content, path, &world->message),
		                 0);
		assert_int_equal(access(path, F_OK), -1);
		assert_int_equal(names_in(world->cache_path, "recent"), 0);
		assert_int_equal(stats_of(world).blobs, 1);
	}
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_true(blob_complete(blob));
	assert_int_equal(world->probe.gets, 0);
	assert_blob_bytes(blob, bytes, 70 * KIB, 0);
	blob_unref(blob);
	/* One that lies in recent/ stays there. */
	struct content second = store_bytes(world, bytes + 1, 60 * KIB);
	write_local(path, bytes + 1, 60 * KIB);
	assert_int_equal(cache_adopt(world->cache, &second, path, &world->message), 0);
	write_local(path, bytes + 1, 60 * KIB);
	assert_int_equal(cache_adopt_synced(world->cache, &second, path, &world->message), 0);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(stats_of(world).blobs, 2);
	write_local(path, bytes, 10);
	assert_int_equal(cache_adopt_synced(world->cache, &content, path, &world->message),
	                 -ERR_INVALID);
	assert_int_equal(access(path, F_OK), 0);
	unlink(path);
	free(bytes);
}

static void adopting_what_is_being_read_in_parts(void **state)
{
	struct world *world = *state;
	char path[128];
	uint8_t *bytes = make_bytes(3 * MIB, 17);
	struct content content = store_bytes(world, bytes, 3 * MIB);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_int_equal(blob_ensure(blob, 0, 10, &world->message), 0);
	snprintf(path, sizeof(path), "%s/staged", world->directory);
	write_local(path, bytes, 3 * MIB);
	assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), 0);
	assert_int_equal(blob_complete_now(blob, NULL, &world->message), 0);
	assert_blob_bytes(blob, bytes, 3 * MIB, 0);
	blob_unref(blob);
	assert_int_equal(stats_of(world).blobs, 1);
	assert_int_equal(names_in(world->cache_path, "partial"), 0);
	free(bytes);
}

/* Whether parts are idle (i: 0), or somebody still reads them. */
static void give_way_to_the_whole(struct world *world, const uint8_t *bytes, size_t length,
                                  unsigned i)
{
	char path[128];
	struct blob *blob, *reader;
	struct content content = store_bytes(world, bytes, length);
	assert_int_equal(cache_get(world->cache, &content, &reader, &world->message), 0);
	assert_int_equal(blob_ensure(reader, 0, 10, &world->message), 0);
	if (i == 0)
		blob_unref(steal(&reader));
	snprintf(path, sizeof(path), "%s/staged", world->directory);
	write_local(path, bytes, length);
	if (i < 2)
		assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), 0);
	else
		assert_int_equal(cache_adopt_synced(world->cache, &content, path, &world->message),
		                 0);
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	assert_true(blob_complete(blob));
	assert_blob_bytes(blob, bytes, length, 0);
	if (reader) {
		assert_int_equal(blob_ensure(reader, 0, length, &world->message), 0);
		assert_blob_bytes(reader, bytes, length, 0);
	}
	blob_unref(reader);
	assert_blob_bytes(blob, bytes, length, 0);
	blob_unref(blob);
	wait_for_no_parts(world);
}

static void whoever_opens_after_an_adoption_gets_the_whole(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(3 * MIB, 27);
	for (unsigned i = 0; i < 3; i++)
		give_way_to_the_whole(world, bytes + i, 2 * MIB, i);
	assert_int_equal(stats_of(world).blobs, 3);
	free(bytes);
}

/* -- letting go -- */

static void age(const struct world *world, const struct content *content, unsigned minutes)
{
	char path[256];
	path_of(world, "blobs", content, path, sizeof(path));
	if (access(path, F_OK) != 0)
		path_of(world, "recent", content, path, sizeof(path));
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = time(NULL) - minutes * 60}};
	assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void least_recently_used_go_first(void **state)
{
	struct world *world = *state;
	enum { FILES = 16 };
	uint8_t *bytes = make_bytes(200 * KIB, 18);
	struct content contents[2 * FILES];
	struct blob *blob, *held;
	cache_close(world->cache);
	world->options.bytes_max = 2 * MIB; /* sixteen files of 100 KiB fit, twenty-one do not */
	open_cache(world);
	for (unsigned i = 0; i < 2 * FILES; i++)
		contents[i] = store_bytes(world, bytes + i * 8, 100 * KIB);
	for (unsigned i = 0; i < FILES; i++) {
		assert_int_equal(cache_get(world->cache, &contents[i], &blob, &world->message), 0);
		blob_unref(blob);
		age(world, &contents[i], 100 + i); /* the last is the oldest */
	}
	reopen(world); /* into blobs/ */
	wait_for_count(world, FILES);
	assert_int_equal(cache_get(world->cache, &contents[FILES - 1], &held, &world->message), 0);
	age(world, &contents[FILES - 1], 1000); /* the oldest of all, but in use */
	/* Used again: recent from now on, whatever it was. */
	assert_int_equal(cache_get(world->cache, &contents[FILES - 2], &blob, &world->message), 0);
	blob_unref(blob);
	for (unsigned i = FILES; i < FILES + 6; i++) {
		assert_int_equal(cache_get(world->cache, &contents[i], &blob, &world->message), 0);
		blob_unref(blob);
		assert_true(stats_of(world).bytes <= 2 * MIB);
	}
	assert_true(stats_of(world).evicted >= 2);
	assert_true(cache_has(world->cache, &contents[FILES - 1]));
	assert_true(is_in(world, "blobs", &contents[FILES - 1]));
	assert_true(cache_has(world->cache, &contents[FILES - 2]));
	assert_false(cache_has(world->cache, &contents[FILES - 3]));
	assert_false(cache_has(world->cache, &contents[FILES - 4]));
	assert_true(cache_has(world->cache, &contents[0]));
	assert_true(cache_has(world->cache, &contents[FILES + 5]));
	assert_blob_bytes(held, bytes + (FILES - 1) * 8, 100 * KIB, 0);
	blob_unref(held);
	/* What was evicted is fetched again. */
	assert_int_equal(cache_get(world->cache, &contents[FILES - 3], &blob, &world->message), 0);
	assert_blob_bytes(blob, bytes + (FILES - 3) * 8, 100 * KIB, 0);
	blob_unref(blob);
	free(bytes);
}

static void idle_parts_are_let_go_too(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(8 * MIB, 19);
	cache_close(world->cache);
	world->options.bytes_max = 2 * MIB;
	open_cache(world);
	struct blob *blob;
	for (unsigned i = 0; i < 6; i++) {
		struct content content = store_bytes(world, bytes + i * 8, 6 * MIB);
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		assert_int_equal(blob_ensure(blob, 0, 600 * KIB, &world->message), 0);
		assert_blob_bytes(blob, bytes + i * 8, 600 * KIB, 0);
		blob_unref(blob);
		assert_true(stats_of(world).bytes <= 2 * MIB + 512 * KIB);
	}
	assert_true(stats_of(world).evicted >= 2);
	assert_true(names_in(world->cache_path, "partial") <= 4);
	free(bytes);
}

static void blobs_are_counted_after_opening(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(100 * KIB, 20);
	for (unsigned i = 0; i < 5; i++) {
		struct blob *blob;
		struct content content = store_bytes(world, bytes + i, 10 * KIB);
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		blob_unref(blob);
	}
	struct cache_stats before = stats_of(world);
	reopen(world);
	wait_for_count(world, 5);
	struct cache_stats after = stats_of(world);
	assert_int_equal(after.bytes, before.bytes);
	free(bytes);
}

struct damage {
	unsigned count;
	struct id id;
	char path[256];
};

static int note_damage(void *context, const struct id *id, const char *path)
{
	struct damage *damage = context;
	damage->count++;
	damage->id = *id;
	snprintf(damage->path, sizeof(damage->path), "%s", path);
	return 0;
}

/* -- many at once -- */

/* Thousands of files: quick in memory, slow on a busy disk. */
static int set_up_in_memory(void **state)
{
	return set_up_below(state, access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
}

static void many_recent_files_are_synced_together(void **state)
{
	struct world *world = *state;
	char path[128];
	enum { FILES = 4200 }; /* enough for the keeper to sync unasked */
	struct content content = {.kind = CONTENT_CHUNK, .size = sizeof(unsigned)};
	snprintf(path, sizeof(path), "%s/staged", world->directory);
	for (unsigned i = 0; i < FILES; i++) {
		write_local(path, &i, sizeof(i));
		sha256_of(&i, sizeof(i), &content.pointer.id);
		assert_int_equal(cache_adopt(world->cache, &content, path, &world->message), 0);
	}
	for (int i = 0; i < 1000 && names_in(world->cache_path, "blobs") < 100; i++)
		usleep(10000);
	assert_true(names_in(world->cache_path, "blobs") >= 100);
	reopen(world);
	assert_int_equal(names_in(world->cache_path, "recent"), 0);
	assert_int_equal(names_in(world->cache_path, "blobs"), 256);
	wait_for_count(world, FILES);
	for (unsigned i = 0; i < FILES; i++) {
		sha256_of(&i, sizeof(i), &content.pointer.id);
		assert_true(cache_has(world->cache, &content));
	}
}

#define CROWD_FILES 24
#define CROWD_BYTES (200 * KIB)

struct crowd {
	struct world *world;
	const struct content *contents;
	const uint8_t *bytes; /* file i starts at byte 8 * i */
	unsigned number;
	int error;
};

static int use_one(struct crowd *crowd, unsigned *seed, unsigned which)
{
	struct blob *blob;
	struct message message;
	uint8_t found[5000];
	const uint8_t *expected = crowd->bytes + which * 8;
	int error = cache_get(crowd->world->cache, &crowd->contents[which], &blob, &message);
	if (error)
		return error;
	for (int i = 0; i < 4 && !error; i++) {
		size_t offset = (size_t)rand_r(seed) % (CROWD_BYTES - sizeof(found));
		error = blob_ensure(blob, offset, sizeof(found), &message);
		if (!error && (read_full(blob_descriptor(blob), found, sizeof(found),
		                         (off_t)offset) != sizeof(found) ||
		               memcmp(found, expected + offset, sizeof(found)) != 0))
			error = -ERR_CORRUPT;
	}
	if (!error && rand_r(seed) % 3 == 0)
		error = blob_complete_now(blob, NULL, &message);
	blob_unref(blob);
	return error;
}

static int adopt_one(struct crowd *crowd, unsigned which)
{
	char path[128];
	struct message message;
	snprintf(path, sizeof(path), "%s/staged.%u", crowd->world->directory, crowd->number);
	write_local(path, crowd->bytes + which * 8, CROWD_BYTES);
	return cache_adopt(crowd->world->cache, &crowd->contents[which], path, &message);
}

static void *use_many(void *context)
{
	struct crowd *crowd = context;
	unsigned seed = crowd->number;
	for (int i = 0; i < 150 && !crowd->error; i++) {
		unsigned which = (unsigned)rand_r(&seed) % CROWD_FILES;
		if (rand_r(&seed) % 10 == 0)
			crowd->error = adopt_one(crowd, which);
		else
			crowd->error = use_one(crowd, &seed, which);
	}
	return NULL;
}

static void everything_at_once_under_a_small_bound(void **state)
{
	struct world *world = *state;
	struct content contents[CROWD_FILES];
	uint8_t *bytes = make_bytes(CROWD_BYTES + 8 * CROWD_FILES, 23);
	struct crowd crowds[6];
	pthread_t threads[6];
	cache_close(world->cache);
	world->options.bytes_max = 8 * CROWD_BYTES;
	world->options.whole_file_bytes = 1; /* all by range */
	open_cache(world);
	for (unsigned i = 0; i < CROWD_FILES; i++)
		contents[i] = store_bytes(world, bytes + i * 8, CROWD_BYTES);
	for (unsigned i = 0; i < ARRAY_SIZE(threads); i++) {
		crowds[i] = (struct crowd){world, contents, bytes, i, 0};
		assert_int_equal(pthread_create(&threads[i], NULL, use_many, &crowds[i]), 0);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(crowds[i].error, 0);
	assert_true(stats_of(world).evicted > 0);
	struct damage damage = {0};
	assert_int_equal(cache_verify(world->cache, note_damage, &damage, NULL, &world->message),
	                 0);
	assert_int_equal(damage.count, 0);
	free(bytes);
}

/* -- checking -- */

static void verify_names_damaged_files(void **state)
{
	struct world *world = *state;
	char path[256];
	uint8_t *bytes = make_bytes(3 * MIB, 21);
	size_t sizes[] = {0, 10, 300 * KIB, 3 * MIB};
	struct content contents[4];
	for (unsigned i = 0; i < 4; i++) {
		struct blob *blob;
		if (i == 2)
			reopen(world); /* some in blobs/, some in recent/ */
		contents[i] = store_bytes(world, bytes, sizes[i]);
		assert_int_equal(cache_get(world->cache, &contents[i], &blob, &world->message), 0);
		assert_int_equal(blob_complete_now(blob, NULL, &world->message), 0);
		blob_unref(blob);
	}
	struct damage damage = {0};
	assert_int_equal(cache_verify(world->cache, note_damage, &damage, NULL, &world->message),
	                 0);
	assert_int_equal(damage.count, 0);
	for (unsigned i = 1; i < 4; i++) {
		path_of(world, i < 2 ? "blobs" : "recent", &contents[i], path, sizeof(path));
		int fd = open(path, O_RDWR | O_CLOEXEC);
		uint8_t byte = (uint8_t)(bytes[5] ^ 1);
		assert_int_equal(pwrite(fd, &byte, 1, 5), 1);
		memset(&damage, 0, sizeof(damage));
		assert_int_equal(
		        cache_verify(world->cache, note_damage, &damage, NULL, &world->message), 0);
		assert_int_equal(damage.count, 1);
		assert_true(id_equal(&damage.id, &contents[i].pointer.id));
		assert_string_equal(damage.path, path);
		assert_int_equal(pwrite(fd, bytes + 5, 1, 5), 1);
		close(fd);
	}
	free(bytes);
}

static void local_file_is_opened_quickly(void **state)
{
	struct world *world = *state;
	uint8_t *bytes = make_bytes(10 * KIB, 22);
	struct content content = store_bytes(world, bytes, 10 * KIB);
	struct blob *blob;
	assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
	blob_unref(blob);
	reopen(world);
	int64_t start = clock_wall_ns();
	for (int i = 0; i < 10000; i++) {
		assert_int_equal(cache_get(world->cache, &content, &blob, &world->message), 0);
		blob_unref(blob);
	}
	int64_t each_ns = (clock_wall_ns() - start) / 10000;
	print_message("get + unref of a local file: %lld ns\n", (long long)each_ns);
	assert_true(each_ns < 500000);
	free(bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST(kill_keeps_whole_files_and_power_cut_only_synced_ones),
	        TEST(adopted_file_keeps_its_inode),
	        TEST(a_synced_file_is_a_blob_at_once),
	        TEST(adopting_what_is_being_read_in_parts),
	        TEST(whoever_opens_after_an_adoption_gets_the_whole),
	        TEST(least_recently_used_go_first),
	        TEST(idle_parts_are_let_go_too),
	        TEST(blobs_are_counted_after_opening),
	        cmocka_unit_test_setup_teardown(many_recent_files_are_synced_together,
	                                        set_up_in_memory, tear_down),
	        TEST(everything_at_once_under_a_small_bound),
	        TEST(verify_names_damaged_files),
	        TEST(local_file_is_opened_quickly),
	};
	return cmocka_run_group_tests_name("cache files", tests, NULL, NULL);
}
