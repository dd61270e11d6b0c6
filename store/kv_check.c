/*
 * kv_check — verifies an LMDB file before LMDB may trust it. Hides LMDB's on-disk layout.
 *
 * Checked: both metas; every page reached from the newest: number, flags, bounds, that its nodes
 * tile the space they claim, key sizes and order (also against the separators above), depth, that
 * no page is reached twice; runs of overflow pages; the counts of each table; and that the free
 * list names each page at most once and none that is in use (LMDB would overwrite live data).
 */
#include "store/kv_check.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(sizeof(size_t) == 8, "LMDB's layout on 64-bit machines");

#define META_COUNT 2
#define META_MAGIC 0xBEEFC0DEu
#define META_VERSION 1
#define PAGE_BYTES_MIN 4096 /* smaller ones hold no two of our keys */
#define PAGE_BYTES_MAX 32768
#define PAGE_HEADER 16
#define NODE_HEADER 8
#define KEY_BYTES_MAX 511
#define DEPTH_MAX 24 /* LMDB's cursors hold 32; 2^64 keys need fewer than 24 levels */
#define PAGE_NONE UINT64_MAX
#define TXN_MAX ((uint64_t)1 << 62)

enum { PAGE_BRANCH = 1, PAGE_LEAF = 2, PAGE_OVERFLOW = 4, PAGE_META = 8 };
enum { NODE_BIG = 1, NODE_TABLE = 2 };
#define FREE_FLAGS 0x08u           /* MDB_INTEGERKEY */
#define FREE_FLAGS_IGNORED 0x4000u /* MDB_NOSUBDIR: how the file was named when it was made */

struct table_record { /* struct MDB_db */
	uint32_t pad; /* in the first of a meta: the page size */
	uint16_t flags;
	uint16_t depth;
	uint64_t branch_pages;
	uint64_t leaf_pages;
	uint64_t overflow_pages;
	uint64_t entries;
	uint64_t root;
};
_Static_assert(sizeof(struct table_record) == 48, "struct MDB_db");

struct meta { /* struct MDB_meta */
	uint32_t magic;
	uint32_t version;
	uint64_t address;
	uint64_t map_bytes;
	struct table_record free;
	struct table_record main;
	uint64_t last_page;
	uint64_t txn;
};
_Static_assert(sizeof(struct meta) == 136, "struct MDB_meta");

struct page { /* struct MDB_page's header */
	uint64_t number;
	uint16_t pad;
	uint16_t flags;
	union {
		struct {
			uint16_t lower;
			uint16_t upper;
		};
		uint32_t run; /* overflow: pages of the run, this one counted */
	};
};
_Static_assert(sizeof(struct page) == PAGE_HEADER, "struct MDB_page");

struct node {
	const uint8_t *key;
	size_t key_length;
	unsigned flags;      /* leaf */
	uint64_t child;      /* branch: a page; leaf with NODE_BIG: its first overflow page */
	const uint8_t *data; /* leaf without NODE_BIG */
	size_t data_length;
	size_t bytes; /* of the node in its page, padding included */
};

enum table_kind { TABLE_FREE, TABLE_MAIN, TABLE_NAMED };

struct walk {
	const uint8_t *map;
	uint64_t file_bytes;
	uint64_t page_bytes;
	uint64_t file_pages;
	uint64_t page_count; /* pages LMDB believes in: numbers below this */
	uint64_t txn;
	uint8_t *seen; /* one bit per page: in use, or free */
	uint64_t reached;
	struct message *message;
};

/* One table while it is walked. */
struct table {
	enum table_kind kind;
	const struct table_record *record;
	struct table_record counted;
};

/* Half-open range of keys a subtree may hold; a NULL bound is none. */
struct bounds {
	const uint8_t *low;
	size_t low_length;
	const uint8_t *high;
	size_t high_length;
};

static int corrupt(struct walk *walk, uint64_t page, const char *what)
{
	return fail(walk->message, -ERR_CORRUPT, "page %llu: %s", (unsigned long long)page, what);
}

static uint16_t load_native_u16(const uint8_t *at)
{
	uint16_t value;
	memcpy(&value, at, sizeof(value));
	return value;
}

static uint64_t load_native_u64(const uint8_t *at)
{
	uint64_t value;
	memcpy(&value, at, sizeof(value));
	return value;
}

