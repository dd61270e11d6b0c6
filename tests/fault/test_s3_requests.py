#!/usr/bin/env python3
"""How many requests a command sends to S3: the table in refs/README.md, counted by the gateway.

Warm: a daemon that knows the branches; cold: one just started; alone: no daemon, the command works by itself.
LAKE_REQUESTS_TABLE=1 prints what was counted, LAKE_REQUESTS_FILES sets the larger lake's size.
"""
import collections
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import ROOT, Lake, Tests  # noqa: E402

CEPH = ROOT / "tests" / "lib" / "ceph.sh"
LINE = re.compile(r'beast: \S+ \S+ - \S+ \[[^]]+\] "(\w+) /lake/?([^ ?]*)\??(\S*) HTTP/1.1" (\d+) (\d+)')
FILES = int(os.environ.get("LAKE_REQUESTS_FILES", "2000"))
SHOW = bool(os.environ.get("LAKE_REQUESTS_TABLE"))  # print what was counted
tests = Tests()
table = collections.defaultdict(dict)


class Gateway:
    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    def __enter__(self):
        subprocess.run([CEPH, "start", self.directory, "1", "1"], check=True, capture_output=True)
        for line in (self.directory / "env").read_text().splitlines():
            name, _, value = line.partition("=")
            os.environ[name] = value.strip('"')
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        subprocess.run([CEPH, "bucket", self.directory, "lake"], check=True, capture_output=True)
        self.endpoint = os.environ["LAKE_TEST_ENDPOINT"]
        self.log = next(path for path in (self.directory / "log").iterdir() if "rgw" in path.name)
        return self

    def __exit__(self, *_):
        subprocess.run([CEPH, "stop", self.directory], check=False, capture_output=True)

    def mark(self):
        time.sleep(0.05)  # a request is noted after it is answered
        return self.log.stat().st_size

    def since(self, mark):
        """What was asked: ["PUT refs/branches/main 200", ...]."""
        time.sleep(0.05)
        with open(self.log) as file:
            file.seek(mark)
            found = LINE.findall(file.read())
        return [f"{method} {key.partition('/')[2] or query[:60]} {status}" for method, key, query, status, _ in found]


class S3Lake(Lake):
    """One whose branches are looked at seldom, so that only commands ask the store."""

    count = 0

    def __init__(self, gateway, refresh_ms=60000, first=None):
        super().__init__()
        S3Lake.count += 1
        self.gateway, self.refresh_ms, self.first = gateway, refresh_ms, first
        self.url = first.url if first else f"s3://lake/l{S3Lake.count}?endpoint={gateway.endpoint}"

    def __enter__(self):
        self.mountpoint.mkdir()
        if self.first:
            self.ctl("clone", self.url, self.directory)
        else:
            self.ctl("init", "--store", self.url)
        path = self.directory / "lake.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"refresh_ms": self.refresh_ms}))
        self.mount()
        return self

    @contextlib.contextmanager
    def counted(self):
        """The list is filled with what was asked meanwhile."""
        found = []
        mark = self.gateway.mark()
        yield found
        found.extend(self.gateway.since(mark))

    def again(self):
        """A daemon that knows nothing."""
        self.umount()
        self.mount()
        os.listdir(self / "main")


def count(lake, what, state, *arguments):
    with lake.counted() as found:
        lake.ctl(*arguments)
    table[what][state] = len(found)
    if SHOW:
        print(f"# {what}, {state}: {len(found)} {found}", flush=True)
    return found


def touch(lake, branch="main", name="d/one"):
    path = lake / branch / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{time.time()}")


def fill(lake, files):
    """So many files in directories of 1,000, besides those that the commands change."""
    for number in range(0, files, 1000):
        directory = lake / "main" / f"many{number // 1000:04}"
        directory.mkdir(parents=True)
        for file in range(min(1000, files - number)):
            (directory / f"f{file:04}").write_text(f"{number} {file}")
    for name in ("d/one", "d/other"):
        touch(lake, "main", name)
    lake.ctl("commit", "main", "-m", f"{files} files")
    touch(lake)
    lake.ctl("commit", "main", "-m", "one")


BETWEEN = (
    ("branch create", ("branch", "create", "b", "main")),
    ("tag create", ("tag", "create", "t-{state}", "main")),
    ("status", ("status", "main")),
    ("log -n 10", ("log", "main", "-n", "10")),
    ("show", ("show", "main")),
    ("reflog", ("reflog", "main")),
    ("branch list", ("branch",)),
)
AFTER = (
    ("diff", ("diff", "main", "b")),
    ("merge", ("merge", "b", "main")),
    ("merge, up to date", ("merge", "b", "main")),
    ("revert", ("revert", "main", "main")),
    ("undo", ("undo", "main")),
    ("reset", ("reset", "main", "main~1")),
    ("branch rename", ("branch", "rename", "b", "c-{state}")),
    ("branch delete", ("branch", "delete", "c-{state}")),
)


def run(lake, state, listed, before):
    for name, arguments in listed:
        before()
        count(lake, name, state, *(argument.format(state=state) for argument in arguments))


