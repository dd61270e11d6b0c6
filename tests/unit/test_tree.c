/*
 * Directories as trees, against a plain sorted array as model: whatever the edits, the tree is
 * the one a build from scratch gives. TREE_TEST_SEED repeats a run, TREE_TEST_ROUNDS lengthens it.
 */
#include "store/tree_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <cmocka.h> /* last: it defines a macro named fail */

/* -- random numbers that can be repeated (xorshift64*) -- */

static uint64_t random_state;

static uint64_t roll(uint64_t limit)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return (random_state * UINT64_C(0x2545f4914f6cdd1d) >> 20) % limit;
}

/* -- a store in memory -- */

struct lab {
	struct object_store *store;
	struct odb *odb;
	struct packer *packer;
};

static void lab_open(struct lab *lab, size_t cache_bytes_max)
{
	struct odb_options options = {.cache_bytes_max = cache_bytes_max};

	assert_int_equal(object_memory_open(&lab->store), 0);
	assert_int_equal(odb_new(lab->store, &options, &lab->odb), 0);
	assert_int_equal(packer_new(lab->odb, &lab->packer), 0);
}

static void lab_close(struct lab *lab)
{
	packer_free(lab->packer);
	odb_free(lab->odb);
	object_store_free(lab->store);
}

/* -- the universe: sorted candidate names; the model: which are there, in which version -- */

#define UNIVERSE_MAX 5000

enum names {
	NAMES_NUMBERED,
	NAMES_RANDOM,
	NAMES_LONG,
	NAMES_BOUNDARY,
	NAMES_NO_BOUNDARY,
	NAMES_FAT
};

struct universe {
	enum names kind;
	size_t count;
	struct name {
		char text[NAME_BYTES_MAX + 1];
		size_t length;
	} * names;
};
/* versions[i]: 0 when name i is absent, else what its entry looks like. */
struct model {
	uint32_t versions[UNIVERSE_MAX];
};

static void make_name(enum names kind, size_t index, struct name *ret_name)
{
	size_t length = 1 + roll(20);

	switch (kind) {
	case NAMES_NUMBERED:
	case NAMES_FAT:
		length = (size_t)snprintf(ret_name->text, NAME_BYTES_MAX, "part-%05zu.parquet",
		                          index);
		break;
	case NAMES_LONG:
		length = 180 + roll(76);
		/* fall through */
	case NAMES_RANDOM:
		for (size_t i = 0; i < length; i++)
			ret_name->text[i] = (char)(1 + roll(255));
		break;
	case NAMES_BOUNDARY: /* every name would end a leaf, and every fourth its parent too */
		do {
			length = (size_t)snprintf(ret_name->text, NAME_BYTES_MAX, "b%llx",
			                          (unsigned long long)roll(UINT64_MAX));
		} while (!name_is_boundary(ret_name->text, length, 0) ||
		         (index % 4 == 0 && !name_is_boundary(ret_name->text, length, 1)));
		break;
	case NAMES_NO_BOUNDARY:
		do {
			length = (size_t)snprintf(ret_name->text, NAME_BYTES_MAX, "n%llx",
			                          (unsigned long long)roll(UINT64_MAX));
		} while (name_is_boundary(ret_name->text, length, 0));
		break;
	}
	ret_name->text[length] = '\0';
	ret_name->length = length;
}

static int compare_names(const void *a, const void *b)
{
	const struct name *left = a, *right = b;

	return name_compare(left->text, left->length, right->text, right->length);
}

static struct universe make_universe(enum names kind, size_t count)
{
	struct universe universe = {.kind = kind, .names = calloc(count + 1, sizeof(struct name))};

	assert_non_null(universe.names);
	for (size_t i = 0; i < count; i++)
		do
			make_name(kind, i, &universe.names[i]);
		while (name_check(universe.names[i].text, universe.names[i].length) != 0);
	qsort(universe.names, count, sizeof(struct name), compare_names);
	for (size_t i = 0; i < count; i++)
		if (universe.count == 0 ||
		    compare_names(&universe.names[universe.count - 1], &universe.names[i]) != 0)
			universe.names[universe.count++] = universe.names[i];
	return universe;
}

