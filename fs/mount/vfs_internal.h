/*
 * vfs_internal — what the vfs_*.c files share. Include it nowhere else.
 */
#ifndef FS_VFS_INTERNAL_H
#define FS_VFS_INTERNAL_H

#include <pthread.h>

#include <uthash.h>

#include "fs/mount/nodes.h"
#include "fs/mount/vfs.h"

#define VFS_TRIES 64 /* of anything that a concurrent move or rename can undo */
#define OPEN_STRIPES 64

struct kept_open;
struct kept_request;
struct open_stripe {
	pthread_mutex_t lock;
	pthread_cond_t changed; /* some node of this stripe is not busy any more */
};
struct vfs {
	struct lake *lake;
	struct vfs_kernel kernel;
	struct nodes *nodes;
	struct open_stripe stripes[OPEN_STRIPES];
	struct keep *keep;          /* may be NULL */
	pthread_mutex_t files_lock; /* guards what follows; innermost, like the table's */
	struct vfs_file *files;     /* all that are open, by handle */
	struct vfs_directory *directories;
	struct kept_request **done; /* by a predecessor, and not answered */
	size_t done_count;
	bool doubtful;                 /* a predecessor died in a command */
	_Atomic(uint64_t) next_handle; /* without a keep */
	/* Released, but perhaps still mapped for writing; looked at when somebody asks who writes,
	 * and when there are lingering_max. files_lock. */
	struct vfs_file *lingering;
	struct vfs_file *lingering_beside; /* a list */
	uint64_t lingering_max;
	struct ahead *ahead; /* NULL without a cache */
	_Atomic(uint64_t) file_count, passthrough_opens, daemon_opens, stale, moves;
	uid_t uid; /* who owns the root and the reports */
	gid_t gid;
	int64_t started_ns;
};

/* -- vfs.c -- */
/* The node, pinned; -ERR_STALE when the id is unknown. */
int node_get(struct vfs *vfs, uint64_t id, struct node **ret_node);
void node_put(struct vfs *vfs, struct node *node); /* may dispose of it; accepts NULL */
void node_put_cleanup(struct node **node);
/* Free dead nodes and what they hold; no lock may be held. */
void nodes_dispose(struct vfs *vfs, struct node *dead);
/* Give up `count` references of the kernel. */
void node_forget(struct vfs *vfs, struct node *node, uint64_t count);
uint64_t entry_shown(uint64_t parent_shown, const char *name);
/* What a name was found to be, with its full record. */
struct known {
	uint64_t epoch;
	struct directory directory; /* number; tree of a committed directory */
	struct inode inode;
};
void known_release(struct known *known);
/* The node for `name` in `parent`, with one reference of the kernel and one pin. -ERR_STALE: what
 * `known` says is outdated, look again. */
int node_intern(struct vfs *vfs, struct node *parent, const char *name, const struct known *known,
                struct node **ret_node);
void node_detach(struct vfs *vfs, struct node *node);
bool node_detached(struct vfs *vfs, const struct node *node);
/* Look `name` up in a directory of a branch or view: one reference of the kernel. */
int name_entry(struct vfs *vfs, struct node *parent, const char *name, struct vfs_entry *ret_entry,
               struct message *message);
int node_describe(struct vfs *vfs, struct node *node, const struct inode *inode,
                  struct vfs_entry *ret_entry);
/* What the kernel is told of a name that was found: one reference of its. -ERR_STALE as
 * node_intern, also when the working tree was moved since `known` was read. */
int known_entry(struct vfs *vfs, struct node *parent, const char *name, const struct known *known,
                struct vfs_entry *ret_entry);

/* -- vfs_bind.c: nodes in working trees -- */
struct binding {
	uint64_t epoch;
	struct directory directory; /* of a file: number alone */
};
uint64_t scope_epoch(const struct scope *scope);
int scope_lookup(struct vfs *vfs, const struct scope *scope, const struct directory *directory,
                 const char *name, struct found *ret_found, struct message *message);
/* Where the node is now. adopt: bring it (and its ancestors) into the overlay; the caller is
 * inside the working tree's gate. -ERR_STALE: no path leads to it. */
