/*
 * Hides how a process takes over from one that was killed: what the kernel still refers to is made
 * anew from the keep, and requests that the predecessor had read but not answered are not done
 * twice.
 *
 * A request that changes names leaves a note before it begins: what it is about to do, and (the
 * state writes this) where in the journal the batch that does it lies. Whether that batch is there
 * decides. If so, the table of nodes is made to say the same before anybody asks, and when the
 * kernel repeats the request only its answer is worked out. If not, the note goes, and the request
 * is done as if it came for the first time. Whatever else a request may do can be done twice:
 * writes and truncations put the same bytes in the same place while the kernel keeps others out,
 * and what an open made is found by the request's number and closed first.
 */
#include "fs/mount/vfs_internal.h"

#include <errno.h>

struct kept_request {
	uint64_t request;
	struct state_mark mark;
	bool landed; /* judged by a successor */
	uint8_t intent;
	uint64_t node, parent, to_parent;
	char name[NAME_BYTES_MAX + 1], to[NAME_BYTES_MAX + 1];
};

static _Thread_local struct {
	uint64_t request;
	struct kept_request *kept;
} current;

uint64_t handle_new(struct vfs *vfs)
{
	if (!vfs->keep)
		return vfs->next_handle++;
	return ++keep_root(vfs->keep)->next_handle;
}

/* -- requests under way -- */

void vfs_request_begin(uint64_t request)
{
	current.request = request;
}

uint64_t request_current(void)
{
	return current.request;
}

static void name_copy(char *to, const char *name)
{
	size_t length = name ? strnlen(name, NAME_BYTES_MAX) : 0;
	memcpy(to, name ? name : "", length);
	to[length] = '\0';
}

void request_intends(struct vfs *vfs, enum intent intent, uint64_t node, uint64_t parent,
                     const char *name, uint64_t to_parent, const char *to)
{
	if (!vfs->keep || !current.request || current.kept)
		return;
	struct kept_request *kept = keep_new(vfs->keep, sizeof(*kept));
	if (!kept)
		return; /* done twice at worst, and then refused: what it made is there already */
	kept->request = current.request;
	kept->intent = (uint8_t)intent;
	kept->node = node;
	kept->parent = parent;
	kept->to_parent = to_parent;
	name_copy(kept->name, name);
	name_copy(kept->to, to);
	keep_publish(kept, KEEP_REQUEST);
	current.kept = kept;
	state_watch(&kept->mark);
}

static void done_forget(struct vfs *vfs, uint64_t request)
{
	struct kept_request *kept = NULL;
	pthread_mutex_lock(&vfs->files_lock);
	for (size_t i = 0; i < vfs->done_count && !kept; i++) {
		if (vfs->done[i]->request != request)
			continue;
		kept = vfs->done[i];
		vfs->done[i] = vfs->done[--vfs->done_count];
	}
	pthread_mutex_unlock(&vfs->files_lock);
	keep_drop(vfs->keep, kept);
}

void vfs_request_end(struct vfs *vfs)
{
	state_watch(NULL);
	if (vfs->keep && current.kept)
		keep_drop(vfs->keep, current.kept);
	if (vfs->done_count)
		done_forget(vfs, current.request);
	current.kept = NULL;
	current.request = 0;
}

bool vfs_request_again(struct vfs *vfs, uint64_t request)
{
	bool done = false;
	open_forget_request(vfs, request);
	directory_forget_request(vfs, request);
	pthread_mutex_lock(&vfs->files_lock);
	for (size_t i = 0; i < vfs->done_count && !done; i++)
		done = vfs->done[i]->request == request;
	pthread_mutex_unlock(&vfs->files_lock);
	return done;
}

/* -- while the lake is opened -- */

struct judging {
	struct keep *keep;
	const struct state *state;
};

static int judge(void *context, enum keep_kind kind, void *record)
{
	struct judging *judging = context;
	struct kept_request *kept = record;
	if (kind != KEEP_REQUEST)
		return 0;
	kept->landed = state_landed(judging->state, &kept->mark);
	if (!kept->landed)
		keep_drop(judging->keep, kept);
	return 0;
}

/* Before anything is written to the journal. */
void vfs_state_opened(void *keep, const struct state *state)
{
	struct judging judging = {.keep = keep, .state = state};
	keep_each(keep, judge, &judging);
}

/* -- what the kernel refers to -- */

static struct scope *scope_restore(void *context, const char *name, const struct pointer *commit)
{
	struct vfs *vfs = context;
	struct scope *scope = calloc(1, sizeof(*scope));
	if (!scope)
		return NULL;
	scope->references = 1;
	int result = commit ? commit_read(vfs->lake->odb, commit, &scope->commit, NULL)
	                    : worktree_get(vfs->lake->worktrees, name, &scope->worktree, NULL);
	if (result < 0) {
		scope_unref(scope);
		return NULL;
	}
	return scope;
}

static int restore_open(void *context, enum keep_kind kind, void *record)
{
	return kind == KEEP_OPEN ? open_restore(context, record) : 0;
}

static int restore_handle(void *context, enum keep_kind kind, void *record)
{
	if (kind == KEEP_FILE)
		return file_restore(context, record);
	return kind == KEEP_DIRECTORY ? directory_restore(context, record) : 0;
}

