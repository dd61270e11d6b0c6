/*
 * lakectl — the command line: finds the lake, sends the request to laked or runs it here, prints
 * the reply, and exits with the contract's code.
 */
#include <stdio.h>
#include <unistd.h>

#include "fs/commands/control.h"
#include "fs/json.h"
#include "store/secret.h"
#include "tools/arguments.h"
#include "tools/local.h"
#include "tools/places.h"
#include "tools/progress.h"
#include "tools/render.h"

#ifndef LAKE_VERSION
#define LAKE_VERSION "0.1.0"
#endif
#define EXIT_USAGE 2
#define LOCKED_WAIT_MS 5000
#define LOCKED_PAUSE_MS 20

struct invocation {
	const char *lake_given;
	struct globals globals;
	char *lake, *branch, *revision, *prefix, *mountpoint;
	cJSON *request;
	struct renderer *renderer;
	struct progress_line progress;
};

static void usage(FILE *out)
{
	fprintf(out, "usage: lakectl [--lake DIR] [--json] [-q] COMMAND [ARGUMENTS]\n\n");
	fflush(out);
	if (out == stdout) {
		subcommands_list(NULL);
		printf("\n`lakectl COMMAND --help` tells more. The lake is found from --lake, "
		       "$LAKE_DIR, the\n"
		       "current directory inside a mount, or the default. A BRANCH left out is the "
		       "one the\n"
		       "current directory is in.\n"
		       "Exit codes: 0 done, 1 failed, 2 usage, 3 conflict, 4 refused, 5 no such "
		       "ref, path\n"
		       "or lake.\n");
	} else {
		fprintf(out, "`lakectl --help` lists the commands\n");
	}
}

/* Options before the command; the number of words they took, or -1 after usage was printed. */
static int parse_globals(int argc, char **argv, struct invocation *invocation, int *ret_exit)
{
	int i = 1;
	for (; i < argc && argv[i][0] == '-'; i++) {
		const char *word = argv[i];
		if (strcmp(word, "--json") == 0) {
			invocation->globals.json = true;
		} else if (strcmp(word, "-q") == 0 || strcmp(word, "--quiet") == 0) {
			invocation->globals.quiet = true;
		} else if (strcmp(word, "--lake") == 0 && i + 1 < argc) {
			invocation->lake_given = argv[++i];
		} else if (strncmp(word, "--lake=", 7) == 0) {
			invocation->lake_given = word + 7;
		} else if (strcmp(word, "--version") == 0) {
			printf("lakectl %s\n", LAKE_VERSION);
			*ret_exit = 0;
			return -1;
		} else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
			usage(stdout);
			*ret_exit = 0;
			return -1;
		} else {
			fprintf(stderr, "lakectl: no option %s\n", word);
			usage(stderr);
			*ret_exit = EXIT_USAGE;
			return -1;
		}
	}
	if (i < argc)
		return i;
	usage(stderr);
	*ret_exit = EXIT_USAGE;
	return -1;
}

static void print_json(const cJSON *json)
{
	char *text = cJSON_PrintUnformatted(json);
	if (text)
		puts(text);
	free(text);
}

/* Messages have others' words in them. */
static void print_failure(const cJSON *text)
{
	const char *words = cJSON_IsString(text) ? text->valuestring : "failed";
	CLEANUP(free_pointer) char *clean = utf8_clean(words, strlen(words));
	fprintf(stderr, "lakectl: %s\n", clean ? clean : "out of memory");
}

/* The error on standard error, and with --json as an object on standard output too. */
static int report_error(const struct invocation *invocation, int error,
                        const struct message *message)
{
	cJSON *reply = command_error(error, message);
	const cJSON *object = cJSON_GetObjectItemCaseSensitive(reply, "error");
	print_failure(cJSON_GetObjectItemCaseSensitive(object, "message"));
	if (invocation->globals.json)
		print_json(reply);
	cJSON_Delete(reply);
	return error_exit(error);
}

/* -- running on a lake -- */

static int print_items(void *context, const char *list, cJSON *items)
{
	struct invocation *invocation = context;
	cJSON *item;
	progress_erase(&invocation->progress);
	cJSON_ArrayForEach (item, items)
		render_item(invocation->renderer, list, item);
	cJSON_Delete(items);
	return ferror(stdout) != 0; /* e.g. the reader of a pipe went away */
}

