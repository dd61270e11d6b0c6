/* s3_proxy_faults — the language of s3_proxy's rules: "METHOD GLOB WHEN FAULT [ARGUMENT...]", as
 * told in tests/README.md. */
#ifndef TESTS_S3_PROXY_FAULTS_H
#define TESTS_S3_PROXY_FAULTS_H

#include <ctype.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum action {
	ACT_NONE,
	ACT_ANSWER,       /* an error of the proxy's, the store sees nothing */
	ACT_ANSWER_AFTER, /* the same instead of the store's answer */
	ACT_RESET,        /* before the store sees anything */
	ACT_LOSE,         /* the store acts, its answer is lost */
	ACT_DELAY,        /* the store acts, its answer comes late */
	ACT_CUT,          /* the answer ends early */
	ACT_FLIP,         /* one bit of the answer's body */
	ACT_STALL,        /* the answer stops for a while */
	ACT_LIMIT,        /* bytes per second */
	ACT_CUT_UPLOAD,   /* the request ends early */
};

/* A place in a body. */
struct where {
	enum { AT_SHARE, AT_BYTE, AT_HEAD, AT_RANDOM } kind;
	double value;
};

struct fault {
	enum action action;
	int status;
	char code[64];
	double seconds; /* or bytes per second */
	struct where where;
};

struct rule {
	char text[512];
	char method[16];
	char glob[256];
	double share;
	uint64_t skip, left; /* matching requests to let pass first; hits to come */
	uint64_t hits;
	struct fault fault;
};

static inline bool parse_where(const char *text, struct where *ret_where)
{
	char *end;
	if (strcmp(text, "head") == 0 || strcmp(text, "random") == 0) {
		ret_where->kind = text[0] == 'h' ? AT_HEAD : AT_RANDOM;
		return true;
	}
	ret_where->value = strtod(text, &end);
	ret_where->kind = *end == '%' ? AT_SHARE : AT_BYTE;
	if (*end == '%')
		ret_where->value /= 100;
	return end != text && (*end == '\0' || strcmp(end, "%") == 0) && ret_where->value >= 0;
}

static inline bool parse_when(const char *text, struct rule *rule)
{
	char *end;
	rule->share = 1;
	rule->left = UINT64_MAX;
	if (strcmp(text, "always") == 0)
		return true;
	if (text[0] == 'x') { /* x3: the next three; x3+10: those after ten others */
		rule->left = strtoull(text + 1, &end, 10);
		if (*end == '+')
			rule->skip = strtoull(end + 1, &end, 10);
		return *end == '\0' && end > text + 1;
	}
	rule->share = strtod(text, &end) / 100;
	return strcmp(end, "%") == 0;
}

static inline bool parse_error(const char *name, const char *code, struct fault *fault)
{
	static const struct {
		int status;
		const char *code;
	} usual[] = {{403, "AccessDenied"},
	             {404, "NoSuchKey"},
	             {500, "InternalError"},
	             {503, "SlowDown"}};
	char *end;
	fault->status = (int)strtol(name, &end, 10);
	if (end != name + 3 || (*end != '\0' && strcmp(end, "-after") != 0))
		return false;
	fault->action = *end == '\0' ? ACT_ANSWER : ACT_ANSWER_AFTER;
	for (size_t i = 0; i < sizeof(usual) / sizeof(*usual) && code[0] == '\0'; i++)
		if (usual[i].status == fault->status)
			code = usual[i].code;
	snprintf(fault->code, sizeof(fault->code), "%s", code[0] != '\0' ? code : "InternalError");
	return fault->status >= 200 && fault->status < 600;
}

static inline bool parse_fault(const char *name, const char *first, const char *second,
                               struct fault *fault)
{
	static const struct {
		const char *name;
		enum action action;
		bool seconds; /* a number comes first */
	} names[] = {{"reset", ACT_RESET, false}, {"lose", ACT_LOSE, false},
	             {"delay", ACT_DELAY, true},  {"cut", ACT_CUT, false},
	             {"flip", ACT_FLIP, false},   {"stall", ACT_STALL, true},
	             {"limit", ACT_LIMIT, true},  {"cut-upload", ACT_CUT_UPLOAD, false}};
	if (isdigit((unsigned char)name[0]))
		return parse_error(name, first, fault);
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		if (strcmp(names[i].name, name) != 0)
			continue;
		fault->action = names[i].action;
		fault->where = fault->action == ACT_FLIP ? (struct where){AT_RANDOM, 0}
		                                         : (struct where){AT_SHARE, 0.5};
		const char *place = names[i].seconds ? second : first;
		fault->seconds = names[i].seconds ? strtod(first, NULL) : 0;
		return (!names[i].seconds || fault->seconds > 0) &&
		       (place[0] == '\0' || parse_where(place, &fault->where));
	}
	return false;
}

static inline bool parse_rule(const char *line, struct rule *ret_rule)
{
	char when[32], name[32], first[64] = "", second[64] = "";
	memset(ret_rule, 0, sizeof(*ret_rule));
	snprintf(ret_rule->text, sizeof(ret_rule->text), "%s", line);
	return sscanf(line, "%15s %255s %31s %31s %63s %63s", ret_rule->method, ret_rule->glob,
	              when, name, first, second) >= 4 &&
	       parse_when(when, ret_rule) && parse_fault(name, first, second, &ret_rule->fault);
}

#endif
