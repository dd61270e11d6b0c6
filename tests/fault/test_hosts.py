#!/usr/bin/env python3
"""Many hosts on one store: what one commits the others see, and nobody's commit is lost.

Each host is a lake directory of its own with its own daemon and mount. LAKE_HOSTS_FULL=1 runs the long version.
"""
import concurrent.futures
import contextlib
import json
import mmap
import os
import pathlib
import random
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Lake, Tests, refused, shows, until  # noqa: E402

FULL = bool(os.environ.get("LAKE_HOSTS_FULL"))
INTERVAL_S = 1.0  # refresh_ms, as it is when nobody sets it
tests = Tests()


class Host(Lake):
    """A lake directory on another host's store; the first one makes it."""

    def __init__(self, first=None, refresh_ms=None):
        super().__init__()
        self.first, self.refresh_ms = first or self, refresh_ms
        self.store = self.first.scratch / "store"

    def __enter__(self):
        self.mountpoint.mkdir()
        if self.first is self:
            self.ctl("init", "--store", f"file://{self.store}")
        else:
            self.ctl("clone", f"file://{self.store}", self.directory)
        if self.refresh_ms is not None:
            path = self.directory / "lake.json"
            config = json.loads(path.read_text())
            config["refresh_ms"] = self.refresh_ms
            path.write_text(json.dumps(config))
        self.mount()
        return self

    def commit(self, text="change", branch="main", *arguments):
        return self.ctl("commit", branch, "-m", text, *arguments)

    def status(self, branch="main"):
        return self.ctl("status", branch)

    def changes(self, branch="main"):
        return {change["path"]: change["change"] for change in self.status(branch)["changes"]}

    def log(self):
        return (self.directory / "laked.log").read_text(errors="replace")


@contextlib.contextmanager
def hosts(count, **options):
    """Started and ended beside each other: ending one takes a while."""
    first = Host(**options)
    group = [first] + [Host(first, **options) for _ in range(count - 1)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        try:
            first.__enter__()
            list(pool.map(Host.__enter__, group[1:]))
            yield group
        finally:
            list(pool.map(Host.__exit__, group[1:]))
            first.__exit__()


def history(host, branch="main"):
    return host.ctl("log", branch)["commits"]


def following(a, b):
    with tests.case("what one host commits the other sees within the refresh interval"):
        (a / "main/t").mkdir()
        (a / "main/t/one").write_text("1")
        (a / "main/t/same").write_text("same")
        a.commit()
        took = until(lambda: shows(b / "main/t/one", "1"))
        assert took < INTERVAL_S + 5, took
        until(lambda: sorted(os.listdir(b / "main/t")) == ["one", "same"])

    with tests.case("a path that is looked at all the time shows the new content, too"):
        assert (b / "main/t/same").read_text() == "same"
        inode = (b / "main/t/same").stat().st_ino
        (a / "main/t/one").write_text("22")
        a.commit()
        took = until(lambda: shows(b / "main/t/one", "22"))
        assert took < INTERVAL_S + 5, took
        assert (b / "main/t/same").stat().st_ino == inode

    with tests.case("an open file keeps the version it was opened with"):
        with open(b / "main/t/one") as old, open(b / "main/t/one", "rb") as mapped:
            pages = mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ)
            (a / "main/t/one").write_text("333")
            a.commit()
            until(lambda: shows(b / "main/t/one", "333"))
            assert old.read() == "22" and pages[:] == b"22"
            pages.close()

    with tests.case("refresh sees it at once and says what happened"):
        for number in range(5):
            (a / "main/t/one").write_text(f"now {number}")
            made = a.commit()["commit"]
            reply = b.ctl("refresh", "main")
            assert reply["commit"] == made
            assert (b / "main/t/one").read_text() == f"now {number}"
            assert reply.get("changed", 1) == 1, reply
        assert "was" not in b.ctl("refresh", "main")

    with tests.case("a branch deleted elsewhere goes, one made elsewhere comes"):
        a.ctl("branch", "create", "other", "main")
        until(lambda: (b / "other/t/one").exists())
        a.ctl("branch", "delete", "other")
        until(lambda: not (b / "other").exists())
        a.ctl("branch", "create", "other", "main")
        a.ctl("branch", "rename", "other", "another")
        until(lambda: (b / "another/t/one").exists() and not (b / "other").exists())


