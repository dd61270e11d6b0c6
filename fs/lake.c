/*
 * lake — hides where things lie in a lake's directory, how its configuration and the store's own
 * "lake" object are written, and in which order modules open and close.
 */
#include "fs/lake.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/json.h"
#include "fs/publish/tables.h"
#include "refs/known.h"

#define CONFIG_VERSION 1
#define CONFIG_BYTES_MAX (64u << 10)
#define REFRESH_MS_DEFAULT 1000
#define REFRESH_MS_MIN 10
#define KNOWN_INTERVALS \
	2 /* a ref is good for guessing so long: a round of looking takes a while \
	   */
#define REFRESH_MS_MAX 3600000
#define STORE_OBJECT "lake"
#define STORE_MAGIC "LAKE\r\n\x1a\n"
#define STORE_VERSION 1
#define STORE_OBJECT_BYTES (8 + 4 + 4 + 16 + ID_BYTES)

static char *path_join(const char *directory, const char *name)
{
	char *path = NULL;
	return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

/* What failed deep down for want of memory says nothing of its own. Returns `error`. */
static int say_something(struct message *message, int error, const char *what,
                         const char *directory)
{
	if (error < 0 && message && !message->text[0])
		fail(message, error, "%s %s: %s", what, directory, error_text(error));
	return error;
}

/* -- the store's own object: magic, version u32, flags u32, lake id, SHA-256 of these -- */

static int store_object_encode(const uint8_t lake_id[16], struct buffer *ret_bytes)
{
	buffer_append(ret_bytes, STORE_MAGIC, 8);
	buffer_u32(ret_bytes, STORE_VERSION);
	buffer_u32(ret_bytes, 0);
	buffer_append(ret_bytes, lake_id, 16);
	struct id seal;
	sha256_of(ret_bytes->data, ret_bytes->length, &seal);
	buffer_id(ret_bytes, &seal);
	return buffer_check(ret_bytes);
}

static int store_object_read(struct object_store *store, const char *url, char ret_lake_id[33],
                             struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = 4096};
	int error = object_get(store, STORE_OBJECT, 0, UINT64_MAX, &bytes, NULL, message);
	if (error == -ERR_NOT_FOUND)
		return fail(message, -ERR_NO_LAKE,
		            "there is no lake in %s; `lakectl init --store '%s' DIR` makes one",
		            url, url);
	if (error < 0)
		return error;
	if (bytes.length < 12 || memcmp(bytes.data, STORE_MAGIC, 8) != 0)
		return fail(message, -ERR_CORRUPT, "object '%s' in %s is not a lake's header",
		            STORE_OBJECT, url);
	uint32_t version = load_u32(bytes.data + 8);
	if (version != STORE_VERSION)
		return fail(message, -ERR_VERSION,
		            "the lake in %s has format %u; this program knows %u: upgrade it", url,
		            version, STORE_VERSION);
	struct id seal;
	if (bytes.length == STORE_OBJECT_BYTES)
		sha256_of(bytes.data, STORE_OBJECT_BYTES - ID_BYTES, &seal);
	if (bytes.length != STORE_OBJECT_BYTES ||
	    memcmp(seal.bytes, bytes.data + STORE_OBJECT_BYTES - ID_BYTES, ID_BYTES) != 0)
		return fail(message, -ERR_CORRUPT,
		            "object '%s' in %s is damaged (its checksum does not match)",
		            STORE_OBJECT, url);
	hex_encode(bytes.data + 16, 16, ret_lake_id);
	return 0;
}

/* -- configuration -- */

void lake_config_release(struct lake_config *config)
{
	free(config->store_url);
	free(config->control_group);
	memset(config, 0, sizeof *config);
}

