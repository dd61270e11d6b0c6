/*
 * Arbitrary text as a revision expression and as a time, over a small history.
 */
#include <stdio.h>
#include <sys/stat.h>

#include "refs/history.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct history *history;

static void must(int rc)
{
	if (rc < 0)
		abort();
}

static void prepare(void)
{
	static const struct ref_author author = {.who = "ann@host", .command = "commit"};
	static const size_t first_parent[] = {0, 0, 1, 1, 1};
	static const size_t parent_count[] = {0, 1, 1, 1, 3};
	const struct odb_options options = {0};
	struct object_store *store;
	struct packer *packer;
	struct odb *odb;
	struct pointer nodes[5];

	must(object_memory_open(&store));
	must(odb_new(store, &options, &odb));
	must(packer_new(odb, &packer));
	for (size_t i = 0; i < 5; i++) {
		struct commit commit = {.root = {.mode = S_IFDIR | 0755},
		                        .parents = &nodes[first_parent[i]],
		                        .parent_count = parent_count[i],
		                        .author = "ann",
		                        .time_ms = (int64_t)i};

		must(commit_write(odb, packer, &commit, &nodes[i], NULL));
	}
	must(packer_flush(packer, NULL));
	packer_free(packer);
	must(ref_create(store, REF_BRANCH, "main", &nodes[4], &author, NULL));
	must(ref_create(store, REF_TAG, "v1", &nodes[1], &author, NULL));
	must(ref_create(store, REF_BRANCH, "abcdef", &nodes[2], &author, NULL));
	must(history_new(odb, NULL, &history));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CLEANUP(free_pointer) char *text = calloc(1, size + 1);
	CLEANUP(free_pointer) struct commit *commit = NULL;
	struct message message = {0};
	int64_t ms;

	if (!history)
		prepare();
	if (!text)
		return 0;
	if (size > 0)
		memcpy(text, data, size);
	if (revision_resolve(history, text, &commit, &message) < 0 && message.text[0] == '\0')
		abort(); /* every refusal says why */
	if (time_parse(text, &ms) == 0) {
		int64_t again;
		char formatted[32];

		time_format(ms, formatted);
		if (formatted[0] != '-' && formatted[4] == '-' &&
		    (time_parse(formatted, &again) < 0 ? ms > 0 : again != ms))
			abort();
	}
	return 0;
}
