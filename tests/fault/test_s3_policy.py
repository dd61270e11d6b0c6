#!/usr/bin/env python3
"""packaging/policy on radosgw: what each of its keys can do, and that a writer's cannot move main by any means.

Each attack is first made by an administrator on another branch, to see that it works, and then by the writer on main.
"""
import base64
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
import lake  # noqa: E402
from lake import ROOT, refused  # noqa: E402
from s3_raw import Client, quoted  # noqa: E402

CEPH = ROOT / "tests" / "lib" / "ceph.sh"
POLICY = ROOT / "packaging" / "policy" / "bucket-policy.json"
BUCKET, PREFIX = "lake", "team/data"
ROLES = ("reader", "writer", "publisher", "administrator")
BRANCHES = f"/{BUCKET}/{PREFIX}/refs/branches"
tests = lake.Tests()


class Host(lake.Lake):
    """A clone that has the keys of one role."""

    def __init__(self, store, role, first=False):
        super().__init__()
        self.store, self.first = store, first
        self.inside = ("env", f"AWS_ACCESS_KEY_ID={role}access", f"AWS_SECRET_ACCESS_KEY={role}secretkey")

    def __enter__(self):
        self.mountpoint.mkdir()
        if self.first:
            self.ctl("init", "--store", self.store.url)
        else:
            self.ctl("clone", self.store.url, self.directory)
        self.mount()
        return self


class Store:
    """A Ceph whose bucket has the policy, and its owner's view of it."""

    def __init__(self, directory):
        given = dict(line.split("=", 1) for line in (directory / "env").read_text().split("\n") if "=" in line)
        self.endpoint = given["LAKE_TEST_ENDPOINT"]
        self.url = f"s3://{BUCKET}/{PREFIX}?endpoint={self.endpoint}"
        self.owner = Client(self.endpoint, "testaccess", "testsecretkey")
        self.administrator = self.client("administrator")
        self.policy = self.instance()

    def client(self, role):
        return Client(self.endpoint, role + "access", role + "secretkey")

    def instance(self):
        text = POLICY.read_text().replace("BUCKET", BUCKET).replace("PREFIX", PREFIX)
        for role in ROLES:
            text = text.replace(f'"{role.upper()}"', f'"arn:aws:iam:::user/{role}"')
        assert not re.search(r"\b(READER|WRITER|PUBLISHER|ADMINISTRATOR)\b", text)
        return text.encode()

    def apply(self):
        answer = self.owner.request("PUT", f"/{BUCKET}", "policy", body=self.policy)
        assert answer.status in (200, 204), answer

    def branch(self, name):
        """ETag and bytes."""
        answer = self.administrator.request("GET", f"{BRANCHES}/{name}")
        return answer.status, answer.headers.get("etag"), answer.body

    def seed(self, name):
        assert self.administrator.request("PUT", f"{BRANCHES}/{name}", body=b"as it was").status == 200
        return self.branch(name)

    def keys(self, prefix=""):
        answer = self.administrator.request("GET", f"/{BUCKET}", f"encoding-type=url&list-type=2&prefix={quoted(PREFIX + '/' + prefix)}")
        assert answer.status == 200, answer
        return [urllib.parse.unquote(key) for key in re.findall(r"<Key>([^<]+)</Key>", answer.body.decode())]

    def clean(self):
        """Without what lakectl would not have made."""
        for key in self.keys("refs/"):
            if not re.fullmatch(PREFIX + "/refs/(branches|tags)/[a-z0-9-]+", key) or key.endswith(("/victim", "/dev2")):
                assert self.administrator.request("DELETE", f"/{BUCKET}/{quoted(key, '/')}").status == 204

    def bucket(self):
        answers = [self.owner.request("GET", f"/{BUCKET}", what) for what in ("policy", "acl", "versioning", "lifecycle")]
        return [(answer.status, answer.body if answer.status == 200 else b"") for answer in answers]


# -- attacks: (client, name of the branch) -> statuses of what was asked --

def put(**headers):
    return lambda client, name: [client.request("PUT", f"{BRANCHES}/{name}", headers={k.replace("_", "-"): v for k, v in headers.items()},
                                                body=b"mine").status]


