/*
 * command_merge — merge, revert, cherry-pick: each is a three-way merge of trees, prepared as a
 * real commit and published by one move of the branch, or repeated when the branch moved first.
 */
#include "fs/commands/conflicts.h"
#include "fs/publish/publish.h"

#include <stdio.h>
#include <unistd.h>

/* -- merge -- */

struct merge_request {
	const char *source_name;
	const char *text;
	struct commit *source;
	struct worktree *target;
	struct take_list takes;
};

static void merge_request_release(struct merge_request *request)
{
	free(request->source);
	if (request->target)
		worktree_unref(request->target);
	take_list_release(&request->takes);
}

static int merge_source(struct command *command, const struct proposal *proposal,
                        const struct commit *head, struct packer *packer,
                        struct merge_result *ret_result, bool *ret_nothing)
{
	const struct merge_options options = conflict_options(proposal->context);
	bool fast_forward = false;
	return merge_commits(command->lake->history, command->lake->odb, packer, proposal->source,
	                     head, &options, ret_result, &fast_forward, ret_nothing,
	                     command->message);
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

/* The branch that the argument names; what is published goes into main unless told otherwise. */
static int target_of(struct command *command, const char *argument, struct worktree **ret_target)
{
	if (strcmp(argument, "into") == 0 &&
	    !cJSON_GetObjectItemCaseSensitive(command->request, argument))
		return worktree_get(command->lake->worktrees, "main", ret_target, command->message);
	return command_worktree(command, argument, ret_target);
}

static int merge_arguments(struct command *command, const char *target,
                           struct merge_request *request)
{
	int error = argument_required(command, "source", &request->source_name);
	if (!error)
		error = argument_string(command, "message", &request->text);
	if (!error)
		error = target_of(command, target, &request->target);
	if (!error)
		error = command_commit(command, "source", &request->source);
	if (!error)
		error = argument_takes(command, &request->takes);
	return error;
}

/* merge and publish differ in their words: both go by the target's protection and audits. */
static int bring_in(struct command *command, const char *verb, const char *event,
                    const char *target, bool audit_only)
{
	CLEANUP(merge_request_release) struct merge_request request = {0};
	char note[300], text[400];
	int error = merge_arguments(command, target, &request);
	if (error < 0)
		return error;
	snprintf(note, sizeof note, "%s %.200s", verb, request.source_name);
	snprintf(text, sizeof text, "Merge %.200s into %s", request.source_name,
	         worktree_branch(request.target));
	const struct proposal proposal = {
	        .target = request.target,
	        .source_name = request.source_name,
	        .source = request.source,
	        .second_parent = !argument_flag(command, "squash"),
	        .text = request.text ? request.text : text,
	        .note = note,
	        .event = event,
	        .merged = true,
	        .dry_run = argument_flag(command, "dry_run"),
	        .audit_only = audit_only,
	        .merge = merge_source,
	        .context = &request.takes,
	};
	cJSON_AddStringToObject(command->reply, "target", worktree_branch(request.target));
	note_dirty_source(command, request.source_name);
	return publish(command, &proposal);
}

int command_merge(struct command *command)
{
	return bring_in(command, "merge", "merged", "target", false);
}

/* -- revert and cherry-pick: a change (from -> to) applied to a branch's head -- */

struct application {
	struct merge_side from;
	struct merge_side to;
	struct id from_commit, to_commit; /* zero: before the first commit */
	struct take_list takes;
};

static int apply_to(struct command *command, const struct proposal *proposal,
                    const struct commit *head, struct packer *packer,
                    struct merge_result *ret_result, bool *ret_nothing)
{
	const struct application *application = proposal->context;
	const struct merge_side target = side_of(head);
	const struct merge_options options = conflict_options(&application->takes);
	int error = merge_trees(command->lake->odb, packer, &application->from, &application->to,
	                        &target, &options, ret_result, command->message);
	if (!error) {
		ret_result->base = application->from_commit;
		ret_result->source = application->to_commit;
		ret_result->target = head->self.id;
	}
	*ret_nothing = !error && !ret_result->conflict_count &&
	               id_equal(&ret_result->tree.id, &head->tree.id);
	return error;
}

/* The commit and the parent (--mainline N, default 1) its change is measured against. */
static int change_of(struct command *command, struct commit **ret_commit,
                     struct merge_side *ret_before, struct id *ret_parent)
{
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	CLEANUP(commit_pointer_free) struct commit *parent = NULL;
	double mainline = argument_number(command, "mainline", 1);
	int error = command_commit(command, "revision", &commit);
	if (error < 0)
		return error;
	if (!commit->parent_count) {
		*ret_before = (struct merge_side){.root = commit->root};
		*ret_parent = id_zero;
	} else if (mainline < 1 || mainline > (double)commit->parent_count) {
		return fail(command->message, -ERR_INVALID, "that commit has %zu parent%s",
		            commit->parent_count, commit->parent_count > 1 ? "s" : "");
	} else {
		error = commit_read(command->lake->odb, &commit->parents[(size_t)mainline - 1],
		                    &parent, command->message);
		if (error < 0)
			return error;
		*ret_before = side_of(parent);
		*ret_parent = parent->self.id;
	}
	*ret_commit = steal(&commit);
	return 0;
}

/* `target`: the argument that names the branch. `publishing`: as a publish, audited as one. */
static int apply_change(struct command *command, const char *target, bool backwards,
                        bool publishing)
{
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(commit_pointer_free) struct commit *commit = NULL;
	struct merge_side before;
	struct id parent;
	const char *given, *revision;
	char hex[ID_HEX + 1], note[64];
	CLEANUP(free_pointer) char *text = NULL;
	CLEANUP(take_list_release) struct take_list takes = {0};

	int error = target_of(command, target, &worktree);
	if (!error)
		error = argument_string(command, "message", &given);
	if (!error)
		error = argument_required(command, "revision", &revision);
	if (!error)
		error = change_of(command, &commit, &before, &parent);
	if (!error)
		error = argument_takes(command, &takes);
	if (error < 0)
		return error;
	id_to_hex(&commit->self.id, hex);
	snprintf(note, sizeof note, "%s%s %.12s", publishing ? "publish " : "",
	         backwards ? "revert" : "cherry-pick", hex);
	if (text_format(&text, "%s%.*s%s", backwards ? "Revert \"" : "",
	                (int)strcspn(commit->message, backwards ? "\n" : ""), commit->message,
	                backwards ? "\"" : "") < 0)
		return -ERR_NO_MEMORY;
	const struct application application = {
	        .from = backwards ? side_of(commit) : before,
	        .to = backwards ? before : side_of(commit),
	        .from_commit = backwards ? commit->self.id : parent,
	        .to_commit = backwards ? parent : commit->self.id,
	        .takes = takes,
	};
	struct meta_pair meta = {.key = backwards ? "reverts" : "cherry-picked-from", .value = hex};
	const struct proposal proposal = {
	        .target = worktree,
	        .source_name = revision,
	        .source = commit,
	        .text = given ? given : text,
	        .note = note,
	        .event = publishing ? "published" : "committed",
	        .meta = &meta,
	        .meta_count = 1,
	        .merged = publishing,
	        .dry_run = argument_flag(command, "dry_run"),
	        .merge = apply_to,
	        .context = &application,
	};
	cJSON_AddStringToObject(command->reply, publishing ? "target" : "branch",
	                        worktree_branch(worktree));
	error = publish(command, &proposal);
	if (!error && cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(command->reply, "up_to_date")))
		return fail(command->message, -ERR_INVALID,
		            "'%s' has nothing of that change to apply; nothing was changed",
		            worktree_branch(worktree));
	return error;
}

int command_revert(struct command *command)
{
	return apply_change(command, "branch", true, false);
}

int command_cherry_pick(struct command *command)
{
	return apply_change(command, "branch", false, false);
}

int command_publish(struct command *command)
{
	const char *revision, *source;
	int error = argument_string(command, "revision", &revision);
	if (!error)
		error = argument_string(command, "source", &source);
	if (error < 0)
		return error;
	if (!revision && !source)
		return fail(command->message, -ERR_INVALID,
		            "name the branch to publish, or a commit to take back with --revert");
	if (revision && source)
		return fail(command->message, -ERR_INVALID,
		            "SOURCE and --revert do not go together: one brings a branch in, the "
		            "other takes a commit back");
	return revision ? apply_change(command, "into", true, true)
	                : bring_in(command, "publish", "published", "into", false);
}

int command_audit_run(struct command *command)
{
	return bring_in(command, "audit", "audited", "into", true);
}
