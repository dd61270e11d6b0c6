"""A lake of its own for each Python test, always unmounted and ended; TAP output.

    from lake import Lake, Tests
    tests = Tests()
    with Lake() as lake:
        with tests.case("reads back"):
            assert ...
    tests.done()
"""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("LAKE_BIN", ROOT / "build" / "bin"))
VEGA = ROOT / "build" / "node" / "node_modules" / "vega-datasets" / "data"

# Clients are installed in a virtual environment: go on in it, whoever started the test.
VENV = ROOT / "build" / "venv"
if (VENV / "bin" / "python").exists() and pathlib.Path(sys.prefix) != VENV:
    os.execv(VENV / "bin" / "python", [VENV / "bin" / "python", *sys.argv])


class Refused(Exception):
    """A lakectl command that failed: exit code and its error object."""

    def __init__(self, code, reply, text):
        super().__init__(f"exit {code}: {text.strip()}")
        self.code, self.reply = code, reply


class Lake:
    inside = ()  # words before each command: where it runs

    def __init__(self, *options):
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="lake-test.", dir="/var/tmp"))
        self.directory = self.scratch / "lake"
        self.mountpoint = self.scratch / "mnt"
        self.options = options

    def __enter__(self):
        self.mountpoint.mkdir()
        self.ctl("init")
        self.mount()
        return self

    def __exit__(self, *_):
        subprocess.run([BIN / "lakectl", "--lake", self.directory, "umount", "--force"],
                       capture_output=True, check=False)
        pid = self.pid()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        subprocess.run(["umount", "-l", self.mountpoint], capture_output=True, check=False)
        log = self.directory / "laked.log"
        for _ in range(200):
            if not self.pid():
                break
            time.sleep(0.05)
        if log.exists() and any(word in log.read_text(errors="replace") for word in ("Sanitizer", "runtime error")):
            print("not ok - the daemon reported a defect of its memory or threads")
            print("".join("# " + line + "\n" for line in log.read_text(errors="replace").splitlines()[-60:]))
        shutil.rmtree(self.scratch, ignore_errors=True)

    def pid(self):
        """The running daemon's process id, or None."""
        try:
            pid = int((self.directory / "lock").read_text())
            name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):
            return None
        return pid if name == "laked" else None

    def mount(self):
        self.ctl("mount", self.mountpoint, *self.options)

    def umount(self):
        self.ctl("umount")

    def kill(self):
        """kill -9 of the daemon and whoever would start it again, and wait until the mount is dead."""
        pid = self.pid()
        for parent in self.supervisors(pid):
            os.kill(parent, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        # The lake is free when the last of its threads has let go of the files.
        while os.path.exists(f"/proc/{pid}/fd/0") or self.threads(pid) > 1:
            time.sleep(0.001)

    @staticmethod
    def supervisors(pid):
        parent = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        name = pathlib.Path(f"/proc/{parent}/comm").read_text().strip() if parent else ""
        return [parent] if name == "laked-keep" else []

    @staticmethod
    def threads(pid):
        try:
            return len(os.listdir(f"/proc/{pid}/task"))
        except FileNotFoundError:
            return 0

    def ctl(self, *arguments):
        """Run lakectl --json; the reply as a dictionary, or Refused."""
        done = subprocess.run([*self.inside, BIN / "lakectl", "--lake", self.directory, "--json", *map(str, arguments)],
                              capture_output=True, text=True, check=False)
        reply = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode:
            raise Refused(done.returncode, reply, done.stderr)
        return reply

    def __truediv__(self, path):
        return self.mountpoint / path


class Clone(Lake):
    """Another host's: it shares the store of `other`, a lake with an embedded one, and has nothing of it here."""

    def __init__(self, other, *options):
        super().__init__(*options)
        self.other = other

    def __enter__(self):
        self.mountpoint.mkdir()
        subprocess.run([BIN / "lakectl", "-q", "clone", f"file://{self.other.directory}/store", self.directory],
                       check=True, stdout=subprocess.DEVNULL)
        self.mount()
        return self


def refused(lake, *arguments):
    """What lakectl says, which must fail."""
    try:
        lake.ctl(*arguments)
    except Refused as refusal:
        return refusal
    raise AssertionError(f"{arguments} succeeded")


def until(condition, seconds=15):
    """Wait for it; how long that took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - start


def shows(path, text):
    with contextlib.suppress(OSError):
        return path.read_text() == text
    return False


class Tests:
    def __init__(self):
        self.number = self.failed = 0

    @contextlib.contextmanager
    def case(self, name):
        self.number += 1
        try:
            yield
            print(f"ok {self.number} - {name}", flush=True)
        except Exception:  # every failure is a verdict, whatever its kind
            self.failed += 1
            print(f"not ok {self.number} - {name}")
            for line in traceback.format_exc().splitlines():
                print("# " + line)
            sys.stdout.flush()

    def skip(self, name, why):
        self.number += 1
        print(f"ok {self.number} - {name} # SKIP {why}", flush=True)

    def done(self):
        print(f"1..{self.number}")
        sys.exit(1 if self.failed else 0)
