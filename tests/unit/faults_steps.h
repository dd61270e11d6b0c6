/* Steps of test_faults.c: one operation on a lake each, as a kernel or lakectl asks for it. */
#ifndef TESTS_UNIT_FAULTS_STEPS_H
#define TESTS_UNIT_FAULTS_STEPS_H

/* -- paths, as a kernel walks them -- */

static int walk(struct world *world, const char *path, uint64_t *ret_node)
{
	struct vfs_entry entry;
	char name[256];
	uint64_t at = VFS_ROOT;
	while (*path) {
		size_t length = strcspn(path, "/");
		memcpy(name, path, length);
		name[length] = '\0';
		path += length + (path[length] == '/');
		int result = vfs_lookup(world->vfs, at, name, &entry, &world->message);
		if (at != VFS_ROOT)
			vfs_forget(world->vfs, at, 1);
		if (result < 0)
			return result;
		at = entry.node;
	}
	*ret_node = at;
	return 0;
}

static void leave(struct world *world, uint64_t node)
{
	if (node != VFS_ROOT)
		vfs_forget(world->vfs, node, 1);
}

/* The parent's node and the last name. */
static int walk_parent(struct world *world, const char *path, uint64_t *ret_node,
                       const char **ret_name)
{
	char parent[256];
	const char *slash = strrchr(path, '/');
	memcpy(parent, path, (size_t)(slash - path));
	parent[slash - path] = '\0';
	*ret_name = slash + 1;
	return walk(world, parent, ret_node);
}

static int open_path(struct world *world, const char *path, int flags, struct vfs_opened *opened)
{
	int result = -ERR_STALE;
	for (int i = 0; i < 3 && result == -ERR_STALE; i++) {
		uint64_t node;
		result = walk(world, path, &node);
		if (result < 0)
			return result;
		result = vfs_open(world->vfs, node, flags, &caller, opened, &world->message);
		leave(world, node);
	}
	return result;
}

/* -- steps: each one operation -- */

static int step_open(struct world *world, const void *argument)
{
	int result = lake_open(world->directory, &world->lake, &world->message);
	if (result < 0)
		return result;
	const struct vfs_kernel kernel = {0};
	result = vfs_new(world->lake, &kernel, NULL, &world->vfs);
	if (result < 0) {
		lake_close(world->lake);
		world->lake = NULL;
		strcpy(world->message.text, error_text(result));
	} else {
		fault_store_wrap(world->lake->store);
	}
	return result;
}

static int step_close(struct world *world, const void *argument)
{
	vfs_free(world->vfs);
	lake_close(world->lake);
	world->vfs = NULL;
	world->lake = NULL;
	return 0;
}

static int step_create(struct world *world, const void *path)
{
	uint64_t parent;
	const char *name;
	struct vfs_entry entry;
	struct vfs_opened opened;
	int result = walk_parent(world, path, &parent, &name);
	if (result < 0)
		return result;
	result = vfs_create(world->vfs, parent, name, 0644, O_CREAT | O_EXCL | O_RDWR, &caller,
	                    &entry, &opened, &world->message);
	leave(world, parent);
	if (result < 0)
		return result;
	vfs_release(world->vfs, opened.file);
	leave(world, entry.node);
	return 0;
}

struct bytes_step {
	const char *path, *text;
	uint64_t offset;
	bool sync;
};
static int step_write(struct world *world, const void *argument)
{
	const struct bytes_step *piece = argument;
	struct vfs_opened opened;
	int result = open_path(world, piece->path, O_WRONLY, &opened);
	if (result < 0)
		return result;
	ssize_t done = vfs_write(world->vfs, opened.file, piece->text, strlen(piece->text),
	                         piece->offset, &caller, &world->message);
	if (done >= 0 && (size_t)done != strlen(piece->text))
		broken("a write of %zu bytes wrote %zd and said so", strlen(piece->text), done);
	result = done < 0 ? (int)done : 0;
	if (result == 0 && piece->sync)
		result = vfs_sync(world->vfs, opened.file, false);
	vfs_release(world->vfs, opened.file);
	return result;
}

