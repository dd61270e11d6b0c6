/*
 * Keys that nobody of ours made, and bytes below them, in every place of a store that is listed:
 * what is told has a name that could be ours, and no listing fails for a stranger's file. The input
 * is objects: u8 place, u8 length of the name, u8 length of the content, name, content.
 */
#include <stdlib.h>

#include "fs/json.h"
#include "fs/publish/verdict.h"
#include "refs/ref.h"
#include "store/condemned.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const places[] = {"packs/",  "refs/branches/",  "refs/tags/", "refs/", "log/",
                                     "audits/", "log/2026-01-02/", "gc/",        ""};

static void check(bool holds)
{
	if (!holds)
		abort();
}

static void put_all(struct object_store *store, const uint8_t *data, size_t size)
{
	for (size_t at = 0; at + 3 <= size;) {
		const char *place = places[data[at] % ARRAY_SIZE(places)];
		size_t name_length = data[at + 1], length = data[at + 2];
		char key[600];
		at += 3;
		if (name_length > size - at)
			return;
		strcpy(key, place);
		memcpy(key + strlen(place), data + at, name_length);
		key[strlen(place) + name_length] = '\0';
		at += name_length;
		length = length > size - at ? size - at : length;
		if (object_key_valid(key))
			(void)object_put(store, key, data + at, length, NULL);
		at += length;
	}
}

static int see_ref(void *context, const struct ref *ref)
{
	check(ref_name_check(ref->name, NULL) == 0);
	++*(size_t *)context;
	return 0;
}

static int see_pack(void *context, const uint8_t pack[PACK_ID_BYTES], uint64_t bytes,
                    int64_t modified_ms)
{
	struct odb *odb = context;
	uint64_t records = 0;
	check(odb_pack_verify(odb, pack, NULL, NULL, &records, NULL) <= 0);
	return 0;
}

static int see_entry(void *context, const cJSON *entry)
{
	check(cJSON_IsObject(entry));
	return 0;
}

static int see_damage(void *context, const char *key, const char *why)
{
	check(object_key_valid(key) && why[0]);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const enum ref_kind kinds[] = {REF_BRANCH, REF_TAG};
	const struct odb_options options = {0};
	struct object_store *store;
	struct odb *odb;
	struct message message = {{0}};
	size_t refs = 0, deleted = 0;
	check(object_memory_open(&store) == 0 && odb_new(store, &options, &odb) == 0);
	put_all(store, data, size);
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		check(ref_list(store, kinds[i], false, see_ref, &refs, &message) == 0);
		int error = ref_list(store, kinds[i], true, see_ref, &refs, &message);
		check(error == 0 || message.text[0]);
		(void)ref_list_deleted(store, kinds[i], see_ref, &deleted, &message);
		(void)ref_purge(store, kinds[i], INT64_MAX, NULL, &message);
	}
	check(odb_pack_list(odb, see_pack, odb, &message) == 0);
	check(audit_log_list(store, 0, NULL, 10, see_entry, NULL, &message) == 0);
	check(records_verify(store, see_damage, NULL, &message) == 0);
	odb_free(odb);
	object_store_free(store);
	return 0;
}
