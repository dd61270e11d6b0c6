/* Tests of refs/diff.h: differences of trees, and paths in trees. */
#include "refs/diff.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include <cmocka.h>
#undef fail /* cmocka's macro hides the function of store/error.h */

struct world {
	struct object_store *store;
	struct odb *odb;
	struct packer *packer;
	struct message message;
};

static int set_up(void **state)
{
	struct world *world = calloc(1, sizeof(*world));
	assert_int_equal(object_memory_open(&world->store), 0);
	assert_int_equal(odb_new(world->store, &(struct odb_options){0}, &world->odb), 0);
	assert_int_equal(packer_new(world->odb, &world->packer), 0);
	*state = world;
	return 0;
}

static int tear_down(void **state)
{
	struct world *world = *state;
	packer_free(world->packer);
	odb_free(world->odb);
	object_store_free(world->store);
	free(world);
	return 0;
}

/* A file whose content is named by a number; 0: empty. Never read. */
static struct tree_entry file_of(unsigned content, uint32_t permissions, int64_t mtime_ns)
{
	struct tree_entry entry = {
	        .attributes = {.mode = S_IFREG | permissions, .mtime_ns = mtime_ns}};
	if (content) {
		sha256_of(&content, sizeof(content), &entry.content.pointer.id);
		entry.content.kind = CONTENT_CHUNK;
		entry.content.size = content;
	}
	return entry;
}

static void set(struct world *world, struct pointer *root, const char *path,
                const struct tree_entry *entry)
{
	assert_int_equal(
	        tree_set_path(world->odb, world->packer, root, path, entry, root, &world->message),
	        0);
}

static void put(struct world *world, struct pointer *root, const char *path, unsigned content)
{
	struct tree_entry entry = file_of(content, 0644, 1);
	set(world, root, path, &entry);
}

static void put_directory(struct world *world, struct pointer *root, const char *path)
{
	struct tree_entry entry = {.attributes.mode = S_IFDIR | 0755};
	set(world, root, path, &entry);
}

static void put_link(struct world *world, struct pointer *root, const char *path,
                     const char *target)
{
	struct tree_entry entry = {
	        .attributes.mode = S_IFLNK | 0777,
	        .target = target,
	        .target_length = strlen(target),
	};
	set(world, root, path, &entry);
}

/* -- differences as text: "+a -b ~c @d " -- */

struct text {
	char text[4096];
	int stop_after;
};

static int note(void *context, const struct change *change)
{
	static const char signs[] = {'+', '-', '~', '@'};
	struct text *text = context;
	size_t used = strlen(text->text);
	assert_int_equal(strlen(change->path), change->path_length);
	assert_int_equal(change->before == NULL, change->kind == CHANGE_ADDED);
	assert_int_equal(change->after == NULL, change->kind == CHANGE_REMOVED);
	snprintf(text->text + used, sizeof(text->text) - used, "%c%s ", signs[change->kind],
	         change->path);
	return text->stop_after && --text->stop_after == 0 ? 42 : 0;
}

static void assert_diff(struct world *world, const struct pointer *before,
                        const struct pointer *after, const struct diff_options *options,
                        const char *expected)
{
	struct text text = {.text = ""};
	world->message.text[0] = '\0';
	assert_int_equal(
	        diff_trees(world->odb, before, after, options, note, &text, &world->message), 0);
	assert_string_equal(text.text, expected);
	assert_string_equal(world->message.text, "");
}

static void changes_are_in_path_order(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none, b;
	put(world, &a, "same", 1);
	put(world, &a, "dir/one", 1);
	put(world, &a, "dir/sub/two", 2);
	put(world, &a, "dir.txt", 3);
	put(world, &a, "gone/x/y", 4);
	b = a;
	put(world, &b, "dir/one", 5);
	put(world, &b, "dir/sub/new", 6);
	put(world, &b, "dir.txt", 7);
	set(world, &b, "gone", NULL);
	put(world, &b, "added/p/q", 8);
	put(world, &b, "added/z", 9);
	assert_diff(world, &a, &b, NULL,
	            "+added/p/q +added/z ~dir/one +dir/sub/new ~dir.txt -gone/x/y ");
	assert_diff(world, &b, &a, NULL,
	            "-added/p/q -added/z ~dir/one -dir/sub/new ~dir.txt +gone/x/y ");
	assert_diff(world, &a, &a, NULL, "");
	assert_diff(world, &pointer_none, &pointer_none, NULL, "");
	assert_diff(world, &a, &b, &(struct diff_options){.directories = true},
	            "+added +added/p +added/p/q +added/z ~dir/one +dir/sub/new ~dir.txt "
	            "-gone -gone/x -gone/x/y ");
	assert_diff(world, &a, &b, &(struct diff_options){.shallow = true},
	            "+added ~dir/one +dir/sub/new ~dir.txt -gone ");
}

