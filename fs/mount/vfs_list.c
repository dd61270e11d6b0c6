/*
 * Hides how a directory is read in pieces while it changes.
 *
 * An offset is the index of an entry in the list of names this handle has given out: "." and
 * "..", then names in byte order. Reading on continues after the last name given out, so entries
 * removed or added meanwhile never make another one appear twice or not at all; going back gives
 * out the recorded names again, under the same offsets. The list costs the names' bytes and 4 more
 * each, while the handle is open.
 */
#include "fs/mount/vfs_internal.h"

#include <errno.h>

#include <uthash.h>

#define DOTS 2 /* entries before the first name */
#define BATCH_MAX 4096

/* For a successor: how far the handle had come. Of the two, one is that of the answer before, which
 * the kernel asks for again when it did not get the last. */
struct kept_mark {
	_Atomic uint64_t offset;       /* 0: nothing here */
	char name[NAME_BYTES_MAX + 1]; /* the last one before `offset` */
};
struct kept_directory {
	uint64_t handle, node, request;
	struct kept_mark marks[2];
};
struct vfs_directory {
	uint64_t handle;
	UT_hash_handle hh;           /* vfs->directories */
	struct kept_directory *kept; /* NULL without a keep */
	unsigned marks;              /* made */
	uint64_t unknown;     /* so many names were given out by a predecessor; the last is known */
	bool restored;        /* nothing was given out since */
	pthread_mutex_t lock; /* one reader at a time, across I/O: outermost of all locks */
	struct node *node;    /* pinned */
	struct buffer names;  /* given out, each with its NUL */
	struct buffer starts; /* u32 each: where it starts */
	bool complete;        /* all names are there: nothing to list (the root, reports) */
};

/* Names to give out next, with what they were found to be. */
struct item {
	char *name;
	struct found found; /* entry owned */
};
struct batch {
	struct item *items;
	size_t count, capacity;
	size_t used, room, overhead;
	bool whole; /* copy entries: all of their attributes will be asked for */
	int failed;
};

static void batch_release(struct batch *batch)
{
	for (size_t i = 0; i < batch->count; i++) {
		free(batch->items[i].name);
		free(batch->items[i].found.entry);
	}
	free(batch->items);
}

static bool batch_grow(struct batch *batch)
{
	if (batch->count < batch->capacity)
		return true;
	size_t capacity = batch->capacity ? batch->capacity * 2 : 64;
	struct item *items = realloc(batch->items, capacity * sizeof(*items));
	if (!items)
		return false;
	batch->items = items;
	batch->capacity = capacity;
	return true;
}

/* list_fn: stops when the reply is full. */
static int batch_add(void *context, const char *name, size_t length, const struct found *found)
{
	struct batch *batch = context;
	size_t bytes = batch->overhead + length;
	if (batch->count == BATCH_MAX || (batch->count && batch->used + bytes > batch->room))
		return 1;
	struct item item = {.name = strndup(name, length), .found = *found};
	item.found.entry = NULL;
	if (batch->whole && found->entry)
		item.found.entry = tree_entry_copy(found->entry);
	if (!item.name || (batch->whole && found->entry && !item.found.entry) ||
	    !batch_grow(batch)) {
		free(item.name);
		free(item.found.entry);
		batch->failed = -ERR_NO_MEMORY;
		return 1;
	}
	batch->used += bytes;
	batch->items[batch->count++] = item;
	return 0;
}

static int view_list(struct vfs *vfs, const struct pointer *tree, const char *after,
                     list_fn *callback, void *context, struct message *message)
{
	struct tree_iterator *iterator;
	const struct tree_entry *entry;
	int result = tree_iterate(vfs->lake->odb, tree, after, strlen(after), &iterator, message);
	if (result < 0)
		return result;
	while ((result = tree_next(iterator, &entry, message)) == 0) {
		struct tree_entry copy = *entry;
		struct found found = {.mode = entry->attributes.mode, .entry = &copy};
		if (callback(context, entry->name, entry->name_length, &found) != 0)
			break;
	}
	tree_iterator_free(iterator);
	return result == -ERR_NOT_FOUND || result == 0 ? 0 : result;
}

/* Names after `after`. -ERR_STALE: what was listed may not be what is bound. */
static int list_bound(struct vfs *vfs, const struct node *node, const struct binding *binding,
                      const char *after, list_fn *callback, void *context, struct message *message)
{
	int result;
	if (node->scope->worktree)
		result = worktree_list(node->scope->worktree, &binding->directory, after,
		                       strlen(after), callback, context, message);
	else
		result =
		        view_list(vfs, &binding->directory.tree, after, callback, context, message);
	if (result >= 0 && scope_epoch(node->scope) != binding->epoch)
		result = -ERR_STALE;
	return result;
}

