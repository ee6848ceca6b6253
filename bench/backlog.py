"""A backlog of a million products: what it costs to make, to hold, and whether the roles notice it."""

import statistics

from catalog import catalog
from report import table
from scene import Scene, peak_mb, rss_mb

SMALL_BACKLOG = 1_000
ROLES = ("producer", "worker", "aggregator")


def backlog(bench, sizes):
    products = sizes.crowd
    scene = Scene(bench, "backlog")
    input_path = catalog(bench.catalogs, products, id_bytes=16)

    # With a producer that keeps the queue short, against one that has put everything into it.
    producer = produce(scene, "producer 1", input_path, SMALL_BACKLOG)
    scene.until(lambda: int(scene.fact("scan_total") or 0) >= SMALL_BACKLOG)
    _, small = work(bench, scene, "1", sizes.watch_s)
    small["producer"] = small.pop(producer.name)
    scene.redis.flush()
    scene.rabbitmq.delete_queues()

    rabbitmq_mb, rabbitmq_disk, redis_bytes = rss_mb(scene.rabbitmq.child), scene.rabbitmq.disk_bytes(), scene.redis.used_bytes()
    producer = produce(scene, "producer 2", input_path, 10 * products)
    held = {}
    with scene.step(f"publishing {products:,} products"):
        for share in (0.1, 0.5, 0.99):
            scene.until(lambda: producer.ended or int(scene.fact("scan_total") or 0) >= share * products)
            held[share] = rss_mb(producer) if producer.ended is None else 0
        scene.until(lambda: producer.ended)
    published_s = producer.ended - producer.started
    rabbitmq_after, rabbitmq_peak = rss_mb(scene.rabbitmq.child), peak_mb(scene.rabbitmq.child)
    per_product = lambda size: f"{size / products:,.0f}"
    redis_after = scene.redis.used_bytes()
    disk_after = scene.rabbitmq.disk_bytes()
    first_call, large = work(bench, scene, "2", sizes.watch_s)

    rows = [
        ["publishing, products/s", f"{products / published_s:,.0f}", ""],
        [
            "producer's MB at 10, 50, 99 % of them; peak",
            f"{', '.join(f'{value:.1f}' for value in held.values())}; {peak_mb(producer):.1f}",
            "flat",
        ],
        ["a fresh worker's first call, s after its start", f"{first_call.seconds:.2f}", "< 5"],
        ["Redis: bytes of each product registered", per_product(redis_after - redis_bytes), "≤ 40"],
        [
            "RabbitMQ: MB before; with all of them; peak",
            f"{rabbitmq_mb:,.0f}; {rabbitmq_after:,.0f}; {rabbitmq_peak:,.0f}",
            "",
        ],
        ["RabbitMQ: bytes of disk for each product", per_product(disk_after - rabbitmq_disk), ""],
    ]
    disturbed = f"Other processes used at most {scene.foreign:.0%} of the machine meanwhile."
    yield table(f"A backlog of {products:,} products", ["", "measured", "wanted"], rows, disturbed)

    rows = [
        [role, *(spread(held[role]) if role in held else "ended" for held in (small, large))]
        for role in ROLES
    ]
    header = [f"MB over {sizes.watch_s} s of work", f"backlog of {SMALL_BACKLOG:,}", f"backlog of {products:,}"]
    yield table("Memory of the roles", header, rows)
    scene.close()


def produce(scene, name, input_path, max_backlog):
    options = ["--max-backlog", max_backlog, "--base-url", scene.simulator.url]
    return scene.role(name, "producer", input_path, *options)


def work(bench, scene, number, seconds):
    """A fresh worker and an aggregator on what is in the queue: the first call, and what all that run hold."""
    scene.simulator.reset()
    worker = scene.role(f"worker {number}", "worker", "--concurrency", bench.concurrency)
    with scene.step("to the first call"):
        first_call = scene.first_call(worker)
    aggregator = scene.role(f"aggregator {number}", "aggregator", "--out", scene.folder / f"out-{number}")
    children = [child for child in scene.children if child.ended is None]
    with scene.step(f"work ({', '.join(child.name for child in children)})"):
        held = scene.watch(children, seconds)
    bench.log(f"{scene.simulator.calls():,} calls; {scene.fact('completed')} lines")
    scene.kill_roles()
    named = {"worker": held[worker.name], "aggregator": held[aggregator.name]}
    return first_call, named | {name: held[name] for name in held if name.startswith("producer")}


def spread(values):
    """Without the first quarter, in which processes fill their buffers."""
    settled = values[len(values) // 4 :]
    return f"{statistics.median(settled):.1f} ({min(settled):.1f}–{max(settled):.1f})"
