#!/usr/bin/env python3
"""Names and paths of every kind, wherever they may turn up: on the mount, in commits, diffs, merges and
JSON; text for people cannot drive a terminal. Directories of many entries, files of 8 TiB.

LAKE_NAMES_FULL=1 makes 1,000,000 entries instead of 20,000. `test_names.py PART...` runs some parts alone: strange, root,
deep, links, sparse, many.
"""
import errno
import os
import pathlib
import resource
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Lake, Tests, refused  # noqa: E402

ENTRIES = 1_000_000 if os.environ.get("LAKE_NAMES_FULL") else 20_000
TIB = 1 << 40


def strange_names():
    every = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    mixed = [b"-rf", b"--help", b"...", b"..x", b"x..", b".lake", b"@x", b"@main~1", b" lead", b"trail ", b"dot.",
             b"a\nb", b"a\r\nb\t", b"\x1b[31mred\x1b[0m", b"\x1b]0;title\x07", b"\xc2\x9b31m", b"\xff\xfe", b"\xc3",
             b"*", b"?", b"[a]", b"\\", b"%s%n", b"$(id)", b"`id`", b"'", b'"', b"a:b", b"con", b"NUL", b"x" * 255,
             b"\xf0\x9f\x92\xa9" * 63, b"\x80" * 255, b"~", b"a=b", b";", b"&&", b"{}", b"\xe2\x80\xaegnp.exe"]
    return sorted({*every, *mixed})


def path_of(item):
    return bytes.fromhex(item["path_hex"]) if "path_hex" in item else item["path"].encode()


def text(lake, *arguments):
    return subprocess.run([BIN / "lakectl", "--lake", lake.directory, *map(os.fspath, arguments)], capture_output=True,
                          check=False)


def raises(number, function, *arguments, **named):
    try:
        function(*arguments, **named)
    except OSError as failure:
        assert failure.errno == number, failure
        return
    raise AssertionError("no error")


def harmless(output):
    """Nothing that a terminal obeys."""
    output.decode("utf-8")
    bad = [byte for byte in output if (byte < 0x20 and byte not in b"\n\t") or byte == 0x7f]
    assert not bad, bad
    assert b"\xc2\x9b" not in output


def check_strange(lake, tests):
    root, names = os.fsencode(lake / "main/t"), strange_names()
    with tests.case("every byte and strange names: made, listed, read"):
        os.mkdir(root)
        for number, name in enumerate(names):
            with open(root + b"/" + name, "wb") as file:
                file.write(b"%d" % number)
        assert sorted(os.listdir(root)) == sorted(names)
        for number, name in enumerate(names):
            assert open(root + b"/" + name, "rb").read() == b"%d" % number, name
        raises(errno.ENAMETOOLONG, open, root + b"/" + b"y" * 256, "wb")
        raises(errno.ENAMETOOLONG, os.mkdir, root + b"/" + b"y" * 256)
        raises(errno.ENAMETOOLONG, os.stat, root + b"/" + b"y" * 256)
    with tests.case("status names each, and its text drives no terminal"):
        status = lake.ctl("status", "main")
        assert {path_of(change) for change in status["changes"]} >= {b"t/" + name for name in names}
        harmless(text(lake, "status", "main").stdout)
    with tests.case("committed, listed, compared, told: the same bytes"):
        lake.ctl("commit", "main", "-m", "strange \x1b[31mmessage\x07", "--meta", "k=\x1b[2J")
        listed = {path_of(entry) for entry in lake.ctl("ls", "main:t")["entries"]}
        assert {name.rsplit(b"/", 1)[-1] for name in listed} == set(names), listed
        changes = {path_of(change) for change in lake.ctl("diff", "main~1", "main")["changes"]}
        assert {b"t/" + name for name in names} <= changes
        assert sorted(os.listdir(os.fsencode(lake / "@main/t"))) == sorted(names)
        for arguments in (("ls", "main:t"), ("diff", "main~1", "main"), ("log", "main"), ("show", "main"),
                          ("diff", "main~1", "main", "--stat"), ("du", "main"), ("annotate", "main:t"),
                          ("log", "main", "--graph"), ("reflog", "main"), ("ls", "main:t", "-l")):
            harmless(text(lake, *arguments).stdout)
        assert b'"t/\\033[31mred\\033[0m"' in text(lake, "diff", "main~1", "main", "--name-only").stdout
    with tests.case("errors about strange names drive no terminal"):
        for arguments in (("cat", b"main:t/\x1b[31mnone"), ("show", "\x1b]0;x\x07"), ("ls", b"\xc2\x9b31m:x")):
            done = text(lake, *arguments)
            assert done.returncode in (2, 5), done
            harmless(done.stderr)
    with tests.case("a branch, other content, merged back"):
        lake.ctl("branch", "create", "dev", "main")
        there = os.fsencode(lake / "dev/t")
        for name in names:
            with open(there + b"/" + name, "ab") as file:
                file.write(b"+")
        os.rename(there + b"/-rf", there + b"/\x01moved")
        lake.ctl("commit", "dev", "-m", "more")
        reply = lake.ctl("merge", "dev", "main")
        assert reply["commit"]
        for number, name in enumerate(names):
            name = b"\x01moved" if name == b"-rf" else name
            assert open(root + b"/" + name, "rb").read() == b"%d+" % number, name
    with tests.case("restored by path, removed, restored again"):
        lake.ctl("restore", "main", "--from", "main~1", "--", "t/--help", "t/a\nb", "t/...")
        assert open(root + b"/...", "rb").read()[-1:] != b"+"
        for name in os.listdir(root):
            os.unlink(root + b"/" + name)
        lake.ctl("restore", "main", "--", "t")
        assert len(os.listdir(root)) == len(names)
        assert not lake.ctl("status", "main")["changes"]