static int config_write(const char *directory, const struct lake_config *config,
                        struct message *message)
{
	unsigned failures = json_failures();
	cJSON *json = cJSON_CreateObject();
	cJSON_AddNumberToObject(json, "version", CONFIG_VERSION);
	cJSON_AddStringToObject(json, "lake", config->lake_id);
	cJSON_AddStringToObject(json, "store", config->store_url);
	cJSON_AddNumberToObject(json, "cache_bytes_max", (double)config->cache_bytes_max);
	CLEANUP(free_pointer) char *text = cJSON_Print(json);
	cJSON_Delete(json);
	CLEANUP(free_pointer) char *path = path_join(directory, "lake.json");
	if (!text || !path || json_failures() != failures)
		return -ERR_NO_MEMORY;
	int error = write_file_durably(AT_FDCWD, path, text, strlen(text));
	if (error < 0) {
		unlink(path); /* it may be there, and only its name not be durable */
		return fail(message, error, "cannot write %s: %s", path, error_text(error));
	}
	return 0;
}

/* A key that is misspelled, or damaged, must not pass for one that was left out. */
static const char *const config_keys[] = {"version",
                                          "lake",
                                          "store",
                                          "refresh_ms",
                                          "control_group",
                                          "cache_bytes_max",
                                          "copy_up_bytes_max",
                                          "verify_bytes_max",
                                          NULL};
#define CONFIG_TEXT_MAX 4096
#define CONFIG_NUMBER_MAX ((int64_t)1 << 53)

static int config_number(const cJSON *json, const char *path, const char *name, uint64_t *ret_value,
                         struct message *message)
{
	int64_t value = 0;
	int error = json_number(json, path, name, 0, CONFIG_NUMBER_MAX, &value, message);
	if (!error)
		*ret_value = (uint64_t)value;
	return error;
}

/* "refresh_ms": 0 is never. */
static int config_refresh(const cJSON *json, const char *path, int *ret_ms, struct message *message)
{
	int64_t value = REFRESH_MS_DEFAULT;
	int error = json_number(json, path, "refresh_ms", 0, CONFIG_NUMBER_MAX, &value, message);
	if (error < 0)
		return error;
	if (value > 0 && value < REFRESH_MS_MIN)
		value = REFRESH_MS_MIN;
	*ret_ms = value == 0 ? -1 : value > REFRESH_MS_MAX ? REFRESH_MS_MAX : (int)value;
	return 0;
}

static int config_text(const cJSON *json, const char *path, const char *name, char **ret_text,
                       struct message *message)
{
	const char *text;
	int error = json_text(json, path, name, CONFIG_TEXT_MAX, &text, message);
	if (error < 0 || !text)
		return error;
	*ret_text = strdup(text);
	return *ret_text ? 0 : -ERR_NO_MEMORY;
}

static int config_parse(const char *path, const cJSON *json, struct lake_config *ret_config,
                        struct message *message)
{
	const cJSON *version = cJSON_GetObjectItemCaseSensitive(json, "version");
	if (!cJSON_IsNumber(version))
		return fail(message, -ERR_CORRUPT, "%s is not a lake's configuration", path);
	if (version->valuedouble != CONFIG_VERSION)
		return fail(message, -ERR_VERSION,
		            "%s has version %g; this program knows %d: upgrade it", path,
		            version->valuedouble, CONFIG_VERSION);
	int error = json_keys(json, path, config_keys, message);
	const char *lake_id = NULL;
	if (!error)
		error = json_text(json, path, "lake", CONFIG_TEXT_MAX, &lake_id, message);
	uint8_t bytes[16];
	if (!error && (!lake_id || strlen(lake_id) != 32 || hex_decode(lake_id, 32, bytes) < 0))
		return fail(message, -ERR_CORRUPT, "%s names no lake id", path);
	if (!error)
		memcpy(ret_config->lake_id, lake_id, 33);
	if (!error)
		error = config_text(json, path, "store", &ret_config->store_url, message);
	if (!error && !ret_config->store_url)
		return fail(message, -ERR_CORRUPT, "%s names no store", path);
	if (!error)
		error = config_number(json, path, "cache_bytes_max", &ret_config->cache_bytes_max,
		                      message);
	if (!error)
		error = config_number(json, path, "copy_up_bytes_max",
		                      &ret_config->copy_up_bytes_max, message);
	if (!error)
		error = config_number(json, path, "verify_bytes_max", &ret_config->verify_bytes_max,
		                      message);
	if (!error)
		error = config_refresh(json, path, &ret_config->refresh_ms, message);
	if (!error)
		error = config_text(json, path, "control_group", &ret_config->control_group,
		                    message);
	return error;
}

