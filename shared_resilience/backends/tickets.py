"""What a waiter holds: it can be woken from any thread."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import suppress


class ThreadTicket:
    """For a thread that waits."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self) -> None:
        """Lets the waiter go on."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Blocks until woken, for `seconds` at most; whether it was woken."""
        return self._event.wait(None if seconds == math.inf else min(seconds, threading.TIMEOUT_MAX))


class TaskTicket:
    """For a task that waits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Lets the waiter go on."""
        with suppress(RuntimeError):  # its loop is gone, and so is the waiter
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> bool:
        """Waits until woken, for `seconds` at most; whether it was woken."""
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