def commands(lake, state, before):
    """Each once; `before` puts the lake into the state."""
    touch(lake)
    before()
    count(lake, "commit of one file", state, "commit", "main", "-m", "m")
    run(lake, state, BETWEEN, before)
    for branch, name in (("b", "d/other"), ("main", "d/one")):
        touch(lake, branch, name)
        lake.ctl("commit", branch, "-m", "m")
    run(lake, state, AFTER, before)


# At most, whatever the lake's size. Cold: each level of a tree that is not in the same window of a pack is a
# request more; "log -n 10" reads a pack for each commit, here five.
WARM = {"commit of one file": 2, "branch create": 1, "tag create": 1, "status": 0, "log -n 10": 1, "show": 2,
        "reflog": 1, "branch list": 1, "diff": 2, "merge": 3, "merge, up to date": 2, "revert": 3, "undo": 2, "reset": 2,
        "branch rename": 2, "branch delete": 2}
COLD = {"commit of one file": 5, "branch create": 3, "tag create": 1, "status": 0, "log -n 10": 8, "show": 5,
        "reflog": 1, "branch list": 3, "diff": 6, "merge": 9, "merge, up to date": 5, "revert": 8, "undo": 5, "reset": 5,
        "branch rename": 5, "branch delete": 4}


def check(state, limits):
    over = {what: (table[what][state], limit) for what, limit in limits.items() if table[what][state] > limit}
    assert not over, f"more requests than that: {over}"


def sizes(gateway):
    """The same counts in a small lake and in a larger one."""
    small, large = {}, {}
    for files, kept in ((10, small), (FILES, large)):
        with S3Lake(gateway) as lake, tests.case(f"commands in a lake of {files} files send as many as they should"):
            fill(lake, files)
            commands(lake, "warm", lambda: None)
            commands(lake, "cold", lake.again)
            touch(lake)
            lake.umount()
            count(lake, "commit of one file", "alone", "commit", "main", "-m", "m")
            commands_alone(lake)
            check("warm", WARM)
            check("cold", COLD)
            kept.update({what: dict(states) for what, states in table.items()})
    with tests.case("a daemon that knows the branches sends the same whatever the size"):
        for what in WARM:
            assert small[what]["warm"] == large[what]["warm"], (what, small[what], large[what])


def commands_alone(lake):
    """Without a daemon; each opens the lake first, which is one request."""
    run(lake, "alone", (("branch create", ("branch", "create", "b-{state}", "main")),
                        ("merge, up to date", ("merge", "b-{state}", "main")),
                        ("log -n 10", ("log", "main", "-n", "10")), ("status", ("status", "main")),
                        ("branch list", ("branch",)), ("branch delete", ("branch", "delete", "b-{state}"))), lambda: None)


def audits(gateway):
    """What rules cost, and that they cost nothing where there are none of audits."""
    with S3Lake(gateway) as lake, tests.case("publishing past an audit: verdict and log, and nothing else"):
        fill(lake, 100)
        lake.ctl("audit", "add", "main", "good", "--", "/bin/true")
        found = count(lake, "protect", "warm", "protect", "main", "--require-audits")
        assert len(found) <= 4, found
        for name in ("first", "second"):  # the first reads the rules
            lake.ctl("branch", "create", name, "main")
            touch(lake, name, "d/" + name)
            lake.ctl("commit", name, "-m", "m")
            found = count(lake, "publish, audited", "warm", "publish", name)
        assert len(found) <= 6, found
        assert len([line for line in found if line.startswith("PUT refs")]) == 1, found


def races(gateway):
    """Who loses a race repeats what changed."""
    with S3Lake(gateway) as a, S3Lake(gateway, first=a) as b:
        fill(a, 100)
        b.ctl("refresh", "main")
        with tests.case("a commit that finds the branch moved: the content is not sent again"):
            (a / "main/large").write_bytes(os.urandom(3 << 20))
            touch(b, "main", "d/other")
            b.ctl("commit", "main", "-m", "first")
            found = count(a, "commit, another host was first", "warm", "commit", "main", "-m", "second")
            packs = [line for line in found if line.startswith("PUT packs")]
            assert len(found) <= 7 and len(packs) <= 3, found
            assert len([line for line in found if line.startswith("PUT refs")]) == 2, found
            assert (a / "main/d/other").read_text() == (b / "main/d/other").read_text()
        with tests.case("what this host did a moment ago its next command sees"):
            for number in range(10):
                (a / "main/d/one").write_text(f"now {number}")
                made = a.ctl("commit", "main", "-m", f"{number}")["commit"]
                assert a.ctl("branch", "create", f"r{number}", "main")["commit"] == made
                assert a.ctl("log", "main", "-n", "1")["commits"][0]["id"] == made
                a.ctl("reset", "main", "main~1")
                assert a.ctl("tag", "create", f"r{number}", "main")["commit"] != made
        with tests.case("a command that tells, tells what another host did this instant"):
            for number in range(5):
                touch(b, "main", "d/other")
                b.ctl("refresh", "main")
                made = b.ctl("commit", "main", "-m", "told")["commit"]
                assert a.ctl("log", "main", "-n", "1")["commits"][0]["id"] == made
                a.ctl("show", made)
        with tests.case("merging takes what another host committed this instant"):
            a.ctl("branch", "create", "side", "main")
            os.listdir(b / "side")
            touch(b, "side", "d/side")
            made = b.ctl("commit", "side", "-m", "side")["commit"]
            a.ctl("merge", "side", "main")
            assert any(commit["id"] == made for commit in a.ctl("log", "main", "-n", "3")["commits"])


