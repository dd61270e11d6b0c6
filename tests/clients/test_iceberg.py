#!/usr/bin/env python3
"""pyiceberg with an SQL catalog (SQLite) inside the lake: create, append, snapshots, a branch."""
import os
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
    from pyiceberg.table import StaticTable
    from pyiceberg.types import LongType
except ImportError as error:
    tests.skip("pyiceberg", str(error))
    tests.done()


def catalog(root):
    return SqlCatalog("lake", uri=f"sqlite:///{root}/catalog.db", warehouse=f"file://{root}/warehouse")


def metadata(place):
    """The newest metadata file of the table, as a path below this directory."""
    newest = sorted(os.listdir(place / "warehouse" / "shop" / "orders" / "metadata"))
    return next(place / "warehouse/shop/orders/metadata" / name for name in reversed(newest) if name.endswith(".metadata.json"))


def catalog_of_revision(lake, place):
    """A revision's catalog: SQLite reads it where nothing can be written when told that it does not change."""
    return SqlCatalog("lake", uri=f"sqlite:///file:{place}/catalog.db?immutable=1&uri=true", warehouse=f"file://{place}/warehouse", init_catalog_tables="false")


def life_of_a_table(lake):
    """Locations in Iceberg's metadata are absolute: a table is written through one branch, here dev."""
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
        at = catalog_of_revision(lake, place) if "@" in place.name else catalog(place)
        found = at.load_table("shop.orders")
        at.engine.dispose()
        rows = found.scan().to_arrow()
        assert found.scan(snapshot_id=first).to_arrow().num_rows == 200
        assert StaticTable.from_metadata(str(metadata(place))).scan().to_arrow().num_rows == rows.num_rows
        return rows.num_rows, rows["price"].null_count, [snapshot.snapshot_id for snapshot in found.snapshots()]

    assert look(dev)[:2] == (270, 180)
    revision = published(lake, "dev", look)
    assert look(revision)[:2] == (270, 180)


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
    at = catalog(lake / "dev")
    found = at.load_table("shop.orders").scan(row_filter="id >= 1000").to_arrow()
    at.engine.dispose()
    assert sorted(zip(found["id"].to_pylist(), found["price"].to_pylist())) == [(id, turn) for id in (1000, 1001) for turn in range(5)]


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
