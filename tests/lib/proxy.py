"""The S3 proxy of tests/lib/s3_proxy.c, a Ceph of the test's own, and lakes on them, for Python tests.

    with Ceph() as ceph, Proxy(ceph.endpoint, latency_ms=15) as proxy:
        lake init --store f"s3://lake/x?endpoint={proxy.url}"
        proxy.faults("GET */packs/* 5% flip", "PUT */refs/* x1 lose")
        proxy.outage("hang"); proxy.outage("none")
        proxy.stats()["kinds"]["GET packs"]["requests"]
"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request

from lake import Lake

ROOT = pathlib.Path(__file__).resolve().parents[2]
CEPH = ROOT / "tests" / "lib" / "ceph.sh"
PROGRAM = pathlib.Path(os.environ.get("LAKE_HELPERS", ROOT / "build" / "tests" / "lib")) / "s3_proxy"
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Proxy:
    """Started at once; ends with stop() or the with block."""

    def __init__(self, *upstreams, latency_ms=0, port=0, seed=0, log=None):
        if not PROGRAM.exists():
            subprocess.run(["make", "-s", "-C", ROOT, "build/tests/lib/s3_proxy"], check=True, capture_output=True)
        arguments = [PROGRAM, f"--latency-ms={latency_ms}", f"--port={port}", f"--seed={seed}"]
        if log is not None:
            arguments.append(f"--log={log}")
        self.process = subprocess.Popen([*arguments, *upstreams], stdout=subprocess.PIPE, text=True)
        ports = self.process.stdout.readline().split()
        if len(ports) != 2:
            raise RuntimeError(f"the proxy does not start (status {self.process.wait()})")
        self.port, self.control_port = map(int, ports)
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self.process.kill()
        self.process.wait()

    def _control(self, name, body=None):
        """The control port answers during an outage, too."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.control_port}/-proxy/{name}", data=body)
        try:
            with NO_PROXY.open(request, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode().strip()) from None

    def stats(self):
        return json.loads(self._control("stats"))

    def hits(self):
        """How often each rule fired, in their order."""
        return [rule["hits"] for rule in self.stats()["rules"]]

    def reset(self):
        """All counters to zero; rules, latency and outage stay."""
        self._control("reset", b"")

    def faults(self, *rules):
        """Exactly these from now on; none: everything works."""
        self._control("faults", "\n".join(rules).encode())

    def latency(self, milliseconds):
        self._control("latency", str(milliseconds).encode())

    def outage(self, kind="none"):
        """hang: connections are accepted and never answered; refuse: there is nobody; none: over."""
        self._control("outage", kind.encode())


class Ceph:
    """Monitor, OSDs and gateways; `error` is set, and nothing started, when that cannot be had here."""

    def __init__(self, osds=1, gateways=1):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="lake-ceph.", dir="/var/tmp"))
        subprocess.run([ROOT / "tests" / "lib" / "install.sh", "ceph"], capture_output=True, check=False)
        done = subprocess.run([CEPH, "start", self.directory, str(osds), str(gateways)],
                              capture_output=True, text=True, check=False)
        self.error = done.stderr.strip() or "Ceph does not start" if done.returncode else None
        if self.error:
            return
        values = {}
        for line in (self.directory / "env").read_text().splitlines():
            name, _, value = line.partition("=")
            values[name] = value.strip('"')
        self.endpoints = values["LAKE_TEST_ENDPOINTS"].split()
        self.endpoint = self.endpoints[0]
        self.keys = {name: values[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        subprocess.run([CEPH, "stop", self.directory], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def bucket(self, name):
        subprocess.run([CEPH, "bucket", self.directory, name], check=True, capture_output=True)

    def kill(self, name):
        """kill -9 of "osd.0", "client.rgw.1"."""
        os.kill(int((self.directory / "run" / f"{name}.pid").read_text()), signal.SIGKILL)

    def gateway(self, number):
        """Start one that was killed, on the same port."""
        subprocess.run([CEPH, "gateway", self.directory, str(number)], check=True, capture_output=True)


def environment(keys):
    """Nothing of the user's own settings; `keys` for this process and all it starts."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(keys, AWS_EC2_METADATA_DISABLED="true", AWS_CONFIG_FILE="/nonexistent",
                      AWS_SHARED_CREDENTIALS_FILE="/nonexistent")


class S3Lake(Lake):
    """A lake directory on an S3 store with a daemon of its own; `clone`: of the lake that is there."""

    def __init__(self, url, clone=False, mount=True, **config):
        super().__init__()
        self.url, self.clone, self.mounts, self.config = url, clone, mount, config

    def __enter__(self):
        self.mountpoint.mkdir()
        try:
            if self.clone:
                self.ctl("clone", self.url, self.directory)
            else:
                self.ctl("init", "--store", self.url)
            if self.config:
                path = self.directory / "lake.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | self.config))
            if self.mounts:
                self.mount()
        except BaseException:
            self.__exit__()
            raise
        return self

    def log(self):
        path = self.directory / "laked.log"
        return path.read_text(errors="replace") if path.exists() else ""
