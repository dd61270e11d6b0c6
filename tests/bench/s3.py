"""What a lake in S3 costs, beside curl, s3fs and rclone on the same gateway. See tests/bench/README.md."""
import contextlib
import os
import shutil
import statistics
import subprocess
import time

import s3_versions
from lake import Failed, Lake
from s3_floors import APPENDED, known_ranges, puts
from s3_peers import PEERS, Rclone, RcloneSmall, S3fs, curl_best, curl_ranges, even_ranges
from s3_world import REPOSITORY, Gateway, Link, drop_page_cache
from table import DISK, KIB, MIB, ROOT, figures, row, say, section, size_text, tool

BIN = os.environ["LAKE_BIN"]
BIG = int(os.environ.get("BENCH_S3_BYTES", str(512 * MIB)))
LATENCY_MS = 15
SMALL_BYTES = 10 * KIB
DIRECTORIES = 20
FLIGHTS = 20
COPIES = 4  # of the flights in the wide table: about 100 MB each
READS = 200
PYTHON = os.path.join(REPOSITORY, "build", "venv", "bin", "python")
SOURCE = os.path.join(REPOSITORY, "build", "node", "node_modules", "vega-datasets", "data", "flights-3m.parquet")


def seconds_text(seconds):
    return f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.1f} s"


def megabytes(size, seconds):
    return f"{size / seconds / 1e6:.0f} MB/s"


class Place:
    """The gateway by one way: directly, or with latency; and what lies there to be read."""

    def __init__(self, gateway, endpoint, slow, counted):
        self.gateway, self.endpoint, self.slow = gateway, endpoint, slow
        self.counted = counted  # a Link that counts what goes through it
        self.made = 0

    def lake(self, prefix, new=False, endpoint=None, name="s3", **config):
        directory = os.path.join(DISK, f"lake-{name}")
        shutil.rmtree(directory, ignore_errors=True)
        return Lake(BIN, directory, os.path.join(ROOT, f"mount-{name}"),
                    f"s3://lake/{prefix}?endpoint={endpoint or self.endpoint}", new, config)

    @contextlib.contextmanager
    def fresh(self, prefix="read", remove=lambda directory: shutil.rmtree(directory, ignore_errors=True), **options):
        """A new host: clone and mount, nothing cached."""
        lake = self.lake(prefix, **options)
        try:
            with lake:
                drop_page_cache()
                yield lake
        finally:
            remove(lake.directory)

    def peer(self, kind, bucket):
        drop_page_cache()
        return kind(bucket, self.endpoint)

    def unused(self, name):
        """A new place for one measurement: a prefix, or a bucket's name."""
        self.made += 1
        return f"{name}-{'slow' if self.slow else 'fast'}-{self.made}"


def repeated(measure, count=3, enough_s=10):
    """What `count` measurements gave, or as many as fit into `enough_s`: what is slow varies less."""
    start, results = time.monotonic(), []
    while len(results) < count and (not results or time.monotonic() - start < enough_s):
        results.append(measure())
        say(f"    {results[-1]}")
    return results


def median(measure):
    return statistics.median(repeated(measure))


def medians(runs):
    """Of measurements of several things at once."""
    return [statistics.median(column) for column in zip(*runs)]


def against(what, peer, theirs, ours, times=None, text=seconds_text):
    """A row against one peer; `times`: how often faster the lake must be."""
    ratio = theirs / ours
    row(f"{what}; {peer}", text(theirs), text(ours), ratio, f">= {times} times" if times else "",
        ratio >= times if times else None)


# -- what is read --

