#!/usr/bin/env bash
# The README's tour does what it says: every command of the demo succeeds, or is refused where the story
# has it refused, and nothing is left of it afterwards.
source "$(dirname "$0")/../lib/tap.sh"
export LAKE_DIR=$scratch/lake LAKE_MOUNT=$scratch/mnt LAKE_BIN
data=$root/build/node/node_modules/vega-datasets/data/flights-3m.parquet

if [ ! -e "$data" ] || ! "$root/packaging/examples/sql" 'SELECT 1' >"$scratch/log" 2>&1; then
	skip "the demo" "DuckDB or the flights data cannot be installed"
	tap_done
fi
trap '"$root/packaging/examples/demo.sh" stop >/dev/null 2>&1; tap_cleanup' EXIT
check "the demo runs to its end" "$root/packaging/examples/demo.sh" start
"$root/packaging/examples/demo.sh" start >"$scratch/story" 2>&1
check "again, in place of the first" [ $? = 0 ]
check "the ingest with a fault is refused, and it is said why" \
	contains "flights/month=5/data_0.parquet: column delay is NULL: 119 of 518648 rows" "$scratch/story"
check "the closed branch cannot be written" contains "Read-only file system" "$scratch/story"
check "what was mended is published" contains "518648      518648" "$scratch/story"
check "what was published is taken back" contains "518831      518831" "$scratch/story"
check "a conflict shows where both versions are" contains "airports/airports.csv  (both changed)" "$scratch/story"
grep -A1 'skipped schema' "$scratch/story" >"$scratch/after"
check "an audit of a reference looks at the table referred to as well" contains "passed  airports-known" "$scratch/after"
tap_sanitizers
check "the demo ends" "$root/packaging/examples/demo.sh" stop
check "nothing is left" [ ! -e "$LAKE_DIR" ]
check "nor mounted" bash -c "! findmnt '$LAKE_MOUNT'"
tap_done