int node_bind(struct vfs *vfs, struct node *node, bool adopt, struct binding *ret_binding,
              struct message *message);
/* A number of the current epoch turned out to be gone: bind again. */
void node_unbind(struct vfs *vfs, struct node *node);
/* The node's full record; the caller releases it. */
int node_inode(struct vfs *vfs, struct node *node, struct inode *ret_inode,
               struct message *message);
/* The record of something found; takes over nothing. -ERR_STALE as worktree_inode. */
int found_inode(const struct scope *scope, const struct found *found, uint64_t shown,
                struct inode *ret_inode);
int node_stat(struct vfs *vfs, struct node *node, const struct inode *inode, struct stat *ret_stat);
/* Look `name` up: everything about it. */
int name_know(struct vfs *vfs, struct node *parent, const char *name, struct known *ret_known,
              struct message *message);
/* 0, or -ERR_READ_ONLY: a view, or a protected branch. The node has a scope. */
int node_writable(const struct node *node);
/* The gate of the node's working tree. -ERR_READ_ONLY as above, -ERR_STALE: branch deleted. */
int gate_enter(const struct node *node);
void gate_leave(const struct node *node);

/* -- vfs_state.c -- */
struct open_state {
	bool busy;      /* one thread is at work on it, and may wait for the disk or the store */
	bool mode_told; /* `privileged` was, since the state is busy */
	_Atomic(bool) privileged; /* had set-id bits when last looked at: writes must clear them */
	uint32_t handles;
	int backing;             /* > 0: all handles are passed through */
	struct file_data *data;  /* NULL in a handle's hands: a predecessor's, lost */
	struct kept_open *kept;  /* may be NULL */
	uint64_t staging;        /* what `data` was opened on; 0: committed content */
	_Atomic(bool) copied_up; /* ... by an open, and the record may not be durable yet */
	struct inode inode;      /* as of the last open: what a detached node still shows */
};
/* Exclusive use of the node's open state, across I/O. Makes it when missing. */
int open_begin(struct vfs *vfs, struct node *node, struct open_state **ret_state);
void open_end(struct vfs *vfs, struct node *node);
/* Between these two: have the node open on what it leads to now, for one more handle. -ERR_STALE:
 * the path is to be looked up again. For writing, *ret_number is counted in worktree_writer, if it
 * is not 0. */
int state_for_reading(struct vfs *vfs, struct node *node, struct open_state *state,
                      struct message *message);
int state_for_writing(struct vfs *vfs, struct node *node, struct open_state *state, bool truncate,
                      uint64_t *ret_number, struct message *message);
/* Of a state that nobody has a handle of: takes over data and *inode. */
void state_fill(struct vfs *vfs, const struct node *node, struct open_state *state,
                struct file_data *data, struct inode *inode);
int state_truncate(struct open_state *state, uint64_t size, struct message *message);
int data_open(struct vfs *vfs, const struct inode *inode, struct file_data **ret_data,
              struct message *message);
/* The record that a detached node had when it was opened last, with its present size. */
int open_frozen(struct vfs *vfs, struct node *node, struct inode *ret_inode, struct stat *ret_stat);
struct vfs_file;
/* Truncate by node. */
int open_truncate(struct vfs *vfs, struct node *node, struct vfs_file *file, uint64_t size,
                  struct message *message);
bool open_is_open(struct vfs *vfs, struct node *node);
void open_mode_changed(struct vfs *vfs, struct node *node, mode_t mode);
/* As a predecessor kept it. The node has its scope. */
int open_restore(struct vfs *vfs, struct kept_open *kept);
/* What open_restore made and no handle came to share. */
void open_unshared(struct vfs *vfs, const struct kept_open *kept);

