/* The life of a working tree: following its head, interrupted commits, discarded overlays, other
 * names, threads. */
#include "worktree_fixture.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

struct told {
	unsigned moved, gone;
	struct pointer before, after;
};

static void note_moved(void *context, const char *branch, const struct pointer *before,
                       const struct pointer *after)
{
	struct told *told = context;
	told->moved++;
	told->before = *before;
	told->after = *after;
}

static void note_gone(void *context, const char *branch)
{
	((struct told *)context)->gone++;
}

static struct fixture shared;

static int open_shared(void **unused)
{
	fixture_make(&shared);
	fixture_open_with(&shared, 0, false);
	struct packer *packer;
	must(packer_new(shared.odb, &packer), NULL, "packer");
	fixture_commit(&shared, packer, &pointer_none, "main");
	packer_free(packer);
	return 0;
}

static int close_shared(void **unused)
{
	fixture_close(&shared);
	fixture_remove(&shared);
	return 0;
}

/* Somebody else commits an empty tree, or another root. */
static struct pointer move_head(const char *branch)
{
	struct packer *packer;
	must(packer_new(shared.odb, &packer), NULL, "packer");
	struct pointer tree = pointer_none;
	struct tree_entry entry = {.name = "xx", .name_length = 2, .attributes = {.mode = 0100644}};
	must(tree_set_path(shared.odb, packer, &pointer_none, "xx", &entry, &tree, NULL), NULL,
	     "tree");
	struct pointer commit = fixture_commit(&shared, packer, &tree, branch);
	packer_free(packer);
	return commit;
}

static void make_file(struct worktree *worktree, const char *name, struct inode *ret_inode)
{
	uint64_t root;
	must(worktree_enter(worktree, worktree_epoch(worktree)), NULL, "enter");
	must(worktree_adopt_root(worktree, &root), NULL, "root");
	struct attributes attributes = {.mode = S_IFREG | 0644};
	must(worktree_make(worktree, root, name, strlen(name), &attributes, NULL, ret_inode, NULL),
	     NULL, "make");
	worktree_leave(worktree);
}

static void a_clean_tree_follows_its_head(void **unused)
{
	struct told told = {0};
	worktrees_observe(shared.trees, &(struct worktree_observer){.context = &told,
	                                                            .moved = note_moved,
	                                                            .branch_gone = note_gone});
	struct worktree *worktree = get_main(&shared);
	uint64_t epoch = worktree_epoch(worktree);
	must(worktree_refresh(worktree, NULL), NULL, "refresh");
	assert_int_equal(worktree_epoch(worktree), epoch);
	struct pointer before = worktree->base_tree;
	struct pointer commit = move_head("main");
	must(worktree_follow(worktree, NULL), NULL, "follow"); /* within the second: not read */
	assert_int_equal(told.moved, 0);
	must(worktree_refresh(worktree, NULL), NULL, "refresh");
	assert_int_equal(told.moved, 1);
	assert_true(id_equal(&told.before.id, &before.id));
	assert_true(worktree_epoch(worktree) > epoch);
	assert_int_equal(worktree_enter(worktree, epoch), -ERR_STALE);
	struct commit *base;
	must(worktree_base(worktree, &base), NULL, "base");
	assert_true(id_equal(&base->self.id, &commit.id));
	assert_true(id_equal(&told.after.id, &base->tree.id));
	free(base);

	must(ref_delete(shared.store, REF_BRANCH, "main",
	                &(struct ref_author){.who = "t", .command = "d"}, NULL),
	     NULL, "delete");
	assert_int_equal(worktree_refresh(worktree, NULL), -ERR_NOT_FOUND);
	assert_int_equal(told.gone, 1);
	assert_int_equal(worktree_enter(worktree, worktree_epoch(worktree)), -ERR_NOT_FOUND);
	worktree_unref(worktree);
	assert_int_equal(worktree_get(shared.trees, "main", &worktree, NULL), -ERR_NOT_FOUND);
	assert_int_equal(worktree_get(shared.trees, "../x", &worktree, NULL), -ERR_BAD_NAME);
}

