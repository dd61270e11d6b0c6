#!/usr/bin/env python3
"""Two branches write one Delta table and are merged: delta-rs reads what came of it."""
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from lake import Lake, Refused, Tests

tests = Tests()
try:
    import deltalake
    import pyarrow
except ImportError as error:
    tests.skip("delta-rs", str(error))
    tests.done()


def rows(first, count, part="a"):
    ids = list(range(first, first + count))
    return pyarrow.table({"id": ids, "price": [i * 0.5 for i in ids], "part": [part] * count})


def write(path, data, mode="append", **options):
    deltalake.write_deltalake(str(path), data, mode=mode, **options)


def ids(path, **options):
    table = deltalake.DeltaTable(str(path), **options).to_pyarrow_table(columns=["id"])
    return sorted(table["id"].to_pylist())


def version(path):
    return deltalake.DeltaTable(str(path)).version()


def log(path):
    return sorted(os.listdir(path / "_delta_log"))


def fork(lake, name):
    """A table of 10 rows, versions 0 and 1, on main and on a new branch."""
    table = lake / "main" / name
    write(table, rows(0, 5), mode="error", partition_by=["part"] if "part" in name else None)
    write(table, rows(5, 5))
    lake.ctl("commit", "main", "-m", f"{name}: begun")
    lake.ctl("branch", "create", name, "main")
    return table, lake / name / name


def commit(lake, name):
    lake.ctl("commit", "main", "-m", f"{name}: target")
    lake.ctl("commit", name, "-m", f"{name}: source")


def conflict(lake, source, target):
    try:
        lake.ctl("merge", source, target)
    except Refused as refused:
        assert refused.code == 3, refused
        return refused.reply["conflicts"]
    raise AssertionError("merged")


