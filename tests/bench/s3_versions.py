"""Version control over S3: requests at two sizes of lake, and many hosts on one branch."""
import concurrent.futures
import contextlib
import os
import shutil
import statistics
import threading
import time

from lake import Failed
from table import ms, row, say, section, tool

FILES = (1000, int(os.environ.get("BENCH_S3_FILES", "100000")))
HOSTS, COMMITS = 8, 50
TARGETS = {"branch create": 1, "commit of 1 changed file": 3, "merge of 10 files, three-way": 3}
STARTS = ("clone", "mount until it answers", "first ls of 1,000 names")
ROUNDS = 5


def path_of(number, count):
    """Files spread over as many directories as `build` makes."""
    number = number * 7919 % count
    directories = count // 1000 or 1
    return f"d{number % directories:04d}/f{number // directories:06d}"


def rewrite(lake, branch, numbers, count):
    for number in numbers:
        with open(lake.path(branch, path_of(number, count)), "wb") as file:
            file.write(os.urandom(100))


class Counts:
    """Times and requests of each kind of work at each size."""

    def __init__(self, place):
        self.place = place
        self.seconds, self.requests, self.kinds = {}, {}, {}

    def timed(self, what, count, work, settle=0):
        """`settle`: seconds in which requests count as well that nobody waited for."""
        self.place.counted.reset()
        start = time.perf_counter()
        result = work()
        self.seconds.setdefault((what, count), []).append(time.perf_counter() - start)
        time.sleep(settle)
        kinds, _ = self.place.counted.counted()
        self.requests.setdefault((what, count), []).append(sum(kinds.values()))
        self.kinds[what, count] = kinds
        return result

    def commands(self, lake, count):
        used = iter(range(10 ** 9))
        for i in range(ROUNDS):
            name = f"work{i}"
            self.timed("branch create", count,
                       lambda: lake.call("branch", action="create", name=name, revision="main"))
            rewrite(lake, "main", [next(used)], count)
            self.timed("commit of 1 changed file", count,
                       lambda: lake.call("commit", branch="main", message="one file"))
            rewrite(lake, name, [next(used) for _ in range(10)], count)
            lake.call("commit", branch=name, message="ten files")
            reply = self.timed("merge of 10 files, three-way", count,
                               lambda: lake.call("merge", source=name, target="main"))
            if reply["changed"] != 10:
                raise Failed(f"a merge of 10 files changed {reply['changed']}")


def build(place, prefix, count):
    with place.lake(prefix, new=True, endpoint=place.gateway.endpoint) as lake:
        seconds = tool("make", lake.path("main"), count // 1000 or 1, 1000, 100, 2, 1)
        commit, _ = lake.timed("commit", branch="main", message="all files")
        say(f"  {count:,} files: created in {seconds:.0f} s, committed in {commit:.0f} s")
    shutil.rmtree(lake.directory)


def one_size(place, counts, count):
    """What happens on a host that joins. It looks at its branches every five seconds, so that few of
    the requests counted are for that."""
    prefix = f"versions-{count}"
    if not place.gateway.sizes("lake", f"{prefix}/refs/"):
        build(place, prefix, count)
    lake = counts.timed("clone", count, lambda: place.lake(prefix, endpoint=place.counted.endpoint, refresh_ms=5000))
    try:
        counts.timed("mount until it answers", count, lake.mount, settle=0.5)
        names = counts.timed("first ls of 1,000 names", count, lambda: os.listdir(lake.path("main", "d0000")))
        if len(names) != 1000:
            raise Failed(f"the listing has {len(names)} names")
        counts.commands(lake, count)
    finally:
        lake.umount()
        shutil.rmtree(lake.directory)


def requests(place):
    say(f"requests at {FILES[0]:,} and {FILES[1]:,} files")
    counts = Counts(place)
    for count in FILES:
        one_size(place, counts, count)
    small, large = FILES
    section(f"requests to S3 (and time); reference: {small:,} files; lake: {large:,} files")
    for what in (*TARGETS, *STARTS):
        figures = []
        for count in FILES:
            asked = counts.requests[what, count]
            figures.append((statistics.median(asked), f"{' or '.join(map(str, sorted(set(asked))))} "
                                        f"({ms(statistics.median(counts.seconds[what, count]))})"))
            say(f"  {what} at {count:,}: {counts.kinds[what, count]}")
        most, target = max(figure[0] for figure in figures), TARGETS.get(what)
        same = figures[0][0] == figures[1][0]
        row(what, figures[0][1], figures[1][1], figures[1][0] / max(1, figures[0][0]),
            f"same, <= {target}" if target else "" if what.startswith("first") else "same",
            same and most <= target if target else None if what.startswith("first") else same)


def commit_often(lake, number, start):
    start.wait()
    made = []
    for turn in range(COMMITS):
        with open(lake.path("main", f"h{number}-{turn}"), "w") as file:
            file.write(f"{number} {turn}")
        made.append(lake.call("commit", branch="main", message=f"{number} {turn}")["commit"])
    return made


def check_history(lake, made):
    lake.call("refresh", branch="main")
    history = {commit["id"] for commit in lake.call("log", revision="main", limit=10 ** 6)["commits"]}
    for number in range(HOSTS):
        for turn in range(COMMITS):
            with open(lake.path("main", f"h{number}-{turn}")) as file:
                if file.read() != f"{number} {turn}":
                    raise Failed(f"another content in h{number}-{turn}")
    return sum(commit in history for commit in made)


def hosts(place):
    say(f"{HOSTS} hosts x {COMMITS} commits")
    prefix = place.unused("hosts")
    start = threading.Barrier(HOSTS + 1)
    with contextlib.ExitStack() as stack:
        group = [stack.enter_context(place.lake(prefix, new=number == 0, name=f"host{number}"))
                 for number in range(HOSTS)]
        with concurrent.futures.ThreadPoolExecutor(HOSTS) as pool:
            work = [pool.submit(commit_often, lake, number, start) for number, lake in enumerate(group)]
            start.wait()
            began = time.perf_counter()
            made = [commit for task in work for commit in task.result()]
            seconds = time.perf_counter() - began
        there = check_history(group[-1], made)
    for lake in group:
        shutil.rmtree(lake.directory)
    row(f"{HOSTS} hosts x {COMMITS} commits on one branch: in its history; commits/s", str(HOSTS * COMMITS),
        f"{there}; {len(made) / seconds:.0f} /s", there / (HOSTS * COMMITS), "all", there == HOSTS * COMMITS)


def measure(place):
    hosts(place)
    if not place.slow:
        requests(place)
