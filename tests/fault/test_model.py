#!/usr/bin/env python3
"""Random operations on a branch and on a plain directory side by side: after every phase both
must look alike, whatever commits, branches, merges, resets, restarts and kill -9 happened.

MODEL_SEED repeats a run, MODEL_ROUNDS says how many phases it has, MODEL_MODE (passthrough or
copying) picks one of the two ways in which files are served.
"""
import collections
import ctypes
import errno
import hashlib
import json
import mmap
import os
import pathlib
import random
import shutil
import stat
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Lake, Refused, Tests  # noqa: E402

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
NOREPLACE, EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
COPY_UP_BYTES_MAX = 65536
SIZE_MAX = 300_000
OPERATIONS = 50
HANDLES_MAX = 8
# Times up to here were set by the test and must be equal; later ones come from the clock.
SET_TIMES_NS = 1_000_000_000 * 10**9
CLOCK_SLACK_NS = 120 * 10**9
SIDE = "side"  # only merged branches write below it


def call(name, *arguments):
    converted = [ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_char_p(os.fsencode(a))
                 for a in arguments]
    if getattr(libc, name)(*converted) < 0:
        raise OSError(ctypes.get_errno(), name)


def outcome(function, *arguments, **keywords):
    """What a call gives: its value, or its errno."""
    try:
        return ("value", function(*arguments, **keywords))
    except OSError as problem:
        return ("errno", errno.errorcode[problem.errno])


Entry = collections.namedtuple("Entry", "mode uid gid size mtime target xattrs digest nlink")


def look(path):
    found = os.lstat(path)
    target = digest = None
    xattrs = ()
    size = found.st_size
    if stat.S_ISLNK(found.st_mode):
        target = os.readlink(path)
    else:
        xattrs = tuple((name, os.getxattr(path, name)) for name in sorted(os.listxattr(path)))
    if stat.S_ISREG(found.st_mode):
        with open(path, "rb") as file:
            data = file.read()
        assert len(data) == size, f"{path}: {len(data)} bytes, but stat says {size}"
        digest = hashlib.sha256(data).hexdigest()
    if stat.S_ISDIR(found.st_mode):
        size = 0
    nlink = 1 if stat.S_ISDIR(found.st_mode) else found.st_nlink
    return Entry(found.st_mode, found.st_uid, found.st_gid, size, found.st_mtime_ns, target,
                 xattrs, digest, nlink)


def tree(root):
    """Everything below a directory, and itself as '.'."""
    entries = {".": look(root)}
    stack = [(root, "")]
    while stack:
        directory, prefix = stack.pop()
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            entries[prefix + name] = entry = look(path)
            if stat.S_ISDIR(entry.mode):
                stack.append((path, prefix + name + "/"))
    return entries


def times_agree(one, other):
    if min(one, other) <= SET_TIMES_NS:
        return one == other
    return abs(one - other) < CLOCK_SLACK_NS


def same(found, wanted, what, times="agree", links=True):
    assert found.keys() == wanted.keys(), \
        f"{what}: only found {sorted(found.keys() - wanted.keys())}, " \
        f"only wanted {sorted(wanted.keys() - found.keys())}"
    for path, entry in found.items():
        other = wanted[path]
        if times == "agree":
            assert times_agree(entry.mtime, other.mtime), \
                f"{what}: {path}: mtime {entry.mtime}, wanted {other.mtime}"
        elif times == "equal":
            assert entry.mtime == other.mtime, \
                f"{what}: {path}: mtime {entry.mtime}, wanted {other.mtime}"
        ignored = {"mtime": 0} if links else {"mtime": 0, "nlink": 0}
        assert entry._replace(**ignored) == other._replace(**ignored), \
            f"{what}: {path}: {entry}, wanted {other}"


def copy(source, target):
    """A copy in which every name is a file of its own."""
    subprocess.run(["cp", "-dRT", "--preserve=mode,ownership,timestamps,xattr", source, target],
                   check=True)


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


class Handle:
    """One file open twice: in the lake, and in the plain directory."""

    def __init__(self, path, lake, plain, flags):
        self.path, self.lake, self.plain, self.flags = path, lake, plain, flags
        self.inode = os.fstat(plain).st_ino

    def writes(self):
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    def reads(self):
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    def close(self):
        os.close(self.lake)
        os.close(self.plain)


