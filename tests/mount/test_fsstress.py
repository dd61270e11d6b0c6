#!/usr/bin/env python3
"""Several processes do everything to the same few names while commits, branches and merges go on;
then nothing may be damaged, and a remount shows the same tree.

FSSTRESS_SECONDS says how long for each way of serving files, FSSTRESS_SEED repeats the choices.
"""
import ctypes
import errno
import hashlib
import mmap
import os
import pathlib
import random
import signal
import stat
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Lake, Refused, Tests  # noqa: E402

SECONDS = float(os.environ.get("FSSTRESS_SECONDS", 5))
SEED = int(os.environ.get("FSSTRESS_SEED", random.randrange(1 << 32)))
WORKERS = 4
NAMES = ("a", "b", "c", "d", "e")
DEPTH_MAX = 4
LENGTHS = (0, 1, 100, 4096, 5000, 70_000, 300_000)
KEEP_SIZE, PUNCH_HOLE = 1, 2
NOREPLACE, EXCHANGE = 1, 2
AT_FDCWD = -100

# What programs may see that are in each other's way; EIO, ESTALE and all else is a failure.
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
            errno.EINVAL, errno.ENODATA, errno.ENXIO, errno.EPERM, errno.EBUSY}
libc = ctypes.CDLL(None, use_errno=True)
tests = Tests()


def call(name, *arguments):
    converted = [ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_char_p(os.fsencode(a))
                 for a in arguments]
    if getattr(libc, name)(*converted) < 0:
        raise OSError(ctypes.get_errno(), name)


class Worker:
    def __init__(self, root, seed):
        self.root, self.dice = root, random.Random(seed)
        self.done = self.refused = 0
        self.operations = [getattr(self, name) for name in dir(self) if name.startswith("do_")]

    def path(self):
        depth = self.dice.randrange(1, DEPTH_MAX + 1)
        return os.path.join(self.root, *(self.dice.choice(NAMES) for _ in range(depth)))

    def data(self):
        return self.dice.randbytes(self.dice.choice(LENGTHS))

    def run(self, until):
        while time.time() < until:
            operation = self.dice.choice(self.operations)
            try:
                operation()
                self.done += 1
            except OSError as problem:
                if problem.errno not in EXPECTED:
                    raise RuntimeError(f"{operation.__name__}: {problem}") from problem
                self.refused += 1
        assert self.done > self.refused / 20, f"{self.done} of {self.done + self.refused} operations succeed"

    def open(self, flags):
        # O_NONBLOCK: it may be a FIFO.
        return os.open(self.path(), flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)

    def within(self, flags, function):
        descriptor = self.open(flags)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                function(descriptor)
        finally:
            os.close(descriptor)

    def do_make_directory(self):
        os.mkdir(self.path(), 0o755)

    do_make_directory_too = do_make_deeper = do_make_directory

    def do_create(self):
        self.within(os.O_CREAT | os.O_EXCL | os.O_RDWR, lambda fd: os.write(fd, self.data()))

    do_create_too = do_create

    def do_write(self):
        self.within(os.O_RDWR, lambda fd: os.pwrite(fd, self.data(), self.dice.choice(LENGTHS)))

    def do_append(self):
        self.within(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, self.data()))

    def do_overwrite(self):
        self.within(os.O_CREAT | os.O_TRUNC | os.O_WRONLY, lambda fd: os.write(fd, self.data()))

    def do_read(self):
        self.within(os.O_RDONLY, lambda fd: os.pread(fd, 400_000, 0))

    def do_truncate(self):
        os.truncate(self.path(), self.dice.choice(LENGTHS))

    def do_truncate_open(self):
        self.within(os.O_RDWR, lambda fd: os.ftruncate(fd, self.dice.choice(LENGTHS)))

    def do_punch(self):
        self.within(os.O_RDWR, lambda fd: call("fallocate", fd, KEEP_SIZE | PUNCH_HOLE, 3000, 9000))

    def do_sync(self):
        self.within(os.O_RDWR, os.fsync)

    def do_map(self):
        def change(fd):
            os.ftruncate(fd, 8192)
            with mmap.mmap(fd, 8192) as view:
                view[100:200] = self.dice.randbytes(100)
                # Others may make the file shorter meanwhile, but then this dies of SIGBUS, as anywhere.
        path = self.path() + "." + str(os.getpid())  # nobody else's
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600)
        try:
            change(descriptor)
        finally:
            os.close(descriptor)
        if self.dice.randrange(4):
            os.rename(path, self.path())
        else:
            os.unlink(path)

    def do_unlinked(self):
        """An open file without a name still has its bytes."""
        path = self.path() + "." + str(os.getpid())
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600)
        try:
            data = self.data()
            os.write(descriptor, data)
            os.unlink(path)
            if os.pread(descriptor, len(data) + 1, 0) != data:
                raise RuntimeError("a file without a name has other bytes")
        finally:
            os.close(descriptor)

    def do_unlink(self):
        os.unlink(self.path())

    def do_remove_directory(self):
        os.rmdir(self.path())

    def do_rename(self):
        os.rename(self.path(), self.path())

    def do_exchange(self):
        call("renameat2", AT_FDCWD, self.path(), AT_FDCWD, self.path(), EXCHANGE)

    def do_rename_to_new(self):
        call("renameat2", AT_FDCWD, self.path(), AT_FDCWD, self.path(), NOREPLACE)

    def do_link(self):
        os.link(self.path(), self.path(), follow_symlinks=False)

    def do_symlink(self):
        os.symlink(self.dice.choice(("a", "../b", "nowhere/c", "c/d")), self.path())

    def do_fifo(self):
        os.mkfifo(self.path())

    def do_mode(self):
        os.chmod(self.path(), self.dice.choice((0o600, 0o755, 0o4711, 0o1777)))

    def do_owner(self):
        os.chown(self.path(), self.dice.randrange(3), self.dice.randrange(3), follow_symlinks=False)

    def do_times(self):
        os.utime(self.path(), (10**9, 10**9 + self.dice.randrange(10**6)), follow_symlinks=False)

    def do_set_xattr(self):
        os.setxattr(self.path(), "user." + self.dice.choice(NAMES), self.dice.randbytes(40))

    def do_remove_xattr(self):
        os.removexattr(self.path(), "user." + self.dice.choice(NAMES))

    def do_list(self):
        with os.scandir(self.path()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)

    def do_stat(self):
        os.stat(self.path())