static int step_make(struct world *world, const void *path, const struct vfs_make *make)
{
	uint64_t parent;
	const char *name;
	struct vfs_entry entry;
	int result = walk_parent(world, path, &parent, &name);
	if (result < 0)
		return result;
	result = vfs_make(world->vfs, parent, name, make, &caller, &entry, &world->message);
	leave(world, parent);
	if (result == 0)
		leave(world, entry.node);
	return result;
}

static int step_mkdir(struct world *world, const void *path)
{
	return step_make(world, path, &(struct vfs_make){.mode = S_IFDIR | 0755});
}

static int step_symlink(struct world *world, const void *path)
{
	return step_make(world, path,
	                 &(struct vfs_make){.mode = S_IFLNK | 0777, .target = "some/where"});
}

static int remove_at(struct world *world, const char *path, bool directory)
{
	uint64_t parent;
	const char *name;
	int result = walk_parent(world, path, &parent, &name);
	if (result < 0)
		return result;
	result = vfs_remove(world->vfs, parent, name, directory, &world->message);
	leave(world, parent);
	return result;
}

static int step_unlink(struct world *world, const void *path)
{
	return remove_at(world, path, false);
}

static int step_rmdir(struct world *world, const void *path)
{
	return remove_at(world, path, true);
}

struct pair {
	const char *from, *to;
	unsigned flags;
};
static int step_rename(struct world *world, const void *argument)
{
	const struct pair *pair = argument;
	const char *from, *to;
	uint64_t from_parent, to_parent;
	int result = walk_parent(world, pair->from, &from_parent, &from);
	if (result < 0)
		return result;
	result = walk_parent(world, pair->to, &to_parent, &to);
	if (result == 0) {
		result = vfs_rename(world->vfs, from_parent, from, to_parent, to, pair->flags,
		                    &world->message);
		leave(world, to_parent);
	}
	leave(world, from_parent);
	return result;
}

static int step_link(struct world *world, const void *argument)
{
	const struct pair *pair = argument;
	const char *name;
	uint64_t node, parent;
	struct vfs_entry entry;
	int result = walk(world, pair->from, &node);
	if (result < 0)
		return result;
	result = walk_parent(world, pair->to, &parent, &name);
	if (result == 0) {
		result = vfs_link(world->vfs, node, parent, name, &entry, &world->message);
		leave(world, parent);
		if (result == 0)
			leave(world, entry.node);
	}
	leave(world, node);
	return result;
}

struct change_step {
	const char *path;
	struct vfs_change change;
};
static int step_setattr(struct world *world, const void *argument)
{
	const struct change_step *step = argument;
	struct stat stat;
	int result = -ERR_STALE;
	for (int i = 0; i < 3 && result == -ERR_STALE; i++) {
		uint64_t node;
		result = walk(world, step->path, &node);
		if (result < 0)
			return result;
		result = vfs_setattr(world->vfs, node, NULL, &step->change, &caller, &stat,
		                     &world->message);
		leave(world, node);
	}
	return result;
}

struct xattr_step {
	const char *path, *name, *value;
};
static int step_xattr(struct world *world, const void *argument)
{
	const struct xattr_step *step = argument;
	const struct span value = {(const uint8_t *)step->value,
	                           step->value ? strlen(step->value) : 0};
	int result = -ERR_STALE;
	for (int i = 0; i < 3 && result == -ERR_STALE; i++) {
		uint64_t node;
		result = walk(world, step->path, &node);
		if (result < 0)
			return result;
		result = vfs_xattr_set(world->vfs, node, step->name, value, 0, &world->message);
		leave(world, node);
	}
	return result;
}

