/* Moving and restoring working trees, their branches; and all commands on random trees. */
#include "tests/unit/working_tree.h"

#include <sys/wait.h>

/* -- moving -- */

static struct pointer make_branch_commit(struct fixture *fixture, const char *branch,
                                         const char *path, const char *text)
{
	struct worktree *worktree = get(fixture, branch);
	if (text)
		check(put(worktree, path, text));
	else
		check(del(worktree, path));
	check(commit(worktree));
	worktree_unref(worktree);
	return head_of(fixture, branch);
}

static const struct move_options plain_move = {.who = "tester@host", .command = "reset"};

static void test_move__keeps_changes(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	check(make(main, "d", S_IFDIR | 0755, NULL));
	check(put(main, "d/a", "a"));
	check(put(main, "d/b", "b"));
	check(put(main, "c", "c"));
	check(commit(main));
	struct pointer first = head_of(&fixture, "main");
	struct pointer second = make_branch_commit(&fixture, "main", "d/a", "a2");
	struct pointer third = make_branch_commit(&fixture, "main", "d/b", NULL);

	check(put(main, "d/new", "new"));
	check(change_mode(main, "c", 0600));
	uint64_t epoch = worktree_epoch(main);
	check(worktree_move(main, &first, &plain_move, message));
	assert_int_not_equal(worktree_epoch(main), epoch);
	assert_file(&fixture, main, "d/a", "a");
	assert_file(&fixture, main, "d/b", "b");
	assert_file(&fixture, main, "d/new", "new");
	assert_changes(main, "mode c\nadded d/new\n");
	struct pointer head = head_of(&fixture, "main");
	assert_true(id_equal(&head.id, &first.id));

	/* a path that both changed */
	struct message said = {{0}};
	check(put(main, "d/a", "mine"));
	assert_int_equal(worktree_move(main, &second, &plain_move, &said), -ERR_CONFLICT);
	assert_non_null(strstr(said.text, "d/a"));
	head = head_of(&fixture, "main");
	assert_true(id_equal(&head.id, &first.id));
	assert_file(&fixture, main, "d/a", "mine");
	/* changed alike */
	check(put(main, "d/a", "a2"));
	check(worktree_move(main, &third, &plain_move, message));
	assert_changes(main, "mode c\nadded d/new\n");
	assert_file(&fixture, main, "d/b", NULL);
	usleep(100000);
	assert_file(&fixture, main, "d/new", "new");

	/* and away with them, unless somebody writes */
	struct move_options discard = plain_move;
	CLEANUP(place_release) struct place_found place = {0};
	discard.discard = true;
	check(find(main, "d/new", true, &place));
	worktree_writer(fixture.trees, place.found.number, 1);
	assert_int_equal(worktree_move(main, &first, &discard, &said), -ERR_BUSY);
	worktree_writer(fixture.trees, place.found.number, -1);
	check(worktree_move(main, &first, &discard, message));
	assert_changes(main, "");
	assert_int_equal(main->overlay, 0);
	assert_file(&fixture, main, "d/new", NULL);

	struct move_options expecting = plain_move;
	expecting.expected = &third;
	assert_int_equal(worktree_move(main, &second, &expecting, NULL), -ERR_MOVED);
	expecting.expected = &first;
	check(worktree_move(main, &second, &expecting, message));
	worktree_unref(main);
	fixture_end(&fixture);
}

static void test_move__collisions_of_directories(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	check(make(main, "d", S_IFDIR | 0755, NULL));
	check(put(main, "d/a", "a"));
	check(commit(main));
	struct pointer first = head_of(&fixture, "main");
	check(del(main, "d/a"));
	check(del(main, "d"));
	check(put(main, "d", "a file now"));
	check(commit(main));
	struct pointer second = head_of(&fixture, "main");
	check(worktree_move(main, &first, &plain_move, message));

	/* only looked at: goes along */
	check(change_mode(main, "d/a", 0644));
	check(worktree_move(main, &second, &plain_move, message));
	assert_file(&fixture, main, "d", "a file now");
	check(worktree_move(main, &first, &plain_move, message));
	/* changed inside: does not */
	check(put(main, "d/b", "b"));
	assert_int_equal(worktree_move(main, &second, &plain_move, NULL), -ERR_CONFLICT);
	/* renamed away: the removal meets another change */
	check(del(main, "d/b"));
	check(move(main, "d", "e"));
	assert_int_equal(worktree_move(main, &second, &plain_move, NULL), -ERR_CONFLICT);
	assert_file(&fixture, main, "e/a", "a");
	worktree_unref(main);
	fixture_end(&fixture);
}

