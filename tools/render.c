/*
 * render — hides how each command's reply looks as text.
 */
#include "tools/render.h"

#include <stdio.h>
#include <unistd.h>

#include "fs/json.h"
#include "tools/graph.h"

struct renderer {
	const cJSON *request;
	const char *command;
	bool quiet, color;
	struct graph graph;
	uint64_t rows, added, removed, modified;
	double bytes_before, bytes_after;
};

/* -- reading replies -- */

static const char *text_of(const cJSON *object, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
	return cJSON_IsString(item) ? item->valuestring : "";
}

static double number_of(const cJSON *object, const char *name)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
	return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

static bool flag_of(const cJSON *object, const char *name)
{
	return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, name));
}

static bool has(const cJSON *object, const char *name)
{
	return cJSON_GetObjectItemCaseSensitive(object, name) != NULL;
}

/* -- names and text of strangers, on a terminal that obeys what it is sent -- */

/* The length of a character to print as it is; 0: one to be escaped. */
static size_t plain_length(const unsigned char *at, size_t left)
{
	size_t length = utf8_length(at, left);
	bool control = at[0] < 0x20 || at[0] == 0x7f || at[0] == '"' || at[0] == '\\' ||
	               (length == 2 && at[0] == 0xc2 && at[1] < 0xa0);
	return control ? 0 : length;
}

/* As git prints paths: in quotes, as C would write them, if anything in it must be escaped. */
static char *quote_path(const char *path)
{
	static const char letters[] = "\aa\bb\tt\nn\vv\ff\rr\"\"\\\\";
	const unsigned char *at = (const unsigned char *)path;
	size_t left = strlen(path);
	char *quoted = malloc(4 * left + 3), *to = quoted;
	bool needed = false;
	if (!quoted)
		return NULL;
	*to++ = '"';
	while (left) {
		size_t length = plain_length(at, left);
		const char *letter = length ? NULL : letters;
		while (letter && *letter && (unsigned char)*letter != *at)
			letter += 2;
		if (length)
			to = mempcpy(to, at, length);
		else if (*letter)
			to += sprintf(to, "\\%c", letter[1]);
		else
			to += sprintf(to, "\\%03o", *at);
		needed |= !length;
		length = length ? length : 1;
		at += length;
		left -= length;
	}
	strcpy(to, "\"");
	if (!needed)
		strcpy(quoted, path);
	return quoted;
}

/* Paths are quoted where they are printed; everything else must not drive the terminal. */
static void disarm(cJSON *item)
{
	bool path = item->string &&
	            (strcmp(item->string, "path") == 0 || strcmp(item->string, "at") == 0);
	if (cJSON_IsString(item) && !path) {
		CLEANUP(free_pointer)
		char *clean = utf8_clean(item->valuestring, strlen(item->valuestring));
		if (clean && strcmp(clean, item->valuestring) != 0)
			cJSON_SetValuestring(item, clean);
	}
	if (item->string &&
	    !(item->type & cJSON_StringIsConst)) { /* names that others chose, of meta */
		CLEANUP(free_pointer) char *clean = utf8_clean(item->string, strlen(item->string));
		if (clean && strcmp(clean, item->string) != 0) {
			cJSON_free(item->string);
			item->string = steal(&clean);
		}
	}
	for (cJSON *child = item->child; child; child = child->next)
		disarm(child);
}

/* Of what others named, so perhaps "path", too: meta, log entries. */
static void print_value(const cJSON *item)
{
	const char *value = cJSON_IsString(item) ? item->valuestring : "";
	CLEANUP(free_pointer) char *clean = utf8_clean(value, strlen(value));
	printf("%s", clean ? clean : "");
}

/* A path, fit to be printed, also when it is not UTF-8; free() it. */
static char *path_of(const cJSON *object, const char *name)
{
	char key[64];
	snprintf(key, sizeof key, "%s_hex", name);
	const char *hex = text_of(object, key);
	size_t digits = strlen(hex);
	CLEANUP(free_pointer)
	char *path = digits ? calloc(1, digits / 2 + 1) : strdup(text_of(object, name));
	if (path && digits && hex_decode(hex, digits, path) < 0)
		path[0] = '\0';
	return path ? quote_path(path) : NULL;
}

static const char *size_text(double bytes, char out[32])
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	size_t unit = 0;
	while (bytes >= 1024 && unit + 1 < ARRAY_SIZE(units)) {
		bytes /= 1024;
		unit++;
	}
	snprintf(out, 32, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
	return out;
}

