#!/usr/bin/env python3
"""A lake on a small disk of its own that fills up, runs out of inodes, turns read-only or dies.

What a write, a close or a command has acknowledged is there afterwards, byte for byte; what could not
be done was said (ENOSPC; a message with what to do); reading, status and deleting go on; with room
again everything works, and fsck finds nothing.

DISK_FULL=all fills the disk to every level from 256 KiB below the brim on, in steps of 8 KiB."""
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import pathlib
import random
import struct
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Lake, Refused, Tests, refused  # noqa: E402

FULL = {errno.ENOSPC, errno.EDQUOT}
EXT4_IOC_SHUTDOWN, SHUTDOWN_LOGFLUSH = 0x8004587D, 1
seed = int(os.environ.get("DISK_FULL_SEED", random.randrange(1 << 32)))
rng = random.Random(seed)
tests = Tests()


class SmallDisk(Lake):
    """`kind`: ext4 or tmpfs. The store may lie elsewhere."""

    def __init__(self, kind="ext4", megabytes=40, inodes=None, far_store=False, options=()):
        super().__init__(*options)
        self.kind, self.megabytes, self.inodes, self.far_store = kind, megabytes, inodes, far_store
        self.disk = self.scratch / "disk"
        # In memory: what is tried is room, not speed.
        self.image = pathlib.Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else self.scratch) / f"{self.scratch.name}.image"
        self.directory = self.disk / "lake"

    def attach(self):
        if self.kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs", self.disk]
        else:
            command = ["mount", "-o", "loop", self.image, self.disk]
        subprocess.run(command, check=True, capture_output=True)

    def __enter__(self):
        self.mountpoint.mkdir()
        self.disk.mkdir()
        if self.kind == "ext4":
            with open(self.image, "wb") as file:
                file.truncate(self.megabytes << 20)
            count = ["-N", str(self.inodes)] if self.inodes else []
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", *count, self.image], check=True, capture_output=True)
        self.attach()
        self.ctl("init", *(["--store", f"file://{self.scratch}/store"] if self.far_store else []))
        self.mount()
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)
        pid = self.pid()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            while os.path.exists(f"/proc/{pid}/fd/0"):
                time.sleep(0.01)
        subprocess.run(["umount", "-l", self.disk], capture_output=True, check=False)
        self.image.unlink(missing_ok=True)
        super().__exit__()

    def fill(self, leave=0):
        """Nothing but `leave` bytes is left."""
        with open(self.disk / "ballast", "ab", buffering=0) as file:
            for size in (1 << 20, 1 << 16, 4096, 512, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"b" * size)
            if leave:
                file.truncate(max(0, file.tell() - leave))

    def take_inodes(self):
        """No file can be made."""
        with contextlib.suppress(OSError):
            for i in range(1 << 20):
                (self.disk / f"ballast.{i}").touch()

    def free(self):
        for path in self.disk.glob("ballast*"):
            path.unlink()


def noise(size):
    return rng.randbytes(size)


class Ledger:
    """What was acknowledged: the bytes that each file must have."""

    def __init__(self):
        self.files = {}

    def put(self, path, data, piece=65536):
        """Writes until all is written or it fails; the errno, or 0."""
        acknowledged = b""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except OSError as problem:
            return problem.errno
        self.files[path] = b""
        failed = 0
        try:
            while len(acknowledged) < len(data):
                at = len(acknowledged)
                count = os.write(fd, data[at:at + piece])
                acknowledged += data[at:at + count]
            os.fsync(fd)
        except OSError as problem:
            failed = problem.errno
        finally:
            try:
                os.close(fd)
            except OSError as problem:
                failed = failed or problem.errno
        self.files[path] = acknowledged
        return failed

    def check(self):
        for path, data in self.files.items():
            found = path.read_bytes()
            assert found == data, f"{path}: {len(found)} bytes, {len(data)} acknowledged"
            assert path.stat().st_size == len(data)


def attempt(function, *arguments):
    """0 when it was done, else its errno, which must say that there is no room."""
    try:
        function(*arguments)
    except OSError as problem:
        assert problem.errno in FULL, problem
        return problem.errno
    return 0


