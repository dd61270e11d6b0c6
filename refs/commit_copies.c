/*
 * commit_copies.c — hides which ancestors a commit carries copies of.
 *
 * Packs are merged like the runs of a log-structured tree. Going back from the new commit, the
 * packs that hold its ancestors (as their places are now) are a row of sizes; when enough small
 * ones have gathered at its front, the new commit's pack takes copies of all they hold and is one
 * of the next size. For a straight history that is a counter: packs of 4 commits, of 32, of 256.
 * Nothing but the places says what was copied: so a commit that lacked a record at hand leaves the
 * row as it is, and one after it goes by what it finds.
 */
#include "refs/commit_copies.h"

#include "refs/graph.h"

#define LOOK_MAX 320           /* ancestors looked at */
#define MET_MAX (2 * LOOK_MAX) /* of these and of their parents */
#define COPIES_MAX 255
/* Longer messages stay where they are: copies must not cost more than the commits themselves. */
#define COPY_RAW_BYTES_MAX 2048

/* So many packs of fewer commits make one pack of as many. */
static const struct level {
	size_t commits;
	size_t packs;
} levels[] = {{4, 3}, {32, 3 + 7}, {256, 3 + 7 + 7}};

struct ancestor {
	struct commit *commit;
	size_t pack; /* of `packs` */
	bool led_to; /* by the new commit, or by one that is copied */
	bool copied; /* then commit->self is the copy's */
};

struct pack_row {
	uint8_t id[PACK_ID_BYTES];
	size_t commits;
};

struct carrying {
	struct odb *odb;
	struct node_set nodes; /* `waiting` is the index in `met` */
	struct node_heap queue;
	struct ancestor met[MET_MAX];
	size_t met_count;
	struct ancestor *order[LOOK_MAX]; /* every child before its parents */
	size_t order_count;
	struct pack_row packs[LOOK_MAX]; /* in the order in which they are met */
	size_t pack_count;
	bool whole; /* the walk came to an end by itself */
};

static void carrying_free(struct carrying **at)
{
	struct carrying *carrying = *at;

	if (!carrying)
		return;
	for (size_t i = 0; i < carrying->met_count; i++)
		free(carrying->met[i].commit);
	node_heap_release(&carrying->queue);
	node_set_release(&carrying->nodes);
	free(carrying);
}

static int read_at_hand(struct odb *odb, const struct pointer *pointer, struct commit **ret_commit)
{
	struct record *record = NULL;
	int rc = odb_read_at_hand(odb, RECORD_COMMIT, pointer, &record);

	if (rc < 0)
		return rc;
	rc = commit_decode(record->logical, record->logical_length, record->places,
	                   record->places_length, ret_commit);
	record_unref(record);
	if (rc == 0)
		(*ret_commit)->self = *pointer;
	return rc;
}

/* Queue an ancestor; one that is not at hand, cannot be read or is not to be copied is left out,
 * and what lies beyond it: it would not lead there. -ERR_NO_MEMORY. */
static int meet(struct carrying *carrying, const struct pointer *pointer)
{
	struct commit *commit = NULL;

	if (pointer->place.raw > COPY_RAW_BYTES_MAX || carrying->met_count == MET_MAX ||
	    node_set_find(&carrying->nodes, &pointer->id))
		return 0;
	int rc = read_at_hand(carrying->odb, pointer, &commit);
	if (rc < 0)
		return rc == -ERR_NO_MEMORY ? rc : 0;
	carrying->met[carrying->met_count] = (struct ancestor){.commit = commit};
	struct graph_node *node = graph_node_of(commit);
	if (node)
		node->waiting = carrying->met_count;
	carrying->met_count++;
	if (!node || node_set_add(&carrying->nodes, node) < 0) {
		free(node);
		return -ERR_NO_MEMORY;
	}
	return node_heap_push(&carrying->queue, node);
}

static struct pack_row *note_pack(struct carrying *carrying, struct ancestor *ancestor)
{
	const uint8_t *id = ancestor->commit->self.place.pack;
	size_t at = 0;

	while (at < carrying->pack_count && memcmp(carrying->packs[at].id, id, PACK_ID_BYTES) != 0)
		at++;
	if (at == carrying->pack_count)
		memcpy(carrying->packs[carrying->pack_count++].id, id, PACK_ID_BYTES);
	ancestor->pack = at;
	carrying->packs[at].commits++;
	return &carrying->packs[at];
}

