#!/usr/bin/env bash
# Run test programs, keep their output in build/logs, and close with the line
# "N passed, N failed, N skipped".
#
# A test program prints TAP: "ok 1 - name", "not ok 2 - name", "ok 3 - name # SKIP why". One that
# ends badly without saying "not ok", or says nothing at all, has failed.
# usage: tests/run.sh LABEL PROGRAM... [-- LABEL PROGRAM...]...
set -u
cd "$(dirname "$0")/.."
logs=build/logs
mkdir -p "$logs"
passed=0 failed=0 skipped=0
: "${TEST_TIMEOUT:=900}"

count() {
	grep -cE "$1" "$2" || true
}

run_one() {
	local label=$1 program=$2 log status start good bad skip
	log="$logs/$label-$(basename "$program").log"
	start=$SECONDS
	CMOCKA_MESSAGE_OUTPUT=TAP timeout --kill-after=20 "$TEST_TIMEOUT" "$program" >"$log" 2>&1 </dev/null
	status=$?
	skip=$(count '^(not )?ok .*# SKIP' "$log")
	good=$(grep -vE '# SKIP' "$log" | grep -cE '^ok ' || true)
	bad=$(grep -vE '# SKIP' "$log" | grep -cE '^not ok ' || true)
	if [ "$bad" = 0 ] && { [ "$status" != 0 ] || [ $((good + skip)) = 0 ]; }; then
		bad=1
		echo "not ok - $program ended with status $status" >>"$log"
	fi
	passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + skip))
	printf '%-10s %-34s %4d passed %3d failed %3d skipped  %4d s\n' \
		"$label" "$(basename "$program")" "$good" "$bad" "$skip" $((SECONDS - start))
	grep -E '# SKIP' "$log" | sed 's/^/    /'
	if [ "$bad" != 0 ]; then
		grep -E '^not ok ' "$log" | grep -v '# SKIP' | sed 's/^/    /'
		echo "    --- end of $log"
		tail -n 40 "$log" | sed 's/^/    | /'
	fi
}

label=
for argument in "$@"; do
	if [ "$argument" = -- ]; then
		label=
	elif [ -z "$label" ]; then
		label=$argument
	else
		run_one "$label" "$argument"
	fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