class Model:
    def __init__(self, lake, seed):
        self.lake, self.dice = lake, random.Random(seed)
        self.here = lake / "main"
        self.plain = lake.scratch / "plain"
        self.saved = lake.scratch / "saved"
        self.saved.mkdir()
        self.handles = []
        self.commits = {}    # id: what the tree looked like
        self.history = []    # heads, for reset
        self.touched = set()  # plain inodes with uncommitted bytes: their node stays when written
        self.log = collections.deque(maxlen=int(os.environ.get("MODEL_LOG", 60)))
        self.side = 0
        os.mkdir(self.plain)
        shutil.copystat(self.here, self.plain)
        self.head = lake.ctl("log", "-n", 1, "main")["commits"][0]["id"]
        self.note_commit(self.head)

    # -- both sides --

    def both(self, what, function):
        """Run on both sides; the outcomes must be equal. True when it succeeded."""
        self.log.append(what)
        mine = outcome(function, self.here)
        plain = outcome(function, self.plain)
        self.log[-1] += f" -> {mine[1]}"
        assert mine == plain, f"{what}: {mine}, wanted {plain}"
        return mine[0] == "value"

    def paths(self, wanted=None):
        found = []
        for directory, directories, files in os.walk(self.plain):
            for name in directories + files:
                path = os.path.join(directory, name)
                mode = os.lstat(path).st_mode
                if wanted is None or wanted(mode):
                    found.append(os.path.relpath(path, self.plain))
        return sorted(path for path in found if path.split("/")[0] != SIDE)

    def new_path(self):
        directories = [""] + [d + "/" for d in self.paths(stat.S_ISDIR) if d.count("/") < 3]
        return self.dice.choice(directories) + self.dice.choice("abcdefgh")

    def any_path(self, wanted=None):
        found = self.paths(wanted)
        kind = self.dice.randrange(20)
        if kind == 0 and found:  # below something that may be a file
            return self.dice.choice(found) + "/" + self.dice.choice("abc")
        if kind <= 2 or not found:
            return self.new_path()
        return self.dice.choice(found)

    def file_path(self):
        return self.any_path(stat.S_ISREG)

    def data(self):
        length = self.dice.choice((1, 100, 4096, 5000, 40_000, 100_000))
        length = self.dice.randrange(1, length + 1)
        unit = self.dice.randbytes(min(length, 997))
        return (unit * (length // len(unit) + 1))[:length]

    def offset(self):
        at = self.dice.randrange(SIZE_MAX)
        return at & ~4095 if self.dice.randrange(3) == 0 else at

    # -- nodes: who sees what is written --

    def inode(self, path):
        try:
            found = os.stat(os.path.join(self.plain, path))
        except OSError:
            return None
        return found.st_ino if stat.S_ISREG(found.st_mode) else None

    def part(self, path):
        """The first write to a committed file: descriptors opened before keep the old bytes."""
        inode = self.inode(path)
        if inode is None or inode in self.touched:
            return
        self.touched.add(inode)
        for handle in self.handles:
            if handle.inode == inode:
                fd = os.open(self.lake.scratch, os.O_TMPFILE | os.O_RDWR)
                size = os.fstat(handle.plain).st_size
                os.pwrite(fd, os.pread(handle.plain, size, 0), 0)
                os.close(handle.plain)
                handle.plain, handle.inode = fd, None

    def settle(self, path):
        """Whether this changes the mtime differs between file systems."""
        if self.inode(path):
            when = self.some_time()
            self.both(f"utime {path} {when}",
                      lambda root: os.utime(os.path.join(root, path), ns=(when, when)))

    def some_time(self):
        return self.dice.randrange(-10**18, SET_TIMES_NS)

    # -- operations by path --

    def op_create(self):
        path, data = self.any_path(), self.data()
        flags = os.O_CREAT | os.O_WRONLY | self.dice.choice(
            (0, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_EXCL))
        mode = self.dice.choice((0o644, 0o600, 0o777))
        if not flags & os.O_EXCL:
            self.part(path)

        def do(root):
            fd = os.open(os.path.join(root, path), flags, mode)
            try:
                return os.write(fd, data)
            finally:
                os.close(fd)
        if self.both(f"create {path} {flags:o} {len(data)}", do):
            self.touched.add(self.inode(path))

    def op_write(self):
        path, data, at = self.file_path(), self.data(), self.offset()
        self.part(path)

        def do(root):
            fd = os.open(os.path.join(root, path), os.O_RDWR)
            try:
                return os.pwrite(fd, data, at)
            finally:
                os.close(fd)
        self.both(f"write {path} {at}+{len(data)}", do)

    def op_append(self):
        path, data = self.file_path(), self.data()
        self.part(path)

        def do(root):
            with open(os.path.join(root, path), "ab", buffering=0) as file:
                return file.write(data)
        if self.inode(path):
            self.both(f"append {path} {len(data)}", do)

    def op_truncate(self):
        path = self.file_path()
        size = self.dice.choice((0, self.offset(), self.offset(), -1))
        if size >= 0:
            self.part(path)
        self.both(f"truncate {path} {size}",
                  lambda root: os.truncate(os.path.join(root, path), size))
        if size >= 0:
            self.settle(path)

    def op_overwrite(self):
        path, data = self.file_path(), self.data()
        self.part(path)

        def do(root):
            fd = os.open(os.path.join(root, path), os.O_WRONLY | os.O_TRUNC)
            try:
                return os.write(fd, data)
            finally:
                os.close(fd)
        self.both(f"overwrite {path} {len(data)}", do)

    def op_mmap(self):
        path = self.file_path()
        inode = self.inode(path)
        size = os.stat(self.plain / path).st_size if inode else 0
        if not size:
            return
        self.part(path)
        at = self.dice.randrange(size)
        data = self.data()[:size - at]

        def do(root):
            with open(os.path.join(root, path), "r+b") as file, \
                    mmap.mmap(file.fileno(), 0) as view:
                view[at:at + len(data)] = data
                view.flush()
        self.both(f"mmap {path} {at}+{len(data)}", do)

    def op_allocate(self):
        path = self.file_path()
        mode = self.dice.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE,
                                 ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, PUNCH_HOLE))
        at, length = self.offset(), self.dice.choice((0, 4096, self.offset(), 10_000))
        self.part(path)

        def do(root):
            fd = os.open(os.path.join(root, path), os.O_RDWR)
            try:
                call("fallocate", fd, mode, at, length)
            finally:
                os.close(fd)
        self.both(f"fallocate {path} mode {mode} {at}+{length}", do)
        self.settle(path)

    def op_copy_range(self):
        """A file's bytes into another one, by the kernel."""
        source, target = self.file_path(), self.file_path()
        if not self.inode(source) or not self.inode(target) or \
                self.inode(source) == self.inode(target):
            return
        self.part(target)
        at, to, length = self.offset(), self.offset(), self.dice.randrange(1, SIZE_MAX)

        def do(root):
            one = os.open(os.path.join(root, source), os.O_RDONLY)
            other = os.open(os.path.join(root, target), os.O_WRONLY)
            done = 0
            try:
                while done < length:
                    step = os.copy_file_range(one, other, length - done, at + done, to + done)
                    if not step:
                        break
                    done += step
                return done
            finally:
                os.close(one)
                os.close(other)
        self.both(f"copy_file_range {source} {at} to {target} {to}+{length}", do)
        self.settle(target)

    def op_mkdir(self):
        path = self.any_path() if self.dice.randrange(4) == 0 else self.new_path()
        self.both(f"mkdir {path}", lambda root: os.mkdir(os.path.join(root, path)))

    def op_rmdir(self):
        path = self.any_path(stat.S_ISDIR) if self.dice.randrange(5) else self.any_path()
        self.both(f"rmdir {path}", lambda root: os.rmdir(os.path.join(root, path)))

    def op_rmtree(self):
        if self.dice.randrange(5):
            return
        path = self.any_path(stat.S_ISDIR)

        def do(root):
            remove(os.path.join(root, path))
        self.both(f"rmtree {path}", do)

    def op_unlink(self):
        path = self.any_path()
        self.both(f"unlink {path}", lambda root: os.unlink(os.path.join(root, path)))

    def op_rename(self):
        one, other = self.any_path(), self.any_path()
        flags = self.dice.choice((0, 0, 0, NOREPLACE, EXCHANGE))
        self.both(f"rename {one} {other} {flags}",
                  lambda root: call("renameat2", AT_FDCWD, os.path.join(root, one), AT_FDCWD,
                                    os.path.join(root, other), flags))

    op_rename_again = op_rename

    def op_link(self):
        one, other = self.any_path(), self.any_path()
        self.both(f"link {one} {other}",
                  lambda root: os.link(os.path.join(root, one), os.path.join(root, other),
                                       follow_symlinks=False))

    def op_symlink(self):
        path = self.any_path()
        target = self.dice.choice(("a", "b/c", "./d", "none", "x" * 200))
        self.both(f"symlink {path}", lambda root: os.symlink(target, os.path.join(root, path)))

    def op_chmod(self):
        path = self.any_path(lambda mode: not stat.S_ISLNK(mode))
        mode = self.dice.choice((0o644, 0o600, 0o755, 0o700, 0o4755, 0o1777))
        self.both(f"chmod {path} {mode:o}",
                  lambda root: os.chmod(os.path.join(root, path), mode))

    def op_chown(self):
        path, uid, gid = self.any_path(), self.dice.randrange(5), self.dice.randrange(5)
        self.both(f"chown {path} {uid} {gid}",
                  lambda root: os.lchown(os.path.join(root, path), uid, gid))

    def op_utime(self):
        path, when = self.any_path(), self.some_time()
        self.both(f"utime {path} {when}",
                  lambda root: os.utime(os.path.join(root, path), ns=(when, when),
                                        follow_symlinks=False))

    def op_setxattr(self):
        path = self.any_path()
        name, value = "user." + self.dice.choice("xyz"), self.data()[:300]
        flags = self.dice.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        self.both(f"setxattr {path} {name} {flags}",
                  lambda root: os.setxattr(os.path.join(root, path), name, value, flags,
                                           follow_symlinks=False))

    def op_removexattr(self):
        path, name = self.any_path(), "user." + self.dice.choice("xyz")
        self.both(f"removexattr {path} {name}",
                  lambda root: os.removexattr(os.path.join(root, path), name,
                                              follow_symlinks=False))

    def op_read(self):
        path, at, length = self.any_path(), self.offset(), self.dice.randrange(1, 100_000)

        def do(root):
            fd = os.open(os.path.join(root, path), os.O_RDONLY)
            try:
                return os.pread(fd, length, at), os.fstat(fd).st_size
            finally:
                os.close(fd)
        if self.inode(path):
            mine, plain = outcome(do, self.here), outcome(do, self.plain)
            assert mine == plain, f"read {path} {at}+{length}"

    def op_stat(self):
        """Also of what is not there, so that the kernel remembers that."""
        path = self.any_path()

        def do(root):
            return stat.S_IFMT(os.lstat(os.path.join(root, path)).st_mode)
        self.both(f"stat {path}", do)

    # -- operations through handles --

    def op_open(self):
        if len(self.handles) >= HANDLES_MAX:
            return
        path = self.file_path()
        flags = self.dice.choice((os.O_RDONLY, os.O_RDONLY, os.O_RDONLY, os.O_RDWR,
                                  os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC))
        if not self.inode(path):
            return
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.part(path)
        self.log.append(f"open {path} {flags:o}")
        self.handles.append(Handle(path, os.open(self.here / path, flags),
                                   os.open(self.plain / path, flags), flags))
        if flags & os.O_TRUNC:
            self.settle(path)

    def op_tmpfile(self):
        if len(self.handles) >= HANDLES_MAX:
            return
        directory, data, path = self.any_path(stat.S_ISDIR), self.data(), self.any_path()
        opened = []

        def do(root):
            fd = os.open(os.path.join(root, directory), os.O_TMPFILE | os.O_RDWR, 0o640)
            os.write(fd, data)
            opened.append(fd)
        if not self.both(f"tmpfile in {directory}", do):
            return
        handle = Handle(f"nameless in {directory}", *opened, os.O_RDWR)
        self.handles.append(handle)
        self.touched.add(handle.inode)
        if self.dice.randrange(3):
            self.both(f"linkat tmpfile {path}",
                      lambda root: call("linkat", AT_FDCWD, f"/proc/self/fd/{opened[root == self.plain]}",
                                        AT_FDCWD, os.path.join(root, path), AT_SYMLINK_FOLLOW))

    def op_handle(self):
        if not self.handles:
            return
        handle = self.dice.choice(self.handles)
        kind, data, at = self.dice.randrange(10), self.data(), self.offset()

        def do(fd):
            if kind == 0:
                return os.fsync(fd)
            if kind <= 4 and handle.writes():
                if handle.flags & os.O_APPEND:
                    return os.write(fd, data)
                return os.pwrite(fd, data, at)
            if kind == 5 and handle.writes():
                return os.ftruncate(fd, at)
            if kind == 6 and handle.writes():
                call("fallocate", fd, PUNCH_HOLE | KEEP_SIZE, at, len(data))
                return os.utime(fd, ns=(1, 1))
            if kind == 7 and handle.writes() and handle.reads() and os.fstat(fd).st_size:
                with mmap.mmap(fd, 0) as view:
                    view[:10] = (data * 10)[:len(view[:10])]
                    view.flush()
                return None
            if handle.reads():
                return os.pread(fd, len(data), at), os.fstat(fd).st_size
            return os.fstat(fd).st_size, os.fstat(fd).st_nlink
        index = self.handles.index(handle)
        self.log.append(f"handle {index} ({handle.path} {handle.flags:o}, inode {handle.inode}) "
                        f"kind {kind} {at}+{len(data)}")
        mine, plain = outcome(do, handle.lake), outcome(do, handle.plain)
        assert mine == plain, f"handle {index}: {str(mine)[:200]}, wanted {str(plain)[:200]}"

    op_handle_again = op_handle_more = op_handle

    def op_close(self):
        if self.handles:
            handle = self.handles.pop(self.dice.randrange(len(self.handles)))
            self.log.append(f"close {handle.path} {handle.flags:o}, inode {handle.inode}")
            handle.close()

    def close_handles(self, which=lambda handle: True):
        for handle in [h for h in self.handles if which(h)]:
            self.handles.remove(handle)
            handle.close()
        self.log.append(f"closed handles, left {len(self.handles)}")

    # -- comparing --

    def compare(self, what, times="agree"):
        mine, plain = tree(self.here), tree(self.plain)
        same(mine, plain, what, times)
        for index, handle in enumerate(self.handles):
            if handle.reads():
                one, other = os.pread(handle.lake, SIZE_MAX * 3, 0), \
                    os.pread(handle.plain, SIZE_MAX * 3, 0)
                assert one == other, f"{what}: handle {index}: {len(one)} bytes, {len(other)} wanted"
        return mine

    def compare_status(self, mine):
        base = self.commits[self.head]
        wanted = set()
        for path in mine.keys() | base.keys():
            now, before = (entries[path]._replace(mtime=0, nlink=1) if path in entries else None
                           for entries in (mine, base))
            if now == before or any(entry and stat.S_ISDIR(entry.mode) for entry in (now, before)):
                continue
            wanted.add(path)
        reply = self.lake.ctl("status", "main")
        found = {change["path"] for change in reply["changes"] if change.get("kind") != "directory"}
        changed_kind = {path for path in mine.keys() & base.keys()
                        if stat.S_IFMT(mine[path].mode) != stat.S_IFMT(base[path].mode)}
        assert found - changed_kind == wanted - changed_kind, \
            f"status: only found {found - wanted}, only wanted {wanted - found}"

    def adopt_times(self, mine):
        """Where several answers are right, the lake's becomes the model's."""
        for path, entry in sorted(mine.items(), reverse=True):
            if os.path.lexists(self.plain / path):
                os.utime(self.plain / path, ns=(entry.mtime, entry.mtime), follow_symlinks=False)

    # -- what happens between phases --

    def note_commit(self, commit):
        mine = tree(self.here)
        self.commits[commit] = {path: entry._replace(nlink=1) for path, entry in mine.items()}
        copy(self.plain, self.saved / commit)
        self.head = commit
        self.history.append(commit)

    def part_links(self, below=None):
        """A commit makes a file of its own of every name."""
        seen = set()
        for path in self.paths(lambda mode: not stat.S_ISDIR(mode)):
            full = self.plain / path
            found = os.lstat(full)
            if below is not None and path.split("/")[0] != below:
                continue
            if found.st_nlink > 1 and (below is not None or found.st_ino in seen):
                directory = os.lstat(full.parent)
                copy(full, str(full) + ".new")
                os.rename(str(full) + ".new", full)
                os.utime(full.parent, ns=(directory.st_mtime_ns, directory.st_mtime_ns))
                if below is not None:
                    self.touched.discard(os.lstat(full).st_ino)
            seen.add(found.st_ino)

    def event_commit(self):
        allow = self.dice.randrange(3) == 0
        # A link that the commit splits off has no descriptors.
        self.close_handles(lambda h: os.fstat(h.plain).st_nlink > 1)
        writers = [h for h in self.handles if h.writes() and os.fstat(h.plain).st_nlink]
        if writers and not allow:
            try:
                self.lake.ctl("commit", "main", "-m", "busy", "--wait-ms", 10)
                raise AssertionError("committed with files open for writing")
            except Refused as refusal:
                assert refusal.code == 1, refusal
        if not allow:
            self.close_handles(Handle.writes)  # nameless ones, too
        options = ["--allow-open"] if allow else []
        reply = self.lake.ctl("commit", "main", "-m", "model", "--allow-empty", *options)
        self.part_links()
        self.touched = {h.inode for h in self.handles if h.writes()}
        self.compare("after commit")
        self.note_commit(reply["commit"])
        if not allow:
            assert not self.lake.ctl("status", "main")["changes"]

    event_commit_again = event_commit_more = event_commit

    def event_commit_some(self):
        """A commit of one top directory or file: the rest stays uncommitted."""
        self.close_handles()
        names = sorted({path.split("/")[0] for path in self.paths()})
        if not names:
            return
        name = self.dice.choice(names)
        self.log.append(f"commit -- {name}")
        try:
            reply = self.lake.ctl("commit", "main", "-m", "some", "--", name)
        except Refused as refusal:
            assert "nothing" in str(refusal), refusal
            return
        self.part_links(name)
        self.adopt_times(tree(self.here))  # times alone are no changes that have to stay
        base, commit = self.commits[self.head], reply["commit"]
        mine = self.compare("after commit of some paths")

        def inside(path):
            return path.split("/")[0] == name
        wanted = {path: entry for path, entry in base.items() if not inside(path)}
        wanted |= {path: entry._replace(nlink=1) for path, entry in mine.items() if inside(path)}
        view = tree(self.lake / f"@{commit}")
        wanted["."] = view["."]
        same(view, wanted, "commit of some paths", "agree")
        copy(self.lake / f"@{commit}", self.saved / commit)
        for path in self.paths(stat.S_ISREG):
            if inside(path):
                self.touched.discard(self.inode(path))
        self.commits[commit] = view
        self.head = commit
        self.history.append(commit)

    def event_remount(self):
        self.close_handles()
        before = tree(self.here)
        self.lake.umount()
        self.lake.mount()
        same(tree(self.here), before, "after umount and mount", "equal")

    def event_kill(self):
        before = tree(self.here)
        self.lake.kill()
        for handle in self.handles:
            for fd in (handle.lake, handle.plain):
                os.close(fd)
        self.handles = []
        self.lake.mount()
        same(tree(self.here), before, "after kill -9", "equal")

    event_kill_again = event_kill

    def change_branch(self, there):
        """Changes that collide with nothing uncommitted; returns how to make them elsewhere."""
        base, mine = self.commits[self.head], tree(self.here)
        untouched = {path for path in base.keys() & mine.keys()
                     if base[path]._replace(mtime=0) == mine[path]._replace(mtime=0, nlink=1)}
        safe = sorted(path for path in untouched if stat.S_ISREG(base[path].mode) and
                      all("/".join(path.split("/")[:n]) in untouched
                          for n in range(1, path.count("/") + 1)) and
                      mine[path].nlink == 1)
        edits = []
        for path in self.dice.sample(safe, min(len(safe), 3)):
            data, when = self.data(), self.some_time()
            if self.dice.randrange(3):
                edits.append(("edit", path, data, when))
            else:
                edits.append(("remove", path, data, when))
        self.side += 1
        for name in (f"{SIDE}/{self.side}", f"{SIDE}/sub{self.side}/file"):
            edits.append(("edit", name, self.data() * 3, self.some_time()))

        def apply(root):
            for what, path, data, when in edits:
                full = pathlib.Path(root) / path
                if what == "remove":
                    full.unlink()
                    continue
                full.parent.mkdir(parents=True, exist_ok=True)
                old = full.lstat() if full.exists() else None
                xattrs = [(n, os.getxattr(full, n)) for n in os.listxattr(full)] if old else []
                if old:
                    full.unlink()
                full.write_bytes(data)
                for xattr_name, value in xattrs:
                    os.setxattr(full, xattr_name, value)
                if old:
                    os.chown(full, old.st_uid, old.st_gid)
                    os.chmod(full, stat.S_IMODE(old.st_mode))
                os.utime(full, ns=(when, when))
        apply(there)
        return edits, apply

    def event_merge(self):
        lake = self.lake
        self.close_handles(Handle.writes)
        lake.ctl("branch", "create", "dev", "main")
        same(tree(lake / "dev"), self.commits[self.head], "a new branch", "equal")
        edits, apply = self.change_branch(lake / "dev")
        self.log.append(f"merge {[edit[:2] for edit in edits]}")
        lake.ctl("commit", "dev", "-m", "dev")
        dev = tree(lake / "dev")
        commit = lake.ctl("merge", "dev", "main")["commit"]
        apply(self.plain)
        for edit in edits:  # merged files are committed ones
            self.touched.discard(self.inode(edit[1]))
        self.adopt_times(tree(self.here))
        self.compare("after merge")
        view = tree(lake / f"@{commit}")
        same(view, dev, "the merge", "none")
        copy(lake / f"@{commit}", self.saved / commit)
        self.commits[commit] = view
        self.head = commit
        self.history.append(commit)
        lake.ctl("branch", "delete", "dev")

    event_merge_again = event_merge

    def rebuild(self, commit):
        """The plain directory becomes a commit's tree; handles keep what they have."""
        for name in os.listdir(self.plain):
            remove(self.plain / name)
        copy(self.saved / commit, self.plain)
        self.touched = set()
        self.head = commit
        self.adopt_times(tree(self.here))

    def moved(self, commit, what):
        """The branch and everything in it are at `commit`."""
        view = tree(self.lake / f"@{commit}")
        same(view, self.commits[commit], f"view after {what}", "equal")
        same(tree(self.here), self.commits[commit], f"after {what}", "equal")
        self.rebuild(commit)
        self.compare(what)

    def event_reset(self):
        target = self.dice.choice(self.history)
        self.close_handles(Handle.writes)
        self.log.append(f"reset {target}")
        self.lake.ctl("reset", "main", target, "--discard")
        self.moved(target, "reset")

    def event_undo(self):
        self.close_handles(Handle.writes)
        if self.lake.ctl("status", "main")["changes"]:
            return
        moves = self.lake.ctl("reflog", "main")["moves"]
        target = moves[0].get("before")
        if not target or target not in self.commits:
            return
        self.lake.ctl("undo", "main", "--discard")
        self.moved(target, "undo")

    def event_restore(self):
        self.close_handles(Handle.writes)
        revision = self.dice.choice((self.head, self.dice.choice(self.history)))
        saved = self.saved / revision
        there = self.commits[revision]
        candidates = [path for path in sorted(set(self.paths()) | set(there.keys()))
                      if path.split("/")[0] not in (".", SIDE) and (self.plain / path).parent.is_dir()
                      and not (self.plain / path).parent.is_symlink()
                      and (saved / path).parent.is_dir() and not (saved / path).parent.is_symlink()
                      and not self.symlink_above(path)]
        if not candidates:
            return
        path = self.dice.choice(candidates)
        self.log.append(f"restore --from {revision} {path}")
        self.lake.ctl("restore", "main", "--from", revision, "--", path)
        remove(self.plain / path)
        if os.path.lexists(saved / path):
            copy(saved / path, self.plain / path)
        for directory, _, files in os.walk(self.plain / path):
            for name in files:
                self.touched.discard(os.lstat(os.path.join(directory, name)).st_ino)
        if os.path.lexists(self.plain / path):
            self.touched.discard(os.lstat(self.plain / path).st_ino)
        self.adopt_times(tree(self.here))
        self.compare("after restore")

    event_restore_again = event_restore

    def symlink_above(self, path):
        parts = path.split("/")
        return any((root / "/".join(parts[:n])).is_symlink()
                   for n in range(1, len(parts)) for root in (self.plain,))

    def event_restore_all(self):
        self.close_handles(Handle.writes)
        self.lake.ctl("restore", "main", "--", ".")
        same(tree(self.here), self.commits[self.head], "after restore of all", "none")
        self.rebuild(self.head)
        self.compare("after restore of all")
        assert not self.lake.ctl("status", "main")["changes"]

    def event_gc(self):
        self.lake.ctl("gc", "--grace-seconds", 0, "--alone")
        self.lake.ctl("gc", "--grace-seconds", 0, "--alone")

    def event_views(self):
        commit = self.dice.choice(list(self.commits))
        same(tree(self.lake / f"@{commit}"), self.commits[commit], "an earlier commit", "equal")

    # -- running --

    def run(self, phases):
        operations = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("op_")]
        events = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("event_")]
        for phase in range(phases):
            for _ in range(self.dice.randrange(1, 2 * OPERATIONS)):
                self.dice.choice(operations)()
            mine = self.compare(f"phase {phase}")
            self.compare_status(mine)
            event = self.dice.choice(events)
            self.log.append(f"== {phase} {event.__name__}")
            event()
            self.compare(f"after {event.__name__}")
        self.close_handles()
        for commit, wanted in self.commits.items():
            same(tree(self.lake / f"@{commit}"), wanted, f"commit {commit}", "equal")
        self.lake.ctl("fsck")
        self.lake.umount()
        self.lake.ctl("fsck")
        shutil.rmtree(self.lake.directory / "cache")
        self.lake.mount()
        self.compare("without the cache")


