#!/usr/bin/env python3
"""SQLite on a branch: every journal mode with several processes that write, kill -9 of one, its locks and its
shared memory; databases read in revisions and on other branches. LAKE_SQLITE_TRANSACTIONS=100 for a longer run, in
which all modes are written in both ways that data takes."""
import contextlib
import fcntl
import mmap
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from clients import both_ways, passes_through, published
from lake import Tests

TRANSACTIONS = int(os.environ.get("LAKE_SQLITE_TRANSACTIONS", "10"))
WRITERS = 3
LONG = TRANSACTIONS > 10
MODES = ("delete", "truncate", "persist", "wal")


def connect(path, options="", **keywords):
    return contextlib.closing(sqlite3.connect(f"file:{path}{options}", uri=True, timeout=60, isolation_level=None, **keywords))


def write_transactions(path, writer, count):
    """A process of its own: says each transaction's number when it is committed."""
    with connect(path) as db:
        db.execute("pragma mmap_size = 1000000")
        for number in range(count):
            db.execute("begin immediate")
            db.execute("update total set n = n + 1")
            db.execute("insert into done values (?, ?, randomblob(2000))", (writer, number))
            db.execute("commit")
            print(number, flush=True)


def increment(path, turns, mine):
    """A process of its own: increments a number in shared memory, in turns with another one."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        for turn in range(turns):
            while struct.unpack_from("Q", memory)[0] != 2 * turn + mine:
                time.sleep(0)
            struct.pack_into("Q", memory, 0, 2 * turn + mine + 1)


def half_a_transaction(path):
    """A process of its own: has written most of a transaction when it says so, and waits to be killed."""
    with connect(path) as db:
        db.execute("pragma cache_size = 5")
        db.execute("begin immediate")
        db.execute("update total set n = 1000000")
        db.execute("update done set junk = randomblob(5000)")
        print("half", flush=True)
        signal.pause()


def hold_lock(path, start, length):
    """A process of its own: holds a byte range until it is killed."""
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        print("held", flush=True)
        signal.pause()


@contextlib.contextmanager
def processes(*commands):
    """This program again, once for each command; none outlives the block."""
    running = [subprocess.Popen([sys.executable, __file__, *map(str, command)], stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        yield running
    finally:
        for one in running:
            one.kill()
            one.communicate()


def create(path, mode):
    with connect(path) as db:
        assert db.execute(f"pragma journal_mode = {mode}").fetchone() == (mode,)
        db.execute("create table total (n integer)")
        db.execute("insert into total values (0)")
        db.execute("create table done (writer, number, junk, primary key (writer, number))")


def counted(path, options=""):
    """Rows in all and for each writer, of a database that must be sound."""
    with connect(path, options) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        total = db.execute("select n from total").fetchone()[0]
        rows = dict(db.execute("select writer, count(*) from done group by writer"))
        assert total == sum(rows.values()), (total, rows)
        return rows


def committed(writer):
    """How many transactions it said were committed, once it has ended."""
    said = len(writer.communicate(timeout=120)[0].split())
    assert writer.returncode == 0
    return said


def several_processes(lake, mode):
    path = lake / "dev" / f"{mode}.db"
    create(path, mode)
    with processes(*(("write", path, number, TRANSACTIONS) for number in range(WRITERS))) as writers:
        assert [committed(writer) for writer in writers] == [TRANSACTIONS] * WRITERS
    assert counted(path) == dict.fromkeys(range(WRITERS), TRANSACTIONS)
    # The last one to close a WAL database checkpoints it: nothing but the file is left, and it can be read at rest.
    published(lake, "dev", lambda place: counted(place / path.name, "?mode=ro&immutable=1"))


def one_is_killed(lake, mode):
    path = lake / "dev" / f"killed-{mode}.db"
    create(path, mode)
    with processes(("write", path, 0, 100000), ("write", path, 1, TRANSACTIONS), ("write", path, 2, TRANSACTIONS)) as (victim, *others):
        said = 0
        for _ in range(random.randint(1, 10)):
            said += bool(victim.stdout.readline())
        time.sleep(random.random() * 0.02)
        victim.kill()
        said += len(victim.stdout.read().split())
        assert [committed(writer) for writer in others] == [TRANSACTIONS] * 2
    rows = counted(path)
    assert rows.pop(0) - said in (0, 1) and rows == {1: TRANSACTIONS, 2: TRANSACTIONS}, (rows, said)


def killed_within_a_transaction(lake, mode):
    """Half of it is written already (its cache is tiny): who opens it next takes that back. A revision that has this
    moment keeps it whole, for whoever copies it to where it can be recovered."""
    path = lake / "dev" / f"half-{mode}.db"
    create(path, mode)
    with connect(path) as db:
        db.execute("begin")
        db.executemany("insert into done values (5, ?, randomblob(2000))", ((number,) for number in range(100)))
        db.execute("update total set n = 100")
        db.execute("commit")
    before = path.read_bytes()
    with processes(("half", path)) as (victim,):
        assert victim.stdout.readline() == "half\n"
    aside = path.parent / (path.name + ("-wal" if mode == "wal" else "-journal"))
    assert aside.stat().st_size > 100000 and (path.read_bytes() == before) == (mode == "wal")
    lake.ctl("commit", "dev", "-m", "half")
    for file in (path, aside):
        shutil.copy(lake / "@dev" / file.name, lake.scratch)
    assert counted(path) == counted(lake.scratch / path.name) == {5: 100}


def locks(lake):
    path = lake / "dev" / "locks"
    path.write_bytes(bytes(4096))
    with processes(("lock", path, 100, 10), ("lock", path, 110, 10)) as (first, second), open(path, "r+b") as file:
        assert first.stdout.readline() == second.stdout.readline() == "held\n"
        for start in (99, 100, 105, 119):
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, start)
                raise AssertionError(f"two processes have locked byte {start}")
            except BlockingIOError:
                pass
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 98)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 120)
        asked = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 112, 1, 0))
        kind, _, start, length, holder = struct.unpack("hhqqi4x", asked)
        assert (kind, start, length, holder) == (fcntl.F_WRLCK, 110, 10, second.pid)
        first.kill()
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)


def shared_memory(lake):
    path = lake / "dev" / "memory"
    path.write_bytes(bytes(8192))
    with processes(("increment", path, 300, 0), ("increment", path, 300, 1)) as (first, second):
        assert first.wait(60) == second.wait(60) == 0
    with open(path, "rb") as file:
        assert struct.unpack("Q", file.read(8)) == (600,)
    published(lake, "dev", lambda place: (place / path.name).read_bytes())


def open_during_a_commit(lake, mode):
    """Who has it open goes on with the same file, and with who opens it afterwards."""
    path = lake / "dev" / f"open-{mode}.db"
    create(path, mode)

    def another_writes(number):
        with processes(("write", path, number, 5)) as (writer,):
            assert committed(writer) == 5

    with connect(path) as db:
        db.execute("insert into done values (0, 0, 'before')")
        db.execute("update total set n = 1")
        revision = lake / ("@" + lake.ctl("commit", "dev", "--allow-open", "-m", "open")["commit"])
        another_writes(1)
        db.execute("begin immediate")
        db.execute("insert into done values (0, 1, 'after')")
        db.execute("update total set n = n + 1")
        db.execute("commit")
        another_writes(2)
        assert counted(path) == {0: 2, 1: 5, 2: 5}
    assert counted(path) == {0: 2, 1: 5, 2: 5}
    # The WAL was committed beside its database: it counts, though nothing can be written there.
    assert counted(revision / path.name, "?mode=ro") == {0: 1}
    published(lake, "dev", lambda place: counted(place / path.name, "?mode=ro&immutable=1"))


def in_revisions(lake):
    """As on any medium that is read-only: a WAL database without its files needs to be called immutable."""
    for mode in MODES:
        create(lake / "dev" / f"rest-{mode}.db", mode)
    revision = published(lake, "dev", lambda place: sorted(os.listdir(place)))
    for mode in MODES:
        assert counted(revision / f"rest-{mode}.db", "?immutable=1") == {}
        with connect(revision / f"rest-{mode}.db", "?immutable=1") as db:
            with contextlib.suppress(sqlite3.OperationalError):
                db.execute("update total set n = 1")
                raise AssertionError("a revision was written")
        if mode != "wal":
            assert counted(revision / f"rest-{mode}.db", "?mode=ro") == {}


def attached(lake):
    """Two versions of a database joined in one query."""
    path = lake / "dev" / "rest-delete.db"
    with connect(path) as db:
        db.execute("update total set n = 7")
        db.execute("insert into done values (9, 9, '')")
        db.execute(f"attach 'file:{lake / 'main'}/rest-delete.db?mode=ro' as main_branch")
        db.execute(f"attach 'file:{lake / '@main'}/rest-delete.db?mode=ro' as revision")
        assert db.execute("select a.n, b.n, c.n from main.total a, main_branch.total b, revision.total c").fetchall() == [(7, 0, 0)]


def run():
    tests = Tests()
    seed = random.randrange(1 << 32)
    random.seed(seed)
    print(f"# seed {seed}, SQLite {sqlite3.sqlite_version}")
    for lake, way in both_ways(tests):
        with tests.case(way("locks of byte ranges between processes")):
            locks(lake)
        with tests.case(way("memory that two processes share")):
            shared_memory(lake)
        for mode in MODES if LONG or passes_through(lake) else ("delete", "wal"):
            with tests.case(way(f"{mode}: {WRITERS} processes write {TRANSACTIONS} transactions each")):
                several_processes(lake, mode)
            with tests.case(way(f"{mode}: killed within a transaction")):
                killed_within_a_transaction(lake, mode)
            if LONG or mode in ("delete", "wal"):
                with tests.case(way(f"{mode}: one of three that write is killed")):
                    one_is_killed(lake, mode)
                with tests.case(way(f"{mode}: open while its branch is committed")):
                    open_during_a_commit(lake, mode)
        with tests.case(way("databases in revisions")):
            in_revisions(lake)
        with tests.case(way("versions joined")):
            attached(lake)
    tests.done()


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write_transactions(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["increment"]:
        increment(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1:2] == ["half"]:
        half_a_transaction(sys.argv[2])
    elif sys.argv[1:2] == ["lock"]:
        hold_lock(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        run()
