/* Tests of refs/merge.h against a model: trees as flat lists of files, merged path by path. */
#include "tests/unit/merge_world.h"

/* -- against a model: trees as flat lists of files -- */

#define LEAVES_MAX 160
#define PATH_SIZE 16

struct leaf {
	char path[PATH_SIZE];
	int content, mode, mtime, xattr;
};
struct flat {
	struct leaf leaves[LEAVES_MAX]; /* in path order */
	size_t count;
};

static int number(int below)
{
	return (int)(lrand48() % below);
}

static const struct leaf *flat_find(const struct flat *flat, const char *path)
{
	for (size_t i = 0; i < flat->count; i++)
		if (strcmp(flat->leaves[i].path, path) == 0)
			return &flat->leaves[i];
	return NULL;
}

static void flat_remove(struct flat *flat, const char *path)
{
	size_t kept = 0;
	for (size_t i = 0; i < flat->count; i++)
		if (!path_within(flat->leaves[i].path, path))
			flat->leaves[kept++] = flat->leaves[i];
	flat->count = kept;
}

/* Whatever is in the way goes. */
static void flat_set(struct flat *flat, const struct leaf *leaf)
{
	size_t kept = 0;
	for (size_t i = 0; i < flat->count; i++)
		if (!path_within(leaf->path, flat->leaves[i].path) &&
		    !path_within(flat->leaves[i].path, leaf->path))
			flat->leaves[kept++] = flat->leaves[i];
	size_t at = kept;
	while (at > 0 && strcmp(flat->leaves[at - 1].path, leaf->path) > 0)
		at--;
	memmove(&flat->leaves[at + 1], &flat->leaves[at], (kept - at) * sizeof(*leaf));
	flat->leaves[at] = *leaf;
	flat->count = kept + 1;
	assert_true(flat->count < LEAVES_MAX);
}

static void random_path(char path[PATH_SIZE])
{
	int depth = 1 + number(3), used = 0;
	for (int i = 0; i < depth; i++)
		used += sprintf(path + used, "%s%c", i ? "/" : "", 'a' + number(4));
}

static struct leaf random_leaf(void)
{
	struct leaf leaf = {.content = 1 + number(3), .mode = number(8) ? 0 : 1 + number(2)};
	leaf.mtime = number(4);
	leaf.xattr = number(8) ? 0 : 1 + number(2);
	random_path(leaf.path);
	return leaf;
}

static void random_edit(struct flat *flat)
{
	char path[PATH_SIZE];
	struct leaf leaf = random_leaf();
	if (flat->count > 0 && number(3)) {
		leaf = flat->leaves[number((int)flat->count)];
		int what = number(6);
		if (what == 0)
			leaf.content = 1 + number(3);
		else if (what == 1)
			leaf.mode = number(3);
		else if (what == 2)
			leaf.mtime = number(4);
		else if (what == 3)
			leaf.xattr = number(3);
	} else if (number(3) == 0) {
		random_path(path);
		flat_remove(flat, path);
		return;
	}
	if (number(5) == 0)
		flat_remove(flat, leaf.path);
	else
		flat_set(flat, &leaf);
}

enum kind { KIND_ABSENT, KIND_FILE, KIND_DIRECTORY };

static enum kind kind_at(const struct flat *flat, const char *path)
{
	if (flat_find(flat, path))
		return KIND_FILE;
	for (size_t i = 0; i < flat->count; i++)
		if (path_within(flat->leaves[i].path, path))
			return KIND_DIRECTORY;
	return KIND_ABSENT;
}

static bool leaf_same(const struct leaf *a, const struct leaf *b)
{
	return a->content == b->content && a->mode == b->mode && a->xattr == b->xattr;
}

static bool same_below(const struct flat *a, const struct flat *b, const char *path)
{
	for (size_t i = 0; i < a->count; i++) {
		if (!path_within(a->leaves[i].path, path))
			continue;
		const struct leaf *other = flat_find(b, a->leaves[i].path);
		if (!other || !leaf_same(other, &a->leaves[i]))
			return false;
	}
	return true;
}

