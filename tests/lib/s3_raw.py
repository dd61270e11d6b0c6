"""Signed S3 requests as they are: no path is tidied, nothing is repeated. Python's standard library alone.

    client = Client("http://127.0.0.1:7480", "testaccess", "testsecretkey")
    status, headers, body = client.request("PUT", "/bucket/key", body=b"...", query="acl")
"""
import base64
import collections
import datetime
import email.utils
import hashlib
import hmac
import http.client
import json
import urllib.parse

REGION = "us-east-1"
Answer = collections.namedtuple("Answer", "status headers body")


def quoted(text, safe=""):
    return urllib.parse.quote(text, safe=safe + "-_.~")


def parameters(query):
    """Sorted, each with its value, as they are signed."""
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    return "&".join(sorted(f"{quoted(urllib.parse.unquote(name))}={quoted(urllib.parse.unquote(value))}" for name, _, value in pairs))


class Client:
    def __init__(self, endpoint, access_key, secret_key):
        self.netloc = urllib.parse.urlsplit(endpoint).netloc
        self.access_key, self.secret_key = access_key, secret_key

    def send(self, method, target, headers, body):
        connection = http.client.HTTPConnection(self.netloc, timeout=30)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in (headers | {"content-length": str(len(body))}).items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def key(self, day):
        key = ("AWS4" + self.secret_key).encode()
        for part in day, REGION, "s3", "aws4_request":
            key = hmac.digest(key, part.encode(), "sha256")
        return key

    def signature(self, day, text):
        return hmac.new(self.key(day), text.encode(), "sha256").hexdigest()

    def canonical(self, method, path, query, headers, payload):
        signed = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
        path = quoted(urllib.parse.unquote(path), "/")
        return signed, f"{method}\n{path}\n{query}\n{lines}\n{signed}\n{payload}"

    def request(self, method, path, query="", headers=None, body=b"", host=None):
        """Version 4, in a header."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        payload = hashlib.sha256(body).hexdigest()
        headers = {name.lower(): value for name, value in (headers or {}).items()}
        headers |= {"host": host or self.netloc, "x-amz-date": now, "x-amz-content-sha256": payload}
        signed, canonical = self.canonical(method, path, parameters(query), headers, payload)
        scope = f"{now[:8]}/{REGION}/s3/aws4_request"
        signature = self.signature(now[:8], f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}")
        headers["authorization"] = (f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={signed}, "
                                    f"Signature={signature}")
        return self.send(method, path + ("?" + query if query else ""), headers, body)

    def presigned(self, method, path, body=b""):
        """Version 4, in the query: what is handed to others."""
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{now[:8]}/{REGION}/s3/aws4_request"
        query = parameters(f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={quoted(self.access_key + '/' + scope)}&X-Amz-Date={now}"
                           "&X-Amz-Expires=600&X-Amz-SignedHeaders=host")
        _, canonical = self.canonical(method, path, query, {"host": self.netloc}, "UNSIGNED-PAYLOAD")
        signature = self.signature(now[:8], f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}")
        return self.send(method, f"{path}?{query}&X-Amz-Signature={signature}", {"host": self.netloc}, body)

    def version_2(self, method, path, body=b""):
        date = email.utils.formatdate(usegmt=True)
        signature = base64.b64encode(hmac.digest(self.secret_key.encode(), f"{method}\n\n\n{date}\n{path}".encode(), "sha1")).decode()
        return self.send(method, path, {"host": self.netloc, "date": date, "authorization": f"AWS {self.access_key}:{signature}"}, body)

    def post_form(self, bucket, key, body, filename="file"):
        """As a browser uploads."""
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp = now.strftime("%Y%m%dT%H%M%SZ")
        credential = f"{self.access_key}/{stamp[:8]}/{REGION}/s3/aws4_request"
        policy = base64.b64encode(json.dumps({
            "expiration": (now + datetime.timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "conditions": [{"bucket": bucket}, ["starts-with", "$key", ""], {"x-amz-algorithm": "AWS4-HMAC-SHA256"},
                           {"x-amz-credential": credential}, {"x-amz-date": stamp}]}).encode()).decode()
        fields = {"key": key, "x-amz-algorithm": "AWS4-HMAC-SHA256", "x-amz-credential": credential, "x-amz-date": stamp,
                  "policy": policy, "x-amz-signature": self.signature(stamp[:8], policy)}
        form = "".join(f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
        form += f'--edge\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\nContent-Type: text/plain\r\n\r\n'
        return self.send("POST", f"/{bucket}", {"host": self.netloc, "content-type": "multipart/form-data; boundary=edge"},
                         form.encode() + body + b"\r\n--edge--\r\n")
