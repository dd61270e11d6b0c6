/* Tests of fs/publish/tables.h: what becomes of tables that both sides of a merge wrote. */
#include "merge_world.h"

#include "fs/publish/table_delta.h"
#include "fs/publish/tables.h"

#include <ctype.h>
#include <sys/mman.h>
#include <unistd.h>

/* -- entries of a log -- */

#define INFO(operation, mode) \
	"{\"commitInfo\":{\"operation\":\"" operation \
	"\",\"operationParameters\":{\"mode\":\"" mode "\"}}}\n"
#define BLIND "{\"commitInfo\":{\"operation\":\"WRITE\",\"isBlindAppend\":true}}\n"
#define READING \
	"{\"commitInfo\":{\"operation\":\"WRITE\",\"operationParameters\":{\"mode\":\"Append\"}," \
	"\"isBlindAppend\":false}}\n"
#define ADD(path) "{\"add\":{\"path\":\"" path "\",\"dataChange\":true,\"baseRowId\":null}}\n"
#define REMOVE(path) "{\"remove\":{\"path\":\"" path "\",\"dataChange\":true}}\n"
#define TXN(application) "{\"txn\":{\"appId\":\"" application "\",\"version\":7}}\n"
#define METADATA "{\"metaData\":{\"id\":\"x\",\"schemaString\":\"s\"}}\n"
#define PROTOCOL "{\"protocol\":{\"minReaderVersion\":1,\"minWriterVersion\":2}}\n"
#define APPEND(path) INFO("WRITE", "Append") ADD(path)
#define CREATE INFO("WRITE", "ErrorIfExists") PROTOCOL METADATA ADD("first")
#define DELETE(path) INFO("DELETE", "") REMOVE(path)

/* -- tables -- */

static void put_text(struct world *world, struct pointer *root, const char *path, const char *text,
                     int64_t mtime_ns)
{
	struct tree_entry entry = {.attributes = {.mode = S_IFREG | 0644, .mtime_ns = mtime_ns}};
	int fd = memfd_create("text", 0);
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, text, strlen(text), 0), 0);
	assert_int_equal(content_store(world->packer, fd, strlen(text), NULL, &entry.content,
	                               &world->message),
	                 0);
	close(fd);
	set(world, root, path, &entry);
}

/* orders/_delta_log gets these versions. */
static void log_put(struct world *world, struct pointer *root, uint64_t version, const char *text)
{
	char name[DELTA_NAME_MAX], path[100];
	delta_entry_name(version, name);
	snprintf(path, sizeof(path), "orders/_delta_log/%s", name);
	put_text(world, root, path, text, (int64_t)version * 1000);
}

static void log_file(struct world *world, struct pointer *root, const char *name, const char *text)
{
	char path[200];
	snprintf(path, sizeof(path), "orders/_delta_log/%s", name);
	if (text)
		put_text(world, root, path, text, 5);
	else
		set(world, root, path, NULL);
}

static struct pointer base_table(struct world *world, unsigned versions)
{
	struct pointer root = pointer_none;
	for (unsigned i = 0; i < versions; i++)
		log_put(world, &root, i, i ? APPEND("base") : CREATE);
	return root;
}

static struct pointer with(struct world *world, struct pointer root, uint64_t first,
                           const char *one, const char *two)
{
	log_put(world, &root, first, one);
	if (two)
		log_put(world, &root, first + 1, two);
	return root;
}

static void merge(struct world *world, struct pointer base, struct pointer source,
                  struct pointer target, struct merge_result *ret_result)
{
	struct merge_side sides[] = {side_of(base), side_of(source), side_of(target)};
	struct merge_options options = {.directory = merge_table};
	*ret_result = (struct merge_result){0};
	assert_int_equal(merge_trees(world->odb, world->packer, &sides[0], &sides[1], &sides[2],
	                             &options, ret_result, &world->message),
	                 0);
}

struct description {
	struct world *world;
	char text[4096];
};

/* "0:first 1:base ...": the first path that each version names, other files by their names. */
static int describe(void *context, const char *path, const struct tree_entry *entry)
{
	struct description *made = context;
	char *text = made->text, bytes[4096] = "", *at;
	const char *name = strrchr(path, '/');
	size_t used = strlen(text);
	if (!S_ISREG(entry->attributes.mode))
		return 0;
	if (!name || !strstr(name, ".json") || !isdigit((unsigned char)name[1])) {
		sprintf(text + used, "%s ", name + 1);
		return 0;
	}
	assert_true(entry->content.size < sizeof(bytes));
	assert_int_equal(content_read(made->world->odb, &entry->content, 0, entry->content.size,
	                              bytes, &made->world->message),
	                 0);
	at = strstr(bytes, "\"path\":\"");
	sprintf(text + used, "%lu:%.*s ", strtoul(name + 1, NULL, 10),
	        at ? (int)strcspn(at + 8, "\"") : 1, at ? at + 8 : "-");
	return 0;
}

