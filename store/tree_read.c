/*
 * tree_read — hides the way from a root to an entry: cursors, and reading through them.
 *
 * A node alone is validated by node_open; what only two nodes together can get wrong (a child
 * that is not what its parent says, names outside the parent's range, levels that do not fall) is
 * checked on every descent, at O(1). Damaged trees therefore end in -ERR_CORRUPT, never in a
 * loop, and never in names out of order.
 */
#include "store/tree_internal.h"

int cursor_open(struct cursor *cursor, struct odb *odb, const struct pointer *root,
                struct message *message)
{
	struct node node;
	int error;

	cursor->odb = odb;
	cursor->depth = 0;
	if (pointer_is_none(root))
		return 0;
	error = node_open(odb, root, &node, message);
	if (error)
		return error;
	if (node.level > 0 && node.count == 1) {
		node_close(&node);
		return fail(message, -ERR_CORRUPT, "tree root with a single child");
	}
	cursor->frames[0] = (struct frame){.node = node};
	cursor->depth = 1;
	return 0;
}

static void truncate_to(struct cursor *cursor, unsigned depth)
{
	while (cursor->depth > depth)
		node_close(&cursor->frames[--cursor->depth].node);
}

void cursor_close(struct cursor *cursor)
{
	truncate_to(cursor, 0);
}

/* Whether `child` is what the entry at the cursor's position says. */
static bool child_fits(struct cursor *cursor, const struct node *child)
{
	struct frame *frame = cursor_top(cursor);
	struct item said, first, last, before;

	node_item(&frame->node, frame->index, &said);
	node_item(child, 0, &first);
	node_item(child, child->count - 1, &last);
	if (child->level + 1 != frame->node.level || child->total != said.total)
		return false;
	if (name_compare(item_name(&said), item_name_length(&said), item_name(&last),
	                 item_name_length(&last)) != 0)
		return false;
	/* The name just before the child is in the nearest ancestor that has one before. */
	while (frame->index == 0) {
		if (frame == cursor->frames)
			return true;
		frame--;
	}
	node_item(&frame->node, frame->index - 1, &before);
	return name_compare(item_name(&before), item_name_length(&before), item_name(&first),
	                    item_name_length(&first)) < 0;
}

int cursor_descend(struct cursor *cursor, struct message *message)
{
	struct frame *top = cursor_top(cursor);
	struct pointer pointer;
	struct node child;
	char hex[ID_HEX + 1];
	int error;

	/* Levels fall by one from at most NODE_LEVEL_MAX, so a frame is free. */
	node_child(&top->node, top->index, &pointer);
	error = node_open(cursor->odb, &pointer, &child, message);
	if (error)
		return error;
	if (!child_fits(cursor, &child)) {
		node_close(&child);
		id_to_hex(&pointer.id, hex);
		return fail(message, -ERR_CORRUPT, "tree node %s does not fit its parent", hex);
	}
	cursor->frames[cursor->depth++] = (struct frame){.node = child};
	return 0;
}

int cursor_descend_to(struct cursor *cursor, unsigned level, struct message *message)
{
	while (cursor->depth > 0 && cursor_top(cursor)->node.level > level) {
		int error = cursor_descend(cursor, message);

		if (error)
			return error;
	}
	return 0;
}

void cursor_skip(struct cursor *cursor)
{
	while (cursor->depth > 0) {
		struct frame *top = cursor_top(cursor);

		if (++top->index < top->node.count)
			return;
		truncate_to(cursor, cursor->depth - 1);
	}
}

int cursor_seek(struct cursor *cursor, const char *name, size_t length, bool after, bool clamp,
                unsigned level, struct message *message)
{
	for (unsigned depth = 0;; depth++) {
		struct frame *frame = &cursor->frames[depth];
		uint32_t index = node_find(&frame->node, name, length, after);
		int error;

		if (frame->node.level == level || (index == frame->node.count && !clamp)) {
			truncate_to(cursor, depth + 1);
			frame->index = index;
			return 0;
		}
		if (index == frame->node.count)
			index--;
		if (cursor->depth > depth + 1 && frame->index == index)
			continue;
		truncate_to(cursor, depth + 1);
		frame->index = index;
		error = cursor_descend(cursor, message);
		if (error)
			return error;
	}
}

