/*
 * Hides how nodes are found: three chained hash tables that share one size and double together.
 * Ids are sequential, so their own low bits are a perfect hash.
 */
#include "fs/nodes.h"

#include <assert.h>
#include <pthread.h>

#define BUCKETS_MIN 1024

struct nodes {
	pthread_mutex_t lock;
	struct node **by_id, **by_name, **by_number; /* `buckets` each */
	size_t buckets;                              /* a power of two */
	_Atomic(uint64_t) count;
	uint64_t next_id;
};

struct scope *scope_ref(struct scope *scope)
{
	if (scope)
		atomic_fetch_add(&scope->references, 1);
	return scope;
}

void scope_unref(struct scope *scope)
{
	if (!scope || atomic_fetch_sub(&scope->references, 1) > 1)
		return;
	if (scope->worktree)
		worktree_unref(scope->worktree);
	free(scope->commit);
	free(scope);
}

static uint64_t mix(uint64_t value)
{
	value ^= value >> 32;
	value *= 0x9E3779B97F4A7C15ull;
	return value ^ value >> 29;
}

static uint64_t name_hash(const struct node *parent, const char *name)
{
	uint64_t hash = parent->id * 0x9E3779B97F4A7C15ull;
	for (const unsigned char *at = (const unsigned char *)name; *at; at++)
		hash = (hash ^ *at) * 0x100000001B3ull;
	return mix(hash);
}

static struct node **id_bucket(struct nodes *nodes, uint64_t id)
{
	return &nodes->by_id[id & (nodes->buckets - 1)];
}

static struct node **name_bucket(struct nodes *nodes, const struct node *parent, const char *name)
{
	return &nodes->by_name[name_hash(parent, name) & (nodes->buckets - 1)];
}

static struct node **number_bucket(struct nodes *nodes, uint64_t number)
{
	return &nodes->by_number[mix(number) & (nodes->buckets - 1)];
}

#define UNCHAIN(bucket, node, link) \
	do { \
		struct node **at_ = (bucket); \
		while (*at_ && *at_ != (node)) \
			at_ = &(*at_)->link; \
		if (*at_) \
			*at_ = (node)->link; \
		(node)->link = NULL; \
	} while (0)

#define CHAIN(bucket, node, link) \
	do { \
		struct node **at_ = (bucket); \
		(node)->link = *at_; \
		*at_ = (node); \
	} while (0)

static bool is_named(const struct node *node)
{
	return node->parent && !(node->flags & (NODE_DETACHED | NODE_NAMELESS));
}

static bool is_numbered(const struct node *node)
{
	return node->number && !(node->flags & NODE_DETACHED);
}

static bool tables_allocate(struct nodes *nodes, size_t buckets)
{
	nodes->by_id = calloc(buckets, sizeof(*nodes->by_id));
	nodes->by_name = calloc(buckets, sizeof(*nodes->by_name));
	nodes->by_number = calloc(buckets, sizeof(*nodes->by_number));
	nodes->buckets = buckets;
	if (nodes->by_id && nodes->by_name && nodes->by_number)
		return true;
	free(nodes->by_id);
	free(nodes->by_name);
	free(nodes->by_number);
	return false;
}

static void grow(struct nodes *nodes)
{
	struct node **old = nodes->by_id, **old_name = nodes->by_name;
	struct node **old_number = nodes->by_number;
	size_t buckets = nodes->buckets;
	if (!tables_allocate(nodes, buckets * 2)) { /* slower chains, nothing worse */
		nodes->by_id = old;
		nodes->by_name = old_name;
		nodes->by_number = old_number;
		nodes->buckets = buckets;
		return;
	}
	for (size_t i = 0; i < buckets; i++) {
		for (struct node *node = old[i], *next; node; node = next) {
			next = node->id_next;
			CHAIN(id_bucket(nodes, node->id), node, id_next);
			if (is_named(node))
				CHAIN(name_bucket(nodes, node->parent, node->name), node,
				      name_next);
			if (is_numbered(node))
				CHAIN(number_bucket(nodes, node->number), node, number_next);
		}
	}
	free(old);
	free(old_name);
	free(old_number);
}

