/*
 * Hides handles: how one comes to be, by opening or creating, what goes through it, and when it is
 * gone. What its node is open on is vfs_state.c's.
 */
#include "fs/mount/vfs_internal.h"

#include <errno.h>
#include <fcntl.h>

#include <uthash.h>

struct kept_file {
	uint64_t handle, node, number, request;
	int32_t pid;
	bool writes, reads;
};

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
	file->reads = (flags & O_ACCMODE) != O_WRONLY;
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
		                                 .writes = file->writes,
		                                 .reads = file->reads};
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
		result = state_for_writing(vfs, node, state, truncate, &file->is.number, message);
	else
		result = state_for_reading(vfs, node, state, message);
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
		if (file->is.number && file->reads && state->backing > 0 && state->data &&
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

bool vfs_file_maps(const struct vfs_file *file)
{
	return file->reads && vfs_file_writes(file);
}

/* -- after a start that follows a crash: nobody else is inside -- */

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
	                          .reads = kept->reads,
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
