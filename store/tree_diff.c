/*
 * tree_diff — hides how two trees are compared without reading what they share.
 *
 * Two cursors; all before them is dealt with. Each stands at the largest subtree that starts
 * there. Equal ids: both skip, unread. Otherwise the higher one descends, both when level, until
 * single entries are compared by name. Because boundaries are content-defined the cursors fall
 * into step again soon after a change, so the cost is O(changes * log n).
 */
#include "store/tree_internal.h"

struct tree_diff {
	struct odb *odb;
	struct pointer roots[2]; /* before, after */
	struct cursor cursors[2];
	bool opened;
	bool yielded[2]; /* the cursor stands at the entry that is lent out */
	struct tree_entry entries[2];
};

int tree_diff_new(struct odb *odb, const struct pointer *before, const struct pointer *after,
                  struct tree_diff **ret_diff)
{
	struct tree_diff *diff = calloc(1, sizeof(*diff));

	if (!diff)
		return -ERR_NO_MEMORY;
	diff->odb = odb;
	diff->roots[0] = *before;
	diff->roots[1] = *after;
	*ret_diff = diff;
	return 0;
}

void tree_diff_free(struct tree_diff *diff)
{
	if (!diff)
		return;
	cursor_close(&diff->cursors[0]);
	cursor_close(&diff->cursors[1]);
	free(diff);
}

static int open_roots(struct tree_diff *diff, struct message *message)
{
	int error;

	if (id_equal(&diff->roots[0].id, &diff->roots[1].id))
		return -ERR_NOT_FOUND;
	for (int side = 0; side < 2; side++) {
		cursor_close(&diff->cursors[side]);
		error = cursor_open(&diff->cursors[side], diff->odb, &diff->roots[side], message);
		if (error)
			return error;
	}
	diff->opened = true;
	return 0;
}

/* Bring both cursors down to the same level, and to single entries unless there they stand at
 * equal subtrees. One that is at its end makes the other go down to single entries. */
static int descend(struct tree_diff *diff, struct message *message)
{
	struct cursor *cursors = diff->cursors;
	unsigned levels[2], lowest;
	int error;

	for (int side = 0; side < 2; side++)
		levels[side] = cursors[side].depth > 0 ? cursor_top(&cursors[side])->node.level : 0;
	lowest = levels[0] < levels[1] ? levels[0] : levels[1];
	/* Already level, and not equal. */
	if (levels[0] == levels[1])
		lowest--;
	for (int side = 0; side < 2; side++) {
		error = cursor_descend_to(&cursors[side], lowest, message);
		if (error)
			return error;
	}
	return 0;
}

/* Whether both stand at something whose bytes (of an inner entry: the id) are the same. */
static bool stand_at_equals(struct tree_diff *diff)
{
	struct frame *before = cursor_top(&diff->cursors[0]),
	             *after = cursor_top(&diff->cursors[1]);
	struct item a, b;

	if (before->node.level != after->node.level)
		return false;
	node_item(&before->node, before->index, &a);
	node_item(&after->node, after->index, &b);
	return a.length == b.length && memcmp(a.bytes, b.bytes, a.length) == 0;
}

static bool at_entries(struct tree_diff *diff)
{
	for (int side = 0; side < 2; side++)
		if (diff->cursors[side].depth > 0 &&
		    cursor_top(&diff->cursors[side])->node.level > 0)
			return false;
	return true;
}

/* Lend out the lesser of the two entries, both when their names are equal. */
static void yield(struct tree_diff *diff, struct tree_change *ret_change)
{
	struct tree_entry *entries = diff->entries;
	bool there[2];
	int order = 0;

	for (int side = 0; side < 2; side++) {
		struct cursor *cursor = &diff->cursors[side];

		there[side] = cursor->depth > 0;
		if (there[side])
			node_entry(&cursor_top(cursor)->node, cursor_top(cursor)->index,
			           &entries[side]);
	}
	if (there[0] && there[1])
		order = name_compare(entries[0].name, entries[0].name_length, entries[1].name,
		                     entries[1].name_length);
	diff->yielded[0] = there[0] && (!there[1] || order <= 0);
	diff->yielded[1] = there[1] && (!there[0] || order >= 0);
	ret_change->before = diff->yielded[0] ? &entries[0] : NULL;
	ret_change->after = diff->yielded[1] ? &entries[1] : NULL;
}

int tree_diff_next(struct tree_diff *diff, struct tree_change *ret_change, struct message *message)
{
	struct cursor *cursors = diff->cursors;
	int error;

	if (!diff->opened) {
		error = open_roots(diff, message);
		if (error)
			return error;
	}
	for (int side = 0; side < 2; side++) {
		if (diff->yielded[side])
			cursor_skip(&cursors[side]);
		diff->yielded[side] = false;
	}
	while (cursors[0].depth > 0 || cursors[1].depth > 0) {
		if (cursors[0].depth > 0 && cursors[1].depth > 0 && stand_at_equals(diff)) {
			cursor_skip(&cursors[0]);
			cursor_skip(&cursors[1]);
		} else if (at_entries(diff)) {
			yield(diff, ret_change);
			return 0;
		} else {
			error = descend(diff, message);
			if (error)
				return error;
		}
	}
	return -ERR_NOT_FOUND;
}