def uncommitted(a, b):
    for name in ("mine", "theirs", "both"):
        (a / "main/t" / name).write_text("0")
    a.commit()
    b.ctl("refresh", "main")

    with tests.case("uncommitted changes go on over what others committed"):
        (b / "main/t/mine").write_text("b")
        (b / "main/new").write_text("b")
        os.rename(b / "main/new", b / "main/renamed")
        (a / "main/t/theirs").write_text("a")
        made = a.commit()["commit"]
        until(lambda: shows(b / "main/t/theirs", "a"))
        assert (b / "main/t/mine").read_text() == "b"
        status = b.status()
        assert status["base"] == made and "behind" not in status, status
        assert b.changes() == {"renamed": "added", "t/mine": "modified"}

    with tests.case("a file open for writing meanwhile loses nothing"):
        with open(b / "main/t/open", "w") as file, open(b / "main/t/mine", "r+b") as old:
            mapped = mmap.mmap(old.fileno(), 1)
            for number in range(4):
                file.write(f"{number}\n")
                file.flush()
                (a / "main/t/theirs").write_text(f"a{number}")
                a.commit()
                b.ctl("refresh", "main")
                assert (b / "main/t/theirs").read_text() == f"a{number}"
                mapped[0:1] = b"%d" % number
            file.write("end\n")
            mapped.close()
        assert (b / "main/t/open").read_text() == "0\n1\n2\n3\nend\n"
        assert (b / "main/t/mine").read_text() == "3"
        b.commit()
        a.ctl("refresh", "main")
        assert (a / "main/t/open").read_text() == "0\n1\n2\n3\nend\n"

    with tests.case("a directory removed elsewhere while a file in it is open stays"):
        (a / "main/gone").mkdir()
        (a / "main/gone/file").write_text("0")
        a.commit()
        b.ctl("refresh", "main")
        with open(b / "main/gone/file", "r+") as file:
            (a / "main/gone/file").unlink()
            (a / "main/gone").rmdir()
            a.commit()
            assert b.ctl("refresh", "main")["collisions"] == ["gone"]
            file.write("kept")
        assert (b / "main/gone/file").read_text() == "kept"
        b.ctl("restore", "main", "--", "gone")
        assert "behind" not in b.ctl("refresh", "main")
        assert not (b / "main/gone").exists()

    with tests.case("where paths collide the working tree stays, and status says so"):
        (b / "main/t/both").write_text("b")
        (b / "main/t/own").write_text("b")
        base = b.status()["base"]
        for number in range(3):
            (a / "main/t/both").write_text(f"a{number}")
            a.commit()
        until(lambda: b.status().get("behind") == 3)
        status = b.status()
        assert status["collisions"] == ["t/both"] and status["base"] == base, status
        text = subprocess.run([BIN / "lakectl", "--lake", b.directory, "status", "main"],
                              capture_output=True, text=True, check=True).stdout
        assert "moved by 3 commits" in text and "t/both" in text, text
        assert (b / "main/t/both").read_text() == "b"
        assert refused(b, "commit", "main", "-m", "no").code == 3
        assert (b / "main/t/both").read_text() == "b"
        b.ctl("restore", "main", "--", "t/both")
        until(lambda: "behind" not in b.status(), 15)
        assert (b / "main/t/both").read_text() == "a2"
        assert b.changes() == {"t/own": "added"}

    with tests.case("status looks itself where no client refers to the branch"):
        (b / "main/t/both").write_text("b")
        b.umount()
        b.mount()
        (a / "main/t/both").write_text("a3")
        a.commit()
        status = b.status()
        assert status["collisions"] == ["t/both"] and status["behind"] == 1, status
        b.ctl("restore", "main", "--", "t/both")
        b.ctl("refresh", "main")
        assert (b / "main/t/both").read_text() == "a3"

    with tests.case("the same change on both sides is none"):
        (b / "main/t/both").write_text("same")
        (a / "main/t/both").write_text("same")
        a.commit()
        b.ctl("refresh", "main")
        assert b.changes() == {"t/own": "added"}
        b.commit()

    with tests.case("uncommitted changes of a branch deleted elsewhere are kept until it is back"):
        a.ctl("branch", "create", "work", "main")
        until(lambda: (b / "work").exists())
        (b / "work/kept").write_text("b")
        a.ctl("branch", "delete", "work")
        until(lambda: "gone" in b.status("work"))
        assert "branch delete" in b.status("work")["gone"]
        assert (b / "work/kept").read_text() == "b" and "work" in os.listdir(b.mountpoint)
        assert "work" not in os.listdir(a.mountpoint)
        refusal = refused(b, "commit", "work", "-m", "no")
        assert refusal.code == 5 and "deleted or renamed" in refusal.reply["error"]["message"]
        b.umount()
        b.mount()
        assert (b / "work/kept").read_text() == "b"
        b.ctl("undo", "work")
        b.commit("yes", "work")
        until(lambda: shows(a / "work/kept", "b"))

    with tests.case("they can be thrown away, too"):
        (b / "work/kept").write_text("again")
        a.ctl("branch", "delete", "work")
        until(lambda: "gone" in b.status("work"))
        b.ctl("branch", "delete", "--force", "work")
        assert not (b / "work").exists() and "work" not in os.listdir(b.mountpoint)


