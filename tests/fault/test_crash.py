#!/usr/bin/env python3
"""kill -9 of the daemon, again and again, under writing programs and commands: what returned
success is there, a commit happened whole or not at all, the lake is sound and can be used.

CRASH_SEED repeats the choices (not the timing), CRASH_ROUNDS says how often it dies, CRASH_MODE
(passthrough, copying, or user: an ordinary user's mount) picks one of the ways in which files are served.
"""
import ctypes
import hashlib
import json
import os
import pathlib
import random
import signal
import statistics
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
import ordinary  # noqa: E402
from lake import Lake, Refused, Tests  # noqa: E402

libc = ctypes.CDLL(None, use_errno=True)
EXCHANGE = 2
WORKERS = 3
NAMES = "abcdefghij"
SIZE_MAX = 200_000
COPY_UP_BYTES_MAX = 65536
FOLD_VALUE = 60_000  # journal bytes of one change: 70 of these are a fold
AIM_SECONDS = 2
ROUNDS = {"passthrough": 8, "copying": 6, "user": 5}


def exchange(one, other):
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), EXCHANGE) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def bytes_of(operation):
    return random.Random(operation["seed"]).randbytes(operation["length"])


def overlaid(old, at, data):
    """`old` after writing `data` at `at`."""
    old = old + bytes(max(0, at - len(old)))
    return old[:at] + data + old[at + len(data):]


# -- a worker: random operations in a directory of its own, each noted before and after --

def choose(dice, files):
    """The next operation that can succeed; `files`: what is there."""
    free = [name for name in NAMES if name not in files]
    there = sorted(files)
    kind = dice.choice(["create", "write", "write", "append", "truncate", "rename", "exchange",
                        "unlink", "link", "sync"])
    if not there or (kind == "create" and free):
        kind = "create"
    elif kind in ("create", "link") and not free:
        kind = "unlink"
    if kind == "exchange" and len(there) < 2:
        kind = "append"
    name = dice.choice(free if kind == "create" else there)
    operation = {"kind": kind, "name": name, "seed": dice.randrange(1 << 30),
                 "length": dice.choice((10, 4096, dice.randrange(1, 100_000))),
                 "at": dice.randrange(SIZE_MAX)}
    if kind == "rename":
        operation["to"] = dice.choice(NAMES)
    elif kind == "exchange":
        operation["to"] = dice.choice([n for n in there if n != name])
    elif kind == "link":
        operation["to"] = dice.choice(free)
    return operation


def perform(root, operation):
    kind, path = operation["kind"], os.path.join(root, operation["name"])
    other = os.path.join(root, operation.get("to", ""))
    if kind == "rename":
        os.rename(path, other)
    elif kind == "exchange":
        exchange(path, other)
    elif kind == "link":  # as programs publish: no file has two names for long
        os.link(path, other)
        os.unlink(path)
    elif kind == "unlink":
        os.unlink(path)
    elif kind == "truncate":
        os.truncate(path, operation["at"])
    else:
        flags = {"create": os.O_CREAT | os.O_EXCL, "append": os.O_APPEND}.get(kind, 0)
        fd = os.open(path, os.O_RDWR | flags)
        try:
            if kind == "sync":
                os.fsync(fd)
            else:
                data = bytes_of(operation)
                done = os.write(fd, data) if kind != "write" else os.pwrite(fd, data, operation["at"])
                if done != len(data):
                    raise OSError(5, "short write")
        finally:
            os.close(fd)


def apply(files, operation):
    """What a finished operation makes of {name: bytes}."""
    kind, name, to = operation["kind"], operation["name"], operation.get("to")
    files = dict(files)
    if kind in ("rename", "link"):
        files[to] = files[name]
        if to != name:
            del files[name]
    elif kind == "exchange":
        files[name], files[to] = files[to], files[name]
    elif kind == "unlink":
        del files[name]
    elif kind == "truncate":
        old = files[name][:operation["at"]]
        files[name] = old + bytes(operation["at"] - len(old))
    elif kind == "create":
        files[name] = bytes_of(operation)
    elif kind == "append":
        files[name] += bytes_of(operation)
    elif kind == "write":
        files[name] = overlaid(files[name], operation["at"], bytes_of(operation))
    return files