def check_root(lake, tests):
    with tests.case("above branches nothing is made, and only revisions are found"):
        for name in ("x", ".hidden", "@x", ".lake/x", "@main"):
            for make in (os.mkdir, lambda path: open(path, "wb"), lambda path: os.symlink("/", path)):
                try:
                    make(lake / name)
                except OSError as failure:
                    assert failure.errno in (errno.EPERM, errno.EROFS, errno.EACCES, errno.EEXIST, errno.EISDIR,
                                             errno.ENOENT), (name, failure)
                else:
                    raise AssertionError(name)
        for name in ("@", "@..", "@.", "@../x", "@main~99", "@main^9", "@\x1b", "@" + "a" * 254,
                     "@" + "0" * 64, "@main@", "@main@never", "@-x", "@%n", "..x", "main~1", "@v1.lock"):
            path = f"{lake.mountpoint}/{name}"
            assert not os.path.lexists(path), name
        assert sorted(os.listdir(lake.mountpoint)) == sorted(b["name"] for b in lake.ctl("branch")["branches"])
    with tests.case("branch and tag names that are paths, options or hidden are refused"):
        for name in ("../x", "a/b", ".x", "-x", "", "x..y", "x.lock", "@x", "x y", "x\n", "\xe9", "a" * 129, "~x", "x~1",
                     "x^", "x:y", "/etc/passwd", "refs/branches/x", "."):
            for words in (("branch", "create", "--", name), ("tag", "create", "--", name),
                          ("branch", "rename", "--", "dev", name)):
                assert refused(lake, *words).code in (1, 2, 5), (words, name)
    with tests.case("paths that lead elsewhere are refused"):
        for path in ("../x", "a/../../x", "/etc/passwd", "..", "t/../..", "x/./../../y"):
            assert refused(lake, "restore", "main", "--from", "main~1", "--", path).code in (1, 2, 5), path
            assert refused(lake, "cat", f"main:{path}").code in (1, 2, 5), path
            assert refused(lake, "ls", f"main:{path}").code in (1, 2, 5), path
            assert refused(lake, "commit", "main", "-m", "x", "--", path).code in (1, 2, 5), path


def step(here, name):
    """Into a new directory; the one above is let go of."""
    os.mkdir(name, dir_fd=here)
    below = os.open(name, os.O_RDONLY, dir_fd=here)
    os.close(here)
    return below


