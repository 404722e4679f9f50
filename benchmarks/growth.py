"""What becomes of the cost of a decision as a number grows: the limit, the window, the calls in it, the keys beside."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import redis

from benchmarks.ground import KEY, Ground, key
from benchmarks.limiters import EXACT, MANY, granted, with_next
from benchmarks.rounds import Case, Effort, block, rows, samples
from benchmarks.rows import OURS, RATIO, SPREAD, Row, Target
from benchmarks.trips import BARE, SCRIPT, is_one
from shared_resilience import LeakyBucket, ResilienceService, SlidingWindow, TokenBucket
from shared_resilience.keys import ResourceKeys
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limits import Limit

LARGEST, DAY = 10**9, 86_400
FLAT = Target(SPREAD, "≤", 1.2)
"""The dearest of a series over its cheapest: what a machine that others use cannot tell from flat."""

FIRST_DATABASE = 1
"""From here on each number of keys has a database of its own."""

LONGEST_LOG = 100_000
"""An exact log longer than this takes longer to fill than all the rest to measure."""

SLOTS = 50
"""Calls that fill a window that is not exact: about one for each of its slots."""

FILLED = 0.9
"""How much of a window is filled; in the rest, it is measured."""

SLOWLY = 1.0
"""Tokens per second of a bucket so large that its keys stay."""

BATCH = 1000
GROWN = "flat: "
Chosen = Callable[[Case], bool]


def sizes(effort: Effort, first: int) -> list[int]:
    """Powers of ten, up to the largest."""
    return [10**exponent for exponent in range(first, round(math.log10(effort.largest)) + 1)]


def series(work: str, size: int) -> str:
    return f"{work} {size:,}"


def measure(ground: Ground, effort: Effort, chosen: Chosen) -> list[Row]:
    """A row for each size, and one for each series, with its target. Exact logs have none."""
    ground.clear()
    with ExitStack() as open_services, redis.Redis(port=ground.port) as client:
        sha: Any = client.script_load(SCRIPT)
        cases = [Case("redis-py", BARE, lambda: client.evalsha(sha, 0), is_one)]
        for database, make in enumerate((_by_limit, _by_window, _by_calls, _by_keys), FIRST_DATABASE):
            cases += filter(chosen, make(ground, effort, open_services, database))
        measured = rows(cases, samples(ground, cases, effort.rounds // 2, effort.calls, block))
    ground.clear()
    return [*measured, *_series(measured[1:])]


def _series(measured: Iterable[Row]) -> Iterator[Row]:
    ratios: dict[str, list[float]] = {}
    for row in measured:
        ratios.setdefault(row.work.rpartition(" ")[0], []).append(row.figures[RATIO])
    for work, found in ratios.items():
        target = None if work.startswith(EXACT) else FLAT
        yield Row(OURS, GROWN + work, {SPREAD: max(found) / min(found)}, target)


def _case(service: ResilienceService, work: str, size: int, limit: Limit) -> Case:
    name = series(work, size)
    limiter = service.get_or_create_rate_limiter(name, limit)
    return Case(OURS, name, partial(limiter.try_acquire, KEY), granted)


def _by_limit(ground: Ground, effort: Effort, stack: ExitStack, database: int) -> Iterator[Case]:
    """The rate is as high as can be, so that the smallest limit refuses nothing either."""
    service = stack.enter_context(ground.service(database))
    for size in sizes(effort, 2):
        yield _case(service, "token bucket, capacity", size, TokenBucket(size, LARGEST))
        yield _case(service, "leaky bucket, capacity", size, LeakyBucket(size, LARGEST))


def _by_window(ground: Ground, effort: Effort, stack: ExitStack, database: int) -> Iterator[Case]:
    service = stack.enter_context(ground.service(database))
    for size in sizes(effort, 0):
        yield _case(service, "sliding window, not exact, seconds", size, SlidingWindow(LARGEST, size, exact=False))


def _by_calls(ground: Ground, effort: Effort, stack: ExitStack, database: int) -> Iterator[Case]:
    """Windows of a day in which so many calls lie, all over it: in a log one by one, else by their sum in each slot."""
    service = stack.enter_context(ground.service(database))
    for size in sizes(effort, 2):
        for work, exact in ((EXACT, True), ("sliding window, not exact", False)):
            if not exact or size <= LONGEST_LOG:
                window, number = SlidingWindow(LARGEST, DAY, exact=exact), size if exact else SLOTS
                case = _case(service, f"{work}, calls in it", size, window)
                _fill(ground, database, case.work, window, number, size // number)
                yield case


def _by_keys(ground: Ground, effort: Effort, stack: ExitStack, database: int) -> Iterator[Case]:
    """A key at random of so many."""
    bucket, work = TokenBucket(LARGEST, SLOWLY), "token bucket, keys"
    for place, size in enumerate(sizes(effort, 0), database):
        service = stack.enter_context(ground.service(place))
        case = _case(service, work, size, bucket)
        case.call()
        _copy(ground, place, ResourceKeys("sr", case.work), bucket.label, size)
        keys = cycle([key(random.randrange(size)) for _ in range(MANY)])
        take = service.get_or_create_rate_limiter(case.work).try_acquire
        yield replace(case, call=partial(with_next, take, keys))


def _fill(ground: Ground, database: int, name: str, window: SlidingWindow, calls: int, cost: int) -> None:
    """So many calls of the resource `name`, told times that lie all over the window."""
    keys = ResourceKeys("sr", name)
    command = LimitCommands([window]).take((keys.overrides, keys.limit(window.label, KEY)), cost)
    length = int(FILLED * window.window * 1e6)
    begin = time.time_ns() // 1000 - length
    with redis.Redis(port=ground.port, db=database) as client, client.pipeline(transaction=False) as pipeline:
        sha = client.script_load(command.operation.loaded.text)
        for number in range(calls):
            now = begin + length * number // calls
            pipeline.evalsha(sha, len(command.keys), *command.keys, *command.args, now)
            if len(pipeline) >= BATCH:
                pipeline.execute()
        pipeline.execute()


def _copy(ground: Ground, database: int, keys: ResourceKeys, label: str, number: int) -> None:
    """Makes the state at `KEY` that of so many keys."""
    source = keys.limit(label, KEY)
    with redis.Redis(port=ground.port, db=database) as client, client.pipeline(transaction=False) as pipeline:
        for target in (keys.limit(label, key(one)) for one in range(number)):
            if target != source:
                pipeline.copy(source, target)
            if len(pipeline) >= BATCH:
                pipeline.execute()
        pipeline.execute()
