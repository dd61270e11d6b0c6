/*
 * revision.c — hides the grammar of revision expressions and what each form looks at.
 */
#include "refs/graph.h"

#include <ctype.h>
#include <stdio.h>

#define PREFIX_DIGITS_MIN 6
/* 64 bits of SHA-256: no second commit that starts with these will turn up. */
#define PREFIX_DIGITS_SURE 16
#define CANDIDATES_MAX 16
#define CANDIDATES_SHOWN 5
#define EXPRESSION_MAX 1024

static void short_hex(const struct id *id, char ret_hex[13])
{
	char hex[ID_HEX + 1];

	id_to_hex(id, hex);
	memcpy(ret_hex, hex, 12);
	ret_hex[12] = '\0';
}

/* -- suggestions -- */

static size_t smallest(size_t a, size_t b, size_t c)
{
	size_t ab = a < b ? a : b;

	return ab < c ? ab : c;
}

/* Optimal string alignment: insert, delete, replace or swap neighbours, each costs 1. */
static size_t edit_distance(const char *a, const char *b)
{
	size_t rows[3][REF_NAME_MAX + 1];
	size_t *before = rows[0], *last = rows[1], *row = rows[2];
	size_t a_length = strlen(a), b_length = strlen(b);

	for (size_t k = 0; k <= b_length; k++)
		last[k] = k;
	for (size_t i = 1; i <= a_length; i++) {
		row[0] = i;
		for (size_t k = 1; k <= b_length; k++) {
			size_t replaced = last[k - 1] + (a[i - 1] != b[k - 1]);

			row[k] = smallest(last[k] + 1, row[k - 1] + 1, replaced);
			if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] &&
			    before[k - 2] + 1 < row[k])
				row[k] = before[k - 2] + 1;
		}
		size_t *oldest = before;
		before = last;
		last = row;
		row = oldest;
	}
	return last[b_length];
}

struct suggestion {
	const char *wanted;
	size_t distance;
	char name[REF_NAME_MAX + 1];
};

static int suggest(void *context, const struct ref *ref)
{
	struct suggestion *suggestion = context;
	size_t distance = edit_distance(suggestion->wanted, ref->name);

	if (distance < suggestion->distance) {
		suggestion->distance = distance;
		memcpy(suggestion->name, ref->name, sizeof(ref->name));
	}
	return 0;
}

/* "" or "; did you mean 'main'?" */
static void did_you_mean(struct object_store *store, const char *name, char *ret_text, size_t size)
{
	size_t length = strlen(name);
	struct suggestion suggestion = {.wanted = name,
	                                .distance = (length < 4 ? 1 : length / 3) + 1};

	ret_text[0] = '\0';
	if (ref_list(store, REF_BRANCH, false, suggest, &suggestion, NULL) < 0 ||
	    ref_list(store, REF_TAG, false, suggest, &suggestion, NULL) < 0)
		return;
	if (suggestion.name[0])
		snprintf(ret_text, size, "; did you mean '%s'?", suggestion.name);
}

/* -- commit ids -- */

/* Lower case of `text` when that is all hexadecimal digits and no longer than an id. */
static bool as_digits(const char *text, char ret_digits[ID_HEX + 1])
{
	size_t length = strlen(text);

	if (length == 0 || length > ID_HEX)
		return false;
	for (size_t i = 0; i < length; i++) {
		char c = text[i] >= 'A' && text[i] <= 'F' ? (char)(text[i] + 32) : text[i];

		if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
			return false;
		ret_digits[i] = c;
	}
	ret_digits[length] = '\0';
	return true;
}

static int ambiguous(const char *digits, struct commit *const *commits, size_t count,
                     struct message *message)
{
	char list[600];
	size_t used = 0;

	for (size_t i = 0; i < count && i < CANDIDATES_SHOWN; i++) {
		char hex[ID_HEX + 1], when[32];
		int subject = (int)strcspn(commits[i]->message, "\r\n");

		id_to_hex(&commits[i]->self.id, hex);
		time_format(commits[i]->time_ms, when);
		used += (size_t)snprintf(list + used, sizeof(list) - used, "\n  %.16s %.16s %.*s",
		                         hex, when, subject < 60 ? subject : 60,
		                         commits[i]->message);
	}
	return fail(message, -ERR_AMBIGUOUS, "'%s' is ambiguous: give more digits of one of%s%s",
	            digits, list, count > CANDIDATES_SHOWN ? "\n  ..." : "");
}

