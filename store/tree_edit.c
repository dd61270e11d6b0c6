/*
 * tree_edit — hides how edits become new nodes: tree_apply.
 *
 * Level by level from the leaves. On each level, for as long as there are edits: find the node
 * that the next edit falls into, merge entries and edits from that node's start on, and stop
 * where a new node and an old one end together; everything from there to the next edit is as it
 * was and stays unread. The nodes so replaced are the edits of the level above.
 *
 * Invariants:
 *   (1) A boundary depends on nothing before its node's start. So merging from an old node's
 *       start to a common end gives exactly the nodes a build from scratch would.
 *   (2) An edit that changes nothing starts no merge; a node that comes out as it was is not
 *       stored again. So a no-op writes nothing and yields the same root.
 *   (3) After the leaf level `total` is the new directory's count; an inner node with one child
 *       that stands for all of it is never made: that child is the root.
 */
#include "store/tree_internal.h"

#include <assert.h>

struct edit {
	bool removal; /* item holds a name only */
	struct item item;
};

/* Items one after another, for reading once: u64 total, place, u32 length + bytes. */
struct item_list {
	struct buffer bytes;
	size_t at;
};

struct apply {
	struct odb *odb;
	struct packer *packer;
	struct message *message;
	const struct pointer *old_root;
	struct cursor
	        old;  /* while merging: top is a node of `level`, index the next entry to take */
	bool has_old; /* the old tree reaches up to `level` */
	unsigned level;
	uint64_t total;

	/* The edits of this level; those of level 0 come from the caller and are encoded here. */
	tree_edit_fn *next_edit;
	void *context;
	struct buffer encoded;
	struct buffer encoded_place;
	struct item_list removed, added;
	struct edit edit; /* the next one, borrowed from the above */
	bool has_edit;

	struct item_list next_removed, next_added; /* for the level above */
	struct node_builder builder;
	struct buffer logical;
	struct buffer child;
	struct pointer root;
	bool done; /* `root` is the result */
};

static void apply_release(struct apply *apply)
{
	cursor_close(&apply->old);
	buffer_release(&apply->encoded);
	buffer_release(&apply->encoded_place);
	buffer_release(&apply->removed.bytes);
	buffer_release(&apply->added.bytes);
	buffer_release(&apply->next_removed.bytes);
	buffer_release(&apply->next_added.bytes);
	node_builder_release(&apply->builder);
	buffer_release(&apply->logical);
	buffer_release(&apply->child);
}

static int compare_items(const struct item *a, const struct item *b)
{
	return name_compare(item_name(a), item_name_length(a), item_name(b), item_name_length(b));
}

/* -- lists of replaced and new nodes -- */

static int list_append(struct item_list *list, const struct item *item)
{
	buffer_u64(&list->bytes, item->total);
	buffer_append(&list->bytes, item->place, PLACE_ENCODED_BYTES);
	buffer_string(&list->bytes, item->bytes, item->length);
	return buffer_check(&list->bytes);
}

/* False at the end. *ret_next is where the list continues. */
static bool list_peek(const struct item_list *list, struct item *ret_item, size_t *ret_next)
{
	struct reader reader;

	if (list->at == list->bytes.length)
		return false;
	reader = reader_of(list->bytes.data + list->at, list->bytes.length - list->at);
	ret_item->total = read_u64(&reader);
	ret_item->place = read_bytes(&reader, PLACE_ENCODED_BYTES);
	ret_item->bytes = read_string(&reader, RECORD_RAW_MAX, &ret_item->length);
	assert(!reader.failed);
	*ret_next = list->bytes.length - reader_left(&reader);
	return true;
}

static void list_clear(struct item_list *list)
{
	buffer_clear(&list->bytes);
	list->at = 0;
}

/* -- the edits of a level -- */