def make_readable(gateway, place):
    """The same bytes in a lake and as the peers' objects."""
    say("making what is read")
    big, base = os.path.join(DISK, "big"), os.path.join(DISK, "base")
    flights, wide, many = (os.path.join(DISK, name) for name in ("flights", "wide", "many"))
    os.makedirs(flights)
    os.makedirs(wide)
    os.makedirs(many)
    tool("fill", big, BIG, 5)
    tool("fill", base, BIG // 2, 6)
    tool("make", many, 1, 1000, KIB, 1, 8)
    if os.path.exists(SOURCE) and os.path.exists(PYTHON):
        subprocess.run([PYTHON, query_program(), SOURCE, flights, str(FLIGHTS)], check=True)
        subprocess.run([PYTHON, query_program(), SOURCE, wide, str(COPIES), "wide"], check=True)
    gateway.bucket("lake")
    gateway.bucket("peers")
    with place.lake("read", new=True) as lake:
        for path in (big, base):
            shutil.copyfile(path, lake.path("main", os.path.basename(path)))
        for path in (flights, wide, os.path.join(many, "d0000")):
            shutil.copytree(path, lake.path("main", os.path.basename(path)))
        seconds, _ = lake.timed("commit", branch="main", message="what is read")
        say(f"  committed: {seconds:.1f} s")
        for table in (flights, wide):
            base_name = os.path.basename(table)
            for name in sorted(os.listdir(table)):
                gateway.upload("peers", f"{base_name}/{name}", os.path.join(table, name))
            gateway.request("PUT", f"/peers/{base_name}/", body=b"")
    shutil.rmtree(lake.directory)
    for path in (big, base):
        gateway.upload("peers", os.path.basename(path), path)
    os.unlink(big)
    os.unlink(base)


# -- reading --

def sequential(place):
    say(f"sequential read of {size_text(BIG)}")
    def ours():
        with place.fresh() as lake:
            return tool("read", lake.path("main", "big"), MIB)
    least, range_mib, width = curl_best(place.endpoint, "peers", "big", BIG, True, drop_page_cache)
    def both():
        drop_page_cache()
        ranges = even_ranges(BIG, range_mib * MIB)
        return curl_ranges(place.endpoint, "peers", "big", ranges, width, True), ours()
    files, lake = medians(repeated(both, 5, 20))
    say(f"  lake {lake:.2f} s; curl {files:.2f} s, the quickest of all widths once {least:.2f} s")
    null, null_mib, null_width = curl_best(place.endpoint, "peers", "big", BIG, False, lambda: None, (4, 8, 16), (8, 16))
    what = f"sequential read of {BIG // MIB} MiB"
    row(f"{what}; curl -Z to files, {width} ranges of {range_mib} MiB at once", megabytes(BIG, files),
        megabytes(BIG, lake), files / lake, ">= 0.80 times", files / lake >= 0.8)
    row("  the quickest single run of curl", megabytes(BIG, least), megabytes(BIG, lake), least / lake)
    row(f"  curl -Z to /dev/null, {null_width} of {null_mib} MiB", megabytes(BIG, null), megabytes(BIG, lake),
        null / lake)
    for kind in PEERS:
        with place.peer(kind, "peers") as peer:
            theirs = tool("read", peer.path("big"), MIB)
        against("  the same", kind.name, theirs, lake, text=lambda seconds: megabytes(BIG, seconds))


RANDOM_READS = {  # what to do, and how often faster than a peer with and without latency
    "parquet": ("Parquet-like reads", {S3fs: (2, 5), Rclone: (6, 5), RcloneSmall: (None, None)}),
    "pieces": ("column chunks of 1 to 3 MiB, read in pieces", {S3fs: (None, None), Rclone: (None, None)}),
    "scatter": ("reads anywhere", {S3fs: (None, None), Rclone: (None, None)}),
}


def random_reads_of(place, kind, command):
    def measure():
        with place.peer(kind, "peers") as peer:
            place.counted.reset()
            return figures(command, peer.path("big"), READS, 1)[0]
    return statistics.median(repeated(measure, 1 if place.slow else 3)), place.counted.counted()[1]


def random_reads(place):
    for command, (what, peers) in RANDOM_READS.items():
        say(what)
        def ours(endpoint=None, command=command):
            with place.fresh(endpoint=endpoint) as lake:
                place.counted.reset()
                return figures(command, lake.path("main", "big"), READS, 1)
        runs = repeated(ours)
        if not place.slow:
            ours(place.counted.endpoint)
        fetched = place.counted.counted()[1]
        lake, size = statistics.median(run[0] for run in runs), runs[0][1]
        for kind, times in peers.items():
            theirs, peer_fetched = random_reads_of(place, kind, command)
            note = f" (fetched {peer_fetched / size:.1f} times as much)" if place.slow else ""
            against(f"{what}, {READS} of 64 to 256 KiB", kind.name + note, theirs, lake, times[place.slow])
        target = command == "parquet"
        if target:
            floor, requests, width = known_ranges(place.endpoint, "peers", "big", BIG, READS, 1)
            against(f"  floor: curl -Z that knows the ranges, {requests} requests, {width} at once", "to files", floor,
                    lake)
        row(f"  {what}: bytes read; fetched", size_text(size), size_text(fetched), fetched / size,
            "<= 2.50 times" if target else "", fetched <= 2.5 * size if target else None)


def query_program():
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "duckdb_query.py")


def queries(directory):
    """Three processes one after the other: seconds in all, and within the queries alone."""
    subprocess.run([PYTHON, query_program()], check=True)
    start, inside = time.perf_counter(), 0
    for number in range(3):
        run = subprocess.run([PYTHON, query_program(), directory, str(number)], check=True, stdout=subprocess.PIPE)
        inside += float(run.stdout)
    return time.perf_counter() - start, inside


