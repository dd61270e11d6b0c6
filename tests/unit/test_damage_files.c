/*
 * A file of a small lake, stored or local, is cut off, longer, missing, something that is no file,
 * or another valid one of its kind. What is stored is then refused, or named by fsck, in any case.
 */
#include "damage_world.h"

enum wreck {
	CUT_ALL,
	CUT_LAST,
	CUT_HALF,
	GROWN,
	MISSING,
	DIRECTORY,
	FIFO,
	LINK,  /* to a copy outside, whose end is other bytes */
	OTHER, /* another file's bytes under this name */
	WRECKS
};
static const char *const wreck_words[WRECKS] = {
        "empty",       "without its last byte", "cut in half", "longer",     "missing",
        "a directory", "a named pipe",          "a link",      "swapped for"};

struct damage {
	enum wreck wreck;
	size_t file, other;
};

static void write_as(const struct file *file, const char *path, size_t length, const char *more)
{
	struct file changed = *file;
	struct buffer bytes = {0};
	buffer_append(&bytes, file->bytes.data, length);
	buffer_append(&bytes, more, strlen(more));
	changed.bytes = bytes;
	snprintf(changed.path, sizeof changed.path, "%s", path);
	write_file(&changed);
	buffer_release(&bytes);
}

static void put_link(const struct file *file, const char *path)
{
	write_as(file, "../outside", file->bytes.length ? file->bytes.length - 1 : 0, "?");
	char target[100];
	snprintf(target, sizeof target, "%s/outside", root);
	if (symlink(target, path) < 0)
		abort();
}

static size_t wreck(const void *context, size_t number, struct tally *tally)
{
	const struct damage *damage = (const struct damage *)context + number;
	const struct file *file = &files[damage->file], *other = &files[damage->other];
	size_t length = file->bytes.length;
	char path[300];
	snprintf(path, sizeof path, "%s/%s", live, file->path);
	tally->kind = (int)damage->wreck;
	snprintf(tally->what, sizeof tally->what, "%.140s: %s %.140s", file->path,
	         wreck_words[damage->wreck], damage->wreck == OTHER ? other->path : "");
	if (damage->wreck >= MISSING && damage->wreck <= LINK && unlink(path) < 0)
		abort();
	if (damage->wreck == DIRECTORY && mkdir(path, 0700) < 0)
		abort();
	if (damage->wreck == FIFO && mkfifo(path, 0600) < 0)
		abort();
	if (damage->wreck == LINK)
		put_link(file, path);
	if (damage->wreck == OTHER)
		write_as(other, file->path, other->bytes.length, "");
	else if (damage->wreck == GROWN)
		write_as(file, file->path, length, "more");
	else if (damage->wreck < GROWN)
		write_as(file, file->path,
		         damage->wreck == CUT_ALL    ? 0
		         : damage->wreck == CUT_HALF ? length / 2
		                                     : length - 1,
		         "");
	return damage->file;
}

/* Of the same folder: a pack for a pack, a ref for a ref. */
static bool are_alike(const struct file *a, const struct file *b)
{
	const char *end_a = strrchr(a->path, '/'), *end_b = strrchr(b->path, '/');
	return end_a && end_b && end_a - a->path == end_b - b->path &&
	       strncmp(a->path, b->path, (size_t)(end_a - a->path)) == 0 &&
	       (a->bytes.length != b->bytes.length ||
	        memcmp(a->bytes.data, b->bytes.data, a->bytes.length) != 0);
}

/* What is not committed has no copy and no checksum; the end of a journal cannot be told from a
 * write that a kill has cut short; what is in lock files does not matter. */
static bool matters(const struct damage *damage)
{
	const char *path = files[damage->file].path;
	if (strncmp(path, "staging/", 8) == 0)
		return false;
	if (strncmp(path, "state/journal/", 14) == 0)
		return damage->wreck != CUT_LAST && damage->wreck != CUT_HALF &&
		       damage->wreck != LINK;
	return true;
}

static size_t choose(struct damage **ret_damages)
{
	const char *only = getenv("DAMAGE_ONLY");
	size_t count = 0;
	struct damage *damages = calloc(file_count * (WRECKS + file_count), sizeof *damages);
	for (size_t i = 0; i < file_count; i++)
		for (size_t j = 0; j < OTHER + file_count; j++) {
			bool swap = j >= OTHER;
			struct damage damage = {swap ? OTHER : (enum wreck)j, i,
			                        swap ? j - OTHER : i};
			if ((swap && !are_alike(&files[i], &files[j - OTHER])) ||
			    (only && !strstr(files[i].path, only)) || !matters(&damage) ||
			    (j < GROWN && files[i].bytes.length == 0))
				continue;
			damages[count++] = damage;
		}
	*ret_damages = damages;
	return count;
}

static bool is_gone(const struct tally *tally)
{
	return tally->kind == MISSING || tally->kind == DIRECTORY;
}

