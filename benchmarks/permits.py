"""Calls that need permits: what it costs to enter limits and a bulkhead, and to leave, beside a bare script.

And how long it takes until a slot that is freed is taken by whoever waits for it in another process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import redis
from crowds import Visitor, until_crowd_is

from benchmarks.ground import KEY, Ground
from benchmarks.limiters import PLENTY
from benchmarks.rounds import Case, Effort, block, rows, samples
from benchmarks.rows import MICROSECONDS, OURS, RATIO, Row, Target
from benchmarks.trips import BARE, SCRIPT, is_one
from shared_resilience import BulkheadConfig, Permit, ResilienceService, TokenBucket

SLOTS = BulkheadConfig(max_concurrent_calls=20)
TARGET = Target(RATIO, "≤", 2.0)
HAND_OVER = Target(MICROSECONDS, "≤", 10_000)


def from_redis(permit: Any) -> bool:
    return bool(permit.source == "redis")


def measure(ground: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """One caller, who enters and leaves. The baseline stands first."""
    ground.clear()
    with closing(redis.Redis(port=ground.port)) as client, ground.service() as service:
        sha: Any = client.script_load(SCRIPT)
        cases = [Case("redis-py", BARE, lambda: client.evalsha(sha, 0), is_one), *_ours(service)]
        wanted = [cases[0], *filter(chosen, cases[1:])]
        found = rows(wanted, samples(ground, wanted, effort.rounds, effort.calls, block))
        taken = Case(OURS, "until a freed slot is taken by another process", lambda: None)
        return [*found, _hand_over(ground, taken.work, effort.rounds)] if chosen(taken) else found


def _ours(service: ResilienceService) -> Iterator[Case]:
    rate = PLENTY.amount / PLENTY.seconds
    user, tenant = (TokenBucket(PLENTY.amount, rate, label=label) for label in ("user", "tenant"))
    keys = {"user": KEY, "tenant": "acme"}
    bulkhead = service.get_or_create_bulkhead("a slot", SLOTS)
    limits = service.get_or_create_rate_limiter("two buckets", user, tenant)
    service.get_or_create_rate_limiter("all permits", user, tenant)
    service.get_or_create_bulkhead("all permits", SLOTS)
    permits = service.permits("all permits")

    def slot() -> Permit:
        with bulkhead.guard() as permit:
            return permit

    def all_permits() -> Permit:
        with permits.guard(keys) as permit:
            return permit

    yield Case(OURS, "two token buckets", lambda: limits.try_acquire(keys), lambda decision: decision.source == "redis")
    yield Case(OURS, "a slot, entered and left", slot, from_redis)
    yield Case(OURS, "two token buckets and a slot, entered at once, and left", all_permits, from_redis, TARGET)


def _hand_over(ground: Ground, work: str, rounds: int) -> Row:
    """The median time from leaving a full bulkhead until the waiter in another process is inside."""
    one, seen = BulkheadConfig(max_concurrent_calls=1), []
    with ground.service() as service, closing(Visitor(ground.url, "sr", one)) as visitor:
        bulkhead = service.get_or_create_bulkhead("payments", one)
        for _ in range(rounds):
            with bulkhead.guard():
                visitor.knock()
                until_crowd_is(bulkhead, inside=1, waiting=1)
                began = time.monotonic()
            seen.append((visitor.went_in() - began) * 1e6)
            visitor.leave()
    return Row(OURS, work, {MICROSECONDS: statistics.median(seen)}, HAND_OVER)
