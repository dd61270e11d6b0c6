#!/usr/bin/env python3
"""Nothing leads out of a branch: members of archives, symbolic links, names of branches and tags, revisions, paths
given to commands. What a disk would refuse is refused, above branches nothing appears, outside nothing changes."""
import errno
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import unicodedata
import warnings
import zipfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Lake, Refused, Tests, refused  # noqa: E402

tests = Tests()
CONTROL = [chr(code) for code in (*range(1, 0x20), 0x7f)]
NFC, NFD = (unicodedata.normalize(form, "Ångström-é") for form in ("NFC", "NFD"))


UP = "../../../"  # from where archives are unpacked: what is above branches


def members(outside):
    """Names and where they link to, as archives that attack have them."""
    return [("good", None), ("../beside", None), (f"{UP}above", None), (f"{UP}../far", None), (f"{UP}@main/t/x", None),
            (f"{UP}@main", None), (f"{UP}.lake/x", None), (f"{UP}.lake/status", None), (f"{UP}@new/x", None),
            (str(outside / "absolute"), None), ("./x/../../odd", None), ("link", str(outside)), ("link/through", None),
            ("up", UP), ("up/through", None), ("rev", f"{UP}@main"), ("rev/t/through", None),
            ("good", str(outside / "target")), ("good", None)]


def make_tar(path, outside):
    with tarfile.open(path, "w") as archive:
        for name, target in members(outside):
            info = tarfile.TarInfo(name)
            info.name = name  # not made harmless
            if target:
                info.type, info.linkname = tarfile.SYMTYPE, target
                archive.addfile(info)
            else:
                info.size = 5
                archive.addfile(info, io.BytesIO(b"evil\n"))


def make_zip(path, outside):
    warnings.simplefilter("ignore", UserWarning)  # one name twice
    with zipfile.ZipFile(path, "w") as archive:
        for name, target in members(outside):
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system = name, 3  # Unix, where there are links
            info.external_attr = ((0o120777 if target else 0o100644) << 16)
            archive.writestr(info, target or "evil\n")


PYTHON = """
import sys, tarfile, zipfile
archive = tarfile.open(sys.argv[1]) if sys.argv[1].endswith("tar") else zipfile.ZipFile(sys.argv[1])
for member in archive.getmembers() if hasattr(archive, "getmembers") else archive.infolist():
    try:
        archive.extract(member)
    except Exception as problem:
        print(type(problem).__name__)
"""


def extractors(tar, archive_zip):
    yield "tar", ["tar", "-xf", tar], False
    yield "tar -P, which obeys", ["tar", "-xPf", tar], True
    yield "tar -P -U", ["tar", "-xPUf", tar], True
    yield "Python, tar", [sys.executable, "-W", "ignore", "-c", PYTHON, tar], True
    yield "Python, zip", [sys.executable, "-W", "ignore", "-c", PYTHON, archive_zip], False
    if shutil.which("unzip"):
        yield "unzip", ["unzip", "-o", archive_zip], False
        yield "unzip -:, which obeys", ["unzip", "-o", "-:", archive_zip], True
    else:
        tests.skip("unzip", "not here")


def tree(top):
    found = {}
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = pathlib.Path(directory, name)
            found[str(path.relative_to(top))] = os.readlink(path) if path.is_symlink() else \
                path.read_bytes() if path.is_file() else None
    return found


def extract(command, place, outside):
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    (outside / "target").write_text("kept\n")
    place.mkdir(parents=True)
    subprocess.run(command, cwd=place, capture_output=True, check=False, stdin=subprocess.DEVNULL)


