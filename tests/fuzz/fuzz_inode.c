/* Arbitrary bytes as an inode's and as a branch's record: refused, or the one encoding. */
#include "fs/worktree_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_inode(const uint8_t *data, size_t size)
{
	struct inode inode, copy;
	if (inode_decode(data, size, &inode) != 0)
		return;
	CLEANUP(buffer_release) struct buffer again = {0};
	inode_encode(&again, &inode);
	if (again.length != size || memcmp(again.data, data, size) != 0)
		abort();
	if (inode_copy(&inode, &copy) != 0)
		abort();
	inode_release(&copy);
	inode_release(&inode);
}

static void check_branch(const uint8_t *data, size_t size)
{
	struct branch_record record;
	if (branch_record_decode(data, size, &record) != 0)
		return;
	CLEANUP(state_batch_release) struct state_batch batch = {0};
	branch_record_put(&batch, "main", &record);
	if (record.overlay == 0 && !record.intent)
		return; /* is not written */
	if (batch.bytes.length < size ||
	    memcmp(batch.bytes.data + batch.bytes.length - size, data, size) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	if (data[0] % 2 == 0)
		check_inode(data + 1, size - 1);
	else
		check_branch(data + 1, size - 1);
	return 0;
}
