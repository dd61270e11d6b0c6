"""Hosts with networks of their own, for tests: namespaces on one bridge, and a gateway in the middle.

    import netns
    why = netns.enter()         # first thing: the test goes on in namespaces of its own
    network = netns.Network(8)
    network.gateway             # the address where stores listen
    network.inside(3)           # the words before a command that runs it on host 3
    network.cut(3), network.join(3)

enter() puts the test below a process that is the first of its own process, mount and network
namespaces. When that one ends, for whatever reason, the kernel kills everything the test started and
removes every mount and interface: there is nothing to clean up, also after kill -9. No packet can
leave these namespaces, there is no way out of them.
"""
import contextlib
import ctypes
import os
import signal
import subprocess
import sys

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


def call(result):
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def pass_on(child):
    """End as the child does; an end asked of this process is one for all below."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGKILL))
    while True:
        pid, status = os.wait()  # as the first process also of those whose parents are gone
        if pid == child:
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def leave_mounts():
    """In a private mount namespace: let go of others' mounts, which could not be unmounted while copies of them are here."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        points = [line.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape") for line in table]
    for point in reversed(points):
        if point.startswith(("/var/tmp/", "/tmp/", "/dev/shm/")) and not __file__.startswith(point + "/"):
            libc.umount2(os.fsencode(point), MNT_DETACH)


def enter():
    """None, or why this machine cannot do it."""
    if os.geteuid() != 0:
        return "needs root"
    sys.stdout.flush()
    try:
        call(libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET))
        first = os.fork()
        if first:
            pass_on(first)
        call(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        call(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        leave_mounts()
        call(libc.mount(b"proc", b"/proc", b"proc", 0, None))
        # The first process adopts daemons and has to notice when they end; the test is another.
        test = os.fork()
        if test:
            pass_on(test)
        ip("link", "set", "lo", "up")
        ip("link", "add", "bridge", "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here: {error}"
    return None


def ip(*words, inside=()):
    subprocess.run([*inside, "ip", *map(str, words)], check=True, capture_output=True)


class Network:
    """`count` hosts, numbered from 0; their addresses are 10.0.0.10 and on."""

    gateway = "10.0.0.1"

    def __init__(self, count):
        ip("address", "replace", f"{self.gateway}/24", "dev", "bridge")
        ip("link", "set", "bridge", "up")
        self.holders = []
        for number in range(count):
            self.add(number)

    def add(self, number):
        holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
        holder.stdout.readline()
        self.holders.append(holder)
        ip("link", "add", f"host{number}", "type", "veth", "peer", "name", "eth0", "netns", holder.pid)
        ip("link", "set", f"host{number}", "master", "bridge", "up")
        inside = self.inside(number)
        ip("link", "set", "lo", "up", inside=inside)
        ip("address", "add", f"{self.address(number)}/24", "dev", "eth0", inside=inside)
        ip("link", "set", "eth0", "up", inside=inside)

    @staticmethod
    def address(number):
        return f"10.0.0.{10 + number}"

    def inside(self, number):
        return ["nsenter", f"--net=/proc/{self.holders[number].pid}/ns/net", "--"]

    @staticmethod
    def cut(number):
        """Nothing gets through, and nobody is told."""
        ip("link", "set", f"host{number}", "down")

    @staticmethod
    def join(number):
        ip("link", "set", f"host{number}", "up")

    @contextlib.contextmanager
    def away(self, number):
        self.cut(number)
        try:
            yield
        finally:
            self.join(number)
