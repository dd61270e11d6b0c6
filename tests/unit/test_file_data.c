/* A file's bytes: long open piecewise files, sharing, crashes around truncation, the dirty map. */
#include <errno.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

#include "worktree_fixture.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#undef assert

#define BASE_BYTES 300001 /* not a multiple of anything */
#define COPY_UP_MAX 65536

static struct fixture fixture;
static struct worktree *worktree;
static uint64_t root;
static uint8_t base_bytes[BASE_BYTES];
static bool mounted;

static uint64_t seed;
static uint32_t next_random(void)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(seed >> 33);
}

static void open_all(void)
{
	struct message message = {0};
	fixture_open_with(&fixture, COPY_UP_MAX, true);
	must(worktree_get(fixture.trees, "main", &worktree, &message), &message, "get");
}

static void close_all(void)
{
	worktree_unref(worktree);
	fixture_close(&fixture);
}

static void commit_base(void)
{
	struct packer *packer;
	must(packer_new(fixture.odb, &packer), NULL, "packer");
	for (size_t i = 0; i < BASE_BYTES; i++)
		base_bytes[i] = (uint8_t)next_random();
	struct tree_entry entry = {
	        .name = "big",
	        .name_length = 3,
	        .attributes = {.mode = S_IFREG | 0644, .mtime_ns = 123456789},
	        .content = fixture_content(packer, base_bytes, BASE_BYTES),
	};
	struct pointer tree, small;
	must(tree_set_path(fixture.odb, packer, &pointer_none, "big", &entry, &tree, NULL), NULL,
	     "tree");
	entry.name = "small";
	entry.name_length = 5;
	entry.content = fixture_content(packer, base_bytes, 5000);
	must(tree_set_path(fixture.odb, packer, &tree, "small", &entry, &small, NULL), NULL,
	     "tree");
	fixture_commit(&fixture, packer, &small, "main");
	packer_free(packer);
}

static int open_fixture(void **unused)
{
	seed = random_u64();
	print_message("seed %llu\n", (unsigned long long)seed);
	fixture_make(&fixture);
	fixture_open_with(&fixture, COPY_UP_MAX, true);
	commit_base();
	must(worktree_get(fixture.trees, "main", &worktree, NULL), NULL, "get");
	return 0;
}

static int close_fixture(void **unused)
{
	close_all();
	if (mounted) {
		char path[128];
		fixture_path(&fixture, "staging", path);
		umount2(path, MNT_DETACH);
	}
	mounted = false;
	fixture_remove(&fixture);
	return 0;
}

/* The overlay inode of a committed file, made writable. */
static void writable(const char *name, struct inode *ret_inode)
{
	must(worktree_enter(worktree, worktree_epoch(worktree)), NULL, "enter");
	must(worktree_adopt_root(worktree, &root), NULL, "root");
	struct directory directory = {.number = root};
	struct found found;
	uint64_t number;
	must(worktree_lookup(worktree, &directory, name, strlen(name), &found, NULL), NULL, name);
	number = found.number;
	if (number == 0)
		must(worktree_adopt(worktree, root, found.entry, 5, &number, NULL), NULL, "adopt");
	free(found.entry);
	struct message message = {0};
	must(worktree_writable(worktree, number, false, ret_inode, &message), &message, "writable");
	worktree_leave(worktree);
}

static struct file_data *open_data(const struct inode *inode)
{
	struct file_data *data;
	struct message message = {0};
	must(file_data_open(fixture.trees, inode, true, &data, &message), &message, "open");
	return data;
}

static void expect_bytes(struct file_data *data, const uint8_t *expected, size_t size)
{
	uint8_t *bytes = malloc(size + 100);
	assert_int_equal(file_data_read(data, bytes, size + 100, 0, NULL), size);
	assert_memory_equal(bytes, expected, size);
	free(bytes);
	struct stat status;
	assert_int_equal(file_data_stat(data, &status), 0);
	assert_int_equal(status.st_size, size);
}

/* content_store_edit over the dirty map gives what content_store gives. */
static void expect_commit(const struct inode *given, const uint8_t *expected, size_t size)
{
	struct inode inode;
	must(worktree_inode(worktree, given->number, &inode), NULL, "inode");
	struct packer *packer;
	must(packer_new(fixture.odb, &packer), NULL, "packer");
	struct content whole = fixture_content(packer, expected, size), edited;
	int fd;
	struct extent *dirty = NULL;
	size_t count = 0;
	must(staging_open(fixture.trees, inode.staging, O_RDONLY, &fd), NULL, "staging");
	must(staging_dirty(fixture.trees, &inode, fd, &dirty, &count), NULL, "dirty");
	struct message message = {0};
	must(content_store_edit(packer, fixture.odb, &(struct edit_base){.content = &inode.content},
	                        fd, size, dirty, count, NULL, &edited, &message),
	     &message, "edit");
	assert_true(content_equal(&whole, &edited));
	free(dirty);
	close(fd);
	packer_free(packer);
	inode_release(&inode);
}

