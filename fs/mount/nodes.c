/*
 * Hides how nodes are found: three chained hash tables that share one size and double together.
 * Ids are sequential, so their own low bits are a perfect hash. And what of a node is kept for a
 * successor of this process.
 */
#include "fs/mount/nodes.h"

#include <assert.h>
#include <pthread.h>

#define BUCKETS_MIN 1024

struct nodes {
	pthread_mutex_t lock;
	struct node **by_id, **by_name, **by_number; /* `buckets` each */
	size_t buckets;                              /* a power of two */
	_Atomic(uint64_t) count;
	uint64_t next_id;
	struct keep *keep; /* may be NULL */
};

/* Of two with one id, which a kill during a renaming leaves, the later counts. */
struct kept_node {
	uint64_t id, parent, shown;
	uint64_t lookups, number, tag;
	uint32_t serial;
	uint8_t kind, flags;
	bool directory;
	char name[];
};
struct kept_view {
	uint64_t node;
	struct pointer commit;
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

/* -- in the keep -- */

/* A record for the node under this name, not there yet; NULL: no memory. */
static struct kept_node *kept_make(struct nodes *nodes, const struct node *node,
                                   const struct node *parent, const char *name, unsigned flags)
{
	size_t length = strlen(name);
	struct kept_node *kept = keep_new(nodes->keep, sizeof(*kept) + length + 1);
	if (!kept)
		return NULL;
	kept->id = node->id;
	kept->parent = parent ? parent->id : 0;
	kept->shown = node->shown;
	kept->lookups = node->lookups;
	kept->number = node->number;
	kept->tag = node->tag;
	kept->serial = node->kept ? node->kept->serial + 1 : 0;
	kept->kind = node->kind;
	kept->flags = (uint8_t)flags;
	kept->directory = node->directory;
	memcpy(kept->name, name, length + 1);
	return kept;
}

static void kept_replace(struct nodes *nodes, struct node *node, struct kept_node *kept)
{
	struct kept_node *old = node->kept;
	keep_publish(kept, KEEP_NODE);
	node->kept = kept;
	keep_drop(nodes->keep, old);
}

static int view_keep(struct nodes *nodes, struct node *node)
{
	struct kept_view *view = keep_new(nodes->keep, sizeof(*view));
	if (!view)
		return -ERR_NO_MEMORY;
	view->node = node->id;
	view->commit = node->scope->commit->self;
	keep_publish(view, KEEP_SCOPE);
	node->kept_more = view;
	return 0;
}

static int node_keep(struct nodes *nodes, struct node *node)
{
	if (!nodes->keep || node->id == NODE_ROOT_ID)
		return 0;
	struct kept_node *kept = kept_make(nodes, node, node->parent, node->name, node->flags);
	if (!kept)
		return -ERR_NO_MEMORY;
	bool view = node->kind == NODE_TOP && node->scope && node->scope->commit;
	if (view && view_keep(nodes, node) < 0) {
		keep_drop(nodes->keep, kept);
		return -ERR_NO_MEMORY;
	}
	keep_root(nodes->keep)->next_node = nodes->next_id;
	keep_publish(kept, KEEP_NODE);
	node->kept = kept;
	return 0;
}

static void flags_keep(struct node *node)
{
	if (node->kept)
		node->kept->flags =
		        node->flags & (NODE_DETACHED | NODE_LINKED | NODE_NAMELESS | NODE_BOUND);
}

void nodes_looked_up(struct node *node)
{
	node->lookups++;
	if (node->kept)
		node->kept->lookups = node->lookups;
}

void nodes_linked(struct node *node)
{
	node->flags |= NODE_LINKED;
	flags_keep(node);
}

void nodes_directory(struct node *node)
{
	node->directory = true;
	if (node->kept)
		node->kept->directory = true;
}

void nodes_orphan_changed(struct nodes *nodes, struct node *node)
{
	if (!nodes->keep)
		return;
	void *old = node->kept_more;
	CLEANUP(buffer_release) struct buffer bytes = {0};
	struct kept_inode *kept = NULL;
	if (node->orphan) {
		inode_encode(&bytes, node->orphan);
		if (buffer_check(&bytes) == 0)
			kept = keep_new(nodes->keep, sizeof(*kept) + bytes.length);
	}
	if (kept) { /* without memory a successor will call it stale */
		kept->node = node->id;
		kept->number = node->orphan->number;
		kept->length = (uint32_t)bytes.length;
		memcpy(kept->bytes, bytes.data, bytes.length);
		keep_publish(kept, KEEP_ORPHAN);
	}
	node->kept_more = kept;
	keep_drop(nodes->keep, old);
}

int kept_inode_read(const struct kept_inode *kept, struct inode *ret_inode)
{
	int result = inode_decode(kept->bytes, kept->length, ret_inode);
	if (result == 0)
		ret_inode->number = kept->number;
	return result;
}

/* -- changes -- */

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
	if (node_keep(nodes, node) < 0) {
		node_free(node);
		return NULL;
	}
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
	unsigned flags = node->flags & ~(unsigned)NODE_NAMELESS;
	struct kept_node *kept =
	        copy && nodes->keep ? kept_make(nodes, node, parent, name, flags) : NULL;
	if (!copy || (nodes->keep && !kept)) {
		free(copy);
		return -ERR_NO_MEMORY;
	}
	name_leave(nodes, node);
	struct node *old = node->parent;
	free(node->name);
	node->name = copy;
	node->parent = parent;
	parent->pins++;
	node->flags = (uint8_t)flags;
	if (kept)
		kept_replace(nodes, node, kept);
	name_enter(nodes, node);
	nodes_unpin(nodes, old, ret_dead);
	return 0;
}

