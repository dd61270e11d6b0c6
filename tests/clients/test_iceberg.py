#!/usr/bin/env python3
"""pyiceberg with an SQL catalog (SQLite) inside the lake: create, append, snapshots, a branch."""
import os
import shutil
import subprocess
import sys
import warnings

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from clients import published
from lake import Lake, Tests

warnings.filterwarnings("ignore")
tests = Tests()
try:
    import pyarrow
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.io.pyarrow import PyArrowFileIO
    from pyiceberg.types import LongType
except ImportError as error:
    tests.skip("pyiceberg", str(error))
    tests.done()


def catalog(root):
    return SqlCatalog("lake", uri=f"sqlite:///{root}/catalog.db", warehouse=f"file://{root}/warehouse")


class MovedFileIO(PyArrowFileIO):
    """Iceberg's metadata names files by absolute paths, those of the branch that wrote them. To read another branch or
    a revision is to look for them there."""

    def new_input(self, location):
        return super().new_input(location.replace(self.properties["written-at"], self.properties["read-at"]))


def catalog_elsewhere(lake, place):
    """SQLite reads where nothing can be written when told that the file does not change."""
    return SqlCatalog("lake", uri=f"sqlite:///file:{place}/catalog.db?immutable=1&uri=true", init_catalog_tables="false",
                      **{"py-io-impl": "__main__.MovedFileIO", "written-at": f"{lake / 'dev'}/", "read-at": f"{place}/"})


def life_of_a_table(lake):
    dev = lake / "dev"
    (dev / "warehouse").mkdir()
    at = catalog(dev)
    at.create_namespace("shop")
    data = pyarrow.table({"id": list(range(100)), "name": [f"n{i}" for i in range(100)]})
    table = at.create_table("shop.orders", schema=data.schema)
    table.append(data)
    table.append(data)
    first = table.current_snapshot().snapshot_id
    with table.update_schema() as update:
        update.add_column("price", LongType())
    table.append(data.append_column("price", pyarrow.array([2] * 100)))
    table.delete("id < 10")
    at.engine.dispose()

    def look(place):
        at = catalog_elsewhere(lake, place)
        found = at.load_table("shop.orders")
        rows = found.scan().to_arrow()
        snapshots = {snapshot.snapshot_id: found.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows for snapshot in found.snapshots()}
        at.engine.dispose()
        return rows.num_rows, rows["price"].null_count, list(snapshots.values()), snapshots[first]

    # A delete that leaves some rows of a file is an overwrite of that file: each is one snapshot.
    wanted = look(dev)
    assert wanted[:2] == (270, 180) and wanted[2][:3] == [100, 200, 300] and wanted[2][-1] == 270, wanted
    assert wanted[3] == 200
    revision = published(lake, "dev", look)
    shutil.rmtree(dev / "warehouse")
    assert look(revision) == look(lake / "main") == wanted
    lake.ctl("restore", "dev", "--", ".")
    assert look(dev) == wanted


def two_writers(lake):
    """Both commit to the catalog's database; who loses the race is told, tries again, and nothing is lost."""
    writer = """
import sys, warnings
warnings.filterwarnings("ignore")
import pyarrow
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
root, number = sys.argv[1], int(sys.argv[2])
at = SqlCatalog("lake", uri=f"sqlite:///{root}/catalog.db", warehouse=f"file://{root}/warehouse")
for turn in range(5):
    while True:
        try:
            at.load_table("shop.orders").append(pyarrow.table({"id": [1000 + number], "name": [str(turn)], "price": [turn]}))
            break
        except CommitFailedException:
            pass
"""
    writers = [subprocess.Popen([sys.executable, "-c", writer, str(lake / "dev"), str(number)]) for number in range(2)]
    assert [process.wait(120) for process in writers] == [0, 0]

    def look(place):
        at = catalog_elsewhere(lake, place)
        found = at.load_table("shop.orders").scan(row_filter="id >= 1000").to_arrow()
        at.engine.dispose()
        return sorted(zip(found["id"].to_pylist(), found["price"].to_pylist()))

    assert look(lake / "dev") == [(number, turn) for number in (1000, 1001) for turn in range(5)]
    published(lake, "dev", look)


with Lake() as lake:
    lake.ctl("branch", "create", "dev", "main")
    with tests.case("create, append, evolve, delete; read through the catalog of a revision"):
        life_of_a_table(lake)
    with tests.case("two processes append"):
        two_writers(lake)

with Lake() as lake:
    main = lake / "main"
    data = pyarrow.table({"id": list(range(1000)), "name": [f"n{i}" for i in range(1000)]})
    with tests.case("create, append, read"):
        (main / "warehouse").mkdir()
        at = catalog(main)
        at.create_namespace("shop")
        table = at.create_table("shop.orders", schema=data.schema)
        table.append(data)
        table.append(data)
        assert table.scan().to_arrow().num_rows == 2000
        assert len(table.snapshots()) == 2
        at.engine.dispose()
    with tests.case("commit, append on, and the committed state stays"):
        lake.ctl("commit", "main", "-m", "iceberg")
        at = catalog(main)
        at.load_table("shop.orders").append(data)
        assert at.load_table("shop.orders").scan().to_arrow().num_rows == 3000
        at.engine.dispose()
        lake.ctl("commit", "main", "-m", "more")
        assert (lake / "@main~1" / "catalog.db").read_bytes() != (main / "catalog.db").read_bytes()
    with tests.case("restore the table and its catalog together"):
        lake.ctl("restore", "main", "--from", "main~1", "--", ".")
        at = catalog(main)
        assert at.load_table("shop.orders").scan().to_arrow().num_rows == 2000
        at.engine.dispose()
tests.done()
