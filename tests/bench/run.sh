#!/usr/bin/env bash
# One table of ratios, measured in one run; exits with 1 when a target is missed. Everything is
# made below two directories of its own and removed at the end, also on Ctrl-C.
#
# LAKE_BIN      where lakectl and laked are                  (build/bin)
# BENCH_FILES   files in the large lake                      (1000000)
# BENCH_DIR     where the disk is measured                   (build/bench)
# BENCH_ONLY    some of: large small versions peers s3 s3-latency   (all)
# BENCH_S3_BYTES   of the file that is read from S3          (536870912)
# BENCH_S3_FILES   in the large lake in S3                   (100000)
# BENCH_S3_PARTS   some of: sequential random_reads small_files append rename duckdb wide_table versions   (all)
set -eu
cd "$(dirname "$0")/../.."
: "${LAKE_BIN:=build/bin}" "${BENCH_DIR:=build/bench}" "${BENCH_FILES:=1000000}"
LAKE_BIN=$(realpath "$LAKE_BIN")
mkdir -p "$BENCH_DIR"
BENCH_ROOT=$(mktemp -d -p "$(realpath "$BENCH_DIR")" run-XXXXXX)
BENCH_DISK=$BENCH_ROOT/disk
BENCH_DISK_KIND="$(findmnt -n -o FSTYPE -T "$BENCH_ROOT") at $BENCH_DIR"
BENCH_MEMORY=
mkdir "$BENCH_DISK"

# Children that bench.py started and did not end: each file is named by an id, and holds when that
# process started, so that no other one is ended that has the id by now.
end_children() {
	local file id
	for file in "$BENCH_ROOT"/pids/*; do
		id=${file##*/}
		[ -e "$file" ] && [ "$(sed 's/.*) //' "/proc/$id/stat" 2>/dev/null | cut -d' ' -f20)" = "$(cat "$file")" ] ||
			continue
		kill "$id" 2>/dev/null || true
		for _ in 1 2 3 4 5 6 7 8 9 10; do
			kill -0 "$id" 2>/dev/null || continue 2
			sleep 0.2
		done
		kill -9 "$id" 2>/dev/null || true
	done
	[ ! -d "$BENCH_ROOT/ceph" ] || tests/lib/ceph.sh stop "$BENCH_ROOT/ceph"
}

cleanup() {
	local place
	end_children
	for place in "$BENCH_ROOT"/mount* "$BENCH_ROOT/btrfs" "$BENCH_DISK"; do
		findmnt --noheadings --mountpoint "$place" >/dev/null || continue
		umount "$place" 2>/dev/null || umount --lazy "$place" || fusermount3 -uz "$place" || true
	done
	rm -rf --one-file-system "$BENCH_ROOT" ${BENCH_MEMORY:+"$BENCH_MEMORY"}
}
trap cleanup EXIT
trap : INT TERM # the measuring child ends first, then this

# A file system that has served for long is up to 20 times slower at creating files than a new one
# and drifts while it is measured: both sides are measured on a new one where that can be had.
fresh_ext4() {
	[ "$(id -u)" = 0 ] && command -v mkfs.ext4 >/dev/null || return 1
	truncate -s 24G "$BENCH_ROOT/ext4.image"
	mkfs.ext4 -q -m 0 "$BENCH_ROOT/ext4.image" &&
		mount -o loop "$BENCH_ROOT/ext4.image" "$BENCH_DISK" 2>/dev/null || return 1
	losetup --direct-io=on "$(findmnt -n -o SOURCE "$BENCH_DISK")" 2>/dev/null || true
}
if fresh_ext4; then
	BENCH_DISK_KIND="new ext4 in a file on $BENCH_DISK_KIND"
else
	rm -f "$BENCH_ROOT/ext4.image"
	echo "bench: no loop device here; measuring on $BENCH_DISK_KIND as it is" >&2
fi

# Memory: about 6 KB for each file of the large lake.
if [[ " ${BENCH_ONLY:-versions} " != *" versions "* ]]; then
	:
elif [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] &&
	[ "$(df --output=avail -k /dev/shm | tail -n 1)" -gt $((BENCH_FILES * 8)) ] &&
	[ "$(awk '/MemAvailable/ { print $2 }' /proc/meminfo)" -gt $((BENCH_FILES * 8 + 2000000)) ]; then
	BENCH_MEMORY=$(mktemp -d -p /dev/shm lake-bench-XXXXXX)
else
	echo "bench: no room in /dev/shm: figures without fsync cost are left out" >&2
fi

${CC:-cc} -std=gnu17 -O2 -pthread -D_GNU_SOURCE tests/bench/files.c -o "$BENCH_ROOT/files"
export LAKE_BIN BENCH_FILES BENCH_ROOT BENCH_DISK BENCH_DISK_KIND BENCH_MEMORY
export BENCH_TOOL=$BENCH_ROOT/files PYTHONDONTWRITEBYTECODE=1
python3 tests/bench/bench.py &
child=$!
trap 'kill -TERM $child 2>/dev/null || true' INT TERM
status=0
wait "$child" || status=$?
while kill -0 "$child" 2>/dev/null; do # interrupted while waiting
	wait "$child" || status=$?
done
exit "$status"