static void copies_keep_bytes_and_time(void **unused)
{
	struct inode inode;
	writable("small", &inode);
	assert_false(inode.piecewise);
	struct stat status;
	must(worktree_stat(worktree, &inode, &status), NULL, "stat");
	assert_int_equal(status.st_mtim.tv_nsec, 123456789);
	assert_int_equal(status.st_size, 5000);
	assert_int_equal(status.st_ino, 5);
	struct file_data *data = open_data(&inode);
	expect_bytes(data, base_bytes, 5000);
	assert_true(file_data_local(data) >= 0);
	file_data_close(data);
	inode_release(&inode);
	writable("big", &inode);
	assert_true(inode.piecewise);
	must(worktree_stat(worktree, &inode, &status), NULL, "stat");
	assert_int_equal(status.st_mtim.tv_nsec, 123456789);
	assert_int_equal(status.st_size, BASE_BYTES);
	data = open_data(&inode);
	expect_bytes(data, base_bytes, BASE_BYTES);
	assert_int_equal(file_data_local(data), -1);
	expect_commit(&inode, base_bytes, BASE_BYTES);
	file_data_close(data);
	inode_release(&inode);
}

#define MODEL_MAX (BASE_BYTES + 200000)

static void change(struct file_data *data, uint8_t *model, size_t *size)
{
	size_t offset = next_random() % (*size + 20000), length = 1 + next_random() % 30000;
	if (next_random() % 3 == 0) {
		offset &= ~(size_t)4095;
		length = (length + 4095) & ~(size_t)4095;
	}
	if (offset + length > MODEL_MAX)
		return;
	size_t end = offset + length;
	struct message message = {0};
	switch (next_random() % 8) {
	case 0:
		if (offset < *size)
			memset(model + offset, 0, *size - offset);
		*size = offset;
		must(file_data_truncate(data, offset, &message), &message, "truncate");
		return;
	case 1:
		if (offset < *size)
			memset(model + offset, 0, (end < *size ? end : *size) - offset);
		must(file_data_allocate(data, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
		                        length, &message),
		     &message, "punch");
		return;
	case 2:
		memset(model + offset, 0, length);
		must(file_data_allocate(data, FALLOC_FL_ZERO_RANGE, offset, length, &message),
		     &message, "zero");
		break;
	case 3:
		must(file_data_allocate(data, 0, offset, length, &message), &message, "allocate");
		break;
	default:
		for (size_t i = offset; i < end; i++)
			model[i] = (uint8_t)next_random();
		assert_int_equal(file_data_write(data, model + offset, length, offset, &message),
		                 length);
	}
	if (end > *size)
		*size = end;
}

static void piecewise_files_match_a_model(void **unused)
{
	struct inode inode;
	uint8_t *model = calloc(1, MODEL_MAX);
	memcpy(model, base_bytes, BASE_BYTES);
	size_t size = BASE_BYTES;
	writable("big", &inode);
	struct file_data *data = open_data(&inode);
	for (int i = 1; i <= 400; i++) {
		change(data, model, &size);
		if (i % 20 == 0)
			expect_bytes(data, model, size);
		if (i % 50 == 0) {
			expect_commit(&inode, model, size);
			file_data_close(data);
			if (i % 100 == 0) {
				close_all();
				open_all();
			}
			data = open_data(&inode);
			expect_bytes(data, model, size);
		}
	}
	file_data_close(data);
	inode_release(&inode);
	free(model);
}

/* A truncation that the record does not know yet, then kill -9. */
static void what_truncation_hid_stays_hidden(void **unused)
{
	struct inode inode;
	writable("big", &inode);
	char *path = staging_absolute(fixture.trees, inode.staging);
	assert_int_equal(truncate(path, 5000), 0);
	free(path);
	close_all();
	open_all();
	struct file_data *data = open_data(&inode);
	expect_bytes(data, base_bytes, 5000);
	/* It grows again: zeros, now and after the next start. */
	uint8_t *expected = calloc(1, BASE_BYTES);
	memcpy(expected, base_bytes, 5000);
	must(file_data_truncate(data, 200000, NULL), NULL, "grow");
	expect_bytes(data, expected, 200000);
	file_data_close(data);
	close_all();
	open_all();
	data = open_data(&inode);
	expect_bytes(data, expected, 200000);
	expect_commit(&inode, expected, 200000);
	/* Growing by a write records it too. */
	must(file_data_truncate(data, 100, NULL), NULL, "cut");
	memset(expected + 100, 0, 5000);
	expected[150000] = 'x';
	assert_int_equal(file_data_write(data, "x", 1, 150000, NULL), 1);
	expect_bytes(data, expected, 150001);
	file_data_close(data);
	close_all();
	open_all();
	data = open_data(&inode);
	expect_bytes(data, expected, 150001);
	file_data_close(data);
	inode_release(&inode);
	free(expected);
}

