#!/usr/bin/env python3
"""Many hosts over real S3: each in a network of its own, around one Ceph.

What S3 adds to test_hosts.py: requests and what they cost, networks that break, races for one ETag.
LAKE_HOSTS_FULL=1 runs the long version; arguments name the parts to run.
"""
import concurrent.futures
import mmap
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
import lake  # noqa: E402
import netns  # noqa: E402
from lake import refused, shows, until  # noqa: E402
from s3_hosts import S3, kinds  # noqa: E402

FULL = bool(os.environ.get("LAKE_HOSTS_FULL"))
INTERVAL_S = 1.0  # refresh_ms, as it is when nobody sets it
tests = lake.Tests()


def spread(values, unit="ms", factor=1000):
    values = sorted(values)
    return (f"half below {values[len(values) // 2] * factor:.0f}, 9 of 10 below "
            f"{values[int(len(values) * 0.9)] * factor:.0f}, longest {values[-1] * factor:.0f} {unit}")


# -- following --

def following(s3):
    with s3.hosts(2) as (a, b):
        with tests.case("what one host commits the other sees by path and in listings within the interval"):
            (a / "main/t").mkdir()
            took = []
            for number in range(30 if FULL else 10):
                time.sleep(random.random() * 0.3)
                (a / "main/t/changed").write_text(f"v{number}")
                (a / f"main/t/new{number}").write_text("")
                a.commit()
                took.append(until(lambda n=number: shows(b / "main/t/changed", f"v{n}")
                                  and f"new{n}" in os.listdir(b / "main/t")))
            print("# seen after: " + spread(took))
            assert sorted(took)[len(took) // 2] < INTERVAL_S + 1 and max(took) < INTERVAL_S + 5, took

        with tests.case("refresh sees it at once"):
            took = []
            for number in range(5):
                (a / "main/t/changed").write_text(f"now {number}")
                made = a.commit()["commit"]
                began = time.monotonic()
                assert b.ctl("refresh", "main")["commit"] == made
                assert (b / "main/t/changed").read_text() == f"now {number}"
                took.append(time.monotonic() - began)
            print("# refreshing and reading: " + spread(took))

        with tests.case("open files keep the version they were opened with, also what is not here yet"):
            size = 24 << 20
            old, new = (random.Random(seed).randbytes(size) for seed in (1, 2))
            (a / "main/t/large").write_bytes(old)
            a.commit()
            b.ctl("refresh", "main")
            with open(b / "main/t/large", "rb", buffering=0) as file, open(b / "main/t/large", "rb") as mapped:
                pages = mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ)
                assert file.read(4096) == old[:4096]
                (a / "main/t/large").write_bytes(new)
                a.commit()
                b.ctl("refresh", "main")
                assert (b / "main/t/large").read_bytes() == new
                assert os.pread(file.fileno(), size, 0) == old and pages[:] == old
                pages.close()


def branches_in_use(host, count):
    return [f"b{number:03}" for number in range(count - 1)] + ["main"]


def idle(s3):
    """What a mount that nobody uses asks of the store."""
    with s3.hosts(1) as (host,):
        for count in (1, 8, 100):
            names = branches_in_use(host, count)
            for name in names:
                if not (host / name).exists():
                    host.ctl("branch", "create", name, "main")
                (host / name).stat()
            time.sleep(2.2)  # looks are behind it
            rounds = 4
            mark = s3.ledger.mark()
            time.sleep(rounds)
            until(lambda m=mark: host.requests(m), 30)  # a machine that is busy elsewhere
            asked = kinds(host.requests(mark))
            print(f"# {count} branches in use, requests in {rounds} s: {asked}")
            with tests.case(f"{count} branches in use: " + ("one listing" if count >= 8 else f"{count} conditional gets")
                            + " a second, without bodies"):
                expected = {"GET listing 200": rounds} if count >= 8 else {"GET refs 304": rounds * count}
                assert set(asked) == set(expected), asked
                for kind, number in expected.items():
                    assert asked[kind] <= number + max(count % 8, 2), asked


# -- what stays --

