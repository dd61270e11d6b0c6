/*
 * content_store — hides how bytes become pieces, and how an edit finds the pieces it can keep.
 *
 * A position in a file where a piece begins is a *boundary*. Which piece begins there depends only
 * on the bytes from the boundary on: a hole reaches to the next unit that is not zero; a chunk is
 * cut by the chunker, and ends at the latest where a zero unit, or the file, does. So once the new
 * content has a boundary where the base has one, and nothing the base's piece depends on has
 * changed, that piece is also the new content's; and where the builder stands at the start of a
 * list node, a whole unchanged node of the base is too.
 *
 * Storing a whole file is an edit of nothing in which everything is dirty.
 */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/chunk_queue.h"

#define WINDOW_BYTES (4u << 20)
/* A piece is found by looking at most so far ahead: the longest chunk, and the unit it ends in. */
#define LOOKAHEAD_BYTES (CHUNK_BYTES_MAX + HOLE_UNIT)
#define PROGRESS_INTERVAL_MS 200

struct editor {
	struct packer *packer;
	const struct progress *progress;
	struct message *message;
	int64_t reported_ms;
	/* what the new content is made of */
	int fd;
	uint64_t size;
	const struct extent *dirty;
	size_t dirty_count;
	uint64_t base_end;  /* the base is read below this */
	base_read_fn *read; /* the base's bytes; NULL: through the odb */
	void *read_context;
	struct list_cursor base;       /* for the pieces to keep: moves forward only */
	struct list_cursor around;     /* for the bytes around changes */
	uint64_t data_start, data_end; /* of the file's data found last, by SEEK_DATA */
	/* bytes of the new content at window_start */
	uint8_t *window;
	size_t window_capacity, window_length;
	uint64_t window_start;
	uint64_t
	        units_checked; /* units of the current region that start before this are not zero */
	struct list_builder builder;
	struct chunk_queue *queue; /* what is not in the builder yet */
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t unit_floor(uint64_t offset)
{
	return offset - offset % HOLE_UNIT;
}

static uint64_t unit_ceiling(uint64_t offset)
{
	return unit_floor(offset + HOLE_UNIT - 1);
}

/* -- the bytes of the new content -- */

/* The first dirty extent that ends after `offset`; dirty_count when there is none. */
static size_t dirty_after(const struct editor *editor, uint64_t offset)
{
	size_t low = 0, high = editor->dirty_count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (editor->dirty[middle].end > offset)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* Where the kind of source at `offset` ends; *ret_dirty says whether it is the file. */
static uint64_t source_end(const struct editor *editor, uint64_t offset, bool *ret_dirty)
{
	size_t index = dirty_after(editor, offset);
	uint64_t start = index < editor->dirty_count ? editor->dirty[index].start : editor->size;

	*ret_dirty = start <= offset;
	if (*ret_dirty && index < editor->dirty_count)
		return min_u64(editor->dirty[index].end, editor->size);
	if (offset < editor->base_end)
		return min_u64(start, editor->base_end);
	return min_u64(start, editor->size);
}

static int read_file_bytes(struct editor *editor, uint64_t offset, size_t length, uint8_t *out)
{
	ssize_t got = read_full(editor->fd, out, length, (off_t)offset);

	if (got < 0)
		return fail(editor->message, (int)got, "reading the file to store: %s",
		            error_text((int)got));
	if ((size_t)got < length)
		return fail(editor->message, -ERR_BUSY,
		            "the file became shorter while it was being stored");
	return 0;
}

static int read_base(struct editor *editor, uint64_t offset, size_t length, uint8_t *out)
{
	if (editor->read)
		return editor->read(editor->read_context, offset, length, out, editor->message);
	return content_read(editor->base.odb, editor->base.content, offset, length, out,
	                    editor->message);
}

static int read_new(struct editor *editor, uint64_t offset, size_t length, uint8_t *out)
{
	while (length) {
		bool dirty;
		uint64_t end = source_end(editor, offset, &dirty);
		size_t part = (size_t)min_u64(end - offset, length);
		int error = 0;

		if (dirty)
			error = read_file_bytes(editor, offset, part, out);
		else if (offset < editor->base_end)
			error = read_base(editor, offset, part, out);
		else
			memset(out, 0, part);
		if (error)
			return error;
		offset += part;
		out += part;
		length -= part;
	}
	return 0;
}

/* Where the file's next data at or after `offset` starts; `offset` when that cannot be known. */
static uint64_t file_data_start(struct editor *editor, uint64_t offset)
{
	off_t data;

	if (offset >= editor->data_start && offset < editor->data_end)
		return offset;
	data = lseek(editor->fd, (off_t)offset, SEEK_DATA);
	if (data < 0) {
		struct stat status;

		/* No data up to the file's end, which may have come nearer: then reading tells. */
		if (errno != ENXIO || fstat(editor->fd, &status) < 0 ||
		    (uint64_t)status.st_size < offset)
			return offset;
		return (uint64_t)status.st_size;
	}
	editor->data_start = (uint64_t)data;
	data = lseek(editor->fd, data, SEEK_HOLE);
	editor->data_end = data < 0 ? editor->data_start : (uint64_t)data;
	return editor->data_start;
}

/* Bytes [offset, *ret_end) are zero, as far as can be told without reading them. */
static int zero_until(struct editor *editor, uint64_t offset, uint64_t *ret_end)
{
	uint64_t at = offset;

	while (at < editor->size) {
		bool dirty;
		uint64_t end = source_end(editor, at, &dirty), zero = end;

		if (dirty) {
			zero = min_u64(file_data_start(editor, at), end);
		} else if (at < editor->base_end) {
			struct piece piece;
			int error = list_cursor_seek(&editor->around, at, editor->message);

			if (error)
				return error;
			piece = list_cursor_piece(&editor->around);
			zero = piece.hole ? min_u64(piece.offset + piece.length, end) : at;
		}
		if (zero == at)
			break;
		at = zero;
	}
	*ret_end = at;
	return 0;
}

/* Have [start, end) in the window (cut at the end of the file), and from now on nothing before
 * `start`. Reads further ahead only inside a dirty extent. */
static int window_need(struct editor *editor, uint64_t start, uint64_t end)
{
	uint64_t window_end = editor->window_start + editor->window_length;
	uint64_t ahead;
	bool dirty;
	int error;

	end = min_u64(end, editor->size);
	if (start >= editor->window_start && end <= window_end)
		return 0;
	if (start < editor->window_start || start >= window_end) {
		editor->window_length = 0;
	} else {
		editor->window_length = (size_t)(window_end - start);
		memmove(editor->window, editor->window + (start - editor->window_start),
		        editor->window_length);
	}
	editor->window_start = start;
	window_end = start + editor->window_length;
	ahead = source_end(editor, end - 1, &dirty);
	if (dirty)
		end = min_u64(ahead, start + editor->window_capacity);
	error = read_new(editor, window_end, (size_t)(end - window_end),
	                 editor->window + editor->window_length);
	editor->window_length = error ? 0 : (size_t)(end - start);
	return error;
}

/* -- pieces -- */

/* Whether the unit at `unit` is zero. The window must reach over it (`from` is its start), or it
 * is read anew. */
static int unit_is_zero(struct editor *editor, uint64_t from, uint64_t unit, bool *ret_zero)
{
	uint64_t end = min_u64(unit + HOLE_UNIT, editor->size), known;
	int error = zero_until(editor, unit, &known);

	*ret_zero = known >= end;
	if (error || *ret_zero)
		return error;
	error = window_need(editor, from, end);
	if (!error)
		*ret_zero = is_zero(editor->window + (unit - editor->window_start),
		                    (size_t)(end - unit));
	return error;
}

/* The end of the hole at the aligned `start`; `start` when there is none. */
static int hole_end(struct editor *editor, uint64_t start, uint64_t *ret_end)
{
	uint64_t unit = start;

	while (unit < editor->size) {
		uint64_t known;
		bool zero;
		int error = zero_until(editor, unit, &known);

		if (error)
			return error;
		if (known >= editor->size) {
			unit = editor->size;
			break;
		}
		if (known - unit >= HOLE_UNIT) {
			unit = unit_floor(known);
			continue;
		}
		error = unit_is_zero(editor, unit, unit, &zero);
		if (error)
			return error;
		if (!zero)
			break;
		unit = min_u64(unit + HOLE_UNIT, editor->size);
	}
	*ret_end = unit;
	return 0;
}

/* The chunk that begins at `start`, which lies in a unit that is not zero; its bytes are in the
 * window. */
static int chunk_end(struct editor *editor, uint64_t start, uint64_t *ret_end)
{
	uint64_t limit = min_u64(start + CHUNK_BYTES_MAX, editor->size);
	uint64_t unit = unit_ceiling(start + 1);
	int error = window_need(editor, start, start + LOOKAHEAD_BYTES);

	if (unit < editor->units_checked)
		unit = editor->units_checked;
	for (; !error && unit < limit; unit += HOLE_UNIT) {
		bool zero;

		error = unit_is_zero(editor, start, unit, &zero);
		if (error || zero)
			break;
	}
	if (error)
		return error;
	editor->units_checked = unit;
	limit = min_u64(limit, unit);
	*ret_end = start + chunk_length(editor->window + (start - editor->window_start),
	                                (size_t)(limit - start));
	return 0;
}

/* Make the piece that begins at `start` from the new bytes. */
static int make_piece(struct editor *editor, uint64_t start, uint64_t *ret_end)
{
	const uint8_t *bytes = NULL;
	uint64_t end = start;
	int error = 0;

	if (start % HOLE_UNIT == 0)
		error = hole_end(editor, start, &end);
	if (!error && end == start) {
		error = chunk_end(editor, start, &end);
		bytes = editor->window + (start - editor->window_start);
	}
	if (!error)
		error = chunk_queue_add(editor->queue, bytes, end - start, editor->message);
	*ret_end = end;
	return error;
}

/* Whether pieces of the base in [start, end), boundaries both, are the new content's too: nothing
 * changed in them, nor in what their ends depend on: the rest of the unit where a piece ends, and
 * the unit after it. A changed size is a change at the shorter end. */
static bool is_clean(const struct editor *editor, uint64_t start, uint64_t end)
{
	uint64_t depends = unit_ceiling(end) + HOLE_UNIT;
	size_t index = dirty_after(editor, start);

	if (index < editor->dirty_count && editor->dirty[index].start < depends)
		return false;
	return depends <= editor->base_end || editor->size == editor->base.content->size;
}

/* Keep what the base has at boundary `start`: the largest node possible, or a piece. *ret_end is
 * `start` when nothing can be kept. */
static int keep_base(struct editor *editor, uint64_t start, uint64_t *ret_end)
{
	int error;

	*ret_end = start;
	if (start >= editor->base_end || !is_clean(editor, start, start + 1))
		return 0;
	error = list_cursor_approach(&editor->base, start, editor->message);
	if (!error)
		error = chunk_queue_drain(editor->queue, editor->message);
	while (!error) {
		const struct list_frame *frame = list_cursor_frame(&editor->base);
		const struct list_entry *entry = list_frame_entry(frame);

		if (frame->index_start == start &&
		    list_builder_empty_below(&editor->builder, frame->node->level) &&
		    is_clean(editor, start, start + entry->length)) {
			*ret_end = start + entry->length;
			return list_builder_add(&editor->builder, frame->node->level, entry,
			                        editor->message);
		}
		if (frame->node->level == 0)
			return 0;
		error = list_cursor_descend(&editor->base, start, editor->message);
	}
	return error;
}

static int report(struct editor *editor, uint64_t done)
{
	int64_t now_ms;
	int error;

	if (!editor->progress)
		return 0;
	now_ms = clock_monotonic_ms();
	if (done < editor->size && now_ms - editor->reported_ms < PROGRESS_INTERVAL_MS)
		return 0;
	editor->reported_ms = now_ms;
	error = progress_report(editor->progress, "storing", done, editor->size, "bytes");
	return error ? fail(editor->message, error, "storing was cancelled") : 0;
}

static void editor_release(struct editor *editor)
{
	chunk_queue_free(editor->queue);
	free(editor->window);
	list_cursor_release(&editor->base);
	list_cursor_release(&editor->around);
	list_builder_release(&editor->builder);
}

static int edit(struct editor *editor, struct content *ret_content)
{
	struct content content = {.size = editor->size};
	int error = 0;

	if (editor->size > FILE_BYTES_MAX)
		return fail(editor->message, -ERR_TOO_LARGE,
		            "a file of %llu bytes; the limit is %llu",
		            (unsigned long long)editor->size, (unsigned long long)FILE_BYTES_MAX);
	editor->window_capacity = (size_t)min_u64(editor->size, WINDOW_BYTES);
	editor->window = malloc(editor->window_capacity + 1);
	if (!editor->window)
		return fail(editor->message, -ERR_NO_MEMORY, "a window of %zu bytes",
		            editor->window_capacity);
	if (chunk_queue_new(editor->packer, &editor->builder, &editor->queue))
		return fail(editor->message, -ERR_NO_MEMORY, "a queue of chunks");
	for (uint64_t at = 0, end; !error && at < editor->size; at = end) {
		error = keep_base(editor, at, &end);
		if (!error && end == at)
			error = make_piece(editor, at, &end);
		if (!error)
			error = report(editor, end);
	}
	if (!error)
		error = chunk_queue_drain(editor->queue, editor->message);
	if (!error)
		error = list_builder_finish(&editor->builder, &content, editor->message);
	if (!error)
		*ret_content = content;
	return error;
}

int content_store(struct packer *packer, int fd, uint64_t size, const struct progress *progress,
                  struct content *ret_content, struct message *message)
{
	static const struct content nothing;
	const struct extent all = {.start = 0, .end = size};
	CLEANUP(editor_release)
	struct editor editor = {
	        .packer = packer,
	        .progress = progress,
	        .message = message,
	        .fd = fd,
	        .size = size,
	        .dirty = &all,
	        .dirty_count = 1,
	        .base.content = &nothing,
	        .builder.packer = packer,
	};

	return edit(&editor, ret_content);
}

int content_store_edit(struct packer *packer, struct odb *odb, const struct edit_base *base, int fd,
                       uint64_t size, const struct extent *dirty, size_t dirty_count,
                       const struct progress *progress, struct content *ret_content,
                       struct message *message)
{
	CLEANUP(editor_release)
	struct editor editor = {
	        .packer = packer,
	        .progress = progress,
	        .message = message,
	        .fd = fd,
	        .size = size,
	        .dirty = dirty,
	        .dirty_count = dirty_count,
	        .base_end = min_u64(base->content->size, size),
	        .base = {.odb = odb, .content = base->content},
	        .around = {.odb = odb, .content = base->content},
	        .read = base->read,
	        .read_context = base->context,
	        .builder.packer = packer,
	};

	int error = content_check(base->content, message);

	if (error)
		return error;
	if (size == base->content->size && (dirty_count == 0 || dirty[0].start >= size)) {
		*ret_content = *base->content;
		return 0;
	}
	return edit(&editor, ret_content);
}
