/*
 * Every allocation, system call and store call of a lake's work failing in turn.
 *
 * A scenario is a lake and steps on it: opening it, file operations, commands, closing it. It is
 * run once to count its calls and to note what the lake holds after each step; then again for each
 * call, in a process of its own on a copy of the lake, with that call failing. What must hold then:
 *   - a step that fails says why, a step that succeeds has done and told all of it;
 *   - the lake holds what it held before the step that failed or after it, never anything between,
 *     at once and after opening it again; fsck finds nothing; the step then succeeds;
 *   - no memory and no descriptor is left, nothing hangs or crashes.
 *
 * By default the scenarios in `quick`, and of each a bounded number of places (a call with all
 * its callers), from a seed. FAULTS_SCENARIO=name: that one; FAULTS=places: each place once, in
 * every scenario; FAULTS=full: every call; FAULTS=scenario/class/N[/lasting]: that one alone, here.
 * FAULTS_CLASSES=abc: only the first three classes; FAULTS_ERROR=122: with that errno.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "fs/commands/command_internal.h"
#include "fs/mount/vfs.h"
#include "fs/worktree_internal.h"
#include "tests/lib/fault_injection.h"

#include <cmocka.h>

#define STEPS_MAX 40
#define STATE_BYTES 24576
#define SIGNATURE_BYTES 4096
#define RUN_SECONDS_MAX 40
/* What fails for good: memory, disks and stores that are away. (Cleaning up must be possible.) */
#define LASTING \
	(1u << FAULT_ALLOCATE | 1u << FAULT_WRITE | 1u << FAULT_SYNC | 1u << FAULT_OPEN | \
	 1u << FAULT_SIZE | 1u << FAULT_STORE)

struct world {
	char directory[96];
	struct lake *lake;
	struct vfs *vfs;
	struct message message;
	char signature[SIGNATURE_BYTES]; /* the keys of the last reply */
};

typedef int step_fn(struct world *world, const void *argument);
struct step {
	step_fn *run;
	const void *argument;
	const void *second;
};
struct scenario {
	const char *name;
	void (*prepare)(struct world *world);
	struct step steps[STEPS_MAX];
};

/* Shared with the children. */
struct reference {
	struct fault_record record;
	unsigned states;
	char state[STEPS_MAX + 1][STATE_BYTES];
	char signature[STEPS_MAX][SIGNATURE_BYTES];
	int result[STEPS_MAX];
};
static struct reference *reference;
static char root[64];
static char lake_path[96], base_path[96], other_path[96];
static const struct vfs_caller caller = {.uid = 0, .gid = 0, .pid = 4711};

static void describe_fault(void)
{
	char text[2048];
	if (fault_state.hits == 0)
		return;
	fault_off++;
	fault_describe(text, sizeof(text));
	fprintf(stderr, "  the fault:%s\n", text);
}

