/*
 * kv — the owner of LMDB. Hides: LMDB's handles, error codes and thread rules; when its map may
 * grow; how an environment comes into being, is checked, is wiped and is opened again.
 *
 * State of a kv: `open_count` transactions are open, at most one of them the writer (`writing`);
 * while `remapping` none is, and none begins. The environment is replaced only then.
 */
#include "store/kv.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <lmdb.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "store/kv_check.h"
#include "store/thread.h"

#define MAP_BYTES_DEFAULT ((uint64_t)64 << 20)
#define MAP_UNIT ((uint64_t)1 << 20)
#define GROW_WAIT_MS 5000  /* a writer for the last reader, before the map may grow */
#define POLITE_WAIT_MS 100 /* a reader for a writer that wants the map to grow */
#define SPACE_PROBE_BYTES (1 << 20)
#define SEAL_BYTES 8
#define SEAL_TABLE "~sealed" /* is there, empty, once all values are sealed */

_Static_assert(KV_READERS_MAX > 0, "LMDB's default is 126");

enum request { REQUEST_NONE, REQUEST_BEGIN, REQUEST_COMMIT, REQUEST_ABORT, REQUEST_QUIT };

struct kv {
	char *directory;
	bool loseable;
	bool sealed;
	size_t table_count;
	char *names[KV_TABLES_MAX];
	uint64_t map_bytes_initial;
	MDB_env *env; /* replaced only while `remapping` */
	MDB_dbi tables[KV_TABLES_MAX];

	pthread_mutex_t lock; /* guards everything below; a leaf */
	pthread_cond_t gate;  /* a transaction ended, or remapping did */
	unsigned open_count;
	bool writing;
	bool remapping;
	bool grow_wanted; /* a writer waits for open_count to become 0 */
	bool full;        /* a transaction met the end of the map: double it */
	bool broken;      /* LMDB gave up on the environment (a meta page could not be written) */
	uint64_t map_bytes;
	uint64_t used_bytes;

	/* The thread that begins and ends write transactions (see kv.h). */
	pthread_t worker;
	bool worker_runs;
	pthread_cond_t work;
	pthread_cond_t done;
	enum request request;
	MDB_txn *request_txn;
	int request_result;
};

struct kv_txn {
	struct kv *kv;
	MDB_txn *txn;
	bool write;
	int failed;       /* the first error of a write in it */
	uint64_t version; /* grows with every write: a cursor from before must seek again */
	unsigned cursors; /* open ones */
};

struct kv_cursor {
	struct kv_txn *txn;
	unsigned table;
	MDB_cursor *cursor;
	uint64_t version;
	bool positioned; /* `cursor` stands on `key`, as of `version` */
	bool yielded;    /* `key` was returned already: go on after it */
	size_t key_length;
	uint8_t key[KV_KEY_MAX];
};

static int error_of(int code)
{
	switch (code) {
	case MDB_SUCCESS:
		return 0;
	case MDB_NOTFOUND:
		return -ERR_NOT_FOUND;
	case MDB_MAP_FULL:
	case MDB_TXN_FULL:
		return -ERR_TOO_LARGE;
	case MDB_READERS_FULL:
		return -ERR_BUSY;
	case MDB_VERSION_MISMATCH:
		return -ERR_VERSION;
	case MDB_BAD_VALSIZE:
		return -ERR_INVALID;
	default:
		/* LMDB's own codes that are left all mean that it no longer trusts its file. */
		return code > 0 ? error_system(code) : -ERR_CORRUPT;
	}
}

/* -- files of an environment -- */

static int path_of(const struct kv *kv, const char *name, char ret_path[PATH_MAX])
{
	int n = snprintf(ret_path, PATH_MAX, "%s/%s", kv->directory, name);
	return n < 0 || n >= PATH_MAX ? error_system(ENAMETOOLONG) : 0;
}

static int remove_file(const struct kv *kv, const char *name)
{
	char path[PATH_MAX];
	int r = path_of(kv, name, path);
	if (r == 0 && unlink(path) < 0 && errno != ENOENT)
		r = error_system(errno);
	return r;
}