/* Claim `count` pages from `first` on; false when one is out of range or claimed already. */
static bool claim(struct walk *walk, uint64_t first, uint64_t count)
{
	if (first < META_COUNT || first >= walk->page_count || count > walk->page_count - first)
		return false;
	for (uint64_t page = first; page < first + count; page++) {
		uint8_t bit = (uint8_t)(1u << (page % 8));
		if (walk->seen[page / 8] & bit)
			return false;
		walk->seen[page / 8] |= bit;
	}
	return true;
}

static int compare_keys(enum table_kind kind, const uint8_t *a, size_t a_length, const uint8_t *b,
                        size_t b_length)
{
	if (kind == TABLE_FREE) {
		uint64_t x = load_native_u64(a), y = load_native_u64(b);
		return x < y ? -1 : x > y;
	}
	int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
	if (order != 0)
		return order;
	return a_length < b_length ? -1 : a_length > b_length;
}

/* -- one page -- */

static int map_page(struct walk *walk, uint64_t number, const uint8_t **ret_at,
                    struct page *ret_page)
{
	if (number >= walk->file_pages)
		return corrupt(walk, number, "lies beyond the end of the file");
	const uint8_t *at = walk->map + number * walk->page_bytes;
	memcpy(ret_page, at, PAGE_HEADER);
	if (ret_page->number != number)
		return corrupt(walk, number, "carries another page's number");
	*ret_at = at;
	return 0;
}

/* Read node `index` of a page whose lower and upper bounds are right already. */
static int read_node(struct walk *walk, uint64_t number, const uint8_t *at, const struct page *page,
                     size_t index, struct node *ret_node)
{
	size_t offset = load_native_u16(at + PAGE_HEADER + 2 * index);
	if (offset < page->upper || offset % 2 != 0 || offset + NODE_HEADER > walk->page_bytes)
		return corrupt(walk, number, "a node lies outside its page");
	const uint8_t *from = at + offset;
	size_t room = walk->page_bytes - offset - NODE_HEADER;
	uint64_t low = load_native_u16(from), high = load_native_u16(from + 2);
	uint64_t flags = load_native_u16(from + 4);
	struct node node = {.key = from + NODE_HEADER, .key_length = load_native_u16(from + 6)};
	if (node.key_length > room || node.key_length > KEY_BYTES_MAX)
		return corrupt(walk, number, "a key is too long");
	size_t payload = node.key_length;
	if (page->flags == PAGE_BRANCH) {
		node.child = low | high << 16 | flags << 32;
	} else {
		node.flags = (unsigned)flags;
		node.data = node.key + node.key_length;
		node.data_length = (size_t)(low | high << 16);
		size_t inside = flags & NODE_BIG ? sizeof(uint64_t) : node.data_length;
		if (inside > room - node.key_length)
			return corrupt(walk, number, "a value reaches over the page's end");
		if (flags & NODE_BIG)
			node.child = load_native_u64(node.data);
		payload += inside;
	}
	node.bytes = (NODE_HEADER + payload + 1) & ~(size_t)1;
	/* LMDB splits a full page into two on the promise that two nodes always fit one (its
	 * me_nodemax); larger values go to overflow pages. */
	if (NODE_HEADER + payload > (((walk->page_bytes - PAGE_HEADER) / 2) & ~(size_t)1) - 2)
		return corrupt(walk, number, "a node is larger than half a page");
	*ret_node = node;
	return 0;
}

/* The nodes must tile [upper, end of page) exactly: LMDB moves them about on that promise. */
struct tiling {
	uint64_t used[PAGE_BYTES_MAX / 2 / 64]; /* a bit per two bytes */
	size_t bytes;
};

static bool tile(struct tiling *tiling, size_t offset, size_t bytes)
{
	for (size_t unit = offset / 2; unit < (offset + bytes) / 2; unit++) {
		uint64_t bit = (uint64_t)1 << (unit % 64);
		if (tiling->used[unit / 64] & bit)
			return false;
		tiling->used[unit / 64] |= bit;
	}
	tiling->bytes += bytes;
	return true;
}

