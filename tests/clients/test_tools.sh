#!/usr/bin/env bash
# What people do with files all day: rsync, tar, cp, dd, editors, find, du, shells side by side. On a branch and on a
# disk, compared in what is said and what is left; then committed, merged and looked at again.
source "$(dirname "$0")/../lib/tap.sh"
source "$root/tests/lib/sides.sh"
export LC_ALL=C.UTF-8 TZ=UTC

needs=([cpio]=cpio [zip]="zip unzip" [vim]=vim [in_place]="ed perl patch" [inotify]=inotifywait)
for name in copies revision changes appends snapshots; do
	needs[rsync_$name]=rsync
done
soon() { # COMMAND: wait until it succeeds
	local i
	for ((i = 0; i < 500; i++)); do
		"$@" && return
		sleep 0.02
	done
	echo "in vain: $*"
	return 1
}

# --- rsync

on_rsync_copies() {
	rsync -aHAX --inplace "$SRC/" copy/ && rsync -aHAX --inplace copy/ "$OTHER/back/"
	echo "again:"
	rsync -aHAXi copy/ "$OTHER/back/"
	rsync -aHAXic --delete "$SRC/" copy/
	echo "back: $(rsync -aHAXin "$OTHER/back/" "$SRC/")"
}
on_rsync_revision() {
	rsync -aHAX "$REV/" copy/
	rsync -aHAXi "$REV/" copy/
	rsync -aHAXic --delete "$REV/" copy/
}
on_rsync_changes() {
	rsync -aS "$SRC/" copy/
	echo more >>copy/many/003.txt
	rm copy/many/004.txt copy/zero
	echo extra >copy/extra
	mkdir -p copy/gone/deeper && touch copy/gone/deeper/file
	printf XX | dd of=copy/big bs=1 seek=1500000 conv=notrunc status=none
	rsync -aSi --delete --no-whole-file "$SRC/" copy/ | sort
	rsync -aSi --delete "$SRC/" copy/
}
on_rsync_appends() {
	head -c 1000000 "$SRC/big" >big
	head -c 2000000 "$SRC/big" >"verified"
	rsync -a --append "$SRC/big" big && cmp big "$SRC/big"
	rsync -a --append-verify "$SRC/big" verified && cmp verified "$SRC/big"
	mkdir partial && head -c 100000 "$SRC/big" >partial/big
	rsync -a --partial --partial-dir="$PWD/partial" --no-whole-file "$SRC/big" third && cmp third "$SRC/big"
	rsync -a --inplace --no-whole-file --bwlimit=100M "$SRC/sparse" in-place && cmp in-place "$SRC/sparse"
	rsync -a --delay-updates --backup --suffix=.bak "$SRC/many/" delayed/
	rsync -a --delay-updates --backup --suffix=.bak --ignore-times "$SRC/many/" delayed/
	ls delayed | wc -l
}
on_rsync_snapshots() {
	rsync -a "$SRC/many/" first/
	rsync -a "$SRC/many/" source/ && echo changed >source/001.txt
	rsync -a --link-dest=../first source/ second/
	find second -type f -links 2 | wc -l
	stat -c '%h %n' second/001.txt second/002.txt
}

# --- tar, cpio, zip

