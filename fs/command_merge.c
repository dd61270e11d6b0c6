/*
 * command_merge — merge, revert, cherry-pick: each is a three-way merge of trees, prepared as a
 * real commit and published by one move of the branch, or repeated when the branch moved first.
 */
#include "fs/command_internal.h"

#include <stdio.h>
#include <unistd.h>

#define ATTEMPTS_MS_MAX 60000
#define CONFLICTS_SHOWN_MAX 10000

static void merge_cleanup(struct packer **packer)
{
	packer_free(*packer);
}

/* -- the reply -- */

static void reply_conflict_side(cJSON *object, const char *name, const struct tree_entry *entry)
{
	if (!entry)
		return;
	cJSON *side = cJSON_AddObjectToObject(object, name);
	char mode[16];
	snprintf(mode, sizeof mode, "%06o", entry->attributes.mode);
	cJSON_AddStringToObject(side, "mode", mode);
	cJSON_AddNumberToObject(side, "size", (double)entry->content.size);
	reply_id(side, "content", &entry->content.pointer.id);
}

static int reply_conflicts(struct command *command, const struct merge_result *result)
{
	cJSON *array = cJSON_AddArrayToObject(command->reply, "conflicts");
	for (size_t i = 0; i < result->conflict_count; i++) {
		const struct conflict *conflict = &result->conflicts[i];
		cJSON *object = cJSON_CreateObject();
		reply_path(object, "path", conflict->path, strlen(conflict->path));
		reply_conflict_side(object, "base", conflict->base);
		reply_conflict_side(object, "source", conflict->source);
		reply_conflict_side(object, "target", conflict->target);
		cJSON_AddItemToArray(array, object);
	}
	if (!result->conflict_count)
		return 0;
	return fail(
	        command->message, -ERR_CONFLICT,
	        "%zu conflict%s, first '%s'; nothing was changed. Choose with --take source:PATH "
	        "or --take target:PATH",
	        result->conflict_count, result->conflict_count > 1 ? "s" : "",
	        result->conflicts[0].path);
}

/* -- publishing a merged tree -- */

struct plan {
	struct worktree *worktree;
	const struct commit *head; /* what the tree was merged into */
	const char *text;
	const char *note; /* for the reflog */
	const struct pointer *second_parent;
	struct meta_pair *meta;
	size_t meta_count;
};

static int publish(struct command *command, const struct plan *plan, struct packer *packer,
                   const struct merge_result *result, struct pointer *ret_commit)
{
	struct pointer parents[2] = {plan->head->self};
	if (plan->second_parent)
		parents[1] = *plan->second_parent;
	struct commit commit = {
	        .tree = result->tree,
	        .root = result->root,
	        .parents = parents,
	        .parent_count = plan->second_parent ? 2 : 1,
	        .author = command->caller->name,
	        .time_ms = clock_wall_ms(),
	        .message = plan->text,
	        .meta = plan->meta,
	        .meta_count = plan->meta_count,
	};
	CLEANUP(commit_pointer_free) struct commit *written = NULL;
	int error = commit_write(command->lake->odb, packer, &commit, ret_commit, command->message);
	/* While it is here, and so kept at hand for whoever reads it next. */
	if (!error)
		error = commit_read(command->lake->odb, ret_commit, &written, command->message);
	if (!error)
		error = packer_flush(packer, command->message);
	if (error < 0)
		return error;
	struct move_options options = {
	        .expected = &plan->head->self, .who = command->caller->name, .command = plan->note};
	error = worktree_move(plan->worktree, ret_commit, &options, command->message);
	if (!error)
		history_note(command->lake->history, written);
	return error;
}

/* Others moved the branch first: merging is repeated, by the clock and not by a count, for others
 * were served meanwhile. */
struct attempts {
	int64_t started_ms;
	unsigned count;
	bool asked; /* for the head: no longer guess */
};

/* What came of a guessed head and no move confirms must come of the real one, too. */
static int ask(struct attempts *attempts)
{
	attempts->asked = true;
	return -ERR_MOVED;
}

