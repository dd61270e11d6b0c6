/*
 * Protection: what it lets through, how it lies in a body, and that no write of a ref gets past it,
 * on this host or on one that has not heard of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include "refs/known.h"
#include "refs/ref.h"

#include <cmocka.h> /* last: its macro fail() hides the function of that name */

/* -- two hosts: `mine` notes what it sees (refs/known.h), `other` does not -- */

static struct {
	struct object_ops spied;
	void (*before_put)(void); /* once */
	bool lose_answer;         /* of the next put, which is done */
	bool drop;                /* the next put is not done */
	bool away;                /* for reads */
	unsigned gets, puts;
} spy;
static struct object_store *mine, *other;

static int spy_get(struct object_store *store, const char *key, uint64_t offset, uint64_t length,
                   struct buffer *bytes, struct etag *etag, struct message *message)
{
	spy.gets++;
	if (spy.away)
		return (fail)(message, -ERR_STORE_AWAY, "away");
	return object_get(other, key, offset, length, bytes, etag, message);
}

static int spy_put_if_match(struct object_store *store, const char *key, const void *bytes,
                            size_t length, const struct etag *expected, struct etag *etag,
                            struct message *message)
{
	void (*before)(void) = spy.before_put;
	bool drop = spy.drop, lose = spy.lose_answer;
	int rc = 0;
	spy.puts++;
	spy.before_put = NULL;
	spy.drop = spy.lose_answer = false;
	if (before)
		before();
	if (!drop)
		rc = object_put_if_match(other, key, bytes, length, expected, etag, message);
	return drop || lose ? (fail)(message, -ERR_STORE_AWAY, "no answer") : rc;
}

static int spy_put_if_absent(struct object_store *store, const char *key, const void *bytes,
                             size_t length, struct etag *etag, struct message *message)
{
	spy.puts++;
	return object_put_if_absent(other, key, bytes, length, etag, message);
}

static int spy_list(struct object_store *store, const char *prefix, object_list_fn *callback,
                    void *context, struct message *message)
{
	return object_list(other, prefix, callback, context, message);
}

static int spy_remove(struct object_store *store, const char *key, struct message *message)
{
	return object_remove(other, key, message);
}

static int setup(void **state)
{
	memset(&spy, 0, sizeof(spy));
	assert_int_equal(object_memory_open(&other), 0);
	assert_int_equal(object_memory_open(&mine), 0);
	spy.spied = *mine->ops;
	spy.spied.get = spy_get;
	spy.spied.put_if_match = spy_put_if_match;
	spy.spied.put_if_absent = spy_put_if_absent;
	spy.spied.list = spy_list;
	spy.spied.remove = spy_remove;
	spy.spied.get_if_changed = NULL;
	mine->ops = &spy.spied;
	return known_refs_attach(mine, 60000);
}

static int teardown(void **state)
{
	object_store_free(mine);
	object_store_free(other);
	return 0;
}

/* -- helpers -- */

static bool in_group(void *context, const char *group)
{
	return strcmp(context, group) == 0;
}

static struct id id_of(uint8_t byte)
{
	struct id id;
	memset(&id, byte, sizeof(id));
	return id;
}

static struct pointer commit_number(uint8_t number)
{
	return (struct pointer){.id = id_of(number),
	                        .place = {.offset = 64, .stored = 100, .raw = 100}};
}

static const struct protection free_for_all;
static const struct protection no_writes = {.flags = PROTECT_DIRECT_WRITES};
static const struct protection audited = {.flags = PROTECT_AUDITS, .rules = {{7}}};
static const struct protection published = {.publishers = "data"};

static const struct ref_rights merged = {.merged = true};
static char data_group[] = "data", root_group[] = "root";
static const struct ref_rights member = {.member = in_group, .context = data_group};
static const struct ref_rights stranger = {.member = in_group, .context = root_group};
static const struct ref_author ann = {.who = "ann@host", .command = "commit"};

static struct ref_author with(const struct ref_rights *rights)
{
	struct ref_author author = ann;
	author.rights = rights;
	return author;
}

static struct ref read_from(struct object_store *store, const char *name)
{
	struct ref ref = {0};
	assert_int_equal(ref_read(store, REF_BRANCH, name, &ref, NULL), 0);
	return ref;
}

