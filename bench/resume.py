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

    def alone_again(number):
        nonlocal input_path, products, again, alone_mb
        input_path, products = one_more(scene, input_path, products)
        with scene.step("one product more, in one process"):
            again = run(scene, f"run again {number}", input_path, out)
            first_call = scene.first_call(again)
            alone_mb = rss_mb(again)
            scene.until(lambda: again.ended)
        check(out, products, scene.simulator.calls())
        return first_call

    again = alone_mb = None
    alone = scene.least_disturbed(alone_again)

    # The fleet's Redis learns what is done.
    known = products
    empty_bytes = scene.redis.used_bytes()
    with scene.step("an empty Redis told of the journal"):
        aggregator = aggregate(scene, "of an emptied Redis", out)
        scene.until(lambda: int(scene.fact("completed") or 0) >= products)
    told_s = scene.took_s
    told_bytes = scene.redis.used_bytes()
    with scene.step("a producer that finds nothing to do"):
        producer = produce(scene, "of nothing", input_path)
        scene.until(lambda: producer.ended)
    nothing_s = scene.took_s
    with scene.step("the aggregator's end"):
        scene.until(lambda: aggregator.ended)
    known_bytes, known_mb = scene.redis.used_bytes(), rss_mb(scene.redis.child)

    def together_again(number):
        nonlocal input_path, products, roles
        input_path, products = one_more(scene, input_path, products)
        scan = scene.fact("scan")
        with scene.step("one product more, as a fleet"):
            worker = scene.role(f"worker {number}", "worker", "--concurrency", bench.concurrency, "--until-done")
            producer = produce(scene, number, input_path)
            # One that was there before the producer would find the run complete, and end.
            scene.until(lambda: scene.fact("scan") != scan)
            roles = (producer, worker, aggregate(scene, number, out))
            first_call = scene.first_call(producer)
            scene.until(lambda: all(child.ended for child in roles))
        check(out, products, scene.simulator.calls())
        return first_call

    roles = ()
    together = scene.least_disturbed(together_again)

    told = lambda first: f"{first.seconds:.2f} ({first.cpu_s:.1f} CPU s, others used {first.foreign:.0%})"
    per_id = lambda size: f"{(size - empty_bytes) / known:.1f}"
    rows = [
        ["`shelfmill run` again: s to the first call", told(alone), "< 10"],
        ["its MB then; its peak, final files included", f"{alone_mb:.1f}; {peak_mb(again):.1f}", "≤ 32 bytes a product"],
        ["a fleet's producer again: s to the first call", told(together), "< 10"],
        ["a producer that finds nothing to do: s", f"{nothing_s:.2f}", ""],
        ["an emptied Redis knows every line again after, s", f"{told_s:.2f}", ""],
        ["Redis: bytes of each completed id, seen by a scan", per_id(known_bytes), "≤ 40"],
        ["the same before any scan; the process' MB", f"{per_id(told_bytes)}; {known_mb:.1f}", ""],
        ["peak MB of producer, worker, aggregator", ", ".join(f"{peak_mb(role):.1f}" for role in roles), ""],
    ]
    note = (
        f"Ids of {ID_BYTES} bytes, journal lines of {line_bytes:,.0f}. CPU seconds are those of all roles and servers up "
        f"to the call; of up to {bench.rounds} rounds the one counts that others disturbed least."
    )
    yield table(f"Going on after {sizes.crowd:,} completed products", ["", "measured", "wanted"], rows, note)
    scene.close()


def one_more(scene, input_path, products):
    scene.simulator.reset()
    more = scene.folder / f"catalog-{products + 1}.jsonl"
    return longer(input_path, more, line(products + 1, ID_BYTES)), products + 1


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
