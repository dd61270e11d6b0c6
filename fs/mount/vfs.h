/*
 * vfs — what file and directory operations on the mounted tree mean, without any FUSE type: the
 * table of nodes, how a node is found again in a working tree that moved, who shares which open
 * file, and what the kernel must be told to forget.
 *
 * Holds:      the node table (fs/mount/nodes.h), open files, directory handles.
 * Never:      speaks the FUSE protocol; stores anything (the working trees do).
 * Invariants: (1) a node keeps its id and st_ino while it lives, whatever name it moves to;
 *             (2) all opens of a node share one file_data and, in passthrough, one backing id;
 *             (3) a node's content never changes under an open descriptor but by writing to it:
 *             whenever a path gets other content (the first write to a committed file while it
 *             is open, a merge, a reset), its node is detached and the path gets a new one;
 *             (4) a lookup never leaves a binding behind that a finished move made wrong.
 * Threads:    any. Lock order: a directory handle, a node's open gate, a working tree's gate, the
 *             open stripes, the node table. Only the first three are held across I/O, and the
 *             kernel is called (struct vfs_kernel) with none of the last two held.
 * Errors:     every call returns 0 (or a count) or a negative error (store/error.h); -ERR_STALE
 *             means "look the path up again" and the kernel does. Messages are written on
 *             failures worth a log line.
 */
#ifndef FS_VFS_H
#define FS_VFS_H

#include <sys/stat.h>
#include <sys/statvfs.h>

#include "fs/mount/keep.h"
#include "fs/lake.h"

struct vfs;
/* What the vfs asks of whoever speaks to the kernel. All may be NULL. */
struct vfs_kernel {
	void *context;
	/* A backing id > 0 for the descriptor, or a negative error: the file is then not passed
	 * through. */
	int (*backing_open)(void *context, int fd);
	void (*backing_close)(void *context, int backing);
	/* Forget the name `name` in directory `parent`. */
	void (*forget_entry)(void *context, uint64_t parent, const char *name);
	/* Forget attributes and, when `pages`, cached bytes or listings. */
	void (*forget_inode)(void *context, uint64_t node, bool pages);
	/* Text of /lake/.lake/<which>. */
	int (*report)(void *context, const char *which, struct buffer *ret_text);
};

#define VFS_ROOT 1
/* Borrows the lake; becomes the observer of its working trees. `keep` (may be NULL; borrowed):
 * where what a successor of this process must know is kept. When it holds what a predecessor
 * kept, all that the kernel refers to is there again. */
int vfs_new(struct lake *lake, const struct vfs_kernel *kernel, struct keep *keep,
            struct vfs **ret_vfs);
void vfs_free(struct vfs *vfs); /* nobody may be inside; accepts NULL */

/* -- requests that the kernel repeats when this process dies before it answers them -- */

/* This thread works on the kernel's request of this number from now on. */
void vfs_request_begin(uint64_t request);
/* It was answered. Only needed after calls that change names or extended attributes. */
void vfs_request_end(struct vfs *vfs);
/* The kernel repeats this request. What a predecessor opened for it goes: nobody was told of it.
 * Did the predecessor do it? Then only the answer is missing. */
bool vfs_request_again(struct vfs *vfs, uint64_t request);
/* For struct lake_legacy's state_opened, with the keep as the context. */
void vfs_state_opened(void *keep, const struct state *state);
/* After a crash names and attributes may have changed without the kernel being told: look at
 * everything it refers to. In a thread of its own, beside requests; ends early when *stop. */
void vfs_look_again(struct vfs *vfs, const _Atomic(bool) *stop);

struct vfs_caller {
	uid_t uid;
	gid_t gid;
	pid_t pid;
};
/* A reference to a node: one count for vfs_forget. */
struct vfs_entry {
	uint64_t node;
	struct stat stat;
	bool lasting; /* changes only through us: the kernel may keep name and attributes */
};
int vfs_lookup(struct vfs *vfs, uint64_t parent, const char *name, struct vfs_entry *ret_entry,
               struct message *message);
void vfs_forget(struct vfs *vfs, uint64_t node, uint64_t count);

int vfs_getattr(struct vfs *vfs, uint64_t node, struct stat *ret_stat, struct message *message);
int vfs_readlink(struct vfs *vfs, uint64_t node, struct buffer *ret_target,
                 struct message *message);
int vfs_statfs(struct vfs *vfs, struct statvfs *ret_statvfs);

enum {
	VFS_MODE = 1,
	VFS_UID = 2,
	VFS_GID = 4,
	VFS_SIZE = 8,
	VFS_MTIME = 16,
	VFS_DROP_PRIVILEGES = 32, /* clear set-user-id and set-group-id bits, as a write does */
	VFS_ATIME = 64,
};
struct vfs_change {
	unsigned which;
	mode_t mode;
	uid_t uid;
	gid_t gid;
	uint64_t size;
	int64_t mtime_ns;
	int64_t atime_ns;
};
struct vfs_file;
/* `file` (may be NULL) is the open file that a truncate came through. */
int vfs_setattr(struct vfs *vfs, uint64_t node, struct vfs_file *file,
                const struct vfs_change *change, const struct vfs_caller *caller,
                struct stat *ret_stat, struct message *message);

