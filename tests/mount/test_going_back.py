#!/usr/bin/env python3
"""Going back: revert, undo, restore and reset as users meet them; and every way to name a revision, in every
command and path that takes one."""
import datetime
import glob
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Lake, Refused, Tests, refused  # noqa: E402

tests = Tests()
FILES = 10001  # one more than `restore` counts


def write(lake, branch, **files):
    """t_a="x" writes t/a."""
    for name, text in files.items():
        path = lake / branch / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def commit(lake, branch, **files):
    write(lake, branch, **files)
    return lake.ctl("commit", branch, "-m", f"to {branch}")["commit"]


def text(lake, branch, name):
    return (lake / branch / name.replace("_", "/")).read_text()


def head(lake, branch):
    return lake.ctl("log", branch, "-n", "1")["commits"][0]["id"]


def iso(moment, digits=3, zone="Z"):
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06}"[:20 + min(digits, 6)] + "0" * (digits - 6) + zone


def now():
    """A time that lies between two moves."""
    time.sleep(0.003)
    moment = datetime.datetime.now(datetime.timezone.utc)
    time.sleep(0.003)
    return moment


def run(lake, *arguments, **options):
    return subprocess.run([BIN / "lakectl", "--lake", lake.directory, *map(str, arguments)], capture_output=True,
                          text=True, check=False, **options)


# -- every name of a revision, everywhere --


class Names:
    """One commit and all that names it; `before` is its parent, `after` stands later."""

    def __init__(self, lake):
        self.before = commit(lake, "main", t_a="1", t_keep="k")
        self.id = commit(lake, "main", t_a="2", **{"t_one.parquet": "P1", "t_two.parquet": "P2"})
        moment = now()
        commit(lake, "main", t_a="3")
        commit(lake, "main", t_a="4")
        lake.ctl("branch", "create", "stays", self.id)
        lake.ctl("tag", "create", "v1", self.id)
        lake.ctl("branch", "create", "other", self.before)
        commit(lake, "other", o_x="o")
        lake.ctl("merge", "stays", "other")
        east = moment + datetime.timedelta(hours=2)
        west = moment - datetime.timedelta(hours=9, minutes=30)
        tomorrow = moment + datetime.timedelta(days=1)
        self.forms = {
            "branch": "stays", "tag": "v1", "id": self.id, "prefix": self.id[:6], "capitals": self.id[:12].upper(),
            "ancestor": "main~2", "parent": "other^2", "date": f"stays@{tomorrow:%Y-%m-%d}",
            "minute": f"stays@{tomorrow:%Y-%m-%dT%H:%M}", "zulu": f"main@{iso(moment)}",
            "no zone": f"main@{iso(moment, zone='')}", "east": f"main@{iso(east, zone='+02:00')}",
            "west": f"main@{iso(west, zone='-09:30')}", "nanoseconds": f"main@{iso(moment, 9)}",
            "steps": f"main@{iso(datetime.datetime.now(datetime.timezone.utc))}~1^1"}


def told(lake, form):
    """What commands that only tell take `form` for."""
    yield "show", lake.ctl("show", form)["id"]
    yield "log", lake.ctl("log", form, "-n", "1")["commits"][0]["id"]
    yield "diff from", lake.ctl("diff", form, "main")["from"]
    yield "diff to", lake.ctl("diff", "main", form)["to"]
    yield "ls", lake.ctl("ls", form)["commit"]
    yield "ls of a path", lake.ctl("ls", f"{form}:t")["commit"]
    yield "annotate", lake.ctl("annotate", f"{form}:t/a")["entries"][0]["commit"]["id"]


def made(lake, names, form, number):
    """What commands that make something make of it."""
    scratch, early = f"s{number}", f"e{number}"
    yield "branch create", lake.ctl("branch", "create", scratch, form)["commit"]
    yield "tag create", lake.ctl("tag", "create", f"t{number}", form)["commit"]
    lake.ctl("revert", form, scratch)
    yield "revert", lake.ctl("show", scratch)["meta"]["reverts"]
    yield "reset", lake.ctl("reset", scratch, form)["commit"]
    lake.ctl("branch", "create", early, names.before)
    lake.ctl("cherry-pick", form, early)
    yield "cherry-pick", lake.ctl("show", early)["meta"]["cherry-picked-from"]
    lake.ctl("undo", early)
    write(lake, early, t_late="uncommitted")
    lake.ctl("restore", early, "--from", form, "--", "t")
    tree = {name: text(lake, early, f"t_{name}") for name in os.listdir(lake / early / "t")}
    yield "restore", names.id if tree == TABLE else tree
    lake.ctl("restore", early, "--", "t")
    commit(lake, early, e_x="e")
    lake.ctl("merge", form, early)
    yield "merge", lake.ctl("show", early)["parents"][1]


