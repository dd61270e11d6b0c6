/* Entries, names, extended attributes and nodes as bytes: round trips, and damage. */
#include "store/tree_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <cmocka.h> /* last: it defines a macro named fail */

static void fill(void *bytes, size_t length, uint8_t seed)
{
	for (size_t i = 0; i < length; i++)
		((uint8_t *)bytes)[i] = (uint8_t)(seed + 7 * i + 1);
}

static struct pointer some_pointer(uint8_t seed)
{
	struct pointer pointer = {.place = {.offset = 4096u + seed, .stored = 100, .raw = 100}};

	fill(pointer.id.bytes, ID_BYTES, seed);
	fill(pointer.place.pack, PACK_ID_BYTES, seed);
	return pointer;
}

static struct tree_entry regular(const char *name)
{
	return (struct tree_entry){
	        .name = name,
	        .name_length = strlen(name),
	        .attributes = {.mode = S_IFREG | 0644, .uid = 1000, .gid = 100, .mtime_ns = -5},
	        .content = {.kind = CONTENT_CHUNK, .size = 100, .pointer = some_pointer(9)}};
}

static struct tree_entry every_kind(unsigned kind, const char *name)
{
	static const uint8_t xattrs[] = {6, 'u', 's', 'e', 'r', '.', 'a', 2, 0, 0, 0, 'h', 'i'};
	struct tree_entry entry = regular(name);

	switch (kind) {
	case 0:
		break;
	case 1:
		entry.content.kind = CONTENT_LIST;
		entry.content.size = FILE_BYTES_MAX;
		entry.xattrs = xattrs;
		entry.xattrs_length = sizeof(xattrs);
		break;
	case 2:
		entry.content = (struct content){0};
		entry.attributes.uid = 0;
		break;
	case 3:
		entry.attributes.mode = S_IFDIR | 01777;
		entry.content = (struct content){.pointer = some_pointer(3)};
		break;
	case 4:
		entry.attributes.mode = S_IFDIR | 0700;
		entry.content = (struct content){0};
		break;
	case 5:
		entry.attributes = (struct attributes){.mode = S_IFLNK | 0777};
		entry.content = (struct content){0};
		entry.target = "../else/where";
		entry.target_length = strlen(entry.target);
		break;
	case 6:
		entry.attributes.mode = S_IFBLK | 0600;
		entry.attributes.rdev = 0x801;
		entry.content = (struct content){0};
		break;
	default:
		entry.attributes.mode = (kind == 7 ? S_IFIFO : S_IFSOCK) | 0600;
		entry.content = (struct content){0};
		break;
	}
	return entry;
}
#define KINDS 9

static void test_entry_round_trip(void **state)
{
	for (unsigned kind = 0; kind < KINDS; kind++) {
		CLEANUP(buffer_release) struct buffer bytes = {0}, again = {0};
		CLEANUP(free_pointer) struct tree_entry *decoded = NULL;
		struct tree_entry entry = every_kind(kind, "name");
		struct reader reader;

		assert_int_equal(entry_check(&entry), 0);
		tree_entry_encode(&bytes, &entry);
		buffer_u8(&bytes, 77); /* what follows is the caller's */
		reader = reader_of(bytes.data, bytes.length);
		assert_int_equal(tree_entry_decode(&reader, &decoded), 0);
		assert_int_equal(reader_left(&reader), 1);
		assert_true(tree_entry_equal(&entry, decoded));
		assert_memory_equal(&entry.content.pointer.place, &decoded->content.pointer.place,
		                    sizeof(struct place));
		assert_int_equal(decoded->name[decoded->name_length], 0);
		tree_entry_encode(&again, decoded);
		assert_memory_equal(bytes.data, again.data, again.length);
	}
}