/* Read the candidates; those whose pack has gone are dropped from the index and forgotten. */
static int read_candidates(struct history *history, const char *digits, struct commit **commits,
                           size_t *ret_count, struct message *message)
{
	struct pointer pointers[CANDIDATES_MAX];
	size_t found = 0, kept = 0;
	int rc;

	do {
		for (size_t i = 0; i < kept; i++)
			free(commits[i]);
		kept = 0;
		rc = history_prefix(history, digits, pointers, CANDIDATES_MAX, &found);
		if (rc < 0)
			return fail(message, rc, "cannot read the commit index: %s",
			            error_text(rc));
		for (size_t i = 0; i < found; i++) {
			rc = commit_read(history_odb(history), &pointers[i], &commits[kept],
			                 message);
			if (rc == -ERR_NOT_FOUND)
				history_drop(history, &pointers[i].id);
			else if (rc < 0)
				break;
			else
				kept++;
		}
	} while ((rc == 0 || rc == -ERR_NOT_FOUND) && kept == 0 && found == CANDIDATES_MAX);
	*ret_count = kept;
	return rc == -ERR_NOT_FOUND ? 0 : rc;
}

/* The indexed commit whose id starts with `digits`. -ERR_NOT_FOUND, -ERR_AMBIGUOUS. */
static int find_indexed(struct history *history, const char *digits, struct commit **ret_commit,
                        struct message *message)
{
	struct commit *commits[CANDIDATES_MAX] = {NULL};
	struct message unread = {0};
	size_t count = 0;
	int rc = read_candidates(history, digits, commits, &count, &unread);

	if (rc < 0)
		fail(message, rc, "%s", unread.text);
	else if (count == 0)
		rc = -ERR_NOT_FOUND;
	else if (count > 1)
		rc = ambiguous(digits, commits, count, message);
	else
		*ret_commit = steal(&commits[0]);
	for (size_t i = 0; i < count; i++)
		free(commits[i]);
	return rc;
}

/* Feed the index, then look: an unknown commit could make a short prefix ambiguous. What could not
 * be fed matters only when nothing was found. */
static int find_by_digits(struct history *history, const char *digits, struct commit **ret_commit,
                          struct message *message)
{
	struct message fed_message = {0};
	int rc = -ERR_NOT_FOUND;

	if (strlen(digits) >= PREFIX_DIGITS_SURE)
		rc = find_indexed(history, digits, ret_commit, message);
	if (rc != -ERR_NOT_FOUND)
		return rc;
	int fed = history_feed(history, &fed_message);
	rc = find_indexed(history, digits, ret_commit, message);
	if (rc == -ERR_NOT_FOUND && fed < 0)
		return fail(message, fed,
		            "'%s' was not found, but not all history could be read: %s", digits,
		            fed_message.text);
	return rc;
}

/* -- BASE -- */

static int not_a_revision(const char *text, struct message *message)
{
	return fail(message, -ERR_BAD_NAME,
	            "'%.200s' is not a revision: use a branch, a tag, a commit id, BRANCH@TIME, "
	            "and behind it ~N or ^N",
	            text);
}

static int no_such_revision(struct history *history, const char *name, bool is_hex,
                            struct message *message)
{
	char hint[REF_NAME_MAX + 32];

	did_you_mean(odb_store(history_odb(history)), name, hint, sizeof(hint));
	if (is_hex && strlen(name) < PREFIX_DIGITS_MIN)
		return fail(message, -ERR_NO_REVISION,
		            "no branch or tag '%s', and for a commit id '%s' is shorter than %d "
		            "digits%s",
		            name, name, PREFIX_DIGITS_MIN, hint);
	return fail(message, -ERR_NO_REVISION, "no branch, tag or commit '%s'%s", name, hint);
}

