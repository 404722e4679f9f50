"""The keys of a run: all of them under one random prefix, removed at the end or shown."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis import asyncio as async_redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared_resilience import AsyncResilienceService
from shared_resilience.demo.server import Server


class Keyspace:
    """What a run writes on a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.prefix = f"sr-demo-{secrets.token_hex(3)}"

    async def check(self) -> None:
        """Raises a `ResilienceError` if Redis cannot be asked and `ValueError` for a wrong URL, without secrets."""
        service = AsyncResilienceService.from_url(self._server.url, prefix=self.prefix, command_timeout=2.0)
        await service.check()
        await service.close()

    async def remove(self) -> None:
        """Removes all of them, with SCAN and UNLINK. Raises a `RedisError`."""
        async with self._client() as client:
            async for key in client.scan_iter(match=f"{self.prefix}*", count=1000):
                await client.unlink(key)

    async def contents(self) -> list[str]:
        """A line for each key, with what it holds."""
        async with self._client() as client:
            keys = sorted([key async for key in client.scan_iter(match=f"{self.prefix}*", count=1000)])
            return [f"{key}  {await _value(client, key)}" for key in keys]

    def commands(self) -> list[str]:
        """Lines for a shell that show the keys, without secrets."""
        cli, pattern = self._redis_cli(), shlex.quote(f"{self.prefix}*")
        stats = shlex.quote(f"{self.prefix}:{{with-sharing}}:stats")
        return [
            f"{cli} --scan --pattern {pattern}",
            f"{cli} HGETALL {stats}",
            f"{cli} --scan --pattern {pattern} | xargs {cli} UNLINK   # removes them",
        ]

    def _redis_cli(self) -> str:
        if self._server.embedded:
            return f"redis-cli -u {self._server.url}"
        options = async_redis.ConnectionPool.from_url(self._server.url).connection_kwargs
        if "path" in options:  # redis-cli knows no URL for it
            user = f" --user {shlex.quote(options['username'])}" if options.get("username") else ""
            return f"redis-cli -s {shlex.quote(options['path'])} -n {options.get('db') or 0}{user}"
        authority = f" --cacert {shlex.quote(options['ssl_ca_certs'])}" if options.get("ssl_ca_certs") else ""
        return f'redis-cli -u "$REDIS_URL"{authority}'

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        client = async_redis.Redis.from_url(
            self._server.url,
            decode_responses=True,
            protocol=2,
            socket_timeout=5.0,
            socket_connect_timeout=5.0,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            yield client
        finally:
            await client.aclose()


async def _value(client: Any, key: str) -> str:
    kind = await client.type(key)
    if kind == "hash":
        return " ".join(f"{field}={value}" for field, value in (await client.hgetall(key)).items())
    if kind == "zset":
        return " ".join(await client.zrange(key, 0, -1))
    return f"({kind})"  # gone in the meantime: "none"
