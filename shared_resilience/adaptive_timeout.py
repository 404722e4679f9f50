"""Timeouts that follow from how long the calls of the whole fleet take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import CoroutineType
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from shared_resilience.backends import Backends, step
from shared_resilience.backends.bounded import OverdueError, awaited, on_a_thread
from shared_resilience.deadline import Deadline, remaining
from shared_resilience.errors import DeadlineExceeded
from shared_resilience.functions import decorated, mirrors
from shared_resilience.latency import Latency

P = ParamSpec("P")
T = TypeVar("T")
INSTEAD = "use `with deadline(timeout.get_timeout()):` inside it instead"


class Timeouts(NamedTuple):
    """A timeout and its parts, in seconds, for clients that have both: `requests.get(url, timeout=timeouts[:2])`."""

    connect: float
    read: float
    total: float


def decorate(core: Latency, backends: Backends, function: Callable[P, T]) -> Callable[P, T]:
    """`function` with the timeout, in its own form."""
    blocking, suspending = AdaptiveTimeout(core, backends), AsyncAdaptiveTimeout(core, backends)
    return decorated(function, blocking.execute, suspending.execute, INSTEAD)


class _Timed:
    """One call: how long it may take, and what is noted of it."""

    __slots__ = ("_began", "_core", "_left", "limit")

    def __init__(self, core: Latency, began: float) -> None:
        self._core = core
        self._began = began
        self._left = remaining()
        if self._left <= 0:
            raise DeadlineExceeded(core.name, 0.0)
        self.limit = min(core.timeout, self._left)

    def passed(self) -> None:
        self._core.note(self._core.monotonic() - self._began)

    def timed_out(self, error: TimeoutError) -> None:
        """It counts as at least as long as its timeout, unless a deadline has ended it: that says nothing."""
        if self.limit < self._left and not isinstance(error, DeadlineExceeded):
            self._core.note(max(self.limit, self._core.monotonic() - self._began))

    def overdue(self) -> TimeoutError:
        """The error of a call that was given up."""
        if self.limit >= self._left:
            return DeadlineExceeded(self._core.name, self.limit)
        error = TimeoutError(f"{self._core.name!r} has not answered within {self.limit:.3f} s")
        self.timed_out(error)
        return error


def _timeouts(core: Latency) -> Timeouts:
    total = min(core.timeout, remaining())
    return Timeouts(min(core.config.connect, total), min(core.config.read, total), total)


class AdaptiveTimeout:
    """A timeout for calls of one resource; made by `ResilienceService.get_or_create_adaptive_timeout`.

    It follows from a percentile of how long the calls of all processes have taken lately. A call that passes is noted;
    one that times out counts as at least its timeout; one that fails otherwise says nothing. Telling and asking costs
    one trip a second and process.

    As a decorator it serves `def` and `async def`; generator functions raise `TypeError`.
    """

    def __init__(self, core: Latency, backends: Backends) -> None:
        self._core = core
        self._backend = backends.blocking
        self._backends = backends
        self._on_a_thread = core.config.enforce == "thread"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {self._core.timeout:.3f} s)"

    @property
    def name(self) -> str:
        """The name of the resource."""
        return self._core.name

    def get_timeout(self) -> float:
        """How many seconds a call may take now; no longer than the deadline around the caller."""
        return self.get_timeouts().total

    def get_timeouts(self) -> Timeouts:
        """The same with its parts, for connecting and for reading."""
        core = self._core
        if core.is_due(core.monotonic()):
            step(core.sync(self._backend))
        return _timeouts(core)

    def execute(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function`, and returns what it returns or raises what it raises.

        It has a deadline, which `remaining()` tells it; with `enforce="thread"` `TimeoutError` is raised when the time
        is over, and `DeadlineExceeded` if it was the deadline around the call that was nearer. Raises `TypeError` for a
        coroutine function: that is for `service.aio`.
        """
        core = self._core
        if core.is_due(core.monotonic()):
            step(core.sync(self._backend))
        call = _Timed(core, core.monotonic())
        with Deadline(call.limit, core.monotonic):
            try:
                if self._on_a_thread:
                    result = on_a_thread(partial(function, *args, **kwargs), call.limit)
                else:
                    result = function(*args, **kwargs)
            except OverdueError as overdue:
                late = call.overdue()
                late.straggler = overdue.straggler  # type: ignore[attr-defined]  # for `straggler_of`
                raise late from None
            except TimeoutError as error:
                call.timed_out(error)
                raise
        if result.__class__ is CoroutineType:
            cast("CoroutineType[Any, Any, Any]", result).close()
            raise TypeError(f"{function!r} is a coroutine function: use the timeout of service.aio for it")
        call.passed()
        return result

    def get_stats(self) -> dict[str, object]:
        """The timeout, the percentiles p50, p95, p99 and p999 in seconds, and how many calls they are of."""
        step(self._core.sync(self._backend, force=True))
        return self._core.known()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)


@mirrors(AdaptiveTimeout)
class AsyncAdaptiveTimeout:
    def __init__(self, core: Latency, backends: Backends) -> None:
        self._core = core
        self._backend = backends.suspending
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {self._core.timeout:.3f} s)"

    @property
    def name(self) -> str:
        return self._core.name

    async def get_timeout(self) -> float:
        return (await self.get_timeouts()).total

    async def get_timeouts(self) -> Timeouts:
        core = self._core
        if core.is_due(core.monotonic()):
            await core.sync(self._backend)
        return _timeouts(core)

    async def execute(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        core = self._core
        if core.is_due(core.monotonic()):
            await core.sync(self._backend)
        call = _Timed(core, core.monotonic())
        with Deadline(call.limit, core.monotonic):
            try:
                result = await awaited(function(*args, **kwargs), call.limit)
            except OverdueError:
                raise call.overdue() from None
            except TimeoutError as error:
                call.timed_out(error)
                raise
        call.passed()
        return result

    async def get_stats(self) -> dict[str, object]:
        await self._core.sync(self._backend, force=True)
        return self._core.known()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)
