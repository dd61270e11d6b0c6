#!/usr/bin/env python3
"""What other users may do: on the mount what modes say, on the control socket nothing unless they are the
owner or of the configured group, in the lake's directory nothing. Clients of the socket that stall or
send nonsense stop nobody else.
"""
import contextlib
import errno
import json
import os
import pathlib
import socket
import stat
import struct
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Lake, Refused, Tests  # noqa: E402

ALICE, BOB, TEAM, NOBODY = 41001, 41002, 41100, 65534


def as_user(uid, function, groups=(), gid=None):
    """What it raises: an errno; None when it went well. In a process of that user's."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            os.setgroups(list(groups))
            os.setresgid(gid or uid, gid or uid, gid or uid)
            os.setresuid(uid, uid, uid)
            function()
        except OSError as failure:
            code = failure.errno
        except BaseException:
            code = 255
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or None


def read(path):
    return lambda: open(path, "rb").read()


def write(path):
    return lambda: open(path, "ab").write(b"+")


def check_modes(lake, tests):
    top = lake / "main"
    with tests.case("files and directories: what their modes say, also at a revision"):
        os.chmod(top, 0o1777)
        assert as_user(ALICE, lambda: os.mkdir(top / "alice", 0o750), gid=TEAM) is None
        for name, mode in (("private", 0o600), ("team", 0o640), ("public", 0o644), ("program", 0o755), ("none", 0)):
            path = top / "alice" / name
            assert as_user(ALICE, lambda: path.write_text("#!/bin/sh\necho ran\n"), gid=TEAM) is None
            os.chmod(path, mode)
        assert (os.stat(top / "alice/team").st_uid, os.stat(top / "alice/team").st_gid) == (ALICE, TEAM)
        lake.ctl("commit", "main", "-m", "modes")
        for base in (top, lake / "@main"):
            here = base / "alice"
            assert as_user(BOB, read(here / "public")) == errno.EACCES  # the directory
            assert as_user(BOB, lambda: os.listdir(here)) == errno.EACCES
            assert as_user(BOB, read(here / "public"), [TEAM]) is None
            assert as_user(BOB, read(here / "team"), [TEAM]) is None
            assert as_user(BOB, read(here / "private"), [TEAM]) == errno.EACCES
            assert as_user(ALICE, read(here / "private")) is None
            assert as_user(ALICE, read(here / "none")) == errno.EACCES
            assert as_user(BOB, lambda: subprocess.run([here / "program"], check=True, capture_output=True), [TEAM]) is None
            assert as_user(BOB, lambda: subprocess.run([here / "team"], check=True), [TEAM]) in (errno.EACCES, 255)
            assert as_user(BOB, lambda: os.listdir(here), [TEAM]) is None
        assert as_user(BOB, write(top / "alice/team"), [TEAM]) == errno.EACCES
        assert as_user(ALICE, write(top / "alice/team")) is None
        assert as_user(ALICE, write(lake / "@main/alice/team")) == errno.EROFS
    with tests.case("sticky directories, directories without search or write"):
        assert as_user(ALICE, lambda: (top / "hers").write_text("x")) is None
        os.chmod(top / "hers", 0o666)
        assert as_user(BOB, lambda: os.unlink(top / "hers")) in (errno.EPERM, errno.EACCES)
        assert as_user(BOB, lambda: os.rename(top / "hers", top / "his")) in (errno.EPERM, errno.EACCES)
        assert as_user(BOB, write(top / "hers")) is None
        assert as_user(ALICE, lambda: os.mkdir(top / "alice/closed", 0o700)) is None
        os.chmod(top / "alice", 0o755)
        os.chmod(top / "alice/closed", 0o744)
        assert as_user(BOB, lambda: os.listdir(top / "alice/closed")) is None
        assert as_user(BOB, lambda: os.stat(top / "alice/closed/x")) == errno.EACCES
        assert as_user(BOB, lambda: os.mkdir(top / "alice/new")) == errno.EACCES
        assert as_user(BOB, lambda: os.unlink(top / "alice/public")) == errno.EACCES
    with tests.case("owners: chown, chmod, times, set-id bits, groups of new files"):
        path = top / "alice/public"
        assert as_user(BOB, lambda: os.chmod(path, 0o777)) == errno.EPERM
        assert as_user(BOB, lambda: os.utime(path, (1, 1))) == errno.EPERM
        assert as_user(ALICE, lambda: os.chown(path, BOB, -1)) == errno.EPERM
        assert as_user(ALICE, lambda: os.chown(path, -1, BOB)) == errno.EPERM
        assert as_user(ALICE, lambda: os.chown(path, -1, TEAM), [TEAM]) is None
        os.chmod(path, 0o6755)
        assert as_user(ALICE, write(path)) is None
        assert not os.stat(path).st_mode & (stat.S_ISUID | stat.S_ISGID)
        os.chmod(path, 0o6755)
        assert as_user(ALICE, lambda: os.chown(path, -1, TEAM), [TEAM]) is None
        assert not os.stat(path).st_mode & stat.S_ISUID
        os.mkdir(top / "shared")
        os.chown(top / "shared", 0, TEAM)
        os.chmod(top / "shared", 0o2777)
        assert as_user(BOB, lambda: (top / "shared/x").write_text("x")) is None
        assert as_user(BOB, lambda: os.mkdir(top / "shared/d")) is None
        assert os.stat(top / "shared/x").st_gid == TEAM
        assert os.stat(top / "shared/d").st_gid == TEAM and os.stat(top / "shared/d").st_mode & stat.S_ISGID
    with tests.case("set-user-id programs do not become somebody else (nosuid)"):
        flags = [line for line in open("/proc/self/mountinfo") if str(lake.mountpoint) in line]
        assert "nosuid" in flags[0] and "nodev" in flags[0], flags


def check_directory(lake, tests):
    with tests.case("in the lake's directory nothing can be read by others"):
        kept = {"lake.json", "lock", "control.sock"}
        for entry in os.scandir(lake.directory):
            mode = entry.stat(follow_symlinks=False).st_mode
            assert entry.name in kept or not mode & 0o077, (entry.name, oct(mode))
        for path in (lake.directory / "store").rglob("*"):
            if path.is_file():
                assert as_user(BOB, read(path)) == errno.EACCES, path
                break


class Client:
    def __init__(self, lake):
        self.socket = socket.socket(socket.AF_UNIX)
        here = os.open(lake.directory, os.O_PATH)
        try:
            self.socket.connect(f"/proc/self/fd/{here}/control.sock")
        finally:
            os.close(here)
        self.socket.settimeout(20)

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, request):
        data = json.dumps(request).encode()
        self.send(struct.pack("<I", len(data)) + data)
        return self.reply()

    def reply(self):
        while True:
            length = struct.unpack("<I", self.exactly(4))[0]
            frame = json.loads(self.exactly(length))
            if "reply" in frame:
                return frame["reply"]

    def exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data


STATUS = {"command": "status", "branch": "main"}


def answers(lake, seconds=5):
    start = time.monotonic()
    reply = Client(lake).ask(STATUS)
    assert reply.get("branch") == "main", reply
    took = time.monotonic() - start
    assert took < seconds, took


def refused_text(lake):
    reply = Client(lake).reply()
    assert "may not control" in reply["error"]["message"], reply
    assert reply["error"]["exit"] == 4


def check_socket(lake, tests):
    with tests.case("the control socket: root and the configured group, nobody else"):
        assert as_user(BOB, lambda: refused_text(lake)) is None
        assert as_user(BOB, lambda: os._exit(subprocess.run(
            [BIN / "lakectl", "--lake", lake.directory, "commit", "main", "-m", "x"], capture_output=True).returncode)) == 4
    with tests.case("a stranger's flood of connections stops nobody"):
        def flood():
            clients = [Client(lake) for _ in range(300)]
            for client in clients:
                client.send(b"\xff" * 100)
        assert as_user(BOB, flood) in (None, errno.EPIPE, errno.ECONNRESET)
        answers(lake)
    with tests.case("1,000 silent connections, half frames and slow writers stop nobody"):
        kept = []
        for number in range(1000):
            client = Client(lake)
            client.socket.settimeout(5)
            try:
                client.send([b"", b"\x10\x00", struct.pack("<I", 1 << 20) + b'{"comm', b"\x00"][number % 4])
            except OSError:
                pass
            kept.append(client)
            if number % 100 == 99:
                answers(lake)
        threads = int(pathlib.Path(f"/proc/{lake.pid()}/status").read_text().split("Threads:")[1].split()[0])
        assert threads < 300, threads
        for client in kept:
            client.socket.close()
    with tests.case("frames too large, nested deeply, not JSON, of wrong types: an error each"):
        for payload in (b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\x00", b"", b"null", b"[]", b'"x"', b"{}", b"1e999",
                        b'{"command":5}', b'{"command":"none"}', b'{"command":"cat","revision":["x"]}',
                        b'{"command":"commit","branch":{},"message":5}', b'{"command":"\\u0000"}'):
            client = Client(lake)
            client.send(struct.pack("<I", len(payload)) + payload)
            assert "error" in client.reply(), payload[:20]
        for length in ((64 << 20), 0xffffffff, (16 << 20) + 1):
            client = Client(lake)
            client.send(struct.pack("<I", length))
            assert "error" in client.reply(), length
        answers(lake)
    with tests.case("who does not read his reply holds up neither others nor the end"):
        for number in range(3000):
            (lake / f"main/shared/file-with-a-long-name-{number:060}").touch()
        silent = []
        for _ in range(5):
            client = Client(lake)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            data = json.dumps(STATUS).encode()
            client.send(struct.pack("<I", len(data)) + data)
            silent.append(client)
        time.sleep(0.5)
        assert lake.ctl("branch")["branches"]
        start = time.monotonic()
        with contextlib.suppress(Refused):  # "still at work"
            lake.umount()
        while lake.pid():
            assert time.monotonic() < start + 60, "laked does not end"
            time.sleep(0.05)
        lake.mount()


def check_group(tests):
    with tests.case("members of control_group may, others not"):
        with Lake() as lake:
            os.chmod(lake.scratch, 0o755)
            lake.umount()
            path = lake.directory / "lake.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"control_group": "nogroup"}))
            lake.mount()
            assert as_user(NOBODY, lambda: answers(lake)) is None
            assert as_user(BOB, lambda: refused_text(lake)) is None


def main():
    tests = Tests()
    if os.geteuid() != 0:
        tests.skip("permissions", "needs root")
        tests.done()
    with Lake() as lake:
        os.chmod(lake.scratch, 0o755)
        for check in (check_modes, check_directory, check_socket):
            check(lake, tests)
    check_group(tests)
    tests.done()


main()
