"""The synchronous ways to Redis: a pool of connections, or a cluster client.

Requests go out on redis-py's own connections, past its command methods: those would send a command again whose reply
was lost, and the user's client may be set up to do so ten times. Connecting, AUTH, TLS and Sentinel stay redis-py's.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from shared_resilience.backends.channels import Channel, Stale, channel_on
from shared_resilience.backends.connecting import is_ours, once
from shared_resilience.backends.ears import Ear, PoolEar
from shared_resilience.backends.faults import FOREIGN, StoreError
from shared_resilience.backends.forks import begin_anew_after_forks
from shared_resilience.backends.redis import Request
from shared_resilience.commands import Argument

T = TypeVar("T")
OF_TWO_WORDS = ("ACL", "CLUSTER", "MEMORY", "SCRIPT")
MOST_IDLE = 64
"""Connections that wait for the next caller."""


class PoliteRetry(Retry):
    """The retries of a user's pool: as they are for the user's own commands, none for ours.

    A pool connects by its own policy, up to ten times with pauses, before we hold the connection. This stands in for
    that policy and asks who is connecting.
    """

    def __init__(self, theirs: Any) -> None:
        super().__init__(NoBackoff(), 0)
        self.theirs = theirs

    def get_retries(self) -> int:
        retries: int = self.theirs.get_retries()
        return retries

    def update_supported_errors(self, specified_errors: Any) -> None:
        self.theirs.update_supported_errors(specified_errors)

    def call_with_retry(self, do: Callable[[], T], fail: Callable[..., Any], *args: Any, **kwargs: Any) -> T:
        policy: Any = super() if is_ours() else self.theirs
        result: T = policy.call_with_retry(do, fail, *args, **kwargs)
        return result


class PoolWire:
    """One server, or a primary that Sentinel names, through connections from a pool of redis-py.

    The connections that callers have used wait here for the next ones, the last one first: as many as there were
    callers at once, up to `MOST_IDLE`. A user's pool keeps its own timeouts, and three quarters of its connections.
    """

    def __init__(self, pool: redis.ConnectionPool, command_timeout: float, theirs: bool) -> None:
        self._pool = pool
        self._patience = command_timeout
        self._theirs = theirs
        self._most_idle = min(MOST_IDLE, pool.max_connections // 4 if theirs else MOST_IDLE)
        if theirs and (retry := pool.connection_kwargs.get("retry")) and not isinstance(retry, PoliteRetry):
            pool.set_retry(PoliteRetry(retry))
        self._idle: deque[Channel] = deque()
        weakref.finalize(self, _give_back_all, pool, self._idle).atexit = False
        begin_anew_after_forks(self)

    async def ask(self, request: Request) -> Any:
        return self._exchange(request.packed, 1)[0]

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        return self._exchange(b"".join([request.packed for request in requests]), len(requests))

    def _exchange(self, data: bytes, count: int) -> list[Any]:
        """Asks on a channel that nobody else uses meanwhile. Raises `StoreError`."""
        while True:
            try:
                channel = self._idle.pop()
            except IndexError:
                channel = self._open()
            try:
                replies = channel.exchange(data, count)
            except Stale:
                self._drop(channel)
                continue  # sooner or later with a fresh one, which nobody can have closed unnoticed
            except FOREIGN as error:
                self._drop(channel)
                raise StoreError(error, sent=True) from error
            except BaseException:
                self._drop(channel)
                raise
            self._keep(channel)
            return replies

    def _open(self) -> Channel:
        try:
            with once():
                connection: Any = self._pool.get_connection()
            return channel_on(connection, self._patience)
        except (*FOREIGN, ValueError) as error:  # the latter, if another thread closes the pool meanwhile
            raise StoreError(error, sent=False) from error

    def _keep(self, channel: Channel) -> None:
        if len(self._idle) < self._most_idle:
            self._idle.append(channel)
        else:
            _give_back(self._pool, channel)

    def _drop(self, channel: Channel) -> None:
        """Ends a channel: a reply that is still to come must never answer a later request."""
        channel.connection.disconnect()
        self._pool.release(channel.connection)

    def ear(self) -> Ear | None:
        return PoolEar(self._pool, self._patience) if self._most_idle > 0 else None

    async def reconnect(self) -> None:
        self._drop_all()
        with suppress(TypeError):  # a BlockingConnectionPool before redis-py 6 cannot spare connections in use
            self._pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        if self._theirs:
            _give_back_all(self._pool, self._idle)
        else:
            self._drop_all()
            self._pool.disconnect()

    def _drop_all(self) -> None:
        with suppress(IndexError):
            while True:
                self._drop(self._idle.pop())

    def after_fork(self) -> None:
        """In a child: what waits here is the parent's. The pool sees to itself."""
        self._idle.clear()


def _give_back(pool: redis.ConnectionPool, channel: Channel) -> None:
    channel.let_go()
    pool.release(channel.connection)


def _give_back_all(pool: redis.ConnectionPool, idle: deque[Channel]) -> None:
    with suppress(IndexError):
        while True:
            _give_back(pool, idle.pop())


class ClusterWire:
    """A Redis Cluster, through the user's client. Naming the node switches its retries off; redirections stay."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def ask(self, request: Request) -> Any:
        try:
            node = self._client.get_node_from_key(request.key)
            return self._client.execute_command(*joined(request), target_nodes=node)
        except ResponseError as refusal:
            return refusal
        except FOREIGN as error:
            raise StoreError(error, sent=True) from error

    async def exchange(self, requests: Sequence[Request]) -> list[Any]:
        return [await self.ask(request) for request in requests]

    def ear(self) -> Ear | None:
        return None

    async def reconnect(self) -> None:
        try:
            self._client.nodes_manager.initialize()
        except FOREIGN as error:
            raise StoreError(error, sent=False) from error

    async def close(self) -> None:
        """The client is the user's."""


def joined(request: Request) -> tuple[Argument | bytes, ...]:
    """The parts as redis-py wants them: a command of two words is one part."""
    first, *others = request.parts
    if first not in OF_TWO_WORDS:
        return request.parts
    second, *rest = others
    return (f"{first!s} {second!s}", *rest)
