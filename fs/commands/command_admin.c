/*
 * command_admin — fsck, doctor, stats, and the reports under /lake/.lake/.
 */
#include "fs/commands/command_internal.h"
#include "fs/reach.h"
#include "fs/publish/rules.h"
#include "fs/json.h"
#include "fs/publish/verdict.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <uthash.h>

/* -- fsck -- */

struct known_pack {
	uint8_t id[PACK_ID_BYTES];
	uint64_t bytes;
	UT_hash_handle hh;
};
/* What lies in packs, whether something leads there or not. */
struct known_commit {
	struct pointer pointer;
	bool reached, has_child;
	UT_hash_handle hh;
};
struct check {
	struct command *command;
	struct list problems;
	struct known_pack *packs;
	struct known_commit *commits;
	uint64_t pack_count, pack_bytes, checked_bytes, records;
	struct id rules; /* those of the branch before */
};

static int problem(struct check *check, const char *what, const char *where, const char *detail)
{
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "what", what);
	reply_path(object, "where", where, strlen(where));
	reply_path(object, "detail", detail, strlen(detail));
	return list_add(&check->problems, object);
}

static int note_pack(void *context, const uint8_t pack[PACK_ID_BYTES], uint64_t bytes,
                     int64_t modified_ms)
{
	struct check *check = context;
	struct known_pack *known = calloc(1, sizeof *known);
	if (!known)
		return -ERR_NO_MEMORY;
	memcpy(known->id, pack, PACK_ID_BYTES);
	known->bytes = bytes;
	HASH_ADD(hh, check->packs, id, PACK_ID_BYTES, known);
	if (!known->hh.tbl) {
		free(known);
		return -ERR_NO_MEMORY;
	}
	check->pack_count++;
	check->pack_bytes += bytes;
	return 0;
}

static int note_commit(void *context, const struct pack_entry *entry)
{
	struct check *check = context;
	struct known_commit *known;
	if (entry->kind != RECORD_COMMIT)
		return 0;
	HASH_FIND(hh, check->commits, &entry->id, sizeof entry->id, known);
	if (known) /* a copy */
		return 0;
	known = calloc(1, sizeof *known);
	if (!known)
		return -ERR_NO_MEMORY;
	known->pointer = (struct pointer){entry->id, entry->place};
	HASH_ADD(hh, check->commits, pointer.id, sizeof known->pointer.id, known);
	if (!known->hh.tbl) {
		free(known);
		return -ERR_NO_MEMORY;
	}
	return 0;
}

static int check_pack(struct check *check, const struct known_pack *pack)
{
	struct message message = {{0}};
	char hex[2 * PACK_ID_BYTES + 1], where[64];
	uint64_t records = 0;
	hex_encode(pack->id, PACK_ID_BYTES, hex);
	snprintf(where, sizeof where, "packs/%s", hex);
	int error = odb_pack_verify(check->command->lake->odb, pack->id, note_commit, check,
	                            &records, &message);
	check->records += records;
	check->checked_bytes += pack->bytes;
	if (progress_report(&check->command->output->progress, "Checking packs",
	                    check->checked_bytes, check->pack_bytes, "bytes"))
		return -ERR_INTERRUPTED;
	if (error == -ERR_STORE_AWAY || error == -ERR_NO_MEMORY)
		return fail(check->command->message, error, "%s", message.text);
	return error < 0 ? problem(check, "pack", where, message.text) : 0;
}

static int check_record(void *context, enum record_kind kind, const struct pointer *pointer)
{
	struct check *check = context;
	struct known_pack *pack;
	struct known_commit *commit = NULL;
	if (kind == RECORD_COMMIT)
		HASH_FIND(hh, check->commits, &pointer->id, sizeof pointer->id, commit);
	if (commit)
		commit->reached = true;
	HASH_FIND(hh, check->packs, pointer->place.pack, PACK_ID_BYTES, pack);
	if (pack && pointer->place.offset + pointer->place.stored <= pack->bytes)
		return 0;
	char hex[ID_HEX + 1], pack_hex[2 * PACK_ID_BYTES + 1], detail[128];
	id_to_hex(&pointer->id, hex);
	hex_encode(pointer->place.pack, PACK_ID_BYTES, pack_hex);
	snprintf(detail, sizeof detail, "pack %s is %s", pack_hex,
	         pack ? "shorter than this record needs" : "missing");
	return problem(check, kind == RECORD_CHUNK ? "chunk" : "record", hex, detail);
}

