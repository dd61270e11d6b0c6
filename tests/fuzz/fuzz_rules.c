/* Arbitrary bytes as the objects "rules/..." and "audits/...": what is accepted is written again
 * as something that says the same. */
#include "fs/publish/rules.h"
#include "fs/publish/verdict.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
	if (!holds)
		abort();
}

static void try_rules(const uint8_t *data, size_t size)
{
	CLEANUP(rules_cleanup) struct rules *first = NULL;
	CLEANUP(rules_cleanup) struct rules *second = NULL;
	CLEANUP(buffer_release) struct buffer bytes = {0};
	CLEANUP(buffer_release) struct buffer again = {0};
	struct message message = {{0}};
	int error = rules_parse(data, size, &first, &message);
	if (error < 0) {
		check(!first && message.text[0]);
		return;
	}
	if (rules_encode(first, &bytes) < 0)
		return; /* longer than the limit when it is written out */
	check(rules_parse(bytes.data, bytes.length, &second, NULL) == 0);
	check(rules_encode(second, &again) == 0 && again.length == bytes.length &&
	      memcmp(again.data, bytes.data, bytes.length) == 0);
	for (size_t i = 0; i < first->audit_count; i++) {
		CLEANUP(rules_cleanup) struct rules *without = NULL;
		check(rules_without_audit(first, first->audits[i].name, &without, NULL) == 0);
		check(without->audit_count + 1 == first->audit_count);
	}
}

static void try_verdict(const uint8_t *data, size_t size)
{
	CLEANUP(verdict_release) struct verdict first = {0};
	CLEANUP(verdict_release) struct verdict second = {0};
	CLEANUP(buffer_release) struct buffer bytes = {0};
	CLEANUP(buffer_release) struct buffer text = {0};
	struct message message = {{0}};
	if (verdict_decode(data, size, &first) < 0)
		return;
	check(verdict_encode(&first, &bytes) == 0);
	check(verdict_decode(bytes.data, bytes.length, &second) == 0);
	check(first.check_count == second.check_count && first.verdict == second.verdict);
	check(verdict_text(&first, &text) == 0);
	(void)verdict_fail(&first, -ERR_REFUSED, &message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	try_rules(data, size);
	try_verdict(data, size);
	return 0;
}
