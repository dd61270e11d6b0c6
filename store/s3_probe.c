/*
 * s3_probe — hides how it is found out whether a store keeps the promises that a lake is built on.
 * Many engines take conditional headers and ignore them; two hosts on such a store would lose each
 * other's commits without a sign. So each promise is tried once, on an object of its own.
 */
#include <stdio.h>

#include "store/s3.h"

#define PART_BYTES 12

struct probe {
	struct s3 *s3;
	char key[64];
	char bodies[4][64]; /* each unlike the others: an etag may be a hash of the body */
	struct message *message;
};

static int lacks(struct probe *probe, const char *what)
{
	return fail(probe->message, -ERR_UNSUPPORTED,
	            "the store at %s cannot hold a lake: %s. Hosts that share a lake need "
	            "compare-and-swap: PUT with If-None-Match and with If-Match, as AWS S3, Ceph "
	            "radosgw or MinIO have them",
	            probe->s3->settings.endpoint, what);
}

static int put_if(struct probe *probe, unsigned body, const struct etag *expected,
                  struct etag *ret_etag, struct message *message)
{
	return s3_write_if(probe->s3, probe->key, probe->bodies[body], strlen(probe->bodies[body]),
	                   expected, ret_etag, message);
}

static bool was_refused(int error)
{
	return error == -ERR_EXISTS || error == -ERR_MOVED || error == -ERR_NOT_FOUND;
}

static int check_creation(struct probe *probe, struct etag *ret_etag)
{
	struct etag other;
	int error = put_if(probe, 0, NULL, ret_etag, probe->message);
	if (error == -ERR_UNSUPPORTED)
		return lacks(probe, "it knows no PUT with If-None-Match: *");
	if (error < 0)
		return error;
	error = put_if(probe, 1, NULL, &other, probe->message);
	if (error == 0)
		return lacks(probe, "PUT with If-None-Match: * replaced an existing object");
	return was_refused(error) ? 0 : error;
}

/* The right etag must do in one of the two spellings; then that one counts from here on. */
static int check_replacement(struct probe *probe, struct etag *etag)
{
	struct etag fresh;
	int error = 0;
	for (int unquoted = 0; unquoted < 2; unquoted++) {
		probe->s3->settings.unquoted = unquoted;
		error = put_if(probe, 1, etag, &fresh, probe->message);
		if (error == 0) {
			*etag = fresh;
			return 0;
		}
		if (error == -ERR_UNSUPPORTED)
			return lacks(probe, "it knows no PUT with If-Match");
		if (!was_refused(error))
			return error;
	}
	return lacks(probe, "PUT with If-Match fails even with the object's own ETag");
}

static int check_stale(struct probe *probe, const struct etag *stale)
{
	int error = put_if(probe, 2, stale, NULL, probe->message);
	if (error == -ERR_UNSUPPORTED)
		return lacks(probe, "it knows no PUT with If-Match");
	if (error == 0)
		return lacks(probe,
		             "PUT with If-Match and an ETag that is not the object's replaced it");
	return was_refused(error) ? 0 : error;
}

/* What was written last is what everybody reads from now on, and in parts: a part of it, with its
 * etag, shows both. */
static int check_reading(struct probe *probe, const struct etag *expected)
{
	CLEANUP(buffer_release) struct buffer got = {.limit = 4096};
	struct object_store *store = &probe->s3->base;
	struct etag etag;
	const char *body = probe->bodies[1];
	size_t offset = strlen(body) - PART_BYTES - 1; /* where bodies differ */
	int error = object_get(store, probe->key, offset, PART_BYTES, &got, &etag, probe->message);
	if (error < 0 && error != -ERR_NOT_FOUND)
		return error;
	if (error < 0 || strcmp(etag.text, expected->text) != 0)
		return lacks(probe, "a read after a write gave something else");
	if (got.length != PART_BYTES || memcmp(got.data, body + offset, PART_BYTES) != 0)
		return lacks(probe, "reading a range gave other bytes");
	return 0;
}

static int find_own(void *context, const struct object_info *info)
{
	struct probe *probe = context;
	return strcmp(info->key, probe->key) == 0;
}

static int check_listing(struct probe *probe)
{
	int found = object_list(&probe->s3->base, probe->key, find_own, probe, probe->message);
	if (found < 0)
		return found;
	return found == 1 ? 0 : lacks(probe, "a listing does not show what was just written");
}

int s3_probe(struct s3 *s3, struct message *message)
{
	struct probe probe = {.s3 = s3, .message = message};
	struct etag first = {""}, second;
	snprintf(probe.key, sizeof(probe.key), "probe-%016llx", (unsigned long long)random_u64());
	for (unsigned i = 0; i < ARRAY_SIZE(probe.bodies); i++)
		snprintf(probe.bodies[i], sizeof(probe.bodies[i]), "lake probe %u %016llx\n", i,
		         (unsigned long long)random_u64());
	int error = check_creation(&probe, &first);
	second = first;
	if (error == 0)
		error = check_replacement(&probe, &second);
	if (error == 0)
		error = check_stale(&probe, &first);
	if (error == 0)
		error = check_reading(&probe, &second);
	if (error == 0)
		error = check_listing(&probe);
	if (first.text[0] != '\0') /* it was made; that it stays is no failure */
		object_remove(&s3->base, probe.key, NULL);
	return error;
}