with Lake() as lake:
    with tests.case("several appends on each side"):
        main, dev = fork(lake, "orders")
        for i in range(3):
            write(dev, rows(100 + i * 10, 10))
        for i in range(2):
            write(main, rows(200 + i * 10, 10))
        commit(lake, "orders")
        lake.ctl("merge", "orders", "main")
        assert version(main) == 6
        assert ids(main) == [*range(10), *range(100, 130), *range(200, 220)]
        history = deltalake.DeltaTable(str(main)).history()
        assert [entry["version"] for entry in history] == [6, 5, 4, 3, 2, 1, 0], history
        assert all(entry["operation"] == "WRITE" for entry in history)
    with tests.case("time travel: the target's versions keep their numbers"):
        assert ids(main, version=1) == [*range(10)]
        assert ids(main, version=3) == [*range(10), *range(200, 220)]
        for i, count in enumerate([5, 10, 20, 30, 40, 50, 60]):
            assert len(ids(main, version=i)) == count
    with tests.case("the times of the versions ascend"):
        times = [os.stat(main / "_delta_log" / f"{i:020}.json").st_mtime_ns for i in range(1, 7)]
        assert times == sorted(set(times)), times
    with tests.case("the table goes on: append, checkpoint, vacuum"):
        write(main, rows(300, 10))
        table = deltalake.DeltaTable(str(main))
        table.create_checkpoint()
        assert table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False) == []
        assert len(ids(main)) == 70 and version(main) >= 7
        lake.ctl("commit", "main", "-m", "on")
    with tests.case("the source branch goes on with its own numbers, and is merged again"):
        write(dev, rows(400, 10))
        write(dev, rows(410, 10))
        lake.ctl("commit", "orders", "-m", "more")
        before = version(main)
        lake.ctl("merge", "orders", "main")
        assert version(main) == before + 2
        assert ids(main)[-20:] == [*range(400, 420)] and len(ids(main)) == 90
    with tests.case("the other way round: the source's log becomes the target's"):
        reply = lake.ctl("merge", "main", "orders")
        assert ids(dev) == ids(main) and log(dev) == log(main)
        write(dev, rows(500, 10))
        lake.ctl("commit", "orders", "-m", "after")
        lake.ctl("merge", "orders", "main")
        assert ids(main)[-10:] == [*range(500, 510)]

    with tests.case("checkpoints on both sides"):
        main, dev = fork(lake, "checked")
        for i in range(12):
            write(dev, rows(100 + i, 1))
            write(main, rows(200 + i, 1))
        deltalake.DeltaTable(str(dev)).create_checkpoint()
        write(dev, rows(112, 1))
        deltalake.DeltaTable(str(main)).create_checkpoint()
        commit(lake, "checked")
        lake.ctl("merge", "checked", "main")
        assert ids(main) == [*range(10), *range(100, 113), *range(200, 212)]
        assert version(main) == 26
        assert [name for name in log(main) if "checkpoint.parquet" in name][-1].startswith("0" * 18 + "13")
        write(main, rows(300, 1))
        deltalake.DeltaTable(str(main)).create_checkpoint()
        assert len(ids(main)) == 36
    with tests.case("partitions"):
        main, dev = fork(lake, "parted")
        write(dev, rows(100, 10, "b"), partition_by=["part"])
        write(dev, rows(110, 10, "c"), partition_by=["part"])
        write(main, rows(200, 10, "b"), partition_by=["part"])
        commit(lake, "parted")
        lake.ctl("merge", "parted", "main")
        assert len(ids(main)) == 40
        table = deltalake.DeltaTable(str(main))
        assert len(table.to_pyarrow_table(filters=[("part", "=", "b")])) == 20
    with tests.case("three branches, one after another; squashed, too"):
        main, dev = fork(lake, "three")
        lake.ctl("branch", "create", "three2", "main")
        lake.ctl("branch", "create", "three3", "main")
        for i, name in enumerate(["three", "three2", "three3"]):
            write(lake / name / "three", rows(100 * i + 100, 10))
            write(lake / name / "three", rows(100 * i + 110, 10))
            lake.ctl("commit", name, "-m", name)
        lake.ctl("merge", "three", "main")
        lake.ctl("merge", "three2", "main", "--squash")
        lake.ctl("merge", "three3", "main")
        assert ids(main) == [*range(10), *range(100, 120), *range(200, 220), *range(300, 320)]
        assert version(main) == 7
    with tests.case("append, while the target deletes"):
        main, dev = fork(lake, "deleted")
        write(dev, rows(100, 10))
        deltalake.DeltaTable(str(main)).delete("id < 5")
        commit(lake, "deleted")
        lake.ctl("merge", "deleted", "main")
        assert ids(main) == [*range(5, 10), *range(100, 110)]
    with tests.case("a cherry-picked append"):
        main, dev = fork(lake, "picked")
        write(dev, rows(100, 10))
        write(main, rows(200, 10))
        commit(lake, "picked")
        lake.ctl("cherry-pick", "picked", "main")
        assert ids(main) == [*range(10), *range(100, 110), *range(200, 210)]

    with tests.case("four branches that append, and are merged into each other at random"):
        seed = int(os.environ.get("TEST_SEED", time.time_ns() % 10**6))
        print(f"# TEST_SEED={seed}")
        random.seed(seed)
        main, _ = fork(lake, "random")
        branches = ["main", "random", "random2", "random3"]
        for name in branches[2:]:
            lake.ctl("branch", "create", name, "main")
        wanted = {name: set(range(10)) for name in branches}
        for step in range(40):
            name = random.choice(branches)
            table = lake / name / "random"
            if random.random() < 0.5:
                write(table, rows(1000 + step, 1))
                wanted[name].add(1000 + step)
                if random.random() < 0.3:
                    deltalake.DeltaTable(str(table)).create_checkpoint()
                lake.ctl("commit", name, "-m", f"step {step}")
            else:
                other = random.choice([other for other in branches if other != name])
                lake.ctl("merge", other, name, *random.choice([[], [], ["--squash"]]))
                wanted[name] |= wanted[other]
            assert ids(table) == sorted(wanted[name]), step

    with tests.case("an overwrite did not see the target's append: a conflict of the table"):
        main, dev = fork(lake, "over")
        write(dev, rows(100, 10), mode="overwrite")
        write(main, rows(200, 10))
        commit(lake, "over")
        found = conflict(lake, "over", "main")
        assert len(found) == 1, found
        assert found[0]["path"] == found[0]["table"] == "over" and found[0]["format"] == "delta"
        assert found[0]["version"] == 2
        assert "both sides wrote version 2 of table over" in found[0]["sentence"], found
        assert "source: WRITE (Overwrite); target: WRITE (Append)" in found[0]["sentence"], found
        assert found[0]["paths"] == [f"over/_delta_log/{2:020}.json"]
        assert ids(found[0]["source"]["at"]) == [*range(100, 110)]
        assert ids(found[0]["target"]["at"]) == [*range(10), *range(200, 210)]
        assert ids(found[0]["base"]["at"]) == [*range(10)]
        dry = [c["table"] for c in conflict(lake, "over", "main")]
        assert dry == ["over"]
    with tests.case("--take decides for the whole table"):
        lake.ctl("merge", "over", "main", "--take", "source:over")
        assert ids(main) == [*range(100, 110)]
        write(main, rows(300, 1))
    with tests.case("both overwrite, and a pattern takes the target's"):
        main, dev = fork(lake, "both")
        write(dev, rows(100, 10), mode="overwrite")
        write(main, rows(200, 10), mode="overwrite")
        commit(lake, "both")
        assert len(conflict(lake, "both", "main")) == 1
        lake.ctl("merge", "both", "main", "--take", "target:bo*")
        assert ids(main) == [*range(200, 210)]
    with tests.case("the schema changed on the target"):
        main, dev = fork(lake, "schema")
        write(dev, rows(100, 10))
        wider = rows(200, 10).append_column("extra", pyarrow.array(range(10)))
        write(main, wider, schema_mode="merge")
        commit(lake, "schema")
        found = conflict(lake, "schema", "main")
        assert len(found) == 1 and "schema" in found[0]["sentence"], found
    with tests.case("the schema changed on the source"):
        lake.ctl("merge", "schema", "main", "--take", "target:schema")
        main, dev = fork(lake, "schema2")
        write(dev, rows(100, 10).append_column("extra", pyarrow.array(range(10))), schema_mode="merge")
        write(main, rows(200, 10))
        commit(lake, "schema2")
        found = conflict(lake, "schema2", "main")
        assert len(found) == 1 and "schema" in found[0]["sentence"], found
    with tests.case("both record one application's progress"):
        main, dev = fork(lake, "stream")
        progress = deltalake.CommitProperties(app_transactions=[deltalake.Transaction("app", 7)])
        write(dev, rows(100, 10), commit_properties=progress)
        write(main, rows(100, 10), commit_properties=progress)
        commit(lake, "stream")
        found = conflict(lake, "stream", "main")
        assert "progress of one application" in found[0]["sentence"], found
    with tests.case("taking an append back, when later ones follow it"):
        main, _ = fork(lake, "back")
        write(main, rows(100, 10))
        lake.ctl("commit", "main", "-m", "one")
        write(main, rows(200, 10))
        lake.ctl("commit", "main", "-m", "two")
        try:
            lake.ctl("revert", "main~1", "main")
            raise AssertionError("reverted")
        except Refused as refused:
            assert refused.code == 3 and "version 2 back" in str(refused), refused
        lake.ctl("revert", "main", "main")
        assert ids(main) == [*range(10), *range(100, 110)]
    with tests.case("many versions on each side"):
        main, dev = fork(lake, "long")
        for i in range(30):
            write(dev, rows(1000 + i, 1))
            write(main, rows(2000 + i, 1))
        commit(lake, "long")
        lake.ctl("merge", "long", "main")
        assert version(main) == 61 and len(ids(main)) == 70
tests.done()