/* Any bytes as lake.json. */
int lake_config_parse(const char *path, const void *bytes, size_t length,
                      struct lake_config *ret_config, struct message *message)
{
	CLEANUP(json_cleanup) cJSON *json = NULL;
	struct lake_config config = {0};
	int error = json_parse(bytes, length, &json, message);
	if (error < 0)
		fail_context(message, error, "%s", path);
	else
		error = config_parse(path, json, &config, message);
	if (error < 0)
		lake_config_release(&config);
	else
		*ret_config = config;
	return error;
}

static int config_read(const char *directory, struct lake_config *ret_config,
                       struct message *message)
{
	CLEANUP(free_pointer) char *path = path_join(directory, "lake.json");
	CLEANUP(buffer_release) struct buffer bytes = {0};
	if (!path)
		return -ERR_NO_MEMORY;
	int error = read_file(AT_FDCWD, path, CONFIG_BYTES_MAX, &bytes);
	if (error == -ERR_NOT_FOUND || error == error_system(ENOTDIR))
		return fail(message, -ERR_NO_LAKE,
		            "no lake in %s; `lakectl init DIR` makes one, --lake DIR names another",
		            directory);
	if (error < 0)
		return fail(message, error, "cannot read %s: %s", path, error_text(error));
	return lake_config_parse(path, bytes.data, bytes.length, ret_config, message);
}

/* -- making one -- */

static int first_commit(struct object_store *store, const char *author, struct message *message)
{
	struct odb *odb = NULL;
	struct packer *packer = NULL;
	struct pointer pointer;
	struct commit commit = {
	        .root = {.mode = S_IFDIR | 0755,
	                 .uid = geteuid(),
	                 .gid = getegid(),
	                 .mtime_ns = clock_wall_ns()},
	        .author = author,
	        .time_ms = clock_wall_ms(),
	        .message = "Empty lake",
	};
	struct ref_author by = {.who = author, .command = "init"};

	int error = odb_new(store, &(struct odb_options){0}, &odb);
	if (!error)
		error = packer_new(odb, &packer);
	if (!error)
		error = commit_write(odb, packer, &commit, &pointer, message);
	if (!error)
		error = packer_flush(packer, message);
	packer_free(packer);
	odb_free(odb);
	if (error < 0)
		return error;
	return ref_create(store, REF_BRANCH, "main", &pointer, &by, message);
}

static int directory_is_empty(const char *directory)
{
	/* A store alone is what an init that failed leaves, or a lake's own: the store tells. */
	static const char *const ours[] = {"lake.json", "state", "staging", "cache", "index"};
	for (size_t i = 0; i < ARRAY_SIZE(ours); i++) {
		CLEANUP(free_pointer) char *path = path_join(directory, ours[i]);
		if (!path)
			return -ERR_NO_MEMORY;
		if (access(path, F_OK) == 0)
			return 0;
	}
	return 1;
}

/* Makes DIR with its real path; -ERR_EXISTS when a lake (or part of one) is in it already. */
static int make_lake_directory(const char *directory, char **ret_real, struct message *message)
{
	int error = make_directories(directory, 0755);
	if (error < 0)
		return fail(message, error, "cannot make %s: %s", directory, error_text(error));
	CLEANUP(free_pointer) char *real = realpath(directory, NULL);
	if (!real)
		return fail(message, error_system(errno), "cannot resolve %s", directory);
	int empty = directory_is_empty(real);
	if (empty < 0)
		return fail(message, empty, "cannot look into %s: %s", real, error_text(empty));
	if (!empty)
		return fail(message, -ERR_EXISTS,
		            "%s holds a lake already; choose another directory", real);
	*ret_real = steal(&real);
	return 0;
}

