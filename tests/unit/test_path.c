/* Tests of refs/path.h: patterns of paths. */
#include "refs/path.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>
#undef fail /* cmocka's macro hides the function of store/error.h */

struct match {
	const char *pattern, *path;
	bool matches;
};

static void check(const struct match *cases, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		bool matches = path_glob_match(cases[i].pattern, cases[i].path);
		if (matches != cases[i].matches)
			print_message("'%s' against '%s'\n", cases[i].pattern, cases[i].path);
		assert_int_equal(matches, cases[i].matches);
	}
}

static void test_within_a_component(void **state)
{
	static const struct match cases[] = {
	        {"a", "a", true},
	        {"a", "b", false},
	        {"a", "ab", false},
	        {"ab", "a", false},
	        {"*", "a", true},
	        {"*", ".hidden", true},
	        {"*.csv", "a.csv", true},
	        {"*.csv", ".csv", true},
	        {"*.csv", "a.csv.gz", false},
	        {"a*c*e", "abcde", true},
	        {"a*c*e", "ace", true},
	        {"a*c*e", "abcd", false},
	        {"*ab*ab", "abxab", true},
	        {"*ab*ab", "abab", true},
	        {"*ab*ab", "aab", false},
	        {"a**b", "axyb", true},
	        {"?", "a", true},
	        {"?", "ab", false},
	        {"a?c", "abc", true},
	        {"??", "\xc3\xa4", true}, /* bytes */
	        {"[abc]", "b", true},
	        {"[abc]", "d", false},
	        {"[a-c]x", "bx", true},
	        {"[a-c]x", "dx", false},
	        {"[!a-c]", "d", true},
	        {"[^a-c]", "b", false},
	        {"[]]", "]", true},
	        {"[!]]", "]", false},
	        {"[!]]", "a", true},
	        {"[a-]", "-", true},
	        {"[-a]", "-", true},
	        {"[\\]a]", "]", true},
	        {"[\\!a]", "!", true},
	        {"[0-9][0-9]*", "12x", true},
	        {"[\x80-\xff]*", "\xc3\xa4", true},
	        {"*[0-9]", "a1b2", true},
	        {"\\*", "*", true},
	        {"\\*", "a", false},
	        {"a\\?", "a?", true},
	        {"a\\[b", "a[b", true},
	        {"\\a", "a", true},
	};
	check(cases, ARRAY_SIZE(cases));
}

static void test_components(void **state)
{
	static const struct match cases[] = {
	        {"a/b", "a/b", true},
	        {"*", "a/b", true}, /* names the directory "a" */
	        {"*.csv", "a/b.csv", false},
	        {"a/*", "a/b", true},
	        {"a/*", "a", false},
	        {"a*b", "a/b", false},
	        {"a?b", "a/b", false},
	        {"a[/]b", "a/b", false},
	        {"orders", "orders/_delta_log/0.json", true},
	        {"orders/", "orders/part", true},
	        {"orders", "orders2/part", false},
	        {"./a//b/.", "a/b", true},
	        {"**", "a/b/c", true},
	        {"**", "", true},
	        {"", "a", true},
	        {"a", "", false},
	        {"**/a", "a", true},
	        {"**/a", "x/y/a", true},
	        {"**/a", "x/a/y", true},
	        {"**/a", "x/y", false},
	        {"a/**/b", "a/b", true},
	        {"a/**/b", "a/x/y/b", true},
	        {"a/**/b", "x/a/b", false},
	        {"a/**", "a", true},
	        {"a/**", "a/b/c", true},
	        {"**/*.csv", "a/b/c.csv", true},
	        {"**/*.csv", "a/b/c", false},
	        {"**/a/b/**/c", "a/x/a/b/y/a/b/c", true},
	        {"**/a/b/c", "a/b/a/b/c", true},
	        {"**/a/b/**/d", "a/b/c/a/b", false},
	        {"month=*/**/*.parquet", "month=6/x/0.parquet", true},
	};
	check(cases, ARRAY_SIZE(cases));
}

