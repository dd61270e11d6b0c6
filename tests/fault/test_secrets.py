#!/usr/bin/env python3
"""A credential, and a webhook's secret, are nowhere but where they were put: not in logs (--debug too), /proc,
errors, JSON, metrics, the lake's directory or its store, nor in a core file.
"""
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, ROOT, Lake, Tests  # noqa: E402

CEPH = ROOT / "tests" / "lib" / "ceph.sh"
HOOK_SECRET = "marker-of-a-webhook-8c6c"


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


def check_process(lake, tests, secret, daemon):
    pid = daemon.pid
    with tests.case("not in the command line, and only root looks into the process"):
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert secret.encode() not in path.read_bytes(), path
            except (FileNotFoundError, ProcessLookupError):
                pass
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0
    with tests.case("a daemon that is killed with SIGABRT leaves no core file"):
        # As a service manager or shell would have it: the limit is open.
        resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        where = pathlib.Path(os.readlink(f"/proc/{pid}/cwd"))
        before = set(where.glob("core*"))
        os.kill(pid, signal.SIGABRT)
        assert daemon.wait(30) == -signal.SIGABRT
        after = set(where.glob("core*")) - before
        for path in after:
            path.unlink()
        assert not after, after


def main():
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
        lake = Lake()
        lake.mountpoint.mkdir()
        subprocess.run([BIN / "lakectl", "init", "--store", "s3://lake/secrets", "--endpoint-url",
                        values["LAKE_TEST_ENDPOINT"], lake.directory],
                       check=True, capture_output=True)
        hook = lake.scratch / "hook-secret"
        hook.write_text(HOOK_SECRET + "\n")
        hook.chmod(0o600)
        ready_read, ready_write = os.pipe()
        log = open(lake.directory / "laked.log", "ab")
        daemon = subprocess.Popen([BIN / "laked", "--lake", lake.directory, "--debug", "--ready-fd", str(ready_write),
                                   lake.mountpoint], stderr=log, stdout=log, pass_fds=[ready_write], cwd=lake.scratch)
        os.close(ready_write)
        assert os.read(ready_read, 100).startswith(b"ready")
        try:
            lake.ctl("webhook", "add", "main", "chat", "http://127.0.0.1:9/x", "--secret-file", hook)
            (lake / "main/x").write_text("x")
            with tests.case("not in what any command says"):
                said = everything_said(lake, secret)
                assert secret.encode() not in said and HOOK_SECRET.encode() not in said
            with tests.case("not in logs with --debug, metrics, spool, configuration, journal, cache"):
                (lake / "main/y").write_text("y")
                lake.ctl("commit", "main", "-m", "again", "--meta", "k=v")
                time.sleep(1.5)
                (lake.scratch / "reports").write_bytes((lake / ".lake/metrics").read_bytes() +
                                                       (lake / ".lake/status").read_bytes())
                for marker in (secret, HOOK_SECRET):
                    found = [path for path in holders(marker, lake.directory, lake.scratch / "reports") if path != hook]
                    assert not found, found
            check_process(lake, tests, secret, daemon)
        finally:
            lake.__exit__()
            daemon.kill()
            daemon.wait()
    finally:
        subprocess.run([CEPH, "stop", ceph], capture_output=True, check=False)
    tests.done()


main()
