"""What is measured: a function for each topic, which yields its tables."""

import dataclasses

from backlog import backlog
from contest import contest
from measure import median
from report import spread, table
from resume import resume
from scale import scale
from servers import RabbitMq, Redis, Simulator

FLEETS = (1, 2, 4)
SLOW_FLEET_LATENCY_S = 0.5


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Products of each run: of the full benchmark, or of a smoke run."""

    small: int = 10_000
    middle: int = 20_000
    large: int = 200_000
    # How often each place of a slow fleet is used.
    slow_fleet_turns: int = 24
    # Products that wait, or that are done already, and how long the roles are watched over them.
    crowd: int = 1_000_000
    watch_s: int = 60
    # Beside peers, which are slow, and wrk, which runs for a time.
    contest: int = 100_000
    peers: int = 4_000
    wrk_s: int = 5
    # Products, and how many calls at once, of one process before a model that takes a second.
    latency: tuple = ((25_000, 500), (200_000, 10_000))
    # Products of one process, and of a fleet.
    scale: tuple = (10_000, 100_000, 1_000_000)
    scale_fleet: tuple = (100_000, 1_000_000)


SMOKE = Sizes(
    1_000, 2_000, 10_000, 6, 20_000, 5,
    contest=2_000, peers=300, wrk_s=1, latency=((500, 100), (2_000, 1_000)), scale=(1_000, 10_000), scale_fleet=(1_000, 5_000),
)


def per_second(sample):
    return sample.products / sample.wall_s


def told_per_second(sample):
    return sample.told_per_s


def last_to_first_tenth(sample):
    return sample.last_to_first_tenth


def tenths_cpu(samples):
    known = [sample for sample in samples if sample.last_to_first_tenth_cpu is not None]
    return spread(known, lambda sample: sample.last_to_first_tenth_cpu, 2) if known else ""


def peak_mb(role):
    """The highest of the processes whose names begin so."""
    return lambda sample: max(cost.peak_mb for name, cost in sample.roles.items() if name.startswith(role))


def cpu_s(role=""):
    """Per 1,000 products, of all processes whose names begin so."""

    def of(sample):
        costs = [*sample.roles.items(), *sample.servers.items()] if role else sample.roles.items()
        return 1_000 / sample.products * sum(cost.cpu_s for name, cost in costs if name.startswith(role))

    return of


def ratio(samples, base, figure):
    return f"× {median(samples, figure) / median(base, figure):.2f}"


def disturbance(groups):
    worst = max(sample.foreign for samples in groups for sample in samples)
    return f"Other processes used at most {worst:.0%} of the machine meanwhile."


def embedded(bench, sizes):
    simulator = Simulator(bench.binary, bench.work / "simulator")
    by_size = {
        products: bench.repeated(lambda: bench.embedded(simulator, products))
        for products in (sizes.small, sizes.middle, sizes.large)
    }
    rows = [
        [
            f"{products:,}",
            spread(samples, per_second),
            spread(samples, told_per_second),
            spread(samples, cpu_s(), 2),
            spread(samples, cpu_s("simulator"), 2),
            spread(samples, peak_mb("run"), 1),
            spread(samples, lambda sample: 1_000 * sample.starting_s),
            spread(samples, last_to_first_tenth, 2),
            tenths_cpu(samples),
        ]
        for products, samples in by_size.items()
    ]
    large, middle = by_size[sizes.large], by_size[sizes.middle]
    ratios = [ratio(large, middle, figure) for figure in (per_second, told_per_second, cpu_s(), cpu_s("simulator"))]
    rows.append([f"{sizes.large:,} to {sizes.middle:,}", *ratios, ratio(large, middle, peak_mb("run")), "", "", ""])
    header = [
        "products", "products/s", "as the summary says", "CPU s per 1,000", "simulator's CPU s per 1,000",
        "peak MB", "ms from start to first line", "last tenth to first", "the same in CPU s",
    ]
    yield table("One process: `shelfmill run`", header, rows, disturbance(by_size.values()))
    again = bench.embedded(simulator, sizes.large, out=bench.last_out, calls=0)
    simulator.child.kill()
    yield from slow_model(bench, sizes, again)


def slow_model(bench, sizes, again_large):
    simulator = Simulator(bench.binary, bench.work / "slow-simulator", "--latency", "1s")
    rows, groups = [], []
    # Fifty and twenty rounds of a second: the last one, of a few that were late, must not count for much.
    kinds = [(*size, http2) for size in sizes.latency for http2 in (False, True)]
    for products, concurrency, http2 in kinds:
        samples = bench.repeated(
            lambda: bench.embedded(simulator, products, concurrency=concurrency, http2=http2)
        )
        groups.append(samples)
        share = lambda pace: spread(samples, lambda sample: 100 * pace(sample) / concurrency, 1) + " %"
        rows.append(
            [
                f"{products:,} products, {concurrency:,} in flight, HTTP/{2 if http2 else 1.1}",
                spread(samples, per_second, 1),
                share(per_second),
                share(told_per_second),
                spread(samples, peak_mb("run"), 1),
                spread(samples, cpu_s(), 2),
            ]
        )
    header = [
        "1 s of latency", "products/s", "of the ideal, over the whole process", "as the summary says", "peak MB",
        "CPU s per 1,000",
    ]
    note = f"Asked: ≥ 97 % at 500; ≥ 90 % under 300 MB at 10,000. {disturbance(groups)}"
    yield table("One process and a slow model", header, rows, note)

    again = bench.embedded(simulator, products, out=bench.last_out, concurrency=concurrency, calls=0)
    simulator.child.kill()
    rows = [
        [
            f"{sample.products:,}",
            f"{sample.wall_s:.2f}",
            str(sample.calls),
            f"{sample.roles['run'].cpu_s:.2f}",
            f"{sample.roles['run'].peak_mb:.1f}",
        ]
        for sample in (again, again_large)
    ]
    yield table("Run again when all is done", ["products", "seconds", "calls", "CPU s", "peak MB"], rows)


def fleet(bench, sizes):
    rabbitmq, redis = RabbitMq(bench.work / "rabbitmq"), Redis(bench.work / "redis")
    bench.versions |= {"RabbitMQ": rabbitmq.version(), "Redis": redis.version()}
    run = lambda simulator, products, workers: bench.fleet(rabbitmq, redis, simulator, products, workers)
    yield from fast_fleet(bench, sizes, run)
    yield slow_fleet(bench, sizes, run)
    for server in (redis, rabbitmq):
        server.child.kill()


def fast_fleet(bench, sizes, run):
    simulator = Simulator(bench.binary, bench.work / "fleet-simulator")
    by_fleet = {
        (workers, sizes.middle): bench.repeated(lambda: run(simulator, sizes.middle, workers)) for workers in FLEETS
    }
    by_fleet[2, sizes.large] = bench.repeated(lambda: run(simulator, sizes.large, 2), 1)
    simulator.child.kill()

    one, two, large = (by_fleet[key] for key in ((1, sizes.middle), (2, sizes.middle), (2, sizes.large)))
    roles = [peak_mb(role) for role in ("producer", "worker", "aggregator")]
    rows, costs = [], []
    for (workers, products), samples in by_fleet.items():
        name = f"{workers} worker{'s' if workers > 1 else ''}, {products:,} products"
        rows.append(
            [
                name,
                spread(samples, per_second),
                ratio(samples, one, per_second),
                spread(samples, lambda sample: sample.products / sample.first_to_last_s),
                spread(samples, last_to_first_tenth, 2),
                tenths_cpu(samples),
                *(spread(samples, role, 1) for role in roles),
            ]
        )
        counted = ["", "producer", "worker", "aggregator", "RabbitMQ", "Redis", "simulator"]
        costs.append([name, *(spread(samples, cpu_s(role), 2) for role in counted)])
    flat = f"2 workers, {sizes.large:,} to {sizes.middle:,}"
    rows.append([flat, ratio(large, two, per_second), "", "", "", "", *(ratio(large, two, role) for role in roles)])
    header = [
        "", "products/s", "to 1 worker", "between first and last result", "last tenth to first", "the same in CPU s",
        "producer's peak MB", "a worker's peak MB", "aggregator's peak MB",
    ]
    note = "All of it shares this machine's cores, brokers and simulator too. " + disturbance(by_fleet.values())
    yield table("A fleet", header, rows, note)
    header = [
        "CPU s per 1,000 products", "all roles", "producer", "workers", "aggregator", "RabbitMQ", "Redis", "simulator",
    ]
    yield table("What a fleet costs", header, costs)


def slow_fleet(bench, sizes, run):
    latency_s = SLOW_FLEET_LATENCY_S
    simulator = Simulator(bench.binary, bench.work / "fleet-slow-simulator", "--latency", f"{latency_s}s")
    # The first calls begin a latency before the first result.
    pace = lambda sample: sample.products / (sample.first_to_last_s + latency_s)
    rows, groups = [], []
    for workers in FLEETS:
        places = workers * bench.concurrency
        samples = bench.repeated(lambda: run(simulator, places * sizes.slow_fleet_turns, workers), 1)
        groups.append(samples)
        rows.append(
            [
                str(workers),
                f"{samples[0].products:,}",
                spread(samples, pace, 1),
                ratio(samples, groups[0], pace),
                f"{100 * median(samples, pace) / (places / latency_s):.1f} %",
                spread(samples, per_second, 1),
            ]
        )
    simulator.child.kill()
    title = f"A fleet and a slow model: {latency_s:.1f} s of latency, concurrency {bench.concurrency} each"
    header = ["workers", "products", "products/s", "to 1 worker", "of the ideal", "products/s from start to end"]
    return table(title, header, rows, disturbance(groups))


TOPICS = {"contest": contest, "embedded": embedded, "fleet": fleet, "scale": scale}
# Some minutes and gigabytes each: only when they are asked for.
LARGE_TOPICS = {"backlog": backlog, "resume": resume}
