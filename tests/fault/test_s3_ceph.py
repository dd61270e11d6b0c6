#!/usr/bin/env python3
"""kill -9 inside the store: an OSD and then a gateway of a Ceph with three OSDs and two gateways, while two hosts
commit and others read cold data. Every acknowledged commit is there at the end, once, with its bytes; readers
get the right bytes or EIO. A balancer (the proxy) stands before the gateways; without one, a host waits
for its gateway. LAKE_S3_CEPH_FULL=1 runs longer; LAKE_SEED repeats what is written and read.
"""
import contextlib
import errno
import os
import pathlib
import random
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Refused, Tests  # noqa: E402
from proxy import Ceph, Proxy, S3Lake, environment  # noqa: E402

FULL = bool(os.environ.get("LAKE_S3_CEPH_FULL"))
SEED = int(os.environ.get("LAKE_SEED") or random.randrange(1 << 32))
PHASE_S = 25 if FULL else 8
TIMEOUT_S = 30
RESUME_S = 25  # Ceph takes 5 s or so to notice that an OSD is dead
MIB = 1 << 20
tests = Tests()


def tell(text):
    print("# " + text, flush=True)


class Load:
    """Writers with a ledger, readers with hardly any cache; when each last succeeded."""

    def __init__(self, files):
        self.files = files
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.done, self.failed, self.wrong = {}, {}, []
        self.commits, self.reads = [], []  # when they succeeded
        self.errors = 0
        self.slowest = 0.0
        self.threads = []

    def write(self, host, name):
        draw = random.Random(f"{SEED} {name}")
        number = 0
        while not self.stop.is_set():
            number += 1
            message, content = f"{name}-{number}", draw.randbytes(draw.choice((500, 30_000)))
            (host / "main" / message).write_bytes(content)
            start = time.monotonic()
            try:
                host.ctl("commit", "main", "-m", message)
                with self.lock:
                    self.done[message] = content
                    self.commits.append(time.monotonic())
            except Refused as refusal:
                with self.lock:
                    self.failed[message] = str(refusal)
            with self.lock:
                self.slowest = max(self.slowest, time.monotonic() - start)

    def read(self, host, name):
        draw = random.Random(f"{SEED} {name}")
        while not self.stop.is_set():
            path = draw.choice(list(self.files))
            start = time.monotonic()
            try:
                if (host / "main" / path).read_bytes() != self.files[path]:
                    self.wrong.append(path)
                with self.lock:
                    self.reads.append(time.monotonic())
            except OSError as error:
                if error.errno != errno.EIO:
                    self.wrong.append(f"{path}: {error}")
                self.errors += 1
            with self.lock:
                self.slowest = max(self.slowest, time.monotonic() - start)

    def start(self, target, *arguments):
        self.threads.append(threading.Thread(target=target, args=arguments))
        self.threads[-1].start()

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(2 * TIMEOUT_S + 30)
            assert not thread.is_alive(), "somebody hangs"

    def resumed(self, when, seconds):
        """Commits and reads that began after `when` succeed again; the longest silences since then."""
        def gap(times):
            times = [when] + [t for t in times if t > when]
            return max((b - a for a, b in zip(times, times[1:])), default=None)

        time.sleep(seconds)
        end = time.monotonic() + RESUME_S
        while time.monotonic() < end:
            with self.lock:
                commits, reads = gap(self.commits), gap(self.reads)
                now = time.monotonic()
                if commits and reads and now - self.commits[-1] < 2 and now - self.reads[-1] < 2:
                    return commits, reads
            time.sleep(0.1)
        raise AssertionError("not resumed")


def history(url):
    with S3Lake(url, clone=True) as host:
        log = [commit["message"].strip() for commit in host.ctl("log", "main", "-n", "100000")["commits"]]
        yield host, log


