/*
 * secret — hides where secrets lie: in mappings of their own, a page or more each.
 */
#include "store/secret.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define IDLE_MAX 32 /* each request takes one */
#define PAGE_BYTES ((size_t)4096)

struct block {
	size_t size; /* of the mapping */
	struct block *next;
	uint8_t bytes[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the rest */
static struct block *idle;                               /* of one page each, wiped */
static unsigned idle_count;

static struct block *take_idle(void)
{
	pthread_mutex_lock(&lock);
	struct block *block = idle;
	if (block != NULL) {
		idle = block->next;
		idle_count--;
	}
	pthread_mutex_unlock(&lock);
	return block;
}

static bool keep_idle(struct block *block)
{
	pthread_mutex_lock(&lock);
	bool kept = idle_count < IDLE_MAX;
	if (kept) {
		block->next = idle;
		idle = block;
		idle_count++;
	}
	pthread_mutex_unlock(&lock);
	return kept;
}

void *secret_new(size_t size)
{
	if (size > BUFFER_LIMIT_DEFAULT)
		return NULL;
	size_t whole = (sizeof(struct block) + size + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	struct block *block = whole == PAGE_BYTES ? take_idle() : NULL;
	if (block != NULL)
		return block->bytes;
	block = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (block == MAP_FAILED)
		return NULL;
	(void)madvise(block, whole, MADV_DONTDUMP); /* where a kernel cannot, the guard is left */
	block->size = whole;
	return block->bytes;
}

void secret_free(void *secret)
{
	if (secret == NULL)
		return;
	struct block *block =
	        (struct block *)(void *)((uint8_t *)secret - offsetof(struct block, bytes));
	size_t size = block->size;
	explicit_bzero(secret, size - sizeof(*block));
	if (size != PAGE_BYTES || !keep_idle(block))
		munmap(block, size);
}

void buffer_release_secret(struct buffer *buffer)
{
	if (buffer->data != NULL)
		explicit_bzero(buffer->data, buffer->capacity);
	buffer_release(buffer);
}

void secrets_guard(void)
{
	const char *allowed = getenv("LAKE_ALLOW_CORE");
	if (allowed == NULL || allowed[0] == '\0')
		(void)prctl(PR_SET_DUMPABLE, 0);
}

/* "NAME=value", or NULL. */
static char **entry_of(const char *name)
{
	size_t length = strlen(name);
	for (char **entry = environ; entry != NULL && *entry != NULL; entry++)
		if (strncmp(*entry, name, length) == 0 && (*entry)[length] == '=')
			return entry;
	return NULL;
}

void secrets_adopt_environment(void)
{
	static const char *const names[] = {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
	                                    "AWS_CONTAINER_AUTHORIZATION_TOKEN"};
	bool any = false;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char **entry = entry_of(names[i]);
		if (entry == NULL)
			continue;
		any = true;
		size_t length = strlen(*entry);
		char *moved = secret_new(length + 1); /* for as long as the process lives */
		if (moved == NULL)
			continue;
		memcpy(moved, *entry, length);
		explicit_bzero(*entry, length);
		*entry = moved;
	}
	if (any)
		secrets_guard();
}
