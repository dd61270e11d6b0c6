/*
 * ref_list.c — hides how refs are listed: which bodies must be read, and how many at once.
 */
#include "refs/ref_internal.h"

#include <stdatomic.h>

#include "refs/known.h"
#include "store/thread.h"

/* Names and etags are collected first, so that callbacks run outside the store's listing: (u8 name
 * length, name, u8 etag length, etag)*. */
struct collected {
	enum ref_kind kind;
	bool tombstones; /* collect these, else the live ones */
	struct buffer refs;
};

static int collect_ref(void *context, const struct object_info *info)
{
	struct collected *collected = context;
	const char *name = info->key + strlen(ref_kind_prefix(collected->kind));
	size_t etag_length = strlen(info->etag.text);

	/* A length tells (see ref_body.c). What is not a ref's name is somebody else's file. */
	if ((info->size % 2 == 1) != collected->tombstones || !ref_name_is_valid(name))
		return 0;
	buffer_u8(&collected->refs, (uint8_t)strlen(name));
	buffer_append(&collected->refs, name, strlen(name));
	buffer_u8(&collected->refs, (uint8_t)etag_length);
	buffer_append(&collected->refs, info->etag.text, etag_length);
	return 0;
}

static void next_collected(struct reader *reader, struct ref *ret_ref)
{
	size_t name_length = read_u8(reader);
	const uint8_t *name = read_bytes(reader, name_length);
	size_t etag_length = read_u8(reader);
	const uint8_t *etag = read_bytes(reader, etag_length);

	memcpy(ret_ref->name, name, name_length);
	if (etag_length > 0)
		memcpy(ret_ref->etag.text, etag, etag_length);
}

/* Bodies are read LOAD_WINDOW at a time, by some threads when many are not known. */
#define LOAD_WINDOW 256
#define LOAD_THREADS_MAX 16
#define LOADS_PER_THREAD 4

struct load {
	struct ref listed;
	struct ref body;
	int rc; /* 1: not read yet */
	struct message message;
};
struct loads {
	struct object_store *store;
	struct load *items;
	size_t count;
	atomic_size_t next;
};

static void loads_release(struct loads *loads)
{
	for (size_t i = 0; i < loads->count; i++)
		ref_release(&loads->items[i].body);
	free(loads->items);
}

static void *load_some(void *context)
{
	struct loads *loads = context;
	size_t at;

	while ((at = atomic_fetch_add(&loads->next, 1)) < loads->count) {
		struct load *load = &loads->items[at];

		if (load->rc > 0)
			load->rc = ref_load(loads->store, load->listed.kind, load->listed.name,
			                    &load->body, &load->message);
	}
	return NULL;
}

/* True when the body with the etag that was listed is known. */
static bool load_known(struct object_store *store, struct load *load)
{
	CLEANUP(buffer_release) struct buffer body = {.limit = REF_BODY_MAX + 1};
	const struct ref *listed = &load->listed;
	char key[REF_KEY_BYTES];

	ref_key(listed->kind, listed->name, key);
	if (known_ref_exact(store, key, &listed->etag, &body) < 0)
		return false;
	load->rc = ref_body_decode(listed->kind, listed->name, &body, &listed->etag, &load->body,
	                           &load->message);
	return true;
}

/* The next window's. */
static void load_bodies(struct loads *loads)
{
	size_t unknown = 0, helpers;

	for (size_t i = 0; i < loads->count; i++)
		unknown += !load_known(loads->store, &loads->items[i]);
	atomic_store(&loads->next, 0);
	helpers = unknown ? (unknown - 1) / LOADS_PER_THREAD : 0;
	run_together(helpers < LOAD_THREADS_MAX ? helpers : LOAD_THREADS_MAX, load_some, loads);
}

static int tell_body(const struct collected *collected, struct load *load, ref_fn *callback,
                     void *context, struct message *message)
{
	if (load->rc == -ERR_NOT_FOUND)
		return 0; /* gone since it was listed */
	if (load->rc < 0)
		return fail(message, load->rc, "%s", load->message.text);
	if (pointer_is_none(&load->body.commit) != collected->tombstones)
		return 0; /* deleted, or restored, since */
	if (collected->tombstones)
		load->body.commit = load->body.moves[0].before;
	return callback(context, &load->body);
}

