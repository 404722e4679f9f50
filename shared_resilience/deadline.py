"""Deadlines: a budget of time for all that is nested in a block, in whichever task or function it runs.

The end is kept in a context variable: tasks inherit it, and so do threads that are started with `asyncio.to_thread` or
`contextvars.copy_context().run`. Other processes are told by a header, as the time that remains, so that nobody's wall
clock matters.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

from shared_resilience import validation
from shared_resilience.errors import DeadlineExceeded

HEADER = "X-Deadline-Ms"
"""The header that tells another process how many milliseconds remain."""

LONGEST = 366 * 86_400.0


class Deadline:
    """A block of code with a budget of time; made by `deadline()`, for one `with` at a time.

    `with` ends nothing by itself: what waits inside gives up in time, and retries that would come too late are not
    made. `async with` also cancels what is still awaited when the time is over, and raises `DeadlineExceeded`.
    """

    __slots__ = ("_ends", "_monotonic", "_seconds", "_timeout", "_token")

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self._seconds = seconds
        self._monotonic = monotonic
        self._ends = math.inf
        self._token: Token[Deadline | None] | None = None
        self._timeout: asyncio.Timeout | None = None

    def __repr__(self) -> str:
        return f"Deadline({self.remaining():.3f} s remain)"

    def remaining(self) -> float:
        """Seconds until the end, 0 when it has passed; before the block has begun, the whole budget."""
        if self._ends == math.inf:
            return self._seconds
        return max(0.0, self._ends - self._monotonic())

    def __enter__(self) -> Self:
        if self._token is not None:
            raise RuntimeError("this deadline is in use: make one for each block")
        self._ends = self._monotonic() + min(self._seconds, remaining())
        self._token = _ambient.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _ambient.reset(self._token)
            self._token = None

    async def __aenter__(self) -> Self:
        self.__enter__()
        seconds = self.remaining()
        self._timeout = asyncio.timeout(None if seconds == math.inf else seconds)
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
        timeout, self._timeout = self._timeout, None
        if timeout is not None:
            try:
                await timeout.__aexit__(kind, error, trace)
            except TimeoutError as late:
                raise DeadlineExceeded("the block", self._seconds) from late


_ambient: ContextVar[Deadline | None] = ContextVar("shared_resilience.deadline", default=None)


def deadline(seconds: float, *, monotonic: Callable[[], float] = time.monotonic) -> Deadline:
    """A budget of `seconds` (0 to 366 days) for all that is nested in its block; an earlier one around it still counts.

    `monotonic` is for tests with a clock of their own. Raises `ValueError` for another number.
    """
    return Deadline(validation.number("seconds", seconds, 0, LONGEST), monotonic)


def remaining() -> float:
    """Seconds until the nearest deadline around the caller: 0 when it has passed, `inf` when there is none."""
    around = _ambient.get()
    return math.inf if around is None else around.remaining()


def deadline_headers() -> dict[str, str]:
    """The header that tells another process what remains, in whole milliseconds; none without a deadline."""
    left = remaining()
    return {} if left == math.inf else {HEADER: str(math.floor(left * 1000))}


def deadline_from(headers: Mapping[str, str], longest: float = LONGEST) -> Deadline:
    """The deadline that a caller has sent, at most `longest` seconds; that, if it has sent none that can be read.

    Names of headers are found in whatever case.
    """
    sent = next((value for name, value in headers.items() if name.lower() == HEADER.lower()), "")
    text = sent.strip() if isinstance(sent, str) else ""
    seconds = int(text) / 1000 if text.isascii() and text.isdigit() and len(text) <= 15 else longest
    return deadline(min(seconds, validation.number("longest", longest, 0, LONGEST)))
