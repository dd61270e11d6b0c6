"""What the S3 part measures against: a radosgw of its own, latency and counts from a proxy, raw requests."""
import datetime
import hashlib
import hmac
import http.client
import os
import subprocess
import sys
import threading
import urllib.parse
import xml.etree.ElementTree

from processes import gone, note
from table import DISK, ROOT

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.path.join(REPOSITORY, "tests", "lib"))
import proxy  # noqa: E402

CEPH = os.path.join(REPOSITORY, "tests", "lib", "ceph.sh")
KEY, SECRET, REGION = "testaccess", "testsecretkey", "us-east-1"
# Everybody talks to this gateway and no other, whatever this host is set up for.
for name in list(os.environ):
    if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
        del os.environ[name]
os.environ.update(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_EC2_METADATA_DISABLED="true",
                  AWS_CONFIG_FILE="/nonexistent", AWS_SHARED_CREDENTIALS_FILE="/nonexistent", no_proxy="*")


def drop_page_cache():
    subprocess.run(["sync", "-f", DISK], check=True)
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3")


# -- Signature Version 4 --

def signing_key(date):
    key = ("AWS4" + SECRET).encode()
    for part in (date, REGION, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


def presigned(endpoint, method, path, query=None):
    """A URL that needs no further signature for six hours; headers like Range may be added."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    host = urllib.parse.urlsplit(endpoint).netloc
    query = {**(query or {}), "X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Credential": f"{KEY}/{scope}",
             "X-Amz-Date": now, "X-Amz-Expires": "21600", "X-Amz-SignedHeaders": "host"}
    arguments = "&".join(f"{urllib.parse.quote(k, safe='')}={urllib.parse.quote(v, safe='')}"
                         for k, v in sorted(query.items()))
    path = urllib.parse.quote(path)
    canonical = f"{method}\n{path}\n{arguments}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(signing_key(now[:8]), to_sign.encode(), hashlib.sha256).hexdigest()
    return f"{endpoint}{path}?{arguments}&X-Amz-Signature={signature}"


class Gateway:
    """radosgw with one OSD in memory."""

    def __init__(self):
        self.directory = os.path.join(ROOT, "ceph")
        self.endpoint = None
        self.local = threading.local()

    def __enter__(self):
        subprocess.run([CEPH, "start", self.directory, "1", "1"], check=True)
        with open(os.path.join(self.directory, "env")) as env:
            self.endpoint = next(line.split("=", 1)[1].strip() for line in env
                                 if line.startswith("LAKE_TEST_ENDPOINT="))
        return self

    def __exit__(self, *_):
        subprocess.run([CEPH, "stop", self.directory], check=False)

    def request(self, method, path, query=None, body=None):
        """The answer's body; anything but 2xx raises."""
        url = presigned(self.endpoint, method, path, query)
        for attempt in (0, 1):
            connection = getattr(self.local, "connection", None)
            if not connection:
                connection = self.local.connection = http.client.HTTPConnection(
                    urllib.parse.urlsplit(self.endpoint).netloc)
            try:
                connection.request(method, url[len(self.endpoint):], body)
                answer = connection.getresponse()
                data = answer.read()
                break
            except (http.client.HTTPException, ConnectionError):
                connection.close()
                self.local.connection = None
                if attempt:
                    raise
        if answer.status // 100 != 2:
            raise OSError(f"{method} {path}: {answer.status} {data[:300]!r}")
        return data

    def bucket(self, name):
        self.request("PUT", f"/{name}")
        return name

    def upload(self, bucket, key, path):
        subprocess.run(["curl", "-sf", "--noproxy", "*", "-o", "/dev/null", "-T", path,
                        presigned(self.endpoint, "PUT", f"/{bucket}/{key}")], check=True)

    def sizes(self, bucket, prefix=""):
        """Every key below `prefix` and its size."""
        found, after = {}, {}
        while True:
            answer = self.request("GET", f"/{bucket}", {"list-type": "2", "prefix": prefix, **after})
            tree = xml.etree.ElementTree.fromstring(answer)
            space = tree.tag[:tree.tag.index("}") + 1] if tree.tag.startswith("{") else ""
            for item in tree.iter(f"{space}Contents"):
                found[item.find(f"{space}Key").text] = int(item.find(f"{space}Size").text)
            token = tree.find(f"{space}NextContinuationToken")
            if token is None:
                return found
            after = {"continuation-token": token.text}

    def clear(self, bucket):
        for key in self.sizes(bucket):
            self.request("DELETE", f"/{bucket}/{key}")


class Link(proxy.Proxy):
    """A way to the gateway that counts, and may take its time."""

    def __init__(self, gateway, latency_ms=0):
        super().__init__(urllib.parse.urlsplit(gateway.endpoint).netloc, latency_ms=latency_ms)
        note(self.process)
        self.endpoint = self.url

    def stop(self):
        super().stop()
        gone(self.process)

    def counted(self):
        """Requests by kind since the last reset, and how many bytes of objects came back."""
        kinds = self.stats()["kinds"]
        return ({kind: figures["requests"] for kind, figures in kinds.items() if figures["requests"]},
                sum(figures["down_bytes"] for kind, figures in kinds.items() if kind.startswith("GET")))
