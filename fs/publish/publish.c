/*
 * publish — hides how a move is prepared, checked and repeated.
 *
 * The head may be a guess (refs/known.h): what it leads to and no put confirms, a conflict, nothing
 * to do or a refusal, is not believed before the branch was asked.
 */
#include "fs/publish/publish.h"
#include "fs/commands/conflicts.h"

#include <stdio.h>
#include <unistd.h>

#include "fs/publish/audit.h"
#include "fs/json.h"

#define ATTEMPTS_MS_MAX 60000
#define AUDIT_ROUNDS_MAX 5

/* Others moved the branch first. Merging is repeated, by the clock and not by a count, for others
 * were served meanwhile; audits, which may take minutes, by a count. */
struct attempts {
	int64_t started_ms;
	unsigned count;
	unsigned rounds; /* of audits */
	bool asked;      /* for the head: no longer guess */
};

/* One attempt. */
struct candidate {
	const struct proposal *proposal;
	struct ref ref; /* the target as it was read */
	struct commit *head;
	struct packer *packer;
	struct merge_result result;
	struct commit *commit;
	char hex[ID_HEX + 1]; /* its id */
	struct ref_rights rights;
	bool changes_read;
	struct audit_changes changes;
	bool audited;
	struct verdict verdict;
};

struct looking {
	struct command *command;
	struct candidate *candidate;
};

static void candidate_release(struct candidate *candidate)
{
	ref_release(&candidate->ref);
	free(candidate->head);
	packer_free(candidate->packer);
	merge_result_release(&candidate->result);
	free(candidate->commit);
	audit_changes_release(&candidate->changes);
	verdict_release(&candidate->verdict);
}

static void cJSON_cleanup(cJSON **object)
{
	cJSON_Delete(*object);
}

/* What came of a guessed head and no move confirms must come of the real one, too. */
static int ask(struct attempts *attempts)
{
	attempts->asked = true;
	return -ERR_MOVED;
}

static bool try_again(struct attempts *attempts, bool guessed, int error)
{
	unsigned limit_ms = 10u << (attempts->count < 7 ? attempts->count : 7);
	if (error != -ERR_MOVED || attempts->rounds >= AUDIT_ROUNDS_MAX ||
	    (!attempts->rounds && clock_monotonic_ms() - attempts->started_ms > ATTEMPTS_MS_MAX))
		return false;
	if (guessed && attempts->asked)
		return true;
	attempts->count++;
	usleep((unsigned)(random_u64() % limit_ms) * 1000);
	return true;
}

/* Where the branch stands; with `guess`, where this host saw it a moment ago. */
static int read_head(struct command *command, struct candidate *candidate, bool guess)
{
	const char *branch = worktree_branch(candidate->proposal->target);
	struct object_store *store = command->lake->store;
	struct ref *ref = &candidate->ref;
	int error = guess ? ref_read_known(store, REF_BRANCH, branch, ref, command->message)
	                  : ref_read(store, REF_BRANCH, branch, ref, command->message);
	return error ? error
	             : commit_read(command->lake->odb, &ref->commit, &candidate->head,
	                           command->message);
}

/* Before any work: would it be refused even if every audit passed? */
static int check_rights(struct command *command, struct candidate *candidate)
{
	const struct proposal *proposal = candidate->proposal;
	candidate->rights = command_rights(command);
	candidate->rights.merged = proposal->merged;
	candidate->rights.audited = true;
	candidate->rights.rules = candidate->ref.protection.rules;
	if (proposal->dry_run || proposal->audit_only)
		return 0;
	return protection_check(&candidate->ref.protection, worktree_branch(proposal->target),
	                        &candidate->rights, command->message);
}

/* -- the commit -- */

static int prepare(struct command *command, struct candidate *candidate)
{
	const struct proposal *proposal = candidate->proposal;
	struct lake *lake = command->lake;
	struct pointer parents[2] = {candidate->head->self}, made;
	if (proposal->second_parent)
		parents[1] = proposal->source->self;
	struct commit commit = {
	        .tree = candidate->result.tree,
	        .root = candidate->result.root,
	        .parents = parents,
	        .parent_count = proposal->second_parent ? 2 : 1,
	        .author = command->caller->name,
	        .time_ms = clock_wall_ms(),
	        .message = proposal->text,
	        .meta = proposal->meta,
	        .meta_count = proposal->meta_count,
	};
	int error = commit_write(lake->odb, candidate->packer, &commit, &made, command->message);
	/* While it is here, and so kept at hand for whoever reads it next. */
	if (!error)
		error = commit_read(lake->odb, &made, &candidate->commit, command->message);
	if (!error)
		error = packer_flush(candidate->packer, command->message);
	if (!error)
		id_to_hex(&made.id, candidate->hex);
	return error;
}

