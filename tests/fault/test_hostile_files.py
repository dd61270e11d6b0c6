#!/usr/bin/env python3
"""What others put into a store's or a lake's directory, and into the environment: objects that are cut, missing or
swapped give EIO in what needs them and nowhere else; links lead nowhere, pipes stop nobody, and nothing outside
is read or written. HOSTILE_FULL=1 tries every kind of damage."""
import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "lib"))
from lake import BIN, Lake, Refused, Tests, refused  # noqa: E402

tests = Tests()
FULL = bool(os.environ.get("HOSTILE_FULL"))
USUAL = ("cut in half", "missing", "another's", "a named pipe", "a link to a file")
DEADLINE = 60  # of any one command: a loaded machine, not a hang


def content(name):
    return (name * 20000).encode()


def reads(path):
    """Its bytes, or the errno."""
    try:
        return path.read_bytes()
    except OSError as error:
        return error.errno


def packs(lake):
    return sorted(path for path in (lake.directory / "store/packs").iterdir())


def make_lake(lake):
    """Two branches whose files lie in packs of their own: {name: pack of its content}."""
    lies = {}
    for name in ("one", "two", "three"):
        before = set(packs(lake))
        (lake / "main" / name).write_bytes(content(name))
        lake.ctl("commit", "main", "-m", name)
        lies[name] = next(pack for pack in packs(lake) if pack not in before)
    lake.ctl("branch", "create", "dev", "main")
    return lies


def forget_local(lake):
    """What was cached would hide the damage."""
    lake.umount()
    for name in ("cache", "index"):
        shutil.rmtree(lake.directory / name)


@contextlib.contextmanager
def damaged(path, how):
    """As it is given, and afterwards as it was."""
    whole = path.read_bytes()
    path.unlink()
    try:
        how(path, whole)
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif os.path.lexists(path):
            path.unlink()
        path.write_bytes(whole)


