/* base and error: what everything else is written in. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/base.h"

/* cmocka makes a macro of its own of this name. */
static int compose(struct message *message, int error, const char *text)
{
	return fail(message, error, "%s", text);
}

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static char root[64];

static int make_root(void **state)
{
	strcpy(root, "/tmp/test_base.XXXXXX");
	return mkdtemp(root) == NULL ? -1 : 0;
}

static int remove_root(void **state)
{
	char command[128];
	snprintf(command, sizeof(command), "rm -rf '%s'", root);
	return system(command) == 0 ? 0 : -1;
}

static const char *path_in(const char *name)
{
	static char path[128];
	snprintf(path, sizeof(path), "%s/%s", root, name);
	return path;
}

/* -- error -- */

static void test_error_table(void **state)
{
	assert_int_equal(error_errno(-ERR_NOT_FOUND), ENOENT);
	assert_int_equal(error_exit(-ERR_NOT_FOUND), 5);
	assert_int_equal(error_exit(-ERR_CONFLICT), 3);
	assert_int_equal(error_exit(-ERR_REFUSED), 4);
	assert_int_equal(error_exit(0), 0);
	assert_string_equal(error_text(-ERR_NO_SPACE), "no space left on the device");
	assert_string_equal(error_code(-ERR_STORE_AWAY), "store_away");
	for (int e = 1; e < ERR_COUNT; e++) {
		assert_true(error_errno(-e) > 0);
		assert_in_range(error_exit(-e), 1, 5);
		assert_true(strlen(error_text(-e)) > 0);
		assert_true(strspn(error_code(-e), "abcdefghijklmnopqrstuvwxyz_") ==
		            strlen(error_code(-e)));
	}
	/* Any int at all. */
	static const int strange[] = {1,     7,      -ERR_COUNT, -999,     -1000,
	                              -1001, -99999, INT32_MIN,  INT32_MAX};
	for (size_t i = 0; i < ARRAY_SIZE(strange); i++) {
		assert_true(error_errno(strange[i]) > 0);
		assert_int_equal(error_exit(strange[i]), 1);
		assert_string_equal(error_code(strange[i]), "system");
		assert_non_null(error_text(strange[i]));
	}
}

static void test_error_system(void **state)
{
	assert_int_equal(error_system(ENOSPC), -ERR_NO_SPACE);
	assert_int_equal(error_system(EDQUOT), -ERR_NO_SPACE);
	assert_int_equal(error_system(ENOENT), -ERR_NOT_FOUND);
	assert_int_equal(error_system(0), -(ERR_SYSTEM + EIO));
	/* Whatever the name: the errno comes back, but for the quota. */
	for (int e = 1; e < 134; e++) {
		int error = error_system(e);
		assert_true(error < 0);
		if (e != EDQUOT)
			assert_int_equal(error_errno(error), e);
	}
	assert_string_equal(error_text(error_system(EACCES)), "Permission denied");
	assert_string_equal(error_code(error_system(EACCES)), "system");
}

static void test_message(void **state)
{
	struct message message = {"untouched"};
	assert_int_equal(compose(NULL, -ERR_BUSY, "nobody listens"), -ERR_BUSY);
	assert_int_equal(compose(&message, -ERR_BUSY, "inner"), -ERR_BUSY);
	assert_string_equal(message.text, "inner");
	assert_int_equal(fail_context(&message, -ERR_CORRUPT, "outer %d", 7), -ERR_CORRUPT);
	assert_string_equal(message.text, "outer 7: inner");
	assert_int_equal(compose(&message, -1, message.text), -1);
	assert_string_equal(message.text, "outer 7: inner");
	assert_int_equal(fail_context(NULL, -1, "x"), -1);
	/* Too long is cut, never over the end. */
	char text[3000];
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	compose(&message, -1, text);
	assert_int_equal(strlen(message.text), sizeof(message.text) - 1);
	for (size_t length = 1015; length < 1030; length++) {
		fail_context(&message, -1, "%.*s", (int)length, text);
		assert_true(strlen(message.text) < sizeof(message.text));
	}
}

/* -- hexadecimal, numbers -- */