static int check_edit(const struct apply *apply, const struct tree_edit *edit)
{
	const struct buffer *previous = &apply->encoded;
	int error = name_check(edit->name, edit->name_length);

	if (error)
		return fail(apply->message, error, "not a name for a directory entry");
	if (previous->length > 0 &&
	    name_compare((const char *)previous->data + 1, previous->data[0], edit->name,
	                 edit->name_length) >= 0)
		return fail(apply->message, -ERR_INVALID, "edits are not in order at '%.*s'",
		            (int)edit->name_length, edit->name);
	if (edit->entry && entry_check(edit->entry))
		return fail(apply->message, -ERR_INVALID,
		            "'%.*s' is not an entry that can be stored", (int)edit->name_length,
		            edit->name);
	return 0;
}

static int fetch_caller_edit(struct apply *apply)
{
	static const uint8_t no_place[PLACE_ENCODED_BYTES];
	struct tree_edit edit = {0};
	struct reader reader;
	struct place place;
	int error = apply->next_edit(apply->context, &edit);

	apply->has_edit = false;
	if (error)
		return error == -ERR_NOT_FOUND ? 0 : error;
	error = check_edit(apply, &edit);
	if (error)
		return error;
	buffer_clear(&apply->encoded);
	buffer_clear(&apply->encoded_place);
	if (edit.entry) {
		entry_encode_body(&apply->encoded, edit.name, edit.name_length, edit.entry);
	} else {
		buffer_u8(&apply->encoded, (uint8_t)edit.name_length);
		buffer_append(&apply->encoded, edit.name, edit.name_length);
	}
	buffer_append(&apply->encoded_place, no_place, sizeof(no_place));
	if (edit.entry && entry_has_id(edit.entry)) {
		buffer_clear(&apply->encoded_place);
		place_encode(&apply->encoded_place, &edit.entry->content.pointer.place);
	}
	error = buffer_check(&apply->encoded);
	if (!error)
		error = buffer_check(&apply->encoded_place);
	if (error)
		return error;
	/* A place that no reader would accept would make the whole node unreadable. */
	reader = reader_of(apply->encoded_place.data, apply->encoded_place.length);
	place_decode(&reader, &place);
	if (reader_finish(&reader))
		return fail(apply->message, -ERR_INVALID,
		            "'%.*s' has its content in no valid place", (int)edit.name_length,
		            edit.name);
	apply->edit = (struct edit){.removal = !edit.entry,
	                            .item = {.bytes = apply->encoded.data,
	                                     .length = apply->encoded.length,
	                                     .place = apply->encoded_place.data,
	                                     .total = 1}};
	apply->has_edit = true;
	return 0;
}

/* A node replaced by one that has the same last name is one edit: the new one. */
static void fetch_node_edit(struct apply *apply)
{
	struct item removed, added;
	size_t after_removed, after_added;
	bool has_removed = list_peek(&apply->removed, &removed, &after_removed);
	bool has_added = list_peek(&apply->added, &added, &after_added);
	int order = 0;

	apply->has_edit = has_removed || has_added;
	if (has_removed && has_added)
		order = compare_items(&removed, &added);
	if (has_removed && (!has_added || order <= 0)) {
		apply->removed.at = after_removed;
		apply->edit = (struct edit){.removal = true, .item = removed};
	}
	if (has_added && (!has_removed || order >= 0)) {
		apply->added.at = after_added;
		apply->edit = (struct edit){.removal = false, .item = added};
	}
}

static int fetch_edit(struct apply *apply)
{
	if (apply->level == 0)
		return fetch_caller_edit(apply);
	fetch_node_edit(apply);
	return 0;
}

/* -- finished nodes -- */

static void item_pointer(const struct item *item, struct pointer *ret_pointer)
{
	struct reader reader = reader_of(item->place, PLACE_ENCODED_BYTES);

	place_decode(&reader, &ret_pointer->place);
	memcpy(ret_pointer->id.bytes, item->bytes + item->length - ID_BYTES, ID_BYTES);
}