static void check_log(struct world *world, const struct merge_result *result, const char *expected)
{
	struct description made = {.world = world, .text = ""};
	for (size_t i = 0; i < result->conflict_count; i++)
		print_message("%s: %s\n", result->conflicts[i].path, result->conflicts[i].sentence);
	assert_int_equal(result->conflict_count, 0);
	assert_int_equal(tree_visit(world->odb, &result->tree, describe, &made, &world->message),
	                 0);
	assert_string_equal(made.text, expected);
}

static void check_merged(struct world *world, struct pointer base, struct pointer source,
                         struct pointer target, const char *expected)
{
	struct merge_result result;
	merge(world, base, source, target, &result);
	check_log(world, &result, expected);
	merge_result_release(&result);
}

static void assert_says(const char *sentence, const char *words)
{
	if (!strstr(sentence, words))
		print_message("'%s' is not in '%s'\n", words, sentence);
	assert_non_null(strstr(sentence, words));
}

/* One conflict, of the table, whose sentence has these words. */
static void check_conflict(struct world *world, struct pointer base, struct pointer source,
                           struct pointer target, uint64_t version, const char *words)
{
	struct merge_result result;
	merge(world, base, source, target, &result);
	assert_int_equal(result.conflict_count, 1);
	const struct conflict *conflict = &result.conflicts[0];
	assert_string_equal(conflict->path, "orders");
	assert_string_equal(conflict->format, "delta");
	assert_says(conflict->sentence, words);
	assert_says(conflict->sentence, "table orders");
	assert_int_equal(conflict->version, version);
	merge_result_release(&result);
}

/* -- Delta: what merges -- */

static void appends_follow_the_target(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 2);
	struct pointer source = with(world, base, 2, APPEND("s1"), APPEND("s2"));
	struct pointer target = with(world, base, 2, BLIND ADD("t1"), DELETE("base"));
	check_merged(world, base, source, target, "0:first 1:base 2:t1 3:base 4:s1 5:s2 ");
	check_merged(world, base, source, base, "0:first 1:base 2:s1 3:s2 ");
	check_merged(world, base, source, source, "0:first 1:base 2:s1 3:s2 ");
	/* Overwritten, updated, rearranged: the appended rows come after. */
	target = with(world, base, 2, INFO("WRITE", "Overwrite") REMOVE("base") ADD("t"), NULL);
	check_merged(world, base, source, target, "0:first 1:base 2:base 3:s1 4:s2 ");
	/* Without the base: both have the beginning. */
	target = with(world, base, 2, APPEND("t"), NULL);
	check_merged(world, pointer_none, source, target, "0:first 1:base 2:t 3:s1 4:s2 ");
	/* What both wrote alike is there once. */
	source = with(world, base, 2, APPEND("same"), APPEND("s"));
	target = with(world, base, 2, APPEND("same"), APPEND("t"));
	check_merged(world, base, source, target, "0:first 1:base 2:same 3:t 4:s ");
	target = with(world, base, 2, APPEND("t"), APPEND("same"));
	check_merged(world, base, source, target, "0:first 1:base 2:t 3:same 4:s ");
	/* Progress of different applications; a vacuum. */
	source = with(world, base, 2, BLIND TXN("a") ADD("s"), INFO("VACUUM END", ""));
	target = with(world, base, 2, BLIND TXN("b") ADD("t"), INFO("VACUUM START", ""));
	check_merged(world, base, source, target, "0:first 1:base 2:t 3:- 4:s 5:- ");
}

