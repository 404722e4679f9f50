"""What a service and its asyncio twin are made of: one process state, and a backend for each of the two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn, TypedDict, TypeVar, cast

import redis
from redis import asyncio as async_redis

from shared_resilience import validation
from shared_resilience.admission import Admission
from shared_resilience.backends import ON_OUTAGE, Backend, Backends, OnOutage
from shared_resilience.backends.clients import OwnClients, client_identity
from shared_resilience.backends.clock import Clock
from shared_resilience.backends.fallback import AsyncFallbackBackend, FallbackBackend
from shared_resilience.backends.local import AsyncLocalBackend, LocalBackend
from shared_resilience.backends.process import Component, Process, shared_process
from shared_resilience.backends.redis import RedisStore, Wire
from shared_resilience.backends.wires import ClusterWire, PoolWire
from shared_resilience.backends.wires_async import AsyncClusterWire, AsyncPoolWire, OwnPools, UsersPool
from shared_resilience.breaker import Breaker
from shared_resilience.bulkhead_config import BulkheadConfig
from shared_resilience.circuit_config import CircuitBreakerConfig
from shared_resilience.claims import Claims
from shared_resilience.commands import Command
from shared_resilience.errors import ResilienceError
from shared_resilience.events import Listener
from shared_resilience.fallback import Fallback
from shared_resilience.fallback_config import FallbackConfig
from shared_resilience.idempotency_config import IdempotencyConfig
from shared_resilience.latency import Latency
from shared_resilience.limit_commands import OVERRIDE
from shared_resilience.limiter import Limiter
from shared_resilience.limiter_config import LimiterConfig
from shared_resilience.limits import Limit
from shared_resilience.overrides import override_text
from shared_resilience.permits import Composition
from shared_resilience.retries import Retries
from shared_resilience.retry_config import RetryConfig
from shared_resilience.timeout_config import TimeoutConfig

SECTIONS = {
    "rate_limiter": "rate_limiters",
    "circuit_breaker": "circuit_breakers",
    "bulkhead": "bulkheads",
    "retry_manager": "retry_managers",
    "adaptive_timeout": "adaptive_timeouts",
    "fallback_chain": "fallback_chains",
    "idempotency": "idempotency",
}
"""Kinds of components, and what statistics call them."""

G = TypeVar("G")
C = TypeVar("C", bound=Component)


class Options(TypedDict, total=False):
    """The options of a service; `ResilienceService` says what they mean."""

    prefix: str
    on_outage: OnOutage | None
    expected_workers: int | None
    command_timeout: float
    connect_timeout: float
    sync_interval: float
    worker_id: str | None
    listeners: Iterable[Listener]


class CheckedOptions:
    """Options, complete. Raises `ValueError` for a wrong one and `TypeError` for one that does not exist."""

    def __init__(
        self,
        prefix: str = "sr",
        on_outage: OnOutage | None = None,
        expected_workers: int | None = None,
        command_timeout: float = 0.1,
        connect_timeout: float = 2.0,
        sync_interval: float = 0.1,
        worker_id: str | None = None,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self.prefix = validation.prefix("prefix", prefix)
        if on_outage is not None:
            validation.choice("on_outage", on_outage, ON_OUTAGE)
        if expected_workers is not None:
            validation.count("expected_workers", expected_workers)
        if worker_id is not None:
            validation.text("worker_id", worker_id)
        self.on_outage = on_outage
        self.expected_workers = expected_workers
        self.worker_id = worker_id
        self.command_timeout = validation.number("command_timeout", command_timeout, 0.001, 3600)
        self.connect_timeout = validation.number("connect_timeout", connect_timeout, 0.001, 3600)
        self.sync_interval = validation.number("sync_interval", sync_interval, 0.001, 60)
        self.listeners = tuple(listeners)


class Runtime:
    """One process state, its backends, and how to close what they hold."""

    def __init__(self, process: Process, backends: Backends, options: CheckedOptions) -> None:
        self.process = process
        self.backends = backends
        self.on_outage = options.on_outage
        self._sync_interval = options.sync_interval
        self._local_backends = Backends(lambda: LocalBackend(process), lambda: AsyncLocalBackend(process))
        self._compositions: dict[str, Composition] = {}
        process.events.add(options.listeners)

    def limiter(self, name: str, limits: tuple[Limit, ...], **options: object) -> Limiter:
        """The limiter `name` of this process; None stands for what an existing one has, else for the default."""
        chosen: dict[str, Any] = {field: value for field, value in options.items() if value is not None}
        if limits:
            chosen["limits"] = limits
        components = self.process.components
        with self.process.lock:
            core = cast("Limiter | None", components.get(("rate_limiter", name)))
            if core is None:
                config = LimiterConfig(**{"on_outage": self.on_outage or "local", **chosen})
                core = components["rate_limiter", name] = Limiter(name, config, self.process)
        if (wanted := replace(core.config, **chosen)) != core.config:
            raise ValueError(f"rate limiter {name!r} exists with another configuration: {core.config}, not {wanted}")
        return core

    # Below, a configuration of None stands for what an existing component has, else for the default.

    def breaker(self, name: str, config: CircuitBreakerConfig | None) -> Breaker:
        """The circuit breaker `name` of this process."""

        def make(chosen: CircuitBreakerConfig) -> Breaker:
            return Breaker(name, chosen, self.process, self._sync_interval)

        return self._component("circuit_breaker", name, CircuitBreakerConfig, config, make)

    def bulkhead(self, name: str, config: BulkheadConfig | None) -> Admission:
        """The bulkhead `name` of this process."""

        def make(chosen: BulkheadConfig) -> Admission:
            return Admission(name, chosen, self.process, chosen.on_outage or self.on_outage or "local")

        return self._component("bulkhead", name, BulkheadConfig, config, make)

    def retries(self, name: str, config: RetryConfig | None) -> Retries:
        """The retries of `name` in this process."""
        return self._component(
            "retry_manager", name, RetryConfig, config, lambda chosen: Retries(name, chosen, self.process)
        )

    def latency(self, name: str, config: TimeoutConfig | None) -> Latency:
        """What the adaptive timeout `name` of this process follows."""
        return self._component(
            "adaptive_timeout", name, TimeoutConfig, config, lambda chosen: Latency(name, chosen, self.process)
        )

    def fallback(self, name: str, config: FallbackConfig | None) -> Fallback:
        """The fallback chain `name` of this process."""
        return self._component(
            "fallback_chain", name, FallbackConfig, config, lambda chosen: Fallback(name, chosen, self.process)
        )

    def claims(self, name: str, config: IdempotencyConfig | None) -> Claims:
        """The calls of `name` that are made once, in this process."""

        def make(chosen: IdempotencyConfig) -> Claims:
            return Claims(name, chosen, self.process, chosen.on_outage or self.on_outage or "raise")

        return self._component("idempotency", name, IdempotencyConfig, config, make)

    def _component(self, kind: str, name: str, of: type[G], config: G | None, make: Callable[[G], C]) -> C:
        if config is not None and not isinstance(config, of):
            raise validation.wrong("config", config, f"a {of.__name__}")
        components = self.process.components
        with self.process.lock:
            core: Any = components.get((kind, name))
            if core is None:
                core = components[kind, name] = make(config or of())
        if config is not None and config != core.config:
            what = kind.replace("_", " ")
            raise ValueError(f"{what} {name!r} exists with another configuration: {core.config}, not {config}")
        return cast("C", core)

    def permits(self, name: str) -> Composition:
        """The limiter and the bulkhead `name` of this process, together. Raises `LookupError` if one is missing."""
        components = self.process.components
        with self.process.lock:
            limiter, bulkhead = components.get(("rate_limiter", name)), components.get(("bulkhead", name))
            known = self._compositions.get(name)
            if known is None and isinstance(limiter, Limiter) and isinstance(bulkhead, Admission):
                known = self._compositions[name] = Composition(limiter, bulkhead)
        if known is None:
            missing = "rate limiter" if limiter is None else "bulkhead"
            raise LookupError(f"there is no {missing} {name!r}: permits() takes both; get_or_create_… makes them")
        return known

    def backends_of(self, bulkhead: Admission) -> Backends:
        """Where the calls of a bulkhead are decided: those of a local one in this process."""
        return self._local_backends if bulkhead.config.local else self.backends

    async def override(self, backend: Backend, name: str, field: str, number: float | None) -> None:
        """Overrides a number of a resource for the fleet; None ends that."""
        text = "" if number is None else override_text(field, number)
        resource = self.process.heartbeat.resource(name)
        if text and resource.numbers and field not in resource.numbers:
            raise ValueError(f"field is {field!r}, but {name!r} has {', '.join(resource.numbers)}")
        command = Command(OVERRIDE, (resource.keys.overrides,), (field, text))
        await backend.run(command, resource, "raise")
        self.process.local.execute(command)  # should Redis be lost before the heartbeat brings it
        known = {**resource.overrides, field: text}
        resource.overrides = {known_field: value for known_field, value in known.items() if value}

    async def close(self, backend: Backend) -> None:
        """Gives back and reports what this process holds, then closes what `backend` has opened."""
        for core in list(self.process.components.values()):
            with suppress(ResilienceError):  # what cannot be given back or told is lost
                await core.before_close(backend)
        await backend.close()

    def stats(self) -> dict[str, Any]:
        """What `get_comprehensive_stats` returns."""
        process = self.process
        sections: dict[str, dict[str, object]] = {section: {} for section in SECTIONS.values()}
        for (kind, name), core in list(process.components.items()):
            sections[SECTIONS[kind]][name] = core.known()
        return {
            "timestamp": time.time(),
            "store": {"usable": process.guard.usable, "answered": process.guard.proven},
            "fleet": {"workers": process.heartbeat.fleet_size, "worker_id": process.heartbeat.worker_id},
            **sections,
        }


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
