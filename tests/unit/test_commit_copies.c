/*
 * Copies of ancestors in the packs of commits: how few requests walking history takes then, what
 * they cost, and that nothing but places differs.
 */
#include <ftw.h>
#include <sys/stat.h>

#include "odb_fixture.h"
#include "refs/history.h"

#define LINEAR 1000

static struct object_ops distant_ops;

/* Who uses the lake: an odb of its own, with or without an index that survives it. */
struct host {
	struct wrapper *wrapper;
	struct kv *index;
	struct odb *odb;
	char directory[64];
};

static struct wrapper *store_new(void)
{
	struct wrapper *wrapper = calloc(1, sizeof(*wrapper));

	distant_ops = wrapper_ops;
	distant_ops.distant = true;
	wrapper->store.ops = &distant_ops;
	assert_int_equal(object_memory_open(&wrapper->inner), 0);
	return wrapper;
}

static void host_restart(struct host *host)
{
	struct odb_options options = {.index = host->index};

	odb_free(host->odb);
	assert_int_equal(odb_new(&host->wrapper->store, &options, &host->odb), 0);
}

static struct host host_new(struct wrapper *wrapper, bool with_index)
{
	static const char *const tables[] = {"places", "commits"};
	struct kv_options options = {.tables = tables, .table_count = 2, .loseable = true};
	struct host host = {.wrapper = wrapper, .directory = "/tmp/test-copies-XXXXXX"};

	if (with_index) {
		assert_non_null(mkdtemp(host.directory));
		assert_int_equal(kv_open(host.directory, &options, &host.index, NULL), 0);
	}
	host_restart(&host);
	return host;
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *ftw)
{
	return remove(path);
}

