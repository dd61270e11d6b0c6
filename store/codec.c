/*
 * codec — hides how a record becomes stored bytes: framing, seal, id tags, compression, and the
 * zstd and hash contexts that each thread keeps. Home of <zstd.h>.
 */
#include <assert.h>
#include <zstd.h>

#include "store/pack.h"

/* Trying costs about as much as hashing, so a sample decides first. */
#define SAMPLE_BYTES (16u << 10)
/* Worth it when it saves at least one part in so many. */
#define SAMPLE_SAVES_PART 12
#define KEEP_SAVES_PART 16

struct context {
	ZSTD_CCtx *compress;
	ZSTD_DCtx *decompress;
	struct sha256 *hash;
	uint8_t *scratch;
	size_t scratch_bytes;
};

static pthread_key_t context_key;
static pthread_once_t context_once = PTHREAD_ONCE_INIT;
static int context_key_error;

static void context_free(void *pointer)
{
	struct context *context = pointer;

	if (!context)
		return;
	ZSTD_freeCCtx(context->compress);
	ZSTD_freeDCtx(context->decompress);
	sha256_free(context->hash);
	free(context->scratch);
	free(context);
}

static void context_key_make(void)
{
	context_key_error = pthread_key_create(&context_key, context_free);
}

static struct context *context_get(void)
{
	struct context *context;

	pthread_once(&context_once, context_key_make);
	if (context_key_error)
		return NULL;
	context = pthread_getspecific(context_key);
	if (context)
		return context;
	context = calloc(1, sizeof(*context));
	if (!context)
		return NULL;
	context->compress = ZSTD_createCCtx();
	context->decompress = ZSTD_createDCtx();
	if (!context->compress || !context->decompress || sha256_new(&context->hash) ||
	    pthread_setspecific(context_key, context)) {
		context_free(context);
		return NULL;
	}
	return context;
}

static int scratch_reserve(struct context *context, size_t bytes)
{
	uint8_t *scratch;

	if (context->scratch_bytes >= bytes)
		return 0;
	scratch = realloc(context->scratch, bytes);
	if (!scratch)
		return -ERR_NO_MEMORY;
	context->scratch = scratch;
	context->scratch_bytes = bytes;
	return 0;
}

/* Compressed size into the scratch memory, or 0 when it would not be smaller than `limit`. */
static size_t compress_below(struct context *context, const void *bytes, size_t length, int level,
                             size_t limit)
{
	size_t result =
	        ZSTD_compressCCtx(context->compress, context->scratch, limit, bytes, length, level);

	return ZSTD_isError(result) ? 0 : result;
}

int codec_encode(const void *raw, size_t length, int level, struct encoded *ret_encoded)
{
	struct context *context = context_get();
	const uint8_t *bytes = raw;
	size_t stored = 0;

	assert(length > 0 && length <= RECORD_RAW_MAX);
	if (!context || scratch_reserve(context, length))
		return -ERR_NO_MEMORY;
	if (length < 2 * SAMPLE_BYTES ||
	    compress_below(context, bytes + (length - SAMPLE_BYTES) / 2, SAMPLE_BYTES, 1,
	                   SAMPLE_BYTES - SAMPLE_BYTES / SAMPLE_SAVES_PART))
		stored = compress_below(context, raw, length, level,
		                        length - length / KEEP_SAVES_PART - 1);
	*ret_encoded = (struct encoded){.bytes = raw, .stored = (uint32_t)length};
	ret_encoded->raw = (uint32_t)length;
	if (stored) {
		ret_encoded->bytes = context->scratch;
		ret_encoded->stored = (uint32_t)stored;
		ret_encoded->codec = CODEC_ZSTD;
		codec_check(context->scratch, stored, ret_encoded->check);
	}
	return 0;
}

