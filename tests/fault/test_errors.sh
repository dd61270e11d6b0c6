#!/usr/bin/env bash
# What goes wrong is said clearly, with the right exit code, and nothing is lost: second daemons,
# mount points in use, full disks, a store that vanished, damaged objects, kill -9.
source "$(dirname "$0")/../lib/tap.sh"
lake=$scratch/lake mnt=$scratch/mnt
log_has() { grep -qF -- "$1" "$lake/laked.log"; }

lakectl -q --lake "$lake" init

# -- starting --
check_exit 5 "mounting where no lake is" lakectl --lake "$scratch/none" mount "$scratch"
check_exit 5 "mounting at a missing directory" lakectl --lake "$lake" mount "$scratch/missing"
touch "$scratch/file"
check_exit 5 "mounting at a file" lakectl --lake "$lake" mount "$scratch/file"
check "mount" lake_mount "$lake" "$mnt"
mkdir "$scratch/other"
check_exit 1 "a second daemon on the same lake" lakectl --lake "$lake" mount "$scratch/other"
check "says who has it" contains "in use by process $(cat "$lake/lock")" "$scratch/out"
lakectl -q --lake "$scratch/lake2" init
check_exit 1 "a mount point in use" lakectl --lake "$scratch/lake2" mount "$mnt"
check "names the mount point" contains "$mnt" "$scratch/out"

# -- kill -9 --
echo kept >"$mnt/main/kept" && mkdir "$mnt/main/d" && mv "$mnt/main/kept" "$mnt/main/d/kept"
ln "$mnt/main/d/kept" "$mnt/main/d/second"
pid=$(cat "$lake/lock")
kill -9 "$(awk '{print $4}' "/proc/$pid/stat")" "$pid" # first what would start it again
for _ in $(seq 100); do ls "$mnt" >/dev/null 2>&1 || break; sleep 0.05; done
check "after kill -9 a new daemon replaces the dead mount" lake_mount "$lake" "$mnt"
check "uncommitted changes are there" equal "$(cat "$mnt/main/d/kept")" kept
check "so are links" equal "$(stat -c %h "$mnt/main/d/second")" 2
check "commit after the crash" lakectl --lake "$lake" commit main -m kept

# -- umount while in use --
exec 7<"$mnt/main/d/kept"
check_exit 1 "umount while a file is open" lakectl --lake "$lake" umount
check "still answers" equal "$(cat "$mnt/main/d/kept")" kept
exec 7<&-
check "umount" lake_umount "$lake"

# -- the store goes away --
check "mount again" lake_mount "$lake" "$mnt"
cat "$mnt/main/d/kept" >/dev/null
mv "$lake/store" "$lake/store.away"
check "cached data stays readable" equal "$(cat "$mnt/main/d/kept")" kept
check "local writes go on" bash -c "echo more >'$mnt/main/more' && test \"\$(cat '$mnt/main/more')\" = more"
check_exit 1 "commit fails" lakectl --lake "$lake" commit main -m away
check "and says what is missing" contains "store" "$scratch/out"
check "nothing was made in its place" test ! -e "$lake/store"
check "the change is still there" equal "$(cat "$mnt/main/more")" more
mv "$lake/store.away" "$lake/store"
check "commit when it is back" lakectl --lake "$lake" commit main -m back
check "umount after that" lake_umount "$lake"
mv "$lake/store" "$lake/store.away"
check_exit 1 "opening without its store" lakectl --lake "$lake" log main
check "says what to do" contains "bring it back" "$scratch/out"
mv "$lake/store.away" "$lake/store"

# -- damaged objects: every pack, one byte each --
head -c 300000 /dev/urandom >"$scratch/random"
lake_mount "$lake" "$mnt" >/dev/null
cp "$scratch/random" "$mnt/main/random" && lakectl -q --lake "$lake" commit main -m random
lake_umount "$lake" >/dev/null
check "fsck of a good lake" lakectl --lake "$lake" fsck
undetected=0
for pack in "$lake"/store/packs/*; do
	size=$(stat -c %s "$pack")
	cp "$pack" "$scratch/pack.good"
	offset=$((size / 2))
	byte=$(od -An -tu1 -j "$offset" -N 1 "$pack" | tr -d ' ')
	chmod u+w "$pack" 2>/dev/null
	printf "\\x$(printf %02x $((byte ^ 1)))" | dd of="$pack" bs=1 seek="$offset" conv=notrunc 2>/dev/null
	lakectl --lake "$lake" fsck >"$scratch/fsck.out" 2>&1 && undetected=$((undetected + 1))
	cp "$scratch/pack.good" "$pack"
done
check "fsck finds one flipped byte in any pack" equal $undetected 0
biggest=$(ls -S "$lake"/store/packs/* | head -1)
printf 'XXXXXXXX' | dd of="$biggest" bs=1 seek=100000 conv=notrunc 2>/dev/null
rm -rf "$lake/cache"
lake_mount "$lake" "$mnt" >/dev/null
check_exit 1 "a damaged file is not served" cat "$mnt/main/random"
check "it is an I/O error" contains "Input/output error" "$scratch/out"
check "the log names pack and path" bash -c "grep -q \"$(basename "$biggest")\" '$lake/laked.log' && grep -q random '$lake/laked.log'"
check "other files are" equal "$(cat "$mnt/main/more")" more
check_exit 1 "fsck names it" lakectl --lake "$lake" fsck
cp "$scratch/pack.good" /dev/null
lake_umount "$lake" >/dev/null

# -- local files that are not ours --
cp -a "$scratch/lake2" "$scratch/lake3"
head -c 65536 /dev/urandom >"$scratch/lake3/state/tables/data.mdb" 2>/dev/null ||
	head -c 65536 /dev/urandom >"$scratch/lake3/state/data.mdb"
check_exit 1 "a destroyed state database is refused" lakectl --lake "$scratch/lake3" log main
cp -a "$scratch/lake2" "$scratch/lake4"
find "$scratch/lake4/index" -name data.mdb -exec sh -c 'head -c 65536 /dev/urandom >"$1"' _ {} \;
check "a destroyed index is remade" lakectl --lake "$scratch/lake4" log main
echo '{"version": 99}' >"$scratch/lake3/lake.json"
check_exit 1 "a newer configuration is refused" lakectl --lake "$scratch/lake3" log main
check "and says so" contains "upgrade" "$scratch/out"

# -- a full disk --
mkdir "$scratch/small"
if mount -t tmpfs -o size=48m tmpfs "$scratch/small" 2>/dev/null; then
	lakectl -q --lake "$scratch/small/lake" init
	lake_mount "$scratch/small/lake" "$scratch/other" >/dev/null
	echo before >"$scratch/other/main/before"
	check_exit 1 "writing more than fits" dd if=/dev/zero of="$scratch/other/main/big" bs=1M count=100
	check "is ENOSPC" contains "No space left" "$scratch/out"
	check_exit 1 "committing on a full disk" lakectl --lake "$scratch/small/lake" commit main -m full
	check "files are intact" equal "$(cat "$scratch/other/main/before")" before
	rm "$scratch/other/main/big"
	check "after making room it commits" lakectl --lake "$scratch/small/lake" commit main -m room
	check "and reads" equal "$(cat "$scratch/other/@main/before")" before
	lake_umount "$scratch/small/lake" >/dev/null
	check "fsck" lakectl --lake "$scratch/small/lake" fsck
	umount "$scratch/small"
else
	skip "full disk" "cannot mount tmpfs"
fi
tap_done
