/*
 * nodes — the table of what the kernel holds references to: one node per file or directory it has
 * looked up, found by id, by (parent, name) and by overlay inode number.
 *
 * Holds:      the nodes, their ids, names and reference counts.
 * Never:      does I/O; calls another module. A node's meaning is the vfs_*.c files'.
 * Invariants: (1) ids are sequential numbers, never pointers and never given twice, so a forgotten
 *             id finds nothing instead of something else;
 *             (2) a child pins its parent: following `parent` is always safe;
 *             (3) a node in the name index is the only one of its (parent, name); a detached node
 *             is in no index but that of ids.
 *             (4) with a keep, every node is in it before anybody learns its id, and each change
 *             of what a successor needs to know of it is there when the function returns.
 * Memory:     about 150 bytes and the name for each, and 72 and the name in the keep: a million
 *             nodes must fit easily.
 * Threads:    every function wants the table's lock, which guards the table and all fields of
 *             nodes marked [table]. Lock order: it is the innermost of the vfs's locks; nothing
 *             that can block is done under it.
 */
#ifndef FS_NODES_H
#define FS_NODES_H

#include <stdatomic.h>

#include "fs/mount/keep.h"
#include "fs/worktree.h"

#define NODE_ROOT_ID 1
#define EPOCH_RESTORED UINT64_MAX /* no working tree's: what holds was true in another process */

enum node_kind {
	NODE_ROOT,    /* the list of branches */
	NODE_CONTROL, /* .lake */
	NODE_REPORT,  /* a file in it */
	NODE_TOP,     /* root of a branch or of a view */
	NODE_ENTRY,   /* anything below one */
};
enum node_flag {
	NODE_DETACHED = 1,  /* no path leads here any more; descriptors may */
	NODE_BOUND = 2,     /* number, tree and tag hold for `epoch` */
	NODE_LINKED = 8,    /* has had several names */
	NODE_PAGES = 16,    /* pages the kernel may hold of it are still those of its content */
	NODE_NAMELESS = 32, /* its known name is gone, others remain */
};

/* What a top node shows, and everything below it: shared by all of them. */
struct scope {
	atomic_uint references;
	struct worktree *worktree; /* NULL: a read-only view of `commit` */
	struct commit *commit;     /* owned; NULL for working trees */
};
struct scope *scope_ref(struct scope *scope);
void scope_unref(struct scope *scope); /* may block: not under the lock; accepts NULL */

struct open_state;
struct kept_node;
struct node {
	uint64_t id;
	uint64_t lookups;    /* [table] references of the kernel */
	uint32_t pins;       /* [table] references of children, handles and running operations */
	uint8_t kind;        /* enum node_kind */
	bool directory;      /* for life */
	uint8_t flags;       /* [table] */
	struct node *parent; /* [table] pinned; NULL: the root */
	char *name;          /* [table] primary one; owned */
	struct scope *scope; /* one reference; NULL for ROOT, CONTROL and REPORT */
	struct node *id_next, *name_next, *number_next;
	uint64_t shown; /* st_ino, for as long as the node lives */
	/* [table] What it was found to be, in the working tree's `epoch`: an overlay inode, or
	 * (number 0) a committed entry. */
	uint64_t epoch;
	uint64_t number;
	uint64_t tag;            /* files: first bytes of the committed content's id, else 0 */
	struct pointer *tree;    /* directories: owned, NULL while number != 0 */
	struct open_state *open; /* the open locks' (fs/mount/vfs_state.c); NULL: not open */
	struct inode *orphan;    /* [table] its record once its last name is gone; owned */
	/* [table] In the keep; NULL without one. `kept_more`: a view's commit, an orphan's record.
	 */
	struct kept_node *kept;
	void *kept_more;
};

struct nodes;
int nodes_new(struct nodes **ret_nodes); /* with the root */
/* Once, before any node but the root is made. Nodes that are kept are made anew, unbound, all but
 * their scopes (see nodes_restore_scopes). */