static void create(const char *name, uint8_t number)
{
	const struct pointer commit = commit_number(number);
	assert_int_equal(ref_create(mine, REF_BRANCH, name, &commit, &ann, NULL), 0);
}

static void protect_from(struct object_store *store, const char *name,
                         const struct protection *protection)
{
	struct ref ref = read_from(store, name);
	assert_int_equal(ref_protect(store, &ref, protection, NULL), 0);
	assert_true(protection_equal(&ref.protection, protection));
	ref_release(&ref);
}

static int move_from(struct object_store *store, const char *name, uint8_t number,
                     const struct ref_rights *rights)
{
	const struct pointer commit = commit_number(number);
	const struct ref_author author = with(rights);
	struct ref ref = read_from(store, name);
	int rc = ref_move(store, &ref, &commit, &author, NULL);
	ref_release(&ref);
	return rc;
}

static void assert_stands(const char *name, uint8_t number)
{
	const struct pointer commit = commit_number(number);
	struct ref ref = read_from(other, name);
	assert_true(id_equal(&ref.commit.id, &commit.id));
	ref_release(&ref);
}

static void assert_absent(const char *name)
{
	struct ref ref;
	assert_int_equal(ref_read(other, REF_BRANCH, name, &ref, NULL), -ERR_NOT_FOUND);
}

static void body_of(const char *name, struct buffer *ret_body)
{
	char key[200];
	snprintf(key, sizeof(key), "refs/branches/%s", name);
	assert_int_equal(object_get(other, key, 0, UINT64_MAX, ret_body, NULL, NULL), 0);
}

/* -- what it lets through -- */

static void lets_through_what_it_says(void **state)
{
	const struct id seven = audited.rules;
	const struct ref_rights passed = {.audited = true, .rules = seven};
	const struct ref_rights passed_others = {.audited = true, .rules = id_of(9)};
	const struct ref_rights merged_passed = {.merged = true, .audited = true, .rules = seven};
	const struct ref_rights unknown_group = {.merged = true};
	const struct protection only_rules = {.rules = seven};
	const struct protection no_audits = {.flags = PROTECT_AUDITS};
	const struct protection all = {.flags = PROTECT_ALL, .publishers = "data", .rules = seven};
	const struct ref_rights everything = {.merged = true,
	                                      .audited = true,
	                                      .rules = seven,
	                                      .member = in_group,
	                                      .context = data_group};
	const struct ref_rights elsewhere = {.merged = true,
	                                     .audited = true,
	                                     .rules = seven,
	                                     .member = in_group,
	                                     .context = root_group};
	const struct {
		const struct protection *protection;
		const struct ref_rights *rights;
		const char *says; /* NULL: lets it through */
	} table[] = {
	        {&free_for_all, NULL, NULL},
	        {&free_for_all, &stranger, NULL},
	        {&only_rules, NULL, NULL},
	        {&no_writes, NULL, "no direct writes"},
	        {&no_writes, &passed, "`lakectl publish NAME --into main`"},
	        {&no_writes, &member, "no direct writes"},
	        {&no_writes, &merged, NULL},
	        {&audited, NULL, "needs its audits passed"},
	        {&audited, &merged, "needs its audits passed"},
	        {&audited, &passed, NULL},
	        {&audited, &passed_others, "audits were changed"},
	        {&no_audits, &passed, "no audits are configured"},
	        {&no_audits, &merged_passed, "no audits are configured"},
	        {&no_audits, NULL, "no audits are configured"},
	        {&published, NULL, "only members of the group 'data'"},
	        {&published, &unknown_group, "only members of the group 'data'"},
	        {&published, &stranger, "only members of the group 'data'"},
	        {&published, &member, NULL},
	        {&all, &merged_passed, "only members"},
	        {&all, &elsewhere, "only members"},
	        {&all, &member, "no direct writes"},
	        {&all, &everything, NULL},
	};
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct message message = {0};
		int rc = protection_check(table[i].protection, "main", table[i].rights, &message);
		assert_int_equal(rc, table[i].says ? -ERR_REFUSED : 0);
		if (table[i].says && !strstr(message.text, table[i].says))
			fail_msg("%zu: %s", i, message.text);
		assert_true(table[i].says || !message.text[0]);
	}
	/* The end of a name is no merge. */
	assert_int_equal(protection_check_name(&all, "main", &everything, NULL), -ERR_REFUSED);
	assert_int_equal(protection_check_name(&audited, "main", &passed, NULL), -ERR_REFUSED);
	assert_int_equal(protection_check_name(&no_writes, "main", &merged, NULL), -ERR_REFUSED);
	assert_int_equal(protection_check_name(&published, "main", &stranger, NULL), -ERR_REFUSED);
	assert_int_equal(protection_check_name(&published, "main", &member, NULL), 0);
	assert_int_equal(protection_check_name(&only_rules, "main", NULL, NULL), 0);
	assert_false(protection_read_only(&published) || protection_read_only(&only_rules));
	assert_true(protection_read_only(&no_writes) && protection_read_only(&audited));
	assert_true(protection_any(&only_rules) && !protection_binds(&only_rules));
	assert_false(protection_any(&free_for_all) || protection_equal(&no_writes, &audited));
}

