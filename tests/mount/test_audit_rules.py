#!/usr/bin/env python3
"""Rules of branches, verdicts and the audit log as commands show them: what is refused, lost, damaged."""
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Lake, Tests, refused  # noqa: E402

tests = Tests()


def program(lake, name, script, mode=0o755):
    directory = lake.directory / "audits"
    directory.mkdir(exist_ok=True)
    (directory / name).write_text("#!/bin/sh\n" + script)
    (directory / name).chmod(mode)


def change(lake, name, path="t/a.csv"):
    lake.ctl("branch", "create", name, "main")
    at = lake / name / path
    at.parent.mkdir(exist_ok=True)
    at.write_text(name)
    lake.ctl("commit", name, "-m", name)


def configuring(lake):
    with tests.case("a branch without audits"):
        assert lake.ctl("audit") == {"branch": "main", "audits": []}
        assert lake.ctl("audit", "log")["entries"] == []

    with tests.case("what follows -- is the program's, as it is"):
        program(lake, "says", 'for word; do echo "[$word]"; done')
        reply = lake.ctl("audit", "add", "main", "says", "--path", "t/**", "--path", "*.csv", "--timeout", "7", "--",
                         "says", "--path", "../x", "a  b", "")
        assert reply["added"] == "says" and "warnings" not in reply, reply
        assert lake.ctl("audit", "list", "main")["audits"] == [
            {"name": "says", "paths": ["t/**", "*.csv"], "command": ["says", "--path", "../x", "a  b", ""],
             "timeout_s": 7}]
        change(lake, "words")
        checks = lake.ctl("audit", "run", "words")["checks"]
        assert checks[0]["output"] == "[--path]\n[../x]\n[a  b]\n[]\n", checks

    with tests.case("a program that is not here is a warning, for it may be on other hosts"):
        reply = lake.ctl("audit", "add", "main", "elsewhere", "--", "not-here")
        assert "not-here" in reply["warnings"][0], reply
        assert lake.ctl("audit", "remove", "main", "elsewhere")["removed"] == "elsewhere"

    with tests.case("what is wrong is refused and changes nothing"):
        before = lake.ctl("audit", "list", "main")
        for words, code in ((["add", "main", "x"], 2), (["add", "main", "x", "--"], 2),
                            (["add", "main", "x", "--", "./relative"], 2), (["add", "main", "x/y", "--", "says"], 2),
                            (["add", "main", "x", "--path", "/absolute", "--", "says"], 2),
                            (["add", "main", "x", "--path", "[", "--", "says"], 2),
                            (["add", "main", "x", "--timeout", "0", "--", "says"], 2),
                            (["add", "nowhere", "x", "--", "says"], 5), (["remove", "main", "x"], 5),
                            (["remove", "main"], 2), (["remove", "main", "says", "--all"], 2), (["log", "-n", "0"], 2)):
            assert refused(lake, "audit", *words).code == code, words
        assert lake.ctl("audit", "list", "main") == before


def publishing(lake):
    with tests.case("a program that others could have written does not run, and nothing is published"):
        program(lake, "open", "exit 0", 0o777)
        lake.ctl("audit", "add", "main", "open", "--", "open")
        refusal = refused(lake, "publish", "words")
        assert refusal.code == 4
        checks = {check["name"]: check for check in refusal.reply["checks"]}
        assert checks["open"]["verdict"] == "error" and "chmod go-w" in checks["open"]["output"], checks
        assert checks["says"]["verdict"] == "passed", checks
        lake.ctl("audit", "remove", "main", "open")

    with tests.case("a program in the lake itself does not run, by whatever way"):
        (lake / "words" / "pass").write_text("#!/bin/sh\n")
        (lake / "words" / "pass").chmod(0o755)
        (lake.directory / "audits" / "link").symlink_to(lake / "words" / "pass")
        for path in lake / "words" / "pass", "link":
            lake.ctl("audit", "add", "main", "inside", "--", path)
            refusal = refused(lake, "publish", "words")
            assert refusal.code == 4 and "lies in the lake" in refusal.reply["checks"][1]["output"], refusal.reply
        lake.ctl("audit", "remove", "main", "inside")

    with tests.case("any bytes an audit prints can be shown"):
        program(lake, "noise", "head -c 300000 /dev/urandom; exit 1")
        lake.ctl("audit", "add", "main", "noise", "--", "noise")
        refusal = refused(lake, "publish", "words")
        assert refusal.code == 4
        shown = lake.ctl("show", refusal.reply["candidate"])["audits"][0]
        assert shown["checks"][1]["output_cut"] and shown["checks"][1]["exit_code"] == 1, shown
        assert shown["checks"][1]["output"] == refusal.reply["checks"][1]["output"]
        lake.ctl("audit", "remove", "main", "noise")


