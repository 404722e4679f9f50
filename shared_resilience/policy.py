"""Policies: several components around one function, in the order in which they make sense.

From the outside in: fallback, deadline, idempotency, retry, circuit breaker, permits (limits and bulkhead), the timeout
of one attempt, the function. So a refusal of ours is answered by the fallback and never counts as a failure of the
dependency, each attempt of a retry is let in anew, and the timeout measures the function alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from shared_resilience.adaptive_timeout import AdaptiveTimeout, AsyncAdaptiveTimeout
from shared_resilience.bulkhead import AsyncBulkhead, Bulkhead
from shared_resilience.circuit_breaker import AsyncCircuitBreaker, CircuitBreaker
from shared_resilience.cores import Asked
from shared_resilience.fallback_chain import AsyncFallbackChain, FallbackChain
from shared_resilience.functions import is_coroutine_function, mirrors
from shared_resilience.idempotency import AsyncIdempotency, Idempotency
from shared_resilience.layers import Forms, Layer, Planned, wrapped
from shared_resilience.limiter_keys import Key
from shared_resilience.permit import Permit
from shared_resilience.permits import AsyncPermits, Permits
from shared_resilience.priority import PriorityLevel
from shared_resilience.rate_limiter import AsyncRateLimiter, RateLimiter
from shared_resilience.retry_manager import AsyncRetryManager, RetryManager

P = ParamSpec("P")
T = TypeVar("T")
INSTEAD = "use guard() of a policy inside it instead"


class PolicyGuard:
    """A block of code behind deadline, breaker and permits; made by `Policy.guard`, for one `with` at a time."""

    def __init__(self, policy: Policy, asked: Asked) -> None:
        self._policy, self._asked = policy, asked

    def __enter__(self) -> Permit | None:
        with ExitStack() as stack:
            permit = self._policy._enter(stack, self._asked)
            self._stack = stack.pop_all()
        return permit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


class Policy(Planned):
    """Several components around one function; made by `ResilienceService.policy`, or by `resilient` as `fn.policy`.

    `print(policy)` shows them, the outermost first.
    """

    _forms = Forms(
        RateLimiter, CircuitBreaker, Bulkhead, Permits, RetryManager, AdaptiveTimeout, Idempotency, FallbackChain
    )

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function` behind all parts; returns what it, or the fallback, returns.

        Raises what `function` and what the parts raise, and `TypeError` for a coroutine function: that is for
        `service.aio`.
        """
        return self.protect(function)(*args, **kwargs)

    def protect(self, function: Callable[P, T]) -> Callable[P, T]:
        """`function` behind all parts, for many calls. Raises `TypeError` for a coroutine function or a generator."""
        if is_coroutine_function(function, INSTEAD):
            raise TypeError(f"{function!r} is a coroutine function: use the policy of service.aio for it")
        return wrapped(function, self._layers)

    def guard(self, key: Key = "", cost: int = 1, priority: PriorityLevel = PriorityLevel.NORMAL) -> PolicyGuard:
        """A context manager around a block of code, for policies of deadline, breaker, limits and bulkhead.

        `as` gives the `Permit`, or None without a bulkhead. `key`, `cost` and `priority` are for the limits and the
        bulkhead. Raises `TypeError` if the policy has a part that cannot guard a block; entering raises what the parts
        raise.
        """
        self._refuse_to_guard()
        return PolicyGuard(self, self._cores.checked(key, cost, priority))

    def _or_else(self, chain: FallbackChain, function: Layer, /, *args: Any, **kwargs: Any) -> Any:
        return chain.answer(function, *args, **kwargs).value

    def _in_time(self, function: Layer, /, *args: Any, **kwargs: Any) -> Any:
        with self._deadline():
            return function(*args, **kwargs)

    def _once(self, once: Idempotency, function: Layer, /, *args: Any, **kwargs: Any) -> Any:
        return once.execute(self._key_of(args, kwargs), function, *args, **kwargs)

    def _within_limits(
        self, limit: Callable[[Asked], Any], asked: Asked, function: Layer, /, *args: Any, **kwargs: Any
    ) -> Any:
        limit(asked)
        return function(*args, **kwargs)

    def _with_slot(
        self, slot: Callable[[Asked], Any], asked: Asked, function: Layer, /, *args: Any, **kwargs: Any
    ) -> Any:
        with slot(asked):
            return function(*args, **kwargs)

    def _enter(self, stack: ExitStack, asked: Asked) -> Permit | None:
        permit: Permit | None = None
        if self._plan.deadline is not None:
            stack.enter_context(self._deadline())
        if self._breaker is not None:
            stack.enter_context(self._breaker.guard())
        if self._slot is not None:
            permit = stack.enter_context(self._slot(asked))
        elif self._limit is not None:
            self._limit(asked)
        return permit


@mirrors(PolicyGuard)
class AsyncPolicyGuard:
    def __init__(self, policy: AsyncPolicy, asked: Asked) -> None:
        self._policy, self._asked = policy, asked

    async def __aenter__(self) -> Permit | None:
        async with AsyncExitStack() as stack:
            permit = await self._policy._enter(stack, self._asked)
            self._stack = stack.pop_all()
        return permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)


@mirrors(Policy)
class AsyncPolicy(Planned):
    _forms = Forms(
        AsyncRateLimiter,
        AsyncCircuitBreaker,
        AsyncBulkhead,
        AsyncPermits,
        AsyncRetryManager,
        AsyncAdaptiveTimeout,
        AsyncIdempotency,
        AsyncFallbackChain,
    )

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.protect(function)(*args, **kwargs)

    def protect(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        is_coroutine_function(function, INSTEAD)
        return wrapped(function, self._layers)

    def guard(self, key: Key = "", cost: int = 1, priority: PriorityLevel = PriorityLevel.NORMAL) -> AsyncPolicyGuard:
        self._refuse_to_guard()
        return AsyncPolicyGuard(self, self._cores.checked(key, cost, priority))

    async def _or_else(self, chain: AsyncFallbackChain, function: Layer, /, *args: Any, **kwargs: Any) -> Any:
        return (await chain.answer(function, *args, **kwargs)).value

    async def _in_time(self, function: Layer, /, *args: Any, **kwargs: Any) -> Any:
        async with self._deadline():
            return await function(*args, **kwargs)

    async def _once(self, once: AsyncIdempotency, function: Layer, /, *args: Any, **kwargs: Any) -> Any:
        return await once.execute(self._key_of(args, kwargs), function, *args, **kwargs)

    async def _within_limits(
        self, limit: Callable[[Asked], Any], asked: Asked, function: Layer, /, *args: Any, **kwargs: Any
    ) -> Any:
        await limit(asked)
        return await function(*args, **kwargs)

    async def _with_slot(
        self, slot: Callable[[Asked], Any], asked: Asked, function: Layer, /, *args: Any, **kwargs: Any
    ) -> Any:
        async with slot(asked):
            return await function(*args, **kwargs)

    async def _enter(self, stack: AsyncExitStack, asked: Asked) -> Permit | None:
        permit: Permit | None = None
        if self._plan.deadline is not None:
            await stack.enter_async_context(self._deadline())
        if self._breaker is not None:
            await stack.enter_async_context(self._breaker.guard())
        if self._slot is not None:
            permit = await stack.enter_async_context(self._slot(asked))
        elif self._limit is not None:
            await self._limit(asked)
        return permit