static bool same_at(const struct flat *a, const struct flat *b, const char *path)
{
	return same_below(a, b, path) && same_below(b, a, path);
}

struct model {
	const struct flat *base, *source, *target;
	struct flat result;
	struct flat conflicts; /* paths alone */
};

static void model_conflict(struct model *model, const char *path)
{
	struct leaf leaf = {0};
	strcpy(leaf.path, path);
	model->conflicts.leaves[model->conflicts.count++] = leaf;
}

static int model_value(struct model *model, const char *path, bool has_base, int base, int source,
                       int target)
{
	if (source == target || (has_base && base == source))
		return target;
	if (has_base && base == target)
		return source;
	if (model->conflicts.count == 0 ||
	    strcmp(model->conflicts.leaves[model->conflicts.count - 1].path, path) != 0)
		model_conflict(model, path);
	return target;
}

static int model_time(const struct leaf *base, int source, int target)
{
	if (base && base->mtime == source)
		return target;
	if (base && base->mtime == target)
		return source;
	return source > target ? source : target;
}

static void model_files(struct model *model, const char *path)
{
	const struct leaf *base = flat_find(model->base, path);
	const struct leaf *source = flat_find(model->source, path);
	const struct leaf *target = flat_find(model->target, path), *from = base;
	struct leaf leaf = *target, none = {0};
	if (!from)
		from = &none;
	leaf.content =
	        model_value(model, path, base, from->content, source->content, target->content);
	leaf.mode = model_value(model, path, base, from->mode, source->mode, target->mode);
	leaf.xattr = model_value(model, path, base, from->xattr, source->xattr, target->xattr);
	leaf.mtime = model_time(base, source->mtime, target->mtime);
	flat_set(&model->result, &leaf);
}

static void model_copy(struct model *model, const struct flat *from, const char *path)
{
	for (size_t i = 0; i < from->count; i++)
		if (path_within(from->leaves[i].path, path))
			flat_set(&model->result, &from->leaves[i]);
}

static void model_path(struct model *model, const char *path, int depth)
{
	enum kind base = kind_at(model->base, path), source = kind_at(model->source, path);
	enum kind target = kind_at(model->target, path);
	if (source == KIND_DIRECTORY && target == KIND_DIRECTORY) {
		for (char name = 'a'; name <= 'd' && depth < 3; name++) {
			char below[PATH_SIZE + 2];
			sprintf(below, "%s%s%c", path, depth ? "/" : "", name);
			model_path(model, below, depth + 1);
		}
	} else if (source == KIND_FILE && target == KIND_FILE) {
		model_files(model, path);
	} else if (same_at(model->base, model->target, path)) {
		model_copy(model, model->source, path);
	} else if (same_at(model->base, model->source, path)) {
		model_copy(model, model->target, path);
	} else if (base == KIND_DIRECTORY && (source == KIND_ABSENT || target == KIND_ABSENT) &&
	           source != KIND_FILE && target != KIND_FILE) {
		const struct flat *only = source == KIND_ABSENT ? model->target : model->source;
		for (size_t i = 0; i < only->count; i++) {
			const struct leaf *leaf = &only->leaves[i];
			const struct leaf *old = flat_find(model->base, leaf->path);
			if (path_within(leaf->path, path) && (!old || !leaf_same(old, leaf)))
				model_conflict(model, leaf->path);
		}
	} else if (source != target) {
		model_conflict(model, path);
	}
}

static void model_merge(struct model *model)
{
	model->result.count = model->conflicts.count = 0;
	for (char name = 'a'; name <= 'd'; name++)
		model_path(model, (char[]){name, '\0'}, 1);
}

static struct pointer flat_to_tree(struct world *world, const struct flat *flat)
{
	static const uint32_t modes[] = {0644, 0600, 0755};
	static const char *const xattrs[] = {NULL, "v", "w"};
	struct pointer root = pointer_none;
	/* A fixed time of directories made on the way: the first leaf's would be random. */
	for (size_t i = 0; i < flat->count; i++) {
		char path[PATH_SIZE];
		strcpy(path, flat->leaves[i].path);
		for (char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
			struct tree_entry *found;
			*slash = '\0';
			if (tree_find(world->odb, &root, path, &found, NULL) == 0)
				free(found);
			else
				put_directory(world, &root, path, 0755);
			*slash = '/';
		}
		const struct leaf *leaf = &flat->leaves[i];
		put(world, &root, path, (unsigned)leaf->content, modes[leaf->mode], leaf->mtime + 1,
		    xattrs[leaf->xattr]);
	}
	return root;
}

