/* Webhooks against receivers that follow a script: what is signed and sent, what is tried again and
 * when, and what a restart finds. */
#include "fs/publish/webhook.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>

#include "fs/json.h"
#include "tests/unit/http_server.h"

#include <cmocka.h>

#define OK ANSWER("200 OK", "", "ok", "2")
#define BROKEN_500 ANSWER("500 No", "", "", "0")

struct world {
	char directory[64], spool[80], secret[80];
	struct webhooks *webhooks;
	char log[8192];
	pthread_mutex_t lock;
};

static void keep_line(void *context, const char *line)
{
	struct world *world = context;
	pthread_mutex_lock(&world->lock);
	size_t length = strlen(world->log);
	snprintf(world->log + length, sizeof(world->log) - length, "%s\n", line);
	pthread_mutex_unlock(&world->lock);
}

static void open_webhooks(struct world *world, const struct webhooks_options *with)
{
	struct webhooks_options options = *with;
	options.directory = world->spool;
	options.lake_id = "0123456789abcdef0123456789abcdef";
	options.backoff_ms_min = options.backoff_ms_min ? options.backoff_ms_min : 10;
	options.backoff_ms_max = options.backoff_ms_max ? options.backoff_ms_max : 50;
	assert_int_equal(webhooks_open(&options, &world->webhooks), 0);
}

static void start(struct world *world)
{
	struct message message = {{0}};
	assert_int_equal(webhooks_start(world->webhooks, keep_line, world, &message), 0);
}

static void world_begin(struct world *world, const struct webhooks_options *with)
{
	memset(world, 0, sizeof(*world));
	pthread_mutex_init(&world->lock, NULL);
	strcpy(world->directory, "/tmp/test-webhook.XXXXXX");
	assert_non_null(mkdtemp(world->directory));
	snprintf(world->spool, sizeof(world->spool), "%s/webhooks", world->directory);
	snprintf(world->secret, sizeof(world->secret), "%s/secret", world->directory);
	open_webhooks(world, with);
}

static void world_end(struct world *world)
{
	char command[128];
	webhooks_close(world->webhooks);
	pthread_mutex_destroy(&world->lock);
	snprintf(command, sizeof(command), "rm -rf %s", world->directory);
	assert_int_equal(system(command), 0);
}

