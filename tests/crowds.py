"""Crowds: processes that go in and out of one bulkhead and write down when; who was inside at once, as they saw it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from processes import forkserver
from servers import PATIENT, poll

from shared_resilience import BulkheadConfig, ResilienceError, ResilienceService

THREADS = 2
"""Of each process: more callers than slots, so that there is always a queue."""


class Stay(NamedTuple):
    """A call that was inside, by the machine's monotonic clock; `lost` if its lease was over before it left."""

    process: int
    began: float
    ended: float
    lost: bool


def come_and_go(url: str, prefix: str, config: BulkheadConfig, folder: str, longest: float) -> None:
    """Goes in and out until the process is killed; stays for `longest` seconds now and then, else for a twentieth.

    What is written survives a kill: each line is one system call.
    """
    service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)
    bulkhead = service.get_or_create_bulkhead("payments", config)
    log = os.open(Path(folder) / str(os.getpid()), os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def work() -> None:
        source = random.Random(threading.get_ident())
        while True:
            with bulkhead.guard() as permit:
                os.write(log, f"in {permit.token} {time.monotonic()} {permit.safe_until}\n".encode())
                time.sleep(longest if source.random() < 0.02 else longest / 20 * source.random())
                out = time.monotonic()  # before it is looked whether the lease was kept: lost from then on is no matter
                os.write(log, f"out {permit.token} {out} {permit.lost:d}\n".encode())

    threads = [threading.Thread(target=work, daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Crowd:
    """`size` processes in one bulkhead, of which some are killed, or stand still, while the others go on."""

    def __init__(
        self, url: str, prefix: str, config: BulkheadConfig, folder: Path, longest: float, size: int = 8
    ) -> None:
        self._arguments = (url, prefix, config, str(folder), longest)
        self._folder = folder
        self._ended: dict[int, float] = {}
        self._processes = [self._another() for _ in range(size)]
        self._source = random.Random(os.getpid())

    def _another(self) -> Any:
        process = forkserver.Process(target=come_and_go, args=self._arguments)
        process.start()
        return process

    def _any(self) -> int:
        return self._source.randrange(len(self._processes))

    def kill_one(self) -> None:
        """Kills one, and another takes its place."""
        one = self._any()
        self._kill(self._processes[one])
        self._processes[one] = self._another()

    def _kill(self, process: Any) -> None:
        self._ended[process.pid] = time.monotonic()  # it may be inside until then, and is not afterwards
        process.kill()
        process.join(10)

    def pause_one(self, seconds: float) -> None:
        """Has one stand still for `seconds`."""
        pid = self._processes[self._any()].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)  # stands for a process that stands still for real
        finally:
            os.kill(pid, signal.SIGCONT)

    def disturb(self, seconds: float, lease: float, paused: float) -> Counter[str]:
        """Kills one or two a second; as many as `paused` of 1 stand still instead, for longer than their `lease`."""
        done, end = Counter[str](), time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.3 + 0.3 * self._source.random())
            if self._source.random() < paused:
                self.pause_one(1.5 * lease)
                done["paused"] += 1
            else:
                self.kill_one()
                done["killed"] += 1
        return done

    def end(self) -> None:
        """Kills all."""
        for process in self._processes:
            self._kill(process)

    def stays(self) -> list[Stay]:
        """All that were inside, in the order in which they went in."""
        return sorted(self._read(), key=lambda stay: stay.began)

    def _read(self) -> Iterator[Stay]:
        for path in self._folder.iterdir():
            pid, inside = int(path.name), {}
            *lines, rest = path.read_text().split("\n")
            assert not rest
            for line in lines:
                what, token, at, more = line.split(" ")
                if what == "in":
                    inside[token] = float(at), float(more)
                else:
                    began, _ = inside.pop(token)
                    yield Stay(pid, began, float(at), more == "1")
            for began, safe_until in inside.values():
                yield Stay(pid, began, min(safe_until, self._ended[pid]), lost=False)


def most_at_once(stays: Iterable[Stay]) -> int:
    """How many were inside together at the worst moment."""
    steps: dict[float, int] = defaultdict(int)
    for stay in stays:
        if stay.ended > stay.began:
            steps[stay.began] += 1
            steps[stay.ended] -= 1
    inside = most = 0
    for _, change in sorted(steps.items()):
        inside += change
        most = max(most, inside)
    return most


def longest_without_newcomer(stays: Iterable[Stay]) -> float:
    """The longest time during which nobody went in, in seconds."""
    began = sorted(stay.began for stay in stays)
    return max(later - earlier for earlier, later in pairwise(began))


class Visitor:
    """A process that goes in when it is told to, one call at a time, and leaves when it is told to."""

    def __init__(self, url: str, prefix: str, config: BulkheadConfig) -> None:
        self._pipe, theirs = forkserver.Pipe()
        self.process = forkserver.Process(target=visit, args=(url, prefix, config, theirs), daemon=True)
        self.process.start()
        assert self._said(60) == "ready"

    def _said(self, seconds: float) -> Any:
        assert self._pipe.poll(seconds), f"the visitor said nothing for {seconds} s"
        return self._pipe.recv()

    def knock(self, **how: Any) -> None:
        """Wants to go in; `how` is what `guard` takes."""
        self._pipe.send(how)

    def went_in(self, seconds: float = 10) -> float:
        """When it went in, by the machine's monotonic clock; waited for during at most `seconds`."""
        at: float = self._said(seconds)
        return at

    def leave(self) -> bool:
        """Has it leave; whether its permit was lost."""
        self._pipe.send("leave")
        lost: bool = self._said(10)
        assert self._said(10) == "left"
        return lost

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process.pid
        os.kill(self.process.pid, number)

    def close(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.join(10)


def visit(url: str, prefix: str, config: BulkheadConfig, pipe: Connection) -> None:
    service = ResilienceService.from_url(url, prefix=prefix, command_timeout=PATIENT)
    bulkhead = service.get_or_create_bulkhead("payments", config)
    bulkhead.get_stats()
    pipe.send("ready")
    with suppress(EOFError):
        while True:
            how = pipe.recv()
            try:
                with bulkhead.guard(**how) as permit:
                    pipe.send(time.monotonic())
                    pipe.recv()
                    pipe.send(permit.lost)
            except ResilienceError as error:
                pipe.send(error)
            else:
                pipe.send("left")


def until_crowd_is(bulkhead: Any, inside: int, waiting: int, seconds: float = 10) -> None:
    """Waits until so many are inside and wait."""

    def found() -> tuple[int, int]:
        stats = bulkhead.get_stats()
        return stats["inside"], stats["waiting"]

    poll(lambda: found() == (inside, waiting), f"{inside} inside and {waiting} waiting", seconds)
