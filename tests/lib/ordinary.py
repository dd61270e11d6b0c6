"""An ordinary user on this machine, for tests that root starts: what he may run, and a /dev/fuse he may open."""
import contextlib
import ctypes
import os
import pathlib
import pwd
import shutil
import stat
import subprocess
import tempfile

import lake
import netns

CLONE_NEWNS = 0x00020000
USER = "nobody"


def impossible():
    """None, or why there can be none here."""
    if os.geteuid() != 0:
        return "everything here runs as one"
    if not shutil.which("fusermount3"):
        return "no fusermount3"
    if not os.stat(shutil.which("fusermount3")).st_mode & stat.S_ISUID:
        return "fusermount3 is not set-user-id here"
    if not fuse_is_for_all() and subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "/dev/fuse is root's, and this place allows no namespace"
    return None


def fuse_is_for_all():
    return os.stat("/dev/fuse").st_mode & 0o006 == 0o006


class Place:
    """A directory of his, with the programs in it."""

    def __init__(self, scratch):
        self.scratch, self.programs = scratch, scratch / "bin"
        self.user = pwd.getpwnam(USER)
        self.programs.mkdir()
        for name in ("laked", "lakectl"):
            shutil.copy(lake.BIN / name, self.programs / name)
        os.chmod(scratch, 0o755)

    def fuse_for_all(self):
        """Where /dev/fuse is root's alone: one for everybody, in a mount namespace of this process's own."""
        if fuse_is_for_all():
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) < 0:
            raise OSError(ctypes.get_errno(), "unshare")
        device = self.scratch / "fuse"
        os.mknod(device, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        os.chmod(device, 0o666)
        for command in (["mount", "--make-rprivate", "/"], ["mount", "--bind", device, "/dev/fuse"]):
            subprocess.run(command, capture_output=True, check=True)
        netns.leave_mounts()

    def become(self):
        """This process, and the lakes it makes, are his from now on."""
        self.fuse_for_all()
        os.setgroups([])
        os.setgid(self.user.pw_gid)
        os.setuid(self.user.pw_uid)
        os.environ["HOME"] = str(self.scratch)
        os.chdir("/")
        lake.BIN = self.programs


@contextlib.contextmanager
def place():
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="lake-test.", dir="/var/tmp"))
    try:
        yield Place(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