static void test_hex(void **state)
{
	struct id id, back;
	for (size_t i = 0; i < ID_BYTES; i++)
		id.bytes[i] = (uint8_t)(i * 37);
	char hex[ID_HEX + 3];
	id_to_hex(&id, hex);
	assert_int_equal(strlen(hex), ID_HEX);
	assert_int_equal(id_from_hex(hex, &back), 0);
	assert_true(id_equal(&id, &back));
	assert_false(id_is_zero(&id));
	assert_true(id_is_zero(&id_zero));
	hex[5] = 'A';
	assert_int_equal(id_from_hex(hex, &back), -ERR_INVALID);
	hex[5] = 'g';
	assert_int_equal(id_from_hex(hex, &back), -ERR_INVALID);
	hex[5] = 'a';
	hex[63] = '\0';
	assert_int_equal(id_from_hex(hex, &back), -ERR_INVALID);
	strcpy(hex + 63, "00");
	assert_int_equal(id_from_hex(hex, &back), -ERR_INVALID);
	assert_int_equal(id_from_hex("", &back), -ERR_INVALID);
	uint8_t bytes[4] = {9, 9, 9, 9};
	assert_int_equal(hex_decode("0aF", 3, bytes), -ERR_INVALID);
	assert_int_equal(hex_decode("00f", 3, bytes), -ERR_INVALID);
	assert_int_equal(hex_decode("00zz", 4, bytes), -ERR_INVALID);
	assert_int_equal(bytes[0], 9); /* untouched on failure */
	assert_int_equal(hex_decode("00ff10", 6, bytes), 0);
	assert_memory_equal(bytes, "\x00\xff\x10\x09", 4);
	assert_int_equal(hex_decode("", 0, bytes), 0);
}

static void test_numbers(void **state)
{
	uint8_t at[16] = {0};
	store_u32(at + 1, 0x01020304);
	assert_memory_equal(at, "\x00\x04\x03\x02\x01\x00", 6);
	assert_int_equal(load_u32(at + 1), 0x01020304);
	store_u64(at + 3, 0x0102030405060708);
	assert_int_equal(at[3], 8);
	assert_true(load_u64(at + 3) == 0x0102030405060708);
	store_u64_be(at + 5, 0x0102030405060708);
	assert_int_equal(at[5], 1);
	assert_true(load_u64_be(at + 5) == 0x0102030405060708);
}

/* -- buffers and readers -- */

static void test_round_trip(void **state)
{
	CLEANUP(buffer_release) struct buffer buffer = {0};
	struct id id, id_back;
	random_bytes(&id, sizeof(id));
	buffer_u8(&buffer, 0xfe);
	buffer_u16(&buffer, 0xfedc);
	buffer_u32(&buffer, 0xfedcba98);
	buffer_u64(&buffer, 0xfedcba9876543210);
	buffer_id(&buffer, &id);
	buffer_string(&buffer, "text", 4);
	buffer_string(&buffer, NULL, 0);
	buffer_append(&buffer, "tail", 4);
	assert_int_equal(buffer_check(&buffer), 0);
	assert_int_equal(buffer.length, 1 + 2 + 4 + 8 + 32 + 8 + 4 + 4);
	/* Cut off anywhere: fails, yields zeroes, reads nothing beyond. */
	for (size_t length = 0; length <= buffer.length; length++) {
		CLEANUP(free_pointer) uint8_t *copy = malloc(length + 1);
		memcpy(copy, buffer.data, length);
		struct reader reader = reader_of(copy, length);
		size_t string_length = 99, empty_length = 99;
		uint8_t u8 = read_u8(&reader);
		uint16_t u16 = read_u16(&reader);
		uint32_t u32 = read_u32(&reader);
		uint64_t u64 = read_u64(&reader);
		read_id(&reader, &id_back);
		const uint8_t *string = read_string(&reader, 4, &string_length);
		const uint8_t *empty = read_string(&reader, 0, &empty_length);
		const uint8_t *tail = read_bytes(&reader, 4);
		if (length < buffer.length) {
			assert_int_equal(reader_finish(&reader), -ERR_CORRUPT);
			assert_null(tail);
			assert_int_equal(empty_length, 0);
			continue;
		}
		assert_int_equal(reader_finish(&reader), 0);
		assert_int_equal(u8, 0xfe);
		assert_int_equal(u16, 0xfedc);
		assert_int_equal(u32, 0xfedcba98);
		assert_true(u64 == 0xfedcba9876543210);
		assert_true(id_equal(&id, &id_back));
		assert_int_equal(string_length, 4);
		assert_memory_equal(string, "text", 4);
		assert_non_null(empty);
		assert_memory_equal(tail, "tail", 4);
	}
}