/* A power cut: the record is there, the new staging file's name or size is not. */
static void what_a_power_cut_left_shows_content(void **unused)
{
	struct inode inode;
	struct stat status;
	writable("big", &inode);
	char *path = staging_absolute(fixture.trees, inode.staging);
	for (int named = 0; named < 2; named++) {
		close_all();
		assert_int_equal(named ? truncate(path, 0) : unlink(path), 0);
		open_all();
		struct file_data *data = open_data(&inode);
		expect_bytes(data, base_bytes, BASE_BYTES);
		assert_int_equal(file_data_stat(data, &status), 0);
		assert_int_equal(status.st_mtim.tv_nsec, 123456789);
		expect_commit(&inode, base_bytes, BASE_BYTES);
		file_data_close(data);
	}
	/* But a kill may come between the truncation and its record. */
	close_all();
	assert_int_equal(chmod(path, 0700), 0);
	assert_int_equal(truncate(path, 0), 0);
	open_all();
	struct file_data *data = open_data(&inode);
	expect_bytes(data, base_bytes, 0);
	file_data_close(data);
	/* Truncation to nothing leaves nothing. */
	data = open_data(&inode);
	must(file_data_truncate(data, 0, NULL), NULL, "truncate");
	file_data_close(data);
	for (int named = 0; named < 2; named++) {
		close_all();
		if (!named)
			assert_int_equal(unlink(path), 0);
		open_all();
		data = open_data(&inode);
		expect_bytes(data, base_bytes, 0);
		file_data_close(data);
	}
	free(path);
	inode_release(&inode);
}

static void opens_share_one_state(void **unused)
{
	struct inode inode;
	writable("big", &inode);
	struct file_data *a = open_data(&inode), *b = open_data(&inode);
	assert_ptr_equal(a, b);
	assert_int_equal(file_data_write(a, "hello", 5, 10, NULL), 5);
	uint8_t bytes[5];
	assert_int_equal(file_data_read(b, bytes, 5, 10, NULL), 5);
	assert_memory_equal(bytes, "hello", 5);
	file_data_close(a);
	must(worktree_truncate(worktree, inode.number, 12, NULL), NULL, "truncate");
	struct stat status;
	must(file_data_stat(b, &status), NULL, "stat");
	assert_int_equal(status.st_size, 12);
	assert_int_equal(file_data_read(b, bytes, 5, 10, NULL), 2);
	uint64_t at;
	assert_int_equal(file_data_seek(b, 0, SEEK_HOLE, &at), 0);
	assert_int_equal(at, 12);
	assert_int_equal(file_data_seek(b, 12, SEEK_DATA, &at), error_system(ENXIO));
	assert_int_equal(file_data_allocate(b, FALLOC_FL_COLLAPSE_RANGE, 0, 4096, NULL),
	                 -ERR_UNSUPPORTED);
	assert_int_equal(file_data_write(b, "x", 1, FILE_BYTES_MAX, NULL), -ERR_TOO_LARGE);
	file_data_close(b);
	inode_release(&inode);
}

static void truncating_needs_no_copy(void **unused)
{
	struct inode inode, again;
	must(worktree_enter(worktree, worktree_epoch(worktree)), NULL, "enter");
	worktree_leave(worktree);
	writable("small", &inode);
	must(worktree_writable(worktree, inode.number, true, &again, NULL), NULL, "again");
	assert_int_equal(inode.staging, again.staging);
	struct stat status;
	must(worktree_stat(worktree, &again, &status), NULL, "stat");
	assert_int_equal(status.st_size, 0);
	inode_release(&inode);
	inode_release(&again);
}

/* Writers of disjoint bytes in the same granules: none undoes another's. */
struct writer_thread {
	pthread_t thread;
	struct file_data *data;
	unsigned id;
	bool failed;
};

static void *write_stripes(void *context)
{
	struct writer_thread *writer = context;
	uint8_t mark = (uint8_t)('A' + writer->id);
	for (size_t at = writer->id; at < 100000; at += 4 * 97)
		writer->failed |= file_data_write(writer->data, &mark, 1, at, NULL) != 1;
	return NULL;
}

