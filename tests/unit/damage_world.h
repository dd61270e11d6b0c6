/*
 * damage_world — a small lake with every kind of file, what it shows, and what counts as damage
 * that was noticed: nothing else is ever shown than before, except an error; what leads to an error
 * is named by fsck; nothing crashes or hangs.
 */
#ifndef TESTS_DAMAGE_WORLD_H
#define TESTS_DAMAGE_WORLD_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/commands/command.h"
#include "fs/mount/vfs.h"

#include <cmocka.h>

#define HANG_S 20
#define FILES_MAX 256
#define DIRECTORIES_MAX 1024
#define ITEMS_MAX 512

static const struct vfs_caller caller = {.pid = 1};
static char root[64], live[80];

/* -- files -- */

struct file {
	char path[200]; /* below the lake's directory */
	mode_t mode;
	struct timespec modified;
	struct buffer bytes;
};
static struct file files[FILES_MAX];
static size_t file_count;

/* As restored. A try changes few of some hundred directories and files: only what no longer looks
 * like this is put back. */
static struct made_directory {
	char path[300];
	struct stat status;
} directories[DIRECTORIES_MAX];
static size_t directory_count;
static struct stat written[FILES_MAX];

static void must(int r, const char *what, const struct message *message)
{
	if (r >= 0)
		return;
	fprintf(stderr, "%s: %s (%s)\n", what, error_text(r), message ? message->text : "");
	abort();
}

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	return remove(path);
}

static void remove_tree(const char *path)
{
	nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int note_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	if (kind == FTW_F && !S_ISSOCK(status->st_mode)) {
		assert_true(file_count < FILES_MAX);
		struct file *file = &files[file_count++];
		snprintf(file->path, sizeof file->path, "%s", path + strlen(live) + 1);
		file->mode = status->st_mode & 07777;
		file->modified = status->st_mtim;
		must(read_file(AT_FDCWD, path, 1 << 26, &file->bytes), path, NULL);
	}
	return 0;
}

static void note_files(void)
{
	for (size_t i = 0; i < file_count; i++)
		buffer_release(&files[i].bytes);
	memset(files, 0, sizeof files);
	file_count = 0;
	nftw(live, note_one, 16, FTW_PHYS);
}

static void write_file(const struct file *file)
{
	char path[300];
	snprintf(path, sizeof path, "%s/%s", live, file->path);
	for (char *slash = path + strlen(live); (slash = strchr(slash + 1, '/'));) {
		*slash = '\0';
		mkdir(path, 0700);
		*slash = '/';
	}
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, file->mode);
	if (fd < 0 || write_full(fd, file->bytes.data, file->bytes.length, 0) < 0)
		abort();
	futimens(fd, (struct timespec[2]){{.tv_nsec = UTIME_OMIT}, file->modified});
	close(fd);
}

static bool same_status(const char *path, const struct stat *before)
{
	struct stat now;
	return lstat(path, &now) == 0 && now.st_ino == before->st_ino &&
	       now.st_size == before->st_size && now.st_mtim.tv_sec == before->st_mtim.tv_sec &&
	       now.st_mtim.tv_nsec == before->st_mtim.tv_nsec &&
	       now.st_ctim.tv_sec == before->st_ctim.tv_sec &&
	       now.st_ctim.tv_nsec == before->st_ctim.tv_nsec;
}

static void restore_file(size_t i)
{
	char path[300];
	snprintf(path, sizeof path, "%s/%s", live, files[i].path);
	/* What is written through a mapping may leave the times as they are. */
	if (!strstr(path, "/lock.mdb") && same_status(path, &written[i]))
		return;
	struct stat now;
	if (lstat(path, &now) == 0 && !S_ISREG(now.st_mode))
		remove_tree(path);
	write_file(&files[i]);
	if (lstat(path, &written[i]) < 0)
		abort();
}

static bool is_noted(const char *path)
{
	size_t length = strlen(path);
	for (size_t i = 0; i < file_count; i++)
		if (strncmp(files[i].path, path, length) == 0 &&
		    (files[i].path[length] == '\0' || files[i].path[length] == '/'))
			return true;
	for (size_t i = 0; i < directory_count; i++)
		if (strcmp(directories[i].path + strlen(live) + 1, path) == 0)
			return true;
	return false;
}