static void bytes_stay_and_times_ascend(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 1);
	struct pointer source = with(world, base, 1, APPEND("s1"), APPEND("s2"));
	struct pointer target = with(world, base, 1, APPEND("t1"), APPEND("t2"));
	struct tree_entry *before, *after;
	struct merge_result result;
	merge(world, base, source, target, &result);
	assert_int_equal(result.changed, 2);
	int64_t last = 0;
	for (unsigned i = 0; i < 5; i++) {
		char path[100];
		snprintf(path, sizeof(path), "orders/_delta_log/%020u.json", i);
		assert_int_equal(tree_find(world->odb, &result.tree, path, &after, NULL), 0);
		assert_true(i == 0 || after->attributes.mtime_ns > last);
		last = after->attributes.mtime_ns;
		if (i == 4) {
			assert_int_equal(tree_find(world->odb, &source,
			                           "orders/_delta_log/00000000000000000002.json",
			                           &before, NULL),
			                 0);
			assert_true(content_equal(&before->content, &after->content));
			free(before);
		}
		free(after);
	}
	merge_result_release(&result);
}

static void what_is_derived_stays_with_its_log(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 2);
	struct pointer source = with(world, base, 2, APPEND("s1"), APPEND("s2"));
	struct pointer target = with(world, base, 2, APPEND("t"), NULL);
	log_file(world, &source, "_last_checkpoint", "3");
	log_file(world, &source, "00000000000000000003.checkpoint.parquet", "s");
	log_file(world, &source, "00000000000000000002.crc", "s");
	log_file(world, &source, "00000000000000000001.00000000000000000003.compacted.json", "s");
	log_file(world, &source, "_sidecars/x.parquet", "s");
	log_file(world, &source, ".00000000000000000002.json.crc", "s");
	log_file(world, &source, "_commit_1234.json.tmp", "s");
	log_file(world, &target, "_last_checkpoint", "2");
	log_file(world, &target, "00000000000000000002.checkpoint.0000000001.0000000001.parquet",
	         "t");
	check_merged(world, base, source, target,
	             "0:first 1:base 00000000000000000002.checkpoint.0000000001.0000000001.parquet "
	             "2:t 3:s1 4:s2 _last_checkpoint ");
	/* One side's log whole: the other wrote nothing but a checkpoint. */
	target = base;
	log_file(world, &target, "_last_checkpoint", "1");
	log_file(world, &target, "00000000000000000001.checkpoint.parquet", "t");
	struct merge_result result, whole;
	merge(world, base, source, target, &result);
	merge(world, base, source, base, &whole);
	assert_int_equal(result.conflict_count, 0);
	assert_true(id_equal(&result.tree.id, &whole.tree.id));
	merge_result_release(&result);
	merge_result_release(&whole);
	merge(world, base, target, source, &result);
	assert_true(id_equal(&result.tree.id, &source.id));
	merge_result_release(&result);
	/* A name that is no business of the log is taken as everywhere. */
	source = with(world, base, 2, APPEND("s"), NULL);
	target = with(world, base, 2, APPEND("t"), NULL);
	log_file(world, &source, "note", "s");
	log_file(world, &target, "other", "t");
	check_merged(world, base, source, target, "0:first 1:base 2:t 3:s note other ");
	check_merged(world, base, base_table(world, 2), target, "0:first 1:base 2:t other ");
	log_file(world, &target, "note", "t");
	check_conflict(world, base, source, target, 2, "both changed 'note'");
}

static void cleaned_logs(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 4);
	struct pointer source = with(world, base, 4, APPEND("s"), NULL);
	struct pointer target = with(world, base, 4, APPEND("t"), NULL);
	log_file(world, &target, "00000000000000000004.checkpoint.parquet", "t");
	log_file(world, &target, "00000000000000000000.json", NULL);
	log_file(world, &target, "00000000000000000001.json", NULL);
	check_merged(world, base, source, target,
	             "2:base 3:base 00000000000000000004.checkpoint.parquet 4:t 5:s ");
	/* Those the source removed the target still has. */
	check_merged(world, base, target, source, "0:first 1:base 2:base 3:base 4:s 5:t ");
}

