/* A lake without a mount in a temporary directory: store, state, working trees; for tests. */
#ifndef TESTS_WORKTREE_FIXTURE_H
#define TESTS_WORKTREE_FIXTURE_H

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fs/worktree_internal.h"

struct fixture {
	char root[64];
	struct object_store *store;
	struct odb *odb;
	struct history *history;
	struct cache *cache;
	struct state *state;
	struct worktrees *trees;
};

static inline void must(int r, const struct message *message, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "%s: %s (%s)\n", what, error_text(r), message ? message->text : "");
	abort();
}

static inline void fixture_path(const struct fixture *fixture, const char *name, char ret_path[128])
{
	snprintf(ret_path, 128, "%s/%s", fixture->root, name);
}

static inline void fixture_open_with(struct fixture *fixture, uint64_t copy_up_bytes_max,
                                     bool with_cache)
{
	struct message message = {0};
	char path[128];
	fixture_path(fixture, "store", path);
	must(object_local_open(path, true, &fixture->store, &message), &message, "store");
	must(odb_new(fixture->store, &(struct odb_options){0}, &fixture->odb), NULL, "odb");
	must(history_new(fixture->odb, NULL, &fixture->history), NULL, "history");
	fixture_path(fixture, "cache", path);
	if (with_cache)
		must(cache_open(path, fixture->odb, &(struct cache_options){0}, &fixture->cache,
		                &message),
		     &message, "cache");
	fixture_path(fixture, "state", path);
	must(state_open(path, &fixture->state, &message), &message, "state");
	fixture_path(fixture, "staging", path);
	struct worktrees_options options = {
	        .state = fixture->state,
	        .odb = fixture->odb,
	        .history = fixture->history,
	        .cache = fixture->cache,
	        .staging_directory = path,
	        .copy_up_bytes_max = copy_up_bytes_max,
	};
	must(worktrees_open(&options, &fixture->trees, &message), &message, "worktrees");
}

static inline void fixture_close(struct fixture *fixture)
{
	worktrees_close(fixture->trees);
	cache_close(fixture->cache);
	state_close(fixture->state);
	history_free(fixture->history);
	odb_free(fixture->odb);
	object_store_free(fixture->store);
	char root[64];
	memcpy(root, fixture->root, sizeof(root));
	*fixture = (struct fixture){0};
	memcpy(fixture->root, root, sizeof(root));
}

static inline void fixture_make(struct fixture *fixture)
{
	*fixture = (struct fixture){0};
	strcpy(fixture->root, "/tmp/test_worktree.XXXXXX");
	if (mkdtemp(fixture->root) == NULL)
		abort();
}

static inline void fixture_remove(struct fixture *fixture)
{
	char command[96];
	snprintf(command, sizeof(command), "rm -rf '%s'", fixture->root);
	if (system(command) != 0)
		abort();
}

static inline struct content fixture_content(struct packer *packer, const void *bytes,
                                             size_t length)
{
	struct content content;
	struct message message = {0};
	int fd = memfd_create("content", MFD_CLOEXEC);
	must(write_full(fd, bytes, length, 0), NULL, "memfd");
	must(content_store(packer, fd, length, NULL, &content, &message), &message, "content");
	close(fd);
	return content;
}

/* A commit of `tree`, and the branch on it (made, or moved). */
static inline struct pointer fixture_commit(struct fixture *fixture, struct packer *packer,
                                            const struct pointer *tree, const char *branch)
{
	struct message message = {0};
	struct pointer pointer;
	struct commit commit = {
	        .tree = *tree,
	        .root = {.mode = S_IFDIR | 0755, .mtime_ns = 1000},
	        .author = "test@host",
	        .time_ms = 1000,
	        .message = branch,
	};
	must(commit_write(fixture->odb, packer, &commit, &pointer, &message), &message, "commit");
	must(packer_flush(packer, &message), &message, "flush");
	struct ref_author author = {.who = "test@host", .command = "commit"};
	struct ref ref = {0};
	int r = ref_read(fixture->store, REF_BRANCH, branch, &ref, NULL);
	if (r == 0)
		r = ref_move(fixture->store, &ref, &pointer, &author, &message);
	else
		r = ref_create(fixture->store, REF_BRANCH, branch, &pointer, &author, &message);
	must(r, &message, "ref");
	ref_release(&ref);
	return pointer;
}

static inline struct worktree *get_main(struct fixture *fixture)
{
	struct worktree *worktree;
	struct message message = {0};
	must(worktree_get(fixture->trees, "main", &worktree, &message), &message, "get");
	return worktree;
}

static inline size_t count_staging(struct fixture *fixture)
{
	size_t count = 0;
	for (unsigned shard = 0; shard < 256; shard++) {
		char path[160];
		snprintf(path, sizeof(path), "%s/staging/%02x", fixture->root, shard);
		DIR *directory = opendir(path);
		struct dirent *entry;
		while ((entry = readdir(directory)) != NULL)
			count += entry->d_name[0] != '.';
		closedir(directory);
	}
	return count;
}

static inline int count_staged(void *context, const struct inode *inode)
{
	*(size_t *)context += inode->staging != 0;
	return 0;
}

/* No staging file without an inode, in a moment: they go when the journal has been synced. */
static inline void check_staging(struct fixture *fixture, struct worktree *worktree)
{
	size_t named = 0;
	if (worktree->overlay != 0)
		must(overlay_inodes(fixture->trees, worktree->overlay, count_staged, &named), NULL,
		     "inodes");
	for (int i = 0; i < 1000; i++) {
		if (count_staging(fixture) == named)
			return;
		usleep(10000);
	}
	fprintf(stderr, "%zu staging files, %zu named\n", count_staging(fixture), named);
	abort();
}

#endif
