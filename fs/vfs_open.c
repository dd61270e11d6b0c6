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
#include "fs/fuse_loop.h"
#include "fs/vfs_internal.h"

#include <errno.h>
#include <fcntl.h>

struct vfs_file {
	struct node *node;        /* pinned */
	struct open_state *state; /* the node's, while this handle counts in it; NULL: a report */
	bool writes;
	uint64_t number; /* counted in worktree_writer; 0: not */
	pid_t pid;
	struct vfs_file *previous, *next;
	struct buffer text; /* of a report */
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
		loop_about_to_block();
	while (node->open && node->open->busy)
		pthread_cond_wait(&stripe->changed, &stripe->lock);
	if (!node->open)
		node->open = calloc(1, sizeof(*node->open));
	if (node->open)
		node->open->busy = true;
	*ret_state = node->open;
	pthread_mutex_unlock(&stripe->lock);
	return *ret_state ? 0 : -ERR_NO_MEMORY;
}

static void state_clear(struct vfs *vfs, struct open_state *state)
{
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
	int stated = open ? file_data_stat(node->open->data, &now) : -ERR_STALE;
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

void open_mode_changed(struct vfs *vfs, struct node *node, mode_t mode)
{
	struct open_stripe *stripe = stripe_of(vfs, node);
	pthread_mutex_lock(&stripe->lock);
	if (node->open)
		node->open->privileged = mode & (S_ISUID | S_ISGID);
	pthread_mutex_unlock(&stripe->lock);
}

/* -- what a node is open on -- */

/* Takes over data and *inode. Files with set-id bits are not passed through: only writes that
 * come to us can clear them. */
static void state_fill(struct vfs *vfs, struct open_state *state, struct file_data *data,
                       struct inode *inode)
{
	int fd = file_data_local(data);
	state_clear(vfs, state);
	state->data = data;
	state->staging = inode->staging;
	state->privileged = inode->attributes.mode & (S_ISUID | S_ISGID);
	state->inode = *inode;
	*inode = (struct inode){0};
	if (fd >= 0 && vfs->kernel.backing_open && !state->privileged)
		state->backing = vfs->kernel.backing_open(vfs->kernel.context, fd);
	if (state->backing < 0)
		state->backing = 0;
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
			state_fill(vfs, state, data, &inode);
			return 0;
		}
		if (result != -ERR_STALE && result != -ERR_NOT_FOUND)
			return result;
		node_unbind(vfs, node); /* a commit took the staging file away */
	}
	return result;
}

static int orphan_write_state(struct vfs *vfs, struct node *node, struct open_state *state,
                              bool truncate, struct message *message)
{
	int result = read_state(vfs, node, state, message);
	if (result < 0)
		return result;
	if (!state->staging)
		return -ERR_STALE; /* old committed content: never written to */
	return truncate ? file_data_truncate(state->data, 0, message) : 0;
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
		node_detach(vfs, node);
		return -ERR_STALE;
	}
	return truncate ? file_data_truncate(state->data, 0, message) : 0;
}

static int alone_write_state(struct vfs *vfs, struct node *node, struct open_state *state,
                             uint64_t number, bool truncate, struct message *message)
{
	CLEANUP(inode_release) struct inode inode = {0};
	struct file_data *data;
	int result = worktree_writable(node->scope->worktree, number, truncate, &inode, message);
	if (result >= 0)
		result = data_open(vfs, &inode, &data, message);
	if (result >= 0)
		state_fill(vfs, state, data, &inode);
	return result;
}

