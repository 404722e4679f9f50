"""The asyncio ways to Redis: as `wires`, with a pool per event loop and a total deadline per exchange."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis import asyncio as async_redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, ResponseError

from shared_resilience.backends.faults import FOREIGN, StoreError
from shared_resilience.backends.redis import Request
from shared_resilience.backends.wires import is_ours, once

T = TypeVar("T")
Pool = async_redis.ConnectionPool
Loop = asyncio.AbstractEventLoop


class AsyncPoliteRetry(Retry):
    """As `wires.PoliteRetry`."""

    def __init__(self, theirs: Any) -> None:
        super().__init__(NoBackoff(), 0)
        self.theirs = theirs

    def get_retries(self) -> int:
        retries: int = self.theirs.get_retries()
        return retries

    def update_supported_errors(self, specified_errors: Any) -> None:
        self.theirs.update_supported_errors(specified_errors)

    async def call_with_retry(
        self, do: Callable[[], Awaitable[T]], fail: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> T:
        policy: Any = super() if is_ours() else self.theirs
        result: T = await policy.call_with_retry(do, fail, *args, **kwargs)
        return result


class AsyncPoolWire:
    """One server through pools of redis-py: a connection belongs to the event loop that made it."""

    def __init__(self, pool_for: Callable[[], Pool], command_timeout: float) -> None:
        self._pool_for = pool_for
        self._patience = command_timeout

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        pool: Any = self._pool_for()
        try:
            with once():
                connection = await pool.get_connection()
        except FOREIGN as error:
            raise StoreError(error, sent=False) from error
        try:
            async with asyncio.timeout(self._patience):
                packed = connection.pack_commands([request for _, request in requests])
                await connection.send_packed_command(packed, check_health=False)
                return [await self._read(connection) for _ in requests]
        except BaseException as error:
            await connection.disconnect(nowait=True)  # a late reply must never answer a later request
            if isinstance(error, FOREIGN):
                raise StoreError(error, sent=True) from error
            raise
        finally:
            await pool.release(connection)

    async def _read(self, connection: Any) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as refusal:
            return refusal

    async def reconnect(self) -> None:
        await self._pool_for().disconnect(inuse_connections=False)


class OwnPools:
    """Pools of our own: one for each event loop that lives."""

    def __init__(self, make: Callable[[], Pool]) -> None:
        self._make = make
        self._pools: weakref.WeakKeyDictionary[Loop, Pool] = weakref.WeakKeyDictionary()

    def __call__(self) -> Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            pool = self._pools[loop] = self._make()
        return pool

    async def close(self) -> None:
        """Closes the connections of the running event loop."""
        if pool := self._pools.pop(asyncio.get_running_loop(), None):
            await pool.disconnect()


class UsersPool:
    """The pool of the user's client, without its retries, and without connections of an event loop that is gone."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._loop: weakref.ref[Loop] | None = None
        if (retry := pool.connection_kwargs.get("retry")) and not isinstance(retry, AsyncPoliteRetry):
            polite = AsyncPoliteRetry(retry)
            pool.connection_kwargs["retry"] = polite  # set_retry reaches existing connections only
            pool.set_retry(polite)

    def __call__(self) -> Pool:
        loop = asyncio.get_running_loop()
        before = self._loop() if self._loop else None
        if before is not loop:
            if self._loop is not None and (before is None or before.is_closed()):
                self._pool.reset()
            self._loop = weakref.ref(loop)
        pool: Pool = self._pool
        return pool


class AsyncClusterWire:
    """As `wires.ClusterWire`."""

    def __init__(self, client: async_redis.RedisCluster, command_timeout: float) -> None:
        self._client = client
        self._patience = command_timeout

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        return [await self._send(key, request) for key, request in requests]

    async def _send(self, key: str, request: tuple[Any, ...]) -> Any:
        sent = False
        try:
            node = await self._node(key)
            sent = True
            async with asyncio.timeout(self._patience):
                return await self._client.execute_command(*request, target_nodes=node)
        except ResponseError as refusal:
            return refusal
        except FOREIGN as error:
            raise StoreError(error, sent) from error

    async def _node(self, key: str) -> Any:
        try:
            return self._client.get_node_from_key(key)
        except RedisClusterException:  # not asked for its slots yet
            await self._client.initialize()
            return self._client.get_node_from_key(key)

    async def reconnect(self) -> None:
        try:
            await self._client.nodes_manager.initialize()
        except FOREIGN as error:
            raise StoreError(error, sent=False) from error