static const char *paint(const struct renderer *renderer, const char *color)
{
	return renderer->color ? color : "";
}
#define YELLOW "\033[33m"
#define RED "\033[31m"
#define GREEN "\033[32m"
#define PLAIN "\033[0m"

/* -- rows -- */

static void row_ref(struct renderer *renderer, const cJSON *item)
{
	printf("%-24s %s%.12s%s  %s%s\n", text_of(item, "name"), paint(renderer, YELLOW),
	       text_of(item, "commit"), paint(renderer, PLAIN), text_of(item, "moved"),
	       flag_of(item, "protected") ? "  protected" : "");
}

static void row_move(struct renderer *renderer, const cJSON *item)
{
	const char *after = text_of(item, "after");
	printf("%s%.12s%s  %s  %-16s  %s\n", paint(renderer, YELLOW), after[0] ? after : "-",
	       paint(renderer, PLAIN), text_of(item, "time"), text_of(item, "who"),
	       text_of(item, "command"));
}

static void print_meta(const cJSON *commit, const char *prefix)
{
	const cJSON *pair;
	cJSON_ArrayForEach (pair, cJSON_GetObjectItemCaseSensitive(commit, "meta")) {
		printf("%s%s: ", prefix, pair->string);
		print_value(pair);
		printf("\n");
	}
}

static void print_message(const char *message, const char *prefix)
{
	while (*message) {
		size_t length = strcspn(message, "\n");
		printf("%s    %.*s\n", prefix, (int)length, message);
		message += length + (message[length] == '\n');
	}
}

static void print_commit(struct renderer *renderer, const cJSON *commit, const char *first,
                         const char *rest)
{
	const cJSON *parents = cJSON_GetObjectItemCaseSensitive(commit, "parents"), *parent;
	printf("%s%scommit %s%s\n", first, paint(renderer, YELLOW), text_of(commit, "id"),
	       paint(renderer, PLAIN));
	if (cJSON_GetArraySize(parents) > 1) {
		printf("%sMerge:", rest);
		cJSON_ArrayForEach (parent, parents)
			printf(" %.12s", parent->valuestring);
		printf("\n");
	}
	printf("%sAuthor: %s\n%sDate:   %s\n", rest, text_of(commit, "author"), rest,
	       text_of(commit, "time"));
	print_meta(commit, rest);
	printf("%s\n", rest);
	print_message(text_of(commit, "message"), rest);
}

static void row_commit(struct renderer *renderer, const cJSON *item)
{
	char first[2 * GRAPH_LANES_MAX + 4] = "", rest[2 * GRAPH_LANES_MAX + 4] = "";
	if (flag_of(renderer->request, "graph")) {
		graph_commit(&renderer->graph, item, first, sizeof first);
		graph_line(&renderer->graph, rest, sizeof rest);
	} else if (renderer->rows) {
		printf("\n");
	}
	print_commit(renderer, item, first, rest);
	if (flag_of(renderer->request, "graph"))
		printf("%s\n", rest);
}

static char change_letter(const char *change)
{
	return change[0] == 'm'   ? (strcmp(change, "mode") == 0 ? 'T' : 'M')
	       : change[0] == 'a' ? 'A'
	                          : 'D';
}

static void row_change(struct renderer *renderer, const cJSON *item)
{
	CLEANUP(free_pointer) char *path = path_of(item, "path");
	char letter = change_letter(text_of(item, "change")), before[32], after[32];
	renderer->added += letter == 'A';
	renderer->removed += letter == 'D';
	renderer->modified += letter == 'M' || letter == 'T';
	renderer->bytes_before += number_of(item, "size_before");
	renderer->bytes_after += number_of(item, "size_after");
	const char *slash = strcmp(text_of(item, "kind"), "directory") == 0 ? "/" : "";
	if (flag_of(renderer->request, "name_only")) {
		printf("%s\n", path ? path : "");
		return;
	}
	const char *color = letter == 'A' ? GREEN : letter == 'D' ? RED : YELLOW;
	printf("%s%c%s  %s%s", paint(renderer, color), letter, paint(renderer, PLAIN),
	       path ? path : "", slash);
	if (flag_of(renderer->request, "stat"))
		printf("  %s -> %s",
		       has(item, "size_before") ? size_text(number_of(item, "size_before"), before)
		                                : "-",
		       has(item, "size_after") ? size_text(number_of(item, "size_after"), after)
		                               : "-");
	else if (letter == 'T')
		printf("  %s -> %s", text_of(item, "mode_before"), text_of(item, "mode_after"));
	printf("\n");
}