def halfway(found, before, operation):
    """Is `found` what an interrupted operation may leave?"""
    kind, name, to = operation["kind"], operation["name"], operation.get("to")
    if kind == "link":
        return found == {**before, to: before[name]}
    if kind not in ("create", "append", "write"):
        return False
    after = apply(before, operation)
    if {n for n in found if n != name} != {n for n in after if n != name} or name not in found or \
            any(found[n] != after[n] for n in found if n != name):
        return False
    old, new, mine = before.get(name, b""), after[name], found[name]
    if not min(len(old), len(new)) <= len(mine) <= len(new):
        return False
    # whatever part of the write arrived: each byte is an old one or a new one
    old = old + bytes(len(new) - len(old))
    return all(mine[i] in (old[i], new[i]) for i in range(len(mine)) if mine[i] != new[i])


def worker(root, ledger, seed, files):
    dice = random.Random(seed)
    with open(ledger, "a", buffering=1, encoding="utf-8") as notes:
        while True:
            operation = choose(dice, files)
            notes.write(json.dumps(operation) + "\n")
            try:
                perform(root, operation)
            except OSError as problem:
                notes.write(json.dumps({"kind": "error", "text": str(problem)}) + "\n")
                return
            notes.write('{"kind": "done"}\n')
            files = apply(files, operation)


def read_ledger(ledger):
    """Finished operations, and the one that was under way (or None)."""
    finished, pending, problem = [], None, None
    for line in pathlib.Path(ledger).read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        if note["kind"] == "done":
            finished.append(pending)
            pending = None
        elif note["kind"] == "error":
            problem = note["text"]
        else:
            pending = note
    return finished, pending, problem


def directory(path):
    return {name: pathlib.Path(path, name).read_bytes() for name in os.listdir(path)}


def states(base, ledger):
    """Every state a worker's directory was in, and the last one with what was under way."""
    finished, pending, _ = read_ledger(ledger)
    found = [base]
    for operation in finished:
        found.append(apply(found[-1], operation))
    return found, finished, pending


def reached(found, all_states, operations, first=0):
    """Does the directory look as it did after some operation from `first` on?"""
    for index in range(first, len(all_states)):
        if found == all_states[index]:
            return True
        if index < len(operations) and operations[index] and \
                halfway(found, all_states[index], operations[index]):
            return True
    return False


# -- the driver: commands that succeed, fail or die --

KINDS = ["commit", "upload", "merge", "publish", "reset", "revert", "create", "rename", "taken", "delete", "restore", "gc"]
FOLD = "journal fold"
PUT = "put to the store"
TARGETS = [None, "commit", *KINDS, FOLD, PUT]
BRANCHES_MAX = 6
RESTORED = [f"restored/{number}" for number in range(3)]  # on a branch whose head never moves
BASE = b"as committed"


def heads(lake):
    return {branch["name"]: branch["commit"] for branch in lake.ctl("branch", "list")["branches"]}


