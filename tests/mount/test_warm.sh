#!/usr/bin/env bash
# lakectl warm: what was fetched ahead can be read while the store is away; nothing is fetched that
# cannot stay.
source "$(dirname "$0")/../lib/tap.sh"
lake=$scratch/lake mnt=$scratch/mnt store=$scratch/store
json() { python3 -c 'import json,sys; d=json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
clone() { lakectl -q clone "file://$store" "$1"; }
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

lakectl -q --lake "$lake" init --store "file://$store" || exit 1
lake_mount "$lake" "$mnt" >"$scratch/log" || exit 1
python3 - "$mnt/main" <<'P'
import os, random, sys
rng = random.Random(7)
for d in range(20):
    os.makedirs(f"{sys.argv[1]}/small/{d}")
    for i in range(50):
        with open(f"{sys.argv[1]}/small/{d}/{i}.csv", "wb") as f:
            f.write(rng.randbytes(rng.randrange(0, 20000)))
os.makedirs(f"{sys.argv[1]}/large")
with open(f"{sys.argv[1]}/large/a.bin", "wb") as f:
    f.write(rng.randbytes(24 << 20))
with open(f"{sys.argv[1]}/large/sparse.bin", "wb") as f:
    f.write(b"start")
    f.seek(10 << 20)
    f.write(b"end")
os.makedirs(f"{sys.argv[1]}/nothing")
os.symlink("a.bin", f"{sys.argv[1]}/large/link")
open(f"{sys.argv[1]}/large/empty", "w").close()
P
sums "$mnt/main/small" >"$scratch/small.sums"
sums "$mnt/main/large" >"$scratch/large.sums"
lakectl -q --lake "$lake" commit main -m data && lakectl -q --lake "$lake" tag create v1 main || exit 1
lake_umount "$lake"

check "join" clone "$scratch/b"
lake_mount "$scratch/b" "$scratch/b.mnt" >"$scratch/log"
(cd / && lakectl --json warm "$scratch/b.mnt/main/small") >"$scratch/reply"
check "a path of a mount says which lake" test -s "$scratch/reply"
check "files and bytes" equal "$(json 'd["files"] > 950 and d["fetched_bytes"] == d["bytes"] > 9000000' <"$scratch/reply")" True
check "no more than asked for" equal "$(find "$scratch/b/cache" -type f -size +1M)" ""
cd "$scratch/b.mnt/main/small" || exit 1
check "nothing is fetched twice" equal "$(lakectl --json warm | json 'd["fetched_bytes"]')" 0
check "said in words" bash -c 'lakectl warm . | grep -q "files (.*) are in the cache; .* fetched"'
check "quietly" equal "$(lakectl -q warm 2>&1)" ""
cd / || exit 1
check "an empty directory" equal "$(lakectl --lake "$scratch/b" --json warm main:nothing | json 'd["files"]')" 0
check_exit 5 "a path that is not there" lakectl --lake "$scratch/b" warm main:none
echo new >"$scratch/b.mnt/main/uncommitted"
check_exit 5 "only what is committed" lakectl warm "$scratch/b.mnt/main/uncommitted"
check "it says so" contains "only what is committed" "$scratch/out"
check_exit 2 "a path outside" lakectl --lake "$scratch/b" warm "$scratch"
check_exit 2 "no thread" lakectl --lake "$scratch/b" warm main --threads 0
check_exit 5 "no such revision" lakectl --lake "$scratch/b" warm nosuch
check_exit 5 "no such path below here" bash -c "cd '$scratch' && lakectl warm b.mnt/main/nosuch"
check "is named as such" contains "'b.mnt/main/nosuch' is not there" "$scratch/out"
mv "$store" "$store.away"
check "readable with the store away" equal "$(sums "$scratch/b.mnt/main/small")" "$(cat "$scratch/small.sums")"
check_exit 1 "warm says that the store is away" lakectl --lake "$scratch/b" warm v1
mv "$store.away" "$store"
check "a revision, after it came back" lakectl warm "$scratch/b.mnt/@v1/large" "$scratch/b.mnt/main/small/3"
mv "$store" "$store.away"
check "large files, too" equal "$(sums "$scratch/b.mnt/main/large")" "$(cat "$scratch/large.sums")"
mv "$store.away" "$store"
lake_umount "$scratch/b"

check "join again" clone "$scratch/c"
check "without a daemon" equal "$(lakectl --lake "$scratch/c" --json warm main | json 'd["fetched_bytes"] == d["bytes"] > 30000000')" True
lake_mount "$scratch/c" "$scratch/c.mnt" >"$scratch/log"
ls -R "$scratch/c.mnt/main" >"$scratch/log"
mv "$store" "$store.away"
check "then mounted, the store away" equal "$(sums "$scratch/c.mnt/main/small")" "$(cat "$scratch/small.sums")"
mv "$store.away" "$store"
lake_umount "$scratch/c"

clone "$scratch/d"
sed -i 's/"cache_bytes_max":[[:space:]]*0/"cache_bytes_max": 16000000/' "$scratch/d/lake.json"
check_exit 1 "what cannot stay is not fetched" lakectl --lake "$scratch/d" warm main
check "which option" contains "cache_bytes_max" "$scratch/out"
check "how much" contains "MiB are missing" "$scratch/out"
check "nothing was" equal "$(find "$scratch/d/cache" -type f -size +4k)" ""
check "what fits is" lakectl -q --lake "$scratch/d" warm main:small
check_exit 2 "no word of it" bash -c "cd / && lakectl --lake '$scratch/d' warm -x"
tap_done