/* Of the audit log: what every entry has, then the rest by name. */
static void row_log(struct renderer *renderer, const cJSON *item)
{
	static const char *const first[] = {"time", "who", "what", "branch", "verdict", "commit"};
	const cJSON *field;
	if (has(item, "damaged")) {
		printf("%sdamaged%s  %s: %s\n", paint(renderer, RED), paint(renderer, PLAIN),
		       text_of(item, "key"), text_of(item, "damaged"));
		return;
	}
	printf("%s  %-16s %-14s %s", text_of(item, "time"), text_of(item, "who"),
	       text_of(item, "what"), text_of(item, "branch"));
	if (has(item, "commit"))
		printf("  %s%.12s%s", paint(renderer, YELLOW), text_of(item, "commit"),
		       paint(renderer, PLAIN));
	if (has(item, "verdict"))
		printf("  %s", text_of(item, "verdict"));
	cJSON_ArrayForEach (field, item) {
		bool shown = !cJSON_IsString(field) || strlen(field->valuestring) == ID_HEX;
		for (size_t i = 0; !shown && i < ARRAY_SIZE(first); i++)
			shown = strcmp(field->string, first[i]) == 0;
		if (!shown) {
			printf("  %s: ", field->string);
			print_value(field);
		}
	}
	printf("\n");
}

static void row_entry(struct renderer *renderer, const cJSON *item)
{
	CLEANUP(free_pointer) char *path = path_of(item, "path");
	const cJSON *commit = cJSON_GetObjectItemCaseSensitive(item, "commit");
	char size[32];
	if (strcmp(renderer->command, "audit") == 0) {
		row_log(renderer, item);
		return;
	}
	if (strcmp(renderer->command, "du") == 0) {
		printf("%12s %10.0f files  %s\n", size_text(number_of(item, "bytes"), size),
		       number_of(item, "files"), path ? path : "");
		return;
	}
	if (commit)
		printf("%s%.12s%s  %s  %-16s  ", paint(renderer, YELLOW), text_of(commit, "id"),
		       paint(renderer, PLAIN), text_of(commit, "time"), text_of(commit, "author"));
	else if (flag_of(renderer->request, "long"))
		printf("%s %5.0f %5.0f %12.0f  %s  ", text_of(item, "mode"), number_of(item, "uid"),
		       number_of(item, "gid"), number_of(item, "size"), text_of(item, "mtime"));
	printf("%s%s", path ? path : "",
	       strcmp(text_of(item, "kind"), "directory") == 0 ? "/" : "");
	if (commit)
		printf("  %.*s", (int)strcspn(text_of(commit, "message"), "\n"),
		       text_of(commit, "message"));
	printf("\n");
}

static void row_open(struct renderer *renderer, const cJSON *item)
{
	CLEANUP(free_pointer) char *path = path_of(item, "path");
	if (!renderer->quiet)
		printf("open for writing: %s (process %.0f)\n", path ? path : "",
		       number_of(item, "pid"));
}

/* Where a side can be read, its commit's id cut to what a person can copy: the digits stay unique.
 */
static void print_at(const char *at)
{
	size_t start = 0, digits = 0;
	for (const char *found = at; (found = strchr(found, '@')); found++)
		if (strspn(found + 1, "0123456789abcdef") == ID_HEX)
			start = (size_t)(found + 1 - at);
	digits = strspn(at + start, "0123456789abcdef");
	if (digits == ID_HEX)
		printf("%.*s%s", (int)start + 12, at, at + start + ID_HEX);
	else
		printf("%s", at);
}