static bool is_removed(struct vfs *vfs, const struct node *node)
{
	nodes_lock(vfs->nodes);
	bool removed = node->orphan != NULL;
	nodes_unlock(vfs->nodes);
	return removed;
}

int directory_peek(struct vfs *vfs, struct node *directory, const char *after, list_fn *callback,
                   void *context)
{
	struct binding binding;
	if (!directory->scope || is_removed(vfs, directory))
		return -ERR_STALE;
	int result = node_bind(vfs, directory, false, &binding, NULL);
	return result < 0 ? result
	                  : list_bound(vfs, directory, &binding, after, callback, context, NULL);
}

/* Fill the batch with names after `after`. *ret_epoch: what they were read in. */
static int batch_fill(struct vfs *vfs, struct node *node, const char *after, struct batch *batch,
                      uint64_t *ret_epoch, struct message *message)
{
	int result = -ERR_STALE;
	if (is_removed(vfs, node))
		return 0;
	for (int i = 0; i < VFS_TRIES && result == -ERR_STALE; i++) {
		struct binding binding;
		result = node_bind(vfs, node, false, &binding, message);
		if (result < 0)
			return result;
		*ret_epoch = binding.epoch;
		result = list_bound(vfs, node, &binding, after, batch_add, batch, message);
		if (result != -ERR_STALE)
			break;
		batch_release(batch);
		batch->items = NULL;
		batch->count = batch->capacity = batch->used = 0;
		node_unbind(vfs, node);
	}
	return batch->failed ? batch->failed : result < 0 ? result : 0;
}

/* -- names given out -- */

static uint64_t names_count(const struct vfs_directory *directory)
{
	return directory->starts.length / sizeof(uint32_t);
}

static const char *names_at(const struct vfs_directory *directory, uint64_t index)
{
	return (const char *)directory->names.data +
	       load_u32(directory->starts.data + index * sizeof(uint32_t));
}

static const char *names_last(const struct vfs_directory *directory)
{
	uint64_t count = names_count(directory);
	return count ? names_at(directory, count - 1) : "";
}

static int names_add(struct vfs_directory *directory, const char *name)
{
	buffer_u32(&directory->starts, (uint32_t)directory->names.length);
	buffer_append(&directory->names, name, strlen(name) + 1);
	int result = buffer_check(&directory->starts);
	return result < 0 ? result : buffer_check(&directory->names);
}

static void names_clear(struct vfs_directory *directory)
{
	directory->unknown = 0;
	buffer_clear(&directory->starts);
	buffer_clear(&directory->names);
}

/* The kernel reads on from its own cache of a listing that another handle filled. */
static int names_catch_up(struct vfs *vfs, struct vfs_directory *directory, uint64_t count,
                          struct message *message)
{
	while (names_count(directory) < count) {
		CLEANUP(batch_release) struct batch batch = {.room = SIZE_MAX / 2};
		uint64_t epoch;
		int result = batch_fill(vfs, directory->node, names_last(directory), &batch, &epoch,
		                        message);
		if (result < 0 || batch.count == 0)
			return result;
		for (size_t i = 0; i < batch.count && names_count(directory) < count; i++) {
			result = names_add(directory, batch.items[i].name);
			if (result < 0)
				return result;
		}
	}
	return 0;
}

static int add_branch(void *context, const struct ref *ref)
{
	return names_add(context, ref->name);
}

/* One that others deleted, with uncommitted changes here: its working tree still is there. */
static int add_orphan(void *context, const char *branch)
{
	struct vfs_directory *directory = context;
	bool listed = false;
	for (uint64_t i = 0; i < names_count(directory) && !listed; i++)
		listed = strcmp(names_at(directory, i), branch) == 0;
	return listed ? 0 : names_add(directory, branch);
}

static int names_root(struct vfs *vfs, struct vfs_directory *directory, struct message *message)
{
	int result = ref_list(vfs->lake->store, REF_BRANCH, false, add_branch, directory, message);
	return result < 0 ? result : worktrees_kept(vfs->lake->worktrees, add_orphan, directory);
}

