/* Tests of refs/merge.h: case by case, over criss-cross histories, and what it costs. */
#include "tests/unit/merge_world.h"

/* -- trees written as text: "a=1 b/c=2:600@7,v d/ ": content, mode, time, value of user.x -- */

/* "-path" removes; "path/" or "path/:700" is a directory. */
static struct pointer tree_with(struct world *world, struct pointer root, const char *text)
{
	while (*text) {
		char path[64] = "", xattr[16] = "";
		unsigned content = 0, permissions = 0644, mtime = 1;
		int used = 0;
		if (*text == ' ') {
			text++;
			continue;
		}
		bool removal = *text == '-';
		text += removal;
		assert_int_equal(sscanf(text, "%63[^ =:]%n", path, &used), 1);
		text += used;
		size_t length = strlen(path);
		bool directory = path[length - 1] == '/';
		if (directory) {
			path[length - 1] = '\0';
			permissions = 0755;
		}
		if (sscanf(text, "=%u%n", &content, &used) == 1)
			text += used;
		if (sscanf(text, ":%o%n", &permissions, &used) == 1)
			text += used;
		if (sscanf(text, "@%u%n", &mtime, &used) == 1)
			text += used;
		if (sscanf(text, ",%15[^ ]%n", xattr, &used) == 1)
			text += used;
		if (removal)
			set(world, &root, path, NULL);
		else if (directory)
			put_directory(world, &root, path, permissions);
		else
			put(world, &root, path, content, permissions, mtime, *xattr ? xattr : NULL);
	}
	return root;
}

struct listing {
	char text[4096];
};

static int list_entry(void *context, const char *path, const struct tree_entry *entry)
{
	struct listing *listing = context;
	size_t used = strlen(listing->text);
	char *at = listing->text + used;
	size_t left = sizeof(listing->text) - used;
	const struct attributes *attributes = &entry->attributes;
	unsigned permissions = attributes->mode & 07777;
	if (S_ISDIR(attributes->mode)) {
		if (permissions != 0755)
			snprintf(at, left, "%s/:%o ", path, permissions);
		else if (pointer_is_none(&entry->content.pointer))
			snprintf(at, left, "%s/ ", path);
		return 0;
	}
	int n = snprintf(at, left, "%s=%u", path, (unsigned)entry->content.size);
	if (permissions != 0644)
		n += snprintf(at + n, left - (size_t)n, ":%o", permissions);
	if (attributes->mtime_ns != 1)
		n += snprintf(at + n, left - (size_t)n, "@%d", (int)attributes->mtime_ns);
	struct span value;
	if (entry->xattrs_length &&
	    xattrs_get(entry->xattrs, entry->xattrs_length, "user.x", &value) == 0)
		n += snprintf(at + n, left - (size_t)n, ",%.*s", (int)value.length,
		              (const char *)value.data);
	snprintf(at + n, left - (size_t)n, " ");
	return 0;
}

/* Expected: the listing of the result, or "! " and the paths in conflict. */
static void check_result(struct world *world, const struct merge_result *result,
                         const char *expected)
{
	struct listing listing = {.text = ""};
	if (result->conflict_count > 0) {
		strcpy(listing.text, "! ");
		for (size_t i = 0; i < result->conflict_count; i++) {
			strcat(listing.text, result->conflicts[i].path);
			strcat(listing.text, " ");
		}
	} else {
		assert_int_equal(tree_visit(world->odb, &result->tree, list_entry, &listing,
		                            &world->message),
		                 0);
	}
	assert_string_equal(listing.text, expected);
}

static void check_from(struct world *world, struct pointer base, struct pointer source,
                       struct pointer target, const struct merge_options *options,
                       const char *expected)
{
	struct merge_side sides[] = {side_of(base), side_of(source), side_of(target)};
	struct merge_result result;
	assert_int_equal(merge_trees(world->odb, world->packer, &sides[0], &sides[1], &sides[2],
	                             options, &result, &world->message),
	                 0);
	check_result(world, &result, expected);
	merge_result_release(&result);
}

static void check_taking(struct world *world, const char *base_text, const char *source_text,
                         const char *target_text, const struct take *takes, size_t take_count,
                         const char *expected)
{
	struct pointer base = tree_with(world, pointer_none, base_text);
	struct pointer source = tree_with(world, base, source_text);
	struct pointer target = tree_with(world, base, target_text);
	struct merge_options options = {.takes = takes, .take_count = take_count};
	check_from(world, base, source, target, &options, expected);
}

/* Base as text; source and target as changes to it. */
static void check(struct world *world, const char *base, const char *source, const char *target,
                  const char *expected)
{
	check_taking(world, base, source, target, NULL, 0, expected);
}

/* The same the other way round. */
static void check_both(struct world *world, const char *base, const char *a, const char *b,
                       const char *expected)
{
	check(world, base, a, b, expected);
	check(world, base, b, a, expected);
}

