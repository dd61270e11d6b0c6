/* Audits: what they see, which are run, and what becomes of what they say. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/publish/audit.h"
#include "fs/commands/command.h"

#include <cmocka.h>

#define NOBODY 65534

/* A lake's directory with audits, installed ones, a mount point with a candidate (plain
 * directories), and a place for temporary files. */
static char root[] = "/tmp/test-audit-XXXXXX";
static char lake[64], installed[64], mountpoint[64], temporary[64], candidate[192];
static struct caller caller = {.name = "me@here"};
static struct audit_changes changes;
static struct audit_subject subject;

static void make_directory(char *path, size_t size, const char *name)
{
	snprintf(path, size, "%s/%s", root, name);
	assert_int_equal(mkdir(path, 0755), 0);
}

static int set_up(void **state)
{
	char audits[96], hex[ID_HEX + 1];
	umask(0022);
	if (!mkdtemp(root) || chmod(root, 0755) < 0)
		return -1;
	make_directory(lake, sizeof lake, "lake");
	make_directory(installed, sizeof installed, "installed");
	make_directory(mountpoint, sizeof mountpoint, "mount");
	make_directory(temporary, sizeof temporary, "temporary");
	snprintf(audits, sizeof audits, "%s/audits", lake);
	memset(subject.candidate.bytes, 0xca, ID_BYTES);
	memset(subject.source_id.bytes, 0x50, ID_BYTES);
	memset(subject.target_id.bytes, 0x7a, ID_BYTES);
	id_to_hex(&subject.candidate, hex);
	snprintf(candidate, sizeof candidate, "%s/@%s", mountpoint, hex);
	if (mkdir(audits, 0755) < 0 || mkdir(candidate, 0755) < 0 ||
	    setenv("LAKE_AUDITS", installed, 1) < 0 || setenv("TMPDIR", temporary, 1) < 0)
		return -1;
	caller.uid = geteuid() == 0 ? NOBODY : geteuid();
	caller.gid = geteuid() == 0 ? NOBODY : getegid();
	subject.caller = &caller;
	subject.mountpoint = mountpoint;
	subject.source = "dev";
	subject.target = "main";
	subject.changes = &changes;
	return audit_changes_add(&changes, CHANGE_ADDED, "t/new file\n.csv") |
	       audit_changes_add(&changes, CHANGE_MODIFIED, "t/old.csv") |
	       audit_changes_add(&changes, CHANGE_REMOVED, "t/gone.csv") |
	       audit_changes_add(&changes, CHANGE_MODE, "u/mode.sh");
}

static int tear_down(void **state)
{
	char command[128];
	audit_changes_release(&changes);
	snprintf(command, sizeof command, "rm -rf %s", root);
	return system(command);
}

static void script(const char *directory, const char *name, const char *text, mode_t mode)
{
	char path[256];
	snprintf(path, sizeof path, "%s/%s", directory, name);
	FILE *file = fopen(path, "we");
	assert_non_null(file);
	fprintf(file, "#!/bin/sh\n%s\n", text);
	fclose(file);
	assert_int_equal(chmod(path, mode), 0);
}

/* An audit of the lake's directory. */
static void audit_script(const char *name, const char *text)
{
	char directory[96];
	snprintf(directory, sizeof directory, "%s/audits", lake);
	script(directory, name, text, 0755);
}

static struct rules *parse(const char *audits)
{
	struct rules *rules = NULL;
	struct message message = {{0}};
	CLEANUP(free_pointer) char *text = NULL;
	assert_true(asprintf(&text, "{\"version\":1,\"audits\":[%s]}", audits) > 0);
	int error = rules_parse(text, strlen(text), &rules, &message);
	if (error)
		print_error("%s\n", message.text);
	assert_int_equal(error, 0);
	return rules;
}

static void run(const char *audits, struct verdict *ret_verdict)
{
	CLEANUP(rules_cleanup) struct rules *rules = parse(audits);
	struct message message = {{0}};
	int error = audits_run(lake, rules, &subject, NULL, ret_verdict, &message);
	if (error)
		print_error("%s\n", message.text);
	assert_int_equal(error, 0);
	/* Nothing is left of the lists. */
	DIR *directory = opendir(temporary);
	const struct dirent *entry;
	while ((entry = readdir(directory)))
		assert_int_equal(entry->d_name[0], '.');
	closedir(directory);
}

static void test_no_audits_pass(void **state)
{
	CLEANUP(verdict_release) struct verdict verdict = {0};
	run("", &verdict);
	assert_int_equal(verdict.verdict, VERDICT_PASSED);
	assert_int_equal(verdict.check_count, 0);
	assert_string_equal(verdict.who, "me@here");
	assert_string_equal(verdict.source, "dev");
}