static void test_move__settled_after_opening(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	check(put(main, "a", "a"));
	check(commit(main));
	struct pointer first = head_of(&fixture, "main");
	check(put(main, "b", "b"));
	check(commit(main));
	check(put(main, "c", "c"));
	/* as if killed between the ref and the swap, with the overlay written anew */
	struct worktree_view view;
	worktree_view(main, &view);
	struct ground ground = ground_of(fixture.trees, &view);
	struct merge_side after = side_of(&fixture, &first);
	struct names collisions = {0};
	uint64_t overlay, root;
	check(rebase_overlay(&(struct rebase_options){.ground = &ground, .after = after}, &overlay,
	                     &root, &collisions, message));
	check(worktree_intend(main, &view.base, &first, overlay, root, message));
	struct ref ref;
	check(ref_read(fixture.store, REF_BRANCH, "main", &ref, message));
	check(ref_move(fixture.store, &ref, &first, &tester, message));
	ref_release(&ref);
	worktree_unref(main);
	fixture_close(&fixture);
	fixture_open(&fixture, NULL);
	main = get(&fixture, "main");
	assert_changes(main, "added c\n");
	assert_file(&fixture, main, "b", NULL);
	assert_file(&fixture, main, "c", "c");
	worktree_unref(main);
	fixture_end(&fixture);
}

/* -- restoring -- */

static void test_restore(void **state)
{
	struct fixture fixture;
	uint64_t changed;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	check(make(main, "d", S_IFDIR | 0755, NULL));
	check(put(main, "d/a", "a"));
	check(put(main, "d/b", "b"));
	check(put(main, "top", "1"));
	check(commit(main));
	struct commit *old;
	check(worktree_base(main, &old));
	check(put(main, "top", "2"));
	check(put(main, "d/a", "a2"));
	check(commit(main));

	/* to the base */
	check(put(main, "top", "3"));
	check(put(main, "d/a", "a3"));
	check(put(main, "d/new", "new"));
	const char *const top[] = {"top"}, *const d[] = {"d"}, *const all[] = {"."};
	check(worktree_restore(main, NULL, top, 1, &changed, message));
	assert_int_equal(changed, 1);
	assert_changes(main, "modified d/a\nadded d/new\n");
	check(worktree_restore(main, NULL, d, 1, &changed, message));
	assert_int_equal(changed, 2);
	assert_changes(main, "");
	assert_int_equal(main->overlay, 0);
	check(worktree_restore(main, NULL, d, 1, &changed, message));
	assert_int_equal(changed, 0);

	/* to an older commit: a change, and it can be committed */
	check(put(main, "d/new", "new"));
	check(worktree_restore(main, old, d, 1, &changed, message));
	assert_changes(main, "modified d/a\n");
	check(worktree_restore(main, old, all, 1, &changed, message));
	assert_changes(main, "modified d/a\nmodified top\n");
	assert_file(&fixture, main, "top", "1");
	check(commit(main));
	assert_file(&fixture, main, "d/a", "a");

	free(old);
	worktree_unref(main);
	fixture_end(&fixture);
}

/* A table of more files than are counted for the sake of a number. */
#define TABLE_FILES (COUNTED_FILES_MAX + 5)
struct table {
	size_t next;
	char name[16];
	struct tree_entry entry;
};

static int next_table_file(void *context, struct tree_edit *ret_edit)
{
	struct table *table = context;
	if (table->next == TABLE_FILES)
		return -ERR_NOT_FOUND;
	snprintf(table->name, sizeof(table->name), "%08zu", table->next++);
	table->entry = (struct tree_entry){
	        .name = table->name,
	        .name_length = strlen(table->name),
	        .attributes = {.mode = S_IFREG | 0644, .mtime_ns = 1},
	};
	*ret_edit = (struct tree_edit){
	        .name = table->name,
	        .name_length = table->entry.name_length,
	        .entry = &table->entry,
	};
	return 0;
}