static int run_here(const char *directory, const cJSON *request,
                    const struct command_output *output, cJSON **ret_reply, struct message *message)
{
	struct lake *lake = NULL;
	struct caller caller;
	int error = lake_open(directory, &lake, message);
	if (error < 0)
		return error;
	caller_self(&caller);
	command_run(lake, &caller, request, output, ret_reply);
	lake_close(lake);
	return 0;
}

/* By laked, or here when there is none. A lake that is locked while nobody listens has a server
 * that begins, takes over from one that died, or ends, or another command that runs without one. */
static int run_anywhere(const char *directory, const cJSON *request,
                        const struct command_output *output, cJSON **ret_reply,
                        struct message *message)
{
	int64_t until_ms = clock_monotonic_ms() + LOCKED_WAIT_MS;
	for (;;) {
		struct message said = {{0}};
		int error = control_call(directory, request, output, ret_reply, &said);
		if (error == -ERR_NOT_FOUND)
			error = run_here(directory, request, output, ret_reply, &said);
		if (error != -ERR_BUSY || clock_monotonic_ms() >= until_ms) {
			if (error)
				*message = said;
			return error;
		}
		usleep(LOCKED_PAUSE_MS * 1000);
	}
}

static int run_request(struct invocation *invocation, cJSON **ret_reply, struct message *message)
{
	const char *name =
	        cJSON_GetObjectItemCaseSensitive(invocation->request, "command")->valuestring;
	struct command_output output = {.context = invocation};
	/* `show` prints the commit before its changes, so they wait in the reply. */
	if (!invocation->globals.json && strcmp(name, "show") != 0)
		output.items = print_items;
	if (!invocation->globals.json && !invocation->globals.quiet && isatty(STDERR_FILENO))
		output.progress = (struct progress){progress_show, &invocation->progress};
	if (strcmp(name, "commit") == 0 &&
	    !cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(invocation->request, "no_code")))
		add_code_version(invocation->request);
	int error =
	        run_anywhere(invocation->lake, invocation->request, &output, ret_reply, message);
	progress_erase(&invocation->progress);
	return error;
}

/* -- `diff REV`: to the working tree of the branch we are in, or of REV when it is a branch -- */
static void complete_diff(struct invocation *invocation)
{
	cJSON *request = invocation->request;
	const cJSON *from = cJSON_GetObjectItemCaseSensitive(request, "from");
	if (strcmp(cJSON_GetObjectItemCaseSensitive(request, "command")->valuestring, "diff") !=
	            0 ||
	    cJSON_HasObjectItem(request, "to"))
		return;
	cJSON_AddStringToObject(request, "branch",
	                        invocation->branch ? invocation->branch : from->valuestring);
}

/* Paths in a mount say which lake is meant. */
static int complete_places(struct invocation *invocation, struct message *message)
{
	cJSON *places = cJSON_GetObjectItemCaseSensitive(invocation->request, "places");
	CLEANUP(free_pointer) char *lake = NULL;
	int error = places ? places_resolve(places, &lake, message) : 0;
	if (!error && lake && !invocation->lake_given) {
		free(invocation->lake);
		invocation->lake = steal(&lake);
	}
	return error;
}

static const struct {
	const char *name;
	int (*run)(const cJSON *request, const char *lake, cJSON **ret_reply,
	           struct message *message);
	const char *done; /* printed before the lake's directory */
} locals[] = {
        {"init", local_init, "made a lake in"},
        {"clone", local_clone, "joined the lake; its directory here is"},
        {"mount", local_mount, "mounted the lake"},
        {"umount", local_umount, NULL},
};

static void print_done(const char *done, const cJSON *reply)
{
	const cJSON *mountpoint = cJSON_GetObjectItemCaseSensitive(reply, "mountpoint");
	printf("%s %s%s%s\n", done, cJSON_GetObjectItemCaseSensitive(reply, "lake")->valuestring,
	       mountpoint ? " at " : "", mountpoint ? mountpoint->valuestring : "");
}

/* True when `request` is one of those that run in lakectl. */
static bool run_local(struct invocation *invocation, cJSON **ret_reply, int *ret_error,
                      struct message *message)
{
	const char *name =
	        cJSON_GetObjectItemCaseSensitive(invocation->request, "command")->valuestring;
	for (size_t i = 0; i < ARRAY_SIZE(locals); i++) {
		if (strcmp(locals[i].name, name) != 0)
			continue;
		*ret_error =
		        locals[i].run(invocation->request, invocation->lake, ret_reply, message);
		if (!*ret_error && !invocation->globals.json && !invocation->globals.quiet &&
		    locals[i].done && !cJSON_HasObjectItem(*ret_reply, "error"))
			print_done(locals[i].done, *ret_reply);
		return true;
	}
	return false;
}

