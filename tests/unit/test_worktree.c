/* Working trees against a model in memory: random operations, closing, kill -9. */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "worktree_fixture.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#undef assert
#define assert(condition) \
	do { \
		if (!(condition)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			abort(); \
		} \
	} while (0)

#define NODES_MAX 160
#define CHILDREN_MAX 24
#define NAMES 12
#define FILE_MAX 70000
#define COPY_UP_MAX 20000 /* larger ones are piecewise: some of the base files are */
#define BASE_TIME 5000000000

/* -- the model -- */

struct node {
	unsigned nlink; /* 0: unused */
	uint32_t mode;
	int64_t mtime_ns; /* 0: not known */
	size_t size;
	uint8_t *bytes; /* FILE_MAX of them, for regular files */
	char text[16];  /* a symlink's target */
	char xattr[16]; /* "" when none */
	struct {
		char name[8];
		int node; /* -1: free */
	} children[CHILDREN_MAX];
};

struct model {
	struct node nodes[NODES_MAX]; /* 0 is the root */
};

static uint64_t random_step(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed * 2685821657736338717u >> 20;
}

static unsigned pick(uint64_t *seed, unsigned below)
{
	return (unsigned)(random_step(seed) % below);
}

static int new_node(struct model *model, uint32_t mode)
{
	for (int i = 0; i < NODES_MAX; i++) {
		struct node *node = &model->nodes[i];
		if (node->nlink != 0)
			continue;
		uint8_t *bytes = node->bytes;
		*node = (struct node){.nlink = 1, .mode = mode, .bytes = bytes};
		if (S_ISREG(mode) && bytes == NULL)
			node->bytes = calloc(1, FILE_MAX);
		else if (S_ISREG(mode))
			memset(bytes, 0, FILE_MAX);
		for (int j = 0; j < CHILDREN_MAX; j++)
			node->children[j].node = -1;
		return i;
	}
	return -1;
}

static void free_model(struct model *model)
{
	for (int i = 0; i < NODES_MAX; i++)
		free(model->nodes[i].bytes);
	free(model);
}

static int *child_slot(struct model *model, int directory, const char *name)
{
	struct node *node = &model->nodes[directory];
	for (int i = 0; i < CHILDREN_MAX; i++)
		if (node->children[i].node >= 0 && strcmp(node->children[i].name, name) == 0)
			return &node->children[i].node;
	return NULL;
}

static bool add_child(struct model *model, int directory, const char *name, int child)
{
	struct node *node = &model->nodes[directory];
	for (int i = 0; i < CHILDREN_MAX; i++) {
		if (node->children[i].node >= 0)
			continue;
		strcpy(node->children[i].name, name);
		node->children[i].node = child;
		return true;
	}
	return false;
}

static unsigned count_children(const struct node *node)
{
	unsigned count = 0;
	for (int i = 0; i < CHILDREN_MAX; i++)
		count += node->children[i].node >= 0;
	return count;
}

/* -- the base: what is committed before the first operation -- */

static void fill_bytes(uint8_t *bytes, size_t length, uint64_t seed)
{
	for (size_t i = 0; i < length; i++)
		bytes[i] = (uint8_t)(seed * 31 + i * 7 + (i >> 8));
}

static void base_entry(struct fixture *fixture, struct packer *packer, struct model *model,
                       struct pointer *tree, const char *path, int parent, uint32_t mode,
                       size_t size)
{
	int number = new_node(model, mode);
	struct node *node = &model->nodes[number];
	assert(number >= 0 && add_child(model, parent, path + strlen(path) - 2, number));
	struct tree_entry entry = {
	        .name = path + strlen(path) - 2,
	        .name_length = 2,
	        .attributes = {.mode = mode, .uid = 1, .gid = 2, .mtime_ns = BASE_TIME},
	};
	node->mtime_ns = BASE_TIME;
	if (S_ISREG(mode)) {
		fill_bytes(node->bytes, size, (uint64_t)number);
		node->size = size;
		entry.content = fixture_content(packer, node->bytes, size);
	} else if (S_ISLNK(mode)) {
		strcpy(node->text, "target");
		entry.target = "target";
		entry.target_length = 6;
	}
	struct buffer xattrs = {0};
	if (number % 3 == 0) {
		strcpy(node->xattr, "base");
		assert(xattrs_set(&xattrs, "user.x", (struct span){"base", 4}) == 0);
		entry.xattrs = xattrs.data;
		entry.xattrs_length = xattrs.length;
	}
	struct pointer before = *tree;
	must(tree_set_path(fixture->odb, packer, &before, path, &entry, tree, NULL), NULL, path);
	buffer_release(&xattrs);
}

