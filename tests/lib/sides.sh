# Sourced by shell tests of clients, after tap.sh: the same scenario on a disk and on a lake beside it.
#
# A scenario is a function `on_NAME`. It runs in $TOP/dev/NAME, has $TOP/other/NAME (another branch, or just another
# directory), $SRC (a directory with everything in it) and $REV (the like, read-only on the lake). What it prints, its
# exit code and the tree that it leaves must be those of the disk, but that $TOP is another one; then the
# branch is committed and merged, and the tree must be the same wherever it is looked at.
# `ignored` is a pattern of lines of the witness that may differ from the disk's.
# LAKE_ONLY="NAME..." runs some scenarios alone, LAKE_WAY=0 or 1 one way alone.
disk=$scratch/disk
witness=$root/tests/lib/tree.py
ways=("passed through|" "copied|--no-passthrough")
[ -z "${LAKE_WAY:-}" ] || ways=("${ways[$LAKE_WAY]}")

declare -A needs=() # programs of a scenario that are not on every system

missing() { # SCENARIO: the first of its programs that is not here
	local program
	for program in ${needs[$1]:-}; do
		command -v "$program" >/dev/null || { echo "$program"; return; }
	done
}

scenarios() { # in the order in which they are written
	declare -F | sed -n 's/^declare -f on_//p' | while read -r name; do
		[ -z "${LAKE_ONLY:-}" ] || [[ " $LAKE_ONLY " == *" $name "* ]] || continue
		[ -z "$(missing "$name")" ] || continue
		echo "$(declare -F "on_$name" | cut -d' ' -f2) $name"
	done | sort -n | cut -d' ' -f2
}
shopt -s extdebug # declare -F tells lines

run_side() { # TOP REVISION OUTPUTS: every scenario
	local name
	mkdir -p "$3"
	for name in $(scenarios); do
		[ -z "${LAKE_TRACE:-}" ] || echo "# $EPOCHREALTIME $name" >&2
		mkdir "$1/dev/$name" "$1/other/$name"
		(
			cd "$1/dev/$name" || exit 99
			export TOP=$1 OTHER=$1/other/$name SRC=$1/dev/src REV=$2
			"on_$name"
			echo "exit $?"
		) </dev/null 2>&1 | sed "s|$2|REV|g; s|$1|TOP|g" >"$3/$name"
	done
}

show() { # HOW DIRECTORY FILE
	python3 "$witness" show "$1" "$2" >"$3" 2>&1 || echo "the witness failed" >>"$3"
	sed -i "s|$disk/|TOP/|g; s|${mnt:-none}/|TOP/|g" "$3"
}

same() { diff --text "$1" "$2" | cut -c1-300 | head -n 20; cmp -s "$1" "$2"; }

part() { grep -a "^b[\"']$1[/\"']" "$2" | grep -avE "${ignored:-^$}" >"$3"; }

same_part() { # NAME TREE TREE
	part "$1" "$2" "$scratch/part1"
	part "$1" "$3" "$scratch/part2"
	same "$scratch/part1" "$scratch/part2"
}

disk_side() {
	local name
	for name in "${!needs[@]}"; do
		[ -z "$(missing "$name")" ] || skip "$name" "$(missing "$name") cannot be installed"
	done
	mkdir -p "$disk/dev" "$disk/other" "$disk/rev"
	# Mount points of their own: renames and links across them are refused on the disk, too.
	if ! mount --bind "$disk/other" "$disk/other" 2>/dev/null; then
		skip "both sides" "only root has other owners' files and mounts to compare with"
		tap_done
	fi
	trap 'umount -l "$disk/rev" "$disk/other" 2>/dev/null; tap_cleanup' EXIT
	python3 "$witness" make "$disk/dev/src"
	python3 "$witness" split "$disk/dev/plain"
	cp -a "$disk/dev/plain/." "$disk/rev" && mount --bind -o ro "$disk/rev" "$disk/rev"
	run_side "$disk" "$disk/rev" "$scratch/out.disk"
	show now "$disk/dev" "$scratch/tree.disk"
	show now "$disk/other" "$scratch/other.disk"
}

begin_way() { # NUMBER OPTION: a lake in $lake at $mnt
	lake=$scratch/lake$1 mnt=$scratch/mnt$1
	lakectl -q init "$lake" && lake_mount "$lake" "$mnt" $2 >/dev/null || return 1
	lakectl -q --lake "$lake" branch create dev main
	lakectl -q --lake "$lake" branch create other main
	[ -n "$2" ] || grep -q '^lake_mount_passthrough 1' "$mnt/.lake/metrics"
}

lake_side() { # WORD: scenarios, then what becomes of them
	local name
	python3 "$witness" split "$mnt/dev/plain"
	lakectl -q --lake "$lake" commit dev -m plain
	python3 "$witness" make "$mnt/dev/src"
	run_side "$mnt" "$mnt/@dev/plain" "$scratch/out.lake"
	show now "$mnt/dev" "$scratch/tree.lake"
	show now "$mnt/other" "$scratch/other.lake"
	for name in $(scenarios); do
		check "$1: $name says the same" same "$scratch/out.disk/$name" "$scratch/out.lake/$name"
		check "$1: $name leaves the same" same_part "$name" "$scratch/tree.disk" "$scratch/tree.lake"
		check "$1: $name leaves the same elsewhere" same_part "$name" "$scratch/other.disk" "$scratch/other.lake"
	done
}

published() { # WORD: commit, merge, look everywhere
	show committed "$mnt/dev" "$scratch/before"
	check "$1: committed" lakectl -q --lake "$lake" commit dev -m work
	check "$1: merged" lakectl -q --lake "$lake" merge dev main
	local place
	lakectl -q clone "file://$lake/store" "$lake.clone" &&
		lake_mount "$lake.clone" "$mnt.clone" >/dev/null
	for place in "$mnt/dev" "$mnt/main" "$mnt/@main" "$mnt.clone/main" "$mnt.clone/@dev"; do
		show committed "$place" "$scratch/after"
		check "$1: the same at ${place#"$scratch"/}" same "$scratch/before" "$scratch/after"
	done
	lakectl -q --lake "$lake.clone" umount
	check "$1: what is stored is sound" lakectl -q --lake "$lake" fsck
}
