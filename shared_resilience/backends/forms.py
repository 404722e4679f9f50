"""The two forms of callers, threads and tasks: how they wait, for whom, and who looks after what they hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Hashable, Sequence
from functools import cached_property
from inspect import isawaitable
from typing import Any, TypeVar

from shared_resilience.backends import Ticket, step
from shared_resilience.backends.attendant import Attendant, TaskAttendant, ThreadAttendant
from shared_resilience.backends.bounded import awaited, awaited_on_a_thread, on_a_thread
from shared_resilience.backends.ears import Ear
from shared_resilience.backends.process import Process
from shared_resilience.backends.tickets import TaskTicket, ThreadTicket
from shared_resilience.functions import is_coroutine_function

R = TypeVar("R")


class ForThreads:
    """A backend whose callers block."""

    _attendant: ThreadAttendant | None = None

    def __init__(self, process: Process) -> None:
        self._process = process

    def _ear(self) -> Ear | None:
        """What hears the wake-ups of other processes, if there is a way."""
        return None

    def ticket(self) -> Ticket:
        return ThreadTicket()

    def party(self) -> Hashable:
        return id(self)

    def attendant(self: Any) -> Attendant:
        with self._process.lock:
            if self._attendant is None:
                self._attendant = ThreadAttendant(self, self._ear())
            return self._attendant  # type: ignore[no-any-return]  # `self` is a whole backend

    async def _dismiss(self) -> None:
        """Ends what works for the callers."""
        if self._attendant is not None:
            self._attendant.stop()

    async def finish(self, work: Coroutine[Any, Any, R]) -> R:
        return await work

    def detach(self, work: Coroutine[Any, Any, None]) -> None:
        step(work)

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        threading.Thread(target=step, args=(work,), name="shared_resilience-background", daemon=True).start()

    async def within(self, call: Callable[[], Any], seconds: float) -> Any:
        result = on_a_thread(call, seconds)
        if isinstance(result, Coroutine):
            result.close()
            raise TypeError(f"{call!r} is a coroutine function: use service.aio for it")
        return result

    async def together(self, works: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
        results: list[Any] = [None] * len(works)

        def do(index: int, work: Coroutine[Any, Any, R]) -> None:
            results[index] = step(work)

        threads = [threading.Thread(target=do, args=pair, daemon=True) for pair in enumerate(works)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    async def sleep(self, seconds: float) -> None:
        self._process.clock.sleep(seconds)

    def monotonic(self) -> float:
        return self._process.clock.monotonic()


class ForTasks(ForThreads):
    """A backend whose callers are tasks."""

    @cached_property
    def _attendants(self) -> dict[asyncio.AbstractEventLoop, TaskAttendant]:
        return {}

    @cached_property
    def _at_work(self) -> set[asyncio.Task[Any]]:
        """Tasks that nobody else holds: a loop holds them weakly."""
        return set()

    def ticket(self) -> Ticket:
        return TaskTicket()

    def party(self) -> Hashable:
        return id(self), asyncio.get_running_loop()

    def attendant(self: Any) -> Attendant:
        loop = asyncio.get_running_loop()
        known = self._attendants.get(loop)
        if known is None:
            for gone in [other for other in self._attendants if other.is_closed()]:
                del self._attendants[gone]
            known = self._attendants[loop] = TaskAttendant(self, self._ear())
        return known  # type: ignore[no-any-return]  # `self` is a whole backend

    async def finish(self, work: Coroutine[Any, Any, R]) -> R:
        return await asyncio.shield(self._start(work))

    def detach(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self._start(work)
        except RuntimeError:  # its loop is gone, and no other will do
            work.close()

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self._start(work)
        except RuntimeError:
            work.close()
            raise

    async def within(self, call: Callable[[], Any], seconds: float) -> Any:
        if is_coroutine_function(call):
            return await awaited(call(), seconds)
        result = await awaited_on_a_thread(call, seconds)
        return await awaited(result, seconds) if isawaitable(result) else result

    async def together(self, works: Sequence[Coroutine[Any, Any, R]]) -> list[R]:
        return await asyncio.gather(*works)

    def _start(self, work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        task = asyncio.get_running_loop().create_task(work)
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        return task

    async def sleep(self, seconds: float) -> None:
        await self._process.clock.async_sleep(seconds)

    async def _dismiss(self) -> None:
        """Likewise for the running loop, and lets work end that nobody waits for."""
        loop = asyncio.get_running_loop()
        if (attendant := self._attendants.pop(loop, None)) is not None:
            await attendant.stop()
        mine = [task for task in self._at_work if task.get_loop() is loop and task is not asyncio.current_task()]
        if mine:
            await asyncio.wait(mine)