SPELLINGS = ("capitals", "minute", "no zone", "west")
TABLE = {"a": "2", "keep": "k", "one.parquet": "P1", "two.parquet": "P2"}


def test_names(lake):
    names = Names(lake)
    for number, (kind, form) in enumerate(names.forms.items()):
        with tests.case(f"{kind}: every command takes it for the same commit"):
            # Other spellings of one time are told apart, if at all, before a command sees them.
            making = () if kind in SPELLINGS else made(lake, names, form, number)
            for what, found in (*told(lake, form), *making):
                assert found == names.id, f"{what} {form}: {found}, not {names.id}"
            assert run(lake, "cat", f"{form}:t/a").stdout == "2"
            assert lake.ctl("du", form)["files"] == 4
            assert lake.ctl("warm", f"{form}:t")["files"] == 4
        with tests.case(f"{kind}: as a path, in globs and as the current directory"):
            view = lake / f"@{form}"
            assert (view / "t/a").read_text() == "2"
            found = sorted(glob.glob(f"{glob.escape(str(view))}/t/*.parquet"))
            assert [pathlib.Path(path).read_text() for path in found] == ["P1", "P2"], found
            assert lake.ctl("warm", view / "t")["files"] == 4
            if kind not in ("tag", "ancestor", "east"):
                continue
            for words in (["log", "-n", "1"], ["log", "-n", "1", "--", "a"], ["show"], ["annotate"], ["ls"], ["du"]):
                inside = run(lake, "--json", *words, cwd=view / "t")
                assert inside.returncode == 0 and (words[-1] == "du" or names.id in inside.stdout), (words, inside)
    with tests.case("no view is ever listed"):
        assert not [name for name in os.listdir(lake.mountpoint) if name[0] in "@."]
    return names


def test_paths_behind_times(lake):
    with tests.case("a colon behind a time is the path's, however the path begins"):
        commit(lake, "main", **{"12_x": "twelve", "30": "thirty", "a:b": "colon", "a~1": "tilde"})
        for time_text in ("2999-01-01", "2999-01-01T10:00:00", "2999-01-01T10:00Z", "2999-01-01T10:00+02:00",
                          "2999-01-01T10:00:00.5", "2999-01-01T10:00~0", "2999-01-01T10:00^0"):
            for path, content in (("12/x", "twelve"), ("30", "thirty"), ("a:b", "colon"), ("a~1", "tilde")):
                done = run(lake, "cat", f"main@{time_text}:{path}")
                assert done.stdout == content, (time_text, path, done)


def test_precedence(lake, names):
    with tests.case("a branch hides a tag and a prefix of its name, nothing hides a whole id"):
        lake.ctl("tag", "create", "both", names.before)
        lake.ctl("branch", "create", "both", names.id)
        assert lake.ctl("show", "both")["id"] == names.id
        lake.ctl("branch", "create", names.id[:8], names.before)
        assert lake.ctl("show", names.id[:8])["id"] == names.before
        assert lake.ctl("show", names.id[:9])["id"] == names.id
        lake.ctl("branch", "create", names.id, names.before)
        assert lake.ctl("show", names.id)["id"] == names.id
        for branch in ("both", names.id, names.id[:8]):
            lake.ctl("branch", "delete", branch)
        assert lake.ctl("show", "both")["id"] == names.before


def fails(lake, revision, code, *words, everywhere=False):
    commands = [["ls", revision], ["restore", "main", "--from", revision, "--", "t"]]
    if everywhere:
        commands += [["show", revision], ["log", revision], ["diff", revision, "main"], ["diff", "main", revision],
                     ["cat", f"{revision}:t/a"], ["branch", "create", "never", revision], ["reset", "main", revision],
                     ["merge", revision, "main"], ["revert", revision, "main"], ["warm", f"{revision}:t"]]
    for command in commands:
        refusal = refused(lake, *command)
        assert refusal.code == code, (command, refusal)
        for word in words:
            assert word in refusal.reply["error"]["message"], (command, refusal)
    assert not (lake / f"@{revision}").exists()


