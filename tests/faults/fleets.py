"""Fleets of real processes that ask one limiter again and again, and write down what they were answered and when."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import redis
from forms import Form
from processes import forkserver
from redis import asyncio as async_redis
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.sentinel import Sentinel
from servers import poll

from shared_resilience import ResilienceService
from shared_resilience.limits import Limit

CALLERS = 2
"""Threads or tasks of each process."""


class Call(NamedTuple):
    """One question and its answer, by the machine's monotonic clock."""

    process: int
    asked: float
    answered: float
    allowed: bool
    source: str

    @property
    def seconds(self) -> float:
        return self.answered - self.asked


class Way(NamedTuple):
    """How a process comes to its service: a URL, or the port of a sentinel or of a cluster's node."""

    kind: str
    where: str
    options: dict[str, Any]

    def service(self) -> ResilienceService:
        if self.kind == "url":
            return ResilienceService.from_url(self.where, **self.options)
        return ResilienceService(self._client(asynchronous=False), **self.options)

    def async_service(self) -> Any:
        if self.kind == "url":
            return self.service().aio
        return ResilienceService(async_client=self._client(asynchronous=True), **self.options).aio

    def _client(self, asynchronous: bool) -> Any:
        port = int(self.where)
        if self.kind == "cluster":
            kind: Any = async_redis.RedisCluster if asynchronous else redis.RedisCluster
            return kind(host="127.0.0.1", port=port)
        sentinel: Any = AsyncSentinel if asynchronous else Sentinel
        return sentinel([("127.0.0.1", port)], socket_timeout=1).master_for("main", protocol=2)


def url(where: str, **options: Any) -> Way:
    return Way("url", where, options)


def ask(way: Way, names: tuple[str, ...], limit: Limit, asynchronous: bool, folder: str, pause: float) -> None:
    """Asks for each of `names` in turn until the process is killed. What is raised is written down, too."""
    log = os.open(Path(folder) / str(os.getpid()), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    one = Form(asynchronous)
    service = way.async_service() if asynchronous else way.service()
    limiters = [service.get_or_create_rate_limiter(name, limit, remember_refusals=False) for name in names]

    async def caller() -> None:
        for limiter in itertools.cycle(limiters):
            asked = time.monotonic()
            try:
                decision = await one.value(limiter.try_acquire())
                line = f"{asked} {time.monotonic()} {int(decision.allowed)} {decision.source}"
            except Exception as error:
                line = f"wrong {error!r}".replace("\n", " ")
            os.write(log, f"{line}\n".encode())
            await one.pause(pause)

    one.run([caller] * CALLERS)


class Fleet:
    """Processes at work."""

    def __init__(self, processes: list[Any], folder: Path) -> None:
        self.processes = processes
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._calls: list[Call] = []

    def calls(self) -> list[Call]:
        """All calls so far that are written down, in the order in which they were asked. Fails if one has raised."""
        for path in self._folder.iterdir():
            with path.open("rb") as log:
                log.seek(self._read.get(path, 0))
                whole, end, _ = log.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole + end)
            for line in whole.decode().splitlines():
                words = line.split(" ")
                assert words[0] != "wrong", line
                self._calls.append(Call(int(path.name), float(words[0]), float(words[1]), words[2] == "1", words[3]))
        self._calls.sort(key=lambda call: call.asked)
        return list(self._calls)

    def go_on(self, seconds: float) -> None:
        """Waits until each process has made calls for so long from now on."""
        until = time.monotonic() + seconds

        def over() -> bool:
            return len({call.process for call in self.calls() if call.asked >= until}) == len(self.processes)

        poll(over, f"all to go on for {seconds} s", seconds + 20.0)

    def until_all_decide_by(self, source: str, since: float, seconds: float = 20.0) -> float:
        """Waits until each process has had a decision of `source` since then; when the last one had its first."""

        def first() -> dict[int, float]:
            firsts: dict[int, float] = {}
            for call in self.calls():
                if call.source == source and call.answered >= since:
                    firsts.setdefault(call.process, call.answered)
            return firsts

        poll(lambda: len(first()) == len(self.processes), f"all to decide by {source}", seconds)
        return max(first().values())


@contextmanager
def fleet(
    size: int,
    way: Way,
    names: tuple[str, ...],
    limit: Limit,
    folder: Path,
    pause: float = 0.003,
) -> Iterator[Fleet]:
    """`size` processes that ask until the block is left: by threads and by tasks in turn."""
    processes = []
    for number in range(size):
        arguments = (way, names, limit, number % 2 == 1, str(folder), pause)
        processes.append(forkserver.Process(target=ask, args=arguments, daemon=True))
        processes[-1].start()
    try:
        yield Fleet(processes, folder)
    finally:
        for process in processes:
            process.kill()
            process.join(10)


def allowed_between(calls: list[Call], began: float, ended: float) -> int:
    """How many were certainly allowed then: asked after it began, answered before it ended."""
    return sum(call.allowed and call.asked >= began and call.answered <= ended for call in calls)


def worst_excess(calls: list[Call], capacity: float, rate: float, began: float, ended: float) -> float:
    """By how much the worst interval from `began` to `ended` exceeds capacity + rate × its length."""
    inside = [call for call in calls if call.allowed and call.asked >= began and call.answered <= ended]
    worst = -float("inf")
    lowest = float("inf")
    for count, call in enumerate(inside):  # the best place to begin is where count − rate × time is lowest
        lowest = min(lowest, count - rate * call.asked)
        worst = max(worst, count + 1 - rate * call.answered - lowest)
    return worst - capacity


def percentile(values: list[float], percent: float) -> float:
    """The nearest value at or above so many percent of all."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