static int check_order(struct walk *walk, uint64_t number, const struct table *table,
                       const struct node *node, const struct node *before,
                       const struct bounds *bounds)
{
	enum table_kind kind = table->kind;
	if (kind == TABLE_FREE ? node->key_length != sizeof(uint64_t) : node->key_length == 0)
		return corrupt(walk, number, "a key has an impossible length");
	if (before != NULL &&
	    compare_keys(kind, before->key, before->key_length, node->key, node->key_length) >= 0)
		return corrupt(walk, number, "keys are out of order");
	if (bounds->low != NULL &&
	    compare_keys(kind, node->key, node->key_length, bounds->low, bounds->low_length) < 0)
		return corrupt(walk, number, "a key is lower than its page may hold");
	if (bounds->high != NULL &&
	    compare_keys(kind, node->key, node->key_length, bounds->high, bounds->high_length) >= 0)
		return corrupt(walk, number, "a key is higher than its page may hold");
	return 0;
}

/* Bounds, tiling and key order. The first key of a branch is not looked at by anyone. */
static int check_nodes(struct walk *walk, uint64_t number, const uint8_t *at,
                       const struct page *page, const struct table *table,
                       const struct bounds *bounds)
{
	size_t end = walk->page_bytes;
	bool branch = page->flags == PAGE_BRANCH;
	if (page->lower < PAGE_HEADER || page->lower % 2 != 0 || page->upper % 2 != 0 ||
	    page->lower > page->upper || page->upper > end)
		return corrupt(walk, number, "impossible bounds");
	size_t count = (page->lower - PAGE_HEADER) / 2u;
	if (count < (branch ? 2 : 1))
		return corrupt(walk, number, "too few nodes");
	struct tiling tiling;
	tiling.bytes = 0;
	memset(tiling.used, 0, end / 2 / 8);
	struct node before = {0}, node;
	for (size_t i = 0; i < count; i++) {
		int r = read_node(walk, number, at, page, i, &node);
		if (r < 0)
			return r;
		if (!tile(&tiling, (size_t)(node.key - NODE_HEADER - at), node.bytes))
			return corrupt(walk, number, "nodes overlap");
		size_t first = branch ? 1 : 0;
		if (i >= first) {
			r = check_order(walk, number, table, &node, i > first ? &before : NULL,
			                bounds);
			if (r < 0)
				return r;
		}
		before = node;
	}
	if (tiling.bytes != end - page->upper)
		return corrupt(walk, number, "nodes leave gaps");
	return 0;
}

/* -- values -- */

static int check_free_list(struct walk *walk, uint64_t number, const struct node *node,
                           const uint8_t *list, size_t bytes)
{
	uint64_t txn = load_native_u64(node->key);
	if (txn == 0 || txn > walk->txn)
		return corrupt(walk, number, "the free list speaks of a future transaction");
	if (bytes < sizeof(uint64_t))
		return corrupt(walk, number, "a free list is too short");
	uint64_t count = load_native_u64(list);
	if (count > bytes / sizeof(uint64_t) - 1)
		return corrupt(walk, number, "a free list is longer than its value");
	uint64_t above = PAGE_NONE; /* descending */
	for (uint64_t i = 1; i <= count; i++) {
		uint64_t page = load_native_u64(list + i * sizeof(uint64_t));
		if (page >= above || !claim(walk, page, 1))
			return corrupt(walk, number, "the free list names a page that is not free");
		above = page;
	}
	return 0;
}

/* Claims the overflow run and yields where the value's bytes are. */
static int check_overflow(struct walk *walk, uint64_t number, struct table *table,
                          const struct node *node, const uint8_t **ret_data)
{
	const uint8_t *at;
	struct page page;
	if (node->child < META_COUNT)
		return corrupt(walk, number, "a large value lies in a meta page");
	int r = map_page(walk, node->child, &at, &page);
	if (r < 0)
		return r;
	uint64_t need = (PAGE_HEADER - 1 + node->data_length) / walk->page_bytes + 1;
	if (page.flags != PAGE_OVERFLOW || page.run < need)
		return corrupt(walk, node->child, "is not the large value it should be");
	if (page.run > walk->file_pages - node->child || !claim(walk, node->child, page.run))
		return corrupt(walk, node->child, "a large value reaches into what is not its own");
	table->counted.overflow_pages += page.run;
	walk->reached += page.run;
	*ret_data = at + PAGE_HEADER;
	return 0;
}

static int walk_table(struct walk *walk, enum table_kind kind, const struct table_record *record);