/* A ref or a log entry that is gone tells nobody that it was there: lists do without. A damaged ref
 * of odd length is left out, too, for it looks like a deleted one's; fsck names it. */
static bool may_lack(const struct tally *tally, const struct items *now, const char *line)
{
	const char *path = files[tally->which].path;
	if (strncmp(path, "store/refs/", 11) == 0)
		return (strstr(line, "\"list\"") && (is_gone(tally) || now->fsck_named)) ||
		       (strstr(line, "\"status\"") && is_gone(tally) && now->fsck_named);
	return strncmp(path, "store/log/", 10) == 0 && strstr(line, "\"audit\"") && is_gone(tally);
}

/* The store's locks are made anew, and its marker is looked at when it is opened. What was in the
 * branch that has uncommitted changes is known; of others nothing is when their ref is gone, and
 * the commits of these are in main, too. */
static bool must_be_named(const struct tally *tally, const struct items *now)
{
	const char *path = files[tally->which].path;
	if (strncmp(path, "store/", 6) != 0 || path[6] == '~')
		return now->failed;
	bool known =
	        strcmp(path, "store/refs/branches/main") == 0 ||
	        (strncmp(path, "store/refs/", 11) != 0 && strncmp(path, "store/log/", 10) != 0);
	return known || !is_gone(tally);
}

static void try_all(void)
{
	struct damage *damages;
	struct items before;
	struct tally *tally = tally_new();
	begin_with(&before);
	size_t count = choose(&damages);
	tally->must_be_named = must_be_named;
	tally->may_lack = may_lack;
	try_damages(wreck, damages, count, &before, tally);
	tell(tally, count);
	items_release(&before);
	munmap(tally, sizeof *tally);
	free(damages);
}

static void test_after_kill(void **state)
{
	try_all();
}

static void test_after_closing(void **state)
{
	restore_all();
	settle_in_child(); /* opens, folds, closes */
	try_all();
}

/* -- refs that are whole, but not the newest -- */

static void put_back(const struct file *file, const char *path, const struct buffer *bytes)
{
	struct file older = *file;
	older.bytes = *bytes;
	snprintf(older.path, sizeof older.path, "%s", path);
	write_file(&older);
}

static void commit_file(struct vfs *vfs, struct lake *lake, uint64_t branch, const char *name)
{
	char request[100];
	snprintf(request, sizeof request,
	         "{\"command\":\"commit\",\"branch\":\"main\",\"message\":\"commit %s\"}", name);
	write_bytes(vfs, branch, name, name, strlen(name), 0);
	ask(lake, request);
}

static void assert_fsck_says(const char *what, bool says)
{
	CLEANUP(buffer_release) struct buffer text = {0};
	struct message message = {{0}};
	struct lake *lake;
	must(lake_open(live, &lake, &message), "open", &message);
	assert_int_equal(run_text(lake, "{\"command\":\"fsck\"}", &text), 0);
	if ((strstr((char *)text.data, what) != NULL) != says)
		fail_msg("%s", (char *)text.data);
	lake_close(lake);
}

/* Nobody can tell an older ref that was put back from one that was never moved, but for what it
 * does not lead to: that is named, and nothing else. */
static void test_older_ref(void **state)
{
	static const struct file file = {.mode = 0644};
	static const char key[] = "store/refs/branches/main";
	CLEANUP(buffer_release) struct buffer older = {0};
	CLEANUP(buffer_release) struct buffer newest = {0};
	const struct vfs_kernel kernel = {0};
	struct message message = {{0}};
	struct lake *lake;
	struct vfs *vfs;
	struct vfs_entry branch;
	char path[200];
	remove_tree(live);
	snprintf(path, sizeof path, "%s/%s", live, key);
	must(lake_init(live, NULL, "test@host", &message), "init", &message);
	must(lake_open(live, &lake, &message), "open", &message);
	must(vfs_new(lake, &kernel, NULL, &vfs), "vfs", NULL);
	must(vfs_lookup(vfs, VFS_ROOT, "main", &branch, &message), "main", &message);
	commit_file(vfs, lake, branch.node, "one");
	must(read_file(AT_FDCWD, path, 1 << 16, &older), path, NULL);
	commit_file(vfs, lake, branch.node, "two");
	commit_file(vfs, lake, branch.node, "three");
	must(read_file(AT_FDCWD, path, 1 << 16, &newest), path, NULL);
	vfs_forget(vfs, branch.node, 1);
	vfs_free(vfs);
	lake_close(lake);
	assert_fsck_says("\"unreached\":[]", true);
	put_back(&file, key, &older);
	assert_fsck_says("\"message\":\"commit three\"", true);
	assert_fsck_says("\"message\":\"commit two\"", false); /* the other leads there */
	assert_int_equal(unlink(path), 0);
	assert_fsck_says("\"message\":\"commit three\"", true);
	put_back(&file, key, &newest);
	assert_fsck_says("\"unreached\":[]", true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_after_kill),
	        cmocka_unit_test(test_after_closing),
	        cmocka_unit_test(test_older_ref),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