def test_wrong_names(lake, names):
    with tests.case("what does not exist is told as such, with exit 5"):
        fails(lake, "v9", 5, "no branch, tag or commit 'v9'", everywhere=True)
        fails(lake, "mian", 5, "did you mean 'main'?")
        fails(lake, names.id[:5], 5, "shorter than 6")
        fails(lake, "000000", 5, "no branch, tag or commit")
        fails(lake, "main~999", 5, "beyond the first commit")
        fails(lake, "main^2", 5, "1 parent")
        fails(lake, "none@2999-01-01", 5, "no branch 'none'")
        fails(lake, "v1@2999-01-01", 5, "no branch 'v1'")
        fails(lake, "main@2020-01-01", 5, "no branch 'main' at 2020-01-01T23:59:59.999Z", "made at",
              everywhere=True)
        fails(lake, "stays@2026-01-01T10:00", 5, names.id[:12])
    with tests.case("what is no revision is, with exit 2"):
        for time_text in ("2026-13-01", "2026-02-29", "2026-11-21T25:00", "2026-11-21T10", "2026-11-21 10:00",
                          "2026-11-21T10:00+2", "yesterday", "", "{1}"):
            refusal = refused(lake, "show", f"main@{time_text}")
            assert refusal.code == 2 and "is not a time" in str(refusal), refusal
        for form in ("", "~1", "main~x", "main^^^x", "@2026-01-01", "ma in"):
            assert refused(lake, "show", form).code == 2, form
    with tests.case("one revision to compare with nothing is asked about"):
        refusal = refused(lake, "diff", "main~1")
        assert refusal.code == 2 and "which revision or branch" in str(refusal), refusal


# -- where a branch stood --


def test_times(lake):
    with tests.case("renamed, deleted and made again: a branch knows where it stood, and when nowhere"):
        lake.ctl("branch", "create", "b", "main")
        early = iso(now())
        first = commit(lake, "b", b_x="1")
        one = iso(now())
        lake.ctl("branch", "rename", "b", "c")
        renamed = iso(now())
        assert head(lake, f"c@{one}") == head(lake, f"b@{one}") == first
        assert refused(lake, "show", f"b@{renamed}").code == 5
        lake.ctl("branch", "delete", "c")
        gone = iso(now())
        assert head(lake, f"c@{one}") == first
        assert "was deleted before" in str(refused(lake, "show", f"c@{gone}"))
        lake.ctl("branch", "create", "c", "main")
        assert head(lake, f"c@{iso(now())}") == head(lake, "main")
        assert head(lake, f"c@{one}") == first
        assert head(lake, f"c@{early}") == head(lake, "main")
        assert refused(lake, "show", f"c@{gone}").code == 5
    with tests.case("a time without a zone is UTC wherever one is"):
        moment = now()
        commit(lake, "main", t_a="later")
        for zone in ("America/New_York", "Asia/Kolkata", "UTC"):
            done = run(lake, "log", "-n", "1", f"main@{iso(moment, zone='')}", env={**os.environ, "TZ": zone})
            assert head(lake, "main~1") in done.stdout, (zone, done)


def test_forgotten_moves(lake):
    lake.ctl("branch", "create", "busy", "main")
    first = commit(lake, "busy", y_x="first")
    moment = iso(now())
    second = commit(lake, "busy", y_x="second")
    between = iso(now())
    lake.ctl("reset", "busy", first)
    for number in range(66):
        lake.ctl("reset" if number % 2 else "undo", "busy", *([first] if number % 2 else []))
    with tests.case("before the last 64 moves the answer says that it may be another"):
        assert len(lake.ctl("reflog", "busy")["moves"]) == 64
        reply = lake.ctl("show", f"busy@{moment}")
        assert reply["id"] == first and "reaches back to" in reply["warnings"][0], reply
        assert "know of no reset" in run(lake, "log", f"busy@{between}").stderr
        for command in (["ls", f"busy@{moment}"], ["branch", "create", "back", f"busy@{moment}"]):
            assert lake.ctl(*command)["warnings"], command
        assert "warnings" not in lake.ctl("show", "busy@2999-01-01")
        assert text(lake, f"@busy@{moment}", "y_x") == "first"
        assert head(lake, "busy") == first and first != second


