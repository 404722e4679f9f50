"""Blocks of code that hold a slot of a bulkhead."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from shared_resilience import validation
from shared_resilience.admission import Admission
from shared_resilience.backends import Backend, step
from shared_resilience.backends.bounded import straggler_of
from shared_resilience.functions import mirrors
from shared_resilience.permit import Permit
from shared_resilience.priority import PriorityLevel, priority_of


class Entrance(Protocol):
    """Where permits come from."""

    async def enter(self, backend: Backend, priority: PriorityLevel, timeout: float) -> Permit:
        """A permit, waited for during at most `timeout` seconds."""


class SlotGuard:
    """A block of code that holds a slot; made by `guard()`, for one `with` at a time."""

    def __init__(
        self, entrance: Entrance, core: Admission, backend: Backend, priority: PriorityLevel, timeout: float | None
    ) -> None:
        self._entrance = entrance
        self._core = core
        self._backend = backend
        self._priority = priority_of(priority)
        self._timeout = validation.timeout("timeout", core.config.timeout if timeout is None else timeout)

    def __enter__(self) -> Permit:
        self._permit = step(self._entrance.enter(self._backend, self._priority, self._timeout))
        return self._permit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        straggler = straggler_of(error)
        if straggler is None:
            step(self._core.leave(self._backend, self._permit))
        else:  # the call still runs on a thread, and keeps its slot
            backend, permit = self._backend, self._permit
            straggler.then(lambda: step(self._core.leave(backend, permit)))


@mirrors(SlotGuard)
class AsyncSlotGuard:
    def __init__(
        self, entrance: Entrance, core: Admission, backend: Backend, priority: PriorityLevel, timeout: float | None
    ) -> None:
        self._entrance = entrance
        self._core = core
        self._backend = backend
        self._priority = priority_of(priority)
        self._timeout = validation.timeout("timeout", core.config.timeout if timeout is None else timeout)

    async def __aenter__(self) -> Permit:
        self._permit = await self._entrance.enter(self._backend, self._priority, self._timeout)
        return self._permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        leaving = self._core.leave(self._backend, self._permit)
        if isinstance(error, GeneratorExit):  # a coroutine that is being closed must not wait for anything any more
            self._backend.detach(leaving)
        else:
            await leaving
