#!/usr/bin/env python3
"""Write - audit - publish: what was audited is what is published, or nothing moves."""
import grp
import json
import os
import pathlib
import pwd
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Clone, Lake, Tests, refused, until  # noqa: E402

tests = Tests()


class Branches:
    """A lake with `main`, and a new branch for each change."""

    def __init__(self, lake):
        self.lake, self.count = lake, 0
        self.scripts = lake.scratch / "audits"
        self.scripts.mkdir(exist_ok=True)
        self.scripts.chmod(0o755)
        lake.scratch.chmod(0o755)
        (lake / "main/orders").mkdir()
        (lake / "main/orders/1.csv").write_text("id,amount\n1,10\n")
        lake.ctl("commit", "main", "-m", "first orders")

    def change(self, path, text):
        self.count += 1
        name = f"change{self.count}"
        self.lake.ctl("branch", "create", name, "main")
        at = self.lake / name / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)
        self.lake.ctl("commit", name, "-m", f"{path} changed")
        return name

    def audit(self, name, script, *options, branch="main"):
        """Replace all audits of the branch by this one."""
        for audit in self.lake.ctl("audit", "list", branch)["audits"]:
            self.lake.ctl("audit", "remove", branch, audit["name"])
        program = self.scripts / f"{name}-{time.monotonic_ns()}"
        program.write_text("#!/bin/bash\n" + script)
        program.chmod(0o755)
        self.lake.ctl("audit", "add", branch, name, *options, "--", program)
        return program


def head(lake, branch="main"):
    return lake.ctl("show", branch)["id"]


def verdicts(reply):
    return {check["name"]: check["verdict"] for check in reply["checks"]}