/* The dynamic linker's own, which has gone through our malloc. */
const char *__lsan_default_suppressions(void) __attribute__((used));
const char *__lsan_default_suppressions(void)
{
	return "leak:_dl_\nleak:ld-linux\n";
}
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static _Noreturn void __attribute__((format(printf, 1, 2))) broken(const char *format, ...)
{
	va_list arguments;
	fault_off++;
	va_start(arguments, format);
	fputs("  BROKEN: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	describe_fault();
	_exit(99);
}

static void must(int result, const char *what, const struct message *message)
{
	if (result < 0)
		broken("%s: %s (%s)", what, error_text(result), message ? message->text : "");
}

#include "tests/unit/faults_steps.h"

/* -- what a lake holds, as text -- */

struct text {
	char *at;
	size_t used;
};

static void __attribute__((format(printf, 2, 3))) say(struct text *text, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(text->at + text->used, STATE_BYTES - text->used, format, arguments);
	va_end(arguments);
	text->used += (size_t)length;
	if (text->used >= STATE_BYTES)
		broken("a lake too large to be told");
}

struct names {
	char names[64][64];
	unsigned count;
};

static bool note_name(void *context, const char *name, const struct vfs_entry *entry, uint64_t next)
{
	struct names *names = context;
	if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
		snprintf(names->names[names->count++], 64, "%s", name);
	return true;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(a, b);
}

static void list_names(struct world *world, uint64_t node, struct names *names)
{
	struct vfs_directory *directory;
	bool lasting;
	const struct vfs_list list = {.room = 65536, .entry = note_name, .context = names};
	names->count = 0;
	must(vfs_opendir(world->vfs, node, &directory, &lasting, &world->message), "opendir",
	     &world->message);
	must(vfs_readdir(world->vfs, directory, &list, &world->message), "readdir",
	     &world->message);
	vfs_releasedir(world->vfs, directory);
	qsort(names->names, names->count, sizeof(names->names[0]), compare_names);
}

static void tell_file(struct world *world, uint64_t node, struct text *text)
{
	struct vfs_opened opened;
	struct sha256 *hash;
	struct id id;
	char bytes[65536], hex[ID_HEX + 1];
	must(vfs_open(world->vfs, node, O_RDONLY, &caller, &opened, &world->message), "open",
	     &world->message);
	must(sha256_new(&hash), "sha256", NULL);
	ssize_t got = 1;
	for (uint64_t at = 0; got > 0; at += (uint64_t)got) {
		got = vfs_read(world->vfs, opened.file, bytes, sizeof(bytes), at, &world->message);
		must((int)got, "read", &world->message);
		sha256_update(hash, bytes, (size_t)got);
	}
	sha256_final(hash, &id);
	sha256_free(hash);
	vfs_release(world->vfs, opened.file);
	id_to_hex(&id, hex);
	say(text, " %.12s", hex);
}

static void tell_node(struct world *world, uint64_t parent, const char *name, const char *path,
                      struct text *text)
{
	struct vfs_entry entry;
	struct names names;
	char below[256];
	CLEANUP(buffer_release) struct buffer xattrs = {0};
	must(vfs_lookup(world->vfs, parent, name, &entry, &world->message), path, &world->message);
	mode_t mode = entry.stat.st_mode;
	say(text, "%s %o", path, mode);
	if (S_ISREG(mode)) {
		say(text, " %ld", (long)entry.stat.st_size);
		tell_file(world, entry.node, text);
	}
	must(vfs_xattr_list(world->vfs, entry.node, &xattrs, &world->message), "xattrs",
	     &world->message);
	for (size_t i = 0; i < xattrs.length; i += strlen((char *)xattrs.data + i) + 1)
		say(text, " %s", (char *)xattrs.data + i);
	say(text, "\n");
	if (S_ISDIR(mode)) {
		list_names(world, entry.node, &names);
		for (unsigned i = 0; i < names.count; i++) {
			snprintf(below, sizeof(below), "%s/%s", path, names.names[i]);
			tell_node(world, entry.node, names.names[i], below, text);
		}
	}
	leave(world, entry.node);
}

/* The values of `key` in the reply's array. */
static void tell_command(struct world *world, const char *request, const char *array,
                         const char *const *keys, struct text *text)
{
	cJSON *reply = NULL;
	const cJSON *item;
	int result = command_in(world, request, &reply);
	if (result < 0)
		broken("%s: %s", request, cJSON_Print(reply));
	cJSON_ArrayForEach (item, cJSON_GetObjectItemCaseSensitive(reply, array)) {
		for (size_t i = 0; keys[i]; i++) {
			const cJSON *value = cJSON_GetObjectItemCaseSensitive(item, keys[i]);
			CLEANUP(free_pointer)
			char *printed = value ? cJSON_PrintUnformatted(value) : NULL;
			say(text, " %s=%s", keys[i], printed ? printed : "-");
		}
		say(text, ";");
	}
	say(text, "\n");
	cJSON_Delete(reply);
}

static void tell(struct world *world, char ret_text[STATE_BYTES])
{
	struct text text = {.at = ret_text};
	struct names branches;
	char request[256];
	fault_off++;
	ret_text[0] = '\0';
	list_names(world, VFS_ROOT, &branches);
	for (unsigned i = 0; i < branches.count; i++) {
		const char *name = branches.names[i];
		tell_node(world, VFS_ROOT, name, name, &text);
		snprintf(request, sizeof(request), "{'command':'log','revision':'%s'}", name);
		tell_command(world, request, "commits", (const char *const[]){"message", NULL},
		             &text);
		snprintf(request, sizeof(request),
		         "{'command':'audit','action':'list','branch':'%s'}", name);
		tell_command(world, request, "audits", (const char *const[]){"name", NULL}, &text);
		snprintf(request, sizeof(request),
		         "{'command':'webhook','action':'list','branch':'%s'}", name);
		tell_command(world, request, "webhooks", (const char *const[]){"name", NULL},
		             &text);
	}
	tell_command(world, "{'command':'branch','action':'list'}", "branches",
	             (const char *const[]){"name", "protected", NULL}, &text);
	tell_command(world, "{'command':'tag','action':'list'}", "tags",
	             (const char *const[]){"name", NULL}, &text);
	fault_off--;
}

/* -- directories -- */

static void __attribute__((format(printf, 1, 2))) shell(const char *format, ...)
{
	char command[512];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	if (system(command) != 0)
		broken("failed: %s", command);
}

static void copy_tree(int from_at, int to_at, const char *name)
{
	int from = openat(from_at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (mkdirat(to_at, name, 0755) < 0 && errno != EEXIST)
		broken("mkdir %s: %m", name);
	int to = openat(to_at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fdopendir(from);
	if (!directory || to < 0)
		broken("cannot copy %s: %m", name);
	for (struct dirent *entry; (entry = readdir(directory));) {
		struct stat stat;
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (fstatat(from, entry->d_name, &stat, AT_SYMLINK_NOFOLLOW) < 0)
			broken("stat %s: %m", entry->d_name);
		if (S_ISDIR(stat.st_mode)) {
			copy_tree(from, to, entry->d_name);
			continue;
		}
		if (!S_ISREG(stat.st_mode))
			continue;
		int in = openat(from, entry->d_name, O_RDONLY | O_CLOEXEC);
		int out = openat(to, entry->d_name, O_WRONLY | O_CREAT | O_CLOEXEC,
		                 stat.st_mode & 07777);
		off_t left = stat.st_size;
		while (left > 0) {
			ssize_t n = sendfile(out, in, NULL, (size_t)left);
			if (n <= 0)
				broken("copy %s: %m", entry->d_name);
			left -= n;
		}
		const struct timespec times[2] = {stat.st_atim, stat.st_mtim};
		futimens(out, times);
		close(in);
		close(out);
	}
	closedir(directory);
	close(to);
}

static void remove_tree(int at, const char *name)
{
	if (unlinkat(at, name, 0) == 0 || errno == ENOENT)
		return;
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);
	for (struct dirent *entry; directory && (entry = readdir(directory));)
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			remove_tree(fd, entry->d_name);
	if (directory)
		closedir(directory);
	unlinkat(at, name, AT_REMOVEDIR);
}

static void fresh_lake(void)
{
	char base[96];
	snprintf(base, sizeof(base), "%s/base", root);
	remove_tree(AT_FDCWD, lake_path);
	remove_tree(AT_FDCWD, other_path);
	if (access(base, F_OK) < 0)
		return; /* a scenario that makes it */
	int from = open(base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int to = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	copy_tree(from, to, "lake");
	close(from);
	close(to);
}

static unsigned descriptors(void)
{
	unsigned count = 0;
	DIR *directory = opendir("/proc/self/fd");
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

#include "tests/unit/faults_scenarios.h"

/* -- one run -- */

static int run_step(struct world *world, const struct step *step)
{
	world->message.text[0] = '\0';
	world->signature[0] = '\0';
	return step->run(world, step->argument);
}

static bool lake_is_there(void)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/lake.json", lake_path);
	return access(path, F_OK) == 0;
}

/* What it holds; opened for that when it is closed. */
static void state_of(struct world *world, char ret_state[STATE_BYTES])
{
	struct world opened = *world;
	ret_state[0] = '\0';
	if (world->lake) {
		tell(world, ret_state);
	} else if (lake_is_there()) {
		must(step_open(&opened, NULL), "opening it again", &opened.message);
		tell(&opened, ret_state);
		step_close(&opened, NULL);
	}
}

static void count_run(const struct scenario *scenario)
{
	struct world world = {0};
	strcpy(world.directory, lake_path);
	fresh_lake();
	reference->states = 0;
	memset(&reference->record, 0, sizeof(reference->record));
	fault_count_into(&reference->record);
	fault_off++;
	state_of(&world, reference->state[0]);
	for (unsigned i = 0; scenario->steps[i].run; i++) {
		fault_off--;
		int result = run_step(&world, &scenario->steps[i]);
		fault_off++;
		if (result < 0 && !scenario->steps[i].second)
			broken("%s: step %u without faults: %s (%s)", scenario->name, i,
			       error_text(result), world.message.text);
		reference->result[i] = result < 0 ? result : 0;
		strcpy(reference->signature[i], world.signature);
		bool made =
		        scenario->steps[i].run == step_init || scenario->steps[i].run == step_clone;
		fault_state.counting = false;
		if (world.lake || made)
			state_of(&world, reference->state[i + 1]);
		fault_state.counting = true;
		reference->states = i + 1;
	}
	fault_disarm();
	/* The last state is the one before closing. */
	for (unsigned i = 0; i < reference->states; i++)
		if (!reference->state[i + 1][0])
			strcpy(reference->state[i + 1], reference->state[i]);
	if (world.lake)
		step_close(&world, NULL);
	fault_off--;
}

static void show_difference(const char *wanted, const char *got)
{
	const char *start = wanted;
	while (*wanted && *wanted == *got)
		wanted++, got++;
	while (wanted > start && wanted[-1] != '\n')
		wanted--, got--;
	fprintf(stderr, "  wanted: %.200s\n  got: %.200s\n", wanted, got);
}

/* The step that the state is after: `step` or, when it failed, perhaps the next. */
static unsigned find_state(const char *state, unsigned step, bool failed, const char *when)
{
	if (strcmp(state, reference->state[step]) == 0)
		return step;
	if (failed && strcmp(state, reference->state[step + 1]) == 0)
		return step + 1;
	show_difference(reference->state[step], state);
	if (failed)
		show_difference(reference->state[step + 1], state);
	broken("step %u %s; %s the lake holds neither what it did before nor after", step,
	       failed ? "failed" : "was the last", when);
}

static void check_fsck(struct world *world)
{
	cJSON *reply = NULL;
	if (command_in(world, "{'command':'fsck'}", &reply) < 0)
		broken("fsck: %s", cJSON_Print(reply));
	cJSON_Delete(reply);
}

static unsigned run_faulty(const struct scenario *scenario, struct world *world,
                           const struct fault_plan *plan, bool *ret_failed, bool *ret_hit)
{
	unsigned step = 0;
	int result = 0;
	fault_arm(plan);
	for (; scenario->steps[step].run; step++) {
		result = run_step(world, &scenario->steps[step]);
		if (result < 0 && reference->result[step] == 0)
			break;
		if (fault_state.hits > 0 && result != reference->result[step]) {
			if (result >= 0)
				broken("step %u did what it must not", step);
			break; /* it fails in any case */
		}
		fault_off++;
		if (result >= 0 && strcmp(world->signature, reference->signature[step]) != 0)
			broken("step %u: keys of the reply:\n  %s\n  not %s", step,
			       world->signature, reference->signature[step]);
		fault_off--;
	}
	*ret_failed = scenario->steps[step].run != NULL;
	*ret_hit = fault_disarm();
	/* Without any memory not even the reply is there. */
	bool silent = plan->lasting && plan->class == FAULT_ALLOCATE;
	if (*ret_failed && !world->message.text[0] && !silent &&
	    (scenario->steps[step].run == step_command || scenario->steps[step].run == step_open ||
	     scenario->steps[step].run == step_clone || scenario->steps[step].run == step_init))
		broken("step %u failed (%s) without a message", step, error_text(result));
	if (getenv("FAULTS"))
		fprintf(stderr, "step %u: %s: %s\n", step, result < 0 ? error_text(result) : "ok",
		        world->message.text);
	return step;
}

static bool is_branch(struct world *world, const char *request)
{
	cJSON *reply = NULL;
	int result = command_in(world, request, &reply);
	cJSON_Delete(reply);
	return result >= 0;
}

/* A renaming that could neither be ended nor taken back says so, unless there is no memory to say
 * anything: what it made can then be deleted, without force, and everything is as before. Or it was
 * done, and there was no memory to say that. */
static void take_back_renaming(struct world *world, const struct step *step,
                               const struct fault_plan *plan)
{
	cJSON *reply = NULL;
	bool silent = plan->lasting && plan->class == FAULT_ALLOCATE;
	bool told = strstr(world->message.text, "has been made already and is left") != NULL;
	if (!world->lake || step->run != step_command || !strstr(step->argument, "'rename'") ||
	    !(told || silent))
		return;
	int result = command_in(world, "{'command':'branch','action':'delete','name':'renamed'}",
	                        &reply);
	bool done = silent && !told && !is_branch(world, "{'command':'show','revision':'main'}") &&
	            is_branch(world, "{'command':'show','revision':'renamed'}");
	if (result < 0 && !done && (told || result != -ERR_NOT_FOUND))
		broken("deleting what was left: %s", cJSON_Print(reply));
	cJSON_Delete(reply);
}

/* One that was done, but not recorded here: deleting the old name takes nothing from the new one.
 */
static void delete_old_name(struct world *world)
{
	cJSON *reply = NULL;
	if (!world->lake || !strstr(world->message.text, "could not be recorded here"))
		return;
	int result = command_in(
	        world, "{'command':'branch','action':'delete','name':'main','force':true}", &reply);
	if (result < 0 && result != -ERR_NOT_FOUND)
		broken("deleting the old name: %s", cJSON_Print(reply));
	cJSON_Delete(reply);
}

/* In a process of its own. */
static int fault_run(const struct scenario *scenario, const struct fault_plan *plan)
{
	static char state[STATE_BYTES];
	struct world world = {0};
	bool failed, hit;
	unsigned before = descriptors();
	strcpy(world.directory, lake_path);
	unsigned step = run_faulty(scenario, &world, plan, &failed, &hit);
	if (failed) {
		take_back_renaming(&world, &scenario->steps[step], plan);
		delete_old_name(&world);
	}
	if (world.lake) {
		state_of(&world, state);
		find_state(state, step, failed, "at once");
		step_close(&world, NULL);
	}
	if (descriptors() != before)
		broken("%u descriptors, %u before", descriptors(), before);
	state_of(&world, state);
	unsigned found = find_state(state, step, failed, "opened again");
	/* It works again. */
	if (lake_is_there() && scenario->prepare && scenario->steps[0].run != step_clone) {
		must(step_open(&world, NULL), "opening", &world.message);
		check_fsck(&world);
	}
	const struct step *next = &scenario->steps[step];
	bool opens = next->run == step_open || next->run == step_close;
	if (failed && found == step && !opens) {
		int result = run_step(&world, next);
		if (result < 0 && reference->result[step] == 0)
			broken("step %u again, without faults: %s (%s)", step, error_text(result),
			       world.message.text);
		state_of(&world, state);
		find_state(state, step + 1, false, "the step done again,");
	}
	if (world.lake)
		step_close(&world, NULL);
	return hit ? 0 : 77;
}

/* cmocka's handlers would have a child that crashes go on as the test, and take down the lake. */
static const int crash_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS};
static struct sigaction crash_actions[ARRAY_SIZE(crash_signals)];

static void note_crash_actions(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(crash_signals); i++)
		sigaction(crash_signals[i], NULL, &crash_actions[i]);
}

static void crash_as_process(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(crash_signals); i++)
		sigaction(crash_signals[i], &crash_actions[i], NULL);
}

