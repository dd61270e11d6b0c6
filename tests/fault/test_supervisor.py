#!/usr/bin/env python3
"""kill -9 of the serving process under a load that goes on: nobody notices but by a pause. No process
sees an error, every byte and name that was acknowledged is there, nothing is done twice.

SUPERVISOR_ROUNDS says how often it dies in each mode (20), SUPERVISOR_SEED repeats the choices,
SUPERVISOR_MODE (passthrough or copying) picks one of the two ways in which files are served.
"""
import contextlib
import ctypes
import errno
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Lake, Refused, Tests, until  # noqa: E402

try:
    import duckdb
except ImportError:
    duckdb = None

libc = ctypes.CDLL(None, use_errno=True)
EXCHANGE = 2
FOLLOW = 0x400
ROUNDS = int(os.environ.get("SUPERVISOR_ROUNDS", "20"))
SEED = int(os.environ.get("SUPERVISOR_SEED", "0")) or random.randrange(1 << 30)
PAGES = 64
tests = Tests()


def exchange(one, other):
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), EXCHANGE) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def name_descriptor(fd, path):
    if libc.linkat(-100, b"/proc/self/fd/%d" % fd, -100, os.fsencode(path), FOLLOW) < 0:
        raise OSError(ctypes.get_errno(), "linkat")


# -- the load: each a process of its own, until it is told to stop; whatever it finds wrong raises --

class Stopping:
    def __init__(self):
        self.flag = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_):
        self.flag = True

    def __bool__(self):
        return self.flag


def appends(place, dice, stop):
    """One descriptor, one line a write: all of them, once, in order. Now and then the file is synced."""
    count = 0
    with open(place / "log", "ab", buffering=0) as log:
        while not stop:
            count += 1
            line = b"%d %s\n" % (count, b"x" * dice.randrange(200))
            assert log.write(line) == len(line)
            if count % 50 == 0:
                os.fsync(log.fileno())
    lines = (place / "log").read_bytes().splitlines()
    found = [int(line.split()[0]) for line in lines]
    assert found == list(range(1, count + 1)), f"{len(found)} lines of {count}"
    return count