class Stopped:
    """The daemon sleeps: whatever needs it takes half a minute."""

    def __init__(self, host):
        self.pid = host.pid()

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)
        self.timer = threading.Timer(30, os.kill, (self.pid, signal.SIGCONT))
        self.timer.start()
        self.began = time.monotonic()

    def __exit__(self, *_):
        took = time.monotonic() - self.began
        self.timer.cancel()
        os.kill(self.pid, signal.SIGCONT)
        assert took < 25, f"the daemon was asked: {took:.1f} s"


def unchanged(s3, *options):
    how = "copied" if options else "passed through"
    with s3.hosts(2, refresh_ms=200) as (a, b):
        if options:
            b.umount()
            b.ctl("mount", b.mountpoint, *options)
        for number in range(1000):
            path = a / f"main/d{number % 10}/f{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"%d" % number * 2000)
        a.commit()
        b.ctl("refresh", "main")
        paths = [b / f"main/d{number % 10}/f{number}" for number in range(1000)]
        inodes = [path.stat().st_ino for path in paths if path.read_bytes()]
        files = [open(path, "rb", buffering=0) for path in paths[100:200]]
        assert all(file.read() for file in files)
        for path in paths[100:200]:
            path.stat()  # reading changed its access time, for all the kernel knows
        nodes, stale = b.metric("lake_mount_nodes"), b.metric("lake_mount_stale_nodes_total")
        mark = s3.ledger.mark()
        (a / "main/d7/f7").write_text("changed")
        a.commit()
        until(lambda: shows(paths[7], "changed"))
        b.ctl("refresh", "main")  # and the kernel has been told everything
        for directory in (b / "main", *{path.parent for path in paths}):
            directory.stat()
        with tests.case(f"one of 1,000 files changed: names, attributes and pages of the others stay ({how})"):
            with Stopped(b):
                for number, path in enumerate(paths):
                    assert number == 7 or path.stat().st_ino == inodes[number]
                for number, file in enumerate(files, 100):
                    assert os.pread(file.fileno(), 10000, 0) == b"%d" % number * 2000
            assert b.metric("lake_mount_nodes") <= nodes + 1
            assert b.metric("lake_mount_stale_nodes_total") <= stale + 1
        with tests.case(f"that costs a few requests ({how})"):
            asked = kinds(request for request in b.requests(mark) if request.status != 304)
            print(f"# to see one changed file of 1,000: {asked}")
            assert sum(asked.values()) <= 8, asked
        for file in files:
            file.close()


# -- a network that breaks --

def cut_off(s3):
    with s3.hosts(2, timeout=3) as (a, b):
        for name in ("here", "both", "theirs"):
            (a / "main" / name).write_text("0")
        a.commit()
        b.ctl("refresh", "main")
        assert (b / "main/here").read_text() == "0"
        cold = random.randbytes(4 << 20)
        (a / "main/cold").write_bytes(cold)
        a.commit()
        b.ctl("refresh", "main")
        with b.away():
            with tests.case("a host cut off: what is here is read, changes go on, commit says what is the matter"):
                began = time.monotonic()
                assert (b / "main/here").read_text() == "0"
                (b / "main/mine").write_text("b")
                (b / "main/here").write_text("b")
                assert b.changes() == {"mine": "added", "here": "modified"}
                local = time.monotonic() - began
                refusal = refused(b, "commit", "main", "-m", "no")
                took = time.monotonic() - began - local
                print(f"# local work {local:.2f} s, commit refused after {took:.1f} s: {refusal.reply['error']['message']}")
                assert local < 2.5 and took < 15 and refusal.code == 1
                assert b.changes() == {"mine": "added", "here": "modified"}
            with tests.case("what is not here fails in bounded time"):
                began = time.monotonic()
                try:
                    (b / "main/cold").read_bytes()
                    raise AssertionError("it was read")
                except OSError:
                    print(f"# after {time.monotonic() - began:.1f} s")
                assert time.monotonic() - began < 20
            with tests.case("the others go on"):
                (a / "main/theirs").write_text("a")
                a.commit()
                (a / "main/more").write_text("a")
                theirs = a.commit()["commit"]
        with tests.case("back again: it sees the others' commits, and commits on top of them"):
            took = until(lambda: b.status()["base"] == theirs, 45)
            print(f"# seen {took:.1f} s after the network was back")
            assert (b / "main/theirs").read_text() == "a" and (b / "main/mine").read_text() == "b"
            assert (b / "main/cold").read_bytes() == cold
            made = b.commit("mine")["commit"]
            assert b.history()[0]["id"] == made and b.history()[1]["id"] == theirs
            a.ctl("refresh", "main")
            assert (a / "main/mine").read_text() == "b" and (a / "main/here").read_text() == "b"
        with tests.case("where paths collide meanwhile it is a conflict, and nothing is lost"):
            with b.away():
                (b / "main/both").write_text("b")
                (a / "main/both").write_text("a")
                a.commit()
            refusal = refused(b, "commit", "main", "-m", "no")
            assert refusal.code == 3 and "both" in refusal.reply["error"]["message"], refusal.reply
            assert (b / "main/both").read_text() == "b" and b.changes() == {"both": "modified"}
        b.ctl("restore", "main", "--", "both")
        b.ctl("refresh", "main")
        with tests.case("a commit during which the network is away for a moment goes through"):
            (b / "main/blob").write_bytes(random.randbytes(32 << 20))
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                commit = pool.submit(b.commit)
                time.sleep(0.15)
                with b.away():
                    time.sleep(1)
                made = commit.result()["commit"]
            assert a.ctl("refresh", "main")["commit"] == made
            assert (a / "main/blob").read_bytes() == (b / "main/blob").read_bytes()