def put_if_match(client, name):
    etag = client.request("GET", f"{BRANCHES}/{name}").headers["etag"].strip('"')
    return [client.request("PUT", f"{BRANCHES}/{name}", headers={"if-match": etag}, body=b"mine").status]


def copy(**headers):
    def attack(client, name):
        return [client.request("PUT", f"{BRANCHES}/{name}", headers={"x-amz-copy-source": f"{BRANCHES}/dev"} | {
            k.replace("_", "-"): v for k, v in headers.items()}).status]
    return attack


def upload_id(answer):
    found = re.search(rb"<UploadId>([^<]+)</UploadId>", answer.body)
    return found[1].decode() if found else "none"


def complete(client, path, upload, part):
    document = f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{part.headers.get('etag', 'x')}</ETag></Part></CompleteMultipartUpload>"
    return client.request("POST", path, f"uploadId={upload}", body=document.encode())


def multipart(client, name):
    path = f"{BRANCHES}/{name}"
    begun = client.request("POST", path, "uploads")
    part = client.request("PUT", path, f"partNumber=1&uploadId={upload_id(begun)}", body=b"mine")
    return [begun.status, part.status, complete(client, path, upload_id(begun), part).status]


def multipart_begun_elsewhere(client, name):
    begun = client.request("POST", f"{BRANCHES}/dev2", "uploads")
    upload = upload_id(begun)
    part = client.request("PUT", f"{BRANCHES}/dev2", f"partNumber=1&uploadId={upload}", body=b"mine")
    astray = client.request("PUT", f"{BRANCHES}/{name}", f"partNumber=1&uploadId={upload}", body=b"mine")
    return [astray.status, complete(client, f"{BRANCHES}/{name}", upload, part).status]


def multipart_of_others(store):
    """One that somebody else who may has begun: nobody else completes it."""
    def attack(client, name):
        path = f"{BRANCHES}/{name}"
        upload = upload_id(store.administrator.request("POST", path, "uploads"))
        part = store.administrator.request("PUT", path, f"partNumber=1&uploadId={upload}", body=b"theirs")
        return [complete(client, path, upload, part).status]
    return attack


def delete(client, name):
    return [client.request("DELETE", f"{BRANCHES}/{name}").status]


def delete_many(client, *names):
    """Statuses; that of the request is 200 also where each object is refused."""
    keys = "".join(f"<Object><Key>{PREFIX}/{name}</Key></Object>" for name in names)
    body = f"<Delete>{keys}</Delete>".encode()
    answer = client.request("POST", f"/{BUCKET}", "delete", {"content-md5": base64.b64encode(hashlib.md5(body).digest()).decode()}, body)
    return [403 if b"AccessDenied" in answer.body else answer.status]


def form(key, filename="file"):
    return lambda client, name: [client.post_form(BUCKET, key.format(name), b"mine", filename.format(name)).status]


def attacks(store):
    """(what, attack): all of these work for who may."""
    return (("PUT", put()), ("PUT with If-Match", put_if_match), ("PUT with an ACL", put(x_amz_acl="public-read-write")),
            ("PUT with a grant", put(x_amz_grant_full_control="id=writer")),
            ("PUT with a tag", put(x_amz_tagging="a=b")), ("PUT with metadata", put(x_amz_meta_a="b")),
            ("PUT by a presigned URL", lambda client, name: [client.presigned("PUT", f"{BRANCHES}/{name}", b"mine").status]),
            ("PUT signed by version 2", lambda client, name: [client.version_2("PUT", f"{BRANCHES}/{name}", b"mine").status]),
            ("a copy onto it", copy()), ("a copy with other metadata", copy(x_amz_metadata_directive="REPLACE")),
            ("a multipart upload", multipart), ("completing somebody's multipart upload", multipart_of_others(store)),
            ("DELETE", delete), ("DELETE by a presigned URL", lambda client, name: [client.presigned("DELETE", f"{BRANCHES}/{name}").status]),
            ("deleting many", lambda client, name: delete_many(client, "refs/branches/nothing", f"refs/branches/{name}")),
            ("a form", form(PREFIX + "/refs/branches/{}")),
            ("a form that takes the file's name", form(PREFIX + "/refs/branches/${{filename}}", "{}")),
            ("PUT to an encoded path", lambda client, name: [client.request(
                "PUT", f"{BRANCHES}/" + "".join(f"%{ord(c):02x}" for c in name), body=b"mine").status]),
            ("PUT to encoded slashes", lambda client, name: [client.request(
                "PUT", f"/{BUCKET}/" + f"{PREFIX}/refs/branches/{name}".replace("/", "%2F"), body=b"mine").status]),
            ("PUT with the bucket in the host's name", lambda client, name: [client.request(
                "PUT", f"/{PREFIX}/refs/branches/{name}", body=b"mine", host=f"{BUCKET}.s3.test").status]),
            ("PUT to an encoded bucket", lambda client, name: [client.request(
                "PUT", f"/%6c%61ke/{PREFIX}/refs/branches/{name}", body=b"mine").status]))


