#!/usr/bin/env python3
"""pandas and pyarrow on a branch: datasets, partitioned writes, memory-mapped Arrow files."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from lake import Lake, Tests

tests = Tests()
try:
    import pandas
    import pyarrow
    import pyarrow.dataset
    import pyarrow.parquet
except ImportError as error:
    tests.skip("pandas and pyarrow", str(error))
    tests.done()

with Lake() as lake:
    main = lake / "main"
    frame = pandas.DataFrame({"day": [i % 7 for i in range(100000)], "value": range(100000)})
    with tests.case("pandas: Parquet and CSV round trip"):
        frame.to_parquet(main / "f.parquet")
        frame.to_csv(main / "f.csv", index=False)
        assert pandas.read_parquet(main / "f.parquet").equals(frame)
        assert pandas.read_csv(main / "f.csv").equals(frame)
    with tests.case("pandas: append to a CSV that is committed"):
        lake.ctl("commit", "main", "-m", "one")
        frame.head(10).to_csv(main / "f.csv", mode="a", header=False, index=False)
        assert len(pandas.read_csv(main / "f.csv")) == 100010
        assert len(pandas.read_csv(lake / "@main" / "f.csv")) == 100000
    with tests.case("pyarrow: partitioned dataset"):
        pyarrow.dataset.write_dataset(pyarrow.Table.from_pandas(frame), main / "parts", format="parquet",
                                      partitioning=["day"], partitioning_flavor="hive")
        dataset = pyarrow.dataset.dataset(main / "parts", partitioning="hive")
        assert dataset.count_rows() == 100000
        assert dataset.to_table(filter=pyarrow.dataset.field("day") == 3).num_rows == sum(frame.day == 3)
    with tests.case("pyarrow: memory-mapped Arrow file"):
        table = pyarrow.Table.from_pandas(frame)
        with pyarrow.OSFile(str(main / "t.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        with pyarrow.memory_map(str(main / "t.arrow")) as source:
            assert pyarrow.ipc.open_file(source).read_all().equals(table)
        lake.ctl("commit", "main", "-m", "two")
        with pyarrow.memory_map(str(lake / "@main" / "t.arrow")) as source:
            assert pyarrow.ipc.open_file(source).read_all().equals(table)
    with tests.case("pyarrow: writing through a memory map"):
        with pyarrow.create_memory_map(str(main / "map.bin"), 1 << 20) as memory:
            memory.write(b"lake" * 1000)
        assert (main / "map.bin").read_bytes()[:8] == b"lakelake"
        assert (main / "map.bin").stat().st_size == 1 << 20
    with tests.case("a branch diverges and merges"):
        lake.ctl("branch", "create", "dev", "main")
        frame.assign(value=0).to_parquet(lake / "dev" / "g.parquet")
        lake.ctl("commit", "dev", "-m", "g")
        lake.ctl("commit", "main", "-m", "map")
        lake.ctl("merge", "dev", "main")
        assert pandas.read_parquet(main / "g.parquet").value.sum() == 0
tests.done()
