"""The bulkhead: how many calls of the whole fleet may be inside at once, and who goes in first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast

from shared_resilience.admission import Admission
from shared_resilience.backends import Backends, step
from shared_resilience.functions import decorated, mirrors
from shared_resilience.priority import PriorityLevel
from shared_resilience.slot_guard import AsyncSlotGuard, SlotGuard

P = ParamSpec("P")
T = TypeVar("T")
INSTEAD = "use `with guard():` inside it instead"


def decorate(core: Admission, backends: Backends, function: Callable[P, T]) -> Callable[P, T]:
    """`function` inside the bulkhead, in its own form."""
    bulkhead, suspending = Bulkhead(core, backends), AsyncBulkhead(core, backends)

    def inside(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        with bulkhead.guard():
            return function(*args, **kwargs)

    async def async_inside(function: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        async with suspending.guard():
            return await function(*args, **kwargs)

    return decorated(function, inside, async_inside, INSTEAD)


class Bulkhead:
    """So many calls of the whole fleet at once; made by `ResilienceService.get_or_create_bulkhead`.

    A call takes a slot, else it waits in a queue that all processes share: the more important ones first, among equals
    whoever came first. It is refused with `BulkheadFullError`, before it has begun, when the queue is full or its
    timeout is over. A slot is a lease: that of a process that dies comes back when the lease is over.

    As a decorator it serves `def` and `async def`; generator functions raise `TypeError`: use `guard()` inside them.
    """

    def __init__(self, core: Admission, backends: Backends) -> None:
        self._core = core
        self._backend = backends.blocking
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {self._core.config.max_concurrent_calls})"

    @property
    def name(self) -> str:
        """The name of the resource."""
        return self._core.name

    def execute(
        self, function: Callable[..., T], /, *args: Any, priority: PriorityLevel = PriorityLevel.NORMAL, **kwargs: Any
    ) -> T:
        """Calls `function` with a slot, and returns what it returns or raises what it raises.

        `priority` is for the bulkhead; all other arguments are the function's. Raises `BulkheadFullError` if there is
        no slot in time, `ValueError` for another priority, `TypeError` for a coroutine function: that is for
        `service.aio`.
        """
        with self.guard(priority):
            result = function(*args, **kwargs)
            if result.__class__ is CoroutineType:
                cast("CoroutineType[Any, Any, Any]", result).close()
                raise TypeError(f"{function!r} is a coroutine function: use the bulkhead of service.aio for it")
            return result

    def guard(self, priority: PriorityLevel = PriorityLevel.NORMAL, timeout: float | None = None) -> SlotGuard:
        """A context manager around a block of code that needs a slot; `as` gives its `Permit`.

        Waits for at most `timeout` seconds (None: as configured; 0: not at all). Raises `ValueError` for wrong
        arguments; entering raises `BulkheadFullError`, and `StoreUnavailableError` where Redis is to be asked and
        cannot.
        """
        return SlotGuard(self._core, self._core, self._backend, priority, timeout)

    def get_stats(self) -> dict[str, object]:
        """How many are inside and wait as of now, what was counted, and the configuration; plain data."""
        return step(self._core.stats(self._backend))

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)


@mirrors(Bulkhead)
class AsyncBulkhead:
    def __init__(self, core: Admission, backends: Backends) -> None:
        self._core = core
        self._backend = backends.suspending
        self._backends = backends

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._core.name!r}, {self._core.config.max_concurrent_calls})"

    @property
    def name(self) -> str:
        return self._core.name

    async def execute(
        self,
        function: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        priority: PriorityLevel = PriorityLevel.NORMAL,
        **kwargs: Any,
    ) -> T:
        async with self.guard(priority):
            return await function(*args, **kwargs)

    def guard(self, priority: PriorityLevel = PriorityLevel.NORMAL, timeout: float | None = None) -> AsyncSlotGuard:
        return AsyncSlotGuard(self._core, self._core, self._backend, priority, timeout)

    async def get_stats(self) -> dict[str, object]:
        return await self._core.stats(self._backend)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        return decorate(self._core, self._backends, function)
