/*
 * commit_copies — a commit's pack carries copies of ancestors' records: for the files of refs/
 * alone.
 *
 * A commit is a pack of its own, so following parents from pack to pack would cost a request for
 * each. Where parents lie is not part of a commit's id: copies whose parents' places lead to the
 * copies beside them make one request of many. Which and how many: refs/README.md, "Copies".
 * Holds: nothing. Never: asks the store. Threads: any.
 */
#ifndef REFS_COMMIT_COPIES_H
#define REFS_COMMIT_COPIES_H

#include "refs/commit.h"

/* Add the copies that a commit with these parents should carry, and let the places of parents that
 * were copied lead to them. What is not at hand is not copied: a later commit does it then. */
int copies_carry(struct odb *odb, struct packer *packer, struct pointer *parents,
                 size_t parent_count, struct message *message);

#endif