static struct pointer make_table(struct fixture *fixture)
{
	struct packer *packer;
	struct pointer table, made;
	struct commit commit = {
	        .root = {.mode = S_IFDIR | 0755},
	        .author = "tester@host",
	        .message = "a table",
	};
	struct table files = {0};
	check(packer_new(fixture->odb, &packer));
	check(tree_apply(fixture->odb, packer, &pointer_none, next_table_file, &files, &table,
	                 message));
	const struct tree_entry entry = {
	        .name = "table",
	        .name_length = 5,
	        .attributes = {.mode = S_IFDIR | 0755, .mtime_ns = 1},
	        .content = {.pointer = table},
	};
	check(tree_set_path(fixture->odb, packer, &pointer_none, "table", &entry, &commit.tree,
	                    message));
	check(commit_write(fixture->odb, packer, &commit, &made, message));
	check(packer_flush(packer, message));
	packer_free(packer);
	return made;
}

static void test_restore__large_tables(void **state)
{
	struct fixture fixture;
	uint64_t changed;
	struct commit *from;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	struct pointer made = make_table(&fixture);
	const char *const table[] = {"table"};
	const struct commit_options options = commit_all();
	struct commit_result result;
	check(commit_read(fixture.odb, &made, &from, message));

	check(put(main, "one", "1"));
	check(put(main, "two", "2"));
	check(worktree_restore(main, from, table, 1, &changed, message));
	assert_int_equal(changed, RESTORED_COUNT_MAX + 1);
	check(worktree_commit(main, &options, &result, message));
	/* what was stored is counted beside it */
	assert_true(result.more);
	assert_int_equal(result.files, COUNTED_FILES_MAX + 4);
	assert_int_equal(result.bytes_new, 2);
	assert_file(&fixture, main, "table/00100004", "");
	assert_file(&fixture, main, "table/00100005", NULL);

	check(put(main, "table/00000007", "seven"));
	check(worktree_commit(main, &options, &result, message));
	assert_false(result.more);
	assert_int_equal(result.files, 1);

	free(from);
	worktree_unref(main);
	fixture_end(&fixture);
}

static void test_restore__what_is_in_the_way(void **state)
{
	struct fixture fixture;
	uint64_t changed;
	fixture_new(&fixture);
	struct worktree *main = get(&fixture, "main");
	const char *const top[] = {"top"}, *const all[] = {"."};
	check(make(main, "d", S_IFDIR | 0755, NULL));
	check(put(main, "d/a", "a"));
	check(put(main, "d/b", "b"));
	check(put(main, "top", "1"));
	check(commit(main));
	/* what is above is missing, or in the way */
	check(del(main, "d/a"));
	check(del(main, "d/b"));
	check(del(main, "d"));
	const char *const below[] = {"d/a", "d/b"}, *const nothing[] = {"nothing/at/all"};
	check(worktree_restore(main, NULL, below, 1, &changed, message));
	assert_changes(main, "removed d/b\n");
	check(del(main, "d/a"));
	check(del(main, "d"));
	check(worktree_restore(main, NULL, below, 2, &changed, message));
	assert_changes(main, "");
	check(del(main, "d/a"));
	check(del(main, "d/b"));
	check(del(main, "d"));
	check(put(main, "d", "file"));
	assert_int_equal(worktree_restore(main, NULL, below, 1, &changed, NULL),
	                 -ERR_NOT_DIRECTORY);
	assert_int_equal(worktree_restore(main, NULL, nothing, 1, &changed, NULL), -ERR_NOT_FOUND);
	check(worktree_restore(main, NULL, all, 1, &changed, message));
	assert_changes(main, "");

	/* somebody writes */
	check(put(main, "top", "open"));
	CLEANUP(place_release) struct place_found place = {0};
	check(find(main, "top", true, &place));
	worktree_writer(fixture.trees, place.found.number, 1);
	assert_int_equal(worktree_restore(main, NULL, all, 1, &changed, NULL), -ERR_BUSY);
	worktree_writer(fixture.trees, place.found.number, -1);
	assert_file(&fixture, main, "top", "open");
	/* one name of two goes */
	check(link_path(main, "top", "second"));
	check(worktree_restore(main, NULL, top, 1, &changed, message));
	assert_file(&fixture, main, "second", "open");
	assert_changes(main, "added second\n");
	worktree_unref(main);
	fixture_end(&fixture);
}

/* -- branches -- */

static int count_root(void *context, const struct pointer *pointer)
{
	++((size_t *)context)[0];
	return 0;
}