static int move(struct command *command, struct candidate *candidate)
{
	const struct proposal *proposal = candidate->proposal;
	struct move_options options = {.expected = &candidate->head->self,
	                               .who = command->caller->name,
	                               .command = proposal->note,
	                               .rights = &candidate->rights};
	return worktree_move(proposal->target, &candidate->commit->self, &options,
	                     command->message);
}

/* -- looking at it -- */

/* A hook's or audit's view of what would change, read when somebody asks for it. */
static int read_changes(struct command *command, struct candidate *candidate)
{
	if (candidate->changes_read)
		return 0;
	candidate->changes_read = true;
	return audit_changes_read(command->lake->odb, &candidate->head->tree,
	                          &candidate->result.tree, &candidate->changes, command->message);
}

static int hook_changes(void *context, struct buffer *ret_paths, struct message *message)
{
	struct looking *looking = context;
	(void)message; /* it is the command's */
	int error = read_changes(looking->command, looking->candidate);
	const char *at = (const char *)looking->candidate->changes.paths.data;
	for (size_t i = 0; !error && i < looking->candidate->changes.count; i++) {
		size_t length = strlen(++at) + 1; /* after its kind */
		buffer_append(ret_paths, at, length);
		at += length;
	}
	return error ? error : buffer_check(ret_paths);
}

static struct hook_event hook_of(struct looking *looking, const char *name)
{
	const struct proposal *proposal = looking->candidate->proposal;
	return (struct hook_event){
	        .name = name,
	        .branch = worktree_branch(proposal->target),
	        .source = proposal->source_name,
	        .target = worktree_branch(proposal->target),
	        .commit = &looking->candidate->commit->self.id,
	        .candidate = looking->candidate->hex,
	        .message = proposal->text,
	        .changed = hook_changes,
	        .context = looking,
	};
}

static int base_of(struct command *command, const struct candidate *candidate, struct id *ret_id)
{
	CLEANUP(free_pointer) struct pointer *bases = NULL;
	size_t count = 0;
	int error = merge_bases(command->lake->history, &candidate->proposal->source->self,
	                        &candidate->head->self, &bases, &count, command->message);
	if (!error && count)
		*ret_id = bases[0].id;
	return error;
}

static void reply_verdict(struct command *command, const struct candidate *candidate,
                          const struct verdict *verdict)
{
	cJSON *object = verdict_json(verdict);
	json_put(command->reply, "checks",
	         cJSON_DetachItemFromObjectCaseSensitive(object, "checks"));
	cJSON_Delete(object);
	cJSON_AddStringToObject(command->reply, "verdict", verdict_name(verdict->verdict));
	cJSON_AddStringToObject(command->reply, "candidate", candidate->hex);
	CLEANUP(free_pointer) char *path = NULL;
	if (text_format(&path, "%s/@%s", command->lake->mountpoint, candidate->hex) > 0)
		cJSON_AddStringToObject(command->reply, "at", path);
}

/* An entry of the audit log. Before the move it must be written, after it can only be missed. */
static cJSON *log_entry(struct command *command, const struct candidate *candidate,
                        const char *what, const char *verdict)
{
	const struct proposal *proposal = candidate->proposal;
	cJSON *entry = cJSON_CreateObject();
	cJSON_AddStringToObject(entry, "who", command->caller->name);
	cJSON_AddStringToObject(entry, "what", what);
	cJSON_AddStringToObject(entry, "branch", worktree_branch(proposal->target));
	cJSON_AddStringToObject(entry, "source", proposal->source_name);
	cJSON_AddStringToObject(entry, "commit", candidate->hex);
	reply_id(entry, "before", &candidate->head->self.id);
	if (verdict)
		cJSON_AddStringToObject(entry, "verdict", verdict);
	return entry;
}