/* A ref whose commit is not there is damage, not an unknown name. */
static int read_head(struct history *history, const struct ref *ref, struct commit **ret_commit,
                     struct message *message)
{
	int rc = commit_read(history_odb(history), &ref->commit, ret_commit, message);

	return rc < 0 ? fail_context(message, rc == -ERR_NOT_FOUND ? -ERR_CORRUPT : rc, "'%s'",
	                             ref->name)
	              : 0;
}

typedef int read_ref_fn(struct object_store *store, enum ref_kind kind, const char *name,
                        struct ref *ret_ref, struct message *message);

static int resolve_ref(struct history *history, const char *name, read_ref_fn *read_ref,
                       struct commit **ret_commit, struct message *message)
{
	static const enum ref_kind kinds[] = {REF_BRANCH, REF_TAG};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		CLEANUP(ref_release) struct ref ref = {0};
		struct message why = {0};
		int rc = read_ref(odb_store(history_odb(history)), kinds[i], name, &ref, &why);

		if (rc == 0)
			return read_head(history, &ref, ret_commit, message);
		if (rc != -ERR_NOT_FOUND)
			return fail(message, rc, "%s", why.text);
	}
	return -ERR_NO_REVISION;
}

static int resolve_name(struct history *history, const char *name, read_ref_fn *read_ref,
                        struct commit **ret_commit, struct message *message)
{
	char digits[ID_HEX + 1];
	bool is_hex = as_digits(name, digits);
	int rc;

	if (is_hex && strlen(digits) == ID_HEX) {
		rc = find_indexed(history, digits, ret_commit, message);
		if (rc != -ERR_NOT_FOUND)
			return rc;
	}
	if (ref_name_check(name, NULL) < 0)
		return not_a_revision(name, message);
	rc = resolve_ref(history, name, read_ref, ret_commit, message);
	if (rc != -ERR_NO_REVISION)
		return rc;
	if (is_hex && strlen(digits) >= PREFIX_DIGITS_MIN) {
		rc = find_by_digits(history, digits, ret_commit, message);
		if (rc != -ERR_NOT_FOUND)
			return rc;
	}
	return no_such_revision(history, name, is_hex, message);
}

/* -- BRANCH@TIME -- */

/* Along first parents to the first commit that is of `time_ms` or older; to the oldest one, with
 * its time in *ret_oldest_ms, when there is none. */
static int walk_to_time(struct history *history, const struct line *line, struct pointer *ret_at,
                        int64_t *ret_oldest_ms, struct message *message)
{
	struct pointer at = line->from;

	if (history_line_known(history, line, ret_at))
		return 0;
	for (uint64_t steps = 0;; steps++) {
		CLEANUP(free_pointer) struct graph_node *node = NULL;
		int rc = node_read(history, &at, &node, message);

		if (rc < 0)
			return rc;
		if (node->time_ms <= line->time_ms) {
			if (steps >= LINE_STEPS_LONG)
				history_line_note(history, line, &at);
			*ret_at = at;
			return 0;
		}
		if (node->parent_count == 0) {
			*ret_oldest_ms = node->time_ms;
			return -ERR_NO_REVISION;
		}
		at = node->parents[0];
	}
}

/* Before the oldest move that is still known: where the line of first parents that led there was.
 * Resets among the forgotten moves cannot be seen, so this needs a word. */
static int at_time_in_history(struct history *history, const struct ref *ref, int64_t time_ms,
                              struct pointer *ret_at, struct message *ret_note,
                              struct message *message)
{
	const struct ref_move *oldest = &ref->moves[ref->move_count - 1];
	const struct line line = {.from = oldest->before, .time_ms = time_ms};
	char asked[32], told[32];
	int64_t oldest_ms = 0;
	int rc = walk_to_time(history, &line, ret_at, &oldest_ms, message);

	time_format(time_ms, asked);
	time_format(rc == 0 ? oldest->time_ms : oldest_ms, told);
	if (rc == -ERR_NO_REVISION)
		return fail(message, rc,
		            "branch '%s' has nothing as old as %s; its first commit is of %s",
		            ref->name, asked, told);
	if (rc == 0)
		fail(ret_note, 0,
		     "the reflog of '%s' reaches back to %s; for %s the times of its commits were "
		     "asked, which know of no reset",
		     ref->name, told, asked);
	return rc;
}