static void merged_again_and_again(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 2);
	struct pointer dev = with(world, base, 2, APPEND("s1"), NULL);
	struct pointer main = with(world, base, 2, APPEND("t1"), NULL);
	struct merge_result result;
	merge(world, base, dev, main, &result);
	check_log(world, &result, "0:first 1:base 2:t1 3:s1 ");
	main = result.tree;
	merge_result_release(&result);
	/* dev goes on with its own numbers; the base is what was merged before. */
	struct pointer merged = dev;
	dev = with(world, dev, 3, APPEND("s2"), APPEND("s3"));
	struct pointer gone_on = with(world, main, 4, DELETE("base"), NULL);
	check_merged(world, merged, dev, main, "0:first 1:base 2:t1 3:s1 4:s2 5:s3 ");
	check_merged(world, merged, dev, gone_on, "0:first 1:base 2:t1 3:s1 4:base 5:s2 6:s3 ");
	/* Squashed: the base is where dev began, and what came before is known by its bytes. */
	check_merged(world, base, dev, main, "0:first 1:base 2:t1 3:s1 4:s2 5:s3 ");
	check_merged(world, base, dev, gone_on, "0:first 1:base 2:t1 3:s1 4:base 5:s2 6:s3 ");
	/* Merged and taken back: then s1 is not there for s2 to follow. */
	struct pointer taken = with(world, base, 2, APPEND("t1"), NULL);
	check_conflict(world, merged, dev, taken, 2, "target took version 2 back");
	/* The other way round: dev has nothing that main has not. */
	check_merged(world, merged, main, merged, "0:first 1:base 2:t1 3:s1 ");
	check_merged(world, merged, main, dev, "0:first 1:base 2:s1 3:s2 4:s3 5:t1 ");
	check_conflict(world, merged, gone_on, dev, 2, "source's DELETE removes files");
}

static struct pointer merge_of(struct world *world, const struct commit *source,
                               const struct commit *target)
{
	struct merge_options options = {.directory = merge_table};
	struct merge_result result = {0};
	bool forward, up_to_date;
	assert_int_equal(merge_commits(world->history, world->odb, world->packer, source, target,
	                               &options, &result, &forward, &up_to_date, &world->message),
	                 0);
	assert_int_equal(result.conflict_count, 0);
	return result.tree;
}

/* Each was merged into the other, so there are two best common ancestors. */
static void merged_crosswise(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 2);
	struct commit *root = commit_of(world, base, NULL, NULL);
	struct commit *dev = commit_of(world, with(world, base, 2, APPEND("s"), NULL), root, NULL);
	struct commit *main = commit_of(world, with(world, base, 2, APPEND("t"), NULL), root, NULL);
	struct commit *to_main = commit_of(world, merge_of(world, dev, main), main, dev);
	struct commit *to_dev = commit_of(world, merge_of(world, main, dev), dev, main);
	struct commit *new_main =
	        commit_of(world, with(world, to_main->tree, 4, APPEND("t2"), NULL), to_main, NULL);
	struct commit *new_dev =
	        commit_of(world, with(world, to_dev->tree, 4, APPEND("s2"), NULL), to_dev, NULL);
	struct merge_result result = {.tree = merge_of(world, new_dev, new_main)};
	check_log(world, &result, "0:first 1:base 2:t 3:s 4:t2 5:s2 ");
	struct commit *commits[] = {root, dev, main, to_main, to_dev, new_main, new_dev};
	for (size_t i = 0; i < ARRAY_SIZE(commits); i++)
		free(commits[i]);
}

/* With nothing cached: entries that were stored together are read together. */
static void cost_is_what_is_new(void **state)
{
	struct world *world = *state;
	static const struct {
		unsigned versions, new;
	} shapes[] = {{10, 5}, {3000, 5}, {10, 500}};
	uint64_t reads[ARRAY_SIZE(shapes)];
	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++) {
		struct pointer base = base_table(world, shapes[i].versions), trees[2];
		for (unsigned side = 0; side < 2; side++) {
			trees[side] = base;
			for (unsigned j = 0; j < shapes[i].new; j++) {
				char text[300];
				snprintf(text, sizeof(text), BLIND ADD("%u-%u-%zu"), side, j, i);
				log_put(world, &trees[side], shapes[i].versions + j, text);
			}
		}
		assert_int_equal(packer_flush(world->packer, &world->message), 0);
		struct odb *odb, *kept = world->odb;
		struct packer *packer, *kept_packer = world->packer;
		assert_int_equal(odb_new(world->store, &(struct odb_options){0}, &odb), 0);
		assert_int_equal(packer_new(odb, &packer), 0);
		world->odb = odb;
		world->packer = packer;
		struct merge_result result;
		int64_t start_ns = clock_wall_ns();
		merge(world, base, trees[0], trees[1], &result);
		double ms = (double)(clock_wall_ns() - start_ns) / 1e6;
		assert_int_equal(result.conflict_count, 0);
		assert_int_equal(result.changed, shapes[i].new);
		merge_result_release(&result);
		struct odb_stats stats;
		odb_stats(odb, &stats);
		reads[i] = stats.reads;
		print_message("%u versions, %u new ones on each side: %llu reads, %.1f ms\n",
		              shapes[i].versions, shapes[i].new, (unsigned long long)reads[i], ms);
		packer_free(packer);
		odb_free(odb);
		world->odb = kept;
		world->packer = kept_packer;
	}
	assert_true(reads[1] < reads[0] + 20);
	assert_true(reads[2] < 100);
}

