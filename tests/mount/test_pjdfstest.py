#!/usr/bin/env python3
"""pjdfstest, both ways of serving files: every case passes but those named here (fs/mount/README.md says why).

The suite runs the Rust version, which install.sh builds. PJDFSTEST=DIR runs the C version as well, from
a built copy of its sources: 8,800 cases, some minutes.
"""
import collections
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import ROOT, Lake, Tests  # noqa: E402

PROGRAM = ROOT / "build" / "cargo" / "bin" / "pjdfstest"
COPY = os.environ.get("PJDFSTEST")
WAYS = (("passthrough", ()), ("copying", ("--no-passthrough",)))
tests = Tests()

# A directory's link count is 1, "not counted".
EXCLUDED = {"rename::updates_link_parent"}
EXCLUDED_C = {("rename/24.t", number) for number in (4, 5, 8, 9)}
# Opening a running program with O_RDONLY and O_TRUNC: it depends on whether it still runs then.
UNCERTAIN = {"open::etxtbsy"}
# Not of this system or kind of mount; all others must run.
SKIPPED = re.compile(r"chflags|nfsv4acl|erofs|link_count_max|birthtime")
CONFIGURATION = f"""
[features]
posix_fallocate = {{}}
rename_ctime = {{}}
utime_now = {{}}
utimensat = {{}}
[settings]
naptime = 0.02
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""


def judge(failed, excluded, uncertain, text=""):
    """A case that begins to pass must leave the list, too."""
    worse, better = failed - excluded - uncertain, excluded - failed
    assert not worse and not better, f"failed: {sorted(worse)}; passed: {sorted(better)}\n{text}"


def run_rust(lake):
    """Between branches it must be EXDEV: another one is the second file system."""
    configuration = lake.scratch / "pjdfstest.toml"
    configuration.write_text(CONFIGURATION)
    done = subprocess.run([PROGRAM, "-c", configuration, "-p", lake / "work", "-s", lake / "main"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    cases = collections.defaultdict(list)
    for name, verdict in re.findall(r"(?m)^(\S+::\S+) +(ok|skipped|FAILED)$", text):
        cases[verdict].append(name)
    failed = set(cases["FAILED"])
    print(f"# {len(cases['ok'])} passed, {len(failed)} excluded, {len(cases['skipped'])} not for this system")
    assert sum(map(len, cases.values())) == int(re.search(r"(\d+) total", text)[1]), text
    judge(failed, EXCLUDED, UNCERTAIN, text)
    unknown = [name for name in cases["skipped"] if not SKIPPED.search(name)]
    assert not unknown, f"skipped: {unknown}"
    assert len(cases["ok"]) > 300, text


def run_script(script, directory):
    """Numbers of the cases that passed and failed; what the suite itself expects to fail passes."""
    done = subprocess.run(["sh", script], cwd=directory, capture_output=True, text=True, check=False)
    verdicts = re.findall(r"(?m)^(not )?ok (\d+)(.*)$", done.stdout)
    planned = sum(int(number) for number in re.findall(r"(?m)^1\.\.(\d+)", done.stdout))
    failed = {int(number) for bad, number, rest in verdicts if bad and "# TODO" not in rest}
    if len(verdicts) != planned:
        failed.add(0)  # it did not come to its end
    return len(verdicts), failed


def run_c(lake):
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch) / "pjdfstest"
        shutil.copytree(COPY, copy)
        os.chmod(scratch, 0o755)  # other users run the program
        # To be judged as strictly as a disk's.
        settings = copy / "tests" / "conf"
        settings.write_text(settings.read_text() + "\nfs=EXT4\n")
        scripts = sorted((copy / "tests").rglob("*.t"))
        assert scripts, f"no tests in {COPY}"
        count, failed = 0, set()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            jobs = {pool.submit(run_script, script, lake / "work"): script for script in scripts}
            for job in concurrent.futures.as_completed(jobs):
                ran, bad = job.result()
                count += ran
                failed |= {(str(jobs[job].relative_to(copy / "tests")), number) for number in bad}
    print(f"# {count - len(failed)} of {count} passed, {len(failed & EXCLUDED_C)} excluded")
    judge(failed, EXCLUDED_C, set())


for way, options in WAYS:
    if os.geteuid() != 0:
        tests.skip(f"{way}: pjdfstest", "needs root, to be other users")
        continue
    if not PROGRAM.exists() and not COPY:
        tests.skip(f"{way}: pjdfstest", "not installed")
        continue
    with Lake(*options) as lake:
        lake.ctl("branch", "create", "work")
        # As other users reach it.
        os.chmod(lake.scratch, 0o755)
        if PROGRAM.exists():
            with tests.case(f"{way}: pjdfstest"):
                run_rust(lake)
        if COPY:
            with tests.case(f"{way}: pjdfstest, the C version"):
                run_c(lake)
tests.done()
