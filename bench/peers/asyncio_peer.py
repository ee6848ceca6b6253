"""A script without a broker, in the manner of the OpenAI cookbook's parallel processor: so many calls at once."""

import asyncio

import httpx
import redis.asyncio as redis

import work


async def main():
    limits = httpx.Limits(max_connections=work.CONCURRENCY, max_keepalive_connections=work.CONCURRENCY)
    lines, ledger = work.Lines(), redis.Redis.from_url(work.REDIS_URL)
    waiting = work.products()
    async with httpx.AsyncClient(
        limits=limits, timeout=work.PATIENCE_S, headers=work.HEADERS, trust_env=False
    ) as client:

        async def take():
            for raw in waiting:
                product_id, body = work.request_of(raw)
                analysis, usage = work.answer_of(await client.post(work.CALL_URL, content=body))
                lines.write(product_id, analysis, usage)
                await ledger.sadd(work.DONE, product_id)

        work.wait_for_go("script")
        await asyncio.gather(*(take() for _ in range(work.CONCURRENCY)))
    await ledger.aclose()


asyncio.run(main())
