"""Hosts that share a lake in S3: each a daemon with a directory and a network of its own, around one Ceph.

    import netns
    why = netns.enter()
    with S3() as s3:
        with s3.hosts(8) as group:
            ...
        s3.ledger.since(mark)       # what the gateway was asked by whom, and how it answered
"""
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

import netns
from lake import ROOT, Lake

CEPH = ROOT / "tests" / "lib" / "ceph.sh"
PROXY = ROOT / "build" / "tests" / "lib" / "s3_proxy"
NETWORKS = 8
Request = collections.namedtuple("Request", "host method key query status bytes")


class Ledger:
    """The gateway's log of requests."""

    LINE = re.compile(r'beast: \S+ (\S+) - \S+ \[[^]]+\] "(\w+) /lake/?([^ ?]*)\??(\S*) HTTP/1.1" (\d+) (\d+)')

    def __init__(self, path):
        self.path = path

    def mark(self):
        time.sleep(0.05)  # a request is noted after it is answered
        return self.path.stat().st_size

    def since(self, mark, host=None):
        time.sleep(0.05)
        with open(self.path) as file:
            file.seek(mark)
            found = [Request(m[1], m[2], m[3], m[4], int(m[5]), int(m[6])) for m in self.LINE.finditer(file.read())]
        return [request for request in found if host is None or request.host == host.address]


def kinds(requests):
    """How many of which: {"GET refs 304": 3, ...}."""
    count = collections.Counter()
    for request in requests:
        parts = request.key.split("/")
        what = parts[1] if len(parts) > 1 else "listing" if "list-type" in request.query else "other"
        count[f"{request.method} {what} {request.status}"] += 1
    return dict(sorted(count.items()))


class Host(Lake):
    """A clone; the first host of a lake makes it."""

    def __init__(self, s3, number, url, first, config):
        super().__init__()
        self.s3, self.number, self.url, self.first, self.config = s3, number, url, first, config
        self.inside = s3.network.inside(number)
        self.address = s3.network.address(number)

    def __enter__(self):
        self.mountpoint.mkdir()
        if self.first:
            self.ctl("init", "--store", self.url)
        else:
            self.ctl("clone", self.url, self.directory)
        path = self.directory / "lake.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | self.config))
        self.mount()
        return self

    def commit(self, text="change", branch="main", *arguments):
        return self.ctl("commit", branch, "-m", text, *arguments)

    def status(self, branch="main"):
        return self.ctl("status", branch)

    def changes(self, branch="main"):
        return {change["path"]: change["change"] for change in self.status(branch)["changes"]}

    def history(self, branch="main"):
        return self.ctl("log", branch, "-n", "1000000")["commits"]

    def metric(self, name):
        for line in (self / ".lake/metrics").read_text().splitlines():
            if line.split()[0] == name:
                return int(line.split()[1])
        raise KeyError(name)

    def requests(self, mark):
        return self.s3.ledger.since(mark, self)

    def log(self):
        return (self.directory / "laked.log").read_text(errors="replace")

    def away(self):
        return self.s3.network.away(self.number)


class S3:
    """One Ceph for the test, and as many networks as hosts are asked for."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="lake-ceph.", dir="/var/tmp"))
        self.lakes = 0

    def __enter__(self):
        self.network = netns.Network(NETWORKS)
        environment = dict(os.environ, LAKE_CEPH_ADDRESS=self.network.gateway)
        subprocess.run([CEPH, "start", self.directory], check=True, capture_output=True, env=environment)
        subprocess.run([CEPH, "bucket", self.directory, "lake"], check=True, env=environment)
        given = dict(line.split("=", 1) for line in (self.directory / "env").read_text().split("\n") if "=" in line)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ |= {name: given[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nonexistent",
                       "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "no_proxy": "*"}
        self.endpoint = given["LAKE_TEST_ENDPOINT"]
        self.ledger = Ledger(self.directory / "log" / "client.rgw.0.log")
        return self

    def __exit__(self, *_):
        subprocess.run([CEPH, "stop", self.directory], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    @contextlib.contextmanager
    def slow(self, latency_ms):
        """An endpoint that answers each request so much later, for every network."""
        proxies = []
        upstream = self.endpoint.removeprefix("http://")
        try:
            for number in range(NETWORKS):
                proxies.append(subprocess.Popen(
                    [*self.network.inside(number), PROXY, "--port", "9000", "--latency-ms", str(latency_ms), upstream],
                    stdout=subprocess.PIPE))
                proxies[-1].stdout.readline()
            yield "http://127.0.0.1:9000"
        finally:
            for proxy in proxies:
                proxy.kill()
                proxy.wait()

    @contextlib.contextmanager
    def hosts(self, count, endpoint=None, timeout=5, **config):
        """Started and ended beside each other: ending one takes a while. More than networks: they share these."""
        self.lakes += 1
        url = f"s3://lake/{self.lakes}?endpoint={endpoint or self.endpoint}&timeout={timeout}"
        group = [Host(self, number % NETWORKS, url, number == 0, config) for number in range(count)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            try:
                group[0].__enter__()
                list(pool.map(Host.__enter__, group[1:]))
                yield group
            finally:
                list(pool.map(Host.__exit__, group))
