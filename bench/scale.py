"""Ten thousand to a million products: nothing may grow with what is done but the files, and Redis by some bytes an id.

In one process: the seconds of the first and the last tenth, memory, the journal, the final files, and going on when all
is done and the input has a tenth more. As a fleet: what Redis keeps of an id, and the memory of each role at a million against 100,000.
"""

import os
import shutil
import statistics
import time

import processes
from catalog import catalog
from measure import JOURNAL, check_summary, read_journal
from processes import BenchError, Child
from report import spread, table
from servers import RabbitMq, Redis, Simulator

RESULTS = "enriched_products_analysis.json"
FIRST_CALL_EVERY_S = 0.01
FLEET_WORKERS = 1
ROLES = ("producer", "worker", "aggregator")


def scale(bench, sizes):
    simulator = Simulator(bench.binary, bench.work / "scale-simulator")
    rows, plotted = [], []
    for products in sizes.scale:
        samples = bench.repeated(lambda: bench.embedded(simulator, products))
        figure = lambda of: statistics.median(of(sample) for sample in samples)
        journal_mb = os.path.getsize(bench.last_out / JOURNAL) / 1e6
        results_mb = os.path.getsize(bench.last_out / RESULTS) / 1e6
        resumed_s, resumed_mb = going_on(bench, simulator, products)
        peak = figure(lambda sample: sample.roles["run"].peak_mb)
        ending_s = figure(lambda sample: sample.ending_s)
        tenths = [micros(figure(of), products) for of in (first_tenth_s, last_tenth_s)]
        rows.append(
            [
                f"{products:,}",
                f"{figure(lambda sample: products / sample.wall_s):,.0f}",
                "; ".join(tenths),
                spread(samples, lambda sample: sample.last_to_first_tenth, 2),
                f"{figure(lambda sample: sample.peak_before_end_mb):.1f}; {peak:.1f}",
                f"{journal_mb:,.1f}; {results_mb:,.1f}",
                f"{ending_s:.2f}",
                f"{journal_mb / ending_s:,.0f}",
                f"{resumed_s:.2f}; {resumed_mb:.1f}",
            ]
        )
        plotted.append((f"{products:,} products", peak))
    simulator.child.kill()
    header = [
        "products", "products/s", "µs a product, first tenth; last", "last to first",
        "peak MB before the final files; in all", "MB of journal; of results", "final files, s",
        "MB of journal/s", "going on with a tenth more: s to the first call; peak MB",
    ]
    note = (
        "The final files' time is that from the last line of the journal to the end of the process. Asked of a million: "
        "last to first ≤ 1.05, under 100 MB and within 1.5 × of 100,000, the first call within 10 s, the final files at "
        "200 MB/s. Medians of several runs, but for going on; the tenths' times scatter (see above)."
    )
    yield table("From ten thousand to a million: one process", header, rows, note)
    yield bench.plot("scale-memory.svg", "Peak MB of one process", plotted, logarithmic=False)
    if sizes.scale_fleet:
        yield from fleets(bench, sizes)


def first_tenth_s(sample):
    return sample.first_tenth_s


def last_tenth_s(sample):
    return sample.last_tenth_s


def micros(seconds, products):
    return f"{seconds / (products / 10) * 1e6:,.0f}"


def going_on(bench, simulator, done):
    """The last run is started again with a tenth more products: seconds from its start to its first call; and its peak."""
    products, out = done + done // 10, bench.last_out
    simulator.reset()
    command = [bench.binary, "run", catalog(bench.catalogs, products), "-q", "--out", out]
    command += ["--base-url", simulator.url, "--concurrency", bench.concurrency]
    child = Child("run again", command, bench.work / "run-again.log")
    while not simulator.calls():
        if child.has_ended():
            raise BenchError(f"no call for {products - done:,} new products:\n{child.tail()}")
        child.sample()
        time.sleep(FIRST_CALL_EVERY_S)
    first_call_s = time.monotonic() - child.started
    processes.finish([child], 60 + products / 100, [simulator.child])
    if simulator.calls() != products - done:
        raise BenchError(f"{simulator.calls()} calls for {products - done:,} new products")
    check_summary("going on", out, products)
    read_journal("going on", out, products)
    bench.log(f"going on after {done:,}: first call after {first_call_s:.2f} s")
    return first_call_s, child.peak_kb * 1024 / 1e6


def fleets(bench, sizes):
    rabbitmq, redis = RabbitMq(bench.work / "scale-rabbitmq"), Redis(bench.work / "scale-redis")
    simulator = Simulator(bench.binary, bench.work / "scale-fleet-simulator")
    bench.versions |= {"RabbitMQ": rabbitmq.version(), "Redis": redis.version()}
    rows, peaks = [], []
    for products in sizes.scale_fleet:
        redis.flush()
        empty = redis.used_bytes()
        sample = bench.fleet(rabbitmq, redis, simulator, products, FLEET_WORKERS)
        held = {
            role: max(cost.peak_mb for name, cost in sample.roles.items() if name.startswith(role)) for role in ROLES
        }
        peaks.append(held)
        rows.append(
            [
                f"{products:,}",
                f"{products / sample.wall_s:,.0f}",
                f"{sample.last_to_first_tenth:.2f}",
                f"{(redis.used_bytes() - empty) / products:.1f}",
                *(f"{held[role]:.1f}" for role in ROLES),
                *(f"{sample.servers[name].peak_mb:,.0f}" for name in ("RabbitMQ", "Redis")),
            ]
        )
    # A role of a smoke run may end before it is looked at.
    growth = [f"× {peaks[-1][role] / peaks[0][role]:.2f}" if peaks[0][role] else "" for role in ROLES]
    rows.append([f"{sizes.scale_fleet[-1]:,} to {sizes.scale_fleet[0]:,}", "", "", "", *growth, "", ""])
    for server in (simulator, redis, rabbitmq):
        server.child.kill()
    shutil.rmtree(bench.work / "scale-rabbitmq", ignore_errors=True)
    header = [
        "products", "products/s", "last tenth to first", "Redis: bytes of each id",
        *(f"{role}'s peak MB" for role in ROLES), "RabbitMQ's", "Redis'",
    ]
    yield table(f"From {sizes.scale_fleet[0]:,} on: a fleet of {FLEET_WORKERS}", header, rows, "Asked: every role under 40 MB, flat.")