int nodes_keep(struct nodes *nodes, struct keep *keep);
/* For each top its scope: of a view, `commit` is what it shows; of a branch, NULL, and its name
 * tells. What cannot be had again (NULL) is detached. */
typedef struct scope *scope_open_fn(void *context, const char *name, const struct pointer *commit);
void nodes_restore_scopes(struct nodes *nodes, scope_open_fn *open, void *context);
/* Nodes that nobody references: a crash can leave some. */
void nodes_sweep(struct nodes *nodes, struct node **ret_dead);
/* Every node must be gone but those the kernel still counts: yields them chained by id_next. */
struct node *nodes_empty(struct nodes *nodes);
void nodes_free(struct nodes *nodes);
void nodes_lock(struct nodes *nodes);
void nodes_unlock(struct nodes *nodes);

/* NULL: none. The result lives while the lock is held or it is pinned. */
struct node *nodes_by_id(struct nodes *nodes, uint64_t id);
struct node *nodes_by_name(struct nodes *nodes, const struct node *parent, const char *name);
struct node *nodes_by_number(struct nodes *nodes, const struct scope *scope, uint64_t number);
/* A new node in the indices of ids and names; references `scope`. name NULL: in no index by name
 * (NODE_NAMELESS), with `parent` (a top) pinned for its scope alone. NULL: out of memory. */
struct node *nodes_add(struct nodes *nodes, enum node_kind kind, struct node *parent,
                       const char *name, struct scope *scope, uint64_t shown);
/* Put it under another name. The node that was there must have been detached.
 * -ERR_NO_MEMORY: nothing changed. `ret_dead`: see nodes_unpin. */
int nodes_rename(struct nodes *nodes, struct node *node, struct node *parent, const char *name,
                 struct node **ret_dead);
int nodes_exchange(struct nodes *nodes, struct node *a, struct node *b); /* as nodes_rename */
/* Forget the primary name but keep the number: another name leads here. */
void nodes_unname(struct nodes *nodes, struct node *node);
void nodes_detach(struct nodes *nodes, struct node *node);
void nodes_bind(struct nodes *nodes, struct node *node, uint64_t epoch, uint64_t number,
                uint64_t tag);
/* One more reference of the kernel. */
void nodes_looked_up(struct node *node);
void nodes_linked(struct node *node); /* NODE_LINKED */
void nodes_directory(struct node *node);
/* Its `orphan` was set, changed or taken away. */
void nodes_orphan_changed(struct nodes *nodes, struct node *node);
static inline void nodes_pin(struct node *node)
{
	node->pins++;
}
/* Take references away. Nodes that nobody references any more are pushed on *ret_dead (chained
 * by id_next), out of every index; the caller disposes of them without the lock. */
void nodes_unpin(struct nodes *nodes, struct node *node, struct node **ret_dead);
void nodes_forget(struct nodes *nodes, struct node *node, uint64_t lookups, struct node **ret_dead);
/* Frees one dead node's memory (not its orphan's staging file). */
void node_free(struct node *node);
/* Call back for every attached child; slow (walks the whole table). */
void nodes_children(struct nodes *nodes, const struct node *parent,
                    void (*callback)(void *context, struct node *child), void *context);
/* The same for every attached node below `ancestor`, in no order. */
void nodes_below(struct nodes *nodes, const struct node *ancestor,
                 void (*callback)(void *context, struct node *node), void *context);
/* Every id in the table; allocated. */
int nodes_ids(struct nodes *nodes, uint64_t **ret_ids, size_t *ret_count);
uint64_t nodes_count(const struct nodes *nodes);

/* -- records in a keep: an inode's, as kept for orphans and open files -- */
struct kept_inode {
	uint64_t node;
	uint64_t number; /* which the encoding lacks */
	uint32_t length;
	uint8_t bytes[];
};
int kept_inode_read(const struct kept_inode *kept, struct inode *ret_inode);

#endif
