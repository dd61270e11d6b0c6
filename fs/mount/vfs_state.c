/*
 * Hides who shares what of an open file.
 *
 * All handles of a node read and write one file_data, and in passthrough one backing id: the
 * kernel refuses an inode whose opens disagree. What a node is open on never changes while a
 * handle is open. So the first write to committed content, when somebody has it open, detaches
 * the node, which keeps the old bytes for them; the caller's path is looked up again (-ERR_STALE)
 * and gets a new node for the writable copy.
 *
 * A node's open state is changed by one thread at a time (open_begin .. open_end), who may wait
 * for the disk and the store meanwhile; the stripe's lock only guards that right itself.
 */
#include "fs/mount/vfs_internal.h"
#include "store/thread.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

struct kept_open {
	int32_t backing;
	bool privileged;
	struct kept_inode inode;
};

static struct open_stripe *stripe_of(struct vfs *vfs, const struct node *node)
{
	return &vfs->stripes[node->id % OPEN_STRIPES];
}

int open_begin(struct vfs *vfs, struct node *node, struct open_state **ret_state)
{
	struct open_stripe *stripe = stripe_of(vfs, node);
	pthread_mutex_lock(&stripe->lock);
	if (node->open && node->open->busy)
		thread_about_to_block();
	while (node->open && node->open->busy)
		pthread_cond_wait(&stripe->changed, &stripe->lock);
	if (!node->open)
		node->open = calloc(1, sizeof(*node->open));
	if (node->open) {
		node->open->busy = true;
		node->open->mode_told = false;
	}
	*ret_state = node->open;
	pthread_mutex_unlock(&stripe->lock);
	return *ret_state ? 0 : -ERR_NO_MEMORY;
}

/* The record goes first: closing what is recorded could hit another's after a crash. */
static void state_clear(struct vfs *vfs, struct open_state *state)
{
	keep_drop(vfs->keep, steal(&state->kept));
	if (state->backing > 0)
		vfs->kernel.backing_close(vfs->kernel.context, state->backing);
	if (state->data)
		file_data_close(state->data);
	inode_release(&state->inode);
	state->backing = 0;
	state->data = NULL;
	state->inode = (struct inode){0};
}

void open_end(struct vfs *vfs, struct node *node)
{
	struct open_stripe *stripe = stripe_of(vfs, node);
	pthread_mutex_lock(&stripe->lock);
	struct open_state *state = node->open;
	state->busy = false;
	if (state->handles == 0)
		node->open = NULL;
	else
		state = NULL;
	pthread_cond_broadcast(&stripe->changed);
	pthread_mutex_unlock(&stripe->lock);
	if (state)
		state_clear(vfs, state);
	free(state);
}

int open_frozen(struct vfs *vfs, struct node *node, struct inode *ret_inode, struct stat *ret_stat)
{
	struct open_stripe *stripe = stripe_of(vfs, node);
	struct inode inode;
	struct stat now;
	pthread_mutex_lock(&stripe->lock);
	bool open = node->open && node->open->handles > 0;
	int result = open ? inode_copy(&node->open->inode, &inode) : -ERR_STALE;
	int stated = open && node->open->data ? file_data_stat(node->open->data, &now) : -ERR_STALE;
	pthread_mutex_unlock(&stripe->lock);
	if (result < 0)
		return result;
	if (ret_stat) {
		uint64_t number = inode.number;
		inode.number = 0; /* what has this number by now is another version */
		result = node_stat(vfs, node, &inode, ret_stat);
		inode.number = number;
		if (result == 0 && stated == 0) {
			ret_stat->st_size = now.st_size;
			ret_stat->st_blocks = now.st_blocks;
		}
	}
	if (ret_inode)
		*ret_inode = inode;
	else
		inode_release(&inode);
	return result;
}

static bool is_privileged(mode_t mode)
{
	return mode & (S_ISUID | S_ISGID);
}

void open_mode_changed(struct vfs *vfs, struct node *node, mode_t mode)
{
	struct open_stripe *stripe = stripe_of(vfs, node);
	pthread_mutex_lock(&stripe->lock);
	struct open_state *state = node->open;
	if (state) {
		state->privileged = is_privileged(mode);
		state->mode_told = true;
	}
	if (state && state->kept)
		state->kept->privileged = state->privileged;
	pthread_mutex_unlock(&stripe->lock);
}