static int note_damage(void *context, const char *where, int error, const struct message *message)
{
	return problem(context, "metadata", where,
	               message->text[0] ? message->text : error_text(error));
}

static int note_bad_blob(void *context, const struct id *id, const char *path)
{
	return problem(context, "cached blob", path, "its bytes do not match its name");
}

/* What a branch demands of those who publish to it is read by every one of them. */
static int check_rules(void *context, const struct ref *ref)
{
	struct check *check = context;
	struct message message = {{0}};
	if (id_equal(&ref->protection.rules, &check->rules))
		return 0;
	check->rules = ref->protection.rules;
	int error = rules_verify(check->command->lake->store, &check->rules, &message);
	if (error == -ERR_STORE_AWAY || error == -ERR_NO_MEMORY)
		return fail(check->command->message, error, "%s", message.text);
	return error < 0 ? problem(check, "rules", ref->name,
	                           message.text[0] ? message.text : error_text(error))
	                 : 0;
}

static int note_bad_record(void *context, const char *key, const char *why)
{
	return problem(context, strncmp(key, "log/", 4) == 0 ? "log entry" : "verdict", key, why);
}

/* Deleting a branch leaves a trace in its ref's place for a month. */
static int check_kept(void *context, const char *branch)
{
	struct check *check = context;
	struct object_store *store = check->command->lake->store;
	CLEANUP(ref_release) struct ref ref = {0};
	int error = ref_read(store, REF_BRANCH, branch, &ref, NULL);
	if (error == -ERR_NOT_FOUND)
		error = ref_read_deleted(store, REF_BRANCH, branch, &ref, NULL);
	if (error != -ERR_NOT_FOUND)
		return 0; /* what is wrong with it is told where refs are walked */
	return problem(check, "branch", branch,
	               "it has uncommitted changes here and is not in the store any more, not "
	               "even as deleted");
}

static int check_everything(struct check *check, struct reach_counts *counts)
{
	struct command *command = check->command;
	struct known_pack *pack, *next;
	struct reach_visitor visitor = {.context = check,
	                                .record = check_record,
	                                .damaged = note_damage,
	                                .progress = &command->output->progress};
	bool quick = argument_flag(command, "quick");
	int error = odb_pack_list(command->lake->odb, note_pack, check, command->message);
	HASH_ITER (hh, check->packs, pack, next) {
		if (!error && !quick)
			error = check_pack(check, pack);
	}
	if (!error)
		error = reach_walk(command->lake, &visitor, counts, command->message);
	if (!error)
		error = worktrees_kept(command->lake->worktrees, check_kept, check);
	if (!error)
		error = ref_list(command->lake->store, REF_BRANCH, true, check_rules, check,
		                 command->message);
	if (!error && !quick)
		error = records_verify(command->lake->store, note_bad_record, check,
		                       command->message);
	if (!error && !quick)
		error = cache_verify(command->lake->cache, note_bad_blob, check,
		                     &command->output->progress, command->message);
	return error;
}

/* Those that are no other's parents: a ref that is lost, or an older one that was put back, left
 * them. So do publishing that an audit forbade and commits that a crash ended, so they are no
 * problem by themselves. */