/* The old node at the cursor, when it has these very bytes. */
static bool same_as_old(struct apply *apply, struct pointer *ret_pointer)
{
	struct cursor *old = &apply->old;
	const struct record *record;
	struct frame *above;

	if (!apply->has_old)
		return false;
	record = cursor_top(old)->node.record;
	if (record->logical_length != apply->logical.length ||
	    memcmp(record->logical, apply->logical.data, apply->logical.length) != 0)
		return false;
	if (old->depth == 1) {
		*ret_pointer = *apply->old_root;
	} else {
		above = &old->frames[old->depth - 2];
		node_child(&above->node, above->index, ret_pointer);
	}
	return true;
}

/* An old node that has become the whole directory may be the short last one of its level, with a
 * single child. A new one cannot: see invariant 3. */
static int collapse_root(struct apply *apply)
{
	struct node node = {0};
	int error = 0;

	for (unsigned level = apply->level - 1; level > 0; level--) {
		error = node_open(apply->odb, &apply->root, &node, apply->message);
		if (error || node.count > 1)
			break;
		node_child(&node, 0, &apply->root);
		node_close(&node);
	}
	node_close(&node);
	return error;
}

static int finish_node(struct apply *apply)
{
	struct node_builder *builder = &apply->builder;
	struct pointer pointer;
	struct item last;
	int error;

	node_builder_last(builder, &last);
	if (builder->level > 0 && builder->count == 1 && last.total == apply->total) {
		item_pointer(&last, &apply->root);
		apply->done = true;
		return apply->added.bytes.length == 0 ? collapse_root(apply) : 0;
	}
	error = node_builder_encode(builder, &apply->logical);
	if (!error && !same_as_old(apply, &pointer))
		error = packer_add_record(apply->packer, RECORD_NODE, apply->logical.data,
		                          apply->logical.length, builder->places.data,
		                          builder->places.length, &pointer, apply->message);
	if (error)
		return error;
	/* Listed even when it is as it was: the level above may not exist yet. */
	buffer_clear(&apply->child);
	child_encode(&apply->child, item_name(&last), item_name_length(&last), builder->total,
	             &pointer.id);
	place_encode(&apply->child, &pointer.place);
	error = buffer_check(&apply->child);
	if (error)
		return error;
	size_t length = apply->child.length - PLACE_ENCODED_BYTES;
	struct item child = {.bytes = apply->child.data,
	                     .length = length,
	                     .place = apply->child.data + length,
	                     .total = builder->total};
	error = list_append(&apply->next_added, &child);
	node_builder_start(builder, apply->level);
	return error;
}

/* -- merging -- */

static bool at_last_old_node(const struct apply *apply)
{
	for (unsigned depth = 0; depth + 1 < apply->old.depth; depth++) {
		const struct frame *frame = &apply->old.frames[depth];

		if (frame->index + 1 < frame->node.count)
			return false;
	}
	return true;
}

/* Begin to take entries from the old node at the top of the cursor: it will be replaced. */
static int enter_old_node(struct apply *apply)
{
	struct frame *top = cursor_top(&apply->old);
	struct item last;

	top->index = 0;
	node_item(&top->node, top->node.count - 1, &last);
	return list_append(&apply->next_removed, &last);
}

static int next_old_node(struct apply *apply)
{
	int error;

	cursor_top(&apply->old)->index--; /* cursor_skip moves on by itself */
	cursor_skip(&apply->old);
	error = cursor_descend_to(&apply->old, apply->level, apply->message);
	return error ? error : enter_old_node(apply);
}

static int add_item(struct apply *apply, const struct item *item)
{
	int error = node_builder_add(&apply->builder, item);

	if (!error && apply->builder.full)
		error = finish_node(apply);
	return error;
}

/* Take the lesser of the next old entry and the next edit; the edit when their names are equal. */
static int merge_one(struct apply *apply, bool old_left)
{
	struct frame *top = old_left ? cursor_top(&apply->old) : NULL;
	struct item old;
	int order = 1, error = 0; /* of the old entry against the edit */

	if (old_left) {
		node_item(&top->node, top->index, &old);
		order = apply->has_edit ? compare_items(&old, &apply->edit.item) : -1;
		if (order <= 0)
			top->index++;
	}
	if (order < 0)
		return add_item(apply, &old);
	if (apply->level == 0) {
		apply->total += order > 0 && !apply->edit.removal;
		apply->total -= order == 0 && apply->edit.removal;
	}
	if (!apply->edit.removal)
		error = add_item(apply, &apply->edit.item);
	return error ? error : fetch_edit(apply);
}

