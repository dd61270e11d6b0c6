/* s3_explain — hides which of a store's many refusals mean what to the person who has to act. */
#include <stdio.h>
#include <time.h>

#include "store/s3.h"

struct explanation {
	const char *code;
	const char *text;
};

/* What S3 and its relatives call it, and what to do. */
static const struct explanation explanations[] = {
        {"SignatureDoesNotMatch",
         "the secret key is wrong: the store knows the access key but not this signature; correct "
         "the secret key (AWS_SECRET_ACCESS_KEY or the profile)"},
        {"InvalidAccessKeyId",
         "the store does not know this access key; correct it (AWS_ACCESS_KEY_ID or the profile)"},
        {"ExpiredToken", "the session token has expired; sign in again"},
        {"InvalidToken", "the session token is not valid; sign in again"},
        {"NoSuchBucket", "there is no such bucket; create it first, or correct its name, the "
                         "region or the endpoint"},
        {"InvalidBucketName", "the store takes no such name for a bucket; correct it"},
        {"AccessDenied", "access denied by the store's policy; if it should be allowed, the key "
                         "needs s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket "
                         "and s3:AbortMultipartUpload here"},
        {"AllAccessDisabled", "the bucket is disabled"},
        {"InvalidObjectState", "the object is archived; restore it to a class that can be read"},
        {"EntityTooLarge", "the store takes no object of this size"},
        {"QuotaExceeded", "the quota is used up; make room, then try again"},
};

static void place_of(const struct s3 *s3, char *ret_place, size_t size)
{
	snprintf(ret_place, size, "s3://%s%s%s at %s", s3->settings.bucket,
	         s3->settings.prefix[0] != '\0' ? "/" : "", s3->settings.prefix,
	         s3->settings.endpoint);
}

static int explain_transport(const char *place, const char *what, const struct s3_answer *answer,
                             struct message *message)
{
	const struct http_response *http = &answer->http;
	switch (http->outcome) {
	case HTTP_NOT_SENT:
		return fail(message, -ERR_STORE_AWAY,
		            "%s cannot be reached: %s; check the endpoint and the network", place,
		            http->text);
	case HTTP_UNTRUSTED:
		return fail(message, -ERR_STORE_AWAY,
		            "%s is not trusted: %s; name the certificate of its authority with "
		            "--ca-file, ?ca-file= in the URL, or AWS_CA_BUNDLE",
		            place, http->text);
	case HTTP_FAILED:
		return fail(message, http->error, "%s: cannot transfer '%s': %s", place, what,
		            http->error == -ERR_INVALID ? http->text : error_text(http->error));
	default:
		return fail(message, -ERR_STORE_AWAY,
		            "%s does not answer ('%s'): %s; try again when it is back", place, what,
		            http->text);
	}
}

/* Seconds that this host's clock is ahead of the store's. */
static bool clock_ahead_s(const struct s3_answer *answer, int64_t *ret_seconds)
{
	struct tm tm = {0};
	int64_t server_ms;
	if (strptime(answer->http.date, "%a, %d %b %Y %H:%M:%S GMT", &tm) != NULL)
		server_ms = (int64_t)timegm(&tm) * 1000;
	else if (iso8601_parse(answer->error.server_time, &server_ms) < 0)
		return false;
	*ret_seconds = (clock_wall_ms() - server_ms) / 1000;
	return true;
}

static int explain_clock(const char *place, const struct s3_answer *answer, struct message *message)
{
	int64_t ahead_s;
	char by[64] = "";
	if (clock_ahead_s(answer, &ahead_s))
		snprintf(by, sizeof(by), " (it is %lld s %s)",
		         (long long)(ahead_s < 0 ? -ahead_s : ahead_s),
		         ahead_s < 0 ? "behind" : "ahead");
	return fail(message, -ERR_STORE_AWAY,
	            "%s refuses requests because this host's clock is wrong%s; set it (NTP)", place,
	            by);
}

/* The store names the bucket's region in a header, or in the body. */
static bool region_is_wrong(const struct s3 *s3, const struct s3_answer *answer,
                            const char **ret_region)
{
	const char *code = answer->error.code;
	*ret_region = answer->http.region[0] != '\0' ? answer->http.region : answer->error.region;
	if ((*ret_region)[0] != '\0' && strcmp(*ret_region, s3->settings.region) != 0)
		return true;
	return answer->http.status == 301 || answer->http.status == 307 ||
	       strcmp(code, "AuthorizationHeaderMalformed") == 0 ||
	       strcmp(code, "PermanentRedirect") == 0 ||
	       strcmp(code, "IllegalLocationConstraintException") == 0;
}

static int explain_region(const struct s3 *s3, const char *place, const char *region,
                          const struct s3_answer *answer, struct message *message)
{
	if (region[0] != '\0')
		return fail(message, -ERR_STORE_AWAY,
		            "%s: the region is wrong: the bucket is in '%s', not in '%s'; say so "
		            "with --region, ?region=%s in the URL, or AWS_REGION",
		            place, region, s3->settings.region, region);
	return fail(message, -ERR_STORE_AWAY,
	            "%s: the region '%s' or the endpoint is not the bucket's (%s)%s%s", place,
	            s3->settings.region,
	            answer->error.code[0] != '\0' ? answer->error.code : "redirected",
	            answer->error.message[0] != '\0' ? ": " : "", answer->error.message);
}

int s3_explain(struct s3 *s3, const char *what, const struct s3_answer *answer,
               struct message *message)
{
	char place[512];
	const char *region;
	const struct s3_error *error = &answer->error;
	int status = answer->http.status;
	place_of(s3, place, sizeof(place));
	if (answer->http.outcome != HTTP_ANSWERED)
		return explain_transport(place, what, answer, message);
	if (strcmp(error->code, "RequestTimeTooSkewed") == 0)
		return explain_clock(place, answer, message);
	if (region_is_wrong(s3, answer, &region))
		return explain_region(s3, place, region, answer, message);
	for (size_t i = 0; i < ARRAY_SIZE(explanations); i++)
		if (strcmp(error->code, explanations[i].code) == 0)
			return fail(message, -ERR_STORE_AWAY, "%s ('%s'): %s (%d %s)", place, what,
			            explanations[i].text, status, error->code);
	if (status == 501 || strcmp(error->code, "NotImplemented") == 0)
		return fail(message, -ERR_UNSUPPORTED, "%s does not know this request (%d %s) %s",
		            place, status, error->code, error->message);
	if (error->code[0] == '\0' && status < 500 && status != 403)
		return fail(message, -ERR_STORE_AWAY,
		            "%s answered %d, and not as S3 does; is the endpoint right?", place,
		            status);
	return fail(message, -ERR_STORE_AWAY, "%s answered '%s' with %d %s%s%s%s", place, what,
	            status, error->code, error->message[0] != '\0' ? ": " : "", error->message,
	            status == 403 ? "; no permission" : "; try again later");
}
