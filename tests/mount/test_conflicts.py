#!/usr/bin/env python3
"""Merges of what two branches did to the same paths: what goes together, and how conflicts are told and resolved."""
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from lake import BIN, Clone, Lake, Tests, refused

tests = Tests()


def commit(lake, *branches):
    for branch in branches:
        lake.ctl("commit", branch, "-m", branch)


def fork(lake, name, files):
    for path, content in files.items():
        (lake / "main" / path).parent.mkdir(parents=True, exist_ok=True)
        (lake / "main" / path).write_bytes(content)
    lake.ctl("commit", "main", "-m", f"before {name}")
    lake.ctl("branch", "create", name, "main")
    return lake / "main", lake / name


def text(lake, *arguments):
    done = subprocess.run([BIN / "lakectl", "--lake", lake.directory, *arguments], capture_output=True, text=True,
                          check=False)
    return done.stdout, done.stderr


with Lake() as lake:
    with tests.case("both append different new files to one table"):
        main, dev = fork(lake, "files", {"t/month=1/a.parquet": b"1"})
        (dev / "t/month=1/b.parquet").write_bytes(os.urandom(100000))
        (dev / "t/month=2").mkdir()
        (dev / "t/month=2/c.parquet").write_bytes(b"c")
        (main / "t/month=1/d.parquet").write_bytes(os.urandom(100000))
        (main / "t/month=2").mkdir()
        (main / "t/month=2/e.parquet").write_bytes(b"e")
        commit(lake, "main", "files")
        lake.ctl("merge", "files", "main")
        assert sorted(os.listdir(main / "t/month=1")) == ["a.parquet", "b.parquet", "d.parquet"]
        assert sorted(os.listdir(main / "t/month=2")) == ["c.parquet", "e.parquet"]
    with tests.case("both made the same change"):
        main, dev = fork(lake, "same", {"same.bin": b"old", "gone.bin": b"old"})
        content = os.urandom(300000)
        for root in main, dev:
            (root / "same.bin").write_bytes(content)
            (root / "gone.bin").unlink()
            (root / "new.bin").write_bytes(content)
        commit(lake, "main", "same")
        lake.ctl("merge", "same", "main")
        assert (main / "same.bin").read_bytes() == content and not (main / "gone.bin").exists()

    main, dev = fork(lake, "dev", {"data.parquet": os.urandom(200000), "gone/x": b"x", "kind": b"k", "quiet": b"q"})
    base = (main / "data.parquet").read_bytes()
    (dev / "data.parquet").write_bytes(source := os.urandom(210000))
    (main / "data.parquet").write_bytes(target := os.urandom(220000))
    (dev / "gone/x").unlink()
    (main / "gone/x").write_bytes(b"changed")
    (dev / "kind").unlink()
    (dev / "kind").mkdir()
    (dev / "kind/in").write_bytes(b"in")
    (main / "kind").write_bytes(b"changed")
    (dev / "added [1]").write_bytes(b"dev")
    (main / "added [1]").write_bytes(b"main")
    (dev / "alone").write_bytes(b"dev")
    commit(lake, "main", "dev")
    with tests.case("a binary file that both changed, and each kind of conflict"):
        found = {item["path"]: item for item in refused(lake, "merge", "dev", "main").reply["conflicts"]}
        assert {path: item["kind"] for path, item in found.items()} == {
            "data.parquet": "both changed", "gone/x": "deleted in source, changed in target",
            "kind": "directory in source, file in target", "added [1]": "both added"}
        assert [found["data.parquet"][side]["size"] for side in ("base", "source", "target")] == [200000, 210000, 220000]
        assert len({found["data.parquet"][side]["content"] for side in ("base", "source", "target")}) == 3
        assert "source" not in found["gone/x"] and "base" not in found["added [1]"]
    with tests.case("each side is read where the list says"):
        data = found["data.parquet"]
        assert pathlib.Path(data["base"]["at"]).read_bytes() == base
        assert pathlib.Path(data["source"]["at"]).read_bytes() == source
        assert pathlib.Path(data["target"]["at"]).read_bytes() == target
        assert os.listdir(found["kind"]["source"]["at"]) == ["in"]
    with tests.case("the text names them, too, short and aligned"):
        out, err = text(lake, "merge", "dev", "main")
        lines = [line for line in out.splitlines() if line.startswith("    ")]
        places = [line[line.index("/"):] for line in lines if "/@" in line]
        assert len(places) == 10 and all(os.path.exists(place) for place in places), out
        assert len({line.index("/") for line in lines if "/@" in line}) == 1, out
        assert "--take source:PATH" in err
        dry, _ = text(lake, "merge", "dev", "main", "--dry-run")
        assert dry == out
    with tests.case("without a mount: as lakectl takes it"):
        lake.umount()
        alone = {item["path"]: item for item in refused(lake, "merge", "dev", "main").reply["conflicts"]}
        assert not alone["data.parquet"]["source"]["at"].startswith("/")
        done = subprocess.run([BIN / "lakectl", "--lake", lake.directory, "cat", alone["data.parquet"]["source"]["at"]],
                              capture_output=True, check=True)
        assert done.stdout == source
        lake.mount()

    with tests.case("a take that names nothing"):
        for path, code in (("dta.parquet", 5), ("*.csv", 5), ("kind/out", 5), ("[", 2), ("a/../b", 2), ("/x", 2), ("", 2)):
            refusal = refused(lake, "merge", "dev", "main", "--take", f"source:{path}", "--take", "target:**")
            assert refusal.code == code, (path, refusal)
    with tests.case("some are decided, the rest is listed"):
        refusal = refused(lake, "merge", "dev", "main", "--take", "source:*.parquet", "--take", "target:g*/x")
        assert sorted(item["path"] for item in refusal.reply["conflicts"]) == ["added [1]", "kind"]
    with tests.case("paths, patterns and directories together"):
        lake.ctl("merge", "dev", "main", "--take", "source:*.parquet", "--take", "target:gone",
                 "--take", "source:kind", "--take", "target:added [1]", "--take", "source:quiet")
        assert (main / "data.parquet").read_bytes() == source
        assert (main / "gone/x").read_bytes() == b"changed"
        assert (main / "kind/in").read_bytes() == b"in"
        assert (main / "added [1]").read_bytes() == b"main"
        assert (main / "alone").read_bytes() == b"dev"
    with tests.case("revert and cherry-pick tell and take, too"):
        main, dev = fork(lake, "pick", {"p": b"0"})
        (main / "p").write_bytes(b"1")
        commit(lake, "main")
        (main / "p").write_bytes(b"2")
        commit(lake, "main")
        found = refused(lake, "revert", "main~1", "main").reply["conflicts"][0]
        assert [pathlib.Path(found[side]["at"]).read_bytes() for side in ("base", "source", "target")] == [b"1", b"0", b"2"]
        lake.ctl("revert", "main~1", "main", "--take", "source:p")
        assert (main / "p").read_bytes() == b"0"
        (dev / "p").write_bytes(b"9")
        commit(lake, "pick")
        (main / "p").write_bytes(b"3")
        commit(lake, "main")
        found = refused(lake, "cherry-pick", "pick", "main").reply["conflicts"][0]
        assert pathlib.Path(found["source"]["at"]).read_bytes() == b"9"
        lake.ctl("cherry-pick", "pick", "main", "--take", "source:p")
        assert (main / "p").read_bytes() == b"9"
    with tests.case("a commit that another host was before"):
        fork(lake, "host", {"both": b"0", "mine": b"0"})
        with Clone(lake) as other:
            (other / "main/both").write_bytes(b"theirs")
            (lake / "main/both").write_bytes(b"mine, longer")
            (lake / "main/mine").write_bytes(b"mine")
            commit(other, "main")
            found = refused(lake, "commit", "main", "-m", "late").reply["conflicts"]
            assert [(item["path"], item["kind"]) for item in found] == [("both", "both changed")]
            sides = [found[0][side] for side in ("base", "source", "target")]
            assert [side["size"] for side in sides] == [1, 12, 6]
            assert [pathlib.Path(side["at"]).read_bytes() for side in sides] == [b"0", b"mine, longer", b"theirs"]
            assert sides[1]["at"] == str(lake / "main/both")
tests.done()