static int count_tree_root(void *context, const struct pointer *pointer)
{
	++((size_t *)context)[1];
	return 0;
}

static int count_content_root(void *context, const struct content *content)
{
	++((size_t *)context)[2];
	return 0;
}

static void test_branches(void **state)
{
	struct fixture fixture;
	fixture_new(&fixture);
	struct pointer head = head_of(&fixture, "main");
	check(ref_create(fixture.store, REF_BRANCH, "dev", &head, &tester, message));
	struct worktree *dev = get(&fixture, "dev");
	check(make(dev, "d", S_IFDIR | 0755, NULL));
	check(put(dev, "d/a", "a"));
	check(commit(dev));
	check(change_mode(dev, "d/a", 0600));

	size_t roots[3] = {0};
	check(worktrees_roots(fixture.trees, count_root, count_tree_root, count_content_root,
	                      roots));
	assert_int_equal(roots[0], 1);
	assert_int_equal(roots[1], 2); /* the root and d */
	assert_int_equal(roots[2], 1);

	check(worktree_rename_branch(fixture.trees, "dev", "next", &tester, message));
	assert_string_equal(worktree_branch(dev), "next");
	assert_changes(dev, "mode d/a\n");
	assert_int_equal(worktree_rename_branch(fixture.trees, "next", "main", &tester, NULL),
	                 -ERR_EXISTS);
	assert_int_equal(worktree_rename_branch(fixture.trees, "next", "..", &tester, NULL),
	                 -ERR_BAD_NAME);
	assert_int_equal(worktree_delete_branch(fixture.trees, "next", false, &tester, NULL),
	                 -ERR_REFUSED);
	CLEANUP(place_release) struct place_found place = {0};
	check(put(dev, "open", "open"));
	check(find(dev, "open", true, &place));
	worktree_writer(fixture.trees, place.found.number, 1);
	assert_int_equal(worktree_delete_branch(fixture.trees, "next", true, &tester, NULL),
	                 -ERR_BUSY);
	worktree_writer(fixture.trees, place.found.number, -1);
	check(worktree_delete_branch(fixture.trees, "next", true, &tester, message));
	assert_int_equal(enter(dev), -ERR_NOT_FOUND);
	worktree_unref(dev);
	struct worktree *none;
	assert_int_equal(worktree_get(fixture.trees, "next", &none, NULL), -ERR_NOT_FOUND);
	assert_int_equal(worktree_delete_branch(fixture.trees, "next", false, &tester, NULL),
	                 -ERR_NOT_FOUND);
	check(worktree_delete_branch(fixture.trees, "main", false, &tester, message));
	fixture_end(&fixture);
}

/* -- a process that dies, or a store that goes away, at one of the calls of a renaming -- */

static struct object_ops doomed_ops, inner_ops;
static struct {
	unsigned calls, at; /* at 0: never */
	bool after;         /* the store acts, but its answer comes to nobody */
	bool dies;          /* else -ERR_STORE_AWAY, for all that follow, too */
} doom;
#define DIED 77
#define TEST_DOOM(call) \
	do { \
		bool due = doom.at && ++doom.calls >= doom.at; \
		bool acts = !due || (doom.after && doom.calls == doom.at); \
		int result_ = acts ? (call) : -ERR_STORE_AWAY; \
		if (due && doom.dies) \
			_exit(DIED); \
		return due ? -ERR_STORE_AWAY : result_; \
	} while (0)

static int doomed_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                      struct buffer *ret_bytes, struct etag *ret_etag, struct message *said)
{
	if (doom.at && doom.calls + 1 >= doom.at) /* nothing is got by who gets no answer */
		doom.after = false;
	TEST_DOOM(inner_ops.get(store, key, offset, length, ret_bytes, ret_etag, said));
}

static int doomed_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                                size_t length, struct etag *ret_etag, struct message *said)
{
	TEST_DOOM(inner_ops.put_if_absent(store, key, bytes, length, ret_etag, said));
}

static int doomed_put_if_match(struct object_store *store, const char *key, const void *bytes,
                               size_t length, const struct etag *expected, struct etag *ret_etag,
                               struct message *said)
{
	TEST_DOOM(inner_ops.put_if_match(store, key, bytes, length, expected, ret_etag, said));
}

