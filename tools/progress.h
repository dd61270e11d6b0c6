/* progress — one line on the terminal for long work: what, how much, how fast, how long still. */
#ifndef TOOLS_PROGRESS_H
#define TOOLS_PROGRESS_H

#include "store/base.h"

struct progress_line {
	int64_t started_ms, shown_ms;
	char what[64];
	bool visible;
};
int progress_show(void *line, const char *what, uint64_t done, uint64_t total, const char *unit);
void progress_erase(struct progress_line *line);

#endif
