/*
 * history.c — hides the commit index: how it is stored, fed and asked.
 *
 * An entry counts only for the very place asked for: packs may be rewritten, and then the records
 * are read again, with the new places of the parents. A `complete` entry vouches for all its
 * ancestors, so feeding stops at it; entries are written ancestors first, so that a crash between
 * two transactions leaves no entry that promises too much. The index is a cache: what it cannot
 * decode is absent, and a failure to write it is no failure.
 *
 * Index value: u8 version (1), u8 flags (1: complete), place, u64 generation, u64 time, u8 parents,
 * (id, place) of each.
 */
#include "refs/graph.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define INDEX_TABLE 1
#define INDEX_VERSION 2
#define INDEX_CHECK_BYTES 8 /* of the SHA-256 of what is before them */
#define INDEX_COMPLETE 1
#define BATCH_NODES 1000

/* States of refs (hash of kind, name and etag), ascending. */
struct states {
	struct id *ids;
	size_t count, capacity;
};

#define LINES_MAX 64

struct history {
	struct odb *odb;
	struct kv *index;
	/* Guards what is below. A leaf: nothing is called under it that locks or blocks. */
	pthread_mutex_t lock;
	struct node_set known; /* takes the index's place when there is none */
	struct states fed;     /* everything these refs lead to is in the index */
	struct {
		struct line line;
		struct pointer to;
	} lines[LINES_MAX]; /* a ring */
	size_t line_count;  /* ever noted */
};

int history_new(struct odb *odb, struct kv *index, struct history **ret_history)
{
	struct history *history = calloc(1, sizeof(*history));

	if (!history)
		return -ERR_NO_MEMORY;
	history->odb = odb;
	history->index = index;
	pthread_mutex_init(&history->lock, NULL);
	*ret_history = history;
	return 0;
}

void history_free(struct history *history)
{
	if (!history)
		return;
	node_set_release(&history->known);
	free(history->fed.ids);
	pthread_mutex_destroy(&history->lock);
	free(history);
}

struct odb *history_odb(struct history *history)
{
	return history->odb;
}

static bool place_equal(const struct place *a, const struct place *b)
{
	return memcmp(a->pack, b->pack, PACK_ID_BYTES) == 0 && a->offset == b->offset &&
	       a->stored == b->stored && a->raw == b->raw && a->codec == b->codec &&
	       a->key == b->key;
}

/* From the same record the same walk leads to the same place: nothing of it can change. */
static bool line_equal(const struct line *a, const struct line *b)
{
	return a->steps == b->steps && a->time_ms == b->time_ms &&
	       id_equal(&a->from.id, &b->from.id) && place_equal(&a->from.place, &b->from.place);
}

bool history_line_known(struct history *history, const struct line *line, struct pointer *ret_to)
{
	bool known = false;

	pthread_mutex_lock(&history->lock);
	for (size_t i = 0; !known && i < LINES_MAX && i < history->line_count; i++) {
		known = line_equal(&history->lines[i].line, line);
		if (known)
			*ret_to = history->lines[i].to;
	}
	pthread_mutex_unlock(&history->lock);
	return known;
}

void history_line_note(struct history *history, const struct line *line, const struct pointer *to)
{
	pthread_mutex_lock(&history->lock);
	size_t at = history->line_count++ % LINES_MAX;
	history->lines[at].line = *line;
	history->lines[at].to = *to;
	pthread_mutex_unlock(&history->lock);
}

/* -- entries of the index -- */

static void encode_entry(struct buffer *value, const struct graph_node *node)
{
	buffer_u8(value, INDEX_VERSION);
	buffer_u8(value, node->complete ? INDEX_COMPLETE : 0);
	place_encode(value, &node->self.place);
	buffer_u64(value, node->generation);
	buffer_u64(value, (uint64_t)node->time_ms);
	buffer_u8(value, (uint8_t)node->parent_count);
	for (size_t i = 0; i < node->parent_count; i++) {
		buffer_id(value, &node->parents[i].id);
		place_encode(value, &node->parents[i].place);
	}
	struct id check;
	sha256_of(value->data, value->length, &check);
	buffer_append(value, check.bytes, INDEX_CHECK_BYTES);
}