static bool try_again(struct attempts *attempts, bool guessed, int error)
{
	unsigned limit_ms = 10u << (attempts->count < 7 ? attempts->count : 7);
	if (error != -ERR_MOVED || clock_monotonic_ms() - attempts->started_ms > ATTEMPTS_MS_MAX)
		return false;
	if (guessed && attempts->asked)
		return true;
	attempts->count++;
	usleep((unsigned)(random_u64() % limit_ms) * 1000);
	return true;
}

/* Where the branch stands; with `guess`, where this host saw it a moment ago. */
static int head_of(struct command *command, const char *branch, bool guess,
                   struct commit **ret_head)
{
	CLEANUP(ref_release) struct ref ref = {0};
	struct object_store *store = command->lake->store;
	int error = guess ? ref_read_known(store, REF_BRANCH, branch, &ref, command->message)
	                  : ref_read(store, REF_BRANCH, branch, &ref, command->message);
	return error ? error
	             : commit_read(command->lake->odb, &ref.commit, ret_head, command->message);
}

/* -- merge -- */

struct takes {
	struct take *items;
	size_t count;
};

static void takes_release(struct takes *takes)
{
	for (size_t i = 0; i < takes->count; i++)
		free((char *)takes->items[i].path);
	free(takes->items);
}

static int parse_take(struct command *command, const char *text, struct take *ret_take)
{
	char path[PATH_BYTES_MAX];
	const char *colon = strchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : 0;
	if (length == 6 && strncmp(text, "source", 6) == 0)
		ret_take->side = SIDE_SOURCE;
	else if (length == 6 && strncmp(text, "target", 6) == 0)
		ret_take->side = SIDE_TARGET;
	else
		return fail(command->message, -ERR_INVALID,
		            "--take needs source:PATH or target:PATH, not '%s'", text);
	int error = path_normalise(colon + 1, path, command->message);
	if (error < 0)
		return error;
	ret_take->path = strdup(path);
	return ret_take->path ? 0 : -ERR_NO_MEMORY;
}

static int argument_takes(struct command *command, struct takes *ret_takes)
{
	const cJSON *array = cJSON_GetObjectItemCaseSensitive(command->request, "take"), *item;
	if (!array)
		return 0;
	ret_takes->items = calloc((size_t)cJSON_GetArraySize(array) + 1, sizeof *ret_takes->items);
	if (!ret_takes->items)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, array) {
		int error = cJSON_IsString(item)
		                    ? parse_take(command, item->valuestring,
		                                 &ret_takes->items[ret_takes->count])
		                    : fail(command->message, -ERR_INVALID, "take is not a string");
		if (error < 0)
			return error;
		ret_takes->count++;
	}
	return 0;
}

struct merge_request {
	const char *source_name;
	const char *text;
	struct commit *source;
	struct worktree *target;
	struct takes takes;
	bool dry_run;
	bool squash;
};

static void merge_request_release(struct merge_request *request)
{
	free(request->source);
	if (request->target)
		worktree_unref(request->target);
	takes_release(&request->takes);
}

static int list_merged(void *context, const struct change *change)
{
	return list_add(context, reply_change(change));
}

static int merge_once(struct command *command, const struct merge_request *request,
                      struct attempts *attempts)
{
	CLEANUP(commit_pointer_free) struct commit *head = NULL;
	CLEANUP(merge_cleanup) struct packer *packer = NULL;
	CLEANUP(merge_result_release) struct merge_result result = {0};
	struct merge_options options = {.takes = request->takes.items,
	                                .take_count = request->takes.count,
	                                .conflicts_max = CONFLICTS_SHOWN_MAX};
	bool fast_forward = false, up_to_date = false;
	struct pointer made;
	char note[300], text[400];