static int visit_leaf(void *context, const char *path, const struct tree_entry *entry)
{
	struct flat *flat = context;
	if (S_ISDIR(entry->attributes.mode))
		return 0;
	struct leaf leaf = {.content = (int)entry->content.size,
	                    .mtime = (int)entry->attributes.mtime_ns - 1};
	uint32_t permissions = entry->attributes.mode & 07777;
	struct span value;
	strcpy(leaf.path, path);
	leaf.mode = permissions == 0644 ? 0 : permissions == 0600 ? 1 : 2;
	if (entry->xattrs_length &&
	    xattrs_get(entry->xattrs, entry->xattrs_length, "user.x", &value) == 0)
		leaf.xattr = *(const char *)value.data == 'v' ? 1 : 2;
	flat->leaves[flat->count++] = leaf;
	return 0;
}

/* Each conflict of one list is at, above or below one of the other. */
static void assert_conflicts_match(const struct merge_result *result, const struct flat *model)
{
	for (size_t i = 0; i < result->conflict_count; i++) {
		bool found = false;
		for (size_t k = 0; k < model->count; k++)
			found = found ||
			        path_within(model->leaves[k].path, result->conflicts[i].path);
		assert_true(found);
	}
	for (size_t k = 0; k < model->count; k++) {
		bool found = false;
		for (size_t i = 0; i < result->conflict_count; i++)
			found = found ||
			        path_within(model->leaves[k].path, result->conflicts[i].path);
		assert_true(found);
	}
}

static void print_flat(const char *what, const struct flat *flat)
{
	print_message("%s:", what);
	for (size_t i = 0; i < flat->count; i++)
		print_message(" %s=%d:%d@%d,%d", flat->leaves[i].path, flat->leaves[i].content,
		              flat->leaves[i].mode, flat->leaves[i].mtime, flat->leaves[i].xattr);
	print_message("\n");
}

static void print_round(const struct model *model, const struct merge_result *result,
                        const struct flat *found)
{
	print_flat("base", model->base);
	print_flat("source", model->source);
	print_flat("target", model->target);
	print_flat("model's conflicts", &model->conflicts);
	print_flat("model's result", &model->result);
	print_flat("found", found);
	for (size_t i = 0; i < result->conflict_count; i++)
		print_message("conflict %s\n", result->conflicts[i].path);
}

static bool flat_has(const struct flat *flat, const char *path)
{
	for (size_t i = 0; i < flat->count; i++)
		if (path_within(flat->leaves[i].path, path))
			return true;
	return false;
}

/* A take that names nothing on either side is refused, unless it decided about a removal. */
static bool names_nothing(const struct model *model, const struct merge_options *options)
{
	return options && options->take_count > 0 &&
	       !flat_has(model->source, options->takes[0].path) &&
	       !flat_has(model->target, options->takes[0].path) &&
	       !flat_has(model->base, options->takes[0].path);
}

static void compare_with_model(struct world *world, struct model *model,
                               const struct merge_options *options)
{
	struct merge_side base = side_of(flat_to_tree(world, model->base));
	struct merge_side source = side_of(flat_to_tree(world, model->source));
	struct merge_side target = side_of(flat_to_tree(world, model->target));
	struct merge_result result;
	struct flat found = {.count = 0};
	if (names_nothing(model, options)) {
		assert_int_equal(merge_trees(world->odb, world->packer, &base, &source, &target,
		                             options, &result, &world->message),
		                 -ERR_NOT_FOUND);
		return;
	}
	assert_int_equal(merge_trees(world->odb, world->packer, &base, &source, &target, options,
	                             &result, &world->message),
	                 0);
	if (getenv("TEST_PRINT"))
		print_round(model, &result, &found);
	assert_conflicts_match(&result, &model->conflicts);
	if (result.conflict_count == 0) {
		assert_int_equal(
		        tree_visit(world->odb, &result.tree, visit_leaf, &found, &world->message),
		        0);
		assert_int_equal(found.count, model->result.count);
		for (size_t i = 0; i < found.count; i++)
			assert_memory_equal(&found.leaves[i], &model->result.leaves[i],
			                    sizeof(struct leaf));
	}
	merge_result_release(&result);
}