static void doom_store(struct object_store *store, unsigned at, bool after, bool dies)
{
	inner_ops = doomed_ops = *store->ops;
	doomed_ops.get = doomed_get;
	doomed_ops.put_if_absent = doomed_put_if_absent;
	doomed_ops.put_if_match = doomed_put_if_match;
	doomed_ops.get_if_changed = NULL;
	store->ops = &doomed_ops;
	doom.calls = 0;
	doom.at = at;
	doom.after = after;
	doom.dies = dies;
}

enum other { OTHER_NONE, OTHER_DELETED, OTHER_OLDER, OTHER_NEWER };

/* `main` with an uncommitted file, and maybe another branch. */
static void rename_begin(struct fixture *fixture, enum other other)
{
	fixture_new(fixture);
	struct pointer head = head_of(fixture, "main");
	if (other != OTHER_NONE)
		check(ref_create(fixture->store, REF_BRANCH, "other", &head, &tester, message));
	if (other == OTHER_DELETED)
		check(ref_delete(fixture->store, REF_BRANCH, "other", &tester, message));
	usleep(2000);
	head = make_branch_commit(fixture, "main", "base", "base");
	usleep(2000);
	if (other == OTHER_NEWER) {
		CLEANUP(ref_release) struct ref ref = {0};
		check(ref_read(fixture->store, REF_BRANCH, "other", &ref, message));
		check(ref_move(fixture->store, &ref, &head, &tester, message));
	}
	struct worktree *main = get(fixture, "main");
	check(put(main, "a", "a"));
	worktree_unref(main);
}

/* In a process of its own. True: it died. */
static bool rename_dying(struct fixture *fixture, unsigned at, bool after)
{
	int status = 0;
	pid_t child = fork();
	if (child == 0) {
		fixture_open(fixture, NULL);
		worktree_unref(get(fixture, "main"));
		doom_store(fixture->store, at, after, true);
		_exit(worktree_rename_branch(fixture->trees, "main", "other", &tester, NULL) != 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status) == DIED;
}

static bool is_there(struct object_store *store, const char *branch)
{
	CLEANUP(ref_release) struct ref ref = {0};
	return ref_read(store, REF_BRANCH, branch, &ref, NULL) == 0;
}

/* They are `owner`'s, whole, and not the other's. */
static void check_owner(struct fixture *fixture, const char *owner, const char *other,
                        const char *changes)
{
	struct branch_record record;
	struct worktree *worktree = get(fixture, owner);
	assert_string_equal(worktree_branch(worktree), owner);
	assert_changes(worktree, changes);
	assert_file(fixture, worktree, "a", "a");
	worktree_unref(worktree);
	assert_int_equal(branch_record_read(fixture->trees, other, &record), -ERR_NOT_FOUND);
	check(branch_record_read(fixture->trees, owner, &record));
	if (!is_there(fixture->store, other))
		return;
	worktree = get(fixture, other);
	assert_changes(worktree, "");
	worktree_unref(worktree);
}

enum meanwhile { MEANWHILE_NOTHING, MEANWHILE_DELETED, MEANWHILE_MADE };

/* What other hosts do before this one comes back; and whose the changes are then. */
static const char *happens(const struct fixture *fixture, enum meanwhile what, bool taken)
{
	struct object_store *store;
	char path[256];
	fixture_path(fixture, "store", path);
	check(object_local_open(path, false, &store, message));
	bool made = !taken && is_there(store, "other"), ended = !is_there(store, "main");
	if (what == MEANWHILE_DELETED && !ended) {
		check(ref_delete(store, REF_BRANCH, "main", &tester, message));
		ended = made; /* with that it has been done */
	} else if (what == MEANWHILE_MADE && ended) {
		CLEANUP(ref_release) struct ref ref = {0};
		check(ref_read(store, REF_BRANCH, "other", &ref, message));
		check(ref_create(store, REF_BRANCH, "main", &ref.commit, &tester, message));
	}
	object_store_free(store);
	return ended ? "other" : "main";
}

static void test_branches__rename_killed(void **state)
{
	static const struct {
		enum other other;
		enum meanwhile what;
	} cases[] = {
	        {OTHER_NONE, MEANWHILE_NOTHING},  {OTHER_NONE, MEANWHILE_DELETED},
	        {OTHER_NONE, MEANWHILE_MADE},     {OTHER_DELETED, MEANWHILE_NOTHING},
	        {OTHER_OLDER, MEANWHILE_NOTHING}, {OTHER_OLDER, MEANWHILE_DELETED},
	        {OTHER_NEWER, MEANWHILE_NOTHING},
	};
	unsigned stayed = 0, moved = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		enum other other = cases[i].other;
		enum meanwhile what = cases[i].what;
		bool died = true, taken = other == OTHER_OLDER || other == OTHER_NEWER;
		/* after each call: it is before the next one, too */
		for (unsigned at = 1; died; at++) {
			struct fixture fixture;
			rename_begin(&fixture, other);
			fixture_close(&fixture);
			died = rename_dying(&fixture, at, true);
			const char *owner = happens(&fixture, what, taken);
			bool stays = strcmp(owner, "main") == 0;
			fixture_open(&fixture, NULL);
			check_owner(&fixture, owner, stays ? "other" : "main", "added a\n");
			assert_false(fixture.trees->renames_open);
			fixture_end(&fixture);
			stayed += died && stays;
			moved += died && !stays;
		}
	}
	assert_true(stayed > 0 && moved > 0);
}

