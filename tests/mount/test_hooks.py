#!/usr/bin/env python3
"""Hooks and webhooks on a real mount: as whom hooks run, what they may do, what their answers mean;
what receivers hear, also after kill -9 and without a daemon."""
import http.server
import json
import os
import pathlib
import ssl
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Lake, Tests, refused, until

NOBODY = 65534
tests = Tests()


class Receiver:
    """A web server that keeps what it is told; answers with the statuses given, then with 200."""

    def __init__(self, *statuses, port=0, certificate=None):
        self.heard, self.statuses = [], list(statuses)
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                if status == 200:
                    receiver.heard.append((dict(self.headers), body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}/services/token"

    def events(self):
        return [json.loads(body)["event"] for _, body in self.heard]

    def stop(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def hook(lake, name, script, mode=0o755):
    path = lake.directory / "hooks" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(mode)
    return path


def change(lake, text, branch="main"):
    (lake / branch / "t").mkdir(exist_ok=True)
    (lake / branch / "t" / "data").write_text(text)


def said(reply, name):
    return "".join(item["output"] for item in reply.get("hooks", []) if item["hook"] == name)


def head(lake, branch="main"):
    return next(item["commit"] for item in lake.ctl("branch")["branches"] if item["name"] == branch)


def commits(lake):
    with tests.case("a commit runs its hooks in the candidate, with what changes"):
        show = 'echo "$LAKE_HOOK|$LAKE_BRANCH|$LAKE_CANDIDATE|$LAKE_COMMIT|$LAKE_MESSAGE|$PWD"; tr "\\0" , <$LAKE_CHANGED'
        hook(lake, "pre-commit", show)
        hook(lake, "post-commit", show + "; cat t/data")
        change(lake, "one")
        reply = lake.ctl("commit", "main", "-m", "a message")
        tree = lake.mountpoint / "main"
        assert said(reply, "pre-commit") == f"pre-commit|main|{tree}||a message|{tree}\nt/data,", reply
        tree = lake.mountpoint / ("@" + reply["commit"])
        assert said(reply, "post-commit") == \
            f"post-commit|main|{tree}|{reply['commit']}|a message|{tree}\nt/data,one", reply

    with tests.case("a hook that says no changes nothing, and is quoted"):
        hook(lake, "pre-commit", "echo column delay: 12 of 500 rows are NULL; exit 1")
        change(lake, "two")
        before = head(lake)
        refusal = refused(lake, "commit", "main", "-m", "no")
        assert refusal.code == 4 and "column delay: 12 of 500 rows are NULL" in str(refusal), refusal
        assert head(lake) == before
        assert [item["path"] for item in lake.ctl("status", "main")["changes"]] == ["t/data"]

    with tests.case("a hook may mend the working tree before it is committed"):
        hook(lake, "pre-commit", "tr a-z A-Z <t/data >t/.new && mv t/.new t/data")
        change(lake, "three")
        commit = lake.ctl("commit", "main", "-m", "mended")["commit"]
        assert (lake / f"@{commit}" / "t" / "data").read_text() == "THREE"

    with tests.case("a hook may call lakectl on the same branch"):
        lakectl = f"timeout 20 {BIN}/lakectl --lake {lake.directory}"
        hook(lake, "pre-commit", f"set -e; {lakectl} status main; {lakectl} diff main; echo done")
        hook(lake, "post-commit", f"set -e; {lakectl} log -n 1 main; {lakectl} branch create after; echo done")
        change(lake, "four")
        reply = lake.ctl("commit", "main", "-m", "fourth message")
        assert "t/data" in said(reply, "pre-commit") and said(reply, "pre-commit").endswith("done\n"), reply
        assert "fourth message" in said(reply, "post-commit") and "warnings" not in reply, reply
        assert head(lake, "after") == reply["commit"]

    with tests.case("what goes wrong afterwards is a warning"):
        hook(lake, "pre-commit", "exit 1", 0o644)
        hook(lake, "post-commit", "echo too late; exit 1")
        change(lake, "five")
        reply = lake.ctl("commit", "main", "-m", "fifth")
        assert head(lake) == reply["commit"]
        assert any("not executable" in text for text in reply["warnings"]), reply
        assert any("post-commit said no (exit 1): too late" in text for text in reply["warnings"]), reply

    with tests.case("a hook that anybody could have written does not run"):
        hook(lake, "post-commit", "exit 0")
        hook(lake, "pre-commit", f"touch {lake.scratch}/ran", 0o777)
        change(lake, "six")
        refusal = refused(lake, "commit", "main", "-m", "sixth")
        assert refusal.code == 4 and "chmod go-w" in str(refusal), refusal
        assert not (lake.scratch / "ran").exists()
        (lake.directory / "hooks" / "pre-commit").unlink()
        lake.ctl("commit", "main", "-m", "sixth")


def merges(lake):
    with tests.case("a merge runs its hooks on the merged tree"):
        lake.ctl("branch", "create", "dev", "main")
        change(lake, "seven", "dev")
        lake.ctl("commit", "dev", "-m", "seventh")
        hook(lake, "pre-merge", 'echo "$LAKE_SOURCE|$LAKE_TARGET"; cat t/data; tr "\\0" , <$LAKE_CHANGED; exit 1')
        before = head(lake)
        refusal = refused(lake, "merge", "dev", "main", "-m", "m")
        assert refusal.code == 4 and "dev|main\nsevent/data," in str(refusal), refusal
        assert head(lake) == before
        hook(lake, "pre-merge", "exit 0")
        hook(lake, "post-merge", "echo $LAKE_COMMIT; cat t/data")
        reply = lake.ctl("merge", "dev", "main", "-m", "m")
        assert said(reply, "post-merge") == f"{reply['commit']}\nseven", reply
        for name in ("pre-merge", "post-merge"):
            (lake.directory / "hooks" / name).unlink()


def other_users(lake):
    name = "a hook runs as who called"
    if os.geteuid() != 0:
        tests.skip(name, "needs root")
        return
    with tests.case(name):
        lake.umount()
        config = json.loads((lake.directory / "lake.json").read_text())
        config["control_group"] = "nogroup"
        (lake.directory / "lake.json").write_text(json.dumps(config))
        lake.scratch.chmod(0o755)
        lake.mount()
        hook(lake, "pre-commit", "id -u; id -g; test -r $LAKE_CHANGED && cat /etc/shadow")
        change(lake, "eight")
        (lake / "main" / "t").chmod(0o755)
        done = subprocess.run(["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
                               BIN / "lakectl", "--lake", lake.directory, "commit", "main", "-m", "eighth"],
                              capture_output=True, text=True, check=False)
        assert done.returncode == 4, done
        assert f"{NOBODY}\n{NOBODY}\n" in done.stderr and "Permission denied" in done.stderr, done
        (lake.directory / "hooks" / "pre-commit").unlink()
        lake.ctl("commit", "main", "-m", "eighth")


def check_of_the_manual():
    """The function that the manual gives to receivers."""
    text = (pathlib.Path(__file__).resolve().parents[2] / "packaging" / "man" / "lakectl.1").read_text()
    code = text[text.index("import hashlib, hmac"):]
    names = {}
    exec(code[:code.index(".Ed")], names)  # pylint: disable=exec-used
    return names["genuine"]


def told(lake, receiver):
    secret = lake.directory / "secret"
    secret.write_text("s3cr3t\n")
    secret.chmod(0o600)
    with tests.case("a receiver hears of commits, signed as the manual says"):
        lake.ctl("webhook", "add", "main", "chat", receiver.url, "--event", "committed", "--event", "published",
                 "--secret-file", secret)
        change(lake, "nine")
        commit = lake.ctl("commit", "main", "-m", "ninth")["commit"]
        until(lambda: "committed" in receiver.events())
        headers, body = receiver.heard[-1]
        event = json.loads(body)
        assert event["commit"] == commit and event["branch"] == "main" and event["changed"] == 1, event
        assert event["message"] == "ninth" and event["text"].endswith(": ninth"), event
        assert headers["X-Lake-Event"] == "committed" and headers["X-Lake-Delivery"] == event["delivery"]
        genuine = check_of_the_manual()
        assert genuine(headers, body, b"s3cr3t")
        assert not genuine(headers, body + b" ", b"s3cr3t")
        assert not genuine({**headers, "X-Lake-Timestamp": "1700000000"}, body, b"s3cr3t")

    with tests.case("other branches' commits are not told"):
        before = len(receiver.heard)
        (lake / "dev" / "t" / "more").write_text("ten")
        lake.ctl("commit", "dev", "-m", "tenth")
        lake.ctl("publish", "dev", "--into", "main", "-m", "published")
        until(lambda: len(receiver.heard) > before)
        assert receiver.events()[before:] == ["published"], receiver.events()
        assert json.loads(receiver.heard[-1][1])["source"] == "dev"

    with tests.case("a receiver hears why something was not published"):
        audit = lake.scratch / "audit"
        audit.write_text("#!/bin/sh\necho t/more: column delay: 12 rows are NULL; exit 1\n")
        audit.chmod(0o755)
        lake.scratch.chmod(0o755)
        lake.ctl("audit", "add", "main", "nulls", "--", audit)
        lake.ctl("webhook", "add", "main", "watch", receiver.url, "--event", "audit-failed")
        (lake / "dev" / "t" / "more").write_text("NULL")
        lake.ctl("commit", "dev", "-m", "nulls")
        before = len(receiver.heard)
        assert refused(lake, "publish", "dev", "--into", "main").code == 4
        until(lambda: len(receiver.heard) > before)
        event = json.loads(receiver.heard[-1][1])
        assert event["event"] == "audit-failed" and event["verdict"] == "failed", event
        assert "column delay: 12 rows are NULL" in json.dumps(event["audits"]), event
        assert "X-Lake-Signature-256" not in receiver.heard[-1][0]
        lake.ctl("webhook", "remove", "main", "watch")
        lake.ctl("audit", "remove", "main", "nulls")

    with tests.case("webhook list, test and remove"):
        listed = lake.ctl("webhook", "list", "main")["webhooks"]
        assert [(item["name"], item["events"], item["waiting"]) for item in listed] == \
            [("chat", ["committed", "published"], 0)], listed
        assert lake.ctl("webhook", "test", "main")["deliveries"] == [{"webhook": "chat", "status": 200}]
        receiver.statuses.append(404)
        refusal = refused(lake, "webhook", "test", "main", "chat")
        assert refusal.code == 1 and refusal.reply["deliveries"][0]["status"] == 404, refusal.reply
        assert refused(lake, "webhook", "test", "main", "nobody").code == 5
        assert refused(lake, "webhook", "remove", "main", "nobody").code == 5
        assert refused(lake, "webhook", "add", "main", "x", "ftp://x/").code == 2
        assert refused(lake, "webhook", "add", "main", "x", "http://x/", "--event", "rain").code == 2

    with tests.case("a receiver that fails is told again"):
        receiver.statuses += [500, 429]
        before = len(receiver.heard)
        change(lake, "eleven")
        lake.ctl("commit", "main", "-m", "eleventh")
        until(lambda: len(receiver.heard) > before, 20)
        stats = lake.ctl("stats")
        assert stats["webhooks_retried_total"] >= 2 and stats["webhooks_waiting"] == 0, stats


def survives(lake, receiver):
    with tests.case("what a killed daemon had not delivered the next one does"):
        receiver.stop()
        change(lake, "twelve")
        commit = lake.ctl("commit", "main", "-m", "twelfth")["commit"]
        lake.kill()
        subprocess.run(["umount", "-l", lake.mountpoint], check=False, capture_output=True)
        again = Receiver(port=receiver.port)
        try:
            lake.mount()
            until(lambda: again.heard)
            assert json.loads(again.heard[0][1])["commit"] == commit
        finally:
            again.stop()

    with tests.case("a receiver whose certificate nobody vouches for is told nothing"):
        pair = lake.scratch / "pair.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-keyout", pair, "-out", lake.scratch / "c.pem", "-days", "2", "-subj", "/CN=127.0.0.1",
                        "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
        pair.write_text(pair.read_text() + (lake.scratch / "c.pem").read_text())
        secure = Receiver(certificate=pair)
        try:
            lake.ctl("branch", "create", "tls", "main")
            lake.ctl("webhook", "add", "tls", "secure", secure.url)
            refusal = refused(lake, "webhook", "test", "tls")
            assert "certificate" in refusal.reply["deliveries"][0]["trouble"], refusal.reply
            assert not secure.heard
        finally:
            secure.stop()


def without_daemon(lake, port):
    with tests.case("without a daemon hooks run and receivers are told at once"):
        change(lake, "thirteen")
        lake.umount()
        hook(lake, "pre-commit", 'echo "mount=$LAKE_MOUNT candidate=$LAKE_CANDIDATE"; tr "\\0" , <$LAKE_CHANGED')
        receiver = Receiver(port=port)
        try:
            reply = lake.ctl("commit", "main", "-m", "thirteenth")
            assert said(reply, "pre-commit") == "mount= candidate=\nt/data,", reply
            assert receiver.events() == ["committed"] and "warnings" not in reply, reply
        finally:
            receiver.stop()

    with tests.case("what cannot be delivered then is said, and waits"):
        reply = lake.ctl("commit", "main", "-m", "fourteenth", "--allow-empty")
        assert any("next daemon" in text for text in reply["warnings"]), reply
        assert len([entry for entry in os.listdir(lake.directory / "webhooks") if entry[0].isdigit()]) >= 1
        receiver = Receiver(port=port)
        try:
            lake.mount()
            until(lambda: receiver.heard)
            assert json.loads(receiver.heard[0][1])["message"] == "fourteenth"
        finally:
            receiver.stop()


def main():
    with Lake() as lake:
        receiver = Receiver()
        try:
            commits(lake)
            merges(lake)
            other_users(lake)
            told(lake, receiver)
        finally:
            receiver.stop()
        # Its port is free from here on, and everything waits for somebody to listen there.
        survives(lake, Receiver(port=receiver.port))
        without_daemon(lake, receiver.port)
    tests.done()


main()