static void one_side_changed(void **state)
{
	struct world *world = *state;
	check_both(world, "a=1 d/b=1 d/c=1", "a=2 d/b=3 e/f=4 -d/c", "", "a=2 d/b=3 e/f=4 ");
	check_both(world, "a=1 d/b=1 d/c=1", "a=2", "d/b=2", "a=2 d/b=2 d/c=1 ");
	check_both(world, "d/b=1 d/c=1", "d/b=2", "d/c=2", "d/b=2 d/c=2 ");
	check_both(world, "d/b=1 d/c=1", "-d", "", "");
	check_both(world, "a=1", "", "", "a=1 ");
	check_both(world, "", "a=1", "b=1", "a=1 b=1 ");
	check_both(world, "a=1", "-a a/b=1", "c=1", "a/b=1 c=1 ");
	check_both(world, "a/b=1", "-a a=1", "c=1", "a=1 c=1 ");
}

static void both_sides_alike(void **state)
{
	struct world *world = *state;
	check_both(world, "a=1 d/b=1", "a=2 -d/b x=1", "a=2 -d/b x=1", "a=2 d/ x=1 ");
	check_both(world, "a=1 d/b=1", "-d n/x=1", "-d n/x=1", "a=1 n/x=1 ");
	check_both(world, "a=1", "-a", "-a", "");
}

static void both_sides_otherwise(void **state)
{
	struct world *world = *state;
	check_both(world, "a=1", "a=2", "a=3", "! a ");
	check_both(world, "d/e/a=1 b=1", "d/e/a=2 b=2", "d/e/a=3 b=3", "! b d/e/a ");
	check_both(world, "", "a=2", "a=3", "! a ");
	check_both(world, "a=1", "-a", "a=3", "! a ");
	check_both(world, "a=1", "-a a/b=1", "a=3", "! a ");
	check_both(world, "", "a=1", "a/b=1", "! a ");
	check_both(world, "a=1", "-a", "-a a/b=1", "! a ");
	check_both(world, "a/b=1", "-a a=1", "a/b=2", "! a ");
	check_both(world, "a/b=1", "-a a=1", "-a", "! a ");
}

static void added_directories(void **state)
{
	struct world *world = *state;
	check_both(world, "", "n/a=1 n/s=1", "n/a=1 n/t=1", "n/a=1 n/s=1 n/t=1 ");
	check_both(world, "", "n/m/a=1", "n/m/a=2 n/b=1", "! n/m/a ");
	check_both(world, "", "n/ n/:700", "n/x=1", "! n ");
	check_both(world, "n=1", "-n n/a=1", "-n n/b=1", "n/a=1 n/b=1 ");
}

static void removed_directories(void **state)
{
	struct world *world = *state;
	check_both(world, "d/a=1 d/b=1 d/e/c=1", "-d", "d/a=2 d/e/c=2", "! d/a d/e/c ");
	check_both(world, "d/a=1 d/b=1", "-d", "d/new=2", "! d/new ");
	check_both(world, "d/a=1 d/b=1", "-d", "d/new/x=2 d/new/y=1", "! d/new ");
	check_both(world, "d/a=1 d/b=1", "-d", "-d/b", "");
	check_both(world, "d/a=1 d/e/b=1", "-d", "-d/e", "");
	check_both(world, "d/a=1 d/b=1", "-d", "d/a=1@9", "");
	check_both(world, "d/a=1", "-d", "d/:700", "! d ");
	check_both(world, "d/", "-d", "d/new=2", "! d/new ");
	check_both(world, "d/ x=1", "-d", "x=2", "x=2 ");
	check_both(world, "d/a=1 d/e/b=1", "-d", "-d/e d/e=1", "! d/e ");
	check_both(world, "d/a=1 d/e/b=1", "-d/e", "d/e/b=2", "! d/e/b ");
}

static void attributes_merge_by_themselves(void **state)
{
	struct world *world = *state;
	check_both(world, "a=1", "a=2", "a=1:600", "a=2:600 ");
	check_both(world, "a=1", "a=1:600", "a=1:700", "! a ");
	check_both(world, "a=1", "a=1:600", "a=1:600", "a=1:600 ");
	check_both(world, "a=1", "a=2,v", "a=1:600", "a=2:600,v ");
	check_both(world, "a=1", "a=1,v", "a=1,w", "! a ");
	check_both(world, "a=1,v", "a=1", "a=2,v", "a=2 ");
	check_both(world, "a=1,v", "a=1", "a=1,w", "! a ");
	check_both(world, "a=1,v", "a=1", "a=2", "a=2 ");
	check_both(world, "a=1", "-a", "a=1:600", "! a ");
	check_both(world, "d/a=1", "d/:700", "d/a=2", "d/:700 d/a=2 ");
	check_both(world, "d/a=1", "d/:700 d/a=3", "d/:711 d/a=2", "! d d/a ");
}

