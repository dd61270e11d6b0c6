# The demo's second half, read by demo.sh: main is closed, an ingest with a fault is refused, mended,
# published and taken back; a conflict is decided; and the ways back.

# A command that must be refused with this exit code.
show_refused() {
	local code=0 want=$1
	running=$2
	printf '$ %s\n' "$2"
	eval "$2" || code=$?
	[ "$code" = "$want" ] || { echo "demo: exit code $code instead of $want" >&2 && false; }
	running=
}

# What the ingest of May's corrections writes, given what it makes of the delay.
may() {
	printf '%s' "COPY (SELECT date, $1, distance, origin, destination FROM '\$data/flights-3m.parquet'
       WHERE month(date) = 5 AND distance > 50)
       TO '$lake/ingest/flights/month=5/data_0.parquet' (FORMAT parquet)"
}

close_main() {
	chapter "Main is closed: what gets there has passed these, on whatever host"
	show "lakectl audit add main delay-known --path 'flights/**' -- not-null delay origin destination"
	show "lakectl audit add main schema --path 'flights/**' -- schema"
	show "lakectl audit add main airports-known --path 'flights/**' --path 'airports/**' \\
       -- foreign-key --table flights origin airports/airports.csv:iata"
	show "lakectl protect main --no-direct-writes --require-audits"
	show_refused 1 "touch $lake/main/flights/x"
	show_refused 4 "lakectl reset main main~1"
}

count_may() {
	show "sql \"SELECT count(*) AS may, count(delay) AS with_delay FROM '$lake/main/flights/month=5/*.parquet'\""
}

publish_may() {
	chapter "An ingest of May's corrections, on a branch where no consumer reads; it has a fault"
	show "lakectl branch create ingest main"
	show "sql \"$(may "nullif(delay, 120) AS delay")\""
	show "lakectl commit ingest -m 'May, corrected'"
	show_refused 4 "lakectl publish ingest -m 'May, corrected'"

	chapter "Mended, audited again, published: consumers see all of it at once"
	show "sql \"$(may delay)\""
	show "lakectl commit ingest -m 'May: a delay of two hours is a delay'"
	show "lakectl publish ingest -m 'May, corrected'"
	count_may
	show "lakectl show main"
	show "lakectl audit log main -n 3"

	chapter "Too early, somebody says: taken back, by a commit that is audited, too"
	show "lakectl publish --revert main"
	count_may
}

decide_conflict() {
	chapter "Two branches change one file: a conflict changes nothing, and both versions can be read"
	show "lakectl branch create a main; lakectl branch create b main"
	show "sed -i 's/^SEA,[^,]*/SEA,Seattle-Tacoma International/' $lake/a/airports/airports.csv"
	show "sed -i 's/^SEA,[^,]*/SEA,Sea-Tac/' $lake/b/airports/airports.csv"
	show "lakectl commit a -m 'Full name'; lakectl commit b -m 'Short name'"
	show "lakectl publish a"
	show_refused 3 "lakectl publish b"
	show "lakectl publish b --take target:airports/airports.csv"
}

go_back() {
	chapter "Every way back, on a branch: a move, a table, a moment"
	show "lakectl branch create back main; rm -r $lake/back/flights; lakectl commit back -m 'Oops'"
	show "lakectl undo back; ls $lake/back/flights"
	show "rm -r $lake/back/airports; lakectl restore back --from before-dev -- airports; tail -n 1 $lake/back/airports/airports.csv"
	show "lakectl reset back main@$before --discard; lakectl reflog back"
}

write_audit_publish() {
	close_main
	publish_may
	decide_conflict
	go_back
}
