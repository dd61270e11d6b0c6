/*
 * History: the order of walks, ancestors against brute force.
 */
#include <pthread.h>

#include "tests/unit/history_world.h"

/* -- random histories -- */

#define NODES_MAX 48

struct dag {
	size_t count;
	struct pointer nodes[NODES_MAX];
	int64_t times[NODES_MAX];
	size_t parents[NODES_MAX][3];
	size_t parent_count[NODES_MAX];
	uint64_t ancestors[NODES_MAX]; /* bits, itself included */
	uint64_t generation[NODES_MAX];
};

static uint64_t random_state;

static uint64_t random_below(uint64_t limit)
{
	/* xorshift64*: seeded, so that a failure can be repeated. */
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (random_state * 2685821657736338717u >> 20) % limit;
}

/* `reach` bounds how far back parents lie: small ones make criss-cross histories. */
static void make_dag(struct dag *dag, size_t count, size_t reach)
{
	memset(dag, 0, sizeof(*dag));
	dag->count = count;
	for (size_t i = 0; i < count; i++) {
		struct pointer parents[3];
		size_t wanted = i == 0 || random_below(12) == 0 ? 0 : 1 + random_below(3);

		dag->generation[i] = 1;
		for (size_t p = 0; p < wanted; p++) {
			size_t back = 1 + random_below(i < reach ? i : reach);
			size_t parent = i - back;
			bool twice = false;

			for (size_t k = 0; k < dag->parent_count[i]; k++)
				twice |= dag->parents[i][k] == parent;
			if (twice)
				continue;
			parents[dag->parent_count[i]] = dag->nodes[parent];
			dag->parents[i][dag->parent_count[i]++] = parent;
			dag->ancestors[i] |= dag->ancestors[parent];
			if (dag->generation[parent] >= dag->generation[i])
				dag->generation[i] = dag->generation[parent] + 1;
		}
		dag->ancestors[i] |= (uint64_t)1 << i;
		dag->times[i] = (int64_t)random_below(20);
		char text[40];
		snprintf(text, sizeof(text), "%zu %llu", i, (unsigned long long)random_state);
		dag->nodes[i] = commit(parents, dag->parent_count[i], dag->times[i], text);
	}
}

static uint64_t bases_by_force(const struct dag *dag, size_t a, size_t b)
{
	uint64_t common = dag->ancestors[a] & dag->ancestors[b], best = common;

	for (size_t i = 0; i < dag->count; i++) {
		if (common >> i & 1)
			best &= ~(dag->ancestors[i] & ~((uint64_t)1 << i));
	}
	return best;
}

static uint64_t bit_of(const struct dag *dag, const struct id *id)
{
	for (size_t i = 0; i < dag->count; i++) {
		if (id_equal(&dag->nodes[i].id, id))
			return (uint64_t)1 << i;
	}
	fail_msg("a commit that is not in the history");
	return 0;
}

static void compare_pair(const struct dag *dag, size_t a, size_t b, size_t *several)
{
	CLEANUP(free_pointer) struct pointer *bases = NULL;
	uint64_t found = 0;
	size_t count;
	bool is;

	assert_int_equal(merge_bases(history, &dag->nodes[a], &dag->nodes[b], &bases, &count, NULL),
	                 0);
	for (size_t i = 0; i < count; i++) {
		uint64_t bit = bit_of(dag, &bases[i].id);

		assert_false(found & bit);
		found |= bit;
	}
	assert_int_equal(found, bases_by_force(dag, a, b));
	*several += count > 1;
	assert_int_equal(is_ancestor(history, &dag->nodes[a], &dag->nodes[b], &is, NULL), 0);
	assert_int_equal(is, dag->ancestors[b] >> a & 1);
}

static void compare_with_force(int dags)
{
	struct dag dag;
	size_t pairs = 0, several = 0;

	random_bytes(&random_state, sizeof(random_state));
	print_message("seed %llu\n", (unsigned long long)random_state);
	for (int i = 0; i < dags; i++) {
		make_dag(&dag, 2 + random_below(NODES_MAX - 1), 2 + random_below(10));
		if (i % 3 == 0 && ref_create(store, REF_BRANCH, "all", &dag.nodes[dag.count - 1],
		                             &ann, NULL) == 0) {
			struct commit *none;

			revision_resolve(history, "ffffffffff", &none, NULL); /* feeds */
			assert_int_equal(ref_delete(store, REF_BRANCH, "all", &ann, NULL), 0);
		}
		for (int k = 0; k < 150; k++, pairs++)
			compare_pair(&dag, random_below(dag.count), random_below(dag.count),
			             &several);
	}
	print_message("%zu pairs, %zu with several bases\n", pairs, several);
	assert_true(several > pairs / 100);
}

