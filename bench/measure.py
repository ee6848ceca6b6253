"""One run of Shelfmill, in one process or as a fleet: started, watched, checked against its files, told in figures."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import statistics
import time
from datetime import datetime

import plot
import processes
from processes import CORES, BenchError, Child
from catalog import catalog
from report import README

JOURNAL = "enriched_products_incremental.jsonl"
SUMMARY = "analysis_summary.json"
# A run that is slower than this is broken.
LEAST_PRODUCTS_PER_S = 20
# Processes are sampled every 0.1 s: a shorter tenth says nothing about CPU.
LEAST_TENTH_S = 1.0
# Above this share of the machine, what others did may show in the figures: the round is repeated.
FOREIGN_LIMIT = 0.08
REPEATS = 1
QUIET_PATIENCE_S = 10
# Of all waiting together: on a machine that is never quiet the benchmark ends all the same.
WAITING_S = 90


@dataclasses.dataclass
class Sample:
    """One run. Times in seconds, memory in MB (10^6 bytes); `roles` and `servers` by name."""

    products: int
    wall_s: float
    calls: int
    told_per_s: float
    first_to_last_s: float
    last_to_first_tenth: float
    # The same in CPU seconds of all roles; scatters less than time does, but does. `None` where too short to tell.
    last_to_first_tenth_cpu: float | None
    foreign: float
    roles: dict = dataclasses.field(default_factory=dict)
    servers: dict = dataclasses.field(default_factory=dict)
    first_tenth_s: float = 0.0
    last_tenth_s: float = 0.0
    # From the start of the first process to the journal's first line.
    starting_s: float = 0.0
    # From the journal's last line to the end of the last process, and the first one's peak before that.
    ending_s: float = 0.0
    peak_before_end_mb: float = 0.0


    def to_last_line_s(self):
        """From the start of the first process to the last line: what others' times are compared with."""
        return self.wall_s - self.ending_s


@dataclasses.dataclass
class Cost:
    cpu_s: float
    peak_mb: float


class Bench:
    """What all measurements share: the binary, the folders, and the servers once they are needed."""

    def __init__(self, binary, work, catalogs, rounds, concurrency):
        self.binary, self.work, self.catalogs = binary, pathlib.Path(work), catalogs
        self.rounds, self.concurrency = rounds, concurrency
        self.runs = 0
        self.versions = {}
        self.last_out = None
        self.may_wait_s, self.repeats = WAITING_S, REPEATS
        # Of a wrk that is not on the path; a profile-guided build, if there is one; and whether plots are kept.
        self.wrk, self.pgo_binary, self.keeps_plots = None, None, False

    def log(self, text):
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def new_out(self):
        """Of the runs before only the last is kept: it can be resumed."""
        if self.last_out:
            shutil.rmtree(self.last_out)
        self.runs += 1
        self.last_out = self.work / f"run-{self.runs}"
        return self.last_out

    def embedded(self, simulator, products, out=None, concurrency=None, calls=None, http2=False):
        """`shelfmill run`; `out` of an earlier one resumes it, and then no calls are expected."""
        name = f"run of {products:,} products"
        out = out or self.new_out()
        command = [self.binary, "run", catalog(self.catalogs, products), "-q", "--out", out]
        url = simulator.url.replace("http:", "h2c:") if http2 else simulator.url
        command += ["--base-url", url, "--concurrency", concurrency or self.concurrency]
        start = lambda: [Child("run", command, self.work / "run.log")]
        return self._measured(name, start, simulator, [], out, products, products if calls is None else calls)

    def fleet(self, rabbitmq, redis, simulator, products, workers, concurrency=None):
        """Producer, aggregator and workers, until the last has ended."""
        name = f"fleet of {workers} over {products:,} products"
        out = self.new_out()
        redis.flush()
        rabbitmq.delete_queues()
        meet = ["-q", "--run", out.name, "--amqp-url", rabbitmq.url, "--redis-url", redis.url]
        produce = ["producer", catalog(self.catalogs, products), "--base-url", simulator.url]
        work = ["worker", "--until-done", "--concurrency", concurrency or self.concurrency]
        role = lambda name, *args: Child(name, [self.binary, *args, *meet], self.work / f"{name}.log")

        def start():
            begun = [role("producer", *produce), role("aggregator", "aggregator", "--out", out)]
            return begun + [role(f"worker {number}", *work) for number in range(1, workers + 1)]

        return self._measured(name, start, simulator, [rabbitmq, redis], out, products, products)

    def with_pgo(self, measure):
        """What `measure` gives of the profile-guided build."""
        own, self.binary = self.binary, self.pgo_binary
        try:
            return measure()
        finally:
            self.binary = own

    def wait_for_quiet(self):
        if self.may_wait_s <= 0:
            return
        waited_s = processes.wait_for_quiet(min(QUIET_PATIENCE_S, self.may_wait_s))
        self.may_wait_s -= waited_s
        if waited_s > 1.5:
            self.log(f"waited {waited_s:.0f} s for a quieter machine")

    def plot(self, name, title, bars, logarithmic=True):
        """Beside README.md when that is written, else only in the folder of this run; how the report shows it."""
        folder = README.parent if self.keeps_plots else self.catalogs
        (folder / name).write_text(plot.bars(title, bars, logarithmic), encoding="utf-8")
        return f"![{title}]({name})\n"

    def _measured(self, name, start, simulator, brokers, out, products, calls):
        self.wait_for_quiet()
        simulator.reset()
        servers = [server.child for server in (simulator, *brokers)]
        for server in servers:
            processes.forget_peak(server)
        before_s = [processes.cpu_seconds(server.pid) for server in servers]
        busy, own, began = processes.machine_busy_seconds(), processes.own_seconds(), time.monotonic()
        children = start()
        processes.finish(children, 60 + products / LEAST_PRODUCTS_PER_S, servers)
        wall_s = max(child.ended for child in children) - began
        ended_at = time.time() - (time.monotonic() - began - wall_s)
        roles = {child.name: Cost(child.cpu_s, child.peak_kb * 1024 / 1e6) for child in children}
        served = {
            server.name: Cost(processes.cpu_seconds(server.pid) - before, server.sample() * 1024 / 1e6)
            for server, before in zip(servers, before_s)
        }
        ours = sum(cost.cpu_s for cost in [*roles.values(), *served.values()])
        ours += processes.own_seconds() - own
        foreign = max(0.0, processes.machine_busy_seconds() - busy - ours) / (wall_s * CORES)
        made = simulator.calls()
        if made != calls:
            raise BenchError(f"{name}: {made} calls instead of {calls}")
        told_per_s = check_summary(name, out, products)
        first, tenth, ninth, last = read_journal(name, out, products)
        ratio = (last - ninth) / max(tenth - first, 0.001)
        cpu_ratio = None
        if min(last - ninth, tenth - first) >= LEAST_TENTH_S:
            used = lambda begin, end: sum(cpu_at(child, end) - cpu_at(child, begin) for child in children)
            # A tenth that lies between two looks at the processes tells nothing.
            first_used = used(first, tenth)
            cpu_ratio = used(ninth, last) / first_used if first_used else None
        self.log(
            f"{name}: {wall_s:.2f} s, {products / wall_s:,.0f}/s, last to first tenth {ratio:.2f}"
            f"{f' ({cpu_ratio:.2f} in CPU)' if cpu_ratio else ''}, "
            f"{describe(roles)}; {describe(served)}; others used {foreign:.0%}"
        )
        return Sample(
            products, wall_s, made, told_per_s, last - first, ratio, cpu_ratio, foreign, roles, served,
            tenth - first, last - ninth, first - (ended_at - wall_s), max(ended_at - last, 0.001),
            peak_by(children[0], last),
        )

    def repeated(self, measure, rounds=None):
        """Samples of several rounds; rounds in which others used the machine are repeated, within reason."""
        rounds = rounds or self.rounds
        samples = [measure() for _ in range(rounds)]
        for _ in range(self.repeats):
            for _ in [sample for sample in samples if sample.foreign > FOREIGN_LIMIT]:
                samples.append(measure())
            samples = sorted(samples, key=lambda sample: sample.foreign)[:rounds]
        return samples


