/* Whatever a server sends as XML. The first byte says which document was asked for. */
#include "store/s3_xml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct s3_error error;
	struct s3_page page = {0};
	struct sts_credentials credentials = {0};
	char *upload_id = NULL;
	if (size == 0)
		return 0;
	const uint8_t *bytes = data + 1;
	size--;
	switch (data[0] % 6) {
	case 0:
		s3_xml_error(bytes, size, &error);
		break;
	case 1:
		if (s3_xml_page(bytes, size, &page) == 0)
			for (size_t i = 0; i < page.count; i++)
				if (page.items[i].key == NULL)
					abort();
		s3_page_release(&page);
		break;
	case 2:
		if (s3_xml_upload_id(bytes, size, &upload_id) == 0 && upload_id[0] == '\0')
			abort();
		free(upload_id);
		break;
	case 3:
		s3_xml_completed(bytes, size);
		break;
	case 4:
		s3_xml_deleted(bytes, size, &error);
		break;
	default:
		s3_xml_sts(bytes, size, &credentials);
		free(credentials.session_token);
		break;
	}
	return 0;
}