def publishing(lake, branches):
    with tests.case("without audits a publish is a merge into main"):
        before = head(lake)
        name = branches.change("orders/2.csv", "id,amount\n2,20\n")
        tip = head(lake, name)
        reply = lake.ctl("publish", name, "-m", "day 2")
        assert reply["commit"] == head(lake) and reply["target"] == "main"
        shown = lake.ctl("show", "main")
        assert shown["parents"] == [before, tip] and shown["message"] == "day 2"
        assert (lake / "main/orders/2.csv").read_text() == "id,amount\n2,20\n"
        assert lake.ctl("publish", name)["up_to_date"] is True

    with tests.case("an audit sees exactly what would be published"):
        out = lake.scratch / "seen"
        out.mkdir(mode=0o777)
        out.chmod(0o777)
        name = branches.change("orders/3.csv", "id,amount\n3,30\n")
        (lake / name / "orders/1.csv").unlink()
        (lake / name / "other").write_text("not of this audit")
        (lake / name / "orders/new\nline").write_text("odd")
        lake.ctl("commit", name, "-m", "and more")
        (lake / "main/orders/4.csv").write_text("id,amount\n4,40\n")  # only main has it
        lake.ctl("commit", "main", "-m", "four")
        base, target = lake.ctl("log", "main", "-n", "2")["commits"][1]["id"], head(lake)
        branches.audit("look", f"""
            env >{out}/env
            cp "$LAKE_CHANGED" {out}/changed; cp "$LAKE_REMOVED" {out}/removed
            cp -r "$LAKE_CANDIDATE/." {out}/tree; pwd >{out}/pwd; id -un >{out}/user
            touch "$LAKE_CANDIDATE/orders/x" 2>{out}/written && exit 1
            ls "$LAKE_TARGET_PATH/orders" >{out}/before
            """, "--path", "orders/**")
        reply = lake.ctl("publish", name)
        env = dict(line.split("=", 1) for line in (out / "env").read_text().splitlines() if "=" in line)
        assert env["LAKE_CANDIDATE"] == f"{lake.mountpoint}/@{reply['commit']}", env
        assert (env["LAKE_SOURCE"], env["LAKE_TARGET"], env["LAKE_AUDIT"]) == (name, "main", "look")
        assert (env["LAKE_TARGET_ID"], env["LAKE_BASE"]) == (target, base)
        assert env["LAKE_SOURCE_ID"] == head(lake, name)
        assert not [key for key in env if key.startswith("AWS_") or key == "LAKE_DIR"], env
        assert (out / "pwd").read_text().strip() == env["LAKE_CANDIDATE"]
        assert sorted((out / "changed").read_bytes().split(b"\0")[:-1]) == [b"orders/3.csv", b"orders/new\nline"]
        assert (out / "removed").read_bytes() == b"orders/1.csv\0"
        assert sorted(os.listdir(out / "tree/orders")) == ["2.csv", "3.csv", "4.csv", "new\nline"]
        assert (out / "before").read_text().split() == ["1.csv", "2.csv", "4.csv"]
        assert "Read-only" in (out / "written").read_text()
        assert (out / "user").read_text().strip() == pwd.getpwuid(os.geteuid()).pw_name
        assert head(lake) == reply["commit"] == lake.ctl("reflog", "main")["moves"][0]["after"]
        assert verdicts(reply) == {"look": "passed"} and reply["verdict"] == "passed"

    with tests.case("an audit that fails: nothing moves, the report says why, the tree stays readable"):
        branches.audit("amounts", """
            while IFS= read -r -d '' path; do
                bad=$(grep -c ',$' "$path") && echo "table orders: $path: column amount: $bad rows are empty"
            done <"$LAKE_CHANGED"
            ! grep -q ',$' orders/*.csv""", "--path", "orders/*.csv")
        name = branches.change("orders/5.csv", "id,amount\n5,\n6,\n")
        before = head(lake)
        moves = lake.ctl("reflog", "main")["moves"]
        refusal = refused(lake, "publish", name)
        assert refusal.code == 4 and "amounts" in str(refusal), refusal
        assert refusal.reply["verdict"] == "failed" and verdicts(refusal.reply) == {"amounts": "failed"}
        assert "orders/5.csv: column amount: 2 rows" in refusal.reply["checks"][0]["output"]
        assert head(lake) == before and lake.ctl("reflog", "main")["moves"] == moves
        assert not (lake / "main/orders/5.csv").exists()
        candidate = refusal.reply["candidate"]
        assert (pathlib.Path(refusal.reply["at"]) / "orders/5.csv").read_text() == "id,amount\n5,\n6,\n"
        shown = lake.ctl("show", candidate)
        assert [one["verdict"] for one in shown["audits"]] == ["failed"], shown
        entry = lake.ctl("audit", "log", "-n", "1")["entries"][-1]
        assert (entry["verdict"], entry["commit"], entry["branch"]) == ("failed", candidate, "main"), entry
        assert entry["who"] and entry["host"] and entry["time"], entry
        text = subprocess.run([BIN / "lakectl", "--lake", lake.directory, "publish", name],
                              capture_output=True, text=True, check=False)
        assert text.returncode == 4 and "column amount: 2 rows" in text.stdout + text.stderr, text

    with tests.case("merge into a branch with audits does the same"):
        before = head(lake)
        assert refused(lake, "merge", f"change{branches.count}", "main").code == 4
        assert head(lake) == before

    with tests.case("mended, it is published; show and log tell who let it pass"):
        name = f"change{branches.count}"
        (lake / name / "orders/5.csv").write_text("id,amount\n5,50\n6,60\n")
        lake.ctl("commit", name, "-m", "mended")
        reply = lake.ctl("publish", name)
        shown = lake.ctl("show", "main")
        assert shown["id"] == reply["commit"]
        assert [one["verdict"] for one in shown["audits"]] == ["passed"], shown["audits"]
        entries = lake.ctl("audit", "log", "main", "-n", "2")["entries"]
        assert [entry["what"] for entry in entries] == ["audit", "published"], entries
        assert all(entry["commit"] == reply["commit"] for entry in entries)

    with tests.case("--dry-run shows what would change and runs nothing"):
        ran = lake.scratch / "ran"
        branches.audit("noting", f"touch {ran}; exit 1")
        name = branches.change("orders/7.csv", "id,amount\n7,70\n")
        before = head(lake)
        reply = lake.ctl("publish", name, "--dry-run")
        assert [change["path"] for change in reply["changes"]] == ["orders/7.csv"]
        assert [check["name"] for check in reply["checks"]] == ["noting"]
        assert head(lake) == before and not ran.exists()

    with tests.case("audit run: audits, and publishes nothing"):
        branches.audit("content", "exit 0")
        reply = lake.ctl("audit", "run", name)
        assert reply["verdict"] == "passed" and head(lake) == before
        branches.audit("content", "echo no; exit 9")
        assert refused(lake, "audit", "run", name).code == 4 and head(lake) == before

    with tests.case("an audit none of whose paths changed is skipped"):
        branches.audit("elsewhere", "exit 1", "--path", "customers/**")
        assert verdicts(lake.ctl("publish", name)) == {"elsewhere": "skipped"}

    with tests.case("publish --revert takes back what was published"):
        branches.audit("content", "exit 0")
        published = head(lake)
        assert (lake / "main/orders/7.csv").exists()
        reply = lake.ctl("publish", "--revert", published)
        assert not (lake / "main/orders/7.csv").exists()
        assert lake.ctl("show", "main")["meta"]["reverts"] == published
        assert verdicts(reply) == {"content": "passed"}


