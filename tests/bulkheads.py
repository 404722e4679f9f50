"""Bulkheads under test: callers that wait, as threads or tasks, and what they were given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import Api
from servers import poll

from shared_resilience import BulkheadConfig, BulkheadFullError, Permit, PriorityLevel, RateLimitExceeded
from shared_resilience.backends import step
from shared_resilience.commands import Command
from shared_resilience.limits import Limit

NORMAL = PriorityLevel.NORMAL
ONE = BulkheadConfig(1, 3)


class Bulkhead:
    """A bulkhead in the form of `api`, and shorthands for what tests do with it."""

    def __init__(self, api: Api, config: BulkheadConfig | None = None, name: str = "payments") -> None:
        self.api = api
        self.bulkhead = api.service.get_or_create_bulkhead(name, config)
        self.core = self.bulkhead._core
        self.guards: dict[Permit, Any] = {}

    def enter(self, priority: PriorityLevel = NORMAL, timeout: float = 0) -> Permit:
        """Goes inside, as by a call that does not end."""
        return enter(self.api, self.bulkhead.guard(priority, timeout), self.guards)

    def leave(self, permit: Permit, error: BaseException | None = None) -> None:
        guard, kind = self.guards.pop(permit), None if error is None else type(error)
        asynchronous = self.api.form == "asyncio"
        self.api(guard.__aexit__(kind, error, None) if asynchronous else guard.__exit__(kind, error, None))

    @property
    def backend(self) -> Any:
        backends = self.api.runtime.backends_of(self.core)
        return backends.blocking if self.api.form == "sync" else backends.suspending

    def run(self, core: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine of the core returns."""
        return step(core) if self.api.form == "sync" else self.api(core)

    def keep_up(self) -> None:
        """Has the attendant's work done now."""
        for holdings in self.core._parties:
            self.run(holdings.keep_up(self.backend))

    def stats(self) -> Any:
        return self.api(self.bulkhead.get_stats())

    @property
    def crowd(self) -> tuple[int, int]:
        """How many are inside, and how many wait."""
        stats = self.stats()
        return stats["inside"], stats["waiting"]

    @contextmanager
    def waiting(self, wait: Callable[[float], bool]) -> Iterator[None]:
        """Has who would wait for a slot call `wait(seconds)` instead, which says whether the turn has come."""

        class Told:
            def wake(self) -> None:
                """Nobody has to be woken."""

            async def wait(self, seconds: float) -> bool:
                return wait(seconds)

        ticket, self.backend.ticket = self.backend.ticket, Told
        yield
        self.backend.ticket = ticket

    def asked(self) -> list[str]:
        """The scripts that are asked for from now on, but for those of the attendant."""
        scripts: list[str] = []
        run = self.backend.run

        async def note(command: Command[Any], *rest: Any) -> Any:
            if command.operation.script != "bulkhead_upkeep":
                scripts.append(command.operation.script)
            return await run(command, *rest)

        self.backend.run = note
        return scripts

    def rest(self) -> None:
        """Lets work end that nobody waits for."""
        if self.api.form == "asyncio":
            of_limits: Any = self.api.runtime.backends.suspending
            self.api(_all([*self.backend._at_work, *of_limits._at_work]))


class Both(Bulkhead):
    """The limits and the bulkhead of one resource."""

    def __init__(self, api: Api, *limits: Limit, config: BulkheadConfig = ONE, **options: Any) -> None:
        super().__init__(api, config, "orders")
        self.limiter = api.service.get_or_create_rate_limiter("orders", *limits, **options)
        self.permits = api.service.permits("orders")

    def go_in(self, key: Any = "", cost: int = 1, priority: Any = NORMAL, timeout: float | None = 0) -> Permit:
        """Enters both, as by a call that does not end."""
        return enter(self.api, self.permits.guard(key, cost, priority, timeout), self.guards)

    def refused(self, *asked: Any, **more: Any) -> RateLimitExceeded:
        """How a limit refuses."""
        with pytest.raises(RateLimitExceeded) as refused:
            self.go_in(*asked, **more)
        return refused.value

    def full(self, *asked: Any, **more: Any) -> BulkheadFullError:
        """How the bulkhead refuses."""
        with pytest.raises(BulkheadFullError) as full:
            self.go_in(*asked, **more)
        return full.value

    def left(self, **key: str) -> int:
        """What is left of the limits for `key`."""
        remaining: int = self.api(self.limiter.peek(key)).remaining
        return remaining

    def passes(self) -> int:
        """How many calls the limits let pass until they refuse one."""
        for number in range(100):
            if not self.api(self.limiter.try_acquire()):
                return number
        raise AssertionError("nothing refuses")

    def counts(self, *names: str) -> list[int]:
        """What this process has counted."""
        counted = self.core.resource.counted()
        return [counted.get(name, 0) for name in names]


def enter(api: Api, guard: Any, guards: dict[Permit, Any]) -> Permit:
    permit: Permit = api(guard.__enter__() if api.form == "sync" else guard.__aenter__())
    guards[permit] = guard
    return permit


class Waiters:
    """Callers that wait for a slot beside the test, each told apart by its name."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self.bulkhead = bulkhead
        self.went_in: list[str] = []
        self.permits: dict[str, Permit] = {}
        self.raised: dict[str, BaseException] = {}
        self._threads: list[threading.Thread] = []
        self._tasks: list[asyncio.Task[None]] = []

    def wait(self, name: str, priority: PriorityLevel = NORMAL, timeout: float = 60) -> None:
        """Has one more wait, and returns when it stands in the queue."""
        self.wait_at(self.bulkhead.bulkhead.guard(priority, timeout), name)

    def wait_at(self, guard: Any, name: str) -> None:
        """The same at any guard that leads inside."""
        _, before = self.bulkhead.crowd
        if self.bulkhead.api.form == "sync":
            thread = threading.Thread(target=self._block, args=(name, guard), daemon=True)
            self._threads.append(thread)
            thread.start()
        else:
            self._tasks.append(self.bulkhead.api.loop.create_task(self._suspend(name, guard)))
        self.until(lambda: self.bulkhead.crowd[1] == before + 1)

    def until(self, condition: Callable[[], object]) -> None:
        """Lets the waiters go on until `condition` holds."""
        api = self.bulkhead.api

        def holds() -> object:
            if api.form == "asyncio":
                api(asyncio.sleep(0.002))
            return condition()

        poll(holds, "the waiters to go on")

    def finish(self) -> None:
        """Lets all come to their end."""
        for thread in self._threads:
            thread.join(10)
        if self._tasks:
            self.bulkhead.api(_all(self._tasks))

    def cancel(self) -> None:
        """Cancels the tasks that wait."""
        for task in self._tasks:
            task.cancel()

    def _block(self, name: str, guard: Any) -> None:
        try:
            with guard as permit:
                self.went_in.append(name)
                self.permits[name] = permit
        except BaseException as error:
            self.raised[name] = error

    async def _suspend(self, name: str, guard: Any) -> None:
        try:
            async with guard as permit:
                self.went_in.append(name)
                self.permits[name] = permit
        except BaseException as error:
            self.raised[name] = error


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