/* -- Delta: what does not -- */

static void check_source_entry(struct world *world, const char *entry, const char *words)
{
	struct pointer base = base_table(world, 2);
	struct pointer target = with(world, base, 2, APPEND("t"), NULL);
	check_conflict(world, base, with(world, base, 2, entry, NULL), target, 2, words);
	/* Among others, too. */
	check_conflict(world, base, with(world, base, 2, APPEND("s"), entry), target, 2, words);
}

static void what_is_no_blind_append(void **state)
{
	struct world *world = *state;
	check_source_entry(world, DELETE("base"), "source's DELETE removes files");
	check_source_entry(world, DELETE("base"), "did not see what target appended");
	check_source_entry(world, INFO("WRITE", "Overwrite") REMOVE("base") ADD("s"),
	                   "source's WRITE (Overwrite) removes files");
	check_source_entry(world, BLIND REMOVE("base"), "removes files");
	check_source_entry(world, INFO("WRITE", "Overwrite") ADD("s"), "does not say that it only");
	check_source_entry(world, INFO("MERGE", "Append") ADD("s"), "does not say that it only");
	check_source_entry(world, ADD("s"), "does not say that it only");
	check_source_entry(world, READING ADD("s"), "read the table");
	check_source_entry(world, BLIND, "does not append any file");
	check_source_entry(world, INFO("VACUUM END", "") ADD("s"), "does not say that it only");
	check_source_entry(world, APPEND("s") METADATA, "changes the table's schema");
	check_source_entry(world, APPEND("s") PROTOCOL, "changes the table's schema");
	check_source_entry(world, APPEND("s") "{\"cdc\":{\"path\":\"c\"}}\n", "does more than");
	check_source_entry(world, APPEND("s") "{\"domainMetadata\":{\"domain\":\"d\"}}\n",
	                   "does more than");
	check_source_entry(world, BLIND "{\"add\":{\"path\":\"s\",\"dataChange\":false}}\n",
	                   "rearranges rows");
	check_source_entry(world, BLIND "{\"add\":{\"path\":\"s\"}}\n", "rearranges rows");
	check_source_entry(world,
	                   BLIND
	                   "{\"add\":{\"path\":\"s\",\"dataChange\":true,\"deletionVector\":{}}}\n",
	                   "deletes rows of files");
	check_source_entry(world,
	                   BLIND "{\"add\":{\"path\":\"s\",\"dataChange\":true,\"baseRowId\":0}}\n",
	                   "numbers its rows");
	check_source_entry(world,
	                   "{\"commitInfo\":{\"operation\":\"WRITE\",\"inCommitTimestamp\":5,"
	                   "\"isBlindAppend\":true}}\n" ADD("s"),
	                   "time of its own");
}

static void what_the_target_must_not_have_done(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 2);
	struct pointer source = with(world, base, 2, APPEND("s"), NULL);
	static const struct {
		const char *entry, *words;
	} cases[] = {
	        {APPEND("t") METADATA, "target changed its schema"},
	        {APPEND("t") PROTOCOL, "target changed its schema"},
	        {INFO("RESTORE", "") ADD("old"), "restored an older version"},
	        {BLIND ADD("s"), "both name the file 's'"},
	        {DELETE("s"), "both name the file 's'"},
	};
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		check_conflict(world, base, source, with(world, base, 2, cases[i].entry, NULL), 2,
		               cases[i].words);
	check_conflict(world, base, with(world, base, 2, BLIND TXN("a") ADD("s"), NULL),
	               with(world, base, 2, BLIND TXN("a") ADD("t"), NULL), 2, "(txn)");
	check_conflict(world, base, with(world, base, 2, DELETE("base"), NULL),
	               with(world, base, 2, DELETE("first"), NULL), 2,
	               "(source: DELETE; target: DELETE): source's DELETE removes files, so");
	check_conflict(world, pointer_none, base_table(world, 2),
	               with(world, pointer_none, 0, CREATE ADD("other"), NULL), 0,
	               "both created it");
}