def moving(lake, branches):
    with tests.case("the target moved while audits ran: merged and audited again"):
        rounds = lake.scratch / "rounds"
        branches.audit("slow", f"""
            echo "$LAKE_TARGET_ID" >>{rounds}
            [ $(wc -l <{rounds}) = 1 ] || exit 0
            echo meanwhile >{lake.mountpoint}/main/meanwhile
            {BIN}/lakectl -q --lake {lake.directory} commit main -m meanwhile""")
        name = branches.change("orders/8.csv", "id,amount\n8,80\n")
        before = head(lake)
        reply = lake.ctl("publish", name)
        seen = rounds.read_text().split()
        assert len(seen) == 2 and seen[0] == before and seen[1] == lake.ctl("show", "main")["parents"][0]
        assert reply["commit"] == head(lake)
        assert (lake / "main/meanwhile").exists() and (lake / "main/orders/8.csv").exists()

    with tests.case("a target that always moves: given up after some rounds, nothing published"):
        branches.audit("endless", f"""
            echo "$RANDOM$RANDOM" >{lake.mountpoint}/main/meanwhile
            {BIN}/lakectl -q --lake {lake.directory} commit main -m meanwhile""")
        name = branches.change("orders/9.csv", "id,amount\n9,90\n")
        refusal = refused(lake, "publish", name)
        assert refusal.code == 3 and "moved" in str(refusal), refusal
        assert not (lake / "main/orders/9.csv").exists()

    with tests.case("a conflict is told before any audit runs"):
        ran = lake.scratch / "ran2"
        branches.audit("noting", f"touch {ran}")
        name = branches.change("orders/1b.csv", "theirs")
        (lake / "main/orders/1b.csv").write_text("ours")
        lake.ctl("commit", "main", "-m", "ours")
        refusal = refused(lake, "publish", name)
        assert refusal.code == 3 and refusal.reply["conflicts"][0]["path"] == "orders/1b.csv"
        assert not ran.exists()
        lake.ctl("publish", name, "--take", "source:orders/1b.csv")
        assert ran.exists() and (lake / "main/orders/1b.csv").read_text() == "theirs"

    with tests.case("rules that change while audits run: nothing passes by the old ones"):
        branches.audit("swap", f"""
            {BIN}/lakectl -q --lake {lake.directory} audit add main strict -- /bin/false""")
        lake.ctl("protect", "main", "--require-audits")
        name = branches.change("orders/10.csv", "id,amount\n10,1\n")
        before = head(lake)
        assert refused(lake, "publish", name).code == 4
        assert head(lake) == before
        lake.ctl("unprotect", "main")