/* -- bodies -- */

static struct ref example(struct ref_move moves[1])
{
	static char who[] = "ann@host", command[] = "commit";
	moves[0] = (struct ref_move){
	        .after = commit_number(1), .time_ms = 1000, .who = who, .command = command};
	memset(moves[0].nonce, 5, REF_NONCE_BYTES);
	return (struct ref){.kind = REF_BRANCH,
	                    .name = "main",
	                    .commit = moves[0].after,
	                    .moves = moves,
	                    .move_count = 1};
}

static void reseal(struct buffer *body)
{
	struct id seal;
	sha256_of(body->data, body->length - ID_BYTES, &seal);
	memcpy(body->data + body->length - ID_BYTES, &seal, ID_BYTES);
}

/* Programs that know nothing of protection read these, and wrote them. */
static void unprotected_bodies_are_as_they_were(void **state)
{
	CLEANUP(buffer_release) struct buffer body = {0};
	struct ref_move moves[1];
	const struct ref ref = example(moves);
	char seal[ID_HEX + 1];
	struct id id;

	assert_int_equal(ref_encode(&ref, &body), 0);
	assert_int_equal(body.length, 184);
	assert_memory_equal(body.data, "LREF\1\1\1\4main\5\5\5\5", 16);
	memcpy(&id, body.data + body.length - ID_BYTES, ID_BYTES);
	id_to_hex(&id, seal);
	assert_string_equal(seal,
	                    "4af51066547bcbc196c59854353a878c8bb37756b9323b0f601b2f4d8607ec4e");
}

static void decodes_what_it_encodes(void **state)
{
	struct protection longest = {.flags = PROTECT_ALL, .rules = id_of(3)};
	const struct protection only_rules = {.rules = id_of(3)};
	const struct protection *const all[] = {&no_writes, &audited, &published, &only_rules,
	                                        &longest};
	memset(longest.publishers, 'g', PUBLISHERS_MAX);
	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		CLEANUP(buffer_release) struct buffer body = {0}, again = {0};
		CLEANUP(ref_release) struct ref decoded = {0};
		struct ref_move moves[1];
		struct ref ref = example(moves);
		struct ref none;

		ref.protection = *all[i];
		assert_int_equal(ref_encode(&ref, &body), 0);
		assert_int_equal(body.data[4], 2);
		assert_int_equal(body.length % 2, 0);
		assert_int_equal(ref_decode(REF_BRANCH, "main", body.data, body.length, &decoded),
		                 0);
		assert_true(protection_equal(&decoded.protection, all[i]));
		assert_int_equal(ref_encode(&decoded, &again), 0);
		assert_int_equal(again.length, body.length);
		assert_memory_equal(again.data, body.data, body.length);
		for (size_t byte = 0; byte < body.length; byte++) {
			body.data[byte] ^= 0x10;
			assert_int_equal(
			        ref_decode(REF_BRANCH, "main", body.data, body.length, &none),
			        -ERR_CORRUPT);
			body.data[byte] ^= 0x10;
		}
	}
}

static int decode_changed(struct buffer *body, size_t at, uint8_t value)
{
	struct ref none;
	uint8_t kept = body->data[at];
	body->data[at] = value;
	reseal(body);
	int rc = ref_decode(REF_BRANCH, "main", body->data, body->length, &none);
	if (rc == 0)
		ref_release(&none);
	body->data[at] = kept;
	return rc;
}

