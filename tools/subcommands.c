/*
 * subcommands — the table of lakectl's commands: words, options and help texts.
 */
#include "tools/subcommands.h"

#define REVISION_TEXT \
	"A REV is a branch, a tag, a commit id or a unique prefix of it (6 digits or more),\n" \
	"BRANCH@TIME (ISO time), and any of these followed by ~N (Nth ancestor) or ^N (Nth " \
	"parent)."

/* Parts of an S3 store's URL, as options. */
#define STORE_OPTIONS \
	{0, "endpoint-url", "endpoint", OPTION_STRING, "URL", "an S3 engine other than AWS"}, \
	        {0, "region", "region", OPTION_STRING, "NAME", "the S3 bucket's region"}, \
	        {0, "ca-file", "ca-file", OPTION_STRING, "FILE", "certificates to trust"}, \
	{ \
		0, "profile", "profile", OPTION_STRING, "NAME", "of the shared AWS configuration" \
	}

const struct subcommand subcommands[] = {
        {.name = "init",
         .usage = "[--store URL] [--endpoint-url URL] [--region NAME] [--ca-file FILE] [DIR]",
         .summary = "make a new lake",
         .text = "DIR is the lake's directory on this host (default: --lake, $LAKE_DIR, or the\n"
                 "default lake). The store holds all data; without --store it is DIR/store.",
         .words = {{"directory", WORD_OPTIONAL}},
         .options = {{0, "store", "store", OPTION_STRING, "URL",
                      "file:///path or s3://bucket/prefix"},
                     STORE_OPTIONS}},
        {.name = "clone",
         .usage = "URL [--endpoint-url URL] [--region NAME] [--ca-file FILE] [DIR]",
         .summary = "join an existing lake by its store",
         .words = {{"url", WORD_REQUIRED}, {"directory", WORD_OPTIONAL}},
         .options = {STORE_OPTIONS}},
        {.name = "mount",
         .usage = "[MOUNTPOINT] [--foreground]",
         .summary = "start laked and return when it answers",
         .text = "MOUNTPOINT defaults to $LAKE_MOUNT, then /lake. laked writes its log to "
                 "laked.log\n"
                 "in the lake's directory.",
         .words = {{"mountpoint", WORD_OPTIONAL}},
         .options = {{'f', "foreground", "foreground", OPTION_FLAG, NULL,
                      "stay; log to standard error"},
                     {0, "no-passthrough", "no_passthrough", OPTION_FLAG, NULL,
                      "copy all data through the daemon"},
                     {0, "no-supervisor", "no_supervisor", OPTION_FLAG, NULL,
                      "when laked dies the mount is dead"},
                     {0, "restarts", "restarts", OPTION_STRING, "N",
                      "unmount when it dies more than N times a minute (default: 10)"},
                     {0, "debug", "debug", OPTION_FLAG, NULL, "log every request"}}},
        {.name = "umount",
         .usage = "[MOUNTPOINT] [--force]",
         .summary = "unmount and end laked",
         .words = {{"mountpoint", WORD_OPTIONAL}},
         .options = {{0, "force", "force", OPTION_FLAG, NULL,
                      "also while files are open: they fail from then on"}}},
        {.name = "branch", .action = "list", .usage = "[list]", .summary = "list branches"},
        {.name = "branch",
         .action = "create",
         .usage = "create NAME [REV]",
         .summary = "make a branch",
         .text = "It costs nothing, whatever the lake's size. REV defaults to the branch the "
                 "current\n"
                 "directory is in, then main. " REVISION_TEXT,
         .words = {{"name", WORD_REQUIRED}, {"revision", WORD_REVISION}}},
        {.name = "branch",
         .action = "delete",
         .usage = "delete NAME [--force]",
         .summary = "remove a branch",
         .text = "`lakectl undo NAME` brings it back. Uncommitted changes are refused without "
                 "--force.",
         .words = {{"name", WORD_REQUIRED}},
         .options = {{0, "force", "force", OPTION_FLAG, NULL, "uncommitted changes go too"}}},
        {.name = "branch",
         .action = "rename",
         .usage = "rename OLD NEW",
         .summary = "give a branch another name",
         .words = {{"name", WORD_REQUIRED}, {"to", WORD_REQUIRED}}},
        {.name = "tag", .action = "list", .usage = "[list]", .summary = "list tags"},
        {.name = "tag",
         .action = "create",
         .usage = "create NAME [REV]",
         .summary = "name a revision for good",
         .text = REVISION_TEXT,
         .words = {{"name", WORD_REQUIRED}, {"revision", WORD_REVISION}}},
        {.name = "tag",
         .action = "delete",
         .usage = "delete NAME",
         .summary = "remove a tag",
         .words = {{"name", WORD_REQUIRED}}},
        {.name = "status",
         .usage = "[BRANCH] [-- PATH...]",
         .summary = "uncommitted changes, and who has files open for writing",
         .words = {{"branch", WORD_BRANCH}},
         .paths = "paths"},
        {.name = "commit",
         .usage = "[BRANCH] -m MSG [--meta K=V]... [-- PATH...]",
         .summary = "make uncommitted changes a commit",
         .text = "One atomic snapshot. When it returns, content and metadata are durable in the "
                 "store.\n"
                 "Inside a git work tree the code's remote, commit and dirtiness are recorded as\n"
                 "code.remote, code.commit and code.dirty.",
         .words = {{"branch", WORD_BRANCH}},
         .options = {{'m', "message", "message", OPTION_STRING, "MSG", "what changed and why"},
                     {0, "meta", "meta", OPTION_PAIR, "K=V", "record a key and its value"},
                     {0, "allow-open", "allow_open", OPTION_FLAG, NULL,
                      "take files open for writing as they are"},
                     {0, "allow-empty", "allow_empty", OPTION_FLAG, NULL,
                      "also when nothing changed"},
                     {0, "wait-ms", "wait_ms", OPTION_NUMBER, "N",
                      "how long to wait for files open for writing (5000)"},
                     {0, "no-code", "no_code", OPTION_FLAG, NULL,
                      "do not record the code's commit"}},
         .paths = "paths"},
        {.name = "log",
         .usage = "[REV] [-n N] [--graph] [-- PATH...]",
         .summary = "history, newest first",
         .text = REVISION_TEXT,
         .words = {{"revision", WORD_REVISION}},
         .options = {{'n', "limit", "limit", OPTION_NUMBER, "N", "at most N commits"},
                     {0, "graph", "graph", OPTION_FLAG, NULL, "draw how commits descend"},
                     {0, "first-parent", "first_parent", OPTION_FLAG, NULL,
                      "follow merges' target only"}},
         .paths = "paths"},
        {.name = "show",
         .usage = "[REV]",
         .summary = "a commit and what it changed",
         .words = {{"revision", WORD_REVISION}}},
        {.name = "annotate",
         .usage = "REV[:PATH]",
         .summary = "which commit last changed a file, or each entry of a directory",
         .words = {{"revision", WORD_NAMED_OPTIONAL}}},
        {.name = "diff",
         .usage = "REV [REV] [--stat | --name-only] [-- PATH...]",
         .summary = "what differs between two revisions",
         .text = "With one REV: between it and the working tree of the branch the current "
                 "directory is\n"
                 "in, or of REV itself when it is a branch. A time alone is no "
                 "difference.\n" REVISION_TEXT,
         .words = {{"from", WORD_REQUIRED}, {"to", WORD_OPTIONAL}},
         .options = {{0, "stat", "stat", OPTION_FLAG, NULL, "sizes and a summary"},
                     {0, "name-only", "name_only", OPTION_FLAG, NULL, "paths alone"}},
         .paths = "paths"},
        {.name = "merge",
         .usage = "SOURCE [TARGET] [-m MSG] [--squash] [--dry-run] [--take source|target:PATH]...",
         .summary = "bring what SOURCE changed into branch TARGET",
         .text = "Three-way, per path, from the best common ancestor. On a conflict nothing "
                 "changes\n"
                 "(exit 3), and each side is listed with where it can be read; --take decides for "
                 "a "
                 "path and\n"
                 "all below it, or for what a pattern matches (*, ?, [...], **). Delta tables "
                 "to which both\n"
                 "appended are merged as tables.",
         .words = {{"source", WORD_REQUIRED}, {"target", WORD_BRANCH}},
         .options = {{'m', "message", "message", OPTION_STRING, "MSG",
                      "message of the merge commit"},
                     {0, "squash", "squash", OPTION_FLAG, NULL,
                      "one commit without SOURCE as parent"},
                     {0, "dry-run", "dry_run", OPTION_FLAG, NULL, "show what would change"},
                     {0, "take", "take", OPTION_LIST, "SIDE:PATH",
                      "source: or target: wins at PATH"}}},
        {.name = "publish",
         .usage = "SOURCE | --revert REV [--into BRANCH] [-m MSG] [--squash] [--dry-run]\n"
                  "                       [--take source|target:PATH]...",
         .summary = "merge into a branch what its audits let pass",
         .text = "The merge is prepared as a commit, which its target's audits look at under "
                 "@ID in the\n"
                 "mount; when all of them pass exactly that commit becomes the target's head. "
                 "If the\n"
                 "target moved meanwhile, all of it is done again. If one says no (exit 4) nothing "
                 "moves,\n"
                 "and what was prepared stays readable. Without --into: main. --revert takes "
                 "back what a\n"
                 "published commit changed, in the same way. `lakectl merge` goes by audits, too.",
         .words = {{"source", WORD_OPTIONAL}},
         .options = {{0, "into", "into", OPTION_STRING, "BRANCH", "the target (main)"},
                     {0, "revert", "revision", OPTION_STRING, "REV",
                      "publish the opposite of a commit"},
                     {'m', "message", "message", OPTION_STRING, "MSG", "message of the commit"},
                     {0, "mainline", "mainline", OPTION_NUMBER, "N",
                      "with --revert: a merge's parent to go back to (1)"},
                     {0, "squash", "squash", OPTION_FLAG, NULL,
                      "one commit without SOURCE as parent"},
                     {0, "dry-run", "dry_run", OPTION_FLAG, NULL, "show what would change"},
                     {0, "take", "take", OPTION_LIST, "SIDE:PATH",
                      "source: or target: wins at PATH"}}},
        {.name = "audit",
         .action = "list",
         .usage = "list [BRANCH]",
         .summary = "which audits a branch has",
         .words = {{"branch", WORD_REVISION}}},
        {.name = "audit",
         .action = "add",
         .usage = "add BRANCH NAME [--path PATTERN]... [--timeout SECONDS] -- PROGRAM [ARG]...",
         .summary = "have a program look at what is published to a branch",
         .text = "PROGRAM is an absolute path, or the name of a file in `audits` of the lake's "
                 "directory or\n"
                 "among those installed. It runs as who publishes, in the tree that would be "
                 "published, on\n"
                 "whichever host that is. It ends with 0 when all is well; what it prints is kept "
                 "with the\n"
                 "commit (`lakectl show`). An audit of that name is replaced. Only root and the "
                 "owner of the\n"
                 "lake's directory may.",
         .words = {{"branch", WORD_REQUIRED}, {"name", WORD_REQUIRED}},
         .options = {{0, "path", "patterns", OPTION_LIST, "PATTERN",
                      "only when a changed path matches (any)"},
                     {0, "timeout", "timeout_s", OPTION_NUMBER, "SECONDS",
                      "how long it may take (600)"}},
         .rest = "program"},
        {.name = "audit",
         .action = "remove",
         .usage = "remove BRANCH NAME | --all",
         .summary = "take an audit away from a branch",
         .text = "--all takes away every audit and every webhook, also when the store has lost "
                 "them.",
         .words = {{"branch", WORD_REQUIRED}, {"name", WORD_OPTIONAL}},
         .options = {{0, "all", "all", OPTION_FLAG, NULL, "all rules of the branch"}}},
        {.name = "audit",
         .action = "run",
         .usage = "run SOURCE [--into BRANCH] [--take source|target:PATH]...",
         .summary = "what would a branch's audits say?",
         .text = "As `lakectl publish`, but nothing moves. The verdict is kept with the commit "
                 "that "
                 "was\n"
                 "prepared. Without --into: main.",
         .words = {{"source", WORD_REQUIRED}},
         .options = {{0, "into", "into", OPTION_STRING, "BRANCH", "the target (main)"},
                     {0, "take", "take", OPTION_LIST, "SIDE:PATH",
                      "source: or target: wins at PATH"}}},
        {.name = "audit",
         .action = "log",
         .usage = "log [BRANCH] [-n N]",
         .summary = "who published, protected and configured what, and what audits said",
         .text = "The newest N entries (50), the newest last. Times are those of the hosts named.",
         .words = {{"branch", WORD_OPTIONAL}},
         .options = {{'n', "limit", "limit", OPTION_NUMBER, "N", "at most N entries"}}},
        {.name = "revert",
         .usage = "REV [BRANCH] [-m MSG] [--mainline N] [--take source|target:PATH]...",
         .summary = "undo what a commit changed, by a new commit",
         .text = "Of a merge: what it brought. A later merge does not bring that again; reverting "
                 "the revert\n"
                 "does. On a conflict nothing changes (exit 3) and the paths are listed.",
         .words = {{"revision", WORD_REQUIRED}, {"branch", WORD_BRANCH}},
         .options = {{'m', "message", "message", OPTION_STRING, "MSG", "message of the new commit"},
                     {0, "mainline", "mainline", OPTION_NUMBER, "N",
                      "a merge's parent to go back to (1)"},
                     {0, "take", "take", OPTION_LIST, "SIDE:PATH",
                      "source: what was before, or target: what is now, wins at PATH"}}},
        {.name = "cherry-pick",
         .usage = "REV [BRANCH] [-m MSG] [--mainline N] [--take source|target:PATH]...",
         .summary = "apply what a commit changed to another branch",
         .words = {{"revision", WORD_REQUIRED}, {"branch", WORD_BRANCH}},
         .options = {{'m', "message", "message", OPTION_STRING, "MSG", "message of the new commit"},
                     {0, "mainline", "mainline", OPTION_NUMBER, "N",
                      "the parent a merge's change is measured against (1)"},
                     {0, "take", "take", OPTION_LIST, "SIDE:PATH",
                      "source: the commit picked, or target: wins at PATH"}}},
        {.name = "reset",
         .usage = "[BRANCH] REV [--discard]",
         .summary = "move a branch to a revision",
         .text = "Uncommitted changes are kept when no path collides, and refused otherwise.\n"
                 "`lakectl undo` moves the branch back.",
         .words = {{"branch", WORD_BRANCH}, {"revision", WORD_REQUIRED}},
         .options = {{0, "discard", "discard", OPTION_FLAG, NULL,
                      "throw uncommitted changes away"}},
         .optional_first = true},
        {.name = "restore",
         .usage = "[BRANCH] [--from REV] -- PATH...",
         .summary = "make paths as they are in a revision, uncommitted",
         .text = "Without --from: as in the branch's head, throwing uncommitted changes there "
                 "away.",
         .words = {{"branch", WORD_BRANCH}},
         .options = {{0, "from", "from", OPTION_STRING, "REV", "the revision to take them from"}},
         .paths = "paths"},
        {.name = "reflog",
         .usage = "[BRANCH]",
         .summary = "where a branch has stood, and who moved it",
         .words = {{"branch", WORD_BRANCH}}},
        {.name = "undo",
         .usage = "[BRANCH] [--discard]",
         .summary = "take back a branch's last move, or its deletion",
         .text = "Whoever made it, and whatever it was: commit, merge, revert, reset, rename, "
                 "delete. "
                 "Undoing\n"
                 "again does it again. Uncommitted changes are kept when no path collides.",
         .words = {{"branch", WORD_BRANCH}},
         .options = {{0, "discard", "discard", OPTION_FLAG, NULL,
                      "throw uncommitted changes away"}}},
        {.name = "protect",
         .usage = "BRANCH [--no-direct-writes] [--require-audits] [--publishers GROUP]",
         .summary = "say what it takes to move a branch, on every host",
         .text = "Without an option: --no-direct-writes. The options replace those given before. "
                 "The\n"
                 "branch is then published to (`lakectl publish`); with --no-direct-writes or\n"
                 "--require-audits its directory is read-only. Only root and the owner of the "
                 "lake's\n"
                 "directory may.",
         .words = {{"branch", WORD_REQUIRED}},
         .options = {{0, "no-direct-writes", "no_direct_writes", OPTION_FLAG, NULL,
                      "it moves to merges that were prepared elsewhere, no other way"},
                     {0, "require-audits", "require_audits", OPTION_FLAG, NULL,
                      "it moves to what has passed every audit"},
                     {0, "publishers", "publishers", OPTION_STRING, "GROUP",
                      "only members of this group of the host may move it"}}},
        {.name = "unprotect",
         .usage = "BRANCH",
         .summary = "lift what protect said",
         .text = "Audits and webhooks stay configured. Of a deleted branch the name becomes free.",
         .words = {{"branch", WORD_REQUIRED}}},
        {.name = "webhook",
         .action = "list",
         .usage = "list [BRANCH]",
         .summary = "who is told what happens to a branch",
         .words = {{"branch", WORD_BRANCH}}},
        {.name = "webhook",
         .action = "add",
         .usage = "add BRANCH NAME URL [--event EVENT]... [--secret-file FILE]",
         .summary = "have a receiver told, by every host",
         .text = "JSON is posted to URL, and again until it is taken, for a day. Events: "
                 "published, merged,\n"
                 "committed, audit-failed, protection-changed; without --event all but "
                 "committed. With\n"
                 "--secret-file, an absolute path on every host, it is signed (see WEBHOOKS in\n"
                 "the manual). One of that name is replaced. Only root and the owner of the "
                 "lake's\n"
                 "directory may.",
         .words = {{"branch", WORD_REQUIRED}, {"name", WORD_REQUIRED}, {"url", WORD_REQUIRED}},
         .options = {{0, "event", "events", OPTION_LIST, "EVENT", "tell of this"},
                     {0, "secret-file", "secret_file", OPTION_STRING, "FILE",
                      "the key that deliveries are signed with"}}},
        {.name = "webhook",
         .action = "remove",
         .usage = "remove BRANCH NAME",
         .summary = "tell a receiver no more",
         .words = {{"branch", WORD_REQUIRED}, {"name", WORD_REQUIRED}}},
        {.name = "webhook",
         .action = "test",
         .usage = "test BRANCH [NAME]",
         .summary = "send an event \"test\" now and say what the receiver answers",
         .words = {{"branch", WORD_REQUIRED}, {"name", WORD_OPTIONAL}}},
        {.name = "refresh",
         .usage = "[BRANCH]",
         .summary = "look at the store for a branch's newest commit now",
         .text = "Without uncommitted changes the branch shows it. Uncommitted changes are kept on "
                 "top of\n"
                 "it when no path collides; else nothing moves and the paths are named.",
         .words = {{"branch", WORD_BRANCH}}},
        {.name = "ls",
         .usage = "[REV[:PATH]] [-r]",
         .summary = "list committed entries",
         .words = {{"revision", WORD_NAMED_OPTIONAL}},
         .options = {{'r', "recursive", "recursive", OPTION_FLAG, NULL, "all below too"},
                     {'l', "long", "long", OPTION_FLAG, NULL, "modes, sizes and times"}}},
        {.name = "cat",
         .usage = "REV:PATH",
         .summary = "write a committed file to standard output",
         .words = {{"revision", WORD_NAMED}}},
        {.name = "du",
         .usage = "[REV[:PATH]]",
         .summary = "files and bytes of each table",
         .words = {{"revision", WORD_NAMED_OPTIONAL}}},
        {.name = "warm",
         .usage = "[[REV:]PATH | REV]... [--threads N]",
         .summary = "fetch committed files into the cache ahead of their use",
         .text = "PATH is a path inside a mount, as in /lake/main/orders (default: the current\n"
                 "directory); REV:PATH and REV need no mount. What was fetched can be read while "
                 "the\n"
                 "store is away. When it cannot all fit in the cache nothing is fetched.",
         .words = {{"places", WORD_MANY}},
         .options = {{'j', "threads", "threads", OPTION_NUMBER, "N",
                      "files fetched at a time (12)"}}},
        {.name = "gc",
         .usage = "[--grace-seconds N] [--deleted-days N] [--dry-run]",
         .summary = "remove stored data that nothing needs any more",
         .text = "Branches, tags, their reflogs (64 moves each), deleted branches and uncommitted\n"
                 "changes keep what they need. Other data is listed by one run and removed by a\n"
                 "run at least the grace period later; no commit may take longer than that.",
         .options = {{0, "grace-seconds", "grace_seconds", OPTION_NUMBER, "N",
                      "how long data stays listed (86400)"},
                     {0, "deleted-days", "deleted_days", OPTION_NUMBER, "N",
                      "how long deleted branches and tags can be undone (30)"},
                     {0, "alone", "alone", OPTION_FLAG, NULL,
                      "allow a grace period below an hour: nothing else uses the lake"},
                     {0, "dry-run", "dry_run", OPTION_FLAG, NULL, "only tell"}}},
        {.name = "fsck",
         .usage = "[--quick]",
         .summary = "check every stored and cached byte",
         .options = {{0, "quick", "quick", OPTION_FLAG, NULL, "metadata only: read no content"}}},
        {.name = "doctor", .usage = "", .summary = "is this host fit to serve the lake?"},
        {.name = "stats", .usage = "", .summary = "counters and sizes"},
};
const size_t subcommand_count = ARRAY_SIZE(subcommands);
