/*
 * content_list — private to file content: the nodes of a file's lists, writing and reading them.
 *
 * Included only by content_list.c, content_store.c and content_read.c.
 * Format: store/README.md, "File content".
 */
#ifndef STORE_CONTENT_LIST_H
#define STORE_CONTENT_LIST_H

#include "store/chunker.h"
#include "store/content.h"

#define LIST_VERSION 1
#define LIST_HEADER_BYTES 16
#define LIST_ENTRIES_MIN \
	32u /* a node but the last of its level has at least so many: levels end \
	     */
#define LIST_ENTRIES_MAX 512u
#define LIST_BOUNDARY_MASK 127u
#define LIST_LEVELS_MAX 8u /* 33^7 > FILE_BYTES_MAX / CHUNK_BYTES_MIN */

/* A chunk or a hole at level 0, a node of the level below elsewhere. */
struct list_entry {
	uint64_t length; /* bytes of the file */
	bool hole;
	struct pointer pointer;
};
struct list_node {
	unsigned level;
	uint32_t count;
	uint64_t length;
	struct list_entry entries[];
};

/* A content comes from stored bytes: 0, or -ERR_CORRUPT when its kind and size make no sense. */
int content_check(const struct content *content, struct message *message);

/* Decode and check everything a node says by itself. The caller frees. -ERR_CORRUPT,
 * -ERR_VERSION, -ERR_NO_MEMORY. */
int list_node_decode(const struct record *record, struct list_node **ret_node);

/* -- writing: entries go in, nodes come out, by the rule that makes boundaries -- */

struct list_builder {
	struct packer *packer;
	struct list_level {
		struct list_entry *entries; /* of the node being filled */
		uint32_t count, capacity;
		uint64_t nodes; /* closed so far; at least 2 stands for "several" */
	} levels[LIST_LEVELS_MAX + 1];
};
void list_builder_release(struct list_builder *builder);
/* Append an entry at `level`. Above 0 the entry is a whole node that the same entries would give
 * again: all levels below must be empty (list_builder_empty_below). */
int list_builder_add(struct list_builder *builder, unsigned level, const struct list_entry *entry,
                     struct message *message);
bool list_builder_empty_below(const struct list_builder *builder, unsigned level);
/* Close what is open; the content's size is the caller's. */
int list_builder_finish(struct list_builder *builder, struct content *ret_content,
                        struct message *message);

/* -- reading: a position in a content's pieces; moving on is cheap -- */

struct list_cursor {
	struct odb *odb;
	const struct content *content; /* borrowed */
	unsigned depth;
	struct list_frame {
		struct list_node *node;
		uint64_t start; /* of the node, in the file */
		uint32_t index;
		uint64_t index_start; /* of entries[index], in the file */
	} frames[LIST_LEVELS_MAX];    /* root first; after a seek the last one is of level 0 */
};
void list_cursor_release(struct list_cursor *cursor);
/* Stand on the piece that holds byte `offset`, which must be below the content's size. */
int list_cursor_seek(struct list_cursor *cursor, uint64_t offset, struct message *message);
/* The two steps of it, for whoever may not need to go down to the piece: stand on the entry that
 * holds `offset` in the deepest node loaded; go one level down from there. */
int list_cursor_approach(struct list_cursor *cursor, uint64_t offset, struct message *message);
int list_cursor_descend(struct list_cursor *cursor, uint64_t offset, struct message *message);
struct list_frame *list_cursor_frame(struct list_cursor *cursor); /* the deepest */
/* The frame's current entry. */
const struct list_entry *list_frame_entry(const struct list_frame *frame);
/* The piece the cursor stands on. */
struct piece list_cursor_piece(const struct list_cursor *cursor);

#endif
