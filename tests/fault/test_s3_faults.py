#!/usr/bin/env python3
"""A store that fails, lies, stalls and goes away, between a real mount and a real S3 gateway.

Readers get the right bytes or EIO in bounded time; what a command said it did is done, exactly once, and what
it said failed lost nothing. LAKE_S3_FAULTS_FULL=1 runs the long version; LAKE_SEED repeats a mixture.
"""
import concurrent.futures
import contextlib
import errno
import os
import pathlib
import random
import re
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Refused, Tests, refused, until  # noqa: E402
from proxy import Ceph, Proxy, S3Lake, environment  # noqa: E402

FULL = bool(os.environ.get("LAKE_S3_FAULTS_FULL"))
SEED = int(os.environ.get("LAKE_SEED") or random.randrange(1 << 32))
TIMEOUT_S = 10  # of the store, in its URL
AWAY_TIMEOUT_S = 60 if FULL else 3  # where the store is away: 60 is the default
AGAIN_S = 5  # while it was away the last time
MIB = 1 << 20
tests = Tests()

# Each is met by one request or some; all go away when tried again.
READ_FAULTS = {
    "500": ["GET * 25% 500"],
    "503": ["GET * x4 503", "GET * 10% 503"],
    "reset": ["GET * 25% reset"],
    "answer lost": ["GET * 25% lose"],
    "cut body": ["GET * 20% cut", "GET * 10% cut random"],
    "cut headers": ["GET * 20% cut head"],
    # One each: a record is asked for twice, and of two flips both may meet it.
    "flipped bit": ["GET */packs/* x1 flip"],
    "flipped bit, later": ["GET */packs/* x1+8 flip"],
    "late answer": ["GET */packs/* x2+1 delay 1"],
}
WRITE_FAULTS = {
    "500": ["500"],
    "503": ["503"],
    "reset": ["reset"],
    "upload cut": ["cut-upload"],
    "answer lost": ["lose"],
    "500 after it was done": ["500-after"],
    "503 after it was done": ["503-after SlowDown"],
    "answer cut in its headers": ["cut head"],
    "late answer": ["delay 1"],
}


def tell(text):
    print("# " + text, flush=True)


def timed(function, *arguments):
    start = time.monotonic()
    result = function(*arguments)
    return result, time.monotonic() - start


def messages(lake, revision="main"):
    return [commit["message"].strip() for commit in lake.ctl("log", revision, "-n", "100000")["commits"]]


class Reference:
    """What each path of the committed tree holds, kept outside."""

    def __init__(self, seed):
        draw = random.Random(seed)
        self.files = {"big": draw.randbytes(24 * MIB), "middle": draw.randbytes(5 * MIB)}
        for number in range(60):
            self.files[f"small/{number}"] = draw.randbytes(10_000)
        for number in range(20):  # too large to come along with what lies beside them
            self.files[f"apart/{number}"] = draw.randbytes(700_000)

    def write(self, lake):
        for path, content in self.files.items():
            target = lake / "main" / path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)

    def check(self, lake, path, offset=0, length=None):
        """The bytes a reader gets are these; OSError passes through."""
        with open(lake / "main" / path, "rb", buffering=0) as file:
            want = self.files[path][offset:][:length]
            got = os.pread(file.fileno(), len(want), offset)
            while len(got) < len(want):
                more = os.pread(file.fileno(), len(want) - len(got), offset + len(got))
                assert more, f"{path}: a short file"
                got += more
            assert got == want, f"{path}: wrong bytes at {offset}"

    def read_all(self, lake):
        """A sequential reader, four that jump about, two that read small files; all cold."""
        draw = random.Random(1)
        places = [(draw.randrange(24 * MIB - 300_000), draw.randrange(1, 300_000)) for _ in range(60)]
        small = [path for path in self.files if path.startswith("small/")]
        with concurrent.futures.ThreadPoolExecutor(7) as pool:
            jobs = [pool.submit(self.check, lake, "middle")]
            jobs += [pool.submit(lambda part: [self.check(lake, "big", *place) for place in part], places[n::4])
                     for n in range(4)]
            jobs += [pool.submit(lambda part: [self.check(lake, path) for path in part], small[n::2]) for n in range(2)]
            for job in jobs:
                job.result()
        self.check(lake, "big")


