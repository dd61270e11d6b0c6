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
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <uthash.h>

struct kept_file {
	uint64_t handle, node, number, request;
	int32_t pid;
	bool writes;
};
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

/* Of a state that nobody has a handle of: takes over data and *inode. Files with set-id bits are
 * not passed through: only writes that come to us can clear them. A mode that was told since the
 * state is busy is newer than the inode's. */
static void state_fill(struct vfs *vfs, const struct node *node, struct open_state *state,
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

static int data_open(struct vfs *vfs, const struct inode *inode, struct file_data **ret_data,
                     struct message *message)
{
	struct worktrees *trees = vfs->lake->worktrees;
	if (!inode->number)
		return file_data_open_content(trees, &inode->content, ret_data, message);
	/* A staged file may be written through this handle's siblings later. */
	return file_data_open(trees, inode, inode->staging != 0, ret_data, message);
}

static int read_state(struct vfs *vfs, struct node *node, struct open_state *state,
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

static int state_truncate(struct open_state *state, uint64_t size, struct message *message)
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
	int result = read_state(vfs, node, state, message);
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

/* *ret_number: counted in worktree_writer. */
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

static int write_state(struct vfs *vfs, struct node *node, struct open_state *state, bool truncate,
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

/* -- handles -- */

static struct vfs_file *file_new(struct vfs *vfs, struct node *node, int flags,
                                 const struct vfs_caller *caller)
{
	struct vfs_file *file = calloc(1, sizeof(*file));
	if (!file)
		return NULL;
	if (vfs->keep && !(file->kept = keep_new(vfs->keep, sizeof(*file->kept)))) {
		free(file);
		return NULL;
	}
	file->handle = handle_new(vfs);
	file->node = node;
	file->writes = (flags & O_ACCMODE) != O_RDONLY;
	file->pid = caller->pid;
	return file;
}

static void file_free(struct vfs *vfs, struct vfs_file *file)
{
	if (!file)
		return;
	if (vfs->keep)
		keep_drop(vfs->keep, file->kept);
	buffer_release(&file->text);
	free(file);
}

static int file_enlist(struct vfs *vfs, struct vfs_file *file)
{
	pthread_mutex_lock(&vfs->files_lock);
	HASH_ADD(hh, vfs->files, handle, sizeof(file->handle), file);
	bool added = file->hh.tbl != NULL;
	vfs->file_count += added;
	pthread_mutex_unlock(&vfs->files_lock);
	return added ? 0 : -ERR_NO_MEMORY;
}

static int file_publish(struct vfs *vfs, struct vfs_file *file)
{
	if (file->kept) {
		*file->kept = (struct kept_file){.handle = file->handle,
		                                 .node = file->node->id,
		                                 .number = file->is.number,
		                                 .request = request_current(),
		                                 .pid = file->pid,
		                                 .writes = file->writes};
		keep_publish(file->kept, KEEP_FILE);
	}
	return file_enlist(vfs, file);
}

/* The handle counts in the state now. Open gate held. */
static int file_attach(struct vfs *vfs, struct vfs_file *file, struct open_state *state,
                       struct vfs_opened *ret_opened)
{
	struct node *node = file->node;
	file->state = state;
	int result = file_publish(vfs, file);
	if (result < 0)
		return result;
	state->handles++;
	*ret_opened = (struct vfs_opened){.file = file, .backing = state->backing};
	nodes_lock(vfs->nodes);
	if (!state->backing) {
		ret_opened->keep_pages = node->flags & NODE_PAGES;
		node->flags |= NODE_PAGES;
	} else if (file->writes) {
		node->flags &= (uint8_t)~NODE_PAGES; /* written to behind them */
	}
	nodes_unlock(vfs->nodes);
	if (state->backing)
		vfs->passthrough_opens++;
	else
		vfs->daemon_opens++;
	return 0;
}

static int open_report(struct vfs *vfs, struct vfs_file *file, struct vfs_opened *ret_opened)
{
	if (file->writes)
		return error_system(EACCES);
	int result = report_text(vfs, file->node, &file->text);
	if (result == 0)
		result = file_publish(vfs, file);
	if (result == 0)
		*ret_opened = (struct vfs_opened){.file = file, .direct = true};
	return result;
}

static int open_node(struct vfs *vfs, struct vfs_file *file, int flags,
                     const struct vfs_caller *caller, struct vfs_opened *ret_opened,
                     struct message *message)
{
	struct node *node = file->node;
	struct open_state *state;
	bool truncate = flags & O_TRUNC;
	if (node->kind == NODE_REPORT)
		return open_report(vfs, file, ret_opened);
	if (node->directory)
		return -ERR_IS_DIRECTORY;
	int result = open_begin(vfs, node, &state);
	if (result < 0)
		return result;
	if (file->writes || truncate)
		result = write_state(vfs, node, state, truncate, &file->is.number, message);
	else
		result = read_state(vfs, node, state, message);
	bool drop = result >= 0 && truncate && state->privileged && caller->uid != 0;
	if (result >= 0)
		result = file_attach(vfs, file, state, ret_opened);
	open_end(vfs, node);
	if (drop)
		attributes_set(vfs, node, &(struct vfs_change){.which = VFS_DROP_PRIVILEGES},
		               message);
	return result;
}

/*
 * Writes that are passed through never come by here. With O_SYNC or O_DSYNC the kernel makes their
 * bytes durable; the record that says whose bytes they are has to be before. So it does with
 * msync(2), of whose coming only O_RDWR tells, and there what was committed would come back.
 */
static int sync_for_writes(struct vfs *vfs, const struct vfs_file *file, int flags)
{
	bool writes = (flags & O_ACCMODE) != O_RDONLY;
	bool maps = (flags & O_ACCMODE) == O_RDWR && file->state && file->state->backing > 0 &&
	            atomic_exchange(&file->state->copied_up, false);
	return maps || (writes && flags & O_DSYNC) ? vfs_sync_names(vfs) : 0;
}

void file_drop(struct vfs *vfs, struct vfs_file *file)
{
	if (file->is.number)
		worktree_writer(vfs->lake->worktrees, file->is.number, -1);
	node_put(vfs, file->node);
	file_free(vfs, file);
}

int vfs_open(struct vfs *vfs, uint64_t id, int flags, const struct vfs_caller *caller,
             struct vfs_opened *ret_opened, struct message *message)
{
	struct node *node;
	int result = node_get(vfs, id, &node);
	if (result < 0)
		return result;
	struct vfs_file *file = file_new(vfs, node, flags, caller);
	if (!file) {
		node_put(vfs, node);
		return -ERR_NO_MEMORY;
	}
	result = open_node(vfs, file, flags, caller, ret_opened, message);
	if (result < 0) {
		file_drop(vfs, file);
		return result;
	}
	result = sync_for_writes(vfs, file, flags);
	if (result < 0)
		vfs_release(vfs, file);
	return result;
}

uint64_t vfs_file_handle(const struct vfs_file *file)
{
	return file->handle;
}

struct vfs_file *vfs_file_find(struct vfs *vfs, uint64_t handle)
{
	struct vfs_file *file = NULL;
	pthread_mutex_lock(&vfs->files_lock);
	HASH_FIND(hh, vfs->files, &handle, sizeof(handle), file);
	pthread_mutex_unlock(&vfs->files_lock);
	return file;
}

void vfs_release(struct vfs *vfs, struct vfs_file *file)
{
	struct open_state *state;
	if (vfs->keep)
		keep_drop(vfs->keep, steal(&file->kept));
	pthread_mutex_lock(&vfs->files_lock);
	HASH_DELETE(hh, vfs->files, file);
	vfs->file_count--;
	pthread_mutex_unlock(&vfs->files_lock);
	if (file->state && open_begin(vfs, file->node, &state) == 0) {
		if (file->is.number && state->backing > 0 && state->data &&
		    handle_may_be_mapped(state)) {
			file->is.staging = state->staging;
			file->shown = state->inode.shown;
		}
		state->handles--;
		open_end(vfs, file->node);
		file->state = NULL;
	}
	if (file->is.staging)
		file_linger(vfs, file);
	else
		file_drop(vfs, file);
}

void open_let_go(struct vfs *vfs)
{
	while (vfs->files)
		vfs_release(vfs, vfs->files);
	lingering_drop(vfs);
}

/* -- create -- */

static int make_file(struct vfs *vfs, struct node *parent, const char *name, mode_t mode,
                     const struct vfs_caller *caller, uint64_t *ret_epoch, struct inode *ret_inode,
                     struct message *message)
{
	CLEANUP(inode_release) struct inode above = {0};
	uint64_t number;
	int result = parent_adopt(vfs, parent, &number, &above, message);
	if (result < 0)
		return result;
	struct attributes attributes = new_attributes(&above, S_IFREG | (mode & 07777), 0, caller);
	*ret_epoch = scope_epoch(parent->scope);
	result = worktree_make(parent->scope->worktree, name ? number : 0, name,
	                       name ? strlen(name) : 0, &attributes, NULL, ret_inode, message);
	if (result >= 0)
		result = worktree_writer(vfs->lake->worktrees, ret_inode->number, 1);
	return result;
}

/* A node for a file that has no name (yet): its record lives in the node. */
static int intern_nameless(struct vfs *vfs, struct node *parent, const struct inode *inode,
                           struct node **ret_node)
{
	struct inode *orphan = malloc(sizeof(*orphan));
	if (!orphan || inode_copy(inode, orphan) < 0) {
		free(orphan);
		return -ERR_NO_MEMORY;
	}
	orphan->nlink = 0;
	nodes_lock(vfs->nodes);
	struct node *node =
	        nodes_add(vfs->nodes, NODE_ENTRY, parent, NULL, parent->scope, inode->shown);
	if (node) {
		node->number = inode->number;
		node->orphan = orphan;
		nodes_detach(vfs->nodes, node);
		nodes_orphan_changed(vfs->nodes, node);
		nodes_looked_up(node);
		nodes_pin(node);
	}
	nodes_unlock(vfs->nodes);
	if (!node) {
		inode_release(orphan);
		free(orphan);
		return -ERR_NO_MEMORY;
	}
	*ret_node = node;
	return 0;
}

/* Takes over data. */
static int create_handle(struct vfs *vfs, struct node *node, struct inode *inode,
                         struct file_data *data, int flags, const struct vfs_caller *caller,
                         struct vfs_opened *ret_opened)
{
	struct open_state *state;
	struct vfs_file *file = file_new(vfs, node, flags, caller);
	int result = file ? sync_for_writes(vfs, file, flags) : -ERR_NO_MEMORY;
	if (result >= 0)
		result = open_begin(vfs, node, &state);
	if (result < 0) {
		file_data_close(data);
		file_free(vfs, file);
		return result;
	}
	file->is.number = inode->number;
	nodes_lock(vfs->nodes);
	nodes_pin(node);
	nodes_unlock(vfs->nodes);
	if (state->handles == 0)
		state_fill(vfs, node, state, data, inode);
	else
		file_data_close(data); /* somebody was quicker */
	result = file_attach(vfs, file, state, ret_opened);
	open_end(vfs, node);
	if (result < 0) { /* the caller counted the writer */
		node_put(vfs, node);
		file_free(vfs, file);
	}
	return result;
}

/* Inside the gate: everything but the handle, whose gate comes before this one. */
static int create_node(struct vfs *vfs, struct node *parent, const char *name, struct known *known,
                       struct node **ret_node, struct file_data **ret_data,
                       struct vfs_entry *ret_entry, struct message *message)
{
	int result;
	known->directory.number = known->inode.number;
	if (name)
		result = node_intern(vfs, parent, name, known, ret_node);
	else
		result = intern_nameless(vfs, parent, &known->inode, ret_node);
	if (result < 0)
		return result;
	result = node_describe(vfs, *ret_node, &known->inode, ret_entry);
	if (!name)
		ret_entry->stat.st_nlink = 0;
	return result < 0 ? result : data_open(vfs, &known->inode, ret_data, message);
}

static int create(struct vfs *vfs, struct node *parent, const char *name, mode_t mode, int flags,
                  const struct vfs_caller *caller, struct vfs_entry *ret_entry,
                  struct vfs_opened *ret_opened, struct message *message)
{
	CLEANUP(known_release) struct known known = {0};
	struct node *node = NULL;
	struct file_data *data = NULL;
	int result = gate_enter(parent);
	if (result < 0)
		return result;
	result = make_file(vfs, parent, name, mode, caller, &known.epoch, &known.inode, message);
	uint64_t number = result < 0 ? 0 : known.inode.number;
	if (result >= 0)
		result = create_node(vfs, parent, name, &known, &node, &data, ret_entry, message);
	gate_leave(parent);
	if (result >= 0)
		result = create_handle(vfs, node, &known.inode, data, flags, caller, ret_opened);
	if (result < 0 && number)
		worktree_writer(vfs->lake->worktrees, number, -1);
	if (result < 0 && node)
		node_forget(vfs, node, 1);
	node_put(vfs, node);
	return result;
}

static int open_existing(struct vfs *vfs, struct node *parent, const char *name, int flags,
                         const struct vfs_caller *caller, struct vfs_entry *ret_entry,
                         struct vfs_opened *ret_opened, struct message *message)
{
	int result = -ERR_STALE;
	for (int i = 0; i < VFS_TRIES && result == -ERR_STALE; i++) {
		result = name_entry(vfs, parent, name, ret_entry, message);
		if (result < 0)
			return result;
		result = vfs_open(vfs, ret_entry->node, flags, caller, ret_opened, message);
		if (result >= 0 && flags & O_TRUNC)
			ret_entry->stat.st_size = 0;
		if (result < 0)
			vfs_forget(vfs, ret_entry->node, 1);
	}
	return result;
}

int vfs_create(struct vfs *vfs, uint64_t parent_id, const char *name, mode_t mode, int flags,
               const struct vfs_caller *caller, struct vfs_entry *ret_entry,
               struct vfs_opened *ret_opened, struct message *message)
{
	struct node *parent;
	int result = node_get(vfs, parent_id, &parent);
	if (result < 0)
		return result;
	if (name)
		request_intends(vfs, INTENT_OTHER, 0, parent_id, name, 0, NULL);
	if (!parent->scope)
		result = -ERR_NOT_PERMITTED;
	else
		result = create(vfs, parent, name, mode, flags, caller, ret_entry, ret_opened,
		                message);
	if (result == -ERR_EXISTS && name && !(flags & O_EXCL))
		result = open_existing(vfs, parent, name, flags, caller, ret_entry, ret_opened,
		                       message);
	node_put(vfs, parent);
	return result;
}

/* -- bytes -- */

ssize_t vfs_read(struct vfs *vfs, struct vfs_file *file, void *out, size_t length, uint64_t offset,
                 struct message *message)
{
	if (file->state && !file->state->data)
		return error_system(EIO);
	if (file->state)
		return file_data_read(file->state->data, out, length, offset, message);
	if (offset >= file->text.length)
		return 0;
	size_t rest = file->text.length - (size_t)offset;
	memcpy(out, file->text.data + offset, rest < length ? rest : length);
	return (ssize_t)(rest < length ? rest : length);
}

ssize_t vfs_write(struct vfs *vfs, struct vfs_file *file, const void *bytes, size_t length,
                  uint64_t offset, const struct vfs_caller *caller, struct message *message)
{
	if (!file->state || !file->writes)
		return error_system(EBADF);
	int result = file->state->data ? node_writable(file->node) : error_system(EIO);
	if (result < 0)
		return result;
	ssize_t written = file_data_write(file->state->data, bytes, length, offset, message);
	if (written >= 0 && file->state->privileged && caller->uid != 0)
		attributes_set(vfs, file->node, &(struct vfs_change){.which = VFS_DROP_PRIVILEGES},
		               message);
	return written;
}

int vfs_allocate(struct vfs *vfs, struct vfs_file *file, int mode, uint64_t offset, uint64_t length,
                 struct message *message)
{
	if (!file->state || !file->writes)
		return error_system(EBADF);
	int result = file->state->data ? node_writable(file->node) : error_system(EIO);
	return result < 0 ? result
	                  : file_data_allocate(file->state->data, mode, offset, length, message);
}

int vfs_seek(struct vfs *vfs, struct vfs_file *file, uint64_t offset, int whence,
             uint64_t *ret_offset)
{
	if (!file->state)
		return -ERR_INVALID;
	if (!file->state->data)
		return error_system(EIO);
	return file_data_seek(file->state->data, offset, whence, ret_offset);
}

int vfs_sync(struct vfs *vfs, struct vfs_file *file, bool data_only)
{
	if (!file->state)
		return 0;
	if (!file->state->data)
		return error_system(EIO);
	int result = file_data_sync(file->state->data, data_only);
	return result < 0 ? result : vfs_sync_names(vfs);
}

uint64_t vfs_file_node(const struct vfs_file *file)
{
	return file->node->id;
}

bool vfs_file_writes(const struct vfs_file *file)
{
	return file->writes && file->state;
}

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

int file_restore(struct vfs *vfs, void *record)
{
	struct kept_file *kept = record;
	struct node *node;
	int result = node_get(vfs, kept->node, &node);
	if (result < 0) {
		keep_drop(vfs->keep, kept);
		return 0;
	}
	struct vfs_file *file = calloc(1, sizeof(*file));
	if (!file) {
		node_put(vfs, node);
		return -ERR_NO_MEMORY;
	}
	*file = (struct vfs_file){.handle = kept->handle,
	                          .kept = kept,
	                          .node = node,
	                          .writes = kept->writes,
	                          .is.number = kept->number,
	                          .pid = kept->pid};
	result = file_enlist(vfs, file);
	if (result < 0) {
		node_put(vfs, node);
		free(file);
		return result;
	}
	struct open_state *state = NULL;
	if (node->kind == NODE_REPORT)
		result = report_text(vfs, node, &file->text);
	else
		result = open_begin(vfs, node, &state);
	if (state) { /* an empty one, when it was not kept: every use is an error */
		file->state = state;
		state->handles++;
		open_end(vfs, node);
	}
	int counted =
	        file->is.number ? worktree_writer(vfs->lake->worktrees, file->is.number, 1) : 0;
	if (counted < 0)
		file->is.number = 0;
	return counted < 0 ? counted : result;
}

void open_forget_request(struct vfs *vfs, uint64_t request)
{
	struct vfs_file *file, *next, *found = NULL;
	pthread_mutex_lock(&vfs->files_lock);
	HASH_ITER (hh, vfs->files, file, next)
		if (file->kept && file->kept->request == request)
			found = file;
	pthread_mutex_unlock(&vfs->files_lock);
	if (found)
		vfs_release(vfs, found);
}
