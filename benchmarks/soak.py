"""`python -m benchmarks.soak`: millions of decisions, then processes that are killed, and at last a storm of faults.

Decisions are of many keys and a few hot ones, on a server of its own. Tokens come back so slowly that none does in
time: of n attempts for a key, min(n, capacity) must have been allowed, neither more nor less. What is held, on both
sides, must not grow. In the bulkhead, processes are killed and stopped. In the storm so are Redis and the workers, by
a schedule that its seed repeats; see tests/faults.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console
from storm import Vitals, storm
from verdict import found_wrong, read, summary

from benchmarks import bulkhead_soak
from benchmarks.ground import Ground, ground, key
from benchmarks.samples import MEGABYTE, Sample, Sampler, growth
from shared_resilience import SlidingWindow, TokenBucket

SLOWLY = 1e-6
"""Tokens per second: less than one in ten days."""

DAY = 86_400
KEYS, HOT_KEYS, HOT_SHARE = 10_000, 4, 0.2
REFUSING = 0.75
"""The capacity, of what is asked for a key on average: so that the last quarter is refused."""

THREADS, TASKS = 8, 400
LONGEST = 190.0
"""Seconds for each of the three parts: all of them fit into ten minutes."""

SHOWN_EVERY = 5.0
STORM_SHOWN_EVERY = 60.0
MOST_SHOWN = 20
PEEKED = 200
"""Of so many keys is asked at the end what remains."""


@dataclass(slots=True)
class Tally:
    """What one worker has asked for each key, and been granted."""

    asked: Counter[str] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)
    made: int = 0
    local: int = 0

    def note(self, key: str, decision: Any) -> None:
        self.made += 1
        self.asked[key] += 1
        self.allowed[key] += decision.allowed
        self.local += decision.source == "local"


def total(tallies: list[Tally]) -> Tally:
    """All of them together."""
    together = Tally()
    for tally in tallies:
        together.asked.update(tally.asked)
        together.allowed.update(tally.allowed)
        together.made += tally.made
        together.local += tally.local
    return together


class Load:
    """The limiters of one part of the soak, whom a worker asks next, and what must come of it."""

    def __init__(self, service: Any, decisions: int) -> None:
        self.decisions = decisions
        self.keys = [key(number) for number in range(max(1, min(KEYS, decisions // 100)))]
        self.hot_keys = [f"hot:{number}" for number in range(HOT_KEYS)]
        self._capacity = max(1, int(REFUSING * decisions * (1 - HOT_SHARE) / len(self.keys)))
        self._hot_capacity = max(1, int(REFUSING * decisions * HOT_SHARE / HOT_KEYS))
        bucket, hot = TokenBucket(self._capacity, SLOWLY), TokenBucket(self._hot_capacity, SLOWLY)
        self._limiter, self._hot = self._limiters(service.get_or_create_rate_limiter, bucket, hot)

    def _limiters(self, make: Callable[..., Any], bucket: TokenBucket, hot: TokenBucket) -> tuple[Any, Any]:
        """That of the many keys and that of the hot ones."""
        # A refusal that is remembered is no trip: the many keys go without, the hot ones show that it is exact too.
        window = SlidingWindow(hot.capacity, DAY, exact=False)
        return make("many", bucket, remember_refusals=False), make("hot", hot, window)

    def _is_right(self, found: int, right: int) -> bool:
        return found == right

    def limiter(self, key: str) -> Any:
        return self._hot if key in self.hot_keys else self._limiter

    def chosen(self, worker: int, workers: int) -> Iterator[str]:
        """The keys that a worker asks for, one after the other, until its share is done."""
        source = random.Random(worker)
        left = self.decisions - len(self.keys) - len(self.hot_keys)  # one of each has been made before
        for _ in range(left // workers + (worker < left % workers)):
            yield source.choice(self.hot_keys if source.random() < HOT_SHARE else self.keys)

    def wrong(self, tally: Tally, left: Mapping[str, int]) -> list[str]:
        """What is not as it must be, in words; `left` is what some keys are said to have left."""
        found = []
        if tally.made != self.decisions:
            found.append(f"{tally.made:,} of {self.decisions:,} decisions were made in {LONGEST:g} s")
        if tally.local:
            found.append(f"{tally.local:,} decisions were made without Redis")
        for one, number in tally.asked.items():
            capacity = self._hot_capacity if one in self.hot_keys else self._capacity
            right, allowed = min(number, capacity), tally.allowed[one]
            if not self._is_right(allowed, right):
                found.append(f"{one}: {allowed:,} of {number:,} were allowed, but {right:,} is right")
            if not self._is_right(left.get(one, capacity - allowed), capacity - allowed):
                found.append(f"{one}: {left[one]:,} are left, but {capacity - allowed:,} is right")
        return found


class LeasedLoad(Load):
    """The same with leases: what one of them held when it ended is lost, so that there may be less, never more."""

    def _limiters(self, make: Callable[..., Any], bucket: TokenBucket, hot: TokenBucket) -> tuple[Any, Any]:
        few, many = (min(limit.capacity, most) for limit, most in ((bucket, 10), (hot, 1000)))
        return make("many", bucket, lease_tokens=few, remember_refusals=False), make("hot", hot, lease_tokens=many)

    def _is_right(self, found: int, right: int) -> bool:
        return found <= right


Show = Callable[[Sample, int], None]
"""Shows a sample, and how many decisions have been made."""


def by_threads(ours: Ground, decisions: int, interval: float, show: Show, make: type[Load] = Load) -> list[str]:
    """Returns what was wrong."""
    with ours.service() as service:
        load, tallies = make(service, decisions), [Tally() for _ in range(THREADS)]
        for one in (*load.keys, *load.hot_keys):  # so that all states are there when sampling begins
            tallies[0].note(one, load.limiter(one).try_acquire(one))
        end = time.monotonic() + LONGEST

        def work(worker: int) -> None:
            for one in load.chosen(worker, THREADS):
                tallies[worker].note(one, load.limiter(one).try_acquire(one))
                if time.monotonic() > end:
                    break

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(THREADS)]
        with Sampler(ours, interval, lambda sample: show(sample, made(tallies))) as sampler:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        left = {one: load.limiter(one).peek(one).remaining for one in (*load.keys[:PEEKED], *load.hot_keys)}
    return load.wrong(total(tallies), left) + growth(sampler.samples)


async def by_tasks(ours: Ground, decisions: int, interval: float, show: Show) -> list[str]:
    """As `by_threads`, on one event loop."""
    async with ours.service().aio as service:
        load, tally = Load(service, decisions), Tally()  # of one thread
        for one in (*load.keys, *load.hot_keys):
            tally.note(one, await load.limiter(one).try_acquire(one))
        end = time.monotonic() + LONGEST

        async def work(worker: int) -> None:
            for one in load.chosen(worker, TASKS):
                tally.note(one, await load.limiter(one).try_acquire(one))
                if time.monotonic() > end:
                    break

        with Sampler(ours, interval, lambda sample: show(sample, tally.made)) as sampler:
            await asyncio.gather(*map(work, range(TASKS)))
        left = {one: (await load.limiter(one).peek(one)).remaining for one in (*load.keys[:PEEKED], *load.hot_keys)}
    return load.wrong(tally, left) + growth(sampler.samples)


def made(tallies: list[Tally]) -> int:
    """How many decisions there are; workers go on meanwhile."""
    return sum(tally.made for tally in tallies)


class Progress:
    """A line every few seconds."""

    def __init__(self, console: Console, part: str, decisions: int) -> None:
        self._console, self._part, self._decisions = console, part, decisions
        self._began = self._shown = time.monotonic()

    def __call__(self, sample: Sample, made: int) -> None:
        now = time.monotonic()
        if now - self._shown < SHOWN_EVERY:
            return
        self._shown = now
        ours, server = sample.resident_bytes / MEGABYTE, sample.used_memory_bytes / MEGABYTE
        self._console.print(
            f"{self._part} {now - self._began:5.1f} s  {made:>9,} of {self._decisions:,} decisions   "
            f"resident {ours:.1f} MB   used_memory {server:.1f} MB   "
            f"connections {sample.connections}   open files {sample.open_files}",
            highlight=False,
            soft_wrap=True,
        )


PARTS: dict[str, Callable[[Ground, int, float, Show], list[str]]] = {
    "threads": by_threads,
    "asyncio": lambda *arguments: asyncio.run(by_tasks(*arguments)),
    "leases": partial(by_threads, make=LeasedLoad),
}


def soak(decisions: int, interval: float, console: Console) -> list[str]:
    """All parts, each on a server of its own. Returns what was wrong."""
    found = []
    for part, run in PARTS.items():
        began = time.monotonic()
        with ground() as ours:
            wrong = run(ours, decisions, interval, Progress(console, part, decisions))
        outcome = f"{len(wrong)} faults" if wrong else "exact and flat"
        seconds = time.monotonic() - began
        console.print(f"{part}: {decisions:,} decisions in {seconds:.0f} s, {outcome}", highlight=False)
        found += [f"{part}: {fault}" for fault in wrong]
    return found


def soak_bulkhead(seconds: float, console: Console) -> list[str]:
    """Processes that are killed in a bulkhead. Returns what was wrong."""
    with ground() as ours:
        course = bulkhead_soak.run(ours, seconds)
    console.print(f"bulkhead: {course.words}", highlight=False, soft_wrap=True)
    return [f"bulkhead: {fault}" for fault in course.wrong]


def soak_storm(seed: int, seconds: float, console: Console) -> list[str]:
    """Redis and workers killed, frozen, flushed and cut off under load. Returns what was wrong."""
    shown = time.monotonic()

    def show(vitals: Vitals, faults: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= STORM_SHOWN_EVERY:
            shown = time.monotonic()
            ours, server = vitals.resident_bytes / MEGABYTE, vitals.used_memory_bytes / MEGABYTE
            console.print(
                f"storm  {faults} faults   resident {ours:.1f} MB   used_memory {server:.1f} MB   "
                f"connections {vitals.connections}   open files {vitals.open_files}",
                highlight=False,
                soft_wrap=True,
            )

    with storm(seed, seconds, show) as course:
        records = read(course)
        wrong = found_wrong(course, records)
        console.print(f"storm: {summary(course, records)}", highlight=False, soft_wrap=True)
    return [f"storm: {fault}" for fault in wrong]


def main() -> int:
    """The exit code: 0 if all counts are right and nothing grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--decisions", type=int, default=1_000_000, help="of each part, at least 1,000; 0: none")
    parser.add_argument("--interval", type=float, default=0.25, help="seconds between two samples")
    parser.add_argument("--minutes", type=float, default=1.0, help="of processes that are killed inside a bulkhead")
    parser.add_argument("--storm", type=float, default=5.0, help="minutes of a storm of faults")
    parser.add_argument("--seed", type=int, default=None, help="of the storm; by default another one each time")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    wrong = soak(max(1000, options.decisions), options.interval, console) if options.decisions else []
    if options.minutes:
        wrong += soak_bulkhead(60 * options.minutes, console)
    if options.storm:
        seed = random.randrange(2**31) if options.seed is None else options.seed
        wrong += soak_storm(seed, 60 * options.storm, console)
    for fault in wrong[:MOST_SHOWN]:
        console.print(fault, highlight=False, markup=False, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
