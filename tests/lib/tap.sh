# Sourced by shell tests: TAP, a scratch directory, and lakes that are always ended and unmounted.
#   source tests/lib/tap.sh      (any working directory)
#   check NAME COMMAND...        passes when the command succeeds
#   check_exit CODE NAME COMMAND... passes when it ends with CODE; its output is in $scratch/out
#   contains TEXT FILE / equal A B  for use in check
#   lake_mount DIR MOUNTPOINT / lake_umount DIR; everything left is cleaned at exit
set -u
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
: "${LAKE_BIN:=$root/build/bin}"
PATH=$LAKE_BIN:$PATH
unset LAKE_DIR LAKE_MOUNT
scratch=$(mktemp -d "${TMPDIR:-/var/tmp}/lake-test.XXXXXX")
tap_number=0 tap_status=0
tap_lakes=()

check() {
	local name=$1
	shift
	tap_number=$((tap_number + 1))
	if "$@" >"$scratch/check.log" 2>&1; then
		echo "ok $tap_number - $name"
	else
		echo "not ok $tap_number - $name (status $?)"
		sed 's/^/# /' "$scratch/check.log" | head -n 30
		tap_status=1
	fi
}

check_exit() {
	local wanted=$1 name=$2 got
	shift 2
	tap_number=$((tap_number + 1))
	"$@" >"$scratch/out" 2>&1 </dev/null
	got=$?
	if [ "$got" = "$wanted" ]; then
		echo "ok $tap_number - $name"
	else
		echo "not ok $tap_number - $name (status $got, wanted $wanted)"
		sed 's/^/# /' "$scratch/out" | head -n 30
		tap_status=1
	fi
}

skip() { # NAME WHY
	tap_number=$((tap_number + 1))
	echo "ok $tap_number - $1 # SKIP $2"
}

contains() { grep -qF -- "$1" "$2" || { echo "no '$1' in:"; cat "$2"; return 1; }; }
equal() { [ "$1" = "$2" ] || { echo "got:    $1"; echo "wanted: $2"; return 1; }; }

lake_mount() { # DIR MOUNTPOINT [OPTION...]
	local directory=$1 mountpoint=$2
	shift 2
	mkdir -p "$mountpoint"
	lakectl --lake "$directory" mount "$mountpoint" "$@" || return 1
	tap_lakes+=("$directory|$mountpoint")
}

lake_umount() { lakectl --lake "$1" umount; }

tap_cleanup() {
	local entry directory mountpoint pid
	for entry in "${tap_lakes[@]:-}"; do
		[ -n "$entry" ] || continue
		directory=${entry%%|*} mountpoint=${entry#*|}
		lakectl -q --lake "$directory" umount --force >/dev/null 2>&1
		pid=$(cat "$directory/lock" 2>/dev/null)
		if [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = laked ]; then
			kill "$pid" 2>/dev/null
		fi
		mountpoint -q "$mountpoint" 2>/dev/null && umount -l "$mountpoint" 2>/dev/null
	done
	rm -rf "$scratch"
}

# A daemon built with sanitizers reports into its log.
tap_sanitizers() {
	local log found=
	for log in "$scratch"/*/laked.log; do
		[ -e "$log" ] && grep -qE 'Sanitizer|runtime error' "$log" && found="$found $log"
	done
	[ -z "$found" ] || sed 's/^/# /' $found | head -n 60
	check "no daemon reported a defect of its memory or threads" test -z "$found"
}

tap_done() {
	tap_sanitizers
	echo "1..$tap_number"
	exit $tap_status
}
trap tap_cleanup EXIT
trap 'exit 130' INT TERM