# -- revert --


def test_revert(lake):
    lake.ctl("branch", "create", "rev", "main")
    commit(lake, "rev", r_a="1", r_b="1")
    lake.ctl("branch", "create", "topic", "rev")
    commit(lake, "topic", r_a="2", r_new="n")
    commit(lake, "rev", q_x="1")
    merged = lake.ctl("merge", "topic", "rev")["commit"]
    with tests.case("reverting a merge takes away what it brought, and says what it was"):
        lake.ctl("revert", merged, "rev")
        assert text(lake, "rev", "r_a") == "1" and not (lake / "rev/r/new").exists()
        assert text(lake, "rev", "q_x") == "1"
        shown = lake.ctl("show", "rev")
        assert shown["message"] == 'Revert "Merge topic into rev"' and shown["meta"]["reverts"] == merged
    with tests.case("merging again does not bring it again, reverting the revert does"):
        assert lake.ctl("merge", "topic", "rev")["up_to_date"]
        lake.ctl("revert", "rev", "rev", "-m", "after all")
        assert text(lake, "rev", "r_a") == "2" and text(lake, "rev", "r_new") == "n"
        assert lake.ctl("show", "rev")["message"] == "after all"
    with tests.case("--mainline 2 goes back to what was merged; others are refused"):
        lake.ctl("revert", "--mainline", 2, merged, "rev")
        assert not (lake / "rev/q/x").exists() and text(lake, "rev", "r_a") == "2"
        lake.ctl("undo", "rev")
        for mainline in (0, 3):
            refusal = refused(lake, "revert", "--mainline", mainline, merged, "rev")
            assert refusal.code == 2 and "2 parents" in str(refusal), refusal
    with tests.case("what changed since is a conflict: its paths are listed, nothing moves, --take decides"):
        since = commit(lake, "rev", r_a="3")
        refusal = refused(lake, "revert", merged, "rev")
        assert refusal.code == 3 and [c["path"] for c in refusal.reply["conflicts"]] == ["r/a"], refusal.reply
        assert head(lake, "rev") == since and text(lake, "rev", "r_a") == "3" and text(lake, "rev", "r_new") == "n"
        lake.ctl("revert", merged, "rev", "--take", "target:r/a")
        assert text(lake, "rev", "r_a") == "3" and not (lake / "rev/r/new").exists()
        lake.ctl("undo", "rev")
        lake.ctl("revert", merged, "rev", "--take", "source:r")
        assert text(lake, "rev", "r_a") == "1" and not (lake / "rev/r/new").exists()
        assert "nothing of that change" in str(refused(lake, "revert", merged, "rev"))
    with tests.case("uncommitted changes elsewhere stay, those it would overwrite are named"):
        write(lake, "rev", q_y="uncommitted")
        lake.ctl("undo", "rev")
        assert text(lake, "rev", "r_a") == "3" and text(lake, "rev", "q_y") == "uncommitted"
        write(lake, "rev", r_new="mine")
        refusal = refused(lake, "revert", merged, "rev", "--take", "target:r/a")
        assert refusal.code == 3 and "r/new" in str(refusal) and text(lake, "rev", "r_new") == "mine", refusal


# -- undo --