def describe(costs):
    return ", ".join(f"{name} {cost.cpu_s:.1f} s {cost.peak_mb:.0f} MB" for name, cost in costs.items())


def check_summary(name, out, products):
    summary = json.loads((out / SUMMARY).read_text())
    counts = summary["counts"]
    if summary["status"] != "complete" or (counts["input"], counts["completed"]) != (products, products):
        raise BenchError(f"{name}: the summary says {summary['status']}, {counts}")
    return summary["products_per_second"]


def read_journal(name, out, products):
    """When the first tenth and the last tenth began and ended; every product has one line."""
    marks = {line: None for line in (0, products // 10, products - 1 - products // 10, products - 1)}
    seen = bytearray(products + 1)
    lines = 0
    with open(out / JOURNAL, "rb") as file:
        for lines, line in enumerate(file, 1):
            number = int(line[len(b'{"id":"SKU-'):line.index(b'"', len(b'{"id":"'))])
            seen[number] = 1
            if lines - 1 in marks:
                marks[lines - 1] = seconds(json.loads(line)["meta"]["completed_at"])
    if lines != products or sum(seen) != products:
        raise BenchError(f"{name}: {lines} lines of {sum(seen)} products instead of {products}")
    return marks.values()


def cpu_at(child, moment):
    """CPU seconds that the process had used by then, between the two samples around it."""
    earlier = (0.0, 0.0)
    for later in child.cpu_by_time:
        if later[0] >= moment:
            share = (moment - earlier[0]) / (later[0] - earlier[0]) if earlier[0] else 1.0
            return earlier[1] + share * (later[1] - earlier[1])
        earlier = later
    return earlier[1]


def peak_by(child, moment):
    """The highest resident set that was seen by then, in MB."""
    return max((kb for at, kb in child.peak_by_time if at <= moment), default=0) * 1024 / 1e6


def seconds(timestamp):
    """Of `2026-01-31T12:00:00.123456789Z`."""
    whole, _, fraction = timestamp.removesuffix("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float("0." + (fraction or "0"))


def median(samples, figure):
    return statistics.median(figure(sample) for sample in samples)
