#!/usr/bin/env bash
# Building on a branch, beside building on a disk: gcc and make with their times, archives, the linker, ccache; Python
# environments, wheels, compiled modules; packages of npm; programs that map what they write. Built trees are committed and
# merged, run where they were merged, and not built again after a remount.
source "$(dirname "$0")/../lib/tap.sh"
source "$root/tests/lib/sides.sh"
export LC_ALL=C.UTF-8 TZ=UTC HOME=$scratch CCACHE_DIR=$scratch/ccache PYTHONDONTWRITEBYTECODE=
project_files=30
ignored="dist-info/RECORD" # has the hash of a file that names its place
needs=([make]="gcc make ar strip" [ccache]="ccache gcc make" [npm]="npm node" [mapped]=gcc)
pip() {
	if [ -x "$root/build/venv/bin/python" ]; then
		"$root/build/venv/bin/python" -m pip --disable-pip-version-check "$@"
	else
		python3 -m pip --disable-pip-version-check "$@"
	fi
}

project() { # a library of many files and a program, in the current directory
	local i
	mkdir -p src include
	echo 'int value(int n);' >include/value.h
	for ((i = 0; i < project_files; i++)); do
		printf '#include "value.h"\nint part%d(int n)\n{\n\treturn n + %d;\n}\n' $i $i >src/part$i.c
	done
	{
		echo '#include <stdio.h>'
		for ((i = 0; i < project_files; i++)); do echo "int part$i(int n);"; done
		echo 'int main(void) { int n = 0;'
		for ((i = 0; i < project_files; i++)); do echo "n = part$i(n);"; done
		echo 'printf("%d\n", n); return 0; }'
	} >main.c
	cat >Makefile <<'END'
CC := gcc
CFLAGS := -g0 -O0 -Iinclude -MMD
objects := $(patsubst src/%.c,obj/%.o,$(wildcard src/*.c))
program: main.c obj/libparts.a
	$(CC) $(CFLAGS) -o $@ main.c -Lobj -lparts
obj/libparts.a: $(objects)
	rm -f $@ && ar rcsD $@ $^
obj/%.o: src/%.c | obj
	@echo CC $<
	@$(CC) $(CFLAGS) -c -o $@ $<
obj:
	mkdir -p $@
-include obj/*.d
END
}

on_make() {
	project && make -j2 | sort && ./program && make
	touch src/part7.c && make && make -q && echo nothing to do
	echo '/* more */' >>include/value.h && make -n | grep -c CC && make -s -j2 | wc -l && make -q && echo nothing to do
	touch -d '1 hour ago' src/part3.c && make -q && echo older is not newer
	rm obj/part5.o && make | grep CC && make -q && echo nothing to do
	ld -r -o joined.o obj/part1.o obj/part2.o && nm joined.o && strip -o stripped program && ./stripped
	gcc -shared -fPIC -g0 -o libshared.so src/*.c -Iinclude && echo 'int part9(int); int main(void) { return part9(1); }' >use.c &&
		gcc -g0 -o use use.c -L. -lshared -Wl,-rpath,'$ORIGIN' && ./use
	echo "use: $?"
	objcopy --only-keep-debug program program.debug && ar t obj/libparts.a | wc -l && ranlib obj/libparts.a && make
	cp program busy && { ./busy >/dev/null; (exec 9<>busy; ./busy) 2>&1 | sed 's/.*: //'; }
	:
}
on_ccache() {
	export CCACHE_DIR=$PWD/cache
	project && make -s -j2 CC="ccache gcc" | wc -l && rm -r obj program && make -s CC="ccache gcc" | wc -l && ./program
	ccache --print-stats | grep -E '^(direct_cache_hit|preprocessed_cache_hit|cache_miss)' | sort
	rm -r cache
}
on_python() {
	python3 -m venv --without-pip env && env/bin/python -c 'import sys, os; print(os.path.basename(sys.prefix))'
	mkdir -p tiny/tiny && echo 'def answer(): return 42' >tiny/tiny/__init__.py
	python3 - <<'END'
import zipfile
with zipfile.ZipFile("tiny-1.0-py3-none-any.whl", "w") as wheel:
    for name, text in (("tiny/__init__.py", "def answer(): return 42\n"),
                       ("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"),
                       ("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
                       ("tiny-1.0.dist-info/RECORD", "tiny/__init__.py,,\ntiny-1.0.dist-info/METADATA,,\n"
                        "tiny-1.0.dist-info/WHEEL,,\ntiny-1.0.dist-info/RECORD,,\n")):
        wheel.writestr(zipfile.ZipInfo(name), text)
END
	pip --python env/bin/python install -q --no-index --no-warn-script-location ./tiny-1.0*.whl
	env/bin/python -c 'import tiny; print(tiny.answer())' && ls env/lib/python3*/site-packages
	echo 'def added(): return 1' >module.py && python3 -m compileall -q module.py && find . -maxdepth 2 -name 'module*.pyc' | wc -l
	python3 -B -c 'import module; print(module.__cached__.split("/")[-2])'
	printf 'def changed(): return 2\n' >module.py && python3 -c 'import module; print(module.changed())'
	find . -name __pycache__ -prune -exec rm -r {} +
	sed -i 's|^command = .*||' env/pyvenv.cfg
	grep -rlI "$TOP" env | xargs -r sed -i "s|$TOP|TOP|g" # environments name their own place
}
on_npm() {
	mkdir package app && echo 'module.exports = () => "hello"' >package/index.js
	echo '{"name":"local-package","version":"1.0.0","main":"index.js"}' >package/package.json
	echo '{"name":"app","version":"1.0.0"}' >app/package.json
	(cd package && npm pack --silent --cache "$PWD/../cache" >/dev/null && mv ./*.tgz ../app/package.tgz)
	(cd app && npm install --silent --offline --no-audit --no-fund --cache ../cache ./package.tgz && node -e 'console.log(require("local-package")())' && ls node_modules)
	rm -rf cache
}
on_mapped() {
	cat >mapped.c <<'END'
#define _GNU_SOURCE
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void)
{
	int fd = open("shared", O_RDWR | O_CREAT, 0644);
	size_t size = 1 << 20;
	assert(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
	char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert(map != MAP_FAILED);
	pid_t child = fork();
	for (size_t i = child == 0; i < size; i += 2)
		map[i] = child == 0 ? 'c' : 'p';
	if (child == 0)
		_exit(0);
	int status;
	assert(waitpid(child, &status, 0) == child && status == 0);
	assert(msync(map, size, MS_SYNC) == 0);
	assert(ftruncate(fd, (off_t)(3 * size)) == 0);
	map = mremap(map, size, 3 * size, MREMAP_MAYMOVE);
	assert(map != MAP_FAILED);
	memset(map + 2 * size, 'e', size);
	char byte = 0;
	assert(pread(fd, &byte, 1, (off_t)(3 * size - 1)) == 1 && byte == 'e');
	assert(pwrite(fd, "W", 1, (off_t)size) == 1 && map[size] == 'W');
	char *private = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	private[0] = 'x';
	assert(map[0] == 'p' && private[1] == 'c');
	int ro = open("shared", O_RDONLY);
	assert(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, ro, 0) == MAP_FAILED);
	close(fd); /* the mapping goes on */
	memcpy(map + 5000, "after close", 11);
	puts("mapped");
	return 0; /* no msync, no munmap */
}
END
	gcc -g0 -O1 -o mapped mapped.c && ./mapped && md5sum shared
	python3 - <<'END'
import mmap, os
with open("py", "w+b") as file:
    file.truncate(10)
    with mmap.mmap(file.fileno(), 0) as memory:
        memory[:] = b"0123456789"
        memory.resize(100000)
        memory[99990:] = b"9876543210"
        memory.flush(0, 4096)
        print(memory.find(b"98"), os.pread(file.fileno(), 5, 99990), os.fstat(file.fileno()).st_size)
os.chmod("py", 0o400)
with open("py", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
    print(memory[:5], file.read() == memory[:])
END
}

# Maps are kept over commits and merges.
maps() { # OPTION
	python3 - "$lake" "$mnt" "$1" <<'END' >"$scratch/maps" 2>&1
import mmap, os, subprocess, sys
lake, mount, option = sys.argv[1:]
def ctl(*words):
    subprocess.run(("lakectl", "-q", "--lake", lake) + words, check=True)
path = mount + "/dev/late"
with open(path, "w+b") as file:
    file.truncate(100000)
    memory = mmap.mmap(file.fileno(), 0)
memory[5:10] = b"first"
memory.close()                                   # no msync, no fsync
ctl("commit", "dev", "-m", "mapped")
assert open(mount + "/@dev/late", "rb").read(10) == b"\0" * 5 + b"first"
ctl("merge", "dev", "main")
with open(mount + "/main/late", "rb") as file:
    old = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
with open(path, "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
memory[5:10] = b"later"
memory[99000:99005] = b"later"
memory.close()
ctl("commit", "dev", "-m", "again")
ctl("merge", "dev", "main")
assert old[5:10] == b"first" and old[99000:99005] == bytes(5), "what was mapped is kept"
new = open(mount + "/main/late", "rb").read()
assert new[5:10] == b"later" and new[99000:99005] == b"later"
with open(path, "r+b") as file:                  # a map that is still there is a file open for writing
    memory = mmap.mmap(file.fileno(), 0)
    memory[5:10] = b"still"
if option:                                       # where the daemon copies, the kernel has it alone until then
    memory.flush()
refused = subprocess.run(("lakectl", "-q", "--lake", lake, "commit", "dev", "-m", "no"), capture_output=True, text=True)
assert refused.returncode == 1 and "late" in refused.stderr, refused
ctl("commit", "dev", "-m", "open", "--allow-open")
assert open(mount + "/@dev/late", "rb").read()[5:10] == b"still"
memory[5:10] = b"after"
assert open(path, "rb").read()[5:10] == b"after"
memory.close()
ctl("commit", "dev", "-m", "after")
assert open(mount + "/@dev/late", "rb").read()[5:10] == b"after"
print("done")
END
	[ "$(cat "$scratch/maps")" = done ] || { cat "$scratch/maps"; return 1; }
}

still_built() { # WORD OPTION
	local place
	[ -d "$mnt/dev/make" ] || return
	for place in "$mnt/dev" "$mnt/main" "$mnt/@main"; do
		check "$1: nothing to build at ${place#"$mnt"/}" make -q -C "$place/make"
		check "$1: it runs there" equal "$("$place/make/program")" 435
		check "$1: and its library" bash -c "'$place/make/use'; [ \$? = 10 ]"
		[ ! -d "$place/python" ] || check "$1: Python runs there" env PYTHONPATH="$(echo "$place"/python/env/lib/python3*/site-packages)" python3 -B -c \
			'import tiny; assert tiny.answer() == 42'
	done
	lakectl -q --lake "$lake" umount
	lake_mount "$lake" "$mnt" $2 >/dev/null
	check "$1: nothing to build after a remount" make -q -C "$mnt/dev/make"
	touch "$mnt/dev/make/src/part8.c"
	check "$1: one file to build" equal "$(make -C "$mnt/dev/make" | grep CC)" "CC src/part8.c"
	check "$1: a revision is not built in" bash -c "! make -s -C '$mnt/@main/make' -B program"
}

disk_side
number=0
for way in "${ways[@]}"; do
	number=$((number + 1)) word=${way%%|*} option=${way#*|}
	if ! begin_way $number "$option"; then
		skip "$word" "the kernel or the user may not pass through"
		continue
	fi
	lake_side "$word"
	published "$word"
	still_built "$word" "$option"
	check "$word: maps and commits" maps "$option"
	check "$word: what is stored is sound at last" lakectl -q --lake "$lake" fsck
	lakectl -q --lake "$lake" umount
done
tap_done
