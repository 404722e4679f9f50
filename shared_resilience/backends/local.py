"""The local backend: this process alone, by the twins of the scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from typing import Any, TypeVar

from shared_resilience.backends import OnOutage, Ticket, step
from shared_resilience.backends.process import Process
from shared_resilience.backends.tickets import TaskTicket, ThreadTicket
from shared_resilience.commands import Command, Source
from shared_resilience.heartbeat import Resource

R = TypeVar("R")


class LocalBackend:
    """Runs commands in this process, for a service without Redis and as a test double."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def run(self, command: Command[R], resource: Resource, on_outage: OnOutage = "local") -> R:
        return command.operation.decode(self._process.local.execute(command), "local")

    async def keep_up(self, resource: Resource) -> None:
        """There is no fleet to tell: a heartbeat that is due is done."""
        self._process.heartbeat.begin(self.monotonic())

    def source(self) -> Source:
        return "local"

    def ticket(self) -> Ticket:
        return ThreadTicket()

    async def forget_prefix(self, prefix: str) -> None:
        self._process.local.forget_prefix(prefix)

    async def refresh(self) -> None:
        """There is no fleet."""

    async def check(self) -> None:
        """There is nothing that could be away."""

    async def close(self) -> None:
        """There is nothing to report."""

    def party(self) -> Hashable:
        return id(self)

    async def finish(self, work: Coroutine[Any, Any, R]) -> R:
        return await work

    def detach(self, work: Coroutine[Any, Any, None]) -> None:
        step(work)

    async def sleep(self, seconds: float) -> None:
        self._process.clock.sleep(seconds)

    def monotonic(self) -> float:
        return self._process.clock.monotonic()


class AsyncLocalBackend(LocalBackend):
    """The same for asyncio: only waiting differs."""

    def party(self) -> Hashable:
        return id(self), asyncio.get_running_loop()

    def ticket(self) -> Ticket:
        return TaskTicket()

    async def sleep(self, seconds: float) -> None:
        await self._process.clock.async_sleep(seconds)