/* The entry that name `index` has in `version`, borrowed from static memory until the next. */
static void make_entry(const struct universe *universe, size_t index, uint32_t version,
                       struct tree_entry *ret_entry)
{
	static uint8_t xattrs[XATTRS_BYTES_MAX];
	uint64_t mixed = (version * UINT64_C(0x9e3779b97f4a7c15)) ^ index;
	uint32_t value_length = (uint32_t)(version * 2654435761u % (XATTRS_BYTES_MAX - 6));

	*ret_entry = (struct tree_entry){
	        .name = universe->names[index].text,
	        .name_length = universe->names[index].length,
	        .attributes = {.mode = S_IFREG | (version % 512), .mtime_ns = (int64_t)mixed},
	};
	if (universe->kind == NAMES_FAT && version % 2) {
		memset(xattrs, (int)version, sizeof(xattrs));
		xattrs[0] = 1;
		xattrs[1] = 'x';
		store_u32(xattrs + 2, value_length);
		ret_entry->xattrs = xattrs;
		ret_entry->xattrs_length = 6 + value_length;
	}
	if (version % 16 == 3) {
		ret_entry->attributes.mode = S_IFLNK | 0777;
		ret_entry->target = universe->names[version % universe->count].text;
		ret_entry->target_length = universe->names[version % universe->count].length;
		return;
	}
	if (version % 16 == 5)
		return;
	ret_entry->content.kind = version % 2 ? CONTENT_CHUNK : CONTENT_LIST;
	ret_entry->content.size = 1 + mixed % FILE_BYTES_MAX;
	memcpy(ret_entry->content.pointer.id.bytes, &mixed, sizeof(mixed));
	ret_entry->content.pointer.id.bytes[31] = 1;
	ret_entry->content.pointer.place.offset = 64 + index;
	ret_entry->content.pointer.place.stored = ret_entry->content.pointer.place.raw =
	        1 + version;
}

/* -- edits: from one model to another, with noise that changes nothing -- */

struct edits {
	const struct universe *universe;
	const struct model *from, *to;
	size_t at;
	bool noise; /* also edits that are no change */
	struct tree_entry entry;
};

static int next_edit(void *context, struct tree_edit *ret_edit)
{
	struct edits *edits = context;

	while (edits->at < edits->universe->count) {
		size_t i = edits->at++;
		uint32_t to = edits->to->versions[i];

		if (edits->from->versions[i] == to && !(edits->noise && roll(10) == 0))
			continue;
		if (to)
			make_entry(edits->universe, i, to, &edits->entry);
		*ret_edit = (struct tree_edit){.name = edits->universe->names[i].text,
		                               .name_length = edits->universe->names[i].length,
		                               .entry = to ? &edits->entry : NULL};
		return 0;
	}
	return -ERR_NOT_FOUND;
}

static struct pointer apply(struct lab *lab, const struct universe *universe,
                            const struct pointer *root, const struct model *from,
                            const struct model *to, bool noise)
{
	struct edits edits = {.universe = universe, .from = from, .to = to, .noise = noise};
	struct pointer result;
	struct message message = {.text = ""};
	int error = tree_apply(lab->odb, lab->packer, root, next_edit, &edits, &result, &message);

	if (error)
		print_error("tree_apply: %s\n", message.text);
	assert_int_equal(error, 0);
	return result;
}

static const struct model nothing;

static struct pointer build(struct lab *lab, const struct universe *universe,
                            const struct model *model)
{
	return apply(lab, universe, &pointer_none, &nothing, model, false);
}

/* -- what must hold of a tree -- */

static size_t count_of(const struct universe *universe, const struct model *model)
{
	size_t count = 0;

	for (size_t i = 0; i < universe->count; i++)
		count += model->versions[i] != 0;
	return count;
}

static void check_entry(const struct universe *universe, const struct model *model, size_t index,
                        const struct tree_entry *entry)
{
	struct tree_entry expected;

	make_entry(universe, index, model->versions[index], &expected);
	assert_true(tree_entry_equal(entry, &expected));
	assert_memory_equal(&entry->content.pointer.place, &expected.content.pointer.place,
	                    sizeof(struct place));
	assert_int_equal(entry->name[entry->name_length], 0);
}