def check_deep(lake, tests):
    with tests.case("paths to 4095 bytes, deeper ones by steps; a commit names what is too deep"):
        base = os.open(lake / "main", os.O_RDONLY)
        part = "d" * 200
        here, depth = base, 0
        while (depth + 1) * 201 < 4095 - 10:
            here, depth = step(here, part), depth + 1
        with open(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
            file.write(b"deep")
        lake.ctl("commit", "main", "-m", "deep")
        path = "/".join([part] * depth + ["leaf"])
        assert subprocess.run([BIN / "lakectl", "--lake", lake.directory, "cat", f"main:{path}"], capture_output=True,
                              check=True).stdout == b"deep"
        for _ in range(3):
            here = step(here, part)
        with open(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
            file.write(b"too deep")
        assert open(os.open("leaf", os.O_RDONLY, dir_fd=here), "rb").read() == b"too deep"
        os.close(here)
        refusal = refused(lake, "commit", "main", "-m", "too deep")
        assert "4095" in str(refusal) or "too long" in str(refusal) or "deep" in str(refusal), refusal
        raises(errno.ENAMETOOLONG, os.stat, str(lake / "main") + "/" + "/".join(["e" * 200] * 21))
        subprocess.run(["rm", "-rf", part], cwd=lake / "main", check=True)
        lake.ctl("commit", "main", "-m", "not deep any more")


def check_links(lake, tests):
    with tests.case("symbolic links: loops, targets outside and of 4095 bytes; committed as they are"):
        top = lake / "main/links"
        os.mkdir(top)
        os.symlink("b", top / "a")
        os.symlink("a", top / "b")
        os.symlink("self", top / "self")
        os.symlink("/etc/hostname", top / "out")
        os.symlink("../../../../../../../../etc/hostname", top / "up")
        os.symlink("x" * 4095, top / "long")
        for name in ("a", "self"):
            raises(errno.ELOOP, open, top / name)
        lake.ctl("commit", "main", "-m", "links")
        there = lake / "@main/links"
        assert os.readlink(there / "long") == "x" * 4095 and os.readlink(there / "out") == "/etc/hostname"
        raises(errno.ELOOP, open, there / "a")
        # What is stored is the link: commands do not go where it leads.
        done = text(lake, "cat", "main:links/out")
        assert done.returncode != 0 or done.stdout == b"/etc/hostname", done
        assert text(lake, "ls", "main:links/out/x").returncode == 5
        for entry in lake.ctl("ls", "main:links")["entries"]:
            assert entry["kind"] == "symlink", entry


class Clock:
    """What each step took, and the daemon's memory after it, in MiB (what is shared with the kernel's cache, aside)."""

    def __init__(self, lake):
        self.lake, self.start = lake, time.monotonic()

    def lap(self, what):
        took, status = time.monotonic() - self.start, pathlib.Path(f"/proc/{self.lake.pid()}/status").read_text()
        sizes = {name: int(status.split(name + ":")[1].split()[0]) // 1024 for name in ("RssAnon", "RssShmem", "VmHWM")}
        print(f"# {what}: {took:.1f} s; {sizes}", flush=True)
        self.start = time.monotonic()
        return sizes["RssAnon"] + sizes["RssShmem"]


def many_listed(path, wanted):
    """Complete, and no name twice."""
    names = [entry.name for entry in os.scandir(path)]
    assert len(names) == len(set(names)) == wanted, (len(names), len(set(names)), wanted)


def many_removed(top, clock):
    """As `rm -r` does, names go while they are listed, also such as come later: no name is told twice, none that stays is
    left out."""
    seen, gone = [], set()
    for entry in os.scandir(top):
        seen.append(entry.name)
        if len(seen) % 2:
            number = int(entry.name[6:])
            for name in (entry.name, f"entry-{ENTRIES - 1 - number:07}") if number % 8 == 0 else (entry.name,):
                if name not in gone:
                    os.unlink(top / name)
                    gone.add(name)
    assert len(seen) == len(set(seen))
    left = {f"entry-{number:07}" for number in range(ENTRIES)} - gone
    assert left <= set(seen), len(left - set(seen))
    clock.lap(f"{len(gone):,} removed while listed")
    many_listed(top, len(left))
    for name in left:
        os.unlink(top / name)
    many_listed(top, 0)
    clock.lap("the rest removed")


def check_many(lake, tests):
    top, there = lake / "main/many", lake / "@main/many"
    clock = Clock(lake)
    with tests.case(f"{ENTRIES:,} entries in one directory: made, listed, looked at, committed"):
        os.mkdir(top)
        fd = os.open(top, os.O_RDONLY)
        for number in range(ENTRIES):
            os.close(os.open(f"entry-{number:07}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
        clock.lap("made")
        many_listed(top, ENTRIES)
        clock.lap("listed")
        assert all(os.stat(f"entry-{number:07}", dir_fd=fd).st_size == 0 for number in range(ENTRIES))
        clock.lap("looked at")
        os.close(fd)
        lake.ctl("commit", "main", "-m", "many")
        clock.lap("committed")
        os.unlink(top / "entry-0000777")
        lake.ctl("commit", "main", "-m", "one fewer")
        clock.lap("one removed, committed")
    with tests.case("after a remount the same, on the branch and at the revision"):
        lake.umount()
        lake.mount()
        clock.lap("remounted")
        many_listed(there, ENTRIES - 1)
        clock.lap("listed at @main")
        many_listed(lake / "@main~1/many", ENTRIES)
        raises(errno.ENOENT, os.stat, there / "entry-0000777")
        assert os.stat(lake / "@main~1/many/entry-0000777").st_size == 0
        many_listed(top, ENTRIES - 1)
        assert sum(entry.stat().st_size for entry in os.scandir(top)) == 0
        clock.lap("listed twice and looked at")
        lake.ctl("restore", "main", "--from", "main~1", "--", "many/entry-0000777")
    with tests.case("removed, half of them while they are listed; the memory stays within its limit"):
        many_removed(top, clock)
        lake.ctl("commit", "main", "-m", "none")
        memory = clock.lap("committed")
        os.rmdir(top)
        lake.ctl("commit", "main", "-m", "gone")
        many_listed(lake / "@main~2/many", ENTRIES - 1)
        assert memory < 1024, memory


def check_sparse(lake, tests):
    with tests.case("a file of 8 TiB: written at its end, holes found, committed, cut"):
        path = lake / "main/sparse"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        end = 8 * TIB
        os.pwrite(fd, b"first", 0)
        os.pwrite(fd, b"middle", 4 * TIB + 5)
        os.pwrite(fd, b"last", end - 4)
        raises(errno.EFBIG, os.truncate, path, end + 1)
        raises(errno.EFBIG, os.ftruncate, fd, end + 1)
        raises(errno.EFBIG, os.posix_fallocate, fd, end, 1)
        # Writes that are passed through are not seen before the commit.
        try:
            os.pwrite(fd, b"x", end)
        except OSError as failure:
            assert failure.errno == errno.EFBIG, failure
        else:
            os.fsync(fd)
            assert "limit" in str(refused(lake, "commit", "main", "--allow-open", "-m", "too large"))
            os.ftruncate(fd, end)
        os.close(fd)
        assert os.stat(path).st_size == end
        lake.ctl("commit", "main", "-m", "sparse")
        there = os.open(lake / "@main/sparse", os.O_RDONLY)
        assert os.fstat(there).st_size == end
        assert os.pread(there, 10, end - 4) == b"last" and os.pread(there, 6, 4 * TIB + 5) == b"middle"
        assert os.pread(there, 8, 2 * TIB) == bytes(8) and os.pread(there, 5, 0) == b"first"
        hole = os.lseek(there, 0, os.SEEK_HOLE)
        data = os.lseek(there, hole, os.SEEK_DATA)
        assert hole <= 1 << 20 and hole < data <= 4 * TIB + 5, (hole, data)
        os.close(there)
        os.truncate(path, 5)
        lake.ctl("commit", "main", "-m", "cut")
        assert open(lake / "@main/sparse", "rb").read() == b"first"
        assert os.stat(lake / "@main~1/sparse").st_size == end
        stored = sum(file.stat().st_size for file in (lake.directory / "store").rglob("*") if file.is_file())
        assert stored < 500 << 20, stored


PARTS = {"strange": check_strange, "root": check_root, "deep": check_deep, "links": check_links, "sparse": check_sparse,
         "many": check_many}


def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    tests = Tests()
    with Lake() as lake:
        for part in sys.argv[1:] or PARTS:
            PARTS[part](lake, tests)
        with tests.case("all of it is sound"):
            lake.ctl("fsck")
    tests.done()


main()
