/*
 * reach — hides in which order roots are walked and how what was seen is remembered.
 *
 * Equal ids do not mean that what is below lies in the same packs: hosts store the same directory
 * without knowing of each other, and commits carry copies of their ancestors. So a record is walked
 * once for each place that something reachable points to; only counted is it once.
 */
#include "fs/reach.h"

#include <stdio.h>
#include <uthash.h>

struct seen_key {
	struct id id;
	uint8_t pack[PACK_ID_BYTES]; /* zero with offset 0: anywhere */
	uint64_t offset;
};
struct seen {
	struct seen_key key;
	UT_hash_handle hh;
};
/* A commit to walk; a list, because histories are too long for recursion. */
struct pending {
	struct pointer pointer;
	struct pending *next;
	char why[REF_NAME_MAX + 64];
};
struct walk {
	struct lake *lake;
	const struct reach_visitor *visitor;
	struct reach_counts *counts;
	struct seen *seen;
	struct pending *pending;
	bool again; /* below a directory that was counted at another place */
};

/* True the first time. Out of memory counts as first: more work, never less. */
static bool first_with(struct walk *walk, const struct seen_key *key)
{
	struct seen *seen;
	HASH_FIND(hh, walk->seen, key, sizeof *key, seen);
	if (seen)
		return false;
	seen = malloc(sizeof *seen);
	if (seen) {
		seen->key = *key;
		HASH_ADD(hh, walk->seen, key, sizeof seen->key, seen);
		if (!seen->hh.tbl)
			free(seen);
	}
	return true;
}

static bool first_time(struct walk *walk, const struct pointer *pointer)
{
	struct seen_key key = {.id = pointer->id, .offset = pointer->place.offset};
	memcpy(key.pack, pointer->place.pack, PACK_ID_BYTES);
	return first_with(walk, &key);
}

static bool first_anywhere(struct walk *walk, const struct pointer *pointer)
{
	struct seen_key key = {.id = pointer->id};
	return first_with(walk, &key);
}

static int damaged(struct walk *walk, const char *where, int error, const struct message *message)
{
	if (error == -ERR_INTERRUPTED || error == -ERR_NO_MEMORY || error == -ERR_STORE_AWAY)
		return error;
	return walk->visitor->damaged(walk->visitor->context, where, error, message);
}

static int visit(void *context, enum record_kind kind, const struct pointer *pointer)
{
	struct walk *walk = context;
	return walk->visitor->record(walk->visitor->context, kind, pointer);
}

static int visit_piece(void *context, const struct piece *piece)
{
	return piece->hole ? 0 : visit(context, RECORD_CHUNK, &piece->pointer);
}

static int walk_content(struct walk *walk, const struct content *content, const char *where)
{
	struct message message = {{0}};
	int error = 0;
	walk->counts->files += !walk->again;
	if (walk->counts->files % 1024 == 0 &&
	    progress_report(walk->visitor->progress, "Walking", walk->counts->files, 0, "files"))
		return -ERR_INTERRUPTED;
	if (content->kind == CONTENT_CHUNK)
		return visit(walk, RECORD_CHUNK, &content->pointer);
	if (content->kind != CONTENT_LIST || !first_time(walk, &content->pointer))
		return 0;
	error = content_walk(walk->lake->odb, content, visit, walk, &message);
	if (!error)
		error = content_pieces(walk->lake->odb, content, 0, content->size, visit_piece,
		                       walk, &message);
	return error < 0 ? damaged(walk, where, error, &message) : error;
}

static int walk_tree(struct walk *walk, const struct pointer *root, const char *where);

static int walk_entries(struct walk *walk, const struct pointer *root, const char *where,
                        struct message *message)
{
	struct tree_iterator *iterator = NULL;
	const struct tree_entry *entry;
	int error = tree_iterate(walk->lake->odb, root, NULL, 0, &iterator, message);
	while (!error) {
		error = tree_next(iterator, &entry, message);
		if (error < 0)
			break;
		CLEANUP(free_pointer) char *path = NULL;
		if (text_format(&path, "%s/%s", where, entry->name) < 0)
			error = -ERR_NO_MEMORY;
		else if (S_ISDIR(entry->attributes.mode))
			error = walk_tree(walk, &entry->content.pointer, path);
		else
			error = walk_content(walk, &entry->content, path);
	}
	tree_iterator_free(iterator);
	return error == -ERR_NOT_FOUND ? 0 : error;
}