static void write_secret(const struct world *world, const char *text, mode_t mode)
{
	int fd = open(world->secret, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static int count_files(const char *directory)
{
	int count = 0;
	DIR *listing = opendir(directory);
	if (listing == NULL)
		return 0;
	for (struct dirent *entry; (entry = readdir(listing)) != NULL;)
		count += entry->d_type == DT_REG;
	closedir(listing);
	return count;
}

static int count_failed(const struct world *world)
{
	char failed[96];
	snprintf(failed, sizeof(failed), "%s/failed", world->spool);
	return count_files(failed);
}

static struct webhook_statistics statistics_of(const struct world *world)
{
	struct webhook_statistics statistics;
	webhooks_statistics(world->webhooks, &statistics);
	return statistics;
}

/* Until `delivered` were and `failed` did. */
static void await(const struct world *world, uint64_t delivered, uint64_t failed)
{
	int64_t end = clock_monotonic_ms() + 10000;
	struct webhook_statistics now = statistics_of(world);
	while ((now.delivered < delivered || now.failed < failed) && clock_monotonic_ms() < end) {
		usleep(2000);
		now = statistics_of(world);
	}
	assert_int_equal(now.delivered, delivered);
	assert_int_equal(now.failed, failed);
}

static int send_to(const struct world *world, int port, const char *secret, const char *text)
{
	char url[64];
	struct message message = {{0}};
	snprintf(url, sizeof(url), "http://127.0.0.1:%d/services/T0/B0/token", port);
	struct webhook_rule rule = {.name = "chat", .url = url, .secret_file = (char *)secret};
	struct webhook_event event = {
	        .event = "published", .branch = "main", .changed = -1, .message = text};
	int result =
	        webhook_send(world->webhooks, &rule, &event, clock_monotonic_ms() + 2000, &message);
	if (result != 0)
		assert_string_not_equal(message.text, "");
	return result;
}

/* -- what is sent -- */

/* The header's value, in a static buffer. */
static const char *header_of(const char *request, const char *name)
{
	static char value[256];
	char line[64];
	snprintf(line, sizeof(line), "\r\n%s: ", name);
	const char *at = strcasestr(request, line);
	assert_non_null(at);
	at += strlen(line);
	snprintf(value, sizeof(value), "%.*s", (int)strcspn(at, "\r"), at);
	return value;
}

static void signatures_are_those_of_the_standards(void **state)
{
	(void)state;
	char signature[WEBHOOK_SIGNATURE_LENGTH + 1];
	struct id mac;
	char hex[ID_HEX + 1];
	/* RFC 4231, test cases 2 and 6 */
	hmac_sha256("Jefe", 4, "what do ya want for nothing?", 28, &mac);
	id_to_hex(&mac, hex);
	assert_string_equal(hex,
	                    "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
	uint8_t key[131];
	memset(key, 0xaa, sizeof(key));
	hmac_sha256(key, sizeof(key), "Test Using Larger Than Block-Size Key - Hash Key First", 54,
	            &mac);
	id_to_hex(&mac, hex);
	assert_string_equal(hex,
	                    "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
	/* python3: hmac.new(b"key", b'1700000000.{"a":1}', "sha256").hexdigest() */
	assert_int_equal(webhook_sign("key", 3, "1700000000", "{\"a\":1}", signature), 0);
	assert_string_equal(
	        signature,
	        "sha256=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03");
}

static void a_delivery_is_signed_and_says_what_happened(void **state)
{
	(void)state;
	static const char *const script[] = {OK};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){0});
	server_start(&server, script, 1);
	write_secret(&world, "s3cr3t\n", 0600);
	start(&world);
	assert_int_equal(send_to(&world, server.port, world.secret, "a \"message\"\nmore"), 0);
	await(&world, 1, 0);
	const char *request = server.requests[0];
	assert_memory_equal(request, "POST /services/T0/B0/token HTTP/1.1\r\n", 37);
	assert_string_equal(header_of(request, "Content-Type"), "application/json");
	assert_string_equal(header_of(request, "X-Lake-Event"), "published");
	char timestamp[256], signature[WEBHOOK_SIGNATURE_LENGTH + 1];
	strcpy(timestamp, header_of(request, "X-Lake-Timestamp"));
	assert_true(llabs(strtoll(timestamp, NULL, 10) - clock_wall_ms() / 1000) < 20);
	const char *body = strstr(request, "\r\n\r\n") + 4;
	assert_int_equal(webhook_sign("s3cr3t", 6, timestamp, body, signature), 0);
	assert_string_equal(header_of(request, "X-Lake-Signature-256"), signature);
	cJSON *json = cJSON_Parse(body);
	assert_string_equal(cJSON_GetObjectItem(json, "event")->valuestring, "published");
	assert_string_equal(cJSON_GetObjectItem(json, "branch")->valuestring, "main");
	assert_string_equal(cJSON_GetObjectItem(json, "message")->valuestring,
	                    "a \"message\"\nmore");
	assert_string_equal(cJSON_GetObjectItem(json, "delivery")->valuestring,
	                    header_of(request, "X-Lake-Delivery"));
	assert_non_null(strstr(cJSON_GetObjectItem(json, "text")->valuestring, ": a \"message\""));
	assert_null(cJSON_GetObjectItem(json, "changed"));
	cJSON_Delete(json);
	assert_int_equal(count_files(world.spool), 0);
	server_stop(&server);
	world_end(&world);
}

static void long_messages_are_cut_between_characters(void **state)
{
	(void)state;
	char *text = malloc(100001);
	memset(text, 'x', 100000);
	for (int i = 1; i + 1 < 100000; i += 2)
		memcpy(text + i, "\xc3\xa9", 2);
	text[100000] = '\0';
	struct webhook_event event = {
	        .event = "merged", .branch = "main", .changed = 3, .message = text};
	cJSON *audits = cJSON_CreateArray();
	cJSON_AddItemToArray(audits, cJSON_CreateString(text));
	for (int i = 0; i < 4; i++)
		cJSON_AddItemToArray(audits, cJSON_CreateString(text));
	event.audits = audits;
	char *body = webhook_body("lake", "id", &event);
	cJSON *json = cJSON_Parse(body);
	size_t length = strlen(cJSON_GetObjectItem(json, "message")->valuestring);
	assert_true(length > 16000 && length <= 16384 && length % 2 == 1);
	assert_null(cJSON_GetObjectItem(json, "message_hex"));
	assert_null(cJSON_GetObjectItem(json, "audits"));
	assert_true(cJSON_IsTrue(cJSON_GetObjectItem(json, "audits_omitted")));
	cJSON_Delete(json);
	cJSON_Delete(audits);
	free(body);
	free(text);
}

/* -- what is tried again -- */

static void failures_of_the_receiver_are_repeated(void **state)
{
	(void)state;
	static const char *const script[] = {BROKEN_500, "CLOSE", ANSWER("408 Slow", "", "", "0"),
	                                     OK};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){0});
	server_start(&server, script, 4);
	start(&world);
	assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	await(&world, 1, 0);
	assert_int_equal(server.request_count, 4);
	/* a kept connection that turns out closed is replaced without being counted */
	assert_in_range(statistics_of(&world).retried, 2, 3);
	/* the same delivery, so that receivers can tell */
	char first[256];
	strcpy(first, header_of(server.requests[0], "X-Lake-Delivery"));
	assert_string_equal(header_of(server.requests[3], "X-Lake-Delivery"), first);
	assert_null(strcasestr(server.requests[0], "X-Lake-Signature"));
	/* one line when it began, without the URL's path, which may be a key */
	assert_non_null(strstr(world.log, "answers 500; it is tried again"));
	assert_null(strstr(world.log, "token"));
	server_stop(&server);
	world_end(&world);
}