static void test_reader_limits(void **state)
{
	uint8_t bytes[12] = {5, 0, 0, 0, 'a', 'b', 'c', 'd', 'e', 1, 2, 3};
	size_t length;
	struct reader reader = reader_of(bytes, sizeof(bytes));
	assert_null(read_string(&reader, 4, &length));
	assert_int_equal(length, 0);
	assert_true(reader.failed);
	assert_int_equal(read_u8(&reader), 0); /* from then on */
	reader = reader_of(bytes, sizeof(bytes));
	assert_non_null(read_string(&reader, 5, &length));
	assert_int_equal(reader_left(&reader), 3);
	assert_int_equal(reader_finish(&reader), -ERR_CORRUPT); /* bytes are left over */
	memset(bytes, 0xff, 4);
	reader = reader_of(bytes, sizeof(bytes));
	assert_null(read_string(&reader, SIZE_MAX, &length));
	reader = reader_of(bytes, sizeof(bytes));
	assert_null(read_bytes(&reader, SIZE_MAX));
	reader = reader_of(NULL, 0);
	assert_int_equal(reader_finish(&reader), 0);
	assert_int_equal(read_u64(&reader), 0);
	assert_int_equal(reader_finish(&reader), -ERR_CORRUPT);
}

static void test_buffer_limits(void **state)
{
	CLEANUP(buffer_release) struct buffer buffer = {.limit = 10};
	buffer_append(&buffer, "12345678", 8);
	assert_int_equal(buffer_check(&buffer), 0);
	buffer_append(&buffer, "abc", 3);
	assert_int_equal(buffer_check(&buffer), -ERR_TOO_LARGE);
	assert_int_equal(buffer.length, 8);
	buffer_u8(&buffer, 1); /* sticky: a hole must not appear */
	assert_int_equal(buffer.length, 8);
	assert_int_equal(buffer_check(&buffer), -ERR_TOO_LARGE);
	buffer_clear(&buffer);
	assert_int_equal(buffer_check(&buffer), 0);
	assert_int_equal(buffer_reserve(&buffer, 10), 0);
	assert_int_equal(buffer_reserve(&buffer, 11), -ERR_TOO_LARGE);
	assert_int_equal(buffer_reserve(&buffer, SIZE_MAX), -ERR_TOO_LARGE);
	buffer_release(&buffer);
	assert_int_equal(buffer.limit, 10);
	buffer_append(&buffer, "again", 5);
	assert_memory_equal(buffer.data, "again", 5);

	CLEANUP(buffer_release) struct buffer wide = {0};
	assert_int_equal(buffer_reserve(&wide, BUFFER_LIMIT_DEFAULT + 1), -ERR_TOO_LARGE);
	for (int i = 0; i < 100000; i++)
		buffer_u32(&wide, (uint32_t)i);
	assert_int_equal(buffer_check(&wide), 0);
	assert_int_equal(load_u32(wide.data + 4 * 99999), 99999);
	buffer_release(&wide);
	buffer_release(&wide);
}

/* -- SHA-256 -- */

static void expect_sha256(const char *text, size_t length, const char *expected)
{
	struct id id;
	char hex[ID_HEX + 1];
	sha256_of(text, length, &id);
	id_to_hex(&id, hex);
	assert_string_equal(hex, expected);
}

static void *hash_in_thread(void *argument)
{
	struct id id;
	for (int i = 0; i < 1000; i++)
		sha256_of("abc", 3, &id);
	return memcmp(&id, argument, sizeof(id)) == 0 ? NULL : (void *)1;
}

static void test_sha256(void **state)
{
	/* FIPS 180-4's examples. */
	expect_sha256("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	expect_sha256("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	expect_sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56,
	              "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
	struct id one, many;
	static uint8_t bytes[100000];
	random_bytes(bytes, sizeof(bytes));
	sha256_of(bytes, sizeof(bytes), &one);
	struct sha256 *hash;
	assert_int_equal(sha256_new(&hash), 0);
	for (int again = 0; again < 2; again++) { /* final starts anew */
		for (size_t at = 0, step = 1; at < sizeof(bytes); at += step, step = step * 3 + 1)
			sha256_update(hash, bytes + at,
			              step < sizeof(bytes) - at ? step : sizeof(bytes) - at);
		sha256_final(hash, &many);
		assert_true(id_equal(&one, &many));
	}
	sha256_free(hash);
	sha256_free(NULL);
	pthread_t threads[4];
	sha256_of("abc", 3, &one);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, hash_in_thread, &one), 0);
	for (int i = 0; i < 4; i++) {
		void *result;
		pthread_join(threads[i], &result);
		assert_null(result);
	}
}