static struct {
	unsigned runs, hits, broken;
} total;

static void tell_hang(int signal)
{
	broken("hangs (signal %d)", signal);
}

/* True when it holds. */
static bool one(const struct scenario *scenario, const struct fault_plan *wanted)
{
	struct fault_plan with_error = *wanted, *plan = &with_error;
	if (getenv("FAULTS_ERROR"))
		with_error.error = atoi(getenv("FAULTS_ERROR"));
	char log[96];
	snprintf(log, sizeof(log), "%s/log", root);
	fresh_lake();
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!getenv("FAULTS_LOG"))
			dup2(open(log, O_WRONLY | O_CREAT | O_TRUNC, 0644), 2);
		crash_as_process();
		signal(SIGALRM, tell_hang);
		alarm(RUN_SECONDS_MAX);
		if (__sanitizer_set_death_callback)
			__sanitizer_set_death_callback(describe_fault);
		exit(fault_run(scenario, plan));
	}
	int status;
	waitpid(child, &status, 0);
	if (++total.runs % 100 == 0 && getenv("FAULTS"))
		fprintf(stderr, "# %s, %s: run %u\n", scenario->name,
		        fault_classes[plan->class].text, total.runs);
	bool fine = WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77);
	total.hits += WIFEXITED(status) && WEXITSTATUS(status) == 0;
	if (fine)
		return true;
	total.broken++;
	fprintf(stderr, "FAULTS=%s/%d/%u%s (%s) status %x\n", scenario->name, plan->class,
	        plan->nth, plan->lasting ? "/lasting" : "", fault_classes[plan->class].text,
	        status);
	shell("grep -v '^$' '%s' | head -60 >&2", log);
	return false;
}