/* Names are two bytes, n0..nb, as the operations use them. */
static void make_base(struct fixture *fixture, struct model *model)
{
	struct packer *packer;
	must(packer_new(fixture->odb, &packer), NULL, "packer");
	struct pointer tree = pointer_none;
	int root = new_node(model, S_IFDIR | 0755);
	assert(root == 0);
	model->nodes[0].mtime_ns = 1000;
	static const char *const directories[] = {"n0", "n1", "n2", "n0/n3", "n0/n3/n4"};
	int numbers[ARRAY_SIZE(directories)];
	for (size_t i = 0; i < ARRAY_SIZE(directories); i++) {
		int parent = i < 3 ? 0 : i == 3 ? numbers[0] : numbers[3];
		base_entry(fixture, packer, model, &tree, directories[i], parent, S_IFDIR | 0755,
		           0);
		for (numbers[i] = NODES_MAX - 1; model->nodes[numbers[i]].nlink == 0;)
			numbers[i]--;
	}
	static const size_t sizes[] = {0, 10, 4096, 15000, 30000, 65000};
	for (size_t i = 0; i < 2 * ARRAY_SIZE(sizes); i++) {
		char path[32];
		size_t d = i % ARRAY_SIZE(directories);
		if (d == 2)
			continue; /* n2 stays empty */
		snprintf(path, sizeof(path), "%s/n%c", directories[d], "56789ab"[i % 7]);
		if (child_slot(model, numbers[d], path + strlen(path) - 2) == NULL)
			base_entry(fixture, packer, model, &tree, path, numbers[d],
			           i == 7 ? S_IFLNK | 0777 : S_IFREG | 0644,
			           sizes[i % ARRAY_SIZE(sizes)]);
	}
	fixture_commit(fixture, packer, &tree, "main");
	packer_free(packer);
}

/* -- comparing -- */

struct comparison {
	struct worktree *worktree;
	struct model *model;
	int directory;
	unsigned seen;
	char last[16];
	bool differs;
};

static bool same_tree(struct worktree *worktree, struct model *model, int directory,
                      const struct directory *place);

static bool same_bytes(struct worktrees *trees, const struct node *node, struct file_data *data)
{
	static uint8_t bytes[FILE_MAX + 10];
	ssize_t got = file_data_read(data, bytes, sizeof(bytes), 0, NULL);
	struct stat status;
	assert(file_data_stat(data, &status) == 0);
	file_data_close(data);
	if (got != (ssize_t)node->size || memcmp(bytes, node->bytes, node->size) != 0) {
		fprintf(stderr, "content differs: %zd of %zu bytes\n", got, node->size);
		return false;
	}
	return status.st_size == (off_t)node->size;
}

static bool same_xattr(const struct node *node, const uint8_t *xattrs, size_t length)
{
	struct span value = {0};
	if (xattrs_get(xattrs, length, "user.x", &value) != 0)
		return node->xattr[0] == '\0';
	return value.length == strlen(node->xattr) &&
	       memcmp(value.data, node->xattr, value.length) == 0;
}