static void accepts_one_form_only(void **state)
{
	CLEANUP(buffer_release) struct buffer body = {0}, none = {0};
	struct ref_move moves[1];
	struct ref ref = example(moves);
	const size_t flags = 12, length = 13, text = 14;

	ref.protection = (struct protection){.flags = PROTECT_AUDITS, .publishers = "data"};
	assert_int_equal(ref_encode(&ref, &body), 0);
	assert_int_equal(decode_changed(&body, flags, PROTECT_AUDITS), 0);
	assert_int_equal(decode_changed(&body, flags, 0), 0);
	/* What a later version forbids this one must not allow. */
	assert_int_equal(decode_changed(&body, flags, 4), -ERR_VERSION);
	assert_int_equal(decode_changed(&body, flags, 0x80 | PROTECT_AUDITS), -ERR_VERSION);
	assert_int_equal(decode_changed(&body, 4, 3), -ERR_VERSION);
	assert_int_equal(decode_changed(&body, 4, 1), -ERR_CORRUPT);
	assert_int_equal(decode_changed(&body, length, PUBLISHERS_MAX + 1), -ERR_CORRUPT);
	assert_int_equal(decode_changed(&body, text, '\n'), -ERR_CORRUPT);
	assert_int_equal(decode_changed(&body, text, 0), -ERR_CORRUPT);
	assert_int_equal(decode_changed(&body, text, 0x7f), -ERR_CORRUPT);

	/* Version 2 that protects nothing is version 1. */
	ref.protection = no_writes;
	body.length = 0;
	assert_int_equal(ref_encode(&ref, &body), 0);
	assert_int_equal(decode_changed(&body, flags, 0), -ERR_CORRUPT);

	ref.protection.flags = 8;
	assert_int_equal(ref_encode(&ref, &none), -ERR_INVALID);
	ref.protection = (struct protection){.publishers = "a\nb"};
	assert_int_equal(ref_encode(&ref, &none), -ERR_INVALID);
	ref.protection = no_writes;
	ref.kind = REF_TAG;
	assert_int_equal(ref_encode(&ref, &none), -ERR_INVALID);
}

/* -- writes -- */

static int try_claim(const char *name, const struct ref_author *author)
{
	struct ref_contended contended = {0};
	struct ref ref = read_from(mine, name);
	int rc = ref_claim(mine, &ref, 1000, author, &contended, NULL);
	ref_release(&ref);
	ref_release(&contended.now);
	return rc;
}

static void assert_all_refused(const struct protection *protection, const struct ref_rights *rights)
{
	CLEANUP(buffer_release) struct buffer before = {0}, after = {0};
	const struct ref_author author = with(rights);
	const struct pointer commit = commit_number(9);

	protect_from(mine, "main", protection);
	body_of("main", &before);
	for (int host = 0; host < 2; host++) {
		struct object_store *store = host ? other : mine;
		assert_int_equal(move_from(store, "main", 9, rights), -ERR_REFUSED);
		assert_int_equal(move_from(store, "main", 1, rights), -ERR_REFUSED);
		assert_int_equal(ref_delete(store, REF_BRANCH, "main", &author, NULL),
		                 -ERR_REFUSED);
		assert_int_equal(ref_rename(store, REF_BRANCH, "main", "other", &author, NULL),
		                 -ERR_REFUSED);
		assert_int_equal(ref_rename(store, REF_BRANCH, "dev", "main", &author, NULL),
		                 -ERR_EXISTS);
		assert_int_equal(ref_create(store, REF_BRANCH, "main", &commit, &author, NULL),
		                 -ERR_EXISTS);
		assert_int_equal(ref_restore(store, REF_BRANCH, "main", &author, NULL),
		                 -ERR_EXISTS);
	}
	assert_int_equal(try_claim("main", &author), -ERR_REFUSED);
	body_of("main", &after);
	assert_int_equal(after.length, before.length);
	assert_memory_equal(after.data, before.data, before.length);
	assert_absent("other");
	assert_stands("dev", 3);

	protect_from(mine, "main", &free_for_all);
	assert_int_equal(try_claim("main", &author), 0);
	assert_int_equal(move_from(mine, "main", 9, rights), 0);
	assert_int_equal(move_from(mine, "main", 2, rights), 0);
}

