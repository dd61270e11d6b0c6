/*
 * arguments — from lakectl's command line to a request (fs/commands/command.h), by one table of
 * commands.
 */
#ifndef TOOLS_ARGUMENTS_H
#define TOOLS_ARGUMENTS_H

#include <cjson/cJSON.h>

#include "store/base.h"

enum option_type {
	OPTION_FLAG,   /* true */
	OPTION_STRING, /* VALUE */
	OPTION_NUMBER, /* N */
	OPTION_LIST,   /* VALUE, may be given again */
	OPTION_PAIR,   /* K=V, may be given again: an object */
};
struct option_spec {
	char letter; /* 0: none */
	const char *name;
	const char *key; /* in the request */
	enum option_type type;
	const char *value; /* shown in help */
	const char *help;
};

enum word_type {
	WORD_REQUIRED,
	WORD_OPTIONAL,
	WORD_BRANCH,         /* a branch; left out: the one the current directory is in */
	WORD_REVISION,       /* a revision; left out: that branch, or the revision of /lake/@REV */
	WORD_NAMED,          /* REV:PATH, split into "revision" and "path" */
	WORD_NAMED_OPTIONAL, /* REV[:PATH] */
	WORD_MANY,           /* all words, as a list; none: "." */
};
struct word_spec {
	const char *key;
	enum word_type type;
};

#define OPTIONS_MAX 10
#define WORDS_MAX 3
struct subcommand {
	const char *name;   /* as typed; also the request's "command" */
	const char *action; /* for `branch create` and the like: the request's "action" */
	const char *usage;  /* after the name */
	const char *summary;
	const char *text; /* more help; may be NULL */
	struct word_spec words[WORDS_MAX];
	struct option_spec options[OPTIONS_MAX];
	const char *paths;   /* key of what follows "--", as paths below the branch's root */
	const char *rest;    /* key of what follows "--", as it is. Neither: nothing may follow */
	bool optional_first; /* the first word is the one left out when too few are given */
};

/* Where the command runs. Borrowed strings; any may be NULL. */
struct place_here {
	const char *branch;
	const char *revision; /* of /lake/@REV */
	const char *prefix;   /* below the root of the branch or revision */
	const char *mountpoint;
};

/* Options of lakectl itself that may stand after the command, too. */
struct globals {
	bool json, quiet;
};

/* End of the revision in REV[:PATH]; NULL: there is no path. */
const char *revision_end(const char *text);
/* The subcommand that argv names (argv[0] is its name), or NULL. *ret_used: words it takes. */
const struct subcommand *subcommand_find(int argc, char **argv, int *ret_used);
/* Builds the request. *ret_help: --help was given. `globals` is added to, also on failure.
 * -ERR_INVALID with a message naming the usage. */
int arguments_parse(const struct subcommand *subcommand, int argc, char **argv,
                    const struct place_here *here, struct globals *globals, cJSON **ret_request,
                    bool *ret_help, struct message *message);
void subcommand_help(const struct subcommand *subcommand); /* to standard output */
/* All of them, a line each. With a name: only that family ("branch"). False: there is none. */
bool subcommands_list(const char *name);

#endif