/* The side's state of one name at the top, in all three: then there is nothing to decide. */
static void impose(struct flat *flat, const struct flat *side, const char *path)
{
	flat_remove(flat, path);
	for (size_t i = 0; i < side->count; i++)
		if (path_within(side->leaves[i].path, path))
			flat_set(flat, &side->leaves[i]);
}

static void round_of_model(struct world *world, size_t *conflicts)
{
	static struct flat base, source, target, imposed[3];
	static struct model model;
	base.count = 0;
	int leaves = number(14), edits = 1 + number(5);
	for (int i = 0; i < leaves; i++) {
		struct leaf leaf = random_leaf();
		flat_set(&base, &leaf);
	}
	source = target = base;
	for (int i = 0; i < edits; i++) {
		random_edit(&source);
		random_edit(&target);
	}
	model.base = &base;
	model.source = &source;
	model.target = &target;
	model_merge(&model);
	compare_with_model(world, &model, NULL);
	*conflicts += model.conflicts.count > 0;
	/* Again with a name taken from a side. */
	char path[2] = {(char)('a' + number(4)), '\0'};
	struct take take = {number(2) ? SIDE_SOURCE : SIDE_TARGET, path};
	const struct flat *side = take.side == SIDE_SOURCE ? &source : &target;
	imposed[0] = base;
	imposed[1] = source;
	imposed[2] = target;
	for (int i = 0; i < 3; i++)
		impose(&imposed[i], side, path);
	model.base = &imposed[0];
	model.source = &imposed[1];
	model.target = &imposed[2];
	model_merge(&model);
	model.base = &base;
	model.source = &source;
	model.target = &target;
	compare_with_model(world, &model, &(struct merge_options){.takes = &take, .take_count = 1});
}

static void run_rounds(void **state, void (*round_of)(struct world *, size_t *))
{
	const char *given = getenv("TEST_SEED");
	const char *rounds_given = getenv("TEST_ROUNDS");
	int rounds = rounds_given ? atoi(rounds_given) : 2000;
	uint64_t seed = given ? strtoull(given, NULL, 0) : random_u64() >> 16;
	size_t conflicts = 0;
	print_message("TEST_SEED=%llu\n", (unsigned long long)seed);
	for (int round = 0; round < rounds; round++) {
		/* Each round can be repeated alone: its seed is the first's plus its number. */
		srand48((long)(seed + (uint64_t)round));
		if (getenv("TEST_PRINT"))
			print_message("round %d\n", round);
		if (round % 500 == 0 && round > 0) {
			tear_down(state);
			set_up(state);
		}
		round_of(*state, &conflicts);
	}
	print_message("%d rounds, %zu with conflicts\n", rounds, conflicts);
	assert_true(rounds < 100 || (conflicts > 0 && conflicts < (size_t)rounds));
}

static void random_trees_match_the_model(void **state)
{
	run_rounds(state, round_of_model);
}

/* -- criss-cross histories against a model: names at the top alone -- */

struct value {
	enum { VALUE_ABSENT, VALUE_FILE, VALUE_UNRESOLVED } kind;
	struct leaf leaf;
};

static struct value value_of(const struct flat *flat, const char *path)
{
	const struct leaf *leaf = flat_find(flat, path);
	return leaf ? (struct value){VALUE_FILE, *leaf} : (struct value){.kind = VALUE_ABSENT};
}

static bool value_same(const struct value *a, const struct value *b)
{
	if (a->kind != b->kind || a->kind == VALUE_UNRESOLVED)
		return false;
	return a->kind == VALUE_ABSENT || leaf_same(&a->leaf, &b->leaf);
}

