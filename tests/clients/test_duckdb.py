#!/usr/bin/env python3
"""DuckDB on branches of a mounted lake: Parquet, CSV, JSON, globs over branches, a database file."""
import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from lake import VEGA, Lake, Tests

tests = Tests()
try:
    import duckdb
except ImportError:
    tests.skip("DuckDB", "duckdb cannot be installed")
    tests.done()


def one(query):
    return duckdb.sql(query).fetchall()[0]


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
    with tests.case("everything again after a remount"):
        lake.umount()
        shutil.rmtree(lake.directory / "cache", ignore_errors=True)
        lake.mount()
        assert one(late.format(main)) == (0,)
        assert one(f"select sum(b) from '{main}/pairs.csv'") == (999000,)
        with duckdb.connect(str(main / "shop.duckdb"), read_only=True) as db:
            assert db.sql("select count(*), sum(i) from t").fetchall()[0] == (100, 4950)
tests.done()
