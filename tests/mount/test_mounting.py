#!/usr/bin/env python3
"""Mounting itself: mount points in use, dead mounts, ordinary users, ends without leftovers."""
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
import ordinary  # noqa: E402
from lake import BIN, Lake, Tests, refused, until  # noqa: E402

tests = Tests()


def mounts(path):
    """Types of the file systems mounted at `path`."""
    lines = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split(" - ")[1].split()[0] for line in lines if line.split()[4] == str(path)]


with Lake() as lake:
    with tests.case("the mount says what it is"):
        assert mounts(lake.mountpoint) == ["fuse.lake"]
        line = [m for m in pathlib.Path("/proc/self/mounts").read_text().splitlines()
                if f" {lake.mountpoint} " in m][0]
        assert line.split()[0] == str(lake.directory.resolve())
        assert "default_permissions" in line
        assert "allow_other" in line or os.geteuid() != 0

    with tests.case("a mount point in use is refused, and stays as it is"):
        with tempfile.TemporaryDirectory(dir="/var/tmp") as other:
            subprocess.run([BIN / "lakectl", "--lake", other + "/lake", "init"], check=True,
                           capture_output=True)
            done = subprocess.run([BIN / "laked", "--lake", other + "/lake", lake.mountpoint],
                                  capture_output=True, text=True, check=False, timeout=30)
            assert done.returncode == 1 and "in use" in done.stderr, done
            for place, text in ((other + "/none", "does not exist"),
                                (other + "/lake/lake.json", "not a directory")):
                done = subprocess.run([BIN / "laked", "--lake", other + "/lake", place],
                                      capture_output=True, text=True, check=False, timeout=30)
                assert done.returncode != 0, place
                assert text in done.stderr.lower() or "no such" in done.stderr.lower(), done
        assert (lake / "main").is_dir()

    with tests.case("unmounting while in use is refused, then works"):
        with open(lake / "main/held", "w"):
            assert "in use" in refused(lake, "umount").reply["error"]["message"]
            assert (lake / "main/held").exists()
        lake.umount()
        assert mounts(lake.mountpoint) == []
        until(lambda: lake.pid() is None)
        lake.mount()
        assert (lake / "main/held").exists()

    with tests.case("unmounting by a path as seen from here"):
        subprocess.run([BIN / "lakectl", "umount", lake.mountpoint.name], cwd=lake.mountpoint.parent, check=True)
        assert mounts(lake.mountpoint) == []
        until(lambda: lake.pid() is None)
        lake.mount()

    with tests.case("unmounting what a dead daemon left says what to do"):
        lake.kill()
        done = subprocess.run([BIN / "lakectl", "umount", lake.mountpoint.name], cwd=lake.mountpoint.parent,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 5 and "umount -l" in done.stderr, done
        lake.mount()
        assert (lake / "main/held").exists()

    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        with tests.case(f"{name} ends the daemon and leaves no mount behind, files open or not"):
            held = open(lake / "main/held", "a")
            held.write(name)
            held.flush()
            pid = lake.pid()
            os.kill(pid, getattr(signal, name))
            until(lambda: lake.pid() is None)
            assert mounts(lake.mountpoint) == []
            try:
                held.close()
            except OSError:
                pass
            lake.mount()
            assert (lake / "main/held").read_text().endswith(name)

    with tests.case("after kill -9 the dead mount is replaced"):
        lake.kill()
        assert mounts(lake.mountpoint) == ["fuse.lake"]
        lake.mount()
        assert mounts(lake.mountpoint) == ["fuse.lake"]
        assert (lake / "main/held").exists()

    with tests.case("mount points and lakes with odd names"):
        place = lake.scratch / "a b,c\\d\ne"
        place.mkdir()
        odd = lake.scratch / "lake,\\ x"
        subprocess.run([BIN / "lakectl", "--lake", odd, "init"], check=True, capture_output=True)
        subprocess.run([BIN / "lakectl", "--lake", odd, "mount", place], check=True,
                       capture_output=True, timeout=30)
        try:
            (place / "main/x").write_text("x")
            assert (place / "main/x").read_text() == "x"
        finally:
            subprocess.run([BIN / "lakectl", "--lake", odd, "umount", "--force"], check=True,
                           capture_output=True, timeout=30)

    with tests.case("other processes' commands and their own directory find branch and lake"):
        (lake / "main/inside").mkdir()
        done = subprocess.run([BIN / "lakectl", "--json", "status"], cwd=lake / "main/inside",
                              capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0 and '"main"' in done.stdout, done


def as_user(place):
    """An ordinary user's own lake through fusermount3."""
    user, scratch, programs = place.user, place.scratch, place.programs

    def run(*arguments, **keywords):
        return subprocess.run(["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}",
                               "--clear-groups", "env", f"HOME={scratch}", *arguments],
                              capture_output=True, text=True, check=False, timeout=60,
                              cwd=scratch, **keywords)
    (scratch / "mnt").mkdir()
    for path in (scratch, scratch / "mnt"):
        os.chown(path, user.pw_uid, user.pw_gid)
    control = [programs / "lakectl", "--lake", scratch / "lake"]
    path = f"PATH={programs}:{os.environ['PATH']}"
    try:
        with tests.case("an ordinary user mounts through fusermount3"):
            done = run(path, *control, "init")
            assert done.returncode == 0, done
            done = run(path, *control, "mount", scratch / "mnt")
            assert done.returncode == 0, done
            assert mounts(scratch / "mnt") == ["fuse.lake"]
        with tests.case("an ordinary user writes, reads, commits, without passthrough"):
            done = run("sh", "-c", "cd mnt/main && echo text >a && cp a b && mv b c && cat c "
                       "&& grep '^lake_mount_passthrough ' ../.lake/metrics")
            assert done.stdout == "text\nlake_mount_passthrough 0\n", done
            assert run(path, *control, "commit", "main", "-m", "mine").returncode == 0
            done = run("sh", "-c", "cd mnt/main && echo more >>a && cat a && stat -c %U a")
            assert done.stdout == f"text\nmore\n{user.pw_name}\n", done
        with tests.case("an ordinary user unmounts, and nothing is left"):
            done = run(path, *control, "umount")
            assert done.returncode == 0, done
            assert mounts(scratch / "mnt") == []
    finally:
        run(path, *control, "umount", "--force")
        subprocess.run(["umount", "-l", scratch / "mnt"], capture_output=True, check=False)


name = "an ordinary user's mount"
why_not = ordinary.impossible()
if why_not:
    tests.skip(name, why_not)
elif not shutil.which("setpriv"):
    tests.skip(name, "no setpriv")
else:
    with ordinary.place() as place:
        place.fuse_for_all()
        as_user(place)
tests.done()
