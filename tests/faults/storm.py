"""A storm: a random run, repeatable by its seed, in which Redis and workers are killed, frozen, flushed and cut off
under load. What must hold all the while is looked for afterwards in what the workers have written down.

Redis keeps its state over a kill (an append-only file is written before a reply is sent), so that only a flush loses
it; what a lost state costs is allowed for, and nothing else.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import redis
from crew import CREW, serve
from processes import forkserver
from proxies import Proxy, Treatment, late, pass_on, slowly, swallow
from servers import Server, binary_of

CALM = 4.0
"""Seconds without a fault at the end, after which all must be as if there had been none."""

LOSES_STATE = "flush"
OF_WORKERS = ("worker killed", "worker paused")


class Fault(NamedTuple):
    """What was done, when it began and when it was over; `process` is that of the worker to whom it was done."""

    name: str
    began: float
    ended: float
    process: int = 0


class Vitals(NamedTuple):
    """What is held at one moment by a worker that lives as long as the storm, and by the server."""

    resident_bytes: int
    open_files: int
    connections: int
    used_memory_bytes: int


class Course(NamedTuple):
    """How a storm went."""

    seed: int
    began: float
    ended: float
    faults: list[Fault]
    vitals: list[Vitals]
    folder: Path

    def words(self) -> str:
        counted = Counter(fault.name for fault in self.faults)
        return ", ".join(f"{number} × {name}" for name, number in counted.most_common())


class Storm:
    """A server behind a proxy, and the crew; each fault is a method that lasts for some seconds."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._random = random.Random(seed)
        self._folder = folder
        binary = str(binary_of("valkey"))
        self._server = Server(binary, "--appendonly", "yes", "--appendfsync", "no", "--loglevel", "warning")
        self._crew: list[Any] = []
        self._faults: list[Fault] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._server, Proxy(self._server.port) as self._proxy:
            self._crew = [self._another(index) for index in range(CREW)]
            try:
                yield
            finally:
                for worker in self._crew:
                    worker.kill()
                    worker.join(10)

    def rage(self, seconds: float, show: Callable[[Vitals, int], None]) -> tuple[list[Fault], list[Vitals]]:
        """One fault after the other for so long, with some calm between them and a longer one at the end."""
        kinds = [self._kill, self._freeze, self._flush, self._script_flush, self._cut, self._lose_replies]
        kinds += [self._trickle, self._delay, self._kill_worker, self._pause_worker]
        vitals: list[Vitals] = []
        end = time.monotonic() + seconds
        self._calm(2.0)  # until all have begun
        while time.monotonic() < end - CALM:
            self._random.choice(kinds)()
            self._calm(self._random.uniform(0.3, 1.5))
            with suppress(redis.RedisError):
                vitals.append(self._vitals())
                show(vitals[-1], len(self._faults))
        self._calm(CALM)
        return self._faults, vitals

    def _another(self, index: int) -> Any:
        seed = self._random.randrange(2**32)
        arguments = (self._proxy.url, str(self._folder), seed, index % 2 == 1)
        worker = forkserver.Process(target=serve, args=arguments, daemon=True)
        worker.start()
        return worker

    def _vitals(self) -> Vitals:
        """Of the first worker, which is never killed. Reads /proc, which Linux has."""
        process = Path(f"/proc/{self._crew[0].pid}")
        resident = int((process / "statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with self._server.client() as client:
            clients: Any = client.info("clients")
            memory: Any = client.info("memory")
        return Vitals(
            resident, len(list((process / "fd").iterdir())), clients["connected_clients"], memory["used_memory"]
        )

    def _calm(self, seconds: float) -> None:
        time.sleep(seconds)  # the storm is a schedule of real time

    @contextmanager
    def _noted(self, name: str, process: int = 0) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._faults.append(Fault(name, began, time.monotonic(), process))

    def _kill(self) -> None:
        with self._noted("kill"):
            self._server.kill()
            self._calm(self._random.uniform(0.2, 2.0))
            self._server.start()

    def _freeze(self) -> None:
        with self._noted("freeze"):
            self._server.freeze()
            self._calm(self._random.uniform(0.2, 2.0))
            self._server.thaw()

    def _flush(self) -> None:
        with self._noted(LOSES_STATE), self._server.client() as client:
            client.flushall()

    def _script_flush(self) -> None:
        with self._noted("script flush"), self._server.client() as client:
            client.script_flush()

    def _cut(self) -> None:
        with self._noted("connections cut"):
            self._proxy.cut_all()

    def _treat(self, name: str, treatment: Treatment) -> None:
        with self._noted(name):
            self._proxy.treatment = treatment
            self._calm(self._random.uniform(0.2, 1.5))
            self._proxy.treatment = pass_on
            self._proxy.cut_all()  # what was swallowed would stand between a question and its answer

    def _lose_replies(self) -> None:
        self._treat("replies lost", swallow)

    def _trickle(self) -> None:
        self._treat("replies trickle", slowly)

    def _delay(self) -> None:
        self._treat("replies late", late(self._random.uniform(0.01, 0.15)))

    def _kill_worker(self) -> None:
        index = self._random.randrange(1, CREW)
        with self._noted("worker killed", self._crew[index].pid):
            self._crew[index].kill()
            self._crew[index].join(10)
        self._crew[index] = self._another(index)

    def _pause_worker(self) -> None:
        pid = self._random.choice(self._crew).pid
        with self._noted("worker paused", pid):
            os.kill(pid, signal.SIGSTOP)
            try:
                self._calm(self._random.uniform(0.2, 1.2))
            finally:
                os.kill(pid, signal.SIGCONT)


@contextmanager
def storm(seed: int, seconds: float, show: Callable[[Vitals, int], None] = lambda *_: None) -> Iterator[Course]:
    """How a storm of so many seconds went; what the workers wrote stays until the block is left."""
    with tempfile.TemporaryDirectory(prefix="sr-storm-") as folder:
        one, began = Storm(seed, Path(folder)), time.monotonic()
        with one.running():
            faults, vitals = one.rage(seconds, show)
            ended = time.monotonic()
        yield Course(seed, began, ended, faults, vitals, Path(folder))