static void row_conflict(struct renderer *renderer, const cJSON *item)
{
	static const char *const sides[] = {"base", "source", "target"};
	CLEANUP(free_pointer) char *path = path_of(item, "path");
	printf("%sconflict%s  %s", paint(renderer, RED), paint(renderer, PLAIN), path ? path : "");
	if (!has(item, "kind")) {
		printf("\n");
		return;
	}
	printf("  (%s)\n", text_of(item, "kind"));
	if (has(item, "sentence"))
		printf("    %s\n", text_of(item, "sentence"));
	for (size_t i = 0; i < ARRAY_SIZE(sides); i++) {
		const cJSON *side = cJSON_GetObjectItemCaseSensitive(item, sides[i]);
		CLEANUP(free_pointer) char *at = side ? path_of(side, "at") : NULL;
		bool directory = strncmp(text_of(side, "mode"), "04", 2) == 0;
		char size[32];
		if (!side) {
			printf("    %-7s %10s\n", sides[i], "(absent)");
			continue;
		}
		printf("    %-7s %10s  ", sides[i],
		       directory ? "directory" : size_text(number_of(side, "size"), size));
		if (at && *at)
			print_at(at);
		else
			printf("%.12s", text_of(side, "content"));
		printf("\n");
	}
}

static void row_data(struct renderer *renderer, const cJSON *item)
{
	if (!cJSON_IsString(item))
		return;
	size_t digits = strlen(item->valuestring);
	CLEANUP(free_pointer) char *bytes = malloc(digits / 2 + 1);
	if (bytes && hex_decode(item->valuestring, digits, bytes) == 0)
		fwrite(bytes, 1, digits / 2, stdout);
}

static void row_warning(struct renderer *renderer, const cJSON *item)
{
	fprintf(stderr, "lakectl: warning: %s\n", cJSON_IsString(item) ? item->valuestring : "");
}

static void row_problem(struct renderer *renderer, const cJSON *item)
{
	printf("%s%s%s %s: %s\n", paint(renderer, RED), text_of(item, "what"),
	       paint(renderer, PLAIN), text_of(item, "where"), text_of(item, "detail"));
}

static void row_unreached(struct renderer *renderer, const cJSON *item)
{
	const char *message = text_of(item, "message");
	printf("no branch or tag leads to commit %.12s of %s: %.*s\n", text_of(item, "id"),
	       text_of(item, "time"), (int)strcspn(message, "\n"), message);
}

/* What an audit prints is for people to read as it is; but no control characters of theirs. */
static void print_output(const char *output)
{
	bool begins = true;
	for (; *output; output++) {
		if (begins)
			printf("    ");
		begins = *output == '\n';
		putchar((unsigned char)*output < ' ' && !begins && *output != '\t' ? '?' : *output);
	}
	if (!begins)
		putchar('\n');
}

static void row_verdict(struct renderer *renderer, const cJSON *item)
{
	const char *verdict = text_of(item, "verdict");
	bool bad = strcmp(verdict, "failed") == 0 || strcmp(verdict, "error") == 0;
	printf("%s%-7s%s %s", paint(renderer, bad ? RED : GREEN), verdict, paint(renderer, PLAIN),
	       text_of(item, "name"));
	if (number_of(item, "took_ms") > 0)
		printf("  (%.1f s)", number_of(item, "took_ms") / 1000);
	if (flag_of(item, "timed_out"))
		printf("  out of time");
	printf("\n");
	if (bad)
		print_output(text_of(item, "output"));
}

static void row_check(struct renderer *renderer, const cJSON *item)
{
	if (has(item, "verdict")) {
		row_verdict(renderer, item);
		return;
	}
	bool good = flag_of(item, "ok");
	printf("%s%-4s%s %-12s %s\n", paint(renderer, good ? GREEN : RED), good ? "ok" : "BAD",
	       paint(renderer, PLAIN), text_of(item, "check"), text_of(item, "detail"));
}

static void row_webhook(struct renderer *renderer, const cJSON *item)
{
	const cJSON *event, *events = cJSON_GetObjectItemCaseSensitive(item, "events");
	printf("%-16s %s\n%-16s", text_of(item, "name"), text_of(item, "url"), "");
	cJSON_ArrayForEach (event, events)
		printf(" %s", cJSON_IsString(event) ? event->valuestring : "");
	if (has(item, "secret_file"))
		printf("; signed with %s", text_of(item, "secret_file"));
	if (number_of(item, "waiting") > 0)
		printf("; %.0f waiting", number_of(item, "waiting"));
	printf("\n");
	if (has(item, "trouble"))
		printf("%-16s %s%s%s\n", "", paint(renderer, RED), text_of(item, "trouble"),
		       paint(renderer, PLAIN));
}