int tree_lookup(struct odb *odb, const struct pointer *root, const char *name, size_t name_length,
                struct tree_entry **ret_entry, struct message *message)
{
	CLEANUP(cursor_close) struct cursor cursor = {0};
	struct tree_entry entry, *copy;
	struct frame *top;
	int error;

	error = cursor_open(&cursor, odb, root, message);
	if (error)
		return error;
	if (cursor.depth == 0)
		return -ERR_NOT_FOUND;
	error = cursor_seek(&cursor, name, name_length, false, false, 0, message);
	if (error)
		return error;
	top = cursor_top(&cursor);
	if (top->index == top->node.count)
		return -ERR_NOT_FOUND;
	node_entry(&top->node, top->index, &entry);
	if (name_compare(name, name_length, entry.name, entry.name_length) != 0)
		return -ERR_NOT_FOUND;
	copy = tree_entry_copy(&entry);
	if (!copy)
		return -ERR_NO_MEMORY;
	*ret_entry = copy;
	return 0;
}

int tree_count(struct odb *odb, const struct pointer *root, uint64_t *ret_count,
               struct message *message)
{
	CLEANUP(cursor_close) struct cursor cursor = {0};
	int error = cursor_open(&cursor, odb, root, message);

	if (error)
		return error;
	*ret_count = cursor.depth > 0 ? cursor.frames[0].node.total : 0;
	return 0;
}

/* -- iterating -- */

struct tree_iterator {
	struct cursor cursor; /* stands at the entry tree_next yields next */
	struct tree_entry entry;
	bool yielded; /* `entry` is borrowed: the cursor stands at it still */
};

int tree_iterate(struct odb *odb, const struct pointer *root, const char *after,
                 size_t after_length, struct tree_iterator **ret_iterator, struct message *message)
{
	struct tree_iterator *iterator = calloc(1, sizeof(*iterator));
	struct frame *top;
	int error;

	if (!iterator)
		return -ERR_NO_MEMORY;
	error = cursor_open(&iterator->cursor, odb, root, message);
	if (!error && after_length > 0 && iterator->cursor.depth > 0) {
		error = cursor_seek(&iterator->cursor, after, after_length, true, false, 0,
		                    message);
		top = cursor_top(&iterator->cursor);
		if (!error && top->index == top->node.count)
			cursor_close(&iterator->cursor);
	}
	if (error) {
		tree_iterator_free(iterator);
		return error;
	}
	*ret_iterator = iterator;
	return 0;
}

int tree_next(struct tree_iterator *iterator, const struct tree_entry **ret_entry,
              struct message *message)
{
	struct cursor *cursor = &iterator->cursor;
	int error;

	if (iterator->yielded)
		cursor_skip(cursor);
	iterator->yielded = false;
	error = cursor_descend_to(cursor, 0, message);
	if (error)
		return error;
	if (cursor->depth == 0)
		return -ERR_NOT_FOUND;
	node_entry(&cursor_top(cursor)->node, cursor_top(cursor)->index, &iterator->entry);
	iterator->yielded = true;
	*ret_entry = &iterator->entry;
	return 0;
}

void tree_iterator_free(struct tree_iterator *iterator)
{
	if (!iterator)
		return;
	cursor_close(&iterator->cursor);
	free(iterator);
}

/* -- walking -- */

int tree_walk(struct odb *odb, const struct pointer *root, pointer_fn *callback, void *context,
              struct message *message)
{
	CLEANUP(cursor_close) struct cursor cursor = {0};
	struct pointer pointer;
	int error;

	if (pointer_is_none(root))
		return 0;
	error = callback(context, RECORD_NODE, root);
	if (error)
		return error;
	error = cursor_open(&cursor, odb, root, message);
	if (error || cursor.frames[0].node.level == 0)
		return error;
	while (cursor.depth > 0) {
		node_child(&cursor_top(&cursor)->node, cursor_top(&cursor)->index, &pointer);
		error = callback(context, RECORD_NODE, &pointer);
		if (error)
			return error;
		/* Leaves are known without being read. */
		if (cursor_top(&cursor)->node.level == 1) {
			cursor_skip(&cursor);
			continue;
		}
		error = cursor_descend(&cursor, message);
		if (error)
			return error;
	}
	return 0;
}
