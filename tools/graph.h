/* graph — the lines that `log --graph` draws beside commits. */
#ifndef TOOLS_GRAPH_H
#define TOOLS_GRAPH_H

#include <cjson/cJSON.h>
#include <stddef.h>

#define GRAPH_LANES_MAX 32
struct graph {
	char *lanes[GRAPH_LANES_MAX]; /* the commit id each lane waits for */
	size_t count;
	size_t drawn; /* lanes of the commit placed last */
};
/* The prefix of the commit's first line, e.g. "| * "; its lane is then replaced by its parents. */
void graph_commit(struct graph *graph, const cJSON *commit, char *ret_prefix, size_t capacity);
/* The prefix of its further lines, e.g. "| | ". */
void graph_line(const struct graph *graph, char *ret_prefix, size_t capacity);
void graph_release(struct graph *graph);

#endif
