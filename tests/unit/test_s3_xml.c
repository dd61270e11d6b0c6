/* s3_xml: what servers send, and what they should not. */
#include <stdio.h>

#include "store/s3_xml.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define HEAD "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
#define S3_NAMESPACE " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\""

static void test_error(void **state)
{
	static const char text[] =
	        HEAD "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The region "
	             "&apos;us-east-1&apos; is\nwrong</Message><Region>eu-west-1</Region>"
	             "<ServerTime>2026-01-31T12:00:00Z</ServerTime><Other><Code>no</Code></Other>"
	             "</Error>";
	struct s3_error error;
	assert_int_equal(s3_xml_error(text, sizeof(text) - 1, &error), 0);
	assert_string_equal(error.code, "AuthorizationHeaderMalformed");
	assert_string_equal(error.message, "The region 'us-east-1' is wrong");
	assert_string_equal(error.region, "eu-west-1");
	assert_string_equal(error.server_time, "2026-01-31T12:00:00Z");
	static const char wrapped[] =
	        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>"
	        "<Type>Sender</Type><Code>AccessDenied</Code></Error></ErrorResponse>";
	assert_int_equal(s3_xml_error(wrapped, sizeof(wrapped) - 1, &error), 0);
	assert_string_equal(error.code, "AccessDenied");
	assert_string_equal(error.message, "");
}

static void test_error_that_is_none(void **state)
{
	static const char *const bodies[] = {"",
	                                     "   ",
	                                     "not xml",
	                                     "<html><body>404</body></html>",
	                                     "<Error></Error>",
	                                     "<Error><Code></Code></Error>",
	                                     "<Error><Code>NoSuchKey</Code>",
	                                     "<Error><Code>NoSuchKey</Error></Code>"};
	for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
		struct s3_error error = {.code = "old"};
		assert_int_equal(s3_xml_error(bodies[i], strlen(bodies[i]), &error), -ERR_CORRUPT);
		assert_string_equal(error.code, "");
	}
	/* Longer than the fields: cut, not overrun. */
	char *longer = NULL, name[1000];
	memset(name, 'x', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	assert_true(asprintf(&longer, "<Error><Code>%s</Code><Message>%s</Message></Error>", name,
	                     name) > 0);
	struct s3_error error;
	assert_int_equal(s3_xml_error(longer, strlen(longer), &error), 0);
	assert_int_equal(strlen(error.code), sizeof(error.code) - 1);
	assert_int_equal(strlen(error.message), sizeof(error.message) - 1);
	free(longer);
}

#define ITEM(key, size) \
	"<Contents><Key>" key "</Key><LastModified>2026-01-31T12:00:00.123Z</LastModified>" \
	"<ETag>&quot;0cc175b9c0f1b6a831c399e269772661&quot;</ETag><Size>" size "</Size>" \
	"<StorageClass>STANDARD</StorageClass><Owner><ID>test</ID></Owner></Contents>"
#define LIST(inside) HEAD "<ListBucketResult" S3_NAMESPACE ">" inside "</ListBucketResult>"

static void test_page(void **state)
{
	static const char text[] = LIST(
	        "<Name>lake</Name><Prefix>a/</Prefix><IsTruncated>true</IsTruncated>" ITEM("a/b",
	                                                                                   "12")
	                ITEM("a%2Fc+d%2B",
	                     "0") "<NextContinuationToken>1+/=t</NextContinuationToken><KeyCount>2"
	                          "</KeyCount>");
	CLEANUP(s3_page_release) struct s3_page page = {0};
	assert_int_equal(s3_xml_page(text, sizeof(text) - 1, &page), 0);
	assert_int_equal(page.count, 2);
	assert_string_equal(page.items[0].key, "a/b");
	assert_int_equal(page.items[0].size, 12);
	assert_int_equal(page.items[0].modified_ms, 1769860800000);
	assert_string_equal(page.items[0].etag, "0cc175b9c0f1b6a831c399e269772661");
	assert_string_equal(page.items[1].key, "a/c d+");
	assert_string_equal(page.next_token, "1+/=t");
}

static void test_last_page(void **state)
{
	static const char text[] = LIST("<IsTruncated>false</IsTruncated><NextContinuationToken>x"
	                                "</NextContinuationToken>");
	struct s3_page page = {.count = 9};
	assert_int_equal(s3_xml_page(text, sizeof(text) - 1, &page), 0);
	assert_int_equal(page.count, 0);
	assert_null(page.next_token);
	s3_page_release(&page);
}

static void test_pages_that_are_none(void **state)
{
	static const char *const bodies[] = {
	        "",
	        LIST(""), /* does not say whether it is the last */
	        LIST("<IsTruncated>true</IsTruncated>"),
	        LIST("<IsTruncated>true</IsTruncated><NextContinuationToken></"
	             "NextContinuationToken>"),
	        LIST("<IsTruncated>false</IsTruncated>" ITEM("a", "-1")),
	        LIST("<IsTruncated>false</IsTruncated>" ITEM("a", "1e3")),
	        LIST("<IsTruncated>false</IsTruncated>" ITEM("a", "99999999999999999999")),
	        LIST("<IsTruncated>false</IsTruncated>" ITEM("a%0", "1") ITEM("%00", "1")),
	        LIST("<IsTruncated>false</IsTruncated>" ITEM("a%zz", "1")),
	        LIST("<IsTruncated>false</IsTruncated><Contents><Size>1</Size></Contents>"),
	        LIST("<IsTruncated>false</IsTruncated><Contents><Key>a</Key></Contents>"),
	        "<Error><Code>SlowDown</Code></Error>",
	        HEAD "<!DOCTYPE x [<!ENTITY e \"eeeeeeeeee\">]><ListBucketResult><IsTruncated>false"
	             "</IsTruncated></ListBucketResult>",
	        LIST("<IsTruncated>false</IsTruncated>") "<more/>",
	        "<ListBucketResult><IsTruncated>false</IsTruncated>",
	        LIST("<IsTruncated>false</IsTruncated><a><a><a><a><a><a><a><a><a><a><a><a><a>"
	             "</a></a></a></a></a></a></a></a></a></a></a></a></a>"),
	};
	for (size_t i = 0; i < ARRAY_SIZE(bodies); i++) {
		struct s3_page page = {0};
		int r = s3_xml_page(bodies[i], strlen(bodies[i]), &page);
		if (r != -ERR_CORRUPT)
			fail_msg("%d for %s", r, bodies[i]);
		assert_null(page.items);
	}
}

