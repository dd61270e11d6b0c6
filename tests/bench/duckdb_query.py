"""One aggregate over the flights in a directory, in this process alone: its seconds without Python's start."""
import sys
import time

import duckdb

QUERIES = (
    "select count(*), avg(delay), max(distance) from {}",
    "select origin, count(*) as flights, avg(delay) from {} group by origin order by flights desc, origin limit 10",
    "select date_trunc('day', date) as d, sum(distance) from {} where delay > 60 group by d order by d",
)

if len(sys.argv) == 4:  # SOURCE DIRECTORY FILES: the flights as so many Parquet files
    source, directory, files = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rows = duckdb.sql(f"select count(*) from '{source}'").fetchall()[0][0]
    each = -(-rows // files)
    for i in range(files):
        duckdb.sql(f"copy (select * from '{source}' limit {each} offset {i * each}) "
                   f"to '{directory}/flights{i:02}.parquet' (format parquet)")
elif len(sys.argv) == 3:  # DIRECTORY NUMBER
    table = f"read_parquet('{sys.argv[1]}/*.parquet')"
    start = time.perf_counter()
    duckdb.sql(QUERIES[int(sys.argv[2])].format(table)).fetchall()
    print(time.perf_counter() - start)
else:  # what every process of DuckDB needs comes into the page cache
    duckdb.sql("select avg(range) from range(1000)").fetchall()
