/*
 * command_gc — removes packs that nothing needs any more, in two runs a grace period apart
 * (store/condemned.h says why).
 */
#include <uthash.h>

#include "fs/commands/command_internal.h"
#include "fs/reach.h"
#include "store/condemned.h"

#define GRACE_SECONDS_DEFAULT (24 * 60 * 60)
/* Other hosts look at the list every 10 minutes, and their commits take a while. */
#define GRACE_SECONDS_MIN 3600
#define DELETED_DAYS_DEFAULT 30
#define DAY_MS ((int64_t)24 * 60 * 60 * 1000)
#define REMOVE_AT_ONCE 1000 /* in a request, on S3 */
#define WALKS_MAX 5

struct stored_pack {
	uint8_t id[PACK_ID_BYTES];
	uint64_t bytes;
	bool live;
	UT_hash_handle hh;
};
struct collection {
	struct command *command;
	struct stored_pack *packs;
	struct condemned_list before; /* as found */
	struct condemned_list after;  /* what stays listed */
	int64_t now_ms;               /* of the store's clock, once everything is marked */
	int64_t grace_ms;
	uint64_t live, live_bytes, condemned_bytes, removed, removed_bytes;
};

static void collection_release(struct collection *collection)
{
	struct stored_pack *pack, *next;
	HASH_ITER (hh, collection->packs, pack, next) {
		HASH_DEL(collection->packs, pack);
		free(pack);
	}
	condemned_release(&collection->before);
	condemned_release(&collection->after);
}

/* -- marking -- */

static int note_pack(void *context, const uint8_t id[PACK_ID_BYTES], uint64_t bytes,
                     int64_t modified_ms)
{
	struct collection *collection = context;
	struct stored_pack *pack = calloc(1, sizeof *pack);
	if (!pack)
		return -ERR_NO_MEMORY;
	memcpy(pack->id, id, PACK_ID_BYTES);
	pack->bytes = bytes;
	HASH_ADD(hh, collection->packs, id, PACK_ID_BYTES, pack);
	if (!pack->hh.tbl) {
		free(pack);
		return -ERR_NO_MEMORY;
	}
	return 0;
}

static int mark(void *context, enum record_kind kind, const struct pointer *pointer)
{
	struct collection *collection = context;
	struct stored_pack *pack;
	HASH_FIND(hh, collection->packs, pointer->place.pack, PACK_ID_BYTES, pack);
	if (pack)
		pack->live = true;
	return 0; /* a pack that is missing is fsck's to tell */
}

/* What cannot be read might have led on to anything: then nothing may be removed. */
static int refuse_damage(void *context, const char *where, int error, const struct message *message)
{
	struct collection *collection = context;
	return fail(collection->command->message, -ERR_CORRUPT,
	            "nothing was removed, because %s cannot be read (%s); see `lakectl fsck`",
	            where, message->text[0] ? message->text : error_text(error));
}

static int hash_ref(void *context, const struct ref *ref)
{
	sha256_update(context, ref->name, sizeof ref->name);
	sha256_update(context, &ref->commit.id, sizeof ref->commit.id);
	return 0;
}

/* All refs in one value, to notice that one moved while trees were walked. */
static int refs_state(struct command *command, struct id *ret_state)
{
	struct sha256 *hash = NULL;
	int error = sha256_new(&hash);
	for (enum ref_kind kind = REF_BRANCH; !error && kind <= REF_TAG; kind++)
		error = ref_list(command->lake->store, kind, true, hash_ref, hash,
		                 command->message);
	if (!error)
		sha256_final(hash, ret_state);
	sha256_free(hash);
	return error;
}

static int mark_all(struct collection *collection)
{
	struct command *command = collection->command;
	struct reach_visitor visitor = {.context = collection,
	                                .record = mark,
	                                .damaged = refuse_damage,
	                                .progress = &command->output->progress};
	struct reach_counts counts;
	struct id before, after;
	int error = refs_state(command, &before);
	for (int walk = 0; !error && walk < WALKS_MAX; walk++) {
		error = reach_walk(command->lake, &visitor, &counts, command->message);
		if (!error)
			error = refs_state(command, &after);
		if (!error && id_equal(&before, &after))
			return 0;
		before = after;
	}
	return error ? error
	             : fail(command->message, -ERR_BUSY,
	                    "branches move all the time; nothing was removed, try again later");
}

/* -- sweeping -- */

static bool expired(const struct collection *collection, const struct stored_pack *pack)
{
	const struct condemned *listed = condemned_find(&collection->before, pack->id);
	return listed && collection->now_ms - listed->since_ms >= collection->grace_ms;
}