static int list_unreached(struct check *check)
{
	struct odb *odb = check->command->lake->odb;
	struct known_commit *known, *next, *parent;
	struct list unreached;
	int error = 0;
	HASH_ITER (hh, check->commits, known, next) {
		CLEANUP(commit_pointer_free) struct commit *commit = NULL;
		if (known->reached || commit_read(odb, &known->pointer, &commit, NULL) < 0)
			continue; /* one that cannot be read is in a pack that was named */
		for (size_t i = 0; i < commit->parent_count; i++) {
			HASH_FIND(hh, check->commits, &commit->parents[i].id, sizeof(struct id),
			          parent);
			if (parent)
				parent->has_child = true;
		}
	}
	list_begin(&unreached, check->command, "unreached");
	HASH_ITER (hh, check->commits, known, next) {
		CLEANUP(commit_pointer_free) struct commit *commit = NULL;
		if (!error && !known->reached && !known->has_child &&
		    commit_read(odb, &known->pointer, &commit, NULL) == 0)
			error = list_add(&unreached, reply_commit(commit));
	}
	list_end(&unreached);
	return error;
}

static void check_release(struct check *check)
{
	struct known_pack *pack, *next;
	struct known_commit *commit, *following;
	HASH_ITER (hh, check->packs, pack, next) {
		HASH_DEL(check->packs, pack);
		free(pack);
	}
	HASH_ITER (hh, check->commits, commit, following) {
		HASH_DEL(check->commits, commit);
		free(commit);
	}
}

int command_fsck(struct command *command)
{
	struct check check = {.command = command};
	struct reach_counts counts = {0};
	list_begin(&check.problems, command, "problems");
	int error = check_everything(&check, &counts);
	list_end(&check.problems);
	if (!error)
		error = list_unreached(&check);
	check_release(&check);
	cJSON_AddNumberToObject(command->reply, "commits", (double)counts.commits);
	cJSON_AddNumberToObject(command->reply, "directories", (double)counts.directories);
	cJSON_AddNumberToObject(command->reply, "files", (double)counts.files);
	cJSON_AddNumberToObject(command->reply, "packs", (double)check.pack_count);
	cJSON_AddNumberToObject(command->reply, "records", (double)check.records);
	cJSON_AddNumberToObject(command->reply, "bytes", (double)check.pack_bytes);
	if (!error && check.problems.total)
		error = fail(command->message, -ERR_CORRUPT, "%zu problem%s found",
		             check.problems.total, check.problems.total > 1 ? "s" : "");
	return error;
}

/* -- doctor: is this host fit to serve the lake? -- */

static void finding(cJSON *checks, const char *name, bool good, const char *detail)
{
	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "check", name);
	cJSON_AddBoolToObject(object, "ok", good);
	cJSON_AddStringToObject(object, "detail", detail);
	json_append(checks, object);
}

static bool examine_store(struct command *command, cJSON *checks)
{
	struct message message = {{0}};
	CLEANUP(buffer_release) struct buffer bytes = {0};
	char detail[256];
	int64_t start = clock_monotonic_ms();
	int error = object_get(command->lake->store, "lake", 0, UINT64_MAX, &bytes, NULL, &message);
	snprintf(detail, sizeof detail, "%.180s answers in %lld ms",
	         command->lake->config.store_url, (long long)(clock_monotonic_ms() - start));
	finding(checks, "store", !error, error ? message.text : detail);
	return !error;
}

static bool examine_disk(struct command *command, cJSON *checks)
{
	struct statvfs disk;
	char detail[160];
	if (statvfs(command->lake->directory, &disk) < 0)
		return false;
	double total = (double)disk.f_blocks * (double)disk.f_frsize;
	double left = (double)disk.f_bavail * (double)disk.f_frsize;
	bool good = left > total / 20 || left > 10e9;
	snprintf(detail, sizeof detail, "%.1f GB of %.1f GB free%s", left / 1e9, total / 1e9,
	         good ? "" : ": make room, writes will soon fail with ENOSPC");
	finding(checks, "disk", good, detail);
	return good;
}

