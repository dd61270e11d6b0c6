/*
 * Hides which small files are made local before they are opened.
 *
 * Whoever opens files of a directory in the order of their names, the order of a listing, goes on
 * with it. A *walk* is such a reader: the last name it opened, and how far files were asked for
 * ahead of it. It begins with files that had to be fetched; the second one in a row (or the
 * directory's first) counts. A thread then makes what comes next local, one after the other, by the
 * same windows of packs as the reader's own (store/pack_window.h), so no byte is fetched twice;
 * more is asked for when half was opened.
 *
 * Credit, in bytes, bounds what may be made local in vain: it is spent on each file and earned
 * twofold by each that is opened after that. So readers in no order cost CREDIT_FIRST, and whoever
 * opens two files in a row and no more CREDIT_LEAST.
 */
#include <stdatomic.h>

#include "cache/cache.h"
#include "fs/mount/vfs_internal.h"
#include "store/thread.h"

#define WALKS 16
#define FILE_BYTES_AHEAD ((uint64_t)128 << 10) /* larger ones are worth a request of their own */
#define FILES_MAX 256                          /* asked for at once */
#define NAMES_MAX (2 * FILES_MAX)              /* looked at, of which some are no such files */
#define NEAR_NAMES 4                           /* so far from the last one a name is the next */
#define CREDIT_FIRST ((uint64_t)256 << 10)
#define CREDIT_LEAST ((uint64_t)64 << 10) /* for who goes on, whatever others cost */
#define CREDIT_MAX ((uint64_t)4 << 20)

struct walk {
	uint64_t directory; /* a node's id; 0: unused */
	uint64_t used;
	bool asked;                      /* in the queue */
	bool whole;                      /* asked for up to the directory's end */
	char before[NAME_BYTES_MAX + 1]; /* opened before `last`; "": none */
	char last[NAME_BYTES_MAX + 1];
	char half[NAME_BYTES_MAX + 1]; /* of what was asked for, and ... */
	char end[NAME_BYTES_MAX + 1];  /* ... its last; "": nothing was */
};
struct ahead {
	struct vfs *vfs;
	atomic_bool walking;  /* there is a walk */
	pthread_mutex_t lock; /* guards all below; a leaf */
	pthread_cond_t work;
	struct walk walks[WALKS];
	uint64_t clock, credit;
	bool started;
	atomic_bool ending;
	pthread_t thread;
};

/* -- what comes next -- */

struct coming {
	const char *near; /* this name must come early; "": whatever comes */
	size_t names, count;
	uint64_t bytes, credit;
	bool found, full;
	char half[NAME_BYTES_MAX + 1], end[NAME_BYTES_MAX + 1];
	struct content contents[FILES_MAX];
};

static bool is_wanted(const struct content *content)
{
	return content->kind == CONTENT_CHUNK && content->size <= FILE_BYTES_AHEAD;
}

static void set_name(char *ret_name, const char *name, size_t length)
{
	memcpy(ret_name, name, length);
	ret_name[length] = '\0';
}

/* list_fn. What lies between the anchor and the name opened is skipped: it is not wanted. */
static int look_at(void *context, const char *name, size_t length, const struct found *found)
{
	struct coming *coming = context;
	if (!coming->found) {
		coming->found =
		        strlen(coming->near) == length && memcmp(name, coming->near, length) == 0;
		if (coming->found && coming->credit < CREDIT_LEAST)
			coming->credit = CREDIT_LEAST;
		return !coming->found && ++coming->names == NEAR_NAMES;
	}
	const struct content *content = found->entry ? &found->entry->content : NULL;
	bool wanted = content && S_ISREG(found->mode) && is_wanted(content);
	coming->full = coming->count == FILES_MAX || coming->names == NAMES_MAX ||
	               (wanted && coming->bytes + content->size > coming->credit);
	if (coming->full)
		return 1;
	coming->names++;
	set_name(coming->end, name, length);
	if (!wanted)
		return 0;
	coming->contents[coming->count++] = *content;
	coming->bytes += content->size;
	if (coming->bytes <= coming->credit / 2 && coming->count <= FILES_MAX / 2)
		set_name(coming->half, name, length);
	return 0;
}

/* -- the thread -- */

/* Locked. */
static struct walk *next_asked(struct ahead *ahead)
{
	struct walk *next = NULL;
	for (size_t i = 0; i < WALKS; i++)
		if (ahead->walks[i].asked && (!next || ahead->walks[i].used > next->used))
			next = &ahead->walks[i];
	return next;
}

/* Locked. What was found is asked for from now on. */
static void note_coming(struct ahead *ahead, struct walk *walk, const struct coming *coming)
{
	if (!coming->found)
		return;
	ahead->credit -= coming->bytes < ahead->credit ? coming->bytes : ahead->credit;
	walk->whole = !coming->full;
	if (coming->end[0]) {
		memcpy(walk->half, coming->half, sizeof(walk->half));
		memcpy(walk->end, coming->end, sizeof(walk->end));
	}
}