static void kinds_of_change(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none, b;
	struct tree_entry entry;
	put(world, &a, "mode", 1);
	put(world, &a, "time", 1);
	put(world, &a, "xattr", 1);
	put(world, &a, "dir/inside", 1);
	put(world, &a, "becomes-dir", 1);
	put(world, &a, "becomes-file/x", 1);
	put(world, &a, "becomes-link", 1);
	put_link(world, &a, "link", "there");
	put_link(world, &a, "same-link", "there");
	b = a;
	entry = file_of(1, 0600, 1);
	set(world, &b, "mode", &entry);
	entry = file_of(1, 0644, 2);
	set(world, &b, "time", &entry);
	entry = file_of(1, 0644, 1);
	struct buffer xattrs = {0};
	assert_int_equal(xattrs_set(&xattrs, "user.a", (struct span){"v", 1}), 0);
	entry.xattrs = xattrs.data;
	entry.xattrs_length = xattrs.length;
	set(world, &b, "xattr", &entry);
	buffer_release(&xattrs);
	set(world, &b, "becomes-dir", NULL);
	put(world, &b, "becomes-dir/x", 1);
	set(world, &b, "becomes-file", NULL);
	put(world, &b, "becomes-file", 1);
	put_link(world, &b, "becomes-link", "there");
	put_link(world, &b, "link", "elsewhere");
	assert_diff(world, &a, &b, NULL,
	            "-becomes-dir +becomes-dir/x -becomes-file/x +becomes-file "
	            "-becomes-link +becomes-link ~link @mode @xattr ");
	assert_diff(world, &a, &b,
	            &(struct diff_options){.times = true,
	                                   .paths = (const char *[]){"time", "mode"},
	                                   .path_count = 2},
	            "@mode @time ");
	/* A directory's own attributes, besides what is in it. */
	struct tree_entry *directory;
	assert_int_equal(tree_find(world->odb, &a, "dir", &directory, NULL), 0);
	directory->attributes.mode = S_IFDIR | 0700;
	b = a;
	set(world, &b, "dir", directory);
	free(directory);
	put(world, &b, "dir/inside", 2);
	assert_diff(world, &a, &b, NULL, "@dir ~dir/inside ");
	assert_diff(world, &a, &b, &(struct diff_options){.shallow = true}, "@dir ~dir/inside ");
}

static void empty_directories_are_reported(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none, b = pointer_none;
	put(world, &a, "keep", 1);
	put(world, &b, "keep", 1);
	put_directory(world, &b, "empty");
	put_directory(world, &b, "nested/empty");
	assert_diff(world, &a, &b, NULL, "+empty +nested/empty ");
	assert_diff(world, &b, &a, NULL, "-empty -nested/empty ");
}

static void filters_name_paths_and_what_lies_below(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none, b = pointer_none;
	put(world, &a, "t/x", 1);
	put(world, &a, "t/y/z", 1);
	put(world, &a, "tt/x", 1);
	put(world, &a, "u/x", 1);
	put(world, &a, "f", 1);
	put(world, &b, "t/x", 2);
	put(world, &b, "t/y/z", 2);
	put(world, &b, "tt/x", 2);
	put(world, &b, "u/x", 2);
	put(world, &b, "f/below", 1);
	const char *one[] = {"t"}, *deep[] = {"t/y/z"}, *many[] = {"u", "t/y", "t/x", "t/y/z"};
	const char *all[] = {"u", ""}, *missing[] = {"nope/x", "t/nope", "t/x/below"};
	const char *replaced[] = {"f/below"}, *kinds[] = {"f"};
#define PATHS(list) (&(struct diff_options){.paths = list, .path_count = ARRAY_SIZE(list)})
	assert_diff(world, &a, &b, PATHS(one), "~t/x ~t/y/z ");
	assert_diff(world, &a, &b, PATHS(deep), "~t/y/z ");
	assert_diff(world, &a, &b, PATHS(many), "~t/x ~t/y/z ~u/x ");
	assert_diff(world, &a, &b, PATHS(all), "-f +f/below ~t/x ~t/y/z ~tt/x ~u/x ");
	assert_diff(world, &a, &b, PATHS(missing), "");
	assert_diff(world, &a, &b, PATHS(replaced), "+f/below ");
	assert_diff(world, &a, &b, PATHS(kinds), "-f +f/below ");
	/* An empty list asks for nothing. */
	assert_diff(world, &a, &b, &(struct diff_options){.paths = one, .path_count = 0}, "");
}