/* -- which calls -- */

struct work {
	unsigned runs_max; /* of a scenario; 0: every call */
	uint64_t seed;
	unsigned places, calls;
};

static uint64_t next_random(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* The first call of each place, as numbers of calls. */
static unsigned first_calls(enum fault_class class, unsigned **ret_calls)
{
	unsigned count = reference->record.calls[class], places = 0;
	count = count < FAULT_CALLS_MAX ? count : FAULT_CALLS_MAX;
	uint64_t *seen = calloc(count + 1, sizeof(*seen));
	*ret_calls = calloc(count + 1, sizeof(**ret_calls));
	for (unsigned i = 0; i < count; i++) {
		uint64_t site = reference->record.sites[class][i];
		unsigned j = 0;
		while (j < places && seen[j] != site)
			j++;
		if (j == places) {
			(*ret_calls)[places] = i;
			seen[places++] = site;
		}
	}
	free(seen);
	return places;
}

static void fault_class_of(const struct scenario *scenario, enum fault_class class, bool lasting,
                           unsigned share, struct work *work)
{
	unsigned *calls, places = first_calls(class, &calls);
	unsigned count = reference->record.calls[class];
	if (!lasting) {
		work->places += places;
		work->calls += count;
	}
	struct fault_plan plan = {.class = class, .lasting = lasting};
	if (work->runs_max == 0) {
		for (plan.nth = 0; plan.nth < count; plan.nth++)
			one(scenario, &plan);
	} else if (work->runs_max == 1) {
		for (unsigned i = 0; i < places; i++) {
			plan.nth = calls[i];
			one(scenario, &plan);
		}
	} else {
		for (unsigned i = 0; i < share && places > 0; i++) {
			plan.nth = calls[next_random(&work->seed) % places];
			one(scenario, &plan);
		}
	}
	free(calls);
}

static void prepare(const struct scenario *scenario)
{
	struct world world = {0};
	char base[96];
	snprintf(base, sizeof(base), "%s/base", root);
	remove_tree(AT_FDCWD, base);
	remove_tree(AT_FDCWD, lake_path);
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		crash_as_process();
		strcpy(world.directory, lake_path);
		if (scenario->prepare) {
			scenario->prepare(&world);
			step_close(&world, NULL);
			if (mkdir(base, 0755) < 0 || rename(lake_path, base_path) < 0)
				broken("%s: %m", base);
		}
		count_run(scenario);
		exit(0);
	}
	int status;
	waitpid(child, &status, 0);
	if (status != 0)
		fail_msg("%s: preparing failed (%x)", scenario->name, status);
}

