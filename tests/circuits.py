"""Circuit breakers under test: a dependency that does as told, a breaker around it, two processes that share one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from conftest import Api, Lane, runtime_on

from shared_resilience import (
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    Event,
    ResilienceService,
)
from shared_resilience.testing import ManualClock

CONFIG = CircuitBreakerConfig(jitter=0)


class DownError(Exception):
    """What the dependency raises."""


class Dependency:
    """What is called: a function in the form of `api`, which raises or returns what it is told."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.calls = 0
        self.result: object = "fine"
        self.error: BaseException | None = None
        self.seconds = 0.0
        self.function: Callable[..., Any] = self._suspending if api.form == "asyncio" else self._blocking

    def _blocking(self, *args: object) -> object:
        self.calls += 1
        self.api.clock.advance(self.seconds)
        if self.error is not None:
            raise self.error
        return self.result

    async def _suspending(self, *args: object) -> object:
        return self._blocking(*args)


class Breaker:
    """A breaker around a dependency, and shorthands for what tests do with it."""

    def __init__(self, api: Api, config: CircuitBreakerConfig = CONFIG, name: str = "payments") -> None:
        self.api = api
        self.breaker = api.service.get_or_create_circuit_breaker(name, config)
        self.dependency = Dependency(api)
        self.clock = api.clock

    def call(self) -> Any:
        return self.api(self.breaker.call(self.dependency.function))

    def succeed(self, times: int = 1) -> None:
        self.dependency.error = None
        for _ in range(times):
            self.call()

    def fail(self, times: int = 1, error: BaseException | None = None) -> None:
        self.dependency.error = error or DownError()
        for _ in range(times):
            with pytest.raises(type(self.dependency.error)):
                self.call()
        self.dependency.error = None

    def refusal(self) -> CircuitBreakerOpenError:
        before = self.dependency.calls
        with pytest.raises(CircuitBreakerOpenError) as refused:
            self.call()
        assert self.dependency.calls == before
        return refused.value

    @property
    def state(self) -> str:
        return str(self.breaker.state.value)

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.api(self.breaker.get_stats())
        return stats

    def half_open(self, probes: int = 0) -> Breaker:
        self.fail(self.breaker._core.config.failure_threshold)
        self.clock.advance(self.breaker._core.config.timeout_seconds)
        self.succeed(probes)
        return self


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def enter(api: Api, breaker: Breaker) -> Any:
    """A guard that has been entered, as by a call that does not end."""
    guard = breaker.breaker.guard()
    api(guard.__enter__() if api.form == "sync" else guard.__aenter__())
    return guard


def leave(api: Api, guard: Any, error: BaseException | None = None) -> None:
    kind = None if error is None else type(error)
    api(guard.__exit__(kind, error, None) if api.form == "sync" else guard.__aexit__(kind, error, None))


async def awaited(value: Any) -> Any:
    return await value


class Counting:
    """Counts the commands that a process sends."""

    def __init__(self, api: Api) -> None:
        self.backend = api.runtime.backends.blocking if api.form == "sync" else api.runtime.backends.suspending
        self.run, self.sent = self.backend.run, 0
        self.backend.run = self._run  # type: ignore[method-assign]

    async def _run(self, *args: Any, **kwargs: Any) -> Any:
        self.sent += 1
        return await self.run(*args, **kwargs)

    def of(self, act: Callable[[], object]) -> int:
        before = self.sent
        act()
        return self.sent - before


class Two:
    """Two processes of one fleet."""

    made: ClassVar[list[ResilienceService]] = []

    def __init__(self, store: Lane, prefix: str, config: CircuitBreakerConfig = CONFIG) -> None:
        self.clock = ManualClock()
        self.events: list[list[Event]] = [[], []]
        self.services = []
        for heard in self.events:
            runtime = runtime_on(store, prefix, self.clock)
            runtime.process.events.add([heard.append])
            self.services.append(ResilienceService._of(runtime))
        self.made.extend(self.services)
        self.breakers = [service.get_or_create_circuit_breaker("payments", config) for service in self.services]

    def fail(self, which: int, times: int = 1) -> None:
        def down() -> None:
            raise DownError

        for _ in range(times):
            with pytest.raises(DownError):
                self.breakers[which].call(down)

    def passes(self, which: int) -> bool:
        try:
            self.breakers[which].call(lambda: None)
        except CircuitBreakerOpenError:
            return False
        return True
