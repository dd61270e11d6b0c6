/* What test_faults.c makes fail: lakes, and steps on them. */
#ifndef TESTS_UNIT_FAULTS_SCENARIOS_H
#define TESTS_UNIT_FAULTS_SCENARIOS_H

static char large_text[400001]; /* does not compress, several chunks */

static int step_forget_cache(struct world *world, const void *argument)
{
	char path[128];
	fault_off++;
	snprintf(path, sizeof(path), "%s/cache", lake_path);
	remove_tree(AT_FDCWD, path);
	snprintf(path, sizeof(path), "%s/index", lake_path);
	remove_tree(AT_FDCWD, path);
	fault_off--;
	return 0;
}

/* -- making lakes; nothing fails -- */

static void do_step(struct world *world, step_fn *step, const void *argument)
{
	must(step(world, argument), argument ? argument : "a step", &world->message);
}

static void make_file(struct world *world, const char *path, const char *text)
{
	const struct bytes_step piece = {.path = path, .text = text};
	do_step(world, step_create, path);
	must(step_write(world, &piece), path, &world->message);
}

static void run(struct world *world, const char *command)
{
	must(step_command(world, command), command, &world->message);
}

static void prepare_lake(struct world *world)
{
	uint64_t seed = 1;
	for (size_t i = 0; i + 1 < sizeof(large_text); i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		large_text[i] = (char)(33 + (seed >> 33) % 90);
	}
	must(lake_init(world->directory, NULL, "test@host", &world->message), "init",
	     &world->message);
	do_step(world, step_open, NULL);
	do_step(world, step_mkdir, "main/d");
	make_file(world, "main/d/small", "small\n");
	make_file(world, "main/d/large", large_text);
	make_file(world, "main/gone", "to be removed\n");
	must(step_xattr(world, &(struct xattr_step){"main/d/small", "user.a", "1"}), "xattr",
	     &world->message);
	run(world, "{'command':'commit','branch':'main','message':'base'}");
}

static void prepare_changes(struct world *world)
{
	prepare_lake(world);
	make_file(world, "main/new", "new\n");
	make_file(world, "main/d/new", large_text + 1000);
	must(step_write(world, &(struct bytes_step){"main/d/large", "middle", 200000, false}),
	     "write", &world->message);
	do_step(world, step_unlink, "main/gone");
}

/* main and dev apart, with a conflict at d/both on `other`. */
static void prepare_branches(struct world *world)
{
	prepare_lake(world);
	run(world, "{'command':'branch','action':'create','name':'dev','revision':'main'}");
	run(world, "{'command':'branch','action':'create','name':'other','revision':'main'}");
	make_file(world, "dev/dev", "dev\n");
	make_file(world, "dev/d/both", "theirs\n");
	run(world, "{'command':'commit','branch':'dev','message':'on dev'}");
	make_file(world, "other/d/both", "ours\n");
	run(world, "{'command':'commit','branch':'other','message':'on other'}");
	make_file(world, "main/main", "main\n");
	run(world, "{'command':'commit','branch':'main','message':'on main'}");
	make_file(world, "main/uncommitted", "uncommitted\n");
}

static void prepare_protected(struct world *world)
{
	prepare_branches(world);
	run(world, "{'command':'commit','branch':'main','message':'all of it'}");
	run(world, "{'command':'protect','branch':'main','no_direct_writes':true}");
}

static void prepare_webhook(struct world *world)
{
	prepare_lake(world);
	run(world, "{'command':'webhook','action':'add','branch':'main','name':'away','url':"
	           "'http://127.0.0.1:9/','events':['committed']}");
	make_file(world, "main/new", "new\n");
}

static void prepare_small_cache(struct world *world)
{
	prepare_lake(world);
	make_file(world, "main/d/second", large_text + 5);
	run(world, "{'command':'commit','branch':'main','message':'second'}");
	char path[128];
	snprintf(path, sizeof(path), "%s/lake.json", lake_path);
	shell("sed -i 's/\"cache_bytes_max\":[^,]*[0-9]/\"cache_bytes_max\": 500000/' '%s'", path);
}

/* -- scenarios -- */

#define OPEN \
	{ \
		step_open, NULL, NULL \
	}
#define CLOSE \
	{ \
		step_close, NULL, NULL \
	}
#define COMMAND(text) \
	{ \
		step_command, text, NULL \
	}
#define REFUSED(text) \
	{ \
		step_command, text, "refused in any case" \
	}
#define WRITE(...) \
	{ \
		step_write, &(const struct bytes_step){__VA_ARGS__}, NULL \
	}
#define RENAME(...) \
	{ \
		step_rename, &(const struct pair){__VA_ARGS__}, NULL \
	}

