"""What a whole session of processes costs: peers fork, and what they start belongs to their figures.

Every child of the harness leads a session of its own, so its descendants are those of the same session.
"""

import contextlib
import os
import signal

from processes import TICKS_PER_S


def members(leader):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append((int(name), fields))
    return found


def cpu_seconds(leader):
    """Of all that run, and of those that have ended and were waited for."""
    return sum(sum(map(int, fields[11:15])) for _, fields in members(leader)) / TICKS_PER_S


def pss_mb(leader):
    """What they hold now, with pages that a fork shares counted once."""
    held = 0
    for pid, _ in members(leader):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                held += next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
    return held * 1024 / 1e6


def end(child):
    """Kills the child and what it started."""
    if child.ended is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.reap()
