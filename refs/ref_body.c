/*
 * ref_body.c — hides the encoding of a branch's or tag's object.
 *
 * The seal (SHA-256 of all before it, in every version the last 32 bytes) makes any damage
 * visible; kind and name are inside, so a body copied to another key is damage too. The parity of
 * the length tells a tombstone from a live ref, so that a listing needs no bodies.
 */
#include "refs/ref.h"

#define REF_VERSION 1
#define REF_VERSION_PROTECTED 2 /* so that older programs, which would not obey, cannot read it */
#define FIXED_BYTES 8           /* magic, version, kind, moves, name length */

static const uint8_t magic[4] = {'L', 'R', 'E', 'F'};

void ref_release(struct ref *ref)
{
	free(ref->claim.who);
	free(ref->claim.command);
	for (size_t i = 0; i < ref->move_count; i++) {
		free(ref->moves[i].who);
		free(ref->moves[i].command);
	}
	free(ref->moves);
	memset(ref, 0, sizeof(*ref));
}

/* -- claims: in the place of a move that goes nowhere -- */

#define CLAIM_WORD "claim "

/* One form only: no leading zero, in range. 0: it is none. */
static unsigned claim_ms_of(const char *command)
{
	unsigned ms = 0;

	if (strncmp(command, CLAIM_WORD, strlen(CLAIM_WORD)) != 0)
		return 0;
	command += strlen(CLAIM_WORD);
	if (*command == '0')
		return 0;
	for (; *command >= '0' && *command <= '9' && ms <= REF_CLAIM_MS_MAX; command++)
		ms = ms * 10 + (unsigned)(*command - '0');
	return *command || ms > REF_CLAIM_MS_MAX ? 0 : ms;
}

static bool is_claim(const struct ref_move *move)
{
	return !pointer_is_none(&move->after) && id_equal(&move->before.id, &move->after.id) &&
	       claim_ms_of(move->command) > 0;
}

static void take_claim(struct ref *ref)
{
	ref->claim = ref->moves[0];
	ref->claim_ms = claim_ms_of(ref->claim.command);
	ref->move_count--;
	memmove(&ref->moves[0], &ref->moves[1], ref->move_count * sizeof(ref->moves[0]));
	memset(&ref->moves[ref->move_count], 0, sizeof(ref->moves[0]));
}

/* -- encoding -- */

static void encode_pointer(struct buffer *body, const struct pointer *pointer)
{
	buffer_id(body, &pointer->id);
	if (!pointer_is_none(pointer))
		place_encode(body, &pointer->place);
}

static void encode_text(struct buffer *body, const char *text)
{
	size_t length = strlen(text);

	buffer_u8(body, (uint8_t)length);
	buffer_append(body, text, length);
}

static bool move_is_valid(const struct ref_move *move)
{
	return move->who && move->command && strlen(move->who) <= REF_TEXT_MAX &&
	       strlen(move->command) <= REF_TEXT_MAX;
}

static void encode_move(struct buffer *body, const struct ref_move *move)
{
	buffer_append(body, move->nonce, REF_NONCE_BYTES);
	buffer_u64(body, (uint64_t)move->time_ms);
	encode_text(body, move->who);
	encode_text(body, move->command);
	encode_pointer(body, &move->after);
}

static bool ref_is_chain(const struct ref *ref)
{
	if (ref->move_count < 1 || ref->move_count > REF_MOVES_MAX ||
	    !id_equal(&ref->commit.id, &ref->moves[0].after.id))
		return false;
	if (ref->claim.who && (!move_is_valid(&ref->claim) || !is_claim(&ref->claim) ||
	                       ref->claim_ms != claim_ms_of(ref->claim.command) ||
	                       !id_equal(&ref->claim.after.id, &ref->commit.id)))
		return false;
	/* or decoding would take it for one */
	if (!ref->claim.who && ref->move_count > 1 && is_claim(&ref->moves[0]))
		return false;
	for (size_t i = 0; i < ref->move_count; i++) {
		if (!move_is_valid(&ref->moves[i]))
			return false;
		if (i > 0 && !id_equal(&ref->moves[i - 1].before.id, &ref->moves[i].after.id))
			return false;
	}
	return true;
}

