"""How the runtime of a service is made: without Redis, from a URL, or from the user's clients."""

from __future__ import annotations

from typing import Any, NoReturn, Self, Unpack

import redis
from redis import asyncio as async_redis

from shared_resilience.backends import Backend, Backends
from shared_resilience.backends.clients import OwnClients, client_identity
from shared_resilience.backends.clock import Clock
from shared_resilience.backends.fallback import AsyncFallbackBackend, FallbackBackend
from shared_resilience.backends.local import AsyncLocalBackend, LocalBackend
from shared_resilience.backends.process import Process, shared_process
from shared_resilience.backends.redis import RedisStore, Wire
from shared_resilience.backends.wires import ClusterWire, PoolWire
from shared_resilience.backends.wires_async import AsyncClusterWire, AsyncPoolWire, OwnPools, UsersPool
from shared_resilience.options import CheckedOptions, Options
from shared_resilience.runtime import Runtime


class OfRuntime:
    """How a service is made, in either form."""

    def __init__(
        self,
        client: redis.Redis | redis.RedisCluster | None = None,
        *,
        async_client: async_redis.Redis | async_redis.RedisCluster | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._runtime = users_runtime(client, async_client, CheckedOptions(**options))

    @classmethod
    def from_url(cls, url: str, **options: Unpack[Options]) -> Self:
        """A service with clients of its own for `redis://`, `rediss://` or `unix://`."""
        return cls._of(own_runtime(url, CheckedOptions(**options)))

    @classmethod
    def local(cls, clock: Clock | None = None, **options: Unpack[Options]) -> Self:
        """A service without Redis: this process alone, by the same rules. For tests, with a clock of their own."""
        return cls._of(local_runtime(clock, CheckedOptions(**options)))

    @classmethod
    def _of(cls, runtime: Runtime) -> Self:
        service = cls.__new__(cls)
        service._runtime = runtime
        return service


def local_runtime(clock: Clock | None, options: CheckedOptions) -> Runtime:
    """Without Redis: decisions of this process alone."""
    process = Process(options.prefix, options.worker_id, clock)
    backends = Backends(lambda: LocalBackend(process), lambda: AsyncLocalBackend(process))
    return Runtime(process, backends, options)


def own_runtime(url: str, options: CheckedOptions) -> Runtime:
    """With clients of our own; connections are made when they are first needed."""
    clients = OwnClients(url, options.command_timeout, options.connect_timeout)
    process = shared_process(clients.identity, options.prefix, options.worker_id)
    pool, async_pools = clients.pool(), OwnPools(clients.async_pool)
    backends = Backends(
        lambda: _blocking(process, PoolWire(pool, options.command_timeout, theirs=False), options),
        lambda: _suspending(process, AsyncPoolWire(async_pools, options.command_timeout), options),
    )
    return Runtime(process, backends, options)


def users_runtime(client: Any, async_client: Any, options: CheckedOptions) -> Runtime:
    """With the user's clients, which stay theirs to close."""
    _expect(client, "client", redis.Redis, redis.RedisCluster)
    _expect(async_client, "async_client", async_redis.Redis, async_redis.RedisCluster)
    if client is None and async_client is None:
        raise TypeError("pass a client of redis-py, or use from_url() or local()")
    given = client if client is not None else async_client
    process = shared_process(client_identity(given), options.prefix, options.worker_id)
    patience = options.command_timeout

    def blocking() -> Backend:
        if client is None:
            _missing("client=", "a redis.Redis or redis.RedisCluster", "synchronous calls")
        cluster = isinstance(client, redis.RedisCluster)
        return _blocking(
            process, ClusterWire(client) if cluster else PoolWire(client.connection_pool, patience, True), options
        )

    def suspending() -> Backend:
        if async_client is None:
            _missing("async_client=", "a redis.asyncio.Redis or RedisCluster", "asyncio")
        if isinstance(async_client, async_redis.RedisCluster):
            return _suspending(process, AsyncClusterWire(async_client, patience), options)
        return _suspending(process, AsyncPoolWire(UsersPool(async_client.connection_pool), patience), options)

    return Runtime(process, Backends(blocking, suspending), options)


def _blocking(process: Process, wire: Wire, options: CheckedOptions) -> Backend:
    return FallbackBackend(process, RedisStore(wire), options.expected_workers)


def _suspending(process: Process, wire: Wire, options: CheckedOptions) -> Backend:
    return AsyncFallbackBackend(process, RedisStore(wire), options.expected_workers)


def _expect(client: object, field: str, *kinds: type) -> None:
    if client is not None and not isinstance(client, kinds):
        names = " or ".join(f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}" for kind in kinds)
        raise TypeError(f"{field} is a {type(client).__module__}.{type(client).__name__}, but must be a {names}")


def _missing(argument: str, kind: str, purpose: str) -> NoReturn:
    raise TypeError(f"{purpose} needs {argument} ({kind}); from_url() makes both clients")