def check_archives(lake):
    outside, disk = lake.scratch / "outside", lake.scratch / "a/disk"
    tar, archive_zip = lake.scratch / "evil.tar", lake.scratch / "evil.zip"
    make_tar(tar, outside)
    make_zip(archive_zip, outside)
    committed, untouched = tree(lake / "@main"), tree(lake / "main")
    for name, command, obeys in extractors(tar, archive_zip):
        with tests.case(f"an archive that leads out: {name}"):
            lake.ctl("branch", "create", "attacked", "main")
            top, ours = sorted(os.listdir(lake.mountpoint)), sorted(os.listdir(lake.scratch))
            shutil.rmtree(disk.parent, ignore_errors=True)
            extract(command, disk / "attacked/t/here", outside)
            beyond = tree(outside)
            assert obeys or set(beyond) == {"target"}, beyond  # these programs take care themselves
            far = (disk.parent / "far").exists()
            assert (disk / "above").exists() == far and (far or not name.startswith("tar -P"))
            shutil.rmtree(disk.parent)
            extract(command, lake / "attacked/t/here", outside)
            # Outside as on a disk: what the user may write there, a program may that obeys.
            assert tree(outside) == beyond
            assert set(os.listdir(lake.scratch)) - {"a", "outside"} == set(ours) - {"a", "outside"} | ({"far"} if far else set())
            (lake.scratch / "far").unlink(missing_ok=True)
            # Above branches nothing, in revisions and other branches nothing.
            assert sorted(os.listdir(lake.mountpoint)) == top and not (lake / "above").exists()
            assert tree(lake / "@main") == committed and tree(lake / "main") == untouched
            assert b"evil" not in (lake / ".lake/status").read_bytes() and not (lake / ".lake/x").exists()
            here = tree(lake / "attacked")
            assert "t/here/good" in here
            commit = lake.ctl("commit", "attacked", "-m", name)["commit"]
            assert tree(lake / f"@{commit}") == here
            # Commands do not go where links lead.
            for link in ("link", "up", "rev"):
                if f"t/here/{link}" in here:
                    assert refused(lake, "ls", f"{commit}:t/here/{link}/target").code == 5
            lake.ctl("branch", "delete", "attacked", "--force")


def check_names(lake):
    names = ["..", ".", "@x", "a//b", "a/../b", "a/", "/a", "//", "./a", "../main", "main/..", "@main", ".lake", "a" * 129,
             "a" * 255, "a" * 256, "a" * 5000, NFC, NFD, "e\u0301", "\u202egnp", "a b", "a\\b", "a:b", "a~1", "a^", "a..b",
             "a.lock", "-a", "*", *("a" + c for c in CONTROL), *(c + "a" for c in CONTROL)]
    with tests.case(f"{len(names)} names that no branch and no tag can have"):
        before, tags = lake.ctl("branch")["branches"], lake.ctl("tag")["tags"]
        for number, name in enumerate(names):
            commands = [("branch", "create", "--", name, "main"), ("tag", "create", "--", name, "main"),
                        ("branch", "rename", "--", "dev", name), ("branch", "delete", "--", name),
                        ("branch", "rename", "--", name, "new"), ("tag", "delete", "--", name)]
            for words in commands[number % 2:1 + number % 2] if number > 16 else commands:
                assert refused(lake, *words).code in (1, 2, 5), (words, name)
        assert lake.ctl("branch")["branches"] == before and lake.ctl("tag")["tags"] == tags
    with tests.case("names that differ by their case alone are two, also in the store"):
        for name in ("Case", "case", "CASE"):
            lake.ctl("branch", "create", name, "main")
            (lake / name / "which").write_text(name)
        for name in ("Case", "case", "CASE"):
            assert (lake / name / "which").read_text() == name
            lake.ctl("branch", "delete", name, "--force")
    with tests.case("files whose names differ by Unicode's normalisation are two: merged, restored, taken one by one"):
        for branch, text in (("main", "base"), ("dev", None)):
            if text:
                for name in (NFC, NFD):
                    (lake / branch / name).write_text(text)
                lake.ctl("commit", branch, "-m", "two")
                lake.ctl("branch", "create", "forms", branch)
        assert {NFC, NFD} <= set(os.listdir(lake / "forms"))
        for branch in ("main", "forms"):
            for name in (NFC, NFD):
                (lake / branch / name).write_text(f"{branch} {name}")
            lake.ctl("commit", branch, "-m", "changed")
        assert {c["path"] for c in refused(lake, "merge", "forms", "main").reply["conflicts"]} == {NFC, NFD}
        assert len(refused(lake, "merge", "forms", "main", "--take", f"source:{NFC}").reply["conflicts"]) == 1
        lake.ctl("merge", "forms", "main", "--take", f"source:{NFC}", "--take", f"target:{NFD}")
        assert (lake / "main" / NFC).read_text() == f"forms {NFC}" and (lake / "main" / NFD).read_text() == f"main {NFD}"
        lake.ctl("restore", "main", "--from", "main~2", "--", NFD)
        assert (lake / "main" / NFD).read_text() == "base" and (lake / "main" / NFC).read_text() == f"forms {NFC}"
        assert [change["path"] for change in lake.ctl("status", "main")["changes"]] == [NFD]
        lake.ctl("commit", "main", "-m", "restored")


