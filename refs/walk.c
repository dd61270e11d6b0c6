/*
 * walk.c — hides the order in which history is told, and what "changed a path" means.
 *
 * Order: Kahn's algorithm done lazily (after git's `--topo-order` with generation numbers). A
 * commit waits until every child that the walk can reach has been told; among those that wait for
 * nobody the newest goes first. Whoever could be a child of a commit has a higher generation, so
 * it is enough to have counted the parents of everything above that generation:
 *   `counting` holds what was met and whose parents are not counted yet, by generation;
 *   `ready` holds what waits for nobody, by time. A commit is forgotten once it was told.
 */
#include "refs/graph.h"

#include <sys/stat.h>

/* No path of PATH_MAX bytes has more components. */
#define DEPTH_MAX 2048

struct history_walk {
	struct history *history;
	struct walk_options options;
	struct pointer *starts;
	size_t start_count;
	bool started;
	int error; /* sticky */
	struct node_set nodes;
	struct node_heap counting;
	struct node_heap ready;
};

void history_walk_free(struct history_walk *walk)
{
	if (!walk)
		return;
	node_heap_release(&walk->counting);
	node_heap_release(&walk->ready);
	node_set_release(&walk->nodes);
	free(walk->starts);
	free(walk);
}

int history_walk_new(struct history *history, const struct pointer *starts, size_t count,
                     const struct walk_options *options, struct history_walk **ret_walk)
{
	struct history_walk *walk = calloc(1, sizeof(*walk));

	if (!walk)
		return -ERR_NO_MEMORY;
	walk->starts = calloc(count + 1, sizeof(*walk->starts));
	if (!walk->starts) {
		history_walk_free(walk);
		return -ERR_NO_MEMORY;
	}
	if (count > 0)
		memcpy(walk->starts, starts, count * sizeof(*starts));
	walk->start_count = count;
	walk->history = history;
	if (options)
		walk->options = *options;
	walk->counting.order = BY_GENERATION;
	walk->ready.order = BY_TIME;
	*ret_walk = walk;
	return 0;
}

/* -- order -- */

static size_t followed(const struct history_walk *walk, const struct graph_node *node)
{
	return walk->options.first_parent && node->parent_count > 1 ? 1 : node->parent_count;
}

static int push(struct node_heap *heap, struct graph_node *node, struct message *message)
{
	int rc = node_heap_push(heap, node);

	return rc < 0 ? fail(message, rc, "%s", error_text(rc)) : 0;
}

/* Met for the first time: its parents have to be counted some day. */
static int meet(struct history_walk *walk, struct graph_node *node, struct message *message)
{
	if (node->queued)
		return 0;
	node->queued = true;
	return push(&walk->counting, node, message);
}

/* Count the parents of everything above `generation`. */
static int count_above(struct history_walk *walk, uint64_t generation, struct message *message)
{
	struct graph_node *node, *parent;

	while ((node = node_heap_top(&walk->counting)) && node->generation > generation) {
		node_heap_pop(&walk->counting);
		for (size_t i = 0; i < followed(walk, node); i++) {
			int rc = node_load_parent(walk->history, &walk->nodes, node, i, &parent,
			                          message);

			if (rc == 0)
				rc = meet(walk, parent, message);
			if (rc < 0)
				return rc;
			parent->waiting++;
		}
	}
	return 0;
}

static int start(struct history_walk *walk, struct message *message)
{
	uint64_t lowest = UINT64_MAX;
	struct graph_node *node;

	walk->started = true;
	for (size_t i = 0; i < walk->start_count; i++) {
		int rc = node_load(walk->history, &walk->nodes, &walk->starts[i], &node, message);

		if (rc == 0)
			rc = meet(walk, node, message);
		if (rc < 0)
			return rc;
		if (node->generation < lowest)
			lowest = node->generation;
	}
	int rc = count_above(walk, lowest, message);
	for (size_t i = 0; rc == 0 && i < walk->start_count; i++) {
		node = node_set_find(&walk->nodes, &walk->starts[i].id);
		if (node->waiting > 0 || node->flags)
			continue;
		node->flags = 1; /* the same start may be given twice */
		rc = push(&walk->ready, node, message);
	}
	return rc;
}

/* The next commit in order, taken out of the walk. -ERR_NOT_FOUND at the end. */
static int next_node(struct history_walk *walk, struct graph_node **ret_node,
                     struct message *message)
{
	struct graph_node *node = node_heap_pop(&walk->ready);

	if (!node)
		return -ERR_NOT_FOUND;
	int rc = count_above(walk, node->generation - 1, message);
	for (size_t i = 0; rc == 0 && i < followed(walk, node); i++) {
		struct graph_node *parent = node_set_find(&walk->nodes, &node->parents[i].id);

		rc = count_above(walk, parent->generation, message);
		if (rc == 0 && --parent->waiting == 0)
			rc = push(&walk->ready, parent, message);
	}
	if (rc < 0)
		return rc;
	*ret_node = node_set_take(&walk->nodes, &node->self.id);
	return 0;
}

/* -- paths -- */

static bool is_directory(const struct tree_entry *entry)
{
	return entry && S_ISDIR(entry->attributes.mode);
}

static void tree_diff_release(struct tree_diff **diff)
{
	tree_diff_free(*diff);
}

static int trees_differ(struct odb *odb, const struct pointer *before, const struct pointer *after,
                        unsigned depth, struct message *message);