static void times_never_conflict(void **state)
{
	struct world *world = *state;
	check_both(world, "a=1@5", "a=1@6", "a=1@7", "a=1@7 ");
	check_both(world, "a=1@5", "a=1@3", "a=1@2", "a=1@3 ");
	check_both(world, "a=1@5", "a=1@3", "", "a=1@3 ");
	check_both(world, "a=1@5", "a=2@6", "a=1@7", "a=2@7 ");
	check_both(world, "a=1@5", "a=2@6", "a=2@7", "a=2@7 ");
	check_both(world, "a=1@5", "-a", "a=1@7", "");
	check_both(world, "", "a=1@6", "a=1@7", "a=1@7 ");
	check_both(world, "a=1@5", "-a a/b=1", "a=1@7", "a/b=1 ");
}

#define TAKES(...) \
	(const struct take[]){__VA_ARGS__}, ARRAY_SIZE(((const struct take[]){__VA_ARGS__}))
#define SOURCE(path) \
	{ \
		SIDE_SOURCE, path \
	}
#define TARGET(path) \
	{ \
		SIDE_TARGET, path \
	}

static void taking_a_side(void **state)
{
	struct world *world = *state;
	const char *base = "a=1 b=1 d/x=1 d/y=1";
	check_taking(world, base, "a=2", "a=3", TAKES(SOURCE("a")), "a=2 b=1 d/x=1 d/y=1 ");
	check_taking(world, base, "a=2", "a=3", TAKES(TARGET("a")), "a=3 b=1 d/x=1 d/y=1 ");
	check_taking(world, base, "-a b=2", "a=3", TAKES(SOURCE("a")), "b=2 d/x=1 d/y=1 ");
	check_taking(world, base, "a=2 b=2", "a=3 b=3", TAKES(SOURCE("a")), "! b ");
	check_taking(world, base, "a=2 b=2", "a=3 b=3", TAKES(SOURCE("a"), TARGET("b")),
	             "a=2 b=3 d/x=1 d/y=1 ");
	/* A directory whole: also what did not conflict. */
	check_taking(world, base, "d/x=2", "d/x=3 d/y=3 a=3", TAKES(SOURCE("d")),
	             "a=3 b=1 d/x=2 d/y=1 ");
	check_taking(world, base, "d/x=2 d/y=2", "d/x=3 a=3", TAKES(TARGET("d")),
	             "a=3 b=1 d/x=3 d/y=1 ");
	check_taking(world, base, "d/x=2 d/y=2", "d/x=3 a=3", TAKES(TARGET("d/x")),
	             "a=3 b=1 d/x=3 d/y=2 ");
	/* Removed by one, changed by the other. */
	check_taking(world, base, "-d", "d/x=3", TAKES(SOURCE("d")), "a=1 b=1 ");
	check_taking(world, base, "-d", "d/x=3", TAKES(TARGET("d")), "a=1 b=1 d/x=3 d/y=1 ");
	check_taking(world, base, "-d", "d/x=3", TAKES(SOURCE("d/x")), "a=1 b=1 ");
	check_taking(world, base, "-d", "d/x=3", TAKES(TARGET("d/x")), "a=1 b=1 d/x=3 ");
	check_taking(world, base, "d/x=3", "-d", TAKES(SOURCE("d/x")), "a=1 b=1 d/x=3 ");
	check_taking(world, base, "-d", "d/x=3 d/z=1", TAKES(SOURCE("d/x")), "! d/z ");
	/* Kinds, everything, and the longest path. */
	check_taking(world, base, "-a a/b=1", "a=3", TAKES(SOURCE("a")), "a/b=1 b=1 d/x=1 d/y=1 ");
	check_taking(world, base, "-a a/b=1", "a=3", TAKES(SOURCE("a/b")), "! a ");
	check_taking(world, base, "a=2 b=2", "a=3 -d", TAKES(SOURCE("")), "a=2 b=2 d/x=1 d/y=1 ");
	check_taking(world, base, "d/x=2 d/y=2 a=2", "d/x=3 d/y=3 a=3",
	             TAKES(TARGET(""), SOURCE("d"), TARGET("d/x")), "a=3 b=1 d/x=3 d/y=2 ");
	check_taking(world, base, "d/x=2 n/q=1", "d/x=2", TAKES(TARGET("n/q"), SOURCE("d/x")),
	             "a=1 b=1 d/x=2 d/y=1 n/ ");
	/* A change that only one side made can be refused too. */
	check_taking(world, base, "a=2 b=2", "", TAKES(TARGET("a")), "a=1 b=2 d/x=1 d/y=1 ");
	check_taking(world, base, "", "a=2 b=2", TAKES(SOURCE("a")), "a=1 b=2 d/x=1 d/y=1 ");
}

static void check_take_of_nothing(struct world *world, const char *source_text,
                                  const char *target_text, const char *path, bool found)
{
	struct pointer base = tree_with(world, pointer_none, "a=1 b=1 d/x=1 d/e/y=1");
	struct merge_side sides[] = {side_of(base), side_of(tree_with(world, base, source_text)),
	                             side_of(tree_with(world, base, target_text))};
	struct take take = SOURCE(path);
	struct merge_options options = {.takes = &take, .take_count = 1};
	struct merge_result result = {0};
	assert_int_equal(merge_trees(world->odb, world->packer, &sides[0], &sides[1], &sides[2],
	                             &options, &result, &world->message),
	                 found ? 0 : -ERR_NOT_FOUND);
	merge_result_release(&result);
}