# -- single faults --

def cold_reads(proxy, url, reference):
    with S3Lake(url, clone=True) as host:
        _, plain = timed(reference.read_all, host)
    tell(f"cold reads without a fault: {plain:.1f} s")
    for name, rules in READ_FAULTS.items():
        with tests.case(f"cold reads, {name}: right bytes"):
            with S3Lake(url, clone=True) as host:
                proxy.faults(*rules)
                try:
                    _, took = timed(reference.read_all, host)
                    hits = proxy.hits()
                finally:
                    proxy.faults()
                tell(f"{name}: {sum(hits)} faults, {took:.1f} s")
                assert all(hits), f"not every fault was met: {hits}"
                assert took < plain + 20, f"took {took:.1f} s"


def one_stall(proxy, url, reference):
    """Of many transfers one stands still: that costs about a second, not the store's patience."""
    for where in ("0%", "50%", "head"):
        with tests.case(f"a transfer that stalls at {where} is started again soon"):
            with S3Lake(url, clone=True) as host:
                reference.check(host, "middle")  # what is usual here has been learned
                reference.check(host, "small/0")
                proxy.faults(f"GET */packs/* x1 stall 60 {where}")
                _, took = timed(reference.check, host, "big")
                hits = proxy.hits()
                proxy.faults()
                tell(f"stalled at {where}: the read took {took:.2f} s")
                assert hits == [1]
                assert took < 20, f"took {took:.2f} s"


def commits(proxy, lake, direct):
    """Commits, branches and merges, each fault on each object they write."""
    branch = 0
    done = []
    for name, faults in WRITE_FAULTS.items():
        with tests.case(f"commit, branch and merge, {name}: done once"):
            branch += 1
            hits = 0

            def run(*arguments):
                nonlocal hits
                proxy.faults(*(f"PUT */{place}/* x1 {fault}" for place in ("packs", "refs") for fault in faults))
                _, took = timed(lake.ctl, *arguments)
                hits += sum(proxy.hits())
                assert took < TIMEOUT_S, f"{arguments} took {took:.1f} s"

            (lake / "main" / "faulty").write_text(name)
            run("commit", "main", "-m", name)
            done.append(name)
            run("branch", "create", f"b{branch}", "main~1")
            (lake / f"b{branch}" / f"side{branch}").write_text(name)
            run("commit", f"b{branch}", "-m", "side of " + name)
            run("merge", f"b{branch}", "main", "-m", "merge of " + name)
            done += ["side of " + name, "merge of " + name]
            run("branch", "delete", f"b{branch}")
            proxy.faults()
            assert hits == 8, f"{hits} faults were met"  # 3 packs, 5 refs
            assert lake.ctl("status", "main")["changes"] == []
    with tests.case("all of it is in history once, and nothing else"):
        with S3Lake(direct, clone=True) as host:
            log = messages(host)
            assert sorted(log[:-2]) == sorted(done), sorted(set(log[:-2]) ^ set(done))
            assert [b["name"] for b in host.ctl("branch")["branches"]] == ["main"]
            for number in range(1, branch + 1):
                assert (host / "main" / f"side{number}").exists()


def listing_faults(proxy, url):
    with tests.case("listings that fail, are cut or lost are asked for again"):
        for fault in ("500", "cut", "lose", "stall 40"):
            with S3Lake(url, clone=True) as host:
                proxy.faults(f"GET *list-type* x1 {fault}")
                assert [b["name"] for b in host.ctl("branch")["branches"]] == ["main"]
                assert proxy.hits() == [1], fault
                proxy.faults()