def listings(gateway):
    with S3Lake(gateway) as lake:
        touch(lake)
        lake.ctl("commit", "main", "-m", "one")
        for number in range(60):
            lake.ctl("branch", "create", f"b{number}", "main")
        with tests.case("branches are listed by one request, those that are not known read beside each other"):
            assert len(count(lake, "branch list, 60", "warm", "branch")) == 1
            lake.again()
            assert len(count(lake, "branch list, 60", "cold", "branch")) <= 62
            assert len(count(lake, "branch list, 60", "warm", "branch")) == 1


def garbage(gateway):
    with S3Lake(gateway) as lake:
        touch(lake)
        lake.ctl("commit", "main", "-m", "one")
        lake.ctl("branch", "create", "b", "main")
        for number in range(30):
            (lake / "main/d/one").write_bytes(os.urandom(1000))
            lake.ctl("commit", "main", "-m", f"{number}")
        lake.ctl("branch", "delete", "main", "--force")
        with tests.case("packs are removed many at a time"):
            time.sleep(1.1)
            lake.ctl("gc", "--alone", "--grace-seconds", "0", "--deleted-days", "0")
            time.sleep(1.1)
            found = count(lake, "gc of 30 packs", "warm", "gc", "--alone", "--grace-seconds", "0", "--deleted-days", "0")
            assert len(found) <= 25, found
            assert sum(line.startswith("POST") for line in found) == 1, found
            assert not [line for line in found if line.startswith("DELETE packs")], found
            assert lake.ctl("fsck")


def histories(gateway):
    """What walking commits costs a host that has none of them: each is a pack of its own."""
    commits = 100
    with S3Lake(gateway) as lake:
        fill(lake, 10)
        lake.ctl("branch", "create", "side", "main")
        for number in range(commits):
            for branch, name in (("main", "d/one"), ("side", "d/other")):
                touch(lake, branch, name)
                lake.ctl("commit", branch, "-m", f"{branch} {number}")
        with S3Lake(gateway, first=lake) as cold:
            with tests.case("a cold log of ten commits is a few requests"):
                assert len(count(cold, "log -n 10, another host's", "cold", "log", "main", "-n", "10")) <= 8
            with tests.case("a cold log of all is few requests"):
                found = count(cold, "log of 102, another host's", "cold", "log", "main", "-n", "1000")
                assert len(found) <= 22, found
        with S3Lake(gateway, first=lake) as cold, tests.case("so is a cold merge over 100 and 100 commits"):
            found = count(cold, "merge over 100 and 100", "cold", "merge", "side", "main")
            assert len(found) <= 55, found
            lake.ctl("refresh", "main")
        with tests.case("what was committed here is known to the next daemon"):
            lake.again()
            assert len(count(lake, "log -n 50", "cold", "log", "main~1", "-n", "50")) <= 4
        with tests.case("gc keeps what copies lead to, and no more"):
            lake.ctl("branch", "create", "gone", "main")
            for number in range(40):
                touch(lake, "gone", "d/gone")
                lake.ctl("commit", "gone", "-m", f"gone {number}")
            lake.ctl("branch", "delete", "gone", "--force")
            gc = ("gc", "--alone", "--grace-seconds", "0", "--deleted-days", "0")
            for _ in range(2):
                time.sleep(1.1)
                removed = lake.ctl(*gc)["removed_packs"]
            assert removed == 40, removed
            lake.ctl("fsck")
            with S3Lake(gateway, first=lake) as cold:
                assert len(cold.ctl("log", "main", "-n", "1000")["commits"]) == 2 * commits + 4
                cold.ctl("fsck")


def idle(gateway):
    with S3Lake(gateway, refresh_ms=1000) as lake, tests.case("a mount that nothing happens in asks once a second"):
        held = os.open(lake / "main", os.O_RDONLY | os.O_DIRECTORY)  # it is in use, whatever the kernel forgets
        time.sleep(2)
        with lake.counted() as found:
            time.sleep(5)
        os.close(held)
        table["idle, 5 s"]["warm"] = len(found)
        assert 1 <= len(found) <= 7, found


def main():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, Gateway(pathlib.Path(scratch) / "ceph") as gateway:
        idle(gateway)
        audits(gateway)
        races(gateway)
        listings(gateway)
        garbage(gateway)
        histories(gateway)
        sizes(gateway)
    if SHOW:
        for what, states in table.items():
            print(f"# | {what} | " + " | ".join(str(states.get(state, "")) for state in ("warm", "cold", "alone")) + " |")
    tests.done()


if __name__ == "__main__":
    main()
