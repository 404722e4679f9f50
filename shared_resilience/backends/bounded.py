"""Calls that are waited for no longer than so many seconds: coroutines are cancelled, functions left to a thread."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class OverdueError(Exception):
    """The call was still running when its time was over."""


async def awaited(call: Awaitable[T], seconds: float) -> T:
    """What `call` returns or raises. Cancels it after `seconds`, and raises `OverdueError`."""
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            return await call
    except TimeoutError:
        if timeout.expired():
            raise OverdueError from None
        raise


def on_a_thread(call: Callable[[], T], seconds: float) -> T:
    """What `call` returns or raises on a thread of its own. Leaves it to itself after `seconds`: `OverdueError`."""
    ended = threading.Event()
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            ended.set()

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="shared_resilience-call", daemon=True).start()
    if not ended.wait(seconds):
        raise OverdueError
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]