def duckdb(place):
    flights = os.path.join(DISK, "flights")
    if not os.listdir(flights):
        say("no DuckDB or no vega-datasets here: left out")
        return
    say("DuckDB")
    def native():
        drop_page_cache()
        return queries(flights)
    def ours():
        with place.fresh() as lake:
            return queries(lake.path("main", "flights"))
    disk, lake = medians(repeated(native)), medians(repeated(ours))
    row(f"DuckDB, 3 aggregates over {FLIGHTS} Parquet files; ext4", seconds_text(disk[0]), seconds_text(lake[0]),
        lake[0] / disk[0], "<= 1.50 times as long", lake[0] <= 1.5 * disk[0])
    row("  within the queries, without the processes' start", seconds_text(disk[1]), seconds_text(lake[1]),
        lake[1] / disk[1])
    for kind in PEERS:
        with place.peer(kind, "peers") as peer:
            against("  the same", kind.name, queries(peer.path("flights"))[0], lake[0])


def wide_table(place):
    """A large Parquet file, of whose columns few are wanted."""
    wide = os.path.join(DISK, "wide")
    if not os.listdir(wide):
        return
    say("DuckDB, a wide table")
    size = size_text(sum(entry.stat().st_size for entry in os.scandir(wide)))
    for number, what in ((3, "2 columns"), (4, "4 columns")):
        def query(directory, number=number):
            run = subprocess.run([PYTHON, query_program(), directory, str(number)], check=True, stdout=subprocess.PIPE)
            return float(run.stdout)
        def native(query=query):
            drop_page_cache()
            subprocess.run([PYTHON, query_program()], check=True)
            return query(wide)
        def ours(query=query):
            with place.fresh() as lake:
                subprocess.run([PYTHON, query_program()], check=True)
                place.counted.reset()
                return query(lake.path("main", "wide"))
        disk, lake = median(native), median(ours)
        fetched = f", fetched {size_text(place.counted.counted()[1])}" if place.slow else ""
        row(f"DuckDB, {what} of 11 of one Parquet file of {size}{fetched}; ext4", seconds_text(disk), seconds_text(lake),
            disk / lake)
        for kind in PEERS:
            with place.peer(kind, "peers") as peer:
                subprocess.run([PYTHON, query_program()], check=True)
                against("  the same", kind.name, query(peer.path("wide")), lake)


# -- writing until durable --

def wait_for(gateway, bucket, prefix, count, size):
    """Until the bucket itself lists so many objects of that size; nothing else is proof for rclone."""
    while sum(1 for length in gateway.sizes(bucket, prefix).values() if length == size) < count:
        time.sleep(0.02)


def each_text(count):
    return lambda seconds: f"{count / seconds:.0f} /s" if seconds < count else f"{count / seconds:.1f} /s"


