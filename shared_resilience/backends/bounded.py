"""Calls that are waited for no longer than so many seconds: coroutines are cancelled, functions left to a thread."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
Outcome = list[tuple[T] | BaseException]
"""What a call returned, or its error; empty until it has ended."""

logger = logging.getLogger("shared_resilience")


class Straggler:
    """A call on a thread that nobody waits for any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._afterwards: list[Callable[[], object]] = []

    def then(self, work: Callable[[], object]) -> None:
        """Does `work` when the call has ended: on its thread, or at once if it has."""
        with self._lock:
            ended = self._ended
            if not ended:
                self._afterwards.append(work)
        if ended:
            work()

    def end(self) -> None:
        """The call has ended."""
        with self._lock:
            self._ended, afterwards = True, self._afterwards
        for work in afterwards:
            try:
                work()
            except Exception:
                logger.exception("what a call held could not be given back")


class OverdueError(Exception):
    """The call was still running when its time was over."""

    straggler: Straggler | None = None


def straggler_of(error: BaseException | None) -> Straggler | None:
    """The call that still runs on a thread though its caller has got `error`."""
    return getattr(error, "straggler", None)


class _Begun:
    """Goes on with what has begun, and waits for something first."""

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any) -> None:
        self._steps, self._waits_for = steps, waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        steps, waits_for = self._steps, self._waits_for
        try:
            while True:
                try:
                    sent = yield waits_for
                except GeneratorExit:
                    steps.close()
                    raise
                except BaseException as error:
                    waits_for = steps.throw(error)
                else:
                    waits_for = steps.send(sent)
        except StopIteration as end:
            return end.value


async def awaited(call: Awaitable[T], seconds: float) -> T:
    """What `call` returns or raises. Cancels it after `seconds`, and raises `OverdueError`.

    What never waits needs no timer, which takes longer than all else that is done here.
    """
    steps: Generator[Any, Any, T] = call.__await__()
    try:
        waits_for = steps.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    timeout = asyncio.timeout(seconds)
    try:
        async with timeout:
            return await _Begun(steps, waits_for)  # type: ignore[no-any-return]  # what its steps return
    except TimeoutError:
        if timeout.expired():
            raise OverdueError from None
        raise


def on_a_thread(call: Callable[[], T], seconds: float) -> T:
    """What `call` returns or raises on a thread of its own. Leaves it to itself after `seconds`: `OverdueError`.

    What its caller holds is to be held until the thread has ended, see `straggler_of`.
    """
    ended = threading.Event()
    straggler, outcome = _begin(call, ended.set)
    if not ended.wait(seconds):
        raise _overdue(straggler)
    return _result_of(outcome)


async def awaited_on_a_thread(call: Callable[[], T], seconds: float) -> T:
    """The same for tasks."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        with suppress(RuntimeError):  # its loop is gone, and so is the waiter
            loop.call_soon_threadsafe(ended.set)

    straggler, outcome = _begin(call, end)
    try:
        await awaited(ended.wait(), seconds)
    except OverdueError:
        raise _overdue(straggler) from None
    return _result_of(outcome)


def _begin(call: Callable[[], T], end: Callable[[], None]) -> tuple[Straggler, Outcome[T]]:
    """Calls it on a thread, which fills the outcome and calls `end`."""
    straggler = Straggler()
    outcome: Outcome[T] = []

    def work() -> None:
        try:
            outcome.append((call(),))
        except BaseException as error:
            outcome.append(error)
        finally:
            end()
            straggler.end()

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="shared_resilience-call", daemon=True).start()
    return straggler, outcome


def _overdue(straggler: Straggler) -> OverdueError:
    overdue = OverdueError()
    overdue.straggler = straggler
    return overdue


def _result_of(outcome: Outcome[T]) -> T:
    (ended,) = outcome
    if isinstance(ended, BaseException):
        raise ended
    return ended[0]