/* FAULTS=scenario/class/N[/lasting] */
static bool chosen(const char *wanted, const struct scenario *scenario, struct fault_plan *ret_plan)
{
	size_t length = strlen(scenario->name);
	if (strncmp(wanted, scenario->name, length) != 0 || wanted[length] != '/')
		return false;
	char *rest;
	ret_plan->class = (enum fault_class)strtoul(wanted + length + 1, &rest, 10);
	ret_plan->nth = (unsigned)strtoul(rest + 1, &rest, 10);
	ret_plan->lasting = *rest == '/';
	return true;
}

static void test_scenario(void **state)
{
	const struct scenario *scenario = *state;
	const char *wanted = getenv("FAULTS"), *classes = getenv("FAULTS_CLASSES");
	struct fault_plan plan = {0};
	if (wanted && strchr(wanted, '/') && !chosen(wanted, scenario, &plan))
		skip();
	prepare(scenario);
	unsigned runs = total.runs, hits = total.hits, bad = total.broken;
	struct work work = {.runs_max = 26, .seed = random_u64() | 1};
	if (wanted && strchr(wanted, '/')) {
		setenv("FAULTS_LOG", "1", 1);
		assert_true(one(scenario, &plan));
		return;
	}
	if (wanted)
		work.runs_max = strcmp(wanted, "full") == 0 ? 0 : 1;
	if (getenv("FAULTS_SEED"))
		work.seed = strtoull(getenv("FAULTS_SEED"), NULL, 10);
	uint64_t seed = work.seed;
	for (unsigned class = 0; class < FAULT_COUNT; class ++) {
		unsigned share = class == FAULT_ALLOCATE ? 10 : 1;
		if (classes && !strchr(classes, (int)('a' + class)))
			continue;
		fault_class_of(scenario, class, false, share, &work);
		if (1u << class & LASTING)
			fault_class_of(scenario, class, true,
			               class == FAULT_ALLOCATE || class == FAULT_WRITE, &work);
	}
	fprintf(stderr,
	        "# %s: %u calls at %u places; %u failing calls tried (%u came to pass), %u broken; "
	        "FAULTS_SEED=%llu\n",
	        scenario->name, work.calls, work.places, total.runs - runs, total.hits - hits,
	        total.broken - bad, (unsigned long long)seed);
	assert_int_equal(total.broken - bad, 0);
}