class Driver:
    """Runs in a process of its own; what returned goes to its ledger."""

    def __init__(self, lake, ledger, seed):
        self.lake, self.ledger, self.dice = lake, ledger, random.Random(seed)

    def note(self, **what):
        with open(self.ledger, "a", encoding="utf-8") as notes:
            notes.write(json.dumps(what | {"at": time.monotonic()}) + "\n")

    def ctl(self, kind, branches, *arguments, **details):
        """Run a command that may move, make or remove `branches`."""
        self.note(kind=kind, begin=True, branches=branches, **details)
        try:
            reply = self.lake.ctl(*arguments)
            self.note(kind=kind, done=True, commit=reply.get("commit"), **details)
            self.note(kind="heads", heads=heads(self.lake))
        except (Refused, ValueError) as problem:
            self.note(kind=kind, failed=str(problem))
            return None
        return reply

    def counts(self):
        return [len(read_ledger(self.lake.scratch / f"ledger{i}")[0]) for i in range(WORKERS)]

    def run(self, target):
        """Commands of any kind; soon one of `target`."""
        kinds = self.dice.choices(KINDS, k=self.dice.randrange(2)) + ([target] if target in KINDS else [])
        while self.lake.pid():
            try:
                self.step(kinds.pop(0) if kinds else self.dice.choice(KINDS))
            except (OSError, Refused):
                return

    def step(self, kind):
        name = f"f{time.time_ns()}"
        if kind == "commit":
            self.ctl("commit", ["main"], "commit", "main", "-m", "crash", "--allow-open", "--allow-empty",
                     counts=self.counts())
        elif kind in ("merge", "publish"):
            path = self.lake / "side/side"
            path.mkdir(exist_ok=True)
            (path / name).write_bytes(name.encode() * 1000)
            if self.ctl("commit side", ["side"], "commit", "side", "-m", name, name=name):
                self.ctl(kind, ["main"], kind, "side", *(["main"] if kind == "merge" else ["--into", "main"]), name=name)
        elif kind == "upload":
            (self.lake / "moved/large").write_bytes(self.dice.randbytes(3_000_000))
            self.ctl(kind, ["moved"], "commit", "moved", "-m", kind)
        elif kind == "reset":
            self.ctl(kind, ["moved"], "reset", "moved", "moved~1", "--discard")
        elif kind == "revert":
            self.ctl(kind, ["moved"], "revert", "moved", "moved")
        elif kind == "restore":
            text = f"changed {name}"
            self.note(kind="modify", text=text)
            for path in RESTORED:
                (self.lake / "rest" / path).write_text(text)
            self.ctl(kind, [], "restore", "rest", "--", "restored", text=text)
        elif kind == "gc":
            self.ctl(kind, [], "gc", "--grace-seconds", "0", "--alone")
        else:
            self.branches(kind, f"b{time.time_ns()}")

    def branches(self, kind, new):
        """Branches that come and go; each has a file that is not committed, and tells whose it is."""
        mine = [name for name in heads(self.lake) if name.startswith("b")]
        if kind == "create" and len(mine) > BRANCHES_MAX:
            kind = "delete"
        if kind == "create" or not mine:
            if not self.ctl("create", [new], "branch", "create", new, "main"):
                return
            self.note(kind="mark", name=new)
            (self.lake / new / "mark").write_text(new)
            self.note(kind="marked", name=new)
            mine, new = [new], f"{new}-2"
        old = self.dice.choice(mine)
        if kind == "rename":
            self.ctl(kind, [old, new], "branch", "rename", old, new)
        elif kind == "taken":
            self.ctl(kind, [], "branch", "rename", old, "still")
        elif kind == "delete":
            self.ctl(kind, [old], "branch", "delete", "--force", old)


def folds(path, seed):
    """Fills the journal, so that it is folded again and again."""
    dice = random.Random(seed)
    try:
        path.write_bytes(b"")
        while True:
            for _ in range(20):
                os.setxattr(path, "user.fill", dice.randbytes(FOLD_VALUE))
            time.sleep(0.05)
    except OSError:
        return