int nodes_new(struct nodes **ret_nodes)
{
	struct nodes *nodes = calloc(1, sizeof(*nodes));
	if (!nodes)
		return -ERR_NO_MEMORY;
	if (!tables_allocate(nodes, BUCKETS_MIN)) {
		free(nodes);
		return -ERR_NO_MEMORY;
	}
	pthread_mutex_init(&nodes->lock, NULL);
	nodes->next_id = NODE_ROOT_ID;
	struct node *root = nodes_add(nodes, NODE_ROOT, NULL, "", NULL, NODE_ROOT_ID);
	if (!root) {
		nodes_free(nodes);
		return -ERR_NO_MEMORY;
	}
	root->directory = true;
	root->pins = 1; /* for ever */
	*ret_nodes = nodes;
	return 0;
}

struct node *nodes_empty(struct nodes *nodes)
{
	struct node *all = NULL;
	for (size_t i = 0; i < nodes->buckets; i++) {
		for (struct node *node = nodes->by_id[i], *next; node; node = next) {
			next = node->id_next;
			node->id_next = all;
			all = node;
		}
		nodes->by_id[i] = NULL;
	}
	return all;
}

void nodes_free(struct nodes *nodes)
{
	if (!nodes)
		return;
	pthread_mutex_destroy(&nodes->lock);
	free(nodes->by_id);
	free(nodes->by_name);
	free(nodes->by_number);
	free(nodes);
}

void nodes_lock(struct nodes *nodes)
{
	pthread_mutex_lock(&nodes->lock);
}

void nodes_unlock(struct nodes *nodes)
{
	pthread_mutex_unlock(&nodes->lock);
}

struct node *nodes_by_id(struct nodes *nodes, uint64_t id)
{
	struct node *node = *id_bucket(nodes, id);
	while (node && node->id != id)
		node = node->id_next;
	return node;
}

struct node *nodes_by_name(struct nodes *nodes, const struct node *parent, const char *name)
{
	struct node *node = *name_bucket(nodes, parent, name);
	while (node && (node->parent != parent || strcmp(node->name, name) != 0))
		node = node->name_next;
	return node;
}

struct node *nodes_by_number(struct nodes *nodes, const struct scope *scope, uint64_t number)
{
	struct node *node = *number_bucket(nodes, number);
	while (node && (node->number != number || node->scope != scope))
		node = node->number_next;
	return node;
}

struct node *nodes_add(struct nodes *nodes, enum node_kind kind, struct node *parent,
                       const char *name, struct scope *scope, uint64_t shown)
{
	struct node *node = calloc(1, sizeof(*node));
	char *copy = node ? strdup(name ? name : "") : NULL;
	if (!copy) {
		free(node);
		return NULL;
	}
	if (nodes->count >= nodes->buckets)
		grow(nodes);
	node->id = nodes->next_id++;
	node->kind = (uint8_t)kind;
	node->flags = name ? 0 : NODE_NAMELESS;
	node->name = copy;
	node->parent = parent;
	node->scope = scope_ref(scope);
	node->shown = shown;
	if (parent)
		parent->pins++;
	CHAIN(id_bucket(nodes, node->id), node, id_next);
	if (is_named(node))
		CHAIN(name_bucket(nodes, parent, copy), node, name_next);
	nodes->count++;
	return node;
}

static void name_leave(struct nodes *nodes, struct node *node)
{
	if (is_named(node))
		UNCHAIN(name_bucket(nodes, node->parent, node->name), node, name_next);
}

static void name_enter(struct nodes *nodes, struct node *node)
{
	if (is_named(node))
		CHAIN(name_bucket(nodes, node->parent, node->name), node, name_next);
}