def fork(root, seed, until):
    pid = os.fork()
    if pid:
        return pid
    try:
        Worker(root, seed).run(until)
        os._exit(0)
    except BaseException as problem:  # nothing of the parent's may run here
        print(f"# worker {seed}: {type(problem).__name__}: {problem}", flush=True)
        os._exit(1)


def versions(lake, until, dice):
    """Commits, branches, merges and looks at what was committed, as long as the workers work."""
    counts = {"commits": 0, "branches": 0, "merges": 0}
    lake.ctl("branch", "create", "side", "work")
    first = [0, 2, 3]  # one of each, however slow all of this is
    while first or time.time() < until:
        choice = first.pop() if first else dice.randrange(4)
        try:
            if choice < 2:
                lake.ctl("commit", "work", "-m", "under load", "--allow-open")
                counts["commits"] += 1
            elif choice == 2:
                name = f"b{counts['branches']}"
                lake.ctl("branch", "create", name, "work")
                counts["branches"] += 1
                tree(lake / name)
                lake.ctl("branch", "delete", name)
            else:
                (lake / "side" / f"from side {counts['merges']}").write_text("new")
                lake.ctl("commit", "side", "-m", "aside")
                lake.ctl("merge", "side", "work")
                counts["merges"] += 1
        except Refused as refusal:
            # 3: what the workers changed as well.
            if refusal.code != 3 and "nothing to commit" not in str(refusal):
                raise
        time.sleep(dice.random() / 10)
    return counts


def look(path, links):
    found = os.lstat(path)
    entry = [found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns]
    if stat.S_ISLNK(found.st_mode):
        return [*entry, os.readlink(path)]
    entry += [(name, os.getxattr(path, name)) for name in sorted(os.listxattr(path))]
    if stat.S_ISREG(found.st_mode):
        content = pathlib.Path(path).read_bytes()
        assert len(content) == found.st_size, f"{path}: {len(content)} bytes, stat says {found.st_size}"
        entry += [found.st_size, hashlib.sha256(content).hexdigest(), found.st_nlink if links else 1]
    return entry


def tree(root, links=False):
    """Everything below a directory; a commit makes linked names files of their own."""
    entries = {}
    for directory, directories, files in os.walk(root, onerror=raises):
        for name in directories + files:
            path = os.path.join(directory, name)
            entries[os.path.relpath(path, root)] = look(path, links)
    return entries


def raises(problem):
    raise problem


def same(found, wanted):
    assert found.keys() == wanted.keys(), f"{found.keys() ^ wanted.keys()}"
    for path, entry in found.items():
        assert entry == wanted[path], f"{path}: {entry}, wanted {wanted[path]}"


def stress(lake, seed):
    until = time.time() + SECONDS
    root = str(lake / "work")
    workers = [fork(root, seed + number, until) for number in range(WORKERS)]
    try:
        counts = versions(lake, until, random.Random(seed))
    finally:
        deadline = time.time() + 60
        failed = 0
        while workers and time.time() < deadline:
            for pid in list(workers):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    workers.remove(pid)
                    failed += status != 0
            time.sleep(0.01)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
    assert not workers, f"{len(workers)} workers hang"
    assert not failed, f"{failed} workers failed"
    print(f"# {counts}")
    assert counts["commits"] and counts["branches"]


def fsck(lake):
    damage = lake.ctl("fsck")
    assert not damage.get("problems") and not damage.get("damaged"), damage


def unchanged_by_remounts(lake):
    before = tree(lake / "work", links=True)
    assert before
    lake.umount()
    lake.mount()
    same(tree(lake / "work", links=True), before)
    (lake / "work" / "at rest").write_text("there is something to commit")
    lake.ctl("commit", "work", "-m", "at rest")
    before = tree(lake / "work")
    same(tree(lake / "@work"), before)
    fsck(lake)
    lake.umount()
    fsck(lake)
    lake.mount()
    same(tree(lake / "work", links=True), before)


print(f"# FSSTRESS_SEED={SEED}")
for way, options in (("passthrough", ()), ("copying", ("--no-passthrough",))):
    with Lake(*options) as lake:
        lake.ctl("branch", "create", "work")
        with tests.case(f"{way}: {WORKERS} processes, commits, branches and merges"):
            stress(lake, SEED)
        with tests.case(f"{way}: nothing is damaged, a remount shows the same"):
            unchanged_by_remounts(lake)
tests.done()