static void every_write_is_refused(void **state)
{
	const struct ref_rights wrong_audits = {.audited = true, .rules = id_of(8)};
	const struct protection no_audits = {.flags = PROTECT_AUDITS};
	create("main", 1);
	create("dev", 3);
	assert_int_equal(move_from(mine, "main", 2, NULL), 0);
	assert_all_refused(&no_writes, NULL);
	assert_all_refused(&no_writes, &member);
	assert_all_refused(&audited, &merged);
	assert_all_refused(&audited, &wrong_audits);
	assert_all_refused(&no_audits, &wrong_audits);
	assert_all_refused(&published, NULL);
	assert_all_refused(&published, &stranger);
}

static void who_has_the_rights_moves_it(void **state)
{
	const struct ref_rights passed = {.audited = true, .rules = audited.rules};
	const struct ref_author author = with(&passed), merging = with(&merged);
	create("main", 1);
	protect_from(mine, "main", &no_writes);
	assert_int_equal(move_from(mine, "main", 2, &merged), 0);
	assert_int_equal(try_claim("main", &merging), 0);
	assert_int_equal(move_from(other, "main", 3, &merged), 0);
	assert_int_equal(move_from(mine, "main", 4, NULL), -ERR_REFUSED);
	assert_stands("main", 3);
	/* But its end is never a merge. */
	assert_int_equal(ref_delete(mine, REF_BRANCH, "main", &merging, NULL), -ERR_REFUSED);
	assert_int_equal(ref_rename(mine, REF_BRANCH, "main", "x", &merging, NULL), -ERR_REFUSED);

	protect_from(other, "main", &audited);
	assert_int_equal(move_from(mine, "main", 5, &passed), 0);
	assert_int_equal(ref_delete(mine, REF_BRANCH, "main", &author, NULL), -ERR_REFUSED);
	struct ref ref = read_from(mine, "main");
	assert_true(protection_equal(&ref.protection, &audited));
	assert_int_equal(ref.move_count, 4);
	ref_release(&ref);
}

static int check_listed(void *context, const struct ref *ref)
{
	*(int *)context += protection_equal(&ref->protection, &no_writes);
	return 0;
}

static void protecting_is_no_move(void **state)
{
	struct ref_contended contended = {0};
	int listed = 0;
	create("main", 1);
	struct ref ref = read_from(mine, "main"), stale = read_from(other, "main");
	assert_int_equal(ref_claim(mine, &ref, 500, &ann, &contended, NULL), 0);
	assert_int_equal(ref_protect(mine, &stale, &no_writes, NULL), -ERR_MOVED);
	assert_int_equal(ref_protect(mine, &ref, &no_writes, NULL), 0);
	assert_null(ref.claim.who);
	assert_int_equal(ref.move_count, 1);
	ref_release(&stale);
	stale = read_from(other, "main");
	assert_string_equal(stale.etag.text, ref.etag.text);
	assert_int_equal(ref_list(mine, REF_BRANCH, true, check_listed, &listed, NULL), 0);
	assert_int_equal(listed, 1);
	/* The same once more, and lifted. */
	assert_int_equal(ref_protect(mine, &ref, &no_writes, NULL), 0);
	assert_int_equal(ref_protect(mine, &ref, &free_for_all, NULL), 0);
	assert_int_equal(ref_protect(mine, &stale, &audited, NULL), -ERR_MOVED);
	ref_release(&stale);
	ref_release(&ref);

	const struct pointer commit = commit_number(1);
	assert_int_equal(ref_create(mine, REF_TAG, "v1", &commit, &ann, NULL), 0);
	assert_int_equal(ref_read(mine, REF_TAG, "v1", &ref, NULL), 0);
	assert_int_equal(ref_protect(mine, &ref, &no_writes, NULL), -ERR_REFUSED);
	ref_release(&ref);
}

/* -- answers that are lost -- */

static void other_moves_main(void)
{
	assert_int_equal(move_from(other, "main", 8, NULL), 0);
}

static void other_protects_main(void)
{
	protect_from(other, "main", &no_writes);
}