/* What was not there, in a directory that looks changed. */
static void drop_new(struct made_directory *directory)
{
	DIR *stream = opendir(directory->path);
	const struct dirent *entry;
	while (stream && (entry = readdir(stream))) {
		char path[600];
		snprintf(path, sizeof path, "%.290s/%.255s", directory->path, entry->d_name);
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") &&
		    !is_noted(path + strlen(live) + 1))
			remove_tree(path);
	}
	if (stream)
		closedir(stream);
}

static int note_directory(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	if (kind == FTW_D) {
		assert_true(directory_count < DIRECTORIES_MAX);
		struct made_directory *directory = &directories[directory_count++];
		snprintf(directory->path, sizeof directory->path, "%s", path);
		directory->status = (struct stat){0};
	}
	return 0;
}

/* Opening a lake makes hundreds of them, which may stay. */
static void note_directories(void)
{
	directory_count = 0;
	nftw(live, note_directory, 16, FTW_PHYS);
}

/* From nothing: other files are noted. */
static void restore_all(void)
{
	remove_tree(live);
	mkdir(live, 0700);
	memset(written, 0, sizeof written);
	for (size_t i = 0; i < file_count; i++)
		restore_file(i);
}

static void restore_files(void)
{
	static bool touched[DIRECTORIES_MAX];
	for (size_t i = 0; i < directory_count; i++) {
		struct made_directory *directory = &directories[i];
		touched[i] = !same_status(directory->path, &directory->status);
		if (touched[i] && mkdir(directory->path, 0700) < 0)
			drop_new(directory);
	}
	for (size_t i = 0; i < file_count; i++)
		restore_file(i);
	for (size_t i = 0; i < directory_count; i++)
		if (touched[i] && lstat(directories[i].path, &directories[i].status) < 0)
			abort();
}

/* -- what a lake shows: lines "path: digest", or "path: error" -- */

struct items {
	char *lines[ITEMS_MAX];
	size_t count;
	bool opened;     /* else everything is refused */
	bool failed;     /* some line is an error */
	bool fsck_named; /* fsck found something, or could not look */
	char said[400];
};

static void items_release(struct items *items)
{
	for (size_t i = 0; i < items->count; i++)
		free(items->lines[i]);
	memset(items, 0, sizeof *items);
}

static __attribute__((format(printf, 2, 3))) void item(struct items *items, const char *format, ...)
{
	va_list arguments;
	assert_true(items->count < ITEMS_MAX);
	va_start(arguments, format);
	if (vasprintf(&items->lines[items->count++], format, arguments) < 0)
		abort();
	va_end(arguments);
}

static void item_failed(struct items *items, const char *path, int error)
{
	items->failed = true;
	item(items, "%s: error", path);
	(void)error;
}

static void show_file(struct vfs *vfs, const char *path, const struct vfs_entry *entry,
                      struct items *items)
{
	struct vfs_opened opened;
	struct id id;
	char hex[ID_HEX + 1];
	int error = vfs_open(vfs, entry->node, O_RDONLY, &caller, &opened, NULL);
	if (error < 0) {
		item_failed(items, path, error);
		return;
	}
	size_t size = (size_t)entry->stat.st_size;
	CLEANUP(free_pointer) uint8_t *bytes = malloc(size + 1);
	size_t done = 0;
	ssize_t got = 1;
	while (done < size && got > 0) {
		got = vfs_read(vfs, opened.file, bytes + done, size - done, done, NULL);
		done += got > 0 ? (size_t)got : 0;
	}
	vfs_release(vfs, opened.file);
	if (got < 0) {
		item_failed(items, path, (int)got);
		return;
	}
	sha256_of(bytes, done, &id);
	id_to_hex(&id, hex);
	item(items, "%s: %o %zu %lld %.16s", path, entry->stat.st_mode, done,
	     (long long)entry->stat.st_mtim.tv_sec, hex);
}

struct names {
	char names[64][80];
	size_t count;
};

