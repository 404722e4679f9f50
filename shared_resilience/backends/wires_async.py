"""The asyncio ways to Redis: as `wires`, with a connection per event loop and a deadline per request."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from redis import asyncio as async_redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MaxConnectionsError, RedisClusterException, ResponseError

from shared_resilience.backends.connecting import is_ours, once
from shared_resilience.backends.ears import AsyncPoolEar, Ear
from shared_resilience.backends.faults import FOREIGN, StoreError
from shared_resilience.backends.redis import Request
from shared_resilience.backends.stream import Stream
from shared_resilience.backends.wires import joined

T = TypeVar("T")
MOST_BORROWED = 32
"""Connections of a user's pool that are used at once, and no more than half of them."""

Pool = async_redis.ConnectionPool
Loop = asyncio.AbstractEventLoop


def forget_closed(of_loops: dict[Loop, Any]) -> None:
    """Drops what belongs to event loops that are gone; it holds on to them, so that weak keys would keep both."""
    for loop in [loop for loop in of_loops if loop.is_closed()]:
        del of_loops[loop]


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
    """One server through pools of redis-py; each event loop has one connection, on which all its tasks ask.

    More connections were slower: they share the same core of Redis, and a larger batch costs less per command. A forked
    child leaves those of its parent's loop alone: to close them would take them out of the selector that both share.
    """

    def __init__(self, pools: Pools, command_timeout: float) -> None:
        self._pools = pools
        self._patience = command_timeout
        self._ways: dict[Loop, Way] = {}
        self._openings: dict[Loop, asyncio.Task[Way]] = {}

    def ask(self, request: Request) -> Awaitable[Any]:
        way = self._ways.get(asyncio.get_running_loop())
        if way is None or way.lost is not None:
            return self._ask_anew(request)
        return way.ask(request.packed)

    async def _ask_anew(self, request: Request) -> Any:
        return await (await self._open()).ask(request.packed)

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        way = self._ways.get(asyncio.get_running_loop())
        if way is None or way.lost is not None:
            way = await self._open()
        return await way.exchange([request.packed for request in requests])

    async def _open(self) -> Way:
        """The way of this loop. Whoever comes first has it made, by a task that no cancelled caller takes along."""
        loop = asyncio.get_running_loop()
        opening = self._openings.get(loop)
        if opening is None or opening.done():
            opening = self._openings[loop] = loop.create_task(self._make(loop), name="shared_resilience-connect")
            opening.add_done_callback(self._opened)
        return await asyncio.shield(opening)

    def _opened(self, opening: asyncio.Task[Way]) -> None:
        self._openings.pop(opening.get_loop(), None)
        if not opening.cancelled():
            opening.exception()  # nobody may be left to see it

    async def _make(self, loop: Loop) -> Way:
        forget_closed(self._ways)
        await self._retire(loop)
        pool = self._pools.of_this_loop()
        try:
            with once():
                connection = await pool.get_connection()
        except FOREIGN as error:
            raise StoreError(error, sent=False) from error
        transport = getattr(getattr(connection, "_writer", None), "transport", None)
        way: Way
        if self._pools.spare_one and hasattr(transport, "set_protocol") and str(connection.protocol) == "2":
            way = Stream(connection, transport, self._patience)  # type: ignore[arg-type]  # a transport by its methods
        else:
            await pool.release(connection)
            way = Borrowed(pool, self._patience)
        self._ways[loop] = way
        return way

    async def _retire(self, loop: Loop) -> None:
        """Gives the connection of this loop back to its pool, closed."""
        way = self._ways.pop(loop, None)
        if isinstance(way, Stream):
            way.close()
            await way.connection.disconnect(nowait=True)
            await self._pools.of_this_loop().release(way.connection)

    def ear(self) -> Ear | None:
        return AsyncPoolEar(self._pools.of_this_loop, self._patience) if self._pools.spare_one else None

    async def reconnect(self) -> None:
        await self._retire(asyncio.get_running_loop())
        await self._pools.of_this_loop().disconnect(inuse_connections=False)

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        if (opening := self._openings.get(loop)) is not None:
            opening.cancel()
            await asyncio.wait([opening])
        await self._retire(loop)
        await self._pools.close()


