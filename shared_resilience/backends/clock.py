"""A process's own clock: for deadlines, waiting, and decisions without Redis; never for what the fleet shares."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that only grow, and a way to let them pass."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""

    def sleep(self, seconds: float) -> None:
        """Lets `seconds` pass in this thread."""

    async def async_sleep(self, seconds: float) -> None:
        """Lets `seconds` pass in this task."""


class SystemClock:
    """The real one."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    async_sleep = staticmethod(asyncio.sleep)
