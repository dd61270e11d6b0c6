/* What users and their tools write: shared config files, credential JSON, s3:// URLs. A URL that is
 * taken must come back the same when it is written and read again. */
#include <stdio.h>

#include "store/s3.h"
#include "store/s3_ini.h"

static void fuzz_url(const char *text)
{
	struct s3_settings settings = {0};
	char *kept = NULL, *again = NULL;
	if (s3_settings_parse(text, &settings, NULL) < 0)
		return;
	if (s3_settings_url(&settings, &kept) < 0)
		abort();
	s3_settings_release(&settings);
	if (s3_settings_parse(kept, &settings, NULL) < 0 ||
	    s3_settings_url(&settings, &again) < 0 || strcmp(kept, again) != 0)
		abort();
	s3_settings_release(&settings);
	free(kept);
	free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ini ini = {0};
	struct s3_key key = {0};
	if (size == 0)
		return 0;
	setenv("AWS_CONFIG_FILE", "/nonexistent", 1);
	setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent", 1);
	char *text = malloc(size + 5);
	memcpy(text, "s3://", 5);
	memcpy(text + 5, data + 1, size - 1);
	text[size + 4] = '\0';
	switch (data[0] % 3) {
	case 0:
		if (ini_parse(data + 1, size - 1, &ini) == 0)
			for (size_t i = 0; i < ini.count; i++)
				if (ini_get(&ini, ini.entries[i].section, ini.entries[i].key) ==
				    NULL)
					abort();
		ini_release(&ini);
		break;
	case 1:
		if (s3_key_from_json(data + 1, size - 1, &key) == 0 && key.access_key[0] == '\0')
			abort();
		s3_key_release(&key);
		break;
	default:
		fuzz_url(text);
		break;
	}
	free(text);
	return 0;
}
