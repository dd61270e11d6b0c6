"""s3fs, rclone and curl as well as they can be set up for this work; the command lines are in README.md."""
import os
import shutil
import subprocess
import time

from lake import Failed
from processes import end, spawn
from s3_world import KEY, SECRET, presigned
from table import DISK, MIB, ROOT


class Mounted:
    """A bucket as a file system, with a new and empty cache on the measured disk each time."""

    name = ""

    def __init__(self, bucket, endpoint):
        self.bucket, self.endpoint = bucket, endpoint
        self.mountpoint = os.path.join(ROOT, "mount-peer")
        self.cache = os.path.join(DISK, "cache-peer")
        self.child = None

    def path(self, *parts):
        return os.path.join(self.mountpoint, *parts)

    def __enter__(self):
        shutil.rmtree(self.cache, ignore_errors=True)
        os.makedirs(self.cache)
        os.makedirs(self.mountpoint, exist_ok=True)
        self.child = spawn(self.command(), os.path.join(ROOT, f"{self.name}.log"), env=self.environment())
        for _ in range(600):
            if os.path.ismount(self.mountpoint):
                return self
            if self.child.poll() is not None:
                break
            time.sleep(0.05)
        self.__exit__()
        raise Failed(f"{self.name} did not mount; see {ROOT}/{self.name}.log")

    def __exit__(self, *_):
        if os.path.ismount(self.mountpoint):
            subprocess.run(["umount", self.mountpoint], check=False, stderr=subprocess.DEVNULL)
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                subprocess.run(["umount", "--lazy", self.mountpoint], check=False)
        end(self.child)
        shutil.rmtree(self.cache, ignore_errors=True)

    def command(self):
        raise NotImplementedError

    def environment(self):
        return None


class S3fs(Mounted):
    """A file is in the store when close has returned."""

    name = "s3fs"

    def command(self):
        passwords = os.path.join(ROOT, "s3fs.passwd")
        with open(os.open(passwords, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(f"{KEY}:{SECRET}\n")
        options = [f"passwd_file={passwords}", f"url={self.endpoint}", "use_path_request_style", "sigv4",
                   f"use_cache={self.cache}", "multireq_max=50", "notsup_compat_dir", "enable_noobj_cache",
                   "complement_stat"]
        return ["s3fs", self.bucket, self.mountpoint, "-f"] + [f"-o{option}" for option in options]


class Rclone(Mounted):
    """Files go to the store after close, several at a time."""

    name = "rclone"
    reading = ["--buffer-size", "16M", "--vfs-read-chunk-size", "128M"]

    def command(self):
        return ["rclone", "mount", f"bench:{self.bucket}", self.mountpoint, "--config", "/dev/null",
                "--cache-dir", self.cache, "--vfs-cache-mode", "full", "--vfs-write-back", "0s",
                "--transfers", "16", "--no-modtime", "--no-checksum", "--vfs-fast-fingerprint",
                "--dir-cache-time", "1h", "--attr-timeout", "1m", "--s3-no-head", "--s3-no-check-bucket",
                "--s3-disable-checksum", "--s3-chunk-size", "16M", "--s3-upload-concurrency", "8", *self.reading]

    def environment(self):
        return {**os.environ, "RCLONE_CONFIG_BENCH_TYPE": "s3", "RCLONE_CONFIG_BENCH_PROVIDER": "Ceph",
                "RCLONE_CONFIG_BENCH_ENDPOINT": self.endpoint, "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": KEY,
                "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": SECRET}


class RcloneSmall(Rclone):
    """For random reads alone; files read from start to end take it up to twice as long."""

    name = "rclone with small buffers"
    reading = ["--buffer-size", "1M", "--vfs-read-chunk-size", "1M"]


PEERS = (S3fs, Rclone)


def even_ranges(size, range_bytes):
    """All of an object, as (offset, length)."""
    return [(at, min(range_bytes, size - at)) for at in range(0, size, range_bytes)]


def curl_ranges(endpoint, bucket, key, ranges, width, keep):
    """Seconds that one curl takes for these ranges of an object; into a file each, or /dev/null."""
    url = presigned(endpoint, "GET", f"/{bucket}/{key}")
    parts = os.path.join(DISK, "curl-parts")
    shutil.rmtree(parts, ignore_errors=True)
    os.makedirs(parts)
    config = os.path.join(ROOT, "curl.config")
    with open(config, "w") as file:
        for number, (at, length) in enumerate(ranges):
            out = os.path.join(parts, str(number)) if keep else "/dev/null"
            file.write(f'{"next" if number else ""}\nurl = "{url}"\nrange = {at}-{at + length - 1}\n'
                       f'output = "{out}"\nfail\nnoproxy = "*"\nsilent\n')
    start = time.perf_counter()
    subprocess.run(["curl", "--parallel", "--parallel-immediate", "--parallel-max", str(width), "--config", config],
                   check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    size = sum(length for _, length in ranges)
    if keep and sum(os.stat(os.path.join(parts, name)).st_size for name in os.listdir(parts)) != size:
        raise Failed("curl did not fetch everything")
    shutil.rmtree(parts)
    return seconds


def curl_best(endpoint, bucket, key, size, keep, drop, widths=(2, 4, 8, 16), ranges=(8, 16, 64)):
    """The least time, and which range and width it took."""
    found = []
    for mib in ranges:
        for width in widths:
            drop()
            found.append((curl_ranges(endpoint, bucket, key, even_ranges(size, mib * MIB), width, keep), mib, width))
    return min(found)