static int sync_directory(const struct kv *kv)
{
	CLEANUP(close_descriptor)
	int fd = open(kv->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? error_system(errno) : 0;
}

static int wipe(const struct kv *kv)
{
	int r = remove_file(kv, "data.mdb");
	if (r == 0)
		r = remove_file(kv, "lock.mdb");
	return r == 0 ? sync_directory(kv) : r;
}

/*
 * The stamp of a loseable environment: "clean", or the boot id under which it was last opened.
 * Unsynced pages reach the disk in any order, so after another boot the file is good only when the
 * stamp says clean; and no page may be written before the stamp ceased to say so.
 */
#define STAMP_CLEAN "clean\n"

static int write_stamp(const struct kv *kv, const char *text)
{
	char path[PATH_MAX];
	int r = path_of(kv, "stamp", path);
	return r < 0 ? r : write_file_durably(AT_FDCWD, path, text, strlen(text));
}

static int settle_stamp(const struct kv *kv)
{
	struct id id;
	if (boot_id(&id) < 0) /* unknown: a new one each time, so that only "clean" is trusted */
		random_bytes(id.bytes, sizeof(id.bytes));
	char boot[ID_HEX + 2];
	id_to_hex(&id, boot);
	memcpy(boot + ID_HEX, "\n", 2);

	char path[PATH_MAX];
	CLEANUP(buffer_release) struct buffer stamp = {0};
	int r = path_of(kv, "stamp", path);
	if (r == 0)
		r = read_file(AT_FDCWD, path, 256, &stamp);
	if (r == -ERR_NO_MEMORY)
		return r;
	if (r == 0 && stamp.length == strlen(boot) && memcmp(stamp.data, boot, stamp.length) == 0)
		return 0;
	bool clean = r == 0 && stamp.length == strlen(STAMP_CLEAN) &&
	             memcmp(stamp.data, STAMP_CLEAN, stamp.length) == 0;
	r = clean ? 0 : wipe(kv);
	return r < 0 ? r : write_stamp(kv, boot);
}

/* LMDB makes a file in place, and a power cut would leave half of one, which is damage. So it is
 * made beside, synced, and renamed. */
static int make_environment(const struct kv *kv)
{
	char fresh[PATH_MAX], final[PATH_MAX];
	int r = path_of(kv, "new.mdb", fresh);
	if (r == 0)
		r = path_of(kv, "data.mdb", final);
	if (r == 0)
		r = remove_file(kv, "new.mdb");
	if (r < 0)
		return r;
	MDB_env *env;
	int code = mdb_env_create(&env);
	if (code != 0)
		return error_of(code);
	code = mdb_env_set_mapsize(env, MAP_UNIT);
	if (code == 0)
		code = mdb_env_open(env, fresh, MDB_NOSUBDIR | MDB_NOLOCK, 0600);
	if (code == 0)
		code = mdb_env_sync(env, 1);
	mdb_env_close(env);
	if (code != 0 || rename(fresh, final) < 0) {
		r = code != 0 ? error_of(code) : error_system(errno);
		remove_file(kv, "new.mdb");
		return r;
	}
	return sync_directory(kv);
}

/* Leaves a data.mdb that passed the check. */
static int settle_file(const struct kv *kv, struct kv_check *ret_check, struct message *message)
{
	char path[PATH_MAX];
	int r = path_of(kv, "data.mdb", path);
	if (r < 0)
		return fail(message, r, "%s: %s", kv->directory, error_text(r));
	r = kv_check_file(path, ret_check, message);
	if (kv->loseable && (r == -ERR_CORRUPT || r == -ERR_VERSION)) {
		r = wipe(kv);
		if (r == 0)
			r = -ERR_NOT_FOUND;
	}
	if (r == -ERR_NOT_FOUND) {
		r = make_environment(kv);
		if (r < 0)
			return fail(message, r, "%s: cannot be made: %s", path, error_text(r));
		return kv_check_file(path, ret_check, message);
	}
	if (r == -ERR_CORRUPT)
		return fail_context(message, r,
		                    "local state is damaged; restore the file from a copy, or move "
		                    "it away to start without what it holds");
	return r;
}

/* -- seals: each step is a bijection of the hash so far, so one changed byte always shows -- */

static uint64_t seal_step(uint64_t hash, uint64_t word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15;
	return hash ^ hash >> 29;
}

static uint64_t seal_bytes(uint64_t hash, const void *bytes, size_t length)
{
	const uint8_t *at = bytes;
	hash = seal_step(hash, length);
	for (; length >= 8; at += 8, length -= 8)
		hash = seal_step(hash, load_u64(at));
	uint8_t rest[8] = {0};
	memcpy(rest, at, length);
	return seal_step(hash, load_u64(rest));
}

static uint64_t seal_of(const struct kv *kv, unsigned table, const MDB_val *key, const void *value,
                        size_t length)
{
	uint64_t hash = seal_bytes(0, kv->names[table], strlen(kv->names[table]));
	hash = seal_bytes(hash, key->mv_data, key->mv_size);
	return seal_bytes(hash, value, length);
}

/* Without its seal, or MDB_CORRUPTED. */
static int unseal(const struct kv *kv, unsigned table, const MDB_val *key, MDB_val *value)
{
	if (!kv->sealed)
		return 0;
	if (value->mv_size < SEAL_BYTES)
		return MDB_CORRUPTED;
	value->mv_size -= SEAL_BYTES;
	uint64_t seal = load_u64((const uint8_t *)value->mv_data + value->mv_size);
	return seal == seal_of(kv, table, key, value->mv_data, value->mv_size) ? 0 : MDB_CORRUPTED;
}

static int put(const struct kv *kv, MDB_txn *txn, unsigned table, MDB_val *key, const void *value,
               size_t length)
{
	MDB_val data = {.mv_data = (void *)value, .mv_size = length};
	if (!kv->sealed)
		return mdb_put(txn, kv->tables[table], key, &data, 0);
	data.mv_size += SEAL_BYTES;
	int code = mdb_put(txn, kv->tables[table], key, &data, MDB_RESERVE);
	if (code == 0) {
		memcpy(data.mv_data, value, length);
		store_u64((uint8_t *)data.mv_data + length, seal_of(kv, table, key, value, length));
	}
	return code;
}

static int check_seals(const struct kv *kv, MDB_txn *txn, unsigned table)
{
	MDB_cursor *cursor;
	MDB_val key, value;
	int code = mdb_cursor_open(txn, kv->tables[table], &cursor);
	if (code != 0)
		return code;
	do
		code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
	while (code == 0 && (code = unseal(kv, table, &key, &value)) == 0);
	mdb_cursor_close(cursor);
	return code == MDB_NOTFOUND ? 0 : code;
}

/* Values that were put by a version without seals. */
static int add_seals(const struct kv *kv, MDB_txn *txn, unsigned table)
{
	CLEANUP(buffer_release) struct buffer copy = {0};
	MDB_cursor *cursor;
	MDB_val key, value;
	int code = mdb_cursor_open(txn, kv->tables[table], &cursor);
	if (code != 0)
		return code;
	while ((code = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
		size_t key_length = key.mv_size, length = value.mv_size;
		copy.length = 0;
		buffer_append(&copy, key.mv_data, key_length);
		buffer_append(&copy, value.mv_data, length);
		if (buffer_check(&copy) < 0) {
			code = ENOMEM;
			break;
		}
		key = (MDB_val){.mv_data = copy.data, .mv_size = key_length};
		code = put(kv, txn, table, &key, copy.data + key_length, length);
		if (code != 0)
			break;
	}
	mdb_cursor_close(cursor);
	return code == MDB_NOTFOUND ? 0 : code;
}

static int settle_seals(const struct kv *kv, MDB_txn *txn)
{
	MDB_dbi marker;
	int code = mdb_dbi_open(txn, SEAL_TABLE, 0, &marker);
	bool before = code == 0;
	if (code == MDB_NOTFOUND)
		code = mdb_dbi_open(txn, SEAL_TABLE, MDB_CREATE, &marker);
	for (unsigned i = 0; code == 0 && i < kv->table_count; i++)
		code = before ? check_seals(kv, txn, i) : add_seals(kv, txn, i);
	return code;
}

/* -- the environment -- */

static uint64_t map_bytes_for(const struct kv *kv, uint64_t used)
{
	uint64_t bytes = kv->map_bytes_initial;
	while (bytes / 2 < used)
		bytes *= 2;
	return bytes;
}

static bool is_table(const struct kv *kv, const MDB_val *name)
{
	bool found = name->mv_size == strlen(SEAL_TABLE) &&
	             memcmp(name->mv_data, SEAL_TABLE, name->mv_size) == 0;
	for (size_t i = 0; !found && i < kv->table_count; i++)
		found = name->mv_size == strlen(kv->names[i]) &&
		        memcmp(name->mv_data, kv->names[i], name->mv_size) == 0;
	return found;
}

/* A table whose name is damaged would be made anew, empty, as if nothing had ever been in it. */
static int check_names(const struct kv *kv, MDB_txn *txn)
{
	MDB_dbi names;
	MDB_cursor *cursor;
	MDB_val name, value;
	int code = mdb_dbi_open(txn, NULL, 0, &names);
	if (code == 0)
		code = mdb_cursor_open(txn, names, &cursor);
	if (code != 0)
		return code;
	do
		code = mdb_cursor_get(cursor, &name, &value, MDB_NEXT);
	while (code == 0 && is_table(kv, &name));
	mdb_cursor_close(cursor);
	return code == 0 ? MDB_CORRUPTED : code == MDB_NOTFOUND ? 0 : code;
}

static int open_tables(struct kv *kv, MDB_env *env)
{
	MDB_txn *txn;
	int code = mdb_txn_begin(env, NULL, 0, &txn);
	if (code != 0)
		return error_of(code);
	if (kv->sealed)
		code = check_names(kv, txn);
	for (size_t i = 0; code == 0 && i < kv->table_count; i++)
		code = mdb_dbi_open(txn, kv->names[i], MDB_CREATE, &kv->tables[i]);
	if (code == 0 && kv->sealed)
		code = settle_seals(kv, txn);
	if (code != 0) {
		mdb_txn_abort(txn);
		return error_of(code);
	}
	return error_of(mdb_txn_commit(txn));
}

static void measure(struct kv *kv)
{
	MDB_envinfo info;
	mdb_env_info(kv->env, &info);
	kv->map_bytes = info.me_mapsize;
	MDB_stat stat;
	mdb_env_stat(kv->env, &stat);
	kv->used_bytes = (info.me_last_pgno + 1) * stat.ms_psize;
}

static int open_environment(struct kv *kv, struct message *message)
{
	struct kv_check check;
	int r = settle_file(kv, &check, message);
	if (r < 0)
		return r;
	MDB_env *env;
	int code = mdb_env_create(&env);
	if (code != 0)
		return fail(message, error_of(code), "%s: out of memory", kv->directory);
	code = mdb_env_set_maxdbs(env, KV_TABLES_MAX + 1);
	if (code == 0)
		code = mdb_env_set_maxreaders(env, KV_READERS_MAX);
	if (code == 0)
		code = mdb_env_set_mapsize(env, map_bytes_for(kv, check.used_bytes));
	if (code == 0)
		code = mdb_env_open(env, kv->directory, MDB_NOTLS | (kv->loseable ? MDB_NOSYNC : 0),
		                    0600);
	r = code != 0 ? error_of(code) : open_tables(kv, env);
	if (r < 0) {
		mdb_env_close(env);
		if (r == -ERR_CORRUPT)
			return fail(message, r,
			            "%s/data.mdb: a record does not match its checksum: local "
			            "state is damaged; restore the file from a copy, or move it "
			            "away to start without what it holds",
			            kv->directory);
		return fail(message, r, "%s: local state cannot be opened: %s", kv->directory,
		            error_text(r));
	}
	kv->env = env;
	measure(kv);
	return 0;
}

/* -- the worker -- */

static int serve(struct kv *kv, enum request request, MDB_txn **txn)
{
	if (request == REQUEST_BEGIN)
		return mdb_txn_begin(kv->env, NULL, 0, txn);
	if (request == REQUEST_COMMIT)
		return mdb_txn_commit(*txn);
	mdb_txn_abort(*txn);
	return 0;
}

static void *worker_main(void *argument)
{
	struct kv *kv = argument;
	pthread_mutex_lock(&kv->lock);
	for (;;) {
		while (kv->request == REQUEST_NONE)
			pthread_cond_wait(&kv->work, &kv->lock);
		if (kv->request == REQUEST_QUIT)
			break;
		enum request request = kv->request;
		MDB_txn *txn = kv->request_txn;
		pthread_mutex_unlock(&kv->lock);
		int result = serve(kv, request, &txn);
		pthread_mutex_lock(&kv->lock);
		kv->request_txn = txn;
		kv->request_result = result;
		kv->request = REQUEST_NONE;
		pthread_cond_signal(&kv->done);
	}
	pthread_mutex_unlock(&kv->lock);
	return NULL;
}

/* Only who holds `writing` asks, so there is one request at a time. An LMDB code. */
static int ask_worker(struct kv *kv, enum request request, MDB_txn **txn)
{
	pthread_mutex_lock(&kv->lock);
	assert(kv->writing && kv->request == REQUEST_NONE);
	kv->request_txn = *txn;
	kv->request = request;
	pthread_cond_signal(&kv->work);
	while (kv->request != REQUEST_NONE)
		pthread_cond_wait(&kv->done, &kv->lock);
	*txn = kv->request_txn;
	int result = kv->request_result;
	pthread_mutex_unlock(&kv->lock);
	return result;
}

/* -- opening and closing -- */

static void kv_free(struct kv *kv)
{
	if (kv->worker_runs) {
		pthread_mutex_lock(&kv->lock);
		kv->request = REQUEST_QUIT;
		pthread_cond_signal(&kv->work);
		pthread_mutex_unlock(&kv->lock);
		pthread_join(kv->worker, NULL);
	}
	if (kv->env != NULL)
		mdb_env_close(kv->env);
	for (size_t i = 0; i < KV_TABLES_MAX; i++)
		free(kv->names[i]);
	free(kv->directory);
	pthread_cond_destroy(&kv->done);
	pthread_cond_destroy(&kv->work);
	pthread_cond_destroy(&kv->gate);
	pthread_mutex_destroy(&kv->lock);
	free(kv);
}

static void kv_release(struct kv **kv)
{
	if (*kv != NULL)
		kv_free(*kv);
}

static int kv_new(const char *directory, const struct kv_options *options, struct kv **ret_kv)
{
	CLEANUP(kv_release) struct kv *kv = calloc(1, sizeof(*kv));
	if (kv == NULL)
		return -ERR_NO_MEMORY;
	pthread_mutex_init(&kv->lock, NULL);
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&kv->gate, &monotonic);
	pthread_condattr_destroy(&monotonic);
	pthread_cond_init(&kv->work, NULL);
	pthread_cond_init(&kv->done, NULL);
	kv->loseable = options->loseable;
	kv->sealed = options->sealed;
	kv->table_count = options->table_count;
	uint64_t initial = options->map_bytes_initial;
	initial = initial > 0 ? initial : MAP_BYTES_DEFAULT;
	kv->map_bytes_initial = (initial + MAP_UNIT - 1) / MAP_UNIT * MAP_UNIT;
	kv->directory = strdup(directory);
	if (kv->directory == NULL)
		return -ERR_NO_MEMORY;
	for (size_t i = 0; i < options->table_count; i++) {
		kv->names[i] = strdup(options->tables[i]);
		if (kv->names[i] == NULL)
			return -ERR_NO_MEMORY;
	}
	*ret_kv = steal(&kv);
	return 0;
}

int kv_open(const char *directory, const struct kv_options *options, struct kv **ret_kv,
            struct message *message)
{
	assert(options->table_count <= KV_TABLES_MAX);
	CLEANUP(kv_release) struct kv *kv = NULL;
	int r = kv_new(directory, options, &kv);
	if (r == 0)
		r = make_directories(directory, 0700);
	if (r == 0 && kv->loseable)
		r = settle_stamp(kv);
	if (r < 0)
		return fail(message, r, "%s: local state cannot be prepared: %s", directory,
		            error_text(r));
	r = open_environment(kv, message);
	if (r < 0)
		return r;
	r = thread_start(&kv->worker, worker_main, kv);
	if (r != 0)
		return fail(message, r, "%s: cannot start a thread: %s", directory, error_text(r));
	kv->worker_runs = true;
	*ret_kv = steal(&kv);
	return 0;
}

void kv_close(struct kv *kv)
{
	if (kv == NULL)
		return;
	assert(kv->open_count == 0);
	/* Should either step fail, the stamp keeps the boot id: right until the next boot, and
	 * wiped after it. */
	if (kv->loseable && kv->env != NULL && mdb_env_sync(kv->env, 1) == 0)
		write_stamp(kv, STAMP_CLEAN);
	kv_free(kv);
}

/* -- the gate: when transactions may begin, and the map may grow -- */

static bool wait_gate_until(struct kv *kv, int64_t deadline_ms)
{
	struct timespec until = {.tv_sec = deadline_ms / 1000,
	                         .tv_nsec = deadline_ms % 1000 * 1000000};
	return pthread_cond_timedwait(&kv->gate, &kv->lock, &until) == 0;
}

static bool remap_due(const struct kv *kv)
{
	return kv->broken || kv->full || kv->env == NULL || kv->used_bytes > kv->map_bytes / 2;
}

static bool remap_pressing(const struct kv *kv)
{
	return kv->broken || kv->full || kv->env == NULL ||
	       kv->used_bytes > kv->map_bytes - kv->map_bytes / 4;
}

/* Called and returns with the lock held, `remapping` being set: nobody else is inside. */
static int remap(struct kv *kv)
{
	int r = 0;
	uint64_t bytes = map_bytes_for(kv, kv->used_bytes);
	if (kv->full && bytes <= kv->map_bytes)
		bytes = kv->map_bytes * 2;
	bool reopen = kv->broken || kv->env == NULL;
	pthread_mutex_unlock(&kv->lock);
	if (!reopen) {
		r = error_of(mdb_env_set_mapsize(kv->env, bytes));
		/* LMDB unmaps before it maps: after a failure only a fresh start is safe. */
		reopen = r < 0;
	}
	if (reopen) {
		if (kv->env != NULL)
			mdb_env_close(kv->env);
		kv->env = NULL;
		r = open_environment(kv, NULL);
	}
	pthread_mutex_lock(&kv->lock);
	if (r == 0) {
		kv->full = false;
		kv->broken = false;
		measure(kv);
	}
	return r;
}

/* With the lock held. 0 when a transaction may begin. */
static int pass_gate(struct kv *kv, bool write)
{
	int64_t now = clock_monotonic_ms();
	int64_t deadline = now + (write ? GROW_WAIT_MS : POLITE_WAIT_MS);
	for (;;) {
		while (kv->remapping)
			pthread_cond_wait(&kv->gate, &kv->lock);
		if (remap_due(kv) && kv->open_count == 0) {
			kv->remapping = true;
			int r = remap(kv);
			kv->remapping = false;
			pthread_cond_broadcast(&kv->gate);
			return r;
		}
		/* A broken environment serves readers who came before, and nobody new. */
		bool must_wait = write ? remap_pressing(kv) : kv->grow_wanted || kv->broken;
		if (!must_wait)
			return 0;
		if (write)
			kv->grow_wanted = true;
		bool woken = wait_gate_until(kv, deadline);
		if (write)
			kv->grow_wanted = false;
		if (!woken)
			return kv->broken ? -ERR_BUSY : 0;
	}
}

static int enter(struct kv *kv, bool write)
{
	pthread_mutex_lock(&kv->lock);
	while (write && kv->writing)
		pthread_cond_wait(&kv->gate, &kv->lock);
	if (write)
		kv->writing = true;
	int r = pass_gate(kv, write);
	if (r == 0)
		kv->open_count++;
	else if (write)
		kv->writing = false;
	if (r < 0)
		pthread_cond_broadcast(&kv->gate);
	pthread_mutex_unlock(&kv->lock);
	return r;
}

/* `code`: how beginning or ending the transaction went for LMDB. */
static void leave(struct kv *kv, bool write, int code)
{
	pthread_mutex_lock(&kv->lock);
	assert(kv->open_count > 0);
	kv->open_count--;
	if (write) {
		kv->writing = false;
		measure(kv);
	}
	if (code == MDB_PANIC)
		kv->broken = true;
	pthread_cond_broadcast(&kv->gate);
	pthread_mutex_unlock(&kv->lock);
}

/* -- transactions -- */

static int begin_once(struct kv *kv, struct kv_txn *txn)
{
	int r = enter(kv, txn->write);
	if (r < 0)
		return r;
	int code = txn->write ? ask_worker(kv, REQUEST_BEGIN, &txn->txn)
	                      : mdb_txn_begin(kv->env, NULL, MDB_RDONLY, &txn->txn);
	if (code != 0)
		leave(kv, txn->write, code);
	return error_of(code);
}

int kv_begin(struct kv *kv, bool write, struct kv_txn **ret_txn)
{
	CLEANUP(free_pointer) struct kv_txn *txn = calloc(1, sizeof(*txn));
	if (txn == NULL)
		return -ERR_NO_MEMORY;
	txn->kv = kv;
	txn->write = write;
	int r = begin_once(kv, txn);
	/* After a meta page could not be written LMDB refuses everything, and says so only now.
	 * The environment was marked broken: entering again opens it anew. */
	if (r == -ERR_CORRUPT)
		r = begin_once(kv, txn);
	if (r < 0)
		return r;
	*ret_txn = steal(&txn);
	return 0;
}

/* LMDB answers a partial write of pages with EIO: ask the file system what it meant. */
static bool disk_is_full(const struct kv *kv)
{
	CLEANUP(close_descriptor)
	int fd = open(kv->directory, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd >= 0) {
		int code = posix_fallocate(fd, 0, SPACE_PROBE_BYTES);
		return code == ENOSPC || code == EDQUOT;
	}
	struct statvfs space;
	return statvfs(kv->directory, &space) == 0 &&
	       (uint64_t)space.f_bavail * space.f_frsize < SPACE_PROBE_BYTES;
}

static int write_error(struct kv *kv, int code)
{
	if (code == MDB_MAP_FULL) {
		pthread_mutex_lock(&kv->lock);
		kv->full = true;
		pthread_mutex_unlock(&kv->lock);
	}
	if (code == EIO && disk_is_full(kv))
		return -ERR_NO_SPACE;
	return error_of(code);
}

void kv_abort(struct kv_txn *txn)
{
	if (txn == NULL)
		return;
	assert(txn->cursors == 0);
	if (txn->write)
		ask_worker(txn->kv, REQUEST_ABORT, &txn->txn);
	else
		mdb_txn_abort(txn->txn);
	leave(txn->kv, txn->write, 0);
	free(txn);
}

int kv_commit(struct kv_txn *txn)
{
	int r = txn->failed;
	if (!txn->write || r < 0) {
		kv_abort(txn);
		return r;
	}
	assert(txn->cursors == 0);
	struct kv *kv = txn->kv;
	int code = ask_worker(kv, REQUEST_COMMIT, &txn->txn);
	r = write_error(kv, code);
	leave(kv, true, 0);
	free(txn);
	return r;
}

/* -- access -- */

static int check_access(const struct kv_txn *txn, unsigned table, size_t key_length)
{
	assert(table < txn->kv->table_count);
	return key_length == 0 || key_length > KV_KEY_MAX ? -ERR_INVALID : 0;
}

static MDB_val val_of(const void *data, size_t length)
{
	return (MDB_val){.mv_data = (void *)data, .mv_size = length};
}

/* After a failed write LMDB allows nothing but abort; remember why for kv_commit. */
static int wrote(struct kv_txn *txn, int code)
{
	txn->version++;
	if (code == 0 || code == MDB_NOTFOUND)
		return error_of(code);
	int r = txn->failed < 0 ? txn->failed : write_error(txn->kv, code);
	txn->failed = r;
	return r;
}

int kv_get(struct kv_txn *txn, unsigned table, const void *key, size_t key_length,
           struct span *ret_value)
{
	int r = check_access(txn, table, key_length);
	if (r < 0)
		return r;
	MDB_val name = val_of(key, key_length), value;
	r = error_of(mdb_get(txn->txn, txn->kv->tables[table], &name, &value));
	if (r == 0)
		r = error_of(unseal(txn->kv, table, &name, &value));
	if (r == 0)
		*ret_value = (struct span){.data = value.mv_data, .length = value.mv_size};
	return r;
}

int kv_put(struct kv_txn *txn, unsigned table, const void *key, size_t key_length,
           const void *value, size_t value_length)
{
	assert(txn->write);
	int r = check_access(txn, table, key_length);
	if (r < 0)
		return r;
	if (value_length > KV_VALUE_MAX)
		return -ERR_TOO_LARGE;
	MDB_val name = val_of(key, key_length);
	return wrote(txn, put(txn->kv, txn->txn, table, &name, value, value_length));
}

int kv_delete(struct kv_txn *txn, unsigned table, const void *key, size_t key_length)
{
	assert(txn->write);
	int r = check_access(txn, table, key_length);
	if (r < 0)
		return r;
	MDB_val name = val_of(key, key_length);
	return wrote(txn, mdb_del(txn->txn, txn->kv->tables[table], &name, NULL));
}

int kv_count(struct kv_txn *txn, unsigned table, uint64_t *ret_count)
{
	assert(table < txn->kv->table_count);
	MDB_stat stat;
	int r = error_of(mdb_stat(txn->txn, txn->kv->tables[table], &stat));
	if (r == 0)
		*ret_count = stat.ms_entries;
	return r;
}

int kv_clear(struct kv_txn *txn, unsigned table)
{
	assert(txn->write && table < txn->kv->table_count);
	return wrote(txn, mdb_drop(txn->txn, txn->kv->tables[table], 0));
}

/* -- cursors -- */

int kv_seek(struct kv_txn *txn, unsigned table, const void *key, size_t key_length,
            struct kv_cursor **ret_cursor)
{
	assert(table < txn->kv->table_count);
	if (key_length > KV_KEY_MAX)
		return -ERR_INVALID;
	CLEANUP(free_pointer) struct kv_cursor *cursor = malloc(sizeof(*cursor));
	if (cursor == NULL)
		return -ERR_NO_MEMORY;
	*cursor = (struct kv_cursor){.txn = txn, .table = table, .key_length = key_length};
	if (key_length > 0)
		memcpy(cursor->key, key, key_length);
	int r = error_of(mdb_cursor_open(txn->txn, txn->kv->tables[table], &cursor->cursor));
	if (r < 0)
		return r;
	txn->cursors++;
	*ret_cursor = steal(&cursor);
	return 0;
}

static int move(struct kv_cursor *cursor, MDB_val *key, MDB_val *value)
{
	MDB_cursor *inner = cursor->cursor;
	if (cursor->positioned && cursor->version == cursor->txn->version)
		return mdb_cursor_get(inner, key, value, MDB_NEXT);
	if (cursor->key_length == 0)
		return mdb_cursor_get(inner, key, value, MDB_FIRST);
	*key = val_of(cursor->key, cursor->key_length);
	int code = mdb_cursor_get(inner, key, value, MDB_SET_RANGE);
	if (code == 0 && cursor->yielded && key->mv_size == cursor->key_length &&
	    memcmp(key->mv_data, cursor->key, cursor->key_length) == 0)
		code = mdb_cursor_get(inner, key, value, MDB_NEXT);
	return code;
}

int kv_next(struct kv_cursor *cursor, struct span *ret_key, struct span *ret_value)
{
	MDB_val key, value;
	int code = move(cursor, &key, &value);
	if (code == 0)
		code = unseal(cursor->txn->kv, cursor->table, &key, &value);
	cursor->positioned = code == 0;
	if (code != 0)
		return error_of(code);
	cursor->version = cursor->txn->version;
	cursor->yielded = true;
	cursor->key_length = key.mv_size; /* at most KV_KEY_MAX: the check and kv_put see to it */
	memcpy(cursor->key, key.mv_data, key.mv_size);
	*ret_key = (struct span){.data = key.mv_data, .length = key.mv_size};
	*ret_value = (struct span){.data = value.mv_data, .length = value.mv_size};
	return 0;
}

void kv_cursor_free(struct kv_cursor *cursor)
{
	if (cursor == NULL)
		return;
	assert(cursor->txn->cursors > 0);
	cursor->txn->cursors--;
	mdb_cursor_close(cursor->cursor);
	free(cursor);
}

int kv_stats(struct kv *kv, struct kv_stats *ret_stats)
{
	pthread_mutex_lock(&kv->lock);
	*ret_stats = (struct kv_stats){.map_bytes = kv->map_bytes, .used_bytes = kv->used_bytes};
	pthread_mutex_unlock(&kv->lock);
	return 0;
}