	bool guess = !attempts->asked && !request->dry_run;
	int error = head_of(command, worktree_branch(request->target), guess, &head);
	if (!error)
		error = packer_new(command->lake->odb, &packer);
	if (!error)
		error = merge_commits(command->lake->history, command->lake->odb, packer,
		                      request->source, head, &options, &result, &fast_forward,
		                      &up_to_date, command->message);
	if (!error && guess && (up_to_date || result.conflict_count))
		return ask(attempts);
	if (!error)
		error = reply_conflicts(command, &result);
	if (error < 0)
		return error;
	cJSON_AddBoolToObject(command->reply, "up_to_date", up_to_date);
	cJSON_AddNumberToObject(command->reply, "changed", (double)result.changed);
	if (request->dry_run) {
		struct list list;
		list_begin(&list, command, "changes");
		error = up_to_date ? 0
		                   : diff_trees(command->lake->odb, &head->tree, &result.tree,
		                                &(struct diff_options){0}, list_merged, &list,
		                                command->message);
		list_end(&list);
		return error;
	}
	if (up_to_date) {
		reply_id(command->reply, "commit", &head->self.id);
		return 0;
	}
	snprintf(note, sizeof note, "merge %.200s", request->source_name);
	snprintf(text, sizeof text, "Merge %.200s into %s", request->source_name,
	         worktree_branch(request->target));
	struct plan plan = {
	        .worktree = request->target,
	        .head = head,
	        .text = request->text ? request->text : text,
	        .note = note,
	        .second_parent = request->squash ? NULL : &request->source->self,
	};
	error = publish(command, &plan, packer, &result, &made);
	if (!error)
		reply_id(command->reply, "commit", &made.id);
	return error;
}

static int is_named(void *context, const char *branch)
{
	return strcmp(context, branch) == 0;
}

/* Uncommitted changes of the source branch are no part of the merge: say so. */
static void note_dirty_source(struct command *command, const char *source)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	/* Others are not worth looking at: a branch without uncommitted changes has none. */
	if (worktrees_kept(command->lake->worktrees, is_named, (void *)source) == 1 &&
	    worktree_get(command->lake->worktrees, source, &worktree, NULL) == 0 &&
	    worktree_dirty(worktree))
		cJSON_AddBoolToObject(command->reply, "source_dirty", true);
}

int command_merge(struct command *command)
{
	CLEANUP(merge_request_release)
	struct merge_request request = {
	        .dry_run = argument_flag(command, "dry_run"),
	        .squash = argument_flag(command, "squash"),
	};
	int error = argument_required(command, "source", &request.source_name);
	if (!error)
		error = argument_string(command, "message", &request.text);
	if (!error)
		error = command_worktree(command, "target", &request.target);
	if (!error)
		error = command_commit(command, "source", &request.source);
	if (!error)
		error = argument_takes(command, &request.takes);
	if (error < 0)
		return error;
	cJSON_AddStringToObject(command->reply, "target", worktree_branch(request.target));
	note_dirty_source(command, request.source_name);
	struct attempts attempts = {.started_ms = clock_monotonic_ms()};
	bool guessed;
	do {
		static const char *const results[] = {"conflicts", "up_to_date", "changed",
		                                      "changes"};
		guessed = !attempts.asked;
		for (size_t i = 0; i < ARRAY_SIZE(results); i++)
			cJSON_DeleteItemFromObjectCaseSensitive(command->reply, results[i]);
		error = merge_once(command, &request, &attempts);
	} while (try_again(&attempts, guessed, error));
	return error;
}

/* -- revert and cherry-pick: a change (from -> to) applied to a branch's head -- */

struct application {
	struct merge_side from;
	struct merge_side to;
	struct worktree *worktree;
	const char *text;
	const char *note;
	struct meta_pair meta;
	struct takes takes;
};

static int apply_once(struct command *command, const struct application *application,
                      struct attempts *attempts)
{
	CLEANUP(commit_pointer_free) struct commit *head = NULL;
	CLEANUP(merge_cleanup) struct packer *packer = NULL;
	CLEANUP(merge_result_release) struct merge_result result = {0};
	struct merge_options options = {.conflicts_max = CONFLICTS_SHOWN_MAX};
	struct merge_side target;
	struct meta_pair meta = application->meta;
	struct pointer made;