/* A take that names nothing is an error: it was meant to decide about something. */
static void takes_that_name_nothing(void **state)
{
	static const struct {
		const char *path;
		bool found;
	} cases[] = {
	        {"a", true},           {"b", true},     {"d/e/y", true}, {"d/e", true},
	        {"**/y", true},        {"d/*/y", true}, {"[bc]", true},  {"", true},
	        {"no/such", false},    {"d/z", false},  {"**/z", false}, {"d/*/z", false},
	        {"a/x", false},        {"a/**", true},  {"e/**", false}, {"*/*/*/*", false},
	        {"d/e/y/**/q", false},
	};
	struct world *world = *state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		check_take_of_nothing(world, "a=2", "", cases[i].path, cases[i].found);
		check_take_of_nothing(world, "a=2", "a=3", cases[i].path, cases[i].found);
		check_take_of_nothing(world, "", "", cases[i].path, cases[i].found);
	}
	/* Of what both removed there is nothing left, but it was decided about. */
	check_take_of_nothing(world, "-d", "-d", "d", true);
	check_take_of_nothing(world, "new/q=1", "", "new/q", true);
	check_take_of_nothing(world, "", "new/q=1", "*/q", true);
}

static void taking_by_pattern(void **state)
{
	struct world *world = *state;
	const char *base = "a=1 b=1 d/x=1 d/y=1";
	check_taking(world, base, "a=2 b=2", "a=3 b=3", TAKES(SOURCE("*")), "a=2 b=2 d/x=1 d/y=1 ");
	check_taking(world, base, "a=2 b=2 d/x=2", "a=3 b=3 d/x=3", TAKES(SOURCE("[ab]")),
	             "! d/x ");
	check_taking(world, base, "d/x=2 d/y=2 a=2", "d/x=3 d/y=3",
	             TAKES(SOURCE("**/x"), TARGET("*/y")), "a=2 b=1 d/x=2 d/y=3 ");
	check_taking(world, base, "a=2 d/x=2", "a=3 d/x=3", TAKES(TARGET("**")),
	             "a=3 b=1 d/x=3 d/y=1 ");
	/* What one side alone changed, added or removed is decided about as well. */
	check_taking(world, base, "n/m/x=1 n/m/z=1", "d/x=3", TAKES(TARGET("**/x")),
	             "a=1 b=1 d/x=3 d/y=1 n/m/z=1 ");
	check_taking(world, base, "-d", "d/x=3", TAKES(SOURCE("**/x")), "a=1 b=1 ");
	check_taking(world, base, "", "d/x=3 n/x=2 a=2", TAKES(SOURCE("*/x")),
	             "a=2 b=1 d/x=1 d/y=1 n/ ");
	/* The path itself before a directory above; a name before a pattern; then the last. */
	check_taking(world, base, "d/x=2 d/y=2", "d/x=3 d/y=3", TAKES(SOURCE("d/*"), TARGET("d")),
	             "a=1 b=1 d/x=2 d/y=2 ");
	check_taking(world, base, "d/x=2 d/y=2", "d/x=3 d/y=3", TAKES(SOURCE("d"), TARGET("**/y")),
	             "a=1 b=1 d/x=2 d/y=3 ");
	check_taking(world, base, "d/x=2 d/y=2", "d/x=3 d/y=3", TAKES(TARGET("d/x"), SOURCE("d/*")),
	             "a=1 b=1 d/x=3 d/y=2 ");
	check_taking(world, base, "a=2", "a=3", TAKES(SOURCE("?"), TARGET("*")),
	             "a=3 b=1 d/x=1 d/y=1 ");
	check_taking(world, base, "a=2", "a=3", TAKES(TARGET("a"), SOURCE("a")),
	             "a=2 b=1 d/x=1 d/y=1 ");
	/* What has the pattern for its name is named by it; the rest is matched. */
	check_taking(world, "[ab]=1 a=1", "[ab]=2 a=2", "[ab]=3 a=3",
	             TAKES(SOURCE("[ab]"), TARGET("*")), "[ab]=2 a=3 ");
	check_taking(world, "[ab]=1 a=1", "[ab]=2 a=2", "[ab]=3 a=3",
	             TAKES(TARGET("a"), SOURCE("[ab]")), "[ab]=2 a=3 ");
	check_taking(world, "[ab]=1 a=1", "[ab]=2 a=2", "[ab]=3 a=3",
	             TAKES(TARGET("a"), SOURCE("\\[ab]")), "[ab]=2 a=3 ");
}

