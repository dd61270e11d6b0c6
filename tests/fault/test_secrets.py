#!/usr/bin/env python3
"""Credentials, a session's token, and a webhook's secret, are nowhere but where they were put: not in logs (--debug
too), /proc, errors, JSON, metrics, the lake's directory or its store. No core file is left, other processes of the same
user see nothing, and a dump that root makes all the same, or that was allowed, has none in it.
"""
import contextlib
import json
import mmap
import os
import pathlib
import pwd
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, ROOT, Lake, Tests, until  # noqa: E402

CEPH = ROOT / "tests" / "lib" / "ceph.sh"
HOOK_SECRET = "marker-of-a-webhook-8c6c"
# As long as they are in life, and longer than a register of the processor, which dumps have, too.
NAME = "marker-of-a-secret-" + "47be" * 16
TOKEN = "marker-of-a-session-" + "5b1f" * 80


def holders(marker, *places):
    """Files that have it in them."""
    found = []
    for place in places:
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file() and marker.encode() in path.read_bytes():
                found.append(path)
    return found


def start_ceph(directory):
    if not shutil.which("radosgw"):
        return None
    subprocess.run([CEPH, "start", directory, "1", "1"], capture_output=True, check=True)
    subprocess.run([CEPH, "user", directory, NAME], capture_output=True, check=True)
    env = directory / "env"
    env.write_text(env.read_text().replace("=testaccess", f"={NAME}access").replace("=testsecret", f"={NAME}secret"))
    subprocess.run([CEPH, "bucket", directory, "lake"], check=True, capture_output=True)
    values = {}
    for line in (directory / "env").read_text().splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        values[name] = value.strip("'\"")
    return values


def everything_said(lake, secret):
    """Of many commands, good and bad, text and JSON, in the daemon and without."""
    said = b""
    for words in (["status"], ["stats"], ["doctor"], ["log"], ["commit", "main", "-m", "m"], ["fsck"], ["--help"],
                  ["branch", "create", secret[:8] + "x", "nothing"], ["webhook", "list", "main"], ["audit", "log"],
                  ["publish", "nothing"], ["show", "main"], ["gc", "--dry-run"]):
        for json_flag in ([], ["--json"]):
            done = subprocess.run([BIN / "lakectl", "--lake", lake.directory, *json_flag, *words], capture_output=True,
                                  check=False)
            said += done.stdout + done.stderr
    return said


def dump_holds(path, *markers):
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        return [marker for marker in markers if view.find(marker.encode()) >= 0]


def dumped_by_root(pid, scratch):
    """The markers that a dump by root's debugger has."""
    done = subprocess.run(["gcore", "-o", scratch / "dump", str(pid)], capture_output=True, text=True, check=False)
    path = scratch / f"dump.{pid}"
    assert path.exists(), done
    found = dump_holds(path, NAME + "secretkey", TOKEN)
    # There is something in it: the name of the program's own variable is.
    assert dump_holds(path, "AWS_EC2_METADATA_DISABLED=")
    path.unlink()
    return found


SANITIZED = b"__asan_init" in (BIN / "laked").read_bytes()
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def aborted(pid):
    """What a process that is killed with SIGABRT leaves, its limit open as a service manager or shell would have it."""
    with contextlib.suppress(PermissionError):  # another user's: as it was started
        resource.prlimit(pid, resource.RLIMIT_CORE, UNLIMITED)
    where = pathlib.Path(os.readlink(f"/proc/{pid}/cwd"))
    before = set(where.glob("core*"))
    os.kill(pid, signal.SIGABRT)
    until(lambda: not os.path.exists(f"/proc/{pid}/fd/0"), 60)
    return set(where.glob("core*")) - before


def quiet(lake):
    """No request is under way: its head has the token, and is in memory that curl has."""
    def asked():
        return [line for line in (lake / ".lake/metrics").read_text().splitlines() if "request" in line]
    before, since = asked(), time.monotonic()
    while time.monotonic() < since + 1:
        time.sleep(0.1)
        if before != asked():
            before, since = asked(), time.monotonic()