static void versions_taken_back(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 3), back = base_table(world, 2);
	struct pointer on = with(world, base, 3, APPEND("t"), NULL);
	check_conflict(world, base, back, on, 2, "source takes version 2 back");
	check_conflict(world, base, on, back, 2, "target took version 2 back");
	check_merged(world, base, back, base, "0:first 1:base ");
	/* Taken back by one, while the other only made a checkpoint. */
	struct pointer checked = base;
	log_file(world, &checked, "00000000000000000001.checkpoint.parquet", "c");
	check_merged(world, base, back, checked, "0:first 1:base ");
	/* Written anew under the same number. */
	struct pointer anew = with(world, back, 2, APPEND("anew"), NULL);
	check_conflict(world, base, anew, on, 2, "back");
	check_conflict(world, base, on, anew, 2, "back");
}

static void shared_entries_out_of_order(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 2);
	/* The source appended before the schema changed, the target has only the change. */
	struct pointer source = with(world, base, 2, APPEND("s"), APPEND("x") METADATA);
	struct pointer target = with(world, base, 2, APPEND("x") METADATA, APPEND("t"));
	check_conflict(world, base, source, target, 2, "do not agree on when its schema");
	source = with(world, base, 2, APPEND("s"), DELETE("s"));
	target = with(world, base, 2, DELETE("s"), APPEND("t"));
	check_conflict(world, base, source, target, 2, "do not agree on when files");
}

static void damaged_logs(void **state)
{
	struct world *world = *state;
	static const char *const texts[] = {
	        "",
	        "\n \n",
	        "no JSON\n",
	        "[]\n",
	        "{}\n",
	        "{\"add\":null}\n",
	        "{\"add\":1}\n",
	        "{\"add\":{}}\n",
	        "{\"remove\":{}}\n",
	        "{\"txn\":{}}\n",
	        "{\"add\":{\"path\":\"a\"},\"remove\":{\"path\":\"a\"}}\n",
	        "{\"add\":{\"path\":\"a\"}} {\"add\":{\"path\":\"b\"}}\n",
	        BLIND BLIND ADD("a"),
	        BLIND "{\"add\":{\"path\":\"a\"",
	};
	struct pointer base = base_table(world, 2);
	struct pointer good = with(world, base, 2, APPEND("g"), NULL);
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		struct pointer bad = with(world, base, 2, texts[i], NULL);
		check_conflict(world, base, bad, good, 2,
		               "source's log is not understood: version 2");
		check_conflict(world, base, good, bad, 2,
		               "target's log is not understood: version 2");
	}
	struct pointer gap = base;
	log_put(world, &gap, 3, APPEND("s"));
	check_conflict(world, base, gap, good, 3, "version 2 is missing");
	check_conflict(world, base, good, gap, 3, "version 2 is missing");
	struct pointer stray = good;
	log_file(world, &stray, "00000000000000000009.checkpoint.parquet", "c");
	check_conflict(world, base, with(world, base, 2, APPEND("s"), NULL), stray, 2,
	               "version 9 is missing");
	struct pointer odd = base;
	put_directory(world, &odd, "orders/_delta_log/00000000000000000002.json", 0755);
	check_conflict(world, base, odd, good, 2, "no file");
	struct pointer managed = good;
	log_file(world, &managed, "_staged_commits/00000000000000000003.x.json", "c");
	check_conflict(world, base, managed, with(world, base, 2, APPEND("t"), NULL), 2, "catalog");
}

/* -- what a take and the rest of the table have to do with it -- */

static void merge_taking(struct world *world, struct pointer base, struct pointer source,
                         struct pointer target, enum side side, const char *path,
                         struct merge_result *ret_result)
{
	struct merge_side sides[] = {side_of(base), side_of(source), side_of(target)};
	struct take take = {side, path};
	struct merge_options options = {.directory = merge_table, .takes = &take, .take_count = 1};
	*ret_result = (struct merge_result){0};
	assert_int_equal(merge_trees(world->odb, world->packer, &sides[0], &sides[1], &sides[2],
	                             &options, ret_result, &world->message),
	                 0);
}