/* All lengths around one and two blocks, and long ones beside short ones. */
static void test_sha256_of_many(void **state)
{
	(void)state;
	static uint8_t bytes[300 << 10];
	struct sha256_input inputs[200];
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 2654435761u >> 13);
	for (size_t round = 0; round < 4; round++) {
		for (size_t i = 0; i < ARRAY_SIZE(inputs); i++) {
			size_t length = i % 7 == round ? sizeof(bytes) - 300 - i : i;
			inputs[i] = (struct sha256_input){bytes + i, length, {{0}}};
		}
		size_t count = round == 3 ? 1 : ARRAY_SIZE(inputs) - round;
		sha256_of_many(inputs, count);
		for (size_t i = 0; i < count; i++) {
			struct id alone;
			sha256_of(inputs[i].bytes, inputs[i].length, &alone);
			assert_true(id_equal(&alone, &inputs[i].id));
		}
	}
	sha256_of_many(inputs, 0);
}

/* -- clocks, random numbers -- */

static void test_clocks_and_random(void **state)
{
	assert_true(clock_wall_ms() > 1600000000000);
	int64_t before = clock_monotonic_ms();
	usleep(5000);
	assert_in_range(clock_monotonic_ms() - before, 4, 10000);
	assert_true(random_u64() != random_u64());
	uint8_t bytes[1000] = {0};
	random_bytes(bytes, sizeof(bytes));
	unsigned zeroes = 0;
	for (size_t i = 0; i < sizeof(bytes); i++)
		zeroes += bytes[i] == 0;
	assert_true(zeroes < 50);
	struct id a, b;
	assert_int_equal(boot_id(&a), 0);
	assert_int_equal(boot_id(&b), 0);
	assert_true(id_equal(&a, &b));
}

/* -- files -- */

static void test_read_file(void **state)
{
	CLEANUP(buffer_release) struct buffer got = {0};
	static char big[10000];
	memset(big, 'b', sizeof(big));
	buffer_append(&got, "kept", 4);
	assert_int_equal(read_file(AT_FDCWD, path_in("none"), 10, &got), -ERR_NOT_FOUND);
	assert_int_equal(write_file_durably(AT_FDCWD, path_in("f"), big, sizeof(big)), 0);
	assert_int_equal(read_file(AT_FDCWD, path_in("f"), sizeof(big) - 1, &got), -ERR_TOO_LARGE);
	assert_int_equal(got.length, 4);
	assert_int_equal(read_file(AT_FDCWD, path_in("f"), sizeof(big), &got), 0);
	assert_int_equal(got.length, 4 + sizeof(big));
	assert_memory_equal(got.data, "kept", 4);
	assert_memory_equal(got.data + 4, big, sizeof(big));
	got.limit = got.length + 10;
	assert_int_equal(read_file(AT_FDCWD, path_in("f"), sizeof(big), &got), -ERR_TOO_LARGE);
	assert_int_equal(got.length, 4 + sizeof(big));
	/* No size is given by the kernel for these. */
	CLEANUP(buffer_release) struct buffer self = {0};
	assert_int_equal(read_file(AT_FDCWD, "/proc/self/status", 1 << 20, &self), 0);
	assert_true(self.length > 100);
	buffer_clear(&self);
	assert_int_equal(read_file(AT_FDCWD, "/proc/self/status", 10, &self), -ERR_TOO_LARGE);
	assert_int_equal(self.length, 0);
	assert_true(read_file(AT_FDCWD, root, 100, &self) < 0);
}

static void test_write_file_durably(void **state)
{
	CLEANUP(close_descriptor) int directory = open(root, O_RDONLY | O_DIRECTORY);
	assert_int_equal(write_file_durably(directory, "g", "first", 5), 0);
	assert_int_equal(write_file_durably(directory, "g", "2nd", 3), 0);
	assert_int_equal(write_file_durably(directory, "g/below", "x", 1), -ERR_NOT_DIRECTORY);
	assert_int_equal(write_file_durably(directory, "none/g", "x", 1), -ERR_NOT_FOUND);
	assert_int_equal(mkdir(path_in("d"), 0777), 0);
	assert_int_equal(write_file_durably(directory, "d", "x", 1), -ERR_IS_DIRECTORY);
	assert_int_equal(write_file_durably(directory, "d/h", "", 0), 0);
	CLEANUP(buffer_release) struct buffer got = {0};
	assert_int_equal(read_file(directory, "g", 10, &got), 0);
	assert_int_equal(got.length, 3);
	assert_memory_equal(got.data, "2nd", 3);
	/* No temporary file is left, whether it went well or not. */
	char command[128];
	snprintf(command, sizeof(command), "test $(find '%s' -type f | wc -l) = 2", root);
	assert_int_equal(system(command), 0);
}