def limits(lake, branches):
    name = branches.change("orders/11.csv", "id,amount\n11,1\n")
    before = head(lake)

    with tests.case("an audit that takes too long is ended, with all it started"):
        child = lake.scratch / "child"
        branches.audit("long", f"sleep 300 & echo $! >{child}; sleep 300", "--timeout", "1")
        start = time.monotonic()
        refusal = refused(lake, "publish", name)
        assert refusal.code == 4 and verdicts(refusal.reply) == {"long": "error"}, refusal
        assert time.monotonic() - start < 10 and head(lake) == before
        pid = int(child.read_text())
        until(lambda: not os.path.exists(f"/proc/{pid}") or
              pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")

    with tests.case("an audit that is not there, or cannot run, forbids"):
        program = branches.audit("gone", "exit 0")
        program.unlink()
        refusal = refused(lake, "publish", name)
        assert refusal.code == 4 and verdicts(refusal.reply) == {"gone": "error"} and head(lake) == before
        branches.audit("plain", "exit 0").chmod(0o644)
        assert refused(lake, "publish", name).code == 4 and head(lake) == before

    with tests.case("kill -9 of the daemon during an audit: nothing moved, and it works again"):
        started = lake.scratch / "started"
        branches.audit("killed", f"[ -e {started} ] && exit 0; touch {started}; sleep 3")
        caller = threading.Thread(target=lambda: subprocess.run(
            [BIN / "lakectl", "--lake", lake.directory, "publish", name], capture_output=True, check=False))
        caller.start()
        until(started.exists)
        lake.kill()
        caller.join()
        lake.mount()
        assert head(lake) == before and not (lake / "main/orders/11.csv").exists()

    with tests.case("a caller who goes away ends his audits"):
        mark = lake.scratch / "mark"
        branches.audit("left", f"echo $$ >{mark}; sleep 300")
        caller = subprocess.Popen([BIN / "lakectl", "--lake", lake.directory, "publish", name],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: mark.exists() and mark.read_text().strip())
        pid = int(mark.read_text())
        caller.send_signal(signal.SIGKILL)
        caller.wait()
        until(lambda: not os.path.exists(f"/proc/{pid}"))
        assert head(lake) == before

    with tests.case("without a mount it is said what is missing, and nothing moves"):
        branches.audit("content", "exit 0")
        lake.umount()
        refusal = refused(lake, "publish", name)
        assert refusal.code == 1 and "mount" in str(refusal), refusal
        lake.mount()
        assert head(lake) == before
        lake.ctl("publish", name)


def people(lake, branches):
    """Who may, and as whom programs run."""
    if os.geteuid() != 0:
        tests.skip("audits run as the caller; publishers are a group", "needs root")
        return
    config = lake.directory / "lake.json"
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    settings = json.loads(config.read_text())
    settings["control_group"] = group
    lake.umount()
    config.write_text(json.dumps(settings))
    lake.mount()
    out = lake.scratch / "who"
    out.mkdir()
    out.chmod(0o777)

    def as_nobody(*arguments):
        return subprocess.run(["setpriv", "--reuid=nobody", f"--regid={group}", "--clear-groups", BIN / "lakectl",
                               "--lake", lake.directory, "--json", *arguments],
                              capture_output=True, text=True, check=False, cwd="/")

    with tests.case("audits run as the calling user, in his groups, and cannot write elsewhere"):
        branches.audit("who", f"id -un >{out}/user; id -Gn >{out}/groups; touch /etc/lake-audit && exit 1; exit 0")
        name = branches.change("orders/12.csv", "id,amount\n12,1\n")
        done = as_nobody("publish", name)
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert (out / "user").read_text().strip() == "nobody"
        assert (out / "groups").read_text().split() == [group], (out / "groups").read_text()
        assert not os.path.exists("/etc/lake-audit")
        assert lake.ctl("show", "main")["author"].startswith("nobody@")

    with tests.case("rules are set by the lake's owner alone"):
        before = lake.ctl("audit", "list", "main")
        for arguments in (("audit", "add", "main", "mine", "--", "/bin/true"), ("audit", "remove", "main", "who"),
                          ("protect", "main"), ("unprotect", "main")):
            done = as_nobody(*arguments)
            assert done.returncode == 4, (arguments, done.stdout)
        assert lake.ctl("audit", "list", "main") == before

    with tests.case("only publishers publish"):
        lake.ctl("protect", "main", "--no-direct-writes", "--publishers", "daemon")
        name = branches.change("orders/13.csv", "id,amount\n13,1\n")
        before = head(lake)
        refusal = refused(lake, "publish", name)  # root is no member
        assert refusal.code == 4 and "daemon" in str(refusal), refusal
        assert json.loads(as_nobody("publish", name).stdout)["error"]["exit"] == 4
        assert head(lake) == before
        lake.ctl("protect", "main", "--no-direct-writes", "--publishers", group)
        assert as_nobody("publish", name).returncode == 0 and head(lake) != before
        lake.ctl("unprotect", "main")


def hosts(lake, branches):
    """Rules bind every host."""
    branches.audit("amounts", "! grep -q ',$' orders/*.csv")
    lake.ctl("protect", "main", "--no-direct-writes", "--require-audits")
    with Clone(lake) as other:
        with tests.case("another host runs the same audits and is bound by the same protection"):
            other.ctl("branch", "create", "there", "main")
            (other / "there/orders/14.csv").write_text("id,amount\n14,\n")
            other.ctl("commit", "there", "-m", "fourteen")
            before = head(other)
            assert refused(other, "publish", "there").code == 4
            assert refused(other, "commit", "main", "-m", "x", "--allow-empty").code == 4
            assert refused(other, "reset", "main", "main~1").code == 4
            assert refused(other, "revert", "main", "main").code == 4
            assert head(other) == before
            (other / "there/orders/14.csv").write_text("id,amount\n14,1\n")
            other.ctl("commit", "there", "-m", "mended")
            commit = other.ctl("publish", "there")["commit"]
            lake.ctl("refresh", "main")
            shown = lake.ctl("show", "main")
            assert shown["id"] == commit and [one["verdict"] for one in shown["audits"]] == ["passed"]

        with tests.case("two hosts publish at once: both are in, each audited on what it became"):
            names = {}
            for host, prefix in ((lake, "a"), (other, "b")):
                for i in range(3):
                    name = f"{prefix}{i}"
                    host.ctl("branch", "create", name, "main")
                    (host / name / f"orders/{name}.csv").write_text("id,amount\n1,1\n")
                    host.ctl("commit", name, "-m", name)
                    names[name] = host
            done = {}

            def publish_all(host, mine):
                for name in mine:
                    done[name] = host.ctl("publish", name)["commit"]

            threads = [threading.Thread(target=publish_all, args=(host, [n for n, h in names.items() if h is host]))
                       for host in (lake, other)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(done) == sorted(names), done
            lake.ctl("refresh", "main")
            history = {commit["id"] for commit in lake.ctl("log", "main")["commits"]}
            assert set(done.values()) <= history
            for commit in done.values():
                assert [one["verdict"] for one in lake.ctl("show", commit)["audits"]] == ["passed"]
            assert {f"{name}.csv" for name in names} <= set(os.listdir(lake / "main/orders"))
    lake.ctl("unprotect", "main")


with Lake() as made:
    world = Branches(made)
    publishing(made, world)
    moving(made, world)
    limits(made, world)
    people(made, world)
    hosts(made, world)
tests.done()
