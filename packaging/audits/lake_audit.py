"""What the audits beside this file share: finding a table's files, giving them to DuckDB, and reporting.

    from lake_audit import Audit, quote
    audit = Audit(__doc__)
    audit.option("column", nargs="+")
    def check(table):
        if table.value(f"select count(*) from candidate where ..."):
            table.fail("...")
    audit.run(check)

`check` is called for each table. SQL sees three views: `candidate` (the table as it would be published), `changed`
(its added and modified files alone) and `target` (as it is today). Each has one column more, audit_file: the row's file.

Exit codes: 0 passed; 1 the data are at fault; 2 it could not be checked. An audit that cannot check never passes.
"""
import argparse
import os
import re
import sys
import traceback

EXAMPLES = 5
FORMATS = {"parquet": r"\.(parquet|parq|pq)$", "csv": r"\.(csv|tsv)(\.gz|\.zst)?$",
           "json": r"\.(json|jsonl|ndjson)(\.gz|\.zst)?$"}
READERS = {"parquet": "read_parquet([{}], hive_partitioning=true, union_by_name=true, filename='audit_file')",
           "csv": "read_csv([{}], hive_partitioning=true, union_by_name=true, filename='audit_file', sample_size=-1)",
           "json": "read_json([{}], hive_partitioning=true, union_by_name=true, filename='audit_file', sample_size=-1)"}


class CannotCheck(Exception):
    """The audit's command is at fault, or what it runs on; not the data."""


def load_duckdb():
    """From this Python, else from build/venv of the source tree."""
    try:
        import duckdb
        return duckdb
    except ImportError:
        python = os.path.join(os.path.dirname(os.path.realpath(__file__)), "../../build/venv/bin/python")
        if os.access(python, os.X_OK) and "LAKE_AUDIT_VENV" not in os.environ:
            os.environ["LAKE_AUDIT_VENV"] = "1"
            os.execv(python, [python, os.path.realpath(sys.argv[0]), *sys.argv[1:]])
        print(f"{os.path.basename(sys.argv[0])}: cannot check: {sys.executable} has no DuckDB; "
              "`pip install duckdb` for all users of this host")
        sys.exit(2)


duckdb = load_duckdb()


def quote(name):
    """A column's name as SQL takes it, whatever it contains."""
    return '"' + str(name).replace('"', '""') + '"'


def literal(text):
    return "'" + text.replace("'", "''") + "'"


def literal_file(path):
    """Characters of globs stand for themselves; in globs a backslash would divide names, so such a path stays as it is:
    DuckDB looks for a file of that very name first."""
    return literal(path if "\\" in path else re.sub(r"([*?[])", r"[\1]", path))