static void a_dirty_tree_goes_on_over_the_head(void **unused)
{
	struct worktree *worktree = get_main(&shared);
	struct inode inode;
	make_file(worktree, "new", &inode);
	assert_true(worktree_dirty(worktree));
	struct pointer base = worktree->base;
	struct pointer head = move_head("main");
	must(worktree_follow(worktree, NULL), NULL, "follow"); /* not by looking at it */
	assert_true(id_equal(&worktree->base.id, &base.id));
	must(worktree_refresh(worktree, NULL), NULL, "refresh");
	assert_true(id_equal(&worktree->base.id, &head.id));
	assert_true(worktree_dirty(worktree));
	worktree_unref(worktree);
	fixture_close(&shared);
	fixture_open_with(&shared, 0, false);
	worktree = get_main(&shared);
	assert_true(id_equal(&worktree->base.id, &head.id));
	struct inode again;
	must(worktree_inode(worktree, inode.number, &again), NULL, "inode");
	assert_int_equal(again.staging, inode.staging);
	inode_release(&again);
	inode_release(&inode);
	worktree_unref(worktree);
}

/* An interrupted commit: it counts exactly when the ref moved. */
static void interrupted(bool moved)
{
	struct worktree *worktree = get_main(&shared);
	struct inode inode;
	make_file(worktree, "new", &inode);
	struct worktree_view view;
	worktree_view(worktree, &view);
	struct packer *packer;
	must(packer_new(shared.odb, &packer), NULL, "packer");
	struct pointer commit = fixture_commit(&shared, packer, &view.base_tree, "other");
	packer_free(packer);
	must(worktree_close_gate(worktree), NULL, "gate");
	must(worktree_intend(worktree, &view.base, &commit, 0, 0, NULL), NULL, "intend");
	if (moved) {
		struct ref ref = {0};
		must(ref_read(shared.store, REF_BRANCH, "main", &ref, NULL), NULL, "ref");
		must(ref_move(shared.store, &ref, &commit,
		              &(struct ref_author){.who = "t", .command = "c"}, NULL),
		     NULL, "move");
		ref_release(&ref);
		move_head("main"); /* and on by somebody else */
	}
	worktree_open_gate(worktree);
	worktree_unref(worktree);
	fixture_close(&shared);
	fixture_open_with(&shared, 0, false);
	worktree = get_main(&shared);
	assert_int_equal(worktree_dirty(worktree), !moved);
	struct inode again = {0};
	assert_int_equal(worktree_inode(worktree, inode.number, &again), moved ? -ERR_STALE : 0);
	struct branch_record record;
	assert_int_equal(branch_record_read(shared.trees, "main", &record),
	                 moved ? -ERR_NOT_FOUND : 0);
	assert_true(moved || !record.intent);
	check_staging(&shared, worktree);
	inode_release(&again);
	inode_release(&inode);
	worktree_unref(worktree);
}

static void an_interrupted_commit_whose_ref_moved_is_finished(void **unused)
{
	interrupted(true);
}

static void an_interrupted_commit_whose_ref_stayed_is_dropped(void **unused)
{
	interrupted(false);
}

static int count_any(void *context, const struct span *key, const struct span *value)
{
	(*(size_t *)context)++;
	return 0;
}

static size_t records_of(struct fixture *fixture, uint64_t overlay)
{
	uint8_t prefix[8];
	store_u64_be(prefix, overlay);
	size_t count = 0;
	state_scan(fixture->state, STATE_INODES, prefix, 8, NULL, 0, 0, count_any, &count);
	state_scan(fixture->state, STATE_ENTRIES, prefix, 8, NULL, 0, 0, count_any, &count);
	return count;
}