static bool add_name(void *context, const char *name, const struct vfs_entry *entry, uint64_t next)
{
	struct names *names = context;
	if (strcmp(name, ".") && strcmp(name, "..") && names->count < 64)
		snprintf(names->names[names->count++], 80, "%s", name);
	return true;
}

static void show_node(struct vfs *vfs, const char *path, const struct vfs_entry *entry,
                      struct items *items);

static void show_directory(struct vfs *vfs, const char *path, const struct vfs_entry *entry,
                           struct items *items)
{
	struct names *names = calloc(1, sizeof *names);
	struct vfs_list list = {.room = 65536, .entry = add_name, .context = names};
	struct vfs_directory *directory;
	bool lasting;
	item(items, "%s/: %o", path, entry->stat.st_mode);
	int error = vfs_opendir(vfs, entry->node, &directory, &lasting, NULL);
	if (!error) {
		error = vfs_readdir(vfs, directory, &list, NULL);
		vfs_releasedir(vfs, directory);
	}
	if (error < 0)
		item_failed(items, path, error);
	for (size_t i = 0; error >= 0 && i < names->count; i++) {
		struct vfs_entry child;
		char below[300];
		snprintf(below, sizeof below, "%.200s/%.80s", path, names->names[i]);
		error = vfs_lookup(vfs, entry->node, names->names[i], &child, NULL);
		if (error < 0) {
			item_failed(items, below, error);
			error = 0;
			continue;
		}
		show_node(vfs, below, &child, items);
		vfs_forget(vfs, child.node, 1);
	}
	free(names);
}

static void show_node(struct vfs *vfs, const char *path, const struct vfs_entry *entry,
                      struct items *items)
{
	CLEANUP(buffer_release) struct buffer target = {0};
	CLEANUP(buffer_release) struct buffer value = {0};
	int error = vfs_xattr_get(vfs, entry->node, "user.k", &value, NULL);
	if (!error)
		item(items, "%s: user.k %.*s", path, (int)value.length, (char *)value.data);
	else if (error != error_system(ENODATA))
		item_failed(items, path, error);
	if (S_ISDIR(entry->stat.st_mode)) {
		show_directory(vfs, path, entry, items);
	} else if (S_ISLNK(entry->stat.st_mode)) {
		error = vfs_readlink(vfs, entry->node, &target, NULL);
		if (error < 0)
			item_failed(items, path, error);
		else
			item(items, "%s: -> %.*s", path, (int)target.length, (char *)target.data);
	} else {
		show_file(vfs, path, entry, items);
	}
}

static void show_top(struct vfs *vfs, const char *name, struct items *items)
{
	struct vfs_entry entry;
	int error = vfs_lookup(vfs, VFS_ROOT, name, &entry, NULL);
	if (error < 0) {
		item_failed(items, name, error);
		return;
	}
	show_node(vfs, name, &entry, items);
	vfs_forget(vfs, entry.node, 1);
}

static int drop_items(void *context, const char *list, cJSON *pieces)
{
	struct buffer *text = context;
	char *words = cJSON_PrintUnformatted(pieces);
	buffer_append(text, words, strlen(words));
	free(words);
	cJSON_Delete(pieces);
	return 0;
}

/* A reply without what depends on the hour. */
static int run_text(struct lake *lake, const char *request_text, struct buffer *ret_text)
{
	struct caller self;
	cJSON *request = cJSON_Parse(request_text), *reply = NULL;
	struct command_output output = {.items = drop_items, .context = ret_text};
	assert_non_null(request);
	caller_self(&self);
	int error = command_run(lake, &self, request, &output, &reply);
	char *words = cJSON_PrintUnformatted(reply);
	buffer_append(ret_text, words, strlen(words) + 1);
	free(words);
	cJSON_Delete(reply);
	cJSON_Delete(request);
	return error;
}

static const char *const questions[] = {
        "{\"command\":\"branch\",\"action\":\"list\"}",
        "{\"command\":\"tag\",\"action\":\"list\"}",
        "{\"command\":\"log\",\"revision\":\"main\"}",
        "{\"command\":\"reflog\",\"branch\":\"main\"}",
        "{\"command\":\"status\",\"branch\":\"main\"}",
        "{\"command\":\"show\",\"revision\":\"dev\"}",
        "{\"command\":\"diff\",\"from\":\"v1\",\"to\":\"main\"}",
        "{\"command\":\"audit\",\"action\":\"log\"}",
        "{\"command\":\"audit\",\"action\":\"list\",\"branch\":\"dev\"}",
        "{\"command\":\"webhook\",\"action\":\"list\",\"branch\":\"dev\"}",
};