static void test_uploads(void **state)
{
	static const char begun[] = HEAD "<InitiateMultipartUploadResult" S3_NAMESPACE
	                                 "><Bucket>b</Bucket><UploadId>2~ab/+=</UploadId>"
	                                 "</InitiateMultipartUploadResult>";
	char *upload_id = NULL;
	assert_int_equal(s3_xml_upload_id(begun, sizeof(begun) - 1, &upload_id), 0);
	assert_string_equal(upload_id, "2~ab/+=");
	free(upload_id);
	upload_id = NULL;
	static const char without[] =
	        "<InitiateMultipartUploadResult><UploadId/></InitiateMultipartUploadResult>";
	assert_int_equal(s3_xml_upload_id(without, sizeof(without) - 1, &upload_id), -ERR_CORRUPT);
	assert_null(upload_id);
	/* Blanks while the store works, before the declaration. */
	static const char done[] = "  \r\n " HEAD "<CompleteMultipartUploadResult" S3_NAMESPACE
	                           "><ETag></ETag></CompleteMultipartUploadResult>";
	assert_int_equal(s3_xml_completed(done, sizeof(done) - 1), 0);
	static const char failed[] = "   " HEAD "<Error><Code>InternalError</Code></Error>";
	assert_int_equal(s3_xml_completed(failed, sizeof(failed) - 1), -ERR_CORRUPT);
	assert_int_equal(s3_xml_completed("", 0), -ERR_CORRUPT);
}

static void test_deletions(void **state)
{
	static const char good[] = HEAD "<DeleteResult" S3_NAMESPACE "></DeleteResult>";
	static const char bad[] =
	        "<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b</Key>"
	        "<Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>";
	struct s3_error error = {0};
	assert_int_equal(s3_xml_deleted(good, sizeof(good) - 1, &error), 0);
	assert_int_equal(s3_xml_deleted(bad, sizeof(bad) - 1, &error), -ERR_NOT_PERMITTED);
	assert_string_equal(error.code, "AccessDenied");
	assert_string_equal(error.message, "no");
	assert_int_equal(s3_xml_deleted("<Error><Code>x</Code></Error>", 29, &error), -ERR_CORRUPT);
}

static void test_sts(void **state)
{
	static const char body[] =
	        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
	        "<SessionToken>T</SessionToken><SecretAccessKey>S</SecretAccessKey>"
	        "<Expiration>2026-01-31T12:00:00Z</Expiration><AccessKeyId>A</AccessKeyId>"
	        "</Credentials></AssumeRoleWithWebIdentityResult>"
	        "</AssumeRoleWithWebIdentityResponse>";
	struct sts_credentials credentials = {0};
	assert_int_equal(s3_xml_sts(body, sizeof(body) - 1, &credentials), 0);
	assert_string_equal(credentials.access_key, "A");
	assert_string_equal(credentials.secret_key, "S");
	assert_string_equal(credentials.session_token, "T");
	assert_int_equal(credentials.expires_ms, 1769860800000);
	free(credentials.session_token);
	for (size_t length = 0; length < sizeof(body) - 1; length++)
		assert_int_equal(s3_xml_sts(body, length, &credentials), -ERR_CORRUPT);
}

static void test_times(void **state)
{
	static const struct {
		const char *text;
		int64_t ms;
	} times[] = {{"1970-01-01T00:00:01Z", 1000},
	             {"2026-01-31T12:00:00.999Z", 1769860800000},
	             {"2026-01-31T13:00:00+01:00", 1769860800000},
	             {"2026-01-31T11:30:00-00:30", 1769860800000}};
	static const char *const bad[] = {"",
	                                  "2026-01-31",
	                                  "2026-01-31T12:00:00",
	                                  "2026-01-31T12:00:00Zulu",
	                                  "2026-13-31T12:00:00Z",
	                                  "Sat, 31 Jan 2026 12:00:00 GMT"};
	int64_t ms = 0;
	for (size_t i = 0; i < ARRAY_SIZE(times); i++) {
		assert_int_equal(iso8601_parse(times[i].text, &ms), 0);
		assert_int_equal(ms, times[i].ms);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(iso8601_parse(bad[i], &ms), -ERR_CORRUPT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_error),
	        cmocka_unit_test(test_error_that_is_none),
	        cmocka_unit_test(test_page),
	        cmocka_unit_test(test_last_page),
	        cmocka_unit_test(test_pages_that_are_none),
	        cmocka_unit_test(test_uploads),
	        cmocka_unit_test(test_deletions),
	        cmocka_unit_test(test_sts),
	        cmocka_unit_test(test_times),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
