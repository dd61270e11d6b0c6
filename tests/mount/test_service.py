#!/usr/bin/env python3
"""The unit for systemd as it is installed: systemd finds nothing wrong with it, and its lines, run as systemd would run
them (without the privileges it gives up), serve a lake, say when, and end it."""
import contextlib
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, ROOT, Lake, Tests, until  # noqa: E402

tests = Tests()


class Unit:
    """What a unit file says, by name; a name that comes again adds to the list."""

    def __init__(self, path, instance):
        self.settings = {}
        for line in path.read_text().splitlines():
            if line and line[0] not in "#[":
                name, _, value = line.partition("=")
                self.settings.setdefault(name, []).append(value.replace("%i", instance))
        self.environment = dict(word.split("=", 1) for value in self.settings["Environment"] for word in value.split())

    def command(self, name):
        """As systemd.service(5) says, "Command lines": ${NAME} is one word, $NAME any number. Whether failing matters."""
        words, lenient = [], self.settings[name][0].startswith("-")
        for word in shlex.split(self.settings[name][0].removeprefix("-")):
            if word.startswith("$") and not word.startswith("${"):
                words += self.environment[word[1:]].split()
            else:
                for variable, value in self.environment.items():
                    word = word.replace(f"${{{variable}}}", value)
                words.append(word)
        return words, lenient

    def run(self, name):
        words, lenient = self.command(name)
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert lenient or done.returncode == 0, done
        return done

    def start(self, notify):
        """ExecStart with what is given up."""
        given_up = self.settings["CapabilityBoundingSet"][0]
        assert given_up.startswith("~") and self.settings["NoNewPrivileges"] == ["yes"]
        names = ",".join("-" + name.removeprefix("CAP_").lower() for name in given_up[1:].split())
        return subprocess.Popen(["setpriv", "--no-new-privs", f"--bounding-set={names}", *self.command("ExecStart")[0]],
                                env=os.environ | self.environment | {"NOTIFY_SOCKET": notify}, stderr=subprocess.PIPE)


@contextlib.contextmanager
def manager(address):
    """Who is told, and by what name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(address.replace("@", "\0", 1) if address.startswith("@") else address)
        heard.settimeout(60)
        yield heard


def silent(heard):
    heard.setblocking(False)
    try:
        return heard.recv(1000)
    except BlockingIOError:
        heard.settimeout(60)
        return None


def ended(process):
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, (process.returncode, said)


def check_serving(lake, unit):
    with manager(str(lake.scratch / "notify")) as heard:
        unit.run("ExecStartPre")
        process = unit.start(str(lake.scratch / "notify"))
        assert heard.recv(1000) == b"READY=1\n"
        (lake / "main/x").write_text("x")
        assert process.poll() is None
        hook = lake.directory / "hooks/pre-commit"
        hook.parent.mkdir()
        hook.write_text("#!/bin/sh\nenv\n")
        hook.chmod(0o755)
        reply = lake.ctl("commit", "main", "-m", "x")
        assert "LAKE_" in str(reply["hooks"]) and "NOTIFY_SOCKET" not in str(reply["hooks"]), reply
        pid = lake.pid()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not os.path.exists(f"/proc/{pid}"))  # a process with sanitizers dies slowly, in the middle of requests
        assert (lake / "main/x").read_text() == "x"  # waits for the next one
        assert lake.pid() != pid and silent(heard) is None
        assert unit.run("ExecStop").returncode == 0
        ended(process)
        assert heard.recv(1000) == b"STOPPING=1\n"
        assert not os.path.ismount(lake.mountpoint)


def check_held(lake, unit):
    with manager(f"@lake-test-{os.getpid()}") as heard:
        process = unit.start(f"@lake-test-{os.getpid()}")
        assert heard.recv(1000) == b"READY=1\n"
        with open(lake / "main/x") as held:
            assert unit.run("ExecStop").returncode == 1
            assert process.poll() is None and held.read() == "x"
            process.send_signal(signal.SIGTERM)  # KillMode=mixed: to the main process
            ended(process)
        assert heard.recv(1000) == b"STOPPING=1\n"
        assert not os.path.ismount(lake.mountpoint)


def check_failing(lake, unit):
    with manager(str(lake.scratch / "notify2")) as heard:
        unit.environment["LAKE_DIR"] += "/nothing"
        process = unit.start(str(lake.scratch / "notify2"))
        status = heard.recv(1000)
        assert status.startswith(b"STATUS=no lake") and b"READY" not in status, status
        assert process.wait(60) == 5
    # A name that is none, and a manager that is gone, are no reason to fail.
    unit.environment["LAKE_DIR"] = str(lake.directory)
    for name in ("nonsense", str(lake.scratch / "nobody"), "/" + "x" * 200, ""):
        process = unit.start(name)
        until(lambda: os.path.ismount(lake.mountpoint), 60)
        until(lambda: unit.run("ExecStop").returncode == 0, 60)
        ended(process)


def main():
    prefix = pathlib.Path(tempfile.mkdtemp(prefix="lake-test.", dir="/var/tmp"))
    installed = prefix / "lib/systemd/system/lake@.service"
    try:
        with tests.case("`make install` puts it where systemd looks, with the paths of the programs"):
            subprocess.run(["make", "-s", "-C", ROOT, "-o", "all", f"BUILD={BIN.parent}", "DESTDIR=", f"PREFIX={prefix}",
                            "install"], check=True, capture_output=True)
            assert f"\nExecStart={prefix}/bin/laked " in installed.read_text()
        if shutil.which("systemd-analyze"):
            with tests.case("systemd finds nothing wrong with it"):
                done = subprocess.run(["systemd-analyze", "verify", "--man=no", f"{installed.parent}/lake@x.service"],
                                      capture_output=True, text=True, check=False)
                said = [line for line in done.stderr.splitlines() if "lake" in line]
                assert not said and done.returncode == 0, done
        else:
            tests.skip("systemd finds nothing wrong with it", "no systemd-analyze")
        if os.geteuid() != 0 or not shutil.which("setpriv"):
            tests.skip("its lines", "they need root, and setpriv")
            tests.done()
        lake = Lake()
        lake.ctl("init")
        unit = Unit(installed, "x")
        assert unit.environment == {"LAKE_DIR": "/var/lib/x", "LAKE_MOUNT": "/x", "LAKE_OPTIONS": ""}
        unit.environment |= {"LAKE_DIR": str(lake.directory), "LAKE_MOUNT": str(lake.mountpoint),
                             "LAKE_OPTIONS": "--threads 16 --restarts 3"}
        try:
            with tests.case("it says when it serves, goes on after a death, and stops"):
                check_serving(lake, unit)
            with tests.case("stopped while a file is open"):
                check_held(lake, unit)
            with tests.case("what fails is said; nobody has to listen"):
                check_failing(lake, unit)
        finally:
            lake.__exit__()
    finally:
        shutil.rmtree(prefix)
    tests.done()


main()