static void show_commands(struct lake *lake, struct items *items)
{
	for (size_t i = 0; i < ARRAY_SIZE(questions); i++) {
		CLEANUP(buffer_release) struct buffer text = {0};
		struct id id;
		char hex[ID_HEX + 1];
		int error = run_text(lake, questions[i], &text);
		bool damaged = text.data && strstr((char *)text.data, "damaged");
		sha256_of(text.data, text.length, &id);
		id_to_hex(&id, hex);
		if (error < 0 || damaged)
			item_failed(items, questions[i], error);
		else
			item(items, "%s: %.16s", questions[i], hex);
	}
	CLEANUP(buffer_release) struct buffer text = {0};
	items->fsck_named = run_text(lake, "{\"command\":\"fsck\"}", &text) < 0;
	snprintf(items->said, sizeof items->said, "%.390s", (char *)text.data);
}

static void show_lake(struct items *items)
{
	struct message message = {{0}};
	struct lake *lake = NULL;
	struct vfs *vfs = NULL;
	const struct vfs_kernel kernel = {0};
	memset(items, 0, sizeof *items);
	int error = lake_open(live, &lake, &message);
	if (error < 0) {
		snprintf(items->said, sizeof items->said, "%.390s", message.text);
		assert_true(message.text[0]);
		return;
	}
	items->opened = true;
	must(vfs_new(lake, &kernel, NULL, &vfs), "vfs_new", NULL);
	static const char *const tops[] = {"main", "dev", "@v1", "@main~1"};
	for (size_t i = 0; i < ARRAY_SIZE(tops); i++)
		show_top(vfs, tops[i], items);
	show_commands(lake, items);
	vfs_free(vfs);
	lake_close(lake);
}

/* -- the lake -- */

static void write_bytes(struct vfs *vfs, uint64_t parent, const char *name, const void *bytes,
                        size_t length, uint64_t offset)
{
	struct message message = {{0}};
	struct vfs_entry entry;
	struct vfs_opened opened;
	must(vfs_create(vfs, parent, name, 0644, O_RDWR, &caller, &entry, &opened, &message), name,
	     &message);
	if (vfs_write(vfs, opened.file, bytes, length, offset, &caller, &message) !=
	    (ssize_t)length)
		abort();
	must(vfs_sync(vfs, opened.file, false), name, NULL);
	struct span value = {"value", 5};
	must(vfs_xattr_set(vfs, entry.node, "user.k", value, 0, &message), name, &message);
	vfs_release(vfs, opened.file);
	vfs_forget(vfs, entry.node, 1);
}

static void ask(struct lake *lake, const char *request)
{
	CLEANUP(buffer_release) struct buffer text = {0};
	if (run_text(lake, request, &text) < 0) {
		fprintf(stderr, "%s\n%s\n", request, (char *)text.data);
		abort();
	}
}

static void make_files(struct vfs *vfs, uint64_t branch)
{
	static uint8_t text[9000];
	struct vfs_entry entry;
	struct message message = {{0}};
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = (uint8_t)(i * i / 7 + i % 13);
	const struct vfs_make directory = {.mode = S_IFDIR | 0750};
	const struct vfs_make link = {.mode = S_IFLNK | 0777, .target = "../a"};
	must(vfs_make(vfs, branch, "t", &directory, &caller, &entry, &message), "t", &message);
	write_bytes(vfs, entry.node, "one", text, sizeof text, 0);
	write_bytes(vfs, entry.node, "sparse", text, 300, 65536);
	write_bytes(vfs, entry.node, "empty", text, 0, 0);
	vfs_forget(vfs, entry.node, 1);
	write_bytes(vfs, branch, "a", "first\n", 6, 0);
	must(vfs_make(vfs, branch, "l", &link, &caller, &entry, &message), "l", &message);
	vfs_forget(vfs, entry.node, 1);
}