def permanent_flip(proxy, url, reference):
    with S3Lake(url, clone=True) as host:
        list((host / "main").iterdir())
        list((host / "main" / "apart").iterdir())
        proxy.faults("GET */packs/* always flip 50%")
        for path in ("apart/7", "big"):
            with tests.case(f"bytes that stay wrong are never served: {path}"):
                start = time.monotonic()
                try:
                    reference.check(host, path)
                    raise AssertionError("it was served")
                except OSError as error:
                    assert error.errno == errno.EIO, error
                took = time.monotonic() - start
                tell(f"{path}: EIO after {took:.2f} s, {proxy.stats()['faults']} bad answers")
                assert took < 20
                name = path.split("/")[-1]
                line = next((line for line in host.log().splitlines() if name in line and "corrupt" in line.lower()
                             or name in line and "damaged" in line.lower()), None)
                assert line, host.log()
                tell(line)
                assert re.search(r"pack [0-9a-f]{32}", line) and re.search(r"offset \d+", line), line
                assert f"main/{path}" in line, line
        proxy.faults()
        with tests.case("and are read when they are right again"):
            reference.check(host, "apart/7")
            reference.check(host, "big")


# -- the store away --

def away(proxy, url, direct, reference, kind):
    """Promise 5, with cached, uncached and new data."""
    with S3Lake(url, clone=True) as host, S3Lake(direct, clone=True) as other:
        main = host / "main"
        reference.check(host, "small/1")
        reference.check(host, "big", 0, 100_000)
        (main / "before").write_text("uncommitted")
        proxy.outage(kind)
        try:
            with tests.case(f"{kind}: cached data is read at once"):
                _, took = timed(reference.check, host, "small/1")
                reference.check(host, "big", 0, 100_000)
                assert took < 2, took
            with tests.case(f"{kind}: local writes go on"):
                _, took = timed((main / "during").write_text, "more")
                (main / "before").rename(main / "before2")
                assert (main / "before2").read_text() == "uncommitted" and took < 2, took
            with tests.case(f"{kind}: uncached reads are EIO in bounded time"):
                times = []
                for path in ("apart/17", "apart/18", "middle"):
                    start = time.monotonic()
                    with contextlib.suppress(OSError):
                        reference.check(host, path)
                        raise AssertionError("read while the store was away")
                    times.append(time.monotonic() - start)
                tell(f"{kind}: EIO after " + ", ".join(f"{t:.1f}" for t in times) + f" s (timeout {AWAY_TIMEOUT_S} s)")
                assert times[0] < AWAY_TIMEOUT_S + 2 and max(times[1:]) < AGAIN_S + 2, times
            with tests.case(f"{kind}: 16 readers at once wait no longer than one"):
                start = time.monotonic()
                with concurrent.futures.ThreadPoolExecutor(16) as pool:
                    jobs = [pool.submit(reference.check, host, f"apart/{n}") for n in range(16)]
                    assert all(isinstance(job.exception(), OSError) for job in jobs)
                assert time.monotonic() - start < 8, time.monotonic() - start
            with tests.case(f"{kind}: a commit fails and says what to do"):
                refusal, took = timed(refused, host, "commit", "main", "-m", f"during {kind}")
                tell(f"{took:.1f} s: {refusal}")
                assert took < 3 * AGAIN_S, took
                assert refusal.code == 1 and "your changes are kept: commit again later" in str(refusal)
            with tests.case(f"{kind}: nothing is lost"):
                assert (main / "before2").read_text() == "uncommitted" and (main / "during").read_text() == "more"
                assert {c["path"] for c in host.ctl("status", "main")["changes"]} == {"before2", "during"}
        finally:
            proxy.outage("none")
        with tests.case(f"{kind}, over: the commit works, others see it"):
            back = until(lambda: "the store answers again" in host.log() or _reads(reference, host), 10)
            _, took = timed(host.ctl, "commit", "main", "-m", f"after {kind}")
            tell(f"{kind}, over: reads after {back:.1f} s, commit in {took:.1f} s")
            until(lambda: (other / "main" / "during").exists())
            (other / "main" / "from other").write_text(kind)
            other.ctl("commit", "main", "-m", f"other {kind}")
            waited = until(lambda: (main / "from other").exists())
            tell(f"{kind}, over: what another host commits is seen after {waited:.1f} s")
            (other / "main" / "from other").unlink()
            (other / "main" / "during").unlink()
            (other / "main" / "before2").unlink()
            other.ctl("commit", "main", "-m", f"cleared {kind}")