/* Every cut and every flipped bit is refused, or is another valid entry in canonical form. */
static void test_entry_damage(void **state)
{
	for (unsigned kind = 0; kind < KINDS; kind++) {
		CLEANUP(buffer_release) struct buffer bytes = {0};
		struct tree_entry entry = every_kind(kind, "some name"), *decoded = NULL;
		struct reader reader;

		tree_entry_encode(&bytes, &entry);
		for (size_t length = 0; length < bytes.length; length++) {
			reader = reader_of(bytes.data, length);
			assert_int_equal(tree_entry_decode(&reader, &decoded), -ERR_CORRUPT);
			assert_true(reader.failed);
		}
		for (size_t bit = 0; bit < 8 * bytes.length; bit++) {
			CLEANUP(buffer_release) struct buffer again = {0};

			bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
			reader = reader_of(bytes.data, bytes.length);
			if (tree_entry_decode(&reader, &decoded) == 0) {
				tree_entry_encode(&again, decoded);
				assert_memory_equal(again.data, bytes.data, again.length);
				free(decoded);
			}
			bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		}
		bytes.data[0] = 2;
		reader = reader_of(bytes.data, bytes.length);
		assert_int_equal(tree_entry_decode(&reader, &decoded), -ERR_VERSION);
	}
}

/* A field that has its default value is absent: present, it would give the entry a second id. */
static void test_entry_one_encoding(void **state)
{
	static const uint8_t head[] = {1, 1, 'x', 0};
	static const uint8_t common[] = {0xa4, 0x81, 0, 0, 0, 0, 0, 0, 0, 0}; /* 0100644, time 0 */
	static const uint8_t zeroes[48];
	static const struct {
		uint8_t flag, bytes;
	} fields[] = {{0x01, 8},  {0x02, 8}, {0x04, 40}, {0x08, 40},
	              {0x10, 32}, {0x20, 3}, {0x40, 4},  {0x80, 0}};

	for (size_t i = 0; i < 1 + ARRAY_SIZE(fields); i++) {
		CLEANUP(buffer_release) struct buffer bytes = {0};
		CLEANUP(free_pointer) struct tree_entry *entry = NULL;
		struct reader reader;

		buffer_append(&bytes, head, sizeof(head));
		buffer_u8(&bytes, i > 0 ? fields[i - 1].flag : 0);
		buffer_append(&bytes, common, sizeof(common));
		if (i > 0)
			buffer_append(&bytes, zeroes, fields[i - 1].bytes);
		reader = reader_of(bytes.data, bytes.length);
		assert_int_equal(tree_entry_decode(&reader, &entry), i > 0 ? -ERR_CORRUPT : 0);
	}
}

static void test_entry_check(void **state)
{
	struct tree_entry entry = every_kind(0, "x");

	entry.content.size = 0;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(0, "x");
	entry.content.size = FILE_BYTES_MAX + 1;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(0, "x");
	entry.content.pointer.id = id_zero;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(0, "x");
	entry.attributes.mode = 0644;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry.attributes.mode = S_IFREG | 0x10000;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(0, "x");
	entry.attributes.rdev = 1;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(2, "x");
	entry.content.pointer = some_pointer(1); /* a file that is EMPTY has no id */
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(5, "x");
	entry.target_length = 0;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(0, "x");
	entry.target = "y";
	entry.target_length = 1;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(3, "x");
	entry.content.size = 1;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
	entry = every_kind(1, "x");
	entry.xattrs_length--;
	assert_int_equal(entry_check(&entry), -ERR_INVALID);
}

static void test_entry_compare(void **state)
{
	for (unsigned kind = 0; kind < KINDS; kind++) {
		struct tree_entry a = every_kind(kind, "x"), b = a;

		assert_true(tree_entry_equal(&a, &b));
		b.content.pointer.place.offset++;
		assert_true(tree_entry_equal(&a, &b));
		b.attributes.mtime_ns++;
		assert_false(tree_entry_equal(&a, &b));
		assert_true(tree_entry_same_but_time(&a, &b));
		b.attributes.gid++;
		assert_false(tree_entry_same_but_time(&a, &b));
		for (unsigned other = 0; other < KINDS; other++) {
			b = every_kind(other, "x");
			assert_int_equal(tree_entry_same_but_time(&a, &b), other == kind);
		}
	}
}

static void test_names(void **state)
{
	char longest[NAME_BYTES_MAX + 1];

	memset(longest, 'n', sizeof(longest));
	assert_int_equal(name_check("a", 1), 0);
	assert_int_equal(name_check("...", 3), 0);
	assert_int_equal(name_check(".a", 2), 0);
	assert_int_equal(name_check("\xff\x01\n", 3), 0);
	assert_int_equal(name_check(longest, NAME_BYTES_MAX), 0);
	assert_int_equal(name_check(longest, NAME_BYTES_MAX + 1), -ERR_TOO_LARGE);
	assert_int_equal(name_check("", 0), -ERR_BAD_NAME);
	assert_int_equal(name_check(".", 1), -ERR_BAD_NAME);
	assert_int_equal(name_check("..", 2), -ERR_BAD_NAME);
	assert_int_equal(name_check("a/b", 3), -ERR_BAD_NAME);
	assert_int_equal(name_check("a\0b", 3), -ERR_BAD_NAME);
	assert_true(name_compare("a", 1, "ab", 2) < 0);
	assert_true(name_compare("\xff", 1, "a", 1) > 0);
	assert_true(name_compare("b", 1, "ab", 2) > 0);
	assert_int_equal(name_compare("ab", 2, "ab", 2), 0);
}

