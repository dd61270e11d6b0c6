/*
 * Hides who may still write: handles that are released live on as long as mappings that were made
 * through them, and count as open for writing until then.
 */
#include "fs/mount/mappings.h"
#include "fs/mount/vfs_internal.h"

#include <stdlib.h>
#include <string.h>

#define LINGERING_MIN 64 /* handles that linger before they are looked at unasked */

/* One handle lingers for each staging file; `file` is dropped when there is one. What the table has
 * no memory for lingers beside it. */
static void linger_locked(struct vfs *vfs, struct vfs_file *file, struct vfs_file **dropped)
{
	struct vfs_file *other = NULL;
	HASH_FIND(hh, vfs->lingering, &file->is, sizeof(file->is), other);
	if (other) {
		other->pid = file->pid;
		file->next = *dropped;
		*dropped = file;
		return;
	}
	HASH_ADD(hh, vfs->lingering, is, sizeof(file->is), file);
	if (!file->hh.tbl) {
		file->next = vfs->lingering_beside;
		vfs->lingering_beside = file;
	}
}

static void files_drop(struct vfs *vfs, struct vfs_file *files)
{
	for (struct vfs_file *file = files, *next; file; file = next) {
		next = file->next;
		file_drop(vfs, file);
	}
}

/* A handle lives on as long as mappings that were made through it, and counts as open for writing.
 */
void file_linger(struct vfs *vfs, struct vfs_file *file)
{
	struct vfs_file *dropped = NULL;
	pthread_mutex_lock(&vfs->files_lock);
	linger_locked(vfs, file, &dropped);
	bool settle = HASH_COUNT(vfs->lingering) >= vfs->lingering_max;
	pthread_mutex_unlock(&vfs->files_lock);
	files_drop(vfs, dropped);
	if (settle)
		open_settle(vfs);
}

static bool still_mapped(struct vfs *vfs, struct vfs_file *file)
{
	CLEANUP(close_descriptor) int fd = -1;
	if (worktree_open_staging(vfs->lake->worktrees, file->is.staging, &fd) < 0)
		return false; /* the file is gone, whoever maps it */
	return mappings_exist(fd, file->shown, open_is_open(vfs, file->node));
}

void open_settle(struct vfs *vfs)
{
	struct vfs_file *kept = NULL, *dropped = NULL, *file, *next;
	pthread_mutex_lock(&vfs->files_lock);
	struct vfs_file *lingering = steal(&vfs->lingering);
	struct vfs_file *beside = steal(&vfs->lingering_beside);
	pthread_mutex_unlock(&vfs->files_lock);
	for (file = beside; file; file = next) {
		next = file->next;
		struct vfs_file **list = still_mapped(vfs, file) ? &kept : &dropped;
		file->next = *list;
		*list = file;
	}
	HASH_ITER (hh, lingering, file, next) {
		struct vfs_file **list = still_mapped(vfs, file) ? &kept : &dropped;
		HASH_DELETE(hh, lingering, file);
		file->next = *list;
		*list = file;
	}
	pthread_mutex_lock(&vfs->files_lock);
	for (file = kept; file; file = next) {
		next = file->next;
		linger_locked(vfs, file, &dropped);
	}
	vfs->lingering_max = HASH_COUNT(vfs->lingering) * 2 + LINGERING_MIN;
	pthread_mutex_unlock(&vfs->files_lock);
	files_drop(vfs, dropped);
}

void lingering_drop(struct vfs *vfs)
{
	struct vfs_file *file, *next;
	HASH_ITER (hh, vfs->lingering, file, next) {
		HASH_DELETE(hh, vfs->lingering, file);
		file_drop(vfs, file);
	}
	files_drop(vfs, steal(&vfs->lingering_beside));
}

/* Only of the last handle may one ask: where others are being opened the kernel may open the file
 * at this very moment, and O_NONBLOCK does not wait for a lease. */
bool handle_may_be_mapped(const struct open_state *state)
{
	return state->handles > 1 || mappings_possible(file_data_local(state->data));
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
	open_settle(vfs);
	pthread_mutex_lock(&vfs->files_lock);
	for (struct vfs_file *file = vfs->files; file; file = file->hh.next)
		if (vfs_file_writes(file))
			buffer_append(&writers, &(struct writer){file->node->id, file->pid},
			              sizeof(struct writer));
	for (struct vfs_file *file = vfs->lingering; file; file = file->hh.next)
		buffer_append(&writers, &(struct writer){file->node->id, file->pid},
		              sizeof(struct writer));
	for (struct vfs_file *file = vfs->lingering_beside; file; file = file->next)
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