def run(mode, seed, phases):
    options = [] if mode == "passthrough" else ["--no-passthrough"]
    lake = Lake(*options)
    lake.mountpoint.mkdir()
    lake.ctl("init")
    settings = lake.directory / "lake.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) |
                                   {"copy_up_bytes_max": COPY_UP_BYTES_MAX}))
    lake.mount()
    model = None
    try:
        model = Model(lake, seed)
        model.run(phases)
    except BaseException:
        print(f"# MODEL_SEED={seed} MODEL_MODE={mode} MODEL_ROUNDS={phases}")
        for line in model.log if model else ():
            print("#    ", line)
        if os.environ.get("MODEL_KEEP"):
            print("# kept", lake.scratch)
            os.kill(os.getpid(), 9)
        raise
    finally:
        for handle in model.handles if model else ():
            try:
                handle.close()
            except OSError:
                pass
        lake.__exit__()


def main():
    tests = Tests()
    if os.geteuid() != 0:
        tests.skip("random operations", "the owners of files need root")
        tests.done()
    seed = os.environ.get("MODEL_SEED")
    phases = int(os.environ.get("MODEL_ROUNDS", 40))
    modes = [os.environ["MODEL_MODE"]] if "MODEL_MODE" in os.environ else ["passthrough", "copying"]
    # 3589979151: a write through the second name of a file that was read before it was committed
    for chosen in [int(seed)] if seed else [random.randrange(1 << 32), 3589979151]:
        for mode in modes:
            with tests.case(f"a branch and a plain directory, {mode}, seed {chosen}"):
                run(mode, chosen, phases)
    tests.done()


main()