int nodes_exchange(struct nodes *nodes, struct node *a, struct node *b)
{
	struct kept_node *kept_a = NULL, *kept_b = NULL;
	if (nodes->keep) {
		kept_a = kept_make(nodes, a, b->parent, b->name, a->flags);
		kept_b = kept_make(nodes, b, a->parent, a->name, b->flags);
		if (!kept_a || !kept_b) {
			keep_drop(nodes->keep, kept_a);
			keep_drop(nodes->keep, kept_b);
			return -ERR_NO_MEMORY;
		}
	}
	name_leave(nodes, a);
	name_leave(nodes, b);
	char *name = a->name;
	struct node *parent = a->parent; /* the pins are exchanged with the pointers */
	a->name = b->name;
	a->parent = b->parent;
	b->name = name;
	b->parent = parent;
	if (kept_a) {
		kept_replace(nodes, a, kept_a);
		kept_replace(nodes, b, kept_b);
	}
	name_enter(nodes, a);
	name_enter(nodes, b);
	return 0;
}

void nodes_unname(struct nodes *nodes, struct node *node)
{
	name_leave(nodes, node);
	node->flags |= NODE_NAMELESS;
	flags_keep(node);
}

void nodes_detach(struct nodes *nodes, struct node *node)
{
	name_leave(nodes, node);
	if (is_numbered(node))
		UNCHAIN(number_bucket(nodes, node->number), node, number_next);
	node->flags |= NODE_DETACHED;
	flags_keep(node);
}

void nodes_bind(struct nodes *nodes, struct node *node, uint64_t epoch, uint64_t number,
                uint64_t tag)
{
	if (node->kept) {
		/* In this order both halves of a change are still taken for the same file. */
		node->kept->tag = tag;
		node->kept->number = number;
	}
	node->tag = tag;
	if (node->number != number) {
		if (is_numbered(node))
			UNCHAIN(number_bucket(nodes, node->number), node, number_next);
		node->number = number;
		if (is_numbered(node))
			CHAIN(number_bucket(nodes, number), node, number_next);
	}
	node->epoch = epoch;
	node->flags |= NODE_BOUND;
	flags_keep(node);
}