static void conflicts_tell_the_three_sides(void **state)
{
	struct world *world = *state;
	struct pointer base = tree_with(world, pointer_none, "a=1 b=1 c=1 d=1");
	struct pointer source = tree_with(world, base, "a=2 -b c=2 d=2");
	struct pointer target = tree_with(world, base, "a=3 b=3 c=3 d=3");
	struct merge_side sides[] = {side_of(base), side_of(source), side_of(target)};
	struct merge_result result;
	assert_int_equal(merge_trees(world->odb, world->packer, &sides[0], &sides[1], &sides[2],
	                             NULL, &result, &world->message),
	                 0);
	assert_int_equal(result.conflict_count, 4);
	assert_string_equal(result.conflicts[0].path, "a");
	assert_int_equal(result.conflicts[0].base->content.size, 1);
	assert_int_equal(result.conflicts[0].source->content.size, 2);
	assert_int_equal(result.conflicts[0].target->content.size, 3);
	assert_null(result.conflicts[1].source);
	merge_result_release(&result);
	struct merge_options options = {.conflicts_max = 2};
	check_from(world, base, source, target, &options, "! a b ");
	/* The root's own attributes. */
	struct merge_side root[] = {side_of(base), side_of(base), side_of(base)};
	root[1].root.mode = S_IFDIR | 0700;
	assert_int_equal(merge_trees(world->odb, world->packer, &root[0], &root[1], &root[2], NULL,
	                             &result, &world->message),
	                 0);
	assert_int_equal(result.conflict_count, 0);
	assert_int_equal(result.root.mode, S_IFDIR | 0700);
	root[2].root.mode = S_IFDIR | 0711;
	assert_int_equal(merge_trees(world->odb, world->packer, &root[0], &root[1], &root[2], NULL,
	                             &result, &world->message),
	                 0);
	assert_int_equal(result.conflict_count, 1);
	assert_string_equal(result.conflicts[0].path, "");
	merge_result_release(&result);
}

static void check_words(struct world *world, const char *base_text, const char *source_text,
                        const char *target_text, const char *words)
{
	struct pointer base = tree_with(world, pointer_none, base_text);
	struct merge_side sides[] = {side_of(base), side_of(tree_with(world, base, source_text)),
	                             side_of(tree_with(world, base, target_text))};
	struct merge_result result;
	char found[CONFLICT_WORDS_MAX];
	assert_int_equal(merge_trees(world->odb, world->packer, &sides[0], &sides[1], &sides[2],
	                             NULL, &result, &world->message),
	                 0);
	assert_int_equal(result.conflict_count, 1);
	conflict_words(&result.conflicts[0], found);
	assert_string_equal(found, words);
	merge_result_release(&result);
}

static void conflicts_in_words(void **state)
{
	struct world *world = *state;
	check_words(world, "a=1", "a=2", "a=3", "both changed");
	check_words(world, "", "a=2", "a=3", "both added");
	check_words(world, "a=1", "-a", "a=3", "deleted in source, changed in target");
	check_words(world, "a=1", "a=2", "-a", "changed in source, deleted in target");
	check_words(world, "a=1", "-a a/b=1", "a=3", "directory in source, file in target");
	check_words(world, "", "a=1", "a/b=1", "file in source, directory in target");
	check_words(world, "a=1", "a=1:600", "a=1:700",
	            "both changed its mode, owner or attributes");
	check_words(world, "d/a=1", "d/:700", "d/:711",
	            "both changed its mode, owner or attributes");
	check_words(world, "d/a=1 x=1", "-d", "d/new=2",
	            "directory deleted in source, added to in target");
	check_words(world, "d/a=1 x=1", "d/new=2", "-d",
	            "added to in source, directory deleted in target");
}

static void changed_counts_paths_against_the_target(void **state)
{
	struct world *world = *state;
	struct pointer base = tree_with(world, pointer_none, "a=1 b=1 d/x=1 d/y=1");
	struct pointer source = tree_with(world, base, "a=2 -d n/o/p=1 n/q=1");
	struct pointer target = tree_with(world, base, "b=2");
	struct merge_side sides[] = {side_of(base), side_of(source), side_of(target)};
	struct merge_result result;
	assert_int_equal(merge_trees(world->odb, world->packer, &sides[0], &sides[1], &sides[2],
	                             NULL, &result, &world->message),
	                 0);
	assert_int_equal(result.changed, 5);
	assert_int_equal(result.conflict_count, 0);
	/* Nothing from the source: the target's very tree. */
	assert_int_equal(merge_trees(world->odb, world->packer, &sides[0], &sides[0], &sides[2],
	                             NULL, &result, &world->message),
	                 0);
	assert_int_equal(result.changed, 0);
	assert_true(id_equal(&result.tree.id, &target.id));
}

/* -- histories -- */

/* Criss-cross: root; then a1, b1 from it; a2 merges b1 into a1, b2 merges a1 into b1. */
struct crossing {
	struct commit *root, *a1, *b1, *a2, *b2;
};