static int entries_differ(struct odb *odb, const struct tree_entry *before,
                          const struct tree_entry *after, unsigned depth, struct message *message)
{
	if (!before || !after)
		return before != after;
	if (!is_directory(before) || !is_directory(after))
		return !tree_entry_same_but_time(before, after);
	struct tree_entry alike = *after;
	alike.content = before->content;
	if (!tree_entry_same_but_time(before, &alike))
		return 1;
	return trees_differ(odb, &before->content.pointer, &after->content.pointer, depth + 1,
	                    message);
}

/* Whether two directories differ in more than times. Stops at the first difference, so a full diff
 * happens only where nothing but times has changed. */
static int trees_differ(struct odb *odb, const struct pointer *before, const struct pointer *after,
                        unsigned depth, struct message *message)
{
	CLEANUP(tree_diff_release) struct tree_diff *diff = NULL;
	struct tree_change change;

	if (id_equal(&before->id, &after->id))
		return 0;
	if (depth > DEPTH_MAX)
		return fail(message, -ERR_CORRUPT, "directories more than %d deep", DEPTH_MAX);
	int rc = tree_diff_new(odb, before, after, &diff);
	if (rc < 0)
		return fail(message, rc, "%s", error_text(rc));
	struct message unread = {0};
	while ((rc = tree_diff_next(diff, &change, &unread)) == 0) {
		rc = entries_differ(odb, change.before, change.after, depth, message);
		if (rc != 0)
			return rc;
	}
	if (rc == -ERR_NOT_FOUND && !unread.text[0])
		return 0;
	return fail(message, rc, "%s", unread.text);
}

/* NULL where there is none. */
static int find_entry(struct odb *odb, const struct pointer *root, const char *name, size_t length,
                      struct tree_entry **ret_entry, struct message *message)
{
	struct message unread = {0};
	int rc = pointer_is_none(root) ? -ERR_NOT_FOUND
	                               : tree_lookup(odb, root, name, length, ret_entry, &unread);

	if (rc == -ERR_NOT_FOUND)
		return 0;
	return rc < 0 ? fail(message, rc, "%s", unread.text) : rc;
}

/* 1 when `path` or what lies below it differs between two root directories, else 0. Both are
 * descended side by side, and no further than they differ. */
static int path_differs(struct odb *odb, struct pointer before, struct pointer after,
                        const char *path, struct message *message)
{
	if (path[0] == '\0')
		return trees_differ(odb, &before, &after, 0, message);
	while (!id_equal(&before.id, &after.id)) {
		CLEANUP(free_pointer) struct tree_entry *old = NULL;
		CLEANUP(free_pointer) struct tree_entry *new = NULL;
		size_t length = strcspn(path, "/");
		int rc = find_entry(odb, &before, path, length, &old, message);

		if (rc == 0)
			rc = find_entry(odb, &after, path, length, &new, message);
		if (rc < 0)
			return rc;
		path += length + (path[length] == '/');
		if (path[0] == '\0')
			return entries_differ(odb, old, new, 0, message);
		/* Nothing lies below what is no directory. */
		before = is_directory(old) ? old->content.pointer : pointer_none;
		after = is_directory(new) ? new->content.pointer : pointer_none;
	}
	return 0;
}

static int changed_against(struct history_walk *walk, const struct pointer *before,
                           const struct commit *commit, struct message *message)
{
	for (size_t i = 0; i < walk->options.path_count; i++) {
		int rc = path_differs(history_odb(walk->history), *before, commit->tree,
		                      walk->options.paths[i], message);

		if (rc != 0)
			return rc;
	}
	return 0;
}

/* 1, 0 or an error. */
static int is_wanted(struct history_walk *walk, const struct commit *commit,
                     struct message *message)
{
	size_t parent_count = commit->parent_count;

	if (!walk->options.paths)
		return 1;
	if (parent_count == 0)
		return changed_against(walk, &pointer_none, commit, message);
	if (walk->options.first_parent)
		parent_count = 1;
	for (size_t i = 0; i < parent_count; i++) {
		CLEANUP(free_pointer) struct commit *parent = NULL;
		int rc = commit_read(history_odb(walk->history), &commit->parents[i], &parent,
		                     message);

		if (rc == 0)
			rc = changed_against(walk, &parent->tree, commit, message);
		if (rc <= 0)
			return rc;
	}
	return 1;
}

static int walk_next(struct history_walk *walk, struct commit **ret_commit, struct message *message)
{
	int rc = walk->started ? 0 : start(walk, message);

	while (rc == 0) {
		CLEANUP(free_pointer) struct graph_node *node = NULL;
		CLEANUP(free_pointer) struct commit *commit = NULL;

		rc = next_node(walk, &node, message);
		if (rc == 0)
			rc = commit_read(history_odb(walk->history), &node->self, &commit, message);
		if (rc < 0)
			return rc;
		rc = is_wanted(walk, commit, message);
		if (rc > 0) {
			*ret_commit = steal(&commit);
			return 0;
		}
	}
	return rc;
}

int history_walk_next(struct history_walk *walk, struct commit **ret_commit,
                      struct message *message)
{
	if (walk->error < 0)
		return fail(message, walk->error, "the walk ended earlier: %s",
		            error_text(walk->error));
	/* The end is told by an error of its own, never by that of a missing pack. */
	struct message unread = {0};
	int rc = walk_next(walk, ret_commit, &unread);
	if (rc == -ERR_NOT_FOUND && unread.text[0])
		rc = -ERR_CORRUPT;
	if (rc < 0)
		walk->error = rc;
	return rc < 0 && rc != -ERR_NOT_FOUND ? fail(message, rc, "%s", unread.text) : rc;
}
