"""The rate limiter: the limits of a resource, shared by the fleet, for any number of keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from shared_resilience import validation
from shared_resilience.backends import Backend, Backends, step
from shared_resilience.decision import Decision
from shared_resilience.functions import chosen, is_coroutine_function, mirrors
from shared_resilience.limiter import Limiter
from shared_resilience.limiter_keys import Key
from shared_resilience.priority import PriorityLevel, priority_of
from shared_resilience.reservation import AsyncReservation, Reservation, Reserved

P = ParamSpec("P")
T = TypeVar("T")


def decorate(
    core: Limiter,
    backends: Backends,
    function: Callable[P, T],
    key: Key | Callable[..., Key],
    cost: int | Callable[..., int],
    timeout: float | None,
    priority: PriorityLevel | Callable[..., PriorityLevel],
) -> Callable[P, T]:
    """`function`, with the limits of `core` before each call, in its own form."""
    patience = 0.0 if timeout is None else validation.timeout("timeout", timeout)
    if not callable(cost):
        core.check_cost(cost)
    if not callable(priority):
        priority_of(priority)

    def entry(backend: Backend, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Decision]:
        its_key, its_cost = chosen(key, args, kwargs), chosen(cost, args, kwargs)
        return core.acquire(backend, its_key, its_cost, patience, chosen(priority, args, kwargs))

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


class RateLimiter:
    """Limits that all workers of the fleet share; made by `ResilienceService.get_or_create_rate_limiter`.

    Several limits are decided together, all or nothing. `key` separates users, tenants or addresses from each other:
    any text, "" by default, for all limits alike; or a mapping from a limit's label to its key. `cost` is an integer
    from 1 to the smallest capacity. Calls of a low `priority` leave to more important ones what is `reserved` for them.
    All three raise `ValueError` otherwise.

    As a decorator it refuses at once, with `RateLimitExceeded`; `limit()` is the decorator with options. Both serve
    `def` and `async def`.
    """

    def __init__(self, core: Limiter, backends: Backends) -> None:
        self._core = core
        self._backend = backends.blocking
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {', '.join(map(repr, self._core.config.limits))})"

    @property
    def name(self) -> str:
        """The name of the resource."""
        return self._core.name

    def try_acquire(self, key: Key = "", cost: int = 1, priority: PriorityLevel = PriorityLevel.NORMAL) -> Decision:
        """Takes `cost` if there is room, and answers at once with a `Decision`, which is true when allowed.

        With a leaky bucket the caller must wait `decision.delay` seconds before it goes on. A refusal is remembered for
        at most a second (until `retry_after`, if that is sooner), so that asking again in vain costs no trip to Redis.
        """
        return self._core.at_once(key, cost) or step(self._core.try_acquire(self._backend, key, cost, priority))

    def acquire(
        self, key: Key = "", cost: int = 1, timeout: float | None = None, priority: PriorityLevel = PriorityLevel.NORMAL
    ) -> Decision:
        """Takes `cost`, waiting for room and for its turn for at most `timeout` seconds (None: as long as it takes).

        Within a process, whoever comes first for a key is served first. Raises `RateLimitExceeded` when it is clear
        that the timeout does not suffice: at once for the first in line, for others when their turn or the end comes.
        """
        return step(self._core.acquire(self._backend, key, cost, validation.timeout("timeout", timeout), priority))

    def allow(self, key: Key = "", cost: int = 1, priority: PriorityLevel = PriorityLevel.NORMAL) -> bool:
        """Takes `cost` if the call may go on at once; whether it did."""
        if self._core.at_once(key, cost):
            return True
        return step(self._core.try_acquire(self._backend, key, cost, priority, max_delay=0.0)).allowed

    def peek(self, key: Key = "", cost: int = 1, priority: PriorityLevel = PriorityLevel.NORMAL) -> Decision:
        """What `try_acquire` would answer now; takes nothing, and always asks."""
        return step(self._core.peek(self._backend, key, cost, priority))

    def refund(self, key: Key = "", cost: int = 1) -> None:
        """Gives back `cost` that was taken and not used; what would leave a limit more than unused is dropped."""
        step(self._core.refund(self._backend, key, cost))

    def reserve(
        self, key: Key = "", cost: int = 1, timeout: float = 0.0, priority: PriorityLevel = PriorityLevel.NORMAL
    ) -> Reservation:
        """Takes `cost` as an estimate, waiting for at most `timeout` seconds, to be settled when the cost is known.

        Raises `RateLimitExceeded` if there is no room in time.
        """
        return Reservation(step(Reserved.of(self._core, self._backend, key, cost, timeout, priority)), self._backend)

    def pause(self, seconds: float) -> None:
        """Stops the resource for the whole fleet for `seconds`, from 0 (go on) to the limiter's `max_pause`.

        A longer pause that is there stays. Raises `ValueError` for any other number.
        """
        step(self._core.pause(self._backend, seconds))

    def reset(self, key: Key = "") -> None:
        """Makes the limits for `key` as if they had never been used. While Redis is away, in this process alone."""
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
        priority: PriorityLevel | Callable[..., PriorityLevel] = PriorityLevel.NORMAL,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """A decorator that takes `cost` for `key` before each call, with `priority`.

        Each of the three may be a function of the call's arguments. Waits for room for at most `timeout` seconds; None
        refuses at once. Raises `RateLimitExceeded`.
        """
        return lambda function: decorate(self._core, self._backends, function, key, cost, timeout, priority)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return self.limit()(function)


@mirrors(RateLimiter)
class AsyncRateLimiter:
    def __init__(self, core: Limiter, backends: Backends) -> None:
        self._core = core
        self._backend = backends.suspending
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {', '.join(map(repr, self._core.config.limits))})"

    @property
    def name(self) -> str:
        return self._core.name

    async def try_acquire(
        self, key: Key = "", cost: int = 1, priority: PriorityLevel = PriorityLevel.NORMAL
    ) -> Decision:
        return self._core.at_once(key, cost) or await self._core.try_acquire(self._backend, key, cost, priority)

    async def acquire(
        self, key: Key = "", cost: int = 1, timeout: float | None = None, priority: PriorityLevel = PriorityLevel.NORMAL
    ) -> Decision:
        return await self._core.acquire(self._backend, key, cost, validation.timeout("timeout", timeout), priority)

    async def allow(self, key: Key = "", cost: int = 1, priority: PriorityLevel = PriorityLevel.NORMAL) -> bool:
        if self._core.at_once(key, cost):
            return True
        return (await self._core.try_acquire(self._backend, key, cost, priority, max_delay=0.0)).allowed

    async def peek(self, key: Key = "", cost: int = 1, priority: PriorityLevel = PriorityLevel.NORMAL) -> Decision:
        return await self._core.peek(self._backend, key, cost, priority)

    async def refund(self, key: Key = "", cost: int = 1) -> None:
        await self._core.refund(self._backend, key, cost)

    async def reserve(
        self, key: Key = "", cost: int = 1, timeout: float = 0.0, priority: PriorityLevel = PriorityLevel.NORMAL
    ) -> AsyncReservation:
        return AsyncReservation(
            await Reserved.of(self._core, self._backend, key, cost, timeout, priority), self._backend
        )

    async def pause(self, seconds: float) -> None:
        await self._core.pause(self._backend, seconds)

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
        priority: PriorityLevel | Callable[..., PriorityLevel] = PriorityLevel.NORMAL,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        return lambda function: decorate(self._core, self._backends, function, key, cost, timeout, priority)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return self.limit()(function)
