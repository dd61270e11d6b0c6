/*
 * graph — the commit graph without what commits say: for the files of refs/ alone.
 *
 * A node is what walking needs of a commit. It comes from the commit index when that knows the
 * commit at the very place asked for, else from the record. A graph holds the nodes that one walk
 * has met, each once; a heap orders them. All belong to one thread.
 */
#ifndef REFS_GRAPH_H
#define REFS_GRAPH_H

#include "refs/history.h"

struct graph_node {
	struct pointer self;
	uint64_t generation;
	int64_t time_ms;
	bool complete; /* in the index: and so is every ancestor */
	bool indexed;  /* came from the index */
	bool queued;
	unsigned flags;   /* the algorithm's own */
	uint64_t waiting; /* the algorithm's own */
	struct graph_node *next_same_slot;
	size_t parent_count;
	struct pointer parents[];
};
struct graph_node *graph_node_new(const struct pointer *self, size_t parent_count);
struct graph_node *graph_node_of(const struct commit *commit); /* NULL: out of memory */

/* A set of nodes by id; owns them. */
struct node_set {
	struct graph_node **slots;
	size_t slot_count; /* a power of two, or 0 */
	size_t count;
};
struct graph_node *node_set_find(const struct node_set *set, const struct id *id);
int node_set_add(struct node_set *set, struct graph_node *node); /* takes it, on failure not */
/* Takes it out; the caller owns it. NULL when it is not there. */
struct graph_node *node_set_take(struct node_set *set, const struct id *id);
void node_set_release(struct node_set *set);

/* The node with the largest key first. */
enum node_order {
	BY_GENERATION, /* generation, then time: every child before its parents */
	BY_TIME,       /* time, then generation */
};
struct node_heap {
	enum node_order order;
	struct graph_node **items;
	size_t count;
	size_t capacity;
};
int node_heap_push(struct node_heap *heap, struct graph_node *node);
struct graph_node *node_heap_pop(struct node_heap *heap); /* NULL when empty */
static inline struct graph_node *node_heap_top(const struct node_heap *heap)
{
	return heap->count > 0 ? heap->items[0] : NULL;
}
void node_heap_release(struct node_heap *heap);

/* -- in history.c -- */
struct odb *history_odb(struct history *history);
/* From the index or the record; the caller frees it. */
int node_read(struct history *history, const struct pointer *pointer, struct graph_node **ret_node,
              struct message *message);
/* The node of `pointer` in `set`, read and added when it is not there yet. Borrowed. */
int node_load(struct history *history, struct node_set *set, const struct pointer *pointer,
              struct graph_node **ret_node, struct message *message);
/* The same for a parent of `child`. -ERR_CORRUPT unless it is of a lower generation: walks rely on
 * that order to end. */
int node_load_parent(struct history *history, struct node_set *set, const struct graph_node *child,
                     size_t parent, struct graph_node **ret_node, struct message *message);
/* A walk along first parents: `steps` of them, or (0) to the first commit that is of `time_ms` or
 * older. Views are resolved at every look, so where long ones led is kept for some. */
#define LINE_STEPS_LONG 256
struct line {
	struct pointer from;
	uint64_t steps;
	int64_t time_ms;
};
bool history_line_known(struct history *history, const struct line *line, struct pointer *ret_to);
void history_line_note(struct history *history, const struct line *line, const struct pointer *to);
/* Enter into the index what `set` holds and the index does not. */
void history_remember(struct history *history, const struct node_set *set);
/* Enter everything reachable from refs and their reflogs. When a part of it cannot be read the
 * rest is entered and the first error returned. */
int history_feed(struct history *history, struct message *message);
/* Indexed commits whose id starts with the hex `digits` (6 to 64, lower case), at most `max`,
 * ascending. Not verified: the caller reads them, and drops those whose pack has gone. */
int history_prefix(struct history *history, const char *digits, struct pointer *ret_pointers,
                   size_t max, size_t *ret_count);
void history_drop(struct history *history, const struct id *id);

#endif