static bool same_committed(struct worktree *worktree, struct model *model, int number,
                           const struct tree_entry *entry)
{
	struct node *node = &model->nodes[number];
	if (entry->attributes.mode != node->mode || node->nlink != 1 ||
	    (node->mtime_ns != 0 && entry->attributes.mtime_ns != node->mtime_ns) ||
	    !same_xattr(node, entry->xattrs, entry->xattrs_length))
		return false;
	if (S_ISDIR(node->mode)) {
		struct directory place = {.tree = entry->content.pointer};
		return same_tree(worktree, model, number, &place);
	}
	if (S_ISLNK(node->mode))
		return strcmp(entry->target, node->text) == 0;
	struct file_data *data;
	must(file_data_open_content(worktree->trees, &entry->content, &data, NULL), NULL, "open");
	return same_bytes(worktree->trees, node, data);
}

static bool same_overlaid(struct worktree *worktree, struct model *model, int number,
                          uint64_t inode_number)
{
	struct node *node = &model->nodes[number];
	struct inode inode;
	must(worktree_inode(worktree, inode_number, &inode), NULL, "inode");
	struct stat status;
	must(worktree_stat(worktree, &inode, &status), NULL, "stat");
	bool same =
	        inode.attributes.mode == node->mode && inode.nlink == node->nlink &&
	        (node->mtime_ns == 0 ||
	         status.st_mtim.tv_sec * 1000000000 + status.st_mtim.tv_nsec == node->mtime_ns) &&
	        same_xattr(node, inode.xattrs, inode.xattrs_length);
	if (same && S_ISDIR(node->mode)) {
		struct directory place = {.number = inode_number};
		same = same_tree(worktree, model, number, &place);
	} else if (same && S_ISLNK(node->mode)) {
		same = strcmp(inode.target, node->text) == 0;
	} else if (same) {
		struct file_data *data;
		must(file_data_open(worktree->trees, &inode, false, &data, NULL), NULL, "open");
		same = same_bytes(worktree->trees, node, data) &&
		       status.st_size == (off_t)node->size;
	}
	inode_release(&inode);
	return same;
}

static int compare_entry(void *context, const char *name, size_t length, const struct found *found)
{
	struct comparison *comparison = context;
	int *child = child_slot(comparison->model, comparison->directory, name);
	comparison->seen++;
	bool same = child != NULL && strcmp(comparison->last, name) < 0 && strlen(name) == length &&
	            (found->mode & S_IFMT) == (comparison->model->nodes[*child].mode & S_IFMT);
	snprintf(comparison->last, sizeof(comparison->last), "%s", name);
	if (same && found->number != 0)
		same = same_overlaid(comparison->worktree, comparison->model, *child,
		                     found->number);
	else if (same)
		same = same_committed(comparison->worktree, comparison->model, *child,
		                      found->entry);
	comparison->differs = !same;
	return same ? 0 : 1;
}

static bool same_tree(struct worktree *worktree, struct model *model, int directory,
                      const struct directory *place)
{
	struct comparison comparison = {
	        .worktree = worktree, .model = model, .directory = directory};
	struct message message = {0};
	int r = worktree_list(worktree, place, NULL, 0, compare_entry, &comparison, &message);
	must(r, &message, "list");
	return !comparison.differs && comparison.seen == count_children(&model->nodes[directory]);
}

static bool same(struct worktree *worktree, struct model *model)
{
	struct directory root;
	must(worktree_root(worktree, &root), NULL, "root");
	return same_tree(worktree, model, 0, &root);
}

/* -- operations: on the model always, on the working tree when there is one -- */

struct spot {
	int node;        /* of the directory */
	uint64_t number; /* of its overlay inode; 0 without a working tree */
};

static uint64_t adopt(struct worktree *worktree, uint64_t parent, const char *name)
{
	struct directory directory = {.number = parent};
	struct found found;
	uint64_t number;
	must(worktree_lookup(worktree, &directory, name, strlen(name), &found, NULL), NULL, name);
	if (found.number != 0)
		return found.number;
	must(worktree_adopt(worktree, parent, found.entry, 77, &number, NULL), NULL, "adopt");
	uint64_t again;
	must(worktree_adopt(worktree, parent, found.entry, 78, &again, NULL), NULL, "adopt");
	assert(number == again);
	free(found.entry);
	return number;
}