static struct crossing cross(struct world *world, const char *root, const char *a1, const char *b1,
                             const char *a2, const char *b2)
{
	struct crossing made;
	struct pointer tree = tree_with(world, pointer_none, root);
	made.root = commit_of(world, tree, NULL, NULL);
	made.a1 = commit_of(world, tree_with(world, tree, a1), made.root, NULL);
	made.b1 = commit_of(world, tree_with(world, tree, b1), made.root, NULL);
	made.a2 = commit_of(world, tree_with(world, pointer_none, a2), made.a1, made.b1);
	made.b2 = commit_of(world, tree_with(world, pointer_none, b2), made.b1, made.a1);
	return made;
}

static void uncross(struct crossing *crossing)
{
	free(crossing->root);
	free(crossing->a1);
	free(crossing->b1);
	free(crossing->a2);
	free(crossing->b2);
}

static void check_commits(struct world *world, const struct commit *source,
                          const struct commit *target, const char *expected)
{
	struct merge_result result;
	bool forward, up_to_date;
	assert_int_equal(merge_commits(world->history, world->odb, world->packer, source, target,
	                               NULL, &result, &forward, &up_to_date, &world->message),
	                 0);
	assert_false(forward);
	assert_false(up_to_date);
	check_result(world, &result, expected);
	merge_result_release(&result);
}

static void check_crossing(struct world *world, const char *root, const char *a1, const char *b1,
                           const char *a2, const char *b2, const char *expected)
{
	struct crossing crossing = cross(world, root, a1, b1, a2, b2);
	check_commits(world, crossing.a2, crossing.b2, expected);
	check_commits(world, crossing.b2, crossing.a2, expected);
	uncross(&crossing);
}

static void criss_cross(void **state)
{
	struct world *world = *state;
	/* Nothing in dispute, and each side goes on. */
	check_crossing(world, "a=1 b=1", "a=2", "b=2", "a=2 b=2 x=1", "a=2 b=2 y=1",
	               "a=2 b=2 x=1 y=1 ");
	/* One is as the bases merged, the other changed it again: no conflict, whichever of the
	 * two bases one would have chosen alone. */
	check_crossing(world, "a=1 b=1", "a=2", "b=2", "a=2 b=2", "a=3 b=2", "a=3 b=2 ");
	check_crossing(world, "a=1 b=1", "a=2", "b=2", "a=2 b=2", "a=2 b=3", "a=2 b=3 ");
	/* Both changed it again. */
	check_crossing(world, "a=1 b=1", "a=2", "b=2", "a=4 b=2", "a=3 b=2", "! a ");
	/* The bases conflict; both sides resolved alike, by either, by a third value, by removal.
	 */
	check_crossing(world, "a=1 z=1", "a=2", "a=3", "a=2 z=1 x=1", "a=2 z=1", "a=2 x=1 z=1 ");
	check_crossing(world, "a=1 z=1", "a=2", "a=3", "a=4 z=1 x=1", "a=4 z=1", "a=4 x=1 z=1 ");
	check_crossing(world, "a=1 z=1", "a=2", "a=3", "z=1 x=1", "z=1", "x=1 z=1 ");
	/* Resolved differently: in dispute for ever, whatever one side's base was. */
	check_crossing(world, "a=1 z=1", "a=2", "a=3", "a=2 z=1", "a=3 z=1", "! a ");
	check_crossing(world, "a=1 z=1", "a=2", "a=3", "a=4 z=1", "a=3 z=1", "! a ");
	check_crossing(world, "a=1 z=1", "a=2", "a=3", "a=2 z=1", "z=1", "! a ");
	check_crossing(world, "a=1 z=1", "-a", "a=3", "z=1", "a=3 z=1", "! a ");
	check_crossing(world, "a=1 z=1", "-a", "a=3", "z=1 y=1", "z=1", "y=1 z=1 ");
	/* Modes in dispute, with any mode at all. */
	check_crossing(world, "a=1 z=1", "a=1:600", "a=1:700", "a=1:600 z=1", "a=1:700 z=1",
	               "! a ");
	check_crossing(world, "a=1 z=1", "a=1:600", "a=1:700", "a=1:0 z=1", "a=1:700 z=1", "! a ");
	check_crossing(world, "a=1 z=1", "a=1:600", "a=1:700", "a=1:600 z=2", "a=1:600 z=1",
	               "a=1:600 z=2 ");
}

