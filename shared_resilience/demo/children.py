"""The demo's processes: started, told, heard and ended by their own handles."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from shared_resilience.demo.messages import Message, encode

LONGEST_LINE = 2**22
PATIENCE = 60.0
"""Seconds to wait for an answer. A busy machine may take its time to start 64 interpreters."""


class ChildError(Exception):
    """A process of the demo ended or failed before its time."""


class Child:
    """A Python process that runs a module of the demo, in a session of its own: Ctrl-C is for the demo to handle.

    It ends with its standard input, so that none is left even if the demo is killed.
    """

    def __init__(self, process: Process, title: str) -> None:
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._title = title

    async def tell(self, message: Message) -> None:
        """Sends one message."""
        with suppress(ConnectionError):  # whether the child still lives is seen by who listens to it
            self._stdin.write(encode(message).encode())
            await self._stdin.drain()

    async def hear(self, patience: float = PATIENCE) -> Message:
        """The next message. Raises `ChildError` if there is none or it tells of an error."""
        try:
            line = await asyncio.wait_for(self._stdout.readline(), patience)
        except TimeoutError:
            raise ChildError(f"{self._title} said nothing for {patience:.0f} s") from None
        if not line:
            raise ChildError(f"{self._title} ended by itself, with exit code {await self._process.wait()}")
        message: Message = json.loads(line)
        if error := message.get("error"):
            raise ChildError(f"{self._title} failed:\n{error}")
        return message

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()

    async def join(self) -> None:
        """Waits for the end of a terminated process, and enforces it after two seconds."""
        try:
            await asyncio.wait_for(self._process.wait(), 2.0)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def started(module: str, *arguments: str, count: int = 1) -> AsyncIterator[list[Child]]:
    """`count` processes that run `shared_resilience.demo.<module>`; on leaving, they are ended and waited for."""
    children: list[Child] = []
    # They find their modules where the demo has found its own: installed, or in a checkout.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = (sys.executable, "-P", "-m", f"shared_resilience.demo.{module}", *arguments)
    try:
        for number in range(1, count + 1):
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True, limit=LONGEST_LINE
            )
            children.append(Child(process, f"{module} {number}"))
        yield children
    finally:
        for child in children:
            child.terminate()
        for child in children:
            await child.join()