/* A group's name may hold anything but control characters. */
static bool protection_is_valid(const struct ref *ref)
{
	const struct protection *protection = &ref->protection;
	size_t length = strnlen(protection->publishers, PUBLISHERS_MAX + 1);

	if ((protection->flags & ~PROTECT_ALL) || length > PUBLISHERS_MAX)
		return false;
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)protection->publishers[i] < 0x20 ||
		    protection->publishers[i] == 0x7f)
			return false;
	return ref->kind == REF_BRANCH || !protection_any(protection);
}

static void encode_protection(struct buffer *body, const struct protection *protection)
{
	if (!protection_any(protection))
		return;
	buffer_u8(body, (uint8_t)protection->flags);
	encode_text(body, protection->publishers);
	buffer_id(body, &protection->rules);
}

int ref_encode(const struct ref *ref, struct buffer *ret_body)
{
	struct id seal;
	size_t name_length = strlen(ref->name);
	size_t start = ret_body->length;

	if (!ref_is_chain(ref) || name_length > REF_NAME_MAX || !protection_is_valid(ref))
		return -ERR_INVALID;
	buffer_append(ret_body, magic, sizeof(magic));
	buffer_u8(ret_body, protection_any(&ref->protection) ? REF_VERSION_PROTECTED : REF_VERSION);
	buffer_u8(ret_body, (uint8_t)ref->kind);
	buffer_u8(ret_body, (uint8_t)(ref->move_count + (ref->claim.who ? 1 : 0)));
	buffer_u8(ret_body, (uint8_t)name_length);
	buffer_append(ret_body, ref->name, name_length);
	encode_protection(ret_body, &ref->protection);
	if (ref->claim.who)
		encode_move(ret_body, &ref->claim);
	for (size_t i = 0; i < ref->move_count; i++)
		encode_move(ret_body, &ref->moves[i]);
	encode_pointer(ret_body, &ref->moves[ref->move_count - 1].before);
	bool odd = (ret_body->length - start) % 2 == 1;
	if (odd != pointer_is_none(&ref->commit))
		buffer_u8(ret_body, 0);
	int rc = buffer_check(ret_body);
	if (rc < 0)
		return rc;
	sha256_of(ret_body->data + start, ret_body->length - start, &seal);
	buffer_id(ret_body, &seal);
	return buffer_check(ret_body);
}

/* -- decoding -- */

static int decode_pointer(struct reader *reader, struct pointer *ret_pointer)
{
	*ret_pointer = pointer_none;
	read_id(reader, &ret_pointer->id);
	if (!pointer_is_none(ret_pointer))
		place_decode(reader, &ret_pointer->place);
	return reader->failed ? -ERR_CORRUPT : 0;
}

static int decode_text(struct reader *reader, char **ret_text)
{
	size_t length = read_u8(reader);
	const uint8_t *bytes = read_bytes(reader, length);

	if (reader->failed || (length > 0 && memchr(bytes, 0, length)))
		return -ERR_CORRUPT;
	char *text = calloc(1, length + 1);
	if (!text)
		return -ERR_NO_MEMORY;
	if (length > 0)
		memcpy(text, bytes, length);
	*ret_text = text;
	return 0;
}

static int decode_move(struct reader *reader, struct ref_move *move)
{
	const uint8_t *nonce = read_bytes(reader, REF_NONCE_BYTES);

	if (reader->failed)
		return -ERR_CORRUPT;
	memcpy(move->nonce, nonce, REF_NONCE_BYTES);
	move->time_ms = (int64_t)read_u64(reader);
	int rc = decode_text(reader, &move->who);
	if (rc == 0)
		rc = decode_text(reader, &move->command);
	if (rc == 0)
		rc = decode_pointer(reader, &move->after);
	return rc;
}