static void callback_can_stop(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none;
	struct text text = {"", 2};
	put(world, &a, "a", 1);
	put(world, &a, "b/c", 1);
	put(world, &a, "d", 1);
	assert_int_equal(diff_trees(world->odb, &pointer_none, &a, NULL, note, &text, NULL), 42);
	assert_string_equal(text.text, "+a +b/c ");
}

/* -- paths -- */

static int note_path(void *context, const char *path, const struct tree_entry *entry)
{
	struct text *text = context;
	size_t used = strlen(text->text);
	snprintf(text->text + used, sizeof(text->text) - used, "%s%s ", path,
	         S_ISDIR(entry->attributes.mode) ? "/" : "");
	return text->stop_after && --text->stop_after == 0 ? 42 : 0;
}

static void visiting_goes_in_path_order(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none;
	struct text text = {.text = ""}, stopped = {"", 3};
	put(world, &a, "b/c/d", 1);
	put(world, &a, "b.x", 1);
	put(world, &a, "a", 1);
	put_directory(world, &a, "z");
	assert_int_equal(tree_visit(world->odb, &a, note_path, &text, &world->message), 0);
	assert_string_equal(text.text, "a b/ b/c/ b/c/d b.x z/ ");
	assert_int_equal(tree_visit(world->odb, &a, note_path, &stopped, NULL), 42);
	assert_string_equal(stopped.text, "a b/ b/c/ ");
	assert_int_equal(tree_visit(world->odb, &pointer_none, note_path, &stopped, NULL), 0);
}

static void finding_a_path(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none;
	struct tree_entry *entry;
	put(world, &a, "b/c/d", 7);
	assert_int_equal(tree_find(world->odb, &a, "b/c/d", &entry, &world->message), 0);
	assert_int_equal(entry->content.size, 7);
	assert_string_equal(entry->name, "d");
	free(entry);
	assert_int_equal(tree_find(world->odb, &a, "b/c", &entry, &world->message), 0);
	assert_true(S_ISDIR(entry->attributes.mode));
	free(entry);
	assert_int_equal(tree_find(world->odb, &a, "b/x", &entry, &world->message), -ERR_NOT_FOUND);
	assert_non_null(strstr(world->message.text, "b/x"));
	assert_int_equal(tree_find(world->odb, &a, "b/x/y", &entry, NULL), -ERR_NOT_FOUND);
	assert_int_equal(tree_find(world->odb, &a, "b/c/d/e", &entry, &world->message),
	                 -ERR_NOT_DIRECTORY);
	assert_int_equal(tree_find(world->odb, &a, "", &entry, NULL), -ERR_INVALID);
	assert_int_equal(tree_find(world->odb, &pointer_none, "x", &entry, NULL), -ERR_NOT_FOUND);
}

static void setting_a_path(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none, b;
	struct tree_entry entry = file_of(3, 0640, 77), *found;
	entry.attributes.uid = 5;
	set(world, &a, "b/c/d", &entry);
	assert_int_equal(tree_find(world->odb, &a, "b", &found, NULL), 0);
	assert_int_equal(found->attributes.mode, S_IFDIR | 0755);
	assert_int_equal(found->attributes.uid, 5);
	free(found);
	world->message.text[0] = '\0';
	b = a;
	set(world, &b, "b/c/nothing", NULL);
	set(world, &b, "b/no/thing", NULL);
	set(world, &b, "no/thing", NULL);
	set(world, &b, "b/c/d/below", NULL);
	assert_true(id_equal(&a.id, &b.id));
	assert_string_equal(world->message.text, "");
	set(world, &b, "b/c/d", NULL);
	assert_int_equal(tree_find(world->odb, &b, "b/c", &found, NULL), 0);
	free(found);
	assert_int_equal(tree_find(world->odb, &b, "b/c/d", &found, NULL), -ERR_NOT_FOUND);
	b = a;
	assert_int_equal(tree_set_path(world->odb, world->packer, &a, "b/c/d/e", &entry, &b,
	                               &world->message),
	                 -ERR_NOT_DIRECTORY);
	assert_true(id_equal(&a.id, &b.id));
	const char *bad[] = {"", "a//b", "..", "a/./b", "/a", "a/"};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_true(tree_set_path(world->odb, world->packer, &a, bad[i], &entry, &b, NULL) <
		            0);
	/* What is there and equal stays the same tree. */
	b = a;
	set(world, &b, "b/c/d", &entry);
	assert_true(id_equal(&a.id, &b.id));
}

