"""The rate limiter: one limit of a resource, shared by the fleet, for any number of keys."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from shared_resilience import validation
from shared_resilience.backends import ON_OUTAGE, Backend, Backends, OnOutage, step
from shared_resilience.backends.process import Component, Process
from shared_resilience.commands import Command, Operation, Reply, Source, State, Step
from shared_resilience.decision import Decision
from shared_resilience.errors import RateLimitExceeded
from shared_resilience.functions import is_coroutine_function, mirrors
from shared_resilience.refusals import Refusals
from shared_resilience.token_bucket import BucketCommands, TokenBucket

P = ParamSpec("P")
T = TypeVar("T")
Key = str | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LimiterConfig:
    """What makes two rate limiters of one name the same."""

    limit: TokenBucket = TokenBucket()  # noqa: RUF009 - frozen
    on_outage: OnOutage = "local"
    remember_refusals: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.limit, TokenBucket):
            raise ValueError(f"limit is {self.limit!r}, but must be a TokenBucket")
        validation.choice("on_outage", self.on_outage, ON_OUTAGE)


def reset(states: tuple[State, ...], now: int) -> Step:
    """Twin of `rate_limiter_reset.lua`."""
    held = sum(state is not None for state in states)
    return Step((None,) * len(states), (None,) * len(states), (held,))


def _held(reply: Reply, source: Source) -> int:
    return int(reply[0])


RESET: Operation[int] = Operation("rate_limiter_reset", reset, _held)


class Limiter(Component):
    """The core, one per process and name: decides what to send before, and what to remember after."""

    def __init__(self, name: str, config: LimiterConfig, process: Process) -> None:
        self.name = name
        self.config = config
        self.resource = process.heartbeat.resource(name)
        self._events = process.events
        self._commands = BucketCommands(config.limit)
        self._refusals = Refusals()
        numbers = config.limit.numbers().items()
        self.resource.numbers.update({f"limit.{config.limit.label}.{field}": value for field, value in numbers})

    def after_fork(self) -> None:
        self._refusals = Refusals()

    async def try_acquire(self, backend: Backend, key: Key, cost: int) -> Decision:
        key = self._key(key)
        decision = await self._decide(backend, key, cost)
        self._note(decision, key)
        return decision

    async def acquire(self, backend: Backend, key: Key, cost: int, timeout: float | None) -> Decision:
        key = self._key(key)
        end = backend.monotonic() + validation.timeout("timeout", timeout)
        while not (decision := await self._decide(backend, key, cost, exact=True)).allowed:
            if decision.retry_after == math.inf or decision.retry_after > end - backend.monotonic():
                self._note(decision, key)
                raise RateLimitExceeded(self.name, key, decision)
            await backend.sleep(decision.retry_after)
        self._note(decision, key)
        return decision

    async def _decide(self, backend: Backend, key: str, cost: int, exact: bool = False) -> Decision:
        self._check("cost", cost)
        if not self.config.remember_refusals:
            return await self._run(backend, self._commands.take(self._keys(key), cost))
        refusal = self._refusals.find(key, cost, backend.monotonic(), exact)
        if refusal is not None:
            return refusal
        decision = await self._run(backend, self._commands.take(self._keys(key), cost))
        if not decision.allowed:
            self._refusals.add(key, cost, decision, backend.monotonic())
        return decision

    async def peek(self, backend: Backend, key: Key, cost: int) -> Decision:
        self._check("cost", cost)
        return await self._run(backend, self._commands.peek(self._keys(self._key(key)), cost))

    async def refund(self, backend: Backend, key: Key, cost: int) -> None:
        key = self._key(key)
        self._check("cost", cost)
        await self._run(backend, self._commands.refund(self._keys(key), cost))
        self._refusals.forget(key)

    async def reset(self, backend: Backend, key: Key) -> None:
        key = self._key(key)
        await backend.run(Command(RESET, self._keys(key)[:1], ()), self.resource)
        self._refusals.forget(key)

    async def reset_all(self, backend: Backend) -> None:
        await self.reset(backend, "")
        await backend.forget_prefix(self.resource.keys.limit_prefix(self.config.limit.label))
        self._refusals.clear()

    def decorate(
        self,
        function: Callable[P, T],
        backends: Backends,
        key: Key | Callable[..., Key],
        cost: int | Callable[..., int],
        timeout: float | None,
    ) -> Callable[P, T]:
        patience = 0.0 if timeout is None else validation.timeout("timeout", timeout)
        if not callable(cost):
            self._check("cost", cost)

        def entry(backend: Backend, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Decision]:
            its_key = key(*args, **kwargs) if callable(key) else key
            its_cost = cost(*args, **kwargs) if callable(cost) else cost
            return self.acquire(backend, its_key, its_cost, patience)

        if is_coroutine_function(function):
            suspending = backends.suspending

            @wraps(function)
            async def async_wrapper(*args: P.args, **kwargs: P.kwargs) -> Any:
                await entry(suspending, args, kwargs)
                return await cast("Awaitable[Any]", function(*args, **kwargs))

            return cast("Callable[P, T]", async_wrapper)
        blocking = backends.blocking

        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            step(entry(blocking, args, kwargs))
            return function(*args, **kwargs)

        return wrapper

    def stats(self) -> dict[str, object]:
        return {
            "limits": {self.config.limit.label: self.config.limit.numbers()},
            "local": dict(self.resource.counted),
            "fleet": dict(self.resource.fleet),
            "workers": self.resource.workers,
        }

    async def _run(self, backend: Backend, command: Command[Decision]) -> Decision:
        return await backend.run(command, self.resource, self.config.on_outage)

    def _key(self, key: Key) -> str:
        if not isinstance(key, Mapping):
            return str(key)
        label = self.config.limit.label
        if unknown := sorted(set(key) - {label}):
            raise ValueError(f"key has the labels {unknown}, but {self.name!r} has only {[label]}")
        return str(key.get(label, ""))

    def _keys(self, key: str) -> tuple[str, ...]:
        keys = self.resource.keys
        return keys.limit(self.config.limit.label, key), keys.overrides

    def _check(self, field: str, cost: int) -> None:
        validation.count(field, cost, high=self.config.limit.capacity)

    def _note(self, decision: Decision, key: str) -> None:
        self.resource.count("limit.allowed" if decision.allowed else "limit.refused")
        if decision.source == "local":
            self.resource.count("limit.decided_locally")
        if not decision.allowed:
            self._events.emit("limit.refused", self.name, key=key, decision=decision)


class RateLimiter:
    """A limit that all workers of the fleet share; made by `ResilienceService.get_or_create_rate_limiter`.

    `key` separates users, tenants or addresses from each other: any text, "" by default; also a mapping from the
    limit's label to the key. `cost` is an integer from 1 to the limit's capacity. Both raise `ValueError` otherwise.

    As a decorator it refuses at once, with `RateLimitExceeded`; `limit()` is the decorator with options. Both serve
    `def` and `async def`.
    """

    def __init__(self, core: Limiter, backends: Backends) -> None:
        self._core = core
        self._backend = backends.blocking
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {self._core.config.limit!r})"

    @property
    def name(self) -> str:
        """The name of the resource."""
        return self._core.name

    def try_acquire(self, key: Key = "", cost: int = 1) -> Decision:
        """Takes `cost` if there is room, and answers at once with a `Decision`, which is true when allowed.

        A refusal is remembered for at most a second (until `retry_after`, if that is sooner), so that asking again in
        vain costs no trip to Redis.
        """
        return step(self._core.try_acquire(self._backend, key, cost))

    def acquire(self, key: Key = "", cost: int = 1, timeout: float | None = None) -> Decision:
        """Takes `cost`, waiting for room for at most `timeout` seconds (None: as long as it takes).

        Raises `RateLimitExceeded` as soon as it is clear that the timeout does not suffice.
        """
        return step(self._core.acquire(self._backend, key, cost, timeout))

    def allow(self, key: Key = "", cost: int = 1) -> bool:
        """Takes `cost` if there is room; whether it did."""
        return step(self._core.try_acquire(self._backend, key, cost)).allowed

    def peek(self, key: Key = "", cost: int = 1) -> Decision:
        """What `try_acquire` would answer now; takes nothing, and always asks."""
        return step(self._core.peek(self._backend, key, cost))

    def refund(self, key: Key = "", cost: int = 1) -> None:
        """Gives back `cost` that was taken and not used; what would overflow the capacity is dropped."""
        step(self._core.refund(self._backend, key, cost))

    def reset(self, key: Key = "") -> None:
        """Makes the limit for `key` as if it had never been used. While Redis is away, in this process alone."""
        step(self._core.reset(self._backend, key))

    def reset_all(self) -> None:
        """Resets every key, by SCAN and UNLINK; for operators.

        Raises `StoreUnavailableError` when Redis cannot be told.
        """
        step(self._core.reset_all(self._backend))

    def limit(
        self,
        *,
        key: Key | Callable[..., Key] = "",
        cost: int | Callable[..., int] = 1,
        timeout: float | None = None,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """A decorator that takes `cost` for `key` before each call; either may be a function of the call's arguments.

        Waits for room for at most `timeout` seconds; None refuses at once. Raises `RateLimitExceeded`.
        """
        return lambda function: self._core.decorate(function, self._backends, key, cost, timeout)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return self.limit()(function)


@mirrors(RateLimiter)
class AsyncRateLimiter:
    def __init__(self, core: Limiter, backends: Backends) -> None:
        self._core = core
        self._backend = backends.suspending
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {self._core.config.limit!r})"

    @property
    def name(self) -> str:
        return self._core.name

    async def try_acquire(self, key: Key = "", cost: int = 1) -> Decision:
        return await self._core.try_acquire(self._backend, key, cost)

    async def acquire(self, key: Key = "", cost: int = 1, timeout: float | None = None) -> Decision:
        return await self._core.acquire(self._backend, key, cost, timeout)

    async def allow(self, key: Key = "", cost: int = 1) -> bool:
        return (await self._core.try_acquire(self._backend, key, cost)).allowed

    async def peek(self, key: Key = "", cost: int = 1) -> Decision:
        return await self._core.peek(self._backend, key, cost)

    async def refund(self, key: Key = "", cost: int = 1) -> None:
        await self._core.refund(self._backend, key, cost)

    async def reset(self, key: Key = "") -> None:
        await self._core.reset(self._backend, key)

    async def reset_all(self) -> None:
        await self._core.reset_all(self._backend)

    def limit(
        self,
        *,
        key: Key | Callable[..., Key] = "",
        cost: int | Callable[..., int] = 1,
        timeout: float | None = None,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        return lambda function: self._core.decorate(function, self._backends, key, cost, timeout)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return self.limit()(function)
