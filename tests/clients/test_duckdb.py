#!/usr/bin/env python3
"""DuckDB on branches of a mounted lake: Parquet, CSV, JSON, globs over branches, a database file."""
import os
import random
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from clients import both_ways, published
from lake import VEGA, Clone, Lake, Tests

tests = Tests()
try:
    import duckdb
except ImportError:
    tests.skip("DuckDB", "duckdb cannot be installed")
    tests.done()


WRITER = """
import duckdb, sys
db = duckdb.connect(sys.argv[1])
db.sql(f"set checkpoint_threshold = '{sys.argv[2]}'")
for n in range(100000):
    db.begin()
    db.execute("insert into t select ?, repeat('x', 1000) from range(10)", [n])
    db.execute("update total set n = n + 10")
    db.commit()
    print(n, flush=True)
"""


def one(query):
    return duckdb.sql(query).fetchall()[0]


def open_at(path, **options):
    return duckdb.connect(str(path), **options)


def partitioned_copies(lake):
    table = lake / "dev" / "orders"

    def copy(rows, parts, option=""):
        duckdb.sql(f"copy (select range id, range % {parts} as part from range({rows})) to '{table}' (format parquet, partition_by (part){option})")
        return one(f"select count(*) from '{table}/**/*.parquet'")[0]

    assert copy(30, 3) == 30
    try:
        copy(30, 3)
        raise AssertionError("what is there was overwritten unasked")
    except duckdb.IOException:
        pass
    assert copy(10, 2, ", overwrite_or_ignore") == 20
    assert copy(10, 2, ", append") == 30
    published(lake, "dev", lambda place: duckdb.sql(f"select part, id from '{place}/orders/**/*.parquet' order by all").fetchall())
    assert copy(6, 2, ", overwrite") == 6
    assert not os.listdir(table / "part=2")
    published(lake, "dev", lambda place: duckdb.sql(f"select part, id from '{place}/orders/*/*.parquet' order by all").fetchall())


def globs_over_branches(lake):
    """Names of branches only: neither revisions that were looked at nor control files make rows appear twice."""
    lake.ctl("branch", "create", "third", "main")
    os.listdir(lake / "@main")
    os.listdir(lake / ".lake")
    for pattern in ("*/orders/**/*.parquet", "**/orders/part=*/*", "**/*.parquet"):
        found = duckdb.sql(f"select split_part(substr(filename, {len(str(lake.mountpoint)) + 2}), '/', 1) branch, count(*)"
                           f" from read_parquet('{lake.mountpoint}/{pattern}', filename = true) group by 1 order by 1").fetchall()
        assert found == [("dev", 6), ("main", 6), ("third", 6)], (pattern, found)
    lake.ctl("branch", "delete", "third")


def columns_cold(lake):
    """Another host reads two of ten columns of a large file: most of them is foreseen, and most of the rest stays away."""
    table = lake / "dev" / "wide.parquet"
    columns = ", ".join(f"(random() * 1e15)::bigint c{i}" for i in range(10))
    duckdb.sql(f"copy (select {columns} from range(600000)) to '{table}' (format parquet, row_group_size 30720)")
    query = "select sum(c3), max(c7) from '{}/wide.parquet'"
    revision = published(lake, "dev", lambda place: one(query.format(place)))
    wanted, size = one(query.format(revision)), os.path.getsize(table)
    with Clone(lake, *lake.options) as other:
        assert one(query.format(other / "main")) == wanted
        stats = other.ctl("stats")
        fetched, foreseen = stats["cache_fetched_bytes_total"], stats["cache_ahead_used_bytes_total"]
    assert fetched < size / 2, (fetched, size)
    assert foreseen > size / 5 / 2, (foreseen, size)


def copy_from(lake):
    with open_at(lake / "dev" / "copied.duckdb") as db:
        db.sql("create table orders (id bigint)")
        db.sql(f"copy orders from '{lake / '@main'}/orders/**/*.parquet' (format parquet)")
        assert db.sql("select count(*), sum(id) from orders").fetchall() == [(6, 15)]