def state(lake, number, writer, table="t"):
    """A new state of an Iceberg table, as far as names go: nobody else's file is called so."""
    (lake / f"main/{table}/metadata/{number:05}-{writer}.metadata.json").write_text(writer)


def states(lake, table="t"):
    return sorted(name[:7] for name in os.listdir(lake / f"main/{table}/metadata"))


def tables():
    with hosts(2, refresh_ms=0) as (a, b):
        for table in "tu":
            (a / f"main/{table}/metadata").mkdir(parents=True)
            state(a, 1, "a", table)
        a.commit()
        b.ctl("refresh", "main")

        with tests.case("two hosts write a state of one table: no name collides, the table does"):
            state(b, 2, "b")
            (b / "main/t/data-b").write_text("b")
            state(a, 2, "a")
            a.commit()
            b.ctl("refresh", "main")
            status = b.status()
            assert status["collisions"] == ["t/metadata"] and status["behind"] == 1, status
            assert states(b) == ["00001-a", "00002-b"], states(b)
            refusal = refused(b, "commit", "main", "-m", "no")
            assert refusal.code == 3 and "t" in refusal.reply["error"]["message"], refusal
            assert states(b) == ["00001-a", "00002-b"] and (b / "main/t/data-b").read_text() == "b"
            b.ctl("restore", "main", "--", "t")
            b.ctl("refresh", "main")
            assert states(b) == ["00001-a", "00002-a"]
            state(b, 3, "b")
            b.commit()
        with tests.case("the same without having looked: the commit itself is refused"):
            state(a, 4, "b")  # on what it last saw
            refusal = refused(a, "commit", "main", "-m", "no")
            assert refusal.code == 3 and [conflict["path"] for conflict in refusal.reply["conflicts"]] == ["t"], refusal
            assert "each knows only its own" in refusal.reply["conflicts"][0]["sentence"]
            a.ctl("restore", "main", "--", "t")
            a.ctl("refresh", "main")
        with tests.case("a part of a table's changes is refused as well"):
            state(a, 4, "a")
            a.commit()
            state(b, 4, "b")
            (b / "main/other").write_text("b")
            refusal = refused(b, "commit", "main", "-m", "no", "--", "other")
            assert refusal.code == 3 and "t/metadata" in refusal.reply["error"]["message"], refusal
            b.ctl("restore", "main", "--", "t")
            b.ctl("refresh", "main")
            assert b.changes() == {"other": "added"}
            b.commit()
        with tests.case("different tables, data without a state, the same state on both sides: all go together"):
            a.ctl("refresh", "main")
            state(b, 5, "b", "u")
            (b / "main/t/data-5").write_text("b")
            state(a, 5, "a")
            (a / "main/t/metadata/00001-a.metadata.json").unlink()  # as writers do that keep only the last ones
            a.commit()
            b.ctl("refresh", "main")
            assert states(b, "u") == ["00001-a", "00005-b"] and states(b)[-1] == "00005-a"
            state(b, 6, "a")
            state(a, 6, "a")
            a.commit()
            b.commit()
            a.ctl("refresh", "main")
            assert states(a) == states(b) and states(a)[-1] == "00006-a"
            assert (a / "main/t/data-5").read_text() == "b" and "00005-b" in states(a, "u")


