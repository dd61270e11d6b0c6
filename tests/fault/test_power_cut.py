#!/usr/bin/env python3
"""The power goes, at moments all over a recorded run of writing programs and commands: what was fsynced and
what was committed is there, nothing holds bytes that nobody wrote, the lake is sound and works on.

One ext4 carries everything of the lake: state, staging files, cache and the store. Each round records a load,
then looks at what the disk holds at some moments of it (lib/power.py); the next round begins where one of these
left the disk, so recovering is cut short as well. A ledger outside says which moment each call had come back by.

POWER_SEED repeats the choices (not the timing), POWER_ROUNDS and POWER_CUTS say how many rounds there are and how
often the power goes in each, POWER_SECONDS how long the load of a round is, POWER_MODE (passthrough or copying)
how files are served, POWER_KEEP keeps the disk of a failure.
"""
import hashlib
import json
import mmap
import os
import pathlib
import random
import shutil
import sqlite3
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
import netns  # noqa: E402
import power  # noqa: E402
from lake import Lake, Refused, Tests  # noqa: E402

DISK_BYTES = 96 << 20
WORKERS = 2
NAMES = "abcdefgh"
SIZE_MAX = 120_000
COPY_UP_BYTES_MAX = 65536  # larger files are changed piece by piece
DATABASES = {"rollback": ("DELETE", "EXTRA"), "wal": ("WAL", "FULL")}
WRITES = {"side": "side", "other": "other", "restore": "other"}  # commands that write first, and where
COMMITS = {"side": "side", "other": "other"}
FOLD_VALUE = 60_000  # journal bytes of one change: 70 of these are a fold


def content(seed, length):
    return random.Random(seed).randbytes(length)


def overlaid(old, at, data):
    old = old + bytes(max(0, at - len(old)))
    return old[:at] + data + old[at + len(data):]


class Ledger:
    """What returned, and between which moments of the disk."""

    def __init__(self, path, disk):
        self.path, self.disk = path, disk
        path.write_text("")

    def call(self, function, *arguments, **note):
        begin = self.disk.position()
        result = function(*arguments)
        with open(self.path, "a", encoding="ascii") as notes:
            notes.write(json.dumps({"begin": begin, "end": self.disk.position(), **note}) + "\n")
        return result

    def read(self):
        return [json.loads(line) for line in self.path.read_text(encoding="ascii").splitlines()]


# -- a program that changes files of a directory of its own --

def choose(dice, files):
    """One to four operations that follow each other; `files`: {name: length}."""
    free = [name for name in NAMES if name not in files]
    there = sorted(files)
    kind = dice.choice(["create", "write", "write", "append", "truncate", "rename", "exchange", "unlink",
                        "link", "fsync", "fsync", "fsync", "directory", "replace", "replace", "osync", "msync"])
    data = {"seed": dice.randrange(1 << 30), "length": dice.choice((10, 4096, dice.randrange(1, 60_000))),
            "at": dice.randrange(SIZE_MAX)}
    if not there or (kind == "create" and free):
        return [{"kind": "create", "name": dice.choice(free), **data}]
    name = dice.choice(there)
    if kind in ("create", "link", "replace") and not free:
        kind = "unlink"
    if kind == "replace":  # as programs save: whole under another name, then in place
        new = dice.choice(free)
        return [{"kind": "create", "name": new, **data}, {"kind": "fsync", "name": new},
                {"kind": "rename", "name": new, "to": name}]
    if kind == "link":  # as programs publish: no file has two names for long
        new = dice.choice(free)
        return [{"kind": "link", "name": name, "to": new}, {"kind": "unlink", "name": name}]
    if kind == "exchange" and len(there) < 2:
        kind = "append"
    if kind == "msync" and files[name] == 0:
        kind = "osync"
    if kind == "msync":
        data["at"] = dice.randrange(files[name])
        data["length"] = min(data["length"], files[name] - data["at"])
    operation = {"kind": kind, "name": name, **data}
    if kind == "rename":
        operation["to"] = dice.choice(NAMES)
    elif kind == "exchange":
        operation["to"] = dice.choice([other for other in there if other != name])
    return [operation]