static void discarded_overlays_go_but_not_what_successors_name(void **unused)
{
	struct worktree *worktree = get_main(&shared);
	struct inode kept, dropped, any;
	make_file(worktree, "kept", &kept);
	make_file(worktree, "dropped", &dropped);
	for (int i = 0; i < 1500; i++) {
		char name[16];
		snprintf(name, sizeof(name), "many%d", i);
		make_file(worktree, name, &any);
		inode_release(&any);
	}
	struct worktree_view view;
	worktree_view(worktree, &view);
	/* As a partial commit does: a new overlay that keeps one of the files. */
	uint64_t next = overlay_new(shared.trees);
	struct inode root;
	must(worktree_inode(worktree, view.root, &root), NULL, "root");
	CLEANUP(state_batch_release) struct state_batch batch = {0};
	overlay_put_inode(&batch, next, &root);
	overlay_put_inode(&batch, next, &kept);
	overlay_put_entry(&batch, next, root.number, "kept", 4, kept.number, kept.attributes.mode);
	must(overlay_commit(shared.trees, &batch, NULL), NULL, "commit");
	struct commit *base;
	must(worktree_base(worktree, &base), NULL, "base");
	must(worktree_close_gate(worktree), NULL, "gate");
	must(worktree_swap(worktree, base, next, root.number, NULL), NULL, "swap");
	worktree_open_gate(worktree);
	overlay_discard(shared.trees, view.overlay, next);
	assert_true(worktree_epoch(worktree) > view.epoch);
	for (int i = 0; i < 500 && records_of(&shared, view.overlay) > 0; i++)
		usleep(10000);
	usleep(100000); /* the last batch's staging files go after its records */
	assert_int_equal(records_of(&shared, view.overlay), 0);
	check_staging(&shared, worktree);
	assert_int_equal(count_staging(&shared), 1);
	struct found found;
	struct directory directory = {.number = root.number};
	must(worktree_lookup(worktree, &directory, "kept", 4, &found, NULL), NULL, "lookup");
	assert_int_equal(found.number, kept.number);
	assert_int_equal(worktree_lookup(worktree, &directory, "dropped", 7, &found, NULL),
	                 -ERR_NOT_FOUND);
	free(base);
	inode_release(&root);
	inode_release(&kept);
	inode_release(&dropped);
	worktree_unref(worktree);
}

static void orphans_come_back_by_linking(void **unused)
{
	struct worktree *worktree = get_main(&shared);
	struct inode inode, last = {0}, nameless;
	make_file(worktree, "file", &inode);
	must(worktree_enter(worktree, worktree_epoch(worktree)), NULL, "enter");
	struct worktree_view view;
	worktree_view(worktree, &view);
	must(worktree_remove(worktree, view.root, "file", 4, false, &last, NULL), NULL, "remove");
	assert_int_equal(last.number, inode.number);
	struct inode again;
	assert_int_equal(worktree_inode(worktree, inode.number, &again), -ERR_STALE);
	assert_int_equal(worktree_link(worktree, inode.number, NULL, view.root, "x", 1, NULL),
	                 -ERR_STALE);
	must(worktree_link(worktree, inode.number, &last, view.root, "back", 4, NULL), NULL,
	     "link");
	assert_int_equal(last.nlink, 1);
	struct attributes attributes = {.mode = S_IFREG | 0600};
	must(worktree_make(worktree, 0, NULL, 0, &attributes, NULL, &nameless, NULL), NULL, "tmp");
	assert_int_equal(nameless.nlink, 0);
	must(worktree_link(worktree, nameless.number, &nameless, view.root, "named", 5, NULL), NULL,
	     "link");
	worktree_leave(worktree);
	check_staging(&shared, worktree);
	assert_int_equal(count_staging(&shared), 2);
	inode_release(&inode);
	inode_release(&last);
	inode_release(&nameless);
	worktree_unref(worktree);
}

static void rekeyed_and_dropped_trees_are_found_by_their_new_name_only(void **unused)
{
	struct worktree *worktree = get_main(&shared), *again;
	struct inode inode;
	make_file(worktree, "file", &inode);
	inode_release(&inode);
	const char *old = worktree_branch(worktree);
	must(worktree_close_gate(worktree), NULL, "gate");
	must(worktree_rekey(worktree, "renamed", NULL), NULL, "rekey");
	worktree_open_gate(worktree);
	assert_string_equal(old, "main");
	assert_string_equal(worktree_branch(worktree), "renamed");
	must(worktree_get(shared.trees, "renamed", &again, NULL), NULL, "get");
	assert_ptr_equal(again, worktree);
	worktree_unref(again);
	struct worktree_view view;
	worktree_view(worktree, &view);
	must(worktree_close_gate(worktree), NULL, "gate");
	must(worktree_drop(worktree, NULL), NULL, "drop");
	worktree_open_gate(worktree);
	overlay_discard(shared.trees, view.overlay, 0);
	assert_int_equal(worktree_close_gate(worktree), -ERR_NOT_FOUND);
	worktree_unref(worktree);
	assert_int_equal(worktree_get(shared.trees, "renamed", &worktree, NULL), -ERR_NOT_FOUND);
	for (int i = 0; i < 300 && count_staging(&shared) > 0; i++)
		usleep(10000);
	assert_int_equal(count_staging(&shared), 0);
}

/* -- threads -- */

static unsigned pick(uint64_t *seed, unsigned below)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(*seed >> 33) % below;
}