static bool examine_fuse(cJSON *checks)
{
	struct utsname kernel;
	int major = 0, minor = 0;
	char detail[256];
	uname(&kernel);
	sscanf(kernel.release, "%d.%d", &major, &minor);
	bool passthrough = geteuid() == 0 && (major > 6 || (major == 6 && minor >= 9));
	snprintf(detail, sizeof detail, "Linux %s: %s", kernel.release,
	         passthrough
	                 ? "kernel passthrough"
	                 : "no kernel passthrough (needs root and Linux 6.9); reads are copied");
	finding(checks, "kernel", true, detail);
	bool device = access("/dev/fuse", R_OK | W_OK) == 0;
	finding(checks, "fuse", device,
	        device ? "/dev/fuse can be opened"
	               : "/dev/fuse cannot be opened: load fuse, or ask root");
	if (geteuid() == 0)
		return device;
	bool helper =
	        access("/usr/bin/fusermount3", X_OK) == 0 || access("/bin/fusermount3", X_OK) == 0;
	finding(checks, "fusermount3", helper,
	        helper ? "installed" : "missing: install package fuse3");
	return device && helper;
}

int command_doctor(struct command *command)
{
	cJSON *checks = cJSON_AddArrayToObject(command->reply, "checks");
	bool good = examine_store(command, checks);
	good = examine_disk(command, checks) && good;
	good = examine_fuse(checks) && good;
	cJSON_AddBoolToObject(command->reply, "ok", good);
	return good ? 0 : fail(command->message, -ERR_BUSY, "not everything is well");
}

/* -- stats -- */

struct figures {
	struct object_stats store;
	uint64_t store_requests;
	struct odb_stats odb;
	struct cache_stats cache;
	struct state_stats state;
	struct kv_stats index;
	struct webhook_statistics webhooks;
	uint64_t space_free, space_total;
};

static void read_figures(struct lake *lake, struct figures *ret_figures)
{
	memset(ret_figures, 0, sizeof *ret_figures);
	object_stats(lake->store, &ret_figures->store);
	ret_figures->store_requests = object_stats_requests(&ret_figures->store);
	odb_stats(lake->odb, &ret_figures->odb);
	cache_stats(lake->cache, &ret_figures->cache);
	state_stats(lake->state, &ret_figures->state);
	kv_stats(lake->index, &ret_figures->index);
	webhooks_statistics(lake->webhooks, &ret_figures->webhooks);
	object_space(lake->store, &ret_figures->space_free, &ret_figures->space_total);
}

/* One table for the JSON of `stats` and the Prometheus text of .lake/metrics. */
#define FIGURES(X) \
	X(store_requests, "store_requests_total", "counter") \
	X(store.requests[OBJECT_GET], "store_get_requests_total", "counter") \
	X(store.requests[OBJECT_GET_IF_CHANGED], "store_get_if_changed_requests_total", "counter") \
	X(store.requests[OBJECT_PUT], "store_put_requests_total", "counter") \
	X(store.requests[OBJECT_PUT_IF], "store_conditional_put_requests_total", "counter") \
	X(store.requests[OBJECT_LIST], "store_list_requests_total", "counter") \
	X(store.requests[OBJECT_REMOVE], "store_delete_requests_total", "counter") \
	X(store.requests[OBJECT_MULTIPART], "store_multipart_requests_total", "counter") \
	X(store.unchanged, "store_unchanged_total", "counter") \
	X(store.received_bytes, "store_received_bytes_total", "counter") \
	X(store.sent_bytes, "store_sent_bytes_total", "counter") \
	X(store.retries, "store_retries_total", "counter") \
	X(store.timeouts, "store_timeouts_total", "counter") \
	X(odb.reads, "store_reads_total", "counter") \
	X(odb.read_bytes, "store_read_bytes_total", "counter") \
	X(odb.cache_hits, "record_cache_hits_total", "counter") \
	X(odb.cache_misses, "record_cache_misses_total", "counter") \
	X(odb.cache_bytes, "record_cache_bytes", "gauge") \
	X(odb.window_hits, "window_hits_total", "counter") \
	X(odb.window_requests, "window_requests_total", "counter") \
	X(odb.window_fetched_bytes, "window_fetched_bytes_total", "counter") \
	X(odb.window_used_bytes, "window_used_bytes_total", "counter") \
	X(odb.window_bytes, "window_bytes", "gauge") \
	X(cache.blobs, "cached_blobs", "gauge") \
	X(cache.bytes, "cached_bytes", "gauge") \
	X(cache.hits, "cache_hits_total", "counter") \
	X(cache.misses, "cache_misses_total", "counter") \
	X(cache.fetched_bytes, "cache_fetched_bytes_total", "counter") \
	X(cache.ahead_bytes, "cache_ahead_bytes_total", "counter") \
	X(cache.ahead_used_bytes, "cache_ahead_used_bytes_total", "counter") \
	X(cache.reads, "cache_partial_reads_total", "counter") \
	X(cache.reads_present, "cache_partial_reads_present_total", "counter") \
	X(cache.reads_joined, "cache_partial_reads_joined_total", "counter") \
	X(cache.evicted, "cache_evicted_total", "counter") \
	X(cache.damaged, "cache_damaged_total", "counter") \
	X(state.journal_bytes, "journal_bytes", "gauge") \
	X(state.folds, "journal_folds_total", "counter") \
	X(state.used_bytes, "state_used_bytes", "gauge") \
	X(index.used_bytes, "index_used_bytes", "gauge") \
	X(webhooks.delivered, "webhooks_delivered_total", "counter") \
	X(webhooks.retried, "webhooks_retried_total", "counter") \
	X(webhooks.failed, "webhooks_failed_total", "counter") \
	X(webhooks.waiting, "webhooks_waiting", "gauge") \
	X(space_free, "store_free_bytes", "gauge") \
	X(space_total, "store_total_bytes", "gauge")

