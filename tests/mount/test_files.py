#!/usr/bin/env python3
"""File operations through a real mount, passed through to the kernel and copied by the daemon."""
import ctypes
import errno
import fcntl
import mmap
import os
import pathlib
import random
import stat
import struct
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Lake, Tests  # noqa: E402

libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE, AT_FDCWD = 1, 2, -100
AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = 0x1000, 0x400
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
tests = Tests()


def call(name, *arguments):
    converted = [a if isinstance(a, int) else ctypes.c_char_p(os.fsencode(a)) for a in arguments]
    if getattr(libc, name)(*converted) < 0:
        raise OSError(ctypes.get_errno(), name)


def renameat2(old, new, flags):
    call("renameat2", AT_FDCWD, old, AT_FDCWD, new, flags)


def fails(wanted, function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except OSError as problem:
        assert problem.errno == wanted, f"{problem}, wanted {errno.errorcode[wanted]}"
        return
    raise AssertionError(f"succeeded, wanted {errno.errorcode[wanted]}")


def write(path, data):
    path.write_bytes(data)
    return path


def metric(lake, name):
    for line in (lake / ".lake/metrics").read_text().splitlines():
        if line.startswith(name + " "):
            return int(line.split()[1])
    raise AssertionError(f"no metric {name}")


def contents(lake, here):
    with tests.case("create, write, read back, append"):
        path = write(here / "a", b"one\n")
        with open(path, "ab") as file:
            file.write(b"two\n")
        assert path.read_bytes() == b"one\ntwo\n"
        assert path.stat().st_size == 8
        fails(errno.EEXIST, os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        fails(errno.ENOENT, os.open, here / "none", os.O_RDONLY)

    with tests.case("append from two descriptors interleaves whole writes"):
        path = here / "appended"
        one = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        two = os.open(path, os.O_WRONLY | os.O_APPEND)
        for i in range(100):
            os.write(one, b"1" * 10)
            os.write(two, b"2" * 10)
        os.close(one)
        os.close(two)
        assert path.read_bytes() == (b"1" * 10 + b"2" * 10) * 100

    with tests.case("random writes and truncates agree with memory"):
        seed = random.randrange(1 << 32)
        print("# seed", seed)
        dice, path, model = random.Random(seed), here / "random", bytearray()
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        for _ in range(300):
            kind = dice.randrange(10)
            if kind == 0:
                size = dice.randrange(300_000)
                os.ftruncate(fd, size) if dice.randrange(2) else os.truncate(path, size)
                model = model[:size] + bytes(size - len(model[:size]))
            elif kind < 7:
                at, data = dice.randrange(300_000), dice.randbytes(dice.randrange(1, 20_000))
                assert os.pwrite(fd, data, at) == len(data)
                model += bytes(max(0, at - len(model)))
                model[at:at + len(data)] = data
            else:
                at, length = dice.randrange(300_000), dice.randrange(50_000)
                assert os.pread(fd, length, at) == model[at:at + length]
            assert os.fstat(fd).st_size == len(model)
        os.close(fd)
        assert path.read_bytes() == model

    with tests.case("O_TRUNC empties, also while others have it open"):
        path = write(here / "truncated", b"x" * 5000)
        with open(path, "rb") as other:
            os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
            assert path.stat().st_size == 0
            assert other.read() == b""

    with tests.case("shared mmap writes are seen by read, stat and after close"):
        path = write(here / "mapped", bytes(8192))
        before = path.stat().st_mtime_ns
        time.sleep(0.02)
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[100:105] = b"hello"
            view.flush()
        assert path.read_bytes()[100:105] == b"hello"
        assert path.stat().st_mtime_ns > before
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[100:105] == b"hello"

    with tests.case("fallocate, punched holes, SEEK_DATA and SEEK_HOLE"):
        fd = os.open(here / "allocated", os.O_CREAT | os.O_RDWR)
        os.posix_fallocate(fd, 0, 1 << 20)
        assert os.fstat(fd).st_size == 1 << 20
        os.pwrite(fd, b"z" * (1 << 20), 0)
        call("fallocate", fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, ctypes.c_long(65536).value,
             ctypes.c_long(65536).value)
        assert os.pread(fd, 3, 65536) == bytes(3) and os.pread(fd, 1, 65535) == b"z"
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 65536
        assert os.lseek(fd, 65536, os.SEEK_DATA) == 131072
        call("fallocate", fd, FALLOC_KEEP_SIZE, 0, 2 << 20)
        assert os.fstat(fd).st_size == 1 << 20
        os.close(fd)

    with tests.case("copy_file_range, sendfile and fsync"):
        source = write(here / "source", os.urandom(300_000))
        fd, out = os.open(source, os.O_RDONLY), os.open(here / "copy", os.O_CREAT | os.O_RDWR)
        left = 300_000
        while left:
            left -= os.copy_file_range(fd, out, left)
        os.fsync(out)
        os.fdatasync(out)
        os.close(fd)
        os.close(out)
        assert source.read_bytes() == (here / "copy").read_bytes()
        directory = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)

    with tests.case("a file that is 5 GiB and sparse"):
        path = here / "sparse"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.truncate(path, 5 << 30)
        with open(path, "r+b") as file:
            file.seek((5 << 30) - 4)
            file.write(b"tail")
        assert path.stat().st_size == 5 << 30 and path.stat().st_blocks < 1 << 14
        path.unlink()

    with tests.case("direct I/O and readahead advice"):
        path = write(here / "direct", b"d" * 8192)
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        assert os.read(fd, 10) == b"d" * 10
        os.close(fd)


def names(lake, here):
    with tests.case("rename: file over file, directory over empty directory"):
        write(here / "r1", b"1")
        write(here / "r2", b"2")
        os.rename(here / "r1", here / "r2")
        assert (here / "r2").read_bytes() == b"1" and not (here / "r1").exists()
        (here / "d1").mkdir()
        write(here / "d1/in", b"in")
        (here / "d2").mkdir()
        os.rename(here / "d1", here / "d2")
        assert (here / "d2/in").read_bytes() == b"in"
        (here / "d3").mkdir()
        fails(errno.ENOTEMPTY, os.rename, here / "d3", here / "d2")
        fails(errno.ENOTDIR, os.rename, here / "d3", here / "r2")
        fails(errno.EISDIR, os.rename, here / "r2", here / "d3")
        fails(errno.EINVAL, os.rename, here / "d2", here / "d2/below")

    with tests.case("rename: NOREPLACE, EXCHANGE, across directories and branches"):
        write(here / "n1", b"1")
        write(here / "n2", b"2")
        fails(errno.EEXIST, renameat2, here / "n1", here / "n2", RENAME_NOREPLACE)
        renameat2(here / "n1", here / "n2", RENAME_EXCHANGE)
        assert (here / "n1").read_bytes() == b"2" and (here / "n2").read_bytes() == b"1"
        (here / "x/y").mkdir(parents=True)
        write(here / "x/y/f", b"f")
        renameat2(here / "x/y", here / "n2", RENAME_EXCHANGE)
        assert (here / "n2/f").read_bytes() == b"f" and (here / "x/y").read_bytes() == b"1"
        os.rename(here / "n2/f", here / "moved")
        assert (here / "moved").read_bytes() == b"f"
        lake.ctl("branch", "create", "other")
        fails(errno.EXDEV, os.rename, here / "moved", lake / "other/moved")
        fails(errno.EXDEV, os.link, here / "moved", lake / "other/moved")
        lake.ctl("branch", "delete", "other")

    with tests.case("an open file follows its renames and outlives its name"):
        path = write(here / "open1", b"abc")
        with open(path, "r+b") as file:
            os.rename(path, here / "open2")
            number = os.fstat(file.fileno()).st_ino
            assert (here / "open2").stat().st_ino == number
            os.unlink(here / "open2")
            file.seek(0, 2)
            file.write(b"def")
            file.flush()
            os.fchmod(file.fileno(), 0o600)
            found = os.fstat(file.fileno())
            assert found.st_nlink == 0 and found.st_size == 6
            assert stat.S_IMODE(found.st_mode) == 0o600
            file.seek(0)
            assert file.read() == b"abcdef"
        assert not (here / "open2").exists()

    with tests.case("a replaced file keeps its bytes for who has it open"):
        path = write(here / "old", b"old")
        with open(path, "rb") as file:
            os.rename(write(here / "new", b"new"), path)
            assert file.read() == b"old" and path.read_bytes() == b"new"

    with tests.case("hard links share one inode"):
        path = write(here / "l1", b"one")
        os.link(path, here / "l2")
        (here / "sub").mkdir()
        os.link(path, here / "sub/l3")
        assert path.stat().st_nlink == 3
        assert path.stat().st_ino == (here / "sub/l3").stat().st_ino
        with open(here / "l2", "ab") as file:
            file.write(b"two")
        assert path.read_bytes() == (here / "sub/l3").read_bytes() == b"onetwo"
        path.unlink()
        assert (here / "l2").stat().st_nlink == 2
        os.rename(here / "l2", here / "l4")
        assert (here / "l4").read_bytes() == b"onetwo"
        os.unlink(here / "l4")
        os.unlink(here / "sub/l3")
        fails(errno.EPERM, os.link, here / "sub", here / "sublink")

    with tests.case("hard links become files of their own with a commit"):
        write(here / "h1", b"same")
        os.link(here / "h1", here / "h2")
        lake.ctl("commit", "main", "-m", "links")
        with open(here / "h2", "wb") as file:
            file.write(b"changed")
        assert (here / "h1").read_bytes() == b"same"
        assert (here / "h2").read_bytes() == b"changed"
        with open(here / "h1", "ab") as file:
            file.write(b"!")
        assert (here / "h1").read_bytes() == b"same!"
        assert (here / "h2").read_bytes() == b"changed"

    with tests.case("O_TMPFILE, and giving it a name"):
        fd = os.open(here, os.O_TMPFILE | os.O_RDWR, 0o640)
        os.write(fd, b"nameless")
        assert os.fstat(fd).st_nlink == 0
        call("linkat", AT_FDCWD, f"/proc/self/fd/{fd}", AT_FDCWD, here / "named",
             AT_SYMLINK_FOLLOW)
        os.write(fd, b"!")
        assert os.fstat(fd).st_nlink == 1
        os.close(fd)
        assert (here / "named").read_bytes() == b"nameless!"
        assert stat.S_IMODE((here / "named").stat().st_mode) == 0o640
        fd = os.open(here, os.O_TMPFILE | os.O_WRONLY)
        os.write(fd, b"2")
        call("linkat", fd, "", AT_FDCWD, here / "named2", AT_EMPTY_PATH)
        os.close(fd)
        assert (here / "named2").read_bytes() == b"2"
        fd = os.open(here, os.O_TMPFILE | os.O_RDWR)
        os.write(fd, b"dropped")
        os.close(fd)

    with tests.case("symbolic links"):
        os.symlink("named", here / "symbolic")
        assert os.readlink(here / "symbolic") == "named"
        assert (here / "symbolic").read_bytes() == b"nameless!"
        assert (here / "symbolic").lstat().st_size == 5
        os.symlink("t" * 4000, here / "long")
        assert len(os.readlink(here / "long")) == 4000

    with tests.case("names: longest, odd bytes, too long"):
        for name in (b"n" * 255, b"\xff\xfe odd\n", b" ", "über".encode(), b"-", b"..."):
            path = os.path.join(os.fsencode(here), name)
            with open(path, "wb") as file:
                file.write(name)
            assert name in os.listdir(os.fsencode(here))
            with open(path, "rb") as file:
                assert file.read() == name
            os.unlink(path)
        fails(errno.ENAMETOOLONG, open, os.fsencode(here) + b"/" + b"n" * 256, "wb")

    with tests.case("fifos, sockets and devices"):
        os.mkfifo(here / "fifo")
        assert stat.S_ISFIFO((here / "fifo").stat().st_mode)
        if os.geteuid() == 0:
            os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            assert (here / "null").stat().st_rdev == os.makedev(1, 3)
        for name in ("fifo", "null"):
            if (here / name).exists():
                os.unlink(here / name)

    with tests.case("rmdir and unlink refuse what they must"):
        (here / "full").mkdir()
        write(here / "full/f", b"")
        fails(errno.ENOTEMPTY, os.rmdir, here / "full")
        fails(errno.EISDIR, os.unlink, here / "full")
        fails(errno.ENOTDIR, os.rmdir, here / "full/f")
        fails(errno.ENOTDIR, os.stat, here / "full/f/g")
        os.unlink(here / "full/f")
        descriptor = os.open(here / "full", os.O_RDONLY)
        os.rmdir(here / "full")
        assert os.listdir(descriptor) == []
        fails(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
        assert os.fstat(descriptor).st_nlink == 0
        os.close(descriptor)

    with tests.case("a directory tree 200 deep"):
        deep = here / "deep"
        deep.mkdir()
        top = os.open(deep, os.O_RDONLY)
        for i in range(200):
            os.mkdir("d", dir_fd=top)
            below = os.open("d", os.O_RDONLY, dir_fd=top)
            os.close(top)
            top = below
        fd = os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=top)
        os.close(fd)
        lake.ctl("commit", "main", "-m", "deep")
        fd = os.open("bottom", os.O_WRONLY | os.O_TRUNC, dir_fd=top)
        os.write(fd, b"written")
        os.close(fd)
        os.close(top)
        assert (here / ("deep/" + "d/" * 200 + "bottom")).read_bytes() == b"written"


def attributes(lake, here):
    with tests.case("chmod, chown, utimens; kept by a commit"):
        path = write(here / "attributes", b"a")
        os.chmod(path, 0o4751)
        os.utime(path, ns=(1_000_000_001, 1_234_567_890_123_456_789))
        if os.geteuid() == 0:
            os.chown(path, 12, 34)
            os.chmod(path, 0o4751)
            os.utime(path, ns=(1, 1_234_567_890_123_456_789))
        (here / "aged").mkdir()
        os.utime(here / "aged", ns=(-5_500_000_000, -5_500_000_000))

        def look():
            found = path.stat()
            assert stat.S_IMODE(found.st_mode) == 0o4751
            assert found.st_mtime_ns == 1_234_567_890_123_456_789
            assert os.geteuid() or (found.st_uid, found.st_gid) == (12, 34)
            assert (here / "aged").stat().st_mtime_ns == -5_500_000_000
        look()
        lake.ctl("commit", "main", "-m", "attributes")
        look()
        lake.umount()
        lake.mount()
        look()

    with tests.case("access times that were set stay until a commit; an open file without a name has times"):
        times = (3_000_000_001, 1_234_567_890_123_456_789)
        for path in (write(here / "read", b"."), here / "read directory", here / "read link"):
            if path.name == "read directory":
                path.mkdir()
            elif path.name == "read link":
                path.symlink_to("read")
            os.utime(path, ns=times, follow_symlinks=False)
            path.rename(here / "read again")
            found = os.lstat(here / "read again")
            assert (found.st_atime_ns, found.st_mtime_ns) == times, path
            (here / "read again").rename(path)
        path = here / "read"
        path.write_bytes(b"changed")
        lake.umount()
        lake.mount()
        assert path.stat().st_atime_ns == times[0]
        lake.ctl("commit", "main", "-m", "accessed")
        lake.umount()
        lake.mount()
        assert path.stat().st_atime_ns == path.stat().st_mtime_ns
        with open(path, "r+b") as file:
            path.unlink()
            os.utime(file.fileno(), ns=times)
            found = os.fstat(file.fileno())
            assert (found.st_atime_ns, found.st_mtime_ns) == times
    with tests.case("chmod of a committed file changes nothing else"):
        path = write(here / "mode", b"content")
        lake.ctl("commit", "main", "-m", "mode")
        before = path.stat()
        with open(path, "rb") as file:
            os.chmod(path, 0o600)
            after = path.stat()
            assert os.fstat(file.fileno()).st_ino == before.st_ino == after.st_ino
            assert file.read() == b"content"
        assert after.st_mtime_ns == before.st_mtime_ns and after.st_size == 7
        assert after.st_ctime_ns >= before.st_ctime_ns
        assert stat.S_IMODE(after.st_mode) == 0o600

    with tests.case("writing changes mtime, chmod does not"):
        path = write(here / "times", b"1")
        first = path.stat()
        time.sleep(0.02)
        with open(path, "ab") as file:
            file.write(b"2")
        second = path.stat()
        assert second.st_mtime_ns > first.st_mtime_ns
        directory = here.stat().st_mtime_ns
        time.sleep(0.02)
        write(here / "another", b"")
        assert here.stat().st_mtime_ns > directory

    with tests.case("a write's time is seen at once and after close, however it is made"):
        source = here / "source"
        source.write_bytes(b"s" * 9000)

        def send(fd):
            with open(source, "rb") as file:
                assert os.sendfile(fd, file.fileno(), 0, 9000) == 9000

        def copy(fd):
            with open(source, "rb") as file:
                assert os.copy_file_range(file.fileno(), fd, 9000, 0) == 9000

        def put(fd):
            os.write(fd, b"w" * 9000)

        path = here / "timed"
        for flags, how in ((os.O_WRONLY, put), (os.O_WRONLY, send), (os.O_WRONLY, copy), (os.O_RDWR, put),
                           (os.O_RDWR, send), (os.O_WRONLY | os.O_APPEND, put)):
            fd = os.open(path, os.O_CREAT | os.O_TRUNC | flags)
            for turn in range(3):
                before = path.stat()
                time.sleep(0.02)
                how(fd)
                if turn < 2:
                    assert path.stat().st_mtime_ns > before.st_mtime_ns, (flags, how)
            os.close(fd)
            assert path.stat().st_mtime_ns > before.st_mtime_ns, (flags, how)

    with tests.case("extended attributes; kept by a commit"):
        path = write(here / "xattr", b"")
        os.setxattr(path, "user.one", b"1" * 1000)
        os.setxattr(path, "user.empty", b"")
        fails(errno.EEXIST, os.setxattr, path, "user.one", b"", os.XATTR_CREATE)
        fails(errno.ENODATA, os.setxattr, path, "user.two", b"", os.XATTR_REPLACE)
        fails(errno.ENODATA, os.getxattr, path, "user.two")
        fails(errno.EOPNOTSUPP, os.setxattr, path, "system.posix_acl_access",
              struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 7, 0xFFFFFFFF)
                                                   for tag in (1, 4, 32)))

        def look():
            assert sorted(os.listxattr(path)) == ["user.empty", "user.one"]
            assert os.getxattr(path, "user.one") == b"1" * 1000
            assert os.getxattr(path, "user.empty") == b""
        look()
        lake.ctl("commit", "main", "-m", "xattrs")
        look()
        os.removexattr(path, "user.empty")
        assert os.listxattr(path) == ["user.one"]
        fails(errno.ENODATA, os.removexattr, path, "user.empty")
        fails(errno.E2BIG, os.setxattr, path, "user.big", b"x" * 70_000)
        with open(path, "rb") as file:
            os.unlink(path)
            os.setxattr(file.fileno(), "user.late", b"late")
            assert os.getxattr(file.fileno(), "user.late") == b"late"

    with tests.case("flock and fcntl locks exclude each other's owners"):
        path = write(here / "locked", b"0" * 100)
        one, two = open(path, "r+b"), open(path, "r+b")
        fcntl.flock(one, fcntl.LOCK_EX)
        fails(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        if os.fork() == 0:
            try:
                fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 50)
                fails(errno.EAGAIN, fcntl.lockf, two, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)
                os._exit(0)
            except BaseException as problem:
                print("#", problem)
                os._exit(1)
        assert os.wait()[1] == 0
        one.close()
        two.close()

    with tests.case("statfs says what the lake's disk has"):
        found, disk = os.statvfs(here), os.statvfs(lake.directory)
        assert found.f_blocks == disk.f_blocks and found.f_namemax == 255