static bool is_whole(const uint8_t *value, size_t length)
{
	struct id check;
	if (length < INDEX_CHECK_BYTES)
		return false;
	sha256_of(value, length - INDEX_CHECK_BYTES, &check);
	return memcmp(value + length - INDEX_CHECK_BYTES, check.bytes, INDEX_CHECK_BYTES) == 0;
}

/* NULL: not one of ours, damaged, or no memory; as good as absent. */
static struct graph_node *decode_entry(const struct id *id, const void *value, size_t length)
{
	if (!is_whole(value, length))
		return NULL;
	struct reader reader = reader_of(value, length - INDEX_CHECK_BYTES);
	struct pointer self = {.id = *id};
	uint8_t version = read_u8(&reader);
	uint8_t flags = read_u8(&reader);

	place_decode(&reader, &self.place);
	uint64_t generation = read_u64(&reader);
	uint64_t time_ms = read_u64(&reader);
	size_t parent_count = read_u8(&reader);
	if (reader.failed || version != INDEX_VERSION || parent_count > COMMIT_PARENTS_MAX)
		return NULL;
	CLEANUP(free_pointer) struct graph_node *node = graph_node_new(&self, parent_count);
	if (!node)
		return NULL;
	node->generation = generation;
	node->time_ms = (int64_t)time_ms;
	node->complete = flags & INDEX_COMPLETE;
	node->indexed = true;
	for (size_t i = 0; i < parent_count; i++) {
		read_id(&reader, &node->parents[i].id);
		place_decode(&reader, &node->parents[i].place);
	}
	return reader_finish(&reader) == 0 ? steal(&node) : NULL;
}

static struct graph_node *copy_node(const struct graph_node *node)
{
	struct graph_node *copy = graph_node_new(&node->self, node->parent_count);

	if (!copy)
		return NULL;
	copy->generation = node->generation;
	copy->time_ms = node->time_ms;
	copy->complete = node->complete;
	copy->indexed = true;
	memcpy(copy->parents, node->parents, node->parent_count * sizeof(struct pointer));
	return copy;
}

/* What the index knows of `id`; the caller frees it. NULL: nothing. */
static struct graph_node *lookup(struct history *history, const struct id *id)
{
	struct graph_node *node = NULL;
	struct kv_txn *txn = NULL;
	struct span value;

	if (!history->index) {
		pthread_mutex_lock(&history->lock);
		const struct graph_node *known = node_set_find(&history->known, id);
		node = known ? copy_node(known) : NULL;
		pthread_mutex_unlock(&history->lock);
		return node;
	}
	if (kv_begin(history->index, false, &txn) < 0)
		return NULL;
	if (kv_get(txn, INDEX_TABLE, id->bytes, ID_BYTES, &value) == 0)
		node = decode_entry(id, value.data, value.length);
	kv_abort(txn);
	return node;
}

static void store_known(struct history *history, struct graph_node *const *nodes, size_t count)
{
	pthread_mutex_lock(&history->lock);
	for (size_t i = 0; i < count; i++) {
		struct graph_node *copy = copy_node(nodes[i]);

		if (!copy)
			break;
		free(node_set_take(&history->known, &copy->self.id));
		if (node_set_add(&history->known, copy) < 0) {
			free(copy);
			break;
		}
	}
	pthread_mutex_unlock(&history->lock);
}

static int store_batch(struct history *history, struct graph_node *const *nodes, size_t count)
{
	CLEANUP(buffer_release) struct buffer value = {0};
	struct kv_txn *txn = NULL;
	int rc = kv_begin(history->index, true, &txn);

	if (rc < 0)
		return rc;
	for (size_t i = 0; rc == 0 && i < count; i++) {
		buffer_clear(&value);
		encode_entry(&value, nodes[i]);
		rc = buffer_check(&value);
		if (rc == 0)
			rc = kv_put(txn, INDEX_TABLE, nodes[i]->self.id.bytes, ID_BYTES, value.data,
			            value.length);
	}
	if (rc < 0) {
		kv_abort(txn);
		return rc;
	}
	return kv_commit(txn);
}

/* `nodes` come ancestors first. */
static int store_nodes(struct history *history, struct graph_node *const *nodes, size_t count)
{
	if (!history->index) {
		store_known(history, nodes, count);
		return 0;
	}
	for (size_t i = 0; i < count; i += BATCH_NODES) {
		size_t batch = count - i < BATCH_NODES ? count - i : BATCH_NODES;
		int rc = store_batch(history, nodes + i, batch);

		if (rc < 0)
			return rc;
	}
	return 0;
}