def make_socket(path):
    # The path of a store may be longer than a socket's address.
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def wrecks(lake, other):
    outside = lake.scratch / "outside"
    outside.write_bytes(b"not yours")
    kinds = {
        "empty": lambda path, whole: path.write_bytes(b""),
        "without its last byte": lambda path, whole: path.write_bytes(whole[:-1]),
        "cut in half": lambda path, whole: path.write_bytes(whole[:len(whole) // 2]),
        "missing": lambda path, whole: None,
        "another's": lambda path, whole: path.write_bytes(other.read_bytes()),
        "a directory": lambda path, whole: path.mkdir(),
        "a named pipe": lambda path, whole: os.mkfifo(path),
        "a socket": lambda path, whole: make_socket(path),
        "a link to a file": lambda path, whole: path.symlink_to(outside),
        "a link to itself": lambda path, whole: path.symlink_to(path),
    }
    return kinds if FULL else {word: kinds[word] for word in USUAL}


def fsck_problems(lake):
    refusal = refused(lake, "fsck")
    return refusal.reply


def check_pack(lake, name, pack, others):
    """What lies in it is an error, at once; all else is there, and can be changed."""
    forget_local(lake)
    lake.mount()
    got = reads(lake / "main" / name)
    # A pack without its trailer still has the records.
    assert got in (errno.EIO, content(name)), got if isinstance(got, int) else "wrong bytes"
    for other in others:
        assert reads(lake / "main" / other) == content(other), other
    named = str(fsck_problems(lake))
    assert pack.name in named, named
    with open(lake / "dev" / "more", "a") as more:
        more.write("goes on\n")
    lake.ctl("commit", "dev", "-m", "more")
    return got


with Lake() as lake:
    lies = make_lake(lake)
    for word, how in wrecks(lake, lies["one"]).items():
        with tests.case(f"a pack that is {word}: EIO, named, the rest goes on"):
            with damaged(lies["two"], how):
                got = check_pack(lake, "two", lies["two"], ("one", "three"))
                assert got == errno.EIO or word in ("without its last byte", "cut in half"), word
            forget_local(lake)
            lake.mount()
            assert reads(lake / "main" / "two") == content("two")
            assert not lake.ctl("fsck")["problems"]

    main = lake.directory / "store/refs/branches/main"
    for word, how in wrecks(lake, main.parent / "dev").items():
        with tests.case(f"a ref that is {word}: an error, and others go on"):
            lake.umount()
            with damaged(main, how):
                lake.mount()
                got = reads(lake / "main" / "one")
                assert got == (errno.ENOENT if word in ("missing", "a directory") else errno.EIO), got
                assert reads(lake / "dev" / "one") == content("one")
                if word not in ("missing", "a directory"):
                    assert "main" in str(refused(lake, "log", "main")), word
                    assert "main" in str(fsck_problems(lake)), word
                assert (lake.scratch / "outside").read_bytes() == b"not yours"
                lake.umount()
            lake.mount()
            assert reads(lake / "main" / "one") == content("one")

    with tests.case("strange names in every directory of a store"):
        store = lake.directory / "store"
        for directory in (store, store / "packs", store / "refs", store / "refs/branches", store / "log"):
            directory.mkdir(exist_ok=True)
            for name in (b"x" * 255, b"new\nline", b"-rf", b"..x", b"\xff\xfe", b" ", b"a~b", b"CON", b"%2e%2e",
                         b"0123456789abcdef0123456789abcdeg", b"\x1b[31m"):
                with open(os.fsencode(directory) + b"/" + name, "wb") as file:
                    file.write(b"stranger")
            (directory / "loop").symlink_to(".")
            (directory / "up").symlink_to("../..")
            (directory / "root").symlink_to("/")
            os.mkfifo(directory / "pipe")
        for command in (("branch", "list"), ("tag", "list"), ("fsck",), ("gc", "--dry-run"), ("status", "main")):
            done = subprocess.run([BIN / "lakectl", "--lake", lake.directory, *command], capture_output=True,
                                  timeout=DEADLINE, check=False)
            assert done.returncode in (0, 1), (command, done.stderr)
            assert b"\x1b[31m" not in done.stdout + done.stderr, command
        assert reads(lake / "main" / "one") == content("one")

with Lake() as lake, tests.case("a folder of the store that is a link: nothing is written or removed outside"):
    make_lake(lake)
    lake.umount()
    outside = lake.scratch / "elsewhere"
    store = lake.directory / "store"
    for name in ("packs", "~tmp", "~locks", "refs"):
        victim = outside / name
        victim.mkdir(parents=True)
        (victim / "old").write_text("mine")
        os.utime(victim / "old", (1, 1))
        os.rename(store / name, store / (name + ".aside"))
        os.symlink(victim, store / name)
        said = ""
        for command in (("mount", lake.mountpoint), ("fsck",), ("gc",), ("branch", "create", f"new{name}", "main"),
                        ("tag", "create", "new", "main"), ("branch", "delete", "dev"), ("umount",)):
            try:
                lake.ctl(*command)
            except Refused as refusal:
                said += str(refusal)
        assert "symbolic link" in said, (name, said)
        assert sorted(os.listdir(victim)) == ["old"], (name, os.listdir(victim))
        os.unlink(store / name)
        os.rename(store / (name + ".aside"), store / name)
    lake.mount()
    (lake / "main" / "new").write_text("new")
    lake.ctl("commit", "main", "-m", "after all")
    assert not lake.ctl("fsck")["problems"]

with Lake() as lake, tests.case("the lake's directory and the store's path may be links themselves"):
    make_lake(lake)
    lake.umount()
    link = lake.scratch / "by-link"
    link.symlink_to(lake.directory)
    os.rename(lake.directory / "store", lake.scratch / "moved")
    (lake.directory / "store").symlink_to(lake.scratch / "moved")
    real, lake.directory = lake.directory, link
    lake.mount()
    assert reads(lake / "main" / "one") == content("one")
    (lake / "main" / "new").write_text("new")
    lake.ctl("commit", "main", "-m", "new")
    lake.umount()
    lake.directory = real
    lake.mount()
    assert (lake / "main" / "new").read_text() == "new"

HOSTILE = ["", "/", ".", "..", "-", "--help", "/dev/null", "/proc/self/mem", "\n", "a\nb", "%s%n%s", "\x1b[31m",
           "x" * 5000, "/" * 4200, "/proc/self/fd/0", "s3://", "\u202e", "PIPE", "LOOP", "FILE"]

with Lake() as lake, tests.case("any words in the environment: an answer, nothing written"):
    pipe, loop, file = lake.scratch / "pipe", lake.scratch / "loop", lake.scratch / "file"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    file.write_text("kept")
    lake.umount()
    before = sorted(os.listdir(lake.scratch))
    for variable in ("LAKE_DIR", "LAKE_MOUNT", "LAKE_AUDITS", "XDG_DATA_HOME", "HOME", "TMPDIR"):
        for value in HOSTILE:
            value = {"PIPE": str(pipe), "LOOP": str(loop), "FILE": str(file)}.get(value, value)
            environment = {**os.environ, variable: value}
            with_lake = [] if variable in ("LAKE_DIR", "XDG_DATA_HOME", "HOME") else ["--lake", str(lake.directory)]
            done = subprocess.run([BIN / "lakectl", *with_lake, "branch", "list"], env=environment, check=False,
                                  capture_output=True, timeout=DEADLINE, stdin=subprocess.DEVNULL, cwd=lake.scratch)
            assert 0 <= done.returncode <= 5, (variable, value, done)
            assert done.returncode == 0 or done.stderr, (variable, value)
            assert b"\x1b[31m" not in done.stderr, (variable, done.stderr)
    assert sorted(os.listdir(lake.scratch)) == before and file.read_text() == "kept"
    lake.mount()

with Lake() as lake, tests.case("a directory of 20,000 levels: committed, checked and read, or refused"):
    here = os.open(lake / "main", os.O_RDONLY)
    for _ in range(20000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    for command in (("status", "main"), ("commit", "main", "-m", "deep"), ("fsck",), ("diff", "main~1", "main"),
                    ("du", "main"), ("gc", "--dry-run"), ("branch", "create", "dev", "main"), ("merge", "dev", "main")):
        with contextlib.suppress(Refused):
            lake.ctl(*command)
        assert lake.pid(), f"{command} ended the server"
    (lake / "main" / "file").write_text("well")
    with contextlib.suppress(Refused):
        lake.ctl("commit", "main", "-m", "file")
    assert (lake / "main" / "file").read_text() == "well"

tests.done()