def owners(lake, here):
    with tests.case("set-group-id directories pass their group on"):
        (here / "group").mkdir()
        os.chown(here / "group", 0, 77)
        os.chmod(here / "group", 0o2775)
        write(here / "group/f", b"")
        (here / "group/d").mkdir()
        assert (here / "group/f").stat().st_gid == 77
        found = (here / "group/d").stat()
        assert found.st_gid == 77 and found.st_mode & stat.S_ISGID
        os.umask(0o027)
        write(here / "masked", b"")
        os.umask(0o022)
        assert stat.S_IMODE((here / "masked").stat().st_mode) == 0o640

    with tests.case("writing, truncating and chown clear set-id bits"):
        os.chmod(here, 0o777)
        for how in ("write", "open for write, then chmod, then write", "truncate", "O_TRUNC",
                    "chown"):
            path = write(here / "setid", b"program")
            os.chown(path, 65534, 65534)
            fd = os.open(path, os.O_WRONLY)
            if not how.startswith("open"):
                os.close(fd)
            os.chmod(path, 0o6755)
            child = os.fork()
            if child == 0:
                try:
                    if how != "chown":
                        os.setgroups([])
                        os.setgid(65534)
                        os.setuid(65534)
                    if how == "write":
                        fd = os.open(path, os.O_WRONLY)
                        os.write(fd, b"x")
                    elif how == "truncate":
                        os.truncate(path, 3)
                    elif how == "O_TRUNC":
                        os.open(path, os.O_WRONLY | os.O_TRUNC)
                    elif how == "chown":
                        os.chown(path, 65533, 65533)
                    else:
                        os.write(fd, b"x")
                    os._exit(0)
                except OSError as problem:
                    print("#", problem)
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0, how
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == 0o755, f"{how}: {mode:o}"
            if how.startswith("open"):
                os.close(fd)
            path.unlink()
        os.chmod(here, 0o755)

    with tests.case("permissions hold for others"):
        path = write(here / "private", b"secret")
        os.chmod(path, 0o600)
        done = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", "cat", path],
                              capture_output=True, check=False)
        assert done.returncode != 0 and b"Permission denied" in done.stderr
        os.chmod(path, 0o644)
        done = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", "cat", path],
                              capture_output=True, check=False)
        assert done.stdout == b"secret", done.stderr