/* -- extended attributes -- */

static struct span text(const char *string)
{
	return (struct span){.data = string, .length = strlen(string)};
}

static int collect(void *context, const char *name, size_t name_length, struct span value)
{
	struct buffer *out = context;

	buffer_append(out, name, name_length);
	buffer_u8(out, '=');
	buffer_append(out, value.data, value.length);
	buffer_u8(out, ';');
	return 0;
}

static void assert_xattrs(const struct buffer *list, const char *expected)
{
	CLEANUP(buffer_release) struct buffer out = {0};

	assert_int_equal(xattrs_check(list->data, list->length), 0);
	assert_int_equal(xattrs_each(list->data, list->length, collect, &out), 0);
	buffer_u8(&out, 0);
	assert_string_equal((char *)out.data, expected);
}

static void test_xattrs(void **state)
{
	CLEANUP(buffer_release) struct buffer list = {0};
	struct span none = {0}, value;

	assert_int_equal(xattrs_get(NULL, 0, "user.a", &value), -ERR_NOT_FOUND);
	assert_int_equal(xattrs_set(&list, "user.a", none), -ERR_NOT_FOUND);
	assert_int_equal(xattrs_set(&list, "user.m", text("1")), 0);
	assert_int_equal(xattrs_set(&list, "user.z", text("")), 0);
	assert_int_equal(xattrs_set(&list, "user.a", text("three")), 0);
	assert_xattrs(&list, "user.a=three;user.m=1;user.z=;");
	assert_int_equal(xattrs_set(&list, "user.m", text("longer")), 0);
	assert_int_equal(xattrs_set(&list, "user.mm", text("x")), 0);
	assert_xattrs(&list, "user.a=three;user.m=longer;user.mm=x;user.z=;");
	assert_int_equal(xattrs_get(list.data, list.length, "user.mm", &value), 0);
	assert_int_equal(value.length, 1);
	assert_int_equal(xattrs_get(list.data, list.length, "user", &value), -ERR_NOT_FOUND);
	assert_int_equal(xattrs_set(&list, "user.a", none), 0);
	assert_int_equal(xattrs_set(&list, "user.b", none), -ERR_NOT_FOUND);
	assert_int_equal(xattrs_set(&list, "user.z", none), 0);
	assert_int_equal(xattrs_set(&list, "user.m", none), 0);
	assert_xattrs(&list, "user.mm=x;");
	assert_int_equal(xattrs_set(&list, "user.mm", none), 0);
	assert_int_equal(list.length, 0);
	assert_int_equal(xattrs_set(&list, "", text("x")), -ERR_BAD_NAME);
}

static void test_xattrs_limits(void **state)
{
	CLEANUP(buffer_release) struct buffer list = {0};
	static uint8_t big[XATTRS_BYTES_MAX + 1];
	struct span value = {.data = big, .length = XATTRS_BYTES_MAX - 1 - 1 - 4};
	char name[300];

	assert_int_equal(xattrs_set(&list, "a", value), 0);
	assert_int_equal(list.length, XATTRS_BYTES_MAX);
	assert_int_equal(xattrs_check(list.data, list.length), 0);
	assert_int_equal(xattrs_set(&list, "b", text("")), -ERR_TOO_LARGE);
	value.length++;
	assert_int_equal(xattrs_set(&list, "a", value), -ERR_TOO_LARGE);
	value.length = SIZE_MAX;
	assert_int_equal(xattrs_set(&list, "a", value), -ERR_TOO_LARGE);
	assert_int_equal(xattrs_set(&list, "a", text("small")), 0);
	memset(name, 'n', sizeof(name));
	name[256] = '\0';
	assert_int_equal(xattrs_set(&list, name, text("x")), -ERR_BAD_NAME);
	name[255] = '\0';
	assert_int_equal(xattrs_set(&list, name, text("x")), 0);
	assert_int_equal(xattrs_check(list.data, list.length), 0);
}