def write_file(path, operation):
    kind = operation["kind"]
    flags = {"create": os.O_CREAT | os.O_EXCL, "append": os.O_APPEND, "osync": os.O_SYNC}.get(kind, 0)
    data = content(operation["seed"], operation["length"]) if "seed" in operation else b""
    fd = os.open(path, os.O_RDWR | flags)
    try:
        if kind == "fsync":
            os.fsync(fd)
        elif kind == "msync":
            with mmap.mmap(fd, 0) as memory:
                memory[operation["at"]:operation["at"] + len(data)] = data
                memory.flush()
        elif (os.pwrite(fd, data, operation["at"]) if kind in ("write", "osync") else os.write(fd, data)) != len(data):
            raise OSError(5, "short write")
    finally:
        os.close(fd)


def perform(root, operation):
    kind, path = operation["kind"], os.path.join(root, operation["name"])
    other = os.path.join(root, operation.get("to", ""))
    if kind == "rename":
        os.rename(path, other)
    elif kind == "exchange":
        if netns.libc.renameat2(-100, os.fsencode(path), -100, os.fsencode(other), 2) < 0:
            raise OSError(netns.ctypes.get_errno(), "renameat2")
    elif kind == "link":
        os.link(path, other)
    elif kind == "unlink":
        os.unlink(path)
    elif kind == "truncate":
        os.truncate(path, operation["at"])
    elif kind == "directory":
        fd = os.open(root, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    else:
        write_file(path, operation)


class File:
    """All that one file has ever held, and since when which of it is safe."""

    def __init__(self, data):
        self.versions = [(-1, data)]  # from which operation on
        self.safe = [-1]              # operations that synced it
        self.safe_ranges = []         # (operation, start, end): what was written with O_SYNC

    def change(self, number, data):
        self.versions.append((number, data))

    def now(self):
        return self.versions[-1][1]

    def write_through(self, number, start, end):
        """O_SYNC: what was written, no more. When it lies beyond the end that the disk knows, and an earlier
        write had already moved that, ext4 of Linux 6.18 makes the bytes durable and not the size."""
        before = len(self.versions[-2][1])
        if end > before or end <= len(self.possible(number, number)[0]):
            self.safe_ranges.append((number, start, end))

    def possible(self, done, begun, synced=None):
        """What it may hold: the version that was synced last, and what came after it."""
        if synced is None:
            synced = max(number for number in self.safe if number < done)
        kept = [data for number, data in self.versions if number <= synced][-1:]
        return kept + [data for number, data in self.versions if synced < number < begun]

    def allows(self, found, done, begun):
        """Not all of what was written since the sync need be there."""
        possible = self.possible(done, begun)
        if found in possible:
            return True
        sizes = [len(data) for data in possible]
        if not possible or not min(sizes) <= len(found) <= max(sizes) or not mixed(found, 0, len(found), possible):
            return False
        for number, start, end in self.safe_ranges:
            if max(safe for safe in self.safe if safe < done) < number < done:
                later = self.possible(done, begun, number)
                end = min(end, *(len(data) for data in later))
                if end > len(found) or not mixed(found, start, end, later):
                    return False
        return True


def mixed(found, start, end, possible):
    """Is each byte one that was there at some time, or nobody's yet: zero where the file once ended before it?"""
    shortest = min(len(data) for data in possible)
    for at in range(start, end, 512):
        piece = found[at:min(at + 512, end)]
        if any(data[at:at + len(piece)] == piece for data in possible) or shortest <= at and not any(piece):
            continue
        for i, byte in enumerate(piece, at):
            if not any(i < len(data) and data[i] == byte for data in possible) and not (byte == 0 and shortest <= i):
                return False
    return True


class Directory:
    """A worker's directory through all of its operations."""

    def __init__(self, base, operations):
        self.operations = operations
        files = {name: File(data) for name, data in base.items()}
        self.states = [dict(files)]  # after so many operations: {name: File}
        self.synced = []             # operations after which all names are safe
        for number, operation in enumerate(operations):
            self.apply(number, operation, files)
            self.states.append(dict(files))

    def apply(self, number, operation, files):
        kind, name, to = operation["kind"], operation["name"], operation.get("to")
        file = files.get(name)
        if kind == "rename":
            files[to] = files.pop(name)
        elif kind == "exchange":
            files[name], files[to] = files[to], files[name]
        elif kind == "link":
            files[to] = file
        elif kind == "unlink":
            del files[name]
        elif kind == "create":
            files[name] = file = File(b"")
            file.change(number, content(operation["seed"], operation["length"]))
        elif kind == "truncate":
            old = file.now()[:operation["at"]]
            file.change(number, old + bytes(operation["at"] - len(old)))
        elif kind in ("append", "write", "osync", "msync"):
            at = len(file.now()) if kind == "append" else operation["at"]
            file.change(number, overlaid(file.now(), at, content(operation["seed"], operation["length"])))
        if kind in ("fsync", "msync"):
            file.safe.append(number)
        elif kind == "osync":
            file.write_through(number, operation["at"], operation["at"] + operation["length"])
        if kind in ("fsync", "osync", "directory"):  # msync does not tell us: names follow by themselves
            self.synced.append(number)

    def verify(self, found, position):
        done = sum(operation["end"] <= position for operation in self.operations)
        begun = max(done, sum(operation["begin"] < position for operation in self.operations))
        first = max((number + 1 for number in self.synced if number < done), default=0)
        problem = None
        for count in range(begun, first - 1, -1):
            state = self.states[count]
            if state.keys() != found.keys():
                continue
            wrong = [name for name in state if not state[name].allows(found[name], done, begun)]
            if not wrong:
                return
            problem = problem or self.explain(wrong[0], found, state[wrong[0]], done, begun)
        start = min(max(0, first - 1), max(0, begun - 20))
        raise AssertionError("\n# ".join([problem or f"names {sorted(found)} were never there after operation {first}",
                                         f"operations {start} to {begun}:",
                                         *map(json.dumps, self.operations[start:begun])]))

    @staticmethod
    def explain(name, found, file, done, begun):
        possible = file.possible(done, begun)
        at = next((i for i, (a, b) in enumerate(zip(found[name], possible[0])) if a != b), None)
        return (f"{name}: {len(found[name])} bytes found, {[len(data) for data in possible]} possible since it was "
                f"synced; the first byte that is not as synced is {at}; zero throughout: {not any(found[name])}; "
                f"{done} operations done, {begun} begun")


def worker(root, ledger, seed, files, stop):
    dice = random.Random(seed)
    files = {name: len(data) for name, data in files.items()}
    while not stop.exists():
        for operation in choose(dice, files):
            ledger.call(perform, root, operation, **operation)
            files = {entry.name: entry.stat().st_size for entry in os.scandir(root)}


# -- databases --

def database(path, kind):
    connection = sqlite3.connect(path, isolation_level=None)
    journal, synchronous = DATABASES[kind]
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    return connection


def transactions(root, ledger, seed, stop):
    """Each writes one number to many rows of both databases."""
    dice = random.Random(seed)
    connections = {kind: database(root / f"{kind}.db", kind) for kind in DATABASES}
    number = {kind: last_transaction(connection) for kind, connection in connections.items()}

    def transaction(kind):
        connection = connections[kind]
        connection.execute("BEGIN IMMEDIATE")
        for _ in range(dice.randrange(1, 20)):
            connection.execute("INSERT INTO rows VALUES (?, ?)", (number[kind], dice.randbytes(dice.randrange(2000))))
        connection.execute("UPDATE last SET number = ?", (number[kind],))
        connection.execute("DELETE FROM rows WHERE number < ?", (number[kind] - 20,))
        connection.execute("COMMIT")

    while not stop.exists():
        kind = dice.choice(sorted(DATABASES))
        number[kind] += 1
        ledger.call(transaction, kind, kind=kind, number=number[kind])
        time.sleep(0.02)


def last_transaction(connection):
    return connection.execute("SELECT number FROM last").fetchone()[0]


def make_databases(root):
    for kind in DATABASES:
        connection = database(root / f"{kind}.db", kind)
        connection.execute("CREATE TABLE rows (number INTEGER, bytes BLOB)")
        connection.execute("CREATE TABLE last (number INTEGER)")
        connection.execute("INSERT INTO last VALUES (0)")
        connection.close()


def verify_databases(root, notes, position):
    """{database: its last transaction}, for none of those in the notes had come before."""
    found = {}
    for kind in DATABASES:
        connection = sqlite3.connect(root / f"{kind}.db")
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
        assert verdict == "ok", f"{kind}: {verdict}"
        last = last_transaction(connection)
        mine = [note for note in notes if note["kind"] == kind]
        done = max((note["number"] for note in mine if note["end"] <= position), default=0)
        begun = max((note["number"] for note in mine if note["begin"] < position), default=0)
        begun = max(done, begun)
        assert done <= last and (last <= begun or begun == 0), \
            f"{kind}: transaction {last} is the last, {done} had returned, {begun} had begun"
        assert connection.execute("SELECT max(number) FROM rows").fetchone()[0] in (last, None), f"{kind}: torn"
        found[kind] = last
        connection.close()
    return found


# -- commands --

def tree(path):
    """{relative name: SHA-256} of all files below."""
    sums = {}
    for where, _, names in os.walk(path):
        for name in names:
            whole = pathlib.Path(where, name)
            sums[str(whole.relative_to(path))] = hashlib.sha256(whole.read_bytes()).hexdigest()
    return sums


def heads(lake):
    return {branch["name"]: branch["commit"] for branch in lake.ctl("branch", "list")["branches"]}


class Driver:
    """Commands one after the other, in a process of its own."""

    def __init__(self, lake, ledger, seed, stop):
        self.lake, self.ledger, self.dice, self.stop = lake, ledger, random.Random(seed), stop
        self.names = []  # of files that the next commit is to hold

    def write(self, directory, count):
        path = self.lake / directory
        path.mkdir(exist_ok=True)
        for _ in range(count):
            name = f"f{time.time_ns()}"
            (path / name).write_bytes(content(name, self.dice.choice((100, 5000, 80_000))))
            self.names.append(name)

    def step(self, kind):
        lake, dice, self.names = self.lake, self.dice, []
        if kind == "commit":
            self.write("main/d", dice.randrange(1, 4))
            lake.ctl("commit", "main", "-m", "d", "--allow-open")
        elif kind == "side":
            self.write("side/s", 2)
            lake.ctl("commit", "side", "-m", "s")
        elif kind == "merge":
            lake.ctl("merge", "side", "main")
        elif kind == "other":
            self.write("other/o", 1)
            (lake / "other/fixed").write_bytes(content(dice.random(), 3000))
            lake.ctl("commit", "other", "-m", "o")
        elif kind == "reset":
            lake.ctl("reset", "other", "other~1", "--discard")
        elif kind == "revert":
            lake.ctl("revert", "other", "other")
        elif kind == "restore":
            (lake / "other/fixed").write_bytes(b"not to be kept")
            (lake / "other/o").mkdir(exist_ok=True)
            (lake / "other/o/extra").write_bytes(b"neither")
            lake.ctl("restore", "other", "--", "fixed", "o/extra")
        elif kind == "gc":
            lake.ctl("gc", "--grace-seconds", "0", "--alone")
        else:
            self.branches(kind)

    def branches(self, kind):
        mine = [name for name in heads(self.lake) if name.startswith("b")]
        if kind == "create" or not mine:
            self.lake.ctl("branch", "create", f"b{time.time_ns()}", self.dice.choice(("main", "side", "other")))
        elif kind == "rename":
            self.lake.ctl("branch", "rename", self.dice.choice(mine), f"b{time.time_ns()}")
        else:
            self.lake.ctl("branch", "delete", self.dice.choice(mine))

    def run(self):
        kinds = ["commit"] * 4 + ["side", "merge"] * 2 + ["other"] * 3 + \
            ["reset", "revert", "restore", "gc", "create", "rename", "delete"]
        while not self.stop.exists():
            kind = self.dice.choice(kinds)
            begin, refused = self.ledger.disk.position(), None
            try:
                self.step(kind)
            except Refused as problem:  # nothing to merge, no commit before the first, collisions
                refused = str(problem)
            end, where = self.ledger.disk.position(), heads(self.lake)
            trees = {commit: tree(self.lake / f"@{commit}") for commit in set(where.values()) - self.known}
            self.known |= trees.keys()
            with open(self.ledger.path, "a", encoding="ascii") as notes:
                notes.write(json.dumps({"kind": kind, "begin": begin, "end": end, "heads": where, "trees": trees,
                                        "names": self.names, "refused": refused}) + "\n")
    known = set()


def folds(path, seed, stop):
    """Fills the journal, so that it is folded again and again."""
    dice = random.Random(seed)
    path.write_bytes(b"")
    while not stop.exists():
        for _ in range(20):
            os.setxattr(path, "user.fill", dice.randbytes(FOLD_VALUE))
        time.sleep(0.15)


# -- rounds --

class Cuts:
    def __init__(self, disk, boot, lake, seed):
        self.disk, self.boot, self.lake, self.dice = disk, boot, lake, random.Random(seed)
        self.stop = lake.scratch / "stop"
        self.files = [{} for _ in range(WORKERS)]
        self.heads, self.trees, self.committed = {}, {}, set()
        self.dirty = set()  # branches where the power went between a write and its commit
        self.counts = {"cuts": 0, "lost sectors": 0, "flushes": 0, "writes": 0, "operations": 0, "commands": 0}

    def ledger(self, name):
        return Ledger(self.lake.scratch / f"ledger.{name}", self.disk)

    def fork(self, function, *arguments):
        pid = os.fork()
        if pid:
            return pid
        try:
            function(*arguments)
            os._exit(0)
        except BaseException as problem:  # nothing of the parent's may run here
            print("#", type(problem).__name__, problem, getattr(problem, "reply", ""), flush=True)
            os._exit(1)

    def prepare(self):
        """A lake on the disk, recorded from its making on."""
        lake = self.lake
        lake.ctl("init")
        settings = lake.directory / "lake.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"copy_up_bytes_max": COPY_UP_BYTES_MAX}))
        lake.mount()
        for name in [f"w{i}" for i in range(WORKERS)] + ["db", "d", "s"]:
            (lake / "main" / name).mkdir()
        make_databases(lake / "main/db")
        lake.ctl("commit", "main", "-m", "start")
        for name in ("side", "other"):
            lake.ctl("branch", "create", name, "main")
        (lake / "other/o").mkdir()
        (lake / "other/fixed").write_bytes(b"fixed")
        lake.ctl("commit", "other", "-m", "one")
        (lake / "other/o/one").write_bytes(b"one")
        lake.ctl("commit", "other", "-m", "two")
        self.heads = heads(lake)
        self.trees = {commit: tree(lake / f"@{commit}") for commit in set(self.heads.values())}

    def load(self, seconds):
        """Programs and commands at work, with one kill -9 between them."""
        self.ledgers = [self.ledger(f"w{i}") for i in range(WORKERS)]
        self.database_ledger, self.driver_ledger = self.ledger("db"), self.ledger("driver")
        files = self.files
        for part in range(2):
            main, dice = self.lake / "main", self.dice
            pids = [self.fork(worker, main / f"w{i}", self.ledgers[i], dice.randrange(1 << 30), files[i], self.stop)
                    for i in range(WORKERS)]
            pids.append(self.fork(transactions, main / "db", self.database_ledger, dice.randrange(1 << 30), self.stop))
            pids.append(self.fork(folds, main / "filled", dice.randrange(1 << 30), self.stop))
            driver = Driver(self.lake, self.driver_ledger, dice.randrange(1 << 30), self.stop)
            driver.known = set(self.trees)
            pids.append(self.fork(driver.run))
            time.sleep(seconds / 2)
            self.stop.touch()
            statuses = [os.waitpid(pid, 0)[1] for pid in pids]
            assert not any(statuses), "a program of the load failed"
            self.stop.unlink()
            files = [self.read(f"main/w{i}") for i in range(WORKERS)]
            self.lake.kill()
            power.unmount(self.lake.mountpoint)
            if part == 0:
                self.lake.mount()

    def read(self, directory):
        return {name: (self.lake / directory / name).read_bytes() for name in os.listdir(self.lake / directory)}

    def round(self, seconds, cuts, first):
        lake, disk = self.lake, self.disk
        disk.start()
        begin = 0
        if first:
            self.prepare()
            begin = disk.position()
        else:
            lake.mount()
        self.load(seconds)
        disk.stop()
        self.model = [Directory(self.files[i], self.ledgers[i].read()) for i in range(WORKERS)]
        self.commands = self.driver_ledger.read()
        for note in self.commands:
            self.trees |= note["trees"]
        replay = power.Replay(disk)
        self.counts["flushes"] += replay.flushes()
        self.counts["writes"] += len(replay.records) - replay.flushes()
        self.counts["operations"] += sum(len(model.operations) for model in self.model)
        self.counts["commands"] += len(self.commands)
        moments = self.moments([position for position in replay.positions() if position >= begin], cuts)
        chosen = self.dice.choice(moments)
        for position in moments:
            self.cut(replay, position, position is chosen)
        shutil.copyfile(lake.scratch / "next", disk.image)
        self.files, self.heads = self.found, self.found_heads
        self.committed, self.dirty = self.found_committed, self.found_dirty

    def moments(self, positions, count):
        """Some anywhere, and as many just when something had returned: then it has no more than its own flush."""
        ends = [operation["end"] for model in self.model for operation in model.operations
                if operation["kind"] in ("fsync", "osync", "msync", "directory")]
        ends += 3 * [note["end"] for note in self.commands] + [note["end"] for note in self.database_ledger.read()]
        ends = [end for end in ends if end >= positions[0]]
        return sorted(self.dice.choice(ends if self.dice.random() < 0.5 else positions) for _ in range(count))

    def cut(self, replay, position, chosen):
        mode = self.dice.choice(power.MODES)
        self.where = f"power cut at {position} of {replay.positions()[-1]}, {mode} of what no flush covered"
        with replay.cut(position, self.dice, mode) as lost:
            if chosen:
                shutil.copyfile(self.disk.cut_image, self.lake.scratch / "next")
            self.boot.next()
            self.lake.mount()
            self.verify(position, chosen)
            self.works_on()
            self.lake.umount()
        self.counts["cuts"] += 1
        self.counts["lost sectors"] += lost

    def verify(self, position, chosen):
        lake = self.lake
        found = [self.read(f"main/w{i}") for i in range(WORKERS)]
        for model, files in zip(self.model, found):
            model.verify(files, position)
        commands = self.verify_commands(position)
        lake.ctl("fsck")
        verify_databases(lake / "main/db", self.database_ledger.read(), position)
        if chosen:
            self.found, (self.found_heads, self.found_committed, self.found_dirty) = found, commands

    def verify_commands(self, position):
        lake = self.lake
        done = [note for note in self.commands if note["end"] <= position]
        under_way = next((note for note in self.commands if note["begin"] < position < note["end"]), None)
        expected = done[-1]["heads"] if done else self.heads
        found = heads(lake)
        possible = [expected] + ([under_way["heads"]] if under_way else [])
        if under_way and under_way["kind"] == "rename":  # makes the new name, then takes the old one away
            possible.append(expected | under_way["heads"])
        assert found in possible, f"branches are at {found}, not at one of {possible}"
        for commit in set(found.values()):
            assert tree(lake / f"@{commit}") == self.trees[commit], f"commit {commit} is another"
        dirty = self.dirty - {COMMITS[note["kind"]] for note in done if note["kind"] in COMMITS and not note["refused"]}
        if under_way and under_way["kind"] in WRITES:
            dirty.add(WRITES[under_way["kind"]])
        safe = [note for note in done if note["kind"] in ("commit", *COMMITS) and not note["refused"]]
        if any(note["kind"] == "restore" and note["end"] > (safe[-1]["begin"] if safe else 0) for note in done):
            dirty.add("other")  # what a restore made is uncommitted, and as safe as any write
        for branch in found.keys() - dirty - {"main"}:
            assert tree(lake / branch) == self.trees[found[branch]], f"{branch} is not as it was committed"
        committed = set(self.committed)
        for note in done:
            if note["kind"] == "commit" and not note["refused"]:
                committed |= set(note["names"])
        there = self.read("main/d")
        for name in committed:
            assert name in there and there[name] == content(name, len(there[name])) and there[name], \
                f"{name}, committed to main, is {len(there[name]) if name in there else 'not there'}"
        return found, committed, dirty

    def works_on(self):
        lake, text = self.lake, str(time.time_ns())
        (lake / "main/alive").write_text(text)
        commit = lake.ctl("commit", "main", "-m", "after a power cut", "--allow-open")["commit"]
        assert (lake / f"@{commit}/alive").read_text() == text
        assert not lake.ctl("status", "main")["changes"]


def power_cuts(mode, seed, rounds, cuts, seconds):
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="lake-power.", dir="/dev/shm"))
    lake = Lake(*([] if mode == "passthrough" else ["--no-passthrough"]))
    shutil.rmtree(lake.scratch)
    lake.scratch, lake.directory, lake.mountpoint = scratch, scratch / "disk/lake", scratch / "mnt"
    lake.mountpoint.mkdir()
    disk = power.Disk(scratch)
    disk.format(DISK_BYTES)
    run = Cuts(disk, power.Boot(scratch), lake, seed)
    number = 0
    try:
        for number in range(rounds):
            run.round(seconds, cuts, number == 0)
        print("#", json.dumps(run.counts), flush=True)
    except BaseException as problem:
        print(f"# POWER_SEED={seed} POWER_MODE={mode} round {number}: {getattr(run, 'where', 'loading')}")
        print("#", str(problem)[:8000])
        print("#", json.dumps(run.counts), json.dumps(getattr(problem, "reply", None)), flush=True)
        log = lake.directory / "laked.log"
        if log.exists():
            print("".join(f"# {line}\n" for line in log.read_text().splitlines()[-10:]))
        if os.environ.get("POWER_KEEP"):
            print("# kept", scratch, flush=True)
            os._exit(1)
        raise
    finally:
        if not os.environ.get("POWER_KEEP"):
            shutil.rmtree(scratch, ignore_errors=True)


def main():
    tests = Tests()
    why = netns.enter()
    if not why and not os.path.exists("/dev/loop-control"):
        why = "no loop devices"
    if why:
        tests.skip("power cuts", why)
        tests.done()
    seed = int(os.environ.get("POWER_SEED", random.randrange(1 << 32)))
    rounds, cuts = int(os.environ.get("POWER_ROUNDS", 2)), int(os.environ.get("POWER_CUTS", 15))
    seconds = float(os.environ.get("POWER_SECONDS", 3))
    mode = os.environ.get("POWER_MODE") or random.Random(seed).choice(("passthrough", "copying"))
    with tests.case(f"{rounds} loads and {cuts} power cuts in each, {mode}, seed {seed}"):
        power_cuts(mode, seed, rounds, cuts, seconds)
    tests.done()


main()
