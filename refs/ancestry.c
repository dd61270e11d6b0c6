/*
 * ancestry.c — hides how common ancestors are found.
 *
 * Both use the order of generations: a node leaves the heap only after each of its descendants
 * that the walk can meet, so what is known of it then is final. For merge bases that makes git's
 * second pass (remove_redundant in commit-reach.c) unnecessary: a common ancestor that is an
 * ancestor of another is marked stale before it is looked at. And nothing older than what is
 * asked about is ever read.
 */
#include "refs/graph.h"

enum {
	OF_A = 1,    /* an ancestor of a (or a itself) */
	OF_B = 2,    /* of b */
	OF_BASE = 4, /* of a common ancestor found already */
};

struct painting {
	struct history *history;
	struct node_set nodes;
	struct node_heap queue;
	size_t fresh; /* queued nodes not marked OF_BASE: while there are any, bases may be found */
	struct pointer *bases;
	size_t base_count, base_capacity;
};

static void painting_release(struct painting *painting)
{
	node_heap_release(&painting->queue);
	node_set_release(&painting->nodes);
	free(painting->bases);
}

static int paint(struct painting *painting, struct graph_node *node, unsigned flags,
                 struct message *message)
{
	bool was_fresh = node->queued && !(node->flags & OF_BASE);
	node->flags |= flags;
	bool is_fresh = !(node->flags & OF_BASE);
	painting->fresh = painting->fresh - was_fresh + is_fresh;
	if (node->queued)
		return 0;
	node->queued = true;
	int rc = node_heap_push(&painting->queue, node);
	return rc < 0 ? fail(message, rc, "%s", error_text(rc)) : 0;
}

static int add_base(struct painting *painting, const struct graph_node *node,
                    struct message *message)
{
	if (painting->base_count == painting->base_capacity) {
		size_t capacity = painting->base_capacity > 0 ? painting->base_capacity * 2 : 4;
		struct pointer *bases =
		        reallocarray(painting->bases, capacity, sizeof(*painting->bases));

		if (!bases)
			return fail(message, -ERR_NO_MEMORY, "%s", error_text(-ERR_NO_MEMORY));
		painting->bases = bases;
		painting->base_capacity = capacity;
	}
	painting->bases[painting->base_count++] = node->self;
	return 0;
}

static int paint_down(struct painting *painting, struct message *message)
{
	while (painting->fresh > 0) {
		struct graph_node *node = node_heap_pop(&painting->queue);
		unsigned flags = node->flags;

		node->queued = false;
		if (!(flags & OF_BASE))
			painting->fresh--;
		if (flags == (OF_A | OF_B)) {
			int rc = add_base(painting, node, message);

			if (rc < 0)
				return rc;
			flags |= OF_BASE;
		}
		for (size_t i = 0; i < node->parent_count; i++) {
			struct graph_node *parent;
			int rc = node_load_parent(painting->history, &painting->nodes, node, i,
			                          &parent, message);

			if (rc == 0)
				rc = paint(painting, parent, flags, message);
			if (rc < 0)
				return rc;
		}
	}
	return 0;
}

int merge_bases(struct history *history, const struct pointer *a, const struct pointer *b,
                struct pointer **ret_bases, size_t *ret_count, struct message *message)
{
	CLEANUP(painting_release)
	struct painting painting = {.history = history, .queue = {.order = BY_GENERATION}};
	struct graph_node *node;
	int rc = node_load(history, &painting.nodes, a, &node, message);

	if (rc == 0)
		rc = paint(&painting, node, OF_A, message);
	if (rc == 0)
		rc = node_load(history, &painting.nodes, b, &node, message);
	if (rc == 0)
		rc = paint(&painting, node, OF_B, message);
	if (rc == 0)
		rc = paint_down(&painting, message);
	if (rc < 0)
		return rc;
	history_remember(history, &painting.nodes);
	*ret_count = painting.base_count;
	*ret_bases = steal(&painting.bases);
	return 0;
}

struct search {
	struct node_set nodes;
	struct node_heap queue;
};

static void search_release(struct search *search)
{
	node_heap_release(&search->queue);
	node_set_release(&search->nodes);
}

/* Queue it unless the walk has met it or it is too old to lead to `target`. */
static int search_add(struct search *search, struct graph_node *node,
                      const struct graph_node *target, struct message *message)
{
	if (node->queued || node->generation <= target->generation)
		return 0;
	node->queued = true;
	int rc = node_heap_push(&search->queue, node);
	return rc < 0 ? fail(message, rc, "%s", error_text(rc)) : 0;
}

static int search_parents(struct history *history, struct search *search, struct graph_node *node,
                          const struct graph_node *target, bool *found, struct message *message)
{
	for (size_t i = 0; i < node->parent_count; i++) {
		struct graph_node *parent;
		int rc = node_load_parent(history, &search->nodes, node, i, &parent, message);

		if (rc == 0)
			rc = search_add(search, parent, target, message);
		if (rc < 0)
			return rc;
		if (parent == target)
			*found = true;
	}
	return 0;
}

int is_ancestor(struct history *history, const struct pointer *ancestor,
                const struct pointer *descendant, bool *ret_is, struct message *message)
{
	CLEANUP(search_release) struct search search = {.queue = {.order = BY_GENERATION}};
	struct graph_node *target, *node;
	int rc = node_load(history, &search.nodes, ancestor, &target, message);

	if (rc == 0)
		rc = node_load(history, &search.nodes, descendant, &node, message);
	if (rc < 0)
		return rc;
	bool found = node == target;
	rc = search_add(&search, node, target, message);
	while (rc == 0 && !found && (node = node_heap_pop(&search.queue)))
		rc = search_parents(history, &search, node, target, &found, message);
	if (rc < 0)
		return rc;
	history_remember(history, &search.nodes);
	*ret_is = found;
	return 0;
}
