#!/usr/bin/env python3
"""pyiceberg with an SQL catalog (SQLite) inside the lake: create, append, snapshots, a branch."""
import os
import sys
import warnings

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from lake import Lake, Tests

warnings.filterwarnings("ignore")
tests = Tests()
try:
    import pyarrow
    from pyiceberg.catalog.sql import SqlCatalog
except ImportError as error:
    tests.skip("pyiceberg", str(error))
    tests.done()


def catalog(root):
    return SqlCatalog("lake", uri=f"sqlite:///{root}/catalog.db", warehouse=f"file://{root}/warehouse")


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