/* A random directory, adopted on the way down. */
static struct spot random_directory(struct model *model, struct worktree *worktree, uint64_t *seed)
{
	struct spot place = {0};
	if (worktree != NULL)
		must(worktree_adopt_root(worktree, &place.number), NULL, "root");
	for (int depth = 0; depth < 6 && pick(seed, 4) != 0; depth++) {
		struct node *node = &model->nodes[place.node];
		unsigned at = pick(seed, CHILDREN_MAX), i = 0;
		while (i < CHILDREN_MAX) {
			int child = node->children[(at + i) % CHILDREN_MAX].node;
			if (child >= 0 && S_ISDIR(model->nodes[child].mode))
				break;
			i++;
		}
		if (i == CHILDREN_MAX)
			break;
		at = (at + i) % CHILDREN_MAX;
		if (worktree != NULL)
			place.number = adopt(worktree, place.number, node->children[at].name);
		place.node = node->children[at].node;
	}
	return place;
}

static void random_name(uint64_t *seed, char name[8])
{
	snprintf(name, 8, "n%x", pick(seed, NAMES));
}

static void forget_last(struct worktree *worktree, struct inode *last)
{
	if (last->number != 0)
		worktree_forget(worktree->trees, last);
	inode_release(last);
}

static void drop_link(struct model *model, int number)
{
	model->nodes[number].nlink--;
}

static void step_make(struct model *model, struct worktree *worktree, uint64_t *seed)
{
	struct spot place = random_directory(model, worktree, seed);
	char name[8];
	random_name(seed, name);
	static const uint32_t modes[] = {S_IFREG | 0600, S_IFDIR | 0700, S_IFLNK | 0777};
	uint32_t mode = modes[pick(seed, 3)];
	int expected = child_slot(model, place.node, name) != NULL ? -ERR_EXISTS : 0;
	if (expected == 0) {
		int number = new_node(model, mode);
		if (number < 0 || !add_child(model, place.node, name, number)) {
			if (number >= 0)
				model->nodes[number].nlink = 0;
			return;
		}
		strcpy(model->nodes[number].text, S_ISLNK(mode) ? "to" : "");
		model->nodes[place.node].mtime_ns = 0;
	}
	if (worktree == NULL)
		return;
	struct attributes attributes = {.mode = mode};
	struct inode inode = {0};
	int r = worktree_make(worktree, place.number, name, strlen(name), &attributes, "to", &inode,
	                      NULL);
	assert(r == expected);
	inode_release(&inode);
}

static void step_remove(struct model *model, struct worktree *worktree, uint64_t *seed)
{
	struct spot place = random_directory(model, worktree, seed);
	char name[8];
	random_name(seed, name);
	bool directory = pick(seed, 3) == 0;
	int *child = child_slot(model, place.node, name), expected = 0;
	if (child == NULL)
		expected = -ERR_NOT_FOUND;
	else if (S_ISDIR(model->nodes[*child].mode) != directory)
		expected = directory ? -ERR_NOT_DIRECTORY : -ERR_IS_DIRECTORY;
	else if (count_children(&model->nodes[*child]) > 0)
		expected = -ERR_NOT_EMPTY;
	if (expected == 0) {
		drop_link(model, *child);
		*child = -1;
		model->nodes[place.node].mtime_ns = 0;
	}
	if (worktree == NULL)
		return;
	struct inode last = {0};
	int r = worktree_remove(worktree, place.number, name, strlen(name), directory, &last, NULL);
	assert(r == expected);
	forget_last(worktree, &last);
}

static bool is_below(struct model *model, int ancestor, int node)
{
	if (ancestor == node)
		return true;
	for (int i = 0; i < CHILDREN_MAX; i++) {
		int child = model->nodes[ancestor].children[i].node;
		if (child >= 0 && S_ISDIR(model->nodes[ancestor].mode) &&
		    is_below(model, child, node))
			return true;
	}
	return false;
}