void history_drop(struct history *history, const struct id *id)
{
	struct kv_txn *txn = NULL;

	if (!history->index) {
		pthread_mutex_lock(&history->lock);
		free(node_set_take(&history->known, id));
		pthread_mutex_unlock(&history->lock);
		return;
	}
	if (kv_begin(history->index, true, &txn) < 0)
		return;
	kv_delete(txn, INDEX_TABLE, id->bytes, ID_BYTES);
	kv_commit(txn);
}

/* -- nodes -- */

int node_read(struct history *history, const struct pointer *pointer, struct graph_node **ret_node,
              struct message *message)
{
	CLEANUP(free_pointer) struct graph_node *node = lookup(history, &pointer->id);
	CLEANUP(free_pointer) struct commit *commit = NULL;

	if (!node || !place_equal(&node->self.place, &pointer->place)) {
		int rc = commit_read(history->odb, pointer, &commit, message);

		if (rc < 0)
			return rc;
		free(node);
		node = graph_node_of(commit);
	}
	if (!node)
		return fail(message, -ERR_NO_MEMORY, "%s", error_text(-ERR_NO_MEMORY));
	*ret_node = steal(&node);
	return 0;
}

int node_load(struct history *history, struct node_set *set, const struct pointer *pointer,
              struct graph_node **ret_node, struct message *message)
{
	struct graph_node *node = node_set_find(set, &pointer->id);

	if (!node) {
		int rc = node_read(history, pointer, &node, message);

		if (rc < 0)
			return rc;
		rc = node_set_add(set, node);
		if (rc < 0) {
			free(node);
			return fail(message, rc, "%s", error_text(rc));
		}
	}
	*ret_node = node;
	return 0;
}

int node_load_parent(struct history *history, struct node_set *set, const struct graph_node *child,
                     size_t parent, struct graph_node **ret_node, struct message *message)
{
	struct graph_node *node = NULL;
	int rc = node_load(history, set, &child->parents[parent], &node, message);

	if (rc < 0)
		return rc;
	if (node->generation >= child->generation) {
		char hex[ID_HEX + 1];

		id_to_hex(&child->self.id, hex);
		return fail(message, -ERR_CORRUPT,
		            "commit %.12s is damaged: its generation is not above its parents'",
		            hex);
	}
	*ret_node = node;
	return 0;
}

/* -- entering -- */

static int compare_generation(const void *a, const void *b)
{
	const struct graph_node *left = *(struct graph_node *const *)a;
	const struct graph_node *right = *(struct graph_node *const *)b;

	return (left->generation > right->generation) - (left->generation < right->generation);
}

static bool parents_complete(struct history *history, const struct node_set *set,
                             const struct graph_node *node)
{
	for (size_t i = 0; i < node->parent_count; i++) {
		const struct pointer *pointer = &node->parents[i];
		const struct graph_node *parent = node_set_find(set, &pointer->id);

		if (parent) {
			if (!parent->complete)
				return false;
			continue;
		}
		CLEANUP(free_pointer) struct graph_node *indexed = lookup(history, &pointer->id);
		if (!indexed || !indexed->complete ||
		    !place_equal(&indexed->self.place, &pointer->place))
			return false;
	}
	return true;
}

static int remember(struct history *history, const struct node_set *set)
{
	CLEANUP(free_pointer)
	struct graph_node **nodes = calloc(set->count + 1, sizeof(struct graph_node *));
	size_t candidates = 0, changed = 0;

	if (!nodes)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < set->slot_count; i++) {
		for (struct graph_node *n = set->slots[i]; n; n = n->next_same_slot) {
			if (!n->complete)
				nodes[candidates++] = n;
		}
	}
	qsort(nodes, candidates, sizeof(struct graph_node *), compare_generation);
	for (size_t i = 0; i < candidates; i++) {
		nodes[i]->complete = parents_complete(history, set, nodes[i]);
		if (nodes[i]->complete || !nodes[i]->indexed)
			nodes[changed++] = nodes[i];
	}
	return store_nodes(history, nodes, changed);
}

void history_remember(struct history *history, const struct node_set *set)
{
	(void)remember(history, set);
}