static void takes_decide_about_tables(void **state)
{
	static const char *const whole[] = {"orders", "ord*", "**/_delta_log", "orders/_delta_log",
	                                    ""};
	struct world *world = *state;
	struct pointer base = base_table(world, 2);
	struct pointer source = with(world, base, 2, DELETE("s"), APPEND("s2"));
	struct pointer target = with(world, base, 2, APPEND("t"), NULL);
	struct merge_result result;
	for (size_t i = 0; i < ARRAY_SIZE(whole); i++) {
		merge_taking(world, base, source, target, SIDE_SOURCE, whole[i], &result);
		check_log(world, &result, "0:first 1:base 2:s 3:s2 ");
		merge_result_release(&result);
		merge_taking(world, base, source, target, SIDE_TARGET, whole[i], &result);
		check_log(world, &result, "0:first 1:base 2:t ");
		merge_result_release(&result);
	}
	/* One file of the log: the rest is for whoever took it. */
	merge_taking(world, base, source, target, SIDE_SOURCE,
	             "orders/_delta_log/00000000000000000002.json", &result);
	check_log(world, &result, "0:first 1:base 2:s 3:s2 ");
	merge_result_release(&result);
	/* A pattern that reaches into the log, but takes nothing there. */
	put(world, &source, "x/data.csv", 1, 0644, 0, NULL);
	put(world, &target, "x/data.csv", 2, 0644, 0, NULL);
	merge_taking(world, base, source, target, SIDE_SOURCE, "**/data.*", &result);
	assert_int_equal(result.conflict_count, 1);
	assert_string_equal(result.conflicts[0].format, "delta");
	merge_result_release(&result);
}

static void a_table_is_one_conflict(void **state)
{
	struct world *world = *state;
	struct pointer base = base_table(world, 2);
	put(world, &base, "a", 1, 0644, 0, NULL);
	put(world, &base, "orders/part", 1, 0644, 0, NULL);
	put(world, &base, "orders.csv", 1, 0644, 0, NULL);
	struct pointer sides[2];
	for (unsigned i = 0; i < 2; i++) {
		sides[i] =
		        with(world, base, 2, i ? DELETE("x") : DELETE("y"), i ? NULL : APPEND("z"));
		put(world, &sides[i], "a", 2 + i, 0644, 0, NULL);
		put(world, &sides[i], "orders/part", 2 + i, 0644, 0, NULL);
		put(world, &sides[i], "orders/_aside", 2 + i, 0644, 0, NULL);
		put(world, &sides[i], "orders.csv", 2 + i, 0644, 0, NULL);
	}
	struct merge_result result;
	merge(world, base, sides[0], sides[1], &result);
	assert_int_equal(result.conflict_count, 3);
	assert_string_equal(result.conflicts[0].path, "a");
	assert_string_equal(result.conflicts[2].path, "orders.csv");
	const struct conflict *table = &result.conflicts[1];
	assert_string_equal(table->path, "orders");
	assert_int_equal(table->path_count, 4);
	assert_string_equal(table->paths[0], "orders/_delta_log/00000000000000000002.json");
	assert_string_equal(table->paths[1], "orders/_delta_log/00000000000000000003.json");
	assert_string_equal(table->paths[2], "orders/_aside");
	assert_string_equal(table->paths[3], "orders/part");
	assert_true(S_ISDIR(table->base->attributes.mode));
	assert_true(S_ISDIR(table->source->attributes.mode));
	assert_true(S_ISDIR(table->target->attributes.mode));
	merge_result_release(&result);
}

static void two_tables_are_two_conflicts(void **state)
{
	struct world *world = *state;
	struct pointer base = pointer_none, sides[2];
	put(world, &base, "a/part", 1, 0644, 0, NULL);
	put(world, &base, "b/part", 1, 0644, 0, NULL);
	for (unsigned i = 0; i < 2; i++) {
		sides[i] = base;
		put_text(world, &sides[i], "a/_delta_log/00000000000000000000.json",
		         i ? CREATE : CREATE ADD("x"), 0);
		put_text(world, &sides[i], "b/_delta_log/00000000000000000000.json",
		         i ? CREATE : CREATE ADD("x"), 0);
		put(world, &sides[i], "a/part", 2 + i, 0644, 0, NULL);
		put(world, &sides[i], "b/part", 2 + i, 0644, 0, NULL);
		put(world, &sides[i], "c", 2 + i, 0644, 0, NULL);
	}
	struct merge_result result;
	merge(world, base, sides[0], sides[1], &result);
	assert_int_equal(result.conflict_count, 3);
	for (unsigned i = 0; i < 2; i++) {
		assert_string_equal(result.conflicts[i].path, i ? "b" : "a");
		assert_int_equal(result.conflicts[i].path_count, 2);
	}
	assert_string_equal(result.conflicts[2].path, "c");
	merge_result_release(&result);
}

/* -- Iceberg -- */

static struct pointer iceberg(struct world *world, struct pointer root, const char *one,
                              const char *two)
{
	put(world, &root, one, 1, 0644, 0, NULL);
	if (two)
		put(world, &root, two, 2, 0644, 0, NULL);
	return root;
}