static void normal_paths(void **state)
{
	static const struct {
		const char *given, *normal;
	} cases[] = {
	        {"a/b", "a/b"}, {"./a//b/", "a/b"}, {"", ""},       {".", ""},
	        {"./", ""},     {"a/./b", "a/b"},   {"...", "..."}, {".a/..b", ".a/..b"},
	        {"a/..", NULL}, {"..", NULL},       {"/a", NULL},   {"/", NULL},
	};
	char path[PATH_BYTES_MAX], given[PATH_BYTES_MAX + 10];
	struct message message;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		strcpy(path, "untouched");
		int error = path_normalise(cases[i].given, path, &message);
		assert_int_equal(error, cases[i].normal ? 0 : -ERR_INVALID);
		assert_string_equal(path, cases[i].normal ? cases[i].normal : "untouched");
	}
	memset(given, 'x', sizeof(given));
	given[NAME_BYTES_MAX] = '\0';
	assert_int_equal(path_normalise(given, path, NULL), 0);
	given[NAME_BYTES_MAX] = 'x';
	given[NAME_BYTES_MAX + 1] = '\0';
	assert_int_equal(path_normalise(given, path, NULL), -ERR_INVALID);
	given[NAME_BYTES_MAX + 1] = 'x';
	for (size_t i = 1; i < sizeof(given); i += 2)
		given[i] = '/';
	given[PATH_BYTES_MAX - 1] = '\0';
	assert_int_equal(path_normalise(given, path, NULL), 0);
	given[PATH_BYTES_MAX - 1] = '/';
	given[PATH_BYTES_MAX] = 'x';
	given[PATH_BYTES_MAX + 1] = '\0';
	assert_int_equal(path_normalise(given, path, NULL), -ERR_INVALID);
	assert_true(path_within("a/b", "a"));
	assert_true(path_within("a", "a"));
	assert_true(path_within("a", ""));
	assert_false(path_within("ab", "a"));
	assert_false(path_within("a", "a/b"));
}

static void deep_trees_do_not_overflow(void **state)
{
	struct world *world = *state;
	struct pointer a = pointer_none;
	struct text text = {.text = ""};
	char path[2 * 2000];
	memset(path, 'x', sizeof(path));
	for (size_t i = 1; i < sizeof(path); i += 2)
		path[i] = '/';
	path[sizeof(path) - 1] = '\0';
	put(world, &a, path, 1);
	assert_int_equal(diff_trees(world->odb, &pointer_none, &a, NULL, note, &text, NULL), 0);
	assert_int_equal(strlen(text.text), strlen(path) + 2);
	/* And one that no path leads to the end of. */
	struct tree_entry directory = {.attributes.mode = S_IFDIR | 0755};
	for (int i = 0; i < 5000; i++) {
		struct pointer deeper = pointer_none;
		directory.content.pointer = a;
		set(world, &deeper, "x", &directory);
		a = deeper;
	}
	assert_int_equal(
	        diff_trees(world->odb, &pointer_none, &a, NULL, note, &text, &world->message),
	        -ERR_TOO_LARGE);
	assert_int_equal(tree_visit(world->odb, &a, note_path, &text, &world->message),
	                 -ERR_TOO_LARGE);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST(changes_are_in_path_order),
	        TEST(kinds_of_change),
	        TEST(empty_directories_are_reported),
	        TEST(filters_name_paths_and_what_lies_below),
	        TEST(callback_can_stop),
	        TEST(visiting_goes_in_path_order),
	        TEST(finding_a_path),
	        TEST(setting_a_path),
	        cmocka_unit_test(normal_paths),
	        TEST(deep_trees_do_not_overflow),
	};
	return cmocka_run_group_tests_name("diff", tests, NULL, NULL);
}