/* The same with a store that does not answer for a while: nobody has to wait for it, and when it is
 * back it is found out. */
static void test_branches__rename_unanswered(void **state)
{
	unsigned moved = 0, failures = 0;
	for (unsigned i = 0; i < 4; i++) {
		enum other other = i / 2 ? OTHER_OLDER : OTHER_NONE;
		int error = -1;
		for (unsigned at = 1; error; at++) {
			struct fixture fixture;
			rename_begin(&fixture, other);
			struct worktree *main = get(&fixture, "main");
			doom_store(fixture.store, at, i % 2, false);
			error = worktree_rename_branch(fixture.trees, "main", "other", &tester,
			                               NULL);
			if (doom.calls < doom.at)
				error = 0; /* it was refused */
			else if (error)
				check(put(main, "b", "b"));
			doom.at = 0;
			bool ended = !is_there(fixture.store, "main");
			const char *owner = ended ? "other" : "main";
			const char *changes = error ? "added a\nadded b\n" : "added a\n";
			if (at % 2) /* as the follower does */
				(void)worktree_refresh(main, NULL);
			check_owner(&fixture, owner, ended ? "main" : "other", changes);
			assert_string_equal(worktree_branch(main), owner);
			check(worktree_rename_branch(fixture.trees, owner, "third", &tester,
			                             message));
			check_owner(&fixture, "third", owner, changes);
			assert_false(fixture.trees->renames_open);
			worktree_unref(main);
			fixture_end(&fixture);
			failures += error != 0;
			moved += error && ended;
		}
	}
	assert_in_range(moved, 1, failures - 1);
}

/* -- everything on random trees -- */

static uint64_t seed;
static struct {
	unsigned mutations, commits, partial, moves, conflicts, restores;
} done; /* a test in which nothing happens shows nothing */

static unsigned pick(unsigned below)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(seed >> 33) % below;
}

static void pick_path(char path[64])
{
	static const char *const names[] = {"a", "b", "c", "d-", "e"};
	int depth = 1 + (int)pick(3);
	path[0] = '\0';
	for (int i = 0; i < depth; i++) {
		if (i)
			strcat(path, "/");
		strcat(path, names[pick(ARRAY_SIZE(names))]);
	}
}

static void mutate(struct worktree *worktree)
{
	char path[64], other[64], text[32];
	int error;
	pick_path(path);
	pick_path(other);
	snprintf(text, sizeof(text), "%u", pick(6));
	switch (pick(9)) {
	case 0:
	case 1:
	case 2:
		error = put(worktree, path, text);
		break;
	case 3:
		error = make(worktree, path, S_IFDIR | 0755, NULL);
		break;
	case 4:
		error = make(worktree, path, S_IFLNK | 0777, text);
		break;
	case 5:
		error = del(worktree, path);
		break;
	case 6:
	case 7:
		error = path_within(path, other) ? -ERR_INVALID : move(worktree, path, other);
		break;
	default:
		error = pick(2) ? change_mode(worktree, path, 0600 + pick(2) * 044)
		                : link_path(worktree, path, other);
		break;
	}
	switch (-error) { /* what a mount would answer, too */
	case 0:
		done.mutations++;
		return;
	case ERR_NOT_FOUND:
	case ERR_EXISTS:
	case ERR_NOT_EMPTY:
	case ERR_IS_DIRECTORY:
	case ERR_NOT_DIRECTORY:
	case ERR_INVALID:
	case ERR_NOT_PERMITTED:
		return;
	default:
		fail_msg("%s %s: %s", path, other, error_code(error));
	}
}