static void check(bool holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "not so: %s\n", what);
		abort();
	}
}

struct mutator {
	pthread_t thread;
	struct worktree *worktree;
	unsigned id;
	unsigned made, removed;
};

static int count_name(void *context, const char *name, size_t length, const struct found *found)
{
	(*(unsigned *)context)++;
	return 0;
}

/* Everybody makes, renames and removes the same few names: each file made is removed by one. */
static void mutate_once(struct mutator *mutator, uint64_t *seed)
{
	struct worktree *worktree = mutator->worktree;
	uint64_t root;
	if (worktree_enter(worktree, worktree_epoch(worktree)) != 0)
		return;
	must(worktree_adopt_root(worktree, &root), NULL, "root");
	char name[8], other[8];
	snprintf(name, sizeof(name), "t%u", pick(seed, 8));
	snprintf(other, sizeof(other), "t%u", pick(seed, 8));
	struct attributes attributes = {.mode = S_IFREG | 0644};
	struct inode inode = {0};
	int r = worktree_make(worktree, root, name, 2, &attributes, NULL, &inode, NULL);
	check(r == 0 || r == -ERR_EXISTS, "make");
	mutator->made += r == 0;
	inode_release(&inode);
	r = worktree_rename(worktree, root, name, 2, root, other, 2, RENAME_NOREPLACE, NULL, NULL);
	check(r == 0 || r == -ERR_EXISTS || r == -ERR_NOT_FOUND, "rename");
	r = worktree_remove(worktree, root, other, 2, false, NULL, NULL);
	check(r == 0 || r == -ERR_NOT_FOUND, "remove");
	mutator->removed += r == 0;
	unsigned names = 0;
	struct directory directory = {.number = root};
	must(worktree_list(worktree, &directory, NULL, 0, count_name, &names, NULL), NULL, "list");
	worktree_leave(worktree);
}

static void *mutate(void *context)
{
	struct mutator *mutator = context;
	uint64_t seed = mutator->id + 1;
	for (int i = 0; i < 300; i++)
		mutate_once(mutator, &seed);
	return NULL;
}

static void threads_mutate_one_directory(void **unused)
{
	struct worktree *worktree = get_main(&shared);
	struct directory place;
	unsigned names = 0, base_names = 0;
	must(worktree_root(worktree, &place), NULL, "root");
	must(worktree_list(worktree, &place, NULL, 0, count_name, &base_names, NULL), NULL, "list");
	struct mutator mutators[4];
	for (unsigned i = 0; i < 4; i++) {
		mutators[i] = (struct mutator){.worktree = worktree, .id = i};
		pthread_create(&mutators[i].thread, NULL, mutate, &mutators[i]);
	}
	/* And the gate closes in between. */
	for (int i = 0; i < 20; i++) {
		must(worktree_close_gate(worktree), NULL, "gate");
		struct commit *base;
		must(worktree_base(worktree, &base), NULL, "base");
		if (worktree->overlay != 0)
			must(worktree_swap(worktree, base, worktree->overlay, worktree->root, NULL),
			     NULL, "swap");
		free(base);
		worktree_open_gate(worktree);
		must(worktree_refresh(worktree, NULL), NULL, "refresh");
		usleep(1000);
	}
	unsigned left = 0;
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(mutators[i].thread, NULL);
		left += mutators[i].made - mutators[i].removed;
	}
	must(worktree_root(worktree, &place), NULL, "root");
	must(worktree_list(worktree, &place, NULL, 0, count_name, &names, NULL), NULL, "list");
	assert_int_equal(names, base_names + left);
	check_staging(&shared, worktree);
	worktree_unref(worktree);
}

int main(void)
{
#define SHARED(test) cmocka_unit_test_setup_teardown(test, open_shared, close_shared)
	const struct CMUnitTest tests[] = {
	        SHARED(a_clean_tree_follows_its_head),
	        SHARED(a_dirty_tree_goes_on_over_the_head),
	        SHARED(an_interrupted_commit_whose_ref_moved_is_finished),
	        SHARED(an_interrupted_commit_whose_ref_stayed_is_dropped),
	        SHARED(discarded_overlays_go_but_not_what_successors_name),
	        SHARED(orphans_come_back_by_linking),
	        SHARED(threads_mutate_one_directory),
	        SHARED(rekeyed_and_dropped_trees_are_found_by_their_new_name_only),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