static bool any_name(void *context, const char *name, const struct vfs_entry *entry, uint64_t next)
{
	return true;
}

/* 0 when both handles were opened and used. */
static int use_handles(struct world *world, uint64_t file, uint64_t above)
{
	struct vfs_opened opened;
	struct vfs_directory *directory;
	bool lasting;
	int result = vfs_open(world->vfs, file, O_RDONLY, &caller, &opened, &world->message);
	if (result < 0)
		return result;
	result = vfs_opendir(world->vfs, above, &directory, &lasting, &world->message);
	if (result == 0) {
		const struct vfs_list list = {.room = 65536, .entry = any_name};
		result = vfs_readdir(world->vfs, directory, &list, &world->message);
		vfs_releasedir(world->vfs, directory);
	}
	vfs_release(world->vfs, opened.file);
	return result;
}

/* Small enough for every allocation: the tables of handles are among them. */
static void handles_without_memory(void **state)
{
	struct world world = {0};
	struct fault_plan plan = {.class = FAULT_ALLOCATE};
	uint64_t file, above;
	unsigned refused = 0;
	strcpy(world.directory, lake_path);
	remove_tree(AT_FDCWD, lake_path);
	prepare_lake(&world);
	assert_int_equal(walk(&world, "main/d/small", &file), 0);
	assert_int_equal(walk(&world, "main/d", &above), 0);
	for (bool hit = true; hit; plan.nth++) {
		fault_arm(&plan);
		int result = use_handles(&world, file, above);
		hit = fault_disarm();
		assert_true(result == 0 || (hit && result == -ERR_NO_MEMORY));
		refused += result < 0;
		assert_int_equal(use_handles(&world, file, above), 0);
	}
	assert_true(refused > 5);
	leave(&world, file);
	leave(&world, above);
	step_close(&world, NULL);
	remove_tree(AT_FDCWD, lake_path);
}