static void ancestors_as_by_force(void **state)
{
	compare_with_force(100);
}

static void criss_cross_has_two_bases(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct pointer a = commit(&root, 1, 2, "a"), b = commit(&root, 1, 3, "b");
	struct pointer ab[] = {a, b}, ba[] = {b, a};
	struct pointer left = commit(ab, 2, 4, "left"), right = commit(ba, 2, 5, "right");
	struct pointer other = commit(NULL, 0, 6, "other");
	struct pointer *bases;
	size_t count;

	assert_int_equal(merge_bases(history, &left, &right, &bases, &count, NULL), 0);
	assert_int_equal(count, 2);
	assert_true(id_equal(&bases[0].id, &b.id)); /* the newer one */
	assert_true(id_equal(&bases[1].id, &a.id));
	free(bases);
	assert_int_equal(merge_bases(history, &left, &left, &bases, &count, NULL), 0);
	assert_int_equal(count, 1);
	assert_true(id_equal(&bases[0].id, &left.id));
	/* Bases come with their places. */
	struct commit *read;
	assert_int_equal(commit_read(odb, &bases[0], &read, NULL), 0);
	free(read);
	free(bases);
	assert_int_equal(merge_bases(history, &left, &other, &bases, &count, NULL), 0);
	assert_int_equal(count, 0);
	assert_null(bases);
}

static struct pointer forge(const struct pointer *parents, size_t count, uint64_t generation)
{
	CLEANUP(buffer_release) struct buffer logical = {0};
	CLEANUP(buffer_release) struct buffer places = {0};
	struct commit forged = {.root = {.mode = S_IFDIR | 0755},
	                        .parents = (struct pointer *)parents,
	                        .parent_count = count,
	                        .generation = generation,
	                        .author = "mallory",
	                        .message = "forged"};
	struct pointer pointer;

	assert_int_equal(commit_encode(&forged, &logical, &places), 0);
	assert_int_equal(packer_add_record(packer, RECORD_COMMIT, logical.data, logical.length,
	                                   places.data, places.length, &pointer, NULL),
	                 0);
	return pointer;
}

static void wrong_generations_are_damage(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct pointer a = commit(&root, 1, 2, "a"), b = commit(&a, 1, 3, "b");
	struct pointer both[] = {b, a};
	struct pointer forged = forge(both, 2, 2);
	struct message message = {0};
	struct history_walk *walk;
	struct pointer *bases;
	struct commit *read;
	size_t count;
	bool is;

	assert_int_equal(merge_bases(history, &forged, &b, &bases, &count, &message), -ERR_CORRUPT);
	assert_non_null(strstr(message.text, "generation"));
	assert_int_equal(is_ancestor(history, &root, &forged, &is, &message), -ERR_CORRUPT);
	assert_int_equal(history_walk_new(history, &forged, 1, NULL, &walk), 0);
	int rc;
	while ((rc = history_walk_next(walk, &read, &message)) == 0)
		free(read);
	assert_int_equal(rc, -ERR_CORRUPT);
	assert_int_equal(history_walk_next(walk, &read, &message), -ERR_CORRUPT);
	history_walk_free(walk);
}

/* -- walks -- */

/* What the walk promises, done plainly: among those without an untold child the newest first. */
static size_t order_by_force(const struct dag *dag, uint64_t reached, bool first_parent,
                             size_t order[NODES_MAX])
{
	size_t count = 0;
	uint64_t left = reached;

	while (left) {
		size_t best = SIZE_MAX;
		uint64_t blocked = 0;

		for (size_t i = 0; i < dag->count; i++) {
			if (!(left >> i & 1))
				continue;
			for (size_t p = 0; p < dag->parent_count[i] && (p == 0 || !first_parent);
			     p++)
				blocked |= (uint64_t)1 << dag->parents[i][p];
		}
		for (size_t i = 0; i < dag->count; i++) {
			if (!(left >> i & 1) || blocked >> i & 1)
				continue;
			if (best == SIZE_MAX || dag->times[i] > dag->times[best] ||
			    (dag->times[i] == dag->times[best] &&
			     (dag->generation[i] > dag->generation[best] ||
			      (dag->generation[i] == dag->generation[best] &&
			       memcmp(&dag->nodes[i].id, &dag->nodes[best].id, ID_BYTES) < 0))))
				best = i;
		}
		order[count++] = best;
		left &= ~((uint64_t)1 << best);
	}
	return count;
}

static uint64_t reached_by_force(const struct dag *dag, size_t start, bool first_parent)
{
	uint64_t reached = 0;

	if (!first_parent)
		return dag->ancestors[start];
	for (;;) {
		reached |= (uint64_t)1 << start;
		if (dag->parent_count[start] == 0)
			return reached;
		start = dag->parents[start][0];
	}
}