static int expected_rename(struct model *model, int from, const int *to, unsigned flags)
{
	if (to == NULL)
		return flags & RENAME_EXCHANGE ? -ERR_NOT_FOUND : 0;
	if (flags & RENAME_NOREPLACE)
		return -ERR_EXISTS;
	if (flags & RENAME_EXCHANGE || *to == from)
		return 0;
	bool from_directory = S_ISDIR(model->nodes[from].mode);
	if (from_directory != S_ISDIR(model->nodes[*to].mode))
		return from_directory ? -ERR_NOT_DIRECTORY : -ERR_IS_DIRECTORY;
	return count_children(&model->nodes[*to]) > 0 ? -ERR_NOT_EMPTY : 0;
}

static bool rename_model(struct model *model, int from_directory, int *from, int to_directory,
                         const char *to_name, int *to, unsigned flags)
{
	if (to != NULL && *to == *from)
		return true;
	if (to == NULL && !add_child(model, to_directory, to_name, *from))
		return false;
	int moved = *from;
	*from = flags & RENAME_EXCHANGE ? *to : -1;
	if (to != NULL && !(flags & RENAME_EXCHANGE))
		drop_link(model, *to);
	if (to != NULL)
		*to = moved;
	model->nodes[from_directory].mtime_ns = model->nodes[to_directory].mtime_ns = 0;
	return true;
}

static void step_rename(struct model *model, struct worktree *worktree, uint64_t *seed)
{
	struct spot from = random_directory(model, worktree, seed);
	struct spot to = pick(seed, 2) ? from : random_directory(model, worktree, seed);
	char from_name[8], to_name[8];
	random_name(seed, from_name);
	random_name(seed, to_name);
	static const unsigned all_flags[] = {0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE};
	unsigned flags = all_flags[pick(seed, 4)];
	int *source = child_slot(model, from.node, from_name);
	int *target = child_slot(model, to.node, to_name);
	int expected = -ERR_NOT_FOUND;
	if (source != NULL) {
		/* What the caller promises not to ask for. */
		if (is_below(model, *source, to.node) ||
		    (target != NULL && is_below(model, *target, from.node)))
			return;
		if (worktree != NULL) {
			adopt(worktree, from.number, from_name);
			if (target != NULL)
				adopt(worktree, to.number, to_name);
		}
		expected = expected_rename(model, *source, target, flags);
		if (expected == 0 &&
		    !rename_model(model, from.node, source, to.node, to_name, target, flags))
			return;
	}
	if (worktree == NULL)
		return;
	struct inode last = {0};
	int r = worktree_rename(worktree, from.number, from_name, strlen(from_name), to.number,
	                        to_name, strlen(to_name), flags, &last, NULL);
	assert(r == expected);
	forget_last(worktree, &last);
}

/* A random name in a random directory: its node, or -1; with a working tree its inode number. */
static int random_child(struct model *model, struct worktree *worktree, uint64_t *seed,
                        uint64_t *ret_number)
{
	struct spot place = random_directory(model, worktree, seed);
	struct node *node = &model->nodes[place.node];
	unsigned at = pick(seed, CHILDREN_MAX);
	for (unsigned i = 0; i < CHILDREN_MAX; i++) {
		unsigned j = (at + i) % CHILDREN_MAX;
		if (node->children[j].node < 0)
			continue;
		if (worktree != NULL)
			*ret_number = adopt(worktree, place.number, node->children[j].name);
		return node->children[j].node;
	}
	return -1;
}

