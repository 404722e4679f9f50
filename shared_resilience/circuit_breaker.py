"""The circuit breaker: stops the whole fleet's calls to a dependency that fails, and lets a few try it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from types import CoroutineType, TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from shared_resilience.backends import Backends, step
from shared_resilience.breaker import Breaker, Outcome, Permit
from shared_resilience.circuit import CircuitState
from shared_resilience.functions import decorated, mirrors

P = ParamSpec("P")
T = TypeVar("T")
INSTEAD = "use `with guard():` inside it instead"


def decorate(core: Breaker, backends: Backends, function: Callable[P, T]) -> Callable[P, T]:
    """`function` behind the breaker, in its own form."""
    blocking, suspending = CircuitBreaker(core, backends), AsyncCircuitBreaker(core, backends)
    return decorated(function, blocking.call, suspending.call, INSTEAD)


class Guard:
    """A block of code as one call; made by `CircuitBreaker.guard`, for one `with` at a time."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker

    def __enter__(self) -> None:
        self._permit = self._breaker._enter()
        self._began = self._breaker._core.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome: Outcome = "success" if error is None else self._breaker._core.outcome_of(error)
        self._breaker._leave(self._permit, outcome, self._began)


class CircuitBreaker:
    """One circuit for all workers of the fleet; made by `ResilienceService.get_or_create_circuit_breaker`.

    While the circuit is closed, calls pass and cost no trip to Redis; what they showed is told at most once per sync
    interval, failures at once. While it is open, calls raise `CircuitBreakerOpenError` at once. Then a few probes pass,
    which close it or open it again.

    As a decorator it serves `def` and `async def`; generator functions raise `TypeError`: use `guard()` inside them.
    """

    def __init__(self, core: Breaker, backends: Backends) -> None:
        self._core = core
        self._evidence = core.evidence
        self._backend = backends.blocking
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {self._core.state.value})"

    @property
    def name(self) -> str:
        """The name of the resource."""
        return self._core.name

    @property
    def state(self) -> CircuitState:
        """The state as this process has last heard of it; asks nobody. A forced mode stands in `get_stats()`."""
        return self._core.state

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function` if the circuit lets it, and returns what it returns or raises what it raises.

        Raises `CircuitBreakerOpenError` if the circuit does not, `TypeError` for a coroutine function: that is for
        `service.aio`.
        """
        core, evidence = self._core, self._evidence
        # The common case, spelled out: no command is due, nothing is timed or judged, one lock is taken.
        permit: Permit | None
        if evidence.monotonic() < evidence.due:
            permit = evidence.tally
            if permit is None:
                core.refuse()
        else:
            permit = step(core.admit(self._backend))
        began = core.monotonic() if core.timed else 0.0
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            self._leave(permit, core.outcome_of(error), began)
            raise
        if result.__class__ is CoroutineType:
            self._leave(permit, "cancelled", began)
            cast("CoroutineType[Any, Any, Any]", result).close()
            raise TypeError(f"{function!r} is a coroutine function: use the breaker of service.aio for it")
        if permit.plain:
            with evidence.lock:
                permit.calls += 1  # type: ignore[union-attr]  # only a tally is plain
        else:
            self._judge(permit, result, began)
        return result

    def guard(self) -> Guard:
        """A context manager around a block of code that is one call.

        Entering raises `CircuitBreakerOpenError`; `is_failure` has nothing to judge here.
        """
        return Guard(self)

    def force_open(self) -> None:
        """Refuses all calls of the fleet until `reset`. Raises `StoreUnavailableError` if it cannot be told."""
        step(self._core.force(self._backend, "forced_open"))

    def force_closed(self) -> None:
        """Lets all calls of the fleet pass, uncounted, until `reset`. Raises `StoreUnavailableError` likewise."""
        step(self._core.force(self._backend, "forced_closed"))

    def metrics_only(self) -> None:
        """Lets all calls of the fleet pass and counts them, until `reset`. Raises `StoreUnavailableError` likewise."""
        step(self._core.force(self._backend, "metrics_only"))

    def reset(self) -> None:
        """Closes the circuit of the fleet, with nothing seen; others hear of it within a second.

        Raises `StoreUnavailableError` if the fleet cannot be told.
        """
        step(self._core.force(self._backend, ""))

    def get_stats(self) -> dict[str, object]:
        """The circuit as of now, what this process and the fleet have counted, and the configuration; plain data."""
        return step(self._core.stats(self._backend))

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)

    def _enter(self) -> Permit:
        if self._evidence.monotonic() < self._evidence.due:
            return self._core.pass_or_refuse()
        return step(self._core.admit(self._backend))

    def _judge(self, permit: Permit, result: object, began: float) -> None:
        outcome: Outcome = "cancelled"
        try:
            outcome = self._core.judge(result)
        finally:
            self._leave(permit, outcome, began)

    def _leave(self, permit: Permit, outcome: Outcome, began: float) -> None:
        told = self._core.note(permit, outcome, began)
        if told is not None:
            step(self._core.report(self._backend, permit, told))


@mirrors(Guard)
class AsyncGuard:
    def __init__(self, breaker: AsyncCircuitBreaker) -> None:
        self._breaker = breaker

    async def __aenter__(self) -> None:
        self._permit = await self._breaker._enter()
        self._began = self._breaker._core.monotonic()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._breaker._leave(self._permit, "success", self._began)
        else:
            await self._breaker._fail(self._permit, error, self._began)


@mirrors(CircuitBreaker)
class AsyncCircuitBreaker:
    def __init__(self, core: Breaker, backends: Backends) -> None:
        self._core = core
        self._evidence = core.evidence
        self._backend = backends.suspending
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {self._core.state.value})"

    @property
    def name(self) -> str:
        return self._core.name

    @property
    def state(self) -> CircuitState:
        return self._core.state

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        permit = await self._enter()
        began = self._core.monotonic() if self._core.timed else 0.0
        returned: object = permit  # as long as the function has returned nothing
        try:
            returned = awaitable = function(*args, **kwargs)
            result = await awaitable
        except BaseException as error:
            if returned is not permit and isinstance(error, TypeError) and not isawaitable(returned):
                await self._leave(permit, "cancelled", began)
                instead = "use the breaker of the synchronous service for it"
                raise TypeError(f"{function!r} returned nothing that can be awaited: {instead}") from None
            await self._fail(permit, error, began)
            raise
        if permit.plain:
            with self._evidence.lock:
                permit.calls += 1  # type: ignore[union-attr]  # only a tally is plain
        else:
            await self._judge(permit, result, began)
        return result

    def guard(self) -> AsyncGuard:
        return AsyncGuard(self)

    async def force_open(self) -> None:
        await self._core.force(self._backend, "forced_open")

    async def force_closed(self) -> None:
        await self._core.force(self._backend, "forced_closed")

    async def metrics_only(self) -> None:
        await self._core.force(self._backend, "metrics_only")

    async def reset(self) -> None:
        await self._core.force(self._backend, "")

    async def get_stats(self) -> dict[str, object]:
        return await self._core.stats(self._backend)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)

    async def _enter(self) -> Permit:
        if self._evidence.monotonic() < self._evidence.due:
            return self._core.pass_or_refuse()
        return await self._core.admit(self._backend)

    async def _judge(self, permit: Permit, result: object, began: float) -> None:
        outcome: Outcome = "cancelled"
        try:
            outcome = self._core.judge(result)
        finally:
            await self._leave(permit, outcome, began)

    async def _leave(self, permit: Permit, outcome: Outcome, began: float) -> None:
        told = self._core.note(permit, outcome, began)
        if told is not None:
            await self._core.report(self._backend, permit, told)

    async def _fail(self, permit: Permit, error: BaseException, began: float) -> None:
        """Leaves with an error. A coroutine that is being closed must not wait for anything any more."""
        if not isinstance(error, GeneratorExit):
            await self._leave(permit, self._core.outcome_of(error), began)
        elif (told := self._core.note(permit, "cancelled", began)) is not None:
            self._backend.detach(self._core.report(self._backend, permit, told))
