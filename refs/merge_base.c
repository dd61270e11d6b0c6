/*
 * merge_base.c — hides from what two commits are merged: one best common ancestor, or several
 * that are merged into a virtual one first.
 *
 * After criss-cross merges there are several best common ancestors. Taking any one of them makes
 * false conflicts (a change that both sides got from the other ancestor) and, worse, can undo a
 * resolution. So, as in git's merge-recursive, the ancestors are merged with each other, from
 * their own common ancestors, recursively. BASE_MERGES_MAX bounds the work for histories that
 * criss-cross without end; beyond it the first ancestor by id is taken as it is, which can make
 * a false conflict, but never hides one.
 */
#include "refs/merge_internal.h"

#define BASE_MERGES_MAX 1000
#define BASES_MAX 16

struct finder {
	struct history *history;
	struct odb *odb;
	struct packer *packer;
	struct message *message;
	unsigned merges_left;
};

static int by_id(const void *a, const void *b)
{
	const struct pointer *left = a, *right = b;
	return memcmp(left->id.bytes, right->id.bytes, ID_BYTES);
}

static int side_of(struct finder *finder, const struct pointer *pointer,
                   struct merge_side *ret_side)
{
	CLEANUP(free_pointer) struct commit *commit = NULL;
	int error = commit_read(finder->odb, pointer, &commit, finder->message);
	if (error)
		return error;
	*ret_side = (struct merge_side){commit->tree, commit->root};
	return 0;
}

/* -- the common ancestors of a virtual commit and a real one -- */

struct pointers {
	struct pointer *items;
	size_t count;
};

static void pointers_release(struct pointers *pointers)
{
	free(pointers->items);
}

static int pointers_add_all(struct pointers *pointers, const struct pointer *items, size_t count)
{
	struct pointer *grown =
	        reallocarray(pointers->items, pointers->count + count + 1, sizeof(*grown));
	if (!grown)
		return -ERR_NO_MEMORY;
	pointers->items = grown;
	for (size_t i = 0; i < count; i++) {
		bool known = false;
		for (size_t k = 0; k < pointers->count; k++)
			known = known || id_equal(&grown[k].id, &items[i].id);
		if (!known)
			grown[pointers->count++] = items[i];
	}
	return 0;
}

/* Drop what is an ancestor of another: only the best stay. */
static int keep_best(struct finder *finder, struct pointers *pointers)
{
	size_t kept = 0;
	for (size_t i = 0; i < pointers->count; i++) {
		bool older = false;
		for (size_t k = 0; k < pointers->count && !older; k++) {
			if (k == i)
				continue;
			int error = is_ancestor(finder->history, &pointers->items[i],
			                        &pointers->items[k], &older, finder->message);
			if (error)
				return error;
		}
		/* Those dropped stay in the array behind the others: they are compared with too. */
		if (!older) {
			struct pointer best = pointers->items[i];
			pointers->items[i] = pointers->items[kept];
			pointers->items[kept++] = best;
		}
	}
	pointers->count = kept;
	return 0;
}

/* `merged` are the commits that a virtual one was made of. */
static int common(struct finder *finder, const struct pointer *merged, size_t merged_count,
                  const struct pointer *other, struct pointers *ret_common)
{
	for (size_t i = 0; i < merged_count; i++) {
		CLEANUP(free_pointer) struct pointer *bases = NULL;
		size_t count = 0;
		int error = merge_bases(finder->history, &merged[i], other, &bases, &count,
		                        finder->message);
		if (!error)
			error = pointers_add_all(ret_common, bases, count);
		if (error)
			return error;
	}
	return merged_count > 1 ? keep_best(finder, ret_common) : 0;
}

/* -- the base -- */

/* Sorts `bases`. */
static int base_of(struct finder *finder, struct pointer *bases, size_t count,
                   struct merge_side *ret_side)
{
	if (count == 0) {
		*ret_side = (struct merge_side){.tree = pointer_none};
		return 0;
	}
	qsort(bases, count, sizeof(*bases), by_id);
	if (count > BASES_MAX)
		count = BASES_MAX;
	struct merge_side side;
	int error = side_of(finder, &bases[0], &side);
	for (size_t i = 1; i < count && !error && finder->merges_left > 0; i++) {
		CLEANUP(pointers_release) struct pointers shared = {0};
		struct merge_side base, other;
		finder->merges_left--;
		error = common(finder, bases, i, &bases[i], &shared);
		if (!error)
			error = base_of(finder, shared.items, shared.count, &base);
		if (!error)
			error = side_of(finder, &bases[i], &other);
		if (!error && shared.count == 0)
			base.root = other.root;
		if (!error)
			error = merge_virtually(finder->odb, finder->packer, &base, &other, &side,
			                        &side, finder->message);
	}
	if (!error)
		*ret_side = side;
	return error;
}

/* The result is one side as it is. */
static int result_is(struct odb *odb, const struct commit *commit, const struct commit *target,
                     struct merge_result *ret_result, struct message *message)
{
	struct merge_result result = {.tree = commit->tree, .root = commit->root};
	int error = count_changes(odb, &target->tree, &commit->tree, &result.changed, message);
	if (!error)
		*ret_result = result;
	return error;
}

int merge_commits(struct history *history, struct odb *odb, struct packer *packer,
                  const struct commit *source, const struct commit *target,
                  const struct merge_options *options, struct merge_result *ret_result,
                  bool *ret_fast_forward, bool *ret_up_to_date, struct message *message)
{
	CLEANUP(free_pointer) struct pointer *bases = NULL;
	size_t count = 0;
	int error = merge_bases(history, &source->self, &target->self, &bases, &count, message);
	if (error)
		return error;
	bool takes = options && options->take_count > 0;
	bool up_to_date = count == 1 && id_equal(&bases[0].id, &source->self.id);
	/* With paths to be taken from the target the result is not the source's tree. */
	bool fast_forward =
	        !up_to_date && !takes && count == 1 && id_equal(&bases[0].id, &target->self.id);
	if (up_to_date || fast_forward) {
		*ret_up_to_date = up_to_date;
		*ret_fast_forward = fast_forward;
		CLEANUP(takes_release) struct takes given = {0};
		if (takes && takes_init(&given, options->takes, options->take_count) < 0)
			return fail(message, -ERR_NO_MEMORY, "out of memory while merging");
		error = takes_check(&given, odb, &source->tree, &target->tree, message);
		if (error)
			return error;
		return result_is(odb, fast_forward ? source : target, target, ret_result, message);
	}
	*ret_up_to_date = *ret_fast_forward = false;
	struct finder finder = {history, odb, packer, message, BASE_MERGES_MAX};
	struct merge_side base;
	struct merge_side sides[] = {{source->tree, source->root}, {target->tree, target->root}};
	error = base_of(&finder, bases, count, &base);
	if (error)
		return error;
	/* Unrelated histories: nothing is known of the root, so the target's stays. */
	if (count == 0)
		base.root = source->root;
	error = merge_trees(odb, packer, &base, &sides[0], &sides[1], options, ret_result, message);
	if (error)
		return error;
	ret_result->base = count == 1 ? bases[0].id : id_zero;
	ret_result->source = source->self.id;
	ret_result->target = target->self.id;
	return 0;
}