void history_note(struct history *history, const struct commit *commit)
{
	CLEANUP(node_set_release) struct node_set set = {0};
	CLEANUP(free_pointer) struct graph_node *known = lookup(history, &commit->self.id);

	if (known && known->complete && place_equal(&known->self.place, &commit->self.place))
		return;
	struct graph_node *node = graph_node_of(commit);
	if (!node || node_set_add(&set, node) < 0)
		free(node);
	else
		history_remember(history, &set);
}

/* -- feeding from refs -- */

struct feeding {
	struct history *history;
	struct node_set nodes;
	struct node_heap pending; /* in `nodes`, parents not looked at yet */
	struct states before, after;
	int error; /* the first */
	struct message *message;
};

static void feeding_release(struct feeding *feeding)
{
	node_heap_release(&feeding->pending);
	node_set_release(&feeding->nodes);
	free(feeding->before.ids);
	free(feeding->after.ids);
}

static int compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, ID_BYTES);
}

static void add_state(struct states *states, const struct id *state)
{
	if (states->count == states->capacity) {
		size_t capacity = states->capacity > 0 ? states->capacity * 2 : 64;
		struct id *ids = reallocarray(states->ids, capacity, sizeof(*ids));

		if (!ids)
			return; /* the ref is looked at again next time */
		states->ids = ids;
		states->capacity = capacity;
	}
	states->ids[states->count++] = *state;
}

static bool has_state(const struct states *states, const struct id *state)
{
	return states->count > 0 &&
	       bsearch(state, states->ids, states->count, sizeof(*state), compare_ids) != NULL;
}

/* False where the store tells no etag. */
static bool state_of(const struct ref *ref, struct id *ret_state)
{
	char text[REF_NAME_MAX + ETAG_MAX + 16];
	int length = snprintf(text, sizeof(text), "%d %s %s", ref->kind, ref->name, ref->etag.text);

	if (ref->etag.text[0])
		sha256_of(text, (size_t)length, ret_state);
	return ref->etag.text[0];
}

static int feed_node(struct feeding *feeding, struct graph_node *node, struct message *message)
{
	if (node->queued || (node->indexed && node->complete))
		return 0;
	node->queued = true;
	int rc = node_heap_push(&feeding->pending, node);
	return rc < 0 ? fail(message, rc, "%s", error_text(rc)) : 0;
}

/* Load everything from `start` down to what the index vouches for. */
static int feed_from(struct feeding *feeding, const struct pointer *start, struct message *message)
{
	struct history *history = feeding->history;
	struct graph_node *node, *parent;
	int rc = node_load(history, &feeding->nodes, start, &node, message);

	if (rc == 0)
		rc = feed_node(feeding, node, message);
	int first = rc;
	while ((node = node_heap_pop(&feeding->pending))) {
		for (size_t i = 0; i < node->parent_count; i++) {
			struct message *where = first == 0 ? message : NULL;

			rc = node_load_parent(history, &feeding->nodes, node, i, &parent, where);
			if (rc == 0)
				rc = feed_node(feeding, parent, where);
			if (rc < 0 && first == 0)
				first = rc;
		}
	}
	return first;
}

static int feed_moves(struct feeding *feeding, const struct ref *ref, struct message *message)
{
	int rc = feed_from(feeding, &ref->commit, message);

	for (size_t i = 0; rc == 0 && i < ref->move_count; i++) {
		const struct pointer *ends[] = {&ref->moves[i].after, &ref->moves[i].before};

		for (size_t k = 0; rc == 0 && k < ARRAY_SIZE(ends); k++) {
			if (pointer_is_none(ends[k]))
				continue;
			rc = feed_from(feeding, ends[k], message);
			if (rc == -ERR_NOT_FOUND)
				rc = 0; /* a reflog may outlive what it tells of */
		}
	}
	return rc;
}

static int feed_ref(void *context, const struct ref *listed)
{
	struct feeding *feeding = context;
	CLEANUP(ref_release) struct ref ref = {0};
	struct message *message = feeding->error == 0 ? feeding->message : NULL;
	struct id state;

	if (state_of(listed, &state) && has_state(&feeding->before, &state)) {
		add_state(&feeding->after, &state);
		return 0;
	}
	int rc = ref_read(odb_store(feeding->history->odb), listed->kind, listed->name, &ref,
	                  message);
	if (rc == -ERR_NOT_FOUND)
		return 0;
	if (rc == 0)
		rc = feed_moves(feeding, &ref, message);
	if (rc == 0 && state_of(&ref, &state))
		add_state(&feeding->after, &state);
	if (rc < 0 && feeding->error == 0)
		feeding->error = rc;
	return 0;
}

