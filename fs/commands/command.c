/*
 * command — hides the table of commands, how arguments are read from a request, and how replies
 * and their long lists are written.
 */
#include "fs/commands/command_internal.h"
#include "fs/json.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define LIST_PIECE 512

static const struct {
	const char *name;
	command_fn *run;
} commands[] = {
        {"annotate", command_annotate},
        {"audit", command_audit},
        {"branch", command_branch},
        {"cat", command_cat},
        {"cherry-pick", command_cherry_pick},
        {"commit", command_commit_run},
        {"diff", command_diff},
        {"doctor", command_doctor},
        {"du", command_du},
        {"fsck", command_fsck},
        {"gc", command_gc},
        {"log", command_log},
        {"ls", command_ls},
        {"merge", command_merge},
        {"protect", command_protect},
        {"publish", command_publish},
        {"reflog", command_reflog},
        {"refresh", command_refresh},
        {"reset", command_reset},
        {"restore", command_restore},
        {"revert", command_revert},
        {"show", command_show},
        {"stats", command_stats},
        {"status", command_status},
        {"tag", command_tag},
        {"undo", command_undo},
        {"unprotect", command_unprotect},
        {"warm", command_warm},
        {"webhook", command_webhook},
};

void caller_self(struct caller *ret_caller)
{
	struct passwd entry, *found = NULL;
	char text[16384], host[128] = "localhost";
	memset(ret_caller, 0, sizeof *ret_caller);
	ret_caller->uid = geteuid();
	ret_caller->gid = getegid();
	ret_caller->pid = getpid();
	gethostname(host, sizeof host - 1);
	if (getpwuid_r(ret_caller->uid, &entry, text, sizeof text, &found) == 0 && found)
		snprintf(ret_caller->name, sizeof ret_caller->name, "%.100s@%s", found->pw_name,
		         host);
	else
		snprintf(ret_caller->name, sizeof ret_caller->name, "%u@%s", ret_caller->uid, host);
}

/* A group's entry holds all its members, so it may be large. */
static bool group_id(const char *name, gid_t *ret_gid)
{
	struct group group, *found = NULL;
	int result = ERANGE;
	for (size_t size = 16384; result == ERANGE && size <= (4u << 20); size *= 4) {
		CLEANUP(free_pointer) char *text = malloc(size);
		result = text ? getgrnam_r(name, &group, text, size, &found) : ENOMEM;
	}
	if (!found)
		return false;
	*ret_gid = group.gr_gid;
	return true;
}

bool group_known(const char *group)
{
	gid_t id;
	return group_id(group, &id);
}

bool caller_in_group(const struct caller *caller, const char *group)
{
	struct passwd user, *found = NULL;
	char text[16384];
	gid_t wanted;
	if (!group || !group_id(group, &wanted))
		return false;
	if (wanted == caller->gid)
		return true;
	if (getpwuid_r(caller->uid, &user, text, sizeof text, &found) != 0 || !found)
		return false;
	gid_t groups[4096];
	int count = ARRAY_SIZE(groups);
	if (getgrouplist(user.pw_name, user.pw_gid, groups, &count) < 0)
		return false;
	for (int i = 0; i < count; i++)
		if (groups[i] == wanted)
			return true;
	return false;
}

/* -- arguments -- */

int argument_string(const struct command *command, const char *name, const char **ret_value)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(command->request, name);
	*ret_value = NULL;
	if (!item || cJSON_IsNull(item))
		return 0;
	if (!cJSON_IsString(item))
		return fail(command->message, -ERR_INVALID, "argument '%s' is not a string", name);
	*ret_value = item->valuestring;
	return 0;
}

int argument_required(const struct command *command, const char *name, const char **ret_value)
{
	int error = argument_string(command, name, ret_value);
	if (!error && (!*ret_value || !**ret_value))
		error = fail(command->message, -ERR_INVALID, "%s is missing", name);
	return error;
}

bool argument_flag(const struct command *command, const char *name)
{
	return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(command->request, name));
}

double argument_number(const struct command *command, const char *name, double fallback)
{
	const cJSON *item = cJSON_GetObjectItemCaseSensitive(command->request, name);
	return cJSON_IsNumber(item) ? item->valuedouble : fallback;
}