static void row_delivery(struct renderer *renderer, const cJSON *item)
{
	bool good = !has(item, "trouble");
	printf("%s%-4s%s ", paint(renderer, good ? GREEN : RED), good ? "ok" : "BAD",
	       paint(renderer, PLAIN));
	if (good)
		printf("webhook %s answers %.0f\n", text_of(item, "webhook"),
		       number_of(item, "status"));
	else
		printf("%s\n", text_of(item, "trouble"));
}

static void print_words(const cJSON *words, const char *none)
{
	const cJSON *word;
	if (!cJSON_GetArraySize(words))
		printf(" %s", none);
	cJSON_ArrayForEach (word, words)
		printf(" %s", cJSON_IsString(word) ? word->valuestring : "?");
}

/* Of `audit list`: one that is configured. Of `show`: one verdict with its checks. */
static void row_audit(struct renderer *renderer, const cJSON *item)
{
	const cJSON *checks = cJSON_GetObjectItemCaseSensitive(item, "checks"), *check;
	if (has(item, "damaged")) {
		printf("\n%saudit%s %s: %s\n", paint(renderer, RED), paint(renderer, PLAIN),
		       text_of(item, "key"), text_of(item, "damaged"));
	} else if (checks) {
		printf("\naudited for %s by %s, %s: %s\n", text_of(item, "target"),
		       text_of(item, "who"), text_of(item, "started"), text_of(item, "verdict"));
		cJSON_ArrayForEach (check, checks)
			row_verdict(renderer, check);
	} else {
		printf("%-20s", text_of(item, "name"));
		print_words(cJSON_GetObjectItemCaseSensitive(item, "paths"), "every path");
		printf(" ->");
		print_words(cJSON_GetObjectItemCaseSensitive(item, "command"), "?");
		printf("  (at most %.0f s)\n", number_of(item, "timeout_s"));
	}
}

/* What a hook said, for people: standard output is the command's. */
static void row_hook(struct renderer *renderer, const cJSON *item)
{
	const char *output = text_of(item, "output");
	if (!renderer->quiet)
		fprintf(stderr, "%s%s", output,
		        output[0] && output[strlen(output) - 1] != '\n' ? "\n" : "");
}

static const struct {
	const char *list;
	void (*row)(struct renderer *renderer, const cJSON *item);
} rows[] = {
        {"branches", row_ref},        {"tags", row_ref},
        {"moves", row_move},          {"commits", row_commit},
        {"changes", row_change},      {"entries", row_entry},
        {"open_for_write", row_open}, {"conflicts", row_conflict},
        {"data", row_data},           {"problems", row_problem},
        {"checks", row_check},        {"warnings", row_warning},
        {"hooks", row_hook},          {"audits", row_audit},
        {"webhooks", row_webhook},    {"deliveries", row_delivery},
        {"unreached", row_unreached},
};

void render_item(struct renderer *renderer, const char *list, cJSON *item)
{
	disarm(item);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (strcmp(rows[i].list, list) == 0)
			rows[i].row(renderer, item);
	renderer->rows++;
}

/* -- summaries -- */

static void sum_branch(struct renderer *renderer, const cJSON *reply)
{
	const char *name = text_of(reply, has(reply, "tag") ? "tag" : "branch");
	if (renderer->quiet || !name[0])
		return;
	if (flag_of(reply, "deleted"))
		printf("deleted %s (was %.12s)%s\n", name, text_of(reply, "commit"),
		       has(reply, "tag") ? "" : "; `lakectl undo` brings it back");
	else if (has(reply, "renamed_from"))
		printf("renamed %s to %s\n", text_of(reply, "renamed_from"), name);
	else
		printf("created %s at %.12s\n", name, text_of(reply, "commit"));
}

static void sum_protect(struct renderer *renderer, const cJSON *reply)
{
	const cJSON *protection = cJSON_GetObjectItemCaseSensitive(reply, "protection");
	const char *publishers = text_of(protection, "publishers");
	if (renderer->quiet)
		return;
	printf("%s is %sprotected%s%s", text_of(reply, "branch"),
	       flag_of(reply, "protected") ? "" : "not ",
	       flag_of(protection, "no_direct_writes") ? "; no direct writes" : "",
	       flag_of(protection, "require_audits") ? "; audits must pass" : "");
	printf(publishers[0] ? "; published by group %s\n" : "\n", publishers);
}

static const char *plural(double count)
{
	return count == 1 ? "" : "s";
}