def every_change(main, tag):
    """Each kind of change; those that are refused have done nothing."""
    results = {}
    there = main / "base" / "small"
    for name, change, holds in (
            ("mkdir", lambda: (main / f"d{tag}").mkdir(), lambda: (main / f"d{tag}").is_dir()),
            ("create", lambda: (main / f"c{tag}").touch(), lambda: (main / f"c{tag}").exists()),
            ("symlink", lambda: (main / f"s{tag}").symlink_to("x" * 200), lambda: (main / f"s{tag}").is_symlink()),
            ("link", lambda: os.link(there, main / f"l{tag}"), lambda: (main / f"l{tag}").exists()),
            ("setxattr", lambda: os.setxattr(there, f"user.{tag}", b"v" * 500),
             lambda: f"user.{tag}" in os.listxattr(there)),
            ("rename", lambda: os.rename(main / "base" / "old", main / f"r{tag}"),
             lambda: (main / f"r{tag}").exists()),
            ("rename back", lambda: os.rename(main / f"r{tag}", main / "base" / "old")
             if not results["rename"] else None, lambda: not (main / f"r{tag}").exists())):
        results[name] = attempt(change)
        expected = not results[name] if name != "rename back" else bool(not results[name] or results["rename"])
        assert holds() == expected, f"{name}: {results[name]}, but it is {holds()}"
    return results


def base_of(lake):
    """Something committed, something not."""
    main = lake / "main"
    (main / "base").mkdir()
    ledger = Ledger()
    for name, size in (("small", 100), ("old", 5000), ("large", 3 << 20)):
        assert ledger.put(main / "base" / name, noise(size)) == 0
    lake.ctl("commit", "main", "-m", "base")
    assert ledger.put(main / "uncommitted", noise(20000)) == 0
    lake.ctl("branch", "create", "other", "main")
    assert ledger.put(lake / "other" / "big", noise(4 << 20)) == 0
    return ledger


def no_room(failure):
    return any(word in str(failure) for word in ("space", "is full; make room", "make room"))


def drop(ledger, prefix, keep):
    """Deletes acknowledged files."""
    for path in [path for path in ledger.files if path.name.startswith(prefix)][keep:]:
        os.unlink(path)
        ledger.files.pop(path)


def head_of(lake):
    return lake.ctl("log", "main", "-n", "1")["commits"][0]["id"]


def works_again(lake, ledger, message="room again"):
    ledger.check()
    assert ledger.put(lake / "main" / f"after-{message}", noise(50000)) == 0
    lake.ctl("commit", "main", "-m", message)
    ledger.check()
    assert lake.ctl("fsck")["problems"] == []
    lake.umount()
    lake.mount()
    ledger.check()


def killed_when_full(lake, ledger):
    """Afterwards it mounts and has everything, or says that it needs room."""
    lake.kill()
    with contextlib.suppress(Refused):
        lake.mount()
        ledger.check()
    if not lake.pid():
        failure = refused(lake, "mount", lake.mountpoint)
        assert no_room(failure), failure


def full_disk(kind, far_store, options):
    where = f"{kind}, store {'elsewhere' if far_store else 'on it'}{', copied' if options else ''}"
    with SmallDisk(kind, far_store=far_store, options=options) as lake:
        main = lake / "main"
        ledger = base_of(lake)
        head = head_of(lake)
        with tests.case(f"{where}: writers hear ENOSPC, and have what they were told"):
            failed = [ledger.put(main / f"w{i}", noise(rng.randrange(1, 3 << 20)), rng.choice((4096, 65536, 1 << 20)))
                      for i in range(40)]
            assert any(failed) and set(failed) <= FULL | {0}, failed
            ledger.check()
        lake.fill()
        with tests.case(f"{where}: without a byte left every change is done or is ENOSPC"):
            every_change(main, "brim")
            failed = ledger.put(main / "brim", noise(100000))
            assert failed in FULL, failed
            ledger.check()
        with tests.case(f"{where}: reading and status go on"):
            ledger.check()
            lake.ctl("status", "main")
            lake.ctl("log", "main")
        with tests.case(f"{where}: commit is done, or changes nothing and says what to do"):
            try:
                lake.ctl("commit", "main", "-m", "no room")
                assert far_store  # needs none here
            except Refused as failure:
                assert failure.code == 1 and no_room(failure), failure
                assert head_of(lake) == head
            ledger.check()
        with tests.case(f"{where}: files can be deleted, that makes room, then a branch can be"):
            drop(ledger, "w", 8)
            deadline = time.monotonic() + 15
            while (failed := ledger.put(main / f"room{time.monotonic_ns()}", noise(100000))) != 0:
                assert failed in FULL and time.monotonic() < deadline, failed
                time.sleep(0.1)
            lake.ctl("branch", "delete", "other", "--force")
            ledger.files.pop(lake / "other" / "big")
            ledger.check()
        lake.fill()
        with tests.case(f"{where}: killed on a full disk; nothing is lost"):
            killed_when_full(lake, ledger)
        lake.free()
        with tests.case(f"{where}: with room again everything works"):
            if not lake.pid():
                lake.mount()
            drop(ledger, "w", 2)
            works_again(lake, ledger)