static void a_receiver_that_asks_for_time_gets_it(void **state)
{
	(void)state;
	static const char *const script[] = {
	        ANSWER("429 Too Many Requests", "Retry-After: 1\r\n", "", "0"), OK};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){0});
	server_start(&server, script, 2);
	start(&world);
	int64_t begin = clock_monotonic_ms();
	assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	await(&world, 2, 0);
	assert_true(clock_monotonic_ms() - begin >= 1000);
	/* both waited, and not each for itself */
	assert_in_range(server.request_count, 3, 3);
	server_stop(&server);
	world_end(&world);
}

static void refusals_and_redirects_are_final(void **state)
{
	(void)state;
	static const char *const script[] = {
	        ANSWER("404 Not Found", "", "", "0"),
	        ANSWER("302 Found", "Location: http://127.0.0.1:1/elsewhere\r\n", "", "0"),
	        ANSWER("307 Temporary Redirect", "Location: /elsewhere\r\n", "", "0")};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){0});
	server_start(&server, script, 3);
	start(&world);
	for (uint64_t i = 1; i <= 3; i++) {
		assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
		await(&world, 0, i);
	}
	assert_int_equal(server.request_count, 3);
	webhooks_close(world.webhooks); /* then it has logged, too */
	assert_int_equal(count_failed(&world), 3);
	assert_int_equal(count_files(world.spool), 0);
	assert_non_null(strstr(world.log, "answers 404"));
	assert_non_null(strstr(world.log, "redirect"));
	open_webhooks(&world, &(struct webhooks_options){0});
	server_stop(&server);
	world_end(&world);
}

static void what_never_works_is_given_up(void **state)
{
	(void)state;
	static const char *const script[] = {BROKEN_500};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){.give_up_ms = 700});
	server_start(&server, script, 1);
	start(&world);
	assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	await(&world, 0, 1);
	assert_in_range(server.request_count, 2, SERVER_REQUESTS_MAX);
	assert_int_equal(count_failed(&world), 1);
	server_stop(&server);
	world_end(&world);
}

static void a_receiver_that_hangs_holds_up_nobody_else(void **state)
{
	(void)state;
	static const char *const hangs[] = {"STALL"}, *const answers[] = {OK};
	struct world world;
	struct server slow, quick;
	world_begin(&world, &(struct webhooks_options){.attempt_ms = 3000});
	server_start(&slow, hangs, 1);
	server_start(&quick, answers, 1);
	start(&world);
	for (int i = 0; i < 3; i++)
		assert_int_equal(send_to(&world, slow.port, NULL, NULL), 0);
	int64_t begin = clock_monotonic_ms();
	for (int i = 0; i < 3; i++)
		assert_int_equal(send_to(&world, quick.port, NULL, NULL), 0);
	await(&world, 3, 0);
	assert_true(clock_monotonic_ms() - begin < 2500);
	/* and closing does not wait for it */
	begin = clock_monotonic_ms();
	webhooks_close(world.webhooks);
	assert_true(clock_monotonic_ms() - begin < 1500);
	assert_int_equal(count_files(world.spool), 3);
	open_webhooks(&world, &(struct webhooks_options){0});
	server_stop(&slow);
	server_stop(&quick);
	world_end(&world);
}

