"""Threads or tasks: how one body of a worker does for both."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from inspect import isawaitable
from typing import Any

from shared_resilience.backends import step


class Form:
    """Threads or tasks: one body for both."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous

    async def value(self, result: Any) -> Any:
        return await result if isawaitable(result) else result

    async def pause(self, seconds: float) -> None:
        if self.asynchronous:
            await asyncio.sleep(seconds)
        else:
            time.sleep(seconds)  # noqa: ASYNC251  # of a coroutine that is stepped by a thread

    def entered(self, guard: Any) -> AbstractAsyncContextManager[Any]:
        return guard if self.asynchronous else _entered(guard)

    def function(self, work: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        """`work` as users write it in this form."""
        return work if self.asynchronous else lambda *args: step(work(*args))

    def run(self, works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        """All of them, for ever."""
        if self.asynchronous:
            asyncio.run(_together([work() for work in works]))
            return
        threads = [threading.Thread(target=lambda work=work: step(work())) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


async def _together(works: list[Awaitable[None]]) -> None:
    await asyncio.gather(*works)


@asynccontextmanager
async def _entered(guard: AbstractContextManager[Any]) -> Any:
    with guard as inside:
        yield inside