/* What lies beyond a pack of the largest size is settled. */
static int look_back(struct carrying *carrying, const struct pointer *parents, size_t parent_count)
{
	size_t largest = levels[ARRAY_SIZE(levels) - 1].commits;
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < parent_count; i++)
		rc = meet(carrying, &parents[i]);
	while (rc == 0 && carrying->order_count < LOOK_MAX) {
		struct graph_node *node = node_heap_pop(&carrying->queue);

		carrying->whole = !node;
		if (!node)
			return 0;
		struct ancestor *ancestor = &carrying->met[node->waiting];
		carrying->order[carrying->order_count++] = ancestor;
		if (note_pack(carrying, ancestor)->commits >= largest)
			return 0;
		for (size_t i = 0; rc == 0 && i < node->parent_count; i++)
			rc = meet(carrying, &node->parents[i]);
	}
	return rc;
}

/* How many packs at the row's front are to be merged. */
static size_t choose(const struct carrying *carrying)
{
	size_t count = carrying->pack_count, chosen = 0;

	if (!carrying->whole && count > 0)
		count--; /* not all of the last was seen */
	for (size_t i = 0; i < ARRAY_SIZE(levels); i++) {
		size_t front = 0, commits = 0;

		while (front < count && carrying->packs[front].commits < levels[i].commits)
			commits += carrying->packs[front++].commits;
		if (front >= levels[i].packs && commits >= levels[i].commits / 2)
			chosen = front;
	}
	return chosen;
}

static struct ancestor *ancestor_at(struct carrying *carrying, const struct pointer *pointer)
{
	const struct graph_node *node = node_set_find(&carrying->nodes, &pointer->id);

	return node ? &carrying->met[node->waiting] : NULL;
}

static void mark_led_to(struct carrying *carrying, const struct pointer *parents, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct ancestor *ancestor = ancestor_at(carrying, &parents[i]);

		if (ancestor)
			ancestor->led_to = true;
	}
}

static void lead_to_copies(struct carrying *carrying, struct pointer *parents, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct ancestor *ancestor = ancestor_at(carrying, &parents[i]);

		if (ancestor && ancestor->copied)
			parents[i].place = ancestor->commit->self.place;
	}
}

static int add_copy(struct carrying *carrying, struct packer *packer, struct ancestor *ancestor,
                    struct message *message)
{
	CLEANUP(buffer_release) struct buffer logical = {.limit = RECORD_RAW_MAX};
	CLEANUP(buffer_release) struct buffer places = {.limit = RECORD_RAW_MAX};
	struct commit *commit = ancestor->commit;
	struct record *record;
	struct pointer copy;

	lead_to_copies(carrying, commit->parents, commit->parent_count);
	if (commit->copied_from.raw == 0)
		commit->copied_from = commit->self.place;
	int rc = commit_encode(commit, &logical, &places);
	if (rc < 0)
		return fail(message, rc, "cannot encode a commit: %s", error_text(rc));
	rc = packer_add_copy(packer, RECORD_COMMIT, logical.data, logical.length, places.data,
	                     places.length, &copy, message);
	if (rc < 0)
		return rc;
	commit->self = copy;
	ancestor->copied = true;
	/* The next commit finds it at hand. */
	if (odb_read_at_hand(carrying->odb, RECORD_COMMIT, &copy, &record) == 0)
		record_unref(record);
	return 0;
}

/* Those in the first packs of the row that copies lead to, children first. */
static size_t select_copies(struct carrying *carrying, const struct pointer *parents,
                            size_t parent_count, struct ancestor *ret_copies[COPIES_MAX])
{
	size_t packs = choose(carrying), count = 0;

	mark_led_to(carrying, parents, parent_count);
	for (size_t i = 0; i < carrying->order_count && count < COPIES_MAX; i++) {
		struct ancestor *ancestor = carrying->order[i];

		if (!ancestor->led_to || ancestor->pack >= packs)
			continue;
		ret_copies[count++] = ancestor;
		mark_led_to(carrying, ancestor->commit->parents, ancestor->commit->parent_count);
	}
	return count;
}

int copies_carry(struct odb *odb, struct packer *packer, struct pointer *parents,
                 size_t parent_count, struct message *message)
{
	CLEANUP(carrying_free) struct carrying *carrying = calloc(1, sizeof(*carrying));
	struct ancestor *copies[COPIES_MAX];

	if (!carrying)
		return fail(message, -ERR_NO_MEMORY, "%s", error_text(-ERR_NO_MEMORY));
	carrying->odb = odb;
	carrying->queue.order = BY_GENERATION;
	int rc = look_back(carrying, parents, parent_count);
	if (rc < 0)
		return fail(message, rc, "%s", error_text(rc));
	size_t count = select_copies(carrying, parents, parent_count, copies);
	/* Parents first: their children must know where they are. */
	while (rc == 0 && count > 0)
		rc = add_copy(carrying, packer, copies[--count], message);
	lead_to_copies(carrying, parents, parent_count);
	return rc;
}