int argument_paths(const struct command *command, const char *name, struct paths *ret_paths)
{
	const cJSON *array = cJSON_GetObjectItemCaseSensitive(command->request, name), *item;
	char path[PATH_BYTES_MAX];
	*ret_paths = (struct paths){0};
	if (!array || !cJSON_GetArraySize(array))
		return 0;
	if (!cJSON_IsArray(array))
		return fail(command->message, -ERR_INVALID, "argument '%s' is not a list", name);
	ret_paths->items = calloc((size_t)cJSON_GetArraySize(array), sizeof *ret_paths->items);
	if (!ret_paths->items)
		return -ERR_NO_MEMORY;
	cJSON_ArrayForEach (item, array) {
		int error =
		        cJSON_IsString(item)
		                ? path_normalise(item->valuestring, path, command->message)
		                : fail(command->message, -ERR_INVALID, "a path is not a string");
		char *copy = error ? NULL : strdup(path);
		if (!copy) {
			paths_release(ret_paths);
			return error ? error : -ERR_NO_MEMORY;
		}
		ret_paths->items[ret_paths->count++] = copy;
	}
	return 0;
}

void paths_release(struct paths *paths)
{
	for (size_t i = 0; i < paths->count; i++)
		free((char *)paths->items[i]);
	free(paths->items);
	*paths = (struct paths){0};
}

/* -- replies -- */

static void cJSON_cleanup(cJSON **object)
{
	cJSON_Delete(*object);
}

void reply_id(cJSON *object, const char *name, const struct id *id)
{
	char hex[ID_HEX + 1];
	id_to_hex(id, hex);
	cJSON_AddStringToObject(object, name, hex);
}

void reply_path(cJSON *object, const char *name, const char *path, size_t length)
{
	CLEANUP(buffer_release) struct buffer text = {0};
	bool valid = true;
	for (size_t i = 0; i < length;) {
		size_t step = utf8_length((const unsigned char *)path + i, length - i);
		if (step) {
			buffer_append(&text, path + i, step);
		} else {
			buffer_append(&text, "\xef\xbf\xbd", 3);
			valid = false;
			step = 1;
		}
		i += step;
	}
	buffer_u8(&text, 0);
	if (buffer_check(&text) < 0) {
		json_failed();
		return;
	}
	cJSON_AddStringToObject(object, name, (const char *)text.data);
	if (valid)
		return;
	CLEANUP(free_pointer) char *hex = malloc(2 * length + 1);
	char key[64];
	if (!hex) {
		json_failed();
		return;
	}
	hex_encode(path, length, hex);
	snprintf(key, sizeof key, "%s_hex", name);
	cJSON_AddStringToObject(object, key, hex);
}

cJSON *reply_path_item(const char *path, size_t length)
{
	CLEANUP(cJSON_cleanup) cJSON *object = cJSON_CreateObject();
	reply_path(object, "path", path, length);
	return cJSON_DetachItemFromObjectCaseSensitive(object, "path");
}

cJSON *reply_commit(const struct commit *commit)
{
	cJSON *object = cJSON_CreateObject();
	char time[32], hex[ID_HEX + 1];
	reply_id(object, "id", &commit->self.id);
	cJSON *parents = cJSON_AddArrayToObject(object, "parents");
	for (size_t i = 0; i < commit->parent_count; i++) {
		id_to_hex(&commit->parents[i].id, hex);
		json_append(parents, cJSON_CreateString(hex));
	}
	reply_id(object, "tree", &commit->tree.id);
	cJSON_AddStringToObject(object, "author", commit->author);
	time_format(commit->time_ms, time);
	cJSON_AddStringToObject(object, "time", time);
	reply_path(object, "message", commit->message, strlen(commit->message));
	cJSON *meta = cJSON_AddObjectToObject(object, "meta");
	for (size_t i = 0; i < commit->meta_count; i++)
		cJSON_AddStringToObject(meta, commit->meta[i].key, commit->meta[i].value);
	return object;
}