class Way(Protocol):
    """How the tasks of one event loop ask."""

    lost: Exception | None

    def ask(self, data: bytes) -> Awaitable[Any]:
        """The reply to a request. Fails with `StoreError`."""

    async def exchange(self, requests: Sequence[bytes]) -> list[Any]:
        """The replies to requests that are sent in one go. Raises `StoreError`."""


class Borrowed:
    """A connection from the pool for each exchange: for pools that cannot spare one, and for RESP3."""

    lost: Exception | None = None

    def __init__(self, pool: Any, patience: float) -> None:
        self._pool = pool
        self._patience = patience
        self._room = asyncio.Semaphore(max(1, min(MOST_BORROWED, pool.max_connections // 2)))

    async def ask(self, data: bytes) -> Any:
        return (await self.exchange([data]))[0]

    async def exchange(self, requests: Sequence[bytes]) -> list[Any]:
        try:
            async with asyncio.timeout(self._patience):
                await self._room.acquire()
        except TimeoutError:
            raise StoreError(MaxConnectionsError("too many requests wait for a connection"), sent=False) from None
        try:
            return await self._exchange(requests)
        finally:
            self._room.release()

    async def _exchange(self, requests: Sequence[bytes]) -> list[Any]:
        try:
            with once():
                connection = await self._pool.get_connection()
        except FOREIGN as error:
            raise StoreError(error, sent=False) from error
        try:
            async with asyncio.timeout(self._patience):
                await connection.send_packed_command(list(requests), check_health=False)
                return [await self._read(connection) for _ in requests]
        except BaseException as error:
            await connection.disconnect(nowait=True)  # a late reply must never answer a later request
            if isinstance(error, FOREIGN):
                raise StoreError(error, sent=True) from error
            raise
        finally:
            await self._pool.release(connection)

    async def _read(self, connection: Any) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as refusal:
            return refusal


class Pools(Protocol):
    """Where the connections of an event loop come from."""

    spare_one: bool
    """Whether one connection may be kept for good."""

    def of_this_loop(self) -> Any:
        """The pool of the running event loop."""

    async def close(self) -> None:
        """Closes what is ours."""


class OwnPools:
    """Pools of our own: one for each event loop that lives."""

    spare_one = True

    def __init__(self, make: Callable[[], Pool]) -> None:
        self._make = make
        self._pools: dict[Loop, Pool] = {}

    def of_this_loop(self) -> Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            forget_closed(self._pools)
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
        self.spare_one = pool.max_connections >= 4
        self._loop: weakref.ref[Loop] | None = None
        if (retry := pool.connection_kwargs.get("retry")) and not isinstance(retry, AsyncPoliteRetry):
            polite = AsyncPoliteRetry(retry)
            pool.connection_kwargs["retry"] = polite  # set_retry reaches existing connections only
            pool.set_retry(polite)

    def of_this_loop(self) -> Pool:
        loop = asyncio.get_running_loop()
        before = self._loop() if self._loop else None
        if before is not loop:
            if self._loop is not None and (before is None or before.is_closed()):
                self._pool.reset()
            self._loop = weakref.ref(loop)
        pool: Pool = self._pool
        return pool

    async def close(self) -> None:
        """The pool is the user's."""


class AsyncClusterWire:
    """As `wires.ClusterWire`."""

    def __init__(self, client: async_redis.RedisCluster, command_timeout: float) -> None:
        self._client = client
        self._patience = command_timeout

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        return [await self.ask(request) for request in requests]

    async def ask(self, request: Request) -> Any:
        sent = False
        try:
            node = await self._node(request.key)
            sent = True
            async with asyncio.timeout(self._patience):
                return await self._client.execute_command(*joined(request), target_nodes=node)
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

    def ear(self) -> Ear | None:
        return None

    async def reconnect(self) -> None:
        try:
            await self._client.nodes_manager.initialize()
        except FOREIGN as error:
            raise StoreError(error, sent=False) from error

    async def close(self) -> None:
        """The client is the user's."""