static void check_iteration(struct lab *lab, const struct universe *universe,
                            const struct model *model, const struct pointer *root, size_t start)
{
	const struct name *after = start > 0 ? &universe->names[start - 1] : NULL;
	struct tree_iterator *iterator;
	const struct tree_entry *entry;

	assert_int_equal(tree_iterate(lab->odb, root, after ? after->text : NULL,
	                              after ? after->length : 0, &iterator, NULL),
	                 0);
	for (size_t i = start; i < universe->count; i++) {
		if (!model->versions[i])
			continue;
		assert_int_equal(tree_next(iterator, &entry, NULL), 0);
		check_entry(universe, model, i, entry);
	}
	assert_int_equal(tree_next(iterator, &entry, NULL), -ERR_NOT_FOUND);
	assert_int_equal(tree_next(iterator, &entry, NULL), -ERR_NOT_FOUND);
	tree_iterator_free(iterator);
}

static void check_lookups(struct lab *lab, const struct universe *universe,
                          const struct model *model, const struct pointer *root)
{
	for (unsigned n = 0; n < 20 && universe->count > 0; n++) {
		CLEANUP(free_pointer) struct tree_entry *entry = NULL;
		size_t i = roll(universe->count);
		int error = tree_lookup(lab->odb, root, universe->names[i].text,
		                        universe->names[i].length, &entry, NULL);

		assert_int_equal(error, model->versions[i] ? 0 : -ERR_NOT_FOUND);
		if (!error)
			check_entry(universe, model, i, entry);
	}
}

static void check_diff(struct lab *lab, const struct universe *universe, const struct model *from,
                       const struct model *to, const struct pointer *before,
                       const struct pointer *after)
{
	struct tree_diff *diff;
	struct tree_change change;

	assert_int_equal(tree_diff_new(lab->odb, before, after, &diff), 0);
	for (size_t i = 0; i < universe->count; i++) {
		if (from->versions[i] == to->versions[i])
			continue;
		assert_int_equal(tree_diff_next(diff, &change, NULL), 0);
		assert_int_equal(change.before != NULL, from->versions[i] != 0);
		assert_int_equal(change.after != NULL, to->versions[i] != 0);
		if (change.before)
			check_entry(universe, from, i, change.before);
		if (change.after)
			check_entry(universe, to, i, change.after);
	}
	assert_int_equal(tree_diff_next(diff, &change, NULL), -ERR_NOT_FOUND);
	tree_diff_free(diff);
}

/* The leaves are where the documented rule, written down a second time, puts them. */
static void check_leaves(struct lab *lab, const struct universe *universe,
                         const struct model *model, const struct pointer *root)
{
	CLEANUP(cursor_close) struct cursor cursor = {0};
	uint32_t count = 0;
	size_t bytes = 0, left = count_of(universe, model);

	assert_int_equal(cursor_open(&cursor, lab->odb, root, NULL), 0);
	for (size_t i = 0; i < universe->count; i++) {
		CLEANUP(buffer_release) struct buffer encoded = {0};
		struct tree_entry entry;

		if (!model->versions[i])
			continue;
		make_entry(universe, i, model->versions[i], &entry);
		tree_entry_encode(&encoded, &entry);
		bytes += encoded.length - 1 - (entry_has_id(&entry) ? PLACE_ENCODED_BYTES : 0) + 4;
		count++;
		left--;
		if (left > 0 && count < 512 && bytes < 131072 &&
		    (count < 16 || !name_is_boundary(entry.name, entry.name_length, 0)))
			continue;
		assert_int_equal(cursor_descend_to(&cursor, 0, NULL), 0);
		assert_int_equal(cursor_top(&cursor)->node.count, count);
		cursor_top(&cursor)->index = count - 1;
		cursor_skip(&cursor);
		count = 0;
		bytes = 0;
	}
	assert_int_equal(cursor.depth, 0);
}

static void check_tree(struct lab *lab, const struct universe *universe, const struct model *model,
                       const struct pointer *root)
{
	uint64_t count;

	assert_int_equal(tree_count(lab->odb, root, &count, NULL), 0);
	assert_int_equal(count, count_of(universe, model));
	assert_int_equal(pointer_is_none(root), count == 0);
	check_iteration(lab, universe, model, root, 0);
	check_iteration(lab, universe, model, root, roll(universe->count + 1));
	check_lookups(lab, universe, model, root);
	check_leaves(lab, universe, model, root);
}

