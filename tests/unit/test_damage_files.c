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
static const char *const words[WRECKS] = {
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

static size_t wreck(const void *context, size_t number, char ret_what[300])
{
	const struct damage *damage = (const struct damage *)context + number;
	const struct file *file = &files[damage->file], *other = &files[damage->other];
	size_t length = file->bytes.length;
	char path[300];
	snprintf(path, sizeof path, "%s/%s", live, file->path);
	snprintf(ret_what, 300, "%.140s: %s %.140s", file->path, words[damage->wreck],
	         damage->wreck == OTHER ? other->path : "");
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

/* Its locks are made anew, and its marker is looked at when the store is opened. */
static bool is_object(const struct file *file)
{
	return strncmp(file->path, "store/", 6) == 0 && file->path[6] != '~';
}

static void try_all(void)
{
	struct damage *damages;
	struct items before;
	struct tally *tally = tally_new();
	begin_with(&before);
	size_t count = choose(&damages);
	tally->must_be_named = is_object;
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

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_after_kill),
	        cmocka_unit_test(test_after_closing),
	};
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