static void test_xattrs_damage(void **state)
{
	static const uint8_t equal[] = {1, 'a', 0, 0, 0, 0, 1, 'a', 0, 0, 0, 0};
	static const uint8_t falling[] = {1, 'b', 0, 0, 0, 0, 1, 'a', 0, 0, 0, 0};
	static const uint8_t nameless[] = {0, 0, 0, 0, 0};
	static const uint8_t past_end[] = {1, 'a', 9, 0, 0, 0, 'x'};
	static const uint8_t huge[] = {1, 'a', 255, 255, 255, 255, 'x'};
	static const uint8_t nul[] = {2, 'a', 0, 0, 0, 0, 0};
	CLEANUP(buffer_release) struct buffer list = {0};

	assert_int_equal(xattrs_check(equal, sizeof(equal)), -ERR_CORRUPT);
	assert_int_equal(xattrs_check(falling, sizeof(falling)), -ERR_CORRUPT);
	assert_int_equal(xattrs_check(nameless, sizeof(nameless)), -ERR_CORRUPT);
	assert_int_equal(xattrs_check(past_end, sizeof(past_end)), -ERR_CORRUPT);
	assert_int_equal(xattrs_check(huge, sizeof(huge)), -ERR_CORRUPT);
	assert_int_equal(xattrs_check(nul, sizeof(nul)), -ERR_CORRUPT);
	buffer_append(&list, past_end, sizeof(past_end));
	assert_int_equal(xattrs_set(&list, "a", text("x")), -ERR_CORRUPT);
	assert_int_equal(xattrs_each(list.data, list.length, collect, NULL), -ERR_CORRUPT);
}

/* -- nodes -- */

struct raw_node {
	struct buffer logical;
	struct buffer places;
};

static void raw_node_release(struct raw_node *raw)
{
	buffer_release(&raw->logical);
	buffer_release(&raw->places);
}

/* A leaf with one entry of every kind. */
static struct raw_node make_leaf(void)
{
	static struct node_builder builder;
	struct raw_node raw = {0};
	char name[] = "name0";

	node_builder_start(&builder, 0);
	for (unsigned kind = 0; kind < KINDS; kind++) {
		CLEANUP(buffer_release) struct buffer bytes = {0};
		struct tree_entry entry;
		uint8_t place[PLACE_ENCODED_BYTES] = {0};

		name[4] = (char)('0' + kind);
		entry = every_kind(kind, name);
		tree_entry_encode(&bytes, &entry);
		size_t tail = entry_has_id(&entry) ? PLACE_ENCODED_BYTES : 0;
		memcpy(place, bytes.data + bytes.length - tail, tail);
		struct item item = {.bytes = bytes.data + 1,
		                    .length = bytes.length - 1 - tail,
		                    .place = place,
		                    .total = 1};
		assert_int_equal(node_builder_add(&builder, &item), 0);
	}
	assert_int_equal(node_builder_encode(&builder, &raw.logical), 0);
	buffer_append(&raw.places, builder.places.data, builder.places.length);
	node_builder_release(&builder);
	memset(&builder, 0, sizeof(builder));
	return raw;
}

static int validate(const struct raw_node *raw, const char **ret_why)
{
	return node_validate(raw->logical.data, raw->logical.length, raw->places.data,
	                     raw->places.length, ret_why);
}

static void assert_damaged(const struct raw_node *raw, const char *expected)
{
	const char *why = NULL;

	assert_int_equal(validate(raw, &why), -ERR_CORRUPT);
	assert_string_equal(why, expected);
}