static void test_what_an_audit_sees(void **state)
{
	CLEANUP(verdict_release) struct verdict verdict = {0};
	char wanted[4096], hex[3][ID_HEX + 1];
	id_to_hex(&subject.candidate, hex[0]);
	id_to_hex(&subject.source_id, hex[1]);
	id_to_hex(&subject.target_id, hex[2]);
	audit_script("look",
	             "echo $LAKE_CANDIDATE; echo $LAKE_SOURCE $LAKE_TARGET; echo $LAKE_SOURCE_ID; "
	             "echo $LAKE_TARGET_ID; echo \"[$LAKE_BASE]\"; echo $LAKE_TARGET_PATH; echo "
	             "$LAKE_MOUNT; echo $LAKE_AUDIT; pwd; id -u; echo \"$2\"; env | cut -d= -f1 | "
	             "sort | "
	             "tr '\\n' ' '");
	run("{\"name\":\"a\",\"command\":[\"look\",\"x\",\"y  z\"]}", &verdict);
	snprintf(wanted, sizeof wanted,
	         "%s\ndev main\n%s\n%s\n[]\n%s/@%s\n%s\na\n%s\n%u\ny  z\n"
	         "HOME LAKE_AUDIT LAKE_BASE LAKE_CANDIDATE LAKE_CHANGED LAKE_MOUNT LAKE_REMOVED "
	         "LAKE_SOURCE LAKE_SOURCE_ID LAKE_TARGET LAKE_TARGET_ID LAKE_TARGET_PATH LANG PATH "
	         "PWD "
	         "USER ",
	         candidate, hex[1], hex[2], mountpoint, hex[2], mountpoint, candidate, caller.uid);
	assert_string_equal(verdict.checks[0].output, wanted);
	assert_int_equal(verdict.checks[0].path_count, 4);
}

static void test_changed_paths_that_concern_it(void **state)
{
	CLEANUP(verdict_release) struct verdict verdict = {0};
	audit_script("paths",
	             "tr '\\0' '|' <$LAKE_CHANGED; echo; tr '\\0' '|' <$LAKE_REMOVED; echo; "
	             "stat -c %a:%u $LAKE_CHANGED; touch ${LAKE_CHANGED%/*}/x 2>/dev/null");
	run("{\"name\":\"all\",\"command\":[\"paths\"]},"
	    "{\"name\":\"some\",\"command\":[\"paths\"],\"paths\":[\"t/g*\",\"u/**\"]},"
	    "{\"name\":\"below\",\"command\":[\"paths\"],\"paths\":[\"t\"]},"
	    "{\"name\":\"none\",\"command\":[\"nowhere\"],\"paths\":[\"v/**\",\"*.csv\"]}",
	    &verdict);
	char wanted[3][128];
	snprintf(wanted[0], 128, "t/new file\n.csv|t/old.csv|u/mode.sh|\nt/gone.csv|\n400:%u\n",
	         caller.uid);
	snprintf(wanted[1], 128, "u/mode.sh|\nt/gone.csv|\n400:%u\n", caller.uid);
	snprintf(wanted[2], 128, "t/new file\n.csv|t/old.csv|\nt/gone.csv|\n400:%u\n", caller.uid);
	for (int i = 0; i < 3; i++)
		assert_string_equal(verdict.checks[i].output, wanted[i]);
	assert_int_equal(verdict.checks[1].path_count, 2);
	assert_int_equal(verdict.checks[3].verdict, VERDICT_SKIPPED);
	assert_string_equal(verdict.checks[3].output, "");
}