def damage(lake):
    store = lake.directory / "store"
    published = lake.ctl("publish", "words")["commit"]
    verdicts = store / "audits" / published

    with tests.case("gc leaves rules, verdicts and the log"):
        before = sorted(path for name in ("rules", "audits", "log") for path in (store / name).rglob("*"))
        for _ in range(2):
            lake.ctl("gc", "--grace-seconds", "0", "--alone")
        assert before == sorted(path for name in ("rules", "audits", "log") for path in (store / name).rglob("*"))
        assert lake.ctl("fsck")["problems"] == []

    with tests.case("a damaged verdict is named, the others are shown"):
        (verdicts / "0000000000001-0000000000000001").write_text('{"version":1,"verd')
        (verdicts / "0000000000002-0000000000000002").write_text('{"version":9}')
        audits = lake.ctl("show", published)["audits"]
        assert ["damaged" in audit for audit in audits] == [True, True, False], audits
        assert "version 9" in audits[1]["damaged"] and audits[2]["verdict"] == "passed", audits

    with tests.case("a damaged entry of the log is named, the others are listed"):
        entries = lake.ctl("audit", "log", "-n", "1000")["entries"]
        assert entries[0]["what"] == "audit add" and entries[-1]["what"] == "published", entries
        day = sorted((store / "log").iterdir())[0]
        (day / "0000000000001-0000000000000001").write_text("\0\0")
        again = lake.ctl("audit", "log", "-n", "1000")["entries"]
        assert "damaged" in again[0] and again[1:] == entries, again

    with tests.case("while the store is away, show works and says what it cannot"):
        store.rename(lake.scratch / "away")
        store.mkdir()
        try:
            reply = lake.ctl("show", published)
        finally:
            store.rmdir()
            (lake.scratch / "away").rename(store)
        assert reply["id"] == published and "audits" not in reply, reply
        assert "not known now" in reply["warnings"][0], reply

    with tests.case("rules that the store has lost: nothing is published, fsck says so, --all starts anew"):
        change(lake, "late", "t/b.csv")
        lake.umount()
        shutil.rmtree(store / "rules")
        for damaged in store.rglob("000000000000[12]-*"):  # the case above put them there
            damaged.unlink()
        lake.mount()
        for words in (("publish", "late"), ("audit", "list", "main"), ("audit", "remove", "main", "says")):
            refusal = refused(lake, *words)
            assert refusal.code == 5 and "--all" in str(refusal), refusal
        refusal = refused(lake, "fsck")
        assert [problem["what"] for problem in refusal.reply["problems"]] == ["rules"], refusal.reply
        lake.ctl("audit", "remove", "main", "--all")
        assert lake.ctl("audit", "list", "main")["audits"] == []
        assert lake.ctl("fsck")["problems"] == []
        assert lake.ctl("audit", "log", "-n", "1")["entries"][0]["rule"] == "--all"
        lake.ctl("publish", "late")

    with tests.case("rules that somebody has changed are not taken for none"):
        lake.ctl("audit", "add", "main", "says", "--", "says")
        lake.umount()
        for path in (store / "rules").iterdir():
            path.write_text('{"version":1,"audits":[],"webhooks":[]}')
        lake.mount()
        change(lake, "sneaky", "t/c.csv")
        refusal = refused(lake, "publish", "sneaky")
        assert refusal.code == 1 and "damaged" in str(refusal), refusal
        # The same rules again are the same object: that mends it.
        lake.ctl("branch", "create", "other", "main")
        lake.ctl("audit", "add", "other", "says", "--", "says")
        lake.ctl("publish", "sneaky")


with Lake() as lake:
    lake.scratch.chmod(0o755)
    (lake / "main" / "first").write_text("1")
    lake.ctl("commit", "main", "-m", "first")
    configuring(lake)
    publishing(lake)
    damage(lake)
tests.done()
