"""Points at which a call can be interrupted: each suspension of a task, each step that a thread takes in a backend."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import shared_resilience

T = TypeVar("T")
PACKAGE = str(Path(shared_resilience.__file__).parent)


class Cancelled(Awaitable[T]):
    """Awaits `work`, whose task is cancelled at suspension number `at`: as it begins to wait; `late`: as it is woken.

    `reached` says whether there was one.
    """

    def __init__(self, work: Awaitable[T], at: int, late: bool) -> None:
        self._work, self._at, self._late = work, at, late
        self.reached = False

    def __await__(self) -> Generator[Any, Any, T]:
        steps: Any = self._work.__await__()
        number, value = 0, None
        try:
            waits_for = steps.send(None)
            while True:
                number += 1
                if number == self._at:
                    self._cancel(waits_for)
                try:
                    value = yield waits_for
                except BaseException as error:
                    waits_for = steps.throw(error)
                else:
                    waits_for = steps.send(value)
        except StopIteration as end:
            result: T = end.value
            return result

    def _cancel(self, waits_for: Any) -> None:
        self.reached = True
        task = asyncio.current_task()
        assert task is not None
        if self._late and waits_for is not None:
            waits_for.add_done_callback(lambda _: task.cancel())  # it comes before what wakes the task
        else:
            task.cancel()


class Interrupted:
    """Raises KeyboardInterrupt in the thread that made it, at step number `at` of what that has `backend` do.

    There is a step before and one after each command, each wait and each sleep. `reached` says whether there was one.
    """

    def __init__(self, backend: Any, at: int) -> None:
        self._at, self._thread = at, threading.get_ident()
        self._elsewhere = False
        self.reached = False
        self.after_command: Callable[[Any], None] = lambda reply: None
        """What others do when a command of this thread has run."""
        self._backend = backend
        self._kept = backend.run, backend.ticket, backend.sleep

    def __enter__(self) -> Interrupted:
        run, ticket, sleep = self._kept

        async def interrupted_run(*args: Any, **kwargs: Any) -> Any:
            self._step()
            reply = await run(*args, **kwargs)
            if self._is_ours():
                self._elsewhere = True
                self.after_command(reply)
                self._elsewhere = False
            self._step()
            return reply

        async def interrupted_sleep(seconds: float) -> None:
            self._step()
            await sleep(seconds)
            self._step()

        def interrupted_ticket() -> Any:
            made = ticket()
            wait = made.wait

            async def interrupted_wait(seconds: float) -> bool:
                self._step()
                woken: bool = await wait(seconds)
                self._step()
                return woken

            made.wait = interrupted_wait
            return made

        self._backend.run, self._backend.sleep = interrupted_run, interrupted_sleep
        self._backend.ticket = interrupted_ticket
        return self

    def __exit__(self, *exception: object) -> None:
        self._backend.run, self._backend.ticket, self._backend.sleep = self._kept

    def _is_ours(self) -> bool:
        return threading.get_ident() == self._thread and not self._elsewhere

    def _step(self) -> None:
        if not self._is_ours():
            return
        self._at -= 1
        if self._at == 0:
            self.reached = True
            raise KeyboardInterrupt


class Signalled:
    """Raises KeyboardInterrupt where Python would raise it for a signal: as a function begins, or a built-in has ended.

    In the functions of `files` of the package, in this thread, at point number `at`; `reached` says where that was.
    """

    def __init__(self, at: int, files: tuple[str, ...], exempt: Callable[[FrameType], bool]) -> None:
        self._at = at
        self._files = frozenset(f"{PACKAGE}/{name}" for name in files)
        self._exempt = exempt
        self.reached = ""

    def __enter__(self) -> Signalled:
        sys.setprofile(self._look)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)

    def not_in(self, function: Callable[[Any], None]) -> Callable[[Any], None]:
        """`function`, as by another thread."""

        def undisturbed(argument: Any) -> None:
            sys.setprofile(None)
            function(argument)
            if not self.reached:
                sys.setprofile(self._look)

        return undisturbed

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event not in ("call", "c_return") or code.co_filename not in self._files or self._exempt(frame):
            return
        self._at -= 1
        if self._at == 0:
            self.reached = f"{event} {code.co_name}:{frame.f_lineno}"
            sys.setprofile(None)
            raise KeyboardInterrupt