def _reads(reference, host):
    with contextlib.suppress(OSError):
        reference.check(host, "apart/19")
        return True
    return False


# -- all of it at once --

class Mixture:
    """Committers on two hosts, one who makes and merges branches, readers on a third with hardly any cache."""

    RULES = ("GET */packs/* 3% flip", "GET * 3% 500", "GET * 2% cut", "GET * 2% cut random", "GET * 2% reset",
             "GET * 0.5% stall 30", "GET * 0.3% stall 30 head", "GET * 2% 503", "PUT * 4% 500-after", "PUT * 4% lose",
             "PUT * 3% 500", "PUT * 2% reset", "PUT * 2% cut-upload", "PUT * 1% delay 2", "PUT * 2% 503",
             "PUT * 2% cut head")

    def __init__(self, seed, reference):
        self.random = random.Random(seed)
        self.reference = reference
        self.stop = threading.Event()
        self.done, self.unknown, self.failed, self.wrong = {}, [], [], []
        self.reads = self.errors = 0
        self.slowest = 0.0
        self.lock = threading.Lock()

    def committer(self, host, name):
        number = 0
        draw = random.Random(f"{SEED} {name}")
        while not self.stop.is_set():
            number += 1
            message, content = f"{name}-{number}", draw.randbytes(draw.choice((100, 20_000, 300_000)))
            (host / "main" / message).write_bytes(content)
            self.attempt(host, message, content, "commit", "main", "-m", message)

    def attempt(self, host, message, content, *arguments):
        start = time.monotonic()
        try:
            host.ctl(*arguments)
            with self.lock:
                self.done[message] = content
            return True
        except Refused as refusal:
            with self.lock:
                self.failed.append((message, str(refusal)))
                if "not known" in str(refusal):
                    self.unknown.append(message)
        finally:
            self.slowest = max(self.slowest, time.monotonic() - start)
        return False

    def brancher(self, host):
        number = 0
        while not self.stop.is_set():
            number += 1
            name = f"side-{number}"
            with contextlib.suppress(Refused, OSError):
                host.ctl("branch", "create", name, "main")
                content = name.encode() * 1000
                (host / name / name).write_bytes(content)
                if self.attempt(host, name, content, "commit", name, "-m", name):
                    if not self.attempt(host, "merge " + name, None, "merge", name, "main", "-m", "merge " + name):
                        with self.lock:
                            self.unknown.append(name)  # committed, but main may not have it
                            self.done.pop(name)
                else:
                    with self.lock:
                        self.unknown.append(name)
                host.ctl("branch", "delete", name)

    def reader(self, host, seed):
        draw = random.Random(seed)
        paths = list(self.reference.files)
        while not self.stop.is_set():
            path = draw.choice(paths + ["big"] * 20)
            size = len(self.reference.files[path])
            offset = draw.randrange(size)
            start = time.monotonic()
            try:
                self.reference.check(host, path, offset, draw.randrange(1, 500_000))
            except OSError as error:
                if error.errno != errno.EIO:
                    self.wrong.append(f"{path}: {error}")
                self.errors += 1
            except AssertionError as error:
                self.wrong.append(str(error))
            self.reads += 1
            self.slowest = max(self.slowest, time.monotonic() - start)

    def run(self, seconds, writers, brancher, cold):
        threads = [threading.Thread(target=self.committer, args=(host, f"w{n}")) for n, host in enumerate(writers)]
        threads.append(threading.Thread(target=self.brancher, args=(brancher,)))
        threads += [threading.Thread(target=self.reader, args=(cold, f"{SEED} {n}")) for n in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.stop.set()
        for thread in threads:
            thread.join(120)
            assert not thread.is_alive(), "somebody hangs"


def mixture(proxy, url, direct, reference):
    seconds = 90 if FULL else 15
    tell(f"LAKE_SEED={SEED}")
    mix = Mixture(SEED, reference)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(S3Lake(url, clone=True)) for _ in range(2)]
        brancher = stack.enter_context(S3Lake(url, clone=True))
        cold = stack.enter_context(S3Lake(url, clone=True, cache_bytes_max=4 * MIB))
        proxy.reset()
        proxy.faults(*mix.RULES)
        with tests.case("a mixture of all faults: nobody hangs"):
            try:
                mix.run(seconds, writers, brancher, cold)
            finally:
                stats = proxy.stats()
                proxy.faults()
        tell(f"{stats['requests']} requests, {stats['faults']} faults; {mix.reads} reads, {mix.errors} EIO; "
             f"{len(mix.done)} done, {len(mix.failed)} failed, {len(mix.unknown)} not known; slowest {mix.slowest:.1f} s")
        for _, text in mix.failed[:5]:
            tell(text)
        with tests.case("no reader saw wrong bytes"):
            assert not mix.wrong, mix.wrong[:10]
            assert mix.reads > 100 and len(mix.done) > 10 and stats["faults"] > 50
            assert mix.errors < mix.reads / 20
        with tests.case("no operation took longer than the store's time-out allows"):
            assert mix.slowest < 4 * TIMEOUT_S, mix.slowest
        with tests.case("what failed is in the working trees, and is committed when the store is well"):
            for n, host in enumerate(writers):
                message = f"rest of w{n}"
                if host.ctl("status", "main")["changes"]:
                    host.ctl("commit", "main", "-m", message)
                    mix.done[message] = None
                assert host.ctl("status", "main")["changes"] == []
        with tests.case("every commit that succeeded is in history once, none that failed is"):
            with S3Lake(direct, clone=True) as host:
                log = messages(host)
                for message, content in mix.done.items():
                    assert log.count(message) == 1, f"{message}: {log.count(message)} times in history"
                    if content is not None:
                        assert (host / "main" / message).read_bytes() == content, message
                for message, text in mix.failed:
                    assert message in mix.unknown or message not in log, f"{message} failed ({text}) and is there"
                    if re.match(r"w\d", message):
                        assert (host / "main" / message).exists(), message
                host.ctl("fsck")


def main():
    ceph = Ceph()
    if ceph.error:
        tests.skip("S3 that fails", ceph.error)
        tests.done()
    with ceph:
        environment(ceph.keys)
        ceph.bucket("lake")
        with Proxy(ceph.endpoint, seed=SEED) as proxy:
            url = f"s3://lake/x?endpoint={proxy.url}&timeout={TIMEOUT_S}"
            direct = f"s3://lake/x?endpoint={ceph.endpoint}&timeout={TIMEOUT_S}"
            reference = Reference(3)
            with S3Lake(url) as lake:
                reference.write(lake)
                lake.ctl("commit", "main", "-m", "reference")
                cold_reads(proxy, url, reference)
                one_stall(proxy, url, reference)
                commits(proxy, lake, direct)
                listing_faults(proxy, url)
                permanent_flip(proxy, url, reference)
            for kind in ("refuse", "hang"):
                away(proxy, url.replace(f"={TIMEOUT_S}", f"={AWAY_TIMEOUT_S}"), direct, reference, kind)
            mixture(proxy, url, direct, reference)
    tests.done()


main()
