"""One aggregate over the Parquet files in a directory, in this process alone: its seconds without Python's start."""
import sys
import time

import duckdb

QUERIES = (
    "select count(*), avg(delay), max(distance) from {}",
    "select origin, count(*) as flights, avg(delay) from {} group by origin order by flights desc, origin limit 10",
    "select date_trunc('day', date) as d, sum(distance) from {} where delay > 60 group by d order by d",
    "select sum(r1), avg(r2) from {}",  # of the wide table
    "select origin, sum(r1), max(h1), avg(distance) from {} group by all",
)
WIDE = """copy (select *, hash(n * 7 + i) as h1, random() as r1, random() as r2, hash(n * 13 + i)::varchar as s1
              from (select *, row_number() over () as n from '{}'), range({}) as copies(i))
          to '{}/wide.parquet' (format parquet, row_group_size 122880, compression zstd)"""

if len(sys.argv) == 4:  # SOURCE DIRECTORY FILES: the flights as so many Parquet files
    source, directory, files = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rows = duckdb.sql(f"select count(*) from '{source}'").fetchall()[0][0]
    each = -(-rows // files)
    for i in range(files):
        duckdb.sql(f"copy (select * from '{source}' limit {each} offset {i * each}) "
                   f"to '{directory}/flights{i:02}.parquet' (format parquet)")
elif len(sys.argv) == 5:  # SOURCE DIRECTORY COPIES wide: one file of eleven columns, six of them new
    duckdb.sql(WIDE.format(sys.argv[1], sys.argv[3], sys.argv[2]))
elif len(sys.argv) == 3:  # DIRECTORY NUMBER
    table = f"read_parquet('{sys.argv[1]}/*.parquet')"
    start = time.perf_counter()
    duckdb.sql(QUERIES[int(sys.argv[2])].format(table)).fetchall()
    print(time.perf_counter() - start)
else:  # what every process of DuckDB needs comes into the page cache
    duckdb.sql("select avg(range) from range(1000)").fetchall()
