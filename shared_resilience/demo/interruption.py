"""Ctrl-C and its like: the demo is cancelled once, and then tidies up undisturbed."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress


def cancel_on_signals() -> None:
    """Cancels the present task on SIGINT, SIGTERM or SIGHUP; further signals change nothing."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task

    def cancel() -> None:
        if not task.cancelling():
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # else nohup wants it ignored
            loop.add_signal_handler(number, cancel)


async def enter_or_signal() -> None:
    """Waits for Enter or for a signal."""
    pressed = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, pressed.set)
    try:
        with suppress(asyncio.CancelledError):
            await pressed.wait()
    finally:
        loop.remove_reader(sys.stdin)