static void test_all_run_and_the_worst_counts(void **state)
{
	CLEANUP(verdict_release) struct verdict first = {0};
	CLEANUP(verdict_release) struct verdict second = {0};
	CLEANUP(verdict_release) struct verdict third = {0};
	audit_script("says", "echo said $1; exit $1");
	audit_script("slow", "sleep 100");
	audit_script("dies", "kill -9 $$");
	run("{\"name\":\"a\",\"command\":[\"says\",\"0\"]},{\"name\":\"b\",\"command\":[\"says\","
	    "\"7\"]},"
	    "{\"name\":\"c\",\"command\":[\"says\",\"0\"]}",
	    &first);
	assert_int_equal(first.verdict, VERDICT_FAILED);
	assert_int_equal(first.checks[0].verdict, VERDICT_PASSED);
	assert_int_equal(first.checks[1].verdict, VERDICT_FAILED);
	assert_int_equal(first.checks[1].exit_code, 7);
	assert_string_equal(first.checks[1].output, "said 7\n");
	assert_int_equal(first.checks[2].verdict, VERDICT_PASSED);
	run("{\"name\":\"a\",\"command\":[\"slow\"],\"timeout_s\":1},"
	    "{\"name\":\"b\",\"command\":[\"says\",\"1\"]},{\"name\":\"c\",\"command\":[\"dies\"]},"
	    "{\"name\":\"d\",\"command\":[\"missing\"]},{\"name\":\"e\",\"command\":[\"says\","
	    "\"0\"]}",
	    &second);
	assert_int_equal(second.verdict, VERDICT_ERROR);
	assert_int_equal(second.checks[0].verdict, VERDICT_ERROR);
	assert_true(second.checks[0].timed_out);
	assert_int_equal(second.checks[1].verdict, VERDICT_FAILED);
	assert_int_equal(second.checks[2].verdict, VERDICT_ERROR);
	assert_int_equal(second.checks[2].signal, 9);
	assert_int_equal(second.checks[3].verdict, VERDICT_ERROR);
	assert_int_equal(second.checks[3].exit_code, -1);
	assert_non_null(strstr(second.checks[3].output, "missing"));
	assert_int_equal(second.checks[4].verdict, VERDICT_PASSED);
	run("{\"name\":\"a\",\"command\":[\"says\",\"0\"]}", &third);
	assert_int_equal(third.verdict, VERDICT_PASSED);
}

/* Whatever it prints, the verdict can be stored and read. */
static void test_any_bytes_of_output(void **state)
{
	CLEANUP(verdict_release) struct verdict verdict = {0};
	CLEANUP(verdict_release) struct verdict read = {0};
	CLEANUP(buffer_release) struct buffer bytes = {0};
	audit_script("binary", "head -c 1000000 /dev/urandom; printf '\\033[2J\\000\\377'; "
	                       "printf 'r\\303\\251sum\\303\\251'; exit 1");
	run("{\"name\":\"a\",\"command\":[\"binary\"]}", &verdict);
	assert_true(verdict.checks[0].output_cut);
	assert_null(strchr(verdict.checks[0].output, '\033'));
	assert_non_null(strstr(verdict.checks[0].output, "r\xc3\xa9sum\xc3\xa9"));
	assert_int_equal(verdict_encode(&verdict, &bytes), 0);
	assert_int_equal(verdict_decode(bytes.data, bytes.length, &read), 0);
	assert_string_equal(read.checks[0].output, verdict.checks[0].output);
}

static void test_where_programs_are_found(void **state)
{
	struct message message = {{0}};
	CLEANUP(free_pointer) char *path = NULL;
	char wanted[256];
	script(installed, "both", "exit 1", 0755);
	script(installed, "shipped", "exit 0", 0755);
	audit_script("both", "exit 0");
	assert_int_equal(audit_program(lake, mountpoint, "both", &path, &message), 0);
	snprintf(wanted, sizeof wanted, "%s/audits/both", lake);
	assert_string_equal(path, wanted);
	free_pointer(&path);
	assert_int_equal(audit_program(lake, mountpoint, "shipped", &path, &message), 0);
	snprintf(wanted, sizeof wanted, "%s/shipped", installed);
	assert_string_equal(path, wanted);
	free_pointer(&path);
	assert_int_equal(audit_program(lake, mountpoint, "neither", &path, &message),
	                 -ERR_NOT_FOUND);
	assert_non_null(strstr(message.text, lake));
	assert_non_null(strstr(message.text, installed));
	assert_int_equal(audit_program(lake, mountpoint, "/bin/true", &path, &message), 0);
	assert_string_equal(path, "/bin/true");
}

/* What is audited must not choose its auditor, by whatever way it is reached. */
static void test_no_program_of_the_lake_itself(void **state)
{
	struct message message = {{0}};
	CLEANUP(free_pointer) char *path = NULL;
	char inside[256], outside[256];
	script(candidate, "pass", "exit 0", 0755);
	snprintf(inside, sizeof inside, "%s/pass", candidate);
	snprintf(outside, sizeof outside, "%s/link", installed);
	assert_int_equal(symlink(inside, outside), 0);
	assert_int_equal(audit_program(lake, mountpoint, inside, &path, &message), -ERR_REFUSED);
	assert_int_equal(audit_program(lake, mountpoint, outside, &path, &message), -ERR_REFUSED);
	assert_int_equal(audit_program(lake, mountpoint, "link", &path, &message), -ERR_REFUSED);
	assert_null(path);
}