static void compare_walk(const struct dag *dag, bool first_parent)
{
	struct walk_options options = {.first_parent = first_parent};
	struct pointer starts[4];
	size_t start_count = 1 + random_below(4), order[NODES_MAX];
	struct history_walk *walk;
	struct commit *read;
	uint64_t reached = 0;

	for (size_t i = 0; i < start_count; i++) {
		size_t start = random_below(dag->count);

		starts[i] = dag->nodes[start];
		reached |= reached_by_force(dag, start, first_parent);
	}
	size_t count = order_by_force(dag, reached, first_parent, order);
	assert_int_equal(history_walk_new(history, starts, start_count, &options, &walk), 0);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(history_walk_next(walk, &read, NULL), 0);
		assert_int_equal(bit_of(dag, &read->self.id), (uint64_t)1 << order[i]);
		free(read);
	}
	assert_int_equal(history_walk_next(walk, &read, NULL), -ERR_NOT_FOUND);
	assert_int_equal(history_walk_next(walk, &read, NULL), -ERR_NOT_FOUND);
	history_walk_free(walk);
}

static void walks_in_order(void **state)
{
	struct dag dag;

	random_bytes(&random_state, sizeof(random_state));
	print_message("seed %llu\n", (unsigned long long)random_state);
	for (int i = 0; i < 60; i++) {
		make_dag(&dag, 1 + random_below(NODES_MAX), 2 + random_below(10));
		for (int k = 0; k < 20; k++)
			compare_walk(&dag, k % 2);
	}
	struct history_walk *walk;
	struct commit *read;
	assert_int_equal(history_walk_new(history, NULL, 0, NULL, &walk), 0);
	assert_int_equal(history_walk_next(walk, &read, NULL), -ERR_NOT_FOUND);
	history_walk_free(walk);
}

static void a_missing_pack_is_not_the_end(void **state)
{
	struct pointer root = commit(NULL, 0, 1, "root");
	struct history_walk *walk;
	struct message message = {0};
	struct commit *read;

	root.place.pack[3] ^= 1;
	struct pointer head = forge(&root, 1, 2);
	assert_int_equal(history_walk_new(history, &head, 1, NULL, &walk), 0);
	assert_int_equal(history_walk_next(walk, &read, &message), -ERR_CORRUPT);
	assert_true(message.text[0] != '\0');
	history_walk_free(walk);
}

/* -- walks by path -- */

struct entries {
	const struct tree_entry *entries;
	size_t count, at;
};

static int next_entry(void *context, struct tree_edit *ret_edit)
{
	struct entries *entries = context;

	if (entries->at == entries->count)
		return -ERR_NOT_FOUND;
	const struct tree_entry *entry = &entries->entries[entries->at++];
	*ret_edit = (struct tree_edit){entry->name, entry->name_length, entry};
	return 0;
}

static struct pointer tree_of(const struct tree_entry *list, size_t count)
{
	struct entries entries = {list, count, 0};
	struct pointer root;

	assert_int_equal(tree_apply(odb, packer, &pointer_none, next_entry, &entries, &root, NULL),
	                 0);
	return root;
}

static struct tree_entry file(const char *name, uint8_t content, int64_t mtime)
{
	struct tree_entry entry = {.name = name, .name_length = strlen(name)};

	entry.attributes.mode = S_IFREG | 0644;
	entry.attributes.mtime_ns = mtime;
	entry.content.kind = CONTENT_CHUNK;
	entry.content.size = 5;
	entry.content.pointer.place = (struct place){.offset = 64, .stored = 5, .raw = 5};
	memset(&entry.content.pointer.id, content, ID_BYTES);
	return entry;
}

static struct tree_entry subdirectory(const char *name, struct pointer root, uint32_t mode)
{
	struct tree_entry entry = {.name = name, .name_length = strlen(name)};

	entry.attributes.mode = S_IFDIR | mode;
	entry.content.pointer = root;
	return entry;
}

/* a/b/x, a/y, z */
static struct pointer sample(uint8_t x, int64_t x_time, uint8_t y, uint8_t z, uint32_t a_mode)
{
	struct tree_entry in_b[] = {file("x", x, x_time)};
	struct tree_entry in_a[] = {subdirectory("b", tree_of(in_b, x != 0), 0755),
	                            file("y", y, 0)};
	struct tree_entry in_root[] = {subdirectory("a", tree_of(in_a, y ? 2 : 1), a_mode),
	                               file("z", z, 0)};

	return tree_of(in_root, z ? 2 : 1);
}

