/*
 * Arbitrary bytes as an entry of a Delta table's log. What counts as a mere append must not remove
 * anything, change the table, or say nothing at all.
 */
#include "fs/publish/table_delta.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	CLEANUP(delta_writes_release) struct delta_writes writes = {0};
	struct delta_entry entry;
	struct message message = {0};

	if (delta_entry_parse((const char *)data, size, &entry, &writes, &message) < 0) {
		if (message.text[0] == '\0')
			abort();
		return 0;
	}
	for (const char *at = entry.operation; *at; at++)
		if (*at < ' ' || *at > '~')
			abort();
	if (!entry.not_blind && (writes.removed.count > 0 || entry.changes_table))
		abort();
	if (!entry.not_blind && writes.added.count == 0 &&
	    strncmp(entry.operation, "VACUUM ", 7) != 0)
		abort();
	if (string_list_common(&writes.added, &writes.added) == NULL && writes.added.count > 0)
		abort();
	return 0;
}
