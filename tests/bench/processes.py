"""Children of the benchmark. What is noted here run.sh ends by its id, however the run ends."""
import contextlib
import os
import signal
import subprocess

PIDS = os.path.join(os.environ["BENCH_ROOT"], "pids")


def _started(pid):
    """With the id this names one process for ever."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[19]


def note(child):
    os.makedirs(PIDS, exist_ok=True)
    with open(os.path.join(PIDS, str(child.pid)), "w") as file:
        file.write(_started(child.pid))
    return child


def spawn(command, log, **options):
    """In a session of its own: Ctrl-C must reach the benchmark, which then cleans up."""
    with open(log, "ab") as out:
        return note(subprocess.Popen([str(part) for part in command], stdout=out, stderr=out,
                                     start_new_session=True, **options))


def gone(child):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(PIDS, str(child.pid)))


def end(child, seconds=20):
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    gone(child)
