"""Callers that go on for as long as a test wants: threads, or the tasks of a loop of their own."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from typing import Any

from shared_resilience import AsyncResilienceService, Event, ResilienceService

THREADS, TASKS = 3, 10


class Load(ABC):
    """Calls as fast as it can until it is stopped. What a call raises is kept; nothing is expected to."""

    def __init__(self, form: str, url: str, prefix: str, **options: Any) -> None:
        self.errors: list[BaseException] = []
        self.events: list[Event] = []
        self.service = ResilienceService.from_url(url, prefix=prefix, listeners=[self.events.append], **options)
        self._stopped = threading.Event()
        target = self._by_tasks if form == "asyncio" else self._by_thread
        self._threads = [threading.Thread(target=target) for _ in range(1 if form == "asyncio" else THREADS)]
        for thread in self._threads:
            thread.start()

    @abstractmethod
    def call(self, service: ResilienceService) -> None:
        """One call of a thread."""

    @abstractmethod
    async def call_async(self, service: AsyncResilienceService) -> None:
        """One call of a task."""

    def _by_thread(self) -> None:
        while not self._stopped.is_set():
            try:
                self.call(self.service)
            except BaseException as error:
                self.errors.append(error)

    def _by_tasks(self) -> None:
        async def work(service: AsyncResilienceService) -> None:
            while not self._stopped.is_set():
                try:
                    await self.call_async(service)
                except BaseException as error:
                    self.errors.append(error)
                await asyncio.sleep(0)

        async def main() -> None:
            async with self.service.aio as service:
                await asyncio.gather(*(work(service) for _ in range(TASKS)))

        asyncio.run(main())

    def names(self) -> list[str]:
        """The names of the events so far."""
        return [event.name for event in self.events]

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self.service.close()
