"""Shelfmill and what others use, side by side: the same work, in rounds that take turns, on the same servers."""

import statistics

from contenders import Figures, Peers, find_wrk, run_wrk
from measure import FOREIGN_LIMIT
from report import table
from request import capture
from servers import RabbitMq, Redis, Simulator

FLEETS = (1, 2, 4)
EMBEDDED, WRK = "embedded: `shelfmill run`", "wrk (no work but the calls)"
PGO = ", profile-guided build"
CELERY = {"Celery, 64 threads": "threads", "Celery, 8 processes": "prefork"}
TASKIQ, ASYNCIO = "taskiq", "asyncio and httpx, no broker"
TUNED = "the same, a client for each place"


def fleet_name(workers):
    return f"fleet, {workers} worker{'s' if workers > 1 else ''}"


def contest(bench, sizes):
    rabbitmq, redis = RabbitMq(bench.work / "contest-rabbitmq"), Redis(bench.work / "contest-redis")
    simulator = Simulator(bench.binary, bench.work / "contest-simulator")
    request = capture(bench.binary, bench.work)
    peers = Peers(bench, rabbitmq, redis, simulator, request)
    bench.versions |= {"RabbitMQ": rabbitmq.version(), "Redis": redis.version()}
    servers = (rabbitmq, redis, simulator)

    measures = {EMBEDDED: lambda: figures_of(bench.embedded(simulator, sizes.contest), ["run"])}
    if bench.pgo_binary:
        measures[EMBEDDED + PGO] = lambda: bench.with_pgo(measures[EMBEDDED])
    for workers in FLEETS:
        measures[fleet_name(workers)] = lambda workers=workers: figures_of(
            bench.fleet(*servers, sizes.contest, workers), ["producer", "worker", "aggregator"]
        )
    for name, pool in CELERY.items():
        measures[name] = lambda pool=pool: peers.celery(sizes.peers, pool)
    measures[TASKIQ] = lambda: peers.taskiq(sizes.peers)
    measures[ASYNCIO] = lambda: peers.asyncio(sizes.peers, "one")
    measures[TUNED] = lambda: peers.asyncio(sizes.peers, "each")
    wrk = find_wrk(bench.wrk)
    if wrk:
        measures[WRK] = lambda: run_wrk(bench, wrk, simulator, request, sizes.wrk_s)
    else:
        bench.log("wrk is not installed (apt-get install wrk): its row and ratio are missing")

    samples = rounds(bench, measures)
    for server in servers:
        server.child.kill()
    yield figures_table(bench, sizes, samples)
    yield ratios(samples)
    yield bench.plot(
        "contest.svg",
        "Products per second (logarithmic)",
        [(name.replace(": `shelfmill run`", ""), median(found, "per_s")) for name, found in samples.items()],
    )


def rounds(bench, measures):
    """Every contender once in each round. As many rounds more where others disturbed, and the calmest count."""
    samples = {name: [] for name in measures}
    for repeat in range(1 + bench.repeats):
        for _ in range(bench.rounds):
            for name, measure in measures.items():
                if not repeat or any(sample.foreign > FOREIGN_LIMIT for sample in samples[name]):
                    samples[name].append(measure())
    return {
        name: sorted(found, key=lambda sample: sample.foreign)[: bench.rounds] for name, found in samples.items()
    }


def figures_of(sample, roles):
    """Of a run of Shelfmill; CPU and memory are those of whole processes, their start and the final files included."""
    per_1000 = 1_000 / sample.products
    clients = sum(cost.cpu_s for cost in sample.roles.values())
    brokers = sum(cost.cpu_s for name, cost in sample.servers.items() if name != "simulator")
    memory = {
        role: max(cost.peak_mb for name, cost in sample.roles.items() if name.startswith(role)) for role in roles
    }
    return Figures(
        sample.products / sample.to_last_line_s(), sample.products / sample.wall_s,
        clients * per_1000, (clients + brokers) * per_1000, memory, sample.foreign,
    )


def figures_table(bench, sizes, samples):
    rows = [
        [
            name,
            told(found, lambda figures: figures.per_s),
            told(found, lambda figures: figures.whole_per_s) if found[0].whole_per_s else "",
            told(found, lambda figures: figures.client_cpu, 3),
            told(found, lambda figures: figures.all_cpu, 3),
            ", ".join(
                f"{role} {told(found, lambda figures: figures.memory[role], 1)}" for role in found[0].memory
            ),
        ]
        for name, found in samples.items()
    ]
    worst = max(figures.foreign for found in samples.values() for figures in found)
    note = (
        f"{sizes.contest:,} products for Shelfmill, {sizes.peers:,} for the peers, {sizes.wrk_s} s for wrk; "
        f"{bench.concurrency} calls at once, of each worker. Rates end with the last line; Shelfmill's begin with the start of "
        "its first process, those of the peers when their imports are over. Shelfmill's CPU counts its start and the final "
        "files, which nobody else makes. Other processes used at most "
        f"{worst:.0%} of the machine meanwhile."
    )
    header = [
        "side by side", "products/s", "with the final files", "clients' CPU s per 1,000", "with brokers",
        "peak MB by role",
    ]
    return table("Shelfmill and what others use", header, rows, note)


def told(found, figure, digits=0):
    values = [figure(figures) for figures in found]
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def median(found, field):
    return statistics.median(getattr(figures, field) for figures in found)


def ratios(samples):
    rate = {name: median(found, "per_s") for name, found in samples.items()}
    cpu = {name: median(found, "client_cpu") for name, found in samples.items()}
    best_peer = max([*CELERY, TASKIQ, ASYNCIO], key=rate.get)
    best_celery, leanest_celery = max(CELERY, key=rate.get), min(CELERY, key=cpu.get)
    one = fleet_name(1)
    rows = []
    if WRK in rate:
        rows.append(["embedded to wrk, rate", "≥ 50 %", f"{rate[EMBEDDED] / rate[WRK]:.1%}"])
        if EMBEDDED + PGO in rate:
            rows.append(["the same, profile-guided build", "", f"{rate[EMBEDDED + PGO] / rate[WRK]:.1%}"])
    rows += [
        [f"embedded to the best peer as people write it ({best_peer}), rate", "≥ 20 ×", f"{rate[EMBEDDED] / rate[best_peer]:.1f} ×"],
        ["embedded to the tuned asyncio script, rate", "", f"{rate[EMBEDDED] / rate[TUNED]:.1f} ×"],
        [f"fleet of 1 to the best Celery ({best_celery}), rate", "≥ 10 ×", f"{rate[one] / rate[best_celery]:.1f} ×"],
        ["fleet of 1 to taskiq, rate", "≥ 8 ×", f"{rate[one] / rate[TASKIQ]:.1f} ×"],
        [
            f"fleet of 1 to the leanest Celery ({leanest_celery}), clients' CPU per product",
            "≤ 10 %",
            f"{cpu[one] / cpu[leanest_celery]:.1%}",
        ],
    ]
    return table("What it must show", ["ratio of medians", "asked", "is"], rows)