def small_files_lake(place, total):
    # ext4 passes over the inodes of what was deleted within five minutes, one by one, when it makes a file: what one
    # run leaves must not be removed before the next one.
    left = os.path.join(DISK, "left")
    os.makedirs(left, exist_ok=True)
    def put_aside(directory):
        os.rename(directory, os.path.join(left, str(len(os.listdir(left)))))
    def measure():
        prefix = place.unused("small")
        with place.lake(prefix, new=True) as lake:
            start = time.perf_counter()
            made = tool("make", lake.path("main"), DIRECTORIES, total // DIRECTORIES, SMALL_BYTES, 1, 7)
            lake.call("commit", branch="main", message="small files")
            write = time.perf_counter() - start
        put_aside(lake.directory)
        with place.fresh(prefix, put_aside) as lake:
            read = tool("readback", lake.path("main"), DIRECTORIES, total // DIRECTORIES, SMALL_BYTES, 7)
        return write, read, made
    results = medians(repeated(measure))
    shutil.rmtree(left)
    return results


def small_files_peer(place, kind, total):
    bucket = place.gateway.bucket(place.unused(kind.name))
    with place.peer(kind, bucket) as peer:
        start = time.perf_counter()
        tool("make", peer.mountpoint, DIRECTORIES, total // DIRECTORIES, SMALL_BYTES, 1, 7)
        wait_for(place.gateway, bucket, "", total, SMALL_BYTES)
        write = time.perf_counter() - start
    with place.peer(kind, bucket) as peer:
        read = tool("readback", peer.mountpoint, DIRECTORIES, total // DIRECTORIES, SMALL_BYTES, 7)
    place.gateway.clear(bucket)
    return write, read


def small_files(place, total=2000):
    say(f"{total:,} small files")
    ours = small_files_lake(place, total)
    say(f"  lake {ours[0]:.2f} s, {ours[1]:.2f} s")
    for kind, written in ((S3fs, 50), (Rclone, 10)):
        # A peer that takes minutes gets fewer files, as many as its rate shows by.
        count = min(total, (100 if place.slow else 400) if kind is S3fs else (400 if place.slow else total))
        theirs = [seconds * total / count for seconds in small_files_peer(place, kind, count)]
        note = f"{kind.name}" + (f" (with {count})" if count != total else "")
        against(f"{total:,} files of 10 KB written until durable", note, theirs[0], ours[0], written, each_text(total))
        against(f"{total:,} files of 10 KB read on another host", note, theirs[1], ours[1], 10, each_text(total))
    row("  floor: one PUT of all their bytes; the lake's commit alone",
        seconds_text(puts(place.endpoint, "peers", [total * SMALL_BYTES])), seconds_text(ours[0] - ours[2]), None)
    row("  and to create them, before the commit", "", seconds_text(ours[2]), None)


def append(place):
    say("append")
    size = BIG // 2
    def ours(warm):
        branch = place.unused("append")
        with place.fresh() as lake:
            lake.call("branch", action="create", name=branch, revision="main")
            path = lake.path(branch, "base")
            if warm:
                tool("read", path, MIB)
            seconds = tool("append", path, MIB, 9)
            seconds += lake.timed("commit", branch=branch, message="appended")[0]
            if os.stat(path).st_size != size + MIB:
                raise Failed("the append is not there")
            return seconds
    def theirs(kind, warm):
        with place.peer(kind, "peers") as peer:
            if warm:
                tool("read", peer.path("base"), MIB)
            before = place.gateway.sizes("peers", "base")["base"]
            seconds = tool("append", peer.path("base"), MIB, 9)
            start = time.perf_counter()
            wait_for(place.gateway, "peers", "base", 1, before + MIB)
            return seconds + time.perf_counter() - start
    what = f"append 1 MiB to {size // MIB} MiB until durable"
    for warm, said, target in ((True, f"{what}, file read before", 20), (False, f"  {what}, never read", None)):
        lake = median(lambda: ours(warm))
        for kind in PEERS:
            against(said, kind.name, theirs(kind, warm), lake, target)
        if warm:
            against("  floor: two PUTs, one after the other, 1 MiB and 1 KiB", "kept connection",
                    puts(place.endpoint, "peers", APPENDED), lake)


def rename_peer(place, kind, count):
    bucket = place.gateway.bucket(place.unused(f"{kind.name}-rename"))
    place.gateway.request("PUT", f"/{bucket}/d0000/", body=b"")
    for i in range(count):
        place.gateway.request("PUT", f"/{bucket}/d0000/f{i:06}", body=os.urandom(KIB))
    with place.peer(kind, bucket) as peer:
        start = time.perf_counter()
        os.rename(peer.path("d0000"), peer.path("renamed"))
        wait_for(place.gateway, bucket, "renamed/f", count, KIB)
        seconds = time.perf_counter() - start
    place.gateway.clear(bucket)
    return seconds


def rename(place, total=1000):
    say("rename")
    def ours():
        branch = place.unused("rename")
        with place.fresh() as lake:
            lake.call("branch", action="create", name=branch, revision="main")
            start = time.perf_counter()
            os.rename(lake.path(branch, "d0000"), lake.path(branch, "renamed"))
            lake.call("commit", branch=branch, message="renamed")
            return time.perf_counter() - start
    lake = median(ours)
    for kind in PEERS:
        count = 100 if place.slow else total
        theirs = rename_peer(place, kind, count) * total / count
        note = kind.name + (f" (with {count})" if count != total else "")
        against(f"rename a directory of {total:,} files until durable", note, theirs, lake, 20)


# -- all --

def available():
    if os.geteuid() != 0:
        return "this part needs root (page cache, s3fs)"
    for program in ("radosgw", "ceph-mon", "ceph-osd", "s3fs", "rclone", "curl"):
        if not shutil.which(program):
            return f"no {program}; tests/lib/install.sh bench"
    return None


def measure(wanted, gateway, counted, delayed):
    direct = Place(gateway, gateway.endpoint, False, counted)
    make_readable(gateway, direct)
    for name, place in (("s3", direct), ("s3-latency", Place(gateway, delayed.endpoint, True, delayed))):
        if name not in wanted:
            continue
        added = f"{LATENCY_MS} ms added to every request" if place.slow else "without added latency"
        say(added)
        section(f"S3 (radosgw on loopback, in memory), {added}; cold caches, fresh mounts; ratio of speeds")
        for part in (sequential, random_reads, small_files, append, rename, duckdb, wide_table):
            if PARTS and part.__name__ not in PARTS:
                continue
            part(place)
        if not PARTS or "versions" in PARTS:
            s3_versions.measure(place)


PARTS = os.environ.get("BENCH_S3_PARTS", "").split()


def run(wanted):
    why = available()
    if why:
        say(f"S3 is left out: {why}")
        return
    with Gateway() as gateway, Link(gateway) as counted, Link(gateway, LATENCY_MS) as delayed:
        measure(wanted, gateway, counted, delayed)
