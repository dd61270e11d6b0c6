#!/usr/bin/env python3
"""Protected branches: read-only here, and no way around it on this host or another."""
import errno
import mmap
import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, Clone, Lake, Tests, refused, until  # noqa: E402

tests = Tests()
REFUSED = 4


def fails(wanted, function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except OSError as problem:
        assert problem.errno == wanted, f"{problem}, wanted {errno.errorcode[wanted]}"
        return
    raise AssertionError(f"succeeded, wanted {errno.errorcode[wanted]}")


def head(lake, branch="main"):
    return {item["name"]: item["commit"] for item in lake.ctl("branch", "list")["branches"]}[branch]


def refuses(lake, *arguments):
    """Exit 4, and no branch anywhere is another than before."""
    before = lake.ctl("branch", "list")["branches"]
    refusal = refused(lake, *arguments)
    assert refusal.code == REFUSED, refusal
    assert lake.ctl("branch", "list")["branches"] == before
    return refusal.reply["error"]["message"]


def fill(lake):
    main = lake / "main"
    (main / "table").mkdir()
    (main / "table/one").write_text("one\n")
    (main / "file").write_text("bytes\n")
    os.symlink("file", main / "link")
    os.setxattr(main / "file", "user.kept", b"yes")
    lake.ctl("commit", "main", "-m", "first")
    (main / "file").write_text("bytes 2\n")
    lake.ctl("commit", "main", "-m", "second")


def every_change_is_erofs(main):
    file, table = main / "file", main / "table"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC,
                  os.O_WRONLY | os.O_APPEND):
        fails(errno.EROFS, os.open, file, flags)
    fails(errno.EROFS, os.open, main / "new", os.O_CREAT | os.O_WRONLY, 0o644)
    fails(errno.EROFS, os.open, table, os.O_TMPFILE | os.O_WRONLY, 0o644)
    fails(errno.EROFS, os.mkdir, main / "new")
    fails(errno.EROFS, os.mknod, main / "new")
    fails(errno.EROFS, os.mkfifo, table / "new")
    fails(errno.EROFS, os.symlink, "x", main / "new")
    fails(errno.EROFS, os.link, file, main / "new")
    fails(errno.EROFS, os.rename, file, main / "new")
    fails(errno.EROFS, os.rename, table, main / "new")
    fails(errno.EROFS, os.replace, table / "one", file)
    fails(errno.EROFS, os.unlink, file)
    fails(errno.EROFS, os.unlink, main / "link")
    fails(errno.EROFS, os.rmdir, table)
    fails(errno.EROFS, os.truncate, file, 3)
    fails(errno.EROFS, os.chmod, file, 0o600)
    fails(errno.EROFS, os.chmod, main, 0o700)
    fails(errno.EROFS, os.chown, file, 1, 1)
    fails(errno.EROFS, os.utime, file, (1, 1))
    fails(errno.EROFS, os.setxattr, file, "user.new", b"x")
    fails(errno.EROFS, os.setxattr, table, "user.new", b"x")
    fails(errno.EROFS, os.removexattr, file, "user.kept")
    # and what is there is read as before
    assert (main / "table/one").read_text() == "one\n"
    assert os.readlink(main / "link") == "file" and os.getxattr(file, "user.kept") == b"yes"
    assert sorted(os.listdir(main)) == ["file", "link", "table"]
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:5] == b"bytes"


def every_command_is_refused(lake, first):
    """`first`: a commit before the head."""
    assert "main" in refuses(lake, "commit", "main", "-m", "x", "--allow-empty")
    refuses(lake, "reset", "main", first)
    refuses(lake, "reset", "main", first, "--discard")
    refuses(lake, "undo", "main")
    refuses(lake, "undo", "main", "--discard")
    refuses(lake, "revert", "main", "main")
    refuses(lake, "cherry-pick", "side", "main")
    refuses(lake, "branch", "delete", "main")
    refuses(lake, "branch", "delete", "main", "--force")
    refuses(lake, "branch", "rename", "main", "elsewhere")
    refuses(lake, "restore", "main", "--from", first, "--", ".")
    # these names are taken, which is reason enough
    assert refused(lake, "branch", "rename", "side", "main").code == 1
    assert refused(lake, "branch", "create", "main", "side").code == 1


