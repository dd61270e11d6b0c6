/*
 * One bit of one byte of any file of a small lake is another, stored or local: nothing else is ever
 * shown than before, except an error; nothing crashes or hangs. What is stored is also named by
 * fsck. DAMAGE_FULL=1 tries every byte instead of a sample (DAMAGE_PART=k/n: each n-th of them from
 * the k-th on, so that several can run at once), DAMAGE_SEED chooses bits, DAMAGE_ONLY restricts to
 * files whose name has that in it, DAMAGE_VERBOSE tells of each byte that did not matter.
 */
#include "damage_world.h"

#define SAMPLE 1600
#define JOURNAL_HEADER 64
#define BATCH_HEADER 24

struct spot {
	size_t file, offset;
	uint8_t mask;
};

static size_t flip_bit(const void *context, size_t number, struct tally *tally)
{
	const struct spot *place = (const struct spot *)context + number;
	struct file *file = &files[place->file];
	file->bytes.data[place->offset] ^= place->mask;
	write_file(file);
	file->bytes.data[place->offset] ^= place->mask;
	snprintf(tally->what, sizeof tally->what, "%s byte %zu bit %02x", file->path, place->offset,
	         place->mask);
	return place->file;
}

/* What is not committed has no copy and no checksum, as on any disk. */
static bool is_unchecked(const char *path)
{
	return strncmp(path, "staging/", 8) == 0;
}

/* Nor can the last batch of a journal be told from one that was never finished: damaged, it takes
 * back the last operation before a kill. */
static size_t checked_length(const struct file *file)
{
	size_t at = JOURNAL_HEADER, last = file->bytes.length;
	if (!strstr(file->path, "state/journal/"))
		return file->bytes.length;
	while (at + BATCH_HEADER <= file->bytes.length) {
		last = at;
		at += BATCH_HEADER + load_u32(file->bytes.data + at + 8);
	}
	return last;
}

static size_t choose(struct spot **ret_places)
{
	const char *full = getenv("DAMAGE_FULL"), *only = getenv("DAMAGE_ONLY");
	const char *seed_text = getenv("DAMAGE_SEED");
	unsigned seed = seed_text ? (unsigned)atoi(seed_text) : (unsigned)getpid();
	unsigned part = 1, parts = 1;
	if (getenv("DAMAGE_PART") && sscanf(getenv("DAMAGE_PART"), "%u/%u", &part, &parts) != 2)
		fail_msg("DAMAGE_PART is k/n");
	size_t total = 0, count = 0, seen = 0;
	for (size_t i = 0; i < file_count; i++)
		total += files[i].bytes.length;
	struct spot *places = calloc(total + 1, sizeof *places);
	for (size_t i = 0; i < file_count; i++) {
		size_t length = checked_length(&files[i]);
		if (only ? !strstr(files[i].path, only) : is_unchecked(files[i].path))
			continue;
		/* Of each file as many, so that small ones are seen; the sample's are spread. */
		size_t wanted = full ? length : SAMPLE / 2 / file_count + 1;
		for (size_t j = 0; j < length && j < wanted; j++, seen++) {
			uint8_t mask = (uint8_t)(1u << rand_r(&seed) % 8);
			if (seen % parts + 1 != part)
				continue;
			places[count++] = (struct spot){
			        .file = i,
			        .offset = full ? j
			                       : (j * length + (unsigned)rand_r(&seed) % length) /
			                                  wanted,
			        .mask = mask};
		}
	}
	print_message("seed %u: %zu of %zu bytes in %zu files\n", seed, count, total, file_count);
	*ret_places = places;
	return count;
}

static void try_all(void)
{
	struct spot *places;
	struct items before;
	struct tally *tally = tally_new();
	begin_with(&before);
	size_t count = choose(&places);
	try_damages(flip_bit, places, count, &before, tally);
	tell(tally, count);
	items_release(&before);
	munmap(tally, sizeof *tally);
	free(places);
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