/* Is the store at config->store_url fit for a lake? The URL then becomes the one to keep. */
static int probe_store(struct object_store *store, struct lake_config *config,
                       struct message *message)
{
	CLEANUP(free_pointer) char *kept = NULL;
	int error = object_store_probe(store, config->store_url, &kept, message);
	if (error < 0)
		return error;
	free(config->store_url);
	config->store_url = steal(&kept);
	return 0;
}

static int check_no_lake(struct object_store *store, const char *url, struct message *message)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = 4096};
	int error = object_get(store, STORE_OBJECT, 0, UINT64_MAX, &bytes, NULL, message);
	if (error == -ERR_NOT_FOUND)
		return 0;
	return error < 0 && error != -ERR_TOO_LARGE
	               ? error
	               : fail(message, -ERR_EXISTS,
	                      "%s holds a lake already; `lakectl clone '%s' DIR` joins it", url,
	                      url);
}

/* It may have been put although that failed; then nothing is to be left of it. */
static void take_back_lake(struct object_store *store, const struct buffer *header)
{
	CLEANUP(buffer_release) struct buffer bytes = {.limit = 4096};
	if (object_get(store, STORE_OBJECT, 0, UINT64_MAX, &bytes, NULL, NULL) == 0 &&
	    bytes.length == header->length && memcmp(bytes.data, header->data, header->length) == 0)
		object_remove(store, STORE_OBJECT, NULL);
}

/* The object that makes a lake of a store comes last: whatever fails before leaves nothing that
 * keeps the next try from succeeding. A branch main without that object is what such a try left. */
static int make_lake(const char *directory, struct lake_config *config, const char *author,
                     struct message *message)
{
	CLEANUP(buffer_release) struct buffer header = {0};
	CLEANUP(free_pointer) char *path = path_join(directory, "lake.json");
	struct object_store *store = NULL;
	uint8_t lake_id[16];

	random_bytes(lake_id, sizeof lake_id);
	hex_encode(lake_id, sizeof lake_id, config->lake_id);
	int error = path ? store_object_encode(lake_id, &header) : -ERR_NO_MEMORY;
	if (!error)
		error = object_store_open(config->store_url, true, &store, message);
	if (!error)
		error = probe_store(store, config, message);
	if (!error)
		error = check_no_lake(store, config->store_url, message);
	if (!error) {
		error = first_commit(store, author, message);
		if (error == -ERR_EXISTS)
			error = 0;
	}
	if (!error)
		error = config_write(directory, config, message);
	if (!error) {
		error = object_put_if_absent(store, STORE_OBJECT, header.data, header.length, NULL,
		                             message);
		if (error == -ERR_EXISTS)
			fail(message, error,
			     "%s holds a lake already; `lakectl clone '%s' DIR` joins it",
			     config->store_url, config->store_url);
		else if (error < 0)
			take_back_lake(store, &header);
		if (error < 0)
			unlink(path);
	}
	object_store_free(store);
	return error;
}

/* In the lake's own directory, where others may look (for the socket): what lies in the store must
 * not be read past the modes of the files in it. Of a store elsewhere its owner decides. */
static int own_store_url(const char *directory, char **ret_url, struct message *message)
{
	CLEANUP(free_pointer) char *store = path_join(directory, "store");
	if (!store)
		return -ERR_NO_MEMORY;
	if (mkdir(store, 0700) < 0 && errno != EEXIST)
		return fail(message, error_system(errno), "cannot make %s: %s", store,
		            strerror(errno));
	if (asprintf(ret_url, "file://%s", store) >= 0)
		return 0;
	*ret_url = NULL;
	return -ERR_NO_MEMORY;
}

int lake_init(const char *directory, const char *url, const char *author, struct message *message)
{
	CLEANUP(free_pointer) char *real = NULL;
	struct lake_config config = {0};

	int error = make_lake_directory(directory, &real, message);
	if (!error && url)
		config.store_url = strdup(url);
	else if (!error)
		error = own_store_url(real, &config.store_url, message);
	if (!error)
		error = config.store_url ? make_lake(real, &config, author, message)
		                         : -ERR_NO_MEMORY;
	lake_config_release(&config);
	return say_something(message, error, "cannot make a lake in", directory);
}

