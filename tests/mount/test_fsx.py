#!/usr/bin/env python3
"""Random operations on one file, compared with a copy in memory, while commits turn staging files
into blobs and back: lib/fsx.c.

FSX_OPERATIONS says how many for each run, FSX_RUNS how many runs with seeds of their own, FSX_SEED
repeats one; FSX_LONG=1 adds tiny and large files, FSX_SHAPE="8 MiB" takes one alone; LAKE_WAY=0 passes through alone, 1 copies.
"""
import json
import os
import pathlib
import random
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import BIN, ROOT, Lake, Tests  # noqa: E402

PROGRAM = pathlib.Path(os.environ.get("LAKE_HELPERS", ROOT / "build" / "tests" / "lib")) / "fsx"
OPERATIONS = os.environ.get("FSX_OPERATIONS", "10000")
RUNS = int(os.environ.get("FSX_RUNS", 1))
EVERY = 250
COPY_UP_BYTES_MAX = 65536  # most files are larger: pieces over committed content
SHAPES = {"256 KiB": (256 << 10, 64 << 10)}
if os.environ.get("FSX_LONG"):
    SHAPES |= {"20 KB": (20_000, 6_000), "8 MiB": (8 << 20, 1 << 20)}
if os.environ.get("FSX_SHAPE"):
    SHAPES = {os.environ["FSX_SHAPE"]: SHAPES[os.environ["FSX_SHAPE"]]}
WAYS = (("passthrough", ()), ("copying", ("--no-passthrough",)))
if os.environ.get("LAKE_WAY"):
    WAYS = (WAYS[int(os.environ["LAKE_WAY"])],)
tests = Tests()

# Nothing to commit: the file is as empty as it was before.
COMMIT = """
said=$({lakectl} -q --lake {lake} commit work -m fsx {option} 2>&1) ||
	case $said in *"nothing to commit"*) ;; *) echo "$said"; exit 1;; esac
"""
# Closed: what was committed is what the branch shows.
COMPARE = "cmp {work}/file {committed}/file 2>/dev/null || cmp {work}/file.moved {committed}/file.moved"


def exercise(lake, seed, size_max, length_max):
    names = {"lakectl": BIN / "lakectl", "lake": lake.directory}
    compare = COMPARE.format(work=lake / "work", committed=lake / "@work")
    done = subprocess.run(
        [PROGRAM, f"--seed={seed}", f"--operations={OPERATIONS}", f"--size-max={size_max}",
         f"--length-max={length_max}", f"--every={EVERY}",
         f"--closed={COMMIT.format(option='', **names)}{compare}",
         f"--open={COMMIT.format(option='--allow-open', **names)}", lake / "work" / "file"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert lake.ctl("fsck")["problems"] == []
    for left in ("file", "file.moved"):
        (lake / "work" / left).unlink(missing_ok=True)


def main():
    if not PROGRAM.exists():
        subprocess.run(["make", "-s", "-C", ROOT, "build/tests/lib/fsx"], check=True, capture_output=True)
    for way, options in WAYS:
        with Lake(*options) as lake:
            lake.umount()
            settings = lake.directory / "lake.json"
            settings.write_text(json.dumps(json.loads(settings.read_text()) |
                                           {"copy_up_bytes_max": COPY_UP_BYTES_MAX}))
            lake.mount()
            lake.ctl("branch", "create", "work")
            for shape, limits in SHAPES.items():
                for _ in range(RUNS):
                    seed = int(os.environ.get("FSX_SEED", random.randrange(1 << 32)))
                    with tests.case(f"{way}: {OPERATIONS} operations up to {shape}, seed {seed}"):
                        exercise(lake, seed, *limits)
    tests.done()


main()