bool open_is_open(struct vfs *vfs, struct node *node)
{
	struct open_stripe *stripe = stripe_of(vfs, node);
	pthread_mutex_lock(&stripe->lock);
	bool open = node->open;
	pthread_mutex_unlock(&stripe->lock);
	return open;
}

/* -- what a node is open on -- */

/* For a successor; without memory it will find the file lost. Not published yet. */
static struct kept_open *kept_new(struct vfs *vfs, const struct node *node,
                                  const struct open_state *state)
{
	CLEANUP(buffer_release) struct buffer bytes = {0};
	if (!vfs->keep)
		return NULL;
	inode_encode(&bytes, &state->inode);
	struct kept_open *kept =
	        buffer_check(&bytes) < 0 ? NULL : keep_new(vfs->keep, sizeof(*kept) + bytes.length);
	if (!kept)
		return NULL;
	kept->inode.node = node->id;
	kept->inode.number = state->inode.number;
	kept->inode.length = (uint32_t)bytes.length;
	memcpy(kept->inode.bytes, bytes.data, bytes.length);
	return kept;
}

/* Files with set-id bits are not passed through: only writes that come to us can clear them. A mode
 * that was told since the state is busy is newer than the inode's. */
void state_fill(struct vfs *vfs, const struct node *node, struct open_state *state,
                struct file_data *data, struct inode *inode)
{
	struct open_stripe *stripe = stripe_of(vfs, node);
	bool privileged = is_privileged((mode_t)inode->attributes.mode);
	int fd = file_data_local(data), backing = 0;
	assert(state->handles == 0 && !state->data && !state->kept);
	state->data = data;
	state->staging = inode->staging;
	state->inode = *inode;
	*inode = (struct inode){0};
	if (fd >= 0 && vfs->kernel.backing_open && !privileged)
		backing = vfs->kernel.backing_open(vfs->kernel.context, fd);
	struct kept_open *kept = kept_new(vfs, node, state);
	pthread_mutex_lock(&stripe->lock);
	if (!state->mode_told)
		state->privileged = privileged;
	bool copied = state->privileged;
	state->backing = backing < 0 || copied ? 0 : backing;
	if (kept) {
		kept->backing = state->backing;
		kept->privileged = state->privileged;
		keep_publish(kept, KEEP_OPEN);
		state->kept = kept;
	}
	pthread_mutex_unlock(&stripe->lock);
	if (copied && backing > 0)
		vfs->kernel.backing_close(vfs->kernel.context, backing);
}

int data_open(struct vfs *vfs, const struct inode *inode, struct file_data **ret_data,
              struct message *message)
{
	struct worktrees *trees = vfs->lake->worktrees;
	if (!inode->number)
		return file_data_open_content(trees, &inode->content, ret_data, message);
	/* A staged file may be written through this handle's siblings later. */
	return file_data_open(trees, inode, inode->staging != 0, ret_data, message);
}

int state_for_reading(struct vfs *vfs, struct node *node, struct open_state *state,
                      struct message *message)
{
	int result = -ERR_STALE;
	if (state->handles > 0)
		return 0;
	for (int i = 0; i < VFS_TRIES; i++) {
		CLEANUP(inode_release) struct inode inode = {0};
		struct file_data *data;
		result = node_inode(vfs, node, &inode, message);
		if (result < 0)
			return result;
		if (!S_ISREG(inode.attributes.mode))
			return S_ISDIR(inode.attributes.mode) ? -ERR_IS_DIRECTORY : -ERR_INVALID;
		result = data_open(vfs, &inode, &data, message);
		if (result >= 0) {
			ahead_opened(vfs, node, &inode.content, file_data_fetched(data));
			state_fill(vfs, node, state, data, &inode);
			return 0;
		}
		if (result != -ERR_STALE && result != -ERR_NOT_FOUND)
			return result;
		node_unbind(vfs, node); /* a commit took the staging file away */
	}
	return result;
}

int state_truncate(struct open_state *state, uint64_t size, struct message *message)
{
	return state->data ? file_data_truncate(state->data, size, message) : error_system(EIO);
}

/* Where the content of a file without a name is; 0: it is committed, or this is a former version.
 */
