/*
 * ref_internal — what the files that implement refs/ref.h share. Included only by them.
 */
#ifndef REFS_REF_INTERNAL_H
#define REFS_REF_INTERNAL_H

#include "refs/ref.h"

#define REF_KEY_BYTES 160

const char *ref_kind_word(enum ref_kind kind);
const char *ref_kind_prefix(enum ref_kind kind); /* of object names */
void ref_key(enum ref_kind kind, const char *name, char ret_key[REF_KEY_BYTES]);
bool ref_name_is_valid(const char *name);
/* ref_decode with messages; and the etag. */
int ref_body_decode(enum ref_kind kind, const char *name, const struct buffer *body,
                    const struct etag *etag, struct ref *ret_ref, struct message *message);
/* The body as it is, tombstones too. -ERR_NOT_FOUND. */
int ref_load(struct object_store *store, enum ref_kind kind, const char *name, struct ref *ret_ref,
             struct message *message);

#endif