/* What came before a branch was made is not its own: it never stood there. */
static int before_creation(const struct ref *ref, int64_t time_ms, struct message *message)
{
	const struct ref_move *made = &ref->moves[ref->move_count - 1];
	char asked[32], created[32], from[13];

	time_format(time_ms, asked);
	time_format(made->time_ms, created);
	short_hex(&made->after.id, from);
	return fail(message, -ERR_NO_REVISION,
	            "there was no branch '%s' at %s: it was made at %s, from commit %s", ref->name,
	            asked, created, from);
}

static int at_time(struct history *history, const struct ref *ref, int64_t time_ms,
                   struct pointer *ret_at, struct message *ret_note, struct message *message)
{
	for (size_t i = 0; i < ref->move_count; i++) {
		const struct ref_move *move = &ref->moves[i];

		if (move->time_ms > time_ms)
			continue;
		if (pointer_is_none(&move->after)) {
			char asked[32];

			time_format(time_ms, asked);
			return fail(message, -ERR_NO_REVISION,
			            "there was no branch '%s' at %s: it "
			            "was deleted before",
			            ref->name, asked);
		}
		*ret_at = move->after;
		return 0;
	}
	if (pointer_is_none(&ref->moves[ref->move_count - 1].before))
		return before_creation(ref, time_ms, message);
	return at_time_in_history(history, ref, time_ms, ret_at, ret_note, message);
}

/* A deleted branch still knows where it stood. */
static int read_moves(struct object_store *store, const char *name, struct ref *ret_ref,
                      struct message *message)
{
	int rc = ref_read(store, REF_BRANCH, name, ret_ref, message);

	return rc == -ERR_NOT_FOUND ? ref_read_deleted(store, REF_BRANCH, name, ret_ref, message)
	                            : rc;
}

static int resolve_at_time(struct history *history, const char *name, const char *time,
                           struct commit **ret_commit, struct message *ret_note,
                           struct message *message)
{
	CLEANUP(ref_release) struct ref ref = {0};
	struct message why = {0};
	struct pointer at = pointer_none;
	int64_t time_ms;
	int rc = ref_name_check(name, message);

	if (rc < 0)
		return rc;
	if (time_parse(time, &time_ms) < 0)
		return fail(message, -ERR_BAD_NAME,
		            "'%.100s' is not a time: write 2026-11-21, 2026-11-21T10:00 or "
		            "2026-11-21T10:00:30, with Z or +hh:mm behind it for a zone (else UTC)",
		            time);
	rc = read_moves(odb_store(history_odb(history)), name, &ref, &why);
	if (rc == -ERR_NOT_FOUND) {
		char hint[REF_NAME_MAX + 32];

		did_you_mean(odb_store(history_odb(history)), name, hint, sizeof(hint));
		return fail(message, -ERR_NO_REVISION, "no branch '%s'%s", name, hint);
	}
	if (rc < 0)
		return fail(message, rc, "%s", why.text);
	rc = at_time(history, &ref, time_ms, &at, ret_note, &why);
	if (rc == 0)
		rc = commit_read(history_odb(history), &at, ret_commit, &why);
	if (rc == -ERR_NOT_FOUND)
		return fail(message, -ERR_NO_REVISION,
		            "where branch '%s' stood then is no longer stored (%s)", name,
		            why.text);
	return rc < 0 ? fail(message, rc, "%s", why.text) : 0;
}

static int resolve_base(struct history *history, char *base, read_ref_fn *read_ref,
                        struct commit **ret_commit, struct message *ret_note,
                        struct message *message)
{
	char *at = strchr(base, '@');

	if (!at)
		return resolve_name(history, base, read_ref, ret_commit, message);
	if (at == base)
		return not_a_revision(base, message);
	*at = '\0';
	return resolve_at_time(history, base, at + 1, ret_commit, ret_note, message);
}