static void criss_cross_with_directories(void **state)
{
	struct world *world = *state;
	/* Removed in one base, changed in the other. */
	check_crossing(world, "d/a=1 d/b=1", "-d", "d/a=2", "x=1", "y=1", "x=1 y=1 ");
	check_crossing(world, "d/a=1 d/b=1", "-d", "d/a=2", "d/a=2 d/b=1 x=1", "d/a=2 d/b=1",
	               "d/a=2 d/b=1 x=1 ");
	check_crossing(world, "d/a=1 d/b=1", "-d", "d/a=2", "x=1", "d/a=2 d/b=1", "! d/a d/b ");
	/* A directory's attributes in dispute must not hide what is in it. */
	check_crossing(world, "d/a=1 d/b=1", "d/:700", "d/:711", "d/a=1 d/b=1 d/:700",
	               "d/a=2 d/b=1 d/:700", "d/:700 d/a=2 d/b=1 ");
	check_crossing(world, "d/a=1 d/b=1", "d/:700", "d/:711", "d/a=1 d/b=1 d/:700",
	               "d/a=2 d/b=1 d/:711", "! d ");
	/* A file in one, a directory in the other. */
	check_crossing(world, "z=1", "n=1", "n/x=1", "n=1 z=1", "n=1 z=2", "n=1 z=2 ");
	check_crossing(world, "z=1", "n=1", "n/x=1", "n/x=1 z=1", "n/x=1 n/y=1 z=2",
	               "n/x=1 n/y=1 z=2 ");
	check_crossing(world, "z=1", "n=1", "n/x=1", "n=1 z=1", "n/x=1 z=1", "! n ");
}

/* Two branches that merge each other in every round; each changes a file of its own between. */
static void crossing_without_end(void **state)
{
	struct world *world = *state;
	struct pointer tree = tree_with(world, pointer_none, "a=1 b=1 c=1");
	struct commit *a = commit_of(world, tree, NULL, NULL);
	struct commit *b = commit_of(world, tree_with(world, tree, "b=2"), a, NULL);
	struct commit *start = a;
	a = commit_of(world, tree_with(world, tree, "a=2"), a, NULL);
	free(start);
	for (unsigned round = 3; round < 100; round++) {
		struct merge_result result;
		bool forward, up_to_date;
		char text[32];
		assert_int_equal(merge_commits(world->history, world->odb, world->packer, a, b,
		                               NULL, &result, &forward, &up_to_date,
		                               &world->message),
		                 0);
		assert_int_equal(result.conflict_count, 0);
		snprintf(text, sizeof(text), "a=%u b=%u c=1 ", round - 1, round - 1);
		check_result(world, &result, text);
		snprintf(text, sizeof(text), "a=%u", round);
		struct commit *next_a = commit_of(world, tree_with(world, result.tree, text), a, b);
		snprintf(text, sizeof(text), "b=%u", round);
		struct commit *next_b = commit_of(world, tree_with(world, result.tree, text), b, a);
		merge_result_release(&result);
		free(a);
		free(b);
		a = next_a;
		b = next_b;
	}
	free(a);
	free(b);
}

static void histories_in_line_and_unrelated(void **state)
{
	struct world *world = *state;
	struct merge_result result;
	bool forward, up_to_date;
	struct pointer tree = tree_with(world, pointer_none, "a=1 b=1");
	struct commit *old = commit_of(world, tree, NULL, NULL);
	struct commit *new = commit_of(world, tree_with(world, tree, "a=2 b=2"), old, NULL);
	assert_int_equal(merge_commits(world->history, world->odb, world->packer, new, old, NULL,
	                               &result, &forward, &up_to_date, &world->message),
	                 0);
	assert_true(forward && !up_to_date);
	assert_int_equal(result.changed, 2);
	check_result(world, &result, "a=2 b=2 ");
	assert_int_equal(merge_commits(world->history, world->odb, world->packer, old, new, NULL,
	                               &result, &forward, &up_to_date, &world->message),
	                 0);
	assert_true(!forward && up_to_date);
	assert_int_equal(result.changed, 0);
	check_result(world, &result, "a=2 b=2 ");
	assert_int_equal(merge_commits(world->history, world->odb, world->packer, new, new, NULL,
	                               &result, &forward, &up_to_date, &world->message),
	                 0);
	assert_true(up_to_date);
	/* A path kept from the target makes it a merge of its own. */
	struct take take = TARGET("a");
	struct merge_options options = {.takes = &take, .take_count = 1};
	assert_int_equal(merge_commits(world->history, world->odb, world->packer, new, old,
	                               &options, &result, &forward, &up_to_date, &world->message),
	                 0);
	assert_true(!forward && !up_to_date);
	check_result(world, &result, "a=1 b=2 ");
	struct commit *other =
	        commit_of(world, tree_with(world, pointer_none, "a=1 c=1"), NULL, NULL);
	check_commits(world, other, old, "a=1 b=1 c=1 ");
	struct commit *third = commit_of(world, tree_with(world, pointer_none, "a=5"), NULL, NULL);
	check_commits(world, third, old, "! a ");
	free(old);
	free(new);
	free(other);
	free(third);
}

/* -- cost -- */

struct many {
	unsigned next, count;
	struct tree_entry entry;
	char name[32];
	const struct pointer *root; /* of each entry, when they are directories */
};

