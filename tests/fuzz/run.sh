#!/usr/bin/env bash
# Run every fuzz target for FUZZ_SECONDS on its kept corpus. Prints TAP. A crash leaves its input
# in build/fuzz/<target>-crash-*.
set -u
cd "$(dirname "$0")/../.."
: "${FUZZ_SECONDS:=10}"
number=0 status=0
for target in build/fuzz/fuzz_*; do
	[ -x "$target" ] && [ -f "$target" ] || continue
	case $target in *.log | *-crash-*) continue ;; esac
	name=$(basename "$target")
	number=$((number + 1))
	mkdir -p "build/fuzz/corpus/$name" "tests/fuzz/corpus/$name"
	if "$target" -max_total_time="$FUZZ_SECONDS" -rss_limit_mb=4096 -print_final_stats=1 \
		-artifact_prefix="build/fuzz/$name-" "build/fuzz/corpus/$name" "tests/fuzz/corpus/$name" \
		>"build/fuzz/$name.log" 2>&1 </dev/null; then
		echo "ok $number - $name, $(grep -oE 'number_of_executed_units: [0-9]+' "build/fuzz/$name.log" | grep -oE '[0-9]+$') runs"
	else
		echo "not ok $number - $name"
		tail -n 30 "build/fuzz/$name.log" | sed 's/^/# /'
		status=1
	fi
done
echo "1..$number"
exit $status