static void step_link(struct model *model, struct worktree *worktree, uint64_t *seed)
{
	uint64_t number = 0;
	int node = random_child(model, worktree, seed, &number);
	struct spot place = random_directory(model, worktree, seed);
	char name[8];
	random_name(seed, name);
	if (node < 0)
		return;
	int expected = 0;
	if (child_slot(model, place.node, name) != NULL)
		expected = -ERR_EXISTS;
	else if (S_ISDIR(model->nodes[node].mode))
		expected = -ERR_NOT_PERMITTED;
	else if (!add_child(model, place.node, name, node))
		return;
	if (expected == 0) {
		model->nodes[node].nlink++;
		model->nodes[place.node].mtime_ns = 0;
	}
	if (worktree != NULL) {
		int r = worktree_link(worktree, number, NULL, place.number, name, strlen(name),
		                      NULL);
		assert(r == expected);
	}
}

enum change_of_bytes { WRITE, TRUNCATE, PUNCH, ZERO, ALLOCATE, EMPTY, CHANGES };

/* The last change of a file: what a kill in the middle of it may leave. */
struct file_change {
	int node; /* -1: none */
	bool of_attributes;
	enum change_of_bytes what;
	size_t offset, end;
	/* Before: */
	int64_t mtime_ns;
	size_t size;
	uint8_t bytes[FILE_MAX];
};
static struct file_change last_change;

static void step_attributes(struct model *model, struct worktree *worktree, uint64_t *seed)
{
	uint64_t number = 0;
	int child = random_child(model, worktree, seed, &number);
	if (child < 0)
		return;
	struct node *node = &model->nodes[child];
	struct attributes attributes = {.mode = 0400 + pick(seed, 0377),
	                                .mtime_ns = 1000000 + pick(seed, 1000)};
	unsigned which = 1 + pick(seed, 31);
	last_change.node = child;
	last_change.of_attributes = true;
	last_change.mtime_ns = node->mtime_ns;
	if (which & SET_MODE)
		node->mode = (node->mode & S_IFMT) | attributes.mode;
	if (which & SET_MTIME)
		node->mtime_ns = attributes.mtime_ns;
	if (worktree != NULL)
		must(worktree_set_attributes(worktree, number, which, &attributes, 0), NULL, "set");
}

static void step_xattr(struct model *model, struct worktree *worktree, uint64_t *seed)
{
	uint64_t number = 0;
	int child = random_child(model, worktree, seed, &number);
	if (child < 0)
		return;
	struct node *node = &model->nodes[child];
	static const int all_flags[] = {0, XATTR_CREATE, XATTR_REPLACE};
	int flags = all_flags[pick(seed, 3)], expected = 0;
	bool removes = pick(seed, 3) == 0, exists = node->xattr[0] != '\0';
	char value[16];
	snprintf(value, sizeof(value), "v%u", pick(seed, 1000));
	if (removes)
		flags = 0;
	if (exists && flags == XATTR_CREATE)
		expected = -ERR_EXISTS;
	if (!exists && (flags == XATTR_REPLACE || removes))
		expected = error_system(ENODATA);
	if (expected == 0)
		strcpy(node->xattr, removes ? "" : value);
	if (worktree == NULL)
		return;
	struct span span = {removes ? NULL : value, removes ? 0 : strlen(value)};
	assert(worktree_set_xattr(worktree, number, "user.x", span, flags) == expected);
}

static void change_model(struct node *node, enum change_of_bytes what, size_t offset, size_t length,
                         uint64_t salt)
{
	size_t end = offset + length, size = node->size;
	if (what == TRUNCATE || what == EMPTY) {
		size_t new_size = what == EMPTY ? 0 : offset;
		if (new_size < size)
			memset(node->bytes + new_size, 0, size - new_size);
		node->size = new_size;
	} else if (what == WRITE) {
		fill_bytes(node->bytes + offset, length, salt);
	} else if (what == PUNCH || what == ZERO) {
		size_t stop = what == PUNCH && end > size ? size : end;
		if (offset < stop)
			memset(node->bytes + offset, 0, stop - offset);
	}
	if (what != TRUNCATE && what != EMPTY && what != PUNCH && end > size)
		node->size = end;
	node->mtime_ns = 0;
}