static const char *kind_name(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
		return "file";
	case S_IFDIR:
		return "directory";
	case S_IFLNK:
		return "symlink";
	case S_IFIFO:
		return "fifo";
	case S_IFSOCK:
		return "socket";
	default:
		return "device";
	}
}

static void reply_mode(cJSON *object, const char *name, uint32_t mode)
{
	char text[16];
	snprintf(text, sizeof text, "%06o", mode);
	cJSON_AddStringToObject(object, name, text);
}

cJSON *reply_entry(const char *path, const struct tree_entry *entry)
{
	cJSON *object = cJSON_CreateObject();
	char time[32];
	reply_path(object, "path", path, strlen(path));
	cJSON_AddStringToObject(object, "kind", kind_name(entry->attributes.mode));
	reply_mode(object, "mode", entry->attributes.mode);
	cJSON_AddNumberToObject(object, "uid", entry->attributes.uid);
	cJSON_AddNumberToObject(object, "gid", entry->attributes.gid);
	cJSON_AddNumberToObject(object, "size",
	                        (double)(S_ISLNK(entry->attributes.mode) ? entry->target_length
	                                                                 : entry->content.size));
	time_format(entry->attributes.mtime_ns / 1000000, time);
	cJSON_AddStringToObject(object, "mtime", time);
	if (!pointer_is_none(&entry->content.pointer))
		reply_id(object, "content", &entry->content.pointer.id);
	if (entry->target)
		reply_path(object, "target", entry->target, entry->target_length);
	return object;
}

static void reply_side(cJSON *object, const char *which, const struct tree_entry *entry)
{
	char name[32];
	if (!entry)
		return;
	snprintf(name, sizeof name, "size_%s", which);
	cJSON_AddNumberToObject(object, name, (double)entry->content.size);
	snprintf(name, sizeof name, "mode_%s", which);
	reply_mode(object, name, entry->attributes.mode);
}

cJSON *reply_change(const struct change *change)
{
	cJSON *object = cJSON_CreateObject();
	const struct tree_entry *entry = change->after ? change->after : change->before;
	reply_path(object, "path", change->path, change->path_length);
	cJSON_AddStringToObject(object, "change", change_name(change->kind));
	cJSON_AddStringToObject(object, "kind", kind_name(entry->attributes.mode));
	reply_side(object, "before", change->before);
	reply_side(object, "after", change->after);
	return object;
}

/* -- long lists -- */

void list_begin(struct list *list, struct command *command, const char *name)
{
	*list = (struct list){.command = command, .name = name};
	list->pending = cJSON_AddArrayToObject(command->reply, name);
}

int list_add(struct list *list, cJSON *item)
{
	const struct command_output *output = list->command->output;
	json_append(list->pending, item);
	list->total++;
	if (++list->count < LIST_PIECE || !output->items)
		return 0;
	cJSON *piece = cJSON_DetachItemFromObjectCaseSensitive(list->command->reply, list->name);
	list->pending = cJSON_AddArrayToObject(list->command->reply, list->name);
	list->count = 0;
	return output->items(output->context, list->name, piece) ? -ERR_INTERRUPTED : 0;
}

void list_end(struct list *list)
{
	list->pending = NULL;
}

/* -- shared steps -- */

void commit_pointer_free(struct commit **commit)
{
	free(*commit);
}

void worktree_cleanup(struct worktree **worktree)
{
	if (*worktree)
		worktree_unref(*worktree);
}

int command_resolve(struct command *command, const char *expression, bool known,
                    struct commit **ret_commit)
{
	struct message note = {{0}};
	const struct revision_options options = {.known = known, .note = &note};
	int error = revision_resolve_with(command->lake->history, expression, &options, ret_commit,
	                                  command->message);
	if (!error && note.text[0])
		reply_warning(command, "%s", note.text);
	return error;
}

int command_commit(struct command *command, const char *argument, struct commit **ret_commit)
{
	const char *expression;
	int error = argument_required(command, argument, &expression);
	return error ? error : command_resolve(command, expression, false, ret_commit);
}

