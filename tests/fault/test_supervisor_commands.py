#!/usr/bin/env python3
"""kill -9 of the server under commands, of its supervisor, and of both: what was cut says so, a branch stands
where it stood or where the command put it, and mounting again brings everything back.

SUPERVISOR_CUTS says how often a command is cut (12), SUPERVISOR_SEED repeats the choices.
"""
import errno
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
import lake as library  # noqa: E402
from lake import Lake, Tests, refused, until  # noqa: E402

CUTS = int(os.environ.get("SUPERVISOR_CUTS", "12"))
SEED = int(os.environ.get("SUPERVISOR_SEED", "0")) or random.randrange(1 << 30)
KINDS = ("commit", "merge", "publish", "reset", "rename", "create")
GONE = (errno.ENOTCONN, errno.ECONNABORTED)
tests = Tests()


def heads(lake):
    return {branch["name"]: branch["commit"] for branch in lake.ctl("branch", "list")["branches"]}


def start(lake, *arguments):
    return subprocess.Popen([library.BIN / "lakectl", "--lake", lake.directory, "--json", *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_server(lake):
    until(lake.pid)
    pid = lake.pid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}/fd/0") and lake.threads(pid) <= 1)


class Cutting:
    """One command after the other, the server being killed meanwhile."""

    def __init__(self, lake, dice):
        self.lake, self.dice, self.number = lake, dice, 0
        self.seconds = {kind: [] for kind in KINDS}
        self.seen = {}  # kind: how often it was answered, cut before it was done, cut afterwards

    def prepare(self, kind):
        """What is to be done, with which branches, and a file that tells whether the content came along."""
        lake, self.number = self.lake, self.number + 1
        name = f"{kind}{self.number}"
        if kind in ("commit", "reset"):
            (lake / "main" / name).write_bytes(self.dice.randbytes(300_000))
        if kind == "reset":
            lake.ctl("commit", "main", "-m", name)
            return ["reset", "main", "main~1", "--discard"], "main"
        if kind in ("merge", "publish"):
            (lake / "side" / name).write_bytes(self.dice.randbytes(300_000))
            lake.ctl("commit", "side", "-m", name)
            return [kind, "side", *(["main"] if kind == "merge" else ["--into", "main"])], "main"
        if kind == "rename":
            lake.ctl("branch", "create", name, "main")
            (lake / name / "uncommitted").write_text(name)
            return ["branch", "rename", name, name + "-new"], name
        return (["commit", "main", "-m", name], "main") if kind == "commit" else \
            (["branch", "create", name, "main"], name)

    def cut(self, kind):
        arguments, branch = self.prepare(kind)
        before = heads(self.lake)
        begun = time.monotonic()
        command = start(self.lake, *arguments)
        if self.seconds[kind]:  # the first shows how long it takes
            time.sleep(statistics.median(self.seconds[kind][-9:]) * self.dice.uniform(0.1, 1))
            kill_server(self.lake)
        out, err = command.communicate(timeout=120)
        took = time.monotonic() - begun
        after = heads(self.lake)
        counts = self.seen.setdefault(kind, [0, 0, 0])
        if command.returncode == 0:
            counts[0] += 1
            self.seconds[kind].append(took)
        else:
            self.check_failure(command.returncode, out, err)
            counts[1 + (before != after)] += 1
        if kind in ("rename", "create"):
            self.check_names(kind, branch, after, command.returncode == 0)
        else:
            self.check_head(kind, before[branch], after[branch], json.loads(out), command.returncode == 0)
        self.check_changes(kind, branch, before != after)

    @staticmethod
    def check_failure(code, out, err):
        assert code == 1, (code, err)
        error = json.loads(out)["error"]
        assert "laked ended the connection before it answered" in error["message"], error
        assert "look whether it was done before you repeat it" in err, err

    def check_head(self, kind, old, new, reply, done):
        if done:
            assert new == reply["commit"] != old, (old, new, reply)
        elif new != old:
            parents = {parent for entry in self.lake.ctl("log", new if kind != "reset" else old, "-n", 1)["commits"]
                       for parent in entry["parents"]}
            assert {"reset": new}.get(kind, old) in parents, (kind, old, new, parents)

    def check_names(self, kind, name, after, done):
        if kind == "rename":
            there = {name, name + "-new"} & after.keys()
            assert there == {name + "-new"} if done else there, there
        else:
            assert not done or name in after

    def check_changes(self, kind, branch, moved):
        """Everything is committed, or still uncommitted, or taken back by who asked for that."""
        changes = [change["path"] for change in self.lake.ctl("status", "main")["changes"]]
        name = f"{kind}{self.number}"
        if kind == "commit":
            assert changes == ([] if moved else [name]), (changes, moved)
            assert (self.lake / "main" / name).stat().st_size == 300_000
            if not moved:
                self.lake.ctl("commit", "main", "-m", "again")
        else:
            assert not changes, changes
        if kind in ("merge", "publish"):
            assert (self.lake / "main" / name).exists() == moved
        elif kind == "reset":
            assert (self.lake / "main" / name).exists() == (not moved)
        elif kind == "rename":
            # half done both names are there, and what is uncommitted is the old one's
            owner = branch if branch in heads(self.lake) else branch + "-new"
            assert (self.lake / owner / "uncommitted").read_text() == branch


def commands():
    dice = random.Random(SEED)
    print(f"# seed {SEED}", flush=True)
    with Lake("--restarts", "4000") as lake:
        lake.ctl("commit", "main", "-m", "first", "--allow-empty")
        lake.ctl("branch", "create", "side", "main")
        cutting = Cutting(lake, dice)
        for kind in KINDS:
            with tests.case(f"{kind}: a server that dies cuts it, and it says so; done whole, or not"):
                for _ in range(1 + CUTS // len(KINDS)):
                    cutting.cut(kind)
        print("# [answered, cut and not done, cut and done]:", json.dumps(cutting.seen), flush=True)
        with tests.case("a command that comes while no server listens waits for the next one"):
            for _ in range(5):
                kill_server(lake)
                lake.ctl("branch", "list")
        with tests.case("the lake is sound"):
            lake.ctl("fsck")


def access(path):
    """The errno of looking there, 0 when that works."""
    code = "import os, sys\ntry:\n    os.stat(sys.argv[1])\nexcept OSError as e:\n    sys.exit(e.errno)"
    return subprocess.run([sys.executable, "-c", code, path], timeout=60, check=False).returncode


def kill_both(lake, order):
    server = lake.pid()
    keeper = lake.supervisors(server)[0]
    if order == "at the same time":
        os.kill(keeper, signal.SIGSTOP)
        os.kill(server, signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
    else:
        for pid in ((keeper, server) if order == "supervisor first" else (server, keeper)):
            os.kill(pid, signal.SIGKILL)


def both(order):
    """Its supervisor dies, too: the mount is dead, and says so; or, when that had time to begin
    another server, that one goes on alone."""
    with Lake() as lake:
        path = lake / "main/file"
        path.write_text("committed")
        lake.ctl("commit", "main", "-m", "file")
        head = heads(lake)["main"]
        path.write_text("uncommitted")
        held = os.open(lake / "main/held", os.O_RDWR | os.O_CREAT)
        os.write(held, b"held")
        kill_both(lake, order)
        result = access(path)
        assert result in ((0, *GONE) if order == "server first" else GONE), errno.errorcode.get(result, result)
        if result:
            try:
                os.ftruncate(held, 2)
                raise AssertionError("done by nobody")
            except OSError as problem:
                assert problem.errno in GONE, problem
            changes = lake.ctl("status", "main")["changes"]  # without a server
            assert {change["path"] for change in changes} == {"file", "held"}, changes
            lake.mount()
        os.close(held)
        assert path.read_text() == "uncommitted" and (lake / "main/held").read_text() == "held"
        assert heads(lake)["main"] == head
        lake.ctl("commit", "main", "-m", "again")
        assert (lake / "@main/file").read_text() == "uncommitted"
        lake.ctl("fsck")
        lake.umount()
        assert access(lake.mountpoint) == 0 and not os.listdir(lake.mountpoint)


def alone():
    with Lake() as lake:
        with tests.case("a supervisor that dies under a commit is not noticed"):
            for i in range(3):
                (lake / f"main/file{i}").write_bytes(os.urandom(3_000_000))
                command = start(lake, "commit", "main", "-m", "c")
                if i == 0:
                    os.kill(lake.supervisors(lake.pid())[0], signal.SIGKILL)
                out, err = command.communicate(timeout=60)
                assert command.returncode == 0 and json.loads(out)["commit"] == heads(lake)["main"], err
                assert not lake.supervisors(lake.pid())
        with tests.case("a server without one is unmounted as any other"):
            pid = lake.pid()
            lake.umount()
            until(lambda: not os.path.exists(f"/proc/{pid}"))
            assert not os.listdir(lake.mountpoint)
            lake.mount()
            assert lake.supervisors(lake.pid()) and (lake / "main/file2").stat().st_size == 3_000_000
        with tests.case("a dead mount can also just be unmounted"):
            (lake / "main/last").write_text("last")
            kill_both(lake, "at the same time")
            assert access(lake / "main") in GONE
            refusal = refused(lake, "umount", lake.mountpoint)
            assert refusal.code == 5 and f"umount -l {lake.mountpoint}" in str(refusal), refusal
            subprocess.run(["umount", "-l", lake.mountpoint], check=True)
            assert access(lake.mountpoint) == 0 and not os.listdir(lake.mountpoint)
            lake.mount()
            assert (lake / "main/last").read_text() == "last"


commands()
alone()
for chosen in ("supervisor first", "server first", "at the same time"):
    with tests.case(f"kill -9 of both, {chosen}: nothing is lost, and mounting works"):
        both(chosen)
tests.done()