static void change_file(struct worktree *worktree, uint64_t number, enum change_of_bytes what,
                        size_t offset, size_t length, uint64_t salt)
{
	struct inode inode;
	struct message message = {0};
	must(worktree_writable(worktree, number, what == EMPTY, &inode, &message), &message,
	     "writable");
	struct file_data *data;
	must(file_data_open(worktree->trees, &inode, true, &data, &message), &message, "open");
	int r = 0;
	if (what == WRITE) {
		static uint8_t bytes[FILE_MAX];
		fill_bytes(bytes, length, salt);
		ssize_t put = file_data_write(data, bytes, length, offset, &message);
		must((int)put, &message, "write");
		assert(put == (ssize_t)length);
	} else if (what == TRUNCATE) {
		r = file_data_truncate(data, offset, &message);
	} else if (what == PUNCH) {
		r = file_data_allocate(data, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
		                       length, &message);
	} else if (what != EMPTY) {
		r = file_data_allocate(data, what == ZERO ? FALLOC_FL_ZERO_RANGE : 0, offset,
		                       length, &message);
	}
	must(r, &message, "change");
	file_data_close(data);
	inode_release(&inode);
}

static void step_bytes(struct model *model, struct worktree *worktree, uint64_t *seed)
{
	uint64_t number = 0;
	int child = random_child(model, worktree, seed, &number);
	enum change_of_bytes what = pick(seed, CHANGES);
	if (what == EMPTY && pick(seed, 4) != 0)
		what = WRITE;
	if (child < 0 || !S_ISREG(model->nodes[child].mode))
		return;
	struct node *node = &model->nodes[child];
	size_t offset = pick(seed, (unsigned)node->size + 6000);
	size_t length = 1 + pick(seed, pick(seed, 3) ? 300 : 10000);
	if (pick(seed, 3) == 0) { /* aligned, as programs like it */
		offset &= ~(size_t)4095;
		length = (length + 4095) & ~(size_t)4095;
	}
	if (offset + length > FILE_MAX)
		return;
	uint64_t salt = random_step(seed);
	last_change.node = child;
	last_change.of_attributes = false;
	last_change.what = what;
	last_change.offset = offset;
	last_change.end = offset + length;
	last_change.size = node->size;
	memcpy(last_change.bytes, node->bytes, FILE_MAX);
	change_model(node, what, offset, length, salt);
	if (worktree != NULL)
		change_file(worktree, number, what, offset, length, salt);
}

/* Operation n. Returns without having entered when the model alone is meant. */
static void step(struct model *model, struct worktree *worktree, uint64_t run, unsigned long n)
{
	static void (*const steps[])(struct model *, struct worktree *, uint64_t *) = {
	        step_make,   step_make,   step_remove, step_remove,     step_rename,
	        step_rename, step_rename, step_link,   step_attributes, step_xattr,
	        step_bytes,  step_bytes,  step_bytes,  step_bytes,
	};
	uint64_t seed = (run + n * 0x9e3779b97f4a7c15u) | 1;
	for (int i = 0; i < 4; i++)
		random_step(&seed);
	last_change.node = -1;
	if (worktree != NULL)
		must(worktree_enter(worktree, worktree_epoch(worktree)), NULL, "enter");
	steps[pick(&seed, ARRAY_SIZE(steps))](model, worktree, &seed);
	if (worktree != NULL)
		worktree_leave(worktree);
}

static void random_operations_match_the_model(void **unused)
{
	for (int round = 0; round < 4; round++) {
		uint64_t run = random_u64();
		print_message("seed %llu\n", (unsigned long long)run);
		struct fixture fixture;
		struct model *model = calloc(1, sizeof(*model));
		fixture_make(&fixture);
		fixture_open_with(&fixture, COPY_UP_MAX, round % 2);
		make_base(&fixture, model);
		struct worktree *worktree = get_main(&fixture);
		assert_true(same(worktree, model));
		assert_false(worktree_dirty(worktree));
		for (unsigned long n = 1; n <= 1500; n++) {
			step(model, worktree, run, n);
			if (n % 150 == 0)
				assert_true(same(worktree, model));
			if (n % 500 == 0) {
				worktree_unref(worktree);
				fixture_close(&fixture);
				fixture_open_with(&fixture, COPY_UP_MAX, round % 2);
				worktree = get_main(&fixture);
				assert_true(same(worktree, model));
				check_staging(&fixture, worktree);
			}
		}
		worktree_unref(worktree);
		fixture_close(&fixture);
		fixture_remove(&fixture);
		free_model(model);
	}
}