static void assert_same(struct buffer *a, struct buffer *b, const char *what)
{
	if (strcmp((char *)a->data, (char *)b->data) != 0)
		fail_msg("seed %llu, %s:\n%s---\n%s", (unsigned long long)seed, what, a->data,
		         b->data);
	buffer_release(a);
	buffer_release(b);
}

/* The tree the working tree would be committed as. */
static struct merge_side side_of_worktree(struct fixture *fixture, struct worktree *worktree,
                                          struct packer *packer)
{
	CLEANUP(stored_release) struct stored stored = {0};
	struct worktree_view view;
	struct path_set all = {0};
	struct merge_side side;
	worktree_view(worktree, &view);
	struct snapshot snapshot = {
	        .ground = ground_of(fixture->trees, &view), .packer = packer, .stored = &stored};
	check(snapshot_build(&snapshot, &all, &side, message));
	return side;
}

/* What changes says is what the trees' difference is. */
static void random_changes(struct fixture *fixture, struct worktree *worktree)
{
	struct packer *packer;
	struct worktree_view view;
	struct buffer reported = {0}, expected = {0};
	check(packer_new(fixture->odb, &packer));
	worktree_view(worktree, &view);
	struct merge_side side = side_of_worktree(fixture, worktree, packer);
	check(diff_trees(fixture->odb, &view.base_tree, &side.tree, &(struct diff_options){0},
	                 list_change, &expected, message));
	check(worktree_changes(worktree, NULL, 0, list_change, &reported, message));
	assert_int_equal(worktree_dirty(worktree), reported.length > 0);
	buffer_u8(&reported, 0);
	buffer_u8(&expected, 0);
	assert_same(&reported, &expected, "changes");
	struct buffer tree = dump_tree(fixture, &side.tree), now = dump_worktree(fixture, worktree);
	assert_same(&tree, &now, "snapshot");
	packer_free(packer);
}

static void random_commit(struct fixture *fixture, struct worktree *worktree)
{
	struct commit_options options = commit_all();
	struct commit_result result;
	char texts[2][64];
	const char *paths[2] = {texts[0], texts[1]};
	pick_path(texts[0]);
	pick_path(texts[1]);
	options.paths = paths;
	options.path_count = pick(3);
	struct buffer before = dump_worktree(fixture, worktree);
	int error = worktree_commit(worktree, &options, &result, NULL);
	if (error && error != -ERR_INVALID && error != -ERR_NOT_FOUND)
		fail_msg("seed %llu: commit: %s", (unsigned long long)seed, error_code(error));
	struct buffer after = dump_worktree(fixture, worktree);
	assert_same(&before, &after, "commit changed the working tree");
	for (size_t i = 0; !error && i < options.path_count; i++) {
		struct buffer left = {0};
		check(worktree_changes(worktree, &paths[i], 1, list_change, &left, message));
		if (left.length)
			fail_msg("seed %llu: %s was committed and is changed",
			         (unsigned long long)seed, paths[i]);
	}
	if (!error)
		options.path_count ? done.partial++ : done.commits++;
	if (!error && !options.path_count)
		assert_int_equal(worktree->overlay, 0);
}

static void random_move(struct fixture *fixture, struct worktree *worktree,
                        const struct pointer *commits, size_t count)
{
	struct packer *packer;
	struct worktree_view view;
	struct merge_result merged;
	const struct pointer *target = &commits[pick((unsigned)count)];
	check(packer_new(fixture->odb, &packer));
	worktree_view(worktree, &view);
	struct merge_side ours = side_of_worktree(fixture, worktree, packer);
	struct merge_side base = {view.base_tree, view.base_root};
	struct merge_side theirs = side_of(fixture, target);
	check(merge_trees(fixture->odb, packer, &base, &ours, &theirs, &(struct merge_options){0},
	                  &merged, message));
	struct buffer before = dump_worktree(fixture, worktree);
	int error = worktree_move(worktree, target, &plain_move, NULL);
	struct buffer after = dump_worktree(fixture, worktree);
	if (error == -ERR_CONFLICT) {
		done.conflicts++;
		assert_same(&before, &after, "a refused move");
	} else {
		assert_int_equal(error, 0);
		if (merged.conflict_count)
			fail_msg("seed %llu: moved over a conflict at %s", (unsigned long long)seed,
			         merged.conflicts[0].path);
		struct buffer expected = dump_tree(fixture, &merged.tree);
		assert_same(&expected, &after, "move");
		done.moves++;
		buffer_release(&before);
	}
	merge_result_release(&merged);
	packer_free(packer);
}