int lake_clone(const char *url, const char *directory, struct message *message)
{
	CLEANUP(free_pointer) char *real = NULL;
	struct lake_config config = {0};
	struct object_store *store = NULL;

	int error = object_store_open(url, false, &store, message);
	if (error == -ERR_NOT_FOUND)
		return fail(message, -ERR_NO_LAKE, "there is no store at %s", url);
	if (!error)
		error = store_object_read(store, url, config.lake_id, message);
	config.store_url = strdup(url);
	if (!error)
		error = config.store_url ? probe_store(store, &config, message) : -ERR_NO_MEMORY;
	object_store_free(store);
	if (!error)
		error = make_lake_directory(directory, &real, message);
	if (!error)
		error = config_write(real, &config, message);
	lake_config_release(&config);
	return say_something(message, error, "cannot join a lake in", directory);
}

/* -- opening -- */

static int lake_lock(struct lake *lake, int lock_fd, struct message *message)
{
	CLEANUP(free_pointer) char *path = path_join(lake->directory, "lock");
	if (!path)
		return -ERR_NO_MEMORY;
	lake->lock_fd = lock_fd >= 0 ? fcntl(lock_fd, F_DUPFD_CLOEXEC, 0)
	                             : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (lake->lock_fd < 0)
		return fail(message, error_system(errno), "cannot open %s: %s", path,
		            strerror(errno));
	char pid[32] = {0};
	if (flock(lake->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK)
			return fail(message, error_system(errno), "cannot lock %s: %s", path,
			            strerror(errno));
		if (read_full(lake->lock_fd, pid, sizeof pid - 1, 0) < 0)
			pid[0] = '\0';
		pid[strcspn(pid, "\n")] = '\0';
		return fail(message, -ERR_BUSY,
		            "the lake %s is in use by process %s; end it or use its mount",
		            lake->directory, pid[0] ? pid : "(unknown)");
	}
	int length = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
	if (ftruncate(lake->lock_fd, 0) < 0)
		return fail(message, error_system(errno), "cannot write %s: %s", path,
		            strerror(errno));
	int error = write_full(lake->lock_fd, pid, (size_t)length, 0);
	return error < 0 ? fail(message, error, "cannot write %s: %s", path, error_text(error)) : 0;
}

static int open_store(struct lake *lake, struct message *message)
{
	char lake_id[33];
	int error = object_store_open(lake->config.store_url, false, &lake->store, message);
	if (error == -ERR_NOT_FOUND)
		return fail(message, -ERR_STORE_AWAY,
		            "the store %s is not there; bring it back (is its disk mounted?) and "
		            "try again",
		            lake->config.store_url);
	if (error < 0)
		return error;
	/* The follower looks at branches in use once an interval. Who never follows asks. */
	if (lake->config.refresh_ms > 0)
		error = known_refs_attach(lake->store, KNOWN_INTERVALS * lake->config.refresh_ms);
	if (error < 0)
		return fail(message, error, "out of memory");
	error = store_object_read(lake->store, lake->config.store_url, lake_id, message);
	if (error == -ERR_NO_LAKE)
		return fail(message, -ERR_STORE_AWAY,
		            "the store %s does not hold this lake any more; bring it back and try "
		            "again",
		            lake->config.store_url);
	if (!error && strcmp(lake_id, lake->config.lake_id) != 0)
		return fail(message, -ERR_REFUSED,
		            "%s holds another lake (%s) than %s belongs to (%s)",
		            lake->config.store_url, lake_id, lake->directory, lake->config.lake_id);
	return error;
}