static void test_full_transfers(void **state)
{
	CLEANUP(close_descriptor) int fd = open(path_in("t"), O_RDWR | O_CREAT, 0600);
	assert_int_equal(write_full(fd, "0123456789", 10, 5), 0);
	char bytes[32];
	assert_int_equal(read_full(fd, bytes, sizeof(bytes), 0), 15);
	assert_memory_equal(bytes,
	                    "\0\0\0\0\0"
	                    "0123456789",
	                    15);
	assert_int_equal(read_full(fd, bytes, 3, 12), 3);
	assert_int_equal(read_full(fd, bytes, 3, 100), 0);
	CLEANUP(close_descriptor) int read_only = open(path_in("t"), O_RDONLY);
	assert_int_equal(error_errno(write_full(read_only, "x", 1, 0)), EBADF);
	CLEANUP(close_descriptor) int full = open("/dev/full", O_WRONLY);
	if (full >= 0)
		assert_int_equal(write_full(full, "x", 1, 0), -ERR_NO_SPACE);
	int none = -1;
	close_descriptor(&none);
}

static void test_make_directories(void **state)
{
	struct stat status;
	assert_int_equal(make_directories(path_in("a//b/c/"), 0755), 0);
	assert_int_equal(stat(path_in("a/b/c"), &status), 0);
	assert_int_equal(make_directories(path_in("a/b/c"), 0755), 0);
	assert_int_equal(write_file_durably(AT_FDCWD, path_in("f"), "x", 1), 0);
	assert_int_equal(make_directories(path_in("f"), 0755), -ERR_NOT_DIRECTORY);
	assert_int_equal(make_directories(path_in("f/g"), 0755), -ERR_NOT_DIRECTORY);
	assert_int_equal(make_directories("", 0755), -ERR_INVALID);
	assert_int_equal(make_directories("/", 0755), 0);
	/* The last one has the mode asked for; those above can be entered. */
	assert_int_equal(make_directories(path_in("m/n"), 0500), 0);
	assert_int_equal(stat(path_in("m/n"), &status), 0);
	assert_int_equal(status.st_mode & 0777, 0500);
	CLEANUP(free_pointer) char *long_path = malloc(6000);
	memset(long_path, 'x', 5999);
	long_path[5999] = '\0';
	assert_int_equal(error_errno(make_directories(long_path, 0755)), ENAMETOOLONG);
}

static int count_report(void *context, const char *what, uint64_t done, uint64_t total,
                        const char *unit)
{
	(*(int *)context)++;
	return done > 5;
}

static void test_progress(void **state)
{
	int count = 0;
	struct progress progress = {.report = count_report, .context = &count};
	assert_int_equal(progress_report(NULL, "x", 9, 9, "bytes"), 0);
	assert_int_equal(progress_report(&progress, "x", 5, 0, "bytes"), 0);
	assert_int_equal(progress_report(&progress, "x", 6, 0, "bytes"), -ERR_INTERRUPTED);
	assert_int_equal(count, 2);
}

static void test_steal(void **state)
{
	CLEANUP(free_pointer) char *from = strdup("x");
	char *to = steal(&from);
	assert_null(from);
	assert_string_equal(to, "x");
	free(to);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_root, remove_root)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST(test_error_table),
	        TEST(test_error_system),
	        TEST(test_message),
	        TEST(test_hex),
	        TEST(test_numbers),
	        TEST(test_round_trip),
	        TEST(test_reader_limits),
	        TEST(test_buffer_limits),
	        TEST(test_sha256),
	        TEST(test_sha256_of_many),
	        TEST(test_clocks_and_random),
	        TEST(test_read_file),
	        TEST(test_write_file_durably),
	        TEST(test_full_transfers),
	        TEST(test_make_directories),
	        TEST(test_progress),
	        TEST(test_steal),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