static void host_free(struct host *host)
{
	odb_free(host->odb);
	if (!host->index)
		return;
	kv_close(host->index);
	nftw(host->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* As a command does it: by a packer of its own. */
static struct pointer commit_with(struct host *host, const struct pointer *parents, size_t count,
                                  int64_t time_ms, const char *text)
{
	struct message message = {0};
	struct meta_pair meta = {"code.commit", "0123456789012345678901234567890123456789"};
	struct packer *packer;
	struct pointer pointer;
	struct commit commit = {
	        .root = {.mode = S_IFDIR | 0755},
	        .parents = (struct pointer *)parents,
	        .parent_count = count,
	        .author = "somebody@host.example.org",
	        .time_ms = time_ms,
	        .message = text,
	        .meta = &meta,
	        .meta_count = 1,
	};
	assert_int_equal(packer_new(host->odb, &packer), 0);
	if (commit_write(host->odb, packer, &commit, &pointer, &message) < 0)
		fail_msg("commit_write: %s", message.text);
	assert_int_equal(packer_flush(packer, NULL), 0);
	packer_free(packer);
	return pointer;
}

static struct pointer commit_on(struct host *host, const struct pointer *parents, size_t count,
                                int64_t number)
{
	char text[64];

	snprintf(text, sizeof(text), "What commit %d says about itself", (int)number);
	return commit_with(host, parents, count, number * 60000, text);
}

static void line(struct host *host, const struct pointer *from, size_t count, int64_t number,
                 struct pointer *ret_commits)
{
	for (size_t i = 0; i < count; i++) {
		const struct pointer *parent = i > 0 ? &ret_commits[i - 1] : from;

		ret_commits[i] = commit_on(host, parent, parent ? 1 : 0, number + (int64_t)i);
	}
}

/* Walks `max` commits as a host that has nothing; returns the requests. */
static unsigned walk_cold(struct wrapper *wrapper, const struct pointer *head, size_t max,
                          size_t *ret_count)
{
	struct host cold = host_new(wrapper, false);
	struct history *history;
	struct history_walk *walk;
	struct commit *commit;
	struct message message = {0};
	unsigned before = wrapper->gets;
	int rc = 0;

	assert_int_equal(history_new(cold.odb, NULL, &history), 0);
	assert_int_equal(history_walk_new(history, head, 1, NULL, &walk), 0);
	for (*ret_count = 0; *ret_count < max; ++*ret_count) {
		rc = history_walk_next(walk, &commit, &message);
		if (rc < 0)
			break;
		free(commit);
	}
	if (rc < 0 && rc != -ERR_NOT_FOUND)
		fail_msg("walk: %s", message.text);
	history_walk_free(walk);
	history_free(history);
	host_free(&cold);
	return wrapper->gets - before;
}

struct stored {
	struct odb *odb;
	size_t commits, bytes;
};

static int count_entry(void *context, const struct pack_entry *entry)
{
	struct stored *stored = context;

	stored->commits += entry->kind == RECORD_COMMIT;
	stored->bytes += entry->place.stored + 60; /* and its line in the table of contents */
	return 0;
}

static int count_pack(void *context, const uint8_t *pack, uint64_t bytes, int64_t modified_ms)
{
	struct stored *stored = context;
	uint64_t records;

	assert_int_equal(odb_pack_verify(stored->odb, pack, NULL, NULL, &records, NULL), 0);
	return odb_pack_entries(stored->odb, pack, count_entry, stored, NULL);
}

static struct stored stored_of(struct wrapper *wrapper)
{
	struct host cold = host_new(wrapper, false);
	struct stored stored = {.odb = cold.odb};

	assert_int_equal(odb_pack_list(cold.odb, count_pack, &stored, NULL), 0);
	host_free(&cold);
	return stored;
}

/* -- straight -- */

static void a_straight_history_is_few_requests(void **state)
{
	struct wrapper *wrapper = store_new();
	struct host host = host_new(wrapper, true);
	static struct pointer commits[LINEAR];
	size_t walked;

	line(&host, NULL, LINEAR, 1, commits);
	assert_int_equal(wrapper->puts, LINEAR);
	/* The list of packs that gc means to remove, once. */
	assert_true(wrapper->gets <= 1);
	struct stored stored = stored_of(wrapper);
	size_t copy_bytes = stored.bytes / stored.commits;
	size_t overhead = (stored.commits - LINEAR) * copy_bytes / LINEAR;
	print_message("%zu copies of %zu bytes, %zu bytes per commit\n", stored.commits - LINEAR,
	              copy_bytes, overhead);
	assert_in_range(overhead, 100, 1023);

	unsigned worst_ten = 0, worst = 0;
	for (size_t head = LINEAR - 40; head < LINEAR; head++) {
		unsigned gets = walk_cold(wrapper, &commits[head], 10, &walked);

		assert_int_equal(walked, 10);
		worst_ten = gets > worst_ten ? gets : worst_ten;
		gets = walk_cold(wrapper, &commits[head], SIZE_MAX, &walked);
		assert_int_equal(walked, head + 1);
		worst = gets > worst ? gets : worst;
	}
	print_message("ten: at most %u requests, all: at most %u\n", worst_ten, worst);
	assert_true(worst_ten <= 6);
	assert_true(worst <= 30);
	host_free(&host);
	object_store_free(&wrapper->store);
}

static void a_merge_base_far_back_is_few_requests(void **state)
{
	struct wrapper *wrapper = store_new();
	struct host host = host_new(wrapper, true);
	static struct pointer trunk[100], left[300], right[300];

	line(&host, NULL, 100, 1, trunk);
	line(&host, &trunk[99], 300, 1000, left);
	line(&host, &trunk[99], 300, 2000, right);
	unsigned worst = 0;
	for (size_t back = 0; back < 40; back += 3) {
		struct host cold = host_new(wrapper, false);
		struct history *history;
		struct pointer *bases;
		size_t count;
		unsigned before = wrapper->gets;

		assert_int_equal(history_new(cold.odb, NULL, &history), 0);
		assert_int_equal(merge_bases(history, &left[299 - back], &right[299 - back / 2],
		                             &bases, &count, NULL),
		                 0);
		assert_int_equal(count, 1);
		assert_true(id_equal(&bases[0].id, &trunk[99].id));
		worst = wrapper->gets - before > worst ? wrapper->gets - before : worst;
		free(bases);
		history_free(history);
		host_free(&cold);
	}
	print_message("merge base of 300 and 300: at most %u requests\n", worst);
	assert_true(worst <= 45);
	host_free(&host);
	object_store_free(&wrapper->store);
}

/* -- places alone differ -- */

static void ids_do_not_depend_on_copies(void **state)
{
	struct wrapper *wrapper = store_new(), *other = store_new();
	struct host host = host_new(wrapper, true), poor = host_new(other, false);
	static struct pointer rich_line[100], poor_line[100];

	line(&host, NULL, 100, 1, rich_line);
	for (size_t i = 0; i < 100; i++) {
		host_restart(&poor); /* nothing but the parent is ever at hand */
		poor_line[i] =
		        commit_on(&poor, i > 0 ? &poor_line[i - 1] : NULL, i > 0, 1 + (int)i);
		assert_memory_equal(&poor_line[i].id, &rich_line[i].id, ID_BYTES);
	}
	assert_true(other->gets <= 100);
	assert_int_equal(stored_of(other).commits, 100);
	assert_true(stored_of(wrapper).commits > 200);

	/* Later there is more at hand. */
	size_t walked;
	unsigned before = walk_cold(other, &poor_line[99], SIZE_MAX, &walked);
	assert_int_equal(before, 100);
	struct history *history;
	struct history_walk *walk;
	struct commit *commit;
	assert_int_equal(history_new(poor.odb, NULL, &history), 0);
	assert_int_equal(history_walk_new(history, &poor_line[99], 1, NULL, &walk), 0);
	while (history_walk_next(walk, &commit, NULL) == 0)
		free(commit);
	history_walk_free(walk);
	history_free(history);
	struct pointer head = commit_on(&poor, &poor_line[99], 1, 101);
	assert_true(walk_cold(other, &head, SIZE_MAX, &walked) <= 3);
	assert_int_equal(walked, 101);
	host_free(&host);
	host_free(&poor);
	object_store_free(&wrapper->store);
	object_store_free(&other->store);
}

static void a_host_that_restarts_has_its_commits_at_hand(void **state)
{
	struct wrapper *wrapper = store_new();
	struct host host = host_new(wrapper, true);
	static struct pointer commits[200];
	size_t walked;

	for (size_t i = 0; i < 200; i++) {
		unsigned before = wrapper->gets;

		host_restart(&host);
		commits[i] = commit_on(&host, i > 0 ? &commits[i - 1] : NULL, i > 0, 1 + (int)i);
		assert_true(wrapper->gets - before <= 1); /* the list of condemned packs */
	}
	assert_true(walk_cold(wrapper, &commits[199], SIZE_MAX, &walked) <= 20);
	assert_int_equal(walked, 200);
	/* And reads them without a request. */
	unsigned before = wrapper->gets;
	struct commit *commit;
	host_restart(&host);
	assert_int_equal(commit_read(host.odb, &commits[199], &commit, NULL), 0);
	free(commit);
	assert_int_equal(wrapper->gets, before);
	host_free(&host);
	object_store_free(&wrapper->store);
}

static void long_messages_stay_where_they_are(void **state)
{
	struct wrapper *wrapper = store_new();
	struct host host = host_new(wrapper, true);
	static struct pointer commits[100];
	static char text[20001];
	size_t walked;

	for (size_t i = 0; i < sizeof(text) - 1; i++)
		text[i] = (char)(33 + random_u64() % 90);
	for (size_t i = 0; i < 100; i++) {
		const struct pointer *parent = i > 0 ? &commits[i - 1] : NULL;

		commits[i] = i % 5 == 0 ? commit_with(&host, parent, i > 0, (int)i, text)
		                        : commit_on(&host, parent, i > 0, (int)i);
	}
	struct stored stored = stored_of(wrapper);
	print_message("%zu commits stored, %zu bytes\n", stored.commits, stored.bytes);
	assert_true(stored.bytes < 20 * 20000 + 400 * 600);
	assert_true(walk_cold(wrapper, &commits[99], SIZE_MAX, &walked) <= 20 + 20);
	assert_int_equal(walked, 100);
	host_free(&host);
	object_store_free(&wrapper->store);
}

/* -- merges, several hosts -- */

static void histories_with_merges(void **state)
{
	enum { HOSTS = 3, BRANCHES = 4, COMMITS = 600 };
	uint64_t seed = random_u64();
	struct wrapper *wrapper = store_new();
	struct host hosts[HOSTS];
	struct pointer heads[BRANCHES];
	size_t walked, total = 1;

	print_message("seed %llu\n", (unsigned long long)seed);
	srandom((unsigned)seed);
	for (size_t i = 0; i < HOSTS; i++)
		hosts[i] = host_new(wrapper, i > 0);
	heads[0] = commit_on(&hosts[0], NULL, 0, 0);
	for (size_t i = 1; i < BRANCHES; i++)
		heads[i] = heads[0];
	for (int i = 1; i <= COMMITS; i++) {
		size_t at = (size_t)random() % BRANCHES, from = (size_t)random() % BRANCHES;
		struct pointer parents[2] = {heads[at], heads[from]};
		bool merges = random() % 10 == 0 && !id_equal(&parents[0].id, &parents[1].id);

		heads[at] = commit_on(&hosts[random() % HOSTS], parents, merges ? 2 : 1, i);
		total++;
		/* Hosts follow branches: most of them see most commits. */
		for (size_t k = 0; k < HOSTS; k++) {
			struct commit *seen;

			if (random() % 4 == 0)
				continue;
			assert_int_equal(commit_read(hosts[k].odb, &heads[at], &seen, NULL), 0);
			free(seen);
		}
	}
	struct host last = host_new(wrapper, false);
	struct pointer all = commit_on(&last, heads, BRANCHES, COMMITS + 1);
	unsigned gets = walk_cold(wrapper, &all, SIZE_MAX, &walked);
	struct stored stored = stored_of(wrapper);
	print_message("%zu commits, %zu stored, %u requests\n", walked, stored.commits, gets);
	assert_int_equal(walked, total + 1);
	assert_true(gets < COMMITS / 4);
	assert_true(stored.commits < 12 * COMMITS);
	host_free(&last);
	for (size_t i = 0; i < HOSTS; i++)
		host_free(&hosts[i]);
	object_store_free(&wrapper->store);
}

/* Branches of five commits, each begun and merged while main goes on. */
static void short_branches_cost_as_much_as_a_straight_line(void **state)
{
	struct wrapper *wrapper = store_new();
	struct host host = host_new(wrapper, true);
	struct pointer head = commit_on(&host, NULL, 0, 0);
	int64_t total = 1;
	size_t walked;

	while (total < LINEAR) {
		struct pointer branch[5], trunk[3];

		line(&host, &head, 5, total, branch);
		line(&host, &head, 3, total + 5, trunk);
		struct pointer parents[2] = {trunk[2], branch[4]};
		head = commit_on(&host, parents, 2, total + 8);
		total += 9;
	}
	unsigned gets = walk_cold(wrapper, &head, SIZE_MAX, &walked);
	struct stored stored = stored_of(wrapper);
	print_message("%zu commits, %zu stored, %u requests\n", walked, stored.commits, gets);
	assert_int_equal(walked, total);
	assert_true(gets <= 60);
	assert_true(stored.commits < 5 * LINEAR);
	host_free(&host);
	object_store_free(&wrapper->store);
}

/* -- damage -- */

static void a_damaged_copy_is_noticed(void **state)
{
	struct wrapper *wrapper = store_new();
	struct host host = host_new(wrapper, true), cold = host_new(wrapper, false);
	struct pointer commits[8];
	struct commit *child, *parent;
	struct message message = {0};

	line(&host, NULL, 8, 1, commits);
	assert_int_equal(commit_read(cold.odb, &commits[7], &child, NULL), 0);
	const struct pointer *copy = &child->parents[0];
	assert_memory_equal(copy->place.pack, commits[7].place.pack, PACK_ID_BYTES);
	assert_memory_equal(&copy->id, &commits[6].id, ID_BYTES);

	host_restart(&cold);
	wrapper->damage_offset = copy->place.offset + copy->place.stored / 2;
	wrapper->damage_gets = 2; /* read once more it is damaged, too */
	assert_int_equal(commit_read(cold.odb, copy, &parent, &message), -ERR_CORRUPT);
	assert_non_null(strstr(message.text, "damaged at offset"));
	wrapper->damage_gets = 0;
	assert_int_equal(commit_read(cold.odb, copy, &parent, NULL), 0);
	assert_string_equal(parent->message, "What commit 7 says about itself");
	assert_memory_equal(&parent->copied_from, &commits[6].place, sizeof(struct place));
	assert_int_equal(child->copied_from.raw, 0);
	free(parent);
	free(child);
	host_free(&host);
	host_free(&cold);
	object_store_free(&wrapper->store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(a_straight_history_is_few_requests),
	        cmocka_unit_test(a_merge_base_far_back_is_few_requests),
	        cmocka_unit_test(ids_do_not_depend_on_copies),
	        cmocka_unit_test(a_host_that_restarts_has_its_commits_at_hand),
	        cmocka_unit_test(long_messages_stay_where_they_are),
	        cmocka_unit_test(histories_with_merges),
	        cmocka_unit_test(short_branches_cost_as_much_as_a_straight_line),
	        cmocka_unit_test(a_damaged_copy_is_noticed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
