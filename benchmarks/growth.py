"""What becomes of the cost of a decision as a number grows: the limit, the window, the calls in it, the keys beside."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import redis

from benchmarks.ground import KEY, Ground, key
from benchmarks.limiters import EXACT, granted
from benchmarks.rounds import Case, Effort, block, rows, samples
from benchmarks.rows import OURS, RATIO, SPREAD, Row, Target
from benchmarks.trips import BARE, SCRIPT, is_one
from shared_resilience import LeakyBucket, ResilienceService, SlidingWindow, TokenBucket, scripts
from shared_resilience.keys import ResourceKeys
from shared_resilience.limit_commands import LimitCommands
from shared_resilience.limits import Limit

LARGEST, DAY = 10**9, 86_400
FLAT = Target(SPREAD, "≤", 1.2)
"""The dearest of a series over its cheapest: what a machine that others use cannot tell from flat."""

FIRST_DATABASE = 1
"""From here on each number of keys has a database of its own."""

_BATCH, _SAMPLE = 1000, 997
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
    """Windows of a day that hold so many calls already."""
    service = stack.enter_context(ground.service(database))
    for size in sizes(effort, 2):
        for work, exact in ((EXACT, True), ("sliding window, not exact", False)):
            window = SlidingWindow(LARGEST, DAY, exact=exact)
            case = _case(service, f"{work}, calls in it", size, window)
            _call(ground, database, case.work, window, (KEY for _ in range(size)))
            yield case


def _by_keys(ground: Ground, effort: Effort, stack: ExitStack, database: int) -> Iterator[Case]:
    """A key at random of so many."""
    bucket, work = TokenBucket(LARGEST, 1.0), "token bucket, keys"
    for place, size in enumerate(sizes(effort, 0), database):
        service = stack.enter_context(ground.service(place))
        case = _case(service, work, size, bucket)
        _call(ground, place, case.work, bucket, map(key, range(size)))
        limiter = service.get_or_create_rate_limiter(case.work)
        some = [key(random.randrange(size)) for _ in range(_SAMPLE)]
        yield Case(OURS, case.work, _one_after_another(limiter.try_acquire, some), granted)


def _one_after_another(call: Callable[[str], Any], keys: list[str]) -> Callable[[], Any]:
    """Each call with the next key; they are many more than a block has calls, and not a multiple of them."""
    place = 0

    def next_call() -> Any:
        nonlocal place
        place = place + 1 if place + 1 < len(keys) else 0
        return call(keys[place])

    return next_call


def _call(ground: Ground, database: int, name: str, limit: Limit, keys: Iterable[str]) -> None:
    """One call of the resource `name` for each of `keys`, in batches: it is the state that is wanted here."""
    script, commands, resource = scripts.load("rate_limiter"), LimitCommands([limit]), ResourceKeys("sr", name)
    with redis.Redis(port=ground.port, db=database) as client, client.pipeline(transaction=False) as pipeline:
        client.script_load(script.text)
        for number, one in enumerate(keys, 1):
            command = commands.take((resource.overrides, resource.limit(limit.label, one)), 1)
            pipeline.evalsha(script.sha, len(command.keys), *command.keys, *command.args, "")
            if number % _BATCH == 0:
                pipeline.execute()
        pipeline.execute()