static int write_state(struct vfs *vfs, struct node *node, struct open_state *state, bool truncate,
                       uint64_t *ret_number, struct message *message)
{
	*ret_number = 0;
	int result = node_writable(node);
	if (result < 0)
		return result;
	if (node_detached(vfs, node))
		return orphan_write_state(vfs, node, state, truncate, message);
	result = gate_enter(node);
	if (result < 0)
		return result;
	struct binding binding;
	result = node_bind(vfs, node, true, &binding, message);
	if (result >= 0) {
		uint64_t number = binding.directory.number;
		worktree_writer(vfs->lake->worktrees, number, 1);
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

/* -- handles -- */

static struct vfs_file *file_new(struct node *node, int flags, const struct vfs_caller *caller)
{
	struct vfs_file *file = calloc(1, sizeof(*file));
	if (!file)
		return NULL;
	file->node = node;
	file->writes = (flags & O_ACCMODE) != O_RDONLY;
	file->pid = caller->pid;
	return file;
}

static void file_enlist(struct vfs *vfs, struct vfs_file *file)
{
	pthread_mutex_lock(&vfs->files_lock);
	file->next = vfs->files;
	if (file->next)
		file->next->previous = file;
	vfs->files = file;
	vfs->file_count++;
	pthread_mutex_unlock(&vfs->files_lock);
}

/* The handle counts in the state now. Open gate held. */
static void file_attach(struct vfs *vfs, struct vfs_file *file, struct open_state *state,
                        struct vfs_opened *ret_opened)
{
	struct node *node = file->node;
	file->state = state;
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
	file_enlist(vfs, file);
}

static int open_report(struct vfs *vfs, struct vfs_file *file, struct vfs_opened *ret_opened)
{
	if (file->writes)
		return error_system(EACCES);
	int result = report_text(vfs, file->node, &file->text);
	if (result < 0) {
		buffer_release(&file->text);
		return result;
	}
	*ret_opened = (struct vfs_opened){.file = file, .direct = true};
	file_enlist(vfs, file);
	return 0;
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
		result = write_state(vfs, node, state, truncate, &file->number, message);
	else
		result = read_state(vfs, node, state, message);
	bool drop = result >= 0 && truncate && state->privileged && caller->uid != 0;
	if (result >= 0)
		file_attach(vfs, file, state, ret_opened);
	open_end(vfs, node);
	if (drop)
		attributes_set(vfs, node, &(struct vfs_change){.which = VFS_DROP_PRIVILEGES},
		               message);
	return result;
}

/*
 * Writes that are passed through never come by here. With O_SYNC or O_DSYNC the kernel makes their
 * bytes durable; the record that says whose bytes they are has to be before.
 */
static int sync_for_writes(struct vfs *vfs, int flags)
{
	bool writes = (flags & O_ACCMODE) != O_RDONLY;
	return writes && flags & O_DSYNC ? vfs_sync_names(vfs) : 0;
}

int vfs_open(struct vfs *vfs, uint64_t id, int flags, const struct vfs_caller *caller,
             struct vfs_opened *ret_opened, struct message *message)
{
	struct node *node;
	int result = node_get(vfs, id, &node);
	if (result < 0)
		return result;
	struct vfs_file *file = file_new(node, flags, caller);
	result = file ? open_node(vfs, file, flags, caller, ret_opened, message) : -ERR_NO_MEMORY;
	if (result < 0) {
		free(file);
		node_put(vfs, node);
		return result;
	}
	result = sync_for_writes(vfs, flags);
	if (result < 0)
		vfs_release(vfs, file);
	return result;
}

void vfs_release(struct vfs *vfs, struct vfs_file *file)
{
	struct open_state *state;
	pthread_mutex_lock(&vfs->files_lock);
	if (file->previous)
		file->previous->next = file->next;
	else
		vfs->files = file->next;
	if (file->next)
		file->next->previous = file->previous;
	vfs->file_count--;
	pthread_mutex_unlock(&vfs->files_lock);
	if (file->state && open_begin(vfs, file->node, &state) == 0) {
		state->handles--;
		open_end(vfs, file->node);
	}
	if (file->number)
		worktree_writer(vfs->lake->worktrees, file->number, -1);
	node_put(vfs, file->node);
	buffer_release(&file->text);
	free(file);
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
		worktree_writer(vfs->lake->worktrees, ret_inode->number, 1);
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
		node->flags |= NODE_DETACHED;
		node->lookups++;
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
	struct vfs_file *file = file_new(node, flags, caller);
	int result = file ? sync_for_writes(vfs, flags) : -ERR_NO_MEMORY;
	if (result >= 0)
		result = open_begin(vfs, node, &state);
	if (result < 0) {
		file_data_close(data);
		free(file);
		return result;
	}
	file->number = inode->number;
	nodes_lock(vfs->nodes);
	nodes_pin(node);
	nodes_unlock(vfs->nodes);
	if (state->handles == 0)
		state_fill(vfs, state, data, inode);
	else
		file_data_close(data); /* somebody was quicker */
	file_attach(vfs, file, state, ret_opened);
	open_end(vfs, node);
	return 0;
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
	int result = node_writable(file->node);
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
	int result = node_writable(file->node);
	return result < 0 ? result
	                  : file_data_allocate(file->state->data, mode, offset, length, message);
}

int vfs_seek(struct vfs *vfs, struct vfs_file *file, uint64_t offset, int whence,
             uint64_t *ret_offset)
{
	if (!file->state)
		return -ERR_INVALID;
	return file_data_seek(file->state->data, offset, whence, ret_offset);
}

int vfs_sync(struct vfs *vfs, struct vfs_file *file, bool data_only)
{
	if (!file->state)
		return 0;
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

static int truncate_locked(struct vfs *vfs, struct node *node, struct open_state *state,
                           uint64_t size, struct message *message)
{
	if (node_detached(vfs, node)) {
		if (!state->handles || !state->staging)
			return -ERR_STALE;
		return file_data_truncate(state->data, size, message);
	}
	int result = gate_enter(node);
	if (result < 0)
		return result;
	struct binding binding;
	result = node_bind(vfs, node, true, &binding, message);
	uint64_t number = result < 0 ? 0 : binding.directory.number;
	if (result >= 0 && state->handles > 0) {
		result = shared_write_state(vfs, node, state, number, false, message);
		if (result >= 0)
			result = file_data_truncate(state->data, size, message);
	} else if (result >= 0 && size == 0) {
		CLEANUP(inode_release) struct inode inode = {0};
		result = worktree_writable(node->scope->worktree, number, true, &inode, message);
	} else if (result >= 0) {
		result = worktree_truncate(node->scope->worktree, number, size, message);
	}
	gate_leave(node);
	return result;
}

int open_truncate(struct vfs *vfs, struct node *node, struct vfs_file *file, uint64_t size,
                  struct message *message)
{
	struct open_state *state;
	if (file && file->state && file->writes)
		return file_data_truncate(file->state->data, size, message);
	int result = open_begin(vfs, node, &state);
	if (result < 0)
		return result;
	result = truncate_locked(vfs, node, state, size, message);
	open_end(vfs, node);
	return result;
}

/* -- who writes: for commit's waiting and `lakectl status` -- */

struct writer {
	uint64_t node;
	pid_t pid;
};

int open_writers(struct vfs *vfs, const char *branch,
                 int (*callback)(void *argument, const char *branch, const char *path, int pid),
                 void *argument)
{
	CLEANUP(buffer_release) struct buffer writers = {0};
	pthread_mutex_lock(&vfs->files_lock);
	for (struct vfs_file *file = vfs->files; file; file = file->next)
		if (vfs_file_writes(file))
			buffer_append(&writers, &(struct writer){file->node->id, file->pid},
			              sizeof(struct writer));
	pthread_mutex_unlock(&vfs->files_lock);
	int result = buffer_check(&writers);
	CLEANUP(free_pointer) char *path = malloc(PATH_BYTES_MAX);
	if (result < 0 || !path)
		return -ERR_NO_MEMORY;
	for (size_t at = 0; at < writers.length && result == 0; at += sizeof(struct writer)) {
		struct writer writer;
		memcpy(&writer, writers.data + at, sizeof(writer));
		vfs_path(vfs, writer.node, path, PATH_BYTES_MAX);
		char *slash = strchr(path, '/');
		if (!slash)
			continue;
		*slash = '\0';
		if (!branch || strcmp(branch, path) == 0)
			result = callback(argument, path, slash + 1, writer.pid);
	}
	return result;
}
