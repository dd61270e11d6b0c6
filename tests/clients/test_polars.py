#!/usr/bin/env python3
"""polars on a branch: lazy scans with globs and partitions, streaming sinks, what is scanned while it changes."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from clients import published
from lake import Lake, Tests

tests = Tests()
try:
    import polars
    from polars.testing import assert_frame_equal
except ImportError as error:
    tests.skip("polars", str(error))
    tests.done()

ROWS = 200000
FRAME = polars.DataFrame({"day": [i % 7 for i in range(ROWS)], "value": range(ROWS), "name": [f"n{i % 1000}" for i in range(ROWS)]})


def same(found, wanted):
    assert_frame_equal(found, wanted, check_row_order=False)


with Lake() as lake:
    lake.ctl("branch", "create", "dev", "main")
    dev = lake / "dev"
    with tests.case("Parquet, CSV, NDJSON and Arrow written, scanned with globs"):
        for part in range(4):
            piece = FRAME.slice(part * ROWS // 4, ROWS // 4)
            (dev / "csv").mkdir(exist_ok=True)
            (dev / "parquet").mkdir(exist_ok=True)
            piece.write_parquet(dev / "parquet" / f"{part}.parquet", row_group_size=10000)
            piece.write_csv(dev / "csv" / f"{part}.csv")
        FRAME.write_ndjson(dev / "all.ndjson")
        FRAME.write_ipc(dev / "all.arrow", compression="uncompressed")

        def look(place):
            frames = (polars.scan_parquet(place / "parquet" / "*.parquet").collect(),
                      polars.scan_csv(place / "csv" / "*.csv").collect(),
                      polars.scan_ndjson(place / "all.ndjson").collect(),
                      polars.scan_ipc(place / "all.arrow").collect(),
                      polars.read_ipc(place / "all.arrow"))
            for frame in frames:
                same(frame, FRAME)
            return polars.scan_parquet(place / "parquet/[01].parquet").filter(polars.col("day") == 3).select(polars.col("value").sum()).collect().item()

        published(lake, "dev", look)
    with tests.case("streaming sinks, also from a revision"):
        source = polars.scan_parquet(lake / "@main" / "parquet" / "*.parquet")
        late = source.filter(polars.col("value") >= ROWS // 2)
        late.sink_parquet(dev / "late.parquet")
        late.sink_csv(dev / "late.csv")
        late.sink_ipc(dev / "late.arrow")
        late.sink_ndjson(dev / "late.ndjson")

        def look_late(place):
            for frame in (polars.read_parquet(place / "late.parquet"), polars.read_csv(place / "late.csv"),
                          polars.read_ipc(place / "late.arrow"), polars.read_ndjson(place / "late.ndjson")):
                same(frame, FRAME.slice(ROWS // 2))

        published(lake, "dev", look_late)
    with tests.case("hive partitions"):
        FRAME.lazy().sink_parquet(polars.PartitionBy(dev / "hive", key="day", include_key=False), mkdir=True)
        FRAME.write_parquet(dev / "written", partition_by=["day"])

        def look_hive(place):
            for table in ("hive", "written"):
                scan = polars.scan_parquet(place / table / "**" / "*.parquet", hive_partitioning=True)
                same(scan.select(FRAME.columns).collect(), FRAME)
                assert scan.filter(polars.col("day") == 2).select(polars.len()).collect().item() == FRAME.filter(polars.col("day") == 2).height
            return sorted(os.listdir(place / "hive"))

        assert look_hive(dev) == [f"day={day}" for day in range(7)]
        published(lake, "dev", look_hive)
    with tests.case("one scan over all branches"):
        FRAME.head(5).write_parquet(dev / "parquet" / "4.parquet")
        counts = dict(polars.scan_parquet(str(lake.mountpoint) + "/*/parquet/*.parquet", include_file_paths="file")
                      .with_columns(branch=polars.col("file").str.strip_prefix(str(lake.mountpoint)).str.split("/").list.get(1))
                      .group_by("branch").len().collect().iter_rows())
        assert counts == {"main": ROWS, "dev": ROWS + 5}, counts
    with tests.case("a lazy scan keeps to its revision while the branch goes on"):
        revision = lake / ("@" + lake.ctl("branch")["branches"][-1]["commit"])
        scan = polars.scan_parquet(revision / "parquet" / "*.parquet")
        for file in (dev / "parquet").iterdir():
            file.unlink()
        lake.ctl("commit", "dev", "-m", "gone")
        lake.ctl("merge", "dev", "main")
        assert scan.select(polars.len()).collect().item() == ROWS
        try:
            polars.scan_parquet(lake / "main" / "parquet" / "*.parquet").collect()
            raise AssertionError("scanned what is gone")
        except (polars.exceptions.ComputeError, FileNotFoundError):
            pass
    with tests.case("nothing is written to a revision"):
        for sink in (lambda path: FRAME.write_parquet(path), lambda path: FRAME.lazy().sink_parquet(path)):
            try:
                sink(lake / "@main" / "new.parquet")
                raise AssertionError("written")
            except (OSError, polars.exceptions.ComputeError) as problem:
                assert "Read-only file system" in str(problem), problem
tests.done()