int nodes_rename(struct nodes *nodes, struct node *node, struct node *parent, const char *name,
                 struct node **ret_dead)
{
	char *copy = strdup(name);
	if (!copy)
		return -ERR_NO_MEMORY;
	name_leave(nodes, node);
	struct node *old = node->parent;
	free(node->name);
	node->name = copy;
	node->parent = parent;
	parent->pins++;
	node->flags &= (uint8_t)~NODE_NAMELESS;
	name_enter(nodes, node);
	nodes_unpin(nodes, old, ret_dead);
	return 0;
}

void nodes_exchange(struct nodes *nodes, struct node *a, struct node *b)
{
	name_leave(nodes, a);
	name_leave(nodes, b);
	char *name = a->name;
	struct node *parent = a->parent; /* the pins are exchanged with the pointers */
	a->name = b->name;
	a->parent = b->parent;
	b->name = name;
	b->parent = parent;
	name_enter(nodes, a);
	name_enter(nodes, b);
}

void nodes_unname(struct nodes *nodes, struct node *node)
{
	name_leave(nodes, node);
	node->flags |= NODE_NAMELESS;
}

void nodes_detach(struct nodes *nodes, struct node *node)
{
	name_leave(nodes, node);
	if (is_numbered(node))
		UNCHAIN(number_bucket(nodes, node->number), node, number_next);
	node->flags |= NODE_DETACHED;
}

void nodes_bind(struct nodes *nodes, struct node *node, uint64_t epoch, uint64_t number)
{
	if (node->number != number) {
		if (is_numbered(node))
			UNCHAIN(number_bucket(nodes, node->number), node, number_next);
		node->number = number;
		if (is_numbered(node))
			CHAIN(number_bucket(nodes, number), node, number_next);
	}
	node->epoch = epoch;
	node->flags |= NODE_BOUND;
}

static void kill_if_unused(struct nodes *nodes, struct node *node, struct node **ret_dead)
{
	while (node && !node->lookups && !node->pins) {
		struct node *parent = node->parent;
		if (!(node->flags & NODE_DETACHED))
			nodes_detach(nodes, node);
		UNCHAIN(id_bucket(nodes, node->id), node, id_next);
		nodes->count--;
		node->id_next = *ret_dead;
		*ret_dead = node;
		if (parent) {
			assert(parent->pins > 0);
			parent->pins--;
		}
		node = parent;
	}
}

void nodes_unpin(struct nodes *nodes, struct node *node, struct node **ret_dead)
{
	assert(node->pins > 0);
	node->pins--;
	kill_if_unused(nodes, node, ret_dead);
}

void nodes_forget(struct nodes *nodes, struct node *node, uint64_t lookups, struct node **ret_dead)
{
	node->lookups = lookups < node->lookups ? node->lookups - lookups : 0;
	kill_if_unused(nodes, node, ret_dead);
}

void node_free(struct node *node)
{
	scope_unref(node->scope);
	if (node->orphan) {
		inode_release(node->orphan);
		free(node->orphan);
	}
	free(node->tree);
	free(node->name);
	free(node);
}

void nodes_children(struct nodes *nodes, const struct node *parent,
                    void (*callback)(void *context, struct node *child), void *context)
{
	for (size_t i = 0; i < nodes->buckets; i++)
		for (struct node *node = nodes->by_id[i]; node; node = node->id_next)
			if (node->parent == parent && is_named(node))
				callback(context, node);
}

static bool is_below(const struct node *node, const struct node *ancestor)
{
	const struct node *at = node->parent;
	while (at && at != ancestor)
		at = at->parent;
	return at != NULL;
}

void nodes_below(struct nodes *nodes, const struct node *ancestor,
                 void (*callback)(void *context, struct node *node), void *context)
{
	for (size_t i = 0; i < nodes->buckets; i++)
		for (struct node *node = nodes->by_id[i]; node; node = node->id_next)
			if (is_named(node) && is_below(node, ancestor))
				callback(context, node);
}

uint64_t nodes_count(const struct nodes *nodes)
{
	return nodes->count;
}
