#!/usr/bin/env python3
"""The audits of packaging/audits, on directories that look like what lakectl shows them, with real flights."""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from lake import ROOT, VEGA, Tests  # noqa: E402

tests = Tests()
try:
    import duckdb
except ImportError:
    tests.skip("audits", "duckdb cannot be installed")
    tests.done()

AUDITS = ROOT / "packaging" / "audits"
FLIGHTS = VEGA / "flights-3m.parquet"
LIMIT_S = 6  # 0.2 to 0.8 s on an idle machine of two cores
scratch = pathlib.Path(tempfile.mkdtemp(prefix="lake-test.", dir="/var/tmp")) / "a=b"  # no partition


class World:
    """A target and a candidate that starts as its copy; what is written through `put` has changed."""

    def __init__(self, name, source=None):
        self.root = scratch / name
        self.target, self.candidate = self.root / "target", self.root / "candidate"
        self.target.mkdir(parents=True)
        if source:
            shutil.copytree(source, self.target, dirs_exist_ok=True)
        self.changed, self.removed, self.environment = [], [], {}
        self.branch()

    def branch(self):
        shutil.rmtree(self.candidate, ignore_errors=True)
        shutil.copytree(self.target, self.candidate)
        self.changed, self.removed = [], []

    def put(self, path, query, tree=None):
        file = (tree or self.candidate) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        relation = duckdb.sql(query)
        made = self.root / f"made{file.suffix}"
        if file.suffix == ".parquet":
            relation.write_parquet(str(made))
        else:
            duckdb.sql(f"copy ({query}) to '{made}'")
        os.replace(made, file)
        if tree is None:
            self.changed.append(path)

    def before(self, path, query):
        self.put(path, query, self.target)
        self.put(path, query, self.candidate)

    def write(self, path, data):
        (self.candidate / path).parent.mkdir(parents=True, exist_ok=True)
        (self.candidate / path).write_bytes(data)
        self.changed.append(path)

    def remove(self, path):
        (self.candidate / path).unlink()
        self.removed.append(path)

    def run(self, audit, *arguments, **environment):
        """Exit code and what was said."""
        for name, paths in ("changed", self.changed), ("removed", self.removed):
            (self.root / name).write_bytes(b"".join(os.fsencode(path) + b"\0" for path in paths))
        given = {"PATH": os.environ["PATH"], "HOME": str(self.root), "LANG": "C.UTF-8",
                 "LAKE_CANDIDATE": str(self.candidate), "LAKE_TARGET_PATH": str(self.target),
                 "LAKE_CHANGED": str(self.root / "changed"), "LAKE_REMOVED": str(self.root / "removed")} | environment
        began = time.monotonic()
        done = subprocess.run([AUDITS / audit, *arguments], capture_output=True, text=True, check=False, cwd=self.candidate,
                              env={name: value for name, value in given.items() if value})
        self.took_s = time.monotonic() - began
        return done.returncode, done.stdout + done.stderr

    def passes(self, *arguments, says="", **environment):
        self.ends(0, says, arguments, environment)

    def fails(self, *arguments, says="", **environment):
        self.ends(1, says, arguments, environment)

    def refuses(self, *arguments, says="", **environment):
        self.ends(2, says, arguments, environment)

    def ends(self, code, says, arguments, environment):
        got, text = self.run(*arguments, **environment)
        assert got == code, f"{arguments}: exit {got}, wanted {code}: {text}"
        for part in [says] if isinstance(says, str) else says:
            assert part in text, f"{arguments}: no {part!r} in: {text}"
        assert "Traceback" not in text and "/proc/self" not in text, text


def flights(where):
    source = f"'{FLIGHTS}'" if FLIGHTS.exists() else """(select timestamp '2001-01-01' + to_minutes(range % 260000) as date,
        range % 100 as delay, 100 + range % 900 as distance, 'SEA' as origin, 'SFO' as destination from range(3000000))"""
    where.mkdir(parents=True)
    duckdb.sql(f"copy (select row_number() over () as id, *, month(date) as month from {source}) to '{where}/flights' "
               "(format parquet, partition_by (month))")
    duckdb.sql(f"copy (select distinct origin as iata from {source} union select distinct destination from {source}) "
               f"to '{where}/airports.csv' (header)")
    return where