static void change_files(struct vfs *vfs, uint64_t branch)
{
	struct vfs_entry entry;
	struct message message = {{0}};
	must(vfs_remove(vfs, branch, "a", false, &message), "remove", &message);
	write_bytes(vfs, branch, "b", "second, not committed\n", 22, 0);
	must(vfs_lookup(vfs, branch, "t", &entry, &message), "t", &message);
	must(vfs_rename(vfs, entry.node, "one", branch, "moved", 0, &message), "rename", &message);
	vfs_forget(vfs, entry.node, 1);
}

/* Ends without closing anything, as kill -9 would, in a process of its own. */
static void make_lake(void)
{
	struct message message = {{0}};
	struct lake *lake;
	struct vfs *vfs;
	struct vfs_entry branch;
	const struct vfs_kernel kernel = {0};
	must(lake_init(live, NULL, "test@host", &message), "init", &message);
	must(lake_open(live, &lake, &message), "open", &message);
	must(vfs_new(lake, &kernel, NULL, &vfs), "vfs", NULL);
	must(vfs_lookup(vfs, VFS_ROOT, "main", &branch, &message), "main", &message);
	make_files(vfs, branch.node);
	ask(lake, "{\"command\":\"commit\",\"branch\":\"main\",\"message\":\"one\"}");
	ask(lake,
	    "{\"command\":\"tag\",\"action\":\"create\",\"name\":\"v1\",\"revision\":\"main\"}");
	ask(lake, "{\"command\":\"branch\",\"action\":\"create\",\"name\":\"dev\",\"revision\":"
	          "\"main\"}");
	ask(lake, "{\"command\":\"audit\",\"action\":\"add\",\"branch\":\"dev\",\"name\":\"check\","
	          "\"program\":[\"/bin/true\"]}");
	write_bytes(vfs, branch.node, "second", "two\n", 4, 0);
	ask(lake, "{\"command\":\"commit\",\"branch\":\"main\",\"message\":\"two\"}");
	change_files(vfs, branch.node);
	_exit(0);
}

static void make_in_child(void)
{
	int status;
	pid_t child = fork();
	if (child == 0)
		make_lake();
	assert_true(waitpid(child, &status, 0) == child && status == 0);
}

static void settle_in_child(void)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		struct items items;
		show_lake(&items);
		_exit(items.opened && !items.failed && !items.fsck_named ? 0 : 1);
	}
	assert_true(waitpid(child, &status, 0) == child);
	if (status != 0)
		fail_msg("the lake is not well before anything is damaged");
}

/* -- one damage -- */

/* Shared with the process that tries. */
struct tally {
	size_t at; /* what is being tried */
	size_t refused, failed, named, harmless, healed;
	size_t undetected, unnamed, deaths;
	size_t which;
	char what[300];
	int kind; /* the test's own */
	bool (*may_lack)(const struct tally *tally, const struct items *now, const char *line);
	bool (*must_be_named)(const struct tally *tally,
	                      const struct items *now); /* NULL: what leads to an error */
	size_t harmless_of[FILES_MAX];
	char undetected_first[1000], unnamed_first[1000];
};

/* Everything shown is as before, or an error. */
static const char *other_line(const struct tally *tally, const struct items *before,
                              const struct items *now)
{
	for (size_t i = 0; i < now->count; i++) {
		bool known = strstr(now->lines[i], ": error") != NULL;
		for (size_t j = 0; !known && j < before->count; j++)
			known = strcmp(now->lines[i], before->lines[j]) == 0;
		if (!known && !(tally->may_lack && tally->may_lack(tally, now, now->lines[i])))
			return now->lines[i];
	}
	if (!now->failed && now->count < before->count)
		return "(something is missing)";
	return NULL;
}

/* What is stored, or leads to an error, must have a name. An error says so by itself where only a
 * missing thing is not found. */
static bool must_name(const struct tally *tally, const struct items *now)
{
	return tally->must_be_named ? tally->must_be_named(tally, now) : now->failed;
}