def database_of_a_killed_process(lake):
    """The second one writes checkpoints all the time, the first one never."""
    path = lake / "dev" / "shop.duckdb"
    for checkpoint_threshold in ("1GB", "16KB"):
        with open_at(path) as db:
            db.sql("create or replace table t (i integer, s varchar)")
            db.sql("create or replace table total as select 0 n")
            db.sql("checkpoint")
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path), checkpoint_threshold], stdout=subprocess.PIPE, text=True) as writer:
            for _ in range(5):
                writer.stdout.readline()
            try:
                open_at(path, read_only=True)
                raise AssertionError("read while another process writes")
            except duckdb.IOException as problem:
                assert "lock" in str(problem), problem
            time.sleep(random.random() * 0.05)
            writer.kill()
            said = 5 + len(writer.stdout.read().split())
        assert checkpoint_threshold == "16KB" or os.path.exists(f"{path}.wal")
        # Its log is committed beside the database, and counts there, too.
        published(lake, "dev", lambda place: look(place, "select count(*), count(distinct i), max(i), sum(length(s)) from t"))
        with open_at(path) as db:
            rows, total = db.sql("select (select count(*) from t), (select n from total)").fetchall()[0]
            assert rows == total and said * 10 <= rows <= said * 10 + 10, (rows, total, said)
            db.sql("update t set s = 'y' where i % 2 = 1")
            db.sql("delete from t where i % 2 = 0")
        assert look(lake / "dev", "select count(*), min(s) from t") == [(rows // 20 * 10, "y")]
        assert not os.path.exists(f"{path}.wal")


def look(place, query):
    with open_at(place / "shop.duckdb", read_only=True) as db:
        return db.sql(query).fetchall()


def versions_joined(lake):
    path = lake / "dev" / "shop.duckdb"
    with open_at(path) as db:
        db.sql("create or replace table t as select range i, repeat('v', 2000) s from range(1000)")
    revision = published(lake, "dev", lambda place: look(place, "select count(*), sum(i) from t"))
    with open_at(path) as db:
        db.sql("update t set s = 'new' where i < 10")
        db.sql(f"attach '{revision}/shop.duckdb' as old (read_only)")
        db.sql(f"attach '{lake / 'main'}/shop.duckdb' as published (read_only)")
        joined = "select count(*), sum(length(o.s)), sum(length(p.s)) from t n join old.t o using (i) join published.t p using (i) where n.s <> o.s"
        assert db.sql(joined).fetchall() == [(10, 20000, 20000)]
        try:
            db.sql("delete from old.t")
            raise AssertionError("a revision was written")
        except duckdb.InvalidInputException:
            pass
        db.sql("checkpoint")
        assert db.sql(joined).fetchall() == [(10, 20000, 20000)]
    try:
        open_at(revision / "shop.duckdb")
        raise AssertionError("a revision was opened for writing")
    except duckdb.IOException as problem:
        assert "Read-only file system" in str(problem), problem
    published(lake, "dev", lambda place: look(place, "select count(*), sum(length(s)) from t"))


for lake, way in both_ways(tests):
    with tests.case(way("a database whose writer is killed, twice")):
        database_of_a_killed_process(lake)
    with tests.case(way("two versions of a database joined with a third")):
        versions_joined(lake)

with Lake() as lake:
    lake.ctl("branch", "create", "dev", "main")
    with tests.case("COPY to partitions: overwrite_or_ignore, append, overwrite"):
        partitioned_copies(lake)
    with tests.case("globs find each branch once"):
        globs_over_branches(lake)
    with tests.case("COPY from a revision"):
        copy_from(lake)

with Lake() as lake:
    main, dev = lake / "main", lake / "dev"
    flights = VEGA / "flights-3m.parquet"
    with tests.case("COPY to hive partitions"):
        source = f"'{flights}'" if flights.exists() else "(select range r, timestamp '2001-01-01' + to_minutes(range % 260000) date, range % 100 delay from range(3000000))"
        duckdb.sql(f"copy (select *, month(date) as month from {source}) to '{main}/flights' (format parquet, partition_by (month))")
        assert one(f"select count(*) from '{main}/flights/**/*.parquet'") == (3000000,)
    with tests.case("CSV and JSON tables"):
        for name in ("airports.csv", "weather.csv", "movies.json", "cars.json"):
            if (VEGA / name).exists():
                shutil.copy(VEGA / name, main / name)
        duckdb.sql(f"copy (select range a, range * 2 b from range(1000)) to '{main}/pairs.csv' (header)")
        assert one(f"select sum(b) from '{main}/pairs.csv'") == (999000,)
        duckdb.sql(f"copy (select range a from range(10)) to '{main}/ten.json'")
        assert one(f"select count(*) from '{main}/ten.json'") == (10,)
    with tests.case("commit and branch"):
        assert lake.ctl("commit", "main", "-m", "tables")["files"] > 5
        lake.ctl("branch", "create", "dev", "main")
        assert one(f"select count(*) from '{dev}/flights/**/*.parquet'") == (3000000,)
    with tests.case("rewriting a table on dev leaves main alone"):
        duckdb.sql(f"copy (select * from '{dev}/flights/month=1/*.parquet' where delay <= 0) to '{lake.scratch}/new.parquet' (format parquet)")
        for old in (dev / "flights/month=1").iterdir():
            old.unlink()
        shutil.copy(lake.scratch / "new.parquet", dev / "flights/month=1/data.parquet")
        late = "select count(*) from '{}/flights/month=1/*.parquet' where delay > 0"
        assert one(late.format(dev)) == (0,)
        assert one(late.format(main))[0] > 0
        lake.ctl("commit", "dev", "-m", "on time")
    with tests.case("globs over branches"):
        rows = dict(duckdb.sql(f"select split_part(filename, '/', -4) branch, count(*) from read_parquet('{lake.mountpoint}/*/flights/**/*.parquet', filename=true) group by 1").fetchall())
        assert set(rows) == {"main", "dev"} and rows["dev"] < rows["main"], rows
    with tests.case("merge, then time travel"):
        lake.ctl("merge", "dev", "main")
        assert one(late.format(main)) == (0,)
        assert one(late.format(lake / "@main~1"))[0] > 0
    with tests.case("a database file written, checkpointed, attached from another branch"):
        with duckdb.connect(str(main / "shop.duckdb")) as db:
            db.sql("create table t as select range i, repeat('x', 100) s from range(200000)")
            db.sql("checkpoint")
        lake.ctl("commit", "main", "-m", "database")
        lake.ctl("branch", "create", "readers", "main")
        with duckdb.connect(str(main / "shop.duckdb")) as db:
            db.sql("delete from t where i >= 100")
            db.sql("checkpoint")
            db.sql(f"attach '{lake / 'readers'}/shop.duckdb' as old (read_only)")
            assert db.sql("select count(*) from old.t").fetchall()[0] == (200000,)
            assert db.sql("select count(*) from t").fetchall()[0] == (100,)
        lake.ctl("commit", "main", "-m", "smaller")
        with duckdb.connect(str(lake / "@main~1" / "shop.duckdb"), read_only=True) as db:
            assert db.sql("select count(*) from t").fetchall()[0] == (200000,)
    with tests.case("two columns of ten, cold"):
        columns_cold(lake)
    with tests.case("everything again after a remount"):
        lake.umount()
        shutil.rmtree(lake.directory / "cache", ignore_errors=True)
        lake.mount()
        assert one(late.format(main)) == (0,)
        assert one(f"select sum(b) from '{main}/pairs.csv'") == (999000,)
        with duckdb.connect(str(main / "shop.duckdb"), read_only=True) as db:
            assert db.sql("select count(*), sum(i) from t").fetchall()[0] == (100, 4950)
tests.done()