def check_revisions(lake):
    bad = ["../main", "main/..", "main/../dev", "./main", "/main", "refs/branches/main", "main//", "..", ".", "@..", "@/",
           "main\n", "\nmain", "main\0x".split("\0", maxsplit=1)[0] + "\x01", "a" * 256, "f" * 5000, "~", "^", "main~-1",
           "main~99999999999999999999", "main^0x1", "main@{", "main@", "@@main", "main~1/../..", "../../../etc/passwd"]
    with tests.case("revisions that are paths, or nothing"):
        for revision in bad:
            for words in (("show", "--", revision), ("ls", "--", revision), ("log", "--", revision)):
                try:
                    lake.ctl(*(words if words[0] != "log" else ("log", revision))) if revision else None
                except Refused as refusal:
                    assert refusal.code in (1, 2, 5), (words, refusal)
                else:
                    raise AssertionError(words)
            path = f"{lake.mountpoint}/@{revision}"
            if "/" not in revision and len(path) < 4000:
                assert not os.path.lexists(path), revision
    with tests.case("the kernel goes up from a revision as from any directory, and no further"):
        assert os.path.samefile(lake / "@main/../main", lake / "main")
        assert os.path.samefile(lake / "@main/t/../../dev/..", lake.mountpoint)
        for path in ("@main/../@none", "@main/../..x", "main/../@main/../.lake/none"):
            assert not os.path.lexists(lake / path)
        try:
            open(lake / "main/../@main/t/new", "w")
            raise AssertionError("written")
        except OSError as failure:
            assert failure.errno == errno.EROFS


def check_paths(lake):
    outside = lake.scratch / "beyond"
    outside.mkdir(exist_ok=True)
    (outside / "x").write_text("outside\n")
    top = lake / "main/paths"
    top.mkdir()
    (top / "x").write_text("inside\n")
    os.symlink(outside, top / "link")
    lake.ctl("commit", "main", "-m", "paths")
    (top / "x").write_text("changed\n")
    lake.ctl("commit", "main", "-m", "changed")
    leads = ["../x", "a/../../x", "..", "paths/../../x", "/etc/passwd", str(outside / "x"), f"{top}/../../../x",
             f"{lake.mountpoint}/../beyond/x", f"{lake.mountpoint}/.lake/status", "paths/" + "../" * 500 + "x",
             "x" * 5000, "paths/link/x"]
    with tests.case(f"{len(leads)} paths that lead elsewhere, given to each command that takes one"):
        for path in leads:
            for words in (("restore", "main", "--from", "main~1", "--", path), ("cat", f"main:{path}"),
                          ("ls", f"main:{path}"), ("du", f"main:{path}"), ("warm", f"main:{path}"),
                          ("annotate", f"main:{path}"), ("commit", "main", "-m", "x", "--", path),
                          ("merge", "dev", "main", "--take", f"source:{path}"),
                          ("merge", "dev", "main", "--take", f"target:{path}")):
                try:
                    lake.ctl(*words)
                except Refused as refusal:
                    assert refusal.code in (1, 2, 5), (words, refusal)
                else:
                    raise AssertionError(words)
        assert (outside / "x").read_text() == "outside\n" and os.listdir(outside) == ["x"]
    with tests.case("typed in a directory that a link or .. led to, they are what is meant there"):
        for here, path in ((top, "../paths/x"), (lake / "dev/..", "main/paths/x"), (top, f"{top}/../paths/x")):
            done = subprocess.run([BIN / "lakectl", "cat", path], cwd=here, capture_output=True, check=False)
            assert done.returncode in (0, 1, 2, 5) and b"outside" not in done.stdout, done
        done = subprocess.run([BIN / "lakectl", "--lake", lake.directory, "restore", "main", "--", "link/x"], cwd=top,
                              capture_output=True, check=False)
        assert done.returncode != 0 and (outside / "x").read_text() == "outside\n", done
    with tests.case("a directory that became a link outside is restored in its own place"):
        shutil.rmtree(top)
        os.symlink(outside, top)
        for path in ("paths/x", "paths"):
            try:
                lake.ctl("restore", "main", "--from", "main~1", "--", path)
            except Refused as refusal:
                assert path == "paths/x" and refusal.code in (1, 2, 5), refusal
        assert (outside / "x").read_text() == "outside\n" and os.listdir(outside) == ["x"]
        assert not top.is_symlink() and (top / "x").read_text() == "inside\n"


def main():
    with Lake() as lake:
        (lake / "main/t").mkdir()
        (lake / "main/t/keep").write_text("kept")
        lake.ctl("commit", "main", "-m", "first")
        lake.ctl("branch", "create", "dev", "main")
        for check in (check_archives, check_names, check_revisions, check_paths):
            check(lake)
        with tests.case("all of it is sound"):
            lake.ctl("fsck")
    tests.done()


main()