static int check_value(struct walk *walk, uint64_t number, struct table *table, struct node *node)
{
	unsigned allowed = table->kind == TABLE_MAIN ? NODE_TABLE : NODE_BIG;
	if ((node->flags & ~allowed) != 0 ||
	    (table->kind == TABLE_MAIN && node->flags != NODE_TABLE))
		return corrupt(walk, number, "a value of an unknown kind");
	if (node->flags & NODE_BIG) {
		int r = check_overflow(walk, number, table, node, &node->data);
		if (r < 0)
			return r;
	}
	if (table->kind == TABLE_FREE)
		return check_free_list(walk, number, node, node->data, node->data_length);
	if (table->kind == TABLE_NAMED)
		return 0;
	struct table_record record;
	if (node->data_length != sizeof(record))
		return corrupt(walk, number, "a table's record has a wrong size");
	memcpy(&record, node->data, sizeof(record));
	return walk_table(walk, TABLE_NAMED, &record);
}

/* -- trees -- */

static int walk_page(struct walk *walk, struct table *table, uint64_t number, unsigned level,
                     const struct bounds *bounds);

static int walk_children(struct walk *walk, struct table *table, uint64_t number, const uint8_t *at,
                         const struct page *page, unsigned level, const struct bounds *bounds)
{
	size_t count = (page->lower - PAGE_HEADER) / 2u;
	struct node node, next = {0};
	int r = read_node(walk, number, at, page, 0, &node);
	for (size_t i = 0; r == 0 && i < count; i++) {
		struct bounds inner = *bounds;
		if (i > 0) {
			inner.low = node.key;
			inner.low_length = node.key_length;
		}
		if (i + 1 < count) {
			r = read_node(walk, number, at, page, i + 1, &next);
			if (r < 0)
				return r;
			inner.high = next.key;
			inner.high_length = next.key_length;
		}
		r = walk_page(walk, table, node.child, level + 1, &inner);
		node = next;
	}
	return r;
}

static int walk_page(struct walk *walk, struct table *table, uint64_t number, unsigned level,
                     const struct bounds *bounds)
{
	const uint8_t *at;
	struct page page;
	bool leaf = level == table->record->depth;
	if (!claim(walk, number, 1))
		return corrupt(walk, number, "is out of range or used twice");
	walk->reached++;
	int r = map_page(walk, number, &at, &page);
	if (r < 0)
		return r;
	if (page.flags != (leaf ? PAGE_LEAF : PAGE_BRANCH))
		return corrupt(walk, number, "is not of the kind its place in the tree asks for");
	r = check_nodes(walk, number, at, &page, table, bounds);
	if (r < 0)
		return r;
	if (!leaf) {
		table->counted.branch_pages++;
		return walk_children(walk, table, number, at, &page, level, bounds);
	}
	size_t count = (page.lower - PAGE_HEADER) / 2u;
	table->counted.leaf_pages++;
	table->counted.entries += count;
	for (size_t i = 0; r == 0 && i < count; i++) {
		struct node node;
		r = read_node(walk, number, at, &page, i, &node);
		if (r == 0)
			r = check_value(walk, number, table, &node);
	}
	return r;
}

static int walk_table(struct walk *walk, enum table_kind kind, const struct table_record *record)
{
	unsigned flags = kind == TABLE_FREE ? record->flags & ~FREE_FLAGS_IGNORED : record->flags;
	if (flags != (kind == TABLE_FREE ? FREE_FLAGS : 0))
		return corrupt(walk, 0, "a table of an unknown kind");
	struct table table = {.kind = kind, .record = record};
	if (record->root == PAGE_NONE) {
		if (record->depth != 0)
			return corrupt(walk, 0, "an empty table with levels");
	} else {
		if (record->depth == 0 || record->depth > DEPTH_MAX)
			return corrupt(walk, record->root, "a tree of impossible depth");
		struct bounds everything = {0};
		int r = walk_page(walk, &table, record->root, 1, &everything);
		if (r < 0)
			return r;
	}
	if (table.counted.branch_pages != record->branch_pages ||
	    table.counted.leaf_pages != record->leaf_pages ||
	    table.counted.overflow_pages != record->overflow_pages ||
	    table.counted.entries != record->entries)
		return corrupt(walk, record->root, "a table's counts do not fit its pages");
	return 0;
}

/* -- the file -- */