static int decode_moves(struct reader *reader, size_t count, struct ref *ref)
{
	ref->moves = calloc(count, sizeof(*ref->moves));
	if (!ref->moves)
		return -ERR_NO_MEMORY;
	ref->move_count = count;
	for (size_t i = 0; i < count; i++) {
		int rc = decode_move(reader, &ref->moves[i]);

		if (rc < 0)
			return rc;
		if (i > 0)
			ref->moves[i - 1].before = ref->moves[i].after;
	}
	return decode_pointer(reader, &ref->moves[count - 1].before);
}

/* The padding exists only where the parity needs it, so the form stays canonical. */
static int decode_end(struct reader *reader, size_t length, const struct ref *ref)
{
	size_t padding = reader_left(reader);

	if (padding > 1 || (padding == 1 && read_u8(reader) != 0))
		return -ERR_CORRUPT;
	return (length % 2 == 1) == pointer_is_none(&ref->commit) ? 0 : -ERR_CORRUPT;
}

static int check_seal(const uint8_t *bytes, size_t length)
{
	struct id seal;

	if (length < FIXED_BYTES + ID_BYTES || length > REF_BODY_MAX)
		return -ERR_CORRUPT;
	sha256_of(bytes, length - ID_BYTES, &seal);
	if (memcmp(bytes + length - ID_BYTES, seal.bytes, ID_BYTES) != 0)
		return -ERR_CORRUPT;
	if (memcmp(bytes, magic, sizeof(magic)) != 0 || bytes[sizeof(magic)] < REF_VERSION)
		return -ERR_CORRUPT;
	return bytes[sizeof(magic)] > REF_VERSION_PROTECTED ? -ERR_VERSION : 0;
}

/* None: version 1 would have been written. */
static int decode_protection(struct reader *reader, struct ref *ref)
{
	struct protection *protection = &ref->protection;
	size_t length;

	protection->flags = read_u8(reader);
	length = read_u8(reader);
	if (length > PUBLISHERS_MAX)
		return -ERR_CORRUPT;
	const uint8_t *publishers = read_bytes(reader, length);
	if (publishers && length > 0)
		memcpy(protection->publishers, publishers, length);
	read_id(reader, &protection->rules);
	if (reader->failed || strlen(protection->publishers) != length)
		return -ERR_CORRUPT;
	if (protection->flags & ~PROTECT_ALL)
		return -ERR_VERSION;
	return protection_any(protection) && protection_is_valid(ref) ? 0 : -ERR_CORRUPT;
}

int ref_decode(enum ref_kind kind, const char *name, const void *bytes, size_t length,
               struct ref *ret_ref)
{
	CLEANUP(ref_release) struct ref ref = {.kind = kind};
	int rc = check_seal(bytes, length);

	if (rc < 0)
		return rc;
	struct reader reader = reader_of(bytes, length - ID_BYTES);
	read_bytes(&reader, sizeof(magic) + 1);
	if (read_u8(&reader) != kind)
		return -ERR_CORRUPT;
	size_t move_count = read_u8(&reader);
	size_t name_length = read_u8(&reader);
	const uint8_t *name_inside = read_bytes(&reader, name_length);
	if (reader.failed || name_length != strlen(name) || name_length > REF_NAME_MAX ||
	    memcmp(name_inside, name, name_length) != 0)
		return -ERR_CORRUPT;
	memcpy(ref.name, name, name_length);
	if (move_count < 1 || move_count > REF_MOVES_MAX + 1)
		return -ERR_CORRUPT;
	if (((const uint8_t *)bytes)[sizeof(magic)] == REF_VERSION_PROTECTED)
		rc = decode_protection(&reader, &ref);
	if (rc < 0)
		return rc;
	rc = decode_moves(&reader, move_count, &ref);
	if (rc < 0)
		return rc;
	ref.commit = ref.moves[0].after;
	if (move_count > 1 && is_claim(&ref.moves[0]))
		take_claim(&ref);
	if (ref.move_count > REF_MOVES_MAX)
		return -ERR_CORRUPT;
	rc = decode_end(&reader, length, &ref);
	if (rc < 0)
		return rc;
	*ret_ref = ref;
	memset(&ref, 0, sizeof(ref));
	return 0;
}