static uint64_t orphan_staging(struct vfs *vfs, const struct node *node)
{
	nodes_lock(vfs->nodes);
	uint64_t staging = node->orphan ? node->orphan->staging : 0;
	nodes_unlock(vfs->nodes);
	return staging;
}

static int orphan_write_state(struct vfs *vfs, struct node *node, struct open_state *state,
                              bool truncate, struct message *message)
{
	int result = state_for_reading(vfs, node, state, message);
	if (result < 0)
		return result;
	/* What the state was opened on may have been committed since, and be a cached copy now: it
	 * is never written to. */
	if (!state->staging || state->staging != orphan_staging(vfs, node))
		return -ERR_STALE;
	return truncate ? state_truncate(state, 0, message) : 0;
}

/* Others have it open. Inside the gate. */
static int shared_write_state(struct vfs *vfs, struct node *node, struct open_state *state,
                              uint64_t number, bool truncate, struct message *message)
{
	CLEANUP(inode_release) struct inode inode = {0};
	int result = worktree_inode(node->scope->worktree, number, &inode);
	if (result < 0)
		return result;
	if (!state->staging || state->staging != inode.staging) {
		/* Copied up before the name leads to a node of its own: whoever opens that first,
		 * and be it for reading, finds what can be written to. The kernel tries but once
		 * more. */
		CLEANUP(inode_release) struct inode ignored = {0};
		result = worktree_writable(node->scope->worktree, number, truncate, &ignored,
		                           message);
		if (result < 0)
			return result;
		node_detach(vfs, node);
		return -ERR_STALE;
	}
	return truncate ? state_truncate(state, 0, message) : 0;
}

static int alone_write_state(struct vfs *vfs, struct node *node, struct open_state *state,
                             uint64_t number, bool truncate, struct message *message)
{
	CLEANUP(inode_release) struct inode before = {0};
	CLEANUP(inode_release) struct inode inode = {0};
	struct file_data *data;
	int result = worktree_inode(node->scope->worktree, number, &before);
	if (result >= 0)
		result =
		        worktree_writable(node->scope->worktree, number, truncate, &inode, message);
	if (result >= 0)
		result = data_open(vfs, &inode, &data, message);
	if (result >= 0) {
		state_fill(vfs, node, state, data, &inode);
		state->copied_up = before.staging == 0;
	}
	return result;
}

static int attached_write_state(struct vfs *vfs, struct node *node, struct open_state *state,
                                bool truncate, uint64_t *ret_number, struct message *message)
{
	int result = gate_enter(node);
	if (result < 0)
		return result;
	struct binding binding;
	result = node_bind(vfs, node, true, &binding, message);
	if (result >= 0) {
		uint64_t number = binding.directory.number;
		result = worktree_writer(vfs->lake->worktrees, number, 1);
		if (result < 0) {
			gate_leave(node);
			return result;
		}
		if (state->handles > 0)
			result = shared_write_state(vfs, node, state, number, truncate, message);
		else
			result = alone_write_state(vfs, node, state, number, truncate, message);
		if (result < 0)
			worktree_writer(vfs->lake->worktrees, number, -1);
		else
			*ret_number = number;
	}
	gate_leave(node);
	return result;
}

/* After -ERR_STALE: others removed the name in this very moment, which leaves a file without one;
 * or they are about to. No reason to look up a path that is still right, or leads nowhere. */
static bool removed_meanwhile(struct vfs *vfs, struct node *node, int attempt)
{
	nodes_lock(vfs->nodes);
	bool attached = !(node->flags & NODE_DETACHED), again = attached || node->orphan;
	if (attached)
		node->flags &= (uint8_t)~NODE_BOUND;
	nodes_unlock(vfs->nodes);
	if (again && attempt >= 4)
		usleep(1000);
	return again && attempt < VFS_TRIES;
}

int state_for_writing(struct vfs *vfs, struct node *node, struct open_state *state, bool truncate,
                      uint64_t *ret_number, struct message *message)
{
	*ret_number = 0;
	int result = node_writable(node);
	for (int i = 0; result >= 0; i++) {
		if (node_detached(vfs, node))
			return orphan_write_state(vfs, node, state, truncate, message);
		result = attached_write_state(vfs, node, state, truncate, ret_number, message);
		if (result != -ERR_STALE || !removed_meanwhile(vfs, node, i))
			break;
		result = 0;
	}
	return result;
}

/* -- truncating by node -- */