# -- two hosts, one branch --

def tree_of(host):
    root = host / "main"
    return {path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def both_at_once(s3, seed):
    """Two hosts commit at the same moment; a third tells what became of it."""
    rng = random.Random(seed)
    rounds = 60 if FULL else 15
    with s3.hosts(3) as (a, b, witness):
        for number in range(6):
            (a / f"main/d{number % 2}").mkdir(exist_ok=True)
            (a / f"main/d{number % 2}/f{number}").write_text("0")
        a.commit()
        for host in (a, b):
            host.ctl("refresh", "main")
            (host / f"main/kept-{host.number}").write_text("never committed")
        expected = tree_of(a)
        del expected["kept-0"]
        rebased = conflicts = 0
        for turn in range(rounds):
            collide = rng.random() < 0.4
            names = rng.sample(range(6), 2)
            paths = [f"d{n % 2}/f{n}" for n in (names[:1] * 2 if collide else names)]
            texts = [f"{turn} by {host.number}".encode() for host in (a, b)]
            for host, path, text in zip((a, b), paths, texts):
                (host / "main" / path).write_bytes(text)
            before = [tree_of(host) for host in (a, b)]
            start = threading.Barrier(2)

            def commit(index):
                host = (a, b)[index]
                start.wait()
                try:
                    return host.commit(f"{turn} {index}", "main", "--", paths[index])
                except lake.Refused as refusal:
                    return refusal

            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                results = list(pool.map(commit, range(2)))
            for index, (host, result) in enumerate(zip((a, b), results)):
                if isinstance(result, lake.Refused):
                    conflicts += 1
                    assert collide and result.code == 3, result
                    assert paths[index] in result.reply["error"]["message"]
                    assert [c["path"] for c in result.reply["conflicts"]] == [paths[index]], result.reply
                    assert tree_of(host) == before[index], "the loser's working tree changed"
                    host.ctl("restore", "main", "--", paths[index])
                else:
                    rebased += result["rebased"]
                    expected[paths[index]] = texts[index]
            lost = sum(isinstance(result, lake.Refused) for result in results)
            assert lost == collide, results
            for host in (a, b):
                host.ctl("refresh", "main")
                assert tree_of(host) == expected | {f"kept-{host.number}": b"never committed"}
                assert host.changes() == {f"kept-{host.number}": "added"}
            witness.ctl("refresh", "main")
            assert tree_of(witness) == expected
        history = witness.history()
        assert len(history) == 2 + 2 * rounds - conflicts
        assert all(len(commit["parents"]) == 1 for commit in history[:-1])
        print(f"# {rounds} rounds: {rebased} commits re-based, {conflicts} conflicts")
        assert rebased and conflicts


# -- many hosts, one branch --

def contend(s3, group, commits, what):
    start = threading.Barrier(len(group))
    made, took, ended = [], [], []

    def work(number):
        host = group[number]
        start.wait()
        for turn in range(commits):
            (host / "main" / f"h{number}-{turn}").write_text(f"{number} {turn}")
            began = time.monotonic()
            made.append(host.commit(f"{number} {turn}"))
            took.append(time.monotonic() - began)
        ended.append(time.monotonic())

    mark = s3.ledger.mark()
    with concurrent.futures.ThreadPoolExecutor(len(group)) as pool:
        began = time.monotonic()
        list(pool.map(work, range(len(group))))
    total, all_took = len(group) * commits, max(ended) - began
    asked = kinds(s3.ledger.since(mark))
    tries = sum(count for kind, count in asked.items() if kind.startswith("PUT refs")) / total
    stored = sum(commit["bytes_stored"] for commit in made) / total
    print(f"# {what}: {total} commits in {all_took:.1f} s, {total / all_took:.1f}/s; hosts ended after "
          f"{min(ended) - began:.1f} to {all_took:.1f} s; " + spread(took))
    print(f"# per commit: {tries:.2f} tries, {stored:.0f} bytes stored; "
          + ", ".join(f"{count / total:.2f} {kind}" for kind, count in asked.items()))
    history = group[0].history()
    ids = {commit["id"] for commit in history}
    assert len(history) == len(ids) == total + 1, len(history)
    assert ids >= {commit["commit"] for commit in made} and len({commit["commit"] for commit in made}) == total
    assert all(len(commit["parents"]) == 1 for commit in history[:-1])
    for host in (group[0], group[-1]):
        host.ctl("refresh", "main")
        names = {f"h{number}-{turn}" for number in range(len(group)) for turn in range(commits)}
        assert set(os.listdir(host / "main")) == names and host.changes() == {}
        for name in random.sample(sorted(names), 20):
            assert (host / "main" / name).read_text() == name[1:].replace("-", " ")
    return tries, max(took)


def contention(s3):
    commits = 50 if FULL else 8
    with s3.hosts(8) as group:
        with tests.case(f"8 hosts x {commits} commits on one branch: all in history, none lost"):
            tries, longest = contend(s3, group, commits, "8 hosts")
            assert tries < 8 and longest < 30
    with s3.slow(15) as endpoint, s3.hosts(8, endpoint=endpoint) as group:
        commits = 50 if FULL else 3
        with tests.case(f"the same with 15 ms on each request, {commits} commits"):
            tries, longest = contend(s3, group, commits, "8 hosts, 15 ms")
            assert tries < 8 and longest < 30
    with s3.hosts(32 if FULL else 16, refresh_ms=5000) as group:
        with tests.case(f"{len(group)} hosts commit to one branch, and all get through"):
            tries, longest = contend(s3, group, 10 if FULL else 2, f"{len(group)} hosts")
            assert tries < 16 and longest < 60


def losers_store_once(s3):
    with s3.hosts(2) as (a, b), tests.case("who loses the race does not store content again"):
        size = 8 << 20
        (b / "main/large").write_bytes(random.randbytes(size))
        stop = threading.Event()

        def win():
            for turn in range(1000):
                (a / "main/small").write_text(str(turn))
                a.commit()
                if stop.is_set():
                    return turn + 1
            return 1000

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            winner = pool.submit(win)
            time.sleep(0.3)
            mark = s3.ledger.mark()
            reply = b.commit()
            stop.set()
            others = winner.result()
        asked = kinds(b.requests(mark))
        tries = sum(count for kind, count in asked.items() if kind.startswith("PUT refs"))
        print(f"# {tries} tries while {others} commits were made elsewhere: {reply['bytes_stored']} bytes stored of {size}; {asked}")
        assert reply["bytes_stored"] < size + tries * (64 << 10)


# -- branches that go, clocks that differ --

def branches_that_go(s3):
    with s3.hosts(2) as (a, b):
        a.ctl("branch", "create", "work", "main")
        until(lambda: (b / "work").exists())
        with tests.case("a branch deleted elsewhere while it is used with changes: status says so, nothing is lost"):
            (b / "work/kept").write_text("b")
            with open(b / "work/open", "w") as file:
                file.write("one ")
                file.flush()
                a.ctl("branch", "delete", "work")
                until(lambda: "gone" in b.status("work"))
                assert "branch delete" in b.status("work")["gone"]
                file.write("two")
            assert (b / "work/kept").read_text() == "b" and (b / "work/open").read_text() == "one two"
            refusal = refused(b, "commit", "work", "-m", "no")
            assert refusal.code == 5 and "deleted or renamed" in refusal.reply["error"]["message"]
            b.ctl("undo", "work")
            b.commit("yes", "work")
            until(lambda: shows(a / "work/kept", "b"))
        with tests.case("a branch renamed elsewhere while it is used with changes: the same"):
            (b / "work/kept").write_text("bb")
            a.ctl("branch", "rename", "work", "job")
            until(lambda: "gone" in b.status("work"))
            until(lambda: (b / "job/kept").exists())
            assert (b / "job/kept").read_text() == "b" and (b / "work/kept").read_text() == "bb"
            assert b.changes("work") == {"kept": "modified"}
            (b / "job/kept").write_text((b / "work/kept").read_text())
            b.commit("carried over", "job")
            b.ctl("branch", "delete", "--force", "work")
            until(lambda: shows(a / "job/kept", "bb"))
        with tests.case("one without changes goes away"):
            a.ctl("branch", "delete", "job")
            until(lambda: not (b / "job").exists())


def clocks(s3):
    faketime = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if not faketime:
        tests.skip("clocks that differ", "no faketime")
        return
    with s3.hosts(2) as (a, b), tests.case("clocks that differ by 10 minutes: commits both ways, gc keeps its grace"):
        b.umount()
        b.inside = [*b.inside, "env", f"LD_PRELOAD={faketime}", "FAKETIME=-600s", "FAKETIME_DONT_FAKE_MONOTONIC=1"]
        b.mount()
        for turn in range(3):
            for one, other in ((a, b), (b, a)):
                (one / "main/file").write_text(f"{turn} {one.number}")
                made = one.commit()["commit"]
                took = until(lambda: shows(other / "main/file", f"{turn} {one.number}"))
                assert took < INTERVAL_S + 5 and other.history()[0]["id"] == made
        times = [commit["time"] for commit in a.history()]
        assert times != sorted(times, reverse=True), "the clocks did not differ"
        # Garbage listed by the host that is behind is not old for the other.
        b.ctl("branch", "create", "gone", "main")
        (b / "gone/garbage").write_bytes(random.randbytes(1000))
        b.commit("garbage", "gone")
        b.ctl("branch", "delete", "gone")
        listed = b.ctl("gc", "--grace", "3600")
        again = a.ctl("gc", "--grace", "300", "--alone")
        assert listed["removed_packs"] == 0 and again["removed_packs"] == 0, (listed, again)


def main():
    for group in ("ceph",):
        subprocess.run([lake.ROOT / "tests/lib/install.sh", group], capture_output=True, check=False)
    why = netns.enter()
    if why:
        tests.skip("many hosts over S3", why)
        tests.done()
    seed = int(os.environ.get("SEED", time.time_ns() % 100000))
    random.seed(seed)
    print(f"# seed {seed}")
    parts = {"following": following, "idle": idle, "unchanged": unchanged,
             "copied": lambda s3: unchanged(s3, "--no-passthrough"), "cut": cut_off,
             "both": lambda s3: race(s3, seed), "once": losers_store_once, "contention": contention,
             "branches": branches_that_go, "clocks": clocks}
    try:
        with S3() as s3:
            for name in sys.argv[1:] or parts:
                began = time.monotonic()
                parts[name](s3)
                print(f"# {name}: {time.monotonic() - began:.1f} s", flush=True)
    except subprocess.CalledProcessError as error:
        tests.skip("many hosts over S3", f"Ceph does not start here: {(error.stderr or b'').decode()[-200:]}")
    tests.done()


def race(s3, seed):
    with tests.case("two hosts commit at the same moment: re-based, or a conflict that changes nothing"):
        both_at_once(s3, seed)


main()
