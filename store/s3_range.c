/*
 * s3_range — hides how a range is asked for, whether an answer holds it, and how a read that was
 * cut goes on where it broke.
 *
 * What came so far is kept only when headers said which bytes of which version they are: the rest
 * must have the same ETag, or the read starts over. That all of it is right is for the caller's
 * hashes to say.
 */
#include <stdio.h>

#include "store/s3.h"

#define RESUME_BYTES_MIN (64u << 10) /* less is not worth it */

bool s3_range_text(const struct s3_range *range, char ret_text[S3_RANGE_TEXT])
{
	if (range->offset == 0 && range->length == UINT64_MAX)
		return false;
	unsigned long long first = range->offset, last = range->offset + range->length - 1;
	if (range->length > S3_RANGE_END_MAX - range->offset)
		snprintf(ret_text, S3_RANGE_TEXT, "bytes=%llu-", first);
	else
		snprintf(ret_text, S3_RANGE_TEXT, "bytes=%llu-%llu", first, last);
	return true;
}

/* A Content-Range that names the bytes asked for, fewer only at the object's end. */
static bool names_range(const struct s3_range *range, const char *header, uint64_t *ret_length)
{
	unsigned long long first, last, total;
	if (sscanf(header, "bytes %llu-%llu/%llu", &first, &last, &total) != 3)
		return false;
	if (first != range->offset || last < first || last >= total)
		return false;
	*ret_length = last - first + 1;
	return *ret_length == range->length || (*ret_length < range->length && last + 1 == total);
}

bool s3_range_matches(const struct s3_range *range, const char *content_range, uint64_t got)
{
	uint64_t length;
	return names_range(range, content_range, &length) && length == got;
}

void s3_resume_begin(struct s3_resume *ret_resume, const struct s3_request *request)
{
	*ret_resume = (struct s3_resume){.request = *request};
	if (request->range == NULL)
		return;
	ret_resume->asked = ret_resume->rest = *request->range;
	ret_resume->request.range = &ret_resume->rest;
	ret_resume->request.keep_cut = true;
	ret_resume->before = request->into->length;
}

static void start_over(struct s3_resume *resume)
{
	resume->request.into->length = resume->before;
	resume->rest = resume->asked;
	resume->got = 0;
}

static bool can_go_on(const struct s3_resume *resume, const struct http_response *http,
                      uint64_t came)
{
	uint64_t length;
	if (came < RESUME_BYTES_MIN || http->etag[0] == '\0')
		return false;
	if (http->status == 200)
		return resume->rest.offset == 0 && came < resume->rest.length;
	return http->status == 206 && names_range(&resume->rest, http->content_range, &length) &&
	       came < length;
}

enum s3_verdict s3_resume_after(struct s3_resume *resume, struct s3_answer *answer,
                                enum s3_verdict verdict, struct s3_patience *patience)
{
	const struct http_response *http = &answer->http;
	if (resume->request.range == NULL)
		return verdict;
	struct buffer *into = resume->request.into;
	uint64_t came = into->length - resume->before - resume->got;
	bool part = http->status == 200 || http->status == 206;
	if (resume->got > 0 && part && (came > 0 || s3_is_good(answer)) &&
	    strcmp(http->etag, resume->etag) != 0) { /* replaced meanwhile */
		start_over(resume);
		return S3_AGAIN;
	}
	if (verdict == S3_DONE) {
		answer->resumed = resume->got;
		if (!s3_is_good(answer))
			start_over(resume);
		return verdict;
	}
	if (can_go_on(resume, http, came)) {
		snprintf(resume->etag, sizeof(resume->etag), "%s", http->etag);
		resume->got += came;
		resume->rest.offset += came;
		if (resume->rest.length != UINT64_MAX)
			resume->rest.length -= came;
		patience->tries = 0; /* it gets on */
	}
	into->length = resume->before + resume->got;
	return verdict;
}

void s3_resume_fail(struct s3_resume *resume)
{
	if (resume->request.range != NULL)
		start_over(resume);
}
