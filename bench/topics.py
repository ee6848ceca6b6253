"""What is measured: one function a topic, each giving a table."""

import dataclasses

from measure import median
from report import spread, table
from servers import RabbitMq, Redis, Simulator


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is run; the full benchmark, or a smoke run."""

    small: int = 10_000
    middle: int = 20_000
    large: int = 200_000
    fleet: int = 20_000
    fleet_large: int = 200_000
    latency: int = 5_000
    latency_concurrency: int = 500
    scaling: int = 3_000


SMOKE = Sizes(1_000, 2_000, 10_000, 2_000, 4_000, 500, 100, 600)


def per_1000(samples, cpu_s):
    return spread(samples, lambda sample: 1_000 * cpu_s(sample) / sample.products, 2)


def per_second(sample):
    return sample.products / sample.wall_s


def peak(sample, role):
    return max(cost.peak_mb for name, cost in sample.roles.items() if name.startswith(role))


def role_cpu(sample, role):
    return sum(cost.cpu_s for name, cost in sample.roles.items() if name.startswith(role))


def others(groups):
    worst = max(sample.foreign for samples in groups for sample in samples)
    return f"Other processes used at most {worst:.0%} of the machine meanwhile."


def embedded(bench, sizes):
    simulator = Simulator(bench.binary, bench.work / "simulator")
    by_size = {}
    for products in (sizes.small, sizes.middle, sizes.large):
        by_size[products] = bench.repeated(lambda: bench.embedded(simulator, products))
    rows = [
        [
            f"{products:,}",
            spread(samples, per_second),
            spread(samples, lambda sample: sample.told_per_s),
            per_1000(samples, lambda sample: sample.cpu_s()),
            per_1000(samples, lambda sample: sample.servers["simulator"].cpu_s),
            spread(samples, lambda sample: peak(sample, "run"), 1),
            spread(samples, lambda sample: sample.last_to_first_tenth, 2),
        ]
        for products, samples in by_size.items()
    ]
    peaks = {products: median(samples, lambda sample: peak(sample, "run")) for products, samples in by_size.items()}
    paces = {products: median(samples, per_second) for products, samples in by_size.items()}
    large, middle = sizes.large, sizes.middle
    rows.append(
        [f"{large:,} to {middle:,}", f"× {paces[large] / paces[middle]:.2f}", "", "", "", f"× {peaks[large] / peaks[middle]:.2f}", ""]
    )
    header = [
        "products", "products/s", "as the summary says", "CPU s per 1,000", "simulator's CPU s per 1,000", "peak MB", "last tenth to first"
    ]
    yield table("One process: `shelfmill run`", header, rows, others(by_size.values()))

    again = bench.embedded(simulator, large, out=bench.work / f"run-{bench.runs}", calls=0)
    simulator.child.kill()
    yield from latency(bench, sizes, again)


def latency(bench, sizes, again_large):
    simulator = Simulator(bench.binary, bench.work / "slow-simulator", "--latency", "1s")
    products, concurrency = sizes.latency, sizes.latency_concurrency
    samples = bench.repeated(
        lambda: bench.embedded(simulator, products, concurrency=concurrency), min(bench.rounds, 2)
    )
    percent = lambda figure: spread(samples, lambda sample: 100 * figure(sample) / concurrency, 1) + " %"
    rows = [
        ["over the whole process, start and final files included", spread(samples, per_second, 1), percent(per_second)],
        ["as the summary says", spread(samples, lambda s: s.told_per_s, 1), percent(lambda s: s.told_per_s)],
    ]
    header = [f"{products:,} products, 1 s of latency, concurrency {concurrency}", "products/s", f"of the ideal {concurrency}/s"]
    note = f"Peak memory {spread(samples, lambda sample: peak(sample, 'run'), 1)} MB; CPU s per 1,000 products {per_1000(samples, lambda s: s.cpu_s())}."
    yield table("A slow model", header, rows, note)

    again = bench.embedded(simulator, products, out=bench.work / f"run-{bench.runs}", concurrency=concurrency, calls=0)
    simulator.child.kill()
    rows = [
        [f"{sample.products:,}", f"{sample.wall_s:.2f}", str(sample.calls), f"{sample.cpu_s():.2f}", f"{peak(sample, 'run'):.1f}"]
        for sample in (again, again_large)
    ]
    yield table("Run again when all is done", ["products", "seconds", "calls", "CPU s", "peak MB"], rows)


def fleet(bench, sizes):
    rabbitmq, redis = RabbitMq(bench.work / "rabbitmq"), Redis(bench.work / "redis")
    simulator = Simulator(bench.binary, bench.work / "fleet-simulator")
    bench.versions = {"RabbitMQ": rabbitmq.version(), "Redis": redis.version()}
    run = lambda products, workers, **more: bench.fleet(rabbitmq, redis, simulator, products, workers, **more)
    by_fleet = {(sizes.fleet, workers): bench.repeated(lambda: run(sizes.fleet, workers)) for workers in (1, 2, 4)}
    by_fleet[sizes.fleet_large, 2] = bench.repeated(lambda: run(sizes.fleet_large, 2), 1)
    simulator.child.kill()

    one = median(by_fleet[sizes.fleet, 1], per_second)
    rows, costs = [], []
    for (products, workers), samples in by_fleet.items():
        name = f"{workers} worker{'s' if workers > 1 else ''}, {products:,} products"
        server = lambda server: per_1000(samples, lambda sample: sample.servers[server].cpu_s)
        role = lambda role: per_1000(samples, lambda sample: role_cpu(sample, role))
        memory = lambda role: spread(samples, lambda sample: peak(sample, role), 1)
        rows.append(
            [
                name, spread(samples, per_second), f"× {median(samples, per_second) / one:.2f}",
                spread(samples, lambda sample: sample.products / sample.first_to_last_s),
                spread(samples, lambda sample: sample.last_to_first_tenth, 2),
                memory("producer"), memory("worker"), memory("aggregator"),
            ]
        )
        costs.append(
            [
                name, per_1000(samples, lambda sample: sample.cpu_s()),
                role("producer"), role("worker"), role("aggregator"),
                server("RabbitMQ"), server("Redis"), server("simulator"),
            ]
        )
    header = [
        "", "products/s", "to 1 worker", "first to last result", "last tenth to first",
        "producer's peak MB", "worker's peak MB", "aggregator's peak MB",
    ]
    note = "All on one machine that is busy with brokers and simulator: more workers share the same cores. " + others(by_fleet.values())
    yield table("A fleet, without latency", header, rows, note)
    header = ["CPU s per 1,000 products", "all roles", "producer", "workers", "aggregator", "RabbitMQ", "Redis", "simulator"]
    yield table("What a fleet costs", header, costs)

    simulator = Simulator(bench.binary, bench.work / "fleet-slow-simulator", "--latency", "500ms")
    rows = []
    one = None
    for workers in (1, 2, 4):
        samples = bench.repeated(lambda: run(sizes.scaling, workers), 1)
        # Calls begin half a second before the first result.
        pace = lambda sample: sample.products / (sample.first_to_last_s + 0.5)
        one = one or median(samples, pace)
        ideal = workers * bench.concurrency / 0.5
        rows.append(
            [
                str(workers), spread(samples, pace, 1), f"× {median(samples, pace) / one:.2f}",
                f"{100 * median(samples, pace) / ideal:.1f} %", spread(samples, per_second, 1),
            ]
        )
    header = ["workers", "products/s", "to 1 worker", "of the ideal", "over the whole time, start and end included"]
    yield table(f"A fleet and a slow model: {sizes.scaling:,} products, 500 ms of latency, concurrency {bench.concurrency} each", header, rows)
    for child in (simulator.child, redis.child, rabbitmq.child):
        child.kill()


TOPICS = {"embedded": embedded, "fleet": fleet}
