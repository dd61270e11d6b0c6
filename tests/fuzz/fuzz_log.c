/* Arbitrary bytes as an entry of the audit log, among good ones: it is told as damaged, or as what
 * it says; the others are told in any case. */
#include <cjson/cJSON.h>

#include "fs/publish/verdict.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int count(void *context, const cJSON *entry)
{
	unsigned *entries = context;
	char *text = cJSON_PrintUnformatted(entry);
	if (!cJSON_IsObject(entry) || !text)
		abort();
	free(text);
	++*entries;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char good[] =
	        "{\"version\":1,\"time\":\"2026-01-02T03:04:05.006Z\",\"host\":\"h\","
	        "\"who\":\"w\",\"what\":\"audit\",\"branch\":\"main\"}";
	struct object_store *store;
	unsigned all = 0, of_main = 0;
	if (object_memory_open(&store) < 0)
		return 0;
	object_put(store, "log/2026-01-02/1767323045006-0123456789abcdef", good, strlen(good),
	           NULL);
	object_put(store, "log/2026-01-02/1767323045007-0123456789abcdef", data, size, NULL);
	object_put(store, "log/2026-01-02/1767323045008-0123456789abcdef", good, strlen(good),
	           NULL);
	if (audit_log_list(store, 0, NULL, 10, count, &all, NULL) < 0 || all != 3)
		abort();
	if (audit_log_list(store, 0, "main", 10, count, &of_main, NULL) < 0 || of_main < 2)
		abort();
	object_store_free(store);
	return 0;
}