/* Locked before and after. */
static void go_ahead(struct ahead *ahead, struct walk *walk, struct coming *coming)
{
	struct vfs *vfs = ahead->vfs;
	struct node *node;
	uint64_t directory = walk->directory;
	char after[NAME_BYTES_MAX + 1], near[NAME_BYTES_MAX + 1];
	bool on = walk->end[0] && strcmp(walk->last, walk->end) <= 0;
	memcpy(after, on ? walk->end : walk->before, sizeof(after));
	memcpy(near, walk->last, sizeof(near));
	walk->asked = false;
	*coming = (struct coming){.near = near, .found = on, .credit = ahead->credit};
	pthread_mutex_unlock(&ahead->lock);

	/* Whoever opens them will see what is wrong with them. */
	bool listed = false;
	if (node_get(vfs, directory, &node) >= 0) {
		listed = directory_peek(vfs, node, after, look_at, coming) >= 0;
		node_put(vfs, node);
	}
	pthread_mutex_lock(&ahead->lock);
	if (listed && walk->directory == directory)
		note_coming(ahead, walk, coming);
	pthread_mutex_unlock(&ahead->lock);
	if (listed && coming->found)
		cache_fetch_ahead(vfs->lake->cache, coming->contents, coming->count,
		                  &ahead->ending);
	pthread_mutex_lock(&ahead->lock);
}

static void *work(void *context)
{
	struct ahead *ahead = context;
	struct coming *coming = malloc(sizeof(*coming));
	pthread_mutex_lock(&ahead->lock);
	while (coming && !ahead->ending) {
		struct walk *walk = next_asked(ahead);
		if (walk)
			go_ahead(ahead, walk, coming);
		else
			pthread_cond_wait(&ahead->work, &ahead->lock);
	}
	pthread_mutex_unlock(&ahead->lock);
	free(coming);
	return NULL;
}

/* -- walks -- */

/* Locked. NULL: there is none, and `begin` is false. */
static struct walk *walk_in(struct ahead *ahead, uint64_t directory, bool begin)
{
	struct walk *oldest = &ahead->walks[0];
	for (size_t i = 0; i < WALKS; i++) {
		struct walk *walk = &ahead->walks[i];
		if (walk->directory == directory)
			return walk;
		if (walk->used < oldest->used)
			oldest = walk;
	}
	if (!begin)
		return NULL;
	*oldest = (struct walk){.directory = directory};
	ahead->walking = true;
	return oldest;
}

/* Locked. Without a thread nothing is made local ahead. */
static void ask(struct ahead *ahead, struct walk *walk)
{
	walk->asked = true;
	if (!ahead->started)
		ahead->started = thread_start(&ahead->thread, work, ahead) == 0;
	pthread_cond_signal(&ahead->work);
}

/* Locked. */
static void step(struct ahead *ahead, struct walk *walk, const char *name, uint64_t size,
                 bool fetched)
{
	bool expected = walk->end[0] && strcmp(name, walk->end) <= 0;
	if (strcmp(name, walk->last) <= 0) {
		if (fetched && !expected) { /* from here on, perhaps */
			*walk = (struct walk){.directory = walk->directory};
			set_name(walk->last, name, strlen(name));
		}
		return;
	}
	memcpy(walk->before, walk->last, sizeof(walk->before));
	set_name(walk->last, name, strlen(name));
	if (expected)
		ahead->credit += 2 * size;
	if (ahead->credit > CREDIT_MAX)
		ahead->credit = CREDIT_MAX;
	bool due = expected ? !walk->whole && strcmp(name, walk->half) >= 0 : fetched;
	if (due && !walk->asked)
		ask(ahead, walk);
}

void ahead_opened(struct vfs *vfs, struct node *node, const struct content *content, bool fetched)
{
	struct ahead *ahead = vfs->ahead;
	char name[NAME_BYTES_MAX + 1];
	if (!ahead || !is_wanted(content) || (!fetched && !ahead->walking))
		return;
	nodes_lock(vfs->nodes);
	bool named = node->parent && node->name && !(node->flags & (NODE_DETACHED | NODE_NAMELESS));
	uint64_t directory = named ? node->parent->id : 0;
	if (named)
		set_name(name, node->name, strlen(node->name));
	nodes_unlock(vfs->nodes);
	if (!named)
		return;
	pthread_mutex_lock(&ahead->lock);
	struct walk *walk = walk_in(ahead, directory, fetched);
	if (walk) {
		walk->used = ++ahead->clock;
		step(ahead, walk, name, content->size, fetched);
	}
	pthread_mutex_unlock(&ahead->lock);
}

int ahead_new(struct vfs *vfs, struct ahead **ret_ahead)
{
	struct ahead *ahead = calloc(1, sizeof(*ahead));
	if (!ahead)
		return -ERR_NO_MEMORY;
	ahead->vfs = vfs;
	ahead->credit = CREDIT_FIRST;
	pthread_mutex_init(&ahead->lock, NULL);
	pthread_cond_init(&ahead->work, NULL);
	*ret_ahead = ahead;
	return 0;
}

void ahead_free(struct ahead *ahead)
{
	if (!ahead)
		return;
	pthread_mutex_lock(&ahead->lock);
	ahead->ending = true;
	pthread_cond_signal(&ahead->work);
	bool started = ahead->started;
	pthread_mutex_unlock(&ahead->lock);
	if (started)
		pthread_join(ahead->thread, NULL);
	pthread_cond_destroy(&ahead->work);
	pthread_mutex_destroy(&ahead->lock);
	free(ahead);
}