def check_dumps(lake, tests):
    if SANITIZED or not shutil.which("gcore"):
        tests.skip("dumps by root's debugger", "a sanitizer's shadow is too large" if SANITIZED else "there is no gcore here")
        return
    with tests.case("a dump of the server, and of its supervisor, by root's debugger has neither key nor token"):
        quiet(lake)
        for pid in (lake.pid(), *lake.supervisors(lake.pid())):
            assert dumped_by_root(pid, lake.scratch) == []
    hold, hook = lake.scratch / "hold", lake.directory / "hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {hold}\nwhile [ -e {hold} ]; do sleep 0.1; done\n")
    hook.chmod(0o755)
    with tests.case("nor one of lakectl, which waits for the server"):
        (lake / "main/z").write_text("z")
        with subprocess.Popen([BIN / "lakectl", "-q", "--lake", lake.directory, "commit", "main", "-m", "z"]) as command:
            try:
                until(hold.exists, 60)
                assert dumped_by_root(command.pid, lake.scratch) == []
            finally:
                hook.unlink()
                hold.unlink(missing_ok=True)
            assert command.wait(60) == 0


def check_process(lake, tests, secret, daemon):
    pid = lake.pid()
    with tests.case("not in the command line or environment that /proc shows, and only root looks into the process"):
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                assert secret.encode() not in path.read_bytes(), path
        for process in (pid, daemon.pid):
            shown = pathlib.Path(f"/proc/{process}/environ").read_bytes()
            assert secret.encode() not in shown and TOKEN.encode() not in shown
            assert os.stat(f"/proc/{process}/environ").st_uid == 0
    with tests.case("a server that is killed with SIGABRT leaves no core file, nor does its supervisor"):
        assert not aborted(pid)
        until(lambda: lake.pid() not in (None, pid), 60)
        pid = lake.pid()
        assert not aborted(daemon.pid)
        assert daemon.wait(30) == -signal.SIGABRT
        assert not aborted(pid)
    with tests.case("what they said before they died has none of it"):
        for marker in (secret, TOKEN, HOOK_SECRET):
            assert not holders(marker, lake.directory / "laked.log")


def check_allowed(lake, tests):
    name = "a core file that was allowed has neither key nor token"
    if SANITIZED or pathlib.Path("/proc/sys/kernel/core_pattern").read_text().startswith("|"):
        tests.skip(name, "a sanitizer's shadow is too large" if SANITIZED else "core files go to a program here")
        return
    with tests.case(name):
        os.environ["LAKE_ALLOW_CORE"] = "1"
        with serving(lake, "--no-supervisor") as daemon:
            (lake / "main/w").write_text("w")
            lake.ctl("commit", "main", "-m", "w")
            quiet(lake)
            cores = aborted(daemon.pid)
            assert len(cores) == 1, cores
            assert dump_holds(*cores, NAME + "secretkey", TOKEN) == []
        del os.environ["LAKE_ALLOW_CORE"]