static void sum_commit(struct renderer *renderer, const cJSON *reply)
{
	char fresh[32], known[32];
	double files = number_of(reply, "files");
	if (renderer->quiet)
		return;
	printf("[%s %.12s] %s%.0f file%s, %s new, %s known%s\n", text_of(reply, "branch"),
	       text_of(reply, "commit"), has(reply, "more") ? "more than " : "", files,
	       plural(files), size_text(number_of(reply, "bytes_new"), fresh),
	       size_text(number_of(reply, "bytes_known"), known),
	       flag_of(reply, "rebased") ? "; re-based onto the branch's new head" : "");
}

static void sum_merge(struct renderer *renderer, const cJSON *reply)
{
	if (renderer->quiet || has(reply, "error"))
		return;
	if (flag_of(reply, "source_dirty"))
		printf("note: the source has uncommitted changes, which are not part of this "
		       "merge\n");
	if (flag_of(reply, "up_to_date"))
		printf("%s has all of it already\n", text_of(reply, "target"));
	else if (!has(reply, "commit"))
		printf("would change %.0f path%s in %s; no conflicts\n",
		       number_of(reply, "changed"), plural(number_of(reply, "changed")),
		       text_of(reply, "target"));
	else
		printf("[%s %.12s] %.0f path%s changed\n", text_of(reply, "target"),
		       text_of(reply, "commit"), number_of(reply, "changed"),
		       plural(number_of(reply, "changed")));
}

static void sum_audit(struct renderer *renderer, const cJSON *reply)
{
	const char *branch = text_of(reply, "branch");
	if (renderer->quiet)
		return;
	if (has(reply, "added"))
		printf("%s is audited by %s\n", branch, text_of(reply, "added"));
	else if (strcmp(text_of(reply, "removed"), "--all") == 0)
		printf("%s has neither audits nor webhooks\n", branch);
	else if (has(reply, "removed"))
		printf("%s is no longer audited by %s\n", branch, text_of(reply, "removed"));
	else if (flag_of(reply, "up_to_date"))
		printf("%s has all of it already\n", text_of(reply, "target"));
	else if (has(reply, "verdict"))
		printf("it would pass; it can be read at %s\n", text_of(reply, "at"));
	else if (!renderer->rows && strcmp(text_of(renderer->request, "action"), "list") == 0)
		printf("%s has no audits\n", branch);
}

static void sum_diff(struct renderer *renderer, const cJSON *reply)
{
	char before[32], after[32];
	if (flag_of(renderer->request, "stat") && !renderer->quiet)
		printf("%llu added, %llu removed, %llu modified; %s -> %s\n",
		       (unsigned long long)renderer->added, (unsigned long long)renderer->removed,
		       (unsigned long long)renderer->modified,
		       size_text(renderer->bytes_before, before),
		       size_text(renderer->bytes_after, after));
}

#define COLLISIONS_SHOWN 10

/* What uncommitted changes here and others' moves of the branch make of each other. */
static void print_standing(struct renderer *renderer, const cJSON *reply)
{
	const cJSON *behind = cJSON_GetObjectItemCaseSensitive(reply, "behind"), *path;
	const cJSON *collisions = cJSON_GetObjectItemCaseSensitive(reply, "collisions");
	const char *branch = text_of(reply, "branch");
	int shown = 0, count = cJSON_GetArraySize(collisions);
	if (has(reply, "gone"))
		printf("%s%s was deleted or renamed elsewhere%s: %s. Uncommitted changes are kept "
		       "here; commit will be refused until `lakectl undo %s` or `lakectl branch "
		       "create %s REV` brings the branch back. `lakectl branch delete --force %s` "
		       "throws them away\n",
		       paint(renderer, RED), branch, paint(renderer, PLAIN), text_of(reply, "gone"),
		       branch, branch, branch);
	if (!behind)
		return;
	printf("%s%s has moved%s", paint(renderer, RED), branch, paint(renderer, PLAIN));
	if (cJSON_IsNumber(behind))
		printf(" by %.0f commit%s", behind->valuedouble, plural(behind->valuedouble));
	printf("; these paths were changed here and there:");
	cJSON_ArrayForEach (path, collisions) {
		if (shown == COLLISIONS_SHOWN)
			break;
		printf("%s %s", shown++ ? "," : "", path->valuestring);
	}
	if (count > shown)
		printf(" and %d more", count - shown);
	printf("; commit will be refused until they agree: keep a copy of yours, `lakectl restore` "
	       "them, and change them again\n");
}

