"""Going on with a run of which a million products are done and one is new, at the very end of the input.

The million is done in one process, which is faster. A fleet then goes on in the same folder with an empty Redis: the
aggregator tells it every line of the journal, as it does after a FLUSHALL, and a producer that finds nothing to do
registers the input. After that Redis holds what it holds after a million products went through a fleet: the same
keys, fields and values.
"""

import os

from catalog import catalog, line, longer
from measure import JOURNAL, check_summary, read_journal
from processes import BenchError
from report import table
from scene import Scene, peak_mb, rss_mb

ID_BYTES = 16


def resume(bench, sizes):
    products = sizes.crowd
    scene = Scene(bench, "resume")
    out = scene.folder / "out"
    input_path = catalog(bench.catalogs, products, ID_BYTES)
    with scene.step(f"a run of {products:,} products"):
        first = run(scene, "run 1", input_path, out)
        scene.until(lambda: first.ended)
    check(out, products)
    line_bytes = os.path.getsize(out / JOURNAL) / products

    grown = longer(input_path, scene.folder / "grown.jsonl", line(products + 1, ID_BYTES))
    scene.simulator.reset()
    with scene.step("one product more, in one process"):
        again = run(scene, "run 2", grown, out)
        alone = scene.first_call(again)
        alone_mb = rss_mb(again)
        scene.until(lambda: again.ended)
    check(out, products + 1, scene.simulator.calls())

    # The fleet's Redis learns what is done.
    empty_bytes = scene.redis.used_bytes()
    with scene.step("an empty Redis told of the journal"):
        aggregator = aggregate(scene, 1, out)
        scene.until(lambda: int(scene.fact("completed") or 0) > products)
    told_s = scene.took_s
    told_bytes = scene.redis.used_bytes()
    with scene.step("a producer that finds nothing to do"):
        producer = produce(scene, 1, grown)
        scene.until(lambda: producer.ended)
    nothing_s = scene.took_s
    with scene.step("the aggregator's end"):
        scene.until(lambda: aggregator.ended)
    known_bytes, known_mb = scene.redis.used_bytes(), rss_mb(scene.redis.child)

    grown = longer(grown, scene.folder / "grown-again.jsonl", line(products + 2, ID_BYTES))
    scene.simulator.reset()
    with scene.step("one product more, as a fleet"):
        worker = scene.role("worker", "worker", "--concurrency", bench.concurrency, "--until-done")
        scan = scene.fact("scan")
        producer = produce(scene, 2, grown)
        # One that was there before the producer would find the run complete, and end.
        scene.until(lambda: scene.fact("scan") != scan)
        aggregator = aggregate(scene, 2, out)
        together = scene.first_call(producer)
        scene.until(lambda: all(child.ended for child in (producer, worker, aggregator)))
    check(out, products + 2, scene.simulator.calls())

    told = lambda first_call: f"{first_call[0]:.2f} ({first_call[1]:.1f} CPU s)"
    per_id = lambda size: f"{(size - empty_bytes) / (products + 1):.1f}"
    rows = [
        ["`shelfmill run` again: s to the first call", told(alone), "< 10"],
        ["its MB then; its peak, final files included", f"{alone_mb:.1f}; {peak_mb(again):.1f}", "≤ 32 bytes a product"],
        ["a fleet's producer again: s to the first call", told(together), "< 10"],
        ["a producer that finds nothing to do: s", f"{nothing_s:.2f}", ""],
        ["an emptied Redis knows every line again after, s", f"{told_s:.2f}", ""],
        ["Redis: bytes of each completed id, seen by a scan", per_id(known_bytes), "≤ 40"],
        ["the same before any scan; the process' MB", f"{per_id(told_bytes)}; {known_mb:.1f}", ""],
        ["peak MB of producer, worker, aggregator", ", ".join(f"{peak_mb(child):.1f}" for child in (producer, worker, aggregator)), ""],
    ]
    note = (
        f"Ids of {ID_BYTES} bytes, journal lines of {line_bytes:,.0f}. "
        f"Other processes used at most {scene.foreign:.0%} of the machine meanwhile."
    )
    yield table(f"Going on after {products:,} completed products", ["", "measured", "wanted"], rows, note)
    scene.close()


def run(scene, name, input_path, out):
    options = ["-q", "--run", scene.name, "--base-url", scene.simulator.url, "--out", out]
    return scene.child(name, "run", input_path, *options, "--concurrency", scene.bench.concurrency)


def produce(scene, number, input_path):
    return scene.role(f"producer {number}", "producer", input_path, "--base-url", scene.simulator.url)


def aggregate(scene, number, out):
    return scene.role(f"aggregator {number}", "aggregator", "--out", out)


def check(out, products, calls=1):
    if calls != 1:
        raise BenchError(f"{calls} calls for one new product")
    check_summary("resume", out, products)
    read_journal("resume", out, products)