static int walk_tree(struct walk *walk, const struct pointer *root, const char *where)
{
	struct message message = {{0}};
	bool before = walk->again;
	if (pointer_is_none(root) || !first_time(walk, root))
		return 0;
	walk->again = !first_anywhere(walk, root);
	walk->counts->directories += !walk->again;
	int error = tree_walk(walk->lake->odb, root, visit, walk, &message);
	if (!error)
		error = walk_entries(walk, root, where, &message);
	walk->again = before;
	return error < 0 ? damaged(walk, where, error, &message) : error;
}

static int add_pending(struct walk *walk, const struct pointer *pointer, const char *why)
{
	if (pointer_is_none(pointer) || !first_time(walk, pointer))
		return 0;
	struct pending *pending = malloc(sizeof *pending);
	if (!pending)
		return -ERR_NO_MEMORY;
	pending->pointer = *pointer;
	snprintf(pending->why, sizeof pending->why, "%s", why);
	pending->next = walk->pending;
	walk->pending = pending;
	return 0;
}

static int walk_commit(struct walk *walk, const struct pending *pending)
{
	struct message message = {{0}};
	CLEANUP(free_pointer) struct commit *commit = NULL;
	char hex[ID_HEX + 1], where[REF_NAME_MAX + 96];
	id_to_hex(&pending->pointer.id, hex);
	snprintf(where, sizeof where, "commit %.12s (%s)", hex, pending->why);
	int error = visit(walk, RECORD_COMMIT, &pending->pointer);
	if (error)
		return error;
	walk->counts->commits += first_anywhere(walk, &pending->pointer);
	error = commit_read(walk->lake->odb, &pending->pointer, &commit, &message);
	if (error < 0)
		return damaged(walk, where, error, &message);
	if (commit->copied_from.raw > 0) { /* nothing else leads there from here */
		struct pointer first = {pending->pointer.id, commit->copied_from};
		error = visit(walk, RECORD_COMMIT, &first);
	}
	for (size_t i = 0; !error && i < commit->parent_count; i++)
		error = add_pending(walk, &commit->parents[i], pending->why);
	return error ? error : walk_tree(walk, &commit->tree, where);
}

static int walk_pending(struct walk *walk)
{
	int error = 0;
	while (walk->pending) {
		struct pending *pending = walk->pending;
		walk->pending = pending->next;
		if (!error)
			error = walk_commit(walk, pending);
		free(pending);
	}
	return error;
}

/* -- roots -- */

static int add_ref(void *context, const struct ref *ref)
{
	struct walk *walk = context;
	char why[REF_NAME_MAX + 64];
	snprintf(why, sizeof why, "%s %s", ref->kind == REF_BRANCH ? "branch" : "tag", ref->name);
	int error = add_pending(walk, &ref->commit, why);
	snprintf(why, sizeof why, "reflog of %s", ref->name);
	for (size_t i = 0; !error && i < ref->move_count; i++) {
		error = add_pending(walk, &ref->moves[i].before, why);
		if (!error)
			error = add_pending(walk, &ref->moves[i].after, why);
	}
	return error;
}

static int add_base(void *context, const struct pointer *commit)
{
	return add_pending(context, commit, "working tree");
}

static int add_uncommitted_tree(void *context, const struct pointer *tree)
{
	return walk_tree(context, tree, "uncommitted changes");
}

static int add_uncommitted(void *context, const struct content *content)
{
	return walk_content(context, content, "uncommitted changes");
}

static int add_roots(struct walk *walk, struct message *message)
{
	struct object_store *store = walk->lake->store;
	int error = 0;
	for (enum ref_kind kind = REF_BRANCH; !error && kind <= REF_TAG; kind++) {
		error = ref_list(store, kind, true, add_ref, walk, message);
		if (!error)
			error = ref_list_deleted(store, kind, add_ref, walk, message);
	}
	if (!error)
		error = worktrees_roots(walk->lake->worktrees, add_base, add_uncommitted_tree,
		                        add_uncommitted, walk);
	return error;
}

int reach_walk(struct lake *lake, const struct reach_visitor *visitor,
               struct reach_counts *ret_counts, struct message *message)
{
	struct walk walk = {.lake = lake, .visitor = visitor, .counts = ret_counts};
	struct seen *seen, *next;
	*ret_counts = (struct reach_counts){0};
	int error = add_roots(&walk, message);
	int walked = walk_pending(&walk);
	HASH_ITER (hh, walk.seen, seen, next) {
		HASH_DEL(walk.seen, seen);
		free(seen);
	}
	return error ? error : walked;
}
