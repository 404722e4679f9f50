"""What a service and its asyncio twin are made of: one process state, and a backend for each of the two."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar, cast

from shared_resilience import validation
from shared_resilience.admission import Admission
from shared_resilience.backends import Backend, Backends
from shared_resilience.backends.local import AsyncLocalBackend, LocalBackend
from shared_resilience.backends.process import Component, Process
from shared_resilience.breaker import Breaker
from shared_resilience.bulkhead_config import BulkheadConfig
from shared_resilience.checkup import Checkup, checkups_of
from shared_resilience.circuit_config import CircuitBreakerConfig
from shared_resilience.claims import Claims
from shared_resilience.commands import Command
from shared_resilience.diagnosis import Diagnosis
from shared_resilience.doctor import check
from shared_resilience.errors import ResilienceError
from shared_resilience.fallback import Fallback
from shared_resilience.fallback_config import FallbackConfig
from shared_resilience.fleet import Worker
from shared_resilience.health import DOWN, UP, Health, HealthCheckResult, overall
from shared_resilience.health_config import HealthCheckConfig, HealthCheckType
from shared_resilience.heartbeat import DECIDED_LOCALLY
from shared_resilience.idempotency_config import IdempotencyConfig
from shared_resilience.latency import Latency
from shared_resilience.limit_commands import OVERRIDE
from shared_resilience.limiter import Limiter
from shared_resilience.limiter_config import LimiterConfig
from shared_resilience.limits import Limit
from shared_resilience.options import CheckedOptions
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
    "health_checker": "health_checkers",
}
"""Kinds of components, and what statistics call them."""

UNCHECKED = HealthCheckResult(False, error="it has not been checked yet")

G = TypeVar("G")
C = TypeVar("C", bound=Component)


class Runtime:
    """One process state, its backends, and how to close what they hold."""

    def __init__(self, process: Process, backends: Backends, options: CheckedOptions) -> None:
        self.process = process
        self.backends = backends
        self.on_outage = options.on_outage
        self._sync_interval = options.sync_interval
        self._command_timeout = options.command_timeout
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

    def checkup(self, name: str, config: HealthCheckConfig | None) -> Checkup:
        """The health check `name` of this process."""
        return self._component(
            "health_checker", name, HealthCheckConfig, config, lambda chosen: Checkup(name, chosen, self.process)
        )

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

    async def workers(self, backend: Backend) -> list[Worker]:
        """Who is alive, this process being so."""
        heartbeat = self.process.heartbeat
        await backend.run(heartbeat.enlist(), heartbeat.whole_fleet)
        return await backend.run(heartbeat.roll.workers(), heartbeat.whole_fleet)

    async def check(self, backend: Backend) -> Diagnosis:
        """What a self-check finds. Raises `StoreUnavailableError` or `StoreConfigurationError`."""
        return await check(backend, self.process.prefix, self._command_timeout)

    async def health(self, backend: Backend, check_type: HealthCheckType) -> Health:
        """What all checks of a type say, and, where it is to be ready, whether Redis decides."""
        if not isinstance(check_type, HealthCheckType):
            raise validation.wrong("check_type", check_type, "a HealthCheckType")
        cores = [core for core in checkups_of(self.process) if check_type.includes(core.config.check_type)]
        for core in cores:
            core.revive(backend)
        due = [core for core in cores if core.check is not None and not (core.in_background and core.latest)]
        await backend.together([core.ask(backend) for core in due])
        parts = [(core.healthy, core.config.critical) for core in cores]
        checks = {core.name: core.latest or UNCHECKED for core in cores}
        if check_type.includes(HealthCheckType.READINESS):
            store = await self._store_check(backend)
            parts.append((store.healthy, False))  # without it, this process decides alone
            checks.setdefault("store", store)
        status = overall(parts) if parts else UP
        return Health(status != DOWN, status, checks)

    async def _store_check(self, backend: Backend) -> HealthCheckResult:
        began, at, error = time.perf_counter(), time.time(), None
        try:
            await backend.check()
        except ResilienceError as refused:
            error = f"{type(refused).__name__}: {refused}"
        details = {"decided_by": backend.source() if error is None else "local"}
        return HealthCheckResult(error is None, time.perf_counter() - began, details, error, at)

    async def close(self, backend: Backend) -> None:
        """Gives back and reports what this process holds, then closes what `backend` has opened."""
        for core in list(self.process.components.values()):
            with suppress(ResilienceError):  # what cannot be given back or told is lost
                await core.before_close(backend)
        await backend.close()

    def _store_stats(self) -> dict[str, object]:
        guard = self.process.guard
        here, fleet = self.process.heartbeat.counted(DECIDED_LOCALLY)
        return {
            "usable": guard.usable,
            "answered": guard.proven,
            "outages": guard.outages,
            "seconds_away": guard.seconds_away(),
            "decided_locally": here,
            "decided_locally_by_fleet": fleet,
        }

    def stats(self) -> dict[str, Any]:
        """What `get_comprehensive_stats` returns."""
        process = self.process
        sections: dict[str, dict[str, object]] = {section: {} for section in SECTIONS.values()}
        for (kind, name), core in list(process.components.items()):
            sections[SECTIONS[kind]][name] = core.known()
        return {
            "timestamp": time.time(),
            "store": self._store_stats(),
            "fleet": {"workers": process.heartbeat.fleet_size, "worker_id": process.heartbeat.worker_id},
            **sections,
        }