def under_load(ceph, proxy, files):
    url = f"s3://lake/x?endpoint={proxy.url}&timeout={TIMEOUT_S}"
    tell(f"LAKE_SEED={SEED}")
    load = Load(files)
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(S3Lake(url, clone=True)) for _ in range(2)]
        cold = [stack.enter_context(S3Lake(url, clone=True, cache_bytes_max=2 * MIB)) for _ in range(2)]
        try:
            for number, host in enumerate(writers):
                load.start(load.write, host, f"w{number}")
            for number, host in enumerate(cold):
                load.start(load.read, host, f"r{number}")
            time.sleep(PHASE_S / 2)
            for victim in ("osd.1", "client.rgw.0"):
                with tests.case(f"kill -9 of {victim} under load: all goes on"):
                    ceph.kill(victim)
                    commits, reads = load.resumed(time.monotonic(), PHASE_S)
                    tell(f"{victim}: longest time without a commit {commits:.1f} s, without a cold read {reads:.1f} s")
            with tests.case("nobody hangs"):
                load.end()
        finally:
            load.stop.set()
        stats = proxy.stats()
        tell(f"{len(load.done)} commits acknowledged, {len(load.failed)} failed; {len(load.reads)} cold reads, "
             f"{load.errors} EIO; slowest {load.slowest:.1f} s; statuses {stats['statuses']}")
        for message, text in list(load.failed.items())[:5]:
            tell(f"{message}: {text}")
        with tests.case("readers got the right bytes"):
            assert not load.wrong, load.wrong[:10]
            assert len(load.reads) > 50 and load.errors < len(load.reads) / 10
        with tests.case("nothing uncommitted is left when the store is well"):
            for number, host in enumerate(writers):
                if host.ctl("status", "main")["changes"]:
                    host.ctl("commit", "main", "-m", f"rest of w{number}")
                assert host.ctl("status", "main")["changes"] == []
    return load


def count(ceph, load):
    direct = f"s3://lake/x?endpoint={ceph.endpoints[1]}&timeout={TIMEOUT_S}"
    with tests.case("every acknowledged commit is in history once, with its bytes"):
        for host, log in history(direct):
            lost = [message for message in load.done if log.count(message) != 1]
            assert not lost, f"{len(lost)} of {len(load.done)}: {lost[:10]}"
            for message, content in load.done.items():
                assert (host / "main" / message).read_bytes() == content, message
            unexpected = [message for message in load.failed if message in log and "known" not in load.failed[message]]
            tell(f"{len(load.done)} acknowledged, {len(load.done)} found; of {len(load.failed)} that failed "
                 f"{len(unexpected)} are there")
            assert not unexpected, unexpected
            host.ctl("fsck")


def without_balancer(ceph):
    """The gateway that a host uses is killed and started again, as by an init system."""
    direct = f"s3://lake/x?endpoint={ceph.endpoints[1]}&timeout=3"
    with S3Lake(direct, clone=True) as host:
        (host / "main" / "alone").write_text("alone")
        ceph.kill("client.rgw.1")
        with tests.case("a gateway alone is killed: the commit fails and keeps the work"):
            try:
                host.ctl("commit", "main", "-m", "alone")
                raise AssertionError("committed without a store")
            except Refused as refusal:
                assert "cannot be reached" in str(refusal) and "your changes are kept" in str(refusal), refusal
            assert (host / "main" / "alone").read_text() == "alone"
        ceph.gateway(1)
        with tests.case("it is started again: the commit works"):
            host.ctl("commit", "main", "-m", "alone")
            for _, log in history(direct):
                assert log.count("alone") == 1


def main():
    ceph = Ceph(3, 2)
    if ceph.error:
        tests.skip("kill -9 inside the store", ceph.error)
        tests.done()
    with ceph:
        environment(ceph.keys)
        ceph.bucket("lake")
        draw = random.Random(SEED)
        files = {f"table/{n}": draw.randbytes(draw.choice((10_000, 300_000, MIB))) for n in range(60)}
        with Proxy(*ceph.endpoints) as proxy:
            with S3Lake(f"s3://lake/x?endpoint={proxy.url}") as lake:
                (lake / "main" / "table").mkdir()
                for path, content in files.items():
                    (lake / "main" / path).write_bytes(content)
                lake.ctl("commit", "main", "-m", "files")
            load = under_load(ceph, proxy, files)
        count(ceph, load)
        without_balancer(ceph)
    tests.done()


main()