def tricks(store):
    """(what, requests): these work for nobody, or not as meant; on a server where one does it has to be refused."""
    paths = (f"{BRANCHES}//main", f"{BRANCHES}/./main", f"{BRANCHES}/../branches/main", f"{BRANCHES}/x/../main", f"{BRANCHES}/%2e/main",
             f"{BRANCHES}/x/%2e%2e/main", f"{BRANCHES}/main/", f"{BRANCHES}/main%00", f"{BRANCHES}/main%20", f"{BRANCHES}/MAIN",
             f"{BRANCHES}/%256dain", f"/{BUCKET}//{PREFIX}/refs/branches/main", f"/{BUCKET}/./{PREFIX}/refs/branches/main",
             f"//{BUCKET}/{PREFIX}/refs/branches/main", f"/theirs/../{BUCKET}/{PREFIX}/refs/branches/main",
             f"/%3A{BUCKET}/{PREFIX}/refs/branches/main", f"/:{BUCKET}/{PREFIX}/refs/branches/main", f"{BRANCHES};/main",
             f"{BRANCHES}/main;x", f"{BRANCHES}%2f%2fmain", f"{BRANCHES}\\main", f"{BRANCHES}/ma%C3%AFn", f"{BRANCHES}/main#x")
    key = f"/{PREFIX}/refs/branches/main"
    for path in paths:
        yield f"PUT {path}", lambda client, path=path: client.request("PUT", path, body=b"mine")
    for host in (f"{BUCKET}.{store.owner.netloc}", f"{BUCKET.upper()}.s3.test", f"{BUCKET}..s3.test", f"{BUCKET}.s3.test.", f"x.{BUCKET}.s3.test", BUCKET):
        yield f"PUT with host {host}", lambda client, host=host: client.request("PUT", key, body=b"mine", host=host)
    yield "PUT by an absolute URI", lambda client: client.request("PUT", f"http://{client.netloc}{BRANCHES}/main", body=b"mine")
    yield "PUT without a signature", lambda client: client.send("PUT", f"{BRANCHES}/main", {"host": client.netloc}, b"mine")
    yield "Swift's PUT", lambda client: client.send("PUT", f"/swift/v1/{BUCKET}{key}", {"host": client.netloc, "x-auth-token": "x"}, b"mine")
    for what in ("acl", "tagging", "retention", "legal-hold", "restore", "torrent", "append&position=0", f"append&position={len(store.branch('main')[2])}", "versionId=null"):
        yield f"PUT ?{what}", lambda client, what=what: client.request("PUT", f"{BRANCHES}/main", what, {"x-amz-acl": "public-read-write"})
    yield "DELETE of a version", lambda client: client.request("DELETE", f"{BRANCHES}/main", "versionId=null")
    upload = upload_id(store.administrator.request("POST", f"{BRANCHES}/main", "uploads"))
    for method, query in (("PUT", "partNumber=1&"), ("DELETE", ""), ("GET", "")):
        yield f"{method} to somebody's multipart upload", lambda client, method=method, query=query: client.request(
            method, f"{BRANCHES}/main", f"{query}uploadId={upload}", body=b"mine" if method == "PUT" else b"")
    yield "POST ?restore", lambda client: client.request("POST", f"{BRANCHES}/main", "restore", body=b"<RestoreRequest/>")
    yield "a rename onto it", lambda client: client.request("PUT", f"{BRANCHES}/main", headers={"x-amz-rename-source": f"{BRANCHES}/dev"})
    yield "an upload begun on another branch", lambda client: multipart_begun_elsewhere(client, "main")