def never_and_away():
    with hosts(2, refresh_ms=0) as (a, b):
        with tests.case("refresh_ms 0: only refresh looks"):
            assert os.listdir(b / "main") == []
            (a / "main/x").write_text("x")
            a.commit()
            time.sleep(1.5)
            assert not (b / "main/x").exists()
            b.ctl("refresh", "main")
            assert (b / "main/x").read_text() == "x"

    with hosts(2, refresh_ms=100) as (a, b):
        with tests.case("the store away: one line, what is here stays usable, and following goes on after"):
            (a / "main/x").write_text("x")
            a.commit()
            until(lambda: shows(b / "main/x", "x"))
            (b / "main/mine").write_text("b")
            away = a.store.with_suffix(".away")
            os.rename(a.store, away)
            until(lambda: "does not answer" in b.log(), 30)
            time.sleep(2)
            assert (b / "main/x").read_text() == "x"
            (b / "main/mine").write_text("bb")
            (b / "main/more").write_text("b")
            assert b.log().count("does not answer") == 1, b.log()
            os.rename(away, a.store)
            (a / "main/x").write_text("y")
            a.commit()
            until(lambda: shows(b / "main/x", "y"), 30)
            until(lambda: "answers again" in b.log(), 30)
            assert b.log().count("does not answer") == 1 and b.log().count("answers again") == 1, b.log()
            assert b.changes() == {"mine": "added", "more": "added"}


def many_branches(a, b):
    with tests.case("many branches in use are followed"):
        names = [f"b{number:02}" for number in range(24)]
        for name in names:
            a.ctl("branch", "create", name, "main")
        for name in names:
            until(lambda name=name: (b / name).exists())
        for name in names[::3]:
            (a / name / "x").write_text(name)
            a.commit("x", name)
        for name in names[::3]:
            until(lambda name=name: shows(b / name / "x", name))
        a.ctl("branch", "delete", names[0])
        until(lambda: not (b / names[0]).exists())


def garbage(a, b):
    """Equal directories that hosts stored without knowing of each other lie in packs of their own."""
    def same(host, branch):
        directory = host / branch / "same"
        directory.mkdir()
        for number in range(20):
            (directory / f"{number}").write_text(f"same {number}")
            os.utime(directory / f"{number}", (1000, 1000))
        host.commit("same", branch)

    with tests.case("gc keeps equal directories of two hosts, each where it is used"):
        a.ctl("branch", "create", "zz", "main")
        a.ctl("branch", "create", "temporary", "main")
        a.ctl("branch", "create", "other", "main")
        same(a, "zz")
        b.ctl("refresh", "temporary")
        same(b, "temporary")
        (b / "other/own").write_text("a root of its own")
        b.commit("own", "other")
        b.ctl("merge", "temporary", "other", "--squash", "-m", "squashed")
        b.ctl("branch", "delete", "temporary", "--force")
        for _ in range(2):
            time.sleep(1.1)
            a.ctl("gc", "--alone", "--grace-seconds", "0", "--deleted-days", "0")
        a.ctl("fsck")
        with Host(a) as late:
            for branch in ("zz", "other"):
                assert (late / branch / "same/7").read_text() == "same 7"
            late.ctl("fsck")