/* -- vfs_open.c -- */
/* A handle. */
struct vfs_file {
	uint64_t handle;
	UT_hash_handle hh;        /* vfs->files, by handle; then vfs->lingering, by `is` */
	struct kept_file *kept;   /* there once it is in vfs->files; NULL without a keep */
	struct node *node;        /* pinned */
	struct open_state *state; /* the node's, while this handle counts in it; NULL: a report */
	bool writes;
	bool reads;
	pid_t pid;
	struct {
		uint64_t number;  /* counted in worktree_writer; 0: not */
		uint64_t staging; /* released, but perhaps mapped: of this staging file */
	} is;
	uint64_t shown;        /* st_ino of what is perhaps mapped */
	struct buffer text;    /* of a report */
	struct vfs_file *next; /* while they are sorted out */
};
/* Frees a released handle, which no longer counts as a writer. */
void file_drop(struct vfs *vfs, struct vfs_file *file);
/* At the end: the kernel has let go, or was cut off. */
void open_let_go(struct vfs *vfs);
/* As a predecessor kept it. The node has its scope. */
int file_restore(struct vfs *vfs, void *kept);
/* Open for this request, by a predecessor. */
void open_forget_request(struct vfs *vfs, uint64_t request);

/* -- vfs_writers.c -- */
int open_writers(struct vfs *vfs, const char *branch,
                 int (*callback)(void *argument, const char *branch, const char *path, int pid),
                 void *argument);
/* Drop released handles through which nothing is mapped any more. */
void open_settle(struct vfs *vfs);
/* Whether something may be mapped through the handle that is being released. Exclusive use of its
 * state. */
bool handle_may_be_mapped(const struct open_state *state);
/* Takes over a released handle, with its `staging` and `shown`. */
void file_linger(struct vfs *vfs, struct vfs_file *file);
void lingering_drop(struct vfs *vfs);

/* -- vfs_change.c -- */
/* The table's side of what a predecessor may have done to names alone. Nobody else is inside. */
void settle_removed(struct vfs *vfs, struct node *parent, const char *name);
void settle_renamed(struct vfs *vfs, struct node *from_parent, const char *from,
                    struct node *to_parent, const char *to, bool exchange);
void settle_linked(struct vfs *vfs, struct node *node, struct node *parent, const char *name);
struct attributes new_attributes(const struct inode *parent, mode_t mode, dev_t rdev,
                                 const struct vfs_caller *caller);
int attributes_set(struct vfs *vfs, struct node *node, const struct vfs_change *change,
                   struct message *message);
/* The parent in the overlay, and what a new inode in it inherits. Inside the gate. */
int parent_adopt(struct vfs *vfs, struct node *parent, uint64_t *ret_number,
                 struct inode *ret_inode, struct message *message);

/* -- vfs_top.c: the root, views and reports -- */
int top_lookup(struct vfs *vfs, struct node *root, const char *name, struct vfs_entry *ret_entry,
               struct message *message);
int control_lookup(struct vfs *vfs, struct node *control, const char *name,
                   struct vfs_entry *ret_entry);
void fixed_stat(struct vfs *vfs, const struct node *node, struct stat *ret_stat);
int report_text(struct vfs *vfs, const struct node *node, struct buffer *ret_text);

/* -- vfs_list.c -- */
int directory_restore(struct vfs *vfs, void *kept);
/* Names after `after`, once: -ERR_STALE when they may have changed meanwhile. As worktree_list. */
int directory_peek(struct vfs *vfs, struct node *directory, const char *after, list_fn *callback,
                   void *context);
void directory_forget_request(struct vfs *vfs, uint64_t request);

/* -- vfs_ahead.c -- */
struct ahead;
int ahead_new(struct vfs *vfs, struct ahead **ret_ahead);
void ahead_free(struct ahead *ahead); /* waits for a fetch under way; accepts NULL */
/* Committed content was opened; `fetched`: it was not local. Does not block. */
void ahead_opened(struct vfs *vfs, struct node *node, const struct content *content, bool fetched);

/* -- vfs_again.c -- */
enum intent { INTENT_OTHER, INTENT_LINK, INTENT_REMOVE, INTENT_RENAME, INTENT_EXCHANGE };
/* This request is about to do this; should it get into the journal, a successor sees it. Names may
 * be NULL. `node`: of a link. */
void request_intends(struct vfs *vfs, enum intent intent, uint64_t node, uint64_t parent,
                     const char *name, uint64_t to_parent, const char *to);
uint64_t request_current(void);
uint64_t handle_new(struct vfs *vfs);
int vfs_restore(struct vfs *vfs);

/* -- vfs_observe.c -- */
void vfs_observe(struct vfs *vfs, bool on);

#endif
