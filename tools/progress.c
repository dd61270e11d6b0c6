/*
 * progress — hides the terminal line: shown after half a second, at most five times a second.
 */
#include "tools/progress.h"

#include <stdio.h>

#define SHOW_AFTER_MS 500
#define SHOW_EVERY_MS 200

static void amount(double value, bool bytes, char out[32])
{
	static const char *const units[] = {"", "K", "M", "G", "T"};
	size_t unit = 0;
	double base = bytes ? 1024 : 1000;
	while (value >= base && unit + 1 < ARRAY_SIZE(units)) {
		value /= base;
		unit++;
	}
	snprintf(out, 32, unit ? "%.1f%s%s" : "%.0f%s%s", value, units[unit],
	         bytes ? (unit ? "iB" : "B") : "");
}

int progress_show(void *context, const char *what, uint64_t done, uint64_t total, const char *unit)
{
	struct progress_line *line = context;
	int64_t now = clock_monotonic_ms();
	bool bytes = strcmp(unit, "bytes") == 0;
	char so_far[32], all[32] = "", rate[32], left[32] = "";
	if (strcmp(line->what, what) != 0) {
		snprintf(line->what, sizeof line->what, "%s", what);
		line->started_ms = now;
	}
	if (now - line->started_ms < SHOW_AFTER_MS || now - line->shown_ms < SHOW_EVERY_MS)
		return 0;
	line->shown_ms = now;
	line->visible = true;
	double seconds = (double)(now - line->started_ms) / 1000;
	double per_second = (double)done / seconds;
	amount((double)done, bytes, so_far);
	amount(per_second, bytes, rate);
	if (total) {
		char whole[32];
		amount((double)total, bytes, whole);
		snprintf(all, sizeof all, "/%.30s", whole);
	}
	if (total > done && per_second > 0)
		snprintf(left, sizeof left, ", %.0f s left", (double)(total - done) / per_second);
	fprintf(stderr, "\r\033[K%s: %s%s%s%s, %s/s%s", what, so_far, all, bytes ? "" : " ",
	        bytes ? "" : unit, rate, left);
	fflush(stderr);
	return 0;
}

void progress_erase(struct progress_line *line)
{
	if (line->visible)
		fprintf(stderr, "\r\033[K");
	line->visible = false;
}