def read_only(lake):
    main = lake / "main"
    with tests.case("a protected branch is read-only at once, whatever is tried"):
        lake.ctl("branch", "create", "side", "main")
        (lake / "side/new").write_text("on the side\n")
        lake.ctl("commit", "side", "-m", "side")
        reply = lake.ctl("protect", "main")
        assert reply["protected"] and reply["protection"]["no_direct_writes"], reply
        every_change_is_erofs(main)
        assert lake.ctl("status", "main")["changes"] == []
        (lake / "side/more").write_text("others are not\n")
        (lake / "side/more").unlink()

    with tests.case("every command that would move it is refused, and it stands"):
        every_command_is_refused(lake, "main~1")
        every_change_is_erofs(main)

    with tests.case("status and branch list say so, and what to do"):
        status = lake.ctl("status", "main")
        assert status["protection"] == {"no_direct_writes": True, "read_only": True}, status
        text = subprocess.run([BIN / "lakectl", "--lake", lake.directory, "status", "main"],
                              capture_output=True, text=True, check=True).stdout
        assert "main is protected: read-only. `lakectl branch create NAME main`" in text, text
        listed = {item["name"]: item for item in lake.ctl("branch", "list")["branches"]}
        assert listed["main"]["protected"] and "protected" not in listed["side"]

    with tests.case("options replace those given before; unprotect lifts all"):
        reply = lake.ctl("protect", "main", "--require-audits")
        assert reply["protection"] == {"require_audits": True, "read_only": True}
        assert "no audits are configured" in reply["warnings"][0]
        every_command_is_refused(lake, "main~1")
        every_change_is_erofs(main)
        before = head(lake)
        assert not lake.ctl("unprotect", "main")["protected"]
        (main / "file").write_text("bytes 3\n")
        lake.ctl("commit", "main", "-m", "third")
        assert head(lake) != before
        lake.ctl("undo", "main")
        assert head(lake) == before


def uncommitted(lake):
    main = lake / "main"
    with tests.case("what was uncommitted before stays, is shown, and can be thrown away"):
        (main / "file").write_text("never committed\n")
        (main / "table/two").write_text("two\n")
        lake.ctl("protect", "main")
        fails(errno.EROFS, (main / "file").write_text, "more")
        assert (main / "file").read_text() == "never committed\n"
        changes = [change["path"] for change in lake.ctl("status", "main")["changes"]]
        assert changes == ["file", "table/two"], changes
        refuses(lake, "commit", "main", "-m", "x")
        refuses(lake, "commit", "main", "-m", "x", "--", "file")
        text = subprocess.run([BIN / "lakectl", "--lake", lake.directory, "status", "main"],
                              capture_output=True, text=True, check=True).stdout
        assert "cannot be committed here" in text, text

    with tests.case("that holds after the daemon has started anew, for the first write"):
        lake.umount()
        lake.mount()
        fails(errno.EROFS, (main / "table/two").write_text, "more")
        assert (main / "table/two").read_text() == "two\n"
        lake.kill()
        lake.mount()
        fails(errno.EROFS, os.unlink, main / "table/two")
        lake.ctl("restore", "main", "--", ".")
        assert lake.ctl("status", "main")["changes"] == []
        assert (main / "file").read_text() == "bytes 2\n"
        lake.ctl("unprotect", "main")

    with tests.case("a file that was open for writing cannot be committed, nor changed through us"):
        with open(main / "open", "wb", buffering=0) as opened:
            opened.write(b"before")
            lake.ctl("protect", "main")
            if "--no-passthrough" in lake.options:
                fails(errno.EROFS, opened.write, b"after")
                fails(errno.EROFS, os.posix_fallocate, opened.fileno(), 0, 4096)
            fails(errno.EROFS, os.ftruncate, opened.fileno(), 0)
            refuses(lake, "commit", "main", "-m", "x", "--allow-open")
        lake.ctl("restore", "main", "--", ".")
        lake.ctl("unprotect", "main")


