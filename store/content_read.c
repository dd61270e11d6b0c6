/*
 * content_read — hides how a range of a file becomes batches of chunks.
 */
#include <assert.h>

#include "store/content_list.h"

/* Chunks read together, so that those in one pack are one request. */
#define BATCH_CHUNKS 64u

/* A chunk of which only some bytes are wanted: at most the first and the last of a range. */
struct partial {
	uint8_t *bytes;
	size_t from, length;
	uint8_t *out;
};

struct batch {
	struct odb *odb;
	struct message *message;
	uint64_t offset, end; /* the range asked for */
	uint8_t *out;         /* where byte `offset` goes */
	struct pointer pointers[BATCH_CHUNKS];
	uint8_t *outs[BATCH_CHUNKS];
	size_t count;
	struct partial partials[2];
	size_t partial_count;
};

static void batch_release(struct batch *batch)
{
	while (batch->partial_count)
		free(batch->partials[--batch->partial_count].bytes);
}

static int batch_read(struct batch *batch)
{
	int error = 0;

	if (batch->count)
		error = odb_read_chunks(batch->odb, batch->pointers, batch->count, batch->outs,
		                        batch->message);
	if (error == -ERR_NOT_FOUND) /* the file is there, and must not read as if it were not */
		error = fail_context(batch->message, -ERR_CORRUPT, "missing content");
	for (size_t i = 0; !error && i < batch->partial_count; i++) {
		const struct partial *partial = &batch->partials[i];

		memcpy(partial->out, partial->bytes + partial->from, partial->length);
	}
	batch->count = 0;
	batch_release(batch);
	return error;
}

static int batch_add(void *context, const struct piece *piece)
{
	struct batch *batch = context;
	uint64_t piece_end = piece->offset + piece->length;
	uint64_t start = piece->offset > batch->offset ? piece->offset : batch->offset;
	uint64_t end = piece_end < batch->end ? piece_end : batch->end;
	uint8_t *out = batch->out + (start - batch->offset);

	if (piece->hole) {
		memset(out, 0, (size_t)(end - start));
		return 0;
	}
	if (end - start < piece->length) {
		struct partial *partial = &batch->partials[batch->partial_count];

		assert(batch->partial_count < ARRAY_SIZE(batch->partials));
		*partial = (struct partial){.bytes = malloc(piece->length),
		                            .from = (size_t)(start - piece->offset),
		                            .length = (size_t)(end - start),
		                            .out = out};
		if (!partial->bytes)
			return fail(batch->message, -ERR_NO_MEMORY, "reading a file");
		batch->partial_count++;
		out = partial->bytes;
	}
	batch->pointers[batch->count] = piece->pointer;
	batch->outs[batch->count++] = out;
	return batch->count == BATCH_CHUNKS ? batch_read(batch) : 0;
}

int content_read(struct odb *odb, const struct content *content, uint64_t offset, size_t length,
                 void *out, struct message *message)
{
	CLEANUP(batch_release)
	struct batch batch = {.odb = odb,
	                      .message = message,
	                      .offset = offset,
	                      .end = offset + length,
	                      .out = out};
	int error = content_pieces(odb, content, offset, length, batch_add, &batch, message);

	return error ? error : batch_read(&batch);
}

int content_pieces(struct odb *odb, const struct content *content, uint64_t offset, uint64_t length,
                   piece_fn *callback, void *context, struct message *message)
{
	CLEANUP(list_cursor_release)
	struct list_cursor cursor = {.odb = odb, .content = content};
	uint64_t end = offset + length;
	int result = content_check(content, message);

	assert(result || (end >= offset && end <= content->size));
	while (!result && offset < end) {
		struct piece piece;

		result = list_cursor_seek(&cursor, offset, message);
		if (result)
			break;
		piece = list_cursor_piece(&cursor);
		offset = piece.offset + piece.length;
		result = callback(context, &piece);
	}
	return result;
}

int content_walk(struct odb *odb, const struct content *content, pointer_fn *callback,
                 void *context, struct message *message)
{
	CLEANUP(list_cursor_release)
	struct list_cursor cursor = {.odb = odb, .content = content};
	uint64_t offset = 0;
	int result = content_check(content, message);

	if (result || content->kind != CONTENT_LIST)
		return result;
	result = callback(context, RECORD_LIST, &content->pointer);
	/* Every node is met once: on the way down to its first byte. */
	while (!result && offset < content->size) {
		const struct list_frame *frame;

		result = list_cursor_approach(&cursor, offset, message);
		while (!result && (frame = list_cursor_frame(&cursor))->node->level > 0) {
			result = callback(context, RECORD_LIST, &list_frame_entry(frame)->pointer);
			if (!result && frame->node->level > 1)
				result = list_cursor_descend(&cursor, offset, message);
			else
				break;
		}
		if (!result) {
			frame = list_cursor_frame(&cursor);
			offset = frame->index_start + list_frame_entry(frame)->length;
			if (frame->node->level == 0)
				offset = content->size; /* the root is the only node */
		}
	}
	return result;
}
