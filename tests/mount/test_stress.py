#!/usr/bin/env python3
"""Many at once: programs in the same directories while commits, branches and merges go on; two
lakes on one store committing to the same branch.

STRESS_SECONDS says how long, STRESS_SEED repeats the choices.
"""
import errno
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Lake, Refused, Tests  # noqa: E402

SECONDS = float(os.environ.get("STRESS_SECONDS", 8))
SEED = int(os.environ.get("STRESS_SEED", random.randrange(1 << 32)))
WORKERS = 4
SHARED = ("one", "two", "three/deep")
tests = Tests()

# What programs in each other's way may see.
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}


def fork(function, *arguments):
    pid = os.fork()
    if pid:
        return pid
    try:
        function(*arguments)
        os._exit(0)
    except BaseException as problem:  # nothing of the parent's may run here
        print(f"# {function.__name__}: {type(problem).__name__}: {problem}", flush=True)
        os._exit(1)


def wait_for(pids, seconds):
    """Every process ended well, in time."""
    deadline, failed = time.time() + seconds, 0
    left = set(pids)
    while left and time.time() < deadline:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.discard(pid)
                failed += status != 0
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"{len(left)} processes hang"
    assert not failed, f"{failed} processes failed"


def content_of(name):
    return random.Random(name).randbytes(200 + len(name) * 711 % 9000)


def mine(worker, number):
    return f"w{worker}-{number}"


def missing(directory, wanted, listed):
    """For each name that is not listed: can it be found, is it listed now, is it later."""
    names = sorted(set(wanted) - set(listed))
    now = os.listdir(directory)
    time.sleep(0.5)
    later = os.listdir(directory)
    return [(name, (directory / name).exists(), name in now, name in later) for name in names]


def churn(here, worker, seed, until, report):
    """Own files, which must be there in the end, and shared names that everybody fights for."""
    dice, kept = random.Random(seed), {}
    number = 0
    while time.time() < until:
        directory = here / dice.choice(SHARED)
        kind = dice.randrange(12)
        try:
            if kind <= 2:
                number += 1
                name = mine(worker, number)
                with open(directory / name, "xb") as file:
                    file.write(content_of(name))
                kept[name] = directory / name
            elif kind <= 4 and kept:
                name = dice.choice(sorted(kept))
                target = here / dice.choice(SHARED) / name
                os.rename(kept[name], target)
                kept[name] = target
            elif kind == 5 and len(kept) > 20:
                name = dice.choice(sorted(kept))
                os.unlink(kept.pop(name))
            elif kind == 6 and kept:
                name = dice.choice(sorted(kept))
                found = os.stat(kept[name])
                assert found.st_size == len(content_of(name)), f"{name}: {found.st_size} bytes"
                assert kept[name].read_bytes() == content_of(name), f"{name}: other bytes"
            elif kind == 7:
                listed = os.listdir(directory)
                own = sorted(name for name in listed if name.startswith(f"w{worker}-"))
                wanted = sorted(name for name, path in kept.items() if path.parent == directory)
                assert own == wanted, f"missing {missing(directory, wanted, own)}, " \
                                      f"too many {sorted(set(own) - set(wanted))}"
            elif kind == 8:
                (directory / f"shared{dice.randrange(4)}").write_bytes(b"s" * dice.randrange(5000))
            elif kind == 9:
                os.rename(directory / f"shared{dice.randrange(4)}",
                          here / dice.choice(SHARED) / f"shared{dice.randrange(4)}")
            elif kind == 10:
                os.unlink(directory / f"shared{dice.randrange(4)}")
            else:
                path = directory / f"dir{dice.randrange(3)}"
                os.rmdir(path) if dice.randrange(2) else os.mkdir(path)
        except OSError as problem:
            shared = "shared" in str(problem.filename) or "dir" in str(problem.filename)
            assert shared and problem.errno in EXPECTED, f"kind {kind}: {problem}"
    with open(report, "w", encoding="ascii") as file:
        for name, path in kept.items():
            file.write(f"{name} {path}\n")


def commit_all_the_time(lake, until):
    while time.time() < until:
        try:
            lake.ctl("commit", "main", "-m", "stress", "--allow-open", "--allow-empty")
        except Refused as refusal:
            assert "nothing" in str(refusal), refusal
        time.sleep(0.1)


def branch_all_the_time(lake, seed, until):
    dice, number = random.Random(seed), 0
    while time.time() < until:
        number += 1
        name = f"side{number}"
        lake.ctl("branch", "create", name, "main")
        there = lake / name / "merged"
        there.mkdir(exist_ok=True)
        (there / name).write_bytes(content_of(name))
        lake.ctl("commit", name, "-m", name)
        said = None
        for _ in range(50):
            try:
                lake.ctl("merge", name, "main")
                break
            except Refused as refusal:  # main moved, or somebody has a file open there
                said = refusal
                assert refusal.code in (1, 3), refusal
                time.sleep(0.05)
        else:
            raise AssertionError(f"{name} could not be merged: {said}")
        if dice.randrange(2):
            lake.ctl("branch", "delete", name)
    with open(lake.scratch / "merged", "w", encoding="ascii") as file:
        file.write(str(number))