/* -- ~N and ^N -- */

/* The number at *at, 1 when there is none. */
static int take_count(const char **at, uint64_t *ret_count)
{
	uint64_t count = 0;

	if (!isdigit((unsigned char)**at)) {
		*ret_count = 1;
		return 0;
	}
	for (; isdigit((unsigned char)**at); (*at)++) {
		count = count * 10 + (uint64_t)(**at - '0');
		if (count > UINT32_MAX)
			return -ERR_TOO_LARGE;
	}
	*ret_count = count;
	return 0;
}

static int step_back(struct history *history, struct pointer *at, uint64_t count,
                     struct message *message)
{
	const struct line line = {.from = *at, .steps = count};

	if (count >= LINE_STEPS_LONG && history_line_known(history, &line, at))
		return 0;
	for (uint64_t i = 0; i < count; i++) {
		CLEANUP(free_pointer) struct graph_node *node = NULL;
		int rc = node_read(history, at, &node, message);

		if (rc < 0)
			return rc;
		if (node->parent_count == 0)
			return fail(message, -ERR_NO_REVISION,
			            "~%llu leads beyond the first commit, which is %llu back",
			            (unsigned long long)count, (unsigned long long)i);
		*at = node->parents[0];
	}
	if (count >= LINE_STEPS_LONG)
		history_line_note(history, &line, at);
	return 0;
}

static int step_to_parent(struct history *history, struct pointer *at, uint64_t number,
                          struct message *message)
{
	CLEANUP(free_pointer) struct graph_node *node = NULL;
	char hex[13];

	if (number == 0)
		return 0;
	int rc = node_read(history, at, &node, message);
	if (rc < 0)
		return rc;
	short_hex(&at->id, hex);
	if (number > node->parent_count)
		return fail(message, -ERR_NO_REVISION, "^%llu: commit %s has %zu parent%s",
		            (unsigned long long)number, hex, node->parent_count,
		            node->parent_count == 1 ? "" : "s");
	*at = node->parents[number - 1];
	return 0;
}

static int take_steps(struct history *history, const char *expression, const char *steps,
                      struct pointer *at, struct message *message)
{
	struct message why = {0};

	while (*steps != '\0') {
		char kind = *steps++;
		uint64_t count;

		if ((kind != '~' && kind != '^') || take_count(&steps, &count) < 0)
			return not_a_revision(expression, message);
		int rc = kind == '~' ? step_back(history, at, count, &why)
		                     : step_to_parent(history, at, count, &why);
		if (rc < 0)
			return fail(message, rc, "'%s': %s", expression, why.text);
	}
	return 0;
}

static int resolve(struct history *history, const char *expression, read_ref_fn *read_ref,
                   struct commit **ret_commit, struct message *ret_note, struct message *message)
{
	char base[EXPRESSION_MAX];
	size_t base_length = strcspn(expression, "~^");
	CLEANUP(free_pointer) struct commit *commit = NULL;

	if (base_length == 0 || strlen(expression) >= sizeof(base))
		return not_a_revision(expression, message);
	memcpy(base, expression, base_length);
	base[base_length] = '\0';
	int rc = resolve_base(history, base, read_ref, &commit, ret_note, message);
	if (rc < 0)
		return rc;
	struct pointer at = commit->self;
	rc = take_steps(history, expression, expression + base_length, &at, message);
	if (rc < 0)
		return rc;
	if (!id_equal(&at.id, &commit->self.id)) {
		free(commit);
		commit = NULL;
		rc = commit_read(history_odb(history), &at, &commit, message);
		if (rc < 0)
			return rc;
	}
	*ret_commit = steal(&commit);
	return 0;
}

int revision_resolve(struct history *history, const char *expression, struct commit **ret_commit,
                     struct message *message)
{
	return resolve(history, expression, ref_read, ret_commit, NULL, message);
}

int revision_resolve_with(struct history *history, const char *expression,
                          const struct revision_options *options, struct commit **ret_commit,
                          struct message *message)
{
	return resolve(history, expression, options->known ? ref_read_known : ref_read, ret_commit,
	               options->note, message);
}
