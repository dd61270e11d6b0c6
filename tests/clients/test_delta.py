#!/usr/bin/env python3
"""delta-rs on a branch: its local log store writes an entry aside, publishes it by a hard link that fails when the
version exists, and unlinks the other name. So concurrent writers rely on link(2)."""
import concurrent.futures
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from clients import published
from lake import Lake, Tests

tests = Tests()
try:
    import deltalake
    import pandas
except ImportError as error:
    tests.skip("delta-rs", str(error))
    tests.done()


def rows(path, **options):
    return deltalake.DeltaTable(str(path), **options).to_pandas()


APPEND = """
import sys, deltalake, pandas
for number in range(int(sys.argv[3])):
    frame = pandas.DataFrame({"writer": [int(sys.argv[2])], "number": [number]})
    deltalake.write_deltalake(sys.argv[1], frame, mode="append")
"""
PROCESSES, APPENDS = 4, 10


def counts(place):
    """The newest version, its rows, and that each version before has what it had."""
    table = deltalake.DeltaTable(str(place / "events"))
    frame = table.to_pandas()
    return table.version(), sorted(map(tuple, frame.to_numpy().tolist()))


def processes_append(lake):
    path = lake / "dev" / "events"
    deltalake.write_deltalake(str(path), pandas.DataFrame({"writer": [9], "number": [0]}))
    writers = [subprocess.Popen([sys.executable, "-c", APPEND, str(path), str(writer), str(APPENDS)]) for writer in range(PROCESSES)]
    assert [writer.wait(120) for writer in writers] == [0] * PROCESSES
    wanted = [(writer, number) for writer in range(PROCESSES) for number in range(APPENDS)] + [(9, 0)]
    assert counts(lake / "dev") == (PROCESSES * APPENDS, wanted)
    assert all(len(rows(path, version=version)) == version + 1 for version in (0, 1, 20, 40))
    assert sorted(name for name in os.listdir(path / "_delta_log") if name.endswith(".json")) == [f"{n:020}.json" for n in range(PROCESSES * APPENDS + 1)]
    published(lake, "dev", counts)


def maintained(lake):
    """Rows deleted, files joined, old ones removed: earlier revisions have them still."""
    path = lake / "dev" / "events"
    before = lake / ("@" + lake.ctl("log", "dev", "-n", "1")["commits"][0]["id"])
    table = deltalake.DeltaTable(str(path))
    assert table.delete("writer = 3")["num_deleted_rows"] == APPENDS
    table.update(predicate="writer = 9", updates={"number": "77"})
    assert table.optimize.compact()["numFilesAdded"] == 1
    table.create_checkpoint()
    removed = table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert len(removed) >= PROCESSES * APPENDS - APPENDS and len(table.file_uris()) == 1
    after = published(lake, "dev", counts)
    assert counts(after)[1] == [(writer, number) for writer in range(3) for number in range(APPENDS)] + [(9, 77)]
    assert counts(before)[0] == PROCESSES * APPENDS and len(counts(before)[1]) == PROCESSES * APPENDS + 1
    assert len(rows(before / "events", version=5)) == 6
    try:
        rows(after / "events", version=5)
        raise AssertionError("vacuum kept everything")
    except Exception as problem:  # its kind differs by version of delta-rs
        assert "not found" in str(problem).lower() or "no such file" in str(problem).lower(), problem


def nothing_to_revisions(lake):
    try:
        deltalake.write_deltalake(str(lake / "@main" / "events"), pandas.DataFrame({"writer": [0], "number": [0]}), mode="append")
    except Exception as problem:  # its kind differs by version of delta-rs
        assert "Read-only file system" in str(problem), problem
        return
    raise AssertionError("written")


with Lake() as lake:
    lake.ctl("branch", "create", "dev", "main")
    with tests.case(f"{PROCESSES} processes append {APPENDS} times each"):
        processes_append(lake)
    with tests.case("delete, update, optimize, vacuum"):
        maintained(lake)
    with tests.case("nothing is written to a revision"):
        nothing_to_revisions(lake)

with Lake() as lake:
    table = lake / "main" / "orders"
    frame = pandas.DataFrame({"id": range(1000), "price": [i * 1.5 for i in range(1000)]})
    with tests.case("create, append, overwrite"):
        deltalake.write_deltalake(str(table), frame)
        deltalake.write_deltalake(str(table), frame, mode="append")
        assert len(rows(table)) == 2000
        deltalake.write_deltalake(str(table), frame.head(10), mode="overwrite")
        assert len(rows(table)) == 10
    with tests.case("time travel inside the table"):
        assert len(rows(table, version=1)) == 2000
    with tests.case("commit, then append to the committed table on a branch"):
        lake.ctl("commit", "main", "-m", "orders")
        lake.ctl("branch", "create", "dev", "main")
        deltalake.write_deltalake(str(lake / "dev" / "orders"), frame, mode="append")
        lake.ctl("commit", "dev", "-m", "more orders")
        assert len(rows(lake / "dev" / "orders")) == 1010
        assert len(rows(table)) == 10
    with tests.case("merge brings the new version"):
        lake.ctl("merge", "dev", "main")
        assert len(rows(table)) == 1010
        assert len(rows(lake / "@main~1" / "orders")) == 10
    with tests.case("concurrent writers"):
        def append(_):
            deltalake.write_deltalake(str(table), frame.head(5), mode="append")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(append, range(12)))
        assert len(rows(table)) == 1010 + 60
    with tests.case("after a commit and a remount"):
        lake.ctl("commit", "main", "-m", "concurrent")
        lake.umount()
        lake.mount()
        assert len(rows(table)) == 1070
tests.done()