def in_each_others_way(options):
    until = time.time() + SECONDS
    with Lake(*options) as lake:
        here = lake / "main"
        for name in SHARED:
            (here / name).mkdir(parents=True)
        lake.ctl("commit", "main", "-m", "start")
        dice = random.Random(SEED)
        reports = [lake.scratch / f"report{i}" for i in range(WORKERS)]
        pids = [fork(churn, here, i, dice.randrange(1 << 30), until, reports[i])
                for i in range(WORKERS)]
        pids.append(fork(commit_all_the_time, lake, until))
        pids.append(fork(branch_all_the_time, lake, dice.randrange(1 << 30), until))
        wait_for(pids, SECONDS + 60)
        wanted = {}
        for report in reports:
            for line in report.read_text().splitlines():
                name, path = line.split(" ", 1)
                wanted[path] = name
        count = int((lake.scratch / "merged").read_text())
        for number in range(1, count + 1):
            wanted[str(here / f"merged/side{number}")] = f"side{number}"

        def compare(root):
            found = {os.path.join(where, name) for where, _, names in os.walk(root)
                     for name in names if not name.startswith("shared")}
            moved = {str(root / pathlib.Path(path).relative_to(here)): name
                     for path, name in wanted.items()}
            assert found == set(moved), f"lost {sorted(set(moved) - found)[:5]}, " \
                                        f"too many {sorted(found - set(moved))[:5]}"
            for path, name in moved.items():
                assert pathlib.Path(path).read_bytes() == content_of(name), path
        compare(here)
        lake.ctl("commit", "main", "-m", "end", "--allow-empty")
        compare(here)
        compare(lake / "@main")
        lake.umount()
        lake.mount()
        compare(here)
        lake.ctl("fsck")
        print(f"# {len(wanted)} files, {count} merges")


class Clone(Lake):
    """Another host's view of the same store."""

    def __init__(self, other):
        super().__init__()
        self.url = f"file://{other.directory}/store"

    def __enter__(self):
        self.mountpoint.mkdir()
        subprocess.run([BIN / "lakectl", "clone", self.url, self.directory], check=True,
                       capture_output=True)
        self.mount()
        return self


def commit_files(lake, host, count):
    """Files of its own, and one that both hosts write: whoever loses that race is told."""
    conflicts = 0
    ids = []
    for number in range(count):
        name = lake / f"main/{host}-{number}"
        name.write_bytes(content_of(f"{host}-{number}"))
        both = number % 5 == 4
        if both:
            (lake / "main/both").write_text(f"{host} {number}")
        try:
            ids.append(lake.ctl("commit", "main", "-m", f"{host} {number}")["commit"])
        except Refused as refusal:
            assert refusal.code == 3 and both, refusal
            conflicts += 1
            assert (lake / "main/both").read_text() == f"{host} {number}", "a refused change is gone"
            lake.ctl("restore", "main", "--", "both")
            ids.append(lake.ctl("commit", "main", "-m", f"{host} {number} again")["commit"])
    (lake.scratch / "ids").write_text("\n".join(ids))
    print(f"# {host}: {len(ids)} commits, {conflicts} conflicts", flush=True)


def two_hosts():
    count = max(10, int(SECONDS * 3))
    with Lake() as first:
        (first / "main/both").write_text("start")
        first.ctl("commit", "main", "-m", "both")
        with Clone(first) as second:
            wait_for([fork(commit_files, first, "a", count), fork(commit_files, second, "b", count)],
                     SECONDS + 90)
            for lake in (first, second):
                time.sleep(1.1)  # a branch is looked at once per second
                lake.ctl("status", "main")
            ids = [set((lake.scratch / "ids").read_text().split()) for lake in (first, second)]
            for lake in (first, second):
                log = {entry["id"] for entry in lake.ctl("log", "main", "-n", 100000)["commits"]}
                assert ids[0] | ids[1] <= log, "a commit is lost"
                for host in "ab":
                    for number in range(count):
                        path = lake / f"main/{host}-{number}"
                        assert path.read_bytes() == content_of(path.name), path
            assert (first / "main/both").read_text() == (second / "main/both").read_text()
            for lake in (first, second):
                assert not lake.ctl("status", "main")["changes"]
                lake.ctl("fsck")


print("# seed", SEED)
for mode in ([], ["--no-passthrough"]):
    way = mode[0][2:] if mode else "passthrough"
    with tests.case(f"programs in each other's way, commits and merges, {way}"):
        in_each_others_way(mode)
with tests.case("two lakes on one store commit to one branch"):
    two_hosts()
tests.done()