/* One body that cannot be understood hides no other: its error comes last. */
struct damage {
	int rc; /* of the first */
	struct message message;
};

static int list_window(struct object_store *store, const struct collected *collected,
                       struct reader *reader, ref_fn *callback, void *context,
                       struct damage *damage, struct message *message)
{
	CLEANUP(loads_release) struct loads loads = {.store = store};
	int rc = 0;

	loads.items = calloc(LOAD_WINDOW, sizeof(*loads.items));
	if (!loads.items)
		return fail(message, -ERR_NO_MEMORY, "cannot list refs: out of memory");
	for (; loads.count < LOAD_WINDOW && reader_left(reader) > 0; loads.count++) {
		struct load *load = &loads.items[loads.count];

		load->listed.kind = collected->kind;
		load->rc = 1;
		next_collected(reader, &load->listed);
	}
	load_bodies(&loads);
	for (size_t i = 0; rc == 0 && i < loads.count; i++) {
		const struct load *load = &loads.items[i];

		if (load->rc != -ERR_CORRUPT && load->rc != -ERR_VERSION)
			rc = tell_body(collected, &loads.items[i], callback, context, message);
		else if (damage->rc == 0)
			*damage = (struct damage){load->rc, load->message};
	}
	return rc;
}

static int list_refs(struct object_store *store, struct collected *collected, bool bodies,
                     ref_fn *callback, void *context, struct message *message)
{
	int rc = object_list(store, ref_kind_prefix(collected->kind), collect_ref, collected,
	                     message);

	if (rc < 0)
		return rc;
	rc = buffer_check(&collected->refs);
	if (rc < 0)
		return fail(message, rc, "cannot list refs: %s", error_text(rc));
	struct reader reader = reader_of(collected->refs.data, collected->refs.length);
	struct damage damage = {0};
	while (rc == 0 && reader_left(&reader) > 0) {
		CLEANUP(ref_release) struct ref ref = {.kind = collected->kind};

		if (bodies) {
			rc = list_window(store, collected, &reader, callback, context, &damage,
			                 message);
			continue;
		}
		next_collected(&reader, &ref);
		rc = callback(context, &ref);
	}
	return rc || damage.rc == 0 ? rc : fail(message, damage.rc, "%s", damage.message.text);
}

int ref_list(struct object_store *store, enum ref_kind kind, bool bodies, ref_fn *callback,
             void *context, struct message *message)
{
	struct collected collected = {.kind = kind};
	int rc = list_refs(store, &collected, bodies, callback, context, message);

	buffer_release(&collected.refs);
	return rc;
}

int ref_list_deleted(struct object_store *store, enum ref_kind kind, ref_fn *callback,
                     void *context, struct message *message)
{
	struct collected collected = {.kind = kind, .tombstones = true};
	int rc = list_refs(store, &collected, true, callback, context, message);

	buffer_release(&collected.refs);
	return rc;
}

/* -- purging -- */

struct purge {
	struct object_store *store;
	int64_t deleted_before_ms;
	uint64_t count;
	struct message *message;
};

static int purge_one(void *context, const struct ref *ref)
{
	struct purge *purge = context;
	char key[REF_KEY_BYTES];

	/* A protected name must not become free by waiting. */
	if (ref->moves[0].time_ms >= purge->deleted_before_ms || protection_any(&ref->protection))
		return 0;
	ref_key(ref->kind, ref->name, key);
	int rc = object_remove(purge->store, key, purge->message);
	if (rc == 0)
		purge->count++;
	return rc;
}

int ref_purge(struct object_store *store, enum ref_kind kind, int64_t deleted_before_ms,
              uint64_t *ret_count, struct message *message)
{
	struct purge purge = {
	        .store = store, .deleted_before_ms = deleted_before_ms, .message = message};
	int rc = ref_list_deleted(store, kind, purge_one, &purge, message);

	if (rc == 0 && ret_count)
		*ret_count = purge.count;
	return rc;
}