static int truncate_attached(struct vfs *vfs, struct node *node, struct open_state *state,
                             uint64_t size, struct message *message)
{
	int result = gate_enter(node);
	if (result < 0)
		return result;
	struct binding binding;
	result = node_bind(vfs, node, true, &binding, message);
	uint64_t number = result < 0 ? 0 : binding.directory.number;
	if (result >= 0 && state->handles > 0) {
		result = shared_write_state(vfs, node, state, number, false, message);
		if (result >= 0)
			result = state_truncate(state, size, message);
	} else if (result >= 0 && size == 0) {
		CLEANUP(inode_release) struct inode inode = {0};
		result = worktree_writable(node->scope->worktree, number, true, &inode, message);
	} else if (result >= 0) {
		result = worktree_truncate(node->scope->worktree, number, size, message);
	}
	gate_leave(node);
	return result;
}

static int truncate_locked(struct vfs *vfs, struct node *node, struct open_state *state,
                           uint64_t size, struct message *message)
{
	int result;
	for (int i = 0;; i++) {
		if (node_detached(vfs, node)) {
			result = orphan_write_state(vfs, node, state, false, message);
			return result < 0 ? result : state_truncate(state, size, message);
		}
		result = truncate_attached(vfs, node, state, size, message);
		if (result != -ERR_STALE || !removed_meanwhile(vfs, node, i))
			return result;
	}
}

int open_truncate(struct vfs *vfs, struct node *node, struct vfs_file *file, uint64_t size,
                  struct message *message)
{
	struct open_state *state;
	if (file && file->state && file->writes)
		return state_truncate(file->state, size, message);
	int result = open_begin(vfs, node, &state);
	if (result < 0)
		return result;
	result = truncate_locked(vfs, node, state, size, message);
	open_end(vfs, node);
	return result;
}

/* -- after a start that follows a crash: nobody else is inside -- */

/* The bytes it was open on. Their staging file may be a cached blob since, of a commit:
 * then the node leads to them, unless it was detached. */
static int data_open_again(struct vfs *vfs, struct node *node, const struct inode *inode,
                           struct file_data **ret_data)
{
	int result = data_open(vfs, inode, ret_data, NULL);
	if (result >= 0 || !inode->staging || node_detached(vfs, node))
		return result;
	CLEANUP(inode_release) struct inode now = {0};
	result = node_inode(vfs, node, &now, NULL);
	if (result >= 0 && node_detached(vfs, node))
		result = -ERR_STALE;
	return result < 0 ? result : data_open(vfs, &now, ret_data, NULL);
}

static void log_lost(struct vfs *vfs, const struct node *node, int error)
{
	char path[1024];
	vfs_path(vfs, node->id, path, sizeof(path));
	fprintf(stderr, "laked: %s was open and cannot be opened again: %s\n", path,
	        error_text(error));
}

int open_restore(struct vfs *vfs, struct kept_open *kept)
{
	struct node *node;
	struct open_state *state;
	int result = node_get(vfs, kept->inode.node, &node);
	if (result >= 0 && (node->open || !node->scope)) {
		node_put(vfs, node);
		result = -ERR_STALE;
	}
	if (result < 0) {
		keep_drop(vfs->keep, kept);
		return 0;
	}
	result = open_begin(vfs, node, &state);
	if (result >= 0)
		result = kept_inode_read(&kept->inode, &state->inode);
	if (result >= 0) {
		state->kept = kept;
		state->backing = kept->backing;
		state->privileged = kept->privileged;
		state->staging = state->inode.staging;
		state->handles = 1; /* until open_unshared: for open_frozen, and to stay */
		int lost = data_open_again(vfs, node, &state->inode, &state->data);
		if (lost < 0) {
			state->data = NULL;
			log_lost(vfs, node, lost);
		}
		open_end(vfs, node);
	}
	if (result < 0)
		node_put(vfs, node);
	return result; /* the pin stays until open_unshared */
}

void open_unshared(struct vfs *vfs, const struct kept_open *kept)
{
	struct open_state *state;
	struct node *node;
	if (node_get(vfs, kept->inode.node, &node) < 0)
		return;
	node_put(vfs, node); /* open_restore's pin is there */
	if (open_begin(vfs, node, &state) < 0)
		return;
	state->handles--;
	open_end(vfs, node);
	node_put(vfs, node);
}
