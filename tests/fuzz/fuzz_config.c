/* Arbitrary bytes as lake.json: refused with words, or complete. */
#include "fs/lake.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct lake_config config = {0};
	struct message message = {{0}};
	if (lake_config_parse("lake.json", data, size, &config, &message) < 0) {
		if (!message.text[0] || config.store_url || config.control_group)
			abort();
		return 0;
	}
	if (!config.store_url || strlen(config.lake_id) != 32 || config.refresh_ms == 0)
		abort();
	lake_config_release(&config);
	return 0;
}
