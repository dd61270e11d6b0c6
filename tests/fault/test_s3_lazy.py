#!/usr/bin/env python3
"""Lakes that are larger than what is at hand: joining one costs the same whatever its size; the cache keeps to
its bound and what is in use; what was fetched ahead, or never pushed, is there while the store is away.

LAKE_LAZY_FILES: how many files the large lake has.
"""
import concurrent.futures
import contextlib
import os
import pathlib
import random
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Refused, Tests  # noqa: E402
from proxy import Ceph, Proxy, S3Lake, environment  # noqa: E402

FILES = int(os.environ.get("LAKE_LAZY_FILES", "10000"))
MIB = 1 << 20
SEED = random.randrange(1 << 32)
rng = random.Random(SEED)
tests = Tests()


def tell(text):
    print("# " + text, flush=True)


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


class Counted:
    """Requests and seconds of a with block."""

    def __init__(self, proxy):
        self.proxy = proxy

    def __enter__(self):
        self.proxy.reset()
        self.start = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.start
        stats = self.proxy.stats()
        self.requests, self.kinds = stats["requests"], stats["kinds"]


def fill(lake, files):
    """Directories of 1,000 files each."""
    def directory(number):
        path = lake / f"main/t{number:04}"
        path.mkdir(parents=True)
        root = os.open(path, os.O_DIRECTORY)
        for i in range(number * 1000, min(files, (number + 1) * 1000)):
            descriptor = os.open(f"{i:07}.csv", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=root)
            os.write(descriptor, b"id,%d\n" % i)
            os.close(descriptor)
        os.close(root)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(directory, range((files + 999) // 1000)))
    lake.ctl("commit", "main", "-m", "data")


def join(proxy, url, files):
    """What joining costs, then a listing and one file."""
    cost = {}
    lake = S3Lake(url, clone=True, mount=False, refresh_ms=0)  # following would add requests
    with Counted(proxy) as cost["clone"]:
        lake.__enter__()
    try:
        with Counted(proxy) as cost["mount"]:
            lake.mount()
        with Counted(proxy) as cost["list"]:
            names = os.listdir(lake / "main")
        expect(len(names) == (files + 999) // 1000, f"{len(names)} directories")
        chosen = files * 2 // 3
        with Counted(proxy) as cost["open"]:
            text = (lake / f"main/t{chosen // 1000:04}/{chosen:07}.csv").read_bytes()
        expect(text == b"id,%d\n" % chosen, f"it says {text}")
        with Counted(proxy) as cost["warm"]:
            expect(lake.ctl("warm", lake / "main/t0000")["files"] == 1000, "not 1,000 files")
    finally:
        lake.__exit__()
    tell(f"{files} files: " + ", ".join(
        f"{name} {what.requests} requests {what.seconds * 1000:.0f} ms" for name, what in cost.items()))
    return cost


def test_joining(proxy, url):
    costs = []
    for files in (1000, FILES):
        place = f"{url('join')}{files}?endpoint={proxy.url}"
        start = time.monotonic()
        with S3Lake(place) as lake:
            fill(lake, files)
        tell(f"{files} files made and committed in {time.monotonic() - start:.1f} s")
        costs.append(join(proxy, place, files))
    small, large = costs
    with tests.case("clone is the same requests for any size"):
        expect(small["clone"].requests == large["clone"].requests <= 10, "they differ")
    with tests.case("mounting is the lake's header, and the packs not to rely on"):
        for cost in costs:
            expect(cost["mount"].requests <= 2, f"{cost['mount'].kinds}")
    with tests.case("and about the same time"):
        took = [cost["clone"].seconds + cost["mount"].seconds for cost in costs]
        expect(took[1] < 3 * took[0] + 0.5, f"{took}")
    with tests.case("a listing and one file are O(log n) requests"):
        few, more = (cost["list"].requests + cost["open"].requests for cost in costs)
        expect(more <= few + 6 and more <= 14, f"{few} and {more}")


    with tests.case("a thousand small files are fetched ahead by a few requests"):
        expect(max(cost["warm"].requests for cost in costs) <= 30, "they are more")


def data(number, size):
    return random.Random(number).randbytes(size)


def cached_bytes(lake):
    return lake.ctl("stats")["cached_bytes"]


def age(lake):
    """As if five minutes had passed: use is noted once a minute."""
    for path in (lake.directory / "cache").rglob("*"):
        if len(path.name) >= 64:
            with contextlib.suppress(FileNotFoundError):
                then = path.stat().st_mtime - 300
                os.utime(path, (then, then))


def test_bound(proxy, url):
    size, count, bound = 3 * MIB // 4, 96, 24 * MIB
    place = f"{url('bound')}?endpoint={proxy.url}&timeout=3"
    with S3Lake(place) as lake:
        (lake / "main/data").mkdir()
        for number in range(count):
            (lake / f"main/data/{number}").write_bytes(data(number, size))
        lake.ctl("commit", "main", "-m", "data")

    def check(lake, number):
        expect((lake / f"main/data/{number}").read_bytes() == data(number, size), f"file {number} is wrong")

    with S3Lake(place, clone=True, cache_bytes_max=bound) as lake:
        with tests.case("three times the bound read, the bound holds"):
            (lake / "main/mine").write_bytes(data(1000, 4 * MIB))
            proxy.outage("refuse")
            try:
                lake.ctl("commit", "main", "-m", "while the store is away")
                raise AssertionError("it was committed")
            except Refused:
                pass
            proxy.outage("none")
            for number in range(16):
                check(lake, number)
            held = open(lake / "main/data/5", "rb")
            most = 0
            for number in range(16, count):
                if number % 8 == 0:
                    age(lake)
                    for hot in range(4):
                        check(lake, hot)
                check(lake, number)
                most = max(most, cached_bytes(lake))
            tell(f"at most {most / MIB:.1f} MiB of {bound / MIB:.0f} MiB; "
                 f"{lake.ctl('stats')['cache_evicted_total']} evicted")
            expect(most <= bound, f"{most} bytes")
        proxy.outage("refuse")
        with tests.case("what was used last stays"):
            for number in (0, 1, 2, 3, count - 1, count - 2):
                check(lake, number)
        with tests.case("what is open stays"):
            expect(held.read() == data(5, size), "it is wrong")
            held.close()
        with tests.case("what was never pushed stays"):
            expect((lake / "main/mine").read_bytes() == data(1000, 4 * MIB), "it is wrong")
        with tests.case("the rest was let go"):
            gone = 0
            for number in range(6, 16):
                try:
                    check(lake, number)
                except OSError:
                    gone += 1
            expect(gone >= 5, f"only {gone} of 10")
        proxy.outage("none")
        with tests.case("and is committed when the store is back"):
            lake.ctl("commit", "main", "-m", "now")
            check(lake, 10)
    with tests.case("what another host reads"):
        with S3Lake(place, clone=True) as lake:
            expect((lake / "main/mine").read_bytes() == data(1000, 4 * MIB), "it is wrong")
    return place


def test_small_disk(proxy, place):
    """Without a bound a tenth of the disk stays free."""
    if os.geteuid() != 0:
        tests.skip("a tenth of a small disk stays free", "needs root")
        return
    lake = S3Lake(place, clone=True, mount=False)
    disk = lake.scratch / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    lake.directory = disk / "lake"
    try:
        with lake, tests.case("a tenth of a small disk stays free"):
            lake.mount()
            (lake / "main/mine2").write_bytes(data(2000, 6 * MIB))
            for number in range(96):
                expect((lake / f"main/data/{number}").read_bytes() == data(number, 3 * MIB // 4), f"file {number}")
            until = time.monotonic() + 10
            free = 0
            while time.monotonic() < until and free < 0.1:
                space = os.statvfs(disk)
                free = space.f_bavail / space.f_blocks
                time.sleep(0.1)
            tell(f"{free * 100:.1f} % free, {cached_bytes(lake) / MIB:.1f} MiB cached")
            expect(free >= 0.1, f"{free * 100:.1f} %")
            expect((lake / "main/mine2").read_bytes() == data(2000, 6 * MIB), "what is uncommitted")
            try:
                lake.ctl("warm", "main")
                raise AssertionError("72 MiB were fetched onto a disk of 64")
            except Refused as refused:
                expect(refused.code == 1 and "MiB are missing" in str(refused), str(refused))
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def test_warm(proxy, place):
    with S3Lake(place, clone=True) as lake:
        with Counted(proxy) as cost:
            reply = lake.ctl("warm", lake / "main")
        tell(f"warm: {reply}, {cost.requests} requests, {reply['bytes'] / MIB / cost.seconds:.0f} MiB/s")
        proxy.outage("refuse")
        with tests.case("what was fetched ahead is read with the store away"):
            expect(reply["fetched_bytes"] == reply["bytes"] == 96 * (3 * MIB // 4) + 4 * MIB, f"{reply}")
            for number in range(96):
                expect((lake / f"main/data/{number}").read_bytes() == data(number, 3 * MIB // 4), f"file {number}")
        proxy.outage("none")


def test_collecting(proxy, url):
    place = f"{url('gc')}?endpoint={proxy.url}"
    with S3Lake(place) as lake, tests.case("gc removes many packs in one request"):
        lake.ctl("branch", "create", "old")
        for number in range(20):
            (lake / "old/file").write_bytes(data(number, 1000))
            lake.ctl("commit", "old", "-m", str(number))
        lake.ctl("branch", "delete", "old")
        lake.ctl("gc", "--alone", "--grace-seconds", "0", "--deleted-days", "0")
        time.sleep(0.01)
        with Counted(proxy) as cost:
            reply = lake.ctl("gc", "--alone", "--grace-seconds", "0", "--deleted-days", "0")
        tell(f"{reply['removed_packs']} packs removed; {cost.requests} requests: "
             + ", ".join(f"{name} {kind['requests']}" for name, kind in cost.kinds.items() if kind["requests"]))
        expect(reply["removed_packs"] >= 20, f"{reply}")
        removing = sum(kind["requests"] for name, kind in cost.kinds.items() if name.startswith(("DELETE", "POST")))
        expect(removing <= 2, f"{removing} requests to remove")
        expect(lake.ctl("fsck")["packs"] == reply["live_packs"], "fsck finds others")


def main():
    with Ceph() as ceph:
        if ceph.error:
            tests.skip("lakes larger than what is at hand", ceph.error)
            return tests.done()
        ceph.bucket("lake")
        environment(ceph.keys)
        with Proxy(ceph.endpoint) as proxy:
            def url(name):
                return f"s3://lake/{name}"
            place = test_bound(proxy, url)
            test_small_disk(proxy, place)
            test_warm(proxy, place)
            test_collecting(proxy, url)
            test_joining(proxy, url)
    return tests.done()


if __name__ == "__main__":
    sys.exit(main())
