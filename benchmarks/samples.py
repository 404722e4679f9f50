"""Samples of what must stay flat while decisions are made: memory on both sides, connections, open files."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from benchmarks.ground import Ground

FILES, PAGES = Path("/proc/self/fd"), Path("/proc/self/statm")
MEGABYTE = 1e6
FEWEST = 8


class Sample(NamedTuple):
    """What is held at one moment, by us and by the server."""

    resident_bytes: int
    used_memory_bytes: int
    connections: int
    open_files: int


TOLERANCES = Sample(resident_bytes=8_000_000, used_memory_bytes=1_000_000, connections=2, open_files=2)
"""How much more the last quarter may hold than the first: what allocators and buffers do by themselves."""


def sample(ground: Ground) -> Sample:
    """Now. Reads /proc, which Linux has."""
    resident = int(PAGES.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    memory, clients = ground.client.info("memory"), ground.client.info("clients")
    return Sample(resident, memory["used_memory"], clients["connected_clients"], len(list(FILES.iterdir())))


def growth(samples: list[Sample]) -> list[str]:
    """What has grown from the first quarter to the last beyond its tolerance, in words; medians of both."""
    if len(samples) < FEWEST:
        return [f"only {len(samples)} samples, of which nothing can be told"]
    quarter = len(samples) // 4
    found = []
    for what, allowed in TOLERANCES._asdict().items():
        first, last = (
            statistics.median(getattr(one, what) for one in part) for part in (samples[:quarter], samples[-quarter:])
        )
        if last - first > allowed:
            found.append(f"{what} grew from {first:,.0f} to {last:,.0f}, which is more than {allowed:,}")
    return found


class Sampler:
    """Takes a sample every `interval` seconds in a thread of its own, and shows each to `show`, from enter to exit."""

    def __init__(self, ground: Ground, interval: float, show: Callable[[Sample], None]) -> None:
        self.samples: list[Sample] = []
        self._ground, self._interval, self._show = ground, interval, show
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def _run(self) -> None:
        while not self._over.wait(self._interval):
            self.samples.append(sample(self._ground))
            self._show(self.samples[-1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