/* From the start of the old node at the cursor to where an old node and a new one end together. */
static int merge_run(struct apply *apply)
{
	struct frame *top;
	bool old_left;
	int error = apply->has_old ? enter_old_node(apply) : 0;

	while (!error && !apply->done) {
		top = apply->has_old ? cursor_top(&apply->old) : NULL;
		old_left = top && top->index < top->node.count;
		if (!old_left && (!top || at_last_old_node(apply))) {
			if (!apply->has_edit)
				break;
		} else if (!old_left) {
			if (apply->builder.count == 0)
				break;
			error = next_old_node(apply);
			continue;
		}
		error = merge_one(apply, old_left);
	}
	if (!error && !apply->done && apply->builder.count > 0)
		error = finish_node(apply);
	return error;
}

/* Move the old cursor to the next edit; say whether the edit changes anything there. */
static int seek_edit(struct apply *apply, bool *ret_changes)
{
	const struct edit *edit = &apply->edit;
	struct frame *top;
	struct item old;
	int error;

	*ret_changes = !edit->removal;
	if (!apply->has_old)
		return 0;
	error = cursor_seek(&apply->old, item_name(&edit->item), item_name_length(&edit->item),
	                    false, true, apply->level, apply->message);
	if (error)
		return error;
	top = cursor_top(&apply->old);
	if (top->index == top->node.count)
		return 0;
	node_item(&top->node, top->index, &old);
	if (compare_items(&old, &edit->item) == 0)
		*ret_changes = edit->removal || old.length != edit->item.length ||
		               memcmp(old.bytes, edit->item.bytes, old.length) != 0;
	return 0;
}

static int apply_level(struct apply *apply)
{
	bool changes;
	int error;

	node_builder_start(&apply->builder, apply->level);
	error = fetch_edit(apply);
	while (!error && apply->has_edit && !apply->done) {
		error = seek_edit(apply, &changes);
		if (!error)
			error = changes ? merge_run(apply) : fetch_edit(apply);
	}
	return error;
}

static int apply_levels(struct apply *apply)
{
	unsigned height = apply->old.depth > 0 ? apply->old.frames[0].node.level : 0;
	struct item_list swapped;
	int error;

	for (;; apply->level++) {
		if (apply->level > NODE_LEVEL_MAX)
			return fail(apply->message, -ERR_TOO_LARGE, "tree with too many levels");
		apply->has_old = apply->old.depth > 0 && apply->level <= height;
		error = apply_level(apply);
		if (error || apply->done)
			return error;
		if (apply->total == 0)
			return 0;
		if (apply->next_removed.bytes.length == 0 && apply->next_added.bytes.length == 0) {
			apply->root = *apply->old_root;
			return 0;
		}
		swapped = apply->removed;
		apply->removed = apply->next_removed;
		apply->next_removed = swapped;
		swapped = apply->added;
		apply->added = apply->next_added;
		apply->next_added = swapped;
		list_clear(&apply->next_removed);
		list_clear(&apply->next_added);
	}
}

int tree_apply(struct odb *odb, struct packer *packer, const struct pointer *root,
               tree_edit_fn *next_edit, void *context, struct pointer *ret_root,
               struct message *message)
{
	CLEANUP(apply_release)
	struct apply apply = {.odb = odb,
	                      .packer = packer,
	                      .message = message,
	                      .old_root = root,
	                      .next_edit = next_edit,
	                      .context = context,
	                      .root = pointer_none};
	int error = cursor_open(&apply.old, odb, root, message);

	if (error)
		return error;
	if (apply.old.depth > 0)
		apply.total = apply.old.frames[0].node.total;
	error = apply_levels(&apply);
	if (!error)
		*ret_root = apply.root;
	return error;
}