static int names_fixed(struct vfs *vfs, struct vfs_directory *directory, struct message *message)
{
	directory->complete = true;
	if (directory->node->kind == NODE_ROOT)
		return names_root(vfs, directory, message);
	int result = names_add(directory, "metrics");
	return result < 0 ? result : names_add(directory, "status");
}

/* -- handles -- */

/* May the kernel keep the listing, and share it between handles? Offsets count the names that one
 * handle was given, and the kernel mixes what several were: among them a change would make names
 * appear twice or not at all. So only where nothing is uncommitted. */
static bool listing_lasts(struct vfs *vfs, struct node *node)
{
	struct binding binding;
	if (!node->scope)
		return false;
	return !node->scope->worktree ||
	       (node_bind(vfs, node, false, &binding, NULL) == 0 && !binding.directory.number);
}

static int directory_keep(struct vfs *vfs, struct vfs_directory *directory)
{
	if (!vfs->keep)
		return 0;
	struct kept_directory *kept = keep_new(vfs->keep, sizeof(*kept));
	if (!kept)
		return -ERR_NO_MEMORY;
	kept->handle = directory->handle;
	kept->node = directory->node->id;
	kept->request = request_current();
	keep_publish(kept, KEEP_DIRECTORY);
	directory->kept = kept;
	return 0;
}

static int directory_enlist(struct vfs *vfs, struct vfs_directory *directory)
{
	pthread_mutex_lock(&vfs->files_lock);
	HASH_ADD(hh, vfs->directories, handle, sizeof(directory->handle), directory);
	bool added = directory->hh.tbl != NULL;
	pthread_mutex_unlock(&vfs->files_lock);
	return added ? 0 : -ERR_NO_MEMORY;
}

int directory_restore(struct vfs *vfs, void *record)
{
	struct kept_directory *kept = record;
	struct node *node;
	if (node_get(vfs, kept->node, &node) < 0) {
		keep_drop(vfs->keep, kept);
		return 0;
	}
	struct vfs_directory *directory = calloc(1, sizeof(*directory));
	if (!directory) {
		node_put(vfs, node);
		return -ERR_NO_MEMORY;
	}
	directory->handle = kept->handle;
	directory->kept = kept;
	directory->node = node;
	directory->restored = true;
	int result = directory_enlist(vfs, directory);
	if (result < 0) {
		free(directory);
		node_put(vfs, node);
		return result;
	}
	pthread_mutex_init(&directory->lock, NULL);
	return 0;
}

uint64_t vfs_directory_handle(const struct vfs_directory *directory)
{
	return directory->handle;
}

struct vfs_directory *vfs_directory_find(struct vfs *vfs, uint64_t handle)
{
	struct vfs_directory *directory = NULL;
	pthread_mutex_lock(&vfs->files_lock);
	HASH_FIND(hh, vfs->directories, &handle, sizeof(handle), directory);
	pthread_mutex_unlock(&vfs->files_lock);
	return directory;
}

void directory_forget_request(struct vfs *vfs, uint64_t request)
{
	struct vfs_directory *directory, *next, *found = NULL;
	pthread_mutex_lock(&vfs->files_lock);
	HASH_ITER (hh, vfs->directories, directory, next)
		if (directory->kept && directory->kept->request == request)
			found = directory;
	pthread_mutex_unlock(&vfs->files_lock);
	if (found)
		vfs_releasedir(vfs, found);
}

int vfs_opendir(struct vfs *vfs, uint64_t id, struct vfs_directory **ret_directory,
                bool *ret_lasting, struct message *message)
{
	struct node *node;
	int result = node_get(vfs, id, &node);
	if (result < 0)
		return result;
	struct vfs_directory *directory = calloc(1, sizeof(*directory));
	if (!directory || !node->directory) {
		free(directory);
		node_put(vfs, node);
		return directory ? -ERR_NOT_DIRECTORY : -ERR_NO_MEMORY;
	}
	directory->node = node;
	directory->handle = handle_new(vfs);
	pthread_mutex_init(&directory->lock, NULL);
	result = directory_keep(vfs, directory);
	if (result >= 0)
		result = directory_enlist(vfs, directory);
	if (result < 0) {
		keep_drop(vfs->keep, directory->kept);
		pthread_mutex_destroy(&directory->lock);
		free(directory);
		node_put(vfs, node);
		return result;
	}
	*ret_lasting = listing_lasts(vfs, node);
	*ret_directory = directory;
	return 0;
}

