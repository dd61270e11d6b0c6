/* open_files — see the header. Hides the eviction order and when a descriptor is really closed:
 * with its last user, once it is in no slot. */
#include "store/open_files.h"

#include <unistd.h>

struct slot {
	struct open_file file; /* first: callers hold a pointer to it */
	char *key;
	unsigned users;
	bool dropped; /* in no slot */
	uint64_t last_use;
};

static void slot_free(struct slot *slot)
{
	close(slot->file.fd);
	free(slot->key);
	free(slot);
}

/* With the lock held. */
static void drop(struct open_files *files, size_t index)
{
	struct slot *slot = files->slots[index];
	files->slots[index] = NULL;
	slot->dropped = true;
	if (slot->users == 0)
		slot_free(slot);
}

void open_files_init(struct open_files *files)
{
	*files = (struct open_files){.clock = 0};
	pthread_mutex_init(&files->lock, NULL);
}

void open_files_release(struct open_files *files)
{
	for (size_t i = 0; i < OPEN_FILES_MAX; i++)
		if (files->slots[i] != NULL)
			drop(files, i);
	pthread_mutex_destroy(&files->lock);
}

/* With the lock held. OPEN_FILES_MAX: not there. */
static size_t index_of(const struct open_files *files, const char *key)
{
	size_t i = 0;
	while (i < OPEN_FILES_MAX &&
	       (files->slots[i] == NULL || strcmp(files->slots[i]->key, key) != 0))
		i++;
	return i;
}

struct open_file *open_files_find(struct open_files *files, const char *key, uint64_t *ret_moment)
{
	struct slot *found = NULL;
	pthread_mutex_lock(&files->lock);
	size_t index = index_of(files, key);
	if (index < OPEN_FILES_MAX) {
		found = files->slots[index];
		found->users++;
		found->last_use = ++files->clock;
	}
	*ret_moment = files->forgotten;
	pthread_mutex_unlock(&files->lock);
	return found != NULL ? &found->file : NULL;
}

/* With the lock held: a free index; the least recently used file makes way. */
static size_t make_room(struct open_files *files)
{
	size_t oldest = 0;
	for (size_t i = 0; i < OPEN_FILES_MAX; i++) {
		if (files->slots[i] == NULL)
			return i;
		if (files->slots[i]->last_use < files->slots[oldest]->last_use)
			oldest = i;
	}
	drop(files, oldest);
	return oldest;
}

struct open_file *open_files_keep(struct open_files *files, const char *key, int *fd, uint64_t size,
                                  uint64_t moment)
{
	struct slot *slot = calloc(1, sizeof(*slot));
	char *copy = strdup(key);
	if (slot == NULL || copy == NULL) {
		free(slot);
		free(copy);
		return NULL;
	}
	*slot = (struct slot){.file = {.fd = *fd, .size = size}, .key = copy, .users = 1};
	*fd = -1;
	pthread_mutex_lock(&files->lock);
	/* Two may have opened it at once: the second serves its own caller only. */
	if (files->forgotten == moment && index_of(files, key) == OPEN_FILES_MAX) {
		slot->last_use = ++files->clock;
		files->slots[make_room(files)] = slot;
	} else {
		slot->dropped = true;
	}
	pthread_mutex_unlock(&files->lock);
	return &slot->file;
}

void open_files_done(struct open_files *files, struct open_file *file)
{
	struct slot *slot = (struct slot *)file;
	pthread_mutex_lock(&files->lock);
	slot->users--;
	if (slot->dropped && slot->users == 0)
		slot_free(slot);
	pthread_mutex_unlock(&files->lock);
}

void open_files_forget(struct open_files *files, const char *key)
{
	pthread_mutex_lock(&files->lock);
	files->forgotten++;
	size_t index = index_of(files, key);
	if (index < OPEN_FILES_MAX)
		drop(files, index);
	pthread_mutex_unlock(&files->lock);
}