static int log_verdict(struct command *command, const struct candidate *candidate,
                       const struct verdict *verdict)
{
	CLEANUP(cJSON_cleanup)
	cJSON *entry = log_entry(command, candidate, "audit", verdict_name(verdict->verdict));
	cJSON *failed = cJSON_AddArrayToObject(entry, "failed");
	for (size_t i = 0; i < verdict->check_count; i++)
		if (verdict->checks[i].verdict == VERDICT_FAILED ||
		    verdict->checks[i].verdict == VERDICT_ERROR)
			json_append(failed, cJSON_CreateString(verdict->checks[i].name));
	int error = verdict_store(command->lake->store, verdict, command->message);
	return error ? error : audit_log_append(command->lake->store, entry, command->message);
}

static void tell(struct command *command, const struct candidate *candidate, const char *event)
{
	const struct proposal *proposal = candidate->proposal;
	const struct webhook_event happened = {
	        .event = event,
	        .branch = worktree_branch(proposal->target),
	        .source = proposal->source_name,
	        .commit = &candidate->commit->self.id,
	        .before = &candidate->head->self.id,
	        .message = proposal->text,
	        .verdict = candidate->audited ? verdict_name(candidate->verdict.verdict) : NULL,
	        .changed = (int64_t)candidate->result.changed,
	        .audits = cJSON_GetObjectItemCaseSensitive(command->reply, "checks"),
	};
	command_event(command, &candidate->ref.protection.rules, &happened);
}

static int audit(struct command *command, struct candidate *candidate, const struct rules *rules)
{
	const struct proposal *proposal = candidate->proposal;
	struct lake *lake = command->lake;
	struct audit_subject subject = {
	        .caller = command->caller,
	        .mountpoint = lake->mountpoint,
	        .source = proposal->source_name,
	        .target = worktree_branch(proposal->target),
	        .candidate = candidate->commit->self.id,
	        .source_id = proposal->source->self.id,
	        .target_id = candidate->head->self.id,
	        .rules_id = candidate->ref.protection.rules,
	        .changes = &candidate->changes,
	};
	if (!lake->mountpoint)
		return fail(command->message, -ERR_UNSUPPORTED,
		            "the audits of %s look at files, so the lake must be mounted here "
		            "(`lakectl mount`); nothing was published",
		            subject.target);
	int error = base_of(command, candidate, &subject.base_id);
	if (!error)
		error = read_changes(command, candidate);
	if (!error)
		error = audits_run(lake->directory, rules, &subject, &command->output->progress,
		                   &candidate->verdict, command->message);
	if (error)
		return error;
	candidate->audited = true;
	reply_verdict(command, candidate, &candidate->verdict);
	error = log_verdict(command, candidate, &candidate->verdict);
	if (error || candidate->verdict.verdict == VERDICT_PASSED)
		return error;
	if (!proposal->audit_only)
		tell(command, candidate, "audit-failed");
	struct message why = {{0}};
	verdict_fail(&candidate->verdict, -ERR_REFUSED, &why);
	return fail(command->message, -ERR_REFUSED,
	            "%s; what was prepared can be looked at: %s/@%.12s", why.text, lake->mountpoint,
	            candidate->hex);
}

/* The hook of this host, then the audits that bind every host. */
static int inspect(struct command *command, struct candidate *candidate, struct attempts *attempts)
{
	struct looking looking = {command, candidate};
	const struct hook_event before = hook_of(&looking, "pre-merge");
	const struct protection *protection = &candidate->ref.protection;
	CLEANUP(rules_cleanup) struct rules *rules = NULL;
	int error = candidate->proposal->audit_only ? 0 : command_hook_before(command, &before);
	if (!error)
		error = rules_load(command->lake->store, &protection->rules, &rules,
		                   command->message);
	if (error)
		return error;
	if (rules && rules->audit_count) {
		attempts->rounds++;
		return audit(command, candidate, rules);
	}
	if (protection->flags & PROTECT_AUDITS || candidate->proposal->audit_only)
		return fail(command->message, -ERR_REFUSED,
		            "no audits are configured for %s (`lakectl audit add`)", before.branch);
	return 0;
}

/* -- one attempt -- */

static int list_change(void *context, const struct change *change)
{
	return list_add(context, reply_change(change));
}