static int read_meta(struct walk *walk, unsigned index, struct meta *ret_meta)
{
	struct page page;
	uint64_t offset = index * walk->page_bytes;
	if (walk->file_bytes < offset + PAGE_HEADER + sizeof(*ret_meta))
		return corrupt(walk, index, "the file is too short for an environment");
	memcpy(&page, walk->map + offset, PAGE_HEADER);
	memcpy(ret_meta, walk->map + offset + PAGE_HEADER, sizeof(*ret_meta));
	if (page.flags != PAGE_META || ret_meta->magic != META_MAGIC)
		return corrupt(walk, index, "is not a meta page");
	if (ret_meta->version != META_VERSION)
		return fail(walk->message, -ERR_VERSION, "LMDB data format %u, known is %u",
		            ret_meta->version, META_VERSION);
	return 0;
}

/* Both metas must be sound; the newest is where LMDB will look for it: at its number's parity. */
static int pick_meta(struct walk *walk, struct meta *ret_meta)
{
	struct meta metas[META_COUNT];
	int r = read_meta(walk, 0, &metas[0]);
	if (r < 0)
		return r;
	walk->page_bytes = metas[0].free.pad;
	if (walk->page_bytes < PAGE_BYTES_MIN || walk->page_bytes > PAGE_BYTES_MAX ||
	    (walk->page_bytes & (walk->page_bytes - 1)) != 0)
		return corrupt(walk, 0, "impossible page size");
	r = read_meta(walk, 1, &metas[1]);
	if (r < 0)
		return r;
	if (metas[1].free.pad != walk->page_bytes)
		return corrupt(walk, 1, "the meta pages disagree on the page size");
	unsigned newest = metas[1].txn > metas[0].txn;
	if (metas[newest].txn > TXN_MAX || (metas[newest].txn & 1) != newest ||
	    (metas[newest].txn != 0 && metas[0].txn == metas[1].txn))
		return corrupt(walk, newest, "impossible transaction number");
	/* Transactions take turns. Were the newest's number damaged, the one before would pass for
	 * the newest, and what was committed since would be lost without a word. */
	if (metas[newest].txn - metas[!newest].txn > 1)
		return corrupt(walk, newest,
		               "the meta pages' transactions do not follow each other");
	*ret_meta = metas[newest];
	return 0;
}

static int walk_file(struct walk *walk, struct kv_check *ret_check)
{
	struct meta meta;
	int r = pick_meta(walk, &meta);
	if (r < 0)
		return r;
	walk->txn = meta.txn;
	walk->file_pages = walk->file_bytes / walk->page_bytes;
	/* Pages at the end may be free and never written, but then a list in the file names each of
	 * them: so this bounds what a lie about the last page can make us allocate. */
	if (walk->file_pages < META_COUNT || meta.last_page < META_COUNT - 1 ||
	    meta.last_page / (walk->page_bytes / sizeof(uint64_t)) > walk->file_pages)
		return corrupt(walk, 0, "the last page lies far beyond the end of the file");
	walk->page_count = meta.last_page + 1;
	walk->reached = META_COUNT;
	walk->seen = calloc(walk->page_count / 8 + 1, 1);
	if (walk->seen == NULL)
		return -ERR_NO_MEMORY;
	r = walk_table(walk, TABLE_MAIN, &meta.main);
	if (r == 0)
		r = walk_table(walk, TABLE_FREE, &meta.free);
	free(walk->seen);
	ret_check->used_bytes = walk->page_count * walk->page_bytes;
	ret_check->pages = walk->reached;
	return r;
}

int kv_check_file(const char *path, struct kv_check *ret_check, struct message *message)
{
	CLEANUP(close_descriptor) int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	struct stat status;
	if (fd < 0 || fstat(fd, &status) < 0) {
		int r = error_system(errno);
		return fail(message, r, "%s: %s", path, error_text(r));
	}
	if (!S_ISREG(status.st_mode))
		return fail(message, -ERR_CORRUPT, "%s: not a regular file", path);
	if (status.st_size == 0)
		return fail(message, -ERR_NOT_FOUND, "%s: empty", path);
	size_t bytes = (size_t)status.st_size;
	void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		int r = error_system(errno);
		return fail(message, r, "%s: cannot be mapped: %s", path, error_text(r));
	}
	/* `page_bytes` is not known before the first meta was read, which lies at 0 anyway. */
	struct walk walk = {.map = map, .file_bytes = bytes, .message = message};
	struct kv_check check = {0};
	int r = walk_file(&walk, &check);
	munmap(map, bytes);
	if (r < 0)
		return fail_context(message, r, "%s", path);
	*ret_check = check;
	return 0;
}
