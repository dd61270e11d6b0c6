/*
 * Hides when the kernel is told to forget something. It takes the directory's lock for that, which
 * may be held by a request that waits for us: a thread that serves requests therefore only
 * queues, and one of our own tells. Other threads (commands) tell at once, so that when they are
 * done the kernel has forgotten.
 */
#include "fs/mount/fuse_internal.h"

#include <unistd.h>

#include "fs/mount/keep.h"
#include "store/thread.h"

struct notice {
	struct notice *next;
	uint64_t node;
	bool pages;
	char name[]; /* "": the node itself */
};

/* Marked, the supervisor does not wait for the end of a killed server that waits in here for the
 * next one. NULL: nobody would look, or more tell at once than there is room for; the next one that
 * comes is then only started when all of them are through. */
static _Atomic int32_t *telling_begin(const struct mount *mount)
{
	struct keep_root *root = mount->keep ? keep_root(mount->keep) : NULL;
	for (size_t i = 0; root && i < KEEP_TELLING_MAX; i++) {
		int32_t nobody = 0;
		if (atomic_compare_exchange_strong(&root->telling[i], &nobody, gettid()))
			return &root->telling[i];
	}
	return NULL;
}

static void tell(struct mount *mount, uint64_t node, const char *name, bool pages)
{
	_Atomic int32_t *telling = telling_begin(mount);
	/* -ENOENT: the kernel does not hold it. Others: the mount is gone. */
	if (name[0])
		fuse_lowlevel_notify_inval_entry(mount->session, node, name, strlen(name));
	else
		fuse_lowlevel_notify_inval_inode(mount->session, node, pages ? 0 : -1, 0);
	if (telling)
		atomic_store(telling, 0);
}

static void *notifier_run(void *context)
{
	struct mount *mount = context;
	pthread_mutex_lock(&mount->notices_lock);
	while (!mount->notifier_ends) {
		struct notice *notice = mount->notices;
		if (!notice) {
			pthread_cond_wait(&mount->notices_changed, &mount->notices_lock);
			continue;
		}
		mount->notices = notice->next;
		if (!notice->next)
			mount->notices_end = &mount->notices;
		pthread_mutex_unlock(&mount->notices_lock);
		tell(mount, notice->node, notice->name, notice->pages);
		free(notice);
		pthread_mutex_lock(&mount->notices_lock);
	}
	pthread_mutex_unlock(&mount->notices_lock);
	return NULL;
}

int notifier_start(struct mount *mount)
{
	pthread_mutex_init(&mount->notices_lock, NULL);
	pthread_cond_init(&mount->notices_changed, NULL);
	mount->notices_end = &mount->notices;
	if (thread_start(&mount->notifier, notifier_run, mount) != 0)
		return -ERR_NO_MEMORY;
	mount->notifying = true;
	return 0;
}

void notifier_stop(struct mount *mount)
{
	if (!mount->notifying)
		return;
	pthread_mutex_lock(&mount->notices_lock);
	mount->notifier_ends = true;
	pthread_cond_broadcast(&mount->notices_changed);
	pthread_mutex_unlock(&mount->notices_lock);
	pthread_join(mount->notifier, NULL);
	mount->notifying = false;
	for (struct notice *notice = mount->notices, *next; notice; notice = next) {
		next = notice->next;
		free(notice);
	}
	mount->notices = NULL;
	pthread_mutex_destroy(&mount->notices_lock);
	pthread_cond_destroy(&mount->notices_changed);
}

static void queue(struct mount *mount, uint64_t node, const char *name, bool pages)
{
	struct notice *notice = malloc(sizeof(*notice) + strlen(name) + 1);
	if (!notice)
		return;
	notice->next = NULL;
	notice->node = node;
	notice->pages = pages;
	strcpy(notice->name, name);
	pthread_mutex_lock(&mount->notices_lock);
	*mount->notices_end = notice;
	mount->notices_end = &notice->next;
	pthread_cond_signal(&mount->notices_changed);
	pthread_mutex_unlock(&mount->notices_lock);
}

void notify_entry(void *context, uint64_t parent, const char *name)
{
	struct mount *mount = context;
	if (passthrough_serving())
		queue(mount, parent, name, false);
	else
		tell(mount, parent, name, false);
}

void notify_inode(void *context, uint64_t node, bool pages)
{
	struct mount *mount = context;
	if (passthrough_serving() && pages)
		queue(mount, node, "", true);
	else /* forgetting attributes alone takes no lock that a request can hold */
		tell(mount, node, "", pages);
}
