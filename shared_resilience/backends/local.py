"""The local backend: this process alone, by the twins of the scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from shared_resilience.backends import OnOutage
from shared_resilience.backends.forms import ForTasks, ForThreads
from shared_resilience.commands import Argument, Command, Source
from shared_resilience.heartbeat import Resource

R = TypeVar("R")


class LocalBackend(ForThreads):
    """Runs commands in this process, for a service without Redis and as a test double."""

    async def run(self, command: Command[R], resource: Resource, on_outage: OnOutage = "local") -> R:
        return command.operation.decode(self._process.local.execute(command), "local")

    async def keep_up(self, resource: Resource) -> None:
        """There is no fleet to tell: a heartbeat that is due is done."""
        self._process.heartbeat.begin(self.monotonic())

    def source(self) -> Source:
        return "local"

    async def forget_prefix(self, prefix: str) -> None:
        self._process.local.forget_prefix(prefix)

    async def refresh(self) -> None:
        """There is no fleet."""

    async def check(self) -> None:
        """There is nothing that could be away."""

    async def inquire(self, key: str, questions: Sequence[tuple[Argument, ...]]) -> list[Any] | None:
        return None

    async def close(self) -> None:
        """There is nothing to report."""
        await self._dismiss()


class AsyncLocalBackend(ForTasks, LocalBackend):
    """The same for asyncio: only waiting differs."""
