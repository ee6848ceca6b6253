"""What every peer does for one product: the request Shelfmill sends for it, its id into Redis, one line out.

The request is a captured one (see bench/request.py) with this product in it, so that all contenders send the same
bytes. The harness tells the places by environment variables, and says when to begin.
"""

import json
import os
import pathlib
import threading
import time

BASE_URL = os.environ["BENCH_BASE_URL"]
AMQP_URL = os.environ["BENCH_AMQP_URL"]
REDIS_URL = os.environ["BENCH_REDIS_URL"]
INPUT = os.environ["BENCH_INPUT"]
OUT = pathlib.Path(os.environ["BENCH_OUT"])
GO = pathlib.Path(os.environ["BENCH_GO"])
CONCURRENCY = int(os.environ["BENCH_CONCURRENCY"])

CALL_URL = f"{BASE_URL}/chat/completions"
HEADERS = {"content-type": "application/json"}
# An answer that takes longer is broken.
PATIENCE_S = 60
DONE = "bench:done"
REQUEST = json.loads(pathlib.Path(os.environ["BENCH_REQUEST"]).read_text())


def wait_for_go(name):
    """Tells the harness that imports are over, and waits for its word: a peer's start is not counted."""
    print(f"{name} ready", flush=True)
    while not GO.exists():
        time.sleep(0.01)


def products():
    """The raw JSON of each product of the catalog."""
    with open(INPUT, encoding="utf-8") as file:
        for line in file:
            yield line.rstrip("\n")


def request_of(raw):
    """The product's id, and the body of its call."""
    product = json.loads(raw)
    text = f"Analyse this product (id {product['id']}):\n\n{json.dumps(product, indent=2, ensure_ascii=False)}"
    system = REQUEST["messages"][0]
    body = {**REQUEST, "messages": [system, {"role": "user", "content": text}]}
    return product["id"], json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def answer_of(response):
    """The model's answer, parsed, as a client must that keeps it."""
    response.raise_for_status()
    answer = response.json()
    return json.loads(answer["choices"][0]["message"]["content"]), answer["usage"]


class Lines:
    """A file of this process: one line per product, flushed; threads take turns."""

    def __init__(self):
        self.file, self.turn = open(OUT / f"lines-{os.getpid()}.jsonl", "a", encoding="utf-8"), threading.Lock()

    def write(self, product_id, analysis, usage):
        line = json.dumps({"id": product_id, "analysis": analysis, "usage": usage, "at": time.time()})
        with self.turn:
            self.file.write(line + "\n")
            self.file.flush()
