#!/usr/bin/env python3
"""What a directory holds, one line for each name, for comparing trees; and a directory with everything in it.

    tree.py show now|exact|committed|content DIR    see `line`
    tree.py make DIR                                the same names, bytes, modes, times in whatever directory
    tree.py split DIR                               the same without hard links
"""
import hashlib
import os
import random
import stat
import sys

OLD_S = 1_500_000_000  # what a program keeps a time of is older than this; everything else is "now"


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") \
            else hashlib.sha256(file.read()).hexdigest()


def shown_time(status, how):
    if how == "content" or (how == "now" and status.st_mtime > OLD_S):
        return "-"
    return status.st_mtime_ns


def line(root, path, names, how):
    """`exact` tells every time to the nanosecond, which names are one file, and how many; `now` the same but for times
    that nobody set. `committed` does not tell links and blocks: a commit splits those, and does not keep these. `content`
    tells no times either."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    words = [oct(status.st_mode), status.st_uid, status.st_gid, shown_time(status, how)]
    if kind == stat.S_IFREG:
        words += [status.st_size, digest(path)]
        if how in ("now", "exact"):
            words.append("sparse" if status.st_size >= 1 << 20 and status.st_blocks * 1024 < status.st_size else "full")
            first = names.setdefault(status.st_ino, os.path.relpath(path, root))
            words += [status.st_nlink, first]
    elif kind == stat.S_IFLNK:
        words.append(os.readlink(path))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        words.append(status.st_rdev)
    words += sorted((name, os.getxattr(path, name, follow_symlinks=False))
                    for name in os.listxattr(path, follow_symlinks=False))
    return words


def show(root, how):
    names = {}
    for directory, directories, files in os.walk(os.fsencode(root)):
        directories.sort()
        for name in sorted(directories + files) + ([b"."] if directory == os.fsencode(root) else []):
            path = os.path.join(directory, name)
            words = line(os.fsencode(root), path, names, how)
            if name == b".":
                words[3] = "-"
            print(os.path.relpath(path, os.fsencode(root)), *words)


def old(path, seconds, links=True):
    os.utime(path, ns=(seconds * 10**9 + 987654321, seconds * 10**9 + 123456789 + seconds % 1000), follow_symlinks=links)


def make(root, links=True):
    """Files of every kind that this user can make, with old times."""
    chance = random.Random(5)
    os.makedirs(root)
    os.chdir(root)
    for name in ("deep/er/est", "empty", "many", "sticky"):
        os.makedirs(name)
    os.chmod("sticky", 0o1777)
    os.chmod("empty", 0o700)
    for number in range(60):
        with open(f"many/{number:03}.txt", "wb") as file:
            file.write(chance.randbytes(chance.randrange(300)) + b"\nsome text\n" * chance.randrange(40))
    for name, size in (("zero", 0), ("deep/one", 1), ("deep/er/page", 4096), ("deep/er/est/odd", 123457), ("big", 3_000_001)):
        with open(name, "wb") as file:
            file.write(chance.randbytes(size))
    with open("sparse", "wb") as file:
        for place in (0, 3 << 20, 7 << 20):
            file.seek(place)
            file.write(chance.randbytes(70000))
        file.truncate(8 << 20)
    for number, name in enumerate((b"-rf", b"new\nline", b"\xff\xfe not utf-8", b" space ", b"quote'\"$x`", b"n" * 255)):
        with open(name, "wb") as file:
            file.write(b"%d\n" % number)
    os.symlink("big", "to-big")
    os.symlink("nowhere/at/all", "dangling")
    os.symlink("deep", "to-deep")
    if links:
        os.link("deep/one", "one-again")
        os.link("deep/one", "many/one-again")
    os.mkfifo("fifo", 0o640)
    os.setxattr("big", "user.origin", b"\x00\x01binary\xff")
    os.setxattr("deep", "user.of-directory", b"yes")
    for name, mode in (("zero", 0o000), ("big", 0o755), ("deep/er/page", 0o4711), ("deep/er/est", 0o2775)):
        os.chmod(name, mode)
    if os.geteuid() == 0:
        os.lchown("to-big", 1000, 1001)
        os.chown("many/001.txt", 1234, 4321)
        os.chown("empty", 65534, 65534)
        os.mknod("device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    for number, (directory, directories, files) in enumerate(sorted(os.walk("."), reverse=True)):
        for offset, name in enumerate(sorted(files)):
            old(os.path.join(directory, name), 1_000_000_000 + number * 1000 + offset, False)
        old(directory, 1_100_000_000 + number)
        for name in directories:
            if os.path.islink(os.path.join(directory, name)):
                old(os.path.join(directory, name), 1_200_000_000, False)


if __name__ == "__main__":
    if sys.argv[1] == "show":
        show(sys.argv[3], sys.argv[2])
    else:
        make(sys.argv[2], sys.argv[1] == "make")