static void assert_log(const struct pointer *head, bool first_parent, const char *path,
                       const char *expected)
{
	const char *paths[] = {path};
	struct walk_options options = {
	        .first_parent = first_parent, .paths = paths, .path_count = 1};
	struct history_walk *walk;
	struct commit *read;
	char text[100] = "";
	int rc;

	assert_int_equal(history_walk_new(history, head, 1, &options, &walk), 0);
	while ((rc = history_walk_next(walk, &read, NULL)) == 0) {
		strcat(text, read->message);
		free(read);
	}
	assert_int_equal(rc, -ERR_NOT_FOUND);
	history_walk_free(walk);
	if (strcmp(text, expected) != 0)
		fail_msg("%s: %s, not %s", path, text, expected);
}

static void walks_by_path(void **state)
{
	struct pointer trees[] = {
	        sample(1, 0, 1, 1, 0755), /* 0: all of them */
	        sample(1, 0, 1, 2, 0755), /* 1: z */
	        sample(2, 0, 1, 2, 0755), /* 2: a/b/x */
	        sample(2, 9, 1, 2, 0755), /* 3: a time alone */
	        sample(2, 9, 1, 2, 0700), /* 4: mode of a */
	        sample(2, 9, 0, 2, 0700), /* 5: a/y removed */
	        sample(0, 0, 0, 2, 0700), /* 6: a/b/x removed */
	};
	struct pointer at = pointer_none;

	for (size_t i = 0; i < ARRAY_SIZE(trees); i++) {
		char text[2] = {(char)('0' + i), '\0'};

		at = commit_of(&trees[i], &at, i > 0, (int64_t)i, text);
	}
	assert_log(&at, false, "z", "10");
	assert_log(&at, false, "a", "65420");
	assert_log(&at, false, "a/b", "620");
	assert_log(&at, false, "a/b/x", "620");
	assert_log(&at, false, "a/b/x/below", "");
	assert_log(&at, false, "a/y", "50");
	assert_log(&at, false, "nothing", "");
	assert_log(&at, false, "z/below", "");
	assert_log(&at, false, "",
	           "6542"
	           "10");
	const char *both[] = {"z", "a/y"};
	struct walk_options options = {.paths = both, .path_count = 2};
	struct history_walk *walk;
	struct commit *read;
	assert_int_equal(history_walk_new(history, &at, 1, &options, &walk), 0);
	for (const char *c = "510"; *c; c++) {
		assert_int_equal(history_walk_next(walk, &read, NULL), 0);
		assert_int_equal(read->message[0], *c);
		free(read);
	}
	assert_int_equal(history_walk_next(walk, &read, NULL), -ERR_NOT_FOUND);
	history_walk_free(walk);

	/* A merge counts when it differs from every parent. */
	struct pointer base = commit_of(&trees[0], NULL, 0, 1, "r");
	struct pointer sides[] = {commit_of(&trees[0], &base, 1, 2, "s"),
	                          commit_of(&trees[1], &base, 1, 3, "t")};
	struct pointer taken = commit_of(&trees[1], sides, 2, 4, "m");
	struct pointer evil = commit_of(&trees[2], sides, 2, 5, "n");
	assert_log(&taken, false, "z", "tr");
	assert_log(&taken, true, "z", "mr");
	assert_log(&evil, false, "a/b/x", "nr");
}

/* -- many threads -- */

static struct pointer shared_nodes[60];

static void *ask_often(void *context)
{
	for (size_t i = 0; i < 200; i++) {
		const struct pointer *a = &shared_nodes[i * 7 % 60];
		struct pointer *bases = NULL;
		struct commit *read = NULL;
		char hex[ID_HEX + 1];
		size_t count;

		hex_of(a, hex, 14);
		if (revision_resolve(history, hex, &read, NULL) < 0)
			abort();
		history_note(history, read);
		if (merge_bases(history, a, &shared_nodes[i % 60], &bases, &count, NULL) < 0)
			abort();
		free(bases);
		free(read);
	}
	return NULL;
}

static void many_threads_may_ask(void **state)
{
	pthread_t threads[3];

	for (size_t i = 0; i < 60; i++)
		shared_nodes[i] = commit(&shared_nodes[i > 0 ? i - 1 : 0], i > 0, (int64_t)i, "n");
	branch("main", &shared_nodes[59]);
	for (size_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_often, NULL), 0);
	for (size_t i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST_BOTH(ancestors_as_by_force),        TEST(criss_cross_has_two_bases),
	        TEST_BOTH(wrong_generations_are_damage), TEST_BOTH(walks_in_order),
	        TEST(a_missing_pack_is_not_the_end),     TEST(walks_by_path),
	        TEST_BOTH(many_threads_may_ask),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