def bucket_changes():
    """Ways to have the bucket let him, or do it for him: (query, body, headers)."""
    everything = json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": [
        f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]}]})
    expire = ("<LifecycleConfiguration><Rule><ID>x</ID><Prefix></Prefix><Status>Enabled</Status><Expiration><Days>1</Days></Expiration>"
              "</Rule></LifecycleConfiguration>")
    versions = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    yield from (("PUT", "policy", everything, {}), ("DELETE", "policy", "", {}), ("PUT", "acl", "", {"x-amz-acl": "public-read-write"}),
                ("PUT", "lifecycle", expire, {"content-md5": base64.b64encode(hashlib.md5(expire.encode()).digest()).decode()}),
                ("DELETE", "lifecycle", "", {}), ("PUT", "versioning", versions, {}), ("PUT", "cors", "<CORSConfiguration/>", {}),
                ("PUT", "website", "<WebsiteConfiguration/>", {}), ("PUT", "replication", "<ReplicationConfiguration/>", {}),
                ("PUT", "object-lock", "<ObjectLockConfiguration/>", {}), ("PUT", "tagging", "<Tagging/>", {}),
                ("PUT", "publicAccessBlock", "<PublicAccessBlockConfiguration/>", {}), ("PUT", "", "", {"x-amz-acl": "public-read-write"}),
                ("DELETE", "", "", {}))


# -- the parts --

def as_rules_say(store, administrator):
    main = administrator / "main"
    (main / "flights").mkdir()
    for number in range(3):
        (main / f"flights/{number}").write_bytes(os.urandom(70000))
    administrator.ctl("commit", "main", "-m", "flights")
    with tests.case("a reader clones, mounts and reads, and writes nothing"), Host(store, "reader") as reader:
        for number in range(3):
            assert (reader / f"main/flights/{number}").read_bytes() == (main / f"flights/{number}").read_bytes()
        assert refused(reader, "branch", "create", "mine", "main").code == 4
        (reader / "main/new").write_text("new")
        with contextlib.suppress(lake.Refused):
            reader.ctl("commit", "main", "-m", "mine")
            raise AssertionError("a reader committed")
        assert (reader / "main/new").read_text() == "new"


def work_on_branches(writer):
    with tests.case("a writer makes branches, commits to them, merges into them, goes back, renames and deletes them, tags"):
        writer.ctl("branch", "create", "dev", "main")
        (writer / "dev/new").write_bytes(os.urandom(5 << 20))
        writer.ctl("commit", "dev", "-m", "new")
        writer.ctl("branch", "create", "feature", "main")
        (writer / "feature/other").write_text("other")
        writer.ctl("commit", "feature", "-m", "other")
        assert writer.ctl("merge", "feature", "dev")["commit"]
        assert (writer / "dev/other").read_text() == "other"
        (writer / "feature/wrong").write_text("wrong")
        writer.ctl("commit", "feature", "-m", "wrong")
        writer.ctl("undo", "feature")
        writer.ctl("revert", "feature", "feature")
        writer.ctl("branch", "rename", "feature", "renamed")
        writer.ctl("branch", "delete", "renamed", "--force")
        writer.ctl("tag", "create", "v1", "dev")