int command_worktree(struct command *command, const char *argument, struct worktree **ret_worktree)
{
	const char *branch;
	int error = argument_required(command, argument, &branch);
	if (!error)
		error = ref_name_check(branch, command->message);
	if (!error)
		error = worktree_get(command->lake->worktrees, branch, ret_worktree,
		                     command->message);
	if (error == -ERR_NOT_FOUND)
		fail(command->message, error, "no branch '%s'; `lakectl branch` lists them",
		     branch);
	return error;
}

int reply_standing(struct command *command, struct worktree *worktree)
{
	CLEANUP(standing_release) struct standing standing = {0};
	int error = worktree_standing(worktree, &standing);
	if (error < 0)
		return error;
	if (standing.gone)
		cJSON_AddStringToObject(command->reply, "gone",
		                        standing.why[0] ? standing.why : "unknown");
	if (!standing.behind)
		return 0;
	if (standing.behind_commits)
		cJSON_AddNumberToObject(command->reply, "behind", (double)standing.behind_commits);
	else
		cJSON_AddBoolToObject(command->reply, "behind", true);
	reply_id(command->reply, "head", &standing.head.id);
	cJSON *collisions = cJSON_AddArrayToObject(command->reply, "collisions");
	const char *path = standing.collisions;
	for (size_t i = 0; i < standing.collision_count; i++) {
		size_t length = strlen(path);
		json_append(collisions, reply_path_item(path, length));
		path += length + 1;
	}
	return 0;
}

static bool is_member(void *context, const char *group)
{
	return caller_in_group(context, group);
}

struct ref_rights command_rights(const struct command *command)
{
	return (struct ref_rights){.member = is_member,
	                           .context = (void *)(uintptr_t)command->caller};
}

void reply_warning(struct command *command, const char *format, ...)
{
	cJSON *array = cJSON_GetObjectItemCaseSensitive(command->reply, "warnings");
	char text[1024];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	if (!array)
		array = cJSON_AddArrayToObject(command->reply, "warnings");
	json_append(array, reply_path_item(text, strlen(text)));
}

struct merge_side side_of(const struct commit *commit)
{
	return (struct merge_side){.tree = commit->tree, .root = commit->root};
}

/* -- running -- */

cJSON *command_error(int error, const struct message *message)
{
	cJSON *reply = cJSON_CreateObject();
	cJSON *object = cJSON_AddObjectToObject(reply, "error");
	cJSON_AddStringToObject(object, "code", error_code(error));
	cJSON_AddStringToObject(object, "message",
	                        message && message->text[0] ? message->text : error_text(error));
	cJSON_AddNumberToObject(object, "exit", error_exit(error));
	return reply;
}

static command_fn *find_command(const cJSON *request)
{
	const cJSON *name = cJSON_GetObjectItemCaseSensitive(request, "command");
	for (size_t i = 0; cJSON_IsString(name) && i < ARRAY_SIZE(commands); i++)
		if (strcmp(name->valuestring, commands[i].name) == 0)
			return commands[i].run;
	return NULL;
}

int command_run(struct lake *lake, const struct caller *caller, const cJSON *request,
                const struct command_output *output, cJSON **ret_reply)
{
	static const struct command_output none;
	struct message message = {{0}};
	unsigned failures = json_failures();
	struct command command = {
	        .lake = lake,
	        .caller = caller,
	        .request = request,
	        .output = output ? output : &none,
	        .reply = cJSON_CreateObject(),
	        .message = &message,
	};
	command_fn *run = find_command(request);
	int error = run ? run(&command) : fail(&message, -ERR_INVALID, "no such command");
	if (json_failures() != failures) {
		/* Something is missing in the reply: the error is all it can say. */
		if (error >= 0)
			error = fail(&message, -ERR_NO_MEMORY,
			             "out of memory for the reply; look whether it was done before "
			             "you repeat it");
		cJSON_Delete(command.reply);
		*ret_reply = command_error(error, &message);
		return error;
	}
	if (error < 0) {
		cJSON *failure = command_error(error, &message);
		json_put(command.reply, "error",
		         cJSON_DetachItemFromObjectCaseSensitive(failure, "error"));
		cJSON_Delete(failure);
	}
	*ret_reply = command.reply;
	return error;
}