static int swap_without_memory(struct world *world, bool intend)
{
	const struct fault_plan plan = {.class = FAULT_ALLOCATE, .lasting = true};
	CLEANUP(worktree_cleanup) struct worktree *worktree = NULL;
	CLEANUP(commit_pointer_free) struct commit *base = NULL;
	struct worktree_view view;
	assert_int_equal(worktree_get(world->lake->worktrees, "main", &worktree, NULL), 0);
	assert_int_equal(worktree_base(worktree, &base), 0);
	assert_int_equal(worktree_close_gate(worktree), 0);
	if (intend)
		assert_int_equal(worktree_intend(worktree, &base->self, &base->self, 0, 0, NULL),
		                 0);
	fault_arm(&plan);
	int result = worktree_swap(worktree, base, 0, 0, NULL);
	fault_disarm();
	worktree_view(worktree, &view);
	assert_true(result < 0 || view.overlay == 0);
	worktree_open_gate(worktree);
	return result;
}

/* Once a branch's ref has moved, its working tree follows: there is no way back. */
static void a_moved_branch_needs_no_memory(void **state)
{
	struct world world = {0};
	uint64_t node;
	strcpy(world.directory, lake_path);
	remove_tree(AT_FDCWD, lake_path);
	prepare_lake(&world);
	assert_int_equal(swap_without_memory(&world, false), 0); /* nothing is uncommitted */
	make_file(&world, "main/new", "new\n");
	assert_int_equal(swap_without_memory(&world, false), -ERR_NO_MEMORY);
	assert_int_equal(walk(&world, "main/new", &node), 0);
	leave(&world, node);
	assert_int_equal(swap_without_memory(&world, true), 0);
	assert_int_equal(walk(&world, "main/new", &node), -ERR_NOT_FOUND);
	step_close(&world, NULL);
	do_step(&world, step_open, NULL);
	assert_int_equal(walk(&world, "main/new", &node), -ERR_NOT_FOUND);
	step_close(&world, NULL);
	remove_tree(AT_FDCWD, lake_path);
}