/* -- names. The root's are commands' business: -ERR_NOT_PERMITTED -- */
struct vfs_make {
	mode_t mode; /* S_IFMT included */
	dev_t rdev;
	const char *target; /* symlinks */
};
int vfs_make(struct vfs *vfs, uint64_t parent, const char *name, const struct vfs_make *make,
             const struct vfs_caller *caller, struct vfs_entry *ret_entry, struct message *message);
int vfs_link(struct vfs *vfs, uint64_t node, uint64_t parent, const char *name,
             struct vfs_entry *ret_entry, struct message *message);
int vfs_remove(struct vfs *vfs, uint64_t parent, const char *name, bool directory,
               struct message *message);
/* flags: RENAME_NOREPLACE, RENAME_EXCHANGE. -EXDEV (as error_system) between branches. */
int vfs_rename(struct vfs *vfs, uint64_t from_parent, const char *from, uint64_t to_parent,
               const char *to, unsigned flags, struct message *message);

/* -- extended attributes: all but POSIX ACLs -- */
int vfs_xattr_get(struct vfs *vfs, uint64_t node, const char *name, struct buffer *ret_value,
                  struct message *message); /* -ENODATA, as error_system */
/* Names, each with its NUL. */
int vfs_xattr_list(struct vfs *vfs, uint64_t node, struct buffer *ret_names,
                   struct message *message);
/* value.data NULL removes; flags: XATTR_CREATE, XATTR_REPLACE. */
int vfs_xattr_set(struct vfs *vfs, uint64_t node, const char *name, struct span value, int flags,
                  struct message *message);

/* -- open files -- */
struct vfs_opened {
	struct vfs_file *file;
	int backing;     /* > 0: the kernel reads and writes the backing file itself */
	bool direct;     /* no caching: a report */
	bool keep_pages; /* what the kernel has cached of it is still right */
};
/* flags: open(2)'s. -ERR_STALE: the path must be looked up again, it gets a node of its own. */
int vfs_open(struct vfs *vfs, uint64_t node, int flags, const struct vfs_caller *caller,
             struct vfs_opened *ret_opened, struct message *message);
/* name NULL: a nameless file (O_TMPFILE) in directory `parent`. */
int vfs_create(struct vfs *vfs, uint64_t parent, const char *name, mode_t mode, int flags,
               const struct vfs_caller *caller, struct vfs_entry *ret_entry,
               struct vfs_opened *ret_opened, struct message *message);
void vfs_release(struct vfs *vfs, struct vfs_file *file);
ssize_t vfs_read(struct vfs *vfs, struct vfs_file *file, void *out, size_t length, uint64_t offset,
                 struct message *message);
ssize_t vfs_write(struct vfs *vfs, struct vfs_file *file, const void *bytes, size_t length,
                  uint64_t offset, const struct vfs_caller *caller, struct message *message);
int vfs_allocate(struct vfs *vfs, struct vfs_file *file, int mode, uint64_t offset, uint64_t length,
                 struct message *message);
int vfs_seek(struct vfs *vfs, struct vfs_file *file, uint64_t offset, int whence,
             uint64_t *ret_offset);
/* The file's bytes and every name and attribute changed before: both survive a power cut. */
int vfs_sync(struct vfs *vfs, struct vfs_file *file, bool data_only);
int vfs_sync_names(struct vfs *vfs);
uint64_t vfs_file_node(const struct vfs_file *file);
/* A number for the kernel, never given twice; NULL: there is no such file open (any more). */
uint64_t vfs_file_handle(const struct vfs_file *file);
struct vfs_file *vfs_file_find(struct vfs *vfs, uint64_t handle);
bool vfs_file_writes(const struct vfs_file *file);
/* May it be written to through memory? mmap(2) wants a descriptor that can read. */
bool vfs_file_maps(const struct vfs_file *file);

/* -- directories -- */
struct vfs_directory;
int vfs_opendir(struct vfs *vfs, uint64_t node, struct vfs_directory **ret_directory,
                bool *ret_lasting, struct message *message);
void vfs_releasedir(struct vfs *vfs, struct vfs_directory *directory);
uint64_t vfs_directory_handle(const struct vfs_directory *directory);
struct vfs_directory *vfs_directory_find(struct vfs *vfs, uint64_t handle);
/* Called for each entry from `offset` on (0: the start); `next` is the offset after it. Without
 * `plus` only st_ino and the type are filled in entry->stat; with it the entry is a reference,
 * except for "." and "..". Return false when it does not fit: it is then not given out, and its
 * reference is taken back. */
typedef bool vfs_entry_fn(void *context, const char *name, const struct vfs_entry *entry,
                          uint64_t next);
/* `room`: about how many bytes of names fit, at `overhead` for each entry besides the name. */
struct vfs_list {
	uint64_t offset;
	bool plus;
	size_t room, overhead;
	vfs_entry_fn *entry;
	void *context;
};
int vfs_readdir(struct vfs *vfs, struct vfs_directory *directory, const struct vfs_list *list,
                struct message *message);

/* "branch/path" or "@view/path" of a node, for messages; "" when no path leads to it. */
void vfs_path(struct vfs *vfs, uint64_t node, char *ret_path, size_t size);
struct vfs_stats {
	uint64_t nodes, files, passthrough_opens, daemon_opens, stale, moves;
};
void vfs_stats(struct vfs *vfs, struct vfs_stats *ret_stats);

#endif