int command_stats(struct command *command)
{
	struct figures figures;
	read_figures(command->lake, &figures);
	cJSON_AddStringToObject(command->reply, "lake", command->lake->config.lake_id);
	cJSON_AddStringToObject(command->reply, "store", command->lake->config.store_url);
#define X(field, name, kind) cJSON_AddNumberToObject(command->reply, name, (double)figures.field);
	FIGURES(X)
#undef X
	return 0;
}

static void report_metrics(struct lake *lake, struct buffer *ret_text)
{
	struct figures figures;
	char line[256];
	int length;
	read_figures(lake, &figures);
#define X(field, name, kind) \
	length = \
	        snprintf(line, sizeof line, "# TYPE lake_" name " " kind "\nlake_" name " %llu\n", \
	                 (unsigned long long)figures.field); \
	buffer_append(ret_text, line, (size_t)length);
	FIGURES(X)
#undef X
}

static int add_status_branch(void *context, const struct ref *ref)
{
	cJSON *branch = cJSON_CreateObject();
	cJSON_AddStringToObject(branch, "name", ref->name);
	reply_id(branch, "commit", &ref->commit.id);
	json_append(context, branch);
	return 0;
}

static int report_status(struct lake *lake, struct buffer *ret_text)
{
	cJSON *status = cJSON_CreateObject();
	cJSON_AddStringToObject(status, "lake", lake->config.lake_id);
	cJSON_AddStringToObject(status, "directory", lake->directory);
	cJSON_AddStringToObject(status, "store", lake->config.store_url);
	cJSON_AddNumberToObject(status, "pid", getpid());
	int error = ref_list(lake->store, REF_BRANCH, true, add_status_branch,
	                     cJSON_AddArrayToObject(status, "branches"), NULL);
	cJSON_AddBoolToObject(status, "store_reachable", error != -ERR_STORE_AWAY);
	CLEANUP(free_pointer) char *text = cJSON_Print(status);
	cJSON_Delete(status);
	if (!text)
		return -ERR_NO_MEMORY;
	buffer_append(ret_text, text, strlen(text));
	buffer_u8(ret_text, '\n');
	return 0;
}

int lake_report(struct lake *lake, const char *which, struct buffer *ret_text)
{
	int error = 0;
	if (strcmp(which, "metrics") == 0)
		report_metrics(lake, ret_text);
	else if (strcmp(which, "status") == 0)
		error = report_status(lake, ret_text);
	else
		error = -ERR_NOT_FOUND;
	return error ? error : buffer_check(ret_text);
}
