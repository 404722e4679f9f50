"""How long the calls of a whole fleet take: a histogram that all workers add to, and the twin of its script.

A process notes the length of each call in its memory. Once a second one of its calls tells them, and brings back the
percentiles of the fleet.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from shared_resilience.backends import Backend
from shared_resilience.backends.process import Component, Process
from shared_resilience.commands import Command, Operation, Reply, Source, State, Step
from shared_resilience.integers import MILLION, added_to_count, to_integer
from shared_resilience.noted import Noted
from shared_resilience.timeout_config import TimeoutConfig

GAMMA = 1.01 / 0.99
SLICES, LARGEST_BUCKET, SECOND, TWO_HOURS_MS = 6, 1400, 1_000_000, 7_200_000
USUAL = (500_000, 950_000, 990_000, 999_000)
SYNC_EVERY = 1.0
"""Seconds for which a view of the fleet is fresh."""

_PER_E_FOLD = 1 / math.log(GAMMA)


def bucket_of(seconds: float) -> int:
    """The bucket of a call of this length; all below a microsecond are in the first."""
    us = seconds * 1e6
    return 0 if us <= 1.0 else min(LARGEST_BUCKET, math.ceil(math.log(us) * _PER_E_FOLD))


def length_of(bucket: int) -> int:
    """What the calls of a bucket count as, in microseconds."""
    return math.floor(2 * GAMMA**bucket / (GAMMA + 1) + 0.5)


def record(states: Sequence[State], now: int, window: int, wanted: int, *pairs: int) -> Step:
    """Twin of `latency.lua`."""
    stored = dict(cast("Mapping[str, int]", states[0] or {}))
    width = -(-window // SLICES)
    for bucket, calls in zip(pairs[::2], pairs[1::2], strict=True):
        field = f"{width}.{now // width}.{bucket}"
        stored[field] = added_to_count(stored.get(field), calls)
    percentiles = (*USUAL, wanted)
    fields = ("samples", "computed_us", *(f"p{percentile}_us" for percentile in percentiles))
    known = [to_integer(stored.get(field)) for field in fields]
    computed = known[1]
    if None not in known and computed is not None and computed <= now < computed + SECOND:
        return Step((stored or None,), (None,), (known[0] or 0, *(number or 0 for number in known[2:])))

    counts, kept = Counter[int](), dict[str, int]()
    for field, calls in stored.items():
        parts = field.split(".")
        if len(parts) == 3:
            its_width, number, bucket = map(int, parts)
            latest = now // its_width if its_width else math.inf
            if number > latest or number <= latest - SLICES or bucket > LARGEST_BUCKET:
                continue
            if its_width == width:
                counts[bucket] += calls
        kept[field] = calls
    total = sum(counts.values())
    lengths = [_percentile(counts, total, percentile) for percentile in percentiles]
    kept |= dict(zip(fields, (total, now, *lengths), strict=True))
    return Step((kept,), (TWO_HOURS_MS,), (total, *lengths))


def _percentile(counts: Counter[int], total: int, percentile: int) -> int:
    rank, seen = -(-total * percentile // MILLION), 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return length_of(bucket)
    return 0


class View(NamedTuple):
    """How long calls of the fleet take, in seconds: percentiles, `wanted` being that of the configuration."""

    samples: int
    p50: float
    p95: float
    p99: float
    p999: float
    wanted: float
    source: Source


def _view(reply: Reply, source: Source) -> View:
    samples, *lengths = map(int, reply)
    p50, p95, p99, p999, wanted = (length / 1e6 for length in lengths)
    return View(samples, p50, p95, p99, p999, wanted, source)


RECORD: Operation[View] = Operation("latency", record, _view)


class Latency(Component):
    """The lengths of the calls of one resource, and the timeout that follows from those of the fleet."""

    def __init__(self, name: str, config: TimeoutConfig, process: Process) -> None:
        self.name = name
        self.config = config
        self.resource = process.heartbeat.resource(name)
        self.resource.configure({f"timeout.{field}": number for field, number in config.numbers().items()})
        self.monotonic = process.clock.monotonic
        self._key = (self.resource.keys.latency,)
        self._told = math.ceil(config.window * 1e6), max(1, round(config.percentile * MILLION))
        self.after_fork()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._noted: Noted[int] = Noted()
        self._due = -math.inf
        self.view: View | None = None
        self.timeout = self.config.ceiling

    def note(self, seconds: float) -> None:
        """A call has taken so long."""
        self._noted.note(bucket_of(seconds))

    def is_due(self, now: float) -> bool:
        """Whether `sync` has something to tell or to ask."""
        return now >= self._due

    async def sync(self, backend: Backend, force: bool = False) -> None:
        """Tells what was noted, and learns what the fleet has; one caller at a time, the others go on meanwhile."""
        now = self.monotonic()
        with self._lock:
            if now < self._due and not force:
                return
            self._due = now + SYNC_EVERY
            pending = self._noted.take()
        pairs = [number for pair in sorted(pending.items()) for number in pair]
        try:
            view = await backend.run(Command(RECORD, self._key, (*self._told, *pairs)), self.resource)
        except BaseException:
            self._noted.add(pending)
            raise
        self.view = view
        self.timeout = self._timeout_of(view)

    def _timeout_of(self, view: View) -> float:
        config = self.config
        if view.samples < config.min_samples:
            return config.ceiling
        return min(config.ceiling, max(config.floor, config.multiplier * view.wanted))

    async def before_close(self, backend: Backend) -> None:
        """Tells what is untold."""
        if self._noted.seen():
            await self.sync(backend, force=True)

    def known(self) -> dict[str, object]:
        """What this process knows without asking."""
        view = self.view or View(0, 0.0, 0.0, 0.0, 0.0, 0.0, "local")
        percentiles = {"p50": view.p50, "p95": view.p95, "p99": view.p99, "p999": view.p999}
        return {
            "timeout": self.timeout,
            "samples": view.samples,
            **percentiles,
            "source": view.source,
            "config": self.config.numbers(),
            **self.resource.statistics("timeout"),
        }