def check_user(tests):
    """An ordinary user's lakectl, which waits for a store that does not answer."""
    user, scratch = pwd.getpwnam("nobody"), pathlib.Path(tempfile.mkdtemp(prefix="lake-test.", dir="/var/tmp"))
    shutil.copy(BIN / "lakectl", scratch / "lakectl")
    os.chown(scratch, user.pw_uid, user.pw_gid)
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    environment = os.environ | {"HOME": str(scratch), "ASAN_OPTIONS": "detect_leaks=0"}

    def sees(pid):
        return [name for name in ("environ", "mem", "maps") if subprocess.run(
            [*as_user, "head", "-c0", f"/proc/{pid}/{name}"], capture_output=True, check=False).returncode == 0]
    with socket.create_server(("127.0.0.1", 0)) as silent, \
            subprocess.Popen([*as_user, "sleep", "1000"]) as other, \
            subprocess.Popen([*as_user, scratch / "lakectl", "init", "--store", "s3://bucket/x", "--endpoint-url",
                              f"http://127.0.0.1:{silent.getsockname()[1]}", scratch / "lake"], cwd=scratch,
                             env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as command, \
            tests.case("processes of the same user do not look into an ordinary user's lakectl"):
        try:
            silent.settimeout(60)
            with silent.accept()[0] as connection:
                assert TOKEN.encode() in connection.recv(10000)
                until(lambda: "environ" in sees(other.pid))
                assert sees(command.pid) == []
                assert not aborted(command.pid)
        finally:
            other.kill()
            command.kill()
    shutil.rmtree(scratch)


@contextlib.contextmanager
def serving(lake, *options):
    """laked with --debug; its log is where lakectl would have it."""
    ready_read, ready_write = os.pipe()
    with open(lake.directory / "laked.log", "ab") as log:
        daemon = subprocess.Popen([BIN / "laked", "--lake", lake.directory, "--debug", "--ready-fd", str(ready_write),
                                   *options, lake.mountpoint], stderr=log, stdout=log, pass_fds=[ready_write],
                                  cwd=lake.scratch)
    os.close(ready_write)
    assert os.read(ready_read, 100).startswith(b"ready")
    os.close(ready_read)
    try:
        yield daemon
    finally:
        daemon.kill()
        daemon.wait()
        pid = lake.pid()
        if pid:
            os.kill(pid, signal.SIGKILL)
        subprocess.run(["umount", "-l", lake.mountpoint], capture_output=True, check=False)


def check_words(lake, tests, secret, hook):
    markers = (secret, TOKEN, HOOK_SECRET)
    lake.ctl("webhook", "add", "main", "chat", "http://127.0.0.1:9/x", "--secret-file", hook)
    (lake / "main/x").write_text("x")
    with tests.case("not in what any command says"):
        said = everything_said(lake, secret)
        assert not any(marker.encode() in said for marker in markers)
    with tests.case("not in logs with --debug, metrics, spool, configuration, journal, cache"):
        (lake / "main/y").write_text("y")
        lake.ctl("commit", "main", "-m", "again", "--meta", "k=v")
        time.sleep(1.5)
        (lake.scratch / "reports").write_bytes((lake / ".lake/metrics").read_bytes() +
                                               (lake / ".lake/status").read_bytes())
        for marker in markers:
            found = [path for path in holders(marker, lake.directory, lake.scratch / "reports") if path != hook]
            assert not found, found


def main():
    resource.setrlimit(resource.RLIMIT_CORE, UNLIMITED)
    tests = Tests()
    ceph = pathlib.Path(tempfile.mkdtemp(prefix="lake-ceph.", dir="/var/tmp"))
    values = start_ceph(ceph)
    if not values:
        tests.skip("secrets of S3", "there is no radosgw here")
        tests.done()
    try:
        os.environ.update({name: value for name, value in values.items() if name.startswith("AWS_")})
        secret = os.environ["AWS_SECRET_ACCESS_KEY"]
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        os.environ["AWS_SESSION_TOKEN"] = TOKEN  # this store does not look at it
        lake = Lake()
        lake.mountpoint.mkdir()
        subprocess.run([BIN / "lakectl", "init", "--store", "s3://lake/secrets", "--endpoint-url",
                        values["LAKE_TEST_ENDPOINT"], lake.directory],
                       check=True, capture_output=True)
        settings = lake.directory / "lake.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"refresh_ms": 0}))
        hook = lake.scratch / "hook-secret"
        hook.write_text(HOOK_SECRET + "\n")
        hook.chmod(0o600)
        try:
            with serving(lake) as daemon:
                check_words(lake, tests, secret, hook)
                check_dumps(lake, tests)
                check_process(lake, tests, secret, daemon)
            check_allowed(lake, tests)
        finally:
            lake.__exit__()
        if shutil.which("setpriv"):
            check_user(tests)
        else:
            tests.skip("an ordinary user's processes", "there is no setpriv here")
    finally:
        subprocess.run([CEPH, "stop", ceph], capture_output=True, check=False)
    tests.done()


main()