def contend(group, commits):
    """Every host commits files of its own to main, all at once."""
    count = len(group)
    start = threading.Barrier(count)
    worst = []

    def work(number):
        host, made = group[number], []
        start.wait()
        for turn in range(commits):
            (host / "main" / f"h{number}-{turn}").write_text(f"{number} {turn}")
            began = time.time()
            made.append(host.commit(f"{number} {turn}")["commit"])
            worst.append(time.time() - began)
        return made

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        began = time.time()
        made = [commit for list_ in pool.map(work, range(count)) for commit in list_]
        took = time.time() - began
    total = count * commits
    print(f"# {count} hosts: {total} commits in {took:.1f} s, {total / took:.0f} per second; "
          f"slowest {max(worst):.2f} s")
    seen = history(group[0])
    ids = {commit["id"] for commit in seen}
    assert len(made) == len(set(made)) == total
    assert ids >= set(made) and len(ids) == total + 1, len(ids)
    # nothing was lost from the tree, either, and the history is a line
    assert all(len(commit["parents"]) == 1 for commit in seen[:-1])
    for host in (group[0], group[-1]):
        host.ctl("refresh", "main")
        for number in range(count):
            for turn in range(commits):
                assert (host / "main" / f"h{number}-{turn}").read_text() == f"{number} {turn}"
        assert host.changes() == {}


def merges(group):
    turns = 10 if FULL else 4
    for number, host in enumerate(group):
        host.ctl("branch", "create", f"w{number}", "main")

    def work(number):
        host, branch = group[number], f"w{number}"
        for turn in range(turns):
            (host / branch / "new").write_text(str(number))
            os.rename(host / branch / "new", host / branch / f"m{number}-{turn}")
            host.commit("work", branch)
            host.ctl("merge", branch, "main")

    with concurrent.futures.ThreadPoolExecutor(len(group)) as pool:
        began = time.time()
        list(pool.map(work, range(len(group))))
    total = len(group) * turns
    print(f"# {len(group)} hosts: {total / (time.time() - began):.0f} commits and merges per second")
    group[0].ctl("refresh", "main")
    names = {f"m{number}-{turn}" for number in range(len(group)) for turn in range(turns)}
    assert names <= set(os.listdir(group[0] / "main")), names - set(os.listdir(group[0] / "main"))
    assert sum(commit["message"] == "work" for commit in history(group[0])) == total


def contention():
    with hosts(8, refresh_ms=10000) as group:
        with tests.case("8 hosts x 25 commits on one branch: all in history, none lost"):
            contend(group, 50 if FULL else 25)
        with tests.case("hosts merge into one branch at once: all merges are in it"):
            merges(group)
    with tests.case("32 hosts commit to one branch, and all get through"):
        with hosts(32, refresh_ms=10000) as group:
            contend(group, 10 if FULL else 2)


def turmoil():
    """Changes everywhere, followers on: no commit that returned 0 is lost, nor is what was not committed."""
    with tests.case("commits under following, with changes that stay uncommitted"):
        with hosts(3, refresh_ms=20) as group:
            seed = int(os.environ.get("SEED", time.time_ns() % 100000))
            print(f"# seed {seed}")
            end = time.time() + (60 if FULL else 4)

            def work(number):
                host, rng, mine, committed = group[number], random.Random(seed + number), {}, {}
                while time.time() < end:
                    name = f"{number}-{rng.randrange(20)}"
                    text = f"{number} {rng.random()}"
                    (host / "main" / name).write_text(text)
                    mine[name] = text
                    for path, expected in mine.items():
                        assert (host / "main" / path).read_text() == expected, path
                    if rng.random() < 0.3:
                        host.commit()
                        committed = dict(mine)
                return mine, committed

            with concurrent.futures.ThreadPoolExecutor(3) as pool:
                results = list(pool.map(work, range(3)))
            for host in group:
                host.ctl("refresh", "main")
            for number, (mine, committed) in enumerate(results):
                for path, text in mine.items():
                    assert (group[number] / "main" / path).read_text() == text, path
                for path, text in committed.items():
                    assert (group[(number + 1) % 3] / "main" / path).read_text() == text, path


with hosts(2) as pair:
    following(*pair)
    uncommitted(*pair)
    many_branches(*pair)
with hosts(2) as pair:
    garbage(*pair)
tables()
never_and_away()
contention()
turmoil()
tests.done()