def real_flights(world):
    june = "flights/month=6/data_0.parquet"
    rows = f"select * from read_parquet('{world.target}/{june}', hive_partitioning=false)"
    count = duckdb.sql(f"select count(*) from '{world.target}/{june}'").fetchall()[0][0]
    world.put(june, rows)
    good = (("not-null", "delay", "date"), ("not-null", "--all", "delay"), ("schema",), ("unique", "id"),
            ("row-count", "--min", "2999999", "--max", "3000000", "--change", "0"), ("fresh", "date", "--max-age", "9000w"),
            ("foreign-key", "origin", "airports.csv:iata"))
    for arguments in good:
        with tests.case(f"3,000,000 flights pass {' '.join(arguments)}, within {LIMIT_S} s"):
            took = []
            for _ in range(3):  # the best of three: others use this machine, too
                world.passes(*arguments, says="flights: ")
                took.append(world.took_s)
                if world.took_s < LIMIT_S:
                    break
            print(f"# {min(took):.2f} s")
            assert min(took) < LIMIT_S, took
    with tests.case("12 NULLs: which file, which column, how many of how many rows, and some of them"):
        world.put(june, f"select * replace (case when id in (select id from ({rows}) order by id limit 12) then null else delay end "
                  f"as delay) from ({rows})")
        world.fails("not-null", "date", "delay", says=(f"{june}: column delay is NULL: 12 of {count} rows", "for example: id=",
                                                       "delay=NULL", f"column date: none of {count} rows"))
    with tests.case("a key twice: how many rows, and which"):
        world.put(june, f"select * replace (case id when (select max(id) from ({rows})) then (select min(id) from ({rows})) else id end "
                  f"as id) from ({rows})")
        world.fails("unique", "id", says=("flights: column id: 2 of 3000000 rows share their key with another row (1 keys)", "for example: id="))
    with tests.case("a key in another file"):
        world.put(june, rows)
        world.put("flights/month=6/more.parquet", f"{rows.replace('month=6', 'month=1')} limit 7")
        world.fails("unique", "id", says="14 of 3000007 rows share their key with another row (7 keys)")
    with tests.case("more rows than before, or than the limits"):
        world.fails("row-count", "--change", "0", says="flights: 3000000 rows became 3000007: +0.00 %, over 0 %")
        world.passes("row-count", "--change", "1", says="3000007 rows")
        world.fails("row-count", "--max", "3000000", says="3000007 rows are more than 3000000")
        world.fails("row-count", "--min", "4000000", says="3000007 rows are fewer than 4000000")
    with tests.case("a value that refers to nothing"):
        world.put("flights/month=6/more.parquet", f"select * replace ('XXX' as origin) from ({rows}) limit 7")
        world.fails("foreign-key", "origin", "airports.csv:iata",
                    says=("flights/month=6/more.parquet: column origin is not in airports.csv:iata: 7 of 7 rows", "origin=XXX"))
    with tests.case("old data are not fresh"):
        world.fails("fresh", "date", "--max-age", "36h", says=("flights: column date: the newest of all rows, 2001-", "over 36h"))
    with tests.case("a narrower, a renamed and a new column: each by name, what it was and what it became"):
        world.put("flights/month=6/more.parquet", f"select * exclude (delay) replace (distance::smallint as distance), delay as late, 1 as new from ({rows})")
        world.fails("schema", says=("flights/month=6/more.parquet: column delay (BIGINT) is gone",
                                    "flights/month=6/more.parquet: column distance: BIGINT became SMALLINT"))
        world.put("flights/month=6/more.parquet", f"select *, 1 as new from ({rows})")
        world.passes("schema", says="7 columns as before, 1 more")
    with tests.case("a file that is cut off, empty or no Parquet fails, by name"):
        data = (world.target / june).read_bytes()
        for broken in data[:-1000], data[:len(data) // 2], b"", b"PAR1", b"no Parquet" * 100, data[:4] + bytes(len(data) // 2) + data[len(data) // 2 + 4:]:
            world.write("flights/month=6/more.parquet", broken)
            world.fails("not-null", "delay", says="flights/month=6/more.parquet: cannot be read: ")
        world.write("flights/month=6/more.parquet", data[:-1000])
        for arguments in ("schema",), ("unique", "id"), ("row-count", "--min", "1"), ("foreign-key", "origin", "airports.csv:iata", "--table", "flights"):
            world.fails(*arguments, says="flights/month=6/more.parquet: cannot be read: ")


def kinds_of_types(world):
    wider = (("int", "bigint"), ("smallint", "double"), ("utinyint", "smallint"), ("float", "double"), ("date", "timestamp"),
             ("decimal(5,2)", "decimal(9,4)"), ("int[]", "bigint[]"), ("struct(a int)", "struct(a bigint, b int)"))
    not_wider = (("bigint", "int"), ("bigint", "double"), ("double", "float"), ("int", "uinteger"), ("int", "float"), ("timestamp", "date"),
                 ("decimal(5,2)", "decimal(5,3)"), ("int", "varchar"), ("bigint[]", "int[]"), ("struct(a int, b int)", "struct(a int)"),
                 ("date", "timestamptz"), ("double", "bigint"))
    with tests.case("wider types pass, in the changed file and in all"):
        for old, new in wider:
            world.before("types/a.parquet", f"select null::{old} as c")
            world.before("types/b.parquet", f"select null::{old} as c")
            world.put("types/b.parquet", f"select null::{new} as c")
            world.passes("schema", "--table", "types", says="1 columns as before")
            world.put("types/a.parquet", f"select null::{new} as c")
            world.passes("schema", "--table", "types")
    with tests.case("others fail, also where another file still has the wide one"):
        for old, new in not_wider:
            world.before("types/a.parquet", f"select null::{old} as c")
            world.put("types/b.parquet", f"select null::{new} as c")
            world.fails("schema", "--table", "types", says=("types/b.parquet: column c: ", " became "))
    with tests.case("a column gone with the last file that had it"):
        world.branch()
        world.before("gone/a.parquet", "select 1 as a")
        world.before("gone/b.parquet", "select 1 as a, 2 as b")
        world.branch()
        world.remove("gone/b.parquet")
        world.fails("schema", says="gone: column b (INTEGER) is gone")
        world.fails("not-null", "b", says="gone: column b is gone; the target has it")


def odd_names(world):
    column = """a "b'; drop table candidate; -- [*]"""
    sql = '"' + column.replace('"', '""') + '"'
    with tests.case("columns and files whose names are SQL, globs, or control characters"):
        for name in ("it's; drop.parquet", "[a]*?.parquet", "a{b,c}.parquet", "back\\slash.parquet", "with \"quotes\" and spaces.parquet",
                     "line\nbreak.parquet", "%s {} $1.parquet"):
            world.branch()
            world.put(f"odd [1]*/{name}", f"select 1 as {sql}, 2 as \"select\" union all select null, 3")
            shown = name.replace("\n", "\\n")
            world.fails("not-null", column, "select", says=(f"odd [1]*/{shown}: column {column} is NULL: 1 of 2 rows", "column select: none of 2"))
            world.passes("unique", column, "select", says="2 rows, no key twice")
            world.passes("foreign-key", column, f"odd [1]*:{column}")
            world.passes("schema")
            world.passes("row-count", "--max", "2")
    with tests.case("a glob in a name reads that file alone"):
        world.branch()
        world.put("glob/ax.parquet", "select null::int as c from range(5)")
        world.put("glob/[a]*.parquet", "select 1 as c")
        world.changed = ["glob/[a]*.parquet"]
        world.passes("not-null", "c", says="none of 1 rows")
    with tests.case("what a terminal would obey is not printed"):
        world.put("odd [1]*/x.parquet", "select null::int as c, chr(27) || '[2J' as d")
        code, text = world.run("not-null", "c", "--table", "odd [1]*")
        assert code == 1 and "\x1b" not in text and "d=\\x1b[2J" in text, text
    with tests.case("a name that is not UTF-8 cannot be checked"):
        world.branch()
        world.write("bytes/" + os.fsdecode(b"\xff.parquet"), b"x")
        world.refuses("not-null", "c", says="not UTF-8")


def other_formats(world):
    with tests.case("CSV and JSON: rows without a value, kinds of files side by side"):
        world.before("text/a.csv", "select range as id, 'x' as name from range(10)")
        world.branch()
        world.write("text/b.csv", b"id,name\n10,y\n,z\n12,\n")
        world.fails("not-null", "id", "name", says=("text/b.csv: column id is NULL: 1 of 3 rows", "text/b.csv: column name is NULL: 1 of 3 rows"))
        world.passes("schema")
        world.passes("row-count", "--min", "13", "--max", "13")
        world.write("text/b.csv", b"id,other\n10,y\n")
        world.fails("schema", says="text/b.csv: column name (VARCHAR) is gone")
        world.write("text/b.csv", b"id,name\nten,y\n")
        world.fails("schema", says="text/b.csv: column id: BIGINT became VARCHAR")
        world.write("text/b.csv", b"id,name\n,\n")
        world.passes("schema")
        world.write("text/b.csv", b"")
        world.passes("row-count", "--max", "10")
        world.passes("schema")
        world.write("text/c.json", b'{"id": 1}\n')
        world.refuses("row-count", "--min", "1", says="text holds csv and json; say which with --format")
        world.passes("row-count", "--max", "1", "--format", "json", says="1 rows")
        world.write("lines/a.jsonl", b'{"id": 1, "n": {"deep": 1}}\n{"id": null}\n')
        world.fails("not-null", "id", "--table", "lines", says="lines/a.jsonl: column id is NULL: 1 of 2 rows")
        world.write("lines/a.jsonl", b'{"id": 1}\n{"id": ')
        world.fails("not-null", "id", "--table", "lines", says="lines/a.jsonl: cannot be read")
    with tests.case("a file at the root is a table"):
        world.branch()
        world.put("pairs.parquet", "select range as a from range(3)")
        world.passes("unique", "a", says="pairs.parquet: column a: 3 rows")
    with tests.case("files that lack a column, and files without rows"):
        world.before("grown/a.parquet", "select 1 as a")
        world.branch()
        world.put("grown/b.parquet", "select 2 as a, 3 as b")
        world.put("grown/c.parquet", "select 4 as a, 5 as b where false")
        world.passes("not-null", "b", says="column b: none of 1 rows")
        world.fails("not-null", "--all", "b", says="grown/a.parquet: column b is NULL: 1 of 1 rows")
        world.branch()
        world.put("grown/a.parquet", "select 1 as a from range(4)")
        world.put("grown/b.parquet", "select 2 as a, 3 as b")
        world.changed.remove("grown/b.parquet")
        world.fails("not-null", "b", says="grown/a.parquet: column b is NULL: 4 of 4 rows")
        world.put("none/a.parquet", "select 1 as a, now() as t where false")
        for audit in ("not-null", "a"), ("unique", "a"), ("foreign-key", "a", "none:a"), ("schema",), ("row-count", "--max", "0"):
            world.passes(*audit, "--table", "none")
        world.fails("fresh", "t", "--max-age", "1d", "--table", "none", says="no row has a value")
        world.fails("row-count", "--min", "1", "--table", "none", says="0 rows are fewer than 1")
    with tests.case("fresh by dates, zones and partitions; the future is not fresh"):
        world.branch()
        for value, fresh in (("now()", True), ("now()::timestamp", True), ("current_date", True), ("now() - interval 3 day", False),
                             ("now() + interval 3 day", False), ("'infinity'::timestamp", False)):
            world.put("times/a.parquet", f"select {value} as t")
            (world.passes if fresh else world.fails)("fresh", "t", "--max-age", "2d", "--table", "times", says="column t: ")
        today = duckdb.sql("select current_date::varchar").fetchall()[0][0]
        world.put(f"days/day={today}/a.parquet", "select 1 as a")
        world.passes("fresh", "day", "--max-age", "2d", "--table", "days", says=f"the newest is {today}")


def whole_tables(world):
    with tests.case("a table that is removed: its rows break no rule, its absence does"):
        world.before("old/a.parquet", "select 1 as a, now() as t")
        world.branch()
        world.remove("old/a.parquet")
        for audit in ("not-null", "a"), ("unique", "a"), ("foreign-key", "a", "old:a"):
            world.passes(*audit, says="old: removed: no rows are left")
        for audit in ("schema",), ("row-count", "--max", "5"), ("fresh", "t", "--max-age", "1d"):
            world.fails(*audit, says="old: the table is removed")
        world.put("new/a.parquet", "select 1 as a")
        world.fails("foreign-key", "a", "old:a", "--table", "new", says="old: the table is removed; new refers to it")
    with tests.case("a new table"):
        world.passes("schema", "--table", "new", says="new, with 1 columns")
        world.passes("row-count", "--change", "1", "--table", "new")
    with tests.case("each table that changed is checked"):
        world.put("newer/a.parquet", "select null::int as a")
        world.removed = []
        world.fails("not-null", "a", says=("new: column a: none of 1", "newer/a.parquet: column a is NULL: 1 of 1"))


def what_cannot_be_checked(world):
    world.put("t/a.parquet", "select 1 as a, 'x' as s")
    for what, arguments, environment, says in (
            ("a column that never was", ("not-null", "b"), {}, "t has no column b; it has: a, s"),
            ("a column that never was, for others", ("unique", "b"), {}, "no column b"),
            ("a referenced column that never was", ("foreign-key", "a", "t:b"), {}, "no column b"),
            ("a referenced table that never was", ("foreign-key", "a", "u:b"), {}, "no Parquet, CSV or JSON files of a table u"),
            ("columns of kinds that do not compare", ("foreign-key", "a", "t:s"), {}, "cannot check: "),
            ("no columns", ("not-null",), {}, "usage"),
            ("no limits", ("row-count",), {}, "--min, --max or --change"),
            ("a limit that is no number", ("row-count", "--min", "few"), {}, "invalid int"),
            ("an age without unit", ("fresh", "a", "--max-age", "5"), {}, "s, m, h, d, w"),
            ("a column that is no time", ("fresh", "a", "--max-age", "5d"), {}, "has to be a date or a timestamp"),
            ("a table that is not there", ("not-null", "a", "--table", "u"), {}, "neither in the candidate nor in the target"),
            ("a table outside", ("not-null", "a", "--table", "../target"), {}, "relative to the lake's root"),
            ("no candidate", ("not-null", "a"), {"LAKE_CANDIDATE": ""}, "LAKE_CANDIDATE"),
            ("no target", ("schema",), {"LAKE_TARGET_PATH": ""}, "LAKE_TARGET_PATH"),
            ("nothing that says which table", ("unique", "a"), {"LAKE_CHANGED": ""}, "which table"),
            ("a list of changes that is not there", ("unique", "a"), {"LAKE_CHANGED": "/nonexistent"}, None)):
        with tests.case(f"never passes: {what}"):
            if says is None:
                code, text = world.run(*arguments, **environment)
                assert code == 2 and "/nonexistent" in text, text
            else:
                world.refuses(*arguments, says=says, **environment)
    with tests.case("never passes: a Delta table, whose files are not its rows"):
        world.write("t/_delta_log/00000000000000000000.json", b"{}")
        world.refuses("not-null", "a", says="Delta or Iceberg")
    with tests.case("never passes: no DuckDB"):
        lonely = scratch / "lonely"
        lonely.mkdir()
        for file in "not-null", "lake_audit.py":
            shutil.copy(AUDITS / file, lonely)
        done = subprocess.run(["python3", "-S", lonely / "not-null", "a"], capture_output=True, text=True, check=False,
                              env={"PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHONPATH": ""})
        assert done.returncode == 2 and "has no DuckDB" in done.stdout, done
    with tests.case("by hand, without a list of changes: the whole table"):
        shutil.rmtree(world.candidate / "t/_delta_log")
        world.passes("not-null", "a", "--table", "t", says="none of 1 rows", LAKE_CHANGED="", LAKE_TARGET_PATH="")
    with tests.case("a module of DuckDB's name in the candidate is not run"):
        world.write("duckdb.py", b"raise SystemExit(0)")
        world.refuses("not-null", "nothing", "--table", "t", says="no column nothing")


try:
    real_flights(World("flights", flights(scratch / "source")))
    kinds_of_types(World("types"))
    odd_names(World("odd"))
    other_formats(World("formats"))
    whole_tables(World("whole"))
    what_cannot_be_checked(World("misuse"))
finally:
    shutil.rmtree(scratch.parent)
tests.done()
