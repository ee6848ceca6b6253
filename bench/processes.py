"""Child processes: what each cost, and that none outlives the benchmark.

CPU seconds are the kernel's (`wait4`), exact and final. So is `ru_maxrss`, with one trap: a child inherits the
peak of the process that started it, so a figure no higher than our own peak says nothing about the child. Then
the last `VmHWM` that was sampled counts.
"""

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time

SAMPLE_EVERY_S = 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
CORES = os.cpu_count() or 1
LOG_TAIL_BYTES = 4_000

# Ends a child even if this process is killed with SIGKILL.
_LEASH = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []

_alive = []


class BenchError(Exception):
    """Something that makes every figure worthless; told as it is."""


def whole(main):
    """A program of ours: told to end, it cleans up first; what it cannot do is told in a line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        main()
    except (BenchError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def clean_environment(extra=None):
    """Ours, without what would change where the children connect to or what they do."""
    foreign = ("OPENAI_", "SHELFMILL_", "RABBITMQ_", "ERL_", "RUST_LOG")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(foreign) and not name.lower().endswith("_proxy") and name != "NOTIFY_SOCKET"
    }
    return environment | (extra or {})


class Child:
    """A running or ended process, in a session of its own, so that a Ctrl-C reaches only us."""

    def __init__(self, name, command, log, environment=None, stdout=None):
        self.name, self.log = name, log
        self.cpu_s = self.ended = self.status = None
        self.started = time.monotonic()
        self.floor_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.peak_kb = 0
        # Seconds since 1970, and CPU seconds by then.
        self.cpu_by_time = []
        # The same moments, and the highest resident set by then.
        self.peak_by_time = []
        with open(log, "wb") as file:
            self.popen = subprocess.Popen(
                [*_LEASH, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=stdout or file,
                stderr=file,
                env=clean_environment(environment),
                cwd=os.path.dirname(log),
                start_new_session=True,
            )
        self.pid = self.popen.pid
        _alive.append(self)

    def sample(self):
        """The highest resident set so far."""
        self.peak_kb = max(self.peak_kb, peak_kb(self.pid))
        return self.peak_kb

    def has_ended(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def reap(self):
        """To be called when the process has ended, or is about to."""
        _, status, usage = os.wait4(self.pid, 0)
        self.ended = time.monotonic()
        self.status = self.popen.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s = usage.ru_utime + usage.ru_stime
        if usage.ru_maxrss > self.floor_kb:
            self.peak_kb = usage.ru_maxrss
        _alive.remove(self)

    def terminate(self):
        """Asks it to end, which it is about to."""
        os.kill(self.pid, signal.SIGTERM)
        self.reap()

    def kill(self):
        if self.ended is None:
            os.kill(self.pid, signal.SIGKILL)
            self.reap()

    def tail(self):
        with open(self.log, "rb") as file:
            file.seek(max(0, os.path.getsize(self.log) - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")


def finish(children, within_s, beside=()):
    """Waits until all have ended with exit 0, while those beside them must not end."""
    deadline = time.monotonic() + within_s
    pending = {os.pidfd_open(child.pid): child for child in children}
    try:
        while pending:
            ended, _, _ = select.select(list(pending), [], [], SAMPLE_EVERY_S)
            for fd in ended:
                child = pending.pop(fd)
                os.close(fd)
                child.reap()
                if child.status != 0:
                    raise BenchError(f"{child.name} ended with {child.status}:\n{child.tail()}")
            for child in pending.values():
                child.peak_by_time.append((time.time(), child.sample()))
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    child.cpu_by_time.append((time.time(), cpu_seconds(child.pid)))
            for server in beside:
                if server.has_ended():
                    server.reap()
                    raise BenchError(f"{server.name} ended with {server.status} in mid-run:\n{server.tail()}")
            if pending and time.monotonic() > deadline:
                names = ", ".join(child.name for child in pending.values())
                tails = "\n".join(child.tail() for child in pending.values())
                raise BenchError(f"not done within {within_s:.0f} s: {names}\n{tails}")
    finally:
        for fd in pending:
            os.close(fd)


def stop_all():
    for child in reversed(_alive[:]):
        child.kill()


def peak_kb(pid):
    """`VmHWM`; nothing for a process that has just ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmHWM")), 0)
    return 0


def rss_kb(pid):
    """What the process holds now."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * PAGE_KB


def forget_peak(child):
    """Lets the peak start again from what the process holds now."""
    child.peak_kb = 0
    with open(f"/proc/{child.pid}/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def cpu_seconds(pid):
    """Of a running process and of its children that have ended."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS_PER_S


def machine_busy_seconds():
    """Of all cores, also what the hypervisor took from them; idle and waiting for the disk do not count."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def own_seconds():
    times = os.times()
    return times.user + times.system


def wait_for_quiet(patience_s):
    """Waits while others use more than a tenth of the machine; how long it waited."""
    began = time.monotonic()
    while (left_s := patience_s - (time.monotonic() - began)) > 0:
        ours = lambda: own_seconds() + sum(cpu_seconds(child.pid) for child in _alive)
        busy, own = machine_busy_seconds(), ours()
        time.sleep(min(1.0, left_s))
        if (machine_busy_seconds() - busy) - (ours() - own) < 0.1 * CORES:
            break
    return time.monotonic() - began