static int open_local(struct lake *lake, const struct lake_legacy *legacy, struct message *message)
{
	static const char *const tables[] = {"records", "commits"};
	CLEANUP(free_pointer) char *index = path_join(lake->directory, "index");
	CLEANUP(free_pointer) char *state = path_join(lake->directory, "state");
	CLEANUP(free_pointer) char *cache = path_join(lake->directory, "cache");
	CLEANUP(free_pointer) char *staging = path_join(lake->directory, "staging");
	if (!index || !state || !cache || !staging)
		return -ERR_NO_MEMORY;
	struct kv_options kv_options = {
	        .tables = tables, .table_count = ARRAY_SIZE(tables), .loseable = true};
	int error = kv_open(index, &kv_options, &lake->index, message);
	if (!error)
		error = state_open(state, &lake->state, message);
	if (!error && legacy->state_opened)
		legacy->state_opened(legacy->context, lake->state);
	if (!error)
		error = odb_new(lake->store, &(struct odb_options){.index = lake->index},
		                &lake->odb);
	if (!error)
		error = history_new(lake->odb, lake->index, &lake->history);
	if (!error)
		error = cache_open(
		        cache, lake->odb,
		        &(struct cache_options){.bytes_max = lake->config.cache_bytes_max,
		                                .verify_bytes_max = lake->config.verify_bytes_max},
		        &lake->cache, message);
	if (error < 0)
		return error;
	return worktrees_open(
	        &(struct worktrees_options){.state = lake->state,
	                                    .odb = lake->odb,
	                                    .history = lake->history,
	                                    .cache = lake->cache,
	                                    .staging_directory = staging,
	                                    .inherited = legacy->lock_fd >= 0,
	                                    .copy_up_bytes_max = lake->config.copy_up_bytes_max,
	                                    .refresh_ms = lake->config.refresh_ms,
	                                    .tables = &table_formats},
	        &lake->worktrees, message);
}

static int open_webhooks(struct lake *lake)
{
	CLEANUP(free_pointer) char *spool = path_join(lake->directory, "webhooks");
	const struct webhooks_options options = {.directory = spool,
	                                         .lake_id = lake->config.lake_id};
	return spool ? webhooks_open(&options, &lake->webhooks) : -ERR_NO_MEMORY;
}

int lake_open(const char *directory, struct lake **ret_lake, struct message *message)
{
	const struct lake_legacy nothing = {.lock_fd = -1};
	return lake_inherit(directory, &nothing, ret_lake, message);
}

int lake_inherit(const char *directory, const struct lake_legacy *legacy, struct lake **ret_lake,
                 struct message *message)
{
	struct lake *lake = calloc(1, sizeof *lake);
	if (!lake)
		return fail(message, -ERR_NO_MEMORY, "out of memory");
	lake->lock_fd = -1;
	lake->directory = realpath(directory, NULL);
	int error;
	if (!lake->directory && errno != ENOENT && errno != ENOTDIR)
		error = fail(message, error_system(errno), "cannot open the lake %s: %s", directory,
		             strerror(errno));
	else if (!lake->directory)
		error = fail(
		        message, -ERR_NO_LAKE,
		        "no lake in %s; `lakectl init DIR` makes one, --lake DIR names another",
		        directory);
	else
		error = config_read(lake->directory, &lake->config, message);
	if (!error)
		error = lake_lock(lake, legacy->lock_fd, message);
	if (!error)
		error = open_store(lake, message);
	if (!error)
		error = open_local(lake, legacy, message);
	if (!error)
		error = open_webhooks(lake);
	if (error < 0) {
		lake_close(lake);
		return say_something(message, error, "cannot open the lake", directory);
	}
	*ret_lake = lake;
	return 0;
}

void lake_close(struct lake *lake)
{
	if (!lake)
		return;
	webhooks_close(lake->webhooks);
	worktrees_close(lake->worktrees);
	cache_close(lake->cache);
	history_free(lake->history);
	odb_free(lake->odb);
	state_close(lake->state);
	kv_close(lake->index);
	object_store_free(lake->store);
	if (lake->lock_fd >= 0)
		close(lake->lock_fd);
	lake_config_release(&lake->config);
	free(lake->directory);
	free(lake);
}
