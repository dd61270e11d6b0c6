#!/usr/bin/env bash
# A lake at work, told as a story: `demo.sh start` makes a lake, mounts it, puts tables on main,
# changes one on a branch, merges, travels back in time; then main is closed but for what passes
# its audits (publish.sh). The lake stays mounted. `demo.sh stop` unmounts it and removes what start
# made. Both may be repeated.
#
# LAKE_MOUNT   where it is mounted          (/lake for root, ~/lake for others)
# LAKE_DIR     the demo's own lake          (/var/lib/lake-demo, ~/.local/share/lake-demo)
# LAKE_BIN     where lakectl and laked are  (build/bin)
set -eEuo pipefail
cd "$(dirname "$0")/../.."

if [ "$(id -u)" = 0 ]; then
	: "${LAKE_MOUNT:=/lake}" "${LAKE_DIR:=/var/lib/lake-demo}"
else
	: "${LAKE_MOUNT:=$HOME/lake}" "${LAKE_DIR:=${XDG_DATA_HOME:-$HOME/.local/share}/lake-demo}"
fi
: "${LAKE_BIN:=build/bin}"
LAKE_DIR=$(realpath -m "$LAKE_DIR")
LAKE_MOUNT=$(realpath -ms "$LAKE_MOUNT")
bin=$(realpath -m "$LAKE_BIN")
examples=$PWD/packaging/examples
export LAKE_DIR LAKE_MOUNT LAKE_AUDITS=$PWD/packaging/audits
. "$examples/publish.sh"
export PATH=$bin:$examples:$PATH
data=build/node/node_modules/vega-datasets/data
marker=$LAKE_DIR/.lake-demo # the demo made this directory and may remove it
lake=$LAKE_MOUNT
step=0 running=

die() {
	echo "demo: $*" >&2
	exit 1
}

failed() {
	echo >&2
	echo "demo: this step failed: ${running:-(setting up)}" >&2
	echo "demo: laked's log is $LAKE_DIR/laked.log; \`lakectl --lake $LAKE_DIR doctor\` checks this host" >&2
	exit 1
}

chapter() {
	step=$((step + 1))
	printf '\n\033[1m%d. %s\033[0m\n' "$step" "$1" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi
}

# Print a command as one would type it, then run it.
show() {
	running=$1
	printf '$ %s\n' "$1"
	eval "$1"
	running=
}

# -- what an earlier demo left --

mounted_source() { # the lake directory mounted at the mount point, if any is
	findmnt --noheadings --output SOURCE --types fuse.lake --mountpoint "$LAKE_MOUNT" 2>/dev/null | tail -n 1
}

unmount() {
	local source
	source=$(mounted_source || true)
	[ -n "$source" ] || return 0
	[ "$source" = "$LAKE_DIR" ] ||
		die "another lake ($source) is mounted at $LAKE_MOUNT; unmount it, or set LAKE_MOUNT"
	if lakectl -q umount "$LAKE_MOUNT" 2>/dev/null; then
		return 0
	elif stat "$LAKE_MOUNT" >/dev/null 2>&1; then
		lakectl umount "$LAKE_MOUNT" || die "leave $LAKE_MOUNT (close files, cd elsewhere) and try again"
	elif [ "$(id -u)" = 0 ]; then
		umount --lazy "$LAKE_MOUNT" # laked is gone: nothing answers there
	else
		fusermount3 -uz "$LAKE_MOUNT"
	fi
}

remove_remains() {
	local made_mount
	if [ ! -e "$LAKE_DIR" ]; then
		return 0
	elif [ ! -e "$marker" ]; then
		[ -z "$(ls -A "$LAKE_DIR")" ] ||
			die "$LAKE_DIR was not made by the demo, so it stays as it is; set LAKE_DIR to another directory"
		return 0
	fi
	made_mount=$(sed -n 's/^made //p' "$marker")
	rm -rf --one-file-system "$LAKE_DIR"
	[ -z "$made_mount" ] || rmdir "$made_mount" 2>/dev/null || true
}

prepare() {
	local program
	for program in lakectl laked; do
		[ -x "$bin/$program" ] || die "no $bin/$program; run make"
	done
	[ -e "$data/flights-3m.parquet" ] || die "no tables in $data; run tests/lib/install.sh demo"
	unmount
	remove_remains
	mkdir -p "$LAKE_DIR"
	echo "This lake is a demo; \`make demo-stop\` removes it." >"$marker"
	if [ ! -d "$LAKE_MOUNT" ]; then
		mkdir -p "$LAKE_MOUNT" || die "cannot make $LAKE_MOUNT; set LAKE_MOUNT to a directory of yours"
		echo "made $LAKE_MOUNT" >>"$marker"
	elif [ -n "$(ls -A "$LAKE_MOUNT")" ]; then
		die "$LAKE_MOUNT is not empty; set LAKE_MOUNT to another directory"
	fi
}

# -- the story --