on_tar() {
	tar --sparse --xattrs -cf all.tar -C "$SRC" .
	mkdir out && tar --sparse --xattrs --xattrs-include='*' --numeric-owner -xpf all.tar -C out
	rm all.tar
}
on_tar_incremental() {
	cp -a "$SRC/many" .
	tar --listed-incremental=snar -cf 0.tar many && tar -tf 0.tar | wc -l
	echo changed >many/005.txt
	echo new >many/new
	rm many/006.txt
	tar --listed-incremental=snar -cf 1.tar many
	tar -tf 1.tar
	tar --listed-incremental=snar -cf 2.tar many
	tar -tf 2.tar
	mkdir out && for level in 0 1 2; do tar --listed-incremental=/dev/null -xpf $level.tar -C out; done
	diff -r many out/many
	rm ./*.tar snar
}
on_tar_revision() {
	tar -cf rev.tar --sort=name -C "$REV" . && sha256sum <rev.tar
	tar --sort=name --exclude=deep -czf - -C "$REV" . | tar -xzpf - && ls
	tar -df rev.tar -C "$REV" && echo no difference
	rm rev.tar
}
on_cpio() {
	(cd "$SRC" && find . -depth ! -name device -print0 | sort -z | cpio -0o -Hnewc 2>/dev/null) >all.cpio
	mkdir out && (cd out && cpio -idmu --quiet --no-absolute-filenames <../all.cpio)
	(cd "$SRC/many" && find . -print0 | cpio -0pdm --quiet "$PWD/pass" 2>&1) | head -3
	(cd "$SRC" && find many -print0 | cpio -0pldm --quiet "${OTHER%/*}/cpio" 2>&1) | sort | head -2
	rm all.cpio
}
on_zip() {
	(cd "$SRC" && zip -qryX - many to-big dangling big) >all.zip
	unzip -q all.zip -d out && diff -r --no-dereference "$SRC/many" out/many && echo alike
	zip -qu all.zip out/many/001.txt && zip -qd all.zip 'many/00*' && unzip -tq all.zip
	unzip -Z1 all.zip | wc -l
	rm all.zip
}

# --- coreutils

on_cp() {
	cp -a "$SRC" copy
	cp -a --sparse=always "$SRC/sparse" always
	cp --sparse=never "$SRC/sparse" never
	cp --sparse=auto "$SRC/sparse" auto
	cp --sparse=always "$REV/sparse" from-revision
	cp -a --sparse=always "$REV" revision
	cp -al copy links && stat -c %h links/big links/sparse copy/zero
	cp -Rs --preserve=mode,timestamps "$PWD/copy" symbolic # of hard links the first one found would count
	cp -ru copy links
	cp -r --parents copy/deep/er/est sub 2>&1
	mkdir sub && cp -r --parents copy/deep/er/est sub
	cp --backup=numbered never auto && cp -f copy/big copy/zero
	cmp always never && cmp auto from-revision && ls
}
on_clones() {
	cp --reflink=auto "$SRC/big" auto && cmp auto "$SRC/big"
	cp --reflink=always "$SRC/big" always 2>&1 | sed 's/: [A-Z].*//'
	cp --reflink=auto "$REV/big" from-revision && cmp from-revision auto
	cp --reflink=auto "$SRC/big" "$OTHER/big" && cmp "$OTHER/big" auto
	rm -f always
	python3 - "$SRC" "$REV" "$OTHER" <<'END'
import os, sys
source, revision, other = sys.argv[1:]
for number, (path, to) in enumerate(((source, "."), (source, other), (revision, "."), (other, "."))):
    with open(path + "/big", "rb") as file, open(f"{to}/ranges{number}", "w+b") as copy:
        want = file.read()
        copy.truncate(1000)
        done = 0
        while done < len(want) - 5:
            n = os.copy_file_range(file.fileno(), copy.fileno(), 1 << 20, done + 5, done + 700)
            assert n > 0
            done += n
        copy.seek(0)
        print(copy.read() == bytes(700) + want[5:], os.sendfile(copy.fileno(), file.fileno(), 0, 1000))
with open("auto", "r+b") as file:
    try:
        print(os.copy_file_range(file.fileno(), file.fileno(), 1000, 0, 500))
    except OSError as error:
        print("overlapping:", error.strerror)
    print(os.copy_file_range(file.fileno(), file.fileno(), 1000, 0, 2000000))
END
}
on_mv() {
	cp -a "$SRC" tree
	mv tree renamed && mv renamed/many . && mv many/000.txt many/001.txt && mv -n many/002.txt many/003.txt
	mv renamed "$OTHER/" && ls -A . "$OTHER"
	mv "$OTHER/renamed" back && mv "$OTHER" back/inner && mkdir "$OTHER"
	mv -T many back 2>&1
	mv back/empty ./-e && mv ./-e many/ && mv many many/inside 2>&1
	mv --exchange x y 2>/dev/null
	python3 - <<'END'
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for flags, a, b in ((2, b"back", b"many"), (1, b"back", b"many"), (1, b"back", b"fresh"), (3, b"fresh", b"x"), (2, b"fresh", b"none")):
    r = libc.renameat2(-100, a, -100, b, flags)
    print(flags, a, b, r, errno.errorcode.get(ctypes.get_errno()) if r else "")
END
	ls
}
on_dd() {
	dd if="$SRC/sparse" of=holes bs=64k conv=sparse status=none
	dd if="$SRC/sparse" of=holes bs=4096 skip=2 seek=7 count=100 conv=notrunc status=none
	dd if="$SRC/big" of=direct bs=4096 oflag=direct count=500 status=none
	dd if=direct of=direct-read bs=64k iflag=direct status=none && cmp direct direct-read
	dd if="$REV/big" of=rev bs=64k iflag=direct status=none && cmp rev "$SRC/big"
	dd if="$SRC/big" of=rev oflag=append conv=notrunc bs=100k count=3 status=none
	dd if="$SRC/big" of=synced oflag=sync,nofollow bs=1M conv=fsync status=none
	dd if=/dev/zero of=excl conv=excl count=1 status=none && dd if=/dev/zero of=excl conv=excl count=1 status=none
	printf 123456789 | dd of=rev bs=3 seek=1000 conv=notrunc,fdatasync status=none
	dd if=rev bs=1 skip=2990 count=30 status=none | od -c
	dd if="$SRC/big" of=seeked seek=9 bs=1M status=none; stat -c '%s' seeked
	dd if=/dev/null of=seeked seek=100 bs=1 status=none; stat -c '%s' seeked
}
on_sizes() {
	truncate -s 1G huge && truncate -s -1M huge && truncate -s %4096 huge && truncate -s +5 huge && stat -c '%s %b' huge
	printf end >>huge && tail -c 5 huge | od -c
	truncate -r "$SRC/big" like && truncate -s '<1000' like && truncate -s '>77' like && stat -c %s like
	fallocate -l 1M filled && stat -c '%s %b' filled
	fallocate -n -l 3M filled && stat -c '%s %b' filled
	cp "$SRC/big" punched && fallocate -p -o 500000 -l 1000000 punched && stat -c %s punched
	fallocate -z -o 1 -l 99 punched && fallocate -z -o 2999000 -l 20000 punched && stat -c %s punched
	cp "$SRC/sparse" dug && fallocate -d dug && stat -c '%s' dug
	truncate -s 5 "$REV/big" 2>&1
	truncate -s 9P huge 2>/dev/null || echo too large
	:
}
on_text() {
	for i in {1..3000}; do echo "$((i * 7919 % 3001)) line $i"; done >lines
	mkdir tmp && sort -n -S 32k -T tmp --parallel=2 lines -o sorted && sort -c -n sorted && ls tmp
	sort -n lines -o lines && cmp lines sorted
	split -b 10k lines part. && cat part.* | cmp - lines && ls | wc -l
	split -n l/5 --additional-suffix=.x lines five. && cat five.*.x | cmp - lines
	csplit -s -f cut lines 100 '{3}' && cat cut* | cmp - lines
	tee copy1 copy2 <lines >/dev/null && tee -a copy1 <lines >/dev/null && wc -l copy1 copy2 | head -2
	shuf --random-source="$SRC/big" lines -o lines && sort -n lines | cmp - sorted
	tac sorted >reverse && paste sorted reverse | join - sorted >joined 2>&1; wc -l joined
	comm -12 <(sort lines) <(sort sorted) | wc -l
	sponge <lines lines 2>/dev/null
	uniq -c lines | tail -1 >/dev/null; nl lines | md5sum
	install -D -m 0751 lines sub/dir/installed && install -d -m 1777 sticky && install -b -m 600 sorted sub/dir/installed
	stat -c '%a %n' sub/dir/* sticky
}
on_shred() {
	cp "$SRC/big" secret && cp secret keep && shred -n 1 -z secret && tr -d '\0' <secret | wc -c
	shred -n 1 -u keep && ls
	cp "$SRC/many/001.txt" small && shred -u --remove=wipesync small && ls
}
on_links() {
	echo one >one && ln one two && ln -s one sym && ln -sf two sym && ln -sfn "$SRC" sym && ln -f "$SRC/big" one 2>&1
	ln -s "$(printf %4090s | tr ' ' x)" long && readlink long | wc -c
	ln -r -s two relative && readlink relative
	ln sym/zero other && stat -c %h "$SRC/zero" && rm other
	ln "$SRC/big" "$OTHER/big" 2>/dev/null || echo crosses
	rm -f "$OTHER/big" one
	ln -s loop loop && cat loop 2>&1
	ln -P relative relative2 && ln -L relative followed && stat -c '%F %h' relative2 followed
	ln . dot 2>&1; ln -s x two 2>&1
	mktemp -p . XXXXXX >/dev/null && mktemp -d -p . dXXXXXX >/dev/null && ls | wc -l
	stat -c '%a' ./??????  | sort | tail -1
	rm -rf ./?????? ./d??????
	unlink two; rmdir . 2>&1; rmdir none 2>&1
	mkdir -m 750 -p a/b/c && rmdir -p a/b/c && ls
	:
}

on_modes() {
	cp -a "$SRC/many" . && chmod -R u=rwX,go= many && chmod +x many/010.txt && chmod u+s,g+s many/010.txt
	stat -c '%a' many/010.txt && echo x >>many/010.txt && stat -c '%a' many/010.txt
	chown -R 1000:1000 many && chown 1:2 many/011.txt && chgrp 5 many/012.txt && stat -c '%a %u %g' many/01[0-2].txt
	chmod 4755 many/013.txt && chown 7 many/013.txt && stat -c %a many/013.txt
	umask 077 && touch private && mkdir closed && mkdir -m 2775 shared && touch shared/of-group && stat -c %a private closed shared
	chgrp 1000 shared && touch shared/inherits && mkdir shared/below && stat -c '%a %g' shared/*
	touch -d '1999-01-01 00:00:00.123456789' dated && stat -c '%y %x' dated
	touch -d '2106-03-04 05:06:07.000000001' late && touch -d '1960-01-01 12:00:00.5' early && stat -c %y late early
	touch -a -d '2001-01-01' dated && touch -m -d '2002-02-02' dated && stat -c '%x %y' dated
	touch -r dated same && touch -h -d '2003-03-03' link 2>&1; ln -s x link && touch -h -d '2003-03-03' link && stat -c %y link
	setfattr -n user.a -v 1 dated && setfattr -n user.b -v 0x00ff dated && getfattr -d dated && setfattr -x user.a dated && getfattr dated
	setfattr -n user.c -v 1 link 2>&1
	setfattr -n trusted.t -v 1 same 2>&1; getfattr -m - -d same
	:
}

# --- editors

on_vim() {
	local writebackup n=0
	for writebackup in yes no auto; do
		cp -p "$SRC/many/01$n.txt" "file$n" && chmod 741 "file$n" && chown 1234:100 "file$n" && ln "file$n" "link$n"
		vim -Nu NONE -es -c "set backupcopy=$writebackup backup writebackup" -c "normal ggOin front" \
			-c "wq" "file$n"
		stat -c '%a %u %g %h %n' "file$n" "link$n" "file$n~"
		n=$((n + 1))
	done
	vim -Nu NONE -es -c "set backupcopy=no nowritebackup noswapfile" -c "normal Glast" -c wq file0
	printf 'a\nb\n' >two && vim -Nu NONE -es -c "set directory=." -c "edit two" -c "preserve" -c "let s=swapname('%')" \
		-c "call writefile([fnamemodify(s, ':t')], 'swap')" -c "1d" -c "wq" two
	cat swap two && ls -A
}
on_in_place() {
	cp -a "$SRC/many" . && sed -i 's/some/other/' many/*.txt && grep -l some many/* | wc -l
	sed -i.bak 's/other/third/' many/02*.txt && ls many/*.bak | wc -l
	ln -s many/030.txt link && sed -i --follow-symlinks 's/other/linked/' link && grep -c linked many/030.txt
	chmod 751 many/031.txt && chown 1234:100 many/031.txt && sed -i 's/o/0/' many/031.txt && stat -c '%a %u %g' many/031.txt
	perl -pi -e 's/other/pearl/' many/04*.txt && perl -pi.orig -e 's/pearl/gem/' many/041.txt && cat many/041.txt* | md5sum
	printf '1i\nfirst\n.\nw\nq\n' | ed -s many/042.txt && head -1 many/042.txt
	printf 'g/pearl/s//x/\nw\nq\n' | ed -s many/042.txt
	awk -i inplace '{print NR ": " $0}' many/043.txt 2>/dev/null; patch -s many/044.txt <<<"" 2>/dev/null
	diff -u many/045.txt many/046.txt >p; patch -s -b many/045.txt p && cmp many/045.txt many/046.txt && patch -s -R many/045.txt p
	ls -A many | wc -l
}
on_atomic_saves() {
	python3 - <<'END'
import os, tempfile
open("kept", "w").write("old\n")
os.chmod("kept", 0o640); os.chown("kept", 1234, 100)
reader = open("kept")
directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
for turn in range(20):
    status = os.stat("kept")
    with tempfile.NamedTemporaryFile("w", dir=".", delete=False) as file:
        file.write(f"turn {turn}\n")
        file.flush()
        os.fchmod(file.fileno(), status.st_mode & 0o7777)
        os.fchown(file.fileno(), status.st_uid, status.st_gid)
        os.fsync(file.fileno())
    os.replace(file.name, "kept")
    os.fsync(directory)
print(reader.read(), open("kept").read(), oct(os.stat("kept").st_mode), os.fstat(reader.fileno()).st_nlink)
with tempfile.TemporaryFile(dir=".") as nameless:  # O_TMPFILE where there is one
    nameless.write(b"x" * 100000)
    nameless.seek(0)
    print(len(nameless.read()), os.listdir("."))
fd = os.open("unlinked", os.O_RDWR | os.O_CREAT)
os.write(fd, b"still here"); os.unlink("unlinked")
print(os.pread(fd, 20, 0), os.fstat(fd).st_nlink, os.path.exists("unlinked"))
os.ftruncate(fd, 5); print(os.pread(fd, 20, 0))
try:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"linked later")
    os.link(f"/proc/self/fd/{fd}", "from-tmpfile", follow_symlinks=True)
except OSError:
    open("from-tmpfile", "w").write("linked later")
    os.chmod("from-tmpfile", 0o600)
END
}

# --- find, du, walks

on_find() {
	cp -a "$SRC" tree && cd tree || return
	find . -xdev -printf '%p|%y|%m|%s|%U|%G|%T@|%l|%d\n' | grep -av '|d|' | sort -z | sort
	find . -type f -newer big | sort; find . -type f -links +1 | sort; find . -type f -empty -o -type d -empty | sort
	find . -inum "$(stat -c %i deep/one)" | sort; find . -samefile deep/one | sort; find . -size +1M | sort
	find . -size 0 -type f; find . -perm -4000; find . -user 1234 -o -nouser -print | sort; find -L . -type l; find . -type p
	find . -mindepth 2 -type d | sort; find . -noleaf -type d | wc -l; find . -name '*.txt' -newermt 2020-01-01
	find . -path '*/many/*' -name '00*' -delete && find . | wc -l
	find . -depth -type d -empty -exec rmdir {} +
	find . -name '*.txt' -print0 | xargs -0 -P 4 -n 5 rm && ls many
	find . -inum 1 -o -name '[[:cntrl:]]' | wc -l
	ls -R . | wc -l; ls -A | wc -l
}
on_du() {
	cp -a "$SRC" tree && du --apparent-size -b --exclude='.' -a tree | awk '{print $1}' | wc -l
	find tree -type f -printf '%s\n' | awk '{n += $1} END {print n}'
	[ "$(du -k tree/sparse | cut -f1)" -lt 1000 ] && echo sparse
	[ "$(du -k tree/big | cut -f1)" -ge 2900 ] && [ "$(du -k tree/big | cut -f1)" -lt 3100 ] && echo as large as it is
	du -b "$REV/big" | cut -f1
	du -l -b tree/deep/one tree/one-again | cut -f1; du -b tree/deep/one tree/one-again | wc -l
	df . >/dev/null && df --output=target "$SRC" | wc -l && [ "$(df --output=avail -k . | tail -1)" -gt 1000 ] && echo room
	stat -f -c %l . && [ "$(stat -f -c %a .)" -gt 100 ] && echo free
	[ "$(ls -lai tree)" = "$(ls -lai tree)" ] && echo stable
}
on_walks_while_renaming() {
	cp -a "$SRC/many" . && mkdir a b
	(for i in {1..60}; do mv many/0$((10 + i % 50)).txt a/x && mv a/x many/0$((10 + i % 50)).txt; mv a/ c && mv c a; done) &
	local renamer=$! n=0
	while kill -0 $renamer 2>/dev/null; do
		n=$((n + 1))
		find many -name '00*.txt' | wc -l >>counts
		ls -f many | grep -c '^00' >>counts
		tar -cf /dev/null many 2>/dev/null
	done
	wait $renamer
	sort -u counts && rm counts && ls many | wc -l && ls a b
}

# --- several processes

on_locks() {
	touch lock && (flock -x 9 && echo first && touch held && sleep 0.2 && echo first done) 9>lock &
	soon test -e held
	flock -n lock true || echo taken
	flock -s -n lock true || echo taken for reading, too
	flock lock echo second
	wait
	flock -s lock flock -s -n lock echo shared
	rm held
	for i in {1..4}; do
		(for j in {1..10}; do flock lock sh -c 'n=$(cat count 2>/dev/null); echo $((n + 1)) >count'; done) &
	done
	wait
	cat count
}
on_races() {
	seq 200 | xargs -P 8 -n 1 sh -c 'mkdir -p "d/$(($0 % 7))/e/$(($0 % 3))" || echo failed; : >"d/$(($0 % 7))/e/f$0"'
	find d -type f | wc -l && find d -type d | wc -l
	find d -type f | sort | head -100 | xargs -P 8 -n 5 rm -f
	(rm -rf d & rm -rf d & rm -rf d & wait) 2>/dev/null
	ls
	for i in {1..4}; do (for j in {1..25}; do echo "$i $j" >>appended; done) & done
	wait
	sort -n appended | md5sum && sort -n appended -o appended
	for i in {1..4}; do (for j in {1..20}; do mkdir lockdir$j 2>/dev/null && echo won >>won; done) & done
	wait
	wc -l <won
	for i in {1..4}; do (for j in {1..20}; do ln "$SRC/zero" one$j 2>/dev/null && echo won >>won; done) & done
	wait
	wc -l <won
}
on_tail() {
	echo 0 >log
	tail -n +1 -s 0.05 -F log >"$OTHER/seen" 2>/dev/null &
	local tail=$! i
	soon grep -qs 0 "$OTHER/seen"
	for i in 1 2 3; do echo $i >>log; done
	soon grep -q 3 "$OTHER/seen"
	echo 4 >new && mv new log
	soon grep -q 4 "$OTHER/seen"
	echo 5 >>log
	soon grep -q 5 "$OTHER/seen"
	kill $tail
	sort -u "$OTHER/seen"
}
on_inotify() {
	inotifywait -m -q -r -e create,modify,move,delete,attrib,close_write --format '%e %w%f' . >"$OTHER/events" 2>&1 &
	local watcher=$!
	soon grep -qs inotify "/proc/$watcher/fdinfo/3"
	echo a >a && mv a b && chmod 600 b && ln b c && rm b && mkdir d && rmdir d && cp c e && truncate -s 3 e
	soon grep -q 'MODIFY ./e' "$OTHER/events"
	sleep 0.05
	kill $watcher
	grep -v "^Couldn't watch new directory ./d/" "$OTHER/events" | uniq # gone again before it got to that
	rm "$OTHER/events"
}

# What somebody who watches a branch gets to see of a merge into it: who has the file open keeps it, who looks again
# sees the new one. (`tail -F` does not: a path keeps its inode number over merges.)
seen_of_a_merge() { # WORD
	echo old >"$mnt/dev/log" && lakectl -q --lake "$lake" commit dev -m old && lakectl -q --lake "$lake" merge dev main
	exec 7<"$mnt/main/log"
	echo newer >>"$mnt/dev/log" && sed -i 's/^old/replaced/' "$mnt/dev/log"
	lakectl -q --lake "$lake" commit dev -m new && lakectl -q --lake "$lake" merge dev main
	check "$1: what a merge made of a file is seen" equal "$(tr '\n' ' ' <"$mnt/main/log")" "replaced newer "
	check "$1: who has it open reads what it was" equal "$(cat <&7)" old
	exec 7<&-
	echo last >>"$mnt/main/log"
	check "$1: and it is appended to" equal "$(tr '\n' ' ' <"$mnt/main/log")" "replaced newer last "
	lakectl -q --lake "$lake" commit main -m last
}
other_limits() { # WORD: what is refused here and not on the disk
	cp "$mnt/dev/src/big" "$mnt/dev/limits"
	check_exit 1 "$1: no range is cut out of a file" fallocate -c -o 0 -l 4096 "$mnt/dev/limits"
	check "$1: which says why" contains "not supported" "$scratch/out"
	check_exit 1 "$1: blocks are not shared on demand" cp --reflink=always "$mnt/dev/limits" "$mnt/dev/limits2"
	if command -v setfacl >/dev/null; then
		check_exit 1 "$1: no access control lists" setfacl -m u:1:r "$mnt/dev/limits"
		check "$1: which says why, too" contains "not supported" "$scratch/out"
	fi
	check "$1: the file is as it was" cmp "$mnt/dev/src/big" "$mnt/dev/limits"
	check "$1: holes of a committed file are found" python3 -c 'import os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
assert os.lseek(file, 0, os.SEEK_HOLE) < os.fstat(file).st_size // 2' "$mnt/@main/src/sparse"
}

disk_side
number=0
for way in "${ways[@]}"; do
	number=$((number + 1)) word=${way%%|*}
	if ! begin_way $number "${way#*|}"; then
		skip "$word" "the kernel or the user may not pass through"
		continue
	fi
	lake_side "$word"
	published "$word"
	seen_of_a_merge "$word"
	other_limits "$word"
	lakectl -q --lake "$lake" umount
done
tap_done
