"""A script without a broker, in the manner of the OpenAI cookbook's parallel processor: so many calls at once.

With one client for all calls, as people write it; or, with `BENCH_CLIENTS=each`, a client for each place. httpcore looks
at every connection of a pool for each idle one, so one pool of 64 costs most of the CPU there is: the second way is
some three times as fast, and is what a careful engineer would find.
"""

import asyncio
import os

import httpx
import redis.asyncio as redis

import work


async def main():
    limits = httpx.Limits(max_connections=work.CONCURRENCY, max_keepalive_connections=work.CONCURRENCY)
    lines, ledger = work.Lines(), redis.Redis.from_url(work.REDIS_URL)
    waiting = work.products()
    # Reading the machine's certificates takes a tenth of a second; one reading serves all.
    made = {"verify": httpx.create_ssl_context(), "timeout": work.PATIENCE_S, "headers": work.HEADERS}
    made |= {"limits": limits, "trust_env": False}
    places = work.CONCURRENCY
    if os.environ.get("BENCH_CLIENTS") == "each":
        clients = [httpx.AsyncClient(**made) for _ in range(places)]
    else:
        clients = [httpx.AsyncClient(**made)] * places

    async def take(client):
        for raw in waiting:
            product_id, body = work.request_of(raw)
            analysis, usage = work.answer_of(await client.post(work.CALL_URL, content=body))
            lines.write(product_id, analysis, usage)
            await ledger.sadd(work.DONE, product_id)

    work.wait_for_go("script")
    await asyncio.gather(*map(take, clients))
    await ledger.aclose()


asyncio.run(main())
