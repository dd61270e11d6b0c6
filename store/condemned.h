/*
 * condemned — packs that nothing reached when garbage was last collected.
 *
 * A pack that nothing reaches may still be about to be used: a commit under way found one of its
 * chunks in the local index. So collecting takes two runs: the first lists the pack here, and from
 * then on nobody deduplicates against it; a later run, when every commit that began before has
 * ended (the grace period), removes it if it is still unreached. One object, "gc/condemned",
 * replaced by compare-and-swap. Format: store/README.md, "Condemned packs".
 * Threads: any.
 */
#ifndef STORE_CONDEMNED_H
#define STORE_CONDEMNED_H

#include "store/odb.h"

struct condemned {
	uint8_t pack[PACK_ID_BYTES];
	int64_t since_ms; /* of the store's clock: the hosts' may differ by more than the grace */
};
struct condemned_list {
	struct condemned *items; /* ascending by pack */
	size_t count;
	struct etag etag; /* empty: there was no object */
};
void condemned_release(struct condemned_list *list); /* accepts zeroed */
/* An absent object is an empty list. -ERR_CORRUPT, -ERR_VERSION, -ERR_STORE_AWAY. */
int condemned_read(struct object_store *store, struct condemned_list *ret_list,
                   struct message *message);
/* Sorts the items and replaces the object that `etag` names. -ERR_MOVED: somebody else did. */
int condemned_write(struct object_store *store, struct condemned_list *list,
                    struct message *message);
/* What time it is for the store: when it says that an object written now was written. */
int condemned_clock(struct object_store *store, int64_t *ret_now_ms, struct message *message);
const struct condemned *condemned_find(const struct condemned_list *list,
                                       const uint8_t pack[PACK_ID_BYTES]); /* or NULL */
int condemned_decode(const void *bytes, size_t length, struct condemned_list *ret_list);

#endif
