"""What others use for the same work, run and checked as Shelfmill is; each is told in the same figures."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import processes
import sessions
from catalog import catalog
from processes import CORES, BenchError, Child

PEERS = pathlib.Path(__file__).with_name("peers")
CELERY_THREADS, CELERY_PROCESSES = 64, 8
LOOK_EVERY_S = 0.05
READY_WITHIN_S = 60
# A peer that is slower is broken.
LEAST_PRODUCTS_PER_S = 10
MEMORY_EVERY_S = 0.5


@dataclasses.dataclass
class Figures:
    """One run of a contender; CPU in seconds per 1,000 products, memory in MB by role."""

    # From the start, or the word to begin, to the last line; and with the final files and the end of all processes.
    per_s: float
    whole_per_s: float | None
    client_cpu: float
    all_cpu: float
    memory: dict
    foreign: float


def environment(target):
    """A virtual environment with the peers, made anew when the pinned versions change; its `bin`."""
    wanted = (PEERS / "requirements.txt").read_text()
    folder = target / "venv"
    made_of = folder / "made-of.txt"
    if not made_of.exists() or made_of.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]
        subprocess.run([*pip, PEERS / "requirements.txt"], check=True)
        made_of.write_text(wanted)
    return folder / "bin"


def find_wrk(given):
    return str(given.resolve()) if given else shutil.which("wrk")


class Peers:
    def __init__(self, bench, rabbitmq, redis, simulator, request):
        self.bench, self.rabbitmq, self.redis, self.simulator = bench, rabbitmq, redis, simulator
        self.request = request
        self.bin = environment(bench.catalogs)
        self.runs = 0

    def celery(self, products, pool):
        size = CELERY_THREADS if pool == "threads" else CELERY_PROCESSES
        worker = [self.bin / "celery", "-A", "celery_peer", "worker", "--pool", pool, "--concurrency", size]
        worker += ["--loglevel", "WARNING", "--without-gossip", "--without-mingle"]
        publisher = [self.bin / "python", PEERS / "celery_peer.py"]
        return self._brokered(f"Celery {pool}", products, worker, self._answers_celery, publisher)

    def taskiq(self, products):
        worker = [self.bin / "taskiq", "worker", "taskiq_peer:broker", "--workers", 1, "--log-level", "INFO"]
        worker += ["--max-async-tasks", self.bench.concurrency, "--ack-type", "when_executed"]
        publisher = [self.bin / "python", PEERS / "taskiq_peer.py"]
        return self._brokered("taskiq", products, worker, lambda child: "Listening started" in child.tail(), publisher)

    def asyncio(self, products, clients):
        script = [self.bin / "python", PEERS / "asyncio_peer.py"]
        name = f"asyncio and httpx, {clients} client"
        commands = {"script": (script, says_ready)}
        return self._measured(name, products, commands, [self.redis], {"BENCH_CLIENTS": clients})

    def _answers_celery(self, child):
        """It has consumers in RabbitMQ: its own word for being ready is hidden with its other notes."""
        told = self.rabbitmq.ctl("list_queues", "name", "consumers", "--no-table-headers", "--silent")
        return any(line.split() == ["celery", "1"] for line in told.splitlines())

    def _brokered(self, name, products, worker, ready, publisher):
        self.rabbitmq.delete_queues()
        commands = {"worker": (worker, ready), "publisher": (publisher, says_ready)}
        return self._measured(name, products, commands, [self.rabbitmq, self.redis])

    def _measured(self, name, products, commands, brokers, more=None):
        self.runs += 1
        out = self.bench.work / f"peer-{self.runs}"
        out.mkdir()
        go = out / "go"
        self.redis.flush()
        self.simulator.reset()
        self.bench.wait_for_quiet()
        told = self._environment(products, out, go) | (more or {})
        children = {}
        try:
            for role, (command, ready) in commands.items():
                children[role] = Child(role, command, out / f"{role}.log", told)
                wait_for(children[role], ready)
            figures = self._watch(name, products, children, brokers, go)
        finally:
            for child in children.values():
                sessions.end(child)
        figures.per_s = check(name, out, products, self.simulator.calls())
        self.bench.log(f"{name}: {describe(figures)}")
        shutil.rmtree(out)
        return figures

    def _environment(self, products, out, go):
        return {
            "BENCH_BASE_URL": self.simulator.url,
            # An empty path and `%2f` are not the same to every client; this one all read as the vhost `/`.
            "BENCH_AMQP_URL": f"amqp://guest:guest@127.0.0.1:{self.rabbitmq.port}//",
            "BENCH_REDIS_URL": self.redis.url,
            "BENCH_INPUT": catalog(self.bench.catalogs, products),
            "BENCH_OUT": str(out),
            "BENCH_GO": str(go),
            "BENCH_REQUEST": str(self.request),
            "BENCH_CONCURRENCY": str(self.bench.concurrency),
            "PYTHONPATH": str(PEERS),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": os.environ["PATH"],
        }

    def _watch(self, name, products, children, brokers, go):
        """From the word to begin until Redis knows every id: CPU of clients and brokers, and the clients' memory."""
        servers = [server.child for server in (self.simulator, *brokers)]
        client_before = {role: sessions.cpu_seconds(child.pid) for role, child in children.items()}
        server_before = [processes.cpu_seconds(child.pid) for child in servers]
        busy, own, began = processes.machine_busy_seconds(), processes.own_seconds(), time.monotonic()
        memory, client_cpu = dict.fromkeys(children, 0.0), dict.fromkeys(children, 0.0)
        next_memory = 0.0
        go.touch()
        while True:
            done = int(self.redis.command("SCARD", "bench:done")) >= products
            for role, child in children.items():
                # What has ended and is not reaped yet still tells its CPU.
                client_cpu[role] = max(client_cpu[role], sessions.cpu_seconds(child.pid) - client_before[role])
                if child.has_ended() and os.waitid(os.P_PID, child.pid, LOOK).si_status != 0:
                    raise BenchError(f"{name}: {role} ended early:\n{child.tail()}")
            if done or time.monotonic() >= next_memory:
                next_memory = time.monotonic() + MEMORY_EVERY_S
                for role, child in children.items():
                    memory[role] = max(memory[role], sessions.pss_mb(child.pid))
            if done:
                break
            if time.monotonic() - began > 60 + products / LEAST_PRODUCTS_PER_S:
                raise BenchError(f"{name}: not done:\n" + "\n".join(child.tail() for child in children.values()))
            time.sleep(LOOK_EVERY_S)
        wall_s = time.monotonic() - began
        server_cpu = [processes.cpu_seconds(child.pid) - before for child, before in zip(servers, server_before)]
        clients, brokers_s = sum(client_cpu.values()), sum(server_cpu[1:])
        ours = clients + sum(server_cpu) + processes.own_seconds() - own
        foreign = max(0.0, processes.machine_busy_seconds() - busy - ours) / (wall_s * CORES)
        per_1000 = 1_000 / products
        return Figures(0.0, None, clients * per_1000, (clients + brokers_s) * per_1000, memory, foreign)


LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT


def says_ready(child):
    return " ready" in child.tail()


def wait_for(child, ready):
    deadline = time.monotonic() + READY_WITHIN_S
    while not ready(child):
        if child.has_ended() or time.monotonic() > deadline:
            raise BenchError(f"{child.name} did not start:\n{child.tail()}")
        time.sleep(LOOK_EVERY_S)


def check(name, out, products, calls):
    """One line per product and one call for each; products per second between the go and the last line."""
    seen, lines, last = set(), 0, 0.0
    for path in out.glob("lines-*.jsonl"):
        with open(path, encoding="utf-8") as file:
            for lines, text in enumerate(file, lines + 1):
                line = json.loads(text)
                seen.add(line["id"])
                last = max(last, line["at"])
    if not (lines == len(seen) == calls == products):
        raise BenchError(f"{name}: {lines} lines of {len(seen)} products with {calls} calls instead of {products}")
    return products / (last - (out / "go").stat().st_mtime)


def describe(figures):
    memory = ", ".join(f"{role} {held:.0f} MB" for role, held in figures.memory.items())
    return (
        f"{figures.per_s:,.0f}/s, CPU s per 1,000 {figures.client_cpu:.2f} ({figures.all_cpu:.2f} with brokers), "
        f"{memory}; others used {figures.foreign:.0%}"
    )


def run_wrk(bench, wrk, simulator, request, seconds):
    """The captured request over as many connections, on as many threads as there are cores."""
    command = [wrk, "--threads", CORES, "--connections", bench.concurrency, "--duration", f"{seconds}s"]
    command += ["--script", PEERS / "wrk.lua", f"{simulator.url}/chat/completions"]
    bench.wait_for_quiet()
    busy, own = processes.machine_busy_seconds(), processes.own_seconds()
    before = processes.cpu_seconds(simulator.child.pid)
    child = Child("wrk", command, bench.work / "wrk.log", {"BENCH_REQUEST": str(request)})
    processes.finish([child], 60 + seconds, [simulator.child])
    told = child.tail()
    rate, made = re.search(r"Requests/sec:\s+([\d.]+)", told), re.search(r"(\d+) requests in", told)
    if not (rate and made) or "Non-2xx" in told or "Socket errors" in told:
        raise BenchError(f"wrk:\n{told}")
    ours = child.cpu_s + processes.cpu_seconds(simulator.child.pid) - before + processes.own_seconds() - own
    foreign = max(0.0, processes.machine_busy_seconds() - busy - ours) / ((child.ended - child.started) * CORES)
    cpu = child.cpu_s * 1_000 / int(made.group(1))
    figures = Figures(float(rate.group(1)), None, cpu, cpu, {"wrk": child.peak_kb * 1024 / 1e6}, foreign)
    bench.log(f"wrk: {describe(figures)}")
    return figures
