#!/usr/bin/env python3
"""delta-rs on a branch: its local log store publishes by hard link and unlink."""
import concurrent.futures
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
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
