"""Calls that need permits: what it costs to enter limits and a bulkhead, and to leave, beside a bare script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import redis

from benchmarks.ground import KEY, Ground
from benchmarks.limiters import PLENTY
from benchmarks.rounds import Case, Effort, block, rows, samples
from benchmarks.rows import OURS, RATIO, Row, Target
from benchmarks.trips import BARE, SCRIPT, is_one
from shared_resilience import BulkheadConfig, Permit, ResilienceService, TokenBucket

SLOTS = BulkheadConfig(max_concurrent_calls=20)
TARGET = Target(RATIO, "≤", 2.0)


def from_redis(permit: Any) -> bool:
    return bool(permit.source == "redis")


def measure(ground: Ground, effort: Effort, chosen: Callable[[Case], bool]) -> list[Row]:
    """One caller, who enters and leaves. The baseline stands first."""
    ground.clear()
    with closing(redis.Redis(port=ground.port)) as client, ground.service() as service:
        sha: Any = client.script_load(SCRIPT)
        cases = [Case("redis-py", BARE, lambda: client.evalsha(sha, 0), is_one), *_ours(service)]
        wanted = [cases[0], *filter(chosen, cases[1:])]
        return rows(wanted, samples(ground, wanted, effort.rounds, effort.calls, block))


def _ours(service: ResilienceService) -> Iterator[Case]:
    rate = PLENTY.amount / PLENTY.seconds
    user, tenant = (TokenBucket(PLENTY.amount, rate, label=label) for label in ("user", "tenant"))
    keys = {"user": KEY, "tenant": "acme"}
    bulkhead = service.get_or_create_bulkhead("slot", SLOTS)
    limits = service.get_or_create_rate_limiter("limits", user, tenant)
    service.get_or_create_rate_limiter("both", user, tenant)
    service.get_or_create_bulkhead("both", SLOTS)
    permits = service.permits("both")

    def slot() -> Permit:
        with bulkhead.guard() as permit:
            return permit

    def all_permits() -> Permit:
        with permits.guard(keys) as permit:
            return permit

    yield Case(OURS, "two token buckets", lambda: limits.try_acquire(keys), lambda decision: decision.source == "redis")
    yield Case(OURS, "a slot, entered and left", slot, from_redis)
    yield Case(OURS, "two token buckets and a slot, entered at once, and left", all_permits, from_redis, TARGET)