static int next_of_many(void *context, struct tree_edit *ret_edit)
{
	struct many *many = context;
	if (many->next == many->count)
		return -ERR_NOT_FOUND;
	unsigned number_of = many->next++;
	int length = snprintf(many->name, sizeof(many->name), "f%07u", number_of);
	if (many->root) {
		many->entry.attributes.mode = S_IFDIR | 0755;
		many->entry.content.pointer = *many->root;
	} else {
		many->entry.attributes.mode = S_IFREG | 0644;
		many->entry.content.kind = CONTENT_CHUNK;
		many->entry.content.size = number_of + 1;
		sha256_of(&number_of, sizeof(number_of), &many->entry.content.pointer.id);
	}
	*ret_edit = (struct tree_edit){many->name, (size_t)length, &many->entry};
	return 0;
}

static struct pointer directory_of(struct world *world, unsigned count, const struct pointer *root)
{
	struct many many = {.count = count, .root = root};
	struct pointer made;
	assert_int_equal(tree_apply(world->odb, world->packer, &pointer_none, next_of_many, &many,
	                            &made, &world->message),
	                 0);
	return made;
}

static struct pointer edited(struct world *world, struct pointer root, unsigned directories,
                             unsigned files, unsigned offset)
{
	for (unsigned i = 0; i < 10; i++) {
		char path[64];
		unsigned file = (i * (files / 10) + offset) % files;
		if (directories)
			snprintf(path, sizeof(path), "f%07u/f%07u",
			         i * (directories / 10) % directories, file);
		else
			snprintf(path, sizeof(path), "f%07u", file);
		put(world, &root, path, 5000000 + offset + i, 0644, 1, NULL);
	}
	return root;
}

/* Reads from the store and milliseconds of a merge with nothing cached. */
static void cost_of(struct world *world, unsigned directories, unsigned files,
                    const struct merge_options *options, uint64_t *ret_reads, double *ret_ms)
{
	struct pointer base = directory_of(world, files, NULL);
	if (directories)
		base = directory_of(world, directories, &base);
	struct pointer source = edited(world, base, directories, files, 0);
	struct pointer target = edited(world, base, directories, files, 1);
	assert_int_equal(packer_flush(world->packer, &world->message), 0);
	struct odb *odb;
	struct packer *packer;
	assert_int_equal(odb_new(world->store, &(struct odb_options){0}, &odb), 0);
	assert_int_equal(packer_new(odb, &packer), 0);
	struct merge_side sides[] = {side_of(base), side_of(source), side_of(target)};
	struct merge_result result;
	int64_t start = clock_wall_ns();
	assert_int_equal(merge_trees(odb, packer, &sides[0], &sides[1], &sides[2], options, &result,
	                             &world->message),
	                 0);
	*ret_ms = (double)(clock_wall_ns() - start) / 1e6;
	assert_int_equal(result.conflict_count, 0);
	assert_int_equal(result.changed, options ? 9 : 10);
	struct odb_stats stats;
	odb_stats(odb, &stats);
	*ret_reads = stats.reads;
	packer_free(packer);
	odb_free(odb);
}

static void cost_is_what_changed(void **state)
{
	struct world *world = *state;
	static const struct {
		unsigned directories, files;
	} shapes[] = {{0, 1000}, {0, 1000000}, {10, 100}, {1000, 1000}};
	uint64_t reads[ARRAY_SIZE(shapes)];
	double ms[ARRAY_SIZE(shapes)];
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		cost_of(world, shapes[i].directories, shapes[i].files, NULL, &reads[i], &ms[i]);
		print_message("%u directories of %u files, 10 changes on each side: %llu reads, "
		              "%.1f ms\n",
		              shapes[i].directories, shapes[i].files, (unsigned long long)reads[i],
		              ms[i]);
	}
	/* At most a path of nodes per change and tree, with neighbours where boundaries moved. */
	assert_true(reads[1] < 300);
	assert_true(reads[3] < 400);
	assert_true(ms[1] < 2000 && ms[3] < 2000);
	/* A pattern that may match anywhere does not make it walk what is equal. */
	struct take take = TARGET("**/f0000000");
	struct merge_options options = {.takes = &take, .take_count = 1};
	cost_of(world, 1000, 1000, &options, &reads[0], &ms[0]);
	print_message("with a pattern for any directory: %llu reads, %.1f ms\n",
	              (unsigned long long)reads[0], ms[0]);
	assert_true(reads[0] < 400);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST(one_side_changed),
	        TEST(both_sides_alike),
	        TEST(both_sides_otherwise),
	        TEST(added_directories),
	        TEST(removed_directories),
	        TEST(attributes_merge_by_themselves),
	        TEST(times_never_conflict),
	        TEST(taking_a_side),
	        TEST(taking_by_pattern),
	        TEST(takes_that_name_nothing),
	        TEST(conflicts_tell_the_three_sides),
	        TEST(conflicts_in_words),
	        TEST(changed_counts_paths_against_the_target),
	        TEST(criss_cross),
	        TEST(criss_cross_with_directories),
	        TEST(crossing_without_end),
	        TEST(histories_in_line_and_unrelated),
	        TEST(cost_is_what_changed),
	};
	return cmocka_run_group_tests_name("merge", tests, NULL, NULL);
}
