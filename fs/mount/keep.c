/*
 * Hides how records share a growing memfd: chunks of 1 MiB, each of records of one size. Whole
 * address space is set aside at once, so records never move; the file grows chunk by chunk.
 */
#include "fs/mount/keep.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHUNK_BYTES ((size_t)1 << 20)
#define CHUNKS_MAX ((size_t)1 << 14)
#define ROOT_CHUNKS 1 /* the first holds the root and what size the others' records have */

/* With the word that says what it is. Most are nodes with short names. */
static const uint32_t sizes[] = {64,  96,   128,  160,  192,   256,    384,
                                 512, 1024, 2048, 8192, 32768, 131072, 262144};
#define SIZES ARRAY_SIZE(sizes)

struct record {
	_Atomic uint32_t kind;
	uint32_t size; /* index of `sizes` */
	uint8_t bytes[];
};
struct first_chunk {
	struct keep_root root;
	uint8_t size[CHUNKS_MAX];
};
_Static_assert(sizeof(struct first_chunk) <= CHUNK_BYTES, "the root fits");

struct free_list {
	struct record **items;
	size_t count, capacity;
};
struct keep {
	int fd;
	uint8_t *base;
	pid_t mapped_by;      /* the mapping is not inherited by fork */
	pthread_mutex_t lock; /* guards the rest; innermost */
	struct free_list free[SIZES];
};

static struct first_chunk *first(const struct keep *keep)
{
	return (struct first_chunk *)(void *)keep->base;
}

struct keep_root *keep_root(struct keep *keep)
{
	return &first(keep)->root;
}

int keep_create(int *ret_fd)
{
	int fd = memfd_create("lake", MFD_CLOEXEC);
	if (fd < 0)
		return error_system(errno);
	*ret_fd = fd;
	return 0;
}

static struct record *record_at(const struct keep *keep, size_t chunk, size_t index, uint32_t size)
{
	return (struct record *)(void *)(keep->base + chunk * CHUNK_BYTES + index * size);
}

static int free_push(struct keep *keep, struct record *record)
{
	struct free_list *list = &keep->free[record->size];
	if (list->count == list->capacity) {
		size_t capacity = list->capacity ? 2 * list->capacity : 256;
		struct record **items = reallocarray(list->items, capacity, sizeof(*items));
		if (!items)
			return -ERR_NO_MEMORY;
		list->items = items;
		list->capacity = capacity;
	}
	list->items[list->count++] = record;
	return 0;
}

/* All records of a chunk that are free, the first on top. */
static int chunk_free(struct keep *keep, size_t chunk)
{
	uint32_t index = first(keep)->size[chunk], size = sizes[index];
	for (size_t i = CHUNK_BYTES / size; i-- > 0;) {
		struct record *record = record_at(keep, chunk, i, size);
		record->size = index;
		if (record->kind == KEEP_FREE && free_push(keep, record) < 0)
			return -ERR_NO_MEMORY;
	}
	return 0;
}

static int grow(struct keep *keep, uint32_t index)
{
	struct keep_root *root = keep_root(keep);
	uint32_t chunk = root->chunks;
	if (chunk == CHUNKS_MAX || ftruncate(keep->fd, (off_t)((chunk + 1) * CHUNK_BYTES)) != 0)
		return -ERR_NO_MEMORY;
	first(keep)->size[chunk] = (uint8_t)index;
	root->chunks = chunk + 1;
	return chunk_free(keep, chunk);
}

int keep_open(int fd, struct keep **ret_keep)
{
	struct keep *keep = calloc(1, sizeof(*keep));
	if (!keep)
		return -ERR_NO_MEMORY;
	keep->fd = fd;
	pthread_mutex_init(&keep->lock, NULL);
	keep->base = mmap(NULL, CHUNKS_MAX * CHUNK_BYTES, PROT_READ | PROT_WRITE,
	                  MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (keep->base == MAP_FAILED) {
		int error = error_system(errno);
		keep->base = NULL;
		keep_close(keep);
		return error;
	}
	keep->mapped_by = getpid();
	madvise(keep->base, CHUNKS_MAX * CHUNK_BYTES, MADV_DONTDUMP);
	madvise(keep->base, CHUNKS_MAX * CHUNK_BYTES, MADV_DONTFORK);
	int result = 0;
	if (lseek(fd, 0, SEEK_END) == 0 && ftruncate(fd, (off_t)CHUNK_BYTES) != 0)
		result = error_system(errno);
	if (result == 0 && !keep_root(keep)->formatted) {
		keep_root(keep)->chunks = ROOT_CHUNKS;
		keep_root(keep)->formatted = true;
	}
	for (size_t i = ROOT_CHUNKS; result == 0 && i < keep_root(keep)->chunks; i++)
		result = chunk_free(keep, i);
	if (result < 0) {
		keep_close(keep);
		return result;
	}
	*ret_keep = keep;
	return 0;
}

void keep_close(struct keep *keep)
{
	if (!keep)
		return;
	for (size_t i = 0; i < SIZES; i++)
		free(keep->free[i].items);
	/* A forked child does not have it: what lies at that place is another's. */
	if (keep->base && keep->mapped_by == getpid())
		munmap(keep->base, CHUNKS_MAX * CHUNK_BYTES);
	pthread_mutex_destroy(&keep->lock);
	free(keep);
}

static struct record *record_of(const void *bytes)
{
	return (struct record *)((uintptr_t)bytes - offsetof(struct record, bytes));
}

void *keep_new(struct keep *keep, size_t size)
{
	uint32_t index = 0;
	while (index < SIZES && sizes[index] - sizeof(struct record) < size)
		index++;
	if (index == SIZES)
		return NULL;
	pthread_mutex_lock(&keep->lock);
	struct free_list *list = &keep->free[index];
	struct record *record = NULL;
	if (list->count > 0 || grow(keep, index) == 0)
		record = list->items[--list->count];
	pthread_mutex_unlock(&keep->lock);
	if (!record)
		return NULL;
	memset(record->bytes, 0, size);
	return record->bytes;
}

size_t keep_room(const struct keep *keep, const void *record)
{
	(void)keep;
	return sizes[record_of(record)->size] - sizeof(struct record);
}

void keep_publish(void *record, enum keep_kind kind)
{
	assert(kind != KEEP_FREE);
	atomic_store_explicit(&record_of(record)->kind, kind, memory_order_release);
}

void keep_drop(struct keep *keep, void *bytes)
{
	if (!bytes)
		return;
	struct record *record = record_of(bytes);
	atomic_store(&record->kind, KEEP_FREE);
	pthread_mutex_lock(&keep->lock);
	free_push(keep, record); /* without memory for the list it is free after the next start */
	pthread_mutex_unlock(&keep->lock);
}

uint64_t keep_place(const struct keep *keep, const void *record)
{
	return record ? (uint64_t)((const uint8_t *)record - keep->base) : 0;
}

int keep_each(struct keep *keep, keep_fn *callback, void *context)
{
	for (size_t chunk = ROOT_CHUNKS; chunk < keep_root(keep)->chunks; chunk++) {
		uint32_t size = sizes[first(keep)->size[chunk]];
		for (size_t i = 0; i < CHUNK_BYTES / size; i++) {
			struct record *record = record_at(keep, chunk, i, size);
			uint32_t kind = record->kind;
			int result = kind ? callback(context, kind, record->bytes) : 0;
			if (result != 0)
				return result;
		}
	}
	return 0;
}
