"""taskiq with taskiq-aio-pika: a worker with `taskiq worker taskiq_peer:broker`; as a script, the publisher."""

import asyncio

import httpx
import redis.asyncio as redis
from taskiq import TaskiqEvents
from taskiq_aio_pika import AioPikaBroker

import work

broker = AioPikaBroker(work.AMQP_URL, qos=work.CONCURRENCY)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def begin(state):
    limits = httpx.Limits(max_connections=work.CONCURRENCY, max_keepalive_connections=work.CONCURRENCY)
    state.client = httpx.AsyncClient(limits=limits, timeout=work.PATIENCE_S, headers=work.HEADERS, trust_env=False)
    state.ledger, state.lines = redis.Redis.from_url(work.REDIS_URL), work.Lines()


@broker.task(task_name="enrich")
async def enrich(raw: str) -> None:
    state = broker.state
    product_id, body = work.request_of(raw)
    analysis, usage = work.answer_of(await state.client.post(work.CALL_URL, content=body))
    state.lines.write(product_id, analysis, usage)
    await state.ledger.sadd(work.DONE, product_id)


async def publish():
    work.wait_for_go("publisher")
    await broker.startup()
    for raw in work.products():
        await enrich.kiq(raw)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(publish())