def keep_main(store, writer):
    """Every command that would move it."""
    writer.ctl("branch", "create", "spare", "main")
    first = writer.ctl("log", "main", "-n", "100")["commits"][-1]["id"]
    for what, arguments in (("merging into", ("merge", "dev", "main")), ("publishing to", ("publish", "dev")),
                            ("taking back what was published on", ("publish", "--revert", "main")),
                            ("protecting", ("protect", "main")), ("changing the audits of", ("audit", "add", "main", "mine", "--", "/bin/true")),
                            ("resetting", ("reset", "main", first, "--hard")),
                            ("reverting on", ("revert", "main", "main")), ("cherry-picking to", ("cherry-pick", "dev", "main")),
                            ("undoing", ("undo", "main")), ("deleting", ("branch", "delete", "main", "--force")),
                            ("renaming", ("branch", "rename", "main", "was-main")), ("renaming over", ("branch", "rename", "spare", "main"))):
        with tests.case(f"a writer is refused by the store: {what} main"):
            before = store.branch("main")
            arguments = tuple(a for a in arguments if a != "--hard" or "hard" in options(writer, arguments[0]))
            if "--force" in arguments and "force" not in options(writer, *arguments[:2]):
                arguments = tuple(a for a in arguments if a != "--force")
            refusal = refused(writer, *arguments)
            assert store.branch("main") == before
            if what == "renaming over":
                assert "there is a branch 'main' already" in str(refusal), refusal
            else:
                assert refusal.code == 4 and "access denied by the store's policy" in str(refusal), refusal
                assert ("rules/" if arguments[0] == "audit" else "main") in str(refusal), refusal
            names = {branch["name"] for branch in writer.ctl("branch", "list")["branches"]}
            assert {"dev", "spare", "main"} <= names and "was-main" not in names, names
    with tests.case("a writer is refused by the store: committing to main; his work stays, and goes to a branch"):
        before = store.branch("main")
        (writer / "main/mine").write_text("mine")
        refusal = refused(writer, "commit", "main", "-m", "mine")
        assert store.branch("main") == before
        assert refusal.code == 4 and "access denied by the store's policy" in str(refusal), refusal
        assert "changes are kept" in str(refusal), refusal
        assert (writer / "main/mine").read_text() == "mine"
        assert [change["path"] for change in writer.ctl("status", "main")["changes"]] == ["mine"]
        writer.umount()
        writer.mount()
        assert (writer / "main/mine").read_text() == "mine"
        shutil.copy(writer / "main/mine", writer / "dev/mine")
        writer.ctl("commit", "dev", "-m", "mine")
        assert (writer / "dev/mine").read_text() == "mine"


def options(host, *words):
    """The long options of a command."""
    text = subprocess.run([lake.BIN / "lakectl", *words, "--help"], capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"--([a-z-]+)", text))