static void test_node_access(void **state)
{
	CLEANUP(raw_node_release) struct raw_node raw = make_leaf();
	struct record record = {.logical = raw.logical.data,
	                        .logical_length = raw.logical.length,
	                        .places = raw.places.data,
	                        .places_length = raw.places.length};
	struct node node = {.record = &record, .level = 0, .count = KINDS, .total = KINDS};
	const char *why;

	assert_int_equal(validate(&raw, &why), 0);
	for (unsigned kind = 0; kind < KINDS; kind++) {
		char name[] = "name0";
		struct tree_entry entry, expected;

		name[4] = (char)('0' + kind);
		expected = every_kind(kind, name);
		assert_int_equal(node_find(&node, name, 5, false), kind);
		assert_int_equal(node_find(&node, name, 5, true), kind + 1);
		node_entry(&node, kind, &entry);
		assert_true(tree_entry_equal(&entry, &expected));
		assert_string_equal(entry.name, name);
		assert_memory_equal(&entry.content.pointer.place, &expected.content.pointer.place,
		                    sizeof(struct place));
	}
	assert_int_equal(node_find(&node, "name", 4, false), 0);
	assert_int_equal(node_find(&node, "nz", 2, false), KINDS);
}

static void test_node_damage(void **state)
{
	CLEANUP(raw_node_release) struct raw_node raw = make_leaf();
	uint8_t *bytes = raw.logical.data;
	size_t length = raw.logical.length;
	const char *why;

	bytes[0] = 2;
	assert_int_equal(validate(&raw, &why), -ERR_VERSION);
	bytes[0] = 0;
	assert_damaged(&raw, "malformed header");
	bytes[0] = 1;
	bytes[1] = NODE_LEVEL_MAX + 1;
	assert_damaged(&raw, "malformed header");
	bytes[1] = 0;
	bytes[3] = 1;
	assert_damaged(&raw, "malformed header");
	bytes[3] = 0;
	bytes[8]++;
	assert_damaged(&raw, "wrong number of entries");
	bytes[8]--;
	bytes[NODE_HEADER_BYTES + 4]--;
	assert_damaged(&raw, "malformed entry");
	bytes[NODE_HEADER_BYTES + 7] = 1;
	assert_damaged(&raw, "bad offset");
	bytes[NODE_HEADER_BYTES + 7] = 0;
	bytes[NODE_HEADER_BYTES + 4]++;
	/* "name1" becomes "name0" */
	bytes[load_u32(bytes + NODE_HEADER_BYTES + 4) + 5]--;
	assert_damaged(&raw, "names out of order");
	bytes[load_u32(bytes + NODE_HEADER_BYTES + 4) + 5]++;
	raw.places.length -= PLACE_ENCODED_BYTES;
	assert_damaged(&raw, "wrong number of places");
	raw.places.length += PLACE_ENCODED_BYTES;
	raw.places.data[2 * PLACE_ENCODED_BYTES]++; /* of an entry without id */
	assert_damaged(&raw, "malformed place");
	raw.places.data[2 * PLACE_ENCODED_BYTES]--;
	assert_int_equal(validate(&raw, &why), 0);
	buffer_u8(&raw.logical, 0);
	assert_damaged(&raw, "malformed entry");
	for (raw.logical.length = 0; raw.logical.length < length; raw.logical.length++)
		assert_int_equal(validate(&raw, &why), -ERR_CORRUPT);
	for (size_t bit = 0; bit < 8 * length; bit++) {
		raw.logical.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_in_range(-validate(&raw, &why), 0, ERR_COUNT);
		raw.logical.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}

/* The rule is part of the format: these results may never change. */
static void test_boundary_rule(void **state)
{
	unsigned found[4] = {0}, both = 0;
	char name[32];

	for (unsigned i = 0; i < 100000; i++) {
		size_t length = (size_t)snprintf(name, sizeof(name), "part-%05u.parquet", i);
		bool level0 = name_is_boundary(name, length, 0);

		for (unsigned level = 0; level < 4; level++)
			found[level] += name_is_boundary(name, length, level);
		both += level0 && name_is_boundary(name, length, 1);
	}
	/* 100,000 / 128 = 781, standard deviation 28; both: 6.1 */
	for (unsigned level = 0; level < 4; level++)
		assert_in_range(found[level], 650, 910);
	assert_in_range(both, 0, 20);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_entry_round_trip),
	        cmocka_unit_test(test_entry_damage),
	        cmocka_unit_test(test_entry_one_encoding),
	        cmocka_unit_test(test_entry_check),
	        cmocka_unit_test(test_entry_compare),
	        cmocka_unit_test(test_names),
	        cmocka_unit_test(test_xattrs),
	        cmocka_unit_test(test_xattrs_limits),
	        cmocka_unit_test(test_xattrs_damage),
	        cmocka_unit_test(test_node_access),
	        cmocka_unit_test(test_node_damage),
	        cmocka_unit_test(test_boundary_rule),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