static void an_attempt_takes_a_bounded_time(void **state)
{
	(void)state;
	static const char *const script[] = {"STALL", OK};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){.attempt_ms = 300});
	server_start(&server, script, 2);
	start(&world);
	int64_t begin = clock_monotonic_ms();
	assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	await(&world, 1, 0);
	assert_in_range(clock_monotonic_ms() - begin, 300, 5000);
	server_stop(&server);
	world_end(&world);
}

static void who_said_yes_and_went_on_talking_has_it(void **state)
{
	(void)state;
	static const char *const script[] = {
	        "HANG\nHTTP/1.1 202 Accepted\r\nContent-Length: 1000000000\r\n\r\nbla"};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){.attempt_ms = 1500});
	server_start(&server, script, 1);
	start(&world);
	assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	await(&world, 1, 0);
	assert_int_equal(server.request_count, 1);
	server_stop(&server);
	world_end(&world);
}

/* -- secrets -- */

static void nothing_goes_out_unsigned(void **state)
{
	(void)state;
	static const char *const script[] = {OK};
	struct world world;
	struct server server;
	struct webhook_standing standing;
	struct message message = {{0}};
	char url[64];
	world_begin(&world, &(struct webhooks_options){0});
	server_start(&server, script, 1);
	start(&world);
	snprintf(url, sizeof(url), "http://127.0.0.1:%d/services/T0/B0/token", server.port);
	struct webhook_rule rule = {.name = "chat", .url = url, .secret_file = world.secret};
	assert_true(webhook_check(&rule, &message) < 0);
	assert_int_equal(send_to(&world, server.port, world.secret, NULL), 0);
	int64_t end = clock_monotonic_ms() + 5000;
	while (statistics_of(&world).retried < 2 && clock_monotonic_ms() < end)
		usleep(1000);
	webhook_standing(world.webhooks, url, &standing);
	assert_int_equal(standing.waiting, 1);
	assert_non_null(strstr(standing.trouble, "cannot read the secret file"));
	write_secret(&world, "open to others", 0644);
	assert_int_equal(webhook_check(&rule, &message), -ERR_REFUSED);
	write_secret(&world, "\n", 0600);
	assert_int_equal(webhook_check(&rule, &message), -ERR_INVALID);
	usleep(100000);
	assert_int_equal(server.request_count, 0);
	write_secret(&world, "now", 0640);
	assert_int_equal(webhook_check(&rule, &message), 0);
	await(&world, 1, 0);
	header_of(server.requests[0], "X-Lake-Signature-256");
	webhook_standing(world.webhooks, url, &standing);
	assert_string_equal(standing.trouble, "");
	server_stop(&server);
	world_end(&world);
}

/* -- the spool -- */

static void a_receiver_that_was_down_gets_everything(void **state)
{
	(void)state;
	static const char *const script[] = {OK};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){0});
	start(&world);
	server_reserve(&server, script, 1);
	for (int i = 0; i < 5; i++)
		assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	int64_t end = clock_monotonic_ms() + 5000;
	while (statistics_of(&world).retried < 2 && clock_monotonic_ms() < end)
		usleep(1000);
	server_listen(&server);
	await(&world, 5, 0);
	assert_int_equal(count_files(world.spool), 0);
	server_stop(&server);
	world_end(&world);
}

static void what_a_process_left_the_next_one_delivers(void **state)
{
	(void)state;
	static const char *const script[] = {OK};
	struct world world;
	struct server server;
	char path[160];
	world_begin(&world, &(struct webhooks_options){0});
	server_reserve(&server, script, 1);
	assert_int_equal(send_to(&world, server.port, NULL, "while no daemon ran"), 1);
	assert_int_equal(count_files(world.spool), 1);
	/* what crashes leave, and strangers */
	snprintf(path, sizeof(path), "%s/.new-1700000000000-0123456789abcdef", world.spool);
	close(open(path, O_CREAT | O_WRONLY, 0600));
	snprintf(path, sizeof(path), "%s/1700000000000-0123456789abcdef", world.spool);
	int fd = open(path, O_CREAT | O_WRONLY, 0600);
	assert_int_equal(write(fd, "{\"version\":1,\"url\":", 19), 19);
	close(fd);
	webhooks_close(world.webhooks);

	server_listen(&server);
	open_webhooks(&world, &(struct webhooks_options){0});
	start(&world);
	await(&world, 1, 0);
	assert_non_null(strstr(server.requests[0], "while no daemon ran"));
	assert_int_equal(count_files(world.spool), 0);
	assert_int_equal(count_failed(&world), 1);
	server_stop(&server);
	world_end(&world);
}