static void child_of_killing(struct fixture *fixture, struct model *model, uint64_t run,
                             unsigned long from, _Atomic unsigned long *acked)
{
	fixture_open_with(fixture, COPY_UP_MAX, false);
	struct worktree *worktree = get_main(fixture);
	for (unsigned long n = from + 1;; n++) {
		step(model, worktree, run, n);
		*acked = n;
	}
}

/*
 * The operation under way, which the model has made, may have got as far as a page's end, or no
 * further than the file's time: the kernel looks for SIGKILL before each page of a write(2), and
 * nobody was told that this one was done. The model is left as what was found.
 */
static bool same_torn(struct worktree *worktree, struct model *model)
{
	const struct file_change *change = &last_change;
	if (change->node < 0)
		return false;
	struct node *node = &model->nodes[change->node];
	if (change->of_attributes) { /* the time is the staging file's, set after the rest */
		node->mtime_ns = change->mtime_ns;
		return same(worktree, model);
	}
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	bool by_pages = change->what == WRITE || change->what == PUNCH || change->what == ZERO;
	/* Zeros are written as far as the file went, and then it grows. */
	size_t grows = change->what == WRITE ? change->end : change->size;
	CLEANUP(free_pointer) uint8_t *after = malloc(FILE_MAX);
	assert(after != NULL);
	memcpy(after, node->bytes, FILE_MAX);
	for (size_t stop = change->offset;; stop = (stop / page + 1) * page) {
		stop = stop < change->end ? stop : change->end;
		memcpy(node->bytes, change->bytes, FILE_MAX);
		memcpy(node->bytes + change->offset, after + change->offset, stop - change->offset);
		node->size = change->size;
		if (stop > change->offset && stop > node->size && stop <= grows)
			node->size = stop;
		if (same(worktree, model))
			return true;
		if (!by_pages || stop >= change->end)
			return false;
	}
}

static void killing_loses_nothing_that_returned(void **unused)
{
	uint64_t run = random_u64();
	print_message("seed %llu\n", (unsigned long long)run);
	struct fixture fixture;
	struct model *model = calloc(1, sizeof(*model));
	fixture_make(&fixture);
	fixture_open_with(&fixture, COPY_UP_MAX, false);
	make_base(&fixture, model);
	fixture_close(&fixture);
	_Atomic unsigned long *acked = mmap(NULL, sizeof(*acked), PROT_READ | PROT_WRITE,
	                                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned long applied = 0;
	for (int round = 0; round < 15; round++) {
		pid_t pid = fork();
		if (pid == 0)
			child_of_killing(&fixture, model, run, applied, acked);
		usleep(20000 + (useconds_t)(random_u64() % 60000));
		kill(pid, SIGKILL);
		int status;
		waitpid(pid, &status, 0);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		while (applied < *acked)
			step(model, NULL, run, ++applied);
		fixture_open_with(&fixture, COPY_UP_MAX, false);
		struct worktree *worktree = get_main(&fixture);
		if (!same(worktree, model)) {
			step(model, NULL, run, ++applied); /* the one under way happened */
			assert_true(same(worktree, model) || same_torn(worktree, model));
			*acked = applied;
		}
		check_staging(&fixture, worktree);
		worktree_unref(worktree);
		fixture_close(&fixture);
	}
	print_message("%lu operations\n", applied);
	munmap((void *)acked, sizeof(*acked));
	fixture_remove(&fixture);
	free_model(model);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(random_operations_match_the_model),
	        cmocka_unit_test(killing_loses_nothing_that_returned),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