static int step_read(struct world *world, const void *path)
{
	char bytes[8192];
	struct vfs_opened opened;
	int result = open_path(world, path, O_RDONLY, &opened);
	if (result < 0)
		return result;
	ssize_t got = 1;
	for (uint64_t at = 0; got > 0; at += (uint64_t)got)
		got = vfs_read(world->vfs, opened.file, bytes, sizeof(bytes), at, &world->message);
	vfs_release(world->vfs, opened.file);
	return got < 0 ? (int)got : 0;
}

static int step_sync_names(struct world *world, const void *argument)
{
	return vfs_sync_names(world->vfs);
}

/* -- commands; the request is written with ' for " -- */

static void sign(const cJSON *item, char *text, size_t *used)
{
	for (; item; item = item->next) {
		const char *name = item->string ? item->string : "";
		/* What the background and the clock decide. */
		if (strcmp(name, "warnings") == 0 || strcmp(name, "stats") == 0 ||
		    strcmp(name, "checks") == 0)
			continue;
		*used += (size_t)snprintf(text + *used, SIGNATURE_BYTES - *used, "%s%s", name,
		                          item->child ? "(" : ",");
		if (*used >= SIGNATURE_BYTES)
			broken("a reply with too many keys");
		if (item->child) {
			sign(item->child, text, used);
			*used += (size_t)snprintf(text + *used, SIGNATURE_BYTES - *used, ")");
		}
	}
}

static cJSON *request_of(const char *text)
{
	char json[2048];
	size_t length = strlen(text);
	if (length >= sizeof(json))
		broken("a long request");
	for (size_t i = 0; i <= length; i++)
		json[i] = text[i] == '\'' ? '"' : text[i];
	cJSON *request = cJSON_Parse(json);
	if (!request)
		broken("not JSON: %s", json);
	return request;
}

static int command_in(struct world *world, const char *text, cJSON **ret_reply)
{
	struct caller self;
	fault_off++;
	cJSON *request = request_of(text);
	caller_self(&self);
	fault_off--;
	int result = command_run(world->lake, &self, request, NULL, ret_reply);
	fault_off++;
	cJSON_Delete(request);
	fault_off--;
	return result;
}

static int step_command(struct world *world, const void *text)
{
	cJSON *reply = NULL;
	int result = command_in(world, text, &reply);
	fault_off++;
	const cJSON *error = cJSON_GetObjectItemCaseSensitive(reply, "error");
	const cJSON *message = cJSON_GetObjectItemCaseSensitive(error, "message");
	if (result < 0 && cJSON_IsString(message))
		snprintf(world->message.text, sizeof(world->message.text), "%s",
		         message->valuestring);
	/* fsck has no error but what it found. */
	if (result >= 0) {
		size_t used = 0;
		world->signature[0] = '\0';
		if (!reply)
			broken("%s: no reply", (const char *)text);
		sign(reply, world->signature, &used);
	}
	cJSON_Delete(reply);
	fault_off--;
	return result;
}

static int step_clone(struct world *world, const void *argument)
{
	char url[128];
	snprintf(url, sizeof(url), "file://%s/store", lake_path);
	int result = lake_clone(url, other_path, &world->message);
	if (result < 0)
		return result;
	/* Whether it can be opened is another question than this step's: the threads of what is
	 * opened meet no faults either. */
	struct lake *clone;
	bool counting = fault_state.counting, armed = fault_state.armed;
	fault_state.counting = fault_state.armed = false;
	must(lake_open(other_path, &clone, &world->message), "the clone", &world->message);
	lake_close(clone);
	fault_state.counting = counting;
	fault_state.armed = armed;
	return 0;
}

static int step_init(struct world *world, const void *argument)
{
	return lake_init(world->directory, NULL, "test@host", &world->message);
}

/* Everything cached goes: what is read is fetched. */
static int step_forget_cache(struct world *world, const void *argument);

#endif
