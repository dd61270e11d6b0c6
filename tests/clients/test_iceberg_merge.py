#!/usr/bin/env python3
"""Two branches write one Iceberg table: always a conflict of the whole table, and one side can be taken."""
import os
import sys
import warnings

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from lake import Lake, Tests, refused


class OtherHost(Lake):
    """A lake directory of its own on the first one's store."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def __enter__(self):
        self.mountpoint.mkdir()
        self.ctl("clone", f"file://{self.first.directory}/store", self.directory)
        self.mount()
        return self


warnings.filterwarnings("ignore")
tests = Tests()
try:
    import pyarrow
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.table import StaticTable
except ImportError as error:
    tests.skip("pyiceberg", str(error))
    tests.done()

TABLE = "warehouse/shop/orders"


def rows(first, count):
    return pyarrow.table({"id": list(range(first, first + count))})


def look_at(lake, root):
    """Iceberg stores whole paths, so tables are written and read through one link, turned to a branch."""
    link = lake.scratch / "work"
    link.unlink(missing_ok=True)
    link.symlink_to(root)
    return link


class Catalog:
    """A catalog of its own for each branch, outside the lake: only metadata and data lie inside."""

    def __init__(self, lake, branch):
        root = look_at(lake, lake / branch)
        self.at = SqlCatalog("lake", uri=f"sqlite:///{lake.scratch}/{branch}.db", warehouse=f"file://{root}/warehouse")

    def __enter__(self):
        return self.at

    def __exit__(self, *_):
        self.at.engine.dispose()


def newest(directory):
    """The newest state of a table, found by its files alone."""
    names = sorted(name for name in os.listdir(directory / "metadata") if name.endswith(".metadata.json"))
    return directory / "metadata" / names[-1]


def ids(lake, root):
    state = newest(look_at(lake, root) / TABLE)
    return sorted(StaticTable.from_metadata(f"file://{state}").scan().to_arrow()["id"].to_pylist())


with Lake() as lake:
    main = lake / "main"
    (main / "warehouse").mkdir()
    with Catalog(lake, "main") as catalog:
        catalog.create_namespace("shop")
        table = catalog.create_table("shop.orders", schema=rows(0, 1).schema)
        table.append(rows(0, 10))
        begun = table.metadata_location
    lake.ctl("commit", "main", "-m", "begun")
    lake.ctl("branch", "create", "dev", "main")
    base = set(os.listdir(main / TABLE / "metadata"))

    with tests.case("one side's appends merge"):
        with Catalog(lake, "main") as catalog:
            catalog.load_table("shop.orders").append(rows(10, 5))
        lake.ctl("commit", "main", "-m", "more")
        lake.ctl("branch", "create", "side", "dev")
        lake.ctl("merge", "main", "side")
        assert newest(lake / "side" / TABLE).name == newest(main / TABLE).name
        assert ids(lake, lake / "side") == [*range(15)]
    with OtherHost(lake) as other, \
            tests.case("two hosts append on one branch: the later commit is refused, and nothing is lost"):
        lake.ctl("branch", "create", "shared", "dev")
        other.ctl("refresh", "shared")
        for host, first in (other, 400), (lake, 500):
            root = look_at(lake, host / "shared")
            catalog = SqlCatalog("lake", uri=f"sqlite:///{lake.scratch}/host{first}.db", warehouse=f"file://{root}/warehouse")
            catalog.create_namespace("shop")
            catalog.register_table("shop.orders", begun).append(rows(first, 2))
            catalog.engine.dispose()
        lake.ctl("commit", "shared", "-m", "first")
        refusal = refused(other, "commit", "shared", "-m", "second")
        assert refusal.code == 3 and TABLE in refusal.reply["error"]["message"], refusal
        other.ctl("refresh", "shared")
        assert ids(lake, other / "shared") == [*range(10), 400, 401]
        other.ctl("restore", "shared", "--", TABLE)
        other.ctl("refresh", "shared")
        assert ids(lake, other / "shared") == ids(lake, lake / "shared") == [*range(10), 500, 501]
    with tests.case("both append: one conflict, though no name collides"):
        with Catalog(lake, "dev") as catalog:
            catalog.create_namespace("shop")
            table = catalog.register_table("shop.orders", begun)
            table.append(rows(100, 5))
        lake.ctl("commit", "dev", "-m", "append")
        new = set(os.listdir(main / TABLE / "metadata")) - base
        assert not new & (set(os.listdir(lake / "dev" / TABLE / "metadata")) - base)
        refusal = refused(lake, "merge", "dev", "main")
        assert refusal.code == 3, refusal
        found = refusal.reply["conflicts"]
        assert len(found) == 1, found
        assert found[0]["table"] == found[0]["path"] == TABLE
        assert found[0]["format"] == "iceberg" and found[0]["version"] == 2, found
        assert f"both sides wrote version 2 of table {TABLE}" in found[0]["sentence"]
        assert len(found[0]["paths"]) == 2, found
    with tests.case("each side can be read where the conflict says"):
        for side, wanted in ("base", [*range(10)]), ("source", [*range(10), *range(100, 105)]), ("target", [*range(15)]):
            assert found[0][side]["at"].endswith("/" + TABLE)
            assert ids(lake, found[0][side]["at"][:-len(TABLE) - 1]) == wanted
    with tests.case("--take target: whole, and pyiceberg reads on"):
        lake.ctl("merge", "dev", "main", "--take", f"target:{TABLE}")
        assert set(os.listdir(main / TABLE / "metadata")) == base | new
        with Catalog(lake, "main") as catalog:
            table = catalog.load_table("shop.orders")
            assert len(table.scan().to_arrow()) == 15
            table.append(rows(15, 1))
            assert len(table.scan().to_arrow()) == 16
        lake.ctl("commit", "main", "-m", "on")
    with tests.case("--take source by a pattern: the other branch's table, whole"):
        with Catalog(lake, "dev") as catalog:
            catalog.load_table("shop.orders").append(rows(200, 1))
        lake.ctl("commit", "dev", "-m", "again")
        assert refused(lake, "merge", "dev", "main").code == 3
        lake.ctl("merge", "dev", "main", "--take", "source:**/orders")
        assert sorted(os.listdir(main / TABLE / "metadata")) == sorted(os.listdir(lake / "dev" / TABLE / "metadata"))
        assert ids(lake, main) == [*range(10), *range(100, 105), 200]
        with Catalog(lake, "main") as catalog:
            catalog.drop_table("shop.orders")
            table = catalog.register_table("shop.orders", f"file://{newest(lake.scratch / 'work' / TABLE)}")
            table.append(rows(300, 1))
        assert ids(lake, main)[-1] == 300
tests.done()