static void test_depth(void **state)
{
	static const struct {
		const char *pattern, *path;
		unsigned depth;
	} cases[] = {
	        {"", "a/b", 0},
	        {"**", "a/b", 0},
	        {"a", "a/b", 1},
	        {"*/b", "a/b/c", 2},
	        {"**/b", "a/b/b/b", 2},
	        {"**/b/**/d", "b/c/d/d", 3},
	        {"a/**/c/d", "a/c/c/d/e", 4},
	};
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		unsigned depth = 99;
		assert_true(path_glob_find(cases[i].pattern, cases[i].path, &depth));
		assert_int_equal(depth, cases[i].depth);
	}
}

static void test_reach(void **state)
{
	assert_true(path_glob_reaches("a/*/c", ""));
	assert_true(path_glob_reaches("a/*/c", "a"));
	assert_true(path_glob_reaches("a/*/c", "a/b"));
	assert_true(path_glob_reaches("a/*/c", "a/b/c/d"));
	assert_false(path_glob_reaches("a/*/c", "a/b/d"));
	assert_false(path_glob_reaches("a/*/c", "b"));
	assert_true(path_glob_reaches("a/**/c", "a/b/d"));
	assert_false(path_glob_reaches("a/**/c", "b/d"));
	assert_true(path_glob_is_plain("a/b.c-d"));
	assert_false(path_glob_is_plain("a/b*"));
	assert_false(path_glob_is_plain("a\\b"));
}

static void test_check(void **state)
{
	static const char *const good[] = {"",      "a",    "**",     "*/x[a-c]?", "a\\*",
	                                   "[]ab]", "[!a]", "a/[^]]", "[\\]]",     "./a/"};
	static const char *const bad[] = {"/a",  "a/../b", "..",    "[",     "a/[b",  "[a/b]",
	                                  "[]",  "[!]",    "[z-a]", "a\\",   "a\\/b", "[\\",
	                                  "[a-", "[a\\]",  "[!",    "x[a-\\"};
	struct message message = {0};
	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_int_equal(path_glob_check(good[i], &message), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		if (path_glob_check(bad[i], &message) != -ERR_INVALID)
			print_message("'%s' is no error\n", bad[i]);
		assert_int_equal(path_glob_check(bad[i], &message), -ERR_INVALID);
		path_glob_match(bad[i], "a/b/c");
	}
	char pattern[PATH_BYTES_MAX + 1];
	memset(pattern, 'a', PATH_BYTES_MAX);
	pattern[PATH_BYTES_MAX] = '\0';
	assert_int_equal(path_glob_check(pattern, &message), -ERR_INVALID);
	pattern[PATH_BYTES_MAX - 1] = '\0';
	assert_int_equal(path_glob_check(pattern, &message), 0);
}

/* Patterns on which a search that backtracks does not end within a lifetime. */
static void test_no_blow_up(void **state)
{
	char path[PATH_BYTES_MAX], name[256], pattern[PATH_BYTES_MAX];
	for (size_t i = 0; i + 1 < sizeof(path); i += 2)
		memcpy(path + i, "b/", 2);
	path[sizeof(path) - 1] = '\0';
	int64_t start_ms = clock_monotonic_ms();
	assert_false(path_glob_match("**/**/**/a", path));
	assert_false(path_glob_match("**/b/**/b/**/b/**/b/**/b/**/b/**/b/**/a", path));
	memset(name, 'a', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_false(path_glob_match("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*ab", name));
	assert_false(path_glob_match("**/*a*a*a*a*a*a*a*a*a*a*a*a*b/**/*a*a*b", name));
	size_t used = 0;
	while (used + 8 < sizeof(pattern))
		used += (size_t)sprintf(pattern + used, "**/%s/", used % 2 ? "b" : "*");
	strcpy(pattern + used, "a");
	assert_false(path_glob_match(pattern, path));
	assert_true(clock_monotonic_ms() - start_ms < 5000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_within_a_component),
	        cmocka_unit_test(test_components),
	        cmocka_unit_test(test_depth),
	        cmocka_unit_test(test_reach),

	        cmocka_unit_test(test_check),
	        cmocka_unit_test(test_no_blow_up),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