def versions(lake, here):
    with tests.case("the first write to an open committed file leaves old bytes to old descriptors"):
        for how in ("append", "O_RDWR", "O_TRUNC", "truncate"):
            path = write(here / "versioned", b"committed")
            write(here / "how", how.encode())
            lake.ctl("commit", "main", "-m", how)
            old = os.open(path, os.O_RDONLY)
            if how == "append":
                with open(path, "ab") as file:
                    file.write(b"+")
                wanted = b"committed+"
            elif how == "O_RDWR":
                with open(path, "r+b") as file:
                    file.write(b"C")
                wanted = b"Committed"
            elif how == "O_TRUNC":
                write(path, b"short")
                wanted = b"short"
            else:
                os.truncate(path, 4)
                wanted = b"comm"
            assert path.read_bytes() == wanted, how
            assert os.pread(old, 100, 0) == b"committed", how
            assert os.fstat(old).st_size == 9, how
            assert path.stat().st_size == len(wanted), how
            with open(path, "rb") as late:
                assert late.read() == wanted
            os.close(old)
            path.unlink()

    with tests.case("opening by many at once never fails, without waiting neither"):
        (here / "opened").write_bytes(b"x" * 5000)
        until, children = time.time() + 1.5, []
        for _ in range(3):
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    while time.time() < until:
                        os.close(os.open(here / "opened", os.O_RDWR | os.O_NONBLOCK))
                    os._exit(0)
                except OSError:
                    os._exit(1)
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)

    with tests.case("reading while a commit turns staging files into committed ones"):
        path = write(here / "reading", b"r" * 100_000)
        with open(path, "rb") as file:
            assert file.read(10) == b"r" * 10
            lake.ctl("commit", "main", "-m", "reading")
            assert file.read() == b"r" * 99_990
            assert os.fstat(file.fileno()).st_size == 100_000
            assert path.read_bytes() == b"r" * 100_000
            with open(path, "r+b") as writer:
                writer.write(b"w")
            file.seek(0)
            assert file.read(1) == b"r"
        assert path.read_bytes()[:2] == b"wr"

    with tests.case("views are read-only and found, not listed"):
        write(here / "viewed", b"1")
        commit = lake.ctl("commit", "main", "-m", "one")["commit"]
        write(here / "viewed", b"2")
        lake.ctl("tag", "create", "v1", "main")
        for view in ("@" + commit, "@main", "@" + commit[:8], "@v1"):
            path = lake / view / here.name / "viewed"
            assert path.read_bytes() == b"1", view
            fails(errno.EROFS, open, path, "ab")
            fails(errno.EROFS, os.unlink, path)
            fails(errno.EROFS, os.mkdir, path.parent / "new")
            fails(errno.EROFS, os.chmod, path, 0)
            fails(errno.EROFS, os.truncate, path, 0)
        assert "viewed" in os.listdir(lake / "@main" / here.name)
        assert not [n for n in os.listdir(lake.mountpoint) if n[0] in "@."]
        fails(errno.ENOENT, os.stat, lake / "@nothing")
        fails(errno.ENOENT, os.stat, lake / "@main~999")
        assert (lake / "@main~1").is_dir()
        lake.ctl("commit", "main", "-m", "two")
        assert (lake / "@main" / here.name / "viewed").read_bytes() == b"2"
        lake.ctl("tag", "delete", "v1")

    with tests.case("the root belongs to commands"):
        fails(errno.EPERM, os.mkdir, lake / "new")
        fails(errno.EPERM, open, lake / "file", "w")
        fails(errno.EPERM, os.rmdir, lake / "main")
        fails(errno.EPERM, os.rename, lake / "main", lake / "niam")
        fails(errno.ENOENT, os.stat, lake / "nothing")
        fails(errno.ENOENT, os.stat, lake / "bad..name")
        assert os.listdir(lake / ".lake") == ["metrics", "status"]
        assert (lake / ".lake/status").read_text().startswith("{")
        fails(errno.EACCES, open, lake / ".lake/status", "w") if os.geteuid() else None

    with tests.case("branches appear, go, are renamed"):
        write(here / "branched", b"main")
        lake.ctl("commit", "main", "-m", "branched")
        fails(errno.ENOENT, os.stat, lake / "dev")
        lake.ctl("branch", "create", "dev")
        there = lake / "dev" / here.name
        assert (there / "branched").read_bytes() == b"main"
        assert sorted(os.listdir(lake.mountpoint)) == ["dev", "main"]
        write(there / "branched", b"dev")
        assert (here / "branched").read_bytes() == b"main"
        lake.ctl("commit", "dev", "-m", "dev")
        lake.ctl("branch", "rename", "dev", "renamed")
        fails(errno.ENOENT, os.stat, there / "branched")
        assert (lake / "renamed" / here.name / "branched").read_bytes() == b"dev"
        lake.ctl("branch", "rename", "renamed", "dev")
        assert (there / "branched").read_bytes() == b"dev"

    with tests.case("a merge shows at the next look, open files keep theirs"):
        there = lake / "dev" / here.name
        write(there / "added", b"added")
        (there / "newdir").mkdir()
        write(there / "newdir/f", b"f")
        write(here / "gone", b"gone")
        lake.ctl("commit", "main", "-m", "gone")
        listing = set(os.listdir(here))
        path = here / "branched"
        with open(path, "rb") as old:
            assert path.read_bytes() == b"main"
            lake.ctl("commit", "dev", "-m", "more")
            lake.ctl("merge", "dev", "main")
            assert path.read_bytes() == b"dev"
            assert path.stat().st_size == 3
            assert old.read() == b"main"
        assert (here / "added").read_bytes() == b"added"
        assert (here / "newdir/f").read_bytes() == b"f"
        assert set(os.listdir(here)) == listing | {"added", "newdir"}
        lake.ctl("reset", "main", "main~1")
        assert path.read_bytes() == b"main"
        assert not (here / "added").exists() and set(os.listdir(here)) == listing
        lake.ctl("branch", "delete", "dev", "--force")
        fails(errno.ENOENT, os.stat, there)

    with tests.case("restore shows at once"):
        write(here / "restored", b"committed")
        lake.ctl("commit", "main", "-m", "restored")
        write(here / "restored", b"changed!!")
        os.unlink(here / "viewed")
        lake.ctl("restore", "main", "--", f"{here.name}/restored", f"{here.name}/viewed")
        assert (here / "restored").read_bytes() == b"committed"
        assert (here / "viewed").read_bytes() == b"2"