static int print_reply(struct invocation *invocation, cJSON *reply, bool local)
{
	const cJSON *failure = cJSON_GetObjectItemCaseSensitive(reply, "error");
	if (invocation->globals.json)
		print_json(reply);
	else if (!local)
		render_reply(invocation->renderer, reply);
	if (fflush(stdout) != 0)
		return 1;
	if (!failure)
		return 0;
	const cJSON *text = cJSON_GetObjectItemCaseSensitive(failure, "message");
	const cJSON *code = cJSON_GetObjectItemCaseSensitive(failure, "exit");
	print_failure(text);
	return cJSON_IsNumber(code) ? code->valueint : 1;
}

static int run(struct invocation *invocation)
{
	struct message message = {{0}};
	cJSON *reply = NULL;
	complete_diff(invocation);
	int error = complete_places(invocation, &message);
	/* A request that lacks some of its paths would be another request. */
	if (!error && json_failures())
		error = -ERR_NO_MEMORY;
	if (error < 0)
		return report_error(invocation, error, &message);
	bool local = run_local(invocation, &reply, &error, &message);
	if (!local) {
		error = renderer_new(invocation->request, invocation->globals.quiet,
		                     &invocation->renderer);
		if (!error)
			error = run_request(invocation, &reply, &message);
		if (!error && !reply)
			error = -ERR_NO_MEMORY;
	}
	int code = error < 0 ? report_error(invocation, error, &message)
	                     : print_reply(invocation, reply, local);
	cJSON_Delete(reply);
	renderer_free(invocation->renderer);
	return code;
}

/* -- main -- */

static int find_place(struct invocation *invocation, struct message *message)
{
	CLEANUP(free_pointer) char *here = getcwd(NULL, 0);
	CLEANUP(free_pointer) char *directory = NULL;
	int error = lake_find(invocation->lake_given, &invocation->lake, &invocation->branch,
	                      &invocation->prefix, message);
	if (!error && here && invocation->branch)
		lake_mount_of(here, &invocation->mountpoint, &directory);
	if (!error && invocation->branch && invocation->branch[0] == '@') {
		invocation->revision = strdup(invocation->branch + 1);
		free(invocation->branch);
		invocation->branch = NULL;
	}
	return error;
}

static int parse_and_run(struct invocation *invocation, const struct subcommand *subcommand,
                         int argc, char **argv)
{
	struct message message = {{0}};
	bool help = false;
	int error = find_place(invocation, &message);
	struct place_here here = {.branch = invocation->branch,

	                          .revision = invocation->revision,
	                          .prefix = invocation->prefix,
	                          .mountpoint = invocation->mountpoint};
	if (!error)
		error = arguments_parse(subcommand, argc, argv, &here, &invocation->globals,
		                        &invocation->request, &help, &message);
	if (error < 0)
		return report_error(invocation, error, &message);
	if (help) {
		subcommand_help(subcommand);
		return 0;
	}
	return run(invocation);
}

int main(int argc, char **argv)
{
	struct invocation invocation = {0};
	int code = 0, used = 0;
	secrets_adopt_environment();
	int first = parse_globals(argc, argv, &invocation, &code);
	if (first < 0)
		return code;
	if (strcmp(argv[first], "help") == 0) {
		usage(stdout);
		return 0;
	}
	const struct subcommand *subcommand = subcommand_find(argc - first, argv + first, &used);
	if (subcommand) {
		code = parse_and_run(&invocation, subcommand, argc - first - used + 1,
		                     argv + first + used - 1);
	} else {
		const char *second = first + 1 < argc ? argv[first + 1] : "-";
		bool named = second[0] != '-';
		fprintf(stderr, "lakectl: no command '%s%s%s'\n", argv[first], named ? " " : "",
		        named ? second : "");
		if (!subcommands_list(argv[first]))
			usage(stderr);
		code = EXIT_USAGE;
	}
	cJSON_Delete(invocation.request);
	free(invocation.lake);
	free(invocation.branch);
	free(invocation.revision);
	free(invocation.prefix);
	free(invocation.mountpoint);
	return code;
}
