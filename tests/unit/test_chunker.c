/* Content-defined boundaries: the stored format's table, sizes, and what an edit changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include "store/chunker.h"

#include <cmocka.h>

static uint64_t next_random(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint8_t *random_of(size_t length, uint64_t seed)
{
	uint8_t *bytes = malloc(length + 8);

	for (size_t i = 0; i < length; i += 8) {
		uint64_t value = next_random(&seed);

		memcpy(bytes + i, &value, 8);
	}
	return bytes;
}

/* The definition, as plainly as it can be written. */
static size_t chunk_length_plain(const uint8_t *bytes, size_t length)
{
	uint64_t gear[256], hash = 0;

	for (unsigned i = 0; i < 256; i++) {
		uint8_t seed[10] = "lake gear";
		struct id id;

		seed[9] = (uint8_t)i;
		sha256_of(seed, sizeof(seed), &id);
		gear[i] = load_u64(id.bytes);
	}
	for (size_t i = 0; i < length && i < CHUNK_BYTES_MAX; i++) {
		unsigned bits = i < CHUNK_BYTES_TARGET ? 19 : 15;

		if (i >= CHUNK_BYTES_MIN - 64)
			hash = (hash << 1) + gear[bytes[i]];
		if (i >= CHUNK_BYTES_MIN && hash >> (64 - bits) == 0)
			return i + 1;
	}
	return length < CHUNK_BYTES_MAX ? length : CHUNK_BYTES_MAX;
}

static void test_boundaries_are_the_documented_ones(void **state)
{
	size_t length = 6u << 20;
	uint8_t *bytes = random_of(length, 1);

	for (size_t at = 0, step; at < length; at += step) {
		step = chunk_length(bytes + at, length - at);
		assert_int_equal(step, chunk_length_plain(bytes + at, length - at));
	}
	free(bytes);
}

static void test_sizes(void **state)
{
	size_t length = 64u << 20;
	uint8_t *bytes = random_of(length, 2);
	unsigned count = 0;

	for (size_t at = 0, step; at < length; at += step, count++) {
		step = chunk_length(bytes + at, length - at);
		assert_true(step > CHUNK_BYTES_MIN || at + step == length);
		assert_true(step <= CHUNK_BYTES_MAX);
	}
	assert_in_range(length / count, 128u << 10, 192u << 10);
	free(bytes);
}

static void test_short_and_uniform_content(void **state)
{
	uint8_t *bytes = malloc(CHUNK_BYTES_MAX + 1);

	memset(bytes, 'x', CHUNK_BYTES_MAX + 1);
	assert_int_equal(chunk_length(bytes, 1), 1);
	assert_int_equal(chunk_length(bytes, CHUNK_BYTES_MIN), CHUNK_BYTES_MIN);
	for (size_t length = 1; length <= CHUNK_BYTES_MAX + 1; length += 4095) {
		size_t found = chunk_length(bytes, length);

		assert_true(found >= 1 && found <= length && found <= CHUNK_BYTES_MAX);
	}
	free(bytes);
}

/* Bytes behind the boundary, and how many there are, do not move it. */
static void test_boundary_depends_on_what_is_before_it(void **state)
{
	for (uint64_t seed = 10; seed < 40; seed++) {
		uint8_t *bytes = random_of(2 * CHUNK_BYTES_MAX, seed);
		size_t length = chunk_length(bytes, 2 * CHUNK_BYTES_MAX);

		memset(bytes + length, 0x5a, 2 * CHUNK_BYTES_MAX - length);
		assert_int_equal(chunk_length(bytes, 2 * CHUNK_BYTES_MAX), length);
		assert_int_equal(chunk_length(bytes, CHUNK_BYTES_MAX), length);
		assert_int_equal(chunk_length(bytes, length), length);
		free(bytes);
	}
}

/* Inserting bytes at the front leaves nearly every chunk as it was. */
static void test_boundaries_come_back_after_an_insertion(void **state)
{
	size_t length = 16u << 20;
	uint8_t *bytes = random_of(length, 3);
	uint8_t *edited = malloc(length + 1000);
	bool *boundary = calloc(length + 1, 1);
	unsigned count = 0, same = 0;

	memset(edited, 7, 1000);
	memcpy(edited + 1000, bytes, length);
	for (size_t at = 0; at < length;) {
		at += chunk_length(bytes + at, length - at);
		boundary[at] = true;
		count++;
	}
	for (size_t at = 0; at < length + 1000;) {
		at += chunk_length(edited + at, length + 1000 - at);
		same += at >= 1000 && boundary[at - 1000];
	}
	assert_true(same + 10 >= count);
	free(bytes);
	free(edited);
	free(boundary);
}

static void test_is_zero(void **state)
{
	static uint8_t bytes[300];

	assert_true(is_zero(bytes, 0));
	assert_true(is_zero(bytes, 1));
	assert_true(is_zero(bytes, sizeof(bytes)));
	for (size_t i = 0; i < sizeof(bytes); i++) {
		bytes[i] = 1;
		assert_false(is_zero(bytes, sizeof(bytes)));
		assert_true(is_zero(bytes, i));
		assert_true(is_zero(bytes + i + 1, sizeof(bytes) - i - 1));
		bytes[i] = 0;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_boundaries_are_the_documented_ones),
	        cmocka_unit_test(test_sizes),
	        cmocka_unit_test(test_short_and_uniform_content),
	        cmocka_unit_test(test_boundary_depends_on_what_is_before_it),
	        cmocka_unit_test(test_boundaries_come_back_after_an_insertion),
	        cmocka_unit_test(test_is_zero),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