def directories(lake, here):
    with tests.case("every entry once while others are removed and added"):
        many = here / "many"
        many.mkdir()
        wanted = {f"{i:05d}" for i in range(5000)}
        for name in wanted:
            os.close(os.open(many / name, os.O_CREAT | os.O_WRONLY))
        seen = []
        with os.scandir(many) as entries:
            for entry in entries:
                seen.append(entry.name)
                if len(seen) % 2 and entry.name in wanted:
                    os.unlink(many / entry.name)
                    os.close(os.open(many / f"new{len(seen)}", os.O_CREAT | os.O_WRONLY))
        assert len(seen) == len(set(seen)) and wanted <= set(seen)
        subprocess.run(["rm", "-r", many], check=True)
        assert not many.exists()

    with tests.case("seekdir comes back to the same entry"):
        some = here / "some"
        some.mkdir()
        for i in range(300):
            write(some / f"f{i:03d}", b"")
        script = r'''
import ctypes, ctypes.util, os, sys
c = ctypes.CDLL(None, use_errno=True)
c.opendir.restype = ctypes.c_void_p
for f in (c.readdir, c.telldir, c.seekdir, c.rewinddir, c.closedir): f.argtypes = [ctypes.c_void_p]
c.readdir.restype = ctypes.c_void_p
c.telldir.restype = ctypes.c_long
c.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
d = c.opendir(sys.argv[1].encode())
def name():
    e = c.readdir(d)
    return ctypes.string_at(e + 19).decode() if e else None
places = []
while True:
    at, n = c.telldir(d), name()
    if n is None: break
    places.append((at, n))
assert len(places) == 302, len(places)
for at, n in (places[250], places[3], places[0], places[301], places[150]):
    c.seekdir(d, at)
    assert name() == n, (at, n)
c.rewinddir(d)
assert name() == "."
'''
        subprocess.run([sys.executable, "-c", script, some], check=True)
        subprocess.run(["rm", "-r", some], check=True)

    with tests.case("listing agrees with stat, before and after a commit"):
        place = here / "listing"
        place.mkdir()
        for i in range(50):
            write(place / f"f{i}", b"x" * i)
        for first in (True, False):
            found = {e.name: (e.inode(), e.stat().st_size) for e in os.scandir(place)}
            assert found == {f"f{i}": ((place / f"f{i}").stat().st_ino, i) for i in range(50)}
            if first:
                lake.ctl("commit", "main", "-m", "listing")
            lake.umount()
            lake.mount()
        write(place / "late", b"")
        assert "late" in os.listdir(place)
        os.unlink(place / "f7")
        assert "f7" not in os.listdir(place)