void vfs_releasedir(struct vfs *vfs, struct vfs_directory *directory)
{
	if (vfs->keep)
		keep_drop(vfs->keep, directory->kept);
	pthread_mutex_lock(&vfs->files_lock);
	HASH_DELETE(hh, vfs->directories, directory);
	pthread_mutex_unlock(&vfs->files_lock);
	node_put(vfs, directory->node);
	pthread_mutex_destroy(&directory->lock);
	buffer_release(&directory->names);
	buffer_release(&directory->starts);
	free(directory);
}

/* -- giving out -- */

/* One reading: where it is and where it goes. */
struct reading {
	struct vfs *vfs;
	struct vfs_directory *directory;
	const struct vfs_list *list;
	uint64_t at; /* index of the next entry */
	struct message *message;
};

static bool give(struct reading *reading, const char *name, const struct vfs_entry *entry)
{
	if (!reading->list->entry(reading->list->context, name, entry, reading->at + 1)) {
		if (reading->list->plus && entry->node)
			vfs_forget(reading->vfs, entry->node, 1);
		return false;
	}
	reading->at++;
	return true;
}

static bool give_dots(struct reading *reading)
{
	struct vfs *vfs = reading->vfs;
	struct node *node = reading->directory->node;
	while (reading->at < DOTS) {
		struct vfs_entry entry = {.stat.st_mode = S_IFDIR};
		nodes_lock(vfs->nodes);
		entry.stat.st_ino = reading->at && node->parent ? node->parent->shown : node->shown;
		nodes_unlock(vfs->nodes);
		if (!give(reading, reading->at ? ".." : ".", &entry))
			return false;
	}
	return true;
}

/* Just st_ino and type. */
static int item_brief(struct reading *reading, const struct item *item, struct vfs_entry *ret_entry)
{
	struct vfs *vfs = reading->vfs;
	struct node *directory = reading->directory->node;
	*ret_entry = (struct vfs_entry){.stat.st_mode = item->found.mode & S_IFMT};
	nodes_lock(vfs->nodes);
	struct node *node = item->found.number ? nodes_by_number(vfs->nodes, directory->scope,
	                                                         item->found.number)
	                                       : nodes_by_name(vfs->nodes, directory, item->name);
	if (node)
		ret_entry->stat.st_ino = node->shown;
	nodes_unlock(vfs->nodes);
	if (node)
		return 0;
	if (!item->found.number) {
		ret_entry->stat.st_ino = entry_shown(directory->shown, item->name);
		return 0;
	}
	CLEANUP(inode_release) struct inode inode = {0};
	int result = found_inode(directory->scope, &item->found, 0, &inode);
	ret_entry->stat.st_ino = inode.shown;
	return result == -ERR_STALE ? -ERR_NOT_FOUND : result;
}

/* Everything, and a reference. */
static int item_whole(struct reading *reading, const struct item *item, uint64_t epoch,
                      struct vfs_entry *ret_entry)
{
	struct vfs *vfs = reading->vfs;
	struct node *directory = reading->directory->node;
	CLEANUP(known_release) struct known known = {.epoch = epoch};
	known.directory.number = item->found.number;
	int result = found_inode(directory->scope, &item->found,
	                         entry_shown(directory->shown, item->name), &known.inode);
	known.directory.tree = known.inode.tree;
	if (result >= 0)
		result = known_entry(vfs, directory, item->name, &known, ret_entry);
	if (result >= 0 || result == -ERR_NO_MEMORY)
		return result;
	return name_entry(vfs, directory, item->name, ret_entry, reading->message);
}

/* A name recorded before: 1 when the reply is full. */
static int give_again(struct reading *reading, const char *name)
{
	struct vfs_entry entry = {0};
	struct node *node = reading->directory->node;
	int result = 0;
	if (!node->scope) { /* no reference: a branch is opened when it is looked up */
		entry.stat.st_mode = node->kind == NODE_ROOT ? S_IFDIR : S_IFREG;
		entry.stat.st_ino = entry_shown(node->shown, name);
	} else {
		result = name_entry(reading->vfs, node, name, &entry, reading->message);
		if (result >= 0 && !reading->list->plus)
			vfs_forget(reading->vfs, entry.node, 1);
	}
	if (result == -ERR_NOT_FOUND) {
		reading->at++; /* gone; its offset stays its own */
		return 0;
	}
	if (result < 0)
		return result;
	return give(reading, name, &entry) ? 0 : 1;
}