static void without_a_daemon_it_is_tried_at_once(void **state)
{
	(void)state;
	static const char *const script[] = {OK, ANSWER("410 Gone", "", "", "0"), "STALL"};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){0});
	server_start(&server, script, 3);
	assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	assert_int_equal(count_files(world.spool), 0);
	assert_int_equal(send_to(&world, server.port, NULL, NULL), error_system(EREMOTEIO));
	assert_int_equal(count_failed(&world), 1);
	int64_t begin = clock_monotonic_ms();
	assert_int_equal(send_to(&world, server.port, NULL, NULL), 1);
	assert_in_range(clock_monotonic_ms() - begin, 1900, 8000);
	assert_int_equal(count_files(world.spool), 1);
	server_stop(&server);
	world_end(&world);
}

static void the_spool_is_bounded(void **state)
{
	(void)state;
	static const char *const script[] = {"STALL"};
	struct world world;
	struct server server;
	world_begin(&world, &(struct webhooks_options){.spool_max = 3});
	server_start(&server, script, 1);
	start(&world);
	for (int i = 0; i < 8; i++)
		assert_int_equal(send_to(&world, server.port, NULL, NULL), 0);
	struct webhook_statistics now = statistics_of(&world);
	assert_int_equal(now.waiting, 3);
	assert_int_equal(now.failed, 5);
	assert_int_equal(count_files(world.spool), 3);
	assert_int_equal(count_failed(&world), 5);
	/* and without a daemon */
	webhooks_close(world.webhooks);
	open_webhooks(&world, &(struct webhooks_options){.spool_max = 3});
	struct server down;
	server_reserve(&down, script, 1);
	assert_int_equal(send_to(&world, down.port, NULL, NULL), 1);
	assert_int_equal(count_files(world.spool), 3);
	close(down.fd);
	pthread_mutex_destroy(&down.lock);
	server_stop(&server);
	world_end(&world);
}

struct sender {
	const struct world *world;
	int port;
};

static void *send_many(void *argument)
{
	const struct sender *sender = argument;
	for (int i = 0; i < 20; i++)
		send_to(sender->world, sender->port, NULL, NULL);
	return NULL;
}

static void many_senders_lose_nothing(void **state)
{
	(void)state;
	static const char *const script[] = {OK, BROKEN_500, OK, OK, "CLOSE", OK};
	struct world world;
	struct server servers[3];
	pthread_t threads[3];
	struct sender senders[3];
	world_begin(&world, &(struct webhooks_options){0});
	start(&world);
	for (int i = 0; i < 3; i++) {
		server_start(&servers[i], script, 6);
		senders[i] = (struct sender){&world, servers[i].port};
		pthread_create(&threads[i], NULL, send_many, &senders[i]);
	}
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	await(&world, 60, 0);
	assert_int_equal(statistics_of(&world).waiting, 0);
	assert_int_equal(count_files(world.spool), 0);
	for (int i = 0; i < 3; i++)
		server_stop(&servers[i]);
	world_end(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(signatures_are_those_of_the_standards),
	        cmocka_unit_test(a_delivery_is_signed_and_says_what_happened),
	        cmocka_unit_test(long_messages_are_cut_between_characters),
	        cmocka_unit_test(failures_of_the_receiver_are_repeated),
	        cmocka_unit_test(a_receiver_that_asks_for_time_gets_it),
	        cmocka_unit_test(refusals_and_redirects_are_final),
	        cmocka_unit_test(what_never_works_is_given_up),
	        cmocka_unit_test(a_receiver_that_hangs_holds_up_nobody_else),
	        cmocka_unit_test(an_attempt_takes_a_bounded_time),
	        cmocka_unit_test(who_said_yes_and_went_on_talking_has_it),
	        cmocka_unit_test(nothing_goes_out_unsigned),
	        cmocka_unit_test(a_receiver_that_was_down_gets_everything),
	        cmocka_unit_test(what_a_process_left_the_next_one_delivers),
	        cmocka_unit_test(without_a_daemon_it_is_tried_at_once),
	        cmocka_unit_test(the_spool_is_bounded),
	        cmocka_unit_test(many_senders_lose_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
