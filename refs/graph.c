/*
 * graph.c — hides the containers that walks over history use: a set of nodes and a heap of them.
 *
 * Ids are SHA-256, so their first bytes are hash enough.
 */
#include "refs/graph.h"

struct graph_node *graph_node_new(const struct pointer *self, size_t parent_count)
{
	struct graph_node *node = calloc(1, sizeof(*node) + parent_count * sizeof(struct pointer));

	if (!node)
		return NULL;
	node->self = *self;
	node->parent_count = parent_count;
	return node;
}

struct graph_node *graph_node_of(const struct commit *commit)
{
	struct graph_node *node = graph_node_new(&commit->self, commit->parent_count);

	if (!node)
		return NULL;
	node->generation = commit->generation;
	node->time_ms = commit->time_ms;
	if (commit->parent_count > 0)
		memcpy(node->parents, commit->parents,
		       commit->parent_count * sizeof(struct pointer));
	return node;
}

/* -- set -- */

static struct graph_node **slot_of(struct graph_node **slots, size_t slot_count,
                                   const struct id *id)
{
	return &slots[load_u64(id->bytes) & (slot_count - 1)];
}

struct graph_node *node_set_find(const struct node_set *set, const struct id *id)
{
	struct graph_node *node =
	        set->slot_count > 0 ? *slot_of(set->slots, set->slot_count, id) : NULL;

	while (node && !id_equal(&node->self.id, id))
		node = node->next_same_slot;
	return node;
}

static int grow_set(struct node_set *set)
{
	size_t slot_count = set->slot_count > 0 ? set->slot_count * 2 : 64;
	struct graph_node **slots = calloc(slot_count, sizeof(*slots));

	if (!slots)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < set->slot_count; i++) {
		struct graph_node *node = set->slots[i];

		while (node) {
			struct graph_node *next = node->next_same_slot;
			struct graph_node **slot = slot_of(slots, slot_count, &node->self.id);

			node->next_same_slot = *slot;
			*slot = node;
			node = next;
		}
	}
	free(set->slots);
	set->slots = slots;
	set->slot_count = slot_count;
	return 0;
}

int node_set_add(struct node_set *set, struct graph_node *node)
{
	if (set->count >= set->slot_count) {
		int rc = grow_set(set);

		if (rc < 0)
			return rc;
	}
	struct graph_node **slot = slot_of(set->slots, set->slot_count, &node->self.id);
	node->next_same_slot = *slot;
	*slot = node;
	set->count++;
	return 0;
}

struct graph_node *node_set_take(struct node_set *set, const struct id *id)
{
	struct graph_node **link =
	        set->slot_count > 0 ? slot_of(set->slots, set->slot_count, id) : NULL;

	while (link && *link && !id_equal(&(*link)->self.id, id))
		link = &(*link)->next_same_slot;
	if (!link || !*link)
		return NULL;
	struct graph_node *node = *link;
	*link = node->next_same_slot;
	node->next_same_slot = NULL;
	set->count--;
	return node;
}

void node_set_release(struct node_set *set)
{
	for (size_t i = 0; i < set->slot_count; i++) {
		struct graph_node *node = set->slots[i];

		while (node) {
			struct graph_node *next = node->next_same_slot;

			free(node);
			node = next;
		}
	}
	free(set->slots);
	memset(set, 0, sizeof(*set));
}

/* -- heap -- */

/* The id comes last so that the order never depends on chance. */
static bool comes_before(const struct node_heap *heap, const struct graph_node *a,
                         const struct graph_node *b)
{
	bool by_time = heap->order == BY_TIME;

	if (by_time && a->time_ms != b->time_ms)
		return a->time_ms > b->time_ms;
	if (a->generation != b->generation)
		return a->generation > b->generation;
	if (!by_time && a->time_ms != b->time_ms)
		return a->time_ms > b->time_ms;
	return memcmp(a->self.id.bytes, b->self.id.bytes, ID_BYTES) < 0;
}

int node_heap_push(struct node_heap *heap, struct graph_node *node)
{
	if (heap->count == heap->capacity) {
		size_t capacity = heap->capacity > 0 ? heap->capacity * 2 : 64;
		struct graph_node **items = reallocarray(heap->items, capacity, sizeof(*items));

		if (!items)
			return -ERR_NO_MEMORY;
		heap->items = items;
		heap->capacity = capacity;
	}
	size_t at = heap->count++;
	while (at > 0 && comes_before(heap, node, heap->items[(at - 1) / 2])) {
		heap->items[at] = heap->items[(at - 1) / 2];
		at = (at - 1) / 2;
	}
	heap->items[at] = node;
	return 0;
}

struct graph_node *node_heap_pop(struct node_heap *heap)
{
	if (heap->count == 0)
		return NULL;
	struct graph_node *top = heap->items[0];
	struct graph_node *last = heap->items[--heap->count];
	size_t at = 0;
	for (;;) {
		size_t child = 2 * at + 1;

		if (child >= heap->count)
			break;
		if (child + 1 < heap->count &&
		    comes_before(heap, heap->items[child + 1], heap->items[child]))
			child++;
		if (!comes_before(heap, heap->items[child], last))
			break;
		heap->items[at] = heap->items[child];
		at = child;
	}
	if (heap->count > 0)
		heap->items[at] = last;
	return top;
}

void node_heap_release(struct node_heap *heap)
{
	free(heap->items);
	heap->items = NULL;
	heap->count = heap->capacity = 0;
}