static void swap_states(struct history *history, struct states *states)
{
	pthread_mutex_lock(&history->lock);
	struct states other = history->fed;
	history->fed = *states;
	*states = other;
	pthread_mutex_unlock(&history->lock);
}

int history_feed(struct history *history, struct message *message)
{
	struct message first = {0}, failure = {0};
	CLEANUP(feeding_release)
	struct feeding feeding = {
	        .history = history, .pending = {.order = BY_GENERATION}, .message = &first};
	struct object_store *store = odb_store(history->odb);

	swap_states(history, &feeding.before);
	int rc = ref_list(store, REF_BRANCH, false, feed_ref, &feeding, &failure);
	if (rc == 0)
		rc = ref_list(store, REF_TAG, false, feed_ref, &feeding, &failure);
	if (rc < 0)
		return fail(message, rc, "%s", failure.text);
	rc = remember(history, &feeding.nodes);
	if (rc == 0) {
		if (feeding.after.count > 0)
			qsort(feeding.after.ids, feeding.after.count, sizeof(struct id),
			      compare_ids);
		swap_states(history, &feeding.after);
	}
	return feeding.error < 0 ? fail(message, feeding.error, "%s", first.text) : 0;
}

/* -- finding by prefix -- */

static bool id_has_prefix(const struct id *id, const char *digits)
{
	char hex[ID_HEX + 1];

	id_to_hex(id, hex);
	return strncmp(hex, digits, strlen(digits)) == 0;
}

static size_t known_prefix(struct history *history, const char *digits,
                           struct pointer *ret_pointers, size_t max)
{
	size_t count = 0;

	pthread_mutex_lock(&history->lock);
	for (size_t i = 0; i < history->known.slot_count && count < max; i++) {
		const struct graph_node *node = history->known.slots[i];

		for (; node && count < max; node = node->next_same_slot) {
			if (id_has_prefix(&node->self.id, digits))
				ret_pointers[count++] = node->self;
		}
	}
	pthread_mutex_unlock(&history->lock);
	return count;
}

static void kv_cursor_release(struct kv_cursor **cursor)
{
	kv_cursor_free(*cursor);
}

static int index_prefix(struct kv_txn *txn, const char *digits, struct pointer *ret_pointers,
                        size_t max, size_t *ret_count)
{
	CLEANUP(kv_cursor_release) struct kv_cursor *cursor = NULL;
	char even[ID_HEX + 1];
	struct id first, id;
	struct span key, value;
	size_t length = strlen(digits), count = 0;

	/* The smallest id with this prefix starts with it, padded by a 0 to whole bytes. */
	snprintf(even, sizeof(even), "%s%s", digits, length % 2 ? "0" : "");
	int rc = hex_decode(even, strlen(even), first.bytes);
	if (rc == 0)
		rc = kv_seek(txn, INDEX_TABLE, first.bytes, strlen(even) / 2, &cursor);
	while (rc == 0 && count < max) {
		rc = kv_next(cursor, &key, &value);
		if (rc < 0 || key.length != ID_BYTES)
			break;
		memcpy(id.bytes, key.data, ID_BYTES);
		if (!id_has_prefix(&id, digits))
			break;
		CLEANUP(free_pointer)
		struct graph_node *node = decode_entry(&id, value.data, value.length);
		if (node)
			ret_pointers[count++] = node->self;
	}
	*ret_count = count;
	return rc == -ERR_NOT_FOUND ? 0 : rc;
}

int history_prefix(struct history *history, const char *digits, struct pointer *ret_pointers,
                   size_t max, size_t *ret_count)
{
	struct kv_txn *txn = NULL;

	if (!history->index) {
		*ret_count = known_prefix(history, digits, ret_pointers, max);
		return 0;
	}
	int rc = kv_begin(history->index, false, &txn);
	if (rc < 0)
		return rc;
	rc = index_prefix(txn, digits, ret_pointers, max, ret_count);
	kv_abort(txn);
	return rc;
}
