/*
 * tree_internal — what the tree_*.c files share: entries and nodes as bytes, cursors over nodes.
 * Include it nowhere else (tests excepted).
 *
 * Entries are handled as the bytes they are stored as. The encoding is canonical, so two entries
 * are equal in everything but places exactly when their bytes are.
 * Format: store/README.md, "Tree nodes".
 */
#ifndef STORE_TREE_INTERNAL_H
#define STORE_TREE_INTERNAL_H

#include "store/tree.h"

#define NODE_VERSION 1
#define NODE_HEADER_BYTES 16
#define NODE_LEVEL_MAX 15 /* NODE_ENTRIES_MIN to this power exceeds any count we can hold */
#define NODE_ENTRIES_MIN 16
#define NODE_ENTRIES_MAX 512
#define NODE_BYTES_FULL (128u << 10) /* offsets and entries, so a node may end above this */
#define NODE_BOUNDARY_BITS 7         /* one name in 2^7 ends a node */

/* -- entries as bytes (tree_entry.c). An item is any entry of a node: name first -- */
struct item {
	const uint8_t *bytes; /* u8 name length, name, NUL, ... */
	size_t length;
	const uint8_t *place; /* PLACE_ENCODED_BYTES; all zero where the entry has no id */
	uint64_t total;       /* entries of the directory that it stands for: 1 in a leaf */
};
static inline const char *item_name(const struct item *item)
{
	return (const char *)item->bytes + 1;
}
static inline size_t item_name_length(const struct item *item)
{
	return item->bytes[0];
}

/* Byte order, a prefix before what it is a prefix of. */
int name_compare(const char *a, size_t a_length, const char *b, size_t b_length);
/* What name_check says, as -ERR_INVALID, and everything else a stored entry must satisfy. */
int entry_check(const struct tree_entry *entry);
/* The entry under `name` (entry->name is not looked at), without its place. */
void entry_encode_body(struct buffer *buffer, const char *name, size_t name_length,
                       const struct tree_entry *entry);
/* Borrows from the input; content.pointer.place is left zero. Sets reader->failed on anything
 * that entry_encode_body would not have written. */
void entry_decode_body(struct reader *reader, struct tree_entry *ret_entry);
static inline bool entry_has_id(const struct tree_entry *entry)
{
	return !id_is_zero(&entry->content.pointer.id);
}

/* -- nodes (tree_node.c) -- */
struct node {
	struct record *record; /* owned reference; NULL: no node here */
	unsigned level;        /* 0: leaf */
	uint32_t count;        /* 1..NODE_ENTRIES_MAX */
	uint64_t total;        /* leaf entries at or below */
};

/* Whether a node of `level` that has NODE_ENTRIES_MIN entries ends after this name. */
bool name_is_boundary(const char *name, size_t length, unsigned level);

/* Check every byte: -ERR_CORRUPT, -ERR_VERSION; *ret_why says what is wrong. */
int node_validate(const uint8_t *logical, size_t logical_length, const uint8_t *places,
                  size_t places_length, const char **ret_why);
/* Read a node, validating it unless this cached record was before. */
int node_open(struct odb *odb, const struct pointer *pointer, struct node *ret_node,
              struct message *message);
void node_close(struct node *node); /* accepts zeroed; leaves it so */

/* Of a validated node; `index` < count. Borrowed from the node. */
void node_item(const struct node *node, uint32_t index, struct item *ret_item);
void node_entry(const struct node *node, uint32_t index, struct tree_entry *ret_entry);
void node_child(const struct node *node, uint32_t index, struct pointer *ret_pointer);
/* Index of the first name >= `name` (> `name` when `after`); count when there is none. */
uint32_t node_find(const struct node *node, const char *name, size_t length, bool after);

/* Builds one node at a time. Release with node_builder_release; zeroed is valid. */
struct node_builder {
	unsigned level;
	uint32_t count;
	uint64_t total;
	struct buffer entries;
	struct buffer places;
	uint32_t offsets[NODE_ENTRIES_MAX]; /* from the start of `entries` */
	bool full;                          /* the node ends here: finish it before adding more */
};
void node_builder_release(struct node_builder *builder);
void node_builder_start(struct node_builder *builder, unsigned level);
/* Names strictly ascending. Fails only on memory. */
int node_builder_add(struct node_builder *builder, const struct item *item);
/* The last item added, borrowed until the next add. */
void node_builder_last(const struct node_builder *builder, struct item *ret_item);
/* The logical bytes of a node with at least one item. */
int node_builder_encode(const struct node_builder *builder, struct buffer *ret_logical);
/* An inner entry for a child node. */
void child_encode(struct buffer *buffer, const char *last_name, size_t length, uint64_t total,
                  const struct id *id);

/*
 * cursor — a path of open nodes from the root down (tree_read.c). frames[depth - 1] is the top;
 * each frame's index is that of the child in the next frame, or the cursor's own position.
 * Invariant: every open child agrees with what its parent's entry says of it.
 */
struct cursor {
	struct odb *odb;
	unsigned depth; /* 0: empty tree, or past the end */
	struct frame {
		struct node node;
		uint32_t index;
	} frames[NODE_LEVEL_MAX + 1];
};
/* At the first entry of the root node. */
int cursor_open(struct cursor *cursor, struct odb *odb, const struct pointer *root,
                struct message *message);
void cursor_close(struct cursor *cursor); /* accepts zeroed */
static inline struct frame *cursor_top(struct cursor *cursor)
{
	return &cursor->frames[cursor->depth - 1];
}
/* Into the first entry of the child at the cursor's position (the top must be an inner node). */
int cursor_descend(struct cursor *cursor, struct message *message);
int cursor_descend_to(struct cursor *cursor, unsigned level, struct message *message);
/* Past the item at the position; up and past the parents' when a node ends. The cursor then
 * stands at the largest subtree that starts there; depth 0 at the end. */
void cursor_skip(struct cursor *cursor);
/* From the root (reusing what is open) to the node of `level`, at most the root's, that holds the
 * first name >= `name` (> when `after`). Past all names: 0 with index == count at the root when
 * `clamp` is false; else the last node, index == its count. */
int cursor_seek(struct cursor *cursor, const char *name, size_t length, bool after, bool clamp,
                unsigned level, struct message *message);

#endif
