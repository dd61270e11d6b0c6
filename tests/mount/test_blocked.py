#!/usr/bin/env python3
"""Nobody waits behind a request that takes long.

The store is a directory whose packs are replaced by named pipes: whoever opens one for reading waits until
somebody opens it for writing, which is a store that has accepted and never answers.
"""
import contextlib
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Clone, Lake, Tests  # noqa: E402

SMALL, LARGE = 12, 4  # small files are fetched when they are opened, large ones when they are read
LIMIT_S = 2  # far above a busy machine's noise, far below any time-out of the store
STUCK_S = 20
tests = Tests()


class Blocked:
    """The packs of a store, as pipes."""

    def __init__(self, store):
        self.packs = [path for path in (store / "packs").rglob("*") if path.is_file()]

    def __enter__(self):
        assert self.packs
        for path in self.packs:
            path.rename(str(path) + ".away")
            os.mkfifo(path)
        return self

    def __exit__(self, *_):
        for path in self.packs:
            pipe = str(path) + ".pipe"
            path.rename(pipe)
            pathlib.Path(str(path) + ".away").rename(path)
            with contextlib.suppress(OSError):  # nobody waits at this one
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            os.unlink(pipe)


def read(path, done):
    with contextlib.suppress(OSError), open(path, "rb") as file:
        done[path.name] = len(file.read())


def timed(function):
    """The seconds it took; in a thread of its own, for it may never end."""
    took = []

    def run_it():
        start = time.monotonic()
        function()
        took.append(time.monotonic() - start)
    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    thread.join(STUCK_S)
    assert took, "no answer"
    return took[0]


def others(lake, number):
    """What somebody else does meanwhile: the times it took."""
    new = lake / f"main/new{number}"

    def create():
        new.write_bytes(b"x" * 4096)

    def rename():
        new.rename(lake / f"main/renamed{number}")
    return [timed(create), timed(lambda: os.stat(new)), timed(lambda: os.listdir(lake / "main")), timed(rename),
            timed(lambda: os.statvfs(lake.mountpoint))]


def answers_while_blocked(lake, names):
    done, readers, times = {}, [], []
    for number, name in enumerate(names):
        reader = threading.Thread(target=read, args=(lake / f"main/data/{name}", done), daemon=True)
        reader.start()
        readers.append(reader)
        for i in range(3):  # at once, and with the reader well on its way
            times += others(lake, f"{number}-{i}")
    print(f"# {len(readers)} blocked: median {statistics.median(times) * 1000:.2f} ms, "
          f"longest {max(times) * 1000:.2f} ms", flush=True)
    assert not done, done
    assert max(times) < LIMIT_S and statistics.median(times) < LIMIT_S / 100, sorted(times)[-5:]
    return readers, done


def idle(lake):
    """Context switches of all threads of the daemon in a second without requests."""
    def switches():
        total = 0
        for status in pathlib.Path(f"/proc/{lake.pid()}/task").glob("*/status"):
            total += sum(int(line.split()[1]) for line in status.read_text().splitlines() if "ctxt_switches" in line)
        return total
    before = switches()
    time.sleep(1)
    return switches() - before


def run(options, what):
    with Lake() as source:
        (source / "main/data").mkdir()
        names = [f"small{i}" for i in range(SMALL)] + [f"large{i}" for i in range(LARGE)]
        for name in names:
            (source / f"main/data/{name}").write_bytes(os.urandom((9 << 20) if "large" in name else 100000))
        source.ctl("commit", "main", "-m", "data")
        # The directory lies in another pack than the files: one that was opened before stays readable.
        (source / "main/data/last").write_bytes(b"")
        source.ctl("commit", "main", "-m", "the directory again")
        with Clone(source, *options) as lake:
            for name in names:
                os.stat(lake / f"main/data/{name}")
            with Blocked(source.directory / "store"):
                with tests.case(f"others are answered while readers wait for the store, {what}"):
                    readers, done = answers_while_blocked(lake, names)
                with tests.case(f"readers that wait can be killed, {what}"):
                    command = ["cat", lake / "main/data/large0"]
                    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
                        time.sleep(0.2)
                        reader.send_signal(signal.SIGKILL)
                        others(lake, "killed")
            with tests.case(f"they go on when it answers, {what}"):
                for reader in readers:
                    reader.join(60)
                read(lake / "main/data/small0", done)
                assert done["small0"] == 100000, done
                for name in names:
                    size = (9 << 20) if "large" in name else 100000
                    assert len((lake / f"main/data/{name}").read_bytes()) == size
            with tests.case(f"an idle mount wakes nobody, {what}"):
                time.sleep(2)
                woken = min(idle(lake) for _ in range(3))
                print(f"# {woken} context switches in a second")
                assert woken < 50, woken


run([], "passed through")
run(["--no-passthrough"], "copied")
tests.done()