class Crash:
    def __init__(self, lake, seed):
        self.lake, self.dice = lake, random.Random(seed)
        self.main = set()      # commits that returned, to main
        self.merged = set()    # files that a merge brought to main
        self.views = {}        # commit: digest of what it shows
        self.changes = []      # what was written before it was restored
        self.marks = {}        # branch: what its file says, and whether that was finished
        self.killed_in = {}    # what was under way: how often it had not been done, and had
        self.seconds = {}      # what commands took
        self.parts = set()     # files that interrupted puts left
        self.targets = []
        for i in range(WORKERS):
            (lake / f"main/w{i}").mkdir()
        (lake / "main/restored").mkdir()
        for path in RESTORED:
            (lake / "main" / path).write_bytes(BASE)
        lake.ctl("commit", "main", "-m", "start")
        for name in ("side", "moved", "rest", "still"):
            lake.ctl("branch", "create", name, "main")
        self.heads = heads(lake)
        self.files = [{} for _ in range(WORKERS)]

    def fork(self, function, *arguments):
        pid = os.fork()
        if pid:
            return pid
        os.setpgid(0, 0)
        try:
            function(*arguments)
            os._exit(0)
        except BaseException as problem:  # nothing of the parent's may run here
            print("#", type(problem).__name__, problem, flush=True)
            os._exit(1)

    def round(self):
        lake, dice = self.lake, self.dice
        ledgers = [lake.scratch / f"ledger{i}" for i in range(WORKERS)]
        for path in (*ledgers, lake.scratch / "driver"):
            path.write_text("")
        pids = [self.fork(worker, lake / f"main/w{i}", ledgers[i], dice.randrange(1 << 30),
                          self.files[i]) for i in range(WORKERS)]
        if not self.targets:
            self.targets = dice.sample(TARGETS, len(TARGETS))
        target = self.targets.pop()
        driver = self.fork(Driver(lake, lake.scratch / "driver", dice.randrange(1 << 30)).run, target)
        folder = self.fork(folds, lake / "main/filled", dice.randrange(1 << 30))
        self.aim(target)
        with_commands = dice.randrange(3) == 0
        daemon = lake.pid()
        lake.kill()
        self.look_at_files()
        if with_commands:
            os.killpg(driver, signal.SIGKILL)
        for pid in (*pids, folder):
            assert os.waitpid(pid, 0)[1] == 0, "a worker failed"
        status = os.waitpid(driver, 0)[1]
        assert status == 0 or with_commands, "the driver failed"
        self.wait_for_commands()
        assert not os.path.exists(f"/proc/{daemon}/fd/0")
        lake.mount()
        self.verify(ledgers)

    def aim(self, kind):
        """Wait until the daemon is to die: at some moment, or while it does such a thing."""
        if not kind:
            time.sleep(self.dice.uniform(0.05, 0.9))
            return
        until = time.monotonic() + AIM_SECONDS
        begun = f'"kind": "{kind}", "begin": true'
        seen = {FOLD: lambda: self.segments() > 1, PUT: lambda: self.puts() - self.parts}.get(
            kind, lambda: begun in (self.lake.scratch / "driver").read_text())
        while time.monotonic() < until and not seen():
            time.sleep(0.004 if kind in KINDS else 0.0005)
        if kind in KINDS:
            took = statistics.median(self.seconds[kind][-9:]) if kind in self.seconds else 0.05
            time.sleep(took * self.dice.choice((self.dice.uniform(0, 1), self.dice.uniform(0.7, 1.2))))

    def segments(self):
        return sum(1 for name in os.listdir(self.lake.directory / "state/journal") if "." not in name)

    def puts(self):
        return set(os.listdir(self.lake.directory / "store/~tmp"))

    def look_at_files(self):
        """What the files of a lake that nobody has opened since tell of the moment of the kill."""
        if self.segments() > 1:
            self.count(FOLD, None)
        parts = self.puts()
        if parts - self.parts:
            self.count(PUT, None)
        self.parts = parts

    def count(self, what, done):
        """done None: not known."""
        counts = self.killed_in.setdefault(what, [0, 0, 0])
        counts[0 if done is None else 1 + done] += 1

    def wait_for_commands(self):
        """A command that goes on without a daemon holds the lake."""
        for _ in range(500):
            try:
                self.lake.ctl("branch", "list")
                return
            except Refused as problem:
                text = str(problem)
            time.sleep(0.02)
        raise AssertionError(f"the lake stays in use: {text}")

    def verify(self, ledgers):
        histories = []
        for i, ledger in enumerate(ledgers):
            all_states, finished, pending = states(self.files[i], ledger)
            found = directory(self.lake / f"main/w{i}")
            good = found == all_states[-1] or \
                (pending and (found == apply(all_states[-1], pending) or
                              halfway(found, all_states[-1], pending)))
            assert good, f"worker {i}: {self.difference(found, all_states[-1], pending)}"
            if pending:
                all_states.append(apply(all_states[-1], pending))
            histories.append((all_states, finished + [pending]))
            self.files[i] = found
        self.verify_commands(histories)
        (self.lake / "main/alive").write_text(str(time.time_ns()))
        commit = self.lake.ctl("commit", "main", "-m", "after a crash")["commit"]
        self.main.add(commit)
        assert not self.lake.ctl("status", "main")["changes"]
        for i in range(WORKERS):
            assert directory(self.lake / f"@{commit}/w{i}") == self.files[i], "a commit is torn"
        self.heads = heads(self.lake)

    @staticmethod
    def difference(found, wanted, pending):
        lines = [f"under way: {pending}"]
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                lines.append(f"{name}: {len(found[name]) if name in found else None} bytes found, "
                             f"{len(wanted[name]) if name in wanted else None} wanted")
                if name in found and name in wanted:
                    lines.append("first difference at " + str(next(
                        (i for i, (a, b) in enumerate(zip(found[name], wanted[name])) if a != b), None)))
        return "; ".join(lines)

    def verify_commands(self, histories):
        begun, notes = None, [json.loads(line) for line in (self.lake.scratch / "driver").read_text().splitlines()]
        interrupted = []
        for note in notes:
            if note.get("begin"):
                begun = note
                continue
            failed = note.get("failed")
            if failed:
                self.verify_failure(failed)
                if begun and self.daemon_died(failed):
                    interrupted.append(begun)
            elif note.get("done"):
                self.seconds.setdefault(note["kind"], []).append(note["at"] - begun["at"])
                if note["kind"] == "commit":
                    self.verify_commit(note, histories)
                elif note["kind"] in ("merge", "publish"):
                    self.main.add(note["commit"])
                    self.merged.add(note["name"])
            if note["kind"] not in ("mark", "marked"):
                begun = None
        if begun:
            interrupted.append(begun)
        found = heads(self.lake)
        self.verify_heads(notes, found, interrupted)
        self.verify_marks(notes, found)
        self.verify_restored(notes)
        log = [entry["id"] for entry in self.lake.ctl("log", "main", "-n", 100000)["commits"]]
        lost = self.main - set(log)
        assert not lost, f"commits that returned are not in main's history: {lost}"
        there = set(os.listdir(self.lake / "main/side")) if self.merged else set()
        assert self.merged <= there, f"merged files are missing: {self.merged - there}"
        for name in self.merged:
            assert (self.lake / "main/side" / name).read_bytes() == name.encode() * 1000

    @staticmethod
    def daemon_died(text):
        return any(word in text for word in ("daemon", "connect", "went away", "ended", "no answer"))

    def verify_heads(self, notes, found, interrupted):
        """What nothing had been done to stands where it stood; else it is the old head or the new one."""
        expected, touched, removable = self.heads, set(), set()
        for note in notes:
            if note["kind"] == "heads":
                expected, touched, removable = note["heads"], set(), set()
            elif note.get("begin"):
                touched |= set(note["branches"])
                removable |= set(note["branches"]) if note["kind"] in ("rename", "delete", "create") else set()
        for note in interrupted:
            done = any(found.get(name) != expected.get(name) for name in note["branches"])
            self.count(note["kind"], done if note["branches"] else None)
        for name in expected.keys() | found.keys():
            if found.get(name) == expected.get(name):
                continue
            assert name in touched, f"{name} is at {found.get(name)}, not {expected.get(name)}"
            if name in removable:
                continue
            assert name in found, f"{name} is gone"
            near = self.parents(found[name]) | self.parents(expected[name])
            assert {found[name], expected[name]} & near, f"{name} went from {expected[name]} to {found[name]}"
        for note in notes:  # a branch that is renamed has one of its names, or both
            if note.get("begin") and note["kind"] == "rename" and note["branches"][0] in expected:
                assert set(note["branches"]) & found.keys(), f"both names are gone: {note['branches']}"

    def verify_marks(self, notes, found):
        """What is not committed goes with its branch through renamings, and to no other."""
        for note in notes:
            if note["kind"] == "mark":
                self.marks[note["name"]] = [note["name"], False]
            elif note["kind"] == "marked":
                self.marks[note["name"]][1] = True
            elif note["kind"] == "rename" and note.get("begin"):
                old, new = note["branches"]
                if old in self.marks and old not in found and new in found:
                    self.marks[new] = self.marks[old]
        # a name is used once, so where one of several branches that follow each other is, the last one is
        self.marks = {name: mark for name, mark in self.marks.items() if name in found}
        for name, (text, finished) in self.marks.items():
            path = self.lake / name / "mark"
            there = path.read_text() if path.exists() else None
            assert there == text or not finished and there in (None, ""), f"{name}: {there}, not {text}"
        assert not self.lake.ctl("status", "still")["changes"], "changes came to a branch that nobody wrote to"

    def parents(self, commit):
        """Of a commit, and its own."""
        return {parent for entry in self.lake.ctl("log", commit, "-n", 3)["commits"] for parent in entry["parents"]}

    def verify_restored(self, notes):
        """A directory is restored as a whole, or not at all."""
        found = {(self.lake / "rest" / path).read_bytes() for path in RESTORED}
        for note in notes:
            if note["kind"] == "modify":
                self.changes.append(note["text"].encode())
        known = {BASE, b"", *self.changes}
        assert found <= known, f"bytes that nobody wrote: {found - known}"
        last = next((note for note in reversed(notes) if note["kind"] in ("modify", "restore")), None)
        if last and last["kind"] == "restore":
            assert found == {BASE} or not last.get("done") and found == {self.changes[-1]}, f"half restored: {found}"

    @staticmethod
    def verify_failure(text):
        expected = ("in use by process", "daemon", "connect", "went away", "ended", "no lake",
                    "nothing changed", "no revision", "open for writing", "is closing", "moved",
                    "interrupted", "no answer", "no commit", "branch 'still' already")
        if not any(word in text for word in expected):
            print("# a command said:", text[:200])

    def verify_commit(self, note, histories):
        commit = note["commit"]
        self.main.add(commit)
        for i, (all_states, operations) in enumerate(histories):
            found = directory(self.lake / f"@{commit}/w{i}")
            assert reached(found, all_states, operations, note["counts"][i]), \
                f"commit {commit}: worker {i}'s directory never looked like that"
        self.views[commit] = self.digest(commit)

    def digest(self, commit):
        sums = hashlib.sha256()
        for where, directories, names in os.walk(self.lake / f"@{commit}"):
            directories.sort()
            for name in sorted(names):
                sums.update(os.path.relpath(os.path.join(where, name), self.lake.mountpoint).encode())
                sums.update(pathlib.Path(where, name).read_bytes())
        return sums.hexdigest()

    def end(self):
        for commit, wanted in self.views.items():
            assert self.digest(commit) == wanted, f"commit {commit} changed"
        self.lake.ctl("fsck")
        print("# under way at a kill [not known, not done, done]:", json.dumps(self.killed_in))
        print("# commits", len(self.main), "merges", len(self.merged), flush=True)


