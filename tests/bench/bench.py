"""Measures one build in one run and prints one table of ratios. See tests/bench/README.md."""
import contextlib
import http.client
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

import s3
from lake import Failed, Lake
from table import (DISK, GIB, KIB, MIB, ROOT, ms, print_table, rate, row, say, section, size_text,
                   speed, started, targets, tool)

BIN = os.environ["LAKE_BIN"]
MOUNT = os.path.join(ROOT, "mount")
MEMORY = os.environ.get("BENCH_MEMORY") or None
LARGE = int(os.environ.get("BENCH_FILES", "1000000"))
SMALL = min(1000, LARGE)
BIG_FILE = int(os.environ.get("BENCH_FILE_BYTES", str(GIB)))
ONLY = os.environ.get("BENCH_ONLY", "").split()


# -- version control at two sizes --

class Layout:
    """COUNT files of 100 bytes in up to 100 directories."""

    def __init__(self, count):
        self.count = count
        self.directories = min(100, max(10, count // 100))
        self.files = count // self.directories
        self.used = 0

    def make(self, root, threads=2):
        return tool("make", root, self.directories, self.files, 100, threads, 1)

    def some(self, count):
        """Paths not given out before, spread over the directories."""
        paths = []
        for _ in range(count):
            number = self.used * 7919 % self.count
            self.used += 1
            paths.append(f"d{number % self.directories:04d}/f{number // self.directories:06d}")
        return paths


def rewrite(root, paths):
    for path in paths:
        with open(os.path.join(root, path), "wb") as file:
            file.write(os.urandom(100))


class Timings:
    """Times of each kind of work at each size; the lakes take turns, so that what else the
    machine does falls on both."""

    def __init__(self, lakes):
        self.lakes = lakes  # (lake, layout) of each size
        self.times = {}

    def add(self, what, count, seconds):
        self.times.setdefault((what, count), []).append(seconds)

    def medians(self):
        return {key: statistics.median(times) for key, times in self.times.items()}

    def branches(self, rounds=50):
        for action in ("create", "delete"):
            for i in range(rounds):
                for lake, layout in self.lakes:
                    arguments = {"revision": "main"} if action == "create" else {}
                    seconds, _ = lake.timed("branch", action=action, name=f"try{i}", **arguments)
                    self.add(f"branch {action}", layout.count, seconds)

    def commits(self, rounds=30):
        for _ in range(rounds):
            for lake, layout in self.lakes:
                rewrite(lake.path("main"), layout.some(1))
                seconds, reply = lake.timed("commit", branch="main", message="one file")
                if reply["files"] != 1:
                    raise Failed(f"a commit of one file says {reply}")
                self.add("commit of 1 changed file", layout.count, seconds)

    def merges(self, rounds=20):
        """Branches that differ in 10 files; main has moved too, so that the merge is three-way."""
        for i in range(rounds):
            name = f"merge{i}"
            for lake, layout in self.lakes:
                lake.call("branch", action="create", name=name, revision="main")
                rewrite(lake.path(name), layout.some(10))
                lake.call("commit", branch=name, message="ten files")
                seconds, reply = lake.timed("diff", **{"from": "main", "to": name})
                if reply["changes_count"] != 10:
                    raise Failed(f"a diff of 10 files has {reply['changes_count']}")
                self.add("diff of branches, 10 files", layout.count, seconds)
                rewrite(lake.path("main"), layout.some(1))
                lake.call("commit", branch="main", message="main moves on")
                seconds, reply = lake.timed("merge", source=name, target="main")
                if reply["changed"] != 10:
                    raise Failed(f"a merge of 10 files changed {reply['changed']}")
                self.add("merge, 10 files", layout.count, seconds)
                lake.call("branch", action="delete", name=name)


def build(lake, layout):
    """Files through the mount, then one commit."""
    seconds = layout.make(lake.path("main"))
    say(f"  {layout.count:,} files created: {seconds:.0f} s, {rate(layout.count, seconds)}")
    commit, _ = lake.timed("commit", branch="main", message="all files")
    say(f"  committed: {commit:.0f} s, {rate(layout.count, commit)}")
    return seconds, commit


def new_lake(directory, count, from_memory):
    """A lake of COUNT files, not mounted; from_memory: a clone of the one built there."""
    url = None
    if from_memory:
        built = os.path.join(MEMORY, f"lake-{count}")
        store = os.path.join(directory, f"store-{count}")
        shutil.copytree(os.path.join(built, "store"), store)
        shutil.rmtree(built)
        url = f"file://{store}"
    return Lake(BIN, os.path.join(directory, f"lake-{count}"), f"{MOUNT}-{count}", url)


def versions_in(directory, from_memory):
    say(f"versions at {SMALL:,} and {LARGE:,} files in {directory}")
    figures = {}
    with contextlib.ExitStack() as stack:
        lakes = []
        for count in (SMALL, LARGE):
            layout = Layout(count)
            lake = stack.enter_context(new_lake(directory, count, from_memory))
            lakes.append((lake, layout))
            if from_memory:
                layout.used = 1000  # other files than were changed in memory
            else:
                figures["build", count] = build(lake, layout)
        for lake, _ in lakes:
            lake.settle()
        timings = Timings(lakes)
        timings.branches()
        timings.commits()
        timings.merges()
        for (what, count), seconds in timings.medians().items():
            figures[what, count] = seconds
            say(f"  {what} at {count:,}: {ms(seconds)}")
    for lake, layout in lakes:
        figures["memory", layout.count] = lake.memory
        if directory != MEMORY:
            shutil.rmtree(lake.directory)
    return figures


def judge_versions(memory, disk, raw):
    sizes = f"reference: {SMALL:,} files; lake: {LARGE:,} files; in laked, through its socket"
    logarithm = math.log(LARGE) / math.log(SMALL) if LARGE > SMALL else 1
    for name, figures in (("without fsync cost (tmpfs)", memory), ("on disk", disk)):
        if not figures:
            continue
        section(f"{name}; {sizes}")
        for what in ("branch create", "branch delete", "commit of 1 changed file",
                     "diff of branches, 10 files", "merge, 10 files"):
            small, large = figures[what, SMALL], figures[what, LARGE]
            branch = what.startswith("branch")
            limit = 0.002 if branch else 0.020
            # Noise: what a scheduler's tick on a busy machine can add.
            same = large <= small * (1.25 if branch else logarithm) + 0.0003
            if figures is disk:
                fsync = ""
                if memory and not what.startswith("diff"):
                    fsync = f" ({ms(large - memory[what, LARGE])} is fsync)"
                row(what, ms(small), ms(large) + fsync, large / small, "", None)
                continue
            target = f"{'same' if branch else 'log'}, < {limit * 1000:.0f} ms"
            row(what, ms(small), ms(large), large / small, target, same and large < limit)
        if figures is disk:
            row("one durable small file: write, fsync, rename, fsync", ms(raw), "", None)
    built = memory or disk
    create, commit = built["build", LARGE]
    row(f"{LARGE:,} files of 100 bytes: create, commit", "", f"{create:.0f} s, {commit:.0f} s", None)
    section("memory of laked")
    peak = {name: max(f["memory", LARGE][name] for f in (memory, disk) if f)
            for name in ("VmHWM", "RssAnon")}
    row(f"peak throughout, {LARGE:,} files (of it heap and stacks)", "",
        f"{size_text(peak['VmHWM'])} ({size_text(peak['RssAnon'])})", None, "< 1024 MiB",
        peak["VmHWM"] < GIB)


def versions():
    memory = versions_in(MEMORY, False) if MEMORY else None
    disk = versions_in(DISK, bool(MEMORY))
    judge_versions(memory, disk, tool("replace", DISK, 50))
    return disk


# -- small files --

def small_files():
    say("10,000 small files")
    native = os.path.join(DISK, "native")
    os.makedirs(native)
    lake = Lake(BIN, os.path.join(DISK, "lake-small"), MOUNT)
    count = 10000
    with lake:
        ours, theirs = [], []
        for i in range(3):
            for root, times in ((native, theirs), (lake.path("main"), ours)):
                base = os.path.join(root, f"ten{i}")
                os.mkdir(base)
                times.append(tool("make", base, 1, count, 10 * KIB, 1, i + 10))
                if i < 2:
                    shutil.rmtree(base)
        before = lake.stored()
        commit, reply = lake.timed("commit", branch="main", message="small files")
        after = lake.stored()
        create, reference = statistics.median(ours), statistics.median(theirs)
        section("small files; reference: ext4; ratio of speeds")
        row("create 10,000 files of 10 KB", rate(count, reference), rate(count, create),
            reference / create)
        row("  then commit: objects written to the store", "", str(after[0] - before[0]), None,
            "<= 20", after[0] - before[0] <= 20)
        row("  then commit: time, files/s", "", f"{commit:.2f} s, {rate(count, commit)}", None)
        four_kib(lake, native, count)
    shutil.rmtree(lake.directory)
    shutil.rmtree(native)


def four_kib(lake, native, count):
    figures = {"create+write+close, 4 KiB": ([], []), "stat, first time": ([], []),
               "stat, again": ([], []), "ls -l of 10,000, first time": ([], []),
               "ls -l of 10,000, again": ([], [])}
    for i in range(3):
        for which, root in ((0, native), (1, lake.path("main"))):
            base = os.path.join(root, f"four{i}")
            os.mkdir(base)
            figures["create+write+close, 4 KiB"][which].append(
                tool("make", base, 1, count, 4 * KIB, 1, i + 20))
    lake.call("commit", branch="main", message="4 KiB files")
    for i in range(3):
        for which, root in ((0, native), (1, lake.path("main"))):
            base = os.path.join(root, f"four{i}")
            if which:
                lake.remount()
            figures["stat, first time"][which].append(tool("stat", base, 1, count))
            figures["stat, again"][which].append(tool("stat", base, 1, count))
            if which:
                lake.remount()
            for what in ("first time", "again"):
                figures[f"ls -l of 10,000, {what}"][which].append(tool("list", f"{base}/d0000"))
    for what, (theirs, ours) in figures.items():
        reference, seconds = statistics.median(theirs), statistics.median(ours)
        row(what, rate(count, reference), rate(count, seconds), reference / seconds)


# -- one large file --

def cached_bytes():
    with open("/proc/meminfo") as meminfo:
        return next(int(line.split()[1]) * KIB for line in meminfo if line.startswith("Cached:"))


def local_copy(lake, size):
    """The file of `size` bytes that laked keeps: what native reading is measured on."""
    for folder, _, files in os.walk(os.path.join(lake.directory, "cache")):
        for name in files:
            if os.stat(os.path.join(folder, name)).st_size == size:
                return os.path.join(folder, name)
    raise Failed("no local copy of the large file")


def large_file():
    say(f"one file of {BIG_FILE / GIB:.2f} GiB")
    lake = Lake(BIN, os.path.join(DISK, "lake-large"), MOUNT)
    with lake:
        path = lake.path("main", "table.parquet")
        tool("fill", path, BIG_FILE, 5)
        lake.call("commit", branch="main", message="a large file")
        lake.call("branch", action="create", name="second", revision="main")
        read_large(lake, path)
        append_large(lake, path)
        commit_large(lake, BIG_FILE // 4)
    shutil.rmtree(lake.directory)


def copy_durably(source, target):
    start = time.perf_counter()
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    os.unlink(target)
    return seconds


def read_large(lake, path):
    times = {name: [] for name in ("native", "cold", "again", "second")}
    growth = []
    block = 128 * KIB
    for _ in range(5):
        lake.remount()
        blob = local_copy(lake, BIG_FILE)  # it moves when it has been fsynced
        tool("read", blob, block)
        times["native"].append(tool("read", blob, block))
        before = cached_bytes()
        times["cold"].append(tool("read", path, block))
        times["second"].append(tool("read", lake.path("second", "table.parquet"), block))
        growth.append(cached_bytes() - before)
        times["again"].append(tool("read", path, block))
    native, cold, again, second = (statistics.median(t) for t in times.values())
    section(f"a file of {BIG_FILE / GIB:.0f} GiB, local; reference: the same file on ext4; "
            "page cache warm, fresh mounts; ratio of speeds")
    row("sequential read, FUSE-cold", speed(BIG_FILE, native), speed(BIG_FILE, cold), native / cold,
        ">= 0.75", native / cold >= 0.75)
    row("sequential read, again", speed(BIG_FILE, native), speed(BIG_FILE, again), native / again)
    row("same content through a second branch, first read", speed(BIG_FILE, native),
        speed(BIG_FILE, second), native / second)
    row("  page cache gained by reading it through both", size_text(BIG_FILE),
        size_text(min(growth)), min(growth) / BIG_FILE, "no second copy",
        min(growth) < BIG_FILE / 20)


def append_large(lake, path):
    before = lake.stored()
    append = tool("append", path, MIB, 6)
    commit, _ = lake.timed("commit", branch="main", message="one more row group")
    stored = lake.stored()[1] - before[1]
    row("append 1 MiB, then commit: new bytes in the store", size_text(MIB), size_text(stored),
        stored / MIB, "<= 4 MiB", stored <= 4 * MIB)
    row("append 1 MiB, then commit: time", "", f"{ms(append)}, {ms(commit)}", None)


def commit_large(lake, size):
    copies, commits = [], []
    for i in range(3):
        path = lake.path("main", f"part{i}.parquet")
        tool("fill", path, size, 50 + i)
        copies.append(copy_durably(path, os.path.join(DISK, "copy")))
        commits.append(lake.timed("commit", branch="main", message="a part")[0])
    copy, commit = statistics.median(copies), statistics.median(commits)
    row(f"commit {size // MIB} MiB, incompressible; reference: cp, fsync", speed(size, copy),
        speed(size, commit), copy / commit)


# -- peers --

def git(directory, *arguments):
    start = time.perf_counter()
    subprocess.run(["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c",
                    "gc.auto=0", "-C", directory, *arguments], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def peer_git(disk):
    layout = Layout(min(100000, LARGE))
    say(f"git at {layout.count:,} files")
    where = os.path.join(DISK, "git")
    os.makedirs(where)
    git(where, "init", "-b", "main")
    layout.make(where)
    git(where, "add", "-A")
    git(where, "commit", "-m", "all files")
    branch = git(where, "worktree", "add", os.path.join(DISK, "git-dev"), "-b", "dev")
    commits = []
    for _ in range(5):
        rewrite(where, layout.some(1))
        commits.append(git(where, "commit", "-a", "-m", "one file"))
    dev = os.path.join(DISK, "git-dev")
    rewrite(dev, layout.some(10))
    git(dev, "commit", "-a", "-m", "ten files")
    diff = git(where, "diff", "--name-only", "main", "dev")
    merge = git(where, "merge", "dev", "-m", "merge")
    section(f"peers on the same disk; reference: peer at {layout.count:,} files; "
            f"lake: {LARGE:,} files; ratio of speeds")
    for what, theirs, ours in (
            ("git worktree add / branch create", branch, "branch create"),
            ("git commit / commit of 1 changed file", statistics.median(commits),
             "commit of 1 changed file"),
            ("git diff / diff, 10 files", diff, "diff of branches, 10 files"),
            ("git merge / merge, 10 files", merge, "merge, 10 files")):
        row(what, ms(theirs), ms(disk[ours, LARGE]), theirs / disk[ours, LARGE])
    shutil.rmtree(where)
    shutil.rmtree(dev)


def peer_btrfs(disk):
    """On a file through a loop device, when this host allows that."""
    image, where = os.path.join(ROOT, "btrfs.image"), os.path.join(ROOT, "btrfs")
    layout = Layout(min(100000, LARGE))
    if not shutil.which("mkfs.btrfs") or os.geteuid() != 0:
        return
    say(f"btrfs at {layout.count:,} files")
    with open(image, "wb") as file:
        file.truncate(4 * GIB)
    os.makedirs(where)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    mounted = subprocess.run(["mkfs.btrfs", "-q", image], **quiet).returncode == 0 and \
        subprocess.run(["mount", "-o", "loop", image, where], **quiet).returncode == 0
    if not mounted:
        say("  no loop device or no btrfs here: left out")
        return
    try:
        subprocess.run(["btrfs", "subvolume", "create", f"{where}/main"], check=True, **quiet)
        layout.make(f"{where}/main")
        subprocess.run(["sync", "-f", where], check=True)
        times = []
        for i in range(10):
            start = time.perf_counter()
            subprocess.run(["btrfs", "subvolume", "snapshot", f"{where}/main", f"{where}/dev{i}"],
                           check=True, **quiet)
            times.append(time.perf_counter() - start)
        ours = disk["branch create", LARGE]
        row("btrfs snapshot (no commit, no merge) / branch create", ms(statistics.median(times)),
            ms(ours), statistics.median(times) / ours)
    finally:
        subprocess.run(["umount", where], check=False)


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    signal.signal(signal.SIGTERM, interrupted)
    wanted = ONLY or ["large", "small", "versions", "peers", "s3", "s3-latency"]
    status = 0
    try:
        if "large" in wanted:
            large_file()
        if "small" in wanted:
            small_files()
        if "versions" in wanted:
            disk = versions()
            if "peers" in wanted:
                peer_git(disk)
                peer_btrfs(disk)
        if "s3" in wanted or "s3-latency" in wanted:
            s3.run(wanted)
    except (Failed, OSError, ValueError, subprocess.CalledProcessError, http.client.HTTPException) as error:
        print(f"bench: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("bench: interrupted; this is what there is", file=sys.stderr)
        status = 130
    print_table()
    count, missed = targets()
    print(f"\n{count} targets, {len(missed)} missed, {time.monotonic() - started:.0f} s")
    for what in missed:
        print(f"missed: {what}")
    return status or (1 if missed else 0)


sys.exit(main())