/* What a protected branch is good for, and what becomes of changes from before. */
static void print_read_only(struct renderer *renderer, const cJSON *reply, bool changes)
{
	const cJSON *protection = cJSON_GetObjectItemCaseSensitive(reply, "protection");
	const char *branch = text_of(reply, "branch");
	if (!flag_of(protection, "read_only"))
		return;
	printf("%s%s is protected%s: read-only. `lakectl branch create NAME %s`, change that, "
	       "`lakectl publish NAME --into %s`\n",
	       paint(renderer, YELLOW), branch, paint(renderer, PLAIN), branch, branch);
	if (changes)
		printf("These changes are from before and cannot be committed here: copy them to "
		       "such a branch, then `lakectl restore %s -- .` throws them away\n",
		       branch);
}

static void sum_status(struct renderer *renderer, const cJSON *reply)
{
	if (renderer->quiet)
		return;
	print_standing(renderer, reply);
	uint64_t changes = renderer->added + renderer->removed + renderer->modified;
	print_read_only(renderer, reply, changes > 0);
	if (changes)
		printf("%s, based on %.12s: %llu uncommitted change%s\n", text_of(reply, "branch"),
		       text_of(reply, "base"), (unsigned long long)changes,
		       plural((double)changes));
	else
		printf("%s, at %.12s: nothing uncommitted\n", text_of(reply, "branch"),
		       text_of(reply, "base"));
}

static void sum_moved(struct renderer *renderer, const cJSON *reply)
{
	if (renderer->quiet || has(reply, "error"))
		return;
	if (has(reply, "undone"))
		printf("undone: %s, by %s at %s; ", text_of(reply, "undone"), text_of(reply, "by"),
		       text_of(reply, "time"));
	if (has(reply, "restored"))
		printf("%s: %s%.0f path%s restored\n", text_of(reply, "branch"),
		       has(reply, "more") ? "more than " : "", number_of(reply, "restored"),
		       plural(number_of(reply, "restored")));
	else if (has(reply, "deleted"))
		printf("%s is deleted, was at %.12s\n", text_of(reply, "branch"),
		       text_of(reply, "commit"));
	else
		printf("%s is at %.12s\n", text_of(reply, "branch"), text_of(reply, "commit"));
}

static void sum_refresh(struct renderer *renderer, const cJSON *reply)
{
	double changed = number_of(reply, "changed");
	if (renderer->quiet || has(reply, "error"))
		return;
	if (has(reply, "was"))
		printf("%s: %.12s -> %.12s, %.0f path%s changed\n", text_of(reply, "branch"),
		       text_of(reply, "was"), text_of(reply, "commit"), changed, plural(changed));
	else
		printf("%s is at %.12s%s\n", text_of(reply, "branch"), text_of(reply, "commit"),
		       has(reply, "behind") || has(reply, "gone") ? "" : ", nothing new");
	print_standing(renderer, reply);
}

static void sum_du(struct renderer *renderer, const cJSON *reply)
{
	char size[32];
	printf("%12s %10.0f files  total\n", size_text(number_of(reply, "bytes"), size),
	       number_of(reply, "files"));
}

static void sum_warm(struct renderer *renderer, const cJSON *reply)
{
	char size[32], fetched[32];
	if (renderer->quiet || has(reply, "error"))
		return;
	printf("%.0f files (%s) are in the cache; %s fetched\n", number_of(reply, "files"),
	       size_text(number_of(reply, "bytes"), size),
	       size_text(number_of(reply, "fetched_bytes"), fetched));
}

static void sum_fsck(struct renderer *renderer, const cJSON *reply)
{
	char size[32];
	if (!renderer->quiet)
		printf("%.0f commits, %.0f directories, %.0f files; %.0f packs, %s, %.0f records "
		       "checked%s\n",
		       number_of(reply, "commits"), number_of(reply, "directories"),
		       number_of(reply, "files"), number_of(reply, "packs"),
		       size_text(number_of(reply, "bytes"), size), number_of(reply, "records"),
		       has(reply, "error") ? "" : ": all good");
}

