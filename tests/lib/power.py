"""Power cuts: a disk whose writes and flushes are recorded, and what it holds when the power goes at any moment.

    import netns, power
    why = netns.enter()              # mounts, daemons and a boot id of the test's own
    disk = power.Disk(scratch)
    disk.format(64 << 20), disk.start()      # an ext4 at disk.path
    before = disk.position(); ...; after = disk.position()
    disk.stop()
    replay = power.Replay(disk)
    with replay.cut(position, dice, "some"): # the ext4 as it comes back is at disk.path
        ...

The disk is served from memory by record_disk.c with a loop device on it, so ext4's own journal, barriers and
write-back are the kernel's. After a cut each write before the last flush is there; of those after it, 4 KiB at a
time, none, any, or all are.
"""
import contextlib
import ctypes
import os
import pathlib
import struct
import subprocess
import time
import uuid

from lake import ROOT

PROGRAM = pathlib.Path(os.environ.get("LAKE_HELPERS", ROOT / "build" / "tests" / "lib")) / "record_disk"
RECORD = struct.Struct("<QII")
WRITE, FLUSH = 0, 1
SECTOR = 4096
BOOT_ID = "/proc/sys/kernel/random/boot_id"
OPTIONS = "loop,commit=1"  # ext4's own transactions are more and smaller so
MODES = ("none", "some", "most", "all")
MS_BIND = 4096
libc = ctypes.CDLL(None, use_errno=True)


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


def unmount(path):
    for _ in range(100):
        if subprocess.run(["umount", path], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} stays in use")


class Boot:
    """The kernel's boot id as this mount namespace sees it: another one after each cut."""

    def __init__(self, scratch):
        self.file = pathlib.Path(scratch) / "boot_id"
        self.next()
        if libc.mount(os.fsencode(self.file), BOOT_ID.encode(), None, MS_BIND, None) != 0:
            raise OSError(ctypes.get_errno(), "cannot stand before the boot id")

    def next(self):
        self.file.write_text(f"{uuid.uuid4()}\n")


class Disk:
    def __init__(self, scratch):
        scratch = pathlib.Path(scratch)
        self.image, self.log = scratch / "image", scratch / "log"
        self.served, self.path, self.cut_image = scratch / "served", scratch / "disk", scratch / "cut"
        self.served.mkdir()
        self.path.mkdir()
        self.server = self.base = None

    def format(self, size):
        with open(self.image, "wb") as image:
            image.truncate(size)
        run("mkfs.ext4", "-q", "-b", str(SECTOR), "-m", "0", "-J", "size=4", "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard", self.image)

    def start(self):
        """Record from here on what is written to the image as it is now."""
        self.base = self.image.read_bytes()
        self.server = subprocess.Popen([PROGRAM, self.served, self.image, self.log])
        while not os.path.ismount(self.served):
            assert self.server.poll() is None, "record_disk ended"
            time.sleep(0.01)
        run("mount", "-o", OPTIONS, self.served / "disk", self.path)

    def position(self):
        """Now, as a number that grows with what the disk was told."""
        return os.stat(self.log).st_size

    def stop(self):
        """All of it; the log stays."""
        unmount(self.path)
        for _ in range(200):  # the loop device is given up a little later
            if subprocess.run(["umount", self.served], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.02)
        assert self.server.wait() == 0, "record_disk failed"


class Replay:
    """Images of a recorded disk at growing positions."""

    def __init__(self, disk):
        self.disk = disk
        self.bytes = memoryview(disk.log.read_bytes())
        self.records = []  # (end position, offset, data or None for a flush)
        at = 0
        while at < len(self.bytes):
            offset, length, kind = RECORD.unpack_from(self.bytes, at)
            at += RECORD.size + length
            self.records.append((at, offset, None if kind == FLUSH else self.bytes[at - length:at]))
        self.durable, self.next = bytearray(disk.base), 0

    def positions(self):
        return [end for end, _, _ in self.records]

    def flushes(self):
        return sum(data is None for _, _, data in self.records)

    @staticmethod
    def put(image, offset, data):
        image[offset:offset + len(data)] = data

    def image(self, position, dice, mode):
        """What the disk holds when the power goes at `position`, and how many sectors it lost."""
        last, end = self.next, self.next
        while end < len(self.records) and self.records[end][0] <= position:
            end += 1
            if self.records[end - 1][2] is None:
                last = end
        for _, offset, data in self.records[self.next:last]:
            if data is not None:
                self.put(self.durable, offset, data)
        self.next = last
        image, lost = bytearray(self.durable), 0
        keep = {"none": 0, "some": dice.random(), "most": 0.97, "all": 1}[mode]
        for _, offset, data in self.records[last:end]:
            for at in range(0, len(data), SECTOR):
                if keep == 1 or dice.random() < keep:
                    self.put(image, offset + at, data[at:at + SECTOR])
                else:
                    lost += 1
        return image, lost

    @contextlib.contextmanager
    def cut(self, position, dice, mode):
        """Power is back: the file system is mounted at disk.path. Yields how many sectors were lost."""
        image, lost = self.image(position, dice, mode)
        self.disk.cut_image.write_bytes(image)
        run("mount", "-o", OPTIONS, self.disk.cut_image, self.disk.path)
        yield lost
        unmount(self.disk.path)  # after a failure all stays, and goes with the namespaces
