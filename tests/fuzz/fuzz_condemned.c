/* Arbitrary bytes as the object "gc/condemned". */
#include "store/condemned.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct condemned_list list = {0};
	if (condemned_decode(data, size, &list) == 0)
		(void)condemned_find(&list, data);
	condemned_release(&list);
	return 0;
}