static const struct scenario scenarios[] = {
        {"init", NULL, {{step_init, NULL, NULL}}},
        {"open", prepare_changes, {OPEN, CLOSE, {step_forget_cache, NULL, NULL}, OPEN, CLOSE}},
        {"clone", prepare_lake, {{step_clone, NULL, NULL}}},
        {"files",
         prepare_lake,
         {OPEN,
          {step_create, "main/file", NULL},
          WRITE("main/file", "written\n", 0, true),
          WRITE("main/d/large", "middle", 200000, false),
          WRITE("main/d/small", "appended\n", 6, false),
          {step_mkdir, "main/e", NULL},
          {step_symlink, "main/e/symlink", NULL},
          {step_link, &(const struct pair){"main/file", "main/e/link", 0}, NULL},
          RENAME("main/file", "main/d/small", 0),
          RENAME("main/e", "main/d/e", 0),
          RENAME("main/gone", "main/d", RENAME_EXCHANGE),
          {step_read, "main/gone/large", NULL},
          CLOSE}},
        {"attributes",
         prepare_lake,
         {OPEN,
          {step_setattr,
           &(const struct change_step){"main/d/small", {.which = VFS_MODE, .mode = 0600}}, NULL},
          {step_setattr,
           &(const struct change_step){"main/d/large", {.which = VFS_SIZE, .size = 150000}}, NULL},
          {step_setattr,
           &(const struct change_step){"main/d/large", {.which = VFS_SIZE, .size = 600000}}, NULL},
          {step_xattr, &(const struct xattr_step){"main/d/large", "user.b", "2"}, NULL},
          {step_xattr, &(const struct xattr_step){"main/d/small", "user.a", NULL}, NULL},
          {step_unlink, "main/gone", NULL},
          {step_mkdir, "main/empty", NULL},
          {step_rmdir, "main/empty", NULL},
          {step_sync_names, NULL, NULL},
          CLOSE}},
        {"commit",
         prepare_changes,
         {OPEN,
          COMMAND("{'command':'status','branch':'main'}"),
          COMMAND("{'command':'commit','branch':'main','message':'a part','paths':['new']}"),
          COMMAND("{'command':'commit','branch':'main','message':'the rest'}"),
          {step_create, "main/more", NULL},
          COMMAND("{'command':'commit','branch':'main','message':'more'}"),
          CLOSE}},
        {"refs",
         prepare_branches,
         {OPEN, COMMAND("{'command':'branch','action':'create','name':'new','revision':'main~1'}"),
          COMMAND("{'command':'branch','action':'rename','name':'main','to':'renamed'}"),
          COMMAND("{'command':'branch','action':'delete','name':'dev'}"),
          COMMAND("{'command':'undo','branch':'dev'}"),
          COMMAND("{'command':'tag','action':'create','name':'v1','revision':'other'}"),
          COMMAND("{'command':'tag','action':'delete','name':'v1'}"), CLOSE}},
        {"merge",
         prepare_branches,
         {OPEN, REFUSED("{'command':'merge','source':'dev','target':'other'}"),
          COMMAND("{'command':'merge','source':'dev','target':'main'}"),
          COMMAND("{'command':'merge','source':'dev','target':'other','take':['source:d']}"),
          COMMAND("{'command':'undo','branch':'main'}"),
          COMMAND("{'command':'cherry-pick','revision':'dev','branch':'main'}"), CLOSE}},
        {"back",
         prepare_branches,
         {OPEN, COMMAND("{'command':'revert','revision':'main','branch':'main'}"),
          COMMAND("{'command':'restore','branch':'main','from':'dev','paths':['d']}"),
          COMMAND("{'command':'restore','branch':'main','paths':['d','uncommitted']}"),
          COMMAND("{'command':'reset','branch':'main','revision':'main~2'}"), CLOSE}},
        {"publish",
         prepare_protected,
         {OPEN, COMMAND("{'command':'publish','source':'dev'}"),
          COMMAND("{'command':'publish','revision':'main'}"), CLOSE}},
        {"rules",
         prepare_lake,
         {OPEN,
          COMMAND("{'command':'audit','action':'add','branch':'main','name':'one','program':['/"
                  "bin/true']}"),
          COMMAND("{'command':'webhook','action':'add','branch':'main','name':'two','url':'http://"
                  "127.0.0.1:9/'}"),
          COMMAND("{'command':'protect','branch':'main','no_direct_writes':true}"),
          COMMAND("{'command':'unprotect','branch':'main'}"),
          COMMAND("{'command':'audit','action':'remove','branch':'main','name':'one'}"), CLOSE}},
        {"webhook",
         prepare_webhook,
         {OPEN, COMMAND("{'command':'commit','branch':'main','message':'told'}"), CLOSE, OPEN,
          CLOSE}},
        {"fetch",
         prepare_small_cache,
         {{step_forget_cache, NULL, NULL},
          OPEN,
          {step_read, "main/d/large", NULL},
          {step_read, "main/d/second", NULL},
          {step_read, "main/d/small", NULL},
          COMMAND("{'command':'warm','places':[{'revision':'main','path':'d/small'}]}"),
          CLOSE}},
        {"look",
         prepare_branches,
         {OPEN, COMMAND("{'command':'log','revision':'main'}"),
          COMMAND("{'command':'diff','from':'main','to':'dev'}"),
          COMMAND("{'command':'diff','from':'main','branch':'main'}"),
          COMMAND("{'command':'show','revision':'dev'}"),
          COMMAND("{'command':'annotate','revision':'main','path':'d'}"),
          COMMAND("{'command':'ls','revision':'main','recursive':true}"),
          COMMAND("{'command':'du','revision':'main'}"),
          COMMAND("{'command':'cat','revision':'main','path':'d/small'}"),
          COMMAND("{'command':'reflog','branch':'main'}"),
          COMMAND("{'command':'audit','action':'log'}"), CLOSE}},
        {"care",
         prepare_branches,
         {OPEN, COMMAND("{'command':'branch','action':'delete','name':'dev'}"),
          COMMAND("{'command':'gc','grace_seconds':0,'alone':true,'deleted_days':0}"),
          COMMAND("{'command':'gc','grace_seconds':0,'alone':true,'deleted_days':0}"),
          COMMAND("{'command':'fsck'}"), COMMAND("{'command':'doctor'}"),
          COMMAND("{'command':'stats'}"), COMMAND("{'command':'refresh','branch':'main'}"), CLOSE}},
};

#endif
