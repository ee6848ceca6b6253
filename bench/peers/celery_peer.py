"""Celery as its documentation has it: RabbitMQ for tasks, Redis for results, late acknowledgement.

A worker with `celery -A celery_peer worker`; run as a script it publishes one task per product.
"""

import threading

import httpx
import redis
from celery import Celery

import work

app = Celery("bench", broker=work.AMQP_URL, backend=work.REDIS_URL)
app.conf.update(
    task_acks_late=True,
    task_serializer="json",
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=True,
)

# Made by the first task of each process: neither survives a fork.
_tools, _first = None, threading.Lock()


def tools():
    global _tools
    with _first:
        if _tools is None:
            _tools = make_tools()
    return _tools


def make_tools():
    limits = httpx.Limits(max_connections=work.CONCURRENCY, max_keepalive_connections=work.CONCURRENCY)
    client = httpx.Client(limits=limits, timeout=work.PATIENCE_S, headers=work.HEADERS, trust_env=False)
    return client, redis.Redis.from_url(work.REDIS_URL), work.Lines()


@app.task(name="enrich")
def enrich(raw):
    client, ledger, lines = tools()
    product_id, body = work.request_of(raw)
    analysis, usage = work.answer_of(client.post(work.CALL_URL, content=body))
    lines.write(product_id, analysis, usage)
    ledger.sadd(work.DONE, product_id)


if __name__ == "__main__":
    work.wait_for_go("publisher")
    for raw in work.products():
        enrich.delay(raw)