int codec_decode(const void *stored, const struct place *place, void *out)
{
	struct context *context;
	size_t result;

	if (place->key != 0 || place->codec > CODEC_ZSTD)
		return -ERR_VERSION;
	if (place->codec == CODEC_RAW) {
		memcpy(out, stored, place->raw);
		return 0;
	}
	context = context_get();
	if (!context)
		return -ERR_NO_MEMORY;
	/* One frame, all of the stored bytes, of exactly the promised size. */
	if (ZSTD_getFrameContentSize(stored, place->stored) != place->raw ||
	    ZSTD_findFrameCompressedSize(stored, place->stored) != place->stored)
		return -ERR_CORRUPT;
	result = ZSTD_decompressDCtx(context->decompress, out, place->raw, stored, place->stored);
	return result == place->raw ? 0 : -ERR_CORRUPT;
}

void codec_check(const void *stored, size_t length, uint8_t ret_check[CHECK_BYTES])
{
	struct id id;

	sha256_of(stored, length, &id);
	memcpy(ret_check, id.bytes, CHECK_BYTES);
}

int place_check(const struct place *place)
{
	if (place->offset < PACK_HEADER_BYTES || place->offset >= PACK_TARGET_BYTES ||
	    place->stored == 0 || place->stored > PACK_TARGET_BYTES - place->offset ||
	    place->stored > RECORD_RAW_MAX || place->raw == 0 || place->raw > RECORD_RAW_MAX)
		return -ERR_CORRUPT;
	if (place->codec == CODEC_RAW && place->key == 0 && place->stored != place->raw)
		return -ERR_CORRUPT;
	return 0;
}

int record_id(enum record_kind kind, const void *logical, size_t length, struct id *ret_id)
{
	static const char tags[][9] = {
	        [RECORD_LIST] = "lakelist",
	        [RECORD_NODE] = "lakenode",
	        [RECORD_COMMIT] = "lakecomm",
	};
	struct context *context = context_get();

	assert(kind >= RECORD_LIST && kind <= RECORD_COMMIT);
	if (!context)
		return -ERR_NO_MEMORY;
	sha256_update(context->hash, tags[kind], 8);
	sha256_update(context->hash, logical, length);
	sha256_final(context->hash, ret_id);
	return 0;
}

void record_frame(const void *logical, size_t logical_length, const void *places,
                  size_t places_length, uint8_t *out)
{
	size_t length = 4 + logical_length + places_length;
	struct id id;

	store_u32(out, (uint32_t)logical_length);
	if (logical_length)
		memcpy(out + 4, logical, logical_length);
	if (places_length)
		memcpy(out + 4 + logical_length, places, places_length);
	sha256_of(out, length, &id);
	memcpy(out + length, id.bytes, SEAL_BYTES);
}

int record_parts(const uint8_t *raw, size_t length, struct record *ret_record)
{
	size_t logical_length;

	if (length < RECORD_FRAME_BYTES)
		return -ERR_CORRUPT;
	logical_length = load_u32(raw);
	if (logical_length > length - RECORD_FRAME_BYTES)
		return -ERR_CORRUPT;
	ret_record->logical = raw + 4;
	ret_record->logical_length = logical_length;
	ret_record->places = raw + 4 + logical_length;
	ret_record->places_length = length - RECORD_FRAME_BYTES - logical_length;
	return 0;
}

int record_verify(enum record_kind kind, const struct id *id, const uint8_t *raw, size_t length)
{
	struct record record;
	struct id found;
	int error;

	if (kind == RECORD_CHUNK) {
		sha256_of(raw, length, &found);
		return id_equal(&found, id) ? 0 : -ERR_CORRUPT;
	}
	error = record_parts(raw, length, &record);
	if (error)
		return error;
	sha256_of(raw, length - SEAL_BYTES, &found);
	if (memcmp(found.bytes, raw + length - SEAL_BYTES, SEAL_BYTES) != 0)
		return -ERR_CORRUPT;
	error = record_id(kind, record.logical, record.logical_length, &found);
	if (error)
		return error;
	return id_equal(&found, id) ? 0 : -ERR_CORRUPT;
}
