/*
 * graph — hides the lanes: each waits for one commit; a commit takes the first that waits for it,
 * the others that wait for it end there, and its parents go on in its place and beside it.
 */
#include "tools/graph.h"

#include <stdlib.h>
#include <string.h>

static size_t lane_of(const struct graph *graph, const char *id)
{
	for (size_t i = 0; i < graph->count; i++)
		if (strcmp(graph->lanes[i], id) == 0)
			return i;
	return graph->count;
}

static void end_lane(struct graph *graph, size_t lane)
{
	free(graph->lanes[lane]);
	graph->count--;
	memmove(&graph->lanes[lane], &graph->lanes[lane + 1],
	        (graph->count - lane) * sizeof graph->lanes[0]);
}

static void add_lane(struct graph *graph, size_t lane, const char *id)
{
	char *copy = graph->count < GRAPH_LANES_MAX ? strdup(id) : NULL;
	if (!copy)
		return;
	memmove(&graph->lanes[lane + 1], &graph->lanes[lane],
	        (graph->count - lane) * sizeof graph->lanes[0]);
	graph->lanes[lane] = copy;
	graph->count++;
}

static void draw(size_t count, size_t star, char *ret_prefix, size_t capacity)
{
	size_t at = 0;
	for (size_t i = 0; i < count && at + 3 <= capacity; i++) {
		ret_prefix[at++] = i == star ? '*' : '|';
		ret_prefix[at++] = ' ';
	}
	ret_prefix[at] = '\0';
}

void graph_commit(struct graph *graph, const cJSON *commit, char *ret_prefix, size_t capacity)
{
	const cJSON *id = cJSON_GetObjectItemCaseSensitive(commit, "id"), *parent;
	if (!cJSON_IsString(id))
		return;
	size_t lane = lane_of(graph, id->valuestring);
	if (lane == graph->count)
		add_lane(graph, lane, id->valuestring);
	draw(graph->count, lane, ret_prefix, capacity);
	for (size_t i = graph->count; i-- > lane + 1;)
		if (strcmp(graph->lanes[i], id->valuestring) == 0)
			end_lane(graph, i);
	if (lane < graph->count)
		end_lane(graph, lane);
	cJSON_ArrayForEach (parent, cJSON_GetObjectItemCaseSensitive(commit, "parents")) {
		if (lane > graph->count)
			lane = graph->count;
		/* Two children of one commit each keep a lane until it comes: that draws the fork.
		 */
		add_lane(graph, lane++, parent->valuestring);
	}
}

void graph_line(const struct graph *graph, char *ret_prefix, size_t capacity)
{
	draw(graph->count, GRAPH_LANES_MAX, ret_prefix, capacity);
}

void graph_release(struct graph *graph)
{
	while (graph->count)
		end_lane(graph, graph->count - 1);
}