def attack_raw(store, writer, *hosts):
    store.seed("dev2")
    for what, attack in attacks(store):
        with tests.case(f"a writer's key cannot move main: {what}"):
            old = store.seed("victim")
            statuses = attack(store.administrator, "victim")
            assert store.branch("victim") != old, f"the attack does not work for an administrator either: {statuses}"
            before = store.branch("main")
            statuses = attack(writer, "main")
            assert store.branch("main") == before and before[0] == 200
            assert 403 in statuses and not any(status < 300 for status in statuses), statuses
    with tests.case("a writer's key cannot move main: creating it when it is not there"):
        before = store.branch("main")
        try:
            store.administrator.request("DELETE", f"{BRANCHES}/main")
            assert put(if_none_match="*")(writer, "main") == [403] and copy()(writer, "main") == [403]
            assert store.branch("main")[0] == 404
        finally:
            store.administrator.request("PUT", f"{BRANCHES}/main", body=before[2])
        assert store.branch("main") == before
    with tests.case("a writer's key cannot move main: paths, hosts and requests that might be another's name for it"):
        before, told = store.branch("main"), []
        for what, attack in tricks(store):
            try:
                answer = attack(writer)
                code = re.search(rb"<Code>(\w+)</Code>", getattr(answer, "body", b""))
                told.append(f"# {what}: {getattr(answer, 'status', answer)} {code[1].decode() if code else ''}")
            except OSError as error:
                told.append(f"# {what}: {error}")
            assert store.branch("main") == before, what
        print("\n".join(told))
    with tests.case("what he writes beside it does not hide it"):
        head = hosts[0].ctl("log", "main", "-n", "1")["commits"][0]["id"]
        for host in hosts:
            assert host.ctl("refresh", "main")["commit"] == head
            assert (host / "main/flights/1").stat().st_size == 70000 and "main" in os.listdir(host.mountpoint)
        (hosts[0] / "main/moved").write_text("moved")
        hosts[0].ctl("commit", "main", "-m", "moved")
        assert hosts[1].ctl("refresh", "main")["commit"] != head
        store.clean()
    with tests.case("a writer's key cannot change the bucket's rules"):
        before, rules = store.branch("main"), store.bucket()
        for method, query, body, headers in bucket_changes():
            status = writer.request(method, f"/{BUCKET}", query, headers, body.encode()).status
            assert status >= 400, (method, query, status)
            assert store.branch("main") == before and store.bucket() == rules, (method, query, rules, store.bucket())
            assert put()(writer, "main") == [403]
        for action in ("AssumeRole&RoleArn=arn:aws:iam:::role/x&RoleSessionName=x", "PutUserPolicy&UserName=writer&PolicyName=x&PolicyDocument={}",
                       "CreateRole&RoleName=x&AssumeRolePolicyDocument={}", "CreateAccessKey&UserName=test"):
            assert writer.request("POST", "/", headers={"content-type": "application/x-www-form-urlencoded"}, body=f"Action={action}".encode()).status >= 400
        assert writer.request("PUT", "/admin/user", "key&uid=test").status >= 400
        assert writer.request("PUT", "/admin/bucket", f"bucket={BUCKET}&uid=writer").status >= 400


def keep_the_rest(store, writer):
    with tests.case("a writer's key removes nothing, and writes neither rules nor what gc keeps"):
        keys = store.keys()
        scraps = [f"{PREFIX}/{name}" for name in ("audits/x/1-a", "log/2026-01-01/1-a", "rules/00", "gc/scrap")]
        for key in scraps:
            assert store.administrator.request("PUT", f"/{BUCKET}/{key}", body=b"x").status == 200
        keys += scraps
        assert any("/packs/" in key for key in keys) and f"{PREFIX}/lake" in keys, keys
        for key in keys:
            assert writer.request("DELETE", f"/{BUCKET}/{key}").status == 403, key
            assert delete_many(writer, key.removeprefix(PREFIX + "/")) == [403], key
            assert store.administrator.request("HEAD", f"/{BUCKET}/{key}").status == 200, key
        for key in ("lake", "rules/00", "rules/new", "gc/condemned", "other", "refs/x", "probe", "../outside"):
            assert writer.request("PUT", f"/{BUCKET}/{PREFIX}/{key}", body=b"mine").status == 403, key
        for key in ("packs/new", "audits/x/2-b", "log/2026-01-01/2-b", "refs/tags/new"):
            assert writer.request("PUT", f"/{BUCKET}/{PREFIX}/{key}", body=b"mine").status == 200, key
    with tests.case("nor does an administrator's remove what tells of the past"):
        for key in scraps:
            assert store.administrator.request("DELETE", f"/{BUCKET}/{key}").status == 403, key
        for key in "packs/new", "refs/tags/new":
            assert store.administrator.request("DELETE", f"/{BUCKET}/{PREFIX}/{key}").status == 204
    with tests.case("a reader's key writes nothing but its probe"):
        reader = store.client("reader")
        for key in ("packs/x", "audits/x", "log/x", "refs/branches/x", "refs/branches/main", "refs/tags/x", "rules/x", "lake"):
            assert reader.request("PUT", f"/{BUCKET}/{PREFIX}/{key}", body=b"mine").status == 403, key
        assert reader.request("PUT", f"/{BUCKET}/{PREFIX}/probe-1", body=b"").status == 200
        assert reader.request("DELETE", f"/{BUCKET}/{PREFIX}/probe-1").status == 204