static void sum_gc(struct renderer *renderer, const cJSON *reply)
{
	char live[32], listed[32], removed[32];
	if (renderer->quiet)
		return;
	printf("%.0f packs (%s) in use; %.0f (%s) listed for removal; %.0f (%s) %s\n",
	       number_of(reply, "live_packs"), size_text(number_of(reply, "live_bytes"), live),
	       number_of(reply, "condemned_packs"),
	       size_text(number_of(reply, "condemned_bytes"), listed),
	       number_of(reply, "removed_packs"),
	       size_text(number_of(reply, "removed_bytes"), removed),
	       flag_of(reply, "dry_run") ? "would be removed" : "removed");
}

static void sum_webhook(struct renderer *renderer, const cJSON *reply)
{
	if (!renderer->quiet && has(reply, "webhook"))
		printf("webhook %s of %s is %s\n", text_of(reply, "webhook"),
		       text_of(reply, "branch"), flag_of(reply, "removed") ? "gone" : "set");
	else if (!renderer->quiet && !renderer->rows)
		printf("%s has no webhooks\n", text_of(reply, "branch"));
}

static void sum_stats(struct renderer *renderer, const cJSON *reply)
{
	const cJSON *item;
	cJSON_ArrayForEach (item, reply) {
		if (cJSON_IsNumber(item))
			printf("%-38s %.0f\n", item->string, item->valuedouble);
		if (!cJSON_IsString(item))
			continue;
		printf("%-38s ", item->string);
		print_value(item);
		printf("\n");
	}
}

static void sum_show(struct renderer *renderer, const cJSON *reply)
{
	/* The commit comes first, its changes are still in the reply or were printed before. */
	if (has(reply, "id"))
		print_commit(renderer, reply, "", "");
	printf("\n");
}

static const struct {
	const char *command;
	void (*before)(struct renderer *renderer, const cJSON *reply);
	void (*after)(struct renderer *renderer, const cJSON *reply);
} summaries[] = {
        {"branch", NULL, sum_branch},     {"tag", NULL, sum_branch},
        {"commit", NULL, sum_commit},     {"merge", NULL, sum_merge},
        {"publish", NULL, sum_merge},     {"revert", NULL, sum_moved},
        {"cherry-pick", NULL, sum_moved}, {"diff", NULL, sum_diff},
        {"status", NULL, sum_status},     {"reset", NULL, sum_moved},
        {"restore", NULL, sum_moved},     {"undo", NULL, sum_moved},
        {"refresh", NULL, sum_refresh},   {"du", NULL, sum_du},
        {"fsck", NULL, sum_fsck},         {"gc", NULL, sum_gc},
        {"stats", NULL, sum_stats},       {"show", sum_show, NULL},
        {"warm", NULL, sum_warm},         {"protect", NULL, sum_protect},
        {"webhook", NULL, sum_webhook},   {"unprotect", NULL, sum_protect},
        {"audit", NULL, sum_audit},
};

void render_reply(struct renderer *renderer, cJSON *reply)
{
	cJSON *list, *item;
	size_t which = 0;
	while (which < ARRAY_SIZE(summaries) &&
	       strcmp(summaries[which].command, renderer->command) != 0)
		which++;
	bool known = which < ARRAY_SIZE(summaries);
	disarm(reply);
	bool failed = has(reply, "error");
	if (known && summaries[which].before && !failed)
		summaries[which].before(renderer, reply);
	cJSON_ArrayForEach (list, reply) {
		if (cJSON_IsArray(list) && strcmp(list->string, "parents") != 0)
			cJSON_ArrayForEach (item, list)
				render_item(renderer, list->string, item);
	}
	bool lists_alone = (strcmp(renderer->command, "branch") == 0 ||
	                    strcmp(renderer->command, "tag") == 0) &&
	                   !has(reply, "commit") && !has(reply, "renamed_from");
	if (known && summaries[which].after && !lists_alone &&
	    (!failed || strcmp(renderer->command, "fsck") == 0))
		summaries[which].after(renderer, reply);
}

int renderer_new(const cJSON *request, bool quiet, struct renderer **ret_renderer)
{
	struct renderer *renderer = calloc(1, sizeof *renderer);
	if (!renderer)
		return -ERR_NO_MEMORY;
	renderer->request = request;
	renderer->command = text_of(request, "command");
	renderer->quiet = quiet;
	renderer->color = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
	*ret_renderer = renderer;
	return 0;
}

void renderer_free(struct renderer *renderer)
{
	if (!renderer)
		return;
	graph_release(&renderer->graph);
	free(renderer);
}
