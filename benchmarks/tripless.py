"""Decisions without a trip to Redis: leased tokens, remembered refusals, and limiters of one process alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import cast

from benchmarks.ground import KEY, Ground
from benchmarks.limiters import LEASE, PLENTY, granted
from benchmarks.machine import version
from benchmarks.rounds import Case, Effort, block, rows, samples
from benchmarks.rows import MICROSECONDS, OURS, PER_SECOND, RATIO, Row, Target
from shared_resilience import ResilienceService, SlidingWindow, TokenBucket

NOTHING = "a call of a function that does nothing"


def nothing() -> None:
    """What is called when there is nothing to decide."""


def measure(ground: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """In this process. There is no ratio to a trip; the call of an empty function stands first."""
    ground.clear()
    with ground.service() as service, ResilienceService.local() as alone:
        cases = [Case("Python", NOTHING, nothing), *_ours(service, alone)]
        for name, make in PEERS.items():
            cases += make() if version(name) else ()
        wanted = [cases[0], *filter(chosen, cases[1:])]
        return without_ratio(rows(wanted, samples(ground, wanted, effort.rounds, effort.local_calls, block)))


def without_ratio(measured: list[Row]) -> list[Row]:
    """A ratio to an empty call says nothing."""
    for row in measured:
        cast("dict[str, float]", row.figures).pop(RATIO)
    return measured


def _ours(service: ResilienceService, alone: ResilienceService) -> Iterator[Case]:
    bucket = TokenBucket(PLENTY.amount, PLENTY.amount / PLENTY.seconds)
    leased = service.get_or_create_rate_limiter("leased", bucket, lease_tokens=LEASE)
    target, work = Target(PER_SECOND, "≥", 500_000), f"token bucket, leases of {LEASE:,} tokens"
    yield Case(OURS, work, partial(leased.try_acquire, KEY), granted, target)
    used_up = service.get_or_create_rate_limiter("used up", TokenBucket(1, 0.001))
    used_up.try_acquire(KEY)
    yield Case(OURS, "refused, and remembered", partial(used_up.try_acquire, KEY), lambda answer: not answer)
    local = alone.get_or_create_rate_limiter("bucket", bucket)
    yield Case(
        OURS,
        "token bucket, without Redis",
        partial(local.try_acquire, KEY),
        bool,
        Target(MICROSECONDS, "≤", 3),
    )
    window = alone.get_or_create_rate_limiter("window", SlidingWindow(*PLENTY, exact=False))
    yield Case(OURS, "sliding window, not exact, without Redis", partial(window.try_acquire, KEY), bool)


def of_limits() -> Iterator[Case]:
    limits, strategies = importlib.import_module("limits"), importlib.import_module("limits.strategies")
    storage = importlib.import_module("limits.storage").MemoryStorage()
    hour = limits.RateLimitItemPerSecond(*PLENTY)
    for work, kind in {"fixed window": "FixedWindow", "sliding counter": "SlidingWindowCounter"}.items():
        hit = getattr(strategies, f"{kind}RateLimiter")(storage).hit
        yield Case("limits", f"{work}, in memory", partial(hit, hour, KEY), bool)


def of_throttled() -> Iterator[Case]:
    throttled = importlib.import_module("throttled")
    quota = throttled.per_duration(timedelta(seconds=PLENTY.seconds), PLENTY.amount, burst=PLENTY.amount)
    for kind in ("token_bucket", "gcra"):
        limit = throttled.Throttled(using=kind, quota=quota, store=throttled.MemoryStore()).limit
        work = f"{kind.replace('_', ' ')}, in memory"
        yield Case("throttled-py", work, partial(limit, KEY), lambda result: not result.limited)


def of_pyrate() -> Iterator[Case]:
    module = importlib.import_module("pyrate_limiter")
    bucket = module.StateBucket([module.Rate(PLENTY.amount, PLENTY.seconds * 1000)], algorithm=module.TokenBucket())
    limiter = module.Limiter(module.SingleBucketFactory(bucket, schedule_leak=False))
    yield Case("pyrate-limiter", "token bucket, in memory", partial(limiter.try_acquire, KEY, blocking=False), bool)


def of_nopanic() -> Iterator[Case]:
    limit = importlib.import_module("nopanic").rate_limit(rate=PLENTY.amount, per=PLENTY.seconds, max_wait=0.0)
    yield Case("nopanic", "token bucket, in memory", limit(lambda: True), bool)


PEERS: dict[str, Callable[[], Iterator[Case]]] = {
    "limits": of_limits,
    "throttled-py": of_throttled,
    "pyrate-limiter": of_pyrate,
    "nopanic": of_nopanic,
}
