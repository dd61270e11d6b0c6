#!/usr/bin/env bash
# What the tree promises about itself: headers compile alone, folders include only what they may,
# third-party headers have one home, files that are named exist, the format, lengths that may only
# shrink. Prints TAP.
set -u
cd "$(dirname "$0")/../.."
number=0 status=0

verdict() { # NAME OUTPUT: nothing in OUTPUT means good
	number=$((number + 1))
	if [ -z "$2" ]; then
		echo "ok $number - $1"
	else
		echo "not ok $number - $1"
		printf '%s\n' "$2" | sed 's/^/# /'
		status=1
	fi
}

flags="-I. -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -std=gnu17 -Wall -Wextra -Wno-unused-parameter"
export flags="$flags $(pkg-config --cflags fuse3 libcjson lmdb libzstd libcrypto libcurl expat)"

headers_alone() {
	local header
	for header in store/*.h cache/*.h refs/*.h fs/*.h fs/*/*.h tools/*.h; do
		# shellcheck disable=SC2086
		echo "#include \"$header\"" | gcc $flags -Werror -fsyntax-only -xc - 2>&1 | head -n 3
	done
}

# folder: the folders whose headers it may include
direction() {
	local rule folder allowed
	for rule in "store:store" "cache:cache store" "refs:refs store" "fs:fs refs cache store" \
		"tools:tools fs refs cache store"; do
		folder=${rule%%:*} allowed=${rule#*:}
		grep -rHn --include='*.[ch]' '#include "' "$folder" |
			grep -vE "#include \"(${allowed// /|})/" || true
	done
	# Working trees know nothing of who mounts them, commands them or publishes; fs/lake puts a lake together.
	grep -Hn '#include "fs/[a-z]*/' fs/*.[ch] | grep -vE '^fs/lake\.[ch]:' || true
}

# header pattern: the only files that may include it
homes() {
	local rule
	for rule in 'lmdb.h>:store/kv.c' 'curl/:store/object_s3' 'fuse_lowlevel.h>:fs/mount/fuse_' \
		'fuse3/:fs/mount/fuse_' 'openssl/:store/base.c store/s3_sign' 'zstd.h>:store/codec.c' \
		'expat.h>:store/s3_xml.c' 'cjson/:fs/commands/ fs/json fs/lake.c store/s3_credentials.c tools/'; do
		local what=${rule%%:*} pattern
		pattern=$(printf '%s' "${rule#*:}" | sed 's/ /|/g')
		grep -Hn "#include <.*$what" {store,cache,refs,fs,fs/*,tools}/*.[ch] 2>/dev/null |
			grep -vE "^($pattern)" || true
	done
}

formatted() {
	command -v clang-format >/dev/null || return 0
	local file
	for file in {store,cache,refs,fs,fs/*,tools}/*.[ch] tests/{unit,fuzz,lib}/*.[ch]; do
		[ -e "$file" ] || continue
		clang-format --dry-run "$file" 2>&1 | grep -m1 warning | cut -c1-160
	done
}

# Files that comments and maps name, and that are not there.
named_files() {
	local place line name
	grep -rnoE '\b(fs|store|refs|cache|tools|tests|packaging)/[A-Za-z0-9_/.-]+\.(c|h|md|py|sh|txt|service)\b' \
		Makefile ./*.md store cache refs fs tools tests packaging --include='*.[ch]' --include='*.md' \
		--include='*.py' --include='*.sh' --include=Makefile |
		while IFS=: read -r place line name; do
			[ -e "$name" ] || [ -e "$(dirname "$place")/$name" ] || echo "$place:$line: there is no $name"
		done
}

# Longer than the rule and not in the list, or in the list with a smaller number.
lengths() {
	awk -v allowed=tests/lib/lengths.txt '
	BEGIN {
		while ((getline line < allowed) > 0) {
			if (split(line, part, " ") == 2) limit[part[1]] = part[2]
		}
	}
	FNR == 1 { if (file) judge(file, lines, 1000); file = FILENAME }
	{ lines = FNR }
	/^[a-zA-Z].*\(/ && !/;$/ { name = $0; sub(/\(.*/, "", name); sub(/.*[ *]/, "", name) }
	/^{/ { start = FNR; inside = 1 }
	/^}/ && inside { inside = 0; judge(FILENAME ":" name, FNR - start - 1, 70) }
	END { judge(file, lines, 1000) }
	function judge(what, length_, rule) {
		if (what in limit) rule = limit[what]
		if (length_ > rule) print what ": " length_ " lines, at most " rule
	}' {store,cache,refs,fs,fs/*,tools}/*.[ch] tests/unit/*.c
}

marks() {
	grep -HnE '\b(TODO|FIXME|XXX|HACK)\b' {store,cache,refs,fs,fs/*,tools}/*.[ch] tests/*/*.[ch] || true
}

tidy() {
	command -v clang-tidy >/dev/null || return 0
	# What the compiler is told comes after the files' names.
	# shellcheck disable=SC2016
	printf '%s\n' {store,cache,refs,fs,fs/*,tools}/*.c |
		xargs -P 2 -n 8 sh -c 'clang-tidy --quiet --warnings-as-errors="*" -checks="$0" "$@" -- $flags 2>/dev/null || echo "error: clang-tidy found fault in one of $*"' \
			"$(tr '\n' ',' <tests/lib/tidy.txt)" |
	grep -E '(error|warning):' | head -n 20
}

verdict "every header compiles alone" "$(headers_alone)"
verdict "folders include only what they may" "$(direction)"
verdict "third-party headers have one home" "$(homes)"
verdict "files that are named exist" "$(named_files)"
verdict "clang-format" "$(formatted)"
verdict "functions up to 70 lines, files up to 1,000" "$(lengths)"
verdict "nothing unfinished by its own words" "$(marks)"
verdict "clang-tidy" "$(tidy)"
echo "1..$number"
exit $status
