/*
 * reach — everything that branches, tags, their reflogs and uncommitted changes still need.
 *
 * Walks commits, tree nodes, lists and (as places only) chunks; each record once for each place
 * that is pointed to. Reads all metadata, no file content. Memory: an id and a place per commit,
 * directory and long file seen.
 */
#ifndef FS_REACH_H
#define FS_REACH_H

#include "fs/lake.h"

struct reach_visitor {
	void *context;
	/* A record that something reachable points to. Non-zero stops and is returned. */
	int (*record)(void *context, enum record_kind kind, const struct pointer *pointer);
	/* A record that cannot be read or decoded; `where` says what needs it. Non-zero stops. */
	int (*damaged)(void *context, const char *where, int error, const struct message *message);
	const struct progress *progress;
};
struct reach_counts {
	uint64_t commits, directories, files;
};
int reach_walk(struct lake *lake, const struct reach_visitor *visitor,
               struct reach_counts *ret_counts, struct message *message);

#endif
