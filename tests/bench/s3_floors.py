"""What nobody could beat on this machine, beside the targets: the same work with everything known in advance."""
import http.client
import os
import time
import urllib.parse

from s3_peers import curl_ranges
from s3_world import drop_page_cache, presigned
from table import DISK, KIB, MIB, figures


def joined(ranges, gap):
    """One range for those that lie at most `gap` bytes apart."""
    result = []
    for at, length in sorted(ranges):
        if result and at - sum(result[-1]) <= gap:
            result[-1] = (result[-1][0], max(at + length - result[-1][0], result[-1][1]))
        else:
            result.append((at, length))
    return result


def known_ranges(endpoint, bucket, key, size, reads, seed, widths=(8, 16, 32, 64)):
    """The trace's ranges by a curl that knows all of them when it starts: least seconds, how many requests, width."""
    trace = os.path.join(DISK, "trace")  # only its size counts
    with open(trace, "w") as file:
        file.truncate(size)
    numbers = [int(number) for number in figures("ranges", trace, reads, seed)]
    os.unlink(trace)
    ranges = list(zip(numbers[0::2], numbers[1::2]))
    found = []
    for some in {len(some): some for some in (ranges, joined(ranges, 512 * KIB))}.values():
        for width in widths:
            drop_page_cache()
            found.append((curl_ranges(endpoint, bucket, key, some, width, True), len(some), width))
    return min(found)


def puts(endpoint, bucket, sizes, count=5):
    """Median seconds of requests that put objects of these sizes one after the other, on a kept connection."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(endpoint).netloc)
    def put(size):
        url = presigned(endpoint, "PUT", f"/{bucket}/floor")
        body = os.urandom(size)
        def send():
            connection.request("PUT", url[len(endpoint):], body)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise OSError(f"PUT: {answer.status}")
        return send
    put(KIB)()
    found = []
    for _ in range(count):
        requests = [put(size) for size in sizes]
        start = time.perf_counter()
        for send in requests:
            send()
        found.append(time.perf_counter() - start)
    connection.close()
    return sorted(found)[count // 2]


APPENDED = (MIB, KIB)  # what an append stores: the pack, then the branch that names it