def levels():
    """From a bit of room to none: at every level all that was acknowledged holds."""
    steps = range(256 << 10, -1, -(8 << 10)) if os.environ.get("DISK_FULL") == "all" else \
        sorted(rng.sample(range(4096, 256 << 10, 4096), 5), reverse=True) + [0]
    with SmallDisk("ext4") as lake:
        main = lake / "main"
        ledger = base_of(lake)
        with tests.case(f"{len(steps)} levels of room left (DISK_FULL_SEED={seed})"):
            for level in steps:
                lake.free()
                lake.fill(level)
                head = head_of(lake)
                every_change(main, f"{level}")
                assert ledger.put(main / f"level{level}", noise(30000)) in FULL | {0}
                try:
                    lake.ctl("commit", "main", "-m", f"level {level}")
                except Refused as failure:  # or every change was refused before
                    assert no_room(failure) or "nothing to commit" in str(failure), failure
                    assert head_of(lake) == head
                ledger.check()
            lake.free()
            works_again(lake, ledger)


def no_inodes():
    with SmallDisk("ext4", inodes=500) as lake:
        main = lake / "main"
        ledger = base_of(lake)
        with tests.case("inodes: creating files ends with ENOSPC"):
            failed, i = 0, 0
            while not failed and i < 1000:
                failed = ledger.put(main / f"i{i}", b"i")
                i += 1
            assert failed in FULL, (failed, i)
            ledger.check()
            lake.ctl("status", "main")
        with tests.case("inodes: deleting makes room, and commit goes on"):
            drop(ledger, "i", 20)
            lake.ctl("commit", "main", "-m", "inodes")
            works_again(lake, ledger)
        lake.take_inodes()
        with tests.case("inodes: with none left every change is done or is ENOSPC; reading, status and deleting go on"):
            every_change(main, "brim")
            assert ledger.put(main / "brim", noise(1000)) in FULL
            attempt(lambda: os.close(os.open(main / "base" / "large", os.O_RDWR)))  # committed: it needs a copy to write to
            lake.ctl("status", "main")
            drop(ledger, "i", 10)
            ledger.check()
        with tests.case("inodes: with none left commit is done, or changes nothing and says what to do"):
            lake.take_inodes()
            head = head_of(lake)
            try:
                lake.ctl("commit", "main", "-m", "no inodes")
            except Refused as failure:
                assert failure.code == 1 and no_room(failure), failure
                assert head_of(lake) == head
            ledger.check()
        with tests.case("inodes: killed with none left; nothing is lost, and with some again everything works"):
            killed_when_full(lake, ledger)
            lake.free()
            if not lake.pid():
                lake.mount()
            works_again(lake, ledger, "inodes")


def fetching():
    """Content that is not cached, and no room for it: it is read as it comes."""
    big = noise(20 << 20)
    with SmallDisk("ext4", inodes=500, far_store=True) as lake:
        ledger = base_of(lake)
        ledger.put(lake / "main" / "base" / "big", big)
        lake.ctl("commit", "main", "-m", "big")
        names = ("small", "old", "large", "big")
        for what in ("bytes", "inodes"):
            lake.umount()
            subprocess.run(["rm", "-rf", lake.directory / "cache"], check=True)
            lake.mount()
            if what == "bytes":
                lake.fill()
            else:
                lake.take_inodes()
            room = os.statvfs(lake.disk)
            with tests.case(f"what is not cached, with no {what} left: it is read all the same"):
                assert room.f_bavail == 0 if what == "bytes" else room.f_favail == 0, room
                for name in names + names:
                    path = lake / "main" / "base" / name
                    assert path.read_bytes() == ledger.files[path]
                assert bytes.fromhex("".join(lake.ctl("cat", "main:base/old")["data"])) == ledger.files[lake / "main/base/old"]
            lake.free()
        lake.umount()
        subprocess.run(["rm", "-rf", lake.directory / "cache"], check=True)
        lake.mount()
        with tests.case("the disk fills while a large file is read: what is left of it is read all the same"):
            with open(lake / "main" / "base" / "big", "rb", buffering=0) as file:
                first = file.read(1 << 20)
                lake.fill()
                rest = b"".join(iter(lambda: file.read(1 << 20), b""))
            assert first + rest == big
            ledger.check()
        lake.free()
        with tests.case("with room it is cached"):
            works_again(lake, ledger)
            assert sum(1 for path in (lake.directory / "cache").rglob("*") if path.is_file()) > len(names)


