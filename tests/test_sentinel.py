"""A primary that Sentinel names: decided on its connections, and on those of its successor when it has died."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.sentinel import Sentinel
from sentinels import Watched
from servers import PATIENT, poll

from shared_resilience import ResilienceService, TokenBucket
from shared_resilience.backends.channels import SocketChannel
from shared_resilience.backends.stream import Stream

BUCKET = TokenBucket(1000, 0.001)
sentinel_of: Any = Sentinel
async_sentinel_of: Any = AsyncSentinel


def test_both_forms_decide_on_the_primary_and_after_its_death_on_its_successor(watched: Watched, prefix: str) -> None:
    where = [("127.0.0.1", watched.port)]

    async def main() -> None:
        sentinel, async_sentinel = sentinel_of(where, socket_timeout=1), async_sentinel_of(where, socket_timeout=1)
        client, async_client = (by.master_for("main", protocol=2) for by in (sentinel, async_sentinel))
        service = ResilienceService(client, async_client=async_client, prefix=prefix, command_timeout=PATIENT)
        limiter: Any = service.get_or_create_rate_limiter("search", BUCKET)
        async_limiter: Any = service.aio.get_or_create_rate_limiter("search")
        before = [limiter.try_acquire(), await async_limiter.try_acquire()]
        backends: Any = service._runtime.backends
        (channel,) = backends.blocking._store._wire._idle
        (way,) = backends.suspending._store._wire._ways.values()
        state = f"{prefix}:{{search}}:limit:token_bucket"
        with watched.replica.client() as replica:
            poll(lambda: (replica.hget(state, "microtokens") or "").startswith("998"), "a copy")
        watched.primary.kill()
        during = [limiter.try_acquire().source, (await async_limiter.try_acquire()).source]
        poll(watched.replica.leads, "the failover", 30)
        poll(lambda: limiter.try_acquire().source == "redis", "the successor to decide", 20)
        async with asyncio.timeout(20):
            while (after := await async_limiter.try_acquire()).source != "redis":  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.02)

        assert [(decision.remaining, decision.source) for decision in before] == [(999, "redis"), (998, "redis")]
        assert isinstance(channel, SocketChannel)
        assert isinstance(way, Stream)
        assert during == ["local", "local"]
        assert after.source == "redis"
        assert after.remaining < 998
        await service.aio.close()
        service.close()
        client.close()
        await async_client.aclose()
        for asked in async_sentinel.sentinels:
            await asked.aclose()

    asyncio.run(main())
