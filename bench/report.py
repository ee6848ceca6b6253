"""Markdown tables, and their place in README.md."""

import os
import pathlib
import platform
import statistics
import subprocess
import time

from processes import CORES

README = pathlib.Path(__file__).with_name("README.md")


def table(title, header, rows, note=""):
    lines = [f"### {title}", "", f"| {' | '.join(header)} |", "|" + " --- |" + " ---: |" * (len(header) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines + (["", note] if note else [])) + "\n"


def spread(samples, figure, digits=0):
    """`median (min–max)`, or the one value there is."""
    values = [figure(sample) for sample in samples]
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def fsync_ms(folder):
    """Median time of an appended line's way to the disk: what a batch of the journal waits for."""
    path, times = os.path.join(folder, "fsync"), []
    with open(path, "ab", buffering=0) as file:
        for _ in range(200):
            began = time.perf_counter()
            file.write(b"x" * 1_500)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    os.remove(path)
    return statistics.median(times) * 1_000


def told(*command):
    done = subprocess.run(command, cwd=README.parent, capture_output=True, text=True)
    return done.stdout.strip()


def commit():
    """Of the sources as they are now: to be asked when they are built, not when all is measured."""
    changed = " with uncommitted changes" if told("git", "status", "--porcelain") else ""
    return told("git", "rev-parse", "--short", "HEAD") + changed


def machine(folder, versions, source):
    facts = {
        "machine": f"{CORES} cores ({first_value('/proc/cpuinfo', 'model name', ':')}), "
        f"{int(first_value('/proc/meminfo', 'MemTotal', ':').split()[0]) / 1e6:.0f} GB of memory, "
        f"{fsync_ms(folder):.2f} ms for an fsync",
        "system": f"{first_value('/etc/os-release', 'PRETTY_NAME', '=')}, Linux {platform.release()}",
        **versions,
        "rustc": told("rustc", "--version"),
        "commit": source,
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    return "\n".join(f"- **{name}**: {value}" for name, value in facts.items()) + "\n"


def first_value(path, key, sign):
    with open(path, encoding="utf-8") as file:
        return next((line.partition(sign)[2].strip().strip('"') for line in file if line.startswith(key)), "unknown")


def write_readme(results):
    opening, closing = "<!-- results -->", "<!-- /results -->"
    before, begin, rest = README.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    if not (begin and end):
        raise SystemExit(f"{README} has no {opening} ... {closing} to write between")
    README.write_text(f"{before}{opening}\n{results}\n{closing}{after}")
