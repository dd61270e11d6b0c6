/*
 * known — refs as this host saw or made them last.
 *
 * A command that ends in a conditional put of a ref may begin from what is known here instead of
 * asking: if that was out of date the put fails, and the ref is read. So a guess costs requests,
 * never correctness. What a command only tells about is always read.
 *
 * Holds:   bodies and etags of refs, at most KNOWN_BYTES_MAX (least recently used first out).
 * Promise: what this process did to a ref is known as soon as the put has returned, and is never
 *          replaced by the answer to a request that began before. So a command sees what earlier
 *          ones on this host did.
 * Not good for guessing: what nobody has asked the store about for `good_ms`; refs that others
 *          moved in the last CONTENDED_FACTOR times that; anything, once the store did not answer.
 * Threads: any. One lock, a leaf, never held across the store.
 */
#ifndef REFS_KNOWN_H
#define REFS_KNOWN_H

#include "store/object.h"

#define KNOWN_BYTES_MAX ((size_t)16 << 20)
#define CONTENDED_FACTOR 5

/* From now on, before others use it: all that passes through the store under "refs/" is noted. Once
 * for a store; ends with it. */
int known_refs_attach(struct object_store *store, int64_t good_ms);
/* The body, when it is good for a guess. Appended. -ERR_NOT_FOUND. */
int known_ref_guess(struct object_store *store, const char *key, struct buffer *ret_body,
                    struct etag *ret_etag);
/* The body that has this etag, however old. Appended. -ERR_NOT_FOUND. */
int known_ref_exact(struct object_store *store, const char *key, const struct etag *etag,
                    struct buffer *ret_body);

#endif