def crashes(mode, seed, rounds):
    lake = Lake(*(["--no-passthrough"] if mode == "copying" else []))
    lake.mountpoint.mkdir()
    lake.ctl("init")
    settings = lake.directory / "lake.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) |
                                   {"copy_up_bytes_max": COPY_UP_BYTES_MAX}))
    lake.mount()
    number = 0
    try:
        crash = Crash(lake, seed)
        for number in range(rounds):
            crash.round()
            if number % 5 == 4:
                lake.ctl("fsck")
        crash.end()
    except BaseException as problem:
        print(f"# CRASH_SEED={seed} CRASH_MODE={mode} round {number}")
        print("#", repr(problem), json.dumps(getattr(problem, "reply", None)))
        if os.environ.get("CRASH_KEEP"):
            print("# kept", lake.scratch, flush=True)
            os.kill(os.getpid(), 9)
        raise
    finally:
        lake.__exit__()


def old_descriptors():
    """A program goes on with a descriptor of a daemon that was killed: the kernel passes its
    writes through to the staging file, so that may not become committed content."""
    with Lake() as lake:
        path = lake / "main/kept"
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        os.write(fd, b"written")
        lake.kill()
        lake.mount()
        assert path.read_bytes() == b"written"
        lake.ctl("commit", "main", "-m", "kept")
        try:
            os.pwrite(fd, b"WRONG", 0)
        except OSError:
            pass  # not passed through
        os.close(fd)
        assert path.read_bytes() == (lake / "@main/kept").read_bytes() == b"written"
        lake.ctl("fsck")


def as_user(tests, name, seed, rounds):
    """The same, of a mount that is an ordinary user's."""
    why_not = ordinary.impossible()
    if why_not:
        tests.skip(name, why_not)
        return
    with tests.case(name), ordinary.place() as place:
        child = os.fork()
        if not child:
            status = 1
            try:
                place.become()
                crashes("user", seed, rounds)
                status = 0
            except BaseException:  # nothing of the parent's may run here
                print("".join("# " + line for line in traceback.format_exc().splitlines(True)), flush=True)
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0, "see above"


def main():
    tests = Tests()
    modes = [os.environ["CRASH_MODE"]] if "CRASH_MODE" in os.environ else list(ROUNDS)
    if "passthrough" in modes:
        with tests.case("descriptors of a killed daemon cannot change what was committed"):
            old_descriptors()
    for mode in modes:
        seed = int(os.environ.get("CRASH_SEED", random.randrange(1 << 32)))
        rounds = int(os.environ.get("CRASH_ROUNDS", ROUNDS[mode]))
        name = f"kill -9 {rounds} times, {mode}, seed {seed}"
        if mode == "user":
            as_user(tests, name, seed, rounds)
            continue
        with tests.case(name):
            crashes(mode, seed, rounds)
    tests.done()


main()