static void lost_answers_are_settled(void **state)
{
	create("main", 1);
	struct ref ref = read_from(mine, "main");
	spy.lose_answer = true;
	assert_int_equal(ref_protect(mine, &ref, &no_writes, NULL), 0);
	struct ref now = read_from(other, "main");
	assert_true(protection_equal(&now.protection, &no_writes));
	assert_string_equal(now.etag.text, ref.etag.text);
	ref_release(&now);

	spy.drop = true;
	assert_int_equal(ref_protect(mine, &ref, &free_for_all, NULL), -ERR_STORE_AWAY);
	assert_true(protection_equal(&ref.protection, &no_writes));
	assert_int_equal(ref_protect(mine, &ref, &free_for_all, NULL), 0);

	spy.before_put = other_moves_main;
	assert_int_equal(ref_protect(mine, &ref, &no_writes, NULL), -ERR_MOVED);
	assert_stands("main", 8);
	ref_release(&ref);
	/* Somebody else did the same just now: as good. */
	ref = read_from(mine, "main");
	spy.before_put = other_protects_main;
	assert_int_equal(ref_protect(mine, &ref, &no_writes, NULL), 0);
	assert_int_equal(ref_protect(mine, &ref, &free_for_all, NULL), 0);
	ref_release(&ref);
}

/* -- hosts that have not heard of it -- */

static void who_has_not_heard_of_it_loses(void **state)
{
	struct ref_contended contended = {0};
	const struct pointer commit = commit_number(9);
	struct ref ref = {0};
	create("main", 1);
	protect_from(other, "main", &no_writes);
	assert_int_equal(ref_read_known(mine, REF_BRANCH, "main", &ref, NULL), 0);
	assert_false(protection_any(&ref.protection)); /* out of date, as it was to be */
	assert_int_equal(ref_move_contended(mine, &ref, &commit, &ann, &contended, NULL),
	                 -ERR_MOVED);
	assert_true(protection_equal(&contended.now.protection, &no_writes));
	ref_release(&ref);
	ref = contended.now;
	contended.now = (struct ref){0};
	assert_int_equal(ref_move_contended(mine, &ref, &commit, &ann, &contended, NULL),
	                 -ERR_REFUSED);
	assert_int_equal(contended.now.move_count, 0);
	ref_release(&ref);
	assert_stands("main", 1);
	/* Protected between reading and writing. */
	protect_from(mine, "main", &free_for_all);
	spy.before_put = other_protects_main;
	assert_int_equal(ref_delete(mine, REF_BRANCH, "main", &ann, NULL), -ERR_REFUSED);
	assert_stands("main", 1);
	protect_from(mine, "main", &free_for_all);
	spy.before_put = other_protects_main;
	assert_int_equal(ref_rename(mine, REF_BRANCH, "main", "x", &ann, NULL), -ERR_REFUSED);
	assert_stands("main", 1);
	assert_absent("x");
	/* A put whose answer was lost, and then it was protected: it had been done. */
	protect_from(mine, "main", &free_for_all);
	spy.lose_answer = true;
	assert_int_equal(move_from(mine, "main", 2, NULL), 0);
}

static void what_was_lifted_elsewhere_does_not_bind(void **state)
{
	struct ref_contended contended = {0};
	const struct pointer commit = commit_number(9);
	struct ref ref = {0};
	create("main", 1);
	protect_from(mine, "main", &no_writes);
	protect_from(other, "main", &free_for_all);
	assert_int_equal(ref_read_known(mine, REF_BRANCH, "main", &ref, NULL), 0);
	assert_true(protection_any(&ref.protection));
	assert_int_equal(ref_move_contended(mine, &ref, &commit, &ann, &contended, NULL),
	                 -ERR_MOVED);
	assert_false(protection_any(&contended.now.protection));
	ref_release(&ref);
	assert_int_equal(ref_move(mine, &contended.now, &commit, &ann, NULL), 0);
	ref_release(&contended.now);
	assert_stands("main", 9);
	create("dev", 1); /* "main" is not guessed any more: others move it */
	protect_from(mine, "dev", &no_writes);
	protect_from(other, "dev", &free_for_all);
	assert_int_equal(ref_delete(mine, REF_BRANCH, "dev", &ann, NULL), 0);
	assert_absent("dev");
}