static struct value merge_values(const struct value *base, const struct value *source,
                                 const struct value *target)
{
	struct value merged = *target;
	const struct leaf *from = base->kind == VALUE_FILE ? &base->leaf : NULL;
	bool both = source->kind == VALUE_FILE && target->kind == VALUE_FILE;
	static struct model scratch; /* only counts conflicts */
	struct leaf none = {0};
	const struct leaf *old = from ? from : &none;
	if (value_same(base, target))
		merged = *source;
	else if (!value_same(base, source) && !value_same(source, target)) {
		merged.kind = VALUE_UNRESOLVED;
		if (both) {
			scratch.conflicts.count = 0;
			merged.leaf.content =
			        model_value(&scratch, "x", from, old->content, source->leaf.content,
			                    target->leaf.content);
			merged.leaf.mode = model_value(&scratch, "x", from, old->mode,
			                               source->leaf.mode, target->leaf.mode);
			merged.leaf.xattr = model_value(&scratch, "x", from, old->xattr,
			                                source->leaf.xattr, target->leaf.xattr);
			if (scratch.conflicts.count == 0)
				merged.kind = VALUE_FILE;
		}
	}
	if (both)
		merged.leaf.mtime = model_time(from, source->leaf.mtime, target->leaf.mtime);
	return merged;
}

static void random_top_edit(struct flat *flat)
{
	struct leaf leaf = random_leaf();
	memset(leaf.path + 1, 0, PATH_SIZE - 1);
	if (number(4) == 0)
		flat_remove(flat, leaf.path);
	else
		flat_set(flat, &leaf);
}

static void crossing_round(struct world *world, size_t *conflicts)
{
	static struct flat flats[5]; /* root, a1, b1, a2, b2 */
	struct commit *commits[5] = {NULL};
	static const int parents[5][2] = {{-1, -1}, {0, -1}, {0, -1}, {1, 2}, {2, 1}};
	flats[0].count = 0;
	for (int i = 0; i < 5; i++) {
		if (i > 0)
			flats[i] = flats[i == 4 && number(2) ? 3 : parents[i][0]];
		int edits = number(4);
		for (int k = 0; k < edits; k++)
			random_top_edit(&flats[i]);
		commits[i] = commit_of(world, flat_to_tree(world, &flats[i]),
		                       i ? commits[parents[i][0]] : NULL,
		                       i > 2 ? commits[parents[i][1]] : NULL);
	}
	static struct model model;
	model.result.count = model.conflicts.count = 0;
	for (char name = 'a'; name <= 'd'; name++) {
		char path[2] = {name, '\0'};
		struct value values[5];
		for (int i = 0; i < 5; i++)
			values[i] = value_of(&flats[i], path);
		struct value base = merge_values(&values[0], &values[1], &values[2]);
		struct value merged = merge_values(&base, &values[3], &values[4]);
		if (merged.kind == VALUE_FILE)
			flat_set(&model.result, &merged.leaf);
		else if (merged.kind == VALUE_UNRESOLVED)
			model_conflict(&model, path);
	}
	struct merge_result result;
	struct flat found = {.count = 0};
	bool forward, up_to_date;
	assert_int_equal(merge_commits(world->history, world->odb, world->packer, commits[3],
	                               commits[4], NULL, &result, &forward, &up_to_date,
	                               &world->message),
	                 0);
	assert_conflicts_match(&result, &model.conflicts);
	if (result.conflict_count == 0) {
		assert_int_equal(
		        tree_visit(world->odb, &result.tree, visit_leaf, &found, &world->message),
		        0);
		assert_int_equal(found.count, model.result.count);
		for (size_t i = 0; i < found.count; i++)
			assert_memory_equal(&found.leaves[i], &model.result.leaves[i],
			                    sizeof(struct leaf));
	}
	*conflicts += result.conflict_count > 0;
	merge_result_release(&result);
	for (int i = 0; i < 5; i++)
		free(commits[i]);
}

static void random_crossings_match_the_model(void **state)
{
	run_rounds(state, crossing_round);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        TEST(random_trees_match_the_model),
	        TEST(random_crossings_match_the_model),
	};
	return cmocka_run_group_tests_name("merge model", tests, NULL, NULL);
}