def versions(store):
    with tests.case("a bucket with versioning, where a condition does not hold, is refused"):
        subprocess.run([CEPH, "bucket", scratch, "versions"], check=True)
        versioning = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        assert store.owner.request("PUT", "/versions", "versioning", body=versioning).status == 200
        done = subprocess.run([lake.BIN / "lakectl", "init", "--store", f"s3://versions/x?endpoint={store.endpoint}", scratch / "versions"],
                              capture_output=True, text=True, check=False,
                              env=os.environ | {"AWS_ACCESS_KEY_ID": "testaccess", "AWS_SECRET_ACCESS_KEY": "testsecretkey"})
        assert done.returncode == 1 and "replaced an existing object" in done.stderr, done


def those_who_may(store, administrator, writer):
    with tests.case("a publisher moves main, as he always could"), Host(store, "publisher") as publisher:
        before = store.branch("main")
        publisher.ctl("merge", "dev", "main")
        assert store.branch("main") != before
        assert (publisher / "main/mine").read_text() == "mine"
        publisher.ctl("undo", "main")
        publisher.ctl("merge", "dev", "main")
    with tests.case("audits and protection over S3: rules bind every host, verdicts are read by all"):
        administrator.ctl("audit", "add", "main", "small", "--", "/bin/sh", "-c", "! test -e mine-too")
        administrator.ctl("protect", "main", "--no-direct-writes", "--require-audits")
        with Host(store, "publisher") as publisher:
            writer.ctl("refresh", "dev")
            (writer / "dev/mine-too").write_text("not wanted")
            writer.ctl("commit", "dev", "-m", "with a fault")
            before = store.branch("main")
            refusal = refused(publisher, "publish", "dev")
            assert refusal.code == 4 and refusal.reply["checks"][0]["verdict"] == "failed", refusal
            assert refused(publisher, "undo", "main").code == 4 and store.branch("main") == before
            (writer / "dev/mine-too").unlink()
            (writer / "dev/better").write_text("good")
            writer.ctl("commit", "dev", "-m", "mended")
            commit = publisher.ctl("publish", "dev")["commit"]
        writer.ctl("refresh", "main")
        shown = writer.ctl("show", "main")
        assert shown["id"] == commit and [one["verdict"] for one in shown["audits"]] == ["passed"], shown
        assert [entry["what"] for entry in writer.ctl("audit", "log", "main", "-n", "2")["entries"]] == ["audit", "published"]
        administrator.ctl("unprotect", "main")
    with tests.case("the writer sees it; an administrator collects garbage and finds every byte good"):
        head = writer.ctl("refresh", "main")["commit"]
        administrator.ctl("refresh", "main")
        assert administrator.ctl("log", "main", "-n", "1")["commits"][0]["id"] == head
        administrator.ctl("gc", "--grace", "0", "--alone")
        administrator.ctl("gc", "--grace", "0", "--alone")
        administrator.ctl("fsck")
        assert "access denied by the store's policy" in str(refused(writer, "gc", "--grace", "0", "--alone"))


scratch = pathlib.Path(tempfile.mkdtemp(prefix="lake-ceph.", dir="/var/tmp"))
for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
    del os.environ[variable]
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "no_proxy": "*"}
try:
    subprocess.run([ROOT / "tests/lib/install.sh", "ceph"], capture_output=True, check=False)
    if subprocess.run([CEPH, "start", scratch], capture_output=True, check=False).returncode:
        tests.skip("the bucket policy", "Ceph does not start here")
        tests.done()
    subprocess.run([CEPH, "bucket", scratch, BUCKET], check=True)
    for role in ROLES:
        subprocess.run([CEPH, "user", scratch, role], check=True)
    store = Store(scratch)
    store.apply()
    with Host(store, "administrator", first=True) as administrator:
        as_rules_say(store, administrator)
        with Host(store, "writer") as writer:
            work_on_branches(writer)
            keep_main(store, writer)
            attack_raw(store, store.client("writer"), administrator, writer)
            keep_the_rest(store, store.client("writer"))
            those_who_may(store, administrator, writer)
    versions(store)
finally:
    subprocess.run([CEPH, "stop", scratch], capture_output=True, check=False)
    shutil.rmtree(scratch, ignore_errors=True)
tests.done()