def test_undo(lake):
    lake.ctl("branch", "create", "u", "main")
    with tests.case("a branch that has not moved has nothing to undo"):
        refusal = refused(lake, "undo", "u")
        assert refusal.code == 2 and "branch delete u" in str(refusal), refusal
    states = [head(lake, "u"), commit(lake, "u", u_x="1")]
    with tests.case("undoing again does it again"):
        for turn, undone in ((0, "commit"), (1, "undo commit"), (0, "redo commit"), (1, "undo commit")):
            reply = lake.ctl("undo", "u")
            assert reply["commit"] == states[turn] == head(lake, "u") and reply["undone"] == undone, reply
            assert (lake / "u/u/x").exists() == bool(turn)
    with tests.case("merge, reset, revert and cherry-pick go back alike"):
        lake.ctl("branch", "create", "v", states[0])
        picked = commit(lake, "v", v_x="1")
        for command in (["merge", "v", "u"], ["reset", "u", states[0]], ["revert", states[1], "u"],
                        ["cherry-pick", picked, "u"]):
            lake.ctl(*command)
            assert head(lake, "u") != states[1], command
            assert lake.ctl("undo", "u")["commit"] == head(lake, "u") == states[1], command
            assert text(lake, "u", "u_x") == "1" and not (lake / "u/v").exists(), command
    with tests.case("a branch gets its former name back, and uncommitted changes go along"):
        write(lake, "u", u_x="uncommitted")
        for name, other in (("w", "w"), ("w", "u")):
            lake.ctl("branch", "rename", "u", "w")
            reply = lake.ctl("undo", other)
            assert reply["branch"] == "u" and reply["undone"] == "branch rename u w", (name, reply)
            assert text(lake, "u", "u_x") == "uncommitted" and not (lake / "w").exists()
        assert lake.ctl("undo", "u")["branch"] == "w" and text(lake, "w", "u_x") == "uncommitted"
        assert lake.ctl("undo", "w")["branch"] == "u" and head(lake, "u") == states[1]
    with tests.case("names too long for the reflog are not said to have gone back"):
        lake.ctl("branch", "create", "l" * 128, "main")
        lake.ctl("branch", "rename", "l" * 128, "m" * 128)
        refusal = refused(lake, "undo", "m" * 128)
        assert refusal.code == 2 and "gave it its name" in str(refusal), refusal
        lake.ctl("branch", "delete", "m" * 128)
    with tests.case("a name that was given away is told, not made twice"):
        lake.ctl("branch", "rename", "v", "v2")
        commit(lake, "v2", v_x="2")
        refusal = refused(lake, "undo", "v")
        assert refusal.code == 5 and "branch rename v2 v" in str(refusal) and not (lake / "v").exists(), refusal
        lake.ctl("undo", "v2")
        lake.ctl("undo", "v2")
        lake.ctl("reset", "v2", states[0])
        lake.ctl("branch", "rename", "v2", "v3")
        lake.ctl("branch", "create", "v2", "main")
        assert "there is another 'v2'" in str(refused(lake, "undo", "v3"))
    with tests.case("a deleted branch comes back, and goes again"):
        for _ in range(2):
            lake.ctl("branch", "delete", "v3")
            assert lake.ctl("undo", "v3")["commit"] == states[0] == head(lake, "v3")
        assert lake.ctl("undo", "v3")["deleted"] and not (lake / "v3").exists()
        assert lake.ctl("undo", "v3")["undone"] == "redo branch delete" and (lake / "v3").exists()
        assert refused(lake, "undo", "never-was").code == 5
    with tests.case("uncommitted changes are kept, or named and kept"):
        lake.ctl("restore", "u", "--", ".")
        write(lake, "u", elsewhere="kept")
        lake.ctl("undo", "u")
        lake.ctl("undo", "u")
        lake.ctl("reset", "u", states[0])
        assert text(lake, "u", "elsewhere") == "kept"
        write(lake, "u", u_x="mine")
        refusal = refused(lake, "undo", "u")
        assert refusal.code == 3 and "u/x" in str(refusal) and text(lake, "u", "u_x") == "mine", refusal
        assert head(lake, "u") == states[0]
        with open(lake / "u/open", "w") as file:
            file.write("half")
            file.flush()
            assert refused(lake, "undo", "u", "--discard").code == 1
        lake.ctl("undo", "u", "--discard")
        assert text(lake, "u", "u_x") == "1" and not (lake / "u/elsewhere").exists()


def test_undo_elsewhere(lake):
    with tests.case("what another host did last is undone, and said whose it was"):
        other = lake.scratch / "other"
        subprocess.run([BIN / "lakectl", "-q", "clone", f"file://{lake.directory}/store", other], check=True)
        here = commit(lake, "u", u_x="here")
        subprocess.run([BIN / "lakectl", "-q", "--lake", other, "revert", "u", "u"], check=True)
        reply = lake.ctl("undo", "u")
        assert reply["undone"] == f"revert {here[:12]}" and reply["commit"] == here and reply["by"], reply
        assert text(lake, "u", "u_x") == "here"
        subprocess.run([BIN / "lakectl", "-q", "--lake", other, "undo", "u"], check=True)
        assert lake.ctl("undo", "u")["undone"] == f"redo revert {here[:12]}" and head(lake, "u") == here