static int give_batch(struct reading *reading, const struct batch *batch, uint64_t epoch,
                      bool *ret_full)
{
	for (size_t i = 0; i < batch->count; i++) {
		const struct item *item = &batch->items[i];
		struct vfs_entry entry;
		int result = reading->list->plus ? item_whole(reading, item, epoch, &entry)
		                                 : item_brief(reading, item, &entry);
		if (result == -ERR_NOT_FOUND)
			continue;
		if (result < 0)
			return result;
		result = names_add(reading->directory, item->name);
		if (result < 0)
			return result;
		if (!give(reading, item->name, &entry)) {
			/* Not given out after all. */
			reading->directory->starts.length -= sizeof(uint32_t);
			reading->directory->names.length -= strlen(item->name) + 1;
			*ret_full = true;
			return 0;
		}
	}
	return 0;
}

static int read_on(struct reading *reading)
{
	struct vfs_directory *directory = reading->directory;
	const struct vfs_list *list = reading->list;
	while (reading->at < DOTS + names_count(directory)) {
		int result = give_again(reading, names_at(directory, reading->at - DOTS));
		if (result != 0)
			return result < 0 ? result : 0;
	}
	if (directory->complete)
		return 0;
	for (bool full = false; !full;) {
		CLEANUP(batch_release)
		struct batch batch = {
		        .room = list->room, .overhead = list->overhead, .whole = list->plus};
		uint64_t before = reading->at, epoch = 0;
		int result = batch_fill(reading->vfs, directory->node, names_last(directory),
		                        &batch, &epoch, reading->message);
		if (result >= 0)
			result = give_batch(reading, &batch, epoch, &full);
		if (result < 0)
			return result;
		/* One batch is about what fits; only when all of it vanished, read another. */
		if (batch.count == 0 || reading->at > before)
			return 0;
	}
	return 0;
}

/* A name is written while its mark counts for nothing. */
static void mark_keep(struct vfs_directory *directory, uint64_t offset)
{
	uint64_t count = names_count(directory);
	if (!directory->kept || !count || offset != DOTS + count)
		return;
	struct kept_mark *last = &directory->kept->marks[directory->marks & 1];
	if (last->offset == offset)
		return;
	struct kept_mark *mark = &directory->kept->marks[++directory->marks & 1];
	mark->offset = 0;
	strcpy(mark->name, names_last(directory));
	mark->offset = offset;
}

/* A predecessor gave out the names before `offset`. Which they were is forgotten but for the last.
 */
static int names_restore(struct reading *reading)
{
	struct vfs_directory *directory = reading->directory;
	directory->restored = false;
	if (!directory->node->scope)
		return names_fixed(reading->vfs, directory, reading->message);
	for (unsigned i = 0; i < 2; i++) {
		const struct kept_mark *mark = &directory->kept->marks[i];
		if (reading->at <= DOTS || mark->offset != reading->at)
			continue;
		directory->marks = i;
		uint64_t count = reading->at - DOTS;
		int result = names_add(directory, mark->name);
		for (uint64_t k = 1; k < count; k++) /* all the same one */
			buffer_u32(&directory->starts, 0);
		directory->unknown = count - 1;
		return result < 0 ? result : buffer_check(&directory->starts);
	}
	return 0; /* counted anew from the start */
}

static int readdir_locked(struct reading *reading)
{
	struct vfs_directory *directory = reading->directory;
	int result = 0;
	if (directory->restored && reading->at != 0)
		result = names_restore(reading);
	if (result < 0)
		return result;
	if (reading->at < DOTS + directory->unknown)
		names_clear(directory);
	if (reading->at == 0) {
		directory->restored = false;
		names_clear(directory);
		if (!directory->node->scope)
			result = names_fixed(reading->vfs, directory, reading->message);
	} else if (reading->at > DOTS + names_count(directory) && !directory->complete) {
		result = names_catch_up(reading->vfs, directory, reading->at - DOTS,
		                        reading->message);
	}
	if (result < 0 || !give_dots(reading))
		return result;
	if (reading->at > DOTS + names_count(directory))
		return 0; /* past the end */
	return read_on(reading);
}

int vfs_readdir(struct vfs *vfs, struct vfs_directory *directory, const struct vfs_list *list,
                struct message *message)
{
	struct reading reading = {vfs, directory, list, list->offset, message};
	pthread_mutex_lock(&directory->lock);
	int result = readdir_locked(&reading);
	mark_keep(directory, reading.at);
	pthread_mutex_unlock(&directory->lock);
	/* What was given out counts; the error comes again with the next reading. */
	return result < 0 && reading.at > list->offset ? 0 : result;
}
