/*
 * kv_check — is this file an LMDB environment that LMDB can be trusted with?
 *
 * LMDB believes every byte of its file: a wrong page number, offset or count makes it read or
 * write outside its memory, or abort. This walks everything the newest transaction reaches, before
 * LMDB sees the file. It knows LMDB's data format 1 (0.9.x; struct MDB_meta, MDB_page, MDB_node in
 * mdb.c) and nothing of lmdb.h.
 * Only kv.c and tests include this. Cost: one pass over all pages but the inside of large values.
 */
#ifndef STORE_KV_CHECK_H
#define STORE_KV_CHECK_H

#include "store/base.h"

struct kv_check {
	uint64_t used_bytes; /* up to and with the last page LMDB has ever handed out */
	uint64_t pages;      /* reachable: metas, tables, the free list itself */
};

/* 0; -ERR_CORRUPT with what and where; -ERR_VERSION; -ERR_NOT_FOUND: no file, or an empty one. */
int kv_check_file(const char *path, struct kv_check *ret_check, struct message *message);

#endif