def shown(value):
    """On one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))


def paths_in(variable):
    """The paths in a file of NUL-ended ones; None when the variable is not set."""
    name = os.environ.get(variable)
    if not name:
        return None
    with open(name, "rb") as file:
        return [os.fsdecode(path) for path in file.read().split(b"\0") if path]


def files_below(root, path):
    """Data files of a table, relative to root; what begins with _ or . is not data, as all readers have it."""
    top = os.path.join(root, path)
    if os.path.isfile(top):
        return [path]
    found = []
    for directory, names, files in os.walk(top):
        if "_delta_log" in names or ("metadata" in names and "data" in names):
            raise CannotCheck(f"{shown(path)} is a Delta or Iceberg table: its files are not its rows; "
                              "audit it by a program of your own that reads its log")
        names[:] = sorted(name for name in names if name[0] not in "_.")
        found += [os.path.relpath(os.path.join(directory, name), root) for name in sorted(files) if name[0] not in "_."]
    return found


class Table:
    """One table, in the candidate and in the target."""

    def __init__(self, audit, path):
        self.audit, self.path, self.failed = audit, path, False
        self.files = {"candidate": files_below(audit.candidate, path),
                      "target": files_below(audit.target, path) if audit.target else []}
        self.format = self.find_format(self.files["candidate"] or self.files["target"])
        for view, files in self.files.items():
            self.files[view] = [file for file in files if re.search(FORMATS[self.format], file.lower())]
        here = set(self.files["candidate"])
        self.files["changed"] = sorted(here.intersection(audit.changed)) if audit.changed is not None else sorted(here)
        self.removed = not here
        self.new = not self.files["target"]
        if self.removed and self.new and not any(self.holds(file) for file in audit.removed):
            raise CannotCheck(f"no Parquet, CSV or JSON files of a table {shown(path)}, neither in the candidate nor in the target")

    def holds(self, file):
        return file == self.path or file.startswith(self.path + "/")

    def find_format(self, files):
        if self.audit.format:
            return self.audit.format
        found = {kind for kind, ending in FORMATS.items() if any(re.search(ending, file.lower()) for file in files)}
        if len(found) > 1:
            raise CannotCheck(f"{shown(self.path)} holds {' and '.join(sorted(found))}; say which with --format")
        return found.pop() if found else "parquet"

    # -- SQL --

    def names(self, view, files):
        """Literals for DuckDB."""
        root = self.audit.roots["target" if view == "target" else "candidate"]
        try:
            names = ", ".join(literal_file(root + file) for file in files)
            names.encode()
            return names
        except UnicodeEncodeError:
            raise CannotCheck(f"{shown(self.path)} has a file whose name is not UTF-8; DuckDB cannot open it") from None

    def source(self, view, files):
        """A FROM clause of these files."""
        root = self.audit.roots["target" if view == "target" else "candidate"]
        if self.format != "parquet":  # an empty one has no rows, and no columns either
            files = [file for file in files if os.path.getsize(root + file)]
        if not files:
            return "(select null::varchar as audit_file where false)"
        return READERS[self.format].format(self.names(view, files))

    def schema(self, view, files=None):
        """{column: type}, of the view or of some of its files."""
        self.audit.reading = self, view, files or self.files[view]
        relation = self.audit.connection.sql(f"select * from {self.source(view, files or self.files[view])}")
        return {name: kind for name, kind in zip(relation.columns, relation.types) if name != "audit_file"}

    def query(self, sql):
        """All rows; the views that the query names are made first."""
        for view in re.findall(r"\b(?:candidate|changed|target)\b", sql):
            self.audit.reading = self, view, self.files[view]
            extra = ""
            if view == "changed":  # what these files lack is NULL to readers of the table
                missing = self.schema("candidate").keys() - self.schema("changed").keys()
                extra = "".join(f", null as {quote(name)}" for name in sorted(missing))
            self.audit.connection.execute(f"create or replace temp view {view} as select *{extra} from "
                                          + self.source(view, self.files[view]))
        return self.audit.connection.execute(sql).fetchall()

    def value(self, sql):
        return self.query(sql)[0][0]

    def columns(self, names):
        """Those of the table, or: the change dropped one (failed), or there never was one (cannot check)."""
        here = self.schema("candidate")
        for name in names:
            if name in here:
                yield name
            elif name in self.schema("target"):
                self.fail(f"column {shown(name)} is gone; the target has it")
            else:
                raise CannotCheck(f"{shown(self.path)} has no column {shown(name)}; it has: {shown(', '.join(here))}")

    # -- reporting --

    def passed(self, text):
        print(f"{shown(self.path)}: {shown(text)}")

    def fail(self, text, file=None):
        print(f"{shown(file or self.path)}: {shown(text)}")
        self.failed = self.audit.failed = True

    def fail_by_file(self, view, condition, text):
        """For each file how many of its rows are so, and some of these; whether there was any."""
        found = self.query(f"select audit_file, count(*) filter ({condition}) as bad, count(*) from {view} "
                           f"group by all having bad > 0 order by bad desc, audit_file")
        for file, bad, rows in found[:EXAMPLES]:
            self.fail(f"{text}: {bad} of {rows} rows", self.audit.relative(file))
        if len(found) > EXAMPLES:
            print(f"  and {len(found) - EXAMPLES} more files: {sum(row[1] for row in found)} rows in all")
        if found:
            self.show(f"select * exclude (audit_file) from {view} where {condition}")
        return bool(found)

    def show(self, sql):
        """Some rows of a query, one on a line."""
        rows = self.query(f"{sql} limit {EXAMPLES}")
        names = [column[0] for column in self.audit.connection.description]
        for row in rows:
            cells = (f"{name}={'NULL' if cell is None else cell}" for name, cell in zip(names, row))
            print("  for example: " + shown(", ".join(cells))[:300])


class Audit:
    def __init__(self, text, removed_table_passes=False):
        self.parser = argparse.ArgumentParser(description=text)
        self.parser.add_argument("--table", action="append", metavar="PATH",
                                 help="directory or file of the table; default: the first component of each changed path")
        self.parser.add_argument("--format", choices=FORMATS, help="only these files, when a table holds others, too")
        self.option, self.removed_table_passes = self.parser.add_argument, removed_table_passes
        self.failed, self.reading = False, None

    def __getattr__(self, name):  # the options, as attributes
        return getattr(self.__dict__["options"], name)

    def relative(self, file):
        return re.sub(r"^/proc/self/fd/\d+/", "", file)

    def open(self):
        candidate = os.environ.get("LAKE_CANDIDATE")
        if not candidate or not os.path.isdir(candidate):
            raise CannotCheck("LAKE_CANDIDATE names no directory; lakectl sets it, and by hand: "
                              "LAKE_CANDIDATE=/lake/BRANCH LAKE_TARGET_PATH=/lake/main AUDIT --table TABLE ...")
        self.roots = {}
        for name, path in ("candidate", candidate), ("target", os.environ.get("LAKE_TARGET_PATH")):
            if path:  # by a descriptor: `a=b` in the way to the lake is no partition
                self.roots[name] = f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_DIRECTORY)}/"
        self.candidate, self.target = self.roots["candidate"], self.roots.get("target")
        self.changed, self.removed = paths_in("LAKE_CHANGED"), paths_in("LAKE_REMOVED") or []
        self.connection = duckdb.connect()
        # The working directory is the candidate, which nobody can write.
        self.connection.execute("set temp_directory = " + literal(f"{os.environ.get('TMPDIR', '/tmp')}/lake-audit-{os.getpid()}"))
        self.connection.execute("set timezone = 'UTC'; set enable_progress_bar = false")

    def need_target(self):
        if not self.target:
            raise CannotCheck("LAKE_TARGET_PATH is not set; lakectl sets it")

    def paths(self):
        given = self.options.table or sorted({path.split("/")[0] for path in (self.changed or []) + self.removed})
        if not given:
            raise CannotCheck("no changed paths and no --table: which table is to be checked?")
        for path in given:
            if path.startswith("/") or ".." in path.split("/"):
                raise CannotCheck(f"--table {shown(path)}: a path relative to the lake's root")
        return [os.path.normpath(path) for path in given]

    def run(self, check):
        try:
            self.__dict__["options"] = self.parser.parse_args()
            self.open()
            for path in self.paths():
                table = Table(self, path)
                if not table.removed:
                    check(table)
                elif self.removed_table_passes:
                    table.passed("removed: no rows are left to check")
                else:
                    table.fail("the table is removed")
        except CannotCheck as error:
            self.give_up(error)
        except duckdb.Error as error:
            self.explain(error)
        except Exception:
            traceback.print_exc()
            sys.exit(2)
        sys.exit(1 if self.failed else 0)

    def give_up(self, error):
        print(f"{self.parser.prog}: cannot check: {error}")
        sys.exit(2)

    def explain(self, error):
        """A file that cannot be read by itself is the data's fault; anything else the audit's."""
        table, view, files = self.reading or (None, "candidate", [])
        root = self.roots["target" if view == "target" else "candidate"]
        bad = []
        for file in files:
            try:  # every value: counts come from the footer alone
                self.connection.execute(f"select bit_xor(hash(file)) from {table.source(view, [file])} as file").fetchall()
            except (duckdb.Error, OSError) as reason:
                bad.append((file, str(reason).split("\n")[0].replace(root, "")))
        for file, reason in bad[:EXAMPLES]:
            print(f"{shown(file)}: cannot be read: {shown(reason)}")
        if not bad or view == "target":
            self.give_up(shown(str(error).split("\n\n")[0].replace(root, "")))
        sys.exit(1)