	options.takes = application->takes.items;
	options.take_count = application->takes.count;
	bool guess = !attempts->asked;
	int error = head_of(command, worktree_branch(application->worktree), guess, &head);
	if (!error)
		error = packer_new(command->lake->odb, &packer);
	if (error < 0)
		return error;
	target = side_of(head);
	error = merge_trees(command->lake->odb, packer, &application->from, &application->to,
	                    &target, &options, &result, command->message);
	if (!error && guess && (result.conflict_count || id_equal(&result.tree.id, &head->tree.id)))
		return ask(attempts);
	if (!error)
		error = reply_conflicts(command, &result);
	if (error < 0)
		return error;
	if (id_equal(&result.tree.id, &head->tree.id))
		return fail(command->message, -ERR_INVALID,
		            "'%s' has nothing of that change to apply; nothing was changed",
		            worktree_branch(application->worktree));
	struct plan plan = {.worktree = application->worktree,
	                    .head = head,
	                    .text = application->text,
	                    .note = application->note,
	                    .meta = &meta,
	                    .meta_count = 1};
	error = publish(command, &plan, packer, &result, &made);
	if (!error)
		reply_id(command->reply, "commit", &made.id);
	return error;
}

/* The commit and the parent (--mainline N, default 1) its change is measured against. */
static int change_of(struct command *command, struct commit **ret_commit,
                     struct merge_side *ret_before)
{
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	CLEANUP(commit_pointer_free) struct commit *parent = NULL;
	double mainline = argument_number(command, "mainline", 1);
	int error = command_commit(command, "revision", &commit);
	if (error < 0)
		return error;
	if (!commit->parent_count) {
		*ret_before = (struct merge_side){.root = commit->root};
	} else if (mainline < 1 || mainline > (double)commit->parent_count) {
		return fail(command->message, -ERR_INVALID, "that commit has %zu parent%s",
		            commit->parent_count, commit->parent_count > 1 ? "s" : "");
	} else {
		error = commit_read(command->lake->odb, &commit->parents[(size_t)mainline - 1],
		                    &parent, command->message);
		if (error < 0)
			return error;
		*ret_before = side_of(parent);
	}
	*ret_commit = steal(&commit);
	return 0;
}

static int apply_change(struct command *command, bool backwards)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	struct merge_side before;
	const char *given;
	char hex[ID_HEX + 1], note[64];
	CLEANUP(free_pointer) char *text = NULL;
	CLEANUP(takes_release) struct takes takes = {0};

	int error = command_worktree(command, "branch", &worktree);
	if (!error)
		error = argument_string(command, "message", &given);
	if (!error)
		error = change_of(command, &commit, &before);
	if (!error)
		error = argument_takes(command, &takes);
	if (error < 0)
		return error;
	id_to_hex(&commit->self.id, hex);
	snprintf(note, sizeof note, "%s %.12s", backwards ? "revert" : "cherry-pick", hex);
	if (asprintf(&text, "%s%.*s%s", backwards ? "Revert \"" : "",
	             (int)strcspn(commit->message, backwards ? "\n" : ""), commit->message,
	             backwards ? "\"" : "") < 0)
		return -ERR_NO_MEMORY;
	struct application application = {
	        .from = backwards ? side_of(commit) : before,
	        .to = backwards ? before : side_of(commit),
	        .worktree = worktree,
	        .text = given ? given : text,
	        .note = note,
	        .meta = {.key = backwards ? "reverts" : "cherry-picked-from", .value = hex},
	        .takes = takes,
	};
	cJSON_AddStringToObject(command->reply, "branch", worktree_branch(worktree));
	struct attempts attempts = {.started_ms = clock_monotonic_ms()};
	bool guessed;
	do {
		cJSON_DeleteItemFromObjectCaseSensitive(command->reply, "conflicts");
		guessed = !attempts.asked;
		error = apply_once(command, &application, &attempts);
	} while (try_again(&attempts, guessed, error));
	return error;
}

int command_revert(struct command *command)
{
	return apply_change(command, true);
}

int command_cherry_pick(struct command *command)
{
	return apply_change(command, false);
}