static void judge(struct tally *tally, const struct items *before, size_t which, const char *what)
{
	struct items now;
	show_lake(&now);
	const char *other = now.opened ? other_line(tally, before, &now) : NULL;
	if (other) {
		tally->undetected++;
		if (!tally->undetected_first[0] || getenv("DAMAGE_VERBOSE"))
			snprintf(tally->undetected_first, sizeof tally->undetected_first,
			         "%s: shows %.300s", what, other);
		if (getenv("DAMAGE_VERBOSE"))
			fprintf(stderr, "UNDETECTED %s: %s | %s\n", what, other, now.said);
	} else if (!now.opened) {
		tally->refused++;
	} else {
		tally->failed += now.failed;
		tally->named += now.fsck_named;
		if (!now.failed && !now.fsck_named) {
			tally->harmless++;
			tally->harmless_of[which]++;
		}
		if (!now.fsck_named && must_name(tally, &now)) {
			tally->unnamed++;
			if (!tally->unnamed_first[0])
				snprintf(tally->unnamed_first, sizeof tally->unnamed_first,
				         "%s: %s", what, now.said);
			if (getenv("DAMAGE_VERBOSE"))
				fprintf(stderr, "UNNAMED %s: %s\n", what, now.said);
		}
		if (!now.failed && !now.fsck_named && getenv("DAMAGE_VERBOSE"))
			fprintf(stderr, "HARMLESS %s\n", what);
	}
	items_release(&now);
}

/* -- many, in a process of its own that is begun again after one that a damage has killed -- */

/* Damages the lake, which is as restored, says how in tally->what, and tells which file that is. */
typedef size_t damage_fn(const void *context, size_t number, struct tally *tally);

static void try_from(damage_fn *damage, const void *context, size_t count,
                     const struct items *before, struct tally *tally)
{
	for (; tally->at < count; tally->at++) {
		alarm(HANG_S);
		restore_files();
		tally->which = damage(context, tally->at, tally);
		judge(tally, before, tally->which, tally->what);
	}
}

static void try_damages(damage_fn *damage, const void *context, size_t count,
                        const struct items *before, struct tally *tally)
{
	while (tally->at < count) {
		int status;
		pid_t child = fork();
		if (child == 0) {
			try_from(damage, context, count, before, tally);
			fflush(NULL);
			_exit(0);
		}
		assert_true(waitpid(child, &status, 0) == child);
		if (status == 0)
			break;
		tally->at++;
		tally->deaths++;
		fprintf(stderr, "%s: %s %d\n", tally->what, WIFSIGNALED(status) ? "signal" : "exit",
		        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	}
}

static struct tally *tally_new(void)
{
	struct tally *tally = mmap(NULL, sizeof *tally, PROT_READ | PROT_WRITE,
	                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(tally != MAP_FAILED);
	return tally;
}

/* What is there is well, and what it shows is what counts from now on. */
static void begin_with(struct items *ret_before)
{
	note_files();
	settle_in_child();
	restore_all();
	show_lake(ret_before);
	note_directories();
}

static void tell(const struct tally *tally, size_t count)
{
	print_message("damaged %zu: refused to open %zu, errors %zu, named by fsck %zu, no matter "
	              "%zu; unnamed %zu, undetected %zu, deaths %zu\n",
	              count, tally->refused, tally->failed, tally->named, tally->harmless,
	              tally->unnamed, tally->undetected, tally->deaths);
	for (size_t i = 0; i < file_count; i++)
		if (tally->harmless_of[i])
			print_message("  no matter: %zu of %s (%zu bytes)\n", tally->harmless_of[i],
			              files[i].path, files[i].bytes.length);
	if (tally->undetected)
		fail_msg("%s", tally->undetected_first);
	if (tally->unnamed)
		fail_msg("not named by fsck: %s", tally->unnamed_first);
	assert_int_equal(tally->deaths, 0);
}

static int set_up(void **state)
{
	snprintf(root, sizeof root, "/dev/shm/test_damage.XXXXXX");
	if (!mkdtemp(root))
		return -1;
	snprintf(live, sizeof live, "%s/lake", root);
	make_in_child();
	return 0;
}

static int tear_down(void **state)
{
	remove_tree(root);
	return 0;
}

#endif
