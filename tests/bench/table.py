"""The one table: rows of a reference, the lake, their ratio, and a target; and the C helper's figures."""
import os
import subprocess
import sys
import time

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FILES = os.environ["BENCH_TOOL"]
ROOT = os.environ["BENCH_ROOT"]
DISK = os.environ["BENCH_DISK"]
started = time.monotonic()
rows = []


def say(text):
    print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)


def figures(*arguments):
    """Run the C helper; the numbers it prints."""
    run = subprocess.run([FILES, *map(str, arguments)], check=True, stdout=subprocess.PIPE)
    return [float(number) for number in run.stdout.split()]


def tool(*arguments):
    return figures(*arguments)[0]


def row(what, reference, lake, ratio, target="", met=None):
    rows.append((what, reference, lake, "" if ratio is None else f"{ratio:.2f}", target,
                 "" if met is None else "yes" if met else "NO"))
    say("  = " + " | ".join(cell.strip() for cell in rows[-1]))


def section(title):
    rows.append((title,))


def targets():
    """How many there were, and the rows that missed theirs."""
    judged = [r for r in rows if len(r) > 1 and r[5]]
    return len(judged), [r[0].strip() for r in judged if r[5] == "NO"]


def print_table():
    heads = ("", "reference", "lake", "ratio", "target", "met")
    cells = [heads] + [r for r in rows if len(r) > 1]
    widths = [max(len(r[i]) for r in cells) for i in range(len(heads))]
    print(f"\ndisk: {os.environ.get('BENCH_DISK_KIND', DISK)}; {os.cpu_count()} processors, load "
          f"{os.getloadavg()[2]:.1f}; Linux {os.uname().release}\n")
    for r in [heads] + rows:
        if len(r) == 1:
            print(f"-- {r[0]}")
        else:
            print("  ".join(c.ljust(w) if i in (0, 4, 5) else c.rjust(w)
                            for i, (c, w) in enumerate(zip(r, widths))).rstrip())


def ms(seconds):
    return f"{seconds * 1000:.2f} ms"


def rate(count, seconds):
    return f"{count / seconds / 1000:.1f} k/s"


def speed(size, seconds):
    return f"{size / seconds / 1e9:.2f} GB/s"


def size_text(size):
    return f"{size / MIB:.1f} MiB"
