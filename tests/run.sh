#!/usr/bin/env bash
# Run test programs, keep their output in build/logs, and close with the line
# "N passed, N failed, N skipped".
#
# A test program prints TAP: "ok 1 - name", "not ok 2 - name", "ok 3 - name # SKIP why". One that
# ends badly without saying "not ok", or says nothing at all, has failed. TEST_JOBS programs run at a
# time (one for each processor): most of their time is waiting. Those in tests/lib/alone.txt, which
# measure time, run at the end, when nothing else does. TEST_BIN_<label> names the programs that tests of a label
# take instead of build/bin.
# usage: tests/run.sh LABEL PROGRAM... [-- LABEL PROGRAM...]...
set -u
cd "$(dirname "$0")/.."
logs=build/logs
results=$logs/results
rm -rf "$results"
mkdir -p "$results"
: "${TEST_TIMEOUT:=900}" "${TEST_JOBS:=$(nproc)}"
number=0

count() {
	grep -cE "$1" "$2" || true
}

run_one() { # LABEL PROGRAM RESULT
	local label=$1 program=$2 log status start good bad skip bin=TEST_BIN_$1
	[ -z "${!bin:-}" ] || export LAKE_BIN=$PWD/${!bin}
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
	{
		printf '%-10s %-34s %4d passed %3d failed %3d skipped  %4d s\n' \
			"$label" "$(basename "$program")" "$good" "$bad" "$skip" $((SECONDS - start))
		grep -E '# SKIP' "$log" | sed 's/^/    /'
		if [ "$bad" != 0 ]; then
			grep -E '^not ok ' "$log" | grep -v '# SKIP' | sed 's/^/    /'
			echo "    --- end of $log"
			tail -n 40 "$log" | sed 's/^/    | /'
		fi
	} >"$3.text"
	cat "$3.text" # at once: blocks of programs that end together do not mix
	echo "$good $bad $skip" >"$3"
}

begin() { # LABEL PROGRAM
	number=$((number + 1))
	run_one "$1" "$2" "$results/$number" &
}

waits_alone() {
	grep -qE "^$(basename "$1")([[:space:]]|$)" tests/lib/alone.txt
}

alone=()

run_label() { # LABEL PROGRAM...
	local label=$1 program
	shift
	for program in "$@"; do
		if waits_alone "$program"; then
			alone+=("$label" "$program")
			continue
		fi
		while [ "$(jobs -rp | wc -l)" -ge "$TEST_JOBS" ]; do
			wait -n
		done
		begin "$label" "$program"
	done
}

end() { # a signal: no program is left behind
	trap - INT TERM
	kill 0
	exit 130
}
trap end INT TERM

words=()
for argument in "$@" --; do
	if [ "$argument" != -- ]; then
		words+=("$argument")
	elif [ ${#words[@]} -gt 0 ]; then
		[ ${#words[@]} = 1 ] || run_label "${words[@]}"
		words=()
	fi
done
wait
for ((i = 0; i < ${#alone[@]}; i += 2)); do
	begin "${alone[i]}" "${alone[i + 1]}"
	wait
done
# A program whose result is missing has failed, too.
passed=0 failed=0 skipped=0
for ((i = 1; i <= number; i++)); do
	good=0 bad=1 skip=0
	[ ! -s "$results/$i" ] || read -r good bad skip <"$results/$i"
	passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + skip))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