static void random_restore(struct fixture *fixture, struct worktree *worktree,
                           const struct pointer *commits, size_t count)
{
	char text[64];
	const char *path = text;
	struct commit *from;
	pick_path(text);
	check(commit_read(fixture->odb, &commits[pick((unsigned)count)], &from, message));
	int error = worktree_restore(worktree, from, &path, 1, NULL, NULL);
	if (!error) {
		/* the path and below, as lines of either dump */
		struct buffer want = dump_tree(fixture, &from->tree),
		              have = dump_worktree(fixture, worktree), a = {0}, b = {0};
		struct buffer *in[] = {&want, &have}, *out[] = {&a, &b};
		for (int i = 0; i < 2; i++) {
			char *rest = NULL;
			for (char *line = strtok_r((char *)in[i]->data, "\n", &rest); line;
			     line = strtok_r(NULL, "\n", &rest)) {
				char name[64];
				assert_int_equal(sscanf(line, "%63s", name), 1);
				if (path_within(name, path)) {
					buffer_append(out[i], line, strlen(line));
					buffer_u8(out[i], '\n');
				}
			}
			buffer_u8(out[i], 0);
			buffer_release(in[i]);
		}
		assert_same(&a, &b, "restore");
		done.restores++;
	} else if (error != -ERR_NOT_FOUND && error != -ERR_NOT_DIRECTORY) {
		fail_msg("seed %llu: restore: %s", (unsigned long long)seed, error_code(error));
	}
	free(from);
}

static void test_random(void **state)
{
	const char *given = getenv("SEED");
	const char *runs = getenv("RUNS");
	for (int run = 0; run < (runs ? atoi(runs) : 12); run++) {
		struct fixture fixture;
		struct pointer commits[64];
		size_t count = 0;
		seed = given ? strtoull(given, NULL, 10) : random_u64();
		print_message("SEED=%llu\n", (unsigned long long)seed);
		fixture_new(&fixture);
		commits[count++] = head_of(&fixture, "main");
		for (int step = 0; step < 60; step++) {
			struct worktree *main = get(&fixture, "main");
			for (unsigned i = pick(8); i > 0; i--)
				mutate(main);
			random_changes(&fixture, main);
			switch (pick(5)) {
			case 0:
			case 1:
				random_commit(&fixture, main);
				break;
			case 2:
				random_move(&fixture, main, commits, count);
				break;
			case 3:
				random_restore(&fixture, main, commits, count);
				break;
			default:
				break;
			}
			random_changes(&fixture, main);
			if (count < ARRAY_SIZE(commits))
				commits[count++] = head_of(&fixture, "main");
			struct buffer before = dump_worktree(&fixture, main);
			worktree_unref(main);
			if (pick(8) == 0) {
				fixture_close(&fixture);
				fixture_open(&fixture, NULL);
			}
			main = get(&fixture, "main");
			struct buffer after = dump_worktree(&fixture, main);
			assert_same(&before, &after, "opening again");
			worktree_unref(main);
		}
		fixture_end(&fixture);
	}
	print_message(
	        "%u mutations, %u commits, %u of paths, %u moves, %u conflicts, %u restores\n",
	        done.mutations, done.commits, done.partial, done.moves, done.conflicts,
	        done.restores);
	assert_true(done.mutations && done.commits && done.partial && done.moves &&
	            done.conflicts && done.restores);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_move__keeps_changes),
	        cmocka_unit_test(test_move__collisions_of_directories),
	        cmocka_unit_test(test_move__settled_after_opening),
	        cmocka_unit_test(test_restore),
	        cmocka_unit_test(test_restore__large_tables),
	        cmocka_unit_test(test_restore__what_is_in_the_way),
	        cmocka_unit_test(test_branches),
	        cmocka_unit_test(test_branches__rename_killed),
	        cmocka_unit_test(test_branches__rename_unanswered),
	        cmocka_unit_test(test_random),
	};
	return cmocka_run_group_tests_name("worktree_commands", tests, NULL, NULL);
}