/* What would change, and what would look at it. */
static int list_changes(struct command *command, const struct candidate *candidate)
{
	CLEANUP(rules_cleanup) struct rules *rules = NULL;
	struct list list;
	int error = rules_load(command->lake->store, &candidate->ref.protection.rules, &rules,
	                       command->message);
	if (!error && rules && rules->audit_count) {
		cJSON *audits = cJSON_AddArrayToObject(command->reply, "checks");
		for (size_t i = 0; i < rules->audit_count; i++) {
			cJSON *object = cJSON_CreateObject();
			cJSON_AddStringToObject(object, "name", rules->audits[i].name);
			cJSON_AddStringToObject(object, "verdict", "not run");
			json_append(audits, object);
		}
	}
	list_begin(&list, command, "changes");
	if (!error)
		error = diff_trees(command->lake->odb, &candidate->head->tree,
		                   &candidate->result.tree, &(struct diff_options){0}, list_change,
		                   &list, command->message);
	list_end(&list);
	return error;
}

/* It has moved: what is left can only be missed. */
static void published(struct command *command, struct candidate *candidate)
{
	const struct protection *protection = &candidate->ref.protection;
	struct looking looking = {command, candidate};
	const struct hook_event after = hook_of(&looking, "post-merge");
	reply_id(command->reply, "commit", &candidate->commit->self.id);
	if (protection_any(protection)) {
		struct message why = {{0}};
		CLEANUP(cJSON_cleanup)
		cJSON *entry = log_entry(command, candidate, candidate->proposal->event,
		                         candidate->audited ? "passed" : NULL);
		if (audit_log_append(command->lake->store, entry, &why) < 0)
			reply_warning(command, "the audit log has no entry of this: %s", why.text);
	}
	tell(command, candidate, candidate->proposal->event);
	command_hook_after(command, &after);
}

static int attempt(struct command *command, const struct proposal *proposal,
                   struct attempts *attempts)
{
	CLEANUP(candidate_release) struct candidate candidate = {.proposal = proposal};
	bool only_look = proposal->dry_run || proposal->audit_only;
	bool guess = !attempts->asked && !only_look, nothing = false;

	int error = read_head(command, &candidate, guess);
	if (!error)
		error = check_rights(command, &candidate);
	if (!error)
		error = packer_new(command->lake->odb, &candidate.packer);
	if (!error)
		error = proposal->merge(command, proposal, candidate.head, candidate.packer,
		                        &candidate.result, &nothing);
	if (guess && (error == -ERR_REFUSED || error == -ERR_NOT_FOUND ||
	              (!error && (nothing || candidate.result.conflict_count))))
		return ask(attempts);
	if (!error)
		error = reply_conflicts(command, &candidate.result);
	if (error < 0)
		return error;
	cJSON_AddBoolToObject(command->reply, "up_to_date", nothing);
	cJSON_AddNumberToObject(command->reply, "changed", (double)candidate.result.changed);
	if (nothing)
		reply_id(command->reply, "commit", &candidate.head->self.id);
	if (nothing || proposal->dry_run)
		return nothing ? 0 : list_changes(command, &candidate);
	error = prepare(command, &candidate);
	if (!error) /* for /@<id>/ */
		history_note(command->lake->history, candidate.commit);
	if (!error)
		error = inspect(command, &candidate, attempts);
	if (error || proposal->audit_only)
		return error;
	error = move(command, &candidate);
	if (!error)
		published(command, &candidate);
	return error;
}

int publish(struct command *command, const struct proposal *proposal)
{
	static const char *const results[] = {"conflicts", "up_to_date", "changed",   "changes",
	                                      "checks",    "verdict",    "candidate", "at",
	                                      "commit",    "warnings"};
	struct attempts attempts = {.started_ms = clock_monotonic_ms()};
	bool guessed;
	int error;
	do {
		guessed = !attempts.asked;
		for (size_t i = 0; i < ARRAY_SIZE(results); i++)
			cJSON_DeleteItemFromObjectCaseSensitive(command->reply, results[i]);
		error = attempt(command, proposal, &attempts);
	} while (try_again(&attempts, guessed, error));
	if (error == -ERR_MOVED && attempts.rounds)
		return fail(command->message, error,
		            "%s moved each of the %u times its audits had passed; nothing was "
		            "published. Try again when fewer publish to it",
		            worktree_branch(proposal->target), attempts.rounds);
	return error;
}