def survival(lake, here):
    with tests.case("kill -9: everything that returned is there"):
        names_ = [f"k{i}" for i in range(200)]
        for name in names_:
            write(here / name, name.encode() * 100)
        os.rename(here / "k0", here / "renamed0")
        os.unlink(here / "k1")
        os.chmod(here / "k2", 0o611)
        os.setxattr(here / "k3", "user.a", b"b")
        os.link(here / "k4", here / "k4link")
        os.symlink("target", here / "ksym")
        os.truncate(here / "k5", 7)
        held = open(here / "k6", "ab")
        held.write(b"tail")
        held.flush()
        lake.kill()
        try:
            open(here / "k7", "rb").close()
            raise AssertionError("a dead daemon's file opens")
        except OSError as problem:
            assert problem.errno in (errno.ENOTCONN, errno.ECONNABORTED), problem
        held.close()
        lake.mount()
        assert (here / "renamed0").read_bytes() == b"k0" * 100
        assert not (here / "k0").exists() and not (here / "k1").exists()
        assert stat.S_IMODE((here / "k2").stat().st_mode) == 0o611
        assert os.getxattr(here / "k3", "user.a") == b"b"
        assert (here / "k4").stat().st_nlink == 2
        assert os.readlink(here / "ksym") == "target"
        assert (here / "k5").read_bytes() == b"k5k5k5k"
        assert (here / "k6").read_bytes() == b"k6" * 100 + b"tail"
        for name in names_[7:]:
            assert (here / name).read_bytes() == name.encode() * 100

    with tests.case("unlinked open files leave no staging file behind"):
        def staged():
            return sum(len(files) for _, _, files in os.walk(lake.directory / "staging"))
        before, counted = -1, staged()
        while counted != before:  # what was deleted before goes a moment later
            time.sleep(0.6)
            before, counted = counted, staged()
        with open(here / "temporary", "w+b") as file:
            os.unlink(here / "temporary")
            file.write(b"x" * 100_000)
            file.flush()
            assert staged() == before + 1
        deadline = time.time() + 5
        while staged() != before and time.time() < deadline:
            time.sleep(0.05)
        assert staged() == before


def run(passthrough):
    with Lake(*([] if passthrough else ["--no-passthrough"])) as lake:
        lake.scratch.chmod(0o711)
        here = lake / "main/t"
        here.mkdir()
        write(here / "probe", b"probe")
        used = metric(lake, "lake_mount_passthrough_opens_total")
        print(f"# passthrough {'wanted' if passthrough else 'off'}: {used} opens")
        if passthrough and not used:
            tests.skip("passthrough", "this kernel, user or file system does not offer it")
            return
        assert passthrough or not used
        for group in (contents, names, attributes, versions, directories, survival):
            group(lake, here)
        if os.geteuid() == 0:
            owners(lake, here)
        else:
            tests.skip("owners and set-id bits", "only root can give files away")


run(True)
run(False)
tests.done()
