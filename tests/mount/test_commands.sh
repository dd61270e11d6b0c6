#!/usr/bin/env bash
# Every command of lakectl on a mounted lake, the same commands without a daemon, exit codes, JSON.
source "$(dirname "$0")/../lib/tap.sh"
lake=$scratch/lake mnt=$scratch/mnt
json() { python3 -c 'import json,sys; d=json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
id_of() { lakectl --lake "$lake" --json log -n 1 "$1" | json 'd["commits"][0]["id"]'; }

check "init" lakectl --lake "$lake" init
check_exit 1 "init where a lake is" lakectl --lake "$lake" init
check "mount" lake_mount "$lake" "$mnt"
check "main is there" test -d "$mnt/main"
cd "$mnt/main" || exit 1

mkdir orders && printf 'id,price\n1,10\n2,20\n' >orders/a.csv && printf 'id,price\n3,30\n' >orders/b.csv
check "status lists uncommitted files" bash -c 'lakectl status | grep -q "A  orders/a.csv"'
check "commit, branch from the current directory" lakectl commit -m "orders" --meta source=erp --meta run=7 \
	--meta path=$'\e[31m' --meta at=$'\e]0;title\a'
check "log has message" bash -c 'lakectl log -n 1 | grep -q orders'
check "--json after the command" equal "$(lakectl log -n 1 --json | json 'd["commits"][0]["message"]')" orders
check "log --json has meta" equal "$(lakectl --json log -n 1 | json 'd["commits"][0]["meta"]["run"]')" 7
check "meta does not drive the terminal, whatever its key" bash -c "lakectl log -n 1 | grep -q 'path: ' && ! lakectl log -n 1 | grep -q \$'\\e'"
check_exit 2 "commit without message" lakectl commit
check "says how to give one" contains "lakectl commit [BRANCH] -m MESSAGE" "$scratch/out"
check_exit 2 "commit with nothing changed" lakectl commit -m again
check "commit --allow-empty" lakectl commit -m empty --allow-empty
check "show" bash -c 'lakectl show main~1 | grep -q "A  orders/a.csv"'

check "branch create" lakectl branch create dev
check_exit 1 "branch create twice" lakectl branch create dev
check_exit 2 "bad branch name" lakectl branch create 'a..b'
check_exit 5 "unknown revision" lakectl branch create x nosuch
check "branch list" equal "$(lakectl --json branch | json '[b["name"] for b in d["branches"]]')" "['dev', 'main']"
check "dev shows main's files" equal "$(cat "$mnt/dev/orders/b.csv")" "$(cat "$mnt/main/orders/b.csv")"
printf 'id,price\n1,11\n2,20\n' >"$mnt/dev/orders/a.csv"
mkdir "$mnt/dev/new" && echo hello >"$mnt/dev/new/file" && rm "$mnt/dev/orders/b.csv"
check "main is untouched" equal "$(cat "$mnt/main/orders/a.csv" | head -2 | tail -1)" "1,10"
check "diff REV to working tree" equal "$(cd "$mnt/dev" && lakectl diff main --name-only | sort | tr '\n' ' ')" "new/file orders/a.csv orders/b.csv "
check "commit by name" lakectl commit dev -m "prices"
check "diff two revisions" equal "$(lakectl --json diff main dev | json 'sorted((c["change"],c["path"]) for c in d["changes"] if c["kind"]=="file")')" "[('added', 'new/file'), ('modified', 'orders/a.csv'), ('removed', 'orders/b.csv')]"
check "diff of one path" equal "$(lakectl diff main dev --name-only -- orders/a.csv)" "orders/a.csv"
check "merge --dry-run" bash -c 'lakectl merge dev main --dry-run | grep -q "would change"'
check "merge" lakectl merge dev main
check "main shows the merge" equal "$(cat "$mnt/main/orders/a.csv" | head -2 | tail -1)" "1,11"
check "removed by the merge" test ! -e "$mnt/main/orders/b.csv"
check "merge again is up to date" bash -c 'lakectl merge dev main | grep -q already'
check "time travel by path" equal "$(head -2 "$mnt/@main~1/orders/a.csv" | tail -1)" "1,10"
check_exit 1 "a revision is read-only" bash -c "echo x >'$mnt/@main~1/orders/a.csv'"
check "revisions are not listed" equal "$(ls "$mnt" | tr '\n' ' ')" "dev main "
check "tag create" lakectl tag create v1 main
check "tag as path" test -d "$mnt/@v1/orders"
check "tag list" bash -c 'lakectl tag | grep -q v1'
check "ls" bash -c 'lakectl ls main:orders | grep -q a.csv'
check "cat" equal "$(lakectl cat main~1:orders/b.csv)" "$(printf 'id,price\n3,30')"
check "du" bash -c 'lakectl du main | grep -q orders'
check "annotate" bash -c 'lakectl annotate main:orders | grep -q prices'
check "reflog" bash -c 'lakectl reflog main | grep -q "merge dev"'

check "revert the merge" lakectl revert main main
check "reverted" equal "$(head -2 "$mnt/main/orders/a.csv" | tail -1)" "1,10"
check "undo the revert" lakectl undo main
check "undone" equal "$(head -2 "$mnt/main/orders/a.csv" | tail -1)" "1,11"
check "reset" lakectl reset main v1~1
check "reset shows" test -e "$mnt/main/orders/b.csv"
check "undo the reset" lakectl undo main
check "cherry-pick onto a branch" bash -c 'lakectl branch create pick main~1 && lakectl cherry-pick dev pick'
check "picked" test -e "$mnt/pick/new/file"

# conflicts
echo target >"$mnt/main/orders/a.csv" && lakectl -q commit main -m t
echo source >"$mnt/dev/orders/a.csv" && lakectl -q commit dev -m s
before=$(id_of main)
check_exit 3 "a conflict" lakectl merge dev main
check "the conflict is named" contains orders/a.csv "$scratch/out"
check "nothing moved" equal "$(id_of main)" "$before"
check "conflict in JSON" equal "$(lakectl --json merge dev main 2>/dev/null | json 'd["conflicts"][0]["path"]')" orders/a.csv
check "--take source" lakectl merge dev main --take source:orders/a.csv
check "taken" equal "$(cat "$mnt/main/orders/a.csv")" source

# restore, delete, rename, undo of a deletion
rm -r "$mnt/main/orders" && echo junk >"$mnt/main/junk"
check "restore a directory" lakectl restore main -- orders
check "restored" equal "$(cat "$mnt/main/orders/a.csv")" source
check "restore leaves the rest" test -e "$mnt/main/junk"
cd "$mnt/main/orders" && check "restoring the current directory" lakectl restore main -- .
check "leaves one in it" equal "$(ls)" "$(ls "$mnt/main/orders")"
rm -r ../orders && mkdir ../orders && cd "$mnt/main" && lakectl -q restore main -- orders
check "a directory that came back is listed" bash -c 'ls | grep -qx orders && ls orders | grep -qx a.csv'
check "restore everything" lakectl restore main -- .
check "all others, too" test "$(pwd)" = "$mnt/main"
check "all restored" test ! -e "$mnt/main/junk"
check "restore --from" bash -c "lakectl restore main --from v1 -- orders/a.csv && head -2 '$mnt/main/orders/a.csv' | tail -1 | grep -qx 1,11"
check "that is uncommitted" bash -c 'lakectl status main | grep -q "M  orders/a.csv"'
check_exit 4 "deleting a dirty branch is refused" bash -c "echo x >'$mnt/pick/x'; lakectl branch delete pick"
check "delete --force" lakectl branch delete pick --force
check "gone from the mount" test ! -e "$mnt/pick"
check "undo brings it back" lakectl undo pick
check "back in the mount" test -e "$mnt/pick/new/file"
check "rename" lakectl branch rename pick picked
check "renamed in the mount" test -e "$mnt/picked/new/file"
check_exit 5 "no such branch" lakectl status nosuch
check_exit 5 "no such path" lakectl cat main:nosuch
check_exit 2 "no such command" lakectl frobnicate
check_exit 2 "too many words" lakectl status a b c
check "help everywhere" bash -c 'for c in init clone mount umount status commit log show annotate diff merge revert cherry-pick reset restore reflog undo ls cat du fsck doctor stats warm refresh gc; do lakectl $c --help >/dev/null || exit 1; done'
check "fsck" lakectl fsck
check "doctor" lakectl doctor
check "stats" lakectl --json stats
check "branch@time" bash -c "test \"\$(lakectl --json log -n 1 main@\$(date -u -d '+1 minute' +%Y-%m-%dT%H:%M:%SZ) | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"commits\"][0][\"id\"])')\" = $(id_of main)"
check "control files" bash -c "grep -q lake_ '$mnt/.lake/metrics' && python3 -m json.tool '$mnt/.lake/status'"

# an error is JSON on standard output and text on standard error
lakectl --json show nosuch >"$scratch/json" 2>"$scratch/text"
check "errors as JSON" equal "$(json 'd["error"]["code"]' <"$scratch/json")" no_revision
check "errors as text" contains nosuch "$scratch/text"

# open for writing
exec 7>"$mnt/main/open.bin"
echo partial >&7
check_exit 1 "commit names files open for writing" lakectl commit main -m open --wait-ms 100
check "it is named" contains open.bin "$scratch/out"
check "status lists it" bash -c 'lakectl --json status main | grep -q open.bin'
check "--allow-open" lakectl commit main -m open --allow-open
check "taken as it was" equal "$(cat "$mnt/@main/open.bin")" partial
echo more >&7
exec 7>&-
check "still writable after" equal "$(tail -1 "$mnt/main/open.bin")" more
check "the commit keeps its bytes" equal "$(cat "$mnt/@main/open.bin")" partial

# garbage: a branch that is deleted for good leaves packs behind, two runs remove them
head -c 400000 /dev/urandom >"$mnt/picked/junk" && lakectl -q commit picked -m junk
packs() { ls "$lake/store/packs" | wc -l; }
check "gc keeps what a deleted branch may need" bash -c "lakectl -q branch delete picked && lakectl gc --grace-seconds 0 --alone && lakectl gc --grace-seconds 0 --alone && lakectl -q undo picked && cmp '$mnt/picked/junk' '$mnt/@picked/junk'"
check_exit 4 "a short grace period needs --alone" lakectl gc --grace-seconds 0
lakectl -q branch delete picked
before=$(packs)
check "gc --dry-run" lakectl gc --deleted-days 0 --dry-run
check "first run lists" bash -c 'sleep 0.01; lakectl gc --deleted-days 0 | grep -q "; 0 (0 B) removed"'
check "nothing went yet" equal "$(packs)" "$before"
check "second run removes" bash -c 'lakectl gc --grace-seconds 0 --alone'
check "packs went" test "$(packs)" -lt "$before"
check "the rest is whole" lakectl fsck

cd / || exit 1
check "umount" lake_umount "$lake"
check "not mounted" bash -c "! mountpoint -q '$mnt'"

# the same without a daemon
export LAKE_DIR=$lake
check "status in-process" bash -c 'lakectl status main | grep -q open.bin'
check "commit in-process" lakectl commit main -m "in-process"
check "log in-process" bash -c 'lakectl log main -n 1 | grep -q in-process'
check "cat in-process" equal "$(lakectl cat main:open.bin | tail -1)" more
check "clone" lakectl clone "file://$lake/store" "$scratch/second"
check "the clone has the history" equal "$(lakectl --lake "$scratch/second" --json log -n 1 main | json 'd["commits"][0]["message"]')" in-process
check_exit 5 "no lake" lakectl --lake "$scratch/none" status main
tap_done