def names(place, dice, stop):
    """Every kind of change to names, in one directory; after each the directory is what it should be."""
    model, count = {}, 0  # name -> content; None: a directory
    pool = [f"n{i}" for i in range(12)]
    while not stop:
        count += 1
        free = [name for name in pool if name not in model]
        files = [name for name in model if model[name] is not None]
        kind = dice.choice(["create", "create", "mkdir", "symlink", "rename", "replace", "exchange", "unlink", "rmdir",
                            "link", "xattr", "chmod"])
        if kind in ("create", "mkdir", "symlink") and free:
            name = dice.choice(free)
            if kind == "mkdir":
                os.mkdir(place / name)
                model[name] = None
            elif kind == "symlink":
                os.symlink("t", place / name)
                os.unlink(place / name)
            else:
                fd = os.open(place / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                model[name] = b"%d" % count
                assert os.write(fd, model[name]) == len(model[name])
                os.close(fd)
        elif kind == "rename" and model and free:
            old, new = dice.choice(list(model)), dice.choice(free)
            os.rename(place / old, place / new)
            model[new] = model.pop(old)
        elif kind == "replace" and len(files) > 1:
            old, new = dice.sample(files, 2)
            os.rename(place / old, place / new)
            model[new] = model.pop(old)
        elif kind == "exchange" and len(model) > 1:
            old, new = dice.sample(list(model), 2)
            exchange(place / old, place / new)
            model[new], model[old] = model[old], model[new]
        elif kind == "unlink" and files:
            name = dice.choice(files)
            os.unlink(place / name)
            del model[name]
        elif kind == "rmdir" and any(model[name] is None for name in model):
            name = dice.choice([name for name in model if model[name] is None])
            os.rmdir(place / name)
            del model[name]
        elif kind == "link" and files and free:
            old, new = dice.choice(files), dice.choice(free)
            os.link(place / old, place / new)
            os.unlink(place / old)
            model[new] = model.pop(old)
        elif kind == "xattr" and files:
            name = dice.choice(files)
            os.setxattr(place / name, "user.k", b"v", os.XATTR_CREATE)
            assert os.getxattr(place / name, "user.k") == b"v"
            os.removexattr(place / name, "user.k")
        elif kind == "chmod" and files:
            os.chmod(place / dice.choice(files), dice.choice((0o600, 0o644)))
        if count % 10 == 0:
            check_names(place, model)
    check_names(place, model)
    return count


def check_names(place, model):
    found = set(os.listdir(place))
    assert found == set(model), (found - set(model), set(model) - found)
    for name, content in model.items():
        assert content is None or (place / name).read_bytes() == content, name


def pattern(page):
    return random.Random(page).randbytes(4096)


def reads(place, dice, stop):
    """A file open all the time, read through the descriptor and a mapping, and opened anew."""
    with open(place / "data", "wb") as data:
        for page in range(PAGES):
            data.write(pattern(page))
    fd = os.open(place / "data", os.O_RDONLY)
    mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    count = 0
    while not stop:
        page = dice.randrange(PAGES)
        other = fd if count % 3 else os.open(place / "data", os.O_RDONLY)
        assert os.pread(other, 4096, page * 4096) == pattern(page), page
        assert os.fstat(fd).st_size == PAGES * 4096
        if other != fd:
            os.close(other)
        assert mapping[page * 4096:(page + 1) * 4096] == pattern(page), page
        count += 1
    return count


def maps(place, dice, stop):
    """Writes through a mapping, and the same bytes through read(2) afterwards."""
    fd = os.open(place / "mapped", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGES * 4096)
    mapping, count, last = mmap.mmap(fd, PAGES * 4096), 0, {}
    while not stop:
        page, count = dice.randrange(PAGES), count + 1
        last[page] = b"%16d" % count
        mapping[page * 4096:page * 4096 + 16] = last[page]
        if count % 100 == 0:
            mapping.flush()
            time.sleep(0.001)
    mapping.flush()
    mapping.close()
    os.close(fd)
    data = (place / "mapped").read_bytes()
    for page, text in last.items():
        assert data[page * 4096:page * 4096 + 16] == text, page
    return count


def orphans(place, dice, stop):
    """Files without a name, unlinked or never named: used on, and one of them named in the end."""
    count = 0
    while not stop:
        count += 1
        unlinked = os.open(place / "gone", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.unlink(place / "gone")
        nameless = os.open(place, os.O_RDWR | os.O_TMPFILE, 0o600)
        for fd in (unlinked, nameless):
            for i in range(10):
                assert os.pwrite(fd, b"%d" % i * 1000, i * 1000) == 1000
            time.sleep(dice.random() * 0.02)
            assert os.pread(fd, 20000, 0) == b"".join(b"%d" % i * 1000 for i in range(10))
            assert os.fstat(fd).st_size == 10000
            os.ftruncate(fd, 5000)
            assert os.fstat(fd).st_size == 5000
        name_descriptor(nameless, place / "named")
        assert len((place / "named").read_bytes()) == 5000
        os.close(unlinked)
        os.close(nameless)
        os.unlink(place / "named")
        assert os.listdir(place) == []
    return count


def lists(place, dice, stop):
    """Directories read in pieces: each name that stays is seen once, whatever comes and goes."""
    stays = {f"a-name-that-is-not-short-and-stays-{i:04}" for i in range(600)}
    for name in stays:
        (place / name).touch()
    count = 0
    while not stop:
        (place / f"a-name-that-goes-{count % 7}").touch()
        seen = []
        with os.scandir(place) as entries:
            for i, entry in enumerate(entries):
                seen.append(entry.name)
                if i % 100 == 0:
                    time.sleep(0.002)
        kept = [name for name in seen if name in stays]
        assert len(kept) == len(stays) == len(set(kept)), (len(kept), len(set(kept)))
        (place / f"a-name-that-goes-{count % 7}").unlink()
        (place / "tree").mkdir()
        for i in range(40):
            (place / "tree" / str(i)).touch()
        shutil.rmtree(place / "tree")
        count += 1
    return count


def sizes(place, dice, stop):
    """Growing, shrinking, punching, opening for writing and truncating."""
    count, model = 0, bytearray()
    path = place / "sized"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    while not stop:
        count += 1
        at, length = dice.randrange(50000), dice.randrange(1, 20000)
        kind = dice.randrange(5)
        if kind == 0:
            os.ftruncate(fd, at)
            model = model[:at] + bytes(max(0, at - len(model)))
        elif kind == 1:
            os.truncate(path, at)
            model = model[:at] + bytes(max(0, at - len(model)))
        elif kind == 2:
            data = dice.randbytes(length)
            assert os.pwrite(fd, data, at) == length
            model = model + bytes(max(0, at - len(model)))
            model[at:at + length] = data
        elif kind == 3:
            os.posix_fallocate(fd, at, length)
            model = model + bytes(max(0, at + length - len(model)))
        elif count % 5 == 0:
            path.write_bytes(b"anew")
            model = bytearray(b"anew")
        if count % 3 == 0:
            assert path.read_bytes() == model, count
        assert os.fstat(fd).st_size == len(model)
    return count


def queries(place, dice, stop):
    connection = duckdb.connect()
    connection.execute(f"COPY (SELECT i, i % 7 AS k FROM range(200000) t(i)) TO '{place}/t.parquet'")
    count = 0
    while not stop:
        count += 1
        found = connection.execute(f"SELECT sum(i), count(*) FROM '{place}/t.parquet' WHERE k = 3").fetchall()
        assert found == [(sum(range(3, 200000, 7)), len(range(3, 200000, 7)))], found
        connection.execute(f"COPY (SELECT {count} AS c) TO '{place}/u.parquet'")
        assert connection.execute(f"SELECT c FROM '{place}/u.parquet'").fetchall() == [(count,)]
    return count


SHELL = r"""
cd "$1" || exit 9
stop=; trap 'stop=1' TERM
n=0
while [ -z "$stop" ]; do
    n=$((n + 1))
    echo "$n" >>lines || exit 2
    mkdir "d$n" && rmdir "d$n" || exit 3
    [ "$(tail -n 1 lines)" = "$n" ] || exit 4
    [ "$(/bin/pwd)" = "$1" ] || exit 5
    [ "$(ls)" = lines ] || exit 6
done
[ "$(wc -l <lines)" -eq "$n" ] || exit 7
"""

LOADS = [appends, names, reads, maps, orphans, lists, sizes] + ([queries] if duckdb else [])


class Load:
    """One of the above in a process of its own."""

    def __init__(self, work, place, seed):
        self.name = work.__name__
        self.result = tempfile.TemporaryFile()
        place.mkdir()
        self.pid = os.fork()
        if self.pid == 0:
            verdict = 1
            try:
                stop = Stopping()
                text = {"count": work(place, random.Random(seed), stop)}
                verdict = 0
            except BaseException:  # whatever it is, it is told
                text = {"error": traceback.format_exc()}
            self.result.write(json.dumps(text).encode())
            self.result.flush()
            os._exit(verdict)

    def running(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)
        self.result.seek(0)
        result = json.loads(self.result.read() or "{}")
        assert "count" in result, f"{self.name}: {result.get('error', 'died')}"
        return result["count"]


def supervisor_of(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def crash(lake):
    """kill -9 of the server; how long until the mount answers, in ms."""
    pid = until_served(lake)
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    os.statvfs(lake.mountpoint)  # never answered from a cache
    return (time.monotonic() - start) * 1000


def until_served(lake):
    until(lake.pid)
    return lake.pid()


def run(mode):
    options = ["--restarts", "4000", *(["--no-passthrough"] if mode == "copying" else [])]
    dice = random.Random(f"{SEED} {mode}")
    print(f"# {mode}, seed {SEED}", flush=True)
    with Lake(*options) as lake:
        loads = [Load(work, lake / f"main/{work.__name__}", dice.random()) for work in LOADS]
        (lake / "main/shell").mkdir()
        shell = subprocess.Popen(["bash", "-c", SHELL, "-", lake / "main/shell"], stderr=subprocess.PIPE)
        pauses, committers = [], []
        with tests.case(f"{mode}: programs go on while the server dies {ROUNDS} times"):
            supervisor = supervisor_of(lake.pid())
            for i in range(ROUNDS):
                time.sleep(dice.random() * 0.4)
                if i % 4 == 1:
                    committers.append(subprocess.Popen(
                        [BIN / "lakectl", "--lake", lake.directory, "commit", "main", "-m", "x", "--allow-open"],
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
                    time.sleep(dice.random() * 0.1)
                pauses.append(crash(lake))
                done = [load.name for load in loads if not load.running()]
                assert not done and shell.poll() is None, (done, shell.poll(), i)
            assert supervisor_of(until_served(lake)) == supervisor
        for load in loads:
            with tests.case(f"{mode}: {load.name}: no error, nothing lost, nothing twice"):
                print(f"# {load.stop()} operations")
        with tests.case(f"{mode}: a shell in a directory"):
            shell.terminate()
            _, errors = shell.communicate()
            assert shell.returncode == 0, (shell.returncode, errors)
        for committer in committers:
            committer.wait()
        print(f"# pause in ms: median {statistics.median(pauses):.0f}, most {max(pauses):.0f}, of {len(pauses)}")
        with tests.case(f"{mode}: a commit takes all of it, and the lake is sound"):
            lake.ctl("commit", "main", "-m", "all")
            lake.ctl("fsck")
            for name in ("reads", "sizes"):
                assert {p.name: p.read_bytes() for p in (lake / f"main/{name}").iterdir()} == \
                       {p.name: p.read_bytes() for p in (lake / f"@main/{name}").iterdir()}
        with tests.case(f"{mode}: nothing is left open or behind"):
            assert lake.ctl("status", "main")["open_for_write"] == []


def processes(lake):
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and str(lake.directory).encode() in pathlib.Path(f"/proc/{entry}/cmdline").read_bytes() \
                    and b"laked" in pathlib.Path(f"/proc/{entry}/comm").read_bytes():
                found.append(int(entry))
    return found


def mounted(lake):
    return str(lake.mountpoint) in pathlib.Path("/proc/self/mountinfo").read_text()


def endings():
    with Lake("--restarts", "3") as lake:
        for name, end in (("umount", lambda: lake.umount()),
                          ("umount --force with a file open", lambda: lake.ctl("umount", "--force")),
                          ("umount(8)", lambda: subprocess.run(["umount", lake.mountpoint], check=True)),
                          ("SIGTERM to the server", lambda: os.kill(lake.pid(), signal.SIGTERM)),
                          ("SIGTERM to the supervisor", lambda: os.kill(supervisor_of(lake.pid()), signal.SIGTERM))):
            with tests.case(f"{name} ends everything, also after a crash"):
                held = None
                crash(lake)
                (lake / "main/file").write_text(name)
                if "open" in name:
                    held = open(lake / "main/file")
                end()
                until(lambda: not processes(lake) and not mounted(lake))
                if held:
                    try:
                        os.pread(os.open(f"/proc/self/fd/{held.fileno()}", os.O_RDONLY), 1, 0)
                        raise AssertionError("still served")
                    except OSError as error:
                        assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED), error
                    held.close()
                lake.mount()
                assert (lake / "main/file").read_text() == name
        with tests.case("a server that dies again and again is given up, and unmounted"):
            start = time.monotonic()
            while mounted(lake):
                assert time.monotonic() < start + 30
                pid = lake.pid()
                if pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.005)
            until(lambda: not processes(lake))
            assert "died too often, unmounting" in (lake.directory / "laked.log").read_text()
            lake.mount()
            assert (lake / "main/file").exists()
        with tests.case("without its supervisor a server goes on; its own death is then the mount's"):
            pid = lake.pid()
            os.kill(supervisor_of(pid), signal.SIGKILL)
            (lake / "main/file").write_text("alone")
            os.kill(pid, signal.SIGKILL)
            until(lambda: not processes(lake))
            lake.mount()
            assert (lake / "main/file").read_text() == "alone"
    with Lake("--no-supervisor") as lake, tests.case("--no-supervisor: one process, as it says"):
        assert processes(lake) == [lake.pid()]


modes = [os.environ["SUPERVISOR_MODE"]] if "SUPERVISOR_MODE" in os.environ else ["passthrough", "copying"]
for chosen in modes:
    run(chosen)
endings()
tests.done()