static void concurrent_writers_keep_each_others_bytes(void **unused)
{
	struct inode inode;
	writable("big", &inode);
	struct file_data *data = open_data(&inode);
	struct writer_thread writers[4];
	uint8_t *model = malloc(BASE_BYTES);
	memcpy(model, base_bytes, BASE_BYTES);
	for (unsigned i = 0; i < 4; i++) {
		writers[i] = (struct writer_thread){.data = data, .id = i};
		for (size_t at = i; at < 100000; at += 4 * 97)
			model[at] = (uint8_t)('A' + i);
		pthread_create(&writers[i].thread, NULL, write_stripes, &writers[i]);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(writers[i].thread, NULL);
		assert_false(writers[i].failed);
	}
	expect_bytes(data, model, BASE_BYTES);
	expect_commit(&inode, model, BASE_BYTES);
	file_data_close(data);
	inode_release(&inode);
	free(model);
}

/* A full disk under the staging files: short or refused writes, and nothing else changes. */
static int open_on_small_disk(void **unused)
{
	fixture_make(&fixture);
	char path[128];
	fixture_path(&fixture, "staging", path);
	mounted = mkdir(path, 0700) == 0 && mount("tmpfs", path, "tmpfs", 0, "size=1m") == 0;
	fixture_open_with(&fixture, COPY_UP_MAX, true);
	commit_base();
	must(worktree_get(fixture.trees, "main", &worktree, NULL), NULL, "get");
	return 0;
}

static void a_full_disk_tears_no_granule(void **unused)
{
	if (!mounted)
		skip();
	struct inode inode;
	uint8_t *model = malloc(BASE_BYTES);
	memcpy(model, base_bytes, BASE_BYTES);
	writable("big", &inode);
	struct file_data *data = open_data(&inode);
	char path[128];
	fixture_path(&fixture, "staging/filler", path);
	int filler = open(path, O_WRONLY | O_CREAT, 0600);
	static char block[4096];
	while (write(filler, block, sizeof(block)) > 0)
		;
	struct statvfs space;
	assert_int_equal(fstatvfs(filler, &space), 0);
	assert_int_equal(ftruncate(filler, lseek(filler, 0, SEEK_CUR) - 5 * 4096), 0);
	size_t offset = 10000;
	int error = 0;
	for (int i = 0; i < 10 && error == 0; i++, offset += 9000) {
		uint8_t bytes[8000];
		memset(bytes, 'a' + i, sizeof(bytes));
		ssize_t put = file_data_write(data, bytes, sizeof(bytes), offset, NULL);
		if (put < 0)
			error = (int)put;
		else
			memcpy(model + offset, bytes, (size_t)put);
		expect_bytes(data, model, BASE_BYTES);
	}
	assert_int_equal(error, -ERR_NO_SPACE);
	file_data_close(data);
	data = open_data(&inode);
	expect_bytes(data, model, BASE_BYTES);
	struct inode small;
	must(worktree_enter(worktree, worktree_epoch(worktree)), NULL, "enter");
	struct directory directory = {.number = root};
	struct found found;
	uint64_t number;
	must(worktree_lookup(worktree, &directory, "small", 5, &found, NULL), NULL, "small");
	must(worktree_adopt(worktree, root, found.entry, 1, &number, NULL), NULL, "adopt");
	free(found.entry);
	struct message message = {0};
	assert_int_equal(worktree_writable(worktree, number, false, &small, &message),
	                 -ERR_NO_SPACE);
	assert_true(strlen(message.text) > 0);
	worktree_leave(worktree);
	must(worktree_inode(worktree, number, &small), NULL, "inode");
	assert_int_equal(small.staging, 0);
	close(filler);
	unlink(path);
	assert_int_equal(file_data_write(data, "z", 1, 200000, NULL), 1);
	model[200000] = 'z';
	expect_bytes(data, model, BASE_BYTES);
	expect_commit(&inode, model, BASE_BYTES);
	file_data_close(data);
	inode_release(&inode);
	free(model);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, open_fixture, close_fixture)
	const struct CMUnitTest tests[] = {
	        TEST(copies_keep_bytes_and_time),
	        TEST(piecewise_files_match_a_model),
	        TEST(what_truncation_hid_stays_hidden),
	        TEST(what_a_power_cut_left_shows_content),
	        TEST(opens_share_one_state),
	        TEST(truncating_needs_no_copy),
	        TEST(concurrent_writers_keep_each_others_bytes),
	        cmocka_unit_test_setup_teardown(a_full_disk_tears_no_granule, open_on_small_disk,
	                                        close_fixture),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