tables_on_main() {
	chapter "Make a lake and mount it: every branch is a directory"
	show "lakectl init $LAKE_DIR"
	show "lakectl mount $lake"

	chapter "Tables on main, written by ordinary programs"
	show "data=$data"
	show "sql \"COPY (SELECT *, month(date) AS month
       FROM '\$data/flights-3m.parquet' WHERE date < '2001-07-01')
       TO '$lake/main/flights' (FORMAT parquet, PARTITION_BY (month))\""
	show "mkdir $lake/main/{airports,weather,movies}"
	show "cp \$data/airports.csv $lake/main/airports/"
	show "cp \$data/weather.csv $lake/main/weather/"
	show "cp \$data/movies.json $lake/main/movies/"
	show "du -hs $lake/main/*"
	show "lakectl commit main -m 'Flights of 2001, airports, weather, movies'"
	sleep 0.01
	before=$(date -u +%FT%T.%3NZ)
	sleep 0.01
}

change_on_dev() {
	chapter "A branch: nothing is copied"
	show "lakectl branch create dev main"
	show "ls $lake"

	chapter "On dev: June without the flights over three hours late, one more airport"
	show "sql \"COPY (SELECT * EXCLUDE month FROM '$lake/dev/flights/month=6/*.parquet'
       WHERE delay <= 180) TO '$lake/dev/flights/month=6/data_0.parquet'\""
	show "echo 'ZZZ,Example Field,Nowhere,AK,USA,61.5,-149.5' >>$lake/dev/airports/airports.csv"

	chapter "The same query on both: different answers"
	show "sql \"SELECT m.*, d.flights AS dev_flights, d.delay AS dev_delay FROM
       (SELECT month, count(*) AS flights, avg(delay) AS delay
          FROM '$lake/main/flights/*/*.parquet' GROUP BY month) m JOIN
       (SELECT month, count(*) AS flights, avg(delay) AS delay
          FROM '$lake/dev/flights/*/*.parquet' GROUP BY month) d USING (month) ORDER BY month\""
	show "sql \"SELECT (SELECT count(*) FROM '$lake/main/airports/*.csv') AS main_airports,
            (SELECT count(*) FROM '$lake/dev/airports/*.csv') AS dev_airports\""
}

merge_dev() {
	chapter "Commit, look at the difference"
	show "lakectl commit dev -m 'June: drop flights over three hours late' --meta ticket=DATA-7"
	show "lakectl diff main dev --stat"

	chapter "Meanwhile main moves on; then dev is merged, path by path"
	show "echo 'Seattle,2016-01-01,0.0,8.3,-1.1,2.1,sun' >>$lake/main/weather/weather.csv"
	show "lakectl commit main -m 'Weather of New Year 2016'"
	show "lakectl merge dev main --dry-run"
	show "lakectl merge dev main"
	show "lakectl log main --graph -n 2"
}

travel() {
	chapter "Time travel: a tag, an ancestor, a moment; each is a directory"
	show "lakectl tag create before-dev main~1"
	show "sql \"SELECT 'main' AS revision, count(*) AS june FROM '$lake/main/flights/month=6/*.parquet' UNION ALL
     SELECT '@before-dev', count(*) FROM '$lake/@before-dev/flights/month=6/*.parquet' UNION ALL
     SELECT '@main~2', count(*) FROM '$lake/@main~2/flights/month=6/*.parquet' UNION ALL
     SELECT '@main@TIME', count(*) FROM '$lake/@main@$before/flights/month=6/*.parquet'\""
	show "tail -n 1 $lake/@main~2/weather/weather.csv"
	show "tail -n 1 $lake/main/weather/weather.csv"
}

farewell() {
	cat <<-END

		The lake stays mounted at $lake. Next, perhaps:

		    export PATH=$bin:$examples:\$PATH
		    cd $lake/dev                      # the branch is known from here
		    lakectl branch create try; ls $lake/try
		    echo hello >notes.txt; lakectl status; lakectl commit -m 'A note'
		    lakectl annotate main:flights/month=6
		    sql "SELECT Title FROM '$lake/main/movies/*.json' LIMIT 5"
		    cd; lakectl --lake $LAKE_DIR publish --dry-run dev   # main is closed: see \`audit list main\`
		    man $PWD/packaging/man/lakectl.1

		\`make demo-stop\` ends it and removes $LAKE_DIR.
	END
}

start() {
	prepare
	trap failed ERR
	tables_on_main
	change_on_dev
	merge_dev
	travel
	write_audit_publish
	trap - ERR
	farewell
}

stop() {
	if [ -e "$LAKE_DIR" ] && [ ! -e "$marker" ]; then
		die "$LAKE_DIR was not made by the demo; nothing was removed"
	elif [ ! -e "$marker" ]; then
		echo "No demo is there: nothing to stop."
		return 0
	fi
	unmount
	remove_remains
	echo "The demo's lake is unmounted and removed."
}

case ${1:-} in
start) start ;;
stop) stop ;;
*)
	echo "usage: $0 start|stop" >&2
	exit 2
	;;
esac