def names(lake):
    group = "daemon"
    with tests.case("the name of a protected branch that was deleted stays protected"):
        lake.ctl("branch", "create", "prod", "main")
        lake.ctl("protect", "prod", "--publishers", group)
        nobody = refuses(lake, "commit", "prod", "-m", "x", "--allow-empty")
        assert "group 'daemon'" in nobody, nobody
        refuses(lake, "branch", "delete", "prod")
        # as a member may
        lake.ctl("protect", "prod", "--publishers", "root")
        lake.ctl("commit", "prod", "-m", "x", "--allow-empty")
        lake.ctl("branch", "delete", "prod")
        refuses(lake, "branch", "rename", "side", "prod")
        lake.ctl("undo", "prod")
        lake.ctl("protect", "prod", "--publishers", group)
        lake.ctl("unprotect", "prod")
        lake.ctl("branch", "delete", "prod")
        lake.ctl("branch", "create", "prod", "main")
        lake.ctl("branch", "delete", "prod")

    with tests.case("a group that this host does not know is refused"):
        assert refused(lake, "protect", "side", "--publishers", "no-such-group").code == 2
        assert refused(lake, "protect", "none").code == 5
        assert refused(lake, "protect", "../side").code == 2

    with tests.case("only the lake's owner and root may protect, and lift it"):
        lake.ctl("protect", "main")
        user = pwd.getpwnam("nobody")
        config = lake.directory / "lake.json"
        kept = config.read_text()
        lake.umount()
        config.write_text(kept.rstrip().rstrip("}").rstrip() + ', "control_group": "%s"}\n'
                          % subprocess.run(["id", "-gn", "nobody"], capture_output=True, text=True,
                                           check=True).stdout.strip())
        lake.mount()
        for path in (lake.directory, *lake.directory.parents):
            if path == pathlib.Path("/var/tmp"):
                break
            path.chmod(path.stat().st_mode | 0o055)
        programs = lake.scratch / "bin"
        programs.mkdir()
        programs.chmod(0o755)
        shutil.copy(BIN / "lakectl", programs / "lakectl")
        for words in (["unprotect", "main"], ["protect", "side"]):
            done = subprocess.run([programs / "lakectl", "--lake", lake.directory, *words],
                                  capture_output=True, text=True, check=False, user=user.pw_uid,
                                  group=user.pw_gid, extra_groups=[])
            assert done.returncode == REFUSED and "only root and the owner" in done.stderr, done
        refuses(lake, "undo", "main")


def without_daemon(lake):
    with tests.case("without a daemon every command is refused alike"):
        lake.umount()
        every_command_is_refused(lake, "main~1")
        lake.mount()


def another_host(lake):
    with tests.case("another host is bound by it, and sees it within its refresh interval"):
        lake.ctl("unprotect", "main")
        with Clone(lake, *lake.options) as clone:
            (clone / "main/theirs").write_text("not committed\n")
            assert head(clone) == head(lake)
            lake.ctl("protect", "main")
            # it may not have heard of it
            assert refused(clone, "commit", "main", "-m", "x").code == REFUSED
            # but now it has
            fails(errno.EROFS, (clone / "main/theirs").write_text, "more")
            every_command_is_refused(clone, "main~1")
            clone.ctl("restore", "main", "--", ".")
            every_change_is_erofs(clone / "main")
            lake.ctl("unprotect", "main")
            until(lambda: not clone.ctl("status", "main").get("protection"))
            until(lambda: writable(clone / "main/theirs"))
            clone.ctl("commit", "main", "-m", "theirs")
            lake.ctl("protect", "main", "--require-audits")
            until(lambda: clone.ctl("status", "main").get("protection"))
            fails(errno.EROFS, os.mkdir, clone / "main/new")
            clone.umount()
            every_command_is_refused(clone, "main~1")
            clone.ctl("unprotect", "main")
            clone.mount()
        until(lambda: writable(lake / "main/theirs"))

    with tests.case("a host that races the protection loses or was first"):
        with Clone(lake, *lake.options) as clone:
            for turn in range(5):
                branch = f"race{turn}"
                lake.ctl("branch", "create", branch, "main")
                (clone / branch / "new").write_text("x\n")
                racing = subprocess.Popen([BIN / "lakectl", "--lake", clone.directory, "--json", "commit", branch,
                                           "-m", "racing"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(0.002 * turn)
                lake.ctl("protect", branch)
                moved = head(lake, branch)
                assert racing.wait() in (0, REFUSED)
                assert (racing.returncode == 0) == (head(lake, branch) != head(lake, "main"))
                assert head(lake, branch) == moved, "it moved after it was protected"


def writable(path):
    try:
        path.write_text("again\n")
    except OSError as problem:
        assert problem.errno == errno.EROFS, problem
        return False
    return True


def run(*options):
    with Lake(*options) as lake:
        fill(lake)
        read_only(lake)
        uncommitted(lake)
        if os.geteuid() == 0:
            names(lake)
        else:
            tests.skip("publishers and administrators", "needs root")
            lake.ctl("protect", "main")
        without_daemon(lake)
        another_host(lake)


print("# passed through" if os.geteuid() == 0 else "# copied")
run()
print("# copied by the daemon")
run("--no-passthrough")
tests.done()