/* Refusing costs one look, and is never told of a guess alone. */
static void refusals_are_confirmed(void **state)
{
	const struct pointer commit = commit_number(9);
	struct ref ref = {0};
	create("main", 1);
	protect_from(mine, "main", &no_writes);
	assert_int_equal(ref_read_known(mine, REF_BRANCH, "main", &ref, NULL), 0);
	unsigned gets = spy.gets, puts = spy.puts;
	assert_int_equal(ref_move(mine, &ref, &commit, &ann, NULL), -ERR_REFUSED);
	assert_int_equal(spy.gets, gets + 1);
	assert_int_equal(spy.puts, puts);
	spy.away = true;
	assert_int_equal(ref_move(mine, &ref, &commit, &ann, NULL), -ERR_STORE_AWAY);
	spy.away = false;
	/* What the rights suffice for costs nothing more. */
	const struct ref_author author = with(&merged);
	gets = spy.gets;
	assert_int_equal(ref_move(mine, &ref, &commit, &author, NULL), 0);
	assert_int_equal(spy.gets, gets);
	ref_release(&ref);
}

/* -- names that were deleted -- */

static void tombstones_stay_protected(void **state)
{
	const struct ref_author insider = with(&member), outsider = with(&stranger);
	const struct pointer commit = commit_number(9);
	struct ref ref = {0};
	uint64_t purged = 1;

	create("main", 1);
	create("dev", 3);
	protect_from(mine, "main", &published);
	assert_int_equal(ref_delete(mine, REF_BRANCH, "main", &insider, NULL), 0);
	assert_int_equal(ref_create(mine, REF_BRANCH, "main", &commit, &outsider, NULL),
	                 -ERR_REFUSED);
	assert_int_equal(ref_create(other, REF_BRANCH, "main", &commit, &ann, NULL), -ERR_REFUSED);
	assert_int_equal(ref_restore(mine, REF_BRANCH, "main", &outsider, NULL), -ERR_REFUSED);
	assert_int_equal(ref_rename(mine, REF_BRANCH, "dev", "main", &outsider, NULL),
	                 -ERR_REFUSED);
	assert_int_equal(ref_rename(mine, REF_BRANCH, "dev", "main", &insider, NULL), -ERR_REFUSED);
	assert_int_equal(ref_purge(mine, REF_BRANCH, clock_wall_ms() + 60000, &purged, NULL), 0);
	assert_int_equal(purged, 0);
	assert_absent("main");
	assert_stands("dev", 3);

	/* Whoever may have it back has it back as it was. */
	assert_int_equal(ref_restore(mine, REF_BRANCH, "main", &insider, NULL), 0);
	ref = read_from(mine, "main");
	assert_true(protection_equal(&ref.protection, &published));
	ref_release(&ref);
	assert_int_equal(ref_rename(mine, REF_BRANCH, "main", "prod", &insider, NULL), 0);
	ref = read_from(mine, "prod");
	assert_true(protection_equal(&ref.protection, &published));
	ref_release(&ref);

	/* The old name's tombstone can be lifted, not more. */
	assert_int_equal(ref_read_deleted(mine, REF_BRANCH, "main", &ref, NULL), 0);
	assert_int_equal(ref_protect(mine, &ref, &no_writes, NULL), -ERR_REFUSED);
	assert_int_equal(ref_protect(mine, &ref, &free_for_all, NULL), 0);
	ref_release(&ref);
	assert_absent("main");
	assert_int_equal(ref_rename(mine, REF_BRANCH, "dev", "main", &outsider, NULL), 0);
	assert_stands("main", 3);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
	        TEST(lets_through_what_it_says),     TEST(unprotected_bodies_are_as_they_were),
	        TEST(decodes_what_it_encodes),       TEST(accepts_one_form_only),
	        TEST(every_write_is_refused),        TEST(who_has_the_rights_moves_it),
	        TEST(protecting_is_no_move),         TEST(lost_answers_are_settled),
	        TEST(who_has_not_heard_of_it_loses), TEST(what_was_lifted_elsewhere_does_not_bind),
	        TEST(refusals_are_confirmed),        TEST(tombstones_stay_protected),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