/* -- the property test -- */

static void change_range(const struct universe *universe, struct model *model, uint32_t version)
{
	size_t start = roll(universe->count), length = roll(universe->count - start) + 1;

	for (size_t i = start; i < start + length; i++)
		model->versions[i] = version;
}

static void change_model(const struct universe *universe, struct model *model)
{
	size_t some = 1 + roll(8), last = universe->count - 1;
	uint32_t version = 1 + (uint32_t)roll(1000000);

	switch (roll(12)) {
	case 0:
		change_range(universe, model, version);
		return;
	case 1:
		change_range(universe, model, 0);
		return;
	case 2: /* all but a few go */
		for (size_t i = 0; i <= last; i++)
			if (roll(universe->count) > some)
				model->versions[i] = 0;
		return;
	case 3:
		memset(model, 0, sizeof(*model));
		return;
	case 4: /* half of all change */
		for (size_t i = 0; i <= last; i++)
			if (roll(2))
				model->versions[i] = roll(2) ? version + (uint32_t)i : 0;
		return;
	case 5: /* the end grows or goes */
		for (size_t i = last + 1 - roll(universe->count + 1); i <= last; i++)
			model->versions[i] = version % 3 ? version : 0;
		return;
	case 6: /* one entry alone is left */
		memset(model, 0, sizeof(*model));
		model->versions[roll(universe->count)] = version;
		return;
	case 7: /* all there */
		for (size_t i = 0; i <= last; i++)
			model->versions[i] = model->versions[i] ? model->versions[i] : version;
		return;
	default:
		while (some-- > 0)
			model->versions[roll(universe->count)] = roll(3) ? version++ : 0;
		return;
	}
}

static uint64_t bytes_given(struct lab *lab)
{
	struct packer_stats stats;

	packer_stats(lab->packer, &stats);
	return stats.bytes_new + stats.bytes_known;
}

static void run_history(uint64_t seed, enum names kind, size_t count, unsigned rounds)
{
	struct lab lab;
	struct universe universe;
	static struct model model, changed;
	struct pointer root = pointer_none, next, scratch;

	random_state = seed;
	lab_open(&lab, 0);
	universe = make_universe(kind, count);
	memset(&model, 0, sizeof(model));
	for (unsigned round = 0; round < rounds; round++) {
		changed = model;
		change_model(&universe, &changed);
		next = apply(&lab, &universe, &root, &model, &changed, true);
		scratch = build(&lab, &universe, &changed);
		assert_memory_equal(&next.id, &scratch.id, sizeof(struct id));
		check_tree(&lab, &universe, &changed, &next);
		check_diff(&lab, &universe, &model, &changed, &root, &next);
		check_diff(&lab, &universe, &changed, &model, &next, &root);
		uint64_t before = bytes_given(&lab);
		scratch = apply(&lab, &universe, &next, &changed, &changed, true);
		assert_memory_equal(&next, &scratch, sizeof(struct pointer));
		assert_int_equal(bytes_given(&lab), before);
		root = next;
		model = changed;
	}
	free(universe.names);
	lab_close(&lab);
}