static void kill_if_unused(struct nodes *nodes, struct node *node, struct node **ret_dead)
{
	while (node && !node->lookups && !node->pins) {
		struct node *parent = node->parent;
		if (!(node->flags & NODE_DETACHED))
			nodes_detach(nodes, node);
		UNCHAIN(id_bucket(nodes, node->id), node, id_next);
		nodes->count--;
		keep_drop(nodes->keep, steal(&node->kept));
		keep_drop(nodes->keep, steal(&node->kept_more));
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
	if (node->kept)
		node->kept->lookups = node->lookups;
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

int nodes_ids(struct nodes *nodes, uint64_t **ret_ids, size_t *ret_count)
{
	size_t count = 0;
	uint64_t *ids = calloc(nodes->count + 1, sizeof(*ids));
	if (!ids)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < nodes->buckets; i++)
		for (struct node *node = nodes->by_id[i]; node; node = node->id_next)
			ids[count++] = node->id;
	*ret_ids = ids;
	*ret_count = count;
	return 0;
}

/* -- after a start that follows a crash -- */

/* In the index of ids alone, and without a number: grow() moves what has one. */
static int restore_node(struct nodes *nodes, struct kept_node *kept)
{
	struct node *node = nodes_by_id(nodes, kept->id);
	if (node) { /* a kill between the two steps of a renaming */
		bool newer = (int32_t)(kept->serial - node->kept->serial) > 0;
		keep_drop(nodes->keep, newer ? node->kept : kept);
		node->kept = newer ? kept : node->kept;
		return 0;
	}
	if (nodes->count >= nodes->buckets)
		grow(nodes);
	node = calloc(1, sizeof(*node));
	if (!node)
		return -ERR_NO_MEMORY;
	node->id = kept->id;
	node->kept = kept;
	CHAIN(id_bucket(nodes, node->id), node, id_next);
	nodes->count++;
	if (node->id >= nodes->next_id)
		nodes->next_id = node->id + 1;
	return 0;
}

static int restore_any(void *context, enum keep_kind kind, void *record)
{
	return kind == KEEP_NODE ? restore_node(context, record) : 0;
}

/* Its fields and its place among the others, which are all in the index of ids. */
static int restore_place(struct nodes *nodes, struct node *node)
{
	const struct kept_node *kept = node->kept;
	struct node *parent = nodes_by_id(nodes, kept->parent);
	node->kind = kept->kind;
	node->flags = kept->flags;
	node->directory = kept->directory;
	node->shown = kept->shown;
	node->lookups = kept->lookups;
	node->tag = kept->tag;
	node->epoch = EPOCH_RESTORED;
	node->name = strdup(kept->name);
	if (!node->name)
		return -ERR_NO_MEMORY;
	if (!parent)
		parent = nodes_by_id(nodes, NODE_ROOT_ID);
	if (parent->id != kept->parent ||
	    (is_named(node) && nodes_by_name(nodes, parent, node->name)))
		node->flags |= NODE_DETACHED;
	node->parent = parent;
	parent->pins++;
	node->number = kept->number;
	if (is_named(node))
		CHAIN(name_bucket(nodes, parent, node->name), node, name_next);
	if (is_numbered(node))
		CHAIN(number_bucket(nodes, node->number), node, number_next);
	return 0;
}

static int restore_more(void *context, enum keep_kind kind, void *record)
{
	struct nodes *nodes = context;
	if (kind != KEEP_SCOPE && kind != KEEP_ORPHAN)
		return 0;
	uint64_t id = *(const uint64_t *)record; /* both begin with it */
	struct node *node = nodes_by_id(nodes, id);
	struct inode *orphan = NULL;
	int result = 0;
	if (node && kind == KEEP_ORPHAN && !node->orphan) {
		orphan = calloc(1, sizeof(*orphan));
		result = orphan ? kept_inode_read(record, orphan) : -ERR_NO_MEMORY;
	}
	if (result < 0 || !node || node->kept_more) {
		free(orphan);
		keep_drop(nodes->keep, record);
		return result == -ERR_NO_MEMORY ? result : 0;
	}
	node->orphan = orphan;
	node->kept_more = record;
	return 0;
}

int nodes_keep(struct nodes *nodes, struct keep *keep)
{
	nodes->keep = keep;
	int result = keep_each(keep, restore_any, nodes);
	if (keep_root(keep)->next_node > nodes->next_id)
		nodes->next_id = keep_root(keep)->next_node;
	for (size_t i = 0; result == 0 && i < nodes->buckets; i++)
		for (struct node *node = nodes->by_id[i]; node && result == 0; node = node->id_next)
			if (node->kept)
				result = restore_place(nodes, node);
	return result == 0 ? keep_each(keep, restore_more, nodes) : result;
}

/* A node's scope is that of the top above it. */
static struct node *top_of(struct node *node)
{
	while (node && node->kind != NODE_TOP)
		node = node->parent;
	return node;
}

static void restore_scope(struct nodes *nodes, struct node *top, scope_open_fn *open, void *context)
{
	const struct kept_view *view = top->kept_more;
	if (!(top->flags & NODE_DETACHED) || view)
		top->scope = open(context, top->name, view ? &view->commit : NULL);
	if (top->scope)
		return;
	top->scope = calloc(1, sizeof(*top->scope)); /* shows nothing */
	if (top->scope)
		top->scope->references = 1;
	if (!(top->flags & NODE_DETACHED))
		nodes_detach(nodes, top);
}

void nodes_restore_scopes(struct nodes *nodes, scope_open_fn *open, void *context)
{
	for (size_t i = 0; i < nodes->buckets; i++)
		for (struct node *node = nodes->by_id[i]; node; node = node->id_next)
			if (node->kind == NODE_TOP)
				restore_scope(nodes, node, open, context);
	for (size_t i = 0; i < nodes->buckets; i++)
		for (struct node *node = nodes->by_id[i]; node; node = node->id_next)
			if (node->kind == NODE_ENTRY && top_of(node))
				node->scope = scope_ref(top_of(node)->scope);
}

void nodes_sweep(struct nodes *nodes, struct node **ret_dead)
{
	CLEANUP(free_pointer) uint64_t *ids = NULL;
	size_t count = 0;
	if (nodes_ids(nodes, &ids, &count) < 0)
		return;
	for (size_t i = 0; i < count; i++)
		if (nodes_by_id(nodes, ids[i]))
			kill_if_unused(nodes, nodes_by_id(nodes, ids[i]), ret_dead);
}
