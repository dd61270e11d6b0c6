#!/usr/bin/env python3
"""Listing a directory that others change: every name that stays is listed exactly once.

STRESS_SEED repeats the choices, STRESS_ENTRIES says how many entries the directory has.
"""
import os
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))
from lake import Lake, Tests  # noqa: E402

ENTRIES = int(os.environ.get("STRESS_ENTRIES", 100_000))
SEED = int(os.environ.get("STRESS_SEED", random.randrange(1 << 32)))
tests = Tests()


def change_entries(here, until):
    dice = random.Random(SEED)
    while time.time() < until and not (here.parent / "stop").exists():
        name = here / f"changing{dice.randrange(2000)}"
        try:
            name.write_bytes(b"") if dice.randrange(2) else name.unlink()
        except FileNotFoundError:
            pass


def list_while_changing():
    """Most of the names are committed, some are not."""
    with Lake() as lake:
        here = lake / "main/big"
        here.mkdir()
        unchanged = {f"kept{i}" for i in range(ENTRIES)}
        for i in range(ENTRIES):
            os.close(os.open(here / f"kept{i}", os.O_CREAT | os.O_WRONLY))
            if i == ENTRIES - ENTRIES // 20:
                for k in range(1000):
                    (here / f"changing{k}").write_bytes(b"")
                lake.ctl("commit", "main", "-m", "most")
        pids = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                try:
                    change_entries(here, time.time() + 60)
                    os._exit(0)
                except BaseException as problem:  # nothing of the parent's may run here
                    print("#", problem, flush=True)
                    os._exit(1)
            pids.append(pid)
        for attempt in range(3):
            names = os.listdir(here)
            if attempt == 0:  # with attributes
                names = [entry.name for entry in os.scandir(here)
                         if not entry.name.startswith("kept") or entry.stat()]
            kept = [name for name in names if name.startswith("kept")]
            assert len(kept) == len(set(kept)), "a name twice"
            assert set(kept) == unchanged, f"{len(unchanged - set(kept))} names are missing"
        (here.parent / "stop").touch()
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0, "a process failed"


print("# seed", SEED)
with tests.case(f"every unchanged name of {ENTRIES} exactly once while others come and go"):
    list_while_changing()
tests.done()