def write_mapped(path, size, how, told):
    """In a process of its own, which a SIGBUS may end. Says to `told` how many pages are safe."""
    fd = os.open(path, os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)  # mmap.mmap has a descriptor of its own, and nobody looks at its closing
    libc.mmap.restype = ctypes.c_void_p
    mapping = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    for at in range(0, size, 4096):
        page = ctypes.c_void_p(mapping + at)
        ctypes.memmove(page, page_of(at), 4096)
        if how == "msync":
            if libc.msync(page, ctypes.c_size_t(4096), 4):  # MS_SYNC
                raise OSError(ctypes.get_errno(), "msync")
            os.write(told, struct.pack("<I", at // 4096 + 1))
    libc.munmap(ctypes.c_void_p(mapping), ctypes.c_size_t(size))
    if how == "fsync":
        os.fsync(fd)
    os.close(fd)
    os.write(told, struct.pack("<I", size // 4096))


def page_of(at):
    return hashlib.sha256(at.to_bytes(8, "little")).digest() * 128


def mapped_pages(path, size, how):
    """Pages that the writer was told are safe, and what ended it: an errno, a signal or None."""
    to_read, to_write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            write_mapped(path, size, how, to_write)
        except OSError as problem:
            code = problem.errno
        os._exit(code)
    os.close(to_write)
    with os.fdopen(to_read, "rb") as told:
        safe = told.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return struct.unpack("<I", safe[-4:])[0] if safe else 0, status


def mapped(options):
    """Pages of holes written through mappings when there is no room for them: SIGBUS or an error, never silence."""
    where = "copied" if options else "passed through"
    size = 4 << 20
    with SmallDisk("ext4", options=options) as lake:
        main = lake / "main"
        ledger = base_of(lake)
        safe = {}
        for how in ("msync", "fsync", "close"):
            with open(main / how, "wb") as file:
                file.truncate(size)
        lake.fill(1 << 20)
        for how in ("msync", "fsync", "close"):
            with tests.case(f"mapped writes without room, {where}, {how}: SIGBUS or an error, and what was told is kept"):
                safe[how], status = mapped_pages(main / how, size, how)
                assert status == -signal.SIGBUS or status in FULL | {errno.EIO}, status
                assert safe[how] < size // 4096
                ledger.check()
        with tests.case(f"mapped writes without room, {where}: with room again, after kill -9, nothing told is missing"):
            lake.kill()
            lake.free()
            subprocess.run(["umount", "-l", lake.mountpoint], capture_output=True, check=False)
            lake.mount()
            for how, pages in safe.items():
                found = (main / how).read_bytes()
                assert len(found) == size
                for at in range(0, size, 4096):
                    page = found[at:at + 4096]
                    assert page == page_of(at) or (at >= pages * 4096 and page == bytes(4096)), (how, at, pages)
            assert mapped_pages(main / "close", size, "close") == (size // 4096, 0)
            works_again(lake, ledger)


def bad_disk(name, spoil, errnos):
    """The disk below turns against us while the lake is mounted."""
    with SmallDisk("ext4", options=("--no-supervisor",)) as lake:
        main = lake / "main"
        ledger = base_of(lake)
        daemon = lake.pid()
        spoil(lake)
        with tests.case(f"{name}: changes are errors, not successes"):
            for change in (lambda: (main / "new").mkdir(), lambda: (main / "file").write_bytes(noise(100000))):
                try:
                    change()
                    raise AssertionError("it succeeded")
                except OSError as problem:
                    assert problem.errno in errnos, problem
            failure = refused(lake, "commit", "main", "-m", "bad disk")
            assert str(failure).strip(), failure
        with tests.case(f"{name}: with the disk back everything is there"):
            os.kill(daemon, signal.SIGKILL)
            while os.path.exists(f"/proc/{daemon}/fd/0") or lake.threads(daemon) > 1:
                time.sleep(0.01)
            subprocess.run(["umount", "-l", lake.mountpoint], capture_output=True, check=False)
            subprocess.run(["umount", lake.disk], check=True)
            lake.attach()
            lake.mount()
            works_again(lake, ledger)


def shut_down(lake):
    """The disk stops answering (its log is written: what was synced is there)."""
    os.sync()
    fd = os.open(lake.disk, os.O_RDONLY)
    fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_LOGFLUSH))
    os.close(fd)


def make_read_only(lake):
    """As ext4 does by itself after an error."""
    os.sync()
    subprocess.run(["mount", "-o", "remount,abort", lake.disk], check=True, capture_output=True)


if os.geteuid() != 0:
    tests.skip("disk full", "needs root for a disk of its own")
    tests.done()
parts = {
    "ext4": lambda: full_disk("ext4", False, ()),
    "tmpfs": lambda: full_disk("tmpfs", False, ("--no-passthrough",)),
    "far": lambda: full_disk("ext4", True, ()),
    "levels": levels,
    "inodes": no_inodes,
    "fetching": fetching,
    "mapped": lambda: mapped(()),
    "mapped-copied": lambda: mapped(("--no-passthrough",)),
    "dead": lambda: bad_disk("a disk that died", shut_down, {errno.EIO, errno.EROFS}),
    "read-only": lambda: bad_disk("a read-only disk", make_read_only, {errno.EIO, errno.EROFS}),
}
for part in sys.argv[1:] or parts:
    parts[part]()
tests.done()