static void check_iceberg(struct world *world, struct pointer base, struct pointer source,
                          struct pointer target, uint64_t version, const char *words)
{
	struct merge_result result;
	merge(world, base, source, target, &result);
	assert_int_equal(result.conflict_count, words ? 1 : 0);
	if (words) {
		assert_string_equal(result.conflicts[0].path, "shop/t");
		assert_string_equal(result.conflicts[0].format, "iceberg");
		assert_int_equal(result.conflicts[0].version, version);
		assert_says(result.conflicts[0].sentence, words);
	}
	merge_result_release(&result);
}

static void iceberg_tables(void **state)
{
#define META(name) "shop/t/metadata/" name ".metadata.json"
	struct world *world = *state;
	struct pointer base =
	        iceberg(world, pointer_none, META("00000-a"), "shop/t/metadata/m.avro");
	struct pointer source = iceberg(world, base, META("00001-b"), META("00002-c"));
	struct pointer target = iceberg(world, base, META("00001-d"), NULL);
	struct pointer manifests = iceberg(world, base, "shop/t/metadata/n.avro", NULL);
	check_iceberg(world, base, source, target, 1, "both sides wrote version 1 of table shop/t");
	check_iceberg(world, base, target, source, 1, "both sides wrote version 1 of table shop/t");
	check_iceberg(world, base, source, manifests, 0, NULL);
	check_iceberg(world, base, manifests, source, 0, NULL);
	check_iceberg(world, base, source, source, 0, NULL);
	check_iceberg(world, base, iceberg(world, source, "shop/t/metadata/n.avro", NULL), source,
	              0, NULL);
	/* Named as in file systems: the names collide, and it is still one conflict. */
	base = iceberg(world, pointer_none, META("v1"), "shop/t/metadata/version-hint.text");
	source = iceberg(world, base, META("v2"), NULL);
	target = base;
	put(world, &source, "shop/t/metadata/version-hint.text", 3, 0644, 0, NULL);
	put(world, &target, META("v2"), 9, 0644, 0, NULL);
	put(world, &target, "shop/t/metadata/version-hint.text", 4, 0644, 0, NULL);
	check_iceberg(world, base, source, target, 2, "both sides wrote version 2");
	/* Taken back by one, gone on with by the other. */
	base = iceberg(world, pointer_none, META("v1"), META("v2"));
	source = iceberg(world, pointer_none, META("v1"), NULL);
	target = iceberg(world, base, META("v3.gz"), NULL);
	check_iceberg(world, base, source, target, 2, "source took version 2");
	check_iceberg(world, base, target, source, 2, "target took version 2");
	/* Other directories of that name, other files. */
	base = iceberg(world, pointer_none, "shop/t/metadata/x.json", NULL);
	source = iceberg(world, base, "shop/t/metadata/v.metadata.json", META("va"));
	target = iceberg(world, base, META("1"), META("vx2"));
	check_iceberg(world, base, source, target, 0, NULL);
}

/* A branch may be a table itself. */
static void at_the_root(void **state)
{
	struct world *world = *state;
	struct pointer base = pointer_none, sides[2];
	put_text(world, &base, "_delta_log/00000000000000000000.json", CREATE, 0);
	for (int i = 0; i < 2; i++) {
		sides[i] = base;
		put_text(world, &sides[i], "_delta_log/00000000000000000001.json",
		         i ? DELETE("a") : DELETE("b"), 0);
	}
	struct merge_result result;
	merge(world, base, sides[0], sides[1], &result);
	assert_int_equal(result.conflict_count, 1);
	assert_string_equal(result.conflicts[0].path, "");
	assert_non_null(strstr(result.conflicts[0].sentence, "root"));
	merge_result_release(&result);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST(appends_follow_the_target),
	        TEST(bytes_stay_and_times_ascend),
	        TEST(what_is_derived_stays_with_its_log),
	        TEST(cleaned_logs),
	        TEST(merged_again_and_again),
	        TEST(merged_crosswise),
	        TEST(cost_is_what_is_new),
	        TEST(what_is_no_blind_append),
	        TEST(what_the_target_must_not_have_done),
	        TEST(versions_taken_back),
	        TEST(shared_entries_out_of_order),
	        TEST(damaged_logs),
	        TEST(takes_decide_about_tables),
	        TEST(a_table_is_one_conflict),
	        TEST(two_tables_are_two_conflicts),
	        TEST(iceberg_tables),
	        TEST(at_the_root),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