static int set_up(void **state)
{
	fault_prepare();
	reference = mmap(NULL, sizeof(*reference), PROT_READ | PROT_WRITE,
	                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy(root, access("/dev/shm", W_OK) == 0 ? "/dev/shm/test_faults.XXXXXX"
	                                           : "/tmp/test_faults.XXXXXX");
	if (reference == MAP_FAILED || !mkdtemp(root))
		return -1;
	snprintf(lake_path, sizeof(lake_path), "%s/lake", root);
	snprintf(base_path, sizeof(base_path), "%s/base/lake", root);
	snprintf(other_path, sizeof(other_path), "%s/other", root);
	return 0;
}

static int tear_down(void **state)
{
	remove_tree(AT_FDCWD, root);
	return munmap(reference, sizeof(*reference));
}

static bool is_quick(const char *name)
{
	static const char *const quick[] = {"init", "open", "clone", "files"};
	for (size_t i = 0; i < ARRAY_SIZE(quick); i++)
		if (strcmp(quick[i], name) == 0)
			return true;
	return false;
}

int main(void)
{
	struct CMUnitTest tests[ARRAY_SIZE(scenarios) + 2];
	const char *wanted = getenv("FAULTS_SCENARIO");
	size_t count = 0;
	note_crash_actions();
	for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++)
		if (wanted ? strcmp(wanted, scenarios[i].name) == 0
		           : is_quick(scenarios[i].name) || getenv("FAULTS"))
			tests[count++] = (struct CMUnitTest){
			        .name = scenarios[i].name,
			        .test_func = test_scenario,
			        .initial_state = (void *)(uintptr_t)&scenarios[i]};
	if (!wanted && !getenv("FAULTS")) {
		tests[count++] = (struct CMUnitTest)cmocka_unit_test(handles_without_memory);
		tests[count++] =
		        (struct CMUnitTest)cmocka_unit_test(a_moved_branch_needs_no_memory);
	}
	return _cmocka_run_group_tests("faults", tests, count, set_up, tear_down);
}
