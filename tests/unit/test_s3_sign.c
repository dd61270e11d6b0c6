/* s3_sign: AWS's published examples. The suite "aws-sig-v4-test-suite" signs as the service
 * "service" on 2015-08-30; the examples of the S3 documentation ("Signature Calculations for the
 * Authorization Header") sign as "s3" on 2013-05-24. */
#include <stdio.h>

#include "store/s3_sign.h"

/* After ours: cmocka makes a macro of our fail(). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define HEADERS_MAX 6

struct vector {
	const char *name;
	const char *method;
	const char *path;
	const char *query;
	struct http_header headers[HEADERS_MAX];
	const char *payload;
	const char *signed_headers;
	const char *signature;
};

static const struct vector suite[] = {
        {"get-vanilla",
         "GET",
         "/",
         "",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
        {"get-vanilla-query-order-key-case",
         "GET",
         "/",
         "Param2=value2&Param1=value1",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
        {"get-vanilla-query-order-encoded",
         "GET",
         "/",
         "Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"},
        {"get-vanilla-empty-query-key",
         "GET",
         "/",
         "Param1=value1",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"},
        {"get-vanilla-utf8-query",
         "GET",
         "/",
         "%E1%88%B4=bar",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"},
        {"get-header-key-duplicate",
         "GET",
         "/",
         "",
         {{"My-Header1", "value2"}, {"My-Header1", "value2"}, {"My-Header1", "value1"}},
         EMPTY,
         "host;my-header1;x-amz-date",
         "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
        {"get-header-value-order",
         "GET",
         "/",
         "",
         {{"My-Header1", "value4"},
          {"My-Header1", "value1"},
          {"My-Header1", "value3"},
          {"My-Header1", "value2"}},
         EMPTY,
         "host;my-header1;x-amz-date",
         "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
        {"get-header-value-trim",
         "GET",
         "/",
         "",
         {{"My-Header1", " value1"}, {"My-Header2", " \"a   b   c\""}},
         EMPTY,
         "host;my-header1;my-header2;x-amz-date",
         "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
        {"get-unreserved",
         "GET",
         "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
         "",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
        {"get-utf8",
         "GET",
         "/%E1%88%B4",
         "",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
        {"get-space-unnormalized",
         "GET",
         "/example%20space/",
         "",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "652487583200325589f1fba4c7e578f72c47cb61beeca81406b39ddec1366741"},
        {"get-slashes-unnormalized",
         "GET",
         "//example//",
         "",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "87cca117541a147f6df867677d98a7d80dff226d2bfca9e4ffa899665623c7e5"},
        {"get-vanilla-with-session-token",
         "GET",
         "/",
         "",
         {{"x-amz-security-token",
           "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"}},
         EMPTY,
         "host;x-amz-date;x-amz-security-token",
         "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"},
        {"post-header-key-case",
         "POST",
         "/",
         "",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
        {"post-vanilla-query",
         "POST",
         "/",
         "Param1=value1",
         {{NULL, NULL}},
         EMPTY,
         "host;x-amz-date",
         "28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"},
        {"post-x-www-form-urlencoded",
         "POST",
         "/",
         "",
         {{"Content-Type", "application/x-www-form-urlencoded"},
          {"Content-Length", "13"},
          {"x-amz-content-sha256",
           "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"}},
         "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
         "content-length;content-type;host;x-amz-content-sha256;x-amz-date",
         "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"},
};

static const struct vector documentation[] = {
        {"GET object",
         "GET",
         "/test.txt",
         "",
         {{"Range", "bytes=0-9"}, {"x-amz-content-sha256", EMPTY}},
         EMPTY,
         "host;range;x-amz-content-sha256;x-amz-date",
         "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
        {"PUT object",
         "PUT",
         "/test%24file.text",
         "",
         {{"Date", "Fri, 24 May 2013 00:00:00 GMT"},
          {"x-amz-storage-class", "REDUCED_REDUNDANCY"},
          {"x-amz-content-sha256",
           "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"}},
         "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
         "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
         "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
        {"GET bucket lifecycle",
         "GET",
         "/",
         "lifecycle",
         {{"x-amz-content-sha256", EMPTY}},
         EMPTY,
         "host;x-amz-content-sha256;x-amz-date",
         "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
        {"GET bucket",
         "GET",
         "/",
         "max-keys=2&prefix=J",
         {{"x-amz-content-sha256", EMPTY}},
         EMPTY,
         "host;x-amz-content-sha256;x-amz-date",
         "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
};

struct signer {
	const char *host, *access_key, *secret_key, *service, *date;
};

static void check_vector(const struct vector *vector, const struct signer *signer)
{
	struct http_header headers[HEADERS_MAX + 2] = {{"X-Amz-Date", signer->date},
	                                               {"Host", signer->host}};
	size_t count = 2;
	for (size_t i = 0; i < HEADERS_MAX && vector->headers[i].name != NULL; i++)
		headers[count++] = vector->headers[i];
	struct s3_signing signing = {.method = vector->method,
	                             .path = vector->path,
	                             .query = vector->query,
	                             .headers = headers,
	                             .header_count = count,
	                             .payload_sha256 = vector->payload,
	                             .access_key = signer->access_key,
	                             .secret_key = signer->secret_key,
	                             .region = "us-east-1",
	                             .service = signer->service,
	                             .amz_date = signer->date};
	CLEANUP(buffer_release) struct buffer got = {0};
	char wanted[1024];
	snprintf(wanted, sizeof(wanted),
	         "AWS4-HMAC-SHA256 Credential=%s/%.8s/us-east-1/%s/aws4_request, "
	         "SignedHeaders=%s, Signature=%s",
	         signer->access_key, signer->date, signer->service, vector->signed_headers,
	         vector->signature);
	assert_int_equal(s3_sign(&signing, &got), 0);
	buffer_u8(&got, 0);
	if (strcmp((const char *)got.data, wanted) != 0)
		fail_msg("%s:\n%s\nwanted\n%s", vector->name, (const char *)got.data, wanted);
}

static void test_suite_of_aws(void **state)
{
	static const struct signer signer = {"example.amazonaws.com", "AKIDEXAMPLE",
	                                     "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "service",
	                                     "20150830T123600Z"};
	for (size_t i = 0; i < ARRAY_SIZE(suite); i++)
		check_vector(&suite[i], &signer);
}

static void test_examples_of_s3(void **state)
{
	static const struct signer signer = {
	        "examplebucket.s3.amazonaws.com", "AKIAIOSFODNN7EXAMPLE",
	        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "s3", "20130524T000000Z"};
	for (size_t i = 0; i < ARRAY_SIZE(documentation); i++)
		check_vector(&documentation[i], &signer);
}

static void test_small_parts(void **state)
{
	char date[AMZ_DATE_LENGTH + 1], hash[SHA256_HEX + 1], md5[MD5_BASE64 + 1];
	CLEANUP(buffer_release) struct buffer encoded = {0};
	amz_date(1440938160999, date);
	assert_string_equal(date, "20150830T123600Z");
	payload_hash("", 0, hash);
	assert_string_equal(hash, EMPTY);
	payload_hash("Welcome to Amazon S3.", 21, hash);
	assert_string_equal(hash,
	                    "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072");
	assert_int_equal(md5_base64("", 0, md5), 0);
	assert_string_equal(md5, "1B2M2Y8AsgTpgAmY7PhCfg==");
	percent_encode(&encoded, "aZ9-._~/ +=&\xe1\x88\xb4%", true);
	percent_encode(&encoded, "/", false);
	buffer_u8(&encoded, 0);
	assert_string_equal((const char *)encoded.data, "aZ9-._~/%20%2B%3D%26%E1%88%B4%25%2F");
}

static void test_limits(void **state)
{
	struct http_header many[40];
	char query[200] = "";
	CLEANUP(buffer_release) struct buffer got = {0};
	for (size_t i = 0; i < ARRAY_SIZE(many); i++) {
		many[i] = (struct http_header){"x", "y"};
		strcat(query, "a=b&");
	}
	struct s3_signing signing = {.method = "GET",
	                             .path = "/",
	                             .query = "",
	                             .headers = many,
	                             .header_count = ARRAY_SIZE(many),
	                             .payload_sha256 = EMPTY,
	                             .access_key = "a",
	                             .secret_key = "s",
	                             .region = "r",
	                             .service = "s3",
	                             .amz_date = "20130524T000000Z"};
	assert_int_equal(s3_sign(&signing, &got), -ERR_TOO_LARGE);
	signing.header_count = 1;
	signing.query = query;
	assert_int_equal(s3_sign(&signing, &got), -ERR_TOO_LARGE);
	assert_int_equal(got.length, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_suite_of_aws),
	        cmocka_unit_test(test_examples_of_s3),
	        cmocka_unit_test(test_small_parts),
	        cmocka_unit_test(test_limits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