static int restore_request(void *context, enum keep_kind kind, void *record)
{
	struct vfs *vfs = context;
	if (kind != KEEP_REQUEST)
		return 0;
	struct kept_request **done =
	        reallocarray(vfs->done, vfs->done_count + 1, sizeof(struct kept_request *));
	if (!done)
		return -ERR_NO_MEMORY;
	done[vfs->done_count++] = record;
	vfs->done = done;
	return 0;
}

static void settle(struct vfs *vfs, const struct kept_request *kept)
{
	struct node *parent = NULL, *to_parent = NULL, *node = NULL;
	if (node_get(vfs, kept->parent, &parent) < 0)
		return;
	if (node_get(vfs, kept->to_parent, &to_parent) < 0)
		to_parent = NULL;
	if (node_get(vfs, kept->node, &node) < 0)
		node = NULL;
	switch ((enum intent)kept->intent) {
	case INTENT_REMOVE:
		settle_removed(vfs, parent, kept->name);
		break;
	case INTENT_RENAME:
	case INTENT_EXCHANGE:
		if (to_parent)
			settle_renamed(vfs, parent, kept->name, to_parent, kept->to,
			               kept->intent == INTENT_EXCHANGE);
		break;
	case INTENT_LINK:
		if (node)
			settle_linked(vfs, node, parent, kept->name);
		break;
	case INTENT_OTHER: /* what is new is found when it is looked up */
		break;
	}
	node_put(vfs, node);
	node_put(vfs, to_parent);
	node_put(vfs, parent);
}

static int unshare_open(void *context, enum keep_kind kind, void *record)
{
	struct vfs *vfs = context;
	if (kind == KEEP_OPEN)
		open_unshared(vfs, record);
	return 0;
}

int vfs_restore(struct vfs *vfs)
{
	struct keep_root *root = keep_root(vfs->keep);
	vfs->doubtful = atomic_exchange(&root->commands, 0) > 0;
	int result = nodes_keep(vfs->nodes, vfs->keep);
	if (result < 0)
		return result;
	nodes_restore_scopes(vfs->nodes, scope_restore, vfs);
	result = keep_each(vfs->keep, restore_open, vfs);
	if (result >= 0)
		result = keep_each(vfs->keep, restore_handle, vfs);
	if (result >= 0)
		result = keep_each(vfs->keep, restore_request, vfs);
	for (size_t i = 0; result >= 0 && i < vfs->done_count; i++)
		settle(vfs, vfs->done[i]);
	if (result >= 0)
		result = keep_each(vfs->keep, unshare_open, vfs);
	struct node *dead = NULL;
	nodes_lock(vfs->nodes);
	nodes_sweep(vfs->nodes, &dead);
	nodes_unlock(vfs->nodes);
	nodes_dispose(vfs, dead);
	return result;
}

/* -- what the kernel was not told of -- */

/* Does the name still lead to what the node was? */
static bool still_same(struct vfs *vfs, const struct node *node, const struct known *known,
                       uint64_t number, uint64_t tag)
{
	const struct inode *inode = &known->inode;
	if (S_ISDIR(inode->attributes.mode) || node->directory)
		return S_ISDIR(inode->attributes.mode) && node->directory;
	if (known->directory.number)
		return !number || number == known->directory.number;
	/* A commit makes no difference, but a command that put back what was committed does. */
	if (number)
		return !vfs->doubtful;
	return !S_ISREG(inode->attributes.mode) || tag == load_u64(inode->content.pointer.id.bytes);
}

static void node_look_again(struct vfs *vfs, struct node *node)
{
	CLEANUP(known_release) struct known known = {0};
	nodes_lock(vfs->nodes);
	struct node *parent = node->parent;
	bool named = parent && !(node->flags & (NODE_DETACHED | NODE_NAMELESS));
	uint64_t number = node->number, tag = node->tag;
	CLEANUP(free_pointer) char *name = named ? strdup(node->name) : NULL;
	if (name)
		nodes_pin(parent);
	nodes_unlock(vfs->nodes);
	if (!name)
		return;
	int result = node->kind == NODE_ENTRY ? name_know(vfs, parent, name, &known, NULL) : 0;
	bool gone = result == -ERR_NOT_FOUND || (result == 0 && node->kind == NODE_ENTRY &&
	                                         !still_same(vfs, node, &known, number, tag));
	if (gone) {
		node_detach(vfs, node);
		if (vfs->kernel.forget_entry)
			vfs->kernel.forget_entry(vfs->kernel.context, parent->id, name);
	} else if (vfs->kernel.forget_inode) {
		vfs->kernel.forget_inode(vfs->kernel.context, node->id, node->directory);
	}
	node_put(vfs, parent);
}

void vfs_look_again(struct vfs *vfs, const _Atomic(bool) *stop)
{
	CLEANUP(free_pointer) uint64_t *ids = NULL;
	size_t count = 0;
	nodes_lock(vfs->nodes);
	int result = nodes_ids(vfs->nodes, &ids, &count);
	nodes_unlock(vfs->nodes);
	for (size_t i = 0; result >= 0 && i < count && !*stop; i++) {
		struct node *node;
		if (node_get(vfs, ids[i], &node) < 0)
			continue;
		if (node->scope)
			node_look_again(vfs, node);
		node_put(vfs, node);
	}
}