static unsigned long long environment_number(const char *name, unsigned long long otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

static void run_histories(enum names kind, size_t count_max, unsigned histories)
{
	uint64_t seed = environment_number("TREE_TEST_SEED", random_u64() >> 1);

	histories *= (unsigned)environment_number("TREE_TEST_ROUNDS", 1);
	for (unsigned i = 0; i < histories; i++, seed++) {
		random_state = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
		size_t count = 1 + roll(i % 3 == 0 ? count_max : count_max / 10);

		print_message("names %d, up to %zu entries: TREE_TEST_SEED=%llu\n", (int)kind,
		              count, (unsigned long long)seed);
		run_history(random_state, kind, count, 50);
	}
}

static void test_numbered_names(void **state)
{
	run_histories(NAMES_NUMBERED, UNIVERSE_MAX, 12);
}

static void test_random_names(void **state)
{
	run_histories(NAMES_RANDOM, UNIVERSE_MAX, 12);
}

static void test_long_names(void **state)
{
	run_histories(NAMES_LONG, 4000, 9);
}

static void test_boundary_names(void **state)
{
	run_histories(NAMES_BOUNDARY, 2000, 9);
}

static void test_no_boundary_names(void **state)
{
	run_histories(NAMES_NO_BOUNDARY, UNIVERSE_MAX, 9);
}

static void test_huge_xattrs(void **state)
{
	run_histories(NAMES_FAT, 120, 6);
}

/* -- shapes that random edits seldom hit -- */

/* Keep one leaf's worth of a tree of three levels, wherever it lies: the root falls to that leaf,
 * also when its parent was the short last node of its level, with a single child. */
static void test_collapse_to_any_leaf(void **state)
{
	struct lab lab;
	struct universe universe;
	static struct model full, kept;
	struct pointer root, collapsed, scratch;
	struct cursor cursor = {0};
	unsigned single = 0;

	random_state = 4711;
	lab_open(&lab, 0);
	universe = make_universe(NAMES_BOUNDARY, 1200);
	memset(&full, 0, sizeof(full));
	for (size_t count = 0; count < universe.count; count++) {
		full.versions[count] = 2;
		if (count < 512 || count % 16 != 0)
			continue;
		root = build(&lab, &universe, &full);
		assert_int_equal(cursor_open(&cursor, lab.odb, &root, NULL), 0);
		assert_int_equal(cursor_seek(&cursor, universe.names[count].text,
		                             universe.names[count].length, false, false, 0, NULL),
		                 0);
		assert_int_equal(cursor.depth, 3);
		single += cursor.frames[1].node.count == 1;
		cursor_close(&cursor);
		for (size_t first = 0; first <= count; first += 16 * (1 + roll(20))) {
			memset(&kept, 0, sizeof(kept));
			for (size_t i = first; i < first + 16 && i <= count; i++)
				kept.versions[i] = 2;
			collapsed = apply(&lab, &universe, &root, &full, &kept, false);
			scratch = build(&lab, &universe, &kept);
			assert_memory_equal(&collapsed.id, &scratch.id, sizeof(struct id));
		}
		memset(&kept, 0, sizeof(kept));
		kept.versions[count] = 2;
		collapsed = apply(&lab, &universe, &root, &full, &kept, false);
		scratch = build(&lab, &universe, &kept);
		assert_memory_equal(&collapsed.id, &scratch.id, sizeof(struct id));
	}
	assert_true(single > 0);
	free(universe.names);
	lab_close(&lab);
}

/* A name after the last of a full last leaf: that leaf is looked at, and not stored again. */
static void test_append_after_full_leaf(void **state)
{
	struct lab lab;
	struct universe universe;
	static struct model sixteen, seventeen;
	struct pointer root, next;
	uint64_t before, leaf_bytes;

	random_state = 815;
	lab_open(&lab, 0);
	universe = make_universe(NAMES_BOUNDARY, 17);
	assert_int_equal(universe.count, 17);
	memset(&sixteen, 0, sizeof(sixteen));
	for (size_t i = 0; i < 16; i++)
		sixteen.versions[i] = 2;
	seventeen = sixteen;
	seventeen.versions[16] = 2;
	before = bytes_given(&lab);
	root = build(&lab, &universe, &sixteen);
	leaf_bytes = bytes_given(&lab) - before;
	before = bytes_given(&lab);
	next = apply(&lab, &universe, &root, &sixteen, &seventeen, false);
	assert_in_range(bytes_given(&lab) - before, 1, leaf_bytes / 2);
	check_tree(&lab, &universe, &seventeen, &next);
	free(universe.names);
	lab_close(&lab);
}

/* -- refused edits -- */

struct list_edits {
	const struct tree_edit *edits;
	size_t count, at;
	int end; /* what follows the last */
};

static int next_of_list(void *context, struct tree_edit *ret_edit)
{
	struct list_edits *list = context;

	if (list->at == list->count)
		return list->end;
	*ret_edit = list->edits[list->at++];
	return 0;
}

static int apply_list(struct lab *lab, const struct tree_edit *edits, size_t count, int end)
{
	struct list_edits list = {.edits = edits, .count = count, .end = end};
	struct pointer result = pointer_none, root = pointer_none;
	int error = tree_apply(lab->odb, lab->packer, &root, next_of_list, &list, &result, NULL);

	assert_true(error == 0 || pointer_is_none(&result));
	return error;
}

static void test_refused_edits(void **state)
{
	struct lab lab;
	struct tree_entry good = {.attributes = {.mode = S_IFREG | 0600}}, bad = {0};
	struct tree_edit falling[] = {{"b", 1, &good}, {"a", 1, &good}};
	struct tree_edit twice[] = {{"b", 1, &good}, {"b", 1, NULL}};
	struct tree_edit dot[] = {{"..", 2, &good}};
	struct tree_edit modeless[] = {{"a", 1, &bad}};
	struct tree_entry nowhere = {.attributes = {.mode = S_IFREG | 0600},
	                             .content = {.kind = CONTENT_CHUNK, .size = 5}};
	struct tree_edit misplaced[] = {{"a", 1, &nowhere}};
	struct tree_edit fine[] = {{"a", 1, NULL}, {"b", 1, &good}};

	nowhere.content.pointer.id.bytes[0] = 1;
	nowhere.content.pointer.place.stored = 1; /* bytes of nothing */
	lab_open(&lab, 0);
	assert_int_equal(apply_list(&lab, misplaced, 1, -ERR_NOT_FOUND), -ERR_INVALID);
	assert_int_equal(apply_list(&lab, falling, 2, -ERR_NOT_FOUND), -ERR_INVALID);
	assert_int_equal(apply_list(&lab, twice, 2, -ERR_NOT_FOUND), -ERR_INVALID);
	assert_int_equal(apply_list(&lab, dot, 1, -ERR_NOT_FOUND), -ERR_BAD_NAME);
	assert_int_equal(apply_list(&lab, modeless, 1, -ERR_NOT_FOUND), -ERR_INVALID);
	assert_int_equal(apply_list(&lab, fine, 2, -ERR_NO_SPACE), -ERR_NO_SPACE);
	assert_int_equal(apply_list(&lab, fine, 2, -ERR_NOT_FOUND), 0);
	lab_close(&lab);
}

/* -- trees that lie -- */

/* A leaf of empty files named by the letters from `first` to `last`. */
static struct pointer store_leaf(struct lab *lab, char first, char last)
{
	static struct node_builder builder;
	static const uint8_t no_place[PLACE_ENCODED_BYTES];
	CLEANUP(buffer_release) struct buffer logical = {0};
	struct tree_entry entry = {.attributes = {.mode = S_IFREG | 0600}};
	struct pointer pointer;

	node_builder_start(&builder, 0);
	for (char letter = first; letter <= last; letter++) {
		CLEANUP(buffer_release) struct buffer bytes = {0};

		entry_encode_body(&bytes, &letter, 1, &entry);
		struct item item = {bytes.data, bytes.length, no_place, 1};
		assert_int_equal(node_builder_add(&builder, &item), 0);
	}
	assert_int_equal(node_builder_encode(&builder, &logical), 0);
	assert_int_equal(packer_add_record(lab->packer, RECORD_NODE, logical.data, logical.length,
	                                   builder.places.data, builder.places.length, &pointer,
	                                   NULL),
	                 0);
	node_builder_release(&builder);
	memset(&builder, 0, sizeof(builder));
	return pointer;
}

struct claim {
	struct pointer child;
	const char *last;
	uint64_t total;
};

static struct pointer store_inner(struct lab *lab, unsigned level, const struct claim *claims,
                                  size_t count)
{
	static struct node_builder builder;
	CLEANUP(buffer_release) struct buffer logical = {0};
	struct pointer pointer;

	node_builder_start(&builder, level);
	for (size_t i = 0; i < count; i++) {
		CLEANUP(buffer_release) struct buffer bytes = {0}, place = {0};

		child_encode(&bytes, claims[i].last, strlen(claims[i].last), claims[i].total,
		             &claims[i].child.id);
		place_encode(&place, &claims[i].child.place);
		struct item item = {bytes.data, bytes.length, place.data, claims[i].total};
		assert_int_equal(node_builder_add(&builder, &item), 0);
	}
	assert_int_equal(node_builder_encode(&builder, &logical), 0);
	assert_int_equal(packer_add_record(lab->packer, RECORD_NODE, logical.data, logical.length,
	                                   builder.places.data, builder.places.length, &pointer,
	                                   NULL),
	                 0);
	node_builder_release(&builder);
	memset(&builder, 0, sizeof(builder));
	return pointer;
}

static int iterate_all(struct lab *lab, const struct pointer *root, unsigned *ret_count,
                       struct message *message)
{
	struct tree_iterator *iterator;
	const struct tree_entry *entry;
	int error = tree_iterate(lab->odb, root, NULL, 0, &iterator, message);

	*ret_count = 0;
	if (error)
		return error;
	while ((error = tree_next(iterator, &entry, message)) == 0)
		++*ret_count;
	tree_iterator_free(iterator);
	return error;
}

static void assert_liar(struct lab *lab, const struct pointer *root)
{
	struct message message = {.text = ""};
	unsigned count;

	assert_int_equal(iterate_all(lab, root, &count, &message), -ERR_CORRUPT);
	assert_true(message.text[0] != '\0');
}

static void test_trees_that_lie(void **state)
{
	struct lab lab;
	struct pointer root;
	struct tree_entry *entry;
	unsigned count;

	lab_open(&lab, 0);
	struct pointer a_c = store_leaf(&lab, 'a', 'c'), d_f = store_leaf(&lab, 'd', 'f');
	struct pointer c_f = store_leaf(&lab, 'c', 'f');
	struct claim honest[] = {{a_c, "c", 3}, {d_f, "f", 3}};
	struct claim wrong_last[] = {{a_c, "c", 3}, {d_f, "g", 3}};
	struct claim wrong_total[] = {{a_c, "c", 3}, {d_f, "f", 4}};
	struct claim overlap[] = {{a_c, "c", 3}, {c_f, "f", 4}};
	struct claim missing[] = {{a_c, "c", 3}, {d_f, "f", 3}};

	random_bytes(missing[1].child.id.bytes, ID_BYTES);
	random_bytes(missing[1].child.place.pack, PACK_ID_BYTES);
	root = store_inner(&lab, 1, honest, 2);
	assert_int_equal(iterate_all(&lab, &root, &count, NULL), -ERR_NOT_FOUND);
	assert_int_equal(count, 6);
	struct pointer inner = root;
	root = store_inner(&lab, 1, wrong_last, 2);
	assert_liar(&lab, &root);
	root = store_inner(&lab, 1, wrong_total, 2);
	assert_liar(&lab, &root);
	root = store_inner(&lab, 1, overlap, 2);
	assert_liar(&lab, &root);
	root = store_inner(&lab, 2, honest, 2); /* levels fall by two */
	assert_liar(&lab, &root);
	root = store_inner(&lab, 1, honest, 1);
	assert_liar(&lab, &root);
	/* The overlap is two levels apart. */
	struct claim deep[] = {{store_inner(&lab, 1, honest, 2), "f", 6},
	                       {store_inner(&lab, 1, honest + 1, 1), "f", 3}};
	deep[0].child = store_inner(&lab, 1, honest, 1);
	deep[0].last = "c";
	deep[0].total = 3;
	root = store_inner(&lab, 2, deep, 2);
	assert_int_equal(iterate_all(&lab, &root, &count, NULL), -ERR_NOT_FOUND);
	struct claim inside[] = {{c_f, "f", 4}};
	deep[1] = (struct claim){store_inner(&lab, 1, inside, 1), "f", 4};
	root = store_inner(&lab, 2, deep, 2);
	assert_liar(&lab, &root);
	/* What is missing from the store is damage, not an absent name. */
	root = store_inner(&lab, 1, missing, 2);
	assert_liar(&lab, &root);
	assert_int_equal(tree_lookup(lab.odb, &root, "e", 1, &entry, NULL), -ERR_CORRUPT);
	struct tree_diff *diff;
	struct tree_change change;
	assert_int_equal(tree_diff_new(lab.odb, &inner, &root, &diff), 0);
	assert_int_equal(tree_diff_next(diff, &change, NULL), -ERR_CORRUPT);
	tree_diff_free(diff);
	lab_close(&lab);
}

/* -- size: a million entries -- */

#define MILLION 1000000u

struct numbers {
	uint32_t at, end, step;
	uint32_t version;
	char name[32];
	struct tree_entry entry;
};

static int next_number(void *context, struct tree_edit *ret_edit)
{
	struct numbers *numbers = context;
	struct tree_entry *entry = &numbers->entry;

	if (numbers->at >= numbers->end)
		return -ERR_NOT_FOUND;
	size_t length = (size_t)snprintf(numbers->name, sizeof(numbers->name), "part-%07u.parquet",
	                                 numbers->at);
	*entry = (struct tree_entry){
	        .attributes = {.mode = S_IFREG | 0644, .uid = 1000, .gid = 1000},
	        .content = {.kind = CONTENT_CHUNK, .size = 1000 + numbers->version}};
	store_u64(entry->content.pointer.id.bytes, numbers->at * UINT64_C(0x9e3779b97f4a7c15) + 1);
	store_u32(entry->content.pointer.id.bytes + 8, numbers->version);
	entry->content.pointer.place = (struct place){.offset = 64, .stored = 9, .raw = 9};
	*ret_edit = (struct tree_edit){numbers->name, length, entry};
	numbers->at += numbers->step;
	return 0;
}

static struct pointer apply_numbers(struct lab *lab, const struct pointer *root,
                                    struct numbers numbers)
{
	struct pointer result;

	assert_int_equal(
	        tree_apply(lab->odb, lab->packer, root, next_number, &numbers, &result, NULL), 0);
	return result;
}

static int count_node(void *context, enum record_kind kind, const struct pointer *pointer)
{
	assert_int_equal(kind, RECORD_NODE);
	assert_false(pointer_is_none(pointer));
	++*(unsigned *)context;
	return 0;
}

static uint64_t records_read(struct lab *lab)
{
	struct odb_stats stats;

	odb_stats(lab->odb, &stats);
	return stats.cache_hits + stats.cache_misses;
}

static void test_a_million_entries(void **state)
{
	struct lab lab;
	struct pointer root, changed;
	struct tree_diff *diff;
	struct tree_change change;
	unsigned nodes = 0, changes = 0;
	uint64_t before, given;
	struct packer_stats stats;

	lab_open(&lab, 256u << 20);
	root = apply_numbers(&lab, &pointer_none, (struct numbers){.end = MILLION, .step = 1});
	assert_int_equal(tree_walk(lab.odb, &root, count_node, &nodes, NULL), 0);
	assert_in_range(nodes, MILLION / 200, MILLION / 100);
	before = records_read(&lab);
	given = bytes_given(&lab);
	changed = apply_numbers(
	        &lab, &root,
	        (struct numbers){.at = 50000, .end = MILLION, .step = 100000, .version = 1});
	/* Three levels, ten times; a merge may run on past its first node. */
	assert_in_range(records_read(&lab) - before, 10, 80);
	packer_stats(lab.packer, &stats);
	assert_in_range(bytes_given(&lab) - given, 1, 80 * (64u << 10));
	before = records_read(&lab);
	assert_int_equal(tree_diff_new(lab.odb, &root, &changed, &diff), 0);
	while (tree_diff_next(diff, &change, NULL) == 0) {
		assert_true(change.before && change.after);
		assert_int_equal(change.after->content.size, 1001);
		changes++;
	}
	tree_diff_free(diff);
	assert_int_equal(changes, 10);
	assert_in_range(records_read(&lab) - before, 10, 80);
	lab_close(&lab);
}

/* Ids are for ever: this one changes only with the version of the format. */
static void test_ids_are_stable(void **state)
{
	struct lab lab;
	struct pointer root;
	char hex[ID_HEX + 1];

	lab_open(&lab, 0);
	root = apply_numbers(&lab, &pointer_none, (struct numbers){.end = 30000, .step = 1});
	id_to_hex(&root.id, hex);
	assert_string_equal(hex,
	                    "71f7754b4b98c52c42b236a3d98980c1beb5497c004e797260a8fe6714ae714e");
	lab_close(&lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_numbered_names),
	        cmocka_unit_test(test_random_names),
	        cmocka_unit_test(test_long_names),
	        cmocka_unit_test(test_boundary_names),
	        cmocka_unit_test(test_no_boundary_names),
	        cmocka_unit_test(test_huge_xattrs),
	        cmocka_unit_test(test_collapse_to_any_leaf),
	        cmocka_unit_test(test_append_after_full_leaf),
	        cmocka_unit_test(test_refused_edits),
	        cmocka_unit_test(test_trees_that_lie),
	        cmocka_unit_test(test_a_million_entries),
	        cmocka_unit_test(test_ids_are_stable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