/* Sorts packs into live, condemned (old and new) and expired. */
static int judge(struct collection *collection)
{
	struct stored_pack *pack, *next;
	collection->after.items =
	        calloc(HASH_COUNT(collection->packs) + 1, sizeof *collection->after.items);
	if (!collection->after.items)
		return -ERR_NO_MEMORY;
	collection->after.etag = collection->before.etag;
	HASH_ITER (hh, collection->packs, pack, next) {
		if (pack->live) {
			collection->live++;
			collection->live_bytes += pack->bytes;
			continue;
		}
		if (expired(collection, pack)) {
			collection->removed++;
			collection->removed_bytes += pack->bytes;
			continue;
		}
		const struct condemned *listed = condemned_find(&collection->before, pack->id);
		struct condemned *item = &collection->after.items[collection->after.count++];
		memcpy(item->pack, pack->id, PACK_ID_BYTES);
		item->since_ms = listed ? listed->since_ms : collection->now_ms;
		collection->condemned_bytes += pack->bytes;
	}
	return 0;
}

struct removal {
	uint8_t packs[REMOVE_AT_ONCE][PACK_ID_BYTES];
	size_t count;
	uint64_t done;
};

static int remove_some(struct collection *collection, struct removal *removal)
{
	struct command *command = collection->command;
	int error = odb_packs_remove(command->lake->odb,
	                             (const uint8_t(*)[PACK_ID_BYTES])removal->packs,
	                             removal->count, command->message);
	removal->done += removal->count;
	removal->count = 0;
	if (!error && progress_report(&command->output->progress, "Removing", removal->done,
	                              collection->removed, "packs"))
		error = -ERR_INTERRUPTED;
	return error;
}

static int sweep(struct collection *collection)
{
	struct command *command = collection->command;
	struct stored_pack *pack, *next;
	struct removal removal = {.count = 0};
	int error = 0;
	/* Nothing listed before or now: leave the store as it is. */
	if (collection->before.count || collection->after.count)
		error = condemned_write(command->lake->store, &collection->after, command->message);
	if (error == -ERR_MOVED)
		return fail(command->message, -ERR_BUSY,
		            "another gc of this lake is running; try again when it has ended");
	HASH_ITER (hh, collection->packs, pack, next) {
		if (error || pack->live || !expired(collection, pack))
			continue;
		memcpy(removal.packs[removal.count++], pack->id, PACK_ID_BYTES);
		if (removal.count == REMOVE_AT_ONCE)
			error = remove_some(collection, &removal);
	}
	return error || !removal.count ? error : remove_some(collection, &removal);
}

/* Deleted branches and tags keep what they need only so long. */
static int forget_deleted(struct command *command, int64_t now_ms)
{
	double days = argument_number(command, "deleted_days", DELETED_DAYS_DEFAULT);
	uint64_t count = 0, forgotten = 0;
	int error = 0;
	for (enum ref_kind kind = REF_BRANCH; !error && kind <= REF_TAG; kind++) {
		error = ref_purge(command->lake->store, kind, now_ms - (int64_t)days * DAY_MS,
		                  &count, command->message);
		forgotten += count;
	}
	if (!error)
		cJSON_AddNumberToObject(command->reply, "forgotten_refs", (double)forgotten);
	return error;
}

static int argument_grace(struct command *command, int64_t *ret_grace_ms)
{
	double seconds = argument_number(command, "grace_seconds", GRACE_SECONDS_DEFAULT);
	if (seconds < GRACE_SECONDS_MIN && !argument_flag(command, "alone"))
		return fail(command->message, -ERR_REFUSED,
		            "a grace period below %d s is safe only while no other host and no "
		            "commit uses the lake: say so with --alone",
		            GRACE_SECONDS_MIN);
	*ret_grace_ms = (int64_t)(seconds * 1000);
	return 0;
}

int command_gc(struct command *command)
{
	CLEANUP(collection_release)
	struct collection collection = {
	        .command = command,
	};
	bool dry_run = argument_flag(command, "dry_run");
	int error = argument_grace(command, &collection.grace_ms);
	if (!error && !dry_run)
		error = forget_deleted(command, clock_wall_ms());
	if (!error)
		error = condemned_read(command->lake->store, &collection.before, command->message);
	if (!error)
		error = odb_pack_list(command->lake->odb, note_pack, &collection, command->message);
	if (!error)
		error = mark_all(&collection);
	/* Marking may take hours; the grace starts when others can see the list. */
	collection.now_ms = clock_wall_ms();
	if (!error && !dry_run)
		error = condemned_clock(command->lake->store, &collection.now_ms, command->message);
	if (!error)
		error = judge(&collection);
	if (!error && !dry_run)
		error = sweep(&collection);
	if (error < 0)
		return error;
	cJSON_AddNumberToObject(command->reply, "live_packs", (double)collection.live);
	cJSON_AddNumberToObject(command->reply, "live_bytes", (double)collection.live_bytes);
	cJSON_AddNumberToObject(command->reply, "condemned_packs", (double)collection.after.count);
	cJSON_AddNumberToObject(command->reply, "condemned_bytes",
	                        (double)collection.condemned_bytes);
	cJSON_AddNumberToObject(command->reply, "removed_packs", (double)collection.removed);
	cJSON_AddNumberToObject(command->reply, "removed_bytes", (double)collection.removed_bytes);
	cJSON_AddBoolToObject(command->reply, "dry_run", dry_run);
	return 0;
}