# -- reset --


def test_reset(lake):
    with tests.case("the old head is in the reflog, and its id leads back"):
        old = head(lake, "main")
        lake.ctl("reset", "main", "main~3")
        moves = lake.ctl("reflog", "main")["moves"]
        assert moves[0]["before"] == old and moves[0]["command"] == f"reset {moves[0]['after'][:12]}", moves[0]
        assert old[:12] in run(lake, "reflog", "main").stdout
        lake.ctl("reset", "main", moves[1]["after"][:12])
        assert head(lake, "main") == old


# -- restore --


def restored_in(lake, table, since):
    """Milliseconds of restoring a deleted table, and of committing that, with what it stored."""
    begin = time.monotonic()
    reply = lake.ctl("restore", "main", "--from", since, "--", table)
    middle = time.monotonic()
    done = lake.ctl("commit", "main", "-m", f"{table} is back")
    return (middle - begin) * 1000, (time.monotonic() - middle) * 1000, reply, done


def test_restore(lake):
    for name, files in (("few", 10), ("lots", FILES)):
        (lake / "main" / name).mkdir()
        directory = os.open(lake / "main" / name, os.O_DIRECTORY)
        for number in range(files):
            descriptor = os.open(f"{number}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=directory)
            os.write(descriptor, b"%d" % number)
            os.close(descriptor)
        os.close(directory)
    since = commit(lake, "main")
    empty = lake.ctl("log", "main", "--first-parent")["commits"][-1]["id"]
    took = {"few": [], "lots": []}
    with tests.case("a deleted table comes back as a change to commit, whatever its size, storing no content"):
        for table in ("few", "lots", "few", "lots", "few", "lots"):
            assert lake.ctl("restore", "main", "--from", empty, "--", table)["restored"] >= 11
            assert not (lake / "main" / table).exists()
            lake.ctl("commit", "main", "-m", "gone")
            *milliseconds, reply, done = restored_in(lake, table, since)
            took[table].append(milliseconds[0])
            assert (reply["restored"], reply.get("more", False)) == ((11, False) if table == "few" else (10000, True))
            assert done["bytes_new"] == 0 and done["bytes_stored"] < 8192, done
            assert text(lake, "main", f"{table}_7") == "7"
        assert not lake.ctl("diff", since, "main")["changes"]
        few, lots = (statistics.median(took[table]) for table in ("few", "lots"))
        print(f"# 10 files {few:.1f} ms, {FILES} files {lots:.1f} ms")
        assert lots < 20 * few + 100, took
    with tests.case("one path of many, what is uncommitted there, and what neither side has"):
        commit(lake, "main", lots_7="seven", lots_8="eight")
        write(lake, "main", lots_9="nine", lots_new="new")
        assert lake.ctl("restore", "main", "--from", since, "--", "lots/7")["restored"] == 1
        assert [text(lake, "main", f"lots_{n}") for n in (7, 8, 9)] == ["7", "eight", "nine"]
        assert lake.ctl("restore", "main", "--", "lots")["restored"] == 3
        assert text(lake, "main", "lots_7") == "seven" and not (lake / "main/lots/new").exists()
        refusal = refused(lake, "restore", "main", "--from", since, "--", "lots/never")
        assert refusal.code == 5 and "lots/never" in str(refusal), refusal
    with tests.case("files open for writing there are named, others do not matter"):
        with open(lake / "main/lots/7", "a") as file:
            file.write("more")
            file.flush()
            refusal = refused(lake, "restore", "main", "--from", since, "--", "lots")
            assert "lots/7" in str(refusal) and text(lake, "main", "lots_7") == "sevenmore", refusal
            lake.ctl("restore", "main", "--from", empty, "--", "few")
            assert not (lake / "main/few").exists()
        lake.ctl("restore", "main", "--", ".")
        assert not lake.ctl("status", "main")["changes"]


def main():
    with Lake() as lake:
        names = test_names(lake)
        test_paths_behind_times(lake)
        test_precedence(lake, names)
        test_wrong_names(lake, names)
        test_times(lake)
        test_forgotten_moves(lake)
        test_revert(lake)
        test_undo(lake)
        test_undo_elsewhere(lake)
        test_reset(lake)
        test_restore(lake)
    tests.done()


main()
