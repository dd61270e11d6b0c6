#!/usr/bin/env python3
"""pandas and pyarrow on a branch: datasets, partitioned writes, memory-mapped Arrow files."""
import ctypes
import mmap
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from clients import both_ways, published
from lake import Lake, Tests

tests = Tests()
try:
    import pandas
    import pyarrow
    import pyarrow.csv
    import pyarrow.dataset
    import pyarrow.feather
    import pyarrow.parquet
except ImportError as error:
    tests.skip("pandas and pyarrow", str(error))
    tests.done()

ROWS = 20000
TABLE = pyarrow.table({"day": [i % 5 for i in range(ROWS)], "value": list(range(ROWS)), "name": [f"n{i}" for i in range(ROWS)]})


def write_days(where, table, existing, prefix):
    pyarrow.dataset.write_dataset(table, where, format="parquet", partitioning=["day"], partitioning_flavor="hive",
                                  existing_data_behavior=existing, basename_template=prefix + "-{i}.parquet")


def existing_data(lake):
    """What write_dataset does with what is there: refuse, write over files of its name, replace whole partitions."""
    table = lake / "dev" / "days"

    def rows(place):
        found = pyarrow.dataset.dataset(place / "days", partitioning="hive").to_table(columns=["day"])["day"].value_counts()
        return {count["values"]: count["counts"] for count in found.to_pylist()}

    write_days(table, TABLE, "error", "a")
    assert rows(lake / "dev") == dict.fromkeys(range(5), ROWS // 5)
    published(lake, "dev", rows)
    try:
        write_days(table, TABLE, "error", "b")
        raise AssertionError("written over what is there")
    except pyarrow.ArrowInvalid:
        pass
    two = TABLE.slice(0, 10).filter(pyarrow.compute.field("day") < 2)
    write_days(table, two, "overwrite_or_ignore", "b")
    assert rows(lake / "dev") == {0: 4002, 1: 4002, 2: 4000, 3: 4000, 4: 4000}
    write_days(table, two, "overwrite_or_ignore", "a")
    assert rows(lake / "dev") == {0: 4, 1: 4, 2: 4000, 3: 4000, 4: 4000}
    write_days(table, two, "delete_matching", "c")
    assert rows(lake / "dev") == {0: 2, 1: 2, 2: 4000, 3: 4000, 4: 4000}
    published(lake, "dev", rows)


def mapped(lake):
    """Columns of a mapped file are its pages: they keep what was opened, whatever happens to the name."""
    pyarrow.feather.write_feather(TABLE, lake / "dev" / "t.feather", compression="uncompressed")
    with pyarrow.OSFile(str(lake / "dev" / "t.arrows"), "wb") as sink, pyarrow.ipc.new_stream(sink, TABLE.schema) as writer:
        for batch in TABLE.to_batches(max_chunksize=1000):
            writer.write_batch(batch)

    def look(place):
        before = pyarrow.total_allocated_bytes()
        table = pyarrow.feather.read_table(place / "t.feather", memory_map=True)
        assert table.equals(TABLE) and pyarrow.total_allocated_bytes() - before < TABLE.nbytes // 2
        with pyarrow.memory_map(str(place / "t.arrows")) as source:
            assert pyarrow.ipc.open_stream(source).read_all().equals(TABLE)
        return table

    kept = [look(published(lake, "dev", look)), look(lake / "dev"), look(lake / "main")]
    pyarrow.feather.write_feather(TABLE.slice(0, 5), lake / "dev" / "new.feather", compression="uncompressed")
    os.replace(lake / "dev" / "new.feather", lake / "dev" / "t.feather")
    published(lake, "dev", lambda place: pyarrow.feather.read_table(place / "t.feather", memory_map=True))
    assert all(table.equals(TABLE) for table in kept)


def written_through_a_map(lake):
    path = lake / "dev" / "cells"
    path.write_bytes(bytes(1 << 20))
    published(lake, "dev", lambda place: (place / "cells").read_bytes())
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory, open(path, "rb") as reader:
        for at in range(0, 1 << 20, 5000):
            memory[at:at + 4] = b"lake"
            assert os.pread(reader.fileno(), 4, at) == b"lake"
        os.pwrite(file.fileno(), b"write", 70000)
        assert memory[70000:70005] == b"write"
        memory.flush()
        assert (lake / "main" / "cells").read_bytes() == bytes(1 << 20)
        with open(lake / "dev" / "cells", "rb") as another:
            assert another.read()[995000:995004] == b"lake"
    published(lake, "dev", lambda place: (place / "cells").read_bytes())


def mapped_after_close(lake):
    """A mapping outlives the descriptor that it was made through, and is open for writing all the while: also when the
    kernel maps our own file and has told us that the handle is closed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    path = lake / "dev" / "outlives"
    path.write_bytes(bytes(8192))
    published(lake, "dev", lambda place: (place / "outlives").read_bytes())
    file = os.open(path, os.O_RDWR)
    memory = libc.mmap(None, 8192, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    os.pwrite(file, b"written", 100)
    os.close(file)
    assert [file["path"] for file in lake.ctl("status", "dev")["open_for_write"]] == ["outlives"]
    with open(path, "rb"):  # then the daemon has a descriptor of its own
        assert [file["path"] for file in lake.ctl("status", "dev")["open_for_write"]] == ["outlives"]
        taken = lake / ("@" + lake.ctl("commit", "dev", "--allow-open", "-m", "as it is")["commit"])
    ctypes.memset(memory + 4096, ord("m"), 10)
    assert (taken / "outlives").read_bytes()[4096:4106] == bytes(10)
    assert libc.munmap(memory, 8192) == 0
    with open(path, "rb") as reader:
        assert reader.read()[4096:4106] == b"m" * 10
        assert lake.ctl("status", "dev")["open_for_write"] == []
        published(lake, "dev", lambda place: (place / "outlives").read_bytes())
    assert (taken / "outlives").read_bytes()[4096:4106] == bytes(10)


def row_groups(lake):
    """A file that grows by row groups while it is open; only whole ones are published."""
    path = lake / "dev" / "groups.parquet"
    with pyarrow.parquet.ParquetWriter(path, TABLE.schema) as writer:
        for start in range(0, ROWS, ROWS // 4):
            writer.write_table(TABLE.slice(start, ROWS // 4))
    revision = published(lake, "dev", lambda place: pyarrow.parquet.read_table(place / "groups.parquet"))
    with pyarrow.parquet.ParquetFile(revision / "groups.parquet", memory_map=True) as old:
        with pyarrow.parquet.ParquetWriter(path, TABLE.schema) as writer:
            for group in range(old.num_row_groups):
                writer.write_table(old.read_row_group(group))
            writer.write_table(TABLE.slice(0, 7))
        assert old.num_row_groups == 4 and pyarrow.parquet.ParquetFile(path).num_row_groups == 5
    published(lake, "dev", lambda place: pyarrow.parquet.read_metadata(place / "groups.parquet").num_rows)


def csv(lake):
    pyarrow.csv.write_csv(TABLE, lake / "dev" / "t.csv")
    pandas.DataFrame({"day": [9], "value": [9], "name": ["9"]}).to_csv(lake / "dev" / "t.csv", mode="a", header=False, index=False)
    published(lake, "dev", lambda place: (pyarrow.csv.read_csv(place / "t.csv"), pandas.read_csv(place / "t.csv").value.sum()))
    assert pyarrow.csv.read_csv(lake / "main" / "t.csv").num_rows == ROWS + 1


for lake, way in both_ways(tests):
    with tests.case(way("memory-mapped Feather and Arrow files of branch and revision")):
        mapped(lake)
    with tests.case(way("a committed file written through a map")):
        written_through_a_map(lake)
    with tests.case(way("a mapping that outlives its descriptor")):
        mapped_after_close(lake)

with Lake() as lake:
    lake.ctl("branch", "create", "dev", "main")
    with tests.case("datasets written where there is one already"):
        existing_data(lake)
    with tests.case("row groups appended"):
        row_groups(lake)
    with tests.case("CSV by both"):
        csv(lake)

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