static void test_no_program_that_others_may_write(void **state)
{
	struct message message = {{0}};
	CLEANUP(free_pointer) char *path = NULL;
	char file[256];
	script(installed, "shared", "exit 0", 0775);
	script(installed, "public", "exit 0", 0757);
	script(installed, "others", "exit 0", 0755);
	assert_int_equal(audit_program(lake, mountpoint, "shared", &path, &message), -ERR_REFUSED);
	assert_non_null(strstr(message.text, "chmod go-w"));
	assert_int_equal(audit_program(lake, mountpoint, "public", &path, &message), -ERR_REFUSED);
	if (geteuid() != 0)
		return;
	snprintf(file, sizeof file, "%s/others", installed);
	assert_int_equal(chown(file, 12345, 0), 0);
	assert_int_equal(audit_program(lake, mountpoint, "others", &path, &message), -ERR_REFUSED);
	assert_non_null(strstr(message.text, "12345"));
	assert_int_equal(chown(lake, 12345, 0), 0);
	assert_int_equal(audit_program(lake, mountpoint, "others", &path, &message), 0);
	assert_int_equal(chown(lake, 0, 0), 0);
}

static int cancel(void *context, const char *what, uint64_t done, uint64_t total, const char *unit)
{
	int *looks = context;
	assert_string_equal(what, "audit a");
	assert_int_equal(total, 1);
	return ++*looks > 2;
}

static void test_it_can_be_cancelled(void **state)
{
	CLEANUP(rules_cleanup)
	struct rules *rules = parse("{\"name\":\"a\",\"command\":[\"wait\"]}");
	struct verdict verdict = {0};
	struct message message = {{0}};
	int looks = 0;
	const struct progress progress = {.report = cancel, .context = &looks};
	audit_script("wait", "sleep 100");
	assert_int_equal(audits_run(lake, rules, &subject, &progress, &verdict, &message),
	                 -ERR_INTERRUPTED);
	assert_null(verdict.checks);
	DIR *directory = opendir(temporary);
	const struct dirent *entry;
	while ((entry = readdir(directory)))
		assert_int_equal(entry->d_name[0], '.');
	closedir(directory);
}

static void test_without_a_mount_only_what_need_not_look(void **state)
{
	CLEANUP(rules_cleanup)
	struct rules *rules = parse("{\"name\":\"a\",\"command\":[\"look\"]}");
	CLEANUP(verdict_release) struct verdict verdict = {0};
	struct audit_subject unmounted = subject;
	struct message message = {{0}};
	unmounted.mountpoint = NULL;
	assert_int_equal(audits_run(lake, rules, &unmounted, NULL, &verdict, &message),
	                 -ERR_REFUSED);
	assert_non_null(strstr(message.text, "mount"));
	struct audit_changes nothing = {.count = 0};
	unmounted.changes = &nothing;
	assert_int_equal(audits_run(lake, rules, &unmounted, NULL, &verdict, &message), 0);
	assert_int_equal(verdict.checks[0].verdict, VERDICT_SKIPPED);
}

/* 200,000 paths: a list of some MB, for one audit of two. */
static void test_many_changed_paths(void **state)
{
	CLEANUP(audit_changes_release) struct audit_changes many = {0};
	CLEANUP(verdict_release) struct verdict verdict = {0};
	const struct audit_changes *before = subject.changes;
	for (int i = 0; i < 200000; i++) {
		char path[64];
		snprintf(path, sizeof path, "table/part=%d/data_%d.parquet", i % 100, i);
		assert_int_equal(audit_changes_add(&many, CHANGE_ADDED, path), 0);
	}
	audit_script("count", "tr -cd '\\0' <$LAKE_CHANGED | wc -c");
	subject.changes = &many;
	run("{\"name\":\"a\",\"command\":[\"count\"],\"paths\":[\"table/part=7/*\"]},"
	    "{\"name\":\"b\",\"command\":[\"count\"],\"paths\":[\"**/*.parquet\"]}",
	    &verdict);
	subject.changes = before;
	assert_string_equal(verdict.checks[0].output, "2000\n");
	assert_string_equal(verdict.checks[1].output, "200000\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_no_audits_pass),
	        cmocka_unit_test(test_what_an_audit_sees),
	        cmocka_unit_test(test_changed_paths_that_concern_it),
	        cmocka_unit_test(test_all_run_and_the_worst_counts),
	        cmocka_unit_test(test_any_bytes_of_output),
	        cmocka_unit_test(test_where_programs_are_found),
	        cmocka_unit_test(test_no_program_of_the_lake_itself),
	        cmocka_unit_test(test_no_program_that_others_may_write),
	        cmocka_unit_test(test_it_can_be_cancelled),
	        cmocka_unit_test(test_without_a_mount_only_what_need_not_look),
	        cmocka_unit_test(test_many_changed_paths),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
